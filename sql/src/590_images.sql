-- 590 · Repairs and their images: every row that a repair changes is kept first, as it was.
--
-- A repair is a set of row differences: rows removed, rows added, rows changed (before and after), and rows that
-- stayed because of it (kept). They are held in ordinary tables of the target's own column types, one for each
-- table that the repair touches: jsonb would change values (array bounds, the blanks of json, -0, NaN).
-- An image has the columns of its target under their own names, and two of ours whose prefix no column of the
-- target begins with: <prefix>no, which the before and the after of one row share, and <prefix>what.
--
-- Nobody but the owner writes the registry: a repair is opened, filled and closed through the routines here. The
-- role that opens one must be able to change the target, and writes its images itself, with its own privileges.
--
-- Lock order: the repair's row, then the images in the order of their numbers.

create table if not exists routeledger.repairs (
  id bigint generated always as identity,
  kind text not null,
  target text not null,
  reason text not null default '',
  role_name name not null,
  login name not null,
  state text not null default 'open',
  started_at timestamptz not null default routeledger.clock(),
  finished_at timestamptz,
  before_count bigint,
  after_count bigint,
  removed bigint not null default 0,
  changed bigint not null default 0,
  added bigint not null default 0,
  details jsonb not null default '{}',
  undoes bigint,
  undone_by bigint,
  images_dropped_at timestamptz,
  constraint repairs_pkey primary key (id),
  constraint repairs_undoes_fkey foreign key (undoes) references routeledger.repairs (id),
  constraint repairs_undone_by_fkey foreign key (undone_by) references routeledger.repairs (id),
  constraint repairs_kind_check check (kind in ('collapse', 'orphans', 'undo')),
  constraint repairs_state_check check (state in ('open', 'done', 'undone')),
  constraint repairs_undone_check check ((state = 'undone') = (undone_by is not null))
);

create index if not exists repairs_target_idx on routeledger.repairs (target, id);

create table if not exists routeledger.repair_images (
  repair_id bigint not null,
  n integer not null,
  target text not null,
  columns jsonb not null,
  image text not null,
  prefix text not null,
  constraint repair_images_pkey primary key (repair_id, n),
  constraint repair_images_target_key unique (repair_id, target),
  constraint repair_images_repair_id_fkey foreign key (repair_id) references routeledger.repairs (id)
);

-- Returns the role on whose behalf the session calls, also within a SECURITY DEFINER routine: the one that SET
-- ROLE chose, else the login.
-- Locks: none. Errors: none.
create or replace function routeledger._caller_role()
returns name
language sql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when coalesce(current_setting('role', true), 'none') in ('none', '') then session_user
    else current_setting('role')::name
  end
$$;

-- Returns the name of a table with its schema, quoted where it has to be, the same in every session; null for a table
-- that the calling statement itself has made.
-- Locks: none. Errors: none.
create or replace function routeledger._qualified(
  p_table regclass
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
as $$
begin
  return (
    select format('%I.%I', n.nspname, c.relname)
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = p_table);
end
$$;

-- Returns the columns of a table, quoted, in order and separated by commas: `select <this> from` its rows is what
-- an image takes. With an alias each is written alias.column.
-- Locks: none. Errors: none.
create or replace function routeledger._image_columns(
  p_target regclass,
  p_alias text default null
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select string_agg(coalesce(p_alias || '.', '') || quote_ident(a.attname), ', ' order by a.attnum)
    from pg_attribute a
    where a.attrelid = p_target and a.attnum > 0 and not a.attisdropped);
end
$$;

-- Describes the columns of a table as a JSON array in order: name, type, collation, and whether the value is
-- generated. Types and collations are written in full.
-- Locks: none. Errors: none.
create or replace function routeledger._column_list(
  p_target regclass
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return (
    select coalesce(
      jsonb_agg(jsonb_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'collation', case when c.oid is not null then format('%I.%I', s.nspname, c.collname) end,
        'generated', a.attgenerated <> '') order by a.attnum),
      '[]')
    from pg_attribute a
    left join pg_collation c on c.oid = a.attcollation
    left join pg_namespace s on s.oid = c.collnamespace
    where a.attrelid = p_target and a.attnum > 0 and not a.attisdropped);
end
$$;

-- Tells whether the calling role may repair a table: it can change its rows, or the table is the ledger's own and
-- the role is an admin.
-- Locks: none. Errors: none.
create or replace function routeledger._may_repair(
  p_target regclass
)
returns boolean
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return has_table_privilege(routeledger._caller_role(), p_target, 'update, delete')
    or (routeledger._is_admin(routeledger._caller_role())
      and (select c.relnamespace = 'routeledger'::regnamespace from pg_class c where c.oid = p_target));
end
$$;

-- Returns what the registry knows of a repair (null: nothing), and of its images a JSON array in their order. Only for
-- the role that made the repair and its members, for those who may read its images, and for admins; a role that is
-- bound to tenants sees its own.
-- Locks: none. Errors: RL110, 42501.
create or replace function routeledger._read_repair(
  p_repair_id bigint,
  out repair routeledger.repairs,
  out images jsonb
)
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_caller name := routeledger._caller_role();
begin
  select r.* into repair from routeledger.repairs r where r.id = p_repair_id;
  select coalesce(jsonb_agg(to_jsonb(i) || jsonb_build_object('image', format('routeledger.%I', i.image)) order by i.n), '[]')
  into images
  from routeledger.repair_images i
  where i.repair_id = p_repair_id;
  if repair.id is null or (repair.role_name = v_caller and (repair.login = session_user or routeledger.bound_tenants() is null)) then
    return;
  elsif routeledger._is_admin(v_caller) and routeledger.bound_tenants() is not null then
    perform routeledger._raise('RL110', jsonb_build_object('repair_id', p_repair_id, 'role', repair.role_name));
  elsif not routeledger._is_admin(v_caller)
    and not coalesce(pg_has_role(v_caller, to_regrole(quote_ident(repair.role_name))::oid, 'member'), false)
    and not coalesce((
      select bool_or(has_table_privilege(v_caller, c.oid, 'select'))
      from jsonb_to_recordset(images) i (image text)
      join pg_class c on c.oid = to_regclass(i.image)), false)
  then
    raise exception using
      errcode = '42501',
      message = 'permission denied: a repair is seen and undone by the role that made it, the owner of its table, or an admin',
      detail = jsonb_build_object('repair_id', p_repair_id, 'role', v_caller)::text,
      hint = 'Call as one of them.';
  end if;
end
$$;

-- Enters a repair and returns its id. Only a role that may change the target's rows opens one, and the undo of a repair
-- (p_undoes) only a role that may see that repair.
-- Locks: none. Errors: RL101, RL102, RL108, RL110, RL117, RL206, 42501.
create or replace function routeledger._open_repair(
  p_kind text,
  p_target regclass,
  p_reason text,
  p_details jsonb default '{}',
  p_undoes bigint default null
)
returns bigint
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_id bigint;
begin
  if p_target is null then
    perform routeledger._raise_fault('RL101 table');
  elsif p_kind is null or p_kind not in ('collapse', 'orphans', 'undo') then
    perform routeledger._raise_fault('RL102 kind collapse, orphans, undo');
  elsif length(p_reason) > 2000 then
    perform routeledger._raise_fault('RL108 reason 2000 characters');
  elsif not exists (select from pg_class c where c.oid = p_target and c.relkind in ('r', 'p') and c.relpersistence <> 't')
    or routeledger._image_columns(p_target) is null
  then
    perform routeledger._raise('RL117', jsonb_build_object('table', p_target::text, 'reason', 'a repair needs an ordinary or partitioned table with columns that is not temporary'));
  elsif not routeledger._may_repair(p_target) then
    raise exception using
      errcode = '42501',
      message = 'permission denied: a repair is opened by a role that may change the rows of its table',
      detail = jsonb_build_object('table', routeledger._qualified(p_target), 'role', routeledger._caller_role())::text,
      hint = 'Call as a role that holds UPDATE or DELETE on the table.';
  elsif (p_kind = 'undo' or p_undoes is not null)
    and (p_kind <> 'undo' or (select (r.repair).target from routeledger._read_repair(p_undoes) r) is distinct from routeledger._qualified(p_target))
  then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_undoes, 'table', routeledger._qualified(p_target)));
  end if;
  -- the definition of an index is taken from the catalogue only, because an undo will run it
  insert into routeledger.repairs (kind, target, reason, role_name, login, details, undoes)
  values (
    p_kind, routeledger._qualified(p_target), coalesce(p_reason, ''), routeledger._caller_role(), session_user,
    coalesce(p_details, '{}') - 'index', p_undoes)
  returning id into v_id;
  return v_id;
end
$$;

-- Returns an open repair of the caller's, locked, or raises: the role that opened it, a member of that role, or an admin.
-- Locks: the repair's row. Errors: RL206, 42501.
create or replace function routeledger._own_repair(
  p_repair_id bigint
)
returns routeledger.repairs
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_repair routeledger.repairs;
begin
  select r.* into v_repair from routeledger.repairs r where r.id = p_repair_id and r.state = 'open' for no key update;
  if v_repair.id is null then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_repair_id, 'state', 'open'));
  elsif not routeledger._is_admin(routeledger._caller_role())
    and not coalesce(pg_has_role(routeledger._caller_role(), to_regrole(quote_ident(v_repair.role_name))::oid, 'member'), false)
  then
    raise exception using
      errcode = '42501',
      message = 'permission denied: this repair was opened by another role',
      detail = jsonb_build_object('repair_id', p_repair_id, 'role', v_repair.role_name)::text,
      hint = 'Call as the role that opened it, or as an admin.';
  end if;
  return v_repair;
end
$$;

-- Returns the table that keeps a repair's rows of one target, and the prefix of our two columns in it; makes it at
-- the first call for that target. The calling role may then write it until the repair is closed, and read it after
-- that, as the target's owner may.
-- Locks: the repair's row. Errors: RL101, RL206, RL117, 42501.
create or replace function routeledger._image_of(
  p_repair_id bigint,
  p_target regclass
)
returns table (
  image regclass,
  prefix text
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_repair routeledger.repairs;
  v_known routeledger.repair_images;
  v_columns jsonb;
  v_ours boolean;
  v_owner name;
  v_image regclass;
begin
  if p_repair_id is null then
    perform routeledger._raise_fault('RL101 repair_id');
  elsif p_target is null then
    perform routeledger._raise_fault('RL101 table');
  end if;
  v_repair := routeledger._own_repair(p_repair_id);
  if not routeledger._may_repair(p_target) then
    raise exception using
      errcode = '42501',
      message = 'permission denied: images are kept for a role that may change the rows of the table',
      detail = jsonb_build_object('table', routeledger._qualified(p_target), 'role', routeledger._caller_role())::text,
      hint = 'Call as a role that holds UPDATE or DELETE on the table.';
  end if;

  v_columns := routeledger._column_list(p_target);
  select c.relnamespace = 'routeledger'::regnamespace, o.rolname into v_ours, v_owner
  from pg_class c
  join pg_roles o on o.oid = c.relowner
  where c.oid = p_target;
  select i.* into v_known from routeledger.repair_images i where i.repair_id = p_repair_id and i.target = routeledger._qualified(p_target);
  if v_known.n is null then
    v_known.repair_id := p_repair_id;
    v_known.target := routeledger._qualified(p_target);
    v_known.columns := v_columns;
    select coalesce(max(i.n), 0) + 1 into v_known.n from routeledger.repair_images i where i.repair_id = p_repair_id;
    v_known.image := format('repair_rows_%s_%s', p_repair_id, v_known.n);
    select x.prefix into v_known.prefix
    from (select 0 as k, '_rl_' as prefix union all select k, format('_rl%s_', k) from generate_series(1, 2000) k) x
    where not exists (select from jsonb_array_elements(v_columns) c where starts_with(c ->> 'name', x.prefix))
    order by x.k
    limit 1;
    execute routeledger._fill(
      'create table routeledger.{image} ({columns}, {no} bigint not null, {what} text not null'
      ' check ({what} in (''removed'', ''before'', ''after'', ''added'', ''kept'')))',
      jsonb_build_object(
        'image', quote_ident(v_known.image),
        'columns', (
          select string_agg(format('%I %s%s', c ->> 'name', c ->> 'type', coalesce(' collate ' || (c ->> 'collation'), '')), ', ' order by k)
          from jsonb_array_elements(v_columns) with ordinality e (c, k)),
        'no', quote_ident(v_known.prefix || 'no'),
        'what', quote_ident(v_known.prefix || 'what')));
    insert into routeledger.repair_images values (v_known.*);
    execute format('revoke all on routeledger.%I from public', v_known.image);
    execute format('grant select on routeledger.%I to %I', v_known.image, v_owner);
  elsif v_known.columns <> v_columns then
    perform routeledger._raise('RL117', jsonb_build_object('table', v_known.target, 'reason', 'its columns have changed since this repair began'));
  end if;
  v_image := format('routeledger.%I', v_known.image)::regclass;
  execute format('grant %s on %s to %I', case when v_ours then 'select' else 'select, insert' end, v_image, routeledger._caller_role());
  return query select v_image, v_known.prefix;
end
$$;

-- Describes an index as the catalogue has it, the same in every session: schema, name, table, definition, validated, and
-- where it has them comment, constraint, constraint_definition and constraint_comment. Null when there is no such index.
-- Locks: none. Errors: none.
create or replace function routeledger._describe_index(
  p_index oid
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set quote_all_identifiers = off
set standard_conforming_strings = on
as $$
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return (
    select jsonb_strip_nulls(jsonb_build_object(
      'schema', n.nspname, 'name', c.relname, 'table', routeledger._qualified(i.indrelid),
      'definition', pg_get_indexdef(c.oid), 'validated', i.indisvalid, 'comment', obj_description(c.oid, 'pg_class'),
      'constraint', k.conname, 'constraint_definition', pg_get_constraintdef(k.oid),
      'constraint_comment', obj_description(k.oid, 'pg_constraint')))
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_constraint k on k.conindid = c.oid and k.conrelid = i.indrelid and k.contype in ('u', 'p', 'x')
    where i.indexrelid = p_index);
end
$$;

-- Notes the index that a repair made possible, or that an undo drops, with its definition as the catalogue has it,
-- so that an undo drops it and an undo of that makes it again. Only the owner of the index's table notes one, at
-- any time after the repair was opened.
-- Locks: the repair's row. Errors: RL206, RL117, 42501.
create or replace function routeledger._note_index(
  p_repair_id bigint,
  p_index regclass
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_index jsonb := routeledger._describe_index(p_index);
  v_target text;
begin
  select r.target into v_target from routeledger.repairs r where r.id = p_repair_id for no key update;
  if not found then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_repair_id));
  elsif v_index ->> 'table' is distinct from v_target then
    perform routeledger._raise('RL117', jsonb_build_object(
      'table', v_index ->> 'table', 'index', p_index::text, 'reason', 'the index is of another table than the repair'));
  elsif not exists (
    select
    from pg_class t
    join pg_namespace n on n.nspname = 'routeledger'
    where t.oid = v_target::regclass
      and (pg_has_role(routeledger._caller_role(), t.relowner, 'member') or pg_has_role(routeledger._caller_role(), n.nspowner, 'member')))
  then
    raise exception using
      errcode = '42501',
      message = 'permission denied: an index is noted by the owner of its table',
      detail = jsonb_build_object('table', v_target, 'role', routeledger._caller_role())::text,
      hint = 'Call as the owner of the table.';
  end if;
  update routeledger.repairs r
  set details = r.details || jsonb_build_object('index', v_index - 'table' - 'validated')
  where r.id = p_repair_id;
end
$$;

-- Closes a repair: what it says it did has to be what its images hold, and the rows of its target before and after
-- have to agree with that, or the whole repair is rolled back. From then on the images are read-only. Without counts
-- of rows (a repair of many transactions, beside which others wrote) only the images are compared.
-- Locks: the repair's row. Errors: RL206, RL313, 42501.
create or replace function routeledger._close_repair(
  p_repair_id bigint,
  p_before bigint,
  p_after bigint,
  p_removed bigint,
  p_changed bigint,
  p_added bigint,
  p_details jsonb
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_repair routeledger.repairs := routeledger._own_repair(p_repair_id);
  v_image routeledger.repair_images;
  v_writer regrole;
  v_counts bigint[];
  v_of_target bigint := 0;
  v_removed bigint := 0;
  v_before bigint := 0;
  v_after bigint := 0;
  v_pairs bigint := 0;
  v_added bigint := 0;
begin
  for v_image in select i.* from routeledger.repair_images i where i.repair_id = p_repair_id order by i.n loop
    execute format(
      $q$
        select array[
          count(*) filter (where %1$I = 'removed'),
          count(*) filter (where %1$I = 'before'),
          count(*) filter (where %1$I = 'after'),
          count(*) filter (where %1$I = 'added'),
          (select count(*) from (
            select from routeledger.%3$I where %1$I in ('before', 'after') group by %2$I having count(*) = 2 and count(distinct %1$I) = 2) x)]
        from routeledger.%3$I
      $q$,
      v_image.prefix || 'what', v_image.prefix || 'no', v_image.image)
    into v_counts;
    v_removed := v_removed + v_counts[1];
    v_before := v_before + v_counts[2];
    v_after := v_after + v_counts[3];
    v_added := v_added + v_counts[4];
    v_pairs := v_pairs + v_counts[5];
    if v_image.target = v_repair.target then
      v_of_target := v_counts[4] - v_counts[1];
    end if;
    for v_writer in
      select a.grantee::regrole
      from pg_class c
      cross join lateral aclexplode(c.relacl) a
      where c.oid = to_regclass(format('routeledger.%I', v_image.image)) and a.privilege_type = 'INSERT' and a.grantee <> c.relowner
    loop
      execute format('revoke insert on routeledger.%I from %s', v_image.image, v_writer);
    end loop;
  end loop;

  if (v_removed, v_before, v_after, v_pairs, v_added) is distinct from (p_removed, p_changed, p_changed, p_changed, p_added)
    or p_before + v_of_target <> p_after
  then
    perform routeledger._raise('RL313', jsonb_build_object(
      'repair_id', p_repair_id, 'table', v_repair.target, 'rows_before', p_before, 'rows_after', p_after,
      'counted', jsonb_build_object('removed', p_removed, 'changed', p_changed, 'added', p_added),
      'images', jsonb_build_object('removed', v_removed, 'before', v_before, 'after', v_after, 'pairs', v_pairs, 'added', v_added)));
  end if;
  update routeledger.repairs r
  set state = 'done', finished_at = routeledger.clock(), before_count = p_before, after_count = p_after,
    removed = p_removed, changed = p_changed, added = p_added,
    details = r.details || (coalesce(p_details, '{}') - 'index')
  where r.id = p_repair_id;
end
$$;

-- Marks a repair as undone by another, which the caller has opened. Returns false when it was undone already.
-- Locks: the row of the one, then of the other. Errors: RL206, 42501.
create or replace function routeledger._mark_undone(
  p_repair_id bigint,
  p_undone_by bigint
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_undo routeledger.repairs := routeledger._own_repair(p_undone_by);
begin
  if v_undo.kind <> 'undo' or v_undo.undoes is distinct from p_repair_id then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_undone_by, 'kind', 'undo', 'undoes', p_repair_id));
  end if;
  update routeledger.repairs r
  set state = 'undone', undone_by = p_undone_by, finished_at = coalesce(r.finished_at, routeledger.clock())
  where r.id = p_repair_id and r.state <> 'undone' and r.target = v_undo.target;
  return found;
end
$$;

-- Lets the calling role, which may see the repair, read the images of those of its tables that it may read and change
-- itself, without row security and under the owner they had: then they show it nothing that it could not have seen.
-- Locks: none. Errors: RL110, 42501.
create or replace function routeledger._share_images(
  p_repair_id bigint
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_caller name := routeledger._caller_role();
  v_image regclass;
begin
  for v_image in
    select m.id
    from jsonb_to_recordset((routeledger._read_repair(p_repair_id)).images) i (target text, image text, n integer)
    join pg_class c on c.oid = to_regclass(i.target)
    cross join lateral to_regclass(i.image) m (id)
    where m.id is not null
      and not has_table_privilege(v_caller, m.id, 'select')
      and has_table_privilege(c.relowner, m.id, 'select')
      and routeledger._may_repair(c.oid)
      and ((has_table_privilege(v_caller, c.oid, 'select') and not c.relrowsecurity) or c.relnamespace = 'routeledger'::regnamespace)
    order by i.n
  loop
    execute format('grant select on %s to %I', v_image, v_caller);
  end loop;
end
$$;

-- Drops the images of repairs that were finished longer ago than settings.repair_retention, and of those still open that
-- began before that, with whatever others have built on them. The registry keeps their counts. What somebody is reading
-- is left for the next time. Returns what was dropped.
-- Locks: the repair's row, access exclusive on its images, without waiting for either. Errors: none.
create or replace function routeledger._drop_old_images()
returns table (
  action text,
  object text
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set client_min_messages = warning
as $$
#variable_conflict use_column
declare
  v_id bigint;
  v_images text[];
begin
  for v_id in
    select r.id
    from routeledger.repairs r
    where r.images_dropped_at is null
      and coalesce(r.finished_at, r.started_at) < routeledger.clock() - (select s.repair_retention from routeledger.settings s)
    order by r.id
    for no key update skip locked
  loop
    v_images := array(
      select format('routeledger.%I', i.image)
      from routeledger.repair_images i
      where i.repair_id = v_id and to_regclass(format('routeledger.%I', i.image)) is not null
      order by i.n);
    begin
      if v_images <> '{}' then
        execute format('lock table %s in access exclusive mode nowait', array_to_string(v_images, ', '));
        execute format('drop table %s cascade', array_to_string(v_images, ', '));
      end if;
      update routeledger.repairs set images_dropped_at = routeledger.clock() where id = v_id;
    exception
      when lock_not_available then
        continue;
    end;
    return query select 'dropped', u.name from unnest(v_images) u (name);
  end loop;
end
$$;
