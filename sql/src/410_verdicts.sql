-- 410 · Verdicts: what judges and people say of an outcome. They are added, never overwritten, and can be withdrawn.
--
-- One verdict for each outcome, judge and version of the judge. A score lies between 0 and 1; a verdict without one, or with
-- -1, is unusable: it is kept and counted, and no part of the reward. What a judge got wrong is withdrawn in one
-- call: the verdicts stay, marked, and count nowhere, and the rewards are computed anew in the same call.
--
-- Lock order: as in 400.

create table if not exists routeledger.verdict_withdrawals_log (
  tenant_id text not null,
  id uuid not null,
  judge text not null,
  judge_version text not null,
  model_slug text,
  from_day date,
  to_day date,
  reason text not null,
  verdicts bigint not null,
  unlabeled bigint not null,
  withdrawn_by name not null,
  withdrawn_at timestamptz not null,
  reinstated_by name,
  reinstated_at timestamptz,
  reinstated_verdicts bigint,
  reinstated_unlabeled bigint,
  constraint verdict_withdrawals_log_pkey primary key (tenant_id, id)
);

do $types$
begin
  if to_regtype('routeledger.verdict_input') is null then
    create type routeledger.verdict_input as (
      tenant_id text,
      id uuid,
      judge text,
      judge_version text,
      score double precision,
      label text,
      rationale text,
      lease_token uuid,
      reward_source text,
      judge_model text,
      input_tokens bigint,
      output_tokens bigint,
      cost_usd numeric
    );
    create type routeledger.verdict_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      usable boolean,
      reward double precision,
      reward_source text,
      judge_status text
    );
  end if;
end
$types$;

-- Judges a verdict field by field; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._verdict_fault(
  p routeledger.verdict_input,
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
  return coalesce(
    routeledger._key_fault(p.tenant_id, p.id, p_settings),
    routeledger._judge_fault(p.judge, p.judge_version),
    case
      when p.score <> -1 and p.score not between 0 and 1 then 'RL103 score 0 to 1, or -1 where the judge cannot say'
      when p.score is null and coalesce(p.label, '') = '' then 'RL101 score or a label that says why there is none'
      when p.label = '' then 'RL101 label null or not empty'
      when length(p.label) > 200 then 'RL108 label 200 characters'
      when length(p.rationale) > 20000 then 'RL108 rationale 20000 characters'
      when p.reward_source not in ('judge', 'human') then 'RL102 reward_source judge, human'
      when p.judge_model = '' then 'RL101 judge_model null or not empty'
      when length(p.judge_model) > 300 then 'RL108 judge_model 300 characters'
    end,
    routeledger._usage_fault(p.input_tokens, p.output_tokens, null, null, null, p.cost_usd, null, null, null));
end
$$;

-- Records verdicts that are free of faults (p_faults null) and answers for each: accepted, replayed or refused. Of two in the call for the
-- same outcome, judge and version the later one finds the earlier one there.
-- Locks: the outcomes by (tenant_id, id), their leases, the marks of their days. Errors: none; a fault is part of the result.
create or replace function routeledger._record_verdicts(
  p_given routeledger.verdict_input[],
  p_faults text[],
  p_now timestamptz
)
returns routeledger.verdict_result[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_results routeledger.verdict_result[] := array_fill(null::routeledger.verdict_result, array[cardinality(p_faults)]);
  v_tenants text[];
  v_ids uuid[];
  v_low uuid;
  v_high uuid;
  v_rows_left boolean := true;
  v_row record;
begin
  select
    array_agg(k.tenant_id), array_agg(k.id), (array_agg(k.id order by k.id))[1], (array_agg(k.id order by k.id desc))[1]
  into v_tenants, v_ids, v_low, v_high
  from (
    select distinct g.tenant_id, g.id
    from unnest(p_given, p_faults) g (
      tenant_id, id, judge, judge_version, score, label, rationale, lease_token, reward_source, judge_model, input_tokens, output_tokens, cost_usd, fault)
    where g.fault is null
  ) k;
  if v_ids is null then
    return v_results;
  end if;
  -- every id of every tenant, which is more than is meant where two tenants have an id in common, and does no harm
  perform from routeledger.routing_outcomes o where o.tenant_id = any (v_tenants) and o.id = any (v_ids) order by o.tenant_id, o.id for no key update;

  -- All rows are judged by what is stored. Of each key the first one that nothing speaks against is accepted; those after it are
  -- judged a second time, by that one.
  while v_rows_left loop
    v_rows_left := false;
    for v_row in
      select
        x.*,
        min(x.n) filter (where x.code is null and not x.is_same) over (partition by x.tenant_id, x.id, x.judge, x.judge_version) as accepted_n
      from (
        select
          g.n::integer as n, g.tenant_id, g.id, g.judge, g.judge_version, o.outcome_status::text as outcome_status,
          coalesce(g.score between 0 and 1, false) as usable,
          v.outcome_id is not null
            and (v.score, v.label, v.rationale, v.reward_source, v.judge_model, v.input_tokens, v.output_tokens, v.cost_usd)
              is not distinct from
                (g.score, g.label, g.rationale, coalesce(g.reward_source, 'judge'), g.judge_model, g.input_tokens, g.output_tokens, g.cost_usd) as is_same,
          case
            when o.id is null then 'RL201'
            when v.outcome_id is not null then case when g.lease_token is not null and l.lease_token is distinct from g.lease_token then 'RL402' else 'RL314' end
            when (o.outcome_status = 'succeeded' and o.inference_id is not null) is not true then 'RL315'
            when g.lease_token is not null and l.lease_token is distinct from g.lease_token then 'RL402'
            when g.lease_token is null and l.lease_token is not null and l.due_at > p_now then 'RL402'
          end as code,
          v.recorded_at
        from unnest(p_given, p_faults, v_results) with ordinality g (
          tenant_id, id, judge, judge_version, score, label, rationale, lease_token, reward_source, judge_model, input_tokens, output_tokens, cost_usd, fault,
          status, result_code, detail, result_id, usable, reward, result_source, judge_status, n)
        left join lateral (
          select o.*
          from routeledger.routing_outcomes o
          where o.tenant_id = g.tenant_id and o.id = g.id and o.id between v_low and v_high
          offset 0) o on true
        left join lateral (
          select v.*
          from routeledger.judge_verdicts v
          where v.tenant_id = g.tenant_id and v.outcome_id = g.id and v.judge = g.judge and v.judge_version = g.judge_version
            and v.outcome_id between v_low and v_high
          offset 0) v on true
        left join lateral (
          select l.*
          from routeledger.judge_leases l
          where l.tenant_id = g.tenant_id and l.outcome_id = g.id and l.judge = g.judge and l.judge_version = g.judge_version
          offset 0) l on true
        where g.fault is null and g.status is null
      ) x
    loop
      if v_row.n > v_row.accepted_n then
        v_rows_left := true;
        continue;
      end if;
      v_results[v_row.n] := row(
        case when v_row.is_same then 'replayed' when v_row.code is null then 'accepted' else 'refused' end,
        case when not v_row.is_same then v_row.code end,
        case when v_row.code is not null and not v_row.is_same then jsonb_strip_nulls(jsonb_build_object(
          'tenant_id', v_row.tenant_id, 'id', v_row.id, 'judge', v_row.judge, 'judge_version', v_row.judge_version,
          'outcome_status', v_row.outcome_status, 'recorded_at', v_row.recorded_at)) end,
        case when v_row.is_same or v_row.code is null then v_row.id end,
        case when v_row.is_same or v_row.code is null then v_row.usable end,
        null, null, null)::routeledger.verdict_result;
    end loop;

    with accepted as materialized (
      select g.*
      from unnest(p_given, v_results) g (
        tenant_id, id, judge, judge_version, score, label, rationale, lease_token, reward_source, judge_model, input_tokens, output_tokens, cost_usd,
        status, result_code, detail, result_id, usable, reward, result_source, judge_status)
      where g.status = 'accepted'
    ),
    freed as (
      delete from routeledger.judge_leases l
      using accepted g
      where l.tenant_id = g.tenant_id and l.outcome_id = g.id and l.judge = g.judge and l.judge_version = g.judge_version
    )
    insert into routeledger.judge_verdicts (
      tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, task_type, score, usable, label, rationale, reward_source, attempt_no,
      judge_model, input_tokens, output_tokens, cost_usd, recorded_at)
    select
      g.tenant_id, g.id, g.judge, g.judge_version, i.id, i.model_slug, o.task_type, g.score, g.usable, g.label,
      g.rationale, coalesce(g.reward_source, 'judge'), nullif(l.attempts, 0), g.judge_model, g.input_tokens, g.output_tokens, g.cost_usd, p_now
    from accepted g
    cross join lateral (
      select o.inference_id, o.task_type
      from routeledger.routing_outcomes o
      where o.tenant_id = g.tenant_id and o.id = g.id and o.id between v_low and v_high
      offset 0) o
    cross join lateral (
      select i.id, i.model_slug
      from routeledger.inferences i
      where i.tenant_id = g.tenant_id and i.outcome_id = g.id and i.id = o.inference_id and i.outcome_id between v_low and v_high
      offset 0) i
    left join lateral (
      -- as it was before this statement
      select l.attempts
      from routeledger.judge_leases l
      where l.tenant_id = g.tenant_id and l.outcome_id = g.id and l.judge = g.judge and l.judge_version = g.judge_version
      offset 0) l on true
    order by g.tenant_id, g.id, g.judge, g.judge_version
    on conflict do nothing; -- those of the first time
  end loop;

  select array_agg(k.tenant_id), array_agg(k.id) into v_tenants, v_ids
  from (
    select distinct g.tenant_id, g.id
    from unnest(p_given, v_results) g (
      tenant_id, id, judge, judge_version, score, label, rationale, lease_token, reward_source, judge_model, input_tokens, output_tokens, cost_usd,
      status, result_code, detail, result_id, usable, reward, result_source, judge_status)
    where g.status = 'accepted'
  ) k;
  if v_ids is not null then
    perform routeledger._label_outcomes(v_tenants, v_ids);
  end if;
  return array(
    select row(g.status, g.result_code, g.detail, g.result_id, g.usable, o.reward, o.reward_source, o.judge_status)::routeledger.verdict_result
    from unnest(p_given, v_results) with ordinality g (
      tenant_id, id, judge, judge_version, score, label, rationale, lease_token, reward_source, judge_model, input_tokens, output_tokens, cost_usd,
      status, result_code, detail, result_id, usable, reward, result_source, judge_status, n)
    left join lateral (
      select o.reward, o.reward_source, o.judge_status
      from routeledger.routing_outcomes o
      where o.tenant_id = g.tenant_id and o.id = g.result_id and o.id between v_low and v_high
      offset 0) o on true
    order by g.n);
end
$$;

-- Records what a judge, or a person (p_reward_source `human`), says of an outcome that succeeded: a score from 0 to 1, or none (null with a label
-- that says why, or -1) where it cannot be judged. Returns whether the verdict is usable, and what the outcome's reward, its source
-- and judge_status are now: the reward is the mean of the scores of all usable verdicts that are not withdrawn, the source
-- `human` where a person's is among them, else `judge`.
--
-- There is one verdict for each outcome, judge and version: the same again is a replay (created false), another one RL314; a new
-- version of the judge adds its own. p_lease_token is what claim_judgements() gave with the outcome; where somebody else has
-- claimed it since, or it was given back, RL402. Without a token, for people and imports, the outcome must not be leased to the
-- same judge version. p_input_tokens, p_output_tokens and p_cost_usd are what judging took.
-- Locks: the outcome, its lease, the mark of its day. Errors: RL101, RL102, RL103, RL104, RL108, RL110, RL201, RL314, RL315, RL402.
create or replace function routeledger.record_verdict(
  p_tenant_id text,
  p_id uuid,
  p_judge text,
  p_judge_version text,
  p_score double precision default null,
  p_label text default null,
  p_rationale text default null,
  p_lease_token uuid default null,
  p_reward_source text default 'judge',
  p_judge_model text default null,
  p_input_tokens bigint default null,
  p_output_tokens bigint default null,
  p_cost_usd numeric default null
)
returns table (
  id uuid,
  usable boolean,
  reward double precision,
  reward_source text,
  judge_status text,
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
  v_given routeledger.verdict_input := row(
    p_tenant_id, p_id, p_judge, p_judge_version, p_score, p_label, p_rationale, p_lease_token, p_reward_source, p_judge_model, p_input_tokens, p_output_tokens,
    p_cost_usd);
  v_fault text;
  v_results routeledger.verdict_result[];
begin
  select s.* into v_settings from routeledger.settings s;
  v_fault := routeledger._verdict_fault(v_given, v_settings);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_results := routeledger._record_verdicts(array[v_given], array[null::text], routeledger._now());
  if (v_results[1]).code is not null then
    perform routeledger._raise((v_results[1]).code, (v_results[1]).detail);
  end if;
  return query
  select r.id, r.usable, r.reward, r.reward_source, r.judge_status, r.status = 'accepted' from unnest(v_results) r;
end
$$;

-- Records many verdicts in one call and answers for each; a bad row never fails its neighbours. The reward and judge_status of an answer are those
-- of its outcome at the end of the call.
-- Locks: the outcomes by (tenant_id, id), their leases, the marks of their days. Errors: RL101, RL107, RL501 for the call; per row those of record_verdict.
create or replace function routeledger.record_verdicts(
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
  usable boolean,
  reward double precision,
  reward_source text,
  judge_status text
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
  v_inputs routeledger.verdict_input[];
  v_faults text[];
  v_results routeledger.verdict_result[];
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.verdict_input, p_rows, array[]::text[]) r;
  v_faults := array(
    select coalesce(f.fault, routeledger._verdict_fault(v_inputs[f.n], v_settings)) from unnest(v_faults) with ordinality f (fault, n) order by f.n);
  v_results := routeledger._record_verdicts(v_inputs, v_faults, routeledger._now());
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.usable, r.reward, r.reward_source, r.judge_status
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, usable, reward, reward_source, judge_status, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;

-- Marks or unmarks the verdicts of a version of a judge on outcomes of one tenant as withdrawn and labels these anew. Returns how many it
-- marked, and how many of their outcomes have no reward now.
-- Locks: the verdicts, the marks of days; the caller holds the outcomes. Errors: none.
create or replace function routeledger._mark_verdicts(
  p_tenant_id text,
  p_ids uuid[],
  p_judge text,
  p_judge_version text,
  p_from_withdrawal uuid,
  p_to_withdrawal uuid,
  p_now timestamptz,
  out verdicts bigint,
  out unlabeled bigint
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_ids uuid[];
begin
  with marked as (
    update routeledger.judge_verdicts v
    set withdrawal_id = p_to_withdrawal, withdrawn_at = case when p_to_withdrawal is not null then p_now end
    from unnest(p_ids) k (id)
    where v.tenant_id = p_tenant_id and v.outcome_id = k.id and v.judge = p_judge and v.judge_version = p_judge_version
      and v.outcome_id between p_ids[1] and p_ids[cardinality(p_ids)]
      and v.withdrawal_id is not distinct from p_from_withdrawal
    returning v.outcome_id
  )
  select coalesce(array_agg(m.outcome_id order by m.outcome_id), '{}') into v_ids from marked m;
  perform routeledger._label_outcomes(array_fill(p_tenant_id, array[cardinality(v_ids)]), v_ids);
  verdicts := cardinality(v_ids);
  select count(*) filter (where o.reward is null) into unlabeled
  from unnest(v_ids) k (id)
  join routeledger.routing_outcomes o on o.tenant_id = p_tenant_id and o.id = k.id
  where o.id between v_ids[1] and v_ids[cardinality(v_ids)];
end
$$;

-- Withdraws the verdicts of a version of a judge in one call: all of them, or those on one model, or on outcomes decided on the days
-- from p_from up to, not including, p_to (UTC). They are kept and marked, count in no reward, and the judge version that gave
-- them does not judge these outcomes again; others do. Rewards and judge_status are right when the call returns; `unlabeled` is how
-- many of the outcomes have no reward left. The next rollup_model_performance() counts the days concerned anew, however old.
--
-- Without p_tenant_id it is for all tenants that the caller may use, each with a withdrawal of its own; where there is nothing to
-- withdraw there is no row. reinstate_verdicts() takes a withdrawal back.
-- Locks: the outcomes by (tenant_id, id), their verdicts, the marks of their days. Errors: RL101, RL103, RL108, RL109, RL110.
create or replace function routeledger.withdraw_verdicts(
  p_tenant_id text,
  p_judge text,
  p_judge_version text,
  p_reason text,
  p_model_slug text default null,
  p_from date default null,
  p_to date default null
)
returns table (
  tenant_id text,
  withdrawal_id uuid,
  verdicts bigint,
  unlabeled bigint
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := routeledger._now();
  v_bound text[] := routeledger.bound_tenants();
  v_from_id uuid;
  v_to_id uuid;
  v_fault text;
  v_of_tenant record;
begin
  v_fault := coalesce(
    case
      when p_tenant_id = '' then 'RL101 tenant_id'
      when length(p_tenant_id) > 200 then 'RL108 tenant_id 200 characters'
      when p_tenant_id <> all (v_bound) then 'RL110 tenant_id'
    end,
    routeledger._judge_fault(p_judge, p_judge_version),
    case
      when coalesce(p_reason, '') = '' then 'RL101 reason'
      when length(p_reason) > 2000 then 'RL108 reason 2000 characters'
      when p_model_slug = '' then 'RL101 model_slug null or not empty'
      when p_from not between date '1970-01-01' and date '4999-12-31' then 'RL109 from 1970 to 4999'
      when p_to not between date '1970-01-01' and date '4999-12-31' then 'RL109 to 1970 to 4999'
      when p_to < p_from then 'RL103 to not before from'
    end);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_from_id := routeledger._uuid_floor(coalesce(p_from, date '1970-01-01')::timestamp at time zone 'UTC');
  v_to_id := routeledger._uuid_floor(coalesce(p_to, date '5000-01-01')::timestamp at time zone 'UTC');

  -- All of them are held before the first is changed; what is recorded from here on is not withdrawn.
  for v_of_tenant in
    select h.tenant_id, array_agg(h.id order by h.id) as ids
    from (
      select o.tenant_id, o.id
      from routeledger.judge_verdicts v
      join routeledger.routing_outcomes o on o.tenant_id = v.tenant_id and o.id = v.outcome_id
      where (p_tenant_id is null or v.tenant_id = p_tenant_id)
        and (v_bound is null or v.tenant_id = any (v_bound))
        and v.outcome_id >= v_from_id and v.outcome_id < v_to_id and o.id >= v_from_id and o.id < v_to_id
        and v.judge = p_judge and v.judge_version = p_judge_version
        and (p_model_slug is null or v.model_slug = p_model_slug)
        and v.withdrawn_at is null
      order by o.tenant_id, o.id
      for no key update of o
    ) h
    group by h.tenant_id
    order by h.tenant_id
  loop
    tenant_id := v_of_tenant.tenant_id;
    withdrawal_id := routeledger.uuid_v7();
    select m.verdicts, m.unlabeled into verdicts, unlabeled
    from routeledger._mark_verdicts(tenant_id, v_of_tenant.ids, p_judge, p_judge_version, null, withdrawal_id, v_now) m;
    continue when verdicts = 0;
    insert into routeledger.verdict_withdrawals_log (
      tenant_id, id, judge, judge_version, model_slug, from_day, to_day, reason, verdicts, unlabeled, withdrawn_by, withdrawn_at)
    values (
      tenant_id, withdrawal_id, p_judge, p_judge_version, p_model_slug, p_from, p_to, p_reason, verdicts, unlabeled, session_user, v_now);
    return next;
  end loop;
end
$$;

-- Takes a withdrawal back: its verdicts count again, and rewards and judge_status are right when the call returns, as with withdraw_verdicts().
-- Said again, it answers the same and changes nothing.
-- Locks: the withdrawal, the outcomes by (tenant_id, id), their verdicts, the marks of their days. Errors: RL101, RL108, RL110, RL211.
create or replace function routeledger.reinstate_verdicts(
  p_tenant_id text,
  p_withdrawal_id uuid
)
returns table (
  tenant_id text,
  withdrawal_id uuid,
  verdicts bigint,
  unlabeled bigint
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := routeledger._now();
  v_withdrawal routeledger.verdict_withdrawals_log;
  v_from_id uuid;
  v_to_id uuid;
  v_ids uuid[];
begin
  if coalesce(p_tenant_id, '') = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (routeledger.bound_tenants()) then
    perform routeledger._raise_fault('RL110 tenant_id');
  elsif p_withdrawal_id is null then
    perform routeledger._raise_fault('RL101 withdrawal_id');
  end if;
  select w.* into v_withdrawal
  from routeledger.verdict_withdrawals_log w
  where w.tenant_id = p_tenant_id and w.id = p_withdrawal_id
  for update;
  if not found then
    perform routeledger._raise('RL211', jsonb_build_object('tenant_id', p_tenant_id, 'withdrawal_id', p_withdrawal_id));
  end if;
  tenant_id := p_tenant_id;
  withdrawal_id := p_withdrawal_id;
  if v_withdrawal.reinstated_at is not null then
    verdicts := v_withdrawal.reinstated_verdicts;
    unlabeled := v_withdrawal.reinstated_unlabeled;
    return next;
    return;
  end if;

  v_from_id := routeledger._uuid_floor(coalesce(v_withdrawal.from_day, date '1970-01-01')::timestamp at time zone 'UTC');
  v_to_id := routeledger._uuid_floor(coalesce(v_withdrawal.to_day, date '5000-01-01')::timestamp at time zone 'UTC');
  v_ids := array(
    select o.id
    from routeledger.judge_verdicts v
    join routeledger.routing_outcomes o on o.tenant_id = v.tenant_id and o.id = v.outcome_id
    where v.tenant_id = p_tenant_id
      and v.outcome_id >= v_from_id and v.outcome_id < v_to_id and o.id >= v_from_id and o.id < v_to_id
      and v.judge = v_withdrawal.judge and v.judge_version = v_withdrawal.judge_version
      and v.withdrawal_id = p_withdrawal_id
    order by o.id
    for no key update of o);
  -- retention may have dropped them
  update routeledger.verdict_withdrawals_log w set
    reinstated_by = session_user,
    reinstated_at = v_now,
    reinstated_verdicts = m.verdicts,
    reinstated_unlabeled = m.unlabeled
  from routeledger._mark_verdicts(p_tenant_id, v_ids, v_withdrawal.judge, v_withdrawal.judge_version, p_withdrawal_id, null, v_now) m
  where w.tenant_id = p_tenant_id and w.id = p_withdrawal_id
  returning w.reinstated_verdicts, w.reinstated_unlabeled into verdicts, unlabeled;
  return next;
end
$$;

create or replace view routeledger.verdict_withdrawals
with (security_barrier = true)
as
select
  w.tenant_id,
  w.id as withdrawal_id,
  w.judge,
  w.judge_version,
  w.model_slug,
  w.from_day,
  w.to_day,
  w.reason,
  w.verdicts,
  w.unlabeled,
  w.withdrawn_by,
  w.withdrawn_at,
  w.reinstated_by,
  w.reinstated_at
from routeledger.verdict_withdrawals_log w
where (select routeledger.bound_tenants()) is null or w.tenant_id = any ((select routeledger.bound_tenants())::text[]);
