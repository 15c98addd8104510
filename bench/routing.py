"""Which model, out of 200, with 7 days of buckets each: in the database, and by hand.

- rank: `rank_candidates` over the whole catalog.
- route: ranking and writing the decision, in one call.
- by_hand: what a router does without it: read models, prices and buckets with one query, rank them in
  Python by the same rule, write the decision with `insert_decision`.

All on one connection, in alternating rounds; milliseconds are medians of calls.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench.harness import Bench

MODELS = 200
CALLS = 100
CATALOG = f"""
select count(*) from routeledger.import_models((
  select jsonb_agg(jsonb_build_object('model_slug', 'bench/' || n, 'provider', 'bench', 'q_prior', 0.5,
    'input_usd_per_mtok', 0.1 + n * 0.01, 'output_usd_per_mtok', 0.4 + n * 0.04))
  from generate_series(1, {MODELS}) n));
insert into routeledger.model_performance_buckets (
  tenant_id, model_key, task_type, day, n, success_n, reward_n, reward_sum, latency_n, latency_sum_ms)
select t, 'bench/' || n, 'chat', current_date - d, 100, 90, 100, 60 + n % 40, 100, 50000
from generate_series(1, {MODELS}) n, generate_series(1, 7) d, unnest(array['acme', 'b', 'c']) t;
vacuum analyze;
"""
BY_HAND = """
select m.model_slug, p.input_usd_per_mtok * %(input)s + p.output_usd_per_mtok * %(output)s as cost,
  coalesce(b.mean, m.q_prior) as quality
from routeledger.models m
cross join lateral (
  select * from routeledger.model_prices p
  where p.model_slug = m.model_slug and p.valid_from <= now()
  order by p.valid_from desc limit 1) p
left join (
  select b.model_key, sum(b.reward_sum) / sum(b.reward_n) as mean
  from routeledger.model_performance_buckets b
  where b.tenant_id = 'acme' and b.task_type = 'chat' and b.day > current_date - 8
  group by b.model_key) b on b.model_key = m.model_slug
where m.enrolled and p.flag is null and coalesce(b.mean, m.q_prior) is not null
"""
FLOOR = {"min_quality": 0.8}


def rank(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "select * from routeledger.rank_candidates('acme', 'chat', p_overrides => %s)",
        [json.dumps(FLOOR)],
    ).fetchall()


def route(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "select * from routeledger.route('acme', p_task_type => 'chat', p_overrides => %s)",
        [json.dumps(FLOOR)],
    ).fetchall()


def by_hand(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute(BY_HAND, {"input": 1000, "output": 300}).fetchall()
    best = sorted((cost, -quality, slug) for slug, cost, quality in rows if quality >= 0.8)[:50]
    conn.execute(
        "select * from routeledger.insert_decision('acme', p_task_type => 'chat', p_candidates => %s)",
        [json.dumps([{"model_slug": slug, "quality": -quality} for _, quality, slug in best])],
    ).fetchall()


def measure(bench: Bench, _: Path) -> dict[str, Any]:
    """Milliseconds a call of each side, and how much slower it is by hand."""
    database = bench.database()
    bench.query(database, CATALOG)
    sides: dict[str, Callable[[psycopg.Connection[Any]], None]] = {
        "rank": rank, "route": route, "by_hand": by_hand,
    }  # fmt: skip
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    with psycopg.connect(bench.server.dsn(database), autocommit=True) as conn:
        for number in range(bench.rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                times = []
                for _call in range(CALLS):
                    began = time.perf_counter()
                    sides[name](conn)
                    times.append((time.perf_counter() - began) * 1000)
                if number:
                    rounds[name].append(statistics.median(times))
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "what": f"which of {MODELS} models: rank_candidates, route, and the same rule by hand",
        "milliseconds": {name: round(value, 3) for name, value in middle.items()},
        "ratio": {"by_hand/route": middle["by_hand"] / middle["route"]},
        "target": f"rank_candidates < 1 ms at the median (now {middle['rank']:.2f} ms)",
    }
