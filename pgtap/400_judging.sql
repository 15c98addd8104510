-- 400 · Judging: outcomes are leased to judges, each once to every version of every judge.
begin;
\ir common.psql
create role tap400_bound in role routeledger_judge;
do $$ begin perform routeledger.configure('{"judge_lease": "10 minutes", "judge_max_attempts": 3, "judge_retry_delay": "1 minute",
  "judge_look_every": "1 minute", "judge_look_back": "1 hour", "lease": "5 minutes", "retry_jitter": 0}'); end $$;
select plan(115);

-- Decisions are numbered: that of number n is dated n seconds after t0().
create function pg_temp.d(n integer) returns uuid
language sql stable
as $$
  select (lpad(to_hex((extract(epoch from pg_temp.t0()) * 1000)::bigint + n * 1000), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
    || substr(md5(n::text), 4, 15))::uuid
$$;
create function pg_temp.n(p_id uuid) returns integer
language sql stable
as $$ select round(extract(epoch from routeledger.uuid_v7_time(p_id) - pg_temp.t0()))::integer $$;
create function pg_temp.succeed(n integer, p_tenant text default 'tap400', p_model text default 'a') returns void
language plpgsql volatile security definer
as $$
begin
  perform routeledger.insert_decision(p_tenant, pg_temp.d(n), p_candidates => jsonb_build_array(p_model), p_attempt_id => pg_temp.id(n || '/1'));
  perform routeledger.complete_decision(p_tenant, pg_temp.d(n), 'succeeded', p_input_tokens => 100, p_output_tokens => 10, p_cost_usd => 0.5);
end
$$;
create function pg_temp.outcome(n integer, p_tenant text default 'tap400') returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = p_tenant and o.id = pg_temp.d(n) $$;
create function pg_temp.leases(p_judge text, p_version text) returns setof routeledger.judge_leases
language sql stable security definer
as $$
  select * from routeledger.judge_leases l
  where l.tenant_id like 'tap400%' and l.judge = p_judge and l.judge_version = p_version order by l.outcome_id
$$;
create function pg_temp.verdicts(n integer) returns setof routeledger.judge_verdicts
language sql stable security definer
as $$
  select * from routeledger.judge_verdicts v where v.tenant_id = 'tap400' and v.outcome_id = pg_temp.d(n) order by v.judge, v.judge_version
$$;
create function pg_temp.verdictsx() returns setof routeledger.judge_verdicts
language sql stable security definer
as $$ select * from routeledger.judge_verdicts v where v.tenant_id = 'tap400x' order by v.outcome_id, v.judge, v.judge_version $$;
create function pg_temp.verdictsr(n integer) returns setof routeledger.judge_verdicts
language sql stable security definer
as $$ select * from routeledger.judge_verdicts v where v.tenant_id = 'tap400r' and v.outcome_id = pg_temp.d(n) order by v.judge, v.judge_version $$;

-- What was claimed, by number, in the order in which it came; the tokens are kept.
create temp table held (tenant_id text, n integer, judge text, judge_version text, attempt_no integer, token uuid, lease_expires_at timestamptz,
  i integer generated always as identity);
grant all on held to public;
create function pg_temp.claim(p_judge text, p_version text, p_limit integer default 10, p_tenant text default 'tap400', p_from date default null,
  p_lease interval default null) returns integer[]
language sql volatile
as $$
  with claimed as (
    select c.*, row_number() over () as i from routeledger.claim_judgements(p_tenant, p_judge, p_version, p_limit, p_lease, p_from) c
  ),
  kept as (
    insert into held select c.tenant_id, pg_temp.n(c.id), p_judge, p_version, c.attempt_no, c.lease_token, c.lease_expires_at from claimed c
  )
  select coalesce(array_agg(pg_temp.n(c.id) order by c.i), '{}') from claimed c
$$;
create function pg_temp.token(n integer, p_judge text, p_version text, p_attempt integer default null) returns uuid
language sql stable
as $$
  select h.token from held h
  where h.n = $1 and h.judge = p_judge and h.judge_version = p_version and (p_attempt is null or h.attempt_no = p_attempt)
  order by h.i desc limit 1
$$;

-- the tables
select col_is_pk('routeledger', 'judge_leases', array['tenant_id', 'outcome_id', 'judge', 'judge_version'], 'one lease an outcome for each version of each judge');
select throws_ok(
  $$
    insert into routeledger.judge_leases (tenant_id, outcome_id, judge, judge_version, lease_token, attempts, due_at, created_at)
    values ('tap400', pg_temp.d(1), 'j', '1', gen_random_uuid(), 0, now(), now())
  $$,
  '23514', 'new row for relation "judge_leases" violates check constraint "judge_leases_attempts_check"', 'who holds it has been given it');
select col_is_pk('routeledger', 'judge_searches', array['tenant_id', 'judge', 'judge_version'], 'one search for each version of each judge');
select col_is_pk('routeledger', 'judge_fronts', 'tenant_id', 'one front for each tenant');

-- who may
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.claim_judgements('tap400', 'j', '1') $$, '42501', 'permission denied for function claim_judgements', 'a writer does not judge');
set local role routeledger_judge;
select is(pg_temp.claim('j', '1'), '{}', 'nothing decided, nothing to judge');

-- one decision of each kind
reset role;
do $$
begin
  perform routeledger.insert_decision('tap400', pg_temp.d(1), p_agent_id => 'agent', p_task_type => 'chat', p_traffic_class => 'shadow', p_metadata => '{"k": 1}',
    p_candidates => '[{"model_slug": "a", "provider": "p"}]', p_attempt_id => pg_temp.id('1/1'), p_event_at => pg_temp.t0() - interval '1 hour');
  perform pg_temp.at('2 seconds');
  perform routeledger.complete_decision('tap400', pg_temp.d(1), 'succeeded', p_input_tokens => 100, p_output_tokens => 10, p_cost_usd => 0.5);
  perform routeledger.record_payload('tap400', pg_temp.d(1), pg_temp.id('1/1'), '{"q": 1}', '{"a": 2}');
  perform pg_temp.at('0');
  perform routeledger.insert_decision('tap400', pg_temp.d(2), p_candidates => '["a"]');
  perform routeledger.complete_decision('tap400', pg_temp.d(2), 'failed', p_error_type => 'x');
  perform routeledger.insert_decision('tap400', pg_temp.d(3), p_candidates => '["a", "b"]', p_attempt_id => pg_temp.id('3/1'));
  perform routeledger.record_payload('tap400', pg_temp.d(3), pg_temp.id('3/1'), '{"q": 3}');
  perform routeledger.fail_attempt('tap400', pg_temp.d(3), pg_temp.id('3/1'), '404', p_http_status => 404, p_next_attempt_id => pg_temp.id('3/2'));
  perform routeledger.complete_decision('tap400', pg_temp.d(3), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
  perform routeledger.insert_decision('tap400', pg_temp.d(4)); -- rejected
  perform routeledger.insert_decision('tap400', pg_temp.d(5), p_candidates => '["a"]', p_lease => '1 hour'); -- in flight
  perform routeledger.insert_decision('tap400', pg_temp.d(6), p_candidates => '["a"]', p_lease => '1 second');
  perform routeledger.insert_decision('tap400', pg_temp.d(7), p_candidates => '["a"]', p_lease => '1 second');
  perform pg_temp.at('2 seconds');
  perform routeledger.reap(p_tenant_id => 'tap400');
  perform routeledger.complete_decision('tap400', pg_temp.d(7), 'succeeded', p_input_tokens => 1, p_output_tokens => 1); -- late
  perform routeledger.insert_decision('tap400', pg_temp.d(8), p_candidates => '["a"]');
  perform routeledger.complete_decision('tap400', pg_temp.d(8), 'failed', p_decision_rule_override => 'quota_exhausted');
  perform pg_temp.succeed(9);
  perform pg_temp.succeed(10);
  perform pg_temp.succeed(10, 'tap400-other');
end
$$;
set local role routeledger_judge;
select results_eq(
  $$
    select c.tenant_id, pg_temp.n(c.id), c.lease_token is not null, c.attempt_no, c.lease_expires_at, c.inference_id, c.agent_id, c.task_type, c.model_slug,
      c.provider, c.input_tokens, c.output_tokens, c.cost_usd, c.latency_ms, c.event_at, c.traffic_class, c.metadata, c.request, c.response
    from routeledger.claim_judgements('tap400', 'full', '1', 1) c
  $$,
  $$
    values ('tap400', 1, true, 1, pg_temp.t0() + interval '10 minutes 2 seconds', pg_temp.id('1/1'), 'agent', 'chat', 'a', 'p', 100::bigint, 10::bigint,
      0.5::numeric, 2000::double precision, pg_temp.t0() - interval '1 hour', 'shadow', '{"k": 1}'::jsonb, '{"q": 1}'::jsonb, '{"a": 2}'::jsonb)
  $$,
  'a claim brings all that it takes to judge');
select is((select o.judge_status::text from pg_temp.outcome(1) o), 'claimed', 'the outcome is claimed');
select results_eq(
  $$
    select pg_temp.n(c.id), c.inference_id, c.model_slug, c.request, c.response
    from routeledger.claim_judgements('tap400', 'full', '1', 1, p_payloads => true) c
  $$,
  $$ values (3, pg_temp.id('3/2'), 'b', null::jsonb, null::jsonb) $$, 'the attempt that answered, and its payload, not another''s');
select is(pg_temp.claim('full', '1', 1), '{7}', 'what was completed late has an answer as well');
select is(pg_temp.claim('full', '1'), '{9,10}', 'nothing that failed, was rejected or abandoned, or is in flight: the rest, oldest first');
select is(pg_temp.claim('full', '1'), '{}', 'and each once');
select is(
  (select string_agg(pg_temp.n(o.id) || ' ' || o.judge_status, ', ' order by o.id)
   from generate_series(1, 10) n cross join pg_temp.outcome(n) o where o.judge_status <> 'claimed'),
  '2 unlabeled, 4 unlabeled, 5 unlabeled, 6 unlabeled, 8 unlabeled', 'what is not for judges stays as it was');
select is((select o.judge_status::text from pg_temp.outcome(10, 'tap400-other') o), 'unlabeled', 'and another tenant''s');
select results_eq(
  $$ select pg_temp.n(c.id), c.request, c.response from routeledger.claim_judgements('tap400', 'bare', '1', 1, p_payloads => false) c $$,
  $$ values (1, null::jsonb, null::jsonb) $$, 'without the payload, if asked so');
select is(pg_temp.claim('day', '1', p_from => (pg_temp.t0() at time zone 'UTC')::date + 1), '{}', 'decided from a day on');
select is(pg_temp.claim('day', '1', p_from => (pg_temp.t0() at time zone 'UTC')::date, p_limit => 1, p_lease => '3 hours'), '{1}', 'that day included');
select is(
  (select h.lease_expires_at from held h where h.judge = 'day'), pg_temp.t0() + interval '3 hours 2 seconds', 'for as long as asked');

-- every version of every judge is given each outcome
select is(pg_temp.claim('full', '2'), '{1,3,7,9,10}', 'another version of a judge gets them all');
select is(pg_temp.claim('other', '1', 2), '{1,3}', 'so does another judge');
select is(pg_temp.claim('other', '1', 2), '{7,9}', 'part by part');
select is(pg_temp.claim('other', '1', 2), '{10}', 'to the last');
select is((select count(distinct h.token) from held h), (select count(*) from held h), 'no two of them have one token');
reset role;
do $$ begin perform pg_temp.succeed(11); perform pg_temp.succeed(12); end $$;
set local role routeledger_judge;
select is(pg_temp.claim('full', '1'), '{11,12}', 'what is new comes at once, to the first who asks');
select is(pg_temp.claim('other', '1'), '{}', 'others have just looked');
do $$ begin perform pg_temp.at('61 seconds'); end $$;
select is(pg_temp.claim('other', '1'), '{}', 'and look again');
do $$ begin perform pg_temp.at('62 seconds'); end $$;
select is(pg_temp.claim('other', '1'), '{11,12}', 'when it is time');
reset role;
do $$
begin
  perform routeledger.configure('{"judge_look_every": "0"}');
  perform pg_temp.at('50 minutes');
  perform pg_temp.succeed(3000); -- 50 minutes after t0
  perform pg_temp.succeed(60);
  perform pg_temp.at('90 minutes');
end
$$;
set local role routeledger_judge;
select is(pg_temp.claim('late', '1', 1000, p_lease => '24 hours'), '{60,3000,1,3,7,9,10,11,12}', 'what nobody has comes first');
reset role;
do $$
begin
  perform pg_temp.succeed(20); -- an old one, which comes late
  perform pg_temp.succeed(3300);
  perform pg_temp.at('110 minutes');
end
$$;
set local role routeledger_judge;
select is(pg_temp.claim('early', '1', 2, p_lease => '24 hours'), '{20,3300}', 'somebody takes the new');
select is(pg_temp.claim('late', '1', p_lease => '24 hours'), '{20,3300}', 'a search goes back to what others have taken since');
reset role;
do $$
declare
  v_n integer;
begin
  foreach v_n in array array[30, 3400] loop
    perform pg_temp.succeed(v_n);
    perform routeledger.record_verdict('tap400', pg_temp.d(v_n), 'someone', '1', 1, p_reward_source => 'human');
  end loop;
  perform pg_temp.at('115 minutes');
end
$$;
set local role routeledger_judge;
select is(pg_temp.claim('late', '1', p_lease => '24 hours'), '{3400}', 'what was labelled without a claim it finds a while before the last one stopped');
do $$ begin perform pg_temp.at('25 hours 29 minutes'); end $$;
select is(pg_temp.claim('late', '1', p_lease => '24 hours'), '{}', 'for a day');
do $$ begin perform pg_temp.at('25 hours 30 minutes'); end $$;
select is(pg_temp.claim('late', '1', 1, p_lease => '24 hours'), '{1}', 'its own leases that ran out come first');
select is(pg_temp.claim('late', '1', 1000, p_lease => '24 hours'), '{3,7,9,10,11,12,60,3000,30}', 'then it searches from the beginning, and finds what it has missed');

-- a search of more than a thousand
reset role;
do $$
begin
  perform pg_temp.at('0');
  perform routeledger.record_outcomes((
    select jsonb_agg(jsonb_build_object('tenant_id', 'tap400m', 'id', pg_temp.d(n), 'attempts', jsonb_build_array(jsonb_build_object(
      'model_slug', 'a', 'status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1)))) from generate_series(1, 1001) n));
  perform routeledger.record_verdicts((
    select jsonb_agg(jsonb_build_object('tenant_id', 'tap400m', 'id', pg_temp.d(n), 'judge', 'someone', 'judge_version', '1', 'score', 1))
    from generate_series(1, 1001) n));
end
$$;
set local role routeledger_judge;
select is(pg_temp.claim('many', '1', 1000, 'tap400m'), array(select generate_series(1, 1000)), 'a search finds a thousand at a time');
select is(pg_temp.claim('many', '1', 1000, 'tap400m'), '{1001}', 'and the next goes on from there');
select is(pg_temp.claim('many', '1', 1000, 'tap400m'), '{}', 'to the end');

-- where the outcomes begin that nobody has seen
create function pg_temp.claimf(p_limit integer) returns integer[]
language sql volatile
as $$ select pg_temp.claim('j', '1', p_limit, 'tap400f') $$;
do $$ begin for i in 10 .. 16 loop perform pg_temp.succeed(i, 'tap400f'); end loop; end $$;
select is(pg_temp.claimf(2), '{10,11}', 'claims begin at the oldest');
do $$ begin perform pg_temp.at('1 second'); perform pg_temp.succeed(1, 'tap400f'); end $$;
select is(pg_temp.claimf(1), '{12}', 'go on from there');
select is(pg_temp.claimf(1), '{13}', 'for a minute');
do $$ begin perform pg_temp.at('60 seconds'); end $$;
select is(pg_temp.claimf(1), '{1}', 'and then at the beginning, at which something older may have come');
do $$ begin perform pg_temp.at('61 seconds'); end $$;
select is(pg_temp.claimf(1), '{14}', 'on from there');
do $$ begin perform pg_temp.at('62 seconds'); perform pg_temp.succeed(2, 'tap400f'); end $$;
select is(pg_temp.claimf(3), '{2,15,16}', 'or sooner, if they find too little');

-- leases that run out
reset role;
do $$
begin
  perform routeledger.configure('{"judge_look_every": "1 minute"}');
  perform pg_temp.at('0');
  for i in 1 .. 4 loop perform pg_temp.succeed(i, 'tap400x'); end loop;
end
$$;
create function pg_temp.claimx(p_limit integer default 10) returns integer[]
language sql volatile
as $$ select pg_temp.claim('j', '1', p_limit, 'tap400x') $$;
create function pg_temp.statusx(n integer) returns text
language sql stable
as $$ select o.judge_status::text from pg_temp.outcome(n, 'tap400x') o $$;
set local role routeledger_judge;
select is(pg_temp.claimx(3), '{1,2,3}', 'three are leased');
do $$ begin perform pg_temp.at('5 minutes'); end $$;
select is(pg_temp.claimx(1), '{4}', 'one later');
do $$ begin perform pg_temp.at('9 minutes 59.999 seconds'); end $$;
select is(pg_temp.claimx(), '{}', 'until a lease runs out nobody else gets the outcome');
do $$ begin perform pg_temp.at('10 minutes'); end $$;
select results_eq(
  $$ select pg_temp.n(c.id), c.attempt_no, c.lease_expires_at, c.lease_token <> pg_temp.token(1, 'j', '1') from routeledger.claim_judgements('tap400x', 'j', '1', 1) c $$,
  $$ values (1, 2, pg_temp.t0() + interval '20 minutes', true) $$, 'then the next claim takes it, as a second attempt, with a token of its own');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400x', pg_temp.d(1), 'j', '1', pg_temp.token(1, 'j', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'its first token is worth nothing now');
select throws_ok(
  $$ select routeledger.release_judgement('tap400x', pg_temp.d(1), 'j', '1', pg_temp.token(1, 'j', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'in no way');
select lives_ok(
  $$ select routeledger.renew_judgement('tap400x', pg_temp.d(2), 'j', '1', pg_temp.token(2, 'j', '1')) $$, 'what nobody has taken is still its holder''s');
select is(pg_temp.claimx(), '{3}', 'and renewed it is not taken');
do $$ begin perform pg_temp.at('20 minutes'); end $$;
select is(pg_temp.claim('j', '1', 10, 'tap400x', (pg_temp.t0() at time zone 'UTC')::date + 1), '{}', 'what is asked for from a later day on is not these');
select is(pg_temp.claimx(), '{4,1,2,3}', 'what ran out first comes first');
select results_eq(
  $$ select h.n, h.attempt_no from held h where h.lease_expires_at = pg_temp.t0() + interval '30 minutes' order by 1 $$,
  $$ values (1, 3), (2, 2), (3, 3), (4, 2) $$, 'attempts are counted');
do $$ begin perform pg_temp.at('30 minutes'); end $$;
select is(pg_temp.claimx(), '{2,4}', 'up to the last of them');
select results_eq(
  $$ select pg_temp.n(v.outcome_id), v.judge, v.judge_version, v.inference_id = pg_temp.id(pg_temp.n(v.outcome_id) || '/1'), v.model_slug, v.score, v.usable,
    v.label, v.rationale, v.reward_source, v.attempt_no, v.recorded_at, v.withdrawn_at from pg_temp.verdictsx() v $$,
  $$
    values
      (1, 'j', '1', true, 'a', null::double precision, false, 'cannot_evaluate', 'the lease ran out', 'judge', 3, pg_temp.t0() + interval '30 minutes', null::timestamptz),
      (3, 'j', '1', true, 'a', null, false, 'cannot_evaluate', 'the lease ran out', 'judge', 3, pg_temp.t0() + interval '30 minutes', null)
  $$,
  'after it there is a verdict that says so');
select results_eq(
  $$ select o.judge_status::text, o.reward, o.reward_source from pg_temp.outcome(1, 'tap400x') o $$,
  $$ values ('cannot_evaluate', null::double precision, null::text) $$, 'and the outcome is without a label');
do $$ begin perform pg_temp.at('2 hours'); end $$;
select throws_ok(
  $$ select routeledger.renew_judgement('tap400x', pg_temp.d(1), 'j', '1', pg_temp.token(1, 'j', '1', 3)) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'the third holder is late too');
select is(pg_temp.claimx(), '{}', 'that judge version does not see it again, nor what it has failed three times since');
select is((select count(*) from pg_temp.verdictsx() v where v.label = 'cannot_evaluate'), 4::bigint, 'which has its verdict now');
select is(pg_temp.claim('j', '2', 10, 'tap400x'), '{1,2,3,4}', 'the next one does');
select is(pg_temp.statusx(1), 'claimed', 'and the outcome is claimed again');

-- renewing
reset role;
do $$
begin
  perform pg_temp.at('0');
  for i in 1 .. 9 loop perform pg_temp.succeed(i, 'tap400r'); end loop;
end
$$;
create function pg_temp.claimr(p_limit integer default 10, p_judge text default 'j') returns integer[]
language sql volatile
as $$ select pg_temp.claim(p_judge, 'r', p_limit, 'tap400r') $$;
create function pg_temp.t(n integer) returns uuid
language sql stable
as $$ select pg_temp.token(n, 'j', 'r') $$;
create function pg_temp.statusr(n integer) returns text
language sql stable
as $$ select o.judge_status::text from pg_temp.outcome(n, 'tap400r') o $$;
set local role routeledger_judge;
select is(pg_temp.claimr(2), '{1,2}', 'two are leased');
do $$ begin perform pg_temp.at('4 minutes'); end $$;
select results_eq(
  $$ select pg_temp.n(r.id), r.lease_expires_at from routeledger.renew_judgement('tap400r', pg_temp.d(1), 'j', 'r', pg_temp.t(1)) r $$,
  $$ values (1, pg_temp.t0() + interval '14 minutes') $$, 'a lease is renewed from now on, by the length of the settings');
select is(
  (select r.lease_expires_at from routeledger.renew_judgement('tap400r', pg_temp.d(1), 'j', 'r', pg_temp.t(1), '1 hour') r),
  pg_temp.t0() + interval '64 minutes', 'or by the length given');
select is(
  (select r.lease_expires_at from routeledger.renew_judgement('tap400r', pg_temp.d(1), 'j', 'r', pg_temp.t(1), '1 second') r),
  pg_temp.t0() + interval '64 minutes', 'it is never shortened');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400r', pg_temp.d(1), 'j', 'r', gen_random_uuid()) $$, 'RL402', 'another judge, or nobody, holds this claim now',
  'with any other token it is not renewed');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400r', pg_temp.d(1), 'j', 's', pg_temp.t(1)) $$, 'RL402', 'another judge, or nobody, holds this claim now',
  'nor for another version');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400r', pg_temp.d(2), 'j', 'r', pg_temp.t(1)) $$, 'RL402', 'another judge, or nobody, holds this claim now',
  'nor that of another outcome');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400r', pg_temp.d(3), 'j', 'r', pg_temp.t(1)) $$, 'RL402', 'another judge, or nobody, holds this claim now',
  'nor where nothing is claimed');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400r', pg_temp.d(99), 'j', 'r', pg_temp.t(1)) $$, 'RL201', 'there is no such decision', 'nor where nothing was decided');
select throws_ok(
  $$ select routeledger.renew_judgement('tap400-other', pg_temp.d(1), 'j', 'r', pg_temp.t(1)) $$, 'RL201', 'there is no such decision', 'or by another tenant');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.renew_judgement('tap400r', pg_temp.d(3), 'j', 'r', pg_temp.t(1)) $$) c),
  jsonb_build_object('tenant_id', 'tap400r', 'id', pg_temp.d(3), 'judge', 'j', 'judge_version', 'r'), 'DETAIL says what was asked for');

-- giving back
select is(pg_temp.claimr(2), '{3,4}', 'two more');
select results_eq(
  $$ select pg_temp.n(r.id), r.judge_status, r.available_at from routeledger.release_judgement('tap400r', pg_temp.d(3), 'j', 'r', pg_temp.t(3)) r $$,
  $$ values (3, 'unlabeled', pg_temp.t0() + interval '4 minutes') $$, 'what is given back untouched is as it was before');
select throws_ok(
  $$ select routeledger.release_judgement('tap400r', pg_temp.d(3), 'j', 'r', pg_temp.t(3)) $$, 'RL402', 'another judge, or nobody, holds this claim now', 'once');
select is(pg_temp.claimr(1, 'k'), '{3}', 'another judge finds it');
select is((select h.attempt_no from held h where h.judge = 'k'), 1, 'for the first time');
select is(pg_temp.claimr(1), '{3}', 'and so does the judge who had it');
select is((select array_agg(h.attempt_no) from held h where h.judge = 'j' and h.judge_version = 'r' and h.n = 3), '{1,1}', 'as a first attempt once more');
select results_eq(
  $$
    select r.judge_status, r.available_at
    from routeledger.release_judgement('tap400r', pg_temp.d(4), 'j', 'r', pg_temp.t(4), p_delay => '30 seconds') r
  $$,
  $$ values ('unlabeled', pg_temp.t0() + interval '4 minutes 30 seconds') $$, 'if asked so, not before some time');
select is(pg_temp.claimr(1), '{5}', 'until when this judge is not given it');
select is(pg_temp.claimr(1, 'k'), '{4}', 'but others are');
do $$ begin perform pg_temp.at('4 minutes 30 seconds'); end $$;
select is(pg_temp.claimr(1), '{4}', 'then it is');
select results_eq(
  $$
    select r.judge_status, r.available_at from routeledger.release_judgement('tap400r', pg_temp.d(5), 'j', 'r', pg_temp.t(5), 'no answer') r
  $$,
  $$ values ('claimed', pg_temp.t0() + interval '5 minutes 30 seconds') $$, 'after an error it waits as long as the settings say, and stays claimed');
do $$ begin perform pg_temp.at('5 minutes 29 seconds'); end $$;
select is(pg_temp.claimr(1), '{6}', 'while others come first');
do $$ begin perform pg_temp.at('5 minutes 30 seconds'); end $$;
select is(pg_temp.claimr(1), '{5}', 'then it comes');
select is(
  (select r.available_at from routeledger.release_judgement('tap400r', pg_temp.d(5), 'j', 'r', pg_temp.t(5), 'still none', '0') r),
  pg_temp.t0() + interval '5 minutes 30 seconds', 'again, at once');
select is(pg_temp.claimr(1), '{5}', 'a third time');
select is((select max(h.attempt_no) from held h where h.judge = 'j' and h.n = 5), 3, 'and the last');
select is(
  (select r.judge_status from routeledger.release_judgement('tap400r', pg_temp.d(5), 'j', 'r', pg_temp.t(5)) r), 'claimed', 'which does not count if it was not used');
select is(pg_temp.claimr(1), '{5}', 'so there is one more');
select is((select max(h.attempt_no) from held h where h.judge = 'j' and h.n = 5), 3, 'of the same number');
select results_eq(
  $$
    select pg_temp.n(r.id), r.judge_status, r.available_at
    from routeledger.release_judgement('tap400r', pg_temp.d(5), 'j', 'r', pg_temp.t(5), repeat('x', 9000), '1 hour') r
  $$,
  $$ values (5, 'cannot_evaluate', null::timestamptz) $$, 'an error in the last attempt ends it');
select results_eq(
  $$ select v.score, v.usable, v.label, v.rationale, v.attempt_no from pg_temp.verdictsr(5) v $$,
  $$ values (null::double precision, false, 'cannot_evaluate', repeat('x', 8150) || ' [cut from 9000 characters]', 3) $$, 'with a verdict that has the error');
reset role;
select is_empty($$ select * from routeledger.judge_leases l where l.tenant_id = 'tap400r' and l.outcome_id = pg_temp.d(5) $$, 'and no lease');
set local role routeledger_judge;
do $$
begin
  perform routeledger.release_judgement('tap400r', pg_temp.d(6), 'j', 'r', pg_temp.t(6), 'first', '0');
  perform pg_temp.claimr(1);
  perform pg_temp.at('2 hours'); -- the second runs out
  perform pg_temp.claimr(1000);
  perform pg_temp.at('4 hours'); -- and all that there were
  perform pg_temp.claimr(1000);
end
$$;
select is((select v.rationale from pg_temp.verdictsr(6) v), 'first', 'a lease that runs out keeps what went wrong before');
reset role;
do $$ begin perform routeledger.configure('{"judge_max_attempts": 1}'); perform pg_temp.at('5 hours'); perform pg_temp.succeed(10, 'tap400r'); end $$;
set local role routeledger_judge;
select is(pg_temp.claimr(1000), '{10}', 'what has used up its attempts by now is ended first');
select is(
  (select r.judge_status from routeledger.release_judgement('tap400r', pg_temp.d(10), 'j', 'r', pg_temp.t(10), 'x') r), 'cannot_evaluate', 'one attempt may be all');
reset role;
do $$ begin perform routeledger.configure('{"judge_max_attempts": 3}'); end $$;

-- the set forms
do $$ begin perform pg_temp.at('0'); for i in 1 .. 6 loop perform pg_temp.succeed(i, 'tap400s'); end loop; end $$;
create function pg_temp.s(n integer, p_more jsonb default '{}') returns jsonb
language sql stable
as $$
  select jsonb_build_object('tenant_id', 'tap400s', 'id', pg_temp.d(n), 'judge', 'j', 'judge_version', 's', 'lease_token', pg_temp.token(n, 'j', 's')) || p_more
$$;
set local role routeledger_judge;
do $$ begin perform pg_temp.claim('j', 's', 5, 'tap400s'); perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', pg_temp.n(r.id), r.lease_expires_at
    from routeledger.renew_judgements(jsonb_build_array(
      pg_temp.s(3, '{"lease": "1 hour"}'), pg_temp.s(1), pg_temp.s(3), pg_temp.s(6), pg_temp.s(99), pg_temp.s(2, '{"lease": "0"}'), pg_temp.s(2, '{"lease": "soon"}'),
      pg_temp.s(2, '{"judge": null}'), pg_temp.s(2, '{"tenant_id": "tap400-other"}'), pg_temp.s(2, '{"lease_token": null}'), '5'::jsonb,
      pg_temp.s(2, '{"colour": "blue"}'))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, null::text, 3, pg_temp.t0() + interval '61 minutes'), (2, 'accepted', null, null, 1, pg_temp.t0() + interval '11 minutes'),
      (3, 'replayed', null, null, 3, pg_temp.t0() + interval '61 minutes'), (4, 'refused', 'RL101', 'lease_token', null, null), (5, 'refused', 'RL101', 'lease_token', null, null),
      (6, 'refused', 'RL103', 'lease', null, null), (7, 'refused', 'RL107', 'row', null, null), (8, 'refused', 'RL101', 'judge', null, null),
      (9, 'refused', 'RL201', null, null, null), (10, 'refused', 'RL101', 'lease_token', null, null), (11, 'refused', 'RL107', 'row', null, null),
      (12, 'refused', 'RL107', 'colour', null, null)
  $$,
  'many renewals: an answer each, in the order given');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', pg_temp.n(r.id), r.judge_status, r.available_at
    from routeledger.release_judgements(jsonb_build_array(
      pg_temp.s(4), pg_temp.s(4), pg_temp.s(1, '{"error": "no", "delay": "5 minutes"}'), pg_temp.s(3, '{"error": ""}'), pg_temp.s(3, '{"delay": "-1 second"}'),
      pg_temp.s(3, '{"lease_token": "3f2b8c1e-7d54-4e0a-9b6f-2a1c5d7e9f00"}'), pg_temp.s(99, '{"lease_token": "3f2b8c1e-7d54-4e0a-9b6f-2a1c5d7e9f00"}'), '[]'::jsonb)) r
  $$,
  $$
    values
      (1, 'accepted', null::text, null::text, 4, 'unlabeled', pg_temp.t0() + interval '1 minute'), (2, 'refused', 'RL402', null, null, null, null),
      (3, 'accepted', null, null, 1, 'claimed', pg_temp.t0() + interval '6 minutes'), (4, 'refused', 'RL101', 'error', null, null, null),
      (5, 'refused', 'RL103', 'delay', null, null, null), (6, 'refused', 'RL402', null, null, null, null), (7, 'refused', 'RL201', null, null, null, null),
      (8, 'refused', 'RL107', 'row', null, null, null)
  $$,
  'many given back: likewise');
select is_empty(
  $$
    select r.ord, r.message, e.message, r.hint
    from (select * from routeledger.release_judgements(jsonb_build_array(pg_temp.s(4), pg_temp.s(99)))
          union all select r.ord, r.status, r.code, r.message, r.detail, r.hint, r.id, null, null from routeledger.renew_judgements(jsonb_build_array(pg_temp.s(4), pg_temp.s(99))) r) r
    left join routeledger.errors() e on e.code = r.code
    where (r.message, r.hint) is distinct from (e.message, e.hint)
  $$,
  'with the words of errors()');
select is_empty($$ select * from routeledger.renew_judgements('[]') $$, 'none: no answers');
select is_empty($$ select * from routeledger.release_judgements('[]') $$, 'nor of the other');
select throws_ok($$ select routeledger.renew_judgements(null) $$, 'RL101', 'a required argument is missing', 'null');
select throws_ok($$ select routeledger.release_judgements('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'no array');

-- tenants
reset role;
do $$
begin
  perform routeledger.grant_tenant('tap400_bound', 'tap400t1');
  perform routeledger.grant_tenant('tap400_bound', 'tap400t2');
  for i in 1 .. 3 loop
    perform pg_temp.succeed(i, 'tap400t1');
    perform pg_temp.succeed(i, 'tap400t2');
    perform pg_temp.succeed(i, 'tap400t3');
  end loop;
end
$$;
set local role tap400_bound;
select throws_ok(
  $$ select routeledger.claim_judgements('tap400t3', 'j', 't') $$, 'RL110', 'this role is bound to other tenants', 'a bound role claims nothing of another tenant');
select is(cardinality(pg_temp.claim('j', 't', 5, null)), 5, 'without a tenant it claims from its own');
select is(cardinality(pg_temp.claim('j', 't', 5, null)), 1, 'from all of them');
select results_eq(
  $$ select h.tenant_id, count(*) from held h where h.judge_version = 't' group by 1 order by 1 $$,
  $$ values ('tap400t1', 3::bigint), ('tap400t2', 3::bigint) $$, 'and from no other');
select is_empty(
  $$
    select c.code, c.detail
    from unnest(array[
      $x$ select routeledger.renew_judgement('tap400t3', pg_temp.d(1), 'j', 't', gen_random_uuid()) $x$,
      $x$ select routeledger.release_judgement('tap400t3', pg_temp.d(1), 'j', 't', gen_random_uuid()) $x$]) s
    cross join lateral pg_temp.caught(s) c
    where c.code is distinct from 'RL110'
  $$,
  'nor does it renew or give back');
set local role routeledger_judge;
do $$ begin for i in 1 .. 3 loop perform pg_temp.claim('all', 't', 1000, null); end loop; end $$;
select is(
  (select array_agg(distinct h.tenant_id order by h.tenant_id) from held h where h.judge = 'all' and h.tenant_id like 'tap400t%'),
  array['tap400t1', 'tap400t2', 'tap400t3'], 'one that is not bound claims from all');

-- what cannot be
create temp table wrong (call text, code text, parameter text);
insert into wrong values
  ('claim_judgements('''', ''j'', ''1'')', 'RL101', 'tenant_id'), ('claim_judgements(repeat(''x'', 201), ''j'', ''1'')', 'RL108', 'tenant_id'),
  ('claim_judgements(''t'', null, ''1'')', 'RL101', 'judge'), ('claim_judgements(''t'', '''', ''1'')', 'RL101', 'judge'),
  ('claim_judgements(''t'', repeat(''x'', 201), ''1'')', 'RL108', 'judge'), ('claim_judgements(''t'', ''j'', null)', 'RL101', 'judge_version'),
  ('claim_judgements(''t'', ''j'', '''')', 'RL101', 'judge_version'), ('claim_judgements(''t'', ''j'', repeat(''x'', 201))', 'RL108', 'judge_version'),
  ('claim_judgements(''t'', ''j'', ''1'', null)', 'RL101', 'limit'), ('claim_judgements(''t'', ''j'', ''1'', 0)', 'RL103', 'limit'),
  ('claim_judgements(''t'', ''j'', ''1'', 1001)', 'RL103', 'limit'), ('claim_judgements(''t'', ''j'', ''1'', p_lease => ''999 milliseconds'')', 'RL103', 'lease'),
  ('claim_judgements(''t'', ''j'', ''1'', p_lease => ''24 hours 1 second'')', 'RL103', 'lease'),
  ('claim_judgements(''t'', ''j'', ''1'', p_from => ''infinity'')', 'RL109', 'from'), ('claim_judgements(''t'', ''j'', ''1'', p_from => ''1969-12-31'')', 'RL109', 'from'),
  ('claim_judgements(''t'', ''j'', ''1'', p_payloads => null)', 'RL101', 'payloads'),
  ('renew_judgement(null, pg_temp.d(1), ''j'', ''1'', pg_temp.d(1))', 'RL101', 'tenant_id'), ('renew_judgement(''t'', null, ''j'', ''1'', pg_temp.d(1))', 'RL101', 'id'),
  ('renew_judgement(''t'', gen_random_uuid(), ''j'', ''1'', pg_temp.d(1))', 'RL104', 'id'), ('renew_judgement(''t'', pg_temp.d(1), null, ''1'', pg_temp.d(1))', 'RL101', 'judge'),
  ('renew_judgement(''t'', pg_temp.d(1), ''j'', null, pg_temp.d(1))', 'RL101', 'judge_version'), ('renew_judgement(''t'', pg_temp.d(1), ''j'', ''1'', null)', 'RL101', 'lease_token'),
  ('renew_judgement(''t'', pg_temp.d(1), ''j'', ''1'', pg_temp.d(1), ''0'')', 'RL103', 'lease'),
  ('release_judgement(''t'', pg_temp.d(1), ''j'', ''1'', null)', 'RL101', 'lease_token'), ('release_judgement(''t'', pg_temp.d(1), ''j'', ''1'', pg_temp.d(1), '''')', 'RL101', 'error'),
  ('release_judgement(''t'', pg_temp.d(1), ''j'', ''1'', pg_temp.d(1), p_delay => ''25 hours'')', 'RL103', 'delay'),
  ('release_judgement(''t'', pg_temp.d(1), ''j'', ''1'', pg_temp.d(1), p_delay => ''-1 second'')', 'RL103', 'delay');
select is_empty(
  $$
    select w.call, c.code, c.detail from wrong w cross join lateral pg_temp.caught('select routeledger.' || w.call) c
    where c.code is distinct from w.code or c.detail ->> 'parameter' is distinct from w.parameter
  $$,
  'a wrong argument is refused by its name');
reset role;
insert into routeledger.judge_leases (tenant_id, outcome_id, judge, judge_version, attempts, due_at, created_at)
select 'tap400', pg_temp.d(n), 'gone', '1', 0, pg_temp.t0() - v.before, pg_temp.t0()
from (values (1, interval '25 hours'), (5001, interval '25 hours'), (5002, interval '23 hours')) v (n, before);
do $$ begin perform pg_temp.at('0'); perform routeledger.maintain('0'); end $$;
select results_eq(
  $$ select pg_temp.n(l.outcome_id) from pg_temp.leases('gone', '1') l $$, $$ values (1), (5002) $$,
  'maintain() forgets what is long due and gone with its partition');
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap400%' $$, 'and nothing is lost');

select * from finish();
rollback;
