"""The labelled corpus to a file, a million rows of it: rows a second and memory, in both formats.

- ours: `export_corpus`.
- by_hand: what a script does without it: one query over the same tables, all of its rows fetched, the
  same columns dumped as JSON lines or put into an Arrow table. Its memory grows with its rows, so it
  gets a tenth of them, and ours the same tenth beside it.

Each export runs in a process of its own, which tells the most memory that it has held. Of the tenth
there are alternating rounds, of the whole one export each format.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bench.harness import Bench
from routeledger.corpus import Format, export_corpus

SIZE = 1_000_000
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
SEED = """
create temp table drawn as
select k, at, (head || '8' || tail)::uuid as id, (head || '9' || tail)::uuid as attempt,
  'openai/model-' || k % 8 as model, (k % 11) / 10.0 as score
from (
  select k, now() + k * interval '200 milliseconds' as at,
    lpad(to_hex((extract(epoch from now()) * 1000)::bigint + k * 200), 12, '0') || '7000' as head,
    substr(md5('{tenant}' || k), 1, 15) as tail
  from generate_series(1, {rows}) k) x;
insert into routeledger.inferences (
  tenant_id, outcome_id, id, attempt_no, model_slug, provider, status, input_tokens, output_tokens,
  cost_usd, cost_source, latency_ms, ttft_ms, http_status, created_at, started_at, completed_at)
select '{tenant}', id, attempt, 1, model, 'openai', 'succeeded', 500 + k % 1000, k % 300,
  (500 + k % 1000) * 0.0000025 + k % 300 * 0.00001, 'catalog', 300 + k % 977 * 1.37, 90 + k % 77,
  200, at, at, at
from drawn;
insert into routeledger.routing_outcomes (
  tenant_id, id, agent_id, task_type, decision_rule, chosen_model_slug, candidates, min_quality,
  policy_version, metadata, attempt_count, inference_id, outcome_status, judge_status, reward,
  reward_source, event_at, created_at, completed_at, ruleset_hash, propensity)
select '{tenant}', id, 'agent-' || k % 20, 'chat', 'cheapest_clears_floor', model,
  jsonb_build_array(
    jsonb_build_object('model_slug', model, 'quality', 0.9, 'projected_cost_usd', 0.0021),
    jsonb_build_object('model_slug', 'openai/other', 'quality', 0.8, 'projected_cost_usd', 0.003)),
  0.8, 'default@1', jsonb_build_object('session', md5(k::text)), 1, attempt, 'succeeded', 'labeled',
  score, 'judge', at, at, at, '4b43b0aee35624cd', 0.9
from drawn;
insert into routeledger.judge_verdicts (
  tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, task_type, score, usable,
  label, rationale, reward_source, recorded_at)
select '{tenant}', id, 'rubric', 'v1', attempt, model, 'chat', score, true, 'good', 'because',
  'judge', at
from drawn;
vacuum analyze;
"""
QUERY = """
select o.tenant_id, o.id::text, o.agent_id, o.task_type, o.traffic_class, o.decision_rule, o.policy_version,
  o.ruleset_hash, o.min_quality, o.propensity, o.candidates, o.metadata, o.event_at, o.completed_at,
  o.attempt_count, i.id::text as inference_id, i.attempt_no, i.model_slug, i.provider, i.response_model,
  i.input_tokens, i.output_tokens, i.cache_read_input_tokens, i.cache_creation_input_tokens,
  i.reasoning_output_tokens, i.cost_usd, i.cost_source, i.cost_flag, i.latency_ms, i.ttft_ms, o.reward,
  o.reward_source, v.n as verdict_n, v.verdicts
from routeledger.routing_outcomes o
join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id and i.id = o.inference_id
cross join lateral (
  select count(*) as n, json_agg(json_build_object(
    'judge', v.judge, 'version', v.judge_version, 'score', v.score, 'label', v.label)) as verdicts
  from routeledger.judge_verdicts v
  where v.tenant_id = o.tenant_id and v.outcome_id = o.id and v.usable) v
where o.tenant_id = %s and o.judge_status = 'labeled' and o.traffic_class = 'production'
order by o.id
"""


def ours(dsn: str, tenant: str, format: Format, path: Path) -> int:  # noqa: A002
    """The corpus of the tenant."""
    rows: int = export_corpus(dsn, tenant, path, format=format).manifest["rows"]
    return rows


def by_hand(dsn: str, tenant: str, format: Format, path: Path) -> int:  # noqa: A002
    """The same rows, by one query."""
    with psycopg.connect(dsn) as conn, conn.cursor(row_factory=dict_row) as cursor:
        fetched = cursor.execute(QUERY.encode(), [tenant]).fetchall()
    if format == "jsonl":
        with path.open("w") as file:
            for row in fetched:
                file.write(json.dumps(row, default=str) + "\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for row in fetched:
            for name in ("candidates", "metadata", "verdicts"):
                row[name] = json.dumps(row[name])
        pq.write_table(pa.Table.from_pylist(fetched), path)
    return len(fetched)


SIDES: dict[str, Callable[[str, str, Format, Path], int]] = {"ours": ours, "by_hand": by_hand}


def timed(side: str, dsn: str, tenant: str, format: Format, path: Path) -> dict[str, float]:  # noqa: A002
    """One export: its rows a second, the most MiB that this process has held, the file's MB."""
    began = time.perf_counter()
    rows = SIDES[side](dsn, tenant, format, path)
    seconds = time.perf_counter() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "peak_mib": int(status["VmHWM"].split()[0]) / 1024,
        "file_mb": path.stat().st_size / 1e6,
    }


def alone(*arguments: Any) -> dict[str, float]:
    """`timed` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(timed, *arguments).result()


def middle(found: list[dict[str, float]]) -> dict[str, float]:
    """The medians."""
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Rows a second and memory of each side, and their ratios."""
    whole = max(bench.sizes, default=SIZE)
    database = bench.database()
    for tenant, rows in (("whole", whole), ("tenth", whole // 10)):
        bench.query(database, SEED.replace("{tenant}", tenant).replace("{rows}", str(rows)))
    dsn = bench.server.dsn(database)
    results: dict[str, Any] = {}
    ratio: dict[str, float] = {}
    for kind in FORMATS:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(bench.rounds):
            for side in SIDES if number % 2 else reversed(SIDES):
                rounds[side].append(alone(side, dsn, "tenth", kind, folder / f"tenth.{kind}"))
        tenth, hand = middle(rounds["ours"]), middle(rounds["by_hand"])
        full = alone("ours", dsn, "whole", kind, folder / f"whole.{kind}")
        results[kind] = {"whole": full, "tenth": tenth, "by_hand": hand}
        ratio[f"{kind} rows a second, ours/by_hand"] = (
            tenth["rows_per_second"] / hand["rows_per_second"]
        )
        ratio[f"{kind} memory, by_hand/ours"] = hand["peak_mib"] / tenth["peak_mib"]
        ratio[f"{kind} memory, whole/tenth"] = full["peak_mib"] / tenth["peak_mib"]
    shown = "; ".join(
        f"{kind} {found['whole']['rows_per_second']:,.0f} rows/s in {found['whole']['peak_mib']:.0f} MiB"
        for kind, found in results.items()
    )
    return {
        "what": f"export of {whole:,} labelled rows: {shown}",
        "exports": {
            kind: {
                side: {name: round(value, 1) for name, value in one.items()}
                for side, one in found.items()
            }
            for kind, found in results.items()
        },
        "ratio": ratio,
        "target": "memory, whole/tenth <= 1.2",
    }
