-- 520 · Off-policy estimates: what another policy would have been worth and cost, by the decisions that another one made.
--
-- A ledger holds the reward and the cost of the model that was chosen, and of no other. Five estimates of what policy B would
-- have had are put beside each other, over the same decisions. With x the decision, a the model chosen first and b the one that B
-- chooses, y what came of it (its reward, or its cost in USD), p the propensity stored, w = 1 / p where a = b, else 0:
--
-- as_it_was is the mean of y: not B, but what it is held against. direct is the mean of q(x, b): what B's model got on
-- the task type elsewhere. It is wrong where a model was given the easy ones. ips is the mean of w y (Horvitz and Thompson 1952): right
-- on average whatever was given to whom, as long as p is right, and often wide. snips is sum(w y) / sum(w): narrower, with
-- a bias that vanishes as decisions grow (Hajek 1971; Swaminathan and Joachims 2015). doubly_robust is the mean of
-- q(x, b) + w (y - q(x, b)) (Robins and others 1994; Dudik and others 2011): right where p is, or q; narrow where q is good.
--
-- q is the mean of y over the other decisions of the task type in which that model was chosen first: never
-- the decision's own y, or the correction would vanish where it is needed.
--
-- What came of a decision counts for the model chosen first, which is what the propensity is of, whoever answered in the end:
-- retries and failovers are part of having chosen it. B is taken as deterministic, without its exploration, and knows of a
-- decision what was known the day before it. So its choice hangs on no answer of that day, and neither does the weight.
--
-- Not every decision has a reward, and one that failed or was abandoned has neither reward nor cost. Which ones have it may depend on
-- the task type and on the model, but given those not on y: then those that have it stand for those that do not, and
-- each weighs 1 / the share of its task type and model that has it. Judges that skip the hard ones break this.

-- Estimates what a policy would have been worth (quality, the mean reward) and have cost (cost_usd, the mean in USD per decision) over
-- the closed production decisions of a tenant from p_from up to, not including, p_to (UTC; by default the last 30 days), of
-- which at most p_limit are drawn: ten rows, for each measure one an estimator. The policy is taken without its exploration, if it
-- has any: it always chooses what it ranks first. A decision for which it chooses nothing is worth 0 and costs 0.
--
-- as_it_was is what the decisions were worth and cost themselves. direct takes for each the mean of the other decisions of its task type
-- in which the policy's model was chosen. ips weighs each decision in which the policy's model was chosen by w = 1 / propensity, the others
-- by 0; snips divides by the sum of the weights; doubly_robust is direct, corrected by what the weighed decisions differ from it.
-- Decisions without a reward (or cost), and those that failed or were abandoned, are represented by the others of their task type and
-- model. p_max_weight cuts w down to that: narrower intervals, and a bias.
--
-- value with its standard_error and the ends low and high of its normal interval at p_confidence; null where it cannot be said: for
-- direct without decisions, for the three that weigh with fewer than two matched.
-- decisions are those drawn, n those that the estimate is about, answered those of them for which the policy chooses a
-- model. Of the answered, matched are those in which that model was chosen and the reward (cost) is known; effective_n is
-- sum(w)^2 / sum(w^2) over them, how many equally weighing decisions would say as much; largest_weight their largest w;
-- mean_weight the mean of w over all answered, which comes out near 1: far from it the propensities are wrong, the
-- weights cut down, or too few matched. Of the other estimators these four are null.
--
-- Left out, each for the first reason that holds. no_candidates: none are stored (with p_all_models none is left out for that).
-- no_propensity: a model was chosen and nobody knows with which probability (null, or 0); a decision made by a fixed rule counts
-- only where it says so with a propensity of 1, as those of route without exploration do. no_chance: the policy chooses a
-- model that could not have been chosen: any other where the propensity is 1, any where the decision was rejected, one without a
-- propensity above 0 where candidates carry propensities; where none does, one that was dropped or was no candidate. unmeasured: of the
-- model that the policy chooses fewer than two decisions of the task type have a known reward (cost); for as_it_was, none has
-- one of the model that was chosen.
-- Locks: none. Errors: RL101, RL103, RL107, RL108, RL109, RL110, RL209.
create or replace function routeledger.estimate_policy(
  p_tenant_id text,
  p_policy text default 'default',
  p_overrides jsonb default '{}',
  p_from date default null,
  p_to date default null,
  p_limit integer default 10000,
  p_all_models boolean default false,
  p_confidence double precision default 0.95,
  p_max_weight double precision default null
)
returns table (
  estimator text,
  measure text,
  value double precision,
  standard_error double precision,
  low double precision,
  high double precision,
  decisions bigint,
  n bigint,
  answered bigint,
  matched bigint,
  effective_n double precision,
  mean_weight double precision,
  largest_weight double precision,
  no_candidates bigint,
  no_propensity bigint,
  no_chance bigint,
  unmeasured bigint,
  ruleset_hash text
)
language plpgsql
volatile
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_policy routeledger.routing_policies;
  v_from date;
  v_to date;
  v_z double precision;
  v_fault text;
begin
  select s.* into v_settings from routeledger.settings s;
  v_fault := coalesce(
    routeledger._replay_fault(p_tenant_id, p_from, p_to, p_limit, p_all_models, v_settings),
    case
      when p_confidence is null then 'RL101 confidence'
      when p_confidence not between 0.5 and 0.999 then 'RL103 confidence 0.5 to 0.999'
      when p_max_weight not between 1 and 1e9 then 'RL103 max_weight 1 to 1e9, or null'
    end);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_to := coalesce(p_to, (routeledger._now() at time zone 'UTC')::date + 1);
  v_from := coalesce(p_from, v_to - 30);
  v_policy := routeledger._policy(p_policy, p_overrides);
  v_z := routeledger._normal_quantile((1 + p_confidence) / 2);

  return query
  with decided as materialized (
    select
      r.task, r.chosen_slug as a, r.slug as b, r.propensity as p, r.reward, coalesce(r.ledger_usd, r.catalog_usd)::double precision as cost,
      case
        when r.candidates = 0 and not p_all_models then 'no_candidates'
        when r.chosen_slug is not null and (r.propensity > 0) is not true then 'no_propensity'
        when r.slug is not null and not r.had_chance then 'no_chance'
      end as reason
    from routeledger._replayed(p_tenant_id, v_policy, v_from, v_to, p_limit, p_all_models, true) r
  ),
  measured as materialized (
    select m.measure, d.task, d.a, d.b, d.p, d.reason, m.y
    from decided d
    cross join lateral (values ('quality', case when d.a is not null then d.reward end), ('cost_usd', d.cost)) m (measure, y)
  ),
  -- by task type and model: all decisions, those of which y is known, its sum, the squared error of its mean
  cell as materialized (
    select m.measure, m.task, m.a as slug, count(*) as n, count(m.y) as known, sum(m.y) as total, var_samp(m.y) / count(m.y) as error_sq
    from measured m
    where m.a is not null and m.reason is distinct from 'no_candidates' and m.reason is distinct from 'no_propensity'
    group by m.measure, m.task, m.a
  ),
  framed as materialized (
    select
      f.measure, f.b is not null as is_answered, f.y is not null as is_known, f.weight, f.share, f.y, f.own,
      -- what the model of the policy got elsewhere
      case when f.b is null then 0 when f.weight > 0 and f.y is not null then (f.total - f.y) / (f.known - 1) else f.total / f.known end as q,
      case when f.b is not null then f.error_sq * count(*) over (partition by f.measure, f.task, f.b) else 0 end as error_sq
    from (
      select
        m.measure, m.task, m.b, m.y, t.known, t.total, t.error_sq,
        case when m.a = m.b then least(1 / m.p, p_max_weight) else 0 end as weight,
        s.n / nullif(s.known, 0)::double precision as share,
        case when m.a is null then 0 when s.known > 0 then s.total / s.known end as own
      from measured m
      left join cell s on s.measure = m.measure and s.task = m.task and s.slug = m.a
      left join cell t on t.measure = m.measure and t.task = m.task and t.slug = m.b
      where m.reason is null and (m.b is null or t.known > 1)
    ) f
  ),
  summed as materialized (
    select
      f.measure, count(*) as n, count(*) filter (where f.is_answered) as answered, sum(f.error_sq) / count(*) ^ 2 as error_sq,
      count(*) filter (where f.weight > 0 and f.is_known) as matched,
      sum(f.weight * f.share) filter (where f.is_known) as weights,
      sum((f.weight * f.share) ^ 2) filter (where f.is_known) as weights_sq,
      sum(f.weight * f.share * f.y) filter (where f.is_known) as weighed,
      avg(f.weight) filter (where f.is_answered) as mean_weight,
      max(f.weight) filter (where f.is_known) as largest_weight
    from framed f
    group by f.measure
  ),
  -- an estimate is the mean of its terms
  estimated as (
    select f.measure, t.estimator, count(t.term) as n, avg(t.term) as value, var_samp(t.term) / count(t.term) as error_sq
    from framed f
    join summed s on s.measure = f.measure
    cross join lateral (select case when f.is_known then f.weight * f.share else 0 end) w (weight)
    cross join lateral (select case when s.answered = 0 then 0 when s.matched > 1 then s.weighed / s.weights end) r (ratio)
    cross join lateral (values
      ('as_it_was', f.own + case when f.is_known then f.share * (f.y - f.own) else 0 end),
      ('direct', f.q),
      ('ips', case when r.ratio is not null then case when w.weight > 0 then w.weight * f.y else 0 end end),
      ('snips', case when f.is_answered then r.ratio else 0 end
        + case when w.weight > 0 then w.weight * (f.y - r.ratio) * s.answered / s.weights else 0 end),
      ('doubly_robust', case when r.ratio is not null then f.q + case when w.weight > 0 then w.weight * (f.y - f.q) else 0 end end)
    ) t (estimator, term)
    group by f.measure, t.estimator
  ),
  left_out as (
    select
      count(*) as decisions,
      count(*) filter (where d.reason = 'no_candidates') as no_candidates,
      count(*) filter (where d.reason = 'no_propensity') as no_propensity,
      count(*) filter (where d.reason = 'no_chance') as no_chance
    from decided d
  )
  select
    g.estimator, m.measure, e.value, e.error, e.value - v_z * e.error, e.value + v_z * e.error, l.decisions, coalesce(e.n, 0), coalesce(s.answered, 0),
    case when g.weighs then coalesce(s.matched, 0) end,
    case when g.weighs then s.weights ^ 2 / nullif(s.weights_sq, 0) end,
    case when g.weighs then s.mean_weight end,
    case when g.weighs then s.largest_weight end,
    l.no_candidates, l.no_propensity, l.no_chance, l.decisions - l.no_candidates - l.no_propensity - l.no_chance - coalesce(e.n, 0), v_policy.ruleset_hash
  from (values (1, 'quality'), (2, 'cost_usd')) m (place, measure)
  cross join (values (1, 'as_it_was', false), (2, 'direct', false), (3, 'ips', true), (4, 'snips', true), (5, 'doubly_robust', true)) g (place, estimator, weighs)
  cross join left_out l
  left join summed s on s.measure = m.measure
  left join lateral (
    select
      d.value, sqrt(d.error_sq + case when g.estimator = 'direct' then s.error_sq else 0 end) as error,
      case when g.weighs then s.n else d.n end as n
    from estimated d
    where d.measure = m.measure and d.estimator = g.estimator
  ) e on true
  order by m.place, g.place;
end
$$;
