-- Judging: a queue of outcomes, verdicts, and a judge that is wrong, found out and undone.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/judging.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;

-- Thirty answers of one model and thirty of another.
select count(*) as recorded
from routeledger.record_outcomes((
  select jsonb_agg(jsonb_build_object(
    'tenant_id', 'acme', 'task_type', 'chat', 'metadata', jsonb_build_object('n', i),
    'attempts', jsonb_build_array(jsonb_build_object(
      'model_slug', case when i % 2 = 0 then 'small' else 'large' end, 'status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1))))
  from generate_series(1, 60) i));
select judge, ready, unlabeled, claimed from routeledger.judge_queue;

-- A judge takes them all, and answers three: right, wrong, and one that it cannot read.
create temp table claimed on commit drop as
select (c.metadata ->> 'n')::integer as n, c.* from routeledger.claim_judgements('acme', 'checks', '1', 100) c;
select r.ord, r.status, r.usable, r.reward, r.judge_status
from routeledger.record_verdicts((
  select jsonb_agg(jsonb_build_object(
    'tenant_id', c.tenant_id, 'id', c.id, 'judge', 'checks', 'judge_version', '1', 'lease_token', c.lease_token,
    'score', case c.n when 2 then 1 when 3 then 0 else -1 end,
    'label', case c.n when 2 then 'right' when 3 then 'wrong' else 'unreadable' end) order by c.n)
  from claimed c where c.n in (2, 3, 4))) r;
-- The same again changes nothing; another score under the same version is refused.
select status, code from routeledger.record_verdicts((
  select jsonb_agg(jsonb_build_object('tenant_id', c.tenant_id, 'id', c.id, 'judge', 'checks', 'judge_version', '1', 'score', s.score, 'label', 'right') order by s.score desc)
  from claimed c cross join (values (1), (0)) s (score) where c.n = 2));
-- A person says otherwise: the reward is the mean of both.
select v.reward, v.reward_source, v.judge_status
from claimed c
cross join lateral routeledger.record_verdict('acme', c.id, 'ann', '1', 0.5, p_reward_source => 'human', p_rationale => 'half of it') v
where c.n = 2;
-- What it does not get to goes back.
select count(*) as given_back
from claimed c
cross join lateral routeledger.release_judgement('acme', c.id, 'checks', '1', c.lease_token) r
where c.n not in (2, 3, 4);

-- The rest, by a version with a fault: it takes the format of one model for a wrong answer.
select routeledger.set_clock('2026-11-20 10:00:00+00') as clock;
select count(*) as judged
from routeledger.record_verdicts((
  select jsonb_agg(jsonb_build_object(
    'tenant_id', c.tenant_id, 'id', c.id, 'judge', 'checks', 'judge_version', '2', 'lease_token', c.lease_token,
    'score', case c.model_slug when 'small' then 0 else 1 end))
  from routeledger.claim_judgements('acme', 'checks', '2', 100) c));
select buckets, updated, inserted from routeledger.rollup_model_performance();
select model_key, reward_n, round(mean_reward::numeric, 3) as mean_reward
from routeledger.model_performance where window_days = 7 and tenant_id = 'acme' order by 1;

-- That is noticed.
select kind, judge, judge_version, model_slug, n, detail -> 'this_judge_on_other_models' as this_judge_on_other_models,
  detail -> 'others_on_this_model' as others_on_this_model
from routeledger.judge_findings;

-- Two weeks later, when roll-ups have long moved on, the verdicts of that version are withdrawn, in one call; they are kept.
select routeledger.set_clock('2026-12-04 10:00:00+00') as clock;
select updated from routeledger.rollup_model_performance();
select tenant_id, verdicts, unlabeled from routeledger.withdraw_verdicts('acme', 'checks', '2', 'cannot read what small writes');
select judge, judge_version, counts, withdrawn_at, count(*) from routeledger.verdicts group by 1, 2, 3, 4 order by 1, 2, 3;
select count(*) as findings from routeledger.judge_findings;

-- The next roll-up counts the last few days, and that one; and the next version judges everything.
select days, buckets, updated from routeledger.rollup_model_performance();
select count(*) as judged
from routeledger.record_verdicts((
  select jsonb_agg(jsonb_build_object(
    'tenant_id', c.tenant_id, 'id', c.id, 'judge', 'checks', 'judge_version', '3', 'lease_token', c.lease_token, 'score', 1))
  from routeledger.claim_judgements('acme', 'checks', '3', 100) c));
select days, buckets, updated from routeledger.rollup_model_performance();
select model_key, reward_n, round(mean_reward::numeric, 3) as mean_reward
from routeledger.model_performance where window_days = 30 and tenant_id = 'acme' order by 1;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
