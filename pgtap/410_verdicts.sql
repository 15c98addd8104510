-- 410 · Verdicts: what judges and people say of an outcome. They are added, never overwritten, and can be withdrawn.
begin;
\ir common.psql
create role tap410_bound in role routeledger_admin;
do $$ begin perform routeledger.configure('{"judge_lease": "10 minutes", "judge_max_attempts": 3, "judge_retry_delay": "1 minute",
  "judge_look_every": "0", "judge_look_back": "1 day", "lease": "5 minutes", "retry_jitter": 0}'); end $$;
select plan(109);

-- Decisions are numbered: that of number n is dated n seconds after t0(), or n days before it where n is negative.
create function pg_temp.d(n integer) returns uuid
language sql stable
as $$
  select (lpad(to_hex((extract(epoch from pg_temp.t0()) * 1000)::bigint + n * case when n > 0 then 1000 else 86400000 end), 12, '0')
    || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid
$$;
create function pg_temp.n(p_id uuid) returns integer
language sql stable
as $$ select x from generate_series(-5, 30) x where pg_temp.d(x) = p_id $$;
create function pg_temp.succeed(n integer, p_tenant text default 'tap410', p_model text default 'a') returns void
language plpgsql volatile security definer
as $$
begin
  perform routeledger.insert_decision(p_tenant, pg_temp.d(n), p_task_type => 'chat', p_candidates => jsonb_build_array(p_model), p_attempt_id => pg_temp.id(n || '/1'));
  perform routeledger.complete_decision(p_tenant, pg_temp.d(n), 'succeeded', p_input_tokens => 100, p_output_tokens => 10, p_cost_usd => 0.5);
end
$$;
-- What is said of an outcome, in one line: status, reward and source.
create function pg_temp.label(n integer, p_tenant text default 'tap410') returns text
language sql stable security definer
as $$
  select concat_ws(' ', o.judge_status::text, o.reward::text, o.reward_source) from routeledger.routing_outcomes o where o.tenant_id = p_tenant and o.id = pg_temp.d(n)
$$;
create function pg_temp.verdicts(n integer, p_tenant text default 'tap410') returns setof routeledger.judge_verdicts
language sql stable security definer
as $$
  select * from routeledger.judge_verdicts v where v.tenant_id = p_tenant and v.outcome_id = pg_temp.d(n) order by v.judge, v.judge_version
$$;
create function pg_temp.leases(n integer) returns bigint
language sql stable security definer
as $$ select count(*) from routeledger.judge_leases l where l.tenant_id = 'tap410' and l.outcome_id = pg_temp.d(n) $$;

create temp table held (n integer, judge text, judge_version text, token uuid, i integer generated always as identity);
grant all on held to public;
create function pg_temp.claim(p_judge text, p_version text, p_limit integer default 100, p_tenant text default 'tap410') returns integer[]
language sql volatile
as $$
  with claimed as (
    select c.*, row_number() over () as i from routeledger.claim_judgements(p_tenant, p_judge, p_version, p_limit) c
  ),
  kept as (
    insert into held select pg_temp.n(c.id), p_judge, p_version, c.lease_token from claimed c
  )
  select coalesce(array_agg(pg_temp.n(c.id) order by c.i), '{}') from claimed c
$$;
create function pg_temp.token(n integer, p_judge text, p_version text, p_before integer default 0) returns uuid
language sql stable
as $$
  select h.token from held h where h.n = $1 and h.judge = p_judge and h.judge_version = p_version order by h.i desc offset p_before limit 1
$$;
-- Records a verdict without a token; returns what was said of the outcome then.
create function pg_temp.say(n integer, p_judge text, p_version text, p_score double precision, p_label text default null, p_source text default 'judge',
  p_tenant text default 'tap410') returns text
language sql volatile
as $$
  select concat_ws(' ', r.judge_status, r.reward::text, r.reward_source, case when not r.usable then 'unusable' end, case when not r.created then 'again' end)
  from routeledger.record_verdict(p_tenant, pg_temp.d(n), p_judge, p_version, p_score, p_label, p_reward_source => p_source) r
$$;

select col_is_pk('routeledger', 'verdict_withdrawals_log', array['tenant_id', 'id'], 'withdrawals have an id');
select is(
  (select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
   from pg_attribute a where a.attrelid = 'routeledger.verdict_withdrawals'::regclass and a.attnum > 0),
  'tenant_id text, withdrawal_id uuid, judge text, judge_version text, model_slug text, from_day date, to_day date, reason text, verdicts bigint, '
  'unlabeled bigint, withdrawn_by name, withdrawn_at timestamp with time zone, reinstated_by name, reinstated_at timestamp with time zone', 'and are read in a view');
do $$ begin for i in 1 .. 12 loop perform pg_temp.succeed(i, p_model => case when i % 2 = 0 then 'b' else 'a' end); end loop; end $$;

-- who may
set local role routeledger_reader;
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(1), 'j', '1', 1) $$, '42501', 'permission denied for function record_verdict', 'a reader says nothing');
set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.withdraw_verdicts('tap410', 'j', '1', 'why') $$, '42501', 'permission denied for function withdraw_verdicts', 'a writer withdraws nothing');
set local role routeledger_judge;
select throws_ok(
  $$ select routeledger.withdraw_verdicts('tap410', 'j', '1', 'why') $$, '42501', 'permission denied for function withdraw_verdicts', 'nor does a judge');

-- one verdict
select is(pg_temp.claim('j', '1', 2), '{1,2}', 'two are claimed');
do $$ begin perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$
    select pg_temp.n(r.id), r.usable, r.reward, r.reward_source, r.judge_status, r.created
    from routeledger.record_verdict('tap410', pg_temp.d(1), 'j', '1', 0.8, 'good', 'because', pg_temp.token(1, 'j', '1'), 'judge', 'model/j', 1000, 20, 0.003) r
  $$,
  $$ values (1, true, 0.8::double precision, 'judge', 'labeled', true) $$, 'a verdict is recorded, and says what the outcome is worth now');
select results_eq(
  $$ select v.* from pg_temp.verdicts(1) v $$,
  $$
    values ('tap410', pg_temp.d(1), 'j', '1', pg_temp.id('1/1'), 'a', 'chat', 0.8::double precision, true, 'good', 'because', 'judge', 1, 'model/j', 1000::bigint,
      20::bigint, 0.003, pg_temp.t0() + interval '1 minute', null::uuid, null::timestamptz)
  $$,
  'it is kept with all that is known');
select is(pg_temp.label(1), 'labeled 0.8 judge', 'so is the reward');
select is(pg_temp.leases(1), 0::bigint, 'its lease is over');
do $$ begin perform pg_temp.at('2 minutes'); end $$;
select results_eq(
  $$
    select pg_temp.n(r.id), r.usable, r.reward, r.reward_source, r.judge_status, r.created
    from routeledger.record_verdict('tap410', pg_temp.d(1), 'j', '1', 0.8, 'good', 'because', pg_temp.token(1, 'j', '1'), 'judge', 'model/j', 1000, 20, 0.003) r
  $$,
  $$ values (1, true, 0.8::double precision, 'judge', 'labeled', false) $$, 'the same again says the same');
select is((select v.recorded_at from pg_temp.verdicts(1) v), pg_temp.t0() + interval '1 minute', 'and changes nothing');
select is_empty(
  $$
    select s, c.code
    from unnest(array['0.9, ''good'', ''because''', '0.8, ''bad'', ''because''', '0.8, ''good'', null', '0.8, ''good'', ''because'', null, ''human''',
      '0.8, ''good'', ''because'', p_judge_model => ''other''', '0.8, ''good'', ''because'', null, ''judge'', ''model/j'', 999, 20, 0.003',
      '0.8, ''good'', ''because'', null, ''judge'', ''model/j'', 1000, 21, 0.003', '0.8, ''good'', ''because'', null, ''judge'', ''model/j'', 1000, 20, null', '-1']) s
    cross join lateral pg_temp.caught(format('select routeledger.record_verdict(''tap410'', pg_temp.d(1), ''j'', ''1'', %s)', s)) c
    where c.code is distinct from 'RL314' or c.message <> 'this judge version has given another verdict on this outcome'
      or c.detail ->> 'id' <> pg_temp.d(1)::text or c.detail ->> 'judge_version' <> '1' or c.detail ->> 'recorded_at' is null
  $$,
  'another one is refused, whatever differs');
select is(pg_temp.label(1), 'labeled 0.8 judge', 'which leaves the reward alone');

-- several
select is(pg_temp.say(1, 'j', '2', 0.4), 'labeled 0.6 judge', 'another version of the judge adds its own: the reward is the mean');
select is(pg_temp.say(1, 'k', '1', 0), 'labeled 0.4 judge', 'another judge likewise');
select is(pg_temp.say(1, 'ann', '1', 1, p_source => 'human'), 'labeled 0.55 human', 'a person is one more, and the source is human then');
select is(pg_temp.say(1, 'l', '1', -1), 'labeled 0.55 human unusable', 'one that stands for none is kept, and no part of it');
select is(pg_temp.say(1, 'm', '1', null, 'no_answer'), 'labeled 0.55 human unusable', 'nor is one without a score');
select results_eq(
  $$ select v.judge, v.judge_version, v.score, v.usable, v.label, v.reward_source, v.attempt_no from pg_temp.verdicts(1) v $$,
  $$
    values
      ('ann', '1', 1::double precision, true, null, 'human', null::integer), ('j', '1', 0.8, true, 'good', 'judge', 1), ('j', '2', 0.4, true, null, 'judge', null),
      ('k', '1', 0, true, null, 'judge', null), ('l', '1', -1, false, null, 'judge', null), ('m', '1', null, false, 'no_answer', 'judge', null)
  $$,
  'all of them are there');
select is(pg_temp.say(3, 'j', '1', 0.1), 'labeled 0.1 judge', 'scores are');
select is(pg_temp.say(3, 'j', '2', 0.2), 'labeled 0.15 judge', 'added up');
select is(pg_temp.say(3, 'j', '3', 0.3), 'labeled 0.2 judge', 'exactly');
select is(pg_temp.say(3, 'j', '4', 1e-300), 'labeled 0.15 judge', 'whatever their size');
select is(pg_temp.say(4, 'j', '1', 0), 'labeled 0 judge', 'the worst is no less a label');
select is(pg_temp.say(4, 'j', '2', 1), 'labeled 0.5 judge', 'than the best');

-- none that can be used
select is(pg_temp.say(5, 'j', '1', -1), 'cannot_evaluate unusable', 'an outcome of which nobody can say anything');
select is(pg_temp.say(5, 'ann', '1', null, 'unclear', 'human'), 'cannot_evaluate unusable', 'not even a person, has no reward and no source');
select is(pg_temp.claim('k', '1', 1), '{6}', 'others are asked about it, after what nobody has seen');
select is(pg_temp.say(5, 'ann', '2', 0.5, p_source => 'human'), 'labeled 0.5 human', 'one that can, labels it');

-- tokens
do $$ begin perform pg_temp.claim('t', '1', 3); end $$; -- 7, 8, 9
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(7), 't', '1', 1, p_lease_token => gen_random_uuid()) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'a claim is answered with its token');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(7), 't', '1', 1, p_lease_token => pg_temp.token(8, 't', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'not another''s');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(7), 't', '2', 1, p_lease_token => pg_temp.token(7, 't', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'nor for another version');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(7), 't', '1', 1) $$, 'RL402', 'another judge, or nobody, holds this claim now', 'and while it is out, not without one');
select is(pg_temp.say(7, 'ann', '1', 1, p_source => 'human'), 'labeled 1 human', 'which is no matter to others');
select is(pg_temp.label(7), 'labeled 1 human', 'and an outcome that is labelled and claimed is labelled');
select is(pg_temp.say(8, 'ann', '1', -1, p_source => 'human'), 'claimed unusable', 'one that is not, is claimed');
do $$ begin perform pg_temp.at('1 hour'); end $$;
select is(
  (select r.judge_status || ' ' || r.created from routeledger.record_verdict('tap410', pg_temp.d(7), 't', '1', 0.5, p_lease_token => pg_temp.token(7, 't', '1')) r),
  'labeled true', 'a lease that ran out is good as long as nobody else has it');
select is(pg_temp.claim('t', '1', 2), '{8,9}', 'then somebody has');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(8), 't', '1', 0.5, p_lease_token => pg_temp.token(8, 't', '1', 1)) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'and who is late has lost it');
select is(pg_temp.label(8), 'claimed', 'nothing is changed by that');
select is(
  (select r.judge_status || ' ' || r.created from routeledger.record_verdict('tap410', pg_temp.d(8), 't', '1', 0.5, p_lease_token => pg_temp.token(8, 't', '1')) r),
  'labeled true', 'who has it now, answers');
select is((select v.attempt_no from pg_temp.verdicts(8) v where v.judge = 't'), 2, 'at the second attempt');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(8), 't', '1', 0.4, p_lease_token => pg_temp.token(8, 't', '1', 1)) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'the late one is told that its claim is lost');
select is(
  (select r.created from routeledger.record_verdict('tap410', pg_temp.d(8), 't', '1', 0.5, p_lease_token => pg_temp.token(8, 't', '1', 1)) r), false,
  'unless it says what has been said');
do $$ begin perform pg_temp.at('2 hours'); end $$;
select is(pg_temp.say(9, 't', '1', 0.3), 'labeled 0.3 judge', 'without a token one that ran out does not stand in the way');
select is((select v.attempt_no from pg_temp.verdicts(9) v), 2, 'it is the answer to it');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(9), 't', '1', 0.4, p_lease_token => pg_temp.token(9, 't', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'whose holder is late');
do $$
begin
  perform pg_temp.claim('u', '1', 1); -- 10
  perform routeledger.release_judgement('tap410', pg_temp.d(10), 'u', '1', pg_temp.token(10, 'u', '1'));
end
$$;
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(10), 'u', '1', 1, p_lease_token => pg_temp.token(10, 'u', '1')) $$, 'RL402',
  'another judge, or nobody, holds this claim now', 'what was given back is not answered');
select is(pg_temp.say(10, 'u', '1', 1), 'labeled 1 judge', 'but as anything else');
select is((select v.attempt_no from pg_temp.verdicts(10) v), null, 'at no attempt');

-- what cannot be judged
reset role;
do $$
begin
  perform pg_temp.at('0');
  perform routeledger.insert_decision('tap410', pg_temp.d(21)); -- rejected
  perform routeledger.insert_decision('tap410', pg_temp.d(22), p_candidates => '["a"]');
  perform routeledger.complete_decision('tap410', pg_temp.d(22), 'failed', p_error_type => 'x');
  perform routeledger.insert_decision('tap410', pg_temp.d(23), p_candidates => '["a"]', p_lease => '1 second');
  perform pg_temp.at('1 minute');
  perform routeledger.reap(p_tenant_id => 'tap410');
  perform routeledger.insert_decision('tap410', pg_temp.d(24), p_candidates => '["a"]');
end
$$;
set local role routeledger_judge;
select results_eq(
  $$
    select n, c.code, c.message, c.detail ->> 'outcome_status'
    from generate_series(21, 24) n
    cross join lateral pg_temp.caught(format('select routeledger.record_verdict(''tap410'', pg_temp.d(%s), ''j'', ''1'', 1)', n)) c
  $$,
  $$
    select n, 'RL315', 'only an outcome that succeeded and is linked can be judged', s
    from (values (21, 'rejected'), (22, 'failed'), (23, 'abandoned'), (24, null)) x (n, s)
  $$,
  'only a success is judged: not what was rejected, failed, abandoned or is in flight');
select throws_ok(
  $$ select routeledger.record_verdict('tap410', pg_temp.d(29), 'j', '1', 1) $$, 'RL201', 'there is no such decision', 'nor what was never decided');
select throws_ok(
  $$ select routeledger.record_verdict('tap410-other', pg_temp.d(1), 'j', '1', 1) $$, 'RL201', 'there is no such decision', 'or by another tenant');

-- what cannot be said
create temp table wrong (call text, code text, parameter text);
insert into wrong values
  ('null, pg_temp.d(2), ''j'', ''1'', 1', 'RL101', 'tenant_id'), (''''', pg_temp.d(2), ''j'', ''1'', 1', 'RL101', 'tenant_id'),
  ('''t'', null, ''j'', ''1'', 1', 'RL101', 'id'), ('''t'', gen_random_uuid(), ''j'', ''1'', 1', 'RL104', 'id'),
  ('''t'', pg_temp.d(2), null, ''1'', 1', 'RL101', 'judge'), ('''t'', pg_temp.d(2), repeat(''x'', 201), ''1'', 1', 'RL108', 'judge'),
  ('''t'', pg_temp.d(2), ''j'', '''', 1', 'RL101', 'judge_version'), ('''t'', pg_temp.d(2), ''j'', repeat(''x'', 201), 1', 'RL108', 'judge_version'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1.0000000001', 'RL103', 'score'), ('''t'', pg_temp.d(2), ''j'', ''1'', -0.0000000001', 'RL103', 'score'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', -2', 'RL103', 'score'), ('''t'', pg_temp.d(2), ''j'', ''1'', ''NaN''', 'RL103', 'score'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', ''Infinity''', 'RL103', 'score'), ('''t'', pg_temp.d(2), ''j'', ''1'', ''-Infinity''', 'RL103', 'score'),
  ('''t'', pg_temp.d(2), ''j'', ''1''', 'RL101', 'score'), ('''t'', pg_temp.d(2), ''j'', ''1'', 1, ''''', 'RL101', 'label'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1, repeat(''x'', 201)', 'RL108', 'label'), ('''t'', pg_temp.d(2), ''j'', ''1'', 1, null, repeat(''x'', 20001)', 'RL108', 'rationale'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_reward_source => ''withdrawn''', 'RL102', 'reward_source'), ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_judge_model => ''''', 'RL101', 'judge_model'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_judge_model => repeat(''x'', 301)', 'RL108', 'judge_model'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_input_tokens => -1', 'RL103', 'input_tokens'), ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_output_tokens => -1', 'RL103', 'output_tokens'),
  ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_cost_usd => -1', 'RL103', 'cost_usd'), ('''t'', pg_temp.d(2), ''j'', ''1'', 1, p_cost_usd => ''NaN''', 'RL103', 'cost_usd');
select is_empty(
  $$
    select w.call, c.code, c.detail from wrong w cross join lateral pg_temp.caught(format('select routeledger.record_verdict(%s)', w.call)) c
    where c.code is distinct from w.code or c.detail ->> 'parameter' is distinct from w.parameter
  $$,
  'a wrong argument is refused by its name');
select is(pg_temp.say(11, 'zero', '1', '-0'), 'labeled 0 judge', 'nothing is nothing');
select is(pg_temp.say(11, 'zero', '1', '0'), 'labeled 0 judge again', 'whatever its sign');
set local role routeledger_writer;
select is(pg_temp.say(12, 'bob', '1', 1, p_source => 'human'), 'labeled 1 human', 'a writer records what people say');

-- the set form
reset role;
do $$ begin for i in 1 .. 8 loop perform pg_temp.succeed(i, 'tap410s'); end loop; end $$;
create function pg_temp.s(n integer, p_judge text, p_more jsonb default '{"score": 1}') returns jsonb
language sql stable
as $$ select jsonb_build_object('tenant_id', 'tap410s', 'id', pg_temp.d(n), 'judge', p_judge, 'judge_version', '1') || p_more $$;
set local role routeledger_judge;
select is(pg_temp.claim('s', '1', 3, 'tap410s'), '{1,2,3}', 'three are claimed');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', pg_temp.n(r.id), r.usable, r.reward, r.reward_source, r.judge_status
    from routeledger.record_verdicts(jsonb_build_array(
      pg_temp.s(3, 's', jsonb_build_object('score', 0.25, 'lease_token', pg_temp.token(3, 's', '1'))),
      pg_temp.s(4, 'x', '{"score": 1}'), pg_temp.s(4, 'y', '{"score": 0, "reward_source": "human"}'), pg_temp.s(4, 'x', '{"score": 1}'), pg_temp.s(4, 'x', '{"score": 0.5}'),
      pg_temp.s(1, 's', '{"score": 1}'), pg_temp.s(2, 's', jsonb_build_object('score', -1, 'lease_token', pg_temp.token(2, 's', '1'))),
      pg_temp.s(5, 'x', '{"label": "odd"}'), pg_temp.s(29, 'x'), pg_temp.s(5, 'y', '{"score": "NaN"}'), pg_temp.s(5, 'y', '{"score": "much"}'), pg_temp.s(5, 'y', '{"score": null}'),
      pg_temp.s(5, null), '"text"'::jsonb, pg_temp.s(6, 'x', '{"reward_source": null, "score": 0.5}'), pg_temp.s(6, 'x', '{"score": 0.5}'))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, null::text, 3, true, 0.25::double precision, 'judge', 'labeled'), (2, 'accepted', null, null, 4, true, 0.5, 'human', 'labeled'),
      (3, 'accepted', null, null, 4, true, 0.5, 'human', 'labeled'), (4, 'replayed', null, null, 4, true, 0.5, 'human', 'labeled'),
      (5, 'refused', 'RL314', null, null, null, null, null, null), (6, 'refused', 'RL402', null, null, null, null, null, null),
      (7, 'accepted', null, null, 2, false, null, null, 'cannot_evaluate'), (8, 'accepted', null, null, 5, false, null, null, 'cannot_evaluate'),
      (9, 'refused', 'RL201', null, null, null, null, null, null), (10, 'refused', 'RL103', 'score', null, null, null, null, null),
      (11, 'refused', 'RL107', 'row', null, null, null, null, null), (12, 'refused', 'RL101', 'score', null, null, null, null, null),
      (13, 'refused', 'RL101', 'judge', null, null, null, null, null), (14, 'refused', 'RL107', 'row', null, null, null, null, null),
      (15, 'accepted', null, null, 6, true, 0.5, 'judge', 'labeled'), (16, 'replayed', null, null, 6, true, 0.5, 'judge', 'labeled')
  $$,
  'many verdicts: an answer each, in the order given, whatever becomes of the neighbours');
select is(
  (select string_agg(concat_ws(' ', n, v.judge, v.score, v.attempt_no), ', ' order by n, v.judge) from generate_series(1, 8) n cross join pg_temp.verdicts(n, 'tap410s') v),
  '2 s -1 1, 3 s 0.25 1, 4 x 1, 4 y 0, 5 x, 6 x 0.5', 'and each once in the books');
select is_empty(
  $$
    select r.ord from routeledger.record_verdicts(jsonb_build_array(pg_temp.s(29, 'x'), pg_temp.s(4, 'x', '{"score": 0.5}'), pg_temp.s(1, 's'))) r
    left join routeledger.errors() e on e.code = r.code
    where (r.message, r.hint) is distinct from (e.message, e.hint) or r.code is null
  $$,
  'with the words of errors()');
select results_eq(
  $$
    select r.ord, r.status, r.code
    from (select pg_temp.token(1, 's', '1') as token) t
    cross join routeledger.record_verdicts(jsonb_build_array(
      pg_temp.s(1, 's', jsonb_build_object('score', 1, 'lease_token', gen_random_uuid())), pg_temp.s(1, 's', jsonb_build_object('score', 0.5, 'lease_token', t.token)),
      pg_temp.s(1, 's', '{"score": 0.5}'), pg_temp.s(1, 's', '{"score": 0.6}'), pg_temp.s(1, 's', jsonb_build_object('score', 0.6, 'lease_token', t.token)))) r
  $$,
  $$ values (1, 'refused', 'RL402'), (2, 'accepted', null), (3, 'replayed', null), (4, 'refused', 'RL314'), (5, 'refused', 'RL402') $$,
  'of several for one key the first that can be is accepted, and those after it are judged by it');
select is_empty($$ select * from routeledger.record_verdicts('[]') $$, 'none: no answers');
select throws_ok($$ select routeledger.record_verdicts(null) $$, 'RL101', 'a required argument is missing', 'null');
select throws_ok($$ select routeledger.record_verdicts('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'no array');
select results_eq(
  $$ select r.status, count(*) from routeledger.record_verdicts((select jsonb_agg(pg_temp.s(7, 'many' || i % 40)) from generate_series(1, 100) i)) r group by 1 order by 1 $$,
  $$ values ('accepted', 40::bigint), ('replayed', 60::bigint) $$, 'many for one outcome');

-- withdrawing
reset role;
do $$
begin
  perform pg_temp.at('0');
  for i in 1 .. 4 loop perform pg_temp.succeed(i, 'tap410w', case when i % 2 = 0 then 'b' else 'a' end); end loop;
  for i in 1 .. 3 loop perform pg_temp.succeed(-i, 'tap410w'); end loop; -- one a day
  perform pg_temp.succeed(1, 'tap410v');
end
$$;
create function pg_temp.labels(variadic p_n integer[]) returns text
language sql stable
as $$ select string_agg(pg_temp.label(n, 'tap410w'), ', ' order by o) from unnest(p_n) with ordinality x (n, o) $$;
create function pg_temp.sayw(n integer, p_judge text, p_version text, p_score double precision) returns text
language sql volatile
as $$ select pg_temp.say(n, p_judge, p_version, p_score, p_tenant => 'tap410w') $$;
create function pg_temp.withdraw(p_version text, p_model text default null, p_from integer default null, p_to integer default null) returns text
language sql volatile
as $$
  select string_agg(w.verdicts || ' verdicts, ' || w.unlabeled || ' unlabeled', '; ')
  from routeledger.withdraw_verdicts('tap410w', 'j', p_version, 'why', p_model, (pg_temp.t0() at time zone 'UTC')::date + p_from, (pg_temp.t0() at time zone 'UTC')::date + p_to) w
$$;
create function pg_temp.last_withdrawal(p_offset integer default 0) returns uuid
language sql stable security definer
as $$ select w.withdrawal_id from routeledger.verdict_withdrawals w where w.tenant_id = 'tap410w' order by w.withdrawn_at desc, w.withdrawal_id desc offset p_offset limit 1 $$;
set local role routeledger_judge;
do $$
begin
  perform pg_temp.sayw(n, 'j', '1', 0) from unnest(array[1, 2, 3, -1, -2, -3]) n;
  perform pg_temp.sayw(1, 'k', '1', 1);
  perform pg_temp.sayw(2, 'k', '1', -1);
  perform pg_temp.sayw(4, 'j', '2', 0.7);
  perform pg_temp.say(1, 'j', '1', 0, p_tenant => 'tap410v');
end
$$;
select is(pg_temp.labels(1, 2, 3, 4, -1), 'labeled 0.5 judge, labeled 0 judge, labeled 0 judge, labeled 0.7 judge, labeled 0 judge', 'a judge has gone wrong');
set local role routeledger_admin;
do $$ begin perform pg_temp.at('1 hour'); end $$;
select is(pg_temp.withdraw('9'), null, 'where there is nothing to withdraw there is no withdrawal');
select is(pg_temp.withdraw('1', 'none'), null, 'nor on a model that it has not judged');
select is(pg_temp.withdraw('1', p_from => 1), null, 'nor on days on which nothing was decided');
select is(pg_temp.withdraw('1', p_from => 0, p_to => 0), null, 'nor on no day at all');
select is(pg_temp.withdraw('1', 'b'), '1 verdicts, 1 unlabeled', 'its verdicts on one model');
select is(pg_temp.labels(1, 2, 3, 4), 'labeled 0.5 judge, cannot_evaluate, labeled 0 judge, labeled 0.7 judge', 'another judge''s still counts, however little it says');
select is(pg_temp.withdraw('1', p_from => -2, p_to => 0), '2 verdicts, 2 unlabeled', 'those of some days, the last not included');
select is(pg_temp.labels(-1, -2, -3), 'unlabeled withdrawn, unlabeled withdrawn, labeled 0 judge', 'where nothing is left the outcome is unlabelled once more');
select is(pg_temp.withdraw('1'), '3 verdicts, 2 unlabeled', 'all that are left');
select is(pg_temp.labels(1, 2, 3, 4, -3), 'labeled 1 judge, cannot_evaluate, unlabeled withdrawn, labeled 0.7 judge, unlabeled withdrawn', 'and the reward is that of the others');
select is(pg_temp.withdraw('1'), null, 'once');
select is(pg_temp.label(1, 'tap410v'), 'labeled 0 judge', 'nothing of another tenant');
select results_eq(
  $$
    select w.judge, w.judge_version, w.model_slug, w.from_day - (pg_temp.t0() at time zone 'UTC')::date, w.to_day - (pg_temp.t0() at time zone 'UTC')::date, w.reason, w.verdicts,
      w.unlabeled, w.withdrawn_by = session_user, w.withdrawn_at, w.reinstated_by, w.reinstated_at
    from routeledger.verdict_withdrawals w where w.tenant_id = 'tap410w' order by w.verdicts
  $$,
  $$
    values
      ('j', '1', 'b', null::integer, null::integer, 'why', 1::bigint, 1::bigint, true, pg_temp.t0() + interval '1 hour', null::name, null::timestamptz),
      ('j', '1', null, -2, 0, 'why', 2, 2, true, pg_temp.t0() + interval '1 hour', null, null),
      ('j', '1', null, null, null, 'why', 3, 2, true, pg_temp.t0() + interval '1 hour', null, null)
  $$,
  'each withdrawal is on record');
reset role;
select results_eq(
  $$
    select count(*), count(v.withdrawal_id), count(*) filter (where w.withdrawal_id is null), min(v.score), min(v.withdrawn_at)
    from routeledger.judge_verdicts v left join routeledger.verdict_withdrawals w on w.tenant_id = v.tenant_id and w.withdrawal_id = v.withdrawal_id
    where v.tenant_id = 'tap410w' and v.judge = 'j' and v.judge_version = '1'
  $$,
  $$ values (6::bigint, 6::bigint, 0::bigint, 0::double precision, pg_temp.t0() + interval '1 hour') $$, 'the verdicts are kept, and say which');
set local role routeledger_judge;
select is(pg_temp.claim('j', '1', 100, 'tap410w'), '{4}', 'that version of the judge is asked only what it has never been asked');
select is(pg_temp.claim('j', '2', 100, 'tap410w'), '{-3,-2,-1,1,2,3}', 'the next one about all');
select is(pg_temp.labels(-1, 1, 2, 3), 'claimed withdrawn, labeled 1 judge, claimed, claimed withdrawn', 'as claimed as ever');
select is(pg_temp.sayw(3, 'j', '1', 0), 'claimed withdrawn again', 'what was withdrawn and is said again is still withdrawn');
select throws_ok(
  $$ select routeledger.record_verdict('tap410w', pg_temp.d(3), 'j', '1', 1) $$, 'RL314', 'this judge version has given another verdict on this outcome',
  'and cannot be put right by the same version');
select is(
  (select concat_ws(' ', r.judge_status, r.reward, r.reward_source)
   from routeledger.record_verdict('tap410w', pg_temp.d(3), 'j', '2', 0.9, p_lease_token => pg_temp.token(3, 'j', '2')) r), 'labeled 0.9 judge', 'only by another');

-- taking it back
set local role routeledger_admin;
do $$ begin perform pg_temp.at('2 hours'); end $$;
create function pg_temp.withdrawal(p_verdicts bigint) returns uuid
language sql stable security definer
as $$
  select w.withdrawal_id from routeledger.verdict_withdrawals w
  where w.tenant_id = 'tap410w' and w.verdicts = p_verdicts and w.reinstated_at is null order by w.withdrawal_id desc limit 1
$$;
create temp table taken as select pg_temp.withdrawal(3) as id;
select results_eq(
  $$ select r.tenant_id, r.withdrawal_id, r.verdicts, r.unlabeled from taken t cross join routeledger.reinstate_verdicts('tap410w', t.id) r $$,
  $$ select 'tap410w', t.id, 3::bigint, 0::bigint from taken t $$, 'a withdrawal is taken back');
select is(pg_temp.labels(1, 2, 3, -1, -3), 'labeled 0.5 judge, claimed, labeled 0.45 judge, claimed withdrawn, labeled 0 judge', 'its verdicts count again, others'' do not');
select results_eq(
  $$ select r.verdicts, r.unlabeled from taken t cross join routeledger.reinstate_verdicts('tap410w', t.id) r $$, $$ values (3::bigint, 0::bigint) $$, 'once');
select results_eq(
  $$ select w.verdicts, w.reinstated_by = session_user, w.reinstated_at from routeledger.verdict_withdrawals w where w.tenant_id = 'tap410w' order by w.verdicts $$,
  $$ values (1::bigint, null::boolean, null::timestamptz), (2, null, null), (3, true, pg_temp.t0() + interval '2 hours') $$, 'that it was is on record too');
select is(pg_temp.withdraw('1'), '3 verdicts, 1 unlabeled', 'what counts again can be withdrawn again');
select is(pg_temp.labels(1, 3, -3), 'labeled 1 judge, labeled 0.9 judge, claimed withdrawn', 'with all that follows');
select lives_ok($$ select routeledger.reinstate_verdicts('tap410w', w.id) from taken w $$, 'the first withdrawal has nothing more to say');
select is(pg_temp.labels(1, 3, -3), 'labeled 1 judge, labeled 0.9 judge, claimed withdrawn', 'about the second');
do $$ begin perform routeledger.reinstate_verdicts('tap410w', pg_temp.withdrawal(n)) from generate_series(1, 3) n; end $$;
select is(
  pg_temp.labels(1, 2, 3, 4, -1, -2, -3),
  'labeled 0.5 judge, labeled 0 judge, labeled 0.45 judge, labeled 0.7 judge, labeled 0 judge, labeled 0 judge, labeled 0 judge', 'all of them: as if nothing had been');
reset role;
select is((select count(*) from routeledger.judge_verdicts v where v.tenant_id = 'tap410w' and (v.withdrawal_id, v.withdrawn_at) is distinct from (null, null)), 0::bigint, 'no verdict is marked');
select is_empty(
  $$
    select o.tenant_id, o.id, o.judge_status, o.reward, o.reward_source, v.*
    from routeledger.routing_outcomes o
    cross join lateral (
      select
        avg(v.score) filter (where v.usable and v.withdrawn_at is null) as reward,
        case
          when bool_or(v.reward_source = 'human') filter (where v.usable and v.withdrawn_at is null) then 'human'
          when bool_or(v.usable and v.withdrawn_at is null) then 'judge'
          when bool_and(v.withdrawn_at is not null) then 'withdrawn'
        end as source
      from routeledger.judge_verdicts v
      where v.tenant_id = o.tenant_id and v.outcome_id = o.id
    ) v
    where o.tenant_id like 'tap410%'
      and (o.reward_source is distinct from v.source or coalesce(abs(o.reward - v.reward) > 1e-12, o.reward is distinct from v.reward)
        or (o.judge_status = 'labeled') <> (v.reward is not null))
  $$,
  'and every reward in this file is the mean of the verdicts that count');
set local role routeledger_admin;
select throws_ok(
  $$ select routeledger.reinstate_verdicts('tap410w', gen_random_uuid()) $$, 'RL211', 'there is no such withdrawal of verdicts', 'there must be one');
select throws_ok(
  $$ select routeledger.reinstate_verdicts('tap410v', t.id) from taken t $$, 'RL211', 'there is no such withdrawal of verdicts', 'of that tenant');

-- all tenants that one may use
reset role;
do $$
begin
  perform pg_temp.succeed(1, 'tap410x' || i) from generate_series(1, 3) i;
  perform pg_temp.say(1, 'all', '1', 0, p_tenant => 'tap410x' || i) from generate_series(1, 3) i;
  perform routeledger.grant_tenant('tap410_bound', 'tap410x1');
  perform routeledger.grant_tenant('tap410_bound', 'tap410x2');
end
$$;
set local role tap410_bound;
select results_eq(
  $$ select w.tenant_id, w.verdicts, w.unlabeled from routeledger.withdraw_verdicts(null, 'all', '1', 'why') w order by 1 $$,
  $$ values ('tap410x1', 1::bigint, 1::bigint), ('tap410x2', 1, 1) $$, 'without a tenant: a withdrawal for each of the caller''s');
select is(pg_temp.label(1, 'tap410x3'), 'labeled 0 judge', 'and no other''s');
select results_eq(
  $$ select w.tenant_id from routeledger.verdict_withdrawals w where w.judge = 'all' order by 1 $$, $$ values ('tap410x1'), ('tap410x2') $$, 'they see their own');
set local role routeledger_admin;
select results_eq(
  $$ select w.tenant_id, w.verdicts from routeledger.withdraw_verdicts(null, 'all', '1', 'why') w $$, $$ values ('tap410x3', 1::bigint) $$, 'who is not bound withdraws them all');
set local role tap410_bound;
select is_empty(
  $$
    select s, c.code from unnest(array[
      'record_verdict(''tap410x3'', pg_temp.d(1), ''j'', ''1'', 1)', 'withdraw_verdicts(''tap410x3'', ''j'', ''1'', ''why'')', 'reinstate_verdicts(''tap410x3'', gen_random_uuid())']) s
    cross join lateral pg_temp.caught('select routeledger.' || s) c
    where c.code is distinct from 'RL110' or c.detail ->> 'parameter' <> 'tenant_id'
  $$,
  'each routine refuses another''s tenant');
select results_eq(
  $$ select r.status, r.code from routeledger.record_verdicts(jsonb_build_array(pg_temp.s(1, 'z'), pg_temp.s(1, 'z') || '{"tenant_id": "tap410x1"}')) r $$,
  $$ values ('refused', 'RL110'), ('accepted', null) $$, 'and the set form, row by row');
reset role;
delete from wrong;
insert into wrong values
  ('withdraw_verdicts('''', ''j'', ''1'', ''why'')', 'RL101', 'tenant_id'), ('withdraw_verdicts(repeat(''x'', 201), ''j'', ''1'', ''why'')', 'RL108', 'tenant_id'),
  ('withdraw_verdicts(null, null, ''1'', ''why'')', 'RL101', 'judge'), ('withdraw_verdicts(null, ''j'', null, ''why'')', 'RL101', 'judge_version'),
  ('withdraw_verdicts(null, ''j'', ''1'', null)', 'RL101', 'reason'), ('withdraw_verdicts(null, ''j'', ''1'', '''')', 'RL101', 'reason'),
  ('withdraw_verdicts(null, ''j'', ''1'', repeat(''x'', 2001))', 'RL108', 'reason'), ('withdraw_verdicts(null, ''j'', ''1'', ''why'', '''')', 'RL101', 'model_slug'),
  ('withdraw_verdicts(null, ''j'', ''1'', ''why'', p_from => ''infinity'')', 'RL109', 'from'),
  ('withdraw_verdicts(null, ''j'', ''1'', ''why'', p_to => ''-infinity'')', 'RL109', 'to'),
  ('withdraw_verdicts(null, ''j'', ''1'', ''why'', p_from => ''2026-01-02'', p_to => ''2026-01-01'')', 'RL103', 'to'),
  ('reinstate_verdicts(null, gen_random_uuid())', 'RL101', 'tenant_id'), ('reinstate_verdicts('''', gen_random_uuid())', 'RL101', 'tenant_id'),
  ('reinstate_verdicts(repeat(''x'', 201), gen_random_uuid())', 'RL108', 'tenant_id'), ('reinstate_verdicts(''t'', null)', 'RL101', 'withdrawal_id');
grant select on wrong to public;
set local role routeledger_admin;
select is_empty(
  $$
    select w.call, c.code, c.detail from wrong w cross join lateral pg_temp.caught('select routeledger.' || w.call) c
    where c.code is distinct from w.code or c.detail ->> 'parameter' is distinct from w.parameter
  $$,
  'a wrong argument is refused by its name');
reset role;
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap410%' $$, 'and no decision is lost');

select * from finish();
rollback;
