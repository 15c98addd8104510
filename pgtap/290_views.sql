-- 290 · Views: how the ledger is read.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"implausible_factor": 10, "retry_jitter": 0, "retry_attempts_per_model": 2}'); end $$;
insert into routeledger.models (model_slug, provider, brand_slug, base_model, mode, q_prior, expected_latency_ms, enrolled)
values ('tap290/a', 'pa', 'ba', 'tap290-base', 'chat', 0.7, 900, true), ('tap290/b', 'pb', null, 'tap290-base', null, null, null, false),
  ('tap290/c', null, null, 'tap290-base', null, null, null, true), ('tap290/none', null, null, 'tap290-none', null, null, null, true);
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok, cache_read_usd_per_mtok,
  cache_creation_usd_per_mtok, flag, source)
values
  ('tap290/a', '2026-01-01 00:00+00', 2, 8, 0.5, 2.5, null, 'old'), ('tap290/a', pg_temp.t0(), 3, 9, 0.6, 2.6, null, 'new'),
  ('tap290/a', pg_temp.t0() + interval '1 second', 4, 10, null, null, null, 'next'),
  ('tap290/b', 'epoch', 300, 9, null, null, 'input_above_neighbours', 'odd'), ('tap290/c', 'epoch', 0, null, null, null, null, 'free');
select plan(27);

-- shape
create function pg_temp.columns_of(p_view text) returns text
language sql stable
as $$
  select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
  from pg_attribute a where a.attrelid = ('routeledger.' || p_view)::regclass and a.attnum > 0
$$;
select views_are(
  'routeledger',
  array['attempts', 'budget_status', 'constraint_drift', 'constraint_history', 'current_pattern_rules', 'current_policies', 'model_cooldowns', 'current_prices', 'decisions', 'flagged_prices', 'implausible_costs', 'in_flight', 'judge_agreement',
    'judge_drift', 'judge_findings', 'judge_queue', 'model_performance', 'orphans', 'pattern_quality', 'reconciliation', 'repair_history', 'upsert_activity',
    'verdict_withdrawals', 'verdicts']);
select is(
  pg_temp.columns_of('decisions'),
  'tenant_id text, id uuid, agent_id text, task_type text, model_slug text, provider text, decision_rule text, decision_rule_override text, '
  'outcome_status text, attempts integer, failovers integer, cost_usd numeric, input_tokens bigint, output_tokens bigint, '
  'latency_ms double precision, created_at timestamp with time zone, event_at timestamp with time zone, '
  'completed_at timestamp with time zone, late_completion boolean, traffic_class text, chosen_model_slug text, inference_id uuid', 'decisions');
select is(
  pg_temp.columns_of('attempts'),
  'tenant_id text, outcome_id uuid, id uuid, attempt_no integer, candidate_no integer, model_slug text, provider text, status text, '
  'input_tokens bigint, output_tokens bigint, cache_read_input_tokens bigint, cache_creation_input_tokens bigint, '
  'reasoning_output_tokens bigint, cost_usd numeric, cost_source text, cost_flag text, latency_ms double precision, '
  'ttft_ms double precision, http_status integer, error_type text, error_message text, retry_after_ms bigint, next_action text, '
  'next_delay_ms bigint, provider_response_id text, response_model text, finish_reasons text[], created_at timestamp with time zone, '
  'started_at timestamp with time zone, completed_at timestamp with time zone', 'attempts');
select is(
  pg_temp.columns_of('in_flight'),
  'tenant_id text, id uuid, agent_id text, task_type text, attempt_id uuid, attempt_no integer, model_slug text, '
  'created_at timestamp with time zone, lease_expires_at timestamp with time zone, expired boolean, age interval', 'in_flight');
select is(
  pg_temp.columns_of('orphans'),
  'tenant_id text, outcome_id uuid, inference_id uuid, reason text, created_at timestamp with time zone', 'orphans');
select is(
  pg_temp.columns_of('reconciliation'),
  'hour timestamp with time zone, tenant_id text, decided bigint, succeeded bigint, failed bigint, rejected bigint, abandoned bigint, '
  'in_flight bigint, attempts bigint, open_attempts bigint, cost_usd numeric, agrees boolean', 'reconciliation');
select is(
  pg_temp.columns_of('implausible_costs'),
  'tenant_id text, outcome_id uuid, inference_id uuid, model_slug text, cost_usd numeric, cost_source text, cost_flag text, '
  'input_tokens bigint, output_tokens bigint, completed_at timestamp with time zone', 'implausible_costs');
select is(
  pg_temp.columns_of('current_prices'),
  'model_slug text, provider text, brand_slug text, base_model text, mode text, enrolled boolean, q_prior double precision, '
  'expected_latency_ms double precision, valid_from timestamp with time zone, input_usd_per_mtok numeric, output_usd_per_mtok numeric, '
  'cache_read_usd_per_mtok numeric, cache_creation_usd_per_mtok numeric, flag text, source text', 'current_prices');
select is(
  pg_temp.columns_of('flagged_prices'),
  'model_slug text, base_model text, provider text, valid_from timestamp with time zone, flag text, input_usd_per_mtok numeric, '
  'output_usd_per_mtok numeric, median_input_usd_per_mtok numeric, median_output_usd_per_mtok numeric, source text', 'flagged_prices');
select is_empty(
  $$
    select c.relname from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind = 'v' and not coalesce('security_barrier=true' = any (c.reloptions), false)
  $$,
  'a view with tenants in it is a barrier');

-- a day's work: one decision of each kind
set local role routeledger_writer;
do $$
begin
  perform routeledger.insert_decision('tap290', pg_temp.id('good'), p_agent_id => 'agent', p_task_type => 'chat', p_candidates => '["tap290/a", "tap290/b"]',
    p_attempt_id => pg_temp.id('good/1'), p_traffic_class => 'shadow');
  perform pg_temp.at('1 second');
  perform routeledger.fail_attempt('tap290', pg_temp.id('good'), pg_temp.id('good/1'), '429', p_http_status => 429, p_next_attempt_id => pg_temp.id('good/2'),
    p_input_tokens => 1000, p_output_tokens => 0, p_cost_usd => 0.002);
  perform routeledger.fail_attempt('tap290', pg_temp.id('good'), pg_temp.id('good/2'), '404', p_http_status => 404, p_next_attempt_id => pg_temp.id('good/3'));
  perform pg_temp.at('3 seconds');
  perform routeledger.complete_decision('tap290', pg_temp.id('good'), 'succeeded', p_input_tokens => 1000, p_output_tokens => 500, p_cost_usd => 0.01);
  perform pg_temp.at('0');
  perform routeledger.insert_decision('tap290', pg_temp.id('bad'), p_candidates => '["tap290/a"]', p_attempt_id => pg_temp.id('bad/1'));
  perform routeledger.complete_decision('tap290', pg_temp.id('bad'), 'failed', p_error_type => 'x');
  perform routeledger.insert_decision('tap290', pg_temp.id('quota'), p_candidates => '["tap290/a"]', p_attempt_id => pg_temp.id('quota/1'));
  perform routeledger.complete_decision('tap290', pg_temp.id('quota'), 'failed', p_decision_rule_override => 'quota_exhausted');
  perform routeledger.insert_decision('tap290', pg_temp.id('rejected'));
  perform routeledger.insert_decision('tap290', pg_temp.id('gone'), p_candidates => '["tap290/a"]', p_attempt_id => pg_temp.id('gone/1'), p_lease => '1 second');
  perform pg_temp.at('10 seconds');
  perform routeledger.reap(p_tenant_id => 'tap290');
  perform routeledger.insert_decision('tap290', pg_temp.id('open'), p_agent_id => 'agent', p_task_type => 'chat', p_candidates => '["tap290/a"]',
    p_attempt_id => pg_temp.id('open/1'), p_lease => '1 minute');
  perform routeledger.insert_decision('tap290', pg_temp.id('held'), p_candidates => '["tap290/a"]', p_attempt_id => pg_temp.id('held/1'), p_lease => '1 hour');
  perform routeledger.fail_attempt('tap290', pg_temp.id('held'), pg_temp.id('held/1'), 'x', p_next => 'hold');
  perform routeledger.record_outcome('tap290', pg_temp.id('dear'), p_attempts => '[{"model_slug": "tap290/a", "status": "succeeded", "input_tokens": 1000,
    "output_tokens": 500, "cost_usd": 5}]');
  perform pg_temp.at('70 seconds');
end
$$;
set local role routeledger_reader;

-- decisions
select results_eq(
  $$
    select d.agent_id, d.task_type, d.model_slug, d.provider, d.decision_rule, d.outcome_status, d.attempts, d.failovers, d.cost_usd, d.input_tokens,
      d.output_tokens, d.latency_ms, d.created_at, d.event_at, d.completed_at, d.late_completion, d.traffic_class, d.chosen_model_slug, d.inference_id
    from routeledger.decisions d where d.tenant_id = 'tap290' and d.id = pg_temp.id('good')
  $$,
  $$
    values ('agent', 'chat', 'tap290/b', 'pb', 'caller_ranked', 'succeeded', 3, 1, 0.012::numeric, 2000::bigint, 500::bigint, 3000::double precision,
      pg_temp.t0(), pg_temp.t0(), pg_temp.t0() + interval '3 seconds', false, 'shadow', 'tap290/a', pg_temp.id('good/3'))
  $$,
  'decisions: the model that answered, and what all attempts used and cost');
select results_eq(
  $$
    select d.id = pg_temp.id(n), d.model_slug, d.outcome_status, d.decision_rule, d.decision_rule_override, d.attempts, d.failovers, d.cost_usd, d.latency_ms
    from unnest(array['bad', 'quota', 'rejected', 'gone', 'open', 'held']) with ordinality x (n, o)
    join routeledger.decisions d on d.tenant_id = 'tap290' and d.id = pg_temp.id(n)
    order by o
  $$,
  $$
    values
      (true, 'tap290/a', 'failed', 'caller_ranked', null::text, 1, 0, null::numeric, 0::double precision),
      (true, 'tap290/a', 'failed', 'caller_ranked', 'quota_exhausted', 1, 0, null, 0),
      (true, null, 'rejected', 'no_candidate_enrolled', null, 0, 0, null, 0),
      (true, 'tap290/a', 'abandoned', 'caller_ranked', null, 1, 0, null, 10000),
      (true, 'tap290/a', null, 'caller_ranked', null, 1, 0, null, null),
      (true, 'tap290/a', null, 'caller_ranked', null, 1, 0, null, null)
  $$,
  'one line for each, whatever became of it');
select is(
  (select count(*) from routeledger.decisions d where d.tenant_id = 'tap290'), 8::bigint, 'and no more');

-- attempts
select results_eq(
  $$
    select a.attempt_no, a.model_slug, a.status, a.error_type, a.next_action from routeledger.attempts a
    where a.tenant_id = 'tap290' and a.outcome_id = pg_temp.id('good') order by a.attempt_no
  $$,
  $$
    values (1, 'tap290/a', 'failed', '429', 'retry'), (2, 'tap290/a', 'failed', '404', 'failover'), (3, 'tap290/b', 'succeeded', null, null)
  $$,
  'attempts: one line for each call of a provider');
select is(
  (select count(*) from routeledger.attempts a where a.tenant_id = 'tap290'), 9::bigint, 'nine in all');

-- in_flight
select results_eq(
  $$
    select f.id, f.agent_id, f.task_type, f.attempt_id, f.attempt_no, f.model_slug, f.created_at, f.lease_expires_at, f.expired, f.age
    from routeledger.in_flight f where f.tenant_id = 'tap290' order by f.lease_expires_at
  $$,
  $$
    values
      (pg_temp.id('open'), 'agent', 'chat', pg_temp.id('open/1'), 1, 'tap290/a', pg_temp.t0() + interval '10 seconds',
       pg_temp.t0() + interval '70 seconds', true, interval '1 minute'),
      (pg_temp.id('held'), null, null, null, 1, null, pg_temp.t0() + interval '10 seconds', pg_temp.t0() + interval '10 seconds' + interval '1 hour', false,
       interval '1 minute')
  $$,
  'in_flight: what is open, and what the reaper will find');

-- reconciliation
select results_eq(
  $$
    select r.hour, r.decided, r.succeeded, r.failed, r.rejected, r.abandoned, r.in_flight, r.attempts, r.open_attempts, r.cost_usd, r.agrees
    from routeledger.reconciliation r where r.tenant_id = 'tap290'
  $$,
  $$
    values (pg_temp.t0(), 8::bigint, 2::bigint, 2::bigint, 1::bigint, 1::bigint, 2::bigint, 9::bigint, 1::bigint, 5.012::numeric, true)
  $$,
  'reconciliation: every decision in one column, every attempt with one');
set local timezone = 'Asia/Kolkata';
select is(
  (select r.hour from routeledger.reconciliation r where r.tenant_id = 'tap290'), pg_temp.t0(), 'hours are those of UTC');
set local timezone = 'UTC';

-- orphans
select is_empty($$ select * from routeledger.orphans o where o.tenant_id = 'tap290' $$, 'orphans: none');

-- implausible_costs
select results_eq(
  $$
    select c.outcome_id, c.model_slug, c.cost_usd, c.cost_source, c.cost_flag, c.input_tokens, c.output_tokens
    from routeledger.implausible_costs c where c.tenant_id = 'tap290'
  $$,
  $$ values (pg_temp.id('dear'), 'tap290/a', 5::numeric, 'caller', 'above_catalog', 1000::bigint, 500::bigint) $$, 'implausible_costs: what is far off');

-- prices
do $$ begin perform pg_temp.at('0'); end $$;
select results_eq(
  $$
    select p.model_slug, p.provider, p.brand_slug, p.base_model, p.mode, p.enrolled, p.q_prior, p.expected_latency_ms, p.valid_from,
      p.input_usd_per_mtok, p.output_usd_per_mtok, p.cache_read_usd_per_mtok, p.cache_creation_usd_per_mtok, p.flag, p.source
    from routeledger.current_prices p where p.model_slug like 'tap290/%' order by 1
  $$,
  $$
    values
      ('tap290/a', 'pa', 'ba', 'tap290-base', 'chat', true, 0.7::double precision, 900::double precision, pg_temp.t0(), 3::numeric, 9::numeric,
       0.6::numeric, 2.6::numeric, null::text, 'new'),
      ('tap290/b', 'pb', null, 'tap290-base', null, false, null, null, 'epoch', 300, 9, null, null, 'input_above_neighbours', 'odd'),
      ('tap290/c', null, null, 'tap290-base', null, true, null, null, 'epoch', 0, null, null, null, null, 'free'),
      ('tap290/none', null, null, 'tap290-none', null, true, null, null, null, null, null, null, null, null, null)
  $$,
  'current_prices: each model once, with the price in force');
do $$ begin perform pg_temp.at('1 second'); end $$;
select is(
  (select p.source from routeledger.current_prices p where p.model_slug = 'tap290/a'), 'next', 'by the ledger''s clock');
select results_eq(
  $$
    select p.model_slug, p.base_model, p.provider, p.valid_from, p.flag, p.input_usd_per_mtok, p.output_usd_per_mtok, p.median_input_usd_per_mtok,
      p.median_output_usd_per_mtok, p.source
    from routeledger.flagged_prices p where p.model_slug like 'tap290/%'
  $$,
  $$
    values ('tap290/b', 'tap290-base', 'pb', 'epoch'::timestamptz, 'input_above_neighbours', 300::numeric, 9::numeric, 3::numeric, 9::numeric, 'odd')
  $$,
  'flagged_prices: beside the median of the model, free ones left out');

-- what no routine writes, written by hand
reset role;
create function pg_temp.reasons(p_tenant text) returns table (name text, reason text)
language sql stable
as $$
  select x.name, o.reason from routeledger.orphans o
  left join unnest(array['o1', 'o2', 'o3', 'o4', 'o5', 'o6', 'o7', 'o8', 'o9']) x (name) on pg_temp.id(x.name) = o.outcome_id
  where o.tenant_id = p_tenant order by 1
$$;
insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, chosen_model_slug, open_attempt_id, attempt_count, inference_id, outcome_status,
  decision_rule_override, event_at, created_at, lease_expires_at, completed_at)
select 'tap290-bad', pg_temp.id(v.name), 'pinned', 'm', pg_temp.id(v.open), v.n, null, v.status, v.override, pg_temp.t0(), pg_temp.t0(),
  case when v.status is null then pg_temp.t0() end, case when v.status is not null then pg_temp.t0() end
from (values
  ('o1', null, 0, null, null), ('o2', null, 2, null, null), ('o4', null, 1, 'failed', 'x'), ('o5', 'o5/1', 2, null, null), ('o6', 'o6/9', 1, null, null),
  ('o7', null, 1, null, null), ('o8', 'o8/1', 1, null, null)) v (name, open, n, status, override);
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
select 'tap290-bad', pg_temp.id(split_part(v.name, '/', 1)), pg_temp.id(v.name), split_part(v.name, '/', 2)::integer, 'm', pg_temp.t0(), pg_temp.t0()
from unnest(array['o2/1', 'o3/1', 'o4/1', 'o5/1', 'o5/2', 'o6/1', 'o7/1', 'o8/1', 'o9/1']) v (name);
insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, chosen_model_slug, attempt_count, inference_id, outcome_status, event_at, created_at,
  completed_at)
values ('tap290-bad', pg_temp.id('o9'), 'pinned', 'm', 1, pg_temp.id('o9/1'), 'failed', pg_temp.t0(), pg_temp.t0(), pg_temp.t0());
select results_eq(
  $$ select * from pg_temp.reasons('tap290-bad') $$,
  $$
    values
      ('o1', 'in flight without an attempt'), ('o2', 'attempt_count differs from the attempts'), ('o3', 'attempt without a decision'),
      ('o4', 'closed with an open attempt'), ('o5', 'two open attempts'), ('o6', 'open_attempt_id differs from the open attempt'),
      ('o7', 'open_attempt_id differs from the open attempt'), ('o9', 'linked to no attempt of its own')
  $$,
  'orphans: each has its reason, and what is right is none');
update routeledger.inferences i set status = 'failed', error_type = 'x', completed_at = pg_temp.t0()
where i.tenant_id = 'tap290-bad' and i.id in (pg_temp.id('o8/1'), pg_temp.id('o9/1'));
update routeledger.routing_outcomes o set outcome_status = 'succeeded'
where o.tenant_id = 'tap290-bad' and o.id = pg_temp.id('o9');
select results_eq(
  $$ select * from pg_temp.reasons('tap290-bad') r where r.name in ('o8', 'o9') $$,
  $$ values ('o8', 'open_attempt_id differs from the open attempt'), ('o9', 'succeeded without a succeeded attempt') $$, 'as it becomes wrong');
select is(
  (select bool_or(r.agrees) from routeledger.reconciliation r where r.tenant_id = 'tap290-bad'), false, 'reconciliation says so as well');
delete from routeledger.routing_outcomes o where o.tenant_id = 'tap290-bad';
select results_eq(
  $$ select r.decided, r.attempts, r.agrees from routeledger.reconciliation r where r.tenant_id = 'tap290-bad' $$,
  $$ values (0::bigint, 9::bigint, false) $$, 'also where only attempts are left');

select * from finish();
rollback;
