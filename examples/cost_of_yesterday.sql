-- What did yesterday cost, by model, and do the books agree?
-- Run it in a scratch database as the schema's owner: psql -X -f examples/cost_of_yesterday.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;
select count(*) as prices from routeledger.import_models('[
  {"model_slug": "openai/gpt-4o-mini", "provider": "openai", "input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.60},
  {"model_slug": "anthropic/claude-haiku", "provider": "anthropic", "input_usd_per_mtok": 0.80, "output_usd_per_mtok": 4.00}]');

-- Three requests of yesterday, told afterwards.
select ord, status, outcome_status, attempts, cost_usd
from routeledger.record_outcomes('[
  {"tenant_id": "acme", "id": "01a1f84a-95c0-7000-8000-000000000005", "attempts": [
    {"model_slug": "openai/gpt-4o-mini", "status": "succeeded", "input_tokens": 374, "output_tokens": 44}]},
  {"tenant_id": "acme", "id": "01a1f84a-95c0-7000-8000-000000000006", "attempts": [
    {"model_slug": "openai/gpt-4o-mini", "status": "failed", "error_type": "timeout"},
    {"model_slug": "anthropic/claude-haiku", "status": "succeeded", "input_tokens": 1210, "output_tokens": 301}]},
  {"tenant_id": "acme", "id": "01a1f84a-95c0-7000-8000-000000000007"}]');

select routeledger.set_clock('2026-11-21 08:00:00+00') as clock;

select model_slug, count(*) as attempts, sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens, sum(cost_usd) as cost_usd
from routeledger.attempts
where started_at >= date_trunc('day', routeledger.clock(), 'UTC') - interval '1 day'
  and started_at < date_trunc('day', routeledger.clock(), 'UTC')
group by model_slug
order by sum(cost_usd) desc nulls last;

select hour, decided, succeeded, failed, rejected, abandoned, in_flight, attempts, cost_usd, agrees
from routeledger.reconciliation;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
