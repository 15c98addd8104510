"""Judging a ledger of a million outcomes: claims, verdicts, the roll-up, and what the queue's index costs.

- claim: `claim_judgements` of 10 outcomes, each committed (its commit is not in the time), with 1 M
  outcomes waiting and with 1 k. `worn` is the same when half of them have just been labelled and nothing has
  been vacuumed, so that what is left of them lies at the front of the index; `snapshot` when a transaction
  that is older than the labels is open besides, so that nothing can be cleared away; `others` a second
  judge's where the first has labelled everything. Ratios are of medians; `longest` is the longest claim of
  all rounds.
- verdicts: a second, on one connection, each durable before the next: one by one, and 100 and 1000 a call.
- roll-up: `rollup_model_performance` over all days, against a GROUP BY with the same sums and the exact
  quantiles (`sums`: without quantiles), written to a table of its own; then incrementally, when a thousand
  outcomes are new, when rewards of the oldest day have come late, and when nothing has changed.
- hot path: two-phase cycles a second with the index of outcomes without a label, and without it.

All on a server with fsync on, in alternating rounds. Autovacuum is off where dead entries are measured, and
the tables are analysed before each round, as it would do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench.cycle import PROCEDURES
from bench.harness import Bench

Connection = psycopg.Connection[Any]

ROWS = 1_000_000
WAITING = 1_000
WEEKS = 4
CLAIMS = 50
VERDICTS = 2_000
NEW = 1_000
LATE = 100

PARTITIONS = f"""
do $$
begin
  for v_week in 0 .. {WEEKS} loop
    perform routeledger._ensure_partition(now() - v_week * interval '1 week', 'week');
  end loop;
  perform routeledger.configure('{{"id_window_past": "90 days"}}');
end
$$;
"""
QUIET = """
do $$
declare
  v_leaf text;
begin
  for v_leaf in
    select c.oid::regclass from pg_class c
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind = 'r'
  loop
    execute format('alter table %s set (autovacuum_enabled = off)', v_leaf);
  end loop;
end
$$;
"""
# so many, evenly over a span that ends at `until`
STORIES = """
create temp table story as
select routeledger._uuid_v7_at(s.at) as id, s.at, s.n
from (
  select n, %(until)s::timestamptz - (%(rows)s - n) * %(span)s::interval / %(rows)s as at
  from generate_series(1, %(rows)s) n
) s;
"""
INFERENCES = """
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, candidate_no, model_slug, provider,
  status, input_tokens, output_tokens, cost_usd, cost_source, latency_ms, http_status, created_at, started_at,
  completed_at)
select 'bench', id, id, 1, 1, 'bench/' || n % 10, 'bench', 'succeeded', 374, 44, 0.001375, 'catalog',
  exp(6 + 2 * random()), 200, at, at, at
from story
"""
OUTCOMES = """
insert into routeledger.routing_outcomes (tenant_id, id, agent_id, task_type, decision_rule,
  chosen_model_slug, candidates, attempt_count, inference_id, outcome_status, event_at, created_at,
  completed_at)
select 'bench', id, 'support', 'task ' || n % 3, 'caller_ranked', 'bench/' || n % 10,
  '["bench/small", "bench/large"]', 1, id, 'succeeded', at, at, at
from story
"""
ANALYZE = (
    "analyze routeledger.routing_outcomes, routeledger.judge_leases, routeledger.judge_verdicts"
)
LABEL = """
update routeledger.routing_outcomes o
set judge_status = 'labeled', reward = 0.5, reward_source = 'judge'
where o.tenant_id = 'bench' and o.judge_status = 'unlabeled' and o.id < %s
"""
CLAIM = """
select id, lease_token
from routeledger.claim_judgements('bench', %s, '1', %s, p_lease => '1 hour', p_payloads => false)
"""
VERDICT = "select * from routeledger.record_verdict('bench', %s, %s, '1', %s, p_lease_token => %s)"
BATCH = """
select count(*) filter (where status = 'accepted')
from routeledger.record_verdicts((
  select jsonb_agg(jsonb_build_object('tenant_id', 'bench', 'id', k.id, 'judge', %s::text,
    'judge_version', '1', 'score', 0.75, 'lease_token', k.token))
  from unnest(%s::uuid[], %s::uuid[]) k (id, token)))
"""
BY_HAND = """
truncate naive;
insert into naive
select o.tenant_id, i.model_slug, coalesce(o.task_type, '__global__'),
  (routeledger.uuid_v7_time(o.id) at time zone 'UTC')::date, count(*),
  count(*) filter (where i.status = 'succeeded'), count(o.reward), sum(o.reward), sum(o.reward ^ 2),
  count(i.cost_usd), sum(i.cost_usd), sum(i.input_tokens), sum(i.output_tokens), sum(i.latency_ms),
  {quantiles}
from routeledger.routing_outcomes o
join routeledger.inferences i on (i.tenant_id, i.outcome_id) = (o.tenant_id, o.id)
where i.status <> 'routed' and o.traffic_class in ('production', 'shadow')
group by 1, 2, 3, 4
"""
QUANTILES = "percentile_disc(array[0.5, 0.95]) within group (order by i.latency_ms)"
NAIVE = """
create table naive (tenant_id text, model_key text, task_type text, day date, n bigint, success_n bigint,
  reward_n bigint, reward_sum double precision, reward_sq_sum double precision, cost_n bigint,
  cost_usd numeric, input_tokens bigint, output_tokens bigint, latency_sum_ms double precision,
  quantiles double precision[],
  primary key (tenant_id, model_key, task_type, day))
"""
WITHOUT_INDEX = "drop index routeledger.routing_outcomes_unlabeled_idx"


def fill(conn: Connection, rows: int, *, span: str, until: str = "now") -> None:
    """Outcomes that succeeded and wait for a label, written past the routines."""
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")  # no lookups of the link
        literal = psycopg.ClientCursor(conn)
        stories = {"rows": rows, "span": span, "until": until}
        conn.execute(literal.mogrify(STORIES, stories).encode())
        conn.execute(INFERENCES)
        conn.execute(OUTCOMES)
        conn.execute("drop table story")


def boundary(conn: Connection, share: float) -> Any:
    """The id below which this share of the outcomes without a label lies."""
    row = conn.execute(
        """
        select o.id from routeledger.routing_outcomes o
        where o.tenant_id = 'bench' and o.judge_status = 'unlabeled' order by o.id
        offset (
          select floor(count(*) * %s::numeric) from routeledger.routing_outcomes x
          where x.tenant_id = 'bench' and x.judge_status = 'unlabeled')::bigint
        limit 1
        """,
        [share],
    ).fetchone()
    return row[0] if row else "ffffffff-ffff-ffff-ffff-ffffffffffff"


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def claim(conn: Connection, judge: str) -> float:
    """Milliseconds of a claim of ten, which is then committed."""
    with conn.transaction():
        start = time.perf_counter()
        found = conn.execute(CLAIM, [judge, 10], prepare=True).fetchall()
        span = (time.perf_counter() - start) * 1000
    if len(found) != 10:
        raise RuntimeError(f"{judge} was given {len(found)} of 10")
    return span


class Claims:
    """Claims in both databases, in turn; in each round the small one has its thousand again."""

    def __init__(self, small: Connection, large: Connection, rounds: int) -> None:
        self.sides = {"small": small, "large": large}
        self.rounds = rounds
        self.medians: dict[str, dict[str, float]] = {}
        self.ratio: dict[str, float] = {}

    def measure(self, title: str, judge: str, *, top_up: bool = True) -> None:
        """One comparison."""
        found: dict[str, list[list[float]]] = {"small": [], "large": []}
        for _ in range(self.rounds):
            for side, conn in self.sides.items():
                if side == "small" and top_up:
                    row = conn.execute(
                        "select count(*) from routeledger.routing_outcomes where judge_status = 'unlabeled'"
                    ).fetchone()
                    fill(conn, max(WAITING - (row[0] if row else 0), 1), span="1 minute")
                conn.execute(ANALYZE)
                found[side].append([])
            for number in range(CLAIMS):
                for side in ("small", "large") if number % 2 == 0 else ("large", "small"):
                    found[side][-1].append(claim(self.sides[side], judge))
        self.medians[title] = {
            **{
                f"{side}_ms": round(statistics.median(s for r in spans for s in r), 3)
                for side, spans in found.items()
            },
            "large_longest_ms": round(max(s for r in found["large"] for s in r), 3),
            "large_mean_ms": round(statistics.mean(s for r in found["large"] for s in r), 3),
        }
        self.ratio[title] = statistics.median(
            statistics.median(large) / statistics.median(small)
            for small, large in zip(found["small"], found["large"], strict=True)
        )


def one_by_one(conn: Connection, judge: str) -> float:
    """Verdicts a second."""
    held = conn.execute(CLAIM, [judge, 1000]).fetchall()

    def record() -> None:
        for outcome, token in held:
            conn.execute(VERDICT, [outcome, judge, 0.75, token], prepare=True)

    return len(held) / seconds(record)


def batched(conn: Connection, judge: str, size: int) -> float:
    """Verdicts a second, so many a call."""
    spans = 0.0
    for _ in range(VERDICTS // 1000):
        held = conn.execute(CLAIM, [judge, 1000]).fetchall()
        for start in range(0, len(held), size):
            part = held[start : start + size]
            keys = [[row[0] for row in part], [row[1] for row in part]]
            begun = time.perf_counter()
            row = conn.execute(BATCH, [judge, *keys], prepare=True).fetchone()
            spans += time.perf_counter() - begun
            if row != (len(part),):
                raise RuntimeError(f"{row} of {len(part)} accepted")
    return VERDICTS / spans


def measure_verdicts(conn: Connection, rounds: int) -> dict[str, Any]:
    """Verdicts a second of each way, medians, and their ratios."""
    sides: dict[str, Callable[[], float]] = {
        "one_by_one": lambda: one_by_one(conn, "first"),
        "by_100": lambda: batched(conn, "first", 100),
        "by_1000": lambda: batched(conn, "first", 1000),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    batched(conn, "first", 1000)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else [*sides][::-1]:
            conn.execute(ANALYZE)
            found[side].append(sides[side]())
    rates = {side: round(statistics.median(values), 1) for side, values in found.items()}
    return {
        "a_second": rates,
        "ratio": {f"verdicts {s}": rates[s] / rates["one_by_one"] for s in ("by_100", "by_1000")},
    }


def roll_up(conn: Connection, since: str | None) -> Any:
    """What a roll-up says."""
    return conn.execute(
        "select buckets, inserted, updated from routeledger.rollup_model_performance(p_from => %s::date)",
        [since],
    ).fetchone()


def rewards_come_late(conn: Connection, number: int) -> None:
    """People speak about outcomes of the oldest days."""
    conn.execute(
        """
        select count(*) from routeledger.record_verdicts((
          select jsonb_agg(jsonb_build_object('tenant_id', 'bench', 'id', o.id, 'judge', 'somebody',
            'judge_version', %s::text, 'score', 1, 'reward_source', 'human'))
          from (select o.id from routeledger.routing_outcomes o where o.tenant_id = 'bench'
                order by o.id limit %s) o))
        """,
        [str(number), LATE],
    )


def measure_roll_up(conn: Connection, rounds: int) -> dict[str, Any]:
    """Seconds of each way, medians, and their ratios."""
    conn.execute(NAIVE)
    plain = BY_HAND.format(quantiles="null")
    whole = BY_HAND.format(quantiles=QUANTILES)
    found: dict[str, list[float]] = {
        side: [] for side in ("first", "all", "naive", "sums", "new", "late", "nothing")
    }
    found["first"].append(seconds(lambda: roll_up(conn, "1970-01-01")))
    for number in range(rounds):
        sides: dict[str, Callable[[], Any]] = {
            "all": lambda: roll_up(conn, "1970-01-01"),
            "naive": lambda: conn.execute(whole.encode()),
            "sums": lambda: conn.execute(plain.encode()),
        }
        for side in sides if number % 2 == 0 else [*sides][::-1]:
            conn.execute("delete from routeledger.model_performance_buckets")
            found[side].append(seconds(sides[side]))
        roll_up(conn, "1970-01-01")
        fill(conn, NEW, span="10 seconds")
        found["new"].append(seconds(lambda: roll_up(conn, None)))
        rewards_come_late(conn, number)
        found["late"].append(seconds(lambda: roll_up(conn, None)))
        found["nothing"].append(seconds(lambda: roll_up(conn, None)))
    times = {side: round(statistics.median(spans), 3) for side, spans in found.items()}
    return {
        "seconds": times,
        "ratio": {
            "roll-up: naive / all": times["naive"] / times["all"],
            "roll-up: sums / all": times["sums"] / times["all"],
            "roll-up: naive / new": times["naive"] / times["new"],
            "roll-up: naive / late": times["naive"] / times["late"],
        },
    }


def measure_hot_path(bench: Bench, folder: Path) -> dict[str, Any]:
    """Cycles a second with the index and without, and the ratio of the times a cycle takes."""
    databases = {"with": bench.database(), "without": bench.database()}
    bench.query(databases["without"], WITHOUT_INDEX)
    rates: dict[str, Any] = {}
    ratio = {}
    for clients in (1, 8):
        found: dict[str, list[float]] = {side: [] for side in databases}
        for number in range(bench.rounds):
            for side in databases if number % 2 == 0 else [*databases][::-1]:
                found[side].append(bench.pgbench(databases[side], PROCEDURES, clients, folder))
        rates[str(clients)] = {side: round(statistics.median(r), 1) for side, r in found.items()}
        ratio[f"index, {clients} clients"] = statistics.median(
            without / with_it
            for with_it, without in zip(found["with"], found["without"], strict=True)
        )
    for database in databases.values():
        bench.server.drop_database(database)
    return {"cycles_a_second": rates, "ratio": ratio}


def measure_claims(small: Connection, large: Connection, rounds: int) -> Claims:
    """Claims of each kind; all outcomes of the large database are labelled or claimed afterwards."""
    both = Claims(small, large, rounds)
    both.measure("claim", "first")
    large.execute(LABEL, [boundary(large, 0.5)])
    both.measure("claim, worn", "first")
    with psycopg.connect(large.info.dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select count(*) from routeledger.settings")
        large.execute(LABEL, [boundary(large, 0.5)])
        both.measure("claim, snapshot", "first")
        old.rollback()
    for conn in (small, large):
        conn.execute(LABEL, [boundary(conn, 1)])
    both.measure("claim, others", "second", top_up=False)
    return both


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """All of it."""
    rows = max(bench.sizes or (ROWS,))
    hot_path = measure_hot_path(bench, folder)
    connections = []
    databases = [bench.database(), bench.database()]
    for database in databases:
        bench.query(database, PARTITIONS)
        bench.query(database, QUIET)
        connections.append(psycopg.connect(bench.server.dsn(database), autocommit=True))
    small, large = connections
    try:
        fill(small, WAITING, span="1 minute")
        for part in range(WEEKS):
            until = f"now() - interval '{WEEKS - 1 - part} weeks'"
            row = large.execute(f"select {until}".encode()).fetchone()
            fill(large, rows // WEEKS, span="1 week", until=str(row[0] if row else "now"))
        for conn in (small, large):
            conn.execute("vacuum analyze")
            conn.execute("checkpoint")
        verdicts = measure_verdicts(large, bench.rounds)
        large.execute("vacuum analyze")
        both = measure_claims(small, large, bench.rounds)
        large.execute("vacuum analyze")
        rolled = measure_roll_up(large, bench.rounds)
    finally:
        for conn in connections:
            conn.close()
    for database in databases:
        bench.server.drop_database(database)
    return {
        "what": f"judging {rows} outcomes",
        "claims": both.medians,
        "verdicts": verdicts["a_second"],
        "roll_up": rolled["seconds"],
        "hot_path": hot_path["cycles_a_second"],
        "ratio": {**both.ratio, **verdicts["ratio"], **rolled["ratio"], **hot_path["ratio"]},
        "target": "claims <= 1.3",
    }
