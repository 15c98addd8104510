-- 510 · Replay: what another policy would have decided, what that would have cost, how good it would have been.
--
-- A decision of the past is ranked anew among the candidates stored with it, at the prices in force then and with the
-- buckets of the days before it: nothing that happened on its day or later chooses. What is chosen is judged by the
-- reward of the decision itself where the same model answered it, else by the buckets of its day and later, which the
-- choice has not seen. What is not known is null and counts as nothing, neither as right nor as free.
--
-- The judgement by buckets takes it that the model would have done as well on these decisions as it did on others of
-- the task type. Where a policy sent it the easy ones that is too kind. The propensity stored with each decision comes
-- along, for estimates that correct for that.

-- Replays the closed production decisions of a tenant from p_from up to, not including, p_to (UTC; by default the last 30 days) under a
-- policy: one row each, in order of their ids, at most p_limit of them, drawn alike from the whole window and always the same ones.
-- Decisions that failed or were abandoned are left out. With p_all_models all
-- enrolled models are candidates, not those stored, and `candidates`, how many were stored, is null.
--
-- As it was: served_model_slug (null: rejected), served_cost_usd with served_cost_source `ledger` or, where no cost is
-- recorded or it is flagged as implausible, `catalog`; served_quality. As the policy would have it: model_slug (null: it chooses nothing),
-- cost_usd, quality. The cost of the model that served is what it cost; that of another is the tokens of the
-- decision (those that the policy assumes where none are known) at its price then, cost_source `catalog`.
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
  v_today date := (routeledger._now() at time zone 'UTC')::date;
  v_from date;
  v_to date;
  v_z double precision;
  v_fault text;
begin
  select s.* into v_settings from routeledger.settings s;
  v_to := coalesce(p_to, v_today + 1);
  v_from := coalesce(p_from, v_to - 30);
  v_fault := coalesce(
    routeledger._ranking_fault(p_tenant_id, null, null, null, null, v_settings),
    case
      when p_from not between date '1971-01-01' and date '4999-12-31' then 'RL109 from 1971 to 5000'
      when p_to not between date '1971-01-01' and date '4999-12-31' then 'RL109 to 1971 to 5000'
      when v_to < v_from then 'RL103 to not before from'
      when p_limit is null then 'RL101 limit'
      when p_limit not between 1 and 1000000 then 'RL103 limit 1 to 1e6'
      when p_all_models is null then 'RL101 all_models'
    end);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_policy := routeledger._policy(p_policy, p_overrides);
  if v_policy.floor = 'lower_bound' then
    v_z := routeledger._normal_quantile(v_policy.confidence);
  end if;

  return query
  with drawn as materialized (
    select
      o.id, coalesce(o.task_type, '__global__') as task, (routeledger._id_time(o.id) at time zone 'UTC')::date as day,
      routeledger._id_time(o.id) as at, o.candidates, o.inference_id, o.propensity,
      case when o.reward between -1e15 and 1e15 then o.reward end as reward
    from routeledger.routing_outcomes o
    where o.tenant_id = p_tenant_id
      and o.id >= routeledger._uuid_floor(v_from::timestamp at time zone 'UTC')
      and o.id < routeledger._uuid_floor(v_to::timestamp at time zone 'UTC')
      and o.outcome_status in ('succeeded', 'rejected')
      and o.traffic_class = 'production'
    order by uuid_hash_extended(o.id, 510)
    limit p_limit
  ),
  served as materialized (
    select
      d.*, i.model_slug as served_slug, i.input_tokens, i.output_tokens, coalesce(t.input_tokens, v_policy.input_tokens) as input_used,
      coalesce(t.output_tokens, v_policy.output_tokens) as output_used, l.usd as ledger_usd, c.cost_usd as catalog_usd
    from drawn d
    left join routeledger.inferences i on i.tenant_id = p_tenant_id and i.outcome_id = d.id and i.id = d.inference_id
    -- counts of 0 and 0 are no counts, and what was computed from them is no cost
    left join lateral (select i.input_tokens, i.output_tokens) t on t.input_tokens + t.output_tokens > 0
    left join lateral (select i.cost_usd as usd) l on i.cost_flag is null and (t.input_tokens is not null or i.cost_usd > 0)
    left join lateral routeledger._usage_cost(
      i.model_slug, d.at, coalesce(t.input_tokens, v_policy.input_tokens), coalesce(t.output_tokens, v_policy.output_tokens),
      i.cache_read_input_tokens, i.cache_creation_input_tokens, null) c
      on l.usd is null and c.cost_flag is null
  ),
  chosen as materialized (
    select s.*, r.model_slug as slug, r.cost_usd as projected_usd
    from served s
    left join lateral routeledger._rank_candidates(
      p_tenant_id, s.task, v_policy,
      case when not p_all_models then array(
        select distinct e ->> 'model_slug' from jsonb_array_elements(s.candidates) e where e ->> 'model_slug' is not null order by 1) end,
      s.input_tokens, s.input_used * 0.000001, s.output_used * 0.000001,
      v_z, s.at, s.day - v_policy.window_days, s.day - 1) r on r.place = 1 and r.stage = 0
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
    c.id, nullif(c.task, '__global__'), c.propensity, case when not p_all_models then jsonb_array_length(c.candidates) end, c.input_tokens, c.output_tokens,
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
