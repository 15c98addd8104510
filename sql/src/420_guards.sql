-- 420 · Guards: what the verdicts say about the judges that gave them.
--
-- A judge that breaks does not stop: it goes on, wrong, and routing believes it. These views compare verdicts with
-- verdicts; nobody has to be asked for the truth. A verdict counts where it is usable and not withdrawn. Withdrawn ones are left out of
-- everything here but `verdicts`, so a finding goes away with the verdicts that it is about.
--
-- judge_findings names what needs a person, by judge version and model. mono_zero: its last n verdicts that count, n at
-- least settings.mono_zero_n, are all 0, and those before made that unlikely: with n0 of them and s the sum of their scores,
-- (1 - m)^n is below 1 in 1000, where m = (s + 1) / (n0 + 2). Where there are none before, it is always a finding: a
-- model that never was right looks the same as a judge that never understood it. mostly_unusable: of its verdicts in
-- the 24 hours up to the last, at least settings.mono_zero_n, more than half are unusable. The last is the one recorded
-- last; of those recorded in one call, that of the latest decision.
--
-- Every aggregate has tenant_id among its keys, and every window too, so that `where tenant_id = …` reaches down to the tables.

create or replace view routeledger.verdicts
with (security_barrier = true)
as
select
  v.tenant_id,
  v.outcome_id,
  v.judge,
  v.judge_version,
  v.inference_id,
  v.model_slug,
  v.task_type,
  v.score,
  v.usable,
  v.label,
  v.rationale,
  v.reward_source,
  v.attempt_no,
  v.judge_model,
  v.input_tokens,
  v.output_tokens,
  v.cost_usd,
  v.recorded_at,
  v.withdrawal_id,
  v.withdrawn_at,
  v.usable and v.withdrawn_at is null as counts
from routeledger.judge_verdicts v
where (select routeledger.bound_tenants()) is null or v.tenant_id = any ((select routeledger.bound_tenants())::text[]);

create or replace view routeledger.judge_findings
with (security_barrier = true)
as
select
  x.tenant_id,
  k.kind,
  x.judge,
  x.judge_version,
  x.model_slug,
  k.n,
  k.since,
  x.last_at,
  k.detail || jsonb_build_object(
    'this_judge_on_other_models', jsonb_build_object(
      'n', x.judge_n - x.usable_n, 'mean', round(((x.judge_sum - x.score_sum) / nullif(x.judge_n - x.usable_n, 0))::numeric, 6)),
    'others_on_this_model', jsonb_build_object(
      'n', x.model_n - x.usable_n, 'mean', round(((x.model_sum - x.score_sum) / nullif(x.model_n - x.usable_n, 0))::numeric, 6))
  ) as detail
from (
  select
    r.tenant_id, r.judge, r.judge_version, r.model_slug,
    r.usable_n, r.score_sum, r.judge_n, r.judge_sum, r.model_n, r.model_sum, r.last_at,
    count(*) filter (where r.usable and r.above_0 = 0) as run_n,
    min(r.recorded_at) filter (where r.usable and r.above_0 = 0) as run_since,
    (array_agg(r.outcome_id order by r.recorded_at desc, r.outcome_id desc)
      filter (where r.usable and r.above_0 = 0))[1] as run_example,
    count(*) filter (where r.of_last_day) as day_n,
    count(*) filter (where r.of_last_day and not r.usable) as unusable_n,
    min(r.recorded_at) filter (where r.of_last_day and not r.usable) as unusable_since,
    (array_agg(r.outcome_id order by r.recorded_at desc, r.outcome_id desc)
      filter (where r.of_last_day and not r.usable))[1] as unusable_example
  from (
    select
      -- of v, not of h: a condition on a column reaches below a window only where the window is partitioned by it
      v.tenant_id, v.judge, v.judge_version, v.model_slug, v.outcome_id, v.recorded_at, v.usable,
      h.usable_n, h.score_sum, h.judge_n, h.judge_sum, h.model_n, h.model_sum, h.last_at,
      v.recorded_at > h.last_at - interval '24 hours' as of_last_day,
      -- how many of the verdicts from this one on have a score above 0
      count(*) filter (where v.score > 0 and v.usable) over (
        partition by v.tenant_id, v.judge, v.judge_version, v.model_slug
        order by v.recorded_at desc, v.outcome_id desc rows unbounded preceding) as above_0
    from (
      select
        a.tenant_id, a.judge, a.judge_version, a.model_slug,
        count(*) filter (where a.usable) as usable_n,
        coalesce(sum(a.score) filter (where a.usable), 0) as score_sum,
        max(a.recorded_at) filter (where a.usable and a.score > 0) as above_0_at,
        max(a.recorded_at) as last_at,
        sum(count(*) filter (where a.usable)) over (partition by a.tenant_id, a.judge, a.judge_version)::bigint as judge_n,
        sum(coalesce(sum(a.score) filter (where a.usable), 0)) over (partition by a.tenant_id, a.judge, a.judge_version) as judge_sum,
        sum(count(*) filter (where a.usable)) over (partition by a.tenant_id, a.model_slug)::bigint as model_n,
        sum(coalesce(sum(a.score) filter (where a.usable), 0)) over (partition by a.tenant_id, a.model_slug) as model_sum
      from routeledger.judge_verdicts a
      where a.withdrawn_at is null
      group by a.tenant_id, a.judge, a.judge_version, a.model_slug
    ) h
    join routeledger.judge_verdicts v
      on v.tenant_id = h.tenant_id and v.judge = h.judge and v.judge_version = h.judge_version and v.model_slug = h.model_slug
    where v.withdrawn_at is null
      and v.recorded_at >= least(coalesce(h.above_0_at, '-infinity'), h.last_at - interval '24 hours')
  ) r
  group by
    r.tenant_id, r.judge, r.judge_version, r.model_slug,
    r.usable_n, r.score_sum, r.judge_n, r.judge_sum, r.model_n, r.model_sum, r.last_at
) x
cross join (select s.mono_zero_n from routeledger.settings s) s
cross join lateral (
  select
    'mono_zero' as kind, x.run_n as n, x.run_since as since,
    jsonb_build_object(
      'n_before', b.n, 'mean_before', round((x.score_sum / nullif(b.n, 0))::numeric, 6),
      'chance', round(exp(greatest(b.log_chance, -700))::numeric, 12), 'example', x.run_example) as detail
  from (
    select
      x.usable_n - x.run_n as n,
      x.run_n * ln(1 - (x.score_sum + 1) / (x.usable_n - x.run_n + 2)) as log_chance
  ) b
  where x.run_n >= s.mono_zero_n and (b.n = 0 or b.log_chance < ln(0.001::double precision))
  union all
  select
    'mostly_unusable' as kind, x.unusable_n as n, x.unusable_since as since,
    jsonb_build_object('of', x.day_n, 'share', round(x.unusable_n / x.day_n::numeric, 6), 'example', x.unusable_example) as detail
  where x.day_n >= s.mono_zero_n and x.unusable_n * 2 > x.day_n
) k
where (select routeledger.bound_tenants()) is null or x.tenant_id = any ((select routeledger.bound_tenants())::text[]);

-- Each two judge versions with verdicts that count on the same outcomes; a is the one whose name and version sort first.
-- Two verdicts agree where both scores are below 0.5 or both are not (agreement, kappa) and, where both have a label, where the labels
-- are the same (label_agreement, label_kappa). Kappa is Cohen's: (po - pe) / (1 - pe), po the share on which they agree and pe
-- the share on which they would if each kept its frequencies and never looked; null where pe is 1.
create or replace view routeledger.judge_agreement
with (security_barrier = true)
as
select
  p.tenant_id,
  p.judge_a,
  p.version_a,
  p.judge_b,
  p.version_b,
  p.n,
  p.equal_n::double precision / p.n as equal_scores,
  p.mean_a,
  p.mean_b,
  p.same_n::double precision / p.n as agreement,
  (p.same_n::double precision / p.n - p.same_by_chance) / nullif(1 - p.same_by_chance, 0) as kappa,
  p.label_n,
  p.same_label_n::double precision / nullif(p.label_n, 0) as label_agreement,
  (p.same_label_n::double precision / nullif(p.label_n, 0) - p.same_label_by_chance)
    / nullif(1 - p.same_label_by_chance, 0) as label_kappa
from (
  select
    m.tenant_id, m.judge_a, m.version_a, m.judge_b, m.version_b,
    sum(m.n)::bigint as n,
    sum(m.equal_n)::bigint as equal_n,
    sum(m.sum_a) / sum(m.n)::double precision as mean_a,
    sum(m.sum_b) / sum(m.n)::double precision as mean_b,
    sum(m.same_n)::bigint as same_n,
    (sum(m.pass_a) * sum(m.pass_b) + (sum(m.n) - sum(m.pass_a)) * (sum(m.n) - sum(m.pass_b)))::double precision
      / (sum(m.n) * sum(m.n))::double precision as same_by_chance,
    coalesce(sum(m.label_a_n), 0)::bigint as label_n,
    coalesce(sum(m.same_label_n), 0)::bigint as same_label_n,
    (sum(m.label_a_n * m.label_b_n) / nullif(sum(m.label_a_n) * sum(m.label_a_n), 0))::double precision as same_label_by_chance
  from (
    -- a row a label of the pair, with how often a gave it and b did; what is of the pair as a whole is in one of them
    select
      c.tenant_id, c.judge_a, c.version_a, c.judge_b, c.version_b, l.label,
      sum(l.a_n) filter (where l.label is not null) as label_a_n,
      sum(l.b_n) filter (where l.label is not null) as label_b_n,
      sum(l.a_n) as n,
      sum(l.a_n) filter (where c.label_a = c.label_b) as same_label_n,
      sum(c.equal_n) filter (where l.a_n > 0) as equal_n,
      sum(c.same_n) filter (where l.a_n > 0) as same_n,
      sum(c.pass_a) filter (where l.a_n > 0) as pass_a,
      sum(c.pass_b) filter (where l.a_n > 0) as pass_b,
      sum(c.sum_a) filter (where l.a_n > 0) as sum_a,
      sum(c.sum_b) filter (where l.a_n > 0) as sum_b
    from (
      select
        a.tenant_id, a.judge as judge_a, a.judge_version as version_a, b.judge as judge_b, b.judge_version as version_b,
        case when b.label is not null then a.label end as label_a,
        case when a.label is not null then b.label end as label_b,
        count(*) as n,
        count(*) filter (where a.score = b.score) as equal_n,
        count(*) filter (where (a.score >= 0.5) = (b.score >= 0.5)) as same_n,
        count(*) filter (where a.score >= 0.5) as pass_a,
        count(*) filter (where b.score >= 0.5) as pass_b,
        sum(a.score) as sum_a,
        sum(b.score) as sum_b
      from routeledger.judge_verdicts a
      join routeledger.judge_verdicts b
        on b.tenant_id = a.tenant_id and b.outcome_id = a.outcome_id and (b.judge, b.judge_version) > (a.judge, a.judge_version)
      where a.usable and a.withdrawn_at is null and b.usable and b.withdrawn_at is null
      group by 1, 2, 3, 4, 5, 6, 7
    ) c
    cross join lateral (values (c.label_a, c.n, 0), (c.label_b, 0, c.n)) l (label, a_n, b_n)
    group by c.tenant_id, c.judge_a, c.version_a, c.judge_b, c.version_b, l.label
  ) m
  group by m.tenant_id, m.judge_a, m.version_a, m.judge_b, m.version_b
) p
where (select routeledger.bound_tenants()) is null or p.tenant_id = any ((select routeledger.bound_tenants())::text[]);

-- The mean score of each judge version by the day (UTC) on which it judged, against that of the seven days before: the change, and
-- z, which is the change in standard errors of the difference.
create or replace view routeledger.judge_drift
with (security_barrier = true)
as
select
  d.tenant_id,
  d.judge,
  d.judge_version,
  d.day,
  d.n,
  d.unusable_n,
  d.score_sum / nullif(d.n, 0) as mean_score,
  sqrt(d.variance)::double precision as sd,
  d.before_n,
  d.before_sum / nullif(d.before_n, 0) as before_mean,
  d.score_sum / nullif(d.n, 0) - d.before_sum / nullif(d.before_n, 0) as change,
  (d.score_sum / nullif(d.n, 0) - d.before_sum / nullif(d.before_n, 0))
    / nullif(sqrt(d.variance / d.n + d.before_variance / d.before_n), 0)::double precision as z
from (
  select
    w.*,
    -- below the last digits of a difference of sums, scores do not differ
    case when w.n > 1 then round(((w.sq_sum - w.score_sum * w.score_sum / w.n) / (w.n - 1))::numeric, 12) end as variance,
    case when w.before_n > 1 then
      round(((w.before_sq_sum - w.before_sum * w.before_sum / w.before_n) / (w.before_n - 1))::numeric, 12) end as before_variance
  from (
    select
      e.*,
      coalesce(sum(e.n) over before, 0)::bigint as before_n,
      sum(e.score_sum) over before as before_sum,
      sum(e.sq_sum) over before as before_sq_sum
    from (
      select
        v.tenant_id, v.judge, v.judge_version,
        (v.recorded_at at time zone 'UTC')::date as day,
        count(*) filter (where v.usable) as n,
        count(*) filter (where not v.usable) as unusable_n,
        coalesce(sum(v.score) filter (where v.usable), 0) as score_sum,
        coalesce(sum(v.score * v.score) filter (where v.usable), 0) as sq_sum
      from routeledger.judge_verdicts v
      where v.withdrawn_at is null
      group by 1, 2, 3, 4
    ) e
    window before as (
      partition by e.tenant_id, e.judge, e.judge_version order by e.day
      range between interval '7 days' preceding and interval '1 day' preceding)
  ) w
) d
where (select routeledger.bound_tenants()) is null or d.tenant_id = any ((select routeledger.bound_tenants())::text[]);

-- What waits for each judge version that has claimed; where none has in a tenant, judge is null. ready is what a claim could
-- be given now: what is unlabeled, which goes to whoever asks first, and what of its own has expired, was given back or
-- was found by a search, and is due.
create or replace view routeledger.judge_queue
with (security_barrier = true)
as
select
  t.tenant_id,
  t.judge,
  t.judge_version,
  t.of_tenant + t.due - t.withheld as ready,
  t.of_tenant as unlabeled,
  t.delayed,
  t.claimed,
  t.expired,
  least(t.oldest_of_tenant, t.oldest_at) as oldest_at,
  t.searched_at
from (
  select
    j.*,
    max(j.unlabeled) over tenant as of_tenant,
    min(j.unlabeled_at) over tenant as oldest_of_tenant,
    count(j.judge) over tenant as judges
  from (
    select
      q.tenant_id, q.judge, q.judge_version,
      coalesce(sum(q.unlabeled), 0)::bigint as unlabeled,
      min(q.at) filter (where q.unlabeled > 0) as unlabeled_at,
      count(*) filter (where q.is_due and not q.is_unlabeled) as due,
      count(*) filter (where not q.is_due and q.is_unlabeled) as withheld,
      count(*) filter (where not q.is_due and not q.is_held) as delayed,
      count(*) filter (where not q.is_due and q.is_held) as claimed,
      count(*) filter (where q.is_due and q.is_held) as expired,
      min(q.at) filter (where q.is_due) as oldest_at,
      max(q.searched_at) as searched_at
    from (
      select
        u.tenant_id, null::text as judge, null::text as judge_version, u.n as unlabeled, routeledger.uuid_v7_time(f.id) as at,
        null::boolean as is_due, null::boolean as is_held, null::boolean as is_unlabeled, null::timestamptz as searched_at
      from (
        select o.tenant_id, count(*) as n
        from routeledger.routing_outcomes o
        where o.judge_status = 'unlabeled' and o.reward_source is null and o.outcome_status = 'succeeded' and o.inference_id is not null
        group by o.tenant_id
      ) u
      cross join lateral (
        select o.id
        from routeledger.routing_outcomes o
        where o.tenant_id = u.tenant_id
          and o.judge_status = 'unlabeled' and o.reward_source is null and o.outcome_status = 'succeeded' and o.inference_id is not null
        order by o.id
        limit 1
      ) f
      union all
      select
        l.tenant_id, l.judge, l.judge_version, 0::bigint as unlabeled, routeledger.uuid_v7_time(l.outcome_id) as at,
        l.due_at <= routeledger.clock() as is_due, l.lease_token is not null as is_held,
        -- given back untouched, which is then counted with the unlabeled ones, but for the judge that wants it later
        l.attempts = 0 and exists (
          select from routeledger.routing_outcomes o
          where o.tenant_id = l.tenant_id and o.id = l.outcome_id and o.judge_status = 'unlabeled' and o.reward_source is null) as is_unlabeled,
        null::timestamptz as searched_at
      from routeledger.judge_leases l
      union all
      select
        s.tenant_id, s.judge, s.judge_version, 0::bigint as unlabeled, null::timestamptz as at,
        null::boolean as is_due, null::boolean as is_held, null::boolean as is_unlabeled, s.ended_at as searched_at
      from routeledger.judge_searches s
    ) q
    group by q.tenant_id, q.judge, q.judge_version
  ) j
  window tenant as (partition by j.tenant_id)
) t
where (t.judge is not null or t.judges = 0)
  and ((select routeledger.bound_tenants()) is null or t.tenant_id = any ((select routeledger.bound_tenants())::text[]));
