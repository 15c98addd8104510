-- 040 · Tenants: a role that is bound to tenants writes for those only and sees those only.
begin;
\ir common.psql
select plan(49);

create role tap040_bound in role routeledger_writer, routeledger_reader, routeledger_judge;
create role tap040_group nologin;
create role tap040_member in role routeledger_writer, routeledger_reader, routeledger_judge, tap040_group;
create role tap040_free in role routeledger_writer, routeledger_reader, routeledger_judge;
create role tap040_admin in role routeledger_admin;

select has_table('routeledger', 'tenant_grants', 'tenant_grants exists');
select col_is_pk('routeledger', 'tenant_grants', array['tenant_id', 'role_name'], 'keyed by tenant and role');

-- binding
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.grant_tenant('tap040_bound', 'tap040-a') $$, '42501', 'permission denied for function grant_tenant',
  'a writer may not bind');
select throws_ok(
  $$ select routeledger.revoke_tenant('tap040_bound', 'tap040-a') $$, '42501', 'permission denied for function revoke_tenant',
  'nor take a binding back');
select throws_ok(
  $$ select routeledger.unbind_role('tap040_bound') $$, '42501', 'permission denied for function unbind_role', 'nor lift it');
select is(routeledger.bound_tenants(), null, 'as long as no role is bound, nobody is');
set local role routeledger_admin;
select is(routeledger.grant_tenant('tap040_bound', 'tap040-a'), true, 'grant_tenant() binds');
select is(routeledger.grant_tenant('tap040_bound', 'tap040-a'), false, 'once');
select is(routeledger.grant_tenant('tap040_group', 'tap040-b'), true, 'a group');
select throws_ok(
  $$ select routeledger.grant_tenant(null, 'x') $$, 'RL101', 'a required argument is missing', 'grant_tenant: the role is required');
select throws_ok(
  $$ select routeledger.grant_tenant('tap040_bound', null) $$, 'RL101', 'a required argument is missing', 'the tenant too');
select throws_ok(
  $$ select routeledger.grant_tenant('tap040_bound', '') $$, 'RL101', 'a required argument is missing', 'empty is missing');
select throws_ok(
  $$ select routeledger.grant_tenant('tap040_bound', repeat('x', 201)) $$, 'RL108', 'a text or document is longer than the ledger keeps',
  'as long as any tenant_id');
select throws_ok(
  $$ select routeledger.grant_tenant('tap040_none', 'x') $$, 'RL203', 'there is no such role', 'the role must exist');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.grant_tenant('tap040_none', 'x') $$) c),
  '{"role": "tap040_none"}'::jsonb, 'DETAIL names it');
select throws_ok(
  $$ select routeledger.revoke_tenant(null, 'x') $$, 'RL101', 'a required argument is missing', 'revoke_tenant: the role is required');
select throws_ok(
  $$ select routeledger.revoke_tenant('tap040_bound', '') $$, 'RL101', 'a required argument is missing', 'the tenant too');
select throws_ok(
  $$ select routeledger.unbind_role(null) $$, 'RL101', 'a required argument is missing', 'unbind_role: the role is required');
reset role;

-- who is bound
select is(routeledger.bound_tenants(), null, 'the owner never is');
set local role tap040_free;
select is(routeledger.bound_tenants(), null, 'a role that was not named is not');
set local role tap040_bound;
select is(routeledger.bound_tenants(), array['tap040-a'], 'one that was is');
set local role tap040_member;
select is(routeledger.bound_tenants(), array['tap040-b'], 'so is one that inherits it');
set local session authorization tap040_bound;
select is(routeledger.bound_tenants(), array['tap040-a'], 'by login as by SET ROLE');
set local role routeledger_writer;
select is(routeledger.bound_tenants(), array['tap040-a'], 'SET ROLE to a group that is not bound lifts nothing');
reset session authorization;
grant tap040_member to tap040_bound;
set local session authorization tap040_bound;
set local role tap040_member;
select is(routeledger.bound_tenants(), array['tap040-b'], 'to one that is bound to less, narrows: both bindings hold');
reset session authorization;
revoke tap040_member from tap040_bound;
set local session authorization tap040_free;
select is(routeledger.bound_tenants(), null, 'a login that is not bound stays free');
reset session authorization;

-- two tenants with rows in every view
do $$ begin perform routeledger.configure('{"mono_zero_n": 2}'); end $$;
insert into routeledger.models (model_slug, provider) values ('tap040/m', 'tap');
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok) values ('tap040/m', 'epoch', 1, 1);
set local role tap040_free;
do $$
declare
  v_tenant text;
begin
  foreach v_tenant in array array['tap040-a', 'tap040-b'] loop
    perform routeledger.insert_decision(v_tenant, pg_temp.id(v_tenant || '/open'), p_candidates => '["tap040/m"]');
    perform routeledger.insert_decision(v_tenant, pg_temp.id(v_tenant || '/done'), p_candidates => '["tap040/m"]');
    perform routeledger.complete_decision(v_tenant, pg_temp.id(v_tenant || '/done'), 'succeeded',
      p_input_tokens => 10, p_output_tokens => 10, p_cost_usd => 1000);
  end loop;
end
$$;
reset role;
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
select t, pg_temp.id(t || '/none'), pg_temp.id(t || '/none/1'), 1, 'tap040/m', pg_temp.t0(), pg_temp.t0()
from unnest(array['tap040-a', 'tap040-b']) t;

insert into routeledger.cooldowns (tenant_id, model_slug, until_at, first_failed_at, last_failed_at)
select t, 'tap040/m', pg_temp.t0() + interval '1 hour', pg_temp.t0(), pg_temp.t0() from unnest(array['tap040-a', 'tap040-b']) t;
insert into routeledger.budgets (tenant_id, name, scope, subject, period, limit_usd, shards, created_at)
select t, 'tap040', 'tenant', '', 'day', 1, 1, pg_temp.t0() from unnest(array['tap040-a', 'tap040-b']) t;
insert into routeledger.model_performance_buckets (tenant_id, model_key, day, n)
select t, 'tap040/m', (pg_temp.t0() at time zone 'UTC')::date, 1 from unnest(array['tap040-a', 'tap040-b']) t;
insert into routeledger.judge_verdicts (tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, score, usable, reward_source, recorded_at)
select t, pg_temp.id(t || o), j, '1', pg_temp.id(t || o || '/1'), 'tap040/m', 0, true, 'judge', pg_temp.t0()
from unnest(array['tap040-a', 'tap040-b']) t, unnest(array['/done', '/none']) o, unnest(array['j', 'k']) j;
insert into routeledger.verdict_withdrawals_log (tenant_id, id, judge, judge_version, reason, verdicts, unlabeled, withdrawn_by, withdrawn_at)
select t, pg_temp.id(t), 'j', '0', 'why', 1, 1, current_user, pg_temp.t0() from unnest(array['tap040-a', 'tap040-b']) t;

create function pg_temp.seen() returns table (view_name text, tenants text)
language plpgsql volatile
as $$
begin
  for view_name in
    select c.relname from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind = 'v' order by 1
  loop
    execute format('select string_agg(distinct v.tenant_id, '' '' order by v.tenant_id) from routeledger.%I v', view_name) into tenants;
    return next;
  end loop;
end
$$;
set local role tap040_free;
select results_eq(
  $$ select s.view_name, s.tenants like '%tap040-a tap040-b%' from pg_temp.seen() s $$,
  $$
    values ('attempts', true), ('budget_status', true), ('decisions', true), ('model_cooldowns', true), ('in_flight', true), ('implausible_costs', true), ('judge_agreement', true), ('judge_drift', true),
      ('judge_findings', true), ('judge_queue', true), ('model_performance', true), ('orphans', true), ('reconciliation', true), ('verdict_withdrawals', true),
      ('verdicts', true)
    order by 1
  $$,
  'a role that is not bound sees both tenants in every view');
set local role tap040_bound;
select is_empty(
  $$ select s.view_name, s.tenants from pg_temp.seen() s where s.tenants is distinct from 'tap040-a' $$,
  'a bound role sees its own in every view, and no other');
set local role tap040_member;
select is_empty(
  $$ select s.view_name, s.tenants from pg_temp.seen() s where s.tenants is distinct from 'tap040-b' $$, 'one that inherits it likewise');
create function pg_temp.leak(text) returns boolean language plpgsql volatile cost 0.0000001
as $$ begin if $1 = 'tap040-a' then raise 'leak'; end if; return true; end $$;
select lives_ok(
  $$ select count(*) from routeledger.decisions d where pg_temp.leak(d.tenant_id) $$, 'a condition of its own is not shown the others'' rows');
reset role;

-- every routine that is for a tenant, but for those of admins
create temp table writer (name text primary key, call text not null);
grant select on writer to public;
insert into writer values
  ('insert_decision', $$ select routeledger.insert_decision('tap040-b', p_candidates => '["m"]') $$),
  ('start_attempt', $$ select routeledger.start_attempt('tap040-b', pg_temp.id('tap040-b/open'), 'm') $$),
  ('fail_attempt', $$ select routeledger.fail_attempt('tap040-b', pg_temp.id('tap040-b/open'), pg_temp.id('x'), 'timeout') $$),
  ('complete_decision',
    $$ select routeledger.complete_decision('tap040-b', pg_temp.id('tap040-b/open'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$),
  ('extend_lease', $$ select routeledger.extend_lease('tap040-b', pg_temp.id('tap040-b/open')) $$),
  ('record_outcome', $$ select routeledger.record_outcome('tap040-b') $$),
  ('record_payload', $$ select routeledger.record_payload('tap040-b', pg_temp.id('tap040-b/open'), pg_temp.id('x'), '{}') $$),
  ('reap', $$ select routeledger.reap(p_tenant_id => 'tap040-b') $$),
  ('model_performance_between', $$ select routeledger.model_performance_between('tap040-b', current_date, current_date) $$),
  ('rollup_model_performance', $$ select routeledger.rollup_model_performance(p_tenant_id => 'tap040-b') $$),
  ('rank_candidates', $$ select routeledger.rank_candidates('tap040-b') $$),
  ('replay_policy', $$ select routeledger.replay_policy('tap040-b') $$),
  ('estimate_policy', $$ select routeledger.estimate_policy('tap040-b') $$),
  ('claim_judgements', $$ select routeledger.claim_judgements('tap040-b', 'j', '2') $$),
  ('renew_judgement', $$ select routeledger.renew_judgement('tap040-b', pg_temp.id('tap040-b/done'), 'j', '2', gen_random_uuid()) $$),
  ('release_judgement', $$ select routeledger.release_judgement('tap040-b', pg_temp.id('tap040-b/done'), 'j', '2', gen_random_uuid()) $$),
  ('record_verdict', $$ select routeledger.record_verdict('tap040-b', pg_temp.id('tap040-b/done'), 'j', '2', 1) $$),
  ('export_corpus', $$ select routeledger.export_corpus('tap040-b') $$),
  ('corpus_manifest', $$ select routeledger.corpus_manifest('tap040-b') $$),
  ('route', $$ select routeledger.route('tap040-b') $$);
select set_eq(
  $$ select w.name from writer w $$,
  $$
    select p.proname::text collate "C" from pg_proc p
    where p.pronamespace = 'routeledger'::regnamespace and 'p_tenant_id' = any (p.proargnames) and p.proname !~ '^_'
      and (has_function_privilege('routeledger_writer', p.oid, 'execute') or has_function_privilege('routeledger_reader', p.oid, 'execute')
        or has_function_privilege('routeledger_judge', p.oid, 'execute'))
  $$,
  'the list is all of them');
set local role tap040_bound;
select results_eq(
  $$ select w.name, c.code, c.message, c.detail from writer w cross join lateral pg_temp.caught(w.call) c order by w.name $$,
  $$
    select w.name, 'RL110', 'this role is bound to other tenants', '{"parameter": "tenant_id"}'::jsonb from writer w order by w.name
  $$,
  'each refuses another tenant');
select results_eq(
  $$
    select 'insert_decisions', r.status, r.code from routeledger.insert_decisions(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b'), jsonb_build_object('tenant_id', 'tap040-a'))) r
    union all
    select 'start_attempts', r.status, r.code from routeledger.start_attempts(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/open'), 'model_slug', 'm'))) r
    union all
    select 'fail_attempts', r.status, r.code from routeledger.fail_attempts(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/open')))) r
    union all
    select 'complete_decisions', r.status, r.code from routeledger.complete_decisions(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/open')))) r
    union all
    select 'extend_leases', r.status, r.code from routeledger.extend_leases(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/open')))) r
    union all
    select 'record_outcomes', r.status, r.code from routeledger.record_outcomes(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b'))) r
    union all
    select 'record_payloads', r.status, r.code from routeledger.record_payloads(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/open')))) r
    union all
    select 'routes', r.status, r.code from routeledger.routes(jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b'))) r
    union all
    select 'renew_judgements', r.status, r.code from routeledger.renew_judgements(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/done')))) r
    union all
    select 'release_judgements', r.status, r.code from routeledger.release_judgements(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/done')))) r
    union all
    select 'record_verdicts', r.status, r.code from routeledger.record_verdicts(
      jsonb_build_array(jsonb_build_object('tenant_id', 'tap040-b', 'id', pg_temp.id('tap040-b/done')))) r
  $$,
  $$
    values
      ('insert_decisions', 'refused', 'RL110'), ('insert_decisions', 'accepted', null),
      ('start_attempts', 'refused', 'RL110'), ('fail_attempts', 'refused', 'RL110'), ('complete_decisions', 'refused', 'RL110'),
      ('extend_leases', 'refused', 'RL110'), ('record_outcomes', 'refused', 'RL110'), ('record_payloads', 'refused', 'RL110'),
      ('routes', 'refused', 'RL110'), ('renew_judgements', 'refused', 'RL110'), ('release_judgements', 'refused', 'RL110'),
      ('record_verdicts', 'refused', 'RL110')
  $$,
  'and so does each set form, row by row');
select lives_ok(
  $$
    select routeledger.complete_decision('tap040-a', pg_temp.id('tap040-a/open'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1)
  $$, 'its own tenant it may use');
reset role;
select is(
  (select count(*) from routeledger.routing_outcomes o where o.tenant_id = 'tap040-b'), 2::bigint, 'nothing was written there');
savepoint s;
set local session authorization tap040_bound;
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.insert_decision('tap040-b', p_candidates => '["m"]') $$, 'RL110', 'this role is bound to other tenants',
  'SET ROLE to a group that is not bound opens no other tenant');
rollback to s;

-- the reaper
do $$ begin perform pg_temp.at('1 hour'); end $$;
set local role tap040_bound;
select is_empty(
  $$ select r.id from routeledger.reap() r where r.tenant_id <> 'tap040-a' $$, 'a bound role reaps its own tenant only');
set local role tap040_member;
select results_eq(
  $$ select r.id from routeledger.reap() r $$, $$ values (pg_temp.id('tap040-b/open')) $$, 'each its own');
reset role;

-- taking back
set local role tap040_admin;
select is(routeledger.grant_tenant('tap040_bound', 'tap040-c'), true, 'a role may be bound to several tenants');
select is(routeledger.revoke_tenant('tap040_bound', 'tap040-a'), true, 'revoke_tenant() takes one back');
select is(routeledger.revoke_tenant('tap040_bound', 'tap040-a'), false, 'once');
set local role tap040_bound;
select is(routeledger.bound_tenants(), array['tap040-c'], 'the others stay');
set local role tap040_admin;
select is(routeledger.revoke_tenant('tap040_bound', 'tap040-c'), true, 'and when the last is taken back');
set local role tap040_bound;
select is(routeledger.bound_tenants(), '{}'::text[], 'the role may use none, not all');
select is_empty($$ select s.view_name from pg_temp.seen() s where s.tenants is not null $$, 'it sees nothing');
set local role tap040_admin;
select is(routeledger.grant_tenant('tap040_bound', 'tap040-a'), true, 'granted again it counts as new');
select is(routeledger.unbind_role('tap040_bound'), true, 'unbind_role() lifts the binding');
select is(routeledger.unbind_role('tap040_bound'), false, 'once');
set local role tap040_bound;
select is(routeledger.bound_tenants(), null, 'the role is free again');

select * from finish();
rollback;
