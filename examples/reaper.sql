-- The reaper: a process died with a decision in flight.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/reaper.sql
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

-- Nobody comes back. Six minutes later its lease of five has run out.
select routeledger.set_clock('2026-11-20 09:36:00+00') as clock;
select id, model_slug, expired, age from routeledger.in_flight;

-- The reaper closes it: the attempt failed, the outcome is abandoned, and linked. Nothing is deleted.
select tenant_id, id, inference_id, attempt_no from routeledger.reap();
select outcome_status, attempts, late_completion from routeledger.decisions;

-- The process was only slow. Its completion is accepted once, and marked.
select outcome_status, late, created
from routeledger.complete_decision('acme', '01a1f84a-95c0-7000-8000-000000000001', 'succeeded', '01a1f84a-95c0-7000-8000-000000000002',
  p_input_tokens => 374, p_output_tokens => 44);
select count(*) as orphans from routeledger.orphans;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
