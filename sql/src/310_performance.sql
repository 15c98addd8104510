-- 310 · Performance: how each model did, by tenant, task type and day (UTC).
--
-- A bucket holds sums and counts only, so that buckets add up over any window. The roll-up computes them from
-- the ledger, as often as one likes, and rewrites those that differ; callers without a ledger of their own
-- bring buckets in. What the roll-up has counted, no caller replaces.
--
-- Latencies are kept as a sketch: counts in bins whose bounds grow by 1.01 / 0.99. Bin i holds the
-- latencies in milliseconds above (1.01 / 0.99)^(i - 1) and up to (1.01 / 0.99)^i, and stands for
-- 0.99 * (1.01 / 0.99)^i, which is at most 1 % off any of them. Bin -346 holds what is below a microsecond and stands
-- for 0. Sketches are merged by adding their counts, in any order; a quantile q is the bin of the value of
-- rank ceil(q * n), so it is within 1 % of percentile_disc(q) over all the latencies counted.
--
-- The day of a decision is the date in its id, so a roll-up reads only the partitions of its days.
--
-- Rewards come late. Whoever changes one leaves a mark on its day, and an incremental roll-up counts the marked days
-- as well as those that it reaches; neither waits for the other. The one who marks holds a mark until its commit: one
-- that nobody holds, or a new one, so that a day has as many marks as transactions that changed its rewards at the
-- same time. The roll-up takes away those that nobody holds and counts in a statement that begins later, which sees all that they
-- stood for; a mark that somebody holds stays, and its day is counted now and once more. Holding a mark means
-- writing to it: a roll-up whose snapshot is older is refused (40001) and cannot take it away unread.
--
-- Lock order of a roll-up: the watermarks ('' first, then by tenant), then the marks, of which it waits for none, then
-- new buckets by key, then existing ones by key, as the upsert does. Roll-ups that share a tenant run one after
-- the other, so that the one which writes last has read last.

create table if not exists routeledger.model_performance_buckets (
  tenant_id text not null,
  model_key text not null,
  task_type text not null default '__global__',
  day date not null,
  n bigint not null,
  success_n bigint,
  reward_n bigint not null default 0,
  reward_sum double precision not null default 0,
  reward_sq_sum double precision,
  cost_n bigint not null default 0,
  cost_success_n bigint,
  cost_usd numeric,
  input_tokens bigint,
  output_tokens bigint,
  latency_n bigint not null default 0,
  latency_sum_ms double precision,
  latency_bins integer[] not null default '{}',
  latency_counts bigint[] not null default '{}',
  from_ledger boolean not null default false,
  constraint model_performance_buckets_pkey primary key (tenant_id, model_key, task_type, day),
  constraint model_performance_buckets_counts_check check (
    least(n, success_n, reward_n, cost_n, cost_success_n, latency_n) >= 0
    and greatest(success_n, reward_n, cost_n, cost_success_n, latency_n) <= n
    and cardinality(latency_bins) = cardinality(latency_counts))
) with (fillfactor = 80);

-- a window of days over all tenants
create index if not exists model_performance_buckets_day_idx on routeledger.model_performance_buckets (day, tenant_id);

create table if not exists routeledger.rollup_watermarks (
  tenant_id text not null,
  watermark timestamptz,
  constraint rollup_watermarks_pkey primary key (tenant_id)
);

insert into routeledger.rollup_watermarks (tenant_id) values ('') on conflict do nothing;

-- Marks: days of which a reward has changed since they were counted.
create table if not exists routeledger.rollup_days (
  tenant_id text not null,
  day date not null,
  id uuid not null,
  noted_at timestamptz not null,
  constraint rollup_days_pkey primary key (tenant_id, day, id)
) with (fillfactor = 50);

do $types$
begin
  if to_regtype('routeledger.performance_input') is null then
    create type routeledger.performance_input as (
      tenant_id text,
      model_key text,
      task_type text,
      day date,
      n bigint,
      success_n bigint,
      reward_n bigint,
      reward_sum double precision,
      reward_sq_sum double precision,
      cost_n bigint,
      cost_success_n bigint,
      cost_usd numeric,
      input_tokens bigint,
      output_tokens bigint,
      latency_n bigint,
      latency_sum_ms double precision,
      latency_bins integer[],
      latency_counts bigint[]
    );
    create type routeledger.latency_sketch as (
      bins integer[],
      counts bigint[]
    );
  end if;
end
$types$;

-- Returns the bin of a latency: ceil(ln(ms) / ln(1.01 / 0.99)), -346 for what is below a microsecond and 1152
-- for what is above 1e10 ms. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._latency_bin(
  p_ms double precision
)
returns integer
language sql
immutable
parallel safe
security invoker
as $$
  select case
    when p_ms < 0.001 then -346
    when p_ms > 1e10 then 1152
    else ceil(ln(p_ms) / ln(1.01::double precision / 0.99::double precision))::integer
  end
$$;

-- Returns the latency that a bin stands for, in milliseconds; null for null. Without a pinned path so that the
-- planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._bin_latency(
  p_bin integer
)
returns double precision
language sql
immutable
parallel safe
security invoker
as $$
  select case when p_bin = -346 then 0 else 0.99::double precision * (1.01::double precision / 0.99::double precision) ^ p_bin end
$$;

-- Completes a bucket as a caller gave it: without a task type it is that of all of them, `__global__`; a count
-- that goes without saying is n where its sum is given, the sketch's where there is one, and else 0.
-- Locks: none. Errors: none.
create or replace function routeledger._complete_bucket(
  p routeledger.performance_input
)
returns routeledger.performance_input
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  p.task_type := coalesce(p.task_type, '__global__');
  p.reward_n := coalesce(p.reward_n, case when p.reward_sum is null then 0 else p.n end);
  p.cost_n := coalesce(p.cost_n, case when p.cost_usd is null then 0 else p.n end);
  p.cost_success_n := coalesce(p.cost_success_n, case p.cost_n when 0 then 0 when p.n then p.success_n end);
  p.latency_n := coalesce(p.latency_n, (select case when abs(sum(c)) > 1e18 then -1 else sum(c) end from unnest(p.latency_counts) c), case when p.latency_sum_ms is null then 0 end);
  if p.reward_n = 0 then
    p.reward_sum := coalesce(p.reward_sum, 0);
    p.reward_sq_sum := coalesce(p.reward_sq_sum, 0);
  end if;
  -- as the roll-up does
  p.reward_sum := case when abs(p.reward_sum) < 1e-60 then 0 else p.reward_sum end;
  p.reward_sq_sum := case when abs(p.reward_sq_sum) < 1e-60 then 0 else p.reward_sq_sum end;
  p.latency_sum_ms := case when abs(p.latency_sum_ms) < 1e-60 then 0 else p.latency_sum_ms end;
  p.latency_bins := coalesce(p.latency_bins, '{}');
  p.latency_counts := coalesce(p.latency_counts, '{}');
  return p;
end
$$;

-- Judges a completed bucket field by field; returns the first fault, or null. p_day is the day as it was
-- written: a time would lose its zone on the way to a date.
-- Locks: none. Errors: none.
create or replace function routeledger._bucket_fault(
  p routeledger.performance_input,
  p_day text,
  p_settings routeledger.settings,
  p_bound text[],
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
  if coalesce(p.tenant_id, '') = '' then return 'RL101 tenant_id';
  elsif length(p.tenant_id) > 200 then return 'RL108 tenant_id 200 characters';
  elsif p.tenant_id <> all (p_bound) then return 'RL110 tenant_id';
  elsif coalesce(p.model_key, '') = '' then return 'RL101 model_key';
  elsif length(p.model_key) > 300 then return 'RL108 model_key 300 characters';
  elsif p.task_type = '' then return 'RL103 task_type null or not empty';
  elsif length(p.task_type) > 200 then return 'RL108 task_type 200 characters';
  elsif p.day is null then return 'RL101 day YYYY-MM-DD, in UTC';
  elsif p_day !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' then return 'RL107 day YYYY-MM-DD, in UTC';
  elsif p.day < ((p_now - p_settings.event_at_max_age) at time zone 'UTC')::date
    or p.day > ((p_now + p_settings.id_window_future) at time zone 'UTC')::date then return 'RL109 day';
  elsif p.n is null then return 'RL101 n';
  elsif p.n not between 0 and 1000000000000000 then return 'RL103 n 0 to 1e15';
  elsif p.success_n not between 0 and p.n then return 'RL103 success_n 0 to n';
  elsif p.reward_n not between 0 and p.n then return 'RL103 reward_n 0 to n';
  elsif p.reward_sum is null then return 'RL101 reward_sum where reward_n is given';
  elsif abs(p.reward_sum) > (case p.reward_n when 0 then 0 else 1e15 end) then return 'RL103 reward_sum -1e15 to 1e15, 0 where reward_n is 0';
  -- what no rewards add up to, but for the last digits
  elsif p.reward_sq_sum not between p.reward_sum * (p.reward_sum / greatest(p.reward_n, 1)) * (1 - 1e-9) and (case p.reward_n when 0 then 0 else 1e30 end)
    then return 'RL103 reward_sq_sum reward_sum^2 / reward_n to 1e30, 0 where reward_n is 0';
  elsif p.cost_n not between 0 and p.n then return 'RL103 cost_n 0 to n';
  elsif p.cost_n > 0 and p.cost_usd is null then return 'RL101 cost_usd where cost_n is given';
  elsif p.cost_n = 0 and p.cost_usd is not null then return 'RL103 cost_usd null where cost_n is 0';
  elsif p.cost_usd not between 0 and 1000000000000000 then return 'RL103 cost_usd 0 to 1e15';
  elsif p.cost_success_n not between 0 and least(p.cost_n, p.success_n) then return 'RL103 cost_success_n 0 to cost_n and to success_n';
  elsif p.input_tokens not between 0 and 1000000000000000 then return 'RL103 input_tokens 0 to 1e15';
  elsif p.output_tokens not between 0 and 1000000000000000 then return 'RL103 output_tokens 0 to 1e15';
  elsif p.latency_n is null then return 'RL101 latency_n where latency_sum_ms is given';
  elsif p.latency_n not between 0 and p.n then return 'RL103 latency_n 0 to n';
  elsif p.latency_n = 0 and p.latency_sum_ms > 0 then return 'RL103 latency_sum_ms null where latency_n is 0';
  elsif p.latency_sum_ms not between 0 and 1e25 then return 'RL103 latency_sum_ms 0 to 1e25';
  elsif array_ndims(p.latency_bins) > 1
    or cardinality(p.latency_bins) <> cardinality(p.latency_counts)
    or exists (
      select from (select b.bin, lag(b.bin) over (order by b.o) as below from unnest(p.latency_bins) with ordinality b (bin, o)) b
      where (b.bin between -346 and 1152 and b.bin > coalesce(b.below, -347)) is not true)
    then return 'RL103 latency_bins -346 to 1152, ascending, one for each of latency_counts';
  elsif array_ndims(p.latency_counts) > 1
    or exists (select from unnest(p.latency_counts) c where (c > 0) is not true)
    or (p.latency_counts <> '{}' and p.latency_n <> (select sum(c) from unnest(p.latency_counts) c))
    then return 'RL103 latency_counts 1 or more each, latency_n in all';
  end if;
  return null;
end
$$;

-- Brings buckets in from outside the ledger: of two for one (tenant, model, task type, day) the one with the
-- higher n stays, in the call and against what is stored, and of two with the same n the greater row, so
-- that processes may send what they have in any order and as often as they like. A bucket that the
-- roll-up has counted is never replaced. One bad row never fails its neighbours.
--
-- Without a task type (absent or null) and with the word `__global__` a row means the same bucket. A reward_n or
-- cost_n that is absent is n where the sum is given. What is absent stays unknown: success_n, reward_sq_sum,
-- cost_usd, tokens, latencies. latency_bins and latency_counts are the sketch: ceil(ln(ms) / ln(1.01 / 0.99)), ascending, and how many.
-- Always one row: received = collapsed + inserted + updated + unchanged + refused; refusals is an array of
-- {ord, code, message, detail, hint}.
-- Locks: the buckets, as upsert() does. Errors: RL101, RL107, RL501 for the call; per row RL101, RL103, RL107 to RL110.
create or replace function routeledger.persist_model_performance(
  p_rows jsonb
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
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
  v_bound text[] := routeledger.bound_tenants();
  v_now timestamptz := routeledger._now();
  v_inputs routeledger.performance_input[];
  v_faults text[];
  v_good jsonb;
  v_ords integer[];
  v_result record;
begin
  select s.* into v_settings from routeledger.settings s;
  select r.inputs, r.faults into v_inputs, v_faults
  from routeledger._read_rows(null::routeledger.performance_input, p_rows, array['latency_bins', 'latency_counts']) r;
  v_inputs := array(select routeledger._complete_bucket(v_inputs[i]) from generate_series(1, cardinality(v_faults)) i order by i);
  v_faults := array(
    select coalesce(v_faults[e.i], routeledger._bucket_fault(v_inputs[e.i], e.row ->> 'day', v_settings, v_bound, v_now))
    from jsonb_array_elements(p_rows) with ordinality e (row, i)
    order by e.i);

  select jsonb_agg(to_jsonb(v_inputs[g.i]) || '{"from_ledger": false}' order by g.i), array_agg(g.i::integer order by g.i) into v_good, v_ords
  from unnest(v_faults) with ordinality g (fault, i)
  where g.fault is null;
  select u.* into strict v_result
  from routeledger.upsert(
    'routeledger.model_performance_buckets',
    coalesce(v_good, '[]'),
    p_key => array['tenant_id', 'model_key', 'task_type', 'day'],
    p_precedence => 'greatest from_ledger, greatest n',
    p_columns => array[
      'tenant_id', 'model_key', 'task_type', 'day', 'n', 'success_n', 'reward_n', 'reward_sum', 'reward_sq_sum', 'cost_n', 'cost_success_n',
      'cost_usd', 'input_tokens', 'output_tokens', 'latency_n', 'latency_sum_ms', 'latency_bins', 'latency_counts', 'from_ledger']) u;

  return query
  select
    cardinality(v_faults)::bigint, v_result.collapsed, v_result.inserted, v_result.updated, v_result.unchanged,
    cardinality(v_faults) - coalesce(cardinality(v_ords), 0) + v_result.refused,
    routeledger._place_refusals(v_faults, v_ords, v_result.refusals);
end
$$;

-- Leaves a mark on a day, held until the end of the transaction: takes one that nobody holds, or makes one.
-- Locks: the mark, waiting for none. Errors: none.
create or replace function routeledger._mark_day(
  p_tenant_id text,
  p_day date,
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_id uuid;
begin
  select d.id into v_id
  from routeledger.rollup_days d
  where d.tenant_id = p_tenant_id and d.day = p_day
  limit 1
  for update skip locked;
  if found then
    update routeledger.rollup_days d set noted_at = p_now
    where d.tenant_id = p_tenant_id and d.day = p_day and d.id = v_id;
  else
    insert into routeledger.rollup_days (tenant_id, day, id, noted_at) values (p_tenant_id, p_day, gen_random_uuid(), p_now);
  end if;
end
$$;

-- Leaves marks on the days (UTC) of these decisions, whose rewards the caller has changed in the same transaction: the
-- first incremental roll-up that begins after the commit counts those days again, however old they are. The arrays
-- are parallel.
-- Locks: a mark a day, waiting for none. Errors: none.
create or replace function routeledger._note_late_rewards(
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
  v_now timestamptz := routeledger._now();
begin
  if cardinality(p_ids) = 1 then
    perform routeledger._mark_day(p_tenants[1], (routeledger._id_time(p_ids[1]) at time zone 'UTC')::date, v_now);
  else
    perform routeledger._mark_day(x.tenant_id, x.day, v_now)
    from (
      select distinct k.tenant_id, (routeledger._id_time(k.id) at time zone 'UTC')::date as day
      from unnest(p_tenants, p_ids) k (tenant_id, id)
    ) x;
  end if;
end
$$;

-- Counts p_days days from p_from on, as the caller's statement sees the ledger: one bucket a tenant, model, task type
-- and day, for these tenants or, given null, for all. Never by nested loops, which is what the planner takes for the best where a
-- partition has not been analysed yet: every attempt of these days has to be read anyway.
-- Locks: none. Errors: none.
create or replace function routeledger._count_days(
  p_tenants text[],
  p_from date,
  p_days integer
)
returns table (
  tenant_id text,
  model_key text,
  task_type text,
  day date,
  n bigint,
  success_n bigint,
  reward_n bigint,
  reward_sum double precision,
  reward_sq_sum double precision,
  cost_n bigint,
  cost_success_n bigint,
  cost_usd numeric,
  input_tokens bigint,
  output_tokens bigint,
  latency_n bigint,
  latency_sum_ms double precision,
  latency_bins integer[],
  latency_counts bigint[]
)
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
set enable_partitionwise_join = on
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  -- where each of the days begins
  v_floors uuid[] := array(
    select routeledger._uuid_floor((p_from + d)::timestamp at time zone 'UTC') from generate_series(0, p_days) d order by d);
begin
  return query
  with counted as (
    select
      i.tenant_id,
      i.model_slug as model_key,
      coalesce(o.task_type, '__global__') as task_type,
      p_from + width_bucket(o.id, v_floors) - 1 as day,
      case when i.status = 'succeeded' then routeledger._latency_bin(i.latency_ms) end as bin,
      count(*) as n,
      count(*) filter (where i.status = 'succeeded') as success_n,
      -- sums of exact numbers, which come out the same in whatever order they are added
      count(o.reward) filter (where i.id = o.inference_id and o.reward between -1e15 and 1e15) as reward_n,
      sum(o.reward::numeric) filter (where i.id = o.inference_id and o.reward between -1e15 and 1e15) as reward_sum,
      sum(o.reward::numeric * o.reward::numeric) filter (where i.id = o.inference_id and o.reward between -1e15 and 1e15) as reward_sq_sum,
      count(i.cost_usd) as cost_n,
      count(i.cost_usd) filter (where i.status = 'succeeded') as cost_success_n,
      sum(i.cost_usd) as cost_usd,
      sum(i.input_tokens) as input_tokens,
      sum(i.output_tokens) as output_tokens,
      sum(i.latency_ms::numeric) filter (where i.status = 'succeeded') as latency_sum_ms
    from routeledger.routing_outcomes o
    join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id
    where o.id >= v_floors[1] and o.id < v_floors[p_days + 1]
      and i.outcome_id >= v_floors[1] and i.outcome_id < v_floors[p_days + 1]
      and (p_tenants is null or (o.tenant_id = any (p_tenants) and i.tenant_id = any (p_tenants)))
      and o.traffic_class in ('production', 'shadow')
      and i.status <> 'routed'
      -- as _was_reaped() has it
      and not (coalesce(o.outcome_status = 'abandoned', false) and coalesce(i.error_type = 'abandoned', false) and i.next_action is null
        and coalesce(i.completed_at = o.abandoned_at, false))
    group by 1, 2, 3, 4, 5
  )
  select
    c.tenant_id, c.model_key, c.task_type, c.day,
    sum(c.n)::bigint as n,
    sum(c.success_n)::bigint as success_n,
    sum(c.reward_n)::bigint as reward_n,
    -- what is below 1e-60 would be too small for the arithmetic of double precision, which raises an error then
    round(coalesce(sum(c.reward_sum), 0), 60)::double precision as reward_sum,
    round(coalesce(sum(c.reward_sq_sum), 0), 60)::double precision as reward_sq_sum,
    sum(c.cost_n)::bigint as cost_n,
    sum(c.cost_success_n)::bigint as cost_success_n,
    sum(c.cost_usd) as cost_usd,
    sum(c.input_tokens)::bigint as input_tokens,
    sum(c.output_tokens)::bigint as output_tokens,
    coalesce(sum(c.n) filter (where c.bin is not null), 0)::bigint as latency_n,
    round(sum(c.latency_sum_ms), 60)::double precision as latency_sum_ms,
    coalesce(array_agg(c.bin order by c.bin) filter (where c.bin is not null), '{}') as latency_bins,
    coalesce(array_agg(c.n order by c.bin) filter (where c.bin is not null), '{}') as latency_counts
  from counted c
  group by c.tenant_id, c.model_key, c.task_type, c.day;
end
$$;

-- Counts the ledger into buckets: each bucket of the days from p_from up to, not including, p_to (UTC) becomes what the
-- ledger says at the moment of the call. Idempotent; a bucket that is right already is not touched, and
-- none is ever deleted, so retention may drop the partitions behind it. A bucket that a caller brought in is replaced.
--
-- Counted are attempts that succeeded or failed, under their model and the task type of their decision, of
-- traffic class production or shadow; not those that the reaper closed, which say nothing of the model. An
-- outcome's reward counts for the attempt linked. Costs are summed where they are known (cost_n says for how many),
-- latencies where the attempt succeeded.
--
-- Without p_from the call is incremental: it begins settings.rollup_look_back before the last incremental one (the
-- watermark), or at the oldest partition, and counts older days as well where a reward has changed since. What is committed
-- within rollup_look_back of the time in the decision's id, and a verdict whenever it is committed, is counted by the first
-- incremental call that begins after the commit, whatever was open in between; what else comes later (an old story)
-- needs p_from. The watermark moves where the call reaches as far back as an incremental one and p_to is absent.
-- Without p_tenant_id it is for all tenants that the caller may use. To be called in a transaction of its own.
-- Returns the days looked at, the buckets found there, and how many were written.
-- Locks: the watermarks of its tenants (one roll-up of a tenant at a time), then the marks that nobody holds, then the buckets that it writes by key, new ones first. Errors: RL101, RL103, RL108, RL109, RL110.
create or replace function routeledger.rollup_model_performance(
  p_from date default null,
  p_to date default null,
  p_tenant_id text default null
)
returns table (
  days integer,
  buckets bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  watermark timestamptz
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
  v_tenants text[] := routeledger.bound_tenants();
  v_now timestamptz;
  v_oldest date;
  v_newest date;
  v_since date;
  v_from date;
  v_to date;
  v_marked_tenants text[];
  v_marked date[];
begin
  if p_tenant_id = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (v_tenants) then
    perform routeledger._raise_fault('RL110 tenant_id');
  elsif p_from not between date '1970-01-01' and date '4999-12-31' then
    perform routeledger._raise_fault('RL109 from 1970 to 4999');
  elsif p_to not between date '1970-01-01' and date '4999-12-31' then
    perform routeledger._raise_fault('RL109 to 1970 to 4999');
  elsif p_to < p_from then
    perform routeledger._raise_fault('RL103 to not before from');
  end if;
  if p_tenant_id is not null then
    v_tenants := array[p_tenant_id];
  end if;

  -- '' stands for all tenants: held alone by a roll-up of all, shared by those of some.
  if v_tenants is null then
    perform from routeledger.rollup_watermarks w where w.tenant_id = '' for update;
  else
    perform from routeledger.rollup_watermarks w where w.tenant_id = '' for share;
    insert into routeledger.rollup_watermarks (tenant_id) select distinct t from unnest(v_tenants) t order by t on conflict do nothing;
    perform from routeledger.rollup_watermarks w where w.tenant_id = any (v_tenants) order by w.tenant_id for update;
  end if;

  select s.* into v_settings from routeledger.settings s;
  -- Never later than what the next statement sees, which under REPEATABLE READ is as old as the transaction.
  v_now := routeledger._now() - case when current_setting('transaction_isolation') = 'read committed' then interval '0'
    else clock_timestamp() - transaction_timestamp() end;
  select
    case when bool_and(x.watermark is not null) then min(x.watermark) end,
    (min(x.watermark) at time zone 'UTC' - v_settings.rollup_look_back)::date
  into watermark, v_since
  from (
    select greatest(w.watermark, a.watermark) as watermark
    from routeledger.rollup_watermarks w
    join routeledger.rollup_watermarks a on a.tenant_id = ''
    where w.tenant_id = any (coalesce(v_tenants, array['']))
  ) x;
  select
    (routeledger._floor_time((array_agg(p.lower_id order by p.lower_id))[1]) at time zone 'UTC')::date,
    (routeledger._floor_time((array_agg(p.upper_id order by p.upper_id desc))[1]) at time zone 'UTC')::date
  into v_oldest, v_newest
  from routeledger._partitions() p;
  if watermark is null then
    v_since := v_oldest;
  end if;

  v_from := greatest(coalesce(p_from, v_since), v_oldest);
  v_to := least(coalesce(p_to, ((v_now + v_settings.id_window_future) at time zone 'UTC')::date + 1), v_newest);
  days := greatest(v_to - v_from, 0);

  -- What is taken away here is visible to the next statement, with the rewards that it stood for.
  with held as materialized (
    select d.tenant_id, d.day, d.id
    from routeledger.rollup_days d
    where (v_tenants is null or d.tenant_id = any (v_tenants)) and (p_from is null or d.day >= p_from) and d.day < v_to
    for update skip locked
  ),
  taken as (
    delete from routeledger.rollup_days d
    using held h
    where d.tenant_id = h.tenant_id and d.day = h.day and d.id = h.id
  )
  select array_agg(d.tenant_id), array_agg(d.day)
  into v_marked_tenants, v_marked
  from routeledger.rollup_days d
  where (v_tenants is null or d.tenant_id = any (v_tenants)) and p_from is null and d.day >= v_oldest and d.day < least(v_from, v_to);

  with run as materialized (
    select v_tenants as tenants, v_from as first_day, days as n
    union all
    select array_agg(distinct m.tenant_id), min(m.day), count(distinct m.day)::integer
    from (
      select x.tenant_id, x.day, x.day - dense_rank() over (order by x.day)::integer as run
      from unnest(v_marked_tenants, v_marked) x (tenant_id, day)
    ) m
    group by m.run
  ),
  bucket as materialized (
    select c.*
    from run r
    cross join lateral routeledger._count_days(r.tenants, r.first_day, r.n) c
  ),
  dirty as materialized (
    select b.*, s.day is not null as is_there
    from bucket b
    left join routeledger.model_performance_buckets s
      on s.tenant_id = b.tenant_id and s.model_key = b.model_key and s.task_type = b.task_type and s.day = b.day
    where s.day is null or not s.from_ledger
      or (s.n, s.success_n, s.reward_n, s.reward_sum, s.reward_sq_sum, s.cost_n, s.cost_success_n, s.cost_usd, s.input_tokens, s.output_tokens,
          s.latency_n, s.latency_sum_ms, s.latency_bins, s.latency_counts)
        is distinct from
        (b.n, b.success_n, b.reward_n, b.reward_sum, b.reward_sq_sum, b.cost_n, b.cost_success_n, b.cost_usd, b.input_tokens, b.output_tokens,
          b.latency_n, b.latency_sum_ms, b.latency_bins, b.latency_counts)
  ),
  made as (
    insert into routeledger.model_performance_buckets (
      tenant_id, model_key, task_type, day, n, success_n, reward_n, reward_sum, reward_sq_sum, cost_n, cost_success_n, cost_usd,
      input_tokens, output_tokens, latency_n, latency_sum_ms, latency_bins, latency_counts, from_ledger)
    select
      d.tenant_id, d.model_key, d.task_type, d.day, d.n, d.success_n, d.reward_n, d.reward_sum, d.reward_sq_sum, d.cost_n, d.cost_success_n, d.cost_usd,
      d.input_tokens, d.output_tokens, d.latency_n, d.latency_sum_ms, d.latency_bins, d.latency_counts, true
    from dirty d
    where not d.is_there
    order by d.tenant_id, d.model_key, d.task_type, d.day
    on conflict (tenant_id, model_key, task_type, day) do nothing
    returning tenant_id, model_key, task_type, day
  ),
  changed as (
    -- what is there, and what a caller brought in since this statement began
    insert into routeledger.model_performance_buckets as s (
      tenant_id, model_key, task_type, day, n, success_n, reward_n, reward_sum, reward_sq_sum, cost_n, cost_success_n, cost_usd,
      input_tokens, output_tokens, latency_n, latency_sum_ms, latency_bins, latency_counts, from_ledger)
    select
      d.tenant_id, d.model_key, d.task_type, d.day, d.n, d.success_n, d.reward_n, d.reward_sum, d.reward_sq_sum, d.cost_n, d.cost_success_n, d.cost_usd,
      d.input_tokens, d.output_tokens, d.latency_n, d.latency_sum_ms, d.latency_bins, d.latency_counts, true
    from dirty d
    where not exists (
      select from made m
      where m.tenant_id = d.tenant_id and m.model_key = d.model_key and m.task_type = d.task_type and m.day = d.day)
    order by d.tenant_id, d.model_key, d.task_type, d.day
    on conflict (tenant_id, model_key, task_type, day) do update set
      n = excluded.n,
      success_n = excluded.success_n,
      reward_n = excluded.reward_n,
      reward_sum = excluded.reward_sum,
      reward_sq_sum = excluded.reward_sq_sum,
      cost_n = excluded.cost_n,
      cost_success_n = excluded.cost_success_n,
      cost_usd = excluded.cost_usd,
      input_tokens = excluded.input_tokens,
      output_tokens = excluded.output_tokens,
      latency_n = excluded.latency_n,
      latency_sum_ms = excluded.latency_sum_ms,
      latency_bins = excluded.latency_bins,
      latency_counts = excluded.latency_counts,
      from_ledger = true
    returning 1
  )
  select (select sum(r.n) from run r), (select count(*) from bucket), (select count(*) from made), (select count(*) from changed)
  into days, buckets, inserted, updated;
  unchanged := buckets - inserted - updated;

  if p_to is null and (p_from is null or p_from <= greatest(v_since, v_oldest)) then
    update routeledger.rollup_watermarks w set watermark = v_now
    where w.tenant_id = any (coalesce(v_tenants, array[''])) and (w.watermark < v_now or w.watermark is null);
    watermark := greatest(watermark, v_now);
  end if;
  return next;
end
$$;

-- Says how each model did in the days from p_from up to, not including, p_to (UTC): one row a tenant, model and
-- task type that has a bucket there; without p_tenant_id for all tenants that the caller may see.
--
-- What is unknown is left out on both sides of a division and never counts as 0: success_rate is over the
-- buckets that know their successes, mean_cost_usd over the attempts whose cost is known, cost_per_success_usd what these
-- cost divided by the successes among them. reward_se is the standard error of mean_reward: the square root of the sample variance
-- (n - 1) over reward_n, null below two rewards; made from sums in double precision it is good to about 1e-7 of the
-- largest reward, and never negative. Quantiles are within 1 % of percentile_disc() over the latencies counted.
-- Locks: none. Errors: RL101, RL103, RL108, RL109, RL110.
create or replace function routeledger.model_performance_between(
  p_tenant_id text,
  p_from date,
  p_to date,
  p_task_type text default null
)
returns table (
  tenant_id text,
  model_key text,
  task_type text,
  from_day date,
  to_day date,
  n bigint,
  success_n bigint,
  success_rate double precision,
  reward_n bigint,
  mean_reward double precision,
  reward_se double precision,
  cost_n bigint,
  cost_usd numeric,
  mean_cost_usd numeric,
  cost_per_success_usd numeric,
  input_tokens bigint,
  output_tokens bigint,
  latency_n bigint,
  mean_latency_ms double precision,
  latency_p50_ms double precision,
  latency_p95_ms double precision
)
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_tenants text[] := routeledger.bound_tenants();
begin
  if p_tenant_id = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (v_tenants) then
    perform routeledger._raise_fault('RL110 tenant_id');
  elsif p_from is null then
    perform routeledger._raise_fault('RL101 from');
  elsif p_to is null then
    perform routeledger._raise_fault('RL101 to');
  elsif not isfinite(p_from) then
    perform routeledger._raise_fault('RL109 from');
  elsif not isfinite(p_to) then
    perform routeledger._raise_fault('RL109 to');
  elsif p_to < p_from then
    perform routeledger._raise_fault('RL103 to not before from');
  end if;

  return query
  select
    w.tenant_id, w.model_key, w.task_type, p_from, p_to,
    w.n, w.success_n, w.success_n::double precision / nullif(w.success_of, 0),
    w.reward_n, w.reward_sum / nullif(w.reward_n, 0),
    case when w.reward_n > 1 then
      sqrt(greatest(w.reward_sq_sum - w.reward_sum * (w.reward_sum / w.reward_n), 0) / (w.reward_n - 1) / w.reward_n) end,
    w.cost_n, w.cost_usd, w.cost_usd / nullif(w.cost_n, 0), w.cost_of_success / nullif(w.cost_success_n, 0),
    w.input_tokens, w.output_tokens,
    w.latency_n, w.latency_sum_ms / nullif(w.latency_sum_of, 0), routeledger._bin_latency(q.p50), routeledger._bin_latency(q.p95)
  from (
    select
      b.tenant_id, b.model_key, b.task_type,
      sum(b.n)::bigint as n,
      sum(b.success_n)::bigint as success_n,
      sum(b.n) filter (where b.success_n is not null)::double precision as success_of,
      sum(b.reward_n)::bigint as reward_n,
      sum(b.reward_sum) as reward_sum,
      case when bool_and(b.reward_sq_sum is not null) then sum(b.reward_sq_sum) end as reward_sq_sum,
      sum(b.cost_n)::bigint as cost_n,
      sum(b.cost_usd) as cost_usd,
      sum(b.cost_success_n) as cost_success_n,
      sum(b.cost_usd) filter (where b.cost_success_n is not null) as cost_of_success,
      sum(b.input_tokens)::bigint as input_tokens,
      sum(b.output_tokens)::bigint as output_tokens,
      sum(b.latency_n)::bigint as latency_n,
      sum(b.latency_n) filter (where b.latency_sum_ms is not null)::double precision as latency_sum_of,
      sum(b.latency_sum_ms) as latency_sum_ms,
      array_agg(row(b.latency_bins, b.latency_counts)::routeledger.latency_sketch) as sketches
    from routeledger.model_performance_buckets b
    where b.day >= p_from and b.day < p_to
      and (p_tenant_id is null or b.tenant_id = p_tenant_id)
      and (v_tenants is null or b.tenant_id = any (v_tenants))
      and (p_task_type is null or b.task_type = p_task_type)
    group by b.tenant_id, b.model_key, b.task_type
  ) w
  cross join lateral (
    select
      min(c.bin) filter (where c.upto >= ceil(0.5::double precision * c.total)) as p50,
      min(c.bin) filter (where c.upto >= ceil(0.95::double precision * c.total)) as p95
    from (
      select x.bin, sum(sum(x.n)) over (order by x.bin) as upto, sum(sum(x.n)) over () as total
      from unnest(w.sketches) k
      cross join lateral unnest(k.bins, k.counts) x (bin, n)
      group by x.bin
    ) c
  ) q;
end
$$;

-- The last window_days days, today included (UTC).
create or replace view routeledger.model_performance
with (security_barrier = true)
as
select
  w.window_days,
  t.tenant_id,
  p.model_key,
  p.task_type,
  p.from_day,
  p.to_day,
  p.n,
  p.success_n,
  p.success_rate,
  p.reward_n,
  p.mean_reward,
  p.reward_se,
  p.cost_n,
  p.cost_usd,
  p.mean_cost_usd,
  p.cost_per_success_usd,
  p.input_tokens,
  p.output_tokens,
  p.latency_n,
  p.mean_latency_ms,
  p.latency_p50_ms,
  p.latency_p95_ms
from (select (routeledger.clock() at time zone 'UTC')::date as day) today
cross join generate_series(1, 366) w (window_days)
cross join lateral (
  select distinct b.tenant_id
  from routeledger.model_performance_buckets b
  where b.day > today.day - w.window_days and b.day <= today.day
    and ((select routeledger.bound_tenants()) is null or b.tenant_id = any ((select routeledger.bound_tenants())::text[]))
) t
cross join lateral routeledger.model_performance_between(t.tenant_id, today.day - w.window_days + 1, today.day + 1) p;
