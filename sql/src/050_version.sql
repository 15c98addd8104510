-- 050 · Version: what is installed, since when, and by whom.

create table if not exists routeledger.install_log (
  id uuid not null default gen_random_uuid(),
  action text not null,
  from_version text,
  to_version text not null,
  installed_at timestamptz not null default clock_timestamp(),
  installed_by name not null default current_user,
  server_version text not null default current_setting('server_version'),
  constraint install_log_pkey primary key (id),
  constraint install_log_action_check check (action in ('install', 'upgrade'))
);

-- Returns the version of the installed schema.
-- Locks: none. Errors: none.
create or replace function routeledger.version()
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select '0.6.0'
$$;
