-- Unjudged: six answers that wait for a judge, for docs/how-to/judge.md and checks.py.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/unjudged.sql
-- The rows are committed.
\pset pager off
\set ON_ERROR_STOP on

select model_slug, status from routeledger.import_models('[
  {"model_slug": "acme/small", "valid_from": "2026-01-01T00:00:00Z", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
  {"model_slug": "acme/large", "valid_from": "2026-01-01T00:00:00Z", "input_usd_per_mtok": 2, "output_usd_per_mtok": 8}]');

-- Each asks for an object with two keys; the fifth does not say which, and the sixth had no answer.
with answers (i, model, answer) as (
  values
    (1, 'large', '{"name": "Ada", "born": 1815}'),
    (2, 'small', '{"name": "Ada"}'),
    (3, 'small', 'Sure! Here is the JSON: {"name": "Ada", "born": 1815}'),
    (4, 'large', '{"name": "Alan", "born": 1912}'),
    (5, 'small', 'Alan Turing was born in 1912.')
),
told as (
  select a.i, a.answer, o.id, o.inference_id
  from answers a
  cross join lateral routeledger.record_outcome(
    p_tenant_id => 'acme', p_task_type => 'extraction',
    p_metadata => case when a.i < 5 then '{"keys": ["name", "born"]}'::jsonb end,
    p_attempts => jsonb_build_array(jsonb_build_object(
      'model_slug', 'acme/' || a.model, 'status', 'succeeded', 'input_tokens', 100, 'output_tokens', 20))) o
)
select t.i, p.created
from told t
cross join lateral routeledger.record_payload(
  'acme', t.id, t.inference_id,
  jsonb_build_object('messages', jsonb_build_array(jsonb_build_object(
    'role', 'user', 'content', 'Who is it about? Answer with an object of name and born.'))),
  jsonb_build_object('choices', jsonb_build_array(jsonb_build_object(
    'message', jsonb_build_object('role', 'assistant', 'content', t.answer))))) p
order by t.i;
select outcome_status
from routeledger.record_outcome(
  p_tenant_id => 'acme', p_task_type => 'extraction',
  p_attempts => '[{"model_slug": "acme/small", "status": "failed", "error_type": "timeout"}]');
select judge, ready from routeledger.judge_queue;
