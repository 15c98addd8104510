-- 520 · Off-policy estimates: every number by hand, every reason to leave a decision out.
begin;
\ir common.psql
create function pg_temp.day(p_days integer default 0) returns date
language sql stable
as $$ select (pg_temp.t0() at time zone 'UTC')::date + p_days $$;
create role tap520_bound in role routeledger_reader;
do $$ begin perform routeledger.grant_tenant('tap520_bound', 'tap520-b'); end $$;
select plan(26);

do $$
begin
  perform routeledger.import_models('[
    {"model_slug": "tap520/big", "provider": "a", "input_usd_per_mtok": 10, "output_usd_per_mtok": 20, "q_prior": 0.9},
    {"model_slug": "tap520/small", "provider": "b", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "q_prior": 0.5},
    {"model_slug": "tap520/unpriced", "q_prior": 1}]');
end
$$;

-- A decision for p_model with that propensity; a million input tokens are a dollar of small and ten of big. Without tokens it fails.
create function pg_temp.decide(
  p_name text, p_model text, p_propensity double precision, p_tokens bigint, p_candidates jsonb default '["tap520/big", "tap520/small"]', p_task text default 'chat',
  p_tenant text default 'tap520')
returns void
language plpgsql volatile
as $$
begin
  perform routeledger.insert_decision(p_tenant, pg_temp.id(p_name), p_task_type => p_task, p_candidates => p_candidates,
    p_chosen_model_slug => 'tap520/' || p_model, p_propensity => p_propensity);
  perform routeledger.complete_decision(p_tenant, pg_temp.id(p_name), case when p_tokens is null then 'failed' else 'succeeded' end,
    p_input_tokens => p_tokens, p_output_tokens => case when p_tokens is not null then 0 end,
    p_error_type => case when p_tokens is null then '500' end);
end
$$;
do $$
begin
  perform pg_temp.decide('d1', 'small', 0.5, 2000);
  perform pg_temp.decide('d2', 'small', 0.25, 4000);
  perform pg_temp.decide('d3', 'big', 0.5, 2000);
  perform pg_temp.decide('d4', 'big', 0.75, 3000);
  perform pg_temp.decide('unlabelled', 'small', 0.5, 3000);
  perform pg_temp.decide('d6', 'big', 0.5, 1000);
  perform pg_temp.decide('failed', 'small', 0.5, null);
  -- big for certain; big by chance, but small by none
  perform pg_temp.decide('certain', 'big', 1, 4000);
  perform pg_temp.decide('chanceless', 'big', 0.5, 5000,
    '[{"model_slug": "tap520/big", "propensity": 0.5}, {"model_slug": "tap520/small", "propensity": 0}, {"model_slug": "tap520/unpriced", "propensity": 0.5}]');
  perform pg_temp.decide('unsaid', 'small', null, 5000);
  perform pg_temp.decide('impossible', 'small', 0, 5000);
  perform pg_temp.decide('bare', 'small', 0.5, 5000, '[]');
  -- nobody knows how good small is at this
  perform pg_temp.decide('rare', 'big', 0.5, 5000, p_task => 'rare');
  -- rejected: one that the policy would answer, and one that it would not
  perform routeledger.insert_decision('tap520', p_task_type => 'chat', p_candidates => '[{"model_slug": "tap520/small", "drop_reason": "below_quality_floor"}]');
  perform routeledger.insert_decision('tap520', p_task_type => 'chat', p_candidates => '[{"model_slug": "tap520/unpriced", "drop_reason": "not_enrolled_no_price"}]');
  -- neither closed nor production
  perform routeledger.insert_decision('tap520', p_task_type => 'chat', p_candidates => '["tap520/small"]', p_propensity => 1);
  perform routeledger.record_outcome('tap520', p_task_type => 'chat', p_traffic_class => 'synthetic', p_candidates => '["tap520/small"]',
    p_attempts => '[{"model_slug": "tap520/small", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}]');
end
$$;
update routeledger.routing_outcomes o set reward = v.reward
from (values
  ('d1', 1::double precision), ('d2', 0), ('d3', 1), ('d4', 1), ('d6', 0.5), ('certain', 0.8), ('unsaid', 1), ('impossible', 1), ('bare', 1), ('rare', 1)) v (name, reward)
where o.tenant_id = 'tap520' and o.id = pg_temp.id(v.name);

-- the policy takes the cheapest: small
create function pg_temp.estimates(p_more jsonb default '{}', p_max_weight double precision default null, p_confidence double precision default 0.95)
returns table (estimator text, measure text, value numeric, error numeric, half numeric, n bigint, answered bigint, matched bigint, effective_n numeric, weight numeric, largest numeric)
language sql volatile
as $$
  select e.estimator, e.measure, round(e.value::numeric, 12), round(e.standard_error::numeric, 12), round(((e.high - e.low) / 2)::numeric, 10), e.n, e.answered, e.matched,
    round(e.effective_n::numeric, 9), round(e.mean_weight::numeric, 9), round(e.largest_weight::numeric, 9)
  from routeledger.estimate_policy('tap520', p_overrides => '{"min_quality": 0}' || p_more, p_from => pg_temp.day(), p_to => pg_temp.day(1),
    p_max_weight => p_max_weight, p_confidence => p_confidence) e
$$;
create temp table found as select * from pg_temp.estimates();
-- the mean of these terms, and the standard error of that mean
create function pg_temp.mean_of(p_terms double precision[], p_more double precision default 0, out value numeric, out error numeric)
language sql immutable
as $$ select round(avg(t)::numeric, 12), round(sqrt(var_samp(t) / count(*) + p_more)::numeric, 12) from unnest(p_terms) t $$;

select results_eq(
  $$ select estimator || ' ' || measure from found $$,
  $$ select e || ' ' || m from unnest(array['quality', 'cost_usd']) m cross join unnest(array['as_it_was', 'direct', 'ips', 'snips', 'doubly_robust']) e $$,
  'five estimates of two measures, in order');
select is(
  (select array_agg(distinct row(decisions, no_candidates, no_propensity, no_chance, unmeasured, n, answered)::text) from routeledger.estimate_policy('tap520', p_overrides => '{"min_quality": 0}')),
  array['(15,1,2,3,1,8,7)'], 'closed production decisions, and why some are left out');

-- quality: 4 of small, 2 labelled, 1 and 0: each weighs twice 1/p; 5 of big, 4 labelled, 3.3 in all
select results_eq(
  $$ select value, error from found where estimator = 'as_it_was' and measure = 'quality' $$,
  $$ select * from pg_temp.mean_of(array[1.5, -0.5, 0.5, 0.5, 1.04375, 1.04375, 0.41875, 0]) $$, 'as it was: each reward for those like it that have none');
select results_eq(
  $$ select value, error from found where estimator = 'direct' and measure = 'quality' $$,
  $$ select * from pg_temp.mean_of(array[0, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0], 49.0 / 64 * 0.5 / 2) $$, 'direct: the mean of the others, and the error of that mean');
select results_eq(
  $$ select value, error from found where estimator = 'ips' and measure = 'quality' $$,
  $$ select * from pg_temp.mean_of(array[4, 0, 0, 0, 0, 0, 0, 0]) $$, 'ips: the rewards of small over their propensities');
select results_eq(
  $$ select value, error from found where estimator = 'snips' and measure = 'quality' $$,
  $$ select * from pg_temp.mean_of(array(select t / 3.0 + d from unnest(array[1, 1, 1, 1, 1, 1, 1, 0], array[4 * 2 / 3.0 * 7 / 12, -8 / 3.0 * 7 / 12, 0, 0, 0, 0, 0, 0]) u (t, d))) $$,
  'snips: the same over the sum of the weights');
select results_eq(
  $$ select value, error from found where estimator = 'doubly_robust' and measure = 'quality' $$,
  $$ select * from pg_temp.mean_of(array[4, -7, 0.5, 0.5, 0.5, 0.5, 0.5, 0]) $$, 'doubly robust: direct, corrected by what was left of each reward');
select is(
  (select array_agg(distinct row(matched, effective_n, weight, largest)::text) from found where measure = 'quality' and estimator in ('ips', 'snips', 'doubly_robust')),
  array['(2,1.800000000,1.428571429,4.000000000)'], 'two matched, which say as much as 1.8 of equal weight');
select is(
  (select array_agg(distinct row(matched, effective_n, weight, largest)::text) from found where estimator in ('as_it_was', 'direct')), array['(,,,)'], 'what does not weigh has no weights');
-- cost: 3 of the 4 of small are known
select results_eq(
  $$ select value, error from found where estimator = 'direct' and measure = 'cost_usd' $$,
  $$ select * from pg_temp.mean_of(array[0.0035, 0.0025, 0.003, 0.003, 0.003, 0.003, 0.003, 0], 49.0 / 64 * 0.000001 / 3) $$, 'costs: direct');
select results_eq(
  $$ select value, error from found where estimator = 'ips' and measure = 'cost_usd' $$,
  $$ select * from pg_temp.mean_of(array[0.016 / 3, 0.064 / 3, 0.024 / 3, 0, 0, 0, 0, 0]) $$, 'costs: ips');
select is((select value from found where estimator = 'snips' and measure = 'cost_usd'), round(7 / 8.0 * 0.104 / 32, 12), 'costs: snips');
select results_eq(
  $$ select value, error from found where estimator = 'doubly_robust' and measure = 'cost_usd' $$,
  $$ select * from pg_temp.mean_of(array[-0.0005, 0.0105, 0.003, 0.003, 0.003, 0.003, 0.003, 0]) $$, 'costs: doubly robust');
select is(
  (select value from found where estimator = 'as_it_was' and measure = 'cost_usd'), round((0.003 * 4 + 0.02 + 0.03 + 0.01) / 8, 12), 'costs: as it was');

-- intervals, weights, other rules
select is_empty($$ select from found where abs(half - error * 1.959963984540) > 1e-9 $$, 'intervals of 95 %');
select is_empty($$ select from pg_temp.estimates(p_confidence => 0.8) where abs(half - error * 1.281551565545) > 1e-9 $$, 'and of 80 %');
select results_eq(
  $$ select value, largest from pg_temp.estimates(p_max_weight => 3) where estimator in ('ips', 'doubly_robust') and measure = 'quality' $$,
  $$ values (4 / 8.0, 3.0), ((4 + (1 - 6) + 2.5) / 8, 3.0) $$, 'weights cut down');
select results_eq(
  $$ select estimator, value, error, n, answered from pg_temp.estimates('{"allow": ["tap520/nobody"]}') where measure = 'quality' and estimator <> 'as_it_was' $$,
  $$ select e, 0.0, 0.0, 12::bigint, 0::bigint from unnest(array['direct', 'ips', 'snips', 'doubly_robust']) e $$, 'what answers nothing is worth nothing, for certain');
select results_eq(
  $$ select distinct n, matched, largest from pg_temp.estimates('{"allow": ["tap520/big"]}') where measure = 'quality' and estimator = 'ips' $$,
  $$ values (11::bigint, 4::bigint, 2.0) $$, 'another choice has other matches');
select is(
  (select array_agg(row(decisions, n, value)::text) from routeledger.estimate_policy('tap520', p_from => pg_temp.day(2), p_to => pg_temp.day(3))),
  array_fill('(0,0,)'::text, array[10]), 'no decisions, no estimates');

-- Both decisions that small answered had something cheaper to offer, which the policy would have taken: nothing matches the third.
do $$
begin
  perform routeledger.import_models('[{"model_slug": "tap520/tiny", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1, "q_prior": 0.1}]');
  perform pg_temp.decide('m1', 'small', 0.5, 1000, '["tap520/small", "tap520/tiny"]', p_tenant => 'tap520-c');
  perform pg_temp.decide('m2', 'small', 0.5, 1000, '["tap520/small", "tap520/tiny"]', p_tenant => 'tap520-c');
  perform pg_temp.decide('m3', 'big', 0.5, 1000, p_tenant => 'tap520-c');
end
$$;
update routeledger.routing_outcomes o set reward = v.reward
from (values ('m1', 1::double precision), ('m2', 0), ('m3', 0.75)) v (name, reward)
where o.tenant_id = 'tap520-c' and o.id = pg_temp.id(v.name);
select results_eq(
  $$ select estimator, value, n, matched, unmeasured from routeledger.estimate_policy('tap520-c', p_overrides => '{"min_quality": 0}') where measure = 'quality' $$,
  $$ values ('as_it_was', 0.75::double precision, 1::bigint, null::bigint, 2::bigint), ('direct', 0.5, 1, null, 2), ('ips', null, 1, 0, 2), ('snips', null, 1, 0, 2), ('doubly_robust', null, 1, 0, 2) $$,
  'without matches the three that weigh say nothing');
select is(
  (select array_agg(distinct row(n, no_candidates, no_chance, unmeasured)::text) from routeledger.estimate_policy('tap520-c', p_overrides => '{"min_quality": 0}', p_all_models => true) where measure = 'quality'),
  array['(0,0,1,2)'], 'with all models as candidates tiny is taken everywhere: nobody knows it, and once it was no candidate');

-- arguments and roles
select is(
  (select array_agg((c).code || ' ' || coalesce((c).detail ->> 'parameter', '') order by n) from (
    select n, pg_temp.caught(s) as c from unnest(array[
      $$ select * from routeledger.estimate_policy('') $$,
      $$ select * from routeledger.estimate_policy('tap520', 'nobody') $$,
      $$ select * from routeledger.estimate_policy('tap520', p_limit => 0) $$,
      $$ select * from routeledger.estimate_policy('tap520', p_all_models => null) $$,
      $$ select * from routeledger.estimate_policy('tap520', p_from => '2026-02-02', p_to => '2026-02-01') $$,
      $$ select * from routeledger.estimate_policy('tap520', p_confidence => null) $$,
      $$ select * from routeledger.estimate_policy('tap520', p_confidence => 'NaN') $$,
      $$ select * from routeledger.estimate_policy('tap520', p_confidence => 1) $$,
      $$ select * from routeledger.estimate_policy('tap520', p_max_weight => 0.5) $$]) with ordinality t (s, n)) x),
  array['RL101 tenant_id', 'RL209 ', 'RL103 limit', 'RL101 all_models', 'RL103 to', 'RL101 confidence', 'RL103 confidence', 'RL103 confidence', 'RL103 max_weight'],
  'each fault by its code');
set local role tap520_bound;
select throws_ok($$ select * from routeledger.estimate_policy('tap520') $$, 'RL110', null, 'not of a tenant that the role is not bound to');
reset role;
set local role routeledger_writer;
select isnt_empty($$ select from routeledger.estimate_policy('tap520') $$, 'writers estimate');
set local role routeledger_judge;
select throws_ok($$ select from routeledger.estimate_policy('tap520') $$, '42501', null, 'judges do not');
reset role;
select * from finish();
rollback;
