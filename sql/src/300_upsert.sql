-- 300 · The general upsert: many rows into any table, each key once, by a declared order of precedence.
--
-- Which row of a key stays is decided by a total order: the precedence columns first, then the whole row.
-- A total order is associative, commutative and idempotent, so every permutation, split and replay of the
-- same rows ends in the same table, and so do concurrent callers. Duplicates are found after the values
-- have been coerced to the column types, with the equality of the unique index itself.
--
-- One statement does it: what is not there yet is inserted, what is there and loses is updated, what is
-- there and wins is left alone (no lock, no dead tuple, no WAL), each in the order of the key. The insert
-- is a plain one, at half the price of ON CONFLICT; when another session was faster it is undone and
-- repeated with ON CONFLICT DO NOTHING.
--
-- These routines run with the privileges of their caller (SECURITY INVOKER) and, where triggers and
-- defaults of the target may look, with the caller's search_path. All SQL that is made here names its
-- operators and functions in full, and identifiers go through format('%I') only.
--
-- Lock order: new keys in the order of the unique index, then existing keys in that order.

create table if not exists routeledger.upsert_counts (
  id uuid not null default gen_random_uuid(),
  target text not null,
  day date not null,
  calls bigint not null default 0,
  calls_with_duplicates bigint not null default 0,
  received bigint not null default 0,
  collapsed bigint not null default 0,
  inserted bigint not null default 0,
  updated bigint not null default 0,
  unchanged bigint not null default 0,
  refused bigint not null default 0,
  last_at timestamptz not null,
  last_duplicates_at timestamptz,
  constraint upsert_counts_pkey primary key (id)
) with (fillfactor = 70);

create index if not exists upsert_counts_target_idx on routeledger.upsert_counts (target, day);

create table if not exists routeledger.upsert_batches (
  target text not null,
  batch_id text not null,
  digest text not null,
  received bigint not null,
  refused bigint not null default 0,
  refusals jsonb not null default '[]',
  applied_at timestamptz not null,
  constraint upsert_batches_pkey primary key (target, batch_id)
);

do $types$
begin
  if to_regtype('routeledger.upsert_plan') is null then
    create type routeledger.upsert_plan as (
      target text,
      arbiter text,
      key text[],
      columns text[],
      statement text,
      raced_statement text,
      read_statement text,
      order_statement text,
      keyless_statement text,
      absent_statement text,
      probe_statement text,
      digest_statement text
    );
    create type routeledger.upsert_term as (
      n integer,
      rule text,
      column_name text,
      better_operator text,
      compared_as text,
      has_nan boolean,
      same_when_equal boolean
    );
  end if;
end
$types$;

-- Puts each part of a JSON object in the place of its {name} in a template, in one pass: what a part
-- contains is never looked at again, whatever a column is called.
-- Locks: none. Errors: none.
create or replace function routeledger._fill(
  p_template text,
  p_parts jsonb
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
begin
  return (
    select string_agg(m.piece[1] || coalesce(p_parts ->> m.piece[2], ''), '' order by m.n)
    from regexp_matches(p_template, '([^{]*)(?:\{(\w+)\})?', 'g') with ordinality m (piece, n)
  );
end
$$;

-- Returns the name of a column as the catalogue holds it, for the name that a caller wrote: quoted as in
-- SQL, or bare, which is taken as it stands and else in lower case; null when there is no such column.
-- Locks: none. Errors: none.
create or replace function routeledger._column_named(
  p_target regclass,
  p_name text
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
    select a.attname::text
    from pg_attribute a
    where a.attrelid = p_target and a.attnum > 0 and not a.attisdropped
      and a.attname in (p_name, case
        when p_name like '"%"' then replace(substr(p_name, 2, length(p_name) - 2), '""', '"')
        else lower(p_name) end)
    order by (a.attname = p_name) = (p_name not like '"%"') desc
    limit 1
  );
end
$$;

-- Returns the type under a domain, however many domains there are in between; any other type as it is.
-- Locks: none. Errors: none.
create or replace function routeledger._base_type(
  p_type oid
)
returns regtype
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_type oid := p_type;
  v_base oid;
begin
  loop
    select t.typbasetype into v_base from pg_type t where t.oid = v_type;
    exit when coalesce(v_base, 0) = 0;
    v_type := v_base;
  end loop;
  return v_type::regtype;
end
$$;

-- Returns the operator of that btree strategy (1 less, 3 equal, 5 greater) by which a type is ordered unless
-- told otherwise, written in full, or null when the type has no order.
-- Locks: none. Errors: none.
create or replace function routeledger._btree_operator(
  p_type oid,
  p_strategy integer
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_type pg_type;
  v_class pg_opclass;
begin
  select t.* into v_type from pg_type t where t.oid = routeledger._base_type(p_type);
  select c.* into v_class
  from pg_opclass c
  where c.opcdefault and c.opcmethod = (select a.oid from pg_am a where a.amname = 'btree')
    and c.opcintype = any (array[
      v_type.oid,
      case when v_type.typcategory = 'A' then 'anyarray'::regtype end,
      case v_type.typtype when 'e' then 'anyenum'::regtype when 'r' then 'anyrange'::regtype when 'm' then 'anymultirange'::regtype when 'c' then 'record'::regtype end]
      || array(select k.casttarget from pg_cast k where k.castsource = v_type.oid and k.castmethod = 'b' and k.castcontext = 'i'))
  order by c.opcintype = v_type.oid desc, c.opcname
  limit 1;
  return (
    select format('operator(%I.%s)', n.nspname, o.oprname)
    from pg_amop p
    join pg_operator o on o.oid = p.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    where p.amopfamily = v_class.opcfamily and p.amoplefttype = v_class.opcintype and p.amoprighttype = v_class.opcintype
      and p.amopstrategy = p_strategy);
end
$$;

-- Returns the columns of a table that can be written: name, type with length, collation as SQL writes it, and what
-- a row gets that lacks the column: its default where that is the same each time, `null` where there is none,
-- NULL where it may differ from time to time (now(), nextval(), an identity).
-- Locks: none. Errors: none.
create or replace function routeledger._writable_columns(
  p_target regclass,
  p_names text[]
)
returns table (
  n smallint,
  name text,
  type text,
  collated text,
  constant_default text,
  identity_always boolean
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return query
  select
    a.attnum,
    a.attname::text,
    format_type(a.atttypid, a.atttypmod),
    case when c.oid is not null then format(' collate %I.%I', s.nspname, c.collname) else '' end,
    case
      when a.attidentity <> '' then null
      when e.tree is null then coalesce(quote_literal(t.typdefault), 'null')
      when e.tree::text ~ '\{(SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO) '
        or exists (
          select from regexp_matches(e.tree::text, ':(?:funcid|opfuncid|elemfuncid) (\d+)', 'g') f (id)
          join pg_proc p on p.oid = f.id[1]::oid
          where p.provolatile <> 'i') then null
      else '(' || pg_get_expr(e.tree, case when d.adbin is not null then a.attrelid else 0 end) || ')'
    end,
    a.attidentity = 'a'
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  cross join lateral (select coalesce(d.adbin, t.typdefaultbin) as tree) e
  left join pg_collation c on c.oid = a.attcollation
  left join pg_namespace s on s.oid = c.collnamespace
  where a.attrelid = p_target and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    and (p_names is null or a.attname = any (p_names));
end
$$;

-- Returns the parts of a unique index: the column or expression, how a conflict target writes it, the
-- operator that compares it, whether that is not the one by which its type is compared otherwise, and whether
-- two equal values are also the same, byte for byte (numeric 1.0 and 1.00, 0 and -0, or a case-blind text are
-- equal and not the same).
-- Locks: none. Errors: none.
create or replace function routeledger._index_parts(
  p_index regclass
)
returns table (
  n integer,
  column_name text,
  part text,
  target_sql text,
  equal_operator text,
  own_equality boolean,
  nullable boolean,
  same_when_equal boolean
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return query
  select
    k.n::integer,
    a.attname::text,
    coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, k.n::integer, false)),
    coalesce(quote_ident(a.attname), '(' || pg_get_indexdef(i.indexrelid, k.n::integer, false) || ')')
      || case when l.oid is not null then format(' collate %I.%I', ln.nspname, l.collname) else '' end,
    format('operator(%I.%s)', m.nspname, q.oprname),
    format('operator(%I.%s)', m.nspname, q.oprname) is distinct from routeledger._btree_operator(coalesce(a.atttypid, t.atttypid), 3),
    not coalesce(a.attnotnull, false),
    -- a text of any length that is padded with blanks is equal without them
    not (t.atttypid = 'bpchar'::regtype and t.atttypmod < 0) and exists (
      select from pg_amproc p
      where p.amprocfamily = c.opcfamily and p.amproclefttype = c.opcintype and p.amprocrighttype = c.opcintype and p.amprocnum = 4
        and (p.amproc = 'btequalimage'::regproc
          or (p.amproc = 'btvarstrequalimage'::regproc and coalesce(l.collisdeterministic, true))))
  from pg_index i
  cross join unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
  left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and k.attnum <> 0
  join pg_attribute t on t.attrelid = i.indexrelid and t.attnum = k.n
  join pg_opclass c on c.oid = i.indclass[k.n - 1]
  join pg_amop o on o.amopfamily = c.opcfamily and o.amoplefttype = c.opcintype and o.amoprighttype = c.opcintype and o.amopstrategy = 3
  join pg_operator q on q.oid = o.amopopr
  join pg_namespace m on m.oid = q.oprnamespace
  left join pg_collation l on l.oid = i.indcollation[k.n - 1]
  left join pg_namespace ln on ln.oid = l.collnamespace
  where i.indexrelid = p_index and k.n <= i.indnkeyatts
  order by k.n;
end
$$;

-- Returns the columns that a row must have for its place in a unique index to be known: those of the key,
-- of its expressions and of its predicate, and in place of a generated one those that it is generated from.
-- Locks: none. Errors: none.
create or replace function routeledger._index_columns(
  p_index regclass
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return array(
    with looked_at as (
      select a.attrelid, a.attnum, a.attname, a.attgenerated
      from pg_index i
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum > 0
      where i.indexrelid = p_index and (
        a.attnum = any ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
        or ((i.indexprs is not null or i.indpred is not null) and exists (
          select from pg_depend d
          where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum)))
    )
    select l.attname::text from looked_at l where l.attgenerated = ''
    union
    select b.attname::text
    from looked_at l
    join pg_attrdef f on f.adrelid = l.attrelid and f.adnum = l.attnum
    join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
      and d.refclassid = 'pg_class'::regclass and d.refobjid = l.attrelid
    join pg_attribute b on b.attrelid = l.attrelid and b.attnum = d.refobjsubid
    where l.attgenerated <> '' and b.attgenerated = '');
end
$$;

-- Finds the unique index that decides which rows are the same. A key is matched by the names of its columns,
-- or by expressions as pg_get_indexdef() prints them; without one the primary key is taken when the columns
-- it needs are written, else the only unique index of which that is so. An index counts when it is valid,
-- immediate, and compares as its types do otherwise. The hint of RL204 is the call that makes the index.
-- Locks: none. Errors: RL204.
create or replace function routeledger._find_arbiter(
  p_target regclass,
  p_columns text[],
  p_key text[]
)
returns regclass
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_wanted text[];
  v_index record;
  v_parts record;
  v_first regclass;
  v_fitting integer := 0;
  v_table text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  -- a column by its name; an expression whatever its blanks, parentheses and capitals
  v_wanted := array(
    select distinct coalesce('"' || routeledger._column_named(p_target, k), regexp_replace(lower(k), '[\s()]', '', 'g')) as part
    from unnest(p_key) k order by part);
  for v_index in
    select i.indexrelid, i.indisprimary
    from pg_index i
    where i.indrelid = p_target and i.indisunique and i.indisvalid and i.indisready and i.indislive and i.indimmediate
      and (p_key is null or i.indnkeyatts = cardinality(v_wanted))
    order by i.indisprimary desc, i.indpred is not null, i.indexrelid::regclass::text
  loop
    select
      array_agg(coalesce('"' || p.column_name, regexp_replace(lower(p.part), '[\s()]', '', 'g'))) as names,
      bool_or(p.own_equality) as own_equality
    into v_parts
    from routeledger._index_parts(v_index.indexrelid) p;
    if not v_parts.own_equality and (
      (p_key is not null and array(select x from unnest(v_parts.names) x order by x) = v_wanted)
      or (p_key is null and routeledger._index_columns(v_index.indexrelid) <@ p_columns))
    then
      if p_key is not null or v_index.indisprimary then
        return v_index.indexrelid;
      end if;
      v_first := v_index.indexrelid;
      v_fitting := v_fitting + 1;
    end if;
  end loop;
  if v_fitting = 1 then
    return v_first;
  end if;

  select format('%I.%I', n.nspname, c.relname) into v_table from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_target;
  perform routeledger._raise(
    'RL204',
    jsonb_strip_nulls(jsonb_build_object('target', v_table, 'key', p_key, 'columns', case when p_key is null then to_jsonb(p_columns) end))
      || jsonb_build_object('unique_indexes', coalesce((
        select jsonb_agg(jsonb_build_object('definition', pg_get_indexdef(i.indexrelid),
          'usable', i.indisvalid and i.indisready and i.indislive and i.indimmediate) order by i.indexrelid::regclass::text)
        from pg_index i where i.indrelid = p_target and i.indisunique), '[]')),
    case when p_key is null then 'Say which key is meant: name the columns of a unique index in key, and write them all.'
      else format('Call routeledger.ensure_unique(%L, %L, array[%s]), which collapses the duplicates that are there; where there are none this does: create unique index on %s (%s)',
        v_table,
        left(regexp_replace(array_to_string((select c.relname::text from pg_class c where c.oid = p_target) || p_key, '_'), '\W+', '_', 'g'), 59) || '_key',
        (select string_agg(quote_literal(k), ', ' order by n) from unnest(p_key) with ordinality u (k, n)),
        v_table,
        (select string_agg(coalesce(quote_ident(routeledger._column_named(p_target, k)), '(' || k || ')'), ', ' order by n)
         from unnest(p_key) with ordinality u (k, n)))
    end);
  return null; -- not reached
end
$$;

-- Reads a precedence: its terms in order, each a column and the way in which it wins. `greatest` (also
-- when no word is given) and `latest`, which is for dates and times, prefer the greater value, `first` the
-- smaller; `sum` adds all up.
-- Locks: none. Errors: RL114.
create or replace function routeledger._read_precedence(
  p_target regclass,
  p_columns text[],
  p_precedence text
)
returns routeledger.upsert_term[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_name constant text := '("(?:[^"]|"")+"|[^\s",]+)';
  c_term constant text := '(?:(greatest|latest|first)\s+)?' || c_name;
  v_sum boolean := p_precedence ~* '^\s*sum\s+[^,\s]';
  v_text text := regexp_replace(p_precedence, '^\s*sum\s+(?=[^,\s])', '', 'i');
  v_terms routeledger.upsert_term[] := array[]::routeledger.upsert_term[];
  v_term record;
  v_type record;
  v_rule text;
  v_better text;
  v_reason text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  if v_text !~* ('^\s*' || c_term || '\s*(?:,\s*' || c_term || '\s*)*$') then
    perform routeledger._raise('RL114', jsonb_build_object('precedence', p_precedence, 'reason', 'not a list of terms'));
  end if;
  for v_term in
    select m.n, lower(m.word[1]) as word, m.word[2] as given, routeledger._column_named(p_target, m.word[2]) as name
    from regexp_matches(v_text, '(?:^|,)\s*' || c_term || '\s*(?=,|$)', 'gi') with ordinality m (word, n)
  loop
    select
      a.atttypid,
      t.typcategory,
      routeledger._base_type(t.oid) as base,
      exists (
        select from pg_opclass c
        join pg_amproc p on p.amprocfamily = c.opcfamily and p.amproclefttype = c.opcintype and p.amprocnum = 4
        where c.opcdefault and c.opcintype = a.atttypid and p.amproc = 'btequalimage'::regproc) as same_when_equal
    into v_type
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    where a.attrelid = p_target and a.attname = v_term.name and a.attnum > 0;
    v_rule := case when v_sum then 'sum' else coalesce(v_term.word, 'greatest') end;
    v_better := routeledger._btree_operator(v_type.atttypid, case v_rule when 'first' then 1 else 5 end);
    v_reason := case
      when v_term.name is null then 'the target has no such column'
      when v_term.name <> all (p_columns) then 'it is not among the columns that are written'
      when v_sum and (v_term.word is not null
        or v_type.base not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype))
        then 'only smallint, integer, bigint and numeric give one sum in every order'
      when v_better is null then 'its type has no order'
      when v_rule = 'latest' and v_type.typcategory <> 'D' then 'latest is for dates and times'
    end;
    if v_reason is not null then
      perform routeledger._raise('RL114', jsonb_build_object('term', v_term.given, 'reason', v_reason));
    end if;
    v_terms := v_terms || row(v_term.n, v_rule, v_term.name, v_better,
      case when v_type.base <> v_type.atttypid then '::' || format_type(v_type.base, null) else '' end,
      v_type.base in ('real'::regtype, 'double precision'::regtype, 'numeric'::regtype), v_type.same_when_equal)::routeledger.upsert_term;
  end loop;
  return v_terms;
end
$$;

-- Writes out a list of columns of the row that goes by that name, or without one the bare names.
-- Locks: none. Errors: none.
create or replace function routeledger._columns_sql(
  p_row text,
  p_columns text[]
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select string_agg(coalesce(p_row || '.', '') || quote_ident(c), ', ' order by n) from unnest(p_columns) with ordinality u (c, n));
end
$$;

-- Writes out what of a row is compared byte for byte: first how much of it is known, so that NULL loses here
-- too, then each of the columns; null when there are none.
-- Locks: none. Errors: none.
create or replace function routeledger._image_sql(
  p_row text,
  p_columns text[]
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  -- a function takes a hundred arguments, a row as many as a table has columns
  return (
    select 'row(' || string_agg(format('pg_catalog.num_nonnulls(%s)', routeledger._columns_sql(p_row, p_columns[g:g + 98])), ' operator(pg_catalog.+) ' order by g)
      || ', ' || routeledger._columns_sql(p_row, p_columns) || ')::pg_catalog.record'
    from generate_series(1, cardinality(p_columns), 99) g);
end
$$;

-- Writes out the value by which a term of the precedence compares: NaN counts as NULL, and both lose.
-- Locks: none. Errors: none.
create or replace function routeledger._term_sql(
  p_row text,
  p_term routeledger.upsert_term
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return format(
    case when p_term.has_nan then '(case when %1$s.%2$I%3$s operator(pg_catalog.=) ''NaN'' then null else %1$s.%2$I%3$s end)' else '%1$s.%2$I%3$s' end,
    p_row, p_term.column_name, p_term.compared_as);
end
$$;

-- Writes out, for the names by which two rows of one key go, when the new one wins: by the terms of the
-- precedence, then by the bytes of the columns compared. A sum wins unless it adds nothing.
-- Locks: none. Errors: none.
create or replace function routeledger._wins_sql(
  p_new text,
  p_old text,
  p_terms routeledger.upsert_term[],
  p_compared text[],
  p_on_tie text
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_terms[1].rule = 'sum' then
    return (
      -- of a numeric the sum also takes the larger scale
      select string_agg(format(
        case when t.has_nan
          then '(%1$s.%3$I is not null and (%2$s.%3$I is null or %1$s.%3$I operator(pg_catalog.<>) 0 or pg_catalog.scale(%1$s.%3$I) operator(pg_catalog.>) pg_catalog.scale(%2$s.%3$I)))'
          else '(%1$s.%3$I is not null and (%2$s.%3$I is null or %1$s.%3$I operator(pg_catalog.<>) 0))' end, p_new, p_old, t.column_name),
        ' or ' order by t.n)
      from unnest(p_terms) t);
  end if;
  return 'case'
    || coalesce((
      select string_agg(format(
        ' when %1$s is distinct from null and (%2$s is not distinct from null or %1$s %3$s %2$s) then true'
          || ' when %2$s is distinct from null and (%1$s is not distinct from null or %2$s %3$s %1$s) then false',
        routeledger._term_sql(p_new, t), routeledger._term_sql(p_old, t), t.better_operator), '' order by t.n)
      from unnest(p_terms) t), ' when false then false')
    || ' else '
    || case when p_compared = '{}' or p_on_tie = 'keep' then 'false'
      else routeledger._image_sql(p_new, p_compared) || format(' operator(pg_catalog.%s) ', case p_on_tie when 'replace' then '*<>' else '*>' end)
        || routeledger._image_sql(p_old, p_compared)
    end
    || ' end';
end
$$;

-- Writes out what is set when the new row wins.
-- Locks: none. Errors: none.
create or replace function routeledger._set_sql(
  p_new text,
  p_old text,
  p_terms routeledger.upsert_term[],
  p_set text[]
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select string_agg(format(
      case when p_terms[1].rule = 'sum'
        then '%3$I = case when %1$s.%3$I is null then %2$s.%3$I when %2$s.%3$I is null then %1$s.%3$I else %2$s.%3$I operator(pg_catalog.+) %1$s.%3$I end'
        else '%3$I = %1$s.%3$I' end, p_new, p_old, c), ', ' order by n)
    from unnest(p_set) with ordinality u (c, n));
end
$$;

-- Refuses a list that holds anything but names.
-- Locks: none. Errors: RL101.
create or replace function routeledger._check_names(
  p_names text[],
  p_parameter text
)
returns void
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if array_ndims(p_names) > 1 or exists (select from unnest(p_names) n where n is null) then
    perform routeledger._raise_fault('RL101 ' || p_parameter || ' names, or null');
  end if;
end
$$;

-- Refuses a target, a source or columns that cannot be upserted.
-- Locks: none. Errors: RL112, RL113.
create or replace function routeledger._check_upsert(
  p_target regclass,
  p_source regclass,
  p_columns text[]
)
returns void
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_bad record;
begin
  if not exists (select from pg_class c where c.oid = p_target and c.relkind in ('r', 'p')) then
    perform routeledger._raise('RL112', jsonb_build_object('target', p_target::text, 'reason', 'not an ordinary or partitioned table'));
  elsif p_source is not null and not exists (select from pg_class c where c.oid = p_source and c.relkind = 'r') then
    perform routeledger._raise('RL112', jsonb_build_object('source', p_source::text, 'reason', 'not an ordinary table'));
  elsif coalesce(p_columns, '{}') = '{}' then
    perform routeledger._raise('RL113', jsonb_build_object('reason', 'no column is written'));
  end if;
  select
    c.name,
    case
      when a.attname is null then 'the target has no such column'
      when a.attgenerated <> '' then 'a generated column is never written'
      when s.attname is null then 'the source has no such column'
    end as reason,
    format_type(a.atttypid, a.atttypmod) as type
  into v_bad
  from unnest(p_columns) with ordinality c (name, n)
  left join pg_attribute a on a.attrelid = p_target and a.attname = c.name and a.attnum > 0 and not a.attisdropped
  left join pg_attribute s on s.attrelid = coalesce(p_source, p_target) and s.attname = c.name and s.attnum > 0 and not s.attisdropped
  where a.attname is null or a.attgenerated <> '' or s.attname is null or s.atttypid <> a.atttypid or s.atttypmod <> a.atttypmod
  order by c.n
  limit 1;
  if v_bad.reason is not null then
    perform routeledger._raise('RL113', jsonb_build_object('column', v_bad.name, 'reason', v_bad.reason));
  elsif found then
    perform routeledger._raise('RL112', jsonb_build_object('source', p_source::text, 'column', v_bad.name, 'target_type', v_bad.type,
      'reason', 'the source has it in another type'));
  end if;
end
$$;

-- Makes the statements of an upsert. Each reads its rows from $1 (a JSON array) or from the source table, of
-- which $2 may name a part (by position, or by ctid). `statement` answers how many rows had a key, won, were
-- inserted as new, were inserted where another had been a moment before, and were updated.
--
-- src: the rows in the types of the target, with the parts of the key; win: of each key the best; todo: those
-- that the table does not have, or has worse; ins: the new ones; upd: the others.
-- Locks: none. Errors: RL102, RL112, RL113, RL114, RL204.
create or replace function routeledger._plan_upsert(
  p_target regclass,
  p_source regclass,
  p_columns text[],
  p_key text[],
  p_precedence text,
  p_on_tie text,
  p_sees_all boolean
)
returns routeledger.upsert_plan
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_plan routeledger.upsert_plan;
  v_target record;
  v_arbiter regclass;
  v_index record;
  v_key record;         -- arrays, by part of the key
  v_column record;      -- arrays, by column written
  v_given text[];       -- the columns that the rows name
  v_terms routeledger.upsert_term[];
  v_summed text[];
  v_set text[];         -- the columns that the winner brings
  v_compared text[];    -- those whose bytes decide between equals
  v_bad record;
  v_x text := '_rl_';   -- begins our own names: no column of the target begins with it
  v_n integer := 0;
  v_names text[];       -- what the parts of the key go by: a column that is written by its own name
  v_keys text;
  v_parts jsonb;
  v_rows text;          -- templates, from here on
  v_src text;
  v_todo text;
  v_ins text;
  v_upd text;
  v_counts text;
begin
  -- Expressions are printed with every name in full but those of pg_catalog.
  perform set_config('search_path', 'pg_catalog, pg_temp', true);
  if p_on_tie is null or p_on_tie not in ('greatest_row', 'replace', 'keep') then
    perform routeledger._raise_fault('RL102 on_tie greatest_row, replace or keep');
  elsif p_key = '{}' then
    perform routeledger._raise_fault('RL101 key names, or null');
  end if;
  perform routeledger._check_names(p_key, 'key');
  perform routeledger._check_names(p_columns, 'columns');
  perform routeledger._check_upsert(p_target, p_source, p_columns);

  -- what the catalogue says
  select
    c.relname,
    format('%I.%I', n.nspname, c.relname) as name,
    c.relkind = 'p' as partitioned,
    -- before 18 a partitioned table does not say whether a row was there
    c.relkind = 'p' and current_setting('server_version_num')::integer < 180000 as mute,
    -- a row trigger may keep a row out without a word
    exists (select from pg_trigger g where g.tgrelid = c.oid and not g.tgisinternal and g.tgenabled <> 'D' and g.tgtype & 7 = 7) as guarded
  into strict v_target
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  where c.oid = p_target;
  v_arbiter := routeledger._find_arbiter(p_target, p_columns, p_key);
  select
    format('%I.%I', n.nspname, c.relname) as name,
    i.indnullsnotdistinct as nulls_equal,
    pg_get_expr(i.indpred, i.indrelid) as predicate,
    routeledger._index_columns(v_arbiter) as needs,
    (select string_agg(format(', (%s) as %I', pg_get_expr(d.adbin, d.adrelid), a.attname), '' order by a.attnum)
     from pg_attribute a
     join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = p_target and a.attgenerated <> '' and (
       a.attnum = any (i.indkey::smallint[])
       or exists (
         select from pg_depend p
         where p.classid = 'pg_class'::regclass and p.objid = v_arbiter and p.refobjid = p_target and p.refobjsubid = a.attnum))) as generated
  into strict v_index
  from pg_index i
  join pg_class c on c.oid = i.indexrelid
  join pg_namespace n on n.oid = c.relnamespace
  where i.indexrelid = v_arbiter;
  select
    array_agg(k.part order by k.n) as part,
    array_agg(k.target_sql order by k.n) as target_sql,
    array_agg(k.equal_operator order by k.n) as equal_operator,
    coalesce(array_agg(k.column_name) filter (where k.same_when_equal and k.column_name is not null), '{}') as same_when_equal,
    array_agg(k.n) filter (where k.nullable) as nullable
  into v_key
  from routeledger._index_parts(v_arbiter) k;
  -- in the order of the table, whatever order the caller named them in
  select
    array_agg(c.name order by c.n) as name,
    array_agg(c.type order by c.n) as type,
    array_agg(c.collated order by c.n) as collated,
    array_agg(c.constant_default order by c.n) as constant_default,
    coalesce(array_agg(c.name) filter (where c.identity_always), '{}') as identity_always
  into v_column
  from routeledger._writable_columns(p_target, p_columns || v_index.needs) c;
  v_given := array(select c from unnest(v_column.name) with ordinality u (c, n) where c = any (p_columns) order by n);

  -- what the caller wants
  if p_precedence is not null then
    v_terms := routeledger._read_precedence(p_target, v_column.name, p_precedence);
  end if;
  v_summed := array(select t.column_name from unnest(v_terms) t where t.rule = 'sum');
  -- A part of the key that is the same when equal need not be set.
  v_set := array(
    select c
    from unnest(v_column.name) with ordinality u (c, n)
    where c <> all (v_key.same_when_equal) and (v_summed = '{}' or c = any (v_summed))
    order by n);
  v_compared := array(
    select c
    from unnest(v_set) with ordinality u (c, n)
    where c <> all (v_summed) and c <> all (array(select t.column_name from unnest(v_terms) t where t.same_when_equal))
    order by n);
  select x.name, x.fault
  into v_bad
  from (
    select c as name, n, case
        when c <> all (v_given) and coalesce(d, 'null') = 'null' then 'RL113 the key needs it, no row has it, and its default is not a constant'
        when c = any (v_column.identity_always) and c <> all (v_index.needs) then 'RL113 it is generated always as identity'
        when v_summed <> '{}' and (c = any (v_summed)) = (c = any (v_index.needs)) then 'RL114 with sum a column either belongs to the key or is summed'
      end as fault
    from unnest(v_column.name, v_column.constant_default) with ordinality u (c, d, n)
  ) x
  where x.fault is not null
  order by x.n
  limit 1;
  if found then
    perform routeledger._raise(left(v_bad.fault, 5), jsonb_build_object('column', v_bad.name, 'reason', substr(v_bad.fault, 7)));
  end if;

  -- the parts from which the statements are made
  while exists (select from pg_attribute a where a.attrelid = p_target and left(a.attname, length(v_x)) = v_x) loop
    v_n := v_n + 1;
    v_x := '_rl' || v_n || '_';
  end loop;
  v_names := array(
    select case when exists (
        select from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n - 1] and a.attcollation = i.indcollation[n - 1]
        where i.indexrelid = v_arbiter and a.attname = any (v_column.name)) then quote_ident(v_key.part[n]) else format('%sk%s', v_x, n) end
    from generate_subscripts(v_key.part, 1) n order by n);
  v_keys := (select string_agg('s.' || k, ', ' order by n) from unnest(v_names) with ordinality u (k, n));
  v_parts := jsonb_build_object(
    'x', v_x,
    'rel', quote_ident(v_target.relname),
    'table', v_target.name,
    'only', case when not v_target.partitioned then 'only ' end,
    'source', (select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_source),
    'given', routeledger._columns_sql(null, v_given),
    'written', routeledger._columns_sql(null, v_column.name),
    'w_written', routeledger._columns_sql('w', v_column.name),
    -- in every session all new rows come before the first existing one, or they would wait for each other
    'ins_first', '(select pg_catalog.count(*) from ins) operator(pg_catalog.>=) 0',
    'overriding', case when v_column.identity_always <> '{}' then ' overriding system value' end,
    'typed', (
      select string_agg(format('%I %s%s', c, t, l), ', ' order by n)
      from unnest(v_column.name, v_column.type, v_column.collated) with ordinality u (c, t, l, n)
      where c = any (v_given)),
    'taken', (
      select string_agg(
        case
          when c <> all (v_given) then format('%s::%s%s as %I', d, t, l, c)
          else format('r.%1$I%2$s as %1$I', c, l)
        end, ', ' order by n)
      from unnest(v_column.name, v_column.type, v_column.collated, v_column.constant_default) with ordinality u (c, t, l, d, n)),
    'generated', v_index.generated,
    'derived', (select string_agg(format(', %s as %s', k, m), '' order by n) from unnest(v_key.target_sql, v_names) with ordinality u (k, m, n) where left(m, length(v_x)) = v_x),
    'key', (select string_agg(format('%s as %s', k, m), ', ' order by n) from unnest(v_key.target_sql, v_names) with ordinality u (k, m, n)),
    's_keys', v_keys,
    'w_keys', (select string_agg('w.' || k, ', ' order by n) from unnest(v_names) with ordinality u (k, n)),
    'same_key', (
      select string_agg(format(
        case when v_index.nulls_equal and v_target.mute and n = any (v_key.nullable)
          then '(t.%1$s %2$s w.%1$s or (t.%1$s is not distinct from null and w.%1$s is not distinct from null))'
          else 't.%1$s %2$s w.%1$s' end, v_names[n], o), ' and ' order by n)
      from unnest(v_key.equal_operator) with ordinality u (o, n)),
    'keyed', concat_ws(' and ',
      'true',
      case when not v_index.nulls_equal then (
        select string_agg(format('s.%s is distinct from null', k), ' and ' order by n) from unnest(v_names) with ordinality u (k, n)) end,
      case when v_index.predicate is not null then format('s.%sp', v_x) end),
    'covered', ', (' || v_index.predicate || ') is true as ' || v_x || 'p',
    'where_covered', ' where ' || v_index.predicate,
    'conflict', array_to_string(v_key.target_sql, ', '),
    -- looking up a key that holds NULL is slow, so the index itself says whether it is there, unless it cannot say
    'or_null_key', case when v_index.nulls_equal and not v_target.mute then (
      select ' or ' || string_agg(format('w.%s is not distinct from null', v_names[n]), ' or ' order by n) from unnest(v_key.nullable) n) end,
    'best_first', concat(
      (select string_agg(format(', %s %s nulls last', routeledger._term_sql('s', t), case t.rule when 'first' then 'asc' else 'desc' end), '' order by t.n)
       from unnest(v_terms) t
       where t.rule <> 'sum'),
      case when p_on_tie = 'replace' and v_summed = '{}' then format(', s.%sord desc', v_x) end,
      ', ' || routeledger._image_sql('s', v_compared || v_summed) || ' using operator(pg_catalog.*>)'),
    'chosen', concat_ws(', ',
      case when v_target.guarded then format('s.%sord', v_x) end,
      (select string_agg('s.' || k, ', ' order by n) from unnest(v_names) with ordinality u (k, n) where left(k, length(v_x)) = v_x),
      (select string_agg(
         case when c = any (v_summed) then format('(pg_catalog.sum(s.%1$I) over (partition by %3$s))::%2$s as %1$I', c, t, v_keys) else format('s.%I', c) end, ', ' order by n)
       from unnest(v_column.name, v_column.type) with ordinality u (c, t, n))),
    -- what is read of the table: only what is compared, and no system column
    'there', 'true as ' || v_x || 'there, ' || routeledger._columns_sql(quote_ident(v_target.relname), v_column.name),
    'w_wins', routeledger._wins_sql('w', 't', v_terms, v_compared, p_on_tie),
    'wins', routeledger._wins_sql('excluded', 't', v_terms, v_compared, p_on_tie),
    'set', routeledger._set_sql('excluded', 't', v_terms, v_set),
    -- Only a row that vanished since it was looked up is new here. On a mute table, and without the right to read
    -- system columns, it counts as updated.
    'is_new', case
      when not p_sees_all or v_target.mute then 'false'
      when current_setting('server_version_num')::integer >= 180000 then 'old.tableoid is null'
      else 't.xmax operator(pg_catalog.=) 0' end);

  -- the statements
  v_rows := case
    when p_source is not null then 'select r.ctid as {x}ord, {taken} from only {source} r where $2 is null or r.ctid operator(pg_catalog.=) any ($2::pg_catalog.tid[])'
    else 'select coalesce(r.{x}id::pg_catalog.int8, r.{x}ord) as {x}ord, {taken}
        from rows from (pg_catalog.jsonb_to_recordset($1) as ({typed}), pg_catalog.unnest($2)) with ordinality as r ({given}, {x}id, {x}ord)'
  end;
  v_src := 'select {rel}.*{derived}{covered} from ('
    || case when v_index.generated is null then v_rows else 'select {rel}.*{generated} from (' || v_rows || ') {rel}' end
    || ') {rel}';
  v_todo := 'with src as ' || case when p_source is null then '' else 'not ' end || 'materialized (
    ' || v_src || '),
  win as materialized (
    select w.*, t.{x}there, t.{x}there is not null{or_null_key} as {x}known, t.{x}there is null or ({w_wins}) as {x}wins
    from (
      select distinct on ({s_keys}) {chosen} from src s where {keyed} order by {s_keys}{best_first}
    ) w
    left join (
      select {there}{derived} from {only}{table} {rel}{where_covered}
    ) t on {same_key})';
  v_ins := '
  insert into {table} as t ({written}){overriding}
    select {w_written} from win w where not w.{x}known order by {w_keys}';
  v_upd := case
    when v_set = '{}' then '
    select false where false'
    else '
    insert into {table} as t ({written}){overriding}
    select {w_written} from win w where (w.{x}known{or_raced}) and w.{x}wins and {ins_first} order by {w_keys}
    on conflict ({conflict}){where_covered} do update set {set} where {wins}
    returning {is_new}'
  end;
  v_counts := '
  select
    (select pg_catalog.count(*) from src s where {keyed}), (select pg_catalog.count(*) from win),
    (select pg_catalog.count(*) from ins),
    (select pg_catalog.count(*) from upd u where u.is_new), (select pg_catalog.count(*) from upd u where not u.is_new)';

  v_plan.target := v_target.name;
  v_plan.arbiter := v_index.name;
  v_plan.key := v_key.part;
  v_plan.columns := v_column.name;
  v_plan.statement := routeledger._fill(
    v_todo || ',
  ins as (' || v_ins || '
    returning 1),
  upd (is_new) as (' || v_upd || ')' || v_counts, v_parts);
  v_plan.raced_statement := routeledger._fill(
    v_todo || ',
  ins as (' || v_ins || '
    on conflict ({conflict}){where_covered} do nothing
    returning {key}),
  upd (is_new) as (' || v_upd || ')' || v_counts,
    v_parts || jsonb_build_object('or_raced', routeledger._fill(' or not exists (select from ins t where {same_key})', v_parts)));
  if v_target.guarded then
    v_plan.absent_statement := routeledger._fill(
      v_todo || ' select pg_catalog.array_agg(w.{x}ord::pg_catalog.text) from win w where w.{x}there is null', v_parts);
    v_plan.probe_statement := routeledger._fill(
      v_todo || ',
  upd as (
    insert into {table} as t ({written}){overriding}
    select {w_written} from win w where w.{x}wins
    on conflict ({conflict}){where_covered} do update set {probe}
    returning 1)
  select pg_catalog.count(*) from upd', v_parts || jsonb_build_object('probe', coalesce(
        routeledger._set_sql('excluded', 't', null, v_set), routeledger._set_sql('excluded', 't', null, v_key.same_when_equal))));
  end if;
  v_plan.read_statement := routeledger._fill('select pg_catalog.count(s.*) from (' || v_src || ') s', v_parts);
  v_plan.order_statement := routeledger._fill(
    'with src as (' || v_src || ') select pg_catalog.array_agg(s.{x}ord::pg_catalog.text order by {s_keys}{best_first}) from src s where {keyed}', v_parts);
  v_plan.keyless_statement := routeledger._fill(
    'with src as (' || v_src || ') select pg_catalog.array_agg(s.{x}ord::pg_catalog.text order by s.{x}ord) from src s where ({keyed}) is not true', v_parts);
  v_plan.digest_statement := routeledger._fill(
    'select pg_catalog.sum(pg_catalog.hashtextextended(r.*::pg_catalog.text, 0)::pg_catalog.numeric) from (select {given} from only {source}) r', v_parts);
  return v_plan;
end
$$;

-- Runs a plan over its rows, or over those that p_ids names, with the caller's search_path. Waits for what
-- others have begun and repeats itself, holding nothing, when another session was faster, or when an index is
-- being rebuilt (REINDEX CONCURRENTLY makes the unique index fail for a moment).
-- Locks: new rows in the order of the key, then existing ones in that order. Errors: what the target raises.
create or replace function routeledger._run_upsert(
  p_plan routeledger.upsert_plan,
  p_rows jsonb,
  p_ids text[],
  p_path text,
  out keyed bigint,
  out winners bigint,
  out inserted bigint,
  out updated bigint
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_tries constant integer := 20;
  v_statement text := p_plan.statement;
  v_work_mem text := current_setting('work_mem');
  v_constraint text;
  v_replaced bigint;
begin
  for v_try in 1 .. c_tries loop
    begin
      perform set_config('search_path', p_path, true);
      -- a batch is held in memory anyway: it is not sorted on disk
      if pg_size_bytes(v_work_mem) < pg_size_bytes('64MB') then
        perform set_config('work_mem', '64MB', true);
      end if;
      execute v_statement into strict keyed, winners, inserted, v_replaced, updated using p_rows, p_ids;
      perform set_config('search_path', 'pg_catalog, routeledger, pg_temp', true), set_config('work_mem', v_work_mem, true);
      inserted := inserted + v_replaced;
      return;
    exception
      when unique_violation then
        get stacked diagnostics v_constraint = constraint_name;
        -- of a partitioned table it is the index of a leaf that speaks
        if v_try = c_tries or not (v_constraint ~ '_cc(new|old)\d*$' or exists (
          select from pg_class c
          where c.relname = v_constraint
            and (c.oid = p_plan.arbiter::regclass or c.oid in (select r.relid from pg_partition_tree(p_plan.arbiter::regclass) r))))
        then
          raise;
        end if;
        v_statement := p_plan.raced_statement;
    end;
  end loop;
end
$$;

-- Reads the shape of the rows: which columns they name between them, what a row that lacks one takes in its
-- place (an expression for a JSON object; null when no row lacks any), and which rows cannot be taken: no object,
-- a key that is no column to write, or a column lacking whose default is not the same each time.
-- Locks: none. Errors: RL101, RL107, RL501 (for the call).
create or replace function routeledger._upsert_shape(
  p_target regclass,
  p_rows jsonb,
  p_columns text[],
  out columns text[],
  out defaults text,
  out bad jsonb
)
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_writable text[];
  v_changing text[];
begin
  if p_rows is null then
    perform routeledger._raise_fault('RL101 rows a JSON array of objects');
  elsif jsonb_typeof(p_rows) <> 'array' then
    perform routeledger._raise_fault('RL107 rows a JSON array of objects');
  elsif jsonb_array_length(p_rows) > 100000 then
    perform routeledger._raise('RL501', jsonb_build_object('rows', jsonb_array_length(p_rows), 'limit', 100000));
  end if;

  -- nearly always all rows are alike
  bad := '[]';
  columns := p_columns;
  if columns is null and jsonb_typeof(p_rows -> 0) = 'object' then
    columns := array(select k from jsonb_object_keys(p_rows -> 0) k);
  end if;
  if not exists (
    select from jsonb_array_elements(p_rows) e
    where jsonb_typeof(e) <> 'object' or not e ?& columns or e - columns <> '{}')
  then
    return;
  end if;

  select array_agg(c.name) into v_writable from routeledger._writable_columns(p_target, null) c;
  columns := coalesce(p_columns, array(
    select distinct k
    from jsonb_array_elements(p_rows) e
    cross join jsonb_object_keys(case when jsonb_typeof(e) = 'object' then e else '{}' end) k
    where k = any (v_writable)));
  select
    coalesce(array_agg(c.name) filter (where c.constant_default is null), '{}'),
    string_agg(format('jsonb_build_object(%L, to_jsonb(%s::%s))', c.name, c.constant_default, c.type), ' || ') filter (where c.constant_default <> 'null')
  into v_changing, defaults
  from routeledger._writable_columns(p_target, columns) c;
  select coalesce(jsonb_agg(jsonb_build_object('id', r.n::text, 'code', split_part(r.fault, ' ', 1), 'detail', routeledger._fault_detail(r.fault)) order by r.n), '[]')
  into bad
  from (
    select
      e.n,
      case
        when jsonb_typeof(e.value) <> 'object' then 'RL107 row a JSON object'
        when e.value - columns <> '{}' then 'RL113 ' || (
          select left(replace(k, ' ', '_'), 100) from jsonb_object_keys(e.value - columns) k order by k limit 1) || ' columns of the target'
        when not e.value ?& v_changing then 'RL107 ' || (
          select left(replace(c, ' ', '_'), 100) from unnest(v_changing) c where not e.value ? c order by c limit 1)
          || ' other rows have it, and its default is not a constant'
      end as fault
    from jsonb_array_elements(p_rows) with ordinality e (value, n)
  ) r
  where r.fault is not null;
end
$$;

-- Says whether an error is about a row, so that the other rows may go on without it, and not about the call:
-- what is wrong with privileges, locks, resources, transactions or the statement itself is about the call.
-- A refusal of row-level security shares its code with a missing privilege.
-- Locks: none. Errors: none.
create or replace function routeledger._is_about_a_row(
  p_sqlstate text,
  p_target regclass,
  p_columns text[]
)
returns boolean
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when p_sqlstate = '42501' then row_security_active(p_target) and not exists (
      select from unnest(p_columns) c
      where not (has_column_privilege(p_target, c, 'insert') and has_column_privilege(p_target, c, 'select')))
    else left(p_sqlstate, 2) <> all (array['08', '0A', '24', '25', '26', '28', '2D', '34', '3B', '3D', '3F', '40', '42', '53', '55', '57', '58', 'F0', 'XX'])
  end
$$;

-- Returns the part of a JSON array that the positions name.
-- Locks: none. Errors: none.
create or replace function routeledger._rows_at(
  p_rows jsonb,
  p_ids text[]
)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when p_ids is null or p_rows is null then p_rows
    else (select coalesce(jsonb_agg(p_rows -> (u.id::integer - 1) order by u.n), '[]') from unnest(p_ids) with ordinality u (id, n))
  end
$$;

-- Finds the rows that cannot be read, or that the table refuses, by halving, in the order given; leaves
-- nothing behind. What is wrong with the call as a whole is raised.
-- Locks: as _run_upsert(), given back at the end. Errors: what the target raises for the call as a whole.
create or replace function routeledger._bad_rows(
  p_plan routeledger.upsert_plan,
  p_rows jsonb,
  p_ids text[],
  p_path text,
  p_write boolean
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_bad jsonb[] := array[]::jsonb[];
  v_orphans jsonb[];
  v_left jsonb[];
  v_todo integer[] := array[1, cardinality(p_ids)];
  v_from integer;
  v_to integer;
  v_one jsonb;
  v_state text;
  v_message text;
  v_detail text;
  v_hint text;
  v_constraint text;
  v_column text;
begin
  begin
    while v_todo <> '{}' loop
      v_to := v_todo[cardinality(v_todo)];
      v_from := v_todo[cardinality(v_todo) - 1];
      v_todo := v_todo[:cardinality(v_todo) - 2];
      continue when v_from > v_to;
      begin
        if p_write then
          perform routeledger._run_upsert(p_plan, routeledger._rows_at(p_rows, p_ids[v_from:v_to]), p_ids[v_from:v_to], p_path);
        else
          execute p_plan.read_statement using routeledger._rows_at(p_rows, p_ids[v_from:v_to]), p_ids[v_from:v_to];
        end if;
      exception
        when others then
          get stacked diagnostics
            v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint,
            v_constraint = constraint_name, v_column = column_name;
          if not routeledger._is_about_a_row(v_state, p_plan.target::regclass, p_plan.columns) then
            raise;
          elsif v_from < v_to then
            v_todo := v_todo || array[(v_from + v_to) / 2 + 1, v_to, v_from, (v_from + v_to) / 2];
          else
            v_bad := array_append(v_bad, jsonb_build_object(
              'id', p_ids[v_from],
              'code', case when p_write then 'RL307' else 'RL107' end,
              'detail', jsonb_strip_nulls(jsonb_build_object('sqlstate', v_state, 'reason', v_message, 'detail', nullif(v_detail, ''),
                'hint', nullif(v_hint, ''), 'constraint', nullif(v_constraint, ''), 'column', nullif(v_column, '')))));
          end if;
      end;
    end loop;
    -- a row that points to another row of the table may have come before it
    select
      coalesce(array_agg(u.b order by u.n) filter (where u.b #>> '{detail,sqlstate}' = '23503'), '{}'),
      coalesce(array_agg(u.b order by u.n) filter (where u.b #>> '{detail,sqlstate}' <> '23503'), '{}')
    into v_orphans, v_bad
    from unnest(v_bad) with ordinality u (b, n);
    loop
      v_left := '{}';
      foreach v_one in array v_orphans loop
        begin
          perform routeledger._run_upsert(p_plan, routeledger._rows_at(p_rows, array[v_one ->> 'id']), array[v_one ->> 'id'], p_path);
        exception
          when others then
            if not routeledger._is_about_a_row(sqlstate, p_plan.target::regclass, p_plan.columns) then
              raise;
            end if;
            v_left := array_append(v_left, v_one);
        end;
      end loop;
      exit when cardinality(v_left) = cardinality(v_orphans);
      v_orphans := v_left;
    end loop;
    v_bad := v_bad || v_left;
    raise exception using errcode = 'UNDO0', message = 'undone on purpose';
  exception
    when sqlstate 'UNDO0' then
      return to_jsonb(v_bad);
  end;
end
$$;

-- Returns which of these rows, that were not written and are not there under the key they gave, a trigger kept
-- out: those that not even a write by force brings in. The others lost to what is there under the key that a
-- trigger gave them. Leaves nothing behind.
-- Locks: as _run_upsert(), given back at the end. Errors: none.
create or replace function routeledger._kept_out(
  p_plan routeledger.upsert_plan,
  p_rows jsonb,
  p_ids text[],
  p_path text
)
returns text[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_out text[] := array[]::text[];
  v_id text;
  v_written bigint;
begin
  -- all at once, and one by one where some are missing or have one key between them
  begin
    perform set_config('search_path', p_path, true);
    execute p_plan.probe_statement into v_written using routeledger._rows_at(p_rows, p_ids), p_ids;
    raise exception using errcode = 'UNDO0', message = 'undone on purpose';
  exception
    when sqlstate 'UNDO0' or cardinality_violation then
      if v_written = cardinality(p_ids) then
        return v_out;
      end if;
  end;
  foreach v_id in array coalesce(p_ids, '{}') loop
    begin
      perform set_config('search_path', p_path, true);
      execute p_plan.probe_statement into v_written using routeledger._rows_at(p_rows, array[v_id]), array[v_id];
      raise exception using errcode = 'UNDO0', message = 'undone on purpose';
    exception
      when sqlstate 'UNDO0' then
        if v_written = 0 then
          v_out := v_out || v_id;
        end if;
    end;
  end loop;
  return v_out;
end
$$;

-- Returns a digest of the rows of a source that does not depend on their order, nor on how a session prints.
-- Locks: none. Errors: none.
create or replace function routeledger._digest_rows(
  p_statement text
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
as $$
declare
  v_digest text;
begin
  execute p_statement into v_digest;
  return coalesce(v_digest, '0');
end
$$;

-- Books a batch under its id, in the caller's transaction; waits for another transaction that is about to book
-- it. When it was booked before, says what was refused of it then. Whoever may upsert may book any id: choose
-- ids that nobody guesses.
-- Locks: the batch's row. Errors: RL308.
create or replace function routeledger._claim_batch(
  p_target text,
  p_batch_id text,
  p_digest text,
  p_received bigint,
  out is_new boolean,
  out refused bigint,
  out refusals jsonb
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
begin
  insert into routeledger.upsert_batches (target, batch_id, digest, received, applied_at)
  values (p_target, p_batch_id, p_digest, p_received, routeledger.clock())
  on conflict (target, batch_id) do nothing;
  is_new := found;
  refused := 0;
  refusals := '[]';
  if not is_new then
    select b.refused, b.refusals into refused, refusals
    from routeledger.upsert_batches b
    where b.target = p_target and b.batch_id = p_batch_id and b.digest = p_digest and b.received = p_received;
    if not found then
      perform routeledger._raise('RL308', jsonb_build_object('target', p_target, 'batch_id', p_batch_id));
    end if;
  end if;
end
$$;

-- Keeps with a batch what was refused of it.
-- Locks: the batch's row. Errors: none.
create or replace function routeledger._settle_batch(
  p_target text,
  p_batch_id text,
  p_refused bigint,
  p_refusals jsonb
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  update routeledger.upsert_batches b set refused = p_refused, refusals = p_refusals
  where b.target = p_target and b.batch_id = p_batch_id;
end
$$;

-- Counts an upsert in a row of its target and day that nobody else holds, in a new one when all are held:
-- callers never wait for each other here.
-- Locks: one row of upsert_counts. Errors: none.
create or replace function routeledger._count_upsert(
  p_target text,
  p_received bigint,
  p_collapsed bigint,
  p_inserted bigint,
  p_updated bigint,
  p_unchanged bigint,
  p_refused bigint
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_now timestamptz := routeledger.clock();
  v_id uuid;
begin
  -- under a fixed snapshot a row that has changed since could not be taken: always a new one then
  if current_setting('transaction_isolation') = 'read committed' then
    select c.id into v_id
    from routeledger.upsert_counts c
    where c.target = p_target and c.day = (v_now at time zone 'UTC')::date
    limit 1
    for update skip locked;
  end if;
  if v_id is null then
    insert into routeledger.upsert_counts (target, day, last_at)
    values (p_target, (v_now at time zone 'UTC')::date, v_now)
    returning id into v_id;
  end if;
  update routeledger.upsert_counts c set
    calls = c.calls + 1,
    calls_with_duplicates = c.calls_with_duplicates + (p_collapsed > 0)::integer,
    received = c.received + p_received,
    collapsed = c.collapsed + p_collapsed,
    inserted = c.inserted + p_inserted,
    updated = c.updated + p_updated,
    unchanged = c.unchanged + p_unchanged,
    refused = c.refused + p_refused,
    last_at = v_now,
    last_duplicates_at = case when p_collapsed > 0 then v_now else c.last_duplicates_at end
  where c.id = v_id;
end
$$;

-- Runs a plan for one row after the other, in the order of p_ids, of which p_wanted may leave some out.
-- Locks: as _run_upsert(). Errors: what the target raises.
create or replace function routeledger._run_one_by_one(
  p_plan routeledger.upsert_plan,
  p_rows jsonb,
  p_ids text[],
  p_wanted text[],
  p_path text,
  out keyed bigint,
  out winners bigint,
  out inserted bigint,
  out updated bigint
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_id text;
  v_run record;
begin
  keyed := 0;
  winners := 0;
  inserted := 0;
  updated := 0;
  for v_id in
    select i from unnest(p_ids) with ordinality u (i, n) where i = any (p_wanted) order by n
  loop
    v_run := routeledger._run_upsert(p_plan, routeledger._rows_at(p_rows, array[v_id]), array[v_id], p_path);
    keyed := keyed + v_run.keyed;
    winners := winners + v_run.winners;
    inserted := inserted + v_run.inserted;
    updated := updated + v_run.updated;
  end loop;
end
$$;

-- Upserts the rows of a JSON array or of a source table: the work behind upsert() and upsert_from(). Bad
-- rows are looked for only when the good path fails: first those that cannot be read, then those that the
-- table refuses; the others are then written by one statement, as if the bad ones had never been there.
-- Locks: the batch's id, then as _run_upsert(). Errors: RL101, RL102, RL107, RL108, RL112, RL113, RL114, RL115, RL204, RL307, RL308, RL501, and what the target raises for the call as a whole.
create or replace function routeledger._upsert(
  p_target regclass,
  p_source regclass,
  p_rows jsonb,
  p_key text[],
  p_precedence text,
  p_on_tie text,
  p_columns text[],
  p_batch_id text,
  p_strict boolean,
  p_path text
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
  c_listed constant integer := 10000;
  v_plan routeledger.upsert_plan;
  v_columns text[] := p_columns;
  v_rows jsonb := p_rows #> '{}';  -- the rows, each with all the columns; a copy, which is read from memory
  v_defaults text;
  v_bad jsonb := jsonb '[]';
  v_ids text[];                 -- the rows that are left, by position or ctid; null: all
  v_absent text[];
  v_batch record;
  v_run record;
  v_failed boolean := false;
  v_report text;
  v_path text;
  v_target text;
begin
  -- Nothing of the caller's stands in for a type of pg_catalog: not by a path that names it late, nor by pg_temp,
  -- which comes first where it is not named.
  v_path := case when p_path ~ '\mpg_catalog\M' then 'pg_catalog, ' else '' end || p_path || case when p_path ~ '\mpg_temp\M' then '' else ', pg_temp' end;
  v_path := trim(leading ', ' from v_path);
  if p_target is null then
    perform routeledger._raise_fault('RL101 target');
  elsif p_source = 0::oid then
    perform routeledger._raise_fault('RL101 source');
  elsif p_columns = '{}' then
    perform routeledger._raise_fault('RL101 columns names, or null');
  elsif p_strict is null then
    perform routeledger._raise_fault('RL101 strict');
  elsif p_precedence ~* '^\s*sum\s+[^,\s]' and coalesce(p_batch_id, '') = '' then
    perform routeledger._raise_fault('RL101 batch_id with sum, so that a replay adds nothing');
  elsif length(p_batch_id) > 300 then
    perform routeledger._raise_fault('RL108 batch_id 300 characters');
  end if;

  perform routeledger._check_names(p_columns, 'columns');
  if p_source is null then
    select s.columns, s.defaults, s.bad into v_columns, v_defaults, v_bad from routeledger._upsert_shape(p_target, p_rows, p_columns) s;
    received := jsonb_array_length(p_rows);
    if v_defaults is not null then
      execute format('select jsonb_agg(case when jsonb_typeof(e) = ''object'' then d || e else e end order by n)
        from jsonb_array_elements($1) with ordinality u (e, n) cross join (select %s) d (d)', v_defaults)
      into v_rows using p_rows;
    end if;
    if v_bad <> '[]' then
      v_ids := array(select n::text from generate_series(1, received) n except select b ->> 'id' from jsonb_array_elements(v_bad) b);
    end if;
  else
    v_columns := coalesce(p_columns, array(
      select a.attname::text from pg_attribute a where a.attrelid = p_source and a.attnum > 0 and not a.attisdropped));
  end if;

  collapsed := 0;
  inserted := 0;
  updated := 0;
  unchanged := 0;
  select true as is_new, 0::bigint as refused, '[]'::jsonb as refusals into v_batch;
  if p_source is not null or received > jsonb_array_length(v_bad) or (received = 0 and v_columns is not null) then
    v_plan := routeledger._plan_upsert(p_target, p_source, v_columns, p_key, p_precedence, p_on_tie,
      has_table_privilege(p_target, 'select'));
    if p_source is not null then
      execute format('select count(*) from only %s', p_source) into received;
    end if;
    if p_batch_id is not null then
      select b.is_new, b.refused, b.refusals into v_batch
      from routeledger._claim_batch(v_plan.target, p_batch_id, case
        when p_source is not null then routeledger._digest_rows(v_plan.digest_statement)
        else (select coalesce(sum(hashtextextended(e::text, 0)::numeric), 0)::text from jsonb_array_elements(p_rows) e) end, received) b;
    end if;
    if not v_batch.is_new then
      v_bad := '[]';
      unchanged := received - v_batch.refused;
    else
      begin
        v_run := routeledger._run_upsert(v_plan, routeledger._rows_at(v_rows, v_ids), v_ids, v_path);
      exception
        when others then
          if not routeledger._is_about_a_row(sqlstate, p_target, v_plan.columns) then
            raise;
          end if;
          v_failed := true;
      end;
      if v_failed then
        if v_ids is null and p_source is null then
          v_ids := array(select n::text from generate_series(1, received) n);
        elsif v_ids is null then
          execute format('select array_agg(s.ctid::text order by s.ctid) from only %s s', p_source) into v_ids;
        end if;
        v_bad := v_bad || routeledger._bad_rows(v_plan, v_rows, v_ids, v_path, false);
        v_ids := array(select i from unnest(v_ids) i except select b ->> 'id' from jsonb_array_elements(v_bad) b);
        -- in the order of the key, and of each key the best first, so that it does not depend on the order of arrival who is refused
        execute v_plan.order_statement into v_absent using routeledger._rows_at(v_rows, v_ids), v_ids;
        v_bad := v_bad || routeledger._bad_rows(v_plan, v_rows, coalesce(v_absent, '{}'), v_path, true);
        v_ids := array(select i from unnest(v_ids) i except select b ->> 'id' from jsonb_array_elements(v_bad) b);
        begin
          v_run := routeledger._run_upsert(v_plan, routeledger._rows_at(v_rows, v_ids), v_ids, v_path);
        exception
          when cardinality_violation then
            -- a trigger gives several rows one key: they can only go one after the other
            v_run := routeledger._run_one_by_one(v_plan, v_rows, v_absent, v_ids, v_path);
        end;
      end if;
      inserted := v_run.inserted;
      updated := v_run.updated;
      collapsed := v_run.keyed - v_run.winners;
      unchanged := v_run.winners - v_run.inserted - v_run.updated;

      if received - jsonb_array_length(v_bad) > v_run.keyed then
        execute v_plan.keyless_statement into v_absent using routeledger._rows_at(v_rows, v_ids), v_ids;
        v_bad := v_bad || (select jsonb_agg(jsonb_build_object('id', i, 'code', 'RL115',
          'detail', jsonb_build_object('key', v_plan.key, 'unique_index', v_plan.arbiter))) from unnest(v_absent) i);
      end if;
      if unchanged > 0 and v_plan.absent_statement is not null then
        execute v_plan.absent_statement into v_absent using routeledger._rows_at(v_rows, v_ids), v_ids;
        v_absent := routeledger._kept_out(v_plan, v_rows, v_absent, v_path);
        if v_absent <> '{}' then
          unchanged := unchanged - cardinality(v_absent);
          v_bad := v_bad || (select jsonb_agg(jsonb_build_object('id', i, 'code', 'RL307',
            'detail', jsonb_build_object('reason', 'a BEFORE INSERT trigger kept the row out'))) from unnest(v_absent) i);
        end if;
      end if;
    end if;
  end if;
  refused := jsonb_array_length(v_bad) + v_batch.refused;
  refusals := v_batch.refusals;

  -- what is listed: positions, messages and hints in place of ids and codes
  if v_bad <> '[]' then
    execute case when p_source is null
      then 'select jsonb_agg(b || jsonb_build_object(''ord'', (b ->> ''id'')::bigint)) from jsonb_array_elements($1) b'
      else format('select jsonb_agg(b || jsonb_build_object(''ord'', s.n)) from jsonb_array_elements($1) b
        join (select ctid, row_number() over (order by ctid) as n from only %s) s on s.ctid = (b ->> ''id'')::tid', p_source) end
    into v_bad using v_bad;
    select jsonb_agg(jsonb_build_object('ord', b.ord, 'code', b.code, 'message', e.message, 'detail', b.detail, 'hint',
      case when b.code = 'RL107' then 'Pass a JSON object whose keys are columns of the target, and values of their types.' else e.hint end) order by b.ord)
    into refusals
    from (
      select (b ->> 'ord')::bigint as ord, b ->> 'code' as code, b -> 'detail' as detail
      from jsonb_array_elements(v_bad) b order by 1 limit c_listed
    ) b
    join routeledger.errors() e on e.code = b.code;
    if p_strict then
      perform routeledger._raise(refusals #>> '{0,code}', (refusals #> '{0,detail}') || jsonb_build_object('ord', refusals #> '{0,ord}', 'refused', refused),
        refusals #>> '{0,hint}');
    elsif p_batch_id is not null then
      perform routeledger._settle_batch(v_plan.target, p_batch_id, refused, refusals);
    end if;
  end if;

  v_target := coalesce(v_plan.target, (
    select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_target), p_target::text);
  perform routeledger._count_upsert(v_target, received, collapsed, inserted, updated, unchanged, refused);
  v_report := format('upsert into %s: received %s, collapsed %s, inserted %s, updated %s, unchanged %s, refused %s',
    v_target, received, collapsed, inserted, updated, unchanged, refused);
  if collapsed > 0 then
    raise warning '%', v_report;
  else
    raise notice '%', v_report;
  end if;
  return next;
end
$$;

-- Writes the rows of a JSON array into any table, each key once. Of several rows of a key, in the call and in
-- the table, the one stays that wins by the precedence, whatever the order in which they come:
-- `greatest n` (the higher value; a bare column means the same), `latest updated_at` (for dates and times),
-- `first seen_at` (the lower value), several by commas; NULL and NaN lose. Between equals p_on_tie decides:
-- `greatest_row` (the whole row, byte for byte, so that the outcome never depends on the order), `replace`
-- (the newest call wins, for callers who are sure of their order) or `keep` (what is there stays). Without a
-- precedence all rows are equals. `sum hits, cost` adds up instead: p_batch_id names the batch, and a batch
-- that comes again adds nothing.
--
-- The key is that of a unique index (p_key; by default the primary key). Written are p_columns, by default all
-- that the rows name; a row that lacks one gets the column's default where that is a constant, NULL where there
-- is none, and is refused otherwise. (Rows are compared over all the columns of their call: where calls differ in
-- what their rows name, p_columns keeps the outcome independent of the split.) One bad row never fails its neighbours: it is listed in refusals (at most
-- 10000) with its position, code, message, detail and hint. With p_strict the first of them is raised and
-- nothing is written.
--
-- received = collapsed + inserted + updated + unchanged + refused, always. At most 100000 rows a call.
-- The privileges, row-level security and search_path of the caller apply.
--
-- Locks: new rows in the order of the key, then existing ones in that order. Errors: RL101, RL102, RL107, RL108, RL112, RL113, RL114, RL115, RL204, RL307, RL308, RL501, and what the target raises for the call as a whole.
create or replace function routeledger.upsert(
  p_target regclass,
  p_rows jsonb,
  p_key text[] default null,
  p_precedence text default null,
  p_on_tie text default 'greatest_row',
  p_columns text[] default null,
  p_batch_id text default null,
  p_strict boolean default false
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select u.received, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused, u.refusals
  from routeledger._upsert(
    p_target, null, p_rows, p_key, p_precedence, p_on_tie, p_columns, p_batch_id, p_strict, pg_catalog.current_setting('search_path')) u
$$;

-- Writes the rows of a staging table into any table: upsert() for loads that are too large for one JSON
-- array. The columns of the source have the names and exactly the types of the target's, as in
-- `create temp table stage on commit drop as select a, b from target with no data`, so that duplicates are
-- found among the values as they will be stored. p_columns picks some of them. The position of a refused row
-- is its place in the source.
-- Locks: new rows in the order of the key, then existing ones in that order. Errors: RL101, RL102, RL107, RL108, RL112, RL113, RL114, RL115, RL204, RL307, RL308, and what the target raises for the call as a whole.
create or replace function routeledger.upsert_from(
  p_target regclass,
  p_source regclass,
  p_key text[] default null,
  p_precedence text default null,
  p_on_tie text default 'greatest_row',
  p_columns text[] default null,
  p_batch_id text default null,
  p_strict boolean default false
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select u.received, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused, u.refusals
  from routeledger._upsert(
    p_target, coalesce(p_source, 0::pg_catalog.oid::pg_catalog.regclass), null, p_key, p_precedence, p_on_tie, p_columns, p_batch_id, p_strict,
    pg_catalog.current_setting('search_path')) u
$$;

-- Returns the refusals of a call that judges its rows and then upserts those without fault: both, by the place of
-- the row in the call. p_ords are the places of the rows that were upserted, p_refusals what upsert() said of them.
-- Locks: none. Errors: none.
create or replace function routeledger._place_refusals(
  p_faults text[],
  p_ords integer[],
  p_refusals jsonb
)
returns jsonb
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select coalesce(jsonb_agg(r.refusal || jsonb_build_object('ord', r.ord) order by r.ord), '[]')
  from (
    select f.n, jsonb_build_object('code', e.code, 'message', e.message, 'detail', routeledger._fault_detail(f.fault), 'hint', e.hint)
    from unnest(p_faults) with ordinality f (fault, n)
    join routeledger._errors() e on e.code = split_part(f.fault, ' ', 1)
    union all
    select p_ords[(u.refusal ->> 'ord')::integer], u.refusal
    from jsonb_array_elements(p_refusals) u (refusal)
  ) r (ord, refusal)
$$;

-- Says what upsert() would do for rows of these columns: which unique index decides, what its key is, which
-- columns are written, and the statement that is run, with $1 for the rows.
-- Locks: none. Errors: RL101, RL102, RL112, RL113, RL114, RL204.
create or replace function routeledger.plan_upsert(
  p_target regclass,
  p_columns text[],
  p_key text[] default null,
  p_precedence text default null,
  p_on_tie text default 'greatest_row'
)
returns table (
  target text,
  unique_index text,
  key text[],
  columns text[],
  statement text
)
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
begin
  if p_target is null then
    perform routeledger._raise_fault('RL101 target');
  elsif p_columns = '{}' then
    perform routeledger._raise_fault('RL101 columns names');
  end if;
  return query
  select p.target, p.arbiter, p.key, p.columns, p.statement
  from routeledger._plan_upsert(p_target, null, p_columns, p_key, p_precedence, p_on_tie, true) p;
end
$$;

-- Per target and day (UTC): how many upserts there were, what became of their rows, and how many calls held
-- several rows of one key.
create or replace view routeledger.upsert_activity
with (security_barrier = true)
as
select
  c.target,
  c.day,
  sum(c.calls)::bigint as calls,
  sum(c.calls_with_duplicates)::bigint as calls_with_duplicates,
  sum(c.received)::bigint as received,
  sum(c.collapsed)::bigint as collapsed,
  sum(c.inserted)::bigint as inserted,
  sum(c.updated)::bigint as updated,
  sum(c.unchanged)::bigint as unchanged,
  sum(c.refused)::bigint as refused,
  max(c.last_at) as last_at,
  max(c.last_duplicates_at) as last_duplicates_at
from routeledger.upsert_counts c
group by c.target, c.day;
