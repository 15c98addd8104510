-- 210 · Partitions: made ahead by maintain(), and made on the spot by a write that finds none.

-- Returns the name suffix of the whole partition of that width that holds p_at: p20261116w for the week of that Monday, UTC.
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._partition_suffix(
  p_at timestamptz,
  p_width text
)
returns text
language sql
stable
parallel safe
security invoker
as $$
  select to_char(date_trunc(p_width, p_at at time zone 'UTC'), '"p"YYYYMMDD') || left(p_width, 1)
$$;

-- Tells whether the whole partition that holds p_at is there, attached, as the catalogue says now (not as a
-- transaction's snapshot says). False for one of another width: _ensure_partition() looks closer. A leaf can be
-- seen a moment before its maker has told every session of it; pg_relation_is_updatable() takes a lock that
-- waits for that moment's end. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: access share on the leaf. Errors: none.
create or replace function routeledger._has_partition(
  p_at timestamptz,
  p_width text
)
returns boolean
language sql
stable
parallel safe
security invoker
as $$
  select pg_partition_root(to_regclass('routeledger.routing_outcomes_' || routeledger._partition_suffix(p_at, p_width))) is not null
    and pg_relation_is_updatable(to_regclass('routeledger.routing_outcomes_' || routeledger._partition_suffix(p_at, p_width)), false) is not null
$$;

-- Returns the partitions of the ledger with their bounds; one row stands for the leaves of all four tables.
-- Locks: none. Errors: none.
create or replace function routeledger._partitions()
returns table (
  suffix text,
  lower_id uuid,
  upper_id uuid
)
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
  select
    substr(c.relname, length('routing_outcomes_') + 1),
    (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([0-9a-f-]{36})''\)'))[1]::uuid,
    (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([0-9a-f-]{36})''\)'))[1]::uuid
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'routeledger.routing_outcomes'::regclass
  order by 2
$$;

-- Makes sure that a decision dated p_at has its four leaves; returns their suffix when they were made now, else null.
-- Neither readers nor writers of the ledger wait: a leaf is made apart and attached. Where partitions of
-- another width lie around, the new one fills the gap between them.
-- Locks: share update exclusive on routing_outcomes (one maker at a time), inferences, inference_payloads, judge_verdicts, in this order. Errors: none.
create or replace function routeledger._ensure_partition(
  p_at timestamptz,
  p_width text
)
returns text
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_id uuid := routeledger._uuid_floor(p_at);
  v_whole_lower uuid := routeledger._uuid_floor(date_trunc(p_width, p_at at time zone 'UTC') at time zone 'UTC');
  v_whole_upper uuid := routeledger._uuid_floor((date_trunc(p_width, p_at at time zone 'UTC') + ('1 ' || p_width)::interval) at time zone 'UTC');
  v_lower uuid;
  v_upper uuid;
  v_suffix text;
  v_table text;
begin
  if exists (
    select from routeledger._partitions() p
    where v_id >= p.lower_id and v_id < p.upper_id
      and pg_relation_is_updatable(to_regclass('routeledger.routing_outcomes_' || p.suffix), false) is not null)
  then
    return null;
  end if;
  lock table only routeledger.routing_outcomes in share update exclusive mode;
  if routeledger._has_partition(p_at, p_width) or exists (select from routeledger._partitions() p where v_id >= p.lower_id and v_id < p.upper_id) then
    return null;
  end if;

  -- Only a partition that spans its whole period bears the name by which a write looks for it.
  v_lower := greatest(v_whole_lower, (select p.upper_id from routeledger._partitions() p where p.upper_id <= v_id order by 1 desc limit 1));
  v_upper := least(v_whole_upper, (select p.lower_id from routeledger._partitions() p where p.lower_id > v_id order by 1 limit 1));
  v_suffix := routeledger._partition_suffix(p_at, p_width);
  if v_lower <> v_whole_lower or v_upper <> v_whole_upper then
    v_suffix := to_char(routeledger._floor_time(v_lower) at time zone 'UTC', '"p"YYYYMMDD"x"');
  end if;
  while coalesce(
    to_regclass('routeledger.routing_outcomes_' || v_suffix),
    to_regclass('routeledger.inferences_' || v_suffix),
    to_regclass('routeledger.inference_payloads_' || v_suffix),
    to_regclass('routeledger.judge_verdicts_' || v_suffix)) is not null
  loop
    v_suffix := v_suffix || 'x'; -- a table that was detached keeps its name
  end loop;

  foreach v_table in array array['routing_outcomes', 'inferences', 'inference_payloads', 'judge_verdicts'] loop
    execute format(
      'create table routeledger.%I (like routeledger.%I including defaults including constraints) with (fillfactor = %s)',
      v_table || '_' || v_suffix, v_table, case v_table when 'inference_payloads' then 100 else 85 end);
    execute format(
      'alter table routeledger.%I attach partition routeledger.%I for values from (%L) to (%L)',
      v_table, v_table || '_' || v_suffix, v_lower, v_upper);
  end loop;
  execute format(
    'alter table routeledger.%I add constraint outcome_links_own_attempt'
    ' foreign key (tenant_id, id, inference_id) references routeledger.%I (tenant_id, outcome_id, id)',
    'routing_outcomes_' || v_suffix, 'inferences_' || v_suffix);
  return v_suffix;
end
$$;
