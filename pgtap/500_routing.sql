-- 500 · Routing: who is acceptable, which is the better buy, and what is written of it.
begin;
\ir common.psql
create role tap500_bound in role routeledger_writer, routeledger_reader;
do $$
begin
  perform routeledger.grant_tenant('tap500_bound', 'tap500-b');
  perform routeledger.import_models('[
    {"model_slug": "a/dear", "provider": "p", "brand_slug": "a", "q_prior": 0.95, "input_usd_per_mtok": 10, "output_usd_per_mtok": 40, "expected_latency_ms": 3000},
    {"model_slug": "a/good", "provider": "p", "brand_slug": "a", "q_prior": 0.9, "input_usd_per_mtok": 1, "output_usd_per_mtok": 4, "expected_latency_ms": 800},
    {"model_slug": "a/weak", "provider": "p", "brand_slug": "a", "q_prior": 0.6, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4, "expected_latency_ms": 200},
    {"model_slug": "b/fair", "provider": "q", "brand_slug": "b", "q_prior": 0.8, "input_usd_per_mtok": 2, "output_usd_per_mtok": 2},
    {"model_slug": "b/half", "provider": "q", "brand_slug": "b", "q_prior": 1, "input_usd_per_mtok": 1},
    {"model_slug": "b/nobody", "provider": "q", "brand_slug": "b", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    {"model_slug": "c/off", "provider": "r", "brand_slug": "c", "q_prior": 1, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "enrolled": false},
    {"model_slug": "c/short", "provider": "r", "brand_slug": "c", "q_prior": 0.9, "input_usd_per_mtok": 1.5, "output_usd_per_mtok": 4, "max_input_tokens": 2000},
    {"model_slug": "x/poison", "provider": "r", "base_model": "poison", "q_prior": 1, "input_usd_per_mtok": 0.01, "output_usd_per_mtok": 0.01},
    {"model_slug": "y/poison", "provider": "r", "base_model": "poison", "q_prior": 0.1, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    {"model_slug": "z/poison", "provider": "r", "base_model": "poison", "q_prior": 0.1, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}]');
end
$$;
select plan(113);

-- the quantile
select results_eq(
  $$ select round(routeledger._normal_quantile(p)::numeric, 14) from unnest(array[0.5, 0.6, 0.9, 0.925, 0.95, 0.975, 0.99, 0.9999]) p $$,
  array[0, 0.25334710313580, 1.28155156554460, 1.43953147093846, 1.64485362695147, 1.95996398454005, 2.32634787404084, 3.71901648545571],
  'quantiles of the normal distribution');

-- who is where, and why
create function pg_temp.ranked(
  p_overrides jsonb default '{}', p_candidates text[] default null, p_task_type text default 'chat', p_input bigint default null, p_tenant text default 'tap500')
returns text language sql volatile
as $$
  select string_agg(coalesce(r.rank::text, r.drop_reason) || ' ' || r.model_slug, ', ' order by n)
  from routeledger.rank_candidates(p_tenant, p_task_type, 'default', p_candidates, p_overrides, p_input) with ordinality r (
    rank, model_slug, provider, drop_reason, quality, quality_source, samples, projected_cost_usd, cost_per_success_usd, expected_latency_ms, ranking_score,
    ruleset_hash, n)
$$;
set local role routeledger_reader;
select is(
  pg_temp.ranked(),
  '1 a/good, 2 b/fair, 3 c/short, 4 a/dear, below_quality_floor a/weak, below_quality_floor y/poison, below_quality_floor z/poison, not_enrolled_no_q_prior b/nobody, '
  'price_flagged x/poison, not_enrolled_no_price b/half',
  'the cheapest that clears the floor comes first; a price out of line does not win, an unknown one is not free');
select is(
  pg_temp.ranked(p_candidates => array['c/off', 'a/weak', 'nowhere', 'a/dear', 'a/dear']),
  '1 a/dear, below_quality_floor a/weak, m_allowed_veto c/off, not_enrolled_no_price nowhere', 'of those named, each once');
select is(pg_temp.ranked(p_candidates => array[]::text[]), null, 'of none: none');
select results_eq(
  $$
    select rank, model_slug, provider, drop_reason, quality, quality_source, samples, trim_scale(projected_cost_usd), trim_scale(round(cost_per_success_usd, 9)),
      expected_latency_ms, trim_scale(ranking_score), length(ruleset_hash)
    from routeledger.rank_candidates('tap500', 'chat', p_candidates => array['a/good', 'b/half', 'a/weak'])
  $$,
  $$
    values
      (1, 'a/good', 'p', null, 0.9::double precision, 'prior', 0::bigint, 0.003, 0.003333333, 800::double precision, 0.003, 64),
      (null, 'a/weak', 'p', 'below_quality_floor', 0.6, 'prior', 0, 0.0003, 0.0005, 200, null, 64),
      (null, 'b/half', 'q', 'not_enrolled_no_price', 1, 'prior', 0, null, null, null, null, 64)
  $$,
  'all its numbers');
select is(pg_temp.ranked('{"min_quality": 0.9}', array['a/good', 'b/fair', 'a/dear']), '1 a/good, 2 a/dear, below_quality_floor b/fair', 'the floor itself is enough');
select is(
  pg_temp.ranked('{"budget_cap_usd": 0.003}', array['a/good', 'b/fair', 'a/dear']), '1 a/good, 2 b/fair, exceeds_budget_cap a/dear', 'so is the cap');
select is(
  pg_temp.ranked('{"budget_cap_usd": 0.002999999}', array['a/good', 'b/fair', 'a/dear']), 'exceeds_budget_cap a/dear, exceeds_budget_cap a/good, exceeds_budget_cap b/fair',
  'a little above it is not');
select is(
  pg_temp.ranked('{"latency_cap_ms": 800}', array['a/good', 'b/fair', 'a/dear']), '1 a/good, 2 b/fair, exceeds_latency_cap a/dear',
  'an unknown latency exceeds no cap');
select is(
  pg_temp.ranked('{"deny": ["a/good"], "allow": ["a/good", "b/fair"]}', array['a/good', 'b/fair', 'a/dear']),
  '1 b/fair, m_allowed_veto a/good, m_allowed_veto a/dear', 'allowed is what is allowed and not denied');
select is(pg_temp.ranked(p_candidates => array['c/short'], p_input => 2000), '1 c/short', 'a prompt that fits');
select is(pg_temp.ranked(p_candidates => array['c/short'], p_input => 2001), 'm_allowed_veto c/short', 'and one that does not');
select is(
  pg_temp.ranked('{"budget_cap_usd": 0, "latency_cap_ms": 0, "min_quality": 1, "deny": ["a/dear"]}', array['a/dear']), 'm_allowed_veto a/dear',
  'the first check that fails is the one that counts');
select is(
  pg_temp.ranked('{"ordering": "expected_cost_per_success"}', array['a/good', 'b/fair']), '1 a/good, 2 b/fair', 'of equal price the better one');
select is(pg_temp.ranked('{"min_quality": 0}', array['y/poison', 'z/poison']), '1 y/poison, 2 z/poison', 'of equals the first by name');
select is(pg_temp.ranked('{"min_quality": 0}', array['z/poison', 'y/poison']), '1 y/poison, 2 z/poison', 'however they were named');
select is(
  pg_temp.ranked('{"ordering": "expected_cost_per_success", "min_quality": 0.5}', array['a/weak', 'a/good', 'a/dear', 'c/short']),
  '1 a/weak, 2 a/good, 3 c/short, 4 a/dear', 'dearer per success comes later');
select is(
  pg_temp.ranked('{"ordering": "expected_total_cost", "min_quality": 0.5, "failure_cost_usd": 0.005}', array['a/weak', 'a/good', 'a/dear', 'c/short']),
  '1 a/weak, 2 a/good, 3 c/short, 4 a/dear', 'where little depends on it the cheap one does');
select is(
  pg_temp.ranked('{"ordering": "expected_total_cost", "min_quality": 0.5, "failure_cost_usd": 0.1}', array['a/weak', 'a/good', 'a/dear', 'c/short']),
  '1 a/good, 2 c/short, 3 a/dear, 4 a/weak', 'where more does, a better one');
select is(
  (select trim_scale(ranking_score) from routeledger.rank_candidates('tap500', p_candidates => array['a/good'], p_overrides => '{"ordering": "expected_total_cost", "failure_cost_usd": 0.1}')),
  0.013, 'what it costs, and one failure in ten');
select is(
  pg_temp.ranked('{"diversity_penalty": 0.4, "min_quality": 0.5}', array['a/weak', 'a/good', 'c/short', 'a/dear']),
  '1 a/weak, 2 c/short, 3 a/good, 4 a/dear', 'the second of a maker counts dearer');
select is(
  (select round(ranking_score, 6) from routeledger.rank_candidates('tap500', p_candidates => array['a/weak', 'a/good', 'a/dear'], p_overrides => '{"diversity_penalty": 0.5, "min_quality": 0}') where model_slug = 'a/dear'),
  0.0675, 'the third by (1 + penalty) squared');
select is(
  pg_temp.ranked('{"input_tokens": 0, "output_tokens": 1000}', array['a/good', 'b/fair']), '1 b/fair, 2 a/good', 'by the tokens that the policy assumes');
select is(pg_temp.ranked(p_candidates => array['a/good', 'b/fair'], p_input => 100000), '1 a/good, 2 b/fair', 'or those that the caller knows of');

-- measured
reset role;
create function pg_temp.bucket(p_model text, p_days integer, p_n integer, p_reward double precision, p_task text default 'chat', p_more jsonb default '{}') returns void
language sql volatile
as $$
  select from routeledger.persist_model_performance(jsonb_build_array(jsonb_build_object(
    'tenant_id', 'tap500', 'model_key', p_model, 'task_type', p_task, 'day', (pg_temp.t0() at time zone 'UTC')::date - p_days,
    'n', p_n, 'reward_n', p_n, 'reward_sum', p_reward) || p_more))
$$;
create function pg_temp.quality(p_model text, p_overrides jsonb default '{}', p_task text default 'chat') returns text
language sql volatile
as $$
  select concat_ws(' ', coalesce(r.rank::text, r.drop_reason), round(r.quality::numeric, 4), r.quality_source, r.samples)
  from routeledger.rank_candidates('tap500', p_task, p_candidates => array[p_model], p_overrides => p_overrides) r
$$;
do $$ begin perform pg_temp.bucket('a/weak', 0, 29, 29); end $$;
select is(pg_temp.quality('a/weak'), 'below_quality_floor 0.6000 prior 29', 'twenty-nine rewards say nothing yet');
do $$ begin perform pg_temp.bucket('a/weak', 6, 1, 0); end $$;
select is(pg_temp.quality('a/weak'), '1 0.9667 measured 30', 'thirty do: the prior has had its day');
do $$ begin perform pg_temp.bucket('a/weak', 7, 1000, 0); end $$;
select is(pg_temp.quality('a/weak'), '1 0.9667 measured 30', 'what is older than the window does not count');
select is(pg_temp.quality('a/weak', '{"window_days": 8}'), 'below_quality_floor 0.0282 measured 1030', 'unless the window is wider');
select is(pg_temp.quality('a/weak', '{"min_samples": 31}'), 'below_quality_floor 0.6000 prior 30', 'or more are asked for');
select is(pg_temp.quality('a/weak', '{}', 'code'), 'below_quality_floor 0.6000 prior 0', 'another task is another matter');
select is(pg_temp.quality('a/weak', '{}', null), 'below_quality_floor 0.6000 prior 0', 'and so is none');
do $$ begin perform pg_temp.bucket('a/weak', 0, 100, 81, null); end $$;
select is(pg_temp.quality('a/weak', '{}', null), '1 0.8100 measured 100', 'which has its own buckets');
select is(pg_temp.quality('a/weak', '{"floor": "lower_bound"}', null), 'below_quality_floor 0.7376 lower_bound 100', 'a hundred are not sure of 0.8');
select is(pg_temp.quality('a/weak', '{"floor": "lower_bound", "confidence": 0.5}', null), '1 0.8100 lower_bound 100', 'with even odds they are');
select is(
  (select round(cost_per_success_usd, 9) from routeledger.rank_candidates('tap500', p_candidates => array['a/weak'], p_overrides => '{"floor": "lower_bound", "min_quality": 0.7}')),
  round(0.0003 / 0.81, 9), 'what a success costs goes by the mean all the same: a bound is for the floor');
select is(pg_temp.quality('b/fair', '{"floor": "lower_bound"}'), '1 0.8000 prior 0', 'a prior is what it is');
do $$ begin perform pg_temp.bucket('b/nobody', 0, 40, 38); end $$;
select is(pg_temp.quality('b/nobody'), '1 0.9500 measured 40', 'measured, a model needs no prior');
do $$ begin perform pg_temp.bucket('a/dear', 0, 40, 400), pg_temp.bucket('a/good', 0, 40, -4); end $$;
select is(pg_temp.quality('a/dear'), '1 0.9500 prior 40', 'rewards of 10 each are no quality');
select is(pg_temp.quality('a/good'), '1 0.9000 prior 40', 'nor are those below zero');
select is(
  (select samples from routeledger.rank_candidates('tap500-other', 'chat', p_candidates => array['b/nobody'])), 0::bigint, 'what one tenant measured is its own');
do $$ begin perform pg_temp.bucket('b/fair', 0, 40, 36, 'chat', '{"latency_n": 40, "latency_sum_ms": 36000, "cost_n": 40, "cost_usd": 399600, "input_tokens": 0, "output_tokens": 0}'); end $$;
select is(
  (select concat_ws(' ', rank, expected_latency_ms, trim_scale(projected_cost_usd)) from routeledger.rank_candidates('tap500', 'chat', p_candidates => array['b/fair'])),
  '1 900 0.003', 'latencies are measured too; that calls are said to have cost 9,990 USD each, or to have had no tokens, changes nothing');
select is(pg_temp.ranked('{"latency_cap_ms": 899}', array['b/fair']), 'exceeds_latency_cap b/fair', 'measured, it exceeds the cap');
do $$ begin perform pg_temp.bucket('c/short', 0, 40, 0); end $$;
select is(
  pg_temp.ranked('{"ordering": "expected_cost_per_success", "min_quality": 0}', array['c/short', 'a/dear']), '1 a/dear, 2 c/short',
  'what never succeeds is never cheap');

-- at another time
select is(
  (select trim_scale(projected_cost_usd) from routeledger.rank_candidates('tap500', p_candidates => array['a/dear'], p_at => '1971-01-01 00:00:00+00')), 0.03, 'a price that holds since ever');
do $$
begin
  perform routeledger.import_models(jsonb_build_array(
    '{"model_slug": "d/dated", "q_prior": 0.9, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}'::jsonb || jsonb_build_object('valid_from', pg_temp.t0() - interval '10 days'),
    '{"model_slug": "d/dated", "input_usd_per_mtok": 2, "output_usd_per_mtok": 2}'::jsonb || jsonb_build_object('valid_from', pg_temp.t0() + interval '1 day')));
end
$$;
select results_eq(
  $$
    select (select coalesce(trim_scale(projected_cost_usd)::text, drop_reason) from routeledger.rank_candidates('tap500', p_candidates => array['d/dated'], p_at => pg_temp.t0() + d * interval '1 day'))
    from unnest(array[-11, -10, 0, 1]) with ordinality x (d, o) order by o
  $$,
  array['not_enrolled_no_price', '0.0015', '0.0015', '0.003'], 'each price in its time');
select is(
  (select quality_source from routeledger.rank_candidates('tap500', 'chat', p_candidates => array['b/nobody'], p_at => pg_temp.t0() + interval '7 days')), null,
  'measurements age');

-- the rules in force
select is(
  (select count(distinct h) from (
    select ruleset_hash from routeledger.rank_candidates('tap500')
    union all select ruleset_hash from routeledger.rank_candidates('tap500', 'chat', 'default@1', p_overrides => '{"min_quality": 0.80}')
    union all select p.ruleset_hash from routeledger.routing_policies p where p.name = 'default') x (h)),
  1::bigint, 'the same rules have the same hash');
select isnt(
  (select distinct ruleset_hash from routeledger.rank_candidates('tap500')), (select distinct ruleset_hash from routeledger.rank_candidates('tap500', p_overrides => '{"min_quality": 0.81}')),
  'others have another');

-- what is refused
create function pg_temp.fault(p_sql text) returns text language sql volatile
as $$ select concat_ws(' ', c.code, coalesce(c.detail ->> 'parameter', c.detail ->> 'policy', c.detail ->> 'rule')) from pg_temp.caught(p_sql) c $$;
select results_eq(
  $$
    select pg_temp.fault(format('select from routeledger.%s(%s)', f, a))
    from unnest(array['rank_candidates', 'route']) with ordinality x (f, n)
    cross join unnest(array[
      'null', '''''', 'repeat(''x'', 201)', '''t'', p_task_type => ''''', '''t'', p_task_type => repeat(''x'', 201)', '''t'', p_policy => ''nowhere''',
      '''t'', p_policy => ''default@7''', '''t'', p_overrides => ''{"min_quality": 2}''', '''t'', p_overrides => ''{"name": "x"}''', '''t'', p_overrides => ''[]''',
      '''t'', p_candidates => array[''a'', null]', '''t'', p_candidates => array['''']', '''t'', p_candidates => array[repeat(''x'', 301)]',
      '''t'', p_candidates => array_fill(''x''::text, array[501])', '''t'', p_input_tokens => -1', '''t'', p_output_tokens => 1000000000001']) with ordinality y (a, o)
    order by n, o
  $$,
  $$
    select f from unnest(array[1, 2]) n cross join unnest(array[
      'RL101 tenant_id', 'RL101 tenant_id', 'RL108 tenant_id', 'RL103 task_type', 'RL108 task_type', 'RL209 nowhere', 'RL209 default@7', 'RL103 min_quality', 'RL107 name',
      'RL107 policy', 'RL106 candidates', 'RL106 candidates', 'RL108 candidates', 'RL502 candidates', 'RL103 input_tokens', 'RL103 output_tokens']) with ordinality y (f, o)
    order by n, o
  $$,
  'a bad argument has a name');
select is(pg_temp.fault($$ select from routeledger.rank_candidates('t', p_at => 'infinity') $$), 'RL109 at', 'so has an impossible time');
select results_eq(
  $$
    select pg_temp.fault(format('select from routeledger.route(%s)', a))
    from unnest(array[
      '''t'', p_pinned_model => ''''', '''t'', p_pinned_model => repeat(''x'', 301)', '''t'', p_pinned_model => ''a'', p_candidates => array[''a'']', '''t'', gen_random_uuid()',
      '''t'', p_agent_id => ''''', '''t'', p_traffic_class => ''x''', '''t'', p_lease => ''0''', '''t'', p_budget_key => ''''', '''t'', p_deadline => ''-1 s''', '''t'', p_metadata => ''[]''',
      '''t'', p_attempt_id => gen_random_uuid()', '''t'', p_event_at => ''infinity''']) with ordinality x (a, o)
    order by o
  $$,
  array['RL103 pinned_model', 'RL108 pinned_model', 'RL103 candidates', 'RL104 id', 'RL103 agent_id', 'RL102 traffic_class', 'RL103 lease', 'RL103 budget_key', 'RL103 deadline', 'RL107 metadata',
    'RL104 attempt_id', 'RL109 event_at'],
  'and what only a decision has');
set local role tap500_bound;
select throws_ok(
  $$ select from routeledger.rank_candidates('tap500') $$, 'RL110', 'this role is bound to other tenants', 'a bound role ranks for its own tenant');
select throws_ok($$ select from routeledger.route('tap500') $$, 'RL110', 'this role is bound to other tenants', 'and routes for it');
select isnt((select model_slug from routeledger.route('tap500-b')), null, 'which works');
reset role;

-- one call, one decision
set local role routeledger_writer;
select results_eq(
  $$
    select id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, fallbacks, delay_ms, available_at, trim_scale(projected_cost_usd), policy_version, length(ruleset_hash),
      propensity, created
    from routeledger.route('tap500', pg_temp.id('500-1'), 'agent', 'qa', p_attempt_id => pg_temp.id('500-1-1'), p_metadata => '{"k": 1}')
  $$,
  $$
    values (pg_temp.id('500-1'), pg_temp.id('500-1-1'), 1, 'd/dated', null::text, 'cheapest_clearing_floor', null::text, array['a/good', 'b/fair', 'c/short', 'a/dear'], 0::bigint,
      null::timestamp with time zone, 0.0015, 'default@1', 64, 1::double precision, true)
  $$,
  'routed');
reset role;
select is(
  (select to_jsonb(x) from (
    select o.agent_id, o.task_type, o.decision_rule, o.chosen_model_slug, o.min_quality, o.policy_version, o.metadata, o.propensity, length(o.ruleset_hash) as hash, o.outcome_status,
      jsonb_array_length(o.candidates) as n, o.candidates -> 0 as first, o.candidates -> 5 as fifth
    from routeledger.routing_outcomes o where o.id = pg_temp.id('500-1')) x),
  '{"agent_id": "agent", "task_type": "qa", "decision_rule": "cheapest_clearing_floor", "chosen_model_slug": "d/dated", "min_quality": 0.8, "policy_version": "default@1", "metadata": {"k": 1},
    "propensity": 1, "hash": 64, "outcome_status": null, "n": 9, "first": {"model_slug": "d/dated", "rank": 1, "quality": 0.9, "quality_source": "prior", "projected_cost_usd": 0.0015},
    "fifth": {"model_slug": "a/weak", "provider": "p", "drop_reason": "below_quality_floor", "quality": 0.6, "quality_source": "prior", "projected_cost_usd": 0.0003}}',
  'and written, without those of which nobody knows a price or a quality');
select is(
  (select concat_ws(' ', i.attempt_no, i.candidate_no, i.model_slug, i.provider, i.status) from routeledger.inferences i where i.id = pg_temp.id('500-1-1')), '1 1 d/dated routed', 'with its first attempt');

-- the same again
do $$ begin perform routeledger.import_models('[{"model_slug": "d/dated", "enrolled": false}]'); end $$;
set local role routeledger_writer;
create function pg_temp.again(p_more text default '') returns text language sql volatile
as $$
  select coalesce(c.code, 'none') from pg_temp.caught(format(
    'select from routeledger.route(p_tenant_id => ''tap500'', p_id => %L%s)', pg_temp.id('500-1'),
    coalesce(nullif(p_more, ''), ', p_agent_id => ''agent'', p_task_type => ''qa'', p_metadata => ''{"k": 1}'''))) c
$$;
select is(
  (select concat_ws(' ', attempt_id = pg_temp.id('500-1-1'), model_slug, decision_rule, fallbacks::text, delay_ms, projected_cost_usd, policy_version, length(ruleset_hash), propensity, created)
   from routeledger.route('tap500', pg_temp.id('500-1'), 'agent', 'qa', p_overrides => '{"min_quality": 1}', p_metadata => '{"k": 1}')),
  't d/dated cheapest_clearing_floor {a/good,b/fair,c/short,a/dear} 0 0.0015 default@1 64 1 f', 'a known id is what was decided then, whatever the ranking says now');
select results_eq(
  $$
    select pg_temp.again(', p_agent_id => ''agent'', p_task_type => ''qa'', p_metadata => ''{"k": 1}''' || m)
    from unnest(array['', ', p_policy => ''default@1''', ', p_policy => ''other''', ', p_lease => ''1 minute''', ', p_budget_key => ''k''', ', p_deadline => ''1 s''', ', p_traffic_class => ''shadow''',
      ', p_pinned_model => ''d/dated''', ', p_attempt_id => routeledger.uuid_v7()', ', p_event_at => ''2026-01-01 00:00:00+00''']) with ordinality x (m, o) order by o
  $$,
  array['none', 'none', 'RL301', 'RL301', 'RL301', 'RL301', 'RL301', 'RL301', 'RL301', 'RL301'], 'for another request it is taken');
select is(pg_temp.again(', p_task_type => ''qa'''), 'RL301', 'also for another agent');
reset role;
do $$ begin perform routeledger.insert_decision('tap500', pg_temp.id('500-2'), p_chosen_model_slug => 'm'); end $$;
select is(
  (select code from pg_temp.caught($$ select from routeledger.route('tap500', pg_temp.id('500-2')) $$)), 'RL301', 'one that was not routed is no answer');

-- nothing acceptable
select is(
  (select concat_ws(' ', model_slug, attempt_id, decision_rule, outcome_status, fallbacks::text, delay_ms, propensity, created) from routeledger.route('tap500', pg_temp.id('500-3'), p_overrides => '{"min_quality": 1}')),
  'no_candidate_clears_floor rejected {} t', 'nothing clears the floor: rejected at once');
select is(
  (select concat_ws(' ', model_slug, decision_rule, outcome_status, created) from routeledger.route('tap500', pg_temp.id('500-3'))),
  'no_candidate_clears_floor rejected f', 'for good');
select is(
  (select concat_ws(' ', decision_rule, outcome_status) from routeledger.route('tap500', p_candidates => array['b/half', 'c/off', 'x/poison'])), 'no_candidate_enrolled rejected',
  'no price, not enrolled, a price out of line: none is enrolled');
select is((select decision_rule from routeledger.route('tap500', p_candidates => array[]::text[])), 'no_candidate_enrolled', 'and of none, none');
select is(
  (select string_agg((e ->> 'model_slug') || ' ' || (e ->> 'drop_reason'), ', ' order by n)
   from routeledger.routing_outcomes o cross join jsonb_array_elements(o.candidates) with ordinality c (e, n)
   where o.tenant_id = 'tap500' and o.decision_rule = 'no_candidate_enrolled' and o.candidates <> '[]'),
  'c/off m_allowed_veto, x/poison price_flagged, b/half not_enrolled_no_price', 'those that were named are all kept, with the reason');

-- the rules
select is(
  (select concat_ws(' ', model_slug, decision_rule) from routeledger.route('tap500', p_task_type => 'qa', p_overrides => '{"deny": ["a/good", "b/fair"]}')), 'c/short m_allowed_veto_applied',
  'a better buy is not allowed');
select is(
  (select concat_ws(' ', model_slug, decision_rule) from routeledger.route('tap500', p_task_type => 'qa', p_overrides => '{"deny": ["a/dear", "a/weak"]}')), 'a/good cheapest_clearing_floor',
  'a worse one would not have been chosen anyway');
select is(
  (select concat_ws(' ', model_slug, provider, decision_rule, fallbacks::text, trim_scale(projected_cost_usd), propensity) from routeledger.route('tap500', p_pinned_model => 'a/weak', p_overrides => '{"budget_cap_usd": 0}')),
  'a/weak p pinned {} 0.0003 1', 'a pinned model is taken, whatever it is worth or costs');
select is(
  (select concat_ws(' ', model_slug, decision_rule, coalesce(projected_cost_usd::text, '-')) from routeledger.route('tap500', pg_temp.id('500-4'), p_pinned_model => 'nobody/knows')), 'nobody/knows pinned -',
  'also one that nobody knows');
select is(
  (select concat_ws(' ', model_slug, decision_rule, created) from routeledger.route('tap500', pg_temp.id('500-4'), p_pinned_model => 'nobody/knows')), 'nobody/knows pinned f', 'twice');
select is((select code from pg_temp.caught($$ select from routeledger.route('tap500', pg_temp.id('500-4'), p_pinned_model => 'a/weak') $$)), 'RL301', 'another one is another request');
select is(
  (select concat_ws(' ', model_slug, decision_rule, outcome_status) from routeledger.route('tap500', p_pinned_model => 'a/weak', p_overrides => '{"deny": ["a/weak"]}')), 'no_candidate_enrolled rejected',
  'not one that is denied');
select is(
  (select decision_rule from routeledger.route('tap500', p_pinned_model => 'a/weak', p_overrides => '{"allow": ["a/good"]}')), 'no_candidate_enrolled', 'or not allowed');

-- when it fails
select results_eq(
  $$
    select f.action, f.next_model_slug
    from routeledger.route('tap500', pg_temp.id('500-5'), p_task_type => 'qa', p_attempt_id => pg_temp.id('500-5-1')) r
    cross join lateral routeledger.fail_attempt('tap500', r.id, r.attempt_id, 'ContextWindowExceededError', p_http_status => 400) f
  $$,
  $$ values ('failover', 'b/fair') $$, 'the ledger goes on in the order that was stored');

-- what cools down
create function pg_temp.cool(p_model text, p_for interval, p_provider text default '', p_tenant text default 'tap500') returns void
language sql volatile
as $$
  insert into routeledger.cooldowns (tenant_id, model_slug, provider, until_at, first_failed_at, last_failed_at)
  values (p_tenant, p_model, p_provider, routeledger.clock() + p_for, routeledger.clock() - interval '1 minute', routeledger.clock() - interval '1 minute')
$$;
do $$ begin perform pg_temp.cool('a/good', '8 seconds'), pg_temp.cool('b/fair', '1 hour', 'other'), pg_temp.cool('a/dear', '1 hour', 'p'); end $$;
select is(
  pg_temp.ranked(p_candidates => array['a/good', 'b/fair', 'a/dear']), '1 b/fair, cooling_down a/dear, cooling_down a/good', 'what cools down waits; at another provider it does not');
select is(pg_temp.ranked(p_candidates => array['a/good'], p_tenant => 'tap500-other'), '1 a/good', 'nor for another tenant');
select is(
  (select concat_ws(' ', model_slug, fallbacks::text, delay_ms, available_at) from routeledger.route('tap500', p_candidates => array['a/good', 'b/fair', 'a/dear'])), 'b/fair {} 0',
  'the next one is called');
select is(
  (select concat_ws(' ', model_slug, decision_rule, fallbacks::text, delay_ms, available_at - routeledger.clock(), propensity)
   from routeledger.route('tap500', pg_temp.id('500-6'), p_candidates => array['a/good', 'a/dear'], p_deadline => '8 seconds')),
  'a/good cheapest_clearing_floor {} 8000 00:00:08 1', 'where all cool down the first to return, in time for the deadline');
select is(
  (select concat_ws(' ', o.probe_attempt_id = i.id, i.started_at - routeledger.clock(), o.lease_expires_at - routeledger.clock(), c.probe_attempt_id = i.id)
   from routeledger.routing_outcomes o
   join routeledger.inferences i on i.outcome_id = o.id
   join routeledger.cooldowns c on c.tenant_id = o.tenant_id and c.model_slug = i.model_slug
   where o.id = pg_temp.id('500-6')),
  't 00:00:08 00:05:08 t', 'as its probe, from then on');
select is(
  (select concat_ws(' ', model_slug, delay_ms, available_at - routeledger.clock(), created) from routeledger.route('tap500', pg_temp.id('500-6'), p_candidates => array['a/good', 'a/dear'], p_deadline => '8 seconds')),
  'a/good 8000 00:00:08 f', 'again, the same');
do $$ begin perform pg_temp.at('3 seconds'); end $$;
select is(
  (select concat_ws(' ', model_slug, delay_ms, created) from routeledger.route('tap500', pg_temp.id('500-6'), p_candidates => array['a/good', 'a/dear'], p_deadline => '8 seconds')),
  'a/good 5000 f', 'but for the time that has passed');
do $$ begin perform pg_temp.at('0'); end $$;
select is(
  (select concat_ws(' ', model_slug, decision_rule, outcome_status, delay_ms, available_at > routeledger.clock() + interval '8 seconds')
   from routeledger.route('tap500', pg_temp.id('500-7'), p_candidates => array['a/good', 'a/dear'], p_deadline => '1 second')),
  'no_candidate_clears_floor rejected t', 'too late for another: rejected, with the time');
select is(
  (select concat_ws(' ', outcome_status, available_at > routeledger.clock(), created) from routeledger.route('tap500', pg_temp.id('500-7'), p_candidates => array['a/good', 'a/dear'], p_deadline => '1 second')),
  'rejected t f', 'for good too');
do $$ begin delete from routeledger.cooldowns where tenant_id = 'tap500'; perform pg_temp.cool('a/good', '7.999 seconds'); end $$;
select is(
  (select concat_ws(' ', outcome_status, available_at - routeledger.clock()) from routeledger.route('tap500', p_candidates => array['a/good'], p_deadline => '7 seconds')), 'rejected 00:00:07.999',
  'no probe is kept by whom it is too late for');
select is((select probe_attempt_id from routeledger.cooldowns where tenant_id = 'tap500'), null, 'so that another may have it');
select is(
  (select concat_ws(' ', model_slug, delay_ms) from routeledger.route('tap500', p_candidates => array['a/good'])), 'a/good 7999', 'without a deadline as long as retry_cap is waited');
do $$ begin delete from routeledger.cooldowns where tenant_id = 'tap500'; perform pg_temp.cool('a/good', '-1 seconds'); end $$;
select results_eq(
  $$ select r.model_slug, r.propensity from generate_series(1, 2) n cross join lateral routeledger.route('tap500', p_candidates => array['a/good', 'b/fair'], p_agent_id => 'n' || n) r $$,
  $$ values ('a/good', 1::double precision), ('b/fair', 1) $$, 'half open: one may probe, the next goes elsewhere');
do $$ begin perform pg_temp.cool('b/fair', '-1 seconds'); end $$;
select is(
  (select concat_ws(' ', model_slug, decision_rule) from routeledger.route('tap500', p_pinned_model => 'a/good')), 'a/good pinned', 'a pinned model is called all the same');
do $$ begin delete from routeledger.cooldowns where tenant_id = 'tap500'; end $$;

-- budgets
do $$ begin perform routeledger.set_budget('tap500', 'day', 0.004); end $$;
select is(
  (select concat_ws(' ', model_slug, fallbacks::text) from routeledger.route('tap500', pg_temp.id('500-8'), p_candidates => array['a/good', 'b/fair', 'a/dear'])), 'a/good {b/fair}',
  'what no budget covers is no fallback');
select is(
  (select string_agg(coalesce(e ->> 'drop_reason', 'ok'), ' ' order by n) from routeledger.routing_outcomes o cross join jsonb_array_elements(o.candidates) with ordinality c (e, n) where o.id = pg_temp.id('500-8')),
  'ok ok exceeds_budget_cap', 'and says so');
select is(
  (select concat_ws(' ', model_slug, outcome_status, decision_rule) from routeledger.route('tap500', p_candidates => array['a/good', 'b/fair'])), 'rejected no_candidate_clears_floor',
  'what is reserved is gone');
select is(
  (select concat_ws(' ', model_slug, fallbacks::text) from routeledger.route('tap500', p_candidates => array['a/good', 'a/weak'], p_task_type => 'chat', p_overrides => '{"ordering": "expected_cost_per_success", "diversity_penalty": 0}')),
  'a/weak {}', 'for what is left there may be a cheaper one');
select is((select spent_usd + reserved_usd <= limit_usd from routeledger.budget_status where tenant_id = 'tap500'), true, 'and no more is promised than there is');
select is(
  (select model_slug from routeledger.route('tap500', p_candidates => array['a/dear'], p_traffic_class => 'replay')), 'a/dear', 'a replay spends nothing');
do $$ begin perform routeledger.drop_budget('tap500', 'day'); end $$;

-- exploration
do $$
begin
  perform routeledger.set_policy('explore', '{"exploration": "thompson", "exploration_share": 0.25, "exploration_min_samples": 20, "min_samples": 20, "ordering": "expected_cost_per_success"}');
  delete from routeledger.model_performance_buckets where tenant_id = 'tap500';
  perform pg_temp.bucket('a/good', 0, 20, 17), pg_temp.bucket('b/fair', 0, 20, 18), pg_temp.bucket('c/short', 0, 20, 19), pg_temp.bucket('a/dear', 0, 20, 20);
end
$$;
create function pg_temp.explored(p_seed bigint, p_policy text default 'explore') returns table (slug text, rule text, p double precision, candidates jsonb, fallbacks text[])
language plpgsql volatile
as $$
declare
  v_id uuid;
begin
  select r.id, r.model_slug, r.decision_rule, r.propensity, r.fallbacks into v_id, slug, rule, p, fallbacks
  from routeledger.route('tap500', p_task_type => 'chat', p_policy => p_policy, p_candidates => array['a/good', 'b/fair', 'c/short', 'a/dear'], p_seed => p_seed) r;
  select o.candidates into candidates from routeledger.routing_outcomes o where o.id = v_id;
  return next;
end
$$;
create temp table explored as select n, e.* from generate_series(1, 200) n cross join lateral pg_temp.explored(n) e;
select is_empty(
  $$ select n from explored e where (select round(sum((c ->> 'propensity')::numeric), 9) from jsonb_array_elements(e.candidates) c) <> 1 $$, 'the propensities of a decision add up to 1');
select is_empty(
  $$ select n from explored e where e.p <> (e.candidates -> 0 ->> 'propensity')::double precision or e.p <= 0 or e.slug <> e.candidates -> 0 ->> 'model_slug' $$, 'that of the one served is stored with it');
select is_empty(
  $$ select n from explored e cross join jsonb_array_elements(e.candidates) c where c -> 'rank' = '1' and (c ->> 'propensity')::numeric < 0.75 $$, 'the best one has 1 - share at least');
select is_empty($$ select n from explored e where (e.rule = 'exploration') <> ((e.candidates -> 0 ->> 'rank') <> '1') $$, 'exploration is when another one is served');
select cmp_ok((select count(*) from explored where rule = 'exploration'), '>', 5::bigint, 'which happens');
select cmp_ok((select count(*) from explored where rule = 'exploration'), '<', 60::bigint, 'now and then');
select cmp_ok(
  (select abs(count(*) filter (where slug = 'a/good') - sum((select (c ->> 'propensity')::double precision from jsonb_array_elements(candidates) c where c ->> 'model_slug' = 'a/good'))) from explored), '<', 15::double precision,
  'as often as the propensities say');
select is_empty($$ select n from explored where slug = any (fallbacks) or cardinality(fallbacks) <> 3 $$, 'the others stay fallbacks');
select is(
  (select array_agg(slug || p order by n) from (select n, e.slug, e.p from generate_series(1, 20) n cross join lateral pg_temp.explored(n) e) x),
  (select array_agg(slug || p order by n) from explored where n <= 20), 'the same seed, the same choice');
do $$ begin perform pg_temp.bucket('d/dated', 0, 1, 0); end $$;
select is(
  (select bool_and(p = 1 and candidates -> 0 -> 'propensity' is null) from generate_series(1, 5) n cross join lateral pg_temp.explored(n, 'default') e), true,
  'a policy that does not explore is sure');
do $$ begin perform routeledger.set_policy('curious', '{"exploration": "thompson", "exploration_share": 1, "exploration_min_samples": 21}'), pg_temp.bucket('b/fair', 0, 30, 24); end $$;
select is(
  (select count(*) filter (where slug = 'b/fair') || ' of ' || count(*) from generate_series(1, 40) n cross join lateral pg_temp.explored(n, 'curious') e), '0 of 40',
  'as long as some lack samples, those that do not are not drawn');
select is(
  (select concat_ws(' ', model_slug, propensity) from routeledger.route('tap500', p_policy => 'curious', p_candidates => array['a/dear'])), 'a/dear 1', 'one alone needs no draw');

-- a large catalog
do $$
begin
  perform routeledger.import_models((
    select jsonb_agg(jsonb_build_object('model_slug', 'm/' || i, 'q_prior', 0.9, 'input_usd_per_mtok', i, 'output_usd_per_mtok', 1)) from generate_series(101, 200) i));
  perform routeledger.route('tap500', pg_temp.id('500-10'));
end
$$;
select is(
  (select jsonb_array_length(candidates) || ' ' || (candidates -> 49 ->> 'rank') from routeledger.routing_outcomes where id = pg_temp.id('500-10')), '50 50', 'the fifty best of a large one are kept');

-- many at once
create temp table answers as
select * from routeledger.routes(jsonb_build_array(
  jsonb_build_object('tenant_id', 'tap500', 'id', pg_temp.id('500-1'), 'agent_id', 'agent', 'task_type', 'qa', 'metadata', '{"k": 1}'::jsonb),
  jsonb_build_object('tenant_id', 'tap500', 'id', pg_temp.id('500-9'), 'candidates', jsonb_build_array('a/dear', 'a/good'), 'overrides', '{"min_quality": 0.95}'::jsonb),
  jsonb_build_object('tenant_id', 'tap500', 'policy', 'nowhere'),
  jsonb_build_object('tenant_id', 'tap500', 'overrides', '{"min_quality": "much"}'::jsonb),
  jsonb_build_object('tenant_id', 'tap500', 'id', pg_temp.id('500-1')),
  jsonb_build_object('tenant_id', 'tap500', 'wrong', 1),
  jsonb_build_object('tenant_id', 'tap500', 'overrides', '{"min_quality": 2}'::jsonb),
  '7'::jsonb));
select results_eq(
  $$ select ord, status, code, model_slug, decision_rule, fallbacks from answers order by ord $$,
  $$
    values (1, 'replayed', null, 'd/dated', 'cheapest_clearing_floor', array['a/good', 'b/fair', 'c/short', 'a/dear']), (2, 'accepted', null, 'a/dear', 'cheapest_clearing_floor', array[]::text[]),
      (3, 'refused', 'RL209', null, null, null), (4, 'refused', 'RL107', null, null, null), (5, 'refused', 'RL301', null, null, null), (6, 'refused', 'RL107', null, null, null),
      (7, 'refused', 'RL103', null, null, null), (8, 'refused', 'RL107', null, null, null)
  $$,
  'each has its answer');
select is((select count(*) from answers where status = 'refused' and (message is null or hint is null or detail is null)), 0::bigint, 'with the reason');
select is(
  (select to_jsonb(r) - 'created' from routeledger.route('tap500', pg_temp.id('500-9'), p_candidates => array['a/dear', 'a/good']) r),
  (select to_jsonb(a) - array['ord', 'status', 'code', 'message', 'detail', 'hint'] from answers a where ord = 2), 'the same as one by one');
select is((select count(*) from routeledger.routes('[]')), 0::bigint, 'none');
select throws_ok($$ select from routeledger.routes(null) $$, 'RL101', 'a required argument is missing', 'no array');

select * from finish();
rollback;
