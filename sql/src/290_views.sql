-- 290 · Views: how the ledger is read. Each shows a role that is bound to tenants the rows of those only.

create or replace view routeledger.attempts
with (security_barrier = true)
as
select
  i.tenant_id,
  i.outcome_id,
  i.id,
  i.attempt_no,
  i.candidate_no,
  i.model_slug,
  i.provider,
  i.status::text as status,
  i.input_tokens,
  i.output_tokens,
  i.cache_read_input_tokens,
  i.cache_creation_input_tokens,
  i.reasoning_output_tokens,
  i.cost_usd,
  i.cost_source,
  i.cost_flag,
  i.latency_ms,
  i.ttft_ms,
  i.http_status,
  i.error_type,
  i.error_message,
  i.retry_after_ms,
  i.next_action,
  i.next_delay_ms,
  i.provider_response_id,
  i.response_model,
  i.finish_reasons,
  i.created_at,
  i.started_at,
  i.completed_at
from routeledger.inferences i
where (select routeledger.bound_tenants()) is null or i.tenant_id = any ((select routeledger.bound_tenants())::text[]);

create or replace view routeledger.decisions
with (security_barrier = true)
as
select
  o.tenant_id,
  o.id,
  o.agent_id,
  o.task_type,
  coalesce(a.model_slug, o.chosen_model_slug) as model_slug,
  a.provider,
  o.decision_rule,
  o.decision_rule_override,
  o.outcome_status::text as outcome_status,
  o.attempt_count as attempts,
  coalesce(a.failovers, 0) as failovers,
  a.cost_usd,
  a.input_tokens,
  a.output_tokens,
  -- a story told afterwards was over before it was recorded: its time runs from the event
  extract(epoch from case
    when o.completed_at >= o.created_at then o.completed_at - o.created_at
    when o.completed_at < o.created_at then greatest(o.completed_at - o.event_at, interval '0')
  end)::double precision * 1000 as latency_ms,
  o.created_at,
  o.event_at,
  o.completed_at,
  o.late_completion,
  o.traffic_class::text as traffic_class,
  o.chosen_model_slug,
  o.inference_id
from routeledger.routing_outcomes o
left join lateral (
  select
    (array_agg(i.model_slug order by i.attempt_no desc))[1] as model_slug,
    (array_agg(i.provider order by i.attempt_no desc))[1] as provider,
    count(*) filter (where i.next_action = 'failover')::integer as failovers,
    sum(i.cost_usd) as cost_usd,
    sum(i.input_tokens)::bigint as input_tokens,
    sum(i.output_tokens)::bigint as output_tokens
  from routeledger.inferences i
  where i.tenant_id = o.tenant_id and i.outcome_id = o.id
  having count(*) > 0
) a on true
where (select routeledger.bound_tenants()) is null or o.tenant_id = any ((select routeledger.bound_tenants())::text[]);

create or replace view routeledger.in_flight
with (security_barrier = true)
as
select
  o.tenant_id,
  o.id,
  o.agent_id,
  o.task_type,
  i.id as attempt_id,
  o.attempt_count as attempt_no,
  i.model_slug,
  o.created_at,
  o.lease_expires_at,
  o.lease_expires_at <= routeledger.clock() as expired,
  routeledger.clock() - o.created_at as age
from routeledger.routing_outcomes o
left join routeledger.inferences i
  on i.tenant_id = o.tenant_id and i.outcome_id = o.id and i.id = o.open_attempt_id
where o.outcome_status is null
  and ((select routeledger.bound_tenants()) is null or o.tenant_id = any ((select routeledger.bound_tenants())::text[]));

-- Must always be empty: every reason here is a state that no routine writes.
create or replace view routeledger.orphans
with (security_barrier = true)
as
select
  x.tenant_id,
  x.outcome_id,
  x.inference_id,
  x.reason,
  x.created_at
from (
  select
    o.tenant_id,
    o.id as outcome_id,
    o.inference_id,
    case
      when o.outcome_status is null and o.attempt_count = 0 then 'in flight without an attempt'
      when o.attempt_count <> a.n then 'attempt_count differs from the attempts'
      when o.outcome_status is not null and o.chosen_model_slug is not null
        and o.decision_rule_override is null and o.inference_id is null then 'closed and unlinked'
      when o.inference_id is not null and not a.linked then 'linked to no attempt of its own'
      when o.outcome_status is not null and a.open_n > 0 then 'closed with an open attempt'
      when o.outcome_status is null and a.open_n > 1 then 'two open attempts'
      when o.outcome_status is null and o.open_attempt_id is distinct from a.open_id then 'open_attempt_id differs from the open attempt'
      when o.outcome_status = 'succeeded' and not a.linked_succeeded then 'succeeded without a succeeded attempt'
    end as reason,
    o.created_at
  from routeledger.routing_outcomes o
  cross join lateral (
    select
      count(*) as n,
      count(*) filter (where i.status = 'routed') as open_n,
      (array_agg(i.id) filter (where i.status = 'routed'))[1] as open_id,
      coalesce(bool_or(i.id = o.inference_id and i.status <> 'routed'), false) as linked,
      coalesce(bool_or(i.id = o.inference_id and i.status = 'succeeded'), false) as linked_succeeded
    from routeledger.inferences i
    where i.tenant_id = o.tenant_id and i.outcome_id = o.id
  ) a
  union all
  select i.tenant_id, i.outcome_id, i.id as inference_id, 'attempt without a decision' as reason, i.created_at
  from routeledger.inferences i
  where not exists (
    select from routeledger.routing_outcomes o where o.tenant_id = i.tenant_id and o.id = i.outcome_id)
) x
where x.reason is not null
  and ((select routeledger.bound_tenants()) is null or x.tenant_id = any ((select routeledger.bound_tenants())::text[]));

-- Per hour (UTC) and tenant: every decision is in exactly one column, and every attempt belongs to one.
create or replace view routeledger.reconciliation
with (security_barrier = true)
as
select
  coalesce(d.hour, a.hour) as hour,
  coalesce(d.tenant_id, a.tenant_id) as tenant_id,
  coalesce(d.decided, 0) as decided,
  coalesce(d.succeeded, 0) as succeeded,
  coalesce(d.failed, 0) as failed,
  coalesce(d.rejected, 0) as rejected,
  coalesce(d.abandoned, 0) as abandoned,
  coalesce(d.in_flight, 0) as in_flight,
  coalesce(a.attempts, 0) as attempts,
  coalesce(a.open_attempts, 0) as open_attempts,
  a.cost_usd,
  coalesce(d.decided, 0) = coalesce(d.succeeded + d.failed + d.rejected + d.abandoned + d.in_flight, 0)
    and coalesce(d.attempts, 0) = coalesce(a.attempts, 0)
    and coalesce(d.open_attempts, 0) = coalesce(a.open_attempts, 0)
    and coalesce(d.succeeded, 0) = coalesce(a.succeeded, 0) as agrees
from (
  select
    date_trunc('hour', routeledger.uuid_v7_time(o.id), 'UTC') as hour,
    o.tenant_id,
    count(*) as decided,
    count(*) filter (where o.outcome_status = 'succeeded') as succeeded,
    count(*) filter (where o.outcome_status = 'failed') as failed,
    count(*) filter (where o.outcome_status = 'rejected') as rejected,
    count(*) filter (where o.outcome_status = 'abandoned') as abandoned,
    count(*) filter (where o.outcome_status is null) as in_flight,
    sum(o.attempt_count)::bigint as attempts,
    count(o.open_attempt_id) as open_attempts
  from routeledger.routing_outcomes o
  group by 1, 2
) d
full join (
  select
    date_trunc('hour', routeledger.uuid_v7_time(i.outcome_id), 'UTC') as hour,
    i.tenant_id,
    count(*) as attempts,
    count(*) filter (where i.status = 'routed') as open_attempts,
    count(*) filter (where i.status = 'succeeded') as succeeded,
    sum(i.cost_usd) as cost_usd
  from routeledger.inferences i
  group by 1, 2
) a on a.hour = d.hour and a.tenant_id = d.tenant_id
where (select routeledger.bound_tenants()) is null or coalesce(d.tenant_id, a.tenant_id) = any ((select routeledger.bound_tenants())::text[]);

create or replace view routeledger.implausible_costs
with (security_barrier = true)
as
select
  i.tenant_id,
  i.outcome_id,
  i.id as inference_id,
  i.model_slug,
  i.cost_usd,
  i.cost_source,
  i.cost_flag,
  i.input_tokens,
  i.output_tokens,
  i.completed_at
from routeledger.inferences i
where i.cost_flag is not null
  and ((select routeledger.bound_tenants()) is null or i.tenant_id = any ((select routeledger.bound_tenants())::text[]));

create or replace view routeledger.current_prices
as
select distinct on (m.model_slug)
  m.model_slug,
  m.provider,
  m.brand_slug,
  m.base_model,
  m.mode,
  m.enrolled,
  m.q_prior,
  m.expected_latency_ms,
  p.valid_from,
  p.input_usd_per_mtok,
  p.output_usd_per_mtok,
  p.cache_read_usd_per_mtok,
  p.cache_creation_usd_per_mtok,
  p.flag,
  p.source
from routeledger.models m
left join routeledger.model_prices p on p.model_slug = m.model_slug and p.valid_from <= routeledger.clock()
order by m.model_slug, p.valid_from desc;

create or replace view routeledger.flagged_prices
as
select
  p.model_slug,
  m.base_model,
  m.provider,
  p.valid_from,
  p.flag,
  p.input_usd_per_mtok,
  p.output_usd_per_mtok,
  n.input_usd_per_mtok as median_input_usd_per_mtok,
  n.output_usd_per_mtok as median_output_usd_per_mtok,
  p.source
from routeledger.model_prices p
join routeledger.models m on m.model_slug = p.model_slug
cross join lateral (
  select
    percentile_disc(0.5) within group (order by q.input_usd_per_mtok) filter (where q.input_usd_per_mtok > 0) as input_usd_per_mtok,
    percentile_disc(0.5) within group (order by q.output_usd_per_mtok) filter (where q.output_usd_per_mtok > 0) as output_usd_per_mtok
  from routeledger.models f
  join routeledger.model_prices q on q.model_slug = f.model_slug
  where f.base_model = m.base_model
) n
where p.flag is not null;
