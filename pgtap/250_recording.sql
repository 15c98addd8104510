-- 250 · record_outcome: the whole story in one call, for callers who learn of it afterwards.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"retry_max_attempts": 2}'); end $$;
insert into routeledger.models (model_slug, provider) values ('tap250/a', 'pa');
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok) values ('tap250/a', 'epoch', 2, 8);
select plan(43);

create function pg_temp.decision(p_name text) returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = 'tap250' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.attempts(p_name text) returns setof routeledger.inferences
language sql stable security definer
as $$ select * from routeledger.inferences i where i.tenant_id = 'tap250' and i.outcome_id = pg_temp.id(p_name) order by i.attempt_no $$;
create function pg_temp.count_all(out decisions bigint, out attempts bigint)
language sql stable security definer
as $$
  select (select count(*) from routeledger.routing_outcomes o where o.tenant_id like 'tap250%'),
    (select count(*) from routeledger.inferences i where i.tenant_id like 'tap250%')
$$;
create function pg_temp.id_ago(p_ago interval, p_name text) returns uuid
language sql volatile security definer
as $$ select (left(routeledger._uuid_v7_at(pg_temp.t0() - p_ago)::text, 15) || right(pg_temp.id(p_name)::text, 21))::uuid $$;
create temp table story (name text primary key, given jsonb not null);
grant select on story to public;
insert into story values
  ('whole', jsonb_build_object(
    'tenant_id', 'tap250', 'id', pg_temp.id('whole'), 'agent_id', 'agent', 'task_type', 'chat',
    'candidates', '["tap250/a", {"model_slug": "tap250/b", "provider": "pb"}]'::jsonb, 'min_quality', 0.5, 'budget_cap_usd', 1,
    'policy_version', 'v1', 'traffic_class', 'replay', 'event_at', pg_temp.t0() - interval '1 hour', 'metadata', '{"k": "v"}'::jsonb,
    'attempts', jsonb_build_array(
      jsonb_build_object('id', pg_temp.id('whole/1'), 'model_slug', 'tap250/a', 'status', 'failed', 'error_type', '429', 'error_message', 'slow down',
        'http_status', 429, 'retry_after_ms', 1000, 'latency_ms', 5, 'started_at', pg_temp.t0() - interval '1 hour',
        'completed_at', pg_temp.t0() - interval '59 minutes'),
      jsonb_build_object('id', pg_temp.id('whole/2'), 'model_slug', 'tap250/b', 'status', 'succeeded', 'input_tokens', 1000, 'output_tokens', 500,
        'cache_read_input_tokens', 1, 'cache_creation_input_tokens', 2, 'reasoning_output_tokens', 3, 'cost_usd', 0.25, 'ttft_ms', 7,
        'provider_response_id', 'r', 'response_model', 'm', 'finish_reasons', '["stop"]'::jsonb,
        'started_at', pg_temp.t0() - interval '59 minutes', 'completed_at', pg_temp.t0() - interval '58 minutes'))));
set local role routeledger_writer;

-- a whole story
select results_eq(
  $$
    select r.* from routeledger.record_outcome('tap250', pg_temp.id('whole'), 'agent', 'chat',
      '["tap250/a", {"model_slug": "tap250/b", "provider": "pb"}]', null, null, 0.5, 1, 'v1', 'replay', pg_temp.t0() - interval '1 hour', '{"k": "v"}',
      (select s.given -> 'attempts' from story s)) r
  $$,
  $$ values (pg_temp.id('whole'), pg_temp.id('whole/2'), 2, 'succeeded', 0.25::numeric, true) $$, 'the outcome is that of the last attempt');
select results_eq(
  $$
    select d.agent_id, d.task_type, d.decision_rule, d.chosen_model_slug, d.candidates, d.min_quality, d.budget_cap_usd, d.policy_version,
      d.traffic_class::text, d.metadata, d.open_attempt_id, d.attempt_count, d.inference_id, d.outcome_status::text, d.late_completion, d.event_at,
      d.created_at, d.lease_expires_at, d.completed_at
    from pg_temp.decision('whole') d
  $$,
  $$
    values ('agent', 'chat', 'caller_ranked', 'tap250/a', '[{"model_slug": "tap250/a"}, {"model_slug": "tap250/b", "provider": "pb"}]'::jsonb,
      0.5::double precision, 1::numeric, 'v1', 'replay', '{"k": "v"}'::jsonb, null::uuid, 2, pg_temp.id('whole/2'), 'succeeded', false,
      pg_temp.t0() - interval '1 hour', pg_temp.t0(), null::timestamptz, pg_temp.t0() - interval '58 minutes')
  $$,
  'the decision: when it happened beside when it was recorded');
select results_eq(
  $$
    select i.id, i.attempt_no, i.candidate_no, i.model_slug, i.provider, i.status::text, i.error_type, i.error_message, i.http_status, i.retry_after_ms,
      i.input_tokens, i.output_tokens, i.cache_read_input_tokens, i.cache_creation_input_tokens, i.reasoning_output_tokens, i.cost_usd, i.cost_source,
      i.latency_ms, i.ttft_ms, i.provider_response_id, i.response_model, i.finish_reasons, i.created_at, i.started_at, i.completed_at
    from pg_temp.attempts('whole') i
  $$,
  $$
    values
      (pg_temp.id('whole/1'), 1, 1, 'tap250/a', 'pa', 'failed', '429', 'slow down', 429, 1000::bigint, null::bigint, null::bigint, null::bigint,
       null::bigint, null::bigint, null::numeric, 'no_usage', 5::double precision, null::double precision, null::text, null::text, null::text[],
       pg_temp.t0(), pg_temp.t0() - interval '1 hour', pg_temp.t0() - interval '59 minutes'),
      (pg_temp.id('whole/2'), 2, 2, 'tap250/b', 'pb', 'succeeded', null, null, null, null, 1000, 500, 1, 2, 3, 0.25, 'caller', 60000, 7, 'r', 'm',
       '{stop}', pg_temp.t0(), pg_temp.t0() - interval '59 minutes', pg_temp.t0() - interval '58 minutes')
  $$,
  'its attempts: provider, place, latency filled in where they are known');

-- shorter ones
select results_eq(
  $$
    select r.id, r.inference_id is not null, r.attempts, r.outcome_status, r.cost_usd, r.created
    from routeledger.record_outcome('tap250', pg_temp.id('short'), p_attempts =>
      '[{"model_slug": "tap250/a", "status": "succeeded", "input_tokens": 1000, "output_tokens": 500}]') r
  $$,
  $$ values (pg_temp.id('short'), true, 1, 'succeeded', 0.006::numeric, true) $$, 'one attempt is enough');
select results_eq(
  $$ select d.decision_rule, d.chosen_model_slug, d.inference_id = i.id, i.cost_source, i.candidate_no, i.latency_ms, i.started_at, i.completed_at
     from pg_temp.decision('short') d, pg_temp.attempts('short') i $$,
  $$ values ('pinned', 'tap250/a', true, 'catalog', null::integer, null::double precision, pg_temp.t0(), pg_temp.t0()) $$,
  'its model is the one that was called; nothing is invented');
select results_eq(
  $$
    select r.outcome_status, r.attempts, r.cost_usd, r.inference_id is not null
    from routeledger.record_outcome('tap250', pg_temp.id('failed'), p_candidates => '["tap250/a", "tap250/z"]', p_attempts =>
      '[{"model_slug": "tap250/a", "status": "failed", "error_type": "500", "input_tokens": 1000, "provider": "elsewhere"},
        {"model_slug": "tap250/q", "status": "failed", "error_type": "500", "cost_usd": 0.5}]') r
  $$,
  $$ values ('failed', 2, 0.502::numeric, true) $$, 'all attempts failed: failed; costs add up');
select results_eq(
  $$ select i.candidate_no, i.provider, i.cost_source, i.cost_flag from pg_temp.attempts('failed') i $$,
  $$ values (1, 'elsewhere', 'catalog', null::text), (null, null, 'caller', 'above_any_price') $$, 'each with its own place, provider and cost');
select results_eq(
  $$ select r.* from routeledger.record_outcome('tap250', pg_temp.id('rejected'), p_candidates => '[{"model_slug": "m", "drop_reason": "x"}]') r $$,
  $$ values (pg_temp.id('rejected'), null::uuid, 0, 'rejected', null::numeric, true) $$, 'no attempts: rejected');
select results_eq(
  $$ select d.decision_rule, d.chosen_model_slug, d.completed_at from pg_temp.decision('rejected') d $$,
  $$ values ('no_candidate_clears_floor', null::text, pg_temp.t0()) $$, 'by its rule');
select results_eq(
  $$
    select r.* from routeledger.record_outcome('tap250', pg_temp.id('override'), p_candidates => '["tap250/a"]', p_decision_rule_override => 'quota_exhausted') r
  $$,
  $$ values (pg_temp.id('override'), null::uuid, 0, 'failed', null::numeric, true) $$, 'failed before any dispatch: nothing to link');
select results_eq(
  $$ select d.chosen_model_slug, d.decision_rule_override, d.inference_id, d.attempt_count from pg_temp.decision('override') d $$,
  $$ values ('tap250/a', 'quota_exhausted', null::uuid, 0) $$, 'but the model that was chosen is known');
select results_eq(
  $$ select r.id is not null, r.outcome_status from routeledger.record_outcome('tap250') r $$, $$ values (true, 'rejected') $$, 'an id that is not given is made');
select results_eq(
  $$
    select r.outcome_status from routeledger.record_outcome('tap250', pg_temp.id('long words'), p_attempts => jsonb_build_array(
      jsonb_build_object('model_slug', 'm', 'status', 'failed', 'error_type', 'x', 'error_message', repeat('x', 9000)))) r
  $$,
  $$ values ('failed') $$, 'a long message');
select is((select length(i.error_message) from pg_temp.attempts('long words') i), 8177, 'is cut');
do $$
begin
  perform routeledger.record_outcome('tap250', pg_temp.id('past'), p_event_at => pg_temp.t0() - interval '2 hours',
    p_attempts => jsonb_build_array(jsonb_build_object('model_slug', 'm', 'status', 'failed', 'error_type', 'x',
      'completed_at', pg_temp.t0() - interval '1 day')));
  perform routeledger.record_outcome('tap250', pg_temp.id('past 2'),
    p_attempts => jsonb_build_array(jsonb_build_object('model_slug', 'm', 'status', 'failed', 'error_type', 'x',
      'completed_at', pg_temp.t0() - interval '1 day')));
end
$$;
select is_empty(
  $$ select i.id from pg_temp.attempts('past') i where i.completed_at < i.started_at $$, 'no attempt ends before it begins');
select is_empty(
  $$ select i.id from pg_temp.attempts('past 2') i where i.completed_at < i.started_at $$, 'also where only its end is known');
reset role;
select is_empty(
  $$ select d.id from routeledger.decisions d where d.tenant_id = 'tap250' and d.latency_ms < 0 $$, 'nor has a decision a negative latency');
set local role routeledger_writer;

-- again
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.inference_id, r.attempts, r.outcome_status, r.cost_usd
    from routeledger.record_outcomes((select jsonb_build_array(s.given) from story s)) r
  $$,
  $$ values (1, 'replayed', null::text, pg_temp.id('whole'), pg_temp.id('whole/2'), 2, 'succeeded', 0.25::numeric) $$, 'the same story again is a replay');
select results_eq(
  $$ select r.created, r.cost_usd from routeledger.record_outcome('tap250', pg_temp.id('rejected'), p_candidates => '[{"model_slug": "m", "drop_reason": "x"}]') r $$,
  $$ values (false, null::numeric) $$, 'a rejected one');
select is(
  (select r.created from routeledger.record_outcome('tap250', pg_temp.id('override'), p_candidates => '["tap250/a"]', p_decision_rule_override => 'quota_exhausted') r),
  false, 'one before any dispatch');
do $$ begin perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$
    select r.created, r.cost_usd from routeledger.record_outcome('tap250', pg_temp.id('short'), p_attempts =>
      '[{"model_slug": "tap250/a", "status": "succeeded", "input_tokens": 1000, "output_tokens": 500}]') r
  $$,
  $$ values (false, 0.006::numeric) $$, 'one that left ids and times to the ledger, later');
do $$ begin perform pg_temp.at('0'); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id is null and r.attempts is null and r.outcome_status is null
    from routeledger.record_outcomes((
      select jsonb_agg(s.given || e order by n)
      from story s
      cross join jsonb_array_elements(jsonb_build_array(
        '{"agent_id": "x"}'::jsonb, '{"task_type": null}'::jsonb, '{"candidates": ["tap250/a"]}'::jsonb, '{"chosen_model_slug": "tap250/b"}'::jsonb,
        '{"decision_rule": "own"}'::jsonb, '{"min_quality": 0.6}'::jsonb, '{"budget_cap_usd": 2}'::jsonb, '{"policy_version": "v2"}'::jsonb,
        '{"traffic_class": "shadow"}'::jsonb, '{"metadata": {}}'::jsonb, jsonb_build_object('event_at', pg_temp.t0()),
        jsonb_build_object('attempts', (s.given -> 'attempts') - 0),
        jsonb_build_object('attempts', (s.given -> 'attempts') - 1),
        jsonb_build_object('attempts', '[]'::jsonb, 'decision_rule_override', 'x'))) with ordinality c (e, n))) r
  $$,
  $$ select n, 'refused', 'RL301', true from generate_series(1, 14) n $$, 'another decision under its id is RL301');
select results_eq(
  $$
    select r.ord, r.status, r.code
    from routeledger.record_outcomes((
      select jsonb_agg(jsonb_set(s.given, array['attempts', e ->> 0], (s.given #> array['attempts', e ->> 0]) || (e -> 1)) order by n)
      from story s
      cross join jsonb_array_elements(jsonb_build_array(
        '[0, {}]'::jsonb, '[0, {"id": null}]'::jsonb, '[0, {"started_at": null}]'::jsonb, '[1, {"provider": "pb"}]'::jsonb,
        '[0, {"model_slug": "m"}]'::jsonb, '[0, {"provider": "x"}]'::jsonb, jsonb_build_array(0, jsonb_build_object('id', pg_temp.id('other'))),
        '[0, {"error_type": "500"}]'::jsonb, '[0, {"error_message": null}]'::jsonb, '[0, {"http_status": 500}]'::jsonb, '[0, {"retry_after_ms": 1}]'::jsonb,
        '[0, {"latency_ms": 6}]'::jsonb, '[0, {"cost_usd": 1}]'::jsonb,
        '[1, {"status": "failed", "error_type": "x"}]'::jsonb, '[1, {"input_tokens": 1}]'::jsonb, '[1, {"output_tokens": 1}]'::jsonb,
        '[1, {"cache_read_input_tokens": 9}]'::jsonb, '[1, {"cache_creation_input_tokens": null}]'::jsonb, '[1, {"reasoning_output_tokens": 4}]'::jsonb,
        '[1, {"cost_usd": 0.26}]'::jsonb, '[1, {"cost_usd": null}]'::jsonb, '[1, {"ttft_ms": 8}]'::jsonb, '[1, {"provider_response_id": "s"}]'::jsonb,
        '[1, {"response_model": null}]'::jsonb, '[1, {"finish_reasons": ["length"]}]'::jsonb,
        jsonb_build_array(1, jsonb_build_object('completed_at', pg_temp.t0())),
        jsonb_build_array(0, jsonb_build_object('started_at', pg_temp.t0() - interval '61 minutes')))) with ordinality c (e, n))) r
  $$,
  $$ select n, case when n <= 4 then 'replayed' else 'refused' end, case when n > 4 then 'RL301' end from generate_series(1, 27) n $$,
  'another attempt too');
select throws_ok(
  $$ select routeledger.record_outcome('tap250', pg_temp.id('whole')) $$, 'RL301', 'this id already holds a different payload', 'from the single form too');
select results_eq(
  $$ select count(*), max(i.cost_usd) from pg_temp.attempts('whole') i $$, $$ values (2::bigint, 0.25::numeric) $$, 'and nothing changes');
do $$ begin perform routeledger.insert_decision('tap250', pg_temp.id('open'), p_candidates => '["m"]'); end $$;
select throws_ok(
  $$ select routeledger.record_outcome('tap250', pg_temp.id('open'), p_candidates => '["m"]', p_attempts => '[{"model_slug": "m", "status": "failed", "error_type": "x"}]') $$,
  'RL301', 'this id already holds a different payload', 'a decision in flight is not recorded over');

-- refusals
create temp table before_refusals as select * from pg_temp.count_all();
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint
    from routeledger.record_outcomes(pg_temp.each(
      '{"tenant_id": "tap250", "attempts": [{"model_slug": "m", "status": "failed", "error_type": "x"}]}',
      jsonb_build_array(
        '{"tenant_id": null}'::jsonb, '{"min_quality": 2}'::jsonb, '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb,
        '{"id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"}'::jsonb, '{"candidates": [5]}'::jsonb,
        '{"attempts": {}}'::jsonb, '{"attempts": "m"}'::jsonb,
        jsonb_build_object('attempts', (select jsonb_agg('{"model_slug": "m", "status": "failed", "error_type": "x"}'::jsonb) from generate_series(1, 21))),
        '{"attempts": [], "decision_rule_override": "No Such"}'::jsonb, '{"decision_rule_override": "quota"}'::jsonb,
        '{"attempts": [], "candidates": ["m"]}'::jsonb, '{"attempts": null, "chosen_model_slug": "m"}'::jsonb,
        '{"decision_rule": "no_candidate_enrolled"}'::jsonb, '{"lease": "1 hour"}'::jsonb, '{"min_quality": "x"}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
    order by r.ord
  $$,
  $$
    select n::integer, 'refused', split_part(fault, ' ', 1), split_part(fault, ' ', 2), true
    from unnest(array[
      'RL101 tenant_id', 'RL103 min_quality', 'RL104 id', 'RL105 id', 'RL106 candidates', 'RL111 attempts', 'RL111 attempts', 'RL503 attempts',
      'RL102 decision_rule_override', 'RL306 decision_rule_override', 'RL101 attempts', 'RL101 attempts', 'RL102 decision_rule', 'RL107 lease', 'RL107 row'
    ]) with ordinality w (fault, n)
  $$,
  'each bad argument is refused by name');
create function pg_temp.attempt_codes(p_base jsonb, p_changes jsonb) returns table (ord integer, fault text)
language sql volatile
as $$
  select r.ord, concat_ws(' ', r.code, r.detail ->> 'parameter', coalesce(r.detail ->> 'allowed', r.detail ->> 'reason'))
  from routeledger.record_outcomes((
    select jsonb_agg(jsonb_build_object('tenant_id', 'tap250', 'candidates', '["m"]'::jsonb, 'attempts', jsonb_build_array(e)) order by n)
    from jsonb_array_elements(pg_temp.each(p_base, p_changes)) with ordinality c (e, n))) r
$$;
select results_eq(
  $$
    select * from pg_temp.attempt_codes('{"model_slug": "m", "status": "failed", "error_type": "x"}', jsonb_build_array(
      '{"model_slug": null}'::jsonb, jsonb_build_object('provider', repeat('x', 301)),
      '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"status": null}'::jsonb, '{"status": "routed"}'::jsonb,
      '{"error_type": null}'::jsonb, '{"error_type": ""}'::jsonb, jsonb_build_object('error_type', repeat('x', 201)),
      jsonb_build_object('provider_response_id', repeat('x', 501)), jsonb_build_object('response_model', repeat('x', 301)),
      '{"finish_reasons": [["a"], ["b"]]}'::jsonb, jsonb_build_object('finish_reasons', (select jsonb_agg('x'::text) from generate_series(1, 101))),
      '{"retry_after_ms": -1}'::jsonb, '{"started_at": "infinity"}'::jsonb, '{"completed_at": "-infinity"}'::jsonb,
      jsonb_build_object('started_at', pg_temp.t0() - interval '11 years'), jsonb_build_object('completed_at', pg_temp.t0() + interval '2 hours'),
      jsonb_build_object('started_at', pg_temp.t0(), 'completed_at', pg_temp.t0() - interval '1 second'),
      '{"input_tokens": -1}'::jsonb, '{"cost_usd": "NaN"}'::jsonb, '{"latency_ms": "infinity"}'::jsonb, '{"http_status": 1000}'::jsonb,
      '{"outcome": "x"}'::jsonb, '{"input_tokens": "many"}'::jsonb))
  $$,
  $$
    values
      (1, 'RL111 attempts each an object with a model_slug'), (2, 'RL108 attempts 300 characters a model_slug or provider'), (3, 'RL104 attempts id'),
      (4, 'RL111 attempts status succeeded, failed'), (5, 'RL111 attempts status succeeded, failed'),
      (6, 'RL111 attempts failed needs error_type'), (7, 'RL111 attempts failed needs error_type'), (8, 'RL108 attempts error_type 200 characters'),
      (9, 'RL108 attempts provider_response_id 500, response_model 300 characters'),
      (10, 'RL108 attempts provider_response_id 500, response_model 300 characters'),
      (11, 'RL108 attempts finish_reasons 100 words'), (12, 'RL108 attempts finish_reasons 100 words'),
      (13, 'RL103 attempts retry_after_ms 0 to 1e10'), (14, 'RL109 attempts started_at, completed_at'), (15, 'RL109 attempts started_at, completed_at'),
      (16, 'RL109 attempts started_at, completed_at'), (17, 'RL109 attempts started_at, completed_at'), (18, 'RL109 attempts started_at, completed_at'),
      (19, 'RL103 input_tokens 0 to 1e12'), (20, 'RL103 cost_usd 0 to 1e9'), (21, 'RL103 latency_ms 0 to 1e10'), (22, 'RL103 http_status 100 to 599'),
      (23, 'RL111 attempts outcome no such parameter'), (24, 'RL111 attempts row invalid input syntax for type bigint: "many"')
  $$,
  'each bad field of an attempt');
select results_eq(
  $$
    select * from pg_temp.attempt_codes('{"model_slug": "m", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}',
      '[{"input_tokens": null}, {"output_tokens": null}, {"error_type": "x"}]')
  $$,
  $$
    values
      (1, 'RL111 attempts succeeded needs input_tokens, output_tokens and no error_type'),
      (2, 'RL111 attempts succeeded needs input_tokens, output_tokens and no error_type'),
      (3, 'RL111 attempts succeeded needs input_tokens, output_tokens and no error_type')
  $$,
  'a success needs its tokens and no error');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'allowed', r.id
    from routeledger.record_outcomes(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap250', 'attempts', '[
        {"model_slug": "m", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}, {"model_slug": "m", "status": "failed", "error_type": "x"}]'::jsonb),
      jsonb_build_object('tenant_id', 'tap250', 'attempts', jsonb_build_array(
        jsonb_build_object('id', pg_temp.id('same'), 'model_slug', 'm', 'status', 'failed', 'error_type', 'x'),
        jsonb_build_object('id', pg_temp.id('same'), 'model_slug', 'm', 'status', 'failed', 'error_type', 'x'))))) r
  $$,
  $$
    values
      (1, 'refused', 'RL111', 'only the last may have succeeded', null::uuid), (2, 'refused', 'RL111', 'each with its own id', null)
  $$,
  'attempts that do not go together');
select results_eq(
  $$
    select r.ord, r.code, r.detail ->> 'parameter'
    from routeledger.record_outcomes('[
      {"tenant_id": "tap250", "attempts": [{"status": "failed", "error_type": "x"}]},
      {"tenant_id": "tap250", "attempts": ["m"]}, {"tenant_id": "tap250", "attempts": [{"model_slug": "", "status": "failed", "error_type": "x"}]},
      {"tenant_id": "tap250", "attempts": [{"model_slug": "m", "status": "failed", "error_type": "x"}, {"status": "failed", "error_type": "x"}]}]') r
  $$,
  $$ values (1, 'RL111', 'attempts'), (2, 'RL111', 'attempts'), (3, 'RL111', 'attempts'), (4, 'RL111', 'attempts') $$, 'each attempt names its model');
select throws_ok(
  $$ select routeledger.record_outcome(null) $$, 'RL101', 'a required argument is missing', 'a story needs a tenant');
select results_eq($$ select * from pg_temp.count_all() $$, $$ select * from before_refusals $$, 'and nothing is written');

-- the set form
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.attempts, r.outcome_status, r.cost_usd
    from routeledger.record_outcomes(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id('s2'), 'decision_rule_override', 'quota', 'chosen_model_slug', 'm'),
      '5'::jsonb,
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id('s1'), 'attempts', '[{"model_slug": "m", "status": "failed", "error_type": "x"}]'::jsonb),
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id('s1'), 'attempts', '[{"model_slug": "m", "status": "failed", "error_type": "x"}]'::jsonb),
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id('s1')),
      jsonb_build_object('tenant_id', '', 'id', pg_temp.id('s3')))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('s2'), 0, 'failed', null::numeric), (2, 'refused', 'RL107', null, null, null, null),
      (3, 'accepted', null, pg_temp.id('s1'), 1, 'failed', null), (4, 'replayed', null, pg_temp.id('s1'), 1, 'failed', null),
      (5, 'refused', 'RL301', null, null, null, null), (6, 'refused', 'RL101', null, null, null, null)
  $$,
  'many stories: an answer each, in the order given, whatever becomes of the neighbours');
select is_empty($$ select * from routeledger.record_outcomes('[]') $$, 'none: no answers');
select throws_ok($$ select routeledger.record_outcomes(null) $$, 'RL101', 'a required argument is missing', 'null');
select throws_ok(
  $$ select routeledger.record_outcomes('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'not an array');

-- partitions that nobody made ahead
select lives_ok(
  $$ select routeledger.record_outcome('tap250', pg_temp.id_ago('73 days', 'x'), p_event_at => pg_temp.t0() - interval '73 days') $$,
  'a story of long ago makes its own');
select results_eq(
  $$
    select r.status from routeledger.record_outcomes(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id_ago('73 days', 'y')),
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id_ago('59 days', 'y')),
      jsonb_build_object('tenant_id', 'tap250', 'id', pg_temp.id_ago('800 days', 'y')))) r
  $$,
  $$ values ('accepted'), ('accepted'), ('refused') $$, 'so do many, within the window');
reset role;
select results_eq(
  $$ select routeledger._has_partition(pg_temp.t0() - d * interval '1 day', 'week') from unnest(array[73, 59, 800]) d $$,
  $$ values (true), (true), (false) $$, 'they are there now');
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap250%' $$, 'no orphans');
select is_empty(
  $$ select * from routeledger.reconciliation r where r.tenant_id like 'tap250%' and not r.agrees $$, 'the sums agree');

-- budgets
reset role;
do $$ begin perform pg_temp.at('0'); perform routeledger.set_budget('tap250b', 'b', 0.1, p_period => 'total'); end $$;
set local role routeledger_writer;
do $$
begin
  perform routeledger.record_outcome('tap250b', pg_temp.id('paid'), p_attempts => '[{"model_slug": "m", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.3}]')
  from generate_series(1, 2);
  perform routeledger.record_outcome('tap250b', pg_temp.id('again'), p_traffic_class => 'replay',
    p_attempts => '[{"model_slug": "m", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.3}]');
  perform routeledger.record_outcomes(pg_temp.each('{"tenant_id": "tap250b", "attempts": [{"model_slug": "m", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.02}]}',
    jsonb_build_array(jsonb_build_object('id', pg_temp.id('p1')), jsonb_build_object('id', pg_temp.id('p2')), jsonb_build_object('id', pg_temp.id('p1')))));
end
$$;
reset role;
select is((select b.spent_usd from routeledger.budget_status b where b.tenant_id = 'tap250b'), 0.34, 'what is recorded afterwards is spent once, and never refused');
do $$ begin perform routeledger.drop_budget('tap250b', 'b'); end $$;

select * from finish();
rollback;
