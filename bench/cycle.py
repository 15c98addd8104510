"""The two-phase cycle through the procedures, against the same rows by hand-written statements.

Both sides run in pgbench with prepared statements, in alternating rounds on one server: one side calls
`insert_decision` and `complete_decision`; the other writes the same rows in two transactions of
hand-written INSERT, SELECT and UPDATE statements, ids made beforehand.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.harness import Bench

CANDIDATES = (
    '[{"model_slug":"bench/small","provider":"bench"},'
    '{"model_slug":"bench/medium","provider":"bench"},'
    '{"model_slug":"bench/large","provider":"bench"}]'
)

PROCEDURES = f"""
select id, attempt_id from routeledger.insert_decision('bench', p_agent_id => 'support',
  p_task_type => 'chat', p_candidates => '{CANDIDATES}') \\gset
select outcome_status from routeledger.complete_decision('bench', (:id)::uuid, 'succeeded',
  (:attempt_id)::uuid, 374, 44, p_latency_ms => 812, p_http_status => 200,
  p_provider_response_id => 'chatcmpl-1');
"""

STATEMENTS = f"""
select routeledger.uuid_v7() as id, routeledger.uuid_v7() as attempt_id \\gset
begin;
insert into routeledger.routing_outcomes (tenant_id, id, agent_id, task_type, decision_rule,
  chosen_model_slug, candidates, traffic_class, open_attempt_id, attempt_count, event_at,
  created_at, lease_expires_at)
values ('bench', (:id)::uuid, 'support', 'chat', 'caller_ranked', 'bench/small', '{CANDIDATES}',
  'production', (:attempt_id)::uuid, 1, now(), now(), now() + interval '5 minutes');
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, candidate_no,
  model_slug, provider, created_at, started_at)
values ('bench', (:id)::uuid, (:attempt_id)::uuid, 1, 1, 'bench/small', 'bench', now(), now());
commit;
begin;
select input_usd_per_mtok, output_usd_per_mtok from routeledger.model_prices
where model_slug = 'bench/small' and valid_from <= now() order by valid_from desc limit 1;
update routeledger.inferences set status = 'succeeded', input_tokens = 374, output_tokens = 44,
  cost_usd = 0.001375, cost_source = 'catalog', latency_ms = 812, http_status = 200,
  provider_response_id = 'chatcmpl-1', completed_at = now()
where tenant_id = 'bench' and outcome_id = (:id)::uuid and id = (:attempt_id)::uuid
  and status = 'routed';
update routeledger.routing_outcomes set outcome_status = 'succeeded',
  inference_id = (:attempt_id)::uuid, open_attempt_id = null, lease_expires_at = null,
  completed_at = now()
where tenant_id = 'bench' and id = (:id)::uuid and outcome_status is null;
commit;
"""


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Cycles a second of both sides, and their ratio, for one client and for eight."""
    database = bench.database()
    rates: dict[str, dict[str, float]] = {}
    for clients in (1, 8):
        rounds: dict[str, list[float]] = {"procedures": [], "statements": []}
        for number in range(bench.rounds):
            sides = [("procedures", PROCEDURES), ("statements", STATEMENTS)]
            for name, script in sides if number % 2 == 0 else sides[::-1]:
                rounds[name].append(bench.pgbench(database, script, clients, folder))
        rates[str(clients)] = {name: statistics.median(r) for name, r in rounds.items()}
        rates[str(clients)]["ratio"] = statistics.median(
            p / s for p, s in zip(rounds["procedures"], rounds["statements"], strict=True)
        )
    return {
        "what": "two-phase cycles a second: procedures against hand-written statements",
        "clients": rates,
        "ratio": rates["8"]["ratio"],
        "target": ">= 1.3",
    }
