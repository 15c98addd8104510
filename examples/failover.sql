-- A failover: a 429 is waited for, a refusal moves on to the next candidate.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/failover.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;
select count(*) as prices from routeledger.import_models('[
  {"model_slug": "openai/gpt-4o-mini", "provider": "openai", "input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.60},
  {"model_slug": "anthropic/claude-haiku", "provider": "anthropic", "input_usd_per_mtok": 0.80, "output_usd_per_mtok": 4.00}]');
select routeledger.configure('{"retry_jitter": 0}') ->> 'retry_base' as first_backoff;

-- Before the provider is called: the decision with its ranked candidates, and attempt 1.
select id, attempt_id, model_slug, decision_rule, created
from routeledger.insert_decision(
  'acme',
  p_id => '01a1f84a-95c0-7000-8000-000000000001',
  p_attempt_id => '01a1f84a-95c0-7000-8000-000000000002',
  p_agent_id => 'support',
  p_task_type => 'chat',
  p_candidates => '["openai/gpt-4o-mini", "anthropic/claude-haiku"]');

-- Too many requests: the same model again, not before the provider's retry-after.
select action, next_attempt_no, next_model_slug, delay_ms
from routeledger.fail_attempt('acme', '01a1f84a-95c0-7000-8000-000000000001', '01a1f84a-95c0-7000-8000-000000000002', '429', 'slow down',
  p_http_status => 429, p_retry_after_ms => 1200, p_next_attempt_id => '01a1f84a-95c0-7000-8000-000000000003');

-- A refusal: the next candidate, at once.
select action, next_attempt_no, next_model_slug, delay_ms
from routeledger.fail_attempt('acme', '01a1f84a-95c0-7000-8000-000000000001', '01a1f84a-95c0-7000-8000-000000000003', 'content_filter', 'refused',
  p_http_status => 400, p_next_attempt_id => '01a1f84a-95c0-7000-8000-000000000004');

select outcome_status, attempt_no, cost_usd
from routeledger.complete_decision('acme', '01a1f84a-95c0-7000-8000-000000000001', 'succeeded', '01a1f84a-95c0-7000-8000-000000000004',
  p_input_tokens => 374, p_output_tokens => 51);

select attempt_no, model_slug, status, http_status, error_type, next_action, next_delay_ms
from routeledger.attempts order by attempt_no;

select model_slug, attempts, failovers, outcome_status, cost_usd from routeledger.decisions;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
