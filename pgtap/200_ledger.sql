-- 200 · The ledger's tables: columns, keys, rules with their escapes, and the link.
begin;
\ir common.psql
select plan(53);

create function pg_temp.columns_of(p_table text) returns table (name text, type text, required boolean, initial text)
language sql stable
as $$
  select a.attname::text collate "default", format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
  from pg_attribute a
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where a.attrelid = ('routeledger.' || p_table)::regclass and a.attnum > 0 and not a.attisdropped
  order by a.attnum
$$;

-- vocabularies
select results_eq(
  $$
    select t.typname::text collate "default", pg_get_constraintdef(c.oid)
    from pg_type t join pg_constraint c on c.contypid = t.oid
    where t.typnamespace = 'routeledger'::regnamespace and t.typtype = 'd' order by 1
  $$,
  $$
    values
      ('inference_status', $c$CHECK ((VALUE = ANY (ARRAY['routed'::text, 'succeeded'::text, 'failed'::text])))$c$),
      ('judge_status', $c$CHECK ((VALUE = ANY (ARRAY['unlabeled'::text, 'claimed'::text, 'labeled'::text, 'cannot_evaluate'::text])))$c$),
      ('outcome_status', $c$CHECK ((VALUE = ANY (ARRAY['succeeded'::text, 'failed'::text, 'rejected'::text, 'abandoned'::text])))$c$),
      ('traffic_class', $c$CHECK ((VALUE = ANY (ARRAY['production'::text, 'shadow'::text, 'synthetic'::text, 'replay'::text])))$c$)
  $$,
  'the vocabularies are closed');
select throws_ok(
  $$ select 'done'::routeledger.outcome_status $$, '23514',
  'value for domain routeledger.outcome_status violates check constraint "outcome_status_vocabulary"', 'outcome_status');
select throws_ok(
  $$ select 'done'::routeledger.inference_status $$, '23514',
  'value for domain routeledger.inference_status violates check constraint "inference_status_vocabulary"', 'inference_status');
select throws_ok(
  $$ select 'done'::routeledger.judge_status $$, '23514',
  'value for domain routeledger.judge_status violates check constraint "judge_status_vocabulary"', 'judge_status');
select throws_ok(
  $$ select 'test'::routeledger.traffic_class $$, '23514',
  'value for domain routeledger.traffic_class violates check constraint "traffic_class_vocabulary"', 'traffic_class');

-- columns
select results_eq(
  $$ select * from pg_temp.columns_of('routing_outcomes') $$,
  $$
    values
      ('tenant_id', 'text', true, null),
      ('id', 'uuid', true, null),
      ('agent_id', 'text', false, null),
      ('task_type', 'text', false, null),
      ('decision_rule', 'text', true, null),
      ('decision_rule_override', 'text', false, null),
      ('chosen_model_slug', 'text', false, null),
      ('candidates', 'jsonb', true, '''[]''::jsonb'),
      ('min_quality', 'double precision', false, null),
      ('budget_cap_usd', 'numeric', false, null),
      ('policy_version', 'text', false, null),
      ('traffic_class', 'routeledger.traffic_class', true, '''production''::text'),
      ('metadata', 'jsonb', false, null),
      ('lease', 'interval', false, null),
      ('open_attempt_id', 'uuid', false, null),
      ('attempt_count', 'integer', true, '0'),
      ('inference_id', 'uuid', false, null),
      ('outcome_status', 'routeledger.outcome_status', false, null),
      ('late_completion', 'boolean', true, 'false'),
      ('judge_status', 'routeledger.judge_status', true, '''unlabeled''::text'),
      ('reward', 'double precision', false, null),
      ('reward_source', 'text', false, null),
      ('event_at', 'timestamp with time zone', true, null),
      ('created_at', 'timestamp with time zone', true, null),
      ('lease_expires_at', 'timestamp with time zone', false, null),
      ('abandoned_at', 'timestamp with time zone', false, null),
      ('completed_at', 'timestamp with time zone', false, null),
      ('budget_key', 'text', false, null),
      ('deadline_at', 'timestamp with time zone', false, null),
      ('ruleset_hash', 'text', false, null),
      ('propensity', 'double precision', false, null),
      ('holds_budget', 'boolean', true, 'false'),
      ('probe_attempt_id', 'uuid', false, null)
  $$,
  'routing_outcomes');
select results_eq(
  $$ select * from pg_temp.columns_of('inferences') $$,
  $$
    values
      ('tenant_id', 'text', true, null),
      ('outcome_id', 'uuid', true, null),
      ('id', 'uuid', true, null),
      ('attempt_no', 'integer', true, null),
      ('candidate_no', 'integer', false, null),
      ('model_slug', 'text', true, null),
      ('provider', 'text', false, null),
      ('status', 'routeledger.inference_status', true, '''routed''::text'),
      ('input_tokens', 'bigint', false, null),
      ('output_tokens', 'bigint', false, null),
      ('cache_read_input_tokens', 'bigint', false, null),
      ('cache_creation_input_tokens', 'bigint', false, null),
      ('reasoning_output_tokens', 'bigint', false, null),
      ('cost_usd', 'numeric', false, null),
      ('cost_source', 'text', false, null),
      ('cost_flag', 'text', false, null),
      ('latency_ms', 'double precision', false, null),
      ('ttft_ms', 'double precision', false, null),
      ('http_status', 'integer', false, null),
      ('error_type', 'text', false, null),
      ('error_message', 'text', false, null),
      ('retry_after_ms', 'bigint', false, null),
      ('next_action', 'text', false, null),
      ('next_delay_ms', 'bigint', false, null),
      ('provider_response_id', 'text', false, null),
      ('response_model', 'text', false, null),
      ('finish_reasons', 'text[]', false, null),
      ('created_at', 'timestamp with time zone', true, null),
      ('started_at', 'timestamp with time zone', true, null),
      ('completed_at', 'timestamp with time zone', false, null)
  $$,
  'inferences');
select results_eq(
  $$ select * from pg_temp.columns_of('inference_payloads') $$,
  $$
    values
      ('tenant_id', 'text', true, null),
      ('outcome_id', 'uuid', true, null),
      ('inference_id', 'uuid', true, null),
      ('request', 'jsonb', false, null),
      ('response', 'jsonb', false, null),
      ('created_at', 'timestamp with time zone', true, null)
  $$,
  'inference_payloads');
select results_eq(
  $$ select * from pg_temp.columns_of('judge_verdicts') $$,
  $$
    values
      ('tenant_id', 'text', true, null),
      ('outcome_id', 'uuid', true, null),
      ('judge', 'text', true, null),
      ('judge_version', 'text', true, null),
      ('inference_id', 'uuid', true, null),
      ('model_slug', 'text', true, null),
      ('task_type', 'text', false, null),
      ('score', 'double precision', false, null),
      ('usable', 'boolean', true, null),
      ('label', 'text', false, null),
      ('rationale', 'text', false, null),
      ('reward_source', 'text', true, null),
      ('attempt_no', 'integer', false, null),
      ('judge_model', 'text', false, null),
      ('input_tokens', 'bigint', false, null),
      ('output_tokens', 'bigint', false, null),
      ('cost_usd', 'numeric', false, null),
      ('recorded_at', 'timestamp with time zone', true, null),
      ('withdrawal_id', 'uuid', false, null),
      ('withdrawn_at', 'timestamp with time zone', false, null)
  $$,
  'judge_verdicts');

-- keys
select col_is_pk('routeledger', 'routing_outcomes', array['tenant_id', 'id'], 'a decision: the tenant first');
select col_is_pk('routeledger', 'inferences', array['tenant_id', 'outcome_id', 'id'], 'an attempt');
select col_is_unique('routeledger', 'inferences', array['tenant_id', 'outcome_id', 'attempt_no'], 'one attempt a number');
select col_is_pk('routeledger', 'inference_payloads', array['tenant_id', 'outcome_id', 'inference_id'], 'one payload an attempt');
select col_is_pk('routeledger', 'judge_verdicts', array['tenant_id', 'outcome_id', 'judge', 'judge_version'], 'one verdict a judge version');
select results_eq(
  $$
    select c.relname::text collate "default", pg_get_partkeydef(c.oid)
    from pg_class c where c.relnamespace = 'routeledger'::regnamespace and c.relkind = 'p' order by 1
  $$,
  $$
    values
      ('inference_payloads', 'RANGE (outcome_id)'), ('inferences', 'RANGE (outcome_id)'), ('judge_verdicts', 'RANGE (outcome_id)'),
      ('routing_outcomes', 'RANGE (id)')
  $$,
  'partitioned by the decision''s id');
select results_eq(
  $$ select pg_get_indexdef('routeledger.routing_outcomes_lease_idx'::regclass) $$,
  $$
    values ('CREATE INDEX routing_outcomes_lease_idx ON ONLY routeledger.routing_outcomes USING btree (lease_expires_at)'
      ' WHERE (outcome_status IS NULL)')
  $$,
  'the reaper''s index holds what is in flight');
select results_eq(
  $$ select pg_get_indexdef('routeledger.routing_outcomes_unlabeled_idx'::regclass) $$,
  $$
    values ('CREATE INDEX routing_outcomes_unlabeled_idx ON ONLY routeledger.routing_outcomes USING btree (tenant_id, id)'
      ' WHERE (((judge_status)::text = ''unlabeled''::text) AND (reward_source IS NULL) AND ((outcome_status)::text = ''succeeded''::text)'
      ' AND (inference_id IS NOT NULL))')
  $$,
  'that of the judges, the successes that nobody has claimed or labelled');
select is_empty(
  $$
    select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'routeledger'::regnamespace and not t.tgisinternal
  $$,
  'no triggers');

-- rules, as declared
select results_eq(
  $$
    select c.conname::text collate "default", pg_get_constraintdef(c.oid)
    from pg_constraint c
    where c.conrelid in ('routeledger.routing_outcomes'::regclass, 'routeledger.inferences'::regclass,
        'routeledger.inference_payloads'::regclass, 'routeledger.judge_verdicts'::regclass)
      and c.contype = 'c'
    order by 1
  $$,
  $$
    values
      ('inference_closed_has_completed_at', 'CHECK ((((status)::text = ''routed''::text) = (completed_at IS NULL)))'),
      ('inference_failed_requires_error', 'CHECK ((((status)::text <> ''failed''::text) OR (error_type IS NOT NULL)))'),
      ('inference_numbers_not_negative',
        'CHECK (((LEAST(input_tokens, output_tokens) >= 0) AND (cost_usd >= (0)::numeric)))'),
      ('inference_succeeded_requires_tokens',
        'CHECK ((((status)::text <> ''succeeded''::text) OR ((input_tokens IS NOT NULL) AND (output_tokens IS NOT NULL))))'),
      ('outcome_closed_has_completed_at', 'CHECK (((outcome_status IS NULL) = (completed_at IS NULL)))'),
      ('outcome_in_flight_has_lease', 'CHECK (((outcome_status IS NULL) = (lease_expires_at IS NOT NULL)))'),
      ('outcome_rejected_has_no_model', 'CHECK ((((outcome_status)::text <> ''rejected''::text) OR (chosen_model_slug IS NULL)))'),
      ('outcome_requires_inference_when_model_chosen',
        'CHECK (((outcome_status IS NULL) OR (chosen_model_slug IS NULL) OR (decision_rule_override IS NOT NULL) OR (inference_id IS NOT NULL)))'),
      ('verdict_usable_has_score',
        'CHECK ((usable = ((score IS NOT NULL) AND ((score >= (0)::double precision) AND (score <= (1)::double precision)))))'),
      ('verdict_withdrawn_has_withdrawal', 'CHECK (((withdrawal_id IS NULL) = (withdrawn_at IS NULL)))')
  $$,
  'the rules and their escapes');

-- rules, at work: one row in flight, and every wrong way to change it
insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, chosen_model_slug, open_attempt_id, attempt_count, event_at, created_at,
  lease_expires_at)
values
  ('tap200', pg_temp.id('d'), 'pinned', 'm', pg_temp.id('a'), 1, pg_temp.t0(), pg_temp.t0(), pg_temp.t0()),
  ('tap200', pg_temp.id('e'), 'pinned', 'm', pg_temp.id('b'), 1, pg_temp.t0(), pg_temp.t0(), pg_temp.t0()),
  ('tap200-other', pg_temp.id('d'), 'pinned', 'm', pg_temp.id('c'), 1, pg_temp.t0(), pg_temp.t0(), pg_temp.t0());
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
values
  ('tap200', pg_temp.id('d'), pg_temp.id('a'), 1, 'm', pg_temp.t0(), pg_temp.t0()),
  ('tap200', pg_temp.id('e'), pg_temp.id('b'), 1, 'm', pg_temp.t0(), pg_temp.t0()),
  ('tap200-other', pg_temp.id('d'), pg_temp.id('c'), 1, 'm', pg_temp.t0(), pg_temp.t0());
create function pg_temp.leaf(p_table text) returns text
language sql stable
as $$ select c.relname::text from routeledger.routing_outcomes o, pg_class c
  where o.tenant_id = 'tap200' and o.id = pg_temp.id('d') and c.oid = replace(o.tableoid::regclass::text, 'routing_outcomes', p_table)::regclass $$;
create function pg_temp.broken(p_table text, p_rule text) returns text
language sql stable
as $$ select format('new row for relation "%s" violates check constraint "%s"', pg_temp.leaf(p_table), p_rule) $$;
create function pg_temp.decide(p_set text) returns text
language sql stable
as $$ select format('update routeledger.routing_outcomes set %s where tenant_id = ''tap200'' and id = pg_temp.id(''d'')', p_set) $$;
create function pg_temp.attempt(p_set text) returns text
language sql stable
as $$ select format('update routeledger.inferences set %s where tenant_id = ''tap200'' and outcome_id = pg_temp.id(''d'')', p_set) $$;

select throws_ok(
  pg_temp.decide($$ outcome_status = 'succeeded', completed_at = now(), lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_requires_inference_when_model_chosen'), 'closed and unlinked');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'failed', completed_at = now(), lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_requires_inference_when_model_chosen'), 'however it failed');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'abandoned', completed_at = now(), lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_requires_inference_when_model_chosen'), 'or was abandoned');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'failed', inference_id = pg_temp.id('a'), lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_closed_has_completed_at'), 'closed without a time');
select throws_ok(
  pg_temp.decide($$ completed_at = now() $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_closed_has_completed_at'), 'in flight with one');
select throws_ok(
  pg_temp.decide($$ lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_in_flight_has_lease'), 'in flight without a lease');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'failed', inference_id = pg_temp.id('a'), completed_at = now() $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_in_flight_has_lease'), 'closed with one');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'rejected', inference_id = pg_temp.id('a'), completed_at = now(), lease_expires_at = null $$), '23514',
  pg_temp.broken('routing_outcomes', 'outcome_rejected_has_no_model'), 'rejected with a model chosen');
select throws_ok(
  pg_temp.decide($$ outcome_status = 'done' $$), '23514',
  'value for domain routeledger.outcome_status violates check constraint "outcome_status_vocabulary"', 'a word of its own');

select throws_ok(
  pg_temp.attempt($$ completed_at = now() $$), '23514', pg_temp.broken('inferences', 'inference_closed_has_completed_at'), 'open with a time');
select throws_ok(
  pg_temp.attempt($$ status = 'failed', error_type = 'x' $$), '23514', pg_temp.broken('inferences', 'inference_closed_has_completed_at'),
  'closed without one');
select throws_ok(
  pg_temp.attempt($$ status = 'succeeded', completed_at = now(), input_tokens = 1 $$), '23514',
  pg_temp.broken('inferences', 'inference_succeeded_requires_tokens'), 'a success without output tokens');
select throws_ok(
  pg_temp.attempt($$ status = 'succeeded', completed_at = now(), output_tokens = 1 $$), '23514',
  pg_temp.broken('inferences', 'inference_succeeded_requires_tokens'), 'or input tokens');
select throws_ok(
  pg_temp.attempt($$ status = 'failed', completed_at = now() $$), '23514',
  pg_temp.broken('inferences', 'inference_failed_requires_error'), 'a failure without an error');
select throws_ok(
  pg_temp.attempt($$ input_tokens = -1 $$), '23514', pg_temp.broken('inferences', 'inference_numbers_not_negative'), 'negative tokens');
select throws_ok(
  pg_temp.attempt($$ input_tokens = 1, output_tokens = -1 $$), '23514', pg_temp.broken('inferences', 'inference_numbers_not_negative'),
  'of either kind');
select throws_ok(
  pg_temp.attempt($$ cost_usd = -0.01 $$), '23514', pg_temp.broken('inferences', 'inference_numbers_not_negative'), 'a negative cost');
select throws_ok(
  $$
    insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
    values ('tap200', pg_temp.id('d'), pg_temp.id('a2'), 1, 'm', now(), now())
  $$,
  '23505', format('duplicate key value violates unique constraint "%s_tenant_id_outcome_id_attempt_no_key"', pg_temp.leaf('inferences')),
  'two attempts of one number');


create function pg_temp.verdict(p_set text) returns text
language sql stable
as $$ select format('update routeledger.judge_verdicts set %s where tenant_id = ''tap200'' and outcome_id = pg_temp.id(''d'')', p_set) $$;
insert into routeledger.judge_verdicts (tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, score, usable, reward_source, recorded_at)
values ('tap200', pg_temp.id('d'), 'j', '1', pg_temp.id('a'), 'm', 0.5, true, 'judge', pg_temp.t0());
select throws_ok(
  pg_temp.verdict('score = null'), '23514', pg_temp.broken('judge_verdicts', 'verdict_usable_has_score'), 'a usable verdict without a score');
select throws_ok(
  pg_temp.verdict('score = ''NaN'''), '23514', pg_temp.broken('judge_verdicts', 'verdict_usable_has_score'), 'or with one that is no number');
select throws_ok(
  pg_temp.verdict('usable = false'), '23514', pg_temp.broken('judge_verdicts', 'verdict_usable_has_score'), 'an unusable one with a score');
select lives_ok(pg_temp.verdict('usable = false, score = -1'), 'but for one that stands for none');
select throws_ok(
  pg_temp.verdict('withdrawn_at = now()'), '23514', pg_temp.broken('judge_verdicts', 'verdict_withdrawn_has_withdrawal'), 'withdrawn, and no word by whom');
select throws_ok(
  $$
    insert into routeledger.judge_verdicts select (v).* from (
      select v from routeledger.judge_verdicts v where v.tenant_id = 'tap200' and v.outcome_id = pg_temp.id('d')) x
  $$,
  '23505', format('duplicate key value violates unique constraint "%s_pkey"', pg_temp.leaf('judge_verdicts')), 'two verdicts of one judge version');

-- the link
create function pg_temp.unlinkable() returns text
language sql stable
as $$
  select format('insert or update on table "%s" violates foreign key constraint "outcome_links_own_attempt"', pg_temp.leaf('routing_outcomes'))
$$;
create function pg_temp.link(p_attempt text) returns text
language sql stable
as $$
  select pg_temp.decide(format(
    'outcome_status = ''failed'', completed_at = now(), lease_expires_at = null, inference_id = pg_temp.id(%L)', p_attempt))
$$;
select throws_ok(pg_temp.link('nobody'), '23503', pg_temp.unlinkable(), 'an outcome cannot link what does not exist');
select throws_ok(pg_temp.link('b'), '23503', pg_temp.unlinkable(), 'nor an attempt of another decision');
select throws_ok(pg_temp.link('c'), '23503', pg_temp.unlinkable(), 'nor one of another tenant');
select lives_ok(pg_temp.link('a'), 'only one of its own');
select throws_ok(
  $$ delete from routeledger.inferences where tenant_id = 'tap200' and outcome_id = pg_temp.id('d') $$, '23503',
  format('update or delete on table "%s" violates foreign key constraint "outcome_links_own_attempt" on table "%s"',
    pg_temp.leaf('inferences'), pg_temp.leaf('routing_outcomes')),
  'which then cannot go away');

-- the escapes
select lives_ok(
  $$
    insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, chosen_model_slug, event_at, created_at, lease_expires_at)
    values ('tap200', pg_temp.id('escape 1'), 'pinned', 'm', now(), now(), now())
  $$, 'in flight nothing is linked yet');
select lives_ok(
  $$
    insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, outcome_status, event_at, created_at, completed_at)
    values ('tap200', pg_temp.id('escape 2'), 'no_candidate_enrolled', 'rejected', now(), now(), now())
  $$, 'where no model was chosen there is nothing to link');
select lives_ok(
  $$
    insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, decision_rule_override, chosen_model_slug, outcome_status,
      event_at, created_at, completed_at)
    values ('tap200', pg_temp.id('escape 3'), 'pinned', 'quota_exhausted', 'm', 'failed', now(), now(), now())
  $$, 'a failure before any dispatch links nothing');
select lives_ok(
  pg_temp.attempt($$ status = 'succeeded', completed_at = now(), input_tokens = 0, output_tokens = 0, cost_usd = 0 $$), 'nothing used is not negative');

-- no partition for it: the table says so, the routines see to it
select throws_ok(
  $$
    insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, event_at, created_at, lease_expires_at)
    values ('tap200', routeledger._uuid_v7_at('2100-01-01 00:00+00'), 'pinned', now(), now(), now())
  $$,
  '23514', 'no partition of relation "routing_outcomes" found for row', 'there is no default partition');

select * from finish();
rollback;
