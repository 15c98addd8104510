-- 250 · record_outcome: the whole story in one call, for callers who learn of it afterwards.

do $types$
begin
  if to_regtype('routeledger.story_input') is null then
    create type routeledger.story_input as (
      tenant_id text,
      id uuid,
      agent_id text,
      task_type text,
      candidates jsonb,
      chosen_model_slug text,
      decision_rule text,
      min_quality double precision,
      budget_cap_usd numeric,
      policy_version text,
      traffic_class text,
      event_at timestamptz,
      metadata jsonb,
      attempts jsonb,
      decision_rule_override text
    );
    create type routeledger.attempt_input as (
      id uuid,
      model_slug text,
      provider text,
      status text,
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
      retry_after_ms bigint,
      provider_response_id text,
      response_model text,
      finish_reasons text[],
      started_at timestamptz,
      completed_at timestamptz
    );
    create type routeledger.story_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      inference_id uuid,
      attempts integer,
      outcome_status text,
      cost_usd numeric
    );
  end if;
end
$types$;

-- Judges one attempt of a story; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._attempt_fault(
  p routeledger.attempt_input,
  p_last boolean,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if coalesce(p.model_slug, '') = '' then return 'RL111 attempts model_slug';
  elsif length(p.model_slug) > 300 or length(p.provider) > 300 then return 'RL108 attempts 300 characters a model_slug or provider';
  elsif p.id is not null and routeledger._id_time(p.id) is null then return 'RL104 attempts id';
  elsif p.status is null or p.status not in ('succeeded', 'failed') then return 'RL111 attempts status succeeded, failed';
  elsif p.status = 'succeeded' and not p_last then return 'RL111 attempts only the last may have succeeded';
  elsif p.status = 'succeeded' and (p.input_tokens is null or p.output_tokens is null or p.error_type is not null)
    then return 'RL111 attempts succeeded needs input_tokens, output_tokens and no error_type';
  elsif p.status = 'failed' and coalesce(p.error_type, '') = '' then return 'RL111 attempts failed needs error_type';
  elsif length(p.error_type) > 200 then return 'RL108 attempts error_type 200 characters';
  elsif length(p.provider_response_id) > 500 or length(p.response_model) > 300 then return 'RL108 attempts provider_response_id 500, response_model 300 characters';
  elsif array_ndims(p.finish_reasons) > 1 or cardinality(p.finish_reasons) > 100 or pg_column_size(p.finish_reasons) > 8192
    then return 'RL108 attempts finish_reasons 100 words';
  elsif p.retry_after_ms not between 0 and 10000000000 then return 'RL103 attempts retry_after_ms 0 to 1e10';
  elsif not isfinite(p.started_at) or not isfinite(p.completed_at)
    or p.started_at not between p_now - p_settings.event_at_max_age and p_now + p_settings.id_window_future
    or p.completed_at not between p_now - p_settings.event_at_max_age and p_now + p_settings.id_window_future
    or p.completed_at < p.started_at
    then return 'RL109 attempts started_at, completed_at';
  end if;
  return routeledger._usage_fault(p.input_tokens, p.output_tokens, p.cache_read_input_tokens, p.cache_creation_input_tokens,
    p.reasoning_output_tokens, p.cost_usd, p.latency_ms, p.ttft_ms, p.http_status);
end
$$;

-- Records one whole story; see record_outcome.
-- Locks: the outcome's key, then the budgets' counters. Errors: none; a fault is part of the result.
create or replace function routeledger._record_outcome(
  p_given routeledger.story_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.story_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.story_result;
  v_ready routeledger.decision_ready;
  v_fault text;
  v_attempts routeledger.attempt_input[] := array[]::routeledger.attempt_input[];
  v_attempt routeledger.attempt_input;
  v_inference routeledger.inferences;
  v_inferences routeledger.inferences[] := array[]::routeledger.inferences[];
  v_cost record;
  v_n integer := 0;
  v_stored routeledger.routing_outcomes;
  v_written boolean;
  v_id_at timestamptz;
begin
  v_result.status := 'refused';
  v_ready := routeledger._prepare_decision(
    row(p_given.tenant_id, p_given.id, p_given.agent_id, p_given.task_type, p_given.candidates,
      coalesce(p_given.chosen_model_slug, nullif(p_given.attempts -> 0 ->> 'model_slug', '')),
      p_given.decision_rule, p_given.min_quality, p_given.budget_cap_usd, p_given.policy_version, p_given.traffic_class, p_given.event_at,
      null, null, p_given.metadata, null, null, null, null)::routeledger.decision_input,
    p_settings, p_now);
  v_fault := v_ready.fault;

  if v_fault is null then
    if jsonb_typeof(p_given.attempts) <> 'array' then
      v_fault := 'RL111 attempts a JSON array';
    elsif p_given.attempts -> 0 is not null
      and (jsonb_typeof(p_given.attempts -> 0) <> 'object' or coalesce(p_given.attempts -> 0 ->> 'model_slug', '') = '')
    then
      v_fault := 'RL111 attempts each an object with a model_slug';
    elsif jsonb_array_length(p_given.attempts) > p_settings.retry_max_attempts * 10 then
      v_fault := 'RL503 attempts ' || p_settings.retry_max_attempts * 10;
    elsif p_given.decision_rule_override !~ '^[a-z][a-z0-9_]{0,62}$' then
      v_fault := 'RL102 decision_rule_override lower-case words joined by underscores';
    elsif p_given.decision_rule_override is not null and p_given.attempts -> 0 is not null then
      v_fault := 'RL306 decision_rule_override';
    elsif v_ready.chosen_model_slug is not null and p_given.attempts -> 0 is null and p_given.decision_rule_override is null then
      v_fault := 'RL101 attempts or decision_rule_override';
    end if;
  end if;
  if v_fault is null and p_given.attempts -> 0 is not null then
    select r.inputs, coalesce(
      (select min(replace(f, 'RL107 ', 'RL111 attempts ')) from unnest(r.faults) f),
      (select min(routeledger._attempt_fault(r.inputs[n], n = cardinality(r.inputs), p_settings, p_now)) from generate_series(1, cardinality(r.inputs)) n))
    into v_attempts, v_fault
    from routeledger._read_rows(null::routeledger.attempt_input, p_given.attempts, array['finish_reasons']) r;
  end if;
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;

  v_result.id := v_ready.id;
  v_result.attempts := cardinality(v_attempts);
  v_result.cost_usd := null;
  foreach v_attempt in array v_attempts loop
    v_n := v_n + 1;
    v_inference := null;
    v_inference.tenant_id := p_given.tenant_id;
    v_inference.outcome_id := v_ready.id;
    v_inference.id := coalesce(v_attempt.id, routeledger._uuid_v7_at(p_now));
    v_inference.attempt_no := v_n;
    select c.n, coalesce(v_attempt.provider, c.e ->> 'provider') into v_inference.candidate_no, v_inference.provider
    from jsonb_array_elements(v_ready.candidates) with ordinality c (e, n)
    where c.e ->> 'model_slug' = v_attempt.model_slug
      and (v_attempt.provider is null or c.e ->> 'provider' is null or c.e ->> 'provider' = v_attempt.provider)
    order by c.n
    limit 1;
    v_inference.model_slug := v_attempt.model_slug;
    v_inference.provider := left(coalesce(v_inference.provider, v_attempt.provider,
      (select m.provider from routeledger.models m where m.model_slug = v_attempt.model_slug)), 300);
    v_inference.status := v_attempt.status;
    v_inference.input_tokens := v_attempt.input_tokens;
    v_inference.output_tokens := v_attempt.output_tokens;
    v_inference.cache_read_input_tokens := v_attempt.cache_read_input_tokens;
    v_inference.cache_creation_input_tokens := v_attempt.cache_creation_input_tokens;
    v_inference.reasoning_output_tokens := v_attempt.reasoning_output_tokens;
    v_inference.created_at := p_now;
    v_inference.started_at := coalesce(v_attempt.started_at, least(v_attempt.completed_at, coalesce(p_given.event_at, p_now)));
    v_inference.completed_at := coalesce(v_attempt.completed_at, greatest(v_inference.started_at, p_now));
    select c.cost_usd, c.cost_source, c.cost_flag into v_cost
    from routeledger._usage_cost(v_attempt.model_slug, v_inference.started_at, v_attempt.input_tokens, v_attempt.output_tokens,
      v_attempt.cache_read_input_tokens, v_attempt.cache_creation_input_tokens, v_attempt.cost_usd) c;
    v_inference.cost_usd := v_cost.cost_usd;
    v_inference.cost_source := v_cost.cost_source;
    v_inference.cost_flag := v_cost.cost_flag;
    v_inference.latency_ms := coalesce(v_attempt.latency_ms,
      case when v_attempt.started_at is not null and v_attempt.completed_at is not null
        then extract(epoch from v_attempt.completed_at - v_attempt.started_at) * 1000 end);
    v_inference.ttft_ms := v_attempt.ttft_ms;
    v_inference.http_status := v_attempt.http_status;
    v_inference.error_type := v_attempt.error_type;
    v_inference.error_message := routeledger._error_text(v_attempt.error_message);
    v_inference.retry_after_ms := v_attempt.retry_after_ms;
    v_inference.provider_response_id := v_attempt.provider_response_id;
    v_inference.response_model := v_attempt.response_model;
    v_inference.finish_reasons := v_attempt.finish_reasons;
    v_inferences := v_inferences || v_inference;
    v_result.cost_usd := case when v_cost.cost_usd is null then v_result.cost_usd else coalesce(v_result.cost_usd, 0) + v_cost.cost_usd end;
  end loop;
  if (select count(distinct i.id) from unnest(v_inferences) i) <> v_n then
    v_result.code := 'RL111';
    v_result.detail := routeledger._fault_detail('RL111 attempts each with its own id');
    v_result.id := null;
    v_result.attempts := null;
    v_result.cost_usd := null;
    return v_result;
  end if;
  v_result.inference_id := v_inference.id;
  v_result.outcome_status := case
    when v_n > 0 then v_inference.status
    when p_given.decision_rule_override is not null then 'failed'
    else 'rejected'
  end;

  v_id_at := routeledger._id_time(v_ready.id);
  if not routeledger._has_partition(v_id_at, p_settings.partition_width) then
    perform routeledger._ensure_partition(v_id_at, p_settings.partition_width);
  end if;
  with decided as (
    insert into routeledger.routing_outcomes (
      tenant_id, id, agent_id, task_type, decision_rule, decision_rule_override, chosen_model_slug, candidates, min_quality,
      budget_cap_usd, policy_version, traffic_class, metadata, attempt_count, inference_id, outcome_status, event_at, created_at, completed_at)
    values (
      p_given.tenant_id, v_ready.id, p_given.agent_id, p_given.task_type, v_ready.decision_rule, p_given.decision_rule_override,
      v_ready.chosen_model_slug, v_ready.candidates, p_given.min_quality, p_given.budget_cap_usd, p_given.policy_version,
      coalesce(p_given.traffic_class, 'production'), p_given.metadata, v_n, v_result.inference_id, v_result.outcome_status,
      coalesce(p_given.event_at, p_now), p_now, coalesce(v_inference.completed_at, p_now))
    on conflict (tenant_id, id) do nothing
    returning 1
  ),
  attempted as (
    insert into routeledger.inferences
    select i.* from decided cross join unnest(v_inferences) i
  )
  select true into v_written from decided;
  if v_written then
    if p_settings.budgets_defined and v_result.cost_usd > 0 and coalesce(p_given.traffic_class, 'production') <> 'replay' then
      perform routeledger._charge_budgets(
        array[p_given.tenant_id], array[p_given.agent_id], array[v_result.cost_usd], array[coalesce(p_given.event_at, p_now)]);
    end if;
    v_result.status := 'accepted';
    return v_result;
  end if;

  -- The id is known. Is it the same story again? Ids of attempts count only where the caller gave them.
  select o.* into strict v_stored from routeledger.routing_outcomes o where o.tenant_id = p_given.tenant_id and o.id = v_ready.id;
  if (v_stored.agent_id, v_stored.task_type, v_stored.decision_rule, v_stored.decision_rule_override, v_stored.chosen_model_slug,
      v_stored.candidates, v_stored.min_quality, v_stored.budget_cap_usd, v_stored.policy_version, v_stored.traffic_class,
      v_stored.metadata, v_stored.attempt_count, v_stored.outcome_status, v_stored.event_at)
    is distinct from
     (p_given.agent_id, p_given.task_type, v_ready.decision_rule, p_given.decision_rule_override, v_ready.chosen_model_slug,
      v_ready.candidates, p_given.min_quality, p_given.budget_cap_usd, p_given.policy_version, coalesce(p_given.traffic_class, 'production'),
      p_given.metadata, v_n, v_result.outcome_status, coalesce(p_given.event_at, v_stored.event_at))
    or exists (
      select
      from unnest(v_inferences) with ordinality n
      left join routeledger.inferences i
        on i.tenant_id = p_given.tenant_id and i.outcome_id = v_ready.id and i.attempt_no = n.attempt_no
      where (i.model_slug, i.status, i.input_tokens, i.output_tokens, i.cache_read_input_tokens, i.cache_creation_input_tokens,
             i.reasoning_output_tokens, i.latency_ms, i.ttft_ms, i.http_status, i.error_type, i.error_message, i.retry_after_ms,
             i.provider_response_id, i.response_model, i.finish_reasons)
        is distinct from
            (n.model_slug, n.status, n.input_tokens, n.output_tokens, n.cache_read_input_tokens, n.cache_creation_input_tokens,
             n.reasoning_output_tokens, n.latency_ms, n.ttft_ms, n.http_status, n.error_type, n.error_message, n.retry_after_ms,
             n.provider_response_id, n.response_model, n.finish_reasons)
        or (v_attempts[n.attempt_no].id is not null and i.id <> v_attempts[n.attempt_no].id)
        or (v_attempts[n.attempt_no].provider is not null and i.provider is distinct from n.provider)
        or (v_attempts[n.attempt_no].started_at is not null and i.started_at <> n.started_at)
        or (v_attempts[n.attempt_no].completed_at is not null and i.completed_at <> n.completed_at)
        or (v_attempts[n.attempt_no].cost_usd is not null) <> (i.cost_source = 'caller')
        or (v_attempts[n.attempt_no].cost_usd is not null and i.cost_usd <> n.cost_usd))
  then
    v_result.status := 'refused';
    v_result.code := 'RL301';
    v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', v_ready.id, 'recorded_at', v_stored.created_at);
    v_result.id := null;
    v_result.inference_id := null;
    v_result.attempts := null;
    v_result.outcome_status := null;
    v_result.cost_usd := null;
    return v_result;
  end if;
  v_result.status := 'replayed';
  v_result.inference_id := v_stored.inference_id;
  v_result.cost_usd := (
    select sum(i.cost_usd) from routeledger.inferences i where i.tenant_id = p_given.tenant_id and i.outcome_id = v_ready.id);
  return v_result;
end
$$;

-- Records a decision, all its attempts and its outcome in one transaction, for a caller who learns of it
-- afterwards. The outcome is that of the last attempt; without attempts it is `rejected`, or, with a
-- decision_rule_override, `failed` and unlinked. event_at says when it happened, created_at when it was
-- recorded. The id is the idempotency key. What it cost is spent in the budgets of its tenant and agent, in the windows of
-- event_at, and never refused.
-- Locks: the outcome's key, then the budgets' counters. Errors: RL101 to RL111, RL301, RL306, RL502, RL503.
create or replace function routeledger.record_outcome(
  p_tenant_id text,
  p_id uuid default null,
  p_agent_id text default null,
  p_task_type text default null,
  p_candidates jsonb default '[]',
  p_chosen_model_slug text default null,
  p_decision_rule text default null,
  p_min_quality double precision default null,
  p_budget_cap_usd numeric default null,
  p_policy_version text default null,
  p_traffic_class text default 'production',
  p_event_at timestamptz default null,
  p_metadata jsonb default null,
  p_attempts jsonb default '[]',
  p_decision_rule_override text default null
)
returns table (
  id uuid,
  inference_id uuid,
  attempts integer,
  outcome_status text,
  cost_usd numeric,
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
  v_result routeledger.story_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._record_outcome(
    row(p_tenant_id, p_id, p_agent_id, p_task_type, p_candidates, p_chosen_model_slug, p_decision_rule, p_min_quality, p_budget_cap_usd,
      p_policy_version, p_traffic_class, p_event_at, p_metadata, p_attempts, p_decision_rule_override)::routeledger.story_input,
    v_settings,
    routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select
    v_result.id, v_result.inference_id, v_result.attempts, v_result.outcome_status, v_result.cost_usd, v_result.status = 'accepted';
end
$$;

-- Records many stories in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes' keys by (tenant_id, id), then the budgets' counters. Errors: RL101, RL107, RL501 for the call; per row those of record_outcome.
create or replace function routeledger.record_outcomes(
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
  attempts integer,
  outcome_status text,
  cost_usd numeric
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
  v_inputs routeledger.story_input[];
  v_faults text[];
  v_results routeledger.story_result[];
  v_quiet routeledger.settings;
  v_at timestamptz;
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  v_quiet := v_settings;
  v_quiet.budgets_defined := false; -- the batch is charged as a whole, below
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.story_input, p_rows, array['candidates', 'metadata', 'attempts']) r;
  v_results := array_fill(null::routeledger.story_result, array[cardinality(v_faults)]);
  for v_at in -- before any key is held; a day is never split between partitions
    select min(routeledger._id_time(r.id))
    from unnest(v_inputs) r
    where routeledger._id_time(r.id) between v_now - v_settings.id_window_past and v_now + v_settings.id_window_future
    group by date_trunc('day', routeledger._id_time(r.id), 'UTC')
    having not routeledger._has_partition(min(routeledger._id_time(r.id)), v_settings.partition_width)
    order by 1
  loop
    perform routeledger._ensure_partition(v_at, v_settings.partition_width);
  end loop;
  for v_i in
    select r.n
    from unnest(v_inputs) with ordinality r (
      tenant_id, id, agent_id, task_type, candidates, chosen_model_slug, decision_rule, min_quality, budget_cap_usd, policy_version,
      traffic_class, event_at, metadata, attempts, decision_rule_override, n)
    order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._record_outcome(v_inputs[v_i], v_quiet, v_now);
    end if;
  end loop;
  if v_settings.budgets_defined then
    perform routeledger._charge_budgets(
      array_agg((v_inputs[r.n]).tenant_id), array_agg((v_inputs[r.n]).agent_id), array_agg(r.cost_usd),
      array_agg(coalesce((v_inputs[r.n]).event_at, v_now)))
    from unnest(v_results) with ordinality r (status, code, detail, id, inference_id, attempts, outcome_status, cost_usd, n)
    where r.status = 'accepted' and r.cost_usd > 0 and coalesce((v_inputs[r.n]).traffic_class, 'production') <> 'replay'
    having count(*) > 0;
  end if;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.inference_id, r.attempts, r.outcome_status, r.cost_usd
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, inference_id, attempts, outcome_status, cost_usd, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;
