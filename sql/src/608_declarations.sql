-- 608 · Declared constraints: what tables are meant to hold is written down, compared, and brought about.
--
-- A declaration names its table by schema and name, so that it can be there before the table is, and outlives it. What it
-- says is compared with the catalogue each time that somebody asks: nothing that was seen before is trusted.
--
-- Only who may alter a table, or an admin, declares constraints of it: whoever applies a declaration
-- runs its predicate. Our own declarations (origin routeledger) are put back by each install.

create table if not exists routeledger.declared_constraints (
  target_schema text not null,
  target_name text not null,
  name text not null,
  kind text not null,
  predicate text,
  columns text[],
  options jsonb not null default '{}',
  origin text not null default 'user',
  declared_by name not null,
  declared_at timestamptz not null,
  constraint declared_constraints_pkey primary key (target_schema, target_name, name),
  constraint declared_constraints_kind_check check (
    kind = 'check' and predicate is not null and columns is null
    or kind = 'unique' and predicate is null and cardinality(columns) > 0
    or kind = 'not_null' and predicate is null and cardinality(columns) = 1),
  constraint declared_constraints_origin_check check (origin in ('routeledger', 'user'))
);

-- The rules of the ledger itself, as 200 has them.
with own (target_name, name, predicate) as (
  values
    ('routing_outcomes', 'outcome_requires_inference_when_model_chosen',
      'outcome_status is null or chosen_model_slug is null or decision_rule_override is not null or inference_id is not null'),
    ('routing_outcomes', 'outcome_closed_has_completed_at',
      '(outcome_status is null) = (completed_at is null)'),
    ('routing_outcomes', 'outcome_in_flight_has_lease',
      '(outcome_status is null) = (lease_expires_at is not null)'),
    ('routing_outcomes', 'outcome_rejected_has_no_model',
      'outcome_status <> ''rejected'' or chosen_model_slug is null'),
    ('inferences', 'inference_closed_has_completed_at',
      '(status = ''routed'') = (completed_at is null)'),
    ('inferences', 'inference_succeeded_requires_tokens',
      'status <> ''succeeded'' or (input_tokens is not null and output_tokens is not null)'),
    ('inferences', 'inference_failed_requires_error',
      'status <> ''failed'' or error_type is not null'),
    ('inferences', 'inference_numbers_not_negative',
      'least(input_tokens, output_tokens) >= 0 and cost_usd >= 0')
),
gone as (
  delete from routeledger.declared_constraints d
  where d.origin = 'routeledger' and not exists (
    select from own o where d.target_schema = 'routeledger' and d.target_name = o.target_name and d.name = o.name)
)
insert into routeledger.declared_constraints as d (target_schema, target_name, name, kind, predicate, origin, declared_by, declared_at)
select 'routeledger', o.target_name, o.name, 'check', o.predicate, 'routeledger', current_user, routeledger.clock()
from own o
on conflict (target_schema, target_name, name) do update set
  kind = excluded.kind,
  predicate = excluded.predicate,
  columns = null,
  options = '{}',
  origin = excluded.origin,
  declared_by = excluded.declared_by,
  declared_at = excluded.declared_at
where (d.kind, d.predicate, d.columns, d.options, d.origin) is distinct from (excluded.kind, excluded.predicate, null, '{}', excluded.origin);

-- Returns the schema and the name of the table that a text means to a session of this search_path: those of the table that there is, else
-- those that are written, and the first schema of the path where none is.
-- Locks: none. Errors: RL101, RL117.
create or replace function routeledger._table_meant(
  p_table text,
  p_path text,
  out target_schema text,
  out target_name text,
  out relation regclass
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_parts text[];
begin
  if coalesce(p_table, '') = '' then
    perform routeledger._raise_fault('RL101 table');
  end if;
  begin
    v_parts := parse_ident(p_table);
  exception
    when invalid_parameter_value then
      v_parts := null;
  end;
  if v_parts is null or cardinality(v_parts) > 2 then
    perform routeledger._raise('RL117', jsonb_build_object('table', p_table, 'reason', 'not the name of a table, with or without a schema'));
  end if;
  target_name := left(v_parts[cardinality(v_parts)], 63);
  if cardinality(v_parts) = 2 then
    target_schema := v_parts[1];
  else
    perform set_config('search_path', p_path, true);
    select n.nspname, c.oid into target_schema, relation
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
    where c.relname operator(pg_catalog.=) target_name and pg_catalog.pg_table_is_visible(c.oid) and c.relkind operator(pg_catalog.=) any ('{r,p,v,m,f}'::"char"[]);
    target_schema := coalesce(target_schema, pg_catalog.current_schema(), 'public');
    perform set_config('search_path', 'pg_catalog, routeledger, pg_temp', true);
  end if;
  relation := (
    select c.oid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = target_schema and c.relname = target_name and c.relkind in ('r', 'p', 'v', 'm', 'f'));
end
$$;

-- Returns what is declared, all of it or for one table or one name, each with the table as it is now (null: there is none).
-- Locks: none. Errors: none.
create or replace function routeledger._declarations(
  p_schema text,
  p_table text,
  p_name text
)
returns table (
  target text,
  relation regclass,
  name text,
  kind text,
  predicate text,
  columns text[],
  options jsonb,
  origin text
)
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
as $$
#variable_conflict use_column
begin
  return query
  select format('%I.%I', d.target_schema, d.target_name), c.oid::regclass, d.name, d.kind, d.predicate, d.columns, d.options, d.origin
  from routeledger.declared_constraints d
  left join pg_namespace n on n.nspname = d.target_schema
  left join pg_class c on c.relnamespace = n.oid and c.relname = d.target_name and c.relkind in ('r', 'p', 'v', 'm', 'f')
  where (p_table is null or (d.target_schema, d.target_name) = (p_schema, p_table))
    and (p_name is null or d.name = p_name)
  order by d.target_schema, d.target_name, d.name;
end
$$;

-- Says whether the caller may declare constraints of a table: an admin, or who has the rights of its owner; of a table that there is
-- not yet, who may create it.
-- Locks: none. Errors: none.
create or replace function routeledger._may_declare(
  p_schema text,
  p_relation regclass
)
returns boolean
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_role name := routeledger._caller_role();
begin
  return coalesce(routeledger._is_admin(v_role), false)
    or coalesce((select pg_has_role(v_role, c.relowner, 'usage') from pg_class c where c.oid = p_relation), false)
    or (p_relation is null and coalesce((select has_schema_privilege(v_role, n.oid, 'create') from pg_namespace n where n.nspname = p_schema), false));
end
$$;

-- Writes a declaration, or takes it away (p_kind null). Returns whether that changed anything.
-- Locks: the row. Errors: RL117, 42501.
create or replace function routeledger._store_declaration(
  p_schema text,
  p_table text,
  p_relation regclass,
  p_name text,
  p_kind text,
  p_predicate text,
  p_columns text[],
  p_options jsonb
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_origin text;
begin
  if not routeledger._may_declare(p_schema, p_relation) then
    raise exception using
      errcode = '42501',
      message = 'constraints of a table are declared by its owner or by an admin',
      detail = jsonb_build_object('table', format('%I.%I', p_schema, p_table), 'role', routeledger._caller_role())::text,
      hint = 'Take the role of the owner, or one that is a member of routeledger_admin.';
  end if;
  select d.origin into v_origin
  from routeledger.declared_constraints d
  where (d.target_schema, d.target_name, d.name) = (p_schema, p_table, p_name);
  if v_origin = 'routeledger' then
    perform routeledger._raise('RL117', jsonb_build_object(
      'table', format('%I.%I', p_schema, p_table), 'name', p_name, 'reason', 'this constraint is declared by routeledger itself'));
  end if;
  if p_kind is null then
    delete from routeledger.declared_constraints d where (d.target_schema, d.target_name, d.name) = (p_schema, p_table, p_name);
  else
    insert into routeledger.declared_constraints as d (
      target_schema, target_name, name, kind, predicate, columns, options, origin, declared_by, declared_at)
    values (p_schema, p_table, p_name, p_kind, p_predicate, p_columns, p_options, 'user', routeledger._caller_role(), routeledger.clock())
    on conflict (target_schema, target_name, name) do update set
      kind = excluded.kind,
      predicate = excluded.predicate,
      columns = excluded.columns,
      options = excluded.options,
      declared_by = excluded.declared_by,
      declared_at = excluded.declared_at
    where (d.kind, d.predicate, d.columns, d.options) is distinct from (excluded.kind, excluded.predicate, excluded.columns, excluded.options);
  end if;
  return found;
end
$$;

-- Returns the fault of the options of a declaration, null when there is none: which there are depends on the kind.
-- Locks: none. Errors: none.
create or replace function routeledger._options_fault(
  p_kind text,
  p_options jsonb
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  c_allowed constant jsonb := '{
    "check": {"if_violated": "string", "no_inherit": "boolean", "also_drop": "array"},
    "unique": {"keep": "string", "nulls": "string", "where": "string", "form": "string", "children": "string", "triggers": "string", "reason": "string"},
    "not_null": {"if_violated": "string"}}'::jsonb;
  c_common constant jsonb := '{"label": "string", "lock_timeout": "string", "attempts": "number"}'::jsonb;
  c_words constant jsonb := '{
    "if_violated": ["refuse", "add_not_valid"], "nulls": ["distinct", "not_distinct"], "form": ["index", "constraint"],
    "children": ["refuse", "repoint"], "triggers": ["refuse", "fire"]}'::jsonb;
  v_allowed jsonb := c_common || (c_allowed -> p_kind);
  v_key text;
  v_value jsonb;
begin
  if p_options is null or jsonb_typeof(p_options) <> 'object' then
    return 'RL107 options a JSON object';
  end if;
  for v_key, v_value in select o.key, o.value from jsonb_each(p_options) o order by o.key loop
    if not v_allowed ? v_key then
      return 'RL102 options ' || (select string_agg(k, ', ' order by k) from jsonb_object_keys(v_allowed) k);
    elsif jsonb_typeof(v_value) <> v_allowed ->> v_key
      or (v_key = 'also_drop' and jsonb_path_exists(v_value, '$[*] ? (@.type() != "string")'))
    then
      return 'RL107 options.' || v_key || ' a JSON ' || (v_allowed ->> v_key);
    elsif c_words ? v_key and not c_words -> v_key ? (v_value #>> '{}') then
      return 'RL102 options.' || v_key || ' ' || (select string_agg(w, ', ') from jsonb_array_elements_text(c_words -> v_key) w);
    end if;
  end loop;
  begin
    return routeledger._lock_fault(coalesce(p_options ->> 'lock_timeout', '1 second')::interval, coalesce(p_options ->> 'attempts', '10')::integer);
  exception
    when data_exception then
      return 'RL103 options lock_timeout 1 millisecond to 1 hour, attempts 1 to 1000';
  end;
end
$$;

-- declare_constraint() and undeclare_constraint() (p_kind null), for a session of this search_path.
-- Locks: the declaration. Errors: RL101, RL102, RL103, RL107, RL108, RL113, RL116, RL117, 42501.
create or replace function routeledger._declare_constraint(
  p_table text,
  p_name text,
  p_kind text,
  p_predicate text,
  p_columns text[],
  p_options jsonb,
  p_path text
)
returns boolean
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_target record;
  v_fault text := coalesce(
    routeledger._constraint_fault(p_name, null, 'refuse'),
    case
      when p_kind is null then null
      when p_kind = '' then 'RL101 kind'
      when p_kind not in ('check', 'unique', 'not_null') then 'RL102 kind check, unique, not_null'
      when p_kind = 'check' and p_predicate is null then 'RL101 predicate'
      when p_kind <> 'check' and p_predicate is not null then 'RL102 predicate null, unless kind is check'
      when p_kind = 'check' and p_columns is not null then 'RL102 columns null, if kind is check'
      when p_kind <> 'check' and (coalesce(cardinality(p_columns), 0) = 0 or array_position(p_columns, null) is not null) then 'RL101 columns'
      when p_kind = 'not_null' and cardinality(p_columns) > 1 then 'RL102 columns one, if kind is not_null'
      else routeledger._options_fault(p_kind, p_options)
    end);
begin
  select t.target_schema, t.target_name, t.relation into strict v_target from routeledger._table_meant(p_table, p_path) t;
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  if p_kind is not null and v_target.relation is not null then
    perform routeledger._check_table(v_target.relation);
    -- read before it is written down, by whoever declares it
    if p_kind = 'check' then
      perform routeledger._canonical_check(v_target.relation, p_predicate);
    elsif p_kind = 'not_null' and routeledger._column_named(v_target.relation, p_columns[1]) is null then
      perform routeledger._raise('RL113', jsonb_build_object('target', routeledger._qualified(v_target.relation), 'column', p_columns[1]));
    end if;
  end if;
  return routeledger._store_declaration(
    v_target.target_schema, v_target.target_name, v_target.relation, p_name, p_kind, p_predicate, p_columns, p_options);
end
$$;

-- Declares that a table is to hold a constraint of this name: nothing is done to the table. p_kind is `check` (with p_predicate),
-- `unique` (with p_columns: columns or expressions) or `not_null` (with one column). p_options are
-- the other parameters of ensure_check(), ensure_unique() or ensure_not_null(), without p_. The table need not exist yet; where it does
-- the predicate is read at once. Returns true when the declaration is new or another one than before.
-- Locks: the declaration. Errors: RL101, RL102, RL103, RL107, RL108, RL113, RL116, RL117, 42501.
create or replace function routeledger.declare_constraint(
  p_table text,
  p_name text,
  p_kind text,
  p_predicate text default null,
  p_columns text[] default null,
  p_options jsonb default '{}'
)
returns boolean
language sql
volatile
parallel unsafe
security invoker
as $$
  select routeledger._declare_constraint(
    p_table, p_name, coalesce(p_kind, ''), p_predicate, p_columns, p_options, pg_catalog.current_setting('search_path'))
$$;

-- Takes a declaration away; the constraint stays as it is. Returns whether there was one. Those of routeledger itself cannot be taken away.
-- Locks: the declaration. Errors: RL101, RL108, RL117, 42501.
create or replace function routeledger.undeclare_constraint(
  p_table text,
  p_name text
)
returns boolean
language sql
volatile
parallel unsafe
security invoker
as $$
  select routeledger._declare_constraint(p_table, p_name, null, null, null, null, pg_catalog.current_setting('search_path'))
$$;

-- Returns the declarations that a caller asks for, by table, by name, or all, for a session of this search_path.
-- Locks: none. Errors: RL101, RL117, RL207.
create or replace function routeledger._declarations_meant(
  p_table text,
  p_name text,
  p_path text
)
returns table (
  target text,
  relation regclass,
  name text,
  kind text,
  predicate text,
  columns text[],
  options jsonb,
  origin text
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_target record;
begin
  if p_table is not null then
    select t.target_schema, t.target_name into strict v_target from routeledger._table_meant(p_table, p_path) t;
  else
    select null as target_schema, null as target_name into v_target;
  end if;
  return query
  select d.target, d.relation, d.name, d.kind, d.predicate, d.columns, d.options, d.origin
  from routeledger._declarations(v_target.target_schema, v_target.target_name, p_name) d;
  if not found and p_name is not null then
    perform routeledger._raise('RL207', jsonb_strip_nulls(jsonb_build_object('table', p_table, 'name', p_name)));
  end if;
end
$$;

-- Compares one declared CHECK with the one that is there: "state", "declared", "found", "detail".
-- Locks: none. Errors: RL116.
create or replace function routeledger._state_of_check(
  p_relation regclass,
  p_name text,
  p_predicate text,
  p_options jsonb
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_want jsonb := routeledger._canonical_check(
    p_relation, p_predicate, array[p_name] || array(select a from jsonb_array_elements_text(p_options -> 'also_drop') a));
  v_live jsonb := v_want -> 'live' -> p_name;
  v_texts text[] := array(select t from jsonb_array_elements_text(v_want -> 'texts') with ordinality x (t, n) order by n);
  v_aliases jsonb;
  v_known jsonb;
begin
  v_known := routeledger._recorded(routeledger._qualified(p_relation), p_name, 'check', null, v_texts);
  v_aliases := (
    select jsonb_agg(a.name order by a.name)
    from jsonb_array_elements_text(p_options -> 'also_drop') a (name)
    where a.name <> p_name and v_want -> 'live' ? a.name);
  return jsonb_build_object(
    'state', case
      when v_want ? 'refused' then 'unknown'
      when v_live is null then 'missing'
      when v_live ->> 'kind' <> 'c' then 'different'
      when v_live ->> 'predicate' <> all (v_texts) or (v_live ->> 'no_inherit')::boolean <> coalesce((p_options ->> 'no_inherit')::boolean, false) then 'different'
      when not (v_live ->> 'enforced')::boolean then 'not_enforced'
      when v_known -> 'functions' <> 'null' and not routeledger._same_functions(v_known -> 'functions', v_want -> 'functions') then 'function_changed'
      when not (v_live ->> 'validated')::boolean then 'not_valid'
      when v_aliases is not null then 'different'
      else 'unchanged'
    end,
    'declared', coalesce(v_texts[cardinality(v_texts)], p_predicate),
    'found', case when v_live ->> 'kind' = 'c' then v_live -> 'predicate' else v_live -> 'definition' end,
    'detail', jsonb_strip_nulls(jsonb_build_object(
      'reason', v_want -> 'refused',
      'message', v_want -> 'message',
      'also_drop', v_aliases,
      'no_inherit', nullif((v_live -> 'no_inherit'), 'false'),
      'notes', nullif(v_want -> 'notes', '[]'),
      'functions', nullif(v_want -> 'functions', '[]'))));
end
$$;

-- Compares one declared NOT NULL with the column: "state", "declared", "found", "detail".
-- Locks: none that is kept. Errors: RL113.
create or replace function routeledger._state_of_not_null(
  p_relation regclass,
  p_name text,
  p_column text
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_column text := routeledger._column_named(p_relation, p_column);
  v_live jsonb := routeledger._live_not_null(p_relation, v_column);
  v_check jsonb;
begin
  if v_column is null then
    perform routeledger._raise('RL113', jsonb_build_object('target', routeledger._qualified(p_relation), 'column', p_column));
  end if;
  if not (v_live ->> 'validated')::boolean then
    v_check := routeledger._live_constraint(p_relation, p_name);
  end if;
  return jsonb_build_object(
    'state', case
      when (v_live ->> 'validated')::boolean then 'unchanged'
      when (v_live ->> 'not_null')::boolean or v_check ->> 'kind' = 'c' then 'not_valid'
      else 'missing'
    end,
    'declared', 'NOT NULL',
    'found', coalesce(v_live -> 'definition', v_check -> 'definition'),
    'detail', case when v_live ->> 'name' <> p_name then jsonb_build_object('name_found', v_live -> 'name') else '{}' end);
end
$$;

-- constraint_states() for a session of this search_path.
-- Locks: none that is kept. Errors: RL117, RL207.
create or replace function routeledger._constraint_states(
  p_table text,
  p_name text,
  p_path text
)
returns table (
  target text,
  name text,
  kind text,
  state text,
  declared text,
  found text,
  detail jsonb,
  origin text
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_one record;
  v_state jsonb;
  v_code text;
  v_message text;
  v_said text;
begin
  for v_one in select d.* from routeledger._declarations_meant(p_table, p_name, p_path) d loop
    begin
      v_state := case
        when v_one.relation is null then '{"state": "table_missing"}'
        when v_one.kind = 'check' then routeledger._state_of_check(v_one.relation, v_one.name, v_one.predicate, v_one.options)
        when v_one.kind = 'not_null' then routeledger._state_of_not_null(v_one.relation, v_one.name, v_one.columns[1])
      end;
      if v_state is null then
        v_state := routeledger._unique_plan(
          v_one.relation, v_one.name, v_one.columns, v_one.options ->> 'keep', coalesce(v_one.options ->> 'nulls', 'distinct'),
          v_one.options ->> 'where', coalesce(v_one.options ->> 'form', 'index'));
        v_state := jsonb_build_object('state', v_state -> 'state', 'declared', v_state -> 'definition', 'found', v_state -> 'found');
      end if;
    exception
      when others then
        get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_said = pg_exception_detail;
        v_state := jsonb_build_object('state', 'unknown', 'detail', jsonb_build_object('error', jsonb_build_object(
          'code', v_code, 'message', v_message, 'detail', case when v_code like 'RL%' then v_said::jsonb else to_jsonb(v_said) end)));
    end;
    return query select
      v_one.target, v_one.name, v_one.kind, v_state ->> 'state',
      coalesce(v_state ->> 'declared', v_one.predicate, array_to_string(v_one.columns, ', ')), v_state ->> 'found',
      coalesce(nullif(v_state -> 'detail', 'null'), '{}') || jsonb_build_object('declaration', jsonb_build_object(
        'predicate', v_one.predicate, 'columns', v_one.columns, 'options', v_one.options)),
      v_one.origin;
  end loop;
end
$$;

-- Compares what is declared with what there is, and says for each constraint: `unchanged`, `missing`, `different`, `not_valid`,
-- `not_enforced`, `function_changed` (a function it calls does something else than when the constraint was put there), `invalid_index`,
-- `table_missing`, or `unknown` (with the reason in detail: a session that may make no temporary
-- table, a predicate that no longer suits the table). declared and found are the two texts as PostgreSQL prints them.
-- detail.declaration is what was declared. Each predicate is parsed on a temporary table that is rolled
-- back: ask as often as you look, not in a loop.
-- Locks: none that is kept. Errors: RL117, RL207.
create or replace function routeledger.constraint_states(
  p_table text default null,
  p_name text default null
)
returns table (
  target text,
  name text,
  kind text,
  state text,
  declared text,
  found text,
  detail jsonb,
  origin text
)
language sql
volatile
parallel unsafe
security invoker
as $$
  select s.target, s.name, s.kind, s.state, s.declared, s.found, s.detail, s.origin
  from routeledger._constraint_states(p_table, p_name, pg_catalog.current_setting('search_path')) s
$$;

-- The declared constraints that are not as declared, or of which it cannot be said.
create or replace view routeledger.constraint_drift
with (security_barrier = true)
as
select
  s.target,
  s.name,
  s.kind,
  s.state,
  s.declared,
  s.found,
  s.detail,
  s.origin
from routeledger.constraint_states() s
where s.state <> 'unchanged';

-- Does the next step of one declaration, or says what it would be, and returns the row that ensure_check(), ensure_unique() or ensure_not_null()
-- gives, or "error". Nothing that goes wrong leaves it as an error. With p_only_validate nothing is put in the place of
-- anything: what is not there as declared is refused.
-- Locks: those of the routine it calls. Errors: none.
create or replace function routeledger._ensure_declared(
  p_relation regclass,
  p_name text,
  p_kind text,
  p_predicate text,
  p_columns text[],
  p_options jsonb,
  p_dry_run boolean,
  p_only_validate boolean
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_label text := p_options ->> 'label';
  v_timeout interval := coalesce(p_options ->> 'lock_timeout', '1 second')::interval;
  v_attempts integer := coalesce(p_options ->> 'attempts', '10')::integer;
  v_row jsonb;
  v_code text;
  v_message text;
  v_said text;
  v_hint text;
begin
  if p_relation is null then
    return jsonb_build_object('outcome', 'refused', 'validated', false, 'reason', 'table_missing', 'detail', '{}'::jsonb);
  elsif p_only_validate and not p_dry_run then
    v_row := routeledger._ensure_declared(p_relation, p_name, p_kind, p_predicate, p_columns, p_options, true, false);
    if v_row ->> 'outcome' in ('created', 'replaced') or (p_kind = 'unique' and v_row ->> 'outcome' <> 'unchanged') then
      return v_row || jsonb_build_object('outcome', 'refused', 'reason', 'not_as_declared', 'next', null, 'detail', (v_row -> 'detail') - 'dry_run');
    end if;
  end if;
  begin
    case p_kind
      when 'check' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_check(
          p_relation, p_name, p_predicate,
          p_if_violated => coalesce(p_options ->> 'if_violated', 'refuse'),
          p_no_inherit => coalesce((p_options ->> 'no_inherit')::boolean, false),
          p_also_drop => array(select a from jsonb_array_elements_text(p_options -> 'also_drop') a),
          p_label => v_label, p_lock_timeout => v_timeout, p_attempts => v_attempts, p_dry_run => p_dry_run) e;
      when 'not_null' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_not_null(
          p_relation, p_columns[1], p_name,
          p_if_violated => coalesce(p_options ->> 'if_violated', 'refuse'),
          p_label => v_label, p_lock_timeout => v_timeout, p_attempts => v_attempts, p_dry_run => p_dry_run) e;
      when 'unique' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_unique(
          p_relation, p_name, p_columns,
          p_keep => p_options ->> 'keep',
          p_nulls => coalesce(p_options ->> 'nulls', 'distinct'),
          p_where => p_options ->> 'where',
          p_form => coalesce(p_options ->> 'form', 'index'),
          p_children => coalesce(p_options ->> 'children', 'refuse'),
          p_triggers => coalesce(p_options ->> 'triggers', 'refuse'),
          p_reason => p_options ->> 'reason',
          p_label => v_label, p_lock_timeout => v_timeout, p_attempts => v_attempts, p_dry_run => p_dry_run) e;
    end case;
    -- what a COMMIT would find is found here, where it can be told
    set constraints all immediate;
  exception
    when others or query_canceled then
      get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_said = pg_exception_detail, v_hint = pg_exception_hint;
      v_row := jsonb_build_object('outcome', null, 'validated', false, 'detail', '{}'::jsonb, 'error', jsonb_build_object(
        'code', v_code, 'message', v_message, 'detail', v_said, 'hint', v_hint));
  end;
  return v_row;
end
$$;

-- plan_constraints() for a session of this search_path.
-- Locks: none that is kept. Errors: RL117, RL207.
create or replace function routeledger._plan_constraints(
  p_table text,
  p_name text,
  p_path text
)
returns table (
  target text,
  name text,
  kind text,
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
  v_one record;
  v_row jsonb;
begin
  for v_one in select d.* from routeledger._declarations_meant(p_table, p_name, p_path) d loop
    v_row := routeledger._ensure_declared(
      v_one.relation, v_one.name, v_one.kind, v_one.predicate, v_one.columns, v_one.options, true, false);
    return query select
      v_one.target, v_one.name, v_one.kind,
      case when v_row ? 'error' then 'refused' else v_row ->> 'outcome' end,
      (v_row ->> 'validated')::boolean, (v_row ->> 'violations')::bigint, v_row ->> 'definition', v_row ->> 'found',
      case when v_row ? 'error' then 'error' else v_row ->> 'reason' end,
      v_row ->> 'next',
      (v_row -> 'detail') || case when v_row ? 'error' then jsonb_build_object('error', v_row -> 'error') else '{}' end;
  end loop;
end
$$;

-- Says what apply_constraints() would do first for each declared constraint, and changes nothing: the row that ensure_check(), ensure_unique() or
-- ensure_not_null() gives in a dry run, with the rows that violate it counted. What fails is `refused` for the reason
-- `error`, with the error in detail.
-- Locks: none that is kept. Errors: RL117, RL207.
create or replace function routeledger.plan_constraints(
  p_table text default null,
  p_name text default null
)
returns table (
  target text,
  name text,
  kind text,
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
  select p.target, p.name, p.kind, p.outcome, p.validated, p.violations, p.definition, p.found, p.reason, p.next, p.detail
  from routeledger._plan_constraints(p_table, p_name, pg_catalog.current_setting('search_path')) p
$$;

-- Brings about what is declared, constraint by constraint, and commits after each step: a change, then, in a transaction of
-- its own, the look at the old rows, until there is no next step. One that fails does not stop the others. Of several who call it at the
-- same time one does the work, and the others see `unchanged`. A NOTICE tells of each step. p_only_validate validates
-- what is there as declared, and puts nothing in the place of anything. p_results returns an array of one object a constraint:
-- target, name, kind, what its last step returned, found (what its first step found), steps (the outcome of each), and error (null, or code, message, detail and hint).
-- Call it outside a transaction block.
-- Locks: for each constraint a session's advisory lock, given back at its end; those of ensure_check(), ensure_unique(), ensure_not_null().
-- Errors: RL117, RL207, 2D000 in a transaction block, 57014 when it is cancelled.
create or replace procedure routeledger.apply_constraints(
  p_table text default null,
  p_name text default null,
  p_only_validate boolean default false,
  inout p_results jsonb default null
)
language plpgsql
security invoker
as $$
declare
  c_pinned constant text := 'pg_catalog, routeledger, pg_temp';
  v_path text := pg_catalog.current_setting('search_path');
  v_todo jsonb[];
  v_one jsonb;
  v_key bigint;
  v_row jsonb;
  v_found jsonb;
  v_steps jsonb;
  v_wait double precision;
begin
  commit;  -- nothing can be lost yet: in a transaction block this is where it ends
  perform pg_catalog.set_config('search_path', c_pinned, true);
  p_results := '[]';
  v_todo := array(
    select to_jsonb(d) || jsonb_build_object('id', d.relation::oid::bigint)
    from routeledger._declarations_meant(p_table, p_name, v_path) d);

  foreach v_one in array v_todo loop
    -- whoever waits holds no snapshot meanwhile, so that an index can be built
    v_key := hashtextextended('routeledger.apply:' || (v_one ->> 'target') || ':' || (v_one ->> 'name'), 0);
    v_wait := 0.02;
    loop
      exit when pg_try_advisory_lock(v_key);
      perform pg_sleep(v_wait * (0.5 + random()));
      v_wait := least(v_wait * 1.5, 0.5);
      commit;
      perform pg_catalog.set_config('search_path', c_pinned, true);
    end loop;

    v_steps := '[]';
    loop
      v_row := routeledger._ensure_declared(
        (v_one ->> 'id')::oid::regclass, v_one ->> 'name', v_one ->> 'kind', v_one ->> 'predicate',
        case when v_one -> 'columns' <> 'null' then array(select c from jsonb_array_elements_text(v_one -> 'columns') with ordinality x (c, n) order by n) end,
        v_one -> 'options', false, coalesce(p_only_validate, false));
      v_found := case when v_steps = '[]' then v_row -> 'found' else v_found end;
      v_steps := v_steps || coalesce(v_row -> 'outcome', 'null');
      raise notice '%', concat_ws(' ', v_one ->> 'target', v_one ->> 'name' || ':',
        coalesce(v_row ->> 'outcome', 'failed'), '(' || coalesce(v_row ->> 'reason', v_row -> 'error' ->> 'message') || ')');
      commit;
      perform pg_catalog.set_config('search_path', c_pinned, true);
      exit when v_row ->> 'next' is null or jsonb_array_length(v_steps) >= 20;
    end loop;
    perform pg_advisory_unlock(v_key);

    p_results := p_results || (jsonb_build_object(
      'target', v_one -> 'target', 'name', v_one -> 'name', 'kind', v_one -> 'kind', 'error', null, 'violations', null, 'definition', null, 'reason', null, 'next', null)
      || v_row || jsonb_build_object('found', v_found, 'steps', v_steps));
    if v_row -> 'error' ->> 'code' = '57014' then
      raise exception using errcode = '57014', message = v_row -> 'error' ->> 'message',
        hint = 'What was done is committed; the same call goes on.';
    end if;
  end loop;
end
$$;
