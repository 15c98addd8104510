-- 220 · insert_decision: the decision and its first attempt, before the provider is called.

do $types$
begin
  if to_regtype('routeledger.decision_input') is null then
    create type routeledger.decision_input as (
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
      lease interval,
      attempt_id uuid,
      metadata jsonb,
      budget_key text,
      deadline interval,
      ruleset_hash text,
      propensity double precision
    );
    -- A decision as given, and what the ledger made of it.
    create type routeledger.decision_ready as (
      fault text,
      given routeledger.decision_input,
      id uuid,
      attempt_id uuid,
      decided_at timestamptz,
      candidates jsonb,
      chosen_model_slug text,
      candidate_no integer,
      provider text,
      decision_rule text,
      attempt_count integer,
      outcome_status text,
      lease_expires_at timestamptz,
      completed_at timestamptz,
      probe boolean,
      starts_at timestamptz
    );
    create type routeledger.decision_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      attempt_id uuid,
      attempt_no integer,
      model_slug text,
      provider text,
      decision_rule text,
      outcome_status text
    );
  end if;
end
$types$;

-- Tells whether a decision has nothing to object to, in the form that nearly every one has: its id and
-- ranked candidates, the best one chosen. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._decision_is_plain(
  p routeledger.decision_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns boolean
language sql
stable
parallel safe
security invoker
as $$
  select coalesce(length(p.tenant_id) between 1 and 200, false)
    and not p_settings.tenants_bound
    and coalesce(length(p.agent_id) between 1 and 200, true)
    and coalesce(length(p.task_type) between 1 and 200, true)
    and coalesce(length(p.policy_version) between 1 and 200, true)
    and coalesce(p.traffic_class in ('production', 'shadow', 'synthetic', 'replay'), true)
    and p.chosen_model_slug is null
    and p.decision_rule is null
    and coalesce(p.min_quality between 0 and 1, true)
    and coalesce(p.budget_cap_usd between 0 and 1000000000, true)
    and p.event_at is null
    and coalesce(p.lease between interval '1 second' and interval '24 hours', true)
    and p.metadata is null
    and p.budget_key is null
    and p.deadline is null
    and p.ruleset_hash is null
    and p.propensity is null
    and coalesce(routeledger._id_time(p.id) between p_now - p_settings.id_window_past and p_now + p_settings.id_window_future, p.id is null)
    and (p.attempt_id is null or routeledger._id_time(p.attempt_id) is not null)
    and coalesce(jsonb_typeof(p.candidates) = 'array', false)
    and jsonb_array_length(p.candidates) between 1 and 50
    and pg_column_size(p.candidates) < 16384
    and p.candidates -> 0 -> 'drop_reason' is null
    and coalesce(length(p.candidates -> 0 ->> 'model_slug') between 1 and 300 and length(p.candidates -> 0 ->> 'provider') between 1 and 300, false)
    and not jsonb_path_exists(p.candidates, 'strict $[*] ? (!(@.model_slug.type() == "string" && @.model_slug != "") || (@.model_slug.type() == "string" && @.model_slug != "") is unknown)')
$$;

-- Returns what a candidate says it will cost, or null where it says nothing that can be believed. Without a pinned
-- path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._projected_cost(
  p_candidate jsonb
)
returns numeric
language sql
immutable
parallel safe
security invoker
as $$
  select case
    when jsonb_typeof(p_candidate -> 'projected_cost_usd') = 'number' and (p_candidate ->> 'projected_cost_usd')::numeric between 0 and 1000000000
      then (p_candidate ->> 'projected_cost_usd')::numeric
  end
$$;

-- Judges the fields of a decision one by one and returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._decision_fault(
  p routeledger.decision_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns text
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_id_at timestamptz;
begin
  if coalesce(p.tenant_id, '') = '' then return 'RL101 tenant_id';
  elsif length(p.tenant_id) > 200 then return 'RL108 tenant_id 200 characters';
  elsif p_settings.tenants_bound and p.tenant_id <> all (routeledger.bound_tenants()) then return 'RL110 tenant_id';
  elsif length(p.agent_id) > 200 then return 'RL108 agent_id 200 characters';
  elsif length(p.task_type) > 200 then return 'RL108 task_type 200 characters';
  elsif length(p.policy_version) > 200 then return 'RL108 policy_version 200 characters';
  elsif p.agent_id = '' then return 'RL103 agent_id null or not empty';
  elsif p.task_type = '' then return 'RL103 task_type null or not empty';
  elsif p.policy_version = '' then return 'RL103 policy_version null or not empty';
  elsif p.chosen_model_slug = '' then return 'RL103 chosen_model_slug null or not empty';
  elsif length(p.chosen_model_slug) > 300 then return 'RL108 chosen_model_slug 300 characters';
  elsif p.decision_rule !~ '^[a-z][a-z0-9_]{0,62}$' then return 'RL102 decision_rule lower-case words joined by underscores';
  elsif p.decision_rule in ('no_candidate_clears_floor', 'no_candidate_enrolled') and p.chosen_model_slug is not null then
    return 'RL102 decision_rule another rule where a model was chosen';
  elsif p.min_quality not between 0 and 1 then return 'RL103 min_quality 0 to 1';
  elsif p.budget_cap_usd not between 0 and 1000000000 then return 'RL103 budget_cap_usd 0 to 1e9';
  elsif p.traffic_class not in ('production', 'shadow', 'synthetic', 'replay') then
    return 'RL102 traffic_class production, shadow, synthetic, replay';
  elsif p.event_at is not null
    and (not isfinite(p.event_at) or p.event_at < p_now - p_settings.event_at_max_age or p.event_at > p_now + p_settings.id_window_future)
  then return 'RL109 event_at';
  elsif p.lease not between interval '1 second' and interval '24 hours' then return 'RL103 lease 1 second to 24 hours';
  elsif p.budget_key = '' then return 'RL103 budget_key null or not empty';
  elsif length(p.budget_key) > 200 then return 'RL108 budget_key 200 characters';
  elsif p.deadline not between interval '0' and interval '30 days' then return 'RL103 deadline 0 to 30 days';
  elsif p.ruleset_hash = '' then return 'RL103 ruleset_hash null or not empty';
  elsif length(p.ruleset_hash) > 200 then return 'RL108 ruleset_hash 200 characters';
  elsif p.propensity not between 0 and 1 then return 'RL103 propensity 0 to 1';
  elsif jsonb_typeof(p.metadata) <> 'object' then return 'RL107 metadata a JSON object';
  elsif pg_column_size(p.metadata) > 65536 then return 'RL108 metadata 64 KiB';
  elsif jsonb_typeof(p.candidates) <> 'array' then return 'RL106 candidates';
  elsif jsonb_array_length(p.candidates) > 500 then return 'RL502 candidates 500';
  elsif pg_column_size(p.candidates) > 262144 then return 'RL108 candidates 256 KiB';
  end if;

  if p.id is not null then
    v_id_at := routeledger._id_time(p.id);
    if v_id_at is null then return 'RL104 id';
    elsif v_id_at < p_now - p_settings.id_window_past or v_id_at > p_now + p_settings.id_window_future then return 'RL105 id';
    end if;
  end if;
  if p.attempt_id is not null and routeledger._id_time(p.attempt_id) is null then return 'RL104 attempt_id'; end if;
  return null;
end
$$;

-- Returns a plain decision as the ledger writes it: the first candidate is chosen. Without a pinned path so
-- that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._plain_decision(
  p routeledger.decision_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.decision_ready
language sql
volatile
parallel unsafe
security invoker
as $$
  select row(null, p, coalesce(p.id, routeledger._uuid_v7_at(p_now)), coalesce(p.attempt_id, routeledger._uuid_v7_at(p_now)),
    p_now, p.candidates, p.candidates -> 0 ->> 'model_slug', 1, p.candidates -> 0 ->> 'provider', 'caller_ranked', 1, null,
    p_now + coalesce(p.lease, p_settings.lease), null, false, null)::routeledger.decision_ready
$$;

-- Completes a decision as given: ids, defaults, the chosen model and its place in the ranking.
--
-- The chosen model is the one named, else the first candidate without a drop_reason. A rule that says that
-- nothing was chosen (no_candidate_clears_floor, no_candidate_enrolled) leaves it null whatever the candidates.
-- Locks: none. Errors: none; a fault is part of the result.
create or replace function routeledger._prepare_decision(
  p_given routeledger.decision_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.decision_ready
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_ready routeledger.decision_ready;
  v_candidates jsonb := coalesce(p_given.candidates, '[]');
  v_chosen jsonb;
begin
  -- PL/pgSQL prepares each of its expressions anew in each transaction, so the plain case has only two.
  if routeledger._decision_is_plain(p_given, p_settings, p_now) then
    return routeledger._plain_decision(p_given, p_settings, p_now);
  end if;

  v_ready.given := p_given;
  v_ready.fault := routeledger._decision_fault(p_given, p_settings, p_now);
  if v_ready.fault is not null then
    return v_ready;
  end if;

  -- A candidate may be given as a bare slug; it is stored as an object all the same.
  if jsonb_path_exists(v_candidates, 'strict $[*] ? (@.type() == "string")') then
    v_candidates := (
      select jsonb_agg(case jsonb_typeof(e) when 'string' then jsonb_build_object('model_slug', e) else e end order by n)
      from jsonb_array_elements(v_candidates) with ordinality c (e, n));
  end if;
  if jsonb_path_exists(v_candidates, 'strict $[*] ? (!(@.model_slug.type() == "string" && @.model_slug != "") || (@.model_slug.type() == "string" && @.model_slug != "") is unknown)') then
    v_ready.fault := 'RL106 candidates';
    return v_ready;
  end if;

  v_ready.id := coalesce(p_given.id, routeledger._uuid_v7_at(p_now));
  v_ready.decided_at := p_now;
  v_ready.candidates := v_candidates;
  v_ready.decision_rule := p_given.decision_rule;
  v_ready.attempt_count := 0;
  v_ready.outcome_status := 'rejected';
  v_ready.completed_at := p_now;

  if p_given.decision_rule in ('no_candidate_clears_floor', 'no_candidate_enrolled') then
    return v_ready;
  elsif p_given.chosen_model_slug is not null then
    v_ready.chosen_model_slug := p_given.chosen_model_slug;
    v_ready.decision_rule := coalesce(v_ready.decision_rule, case v_candidates when '[]' then 'pinned' else 'caller_ranked' end);
    select c.n, c.e into v_ready.candidate_no, v_chosen
    from jsonb_array_elements(v_candidates) with ordinality c (e, n)
    where c.e ->> 'model_slug' = p_given.chosen_model_slug
    order by (c.e ->> 'drop_reason') is not null, c.n
    limit 1;
  else
    if v_candidates -> 0 ->> 'drop_reason' is null then
      v_chosen := v_candidates -> 0;
      v_ready.candidate_no := 1;
    else
      select c.n, c.e into v_ready.candidate_no, v_chosen
      from jsonb_array_elements(v_candidates) with ordinality c (e, n)
      where c.e ->> 'drop_reason' is null
      order by c.n
      limit 1;
    end if;
    v_ready.chosen_model_slug := v_chosen ->> 'model_slug';
    v_ready.decision_rule := coalesce(v_ready.decision_rule, case
      when v_chosen is not null then 'caller_ranked'
      when v_candidates = '[]' then 'no_candidate_enrolled'
      else 'no_candidate_clears_floor'
    end);
    if v_chosen is null then
      if v_ready.decision_rule not in ('no_candidate_clears_floor', 'no_candidate_enrolled') then
        v_ready.fault := 'RL101 chosen_model_slug or a candidate without drop_reason';
      end if;
      return v_ready;
    end if;
  end if;

  if length(v_ready.chosen_model_slug) > 300 then
    v_ready.fault := 'RL108 candidates 300 characters a model_slug';
  end if;
  v_ready.attempt_count := 1;
  v_ready.outcome_status := null;
  v_ready.completed_at := null;
  v_ready.lease_expires_at := p_now + coalesce(p_given.lease, p_settings.lease);
  v_ready.attempt_id := coalesce(p_given.attempt_id, routeledger._uuid_v7_at(p_now));
  v_ready.provider := left(v_chosen ->> 'provider', 300);
  if v_ready.provider is null then
    select m.provider into v_ready.provider from routeledger.models m where m.model_slug = v_ready.chosen_model_slug;
  end if;
  return v_ready;
end
$$;

-- Returns what a decision reserves in its budgets: what its chosen candidate is projected to cost, else its own cap,
-- else settings.assumed_cost_usd. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._amount_to_reserve(
  p_ready routeledger.decision_ready,
  p_settings routeledger.settings
)
returns numeric
language sql
stable
parallel safe
security invoker
as $$
  select coalesce(
    routeledger._projected_cost(p_ready.candidates -> (p_ready.candidate_no - 1)), (p_ready.given).budget_cap_usd, p_settings.assumed_cost_usd)
$$;

-- Writes one prepared decision, or finds that its id is known: the same payload is `replayed` with the ids
-- of the first call, another one is RL301 and changes nothing. A new one reserves what it may cost in the budgets
-- that concern it; where one of them lacks, nothing is written and the answer is RL504.
-- Locks: the outcome's key, then the budgets' counters. Errors: none; a fault is part of the result.
create or replace function routeledger._insert_decision(
  p_ready routeledger.decision_ready,
  p_settings routeledger.settings
)
returns routeledger.decision_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.decision_result;
  v_given routeledger.decision_input := p_ready.given;
  v_stored routeledger.routing_outcomes;
  v_first routeledger.inferences;
  v_id_at timestamptz := routeledger._id_time(p_ready.id);
  v_created boolean;
  v_holds boolean; -- true or null: each expression that the plain case is spared counts
  v_amount numeric;
  v_answer jsonb;
begin
  if p_ready.fault is not null then
    v_result.status := 'refused';
    v_result.code := split_part(p_ready.fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(p_ready.fault);
    return v_result;
  end if;

  if not routeledger._has_partition(v_id_at, p_settings.partition_width) then
    perform routeledger._ensure_partition(v_id_at, p_settings.partition_width);
  end if;

  if p_settings.budgets_defined
    and p_ready.chosen_model_slug is not null
    and coalesce(v_given.traffic_class, 'production') <> 'replay'
  then
    v_amount := routeledger._amount_to_reserve(p_ready, p_settings);
    v_answer := routeledger._ask_budgets(v_given.tenant_id, v_given.agent_id, v_given.budget_key, v_amount, p_ready.decided_at);
    v_holds := v_answer is not null or null;
    if v_answer <> 'true'
      and not exists (select from routeledger.routing_outcomes o where o.tenant_id = v_given.tenant_id and o.id = p_ready.id)
    then
      v_result.status := 'refused';
      v_result.code := 'RL504';
      v_result.detail := jsonb_build_object('tenant_id', v_given.tenant_id, 'id', p_ready.id) || v_answer;
      return v_result;
    end if;
  end if;

  v_result.id := p_ready.id;
  with decided as (
    insert into routeledger.routing_outcomes (
      tenant_id, id, agent_id, task_type, decision_rule, chosen_model_slug, candidates, min_quality, budget_cap_usd, policy_version,
      traffic_class, metadata, lease, open_attempt_id, attempt_count, outcome_status, event_at, created_at, lease_expires_at, completed_at,
      budget_key, deadline_at, ruleset_hash, propensity, holds_budget, probe_attempt_id)
    values (
      v_given.tenant_id, p_ready.id, v_given.agent_id, v_given.task_type, p_ready.decision_rule, p_ready.chosen_model_slug,
      p_ready.candidates, v_given.min_quality, v_given.budget_cap_usd, v_given.policy_version, coalesce(v_given.traffic_class, 'production'),
      v_given.metadata, v_given.lease, p_ready.attempt_id, p_ready.attempt_count, p_ready.outcome_status,
      coalesce(v_given.event_at, p_ready.decided_at), p_ready.decided_at, p_ready.lease_expires_at, p_ready.completed_at,
      v_given.budget_key, p_ready.decided_at + v_given.deadline, v_given.ruleset_hash, v_given.propensity, coalesce(v_holds, false),
      case when p_ready.probe then p_ready.attempt_id end)
    on conflict (tenant_id, id) do nothing
    returning 1
  ),
  attempted as (
    insert into routeledger.inferences (
      tenant_id, outcome_id, id, attempt_no, candidate_no, model_slug, provider, created_at, started_at)
    select
      v_given.tenant_id, p_ready.id, p_ready.attempt_id, 1, p_ready.candidate_no, p_ready.chosen_model_slug, p_ready.provider,
      p_ready.decided_at, coalesce(p_ready.starts_at, p_ready.decided_at)
    from decided
    where p_ready.chosen_model_slug is not null
  )
  select true into v_created from decided;
  if v_created and v_holds is null then
    return row('accepted', null, null, p_ready.id, p_ready.attempt_id, nullif(p_ready.attempt_count, 0), p_ready.chosen_model_slug,
      p_ready.provider, p_ready.decision_rule, p_ready.outcome_status)::routeledger.decision_result;
  elsif v_created then
    v_answer := routeledger._reserve_budget(
      v_given.tenant_id, p_ready.id, v_given.agent_id, v_given.budget_key, v_amount, p_ready.decided_at);
    if v_answer is not null then -- another decision was faster
      delete from routeledger.routing_outcomes o where o.tenant_id = v_given.tenant_id and o.id = p_ready.id;
      delete from routeledger.inferences i where i.tenant_id = v_given.tenant_id and i.outcome_id = p_ready.id;
      v_result.status := 'refused';
      v_result.code := 'RL504';
      v_result.detail := jsonb_build_object('tenant_id', v_given.tenant_id, 'id', p_ready.id) || v_answer;
      v_result.id := null;
      return v_result;
    end if;
    return row('accepted', null, null, p_ready.id, p_ready.attempt_id, nullif(p_ready.attempt_count, 0), p_ready.chosen_model_slug,
      p_ready.provider, p_ready.decision_rule, p_ready.outcome_status)::routeledger.decision_result;
  end if;

  -- The id is known. Is this the same decision again?
  select o.* into strict v_stored from routeledger.routing_outcomes o where o.tenant_id = v_given.tenant_id and o.id = p_ready.id;
  select i.* into v_first
  from routeledger.inferences i
  where i.tenant_id = v_given.tenant_id and i.outcome_id = p_ready.id and i.attempt_no = 1;
  if (v_stored.agent_id, v_stored.task_type, v_stored.decision_rule, v_stored.chosen_model_slug, v_stored.candidates, v_stored.min_quality,
      v_stored.budget_cap_usd, v_stored.policy_version, v_stored.traffic_class, v_stored.metadata, v_stored.lease, v_stored.event_at, v_first.id,
      v_stored.budget_key, v_stored.deadline_at, v_stored.ruleset_hash, v_stored.propensity)
    is distinct from
     (v_given.agent_id, v_given.task_type, p_ready.decision_rule, p_ready.chosen_model_slug, p_ready.candidates, v_given.min_quality,
      v_given.budget_cap_usd, v_given.policy_version, coalesce(v_given.traffic_class, 'production'), v_given.metadata,
      coalesce(v_given.lease, v_stored.lease), coalesce(v_given.event_at, v_stored.event_at),
      case when v_first.id is not null then coalesce(v_given.attempt_id, v_first.id) end,
      v_given.budget_key, v_stored.created_at + v_given.deadline, v_given.ruleset_hash, v_given.propensity)
  then
    v_result.status := 'refused';
    v_result.code := 'RL301';
    v_result.detail := jsonb_build_object('tenant_id', v_given.tenant_id, 'id', p_ready.id, 'decided_at', v_stored.created_at);
    v_result.id := null;
    return v_result;
  end if;
  v_result.status := 'replayed';
  v_result.attempt_id := v_first.id;
  v_result.attempt_no := v_first.attempt_no;
  v_result.model_slug := v_first.model_slug;
  v_result.provider := v_first.provider;
  v_result.decision_rule := v_stored.decision_rule;
  v_result.outcome_status := case when v_first.id is null then v_stored.outcome_status end;
  return v_result;
end
$$;

-- Records a decision before the provider is called: the row with its ranked candidates and, when a model
-- was chosen, attempt 1 in status `routed`, in one transaction; when none was, the row is closed at once
-- as `rejected`. The id is the idempotency key: the same call again returns what the first returned with
-- created = false.
--
-- Where budgets are defined, what the decision may cost is reserved in each that concerns it (by tenant, agent_id,
-- budget_key): the chosen candidate's projected_cost_usd, else budget_cap_usd, else settings.assumed_cost_usd. A
-- budget that lacks is RL504, and nothing is written. deadline bounds how long a failover may wait; propensity is the
-- probability with which the chosen model was chosen; ruleset_hash says by which rules.
-- Locks: the outcome's key, then the budgets' counters. Errors: RL101 to RL110, RL301, RL502, RL504.
create or replace function routeledger.insert_decision(
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
  p_lease interval default null,
  p_attempt_id uuid default null,
  p_metadata jsonb default null,
  p_budget_key text default null,
  p_deadline interval default null,
  p_ruleset_hash text default null,
  p_propensity double precision default null
)
returns table (
  id uuid,
  attempt_id uuid,
  attempt_no integer,
  model_slug text,
  provider text,
  decision_rule text,
  outcome_status text,
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
  v_result routeledger.decision_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._insert_decision(
    routeledger._prepare_decision(
      row(p_tenant_id, p_id, p_agent_id, p_task_type, p_candidates, p_chosen_model_slug, p_decision_rule, p_min_quality, p_budget_cap_usd,
        p_policy_version, p_traffic_class, p_event_at, p_lease, p_attempt_id, p_metadata, p_budget_key, p_deadline, p_ruleset_hash,
        p_propensity)::routeledger.decision_input,
      v_settings,
      routeledger._now()),
    v_settings);
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  id := v_result.id;
  attempt_id := v_result.attempt_id;
  attempt_no := v_result.attempt_no;
  model_slug := v_result.model_slug;
  provider := v_result.provider;
  decision_rule := v_result.decision_rule;
  outcome_status := v_result.outcome_status;
  created := v_result.status = 'accepted';
  return next;
end
$$;

-- Records many decisions in one call and answers for each; a bad row never fails its neighbours. The
-- result for a row is what insert_decision would have returned or raised for it, in the order given.
-- Locks: the outcomes' keys by (tenant_id, id), then the budgets' counters. Errors: RL101, RL107, RL501 for the call; per row those of insert_decision.
create or replace function routeledger.insert_decisions(
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
  outcome_status text
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_now timestamptz := routeledger._now();
  v_inputs routeledger.decision_input[];
  v_faults text[];
  v_given routeledger.decision_input;
  v_ready routeledger.decision_ready[] := array[]::routeledger.decision_ready[];
  v_first uuid;
  v_last uuid;
  v_results routeledger.decision_result[];
  v_one routeledger.decision_ready;
  v_at timestamptz;
  v_written integer[];
  v_done boolean[]; -- fixed-length elements, so any is one step away
  v_holds boolean[];
  v_wants routeledger.budget_want[];
  v_wanted integer[];
  v_refused jsonb[];
  v_answer jsonb;
  v_n integer;
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.decision_input, p_rows, array['candidates', 'metadata']) r;
  v_n := coalesce(array_length(v_inputs, 1), 0);
  v_results := array_fill(null::routeledger.decision_result, array[v_n]);
  v_done := array_fill(false, array[v_n]);

  for i in 1 .. v_n loop
    v_inputs[i] := v_inputs[i]; -- an array that was assigned to is kept unpacked: each element is one step away
    v_given := v_inputs[i];
    if v_faults[i] is not null then
      v_one := null;
      v_one.fault := v_faults[i];
      v_one.given := v_given;
    elsif routeledger._decision_is_plain(v_given, v_settings, v_now) then
      v_one := routeledger._plain_decision(v_given, v_settings, v_now);
    else
      v_one := routeledger._prepare_decision(v_given, v_settings, v_now);
    end if;
    if v_one.fault is null then
      v_first := least(v_first, v_one.id);
      v_last := greatest(v_last, v_one.id);
    end if;
    v_ready[i] := v_one;
  end loop;

  if date_trunc('day', routeledger._id_time(v_first), 'UTC') <> date_trunc('day', routeledger._id_time(v_last), 'UTC')
    or not routeledger._has_partition(routeledger._id_time(v_first), v_settings.partition_width)
  then
    for v_at in -- a day is never split between partitions
      select min(routeledger._id_time(r.id))
      from unnest(v_ready) r
      where r.fault is null
      group by date_trunc('day', routeledger._id_time(r.id), 'UTC')
      having not routeledger._has_partition(min(routeledger._id_time(r.id)), v_settings.partition_width)
      order by 1
    loop
      perform routeledger._ensure_partition(v_at, v_settings.partition_width);
    end loop;
  end if;

  -- Which of them budgets concern. What is short already is refused here, unless it is known and so a replay; what
  -- is written reserves at the end, all at once, because counters are locked in their own order.
  if v_settings.budgets_defined and v_n > 1 then
    v_holds := array_fill(false, array[v_n]);
    for i in 1 .. v_n loop
      v_one := v_ready[i];
      v_given := v_one.given;
      continue when v_one.fault is not null or v_one.chosen_model_slug is null or coalesce(v_given.traffic_class, 'production') = 'replay';
      v_answer := routeledger._ask_budgets(
        v_given.tenant_id, v_given.agent_id, v_given.budget_key, routeledger._amount_to_reserve(v_one, v_settings), v_now);
      v_holds[i] := v_answer is not null;
      if v_answer <> 'true'
        and not exists (select from routeledger.routing_outcomes o where o.tenant_id = v_given.tenant_id and o.id = v_one.id)
      then
        v_done[i] := true;
        v_results[i].status := 'refused';
        v_results[i].code := 'RL504';
        v_results[i].detail := jsonb_build_object('tenant_id', v_given.tenant_id, 'id', v_one.id) || v_answer;
      end if;
    end loop;
  end if;

  -- The plain majority in one statement: the first row of each id.
  with fresh as (
    select distinct on (r.tenant_id, r.id) r.*
    from (
      select (x.given).tenant_id, x.*
      from unnest(v_ready) with ordinality x (
        fault, given, id, attempt_id, decided_at, candidates, chosen_model_slug, candidate_no, provider, decision_rule,
        attempt_count, outcome_status, lease_expires_at, completed_at, probe, starts_at, n)
    ) r
    where r.fault is null and v_n > 1 and not v_done[r.n]
    order by r.tenant_id, r.id, r.n
  ),
  decided as (
    insert into routeledger.routing_outcomes (
      tenant_id, id, agent_id, task_type, decision_rule, chosen_model_slug, candidates, min_quality, budget_cap_usd, policy_version,
      traffic_class, metadata, lease, open_attempt_id, attempt_count, outcome_status, event_at, created_at, lease_expires_at, completed_at,
      budget_key, deadline_at, ruleset_hash, propensity, holds_budget)
    select
      f.tenant_id, f.id, (f.given).agent_id, (f.given).task_type, f.decision_rule, f.chosen_model_slug, f.candidates,
      (f.given).min_quality, (f.given).budget_cap_usd, (f.given).policy_version, coalesce((f.given).traffic_class, 'production'),
      (f.given).metadata, (f.given).lease, f.attempt_id, f.attempt_count, f.outcome_status, coalesce((f.given).event_at, f.decided_at), f.decided_at,
      f.lease_expires_at, f.completed_at, (f.given).budget_key, f.decided_at + (f.given).deadline, (f.given).ruleset_hash,
      (f.given).propensity, coalesce(v_holds[f.n], false)
    from fresh f
    order by f.tenant_id, f.id
    on conflict (tenant_id, id) do nothing
    returning tenant_id, id
  ),
  written as (
    select f.* from fresh f join decided d on d.tenant_id = f.tenant_id and d.id = f.id
  ),
  attempted as (
    insert into routeledger.inferences (
      tenant_id, outcome_id, id, attempt_no, candidate_no, model_slug, provider, created_at, started_at)
    select w.tenant_id, w.id, w.attempt_id, 1, w.candidate_no, w.chosen_model_slug, w.provider, w.decided_at, w.decided_at
    from written w
    where w.chosen_model_slug is not null
    order by w.tenant_id, w.id
  )
  select coalesce(array_agg(w.n::integer), '{}') into v_written from written w;

  foreach v_i in array v_written loop
    v_done[v_i] := true;
    v_one := v_ready[v_i];
    v_results[v_i] := row('accepted', null, null, v_one.id, v_one.attempt_id, nullif(v_one.attempt_count, 0), v_one.chosen_model_slug,
      v_one.provider, v_one.decision_rule, v_one.outcome_status)::routeledger.decision_result;
  end loop;

  if v_holds is not null then
    select
      array_agg(
        row((r.given).tenant_id, r.id, (r.given).agent_id, (r.given).budget_key,
          routeledger._amount_to_reserve(v_ready[r.n], v_settings))::routeledger.budget_want order by (r.given).tenant_id, r.id),
      array_agg(r.n::integer order by (r.given).tenant_id, r.id)
    into v_wants, v_wanted
    from unnest(v_ready) with ordinality r (
      fault, given, id, attempt_id, decided_at, candidates, chosen_model_slug, candidate_no, provider, decision_rule,
      attempt_count, outcome_status, lease_expires_at, completed_at, probe, starts_at, n)
    where r.n = any (v_written) and v_holds[r.n];
    if v_wants is not null then
      v_refused := routeledger._reserve_budgets(v_wants, v_now);
      for i in 1 .. cardinality(v_wanted) loop
        continue when v_refused[i] is null;
        v_one := v_ready[v_wanted[i]];
        v_given := v_one.given;
        delete from routeledger.routing_outcomes o where o.tenant_id = v_given.tenant_id and o.id = v_one.id;
        delete from routeledger.inferences i where i.tenant_id = v_given.tenant_id and i.outcome_id = v_one.id;
        v_results[v_wanted[i]] := row('refused', 'RL504', jsonb_build_object('tenant_id', v_given.tenant_id, 'id', v_one.id) || v_refused[i],
          null, null, null, null, null, null, null)::routeledger.decision_result;
      end loop;
    end if;
  end if;

  -- What is left, one by one: replays, conflicts, faults, a second row of an id in this batch.
  for v_i in
    select r.n
    from unnest(v_ready) with ordinality r (
      fault, given, id, attempt_id, decided_at, candidates, chosen_model_slug, candidate_no, provider, decision_rule,
      attempt_count, outcome_status, lease_expires_at, completed_at, probe, starts_at, n)
    where not v_done[r.n]
    order by (r.given).tenant_id, r.id, r.n
  loop
    v_results[v_i] := routeledger._insert_decision(v_ready[v_i], v_settings);
  end loop;

  return query
  select r.n::integer, r.status, r.code, e.message, r.detail, e.hint, r.id, r.attempt_id, r.attempt_no, r.model_slug, r.provider,
    r.decision_rule, r.outcome_status
  from unnest(v_results) with ordinality r (
    status, code, detail, id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, n)
  left join routeledger._errors() e on e.code = r.code
  order by r.n;
end
$$;
