"""The ranking is what a straightforward Python says over the same catalog, buckets and policy; and what
route() writes is what rank_candidates() says, with propensities that add up.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.property.ledger import THOROUGH, Row, set_clock

pytestmark = pytest.mark.property

WORLDS = 500
REQUESTS = 20
EXAMPLES = 300 if THOROUGH else 60
NOW = datetime(2030, 1, 16, 12, tzinfo=timezone.utc)
TODAY = NOW.date()
TENANT = "acme"
MICRO = Decimal(1).scaleb(-6)

PRICES: Sequence[Decimal | None] = [
    *map(Decimal, ("0", "0.05", "0.1", "0.1", "0.5", "0.5", "1", "3", "15", "0.004688")),
    None,
]
REASONS = (
    "not_enrolled_no_price",
    "price_flagged",
    "not_enrolled_no_q_prior",
    "m_allowed_veto",
    "below_quality_floor",
    "exceeds_budget_cap",
    "exceeds_latency_cap",
    "cooling_down",
)


@dataclass
class World:
    """What a ranking reads, in the shape of the tables."""

    models: list[Row] = field(default_factory=list)
    prices: list[Row] = field(default_factory=list)
    buckets: list[Row] = field(default_factory=list)
    cooldowns: list[Row] = field(default_factory=list)
    by_model: dict[str, dict[str, list[Row]]] = field(default_factory=dict)

    def of(self, kind: str, key: str, slug: str) -> list[Row]:
        """The rows of a model."""
        if kind not in self.by_model:
            found = self.by_model[kind] = defaultdict(list)
            for row in getattr(self, kind):
                found[row[key]].append(row)
        return self.by_model[kind][slug]


def make_world(rng: random.Random) -> World:
    """A random one, with ties and with values on every edge."""
    world = World()
    slugs = [f"{rng.choice('abcé')}/{i}" for i in range(rng.randint(0, 25))]
    for slug in slugs:
        world.models.append(
            {
                "model_slug": slug,
                "provider": rng.choice(["p", "q", None]),
                "brand_slug": rng.choice(["a", "b", "c", None]),
                "q_prior": rng.choice([None, 0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.9, 1.0]),
                "enrolled": rng.random() < 0.9,
                "expected_latency_ms": rng.choice([None, 100.0, 500.0, 500.5, 9000.0]),
                "max_input_tokens": rng.choice([None, None, 1000, 8000]),
                "deprecated_at": rng.choice(
                    [None, None, None, NOW - timedelta(days=1), NOW, NOW + timedelta(days=1)]
                ),
            }
        )
        for days in rng.sample([-1, 0, 1, 30, 400], rng.choice([0, 1, 1, 2, 3])):
            world.prices.append(
                {
                    "model_slug": slug,
                    "valid_from": NOW - timedelta(days=days),
                    "input_usd_per_mtok": rng.choice(PRICES),
                    "output_usd_per_mtok": rng.choice(PRICES),
                    "flag": "input_below_neighbours" if rng.random() < 0.07 else None,
                }
            )
        for task_type in rng.sample(["chat", "code", "__global__"], rng.randint(0, 3)):
            for days in rng.sample(range(-1, 12), rng.randint(0, 6)):
                n = rng.choice([0, 1, 5, 10, 29, 30, 31, 100])
                rewards = rng.randint(0, n)
                # multiples of 1/8: sums of them are exact
                rewarded = rng.choice(
                    [rewards, rewards, rng.randint(0, 8 * rewards) / 8, -1, 2 * n]
                )
                latency_n = rng.randint(0, n)
                world.buckets.append(
                    {
                        "tenant_id": TENANT if rng.random() < 0.9 else "bolt",
                        "model_key": slug,
                        "task_type": task_type,
                        "day": TODAY - timedelta(days=days),
                        "n": n,
                        "reward_n": rewards,
                        "reward_sum": float(rewarded) if rewards else 0.0,
                        "latency_n": latency_n,
                        "latency_sum_ms": (
                            latency_n * rng.choice([50.0, 500.0, 500.25])
                            if rng.random() < 0.9
                            else None
                        ),
                        # what calls cost says nothing of what the next one will
                        "cost_n": n,
                        "cost_usd": Decimal(9990),
                    }
                )
        if rng.random() < 0.1:
            until = NOW + timedelta(seconds=rng.choice([-5, 0, 1, 60]))
            world.cooldowns.append(
                {
                    "tenant_id": rng.choice([TENANT, "", "bolt"]),
                    "model_slug": slug,
                    "provider": rng.choice(["", "p", "q"]),
                    "until_at": rng.choice([until, until, None]),
                    "first_failed_at": NOW - timedelta(days=rng.choice([0, 2, 5])),
                    "last_failed_at": NOW,
                }
            )
    return world


def make_request(rng: random.Random, world: World) -> Row:
    """The arguments of one ranking."""
    slugs = [model["model_slug"] for model in world.models]
    rules: Row = {}
    for name, values in {
        "min_quality": [0, 0.25, 0.75, 0.8, 0.9, 1],
        "budget_cap_usd": [None, 0, 0.0001, 0.001, 0.01],
        "latency_cap_ms": [None, 0, 500, 5000],
        "min_samples": [1, 10, 30, 60],
        "window_days": [1, 3, 7, 30],
        "floor": ["mean", "lower_bound"],
        "confidence": [0.5, 0.9, 0.95, 0.9999],
        "ordering": ["price", "expected_cost_per_success", "expected_total_cost"],
        "failure_cost_usd": [0, 0.001, 0.05, 100],
        "diversity_penalty": [0, 0, 0.1, 1],
        "allow": [[], [], rng.sample(slugs, rng.randint(0, len(slugs)))],
        "deny": [[], rng.sample(slugs, rng.randint(0, min(3, len(slugs))))],
        "input_tokens": [0, 500, 2000],
        "output_tokens": [0, 500],
    }.items():
        if rng.random() < 0.5:
            rules[name] = rng.choice(values)
    candidates = None
    if rng.random() < 0.4:
        candidates = [rng.choice([*slugs, "unknown"]) for _ in range(rng.randint(0, 8))]
    return {
        "tenant_id": TENANT,
        "task_type": rng.choice(["chat", "chat", "code", None]),
        "policy": "default",
        "candidates": candidates,
        "overrides": rules,
        "input_tokens": rng.choice([None, None, 0, 1000, 1001, 100_000]),
        "output_tokens": rng.choice([None, 0, 300]),
        "at": rng.choice([None, None, NOW - timedelta(days=2), NOW + timedelta(days=1)]),
    }


DEFAULTS: Row = {
    "min_quality": 0.8,
    "budget_cap_usd": None,
    "latency_cap_ms": None,
    "min_samples": 30,
    "window_days": 7,
    "floor": "mean",
    "confidence": 0.95,
    "ordering": "price",
    "diversity_penalty": 0,
    "allow": [],
    "deny": [],
    "input_tokens": 1000,
    "output_tokens": 500,
    "failure_cost_usd": 0,
}


def wilson(mean: float, n: float, z: float) -> float:
    """The lower end of Wilson's score interval."""
    middle = mean + z * z / (2 * n)
    spread = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max((middle - spread) / (1 + z * z / n), 0.0)


def judge(world: World, request: Row, slug: str) -> Row:
    """One candidate: its numbers, and the first check that it fails."""
    policy = DEFAULTS | request["overrides"]
    at = request["at"] or NOW
    model = next(iter(world.of("models", "model_slug", slug)), {})
    prices = [p for p in world.of("prices", "model_slug", slug) if p["valid_from"] <= at]
    price = max(prices, key=lambda p: p["valid_from"], default={})
    days: set[date] = {at.date() - timedelta(days=i) for i in range(policy["window_days"])}
    buckets = [
        b
        for b in world.of("buckets", "model_key", slug)
        if b["tenant_id"] == request["tenant_id"]
        and b["task_type"] == (request["task_type"] or "__global__")
        and b["day"] in days
    ]
    tokens = [
        policy[name] if request[name] is None else request[name]
        for name in ("input_tokens", "output_tokens")
    ]
    of_price = [price.get("input_usd_per_mtok"), price.get("output_usd_per_mtok")]
    cost = None
    if None not in of_price:
        cost = sum((t * p * MICRO for t, p in zip(tokens, of_price, strict=True)), Decimal(0))

    samples = sum(b["reward_n"] for b in buckets)
    rewards = sum(b["reward_sum"] for b in buckets)
    mean = None
    if samples >= policy["min_samples"] and 0 <= rewards <= samples:
        mean = round(rewards / samples * 1e9) / 1e9
    expected = mean if mean is not None else model.get("q_prior")
    quality, source = expected, None if expected is None else "prior"
    if mean is not None:
        source = "measured"
        if policy["floor"] == "lower_bound":
            source = "lower_bound"
            quality = wilson(mean, samples, NormalDist().inv_cdf(policy["confidence"]))

    timed = [b for b in buckets if b["latency_sum_ms"] is not None]
    latency_n = sum(b["latency_n"] for b in timed)
    latency = model.get("expected_latency_ms")
    if timed and latency_n >= policy["min_samples"]:
        latency = round(sum(b["latency_sum_ms"] for b in timed) / latency_n * 1e3) / 1e3

    per_success = None
    if cost is not None and expected is not None and round(expected * 1e9) > 0:
        per_success = Decimal(int(cost * 10**24) // round(expected * 1e9)).scaleb(-15)
    score = cost if policy["ordering"] == "price" else per_success
    if policy["ordering"] == "expected_total_cost" and cost is not None and expected is not None:
        failures = Decimal(10**9 - round(expected * 1e9)).scaleb(-9)
        score = cost + Decimal(str(policy["failure_cost_usd"])) * failures
    cools = any(
        c["model_slug"] == slug
        and c["tenant_id"] in ("", request["tenant_id"])
        and c["provider"] in ("", model.get("provider"))
        and c["until_at"] is not None
        and c["until_at"] > at >= c["first_failed_at"]
        for c in world.cooldowns
    )
    prompt = request["input_tokens"]
    checks = {
        "not_enrolled_no_price": cost is None,
        "price_flagged": price.get("flag") is not None,
        "not_enrolled_no_q_prior": quality is None,
        "m_allowed_veto": not model.get("enrolled", True)
        or (model.get("deprecated_at") is not None and model["deprecated_at"] <= at)
        or (prompt or 0) > (model.get("max_input_tokens") or math.inf)
        or (policy["allow"] and slug not in policy["allow"])
        or slug in policy["deny"],
        "below_quality_floor": quality is not None and quality < policy["min_quality"],
        "exceeds_budget_cap": cost is not None
        and policy["budget_cap_usd"] is not None
        and cost > Decimal(str(policy["budget_cap_usd"])),
        "exceeds_latency_cap": latency is not None
        and policy["latency_cap_ms"] is not None
        and latency > policy["latency_cap_ms"],
        "cooling_down": cools,
    }
    assert tuple(checks) == REASONS
    return {
        "model_slug": slug,
        "provider": model.get("provider"),
        "drop_reason": next((reason for reason, fails in checks.items() if fails), None),
        "quality": quality,
        "quality_source": source,
        "samples": samples,
        "projected_cost_usd": cost,
        "cost_per_success_usd": per_success,
        "expected_latency_ms": latency,
        "brand_slug": model.get("brand_slug"),
        "score": score,
    }


def rank(world: World, request: Row) -> list[Row]:
    """All candidates in order: the ranked, then the dropped."""
    named = request["candidates"]
    if named is None:
        named = [m["model_slug"] for m in world.models if m["enrolled"]]
    judged = [judge(world, request, slug) for slug in dict.fromkeys(named)]

    def order(row: Row) -> Any:
        return row["score"] is None, row["score"] or 0, -row["quality"], row["model_slug"]

    eligible = sorted((row for row in judged if row["drop_reason"] is None), key=order)
    penalty = Decimal(str((DEFAULTS | request["overrides"])["diversity_penalty"]))
    of_maker: Counter[str] = Counter()
    for row in eligible:
        if row["brand_slug"] is not None and row["score"] is not None:
            row["score"] = row["score"] * (1 + penalty) ** of_maker[row["brand_slug"]]
            of_maker[row["brand_slug"]] += 1
    eligible.sort(key=order)
    for place, row in enumerate(eligible, 1):
        row["rank"] = place
    dropped = [row | {"rank": None, "score": None} for row in judged if row["drop_reason"]]
    return [*eligible, *dropped]


class Books:
    """One database for all examples."""

    def __init__(self, database: Database) -> None:
        self.conn = database.connect()
        self.conn.execute("set client_min_messages = error")
        set_clock(self.conn, NOW)

    def rows(self, query: str, params: Any = None) -> list[Row]:
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params).fetchall()

    def load(self, world: World) -> None:
        for table in (
            "routing_outcomes",
            "inferences",
            "model_performance_buckets",
            "cooldowns",
            "models",
        ):
            self.conn.execute(f"delete from routeledger.{table}")
        for table, rows in {
            "models": world.models,
            "model_prices": world.prices,
            "model_performance_buckets": world.buckets,
            "cooldowns": world.cooldowns,
        }.items():
            if rows:
                columns = ", ".join(rows[0])
                self.conn.execute(
                    f"insert into routeledger.{table} ({columns}) select {columns}"
                    f" from jsonb_populate_recordset(null::routeledger.{table}, %s)",
                    [Jsonb(rows, dumps=partial(json.dumps, default=str))],
                )

    def rank(self, request: Row) -> list[Row]:
        return self.rows(
            """
            select * from routeledger.rank_candidates(
              p_tenant_id => %(tenant_id)s,
              p_task_type => %(task_type)s,
              p_policy => %(policy)s,
              p_candidates => %(candidates)s::text[],
              p_overrides => %(overrides)s,
              p_input_tokens => %(input_tokens)s,
              p_output_tokens => %(output_tokens)s,
              p_at => %(at)s)
            """,
            request | {"overrides": Jsonb(request["overrides"])},
        )


@pytest.fixture
def books(db: Database) -> Iterator[Books]:
    books = Books(db)
    yield books
    books.conn.close()


def close(have: float | None, want: float | None) -> bool:
    if have is None or want is None:
        return have is want
    return math.isclose(have, want, rel_tol=1e-12, abs_tol=1e-12)


def differences(have: list[Row], want: list[Row]) -> list[Any]:
    """What is not the same: the order of the ranked, or the numbers of a candidate."""
    ranked = [row["model_slug"] for row in want if row["rank"] is not None]
    order = [row["model_slug"] for row in have[: len(ranked)]]
    of = {row["model_slug"]: row for row in have}
    assert len(have) == len(of)
    found: list[Any] = [] if order == ranked else [(order, ranked)]
    if set(of) != {row["model_slug"] for row in want}:
        return [*found, set(of)]
    for row in want:
        got = of[row["model_slug"]]
        exact = ("rank", "provider", "drop_reason", "quality_source", "samples")
        costs = ("projected_cost_usd", "cost_per_success_usd")
        if (
            any(got[name] != row[name] for name in (*exact, *costs))
            or not close(got["quality"], row["quality"])
            or not close(got["expected_latency_ms"], row["expected_latency_ms"])
            or not close(got["ranking_score"], row["score"])
        ):
            found.append((got, row))
    return found


def test_the_ranking_is_that_of_the_reference(books: Books) -> None:
    seen: Counter[str | None] = Counter()
    for seed in range(WORLDS):
        rng = random.Random(seed)
        world = make_world(rng)
        books.load(world)
        for _ in range(REQUESTS):
            request = make_request(rng, world)
            have, want = books.rank(request), rank(world, request)
            assert not differences(have, want), (seed, request)
            stages = [
                REASONS[::-1].index(r["drop_reason"]) if r["drop_reason"] else -1 for r in have
            ]
            assert stages == sorted(stages)
            assert len({row["ruleset_hash"] for row in have}) <= 1
            seen.update(row["drop_reason"] for row in have)
    assert set(seen) == {None, *REASONS}


SEEDS = st.integers(0, 2**32 - 1)


def slugs_of(rows: Sequence[Row], *, eligible: bool | None = None) -> list[str]:
    return [
        row["model_slug"]
        for row in rows
        if eligible is None or (row["drop_reason"] is None) is eligible
    ]


def lower(cap: float | None, other: float) -> float:
    return other if cap is None else min(cap, other)


def case(books: Books, seed: int) -> tuple[World, Row, random.Random]:
    rng = random.Random(seed)
    world = make_world(rng)
    books.load(world)
    return world, make_request(rng, world), rng


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS)
def test_every_candidate_has_a_rank_or_one_reason(books: Books, seed: int) -> None:
    world, request, _ = case(books, seed)
    rows = books.rank(request)
    named = request["candidates"]
    if named is None:
        named = [m["model_slug"] for m in world.models if m["enrolled"]]
    assert sorted(slugs_of(rows)) == sorted(set(named))
    for row in rows:
        assert (row["rank"] is None) is (row["drop_reason"] in REASONS)
        assert (row["ranking_score"] is None) or row["rank"] is not None
    assert [r["rank"] for r in rows if r["rank"]] == [
        *range(1, len(slugs_of(rows, eligible=True)) + 1)
    ]


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS)
def test_the_same_inputs_give_the_same_order(books: Books, seed: int) -> None:
    world, request, rng = case(books, seed)
    rows = books.rank(request)
    assert books.rank(request) == rows
    # whatever order the tables hold them in
    for part in (world.models, world.buckets, world.prices):
        rng.shuffle(part)
    books.load(world)
    assert books.rank(request) == rows
    named = list(dict.fromkeys(slugs_of(rows)))
    again = [books.rank(request | {"candidates": rng.sample(named, len(named))}) for _ in range(3)]
    assert again == [rows] * 3


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS)
def test_a_stricter_policy_never_adds_a_candidate(books: Books, seed: int) -> None:
    _, request, rng = case(books, seed)
    rules = DEFAULTS | request["overrides"]
    rows = books.rank(request)
    before = set(slugs_of(rows, eligible=True))
    for stricter in (
        {"min_quality": min(1, rules["min_quality"] + rng.choice([0.001, 0.1, 1]))},
        {"budget_cap_usd": lower(rules["budget_cap_usd"], rng.choice([0, 0.00001, 0.001]))},
        {"latency_cap_ms": lower(rules["latency_cap_ms"], rng.choice([0, 400, 1000]))},
        {"deny": [*rules["deny"], *rng.sample(slugs_of(rows), min(2, len(rows)))]},
        {"floor": "lower_bound"},
    ):
        after = books.rank(request | {"overrides": request["overrides"] | stricter})
        assert set(slugs_of(after, eligible=True)) <= before, stricter
        # and what is left keeps its order, but for the makers' shares
        if not rules["diversity_penalty"] and "floor" not in stricter:
            left = slugs_of(after, eligible=True)
            assert left == [slug for slug in slugs_of(rows, eligible=True) if slug in left]


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS)
def test_the_first_is_the_best_buy_of_those_that_clear(books: Books, seed: int) -> None:
    _, request, _ = case(books, seed)
    for ordering, number in (
        ("price", "projected_cost_usd"),
        ("expected_cost_per_success", "cost_per_success_usd"),
    ):
        rules = request["overrides"] | {"ordering": ordering}
        rows = [r for r in books.rank(request | {"overrides": rules}) if r["rank"]]
        known = [r[number] for r in rows if r[number] is not None]
        if rows:
            assert rows[0][number] == min(known, default=None)


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS, draw=st.integers(-(2**63), 2**63 - 1), share=st.sampled_from([0, 0.05, 0.5, 1]))
def test_route_writes_what_the_ranking_says(
    books: Books, seed: int, draw: int, share: float
) -> None:
    _, request, rng = case(books, seed)
    explores = rng.random() < 0.5
    if explores:
        request["overrides"] |= {
            "exploration": "thompson",
            "exploration_share": share,
            "exploration_min_samples": rng.choice([0, 10, 1000]),
        }
    request["at"] = None
    rows = books.rank(request)
    ranked = slugs_of(rows, eligible=True)
    arguments = request | {"overrides": Jsonb(request["overrides"]), "seed": draw}
    (routed,) = books.rows(
        """
        select * from routeledger.route(
          p_tenant_id => %(tenant_id)s,
          p_task_type => %(task_type)s,
          p_policy => %(policy)s,
          p_candidates => %(candidates)s::text[],
          p_overrides => %(overrides)s,
          p_input_tokens => %(input_tokens)s,
          p_output_tokens => %(output_tokens)s,
          p_deadline => '0 seconds',
          p_seed => %(seed)s)
        """,
        arguments,
    )
    (stored,) = books.rows("select * from routeledger.routing_outcomes where id = %(id)s", routed)
    candidates = stored["candidates"]
    assert {row["ruleset_hash"] for row in rows} <= {routed["ruleset_hash"]}
    assert stored["ruleset_hash"] == routed["ruleset_hash"]
    for candidate in candidates:
        (row,) = (row for row in rows if row["model_slug"] == candidate["model_slug"])
        assert candidate.get("rank") == row["rank"]
        assert candidate.get("drop_reason") == row["drop_reason"]
    if not ranked:
        assert routed["outcome_status"] == "rejected"
        enrolled = any(REASONS.index(row["drop_reason"]) > 3 for row in rows)
        rule = "no_candidate_clears_floor" if enrolled else "no_candidate_enrolled"
        assert routed["decision_rule"] == stored["decision_rule"] == rule
        return
    served = routed["model_slug"]
    assert [served, *routed["fallbacks"]] == [c["model_slug"] for c in candidates if "rank" in c]
    assert sorted([served, *routed["fallbacks"]]) == sorted(ranked)
    assert routed["fallbacks"] == [slug for slug in ranked if slug != served]
    if not explores or len(ranked) == 1:
        assert (served, routed["propensity"]) == (ranked[0], 1)
        return
    propensities = {c["model_slug"]: c.get("propensity", 0) for c in candidates}
    assert math.isclose(sum(propensities.values()), 1)
    assert routed["propensity"] == propensities[served] > 0
    assert propensities[ranked[0]] >= 1 - share - 1e-12
    assert (routed["decision_rule"] == "exploration") is (served != ranked[0])


def test_arms_are_served_as_often_as_their_propensities_say(books: Books) -> None:
    """And so the mean of reward / propensity over those served estimates each arm without bias."""
    slugs = [f"m{n}" for n in range(4)]
    world = World(
        models=[{"model_slug": s, "q_prior": 0.9, "brand_slug": s} for s in slugs],
        prices=[
            {
                "model_slug": slug,
                "valid_from": NOW - timedelta(days=1),
                "input_usd_per_mtok": Decimal(n + 10),
                "output_usd_per_mtok": Decimal(n + 10),
            }
            for n, slug in enumerate(slugs)
        ],
        buckets=[
            {
                "tenant_id": TENANT,
                "model_key": slug,
                "task_type": "chat",
                "day": TODAY,
                "n": 10,
                "reward_n": 10,
                "reward_sum": 8.0 + n / 2,
            }
            for n, slug in enumerate(slugs)
        ],
    )
    books.load(world)
    decisions = books.rows(
        """
        select n, r.model_slug, r.propensity
        from generate_series(1, 2000) n
        cross join lateral routeledger.route(
          'acme', p_task_type => 'chat', p_seed => n, p_overrides => '{
            "exploration": "thompson", "exploration_share": 0.5, "exploration_min_samples": 0,
            "ordering": "expected_cost_per_success", "min_samples": 10, "min_quality": 0.5}') r
        order by n
        """
    )
    stored = books.rows("select candidates from routeledger.routing_outcomes")
    assert len(decisions) == len(stored) == 2000
    for slug in slugs:
        served = [d["propensity"] for d in decisions if d["model_slug"] == slug]
        expected = sum(
            c.get("propensity", 0)
            for row in stored
            for c in row["candidates"]
            if c["model_slug"] == slug
        )
        spread = math.sqrt(expected)
        assert abs(len(served) - expected) < 5 * spread + 5
        # sum of 1 / propensity over those served estimates the number of decisions
        if min(served, default=0) > 0.02:
            assert abs(sum(1 / p for p in served) - 2000) < 400
