-- 600 · Constraints: a table comes to hold the constraint that is declared, whatever it holds now.
begin;
\ir common.psql
select plan(233);

create schema tap600;
create schema tap600_far;
create role tap600_owner;
create role tap600_none;
grant routeledger_writer to tap600_none;
grant routeledger_admin to tap600_owner;
grant usage, create on schema tap600 to tap600_owner;
grant usage on schema tap600, tap600_far to routeledger_writer, tap600_owner;
grant temporary on database :"DBNAME" to tap600_owner;
create type tap600_far.mood as enum ('sad', 'glad');
create domain tap600_far.natural as integer check (value >= 0);
set local search_path = tap600, public;

-- What ensure_check() says, in one text: outcome, validated or not, violations, reason, and whether there is a next step.
create function pg_temp.ck(
  p_table regclass, p_name text, p_predicate text, p_if_violated text default 'refuse', p_no_inherit boolean default false,
  p_also_drop text[] default '{}', p_label text default null, p_strict boolean default false, p_dry_run boolean default false) returns text
language sql volatile
as $$
  select concat_ws(' ', e.outcome, case when e.validated then 'valid' end, e.violations, e.reason, case when e.next is not null then 'next' end)
  from routeledger.ensure_check(
    p_table, p_name, p_predicate, p_if_violated, p_no_inherit, p_also_drop, p_label, p_strict => p_strict, p_dry_run => p_dry_run) e
$$;
create function pg_temp.nn(
  p_table regclass, p_column text, p_name text default null, p_if_violated text default 'refuse', p_label text default null,
  p_strict boolean default false, p_dry_run boolean default false) returns text
language sql volatile
as $$
  select concat_ws(' ', e.outcome, case when e.validated then 'valid' end, e.violations, e.reason, case when e.next is not null then 'next' end)
  from routeledger.ensure_not_null(p_table, p_column, p_name, p_if_violated, p_label, p_strict => p_strict, p_dry_run => p_dry_run) e
$$;
create function pg_temp.det(p_table regclass, p_name text, p_predicate text, p_dry_run boolean default true) returns jsonb
language sql volatile
as $$ select e.detail from routeledger.ensure_check(p_table, p_name, p_predicate, p_dry_run => p_dry_run) e $$;
-- The CHECK of that name as the catalogue has it, with its flags and its comment.
create function pg_temp.live(p_table regclass, p_name text) returns text
language sql stable
as $$
  select concat_ws(' ', pg_get_constraintdef(c.oid), '-- ' || obj_description(c.oid, 'pg_constraint'))
  from pg_constraint c
  where c.conrelid = p_table and c.conname = p_name
$$;
-- The texts of a predicate, from the first to the one that stays.
create function pg_temp.texts(p_table regclass, p_predicate text) returns text[]
language sql volatile
as $$ select array(select t from jsonb_array_elements_text(routeledger._canonical_check(p_table, p_predicate) -> 'texts') t) $$;
-- Why a text cannot be a predicate.
create function pg_temp.why(p_table regclass, p_predicate text) returns text
language sql volatile
as $$
  select concat_ws(' ', c.code, c.detail ->> 'reason')
  from pg_temp.caught(format('select * from routeledger.ensure_check(%L::regclass, %L, %L)', p_table, 'why', p_predicate)) c
$$;

create table empty (id integer primary key, a integer, v varchar(20), mood tap600_far.mood, n tap600_far.natural, at timestamptz, d date, i interval);
create table full_ (id integer primary key, a integer, v varchar(20), e integer[]);
insert into full_ select n, n, 'x' from generate_series(1, 10) n;
create table keyless (a integer, j json);
insert into keyless values (1, '{}'), (-1, '{}');
alter table empty owner to tap600_owner;
alter table full_ owner to tap600_owner;
alter table keyless owner to tap600_owner;

-- the arguments
select throws_ok($$ select routeledger.ensure_check(null, 'c', 'a > 0') $$, 'RL101', 'a required argument is missing', 'no table');
select throws_ok($$ select routeledger.ensure_check('empty', null, 'a > 0') $$, 'RL101', 'a required argument is missing', 'no name');
select throws_ok($$ select routeledger.ensure_check('empty', '', 'a > 0') $$, 'RL101', 'a required argument is missing', 'an empty name');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', null) $$, 'RL101', 'a required argument is missing', 'no predicate');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_no_inherit => null) $$, 'RL101', 'a required argument is missing', 'inherited or not');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_strict => null) $$, 'RL101', 'a required argument is missing', 'strict or not');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_dry_run => null) $$, 'RL101', 'a required argument is missing', 'dry or not');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_also_drop => '{x,NULL}') $$, 'RL101', 'a required argument is missing', 'null among the old names');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_lock_timeout => null) $$, 'RL101', 'a required argument is missing', 'no lock_timeout');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_attempts => null) $$, 'RL101', 'a required argument is missing', 'no attempts');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_also_drop => '{{x},{y}}') $$, 'RL101', 'a required argument is missing', 'old names in rows and columns');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', 'repair') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown policy');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', null) $$, 'RL102', 'an argument is not one of the words allowed for it', 'no policy');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_lock_timeout => '0') $$, 'RL103', 'a number is outside the range allowed for it', 'no time at all');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_lock_timeout => '61 minutes') $$, 'RL103', 'a number is outside the range allowed for it', 'too much time');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_attempts => 0) $$, 'RL103', 'a number is outside the range allowed for it', 'no attempt');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_attempts => 1001) $$, 'RL103', 'a number is outside the range allowed for it', 'too many attempts');
select throws_ok($$ select routeledger.ensure_check('empty', repeat('x', 64), 'a > 0') $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a name of 64 bytes');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'a > 0', p_label => repeat('x', 301)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a label of 301 characters');
select throws_ok($$ select routeledger.ensure_not_null('empty', null) $$, 'RL101', 'a required argument is missing', 'no column');
select throws_ok($$ select routeledger.ensure_not_null('empty', 'a', p_strict => null) $$, 'RL101', 'a required argument is missing', 'of NOT NULL: strict or not');
select throws_ok($$ select routeledger.ensure_not_null('empty', 'a', p_dry_run => null) $$, 'RL101', 'a required argument is missing', 'dry or not');
select throws_ok($$ select routeledger.ensure_not_null('empty', 'a', '') $$, 'RL101', 'a required argument is missing', 'an empty name');
select throws_ok($$ select routeledger.ensure_not_null('empty', 'nope') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'no such column');

-- the table
create view seen as select 1 as a;
create temp table own (a integer);
create table parted (a integer) partition by list (a);
select results_eq(
  $$
    select c.code, c.detail ->> 'reason'
    from unnest(array['seen', 'own', 'pg_class', 'empty_pkey']) with ordinality t (name, n)
    cross join lateral pg_temp.caught(format('select routeledger.ensure_check(%L, %L, %L)', t.name, 'c', 'true')) c
    order by t.n
  $$,
  $$
    values
      ('RL117', 'not an ordinary or partitioned table'), ('RL117', 'a temporary table'), ('RL117', 'a table of the system'),
      ('RL117', 'not an ordinary or partitioned table')
  $$,
  'a view, a temporary table, a table of the system, an index');
select is((select c.detail ->> 'reason' from pg_temp.caught($$ select routeledger.ensure_check(4294967295::regclass, 'c', 'true') $$) c), 'there is no such table', 'nor one that is not there');
select throws_ok($$ select routeledger.ensure_check('seen', 'c', 'true') $$, 'RL117', 'constraints of this relation cannot be declared here', 'in these words');
select throws_ok($$ select routeledger.ensure_check('parted', 'c', 'true', p_no_inherit => true) $$, 'RL117', 'constraints of this relation cannot be declared here', 'no_inherit does not suit a partitioned table');

-- one expression between two parentheses
select results_eq(
  $$ select routeledger._is_one_expression(t) from unnest(array[
    'a', '(a)', 'a > 0 -- )', 'a > 0 /* ) */', ' a = '')'' ', 'a = ''it''''s)''', 'a = E''\'')''', 'a = E''x'' ''\'')''', '"a)" > 0', 'a$b > 0', 'fooe''\'' = a', 'é(1)', 'a[1] * 2 / 3 - 1 > 0']) with ordinality x (t, n) order by n $$,
  $$ select true from generate_series(1, 13) $$,
  'what is one expression');
select results_eq(
  $q$ select routeledger._expression_fault(t) from unnest(array[
    '', '  -- nothing', '/* nothing */', '(a', 'a)', 'a) or (b', 'a; b', 'a = ''x', 'a = "x', 'a /* x', 'a /* /* x */', '$$a$$', 'a = e''\'')', 'fooe''\'') or (''x'' = ''x''']) with ordinality x (t, n) order by n $q$,
  $$ values ('it is empty'), ('it is empty'), ('it is empty'), ('a parenthesis is not closed'), ('a parenthesis is closed that was not opened'), ('a parenthesis is closed that was not opened'),
     ('it holds more than one statement'), ('a string or a name has no end'), ('a string or a name has no end'), ('a comment has no end, or holds another'), ('a comment has no end, or holds another'),
     ('a dollar begins neither a name nor a string here: write strings in single quotes'), ('a parenthesis is closed that was not opened'), ('a parenthesis is closed that was not opened') $$,
  'what is not, and why');
select is(pg_temp.why('empty', 'a > 0) not valid, drop column a, add check (true'), 'RL116 a parenthesis is closed that was not opened', 'a predicate does not close its parenthesis');
select is(pg_temp.why('empty', 'a > 0 not valid'), 'RL116 syntax error at or near "not"', 'nor add words of its own');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'nope > 0') $$, 'RL116', 'this cannot be the predicate of a constraint', 'no such column');
select throws_ok($$ select routeledger.ensure_check('empty', 'c', 'nope.f(1)') $$, 'RL116', 'this cannot be the predicate of a constraint', 'no such schema');
select is(pg_temp.why('empty', 'nope > 0'), 'RL116 column "nope" does not exist', 'DETAIL has what PostgreSQL says');
select is(pg_temp.why('empty', 'a'), 'RL116 argument of CHECK must be type boolean, not type integer', 'not boolean');
select is(pg_temp.why('empty', 'exists (select 1)'), 'RL116 cannot use subquery in check constraint', 'a query');
select is(pg_temp.why('empty', 'sum(a) > 0'), 'RL116 aggregate functions are not allowed in check constraints', 'an aggregate');

-- literals that mean something else elsewhere
select is(pg_temp.why('empty', 'at > ''2026-01-01'''), 'RL116 a literal of it means something else in a session with another TimeZone, DateStyle or IntervalStyle', 'a time without a zone');
select is(pg_temp.why('empty', 'i < ''-1 02:03'''), 'RL116 a literal of it means something else in a session with another TimeZone, DateStyle or IntervalStyle', 'an interval that has two meanings');
select is(pg_temp.why('empty', 'd > ''03/25/26'''), 'RL116 date/time field value out of range: "03/25/26"', 'a date of no style of ours');
select is(pg_temp.why('empty', 'd > ''26/03/25'''), 'RL116 a literal of it means something else in a session with another TimeZone, DateStyle or IntervalStyle', 'a date of ours only');
select is(pg_temp.why('empty', 'd > ''26/13/05'''), 'RL116 date/time field value out of range: "26/13/05"', 'no date at all');
select is(pg_temp.why('empty', 'd > ''1999/03/45'''), 'RL116 date/time field value out of range: "1999/03/45"', 'nor that');
select is(pg_temp.why('empty', 'd > ''32/03/01'''), 'RL116 a literal of it cannot be read in a session with another TimeZone, DateStyle or IntervalStyle', 'a date that another session cannot read');
select is(pg_temp.why('empty', 'at > ''now'''), 'RL116 ''now'' is a time of its own each time that it is read', 'now');
select matches(
  pg_temp.why('empty', 'd > '' Tomorrow'''), '^RL116 ('' Tomorrow'' is a time of its own each|a literal of it means something else in a session)',
  'tomorrow, which is not everywhere the same');
select is(pg_temp.why('empty', 'v <> ''now'' and at > ''2026-01-01 00:00+01'''), '', 'a text may be the word now, and a time have its zone');

-- canonical text, to a fixpoint
select is(pg_temp.texts('empty', 'a>0'), array['(a > 0)'], 'one round');
select is(pg_temp.texts('empty', 'v in (''x'', ''y'')'), array[
  '((v)::text = ANY ((ARRAY[''x''::character varying, ''y''::character varying])::text[]))',
  '((v)::text = ANY (ARRAY[(''x''::character varying)::text, (''y''::character varying)::text]))'], 'two');
select is(pg_temp.texts('empty', 'empty is not null and empty.a > 0'), array['((empty.* IS NOT NULL) AND (a > 0))'], 'the whole row, and the name of the table');
select is(pg_temp.texts('empty', 'mood <> ''sad'' and n > 3'), array['((mood <> ''sad''::tap600_far.mood) AND ((n)::integer > 3))'], 'types of another schema');
select is(pg_temp.texts('empty', 'mood <> ''sad''::mood'), array['(mood <> ''sad''::tap600_far.mood)'], 'their schemas are on the path');
select is(pg_temp.texts('empty', 'a = null'), array['(a = NULL::integer)'], 'null');
select is(routeledger._path_of('empty'), 'pg_catalog, tap600, tap600_far, pg_temp', 'the path by which a predicate is read');
select is(routeledger._path_of('keyless'), 'pg_catalog, tap600, pg_temp', 'and of a table of plain types');
create temp table empty (nothing integer);
select is(pg_temp.texts('tap600.empty', 'a > 0'), array['(a > 0)'], 'a temporary table of the same name is not in the way');
select has_table(pg_my_temp_schema()::regnamespace::name, 'empty'::name, 'and is there afterwards');
drop table pg_temp.empty;
alter table empty add column gone integer, add column "Late" integer;
alter table empty drop column gone;
select is(pg_temp.ck('empty', 'late', '"Late" > 0'), 'created valid 0', 'a table that has lost a column');
select is(pg_temp.ck('empty', 'late', '"Late">0'), 'unchanged valid', 'is compared by the names of those it has');
select is(routeledger._canonical_check('empty', '"Late" > 0 and d > ''2026-01-01''') -> 'columns', '["d", "Late"]', 'the columns of a predicate');

-- hostile settings
set local timezone = 'Asia/Tokyo';
set local datestyle = 'German';
set local intervalstyle = 'sql_standard';
set local quote_all_identifiers = on;
set local transform_null_equals = on;
set local extra_float_digits = -3;
set local escape_string_warning = off;
set local standard_conforming_strings = off;
set local search_path = pg_temp, pg_catalog, public;
select is(pg_temp.ck('tap600.empty', 'hostile', E'at > \'2026-01-01 00:00+00\' and d > \'2026-02-03\' and i > \'1 day 02:03\' and v ~ \'^\\d+$\' and a = null and n > 0.1'), 'created valid 0', 'in a session of odd settings');
set local standard_conforming_strings = on;
set local search_path = tap600, public;
set local timezone = 'UTC';
set local datestyle = 'ISO, MDY';
set local intervalstyle = 'postgres';
set local quote_all_identifiers = off;
set local transform_null_equals = off;
set local extra_float_digits = 1;
select is(pg_temp.ck('empty', 'hostile', E'at > \'2026-01-01 00:00+00\' and d > \'2026-02-03\' and i > \'1 day 02:03\' and v ~ \'^\\d+$\' and a = null and n > 0.1'), 'unchanged valid', 'and the same in one of plain settings');
select is(routeledger._qualified('empty'), 'tap600.empty', 'the name of a table');
set local quote_all_identifiers = on;
select is(routeledger._qualified('empty'), 'tap600.empty', 'is the same in both');
set local quote_all_identifiers = off;

-- an empty table: at once
set local role tap600_owner;
select is(pg_temp.ck('empty', 'c', 'a > 0', p_dry_run => true), 'created 0', 'dry: it would be created');
select is(pg_temp.live('empty', 'c'), null, 'and was not');
select is(pg_temp.ck('empty', 'c', 'a > 0'), 'created valid 0', 'created, and validated for there is no row');
select is(pg_temp.live('empty', 'c'), 'CHECK ((a > 0))', 'it is there');
select is(pg_temp.ck('empty', 'c', ' 0 < a'), 'replaced valid 0', 'another text is another predicate');
select is(pg_temp.ck('empty', 'c', 'a > 0'), 'replaced valid 0', 'and back');
select is(pg_temp.ck('empty', 'c', 'a>0'), 'unchanged valid', 'the same predicate, written otherwise');
select is(pg_temp.ck('empty', 'c', '(empty.a) > 0'), 'unchanged valid', 'and otherwise again');
comment on constraint c on empty is 'it''s why';
select is(pg_temp.ck('empty', 'c', 'a > 1'), 'replaced valid 0', 'replaced');
select is(pg_temp.live('empty', 'c'), 'CHECK ((a > 1)) -- it''s why', 'with its comment');
select is((select e.found || ' ' || e.definition from routeledger.ensure_check('empty', 'c', 'a > 2', p_dry_run => true) e), '(a > 1) (a > 2)', 'found and declared');
select is(pg_temp.ck('empty', 'c', 'a > 1', p_no_inherit => true), 'replaced valid 0', 'NO INHERIT is part of it');
select is(pg_temp.ck('empty', 'c', 'a > 1', p_no_inherit => true), 'unchanged valid', 'then it is unchanged');
select is(pg_temp.live('empty', 'c'), 'CHECK ((a > 1)) NO INHERIT -- it''s why', 'as declared');
alter table empty drop constraint c, add constraint c check (a > 1) not valid;
select is(pg_temp.ck('empty', 'c', 'a > 1'), 'validated valid 0', 'NOT VALID on an empty table is validated at once');
select is(pg_temp.ck('empty', repeat('ü', 31) || 'x', '"Late" > 0'), 'created valid 0', 'a name of 63 bytes');
select is(pg_temp.ck('empty', repeat('ü', 31) || 'x', '"Late" > 0'), 'unchanged valid', 'is found again');
create table "Öde ""x""" ("SELECT" integer);
select is(pg_temp.ck('"Öde ""x"""', 'A "b"', '"SELECT" > 0'), 'created valid 0', 'odd names');
select is(pg_temp.ck('"Öde ""x"""', 'A "b"', '"Öde ""x"""."SELECT" > 0'), 'unchanged valid', 'are found again');

-- rows
select is(pg_temp.ck('full_', 'c', 'a > 3'), 'refused 3 violations', 'rows that violate it refuse it');
select is(pg_temp.det('full_', 'c', 'a > 7'), '{"dry_run": true, "samples": [{"id": 1}, {"id": 2}, {"id": 3}, {"id": 4}, {"id": 5}]}', 'five of them are shown by their key');
select is(pg_temp.det('keyless', 'c', 'a > 0') -> 'samples', '[{"ctid": "(0,2)", "table": "tap600.keyless"}]', 'or by their place');
select is(pg_temp.live('full_', 'c'), null, 'nothing was changed');
select is(pg_temp.ck('full_', 'c', 'a > 3 or null'), 'created 0 next', 'NULL is no violation');
select is(pg_temp.ck('full_', 'c', 'a > 3 or null'), 'pending uncommitted next', 'it is validated in another transaction');
select is(pg_temp.ck('full_', 'c', 'a > 3', 'add_not_valid'), 'replaced 3 violations', 'added over rows that violate it, and no next step');
select throws_ok($$ insert into full_ values (11, 3) $$, '23514', 'new row for relation "full_" violates check constraint "c"', 'for new rows it holds');
select is(pg_temp.live('full_', 'c'), 'CHECK ((a > 3)) NOT VALID', 'NOT VALID');
select is(pg_temp.ck('full_', 'z', '10 / (a - 5) <> 0'), 'refused predicate_fails', 'a predicate that fails on a row');
select is(pg_temp.det('full_', 'z', '10 / (a - 5) <> 0') ->> 'message', 'division by zero', 'in the words of PostgreSQL');
select throws_ok($$ select routeledger.ensure_check('full_', 'z', 'a > 9', p_strict => true) $$, 'RL309', 'the constraint was not put in place', 'strict: an error');
select is(
  (select c.detail - 'samples' - 'suspects' from pg_temp.caught($$ select routeledger.ensure_check('full_', 'z', 'a > 9', p_strict => true) $$) c),
  '{"name": "z", "table": "tap600.full_", "reason": "violations", "definition": "(a > 9)", "violations": 9}', 'with the same detail');

-- what else is there under that name, and beside it
select is(pg_temp.ck('full_', 'full__pkey', 'a > 0'), 'refused name_taken', 'the name of a key');
select is((select e.found from routeledger.ensure_check('full_', 'full__pkey', 'a > 0') e), 'PRIMARY KEY (id)', 'which is found');
select is(pg_temp.det('full_', 'y', 'a < 1000') -> 'suspects', '[{"name": "c", "definition": "CHECK ((a > 3)) NOT VALID"}]', 'another CHECK of the same columns is suspect');
alter table full_ add constraint old_1 check (a > -5), add constraint old_2 check (a > -6);
select is(pg_temp.ck('full_', 'y', 'a < 1000', p_also_drop => '{old_1,nope,y}'), 'created 0 next', 'created in the place of an older name');
select is(pg_temp.live('full_', 'old_1'), null, 'which is gone');
select is(pg_temp.ck('full_', 'y', 'a < 1000', p_also_drop => '{full__pkey}'), 'refused name_taken', 'only a CHECK is dropped');
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000'), 'created valid 0', 'one that is valid');
alter table empty add constraint old_2 check (a > -6);
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000', p_also_drop => '{old_2}', p_dry_run => true), 'replaced valid', 'dry: an older one would go');
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000', p_also_drop => '{old_2}'), 'replaced valid', 'an older one goes');
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000', p_also_drop => '{old_2}'), 'unchanged valid', 'once');

-- functions
create function tap600.small(integer) returns boolean language sql immutable as 'select $1 < 100';
create function tap600.row_ok(tap600.empty) returns boolean language sql immutable as 'select $1.a < 100';
create function tap600.moody() returns boolean language plpgsql as 'begin return true; end';
select is(pg_temp.ck('empty', 'f', 'small(a)'), 'created valid 0', 'a function');
select is(pg_temp.ck('empty', 'f', 'tap600.small(a)'), 'unchanged valid', 'unchanged while the function is');
create or replace function tap600.small(integer) returns boolean language sql immutable as 'select $1 < 200';
select is(pg_temp.ck('empty', 'f', 'small(a)', p_dry_run => true), 'replaced 0', 'another function by the same name');
select is(pg_temp.det('empty', 'f', 'small(a)') -> 'function_changed', 'true', 'is noticed');
select is(pg_temp.ck('empty', 'f', 'small(a)'), 'replaced valid 0', 'and every row looked at again');
select is(pg_temp.ck('empty', 'f', 'small(a)'), 'unchanged valid', 'once');
alter function tap600.small(integer) rename to little;
select is(pg_temp.ck('empty', 'f', 'little(a)'), 'unchanged valid', 'a new name is no change');
alter table empty add constraint g check (tap600.little(a));
select is(pg_temp.ck('empty', 'g', 'little(a)'), 'unchanged valid', 'a constraint of somebody else''s');
select is((select count(*) from routeledger.constraint_history c where c.target = 'tap600.empty' and c.name = 'g' and c.action = 'unchanged'), 1::bigint, 'what its function does is written down');
select is(pg_temp.ck('empty', 'g', 'little(a)'), 'unchanged valid', 'a second time');
select is((select count(*) from routeledger.constraint_history c where c.target = 'tap600.empty' and c.name = 'g'), 1::bigint, 'it is not');
select alike(pg_temp.why('empty', 'row_ok(empty)'), 'RL116 it hands the whole row to something that takes rows of this table only: hand it the columns. %', 'a function of the row type');
select is(pg_temp.det('empty', 'm', 'tap600.moody()') -> 'notes', '["tap600.moody() is volatile: PostgreSQL takes a CHECK to be immutable, and does not look at a row again when the result changes"]', 'a volatile one is noted');
select is(pg_temp.det('empty', 'm', 'at < now()') -> 'notes', '["now() is stable: PostgreSQL takes a CHECK to be immutable, and does not look at a row again when the result changes"]', 'so is now()');
select is(pg_temp.det('empty', 'm', 'v <> current_user') -> 'notes', '["the user, the date or the settings of the session decide: a row that passes now may fail when it is restored"]', 'and the user');

-- what is only looked at is not run, whoever wrote it
create function tap600.trap(integer) returns boolean language plpgsql immutable as 'begin raise exception $x$sprung$x$; end';
select is(pg_temp.texts('empty', 'trap(1) and a > 0'), array['(tap600.trap(1) AND (a > 0))'], 'not even over constants');
select throws_ok($$ select routeledger.ensure_check('full_', 't', 'trap(1)') $$, 'P0001', 'sprung', 'it is when rows are');

-- NOT ENFORCED, from PostgreSQL 18 on, is not what was declared
alter table empty add constraint unenforced check (a < 9);
do $$
begin
  if current_setting('server_version_num')::integer >= 180000 then
    alter table tap600.empty drop constraint unenforced;
    execute 'alter table tap600.empty add constraint unenforced check (a < 8) not enforced';
  end if;
end
$$;
select is(pg_temp.ck('empty', 'unenforced', 'a < 8'), 'replaced valid 0', 'one that is not enforced, or another');
select is(pg_temp.live('empty', 'unenforced'), 'CHECK ((a < 8))', 'is enforced now');
select is(
  routeledger._add_check_sql('x', 'true', true, false), 'add constraint x check (true) no inherit not enforced', 'which an undo can put back');

-- what inherits
create table root (a integer, b integer) partition by list (a);
create table mid partition of root for values in (1) partition by list (b);
create table leaf partition of mid for values in (1);
create table leaf_2 partition of mid for values in (2);
alter table leaf add constraint c check (b > 5) not valid;
alter table leaf_2 add constraint c check (b > 0);
insert into root values (1, 2);
select is(pg_temp.ck('root', 'c', 'b > 0'), 'created 0 next', 'a root');
select results_eq(
  $$ select c.conrelid::regclass::text, pg_get_constraintdef(c.oid) from pg_constraint c where c.conname = 'c' and c.conrelid in ('root'::regclass, 'mid'::regclass, 'leaf'::regclass, 'leaf_2'::regclass) order by 1 $$,
  $$ values ('leaf', 'CHECK ((b > 0)) NOT VALID'), ('leaf_2', 'CHECK ((b > 0))'), ('mid', 'CHECK ((b > 0)) NOT VALID'), ('root', 'CHECK ((b > 0)) NOT VALID') $$,
  'another one of a leaf has gone, the same one stayed');
select is((select c.before -> 'children' -> 0 ->> 'definition' from routeledger.constraint_history c where c.target = 'tap600.root'), 'CHECK ((b > 5)) NOT VALID', 'and is on record');
select is(pg_temp.ck('leaf', 'c', 'b > 0'), 'refused inherited', 'not from below');
select is(pg_temp.det('leaf', 'c', 'b > 9') ->> 'root', 'tap600.root', 'the root is named');
select is(pg_temp.ck('leaf', 'own', 'b < 9'), 'created valid 0', 'one of its own');
select is(pg_temp.ck('leaf', 'own', 'b < 9', p_also_drop => '{c}'), 'refused valid inherited', 'which does not take the place of an inherited one');
alter table leaf_2 add constraint d unique (b);
select is(pg_temp.ck('root', 'd', 'b > 0'), 'refused name_taken', 'a key of that name below');
create table father (a integer);
create table son () inherits (father);
insert into son values (-1);
select is(pg_temp.ck('father', 'c', 'a > 0'), 'refused 1 violations', 'the rows of a child count');
select is(pg_temp.ck('father', 'c', 'a > 0', p_no_inherit => true), 'created 0 next', 'unless it is not inherited');
select results_eq($$ select t.relation::text, t.level from routeledger._tree('root') t $$, $$ values ('root', 0), ('mid', 1), ('leaf', 2), ('leaf_2', 2) $$, 'a tree, from the root');

-- who may
reset role;
grant create on schema tap600 to tap600_none;
create sequence a_repair;
grant select on sequence a_repair to tap600_none;
select isnt(setval('a_repair', routeledger._open_repair('collapse', 'full_', 'tap600')), null, 'a repair of a table');
set local role tap600_none;
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000'), 'unchanged valid', 'whoever asks sees what is unchanged');
select is(pg_temp.ck('empty', 'f', 'a < 7'), 'refused not_owner', 'who does not own the table changes nothing');
select is(pg_temp.det('empty', 'f', 'a < 7') -> 'owners', '["tap600_owner"]', 'and learns who does');
select is(pg_temp.nn('empty', 'a'), 'refused not_owner', 'nor NOT NULL');
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000', p_label => 'tap600'), 'unchanged valid', 'nor writes history');
select is(routeledger._may_alter('empty'), false, 'they may not alter it');
select throws_ok(
  $$ select routeledger._record_change('tap600.empty', 'c', 'check', 'created', null, null, null, null, null) $$, '42501',
  'changes of constraints are recorded for the owner of their table only', 'no forged history');
select throws_ok(
  $$ select routeledger._record_change('tap600.nope', 'c', 'check', 'created', null, null, null, null, null) $$, '42501',
  'changes of constraints are recorded for the owner of their table only', 'nor for a table that is not there');
create table own600 (a integer);
select isnt(routeledger._record_change(routeledger._qualified('own600'), 'c', 'check', 'created', null, null, null, null, null), null, 'for a table of their own there is one');
select throws_ok(
  format($$ select routeledger._record_change('%s.own600', 'C', 'unique', 'created', null, null, null, %s, null) $$, 'tap600', currval('tap600.a_repair')), 'RL206',
  'there is no such repair', 'but not with a repair of another''s table, which an undo would undo');
select throws_ok(
  $$ select routeledger._record_change('TAP600.OWN600', 'c', 'check', 'created', null, null, null, null, null) $$, '42501',
  'changes of constraints are recorded for the owner of their table only', 'nor under another spelling');
set local role tap600_owner;
select throws_ok(
  $$ select routeledger._record_change('tap600.nope', 'c', 'check', 'created', null, null, null, null, null) $$, '42501',
  'changes of constraints are recorded for the owner of their table only', 'not even by an admin for a table that is not there');
set local role tap600_none;
set local role tap600_owner;
select is(routeledger._may_alter('empty'), true, 'the owner may');
alter table full_ enable row level security, force row level security;
select is(pg_temp.ck('full_', 'w', 'a > 0'), 'refused row_security', 'rows that are hidden cannot be counted');
alter table full_ no force row level security;
revoke select on full_ from tap600_owner;
select is(pg_temp.ck('full_', 'w', 'a > 0'), 'refused no_privilege', 'nor rows that may not be read');
grant select on full_ to tap600_owner;

-- history and labels
select is(pg_temp.ck('empty', 'l', 'a < 5000', p_label => 'release 7'), 'created valid 0', 'under a label');
select is(pg_temp.ck('empty', 'l', 'a < 5000', p_label => 'release 7'), 'unchanged valid', 'again');
select is(pg_temp.ck('empty', 'l', 'a < 5000', p_label => 'release 8'), 'unchanged valid', 'under another');
select is(pg_temp.ck('empty', 'l', 'a < 5000', p_label => 'release 8', p_dry_run => true), 'unchanged valid', 'dry');
select is(pg_temp.ck('empty', 'l', 'a < 5000', p_label => 'release 8'), 'unchanged valid', 'and again');
select results_eq(
  $$ select c.action, c.label, c.before ->> 'definition', c.after ->> 'definition', c.role_name::text collate "default", c.changed_at from routeledger.constraint_history c where c.target = 'tap600.empty' and c.name = 'l' order by c.id $$,
  $$ values ('created', 'release 7', null, 'CHECK ((a < 5000))', 'tap600_owner', pg_temp.t0()), ('unchanged', 'release 8', 'CHECK ((a < 5000))', 'CHECK ((a < 5000))', 'tap600_owner', pg_temp.t0()) $$,
  'each label is on record once');
select is(
  (select h.before from routeledger.constraint_history h where h.target = 'tap600.full_' and h.name = 'y'),
  '{"also": [{"kind": "c", "name": "old_1", "table": "tap600.full_", "enforced": true, "predicate": "(a > ''-5''::integer)", "validated": true, "definition": "CHECK ((a > ''-5''::integer))", "no_inherit": false}]}',
  'what was dropped with it is on record');

-- put back
select is(pg_temp.ck('full_', 'r', 'a > 0', p_also_drop => '{old_2}'), 'created 0 next', 'one that takes the place of an older one');
select is(
  routeledger._restore_check('full_', 'r', 'check', (select h.before from routeledger.constraint_history h where h.target = 'tap600.full_' and h.name = 'r' limit 1), '1 second', 3),
  false, 'put back, but the rows have to be looked at');
select is(pg_temp.live('full_', 'r'), null, 'it is gone');
select is(pg_temp.live('full_', 'old_2'), 'CHECK ((a > ''-6''::integer)) NOT VALID', 'the older one is back');
comment on constraint c on empty is 'first';
select is(pg_temp.ck('empty', 'c', 'a > 77'), 'replaced valid 0', 'another one');
select is(
  routeledger._restore_check('empty', 'c', 'check', (select h.before from routeledger.constraint_history h where h.target = 'tap600.empty' and h.name = 'c' limit 1), '1 second', 3),
  true, 'put back as it was');
select is(pg_temp.live('empty', 'c'), 'CHECK ((a > 1)) -- first', 'with its comment');
select is(routeledger._restore_check('empty', 'c', 'check', null, '1 second', 3), true, 'none was there');
select is(pg_temp.live('empty', 'c'), null, 'none is');
select is(
  routeledger._restore_check('mid', 'below', 'check', '{"children": [{"table": "tap600.leaf_2", "name": "below", "predicate": "(b < 4)", "no_inherit": false, "enforced": true, "validated": false, "comment": "below"}]}', '1 second', 3),
  true, 'what was below');
select is(pg_temp.live('leaf_2', 'below'), 'CHECK ((b < 4)) NOT VALID -- below', 'is back as well');

-- a history that was forged is not run
select is(
  routeledger._restore_check('mid', 'forged', 'check', '{"children": [
    {"table": "tap600.full_", "name": "forged", "predicate": "false", "no_inherit": false, "enforced": true},
    {"table": "tap600.empty drop column a; alter table tap600.leaf", "name": "forged", "predicate": "true", "no_inherit": false, "enforced": true}]}', '1 second', 3),
  true, 'a table that does not inherit from this one, or that is none');
select is_empty($$ select c.conrelid::regclass from pg_constraint c where c.conname = 'forged' $$, 'is left alone');
select has_column('tap600', 'empty', 'a', 'and so is what else is written there');
select is(
  routeledger._restore_check('leaf', 'x', 'check', '{"table": "tap600.full_", "name": "forged", "predicate": "(b < 40)", "no_inherit": true, "enforced": true,
    "also": [{"table": "tap600.full_", "name": "al\"so", "predicate": "(b < 41)", "no_inherit": true, "enforced": true}]}', '1 second', 3),
  true, 'what else is said to be the table');
select is(pg_temp.live('leaf', 'x') || ', ' || pg_temp.live('leaf', 'al"so'), 'CHECK ((b < 40)) NO INHERIT NOT VALID, CHECK ((b < 41)) NO INHERIT NOT VALID', 'is not: it is this one, and names are names');
select throws_ok(
  $$ select routeledger._restore_check('empty', 'c', 'check', '{"predicate": "true), drop column a, add check (true", "no_inherit": false, "enforced": true}', '1 second', 3) $$,
  'RL116', 'this cannot be the predicate of a constraint', 'what is put back is one expression');

-- NOT NULL
select is(pg_temp.nn('empty', 'id'), 'unchanged valid', 'a key is NOT NULL');
select is(pg_temp.nn('empty', 'a', p_dry_run => true), 'created 0', 'dry');
select is(pg_temp.nn('empty', 'a', p_label => 'release 9'), 'created valid 0', 'an empty table: at once');
select col_not_null('tap600', 'empty', 'a', 'it is');
select is(pg_temp.nn('empty', 'A', p_label => 'release 10'), 'unchanged valid', 'once');
select is((select string_agg(c.action || ' ' || c.label, ', ' order by c.id) from routeledger.constraint_history c where c.target = 'tap600.empty' and c.kind = 'not_null'), 'created release 9, unchanged release 10', 'the history has both');
select is(pg_temp.nn('full_', 'e'), 'refused 10 violations', 'nulls refuse it');
select throws_ok($$ select routeledger.ensure_not_null('full_', 'e', p_strict => true) $$, 'RL309', 'the constraint was not put in place', 'strict: an error');
select is(pg_temp.nn('full_', 'v', 'full__pkey'), 'refused name_taken', 'the name of a key');
select is(pg_temp.nn('full_', 'v'), 'created 0 next', 'in steps');
select is(pg_temp.nn('full_', 'v'), 'pending uncommitted next', 'each in a transaction of its own');
select is(pg_temp.nn('full_', 'e', p_if_violated => 'add_not_valid'), 'created 10 violations', 'added over nulls');
select throws_ok($$ insert into full_ (id, a) values (20, 20) $$, case when current_setting('server_version_num')::integer >= 180000 then '23502' else '23514' end, null, 'for new rows it holds');
select is(routeledger._not_null_name('full_', 'v'), 'full__v_not_null', 'what PostgreSQL would call it');
select is(octet_length(routeledger._not_null_name('full_', repeat('ü', 31))), 63, 'in 63 bytes');
select is(octet_length(routeledger._not_null_name('"Öde ""x"""', 'SELECT')), 24, 'in bytes');
alter table "Öde ""x""" rename to "Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde";
select is(octet_length(routeledger._not_null_name('"Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde Öde"', 'SELECT')), 63, 'whichever is the longer');
alter table full_ disable row level security;
select is(routeledger._restore_check('empty', 'empty_a_not_null', 'not_null', '{"column": "a", "not_null": true}', '1 second', 3), true, 'it was NOT NULL');
select is(routeledger._restore_check('empty', 'empty_a_not_null', 'not_null', '{"column": "a", "not_null": false}', '1 second', 3), true, 'it was not');
select col_is_null('tap600', 'empty', 'a', 'and is not');

-- the steps, with what this transaction has made taken for what an earlier one did
reset role;
create or replace function routeledger._is_uncommitted(p_xmin xid) returns boolean language sql stable as 'select false';
create table steps (id integer primary key, a integer, v text);
insert into steps select n, n, 'x' from generate_series(1, 10) n;
select is(pg_temp.ck('steps', 'c', 'a > 3', 'add_not_valid'), 'created 3 violations', 'added over rows');
select is(pg_temp.ck('steps', 'c', 'a > 3'), 'pending 3 violations', 'which keep it from being validated');
select is(pg_temp.det('steps', 'c', 'a > 3', false), '{"samples": [{"id": 1}, {"id": 2}, {"id": 3}]}', 'and are shown');
select is(pg_temp.ck('steps', 'c', 'a > 3', p_dry_run => true), 'pending 3 violations', 'dry: so it is said');
delete from steps where a <= 3;
select is(pg_temp.ck('steps', 'c', 'a > 3', p_dry_run => true), 'validated 0', 'dry: they are gone');
select is(pg_temp.ck('steps', 'c', 'a > 3'), 'validated valid 0', 'validated');
select is(pg_temp.ck('steps', 'c', 'a > 3'), 'unchanged valid', 'and then unchanged');
select is(
  (select h.before ->> 'definition' from routeledger.constraint_history h where h.target = 'tap600.steps' and h.action = 'validated'),
  'CHECK ((a > 3)) NOT VALID', 'what it was before is on record');
alter table steps add constraint failing check (10 / (a - 5) <> 0) not valid;
select is(pg_temp.ck('steps', 'failing', '10 / (a - 5) <> 0'), 'refused predicate_fails', 'there, and it fails on a row');
create sequence ticks;
create function tap600.tick(integer) returns boolean language sql volatile as $$ select nextval('tap600.ticks') > 1 $$;
alter table steps add constraint ticking check (tick(a)) not valid;
select is(pg_temp.ck('steps', 'ticking', 'tick(a)'), 'pending 0 violations next', 'rows that are gone when they are counted: again');
alter table steps drop constraint ticking, drop constraint failing;
select is(pg_temp.nn('steps', 'v'), 'created 0 next', 'NOT NULL: there');
select is(pg_temp.nn('steps', 'v', p_dry_run => true), 'validated 0', 'dry: it would be validated');
update steps set a = null where id = 10;
select is(pg_temp.nn('steps', 'a', p_if_violated => 'add_not_valid'), 'created 1 violations', 'over nulls');
select is(pg_temp.nn('steps', 'a'), 'pending 1 violations', 'which keep it from being validated');
update steps set a = 10 where id = 10;
select is(pg_temp.nn('steps', 'a'), case when current_setting('server_version_num')::integer >= 180000 then 'validated valid 0' else 'pending 0 proved next' end, 'they are gone: validated, or proved');
select is(pg_temp.nn('steps', 'a'), case when current_setting('server_version_num')::integer >= 180000 then 'unchanged valid' else 'validated valid 0' end, 'and then set');
select is(pg_temp.nn('steps', 'a'), 'unchanged valid', 'once');
select is_empty($$ select c.conname from pg_constraint c where c.conrelid = 'steps'::regclass and c.contype = 'c' and c.conname = 'steps_a_not_null' $$, 'without a CHECK that is left over');

-- a table that does not let itself be altered
create table wanted (id integer primary key);
create table wanting (id integer references wanted deferrable initially deferred);
insert into wanted values (1);
insert into wanting values (1);
select is(pg_temp.ck('wanting', 'c', 'id > 0'), 'refused not_possible', 'a foreign key that is still to be checked');
select is(pg_temp.det('wanting', 'c', 'id > 0', false), '{"message": "cannot ALTER TABLE \"wanting\" because it has pending trigger events"}', 'in the words of PostgreSQL');
select is(pg_temp.nn('wanting', 'id'), 'refused not_possible', 'nor NOT NULL');
set constraints all immediate;
select is(pg_temp.ck('wanting', 'c', 'id > 0'), 'created 0 next', 'when it has been');

-- NOT NULL that is inherited
insert into father values (1);
update son set a = 1;
select is(pg_temp.nn('father', 'a', 'father_nn'), 'created 0 next', 'a father');
select is(pg_temp.nn('son', 'a', 'father_nn'), 'refused inherited', 'not from below');
select is((select e.detail ->> 'root' from routeledger.ensure_not_null('son', 'a', 'father_nn', p_dry_run => true) e), 'tap600.father', 'the root is named');

-- locks that cannot be had: a function says so, as the server would
create function tap600.held(integer) returns boolean language plpgsql as $$
begin
  if current_setting('tap600.held', true) = 'yes' or (current_setting('tap600.held', true) = 'once' and nextval('tap600.ticks') = 1) then
    raise lock_not_available using message = 'canceling statement due to lock timeout';
  end if;
  return true;
end
$$;
select is(pg_temp.ck('steps', 'h', 'held(a)'), 'created 0 next', 'one to be validated');
set local tap600.held = 'yes';
select is(
  (select array[c.code, c.message, c.hint] from pg_temp.caught($$ select routeledger.ensure_check('steps', 'h', 'held(a)', p_lock_timeout => '1 ms', p_attempts => 2) $$) c),
  array['55P03', 'the lock on the table could not be had in time',
    'Wait for the transactions that DETAIL lists, or end them, then repeat the call; or pass a longer p_lock_timeout or more p_attempts.'],
  'not in all its attempts');
select throws_ok(
  $$ select routeledger.ensure_check('steps', 'h2', 'held(a)') $$, '55P03', 'the lock on the table could not be had in time', 'nor to count rows');
select is(current_setting('lock_timeout'), '0', 'the caller''s lock_timeout is as it was');
select setval('ticks', 1, false);
set local tap600.held = 'once';
select is((select e.detail ->> 'attempts' from routeledger.ensure_check('steps', 'h', 'held(a)', p_lock_timeout => '1 ms', p_attempts => 2) e), '2', 'had in the second');
create function tap600.no_alter() returns event_trigger language plpgsql as $$ begin raise lock_not_available using message = 'canceling statement due to lock timeout'; end $$;
create event trigger tap600_no_alter on ddl_command_start when tag in ('ALTER TABLE') execute function tap600.no_alter();
select throws_ok(
  $$ select routeledger.ensure_not_null('keyless', 'a', p_lock_timeout => '1 ms', p_attempts => 1) $$, '55P03', 'the lock on the table could not be had in time', 'nor for NOT NULL');
select throws_ok(
  $$ select routeledger.ensure_check('keyless', 'c', 'a > 0') $$, '55P03', 'the lock on the table could not be had in time', 'nor to read a predicate');
drop event trigger tap600_no_alter;
set local role tap600_owner;

-- a session that only reads
set local transaction_read_only = on;
select is(pg_temp.ck('empty', 'hostile2', 'a < 1000'), 'refused read_only', 'a session that only reads cannot compare');
select is(pg_temp.nn('empty', 'id'), 'unchanged valid', 'but sees what is NOT NULL');
select is(pg_temp.nn('empty', 'a'), 'refused read_only', 'and changes nothing');

select * from finish();
rollback;
