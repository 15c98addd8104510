-- 260 · Leases: who is still at work, and what becomes of the work of those who are not.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"lease": "5 minutes", "retry_jitter": 0}'); end $$;
select plan(45);

create function pg_temp.decision(p_name text) returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = 'tap260' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.attempts(p_name text) returns setof routeledger.inferences
language sql stable security definer
as $$ select * from routeledger.inferences i where i.tenant_id = 'tap260' and i.outcome_id = pg_temp.id(p_name) order by i.attempt_no $$;
create function pg_temp.decide(p_name text, p_lease interval default null, p_tenant text default 'tap260') returns void
language sql volatile
as $$
  select routeledger.insert_decision(p_tenant, pg_temp.id(p_name), p_candidates => '["a", "b"]', p_lease => p_lease,
    p_attempt_id => pg_temp.id(p_name || '/1'))
$$;
create function pg_temp.fail(p_name text, p_next text default 'policy') returns void
language sql volatile
as $$
  select routeledger.fail_attempt('tap260', pg_temp.id(p_name), pg_temp.id(p_name || '/1'), '500', p_http_status => 500, p_next => p_next,
    p_next_attempt_id => case when p_next = 'policy' then pg_temp.id(p_name || '/2') end)
$$;
set local role routeledger_writer;

-- extending
do $$ begin perform pg_temp.decide('e1'); perform pg_temp.decide('e2', '1 hour'); perform pg_temp.at('4 minutes'); end $$;
select results_eq(
  $$ select e.* from routeledger.extend_lease('tap260', pg_temp.id('e1')) e $$,
  $$ values (pg_temp.id('e1'), pg_temp.t0() + interval '9 minutes') $$, 'a lease is extended from now on, by the length of the settings');
select is((select d.lease_expires_at from pg_temp.decision('e1') d), pg_temp.t0() + interval '9 minutes', 'and kept');
select is(
  (select e.lease_expires_at from routeledger.extend_lease('tap260', pg_temp.id('e2')) e), pg_temp.t0() + interval '64 minutes',
  'by its own, where it has one');
select is(
  (select e.lease_expires_at from routeledger.extend_lease('tap260', pg_temp.id('e1'), '30 minutes') e), pg_temp.t0() + interval '34 minutes',
  'or by the length given');
select is(
  (select e.lease_expires_at from routeledger.extend_lease('tap260', pg_temp.id('e1'), '1 second') e), pg_temp.t0() + interval '34 minutes',
  'it is never shortened');
do $$ begin perform pg_temp.at('33 minutes'); end $$;
select is(
  (select e.lease_expires_at from routeledger.extend_lease('tap260', pg_temp.id('e1'), '24 hours') e), pg_temp.t0() + interval '33 minutes' + interval '24 hours',
  'as often as needed');
do $$ begin perform pg_temp.at('2 hours'); end $$;
select lives_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('e2')) $$, 'also after it ran out, as long as nobody has reaped it');

-- what cannot be extended
do $$
begin
  perform pg_temp.at('0');
  perform pg_temp.decide('done');
  perform routeledger.complete_decision('tap260', pg_temp.id('done'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
  perform routeledger.insert_decision('tap260', pg_temp.id('rejected'));
end
$$;
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('nowhere')) $$, 'RL201', 'there is no such decision', 'an unknown decision');
select throws_ok(
  $$ select routeledger.extend_lease('tap260-other', pg_temp.id('e1')) $$, 'RL201', 'there is no such decision', 'or another tenant''s');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('done')) $$, 'RL305', 'this decision is already closed', 'one that is done');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('rejected')) $$, 'RL305', 'this decision is already closed', 'one that was rejected');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('e1'), '999 milliseconds') $$, 'RL103', 'a number is outside the range allowed for it', 'too short');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('e1'), '24 hours 1 second') $$, 'RL103', 'a number is outside the range allowed for it', 'too long');
select throws_ok(
  $$ select routeledger.extend_lease(null, pg_temp.id('e1')) $$, 'RL101', 'a required argument is missing', 'no tenant');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', null) $$, 'RL101', 'a required argument is missing', 'no decision');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', gen_random_uuid()) $$, 'RL104', 'an id is not a UUID version 7', 'no UUID version 7');

-- the reaper
do $$
begin
  perform pg_temp.decide('r1', '1 minute');
  perform pg_temp.decide('r2', '2 minutes');
  perform pg_temp.fail('r2');
  perform routeledger.complete_decision('tap260', pg_temp.id('r2'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
  perform pg_temp.decide('r3', '3 minutes');
  perform pg_temp.fail('r3', 'hold');
  perform pg_temp.decide('r4', '4 minutes');
  perform pg_temp.fail('r4');
  perform pg_temp.decide('r5', '5 minutes');
  perform pg_temp.decide('r6', '6 minutes', 'tap260-other');
end
$$;
select is_empty($$ select * from routeledger.reap(p_tenant_id => 'tap260') $$, 'nothing has run out yet');
do $$ begin perform pg_temp.at('59.999 seconds'); end $$;
select is_empty($$ select * from routeledger.reap(p_tenant_id => 'tap260') $$, 'to the millisecond');
do $$ begin perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$ select r.* from routeledger.reap(p_tenant_id => 'tap260') r $$,
  $$ values ('tap260', pg_temp.id('r1'), pg_temp.id('r1/1'), 1) $$, 'a lease that has run out is reaped');
select is_empty($$ select * from routeledger.reap(p_tenant_id => 'tap260') $$, 'once');
select results_eq(
  $$
    select d.outcome_status::text, d.inference_id, d.open_attempt_id, d.attempt_count, d.lease_expires_at, d.abandoned_at, d.completed_at, d.late_completion
    from pg_temp.decision('r1') d
  $$,
  $$
    values ('abandoned', pg_temp.id('r1/1'), null::uuid, 1, null::timestamptz, pg_temp.t0() + interval '1 minute', pg_temp.t0() + interval '1 minute',
      false)
  $$,
  'the decision is abandoned, and linked');
select results_eq(
  $$ select i.status::text, i.error_type, i.error_message, i.cost_source, i.latency_ms, i.completed_at from pg_temp.attempts('r1') i $$,
  $$
    values ('failed', 'abandoned', 'the lease ran out before the attempt was completed', 'no_usage', 60000::double precision,
      pg_temp.t0() + interval '1 minute')
  $$,
  'its attempt has failed');
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('r1')) $$, 'RL401', 'the lease ran out and the reaper closed this decision',
  'its lease cannot be extended any more');
do $$ begin perform routeledger.complete_decision('tap260', pg_temp.id('r1'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1); end $$;
select throws_ok(
  $$ select routeledger.extend_lease('tap260', pg_temp.id('r1')) $$, 'RL401', 'the lease ran out and the reaper closed this decision',
  'nor after a late completion');
do $$ begin perform pg_temp.at('1 hour'); end $$;
select results_eq(
  $$ select r.* from routeledger.reap(1, 'tap260') r $$,
  $$ values ('tap260', pg_temp.id('r3'), pg_temp.id('r3/1'), 1) $$, 'the oldest lease first, as many as asked for');
select results_eq(
  $$ select i.error_type, i.next_action, d.inference_id from pg_temp.attempts('r3') i, pg_temp.decision('r3') d $$,
  $$ values ('500', 'hold', pg_temp.id('r3/1')) $$, 'on hold the failure that was recorded is linked as it is');
select results_eq(
  $$ select r.id, r.inference_id, r.attempt_no from routeledger.reap(100, 'tap260') r order by r.id $$,
  $$
    select v.id, v.inference_id, v.n
    from (values (pg_temp.id('r4'), pg_temp.id('r4/2'), 2), (pg_temp.id('r5'), pg_temp.id('r5/1'), 1)) v (id, inference_id, n) order by 1
  $$,
  'the open attempt is the one that is linked');
select results_eq(
  $$ select i.attempt_no, i.error_type from pg_temp.attempts('r4') i $$, $$ values (1, '500'), (2, 'abandoned') $$, 'what failed before stays as it was');
select is(
  (select d.outcome_status::text from pg_temp.decision('r2') d), 'succeeded', 'what was completed is left alone');
select results_eq(
  $$ select r.tenant_id, r.id from routeledger.reap() r where r.tenant_id like 'tap260%' $$,
  $$ values ('tap260-other', pg_temp.id('r6')) $$, 'without a tenant all are reaped');
select throws_ok($$ select routeledger.reap(null) $$, 'RL101', 'a required argument is missing', 'the limit is required');
select throws_ok($$ select routeledger.reap(0) $$, 'RL103', 'a number is outside the range allowed for it', 'at least 1');
select throws_ok($$ select routeledger.reap(10001) $$, 'RL103', 'a number is outside the range allowed for it', 'at most 10000');
select throws_ok($$ select routeledger.reap(10, '') $$, 'RL101', 'a required argument is missing', 'a tenant has a name');
select throws_ok(
  $$ select routeledger.reap(10, repeat('x', 201)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'of some length');
select is(
  (select c.detail from pg_temp.caught('select routeledger.reap(0)') c), '{"parameter": "limit", "allowed": "1 to 10000"}'::jsonb, 'DETAIL gives the range');

-- the set form
do $$ begin perform pg_temp.at('0'); perform pg_temp.decide('s' || n) from generate_series(1, 3) n; perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.id, r.lease_expires_at
    from routeledger.extend_leases(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('s3'), 'lease', '10 minutes'),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('s1')),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('s3')),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('r3')),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('nowhere')),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('s2'), 'lease', '0'),
      jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('s2'), 'lease', 'soon'),
      jsonb_build_object('id', pg_temp.id('s2')),
      jsonb_build_object('tenant_id', repeat('x', 201), 'id', pg_temp.id('s2')))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, null::text, pg_temp.id('s3'), pg_temp.t0() + interval '11 minutes'),
      (2, 'accepted', null, null, pg_temp.id('s1'), pg_temp.t0() + interval '6 minutes'),
      (3, 'replayed', null, null, pg_temp.id('s3'), pg_temp.t0() + interval '11 minutes'),
      (4, 'refused', 'RL401', null, null, null), (5, 'refused', 'RL201', null, null, null), (6, 'refused', 'RL103', 'lease', null, null),
      (7, 'refused', 'RL107', 'row', null, null), (8, 'refused', 'RL101', 'tenant_id', null, null), (9, 'refused', 'RL108', 'tenant_id', null, null)
  $$,
  'many leases: an answer each, in the order given, whatever becomes of the neighbours');
select is_empty(
  $$
    select r.ord from routeledger.extend_leases(jsonb_build_array(jsonb_build_object('tenant_id', 'tap260', 'id', pg_temp.id('nowhere')))) r
    left join routeledger.errors() e on e.code = r.code
    where (r.message, r.hint) is distinct from (e.message, e.hint)
  $$,
  'with the words of errors()');
select is_empty($$ select * from routeledger.extend_leases('[]') $$, 'none: no answers');
select throws_ok($$ select routeledger.extend_leases(null) $$, 'RL101', 'a required argument is missing', 'null');

reset role;
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap260%' $$, 'no orphans');
select is_empty(
  $$ select * from routeledger.reconciliation r where r.tenant_id like 'tap260%' and not r.agrees $$, 'the sums agree');

-- budgets
reset role;
do $$
begin
  perform pg_temp.at('0');
  perform routeledger.set_budget('tap260b', 'b', 1, p_period => 'total', p_shards => 3);
  perform routeledger.insert_decision('tap260b', pg_temp.id('held' || n), p_candidates => '[{"model_slug": "m", "projected_cost_usd": 0.2}]', p_lease => '1 minute')
  from generate_series(1, 4) n;
  perform pg_temp.at('2 minutes');
end
$$;
set local role routeledger_writer;
select is((select count(*) from routeledger.reap(3, 'tap260b')), 3::bigint, 'three of four are reaped');
reset role;
select results_eq(
  $$ select b.reserved_usd, b.spent_usd, b.remaining_usd from routeledger.budget_status b where b.tenant_id = 'tap260b' $$,
  $$ values (0.2, 0::numeric, 0.8) $$, 'and what they had reserved is free again');
select is((select count(*) from routeledger.budget_holds h where h.tenant_id = 'tap260b' and h.released), 3::bigint, 'kept for those who come late');
do $$ begin perform routeledger.drop_budget('tap260b', 'b'); end $$;

select * from finish();
rollback;
