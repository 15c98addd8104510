-- 040 · Tenants: who is calling, and for whom may that role write and read?

create table if not exists routeledger.tenant_grants (
  tenant_id text not null,
  role_name name not null,
  granted_at timestamptz not null default clock_timestamp(),
  revoked_at timestamptz,
  constraint tenant_grants_pkey primary key (tenant_id, role_name)
);

-- Returns the tenants to which one role is bound, or null when it is bound to none and may use all.
-- The owner of the schema and superusers are never bound.
-- Locks: none. Errors: none.
create or replace function routeledger._tenants_of(
  p_role name
)
returns text[]
language sql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when count(*) = 0 or pg_has_role(p_role, (select n.nspowner from pg_namespace n where n.nspname = 'routeledger'), 'member') then null
    else coalesce(array_agg(g.tenant_id order by g.tenant_id) filter (where g.revoked_at is null), '{}')
  end
  from routeledger.tenant_grants g
  join pg_roles r on r.rolname = g.role_name
  where pg_has_role(p_role, r.oid, 'member')
$$;

-- Returns the tenants to which the caller is bound, or null when it is bound to none and may use all. The
-- caller is bound by its login and by the role that SET ROLE chose: by both where both are bound, so that neither
-- sheds a binding.
-- Locks: none. Errors: none.
create or replace function routeledger.bound_tenants()
returns text[]
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_of_login text[];
  v_of_role text[];
begin
  if not (select s.tenants_bound from routeledger.settings s) then
    return null;
  end if;
  v_of_login := routeledger._tenants_of(session_user);
  -- Within a SECURITY DEFINER routine current_user is the owner; the setting still says whom the caller chose.
  if current_setting('role') not in ('none', session_user) then
    v_of_role := routeledger._tenants_of(current_setting('role')::name);
  end if;
  if v_of_login is null or v_of_role is null then
    return coalesce(v_of_login, v_of_role);
  end if;
  return array(select unnest(v_of_login) intersect select unnest(v_of_role) order by 1);
end
$$;

-- Binds a role to a tenant: from then on it, and every role that inherits it, may use only the tenants
-- to which it is bound, in routines and in views alike. Returns false when it was bound already.
-- Locks: the grant's row, then the settings row. Errors: RL101, RL108, RL203.
create or replace function routeledger.grant_tenant(
  p_role name,
  p_tenant_id text
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_created boolean;
begin
  if p_role is null then
    perform routeledger._raise_fault('RL101 role');
  elsif coalesce(p_tenant_id, '') = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif not exists (select from pg_roles r where r.rolname = p_role) then
    perform routeledger._raise('RL203', jsonb_build_object('role', p_role));
  end if;
  insert into routeledger.tenant_grants as g (tenant_id, role_name) values (p_tenant_id, p_role)
  on conflict (tenant_id, role_name) do update set revoked_at = null, granted_at = excluded.granted_at
  where g.revoked_at is not null;
  v_created := found;
  update routeledger.settings set tenants_bound = true where not tenants_bound;
  return v_created;
end
$$;

-- Takes a binding back. The role stays bound: without any tenant left it may use none, never all
-- (unbind_role() lifts the binding itself). Returns false when there was no such binding.
-- Locks: the grant's row. Errors: RL101.
create or replace function routeledger.revoke_tenant(
  p_role name,
  p_tenant_id text
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_role is null then
    perform routeledger._raise_fault('RL101 role');
  elsif coalesce(p_tenant_id, '') = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  end if;
  update routeledger.tenant_grants set revoked_at = clock_timestamp()
  where tenant_id = p_tenant_id and role_name = p_role and revoked_at is null;
  return found;
end
$$;

-- Lifts the binding of a role altogether: it may then use every tenant. Returns false when it was unbound.
-- Locks: the grants' rows, then the settings row. Errors: RL101.
create or replace function routeledger.unbind_role(
  p_role name
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_removed boolean;
begin
  if p_role is null then
    perform routeledger._raise_fault('RL101 role');
  end if;
  delete from routeledger.tenant_grants where role_name = p_role;
  v_removed := found;
  update routeledger.settings set tenants_bound = exists (select from routeledger.tenant_grants);
  return v_removed;
end
$$;
