-- What is in flight, how long it has been, and whether its lease has run out.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/in_flight.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;
select count(*) as prices from routeledger.import_models('[
  {"model_slug": "openai/gpt-4o-mini", "provider": "openai", "input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.60},
  {"model_slug": "anthropic/claude-haiku", "provider": "anthropic", "input_usd_per_mtok": 0.80, "output_usd_per_mtok": 4.00}]');

-- Before the provider is called: the decision with its ranked candidates, and attempt 1.
select id, attempt_id, model_slug, decision_rule, created
from routeledger.insert_decision(
  'acme',
  p_id => '01a1f84a-95c0-7000-8000-000000000001',
  p_attempt_id => '01a1f84a-95c0-7000-8000-000000000002',
  p_agent_id => 'support',
  p_task_type => 'chat',
  p_candidates => '["openai/gpt-4o-mini", "anthropic/claude-haiku"]');

select routeledger.set_clock('2026-11-20 09:31:30+00') as clock;
select agent_id, task_type, model_slug, attempt_no, age, lease_expires_at, expired
from routeledger.in_flight
order by lease_expires_at;

-- A long stream says that it is alive.
select lease_expires_at from routeledger.extend_lease('acme', '01a1f84a-95c0-7000-8000-000000000001', interval '10 minutes');

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
