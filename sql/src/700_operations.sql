-- 700 · Operations: what a scheduler runs.

-- Makes the partitions of today and of the time ahead (settings.partitions_ahead periods of
-- settings.partition_width, or the interval given), so that no write has to. Safe to run at any time, from
-- anywhere, as often as wanted. Returns what it made.
-- Locks: share update exclusive on the ledger's tables where one is missing. Errors: RL103.
create or replace function routeledger.maintain(
  p_ahead interval default null
)
returns table (
  action text,
  object text
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
  v_now timestamptz := routeledger.clock();
  v_at timestamptz;
  v_width interval;
  v_suffix text;
begin
  select s.* into v_settings from routeledger.settings s;
  if p_ahead not between interval '0' and interval '5 years' then
    perform routeledger._raise_fault('RL103 ahead 0 to 5 years');
  end if;
  v_width := ('1 ' || v_settings.partition_width)::interval;
  for v_at in
    select t from generate_series(
      date_trunc(v_settings.partition_width, v_now at time zone 'UTC'),
      v_now at time zone 'UTC' + coalesce(p_ahead, v_settings.partitions_ahead * v_width),
      v_width) t
  loop
    v_at := greatest(v_at at time zone 'UTC', v_now);
    v_suffix := routeledger._ensure_partition(v_at, v_settings.partition_width);
    if v_suffix is not null then
      action := 'created';
      object := 'routeledger.routing_outcomes_' || v_suffix;
      return next;
    end if;
  end loop;
end
$$;
