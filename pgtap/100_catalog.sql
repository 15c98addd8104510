-- 100 · Catalog: models, dated prices, what a usage costs, and what is implausible.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"implausible_factor": 10, "implausible_usd_per_mtok": 10000}'); end $$;
select plan(61);

select has_table('routeledger', 'models', 'models exists');
select col_is_pk('routeledger', 'models', 'model_slug', 'keyed by slug');
select has_table('routeledger', 'model_prices', 'model_prices exists');
select col_is_pk('routeledger', 'model_prices', array['model_slug', 'valid_from'], 'keyed by slug and date');
select fk_ok('routeledger', 'model_prices', 'model_slug', 'routeledger', 'models', 'model_slug', 'a price is of a model');
select throws_ok(
  $$ insert into routeledger.models (model_slug) values ('') $$, '23514',
  'new row for relation "models" violates check constraint "models_model_slug_check"', 'a slug is not empty');
select throws_ok(
  $$ insert into routeledger.models (model_slug, q_prior) values ('tap100', 1.01) $$, '23514',
  'new row for relation "models" violates check constraint "models_q_prior_check"', 'a prior is a share');
select throws_ok(
  $$ insert into routeledger.models (model_slug, expected_latency_ms) values ('tap100', 'NaN') $$, '23514',
  'new row for relation "models" violates check constraint "models_expected_latency_ms_check"', 'a latency is a number');
select is_empty(
  $$
    select v.price
    from (values ('input'), ('output'), ('cache_read'), ('cache_creation')) v (price)
    cross join lateral pg_temp.caught(format(
      'with m as (insert into routeledger.models (model_slug) values (''tap100'')) '
      'insert into routeledger.model_prices (model_slug, valid_from, %I) values (''tap100'', ''epoch'', -1)', v.price || '_usd_per_mtok')) c
    where c.code is distinct from '23514'
  $$,
  'no price is negative, also where the others are unknown');

-- _read_rows
select throws_ok(
  $$ select routeledger._read_rows(null::routeledger.start_input, null, '{}') $$, 'RL101', 'a required argument is missing', 'no rows at all');
select throws_ok(
  $$ select routeledger._read_rows(null::routeledger.start_input, '{}', '{}') $$, 'RL107',
  'a row does not have the shape of this routine''s parameters', 'not an array');
select throws_ok(
  $$
    select routeledger._read_rows(null::routeledger.start_input, jsonb_agg('{}'::jsonb), '{}') from generate_series(1, 10001)
  $$,
  'RL501', 'too many rows in one call', 'more than 10000 rows');
select is(
  (select c.detail from pg_temp.caught($$
    select routeledger._read_rows(null::routeledger.start_input, jsonb_agg('{}'::jsonb), '{}') from generate_series(1, 10001) $$) c),
  '{"rows": 10001, "limit": 10000}'::jsonb, 'DETAIL says how many');
select is(
  (select cardinality(r.faults) from routeledger._read_rows(
    null::routeledger.start_input, (select jsonb_agg('{}'::jsonb) from generate_series(1, 10000)), '{}') r),
  10000, '10000 are read');
select results_eq(
  $$ select r.inputs, r.faults from routeledger._read_rows(null::routeledger.start_input, '[]', '{}') r $$,
  $$ values ('{}'::routeledger.start_input[], '{}'::text[]) $$, 'none are no rows');
select results_eq(
  $$
    select r.inputs[1].tenant_id, r.inputs[2].model_slug, r.inputs[2].tenant_id, r.faults
    from routeledger._read_rows(null::routeledger.start_input, '[{"tenant_id": "a"}, {"model_slug": "m", "tenant_id": null}]', '{}') r
  $$,
  $$ values ('a', 'm', null::text, array[null, null]::text[]) $$, 'rows of the right shape, in their order');
select results_eq(
  $$
    select n, r.inputs[n].tenant_id, r.faults[n]
    from routeledger._read_rows(null::routeledger.start_input,
      '[{"tenant_id": "a"}, 1, {"tenant": "a"}, {"two words": 1}, {"id": "x"}, null, [], {"tenant_id": ["a"]}, {"provider": {"a": 1}},
        {"tenant_id": "b"}]', '{}') r
    cross join generate_series(1, cardinality(r.faults)) n
  $$,
  $$
    values
      (1, 'a', null), (2, null, 'RL107 row a JSON object'), (3, null, 'RL107 tenant no such parameter'),
      (4, null, 'RL107 two_words no such parameter'), (5, null, 'RL107 row invalid input syntax for type uuid: "x"'),
      (6, null, 'RL107 row a JSON object'), (7, null, 'RL107 row a JSON object'), (8, null, 'RL107 tenant_id a single value'),
      (9, null, 'RL107 provider a single value'), (10, 'b', null)
  $$,
  'a misshapen row is a fault in its place, and leaves its neighbours alone');
select results_eq(
  $$
    select r.inputs[1].tenant_id, r.faults[2]
    from routeledger._read_rows(null::routeledger.start_input, '[{"tenant_id": "a"}, {"tenant_id": "a", "id": 5}]', '{}') r
  $$,
  $$ values ('a', 'RL107 row invalid input syntax for type uuid: "5"') $$, 'also where all the names are right');
select results_eq(
  $$
    select r.inputs[1].candidates, r.inputs[1].metadata, r.faults[1]
    from routeledger._read_rows(null::routeledger.decision_input, '[{"candidates": ["a"], "metadata": {"a": [1]}}]', array['candidates', 'metadata']) r
  $$,
  $$ values ('["a"]'::jsonb, '{"a": [1]}'::jsonb, null::text) $$, 'what is JSON by type may be nested');

-- import_models: who
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.import_models('[]') $$, '42501', 'permission denied for function import_models', 'a writer may not import');
set local role routeledger_admin;

-- import_models: what
select results_eq(
  $$
    select r.ord, r.status, r.code, r.model_slug, r.valid_from, r.flag
    from routeledger.import_models('[
      {"model_slug": "tap100/p/alpha", "provider": "p", "brand_slug": "b", "mode": "chat", "valid_from": "2026-01-01T00:00Z",
       "input_usd_per_mtok": 2, "output_usd_per_mtok": 8, "cache_read_usd_per_mtok": 0.5, "cache_creation_usd_per_mtok": 2.5,
       "max_input_tokens": 128000, "max_output_tokens": 16384, "deprecated_at": "2030-01-01T00:00Z", "q_prior": 0.7,
       "expected_latency_ms": 900, "source": "tap"},
      {"model_slug": "tap100-bare"}
    ]') r
  $$,
  $$
    values
      (1, 'accepted', null::text, 'tap100/p/alpha', '2026-01-01 00:00+00'::timestamptz, null::text),
      (2, 'accepted', null, 'tap100-bare', null, null)
  $$,
  'rows come in, in their order; one without date and prices has no price row');
reset role;
select results_eq(
  $$
    select m.provider, m.brand_slug, m.base_model, m.mode, m.q_prior, m.enrolled, m.expected_latency_ms, m.max_input_tokens,
      m.max_output_tokens, m.deprecated_at
    from routeledger.models m where m.model_slug in ('tap100/p/alpha', 'tap100-bare') order by m.model_slug desc
  $$,
  $$
    values
      ('p', 'b', 'alpha', 'chat', 0.7::double precision, true, 900::double precision, 128000::bigint, 16384::bigint,
       '2030-01-01 00:00+00'::timestamptz),
      (null, null, 'tap100-bare', null, null, true, null, null, null, null)
  $$,
  'the models; base_model defaults to the last path segment, enrolled to true');
select results_eq(
  $$
    select p.input_usd_per_mtok, p.output_usd_per_mtok, p.cache_read_usd_per_mtok, p.cache_creation_usd_per_mtok, p.source
    from routeledger.model_prices p where p.model_slug in ('tap100/p/alpha', 'tap100-bare') order by p.model_slug desc
  $$,
  $$ values (2::numeric, 8::numeric, 0.5, 2.5, 'tap') $$,
  'the prices; a row without date and prices makes none');
set local role routeledger_admin;
select results_eq(
  $$
    select r.status, r.valid_from from routeledger.import_models('[
      {"model_slug": "tap100/p/alpha", "valid_from": "2026-01-01T00:00Z",
       "input_usd_per_mtok": 2, "output_usd_per_mtok": 8, "cache_read_usd_per_mtok": 0.5, "cache_creation_usd_per_mtok": 2.5, "source": "tap"},
      {"model_slug": "tap100-bare"}]') r
  $$,
  $$ values ('replayed', '2026-01-01 00:00+00'::timestamptz), ('replayed', null) $$, 'what is stored already is replayed');
select results_eq(
  $$
    select r.status from routeledger.import_models('[
      {"model_slug": "tap100/p/alpha", "valid_from": "2026-01-01T00:00Z", "q_prior": 0.8,
       "input_usd_per_mtok": 2, "output_usd_per_mtok": 8, "cache_read_usd_per_mtok": 0.5, "cache_creation_usd_per_mtok": 2.5, "source": "tap"},
      {"model_slug": "tap100-bare", "enrolled": false},
      {"model_slug": "tap100-bare", "input_usd_per_mtok": 1},
      {"model_slug": "tap100-bare", "input_usd_per_mtok": 3}]') r
  $$,
  $$ values ('accepted'), ('accepted'), ('accepted'), ('accepted') $$, 'a changed field is accepted');
reset role;
select results_eq(
  $$ select m.q_prior, m.provider from routeledger.models m where m.model_slug = 'tap100/p/alpha' $$,
  $$ values (0.8::double precision, 'p') $$, 'what is absent stays as it was');
select results_eq(
  $$
    select m.enrolled, p.input_usd_per_mtok
    from routeledger.models m join routeledger.model_prices p on p.model_slug = m.model_slug where m.model_slug = 'tap100-bare'
  $$,
  $$ values (false, 3::numeric) $$, 'of two rows for one date the later wins');
set local role routeledger_admin;
select is(
  (select r.status from routeledger.import_models(
    '[{"model_slug": "tap100/p/alpha", "provider": "old", "valid_from": "2025-01-01T00:00Z", "input_usd_per_mtok": 4}]') r),
  'accepted', 'an older price may come later');
reset role;
select is(
  (select m.provider from routeledger.models m where m.model_slug = 'tap100/p/alpha'), 'p', 'and says nothing about the model of today');
set local role routeledger_admin;

-- import_models: refusals
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint
    from routeledger.import_models(pg_temp.each('{"model_slug": "tap100/x"}', jsonb_build_array(
      '{"model_slug": null}'::jsonb,
      '{"model_slug": ""}'::jsonb,
      jsonb_build_object('model_slug', repeat('x', 301)),
      jsonb_build_object('provider', repeat('x', 301)),
      jsonb_build_object('source', repeat('x', 301)),
      '{"valid_from": "infinity"}'::jsonb,
      jsonb_build_object('valid_from', now() + interval '11 years'),
      '{"deprecated_at": "-infinity"}'::jsonb,
      '{"input_usd_per_mtok": -1}'::jsonb,
      '{"output_usd_per_mtok": "NaN"}'::jsonb,
      '{"cache_read_usd_per_mtok": 1e10}'::jsonb,
      '{"cache_creation_usd_per_mtok": -0.001}'::jsonb,
      '{"q_prior": 1.1}'::jsonb,
      '{"expected_latency_ms": "infinity"}'::jsonb,
      '{"max_input_tokens": -1}'::jsonb,
      '{"max_output_tokens": -1}'::jsonb,
      '{"price": 1}'::jsonb,
      '{"input_usd_per_mtok": "cheap"}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
    order by r.ord
  $$,
  $$
    values
      (1, 'refused', 'RL101', 'model_slug', true), (2, 'refused', 'RL101', 'model_slug', true), (3, 'refused', 'RL108', 'model_slug', true),
      (4, 'refused', 'RL108', 'provider,brand_slug,base_model,mode,source', true),
      (5, 'refused', 'RL108', 'provider,brand_slug,base_model,mode,source', true),
      (6, 'refused', 'RL109', 'valid_from', true), (7, 'refused', 'RL109', 'valid_from', true),
      (8, 'refused', 'RL109', 'deprecated_at', true), (9, 'refused', 'RL103', 'input_usd_per_mtok', true),
      (10, 'refused', 'RL103', 'output_usd_per_mtok', true), (11, 'refused', 'RL103', 'cache_read_usd_per_mtok', true),
      (12, 'refused', 'RL103', 'cache_creation_usd_per_mtok', true), (13, 'refused', 'RL103', 'q_prior', true),
      (14, 'refused', 'RL103', 'expected_latency_ms', true), (15, 'refused', 'RL103', 'max_input_tokens', true),
      (16, 'refused', 'RL103', 'max_output_tokens', true), (17, 'refused', 'RL107', 'price', true), (18, 'refused', 'RL107', 'row', true)
  $$,
  'each bad field is refused by name');
select is_empty(
  $$ select r.model_slug from routeledger.current_prices r where r.model_slug like 'tap100/x%' $$, 'and nothing of it is stored');
select results_eq(
  $$
    select r.status, r.code from routeledger.import_models(
      '[{"model_slug": "tap100/good"}, {"model_slug": "tap100/bad", "q_prior": 2}, {"model_slug": "tap100/better"}]') r
  $$,
  $$ values ('accepted', null), ('refused', 'RL103'), ('accepted', null) $$, 'a bad row does not fail its neighbours');
select is_empty($$ select * from routeledger.import_models('[]') $$, 'no rows, no answers');
select throws_ok(
  $$ select routeledger.import_models(null) $$, 'RL101', 'a required argument is missing', 'the rows are required');
select throws_ok(
  $$ select routeledger.import_models('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'as an array');

-- flags
select results_eq(
  $$
    select r.model_slug, r.flag from routeledger.import_models('[
      {"model_slug": "tap100/a/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2, "output_usd_per_mtok": 8},
      {"model_slug": "tap100/b/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 20, "output_usd_per_mtok": 8}]') r
  $$,
  $$ values ('tap100/a/fam', null::text), ('tap100/b/fam', null) $$,
  'with one neighbour nobody can tell which price is wrong');
select results_eq(
  $$
    select r.model_slug, r.flag from routeledger.import_models('[
      {"model_slug": "tap100/c/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2.5, "output_usd_per_mtok": 9},
      {"model_slug": "tap100/d/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2, "output_usd_per_mtok": 7},
      {"model_slug": "tap100/e/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 0.2, "output_usd_per_mtok": 8},
      {"model_slug": "tap100/f/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2, "output_usd_per_mtok": 80},
      {"model_slug": "tap100/g/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2, "output_usd_per_mtok": 0.8},
      {"model_slug": "tap100/h/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
      {"model_slug": "tap100/i/fam", "base_model": "tap100-fam"},
      {"model_slug": "tap100/j/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 19.9, "output_usd_per_mtok": 8}]') r
  $$,
  $$
    values
      ('tap100/c/fam', null::text), ('tap100/d/fam', null), ('tap100/e/fam', 'input_below_neighbours'),
      ('tap100/f/fam', 'output_above_neighbours'), ('tap100/g/fam', 'output_below_neighbours'), ('tap100/h/fam', null),
      ('tap100/i/fam', null), ('tap100/j/fam', null)
  $$,
  'an order of magnitude off the median of the same model is flagged, either way; free and unknown are not');
reset role;
select is(
  (select p.flag from routeledger.model_prices p where p.model_slug = 'tap100/b/fam'), 'input_above_neighbours',
  'a price that was not in the call is judged again');
set local role routeledger_admin;
select results_eq(
  $$
    select r.status, r.flag from routeledger.import_models(
      '[{"model_slug": "tap100/b/fam", "base_model": "tap100-fam", "input_usd_per_mtok": 2, "output_usd_per_mtok": 8}]') r
  $$,
  $$ values ('accepted', null::text) $$, 'a price put right loses its flag');
select results_eq(
  $$ select r.status, r.flag from routeledger.import_models('[{"model_slug": "tap100/b/fam", "input_usd_per_mtok": 2000}]') r $$,
  $$ values ('accepted', 'input_above_neighbours') $$, 'a row that leaves base_model out is judged within the one that is stored');
select lives_ok(
  $$ select routeledger.configure('{"implausible_factor": 5}') $$, 'the factor is a setting');
reset role;
select cmp_ok(routeledger._flag_prices(array['tap100-fam']), '>', 0, '_flag_prices() says how many flags changed');
select is(routeledger._flag_prices(array['tap100-fam']), 0, 'and then no more');
select is(
  (select p.flag from routeledger.model_prices p where p.model_slug = 'tap100/j/fam'), 'input_above_neighbours', 'a stricter factor flags more');
do $$ begin perform routeledger.configure('{"implausible_factor": 10}'); end $$;
do $$
begin
  perform routeledger.import_models('[
    {"model_slug": "tap100/p/moved", "base_model": "tap100-old", "input_usd_per_mtok": 1},
    {"model_slug": "tap100/q/moved", "base_model": "tap100-old", "input_usd_per_mtok": 1},
    {"model_slug": "tap100/r/moved", "base_model": "tap100-old", "input_usd_per_mtok": 100}]');
  perform routeledger.import_models('[{"model_slug": "tap100/q/moved", "base_model": "tap100-new", "input_usd_per_mtok": 1}]');
end
$$;
select is(
  (select p.flag from routeledger.model_prices p where p.model_slug = 'tap100/r/moved'), null,
  'a family that lost a member is judged again');

-- what a usage costs
insert into routeledger.models (model_slug) values ('tap100/cost'), ('tap100/free'), ('tap100/half'), ('tap100/odd');
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok, cache_read_usd_per_mtok,
  cache_creation_usd_per_mtok, flag)
values
  ('tap100/cost', '2026-01-01 00:00+00', 2, 8, 0.5, 2.5, null), ('tap100/cost', '2026-07-01 00:00+00', 4, 16, null, null, null),
  ('tap100/free', 'epoch', 0, 0, null, null, null), ('tap100/half', 'epoch', 3, null, null, null, null),
  ('tap100/odd', 'epoch', 1, 1, null, null, 'input_below_neighbours');
create function pg_temp.cost(
  p_model text, p_at timestamptz, p_input bigint, p_output bigint,
  p_read bigint default null, p_written bigint default null, p_given numeric default null)
returns text language sql stable
as $$ select c::text from routeledger._usage_cost(p_model, p_at, p_input, p_output, p_read, p_written, p_given) c $$;
select is(
  pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', 1000, 500), '(0.006,catalog,)', 'tokens at the price of the day');
select is(
  pg_temp.cost('tap100/cost', '2026-07-01 00:00+00', 1000, 500), '(0.012,catalog,)', 'a new price holds from its date on');
select is(
  pg_temp.cost('tap100/cost', '2025-12-31 23:59+00', 1000, 500), '(,unpriced,)', 'before the first price there is none');
select is(
  pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', 1000, 0, 400, 200), '(0.0015,catalog,)',
  'cached tokens at their prices, the rest of the input at its own');
select is(
  pg_temp.cost('tap100/cost', '2026-08-01 00:00+00', 1000, 0, 400, 200), '(0.004,catalog,)', 'as input where those are unknown');
select is(
  pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', 100, 0, 400), '(0.0002,catalog,)', 'more cached than input is no refund');
select is(
  pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', null, 500), '(0.004,catalog,)', 'one kind of token is enough');
select is(pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', null, null), '(,no_usage,)', 'none is no usage');
select is(pg_temp.cost('tap100/free', now(), 1000, 500), '(0,catalog,)', 'a price of 0 is free');
select is(pg_temp.cost('tap100/half', now(), 1000, 500), '(,unpriced,)', 'an unknown price is not');
select is(pg_temp.cost('tap100/none', now(), 1000, 500), '(,unpriced,)', 'nor is an unknown model');
select is(pg_temp.cost('tap100/odd', now(), 1000, 500), '(0.0015,catalog,flagged_price)', 'a flagged price is said to be one');
select is(
  pg_temp.cost('tap100/cost', '2026-03-01 00:00+00', 1000, 500, null, null, 0.007), '(0.007,caller,)', 'a given cost is kept');
select results_eq(
  $$
    select pg_temp.cost(v.model, '2026-03-01 00:00+00', v.input, v.output, null, null, v.given)
    from (values
      ('tap100/cost', 1000, 500, 0.0599), ('tap100/cost', 1000, 500, 0.06), ('tap100/cost', 1000, 500, 0.00061), ('tap100/cost', 1000, 500, 0.0006),
      ('tap100/cost', 1000, 500, 0), ('tap100/free', 1000, 500, 0), ('tap100/free', 1000, 500, 0.01)) v (model, input, output, given)
  $$,
  $$
    values
      ('(0.0599,caller,)'), ('(0.06,caller,above_catalog)'), ('(0.00061,caller,)'), ('(0.0006,caller,below_catalog)'),
      ('(0,caller,below_catalog)'), ('(0,caller,)'), ('(0.01,caller,above_catalog)')
  $$,
  'and flagged when it is an order of magnitude off');
select results_eq(
  $$
    select pg_temp.cost(v.model, now(), v.input, v.output, null, null, v.given)
    from (values
      ('tap100/none', 1000, 0, 10), ('tap100/none', 1000, 0, 10.1), ('tap100/odd', 1000, 0, 10.1), ('tap100/none', null, null, 0.01),
      ('tap100/none', null, null, 0.02)) v (model, input, output, given)
  $$,
  $$
    values
      ('(10,caller,)'), ('(10.1,caller,above_any_price)'), ('(10.1,caller,above_any_price)'), ('(0.01,caller,)'), ('(0.02,caller,above_any_price)')
  $$,
  'or above what any token costs, where the catalog knows nothing sure');
select is(
  pg_temp.cost('tap100/none', now(), null, null, null, null, 1000000000), '(1000000000,caller,above_any_price)', 'a cost without tokens too');

select * from finish();
rollback;
