-- 400 · Judging: outcomes are leased to judges, each once to every version of every judge.
--
-- What can be judged is an outcome that succeeded and is linked to its attempt. A judge is a name and a version; who
-- works for it is not asked. It is given, in this order: leases of its own that ran out or were given back, whatever is
-- due first; outcomes that nobody has claimed or labelled, oldest first, which a partial index knows (see 200), so that
-- a claim costs the same behind a thousand as behind a million; and when there is nothing left of these, what others
-- have claimed or labelled and it has not.
--
-- For the last the ledger has to be searched. That is done at most every settings.judge_look_every, a thousand outcomes
-- at a time, from where the last search stopped; one that came to the end goes on settings.judge_look_back before it, or where another
-- judge has taken an older outcome since, and once a day from the beginning. What is found waits in judge_leases as if it had been given back.
--
-- judge_status of an outcome: labeled where a usable verdict counts; else claimed where a judge has it, or has had it and
-- will have it again; else cannot_evaluate where the verdicts that count are all unusable; else unlabeled. The reward is the mean of the scores that
-- count: of all usable verdicts that are not withdrawn, whoever gave them.
--
-- What is claimed leaves its entry in the partial index until the table is vacuumed, and longer where an old snapshot is about. So
-- that claims do not walk past these each time, judge_fronts remembers where the first one without a label lay. It is
-- a shortcut and no more: a claim that finds too little begins at the beginning, and so does one a minute.
--
-- Plans are generic here: to plan for every partition anew takes longer than the claim, and each statement looks up few rows by
-- their keys, so that the plan is always the same. `offset 0` sees to it: without it the planner reads a partition that was never
-- analysed whole, once for each row. The bounds beside the keys, v_low and v_high, spare the partitions outside them.
--
-- Lock order: the outcomes by (tenant_id, id), then their leases and verdicts, which nobody changes without the outcome's
-- lock, then what 310 keeps. Claims pass over what is locked.

create table if not exists routeledger.judge_leases (
  tenant_id text not null,
  outcome_id uuid not null,
  judge text not null,
  judge_version text not null,
  lease_token uuid,
  attempts integer not null default 0,
  due_at timestamptz not null,
  last_error text,
  created_at timestamptz not null,
  constraint judge_leases_pkey primary key (tenant_id, outcome_id, judge, judge_version),
  constraint judge_leases_attempts_check check (attempts >= 0 and (lease_token is null or attempts > 0))
) with (fillfactor = 70);

-- An expression, so that it serves what is due and nothing else: a lease that is looked up by its whole key would be sought among all
-- of the judge where the planner takes this index and the primary key to be as good.
create index if not exists judge_leases_due_idx
on routeledger.judge_leases (tenant_id, (judge || ' ' || judge_version), due_at) include (outcome_id);

-- How far each judge has searched the ledger for what others have labelled.
create table if not exists routeledger.judge_searches (
  tenant_id text not null,
  judge text not null,
  judge_version text not null,
  from_id uuid not null,
  next_id uuid not null,
  ended_at timestamptz,
  begun_at timestamptz not null,
  constraint judge_searches_pkey primary key (tenant_id, judge, judge_version)
) with (fillfactor = 70);

-- Where the outcomes that nobody has claimed or labelled begin, as of moved_at; looked at from the beginning at checked_at.
create table if not exists routeledger.judge_fronts (
  tenant_id text not null,
  from_id uuid not null,
  moved_at timestamptz not null,
  checked_at timestamptz not null,
  constraint judge_fronts_pkey primary key (tenant_id)
) with (fillfactor = 70);

do $types$
begin
  if to_regtype('routeledger.renewal_input') is null then
    create type routeledger.renewal_input as (
      tenant_id text,
      id uuid,
      judge text,
      judge_version text,
      lease_token uuid,
      lease interval
    );
    create type routeledger.release_input as (
      tenant_id text,
      id uuid,
      judge text,
      judge_version text,
      lease_token uuid,
      error text,
      delay interval
    );
    create type routeledger.release_result as (
      status text,
      code text,
      detail jsonb,
      id uuid,
      judge_status text,
      available_at timestamptz
    );
  end if;
end
$types$;

-- Judges the name of a judge and of its version; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._judge_fault(
  p_judge text,
  p_judge_version text
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when coalesce(p_judge, '') = '' then 'RL101 judge'
    when length(p_judge) > 200 then 'RL108 judge 200 characters'
    when coalesce(p_judge_version, '') = '' then 'RL101 judge_version'
    when length(p_judge_version) > 200 then 'RL108 judge_version 200 characters'
  end
$$;

-- Tells whether the caller is the only session that is about to insert this row: two that insert the same one would wait for each other's
-- end, and a claim waits for nobody. An untrue answer does no harm.
-- Locks: an advisory one, not waited for. Errors: none.
create or replace function routeledger._is_alone_with(
  variadic p_row text[]
)
returns boolean
language sql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select pg_try_advisory_xact_lock(hashtextextended('routeledger.' || to_jsonb(p_row)::text, 0))
$$;

-- Sets reward, reward_source and judge_status of outcomes (parallel arrays, each outcome once) to what their verdicts and leases
-- say now, and sees to it that their days are counted anew where the reward has changed.
-- Locks: the marks of their days; the caller holds the outcomes. Errors: none.
create or replace function routeledger._label_outcomes(
  p_tenants text[],
  p_ids uuid[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set enable_nestloop = off
set jit = off
as $$
declare
  v_low uuid := (select k from unnest(p_ids) k order by k limit 1);
  v_high uuid := (select k from unnest(p_ids) k order by k desc limit 1);
  v_tenants text[];
  v_ids uuid[];
  v_changed boolean[];
  v_rewards double precision[];
  v_sources text[];
  v_statuses text[];
begin
  select
    array_agg(o.tenant_id), array_agg(o.id), array_agg(o.reward is distinct from s.reward), array_agg(s.reward), array_agg(s.source), array_agg(s.status)
  into v_tenants, v_ids, v_changed, v_rewards, v_sources, v_statuses
  from unnest(p_tenants, p_ids) k (tenant_id, id)
  cross join lateral (
    select o.*
    from routeledger.routing_outcomes o
    where o.tenant_id = k.tenant_id and o.id = k.id and o.id between v_low and v_high
    offset 0) o
  cross join lateral (
    select
      -- the exact sum, which is the same in whatever order the verdicts came
      avg(v.score::numeric) filter (where v.usable and v.withdrawn_at is null)::double precision as reward,
      count(*) filter (where v.usable and v.withdrawn_at is null) as usable_n,
      count(*) filter (where v.withdrawn_at is null) as n,
      count(*) as all_n,
      coalesce(bool_or(v.reward_source = 'human') filter (where v.usable and v.withdrawn_at is null), false) as by_human
    from routeledger.judge_verdicts v
    where v.tenant_id = k.tenant_id and v.outcome_id = k.id and v.outcome_id between v_low and v_high
  ) a
  cross join lateral (
    select
      a.reward,
      case when a.by_human then 'human' when a.usable_n > 0 then 'judge' when a.all_n > 0 and a.n = 0 then 'withdrawn' end as source,
      case
        when a.usable_n > 0 then 'labeled'
        when exists (select from routeledger.judge_leases l where l.tenant_id = o.tenant_id and l.outcome_id = o.id and l.attempts > 0) then 'claimed'
        when a.n > 0 then 'cannot_evaluate'
        else 'unlabeled'
      end as status
  ) s;

  -- Written even where nothing changes: what was computed under an older snapshot is refused then (40001).
  update routeledger.routing_outcomes o
  set reward = c.reward, reward_source = c.source, judge_status = c.status
  from unnest(v_tenants, v_ids, v_rewards, v_sources, v_statuses) c (tenant_id, id, reward, source, status)
  where o.tenant_id = any (v_tenants) and o.id = any (v_ids) and o.tenant_id = c.tenant_id and o.id = c.id;
  if true = any (v_changed) then
    perform routeledger._note_late_rewards(array_agg(c.tenant_id), array_agg(c.id))
    from unnest(v_tenants, v_ids, v_changed) c (tenant_id, id, changed)
    where c.changed;
  end if;
end
$$;

-- Ends judgements that have used up their attempts (parallel arrays): an unusable verdict says so, with the last error.
-- Locks: the leases; the caller holds the outcomes. Errors: none.
create or replace function routeledger._give_up_judging(
  p_tenants text[],
  p_ids uuid[],
  p_judge text,
  p_judge_version text,
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  with ended as (
    delete from routeledger.judge_leases l
    using unnest(p_tenants, p_ids) k (tenant_id, id)
    where l.tenant_id = k.tenant_id and l.outcome_id = k.id and l.judge = p_judge and l.judge_version = p_judge_version
    returning l.tenant_id, l.outcome_id, l.attempts, l.last_error
  )
  insert into routeledger.judge_verdicts (
    tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, task_type, usable, label, rationale, reward_source, attempt_no, recorded_at)
  select
    e.tenant_id, e.outcome_id, p_judge, p_judge_version, i.id, i.model_slug, o.task_type, false, 'cannot_evaluate',
    coalesce(e.last_error, 'the lease ran out'), 'judge', e.attempts, p_now
  from ended e
  join routeledger.routing_outcomes o on o.tenant_id = e.tenant_id and o.id = e.outcome_id
  join routeledger.inferences i on i.tenant_id = e.tenant_id and i.outcome_id = e.outcome_id and i.id = o.inference_id
  on conflict do nothing;
  perform routeledger._label_outcomes(p_tenants, p_ids);
end
$$;

-- Leases what is due to a judge: its leases that ran out or were given back, at most p_limit looked at. Those that have
-- used up their attempts are ended instead.
-- Locks: the outcomes (skip locked), their leases. Errors: none.
create or replace function routeledger._claim_due(
  p_tenant_id text,
  p_judge text,
  p_judge_version text,
  p_limit integer,
  p_lease interval,
  p_from_id uuid,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns uuid[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_ids uuid[];
  v_ended uuid[];
begin
  if not exists (
    select from routeledger.judge_leases l
    where l.tenant_id = p_tenant_id and l.judge || ' ' || l.judge_version = p_judge || ' ' || p_judge_version and l.due_at <= p_now)
  then
    return array[]::uuid[];
  end if;
  v_ids := array(
    select o.id
    from routeledger.judge_leases l
    join routeledger.routing_outcomes o on o.tenant_id = l.tenant_id and o.id = l.outcome_id
    where l.tenant_id = p_tenant_id and l.judge || ' ' || l.judge_version = p_judge || ' ' || p_judge_version and l.due_at <= p_now
      and l.judge = p_judge and l.judge_version = p_judge_version and l.outcome_id >= p_from_id
    order by l.due_at, l.outcome_id
    limit p_limit
    for no key update of o skip locked);
  if v_ids = '{}' then
    return v_ids;
  end if;

  -- Now that the outcomes are held: what the leases say at this moment. One whose outcome has the judge's verdict is done with.
  with found as materialized (
    select
      l.outcome_id, l.attempts, l.due_at,
      exists (
        select from routeledger.judge_verdicts v
        where v.tenant_id = l.tenant_id and v.outcome_id = l.outcome_id and v.judge = l.judge and v.judge_version = l.judge_version) as is_done
    from unnest(v_ids) k (id)
    cross join lateral (
      select l.*
      from routeledger.judge_leases l
      where l.tenant_id = p_tenant_id and l.outcome_id = k.id and l.judge = p_judge and l.judge_version = p_judge_version
      offset 0) l
    where l.due_at <= p_now
  ),
  done as (
    delete from routeledger.judge_leases l
    using found f
    where l.tenant_id = p_tenant_id and l.outcome_id = f.outcome_id and l.judge = p_judge and l.judge_version = p_judge_version and f.is_done
  )
  select
    coalesce(
      array_agg(f.outcome_id order by f.due_at, f.outcome_id) filter (where not f.is_done and f.attempts < p_settings.judge_max_attempts), array[]::uuid[]),
    array_agg(f.outcome_id) filter (where not f.is_done and f.attempts >= p_settings.judge_max_attempts)
  into v_ids, v_ended
  from found f;
  if v_ended is not null then
    perform routeledger._give_up_judging(array_fill(p_tenant_id, array[cardinality(v_ended)]), v_ended, p_judge, p_judge_version, p_now);
  end if;
  update routeledger.judge_leases l set
    lease_token = gen_random_uuid(),
    attempts = l.attempts + 1,
    due_at = p_now + p_lease
  where l.tenant_id = p_tenant_id and l.outcome_id = any (v_ids) and l.judge = p_judge and l.judge_version = p_judge_version;
  return v_ids;
end
$$;

-- Takes down where the outcomes begin that nobody has claimed or labelled: p_first is the first one that a claim found from
-- p_start on, p_front what was known before. Not more than ten times a second.
-- Locks: the tenant's front (skip locked). Errors: none.
create or replace function routeledger._move_front(
  p_tenant_id text,
  p_front routeledger.judge_fronts,
  p_start uuid,
  p_first uuid,
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_front.tenant_id is null then
    if p_start = '00000000-0000-0000-0000-000000000000' and routeledger._is_alone_with('judge_fronts', p_tenant_id) then
      insert into routeledger.judge_fronts (tenant_id, from_id, moved_at, checked_at)
      values (p_tenant_id, p_first, p_now, p_now)
      on conflict do nothing;
    end if;
  elsif p_start <= p_front.from_id and (p_now >= p_front.moved_at + interval '0.1 seconds' or p_first < p_front.from_id) then
    update routeledger.judge_fronts f set
      from_id = p_first,
      moved_at = p_now,
      checked_at = case when p_start = '00000000-0000-0000-0000-000000000000' then p_now else f.checked_at end
    where f.tenant_id = (select x.tenant_id from routeledger.judge_fronts x where x.tenant_id = p_tenant_id for update skip locked);
  end if;
end
$$;

-- Leases to a judge outcomes that nobody has claimed or labelled, oldest first, from p_from_id on, but those that it gave back for later.
-- Locks: the outcomes (skip locked), the tenant's front and searches of other judges (skip locked), the leases. Errors: none.
create or replace function routeledger._claim_unlabeled(
  p_tenant_id text,
  p_judge text,
  p_judge_version text,
  p_limit integer,
  p_lease interval,
  p_from_id uuid,
  p_now timestamptz
)
returns uuid[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_front routeledger.judge_fronts;
  v_start uuid := p_from_id;
  v_ids uuid[];
begin
  select f.* into v_front from routeledger.judge_fronts f where f.tenant_id = p_tenant_id;
  if v_front.checked_at > p_now - interval '1 minute' then
    v_start := greatest(p_from_id, v_front.from_id);
  end if;
  loop
    v_ids := array(
      select o.id
      from routeledger.routing_outcomes o
      where o.tenant_id = p_tenant_id and o.id >= v_start
        and o.judge_status = 'unlabeled' and o.reward_source is null and o.outcome_status = 'succeeded' and o.inference_id is not null
        -- looked up for each, and not joined: there are few to look at
        and coalesce((
          select l.due_at
          from routeledger.judge_leases l
          where l.tenant_id = p_tenant_id and l.outcome_id = o.id and l.judge = p_judge and l.judge_version = p_judge_version), '-infinity') <= p_now
      order by o.id
      limit p_limit
      for no key update of o skip locked);
    exit when v_start = p_from_id or cardinality(v_ids) = p_limit;
    v_start := p_from_id;
  end loop;
  if v_ids = '{}' then
    return v_ids;
  end if;
  perform routeledger._move_front(p_tenant_id, v_front, v_start, v_ids[1], p_now);

  -- What the judge gave back untouched has its lease still; nobody holds any of these.
  insert into routeledger.judge_leases as l (tenant_id, outcome_id, judge, judge_version, lease_token, attempts, due_at, created_at)
  select p_tenant_id, k, p_judge, p_judge_version, gen_random_uuid(), 1, p_now + p_lease, p_now
  from unnest(v_ids) k
  on conflict (tenant_id, outcome_id, judge, judge_version) do update set
    lease_token = excluded.lease_token,
    attempts = l.attempts + 1,
    due_at = excluded.due_at;

  -- Judges that have searched further than the first of these look again; one that searches at this moment does so within a day.
  update routeledger.judge_searches s set next_id = v_ids[1]
  where (s.tenant_id, s.judge, s.judge_version) in (
    select x.tenant_id, x.judge, x.judge_version
    from routeledger.judge_searches x
    where x.tenant_id = p_tenant_id and (x.judge, x.judge_version) <> (p_judge, p_judge_version) and x.next_id > v_ids[1]
    for update skip locked);
  return v_ids;
end
$$;

-- Searches the ledger for what others have claimed or labelled and this judge has not, at most a thousand outcomes, and lets them
-- wait in its queue. Returns how many it found: 0 also where it is too early, or another session is at it.
-- Locks: the judge's search (skip locked), leases that it adds. Errors: none.
create or replace function routeledger._search_for_judge(
  p_tenant_id text,
  p_judge text,
  p_judge_version text,
  p_from_id uuid,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns integer
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_search routeledger.judge_searches;
  v_found uuid[];
  v_in_hand uuid;
begin
  if not exists (
    select from routeledger.judge_searches s where s.tenant_id = p_tenant_id and s.judge = p_judge and s.judge_version = p_judge_version)
  then
    if not routeledger._is_alone_with('judge_searches', p_tenant_id, p_judge, p_judge_version) then
      return 0;
    end if;
    insert into routeledger.judge_searches (tenant_id, judge, judge_version, from_id, next_id, begun_at)
    values (p_tenant_id, p_judge, p_judge_version, p_from_id, p_from_id, p_now)
    on conflict do nothing;
  end if;
  select s.* into v_search
  from routeledger.judge_searches s
  where s.tenant_id = p_tenant_id and s.judge = p_judge and s.judge_version = p_judge_version
  for update skip locked;
  if not found then
    return 0;
  elsif p_from_id < v_search.from_id or p_now >= v_search.begun_at + interval '1 day' then
    v_search.from_id := least(p_from_id, v_search.from_id);
    v_search.next_id := v_search.from_id;
    v_search.begun_at := p_now;
  elsif v_search.ended_at > p_now - p_settings.judge_look_every then
    return 0;
  end if;

  -- What a claim has taken and not committed is neither found nor to be had, and looks unlabeled: the next search begins there.
  select
    array(
      select o.id
      from routeledger.routing_outcomes o
      where o.tenant_id = p_tenant_id and o.id >= greatest(v_search.next_id, p_from_id)
        and o.outcome_status = 'succeeded' and o.inference_id is not null
        and (o.judge_status <> 'unlabeled' or o.reward_source is not null)
        and not exists (
          select from routeledger.judge_verdicts v
          where v.tenant_id = p_tenant_id and v.outcome_id = o.id and v.judge = p_judge and v.judge_version = p_judge_version
            and v.outcome_id >= greatest(v_search.next_id, p_from_id))
        and not exists (
          select from routeledger.judge_leases l
          where l.tenant_id = p_tenant_id and l.outcome_id = o.id and l.judge = p_judge and l.judge_version = p_judge_version)
      order by o.id
      limit 1000),
    (
      select o.id
      from routeledger.routing_outcomes o
      where o.tenant_id = p_tenant_id and o.id >= p_from_id
        and o.judge_status = 'unlabeled' and o.reward_source is null and o.outcome_status = 'succeeded' and o.inference_id is not null
      order by o.id
      limit 1)
  into v_found, v_in_hand;
  insert into routeledger.judge_leases (tenant_id, outcome_id, judge, judge_version, due_at, created_at)
  select p_tenant_id, k, p_judge, p_judge_version, p_now, p_now
  from unnest(v_found) k
  on conflict do nothing;

  update routeledger.judge_searches s set
    from_id = v_search.from_id,
    next_id = case
      when p_from_id > v_search.next_id then v_search.next_id -- what lies between has not been looked at
      when cardinality(v_found) < 1000
        then least(v_in_hand, greatest(v_search.from_id, routeledger._uuid_floor(p_now - p_settings.judge_look_back)))
      else v_found[1000]
    end,
    ended_at = case when cardinality(v_found) < 1000 then p_now end,
    begun_at = v_search.begun_at
  where s.tenant_id = p_tenant_id and s.judge = p_judge and s.judge_version = p_judge_version;
  return cardinality(v_found);
end
$$;

-- Leases up to p_limit outcomes to a version of a judge, for p_lease (by default settings.judge_lease), and returns what it needs to judge
-- them: the attempt that answered, and with p_payloads the request and response kept of it. With p_from only outcomes decided on that
-- day (UTC) or later. Every version of every judge is given each outcome that succeeded and is linked, until it
-- has recorded a verdict on it; never to two workers at a time.
--
-- First come its own leases that ran out or were given back, then outcomes that nobody has claimed or labelled, oldest
-- first, then what others have claimed or labelled. The answer goes to record_verdict(), with the lease_token; what takes longer
-- than the lease is renewed with renew_judgement(), and what will not be judged is given back with release_judgement(). A lease that ran
-- out is good until somebody else has the outcome. The last of settings.judge_max_attempts leases that runs out ends in a verdict
-- `cannot_evaluate`. Without p_tenant_id the tenants that the caller may use are served in random order.
-- Locks: the outcomes (skip locked), their leases, searches of judges (skip locked). Errors: RL101, RL103, RL108, RL109, RL110.
create or replace function routeledger.claim_judgements(
  p_tenant_id text,
  p_judge text,
  p_judge_version text,
  p_limit integer default 10,
  p_lease interval default null,
  p_from date default null,
  p_payloads boolean default true
)
returns table (
  tenant_id text,
  id uuid,
  lease_token uuid,
  attempt_no integer,
  lease_expires_at timestamptz,
  inference_id uuid,
  agent_id text,
  task_type text,
  model_slug text,
  provider text,
  input_tokens bigint,
  output_tokens bigint,
  cost_usd numeric,
  latency_ms double precision,
  event_at timestamptz,
  traffic_class text,
  metadata jsonb,
  request jsonb,
  response jsonb
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
#variable_conflict use_column
declare
  v_settings routeledger.settings;
  v_now timestamptz := routeledger._now();
  v_tenants text[] := routeledger.bound_tenants();
  v_from_id uuid;
  v_lease interval;
  v_tenant text;
  v_left integer := p_limit;
  v_taken uuid[];
  v_of_tenants text[] := array[]::text[];
  v_ids uuid[] := array[]::uuid[];
  v_low uuid;
  v_high uuid;
  v_fault text;
begin
  v_fault := coalesce(
    case
      when p_tenant_id = '' then 'RL101 tenant_id'
      when length(p_tenant_id) > 200 then 'RL108 tenant_id 200 characters'
      when p_tenant_id <> all (v_tenants) then 'RL110 tenant_id'
    end,
    routeledger._judge_fault(p_judge, p_judge_version),
    case
      when p_limit is null then 'RL101 limit 1 to 1000'
      when p_limit not between 1 and 1000 then 'RL103 limit 1 to 1000'
      when p_lease not between interval '1 second' and interval '24 hours' then 'RL103 lease 1 second to 24 hours'
      when p_from not between date '1970-01-01' and date '4999-12-31' then 'RL109 from 1970 to 4999'
      when p_payloads is null then 'RL101 payloads'
    end);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  select s.* into v_settings from routeledger.settings s;
  v_lease := coalesce(p_lease, v_settings.judge_lease);
  v_from_id := routeledger._uuid_floor(coalesce(p_from, date '1970-01-01')::timestamp at time zone 'UTC');
  if p_tenant_id is not null then
    v_tenants := array[p_tenant_id];
  elsif v_tenants is null then
    -- from tenant to tenant along the primary key
    with recursive t (tenant_id) as (
      (select o.tenant_id from routeledger.routing_outcomes o order by o.tenant_id limit 1)
      union all
      select (select o.tenant_id from routeledger.routing_outcomes o where o.tenant_id > t.tenant_id order by o.tenant_id limit 1)
      from t
      where t.tenant_id is not null
    )
    select array_agg(t.tenant_id order by random()) into v_tenants from t where t.tenant_id is not null;
  else
    v_tenants := array(select t from unnest(v_tenants) t order by random());
  end if;

  foreach v_tenant in array coalesce(v_tenants, array[]::text[]) loop
    v_taken := routeledger._claim_due(v_tenant, p_judge, p_judge_version, v_left, v_lease, v_from_id, v_settings, v_now);
    if cardinality(v_taken) < v_left then
      v_taken := v_taken || routeledger._claim_unlabeled(
        v_tenant, p_judge, p_judge_version, v_left - cardinality(v_taken), v_lease, v_from_id, v_now);
    end if;
    if cardinality(v_taken) < v_left and routeledger._search_for_judge(v_tenant, p_judge, p_judge_version, v_from_id, v_settings, v_now) > 0 then
      v_taken := v_taken || routeledger._claim_due(
        v_tenant, p_judge, p_judge_version, v_left - cardinality(v_taken), v_lease, v_from_id, v_settings, v_now);
    end if;
    update routeledger.routing_outcomes o set judge_status = 'claimed'
    where o.tenant_id = v_tenant and o.id = any (v_taken) and o.judge_status in ('unlabeled', 'cannot_evaluate');
    v_ids := v_ids || v_taken;
    v_of_tenants := v_of_tenants || array_fill(v_tenant, array[cardinality(v_taken)]);
    v_left := p_limit - cardinality(v_ids);
    exit when v_left = 0;
  end loop;
  if v_ids = '{}' then
    return;
  end if;

  v_low := (select k from unnest(v_ids) k order by k limit 1);
  v_high := (select k from unnest(v_ids) k order by k desc limit 1);
  return query
  select
    o.tenant_id, o.id, l.lease_token, l.attempts, l.due_at, o.inference_id, o.agent_id, o.task_type, i.model_slug, i.provider,
    i.input_tokens, i.output_tokens, i.cost_usd, i.latency_ms, o.event_at, o.traffic_class::text, o.metadata, p.request, p.response
  from unnest(v_of_tenants, v_ids) with ordinality k (tenant_id, id, n)
  cross join lateral (
    select o.*
    from routeledger.routing_outcomes o
    where o.tenant_id = k.tenant_id and o.id = k.id and o.id between v_low and v_high
    offset 0) o
  cross join lateral (
    select i.*
    from routeledger.inferences i
    where i.tenant_id = k.tenant_id and i.outcome_id = k.id and i.id = o.inference_id and i.outcome_id between v_low and v_high
    offset 0) i
  cross join lateral (
    select l.*
    from routeledger.judge_leases l
    where l.tenant_id = k.tenant_id and l.outcome_id = k.id and l.judge = p_judge and l.judge_version = p_judge_version
    offset 0) l
  left join lateral (
    select p.request, p.response
    from routeledger.inference_payloads p
    where p_payloads and p.tenant_id = k.tenant_id and p.outcome_id = k.id and p.inference_id = o.inference_id
      and p.outcome_id between v_low and v_high
    offset 0) p on true
  order by k.n;
end
$$;

-- Locks an outcome and looks up the lease that a judge has on it. Where p_lease_token is not its token code is RL402, and RL201
-- where there is no such outcome.
-- Locks: the outcome. Errors: none.
create or replace function routeledger._held_judgement(
  p_tenant_id text,
  p_id uuid,
  p_judge text,
  p_judge_version text,
  p_lease_token uuid,
  out attempts integer,
  out due_at timestamptz,
  out code text
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  perform from routeledger.routing_outcomes o where o.tenant_id = p_tenant_id and o.id = p_id for no key update;
  if not found then
    code := 'RL201';
    return;
  end if;
  select l.attempts, l.due_at into attempts, due_at
  from routeledger.judge_leases l
  where l.tenant_id = p_tenant_id and l.outcome_id = p_id and l.judge = p_judge and l.judge_version = p_judge_version
    and l.lease_token = p_lease_token;
  if not found then
    code := 'RL402';
  end if;
end
$$;

-- Renews one lease; see renew_judgement.
-- Locks: the outcome, its lease. Errors: none; a fault is part of the result.
create or replace function routeledger._renew_judgement(
  p_given routeledger.renewal_input,
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
  v_fault text := coalesce(
    routeledger._key_fault(p_given.tenant_id, p_given.id, p_settings),
    routeledger._judge_fault(p_given.judge, p_given.judge_version),
    case
      when p_given.lease_token is null then 'RL101 lease_token'
      when p_given.lease not between interval '1 second' and interval '24 hours' then 'RL103 lease 1 second to 24 hours'
    end);
  v_due_at timestamptz;
begin
  v_result.status := 'refused';
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;
  select h.due_at, h.code into v_due_at, v_result.code
  from routeledger._held_judgement(p_given.tenant_id, p_given.id, p_given.judge, p_given.judge_version, p_given.lease_token) h;
  if v_result.code is not null then
    v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'judge', p_given.judge, 'judge_version', p_given.judge_version);
    return v_result;
  end if;

  v_result.lease_expires_at := p_now + coalesce(p_given.lease, p_settings.judge_lease);
  if v_result.lease_expires_at > v_due_at then
    update routeledger.judge_leases l set due_at = v_result.lease_expires_at
    where l.tenant_id = p_given.tenant_id and l.outcome_id = p_given.id and l.judge = p_given.judge and l.judge_version = p_given.judge_version;
    v_result.status := 'accepted';
  else
    v_result.status := 'replayed'; -- a renewal never shortens a lease
    v_result.lease_expires_at := v_due_at;
  end if;
  v_result.id := p_given.id;
  return v_result;
end
$$;

-- Renews the lease of a judgement to now plus p_lease (by default settings.judge_lease), for judges that take long. A lease is never
-- shortened. One that somebody else has by now, or that has been answered or given back, is RL402.
-- Locks: the outcome, its lease. Errors: RL101, RL103, RL104, RL108, RL110, RL201, RL402.
create or replace function routeledger.renew_judgement(
  p_tenant_id text,
  p_id uuid,
  p_judge text,
  p_judge_version text,
  p_lease_token uuid,
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
  v_result := routeledger._renew_judgement(
    row(p_tenant_id, p_id, p_judge, p_judge_version, p_lease_token, p_lease)::routeledger.renewal_input, v_settings, routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select v_result.id, v_result.lease_expires_at;
end
$$;

-- Renews many leases in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes by (tenant_id, id), their leases. Errors: RL101, RL107, RL501 for the call; per row those of renew_judgement.
create or replace function routeledger.renew_judgements(
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
  v_inputs routeledger.renewal_input[];
  v_faults text[];
  v_results routeledger.lease_result[];
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.renewal_input, p_rows, array[]::text[]) r;
  v_results := array_fill(null::routeledger.lease_result, array[cardinality(v_faults)]);
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (tenant_id, id, judge, judge_version, lease_token, lease, n) order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._renew_judgement(v_inputs[v_i], v_settings, v_now);
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

-- Gives one judgement back; see release_judgement.
-- Locks: the outcome, its lease. Errors: none; a fault is part of the result.
create or replace function routeledger._release_judgement(
  p_given routeledger.release_input,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns routeledger.release_result
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.release_result;
  v_fault text := coalesce(
    routeledger._key_fault(p_given.tenant_id, p_given.id, p_settings),
    routeledger._judge_fault(p_given.judge, p_given.judge_version),
    case
      when p_given.lease_token is null then 'RL101 lease_token'
      when p_given.error = '' then 'RL101 error null or not empty'
      when p_given.delay not between interval '0' and interval '24 hours' then 'RL103 delay 0 to 24 hours'
    end);
  v_attempts integer;
begin
  v_result.status := 'refused';
  if v_fault is not null then
    v_result.code := split_part(v_fault, ' ', 1);
    v_result.detail := routeledger._fault_detail(v_fault);
    return v_result;
  end if;
  select h.attempts, h.code into v_attempts, v_result.code
  from routeledger._held_judgement(p_given.tenant_id, p_given.id, p_given.judge, p_given.judge_version, p_given.lease_token) h;
  if v_result.code is not null then
    v_result.detail := jsonb_build_object('tenant_id', p_given.tenant_id, 'id', p_given.id, 'judge', p_given.judge, 'judge_version', p_given.judge_version);
    return v_result;
  end if;

  v_result.available_at := p_now + coalesce(p_given.delay, case when p_given.error is not null then p_settings.judge_retry_delay end, interval '0');
  update routeledger.judge_leases l set
    lease_token = null,
    attempts = l.attempts - case when p_given.error is null then 1 else 0 end,
    due_at = v_result.available_at,
    last_error = coalesce(routeledger._error_text(p_given.error), l.last_error)
  where l.tenant_id = p_given.tenant_id and l.outcome_id = p_given.id and l.judge = p_given.judge and l.judge_version = p_given.judge_version;
  if p_given.error is not null and v_attempts >= p_settings.judge_max_attempts then
    perform routeledger._give_up_judging(array[p_given.tenant_id], array[p_given.id], p_given.judge, p_given.judge_version, p_now);
    v_result.available_at := null;
  else
    perform routeledger._label_outcomes(array[p_given.tenant_id], array[p_given.id]);
  end if;
  v_result.status := 'accepted';
  v_result.id := p_given.id;
  select o.judge_status into strict v_result.judge_status
  from routeledger.routing_outcomes o
  where o.tenant_id = p_given.tenant_id and o.id = p_given.id;
  return v_result;
end
$$;

-- Gives a judgement back, to be claimed again after p_delay, by other judges at once. Without p_error nothing went wrong and the attempt does not
-- count: a worker that stops gives back what it has not begun. With p_error the attempt counts and p_delay is settings.judge_retry_delay
-- by default; the last of settings.judge_max_attempts ends in a verdict `cannot_evaluate` with p_error as its rationale, and available_at is null.
-- Locks: the outcome, its lease. Errors: RL101, RL103, RL104, RL108, RL110, RL201, RL402.
create or replace function routeledger.release_judgement(
  p_tenant_id text,
  p_id uuid,
  p_judge text,
  p_judge_version text,
  p_lease_token uuid,
  p_error text default null,
  p_delay interval default null
)
returns table (
  id uuid,
  judge_status text,
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
  v_result routeledger.release_result;
begin
  select s.* into v_settings from routeledger.settings s;
  v_result := routeledger._release_judgement(
    row(p_tenant_id, p_id, p_judge, p_judge_version, p_lease_token, p_error, p_delay)::routeledger.release_input, v_settings, routeledger._now());
  if v_result.code is not null then
    perform routeledger._raise(v_result.code, v_result.detail);
  end if;
  return query select v_result.id, v_result.judge_status, v_result.available_at;
end
$$;

-- Gives many judgements back in one call and answers for each; a bad row never fails its neighbours.
-- Locks: the outcomes by (tenant_id, id), their leases. Errors: RL101, RL107, RL501 for the call; per row those of release_judgement.
create or replace function routeledger.release_judgements(
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
  judge_status text,
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
  v_inputs routeledger.release_input[];
  v_faults text[];
  v_results routeledger.release_result[];
  v_i integer;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.release_input, p_rows, array[]::text[]) r;
  v_results := array_fill(null::routeledger.release_result, array[cardinality(v_faults)]);
  for v_i in
    select r.n from unnest(v_inputs) with ordinality r (tenant_id, id, judge, judge_version, lease_token, error, delay, n) order by r.tenant_id, r.id, r.n
  loop
    if v_faults[v_i] is null then
      v_results[v_i] := routeledger._release_judgement(v_inputs[v_i], v_settings, v_now);
    end if;
  end loop;
  return query
  select
    r.n::integer, coalesce(r.status, 'refused'), e.code, e.message, coalesce(r.detail, case when r.fault is not null then routeledger._fault_detail(r.fault) end), e.hint,
    r.id, r.judge_status, r.available_at
  from unnest(v_results, v_faults) with ordinality r (status, code, detail, id, judge_status, available_at, fault, n)
  left join routeledger._errors() e on e.code = coalesce(r.code, split_part(r.fault, ' ', 1))
  order by r.n;
end
$$;

-- Removes leases that fell due a day ago on outcomes that are gone, their partition dropped.
-- Locks: the leases that go. Errors: none.
create or replace function routeledger._forget_judgements(
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  delete from routeledger.judge_leases l
  where l.due_at < p_now - interval '1 day'
    and not exists (select from routeledger.routing_outcomes o where o.tenant_id = l.tenant_id and o.id = l.outcome_id);
end
$$;
