-- 608 · Declared constraints: what tables are meant to hold is written down, compared, and brought about.
begin;
\ir common.psql
select plan(119);

create schema tap608;
create role tap608_owner;
create role tap608_admin;
create role tap608_none;
grant routeledger_writer to tap608_owner, tap608_none;
grant routeledger_reader to tap608_owner;
grant routeledger_admin to tap608_admin;
grant usage, create on schema tap608 to tap608_owner;
grant usage on schema tap608 to routeledger_writer, routeledger_admin;
set local search_path = tap608, public;

-- A declaration's state, and the two texts.
create function pg_temp.st(p_table text default null, p_name text default null) returns text
language sql volatile
as $$ select string_agg(concat_ws(' ', s.target, s.name, s.state, '| ' || s.declared, '| ' || s.found), E'\n' order by s.target, s.name) from routeledger.constraint_states(p_table, p_name) s $$;
create function pg_temp.det(p_table text, p_name text) returns jsonb
language sql volatile
as $$ select s.detail - 'declaration' from routeledger.constraint_states(p_table, p_name) s $$;
create function pg_temp.plan(p_table text default null, p_name text default null) returns text
language sql volatile
as $$ select string_agg(concat_ws(' ', p.target, p.name, p.outcome, p.violations, p.reason), E'\n' order by p.target, p.name) from routeledger.plan_constraints(p_table, p_name) p $$;
create function pg_temp.why(p_sql text) returns text
language sql volatile
as $$ select concat_ws(' ', c.code, c.detail ->> 'parameter', c.detail ->> 'allowed', c.detail ->> 'reason') from pg_temp.caught(p_sql) c $$;
-- What a step of apply_constraints() says.
create function pg_temp.step(p_table regclass, p_name text, p_kind text, p_predicate text, p_columns text[] default null, p_options jsonb default '{}', p_only_validate boolean default false) returns text
language sql volatile
as $$
  select concat_ws(' ', r ->> 'outcome', r ->> 'reason', r -> 'error' ->> 'code', r -> 'error' ->> 'message')
  from routeledger._ensure_declared(jsonb_build_object(
    'relation', p_table::oid, 'name', p_name, 'kind', p_kind, 'predicate', p_predicate, 'columns', p_columns, 'options', p_options, 'counts', true), false, p_only_validate) r
$$;

-- apply_constraints() without its commits.
create function pg_temp.apply(p_state jsonb) returns jsonb
language plpgsql volatile
as $$
declare
  v_results jsonb;
begin
  while v_results is null loop
    select s.state, s.results into strict p_state, v_results from routeledger._apply_step(p_state) s;
  end loop;
  return v_results;
end
$$;
-- What _apply_step() says of a step that was cancelled and has its lock.
create function pg_temp.cancelled(p_state jsonb) returns text
language plpgsql volatile
as $$
begin
  perform pg_advisory_lock(hashtextextended('routeledger.apply:tap608.t:c', 0)), routeledger._apply_step(p_state);
  return null;
exception
  when query_canceled then
    return sqlerrm;
end
$$;

create table t (id integer primary key, a integer, v varchar(20));
insert into t values (1, 1, 'x'), (2, -2, 'y');
create table blank (id integer primary key, a integer, b integer);
alter table t owner to tap608_owner;
alter table blank owner to tap608_owner;

-- our own
select is((select count(*) from routeledger.constraint_states() s where s.origin = 'routeledger' and s.state = 'unchanged'), 17::bigint, 'the ledger''s own constraints are declared, and are there');
select is_empty($$ select d.target from routeledger.constraint_drift d $$, 'nothing differs');
select set_eq(
  $$ select s.target, s.name from routeledger.constraint_states() s where s.origin = 'routeledger' $$,
  $$
    select 'routeledger.' || r.relname, k.conname::text
    from pg_constraint k
    join pg_class r on r.oid = k.conrelid
    where k.contype = 'c' and r.oid = any ('{routeledger.routing_outcomes,routeledger.inferences,routeledger.models,routeledger.model_prices,
      routeledger.model_performance_buckets,routeledger.pattern_quality_metrics}'::regclass[])
  $$,
  'each CHECK of the tables of the ledger, the catalog, the performance and the patterns is among them');
select throws_ok($$ select routeledger.undeclare_constraint('routeledger.inferences', 'inference_failed_requires_error') $$, 'RL117', 'constraints of this relation cannot be declared here', 'they stay declared');
select throws_ok($$ select routeledger.declare_constraint('routeledger.inferences', 'inference_failed_requires_error', 'check', 'true') $$, 'RL117', 'constraints of this relation cannot be declared here', 'as they are');

-- arguments
select results_eq(
  $$
    select pg_temp.why(q.sql)
    from unnest(array[
      $q$ select routeledger.declare_constraint(null, 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('', 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('t', null, 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('t', repeat('x', 64), 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', null, 'true') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'primary', 'true') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'check') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'unique', 'true', '{a}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'check', 'true', '{a}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'unique') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'unique', null, '{a,NULL}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'not_null', null, '{}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'not_null', null, '{a,v}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'not_null', null, '{nope}') $q$,
      $q$ select routeledger.declare_constraint('t', 'c', 'check', 'nope') $q$,
      $q$ select routeledger.declare_constraint('a.b.c', 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('a b', 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('pg_catalog.pg_class', 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('t_pkey', 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint('t' || repeat('x', 63), 'c', 'check', 'true') $q$,
      $q$ select routeledger.declare_constraint(repeat('ü', 32) || '.t', 'c', 'check', 'true') $q$]) with ordinality q (sql, n)
    order by q.n
  $$,
  $$
    values
      ('RL101 table'), ('RL101 table'), ('RL101 name'), ('RL108 name 63 bytes'), ('RL101 kind'), ('RL102 kind check, unique, not_null'), ('RL101 predicate'),
      ('RL102 predicate null, unless kind is check'), ('RL102 columns null, if kind is check'), ('RL101 columns'), ('RL101 columns'), ('RL101 columns'),
      ('RL102 columns one, if kind is not_null'), ('RL113'), ('RL116 column "nope" does not exist'),
      ('RL117 not the name of a table, with or without a schema'), ('RL117 not the name of a table, with or without a schema'), ('RL117 a table of the system'),
      ('RL117 not an ordinary or partitioned table'), ('RL108 table 63 bytes'), ('RL108 table 63 bytes')
  $$,
  'what cannot be declared, and why');
select results_eq(
  $$
    select routeledger._options_fault(o.kind, o.options)
    from unnest(array['check', 'check', 'check', 'check', 'check', 'check', 'check', 'unique', 'unique', 'not_null', 'check', 'check', 'check', 'check', 'unique'],
      array['{"keep": "latest a"}', '{"no_inherit": "yes"}', '{"also_drop": ["x", 1]}', '{"if_violated": "repair"}', '[]', null, '{"lock_timeout": "soon"}', '{"nulls": "equal"}', '{"form": "key"}',
            '{"no_inherit": true}', '{"attempts": 0}', '{"attempts": 1.5}',
            '{"if_violated": "add_not_valid", "no_inherit": true, "also_drop": ["x"], "label": "l", "lock_timeout": "2 seconds", "attempts": 3}',
            json_build_object('label', repeat('x', 301))::text, json_build_object('reason', repeat('x', 2001))::text]::jsonb[]) with ordinality o (kind, options, n)
    order by o.n
  $$,
  $$
    values
      ('RL102 options also_drop, attempts, if_violated, label, lock_timeout, no_inherit'), ('RL107 options.no_inherit a JSON boolean'), ('RL107 options.also_drop a JSON array'),
      ('RL102 options.if_violated refuse, add_not_valid'), ('RL107 options a JSON object'), ('RL107 options a JSON object'),
      ('RL103 options lock_timeout 1 millisecond to 1 hour, attempts 1 to 1000'), ('RL102 options.nulls distinct, not_distinct'), ('RL102 options.form index, constraint'),
      ('RL102 options attempts, if_violated, label, lock_timeout'), ('RL103 attempts 1 to 1000'), ('RL103 options lock_timeout 1 millisecond to 1 hour, attempts 1 to 1000'), (null),
      ('RL108 options.label 300 characters'), ('RL108 options.reason 2000 characters')
  $$,
  'options that are not taken');
select throws_ok($$ select routeledger.declare_constraint('t', 'c', 'check', 'true', p_options => '{"keep": "latest a"}') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an option of another kind');
select throws_ok($$ select routeledger.constraint_states('t', 'nope') $$, 'RL207', 'no constraint of that name is declared for that table', 'states of what is not declared');
select throws_ok($$ select routeledger.plan_constraints(null, 'nope') $$, 'RL207', 'no constraint of that name is declared for that table', 'a plan of what is not declared');
select throws_ok($$ call routeledger.apply_constraints('t', 'nope') $$, '2D000', 'invalid transaction termination', 'apply_constraints() wants transactions of its own');

-- who may declare
set local role tap608_none;
select throws_ok($$ select routeledger.declare_constraint('t', 'c', 'check', 'a > 0') $$, '42501', 'constraints of a table are declared by its owner or by an admin', 'not just anybody');
select throws_ok($$ select routeledger.declare_constraint('tap608.later', 'c', 'check', 'a > 0') $$, '42501', 'constraints of a table are declared by its owner or by an admin', 'nor for a table that they could not make');
select throws_ok($$ select routeledger.undeclare_constraint('t', 'c') $$, '42501', 'constraints of a table are declared by its owner or by an admin', 'nor takes it away');
select throws_ok(
  $$ select routeledger._store_declaration('tap608', 't', 'c', 'check', 'true', null, '{}') $$, '42501', 'constraints of a table are declared by its owner or by an admin', 'nor by the routine that writes it down');
select throws_ok(
  $$ select routeledger._store_declaration('tap608', 't', 'c', 'check', null, null, '{}') $$, 'RL101', 'a required argument is missing', 'which looks at its arguments');
select throws_ok(
  $$ select routeledger._store_declaration('tap608', 't', 'c', 'check', 'true', null, '{"lock_timeout": "soon"}') $$, 'RL103', 'a number is outside the range allowed for it', 'all of them');
set local role tap608_admin;
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 0'), true, 'an admin does');
select is(routeledger.undeclare_constraint('t', 'c'), true, 'and takes it away');
set local role tap608_owner;
select is(routeledger.undeclare_constraint('t', 'c'), false, 'what is not declared');
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 0'), true, 'the owner declares');
select is(routeledger.declare_constraint('TAP608.T', 'c', 'check', 'a > 0'), false, 'the same again is nothing new');
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 0', p_options => '{"attempts": 3}'), true, 'another option is');
select is(routeledger.declare_constraint('"tap608"."t"', 'c', 'check', 'a > 0'), true, 'and none again');
select is(routeledger.declare_constraint('later', 'nn', 'not_null', null, '{a}'), true, 'for a table that there is not yet');
select is((select array_agg(s.target || ' ' || s.origin order by s.target) from routeledger.constraint_states() s where s.origin = 'user'), array['tap608.later user', 'tap608.t user'], 'they are there, by schema and name');
select is((select s.detail -> 'declaration' from routeledger.constraint_states('t') s), '{"columns": null, "options": {}, "predicate": "a > 0"}', 'as they were declared');
set local search_path = public;
select is((select count(*) from routeledger.constraint_states('t')), 0::bigint, 'by the path of the session');
select is(pg_temp.st('tap608.t'), 'tap608.t c missing | (a > 0)', 'or by its full name');
set local search_path = tap608, public;
create temp table t (a integer);
select is(pg_temp.st('tap608.t'), 'tap608.t c missing | (a > 0)', 'whatever temporary table there is');
drop table pg_temp.t;
select is(pg_temp.st(p_name => 'c'), 'tap608.t c missing | (a > 0)', 'by the name alone');

-- states of a CHECK
select is(pg_temp.st('t'), 'tap608.t c missing | (a > 0)', 'missing');
select is(pg_temp.st('later'), 'tap608.later nn table_missing | a', 'no table');
alter table t add constraint c check (a > -5);
select is(pg_temp.st('t'), 'tap608.t c different | (a > 0) | (a > ''-5''::integer)', 'different: both are shown');
select is((select d.state from routeledger.constraint_drift d where d.target = 'tap608.t'), 'different', 'as in the view');
alter table t drop constraint c, add constraint c check (a > 0) not valid;
select is(pg_temp.st('t'), 'tap608.t c not_valid | (a > 0) | (a > 0)', 'not valid');
update t set a = 2;
alter table t validate constraint c;
select is(pg_temp.st('t'), 'tap608.t c unchanged | (a > 0) | (a > 0)', 'unchanged');
select is_empty($$ select d.target from routeledger.constraint_drift d where d.target = 'tap608.t' $$, 'and no drift');
alter table t drop constraint c;
do $$
begin
  execute 'alter table tap608.t add constraint c check (a > 0) '
    || case when current_setting('server_version_num')::integer >= 180000 then 'not enforced' else 'not valid' end;
end
$$;
select is(
  (select s.state from routeledger.constraint_states('t', 'c') s),
  case when current_setting('server_version_num')::integer >= 180000 then 'not_enforced' else 'not_valid' end, 'not enforced, where there is such a thing');
alter table t drop constraint c, add constraint c check (a > 0);
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 0', p_options => '{"no_inherit": true}'), true, 'NO INHERIT');
select is(pg_temp.st('t'), 'tap608.t c different | (a > 0) | (a > 0)', 'is part of it');
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 0', p_options => '{"also_drop": ["older", "c", "none"]}'), true, 'in the place of another');
alter table t add constraint older check (a > -5);
select is(pg_temp.st('t'), 'tap608.t c different | (a > 0) | (a > 0)', 'which is still there');
select is(pg_temp.det('t', 'c'), '{"also_drop": ["older"]}', 'and is named');
alter table t drop constraint older;
select is(pg_temp.st('t'), 'tap608.t c unchanged | (a > 0) | (a > 0)', 'until it is gone');
alter table t drop constraint c, add constraint c unique (a, id);
select is(pg_temp.st('t'), 'tap608.t c different | (a > 0) | UNIQUE (a, id)', 'another kind of constraint');
alter table t drop constraint c, add column gone integer;
select is(routeledger.declare_constraint('t', 'c', 'check', 'gone > 0'), true, 'a predicate over a column');
alter table t drop column gone;
select is(pg_temp.st('t'), 'tap608.t c unknown | gone > 0', 'that is gone: unknown');
select is(
  pg_temp.det('t', 'c'),
  '{"error": {"code": "RL116", "detail": {"reason": "column \"gone\" does not exist", "predicate": "gone > 0"}, "message": "this cannot be the predicate of a constraint"}}',
  'with the reason');
create function tap608.fine(integer) returns boolean language sql immutable as 'select $1 > 0';
select is(routeledger.declare_constraint('blank', 'f', 'check', 'fine(a)'), true, 'a function');
select is((select e.outcome from routeledger.ensure_check('blank', 'f', 'fine(a)') e), 'created', 'is put there');
select is(pg_temp.st('blank'), 'tap608.blank f unchanged | tap608.fine(a) | tap608.fine(a)', 'unchanged');
create or replace function tap608.fine(integer) returns boolean language sql immutable as 'select $1 > 7';
select is(pg_temp.st('blank'), 'tap608.blank f function_changed | tap608.fine(a) | tap608.fine(a)', 'until it does something else');
select is(routeledger.undeclare_constraint('blank', 'f'), true, 'no longer declared');
select is((select count(*) from pg_constraint c where c.conrelid = 'blank'::regclass and c.conname = 'f'), 1::bigint, 'the constraint stays');

-- states of NOT NULL
select is(routeledger.declare_constraint('blank', 'nn', 'not_null', null, '{A}'), true, 'NOT NULL');
select is(pg_temp.st('blank', 'nn'), 'tap608.blank nn missing | NOT NULL', 'missing');
select is((select e.outcome from routeledger.ensure_not_null('blank', 'a', 'nn') e), 'created', 'put there');
select is(pg_temp.st('blank', 'nn'), 'tap608.blank nn unchanged | NOT NULL | NOT NULL', 'unchanged');
select is(routeledger.declare_constraint('t', 'nn', 'not_null', null, '{v}'), true, 'over rows');
select is((select e.outcome from routeledger.ensure_not_null('t', 'v', 'nn') e), 'created', 'put there');
select is((select s.state from routeledger.constraint_states('t', 'nn') s), 'not_valid', 'the rows have not been looked at');
select is(routeledger.declare_constraint('t', 'nn', 'not_null', null, '{id}'), true, 'of another column');
select is((select s.state from routeledger.constraint_states('t', 'nn') s), 'unchanged', 'that is a key');
alter table blank add column lost integer;
select is(routeledger.declare_constraint('blank', 'lost', 'not_null', null, '{lost}'), true, 'a column');
alter table blank drop column lost;
select is((select s.state || ' ' || (s.detail -> 'error' ->> 'code') from routeledger.constraint_states('blank', 'lost') s), 'unknown RL113', 'that is gone');
select is(routeledger.undeclare_constraint('blank', 'lost'), true, 'no longer declared');

-- states of a unique key
select is(routeledger.declare_constraint('blank', 'blank_b', 'unique', null, '{b}', '{"keep": "greatest id", "nulls": "not_distinct"}'), true, 'a unique key');
select is((select s.state from routeledger.constraint_states('blank', 'blank_b') s), 'missing', 'missing');
create unique index blank_b on blank (b) nulls not distinct;
select is((select s.state from routeledger.constraint_states('blank', 'blank_b') s), 'unchanged', 'unchanged');
drop index blank_b;
create unique index blank_b on blank (b, a);
select is((select s.state from routeledger.constraint_states('blank', 'blank_b') s), 'different', 'different');

-- the plan
select is(routeledger.declare_constraint('t', 'c', 'check', 'a > 2'), true, 'one that rows violate');
select is(pg_temp.plan('t'), E'tap608.t c refused 2 violations\ntap608.t nn unchanged', 'what would be done for each');
select is(pg_temp.plan('later'), 'tap608.later nn refused table_missing', 'a table that there is not');
select is((select p.detail -> 'dry_run' from routeledger.plan_constraints('t', 'c') p), 'true', 'nothing is done');
alter table t add column gone integer;
select is(routeledger.declare_constraint('t', 'g', 'check', 'gone > 0'), true, 'one over a column');
alter table t drop column gone;
select is(pg_temp.plan('t', 'g'), 'tap608.t g refused error', 'that is gone');
select is((select p.detail -> 'error' ->> 'code' from routeledger.plan_constraints('t', 'g') p), 'RL116', 'what fails does not stop the plan');

-- who declared it may no longer alter the table: it does not count, and is not run
select is(routeledger.declare_constraint('soon', 'c', 'check', 'tap608.trap(a)', p_options => '{"if_violated": "add_not_valid"}'), true, 'for a table of somebody else''s, before it is there');
reset role;
create function tap608.trap(integer) returns boolean language plpgsql immutable as 'begin raise exception $x$sprung$x$; end';
create table tap608.soon (a integer);
insert into tap608.soon values (1);
select is(pg_temp.st('tap608.soon'), 'tap608.soon c unknown | tap608.trap(a)', 'its state is not known');
select is(pg_temp.det('tap608.soon', 'c'), '{"reason": "declared_by_other", "declared_by": "tap608_owner"}', 'and who declared it is named');
select is(pg_temp.plan('tap608.soon'), 'tap608.soon c refused declared_by_other', 'nothing would be done');
select is((select p.detail from routeledger.plan_constraints('tap608.soon', 'c') p), '{"declared_by": "tap608_owner"}', 'until its owner declares it');
select is(routeledger.declare_constraint('tap608.soon', 'c', 'check', 'tap608.trap(a)', p_options => '{"if_violated": "add_not_valid"}'), false, 'the same again, by who owns it');
select is(pg_temp.st('tap608.soon'), 'tap608.soon c missing | tap608.trap(a)', 'counts, and to look at it runs nothing');
select is((select p.detail -> 'error' ->> 'message' from routeledger.plan_constraints('tap608.soon', 'c') p), 'sprung', 'to plan it does');
update routeledger.declared_constraints d set declared_by = 'tap608_nobody' where d.target_name = 'soon';
select is(pg_temp.st('tap608.soon'), 'tap608.soon c unknown | tap608.trap(a)', 'nor does it count when there is no such role');
select is(routeledger.undeclare_constraint('tap608.soon', 'c'), true, 'no longer declared');
-- of a function over constants, which is run as soon as an expression is planned
select is(routeledger.declare_constraint('tap608.soon', 'c', 'check', 'a > 0 and tap608.trap(1)'), true, 'to declare runs nothing');
select is(pg_temp.st('tap608.soon'), 'tap608.soon c missing | ((a > 0) AND tap608.trap(1))', 'nor does to look at it');
select is(routeledger.undeclare_constraint('tap608.soon', 'c'), true, 'no longer declared');
-- what a role has declared runs with its own rights, not with those of whoever applies it
alter function tap608.trap(integer) owner to tap608_owner;
create domain tap608.snare as integer check (tap608.trap(value));
alter domain tap608.snare owner to tap608_owner;
create table tap608.mine (a integer);
alter table tap608.mine owner to tap608_owner;
insert into tap608.mine values (1);
set local role tap608_owner;
select is(routeledger.declare_constraint('mine', 'c', 'check', 'trap(a) and a::snare > 0'), true, 'functions and domains of its own');
select is(routeledger.declare_constraint('mine', 'u', 'unique', null, '{a}'), true, 'and a key');
select is((select p.detail -> 'error' ->> 'message' from routeledger.plan_constraints('mine', 'c') p), 'sprung', 'to plan it runs them');
reset role;
select is(pg_temp.plan('tap608.mine'), E'tap608.mine c refused code_of_others\ntap608.mine u created 0', 'not when another plans it');
select is((select p.detail from routeledger.plan_constraints('tap608.mine', 'c') p), '{"others": ["tap608.snare", "tap608.trap(integer)"], "declared_by": "tap608_owner"}', 'and they are named');
select is(jsonb_path_query_array(pg_temp.apply(routeledger._begin_apply('tap608.mine', 'c', false, 'public')), '$[*].reason'), '["code_of_others"]', 'nor applies it');
set local role tap608_owner;

-- the steps of apply_constraints()
select is(pg_temp.step(null, 'c', 'check', 'a > 2'), 'refused table_missing', 'no table');
select is(pg_temp.step('t', 'c', 'check', 'a > 2'), 'refused violations', 'rows in the way');
select is(pg_temp.step('t', 'c', 'check', 'a > 2', p_options => '{"if_violated": "add_not_valid"}'), 'created violations', 'its options are taken');
select is(pg_temp.step('t', 'z', 'check', 'nope > 2'), 'RL116 this cannot be the predicate of a constraint', 'an error is an answer');
select is(pg_temp.step('blank', 'z', 'check', 'b > 2', p_only_validate => true), 'refused not_as_declared', 'only to validate: nothing is added');
alter table blank add constraint z check (b > 2) not valid;
select is(pg_temp.step('blank', 'z', 'check', 'b > 2', p_only_validate => true), 'validated', 'what is there is validated');
select is(pg_temp.step('blank', 'z', 'check', 'b > 3', p_only_validate => true), 'refused not_as_declared', 'and not replaced');
select is(pg_temp.step('blank', 'blank_b', 'unique', null, '{b}', p_only_validate => true), 'refused not_as_declared', 'nor is a key');
select is(pg_temp.step('blank', 'z', 'check', 'b > 3'), 'replaced', 'otherwise it is');
select is(pg_temp.step('blank', 'nn2', 'not_null', null, '{b}', '{"label": "l"}'), 'created', 'NOT NULL');
select is(pg_temp.step('blank', 'blank_ba', 'unique', null, '{b,a}'), 'unchanged', 'a key that is there under another name');
select is((select h.label from routeledger._recorded('tap608.blank', 'nn2', 'not_null', 'l', '{}') r (seen) cross join lateral (select case when (r.seen ->> 'labelled')::boolean then 'l' end as label) h), 'l', 'with its label');

-- apply_constraints() but for its commits
select throws_ok($$ select routeledger._begin_apply('t', null, null, 'tap608') $$, 'RL101', 'a required argument is missing', 'only to validate, or not');
select is(routeledger._begin_apply('tap608.none', null, false, 'tap608'), '{"at": 0, "todo": [], "results": [], "only_validate": false}', 'nothing is declared for it');
select is(routeledger.undeclare_constraint('t', 'g'), true, 'one less');
select results_eq(
  $$ select r ->> 'name', r ->> 'outcome', jsonb_array_length(r -> 'steps'), r ->> 'found', r -> 'error' from jsonb_array_elements(pg_temp.apply(routeledger._begin_apply('t', null, false, 'tap608'))) r $$,
  $$ values ('c', 'pending', 20, '(a > 2)', 'null'::jsonb), ('nn', 'unchanged', 1, 'NOT NULL', 'null') $$,
  'each in its turn, and no step for ever');
select is(
  (select count(*) from pg_locks l where l.locktype = 'advisory' and l.pid = pg_backend_pid()
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('routeledger.apply:tap608.t:c', 0)), 0::bigint, 'no lock is left');
select is(
  pg_temp.cancelled(routeledger._begin_apply('t', 'c', false, 'tap608') || '{"committed": true, "results": [{"error": {"code": "57014", "message": "canceling statement due to user request"}}]}'),
  'canceling statement due to user request', 'a step that was cancelled ends it, when its lock has been given back');

-- a session that only reads
set local transaction_read_only = on;
select is(pg_temp.st('t', 'c'), 'tap608.t c unknown | a > 2', 'a session that only reads does not know');
select is(pg_temp.det('t', 'c') ->> 'reason', 'read_only', 'and says why');
select is((select s.state from routeledger.constraint_states('t', 'nn') s), 'unchanged', 'but of NOT NULL');
select is((select count(*) from routeledger.constraint_drift d where d.state = 'unknown') >= 17, true, 'what is not known is drift');

select * from finish();
rollback;
