-- 240 · complete_decision: the outcome and its link, in one statement.
--
-- A keyed UPDATE of a partitioned table is planned anew at each call, or locks every partition. An
-- INSERT is neither: it is routed to one leaf. So the hot path closes rows with INSERT … ON CONFLICT DO
-- UPDATE: the conflict is the expected case, finds the newest version of the row under its lock, and costs the same
-- whatever the number of partitions. The row that would be inserted is dated -infinity, which no
-- decision is; it exists only when there was no such decision, and is removed in the same call.
--
-- Decisions that probe a model are passed over by these statements and closed one by one.

do $types$
begin
  if to_regtype('routeledger.completion_input') is null then
    create type routeledger.completion_input as (
      tenant_id text,
      id uuid,
      outcome_status text,
      attempt_id uuid,
      input_tokens bigint,
      output_tokens bigint,
      cache_read_input_tokens bigint,
      cache_creation_input_tokens bigint,
      reasoning_output_tokens bigint,
      cost_usd numeric,
      latency_ms double precision,
      ttft_ms double precision,
      http_status integer,
      error_type text,
      error_message text,
      provider_response_id text,
      response_model text,
      finish_reasons text[],
      decision_rule_override text
    );
    create type routeledger.completion_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      inference_id uuid,
      attempt_no integer,
      outcome_status text,
      cost_usd numeric,
      cost_source text,
      late boolean
    );
  end if;
end
$types$;

-- Tells whether a completion has nothing to object to, in the form that nearly every one has: a success
-- with its tokens. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._completion_is_plain(
  p routeledger.completion_input,
  p_settings routeledger.settings
)
returns boolean
language sql
stable
parallel safe
security invoker
as $$
  select coalesce(length(p.tenant_id) between 1 and 200, false)
    and not p_settings.tenants_bound
    and routeledger._id_time(p.id) is not null
    and (p.attempt_id is null or routeledger._id_time(p.attempt_id) is not null)
    and coalesce(p.outcome_status = 'succeeded', false)
    and p.input_tokens is not null
    and p.output_tokens is not null
    and p.error_type is null
    and p.error_message is null
    and p.decision_rule_override is null
    and coalesce(length(p.provider_response_id) <= 500, true)
    and coalesce(length(p.response_model) <= 300, true)
    and p.finish_reasons is null
    and routeledger._usage_in_range(p.input_tokens, p.output_tokens, p.cache_read_input_tokens, p.cache_creation_input_tokens,
      p.reasoning_output_tokens, p.cost_usd, p.latency_ms, p.ttft_ms, p.http_status)
$$;

-- Judges a completion field by field; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._completion_fault(
  p routeledger.completion_input,
  p_settings routeledger.settings
)
returns text
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_fault text := routeledger._key_fault(p.tenant_id, p.id, p_settings);
begin
  if v_fault is not null then return v_fault;
  elsif p.outcome_status is null then return 'RL101 outcome_status succeeded, failed';
  elsif p.outcome_status not in ('succeeded', 'failed') then return 'RL102 outcome_status succeeded, failed';
  elsif p.attempt_id is not null and routeledger._id_time(p.attempt_id) is null then return 'RL104 attempt_id';
  elsif p.outcome_status = 'succeeded' then
    if p.input_tokens is null then return 'RL101 input_tokens as the provider reported, or as counted';
    elsif p.output_tokens is null then return 'RL101 output_tokens as the provider reported, or as counted';
    elsif p.error_type is not null or p.error_message is not null then return 'RL102 outcome_status failed where there is an error';
    elsif p.decision_rule_override is not null then return 'RL102 outcome_status failed where there is a decision_rule_override';
    end if;
  elsif coalesce(p.error_type, '') = '' and p.decision_rule_override is null then return 'RL101 error_type';
  elsif p.decision_rule_override !~ '^[a-z][a-z0-9_]{0,62}$' then return 'RL102 decision_rule_override lower-case words joined by underscores';
  elsif length(p.error_type) > 200 then return 'RL108 error_type 200 characters';
  end if;
  if length(p.provider_response_id) > 500 then return 'RL108 provider_response_id 500 characters';
  elsif length(p.response_model) > 300 then return 'RL108 response_model 300 characters';
  elsif array_ndims(p.finish_reasons) > 1 or cardinality(p.finish_reasons) > 100 or pg_column_size(p.finish_reasons) > 8192
    then return 'RL108 finish_reasons 100 words';
  end if;
  return routeledger._usage_fault(p.input_tokens, p.output_tokens, p.cache_read_input_tokens, p.cache_creation_input_tokens,
    p.reasoning_output_tokens, p.cost_usd, p.latency_ms, p.ttft_ms, p.http_status);
end
$$;

-- Tells whether a finished attempt is what a completion says. What the ledger fills in by itself (cost,
-- latency) is compared only where the caller states it.
-- Locks: none. Errors: none.
create or replace function routeledger._same_completion(
  p_stored routeledger.inferences,
  p_given routeledger.completion_input
)
returns boolean
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return p_stored.status = p_given.outcome_status
    and (p_stored.input_tokens, p_stored.output_tokens, p_stored.cache_read_input_tokens, p_stored.cache_creation_input_tokens,
         p_stored.reasoning_output_tokens, p_stored.ttft_ms, p_stored.http_status, p_stored.error_message,
         p_stored.provider_response_id, p_stored.response_model, p_stored.finish_reasons)
      is not distinct from
        (p_given.input_tokens, p_given.output_tokens, p_given.cache_read_input_tokens, p_given.cache_creation_input_tokens,
         p_given.reasoning_output_tokens, p_given.ttft_ms, p_given.http_status, routeledger._error_text(p_given.error_message),
         p_given.provider_response_id, p_given.response_model, p_given.finish_reasons)
    and p_stored.error_type is not distinct from
        coalesce(p_given.error_type, case when p_given.decision_rule_override is not null then 'not_dispatched' end)
    and (p_given.latency_ms is null or p_stored.latency_ms = p_given.latency_ms)
    and case
      when p_given.cost_usd is null then p_stored.cost_source <> 'caller'
      else p_stored.cost_source = 'caller' and p_stored.cost_usd = p_given.cost_usd
    end;
end
$$;

-- Closes an attempt that is open, or that the reaper closed, with what the completion says, and returns it.
-- Locks: the inference; the caller holds its outcome. Errors: none.
create or replace function routeledger._close_attempt(
  p_given routeledger.completion_input,
  p_attempt_id uuid,
  p_now timestamptz
)
returns routeledger.inferences
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_inference routeledger.inferences;
begin
  update routeledger.inferences i set
    status = p_given.outcome_status,
    input_tokens = p_given.input_tokens,
    output_tokens = p_given.output_tokens,
    cache_read_input_tokens = p_given.cache_read_input_tokens,
    cache_creation_input_tokens = p_given.cache_creation_input_tokens,
    reasoning_output_tokens = p_given.reasoning_output_tokens,
    (cost_usd, cost_source, cost_flag) = (
      select c.cost_usd, c.cost_source, c.cost_flag
      from routeledger._usage_cost(i.model_slug, i.started_at, p_given.input_tokens, p_given.output_tokens,
        p_given.cache_read_input_tokens, p_given.cache_creation_input_tokens, p_given.cost_usd) c),
    latency_ms = coalesce(p_given.latency_ms, greatest(extract(epoch from p_now - i.started_at) * 1000, 0)),
    ttft_ms = p_given.ttft_ms,
    http_status = p_given.http_status,
    error_type = coalesce(p_given.error_type, case when p_given.decision_rule_override is not null then 'not_dispatched' end),
    error_message = routeledger._error_text(p_given.error_message),
    provider_response_id = p_given.provider_response_id,
    response_model = p_given.response_model,
    finish_reasons = p_given.finish_reasons,
    completed_at = p_now
  where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_attempt_id
  returning i.* into strict v_inference;
  return v_inference;
end
$$;

-- Completes one decision that the plain path of the callers did not: replays, conflicts, overrides, late
-- completions, decisions on hold, those that probe a model. What is held of budgets is settled here unless the caller does
-- that for its whole batch.
-- Locks: the outcome, its inferences, a cooldown (skip locked), the budgets' counters. Errors: none; a fault is part of the result.
create or replace function routeledger._complete_other(
  p_given routeledger.completion_input,
  p_settle boolean,
  p_now timestamptz
)
returns routeledger.completion_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.completion_result;
  v_outcome routeledger.routing_outcomes;
  v_attempt routeledger.inferences;
  v_settings routeledger.settings;
  v_class text;
begin
  v_result.status := 'refused';
  v_result.detail := jsonb_strip_nulls(jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'attempt_id', p_given.attempt_id));
  select o.* into v_outcome
  from routeledger.routing_outcomes o
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id
  for update;
  if not found then
    v_result.code := 'RL201';
    return v_result;
  elsif v_outcome.created_at = '-infinity' then
    delete from routeledger.routing_outcomes o where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.code := 'RL201';
    return v_result;
  end if;

  -- Which attempt is meant: the one named, else the open one, else the last.
  select i.* into v_attempt
  from routeledger.inferences i
  where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id
    and (i.id = p_given.attempt_id or (p_given.attempt_id is null and i.attempt_no = v_outcome.attempt_count))
  order by i.attempt_no desc
  limit 1;
  if not found and p_given.attempt_id is not null then
    v_result.code := 'RL202';
    return v_result;
  end if;

  if v_outcome.outcome_status is null then
    if p_given.decision_rule_override is not null then
      if v_outcome.attempt_count > 1 or v_outcome.open_attempt_id is null then
        v_result.code := 'RL306';
        v_result.detail := v_result.detail || jsonb_build_object('attempts', v_outcome.attempt_count);
        return v_result;
      end if;
      v_attempt := routeledger._close_attempt(p_given, v_attempt.id, p_now);
    elsif v_attempt.status = 'routed' then
      v_attempt := routeledger._close_attempt(p_given, v_attempt.id, p_now);
    elsif v_outcome.open_attempt_id is not null or p_given.outcome_status <> 'failed' or v_attempt.attempt_no <> v_outcome.attempt_count then
      v_result.code := 'RL304';
      v_result.detail := v_result.detail || jsonb_strip_nulls(jsonb_build_object(
        'attempt_status', v_attempt.status, 'open_attempt_id', v_outcome.open_attempt_id));
      return v_result;
    end if; -- on hold: the last attempt has failed already, and is linked as it is
    update routeledger.routing_outcomes o set
      outcome_status = p_given.outcome_status,
      decision_rule_override = p_given.decision_rule_override,
      inference_id = case when p_given.decision_rule_override is null then v_attempt.id end,
      open_attempt_id = null,
      lease_expires_at = null,
      completed_at = p_now
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.status := 'accepted';

  elsif routeledger._was_reaped(v_outcome, v_attempt) and p_given.decision_rule_override is null then
    -- The caller was slower than its lease: accepted once, and marked.
    v_attempt := routeledger._close_attempt(p_given, v_attempt.id, p_now);
    update routeledger.routing_outcomes o set
      outcome_status = p_given.outcome_status,
      inference_id = v_attempt.id,
      late_completion = true,
      completed_at = p_now
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.status := 'accepted';
    v_result.late := true;

  elsif v_outcome.outcome_status = p_given.outcome_status
    and v_outcome.decision_rule_override is not distinct from p_given.decision_rule_override
    and v_attempt.attempt_no = v_outcome.attempt_count
    and (routeledger._same_completion(v_attempt, p_given)
      -- on hold the last attempt kept what it had recorded; the call said only that none would follow
      or (v_attempt.next_action = 'hold' and p_given.outcome_status = 'failed'))
  then
    v_result.status := 'replayed';

  else
    v_result.code := case when v_outcome.outcome_status in ('rejected', 'abandoned') then 'RL305' else 'RL302' end;
    v_result.detail := v_result.detail || jsonb_strip_nulls(jsonb_build_object(
      'outcome_status', v_outcome.outcome_status, 'inference_id', v_outcome.inference_id, 'completed_at', v_outcome.completed_at));
    return v_result;
  end if;

  if v_result.status = 'accepted' and v_outcome.probe_attempt_id = v_attempt.id then
    if v_attempt.status = 'succeeded' then
      perform routeledger._end_probe(p_given.tenant_id, v_attempt.model_slug, v_attempt.provider, v_attempt.id, true);
    elsif v_outcome.open_attempt_id = v_attempt.id then
      select s.* into v_settings from routeledger.settings s;
      v_class := routeledger._error_class(v_attempt.error_type, v_attempt.http_status);
      perform routeledger._note_failure(
        p_given.tenant_id, v_attempt.model_slug, v_attempt.provider, v_class, v_attempt.http_status, null, v_attempt.id, true,
        routeledger._retry_rules(p_given.tenant_id, v_attempt.model_slug, v_class, v_settings), v_settings, p_now);
    end if;
  end if;
  if v_result.status = 'accepted' and v_outcome.holds_budget and p_settle then
    perform routeledger._settle_decisions(array[p_given.tenant_id], array[p_given.id]);
  end if;

  v_result.detail := null;
  v_result.id := p_given.id;
  v_result.late := coalesce(v_result.late, v_outcome.late_completion);
  v_result.inference_id := case when p_given.decision_rule_override is null then v_attempt.id end;
  v_result.attempt_no := v_attempt.attempt_no;
  v_result.outcome_status := p_given.outcome_status;
  v_result.cost_usd := v_attempt.cost_usd;
  v_result.cost_source := v_attempt.cost_source;
  return v_result;
end
$$;

-- Completes one decision; see complete_decision. Without p_settle what it held of its budgets is the caller's to settle.
-- Locks: the outcome, its inference, a cooldown (skip locked), the budgets' counters. Errors: none; a fault is part of the result.
create or replace function routeledger._complete_decision(
  p_given routeledger.completion_input,
  p_settings routeledger.settings,
  p_settle boolean,
  p_now timestamptz
)
returns routeledger.completion_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.completion_result;
  v_fault text;
begin
  if not routeledger._completion_is_plain(p_given, p_settings) then
    v_fault := routeledger._completion_fault(p_given, p_settings);
    if v_fault is not null then
      v_result.status := 'refused';
      v_result.code := split_part(v_fault, ' ', 1);
      v_result.detail := routeledger._fault_detail(v_fault);
      return v_result;
    end if;
  end if;
  if p_given.decision_rule_override is not null
    or not routeledger._has_partition(routeledger._id_time(p_given.id), p_settings.partition_width)
  then
    return routeledger._complete_other(p_given, p_settle, p_now);
  end if;

  with closed as (
    insert into routeledger.routing_outcomes as o (
      tenant_id, id, decision_rule, outcome_status, event_at, created_at, completed_at)
    values (
      p_given.tenant_id, p_given.id, 'no_candidate_enrolled', 'rejected', '-infinity', '-infinity', '-infinity')
    on conflict (tenant_id, id) do update set
      outcome_status = p_given.outcome_status,
      inference_id = o.open_attempt_id,
      open_attempt_id = null,
      lease_expires_at = null,
      completed_at = p_now
    where o.outcome_status is null and o.open_attempt_id = coalesce(p_given.attempt_id, o.open_attempt_id)
      and o.probe_attempt_id is null
    returning o.inference_id
  )
  insert into routeledger.inferences as i (
    tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
  select p_given.tenant_id, p_given.id, c.inference_id, 2147483647, '', '-infinity', '-infinity'
  from closed c
  where c.inference_id is not null
  on conflict (tenant_id, outcome_id, id) do update set
    status = p_given.outcome_status,
    input_tokens = p_given.input_tokens,
    output_tokens = p_given.output_tokens,
    cache_read_input_tokens = p_given.cache_read_input_tokens,
    cache_creation_input_tokens = p_given.cache_creation_input_tokens,
    reasoning_output_tokens = p_given.reasoning_output_tokens,
    (cost_usd, cost_source, cost_flag) = (
      select u.cost_usd, u.cost_source, u.cost_flag
      from routeledger._usage_cost(i.model_slug, i.started_at, p_given.input_tokens, p_given.output_tokens,
        p_given.cache_read_input_tokens, p_given.cache_creation_input_tokens, p_given.cost_usd) u),
    latency_ms = coalesce(p_given.latency_ms, greatest(extract(epoch from p_now - i.started_at) * 1000, 0)),
    ttft_ms = p_given.ttft_ms,
    http_status = p_given.http_status,
    error_type = p_given.error_type,
    error_message = routeledger._error_text(p_given.error_message),
    provider_response_id = p_given.provider_response_id,
    response_model = p_given.response_model,
    finish_reasons = p_given.finish_reasons,
    completed_at = p_now
  returning 'accepted', null::text, null::jsonb, p_given.id, i.id, i.attempt_no, p_given.outcome_status, i.cost_usd, i.cost_source, false
  into v_result.status, v_result.code, v_result.detail, v_result.id, v_result.inference_id, v_result.attempt_no, v_result.outcome_status,
    v_result.cost_usd, v_result.cost_source, v_result.late;
  if found and not p_settings.budgets_defined then
    return v_result;
  elsif found then
    if p_settle then
      perform routeledger._settle_decisions(array[p_given.tenant_id], array[p_given.id]);
    end if;
    return v_result;
  end if;
  return routeledger._complete_other(p_given, p_settle, p_now);
end
$$;

-- Closes a decision: the attempt gets its tokens, cost and latency (or its error), the outcome gets its
-- status and the link, in one transaction. Without attempt_id the open attempt is meant.
--
-- `succeeded` needs input_tokens and output_tokens (input_tokens include cached ones, output_tokens include
-- reasoning, as in OpenTelemetry's gen_ai.usage.*). `failed` needs error_type. cost_usd is computed from the
-- dated prices where it is not given. decision_rule_override is for a failure before any dispatch: it links
-- nothing. For a decision on hold, `failed` says only that no attempt will follow: the last one is linked as
-- it was recorded. The same call again returns the same with created = false; a different completion is RL302. One
-- that comes after the reaper is accepted once, with late = true.
--
-- What the decision reserved of its budgets is settled by what all its attempts cost. A success that probed a model ends
-- the model's cooldown; any other touches none.
-- Locks: the outcome, its inference, a cooldown (skip locked), the budgets' counters. Errors: RL101 to RL104, RL108, RL110, RL201, RL202, RL302, RL304 to RL306.
create or replace function routeledger.complete_decision(
  p_tenant_id text,
  p_id uuid,
  p_outcome_status text,
  p_attempt_id uuid default null,
  p_input_tokens bigint default null,
  p_output_tokens bigint default null,
  p_cache_read_input_tokens bigint default null,
  p_cache_creation_input_tokens bigint default null,
  p_reasoning_output_tokens bigint default null,
  p_cost_usd numeric default null,
  p_latency_ms double precision default null,
  p_ttft_ms double precision default null,
  p_http_status integer default null,
  p_error_type text default null,
  p_error_message text default null,
  p_provider_response_id text default null,
  p_response_model text default null,
  p_finish_reasons text[] default null,
  p_decision_rule_override text default null
)
returns table (
  id uuid,
  inference_id uuid,
  attempt_no integer,
  outcome_status text,
  cost_usd numeric,
  cost_source text,
  late boolean,
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
  v_result routeledger.completion_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._complete_decision(
    row(p_tenant_id, p_id, p_outcome_status, p_attempt_id, p_input_tokens, p_output_tokens, p_cache_read_input_tokens,
      p_cache_creation_input_tokens, p_reasoning_output_tokens, p_cost_usd, p_latency_ms, p_ttft_ms, p_http_status, p_error_type,
      p_error_message, p_provider_response_id, p_response_model, p_finish_reasons, p_decision_rule_override)::routeledger.completion_input,
    v_settings,
    true,
    routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  id := v_result.id;
  inference_id := v_result.inference_id;
  attempt_no := v_result.attempt_no;
  outcome_status := v_result.outcome_status;
  cost_usd := v_result.cost_usd;
  cost_source := v_result.cost_source;
  late := v_result.late;
  created := v_result.status = 'accepted';
  return next;
end
$$;

-- Completes many decisions in one call and answers for each; a bad row never fails its neighbours. The
-- result for a row is what complete_decision would have returned or raised for it, in the order given.
-- Locks: the outcomes by (tenant_id, id), their inferences, cooldowns (skip locked), the budgets' counters. Errors: RL101, RL107, RL501 for the call; per row those of complete_decision.
create or replace function routeledger.complete_decisions(
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
  inference_id uuid,
  attempt_no integer,
  outcome_status text,
  cost_usd numeric,
  cost_source text,
  late boolean
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_now timestamptz := routeledger._now();
  v_inputs routeledger.completion_input[];
  v_faults text[];
  v_one routeledger.completion_input;
  v_open uuid;
  v_plain routeledger.completion_input[];
  v_ords integer[];
  v_results routeledger.completion_result[];
  v_closed routeledger.completion_result[];
  v_found boolean[];
  v_done boolean[]; -- faults and what is written; fixed-length elements, so any is one step away
  v_first uuid;
  v_last uuid;
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.completion_input, p_rows, array['finish_reasons']) r;
  v_results := array_fill(null::routeledger.completion_result, array[cardinality(v_faults)]);
  v_done := array_fill(false, array[cardinality(v_faults)]);
  for i in 1 .. cardinality(v_faults) loop
    v_inputs[i] := v_inputs[i]; -- an array that was assigned to is kept unpacked: each element is one step away
    v_one := v_inputs[i];
    if v_faults[i] is null and not routeledger._completion_is_plain(v_one, v_settings) then
      v_faults[i] := routeledger._completion_fault(v_one, v_settings);
    end if;
    v_done[i] := v_faults[i] is not null;
  end loop;

  -- The plain majority: the first row of each id, where its attempt (the one it names, if any) is the open one.
  -- All that exist are locked here in their order, so that what follows finds them as they are. What is not
  -- found is not looked for again: to wait for its insert now would be out of order.
  if cardinality(v_faults) > 1 then
    select min(r.id::text)::uuid, max(r.id::text)::uuid into v_first, v_last
    from unnest(v_inputs) with ordinality r where not v_done[r.ordinality];
    v_found := array_fill(false, array[cardinality(v_faults)]);
    for v_i, v_open in
      select
        r.n,
        case when r.again = 1 and o.outcome_status is null and r.decision_rule_override is null
          and o.probe_attempt_id is null
          and o.open_attempt_id = coalesce(r.attempt_id, o.open_attempt_id) then o.open_attempt_id end
      from (
        select
          x.tenant_id, x.id, x.attempt_id, x.decision_rule_override, x.n, row_number() over (partition by x.tenant_id, x.id order by x.n) as again
        from unnest(v_inputs) with ordinality x (
          tenant_id, id, outcome_status, attempt_id, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,
          reasoning_output_tokens, cost_usd, latency_ms, ttft_ms, http_status, error_type, error_message, provider_response_id,
          response_model, finish_reasons, decision_rule_override, n)
        where not v_done[x.n]
        order by x.tenant_id, x.id, x.n
      ) r
      cross join lateral ( -- row by row in their order, whatever the planner believes of their number
        select k.outcome_status, k.open_attempt_id, k.probe_attempt_id
        from routeledger.routing_outcomes k
        where k.tenant_id = r.tenant_id and k.id = r.id and k.id between v_first and v_last
        for update
      ) o
    loop
      v_found[v_i] := true;
      continue when v_open is null;
      v_one := v_inputs[v_i];
      v_one.attempt_id := v_open;
      v_plain := v_plain || v_one;
      v_ords := v_ords || v_i;
    end loop;
  end if;

  if v_plain is not null then
    with outcome as (
      insert into routeledger.routing_outcomes as o (
        tenant_id, id, decision_rule, outcome_status, inference_id, event_at, created_at, completed_at)
      select p.tenant_id, p.id, '', p.outcome_status, p.attempt_id, '-infinity', '-infinity', v_now
      from unnest(v_plain) p
      on conflict (tenant_id, id) do update set
        outcome_status = excluded.outcome_status,
        inference_id = excluded.inference_id,
        open_attempt_id = null,
        lease_expires_at = null,
        completed_at = excluded.completed_at
    ),
    inference as (
      insert into routeledger.inferences as i (
        tenant_id, outcome_id, id, attempt_no, model_slug, status, input_tokens, output_tokens, cache_read_input_tokens,
        cache_creation_input_tokens, reasoning_output_tokens, cost_usd, latency_ms, ttft_ms, http_status, error_type, error_message,
        provider_response_id, response_model, finish_reasons, created_at, started_at, completed_at)
      select
        p.tenant_id, p.id, p.attempt_id, 2147483647, '', p.outcome_status, p.input_tokens, p.output_tokens, p.cache_read_input_tokens,
        p.cache_creation_input_tokens, p.reasoning_output_tokens, p.cost_usd, p.latency_ms, p.ttft_ms, p.http_status, p.error_type,
        routeledger._error_text(p.error_message), p.provider_response_id, p.response_model, p.finish_reasons,
        '-infinity', '-infinity', v_now
      from unnest(v_plain) p
      on conflict (tenant_id, outcome_id, id) do update set
        status = excluded.status,
        input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens,
        cache_read_input_tokens = excluded.cache_read_input_tokens,
        cache_creation_input_tokens = excluded.cache_creation_input_tokens,
        reasoning_output_tokens = excluded.reasoning_output_tokens,
        (cost_usd, cost_source, cost_flag) = (
          select u.cost_usd, u.cost_source, u.cost_flag
          from routeledger._usage_cost(i.model_slug, i.started_at, excluded.input_tokens, excluded.output_tokens,
            excluded.cache_read_input_tokens, excluded.cache_creation_input_tokens, excluded.cost_usd) u),
        latency_ms = coalesce(excluded.latency_ms, greatest(extract(epoch from v_now - i.started_at) * 1000, 0)),
        ttft_ms = excluded.ttft_ms,
        http_status = excluded.http_status,
        error_type = excluded.error_type,
        error_message = excluded.error_message,
        provider_response_id = excluded.provider_response_id,
        response_model = excluded.response_model,
        finish_reasons = excluded.finish_reasons,
        completed_at = excluded.completed_at
      returning i.tenant_id, i.outcome_id, i.id, i.attempt_no, i.status, i.cost_usd, i.cost_source
    )
    select array_agg(
      row('accepted', null, null, i.outcome_id, i.id, i.attempt_no, i.status, i.cost_usd, i.cost_source, false)::routeledger.completion_result
      order by i.tenant_id, i.outcome_id)
    into v_closed
    from inference i;
    v_closed[1] := v_closed[1]; -- unpacks it
    for i in 1 .. cardinality(v_ords) loop
      v_results[v_ords[i]] := v_closed[i];
      v_done[v_ords[i]] := true;
    end loop;
  end if;

  -- What is left, one by one: replays, conflicts, late completions, a second row of an id in this batch, and what probes
  -- a model.
  for v_i in
    select r.n
    from unnest(v_inputs) with ordinality r (
      tenant_id, id, outcome_status, attempt_id, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,
      reasoning_output_tokens, cost_usd, latency_ms, ttft_ms, http_status, error_type, error_message, provider_response_id,
      response_model, finish_reasons, decision_rule_override, n)
    where not v_done[r.n]
    order by r.tenant_id, r.id, r.n
  loop
    if v_found[v_i] is distinct from false then
      v_results[v_i] := routeledger._complete_decision(v_inputs[v_i], v_settings, false, v_now);
    else
      v_one := v_inputs[v_i];
      v_results[v_i] := row('refused', 'RL201', jsonb_strip_nulls(jsonb_build_object(
        'tenant_id', v_one.tenant_id, 'id', v_one.id, 'attempt_id', v_one.attempt_id)), null, null, null, null, null, null,
        null)::routeledger.completion_result;
    end if;
  end loop;
  if v_settings.budgets_defined then
    perform routeledger._settle_decisions(array_agg(r.tenant_id), array_agg(r.id))
    from (
      select distinct (v_inputs[x.n]).tenant_id, x.id
      from unnest(v_results) with ordinality x (status, code, detail, id, inference_id, attempt_no, outcome_status, cost_usd, cost_source, late, n)
      join routeledger.budget_holds h on h.tenant_id = (v_inputs[x.n]).tenant_id and h.outcome_id = x.id
      where x.status = 'accepted'
    ) r
    having count(*) > 0;
  end if;

  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.inference_id, r.attempt_no, r.outcome_status, r.cost_usd, r.cost_source, r.late
  from unnest(v_results, v_faults) with ordinality r (
    status, code, detail, id, inference_id, attempt_no, outcome_status, cost_usd, cost_source, late, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;
