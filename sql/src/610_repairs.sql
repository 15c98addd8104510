-- 610 · Repairs: rows that something else has written wrong are put right, and put back when that was wrong.
--
-- The undo of a repair is the inverse set of row differences, and is recorded as a repair itself: an undo can be
-- undone, which repeats the repair. A row is put back byte for byte: it is found by its primary key, or by the whole
-- row where there is none, compared as it is stored (`*=`, which tells 1.0 from 1.00 and compares json), and
-- compared again after it is written.
--
-- What is done to the caller's own tables is done with the caller's privileges (SECURITY INVOKER) and, where their
-- triggers and defaults may look, with the caller's search_path; the ledger's own tables are repaired by admins
-- only. Row security that hides rows from the caller is an error: a repair that does not see all rows is none.
--
-- Lock order: the advisory lock of the repair, then its tables in the order of their images (share row exclusive:
-- readers go on, writers wait; access exclusive where an index goes with the repair, or a constraint is taken off).

-- Returns a search_path fit to run statements on behalf of the caller: the caller's, with temporary objects last
-- unless it places them itself.
-- Locks: none. Errors: none.
create or replace function routeledger._path_with_temp(
  p_path text
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
  select concat_ws(', ',
    case when p_path ~ '\mpg_catalog\M' then null else 'pg_catalog' end,
    nullif(p_path, ''),
    case when p_path ~ '\mpg_temp\M' then null else 'pg_temp' end)
$$;

-- Returns the ordinary or partitioned table of that name, null when there is none: a view of the same name is none.
-- Locks: none. Errors: none.
create or replace function routeledger._table_named(
  p_name text
)
returns regclass
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (select c.oid from pg_class c where c.oid = to_regclass(p_name) and c.relkind in ('r', 'p') and c.relpersistence <> 't');
end
$$;

-- Returns how statements name the rows of one table: partitions belong to it, tables that inherit from it do not.
-- Locks: none. Errors: none.
create or replace function routeledger._rows_of(
  p_table regclass
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
    select case when c.relkind = 'p' then '' else 'only ' end || routeledger._qualified(c.oid)
    from pg_class c
    where c.oid = p_table);
end
$$;

-- Compares the columns of an image with those that its table has now. names: the columns to write (those that are
-- generated follow from them). lost: columns that are gone, of another type, or generated now. added: columns that
-- the image does not know.
-- Locks: none. Errors: none.
create or replace function routeledger._written_columns(
  p_target regclass,
  p_columns jsonb,
  out names text[],
  out lost text[],
  out added text[]
)
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_now jsonb := routeledger._column_list(p_target);
begin
  select
    array_agg(o.c ->> 'name' order by o.n),
    coalesce(array_agg(o.c ->> 'name' order by o.n) filter (
      where n.c is null or n.c ->> 'type' <> o.c ->> 'type' or (n.c ->> 'generated')::boolean), '{}')
  into names, lost
  from jsonb_array_elements(p_columns) with ordinality o (c, n)
  left join jsonb_array_elements(v_now) n (c) on n.c ->> 'name' = o.c ->> 'name'
  where not (o.c ->> 'generated')::boolean;
  added := array(
    select n.c ->> 'name'
    from jsonb_array_elements(v_now) n (c)
    where not (n.c ->> 'generated')::boolean and n.c ->> 'name' <> all (names));
end
$$;

-- Returns columns as a comma-separated list, quoted, each written alias.column where an alias is given.
-- Locks: none. Errors: none.
create or replace function routeledger._listed(
  p_names text[],
  p_alias text default null
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select string_agg(coalesce(p_alias || '.', '') || format('%I', u.name), ', ' order by u.n)
  from unnest(p_names) with ordinality u (name, n)
$$;

-- Returns the columns of a table's primary key when all of them are among those given, else null.
-- Locks: none. Errors: none.
create or replace function routeledger._key_of(
  p_target regclass,
  p_columns jsonb
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select case when bool_and(p_columns @> jsonb_build_array(jsonb_build_object('name', p.column_name)))
      then array_agg(p.column_name order by p.n) end
    from pg_index i
    cross join lateral routeledger._index_parts(i.indexrelid) p
    where i.indrelid = p_target and i.indisprimary and i.indisvalid);
end
$$;

-- Returns the condition under which two rows have the same primary key, as its index compares them, or null when
-- the table has none over the columns given.
-- Locks: none. Errors: none.
create or replace function routeledger._same_key(
  p_target regclass,
  p_columns jsonb,
  p_left text,
  p_right text
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
    select string_agg(format('%s.%I %s %s.%I', p_left, p.column_name, p.equal_operator, p_right, p.column_name), ' and ' order by p.n)
    from pg_index i
    cross join lateral routeledger._index_parts(i.indexrelid) p
    where i.indrelid = p_target and i.indisprimary and i.indisvalid
      and routeledger._key_of(p_target, p_columns) is not null);
end
$$;

-- Writes the net differences of an image into a new temporary table of the same columns, or returns false when the image
-- holds no row twice and is the net itself. A collapse in many steps may touch a row more than once: its first state
-- and its last one count, and that it was kept counts only where it was not touched otherwise. A row that somebody
-- else changed between two steps is marked `broken`.
-- Locks: none. Errors: none.
create or replace function routeledger._net_image(
  p_net text,
  p_target regclass,
  p_image text,
  p_prefix text,
  p_columns jsonb
)
returns boolean
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_key text[] := routeledger._key_of(p_target, p_columns);
  v_names text[] := array(select c ->> 'name' from jsonb_array_elements(p_columns) with ordinality u (c, n) order by n);
  v_parts jsonb := jsonb_build_object(
    'net', p_net, 'image', p_image, 'names', routeledger._listed(v_names), 'of_image', routeledger._listed(v_names, 'i'),
    'key', routeledger._listed(v_key, 'i'), 'no', quote_ident(p_prefix || 'no'), 'what', quote_ident(p_prefix || 'what'),
    'p', p_prefix);
  v_twice boolean := true;
begin
  if v_key is not null then
    execute routeledger._fill($q$
      select exists (
        select from {image} i
        group by {key}
        having count(*) filter (where {what} <> 'after' and {what} <> 'added') > 1 or count(*) filter (where {what} in ('after', 'added', 'kept')) > 1)
    $q$, v_parts) into v_twice;
  end if;
  if not v_twice then
    return false;
  end if;
  execute routeledger._fill('create temporary table {net} on commit drop as select * from {image} with no data', v_parts);
  if v_key is not null then
    execute routeledger._fill($q$
      insert into {net}
      with seen as (
        select
          {of_image}, i.{no}, i.{what},
          row({of_image})::record as {p}r,
          bool_or(i.{what} <> 'kept') over (partition by {key}) as {p}touched,
          lag(row({of_image})::record) over up as {p}earlier,
          lag(i.{what}) over up as {p}earlier_what,
          first_value(i.{no}) over up as {p}first_no,
          first_value(i.{what}) over up as {p}first_what,
          first_value(i.{what}) over down as {p}last_what,
          row_number() over up as {p}up,
          row_number() over down as {p}down
        from {image} i
        window
          up as (partition by {key}, i.{what} = 'kept' order by i.{no}, i.{what} = 'after'),
          down as (partition by {key}, i.{what} = 'kept' order by i.{no} desc, i.{what} <> 'after')
      )
      select {names}, {p}first_no, case when {p}last_what = 'removed' then 'removed' else 'before' end
      from seen where {what} in ('before', 'removed') and {p}up = 1
      union all
      select {names}, {p}first_no, case when {p}first_what = 'added' then 'added' else 'after' end
      from seen where {what} in ('after', 'added') and {p}down = 1
      union all
      select {names}, {no}, 'kept'
      from seen where {what} = 'kept' and {p}down = 1 and not {p}touched
      union all
      select {names}, {no}, 'broken'
      from seen where {what} in ('before', 'removed') and {p}earlier_what in ('after', 'added') and not {p}earlier *= {p}r
    $q$, v_parts);
  else
    execute routeledger._fill($q$
      insert into {net}
      select {of_image}, i.{no}, i.{what} from {image} i where i.{what} <> 'kept'
      union all
      (
        select distinct on (row({of_image})::text) {of_image}, i.{no}, i.{what}
        from {image} i
        where i.{what} = 'kept'
          and row({of_image})::text not in (select row({of_image})::text from {image} i where i.{what} in ('removed', 'before'))
        order by row({of_image})::text, i.{no} desc
      )
    $q$, v_parts);
  end if;
  execute routeledger._fill('analyze {net}', v_parts);
  return true;
end
$$;

-- Finds the rows that an image speaks of (those that p_whats names) among the rows of its table, and writes each
-- into p_work: where it is, and whether it is the `same` byte for byte, `changed` (same primary key) or `gone`.
-- Without a primary key equal rows are paired one to one, and a row that changed is gone.
-- Locks: none. Errors: none.
create or replace function routeledger._locate(
  p_work text,
  p_n integer,
  p_target regclass,
  p_image text,
  p_prefix text,
  p_columns jsonb,
  p_names text[],
  p_whats text[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_key text := routeledger._same_key(p_target, p_columns, 'l', 'i');
  v_parts jsonb := jsonb_build_object(
    'work', p_work, 'rows', routeledger._rows_of(p_target), 'image', p_image, 'key', v_key,
    'no', format('i.%I', p_prefix || 'no'), 'what', format('i.%I', p_prefix || 'what'),
    'of_image', routeledger._listed(p_names, 'i'), 'of_row', routeledger._listed(p_names, 'l'));
begin
  if v_key is not null then
    execute routeledger._fill($q$
      insert into {work} (n, no, what, tab, tid, state)
      select $1, {no}, {what}, l.tableoid, l.ctid,
        case when l.tableoid is null then 'gone' when row({of_row})::record *= row({of_image})::record then 'same' else 'changed' end
      from {image} i
      left join {rows} l on {key}
      where {what} = any ($2)
      order by {no}
    $q$, v_parts) using p_n, p_whats;
    return;
  end if;

  -- Equal rows are the same text, so a hash of it finds them; which of several equal rows is meant does not matter,
  -- and the k-th of one side takes the k-th of the other. rank() goes by the bytes, for types without equality.
  execute routeledger._fill($q$
    insert into {work} (n, no, what, tab, tid, state)
    with image as materialized (
      select {no} as no, {what} as what, row({of_image})::record as r, hashtextextended(row({of_image})::text, 0) as h
      from {image} i
      where {what} = any ($2)
    ),
    live as materialized (
      select l.tableoid as tab, l.ctid as tid, row({of_row})::record as r, hashtextextended(row({of_row})::text, 0) as h
      from {rows} l
      where hashtextextended(row({of_row})::text, 0) in (select x.h from image x)
    ),
    ranked_image as (
      select x.*, row_number() over (order by x.h, x.r using operator(*<), x.no, x.what) - rank() over (order by x.h, x.r using operator(*<)) as k
      from image x
    ),
    ranked_live as (
      select x.*, row_number() over (order by x.h, x.r using operator(*<), x.tab, x.tid) - rank() over (order by x.h, x.r using operator(*<)) as k
      from live x
    )
    select $1, x.no, x.what, y.tab, y.tid, case when y.tab is null then 'gone' else 'same' end
    from ranked_image x
    left join ranked_live y on y.h = x.h and y.k = x.k and y.r *= x.r
    order by x.no
  $q$, v_parts) using p_n, p_whats;
end
$$;

-- Counts the pairs in which two queries of one record `r` each differ, byte for byte, when both are put in order:
-- 0 when they return the same rows, each as often.
-- Locks: none. Errors: none.
create or replace function routeledger._differences(
  p_one text,
  p_other text
)
returns bigint
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_differences bigint;
begin
  execute routeledger._fill(
    $q$
      select count(*)
      from (select x.r, row_number() over (order by x.r using operator(*<)) as k from ({one}) x) a
      full join (select x.r, row_number() over (order by x.r using operator(*<)) as k from ({other}) x) b on b.k = a.k
      where a.k is null or b.k is null or not a.r *= b.r
    $q$,
    jsonb_build_object('one', p_one, 'other', p_other))
  into v_differences;
  return v_differences;
end
$$;

-- Returns the rows that refer by a foreign key to rows of a table that are about to go, as a JSON array of
-- constraint, table and number of rows. Rows that go themselves do not count.
-- Locks: none. Errors: none.
create or replace function routeledger._references_to(
  p_target regclass,
  p_work text,
  p_n integer
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_found jsonb := '[]'::jsonb;
  v_key record;
  v_rows bigint;
begin
  for v_key in
    select
      c.conname, c.conrelid::regclass as child,
      string_agg(format('t.%I operator(%I.%s) c.%I', p.attname, m.nspname, o.oprname, f.attname), ' and ' order by k.n) as matches
    from pg_constraint c
    cross join unnest(c.conkey, c.confkey, c.conpfeqop) with ordinality k (child_column, parent_column, equal_operator, n)
    join pg_attribute f on f.attrelid = c.conrelid and f.attnum = k.child_column
    join pg_attribute p on p.attrelid = c.confrelid and p.attnum = k.parent_column
    join pg_operator o on o.oid = k.equal_operator
    join pg_namespace m on m.oid = o.oprnamespace
    where c.contype = 'f' and c.conparentid = 0
      and (c.confrelid = p_target or c.confrelid in (select a.relid from pg_partition_ancestors(p_target) a))
    group by c.oid, c.conname, c.conrelid
    order by c.conrelid::regclass::text, c.conname
  loop
    execute routeledger._fill($q$
      select count(*)
      from {child} c
      where exists (
          select from {rows} t join {work} w on w.tab = t.tableoid and w.tid = t.ctid
          where w.n = $1 and w.what = 'added' and {matches})
        and not exists (select from {work} w where w.n = $1 and w.what = 'added' and w.tab = c.tableoid and w.tid = c.ctid)
    $q$, jsonb_build_object(
      'child', routeledger._rows_of(v_key.child), 'rows', routeledger._rows_of(p_target), 'work', p_work, 'matches', v_key.matches))
    into v_rows using p_n;
    if v_rows > 0 then
      v_found := v_found || jsonb_build_object('constraint', v_key.conname, 'table', routeledger._qualified(v_key.child), 'rows', v_rows);
    end if;
  end loop;
  return v_found;
end
$$;

-- Returns the names of the triggers on a table that are not the server's own, as a JSON array.
-- Locks: none. Errors: none.
create or replace function routeledger._triggers_of(
  p_target regclass
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select coalesce(jsonb_agg(t.tgname order by t.tgname), '[]')
    from pg_trigger t
    where t.tgrelid = p_target and not t.tgisinternal and t.tgenabled <> 'D');
end
$$;

-- Says whether the index of a repair stands as the repair noted it: `same`, `other` (another definition or another
-- table), `none`.
-- Locks: none. Errors: none.
create or replace function routeledger._index_state(
  p_target regclass,
  p_index jsonb
)
returns text
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_relation regclass := to_regclass(format('%I.%I', p_index ->> 'schema', p_index ->> 'name'));
begin
  return case
    when v_relation is null then 'none'
    when routeledger._describe_index(v_relation) @> jsonb_build_object('table', routeledger._qualified(p_target), 'definition', p_index -> 'definition')
      then 'same'
    else 'other' end;
end
$$;

-- Returns the statements that take the index of a repair away, or that make it again, with its constraint and its
-- comments where it had them.
-- Locks: none. Errors: none.
create or replace function routeledger._index_statements(
  p_target regclass,
  p_index jsonb,
  p_create boolean
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
as $$
declare
  v_table text := routeledger._qualified(p_target);
  v_only text := format('CREATE UNIQUE INDEX %I ON ONLY ', p_index ->> 'name');
begin
  if not p_create then
    return array[case
      when p_index ? 'constraint' then format('alter table %s drop constraint %I', v_table, p_index ->> 'constraint')
      else format('drop index %I.%I', p_index ->> 'schema', p_index ->> 'name') end];
  end if;
  return array_remove(array[
    -- the index of a partitioned table is printed as that of the root alone; made like that it would not be valid
    case when starts_with(p_index ->> 'definition', v_only)
      then format('CREATE UNIQUE INDEX %I ON ', p_index ->> 'name') || substr(p_index ->> 'definition', length(v_only) + 1)
      else p_index ->> 'definition' end,
    case when p_index ? 'constraint' then
      format('alter table %s add constraint %I unique using index %I', v_table, p_index ->> 'constraint', p_index ->> 'name') end,
    case when p_index ? 'comment' then
      format('comment on index %I.%I is %L', p_index ->> 'schema', p_index ->> 'name', p_index ->> 'comment') end,
    case when p_index ? 'constraint_comment' then
      format('comment on constraint %I on %s is %L', p_index ->> 'constraint', v_table, p_index ->> 'constraint_comment') end], null);
end
$$;

-- Says why the images of a repair are not to be trusted with a table, null when nothing speaks against it: `owner_changed`
-- (whoever owns it now may not read them), or `not_allowed` (the role that made the repair, p_role, may not itself write
-- what its undo would write, so that it might have somebody else write it).
-- Locks: none. Errors: none.
create or replace function routeledger._image_fault(
  p_role name,
  p_target regclass,
  p_image text,
  p_prefix text
)
returns text
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_role oid := to_regrole(quote_ident(p_role));
  v_table pg_class;
  v_whats text[];
begin
  select c.* into v_table from pg_class c where c.oid = p_target;
  if v_table.relnamespace = 'routeledger'::regnamespace then
    return null;  -- the images of the ledger's own tables are written by the ledger only
  elsif not has_table_privilege(v_table.relowner, p_image, 'select') then
    return 'owner_changed';
  end if;
  execute format('select array(select i.%I from %s i group by 1)', p_prefix || 'what', p_image) into v_whats;
  return (
    select 'not_allowed'
    from unnest(v_whats) w (what)
    join (values ('removed', 'insert'), ('before', 'update'), ('added', 'delete')) n (what, privilege) on n.what = w.what
    left join pg_roles r on r.oid = v_role
    where not coalesce(has_table_privilege(v_role, p_target, n.privilege), false)
      or (v_table.relrowsecurity and not r.rolsuper and not r.rolbypassrls
        and (v_table.relforcerowsecurity or not pg_has_role(v_role, v_table.relowner, 'usage')))
    limit 1);
end
$$;

-- Returns the constraints of a table that are NOT VALID and that rows which an undo puts back would violate: such a constraint
-- has let the same rows be before. An array of {"table", "constraint", "drop": statement, "add": [statements]}; empty where the caller may not alter
-- the table, which then refuses the rows itself.
-- Locks: none. Errors: those of the predicates.
create or replace function routeledger._suspended_checks(
  p_target regclass,
  p_image text,
  p_prefix text
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set quote_all_identifiers = off
set standard_conforming_strings = on
as $$
declare
  v_table text := routeledger._qualified(p_target);
  v_check record;
  v_violated boolean;
  v_found jsonb := '[]'::jsonb;
begin
  if not routeledger._may_alter(p_target) then
    return v_found;
  end if;
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  for v_check in
    select
      c.conname, pg_get_constraintdef(c.oid) as definition, obj_description(c.oid, 'pg_constraint') as comment,
      coalesce(pg_get_expr(c.conbin, c.conrelid), format('%I is not null', a.attname)) as predicate
    from pg_constraint c
    left join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1] and c.contype = 'n'
    where c.conrelid = p_target and c.contype in ('c', 'n') and not c.convalidated and c.coninhcount = 0
    order by c.conname
  loop
    execute format(
      'select exists (select from %s where %I in (''removed'', ''before'') and not (%s))', p_image, p_prefix || 'what', v_check.predicate)
    into v_violated;
    if v_violated then
      v_found := v_found || jsonb_build_object(
        'table', v_table, 'constraint', v_check.conname,
        'drop', format('alter table %s drop constraint %I', v_table, v_check.conname),
        'add', array_remove(array[
          format('alter table %s add constraint %I %s', v_table, v_check.conname, v_check.definition),
          format('comment on constraint %I on %s is %L', v_check.conname, v_table, v_check.comment)], null));
    end if;
  end loop;
  return v_found;
end
$$;

-- Undoes a repair; see undo_repair(). Runs with the privileges of whoever calls it; triggers and defaults of the
-- tables see p_path.
-- Locks: the advisory lock of the repair, then its tables. Errors: as undo_repair().
create or replace function routeledger._undo(
  p_id bigint,
  p_force boolean,
  p_reason text,
  p_dry_run boolean,
  p_path text
)
returns table (
  repair_id bigint,
  restored bigint,
  removed bigint,
  changed bigint,
  conflicts jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set row_security = off
set standard_conforming_strings = on
set lock_timeout = '10s'
set jit = off
as $$
#variable_conflict use_column
declare
  c_own constant text := current_setting('search_path');
  c_checked constant integer := 1000000;
  c_work constant text := format('pg_temp.%I', 'routeledger_undo_' || p_id);
  v_read record;
  v_repair routeledger.repairs;
  v_images jsonb[] := array[]::jsonb[];
  v_image jsonb;
  v_parts jsonb;
  v_main regclass;
  v_target regclass;
  v_names text[];
  v_lost text[];
  v_added text[];
  v_fault text;
  v_made record;
  v_hard boolean;
  v_suspended jsonb := '[]'::jsonb;
  v_index jsonb;
  v_index_state text;
  v_index_step text;
  v_found bigint := 0;
  v_listed jsonb;
  v_count bigint;
  v_set text[];
  v_undo bigint;
  v_before bigint;
  v_after bigint;
  v_net text;
  v_statement text;
  v_state text;
  v_message text;
  v_detail text;
  v_constraint text;
begin
  repair_id := null;
  restored := 0;
  removed := 0;
  changed := 0;
  conflicts := '[]'::jsonb;
  if p_force and not routeledger._is_admin(routeledger._caller_role()) then
    raise exception using
      errcode = '42501',
      message = 'permission denied: only an admin undoes a repair over later changes',
      detail = jsonb_build_object('repair_id', p_id, 'role', routeledger._caller_role())::text,
      hint = 'Leave p_force out, or call as a member of routeledger_admin.';
  elsif not p_dry_run then
    perform pg_advisory_xact_lock(hashtextextended('routeledger.repair:' || p_id, 0));
  end if;
  select r.repair, r.images into v_read from routeledger._read_repair(p_id) r;
  v_repair := v_read.repair;
  if v_repair.id is null then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_id));
  elsif v_repair.state = 'undone' then
    perform routeledger._raise('RL312', jsonb_build_object('repair_id', p_id, 'undone_by', v_repair.undone_by));
  elsif v_repair.images_dropped_at is not null then
    perform routeledger._raise('RL311', jsonb_build_object('repair_id', p_id, 'images_dropped_at', v_repair.images_dropped_at));
  end if;

  perform routeledger._share_images(p_id);
  v_main := routeledger._table_named(v_repair.target);
  v_hard := v_main is null;
  if v_hard then
    conflicts := jsonb_build_array(jsonb_build_object('table', v_repair.target, 'reason', 'table_missing'));
  end if;
  for v_image in
    select e from jsonb_array_elements(v_read.images) e
    where v_main is not null or e ->> 'target' <> v_repair.target
    order by (e ->> 'n')::integer
  loop
    v_target := routeledger._table_named(v_image ->> 'target');
    select w.names, w.lost, w.added into v_names, v_lost, v_added from routeledger._written_columns(v_target, v_image -> 'columns') w;
    v_fault := case
      when v_target is null then 'table_missing'
      when v_lost <> '{}' then 'columns_changed'
      else coalesce(
        routeledger._image_fault(v_repair.role_name, v_target, v_image ->> 'image', v_image ->> 'prefix'),
        case when v_added <> '{}' then 'columns_added' end) end;
    v_hard := v_hard or v_target is null or v_lost <> '{}';
    if v_fault is not null then
      conflicts := conflicts || jsonb_strip_nulls(jsonb_build_object(
        'table', v_image ->> 'target', 'reason', v_fault,
        'columns', case v_fault when 'columns_changed' then v_lost when 'columns_added' then v_added end,
        'role', case when v_fault = 'not_allowed' then v_repair.role_name end));
    end if;
    v_images := v_images || (v_image || jsonb_build_object('oid', v_target::oid, 'names', v_names));
  end loop;
  v_found := jsonb_array_length(conflicts);
  if v_hard and p_dry_run then
    return next;
    return;
  elsif v_hard or (v_found > 0 and not p_force and not p_dry_run) then
    perform routeledger._raise('RL310', jsonb_build_object('repair_id', p_id, 'conflicts', v_found, 'can_be_forced', not v_hard, 'rows', conflicts));
  end if;

  -- The index: what the repair made goes, what an undo dropped comes back.
  v_index := v_repair.details -> 'index';
  v_index_state := case when v_index is not null then routeledger._index_state(v_main, v_index) end;
  v_index_step := case
    when v_repair.details ->> 'index_action' = 'dropped' then case v_index_state when 'none' then 'created' end
    else case v_index_state when 'same' then 'dropped' end end;
  if v_index_state = 'other' then
    v_found := v_found + 1;
    conflicts := conflicts || jsonb_build_object('table', v_repair.target, 'reason', 'index_changed', 'index', v_index ->> 'name');
  end if;

  if not p_dry_run then
    foreach v_image in array v_images loop
      v_suspended := v_suspended || routeledger._suspended_checks((v_image ->> 'oid')::oid, v_image ->> 'image', v_image ->> 'prefix');
    end loop;
    perform routeledger._run_locked(
      v_main,
      array(
        select format('lock table %s in %s mode', routeledger._rows_of(t.id), case when bool_or(t.alters) then 'access exclusive' else 'share row exclusive' end)
        from (
          select u.n, (u.e ->> 'oid')::oid::regclass, v_suspended @> jsonb_build_array(jsonb_build_object('table', u.e -> 'target'))
          from unnest(v_images) with ordinality u (e, n)
          union all
          select 0, v_main, coalesce(v_index_step = 'dropped' or (v_index_step = 'created' and v_index ? 'constraint'), false)
        ) t (n, id, alters)
        group by t.id
        order by min(t.n)),
      interval '1 second', 10);
    if v_index is not null and routeledger._index_state(v_main, v_index) <> v_index_state then
      -- somebody was faster: nothing has been done yet, and the next call sees what there is now
      perform routeledger._raise('RL310', jsonb_build_object('repair_id', p_id, 'conflicts', 1, 'can_be_forced', true, 'rows', jsonb_build_array(
        jsonb_build_object('table', v_repair.target, 'reason', 'index_changed', 'index', v_index ->> 'name'))));
    end if;
  end if;

  -- where the rows are, and what has become of them
  execute format(
    'create temporary table %s (k bigint generated always as identity, n integer, no bigint, what text, tab oid, tid tid, state text) on commit drop', c_work);
  for i in 1 .. cardinality(v_images) loop
    v_image := v_images[i];
    v_target := (v_image ->> 'oid')::oid::regclass;
    v_net := format('pg_temp.%I', format('routeledger_undo_%s_%s', p_id, v_image ->> 'n'));
    if v_repair.kind = 'collapse'
      and routeledger._net_image(v_net, v_target, v_image ->> 'image', v_image ->> 'prefix', v_image -> 'columns')
    then
      v_image := v_image || jsonb_build_object('image', v_net, 'net', true);
    end if;
    v_names := array(select jsonb_array_elements_text(v_image -> 'names'));
    v_image := v_image || jsonb_build_object('parts', jsonb_build_object(
      'work', c_work, 'n', v_image ->> 'n', 'image', v_image ->> 'image',
      'table', routeledger._qualified(v_target), 'rows', routeledger._rows_of(v_target),
      'key', routeledger._same_key(v_target, v_image -> 'columns', 'l', 'i'),
      'no', format('i.%I', (v_image ->> 'prefix') || 'no'),
      'what', format('i.%I', (v_image ->> 'prefix') || 'what'),
      'names', routeledger._listed(v_names),
      'of_image', routeledger._listed(v_names, 'i'),
      'of_row', routeledger._listed(v_names, 'l'),
      'of_new', routeledger._listed(v_names, 'j'),
      'all', routeledger._image_columns(v_target),
      'all_of_row', routeledger._image_columns(v_target, 'l')));
    v_images[i] := v_image;
    v_parts := v_image -> 'parts';
    perform routeledger._locate(c_work, (v_image ->> 'n')::integer, v_target, v_image ->> 'image', v_image ->> 'prefix', v_image -> 'columns', v_names,
      '{after,added,kept}');
    execute routeledger._fill($q$
      insert into {work} (n, no, what, state) select {n}, {no}, 'broken', 'changed' from {image} i where {what} = 'broken' order by {no}
    $q$, v_parts);
    if v_parts ->> 'key' is not null then
      execute routeledger._fill($q$
        insert into {work} (n, no, what, tab, tid, state)
        select {n}, {no}, 'taken', l.tableoid, l.ctid, 'taken'
        from {image} i
        join {rows} l on {key}
        where {what} = 'removed'
          and not exists (select from {work} w where w.n = {n} and w.what = 'added' and w.tab = l.tableoid and w.tid = l.ctid)
        order by {no}
      $q$, v_parts);
    end if;
    execute routeledger._fill($q$
      with x as (
        select w.*, count(*) over () as of_all from {work} w where w.n = {n} and w.state <> 'same' order by w.k limit 20
      )
      select
        coalesce(max(x.of_all), 0),
        jsonb_agg(jsonb_build_object(
          'table', $1, 'row_no', x.no, 'reason', x.state, 'expected', left(row({of_image})::text, 1000),
          'found', case when l.tableoid is not null then left(row({of_row})::text, 1000) end) order by x.k)
      from x
      join {image} i on {no} = x.no and {what} = case x.what when 'taken' then 'removed' else x.what end
      left join {rows} l on l.tableoid = x.tab and l.ctid = x.tid
    $q$, v_parts) into v_count, v_listed using v_image ->> 'target';
    v_found := v_found + v_count;
    conflicts := conflicts || coalesce((
      select jsonb_agg(u.e order by u.n)
      from jsonb_array_elements(v_listed) with ordinality u (e, n)
      where u.n <= 20 - jsonb_array_length(conflicts)), '[]');
  end loop;
  execute format('analyze %s', c_work);

  if p_dry_run then
    foreach v_image in array v_images loop
      execute routeledger._fill($q$
        select
          $1 + count(*) filter (where {what} = 'removed'),
          $2 + count(*) filter (where {what} = 'added'),
          $3 + count(*) filter (where {what} = 'after')
        from {image} i
      $q$, v_image -> 'parts') into restored, removed, changed using restored, removed, changed;
      if v_image ? 'net' then
        execute format('drop table %s', v_image ->> 'image');
      end if;
    end loop;
    execute format('drop table %s', c_work);
    return next;
    return;
  elsif v_found > 0 and not p_force then
    perform routeledger._raise('RL310', jsonb_build_object('repair_id', p_id, 'conflicts', v_found, 'can_be_forced', true, 'rows', conflicts));
  end if;

  v_undo := routeledger._open_repair(
    'undo', v_main, coalesce(p_reason, format('undo of repair %s', p_id)), jsonb_build_object('forced', v_found), p_id);
  for i in 1 .. cardinality(v_images) loop
    v_target := (v_images[i] ->> 'oid')::oid::regclass;
    select x.image, x.prefix into v_made from routeledger._image_of(v_undo, v_target) x;
    v_images[i] := jsonb_set(
      v_images[i] || jsonb_build_object('new_image', routeledger._qualified(v_made.image), 'new_prefix', v_made.prefix), '{parts}',
      v_images[i] -> 'parts' || jsonb_build_object(
        'new_image', routeledger._qualified(v_made.image),
        'new_no', quote_ident(v_made.prefix || 'no'),
        'new_what', quote_ident(v_made.prefix || 'what')));
  end loop;
  execute format('select count(*) from %s', routeledger._rows_of(v_main)) into v_before;

  begin
    perform routeledger._run_locked(
      v_main, array(select c ->> 'drop' from jsonb_array_elements(v_suspended) c), interval '1 second', 10);
    if v_index_step = 'dropped' then
      perform routeledger._note_index(v_undo, format('%I.%I', v_index ->> 'schema', v_index ->> 'name')::regclass);
      perform routeledger._run_locked(v_main, routeledger._index_statements(v_main, v_index, false), interval '1 second', 10);
    end if;

    -- 1: rows come back before others refer to them again; 2: rows are what they were; 3: rows go after nobody refers to
    -- them any more, those of the table that was noted last first.
    for v_step in 1 .. 3 loop
      for v_image in
        select u.e from unnest(v_images) with ordinality u (e, n) order by case when v_step = 3 then -u.n else u.n end
      loop
        v_target := (v_image ->> 'oid')::oid::regclass;
        v_parts := v_image -> 'parts';
        if v_step = 1 then
          v_parts := v_parts || jsonb_build_object('source', routeledger._fill($q$
            from {image} i
            left join {work} w on w.n operator(pg_catalog.=) {n} and w.no operator(pg_catalog.=) {no}
              and w.what operator(pg_catalog.=) case when {what} operator(pg_catalog.=) 'removed' then 'taken' else 'after' end
            where ({what} operator(pg_catalog.=) 'removed' and w.no is null)
              or ({what} operator(pg_catalog.=) 'before' and w.state operator(pg_catalog.=) 'gone')
          $q$, v_parts));
          perform set_config('search_path', p_path, true);
          execute routeledger._fill($q$
            with put as (
              insert into {table} ({names}) overriding system value
              select {of_image} {source} order by {no}
              returning {all}
            )
            insert into {new_image} select {all}, pg_catalog.row_number() over (), 'added' from put
          $q$, v_parts);
          get diagnostics v_count = row_count;
          perform set_config('search_path', c_own, true);
          restored := restored + v_count;
          v_count := routeledger._differences(
            routeledger._fill('select row({of_image})::record as r {source}', v_parts),
            routeledger._fill('select row({of_new})::record as r from {new_image} j where j.{new_what} = ''added''', v_parts));

        elsif v_step = 2 then
          execute routeledger._fill($q$
            insert into {new_image}
            select {all_of_row}, w.k, case w.what when 'kept' then 'kept' else 'before' end
            from {work} w
            join {rows} l on l.tableoid = w.tab and l.ctid = w.tid
            where w.n = {n} and ((w.what = 'kept' and w.state = 'same') or (w.what in ('after', 'taken') and w.state <> 'gone'))
            order by w.k
          $q$, v_parts);
          -- only the columns that differ are set: no trigger and no key is touched without need
          v_parts := v_parts || jsonb_build_object('pairs', routeledger._fill($q$
            {work} w
            join {image} i on {no} operator(pg_catalog.=) w.no
              and {what} operator(pg_catalog.=) case when w.what operator(pg_catalog.=) 'taken' then 'removed' else 'before' end
          $q$, v_parts));
          execute routeledger._fill($q$
            select array_remove(array[{differs}], null)
            from {pairs}
            join {rows} l on l.tableoid = w.tab and l.ctid = w.tid
            where w.n = {n} and w.what in ('after', 'taken') and w.state <> 'gone'
          $q$, v_parts || jsonb_build_object('differs', (
            select string_agg(format('case when bool_or(not row(l.%1$I)::record *= row(i.%1$I)::record) then %1$L end', c), ', ')
            from jsonb_array_elements_text(v_image -> 'names') c)))
          into v_set;
          if cardinality(v_set) > 0 then
            v_statement := routeledger._fill($q$
              with put as (
                update {rows} l
                set {set}
                from {pairs}
                where l.tableoid operator(pg_catalog.=) w.tab and l.ctid operator(pg_catalog.=) w.tid
                  and w.n operator(pg_catalog.=) {n} and w.what operator(pg_catalog.=) any ($1) and w.state operator(pg_catalog.<>) 'gone'
                returning {all_of_row}, w.k as {new_no}
              )
              insert into {new_image} select {all}, {new_no}, 'after' from put
            $q$, v_parts || jsonb_build_object('set', (select string_agg(format('%1$I = i.%1$I', s), ', ') from unnest(v_set) s)));
            perform set_config('search_path', p_path, true);
            execute v_statement using '{after,taken}'::text[];
            get diagnostics v_count = row_count;
            perform set_config('search_path', c_own, true);
          else
            execute routeledger._fill($q$
              insert into {new_image} select {all}, {new_no}, 'after' from {new_image} j where j.{new_what} = 'before'
            $q$, v_parts);
            get diagnostics v_count = row_count;
          end if;
          changed := changed + v_count;
          execute routeledger._fill($q$
            select count(*)
            from {pairs}
            left join {new_image} j on j.{new_no} = w.k and j.{new_what} = 'after'
            where w.n = {n} and w.what in ('after', 'taken') and w.state <> 'gone'
              and (j.{new_no} is null or not row({of_new})::record *= row({of_image})::record)
          $q$, v_parts) into v_count;

        else
          v_parts := v_parts || jsonb_build_object('going', routeledger._fill($q$
            l.tableoid operator(pg_catalog.=) w.tab and l.ctid operator(pg_catalog.=) w.tid
              and w.n operator(pg_catalog.=) {n} and w.what operator(pg_catalog.=) 'added' and w.state operator(pg_catalog.<>) 'gone'
          $q$, v_parts));
          -- locked, so that nobody comes to refer to them while it is counted who does
          execute routeledger._fill('select from {rows} l, {work} w where {going} for update of l', v_parts);
          v_listed := routeledger._references_to(v_target, c_work, (v_image ->> 'n')::integer);
          if v_listed <> '[]' then
            perform routeledger._raise('RL310', jsonb_build_object('repair_id', p_id, 'can_be_forced', false, 'rows', jsonb_build_array(
              jsonb_build_object('table', v_image ->> 'target', 'reason', 'referenced', 'by', v_listed))));
          end if;
          perform set_config('search_path', p_path, true);
          execute routeledger._fill($q$
            with put as (
              delete from {rows} l using {work} w where {going} returning {all_of_row}, w.k as {new_no}
            )
            insert into {new_image} select {all}, {new_no}, 'removed' from put
          $q$, v_parts);
          get diagnostics v_count = row_count;
          perform set_config('search_path', c_own, true);
          removed := removed + v_count;
          execute routeledger._fill($q$
            select count(*) - $1 from {work} w where w.n = {n} and w.what = 'added' and w.state <> 'gone'
          $q$, v_parts) into v_count using v_count;
        end if;

        if v_count <> 0 then
          perform routeledger._raise('RL313', jsonb_build_object(
            'repair_id', p_id, 'table', v_image ->> 'target', 'step', (array['insert', 'update', 'delete'])[v_step], 'rows', v_count,
            'reason', 'the rows are not as the image has them once they are written',
            'triggers', routeledger._triggers_of(v_target)));
        end if;
      end loop;
    end loop;

    if v_index_step = 'created' then
      perform routeledger._run_locked(v_main, routeledger._index_statements(v_main, v_index, true), interval '1 second', 10);
      perform routeledger._note_index(v_undo, format('%I.%I', v_index ->> 'schema', v_index ->> 'name')::regclass);
    end if;
    perform routeledger._run_locked(
      v_main, array(select jsonb_array_elements_text(c -> 'add') from jsonb_array_elements(v_suspended) c), interval '1 second', 10);
  exception
    when integrity_constraint_violation or dependent_objects_still_exist or generated_always then
      get stacked diagnostics
        v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_constraint = constraint_name;
      perform routeledger._raise('RL310', jsonb_build_object('repair_id', p_id, 'can_be_forced', false, 'rows', jsonb_build_array(jsonb_strip_nulls(
        jsonb_build_object(
          'table', v_repair.target, 'reason', 'refused', 'sqlstate', v_state, 'message', v_message,
          'constraint', nullif(v_constraint, ''), 'detail', nullif(v_detail, ''))))));
  end;

  -- what was written is what is there now, also after the triggers of all the tables
  foreach v_image in array v_images loop
    v_target := (v_image ->> 'oid')::oid::regclass;
    select w.names into v_names from routeledger._written_columns(v_target, routeledger._column_list(v_target)) w;
    perform routeledger._locate(c_work, c_checked + (v_image ->> 'n')::integer, v_target, v_image ->> 'new_image', v_image ->> 'new_prefix',
      routeledger._column_list(v_target), v_names, '{after,added,kept}');
    execute format('select count(*) from %s w where w.n = $1 and w.state <> $2', c_work)
    into v_count using c_checked + (v_image ->> 'n')::integer, 'same';
    if v_count > 0 then
      perform routeledger._raise('RL313', jsonb_build_object(
        'repair_id', p_id, 'table', v_image ->> 'target', 'rows', v_count, 'reason', 'rows are not as they were left',
        'triggers', routeledger._triggers_of(v_target)));
    end if;
    if v_image ? 'net' then
      execute format('drop table %s', v_image ->> 'image');
    end if;
  end loop;
  execute format('drop table %s', c_work);
  execute format('select count(*) from %s', routeledger._rows_of(v_main)) into v_after;

  perform routeledger._mark_undone(p_id, v_undo);
  perform routeledger._close_repair(
    v_undo, v_before, v_after, removed, changed, restored, jsonb_strip_nulls(jsonb_build_object(
      'index_action', v_index_step, 'suspended', (select jsonb_agg(c - 'drop' - 'add') from jsonb_array_elements(v_suspended) c))));
  repair_id := v_undo;
  return next;
end
$$;

-- Undoes a repair of the ledger's own tables, with the privileges of their owner; for admins. A role that is bound to
-- tenants undoes its own repairs only.
-- Locks: as _undo(). Errors: as undo_repair(), RL110, 42501.
create or replace function routeledger._undo_in_ledger(
  p_id bigint,
  p_force boolean,
  p_reason text,
  p_dry_run boolean
)
returns table (
  repair_id bigint,
  restored bigint,
  removed bigint,
  changed bigint,
  conflicts jsonb
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
begin
  select r.* into v_repair from routeledger.repairs r where r.id = p_id;
  if not routeledger._is_admin(routeledger._caller_role())
    or exists (
      select
      from (select v_repair.target union select i.target from routeledger.repair_images i where i.repair_id = p_id) t (name)
      where not exists (select from pg_class c where c.oid = to_regclass(t.name) and c.relnamespace = 'routeledger'::regnamespace))
  then
    raise exception using
      errcode = '42501',
      message = 'permission denied: a repair of the ledger is undone by an admin',
      detail = jsonb_build_object('repair_id', p_id, 'role', routeledger._caller_role())::text,
      hint = 'Call as a member of routeledger_admin, or as the owner of the schema.';
  end if;
  return query select u.* from routeledger._undo(p_id, p_force, p_reason, p_dry_run, 'pg_catalog, routeledger, pg_temp') u;
end
$$;

-- Checks the arguments of undo_repair() and lets the right role do it.
-- Locks: as _undo(). Errors: as undo_repair().
create or replace function routeledger._undo_repair(
  p_id bigint,
  p_force boolean,
  p_reason text,
  p_dry_run boolean,
  p_path text
)
returns table (
  repair_id bigint,
  restored bigint,
  removed bigint,
  changed bigint,
  conflicts jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_target text;
begin
  if p_id is null then
    perform routeledger._raise_fault('RL101 id');
  elsif p_force is null then
    perform routeledger._raise_fault('RL101 force');
  elsif p_dry_run is null then
    perform routeledger._raise_fault('RL101 dry_run');
  end if;
  select (r.repair).target into v_target from routeledger._read_repair(p_id) r;
  if exists (select from pg_class c where c.oid = routeledger._table_named(v_target) and c.relnamespace = 'routeledger'::regnamespace) then
    return query select u.* from routeledger._undo_in_ledger(p_id, p_force, p_reason, p_dry_run) u;
  else
    return query select u.* from routeledger._undo(p_id, p_force, p_reason, p_dry_run, routeledger._path_with_temp(p_path)) u;
  end if;
end
$$;

-- Takes a repair back: rows that it removed are restored byte for byte, rows that it changed are what they were, rows
-- that it added are gone, and so is the index that it made possible; or nothing is done at all. The undo is a repair
-- itself (repair_id): its own undo repeats the first one, the index included.
--
-- Where rows have changed since, RL310 lists them (at most 20, and how many there are); p_force, for admins, overwrites
-- those that the repair had changed or added, and their images are kept too; what had only stayed is left as it is. With p_dry_run nothing is changed: the row says what would be done,
-- and what is in the way. conflicts has the reason of each: changed, gone, taken (the key is in use again),
-- index_changed, columns_added, owner_changed (whoever owns the table now may not read the images), not_allowed (the role
-- that made the repair may not write what its undo would write), and what cannot be forced: columns_changed,
-- table_missing, referenced, refused (by a constraint of the table).
-- Generated columns follow by themselves. A constraint that is NOT VALID and lets rows be that violated it before it came
-- lets them come back too, where the caller owns the table: it is taken off and put back within the same transaction, as
-- the details of the undo say (suspended).
-- Locks: the advisory lock of the repair, then its tables (share row exclusive; access exclusive where its index goes or a
-- constraint is taken off or comes back), for each at most 1 second, ten times; for rows at most 10 seconds.
-- Errors: RL101, RL108, RL110, RL206, RL310, RL311, RL312, RL313, 42501, 55P03, and what triggers of the tables raise.
create or replace function routeledger.undo_repair(
  p_id bigint,
  p_force boolean default false,
  p_reason text default null,
  p_dry_run boolean default false
)
returns table (
  repair_id bigint,
  restored bigint,
  removed bigint,
  changed bigint,
  conflicts jsonb
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select u.repair_id, u.restored, u.removed, u.changed, u.conflicts
  from routeledger._undo_repair(p_id, p_force, p_reason, p_dry_run, pg_catalog.current_setting('search_path')) u
$$;

-- Shows the rows of a repair as text, at most p_limit: what was removed, added or kept, then what was changed (before
-- and after), table by table.
-- Locks: none. Errors: RL101, RL103, RL110, RL206, RL311, 42501.
create or replace function routeledger.show_repair(
  p_id bigint,
  p_limit integer default 100
)
returns table (
  target text,
  row_no bigint,
  what text,
  row_text text
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_read record;
  v_repair routeledger.repairs;
  v_image jsonb;
  v_left integer := p_limit;
  v_rows integer;
begin
  if p_id is null then
    perform routeledger._raise_fault('RL101 id');
  elsif p_limit is null then
    perform routeledger._raise_fault('RL101 limit');
  elsif p_limit not between 1 and 100000 then
    perform routeledger._raise_fault('RL103 limit 1 to 100000');
  end if;
  select r.repair, r.images into v_read from routeledger._read_repair(p_id) r;
  v_repair := v_read.repair;
  if v_repair.id is null then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_id));
  elsif v_repair.images_dropped_at is not null then
    perform routeledger._raise('RL311', jsonb_build_object('repair_id', p_id, 'images_dropped_at', v_repair.images_dropped_at));
  end if;
  perform routeledger._share_images(p_id);
  for v_image in select e from jsonb_array_elements(v_read.images) e order by (e ->> 'n')::integer loop
    exit when v_left <= 0;
    return query execute routeledger._fill($q$
      select $1, i.{no}, i.{what}, row({names})::text
      from {image} i
      order by i.{what} in ('before', 'after'), i.{no}, array_position(array['removed', 'before', 'after', 'added', 'kept'], i.{what})
      limit $2
    $q$, jsonb_build_object(
      'image', v_image ->> 'image',
      'no', quote_ident((v_image ->> 'prefix') || 'no'),
      'what', quote_ident((v_image ->> 'prefix') || 'what'),
      'names', routeledger._listed(array(select c ->> 'name' from jsonb_array_elements(v_image -> 'columns') c), 'i')))
    using v_image ->> 'target', v_left;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
  end loop;
end
$$;

-- Every repair, the newest first: what it was, who did it and why, what it changed, and until when its images are kept.
create or replace view routeledger.repair_history
with (security_barrier = true)
as
select
  r.id,
  r.kind,
  r.target,
  r.reason,
  r.role_name,
  r.login,
  r.state,
  r.started_at,
  r.finished_at,
  r.before_count,
  r.after_count,
  r.removed,
  r.changed,
  r.added,
  r.details,
  r.undoes,
  r.undone_by,
  (select coalesce(jsonb_agg(jsonb_build_object('target', i.target, 'image', 'routeledger.' || i.image) order by i.n), '[]')
   from routeledger.repair_images i
   where i.repair_id = r.id) as images,
  r.images_dropped_at,
  case when r.images_dropped_at is null then
    coalesce(r.finished_at, r.started_at) + (select s.repair_retention from routeledger.settings s) end as images_kept_until
from routeledger.repairs r
order by r.id desc;

-- Reads which columns of two tables play which part: what p_given says (null: none), else the first usual name that the
-- table has. Returns {"outcome": {part: column}, "inference": {part: column}} with the parts that have a column.
-- Locks: none. Errors: RL107, RL113.
create or replace function routeledger._orphan_columns(
  p_outcomes regclass,
  p_inferences regclass,
  p_given jsonb
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  c_usual constant jsonb := jsonb '{
    "outcome": {"id": ["id"], "tenant": ["tenant_id"], "agent": ["agent_id"], "model": ["chosen_model_slug", "model_slug"], "inference": ["inference_id"],
      "at": ["created_at"], "cost": ["cost_usd"], "rule": ["decision_rule"], "override": ["decision_rule_override"], "status": ["outcome_status"]},
    "inference": {"id": ["id"], "tenant": ["tenant_id"], "agent": ["agent_id"], "model": ["model_slug"], "at": ["created_at"], "cost": ["cost_usd"],
      "status": ["status"], "decision": ["outcome_id", "decision_id"], "since": [], "error_type": ["error_type"], "error_message": ["error_message"],
      "completed_at": ["completed_at"]}}';
  c_needed constant text[] := array['outcome.id', 'outcome.model', 'outcome.inference', 'outcome.at', 'inference.id', 'inference.model', 'inference.at'];
  v_result jsonb := jsonb '{"outcome": {}, "inference": {}}';
  v_fault text;
  v_part record;
  v_column text;
begin
  if p_given is null or jsonb_typeof(p_given) <> 'object' then
    perform routeledger._raise_fault('RL107 columns a JSON object');
  end if;
  select coalesce(g.side || coalesce('.' || p.part, ''), g.side) into v_fault
  from jsonb_each(p_given) g (side, parts)
  left join lateral jsonb_each(case when jsonb_typeof(g.parts) = 'object' then g.parts end) p (part, name) on true
  where not c_usual ? g.side or jsonb_typeof(g.parts) <> 'object'
    or not c_usual -> g.side ? p.part or jsonb_typeof(p.name) not in ('string', 'null')
  order by 1
  limit 1;
  if v_fault is not null then
    perform routeledger._raise('RL107', jsonb_build_object('parameter', 'columns', 'part', v_fault, 'allowed', (
      select jsonb_object_agg(s.side, (select jsonb_agg(k order by k) from jsonb_object_keys(s.parts) k)) from jsonb_each(c_usual) s (side, parts))));
  end if;

  for v_part in
    select
      s.side, p.part, p.names, case s.side when 'outcome' then p_outcomes else p_inferences end as target,
      p_given -> s.side ? p.part as given, p_given -> s.side ->> p.part as name
    from jsonb_each(c_usual) s (side, parts)
    cross join lateral jsonb_each(s.parts) p (part, names)
  loop
    if v_part.name is not null then
      v_column := routeledger._column_named(v_part.target, v_part.name);
      if v_column is null then
        perform routeledger._raise('RL113', jsonb_build_object('table', routeledger._qualified(v_part.target), 'column', v_part.name, 'part', v_part.side || '.' || v_part.part));
      end if;
    elsif v_part.given then
      v_column := null;
    else
      select a.attname into v_column
      from jsonb_array_elements_text(v_part.names) with ordinality u (name, n)
      join pg_attribute a on a.attrelid = v_part.target and a.attname = u.name and a.attnum > 0 and not a.attisdropped
      order by u.n
      limit 1;
    end if;
    if v_column is not null then
      v_result := jsonb_set(v_result, array[v_part.side, v_part.part], to_jsonb(v_column));
    elsif v_part.side || '.' || v_part.part = any (c_needed) then
      perform routeledger._raise('RL113', jsonb_build_object('table', routeledger._qualified(v_part.target), 'part', v_part.side || '.' || v_part.part,
        'reason', 'no column plays this part: name it in p_columns'));
    end if;
  end loop;
  return v_result;
end
$$;

-- Makes sure that times and costs of both tables can be compared: times are timestamps, all with or all without a time zone,
-- and costs are numbers.
-- Locks: none. Errors: RL113.
create or replace function routeledger._check_types(
  p_outcomes regclass,
  p_inferences regclass,
  p_columns jsonb
)
returns void
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_part record;
  v_time regtype;
begin
  for v_part in
    select x.target, x.side || '.' || x.part as name, x.part = 'cost' as is_cost, a.attname, routeledger._base_type(a.atttypid)::regtype as type
    from (values
        (1, 'outcome', 'at', p_outcomes),
        (2, 'inference', 'at', p_inferences),
        (3, 'inference', 'since', p_inferences),
        (4, 'inference', 'completed_at', p_inferences),
        (5, 'outcome', 'cost', p_outcomes),
        (6, 'inference', 'cost', p_inferences)) x (n, side, part, target)
    join pg_attribute a on a.attrelid = x.target and a.attname = p_columns -> x.side ->> x.part
    order by x.n
  loop
    if v_part.is_cost then
      continue when v_part.type = any ('{smallint,integer,bigint,numeric,real,double precision,money}'::regtype[]);
    else
      v_time := coalesce(v_time, v_part.type);
      continue when v_part.type = v_time and v_time in ('timestamp'::regtype, 'timestamptz'::regtype);
    end if;
    perform routeledger._raise('RL113', jsonb_build_object(
      'table', routeledger._qualified(v_part.target), 'column', v_part.attname, 'part', v_part.name, 'type', v_part.type,
      'reason', case when v_part.is_cost then 'a cost must be a number'
        else 'the times of both tables must be timestamps, all with or all without a time zone' end));
  end loop;
end
$$;

-- Matches orphans and closes what is stuck; see repair_orphans_in(). In the ledger's own tables (p_own) only a decision that is
-- over is an orphan, its inference must have ended as it did, and what is in flight is left to the reaper.
-- Locks: share row exclusive on the outcomes, then on the inferences. Errors: as repair_orphans_in().
create or replace function routeledger._repair_orphans(
  p_outcomes regclass,
  p_inferences regclass,
  p_columns jsonb,
  p_window interval,
  p_dry_run boolean,
  p_stuck_after interval,
  p_tenants text[],
  p_own boolean,
  p_reason text,
  p_path text
)
returns table (
  action text,
  outcome text,
  inference text,
  reason text,
  repair_id bigint
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set row_security = off
set lock_timeout = '10s'
set jit = off
set enable_nestloop = on
as $$
#variable_conflict use_column
declare
  c_own constant text := current_setting('search_path');
  c_work constant text := 'pg_temp.routeledger_orphans';
  c_edges constant text := 'pg_temp.routeledger_orphan_edges';
  c_stuck constant text := 'pg_temp.routeledger_stuck';
  c_checked constant text := 'pg_temp.routeledger_orphans_checked';
  v_columns jsonb;
  v_o jsonb;
  v_i jsonb;
  v_parts jsonb;
  v_made record;
  v_image jsonb;
  v_target regclass;
  v_repair bigint;
  v_links bigint;
  v_closes bigint;
  v_before bigint;
  v_after bigint;
  v_count bigint;
  v_changed bigint := 0;
  v_names text[];
begin
  if p_outcomes is null then
    perform routeledger._raise_fault('RL101 outcomes');
  elsif p_inferences is null then
    perform routeledger._raise_fault('RL101 inferences');
  elsif p_window is null then
    perform routeledger._raise_fault('RL101 window');
  elsif p_dry_run is null then
    perform routeledger._raise_fault('RL101 dry_run');
  elsif p_window not between interval '0' and interval '1 day' then
    perform routeledger._raise_fault('RL103 window 0 to 1 day');
  elsif p_stuck_after not between interval '1 minute' and interval '100 years' then
    perform routeledger._raise_fault('RL103 stuck_after 1 minute to 100 years');
  elsif length(p_reason) > 2000 then
    perform routeledger._raise_fault('RL108 reason 2000 characters');
  elsif 2 <> (
    select count(*) from pg_class c where c.oid in (p_outcomes, p_inferences) and c.relkind in ('r', 'p') and c.relpersistence <> 't')
  then
    perform routeledger._raise('RL117', jsonb_build_object('table', p_outcomes::text, 'inferences', p_inferences::text,
      'reason', 'orphans are repaired in two ordinary or partitioned tables that are not temporary'));
  end if;
  v_columns := routeledger._orphan_columns(p_outcomes, p_inferences, p_columns);
  perform routeledger._check_types(p_outcomes, p_inferences, v_columns);
  v_o := v_columns -> 'outcome';
  v_i := v_columns -> 'inference';
  if p_stuck_after is not null and not v_i ? 'status' then
    perform routeledger._raise('RL113', jsonb_build_object('table', routeledger._qualified(p_inferences), 'part', 'inference.status',
      'reason', 'no column plays this part: name it in p_columns'));
  end if;

  if not p_dry_run then
    perform routeledger._run_locked(
      p_outcomes,
      array[
        format('lock table %s in share row exclusive mode', routeledger._rows_of(p_outcomes)),
        format('lock table %s in share row exclusive mode', routeledger._rows_of(p_inferences))],
      interval '1 second', 10);
  end if;

  select jsonb_object_agg(s.side || '_' || p.part, format('%s.%I', left(s.side, 1), p.name)) into v_parts
  from jsonb_each(v_columns) s (side, parts)
  cross join lateral jsonb_each_text(s.parts) p (part, name);
  v_parts := v_parts || jsonb_build_object(
    'outcomes', routeledger._rows_of(p_outcomes), 'inferences', routeledger._rows_of(p_inferences),
    'work', c_work, 'edges', c_edges, 'stuck', c_stuck,
    'outcome_cost', coalesce(v_parts ->> 'outcome_cost', 'null'), 'inference_cost', coalesce(v_parts ->> 'inference_cost', 'null'),
    'inference_since', coalesce(v_parts ->> 'inference_since', v_parts ->> 'inference_at'),
    'is_routed', coalesce('coalesce((' || (v_parts ->> 'inference_status') || ')::text = ''routed'', false)', 'false'),
    -- what the two have in common, as far as both tables say it
    'shared', concat_ws(', ',
      'x.model',
      case when v_o ? 'tenant' and v_i ? 'tenant' then 'x.tenant' end,
      case when v_o ? 'agent' and v_i ? 'agent' then 'x.agent' end),
    'same', concat_ws(' and ',
      'i.shared = o.shared',
      case when v_i ? 'decision' then '(i.decision is null or i.decision = o.id)' end,
      case when p_own then 'i.status = case o.status when ''succeeded'' then ''succeeded'' else ''failed'' end' end),
    'outcome_texts', (
      select string_agg(format('(%s)::text as %I', coalesce(v_parts ->> ('outcome_' || t), 'null'), t), ', ')
      from unnest(array['id', 'model', 'tenant', 'agent', 'status']) t),
    'inference_texts', (
      select string_agg(format('(%s)::text as %I', coalesce(v_parts ->> ('inference_' || t), 'null'), t), ', ')
      from unnest(array['id', 'model', 'tenant', 'agent', 'status', 'decision']) t),
    'orphaned', concat_ws(' and ',
      (v_parts ->> 'outcome_model') || ' is not null',
      (v_parts ->> 'outcome_inference') || ' is null',
      (v_parts ->> 'outcome_status') || ' is not null',
      (v_parts ->> 'outcome_override') || ' is null',
      '(' || (v_parts ->> 'outcome_rule') || ')::text is distinct from ''no_candidate_clears_floor''',
      case when p_tenants is not null then '(' || (v_parts ->> 'outcome_tenant') || ')::text = any ($2)' end),
    'of_tenant', case when p_tenants is not null then '(' || (v_parts ->> 'inference_tenant') || ')::text = any ($2)' else 'true' end,
    'linked', concat_ws(' and ',
      format('(%s)::text = (%s)::text', v_parts ->> 'outcome_inference', v_parts ->> 'inference_id'),
      case when v_o ? 'tenant' and v_i ? 'tenant' then
        format('(%s)::text is not distinct from (%s)::text', v_parts ->> 'outcome_tenant', v_parts ->> 'inference_tenant') end),
    'over', case when p_own then routeledger._fill(
        'not exists (select from {rows} o where o.tenant_id = i.tenant_id and o.id = i.outcome_id and o.outcome_status is null)',
        jsonb_build_object('rows', routeledger._rows_of(p_outcomes)))
      else 'true' end);

  execute format('create temporary table %s (tab oid, tid tid, inference text) on commit drop', c_stuck);
  execute format('create temporary table %s (tab oid, tid tid, outcome text, reason text) on commit drop', c_work);
  execute format('create temporary table %s (tab oid, tid tid, inference text) on commit drop', c_edges);
  if p_stuck_after is not null then
    execute routeledger._fill($q$
      insert into {stuck}
      select i.tableoid, i.ctid, {inference_id}::text
      from {inferences} i
      where {is_routed} and {inference_since} < $1 and {of_tenant} and {over}
    $q$, v_parts) using routeledger.clock() - p_stuck_after, p_tenants;
  end if;

  -- Times are near each other only within one width of the window or in the next, so rows are joined by those and by what
  -- they share, as one value: never row by row, and never by less, whatever the planner thinks of how many there are.
  perform set_config('enable_nestloop', 'off', true);
  execute routeledger._fill($q$
    with candidates as materialized (
      select o.tableoid as tab, o.ctid as tid, {outcome_texts}, {outcome_at} as at, ({outcome_cost})::numeric as cost
      from {outcomes} o
      where {orphaned}
    ),
    o as materialized (
      select x.*, jsonb_build_array(floor(extract(epoch from x.at) / $3) + d.step, {shared})::text as shared
      from candidates x
      cross join generate_series(-1, 1) d (step)
    ),
    i as materialized (
      select x.*, jsonb_build_array(floor(extract(epoch from x.at) / $3), {shared})::text as shared
      from (
        select i.tableoid as tab, i.ctid as tid, {inference_texts}, {inference_at} as at, ({inference_cost})::numeric as cost, {is_routed} as routed
        from {inferences} i
        where {of_tenant} and isfinite({inference_at}) and not exists (select from {outcomes} o where {linked})
      ) x
    ),
    near as (
      select
        o.tab, o.tid, i.id as inference, i.routed and s.tid is null as in_flight, coalesce(o.cost = i.cost, true) as same_cost,
        count(*) filter (where coalesce(o.cost = i.cost, true)) over (partition by i.tab, i.tid) as rivals
      from o
      join i on {same}
      left join {stuck} s on s.tab = i.tab and s.tid = i.tid
      where o.at between i.at - $1 and i.at + $1
    ),
    edges as (
      insert into {edges}
      select n.tab, n.tid, n.inference from near n where n.same_cost
    )
    insert into {work}
    select o.tab, o.tid, o.id,
      case
        when count(n.tab) = 0 then 'no_match'
        when not bool_or(n.same_cost) then 'cost_differs'
        when count(*) filter (where n.same_cost) > 1 then 'several_inferences'
        when max(n.rivals) filter (where n.same_cost) > 1 then 'several_outcomes'
        when bool_or(n.in_flight) filter (where n.same_cost) then 'inference_in_flight'
        else 'only_match' end
    from candidates o
    left join near n on n.tab = o.tab and n.tid = o.tid
    group by o.tab, o.tid, o.id
  $q$, v_parts) using p_window, p_tenants, greatest(extract(epoch from p_window), 0.001);
  perform set_config('enable_nestloop', 'on', true);
  execute format('analyze %s', c_work);
  execute format('analyze %s', c_edges);
  execute format('analyze %s', c_stuck);
  execute format('select count(*) from %s w where w.reason = $1', c_work) into v_links using 'only_match';
  execute format('select count(*) from %s', c_stuck) into v_closes;

  if not p_dry_run and v_links + v_closes > 0 then
    v_repair := routeledger._open_repair('orphans', p_outcomes, p_reason, jsonb_build_object(
      'inferences', routeledger._qualified(p_inferences), 'columns', v_columns, 'window', p_window, 'stuck_after', p_stuck_after,
      'linked', v_links, 'closed', v_closes));
    execute format('select count(*) from %s', routeledger._rows_of(p_outcomes)) into v_before;

    if v_links > 0 then
      select x.image, x.prefix into v_made from routeledger._image_of(v_repair, p_outcomes) x;
      v_parts := v_parts || jsonb_build_object(
        'image', routeledger._qualified(v_made.image), 'no', quote_ident(v_made.prefix || 'no'), 'what', quote_ident(v_made.prefix || 'what'),
        'all', routeledger._image_columns(p_outcomes), 'all_of_row', routeledger._image_columns(p_outcomes, 'o'),
        'link', quote_ident(v_o ->> 'inference'),
        'link_type', (select c ->> 'type' from jsonb_array_elements(routeledger._column_list(p_outcomes)) c where c ->> 'name' = v_o ->> 'inference'));
      execute routeledger._fill($q$
        insert into {image}
        select {all_of_row}, row_number() over (order by w.tab, w.tid), 'before'
        from {work} w
        join {outcomes} o on o.tableoid = w.tab and o.ctid = w.tid
        where w.reason = 'only_match'
      $q$, v_parts);
      -- numbered as in the image: both are in the order of where the rows are
      perform set_config('search_path', p_path, true);
      execute routeledger._fill($q$
        with put as (
          update {outcomes} o
          set {link} = e.inference::{link_type}
          from (
            select w.tab, w.tid, pg_catalog.row_number() over (order by w.tab, w.tid) as n from {work} w where w.reason operator(pg_catalog.=) 'only_match'
          ) w
          join {edges} e on e.tab operator(pg_catalog.=) w.tab and e.tid operator(pg_catalog.=) w.tid
          where o.tableoid operator(pg_catalog.=) w.tab and o.ctid operator(pg_catalog.=) w.tid
          returning {all_of_row}, w.n as {no}
        )
        insert into {image} select {all}, {no}, 'after' from put
      $q$, v_parts);
      get diagnostics v_count = row_count;
      perform set_config('search_path', c_own, true);
      v_changed := v_changed + v_count;
    end if;

    if v_closes > 0 then
      select x.image, x.prefix into v_made from routeledger._image_of(v_repair, p_inferences) x;
      v_parts := v_parts || jsonb_build_object(
        'image', routeledger._qualified(v_made.image), 'no', quote_ident(v_made.prefix || 'no'), 'what', quote_ident(v_made.prefix || 'what'),
        'all', routeledger._image_columns(p_inferences), 'all_of_row', routeledger._image_columns(p_inferences, 'i'),
        'set', (
          select string_agg(format('%I = ', v_i ->> s.part) || s.value, ', ' order by s.n)
          from (values
            (1, 'status', '''failed'''),
            (2, 'error_type', '''abandoned'''),
            (3, 'error_message', '$2 operator(pg_catalog.||) (' || (v_parts ->> 'inference_since') || ')::pg_catalog.text'),
            (4, 'completed_at', '$1')) s (n, part, value)
          where v_i ? s.part));
      execute routeledger._fill($q$
        insert into {image}
        select {all_of_row}, row_number() over (order by s.tab, s.tid), 'before'
        from {stuck} s
        join {inferences} i on i.tableoid = s.tab and i.ctid = s.tid
      $q$, v_parts);
      perform set_config('search_path', p_path, true);
      execute routeledger._fill($q$
        with put as (
          update {inferences} i
          set {set}
          from (select s.tab, s.tid, pg_catalog.row_number() over (order by s.tab, s.tid) as n from {stuck} s) s
          where i.tableoid operator(pg_catalog.=) s.tab and i.ctid operator(pg_catalog.=) s.tid
          returning {all_of_row}, s.n as {no}
        )
        insert into {image} select {all}, {no}, 'after' from put
      $q$, v_parts) using routeledger.clock(), format('closed by repair %s: no completion was recorded, routed since ', v_repair);
      get diagnostics v_count = row_count;
      perform set_config('search_path', c_own, true);
      v_changed := v_changed + v_count;
    end if;

    -- what was written is what is there, also after the triggers of both tables
    execute format('create temporary table %s (n integer, no bigint, what text, tab oid, tid tid, state text) on commit drop', c_checked);
    for v_image in select e from routeledger._read_repair(v_repair) r, jsonb_array_elements(r.images) e order by (e ->> 'n')::integer loop
      v_target := (v_image ->> 'target')::regclass;
      select w.names into v_names from routeledger._written_columns(v_target, v_image -> 'columns') w;
      perform routeledger._locate(
        c_checked, (v_image ->> 'n')::integer, v_target, v_image ->> 'image', v_image ->> 'prefix', v_image -> 'columns', v_names, '{after}');
    end loop;
    execute format('select count(*) from %s c where c.state <> $1', c_checked) into v_count using 'same';
    if v_count > 0 then
      perform routeledger._raise('RL313', jsonb_build_object(
        'repair_id', v_repair, 'table', routeledger._qualified(p_outcomes), 'rows', v_count, 'reason', 'rows are not as they were left',
        'triggers', routeledger._triggers_of(p_outcomes) || routeledger._triggers_of(p_inferences)));
    end if;
    execute format('drop table %s', c_checked);
    execute format('select count(*) from %s', routeledger._rows_of(p_outcomes)) into v_after;
    if v_changed <> v_links + v_closes then
      perform routeledger._raise('RL313', jsonb_build_object('repair_id', v_repair, 'table', routeledger._qualified(p_outcomes),
        'counted', jsonb_build_object('changed', v_changed), 'wanted', v_links + v_closes));
    end if;
    perform routeledger._close_repair(v_repair, v_before, v_after, 0, v_changed, 0, '{}');
  end if;

  return query execute routeledger._fill($q$
    select x.action, x.outcome, x.inference, x.reason, $1
    from (
      select
        1 + (w.reason <> 'only_match')::integer * 2 as n,
        case when w.reason = 'only_match' then 'link' else 'leave' end as action, w.outcome, f.inference, w.reason
      from {work} w
      left join (
        select e.tab, e.tid, string_agg(e.inference, ', ' order by e.inference) as inference
        from (select e.*, row_number() over (partition by e.tab, e.tid order by e.inference) as k from {edges} e) e
        where e.k <= 10
        group by e.tab, e.tid
      ) f on f.tab = w.tab and f.tid = w.tid
      union all
      select 2, 'close', null, s.inference, 'stuck' from {stuck} s
    ) x
    order by x.n, x.outcome collate "C", x.inference collate "C"
  $q$, v_parts) using v_repair;
  execute format('drop table %s', c_work);
  execute format('drop table %s', c_edges);
  execute format('drop table %s', c_stuck);
end
$$;

-- Links decisions that chose a model and lost their inference to it, in any two tables of the caller's, and closes inferences
-- that are stuck. One row for each case: what was done (or would be: p_dry_run), `link`, `close` or `leave`, and why.
--
-- An outcome with a model and without an inference is matched to the inferences that no outcome has, of the same tenant, agent
-- and model (as far as both tables have them), at most p_window away, and of the same cost where both are known. It is
-- linked only where each is the only match of the other: only_match. The rest is left alone: no_match, cost_differs,
-- several_inferences, several_outcomes, inference_in_flight. Outcomes of the rule no_candidate_clears_floor, with an
-- override, or (where there is a status) still without one, are no orphans.
-- With p_stuck_after, inferences that have been `routed` for longer are closed: failed, error_type abandoned, and a message.
-- p_columns says which column is which, {"outcome": {part: name}, "inference": {part: name}}, where it is not the usual name;
-- null means none. Parts of an outcome: id, tenant, agent, model, inference, at, cost, rule, override, status; of an inference:
-- id, tenant, agent, model, at, cost, status, decision (the outcome it was made for), since (routed since; else at),
-- error_type, error_message, completed_at. The repair (repair_id) can be undone.
-- Locks: share row exclusive on the outcomes, then on the inferences (each at most 1 second, ten times); none in a dry run.
-- Errors: RL101, RL103, RL107, RL108, RL113, RL117, RL313, 42501, 55P03, and what the tables and their triggers raise.
create or replace function routeledger.repair_orphans_in(
  p_outcomes regclass,
  p_inferences regclass,
  p_columns jsonb default '{}',
  p_window interval default '3 seconds',
  p_dry_run boolean default true,
  p_stuck_after interval default null,
  p_reason text default null
)
returns table (
  action text,
  outcome text,
  inference text,
  reason text,
  repair_id bigint
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select r.action, r.outcome, r.inference, r.reason, r.repair_id
  from routeledger._repair_orphans(
    p_outcomes, p_inferences, p_columns, p_window, p_dry_run, p_stuck_after, null, false, p_reason,
    routeledger._path_with_temp(pg_catalog.current_setting('search_path'))) r
$$;

-- Does the same in the ledger itself, whose rows may come from an import: a decision that is closed, chose a model and is linked
-- to nothing gets the attempt of its own that ended as it did, within p_window of its end, if there is exactly one. With
-- p_stuck_after, attempts `routed` for longer are closed where their decision is closed or gone; those of a decision in
-- flight are the reaper's. For admins; a role that is bound to tenants repairs theirs only.
-- Locks: share row exclusive on routing_outcomes, then on inferences; none in a dry run.
-- Errors: RL101, RL103, RL108, RL110, RL313, 55P03.
create or replace function routeledger.repair_orphans(
  p_window interval default '3 seconds',
  p_dry_run boolean default true,
  p_stuck_after interval default null,
  p_tenant_id text default null,
  p_reason text default null
)
returns table (
  action text,
  outcome text,
  inference text,
  reason text,
  repair_id bigint
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_bound text[] := routeledger.bound_tenants();
begin
  if p_tenant_id = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (v_bound) then
    perform routeledger._raise_fault('RL110 tenant_id');
  end if;
  return query
  select r.action, r.outcome, r.inference, r.reason, r.repair_id
  from routeledger._repair_orphans(
    'routeledger.routing_outcomes', 'routeledger.inferences',
    '{"outcome": {"at": "completed_at"}, "inference": {"at": "completed_at", "since": "started_at"}}',
    p_window, p_dry_run, p_stuck_after, case when p_tenant_id is null then v_bound else array[p_tenant_id] end, true, p_reason, 'pg_catalog, routeledger, pg_temp') r;
end
$$;

-- Finds what undo_constraint() is to undo: "changes", those of a constraint that are not undone, oldest first, under
-- one label, else the last one that put something in place, took it away or validated what it had found, with all
-- that followed; "last", the last undo of it; "known", whether there ever was such a change, and its "kind". A change counts
-- only if the role that made it may alter the table, because what it found will be executed.
-- Locks: none. Errors: none.
create or replace function routeledger._changes_to_undo(
  p_table regclass,
  p_name text,
  p_label text
)
returns jsonb
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_known bigint[];
  v_first bigint;
begin
  v_known := array(
    select h.id
    from routeledger.constraint_changes h
    join pg_roles r on r.rolname = h.role_name
    join pg_class c on c.oid = p_table and pg_has_role(r.oid, c.relowner, 'usage')
    where h.target = routeledger._qualified(p_table) and h.name = p_name
    order by h.id);
  if p_label is null then
    -- a validation belongs to what was put in place before it, also by an undo
    select coalesce(max(h.id) filter (where h.action <> 'validated'), max(h.id)) into v_first
    from (
      select x.id, x.action, x.undone_at, lag(x.action) over (order by x.id) as earlier
      from routeledger.constraint_changes x
      where x.id = any (v_known) and x.action <> 'unchanged'
    ) h
    where h.undone_at is null and h.action <> 'undone' and (h.action <> 'validated' or h.earlier is distinct from 'undone');
  end if;
  return jsonb_build_object(
    'changes', coalesce((
      select jsonb_agg(to_jsonb(h) order by h.id)
      from routeledger.constraint_changes h
      where h.id = any (v_known) and h.undone_at is null and h.action <> 'undone'
        and case when p_label is null then h.id >= v_first else h.label = p_label end), '[]'),
    'last', (
      select to_jsonb(h)
      from routeledger.constraint_changes h
      where h.id = any (v_known) and h.action = 'undone'
        and case when p_label is null then h.id = (select max(k) from unnest(v_known) k) else h.label = p_label end
      order by h.id desc
      limit 1),
    'known', p_label is not null and exists (select from routeledger.constraint_changes h where h.id = any (v_known) and h.label = p_label),
    'kind', (
      select h.kind from routeledger.constraint_changes h where h.id = any (v_known) and h.label is not distinct from coalesce(p_label, h.label)
      order by h.id desc limit 1));
end
$$;

-- Marks changes of a table's constraints as undone by another. Only a role that may alter the table does so.
-- Locks: the changes' rows. Errors: 42501.
create or replace function routeledger._mark_changes_undone(
  p_table regclass,
  p_ids bigint[],
  p_undone_by bigint
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if not exists (select from pg_class c where c.oid = p_table and pg_has_role(routeledger._caller_role(), c.relowner, 'usage')) then
    raise exception using
      errcode = '42501',
      message = 'permission denied: changes of a constraint are undone by the owner of its table',
      detail = jsonb_build_object('table', routeledger._qualified(p_table), 'role', routeledger._caller_role())::text,
      hint = 'Call as the owner of the table.';
  end if;
  update routeledger.constraint_changes h
  set undone_at = routeledger.clock(), undone_by = p_undone_by
  where h.id = any (p_ids) and h.target = routeledger._qualified(p_table) and h.undone_at is null;
end
$$;

-- Returns the index of that name on a table as _describe_index() does, null when there is none.
-- Locks: none. Errors: none.
create or replace function routeledger._live_index(
  p_table regclass,
  p_name text
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select routeledger._describe_index(i.indexrelid)
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    where i.indrelid = p_table and c.relname = p_name);
end
$$;

-- Puts the unique index back that a change found, or takes away what it made where there was none; with p_rows `restore` the
-- repairs of the changes are undone before that, the last one first. Returns the undos of the repairs.
-- Locks: access exclusive on the table. Errors: RL208, 55P03, as undo_repair(), and what the table raises.
create or replace function routeledger._restore_index(
  p_table regclass,
  p_name text,
  p_before jsonb,
  p_repairs bigint[],
  p_lock_timeout interval,
  p_attempts integer,
  p_path text
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
as $$
declare
  v_undos jsonb := '[]'::jsonb;
  v_repair bigint;
  v_live jsonb;
  v_statements text[] := array[]::text[];
  v_definition text := p_before ->> 'definition';
  v_before jsonb;
  v_head text;
begin
  -- readers of the table are let through until here, so its strictest lock comes first
  perform routeledger._run_locked(
    p_table, array[format('lock table %s in access exclusive mode', routeledger._rows_of(p_table))], p_lock_timeout, p_attempts);
  foreach v_repair in array p_repairs loop
    v_undos := v_undos || (
      select to_jsonb(u.repair_id) from routeledger._undo_repair(v_repair, false, format('undo of %s', p_name), false, p_path) u);
  end loop;

  v_live := routeledger._live_index(p_table, p_name);
  if v_live is not null and (
    v_live ->> 'definition' is distinct from v_definition or (v_live ->> 'constraint') is distinct from (p_before ->> 'constraint')
    or not (v_live ->> 'validated')::boolean)
  then
    v_statements := v_statements || routeledger._index_statements(p_table, v_live, false);
    v_live := null;
  end if;
  if v_live is null and v_definition is not null then
    -- what the history says is taken for this table and this name only
    v_before := p_before || jsonb_build_object('name', p_name, 'schema', (
      select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table));
    select h into v_head
    from unnest(array[
      format('CREATE UNIQUE INDEX %I ON %s ', p_name, routeledger._qualified(p_table)),
      format('CREATE UNIQUE INDEX %I ON ONLY %s ', p_name, routeledger._qualified(p_table))]) h
    where starts_with(v_definition, h);
    if v_head is null or not routeledger._is_one_expression(substr(v_definition, length(v_head) + 1)) then
      perform routeledger._raise('RL208', jsonb_build_object('table', routeledger._qualified(p_table), 'name', p_name, 'definition', v_definition,
        'reason', 'what the change found is not one definition of an index of this table'));
    end if;
    v_statements := v_statements || routeledger._index_statements(p_table, v_before, true);
  end if;
  if cardinality(v_statements) > 0 then
    perform routeledger._run_locked(p_table, v_statements, p_lock_timeout, p_attempts);
  end if;
  return v_undos;
end
$$;

-- Undoes changes of a constraint; see undo_constraint().
-- Locks: as undo_constraint(). Errors: as undo_constraint().
create or replace function routeledger._undo_constraint(
  p_table regclass,
  p_name text,
  p_label text,
  p_rows text,
  p_lock_timeout interval,
  p_attempts integer,
  p_strict boolean,
  p_path text
)
returns table (
  outcome text,
  validated boolean,
  violations bigint,
  definition text,
  found text,
  reason text,
  next text,
  detail jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_target text;
  v_fault text;
  v_plan jsonb;
  v_kind text;
  v_before jsonb;
  v_live jsonb;
  v_found text;
  v_after jsonb;
  v_ids bigint[];
  v_undos jsonb;
  v_change bigint;
  v_state text;
  v_message text;
  v_text text;
begin
  perform routeledger._check_table(p_table);
  v_fault := coalesce(
    routeledger._constraint_fault(p_name, p_label, 'refuse'),
    routeledger._lock_fault(p_lock_timeout, p_attempts),
    case
      when p_rows is null or p_rows not in ('restore', 'leave') then 'RL102 rows restore, leave'
      when p_strict is null then 'RL101 strict'
    end);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_target := routeledger._qualified(p_table);
  detail := '{}'::jsonb;
  perform routeledger._serialize(p_table, p_name);
  v_plan := routeledger._changes_to_undo(p_table, p_name, p_label);

  -- The last step of an undo that has been committed: what had been validated is so again.
  if jsonb_typeof(v_plan -> 'last') = 'object' and (v_plan -> 'changes' = '[]' or p_label is null)
    and v_plan #>> '{last,kind}' = 'check' and (v_plan #>> '{last,after,validated}')::boolean and (v_plan #>> '{last,after,enforced}')::boolean
  then
    v_live := routeledger._live_constraint(p_table, p_name);
    if v_live ->> 'predicate' = v_plan #>> '{last,after,predicate}' and not (v_live ->> 'validated')::boolean then
      return query
      select e.outcome, e.validated, e.violations, e.definition, e.found, e.reason,
        replace(e.next, 'ensure_check', 'undo_constraint'), e.detail
      from routeledger.ensure_check(
        p_table, p_name, v_live ->> 'predicate', p_if_violated => 'add_not_valid', p_no_inherit => (v_live ->> 'no_inherit')::boolean,
        p_lock_timeout => p_lock_timeout, p_attempts => p_attempts, p_strict => p_strict) e;
      return;
    end if;
  end if;

  if v_plan -> 'changes' = '[]' and not (v_plan ->> 'known')::boolean then
    perform routeledger._raise('RL208', jsonb_strip_nulls(jsonb_build_object('table', v_target, 'name', p_name, 'label', p_label)));
  end if;
  v_kind := coalesce(v_plan #>> '{changes,0,kind}', v_plan ->> 'kind');
  v_before := nullif(v_plan #> '{changes,0,before}', 'null');
  v_ids := array(select (e ->> 'id')::bigint from jsonb_array_elements(v_plan -> 'changes') e);
  v_live := case v_kind
    when 'check' then routeledger._image_of_constraint(routeledger._live_constraint(p_table, p_name))
    when 'not_null' then routeledger._image_of_constraint(
      routeledger._live_not_null(p_table, coalesce(v_before ->> 'column', v_plan #>> '{last,after,column}')))
    else routeledger._live_index(p_table, p_name) end;
  v_found := coalesce(v_live ->> 'predicate', v_live ->> 'definition');

  if not exists (
    select from jsonb_array_elements(v_plan -> 'changes') e where e ->> 'action' <> 'unchanged')
  then
    outcome := 'unchanged';
    validated := coalesce((v_live ->> 'validated')::boolean, false);
    definition := v_found;
    if cardinality(v_ids) > 0 then
      perform routeledger._mark_changes_undone(p_table, v_ids, null);
    end if;
    return query select outcome, validated, violations, definition, v_found, reason, next, detail;
    return;
  end if;

  if not routeledger._may_alter(p_table) then
    reason := 'not_owner';
  else
    begin
      if v_kind = 'unique' then
        v_undos := routeledger._restore_index(
          p_table, p_name, v_before,
          array(
            select distinct (e ->> 'repair_id')::bigint as id
            from jsonb_array_elements(v_plan -> 'changes') e
            cross join lateral routeledger._read_repair((e ->> 'repair_id')::bigint) r
            where p_rows = 'restore' and (r.repair).state <> 'undone' and (r.repair).target = v_target
            order by id desc),
          p_lock_timeout, p_attempts, p_path);
        v_after := routeledger._live_index(p_table, p_name);
        validated := coalesce((v_after ->> 'validated')::boolean, false);
        detail := jsonb_build_object('repairs', v_undos);
      else
        if v_kind = 'not_null' and (v_before ->> 'not_null')::boolean and not (v_before ->> 'validated')::boolean and (v_live ->> 'validated')::boolean then
          perform routeledger._run_locked(
            p_table,
            array[format('alter table %s drop constraint %I, add constraint %I not null %I not valid',
              v_target, v_live ->> 'name', coalesce(v_before ->> 'name', p_name), v_before ->> 'column')],
            p_lock_timeout, p_attempts);
        else
          validated := routeledger._restore_check(p_table, p_name, v_kind, coalesce(v_before, '{}'), p_lock_timeout, p_attempts);
        end if;
        if v_kind = 'check' and not validated and (v_before ->> 'validated')::boolean then
          next := 'Commit, then call undo_constraint again: it validates the constraint.';
        end if;
        v_after := case v_kind
          when 'check' then routeledger._image_of_constraint(routeledger._live_constraint(p_table, p_name))
          else routeledger._image_of_constraint(routeledger._live_not_null(p_table, v_before ->> 'column')) end;
        validated := coalesce((v_after ->> 'validated')::boolean, false);
      end if;
    exception
      when sqlstate 'RL310' or sqlstate 'RL311' or sqlstate 'RL313' or unique_violation or dependent_objects_still_exist then
        get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_text = pg_exception_detail;
        reason := case v_state
          when 'RL310' then 'changed_since' when 'RL311' then 'images_dropped' when 'RL313' then 'triggers'
          when '23505' then 'duplicates' else 'referenced' end;
        detail := jsonb_build_object('message', v_message, 'detail', case when v_state like 'RL%' then v_text::jsonb else to_jsonb(v_text) end);
    end;
  end if;
  if reason is not null then
    if p_strict then
      perform routeledger._raise('RL309', detail || jsonb_build_object('table', v_target, 'name', p_name, 'reason', reason));
    end if;
    outcome := 'refused';
    validated := coalesce((v_live ->> 'validated')::boolean, false);
    definition := coalesce(v_before ->> 'predicate', v_before ->> 'definition');
    next := null;
    return query select outcome, validated, violations, definition, v_found, reason, next, detail;
    return;
  end if;

  definition := coalesce(v_after ->> 'predicate', v_after ->> 'definition');
  outcome := case when definition is not distinct from v_found and validated = coalesce((v_live ->> 'validated')::boolean, false) then 'unchanged' when v_found is null then 'created' else 'replaced' end;
  -- what had been validated is noted as such, so that the next call goes on
  v_change := routeledger._record_change(
    v_target, p_name, v_kind, 'undone', v_live,
    case when next is null then v_after else v_after || '{"validated": true}' end,
    p_label, null, coalesce(routeledger._live_constraint(p_table, p_name) -> 'functions', '[]'));
  perform routeledger._mark_changes_undone(p_table, v_ids, v_change);
  detail := detail || jsonb_build_object('change_id', v_change, 'undone', v_ids);
  return query select outcome, validated, violations, definition, v_found, reason, next, detail;
end
$$;

-- Puts back what a change of a constraint found: the older predicate, the older index, or none. With p_label all changes under
-- that label are undone together, else the last one; what only validated or found a constraint unchanged needs no undoing. An
-- index that collapsed rows gives them back (p_rows `leave`: it only goes), or the call is refused when they have changed.
--
-- Returns one row like ensure_check(): `created`, `replaced` (definition null: it is gone) or `unchanged`, and `refused` with
-- not_owner, changed_since, images_dropped, duplicates, referenced or triggers. A CHECK that had been valid comes back NOT VALID; the
-- same call in a new transaction validates it, while `next` says so.
-- Locks: the advisory lock of (table, constraint), then access exclusive on the table, waiting at most p_lock_timeout, p_attempts times.
-- Errors: RL101, RL102, RL103, RL108, RL117, RL208, RL309 (p_strict), 55P03, and what the table raises.
create or replace function routeledger.undo_constraint(
  p_table regclass,
  p_name text,
  p_label text default null,
  p_rows text default 'restore',
  p_lock_timeout interval default '1 second',
  p_attempts integer default 10,
  p_strict boolean default false
)
returns table (
  outcome text,
  validated boolean,
  violations bigint,
  definition text,
  found text,
  reason text,
  next text,
  detail jsonb
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select u.outcome, u.validated, u.violations, u.definition, u.found, u.reason, u.next, u.detail
  from routeledger._undo_constraint(
    p_table, p_name, p_label, p_rows, p_lock_timeout, p_attempts, p_strict,
    routeledger._path_with_temp(pg_catalog.current_setting('search_path'))) u
$$;
