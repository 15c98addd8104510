-- 700 · Operations: what a scheduler runs.

-- Makes the partitions of today and of the time ahead (settings.partitions_ahead periods of
-- settings.partition_width, or the interval given), so that no write has to, and drops the row images of repairs
-- that are older than settings.repair_retention, the counters of budgets older than settings.budget_retention, cooldowns
-- that are long over, and leases of judges on outcomes that were dropped. Safe to run at any time, from anywhere, as often as wanted. Returns
-- what it made and dropped.
-- Locks: share update exclusive on the ledger's tables where a partition is missing; access exclusive on images that
-- are dropped; counters and cooldowns that go (skip locked); leases of judges that go. Errors: RL103.
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
  v_at timestamptz := v_now;
  v_until timestamptz;
  v_suffix text;
begin
  select s.* into v_settings from routeledger.settings s;
  if p_ahead not between interval '0' and interval '5 years' then
    perform routeledger._raise_fault('RL103 ahead 0 to 5 years');
  elsif extract(epoch from p_ahead) > 200 * extract(epoch from ('1 ' || v_settings.partition_width)::interval) then
    -- each takes a dozen locks until the end of the transaction, and the server's table of locks has an end
    perform routeledger._raise_fault('RL103 ahead 200 partitions at a time');
  end if;
  v_until := (v_now at time zone 'UTC' + coalesce(p_ahead, v_settings.partitions_ahead * ('1 ' || v_settings.partition_width)::interval)) at time zone 'UTC';

  -- From partition to partition, whatever their widths: the next one begins where this one ends.
  while v_at <= v_until loop
    v_suffix := routeledger._ensure_partition(v_at, v_settings.partition_width);
    if v_suffix is not null then
      action := 'created';
      object := 'routeledger.routing_outcomes_' || v_suffix;
      return next;
    end if;
    select routeledger._floor_time(p.upper_id) into strict v_at
    from routeledger._partitions() p
    where routeledger._uuid_floor(v_at) >= p.lower_id and routeledger._uuid_floor(v_at) < p.upper_id;
  end loop;

  perform routeledger._forget_policy(v_settings, v_now);
  perform routeledger._forget_judgements(v_now);
  return query select d.action, d.object from routeledger._drop_old_images() d;
end
$$;
