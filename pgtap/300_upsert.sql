-- 300 · The general upsert: any table, each key once, by a declared order of precedence.
begin;
\ir common.psql
set local client_min_messages = error;
select plan(209);

create schema tap300;
create role tap300_none;
create role tap300_part;
grant routeledger_writer to tap300_none, tap300_part;
grant usage on schema tap300 to routeledger_writer;
set local search_path = tap300, public;

-- The counts of an upsert (received collapsed inserted updated unchanged refused), the positions and codes of
-- what was refused, and the rows of the table afterwards, in one text.
create function pg_temp.up(
  p_target text, p_rows jsonb, p_key text[] default null, p_precedence text default null, p_on_tie text default 'greatest_row',
  p_columns text[] default null, p_batch_id text default null, p_from text default null) returns text
language plpgsql volatile
as $$
declare
  v record;
  v_rows text;
begin
  if p_from is null then
    select u.* into v from routeledger.upsert(p_target, p_rows, p_key, p_precedence, p_on_tie, p_columns, p_batch_id) u;
  else
    select u.* into v from routeledger.upsert_from(p_target, p_from, p_key, p_precedence, p_on_tie, p_columns, p_batch_id) u;
  end if;
  if v.received <> v.collapsed + v.inserted + v.updated + v.unchanged + v.refused or jsonb_array_length(v.refusals) <> least(v.refused, 10000) then
    raise exception 'the counts of % do not add up: %', p_target, v;
  end if;
  execute format('select string_agg(x.*::text, '' '' order by x.*::text collate "C") from %s x', p_target::regclass) into v_rows;
  return concat_ws(' ', v.received, v.collapsed, v.inserted, v.updated, v.unchanged, v.refused)
    || coalesce(' !' || (select string_agg((e ->> 'ord') || ':' || (e ->> 'code'), ' ' order by n) from jsonb_array_elements(v.refusals) with ordinality x (e, n)), '')
    || coalesce(' ' || v_rows, '');
end
$$;
-- The first refusal of an upsert.
create function pg_temp.refusal(p_target text, p_rows jsonb, p_key text[] default null) returns jsonb
language sql volatile
as $$ select u.refusals -> 0 from routeledger.upsert(p_target, p_rows, p_key) u $$;

create table plain (k integer primary key, n integer, v text);
create table two (id integer primary key, mail text unique, n integer);
create table bare (k integer, n integer);
grant all on all tables in schema tap300 to routeledger_writer;
set local role routeledger_writer;

-- the call as a whole
select throws_ok($$ select routeledger.upsert(null, '[]') $$, 'RL101', 'a required argument is missing', 'no target');
select throws_ok($$ select routeledger.upsert('plain', null) $$, 'RL101', 'a required argument is missing', 'no rows');
select throws_ok($$ select routeledger.upsert_from('plain', null) $$, 'RL101', 'a required argument is missing', 'no source');
select throws_ok($$ select routeledger.upsert('plain', '[]', p_strict => null) $$, 'RL101', 'a required argument is missing', 'neither strict nor not');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', '{}') $$, 'RL101', 'a required argument is missing', 'a key of nothing');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', '{k,NULL}') $$, 'RL101', 'a required argument is missing', 'or with null in it');
select results_eq(
  $$
    select c.detail ->> 'parameter'
    from unnest(array[
      $q$ select routeledger.upsert(null, '[]') $q$, $q$ select routeledger.upsert('plain', null) $q$, $q$ select routeledger.upsert_from('plain', null) $q$,
      $q$ select routeledger.upsert('plain', '[]', p_strict => null) $q$, $q$ select routeledger.upsert('plain', '[{"k": 1}]', '{}') $q$,
      $q$ select routeledger.upsert('plain', '[{"k": 1, "n": 1}]', p_precedence => 'sum n') $q$]) with ordinality q (sql, n)
    cross join lateral pg_temp.caught(q.sql) c
    order by q.n
  $$,
  array['target', 'rows', 'source', 'strict', 'key', 'batch_id'], 'DETAIL names the argument');
select throws_ok($$ select routeledger.upsert('plain', '{"k": 1}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'rows that are no array');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', p_on_tie => 'newest') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown word for ties');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', p_on_tie => null) $$, 'RL102', 'an argument is not one of the words allowed for it', 'no word for ties');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', p_batch_id => repeat('x', 301)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a batch id of 301 characters');
select throws_ok($$ select routeledger.upsert('plain', (select jsonb_agg('{"k": 1}'::jsonb) from generate_series(1, 100001))) $$, 'RL501', 'too many rows in one call', '100,001 rows');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('plain', (select jsonb_agg('{"k": 1}'::jsonb) from generate_series(1, 100001))) $$) c),
  '{"rows": 100001, "limit": 100000}', 'DETAIL says how many are allowed');

-- targets and sources
reset role;
create view seen as select * from plain;
create materialized view kept as select * from plain;
create sequence counter;
create extension if not exists postgres_fdw;
create server nowhere foreign data wrapper postgres_fdw;
create foreign table far (k integer, n integer) server nowhere;
create temp table stage (k integer, n integer);
create temp view staged as select * from stage;
create temp table wide (k bigint, n integer);
create temp table narrow (n integer);
create temp table odd (k integer, nope integer);
create temp table clipped (k integer, v varchar(3));
create temp table judged (k integer primary key, n integer, v text, j json);
grant all on seen, kept, counter, far, stage, staged, wide, narrow, odd, clipped, judged to routeledger_writer;
set local role routeledger_writer;
select results_eq(
  $$
    select c.code, c.detail - 'target' - 'source'
    from unnest(array['seen', 'kept', 'counter', 'far', 'plain_pkey']) with ordinality t (name, n)
    cross join lateral pg_temp.caught(format('select routeledger.upsert(%L, ''[{"k": 1}]'')', t.name)) c
    order by t.n
  $$,
  $$ select 'RL112', '{"reason": "not an ordinary or partitioned table"}'::jsonb from generate_series(1, 5) $$,
  'a view, a materialized view, a sequence, a foreign table, an index: no target');
select throws_ok($$ select routeledger.upsert('seen', '[{"k": 1}]') $$, 'RL112', 'this relation cannot be upserted as asked', 'in these words');
select throws_ok($$ select routeledger.upsert(4294967295::regclass, '[{"k": 1}]') $$, 'RL112', 'this relation cannot be upserted as asked', 'no such table');
select results_eq(
  $$
    select s.name, c.code, c.detail ->> 'column', c.detail ->> 'reason'
    from unnest(array['staged', 'wide', 'odd', 'clipped', 'narrow']) with ordinality s (name, n)
    cross join lateral pg_temp.caught(format('select routeledger.upsert_from(''plain'', %L)', s.name)) c
    order by s.n
  $$,
  $$
    values
      ('staged', 'RL112', null, 'not an ordinary table'), ('wide', 'RL112', 'k', 'the source has it in another type'),
      ('odd', 'RL113', 'nope', 'the target has no such column'), ('clipped', 'RL112', 'v', 'the source has it in another type'),
      ('narrow', 'RL204', null, null)
  $$,
  'a source is an ordinary table whose columns have the names and exactly the types of the target''s');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert_from('plain', 'stage', p_columns => '{k,v}') $$) c),
  '{"column": "v", "reason": "the source has no such column"}', 'and all those that are asked for');

-- columns
select throws_ok($$ select routeledger.upsert('plain', '[{}]') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'rows without columns');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1, "nope": 2}]') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'a column that all rows name and the target lacks');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', p_columns => '{k,nope}') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'or that p_columns names');
select throws_ok($$ select routeledger.upsert('plain', '[{"k": 1}]', p_columns => '{}') $$, 'RL101', 'a required argument is missing', 'no columns asked for');
select is(
  pg_temp.up('plain', '[{"k": 1, "n": 1}, {"k": 2, "nope": 2}, {"k": 3, "v": "c"}, 5, null, [], {"K": 6}, {}]'),
  '8 0 2 0 0 6 !2:RL113 4:RL107 5:RL107 6:RL107 7:RL113 8:RL115 (1,1,) (3,,c)', 'what a single row does wrong is refused, and the others are written');
select is(pg_temp.up('plain', '[{"k": 1, "n": 2, "v": "x"}]', p_columns => '{k,v}'), '1 0 0 0 0 1 !1:RL113 (1,1,) (3,,c)', 'more than p_columns is refused');
select is(pg_temp.up('plain', '[{"k": 1}]', p_columns => '{k,v}'), '1 0 0 0 1 0 (1,1,) (3,,c)', 'less is the default: null');
select is(
  pg_temp.refusal('plain', '[{"k": 4, "nope": 2}, {"k": 3, "n": 3}]'),
  '{"ord": 1, "code": "RL113", "message": "a column does not exist in the target or cannot be written", "detail": {"parameter": "nope", "allowed": "columns of the target"}, "hint": "Name columns of the target that are not generated; DETAIL says which one is in the way."}',
  'a refusal has the row''s position, a code, a message, details and a hint');
select is(
  pg_temp.refusal('plain', '[{"k": "four"}, {"k": 3, "n": 3}]'),
  '{"ord": 1, "code": "RL107", "message": "a row does not have the shape of this routine''s parameters", "detail": {"sqlstate": "22P02", "reason": "invalid input syntax for type integer: \"four\""}, "hint": "Pass a JSON object whose keys are columns of the target, and values of their types."}',
  'a value that does not fit its type');
select is(
  pg_temp.refusal('plain', '[{"k": null}]'),
  '{"ord": 1, "code": "RL115", "message": "a row has no key: a key column is null, or the row is outside the unique index", "detail": {"key": ["k"], "unique_index": "tap300.plain_pkey"}, "hint": "Give every key column a value that the unique index named in DETAIL covers."}',
  'a key that is null');

-- strict
select throws_ok(
  $$ select routeledger.upsert('plain', '[{"k": 8}, {"k": null}, {"k": "x"}]', p_strict => true) $$, 'RL115',
  'a row has no key: a key column is null, or the row is outside the unique index', 'p_strict raises the first refusal');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('plain', '[{"k": 8}, {"k": null}, {"k": "x"}]', p_strict => true) $$) c),
  '{"ord": 2, "refused": 2, "key": ["k"], "unique_index": "tap300.plain_pkey"}', 'says where, and how many there are');
select is(pg_temp.up('plain', '[]'), '0 0 0 0 0 0 (1,1,) (3,3,c)', 'and writes nothing; so does no row at all');
select is(
  (select row(u.inserted, u.refused)::text from routeledger.upsert('plain', '[{"k": 8}]', p_strict => true) u), '(1,0)', 'with nothing to refuse p_strict changes nothing');
delete from plain;

-- ties
select is(pg_temp.up('plain', '[{"k": 1, "n": 1, "v": "b"}, {"k": 1, "n": 1, "v": "a"}]'), '2 1 1 0 0 0 (1,1,b)', 'without a precedence the greatest row stays');
select is(pg_temp.up('plain', '[{"k": 1, "n": 1, "v": "a"}]'), '1 0 0 0 1 0 (1,1,b)', 'also against the one that is there');
select is(pg_temp.up('plain', '[{"k": 1, "n": 1, "v": "c"}]'), '1 0 0 1 0 0 (1,1,c)', 'which a greater one replaces');
select is(pg_temp.up('plain', '[{"k": 1, "n": 1, "v": "a"}]', p_on_tie => 'replace'), '1 0 0 1 0 0 (1,1,a)', 'replace: the new one stays');
select is(pg_temp.up('plain', '[{"k": 1, "n": 3, "v": "c"}, {"k": 1, "n": 2, "v": "b"}]', p_on_tie => 'replace'), '2 1 0 1 0 0 (1,2,b)', 'the last of the call');
select is(pg_temp.up('plain', '[{"k": 1, "n": 2, "v": "b"}]', p_on_tie => 'replace'), '1 0 0 0 1 0 (1,2,b)', 'that says the same again is unchanged');
select is(pg_temp.up('plain', '[{"k": 1, "n": 9, "v": "z"}, {"k": 2}]', p_on_tie => 'keep'), '2 0 1 0 1 0 (1,2,b) (2,,)', 'keep: what is there stays');
select is(pg_temp.up('plain', '[{"k": 1, "n": 3, "v": "a"}]', null, 'n', 'keep'), '1 0 0 1 0 0 (1,3,a) (2,,)', 'if it is no worse');
select is(pg_temp.up('plain', '[{"k": 1, "n": 3, "v": "c"}]', null, 'n', 'keep'), '1 0 0 0 1 0 (1,3,a) (2,,)', 'or a tie');
select is(pg_temp.up('plain', '[{"k": 1, "n": 3, "v": "c"}]', null, 'n'), '1 0 0 1 0 0 (1,3,c) (2,,)', 'that greatest_row decides by the rest');
select is(pg_temp.up('plain', '[{"k": 1, "n": 3, "v": "b"}, {"k": 1, "n": 2, "v": "z"}]', null, 'n', 'replace'), '2 1 0 1 0 0 (1,3,b) (2,,)', 'and replace for the new one, never for one that loses');
select is(pg_temp.up('plain', '[{"k": 1}]'), '1 0 0 0 1 0 (1,3,b) (2,,)', 'nothing but a key changes nothing');
delete from plain;

-- precedence
select results_eq(
  $$
    select c.code, c.message, c.detail ->> 'term', c.detail ->> 'reason'
    from unnest(array['', ' ', 'n,', ', n', 'greatest n desc', 'n; drop table plain', 'nope', 'v', 'latest n', 'sum n, v', 'sum greatest n', 'j', '"n', 'greatest "n"x'])
      with ordinality t (term, n)
    cross join lateral pg_temp.caught(format(
      'select routeledger.upsert(''pg_temp.judged'', ''[{"k": 1, "n": 1, "j": 1}]'', p_precedence => %L, p_batch_id => ''b'')', t.term)) c
    order by t.n
  $$,
  $$
    select 'RL114', 'the precedence cannot be read or does not suit its columns', w.*
    from (values
      (null, 'not a list of terms'), (null, 'not a list of terms'), (null, 'not a list of terms'), (null, 'not a list of terms'), (null, 'not a list of terms'),
      (null, 'not a list of terms'), ('nope', 'the target has no such column'), ('v', 'it is not among the columns that are written'),
      ('n', 'latest is for dates and times'), ('v', 'it is not among the columns that are written'),
      ('n', 'only smallint, integer, bigint and numeric give one sum in every order'), ('j', 'its type has no order'),
      (null, 'not a list of terms'), (null, 'not a list of terms')) w (term, reason)
  $$,
  'each way to spoil a precedence');
reset role;
create table won (
  k integer primary key, n integer, f double precision, m numeric, at timestamp with time zone, d date, i interval, a integer[], b boolean, v text);
grant all on won to routeledger_writer;
set local role routeledger_writer;
-- v is against the order wanted: a tie would show
create function pg_temp.winner(p_precedence text, variadic p_rows text[]) returns text
language plpgsql volatile
as $$
declare
  v_there text;
  v_back text;
  v_rows jsonb := (select jsonb_agg(r::jsonb || jsonb_build_object('k', 1, 'v', chr((96 + n)::integer)) order by n) from unnest(p_rows) with ordinality u (r, n));
begin
  -- in one call, both ways round, and one call a row, both ways round: the same row
  delete from won;
  perform routeledger.upsert('won', v_rows, p_precedence => p_precedence);
  select w.v into v_there from won w;
  for v_back in
    select n from unnest(array['', 'desc']) n
  loop
    delete from won;
    for i in 1 .. jsonb_array_length(v_rows) loop
      perform routeledger.upsert('won', jsonb_build_array(v_rows -> (case v_back when '' then i - 1 else jsonb_array_length(v_rows) - i end)), p_precedence => p_precedence);
    end loop;
    if v_there is distinct from (select w.v from won w) then
      raise exception 'one call % gives %, one a row % gives %', p_precedence, v_there, v_back, (select w.v from won w);
    end if;
  end loop;
  delete from won;
  perform routeledger.upsert('won', (select jsonb_agg(e order by n desc) from jsonb_array_elements(v_rows) with ordinality x (e, n)), p_precedence => p_precedence);
  if v_there is distinct from (select w.v from won w) then
    raise exception 'the other way round % gives %, not %', p_precedence, (select w.v from won w), v_there;
  end if;
  return v_there;
end
$$;
select is(pg_temp.winner('greatest n', '{"n": 12}', '{"n": 5}'), 'a', 'greatest: 12, not 5');
select is(pg_temp.winner('n', '{"n": 12}', '{"n": 5}'), 'a', 'which a bare column means as well');
select is(pg_temp.winner('first n', '{"n": 5}', '{"n": 12}'), 'a', 'first: 5, not 12');
select is(pg_temp.winner('GREATEST N', '{"n": 12}', '{"n": 5}'), 'a', 'in capitals');
select is(pg_temp.winner('n', '{"n": -2147483648}', '{"n": null}'), 'a', 'null loses against the least number');
select is(pg_temp.winner('first n', '{"n": 2147483647}', '{"n": null}'), 'a', 'and against the greatest with first');
select is(pg_temp.winner('f', '{"f": "-Infinity"}', '{"f": "NaN"}', '{"f": null}'), 'a', 'NaN and null lose against minus infinity');
select is(pg_temp.winner('first f', '{"f": "Infinity"}', '{"f": "NaN"}', '{"f": null}'), 'a', 'and against infinity with first');
select is(pg_temp.winner('f', '{"f": "Infinity"}', '{"f": 1e308}', '{"f": "-Infinity"}'), 'a', 'infinity is a number');
select is(pg_temp.winner('f, first n', '{"f": "NaN", "n": 1}', '{"f": null, "n": 2}'), 'a', 'between NaN and null the next term decides');
select is(pg_temp.winner('m', '{"m": "-Infinity"}', '{"m": "NaN"}', '{"m": null}'), 'a', 'NaN of a numeric loses too');
select is(pg_temp.winner('m', '{"m": 1.00}', '{"m": 0.999999999999999999999}'), 'a', 'numeric is compared exactly');
select is(pg_temp.winner('latest at', '{"at": "2026-01-01T10:00:00+00"}', '{"at": "2026-01-01T10:30:00+01"}'), 'a', 'latest compares moments');
select is(pg_temp.winner('latest d', '{"d": "infinity"}', '{"d": "2026-01-01"}', '{"d": null}'), 'a', 'and days');
select is(pg_temp.winner('greatest i', '{"i": "2 days"}', '{"i": "47 hours"}'), 'a', 'intervals by their length');
select is(pg_temp.winner('a', '{"a": [2]}', '{"a": [1, 9]}'), 'a', 'arrays by their elements');
select is(pg_temp.winner('b', '{"b": true}', '{"b": false}'), 'a', 'true is more than false');
select is(pg_temp.winner('n, latest at', '{"n": 2, "at": "2026-01-01"}', '{"n": 1, "at": "2026-01-09"}'), 'a', 'the first term decides');
select is(pg_temp.winner('n, latest at', '{"n": 2, "at": "2026-01-09"}', '{"n": 2, "at": "2026-01-01"}'), 'a', 'and the second when it cannot');
select is(pg_temp.winner(' "n" ,first "at", f', '{"n": 2, "at": "2026-01-01", "f": 2}', '{"n": 2, "at": "2026-01-01", "f": 1}', '{"n": 2, "at": "2026-01-02", "f": 3}'), 'a', 'the third when neither can');
select is(pg_temp.winner('n', '{"n": 1, "f": 3}', '{"n": 1, "f": 2}', '{"n": 1, "f": null}'), 'a', 'then the whole row, byte for byte');

-- several unique indexes
select is(pg_temp.up('two', '[{"id": 1, "mail": "a", "n": 1}, {"id": 2, "mail": "b", "n": 1}]'), '2 0 2 0 0 0 (1,a,1) (2,b,1)', 'the primary key decides when it is written');
select is(pg_temp.up('two', '[{"id": 3, "mail": "b", "n": 5}, {"id": 1, "mail": "a", "n": 5}]'), '2 0 0 1 0 1 !1:RL307 (1,a,5) (2,b,1)', 'what another unique index forbids is refused');
select is(
  pg_temp.refusal('two', '[{"id": 3, "mail": "b", "n": 5}]') -> 'detail',
  '{"sqlstate": "23505", "reason": "duplicate key value violates unique constraint \"two_mail_key\"", "detail": "Key (mail)=(b) already exists.", "constraint": "two_mail_key"}',
  'with what the table said');
select is(pg_temp.up('two', '[{"id": 2, "mail": "b", "n": 6}, {"id": 2, "mail": "b", "n": 7}]', '{mail}'), '2 1 0 1 0 0 (1,a,5) (2,b,7)', 'the other one decides when it is asked for');
select is(pg_temp.up('two', '[{"mail": "b", "n": 9}]'), '1 0 0 0 0 1 !1:RL307 (1,a,5) (2,b,7)', 'or when only its columns are written; an insert would want an id');
select is(
  (select c.detail - 'unique_indexes' from pg_temp.caught($$ select routeledger.upsert('two', '[{"n": 9}]') $$) c),
  '{"target": "tap300.two", "columns": ["n"]}', 'no unique index is covered by the columns');

-- no unique index
select throws_ok($$ select routeledger.upsert('bare', '[{"k": 1}]', '{k}') $$, 'RL204', 'no unique index of the target fits this key', 'a table without any');
select is(
  (select c.hint from pg_temp.caught($$ select routeledger.upsert('bare', '[{"k": 1}]', '{k}') $$) c),
  'Call routeledger.ensure_unique(''tap300.bare'', ''bare_k_key'', array[''k'']), which collapses the duplicates that are there; where there are none this does: create unique index on tap300.bare (k)',
  'the hint is the call that makes one');
select is(
  (select c.hint from pg_temp.caught($$ select routeledger.upsert('bare', '[{"k": 1}]', '{K,n}') $$) c),
  'Call routeledger.ensure_unique(''tap300.bare'', ''bare_K_n_key'', array[''K'', ''n'']), which collapses the duplicates that are there; where there are none this does: create unique index on tap300.bare (k, n)',
  'of the columns named');
select is(
  (select c.hint from pg_temp.caught($$ select routeledger.upsert('bare', '[{"k": 1}]') $$) c),
  'Say which key is meant: name the columns of a unique index in key, and write them all.', 'without a key it cannot be said');
reset role;
create unique index bare_deferred on bare (n);
alter table bare add constraint bare_later unique (k) deferrable initially immediate;
create unique index bare_pattern on bare ((k + n));
update pg_index set indisvalid = false where indexrelid = 'bare_deferred'::regclass;
set local role routeledger_writer;
select results_eq(
  $$
    select c.code, c.detail -> 'unique_indexes' from pg_temp.caught($q$ select routeledger.upsert('bare', '[{"k": 1}]', '{k}') $q$) c
    union all select c.code, null from pg_temp.caught($q$ select routeledger.upsert('bare', '[{"n": 1}]', '{n}') $q$) c
  $$,
  $$
    values ('RL204', '[
      {"usable": false, "definition": "CREATE UNIQUE INDEX bare_deferred ON tap300.bare USING btree (n)"},
      {"usable": false, "definition": "CREATE UNIQUE INDEX bare_later ON tap300.bare USING btree (k)"},
      {"usable": true, "definition": "CREATE UNIQUE INDEX bare_pattern ON tap300.bare USING btree (((k + n)))"}]'::jsonb), ('RL204', null)
  $$,
  'a deferrable constraint is not usable, nor an index that a failed build left invalid');
select is(pg_temp.up('bare', '[{"k": 1, "n": 2}, {"k": 2, "n": 1}]', '{(K+n)}'), '2 1 1 0 0 0 (2,1)', 'an expression is, whatever its blanks and parentheses');

-- keys
reset role;
create table mails (email text, n integer, tenant text default 'x');
create unique index on mails (tenant, lower(email));
create table derived (email text, low text generated always as (lower(email)) stored unique, n integer);
create table half (k integer, state text, n integer, made timestamp with time zone default routeledger.clock());
create unique index on half (k) where state = 'on';
create table nulls (a integer, b text, n integer, unique nulls not distinct (a, b));
create table ordered (a integer, b text, n integer);
create unique index on ordered (a desc nulls last, b collate "C" text_pattern_ops);
create table always (id bigint generated always as identity primary key, n integer);
create table by_default (id bigint generated by default as identity primary key, n integer);
create table beside (k integer primary key, id bigint generated always as identity, n integer);
create table coerced (a numeric(10,2), b character(3), c timestamp(0) with time zone, n integer, primary key (a, b, c));
create type pair as (a integer, b integer);
create table shaped (a double precision, b numeric, c pair, d character, e numrange, f integer[], n integer, primary key (a, b, c, d, e, f));
create table padded (k bpchar primary key, n integer);
create table named (k name primary key, n integer);
create domain positive as integer not null check (value > 0);
create domain small as integer check (value < 100);
create domain upright as text default upper('up');
create table bounded (k positive primary key, p positive default 5, s small, u upright, n integer);
grant all on all tables in schema tap300 to routeledger_writer;
grant usage on all sequences in schema tap300 to routeledger_writer;
set local role routeledger_writer;
select is(pg_temp.up('mails', '[{"email": "A@x", "n": 1}, {"email": "a@X", "n": 2}, {"email": "b@x", "n": 1, "tenant": "y"}]', null, 'n'), '3 1 2 0 0 0 (a@X,2,x) (b@x,1,y)', 'an expression; a key column that is lacking has its default');
select is(pg_temp.up('mails', '[{"email": "A@X", "n": 3}, {"email": null, "n": 3}]', '{tenant,"lower( EMAIL )"}', 'n'), '2 0 0 1 0 1 !2:RL115 (A@X,3,x) (b@x,1,y)', 'an expression that is null is no key');
select is(pg_temp.up('derived', '[{"email": "A@x", "n": 1}, {"email": "a@X", "n": 2}, {"email": null, "n": 1}]', '{low}', 'n'), '3 1 1 0 0 1 !3:RL115 (a@X,a@x,2)', 'a generated column');
select is(pg_temp.up('derived', '[{"email": "A@X", "n": 3}]', null, 'n'), '1 0 0 1 0 0 (A@X,a@x,3)', 'which is found by what it is generated from');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('derived', '[{"email": "a", "low": "a"}]') $$) c),
  '{"column": "low", "reason": "a generated column is never written"}', 'and not written');
select is(
  pg_temp.up('half', '[{"k": 1, "state": "on", "n": 1}, {"k": 1, "state": "on", "n": 2}, {"k": 1, "state": "off", "n": 3}, {"k": 1, "state": null}]', '{k}', 'n', p_columns => '{k,state,n}'),
  '4 1 1 0 0 2 !3:RL115 4:RL115 (1,on,2,"' || routeledger.clock() || '")', 'a partial index: rows outside it have no key');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('half', '[{"k": 1, "n": 1}]', '{k}') $$) c),
  '{"column": "state", "reason": "the key needs it, no row has it, and its default is not a constant"}', 'the columns of its condition belong to the key');
select is(
  pg_temp.up('nulls', '[{"a": 1, "b": null, "n": 1}, {"a": 1, "b": null, "n": 2}, {"a": null, "b": null, "n": 1}, {"a": 1, "b": "x", "n": 1}]', null, 'n'),
  '4 1 3 0 0 0 (,,1) (1,,2) (1,x,1)', 'NULLS NOT DISTINCT: null is a key');
select is(
  pg_temp.up('nulls', '[{"a": 1, "b": null, "n": 3}, {"a": null, "b": null, "n": 0}, {"a": null, "b": "x", "n": 1}]', null, 'n'),
  '3 0 1 1 1 0 (,,1) (,x,1) (1,,3) (1,x,1)', 'that is found again');
select is(pg_temp.up('ordered', '[{"a": 1, "b": "x", "n": 1}, {"a": 1, "b": "x", "n": 2}, {"a": 2, "b": "x", "n": 1}]', '{b,a}', 'n'), '3 1 2 0 0 0 (1,x,2) (2,x,1)', 'DESC, COLLATE, an operator class: an index by which they are equal too');
select is(pg_temp.up('ordered', '[{"a": 1, "b": "x", "n": 3}, {"a": 2, "b": "x", "n": 0}]', null, 'n'), '2 0 0 1 1 0 (1,x,3) (2,x,1)', 'and found again');
select is(pg_temp.up('always', '[{"id": 5, "n": 1}, {"id": 5, "n": 2}]'), '2 1 1 0 0 0 (5,2)', 'an identity that is generated always, given');
select is(pg_temp.up('always', '[{"id": 5, "n": 3}]'), '1 0 0 1 0 0 (5,3)', 'and again');
select is(pg_temp.up('by_default', '[{"id": 5, "n": 1}, {"id": 5, "n": 2}]'), '2 1 1 0 0 0 (5,2)', 'one by default');
select throws_ok($$ select routeledger.upsert('always', '[{"n": 3}]') $$, 'RL204', 'no unique index of the target fits this key', 'without its value there is no key');
select is(pg_temp.up('by_default', '[{"id": 5, "n": 3}, {"n": 4}]'), '2 0 0 1 0 1 !2:RL107 (5,3)', 'nor is one made for the rows that lack it');
select is(pg_temp.up('beside', '[{"k": 1, "n": 1}, {"k": 1, "n": 2}]'), '2 1 1 0 0 0 (1,1,2)', 'an identity beside the key is made once for each row inserted');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('beside', '[{"k": 1, "id": 7}]') $$) c),
  '{"column": "id", "reason": "it is generated always as identity"}', 'and not written');
select is(
  pg_temp.up('coerced', '[{"a": 1.001, "b": "x", "c": "2026-01-01T00:00:00.2Z", "n": 1}, {"a": "1.00", "b": "x  ", "c": "2026-01-01T01:00:00+01", "n": 2}]', null, 'n'),
  '2 1 1 0 0 0 (1.00,"x  ","2026-01-01 00:00:00+00",2)', 'rounded, padded and moved to UTC they are one key');
select is(
  pg_temp.up('coerced', '[{"a": 0.999, "b": "x", "c": "2026-01-01T00:00:00.4Z", "n": 3}, {"a": 1.004, "b": "x ", "c": "2025-12-31T23:59:59.6Z", "n": 1}]', null, 'n'),
  '2 1 0 1 0 0 (1.00,"x  ","2026-01-01 00:00:00+00",3)', 'that of the one that is there');
select is(
  pg_temp.up('shaped', '[
    {"a": "-0", "b": 1.0, "c": {"a": 1, "b": null}, "d": "x", "e": "[1,2]", "f": [1], "n": 1},
    {"a": 0, "b": 1.00, "c": {"a": 1}, "d": "x", "e": "[1.0,2.0]", "f": [1], "n": 1}]'),
  '2 1 1 0 0 0 (-0,1.0,"(1,)",x,"[1,2]",{1},1)', 'equal keys that are not the same: 0 and -0, 1.0 and 1.00, and the greater row stays');
select is(
  pg_temp.up('shaped', '[{"a": 0, "b": 1.00, "c": {"a": 1}, "d": "x", "e": "[1.0,2.0]", "f": [1], "n": 1}]'),
  '1 0 0 0 1 0 (-0,1.0,"(1,)",x,"[1,2]",{1},1)', 'also against the one that is there');
select is(pg_temp.up('shaped', '[{"a": "NaN", "b": "NaN", "c": {}, "d": "x", "e": "empty", "f": [null], "n": 1}, {"a": "NaN", "b": "NaN", "c": {}, "d": "x", "e": "(1,1)", "f": [null], "n": 2}]') ~ '^2 1 1 0 0 0 ', true, 'NaN is a key');
select is(pg_temp.up('padded', '[{"k": "a", "n": 1}, {"k": "a  ", "n": 1}]'), '2 1 1 0 0 0 ("a  ",1)', 'blanks at the end');
select is(pg_temp.up('padded', '[{"k": "a", "n": 1}, {"k": "a ", "n": 1}]'), '2 1 0 0 1 0 ("a  ",1)', 'do not count');
select is(pg_temp.up('named', '[{"k": "a", "n": 1}, {"k": "a", "n": 2}]'), '2 1 1 0 0 0 (a,2)', 'a key of type name');
select is(
  pg_temp.up('bounded', '[{"k": 1, "p": 1, "s": 1, "u": "a"}, {"k": 2}, {"k": 3, "p": null}, {"k": 4, "s": null}, {"k": 0}, {"k": 6, "s": 100}, {"k": null}, {"p": 1}]'),
  '8 0 3 0 0 5 !3:RL107 5:RL107 6:RL107 7:RL107 8:RL107 (1,1,1,a,) (2,5,,UP,) (4,5,,UP,)', 'domains: their checks, their NOT NULL, their defaults');
select is(pg_temp.up('bounded', '[{"k": 1, "s": 2}]', null, 's'), '1 0 0 1 0 0 (1,1,2,a,) (2,5,,UP,) (4,5,,UP,)', 'and their order');
select is(pg_temp.up('bounded', '[{"k": 1, "s": 2}, {"k": 1, "s": 3}]', null, 'sum s', p_batch_id => 'bounded'), '2 1 0 1 0 0 (1,1,7,a,) (2,5,,UP,) (4,5,,UP,)', 'and their sum');
reset role;
do $$
begin
  create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create table folded (k text collate blind primary key, n integer);
  create table folded_index (k text, n integer);
  create unique index on folded_index (k collate blind);
  grant all on folded, folded_index to routeledger_writer;
exception
  when feature_not_supported then
    null; -- a server without ICU
end
$$;
set local role routeledger_writer;
select case when to_regclass('folded') is null then skip('this server has no ICU', 4)
  else collect_tap(
    is(pg_temp.up('folded', '[{"k": "A", "n": 1}, {"k": "a", "n": 1}, {"k": "b", "n": 1}]'), '3 1 2 0 0 0 (a,1) (b,1)', 'a collation that is blind to case'),
    is(pg_temp.up('folded', '[{"k": "A", "n": 2}, {"k": "B", "n": 1}]', null, 'n'), '2 0 0 1 1 0 (A,2) (b,1)', 'also against what is there'),
    is(pg_temp.up('folded_index', '[{"k": "A", "n": 1}, {"k": "a", "n": 1}]', '{k}'), '2 1 1 0 0 0 (a,1)', 'of the index, not of the column'),
    is(pg_temp.up('folded_index', '[{"k": "A", "n": 2}]', '{k}', 'n'), '1 0 0 1 0 0 (A,2)', 'also against what is there')) end;

-- values
reset role;
create type mood as enum ('sad', 'glad');
create domain humour as mood;
create table valued (
  k integer primary key, e mood, h humour, a text[], j json, jb jsonb, r daterange, mr nummultirange, c pair, b bytea, x tsvector, u uuid, net inet, bits bit varying(9), v text);
create table defaulted (
  k integer primary key, constant integer default 7, word text default 'w' || 'x', rolled double precision default random(), made timestamp with time zone default now(),
  id uuid default gen_random_uuid(), bare text, n integer not null default 1);
grant all on valued, defaulted to routeledger_writer;
set local role routeledger_writer;
create function pg_temp.full_row(p_more jsonb) returns jsonb
language sql immutable
as $$
  select jsonb_build_array('{
    "k": 1, "e": "sad", "h": "sad", "a": ["x", null], "j": {"z": 1, "a": [1.0]}, "jb": {"b": 2}, "r": "[2026-01-01,2026-02-01)", "mr": "{[1,2],(5,6)}", "c": {"a": 1, "b": null},
    "b": "\\x00ff", "x": "a:1", "u": "018f2b8c-1e7d-7000-8000-000000000000", "net": "10.0.0.0/8", "bits": "101"}'::jsonb || p_more)
$$;
select is(pg_temp.up('valued', pg_temp.full_row('{}') || pg_temp.full_row('{}')),
  '2 1 1 0 0 0 (1,sad,sad,"{x,NULL}","{""a"": [1.0], ""z"": 1}","{""b"": 2}","[2026-01-01,2026-02-01)","{[1,2],(5,6)}","(1,)","\\x00ff",''a'':1,018f2b8c-1e7d-7000-8000-000000000000,10.0.0.0/8,101,)',
  'enum, domain, array, json (which has no equality), jsonb, range, multirange, composite, bytea, tsvector, uuid, inet, bit');
select is(pg_temp.up('valued', pg_temp.full_row('{}')) ~ '^1 0 0 0 1 0 ', true, 'the same again: unchanged');
select is_empty(
  $$
    select c.name
    from (values
      ('e', '"glad"'), ('h', '"glad"'), ('a', '["y", null]'), ('j', '{"z":2}'), ('jb', '{"b": 3}'), ('r', '"[2026-01-02,2026-02-01)"'), ('mr', '"{[3,4]}"'),
      ('c', '{"a": 2, "b": null}'), ('b', '"\\x01"'), ('x', '"b:1"'), ('u', '"018f2b8c-1e7d-7000-8000-000000000001"'), ('net', '"11.0.0.0/8"'), ('bits', '"111"')) c (name, value)
    where pg_temp.up('valued', pg_temp.full_row(jsonb_build_object(c.name, c.value::jsonb)), p_on_tie => 'replace') !~ '^1 0 0 1 0 0 '
      or pg_temp.up('valued', pg_temp.full_row(jsonb_build_object(c.name, c.value::jsonb)), p_on_tie => 'replace') !~ '^1 0 0 0 1 0 '
      or pg_temp.up('valued', pg_temp.full_row('{}'), p_on_tie => 'replace') !~ '^1 0 0 1 0 0 '
  $$,
  'each of them other: updated');
select is_empty(
  $$
    select c.name
    from (values
      ('e', '"glad"', '"sad"'), ('h', '"glad"', '"sad"'), ('a', '["y"]', '["x", "z"]'), ('jb', '{"b": 3}', '{"b": 2}'), ('r', '"[2026-01-02,2026-02-01)"', '"[2026-01-01,)"'),
      ('mr', '"{[3,4]}"', '"{[1,9]}"'), ('c', '{"a": 2, "b": null}', '{"a": 1, "b": 9}'), ('b', '"\\x01"', '"\\x00ff"'), ('u', '"018f2b8c-1e7d-7000-8000-000000000001"', '"018f2b8c-1e7d-7000-8000-000000000000"'),
      ('net', '"11.0.0.0/8"', '"10.0.0.0/8"'), ('bits', '"111"', '"101"')) c (name, more, less)
    where pg_temp.up('valued', jsonb_build_array(jsonb_build_object('k', 1, 'v', 'z', c.name, c.less::jsonb), jsonb_build_object('k', 1, 'v', 'a', c.name, c.more::jsonb)), null, 'greatest ' || c.name) !~ '^2 1 0 [01] [01] 0 .*,a\)$'
      or pg_temp.up('valued', jsonb_build_array(jsonb_build_object('k', 1, 'v', 'z', c.name, c.less::jsonb)), null, c.name) !~ '^1 0 0 0 1 0 .*,a\)$'
      or pg_temp.up('valued', jsonb_build_array(jsonb_build_object('k', 1, 'v', 'z', c.name, c.less::jsonb)), null, 'first ' || c.name) !~ '^1 0 0 1 0 0 .*,z\)$'
  $$,
  'each that has an order can decide, there and in the call');
select is(
  pg_temp.up('defaulted', '[{"k": 1}, {"k": 2, "constant": 1, "word": "a", "bare": "b", "n": 2}, {"k": 3, "constant": null, "n": null}]', p_columns => '{k,constant,word,bare,n}')
    ~ '^3 0 2 0 0 1 !3:RL307 \(1,7,wx,0?\.?[0-9e.-]+,"[^"]+",[0-9a-f-]+,,1\) \(2,1,a,', true, 'a constant default for the row that lacks the column, null where null is written');
select is(
  (select jsonb_agg(e -> 'detail') from routeledger.upsert('defaulted', '[
    {"k": 1, "rolled": 1, "made": "2026-01-01", "id": "018f2b8c-1e7d-7000-8000-000000000000"}, {"k": 2, "made": "2026-01-01", "id": null},
    {"k": 3, "rolled": 1, "id": null}, {"k": 4, "rolled": 1, "made": null}]') u cross join jsonb_array_elements(u.refusals) e),
  '[{"reason": "other rows have it, and its default is not a constant", "parameter": "rolled"},
    {"reason": "other rows have it, and its default is not a constant", "parameter": "made"},
    {"reason": "other rows have it, and its default is not a constant", "parameter": "id"}]', 'a default that differs from time to time is for the row to say');
select is(pg_temp.up('defaulted', '[{"k": 1, "n": 5}]', null, 'n') ~ '^1 0 0 1 0 0 .* \(2,1,a', true, 'a column that no row has is left alone');

-- sums
reset role;
create table sums (k integer primary key, hits smallint, cost numeric(9,2), whole bigint, word text default 'd');
grant all on sums to routeledger_writer;
set local role routeledger_writer;
select is(
  pg_temp.up('sums', '[{"k": 1, "hits": 1, "cost": 0.5}, {"k": 1, "hits": 2, "cost": null}, {"k": 2, "hits": null, "cost": 1}]', null, 'sum hits, cost', p_batch_id => 'a'),
  '3 1 2 0 0 0 (1,3,0.50,,d) (2,,1.00,,d)', 'a sum adds up, and null adds nothing');
select is(
  pg_temp.up('sums', '[{"k": 2, "hits": null, "cost": 1}, {"k": 1, "hits": 2, "cost": null}, {"k": 1, "hits": 1, "cost": 0.5}]', null, 'sum hits, cost', p_batch_id => 'a'),
  '3 0 0 0 3 0 (1,3,0.50,,d) (2,,1.00,,d)', 'the same batch again adds nothing, in whatever order it comes');
select throws_ok(
  $$ select routeledger.upsert('sums', '[{"k": 1, "hits": 1, "cost": 0.5}]', null, 'sum hits, cost', p_batch_id => 'a') $$, 'RL308',
  'this batch id was applied with other rows', 'other rows under its id are refused');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.upsert('sums', '[{"k": 1, "hits": 1, "cost": 0.5}]', null, 'sum hits, cost', p_batch_id => 'a') $$) c),
  '{"target": "tap300.sums", "batch_id": "a"}', 'by name');
select is(
  pg_temp.up('sums', '[{"k": 1, "hits": 1, "cost": 0.5}, {"k": 2, "hits": 4, "cost": 0}, {"k": 3, "hits": 0}]', null, 'sum cost, hits', p_batch_id => 'b'),
  '3 0 1 2 0 0 (1,4,1.00,,d) (2,4,1.00,,d) (3,0,,,d)', 'another batch adds');
select is(
  pg_temp.up('sums', '[{"k": 1, "hits": 0, "cost": 0.001}, {"k": 2, "hits": null, "cost": null}]', null, 'sum hits, cost', p_batch_id => 'c'),
  '2 0 0 0 2 0 (1,4,1.00,,d) (2,4,1.00,,d) (3,0,,,d)', 'nought changes nothing');
select is(
  pg_temp.up('sums', '[{"k": 1, "hits": 32767, "cost": 1}, {"k": 2, "hits": 1, "cost": 1}, {"k": 3, "hits": 1, "cost": "NaN"}, {"k": 4, "hits": 40000, "cost": 1}]', null, 'sum hits, cost', p_batch_id => 'd'),
  '4 0 0 2 0 2 !1:RL307 4:RL107 (1,4,1.00,,d) (2,5,2.00,,d) (3,1,NaN,,d)', 'a sum that leaves its type is refused, and the others are added');
select is(
  pg_temp.up('sums', '[{"k": 1, "hits": 32767, "cost": 1}, {"k": 2, "hits": 1, "cost": 1}, {"k": 3, "hits": 1, "cost": "NaN"}, {"k": 4, "hits": 40000, "cost": 1}]', null, 'sum hits, cost', p_batch_id => 'd'),
  '4 0 0 0 2 2 !1:RL307 4:RL107 (1,4,1.00,,d) (2,5,2.00,,d) (3,1,NaN,,d)', 'again: the answer says the same of what was refused');
select is(
  array[pg_temp.up('sums', '[{"k": 5, "hits": 30000}, {"k": 5, "hits": 20000}]', null, 'sum hits', p_batch_id => 'e'), pg_temp.up('sums', '[{"k": 6, "hits": 20000}, {"k": 6, "hits": 30000}]', null, 'sum hits', p_batch_id => 'f')],
  array['2 0 1 0 0 1 !2:RL307 (1,4,1.00,,d) (2,5,2.00,,d) (3,1,NaN,,d) (5,30000,,,d)', '2 0 1 0 0 1 !1:RL307 (1,4,1.00,,d) (2,5,2.00,,d) (3,1,NaN,,d) (5,30000,,,d) (6,30000,,,d)'],
  'which of several is refused does not depend on their order');
select results_eq(
  $$
    select c.code, c.detail
    from unnest(array['{"k": 1, "hits": 1, "word": "x"}', '{"k": 1, "hits": 1, "whole": 1}']) with ordinality r (r, n)
    cross join lateral pg_temp.caught(format('select routeledger.upsert(''sums'', %L, null, ''sum hits'', p_batch_id => ''g'')', '[' || r.r || ']')) c
    order by r.n
  $$,
  $$
    values
      ('RL114', '{"column": "word", "reason": "with sum a column either belongs to the key or is summed"}'::jsonb),
      ('RL114', '{"column": "whole", "reason": "with sum a column either belongs to the key or is summed"}')
  $$,
  'with sum there is nothing beside the key and the sums');
select throws_ok(
  $$ select routeledger.upsert('sums', '[{"k": 1, "hits": 1}]', null, 'sum k', p_batch_id => 'g') $$, 'RL114',
  'the precedence cannot be read or does not suit its columns', 'and no key is summed');
select is(pg_temp.up('plain', '[{"k": 1, "n": 1}, {"k": 1, "n": 2}]', null, 'n', p_batch_id => 'a'), '2 1 1 0 0 0 (1,2,)', 'a batch id belongs to its target, and is good for other rules too');
delete from plain;
select is(pg_temp.up('plain', '[{"k": 1, "n": 2}, {"k": 1, "n": 1}]', null, 'n', p_batch_id => 'a'), '2 0 0 0 2 0', 'whose replay does not look at the table');
select is(pg_temp.up('plain', '[]', p_columns => '{k}', p_batch_id => 'none'), '0 0 0 0 0 0', 'an empty batch');
reset role;
create table sum (sum integer primary key, greatest integer);
grant all on sum to routeledger_writer;
set local role routeledger_writer;
select is(pg_temp.up('sum', '[{"sum": 1, "greatest": 1}, {"sum": 1, "greatest": 2}]', null, 'greatest'), '2 1 1 0 0 0 (1,2)', 'a column called greatest');
select is(pg_temp.up('sum', '[{"sum": 1, "greatest": 2}, {"sum": 1, "greatest": 1}]', null, 'first greatest, sum'), '2 1 0 1 0 0 (1,1)', 'or sum');
select is(pg_temp.up('sum', '[{"sum": 1, "greatest": 2}]', null, 'sum greatest', p_batch_id => 'a'), '1 0 0 1 0 0 (1,3)', 'summed');

-- names
reset role;
create schema "tap300 ""q"".%I";
create table "tap300 ""q"".%I"."T{x} 'q' ""\" (
  "K{rel}" integer, "k{rel}" integer, "_rl_ord" integer, "_rl__k1" text, "a.b\n%s" integer, "select" integer, "excluded" integer, "old" integer, "w" integer, "t" text, primary key ("K{rel}", "_rl__k1"));
create unique index "U{set} ""%" on "tap300 ""q"".%I"."T{x} 'q' ""\" (lower("t"), "k{rel}") where "select" > 0;
grant usage on schema "tap300 ""q"".%I" to routeledger_writer;
grant all on "tap300 ""q"".%I"."T{x} 'q' ""\" to routeledger_writer;
set local role routeledger_writer;
select is(
  pg_temp.up('"tap300 ""q"".%I"."T{x} ''q'' ""\"', '[
    {"K{rel}": 1, "k{rel}": 1, "_rl_ord": 1, "_rl__k1": "a", "a.b\\n%s": 1, "select": 1, "excluded": 1, "old": 1, "w": 1, "t": "X"},
    {"K{rel}": 1, "k{rel}": 2, "_rl_ord": 1, "_rl__k1": "a", "a.b\\n%s": 1, "select": 1, "excluded": 1, "old": 1, "w": 1, "t": "x"}]', null, '"old", "k{rel}", "a.b\n%s"'),
  '2 1 1 0 0 0 (1,2,1,a,1,1,1,1,1,x)', 'names that look like SQL, like ours, or like our templates');
select is(
  pg_temp.up('"tap300 ""q"".%I"."T{x} ''q'' ""\"', '[
    {"K{rel}": 1, "k{rel}": 2, "_rl_ord": 1, "_rl__k1": "a", "a.b\\n%s": 1, "select": 1, "excluded": 1, "old": 1, "w": 2, "t": "X"},
    {"K{rel}": 9, "k{rel}": 2, "_rl_ord": 1, "_rl__k1": "a", "a.b\\n%s": 1, "select": 1, "excluded": 1, "old": 1, "w": 2, "t": "x"}]', '{"k{rel}",lower(t)}', 'w, first K{rel}'),
  '2 1 0 1 0 0 (1,2,1,a,1,1,1,1,2,X)', 'in an expression and a condition too');
select is(
  (select c.hint from pg_temp.caught($q$ select routeledger.upsert('"tap300 ""q"".%I"."T{x} ''q'' ""\"', '[{"w": 1}]', '{"w","a.b\\n%s"}') $q$) c),
  $q$Call routeledger.ensure_unique(E'"tap300 ""q"".%I"."T{x} ''q'' ""\\"', 'T_x_q__w_a_b_n_s_key', array['w', E'a.b\\n%s']), which collapses the duplicates that are there; where there are none this does: create unique index on "tap300 ""q"".%I"."T{x} 'q' ""\" (w, "a.b\n%s")$q$,
  'and in the hint');

-- what a row may not do, among rows that may
reset role;
create table parent (id integer primary key);
insert into parent values (1), (2);
create table checked (
  k integer primary key, n integer check (n > 0), must text not null default 'm', parent_id integer references parent, tree integer references checked, u integer unique,
  exclude using gist (int4range(u, u + 10) with &&) where (u is not null));
create table policed (k integer primary key, n integer, owner text default current_user);
alter table policed enable row level security;
create policy seen on policed using (owner = current_user or owner = 'all') with check (n < 100 and owner = current_user);
insert into policed values (1, 1, 'somebody'), (2, 1, 'all');
create table ruled (k integer primary key, n integer);
create rule also as on insert to ruled do also select 1;
grant all on parent, checked, policed, ruled to routeledger_writer;
set local role routeledger_writer;
select is(
  pg_temp.up('checked', '[
    {"k": 1, "n": 1}, {"k": 2, "n": 0}, {"k": 3, "must": null}, {"k": 4, "parent_id": 2}, {"k": 5, "parent_id": 3}, {"k": 6, "u": 1}, {"k": 7, "u": 1}, {"k": 8, "u": 5}, {"k": 9, "u": 11},
    {"k": 10, "tree": 11}, {"k": 11, "tree": 12}, {"k": 12, "tree": 1}, {"k": 13, "tree": 99}, {"k": 14, "tree": 13}]'),
  '14 0 7 0 0 7 !2:RL307 3:RL307 5:RL307 7:RL307 8:RL307 13:RL307 14:RL307'
    || ' (1,1,m,,,) (10,,m,,11,) (11,,m,,12,) (12,,m,,1,) (4,,m,2,,) (6,,m,,,1) (9,,m,,,11)',
  'CHECK, NOT NULL, foreign keys, a second unique index, an exclusion: each refuses its row only, and rows that lean on each other stay together');
select results_eq(
  $$
    select e -> 'detail' ->> 'sqlstate', coalesce(e -> 'detail' ->> 'constraint', e -> 'detail' ->> 'column')
    from routeledger.upsert('checked', '[{"k": 20, "n": 0}, {"k": 3, "must": null}, {"k": 5, "parent_id": 3}, {"k": 7, "u": 1}, {"k": 8, "u": 5}, {"k": 15, "n": 1}]') u
    cross join jsonb_array_elements(u.refusals) with ordinality r (e, n) order by n
  $$,
  $$ values ('23514', 'checked_n_check'), ('23502', 'must'), ('23503', 'checked_parent_id_fkey'), ('23505', 'checked_u_key'), ('23P01', 'checked_int4range_excl') $$,
  'with the SQLSTATE and the constraint');
select is(pg_temp.up('checked', '[{"k": 1, "n": 5}, {"k": 1, "n": -9}]', null, 'first n') ~ '^2 0 0 0 1 1 !2:RL307 \(1,1,m', true, 'the best of a key is refused: the next is taken');
select throws_ok(
  $$ select routeledger.upsert('checked', '[{"k": 20, "n": 0}]', p_strict => true) $$, 'RL307', 'the table refused this row', 'p_strict');
select is(
  pg_temp.up('policed', '[{"k": 1, "n": 5}, {"k": 2, "n": 5}, {"k": 3, "n": 5}, {"k": 4, "n": 100}, {"k": 5, "n": 5, "owner": "all"}]', p_columns => '{k,n}'),
  '5 0 1 0 0 4 !1:RL307 2:RL307 4:RL307 5:RL113 (2,1,all) (3,5,routeledger_writer)', 'row-level security refuses only the rows that it forbids: hidden, not one''s own, outside WITH CHECK');
select is(
  pg_temp.up('policed', '[{"k": 2, "n": 5, "owner": "routeledger_writer"}, {"k": 3, "n": 6, "owner": "all"}]', null, 'n'),
  '2 0 0 1 0 1 !2:RL307 (2,5,routeledger_writer) (3,5,routeledger_writer)', 'what it allows is written');
select throws_ok($$ select routeledger.upsert('ruled', '[{"k": 1}]') $$, '0A000', 'DO ALSO rules are not supported for data-modifying statements in WITH', 'a table with rules says so itself');

-- triggers
reset role;
create table log (n bigint generated always as identity, line text);
create function lower_mail() returns trigger language plpgsql as $$ begin new.mail := lower(new.mail); return new; end $$;
create function refuse_seven() returns trigger language plpgsql as $$
begin
  if new.k = 8 then
    raise exception 'not eight' using errcode = 'P0001', hint = 'take nine';
  end if;
  return case when new.k <> 7 then new end;
end
$$;
create function write_log() returns trigger language plpgsql as $$ -- not pinned: it finds the log by the caller's search_path
begin
  insert into log (line) values (tg_when || ' ' || tg_op || ' ' || tg_level || coalesce(' ' || (to_jsonb(new) ->> 'k'), ''));
  return new;
end
$$;
create table rewritten (mail text primary key, n integer);
create trigger rewrite before insert on rewritten for each row execute function lower_mail();
create table guarded (k integer primary key, n integer);
create trigger guard before insert on guarded for each row execute function refuse_seven();
create table guarded_parts (k integer primary key, n integer) partition by hash (k);
create table guarded_part partition of guarded_parts for values with (modulus 1, remainder 0);
create trigger guard before insert on guarded_parts for each row execute function refuse_seven();
create table logged (k integer primary key, n integer);
create trigger a before insert on logged for each row execute function write_log();
create trigger b after insert or update on logged for each row execute function write_log();
create trigger c after insert on logged for each statement execute function write_log();
grant all on log, rewritten, guarded, guarded_parts, logged to routeledger_writer;
grant usage on all sequences in schema tap300 to routeledger_writer;
set local role routeledger_writer;
select is(pg_temp.up('rewritten', '[{"mail": "A@x", "n": 1}, {"mail": "a@X", "n": 2}]', null, 'n'), '2 0 1 1 0 0 (a@x,2)', 'a trigger that gives two rows one key: no 21000');
select is(pg_temp.up('rewritten', '[{"mail": "A@x", "n": 1}, {"mail": "a@X", "n": 2}, {"mail": "b@x", "n": 1}]', null, 'n'), '3 0 1 0 2 0 (a@x,2) (b@x,1)', 'again, and another');
select is(pg_temp.up('rewritten', '[{"mail": "A@x", "n": 3}, {"mail": "a@X", "n": 4}, {"mail": "a@x", "n": 2}, {"mail": "B@x", "n": 0}]', null, 'n') ~ '^4 0 0 [12] [23] 0 \(a@x,4\) \(b@x,1\)$', true, 'the best of them stays');
select is(pg_temp.up('guarded', '[{"k": 6, "n": 1}, {"k": 7, "n": 1}, {"k": 7, "n": 2}, {"k": 9, "n": 1}]'), '4 1 2 0 0 1 !3:RL307 (6,1) (9,1)', 'a row that a trigger keeps out without a word is refused');
select is(pg_temp.refusal('guarded', '[{"k": 7}]') -> 'detail', '{"reason": "a BEFORE INSERT trigger kept the row out"}', 'in these words');
select is(pg_temp.refusal('guarded', '[{"k": 8}]') -> 'detail', '{"sqlstate": "P0001", "reason": "not eight", "hint": "take nine"}', 'one that a trigger raises on in the trigger''s');
select is(pg_temp.up('guarded', '[{"k": 6, "n": 1}, {"k": 7, "n": 1}, {"k": 8, "n": 1}, {"k": 9, "n": 2}, {"k": 10, "n": 1}]'), '5 0 1 1 1 2 !2:RL307 3:RL307 (10,1) (6,1) (9,2)', 'the others are written');
select is(pg_temp.up('guarded_parts', '[{"k": 6, "n": 1}, {"k": 7, "n": 1}, {"k": 8, "n": 1}, {"k": 9, "n": 2}]'), '4 0 2 0 0 2 !2:RL307 3:RL307 (6,1) (9,2)', 'the same on partitions');
select is(pg_temp.up('guarded_parts', '[{"k": 6, "n": 1}, {"k": 7, "n": 1}, {"k": 9, "n": 3}]'), '3 0 0 1 1 1 !2:RL307 (6,1) (9,3)', 'and again');
select is(pg_temp.up('logged', '[{"k": 1, "n": 1}, {"k": 2, "n": 1}]'), '2 0 2 0 0 0 (1,1) (2,1)', 'a trigger finds its tables by the search_path of the caller');
select is(pg_temp.up('logged', '[{"k": 2, "n": 2}, {"k": 1, "n": 1}, {"k": 3, "n": 1}]'), '3 0 1 1 1 0 (1,1) (2,2) (3,1)', 'again');
select results_eq(
  $$ select l.line from log l where l.line like 'AFTER % ROW %' order by l.n $$,
  array['AFTER INSERT ROW 1', 'AFTER INSERT ROW 2', 'AFTER INSERT ROW 3', 'AFTER UPDATE ROW 2'], 'AFTER triggers run for what happened, in the order of the key');
set local search_path = public;
select throws_ok($$ select routeledger.upsert('tap300.logged', '[{"k": 4, "n": 1}]') $$, '42P01', 'relation "log" does not exist', 'without it they do not');
set local search_path = tap300, public;

-- a search_path in which others have put their own in front
reset role;
create schema tap300_evil;
create domain tap300_evil.text as integer;
create domain tap300_evil.record as integer;
create function tap300_evil.fail() returns boolean language plpgsql as $$ begin raise exception 'hijacked'; end $$;
create function tap300_evil.lower(pg_catalog.text) returns pg_catalog.text language sql immutable as $$ select 'hijacked' $$;
create function tap300_evil.equal(pg_catalog.text, pg_catalog.text) returns boolean language sql as $$ select tap300_evil.fail() $$;
create operator tap300_evil.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = tap300_evil.equal);
create function tap300_evil.count(anyelement) returns bigint language sql as $$ select tap300_evil.fail()::integer::bigint $$;
create table guests (email text, state text default 'o' || 'n', n integer, unique (state, email));
create unique index guests_lower on guests (lower(email)) where state = 'on';
grant all on guests to routeledger_writer;
grant usage on schema tap300_evil to routeledger_writer;
set local role routeledger_writer;
create function pg_temp.hijacked() returns bigint[]
language sql volatile
set search_path = tap300_evil, pg_catalog, tap300
as $$
  select pg_catalog.array_agg(c)
  from routeledger.upsert('guests', '[{"email": "A", "n": 1, "state": "on"}, {"email": "a", "n": 2}, {"email": "B", "n": 1}, {"email": "b", "n": "x"}]', '{lower(email)}', 'n') u
  cross join lateral pg_catalog.unnest(array[u.received, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused]) c
$$;
select is(array[pg_temp.hijacked(), pg_temp.hijacked()], array[array[4, 1, 2, 0, 0, 1], array[4, 1, 0, 0, 2, 1]]::bigint[], 'catch nothing of ours');
select results_eq($$ select g.email, g.n from guests g order by 1 $$, $$ values ('B', 1), ('a', 2) $$, 'and change nothing');

-- other kinds of tables
reset role;
create table parts (r text collate "C", k integer, m numeric, v text, primary key (r, k)) partition by list (r);
create table parts_a partition of parts for values in ('a');
create table parts_b partition of parts for values in ('b') partition by range (k);
create table parts_b1 partition of parts_b for values from (1) to (10);
create table numbers (m numeric primary key, n integer) partition by hash (m);
create table numbers_0 partition of numbers for values with (modulus 2, remainder 0);
create table numbers_1 partition of numbers for values with (modulus 2, remainder 1);
create table open_parts (r integer, k integer, n integer, unique nulls not distinct (r, k)) partition by list (r);
create table open_part partition of open_parts for values in (1);
create table open_rest partition of open_parts default;
create table elder (k integer primary key, n integer);
create table child (extra text) inherits (elder);
insert into child values (1, 1, 'x');
create unlogged table fleeting (k integer primary key, n integer);
create temp table passing (k integer primary key, n integer);
grant all on all tables in schema tap300 to routeledger_writer;
grant all on passing to routeledger_writer;
set local role routeledger_writer;
select is(
  pg_temp.up('parts', '[{"r": "a", "k": 1, "m": 1}, {"r": "b", "k": 1, "m": 1}, {"r": "b", "k": 1, "m": 2}, {"r": "c", "k": 1}, {"r": "b", "k": 10}, {"r": null, "k": 1}]', null, 'm'),
  '6 1 2 0 0 3 !4:RL307 5:RL307 6:RL115 (a,1,1,) (b,1,2,)', 'partitions of partitions; no partition for a row: it is refused');
select is(pg_temp.up('parts', '[{"r": "a", "k": 1, "m": 1}, {"r": "b", "k": 1, "m": 3}, {"r": "b", "k": 2, "m": 1}, {"r": "a", "k": 2, "m": 1}, {"r": "a", "k": 2, "m": 0}]', null, 'm'),
  '5 1 2 1 1 0 (a,1,1,) (a,2,1,) (b,1,3,) (b,2,1,)', 'the counts are exact on partitions');
select is(pg_temp.up('parts_b', '[{"r": "b", "k": 2, "m": 2}, {"r": "a", "k": 2, "m": 9}]', null, 'm'), '2 0 0 1 0 1 !2:RL307 (b,1,3,) (b,2,2,)', 'a partition as the target');
select is(pg_temp.up('parts_a', '[{"r": "a", "k": 2, "m": 2}, {"r": "b", "k": 2, "m": 9}]', null, 'm'), '2 0 0 1 0 1 !2:RL307 (a,1,1,) (a,2,2,)', 'a leaf');
select is(pg_temp.up('numbers', '[{"m": 1.0, "n": 1}, {"m": 1.00, "n": 1}, {"m": "NaN", "n": 1}]'), '3 1 2 0 0 0 (1.0,1) (NaN,1)', 'partition keys that are equal and not the same');
select is(pg_temp.up('numbers', '[{"m": 1.00, "n": 2}, {"m": "NaN", "n": 0}]', null, 'n'), '2 0 0 1 1 0 (1.00,2) (NaN,1)', 'the winner brings its own');
select is(
  array[pg_temp.up('open_parts', '[{"r": 1, "k": null, "n": 1}, {"r": null, "k": null, "n": 1}, {"r": null, "k": null, "n": 2}]', null, 'n'),
    pg_temp.up('open_parts', '[{"r": 1, "k": null, "n": 2}, {"r": null, "k": null, "n": 1}, {"r": null, "k": 1, "n": 2}]', null, 'n')],
  array['3 1 2 0 0 0 (,,2) (1,,1)', '3 0 1 1 1 0 (,,2) (,1,2) (1,,2)'], 'NULLS NOT DISTINCT on partitions');
select is(pg_temp.up('elder', '[{"k": 1, "n": 5}, {"k": 2, "n": 5}]'), '2 0 2 0 0 0 (1,1) (1,5) (2,5)', 'a parent by inheritance: its children''s rows are not its own');
select is(pg_temp.up('elder', '[{"k": 1, "n": 6}]'), '1 0 0 1 0 0 (1,1) (1,6) (2,5)', 'and stay as they are');
select is(pg_temp.up('fleeting', '[{"k": 1, "n": 6}]'), '1 0 1 0 0 0 (1,6)', 'an unlogged table');
select is(pg_temp.up('passing', '[{"k": 1, "n": 6}]'), '1 0 1 0 0 0 (1,6)', 'a temporary one');
select is(pg_temp.up('passing', '[{"k": 1, "n": 7}]'), '1 0 0 1 0 0 (1,7)', 'again');

-- what is there and wins
create function pg_temp.version_of(p_table regclass) returns text
language plpgsql volatile
as $$
declare
  v_versions text;
begin
  execute format('select string_agg(concat_ws('' '', t.tableoid, t.ctid, t.xmin, t.xmax), '','' order by t.tableoid, t.ctid) from %s t', p_table) into v_versions;
  return v_versions;
end
$$;
create temp table version on commit drop as select t.name, pg_temp.version_of(t.name::regclass) as before from unnest(array['plain', 'parts', 'coerced', 'mails', 'nulls', 'valued']) t (name);
select results_eq(
  $$
    select pg_temp.up('parts', '[{"r": "a", "k": 1, "m": 1}, {"r": "b", "k": 1, "m": 0}, {"r": "b", "k": 1, "m": 3}]', null, 'm')
    union all select pg_temp.up('mails', '[{"email": "A@X", "n": 3}, {"email": "a@x", "n": 1}]', '{tenant,lower(email)}', 'n')
    union all select pg_temp.up('nulls', '[{"a": null, "b": null, "n": 1}]', null, 'n')
    union all select pg_temp.up('coerced', '[{"a": 1.0, "b": "x", "c": "2026-01-01T00:00:00Z", "n": 3}]')
  $$,
  array['3 1 0 0 2 0 (a,1,1,) (a,2,2,) (b,1,3,) (b,2,2,)', '2 1 0 0 1 0 (A@X,3,x) (b@x,1,y)', '1 0 0 0 1 0 (,,1) (,x,1) (1,,3) (1,x,1)', '1 0 0 0 1 0 (1.00,"x  ","2026-01-01 00:00:00+00",3)'],
  'rows that lose');
select is_empty(
  $$ select v.name from version v where v.before is distinct from pg_temp.version_of(v.name::regclass) and v.name <> 'nulls' $$, 'leave no version, and no lock, behind');

-- a staging table
reset role;
create temp table load as select k, n, v from plain with no data;
insert into load values (1, 1, 'a'), (1, 2, 'b'), (null, 1, 'c'), (2, 1, 'd'), (3, 1, 'e');
delete from load where k = 3;
create temp table load_mails as select email, n, tenant from mails with no data;
insert into load_mails values ('Z@x', 1, 'x'), ('z@x', 2, 'x'), ('z@x', 2, null);
create temp table load_checked as select k, n from checked with no data;
insert into load_checked values (30, 0), (31, 1), (32, -1);
create temp table load_sums as select k, hits from sums with no data;
insert into load_sums values (7, 1), (7, 2), (null, 1);
create temp table load_policed as select k, n from policed with no data;
insert into load_policed values (30, 1), (31, 100);
create temp table load_parent (id integer);
create temp table load_child () inherits (load_parent);
insert into load_child values (77);
create table typed (k text primary key, n integer);
create temp table load_typed (k text collate "C", n integer);
insert into load_typed values ('b', 1), ('B', 1);
grant all on typed, load, load_mails, load_checked, load_sums, load_policed, load_parent, load_typed to routeledger_writer;
set local role routeledger_writer;
delete from plain;
select is(pg_temp.up('plain', null, null, 'n', p_from => 'load'), '4 1 2 0 0 1 !3:RL115 (1,2,b) (2,1,d)', 'upsert_from: the rows of a table, each by its place');
select is(pg_temp.up('plain', null, null, 'n', p_from => 'load'), '4 1 0 0 2 1 !3:RL115 (1,2,b) (2,1,d)', 'again');
select is(pg_temp.up('plain', null, null, 'first n', p_columns => '{n,k}', p_from => 'load'), '4 1 0 1 1 1 !3:RL115 (1,1,b) (2,1,d)', 'some of its columns');
select is(pg_temp.up('mails', null, '{tenant,lower(email)}', 'n', p_from => 'load_mails') ~ '^3 1 1 0 0 1 !3:RL115 .*\(z@x,2,x\)', true, 'an expression');
select is(pg_temp.up('checked', null, null, 'n', p_from => 'load_checked') ~ '^3 0 1 0 0 2 !1:RL307 3:RL307 ', true, 'refusals, with their places');
select is(pg_temp.up('sums', null, null, 'sum hits', p_from => 'load_sums', p_batch_id => 'from') ~ '^3 1 1 0 0 1 !3:RL115 .*\(7,3,', true, 'sums');
select is(pg_temp.up('sums', null, null, 'sum hits', p_from => 'load_sums', p_batch_id => 'from') ~ '^3 0 0 0 2 1 !3:RL115 .*\(7,3,', true, 'that a replay leaves alone');
insert into load_sums values (8, 1);
select throws_ok($$ select routeledger.upsert_from('sums', 'load_sums', null, 'sum hits', p_batch_id => 'from') $$, 'RL308', 'this batch id was applied with other rows', 'one more row is another batch');
select is(pg_temp.up('policed', null, null, 'n', p_from => 'load_policed') ~ '^2 0 1 0 0 1 !2:RL307 ', true, 'row-level security');
select is(pg_temp.up('parent', null, p_from => 'load_parent'), '0 0 0 0 0 0 (1) (2)', 'children of the staging table are not its rows');
select is(pg_temp.up('typed', null, p_from => 'load_typed'), '2 0 2 0 0 0 (B,1) (b,1)', 'a collation of its own does not matter');
select throws_ok(
  $$ select routeledger.upsert_from('checked', 'load_checked', p_strict => true) $$, 'RL307', 'the table refused this row', 'p_strict');
delete from load;
select is(pg_temp.up('plain', null, p_from => 'load'), '0 0 0 0 0 0 (1,1,b) (2,1,d)', 'an empty one');

-- many
reset role;
create table many (k integer primary key, n integer check (n >= 0));
create temp table kept_rows (rows jsonb);
insert into kept_rows select jsonb_agg(jsonb_build_object('k', i, 'n', case when i % 9000 = 7 then -1 else i end)) from generate_series(1, 65537) i;
grant all on many, kept_rows to routeledger_writer;
set local role routeledger_writer;
select results_eq(
  $$ select u.received, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused from kept_rows cross join lateral routeledger.upsert('many', rows) u $$,
  $$ values (65537::bigint, 0::bigint, 65529::bigint, 0::bigint, 0::bigint, 8::bigint) $$, '65,537 rows in one call, some of them bad');
select results_eq(
  $$
    select u.received, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused
    from routeledger.upsert('many', (select jsonb_agg(jsonb_build_object('k', i % 65537, 'n', i)) from generate_series(1, 65538) i), null, 'n') u
  $$,
  $$ values (65538::bigint, 1::bigint, 9::bigint, 1::bigint, 65527::bigint, 0::bigint) $$, 'and again, with one twice');
select results_eq(
  $$
    select u.received, u.refused, jsonb_array_length(u.refusals), u.refusals #>> '{9999,ord}'
    from routeledger.upsert('many', (select jsonb_agg(jsonb_build_object('n', i)) from generate_series(1, 10001) i), '{k}', p_columns => '{k,n}') u
  $$,
  $$ values (10001::bigint, 10001::bigint, 10000, '10000') $$, 'no more than 10,000 refusals are listed');

reset role;
do $$
begin
  execute (select format('create table broad (k integer primary key, %s)', string_agg(format('c%s integer default %s', n, n), ', ')) from generate_series(1, 300) n);
  grant all on broad to routeledger_writer;
end
$$;
set local role routeledger_writer;
select results_eq(
  $$
    select u.inserted, u.updated, u.unchanged
    from generate_series(1, 2) n
    cross join lateral (select jsonb_object_agg('c' || i, i) || jsonb_build_object('k', 1, 'c300', n) as one from generate_series(1, 300) i) r
    cross join lateral routeledger.upsert('broad', jsonb_build_array(r.one, '{"k": 2}'::jsonb), null, 'c300') u
    order by n
  $$,
  $$ values (2::bigint, 0::bigint, 0::bigint), (0, 1, 1) $$, '301 columns');
select results_eq(
  $$ select b.k, b.c1, b.c299, b.c300 from broad b order by b.k $$, $$ values (1, 1, 299, 2), (2, 1, 299, 300) $$, 'and as many defaults');

-- plan_upsert
select results_eq(
  $$
    select p.target, p.unique_index, p.key, p.columns, p.statement ~ 'insert into tap300.mails as t .*on conflict \(tenant [^)]*, \(lower\(email\)\)[^)]*\)'
    from routeledger.plan_upsert('mails', '{n,email}', '{tenant,lower(email)}', 'n') p
  $$,
  $$ values ('tap300.mails', 'tap300.mails_tenant_lower_idx', '{tenant,lower(email)}'::text[], '{email,n,tenant}'::text[], true) $$,
  'plan_upsert says which unique index decides, by what key, which columns are written, and how');
select results_eq(
  $$
    select c.code, coalesce(c.detail ->> 'parameter', c.detail ->> 'reason')
    from unnest(array[
      $q$ select routeledger.plan_upsert(null, '{k}') $q$, $q$ select routeledger.plan_upsert('plain', null) $q$, $q$ select routeledger.plan_upsert('seen', '{k}') $q$,
      $q$ select routeledger.plan_upsert('plain', '{k,nope}') $q$, $q$ select routeledger.plan_upsert('plain', '{k,n}', '{n}') $q$,
      $q$ select routeledger.plan_upsert('plain', '{k,n}', null, 'm') $q$, $q$ select routeledger.plan_upsert('plain', '{k,n}', p_on_tie => 'x') $q$]) with ordinality q (sql, n)
    cross join lateral pg_temp.caught(q.sql) c
    order by q.n
  $$,
  $$
    values
      ('RL101', 'target'), ('RL113', 'no column is written'), ('RL112', 'not an ordinary or partitioned table'), ('RL113', 'the target has no such column'),
      ('RL204', null), ('RL114', 'the target has no such column'), ('RL102', 'on_tie')
  $$,
  'and refuses what upsert would');

-- what an operator sees
reset role;
select results_eq(
  $$ select a.calls, a.calls_with_duplicates, a.received, a.collapsed, a.inserted, a.updated, a.unchanged, a.refused, a.last_at, a.last_duplicates_at from routeledger.upsert_activity a where a.target = 'tap300.many' and a.day = pg_temp.t0()::date $$,
  $$ values (3::bigint, 1::bigint, 141076::bigint, 1::bigint, 65538::bigint, 1::bigint, 65527::bigint, 10009::bigint, pg_temp.t0(), pg_temp.t0()) $$,
  'upsert_activity adds up the calls of a day');
select is_empty($$ select a.target from routeledger.upsert_activity a where a.received <> a.collapsed + a.inserted + a.updated + a.unchanged + a.refused $$, 'its counts add up too');
do $$ begin perform pg_temp.at('1 day'); perform routeledger.upsert('plain', '[{"k": 1}]'); end $$;
select results_eq(
  $$ select a.day, a.calls, a.last_duplicates_at from routeledger.upsert_activity a where a.target = 'tap300.plain' and a.day > pg_temp.t0()::date $$,
  $$ values ((pg_temp.t0() + interval '1 day')::date, 1::bigint, null::timestamptz) $$, 'day by day');

-- privileges
reset role;
create table closed (k integer primary key, n integer);
create table columned (k integer primary key, n integer, secret integer default 7);
create table columned_parts (k integer primary key, n integer, secret integer) partition by hash (k);
create table columned_part partition of columned_parts for values with (modulus 1, remainder 0);
create table read_only (k integer primary key, n integer);
create table insert_only (k integer primary key, n integer);
create table policed_part (k integer primary key, n integer);
alter table policed_part enable row level security;
create policy all_rows on policed_part using (true);
revoke all on all tables in schema tap300 from tap300_none;
grant select (k, n), insert (k, n), update (n) on columned, columned_parts to tap300_part;
grant select on read_only, policed_part to tap300_part;
grant select, insert on insert_only, policed_part to tap300_part;
grant select, insert, update on closed to tap300_part;
do $$
begin
  -- the two may execute upsert, and hold none of the writer's tables
  revoke routeledger_writer from tap300_none, tap300_part;
  grant usage on schema routeledger, tap300 to tap300_none, tap300_part;
  grant routeledger_judge to tap300_none, tap300_part;
end
$$;
set local role tap300_none;
select throws_ok($$ select routeledger.upsert('closed', '[{"k": 1}, {"k": 2}]') $$, '42501', 'permission denied for table closed', 'without grants on the table the call fails as a whole');
select throws_ok($$ select routeledger.upsert('policed', '[{"k": 1}, {"k": 2}]') $$, '42501', 'permission denied for table policed', 'under row-level security too');
select throws_ok($$ select routeledger.upsert_from('closed', 'load_checked') $$, '42501', 'permission denied for table load_checked', 'nor is a staging table read');
select results_eq(
  $$
    select distinct c.code
    from pg_class r
    cross join lateral (
      select jsonb_build_array(jsonb_object_agg(a.attname, null)) as rows
      from pg_index i join pg_attribute a on a.attrelid = r.oid and a.attnum = any (i.indkey)
      where i.indrelid = r.oid and i.indisprimary and a.attidentity <> 'a') k
    cross join lateral pg_temp.caught(format('select routeledger.upsert(%L, %L)', r.oid::regclass, k.rows)) c
    where r.relnamespace = 'routeledger'::regnamespace and r.relkind in ('r', 'p') and k.rows <> '[null]'
  $$,
  array['42501'], 'a role that may execute upsert and holds nothing can write none of the ledger''s tables');
reset role;
set local role tap300_part;
select is(
  (select row(u.inserted, u.updated, u.refused)::text from routeledger.upsert('columned', '[{"k": 1, "n": 1}, {"k": 2, "n": 1}]') u), '(2,0,0)', 'grants of columns do for those columns');
select is(
  (select row(u.inserted, u.updated, u.refused)::text from routeledger.upsert('columned', '[{"k": 1, "n": 2}, {"k": 3, "n": 1}]') u), '(1,1,0)', 'to update as well');
select throws_ok($$ select routeledger.upsert('columned', '[{"k": 1, "n": 2, "secret": 8}]') $$, '42501', 'permission denied for table columned', 'and for no other');
select throws_ok($$ select routeledger.upsert('columned', '[{"k": 1, "n": 2, "secret": 8}, {"k": "x"}]') $$, '42501', 'permission denied for table columned', 'whatever else is wrong');
select throws_ok($$ select routeledger.upsert('read_only', '[{"k": 1, "n": 2}]') $$, '42501', 'permission denied for table read_only', 'to read is not to write');
select throws_ok($$ select routeledger.upsert('insert_only', '[{"k": 1, "n": 2}]') $$, '42501', 'permission denied for table insert_only', 'an upsert updates');
select throws_ok($$ select routeledger.upsert('policed_part', '[{"k": 1, "n": 2}]') $$, '42501', 'permission denied for table policed_part', 'under row-level security too, where the code is the same as that of a policy');
select is((select u.inserted from routeledger.upsert('closed', '[{"k": 1, "n": 2}]') u), 1::bigint, 'with SELECT, INSERT and UPDATE it works');
reset role;

select * from finish();
rollback;
