"""Buckets: the roll-up is a naive GROUP BY over the whole ledger, however it came about; what callers bring
in ends the same in every order; and quantiles keep their promise.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.property.ledger import THOROUGH, Row, as_json, set_clock, uuid7
from tests.servers import REPO

pytestmark = pytest.mark.property

EXAMPLES = 500 if THOROUGH else 40
FIRST = datetime(2030, 1, 14, tzinfo=timezone.utc)
NOW = FIRST + timedelta(days=3, hours=1)
TENANTS = ("acme", "bolt", "core")
MODELS = ("alpha", "beta", "gamma")
COLUMNS = (
    "n",
    "success_n",
    "reward_n",
    "reward_sum",
    "reward_sq_sum",
    "cost_n",
    "cost_success_n",
    "cost_usd",
    "input_tokens",
    "output_tokens",
    "latency_n",
    "latency_sum_ms",
)

# Every attempt once, every sum where it belongs, nothing clever.
NAIVE = """
select i.tenant_id, i.model_slug as model_key, coalesce(o.task_type, '__global__') as task_type,
  (routeledger.uuid_v7_time(o.id) at time zone 'UTC')::date as day,
  count(*) as n,
  count(*) filter (where i.status = 'succeeded') as success_n,
  count(o.reward) filter (where o.inference_id = i.id) as reward_n,
  coalesce(sum(o.reward) filter (where o.inference_id = i.id), 0) as reward_sum,
  coalesce(sum(o.reward::numeric * o.reward::numeric) filter (where o.inference_id = i.id), 0)
    as reward_sq_sum,
  count(i.cost_usd) as cost_n,
  count(i.cost_usd) filter (where i.status = 'succeeded') as cost_success_n,
  sum(i.cost_usd) as cost_usd,
  sum(i.input_tokens)::bigint as input_tokens,
  sum(i.output_tokens)::bigint as output_tokens,
  count(i.latency_ms) filter (where i.status = 'succeeded') as latency_n,
  sum(i.latency_ms) filter (where i.status = 'succeeded') as latency_sum_ms,
  array_agg(i.latency_ms) filter (where i.status = 'succeeded') as latencies,
  array_agg(o.reward) filter (where o.reward is not null and o.inference_id = i.id) as rewards
from routeledger.routing_outcomes o
join routeledger.inferences i on (i.tenant_id, i.outcome_id) = (o.tenant_id, o.id)
where i.status in ('succeeded', 'failed')
  and o.traffic_class in ('production', 'shadow')
  and (o.outcome_status = 'abandoned' and i.error_message like 'the lease ran out%') is not true
group by 1, 2, 3, 4
order by 1, 2, 3, 4
"""


def bin_of(ms: float) -> int:
    """The bin of the latency sketch, as docs/how-to/buckets.md has it."""
    return -346 if ms < 0.001 else math.ceil(math.log(ms) / math.log(1.01 / 0.99))


def sketch(latencies: Iterable[float]) -> Row:
    counts = sorted(Counter(map(bin_of, latencies)).items())
    return {"latency_bins": [b for b, _ in counts], "latency_counts": [n for _, n in counts]}


def quantile(values: Sequence[float], q: float) -> float:
    """percentile_disc()."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1]


def close(have: float | None, want: float | Decimal | None) -> bool:
    if have is None or want is None:
        return have is want
    return math.isclose(have, want, rel_tol=1e-9, abs_tol=1e-9)


class World:
    """One database for all examples."""

    def __init__(self, database: Database) -> None:
        self.conn = database.connect()
        self.conn.execute("set client_min_messages = error")

    def rows(self, query: str, params: Any = None) -> list[Row]:
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params).fetchall()

    def row(self, query: str, params: Any = None) -> Row:
        (found,) = self.rows(query, params)
        return found

    def empty(self) -> None:
        for table in ("routing_outcomes", "inferences", "model_performance_buckets"):
            self.conn.execute(f"delete from routeledger.{table}")
        self.conn.execute("update routeledger.rollup_watermarks set watermark = null")

    def roll_up(self, *arguments: Any) -> Row:
        marks = ", ".join(["%s"] * len(arguments))
        return self.row(f"select * from routeledger.rollup_model_performance({marks})", arguments)

    def persist(self, rows: Sequence[Any]) -> Row:
        result = self.row(
            "select * from routeledger.persist_model_performance(%s)", [Jsonb(as_json(list(rows)))]
        )
        counts = ("collapsed", "inserted", "updated", "unchanged", "refused")
        assert result["received"] == len(rows) == sum(result[name] for name in counts)
        assert len(result["refusals"]) == result["refused"]
        return result

    def stored(self) -> list[Row]:
        return self.rows("select * from routeledger.model_performance_buckets order by 1, 2, 3, 4")


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    world = World(db)
    yield world
    world.conn.close()


# -- ledgers ------------------------------------------------------------------------------------

latency = st.one_of(
    st.sampled_from([0.0, 0.0005, 0.001, 1.0, 1e10]), st.floats(1e-4, 1e7, allow_nan=False)
)
tokens = st.integers(0, 10_000)
cost = st.one_of(st.none(), st.sampled_from(["0", "0.1", "0.000001", "12.5"]))
failure = st.fixed_dictionaries(
    {
        "model_slug": st.sampled_from(MODELS),
        "status": st.just("failed"),
        "error_type": st.sampled_from(["429", "timeout", "abandoned"]),
    },
    optional={"cost_usd": cost, "latency_ms": latency, "input_tokens": tokens},
)
success = st.fixed_dictionaries(
    {
        "model_slug": st.sampled_from(MODELS),
        "status": st.just("succeeded"),
        "input_tokens": tokens,
        "output_tokens": tokens,
        "latency_ms": latency,
    },
    optional={"cost_usd": cost},
)
attempts = st.tuples(st.lists(failure, max_size=3), st.lists(success, max_size=1)).map(
    lambda both: [*both[0], *both[1]]
)
decision = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "day": st.integers(0, 2),
        # the first and the last millisecond of a day among them
        "millis": st.one_of(st.sampled_from([0, 86_399_999]), st.integers(0, 86_399_999)),
        "task_type": st.sampled_from([None, None, "chat", "code", "__global__"]),
        "traffic_class": st.sampled_from(
            ["production", "production", "production", "shadow", "synthetic", "replay"]
        ),
        "kind": st.sampled_from(["told", "told", "told", "open", "reaped", "late", "rejected"]),
        "attempts": attempts,
        "usage": success,
        "fails_first": st.booleans(),
        "reward": st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.1, 0.5])),
    }
)


def write(world: World, decisions: Sequence[Row], now: datetime) -> None:
    """Writes them by the ledger's own routines; rewards by hand, because nothing else does so yet."""
    conn = world.conn

    def call(routine: str, row: Row) -> None:
        given = Jsonb(as_json([row]))
        answer = world.row(f"select * from routeledger.{routine}(%s)", [given])
        assert answer["status"] == "accepted", answer

    for one in decisions:
        at = FIRST + timedelta(days=one["day"], milliseconds=one["millis"])
        key = {"tenant_id": one["tenant"], "id": uuid7(at)}
        new = {k: one[k] for k in ("task_type", "traffic_class")}
        if one["kind"] == "rejected":
            call("insert_decisions", {**key, **new})
        elif one["kind"] == "told":
            said = one["attempts"] or [one["usage"]]
            call("record_outcomes", {**key, **new, "attempts": said})
        else:
            model = one["usage"]["model_slug"]
            first = uuid7(at)
            decided = {**key, **new, "candidates": [model, "delta"], "attempt_id": first}
            set_clock(conn, now - timedelta(hours=1))
            call("insert_decisions", {**decided, "lease": "1 second"})
            if one["fails_first"]:
                failed = {**key, "attempt_id": first, "error_type": "404", "http_status": 404}
                call("fail_attempts", failed)
            set_clock(conn, now)
            if one["kind"] != "open":
                conn.execute("select routeledger.reap(10000, %s)", [one["tenant"]])
            if one["kind"] == "late":
                usage = {k: v for k, v in one["usage"].items() if k not in ("status", "model_slug")}
                call("complete_decisions", {**key, "outcome_status": "succeeded", **usage})
        if one["reward"] is not None:
            conn.execute(
                "update routeledger.routing_outcomes set reward = %s where (tenant_id, id) = (%s, %s)",
                [one["reward"], key["tenant_id"], key["id"]],
            )


def check(stored: Sequence[Row], naive: Sequence[Row]) -> None:
    """Each bucket has the numbers of its group, and no group is without one."""
    key = ("tenant_id", "model_key", "task_type", "day")
    assert [[row[k] for k in key] for row in stored] == [[row[k] for k in key] for row in naive]
    for have, want in zip(stored, naive, strict=True):
        for name in COLUMNS:
            if isinstance(have[name], float):
                assert close(have[name], want[name]), (name, have, want)
            else:
                assert have[name] == want[name], (name, have, want)
        assert {k: have[k] for k in ("latency_bins", "latency_counts")} == sketch(
            want["latencies"] or []
        )
        assert have["from_ledger"]


def test_the_roll_up_is_a_naive_group_by(world: World) -> None:
    @settings(max_examples=EXAMPLES)
    @given(
        st.lists(st.lists(decision, max_size=8), min_size=1, max_size=3),
        st.lists(st.floats(0, 1), max_size=3),
        st.sampled_from([None, *TENANTS]),
    )
    def run(waves: list[list[Row]], rewards: list[float], tenant: str | None) -> None:
        try:
            now = NOW
            set_clock(world.conn, now)
            for n, wave in enumerate(waves):
                write(world, wave, now)
                if n == 1 and tenant is not None:
                    # of one tenant alone, and of none but it
                    others = [r for r in world.stored() if r["tenant_id"] != tenant]
                    world.roll_up(None, None, tenant)
                    assert others == [r for r in world.stored() if r["tenant_id"] != tenant]
                result = world.roll_up()
                stored = world.stored()
                check(stored, world.rows(NAIVE))
                assert result["buckets"] == len(stored)
                assert result["buckets"] == sum(
                    result[k] for k in ("inserted", "updated", "unchanged")
                )
                assert result["watermark"] == now
                now += timedelta(hours=2)
                set_clock(world.conn, now)
            # a late reward; then what was rolled up bit by bit is what is rolled up at once
            for reward in rewards:
                world.conn.execute(
                    """
                    update routeledger.routing_outcomes set reward = %s
                    where id in (select id from routeledger.routing_outcomes order by md5(id::text) limit 1)
                    """,
                    [reward],
                )
            world.roll_up()
            bit_by_bit = world.stored()
            before = world.rows(
                "select xmin::text, ctid::text from routeledger.model_performance_buckets"
            )
            again = world.roll_up(date(1970, 1, 1))
            assert (again["inserted"], again["updated"]) == (0, 0)
            assert before == world.rows(
                "select xmin::text, ctid::text from routeledger.model_performance_buckets"
            )
            world.conn.execute("delete from routeledger.model_performance_buckets")
            for day in range(3):  # day by day, backwards
                start = (FIRST + timedelta(days=2 - day)).date()
                world.roll_up(start, start + timedelta(days=1))
            assert world.stored() == bit_by_bit
            check(bit_by_bit, world.rows(NAIVE))
        finally:
            world.empty()

    run()


def test_a_window_has_the_numbers_of_its_attempts(world: World) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.lists(decision, max_size=25), st.integers(0, 3), st.integers(0, 3))
    def run(decisions: list[Row], start: int, days: int) -> None:
        try:
            set_clock(world.conn, NOW)
            write(world, decisions, NOW)
            world.roll_up()
            first = (FIRST + timedelta(days=start)).date()
            after = first + timedelta(days=days)
            groups: dict[tuple[str, ...], list[Row]] = {}
            for row in world.rows(NAIVE):
                if first <= row["day"] < after:
                    key = (row["tenant_id"], row["model_key"], row["task_type"])
                    groups.setdefault(key, []).append(row)
            found = world.rows(
                """
                select * from routeledger.model_performance_between(null, %s, %s)
                order by tenant_id, model_key, task_type
                """,
                [first, after],
            )
            keys = [(row["tenant_id"], row["model_key"], row["task_type"]) for row in found]
            assert keys == sorted(groups)
            for key, have in zip(keys, found, strict=True):
                check_window(have, groups[key])
        finally:
            world.empty()

    run()


def check_window(have: Row, rows: Sequence[Row]) -> None:
    def total(name: str) -> Any:
        known = [row[name] for row in rows if row[name] is not None]
        return sum(known) if known else None

    rewards = [r for row in rows for r in row["rewards"] or []]
    latencies = [ms for row in rows for ms in row["latencies"] or []]
    names = ("n", "success_n", "cost_n", "cost_usd", "input_tokens", "output_tokens", "latency_n")
    assert {name: have[name] for name in names} == {name: total(name) for name in names}
    assert close(have["success_rate"], total("success_n") / total("n"))
    assert have["reward_n"] == len(rewards)
    assert close(have["mean_reward"], statistics.fmean(rewards) if rewards else None)
    if len(rewards) < 2:
        assert have["reward_se"] is None
    else:
        error = statistics.stdev(rewards) / math.sqrt(len(rewards))
        assert abs(have["reward_se"] - error) <= 1e-7
    if total("cost_n"):
        assert math.isclose(have["mean_cost_usd"], total("cost_usd") / total("cost_n"))
    else:
        assert have["mean_cost_usd"] is None
    if total("cost_success_n"):
        per_success = total("cost_usd") / total("cost_success_n")
        assert math.isclose(have["cost_per_success_usd"], per_success)
    else:
        assert have["cost_per_success_usd"] is None
    assert close(have["mean_latency_ms"], statistics.fmean(latencies) if latencies else None)
    check_quantiles(have, latencies)


def check_quantiles(have: Row, latencies: Sequence[float]) -> None:
    for q, name in ((0.5, "latency_p50_ms"), (0.95, "latency_p95_ms")):
        if not latencies:
            assert have[name] is None
            continue
        exact = quantile(latencies, q)
        if exact < 0.001:
            assert have[name] == 0
        else:
            assert abs(have[name] - exact) <= exact * 0.01 * (1 + 1e-9), (q, exact, have)


# -- sketches -----------------------------------------------------------------------------------


def test_sketches_merge_in_any_order(world: World) -> None:
    """However the latencies are dealt out to buckets: the same quantiles, within 1 % of the exact ones."""
    set_clock(world.conn, NOW)

    @settings(max_examples=EXAMPLES)
    @given(
        st.lists(latency, min_size=1, max_size=200),
        st.lists(st.integers(0, 6), min_size=1),
        st.randoms(),
    )
    def run(latencies: list[float], deal: list[int], rng: Any) -> None:
        answers = []
        try:
            for turn in range(3):
                world.empty()
                days: dict[int, list[float]] = {}
                for n, ms in enumerate(latencies):
                    day = deal[n % len(deal)] if turn < 2 else 0
                    days.setdefault(day, []).append(ms)
                rows = [
                    {
                        "tenant_id": "acme",
                        "model_key": "m",
                        "day": (NOW - timedelta(days=day)).date().isoformat(),
                        "n": len(part),
                        **sketch(part),
                    }
                    for day, part in days.items()
                ]
                rng.shuffle(rows)
                rng.shuffle(latencies)
                assert world.persist(rows)["inserted"] == len(rows)
                have = world.row(
                    "select * from routeledger.model_performance where window_days = 7"
                )
                assert have["latency_n"] == len(latencies)
                check_quantiles(have, latencies)
                answers.append((have["latency_p50_ms"], have["latency_p95_ms"]))
            assert len(set(answers)) == 1
        finally:
            world.empty()

    run()


# -- what callers bring in ------------------------------------------------------------------------

bucket = st.fixed_dictionaries(
    {
        "tenant_id": st.sampled_from(TENANTS),
        "model_key": st.sampled_from(MODELS),
        "day": st.sampled_from(["2030-01-14", "2030-01-15"]),
        "n": st.integers(0, 5),
    },
    optional={
        "task_type": st.sampled_from([None, "__global__", "chat"]),
        "reward_sum": st.just(0.0),
        "cost_usd": st.sampled_from([None, "0", "0.0", "1.50"]),
        "input_tokens": st.integers(0, 2),
    },
).filter(lambda row: row["n"] > 0 or row.get("cost_usd") is None)

garbage = st.one_of(
    st.sampled_from([None, 5, "row", [], {}, {"colour": "blue"}]),
    st.tuples(
        bucket,
        st.sampled_from(
            [
                {"n": -1},
                {"n": None},
                {"n": "many"},
                {"n": 2, "reward_sum": "NaN"},
                {"n": 2, "reward_sum": 2, "reward_sq_sum": 1},
                {"tenant_id": ""},
                {"model_key": "x" * 301},
                {"task_type": ""},
                {"day": "2030-01-14T00:00:00Z"},
                {"day": "tomorrow"},
                {"day": "1066-10-14"},
                {"n": 1, "success_n": 2},
                {"n": 3, "latency_bins": [1], "latency_counts": [4]},
                {"n": 3, "latency_bins": {"1": 4}},
                {"n": 3, "latency_bins": [1, 2], "latency_counts": [2**63 - 1] * 2},
                {"n": 3, "latency_bins": [1, 2], "latency_counts": [-(2**63)] * 2},
                {"n": 3, "reward_sum": 1e-300, "reward_sq_sum": -1e-30},
                {"n": 3, "reward_sum": 1e308},
            ]
        ),
    ).map(lambda both: {**both[0], **both[1]}),
)


def test_buckets_end_the_same_in_every_order(world: World) -> None:
    """Permuted, split, repeated: one table, in which each key has the highest n that came for it."""
    set_clock(world.conn, NOW)

    @settings(max_examples=EXAMPLES)
    @given(st.lists(bucket, min_size=1, max_size=12), st.randoms(), st.integers(1, 4))
    def run(rows: list[Row], rng: Any, parts: int) -> None:
        try:
            world.empty()
            first = world.persist(rows)
            ends = world.stored()
            best: dict[tuple[Any, ...], int] = {}
            for row in rows:
                key = (
                    row["tenant_id"],
                    row["model_key"],
                    row.get("task_type") or "__global__",
                    row["day"],
                )
                best[key] = max(best.get(key, -1), row["n"])
            assert first["collapsed"] == len(rows) - len(best)
            assert first["inserted"] == len(best)
            assert {
                (r["tenant_id"], r["model_key"], r["task_type"], r["day"].isoformat()): r["n"]
                for r in ends
            } == best
            again = world.persist(rows)
            assert (again["inserted"], again["updated"]) == (0, 0)

            world.empty()
            shuffled = [*rows, *rng.sample(rows, len(rows) // 2)]
            rng.shuffle(shuffled)
            for part in range(parts):
                world.persist(shuffled[part::parts])
            assert world.stored() == ends
        finally:
            world.empty()

    run()


def test_a_bad_row_never_fails_its_neighbours(world: World) -> None:
    set_clock(world.conn, NOW)

    @settings(max_examples=EXAMPLES)
    @given(
        st.lists(
            st.one_of(bucket.map(lambda row: (True, row)), garbage.map(lambda row: (False, row))),
            max_size=12,
        )
    )
    def run(rows: list[tuple[bool, Any]]) -> None:
        try:
            result = world.persist([row for _, row in rows])
            bad = [n for n, (good, _) in enumerate(rows, 1) if not good]
            assert [r["ord"] for r in result["refusals"]] == bad
            assert all(
                r["code"].startswith("RL1") and r["message"] and r["hint"] and r["detail"]
                for r in result["refusals"]
            )
            stored = world.stored()
            world.empty()
            alone = world.persist([row for good, row in rows if good])
            assert alone["refusals"] == []
            assert stored == world.stored()
        finally:
            world.empty()

    run()


def test_the_sketch_of_the_how_to_is_that_of_the_roll_up(world: World) -> None:
    """The lines that callers are given put each latency where the ledger does."""
    text = (REPO / "docs" / "how-to" / "buckets.md").read_text(encoding="utf-8")
    told: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], told)
    values = [0.0, 0.0009, 0.001, 1.0, 1e10, *(0.001 * math.exp(n * 0.0299999) for n in range(990))]
    found = world.rows(
        """
        select routeledger._latency_bin(x::double precision) as bin
        from jsonb_array_elements_text(%s) with ordinality v (x, n) order by n
        """,
        [Jsonb(values)],
    )
    assert [row["bin"] for row in found] == [bin_of(ms) for ms in values]
    assert told["sketch"](values) == sketch(values)
