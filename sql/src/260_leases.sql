-- 260 · Leases: who is still at work, and what becomes of the work of those who are not.

do $types$
begin
  if to_regtype('routeledger.lease_input') is null then
    create type routeledger.lease_input as (
      tenant_id text,
      id uuid,
      lease interval
    );
    create type routeledger.lease_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      lease_expires_at timestamptz
    );
  end if;
end
$types$;

-- Extends one lease; see extend_lease.
-- Locks: the outcome. Errors: none; a fault is part of the result.
create or replace function routeledger._extend_lease(
  p_given routeledger.lease_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.lease_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.lease_result;
  v_fault text := routeledger._key_fault(p_given.tenant_id, p_given.id, p_settings);
  v_outcome routeledger.routing_outcomes;
begin
  v_result.status := 'refused';
  v_fault := coalesce(v_fault, case
    when p_given.lease not between interval '1 second' and interval '24 hours' then 'RL103 lease 1 second to 24 hours' end);
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;

  select o.* into v_outcome
  from routeledger.routing_outcomes o
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id
  for update;
  v_result.code := case
    when not found then 'RL201'
    when v_outcome.outcome_status = 'abandoned' or v_outcome.abandoned_at is not null then 'RL401'
    when v_outcome.outcome_status is not null then 'RL305'
  end;
  if v_result.code is not null then
    v_result.detail := jsonb_strip_nulls(jsonb_build_object(
      'tenant_id', p_given.tenant_id, 'id', p_given.id, 'outcome_status', v_outcome.outcome_status, 'abandoned_at', v_outcome.abandoned_at));
    return v_result;
  end if;

  v_result.lease_expires_at := p_now + coalesce(p_given.lease, v_outcome.lease, p_settings.lease);
  if v_result.lease_expires_at > v_outcome.lease_expires_at then
    update routeledger.routing_outcomes o set lease_expires_at = v_result.lease_expires_at
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.status := 'accepted';
  else
    v_result.status := 'replayed'; -- an extension never shortens a lease
    v_result.lease_expires_at := v_outcome.lease_expires_at;
  end if;
  v_result.id := p_given.id;
  return v_result;
end
$$;

-- Extends the lease of a decision in flight to now plus p_lease (by default as long as at its start), for
-- streams that take long. A lease is never shortened. One that the reaper has ended is RL401.
-- Locks: the outcome. Errors: RL101, RL103, RL104, RL108, RL110, RL201, RL305, RL401.
create or replace function routeledger.extend_lease(
  p_tenant_id text,
  p_id uuid,
  p_lease interval default null
)
returns table (
  id uuid,
  lease_expires_at timestamptz
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
  v_result routeledger.lease_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._extend_lease(
    row(p_tenant_id, p_id, p_lease)::routeledger.lease_input, v_settings, routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select v_result.id, v_result.lease_expires_at;
end
$$;

-- Extends many leases in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes by (tenant_id, id). Errors: RL101, RL107, RL501 for the call; per row those of extend_lease.
create or replace function routeledger.extend_leases(
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
  lease_expires_at timestamptz
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
  v_inputs routeledger.lease_input[];
  v_faults text[];
  v_results routeledger.lease_result[];
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.lease_input, p_rows, array[]::text[]) r;
  v_results := array_fill(null::routeledger.lease_result, array[cardinality(v_faults)]);
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (tenant_id, id, lease, n) order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._extend_lease(v_inputs[v_i], v_settings, v_now);
    end if;
  end loop;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.lease_expires_at
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, lease_expires_at, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;

-- Closes decisions whose lease ran out: the open attempt is failed (`abandoned`), the outcome is `abandoned`
-- and linked to its last attempt; nothing is deleted. Oldest leases first, at most p_limit a call, and
-- what another session holds is passed over, so it may run from many places at once. What they had reserved of their
-- budgets is released. Works across tenants unless p_tenant_id names one. Returns what it closed.
-- Locks: the expired outcomes (skip locked), each with its inferences, then the budgets' counters. Errors: RL101, RL103, RL108, RL110.
create or replace function routeledger.reap(
  p_limit integer default 1000,
  p_tenant_id text default null
)
returns table (
  tenant_id text,
  id uuid,
  inference_id uuid,
  attempt_no integer
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := routeledger._now();
  v_tenants text[] := routeledger.bound_tenants();
  v_outcome record;
  v_last record;
  v_held_tenants text[] := array[]::text[];
  v_held uuid[] := array[]::uuid[];
begin
  if p_limit is null then
    perform routeledger._raise_fault('RL101 limit 1 to 10000');
  elsif p_limit not between 1 and 10000 then
    perform routeledger._raise_fault('RL103 limit 1 to 10000');
  elsif p_tenant_id = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (v_tenants) then
    perform routeledger._raise_fault('RL110 tenant_id');
  end if;

  for v_outcome in
    select o.tenant_id, o.id, o.open_attempt_id, o.attempt_count, o.holds_budget
    from routeledger.routing_outcomes o
    where o.outcome_status is null and o.lease_expires_at <= v_now
      and (p_tenant_id is null or o.tenant_id = p_tenant_id)
      and (v_tenants is null or o.tenant_id = any (v_tenants))
    order by o.lease_expires_at
    limit p_limit
    for update skip locked
  loop
    update routeledger.inferences i set
      status = 'failed',
      error_type = 'abandoned',
      error_message = 'the lease ran out before the attempt was completed',
      cost_source = 'no_usage',
      latency_ms = greatest(extract(epoch from v_now - i.started_at) * 1000, 0),
      completed_at = v_now
    where i.tenant_id = v_outcome.tenant_id and i.outcome_id = v_outcome.id and i.id = v_outcome.open_attempt_id;
    select i.id, i.attempt_no into v_last
    from routeledger.inferences i
    where i.tenant_id = v_outcome.tenant_id and i.outcome_id = v_outcome.id and i.attempt_no = v_outcome.attempt_count;
    update routeledger.routing_outcomes o set
      outcome_status = 'abandoned',
      inference_id = v_last.id,
      open_attempt_id = null,
      lease_expires_at = null,
      abandoned_at = v_now,
      completed_at = v_now
    where o.tenant_id = v_outcome.tenant_id and o.id = v_outcome.id;
    tenant_id := v_outcome.tenant_id;
    id := v_outcome.id;
    inference_id := v_last.id;
    attempt_no := v_last.attempt_no;
    if v_outcome.holds_budget then
      v_held_tenants := v_held_tenants || v_outcome.tenant_id;
      v_held := v_held || v_outcome.id;
    end if;
    return next;
  end loop;
  if v_held <> '{}' then
    perform routeledger._release_budgets(v_held_tenants, v_held);
  end if;
end
$$;
