"""The views over verdicts against the same computed by hand, over random verdicts."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter, defaultdict
from datetime import date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest

from tests.books import uuid7
from tests.conftest import Database

pytestmark = pytest.mark.property

SEED = 20261121
START = datetime(2026, 11, 2, 20, 0, tzinfo=timezone.utc)
LEAST = 6  # mono_zero_n
COLUMNS = (
    "tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, score, usable, label,"
    " reward_source, recorded_at, withdrawal_id, withdrawn_at"
)


class Said(NamedTuple):
    """A verdict."""

    tenant: str
    outcome: str
    judge: tuple[str, str]
    model: str
    score: float | None
    label: str | None
    at: datetime
    withdrawn: bool

    @property
    def usable(self) -> bool:
        return self.score is not None and self.score >= 0


def verdicts(rng: random.Random) -> list[Said]:
    """Judges of every kind: random ones, ones that say 0 from some moment on, ones that say nothing."""
    now = time.time()
    outcomes = [(uuid7(now + n), rng.choice("ab"), rng.choice(["m", "n"])) for n in range(90)]
    said = []
    for judge in [("j", "1"), ("j", "2"), ("k", "1"), ("man", "1")]:
        good, broken_for, mute = rng.random() ** 2, rng.choice("mn"), rng.random() ** 2
        breaks = rng.randrange(200)
        at = START
        for outcome, tenant, model in rng.sample(outcomes, rng.randrange(30, 90)):
            at += rng.choice([timedelta(0), timedelta(hours=rng.randrange(30))])
            score: float | None = rng.choice([0.5, 1, rng.random()]) if rng.random() < good else 0
            if model == broken_for and len(said) > breaks:
                score = 0
            if rng.random() < mute:
                score = rng.choice([-1, None])
            label = rng.choice([None, "x", "y", "z"])
            said.append(Said(tenant, outcome, judge, model, score, label, at, rng.random() < 0.03))
    return said


def store(db: Database, said: list[Said]) -> None:
    with db.connect() as conn:
        conn.execute("truncate routeledger.judge_verdicts")
        with conn.cursor() as cursor:
            cursor.executemany(
                f"insert into routeledger.judge_verdicts ({COLUMNS}) values"
                " (%s, %s, %s, %s, gen_random_uuid(), %s, %s, %s, %s, 'judge', %s, %s, %s)",
                [
                    (
                        v.tenant, v.outcome, *v.judge, v.model, v.score, v.usable, v.label, v.at,
                        v.outcome if v.withdrawn else None, v.at if v.withdrawn else None,
                    )
                    for v in said
                ],
            )  # fmt: skip


def findings(said: list[Said]) -> set[tuple[Any, ...]]:
    groups: dict[tuple[Any, ...], list[Said]] = defaultdict(list)
    for verdict in sorted(said, key=lambda v: (v.at, v.outcome)):
        if not verdict.withdrawn:
            groups[(verdict.tenant, *verdict.judge, verdict.model)].append(verdict)
    found: set[tuple[Any, ...]] = set()
    for key, group in groups.items():
        usable = [v for v in group if v.usable]
        zeros = 0
        while zeros < len(usable) and usable[-1 - zeros].score == 0:
            zeros += 1
        run, before = usable[len(usable) - zeros :], usable[: len(usable) - zeros]
        mean = (sum(v.score or 0 for v in before) + 1) / (len(before) + 2)
        if zeros >= LEAST and (not before or (1 - mean) ** zeros < 0.001):
            found.add((*key, "mono_zero", zeros, run[0].at, group[-1].at))
        last = [v for v in group if v.at > group[-1].at - timedelta(hours=24)]
        mute = [v for v in last if not v.usable]
        if len(last) >= LEAST and 2 * len(mute) > len(last):
            found.add((*key, "mostly_unusable", len(mute), mute[0].at, group[-1].at))
    return found


def kappa(pairs: list[tuple[Any, Any]]) -> float | None:
    """Cohen's, from the definition."""
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    of_a, of_b = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(of_a[c] * of_b[c] for c in of_a) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def agreement(said: list[Said]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    counted: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for verdict in said:
        if verdict.usable and not verdict.withdrawn:
            counted[verdict.tenant, verdict.outcome].append(verdict)
    pairs: dict[tuple[Any, ...], list[tuple[Said, Said]]] = defaultdict(list)
    for (tenant, _), group in counted.items():
        for a in group:
            for b in group:
                if a.judge < b.judge:
                    pairs[(tenant, *a.judge, *b.judge)].append((a, b))
    return {
        key: (
            len(both),
            sum(a.score == b.score for a, b in both) / len(both),
            kappa([((a.score or 0) >= 0.5, (b.score or 0) >= 0.5) for a, b in both]),
            len(labels := [(a.label, b.label) for a, b in both if a.label and b.label]),
            kappa(labels),
        )
        for key, both in pairs.items()
    }


def drift(said: list[Said]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    days: dict[tuple[str, tuple[str, str]], dict[date, list[Said]]] = defaultdict(dict)
    for verdict in said:
        if not verdict.withdrawn:
            days[verdict.tenant, verdict.judge].setdefault(verdict.at.date(), []).append(verdict)
    lines: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for (tenant, judge), by_day in days.items():
        scores = {day: [v.score or 0 for v in group if v.usable] for day, group in by_day.items()}
        for day, now in scores.items():
            before = [s for n in range(1, 8) for s in scores.get(day - timedelta(days=n), [])]
            change = statistics.fmean(now) - statistics.fmean(before) if now and before else None
            z = None
            if change is not None and len(now) > 1 and len(before) > 1:
                error = math.sqrt(sum(statistics.variance(s) / len(s) for s in (now, before)))
                z = change / error if error else None
            lines[(tenant, *judge, day)] = (len(now), len(before), change, z)
    return lines


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(
        a == b if a is None or b is None else a == pytest.approx(b, rel=1e-6, abs=1e-6)
        for a, b in zip(one, other, strict=True)
    )


FINDINGS = """
select tenant_id, judge, judge_version, model_slug, kind, n, since, last_at
from routeledger.judge_findings
"""
AGREEMENT = """
select tenant_id, judge_a, version_a, judge_b, version_b, n, equal_scores, kappa, label_n, label_kappa
from routeledger.judge_agreement
"""
DRIFT = """
select tenant_id, judge, judge_version, day, n, before_n, change, z from routeledger.judge_drift
"""


def test_the_views_say_what_the_definitions_say(db: Database) -> None:
    db.execute(f"""select routeledger.configure('{{"mono_zero_n": {LEAST}}}')""")
    kinds: Counter[str] = Counter()
    for seed in range(20):
        said = verdicts(random.Random(SEED + seed))
        store(db, said)
        stored = db.execute(FINDINGS)
        assert set(stored) == findings(said), seed
        assert len(stored) == len(set(stored))
        kinds.update(row[4] for row in stored)
        for query, width, expected in (
            (AGREEMENT, 5, agreement(said)),
            (DRIFT, 4, drift(said)),
        ):
            lines = {row[:width]: row[width:] for row in db.execute(query)}
            assert lines.keys() == expected.keys()
            assert [key for key in lines if not same(lines[key], expected[key])] == [], seed
    assert min(kinds["mono_zero"], kinds["mostly_unusable"]) > 0
