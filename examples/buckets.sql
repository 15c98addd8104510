-- Model performance: buckets that processes bring in, buckets counted from the ledger, and what is read off them.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/buckets.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;

-- Two buckets of one model and day in one call, and a row that is wrong: one row, the one with the higher n.
select received, collapsed, inserted, updated, unchanged, refused,
  refusals #>> '{0,ord}' as refused_row, refusals #>> '{0,code}' as code, refusals #> '{0,detail}' as detail
from routeledger.persist_model_performance('[
  {"tenant_id": "acme", "model_key": "openai/gpt-4o-mini", "task_type": "chat", "day": "2026-11-20", "n": 5, "success_n": 5, "reward_sum": 4.5},
  {"tenant_id": "acme", "model_key": "openai/gpt-4o-mini", "task_type": "chat", "day": "2026-11-20", "n": 12, "success_n": 11, "reward_sum": 9.8},
  {"tenant_id": "acme", "model_key": "openai/gpt-4o-mini", "task_type": "code", "day": "2026-11-20", "n": -1},
  {"tenant_id": "acme", "model_key": "anthropic/claude-haiku", "task_type": null, "day": "2026-11-20", "n": 3},
  {"tenant_id": "acme", "model_key": "anthropic/claude-haiku", "task_type": "__global__", "day": "2026-11-20", "n": 2}]');

-- An older count that arrives late changes nothing.
select received, collapsed, inserted, updated, unchanged, refused
from routeledger.persist_model_performance('[
  {"tenant_id": "acme", "model_key": "openai/gpt-4o-mini", "task_type": "chat", "day": "2026-11-20", "n": 7, "success_n": 7, "reward_sum": 7}]');

select tenant_id, model_key, task_type, day, n, success_n, reward_sum, from_ledger
from routeledger.model_performance_buckets
order by 1, 2, 3, 4;

-- The ledger's own numbers: a failover, and an answer whose price is not known.
select count(*) as recorded
from routeledger.record_outcomes('[
  {"tenant_id": "acme", "task_type": "chat", "attempts": [
    {"model_slug": "openai/gpt-4o-mini", "status": "failed", "error_type": "429"},
    {"model_slug": "anthropic/claude-haiku", "status": "succeeded", "input_tokens": 374, "output_tokens": 51, "cost_usd": 0.0005, "latency_ms": 900}]},
  {"tenant_id": "acme", "task_type": "chat", "attempts": [
    {"model_slug": "anthropic/claude-haiku", "status": "succeeded", "input_tokens": 420, "output_tokens": 60, "latency_ms": 1400}]},
  {"tenant_id": "acme", "task_type": "chat", "attempts": [
    {"model_slug": "anthropic/claude-haiku", "status": "succeeded", "input_tokens": 210, "output_tokens": 33, "cost_usd": 0.0003, "latency_ms": 700}]}]');
select buckets, inserted, updated, unchanged, watermark from routeledger.rollup_model_performance();
select buckets, inserted, updated, unchanged, watermark from routeledger.rollup_model_performance();

-- The last seven days. What is unknown counts for nothing: not as a success, and not as free.
select model_key, task_type, n, success_n, cost_n, cost_usd, round(cost_per_success_usd, 6) as cost_per_success_usd,
  round(latency_p50_ms::numeric) as p50_ms, round(latency_p95_ms::numeric) as p95_ms
from routeledger.model_performance
where window_days = 7 and tenant_id = 'acme'
order by 1, 2;

-- Any days: from one up to, not including, another.
select model_key, from_day, to_day, n, success_rate
from routeledger.model_performance_between('acme', '2026-11-01', '2026-12-01', 'chat')
order by 1;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
