-- 420 · Guards: findings, agreement, drift, the queue, and the verdicts themselves.
begin;
\ir common.psql
create role tap420_bound in role routeledger_reader;
do $$ begin perform routeledger.grant_tenant('tap420_bound', 'tap420-a'); end $$;
select plan(54);

-- An id of t0(): the same for the same number, and in the order of the numbers.
create function pg_temp.nth(p_n integer) returns uuid
language sql stable
as $$ select (left(pg_temp.id('')::text, 13) || '-7' || substr(lpad(to_hex(p_n), 15, '0'), 1, 3) || '-8' || substr(lpad(to_hex(p_n), 15, '0'), 4, 3) || '-'
  || substr(lpad(to_hex(p_n), 15, '0') || '000000', 7, 12))::uuid $$;
-- Decisions p_from to p_to of a tenant, answered by p_model.
create function pg_temp.decided(p_tenant text, p_from integer, p_to integer, p_model text) returns void
language plpgsql volatile
as $$
begin
  perform routeledger.record_outcomes((
    select jsonb_agg(jsonb_build_object('tenant_id', p_tenant, 'id', pg_temp.nth(n),
      'attempts', jsonb_build_array(jsonb_build_object('model_slug', p_model, 'status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1))))
    from generate_series(p_from, p_to) n));
end
$$;
-- Verdicts of version 1 of a judge on the decisions from p_from on, in one call; null is unusable.
create function pg_temp.judged(p_tenant text, p_judge text, p_from integer, p_scores double precision[], p_labels text[] default '{}', p_version text default '1') returns void
language plpgsql volatile
as $$
declare
  v_refused bigint;
begin
  select count(*) filter (where r.status <> 'accepted') into v_refused
  from routeledger.record_verdicts((
    select jsonb_agg(jsonb_build_object('tenant_id', p_tenant, 'id', pg_temp.nth(p_from + n::integer - 1), 'judge', p_judge, 'judge_version', p_version,
      'score', coalesce(s, -1), 'label', p_labels[n]))
    from unnest(p_scores) with ordinality s (s, n))) r;
  assert v_refused = 0;
end
$$;
create function pg_temp.scores(variadic p_runs double precision[]) returns double precision[]
language sql immutable
as $$
  select array_agg(r.score order by r.o, i)
  from (select p_runs[2 * o - 1] as n, p_runs[2 * o] as score, o from generate_series(1, cardinality(p_runs) / 2) o) r
  cross join lateral generate_series(1, r.n::integer) i
$$;
create function pg_temp.findings(p_tenant text) returns table (finding text)
language sql stable
as $$
  select concat_ws(' ', f.kind, f.judge, f.judge_version, f.model_slug, f.n, f.since - pg_temp.t0(), f.last_at - pg_temp.t0())
  from routeledger.judge_findings f where f.tenant_id = p_tenant order by f.kind, f.judge, f.judge_version, f.model_slug
$$;

-- shape
select columns_are('routeledger', 'verdicts', (select array_agg(a.attname order by a.attnum) || name 'counts' from pg_attribute a
  where a.attrelid = 'routeledger.judge_verdicts'::regclass and a.attnum > 0 and not a.attisdropped), 'all columns of judge_verdicts, and one');
select columns_are('routeledger', 'judge_findings', array['tenant_id', 'kind', 'judge', 'judge_version', 'model_slug', 'n', 'since', 'last_at', 'detail']);
select columns_are('routeledger', 'judge_agreement', array['tenant_id', 'judge_a', 'version_a', 'judge_b', 'version_b', 'n', 'equal_scores', 'mean_a', 'mean_b',
  'agreement', 'kappa', 'label_n', 'label_agreement', 'label_kappa']);
select columns_are('routeledger', 'judge_drift', array['tenant_id', 'judge', 'judge_version', 'day', 'n', 'unusable_n', 'mean_score', 'sd', 'before_n', 'before_mean',
  'change', 'z']);
select columns_are('routeledger', 'judge_queue', array['tenant_id', 'judge', 'judge_version', 'ready', 'unlabeled', 'delayed', 'claimed', 'expired', 'oldest_at',
  'searched_at']);

-- mono_zero: enough zeros, and the last of all
do $$
begin
  perform pg_temp.decided('tap420-a', 1, 60, 'm'), pg_temp.decided('tap420-a', 61, 70, 'other');
  perform pg_temp.judged('tap420-a', 'j', 1, pg_temp.scores(10, 0)), pg_temp.judged('tap420-a', 'j', 61, pg_temp.scores(4, 1, 4, 0.5));
  perform pg_temp.at('1 hour');
  perform pg_temp.judged('tap420-a', 'j', 11, pg_temp.scores(9, 0));
end
$$;
select is_empty($$ select * from pg_temp.findings('tap420-a') $$, 'nineteen zeros from the start: not yet');
do $$ begin perform pg_temp.judged('tap420-a', 'j', 20, array[null, 0]), pg_temp.judged('tap420-a', 'k', 1, pg_temp.scores(2, 1, 2, 0)); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-a') $$, array['mono_zero j 1 m 20 00:00:00 01:00:00'], 'twenty, and one that is unusable counts for nothing');
select is(
  (select f.detail from routeledger.judge_findings f where f.tenant_id = 'tap420-a'),
  jsonb_build_object('n_before', 0, 'mean_before', null, 'chance', 0.000000953674, 'example', pg_temp.nth(21),
    'this_judge_on_other_models', '{"n": 8, "mean": 0.750000}'::jsonb, 'others_on_this_model', '{"n": 4, "mean": 0.500000}'::jsonb),
  'what the judge says of other models, and others of this one');
do $$ begin perform pg_temp.at('2 hours'), pg_temp.judged('tap420-a', 'j', 22, array[0.25]); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-a') $$, 'a score above 0 ends it');
do $$ begin perform pg_temp.at('3 hours'), pg_temp.judged('tap420-a', 'j', 23, pg_temp.scores(19, 0)); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-a') $$, 'and the count begins anew');
do $$ begin perform pg_temp.judged('tap420-a', 'j', 42, array[0]); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-a') $$, 'a history of one in a hundred speaks for zeros');
select is(
  (select routeledger.configure('{"mono_zero_n": 5}') ->> 'mono_zero_n'), '5', 'how many it takes is a setting');
do $$ begin perform pg_temp.decided('tap420-b', 1, 200, 'm'), pg_temp.judged('tap420-b', 'j', 1, pg_temp.scores(4, 0)); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-b') $$, 'four');
do $$ begin perform pg_temp.judged('tap420-b', 'j', 5, array[0]); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-b') $$, array['mono_zero j 1 m 5 03:00:00 03:00:00'], 'five: where nothing speaks for them chance is not asked');
do $$ begin perform routeledger.configure('{"mono_zero_n": 20}'); end $$;

-- mono_zero: what the history makes likely; (1 - 3 / 102)^231 is above 0.001, the next below
do $$
begin
  perform pg_temp.decided('tap420-h', 1, 340, 'm');
  perform pg_temp.judged('tap420-h', 'j', 1, pg_temp.scores(98, 0, 2, 1));
  perform pg_temp.at('4 hours');
  perform pg_temp.judged('tap420-h', 'j', 101, pg_temp.scores(231, 0));
end
$$;
select is_empty($$ select * from pg_temp.findings('tap420-h') $$, 'two right of a hundred, then 231 zeros: may be');
do $$ begin perform pg_temp.judged('tap420-h', 'j', 332, array[0]); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-h') $$, array['mono_zero j 1 m 232 04:00:00 04:00:00'], '232: hardly');
select is(
  (select f.detail - 'example' from routeledger.judge_findings f where f.tenant_id = 'tap420-h'),
  '{"n_before": 100, "mean_before": 0.02, "chance": 0.000982031227, "this_judge_on_other_models": {"n": 0, "mean": null}, "others_on_this_model": {"n": 0, "mean": null}}',
  'how hardly');
do $$ begin perform pg_temp.decided('tap420-g', 1, 30, 'm'), pg_temp.judged('tap420-g', 'j', 1, pg_temp.scores(2, 1)), pg_temp.at('5 hours'), pg_temp.judged('tap420-g', 'j', 3, pg_temp.scores(20, 0)); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-g') $$, array['mono_zero j 1 m 20 05:00:00 05:00:00'], 'two right of two, then twenty zeros');

-- verdicts of one call are of one time: what was decided last is last
do $$ begin perform pg_temp.decided('tap420-t', 1, 60, 'm'), pg_temp.judged('tap420-t', 'j', 1, pg_temp.scores(20, 0, 1, 1)); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-t') $$, 'one call: twenty zeros and then a one');
do $$ begin perform pg_temp.judged('tap420-t', 'k', 1, pg_temp.scores(1, 1, 20, 0)); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-t') $$, array['mono_zero k 1 m 20 05:00:00 05:00:00'], 'a one and then twenty zeros');

-- withdrawn verdicts are out of it
select is(
  (select w.verdicts from routeledger.withdraw_verdicts('tap420-h', 'j', '1', 'it never parsed') w), 332::bigint, 'what a finding is about is withdrawn');
select is_empty($$ select * from pg_temp.findings('tap420-h') $$, 'and it is gone');
select results_eq(
  $$ select v.usable, v.counts, v.withdrawn_at - pg_temp.t0(), count(*) from routeledger.verdicts v where v.tenant_id = 'tap420-h' group by 1, 2, 3 $$,
  $$ values (true, false, interval '5 hours', 332::bigint) $$, 'the verdicts are not');
select is((select count(*) from routeledger.judge_drift d where d.tenant_id = 'tap420-h'), 0::bigint, 'they have no part in drift');
do $$ begin perform pg_temp.judged('tap420-h', 'j', 1, pg_temp.scores(1, 0, 18, 0), p_version => '2'); end $$;
select is_empty($$ select * from pg_temp.findings('tap420-h') $$, 'a new version begins with nothing');

-- mostly_unusable
do $$
begin
  perform pg_temp.decided('tap420-u', 1, 100, 'm');
  perform pg_temp.judged('tap420-u', 'j', 1, pg_temp.scores(15, null));
  perform pg_temp.at('29 hours 1 second');
  perform pg_temp.judged('tap420-u', 'j', 16, pg_temp.scores(10, 1));
  perform pg_temp.at('30 hours');
  perform pg_temp.judged('tap420-u', 'j', 26, pg_temp.scores(10, null));
end
$$;
select is_empty($$ select * from pg_temp.findings('tap420-u') $$, 'ten of twenty in the last 24 hours: not more than half, whatever was before');
do $$ begin perform pg_temp.judged('tap420-u', 'j', 36, array[null]::double precision[]); end $$;
select results_eq($$ select * from pg_temp.findings('tap420-u') $$, array['mostly_unusable j 1 m 11 1 day 06:00:00 1 day 06:00:00'], 'eleven of twenty-one');
select is(
  (select f.detail from routeledger.judge_findings f where f.tenant_id = 'tap420-u'),
  jsonb_build_object('of', 21, 'share', 0.523810, 'example', pg_temp.nth(36),
    'this_judge_on_other_models', '{"n": 0, "mean": null}'::jsonb, 'others_on_this_model', '{"n": 0, "mean": null}'::jsonb), 'of how many, and the last of them');
do $$ begin perform pg_temp.judged('tap420-u', 'k', 1, pg_temp.scores(19, null)); end $$;
select is((select count(*) from pg_temp.findings('tap420-u')), 1::bigint, 'nineteen, all of them unusable: too few');

-- agreement: of fifty 20 yes and yes, 5 yes and no, 10 no and yes, 15 no and no: po 0.7, pe 0.5; of their labels those of twelve:
-- 4 1 0 / 0 3 1 / 1 0 2, po 9 / 12, pe 50 / 144
do $$
begin
  perform pg_temp.decided('tap420-k', 1, 60, 'm');
  perform pg_temp.judged('tap420-k', 'b', 1, pg_temp.scores(12, 1, 8, 0.5, 5, 0.25, 10, 1, 15, 0), '{x,x,x,x,y,y,y,y,z,x,z,z}');
  perform pg_temp.judged('tap420-k', 'a', 1, pg_temp.scores(25, 1, 25, 0), '{x,x,x,x,x,y,y,y,y,z,z,z,only}', '2');
  -- and what does not count: unusable, or judged by one of them alone
  perform pg_temp.judged('tap420-k', 'a', 51, pg_temp.scores(2, null), p_version => '2'), pg_temp.judged('tap420-k', 'b', 51, pg_temp.scores(4, 1));
end
$$;
select results_eq(
  $$
    select concat_ws(' ', a.judge_a, a.version_a, a.judge_b, a.version_b, a.n, round(a.equal_scores::numeric, 6), round(a.mean_a::numeric, 6), round(a.mean_b::numeric, 6),
      round(a.agreement::numeric, 6), round(a.kappa::numeric, 6), a.label_n, round(a.label_agreement::numeric, 6), round(a.label_kappa::numeric, 6))
    from routeledger.judge_agreement a where a.tenant_id = 'tap420-k'
  $$,
  array['a 2 b 1 50 0.540000 0.500000 0.545000 0.700000 0.400000 12 0.750000 0.617021'], 'kappa of scores and of labels, by hand');
do $$ begin perform pg_temp.judged('tap420-k', 'a', 1, pg_temp.scores(25, 1, 25, 0), p_version => '1'); end $$;
select results_eq(
  $$ select a.judge_a, a.version_a, a.judge_b, a.version_b, round(a.kappa::numeric, 6), a.label_n, a.label_kappa from routeledger.judge_agreement a where a.tenant_id = 'tap420-k' order by 1, 2, 3, 4 $$,
  $$
    values ('a', '1', 'a', '2', 1.000000, 0::bigint, null::double precision), ('a', '1', 'b', '1', 0.400000, 0, null), ('a', '2', 'b', '1', 0.400000, 12, 0.6170212765957447)
  $$,
  'versions of one judge are compared too; without labels no kappa of labels');
do $$ begin perform routeledger.withdraw_verdicts('tap420-k', 'b', '1', 'wrong'); end $$;
select results_eq(
  $$ select a.judge_b, a.version_b from routeledger.judge_agreement a where a.tenant_id = 'tap420-k' $$, $$ values ('a', '2') $$, 'withdrawn verdicts are compared with none');
do $$
begin
  perform pg_temp.decided('tap420-c', 1, 4, 'm'), pg_temp.judged('tap420-c', 'a', 1, array[1, 1, 1]), pg_temp.judged('tap420-c', 'b', 1, array[1, 0.9, 0.5]);
end
$$;
select results_eq(
  $$ select a.n, round(a.equal_scores::numeric, 6), a.agreement, a.kappa from routeledger.judge_agreement a where a.tenant_id = 'tap420-c' $$,
  $$ values (3::bigint, 0.333333, 1::double precision, null::double precision) $$, 'two that always say yes: no kappa');
do $$ begin perform pg_temp.judged('tap420-c', 'b', 4, array[0]), pg_temp.judged('tap420-c', 'a', 4, array[1]); end $$;
select results_eq(
  $$ select a.agreement, a.kappa from routeledger.judge_agreement a where a.tenant_id = 'tap420-c' $$,
  $$ values (0.75::double precision, 0::double precision) $$, 'one that always says yes: no better than chance');

-- drift
do $$
begin
  perform pg_temp.decided('tap420-d', 1, 60, 'm');
  perform pg_temp.at('0'), pg_temp.judged('tap420-d', 'j', 1, array[1, 1, 0, 0]);
  perform pg_temp.at('13 hours 59 minutes'), pg_temp.judged('tap420-d', 'j', 5, array[null]::double precision[]);
  perform pg_temp.at('14 hours'), pg_temp.judged('tap420-d', 'j', 6, array[1, 1, 1, 1]);
  perform pg_temp.at('7 days'), pg_temp.judged('tap420-d', 'j', 10, array[0.5]);
  perform pg_temp.at('8 days'), pg_temp.judged('tap420-d', 'j', 11, array[null]::double precision[]);
  perform pg_temp.at('15 days'), pg_temp.judged('tap420-d', 'j', 12, array[0.7, 0.7, 0.7]);
  perform pg_temp.at('16 days'), pg_temp.judged('tap420-d', 'j', 15, array[0.7, 0.7, 0.7]);
end
$$;
select results_eq(
  $$
    select d.day - pg_temp.t0()::date, d.n, d.unusable_n, round(d.mean_score::numeric, 6), round(d.sd::numeric, 6), d.before_n, round(d.before_mean::numeric, 6),
      round(d.change::numeric, 6), round(d.z::numeric, 6)
    from routeledger.judge_drift d where d.tenant_id = 'tap420-d' order by d.day
  $$,
  $$
    values
      (0, 4::bigint, 1::bigint, 0.500000, 0.577350, 0::bigint, null::numeric, null::numeric, null::numeric),
      (1, 4, 0, 1.000000, 0.000000, 4, 0.500000, 0.500000, 1.732051),
      (7, 1, 0, 0.500000, null, 8, 0.750000, -0.250000, null),
      (8, 0, 1, null, null, 5, 0.900000, null, null),
      (15, 3, 0, 0.700000, 0.000000, 0, null, null, null),
      (16, 3, 0, 0.700000, 0.000000, 3, 0.700000, 0.000000, null)
  $$,
  'each day against the seven before it, in UTC; equal scores have no error to measure by');

-- the queue
do $$ begin perform pg_temp.at('0'), pg_temp.decided('tap420-q', 1, 3, 'm'); end $$;
create function pg_temp.queue() returns table (line text)
language sql stable
as $$
  select concat_ws(' ', coalesce(q.judge || '/' || q.judge_version, '-'), q.ready, q.unlabeled, q.delayed, q.claimed, q.expired, coalesce((q.oldest_at - pg_temp.t0())::text, '-'),
    coalesce((q.searched_at - pg_temp.t0())::text, '-'))
  from routeledger.judge_queue q where q.tenant_id = 'tap420-q' order by q.judge nulls first, q.judge_version
$$;
create temp table held on commit drop as select null::uuid as id, null::uuid as lease_token where false;
grant select, insert, delete on held to routeledger_judge;
set local role routeledger_judge;
select results_eq($$ select * from pg_temp.queue() $$, array['- 3 3 0 0 0 00:00:00 -'], 'what waits where no judge has asked');
insert into held select c.id, c.lease_token from routeledger.claim_judgements('tap420-q', 'j', '1', 2, '10 minutes') c;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 1 1 0 2 0 00:00:00 -'], 'two are claimed');
do $$ begin perform pg_temp.at('10 minutes'); end $$;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 3 1 0 0 2 00:00:00 -'], 'whose leases run out: ready again');
do $$ begin perform pg_temp.at('1 minute'), routeledger.release_judgement('tap420-q', h.id, 'j', '1', h.lease_token, 'it broke', '1 hour') from held h where h.id = pg_temp.nth(1); end $$;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 1 1 1 1 0 00:00:00 -'], 'given back for later');
do $$ begin perform routeledger.release_judgement('tap420-q', h.id, 'j', '1', h.lease_token) from held h where h.id = pg_temp.nth(2); end $$;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 2 2 1 0 0 00:00:00 -'], 'given back untouched: counted once');
delete from held;
insert into held select c.id, c.lease_token from routeledger.claim_judgements('tap420-q', 'j', '1', 1) c;
do $$ begin perform routeledger.release_judgement('tap420-q', h.id, 'j', '1', h.lease_token, p_delay => '30 minutes') from held h; end $$;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 1 2 2 0 0 00:00:00 -'], 'untouched, but for later: unlabeled for others');
do $$ begin perform pg_temp.at('2 hours'); end $$;
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 3 2 0 0 0 00:00:00 -'], 'later has come');
delete from held;
insert into held select c.id, c.lease_token from routeledger.claim_judgements('tap420-q', 'j', '1', 10) c;
do $$ begin perform routeledger.record_verdict('tap420-q', h.id, 'j', '1', 1, p_lease_token => h.lease_token) from held h; end $$;
select is((select count(*) from routeledger.claim_judgements('tap420-q', 'j', '1')), 0::bigint, 'all are judged');
select results_eq($$ select * from pg_temp.queue() $$, array['j/1 0 0 0 0 0 - 02:00:00'], 'nothing is left, and the search has come to the end');
do $$ begin perform routeledger.claim_judgements('tap420-q', 'k', '1', 1, '1 hour'); end $$;
select results_eq(
  $$ select * from pg_temp.queue() $$, array['j/1 0 0 0 0 0 - 02:00:00', 'k/1 2 0 0 1 0 00:00:00 02:00:00'], 'another judge: what was found for it and what it holds');

-- the verdicts
reset role;
do $$ begin perform routeledger.record_verdict('tap420-q', pg_temp.nth(1), 'h', '1', 0.5, 'so so', 'it says so', p_reward_source => 'human', p_judge_model => 'jm',
  p_input_tokens => 1, p_output_tokens => 2, p_cost_usd => 0.5); end $$;
set local role routeledger_reader;
select results_eq(
  $$
    select concat_ws(' ', v.judge, v.judge_version, v.inference_id is not null, v.model_slug, coalesce(v.task_type, '-'), v.score, v.usable, v.label, v.rationale, v.reward_source, v.judge_model,
      v.input_tokens, v.output_tokens, v.cost_usd, v.recorded_at - pg_temp.t0(), coalesce(v.withdrawal_id::text, '-'), v.counts)
    from routeledger.verdicts v where v.tenant_id = 'tap420-q' and v.judge = 'h'
  $$,
  array['h 1 t m - 0.5 t so so it says so human jm 1 2 0.5 02:00:00 - t'], 'a verdict');
select is((select count(*) from routeledger.verdicts v where v.tenant_id = 'tap420-u' and not v.usable and not v.counts), 45::bigint, 'unusable ones do not count');

-- tenants
select is((select count(distinct tenant_id) from routeledger.verdicts where tenant_id ~ '^tap420') > 5, true, 'a reader that is not bound sees all tenants');
set local role tap420_bound;
select results_eq($$ select distinct tenant_id from routeledger.verdicts $$, array['tap420-a'], 'one that is sees its own: verdicts');
select results_eq($$ select distinct tenant_id from routeledger.judge_agreement $$, array['tap420-a'], 'agreement');
select results_eq($$ select distinct tenant_id from routeledger.judge_drift $$, array['tap420-a'], 'drift');
select results_eq($$ select tenant_id, ready from routeledger.judge_queue $$, $$ values ('tap420-a', 20::bigint) $$, 'the queue');
reset role;
do $$ begin perform pg_temp.judged('tap420-a', 'z', 1, pg_temp.scores(20, 0)); end $$;
set local role tap420_bound;
select results_eq($$ select f.tenant_id, f.judge from routeledger.judge_findings f $$, $$ values ('tap420-a', 'z') $$, 'findings');
set local role routeledger_writer;
select throws_ok($$ select * from routeledger.verdicts $$, '42501', 'permission denied for view verdicts', 'writers read none of them');

select * from finish();
rollback;
