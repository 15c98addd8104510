"""Off-policy estimates against the truth: a matrix knows what every model would have answered."""

from __future__ import annotations

import json
import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import mean, variance
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from typer.testing import CliRunner

from routeledger.cli import app
from routeledger.demo.trace import data_dir
from routeledger.replay import find_matrix
from tests.conftest import Database

MATRIX = find_matrix(data_dir())
NOON = datetime(2026, 3, 10, 12, tzinfo=timezone.utc)
WEIGHING = ("ips", "snips", "doubly_robust")


def _token_usd(m: int) -> float:
    model = MATRIX.models[m]
    assert model.input_usd is not None
    assert model.output_usd is not None
    return float(model.input_usd * 10 + model.output_usd)


# Five models, cheap and dear; of the recorded ones none that is both good and the cheapest.
_WANTED = (
    "open-mistral-nemo-2407-FC-Any",
    "gpt-3.5-turbo-0125-FC",
    "yi-large-fc",
    "open-mixtral-8x22b",
    "claude-3-5-sonnet-20240620",
)
_PRICED = sorted(
    (m for m, model in enumerate(MATRIX.models) if model.priced),
    key=lambda m: (_token_usd(m), m),
)
ARMS = (
    [_PRICED[round(n * (len(_PRICED) - 1) / 4)] for n in range(5)]
    if MATRIX.synthetic
    else [next(m for m in _PRICED if MATRIX.models[m].name == wanted) for wanted in _WANTED]
)


def name(m: int) -> str:
    return MATRIX.models[m].name


def right(m: int, p: int) -> float:
    return float(MATRIX.right[m][p])


def usd(m: int, p: int) -> float:
    model, used = MATRIX.models[m], MATRIX.tokens[m][p]
    assert used is not None
    assert model.input_usd is not None
    assert model.output_usd is not None
    return float(used[0] * model.input_usd + used[1] * model.output_usd) / 1e6


@dataclass(frozen=True, slots=True)
class Served:
    """A prompt that a model answered, and with which probability it was that model."""

    prompt: int
    model: int
    propensity: float
    labelled: bool = True
    failed: bool = False


def new_id(rng: random.Random) -> str:
    """A UUID of version 7 dated NOON."""
    bits = (int(NOON.timestamp() * 1000) << 80) | rng.getrandbits(80)
    return str(uuid.UUID(int=(bits & ~(0xF << 76) & ~(0x3 << 62)) | (0x7 << 76) | (0x2 << 62)))


def in_parts(rows: Sequence[Any], size: int = 1000) -> Iterator[str]:
    for start in range(0, len(rows), size):
        yield json.dumps(rows[start : start + size])


def call(conn: psycopg.Connection[Any], routine: str, rows: Sequence[Any]) -> None:
    """A routine for sets, of which every row must be accepted."""
    for part in in_parts(rows):
        told = conn.execute(
            f"select count(*) filter (where status <> 'accepted'), min(code) from routeledger.{routine}(%s)",  # type: ignore[arg-type]
            [part],
        ).fetchone()
        assert told == (0, None), (routine, told)


def label(conn: psycopg.Connection[Any], rewards: Sequence[tuple[str, str, float]]) -> None:
    """Verdicts of one judge: (tenant, id, score)."""
    call(
        conn,
        "record_verdicts",
        [
            {
                "tenant_id": tenant,
                "id": decision,
                "judge": "recorded",
                "judge_version": "1",
                "score": score,
            }
            for tenant, decision, score in rewards
        ],
    )


def succeeded(key: Mapping[str, str], m: int, p: int) -> dict[str, Any]:
    """A completion: model m answered prompt p, with the tokens on record."""
    used = MATRIX.tokens[m][p]
    assert used is not None
    tokens = {"input_tokens": used[0], "output_tokens": used[1]}
    return {**key, "outcome_status": "succeeded", **tokens}


def write_log(
    conn: psycopg.Connection[Any], logs: Mapping[str, Iterable[Served]], rng: random.Random
) -> None:
    """Logs by tenant: decided with their propensities, completed, labelled from the matrix."""
    candidates = [name(m) for m in ARMS]
    decisions: list[dict[str, Any]] = []
    completions: list[dict[str, Any]] = []
    rewards = []
    for tenant, served in logs.items():
        for s in served:
            key = {"tenant_id": tenant, "id": new_id(rng)}
            decisions.append({
                **key,
                "task_type": MATRIX.tasks[s.prompt],
                "candidates": candidates,
                "chosen_model_slug": name(s.model),
                "propensity": s.propensity,
            })  # fmt: skip
            if s.failed:
                completions.append({**key, "outcome_status": "failed", "error_type": "500"})
            else:
                completions.append(succeeded(key, s.model, s.prompt))
                if s.labelled:
                    rewards.append((tenant, key["id"], right(s.model, s.prompt)))
    call(conn, "insert_decisions", decisions)
    call(conn, "complete_decisions", completions)
    label(conn, rewards)


@pytest.fixture
def conn(db: Database) -> Iterator[psycopg.Connection[Any]]:
    """The five models at their prices, and a session whose clock stands at noon."""
    with db.connect() as conn:
        conn.execute("select routeledger.set_clock(%s)", [NOON])
        call(
            conn,
            "import_models",
            [
                {
                    "model_slug": name(m),
                    "base_model": MATRIX.models[m].base_model,
                    "input_usd_per_mtok": str(MATRIX.models[m].input_usd),
                    "output_usd_per_mtok": str(MATRIX.models[m].output_usd),
                    "q_prior": mean(MATRIX.right[m]),
                }
                for m in ARMS
            ],
        )
        yield conn


def only(m: int) -> dict[str, Any]:
    """The rules that send everything to one model."""
    return {"allow": [name(m)], "min_quality": 0}


def estimate(
    conn: psycopg.Connection[Any], tenant: str, rules: Mapping[str, Any], **more: Any
) -> dict[tuple[str, str], Any]:
    """The rows of estimate_policy by estimator and measure."""
    arguments = {"p_tenant_id": tenant, "p_overrides": json.dumps(dict(rules)), **more}
    names = ", ".join(f"{key} => %({key})s" for key in arguments)
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"select * from routeledger.estimate_policy({names})".encode(), arguments
        ).fetchall()
    return {(row["estimator"], row["measure"]): row for row in rows}


def covers(row: Mapping[str, Any], truth: float) -> bool:
    return bool(row["low"] <= truth <= row["high"])


# -- a log written by route ------------------------------------------------------------------------

EXPLORING = {
    "min_quality": 0.6,
    "min_samples": 5,
    "exploration": "thompson",
    "exploration_share": 0.5,
    "exploration_min_samples": 10,
}
THRIFTY = {
    "min_quality": 0,
    "min_samples": 5,
    "ordering": "expected_total_cost",
    "failure_cost_usd": 0.01,
}


def test_what_an_exploring_policy_tells_of_another(
    db: Database, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """Each prompt arrives once, is routed with exploration, answered and labelled as recorded."""
    rng = random.Random("off policy, routed")
    yesterday = (NOON - timedelta(days=1)).date().isoformat()
    trained = {}  # ten prompts of each task type: enough to choose by, too few to be sure
    for task in sorted(set(MATRIX.tasks)):
        prompts = rng.sample([p for p in MATRIX.prompts if MATRIX.tasks[p] == task], 10)
        trained.update({(task, m): sum(right(m, p) for p in prompts) for m in ARMS})
    rows = [
        {
            "tenant_id": "acme",
            "model_key": name(m),
            "task_type": task,
            "day": yesterday,
            "n": 10,
            "reward_sum": total,
            "reward_sq_sum": total,
        }
        for (task, m), total in trained.items()
    ]
    for part in in_parts(rows):
        conn.execute("select routeledger.persist_model_performance(%s)", [part])
    conn.execute(
        "select count(*) from routeledger.set_policy('exploring', %s)", [json.dumps(EXPLORING)]
    )
    arrived = {new_id(rng): p for p in rng.sample(MATRIX.prompts, len(MATRIX.prompts))}
    call(
        conn,
        "routes",
        [
            {
                "tenant_id": "acme",
                "id": key,
                "task_type": MATRIX.tasks[p],
                "policy": "exploring",
                "candidates": [name(m) for m in ARMS],
                "seed": n,
            }
            for n, (key, p) in enumerate(arrived.items())
        ],
    )
    stored = {
        str(key): (chosen, candidates)
        for key, chosen, candidates in conn.execute(
            "select id, chosen_model_slug, candidates from routeledger.routing_outcomes"
        ).fetchall()
    }
    models = {name(m): m for m in ARMS}
    completions, rewards = [], []
    for key, p in arrived.items():
        if stored[key][0] is None:  # nothing clears the floor
            continue
        m = models[stored[key][0]]
        completions.append(succeeded({"tenant_id": "acme", "id": key}, m, p))
        rewards.append(("acme", key, right(m, p)))
    call(conn, "complete_decisions", completions)
    label(conn, rewards)

    # what the other policy would choose, for which prompts that had a chance and was tried at all
    chosen = dict(
        conn.execute(
            "select outcome_id::text, model_slug from routeledger.replay_policy('acme', p_overrides => %s)",
            [json.dumps(THRIFTY)],
        ).fetchall()
    )
    assert len(set(chosen.values())) > 2
    tried = Counter((MATRIX.tasks[p], stored[key][0]) for key, p in arrived.items())
    chance = {
        key: p
        for key, p in arrived.items()
        if stored[key][0] == chosen[key]
        or any(
            c["model_slug"] == chosen[key] and c.get("propensity", 0) > 0 for c in stored[key][1]
        )
    }
    about = {key: p for key, p in chance.items() if tried[MATRIX.tasks[p], chosen[key]] > 1}
    assert len(about) > len(arrived) / 2
    found = estimate(conn, "acme", THRIFTY)
    truth = {
        "quality": mean(right(models[chosen[key]], p) for key, p in about.items()),
        "cost_usd": mean(usd(models[chosen[key]], p) for key, p in about.items()),
    }
    for measure, value in truth.items():
        for estimator in WEIGHING:
            row = found[estimator, measure]
            assert covers(row, value), (estimator, measure, row, value)
            assert row["n"] == len(about)
            assert row["no_chance"] == len(arrived) - len(chance)
            assert row["unmeasured"] == len(chance) - len(about)
            assert row["mean_weight"] == pytest.approx(1, abs=0.2)
            assert 30 < row["effective_n"] <= row["matched"]
        # the correction is worth something: narrower than the weights alone
        assert (
            found["doubly_robust", measure]["standard_error"]
            < found["ips", measure]["standard_error"]
        )
    # and the command says so
    report = tmp_path / "replay.html"
    policy = f"default {json.dumps(THRIFTY)}"
    window = ["--from", "2026-03-10", "--to", "2026-03-11"]
    run = ["replay", "--dsn", db.dsn, "--tenant", "acme", "--policy", policy, *window]
    shown = CliRunner().invoke(app, [*run, "--out", str(report)])
    assert shown.exit_code == 0, shown.output
    assert "doubly robust" in shown.stdout
    assert ("had no chance" in shown.stdout) == (len(chance) < len(arrived))
    assert "self-normalised" in report.read_text()
    told = json.loads(CliRunner().invoke(app, [*run, "--json", "--max-weight", "5"]).stdout)
    cut = {(row["estimator"], row["measure"]): row for row in told["estimates"][policy]}
    assert len(cut) == 10
    assert cut["ips", "quality"]["largest_weight"] == 5 < found["ips", "quality"]["largest_weight"]
    assert cut["ips", "quality"]["value"] < found["ips", "quality"]["value"]


# -- logs whose choice hangs on what is not in them --------------------------------------------------

CHEAP, GOOD = ARMS[0], ARMS[-1]


def hardness(p: int) -> float:
    """The share of all models that get a prompt wrong: what a caller may sense, and no column holds."""
    return 1 - mean(row[p] for row in MATRIX.right)


def sensing(prompts: Sequence[int], sure: float) -> Callable[[int], float]:
    """A router that senses which prompts are hard: with which probability it asks GOOD."""
    middle = sorted(map(hardness, prompts))[len(prompts) // 2]
    return lambda p: sure if hardness(p) > middle else 1 - sure


def serve(
    rng: random.Random, prompts: Iterable[int], chance_of_good: Callable[[int], float]
) -> list[Served]:
    served = []
    for p in prompts:
        chance = chance_of_good(p)
        good = rng.random() < chance
        served.append(Served(p, GOOD if good else CHEAP, chance if good else 1 - chance))
    return served


# the larger task types, so that no cell of a log is empty
LARGE = {task for task, count in Counter(MATRIX.tasks).items() if count >= 200}
PROMPTS = [p for p in MATRIX.prompts if MATRIX.tasks[p] in LARGE]


def reference(served: Sequence[Served], m: int) -> dict[str, tuple[float, float]]:
    """What is estimated of the quality of model m for everything, written down plainly, with its error."""
    cells: dict[tuple[str, int], list[Served]] = {}
    for s in served:
        cells.setdefault((MATRIX.tasks[s.prompt], s.model), []).append(s)
    known = {key: [s for s in cell if s.labelled and not s.failed] for key, cell in cells.items()}
    weights, terms, direct, corrected = [], [], [], []
    for s in served:
        mine = known[MATRIX.tasks[s.prompt], m]
        q = mean(right(m, other.prompt) for other in mine if other is not s)
        weight = y = 0.0
        if s.model == m and s.labelled and not s.failed:
            weight = len(cells[MATRIX.tasks[s.prompt], m]) / len(mine) / s.propensity
            y = right(m, s.prompt)
        weights.append(weight)
        terms.append(weight * y)
        direct.append(q)
        corrected.append(q + weight * (y - q))
    n = len(served)
    ratio = sum(terms) / sum(weights)
    scale = n / sum(weights)
    means = 0.0
    for (task, model), cell in known.items():
        if model == m:
            share = sum(MATRIX.tasks[s.prompt] == task for s in served) / n
            means += share**2 * variance([right(m, s.prompt) for s in cell]) / len(cell)
    return {
        "direct": (mean(direct), math.sqrt(variance(direct) / n + means)),
        "ips": (mean(terms), math.sqrt(variance(terms) / n)),
        "snips": (
            ratio,
            math.sqrt(
                variance([scale * (t - w * ratio) for t, w in zip(terms, weights, strict=True)]) / n
            ),
        ),
        "doubly_robust": (mean(corrected), math.sqrt(variance(corrected) / n)),
    }


def test_a_log_in_which_the_good_model_gets_the_hard_ones(
    conn: psycopg.Connection[Any],
) -> None:
    """The means of the models lie: the good one looks worse than it is, the cheap one better. What is
    weighed by the propensities does not, and neither does it where a model's labels are scarce."""
    rng = random.Random("off policy, confounded")
    served = serve(rng, PROMPTS * 2, sensing(PROMPTS, 0.9))
    scarce = [replace(s, labelled=s.model == GOOD or rng.random() < 0.4) for s in served]
    write_log(conn, {"all": served, "scarce": scarce}, rng)
    for tenant in ("all", "scarce"):
        for m, lie in ((GOOD, -1), (CHEAP, 1)):
            found = estimate(conn, tenant, only(m))
            truth = mean(right(m, p) for p in PROMPTS)
            direct = found["direct", "quality"]
            assert (direct["value"] - truth) * lie > 2 * direct["standard_error"]
            for estimator in WEIGHING:
                row = found[estimator, "quality"]
                assert covers(row, truth), (tenant, name(m), row, truth)
                assert row["n"] == row["answered"] == len(served)
                assert covers(found[estimator, "cost_usd"], mean(usd(m, p) for p in PROMPTS))
    for m in (GOOD, CHEAP):
        found = estimate(conn, "scarce", only(m))
        for estimator, expected in reference(scarce, m).items():
            row = found[estimator, "quality"]
            assert (row["value"], row["standard_error"]) == pytest.approx(expected, rel=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say(conn: psycopg.Connection[Any]) -> None:
    """Over logs of prompts drawn anew, in which calls of one model fail more often than those of the other,
    and have a label less often: how far estimates are off, in their own standard errors."""
    rng = random.Random("off policy, coverage")
    logs, size = 40, 500
    chance_of_good = sensing(PROMPTS, 0.8)
    written = {}
    for n in range(logs):
        served = serve(rng, rng.choices(PROMPTS, k=size), chance_of_good)
        written[f"log-{n}"] = [
            replace(
                s,
                labelled=rng.random() < (0.8 if s.model == GOOD else 0.6),
                failed=rng.random() < (0.02 if s.model == GOOD else 0.1),
            )
            for s in served
        ]
    write_log(conn, written, rng)
    truth: dict[tuple[str, str], float] = {}
    for measure, of in (("quality", right), ("cost_usd", usd)):
        truth.update({(e, measure): mean(of(GOOD, p) for p in PROMPTS) for e in WEIGHING})
        # as it was: what the models are worth on the prompts that they get
        truth["as_it_was", measure] = mean(
            chance_of_good(p) * of(GOOD, p) + (1 - chance_of_good(p)) * of(CHEAP, p)
            for p in PROMPTS
        )
    off: dict[tuple[str, str], list[float]] = {key: [] for key in truth}
    for tenant in written:
        found = estimate(conn, tenant, only(GOOD))
        for key, value in truth.items():
            row = found[key]
            assert (row["decisions"], row["n"]) == (size, size)
            off[key].append((row["value"] - value) / row["standard_error"])
    for key, errors in off.items():
        # of 40 intervals of 95 % 38 are expected to hold it, and 33 or more in 997 of 1,000 series
        assert sum(abs(z) < 1.96 for z in errors) >= 33, (key, errors)
        assert 0.7 < math.sqrt(mean(z * z for z in errors)) < 1.4, (key, errors)
        assert abs(mean(errors)) < 0.5, (key, errors)
