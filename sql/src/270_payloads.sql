-- 270 · Payloads: what was asked and answered, kept apart so that the rows every query reads stay narrow.

do $types$
begin
  if to_regtype('routeledger.payload_input') is null then
    create type routeledger.payload_input as (
      tenant_id text,
      id uuid,
      attempt_id uuid,
      request jsonb,
      response jsonb
    );
    create type routeledger.payload_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      attempt_id uuid
    );
  end if;
end
$types$;

-- Stores the payload of one attempt; see record_payload.
-- Locks: the payload's key. Errors: none; a fault is part of the result.
create or replace function routeledger._record_payload(
  p_given routeledger.payload_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.payload_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.payload_result;
  v_fault text := routeledger._key_fault(p_given.tenant_id, p_given.id, p_settings);
  v_stored routeledger.inference_payloads;
begin
  v_result.status := 'refused';
  v_fault := coalesce(v_fault, case
    when p_given.attempt_id is null then 'RL101 attempt_id'
    when routeledger._id_time(p_given.attempt_id) is null then 'RL104 attempt_id'
    when p_given.request is null and p_given.response is null then 'RL101 request or response'
    when pg_column_size(p_given.request) > 16777216 then 'RL108 request 16 MiB'
    when pg_column_size(p_given.response) > 16777216 then 'RL108 response 16 MiB'
  end);
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;
  v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'attempt_id', p_given.attempt_id);
  if not exists (
    select from routeledger.inferences i
    where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_given.attempt_id)
  then
    v_result.code := case
      when exists (select from routeledger.routing_outcomes o where o.tenant_id = p_given.tenant_id and o.id = p_given.id) then 'RL202'
      else 'RL201'
    end;
    return v_result;
  end if;

  -- A request and its response may come apart; a part that is there already does not change.
  insert into routeledger.inference_payloads as p (tenant_id, outcome_id, inference_id, request, response, created_at)
  values (p_given.tenant_id, p_given.id, p_given.attempt_id, p_given.request, p_given.response, p_now)
  on conflict (tenant_id, outcome_id, inference_id) do update set
    request = coalesce(p.request, excluded.request),
    response = coalesce(p.response, excluded.response)
  where (p.request is null or excluded.request is null or p.request = excluded.request)
    and (p.response is null or excluded.response is null or p.response = excluded.response)
    and ((p.request is null and excluded.request is not null) or (p.response is null and excluded.response is not null));
  if found then
    v_result.status := 'accepted';
  else
    select p.* into strict v_stored
    from routeledger.inference_payloads p
    where p.tenant_id = p_given.tenant_id and p.outcome_id = p_given.id and p.inference_id = p_given.attempt_id;
    if v_stored.request is distinct from coalesce(p_given.request, v_stored.request)
      or v_stored.response is distinct from coalesce(p_given.response, v_stored.response)
    then
      v_result.code := 'RL301';
      return v_result;
    end if;
    v_result.status := 'replayed';
  end if;
  v_result.detail := null;
  v_result.id := p_given.id;
  v_result.attempt_id := p_given.attempt_id;
  return v_result;
end
$$;

-- Keeps the request and the response of an attempt, together or one after the other. A part that is
-- stored never changes: the same again is a replay, another one RL301.
-- Locks: the payload's key. Errors: RL101, RL104, RL108, RL110, RL201, RL202, RL301.
create or replace function routeledger.record_payload(
  p_tenant_id text,
  p_id uuid,
  p_attempt_id uuid,
  p_request jsonb default null,
  p_response jsonb default null
)
returns table (
  id uuid,
  attempt_id uuid,
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
  v_result routeledger.payload_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._record_payload(
    row(p_tenant_id, p_id, p_attempt_id, p_request, p_response)::routeledger.payload_input, v_settings, routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select v_result.id, v_result.attempt_id, v_result.status = 'accepted';
end
$$;

-- Keeps many payloads in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the payloads' keys by (tenant_id, id). Errors: RL101, RL107, RL501 for the call; per row those of record_payload.
create or replace function routeledger.record_payloads(
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
  attempt_id uuid
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
  v_inputs routeledger.payload_input[];
  v_faults text[];
  v_results routeledger.payload_result[];
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.payload_input, p_rows, array['request', 'response']) r;
  v_results := array_fill(null::routeledger.payload_result, array[cardinality(v_faults)]);
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (tenant_id, id, attempt_id, request, response, n)
    order by r.tenant_id, r.id, r.attempt_id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._record_payload(v_inputs[v_i], v_settings, v_now);
    end if;
  end loop;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.attempt_id
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, attempt_id, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;
