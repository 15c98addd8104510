-- 510 · Replay: the past ranked anew, with what was known the day before, and judged by what came later.
begin;
\ir common.psql
create function pg_temp.day(p_days integer default 0) returns date
language sql stable
as $$ select (pg_temp.t0() at time zone 'UTC')::date + p_days $$;
create role tap510_bound in role routeledger_reader;
do $$ begin perform routeledger.grant_tenant('tap510_bound', 'tap510-b'); end $$;
select plan(27);

-- Three models; `tap510/odd` is listed 16 times too low, which its neighbours tell.
do $$
begin
  perform routeledger.import_models('[
    {"model_slug": "tap510/big", "base_model": "tap510-big", "provider": "a", "input_usd_per_mtok": 10, "output_usd_per_mtok": 20, "q_prior": 0.9},
    {"model_slug": "tap510/small", "base_model": "tap510-small", "provider": "b", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "q_prior": 0.5},
    {"model_slug": "tap510/odd", "base_model": "tap510-odd", "input_usd_per_mtok": 0.5, "output_usd_per_mtok": 1, "q_prior": 0.99},
    {"model_slug": "tap510/odd-2", "base_model": "tap510-odd", "input_usd_per_mtok": 8, "output_usd_per_mtok": 16},
    {"model_slug": "tap510/odd-3", "base_model": "tap510-odd", "input_usd_per_mtok": 8, "output_usd_per_mtok": 16},
    {"model_slug": "tap510/unpriced", "base_model": "tap510-unpriced", "q_prior": 1}]');
  -- on the first day small turns out to be good
  perform pg_temp.at('3 days');
  perform routeledger.persist_model_performance(jsonb_build_array(
    jsonb_build_object('tenant_id', 'tap510', 'model_key', 'tap510/small', 'task_type', 'chat', 'day', pg_temp.day(), 'n', 40, 'reward_sum', 40, 'reward_sq_sum', 40),
    jsonb_build_object('tenant_id', 'tap510', 'model_key', 'tap510/small', 'task_type', 'chat', 'day', pg_temp.day(1), 'n', 30, 'reward_sum', 15, 'reward_sq_sum', 15),
    jsonb_build_object('tenant_id', 'tap510', 'model_key', 'tap510/small', 'task_type', 'chat', 'day', pg_temp.day(2), 'n', 30, 'reward_sum', 24, 'reward_sq_sum', 24),
    jsonb_build_object('tenant_id', 'tap510', 'model_key', 'tap510/big', 'task_type', 'chat', 'day', pg_temp.day(2), 'n', 30, 'reward_sum', 27, 'reward_sq_sum', 27)));
end
$$;

create function pg_temp.serve(p_name text, p_days integer, p_attempt jsonb, p_candidates jsonb default '["tap510/big", "tap510/small", "tap510/odd", "tap510/unpriced"]')
returns void
language plpgsql volatile
as $$
declare
  v_id uuid := (lpad(to_hex((extract(epoch from pg_temp.t0() + p_days * interval '1 day') * 1000)::bigint), 12, '0') || right(replace(pg_temp.id(p_name)::text, '-', ''), 20))::uuid;
begin
  perform routeledger.set_clock(pg_temp.t0() + p_days * interval '1 day');
  perform routeledger.record_outcome('tap510', v_id, p_task_type => 'chat', p_candidates => p_candidates, p_attempts => jsonb_build_array(p_attempt));
end
$$;
do $$
begin
  perform pg_temp.serve('same', 0, '{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 1000, "output_tokens": 100}');
  perform pg_temp.serve('other', 1, '{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 1000, "output_tokens": 100, "cost_usd": 0.011}');
  perform pg_temp.serve('small', 1, '{"model_slug": "tap510/small", "status": "succeeded", "input_tokens": 1000, "output_tokens": 100, "cost_usd": 0.0013}');
  perform pg_temp.serve('absurd', 1, '{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 5, "output_tokens": 5, "cost_usd": 9990}');
  perform pg_temp.serve('mute', 1, '{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.02}');
  perform pg_temp.serve('failed', 1, '{"model_slug": "tap510/big", "status": "failed", "error_type": "500"}');
  perform pg_temp.serve('unlisted', 1, '{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}', '[]');
  perform routeledger.insert_decision('tap510', p_task_type => 'chat', p_candidates => '[{"model_slug": "tap510/small", "drop_reason": "below_quality_floor"}]');
  perform routeledger.insert_decision('tap510', p_task_type => 'chat', p_candidates => '["tap510/big"]');
  perform routeledger.record_outcome('tap510', p_task_type => 'chat', p_traffic_class => 'synthetic', p_candidates => '["tap510/big"]',
    p_attempts => '[{"model_slug": "tap510/big", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}]');
  perform pg_temp.at('3 days');
end
$$;
-- nothing writes rewards yet
create function pg_temp.named(p_id uuid) returns text
language sql stable
as $$ select n from unnest(array['same', 'other', 'small', 'absurd', 'mute', 'failed', 'unlisted']) n
      where right(p_id::text, 12) = right(pg_temp.id(n)::text, 12) $$;
update routeledger.routing_outcomes o set reward = v.reward
from (values ('same', 0.7::double precision), ('small', 0.25), ('absurd', 'NaN')) v (name, reward)
where o.tenant_id = 'tap510' and pg_temp.named(o.id) = v.name;

create temp view replay as select pg_temp.named(r.outcome_id) as name, r.* from routeledger.replay_policy('tap510', p_from => pg_temp.day(), p_to => pg_temp.day(4)) r;

select results_eq(
  $$ select coalesce(name, 'rejected') from replay order by 1 $$,
  array['absurd', 'mute', 'other', 'rejected', 'same', 'small', 'unlisted'], 'what was closed, not what failed, is in flight or is no production traffic');
select results_eq(
  $$ select name, served_model_slug, model_slug from replay where name in ('same', 'other', 'small') order by 1 $$,
  $$ values ('other', 'tap510/big', 'tap510/small'), ('same', 'tap510/big', 'tap510/big'), ('small', 'tap510/small', 'tap510/small') $$,
  'ranked with the buckets of the days before: small is not known to be good on the first day, and is on the second');
select results_eq(
  $$ select name, trim_scale(served_cost_usd), served_cost_source, trim_scale(cost_usd), cost_source from replay where name in ('same', 'other', 'small') order by 1 $$,
  $$ values ('other', 0.011, 'ledger', 0.0012, 'catalog'), ('same', 0.012, 'ledger', 0.012, 'ledger'), ('small', 0.0013, 'ledger', 0.0013, 'ledger') $$,
  'the same model costs what it cost, another the same tokens at its price');
select results_eq(
  $$ select name, quality, quality_source, samples, error is null from replay where name in ('same', 'small') order by 1 $$,
  $$ values ('same', 0.7::double precision, 'reward', 1::bigint, true), ('small', 0.25, 'reward', 1, true) $$,
  'the same model is judged by the reward of the decision');
select results_eq(
  $$ select round(quality::numeric, 9), quality_source, samples, round(error::numeric, 6) from replay where name = 'other' $$,
  $$ values (0.65, 'buckets', 60::bigint, round(sqrt(0.65 * 0.35 / 59), 6)) $$,
  'another by its rewards from that day on, not by those that it was chosen for');
select results_eq(
  $$ select served_quality, served_quality_source, served_samples from replay where name = 'other' $$,
  $$ values (0.9::double precision, 'buckets', 30::bigint) $$, 'and so is what served, where it has no reward');
select is(
  (select row(trim_scale(served_cost_usd), served_cost_source, served_quality_source)::text from replay where name = 'absurd'),
  '(0.00015,catalog,buckets)', 'a cost of 9990 dollars for ten tokens is not taken up, and NaN is no reward');
select is(
  (select row(trim_scale(served_cost_usd), trim_scale(cost_usd), cost_source)::text from replay where name = 'mute'),
  '(0.02,0.002,catalog)', 'without token counts the cost is of those that the policy assumes, never 0');
select is(
  (select row(candidates, model_slug, cost_usd, cost_source, quality)::text from replay where name = 'unlisted'),
  '(0,,,,)', 'without candidates nothing can be chosen');
select is(
  (select row(candidates, served_model_slug, served_cost_usd, served_quality, model_slug, trim_scale(cost_usd))::text from replay where name is null),
  '(1,,,,tap510/small,0.002)', 'what was rejected had no model and no cost, and may have one now');
select is((select count(distinct ruleset_hash) from replay), 1::bigint, 'one hash');
select is(
  (select distinct r.ruleset_hash from routeledger.rank_candidates('tap510') r limit 1), (select distinct ruleset_hash from replay), 'that of the ranking');

-- other rules
select is_empty(
  $$ select from routeledger.replay_policy('tap510', p_overrides => '{"min_quality": 0}', p_from => pg_temp.day(), p_to => pg_temp.day(4), p_all_models => true) where model_slug like 'tap510/odd%' or model_slug = 'tap510/unpriced' $$,
  'neither a price listed 16 times too low nor one that is not known wins');
select is(
  (select count(*) from routeledger.replay_policy('tap510', p_overrides => '{"allow": ["tap510/small"], "min_quality": 0}', p_from => pg_temp.day(), p_to => pg_temp.day(4), p_all_models => true)
   where model_slug = 'tap510/small' and candidates is null),
  7::bigint, 'all models are candidates where asked for');
select is(
  (select string_agg(name, ' ') from routeledger.replay_policy('tap510', p_from => pg_temp.day(), p_to => pg_temp.day(1)) r, pg_temp.named(r.outcome_id) name), 'same', 'up to, not including, the last day');
select is((select count(*) from routeledger.replay_policy('tap510')), 7::bigint, 'the last thirty days by default');
select results_eq(
  $$ select outcome_id from routeledger.replay_policy('tap510', p_limit => 3) $$, $$ select outcome_id from routeledger.replay_policy('tap510', p_limit => 3) $$,
  'a sample is always the same');
select is(
  (select quality_source from routeledger.replay_policy('tap510', p_overrides => '{"min_samples": 61, "min_quality": 0.4}') where pg_temp.named(outcome_id) = 'other'), null,
  'fewer rewards than the policy trusts say nothing');
select is(
  (select model_slug from routeledger.replay_policy('tap510', p_overrides => '{"floor": "lower_bound", "min_quality": 0.97}') where pg_temp.named(outcome_id) = 'other'), null,
  'a lower bound counts as in the ranking');

-- how long the answer was is not known before it is given: at its own length the second would have stayed
do $$
begin
  perform routeledger.import_models('[
    {"model_slug": "tap510/wordy", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "q_prior": 0.9},
    {"model_slug": "tap510/terse", "input_usd_per_mtok": 0.5, "output_usd_per_mtok": 10, "q_prior": 0.9}]');
  perform routeledger.record_outcome('tap510-c', p_task_type => 'chat', p_candidates => '["tap510/wordy", "tap510/terse"]', p_attempts => jsonb_build_array(
    jsonb_build_object('model_slug', 'tap510/wordy', 'status', 'succeeded', 'input_tokens', 1000, 'output_tokens', n)))
  from unnest(array[10, 110]) n;
end
$$;
select results_eq(
  $$ select output_tokens, model_slug, trim_scale(cost_usd) from routeledger.replay_policy('tap510-c') order by 1 $$,
  $$ values (10::bigint, 'tap510/terse', 0.0006), (110, 'tap510/terse', 0.0016) $$,
  'the choice knows the mean length of the task type''s answers, the cost the one that came');

-- arguments and roles
select is(
  (select array_agg((c).code || ' ' || coalesce((c).detail ->> 'parameter', '') order by n) from (
    select n, pg_temp.caught(s) as c from unnest(array[
      $$ select * from routeledger.replay_policy('') $$,
      $$ select * from routeledger.replay_policy(repeat('x', 201)) $$,
      $$ select * from routeledger.replay_policy('tap510', p_limit => 0) $$,
      $$ select * from routeledger.replay_policy('tap510', p_limit => null) $$,
      $$ select * from routeledger.replay_policy('tap510', p_from => '2026-02-02', p_to => '2026-02-01') $$,
      $$ select * from routeledger.replay_policy('tap510', p_from => '-infinity') $$,
      $$ select * from routeledger.replay_policy('tap510', p_to => 'infinity') $$,
      $$ select * from routeledger.replay_policy('tap510', 'nobody') $$]) with ordinality t (s, n)) x),
  array['RL101 tenant_id', 'RL108 tenant_id', 'RL103 limit', 'RL101 limit', 'RL103 to', 'RL109 from', 'RL109 to', 'RL209 '], 'each fault by its code');
set local role tap510_bound;
select throws_ok($$ select * from routeledger.replay_policy('tap510') $$, 'RL110', null, 'not of a tenant that the role is not bound to');
select is_empty($$ select * from routeledger.replay_policy('tap510-b') $$, 'but of its own');
reset role;
set local role routeledger_writer;
select isnt_empty($$ select from routeledger.replay_policy('tap510') $$, 'writers replay');
set local role routeledger_reader;
select isnt_empty($$ select from routeledger.replay_policy('tap510') $$, 'and readers');
set local role routeledger_judge;
select throws_ok($$ select from routeledger.replay_policy('tap510') $$, '42501', null, 'judges do not');
reset role;
select is((select count(*) from routeledger.replay_policy('tap510', p_overrides => '{"min_quality": 1, "min_samples": 1000}')
  where model_slug is null and cost_usd is null and quality is null and cost_source is null), 7::bigint, 'what nothing clears goes unanswered');
select * from finish();
rollback;
