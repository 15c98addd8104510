-- 230 · Attempts: fail_attempt closes one and says what to do next; start_attempt opens one by hand.
--
-- At most one attempt of a decision is open. It is the one that routing_outcomes.open_attempt_id names, and
-- its inference is the only one in status `routed`.

do $types$
begin
  if to_regtype('routeledger.failure_input') is null then
    create type routeledger.failure_input as (
      tenant_id text,
      id uuid,
      attempt_id uuid,
      error_type text,
      error_message text,
      http_status integer,
      retry_after_ms bigint,
      next text,
      next_attempt_id uuid,
      input_tokens bigint,
      output_tokens bigint,
      cost_usd numeric,
      latency_ms double precision,
      ttft_ms double precision,
      provider_response_id text
    );
    create type routeledger.failure_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      attempt_id uuid,
      action text,
      next_attempt_id uuid,
      next_attempt_no integer,
      next_model_slug text,
      next_provider text,
      delay_ms bigint,
      outcome_status text,
      available_at timestamptz
    );
    create type routeledger.start_input as (
      tenant_id text,
      id uuid,
      model_slug text,
      attempt_id uuid,
      provider text
    );
    create type routeledger.start_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      attempt_id uuid,
      attempt_no integer,
      model_slug text,
      provider text
    );
  end if;
  if to_regtype('routeledger.next_pick') is null then
    -- The attempt that follows a failure: which candidate, when, and whether it probes a model that was cooling down.
    create type routeledger.next_pick as (
      action text,
      delay_ms bigint,
      id uuid,
      candidate_no integer,
      model_slug text,
      provider text,
      is_probe boolean
    );
  end if;
end
$types$;

-- Judges the identity that every transition of a decision carries; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._key_fault(
  p_tenant_id text,
  p_id uuid,
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
  elsif p_id is null then return 'RL101 id';
  elsif routeledger._id_time(p_id) is null then return 'RL104 id';
  end if;
  return null;
end
$$;

-- Tells whether all measurements of an attempt are in range. Without a pinned path so that the planner can
-- inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._usage_in_range(
  p_input_tokens bigint,
  p_output_tokens bigint,
  p_cache_read_input_tokens bigint,
  p_cache_creation_input_tokens bigint,
  p_reasoning_output_tokens bigint,
  p_cost_usd numeric,
  p_latency_ms double precision,
  p_ttft_ms double precision,
  p_http_status integer
)
returns boolean
language sql
immutable
parallel safe
security invoker
as $$
  select coalesce(least(p_input_tokens, p_output_tokens, p_cache_read_input_tokens, p_cache_creation_input_tokens, p_reasoning_output_tokens) >= 0
      and greatest(p_input_tokens, p_output_tokens, p_cache_read_input_tokens, p_cache_creation_input_tokens, p_reasoning_output_tokens)
        <= 1000000000000, true)
    and coalesce(p_cost_usd between 0 and 1000000000, true)
    and coalesce(least(p_latency_ms, p_ttft_ms) >= 0 and greatest(p_latency_ms, p_ttft_ms) <= 10000000000, true)
    and coalesce(p_http_status between 100 and 599, true)
$$;

-- Judges the measurements of an attempt; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._usage_fault(
  p_input_tokens bigint,
  p_output_tokens bigint,
  p_cache_read_input_tokens bigint,
  p_cache_creation_input_tokens bigint,
  p_reasoning_output_tokens bigint,
  p_cost_usd numeric,
  p_latency_ms double precision,
  p_ttft_ms double precision,
  p_http_status integer
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_input_tokens not between 0 and 1000000000000 then return 'RL103 input_tokens 0 to 1e12';
  elsif p_output_tokens not between 0 and 1000000000000 then return 'RL103 output_tokens 0 to 1e12';
  elsif p_cache_read_input_tokens not between 0 and 1000000000000 then return 'RL103 cache_read_input_tokens 0 to 1e12';
  elsif p_cache_creation_input_tokens not between 0 and 1000000000000 then return 'RL103 cache_creation_input_tokens 0 to 1e12';
  elsif p_reasoning_output_tokens not between 0 and 1000000000000 then return 'RL103 reasoning_output_tokens 0 to 1e12';
  elsif p_cost_usd not between 0 and 1000000000 then return 'RL103 cost_usd 0 to 1e9';
  elsif p_latency_ms not between 0 and 10000000000 then return 'RL103 latency_ms 0 to 1e10';
  elsif p_ttft_ms not between 0 and 10000000000 then return 'RL103 ttft_ms 0 to 1e10';
  elsif p_http_status not between 100 and 599 then return 'RL103 http_status 100 to 599';
  end if;
  return null;
end
$$;

-- Returns an error message as the ledger keeps it: at most 8192 characters, and it says when it was cut.
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._error_text(
  p_message text
)
returns text
language sql
immutable
parallel safe
security invoker
as $$
  select case
    when length(p_message) > 8192 then left(p_message, 8150) || ' [cut from ' || length(p_message)::text || ' characters]'
    else p_message
  end
$$;

-- Tells whether it was the reaper that closed this attempt.
-- Locks: none. Errors: none.
create or replace function routeledger._was_reaped(
  p_outcome routeledger.routing_outcomes,
  p_attempt routeledger.inferences
)
returns boolean
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce(
    p_outcome.outcome_status = 'abandoned'
    and p_attempt.error_type = 'abandoned'
    and p_attempt.next_action is null
    and p_attempt.completed_at = p_outcome.abandoned_at, false);
end
$$;

-- Judges a failure field by field; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._failure_fault(
  p routeledger.failure_input,
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
  elsif p.attempt_id is null then return 'RL101 attempt_id';
  elsif routeledger._id_time(p.attempt_id) is null then return 'RL104 attempt_id';
  elsif coalesce(p.error_type, '') = '' then return 'RL101 error_type';
  elsif length(p.error_type) > 200 then return 'RL108 error_type 200 characters';
  elsif p.retry_after_ms not between 0 and 10000000000 then return 'RL103 retry_after_ms 0 to 1e10';
  elsif p.next not in ('policy', 'hold', 'give_up') then return 'RL102 next policy, hold, give_up';
  elsif p.next_attempt_id is not null and routeledger._id_time(p.next_attempt_id) is null then return 'RL104 next_attempt_id';
  elsif p.next_attempt_id = p.attempt_id then return 'RL103 next_attempt_id another id than attempt_id';
  elsif length(p.provider_response_id) > 500 then return 'RL108 provider_response_id 500 characters';
  end if;
  return routeledger._usage_fault(p.input_tokens, p.output_tokens, null, null, null, p.cost_usd, p.latency_ms, p.ttft_ms, p.http_status);
end
$$;

-- Settles the budgets of decisions that were closed: all their attempts' cost. An attempt that failed without any
-- usage cost nothing; one that had usage at an unknown price makes the decision cost what was reserved, or more.
-- Locks: the budgets' counters by key; the caller holds the outcomes. Errors: none.
create or replace function routeledger._settle_decisions(
  p_tenants text[],
  p_ids uuid[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_costs numeric[] := array[]::numeric[];
  v_unknown boolean[] := array[]::boolean[];
begin
  if not exists (
    select
    from unnest(p_tenants, p_ids) d (tenant_id, id)
    join routeledger.budget_holds h on h.tenant_id = d.tenant_id and h.outcome_id = d.id)
  then
    return;
  end if;
  for i in 1 .. cardinality(p_ids) loop
    select
      v_costs || coalesce(sum(a.cost_usd), 0),
      v_unknown || coalesce(bool_or(a.cost_usd is null and (a.status = 'succeeded' or a.input_tokens > 0 or a.output_tokens > 0)), false)
    into v_costs, v_unknown
    from routeledger.inferences a
    where a.tenant_id = p_tenants[i] and a.outcome_id = p_ids[i];
  end loop;
  perform routeledger._settle_budgets(p_tenants, p_ids, v_costs, v_unknown);
end
$$;

-- Picks the attempt that follows a failed one, and takes for it what it needs: the probe of a model whose cooldown will be
-- over by then, and a hold on the budget that covers it.
--
-- p_cost_usd is what the failed attempt cost. First the same candidate after p_step's delay, where that is a retry and the model has not cooled down for longer;
-- then the next of the stored order at once. Passed over are candidates with a drop_reason, those tried before, those
-- projected to cost more than the decision's budget_cap_usd or than the budget has left, and those that are cooling
-- down. Where only cooling ones are left, the first of them to return is waited for, until the decision's deadline, or
-- where it has none no longer than the retry policy's cap; else the step is `give_up`, and its delay says when one returns.
-- Locks: cooldowns (skip locked), then the budgets' counters; the caller holds the outcome. Errors: none.
create or replace function routeledger._pick_next(
  p_outcome routeledger.routing_outcomes,
  p_failed routeledger.inferences,
  p_step routeledger.next_step,
  p_rules routeledger.retry_rules,
  p_cost_usd numeric,
  p_next_id uuid,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.next_pick
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_pick routeledger.next_pick;
  v_limit timestamptz := coalesce(p_outcome.deadline_at, 'infinity');
  v_wait_limit timestamptz := coalesce(p_outcome.deadline_at, p_now + p_rules.cap);
  v_soonest timestamptz;
  v_start timestamptz;
  v_probe boolean;
  v_one record;
begin
  v_pick.id := p_next_id;
  -- Twice over the candidates: for one that can start as planned, then for the first that returns.
  for v_one in
    with candidate as (
      select
        c.n::integer as candidate_no,
        left(c.e ->> 'model_slug', 300) as model_slug,
        left(coalesce(c.e ->> 'provider', (select m.provider from routeledger.models m where m.model_slug = c.e ->> 'model_slug')), 300) as provider,
        routeledger._projected_cost(c.e) as cost_usd,
        p_now as planned_at,
        'failover' as action
      from jsonb_array_elements(p_outcome.candidates) with ordinality c (e, n)
      where c.e ->> 'drop_reason' is null
        and length(c.e ->> 'model_slug') <= 300
        and coalesce(routeledger._projected_cost(c.e) <= p_outcome.budget_cap_usd, true)
        and not exists (
          select from routeledger.inferences i
          where i.tenant_id = p_outcome.tenant_id and i.outcome_id = p_outcome.id and i.candidate_no = c.n)
      union all
      select
        p_failed.candidate_no, p_failed.model_slug, p_failed.provider,
        routeledger._projected_cost(p_outcome.candidates -> (p_failed.candidate_no - 1)),
        p_now + p_step.delay_ms * interval '1 millisecond', 'retry'
      where p_step.action = 'retry'
    ),
    timed as (
      select
        c.*, greatest(c.planned_at, k.until_at) as start_at, coalesce(k.until_at > c.planned_at, false) as cooling,
        coalesce(k.probing, false) as probing, k.opened
      from candidate c
      cross join lateral (
        select
          max(greatest(x.until_at, x.probe_until)) filter (where x.until_at > p_now or x.probe_until > p_now) as until_at,
          bool_or(x.probe_until > p_now) as probing,
          count(*) > 0 as opened
        from routeledger.cooldowns x
        where x.tenant_id in ('', p_outcome.tenant_id) and x.model_slug = c.model_slug and x.provider in ('', coalesce(c.provider, ''))
          and x.until_at is not null
      ) k
    )
    select t.*, p.pass
    from timed t
    cross join (values (1), (2)) p (pass)
    where p.pass = 2 or not t.cooling
    order by
      p.pass,
      case p.pass when 1 then (t.action <> 'retry')::integer end,
      case p.pass when 2 then t.start_at end,
      t.candidate_no
  loop
    v_start := v_one.start_at;
    v_probe := null;
    if v_one.probing then
      -- What that probe finds is known when it is back; then all may come, a little apart.
      v_start := v_start + p_rules.base * (p_rules.jitter * random());
    elsif v_one.opened and v_start <= v_limit then
      v_probe := routeledger._take_probe(
        p_outcome.tenant_id, v_one.model_slug, v_one.provider, v_pick.id, p_now, p_settings.probe_lease, v_start);
      if v_probe is false then -- somebody has just been faster
        v_start := v_start + p_settings.probe_lease;
        if v_one.pass = 1 then
          continue;
        end if;
      end if;
    end if;
    if v_start > (case v_one.pass when 1 then v_limit else v_wait_limit end) then
      v_soonest := least(v_soonest, v_start);
      if v_probe then
        perform routeledger._end_probe(p_outcome.tenant_id, v_one.model_slug, v_one.provider, v_pick.id, false);
      end if;
      continue;
    end if;
    if p_outcome.holds_budget and v_one.cost_usd is not null
      and routeledger._raise_hold(
        p_outcome.tenant_id, p_outcome.id,
        v_one.cost_usd + coalesce(p_cost_usd, 0) + (
          select coalesce(sum(i.cost_usd), 0) from routeledger.inferences i where i.tenant_id = p_outcome.tenant_id and i.outcome_id = p_outcome.id)) is not null
    then
      if v_probe then
        perform routeledger._end_probe(p_outcome.tenant_id, v_one.model_slug, v_one.provider, v_pick.id, false);
      end if;
      continue;
    end if;
    v_pick.action := v_one.action;
    v_pick.candidate_no := v_one.candidate_no;
    v_pick.model_slug := v_one.model_slug;
    v_pick.provider := v_one.provider;
    v_pick.is_probe := coalesce(v_probe, false);
    v_pick.delay_ms := ceil(extract(epoch from v_start - p_now) * 1000)::bigint;
    return v_pick;
  end loop;
  v_pick.action := 'give_up';
  v_pick.delay_ms := coalesce(ceil(extract(epoch from v_soonest - p_now) * 1000)::bigint, 0);
  return v_pick;
end
$$;

-- Closes the open attempt as failed and, in the same transaction, opens the next one or closes the decision.
--
-- The error's class (see 150) decides what `policy` does: retry the same candidate, go on to the next eligible one, or give
-- up; what a model's failure says of its health is noted in its cooldown; `hold` leaves the decision in flight with no open attempt, for a caller that picks the next
-- model itself with start_attempt; `give_up` closes it. A known attempt that failed the same way already
-- is `replayed` with the answer of the first call. What a closed decision held of its budgets is settled.
-- Locks: the outcome, then its inferences, then cooldowns, then the budgets' counters. Errors: none; a fault is part of the result.
create or replace function routeledger._fail_attempt(
  p_given routeledger.failure_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.failure_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.failure_result;
  v_fault text := routeledger._failure_fault(p_given, p_settings);
  v_outcome routeledger.routing_outcomes;
  v_failed routeledger.inferences;
  v_next routeledger.inferences;
  v_class text := routeledger._error_class(p_given.error_type, p_given.http_status);
  v_rules routeledger.retry_rules;
  v_step routeledger.next_step;
  v_pick routeledger.next_pick;
  v_cost record;
  v_message text := routeledger._error_text(p_given.error_message);
begin
  v_result.status := 'refused';
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;
  v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'attempt_id', p_given.attempt_id);

  select o.* into v_outcome
  from routeledger.routing_outcomes o
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id
  for update;
  if not found then
    v_result.code := 'RL201';
    return v_result;
  end if;
  select i.* into v_failed
  from routeledger.inferences i
  where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_given.attempt_id;
  if not found then
    v_result.code := 'RL202';
    return v_result;
  end if;

  if v_failed.status <> 'routed' then
    -- Closed already. By this very call, or by something else?
    if v_failed.next_action is null
      or (v_failed.error_type, v_failed.error_message, v_failed.http_status, v_failed.retry_after_ms, v_failed.provider_response_id,
          v_failed.input_tokens, v_failed.output_tokens)
        is distinct from
         (p_given.error_type, v_message, p_given.http_status, p_given.retry_after_ms, p_given.provider_response_id,
          p_given.input_tokens, p_given.output_tokens)
      or (p_given.cost_usd is not null and (v_failed.cost_source <> 'caller' or v_failed.cost_usd <> p_given.cost_usd))
      or (coalesce(p_given.next, 'policy') <> 'policy' and v_failed.next_action <> p_given.next)
    then
      v_result.code := case
        when routeledger._was_reaped(v_outcome, v_failed) then 'RL401'
        else 'RL304'
      end;
      v_result.detail := v_result.detail || jsonb_build_object('attempt_status', v_failed.status, 'error_type', v_failed.error_type);
      return v_result;
    end if;
    v_result := row('replayed', null, null, p_given.id, p_given.attempt_id, v_failed.next_action, null, null, null, null,
      v_failed.next_delay_ms, case v_failed.next_action when 'give_up' then 'failed' end,
      case when v_failed.next_action = 'give_up' and v_failed.next_delay_ms > 0
        then v_failed.completed_at + v_failed.next_delay_ms * interval '1 millisecond' end)::routeledger.failure_result;
    if v_failed.next_action in ('retry', 'failover') then
      select i.* into v_next
      from routeledger.inferences i
      where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.attempt_no = v_failed.attempt_no + 1;
      if p_given.next_attempt_id is not null and p_given.next_attempt_id <> v_next.id then
        v_result.status := 'refused';
        v_result.code := 'RL301';
        v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'next_attempt_id', p_given.next_attempt_id);
        v_result.id := null;
        v_result.attempt_id := null;
        v_result.action := null;
        v_result.delay_ms := null;
        return v_result;
      end if;
      v_result.available_at := v_next.started_at;
      v_result.next_attempt_id := v_next.id;
      v_result.next_attempt_no := v_next.attempt_no;
      v_result.next_model_slug := v_next.model_slug;
      v_result.next_provider := v_next.provider;
    end if;
    return v_result;
  end if;

  select c.cost_usd, c.cost_source, c.cost_flag into v_cost
  from routeledger._usage_cost(
    v_failed.model_slug, v_failed.started_at, p_given.input_tokens, p_given.output_tokens, null, null, p_given.cost_usd) c;

  -- What next, and what does it say of the model? The candidates tried so far are in the inferences; the order is in
  -- the decision.
  v_rules := routeledger._retry_rules(p_given.tenant_id, v_failed.model_slug, v_class, p_settings);
  v_step.action := nullif(coalesce(p_given.next, 'policy'), 'policy');
  v_step.delay_ms := 0;
  if v_step.action is null and v_outcome.attempt_count >= v_rules.max_attempts then
    v_step.action := 'give_up';
  elsif v_step.action is null then
    v_step := routeledger._after_failure(
      v_rules,
      v_class,
      (select count(*)::integer
       from routeledger.inferences i
       where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id
         and i.model_slug = v_failed.model_slug and i.candidate_no is not distinct from v_failed.candidate_no),
      p_given.retry_after_ms,
      random());
  end if;
  if p_given.next_attempt_id is not null and v_step.action in ('retry', 'failover') then
    if exists (
        select from routeledger.inferences i
        where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_given.next_attempt_id)
      and (v_step.action = 'retry' or exists (
        select
        from jsonb_array_elements(v_outcome.candidates) with ordinality c (e, n)
        where c.e ->> 'drop_reason' is null and not exists (
          select from routeledger.inferences i
          where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.candidate_no = c.n)))
    then
      v_result.code := 'RL301';
      v_result.detail := v_result.detail || jsonb_build_object('next_attempt_id', p_given.next_attempt_id);
      return v_result;
    end if;
  end if;
  perform routeledger._note_failure(
    p_given.tenant_id, v_failed.model_slug, v_failed.provider, v_class, p_given.http_status, p_given.retry_after_ms, v_failed.id,
    coalesce(v_outcome.probe_attempt_id = v_failed.id, false), v_rules, p_settings, p_now);
  if v_step.action in ('retry', 'failover') then
    v_pick := routeledger._pick_next(
      v_outcome, v_failed, v_step, v_rules, v_cost.cost_usd,
      coalesce(p_given.next_attempt_id, routeledger._uuid_v7_at(p_now)), p_settings, p_now);
    v_step.action := v_pick.action;
    v_step.delay_ms := v_pick.delay_ms;
    v_next.id := v_pick.id;
    v_next.attempt_no := v_outcome.attempt_count + 1;
    v_next.candidate_no := v_pick.candidate_no;
    v_next.model_slug := v_pick.model_slug;
    v_next.provider := v_pick.provider;
  end if;
  update routeledger.inferences i set
    status = 'failed',
    error_type = p_given.error_type,
    error_message = v_message,
    http_status = p_given.http_status,
    retry_after_ms = p_given.retry_after_ms,
    next_action = v_step.action,
    next_delay_ms = v_step.delay_ms,
    input_tokens = p_given.input_tokens,
    output_tokens = p_given.output_tokens,
    cost_usd = v_cost.cost_usd,
    cost_source = v_cost.cost_source,
    cost_flag = v_cost.cost_flag,
    latency_ms = coalesce(p_given.latency_ms, greatest(extract(epoch from p_now - v_failed.started_at) * 1000, 0)),
    ttft_ms = p_given.ttft_ms,
    provider_response_id = p_given.provider_response_id,
    completed_at = p_now
  where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_given.attempt_id;

  v_result := row('accepted', null, null, p_given.id, p_given.attempt_id, v_step.action, null, null, null, null,
    v_step.delay_ms, null,
    case when v_step.action <> 'give_up' or v_step.delay_ms > 0 then p_now + v_step.delay_ms * interval '1 millisecond' end)::routeledger.failure_result;
  if v_step.action in ('retry', 'failover') then
    -- The lease covers the wait and then as long again as it did at the start.
    insert into routeledger.inferences (
      tenant_id, outcome_id, id, attempt_no, candidate_no, model_slug, provider, created_at, started_at)
    values (
      p_given.tenant_id, p_given.id, v_next.id, v_next.attempt_no, v_next.candidate_no, v_next.model_slug, v_next.provider,
      p_now, p_now + v_step.delay_ms * interval '1 millisecond');
    update routeledger.routing_outcomes o set
      open_attempt_id = v_next.id,
      attempt_count = v_next.attempt_no,
      probe_attempt_id = case when v_pick.is_probe then v_next.id end,
      lease_expires_at = greatest(o.lease_expires_at, p_now + v_step.delay_ms * interval '1 millisecond' + coalesce(o.lease, p_settings.lease))
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.next_attempt_id := v_next.id;
    v_result.next_attempt_no := v_next.attempt_no;
    v_result.next_model_slug := v_next.model_slug;
    v_result.next_provider := v_next.provider;
  elsif v_step.action = 'hold' then
    v_result.available_at := null;
    update routeledger.routing_outcomes o set open_attempt_id = null, probe_attempt_id = null
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
  else
    update routeledger.routing_outcomes o set
      open_attempt_id = null,
      inference_id = p_given.attempt_id,
      outcome_status = 'failed',
      completed_at = p_now,
      lease_expires_at = null
    where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
    v_result.outcome_status := 'failed';
    if v_outcome.holds_budget then
      perform routeledger._settle_decisions(array[p_given.tenant_id], array[p_given.id]);
    end if;
  end if;
  return v_result;
end
$$;

-- Locks what a batch of failures will write to, each kind in its order, so that the rows can then be met one by one:
-- first all the outcomes, then the cooldowns of the models that failed, then the budgets' counters. Returns for each row
-- whether its decision was found; one that was not is not looked for again, for to lock it later would be out of order.
-- Locks: the outcomes by (tenant_id, id), the cooldowns by key, the budgets' counters by key. Errors: none.
create or replace function routeledger._lock_failures(
  p_inputs routeledger.failure_input[],
  p_settings routeledger.settings,
  p_now timestamptz
)
returns boolean[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_found boolean[] := array_fill(false, array[cardinality(p_inputs)]);
  v_tenants text[] := array[]::text[];
  v_ids uuid[] := array[]::uuid[];
  v_of text[] := array[]::text[];
  v_models text[] := array[]::text[];
  v_providers text[] := array[]::text[];
  v_attempt record;
  v_one record;
begin
  for v_one in
    select r.n, r.tenant_id, r.id, r.attempt_id, routeledger._error_class(r.error_type, r.http_status) as class
    from unnest(p_inputs) with ordinality r (
      tenant_id, id, attempt_id, error_type, error_message, http_status, retry_after_ms, next, next_attempt_id, input_tokens, output_tokens,
      cost_usd, latency_ms, ttft_ms, provider_response_id, n)
    where r.tenant_id is not null and r.id is not null
    order by r.tenant_id, r.id, r.n
  loop
    perform from routeledger.routing_outcomes o where o.tenant_id = v_one.tenant_id and o.id = v_one.id for update;
    continue when not found;
    v_found[v_one.n] := true;
    v_tenants := v_tenants || v_one.tenant_id;
    v_ids := v_ids || v_one.id;
    continue when v_one.class not in ('rate_limited', 'overloaded', 'server', 'timeout', 'connection');
    select i.model_slug, coalesce(i.provider, '') as provider into v_attempt
    from routeledger.inferences i
    where i.tenant_id = v_one.tenant_id and i.outcome_id = v_one.id and i.id = v_one.attempt_id and i.status = 'routed';
    continue when not found;
    v_of := v_of || routeledger._cooldown_tenant(v_one.tenant_id, p_settings);
    v_models := v_models || v_attempt.model_slug;
    v_providers := v_providers || v_attempt.provider;
  end loop;
  if v_models <> '{}' then
    perform routeledger._lock_cooldowns(v_of, v_models, v_providers, p_now);
  end if;
  if p_settings.budgets_defined then
    perform routeledger._lock_holds(v_tenants, v_ids);
  end if;
  return v_found;
end
$$;

-- Closes the open attempt of a decision as failed and returns what to do next, all in this call:
-- `retry` (same model after delay_ms), `failover` (next candidate of the stored order), `hold`, or `give_up`
-- (the decision is closed as failed, this attempt linked). The same call again returns the same answer.
--
-- The class of the error decides (error_type, http_status; see _error_class): what passes is retried and then failed
-- over, what another model may accept is failed over at once, and what would fail everywhere gives up. available_at is
-- when the next attempt may start; with give_up, when the first model that was cooling down is back, if that is why.
-- Locks: the outcome, its inferences, cooldowns, the budgets' counters. Errors: RL101 to RL104, RL108, RL110, RL201, RL202, RL301, RL304, RL401.
create or replace function routeledger.fail_attempt(
  p_tenant_id text,
  p_id uuid,
  p_attempt_id uuid,
  p_error_type text,
  p_error_message text default null,
  p_http_status integer default null,
  p_retry_after_ms bigint default null,
  p_next text default 'policy',
  p_next_attempt_id uuid default null,
  p_input_tokens bigint default null,
  p_output_tokens bigint default null,
  p_cost_usd numeric default null,
  p_latency_ms double precision default null,
  p_ttft_ms double precision default null,
  p_provider_response_id text default null
)
returns table (
  id uuid,
  attempt_id uuid,
  action text,
  next_attempt_id uuid,
  next_attempt_no integer,
  next_model_slug text,
  next_provider text,
  delay_ms bigint,
  outcome_status text,
  created boolean,
  available_at timestamptz
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
  v_result routeledger.failure_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._fail_attempt(
    row(p_tenant_id, p_id, p_attempt_id, p_error_type, p_error_message, p_http_status, p_retry_after_ms, p_next, p_next_attempt_id,
      p_input_tokens, p_output_tokens, p_cost_usd, p_latency_ms, p_ttft_ms, p_provider_response_id)::routeledger.failure_input,
    v_settings,
    routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select
    v_result.id, v_result.attempt_id, v_result.action, v_result.next_attempt_id, v_result.next_attempt_no, v_result.next_model_slug,
    v_result.next_provider, v_result.delay_ms, v_result.outcome_status, v_result.status = 'accepted', v_result.available_at;
end
$$;

-- Fails many attempts in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes by (tenant_id, id), their inferences, cooldowns, the budgets' counters. Errors: RL101, RL107, RL501 for the call; per row those of fail_attempt.
create or replace function routeledger.fail_attempts(
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
  action text,
  next_attempt_id uuid,
  next_attempt_no integer,
  next_model_slug text,
  next_provider text,
  delay_ms bigint,
  outcome_status text,
  available_at timestamptz
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
  v_inputs routeledger.failure_input[];
  v_faults text[];
  v_results routeledger.failure_result[];
  v_found boolean[];
  v_one routeledger.failure_input;
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.failure_input, p_rows, array[]::text[]) r;
  v_results := array_fill(null::routeledger.failure_result, array[cardinality(v_faults)]);
  if cardinality(v_faults) > 1 then
    v_found := routeledger._lock_failures(v_inputs, v_settings, v_now);
  end if;
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (
      tenant_id, id, attempt_id, error_type, error_message, http_status, retry_after_ms, next, next_attempt_id, input_tokens, output_tokens,
      cost_usd, latency_ms, ttft_ms, provider_response_id, n)
    order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null and v_found[v_i] is distinct from false then
      v_results[v_i] := routeledger._fail_attempt(v_inputs[v_i], v_settings, v_now);
    elsif v_faults[v_i] is null then
      v_one := v_inputs[v_i];
      v_faults[v_i] := routeledger._failure_fault(v_one, v_settings);
      if v_faults[v_i] is null then
        v_results[v_i].status := 'refused';
        v_results[v_i].code := 'RL201';
        v_results[v_i].detail := jsonb_build_object('tenant_id', v_one.tenant_id, 'id', v_one.id, 'attempt_id', v_one.attempt_id);
      end if;
    end if;
  end loop;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.attempt_id, r.action, r.next_attempt_id, r.next_attempt_no, r.next_model_slug, r.next_provider, r.delay_ms, r.outcome_status, r.available_at
  from unnest(v_results, v_faults) with ordinality r (
    status, code, detail, id, attempt_id, action, next_attempt_id, next_attempt_no, next_model_slug, next_provider, delay_ms, outcome_status, available_at, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;

-- Opens the next attempt of a decision that has none open; see start_attempt.
-- Locks: the outcome, then its inferences, then a cooldown (skip locked). Errors: none; a fault is part of the result.
create or replace function routeledger._start_attempt(
  p_given routeledger.start_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.start_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.start_result;
  v_fault text := routeledger._key_fault(p_given.tenant_id, p_given.id, p_settings);
  v_outcome routeledger.routing_outcomes;
  v_attempt routeledger.inferences;
begin
  v_result.status := 'refused';
  v_fault := coalesce(v_fault, case
    when coalesce(p_given.model_slug, '') = '' then 'RL101 model_slug'
    when length(p_given.model_slug) > 300 then 'RL108 model_slug 300 characters'
    when length(p_given.provider) > 300 then 'RL108 provider 300 characters'
    when p_given.attempt_id is not null and routeledger._id_time(p_given.attempt_id) is null then 'RL104 attempt_id'
  end);
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;
  v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id);

  select o.* into v_outcome
  from routeledger.routing_outcomes o
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id
  for update;
  if not found then
    v_result.code := 'RL201';
    return v_result;
  end if;

  if p_given.attempt_id is not null then
    select i.* into v_attempt
    from routeledger.inferences i
    where i.tenant_id = p_given.tenant_id and i.outcome_id = p_given.id and i.id = p_given.attempt_id;
    if found then
      if v_attempt.model_slug <> p_given.model_slug or v_attempt.provider is distinct from coalesce(p_given.provider, v_attempt.provider) then
        v_result.code := 'RL301';
        v_result.detail := v_result.detail || jsonb_build_object('attempt_id', p_given.attempt_id, 'model_slug', v_attempt.model_slug);
        return v_result;
      end if;
      return row('replayed', null, null, p_given.id, v_attempt.id, v_attempt.attempt_no, v_attempt.model_slug,
        v_attempt.provider)::routeledger.start_result;
    end if;
  end if;

  v_result.code := case
    when v_outcome.outcome_status = 'abandoned' then 'RL401'
    when v_outcome.outcome_status is not null then 'RL305'
    when v_outcome.open_attempt_id is not null then 'RL303'
    when v_outcome.attempt_count >= p_settings.retry_max_attempts then 'RL503'
  end;
  if v_result.code is not null then
    v_result.detail := v_result.detail || jsonb_strip_nulls(jsonb_build_object(
      'outcome_status', v_outcome.outcome_status, 'open_attempt_id', v_outcome.open_attempt_id, 'attempts', v_outcome.attempt_count));
    return v_result;
  end if;

  v_attempt.id := coalesce(p_given.attempt_id, routeledger._uuid_v7_at(p_now));
  v_attempt.attempt_no := v_outcome.attempt_count + 1;
  v_attempt.provider := p_given.provider;
  select c.n::integer, coalesce(v_attempt.provider, c.e ->> 'provider') into v_attempt.candidate_no, v_attempt.provider
  from jsonb_array_elements(v_outcome.candidates) with ordinality c (e, n)
  where c.e ->> 'model_slug' = p_given.model_slug
    and (p_given.provider is null or c.e ->> 'provider' is null or c.e ->> 'provider' = p_given.provider)
  order by c.n
  limit 1;
  v_attempt.provider := left(coalesce(
    v_attempt.provider, p_given.provider, (select m.provider from routeledger.models m where m.model_slug = p_given.model_slug)), 300);

  insert into routeledger.inferences (
    tenant_id, outcome_id, id, attempt_no, candidate_no, model_slug, provider, created_at, started_at)
  values (
    p_given.tenant_id, p_given.id, v_attempt.id, v_attempt.attempt_no, v_attempt.candidate_no, p_given.model_slug, v_attempt.provider, p_now, p_now);
  update routeledger.routing_outcomes o set
    open_attempt_id = v_attempt.id,
    attempt_count = v_attempt.attempt_no,
    probe_attempt_id = case
      when routeledger._take_probe(p_given.tenant_id, p_given.model_slug, v_attempt.provider, v_attempt.id, p_now, p_settings.probe_lease)
        then v_attempt.id end,
    lease_expires_at = greatest(o.lease_expires_at, p_now + coalesce(o.lease, p_settings.lease))
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
  return row('accepted', null, null, p_given.id, v_attempt.id, v_attempt.attempt_no, p_given.model_slug,
    v_attempt.provider)::routeledger.start_result;
end
$$;

-- Opens the next attempt of a decision that is in flight with none open (after fail_attempt with
-- p_next => 'hold'), for a caller that picks its models itself. It may pick one that is cooling down; where the cooldown is
-- over and nobody probes the model, this attempt does. With a known attempt_id the same call again returns the
-- same attempt with created = false.
-- Locks: the outcome, then its inferences, then a cooldown (skip locked). Errors: RL101, RL104, RL108, RL110, RL201, RL301, RL303, RL305, RL401, RL503.
create or replace function routeledger.start_attempt(
  p_tenant_id text,
  p_id uuid,
  p_model_slug text,
  p_attempt_id uuid default null,
  p_provider text default null
)
returns table (
  id uuid,
  attempt_id uuid,
  attempt_no integer,
  model_slug text,
  provider text,
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
  v_result routeledger.start_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._start_attempt(
    row(p_tenant_id, p_id, p_model_slug, p_attempt_id, p_provider)::routeledger.start_input, v_settings, routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select
    v_result.id, v_result.attempt_id, v_result.attempt_no, v_result.model_slug, v_result.provider, v_result.status = 'accepted';
end
$$;

-- Opens many attempts in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes by (tenant_id, id), each with its inferences. Errors: RL101, RL107, RL501 for the call; per row those of start_attempt.
create or replace function routeledger.start_attempts(
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
  provider text
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
  v_inputs routeledger.start_input[];
  v_faults text[];
  v_results routeledger.start_result[];
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.start_input, p_rows, array[]::text[]) r;
  v_results := array_fill(null::routeledger.start_result, array[cardinality(v_faults)]);
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (tenant_id, id, model_slug, attempt_id, provider, n)
    order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._start_attempt(v_inputs[v_i], v_settings, v_now);
    end if;
  end loop;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.attempt_id, r.attempt_no, r.model_slug, r.provider
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, attempt_id, attempt_no, model_slug, provider, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;
