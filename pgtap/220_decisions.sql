-- 220 · insert_decision: the decision and its first attempt, before the provider is called.
begin;
\ir common.psql
select plan(73);

insert into routeledger.models (model_slug, provider) values ('tap220/known', 'tap-provider');

-- what the tests see as the owner of the tables: one decision and its attempts, in full
create function pg_temp.decision(p_name text) returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = 'tap220' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.attempts(p_name text) returns setof routeledger.inferences
language sql stable security definer
as $$ select * from routeledger.inferences i where i.tenant_id = 'tap220' and i.outcome_id = pg_temp.id(p_name) $$;
create function pg_temp.count_all(out decisions bigint, out attempts bigint)
language sql stable security definer
as $$
  select (select count(*) from routeledger.routing_outcomes o where o.tenant_id like 'tap220%'),
    (select count(*) from routeledger.inferences i where i.tenant_id like 'tap220%')
$$;
set local role routeledger_writer;

-- a plain decision
select results_eq(
  $$
    select d.* from routeledger.insert_decision('tap220', pg_temp.id('plain'), p_agent_id => 'agent', p_task_type => 'chat',
      p_candidates => '[{"model_slug": "a", "provider": "pa", "score": 0.9}, {"model_slug": "b", "provider": "pb"}]',
      p_min_quality => 0.5, p_budget_cap_usd => 0.25, p_policy_version => 'v7', p_traffic_class => 'shadow', p_lease => '90 seconds',
      p_attempt_id => pg_temp.id('plain/1')) d
  $$,
  $$
    values (pg_temp.id('plain'), pg_temp.id('plain/1'), 1, 'a', 'pa', 'caller_ranked', null::text, true)
  $$,
  'a ranked decision answers with its first attempt');
select results_eq(
  $$
    select d.agent_id, d.task_type, d.decision_rule, d.decision_rule_override, d.chosen_model_slug, d.candidates, d.min_quality,
      d.budget_cap_usd, d.policy_version, d.traffic_class::text, d.metadata, d.open_attempt_id, d.attempt_count, d.inference_id,
      d.outcome_status::text, d.event_at, d.created_at, d.lease_expires_at, d.completed_at, d.judge_status::text
    from pg_temp.decision('plain') d
  $$,
  $$
    values ('agent', 'chat', 'caller_ranked', null::text, 'a',
      '[{"model_slug": "a", "provider": "pa", "score": 0.9}, {"model_slug": "b", "provider": "pb"}]'::jsonb, 0.5::double precision,
      0.25::numeric, 'v7', 'shadow', null::jsonb, pg_temp.id('plain/1'), 1, null::uuid, null::text, pg_temp.t0(), pg_temp.t0(),
      pg_temp.t0() + interval '90 seconds', null::timestamptz, 'unlabeled')
  $$,
  'it is stored as given, in flight, with its lease');
select results_eq(
  $$
    select i.id, i.attempt_no, i.candidate_no, i.model_slug, i.provider, i.status::text, i.created_at, i.started_at, i.completed_at
    from pg_temp.attempts('plain') i
  $$,
  $$
    values (pg_temp.id('plain/1'), 1, 1, 'a', 'pa', 'routed', pg_temp.t0(), pg_temp.t0(), null::timestamptz)
  $$,
  'with attempt 1 under way');
select results_eq(
  $$
    select d.id is not null, d.attempt_id is not null, routeledger.uuid_v7_time(d.id), routeledger.uuid_v7_time(d.attempt_id), d.created
    from routeledger.insert_decision('tap220', p_candidates => '[{"model_slug": "a", "provider": "pa"}]') d
  $$,
  $$ values (true, true, pg_temp.t0(), pg_temp.t0(), true) $$, 'ids that are not given are made');
select lives_ok(
  $$ select routeledger.insert_decision('tap220', pg_temp.id('default lease'), p_candidates => '["a"]') $$, 'without a lease');
select results_eq(
  $$ select d.lease_expires_at, d.lease from pg_temp.decision('default lease') d $$,
  $$ values (pg_temp.t0() + interval '5 minutes', null::interval) $$, 'the lease of the settings');

-- which model, by which rule
create function pg_temp.choice(p_name text, p_candidates jsonb, p_chosen text default null, p_rule text default null)
returns table (model_slug text, provider text, decision_rule text, outcome_status text, candidate_no integer)
language plpgsql volatile
as $$
declare
  d record;
begin
  select * into d from routeledger.insert_decision('tap220', pg_temp.id(p_name), p_candidates => p_candidates,
    p_chosen_model_slug => p_chosen, p_decision_rule => p_rule);
  return query select d.model_slug, d.provider, d.decision_rule, d.outcome_status,
    (select i.candidate_no from pg_temp.attempts(p_name) i);
end
$$;
select results_eq(
  $$ select * from pg_temp.choice('slugs', '["tap220/known", "b"]') $$,
  $$ values ('tap220/known', 'tap-provider', 'caller_ranked', null::text, 1) $$, 'bare slugs will do; the catalog knows the provider');
select is(
  (select d.candidates from pg_temp.decision('slugs') d), '[{"model_slug": "tap220/known"}, {"model_slug": "b"}]'::jsonb,
  'they are stored as objects');
select results_eq(
  $$ select * from pg_temp.choice('mixed', '[{"model_slug": "a", "provider": "own"}, "b"]') $$,
  $$ values ('a', 'own', 'caller_ranked', null::text, 1) $$, 'slugs and objects may be mixed');
select results_eq(
  $$ select * from pg_temp.choice('dropped', '[{"model_slug": "a", "drop_reason": "too dear"}, {"model_slug": "b"}, {"model_slug": "c"}]') $$,
  $$ values ('b', null::text, 'caller_ranked', null::text, 2) $$, 'the first that was not dropped');
select results_eq(
  $$ select * from pg_temp.choice('null drop', '[{"model_slug": "a", "provider": "p", "drop_reason": null}]') $$,
  $$ values ('a', 'p', 'caller_ranked', null::text, 1) $$, 'a drop_reason of null is none');
select results_eq(
  $$ select * from pg_temp.choice('floor', '[{"model_slug": "a", "drop_reason": "x"}, {"model_slug": "b", "drop_reason": "y"}]') $$,
  $$ values (null::text, null::text, 'no_candidate_clears_floor', 'rejected', null::integer) $$, 'all dropped: rejected');
select results_eq(
  $$ select * from pg_temp.choice('none', '[]') $$,
  $$ values (null::text, null::text, 'no_candidate_enrolled', 'rejected', null::integer) $$, 'none at all: rejected');
select results_eq(
  $$ select * from pg_temp.choice('null', null) $$,
  $$ values (null::text, null::text, 'no_candidate_enrolled', 'rejected', null::integer) $$, 'null is none');
select results_eq(
  $$ select * from pg_temp.choice('word', '["a"]', null, 'no_candidate_clears_floor') $$,
  $$ values (null::text, null::text, 'no_candidate_clears_floor', 'rejected', null::integer) $$, 'the caller''s word that none will do');
select results_eq(
  $$ select * from pg_temp.choice('pinned', '[]', 'a') $$,
  $$ values ('a', null::text, 'pinned', null::text, null::integer) $$, 'a model without a ranking is pinned');
select results_eq(
  $$ select * from pg_temp.choice('chosen', '["a", {"model_slug": "b", "provider": "pb"}]', 'b') $$,
  $$ values ('b', 'pb', 'caller_ranked', null::text, 2) $$, 'a model may be chosen from further down');
select results_eq(
  $$ select * from pg_temp.choice('twice', '[{"model_slug": "b", "provider": "p1", "drop_reason": "x"}, {"model_slug": "b", "provider": "p2"}]', 'b') $$,
  $$ values ('b', 'p2', 'caller_ranked', null::text, 2) $$, 'where it was not dropped, if there is such a place');
select results_eq(
  $$ select * from pg_temp.choice('outside', '["a"]', 'tap220/known', 'my_rule_2') $$,
  $$ values ('tap220/known', 'tap-provider', 'my_rule_2', null::text, null::integer) $$, 'or from outside the ranking, by a rule of one''s own');
select results_eq(
  $$
    select d.outcome_status::text, d.completed_at, d.lease_expires_at, d.attempt_count, d.open_attempt_id, d.chosen_model_slug
    from pg_temp.decision('floor') d
  $$,
  $$ values ('rejected', pg_temp.t0(), null::timestamptz, 0, null::uuid, null::text) $$, 'a rejected decision is closed at once');
select is_empty($$ select i.id from pg_temp.attempts('floor') i $$, 'without an attempt');
select results_eq(
  $$
    select d.model_slug, d.provider, d.decision_rule, d.outcome_status, d.created
    from routeledger.insert_decision('tap220', pg_temp.id('event'), p_candidates => '[{"model_slug": "a", "provider": "pa"}]',
      p_event_at => pg_temp.t0() - interval '1 day', p_metadata => '{"k": 1}') d
  $$,
  $$ values ('a', 'pa', 'caller_ranked', null::text, true) $$, 'a decision that is not plain answers the same');
select results_eq(
  $$ select d.event_at, d.created_at, d.metadata from pg_temp.decision('event') d $$,
  $$ values (pg_temp.t0() - interval '1 day', pg_temp.t0(), '{"k": 1}'::jsonb) $$, 'event_at stands beside created_at');

-- again
select results_eq(
  $$
    select d.* from routeledger.insert_decision('tap220', pg_temp.id('plain'), p_agent_id => 'agent', p_task_type => 'chat',
      p_candidates => '[{"model_slug": "a", "provider": "pa", "score": 0.9}, {"model_slug": "b", "provider": "pb"}]',
      p_min_quality => 0.5, p_budget_cap_usd => 0.25, p_policy_version => 'v7', p_traffic_class => 'shadow', p_lease => '90 seconds',
      p_attempt_id => pg_temp.id('plain/1')) d
  $$,
  $$
    values (pg_temp.id('plain'), pg_temp.id('plain/1'), 1, 'a', 'pa', 'caller_ranked', null::text, false)
  $$,
  'the same call again is a replay');
select results_eq(
  $$ select d.attempt_id, d.created from routeledger.insert_decision('tap220', pg_temp.id('slugs'), p_candidates => '["tap220/known", "b"]') d $$,
  $$ select i.id, false from pg_temp.attempts('slugs') i $$, 'the attempt''s id need not be known');
do $$
begin
  perform pg_temp.at('1 minute');
  perform routeledger.complete_decision('tap220', pg_temp.id('slugs'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
end
$$;
select results_eq(
  $$
    select d.attempt_no, d.outcome_status, d.created
    from routeledger.insert_decision('tap220', pg_temp.id('slugs'), p_candidates => '["tap220/known", "b"]') d
  $$,
  $$ values (1, null::text, false) $$, 'after it was completed it still returns what the first call returned');
select results_eq(
  $$
    select d.attempt_id, d.decision_rule, d.outcome_status, d.created
    from routeledger.insert_decision('tap220', pg_temp.id('none'), p_candidates => '[]') d
  $$,
  $$ values (null::uuid, 'no_candidate_enrolled', 'rejected', false) $$, 'so does a rejected one');
select lives_ok(
  $$ select routeledger.insert_decision('tap220', pg_temp.id('none'), p_attempt_id => pg_temp.id('none/1')) $$,
  'an attempt''s id that was not needed makes no difference');
select results_eq(
  $$
    select r.ord, r.status, r.code, coalesce(r.detail ? 'decided_at', false)
    from routeledger.insert_decisions(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('plain'), 'agent_id', 'agent', 'task_type', 'chat',
        'candidates', '[{"model_slug": "a", "provider": "pa", "score": 0.9}, {"model_slug": "b", "provider": "pb"}]'::jsonb,
        'min_quality', 0.5, 'budget_cap_usd', 0.25, 'policy_version', 'v7', 'traffic_class', 'shadow', 'attempt_id', pg_temp.id('plain/1')),
      jsonb_build_array(
        '{}'::jsonb, '{"event_at": null}'::jsonb, jsonb_build_object('event_at', pg_temp.t0()),
        '{"agent_id": "another"}'::jsonb, '{"agent_id": null}'::jsonb, '{"task_type": "embed"}'::jsonb, '{"candidates": ["a"]}'::jsonb,
        '{"chosen_model_slug": "b"}'::jsonb, '{"decision_rule": "other"}'::jsonb, '{"min_quality": 0.6}'::jsonb, '{"budget_cap_usd": null}'::jsonb,
        '{"policy_version": "v8"}'::jsonb, '{"traffic_class": "production"}'::jsonb, '{"metadata": {"a": 1}}'::jsonb,
        jsonb_build_object('event_at', pg_temp.t0() - interval '1 second'), jsonb_build_object('attempt_id', pg_temp.id('plain/2')),
        '{"lease": "13 minutes"}'::jsonb))) r
    order by r.ord
  $$,
  $$
    select n::integer, case when n <= 3 then 'replayed' else 'refused' end, case when n > 3 then 'RL301' end, n > 3
    from generate_series(1, 17) n
  $$,
  'any other payload under its id is RL301');
select throws_ok(
  $$ select routeledger.insert_decision('tap220', pg_temp.id('plain'), p_candidates => '["z"]') $$, 'RL301',
  'this id already holds a different payload', 'from the single form too');
select results_eq(
  $$ select d.agent_id, d.attempt_count from pg_temp.decision('plain') d $$, $$ values ('agent', 1) $$, 'and changes nothing');
select lives_ok(
  $$ select routeledger.insert_decision('tap220-other', pg_temp.id('plain'), p_candidates => '["z"]') $$, 'the id of another tenant is another id');

-- refusals
select throws_ok(
  $$ select routeledger.insert_decision(null) $$, 'RL101', 'a required argument is missing', 'a decision needs a tenant');
select is(
  (select c.hint from pg_temp.caught($$ select routeledger.insert_decision('') $$) c), 'Pass a value for the parameter named in DETAIL.',
  'the hint says what to do');
create temp table before_refusals as select * from pg_temp.count_all();
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint, r.id
    from routeledger.insert_decisions(pg_temp.each('{"tenant_id": "tap220", "candidates": [{"model_slug": "a", "provider": "p"}]}', jsonb_build_array(
      '{"tenant_id": null}'::jsonb, '{"tenant_id": ""}'::jsonb, jsonb_build_object('tenant_id', repeat('x', 201)),
      jsonb_build_object('agent_id', repeat('x', 201)), jsonb_build_object('task_type', repeat('x', 201)),
      jsonb_build_object('policy_version', repeat('x', 201)), '{"agent_id": ""}'::jsonb, '{"task_type": ""}'::jsonb, '{"policy_version": ""}'::jsonb,
      '{"chosen_model_slug": ""}'::jsonb, jsonb_build_object('chosen_model_slug', repeat('x', 301)),
      '{"decision_rule": "My Rule"}'::jsonb, '{"decision_rule": ""}'::jsonb, '{"decision_rule": "no_candidate_enrolled", "chosen_model_slug": "a"}'::jsonb,
      '{"min_quality": -0.01}'::jsonb, '{"min_quality": 1.01}'::jsonb, '{"min_quality": "NaN"}'::jsonb,
      '{"budget_cap_usd": -1}'::jsonb, '{"budget_cap_usd": "NaN"}'::jsonb, '{"budget_cap_usd": 1e10}'::jsonb,
      '{"traffic_class": "test"}'::jsonb, '{"traffic_class": ""}'::jsonb,
      '{"event_at": "infinity"}'::jsonb, jsonb_build_object('event_at', pg_temp.t0() - interval '11 years'),
      jsonb_build_object('event_at', pg_temp.t0() + interval '2 hours'),
      '{"lease": "0"}'::jsonb, '{"lease": "25 hours"}'::jsonb,
      '{"metadata": []}'::jsonb, jsonb_build_object('metadata', jsonb_build_object('x', repeat('x', 70000))),
      '{"candidates": {}}'::jsonb, '{"candidates": "a"}'::jsonb,
      jsonb_build_object('candidates', (select jsonb_agg('a'::text) from generate_series(1, 501))),
      jsonb_build_object('candidates', jsonb_build_array(jsonb_build_object('model_slug', 'a', 'x', repeat('x', 300000)))),
      '{"candidates": [1]}'::jsonb, '{"candidates": [null]}'::jsonb, '{"candidates": [["a"]]}'::jsonb, '{"candidates": [""]}'::jsonb,
      '{"candidates": [{}]}'::jsonb, '{"candidates": ["a", {"model_slug": ""}]}'::jsonb, '{"candidates": [{"model_slug": 5}]}'::jsonb,
      '{"candidates": [{"model_slug": ["a"], "provider": "p"}]}'::jsonb, '{"candidates": [{"model_slug": null}]}'::jsonb,
      jsonb_build_object('candidates', jsonb_build_array(repeat('x', 301))),
      '{"candidates": [], "decision_rule": "my_rule"}'::jsonb,
      '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"id": "00000000-0000-0000-0000-000000000000"}'::jsonb,
      '{"id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"}'::jsonb, '{"id": "06910800-0000-7000-8000-000000000000"}'::jsonb,
      '{"attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb,
      '{"model": "a"}'::jsonb, '{"min_quality": "high"}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
    order by r.ord
  $$,
  $$
    select n::integer, 'refused', c, p, true, null::uuid
    from unnest(array[
      'RL101 tenant_id', 'RL101 tenant_id', 'RL108 tenant_id',
      'RL108 agent_id', 'RL108 task_type',
      'RL108 policy_version', 'RL103 agent_id', 'RL103 task_type', 'RL103 policy_version',
      'RL103 chosen_model_slug', 'RL108 chosen_model_slug',
      'RL102 decision_rule', 'RL102 decision_rule', 'RL102 decision_rule',
      'RL103 min_quality', 'RL103 min_quality', 'RL103 min_quality',
      'RL103 budget_cap_usd', 'RL103 budget_cap_usd', 'RL103 budget_cap_usd',
      'RL102 traffic_class', 'RL102 traffic_class',
      'RL109 event_at', 'RL109 event_at', 'RL109 event_at',
      'RL103 lease', 'RL103 lease',
      'RL107 metadata', 'RL108 metadata',
      'RL106 candidates', 'RL106 candidates',
      'RL502 candidates', 'RL108 candidates',
      'RL106 candidates', 'RL106 candidates', 'RL106 candidates', 'RL106 candidates',
      'RL106 candidates', 'RL106 candidates', 'RL106 candidates', 'RL106 candidates', 'RL106 candidates',
      'RL108 candidates', 'RL101 chosen_model_slug',
      'RL104 id', 'RL104 id', 'RL105 id', 'RL105 id', 'RL104 attempt_id', 'RL107 model', 'RL107 row'
    ]) with ordinality w (fault, n)
    cross join lateral (select split_part(fault, ' ', 1), split_part(fault, ' ', 2)) f (c, p)
  $$,
  'each bad argument is refused by name');
select results_eq($$ select * from pg_temp.count_all() $$, $$ select * from before_refusals $$, 'and nothing is written');

-- the limits are allowed
select results_eq(
  $$
    select r.status, r.code
    from routeledger.insert_decisions(pg_temp.each('{"tenant_id": "tap220", "candidates": ["a"]}', jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap220' || repeat('x', 194), 'agent_id', repeat('x', 200), 'task_type', repeat('x', 200),
        'policy_version', repeat('x', 200), 'chosen_model_slug', repeat('x', 300), 'decision_rule', 'x' || repeat('_', 62)),
      '{"min_quality": 0, "budget_cap_usd": 0, "lease": "1 second"}'::jsonb,
      '{"min_quality": 1, "budget_cap_usd": 1000000000, "lease": "24 hours"}'::jsonb,
      jsonb_build_object('id', routeledger.uuid_v7(), 'event_at', pg_temp.t0() + interval '1 hour'),
      jsonb_build_object('candidates', (select jsonb_agg('a'::text) from generate_series(1, 500)))))) r
  $$,
  $$ select 'accepted', null::text from generate_series(1, 5) $$, 'what is just within bounds is accepted');

-- the set form
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.attempt_id, r.attempt_no, r.model_slug, r.provider, r.decision_rule, r.outcome_status
    from routeledger.insert_decisions(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('s3'), 'attempt_id', pg_temp.id('s3/1'), 'candidates', '["c"]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('s1'), 'attempt_id', pg_temp.id('s1/1'),
        'candidates', '[{"model_slug": "a", "provider": "pa"}]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('s2')),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('s1'), 'candidates', '[{"model_slug": "a", "provider": "pa"}]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('s1'), 'candidates', '["b"]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('plain'), 'candidates', '["b"]'::jsonb),
      '17'::jsonb,
      jsonb_build_object('tenant_id', '', 'id', pg_temp.id('s4')))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('s3'), pg_temp.id('s3/1'), 1, 'c', null::text, 'caller_ranked', null::text),
      (2, 'accepted', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 1, 'a', 'pa', 'caller_ranked', null),
      (3, 'accepted', null, pg_temp.id('s2'), null, null, null, null, 'no_candidate_enrolled', 'rejected'),
      (4, 'replayed', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 1, 'a', 'pa', 'caller_ranked', null),
      (5, 'refused', 'RL301', null, null, null, null, null, null, null),
      (6, 'refused', 'RL301', null, null, null, null, null, null, null),
      (7, 'refused', 'RL107', null, null, null, null, null, null, null),
      (8, 'refused', 'RL101', null, null, null, null, null, null, null)
  $$,
  'many decisions: an answer each, in the order given, whatever becomes of the neighbours');
select is_empty($$ select * from routeledger.insert_decisions('[]') $$, 'none: no answers');
select results_eq(
  $$
    select r.ord, r.status, r.model_slug
    from routeledger.insert_decisions(jsonb_build_array(jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id('one'), 'candidates', '["a"]'::jsonb))) r
  $$,
  $$ values (1, 'accepted', 'a') $$, 'one');
select throws_ok(
  $$ select routeledger.insert_decisions(null) $$, 'RL101', 'a required argument is missing', 'null');
select throws_ok(
  $$ select routeledger.insert_decisions('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'not an array');
select throws_ok(
  $$ select routeledger.insert_decisions((select jsonb_agg('{}'::jsonb) from generate_series(1, 10001))) $$, 'RL501',
  'too many rows in one call', 'too many');
select results_eq(
  $$
    select r.status, count(*), count(distinct r.id), count(distinct r.attempt_id), min(r.ord), max(r.ord)
    from routeledger.insert_decisions(
      (select jsonb_agg(jsonb_build_object('tenant_id', 'tap220', 'candidates', '["a"]'::jsonb)) from generate_series(1, 500))) r
    group by 1
  $$,
  $$ values ('accepted', 500::bigint, 500::bigint, 500::bigint, 1, 500) $$, 'five hundred without ids get one each');

-- the set form is the single form, row by row
reset role;
create temp table story (n integer primary key, given jsonb not null);
grant select on story to public;
insert into story
select row_number() over (), jsonb_build_object('candidates', c.candidates) || d.more
from (values ('["a", "b"]'::jsonb), ('[{"model_slug": "a", "provider": "p"}]'), ('[{"model_slug": "a", "drop_reason": "x"}, {"model_slug": "b", "provider": "q"}]'),
  ('[{"model_slug": "a", "drop_reason": "x"}]'), ('[]')) c (candidates)
cross join (values ('{}'::jsonb), ('{"chosen_model_slug": "b"}'), ('{"decision_rule": "no_candidate_enrolled"}'), ('{"decision_rule": "own"}'),
  ('{"metadata": {"a": 1}, "traffic_class": "replay", "lease": "1 hour"}'), ('{"min_quality": 2}'), ('{"traffic_class": null}')) d (more);
create function pg_temp.singly(p_n integer, p_given jsonb) returns text
language plpgsql volatile
as $$
declare
  d record;
begin
  select * into d from routeledger.insert_decision('tap220-single', pg_temp.id('story ' || p_n),
    p_candidates => p_given -> 'candidates', p_chosen_model_slug => p_given ->> 'chosen_model_slug', p_decision_rule => p_given ->> 'decision_rule',
    p_min_quality => (p_given ->> 'min_quality')::double precision, p_traffic_class => p_given ->> 'traffic_class',
    p_lease => (p_given ->> 'lease')::interval, p_metadata => p_given -> 'metadata', p_attempt_id => pg_temp.id('story/1 ' || p_n));
  return concat_ws('|', case when d.created then 'accepted' else 'replayed' end, d.attempt_no, d.model_slug, d.provider, d.decision_rule, d.outcome_status);
exception
  when others then
    return 'refused|' || sqlstate;
end
$$;
create function pg_temp.together() returns table (n integer, answer text)
language sql volatile
as $$
  select r.ord, concat_ws('|', r.status, r.code, r.attempt_no, r.model_slug, r.provider, r.decision_rule, r.outcome_status)
  from routeledger.insert_decisions((
    select jsonb_agg(s.given || jsonb_build_object('tenant_id', 'tap220-many', 'id', pg_temp.id('story ' || s.n), 'attempt_id', pg_temp.id('story/1 ' || s.n)) order by s.n)
    from story s)) r
$$;
set local role routeledger_writer;
select results_eq(
  $$ select * from pg_temp.together() $$, $$ select s.n, pg_temp.singly(s.n, s.given) from story s order by s.n $$,
  'together as one by one: the same answers');
select results_eq(
  $$ select * from pg_temp.together() $$, $$ select s.n, pg_temp.singly(s.n, s.given) from story s order by s.n $$, 'and the same again');
reset role;
select results_eq(
  $$ select to_jsonb(o) - 'tenant_id' from routeledger.routing_outcomes o where o.tenant_id = 'tap220-many' order by o.id $$,
  $$ select to_jsonb(o) - 'tenant_id' from routeledger.routing_outcomes o where o.tenant_id = 'tap220-single' order by o.id $$,
  'and the same rows');
select results_eq(
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap220-many' order by i.outcome_id $$,
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap220-single' order by i.outcome_id $$,
  'with the same attempts');

-- partitions that nobody made ahead
do $$ begin perform pg_temp.at('0'); end $$;
select is(
  routeledger._has_partition(pg_temp.t0() - interval '80 days', 'week') or routeledger._has_partition(pg_temp.t0() - interval '66 days', 'week'),
  false, 'nothing is there yet for eighty days ago');
create function pg_temp.id_ago(p_ago interval, p_name text) returns uuid
language sql volatile security definer
as $$ select (left(routeledger._uuid_v7_at(pg_temp.t0() - p_ago)::text, 15) || right(pg_temp.id(p_name)::text, 21))::uuid $$;
set local role routeledger_writer;
select lives_ok(
  $$ select routeledger.insert_decision('tap220', pg_temp.id_ago('80 days', 'x'), p_candidates => '["a"]') $$, 'a late decision makes its own');
select results_eq(
  $$
    select r.status from routeledger.insert_decisions(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id_ago('80 days', 'y'), 'candidates', '["a"]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id_ago('66 days', 'y'), 'candidates', '["a"]'::jsonb),
      jsonb_build_object('tenant_id', 'tap220', 'id', pg_temp.id_ago('66 days', 'z'), 'candidates', '["a"]'::jsonb))) r
  $$,
  $$ values ('accepted'), ('accepted'), ('accepted') $$, 'so do many');
reset role;
select ok(
  routeledger._has_partition(pg_temp.t0() - interval '80 days', 'week') and routeledger._has_partition(pg_temp.t0() - interval '66 days', 'week'),
  'they are there now');

select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap220%' $$, 'no orphans');
select is_empty(
  $$ select * from routeledger.reconciliation r where r.tenant_id like 'tap220%' and not r.agrees $$, 'the sums agree');

-- budgets
reset role;
do $$
begin
  perform pg_temp.at('0');
  perform routeledger.set_budget('tap220b', 'tenant', 1);
  perform routeledger.set_budget('tap220b', 'keys', 0.3, 'key', '*');
end
$$;
create function pg_temp.money() returns text language sql volatile security definer
as $$
  select string_agg(format('%s%s %s', b.name, ' ' || nullif(b.subject, ''), trim_scale(b.reserved_usd)), ', ' order by b.name, b.subject)
  from routeledger.budget_status b where b.tenant_id = 'tap220b'
$$;
create function pg_temp.held(p_name text) returns boolean language sql volatile security definer
as $$ select o.holds_budget from routeledger.routing_outcomes o where o.tenant_id like 'tap220%' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.buy(p_name text, p_cost text, p_key text default null, p_cap numeric default null) returns boolean language sql volatile
as $$
  select d.created
  from routeledger.insert_decision('tap220b', pg_temp.id(p_name), p_candidates => format('[{"model_slug": "m", "projected_cost_usd": %s}]', p_cost)::jsonb,
    p_budget_cap_usd => p_cap, p_budget_key => p_key) d
$$;
set local role routeledger_writer;
select is(pg_temp.buy('b1', '0.2', 'k'), true, 'a decision reserves what its candidate is projected to cost');
select is(pg_temp.buy('b2', '"much"', null, 0.05), true, 'or its cap, where that is not a number');
select is(pg_temp.buy('b3', '-1'), true, 'or what is assumed');
select is(pg_temp.money(), 'keys k 0.2, tenant 0.26', 'in each budget that concerns it');
select is(pg_temp.buy('b1', '0.2', 'k'), false, 'a replay reserves nothing');
select is(pg_temp.money(), 'keys k 0.2, tenant 0.26', 'again');
select throws_ok($$ select pg_temp.buy('b4', '0.2', 'k') $$, 'RL504', 'a budget does not cover this decision', 'a budget that lacks refuses');
select is(
  (select c.detail from pg_temp.caught($$ select pg_temp.buy('b4', '0.2', 'k') $$) c),
  jsonb_build_object('id', pg_temp.id('b4'), 'tenant_id', 'tap220b', 'budget', 'keys', 'scope', 'key', 'subject', 'k', 'period', 'day', 'limit_usd', 0.3,
    'remaining_usd', 0.1, 'wanted_usd', 0.2, 'resets_at', date_trunc('day', pg_temp.t0()) + interval '1 day'), 'DETAIL says which, and until when');
select is(pg_temp.held('b4'), null, 'and nothing is written');
select is(pg_temp.buy('b1', '0.2', 'k'), false, 'what is known is known, however short the budget');
select throws_ok($$ select pg_temp.buy('b1', '0.25', 'k') $$, 'RL301', 'this id already holds a different payload', 'and what differs differs');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'budget', r.id
    from routeledger.insert_decisions(pg_temp.each(
      '{"tenant_id": "tap220b", "budget_key": "k", "candidates": [{"model_slug": "m", "projected_cost_usd": 0.06}]}',
      jsonb_build_array(
        jsonb_build_object('id', pg_temp.id('c1')), jsonb_build_object('id', pg_temp.id('c2')), jsonb_build_object('id', pg_temp.id('c3'), 'budget_key', 'other'),
        jsonb_build_object('id', pg_temp.id('c4'), 'candidates', '[{"model_slug": "m", "projected_cost_usd": 5}]'::jsonb),
        jsonb_build_object('id', pg_temp.id('b1'), 'candidates', '[{"model_slug": "m", "projected_cost_usd": 0.2}]'::jsonb),
        jsonb_build_object('id', pg_temp.id('c5'), 'traffic_class', 'replay'), jsonb_build_object('id', pg_temp.id('c6'), 'candidates', '[]'::jsonb),
        jsonb_build_object('id', pg_temp.id('c7'), 'tenant_id', 'tap220')))) r
    order by 1
  $$,
  $$
    select x.ord, x.status, x.code, x.budget, case when x.name is not null then pg_temp.id(x.name) end
    from (values (1, 'accepted', null, null, 'c1'), (2, 'refused', 'RL504', 'keys', null), (3, 'accepted', null, null, 'c3'), (4, 'refused', 'RL504', 'keys', null),
      (5, 'replayed', null, null, 'b1'), (6, 'accepted', null, null, 'c5'), (7, 'accepted', null, null, 'c6'), (8, 'accepted', null, null, 'c7')
    ) x (ord, status, code, budget, name)
    where pg_temp.id('c1') < pg_temp.id('c2')
    union all
    select x.ord, x.status, x.code, x.budget, case when x.name is not null then pg_temp.id(x.name) end
    from (values (1, 'refused', 'RL504', 'keys', null), (2, 'accepted', null, null, 'c2'), (3, 'accepted', null, null, 'c3'), (4, 'refused', 'RL504', 'keys', null),
      (5, 'replayed', null, null, 'b1'), (6, 'accepted', null, null, 'c5'), (7, 'accepted', null, null, 'c6'), (8, 'accepted', null, null, 'c7')
    ) x (ord, status, code, budget, name)
    where pg_temp.id('c1') > pg_temp.id('c2')
    order by 1
  $$,
  'in a batch each is covered or refused, in the order of their ids; replays of traffic, rejections and other tenants are not concerned');
select is(pg_temp.money(), 'keys k 0.26, keys other 0.06, tenant 0.38', 'and reserves what was accepted');
select results_eq(
  $$ select n, pg_temp.held(n) from unnest(array['b1', 'c3', 'c5', 'c6', 'c7']) n $$,
  $$ values ('b1', true), ('c3', true), ('c5', false), ('c6', false), ('c7', false) $$, 'a decision knows whether it holds anything');
select results_eq(
  $$
    select r.ord, r.status, r.code
    from routeledger.insert_decisions(jsonb_build_array(jsonb_build_object('tenant_id', 'tap220b', 'budget_key', 'k', 'id', pg_temp.id('c8'),
      'candidates', '[{"model_slug": "m", "projected_cost_usd": 0.06}]'::jsonb))) r
  $$,
  $$ values (1, 'refused', 'RL504') $$, 'a batch of one likewise');

-- what a router says of its choice
select results_eq(
  $$
    select d.created
    from generate_series(1, 2) n
    cross join lateral routeledger.insert_decision('tap220', pg_temp.id('routed'), p_candidates => '["m"]', p_deadline => '20 seconds', p_ruleset_hash => 'abc',
      p_propensity => 0.25 + 0 * n) d
  $$,
  $$ values (true), (false) $$, 'deadline, rules and propensity are part of a decision');
reset role;
select results_eq(
  $$ select o.deadline_at, o.ruleset_hash, o.propensity from routeledger.routing_outcomes o where o.tenant_id = 'tap220' and o.id = pg_temp.id('routed') $$,
  $$ values (pg_temp.t0() + interval '20 seconds', 'abc', 0.25::double precision) $$, 'and kept with it');
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.insert_decision('tap220', pg_temp.id('routed'), p_candidates => '["m"]', p_deadline => '21 seconds', p_ruleset_hash => 'abc', p_propensity => 0.25) $$,
  'RL301', 'this id already holds a different payload', 'another deadline is another decision');
select results_eq(
  $$
    select r.ord, r.code, r.detail ->> 'parameter'
    from routeledger.insert_decisions(pg_temp.each('{"tenant_id": "tap220", "candidates": ["m"]}', jsonb_build_array(
      '{"budget_key": ""}'::jsonb, jsonb_build_object('budget_key', repeat('x', 201)), '{"deadline": "-1 second"}'::jsonb, '{"deadline": "31 days"}'::jsonb,
      '{"ruleset_hash": ""}'::jsonb, jsonb_build_object('ruleset_hash', repeat('x', 201)), '{"propensity": 1.01}'::jsonb, '{"propensity": "NaN"}'::jsonb))) r
  $$,
  $$
    values (1, 'RL103', 'budget_key'), (2, 'RL108', 'budget_key'), (3, 'RL103', 'deadline'), (4, 'RL103', 'deadline'), (5, 'RL103', 'ruleset_hash'),
      (6, 'RL108', 'ruleset_hash'), (7, 'RL103', 'propensity'), (8, 'RL103', 'propensity')
  $$,
  'each has its range');
reset role;

select * from finish();
rollback;
