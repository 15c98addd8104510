-- 510 · Replay: what another policy would have decided, what that would have cost, how good it would have been.
--
-- A decision of the past is ranked anew among the candidates stored with it, at the prices in force then and with the
-- buckets of the days before it: nothing that happened on its day or later chooses, nor how long its own answer was. What is
-- chosen is judged by the reward of the decision itself where the same model answered it, else by the buckets of its day
-- and later, which the choice has not seen. What is not known is null and counts as nothing, neither as right nor as free.
--
-- The judgement by buckets takes it that the model would have done as well on these decisions as it did on others of
-- the task type. Where a policy sent it the easy ones that is too kind. The propensity stored with each decision comes
-- along, for estimates that correct for that.

-- Judges the arguments that replays share; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._replay_fault(
  p_tenant_id text,
  p_from date,
  p_to date,
  p_limit integer,
  p_all_models boolean,
  p_settings routeledger.settings
)
returns text
language plpgsql
volatile
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce(
    routeledger._ranking_fault(p_tenant_id, null, null, null, null, p_settings),
    case
      when p_from not between date '1971-01-01' and date '4999-12-31' then 'RL109 from 1971 to 5000'
      when p_to not between date '1971-01-01' and date '4999-12-31' then 'RL109 to 1971 to 5000'
      when coalesce(p_to, (routeledger._now() at time zone 'UTC')::date + 1) < p_from then 'RL103 to not before from'
      when p_limit is null then 'RL101 limit'
      when p_limit not between 1 and 1000000 then 'RL103 limit 1 to 1e6'
      when p_all_models is null then 'RL101 all_models'
    end);
end
$$;

-- Draws at most p_limit of the closed production decisions from p_from up to, not including, p_to (UTC), alike from the whole
-- window and always the same ones, and has the policy choose for each: those that succeeded or were rejected, with p_all_closed also
-- those that failed or were abandoned.
--
-- chosen_slug is the model that was chosen first (null: rejected), served_slug the one that answered, slug what the policy
-- chooses (null: nothing); had_chance whether slug had a chance to be chosen then: where candidates carry propensities, one above
-- 0; where none does, each that was not dropped has one, unless the propensity of what was chosen is 1. reward is null where it is none.
-- ledger_usd is the cost recorded, null where it is flagged as implausible or rests on no tokens; catalog_usd takes its place.
-- projected_usd is what slug would have cost for the tokens of the decision, those that the policy assumes where none are known.
--
-- The policy is asked with the input tokens of the decision and the mean output tokens of those drawn of its task type: how long
-- the answer of one model was is not known before it is chosen, and would make the choice depend on what was served.
-- Locks: none. Errors: none.
create or replace function routeledger._replayed(
  p_tenant_id text,
  p_policy routeledger.routing_policies,
  p_from date,
  p_to date,
  p_limit integer,
  p_all_models boolean,
  p_all_closed boolean
)
returns table (
  id uuid,
  task text,
  day date,
  candidates integer,
  chosen_slug text,
  propensity double precision,
  reward double precision,
  input_tokens bigint,
  output_tokens bigint,
  served_slug text,
  ledger_usd numeric,
  catalog_usd numeric,
  slug text,
  projected_usd numeric,
  had_chance boolean
)
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
set random_page_cost = 1.1
as $$
#variable_conflict use_column
declare
  v_z double precision;
begin
  if p_policy.floor = 'lower_bound' then
    v_z := routeledger._normal_quantile(p_policy.confidence);
  end if;

  return query
  with drawn as materialized (
    select
      o.id, coalesce(o.task_type, '__global__') as task, (routeledger._id_time(o.id) at time zone 'UTC')::date as day,
      routeledger._id_time(o.id) as at, o.candidates, o.chosen_model_slug, o.inference_id, o.propensity,
      case when o.reward between -1e15 and 1e15 then o.reward end as reward
    from routeledger.routing_outcomes o
    where o.tenant_id = p_tenant_id
      and o.id >= routeledger._uuid_floor(p_from::timestamp at time zone 'UTC')
      and o.id < routeledger._uuid_floor(p_to::timestamp at time zone 'UTC')
      and (o.outcome_status in ('succeeded', 'rejected') or (p_all_closed and o.outcome_status in ('failed', 'abandoned')))
      and o.traffic_class = 'production'
    order by uuid_hash_extended(o.id, 510)
    limit p_limit
  ),
  served as materialized (
    select
      d.*, i.model_slug as served_slug, i.input_tokens, i.output_tokens, coalesce(t.input_tokens, p_policy.input_tokens) as input_used,
      coalesce(t.output_tokens, p_policy.output_tokens) as output_used,
      coalesce(avg(t.output_tokens) over (partition by d.task), p_policy.output_tokens) as output_expected,
      l.usd as ledger_usd, c.cost_usd as catalog_usd
    from drawn d
    left join routeledger.inferences i
      on i.tenant_id = p_tenant_id and i.outcome_id = d.id and i.id = d.inference_id and i.status = 'succeeded'
    -- counts of 0 and 0 are no counts, and what was computed from them is no cost
    left join lateral (select i.input_tokens, i.output_tokens) t on t.input_tokens + t.output_tokens > 0
    left join lateral (select i.cost_usd as usd) l on i.cost_flag is null and (t.input_tokens is not null or i.cost_usd > 0)
    left join lateral routeledger._usage_cost(
      i.model_slug, d.at, coalesce(t.input_tokens, p_policy.input_tokens), coalesce(t.output_tokens, p_policy.output_tokens),
      i.cache_read_input_tokens, i.cache_creation_input_tokens, null) c
      on l.usd is null and c.cost_flag is null
  )
  select
    s.id, s.task, s.day, jsonb_array_length(s.candidates), s.chosen_model_slug, s.propensity, s.reward, s.input_tokens, s.output_tokens,
    s.served_slug, s.ledger_usd, s.catalog_usd, r.model_slug, u.cost_usd,
    s.chosen_model_slug is not null and (
      r.model_slug = s.chosen_model_slug
      or case
        when jsonb_path_exists(s.candidates, '$[*] ? (@.propensity.type() == "number")')
          then jsonb_path_exists(s.candidates, '$[*] ? (@.model_slug == $slug && @.propensity > 0)', jsonb_build_object('slug', r.model_slug))
        else s.propensity < 1 and jsonb_path_exists(
          s.candidates, '$[*] ? (@.model_slug == $slug && (!exists(@.drop_reason) || @.drop_reason == null))', jsonb_build_object('slug', r.model_slug))
      end)
  from served s
  left join lateral routeledger._rank_candidates(
    p_tenant_id, s.task, p_policy,
    case when not p_all_models then array(
      select distinct e ->> 'model_slug' from jsonb_array_elements(s.candidates) e where e ->> 'model_slug' is not null order by 1) end,
    s.input_tokens, s.input_used * 0.000001, s.output_expected * 0.000001,
    v_z, s.at, s.day - p_policy.window_days, s.day - 1) r on r.place = 1 and r.stage = 0
  left join lateral routeledger._usage_cost(r.model_slug, s.at, s.input_used, s.output_used, null, null, null) u on true;
end
$$;

-- Replays the closed production decisions of a tenant from p_from up to, not including, p_to (UTC; by default the last 30 days) under a
-- policy: one row each, in order of their ids, at most p_limit of them, drawn alike from the whole window and always the same ones.
-- Decisions that failed or were abandoned are left out. With p_all_models all
-- enrolled models are candidates, not those stored, and `candidates`, how many were stored, is null.
--
-- As it was: served_model_slug (null: rejected), served_cost_usd with served_cost_source `ledger` or, where no cost is
-- recorded or it is flagged as implausible, `catalog`; served_quality. As the policy would have it: model_slug (null: it chooses nothing),
-- cost_usd, quality. The cost of the model that served is what it cost; that of another is the tokens of the
-- decision (those that the policy assumes where none are known) at its price then, cost_source `catalog`. The choice itself is
-- made with the mean output tokens of the task type: how long an answer would be was not known.
-- quality_source is `reward`, or `buckets` with their number of rewards and the standard error of their mean; quality is null below
-- min_samples of the policy.
-- Cooldowns and budgets of the time are not replayed.
-- Locks: none. Errors: RL101, RL103, RL107, RL108, RL109, RL110, RL209.
create or replace function routeledger.replay_policy(
  p_tenant_id text,
  p_policy text default 'default',
  p_overrides jsonb default '{}',
  p_from date default null,
  p_to date default null,
  p_limit integer default 10000,
  p_all_models boolean default false
)
returns table (
  outcome_id uuid,
  task_type text,
  propensity double precision,
  candidates integer,
  input_tokens bigint,
  output_tokens bigint,
  served_model_slug text,
  served_cost_usd numeric,
  served_cost_source text,
  served_quality double precision,
  served_quality_source text,
  served_samples bigint,
  served_error double precision,
  model_slug text,
  cost_usd numeric,
  cost_source text,
  quality double precision,
  quality_source text,
  samples bigint,
  error double precision,
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
  v_fault text;
begin
  select s.* into v_settings from routeledger.settings s;
  v_fault := routeledger._replay_fault(p_tenant_id, p_from, p_to, p_limit, p_all_models, v_settings);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_to := coalesce(p_to, (routeledger._now() at time zone 'UTC')::date + 1);
  v_from := coalesce(p_from, v_to - 30);
  v_policy := routeledger._policy(p_policy, p_overrides);

  return query
  with chosen as materialized (
    select r.* from routeledger._replayed(p_tenant_id, v_policy, v_from, v_to, p_limit, p_all_models, false) r
  ),
  -- from each day on, by task type and model
  ahead as materialized (
    select
      b.task_type, b.model_key, b.day,
      sum(b.reward_n) over later as n,
      sum(b.reward_sum) over later as total,
      sum(b.reward_sq_sum) over later as squares
    from routeledger.model_performance_buckets b
    where b.tenant_id = p_tenant_id and b.day >= v_from and b.day < v_to and b.reward_n > 0
    window later as (partition by b.task_type, b.model_key order by b.day desc)
  )
  select
    c.id, nullif(c.task, '__global__'), c.propensity, case when not p_all_models then c.candidates end, c.input_tokens, c.output_tokens,
    c.served_slug, coalesce(c.ledger_usd, c.catalog_usd), case when c.ledger_usd is not null then 'ledger' when c.catalog_usd is not null then 'catalog' end,
    coalesce(c.reward, w.mean), case when c.reward is not null then 'reward' when w.mean is not null then 'buckets' end,
    case when c.reward is not null then 1 else w.n end, case when c.reward is null then w.error end,
    c.slug,
    case when c.slug = c.served_slug then coalesce(c.ledger_usd, c.catalog_usd) else c.projected_usd end,
    case when c.slug is null then null when c.slug <> c.served_slug or c.served_slug is null then 'catalog'
      when c.ledger_usd is not null then 'ledger' when c.catalog_usd is not null then 'catalog' end,
    case when c.slug = c.served_slug and c.reward is not null then c.reward else a.mean end,
    case when c.slug = c.served_slug and c.reward is not null then 'reward' when a.mean is not null then 'buckets' end,
    case when c.slug = c.served_slug and c.reward is not null then 1 else a.n end,
    case when c.slug is distinct from c.served_slug or c.reward is null then a.error end,
    v_policy.ruleset_hash
  from chosen c
  left join lateral (
    select h.n::bigint as n, h.total / h.n as mean,
      sqrt(greatest(h.squares - h.total * (h.total / h.n), 0) / (h.n - 1) / h.n) as error
    from ahead h
    where h.task_type = c.task and h.model_key = c.served_slug and h.day >= c.day and h.n >= greatest(v_policy.min_samples, 2)
    order by h.day
    limit 1
  ) w on c.reward is null
  left join lateral (
    select h.n::bigint as n, h.total / h.n as mean,
      sqrt(greatest(h.squares - h.total * (h.total / h.n), 0) / (h.n - 1) / h.n) as error
    from ahead h
    where h.task_type = c.task and h.model_key = c.slug and h.day >= c.day and h.n >= greatest(v_policy.min_samples, 2)
    order by h.day
    limit 1
  ) a on true
  order by c.id;
end
$$;
