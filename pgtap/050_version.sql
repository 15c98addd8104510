-- 050 · Version: what is installed, since when, and by whom.
begin;
\ir common.psql
select plan(10);

select is(routeledger.version(), '0.6.0', 'version() is this release');
set local role routeledger_reader;
select is(routeledger.version(), '0.6.0', 'whoever asks');
reset role;
select has_table('routeledger', 'install_log', 'install_log exists');
select results_eq(
  $$
    select a.attname::text collate "default", format_type(a.atttypid, a.atttypmod), a.attnotnull
    from pg_attribute a
    where a.attrelid = 'routeledger.install_log'::regclass and a.attnum > 0 and not a.attisdropped
    order by a.attnum
  $$,
  $$
    values
      ('id', 'uuid', true), ('action', 'text', true), ('from_version', 'text', false), ('to_version', 'text', true),
      ('installed_at', 'timestamp with time zone', true), ('installed_by', 'name', true), ('server_version', 'text', true)
  $$,
  'its columns');
select col_is_pk('routeledger', 'install_log', 'id', 'its key');
select is(
  (select l.to_version from routeledger.install_log l order by l.installed_at desc limit 1), routeledger.version(),
  'the last entry is what version() says');
select is(
  (select count(*) from routeledger.install_log l where l.action = 'install'), 1::bigint, 'it was installed once, however often it ran');
select is_empty(
  $$ select l.id from routeledger.install_log l where l.action = 'install' and l.from_version is not null $$, 'from nothing');
select lives_ok(
  $$ insert into routeledger.install_log (action, from_version, to_version) values ('upgrade', '0.0.9', '0.1.0') $$,
  'an upgrade is logged beside it');
select throws_ok(
  $$ insert into routeledger.install_log (action, to_version) values ('guess', '0.1.0') $$, '23514',
  'new row for relation "install_log" violates check constraint "install_log_action_check"', 'nothing else is');

select * from finish();
rollback;
