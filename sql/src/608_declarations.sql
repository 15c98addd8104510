-- 608 · Declared constraints: what tables are meant to hold is written down, compared, and brought about.
--
-- A declaration names its table by schema and name, so that it can be there before the table is, and outlives it.
-- What it says is compared with the catalogue each time that somebody asks: nothing that was seen before is trusted.
--
-- Only who may alter a table, or an admin, declares constraints of it, and a declaration counts only while who made
-- it is one of them: whoever plans or applies it runs its predicate. To look at the states runs nothing of it. Our
-- own declarations (origin routeledger) are put back by each install.

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

-- The rules of our own tables, as 100, 200, 310 and 320 have them.
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
      'least(input_tokens, output_tokens) >= 0 and cost_usd >= 0'),
    ('models', 'models_model_slug_check',
      'model_slug <> '''' and length(model_slug) <= 300'),
    ('models', 'models_q_prior_check',
      'q_prior between 0 and 1'),
    ('models', 'models_expected_latency_ms_check',
      'expected_latency_ms between 0 and 10000000000'),
    ('model_prices', 'model_prices_not_negative_check',
      'input_usd_per_mtok >= 0 and input_usd_per_mtok <= 1000000000'
      ' and output_usd_per_mtok >= 0 and output_usd_per_mtok <= 1000000000'
      ' and cache_read_usd_per_mtok >= 0 and cache_read_usd_per_mtok <= 1000000000'
      ' and cache_creation_usd_per_mtok >= 0 and cache_creation_usd_per_mtok <= 1000000000'),
    ('model_performance_buckets', 'model_performance_buckets_counts_check',
      'least(n, success_n, reward_n, cost_n, cost_success_n, latency_n) >= 0'
      ' and greatest(success_n, reward_n, cost_n, cost_success_n, latency_n) <= n'
      ' and cardinality(latency_bins) = cardinality(latency_counts)'),
    ('pattern_quality_metrics', 'pattern_quality_metrics_scores_check',
      'quality_score between 0 and 1 and completeness between 0 and 1 and documentation between 0 and 1'
      ' and architecture_compliance between 0 and 1 and metadata_richness between 0 and 1 and complexity_fit between 0 and 1'
      ' and confidence between 0 and 1'),
    ('pattern_quality_metrics', 'pattern_quality_metrics_measurement_timestamp_check',
      'isfinite(measurement_timestamp)'),
    ('pattern_quality_metrics', 'pattern_quality_metrics_version_check',
      'version <> '''' and length(version) <= 200'),
    ('pattern_quality_metrics', 'pattern_quality_metrics_metadata_check',
      'jsonb_typeof(metadata) = ''object''')
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

-- Returns the schema and the name of the table that a text means to a session of this search_path: those of the table
-- that there is, else those that are written, and the first schema of the path where none is.
-- Locks: none. Errors: RL101, RL108, RL117.
create or replace function routeledger._table_meant(
  p_table text,
  p_path text,
  out target_schema text,
  out target_name text,
  out relation regclass
)
language plpgsql
stable
parallel unsafe
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
  if exists (select from unnest(v_parts) p where octet_length(p) > 63) then
    perform routeledger._raise_fault('RL108 table 63 bytes');
  end if;
  target_name := v_parts[cardinality(v_parts)];
  if cardinality(v_parts) = 2 then
    target_schema := v_parts[1];
  else
    perform set_config('search_path', p_path, true);
    select n.nspname, c.oid into target_schema, relation
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
    where c.relname operator(pg_catalog.=) target_name and pg_catalog.pg_table_is_visible(c.oid);
    target_schema := coalesce(target_schema, pg_catalog.current_schema(), 'public');
    perform set_config('search_path', 'pg_catalog, routeledger, pg_temp', true);
  end if;
  relation := (
    select c.oid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = target_schema and c.relname = target_name);
end
$$;

-- Returns what is declared, all of it or for one table or one name, each with the table as it is now (null: there is
-- none), and whether it counts: whether the role that declared it may alter the table, or is an admin.
-- Locks: none. Errors: none.
create or replace function routeledger._declarations(
  p_schema text,
  p_table text,
  p_name text
)
returns table (
  target text,
  relation oid,
  name text,
  kind text,
  predicate text,
  columns text[],
  options jsonb,
  origin text,
  declared_by name,
  counts boolean
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
  select
    format('%I.%I', d.target_schema, d.target_name), c.oid, d.name, d.kind, d.predicate, d.columns, d.options, d.origin, d.declared_by,
    case
      when d.origin = 'routeledger' or c.oid is null then true
      when r.oid is null then false
      else pg_has_role(r.oid, c.relowner, 'usage') or routeledger._is_admin(r.rolname)
    end
  from routeledger.declared_constraints d
  left join pg_namespace n on n.nspname = d.target_schema
  left join pg_class c on c.relnamespace = n.oid and c.relname = d.target_name and c.relkind in ('r', 'p', 'v', 'm', 'f')
  left join pg_roles r on r.rolname = d.declared_by
  where (p_table is null or (d.target_schema, d.target_name) = (p_schema, p_table))
    and (p_name is null or d.name = p_name)
  order by d.target_schema, d.target_name, d.name;
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
  c_longest constant jsonb := '{"label": 300, "reason": 2000}'::jsonb;
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
    elsif length(v_value #>> '{}') > (c_longest ->> v_key)::integer then
      return 'RL108 options.' || v_key || ' ' || (c_longest ->> v_key) || ' characters';
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

-- Returns the fault of a declaration (p_kind null: of taking one away), null when there is none.
-- Locks: none. Errors: none.
create or replace function routeledger._declaration_fault(
  p_name text,
  p_kind text,
  p_predicate text,
  p_columns text[],
  p_options jsonb
)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select coalesce(
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
    end)
$$;

-- Writes a declaration, or takes it away (p_kind null), for an admin, or who has the rights of the owner of the
-- table; of a table that there is not yet, who may create it. Returns whether that changed what is declared.
-- Locks: the row. Errors: RL101, RL102, RL103, RL107, RL108, RL117, 42501.
create or replace function routeledger._store_declaration(
  p_schema text,
  p_table text,
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
  v_role name := routeledger._caller_role();
  v_fault text := routeledger._declaration_fault(p_name, p_kind, p_predicate, p_columns, p_options);
  v_was routeledger.declared_constraints;
begin
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  elsif not routeledger._is_admin(v_role) and not coalesce((
    select case when c.oid is null then has_schema_privilege(v_role, n.oid, 'create') else pg_has_role(v_role, c.relowner, 'usage') end
    from pg_namespace n
    left join pg_class c on c.relnamespace = n.oid and c.relname = p_table
    where n.nspname = p_schema), false)
  then
    raise exception using
      errcode = '42501',
      message = 'constraints of a table are declared by its owner or by an admin',
      detail = jsonb_build_object('table', format('%I.%I', p_schema, p_table), 'role', v_role)::text,
      hint = 'Take the role of the owner, or one that is a member of routeledger_admin.';
  end if;
  select d.* into v_was
  from routeledger.declared_constraints d
  where (d.target_schema, d.target_name, d.name) = (p_schema, p_table, p_name);
  if v_was.origin = 'routeledger' then
    perform routeledger._raise('RL117', jsonb_build_object(
      'table', format('%I.%I', p_schema, p_table), 'name', p_name, 'reason', 'this constraint is declared by routeledger itself'));
  end if;
  if p_kind is null then
    delete from routeledger.declared_constraints d where (d.target_schema, d.target_name, d.name) = (p_schema, p_table, p_name);
    return found;
  end if;
  insert into routeledger.declared_constraints as d (
    target_schema, target_name, name, kind, predicate, columns, options, origin, declared_by, declared_at)
  values (p_schema, p_table, p_name, p_kind, p_predicate, p_columns, p_options, 'user', v_role, routeledger.clock())
  on conflict (target_schema, target_name, name) do update set
    kind = excluded.kind,
    predicate = excluded.predicate,
    columns = excluded.columns,
    options = excluded.options,
    declared_by = excluded.declared_by,
    declared_at = excluded.declared_at
  where (d.kind, d.predicate, d.columns, d.options, d.declared_by)
    is distinct from (excluded.kind, excluded.predicate, excluded.columns, excluded.options, excluded.declared_by);
  return (v_was.kind, v_was.predicate, v_was.columns, v_was.options) is distinct from (p_kind, p_predicate, p_columns, p_options);
end
$$;

-- Does what declare_constraint() and undeclare_constraint() (p_kind null) do for a session of this search_path.
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
  v_fault text;
begin
  select t.target_schema, t.target_name, t.relation into strict v_target from routeledger._table_meant(p_table, p_path) t;
  v_fault := routeledger._declaration_fault(p_name, p_kind, p_predicate, p_columns, p_options);
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
  return routeledger._store_declaration(v_target.target_schema, v_target.target_name, p_name, p_kind, p_predicate, p_columns, p_options);
end
$$;

-- Declares that a table is to hold a constraint of this name: nothing is done to the table. p_kind is `check` (with
-- p_predicate), `unique` (with p_columns: columns or expressions) or `not_null` (with one column). p_options are the
-- other parameters of ensure_check(), ensure_unique() or ensure_not_null(), without p_. The table need not exist yet;
-- where it does the predicate is read at once. Returns true when the declaration is new or another one than before.
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

-- Takes a declaration away; the constraint stays as it is. Returns whether there was one. Those of routeledger itself
-- cannot be taken away.
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
-- Locks: none. Errors: RL101, RL108, RL117, RL207.
create or replace function routeledger._declarations_meant(
  p_table text,
  p_name text,
  p_path text
)
returns table (
  target text,
  relation oid,
  name text,
  kind text,
  predicate text,
  columns text[],
  options jsonb,
  origin text,
  declared_by name,
  counts boolean
)
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_schema text;
  v_table text;
begin
  if p_table is not null then
    select t.target_schema, t.target_name into strict v_schema, v_table from routeledger._table_meant(p_table, p_path) t;
  end if;
  return query select d.* from routeledger._declarations(v_schema, v_table, p_name) d;
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
parallel unsafe
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

-- Returns what constraint_states() returns to a session of this search_path.
-- Locks: none that is kept. Errors: RL101, RL108, RL117, RL207.
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
        when not v_one.counts then jsonb_build_object('state', 'unknown', 'detail', jsonb_build_object(
          'reason', 'declared_by_other', 'declared_by', v_one.declared_by))
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

-- Compares what is declared with what there is, and says for each constraint: `unchanged`, `missing`, `different`,
-- `not_valid`, `not_enforced`, `function_changed` (a function it calls does something else than when the constraint
-- was put there), `invalid_index`, `table_missing`, or `unknown` (with the reason in detail: a session that may make
-- no temporary table, a predicate that no longer suits the table, `declared_by_other` where the role that declared it
-- may not alter the table: its owner declares it again). declared and found are the two texts as PostgreSQL prints
-- them. detail.declaration is what was declared. Each predicate is parsed on a temporary table that is rolled back:
-- ask as often as you look, not in a loop.
-- Locks: none that is kept. Errors: RL101, RL108, RL117, RL207.
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

-- Does the next step of one declaration (a row of _declarations_meant()), or says what it would be, and returns the
-- row that ensure_check(), ensure_unique() or ensure_not_null() gives, or "error". Nothing that goes wrong leaves it
-- as an error. With p_only_validate nothing is put in the place of anything: what is not there as declared is
-- refused.
-- Locks: those of the routine it calls. Errors: none.
create or replace function routeledger._ensure_declared(
  p_one jsonb,
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
  v_table regclass := (p_one ->> 'relation')::oid;
  v_name text := p_one ->> 'name';
  v_kind text := p_one ->> 'kind';
  v_columns text[] := array(select c from jsonb_array_elements_text(nullif(p_one -> 'columns', 'null')) with ordinality x (c, n) order by n);
  v_options jsonb := p_one -> 'options';
  v_label text := v_options ->> 'label';
  v_timeout interval := coalesce(v_options ->> 'lock_timeout', '1 second')::interval;
  v_attempts integer := coalesce(v_options ->> 'attempts', '10')::integer;
  v_row jsonb;
  v_code text;
  v_message text;
  v_said text;
  v_hint text;
begin
  if v_table is null or not (p_one ->> 'counts')::boolean then
    return jsonb_build_object('outcome', 'refused', 'validated', false) || case
      when v_table is null then '{"reason": "table_missing", "detail": {}}'
      else jsonb_build_object('reason', 'declared_by_other', 'detail', jsonb_build_object('declared_by', p_one -> 'declared_by')) end;
  elsif p_only_validate and not p_dry_run then
    v_row := routeledger._ensure_declared(p_one, true, false);
    if v_row ->> 'outcome' in ('created', 'replaced') or (v_kind = 'unique' and v_row ->> 'outcome' <> 'unchanged') then
      return v_row || jsonb_build_object('outcome', 'refused', 'reason', 'not_as_declared', 'next', null, 'detail', (v_row -> 'detail') - 'dry_run');
    end if;
  end if;
  begin
    -- what another role has declared is not run where that would give rights to the owners of what it calls
    if p_one ->> 'declared_by' <> current_user then
      if v_kind = 'check' then
        v_row := routeledger._canonical_check(v_table, p_one ->> 'predicate');
        if v_row -> 'others' <> '[]' then
          return jsonb_build_object(
            'outcome', 'refused', 'validated', false, 'reason', 'code_of_others',
            'detail', jsonb_build_object('others', v_row -> 'others', 'declared_by', p_one -> 'declared_by'));
        end if;
      elsif v_kind = 'unique' then
        perform routeledger._unique_plan(
          v_table, v_name, v_columns, v_options ->> 'keep', coalesce(v_options ->> 'nulls', 'distinct'),
          v_options ->> 'where', coalesce(v_options ->> 'form', 'index'));
      end if;
    end if;
    case v_kind
      when 'check' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_check(
          v_table, v_name, p_one ->> 'predicate',
          p_if_violated => coalesce(v_options ->> 'if_violated', 'refuse'),
          p_no_inherit => coalesce((v_options ->> 'no_inherit')::boolean, false),
          p_also_drop => array(select a from jsonb_array_elements_text(v_options -> 'also_drop') a),
          p_label => v_label, p_lock_timeout => v_timeout, p_attempts => v_attempts, p_dry_run => p_dry_run) e;
      when 'not_null' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_not_null(
          v_table, v_columns[1], v_name,
          p_if_violated => coalesce(v_options ->> 'if_violated', 'refuse'),
          p_label => v_label, p_lock_timeout => v_timeout, p_attempts => v_attempts, p_dry_run => p_dry_run) e;
      when 'unique' then
        select to_jsonb(e) into strict v_row
        from routeledger.ensure_unique(
          v_table, v_name, v_columns,
          p_keep => v_options ->> 'keep',
          p_nulls => coalesce(v_options ->> 'nulls', 'distinct'),
          p_where => v_options ->> 'where',
          p_form => coalesce(v_options ->> 'form', 'index'),
          p_children => coalesce(v_options ->> 'children', 'refuse'),
          p_triggers => coalesce(v_options ->> 'triggers', 'refuse'),
          p_reason => v_options ->> 'reason',
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

-- Returns what plan_constraints() returns to a session of this search_path.
-- Locks: none that is kept. Errors: RL101, RL108, RL117, RL207.
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
    v_row := routeledger._ensure_declared(to_jsonb(v_one), true, false);
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

-- Says what apply_constraints() would do first for each declared constraint, and changes nothing: the row that
-- ensure_check(), ensure_unique() or ensure_not_null() gives in a dry run, with the rows that violate it counted.
-- What fails is `refused` for the reason `error`, with the error in detail.
-- Locks: none that is kept. Errors: RL101, RL108, RL117, RL207.
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

-- Returns what apply_constraints() has to do, as the state that _apply_step() takes: "todo", "results", "at",
-- "only_validate".
-- Locks: none. Errors: RL101, RL108, RL117, RL207.
create or replace function routeledger._begin_apply(
  p_table text,
  p_name text,
  p_only_validate boolean,
  p_path text
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if p_only_validate is null then
    perform routeledger._raise_fault('RL101 only_validate');
  end if;
  return jsonb_build_object('at', 0, 'only_validate', p_only_validate, 'results', '[]'::jsonb, 'todo', coalesce((
    select jsonb_agg(to_jsonb(d) order by d.target, d.name)
    from routeledger._declarations_meant(p_table, p_name, p_path) d), '[]'));
end
$$;

-- Does one thing for apply_constraints(), which commits after each: takes the session's lock of a constraint, or
-- waits a moment for it; does a step; or gives the lock back, which is only done when the last step has been
-- committed. Returns the state for the next call; and, when all is done, the results.
-- Locks: a session's advisory lock of (table, constraint), given back in a later call; those of the step. Errors:
-- 57014.
create or replace function routeledger._apply_step(
  p_state jsonb,
  out state jsonb,
  out results jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_one jsonb := p_state -> 'todo' -> (p_state ->> 'at')::integer;
  v_key bigint := hashtextextended('routeledger.apply:' || (v_one ->> 'target') || ':' || (v_one ->> 'name'), 0);
  v_steps jsonb := coalesce(p_state -> 'steps', '[]');
  v_wait double precision := coalesce((p_state ->> 'wait')::double precision, 0.02);
  v_row jsonb;
  v_last boolean;
begin
  state := p_state;
  if v_one is null then
    results := p_state -> 'results';
    return;
  end if;

  if (p_state ->> 'committed')::boolean then
    perform pg_advisory_unlock(v_key);
    if p_state #>> '{results,-1,error,code}' = '57014' then
      raise exception using
        errcode = '57014',
        message = p_state #>> '{results,-1,error,message}',
        hint = 'What was done is committed; the same call goes on.';
    end if;
    state := (p_state - array['committed', 'locked', 'steps', 'found', 'wait']) || jsonb_build_object('at', (p_state ->> 'at')::integer + 1);
    return;
  elsif p_state ->> 'locked' is null then
    -- not waited for within the server, where a waiter keeps an index from being built
    if pg_try_advisory_lock(v_key) then
      state := p_state || '{"locked": true}';
    else
      perform pg_sleep(v_wait * (0.5 + random()));
      state := p_state || jsonb_build_object('wait', least(v_wait * 1.5, 0.5));
    end if;
    return;
  end if;

  v_row := routeledger._ensure_declared(v_one, false, (p_state ->> 'only_validate')::boolean);
  raise notice '%', concat_ws(' ', v_one ->> 'target', (v_one ->> 'name') || ':',
    coalesce(v_row ->> 'outcome', 'failed'), '(' || coalesce(v_row ->> 'reason', v_row -> 'error' ->> 'message') || ')');
  if v_steps = '[]' then
    state := p_state || jsonb_build_object('found', v_row -> 'found');
  end if;
  v_steps := v_steps || coalesce(v_row -> 'outcome', 'null');
  v_last := v_row ->> 'next' is null or jsonb_array_length(v_steps) >= 20;
  state := state || jsonb_build_object('steps', v_steps, 'committed', v_last);
  if v_last then
    state := jsonb_set(state, '{results}', (p_state -> 'results') || jsonb_build_array(
      jsonb_build_object('violations', null, 'definition', null, 'reason', null, 'next', null, 'error', null)
      || v_row
      || jsonb_build_object(
        'target', v_one -> 'target', 'name', v_one -> 'name', 'kind', v_one -> 'kind', 'found', state -> 'found', 'steps', v_steps)));
  end if;
end
$$;

-- Brings about what is declared, constraint by constraint, and commits after each step: a change, then, in a
-- transaction of its own, the look at the old rows, until there is no next step. One that fails does not stop the
-- others. Of several who call it at the same time one does the work, and the others see `unchanged`. A NOTICE tells
-- of each step. p_only_validate validates what is there as declared, and puts nothing in the place of anything.
-- p_results returns an array of one object a constraint: target, name, kind, what its last step returned, found (what
-- its first step found), steps (the outcome of each), and error (null, or code, message, detail and hint). Call it
-- outside a transaction block. The functions in a predicate run with the rights of
-- whoever calls; what another role has declared is refused (`code_of_others`) where it calls what belongs to a role
-- that has not these rights already: the one that declared it applies it.
-- Locks: for each constraint a session's advisory lock, given back at its end; those of ensure_check(),
-- ensure_unique(), ensure_not_null().
-- Errors: RL101, RL108, RL117, RL207, 2D000 in a transaction block, 57014 when it is cancelled.
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
  v_path pg_catalog.text := pg_catalog.current_setting('search_path');
  v_state pg_catalog.jsonb;
begin
  commit;  -- nothing can be lost yet: in a transaction block this is where it ends
  v_state := routeledger._begin_apply(p_table, p_name, p_only_validate, v_path);
  loop
    select s.state, s.results into strict v_state, p_results from routeledger._apply_step(v_state) s;
    exit when p_results is not null;
    commit;
  end loop;
end
$$;
