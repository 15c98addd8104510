-- 500 · Routing: the cheapest model that clears a measured floor, decided and written in one call.
--
-- Two numbers are kept apart. The floor quality says whether a model is acceptable: its prior, or the mean of its measured
-- rewards once there are min_samples of them in the window, or their lower confidence bound. The ranking score says
-- which of the acceptable ones is the better buy: the projected cost of the request, that cost divided by the mean
-- quality, or that cost plus what a failure costs times how often it happens. A good expensive model is outranked, never rejected for its price per success.
--
-- The projected cost is tokens times the price in force, never what the ledger says that calls have cost: a cost
-- reported wrongly, or calls without token counts, neither make nor break a model. A price that the catalog flags is
-- not used at all.

-- What the ranking reads of a window of buckets, so that it need not visit the table; the key is (day, model) by tenant and task.
-- squawk-ignore require-concurrent-index-creation
create index if not exists model_performance_buckets_ranking_idx
on routeledger.model_performance_buckets (tenant_id, task_type, day)
include (reward_n, reward_sum, latency_n, latency_sum_ms, model_key);

do $types$
begin
  if to_regtype('routeledger.route_input') is null then
    create type routeledger.route_input as (
      tenant_id text,
      id uuid,
      agent_id text,
      task_type text,
      policy text,
      candidates text[],
      overrides jsonb,
      input_tokens bigint,
      output_tokens bigint,
      pinned_model text,
      budget_key text,
      deadline interval,
      traffic_class text,
      event_at timestamptz,
      lease interval,
      attempt_id uuid,
      metadata jsonb,
      seed bigint
    );
    create type routeledger.route_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      attempt_id uuid,
      attempt_no integer,
      model_slug text,
      provider text,
      decision_rule text,
      outcome_status text,
      fallbacks text[],
      delay_ms bigint,
      available_at timestamptz,
      projected_cost_usd numeric,
      policy_version text,
      ruleset_hash text,
      propensity double precision
    );
  end if;
end
$types$;

-- Returns the quantile of the standard normal distribution for a p from 0.5 to 0.9999, to about 1e-16 of its value
-- (algorithm AS 241, Wichura 1988).
-- Locks: none. Errors: none.
create or replace function routeledger._normal_quantile(
  p double precision
)
returns double precision
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  q double precision := p - 0.5;
  r double precision;
begin
  if q <= 0.425 then
    r := 0.180625 - q * q;
    return q * (((((((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4) * r + 4.5921953931549871457e4) * r
        + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r + 1.3314166789178437745e2) * r + 3.3871328727963666080e0)
      / (((((((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4) * r + 2.1213794301586595867e4) * r
        + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r + 4.2313330701600911252e1) * r + 1.0);
  end if;
  r := sqrt(-ln(1 - p)) - 1.6;
  return (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r + 1.27045825245236838258e0) * r
      + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r + 4.63033784615654529590e0) * r + 1.42343711074968357734e0)
    / (((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r + 1.48103976427480074590e-1) * r
      + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r + 2.05319162663775882187e0) * r + 1.0);
end
$$;

-- Judges the candidates of one request, or all models enrolled where there are none: one row each, stage 0 where all is
-- well, else the number of the first check that it fails, from the last check (1) to the first (8).
--
-- known_stage leaves the veto out. score is what a model of known_stage 0 is ranked by, lower is better: the projected cost,
-- that divided by the mean quality, rounded down to 1e-15, or that plus failure_cost_usd * (1 - mean quality). Where p_z is given the quality is a lower bound at z. Means are rounded, qualities to
-- 1e-9, so that the order in which sums were added up makes no difference.
-- mean is the mean reward of the window where it has min_samples and lies between 0 and 1, as a quality does.
-- Rewards on another scale are no quality: the prior stands.
-- Whoever calls it plans with a random_page_cost for pages in memory, or the price of each model is looked for in all.
-- The inner selects end in `offset 0`, so that no expression of one is copied into the next: copied, they cost more than
-- the query. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._judge_candidates(
  p_tenant_id text,
  p_task_type text,
  p_policy routeledger.routing_policies,
  p_candidates text[],
  p_input_tokens bigint,
  p_input_mtok numeric,
  p_output_mtok numeric,
  p_z double precision,
  p_at timestamptz,
  p_first_day date,
  p_last_day date
)
returns table (
  model_slug text,
  provider text,
  brand_slug text,
  stage integer,
  known_stage integer,
  quality double precision,
  quality_source text,
  samples double precision,
  reward_sum double precision,
  cost_usd numeric,
  cost_per_success_usd numeric,
  latency_ms double precision,
  score numeric,
  available_at timestamptz
)
language sql
stable
parallel safe
security invoker
as $$
  with cooling as materialized (
    select c.model_slug, c.provider, c.until_at from routeledger._cooling(p_tenant_id, p_at) c
  )
  select
    j.model_slug, j.provider, j.brand_slug,
    case when j.vetoed and j.known_stage < 6 then 5 else j.known_stage end,
    j.known_stage, j.quality,
    case when j.mean is null then case when j.q_prior is not null then 'prior' end when p_z is null then 'measured' else 'lower_bound' end,
    coalesce(j.samples, 0), coalesce(j.reward_sum, 0),
    j.cost_usd, j.cost_per_success_usd, j.latency_ms,
    case when j.known_stage = 0 then case (p_policy).ordering
      when 'price' then j.cost_usd
      when 'expected_cost_per_success' then j.cost_per_success_usd
      -- what the request costs and, as often as it goes wrong, what that costs
      else j.cost_usd + (p_policy).failure_cost_usd * (1000000000 - (coalesce(j.mean, j.q_prior) * 1e9)::bigint) * 1e-9
    end end,
    j.available_at
  from (
    select
      q.*,
      div(q.cost_usd * 1e24, nullif((coalesce(q.mean, q.q_prior) * 1e9)::bigint, 0)) * 1e-15 as cost_per_success_usd,
      case
        when q.cost_usd is null then 8
        when q.flag is not null then 7
        when q.quality is null then 6
        when q.quality < (p_policy).min_quality then 4
        when q.cost_usd > (p_policy).budget_cap_usd then 3
        when q.latency_ms > (p_policy).latency_cap_ms then 2
        when q.available_at is not null then 1
        else 0
      end as known_stage
    from (
      select
        m.*,
        case
          when m.mean is null then m.q_prior
          when p_z is null then m.mean
          -- Wilson's score interval; of rewards between 0 and 1 those that are 0 or 1 have the largest variance
          else greatest(
            (m.mean + p_z * p_z / (2 * m.samples) - p_z * sqrt(m.mean * (1 - m.mean) / m.samples + p_z * p_z / (4 * m.samples * m.samples)))
              / (1 + p_z * p_z / m.samples),
            0)
        end as quality
      from (
        select
          c.model_slug, c.provider, c.brand_slug, c.q_prior, x.samples, x.reward_sum, p.flag,
          p_input_mtok * p.input_usd_per_mtok + p_output_mtok * p.output_usd_per_mtok as cost_usd,
          not c.enrolled or c.deprecated_at <= p_at or c.max_input_tokens < p_input_tokens
            or (cardinality((p_policy).allow) > 0 and c.model_slug <> all ((p_policy).allow)) or c.model_slug = any ((p_policy).deny) as vetoed,
          case when x.samples >= (p_policy).min_samples and x.reward_sum between 0 and x.samples then round(x.reward_sum / x.samples * 1e9) / 1e9 end as mean,
          case when x.latency_n >= (p_policy).min_samples then round(x.latency_sum_ms / x.latency_n * 1e3) / 1e3 else c.expected_latency_ms end as latency_ms,
          case when (select true from cooling limit 1) then
            (select max(k.until_at) from cooling k where k.model_slug = c.model_slug and k.provider in ('', c.provider))
          end as available_at
        from (
          select m.model_slug, m.provider, m.brand_slug, m.q_prior, m.expected_latency_ms, m.enrolled, m.deprecated_at, m.max_input_tokens
          from routeledger.models m
          where p_candidates is null and m.enrolled
          union all
          select n.model_slug, m.provider, m.brand_slug, m.q_prior, m.expected_latency_ms, m.enrolled, m.deprecated_at, m.max_input_tokens
          from (select distinct n from unnest(p_candidates) n) n (model_slug)
          left join routeledger.models m on m.model_slug = n.model_slug
        ) c
        left join lateral (
          select p.input_usd_per_mtok, p.output_usd_per_mtok, p.flag
          from routeledger.model_prices p
          where p.model_slug = c.model_slug and p.valid_from <= p_at
          order by p.valid_from desc
          limit 1
        ) p on true
        left join (
          select
            b.model_key,
            sum(b.reward_n::double precision) as samples,
            sum(b.reward_sum) as reward_sum,
            sum(case when b.latency_sum_ms is not null then b.latency_n end::double precision) as latency_n,
            sum(b.latency_sum_ms) as latency_sum_ms
          from routeledger.model_performance_buckets b
          where b.tenant_id = p_tenant_id and b.task_type = p_task_type and b.day between p_first_day and p_last_day
          group by b.model_key
        ) x on x.model_key = c.model_slug
        offset 0
      ) m
      offset 0
    ) q
    offset 0
  ) j
$$;

-- Puts the candidates of one request in order: those of stage 0 by score, quality and slug; then the others, those that
-- came furthest first. Of each maker the k-th counts (1 + diversity_penalty)^(k - 1) times its score.
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._rank_candidates(
  p_tenant_id text,
  p_task_type text,
  p_policy routeledger.routing_policies,
  p_candidates text[],
  p_input_tokens bigint,
  p_input_mtok numeric,
  p_output_mtok numeric,
  p_z double precision,
  p_at timestamptz,
  p_first_day date,
  p_last_day date
)
returns table (
  place bigint,
  model_slug text,
  provider text,
  stage integer,
  known_stage integer,
  quality double precision,
  quality_source text,
  samples double precision,
  reward_sum double precision,
  cost_usd numeric,
  cost_per_success_usd numeric,
  latency_ms double precision,
  score numeric,
  available_at timestamptz
)
language sql
stable
parallel safe
security invoker
as $$
  with judged as materialized (
    select j.*
    from routeledger._judge_candidates(
      p_tenant_id, p_task_type, p_policy, p_candidates, p_input_tokens, p_input_mtok, p_output_mtok, p_z, p_at, p_first_day, p_last_day) j
  )
  select
    row_number() over (order by r.stage, r.score, r.quality desc nulls last, r.model_slug collate "C"),
    r.model_slug, r.provider, r.stage, r.known_stage, r.quality, r.quality_source, r.samples, r.reward_sum, r.cost_usd, r.cost_per_success_usd,
    r.latency_ms, r.score, r.available_at
  from (
    select j.* from judged j where (p_policy).diversity_penalty = 0
    union all
    select
      d.model_slug, d.provider, d.brand_slug, d.stage, d.known_stage, d.quality, d.quality_source, d.samples, d.reward_sum, d.cost_usd, d.cost_per_success_usd,
      d.latency_ms,
      case when d.brand_slug is null then d.score else d.score * (1 + (p_policy).diversity_penalty::numeric) ^ (row_number() over (
        partition by d.stage, d.brand_slug order by d.score, d.quality desc, d.model_slug collate "C") - 1) end,
      d.available_at
    from judged d
    where (p_policy).diversity_penalty > 0
  ) r
  order by r.stage, r.score, r.quality desc nulls last, r.model_slug collate "C"
$$;

-- Returns the word for the check that a candidate fails; null for stage 0. Without a pinned path so that the planner can
-- inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._drop_reason(
  p_stage integer
)
returns text
language sql
immutable
parallel safe
security invoker
as $$
  select (array['cooling_down', 'exceeds_latency_cap', 'exceeds_budget_cap', 'below_quality_floor', 'm_allowed_veto',
    'not_enrolled_no_q_prior', 'price_flagged', 'not_enrolled_no_price'])[p_stage]
$$;

-- Judges the arguments of a ranking; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._ranking_fault(
  p_tenant_id text,
  p_task_type text,
  p_candidates text[],
  p_input_tokens bigint,
  p_output_tokens bigint,
  p_settings routeledger.settings
)
returns text
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if coalesce(p_tenant_id, '') = '' then return 'RL101 tenant_id';
  elsif length(p_tenant_id) > 200 then return 'RL108 tenant_id 200 characters';
  elsif p_settings.tenants_bound and p_tenant_id <> all (routeledger.bound_tenants()) then return 'RL110 tenant_id';
  elsif p_task_type = '' then return 'RL103 task_type null or not empty';
  elsif length(p_task_type) > 200 then return 'RL108 task_type 200 characters';
  elsif cardinality(p_candidates) > 500 then return 'RL502 candidates 500';
  elsif exists (select from unnest(p_candidates) c where coalesce(c, '') = '') then return 'RL106 candidates';
  elsif exists (select from unnest(p_candidates) c where length(c) > 300) then return 'RL108 candidates 300 characters a model_slug';
  elsif p_input_tokens not between 0 and 1000000000000 then return 'RL103 input_tokens 0 to 1e12';
  elsif p_output_tokens not between 0 and 1000000000000 then return 'RL103 output_tokens 0 to 1e12';
  end if;
  return null;
end
$$;

-- Ranks the candidates of a request, all enrolled models where none are named, by a policy: every one has a rank, 1 is the
-- best, or the one drop_reason of the first check that it fails:
-- not_enrolled_no_price (the price of its input or output is unknown), price_flagged (its price is out of line),
-- not_enrolled_no_q_prior (neither measured nor given a prior), m_allowed_veto (denied, not on the allow list, not
-- enrolled, retired, or its context too short for input_tokens), below_quality_floor, exceeds_budget_cap, exceeds_latency_cap,
-- cooling_down. The dropped ones follow, those that came furthest first. The same inputs give the same order and ruleset_hash.
--
-- quality is what the floor is held against: the mean reward of the window's buckets of this task type (`__global__` without one)
-- where they have min_samples, with floor lower_bound its one-sided Wilson bound at `confidence`; else the model's prior.
-- Rewards whose mean is not between 0 and 1 are no quality. quality_source: prior, measured, lower_bound.
-- projected_cost_usd is for input_tokens and output_tokens, those of the policy where they are not given;
-- cost_per_success_usd is that over the mean quality. expected_latency_ms is the mean of what succeeded where there are
-- min_samples, else the catalog's; an unknown latency exceeds no cap. ranking_score is what the order is by: lowest
-- first, then the higher quality, then the slug. p_overrides replaces rules of the policy for this call.
-- p_at is the time of prices, cooldowns and the window's last day (UTC); now when absent.
-- Locks: none. Errors: RL101, RL103, RL106 to RL110, RL209, RL502.
create or replace function routeledger.rank_candidates(
  p_tenant_id text,
  p_task_type text default null,
  p_policy text default 'default',
  p_candidates text[] default null,
  p_overrides jsonb default '{}',
  p_input_tokens bigint default null,
  p_output_tokens bigint default null,
  p_at timestamptz default null
)
returns table (
  rank integer,
  model_slug text,
  provider text,
  drop_reason text,
  quality double precision,
  quality_source text,
  samples bigint,
  projected_cost_usd numeric,
  cost_per_success_usd numeric,
  expected_latency_ms double precision,
  ranking_score numeric,
  ruleset_hash text
)
language plpgsql
volatile
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set random_page_cost = 1.1
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_policy routeledger.routing_policies;
  v_fault text;
  v_at timestamptz := coalesce(p_at, routeledger._now());
  v_day date;
  v_z double precision;
begin
  select s.* into v_settings from routeledger.settings s;
  v_fault := routeledger._ranking_fault(p_tenant_id, p_task_type, p_candidates, p_input_tokens, p_output_tokens, v_settings);
  if v_fault is null and v_at not between timestamptz '1971-01-01 00:00:00+00' and timestamptz '5000-01-01 00:00:00+00' then
    v_fault := 'RL109 at from 1971 to 5000';
  end if;
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_policy := routeledger._policy(p_policy, p_overrides);
  v_day := (v_at at time zone 'UTC')::date;
  if v_policy.floor = 'lower_bound' then
    v_z := routeledger._normal_quantile(v_policy.confidence);
  end if;

  return query
  select
    case when r.stage = 0 then r.place end::integer, r.model_slug, r.provider, routeledger._drop_reason(r.stage), r.quality, r.quality_source, r.samples::bigint,
    r.cost_usd, r.cost_per_success_usd, r.latency_ms, case when r.stage = 0 then r.score end, v_policy.ruleset_hash
  from routeledger._rank_candidates(
    p_tenant_id, coalesce(p_task_type, '__global__'), v_policy, p_candidates, p_input_tokens,
    coalesce(p_input_tokens, v_policy.input_tokens) * 0.000001, coalesce(p_output_tokens, v_policy.output_tokens) * 0.000001,
    v_z, v_at, v_day - v_policy.window_days + 1, v_day) r;
end
$$;

-- Ranks the candidates of a decision and returns what it needs of them. Eligible, best first: slugs, providers, costs_usd,
-- samples, reward_sums. documents: what is stored of them and of the dropped, in order: of all that were named, else
-- of the first 50, without those of which nobody knows a price or a quality. enrolled: whether any candidate is.
-- vetoed_cheaper: whether one that is not allowed would have been a better buy. returns_first: of those that only cool
-- down the place in documents of the first to return.
-- Locks: none. Errors: none.
create or replace function routeledger._candidates_of(
  p_given routeledger.route_input,
  p_policy routeledger.routing_policies,
  p_at timestamptz,
  out slugs text[],
  out providers text[],
  out costs_usd numeric[],
  out samples double precision[],
  out reward_sums double precision[],
  out documents jsonb[],
  out enrolled boolean,
  out vetoed_cheaper boolean,
  out returns_first integer
)
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set random_page_cost = 1.1
as $$
declare
  v_candidates text[] := case when p_given.pinned_model is null then p_given.candidates else array[p_given.pinned_model] end;
  v_most bigint := case when v_candidates is null then 50 else 500 end;
  v_day date := (p_at at time zone 'UTC')::date;
  v_z double precision;
  v_eligible integer;
  v_times timestamptz[];
begin
  if p_policy.floor = 'lower_bound' then
    v_z := routeledger._normal_quantile(p_policy.confidence);
  end if;
  -- They come in order, and no aggregate asks for another one: that would change it for all.
  select
    array_agg(r.model_slug) filter (where r.stage = 0 and r.place <= v_most),
    array_agg(r.provider) filter (where r.stage = 0 and r.place <= v_most),
    array_agg(r.cost_usd) filter (where r.stage = 0 and r.place <= v_most),
    array_agg(r.samples) filter (where r.stage = 0 and r.place <= v_most),
    array_agg(r.reward_sum) filter (where r.stage = 0 and r.place <= v_most),
    array_agg(jsonb_strip_nulls(jsonb_build_object(
      'model_slug', r.model_slug,
      'provider', r.provider,
      'rank', case when r.stage = 0 then r.place end,
      'drop_reason', routeledger._drop_reason(r.stage),
      'quality', round(r.quality::numeric, 6),
      'quality_source', r.quality_source,
      'projected_cost_usd', trim_scale(r.cost_usd),
      'available_at', r.available_at))
    ) filter (where r.place <= v_most and (v_candidates is not null or r.stage not in (6, 8))),
    coalesce(bool_or(r.stage < 5), false),
    min(r.score) filter (where r.stage = 5) < min(r.score) filter (where r.stage = 0),
    count(*) filter (where r.stage = 0),
    array_agg(r.available_at) filter (where r.stage = 1)
  into slugs, providers, costs_usd, samples, reward_sums, documents, enrolled, vetoed_cheaper, v_eligible, v_times
  from routeledger._rank_candidates(
    p_given.tenant_id, coalesce(p_given.task_type, '__global__'), p_policy, v_candidates, p_given.input_tokens,
    coalesce(p_given.input_tokens, p_policy.input_tokens) * 0.000001, coalesce(p_given.output_tokens, p_policy.output_tokens) * 0.000001,
    v_z, p_at, v_day - p_policy.window_days + 1, v_day) r;
  returns_first := v_eligible + array_position(v_times, (select min(t) from unnest(v_times) t));
end
$$;

-- Draws the winner of each of 200 rounds among the first ten eligible candidates, Thompson sampling: in each round every
-- arm's quality is drawn from its Beta posterior, Beta(1 + rewards, 1 + samples - rewards), and the arm wins that the
-- policy would choose if these were the qualities; where none clears the floor, the best of them. As long as there are
-- arms with fewer than p_min_samples samples, only they take part. The same seed and arms give the same winners.
--
-- A Beta variate is made of two gamma variates, each of them a cubed normal one (Wilson and Hilferty 1931), which is close
-- enough: the shares of the winners are exact whatever the law of the draws.
-- Locks: none. Errors: none.
create or replace function routeledger._draw_winners(
  p_policy routeledger.routing_policies,
  p_slugs text[],
  p_costs_usd numeric[],
  p_samples double precision[],
  p_reward_sums double precision[],
  p_seed bigint
)
returns integer[]
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    with arm as materialized (
      select
        a.n::integer as n, a.slug, a.cost_usd::double precision as cost,
        1 + case when a.reward_sum between 0 and a.samples then a.reward_sum else 0 end as alpha,
        1 + case when a.reward_sum between 0 and a.samples then a.samples - a.reward_sum else 0 end as beta
      from (
        select a.*, bool_or(a.samples < p_policy.exploration_min_samples) over () as some_lack
        from unnest(p_slugs, p_costs_usd, p_samples, p_reward_sums) with ordinality a (slug, cost_usd, samples, reward_sum, n)
        where a.n <= 10
      ) a
      where not a.some_lack or a.samples < p_policy.exploration_min_samples
    ),
    normal as (
      select
        w.round, a.n, a.cost, a.alpha, a.beta,
        sqrt(-2 * ln((((h.bits >> 32) & 4294967295)::double precision + 0.5::double precision) / 4294967296)) as radius,
        2 * pi() * ((h.bits & 4294967295)::double precision + 0.5::double precision) / 4294967296 as angle
      from arm a
      cross join generate_series(1, 200) w (round)
      cross join lateral (select hashtextextended(a.slug || ' ' || w.round, p_seed)) h (bits)
      offset 0
    ),
    gamma as (
      select
        d.round, d.n, d.cost,
        d.alpha * greatest(1 - 1 / (9 * d.alpha) + d.radius * cos(d.angle) / (3 * sqrt(d.alpha)), 0.001::double precision) ^ 3 as x,
        d.beta * greatest(1 - 1 / (9 * d.beta) + d.radius * sin(d.angle) / (3 * sqrt(d.beta)), 0.001::double precision) ^ 3 as y
      from normal d
      offset 0
    ),
    drawn as (
      select g.round, g.n, g.cost, g.x / (g.x + g.y) as quality
      from gamma g
      offset 0
    ),
    won as (
      select distinct on (d.round) d.round, d.n
      from drawn d
      order by
        d.round,
        d.quality < p_policy.min_quality,
        case when d.quality >= p_policy.min_quality then case p_policy.ordering
          when 'price' then d.cost
          when 'expected_cost_per_success' then d.cost / d.quality
          else d.cost + p_policy.failure_cost_usd::double precision * (1 - d.quality)
        end end,
        d.quality desc,
        d.n
    )
    select array_agg(w.n order by w.round) from won w
  );
end
$$;

-- Returns a number from 0 to below 1, the same for the same seed and word.
-- Locks: none. Errors: none.
create or replace function routeledger._seeded(
  p_seed bigint,
  p_word text
)
returns double precision
language sql
immutable
parallel safe
security invoker
as $$
  select ((hashtextextended(p_word, p_seed) >> 11) & 9007199254740991) / 9007199254740992.0::double precision
$$;

-- Returns what a decision that is in the ledger already was routed to, or a refusal (RL301) where another request was
-- routed, or none was, under that id.
-- Locks: none. Errors: none; a fault is part of the result.
create or replace function routeledger._routed(
  p_given routeledger.route_input,
  p_stored routeledger.routing_outcomes,
  p_now timestamptz
)
returns routeledger.route_result
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.route_result;
  v_first routeledger.inferences;
begin
  select i.* into v_first
  from routeledger.inferences i
  where i.tenant_id = p_stored.tenant_id and i.outcome_id = p_stored.id and i.attempt_no = 1;
  if p_stored.ruleset_hash is null
    or (p_stored.agent_id, p_stored.task_type, split_part(p_stored.policy_version, '@', 1), p_stored.traffic_class, p_stored.metadata, p_stored.lease,
        p_stored.event_at, p_stored.budget_key, p_stored.deadline_at, v_first.id)
      is distinct from
       (p_given.agent_id, p_given.task_type, split_part(coalesce(p_given.policy, 'default'), '@', 1), coalesce(p_given.traffic_class, 'production'), p_given.metadata,
        coalesce(p_given.lease, p_stored.lease), coalesce(p_given.event_at, p_stored.event_at), p_given.budget_key, p_stored.created_at + p_given.deadline,
        case when v_first.id is not null then coalesce(p_given.attempt_id, v_first.id) end)
    or (p_stored.decision_rule = 'pinned' and p_stored.chosen_model_slug is distinct from p_given.pinned_model)
    or (p_stored.decision_rule <> 'pinned' and p_stored.chosen_model_slug is not null and p_given.pinned_model is not null)
  then
    v_result.status := 'refused';
    v_result.code := 'RL301';
    v_result.detail := jsonb_build_object('tenant_id', p_stored.tenant_id, 'id', p_stored.id, 'decided_at', p_stored.created_at);
    return v_result;
  end if;
  v_result.status := 'replayed';
  v_result.id := p_stored.id;
  v_result.attempt_id := v_first.id;
  v_result.attempt_no := v_first.attempt_no;
  v_result.model_slug := v_first.model_slug;
  v_result.provider := v_first.provider;
  v_result.decision_rule := p_stored.decision_rule;
  v_result.outcome_status := case when v_first.id is null then p_stored.outcome_status end;
  v_result.policy_version := p_stored.policy_version;
  v_result.ruleset_hash := p_stored.ruleset_hash;
  v_result.propensity := p_stored.propensity;
  select
    coalesce(array_agg(c.e ->> 'model_slug' order by c.n) filter (where c.n <> v_first.candidate_no and c.e -> 'drop_reason' is null), '{}'),
    min(c.e ->> 'projected_cost_usd') filter (where c.n = v_first.candidate_no)::numeric,
    min((c.e ->> 'available_at')::timestamptz) filter (where v_first.id is null or c.n = v_first.candidate_no)
  into v_result.fallbacks, v_result.projected_cost_usd, v_result.available_at
  from jsonb_array_elements(p_stored.candidates) with ordinality c (e, n);
  if v_first.id is not null then
    v_result.delay_ms := greatest(coalesce(ceil(extract(epoch from v_result.available_at - p_now) * 1000), 0), 0)::bigint;
  end if;
  return v_result;
end
$$;

-- Returns when a model that only cools down may be called, and whether this attempt is the probe that it is called
-- for. Null where another attempt has just become its probe. Behind a probe that is out others come a little apart.
-- Locks: the cooldown (skip locked). Errors: none.
create or replace function routeledger._wait_for(
  p_tenant_id text,
  p_model_slug text,
  p_provider text,
  p_attempt_id uuid,
  p_settings routeledger.settings,
  p_now timestamptz,
  out starts_at timestamptz,
  out probe boolean
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  select max(c.until_at) + case when bool_or(c.state = 'probing') then p_settings.retry_base * random() else interval '0' end, not bool_or(c.state = 'probing')
  into starts_at, probe
  from routeledger._cooling(p_tenant_id, p_now) c
  where c.model_slug = p_model_slug and c.provider in ('', coalesce(p_provider, ''));
  if probe then
    probe := routeledger._take_probe(p_tenant_id, p_model_slug, p_provider, p_attempt_id, p_now, p_settings.probe_lease, starts_at);
    if not probe then
      starts_at := null;
    end if;
  end if;
end
$$;

-- Returns the eligible candidates that are left, as places, best first: all, or where budgets concern the decision those
-- that they cover.
-- Locks: none. Errors: none.
create or replace function routeledger._covered(
  p_given routeledger.route_input,
  p_costs_usd numeric[],
  p_settings routeledger.settings,
  p_now timestamptz
)
returns integer[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_settings.budgets_defined and p_given.traffic_class is distinct from 'replay'
    and routeledger._budget_short(p_given.tenant_id, p_given.agent_id, p_given.budget_key, (select max(c) from unnest(p_costs_usd) c), p_now) is not null
  then
    return array(
      select c.n::integer
      from unnest(p_costs_usd) with ordinality c (cost_usd, n)
      where routeledger._budget_short(p_given.tenant_id, p_given.agent_id, p_given.budget_key, c.cost_usd, p_now) is null
      order by c.n);
  end if;
  return array(select generate_series(1, cardinality(p_costs_usd)));
end
$$;

-- Routes one request: ranks, chooses, writes the decision and its first attempt, or finds that its id was routed before.
--
-- The chosen one is the first eligible that its budgets cover and, where its cooldown has just ended, whose probe this
-- attempt may be; with exploration it is now and then the winner of a round instead. Where all that is acceptable
-- cools down, it is the first to return, if that is within the deadline, or without one within retry_cap.
-- The propensity is null where somebody else was faster to the last of a budget or to a probe: nobody can say it then.
-- Locks: those of insert_decision, and a cooldown (skip locked). Errors: none; a fault is part of the result.
create or replace function routeledger._route(
  p_given routeledger.route_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.route_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.route_result;
  v_fault text;
  v_stored routeledger.routing_outcomes;
  v_read record;
  v_policy routeledger.routing_policies;
  v_of record;
  v_wait record;
  v_documents jsonb[];
  v_left integer[];
  v_winners integer[];
  v_seed bigint;
  v_choice integer;
  v_explored boolean;
  v_exact boolean := true;
  v_ready routeledger.decision_ready;
  v_decided routeledger.decision_result;
begin
  v_result.status := 'refused';
  v_fault := routeledger._ranking_fault(
    p_given.tenant_id, p_given.task_type, p_given.candidates, p_given.input_tokens, p_given.output_tokens, p_settings);
  if v_fault is null and p_given.pinned_model is not null then
    v_fault := case
      when p_given.pinned_model = '' then 'RL103 pinned_model null or not empty'
      when length(p_given.pinned_model) > 300 then 'RL108 pinned_model 300 characters'
      when p_given.candidates is not null then 'RL103 candidates null where a model is pinned'
    end;
  end if;
  if v_fault is null and p_given.id is not null then
    select o.* into v_stored from routeledger.routing_outcomes o where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    if found then
      return routeledger._routed(p_given, v_stored, p_now);
    end if;
  end if;
  if v_fault is null then
    select r.policy, r.fault, r.detail into v_read from routeledger._read_policy(p_given.policy, p_given.overrides) r;
    v_policy := v_read.policy;
    v_fault := v_read.fault;
    v_result.detail := v_read.detail;
  end if;
  if v_fault is null then
    v_ready.given := row(
      p_given.tenant_id, p_given.id, p_given.agent_id, p_given.task_type, null, null, null, v_policy.min_quality, v_policy.budget_cap_usd,
      v_policy.name || '@' || v_policy.version, p_given.traffic_class, p_given.event_at, p_given.lease, p_given.attempt_id, p_given.metadata,
      p_given.budget_key, p_given.deadline, v_policy.ruleset_hash, null)::routeledger.decision_input;
    v_fault := routeledger._decision_fault(v_ready.given, p_settings, p_now);
  end if;
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := coalesce(v_result.detail, routeledger._fault_detail(v_fault));
    return v_result;
  end if;

  select c.* into v_of from routeledger._candidates_of(p_given, v_policy, p_now) c;
  v_documents := v_of.documents;
  if p_given.pinned_model is not null
    and (cardinality(v_policy.allow) = 0 or p_given.pinned_model = any (v_policy.allow)) and p_given.pinned_model <> all (v_policy.deny)
  then
    v_of.slugs := array[p_given.pinned_model];
    v_of.providers := array[v_documents[1] ->> 'provider'];
    v_of.costs_usd := array[(v_documents[1] ->> 'projected_cost_usd')::numeric];
    v_documents[1] := (v_documents[1] - array['drop_reason', 'available_at']) || '{"rank": 1}';
  end if;
  v_left := routeledger._covered(p_given, v_of.costs_usd, p_settings, p_now);
  if cardinality(v_left) < cardinality(v_of.slugs) then
    for i in 1 .. cardinality(v_of.slugs) loop
      if i <> all (v_left) then
        v_documents[i] := (v_documents[i] - 'rank') || '{"drop_reason": "exceeds_budget_cap"}';
      end if;
    end loop;
  end if;

  v_ready.id := coalesce(p_given.id, routeledger._uuid_v7_at(p_now));
  v_ready.decided_at := p_now;
  loop
    v_choice := v_left[1];
    v_explored := false;
    v_ready.probe := false;
    v_ready.given.propensity := case when v_exact then 1 end;
    v_ready.attempt_id := coalesce(p_given.attempt_id, routeledger._uuid_v7_at(p_now));
    v_ready.attempt_count := 1;
    v_ready.candidate_no := 1;
    v_ready.lease_expires_at := p_now + coalesce(p_given.lease, p_settings.lease);

    if v_choice is null and v_of.returns_first is not null then
      -- Nothing is left but what cools down.
      v_choice := v_of.returns_first;
      v_of.returns_first := null;
      v_result.available_at := (v_documents[v_choice] ->> 'available_at')::timestamptz;
      select w.starts_at, w.probe into v_wait
      from routeledger._wait_for(p_given.tenant_id, v_documents[v_choice] ->> 'model_slug', v_documents[v_choice] ->> 'provider', v_ready.attempt_id,
        p_settings, p_now) w;
      if v_wait.starts_at <= p_now + coalesce(p_given.deadline, p_settings.retry_cap) then
        v_ready.probe := v_wait.probe;
        v_ready.starts_at := v_wait.starts_at;
        v_ready.lease_expires_at := v_ready.lease_expires_at + (v_wait.starts_at - p_now);
        v_result.available_at := v_wait.starts_at;
        v_documents[v_choice] := (v_documents[v_choice] - 'drop_reason') || jsonb_build_object('rank', 1, 'available_at', v_wait.starts_at);
      else
        if v_wait.probe then
          perform routeledger._end_probe(
            p_given.tenant_id, v_documents[v_choice] ->> 'model_slug', v_documents[v_choice] ->> 'provider', v_ready.attempt_id, false);
        end if;
        v_choice := null;
      end if;
    elsif v_choice is not null then
      if v_policy.exploration = 'thompson' and cardinality(v_left) > 1 and p_given.pinned_model is null then
        v_seed := coalesce(p_given.seed, hashtextextended(v_ready.id::text, 0));
        v_winners := routeledger._draw_winners(
          v_policy, array(select v_of.slugs[n] from unnest(v_left) n), array(select v_of.costs_usd[n] from unnest(v_left) n),
          array(select v_of.samples[n] from unnest(v_left) n), array(select v_of.reward_sums[n] from unnest(v_left) n), v_seed);
        if routeledger._seeded(v_seed, 'share') < v_policy.exploration_share then
          v_choice := v_left[v_winners[1 + floor(routeledger._seeded(v_seed, 'round') * cardinality(v_winners))::integer]];
          v_explored := v_choice <> v_left[1];
        end if;
        for i in 1 .. least(cardinality(v_left), 10) loop
          v_documents[v_left[i]] := v_documents[v_left[i]] || jsonb_build_object('propensity',
            case when i = 1 then 1 - v_policy.exploration_share else 0 end
              + v_policy.exploration_share * (select count(*) from unnest(v_winners) w where w = i) / cardinality(v_winners));
        end loop;
        if v_exact then
          v_ready.given.propensity := (v_documents[v_choice] ->> 'propensity')::double precision;
        end if;
      end if;
      v_ready.probe := routeledger._take_probe(
        p_given.tenant_id, v_of.slugs[v_choice], v_of.providers[v_choice], v_ready.attempt_id, p_now, p_settings.probe_lease);
      if v_ready.probe is false and p_given.pinned_model is null then
        v_documents[v_choice] := (v_documents[v_choice] - array['rank', 'propensity']) || '{"drop_reason": "cooling_down"}';
        v_left := array_remove(v_left, v_choice);
        v_exact := false;
        continue;
      end if;
      v_ready.probe := coalesce(v_ready.probe, false);
    end if;

    if v_choice is null then
      v_ready.chosen_model_slug := null;
      v_ready.attempt_id := null;
      v_ready.attempt_count := 0;
      v_ready.candidate_no := null;
      v_ready.lease_expires_at := null;
      v_ready.outcome_status := 'rejected';
      v_ready.completed_at := p_now;
      v_ready.given.propensity := null;
      v_ready.decision_rule := case when v_of.enrolled then 'no_candidate_clears_floor' else 'no_candidate_enrolled' end;
      v_ready.candidates := coalesce(to_jsonb(v_documents), '[]');
    else
      v_ready.chosen_model_slug := v_documents[v_choice] ->> 'model_slug';
      v_ready.provider := v_documents[v_choice] ->> 'provider';
      v_ready.decision_rule := case
        when p_given.pinned_model is not null then 'pinned'
        when v_explored then 'exploration'
        when v_of.vetoed_cheaper then 'm_allowed_veto_applied'
        else 'cheapest_clearing_floor'
      end;
      v_ready.candidates := to_jsonb(v_documents[v_choice] || v_documents[:v_choice - 1] || v_documents[v_choice + 1:]);
    end if;
    v_decided := routeledger._insert_decision(v_ready, p_settings);

    if v_decided.status = 'accepted' then
      v_result.status := 'accepted';
      v_result.detail := null;
      v_result.id := v_decided.id;
      v_result.attempt_id := v_decided.attempt_id;
      v_result.attempt_no := v_decided.attempt_no;
      v_result.model_slug := v_decided.model_slug;
      v_result.provider := v_decided.provider;
      v_result.decision_rule := v_decided.decision_rule;
      v_result.outcome_status := v_decided.outcome_status;
      v_result.fallbacks := array(select v_of.slugs[n] from unnest(v_left) with ordinality l (n, o) where n <> v_choice order by o);
      v_result.delay_ms := case when v_choice is not null then coalesce(ceil(extract(epoch from v_ready.starts_at - p_now) * 1000), 0) end::bigint;
      v_result.projected_cost_usd := (v_documents[v_choice] ->> 'projected_cost_usd')::numeric;
      v_result.policy_version := (v_ready.given).policy_version;
      v_result.ruleset_hash := v_policy.ruleset_hash;
      v_result.propensity := (v_ready.given).propensity;
      return v_result;
    end if;
    if v_ready.probe then
      perform routeledger._end_probe(p_given.tenant_id, v_ready.chosen_model_slug, v_ready.provider, v_ready.attempt_id, false);
    end if;
    if v_decided.code = 'RL504' then
      v_documents[v_choice] := (v_documents[v_choice] - array['rank', 'propensity', 'available_at']) || '{"drop_reason": "exceeds_budget_cap"}';
      v_left := array_remove(v_left, v_choice);
      v_result.available_at := null;
      v_exact := false;
      continue;
    end if;
    -- Another session has just routed this id.
    select o.* into strict v_stored from routeledger.routing_outcomes o where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    return routeledger._routed(p_given, v_stored, p_now);
  end loop;
end
$$;

-- Routes one request and records the decision before the provider is called, in one call and one transaction: ranks the
-- candidates by the policy (see rank_candidates), chooses, reserves the budgets, and writes the decision with its
-- first attempt; where nothing is acceptable it is closed at once as `rejected`. The id is the idempotency key: a known
-- one returns what was decided then with created = false, whatever the ranking says now; for another request it is RL301.
--
-- decision_rule: cheapest_clearing_floor, m_allowed_veto_applied (a better buy is not allowed), exploration, pinned (that
-- model, unless the policy denies it, whatever it costs or is worth), no_candidate_clears_floor, no_candidate_enrolled.
-- fallbacks is the order in which fail_attempt goes on. delay_ms is how long to wait before the call, because all that is
-- acceptable cools down; where that takes longer than the deadline (without one: retry_cap) the decision is rejected
-- and available_at says when. A candidate that its budgets do not cover is dropped as exceeds_budget_cap.
-- propensity is the probability with which this model was served: 1 without exploration, and null where another call was
-- faster to the last of a budget. The draws of an exploration come from p_seed, or from the id.
-- Of a catalog the first 50 candidates are stored with the decision, of those that are named all.
-- Locks: the outcome's key, a cooldown (skip locked), the budgets' counters. Errors: RL101 to RL110, RL209, RL301, RL502.
create or replace function routeledger.route(
  p_tenant_id text,
  p_id uuid default null,
  p_agent_id text default null,
  p_task_type text default null,
  p_policy text default 'default',
  p_candidates text[] default null,
  p_overrides jsonb default '{}',
  p_input_tokens bigint default null,
  p_output_tokens bigint default null,
  p_pinned_model text default null,
  p_budget_key text default null,
  p_deadline interval default null,
  p_traffic_class text default 'production',
  p_event_at timestamptz default null,
  p_lease interval default null,
  p_attempt_id uuid default null,
  p_metadata jsonb default null,
  p_seed bigint default null
)
returns table (
  id uuid,
  attempt_id uuid,
  attempt_no integer,
  model_slug text,
  provider text,
  decision_rule text,
  outcome_status text,
  fallbacks text[],
  delay_ms bigint,
  available_at timestamptz,
  projected_cost_usd numeric,
  policy_version text,
  ruleset_hash text,
  propensity double precision,
  created boolean
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_result routeledger.route_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._route(
    row(p_tenant_id, p_id, p_agent_id, p_task_type, p_policy, p_candidates, p_overrides, p_input_tokens, p_output_tokens, p_pinned_model, p_budget_key,
      p_deadline, p_traffic_class, p_event_at, p_lease, p_attempt_id, p_metadata, p_seed)::routeledger.route_input,
    v_settings,
    routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query
  select
    v_result.id, v_result.attempt_id, v_result.attempt_no, v_result.model_slug, v_result.provider, v_result.decision_rule, v_result.outcome_status,
    v_result.fallbacks, v_result.delay_ms, v_result.available_at, v_result.projected_cost_usd, v_result.policy_version, v_result.ruleset_hash,
    v_result.propensity, v_result.status = 'accepted';
end
$$;

-- Routes many requests in one call and answers for each, in the order given; a bad row never fails its neighbours. The
-- result for a row is what route would have returned or raised for it. Rows are routed in order of (tenant_id, id),
-- those without an id last, and each sees what the ones before it reserved.
-- Locks: those of route, by (tenant_id, id). Errors: RL101, RL107, RL501 for the call; per row those of route.
create or replace function routeledger.routes(
  p_rows jsonb
)
returns table (
  ord integer,
  status text,
  code text,
  message text,
  detail jsonb,
  hint text,
  id uuid,
  attempt_id uuid,
  attempt_no integer,
  model_slug text,
  provider text,
  decision_rule text,
  outcome_status text,
  fallbacks text[],
  delay_ms bigint,
  available_at timestamptz,
  projected_cost_usd numeric,
  policy_version text,
  ruleset_hash text,
  propensity double precision
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_now timestamptz := routeledger._now();
  v_inputs routeledger.route_input[];
  v_faults text[];
  v_results routeledger.route_result[];
  v_result routeledger.route_result;
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults
  from routeledger._read_rows(null::routeledger.route_input, p_rows, array['candidates', 'overrides', 'metadata']) r;
  v_results := array_fill(null::routeledger.route_result, array[cardinality(v_faults)]);
  for v_i in
    select i.n
    from unnest(v_faults) with ordinality i (fault, n)
    order by (v_inputs[i.n]).tenant_id, (v_inputs[i.n]).id, i.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._route(v_inputs[v_i], v_settings, v_now);
    else
      v_result := null;
      v_result.status := 'refused';
      v_result.code := split_part(v_faults[v_i], ' ', 1);
      v_result.detail := routeledger._fault_detail(v_faults[v_i]);
      v_results[v_i] := v_result;
    end if;
  end loop;

  return query
  select
    r.n::integer, r.status, r.code, e.message, r.detail, e.hint, r.id, r.attempt_id, r.attempt_no, r.model_slug, r.provider, r.decision_rule,
    r.outcome_status, r.fallbacks, r.delay_ms, r.available_at, r.projected_cost_usd, r.policy_version, r.ruleset_hash, r.propensity
  from unnest(v_results) with ordinality r (
    status, code, detail, id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, fallbacks, delay_ms, available_at,
    projected_cost_usd, policy_version, ruleset_hash, propensity, n)
  left join routeledger._errors() e on e.code = r.code
  order by r.n;
end
$$;
