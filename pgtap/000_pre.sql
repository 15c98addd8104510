-- 000 · The installer's first look. Its two blocks are read from the source: run this from the top of the tree.
begin;
\ir common.psql
select plan(23);

\set source `cat sql/src/000_pre.sql`
create temp table block (name text primary key, body text not null);
insert into block
select name, format('do $%1$s$%2$s$%1$s$', name, split_part(:'source', '$' || name || '$', 2))
from unnest(array['pre', 'roles']) name;

create function pg_temp.block(p_name text) returns text
language sql stable security definer
as $$ select body from block where name = p_name $$;

select has_schema('routeledger');
select cmp_ok(length(pg_temp.block('pre')), '>', 500, 'the source was read: first block');
select cmp_ok(length(pg_temp.block('roles')), '>', 300, 'the source was read: roles');

-- the server
select throws_ok(
  replace(pg_temp.block('pre'), '150000', '990000'), 'RL903', 'routeledger needs PostgreSQL 15 or later',
  'a server that is too old is refused');
select is(
  (select c.detail ->> 'server_version' from pg_temp.caught(replace(pg_temp.block('pre'), '150000', '990000')) c),
  current_setting('server_version'), 'and told which it is');

-- what is installed
select lives_ok(pg_temp.block('pre'), 'the same version again is welcome');
savepoint s;
create or replace function routeledger.version() returns text language sql immutable as $$ select '9.9.9' $$;
select throws_ok(
  pg_temp.block('pre'), 'RL902', 'another version of routeledger is installed', 'another version is refused');
select is(
  (select c.detail from pg_temp.caught(pg_temp.block('pre')) c),
  '{"installed": "9.9.9", "this": "0.6.0"}'::jsonb, 'both versions are named');
rollback to s;

alter schema routeledger rename to tap000_away;
select lives_ok(pg_temp.block('pre'), 'no schema: it is made');
select has_schema('routeledger');
select lives_ok(pg_temp.block('pre'), 'an empty schema of that name is taken over');
create table routeledger.theirs (id integer);
select throws_ok(
  pg_temp.block('pre'), 'RL901', 'a schema named routeledger exists and is not ours', 'a schema that holds tables is not');
select is(
  (select c.detail from pg_temp.caught(pg_temp.block('pre')) c),
  jsonb_build_object('owner', current_user::regrole), 'its owner is named');
drop table routeledger.theirs;
create function routeledger.theirs() returns integer language sql as $$ select 1 $$;
select throws_ok(
  pg_temp.block('pre'), 'RL901', 'a schema named routeledger exists and is not ours', 'nor is one that holds routines');
rollback to s;

alter schema routeledger rename to tap000_away;
create role tap000_owner;
create role tap000_stranger;
create schema routeledger authorization tap000_owner;
set local role tap000_stranger;
select throws_ok(
  pg_temp.block('pre'), 'RL901', 'a schema named routeledger exists and is not ours',
  'an empty one of another owner is not taken over either');
reset role;
create function routeledger.version() returns text language plpgsql as $$ begin raise 'called'; end $$;
select throws_ok(
  pg_temp.block('pre'), 'RL901', 'a schema named routeledger exists and is not ours',
  'the version is read, never asked of a routine that may be a stranger''s');
rollback to s;

-- messages and hints are those of errors()
select results_eq(
  $$
    select e.code from routeledger.errors() e
    where e.code in ('RL901', 'RL902', 'RL903')
      and pg_temp.block('pre') like '%message = ' || quote_literal(e.message) || '%'
      and pg_temp.block('pre') like '%hint = ' || quote_literal(e.hint) || '%'
    order by 1
  $$,
  $$ values ('RL901'), ('RL902'), ('RL903') $$,
  'the installer says what errors() says');

-- the roles
select lives_ok(pg_temp.block('roles'), 'roles that exist are left alone');
select lives_ok(replace(pg_temp.block('roles'), 'routeledger_', 'tap000_'), 'roles that do not exist are made');
select results_eq(
  $$
    select r.rolname, r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb
    from pg_roles r where r.rolname like 'tap000\_%' order by 1
  $$,
  $$
    values
      ('tap000_admin'::name, false, false, false, false),
      ('tap000_judge', false, false, false, false),
      ('tap000_reader', false, false, false, false),
      ('tap000_writer', false, false, false, false)
  $$,
  'as groups that can neither log in nor do anything by themselves');
rollback to s;
create role tap000_nobody;
set local role tap000_nobody;
select lives_ok(
  replace(pg_temp.block('roles'), 'routeledger_', 'tap000_x_'), 'an installer that may not create roles goes on');
reset role;
select is_empty(
  $$ select r.rolname from pg_roles r where r.rolname like 'tap000\_x\_%' $$, 'without them');

-- one installer at a time
do $$ begin execute pg_temp.block('pre'); end $$;
select is(
  (select count(*) from pg_locks l where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted),
  1::bigint, 'an installer holds its place in the queue until it commits');

select * from finish();
rollback;
