-- 000 · Before anything else: one transaction, one installer at a time, and a look at what is already here.
--
-- The assembled file runs the same under `psql -v ON_ERROR_STOP=1 -f` and through a driver, as one
-- transaction, as any role that may create a schema in this database (or owns an empty one of that name).
-- Running it again at the same version changes nothing.

begin isolation level read committed;

set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;
set local check_function_bodies = on;

do $pre$
declare
  v_schema record;
  v_version text;
begin
  if current_setting('server_version_num')::integer < 150000 then
    raise exception using
      errcode = 'RL903',
      message = 'routeledger needs PostgreSQL 15 or later',
      detail = jsonb_build_object('server_version', current_setting('server_version'))::text,
      hint = 'Install into a server of major 15, 16, 17 or 18.';
  end if;

  -- Installers queue here, so that twenty at once do the work once. Without a time limit: a waiting
  -- installer is doing no harm, and the one it waits for holds no lock that a reader or writer needs.
  -- After it only queries are asked what exists: a name look-up might answer from before the wait.
  perform pg_advisory_xact_lock(hashtextextended('routeledger.install', 0));
  set local lock_timeout = '15s';

  select n.oid, n.nspowner::regrole as owner, pg_has_role(n.nspowner, 'member') as ours into v_schema
  from pg_namespace n
  where n.nspname = 'routeledger';
  if not found then
    execute 'create schema routeledger';
    return;
  end if;

  -- The version is read from the source of version(), not by calling it: it may be a stranger's.
  select substring(p.prosrc from '''([0-9.]+)''') into v_version
  from pg_proc p
  where p.pronamespace = v_schema.oid and p.proname = 'version' and p.pronargs = 0;
  if not v_schema.ours
    or (v_version is null and (
      exists (select from pg_class c where c.relnamespace = v_schema.oid)
      or exists (select from pg_proc p where p.pronamespace = v_schema.oid)))
  then
    raise exception using
      errcode = 'RL901',
      message = 'a schema named routeledger exists and is not ours',
      detail = jsonb_build_object('owner', v_schema.owner)::text,
      hint = 'Rename or drop that schema, install as its owner, or install into another database.';
  end if;
  if v_version <> '0.6.0' then
    raise exception using
      errcode = 'RL902',
      message = 'another version of routeledger is installed',
      detail = jsonb_build_object('installed', v_version, 'this', '0.6.0')::text,
      hint = 'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.';
  end if;
end
$pre$;

-- The four roles are shared by all databases of a cluster. An installer that may not create roles goes
-- on without them: grants are then given to those that exist, and `routeledger doctor` says which do not.
do $roles$
declare
  v_role text;
begin
  foreach v_role in array array['routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin']
  loop
    if not exists (select from pg_roles r where r.rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when insufficient_privilege then
          raise notice 'role % was not created: % may not create roles', v_role, current_user;
        when duplicate_object or unique_violation then
          null; -- another database of this cluster was faster
      end;
    end if;
  end loop;
end
$roles$;
