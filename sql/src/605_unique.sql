-- 605 · Unique keys: a table comes to hold the unique index that ON CONFLICT needs, also when it is full of duplicates.
--
-- Which row of a key stays is decided by the same total order as in an upsert: the terms of `keep`, then the whole
-- row, then its place. Every row that goes is kept in an image of its repair before it goes, and so is the row that
-- stays for it. Two rows are of one key when the index itself would say so: its expressions, its collations, its NULLS mode.
--
-- Two ways lead there. ensure_unique() does it in one transaction: writers wait, readers do not. unique_step() says,
-- each time anew from the catalogue, what a client has to run next so that nobody waits: collapse in small
-- transactions, build concurrently, attach. Nothing has to be remembered that the catalogue or an open repair does not hold.
--
-- Nothing that needs an ACCESS EXCLUSIVE lock follows in a transaction that holds a weaker lock of the table, or a
-- reader that goes on to write would deadlock with it: what is left of a failed build is dropped in a transaction
-- before, and a swap or an attachment happens in a transaction after.
--
-- The key of a partitioned table holds its partition key, so that all rows of one key are in one leaf: leaves are
-- looked at one by one, as ordinary tables.
--
-- Lock order: the advisory lock of (table, index), the table (share row exclusive), its duplicates in the order of
-- the key, then the rows that point to them, table by table in the order of their names.

-- Duplicates that an open repair has found and not yet collapsed, by their places. Unlogged: after a crash they are
-- looked for again. A place is a hint: what stands there is looked at again.
create unlogged table if not exists routeledger.duplicate_rows (
  repair_id bigint not null,
  n bigint generated always as identity,
  leaf oid not null,
  key_no bigint not null,
  place tid not null
);

create index if not exists duplicate_rows_repair_id_idx on routeledger.duplicate_rows (repair_id, leaf, key_no, n);

-- Returns a name of at most 63 bytes that ends in the suffix.
-- Locks: none. Errors: none.
create or replace function routeledger._suffixed(
  p_name text,
  p_suffix text
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_name text := p_name;
begin
  while octet_length(v_name) + octet_length(p_suffix) > 63 loop
    v_name := left(v_name, -1);
  end loop;
  return v_name || p_suffix;
end
$$;

-- Returns the name of the index of a leaf that belongs to the unique index of that name of its root: the same each time.
-- Locks: none. Errors: none.
create or replace function routeledger._leaf_index_name(
  p_name text,
  p_leaf regclass
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return routeledger._suffixed(p_name, '_' || substr(md5(routeledger._qualified(p_leaf)), 1, 12));
end
$$;

-- Returns the key of the advisory lock that a client holds, for its session, while it builds a unique index online.
-- Nobody waits for it: a session that waits inside a statement would be waited for by CREATE INDEX CONCURRENTLY.
-- Locks: none. Errors: none.
create or replace function routeledger._online_key(
  p_table regclass,
  p_name text
)
returns bigint
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return hashtextextended('routeledger.online:' || routeledger._qualified(p_table) || ':' || p_name, 0);
end
$$;

-- Returns what makes a unique index the one it is: of each part the column (null: an expression), the collation and the
-- equality by which it compares; the expressions and the predicate, as they are printed of p_printed_of, a table
-- of the same columns. How it is sorted and what it includes besides makes no difference.
-- Locks: access share on p_printed_of, given back. Errors: none.
create or replace function routeledger._index_identity(
  p_index oid,
  p_printed_of regclass
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set quote_all_identifiers = off
set standard_conforming_strings = on
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set xmloption = 'content'
as $$
begin
  return (
    select jsonb_build_object(
      'parts', (
        select jsonb_agg(jsonb_build_array(a.attname, i.indcollation[k.n - 1], o.amopopr) order by k.n)
        from unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
        left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and k.attnum <> 0
        join pg_opclass c on c.oid = i.indclass[k.n - 1]
        join pg_amop o on o.amopfamily = c.opcfamily and o.amoplefttype = c.opcintype and o.amoprighttype = c.opcintype and o.amopstrategy = 3
        where k.n <= i.indnkeyatts),
      'expressions', pg_get_expr(i.indexprs, p_printed_of),
      'where', pg_get_expr(i.indpred, p_printed_of))
    from pg_index i
    where i.indexrelid = p_index);
end
$$;

-- Returns the functions that the CHECKs of a probe call, and the domains they cast to, of owners who have not the rights of the caller
-- already: whoever runs their code gives these owners rights.
-- Locks: none. Errors: none.
create or replace function routeledger._foreign_code(
  p_probe regclass
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
begin
  return array(
    select p.oid::regprocedure::text
    from pg_constraint c
    cross join lateral regexp_matches(c.conbin::text, ':(?:funcid|opfuncid) (\d+)', 'g') f (id)
    join pg_proc p on p.oid = f.id[1]::oid and p.oid >= 16384
    where c.conrelid = p_probe and not pg_has_role(p.proowner, current_user, 'member')
    union
    select t.oid::regtype::text
    from pg_constraint c
    cross join lateral regexp_matches(c.conbin::text, ':resulttype (\d+)', 'g') f (id)
    join pg_type a on a.oid = f.id[1]::oid
    join pg_type t on t.oid in (a.oid, a.typelem) and t.oid >= 16384 and t.typtype = 'd'
    where c.conrelid = p_probe and not pg_has_role(t.typowner, current_user, 'member')
    order by 1);
end
$$;

-- Makes a unique index of these parts on an empty table of the same name and columns, reads how PostgreSQL prints
-- it, and leaves nothing behind. With p_elsewhere it is parsed as in a session at the other end of the world; else
-- `live` has the identity of each unique index that the table itself has, for which no lock on it is needed. CREATE INDEX runs
-- functions over constants at once: with p_look_only functions of others are refused.
-- Locks: none. Errors: RL116, RL118.
create or replace function routeledger._probe_unique(
  p_table regclass,
  p_parts text[],
  p_where text,
  p_nulls_equal boolean,
  p_elsewhere boolean,
  p_look_only boolean
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
set quote_all_identifiers = off
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set xmloption = 'content'
set client_min_messages = error
as $$
declare
  v_path text := routeledger._path_of(p_table);
  v_name text := (select c.relname from pg_class c where c.oid = p_table);
  v_statement text := format(
    'create unique index routeledger_probe on pg_temp.%I (%s)%s', v_name, array_to_string(p_parts, ', '), case when p_nulls_equal then ' nulls not distinct' else '' end);
  v_bad text := '';
  v_probe regclass;
  v_foreign text[];
  v_index oid;
  v_read jsonb;
  v_message text;
begin
  begin
    v_probe := routeledger._make_probe(p_table);
    perform set_config('search_path', v_path, true);
    if p_elsewhere then
      perform set_config('timezone', 'Pacific/Kiritimati', true), set_config('datestyle', 'SQL, DMY', true), set_config('intervalstyle', 'sql_standard', true);
    end if;
    v_bad := 'RL118';
    if p_look_only then
      -- a CHECK is parsed and nothing of it is run
      for v_n in 1 .. cardinality(p_parts) loop
        execute format(e'alter table pg_temp.%I add check ((%s\n) is null) not valid', v_name, p_parts[v_n]);
      end loop;
      if p_where is not null then
        v_bad := 'RL116';
        execute format(e'alter table pg_temp.%I add check ((%s\n) is null) not valid', v_name, p_where);
        v_bad := 'RL118';
      end if;
      v_foreign := routeledger._foreign_code(v_probe);
      if v_foreign <> '{}' then
        raise exception using errcode = '42501', message = format('it calls %s, of another role, and would run it with the rights of the caller', array_to_string(v_foreign, ', '));
      end if;
    end if;
    execute v_statement;
    if p_where is not null then
      drop index pg_temp.routeledger_probe;
      v_bad := 'RL116';
      execute v_statement || format(e' where (%s\n)', p_where);
    end if;
    v_bad := '';
    perform set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true), set_config('intervalstyle', 'postgres', true);
    perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
    v_index := (select c.oid from pg_class c where c.relname = 'routeledger_probe' and c.relnamespace = pg_my_temp_schema());
    v_read := jsonb_build_object(
      'identity', routeledger._index_identity(v_index, v_probe),
      'classes', (select i.indclass::text from pg_index i where i.indexrelid = v_index),
      'key', (select jsonb_agg(p.target_sql order by p.n) from routeledger._index_parts(v_index) p),
      'parts', (select jsonb_agg(p.column_name order by p.n) from routeledger._index_parts(v_index) p),
      'needs', to_jsonb(routeledger._index_columns(v_index)),
      'where', (select pg_get_expr(i.indpred, i.indrelid) from pg_index i where i.indexrelid = v_index),
      'tail', (
        select substr(d.text, strpos(d.text, quote_ident(v_name) || ' USING btree (') + length(quote_ident(v_name)))
        from pg_get_indexdef(v_index) d (text)));
    if not p_elsewhere then
      v_read := v_read || jsonb_build_object('live', (
        select coalesce(jsonb_object_agg(i.indexrelid::text, routeledger._index_identity(i.indexrelid, v_probe)), '{}')
        from pg_index i where i.indrelid = p_table and i.indisunique));
    end if;
    raise exception using errcode = 'UNDO0', message = 'undone on purpose';
  exception
    when sqlstate 'UNDO0' then
      null;
    when others then
      get stacked diagnostics v_message = message_text;
      if v_bad = '' or sqlstate like 'RL%' then
        raise;
      end if;
      perform routeledger._raise(v_bad, jsonb_build_object('table', routeledger._qualified(p_table), 'sqlstate', sqlstate, 'reason', v_message)
        || case v_bad when 'RL118' then jsonb_build_object('columns', p_parts) else jsonb_build_object('predicate', p_where) end);
  end;
  return v_read;
end
$$;

-- Reads the parts and the predicate of a unique key as PostgreSQL prints them, round after round until nothing
-- changes any more: the last round, and in `rounds` all of them, because a live index may hold the text of any.
-- Locks: none. Errors: RL116, RL118.
create or replace function routeledger._read_unique(
  p_table regclass,
  p_columns text[],
  p_where text,
  p_nulls_equal boolean,
  p_look_only boolean
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_bad text;
  v_parts text[];
  v_live jsonb;
  v_read jsonb;
  v_next jsonb;
  v_rounds jsonb;
begin
  select c into v_bad
  from unnest(p_columns) c
  where routeledger._column_named(p_table, c) is null and not routeledger._is_one_expression(c)
  limit 1;
  if v_bad is not null then
    perform routeledger._raise('RL118', jsonb_build_object('table', routeledger._qualified(p_table), 'column', v_bad, 'reason', 'it is neither a column nor one expression'));
  elsif p_where is not null and not routeledger._is_one_expression(p_where) then
    perform routeledger._raise('RL116', jsonb_build_object('table', routeledger._qualified(p_table), 'predicate', p_where, 'reason', 'it is not one expression'));
  end if;
  v_parts := array(
    select coalesce(quote_ident(routeledger._column_named(p_table, c)), '(' || c || e'\n)') from unnest(p_columns) with ordinality u (c, n) order by n);
  v_read := routeledger._probe_unique(p_table, v_parts, p_where, p_nulls_equal, false, p_look_only);
  v_live := v_read -> 'live';
  v_read := v_read - 'live';
  if v_read <> routeledger._probe_unique(p_table, v_parts, p_where, p_nulls_equal, true, false) then
    perform routeledger._raise('RL116', jsonb_build_object('table', routeledger._qualified(p_table), 'columns', p_columns, 'predicate', p_where,
      'reason', 'a date, time or interval in it means something else in another session: write it as ISO 8601, and with its zone'));
  end if;
  -- 'now' and its like are read once and for all when the index is made
  select m.literal[1] into v_bad
  from unnest(p_columns || p_where) u (said)
  cross join lateral regexp_matches(u.said, '(''\s*(?:now|today|tomorrow|yesterday)\M[^'']*'')', 'gi') m (literal)
  where strpos(v_read ->> 'tail', m.literal[1]) = 0
  limit 1;
  if v_bad is not null then
    perform routeledger._raise('RL116', jsonb_build_object('table', routeledger._qualified(p_table), 'columns', p_columns, 'predicate', p_where,
      'reason', format('%s is a time of its own each time that it is read', v_bad)));
  end if;
  v_rounds := jsonb_build_array(v_read);
  for v_round in 1 .. 5 loop
    v_next := routeledger._probe_unique(
      p_table, array(select k from jsonb_array_elements_text(v_read -> 'key') with ordinality e (k, n) order by n), v_read ->> 'where', p_nulls_equal, false, false) - 'live';
    exit when v_next = v_read;
    v_read := v_next;
    v_rounds := v_rounds || jsonb_build_array(v_read);
  end loop;
  select k into v_bad from jsonb_array_elements_text(v_read -> 'key') k group by k having count(*) > 1 limit 1;
  if v_bad is not null then
    perform routeledger._raise('RL118', jsonb_build_object('table', routeledger._qualified(p_table), 'column', v_bad, 'reason', 'it is named twice'));
  end if;
  return v_read || jsonb_build_object('rounds', v_rounds, 'live', v_live);
end
$$;

-- Returns the unique indexes of a table that are the one that was read: the same identity, the same NULLS mode (which makes no
-- difference where no part can be NULL). `serves`: it is valid and immediate, so ON CONFLICT can use it; `plain`: it
-- can be made a constraint. `definition` is null where it takes a lock on the table to print it.
-- Locks: none on the table that was read, else access share for a moment. Errors: none.
create or replace function routeledger._same_indexes(
  p_table regclass,
  p_read jsonb,
  p_nulls_equal boolean
)
returns table (
  index oid,
  name text,
  constraint_name text,
  is_primary boolean,
  serves boolean,
  plain boolean,
  definition text
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select
    i.indexrelid,
    c.relname::text,
    k.conname::text,
    i.indisprimary,
    i.indisvalid and i.indisready and i.indislive and i.indimmediate,
    i.indpred is null and i.indexprs is null and o.plain,
    case when o.plain and i.indnatts = i.indnkeyatts and c.reloptions is null and i.indnullsnotdistinct = p_nulls_equal and i.indclass::text = r.value ->> 'classes' then
      format('CREATE UNIQUE INDEX %I ON %s%s%s', c.relname, case c.relkind when 'I' then 'ONLY ' else '' end, routeledger._qualified(p_table), r.value ->> 'tail') end
  from pg_index i
  join pg_class c on c.oid = i.indexrelid
  left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('u', 'p')
  cross join lateral (select not exists (select from unnest(i.indoption::smallint[]) o where o <> 0) as plain) o
  cross join lateral (select coalesce(p_read -> 'live' -> i.indexrelid::text, routeledger._index_identity(i.indexrelid, i.indrelid)) as identity) d
  cross join lateral (select e.value from jsonb_array_elements(p_read -> 'rounds') e where e.value -> 'identity' = d.identity limit 1) r
  where i.indrelid = p_table and i.indisunique
    and (i.indnullsnotdistinct = p_nulls_equal or not exists (
      select from unnest((i.indkey::smallint[])[0:i.indnkeyatts - 1]) u (attnum)
      left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum and u.attnum <> 0
      where not coalesce(a.attnotnull, false)));
end
$$;

-- Prints an index as CREATE INDEX, the same in every session.
-- Locks: access share on its table for a moment. Errors: none.
create or replace function routeledger._index_definition(
  p_index oid
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set quote_all_identifiers = off
set standard_conforming_strings = on
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set xmloption = 'content'
as $$
begin
  return pg_get_indexdef(p_index);
end
$$;

-- Returns the foreign keys that point to a table, or to what it is a part of or consists of: each with the table
-- that holds it, how that is written in FROM, whether it is the same table, and the pairs of columns.
-- Locks: none. Errors: none.
create or replace function routeledger._referencing(
  p_table regclass
)
returns table (
  name text,
  child regclass,
  child_sql text,
  itself boolean,
  columns text[],
  referenced text[],
  operators text[],
  on_delete text
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_family oid[] := array(select t.relation::oid from routeledger._tree(p_table) t)
    || array(select a.relid::oid from pg_partition_ancestors(p_table) a);
begin
  return query
  select
    f.conname::text,
    f.conrelid::regclass,
    case when c.relkind = 'p' then '' else 'only ' end || routeledger._qualified(f.conrelid),
    f.conrelid = any (v_family),
    k.columns,
    k.referenced,
    k.operators,
    case f.confdeltype when 'a' then 'no action' when 'r' then 'restrict' when 'c' then 'cascade' when 'n' then 'set null' else 'set default' end
  from pg_constraint f
  join pg_class c on c.oid = f.conrelid
  cross join lateral (
    select
      array_agg(a.attname::text order by u.n) as columns,
      array_agg(r.attname::text order by u.n) as referenced,
      array_agg(format('operator(%I.%s)', s.nspname, o.oprname) order by u.n) as operators
    from unnest(f.conkey, f.confkey, f.conpfeqop) with ordinality u (k, r, op, n)
    join pg_attribute a on a.attrelid = f.conrelid and a.attnum = u.k
    join pg_attribute r on r.attrelid = f.confrelid and r.attnum = u.r
    join pg_operator o on o.oid = u.op
    join pg_namespace s on s.oid = o.oprnamespace
  ) k
  where f.contype = 'f' and f.conparentid = 0 and f.confrelid = any (v_family)
  order by routeledger._qualified(f.conrelid), f.conname;
end
$$;

-- Returns the triggers and rules of a table, and of its partitions, that a DELETE (or an UPDATE) would fire in this session.
-- Locks: none. Errors: none.
create or replace function routeledger._fired_by(
  p_table regclass,
  p_update boolean
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object('table', f.relation, 'trigger', f.name, 'on', case when p_update then 'update' else 'delete' end) order by f.relation, f.name)
    from (
      select routeledger._qualified(g.tgrelid) as relation, g.tgname::text as name
      from pg_trigger g
      where g.tgrelid in (select t.relation from routeledger._tree(p_table) t) and not g.tgisinternal and g.tgparentid = 0
        and g.tgtype & case when p_update then 16 else 8 end <> 0
        and g.tgenabled = any (case current_setting('session_replication_role') when 'replica' then '{R,A}' else '{O,A}' end::"char"[])
      union all
      select routeledger._qualified(w.ev_class), w.rulename::text
      from pg_rewrite w
      where w.ev_class in (select t.relation from routeledger._tree(p_table) t) and w.ev_enabled <> 'D'
        and w.ev_type = case when p_update then '2' else '4' end
    ) f), '[]');
end
$$;

-- Reads what is declared: the key as PostgreSQL prints it, and the pieces of SQL that the rest is made of. `key` holds its parts,
-- `parts` the column of each (null: an expression), `needs` all columns they are made of, `where` the predicate, `tail`
-- what follows CREATE UNIQUE INDEX … ON …, `definition` what the catalogue will print. `x` is a prefix that no column begins
-- with; `covered` the condition for the rows of which the index holds but one of a key; `key_columns` the parts as columns
-- of a query, `key_names` their names in it; `terms` the order of the rows of a key, the one that stays first, and `rest`
-- what decides between equals; `sentinels` the columns whose NULL counts as a value in the key.
-- Locks: none. Errors: RL101, RL102, RL114, RL116, RL118.
create or replace function routeledger._unique_declared(
  p_table regclass,
  p_name text,
  p_columns text[],
  p_keep text,
  p_nulls text,
  p_where text,
  p_form text,
  p_look_only boolean
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_table text := routeledger._qualified(p_table);
  v_read jsonb;
  v_key text[];
  v_all text[];
  v_terms routeledger.upsert_term[];
  v_x text := '_rl_';
  v_n integer := 0;
begin
  if coalesce(cardinality(p_columns), 0) = 0 then
    perform routeledger._raise_fault('RL101 columns names or expressions');
  elsif p_nulls is null or p_nulls not in ('distinct', 'not_distinct') then
    perform routeledger._raise_fault('RL102 nulls distinct, not_distinct');
  elsif p_form is null or p_form not in ('index', 'constraint') then
    perform routeledger._raise_fault('RL102 form index, constraint');
  end if;
  perform routeledger._check_names(p_columns, 'columns');
  v_read := routeledger._read_unique(p_table, p_columns, p_where, p_nulls = 'not_distinct', p_look_only);
  v_key := array(select k from jsonb_array_elements_text(v_read -> 'key') with ordinality e (k, n) order by n);
  if p_form = 'constraint' and (v_read ->> 'where' is not null or exists (
    select from unnest(v_key) k
    where k not in (
      select quote_ident(c ->> 'name') || coalesce(' collate ' || (c ->> 'collation'), '') from jsonb_array_elements(routeledger._column_list(p_table)) c)))
  then
    perform routeledger._raise('RL118', jsonb_build_object('table', v_table, 'columns', p_columns, 'predicate', p_where,
      'reason', 'a constraint is made of whole columns in their own collation, and has no predicate'),
      'Leave p_form out: the index is all that ON CONFLICT needs.');
  end if;
  v_all := array(
    select a.attname::text from pg_attribute a where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped order by a.attnum);
  while exists (select from unnest(v_all) a where starts_with(a, v_x)) loop
    v_n := v_n + 1;
    v_x := '_rl' || v_n || '_';
  end loop;
  if p_keep is not null then
    v_terms := routeledger._read_precedence(p_table, v_all, p_keep);
    if v_terms[1].rule = 'sum' then
      perform routeledger._raise('RL114', jsonb_build_object('precedence', p_keep, 'reason', 'rows that are collapsed are not added up'));
    end if;
  end if;
  return v_read || (
    select jsonb_build_object(
      'table', v_table,
      'schema', n.nspname,
      'relname', c.relname,
      'partitioned', c.relkind = 'p',
      'name', p_name,
      'new_name', routeledger._suffixed(p_name, '__new'),
      'fence_name', routeledger._suffixed(p_name, '__fence'),
      'form', p_form,
      'keep', p_keep,
      'x', v_x,
      'definition', case p_form
        when 'constraint' then format('UNIQUE %s(%s)', case p_nulls when 'not_distinct' then 'NULLS NOT DISTINCT ' else '' end,
          (select string_agg(quote_ident(k), ', ' order by u.n) from jsonb_array_elements_text(v_read -> 'parts') with ordinality u (k, n)))
        else format('CREATE UNIQUE INDEX %I ON %s%s%s', p_name, case c.relkind when 'p' then 'ONLY ' else '' end, v_table, v_read ->> 'tail') end,
      'covered', concat_ws(' and ',
        'true',
        case p_nulls when 'distinct' then (select string_agg(format('(%s) is distinct from null', k), ' and ' order by u.n) from unnest(v_key) with ordinality u (k, n)) end,
        '(' || (v_read ->> 'where') || ')'),
      'key_columns', (select string_agg(format('%s as %sk%s', k, v_x, u.n), ', ' order by u.n) from unnest(v_key) with ordinality u (k, n)),
      'key_names', (select string_agg(format('s.%sk%s', v_x, u.n), ', ' order by u.n) from unnest(v_key) with ordinality u (k, n)),
      'terms', (
        select string_agg(format('%s %s nulls last', routeledger._term_sql('s', t), case t.rule when 'first' then 'asc' else 'desc' end), ', ' order by t.n)
        from unnest(v_terms) t),
      'rest', format('%s using operator(pg_catalog.*>), s.%splace', routeledger._image_sql('s', v_all), v_x),
      'sentinels', coalesce((
        select jsonb_agg(distinct jsonb_build_object('column', a.attname, 'value', m.part[2]))
        from unnest(v_key) k
        cross join regexp_matches(k, $re$\mCOALESCE\(\(*("(?:[^"]|"")+"|\w+)\)*(?:::[^,]*)?, \(*('(?:[^']|'')*'|-?[\d.]+|true|false)$re$, 'g') m (part)
        join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and not a.attnotnull and quote_ident(a.attname) = m.part[1]), '[]'))
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = p_table);
end
$$;

-- Returns why a unique index cannot be made, attached or put in the place of another, and what DETAIL says of it; nulls
-- when nothing is in the way but the rows themselves.
-- Locks: none. Errors: none.
create or replace function routeledger._unique_obstacle(
  p_table regclass,
  p_plan jsonb,
  out reason text,
  out why jsonb
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_name text := p_plan ->> 'name';
  v_constraint boolean := p_plan ->> 'form' = 'constraint';
  v_named oid := (p_plan #>> '{named,oid}')::oid;
begin
  if not routeledger._may_alter(p_table) then
    reason := 'not_owner';
    why := jsonb_build_object('owners', routeledger._owners_of(p_table));
    return;
  elsif v_constraint and (p_plan ->> 'partitioned')::boolean then
    reason := 'partitioned_constraint';
    why := jsonb_build_object('note', 'an index cannot be made a constraint of a partitioned table; leave p_form out: the index is all that ON CONFLICT needs');
    return;
  elsif exists (
    select from routeledger._tree(p_table) t
    join pg_partitioned_table p on p.partrelid = t.relation
    cross join unnest(p.partattrs::smallint[]) k (attnum)
    left join pg_attribute a on a.attrelid = t.relation and a.attnum = k.attnum and k.attnum <> 0
    where a.attname is null or not p_plan -> 'parts' ? a.attname::text)
  then
    reason := 'partition_key';
    why := jsonb_build_object('partition_key', (
      select jsonb_object_agg(routeledger._qualified(t.relation), pg_get_partkeydef(t.relation))
      from routeledger._tree(p_table) t join pg_partitioned_table p on p.partrelid = t.relation));
    return;
  end if;

  select jsonb_build_object('partition', l ->> 'leaf') into why from jsonb_array_elements(p_plan -> 'leaves') l where l ->> 'kind' <> 'r' limit 1;
  if why is not null then
    reason := 'foreign_partition';
    return;
  end if;
  select jsonb_build_object('name', v_name, 'kind', 'constraint', 'definition', pg_get_constraintdef(k.oid)) into why
  from pg_constraint k
  where v_constraint and k.conrelid = p_table and k.conname = v_name and (k.contype not in ('u', 'x') or k.conindid is distinct from v_named);
  if why is null then
    select jsonb_build_object('name', c.relname, 'kind', case when c.relkind in ('i', 'I') then 'index of another table' else 'relation' end) into why
    from pg_class c
    left join pg_index i on i.indexrelid = c.oid
    where c.relnamespace = (select t.relnamespace from pg_class t where t.oid = p_table)
      and c.relname in (v_name, p_plan ->> 'new_name') and i.indrelid is distinct from p_table
    order by c.relname
    limit 1;
  end if;
  if why is not null then
    reason := 'name_taken';
    return;
  end if;

  -- the one of that name would have to go
  select
    case
      when i.indisprimary then 'name_taken'
      when h.inhparent is not null then 'inherited'
      when i.indisreplident then 'replica_identity'
      when f.foreign_keys is not null then 'referenced'
    end,
    jsonb_strip_nulls(jsonb_build_object(
      'name', v_name, 'definition', p_plan #> '{named,definition}', 'root', routeledger._qualified(h.inhparent), 'foreign_keys', f.foreign_keys))
  into reason, why
  from pg_index i
  left join pg_inherits h on h.inhrelid = i.indexrelid
  cross join lateral (
    select jsonb_agg(jsonb_build_object('table', routeledger._qualified(f.conrelid), 'constraint', f.conname) order by routeledger._qualified(f.conrelid), f.conname) as foreign_keys
    from pg_constraint f
    where f.contype = 'f' and f.conindid = i.indexrelid and f.conparentid = 0
  ) f
  where i.indexrelid = v_named and (p_plan #>> '{named,valid}')::boolean and i.indexrelid is distinct from (p_plan #>> '{index,oid}')::oid;
end
$$;

-- Reads from the catalogue alone what is declared, as _unique_declared(), what is there (`state`: unchanged, missing,
-- different, invalid_index, unknown), and what to do about it. `step` unchanged: a valid index, or constraint, is there as
-- declared, under the name declared or another (`index`); attach: the index is there, the constraint is not; swap: the index is
-- there, and another still holds the name declared; leftovers: what a build left behind that did not come to its end
-- has to go first; build: it is not there; refused: `reason` and `why` say what is in the way. With p_look_only, for
-- declarations of others, nothing of theirs is run.
-- Locks: none when unchanged, unless the index is sorted, stored or extended in a way of its own; else access share, to print what is there, given back:
-- whoever alters the table is waited for as long as p_attempts waits of p_lock_timeout come to.
-- Errors: RL101, RL102, RL114, RL116, RL117, RL118, 55P03.
create or replace function routeledger._unique_plan(
  p_table regclass,
  p_name text,
  p_columns text[],
  p_keep text,
  p_nulls text,
  p_where text,
  p_form text,
  p_lock_timeout interval default '1 second',
  p_attempts integer default 1,
  p_look_only boolean default true
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set lock_timeout = 0
as $$
#variable_conflict use_column
declare
  v_began timestamptz := clock_timestamp();
  v_plan jsonb;
  v_equal boolean := p_nulls = 'not_distinct';
  v_index record;  -- the one that serves
  v_named record;  -- the one of the name declared
  v_there boolean;
  v_swap boolean;
  v_obstacle record;
  v_message text;
begin
  perform routeledger._check_table(p_table);
  if current_setting('transaction_read_only')::boolean then
    return jsonb_build_object('table', routeledger._qualified(p_table), 'state', 'unknown', 'step', 'refused', 'reason', 'read_only', 'why', jsonb '{}');
  end if;
  perform set_config('lock_timeout', routeledger._total_wait(p_lock_timeout, p_attempts), true);
  v_plan := routeledger._unique_declared(p_table, p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_look_only);
  select u.*, format('%I.%I', v_plan ->> 'schema', u.name) as sql into v_index
  from routeledger._same_indexes(p_table, v_plan, v_equal) u
  where u.serves and (p_form = 'index' or u.constraint_name is not null or u.plain)
  -- a constraint before what could be made one, the name declared, ours, and any other
  order by
    p_form = 'constraint' and u.constraint_name is null, u.name <> p_name, u.name <> v_plan ->> 'new_name', not u.is_primary, u.constraint_name is null, u.name
  limit 1;
  select i.indexrelid as index, format('%I.%I', v_plan ->> 'schema', c.relname) as sql, k.conname as constraint_name, i.indisvalid and i.indisready and i.indislive as valid
  into v_named
  from pg_index i
  join pg_class c on c.oid = i.indexrelid
  left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('u', 'p', 'x')
  where i.indrelid = p_table and c.relname = p_name;

  v_swap := coalesce(v_index.name = v_plan ->> 'new_name'
    or (p_form = 'constraint' and v_index.constraint_name is null and v_named.index <> v_index.index), false);
  v_there := v_index.index is not null and not v_swap and (p_form = 'index' or v_index.constraint_name is not null);

  begin
    v_plan := v_plan - array['rounds', 'live', 'identity', 'classes'] || jsonb_build_object(
      'index', case when v_index.index is not null then jsonb_build_object(
        'oid', v_index.index::bigint, 'name', v_index.name, 'sql', v_index.sql, 'constraint', v_index.constraint_name,
        'definition', coalesce(v_index.definition, routeledger._index_definition(v_index.index))) end,
      'named', case when v_named.index is not null then jsonb_build_object(
        'oid', v_named.index::bigint, 'sql', v_named.sql, 'constraint', v_named.constraint_name, 'valid', v_named.valid,
        'definition', case when not v_there then routeledger._index_definition(v_named.index) end) end,
      'leaves', (
        select coalesce(jsonb_agg(jsonb_build_object(
          'leaf', routeledger._qualified(t.relation),
          'index_name', case when t.relation = p_table then p_name else routeledger._leaf_index_name(p_name, t.relation) end,
          'kind', c.relkind,
          'done', v_index.index is not null or exists (select from routeledger._same_indexes(t.relation, v_plan, v_equal) u where u.serves))
          order by routeledger._qualified(t.relation)), '[]')
        from routeledger._tree(p_table) t
        join pg_class c on c.oid = t.relation
        where case when (v_plan ->> 'partitioned')::boolean then c.relkind <> 'p' else t.relation = p_table end),
      -- An index that is being built looks like one that was left behind: to drop it means to wait for the builder.
      'leftovers', (
        select coalesce(jsonb_agg(jsonb_build_object(
          'index', format('%I.%I', s.nspname, c.relname), 'root', c.relkind = 'I',
          'builder', (select b.pid from pg_stat_progress_create_index b where b.index_relid = i.indexrelid limit 1)) order by s.nspname, c.relname), '[]')
        from routeledger._tree(p_table) t
        join pg_index i on i.indrelid = t.relation
        join pg_class c on c.oid = i.indexrelid
        join pg_namespace s on s.oid = c.relnamespace
        where case
          when t.relation = p_table and c.relname = v_plan ->> 'fence_name' then v_index.index is not null or not (i.indisvalid and i.indisready and i.indislive)
          when i.indisvalid and i.indisready and i.indislive then false
          when t.relation = p_table then c.relname in (p_name, v_plan ->> 'new_name')
          else (v_plan ->> 'partitioned')::boolean and c.relname = routeledger._leaf_index_name(p_name, t.relation)
        end));
  exception
    when lock_not_available then
      get stacked diagnostics v_message = message_text;
      perform routeledger._raise_locked(p_table, p_lock_timeout, p_attempts, v_began, '55P03 ' || v_message);
  end;

  v_plan := v_plan || jsonb_build_object(
    'found', case
      when v_swap then coalesce(v_plan #>> '{named,definition}', v_plan #>> '{index,definition}')
      when p_form = 'constraint' and v_index.constraint_name is not null then (
        select pg_get_constraintdef(k.oid) from pg_constraint k where k.conindid = v_index.index and k.conrelid = p_table and k.contype in ('u', 'p'))
      else coalesce(v_plan #>> '{index,definition}', v_plan #>> '{named,definition}') end,
    'state', case
      when v_there then 'unchanged'
      when v_index.index is not null or v_named.valid then 'different'
      when v_plan -> 'leftovers' <> '[]' then 'invalid_index'
      else 'missing'
    end,
    'step', case
      when v_plan -> 'leftovers' <> '[]' then 'leftovers'
      when v_there then 'unchanged'
      when v_swap then 'swap'
      when v_index.index is not null then 'attach'
      else 'build'
    end);
  if v_plan ->> 'step' <> 'unchanged' then
    v_obstacle := routeledger._unique_obstacle(p_table, v_plan);
    if v_obstacle.reason is not null then
      v_plan := v_plan || jsonb_build_object('step', 'refused', 'reason', v_obstacle.reason, 'why', v_obstacle.why);
    end if;
  end if;
  return v_plan;
end
$$;

-- Finds the rows of a leaf of which the unique index could hold but one of each key: their places, and the number of
-- the key of each, in the order of the key; at most p_limit of them. `mixed` counts the keys in which a NULL and
-- the value that stands for it meet.
-- Locks: none (access share). Errors: what the expressions of the key raise.
create or replace function routeledger._find_duplicates(
  p_plan jsonb,
  p_leaf regclass,
  p_limit bigint,
  out places tid[],
  out key_nos bigint[],
  out keys bigint,
  out largest bigint,
  out mixed bigint
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_mixed text;
  v_work_mem text := current_setting('work_mem');
begin
  perform set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), pg_size_bytes(current_setting('maintenance_work_mem'))) / 1024 || 'kB', true);
  select string_agg(format('(%s.%I is not distinct from null)', quote_ident(p_plan ->> 'relname'), e ->> 'column'), ', ')
  into v_mixed
  from jsonb_array_elements(p_plan -> 'sentinels') e;
  execute routeledger._fill(
    $q$
      select array_agg(d.place order by d.key_no, d.place), array_agg(d.key_no order by d.key_no, d.place),
        count(distinct d.key_no), coalesce(max(d.n), 0), count(distinct d.key_no) filter (where d.mixed)
      from (
        select s.{x}place as place, dense_rank() over (order by {key_names}) as key_no, count(*) over (partition by {key_names}) as n,
          min(s.{x}null) over (partition by {key_names}) operator(pg_catalog.<>) max(s.{x}null) over (partition by {key_names}) as mixed
        from (select {rel}.ctid as {x}place, {null} as {x}null, {key_columns} from only {leaf} {rel} where {covered}) s
      ) d
      where d.n operator(pg_catalog.>) 1
    $q$,
    p_plan || jsonb_build_object(
      'rel', quote_ident(p_plan ->> 'relname'),
      'leaf', routeledger._qualified(p_leaf),
      'null', coalesce('pg_catalog.array_to_string(array[' || v_mixed || '], '''')', 'null::text')))
  into places, key_nos, keys, largest, mixed;
  perform set_config('work_mem', v_work_mem, true);
  if cardinality(places) > p_limit then
    places := places[:p_limit];
    key_nos := key_nos[:p_limit];
  end if;
end
$$;

-- Of rows of a leaf, by their places, says which go and which stays for each of them, by the declared precedence.
-- Rows that are gone, or no longer where they were, are left out. With p_lock each is locked first, in the order of
-- the key, so that nobody changes it or comes to point to it any more.
-- Locks: with p_lock the rows (for update). Errors: what the expressions of the key raise.
create or replace function routeledger._rank_duplicates(
  p_plan jsonb,
  p_leaf regclass,
  p_places tid[],
  p_lock boolean,
  out gone tid[],
  out kept tid[]
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  execute routeledger._fill(
    $q$
      select coalesce(array_agg(r.place order by r.kept, r.place), array[]::tid[]), coalesce(array_agg(r.kept order by r.kept, r.place), array[]::tid[])
      from (
        select s.{x}place as place, first_value(s.{x}place) over w as kept, row_number() over w as n
        from (select {rel}.*, {rel}.ctid as {x}place, {key_columns} from only {leaf} {rel} where {rel}.ctid operator(pg_catalog.=) any ($1) and {covered}{lock}) s
        window w as (partition by {key_names} order by {terms}, {rest})
      ) r
      where r.n operator(pg_catalog.>) 1
    $q$,
    p_plan || jsonb_build_object(
      'rel', quote_ident(p_plan ->> 'relname'),
      'leaf', routeledger._qualified(p_leaf),
      'lock', case when p_lock then ' order by ' || (select string_agg(k, ', ' order by n) from jsonb_array_elements_text(p_plan -> 'key') with ordinality e (k, n)) || ' for update' end))
  into gone, kept using p_places;
end
$$;

-- Says of a whole leaf which rows go and which stays for each of them, as _rank_duplicates(), while nobody writes it: in one
-- pass that carries no more than the key and the terms, and a second over the keys in which the terms do not decide.
-- Locks: none (access share). Errors: what the expressions of the key raise.
create or replace function routeledger._rank_leaf(
  p_plan jsonb,
  p_leaf regclass,
  out gone tid[],
  out kept tid[]
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set work_mem = '4MB'
as $$
declare
  v_undecided tid[];  -- the rows that would stay, of keys in which another is as good
  v_again record;
begin
  perform set_config('work_mem', current_setting('maintenance_work_mem'), true);
  execute routeledger._fill(
    $q$
      select
        coalesce(array_agg(r.place), array[]::tid[]),
        coalesce(array_agg(r.kept), array[]::tid[]),
        coalesce(array_agg(r.kept) filter (where r.n operator(pg_catalog.=) 2 and r.rank operator(pg_catalog.=) 1), array[]::tid[])
      from (
        select s.{x}place as place, first_value(s.{x}place) over w as kept, row_number() over w as n, rank() over w as rank
        from (select {rel}.*, {rel}.ctid as {x}place, {key_columns} from only {leaf} {rel} where {covered}) s
        window w as (partition by {key_names} order by {terms})
      ) r
      where r.n operator(pg_catalog.>) 1
    $q$,
    p_plan || jsonb_build_object('rel', quote_ident(p_plan ->> 'relname'), 'leaf', routeledger._qualified(p_leaf)))
  into gone, kept, v_undecided;
  if v_undecided <> '{}' then
    v_again := routeledger._rank_duplicates(
      p_plan, p_leaf,
      array(select u.place from unnest(gone, kept) u (place, kept) join unnest(v_undecided) v (kept) on v.kept = u.kept) || v_undecided,
      false);
    select
      array_agg(u.place) || v_again.gone,
      array_agg(u.kept) || v_again.kept
    into gone, kept
    from unnest(gone, kept) u (place, kept)
    where not exists (select from unnest(v_undecided) v (kept) where v.kept = u.kept);
  end if;
end
$$;

-- Counts, for each foreign key, the rows that point to rows of a leaf and do not go themselves.
-- Locks: none (access share). Errors: 42501 for a table that the caller may not read.
create or replace function routeledger._count_references(
  p_table regclass,
  p_leaf regclass,
  p_gone tid[]
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_key record;
  v_rows bigint;
  v_counts jsonb := jsonb '[]';
begin
  for v_key in select r.* from routeledger._referencing(p_table) r loop
    execute format(
      'select count(*) from %s c join only %s r on %s where r.ctid operator(pg_catalog.=) any ($1)%s',
      v_key.child_sql,
      routeledger._qualified(p_leaf),
      (select string_agg(format('r.%I %s c.%I', u.referenced, u.operator, u.name), ' and ' order by u.n)
       from unnest(v_key.columns, v_key.referenced, v_key.operators) with ordinality u (name, referenced, operator, n)),
      case when v_key.itself then format(' and not (c.tableoid operator(pg_catalog.=) %s::pg_catalog.oid and c.ctid operator(pg_catalog.=) any ($1))', p_leaf::oid) end)
    into v_rows using p_gone;
    v_counts := v_counts || jsonb_build_array(jsonb_build_object(
      'constraint', v_key.name, 'table', routeledger._qualified(v_key.child), 'rows', v_rows, 'on_delete', v_key.on_delete, 'itself', v_key.itself));
  end loop;
  return v_counts;
end
$$;

-- Makes every row that points to a row that goes point to the one that stays for it, and keeps it as it was and
-- as it is. Returns how many rows that were.
-- Locks: the rows (for update), table by table in the order of their names. Errors: RL309 (triggers), RL313, and what the tables raise.
create or replace function routeledger._repoint(
  p_plan jsonb,
  p_table regclass,
  p_leaf regclass,
  p_gone tid[],
  p_kept tid[],
  p_triggers text,
  p_repair_id bigint
)
returns bigint
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_child record;
  v_key record;
  v_leaf text := routeledger._qualified(p_leaf);
  v_path text := routeledger._path_of(p_table);
  v_image record;
  v_into text;
  v_first bigint;
  v_leaves oid[];
  v_places tid[];
  v_more_leaves oid[];
  v_more_places tid[];
  v_joins text;
  v_sets text;
  v_values text;
  v_done bigint;
  v_all bigint := 0;
begin
  for v_child in
    select r.child, min(r.child_sql) as child_sql, bool_or(r.itself) as itself, jsonb_agg(to_jsonb(r) - 'child' order by r.name) as keys
    from routeledger._referencing(p_table) r
    group by r.child
    order by min(r.child_sql)
  loop
    v_leaves := '{}';
    v_places := '{}';
    v_joins := '';
    for v_key in
      select
        e.n,
        array(select format('r.%I %s c.%I', u.referenced, u.operator, u.name)
          from unnest(k.referenced, k.operators, k.columns) with ordinality u (referenced, operator, name, n) order by u.n) as pairs,
        array(select format('m%s.a%s %s c.%I', e.n, u.n, u.operator, u.name)
          from unnest(k.operators, k.columns) with ordinality u (operator, name, n) order by u.n) as mapped,
        (select string_agg(format('r.%I as a%s, s.%I as b%s', c, n, c, n), ', ' order by n) from unnest(k.referenced) with ordinality u (c, n)) as taken
      from jsonb_array_elements(v_child.keys) with ordinality e (value, n)
      cross join lateral jsonb_to_record(e.value) k (columns text[], referenced text[], operators text[])
      order by e.n
    loop
      execute format(
        'select coalesce(array_agg(x.leaf), ''{}''), coalesce(array_agg(x.place), ''{}'') from (
          select c.tableoid as leaf, c.ctid as place from %s c join only %s r on %s where r.ctid operator(pg_catalog.=) any ($1)%s
          order by c.tableoid, c.ctid for update of c) x',
        v_child.child_sql, v_leaf, array_to_string(v_key.pairs, ' and '),
        case when v_child.itself then format(' and not (c.tableoid operator(pg_catalog.=) %s::pg_catalog.oid and c.ctid operator(pg_catalog.=) any ($1))', p_leaf::oid) end)
      into v_more_leaves, v_more_places using p_gone;
      v_leaves := v_leaves || v_more_leaves;
      v_places := v_places || v_more_places;
      v_joins := v_joins || format(
        ' left join (select true as hit, %s from unnest($4, $5) g (gone, kept) join only %s r on r.ctid operator(pg_catalog.=) g.gone join only %s s on s.ctid operator(pg_catalog.=) g.kept) m%s on %s',
        v_key.taken, v_leaf, v_leaf, v_key.n, array_to_string(v_key.mapped, ' and '));
    end loop;
    continue when v_places = '{}';
    if p_triggers = 'refuse' and routeledger._fired_by(v_child.child, true) <> '[]' then
      perform routeledger._raise('RL309', jsonb_build_object('table', p_plan -> 'table', 'reason', 'triggers', 'triggers', routeledger._fired_by(v_child.child, true)),
        'Pass p_triggers => ''fire'' when they may run for the rows that change.');
    end if;
    -- a row that points twice is changed once
    select array_agg(x.leaf order by x.leaf, x.place), array_agg(x.place order by x.leaf, x.place) into v_leaves, v_places
    from (select distinct leaf, place from unnest(v_leaves, v_places) u (leaf, place)) x;
    select
      string_agg(format('%I = x.v%s', c.name, c.n), ', ' order by c.n),
      string_agg(format('case %s else c.%I end as v%s', c.cases, c.name, c.n), ', ' order by c.n)
    into v_sets, v_values
    from (
      select u.name, row_number() over (order by u.name) as n, string_agg(format('when m%s.hit then m%s.b%s', e.n, e.n, u.n), ' ' order by e.n) as cases
      from jsonb_array_elements(v_child.keys) with ordinality e (value, n)
      cross join lateral jsonb_array_elements_text(e.value -> 'columns') with ordinality u (name, n)
      group by u.name
    ) c;

    select i.image, i.prefix into v_image from routeledger._image_of(p_repair_id, v_child.child) i;
    v_into := routeledger._qualified(v_image.image);
    execute format('select coalesce(max(i.%I), 0) from %s i', v_image.prefix || 'no', v_into) into v_first;
    execute format(
      'insert into %s select %s, $3 operator(pg_catalog.+) h.n, ''before''
       from rows from (unnest($1::oid[]), unnest($2::tid[])) with ordinality h (leaf, place, n) join %s c on c.ctid operator(pg_catalog.=) h.place and c.tableoid operator(pg_catalog.=) h.leaf',
      v_into, routeledger._image_columns(v_child.child, 'c'), v_child.child_sql)
    using v_leaves, v_places, v_first;
    perform set_config('search_path', v_path, true);  -- for the triggers
    execute format(
      'with done as (
         update %1$s t set %2$s from (
           select h.leaf, h.place, h.n, %3$s
           from rows from (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.tid[])) with ordinality h (leaf, place, n)
           join %1$s c on c.ctid operator(pg_catalog.=) h.place and c.tableoid operator(pg_catalog.=) h.leaf%4$s) x
         where t.ctid operator(pg_catalog.=) x.place and t.tableoid operator(pg_catalog.=) x.leaf
         returning x.n as %5$s, %6$s)
       insert into %7$s select %8$s, $3 operator(pg_catalog.+) d.%5$s, ''after'' from done d',
      v_child.child_sql, v_sets, v_values, v_joins, quote_ident(v_image.prefix || 'n'),
      routeledger._image_columns(v_child.child, 't'), v_into, routeledger._image_columns(v_child.child, 'd'))
    using v_leaves, v_places, v_first, p_gone, p_kept;
    get diagnostics v_done = row_count;
    perform set_config('search_path', 'pg_catalog, routeledger, pg_temp', true);
    if v_done <> cardinality(v_places) then
      perform routeledger._raise('RL313', jsonb_build_object(
        'repair_id', p_repair_id, 'table', routeledger._qualified(v_child.child), 'to_change', cardinality(v_places), 'changed', v_done));
    end if;
    v_all := v_all + v_done;
  end loop;
  return v_all;
end
$$;

-- Collapses rows of a leaf: p_gone[i] goes and p_kept[i] stays for it. What points to a row that goes is made to point to the one that
-- stays, and images are kept of all of them. It is proved that as many are gone as had to go, and that the image
-- of each has the key of the image of the one that stayed for it, which is there. p_whole: no other row of the table
-- goes in this repair. Nobody may change these rows, or come to point to them, meanwhile.
-- Locks: the rows that point to them (for update). Errors: RL309 (children, self_reference, triggers), RL313, and what the tables raise.
create or replace function routeledger._collapse_rows(
  p_plan jsonb,
  p_table regclass,
  p_leaf regclass,
  p_gone tid[],
  p_kept tid[],
  p_children text,
  p_triggers text,
  p_repair_id bigint,
  p_whole boolean
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_counts jsonb;
  v_image record;
  v_parts jsonb;
  v_first bigint;
  v_winners bigint := (select count(distinct k) from unnest(p_kept) k);
  v_changed bigint := 0;
  v_kept bigint;
  v_removed bigint;
  v_there bigint;
  v_wrong bigint;
begin
  if p_triggers = 'refuse' and routeledger._fired_by(p_table, false) <> '[]' then
    perform routeledger._raise('RL309', jsonb_build_object('table', p_plan -> 'table', 'reason', 'triggers', 'triggers', routeledger._fired_by(p_table, false)),
      'Pass p_triggers => ''fire'' when they may run for the rows that go.');
  end if;
  v_counts := jsonb_path_query_array(routeledger._count_references(p_table, p_leaf, p_gone), '$[*] ? (@.rows > 0)');
  if v_counts <> '[]' and p_children = 'refuse' then
    perform routeledger._raise('RL309', jsonb_build_object('table', p_plan -> 'table', 'reason', 'children', 'children', v_counts),
      'Pass p_children => ''repoint'', so that they point to the row that stays, or mend them first.');
  elsif jsonb_path_exists(v_counts, '$[*] ? (@.itself == true)') and (not p_whole or exists (
    select from routeledger._referencing(p_table) r where r.itself and r.columns && array(select jsonb_array_elements_text(p_plan -> 'needs'))))
  then
    perform routeledger._raise('RL309', jsonb_build_object('table', p_plan -> 'table', 'reason', 'self_reference', 'children', v_counts),
      case when p_whole then 'Mend the rows that point to duplicates first: their own keys would change.'
        else 'Call ensure_unique(), which collapses all rows at once: rows of the table point to others that go.' end);
  end if;

  select i.image, i.prefix into v_image from routeledger._image_of(p_repair_id, p_table) i;
  v_parts := p_plan || jsonb_build_object(
    'image', routeledger._qualified(v_image.image),
    'leaf', routeledger._qualified(p_leaf),
    'rel', quote_ident(p_plan ->> 'relname'),
    'no', quote_ident(v_image.prefix || 'no'),
    'what', quote_ident(v_image.prefix || 'what'),
    't_columns', routeledger._image_columns(p_table, 't'),
    'g_columns', routeledger._image_columns(p_table, 'g'),
    -- a statement trigger is one of the table that is named
    'from', case when p_table <> p_leaf and exists (
        select from pg_trigger g where g.tgrelid = p_table and not g.tgisinternal and g.tgtype & 9 = 8 and g.tgenabled <> 'D')
      then format('%s t where t.tableoid operator(pg_catalog.=) %s::pg_catalog.oid and', p_plan ->> 'table', p_leaf::oid)
      else format('only %s t where', routeledger._qualified(p_leaf)) end,
    'same_key', (
      select string_agg(format('s.%1$sk%2$s is not distinct from k.%1$sk%2$s', p_plan ->> 'x', n), ' and ' order by n)
      from generate_series(1, jsonb_array_length(p_plan -> 'key')) n));
  execute routeledger._fill('select coalesce(max({no}), 0) from {image}', v_parts) into v_first;
  -- as they were before anything is changed
  execute routeledger._fill(
    $q$
      insert into {image} select {t_columns}, $2 operator(pg_catalog.+) g.n, 'kept'
      from (select k as place, max(n) as n from unnest($1::tid[]) with ordinality u (k, n) group by k) g
      join only {leaf} t on t.ctid operator(pg_catalog.=) g.place
    $q$, v_parts)
  using p_kept, v_first;
  get diagnostics v_kept = row_count;
  if v_counts <> '[]' then
    v_changed := routeledger._repoint(p_plan, p_table, p_leaf, p_gone, p_kept, p_triggers, p_repair_id);
  end if;

  perform set_config('search_path', routeledger._path_of(p_table), true);  -- for the triggers
  execute routeledger._fill(
    $q$
      with gone as (delete from {from} t.ctid operator(pg_catalog.=) any ($1) returning t.ctid as {x}place, {t_columns})
      insert into {image} select {g_columns}, $2 operator(pg_catalog.+) u.n, 'removed'
      from gone g
      join pg_catalog.unnest($1::pg_catalog.tid[]) with ordinality u (place, n) on u.place operator(pg_catalog.=) g.{x}place
    $q$, v_parts)
  using p_gone, v_first;
  get diagnostics v_removed = row_count;
  perform set_config('search_path', 'pg_catalog, routeledger, pg_temp', true);

  execute routeledger._fill('select count(distinct t.ctid) from only {leaf} t where t.ctid operator(pg_catalog.=) any ($1)', v_parts) into v_there using p_kept;
  execute routeledger._fill(
    $q$
      with image as materialized (
        select {rel}.{no}, {rel}.{what}, {key_columns} from {image} {rel} where {rel}.{no} operator(pg_catalog.>) $2 and {rel}.{what} in ('removed', 'kept')
      )
      select count(*)
      from (select u.n, max(u.n) over (partition by u.k) as last_n from unnest($1::tid[]) with ordinality u (k, n)) u
      left join image s on s.{what} operator(pg_catalog.=) 'removed' and s.{no} operator(pg_catalog.=) ($2 operator(pg_catalog.+) u.n)
      left join image k on k.{what} operator(pg_catalog.=) 'kept' and k.{no} operator(pg_catalog.=) ($2 operator(pg_catalog.+) u.last_n)
      where s.{no} is null or k.{no} is null or not ({same_key})
    $q$, v_parts)
  into v_wrong using p_kept, v_first;
  -- a winner that was repointed itself has moved
  if v_removed <> cardinality(p_gone) or v_kept <> v_winners or v_winners - v_there not between 0 and v_changed or v_wrong > 0 then
    perform routeledger._raise('RL313', jsonb_build_object(
      'repair_id', p_repair_id, 'table', p_plan -> 'table', 'to_remove', cardinality(p_gone), 'removed', v_removed,
      'winners', v_winners, 'winners_imaged', v_kept, 'winners_there', v_there, 'rows_without_one_winner', v_wrong));
  end if;
end
$$;

-- Looks, without a lock, at what it would take to make the key unique: rows, keys with duplicates, rows to remove,
-- what points to them, which triggers would fire. Leaves that have their index already are not looked at.
-- Locks: access share; whoever alters the table is waited for as long as p_attempts waits of p_lock_timeout come to.
-- Errors: 55P03, 42501, what the expressions of the key raise.
create or replace function routeledger._survey_unique(
  p_plan jsonb,
  p_table regclass,
  p_lock_timeout interval,
  p_attempts integer
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set lock_timeout = 0
as $$
declare
  v_began timestamptz := clock_timestamp();
  v_message text;
  v_leaf regclass;
  v_found record;
  v_gone tid[];
  v_rows bigint := 0;
  v_count bigint;
  v_keys bigint := 0;
  v_duplicates bigint := 0;
  v_largest bigint := 0;
  v_mixed bigint := 0;
  v_places tid[];
  v_key_nos bigint[];
  v_samples jsonb := jsonb '[]';
  v_some jsonb;
  v_children jsonb := jsonb '[]';
begin
  perform set_config('lock_timeout', routeledger._total_wait(p_lock_timeout, p_attempts), true);
  for v_leaf in select (l ->> 'leaf')::regclass from jsonb_array_elements(p_plan -> 'leaves') l where not (l ->> 'done')::boolean loop
    execute format('select count(*) from only %s', routeledger._qualified(v_leaf)) into v_count;
    v_rows := v_rows + v_count;
    v_found := routeledger._find_duplicates(p_plan, v_leaf, null);
    v_mixed := v_mixed + v_found.mixed;
    continue when v_found.keys = 0;
    v_keys := v_keys + v_found.keys;
    v_largest := greatest(v_largest, v_found.largest);
    v_duplicates := v_duplicates + cardinality(v_found.places) - v_found.keys;
    if jsonb_array_length(v_samples) < 5 then
      select array_agg(k.place), array_agg(k.key_no) into v_places, v_key_nos
      from (
        select u.place, u.key_no, dense_rank() over (order by u.key_no) as n from unnest(v_found.places, v_found.key_nos) u (place, key_no)
      ) k
      where k.n <= 5 - jsonb_array_length(v_samples);
      execute routeledger._fill(
        $q$
          select jsonb_agg(jsonb_build_object('key', k.key, 'rows', k.n) order by k.key_no)
          from (
            select u.key_no, min(jsonb_build_array({texts})::text)::jsonb as key, count(*) as n
            from (select {rel}.ctid as {x}place, {key_columns} from only {leaf} {rel} where {rel}.ctid operator(pg_catalog.=) any ($1)) s
            join unnest($1, $2) u (place, key_no) on u.place operator(pg_catalog.=) s.{x}place
            group by u.key_no
          ) k
        $q$,
        p_plan || jsonb_build_object(
          'rel', quote_ident(p_plan ->> 'relname'), 'leaf', routeledger._qualified(v_leaf),
          'texts', (select string_agg(format('s.%sk%s::text', p_plan ->> 'x', n), ', ' order by n) from generate_series(1, jsonb_array_length(p_plan -> 'key')) n)))
      into v_some
      using v_places, v_key_nos;
      v_samples := v_samples || coalesce(v_some, '[]');
    end if;
    if exists (select from routeledger._referencing(p_table)) then
      v_gone := (routeledger._rank_duplicates(p_plan, v_leaf, v_found.places, false)).gone;
      v_children := v_children || routeledger._count_references(p_table, v_leaf, v_gone);
    end if;
  end loop;
  select coalesce(jsonb_agg(c.one || jsonb_build_object('rows', c.rows) order by c.one ->> 'table', c.one ->> 'constraint'), '[]') into v_children
  from (
    select c - 'rows' as one, sum((c ->> 'rows')::bigint) as rows from jsonb_array_elements(v_children) c group by 1
  ) c;
  return jsonb_build_object(
    'rows', v_rows, 'groups', v_keys, 'duplicates', v_duplicates, 'largest_group', v_largest, 'sentinel_collisions', v_mixed,
    'samples', v_samples,
    'children', v_children,
    'triggers', case when v_duplicates > 0 then routeledger._fired_by(p_table, false) else '[]' end || coalesce((
      select jsonb_agg(f.fired)
      from (select distinct c ->> 'table' as child from jsonb_array_elements(v_children) c where (c ->> 'rows')::bigint > 0) c
      cross join lateral jsonb_array_elements(routeledger._fired_by(c.child::regclass, true)) f (fired)), '[]'),
    'table_bytes', (select sum(pg_total_relation_size(t.relation)) from routeledger._tree(p_table) t));
exception
  when lock_not_available then
    get stacked diagnostics v_message = message_text;
    perform routeledger._raise_locked(p_table, p_lock_timeout, p_attempts, v_began, '55P03 ' || v_message);
end
$$;

-- Returns why the rows that a survey found cannot be collapsed as asked, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._unique_refusal(
  p_survey jsonb,
  p_keep text,
  p_children text,
  p_triggers text
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when (p_survey ->> 'sentinel_collisions')::bigint > 0 then 'sentinel'
    when (p_survey ->> 'duplicates')::bigint > 0 and p_keep is null then 'duplicates'
    when p_children = 'refuse' and jsonb_path_exists(p_survey, '$.children[*] ? (@.rows > 0)') then 'children'
    when p_triggers = 'refuse' and p_survey -> 'triggers' <> '[]' then 'triggers'
  end
$$;

-- Says of which table row-level security would hide rows from the caller: of the table or of one that points to it.
-- Locks: none. Errors: none.
create or replace function routeledger._hidden_rows(
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
    select min(routeledger._qualified(x.relation))
    from (
      select t.relation from routeledger._tree(p_table) t union all select r.child from routeledger._referencing(p_table) r
    ) x
    where row_security_active(x.relation));
end
$$;

-- Returns what the history keeps of an index, null when there is none.
-- Locks: where its definition is not given, access share on its table for a moment. Errors: none.
create or replace function routeledger._image_of_index(
  p_index oid,
  p_definition text default null
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
    select jsonb_strip_nulls(jsonb_build_object(
      'name', c.relname, 'table', routeledger._qualified(i.indrelid), 'kind', 'u',
      'definition', coalesce(p_definition, routeledger._index_definition(i.indexrelid)), 'validated', i.indisvalid,
      'comment', obj_description(i.indexrelid, 'pg_class'),
      'constraint', k.conname, 'constraint_definition', pg_get_constraintdef(k.oid), 'constraint_comment', obj_description(k.oid, 'pg_constraint')))
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('u', 'p', 'x')
    where i.indexrelid = p_index);
end
$$;

-- Notes duplicates that an open repair has found: their places, and the number of the key of each.
-- Locks: the repair's row. Errors: RL206, 42501.
create or replace function routeledger._note_duplicates(
  p_repair_id bigint,
  p_leaf regclass,
  p_key_nos bigint[],
  p_places tid[]
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  perform routeledger._own_repair(p_repair_id);
  -- what repairs have left behind that were closed, or undone, before they were through
  delete from routeledger.duplicate_rows d
  where d.repair_id not in (select r.id from routeledger.repairs r where r.kind = 'collapse' and r.state = 'open');
  insert into routeledger.duplicate_rows (repair_id, leaf, key_no, place)
  select p_repair_id, p_leaf, u.key_no, u.place from unnest(p_key_nos, p_places) u (key_no, place);
end
$$;

-- Takes the next duplicates of one leaf that an open repair has noted, in the order of the key: at most p_limit, of whole
-- keys; of a key that has more than that, p_limit, and its number is `split`. Only leaves of the repair's table are taken: what
-- was noted of a partition that is gone, or of any other table, is forgotten.
-- Locks: the repair's row. Errors: RL206, 42501.
create or replace function routeledger._take_duplicates(
  p_repair_id bigint,
  p_limit integer,
  out leaf regclass,
  out places tid[],
  out split bigint
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_table regclass := to_regclass((routeledger._own_repair(p_repair_id)).target);
  v_first record;
  v_beyond bigint;  -- the key of the first row that is too much
begin
  loop
    select d.leaf, d.key_no into v_first
    from routeledger.duplicate_rows d
    where d.repair_id = p_repair_id
    order by d.leaf, d.key_no, d.n
    limit 1;
    exit when v_first.leaf is null or exists (select from routeledger._tree(v_table) t where t.relation = v_first.leaf);
    delete from routeledger.duplicate_rows d where d.repair_id = p_repair_id and d.leaf = v_first.leaf;
  end loop;
  if v_first.leaf is null then
    return;
  end if;
  leaf := v_first.leaf::regclass;
  select d.key_no into v_beyond
  from routeledger.duplicate_rows d
  where d.repair_id = p_repair_id and d.leaf = v_first.leaf
  order by d.key_no, d.n
  limit 1 offset p_limit;
  if v_beyond = v_first.key_no then
    split := v_beyond;
  end if;
  with taken as (
    delete from routeledger.duplicate_rows d
    where d.ctid = any (array(
      select o.ctid
      from routeledger.duplicate_rows o
      where o.repair_id = p_repair_id and o.leaf = v_first.leaf and (split is not null or v_beyond is null or o.key_no < v_beyond)
      order by o.key_no, o.n
      limit p_limit))
    returning d.key_no, d.n, d.place
  )
  select array_agg(t.place order by t.key_no, t.n) into places from taken t;
end
$$;

-- Returns the open repair that collapses this table for this unique index and that the calling role itself has opened (what another
-- role wrote into its own is not relied on), null when there is none, or when the columns of a table it has images of have changed since.
-- Locks: none. Errors: none.
create or replace function routeledger._open_collapse(
  p_table regclass,
  p_name text
)
returns bigint
language plpgsql
stable
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select max(r.id)
    from routeledger.repairs r
    where r.kind = 'collapse' and r.state = 'open' and r.images_dropped_at is null and r.role_name = routeledger._caller_role()
      and r.target = routeledger._qualified(p_table) and r.details ->> 'unique' = p_name
      and not exists (
        select from routeledger.repair_images i
        where i.repair_id = r.id and i.columns is distinct from routeledger._column_list(to_regclass(i.target))));
end
$$;

-- Closes a repair of a collapse with what its images hold; before and after are the rows of the table, or null when
-- others wrote meanwhile. Returns how many rows were removed.
-- Locks: the repair's row. Errors: RL206, RL313, 42501.
create or replace function routeledger._close_collapse(
  p_repair_id bigint,
  p_before bigint,
  p_after bigint,
  p_details jsonb
)
returns bigint
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_image record;
  v_removed bigint := 0;
  v_changed bigint := 0;
  v_gone bigint;
  v_other bigint;
begin
  for v_image in
    select i.image, i.prefix from jsonb_to_recordset((routeledger._read_repair(p_repair_id)).images) i (image regclass, prefix text)
  loop
    execute format('select count(*) filter (where i.%1$I = ''removed''), count(*) filter (where i.%1$I = ''before'') from %2$s i',
      v_image.prefix || 'what', v_image.image)
    into v_gone, v_other;
    v_removed := v_removed + v_gone;
    v_changed := v_changed + v_other;
  end loop;
  perform routeledger._close_repair(p_repair_id, p_before, p_after, v_removed, v_changed, 0, p_details);
  return v_removed;
end
$$;

-- Removes, in one transaction, at most p_limit of the rows that stand in the way of a unique key: of each key the row
-- stays that wins by p_keep, as ensure_unique() has it. Call it again, each call in its own transaction and with
-- the repair_id it returned, until remaining is false; it can be broken off anywhere and be gone on with.
-- remaining is false when the whole table was looked at and no duplicate was found. Writers are never kept waiting
-- but for the rows at hand; what they do meanwhile is seen in the next round. Afterwards nothing yet prevents
-- new duplicates: that is what the unique index is for.
-- Locks: the rows of a batch (for update) in the order of the key, then those that point to them.
-- Errors: RL101, RL102, RL103, RL108, RL114, RL116, RL117, RL118, RL206, RL309 (not_owner, read_only, partition_key, foreign_partition, row_security, sentinel, children, self_reference, triggers), RL313, and what the table raises.
create or replace function routeledger.collapse_duplicates(
  p_table regclass,
  p_columns text[],
  p_keep text,
  p_nulls text default 'distinct',
  p_where text default null,
  p_children text default 'refuse',
  p_triggers text default 'refuse',
  p_reason text default null,
  p_limit integer default 5000,
  p_repair_id bigint default null
)
returns table (
  repair_id bigint,
  groups bigint,
  removed bigint,
  remaining boolean
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set client_min_messages = warning
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set jit = off
as $$
#variable_conflict use_column
declare
  c_round constant bigint := 1000000;
  v_plan jsonb;
  v_leaf regclass;
  v_found record;
  v_places tid[];
  v_split bigint;
  v_ranked record;
  v_winners tid[];
  v_repair_id bigint := p_repair_id;
begin
  if p_keep is null then
    perform routeledger._raise_fault('RL101 keep');
  elsif p_children is null or p_children not in ('refuse', 'repoint') then
    perform routeledger._raise_fault('RL102 children refuse, repoint');
  elsif p_triggers is null or p_triggers not in ('refuse', 'fire') then
    perform routeledger._raise_fault('RL102 triggers refuse, fire');
  elsif p_limit is null then
    perform routeledger._raise_fault('RL101 limit');
  elsif p_limit not between 2 and 1000000 then
    perform routeledger._raise_fault('RL103 limit 2 to 1000000');
  end if;
  v_plan := routeledger._unique_plan(p_table, 'collapse', p_columns, p_keep, p_nulls, p_where, 'index', p_look_only => false);
  if v_plan ->> 'reason' in ('not_owner', 'read_only', 'partition_key', 'foreign_partition') then
    perform routeledger._raise('RL309', jsonb_build_object('table', v_plan -> 'table', 'reason', v_plan -> 'reason') || (v_plan -> 'why'));
  elsif routeledger._hidden_rows(p_table) is not null then
    perform routeledger._raise('RL309', jsonb_build_object('table', v_plan -> 'table', 'reason', 'row_security', 'hidden', routeledger._hidden_rows(p_table)));
  end if;

  if (routeledger._read_repair(v_repair_id)).repair.target <> v_plan ->> 'table' then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', v_repair_id, 'table', v_plan -> 'table', 'state', 'open'));
  elsif v_repair_id is not null then
    select t.leaf, t.places, t.split into v_leaf, v_places, v_split from routeledger._take_duplicates(v_repair_id, p_limit) t;
  end if;
  if v_leaf is null then
    for v_leaf in select (l ->> 'leaf')::regclass from jsonb_array_elements(v_plan -> 'leaves') l where not (l ->> 'done')::boolean loop
      v_found := routeledger._find_duplicates(v_plan, v_leaf, c_round);
      if v_found.mixed > 0 then
        perform routeledger._raise('RL309', jsonb_build_object('table', v_plan -> 'table', 'reason', 'sentinel', 'sentinel_collisions', v_found.mixed, 'sentinels', v_plan -> 'sentinels'));
      end if;
      continue when v_found.keys = 0;
      if v_repair_id is null then
        v_repair_id := routeledger._open_repair('collapse', p_table, p_reason, jsonb_build_object('key', v_plan -> 'key', 'keep', p_keep));
      end if;
      perform routeledger._note_duplicates(v_repair_id, v_leaf, v_found.key_nos, v_found.places);
    end loop;
    v_leaf := null;
    if v_repair_id is not null then
      select t.leaf, t.places, t.split into v_leaf, v_places, v_split from routeledger._take_duplicates(v_repair_id, p_limit) t;
    end if;
  end if;

  repair_id := v_repair_id;
  groups := 0;
  removed := 0;
  remaining := v_leaf is not null;
  if remaining then
    v_ranked := routeledger._rank_duplicates(v_plan, v_leaf, v_places, true);
    removed := cardinality(v_ranked.gone);
    if removed > 0 then
      perform routeledger._collapse_rows(v_plan, p_table, v_leaf, v_ranked.gone, v_ranked.kept, p_children, p_triggers, v_repair_id, false);
    end if;
    v_winners := array(select distinct k from unnest(v_ranked.kept) k);
    groups := cardinality(v_winners);
    if v_split is not null then
      -- the winner of a key that is not through yet goes on
      perform routeledger._note_duplicates(v_repair_id, v_leaf, array_fill(v_split, array[groups::integer]), v_winners);
    end if;
  elsif v_repair_id is not null and not (routeledger._read_repair(v_repair_id)).repair.details ? 'unique' then
    perform routeledger._close_collapse(v_repair_id, null, null, '{}');
  end if;
  return next;
end
$$;

-- Returns the command that makes the fence: a unique index of the same key over the rows that are still to come. Null
-- where there is one already, the table is partitioned or empty, or its primary key does not grow.
-- Locks: none (access share). Errors: none.
create or replace function routeledger._fence_sql(
  p_plan jsonb,
  p_table regclass
)
returns text
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_key record;
  v_last text;
begin
  select a.attname, a.atttypid::regtype as type into v_key
  from pg_index i
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
  where i.indrelid = p_table and i.indisprimary and i.indisvalid and i.indnkeyatts = 1
    and a.atttypid in ('integer'::regtype, 'bigint'::regtype, 'timestamptz'::regtype, 'uuid'::regtype);
  if v_key.attname is null or (p_plan ->> 'partitioned')::boolean
    or exists (select from pg_class c join pg_index i on i.indexrelid = c.oid where i.indrelid = p_table and c.relname = p_plan ->> 'fence_name')
  then
    return null;
  end if;
  execute format('select t.%1$I::text from only %2$s t order by t.%1$I desc limit 1', v_key.attname, p_plan ->> 'table') into v_last;
  if v_last is null or (v_key.type = 'uuid'::regtype and substr(v_last, 15, 1) <> '7') then
    return null;
  end if;
  return format(
    'create unique index concurrently %I on %s%s%s (%I > %L::%s)',
    p_plan ->> 'fence_name', p_plan ->> 'table',
    case when p_plan ->> 'where' is null then p_plan ->> 'tail' else left(p_plan ->> 'tail', -length(format(' WHERE %s', p_plan ->> 'where'))) end,
    ' where ' || coalesce('(' || (p_plan ->> 'where') || ') and', ''), v_key.attname, v_last, v_key.type);
end
$$;

-- Notes the index of that name once more in the last repair that was made for it, after it was renamed or attached, so that undoing the
-- repair takes away what is there now.
-- Locks: the repair's row. Errors: 42501.
create or replace function routeledger._renote_index(
  p_table regclass,
  p_name text,
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
  v_repair_id bigint := (
    select max(r.id)
    from routeledger.repairs r
    where r.kind = 'collapse' and r.state = 'done' and r.target = routeledger._qualified(p_table) and r.details ->> 'unique' = p_name
      and r.details ? 'index');
begin
  if v_repair_id is not null then
    perform routeledger._note_index(v_repair_id, p_index);
  end if;
end
$$;

-- Notes in the history what has been done for a unique index, and in the repair that made it possible, which is closed
-- when it is still open. Returns what to add to the detail of the answer: change_id, repair_id, removed.
-- Locks: the repair's row. Errors: RL206, RL313, 42501.
create or replace function routeledger._settle_unique(
  p_table regclass,
  p_name text,
  p_index regclass,
  p_action text,
  p_before jsonb,
  p_label text,
  p_repair_id bigint,
  p_rows_before bigint default null,
  p_rows_after bigint default null
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_removed bigint;
begin
  if p_repair_id is not null then
    perform routeledger._note_index(p_repair_id, p_index);
    v_removed := routeledger._close_collapse(p_repair_id, p_rows_before, p_rows_after, '{}');
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'repair_id', p_repair_id,
    'removed', v_removed,
    'change_id', routeledger._record_change(
      routeledger._qualified(p_table), p_name, 'unique', p_action, p_before, routeledger._image_of_index(p_index), p_label, p_repair_id, '[]')));
end
$$;

-- Returns the fault of what ensure_unique() and unique_step() are told beside what _unique_plan() looks at, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._unique_fault(
  p_name text,
  p_label text,
  p_children text,
  p_triggers text,
  p_reason text,
  p_lock_timeout interval,
  p_attempts integer
)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select coalesce(
    routeledger._constraint_fault(p_name, p_label, 'refuse'),
    routeledger._lock_fault(p_lock_timeout, p_attempts),
    case
      when p_children is null or p_children not in ('refuse', 'repoint') then 'RL102 children refuse, repoint'
      when p_triggers is null or p_triggers not in ('refuse', 'fire') then 'RL102 triggers refuse, fire'
      when length(p_reason) > 2000 then 'RL108 reason 2000 characters'
    end)
$$;

-- Collapses all duplicates of a table and makes its unique index, or neither, in the caller's transaction. Returns
-- what to add to the detail of the answer.
-- Locks: share row exclusive on the table and its partitions (writers wait, readers do not); the duplicates; what points to them.
-- Errors: RL309 (duplicates, sentinel, children, self_reference, triggers), RL313, 55P03, and what the tables raise.
create or replace function routeledger._collapse_and_build(
  p_plan jsonb,
  p_table regclass,
  p_children text,
  p_triggers text,
  p_reason text,
  p_label text,
  p_lock_timeout interval,
  p_attempts integer
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_table text := p_plan ->> 'table';
  v_leaf regclass;
  v_found record;
  v_ranked record;
  v_rows bigint;
  v_before bigint := 0;
  v_after bigint := 0;
  v_keys bigint := 0;
  v_duplicates bigint := 0;
  v_largest bigint := 0;
  v_repair_id bigint := routeledger._open_collapse(p_table, p_plan ->> 'name');
  v_resumed boolean := v_repair_id is not null;
  v_name text := case when p_plan -> 'named' = 'null' then p_plan ->> 'name' else p_plan ->> 'new_name' end;
  v_tries integer := 0;
  v_lock_timeout text := current_setting('lock_timeout');
  v_deferred text;
begin
  -- where each leaf has its index already the table's own is made of them in no time
  if not (p_plan ->> 'partitioned')::boolean or jsonb_path_exists(p_plan, '$.leaves[*] ? (@.done == false)') then
    v_tries := routeledger._run_locked(p_table, array[format('lock table %s in share row exclusive mode', v_table)], p_lock_timeout, p_attempts);
    perform set_config('lock_timeout', ceil(extract(epoch from p_lock_timeout) * 1000)::bigint::text, true);
    for v_leaf in select (l ->> 'leaf')::regclass from jsonb_array_elements(p_plan -> 'leaves') l loop
      execute format('select count(*) from only %s', routeledger._qualified(v_leaf)) into v_rows;
      v_before := v_before + v_rows;
    end loop;
    for v_leaf in
      select (l ->> 'leaf')::regclass
      from jsonb_array_elements(p_plan -> 'leaves') l
      where not (l ->> 'done')::boolean and p_plan ->> 'keep' is not null
    loop
      if p_plan -> 'sentinels' <> '[]' then
        v_found := routeledger._find_duplicates(p_plan, v_leaf, null);
        if v_found.mixed > 0 then
          perform routeledger._raise('RL309', jsonb_build_object('table', v_table, 'reason', 'sentinel', 'sentinel_collisions', v_found.mixed));
        end if;
      end if;
      v_ranked := routeledger._rank_leaf(p_plan, v_leaf);
      continue when v_ranked.gone = '{}';
      if exists (select from routeledger._referencing(p_table)) then
        -- who comes to point to a row waits for this
        execute format('select count(*) from (select from only %s t where t.ctid = any ($1) for update) x', routeledger._qualified(v_leaf))
        into v_rows using v_ranked.gone;
      end if;
      v_repair_id := coalesce(v_repair_id, routeledger._open_repair('collapse', p_table, p_reason, jsonb_build_object('key', p_plan -> 'key', 'keep', p_plan -> 'keep', 'unique', p_plan -> 'name')));
      perform routeledger._collapse_rows(
        p_plan, p_table, v_leaf, v_ranked.gone, v_ranked.kept, p_children, p_triggers, v_repair_id, not (p_plan ->> 'partitioned')::boolean);
      v_duplicates := v_duplicates + cardinality(v_ranked.gone);
      select v_keys + count(*), greatest(v_largest, max(k.n) + 1) into v_keys, v_largest
      from (select count(*) as n from unnest(v_ranked.kept) k group by k) k;
    end loop;
    for v_leaf in select (l ->> 'leaf')::regclass from jsonb_array_elements(p_plan -> 'leaves') l loop
      execute format('select count(*) from only %s', routeledger._qualified(v_leaf)) into v_rows;
      v_after := v_after + v_rows;
    end loop;
    -- an index is not built on a table whose triggers wait for the end of the transaction
    select string_agg(distinct format('%I.%I', n.nspname, k.conname), ', ') into v_deferred
    from pg_constraint k
    join pg_namespace n on n.oid = k.connamespace
    where k.condeferrable and k.condeferred and k.contype in ('f', 't') and exists (
      select from routeledger._tree(p_table) t where t.relation::oid in (k.conrelid, k.confrelid));
    if v_deferred is not null then
      execute format('set constraints %s immediate', v_deferred);
      execute format('set constraints %s deferred', v_deferred);
    end if;
    perform set_config('lock_timeout', v_lock_timeout, true);
  end if;
  v_tries := greatest(v_tries, routeledger._run_locked(
    p_table, array[format('create unique index %I on %s%s', v_name, v_table, p_plan ->> 'tail')], p_lock_timeout, p_attempts));
  return jsonb_build_object('attempts', v_tries, 'rows', v_before, 'groups', v_keys, 'duplicates', v_duplicates, 'largest_group', v_largest) || routeledger._settle_unique(
    p_table, p_plan ->> 'name', format('%I.%I', p_plan ->> 'schema', v_name)::regclass, 'created', null, p_label, v_repair_id,
    case when not v_resumed then v_before end, case when not v_resumed then v_after end);
end
$$;

-- Brings a table to hold this unique index, or constraint, under this name, whatever stands in the way, in one
-- transaction for each step, and says what it found and did. `unchanged`: there, valid, and ON CONFLICT can use it,
-- under this name or another (detail.name_found); no lock was taken on the table. `created`: now there; the duplicates were collapsed, each key to
-- the row that p_keep lets win. `replaced`: it took the place of another index or constraint of its name; `validated`:
-- the index has become the constraint asked for. `pending`: what a broken build had left behind is gone, and the index
-- is made by the next call. `refused`: nothing was changed, for the reason given. Where next is not null, the same
-- call in a new transaction goes on.
--
-- p_columns: columns, or expressions with or without a COLLATE. p_keep: `latest at, greatest n, first seen_at`, as in
-- upsert() but without sum; between equals the greater row stays; null: duplicates are refused. p_nulls
-- `distinct`: NULLs are never equal. p_where makes it partial. p_form `constraint` is for plain columns.
-- p_children `repoint`: rows that point to a row that goes are made to point to the one that stays. p_triggers `fire`:
-- the triggers of the rows that go, or are repointed, may run. Every row that goes, stays for another or is repointed
-- is kept under detail.repair_id, and undo_repair() puts all of it back.
-- Reasons for a refusal: duplicates, children, triggers, sentinel (NULL and the literal that stands for it meet in one key), self_reference,
-- collision (a row that was repointed met a constraint of its own table), referenced, replica_identity, inherited, name_taken, partition_key,
-- partitioned_constraint, foreign_partition, row_security, not_owner, read_only. With p_strict a refusal is an error.
--
-- Locks: none when unchanged. Otherwise the advisory lock of (table, index); access share for a first look; then share row exclusive on
-- the table and its partitions while rows are collapsed and the index is built (readers go on), or, in a step of its own, access exclusive for the moment it takes
-- to drop, rename or attach; each waiting at most p_lock_timeout, p_attempts times.
-- Errors: RL101, RL102, RL103, RL108, RL114, RL116, RL117, RL118, RL309, RL313, 55P03, 42501.
create or replace function routeledger.ensure_unique(
  p_table regclass,
  p_name text,
  p_columns text[],
  p_keep text default null,
  p_nulls text default 'distinct',
  p_where text default null,
  p_form text default 'index',
  p_children text default 'refuse',
  p_triggers text default 'refuse',
  p_reason text default null,
  p_label text default null,
  p_lock_timeout interval default '1 second',
  p_attempts integer default 10,
  p_strict boolean default false,
  p_dry_run boolean default false
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
set quote_all_identifiers = off
set client_min_messages = warning
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set jit = off
as $$
#variable_conflict use_column
declare
  v_fault text := coalesce(
    routeledger._unique_fault(p_name, p_label, p_children, p_triggers, p_reason, p_lock_timeout, p_attempts),
    case when p_strict is null then 'RL101 strict' when p_dry_run is null then 'RL101 dry_run' end);
  v_plan jsonb;
  v_survey jsonb;
  v_found text;  -- a variable named found is the one of plpgsql
  v_before jsonb;
  v_statements text[];
  v_comment text;
  v_repair_id bigint;
  v_state text;
  v_message text;
  v_detail text;
  v_constraint text;
  v_in_table text;
begin
  perform routeledger._check_table(p_table);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  detail := case when p_dry_run then jsonb '{"dry_run": true}' else jsonb '{}' end;
  validated := false;
  <<decide>>
  begin
    -- looked at without the advisory lock, and once more with it when something has to be done
    for v_look in 1 .. 2 loop
      v_plan := routeledger._unique_plan(p_table, p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_lock_timeout, p_attempts, false);
      definition := v_plan ->> 'definition';
      v_found := v_plan ->> 'found';
      if v_plan ->> 'step' = 'refused' then
        outcome := 'refused';
        reason := v_plan ->> 'reason';
        detail := detail || (v_plan -> 'why');
        exit decide;
      elsif v_plan ->> 'step' = 'unchanged' then
        outcome := 'unchanged';
        validated := true;
        if v_plan #>> '{index,name}' <> p_name then
          detail := detail || jsonb_build_object('name_found', v_plan #> '{index,name}');
        end if;
        if not p_dry_run then
          v_repair_id := routeledger._open_collapse(p_table, p_name);
          if v_repair_id is not null then
            -- whoever built it online did not come to say so
            detail := detail || routeledger._settle_unique(p_table, p_name, (v_plan #>> '{index,sql}')::regclass, 'created', null, p_label, v_repair_id);
          else
            detail := detail || jsonb_strip_nulls(jsonb_build_object('change_id', routeledger._record_unchanged(
              v_plan ->> 'table', p_name, 'unique', routeledger._image_of_index((v_plan #>> '{index,oid}')::oid, v_plan #>> '{index,definition}'), p_label)));
          end if;
        end if;
        exit decide;
      end if;
      exit when p_dry_run or v_look = 2;
      if not pg_try_advisory_xact_lock_shared(routeledger._online_key(p_table, p_name)) or jsonb_path_exists(v_plan, '$.leftovers[*] ? (@.builder != null)') then
        raise exception using
          errcode = '55P03',
          message = 'the lock on the table could not be had in time',
          detail = jsonb_build_object('table', v_plan -> 'table', 'name', p_name, 'blockers', routeledger._holders(p_table))::text,
          hint = 'An online build of this index is under way: wait for it, or end it and repeat the call.';
      end if;
      perform routeledger._serialize(p_table, p_name);
    end loop;

    if v_plan ->> 'step' = 'leftovers' then
      outcome := 'pending';
      reason := 'leftovers';
      next := 'Commit, then call ensure_unique again: what a broken build had left behind is gone.';
      detail := detail || jsonb_build_object('leftovers', jsonb_path_query_array(v_plan, '$.leftovers[*].index'));
      validated := v_plan -> 'index' <> 'null';
      if not p_dry_run then
        detail := detail || jsonb_build_object('attempts', routeledger._run_locked(
          p_table, array(select format('drop index if exists %s', l ->> 'index') from jsonb_array_elements(v_plan -> 'leftovers') l order by (l ->> 'root')::boolean desc),
          p_lock_timeout, p_attempts));
      end if;
      exit decide;
    end if;

    if v_plan ->> 'step' in ('attach', 'swap') then
      outcome := case v_plan ->> 'step' when 'attach' then 'validated' else 'replaced' end;
      validated := true;
      v_repair_id := routeledger._open_collapse(p_table, p_name);
      -- an index that was built online just now was not there before
      v_before := routeledger._image_of_index(((case when v_plan ->> 'step' = 'swap' then v_plan -> 'named' when v_repair_id is null then v_plan -> 'index' end) ->> 'oid')::oid);
      if v_before is null then
        outcome := 'created';
      end if;
      v_comment := coalesce(v_before ->> 'constraint_comment', v_before ->> 'comment');
      v_statements := array_remove(array[
        case
          when v_plan ->> 'step' = 'attach' or v_before is null then null
          when v_plan #>> '{named,constraint}' is not null then format('alter table %s drop constraint %I', v_plan ->> 'table', v_plan #>> '{named,constraint}')
          else format('drop index %s', v_plan #>> '{named,sql}')
        end,
        case
          when p_form = 'constraint' then format('alter table %s add constraint %I unique using index %I', v_plan ->> 'table', p_name, v_plan #>> '{index,name}')
          else format('alter index %s rename to %I', v_plan #>> '{index,sql}', p_name)
        end,
        case
          when v_comment is null then null
          when p_form = 'constraint' then format('comment on constraint %I on %s is %L', p_name, v_plan ->> 'table', v_comment)
          else format('comment on index %I.%I is %L', v_plan ->> 'schema', p_name, v_comment)
        end], null);
      if not p_dry_run then
        detail := detail || jsonb_build_object('attempts', routeledger._run_locked(p_table, v_statements, p_lock_timeout, p_attempts));
        detail := detail || routeledger._settle_unique(
          p_table, p_name, format('%I.%I', v_plan ->> 'schema', p_name)::regclass, case when v_before is null then 'created' else 'replaced' end, v_before, p_label,
          v_repair_id);
        perform routeledger._renote_index(p_table, p_name, format('%I.%I', v_plan ->> 'schema', p_name)::regclass);
      end if;
      exit decide;
    end if;

    -- missing, or another of its name
    if routeledger._hidden_rows(p_table) is not null then
      outcome := 'refused';
      reason := 'row_security';
      detail := detail || jsonb_build_object('table', routeledger._hidden_rows(p_table));
      exit decide;
    end if;
    if v_plan -> 'sentinels' <> '[]' then
      detail := detail || jsonb_build_object('notes', (
        select jsonb_agg(format('NULL in %1$I counts as %2$s in this key: add check (%1$I <> %2$s), so that the two never meet', s ->> 'column', s ->> 'value'))
        from jsonb_array_elements(v_plan -> 'sentinels') s));
    end if;
    -- where nothing but the rows themselves can be in the way, one look under the lock is enough
    if p_dry_run or p_keep is null or v_plan -> 'sentinels' <> '[]' or routeledger._fired_by(p_table, false) <> '[]'
      or exists (select from routeledger._referencing(p_table))
    then
      v_survey := routeledger._survey_unique(v_plan, p_table, p_lock_timeout, p_attempts);
      violations := (v_survey ->> 'duplicates')::bigint;
      detail := detail || v_survey;
      reason := routeledger._unique_refusal(v_survey, p_keep, p_children, p_triggers);
      if reason is not null then
        outcome := 'refused';
        exit decide;
      end if;
    end if;
    outcome := 'created';
    if not p_dry_run then
      begin
        detail := detail || routeledger._collapse_and_build(v_plan, p_table, p_children, p_triggers, p_reason, p_label, p_lock_timeout, p_attempts);
        violations := (detail ->> 'duplicates')::bigint;
      exception
        when sqlstate 'RL309' then
          get stacked diagnostics v_detail = pg_exception_detail;
          outcome := 'refused';
          reason := v_detail::jsonb ->> 'reason';
          detail := detail || v_detail::jsonb;
          exit decide;
        when integrity_constraint_violation then
          get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_constraint = constraint_name, v_in_table = table_name;
          outcome := 'refused';
          if p_keep is null and v_state = '23505' then
            reason := 'duplicates';  -- since it was looked at
            exit decide;
          elsif p_children = 'refuse' or v_constraint in (p_name, v_plan ->> 'new_name') then
            raise;
          end if;
          reason := 'collision';
          detail := detail || jsonb_build_object('sqlstate', v_state, 'message', v_message, 'constraint', v_constraint, 'table', v_in_table);
          exit decide;
      end;
    end if;
    validated := true;
    next := case
      when v_plan -> 'named' <> 'null' then 'Commit, then call ensure_unique again: the new index takes the place of the old one.'
      when p_form = 'constraint' then 'Commit, then call ensure_unique again: the index becomes the constraint.'
    end;
  end;

  if outcome = 'refused' and p_strict then
    perform routeledger._raise('RL309', detail || jsonb_strip_nulls(jsonb_build_object(
      'table', routeledger._qualified(p_table), 'name', p_name, 'reason', reason, 'violations', violations, 'definition', definition, 'found', v_found)));
  end if;
  return query select outcome, validated, violations, definition, v_found, reason, next, detail;
end
$$;

-- Says what to run next so that a table comes to hold a unique index while others write it, and does nothing else itself but keep
-- the books. Call it on a session of your own, outside a transaction, until action is `done` or `refused`. At `run` run command, outside
-- a transaction, and where state has "lock_timeout": true with that lock_timeout; at `collapse` likewise: it is one batch
-- of duplicates, collapsed and committed; at `wait` somebody else is at this index: ask again in a moment. Each time
-- hand back state with `last`: {"action", "command", "row": the first row it returned, as an object, or null, "error": null or
-- {"sqlstate", "message", "detail", "constraint"}}. Errors to hand back are those of class 23, RL309, 55P03, 40P01 and 40001; raise the others.
-- What comes next is found in the catalogue each time, so whoever is broken off, or has lost state, begins again with {}; the
-- same role goes on with the repair it had opened, another opens one of its own.
--
-- The way: what a broken build left behind is dropped concurrently; where there are duplicates and the primary key grows (one column:
-- integer, bigint, timestamptz, uuid version 7) a fence, a unique index over the rows to come, keeps new duplicates among those out; duplicates
-- are collapsed in batches, under one repair; the index is built concurrently, of a partitioned table leaf by leaf. A build that meets a
-- duplicate is dropped and the collapse goes on, five times, then ensure_unique() does it with writers waiting. Then the index is
-- attached, or takes the place of another, and the fence is dropped. While an index is built, INSERT ... ON CONFLICT over another
-- unique index of the table may fail with 23505: repeat it.
--
-- The parameters are those of ensure_unique().
-- Locks: for the session, until done or refused, the advisory lock _online_key(). Errors: RL107, and as ensure_unique(), with p_strict RL309 too.
create or replace function routeledger.unique_step(
  p_table regclass,
  p_name text,
  p_columns text[],
  p_keep text default null,
  p_nulls text default 'distinct',
  p_where text default null,
  p_form text default 'index',
  p_children text default 'refuse',
  p_triggers text default 'refuse',
  p_reason text default null,
  p_label text default null,
  p_lock_timeout interval default '1 second',
  p_attempts integer default 10,
  p_strict boolean default false,
  p_state jsonb default '{}'
)
returns table (
  action text,
  command text,
  outcome text,
  validated boolean,
  violations bigint,
  definition text,
  found text,
  reason text,
  next text,
  detail jsonb,
  state jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
set client_min_messages = warning
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set jit = off
as $$
#variable_conflict use_column
declare
  c_rounds constant integer := 5;
  c_short constant integer := 1000;
  v_fault text := coalesce(
    routeledger._unique_fault(p_name, p_label, p_children, p_triggers, p_reason, p_lock_timeout, p_attempts),
    case when p_strict is null then 'RL101 strict' when p_state is null then 'RL101 state' when jsonb_typeof(p_state) <> 'object' then 'RL107 state a JSON object' end);
  v_last jsonb := coalesce(nullif(p_state -> 'last', 'null'), '{}'::jsonb);
  v_error text := v_last #>> '{error,sqlstate}';
  v_state jsonb := case when jsonb_typeof(p_state) = 'object' then p_state - 'last' - 'lock_timeout' end;
  v_lock bigint := routeledger._online_key(p_table, p_name);
  v_found text;
  v_plan jsonb;
  v_survey jsonb;
  v_refusal jsonb;
  v_repair_id bigint;
  v_leaf jsonb;
  v_fence text;
  v_locked text;  -- the call that finishes under a lock
begin
  perform routeledger._check_table(p_table);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  detail := '{}';
  validated := false;
  if not exists (
      select from pg_locks l
      where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.mode = 'ExclusiveLock' and l.objsubid = 1
        and (l.classid::bigint << 32 | l.objid::bigint) = v_lock)
    and not pg_try_advisory_lock(v_lock)
  then
    return query select 'wait', null::text, null::text, false, null::bigint, null::text, null::text, null::text, null::text, detail, v_state;
    return;
  end if;
  v_locked := format(
    'select * from routeledger.ensure_unique(p_table => %L::regclass, p_name => %L, p_columns => %L::text[], p_keep => %L, p_nulls => %L, p_where => %L, p_form => %L,'
    || ' p_children => %L, p_triggers => %L, p_reason => %L, p_label => %L, p_lock_timeout => %L::interval, p_attempts => %s)',
    routeledger._qualified(p_table), p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_children, p_triggers, p_reason, p_label, p_lock_timeout, p_attempts);

  <<decide>>
  begin
    v_plan := routeledger._unique_plan(p_table, p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_lock_timeout, p_attempts, false);
    definition := v_plan ->> 'definition';
    v_found := case when v_state ? 'found' then v_state ->> 'found' else v_plan ->> 'found' end;
    violations := (v_state ->> 'duplicates')::bigint;
    v_repair_id := case when v_plan ->> 'reason' is distinct from 'read_only' then routeledger._open_collapse(p_table, p_name) end;

    -- what became of the last command
    if v_error in ('55P03', '40P01', '40001') then
      v_state := v_state || jsonb_build_object('tries', coalesce((v_state ->> 'tries')::integer, 0) + 1);
      if (v_state ->> 'tries')::integer > p_attempts * 10 then
        perform pg_advisory_unlock(v_lock);
        raise exception using
          errcode = '55P03',
          message = 'the lock on the table could not be had in time',
          detail = jsonb_build_object('table', v_plan -> 'table', 'command', v_last -> 'command', 'attempts', v_state -> 'tries', 'blockers', routeledger._holders(p_table))::text,
          hint = 'Wait for the transactions that DETAIL lists, or end them, then begin again: it goes on where it stopped.';
      end if;
    else
      v_state := v_state - 'tries';
    end if;
    if v_error = 'RL309' then
      v_refusal := (v_last #>> '{error,detail}')::jsonb;
    elsif v_error like '23%' and v_last ->> 'action' = 'collapse' then
      v_refusal := jsonb_build_object('reason', 'collision', 'sqlstate', v_error, 'message', v_last #> '{error,message}', 'constraint', v_last #> '{error,constraint}');
    elsif v_last #>> '{row,outcome}' = 'refused' then
      v_refusal := coalesce(v_last #> '{row,detail}', '{}') || jsonb_build_object('reason', v_last #> '{row,reason}');
    elsif v_error = '23505' and v_state ->> 'doing' = 'fence' then
      v_state := v_state || '{"no_fence": true}';
    elsif v_error = '23505' and v_state ->> 'doing' = 'build' then
      v_state := v_state - 'short' || jsonb_build_object('rounds', coalesce((v_state ->> 'rounds')::integer, 0) + 1, 'remaining', true);
      if p_keep is null then
        v_state := v_state - 'surveyed';
      end if;
    end if;
    if v_last ->> 'action' = 'collapse' and v_error is null then
      -- where others make new duplicates all the time, the last few are left to the build, and to what follows when it fails
      v_state := v_state || jsonb_build_object('short', coalesce((v_state ->> 'short')::integer, 0) + ((v_last #>> '{row,removed}')::bigint < c_short)::integer);
      v_state := v_state || jsonb_build_object('remaining', (v_last #>> '{row,remaining}')::boolean and (v_state ->> 'short')::integer < 5);
    end if;
    if v_state ->> 'doing' = 'finish' and v_last #>> '{row,outcome}' in ('created', 'replaced', 'validated') then
      v_state := v_state || jsonb_strip_nulls(jsonb_build_object(
        'outcome', case when v_state ->> 'outcome' = 'replaced' then 'replaced' when v_state ? 'built' and v_last #>> '{row,outcome}' <> 'replaced' then 'created' else v_last #>> '{row,outcome}' end,
        'repair_id', v_last #> '{row,detail,repair_id}', 'change_id', v_last #> '{row,detail,change_id}', 'removed', v_last #> '{row,detail,removed}'));
    end if;

    if v_plan ->> 'step' = 'refused' then
      v_refusal := (v_plan -> 'why') || jsonb_build_object('reason', v_plan -> 'reason');
    end if;
    if v_refusal is not null then
      action := 'refused';
      outcome := 'refused';
      reason := v_refusal ->> 'reason';
      detail := v_refusal - 'reason';
      exit decide;
    end if;

    case v_plan ->> 'step'
      when 'unchanged' then
        action := 'done';
        validated := true;
        outcome := coalesce(v_state ->> 'outcome', case when v_repair_id is not null or v_state ? 'built' then 'created' else 'unchanged' end);
        if v_plan #>> '{index,name}' <> p_name then
          detail := jsonb_build_object('name_found', v_plan #> '{index,name}');
        end if;
        if v_repair_id is not null then
          detail := detail || routeledger._settle_unique(p_table, p_name, (v_plan #>> '{index,sql}')::regclass, 'created', null, p_label, v_repair_id);
        elsif v_state ->> 'outcome' is null then
          detail := detail || jsonb_strip_nulls(jsonb_build_object('change_id', routeledger._record_unchanged(
            v_plan ->> 'table', p_name, 'unique', routeledger._image_of_index((v_plan #>> '{index,oid}')::oid, v_plan #>> '{index,definition}'), p_label)));
        end if;
        detail := jsonb_strip_nulls(jsonb_build_object(
          'repair_id', v_state -> 'repair_id', 'change_id', v_state -> 'change_id', 'removed', v_state -> 'removed', 'rounds', v_state -> 'rounds')) || detail;
      when 'leftovers' then
        if jsonb_path_exists(v_plan, '$.leftovers[*] ? (@.builder != null)') then
          action := 'wait';
        elsif jsonb_path_exists(v_plan, '$.leftovers[*] ? (@.root == true)') then
          action := 'run';
          command := v_locked;
          v_state := v_state || '{"doing": "drop"}';
        else
          action := 'run';
          command := format('drop index concurrently if exists %s', v_plan #>> '{leftovers,0,index}');
          v_state := v_state || '{"doing": "drop"}';
        end if;
      when 'attach', 'swap' then
        action := 'run';
        command := v_locked;
        v_state := v_state || '{"doing": "finish"}';
      else
        if routeledger._hidden_rows(p_table) is not null then
          action := 'refused';
          outcome := 'refused';
          reason := 'row_security';
          detail := jsonb_build_object('table', routeledger._hidden_rows(p_table));
          exit decide;
        elsif not v_state ? 'surveyed' then
          v_survey := routeledger._survey_unique(v_plan, p_table, p_lock_timeout, p_attempts);
          violations := (v_survey ->> 'duplicates')::bigint;
          detail := v_survey;
          reason := routeledger._unique_refusal(v_survey, p_keep, p_children, p_triggers);
          if reason is null and jsonb_path_exists(v_survey, '$.children[*] ? (@.itself == true && @.rows > 0)') then
            reason := 'self_reference';
          end if;
          if reason is not null then
            action := 'refused';
            outcome := 'refused';
            exit decide;
          end if;
          v_state := v_state || jsonb_build_object('surveyed', true, 'duplicates', violations, 'remaining', violations > 0, 'found', v_plan -> 'found');
        end if;
        v_leaf := (select l from jsonb_array_elements(v_plan -> 'leaves') with ordinality e (l, n) where not (l ->> 'done')::boolean order by n limit 1);
        if v_leaf is null or coalesce((v_state ->> 'rounds')::integer, 0) >= c_rounds then
          action := 'run';
          command := v_locked;
          v_state := v_state || '{"doing": "finish"}';
          exit decide;
        end if;
        -- the open repair is how anybody knows what this was about, should the client be broken off
        if v_repair_id is null then
          v_repair_id := routeledger._open_repair('collapse', p_table, p_reason, jsonb_build_object('key', v_plan -> 'key', 'keep', p_keep, 'unique', p_name));
        end if;
        v_state := v_state || jsonb_build_object('repair_id', v_repair_id);
        if (v_state ->> 'remaining')::boolean then
          v_fence := case when not v_state ? 'no_fence' then routeledger._fence_sql(v_plan, p_table) end;
          if v_fence is not null then
            action := 'run';
            command := v_fence;
            v_state := v_state || '{"doing": "fence"}';
          else
            action := 'collapse';
            command := format(
              'select * from routeledger.collapse_duplicates(p_table => %L::regclass, p_columns => %L::text[], p_keep => %L, p_nulls => %L, p_where => %L,'
              || ' p_children => %L, p_triggers => %L, p_repair_id => %s)',
              v_plan ->> 'table', p_columns, p_keep, p_nulls, p_where, p_children, p_triggers, v_repair_id);
            v_state := v_state || '{"doing": "collapse"}';
          end if;
        else
          action := 'run';
          command := format(
            'create unique index concurrently %I on %s%s',
            case when (v_plan ->> 'partitioned')::boolean or v_plan -> 'named' = 'null' then v_leaf ->> 'index_name' else v_plan ->> 'new_name' end,
            v_leaf ->> 'leaf', v_plan ->> 'tail');
          v_state := v_state || '{"doing": "build", "built": true}';
        end if;
    end case;
  end;

  if action in ('done', 'refused') then
    perform pg_advisory_unlock(v_lock);
  elsif command is null or command !~ ' concurrently ' then
    v_state := v_state || '{"lock_timeout": true}';
  end if;
  if outcome = 'refused' and p_strict then
    perform routeledger._raise('RL309', detail || jsonb_strip_nulls(jsonb_build_object(
      'table', routeledger._qualified(p_table), 'name', p_name, 'reason', reason, 'violations', violations, 'definition', definition, 'found', v_found)));
  end if;
  return query select action, command, outcome, validated, violations, definition, v_found, reason, next, detail, v_state;
end
$$;
