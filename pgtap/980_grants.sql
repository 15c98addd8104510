-- 980 · Grants: who may call what, by name; the block is read from the source: run this from the top of the tree.
begin;
\ir common.psql
select plan(37);

\set source `cat sql/src/980_grants.sql`
create temp table block as select format('do $grants$%s$grants$', split_part(:'source', '$grants$', 2)) as body;

create temp table member (role_name name, kind text);
grant select on member to public;
insert into member values
  ('routeledger_reader', 'reader'), ('routeledger_writer', 'writer'), ('routeledger_judge', 'judge'), ('routeledger_admin', 'admin');

-- the roles
select set_eq(
  $$ select r.rolname::text collate "default" from pg_roles r where r.rolname like 'routeledger\_%' $$,
  array['routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin'], 'there are four roles');
select is_empty(
  $$
    select r.rolname from pg_roles r
    where r.rolname like 'routeledger\_%'
      and (r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls)
  $$,
  'groups that can do nothing else');
select is_empty(
  $$
    select m.roleid::regrole, m.member::regrole from pg_auth_members m
    join pg_roles a on a.oid = m.roleid
    join pg_roles b on b.oid = m.member
    where a.rolname like 'routeledger\_%' and b.rolname like 'routeledger\_%'
  $$,
  'siblings: none is a member of another');

-- every public routine, by name
create temp table expected (name text, roles text);
insert into expected
select n, 'admin judge reader writer' from unnest(array[
  'version', 'errors', 'clock', 'uuid_v7', 'uuid_v7_time', 'bound_tenants', 'score_pattern', 'constraint_states']) n
union all
select n, 'admin writer' from unnest(array[
  'insert_decision', 'insert_decisions', 'start_attempt', 'start_attempts', 'fail_attempt', 'fail_attempts', 'complete_decision',
  'complete_decisions', 'extend_lease', 'extend_leases', 'record_outcome', 'record_outcomes', 'record_payload', 'record_payloads', 'reap',
  'persist_model_performance', 'rollup_model_performance', 'persist_pattern_quality', 'score_patterns', 'route', 'routes']) n
union all
select n, 'admin judge' from unnest(array[
  'claim_judgements', 'renew_judgement', 'renew_judgements', 'release_judgement', 'release_judgements']) n
union all
select n, 'admin judge writer' from unnest(array[
  'upsert', 'upsert_from', 'plan_upsert', 'ensure_check', 'ensure_not_null', 'ensure_unique', 'unique_step', 'collapse_duplicates',
  'declare_constraint', 'undeclare_constraint', 'plan_constraints', 'apply_constraints', 'undo_constraint', 'undo_repair', 'show_repair',
  'repair_orphans_in', 'record_verdict', 'record_verdicts']) n
union all
select n, 'admin judge reader' from unnest(array['export_corpus', 'corpus_manifest']) n
union all
select n, 'admin reader writer' from unnest(array['model_performance_between', 'rank_candidates', 'replay_policy', 'estimate_policy']) n
union all
select n, 'admin' from unnest(array[
  'maintain', 'configure', 'import_models', 'set_clock', 'grant_tenant', 'revoke_tenant', 'unbind_role', 'set_pattern_rules', 'repair_orphans',
  'set_policy', 'set_retry_policy', 'set_budget', 'drop_budget', 'withdraw_verdicts', 'reinstate_verdicts']) n;
create function pg_temp.routines() returns table (name text, roles text)
language sql stable
as $$
  select p.proname::text collate "default", string_agg(m.kind, ' ' order by m.kind)
  from pg_proc p
  left join member m on has_function_privilege(m.role_name, p.oid, 'execute')
  where p.pronamespace = 'routeledger'::regnamespace and p.proname !~ '^_'
  group by p.oid
$$;
select results_eq(
  $$ select * from pg_temp.routines() order by 1 $$, $$ select * from expected order by 1 $$, 'each public routine is granted to whom it is for');
select is_empty(
  $$
    select m.kind, p.proname from member m, pg_proc p
    where p.pronamespace = 'routeledger'::regnamespace and p.proname ~ '^_' and has_function_privilege(m.role_name, p.oid, 'execute')
      and not exists (
        select from pg_proc c
        where c.pronamespace = 'routeledger'::regnamespace and not c.prosecdef
          and c.prosrc ~ ('\mrouteledger\.' || p.proname || '\(') and has_function_privilege(m.role_name, c.oid, 'execute'))
  $$,
  'a private one only to who may call what calls it as its caller');

-- every view, by name
create function pg_temp.relations(p_kind text) returns table (name text, readers text)
language sql stable
as $$
  select c.relname::text collate "default", string_agg(m.kind, ' ' order by m.kind)
  from pg_class c
  left join member m on has_table_privilege(m.role_name, c.oid, 'select, insert, update, delete, truncate, references, trigger')
  where c.relnamespace = 'routeledger'::regnamespace and c.relkind::text = any (string_to_array(p_kind, ' '))
  group by c.oid
$$;
select results_eq(
  $$ select * from pg_temp.relations('v') order by 1 $$,
  $$
    select n, 'admin reader' from unnest(array[
      'attempts', 'budget_status', 'current_pattern_rules', 'current_policies', 'decisions',
      'flagged_prices', 'implausible_costs', 'in_flight', 'model_cooldowns', 'model_performance', 'orphans', 'pattern_quality', 'reconciliation', 'upsert_activity']) n
    union all
    select n, 'admin judge reader writer' from unnest(array['constraint_drift', 'constraint_history', 'repair_history']) n
    union all
    select n, 'admin judge reader' from unnest(array[
      'current_prices', 'judge_agreement', 'judge_drift', 'judge_findings', 'judge_queue', 'verdict_withdrawals', 'verdicts']) n
    order by 1
  $$,
  'readers and admins read the views; whoever may make a constraint or a repair sees what was made, and judges see what is about judging and what it costs');
select is_empty(
  $$
    select m.kind, c.relname from member m, pg_class c
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind = 'v'
      and has_table_privilege(m.role_name, c.oid, 'insert, update, delete')
  $$,
  'and write none');
select is_empty(
  $$ select * from pg_temp.relations('r p S') r where r.readers is not null $$, 'nobody reads or writes a table');
select is_empty(
  $$
    select m.kind from member m
    where not has_schema_privilege(m.role_name, 'routeledger', 'usage') or has_schema_privilege(m.role_name, 'routeledger', 'create')
  $$,
  'all may use the schema and none may create in it');

-- the same from where the roles stand
create role tap980_nobody;
create role tap980_writer in role routeledger_writer;
create role tap980_reader in role routeledger_reader;
create role tap980_judge in role routeledger_judge;
create role tap980_admin in role routeledger_admin;
set local role tap980_nobody;
select throws_ok(
  $$ select routeledger.version() $$, '42501', 'permission denied for schema routeledger', 'a stranger: not even the version');
select throws_ok(
  $$ select * from routeledger.decisions $$, '42501', 'permission denied for schema routeledger', 'and no view');

set local role tap980_reader;
select is(routeledger.version(), '0.6.0', 'a reader: the version');
select lives_ok(
  $$
    select (select count(*) from routeledger.decisions), (select count(*) from routeledger.attempts), (select count(*) from routeledger.in_flight),
      (select count(*) from routeledger.orphans), (select count(*) from routeledger.reconciliation), (select count(*) from routeledger.implausible_costs),
      (select count(*) from routeledger.current_prices), (select count(*) from routeledger.flagged_prices), (select count(*) from routeledger.verdicts),
      (select count(*) from routeledger.judge_findings), (select count(*) from routeledger.judge_queue)
  $$, 'every view');
select throws_ok(
  $$ select * from routeledger.routing_outcomes $$, '42501', 'permission denied for table routing_outcomes', 'no table');
select throws_ok(
  $$ select routeledger.insert_decision('tap980') $$, '42501', 'permission denied for function insert_decision', 'and nothing to write');
select throws_ok(
  $$ select routeledger.reap() $$, '42501', 'permission denied for function reap', 'not even to reap');

set local role tap980_writer;
select lives_ok($$ select routeledger.insert_decision('tap980', p_candidates => '["m"]') $$, 'a writer: decisions');
select lives_ok($$ select routeledger.reap(1, 'tap980') $$, 'the reaper');
select throws_ok(
  $$ select * from routeledger.decisions $$, '42501', 'permission denied for view decisions', 'no view');
select throws_ok(
  $$ insert into routeledger.routing_outcomes (tenant_id) values ('tap980') $$, '42501', 'permission denied for table routing_outcomes', 'no table');
select throws_ok(
  $$ update routeledger.inferences set cost_usd = 0 $$, '42501', 'permission denied for table inferences', 'not to correct a cost');
select throws_ok(
  $$ select routeledger.configure('{}') $$, '42501', 'permission denied for function configure', 'no settings');
select throws_ok(
  $$ select routeledger._reap() $$, '42883', 'function routeledger._reap() does not exist', 'nothing private by guessing');
select throws_ok(
  $$ select routeledger._uuid_v7_at(now()) $$, '42501', 'permission denied for function _uuid_v7_at', 'nor by knowing');
select throws_ok(
  $$ create table routeledger.tap980 (id integer) $$, '42501', 'permission denied for schema routeledger', 'and no place for things of its own');

set local role tap980_judge;
select is(routeledger.version(), '0.6.0', 'a judge: the version');
select throws_ok(
  $$ select routeledger.complete_decision('tap980', null, 'failed') $$, '42501', 'permission denied for function complete_decision', 'no outcome');
select throws_ok(
  $$ select * from routeledger.decisions $$, '42501', 'permission denied for view decisions', 'nothing about decisions');
select lives_ok(
  $$
    select routeledger.claim_judgements('tap980', 'j', '1'), (select count(*) from routeledger.verdicts), (select count(*) from routeledger.judge_findings),
      (select count(*) from routeledger.judge_agreement), (select count(*) from routeledger.judge_drift), (select count(*) from routeledger.judge_queue),
      (select count(*) from routeledger.verdict_withdrawals)
  $$, 'but its work, and what is about judges');
select throws_ok(
  $$ select * from routeledger.judge_verdicts $$, '42501', 'permission denied for table judge_verdicts', 'not by the table');
select throws_ok(
  $$ select routeledger.withdraw_verdicts('tap980', 'j', '1', 'why') $$, '42501', 'permission denied for function withdraw_verdicts',
  'and it takes nothing back');

set local role tap980_admin;
select lives_ok(
  $$ select routeledger.configure('{}'), routeledger.set_clock(null), (select count(*) from routeledger.decisions) $$, 'an admin: settings, clock and views');
select throws_ok(
  $$ delete from routeledger.install_log $$, '42501', 'permission denied for table install_log', 'no table');
reset role;

-- asserted again by every install and upgrade
grant all on all tables in schema routeledger to routeledger_writer, public;
grant execute on all functions in schema routeledger to public, routeledger_judge;
revoke execute on function routeledger.version() from routeledger_reader;
grant create on schema routeledger to public;
select lives_ok((select b.body from block b), 'the grants are asserted again');
select results_eq(
  $$ select * from pg_temp.routines() order by 1 $$, $$ select * from expected order by 1 $$, 'what was given away is taken back, what was taken is given');
select is_empty(
  $$
    select r.name from pg_temp.relations('r p S') r where r.readers is not null
    union all
    select m.kind from member m where has_schema_privilege(m.role_name, 'routeledger', 'create')
    union all
    select p.proname from pg_proc p where p.pronamespace = 'routeledger'::regnamespace and has_function_privilege('public', p.oid, 'execute')
  $$,
  'on tables, in the schema and from PUBLIC too');
alter role routeledger_judge rename to tap980_away;
select lives_ok((select b.body from block b), 'a role that does not exist is passed over');

select * from finish();
rollback;
