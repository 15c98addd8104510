-- 310 · Performance: buckets, from callers and from the ledger, and what is read off them.
begin;
\ir common.psql
create function pg_temp.day(p_days integer default 0) returns date
language sql stable
as $$ select (pg_temp.t0() at time zone 'UTC')::date + p_days $$;
create role tap310_bound in role routeledger_writer, routeledger_reader;
do $$ begin perform routeledger.grant_tenant('tap310_bound', 'tap310-b'), routeledger.grant_tenant('tap310_bound', 'tap310-c'); end $$;
select plan(91);

-- shape
select has_table('routeledger', 'model_performance_buckets', 'buckets');
select col_is_pk('routeledger', 'model_performance_buckets', array['tenant_id', 'model_key', 'task_type', 'day'], 'the natural key');
select is_empty(
  $$
    select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
    where i.indrelid = 'routeledger.model_performance_buckets'::regclass and i.indisprimary and not a.attnotnull
  $$,
  'no part of it is ever null');
select col_default_is('routeledger', 'model_performance_buckets', 'task_type', '__global__', 'without a task type: all of them');
select throws_ok(
  $$ insert into routeledger.model_performance_buckets (tenant_id, model_key, day, n, success_n) values ('tap310', 'm', '2026-11-20', 1, 2) $$,
  '23514', 'new row for relation "model_performance_buckets" violates check constraint "model_performance_buckets_counts_check"', 'no more successes than attempts');
select is(
  (select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
   from pg_attribute a where a.attrelid = 'routeledger.model_performance'::regclass and a.attnum > 0),
  'window_days integer, tenant_id text, model_key text, task_type text, from_day date, to_day date, n bigint, success_n bigint, success_rate double precision, '
  'reward_n bigint, mean_reward double precision, reward_se double precision, cost_n bigint, cost_usd numeric, mean_cost_usd numeric, cost_per_success_usd numeric, '
  'input_tokens bigint, output_tokens bigint, latency_n bigint, mean_latency_ms double precision, latency_p50_ms double precision, latency_p95_ms double precision',
  'the view');

-- sketches
select results_eq(
  $$ select routeledger._latency_bin(ms) from unnest(array[0, 0.0009, 0.001, 0.5, 1, 1.02, 1.0203, 1000, 1e10, 2e10]::double precision[]) with ordinality x (ms, o) order by o $$,
  array[-346, -346, -345, -34, 0, 1, 2, 346, 1152, 1152], 'the bin of a latency');
select is_empty(
  $$
    select x.ms, routeledger._bin_latency(routeledger._latency_bin(x.ms)) from (select 0.001::double precision * exp(i * 0.0173) from generate_series(0, 1730) i) x (ms)
    where abs(routeledger._bin_latency(routeledger._latency_bin(x.ms)) - x.ms) > x.ms * 0.01000001
  $$,
  'what a bin stands for is within 1 % of all that it holds');
select is(routeledger._bin_latency(-346), 0::double precision, 'but for the one below a microsecond');

-- brought in by callers
set local role routeledger_writer;
select is(
  (select r from routeledger.persist_model_performance(jsonb_build_array(
    jsonb_build_object('tenant_id', 'tap310', 'model_key', 'm', 'task_type', 'chat', 'day', pg_temp.day(), 'n', 12, 'reward_sum', 9, 'reward_sq_sum', 7),
    jsonb_build_object('tenant_id', 'tap310', 'model_key', 'm', 'task_type', 'chat', 'day', pg_temp.day(), 'n', 5, 'reward_sum', 1))) r)::text,
  '(2,1,1,0,0,0,[])', 'two buckets of one key in one call: one row');
reset role;
create function pg_temp.stored(p_tenant text) returns table (k text, v text)
language sql stable
as $$
  select concat_ws('/', b.model_key, b.task_type, b.day - pg_temp.day()),
    concat_ws(' ', b.n, coalesce(b.success_n::text, '-'), b.reward_n, round(b.reward_sum::numeric, 6), coalesce(round(b.reward_sq_sum::numeric, 6)::text, '-'), b.cost_n,
      coalesce(b.cost_success_n::text, '-'), coalesce(trim_scale(b.cost_usd)::text, '-'), coalesce(b.input_tokens::text, '-'), coalesce(b.output_tokens::text, '-'),
      b.latency_n, coalesce(b.latency_sum_ms::text, '-'), b.latency_bins, b.latency_counts, b.from_ledger)
  from routeledger.model_performance_buckets b where b.tenant_id = p_tenant order by 1
$$;
select results_eq(
  $$ select * from pg_temp.stored('tap310') $$, $$ values ('m/chat/0', '12 - 12 9.000000 7.000000 0 0 - - - 0 - {} {} f') $$, 'the one with the higher n: 12, not 5');
set local role routeledger_writer;
select is(
  (select r from routeledger.persist_model_performance(jsonb_build_array(
    jsonb_build_object('tenant_id', 'tap310', 'model_key', 'm', 'task_type', 'chat', 'day', pg_temp.day(), 'n', 7, 'reward_sum', 7))) r)::text,
  '(1,0,0,0,1,0,[])', 'so too against what is stored');
select is(
  (select r from routeledger.persist_model_performance(
    (select jsonb_agg(jsonb_build_object('tenant_id', 'tap310-50', 'model_key', 'm' || i, 'day', pg_temp.day(), 'n', i)) from generate_series(1, 50) i)) r)::text,
  '(50,0,50,0,0,0,[])', 'fifty buckets');
select is(
  (select r from routeledger.persist_model_performance(
    (select jsonb_agg(jsonb_build_object('tenant_id', 'tap310-50', 'model_key', 'm' || i, 'day', pg_temp.day(), 'n', i) order by i desc) from generate_series(1, 50) i)) r)::text,
  '(50,0,0,0,50,0,[])', 'again, backwards: nothing changes');
select is(
  (select r from routeledger.persist_model_performance('[]') r)::text, '(0,0,0,0,0,0,[])', 'none at all');
select is(
  (select r from routeledger.persist_model_performance(pg_temp.each(
    jsonb_build_object('tenant_id', 'tap310-key', 'model_key', 'm', 'day', pg_temp.day(), 'n', 1),
    '[{}, {"task_type": null, "n": 3}, {"task_type": "__global__", "n": 2}, {"task_type": "__GLOBAL__"}]')) r)::text,
  '(4,2,2,0,0,0,[])', 'without a task type, null and __global__: one key');
reset role;
select results_eq(
  $$ select k, split_part(v, ' ', 1) from pg_temp.stored('tap310-key') $$,
  $$ values ('m/__GLOBAL__/0', '1'), ('m/__global__/0', '3') $$, 'spelled exactly so');
set local role routeledger_writer;
select is(
  (select r from routeledger.persist_model_performance(pg_temp.each(
    jsonb_build_object('tenant_id', 'tap310-all', 'model_key', 'm', 'day', pg_temp.day(), 'n', 10),
    '[{"success_n": 8, "reward_n": 4, "reward_sum": 3, "reward_sq_sum": 2.5, "cost_n": 9, "cost_success_n": 7, "cost_usd": 0.5, "input_tokens": 100,
       "output_tokens": 50, "latency_n": 3, "latency_sum_ms": 6.5, "latency_bins": [0, 35, 55], "latency_counts": [1, 1, 1]},
      {"model_key": "m2", "success_n": 8, "cost_usd": 1, "latency_n": 10, "latency_sum_ms": 20},
      {"model_key": "m3", "cost_usd": 1, "latency_bins": [-346, 1152], "latency_counts": [9, 1]},
      {"model_key": "m4", "reward_n": 0, "cost_n": 0}]')) r)::text,
  '(4,0,4,0,0,0,[])', 'with everything that there is to say, and with less');
reset role;
select results_eq(
  $$ select * from pg_temp.stored('tap310-all') $$,
  $$
    values
      ('m/__global__/0', '10 8 4 3.000000 2.500000 9 7 0.5 100 50 3 6.5 {0,35,55} {1,1,1} f'),
      ('m2/__global__/0', '10 8 0 0.000000 0.000000 10 8 1 - - 10 20 {} {} f'),
      ('m3/__global__/0', '10 - 0 0.000000 0.000000 10 - 1 - - 10 - {-346,1152} {9,1} f'),
      ('m4/__global__/0', '10 - 0 0.000000 0.000000 0 0 - - - 0 - {} {} f')
  $$,
  'counts that go without saying');
set local role routeledger_writer;
create temp table answer on commit drop as
select r.* from routeledger.persist_model_performance(pg_temp.each(
  jsonb_build_object('tenant_id', 'tap310-bad', 'model_key', 'm', 'day', pg_temp.day(), 'n', 10),
  jsonb_build_array('{}'::jsonb,
    '{"tenant_id": ""}'::jsonb, '{"tenant_id": null}'::jsonb, jsonb_build_object('tenant_id', repeat('x', 201)), '{"model_key": null}'::jsonb, '{"model_key": ""}'::jsonb,
    jsonb_build_object('model_key', repeat('x', 301)), '{"task_type": ""}'::jsonb, jsonb_build_object('task_type', repeat('x', 201)), '{"day": null}'::jsonb, '{"day": "infinity"}'::jsonb,
    '{"day": "2026-11-20T23:00:00-05:00"}'::jsonb, '{"day": "20.11.2026"}'::jsonb, '{"day": "2026-02-30"}'::jsonb, '{"day": "1990-01-01"}'::jsonb, '{"day": "2999-01-01"}'::jsonb, '{"n": null}'::jsonb,
    '{"n": -1}'::jsonb, '{"n": 1000000000000001}'::jsonb, '{"n": "NaN"}'::jsonb, '{"success_n": 11}'::jsonb, '{"success_n": -1}'::jsonb, '{"reward_n": 11, "reward_sum": 1}'::jsonb, '{"reward_n": 1}'::jsonb,
    '{"reward_sum": "NaN"}'::jsonb, '{"reward_sum": "-Infinity"}'::jsonb, '{"reward_n": 0, "reward_sum": 1}'::jsonb, '{"reward_sum": 5, "reward_sq_sum": 2.4}'::jsonb, '{"reward_sum": 5, "reward_sq_sum": "Infinity"}'::jsonb,
    '{"reward_sum": 5, "reward_sq_sum": "NaN"}'::jsonb, '{"reward_n": 0, "reward_sq_sum": 1}'::jsonb, '{"cost_usd": "NaN"}'::jsonb, '{"cost_usd": "Infinity"}'::jsonb, '{"cost_usd": -1}'::jsonb,
    '{"cost_n": 1}'::jsonb, '{"cost_n": 11, "cost_usd": 1}'::jsonb, '{"cost_n": 0, "cost_usd": 1}'::jsonb, '{"success_n": 5, "cost_n": 3, "cost_success_n": 4, "cost_usd": 1}'::jsonb,
    '{"input_tokens": -1}'::jsonb, '{"output_tokens": 1000000000000001}'::jsonb, '{"latency_sum_ms": 5}'::jsonb, '{"latency_n": 11}'::jsonb, '{"latency_n": 0, "latency_sum_ms": 1}'::jsonb,
    '{"latency_n": 1, "latency_sum_ms": "NaN"}'::jsonb, '{"latency_n": 1, "latency_sum_ms": -1}'::jsonb, '{"latency_bins": [1, 2], "latency_counts": [1]}'::jsonb, '{"latency_bins": [1]}'::jsonb,
    '{"latency_bins": [2, 1], "latency_counts": [1, 1]}'::jsonb, '{"latency_bins": [1, 1], "latency_counts": [1, 1]}'::jsonb, '{"latency_bins": [-347], "latency_counts": [1]}'::jsonb,
    '{"latency_bins": [1153], "latency_counts": [1]}'::jsonb, '{"latency_bins": [null], "latency_counts": [1]}'::jsonb, '{"latency_bins": [1], "latency_counts": [0]}'::jsonb,
    '{"latency_bins": [1], "latency_counts": [null]}'::jsonb, '{"latency_n": 2, "latency_bins": [1], "latency_counts": [1]}'::jsonb, '{"latency_bins": [[1]], "latency_counts": [[1]]}'::jsonb,
    '{"latency_bins": [1], "latency_counts": [11]}'::jsonb, '{"colour": "blue"}'::jsonb, '{"n": [1]}'::jsonb) || '[5]')) r;
select is((select row(a.received, a.inserted, a.refused)::text from answer a), '(60,1,59)', 'one bad row never fails its neighbours');
create temp view refused as
select x.ord, x.code, x.message, x.hint, x.detail ->> 'parameter' as parameter
from answer a cross join jsonb_to_recordset(a.refusals) x (ord integer, code text, message text, hint text, detail jsonb);
select results_eq(
  $$ select code, parameter, array_agg(ord order by ord)::text from refused group by 1, 2 order by min(ord), 1, 2 $$,
  $$
    values
      ('RL101', 'tenant_id', '{2,3}'), ('RL108', 'tenant_id', '{4}'), ('RL101', 'model_key', '{5,6}'), ('RL108', 'model_key', '{7}'), ('RL103', 'task_type', '{8}'),
      ('RL108', 'task_type', '{9}'), ('RL101', 'day', '{10}'), ('RL107', 'day', '{11,12}'), ('RL107', 'row', '{13,14,20,60}'), ('RL109', 'day', '{15,16}'),
      ('RL101', 'n', '{17}'), ('RL103', 'n', '{18,19}'), ('RL103', 'success_n', '{21,22}'), ('RL103', 'reward_n', '{23}'), ('RL101', 'reward_sum', '{24}'),
      ('RL103', 'reward_sum', '{25,26,27}'), ('RL103', 'reward_sq_sum', '{28,29,30,31}'), ('RL103', 'cost_usd', '{32,33,34,37}'), ('RL101', 'cost_usd', '{35}'),
      ('RL103', 'cost_n', '{36}'), ('RL103', 'cost_success_n', '{38}'), ('RL103', 'input_tokens', '{39}'), ('RL103', 'output_tokens', '{40}'),
      ('RL101', 'latency_n', '{41}'), ('RL103', 'latency_n', '{42,57}'), ('RL103', 'latency_sum_ms', '{43,44,45}'), ('RL103', 'latency_bins', '{46,47,48,49,50,51,52,56}'),
      ('RL103', 'latency_counts', '{53,54,55}'), ('RL107', 'colour', '{58}'), ('RL107', 'n', '{59}')
  $$,
  'each for its own reason');
select is_empty(
  $$ select r.ord from refused r left join routeledger.errors() e on e.code = r.code and e.message = r.message and e.hint = r.hint where e.code is null $$,
  'in the words of errors()');
select throws_ok(
  $$ select * from routeledger.persist_model_performance(null) $$, 'RL101', 'a required argument is missing', 'rows are required');
select throws_ok(
  $$ select * from routeledger.persist_model_performance('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'as an array');
select throws_ok(
  $$ select * from routeledger.persist_model_performance((select jsonb_agg(i) from generate_series(1, 10001) i)) $$, 'RL501', 'too many rows in one call', 'of 10000');
set local role tap310_bound;
select results_eq(
  $$
    select r.inserted, r.refused, r.refusals #>> '{0,code}', r.refusals #>> '{0,ord}'
    from routeledger.persist_model_performance(pg_temp.each(jsonb_build_object('model_key', 'm', 'day', pg_temp.day(), 'n', 1),
      '[{"tenant_id": "tap310-b"}, {"tenant_id": "tap310"}, {"tenant_id": "tap310-c", "n": -1}, {"tenant_id": "tap310-c"}]')) r
  $$,
  $$ values (2::bigint, 2::bigint, 'RL110', '2') $$, 'a bound role brings in nothing for others');
reset role;
delete from routeledger.model_performance_buckets;

-- counted from the ledger
set local role routeledger_writer;
do $$
begin
  perform routeledger.record_outcome('tap310', pg_temp.id('o1'), p_task_type => 'chat', p_attempts => '[
    {"model_slug": "a", "status": "failed", "error_type": "429", "latency_ms": 100},
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1000, "output_tokens": 500, "cost_usd": 0.01, "latency_ms": 1000}]');
  perform routeledger.record_outcome('tap310', pg_temp.id('o2'), p_task_type => 'chat', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 10, "output_tokens": 5, "latency_ms": 2000}]');
  perform routeledger.record_outcome('tap310', pg_temp.id('o3'), p_traffic_class => 'shadow', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 2, "cost_usd": 0.03, "latency_ms": 3000}]');
  perform routeledger.record_outcome('tap310', pg_temp.id('o4'), p_task_type => '__global__', p_attempts => '[
    {"model_slug": "b", "status": "failed", "error_type": "abandoned", "input_tokens": 4, "output_tokens": 0, "cost_usd": 0.02}]');
  perform routeledger.record_outcome('tap310', pg_temp.id('o5'), p_traffic_class => 'synthetic', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 2}]');
  perform routeledger.record_outcome('tap310', pg_temp.id('o6'), p_traffic_class => 'replay', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 2}]');
  perform routeledger.insert_decision('tap310', pg_temp.id('o7'), p_candidates => '["c", "a"]', p_attempt_id => pg_temp.id('o7/1'), p_lease => '1 hour');
  perform routeledger.fail_attempt('tap310', pg_temp.id('o7'), pg_temp.id('o7/1'), '404', p_http_status => 404);
  perform routeledger.insert_decision('tap310', pg_temp.id('o8'), p_candidates => '["c"]', p_lease => '1 second');
  perform routeledger.insert_decision('tap310', pg_temp.id('o9'));
  perform pg_temp.at('1 minute');
  perform routeledger.reap(p_tenant_id => 'tap310');
  perform pg_temp.at('1 day');
  perform routeledger.record_outcome('tap310', p_task_type => 'chat', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "cost_usd": 0, "latency_ms": 0}]');
  perform routeledger.record_outcome('tap310-b', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "latency_ms": 1}]');
  perform routeledger.record_outcome('tap310-d', p_attempts => '[
    {"model_slug": "b", "status": "succeeded", "input_tokens": 1, "output_tokens": 1, "latency_ms": 1}]');
end
$$;
reset role;
-- as verdicts would
update routeledger.routing_outcomes o set reward = v.reward
from (values ('o1', 0.8), ('o2', 0.6), ('o4', 'NaN'), ('o5', 1)) v (name, reward) where o.tenant_id = 'tap310' and o.id = pg_temp.id(v.name);

set local role routeledger_writer;
select results_eq(
  $$ select r.buckets, r.inserted, r.updated, r.unchanged, r.watermark from routeledger.rollup_model_performance() r $$,
  $$ values (7::bigint, 7::bigint, 0::bigint, 0::bigint, pg_temp.t0() + interval '1 day') $$, 'the first roll-up counts all that there is');
reset role;
select results_eq(
  $$ select * from pg_temp.stored('tap310') $$,
  $$
    values
      ('a/chat/0', '1 0 0 0.000000 0.000000 0 0 - - - 0 - {} {} t'),
      ('b/__global__/0', '2 1 0 0.000000 0.000000 2 1 0.05 5 2 1 3000 {401} {1} t'),
      ('b/chat/0', '2 2 2 1.400000 1.000000 1 1 0.01 1010 505 2 3000 {346,381} {1,1} t'),
      ('b/chat/1', '1 1 0 0.000000 0.000000 1 1 0 1 1 1 0 {-346} {1} t'),
      ('c/__global__/0', '1 0 0 0.000000 0.000000 0 0 - - - 0 - {} {} t')
  $$,
  'attempts by model, task type and day: no synthetic traffic, nothing in flight, nothing that the reaper closed; null costs are not 0');
create temp table was as
select b.tenant_id, b.model_key, b.task_type, b.day, b.ctid as at, b.xmin as by from routeledger.model_performance_buckets b;
create function pg_temp.rewritten() returns table (k text)
language sql stable
as $$
  select concat_ws('/', b.tenant_id, b.model_key, b.task_type, b.day - pg_temp.day())
  from routeledger.model_performance_buckets b
  join was w using (tenant_id, model_key, task_type, day)
  where (b.ctid, b.xmin) is distinct from (w.at, w.by)
  order by 1
$$;
select results_eq(
  $$ select r.buckets, r.inserted, r.updated, r.unchanged, r.watermark from routeledger.rollup_model_performance() r $$,
  $$ values (7::bigint, 0::bigint, 0::bigint, 7::bigint, pg_temp.t0() + interval '1 day') $$, 'the second changes nothing');
select is_empty($$ select * from pg_temp.rewritten() $$, 'not a tuple');

-- a late completion, a late reward
do $$
begin
  perform routeledger.complete_decision('tap310', pg_temp.id('o8'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1, p_latency_ms => 10);
end
$$;
update routeledger.routing_outcomes o set reward = 0.4 where o.tenant_id = 'tap310' and o.id = pg_temp.id('o3');
select results_eq(
  $$ select r.inserted, r.updated, r.unchanged from routeledger.rollup_model_performance() r $$,
  $$ values (0::bigint, 2::bigint, 5::bigint) $$, 'what came late is counted');
select results_eq(
  $$ select * from pg_temp.rewritten() $$, array['tap310/b/__global__/0', 'tap310/c/__global__/0'], 'and no other bucket is written');
select results_eq(
  $$ select v from pg_temp.stored('tap310') where k in ('b/__global__/0', 'c/__global__/0') $$,
  array['2 1 1 0.400000 0.160000 2 1 0.05 5 2 1 3000 {401} {1} t', '2 1 0 0.000000 0.000000 0 0 - 1 1 1 10 {116} {1} t'], 'with the new numbers');

-- callers and the ledger
set local role routeledger_writer;
select is(
  (select r from routeledger.persist_model_performance(pg_temp.each(
    jsonb_build_object('tenant_id', 'tap310', 'task_type', 'chat', 'day', pg_temp.day(), 'n', 1000), '[{"model_key": "b"}, {"model_key": "x"}]')) r)::text,
  '(2,0,1,0,1,0,[])', 'what the ledger has counted no caller replaces');
do $$
begin
  perform pg_temp.at('0');
  perform routeledger.record_outcome('tap310', p_task_type => 'chat', p_attempts => '[{"model_slug": "x", "status": "failed", "error_type": "x"}]');
  perform pg_temp.at('1 day');
end
$$;
select results_eq(
  $$ select r.inserted, r.updated, r.unchanged from routeledger.rollup_model_performance() r $$,
  $$ values (0::bigint, 1::bigint, 7::bigint) $$, 'the ledger replaces what a caller brought');
reset role;
select is((select split_part(v, ' ', 1) from pg_temp.stored('tap310') where k = 'x/chat/0'), '1', 'however much that was');

-- days, tenants and the watermark
create function pg_temp.rolled(p_from integer, p_to integer, p_tenant text default null) returns text
language sql volatile
as $$
  select concat_ws(' ', r.days, r.buckets, to_char(r.watermark - pg_temp.t0(), 'DD HH24:MI'))
  from routeledger.rollup_model_performance(pg_temp.day(p_from), pg_temp.day(p_to), p_tenant) r
$$;
do $$ begin perform pg_temp.at('5 days'); end $$;
select is(pg_temp.rolled(0, 1), '1 5 01 00:00', 'from a day up to, not including, another; the watermark stays');
select is(pg_temp.rolled(1, 2), '1 3 01 00:00', 'the next day');
select is(pg_temp.rolled(1, 1), '0 0 01 00:00', 'no day');
select is(
  (select count(*) from routeledger._partitions() p, pg_temp.rolled(-7000, 7000, 'tap310-b') r (text)
   where split_part(r.text, ' ', 1)::integer = (select max(routeledger._floor_time(q.upper_id)) from routeledger._partitions() q)::date
     - (select min(routeledger._floor_time(q.lower_id)) from routeledger._partitions() q)::date) > 0, true, 'only days that have partitions are looked at');
select is(
  (select concat_ws(' ', r.buckets, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance(pg_temp.day(2)) r), '0 1 day',
  'from a day that is later than where it stands: the watermark stays');
select is(
  (select concat_ws(' ', r.buckets, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance(p_to => pg_temp.day(1)) r), '5 1 day',
  'up to a day: so too');
select is(
  (select concat_ws(' ', r.buckets, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance(p_tenant_id => 'tap310-b') r), '1 5 days',
  'of one tenant: its watermark moves');
select is(
  (select concat_ws(' ', r.days, r.buckets, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance(p_tenant_id => 'tap310-b') r), '4 0 5 days',
  'and the next one begins three days before it');
select results_eq(
  $$ select w.tenant_id, w.watermark - pg_temp.t0() from routeledger.rollup_watermarks w order by 1 $$,
  $$ values ('', interval '1 day'), ('tap310-b', '5 days') $$, 'the others'' stays');
select is(
  (select concat_ws(' ', r.days, r.buckets, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance(pg_temp.day(-2)) r), '8 8 5 days',
  'from as far back as an incremental one begins: the watermark moves');
do $$ begin perform routeledger.configure('{"rollup_look_back": "1 day"}'), pg_temp.at('5 days 12 hours'); end $$;
select is(
  (select concat_ws(' ', r.days, r.watermark - pg_temp.t0()) from routeledger.rollup_model_performance() r), '2 5 days 12:00:00', 'the look-back is a setting');
do $$ begin perform pg_temp.at('4 days'); end $$;
select is(
  (select r.watermark - pg_temp.t0() from routeledger.rollup_model_performance() r), interval '5 days 12:00:00', 'a clock that goes back does not move it back');
do $$ begin perform pg_temp.at('6 days'); end $$;
update routeledger.model_performance_buckets b set n = b.n + 1 where b.tenant_id ~ '^tap310';
set local role tap310_bound;
select results_eq(
  $$ select r.buckets, r.updated, r.watermark from routeledger.rollup_model_performance(pg_temp.day(-100)) r $$,
  $$ values (1::bigint, 1::bigint, pg_temp.t0() + interval '6 days') $$, 'a bound role: its tenants');
select throws_ok(
  $$ select * from routeledger.rollup_model_performance(p_tenant_id => 'tap310') $$, 'RL110', 'this role is bound to other tenants', 'and no other');
reset role;
select results_eq(
  $$ select w.tenant_id, w.watermark - pg_temp.t0() from routeledger.rollup_watermarks w order by 1 $$,
  $$ values ('', interval '5 days 12:00:00'), ('tap310-b', '6 days'), ('tap310-c', '6 days') $$, 'theirs move');
do $$ begin perform routeledger.rollup_model_performance(pg_temp.day(-7)); end $$;
select throws_ok($$ select * from routeledger.rollup_model_performance(p_tenant_id => '') $$, 'RL101', 'a required argument is missing', 'an empty tenant');
select throws_ok(
  $$ select * from routeledger.rollup_model_performance(p_tenant_id => repeat('x', 201)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a long one');
select throws_ok(
  $$ select * from routeledger.rollup_model_performance('-infinity') $$, 'RL109', 'a time is not finite or not plausible', 'from the beginning of time');
select throws_ok(
  $$ select * from routeledger.rollup_model_performance(p_to => '5001-01-01') $$, 'RL109', 'a time is not finite or not plausible', 'to its end');
select throws_ok(
  $$ select * from routeledger.rollup_model_performance('2026-11-20', '2026-11-19') $$, 'RL103', 'a number is outside the range allowed for it', 'backwards');

-- what is read off them
set local role routeledger_writer;
do $$
begin
  perform routeledger.persist_model_performance(pg_temp.each(
    jsonb_build_object('tenant_id', 'tap310-b', 'model_key', 'w', 'n', 10),
    jsonb_build_array(
      jsonb_build_object('day', pg_temp.day(0), 'reward_sum', 5, 'reward_sq_sum', 3.5, 'success_n', 8, 'cost_usd', 1, 'latency_bins', '[100, 200]'::jsonb, 'latency_counts', '[2, 2]'::jsonb,
        'latency_sum_ms', 123, 'input_tokens', 7, 'output_tokens', 8),
      jsonb_build_object('day', pg_temp.day(3), 'n', 20, 'reward_n', 2, 'reward_sum', 1, 'reward_sq_sum', 0.5, 'cost_n', 5, 'cost_usd', 2, 'latency_n', 3, 'input_tokens', 3),
      jsonb_build_object('day', pg_temp.day(6), 'n', 40, 'success_n', 10, 'latency_bins', '[50, 200]'::jsonb, 'latency_counts', '[6, 1]'::jsonb),
      jsonb_build_object('day', pg_temp.day(6), 'model_key', 'one', 'n', 1, 'reward_sum', 0.5),
      jsonb_build_object('day', pg_temp.day(6), 'model_key', 'same', 'n', 3, 'reward_sum', 0.3, 'reward_sq_sum', 0.03))));
end
$$;
set local role routeledger_reader;
create function pg_temp.seen(p routeledger.model_performance) returns text
language sql stable
as $$
  select concat_ws(' ', p.tenant_id, p.model_key, p.task_type, p.from_day - pg_temp.day(), p.to_day - pg_temp.day(), p.n, coalesce(p.success_n::text, '-'),
    coalesce(round(p.success_rate::numeric, 4)::text, '-'), p.reward_n, coalesce(round(p.mean_reward::numeric, 4)::text, '-'), coalesce(round(p.reward_se::numeric, 4)::text, '-'),
    p.cost_n, coalesce(round(p.cost_usd, 4)::text, '-'), coalesce(round(p.mean_cost_usd, 4)::text, '-'), coalesce(round(p.cost_per_success_usd, 4)::text, '-'),
    coalesce(p.input_tokens::text, '-'), coalesce(p.output_tokens::text, '-'), p.latency_n, coalesce(round(p.mean_latency_ms::numeric, 2)::text, '-'),
    coalesce(round(p.latency_p50_ms::numeric, 2)::text, '-'), coalesce(round(p.latency_p95_ms::numeric, 2)::text, '-'))
$$;
select results_eq(
  $$ select pg_temp.seen(p) from routeledger.model_performance p where p.window_days = 1 and p.tenant_id = 'tap310-b' order by p.model_key $$,
  array[
    'tap310-b one __global__ 6 7 1 - - 1 0.5000 - 0 - - - - - 0 - - -',
    'tap310-b same __global__ 6 7 3 - - 3 0.1000 0.0000 0 - - - - - 0 - - -',
    'tap310-b w __global__ 6 7 40 10 0.2500 0 - - 0 - - - - - 7 - 2.69 54.06'], 'the view: today; below two rewards no standard error, and equal ones have none to speak of');
select results_eq(
  $$ select pg_temp.seen(p) from routeledger.model_performance p where p.window_days = 4 and p.tenant_id = 'tap310-b' and p.model_key = 'w' $$,
  array['tap310-b w __global__ 3 7 60 10 0.2500 2 0.5000 0.0000 5 2.0000 0.4000 - 3 - 10 - 2.69 54.06'], 'four days: what is unknown counts for nothing');
select results_eq(
  $$ select pg_temp.seen(p) from routeledger.model_performance p where p.window_days = 7 and p.tenant_id = 'tap310-b' and p.model_key = 'w' $$,
  array['tap310-b w __global__ 0 7 70 18 0.3600 12 0.5000 0.0870 15 3.0000 0.2000 0.1250 10 8 14 30.75 2.69 54.06'], 'a week: sums, rates and merged sketches');
select is(
  (select count(distinct p.window_days) from routeledger.model_performance p where p.tenant_id = 'tap310'), 361::bigint, 'windows of every length reach back to what there is');
select is(
  (select count(*) from routeledger.model_performance p where p.window_days in (0, 367, -1)), 0::bigint, 'from 1 to 366');
select results_eq(
  $$
    select pg_temp.seen(row(7, p.*)::routeledger.model_performance) from routeledger.model_performance_between(null, pg_temp.day(0), pg_temp.day(7)) p order by p.tenant_id, p.model_key, p.task_type
  $$,
  $$
    select pg_temp.seen(p) from routeledger.model_performance p where p.window_days = 7 order by p.tenant_id, p.model_key, p.task_type
  $$,
  'the function says the same');
select results_eq(
  $$ select p.tenant_id, p.model_key, p.n from routeledger.model_performance_between('tap310', pg_temp.day(0), pg_temp.day(1), 'chat') p order by 2 $$,
  $$ values ('tap310', 'a', 1::bigint), ('tap310', 'b', 2), ('tap310', 'x', 1) $$, 'of one tenant, one day, one task type');
select is_empty($$ select * from routeledger.model_performance_between('tap310', pg_temp.day(0), pg_temp.day(0)) $$, 'no day, no row');
set local role tap310_bound;
select results_eq(
  $$ select distinct p.tenant_id from routeledger.model_performance p where p.window_days in (7, 30) $$, array['tap310-b'], 'a bound role sees its tenants in the view');
select results_eq(
  $$ select distinct p.tenant_id from routeledger.model_performance_between(null, pg_temp.day(0), pg_temp.day(7)) p $$, array['tap310-b'], 'and in the function');
select throws_ok(
  $$ select * from routeledger.model_performance_between('tap310', pg_temp.day(0), pg_temp.day(7)) $$, 'RL110', 'this role is bound to other tenants',
  'and may not ask for others');
set local role routeledger_reader;
select throws_ok(
  $$ select * from routeledger.model_performance_between('', '2026-11-20', '2026-11-21') $$, 'RL101', 'a required argument is missing', 'an empty tenant');
select throws_ok(
  $$ select * from routeledger.model_performance_between(repeat('x', 201), '2026-11-20', '2026-11-21') $$, 'RL108', 'a text or document is longer than the ledger keeps',
  'a long one');
select throws_ok($$ select * from routeledger.model_performance_between('t', null, '2026-11-21') $$, 'RL101', 'a required argument is missing', 'from');
select throws_ok($$ select * from routeledger.model_performance_between('t', '2026-11-21', null) $$, 'RL101', 'a required argument is missing', 'to');
select throws_ok(
  $$ select * from routeledger.model_performance_between('t', '-infinity', '2026-11-21') $$, 'RL109', 'a time is not finite or not plausible', 'finite');
select throws_ok(
  $$ select * from routeledger.model_performance_between('t', '2026-11-20', 'infinity') $$, 'RL109', 'a time is not finite or not plausible', 'both');
select throws_ok(
  $$ select * from routeledger.model_performance_between('t', '2026-11-20', '2026-11-19') $$, 'RL103', 'a number is outside the range allowed for it', 'in order');

-- rewards that come after their day was counted
reset role;
create function pg_temp.reward(p_name text, p_reward double precision) returns void
language plpgsql volatile
as $$
begin
  update routeledger.routing_outcomes o set reward = p_reward where o.tenant_id = 'tap310' and o.id = pg_temp.id(p_name);
  perform routeledger._note_late_rewards(array['tap310', 'tap310'], array[pg_temp.id('o1'), pg_temp.id(p_name)]);
end
$$;
create function pg_temp.marks() returns text
language sql stable
as $$ select string_agg(concat_ws('/', d.tenant_id, d.day - pg_temp.day()), ' ' order by d.tenant_id, d.day) from routeledger.rollup_days d $$;
create function pg_temp.rewards_of(p_key text) returns text
language sql stable
as $$ select array_to_string((string_to_array(v, ' '))[3:5], ' ') from pg_temp.stored('tap310') where k = p_key $$;
do $$ begin perform pg_temp.reward('o1', 0.5), pg_temp.reward('o2', 0.3); end $$;
select is(pg_temp.marks(), 'tap310/0', 'a mark on the day, one for the transaction');
select is((select d.noted_at - pg_temp.t0() from routeledger.rollup_days d), interval '6 days', 'with the time of the last reward');
select is(
  (select concat_ws(' ', r.days, r.updated) from routeledger.rollup_model_performance(pg_temp.day(1)) r), '6 0', 'a roll-up of other days leaves it');
select is(
  (select concat_ws(' ', r.days, r.updated) from routeledger.rollup_model_performance(p_to => pg_temp.day(0)) r), '0 0', 'so does one that ends before');
select is(
  (select concat_ws(' ', r.days, r.updated) from routeledger.rollup_model_performance(p_tenant_id => 'tap310-b') r), '2 0', 'and that of another tenant');
select is(pg_temp.marks(), 'tap310/0', 'it is still there');
select is(
  (select concat_ws(' ', r.days, r.buckets, r.inserted, r.updated, r.unchanged) from routeledger.rollup_model_performance() r), '3 5 0 1 4',
  'an incremental roll-up counts its day as well, those of one tenant');
select is(pg_temp.rewards_of('b/chat/0'), '2 0.800000 0.340000', 'and the rewards with it');
select is(pg_temp.marks(), null, 'the mark is gone');
select is((select r.days from routeledger.rollup_model_performance() r), 2, 'the next one passes the day over');
do $$ begin perform pg_temp.reward('o1', null); end $$;
insert into routeledger.rollup_days (tenant_id, day, id, noted_at)
values ('tap310-d', pg_temp.day(1), pg_temp.id('1'), now()), ('tap310-d', pg_temp.day(1), pg_temp.id('2'), now()), ('tap310-d', '1999-12-31', pg_temp.id('3'), now());
select is(
  (select concat_ws(' ', r.days, r.buckets, r.updated) from routeledger.rollup_model_performance() r), '4 7 1', 'a reward taken back; two marked days in a row; marks of which nothing is left');
select is(pg_temp.rewards_of('b/chat/0'), '1 0.300000 0.090000', 'the reward is gone');
select is(pg_temp.marks(), null, 'and so are the marks');
do $$ begin perform pg_temp.reward('o1', 1); end $$;
select is(
  (select concat_ws(' ', r.days, r.updated) from routeledger.rollup_model_performance(pg_temp.day(0), pg_temp.day(1)) r), '1 1', 'a roll-up of just that day');
select is(pg_temp.marks(), null, 'takes its marks away too');

-- where partitions are dropped, the buckets stay
delete from routeledger.routing_outcomes o where o.tenant_id = 'tap310';
select results_eq(
  $$ select r.buckets, r.inserted, r.updated from routeledger.rollup_model_performance(pg_temp.day(0), pg_temp.day(7), 'tap310') r $$,
  $$ values (0::bigint, 0::bigint, 0::bigint) $$, 'a ledger without rows makes no buckets');
select is((select count(*) from pg_temp.stored('tap310')), 6::bigint, 'and takes none away');

select * from finish();
rollback;
