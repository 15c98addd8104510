-- 020 · The clock, and ids that carry their time.

-- Returns the time that the ledger believes in: the real one, or the one that set_clock() gave to this
-- session. A fake time is believed only where the session's login is an admin or the schema's owner,
-- so that no writer can date a record as it likes.
-- Locks: none. Errors: none.
create or replace function routeledger.clock()
returns timestamptz
language plpgsql
volatile
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if coalesce(current_setting('routeledger.fake_now', true), '') = ''
    or not routeledger._is_admin(session_user)
  then
    return clock_timestamp();
  end if;
  return to_timestamp(current_setting('routeledger.fake_now')::double precision);
end
$$;

-- Returns clock(), sparing the call where no fake time is set. Without a pinned path so that the planner can
-- inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._now()
returns timestamptz
language sql
volatile
parallel restricted
security invoker
as $$
  select case
    when coalesce(current_setting('routeledger.fake_now', true), '') = '' then clock_timestamp()
    else routeledger.clock()
  end
$$;

-- Tells whether a role may act as routeledger's administrator: it owns the schema, or is (a member of) routeledger_admin.
-- Locks: none. Errors: none.
create or replace function routeledger._is_admin(
  p_role name
)
returns boolean
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select pg_has_role(p_role, n.nspowner, 'member')
      or coalesce(pg_has_role(p_role, to_regrole('routeledger_admin')::oid, 'member'), false)
  from pg_namespace n
  where n.nspname = 'routeledger'
$$;

-- Sets the time that clock() returns in this session until it is set again; null gives back the real one.
-- Locks: none. Errors: RL109.
create or replace function routeledger.set_clock(
  p_now timestamptz
)
returns timestamptz
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if not isfinite(p_now) or p_now not between timestamptz '1971-01-01 00:00:00+00' and timestamptz '5000-01-01 00:00:00+00' then
    perform routeledger._raise_fault('RL109 now from 1971 to 5000');
  end if;
  -- Seconds since the epoch mean the same under any DateStyle and time zone.
  perform set_config('routeledger.fake_now', coalesce(extract(epoch from p_now)::text, ''), false);
  return routeledger.clock();
end
$$;

-- Returns a UUID version 7 (RFC 9562, method 3): 48 bits of milliseconds, 12 bits of the millisecond's
-- fraction, 62 random bits. Later calls sort later, to a quarter of a microsecond.
-- Locks: none. Errors: none.
create or replace function routeledger.uuid_v7()
returns uuid
language plpgsql
volatile
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return routeledger._uuid_v7_at(routeledger.clock());
end
$$;

-- Returns a fresh UUID version 7 dated p_at. Without a pinned path so that the planner can inline it; callers
-- are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._uuid_v7_at(
  p_at timestamptz
)
returns uuid
language sql
volatile
parallel safe
security invoker
as $$
  select encode(
    overlay(
      uuid_send(gen_random_uuid())
      placing int8send(
        (floor(extract(epoch from p_at) * 1000)::bigint << 16) | 28672 | ((extract(microseconds from p_at)::bigint % 1000) * 4096 / 1000))
      from 1 for 8),
    'hex')::uuid
$$;

-- Returns the time in the first 48 bits of a UUID, whatever its version: that of a bound which _uuid_floor()
-- made. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._floor_time(
  p_id uuid
)
returns timestamptz
language sql
immutable
parallel safe
security invoker
as $$
  select to_timestamp((('x' || replace(left(p_id::text, 13), '-', ''))::bit(48)::bigint) / 1000.0::double precision)
$$;

-- Returns the time that a UUID version 7 carries, to the millisecond; null for any other UUID. Without
-- a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._id_time(
  p_id uuid
)
returns timestamptz
language sql
immutable
parallel safe
security invoker
as $$
  select case
    when substr(p_id::text, 15, 1) = '7' and substr(p_id::text, 20, 1) in ('8', '9', 'a', 'b')
    then routeledger._floor_time(p_id)
  end
$$;

-- Returns the time that a UUID version 7 carries, to the millisecond; null for any other UUID.
-- Locks: none. Errors: none.
create or replace function routeledger.uuid_v7_time(
  p_id uuid
)
returns timestamptz
language plpgsql
immutable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return routeledger._id_time(p_id);
end
$$;

-- Returns the lowest UUID of a millisecond: every UUID version 7 dated p_at or later sorts at or above it.
-- Locks: none. Errors: none.
create or replace function routeledger._uuid_floor(
  p_at timestamptz
)
returns uuid
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select (lpad(to_hex(greatest((extract(epoch from p_at) * 1000)::bigint, 0)), 12, '0') || '00000000000000000000')::uuid
$$;
