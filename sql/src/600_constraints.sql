-- 600 · Constraints: a table comes to hold the constraint that is declared, whatever it holds now.
--
-- PostgreSQL itself compares the predicates. The declared one is parsed on an empty temporary table of the same
-- name and columns and printed again, until what is printed no longer changes (the text of `varchar in (…)` settles
-- only in the second round, and that one is what a restored dump has). The live one is printed under the same
-- settings. Equal text is the same predicate; different text costs one swap, after which it is equal.
--
-- Every call is one transaction's step and converges: where `next` is not null, the same call in a new
-- transaction goes on. A change is one ALTER TABLE that drops the old constraint and adds the new one NOT VALID,
-- so that there is no moment without; the scan happens in a later transaction, under a lock that lets readers
-- and writers pass. When nothing has to change no lock is taken on the table.
--
-- These routines run with the privileges of their caller (SECURITY INVOKER); only the history is written by its
-- owner. What the database has in the way is the outcome `refused` with a word for the reason; what the caller
-- wrote wrong is an error.
--
-- Lock order: the advisory lock of (table, constraint), then the table, then what inherits from it.

create table if not exists routeledger.constraint_changes (
  id bigint generated always as identity,
  target text not null,
  name text not null,
  kind text not null,
  action text not null,
  before jsonb,
  after jsonb,
  label text,
  repair_id bigint,
  functions jsonb not null default '[]',
  role_name name not null,
  login name not null,
  changed_at timestamptz not null,
  undone_at timestamptz,
  undone_by bigint,
  constraint constraint_changes_pkey primary key (id),
  constraint constraint_changes_kind_check check (kind in ('check', 'unique', 'not_null')),
  constraint constraint_changes_label_check check (length(label) <= 300)
);

create index if not exists constraint_changes_target_idx on routeledger.constraint_changes (target, name, id);

-- Returns a table and all that inherits from it, the table first, parents before their children.
-- Locks: none. Errors: none.
create or replace function routeledger._tree(
  p_table regclass
)
returns table (
  relation regclass,
  level integer
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
  with recursive t (id, depth) as (
    select p_table::oid, 0
    union all
    select i.inhrelid, t.depth + 1 from t join pg_inherits i on i.inhparent = t.id
  )
  select t.id::regclass, max(t.depth) from t group by t.id order by max(t.depth), t.id;
end
$$;

-- Says whether the caller may alter a table: whether they have the rights of its owner, and of the owners of all
-- that inherits from it.
-- Locks: none. Errors: none.
create or replace function routeledger._may_alter(
  p_table regclass
)
returns boolean
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce((
    select bool_and(pg_has_role(c.relowner, 'usage'))
    from routeledger._tree(p_table) t
    join pg_class c on c.oid = t.relation), false);
end
$$;

-- Makes those wait who change the same constraint of the same table, until the transaction ends.
-- Locks: the advisory lock of (table, constraint), without a time limit. Errors: none.
create or replace function routeledger._serialize(
  p_table regclass,
  p_name text
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set lock_timeout = 0
as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('routeledger.constraint:' || routeledger._qualified(p_table) || ':' || p_name, 0));
end
$$;

-- Returns the search_path under which what is said of a table is read: pg_catalog, the schema of the table, the
-- schemas of its columns' types (whose operators would not be found otherwise), and temporary objects last.
-- Locks: none. Errors: none.
create or replace function routeledger._path_of(
  p_table regclass
)
returns text
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return concat_ws(', ', 'pg_catalog', (
    select string_agg(quote_ident(s.nspname), ', ' order by s.n)
    from (
      select n.nspname, min(x.n) as n
      from (
        select c.relnamespace, 0 from pg_class c where c.oid = p_table
        union all
        select t.typnamespace, a.attnum
        from pg_attribute a
        join pg_type e on e.oid = a.atttypid
        join pg_type t on t.oid in (e.oid, e.typelem, routeledger._base_type(e.oid))
        where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
      ) x (id, n)
      join pg_namespace n on n.oid = x.id
      where n.nspname <> 'pg_catalog' and n.oid <> pg_my_temp_schema()
      group by n.nspname
    ) s), 'pg_temp');
end
$$;

-- Returns the fault of a lock_timeout or a number of attempts that cannot be used, null when both can.
-- Locks: none. Errors: none.
create or replace function routeledger._lock_fault(
  p_lock_timeout interval,
  p_attempts integer
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when p_lock_timeout is null then 'RL101 lock_timeout'
    when p_attempts is null then 'RL101 attempts'
    when p_lock_timeout not between interval '1 millisecond' and interval '1 hour' then 'RL103 lock_timeout 1 millisecond to 1 hour'
    when p_attempts not between 1 and 1000 then 'RL103 attempts 1 to 1000'
  end
$$;

-- Runs the statements, all or none, and never waits longer than p_lock_timeout for a lock: what it had is given
-- back, and after a pause that grows, and that differs from session to session, it tries again, p_attempts times
-- in all. Returns how many tries it took. The statements name everything in full; the functions they call are
-- found by the path of the table. A lock that is not had is raised as 55P03, with those who hold one in DETAIL.
-- Locks: those of the statements, in their order. Errors: 55P03, and what the statements raise.
create or replace function routeledger._run_locked(
  p_table regclass,
  p_statements text[],
  p_lock_timeout interval,
  p_attempts integer
)
returns integer
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set lock_timeout = 0
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set quote_all_identifiers = off
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set lc_monetary = 'C'
set xmloption = 'content'
as $$
declare
  v_path text := routeledger._path_of(p_table);
  v_statement text;
  v_began timestamptz := clock_timestamp();
  v_state text;
  v_message text;
begin
  for v_try in 1 .. p_attempts loop
    begin
      perform set_config('lock_timeout', ceil(extract(epoch from p_lock_timeout) * 1000)::bigint::text, true);
      perform set_config('search_path', v_path, true);
      foreach v_statement in array p_statements loop
        execute v_statement;
      end loop;
      return v_try;
    exception
      when lock_not_available or deadlock_detected then
        get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
    end;
    if v_try = p_attempts then
      perform routeledger._raise_locked(p_table, p_lock_timeout, p_attempts, v_began, v_state || ' ' || v_message);
    end if;
    perform pg_sleep(least(0.05 * 2 ^ least(v_try, 6), 2.0) * (0.5 + random()));
  end loop;
end
$$;

-- Raises that a lock on a table could not be had in time, with those who hold one in DETAIL.
-- Locks: none. Errors: 55P03.
create or replace function routeledger._raise_locked(
  p_table regclass,
  p_lock_timeout interval,
  p_attempts integer,
  p_began timestamptz,
  p_last text
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  raise exception using
    errcode = '55P03',
    message = 'the lock on the table could not be had in time',
    detail = jsonb_build_object(
      'table', routeledger._qualified(p_table),
      'attempts', p_attempts,
      'lock_timeout', p_lock_timeout::text,
      'seconds', round(extract(epoch from clock_timestamp() - p_began), 1),
      'last', p_last,
      'blockers', routeledger._holders(p_table))::text,
    hint = 'Wait for the transactions that DETAIL lists, or end them, then repeat the call; or pass a longer p_lock_timeout or more p_attempts.';
end
$$;

-- Returns what p_attempts waits of p_lock_timeout come to, as a lock_timeout.
-- Locks: none. Errors: none.
create or replace function routeledger._total_wait(
  p_lock_timeout interval,
  p_attempts integer
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select least(ceil(extract(epoch from p_lock_timeout) * 1000 * p_attempts), 2147483647)::bigint::text
$$;

-- Returns who else holds a lock on a table, or on what inherits from it: at most 20, the oldest transaction first.
-- Locks: none. Errors: none.
create or replace function routeledger._holders(
  p_table regclass
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce((
    select jsonb_agg(to_jsonb(b) order by b.seconds desc nulls last, b.pid)
    from (
      select
        l.pid,
        a.application_name,
        a.state,
        round(extract(epoch from clock_timestamp() - a.xact_start), 1) as seconds,
        array_agg(distinct l.mode order by l.mode) as modes
      from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
      where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.relation in (select t.relation from routeledger._tree(p_table) t)
      group by l.pid, a.application_name, a.state, a.xact_start
      order by seconds desc nulls last, l.pid
      limit 20
    ) b), '[]');
end
$$;

-- Writes a change of a constraint into the history, as it was before and as it is now, and returns its number. Only
-- for who may alter the table, or an admin, and with a repair of this table only: what is written here is what an
-- undo puts back.
-- Locks: none. Errors: RL206, 42501.
create or replace function routeledger._record_change(
  p_target text,
  p_name text,
  p_kind text,
  p_action text,
  p_before jsonb,
  p_after jsonb,
  p_label text,
  p_repair_id bigint,
  p_functions jsonb
)
returns bigint
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_role name := routeledger._caller_role();
  v_table regclass := to_regclass(p_target);
  v_id bigint;
begin
  if routeledger._qualified(v_table) is distinct from p_target
    or not (routeledger._is_admin(v_role) or exists (select from pg_class c where c.oid = v_table and pg_has_role(v_role, c.relowner, 'usage')))
  then
    raise exception using
      errcode = '42501',
      message = 'changes of constraints are recorded for the owner of their table only',
      detail = jsonb_build_object('table', p_target, 'role', v_role)::text,
      hint = 'Take the role of the owner.';
  elsif p_repair_id is not null and not exists (select from routeledger.repairs r where r.id = p_repair_id and r.target = p_target) then
    perform routeledger._raise('RL206', jsonb_build_object('repair_id', p_repair_id, 'table', p_target));
  end if;
  insert into routeledger.constraint_changes (
    target, name, kind, action, before, after, label, repair_id, functions, role_name, login, changed_at)
  values (
    p_target, p_name, p_kind, p_action, p_before, p_after, p_label, p_repair_id, coalesce(p_functions, '[]'),
    v_role, session_user, routeledger.clock())
  returning id into strict v_id;
  return v_id;
end
$$;

-- Every change of a constraint, the newest first: what was found, what was put in its place, by whom, and whether
-- it was undone.
create or replace view routeledger.constraint_history
with (security_barrier = true)
as
select
  c.id,
  c.target,
  c.name,
  c.kind,
  c.action,
  c.before,
  c.after,
  c.label,
  c.repair_id,
  c.functions,
  c.role_name,
  c.login,
  c.changed_at,
  c.undone_at,
  c.undone_by
from routeledger.constraint_changes c
order by c.id desc;

-- Returns what keeps a text from being one expression between two parentheses, null when nothing does: it is empty, a
-- string, name or comment in it has no end, or it closes a parenthesis that it has not opened. Read by the
-- server's own rules for strings, names and comments (standard_conforming_strings on); strings between dollars
-- and comments within comments are not taken.
-- Locks: none. Errors: none.
create or replace function routeledger._expression_fault(
  p_text text
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  -- the longest of these at each place is the token, as in the server's own scanner
  c_tokens constant text := concat_ws('|',
    '[ \t\n\r\f\v]+', '--[^\n\r]*', '/\*(?:[^*]|\*+[^*/])*\*+/',
    '(?:[A-Za-z_]|[^\x01-\x7f])(?:[A-Za-z0-9_$]|[^\x01-\x7f])*', '[0-9](?:[A-Za-z0-9_$.]|[^\x01-\x7f])*',
    '[eE]''(?:[^''\\]|''''|\\.)*''(?:(?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])+''(?:[^''\\]|''''|\\.)*'')*',
    '''(?:[^'']|'''')*''', '"(?:[^"]|"")*"', '/\*', '.');
  v_token text;
  v_depth integer := 0;
  v_empty boolean := true;
begin
  for v_token in select m.piece[1] from regexp_matches(p_text, '(' || c_tokens || ')', 'g') with ordinality m (piece, n) order by m.n loop
    continue when v_token ~ '^([ \t\n\r\f\v]|--)';
    if v_token ~ '^/\*' then
      if v_token = '/*' or strpos(substr(v_token, 3), '/*') > 0 then
        return 'a comment has no end, or holds another';
      end if;
      continue;
    end if;
    v_empty := false;
    case v_token
      when '(' then
        v_depth := v_depth + 1;
      when ')' then
        v_depth := v_depth - 1;
        if v_depth < 0 then
          return 'a parenthesis is closed that was not opened';
        end if;
      when '''', '"' then
        return 'a string or a name has no end';
      when ';' then
        return 'it holds more than one statement';
      when '$' then
        return 'a dollar begins neither a name nor a string here: write strings in single quotes';
      else
        null;
    end case;
  end loop;
  return case when v_empty then 'it is empty' when v_depth > 0 then 'a parenthesis is not closed' end;
end
$$;

-- Says whether a text can stand between two parentheses as one expression: _expression_fault() says why not.
-- Locks: none. Errors: none.
create or replace function routeledger._is_one_expression(
  p_text text
)
returns boolean
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select routeledger._expression_fault(p_text) is null
$$;

-- Makes an empty temporary table with the name, the columns, the types and the collations of a table, each column with
-- its number, and returns it: an expression of the table can be printed as one of the probe. Meant for a
-- subtransaction that is rolled back: what the session has of that name among its own temporary objects is
-- renamed. Neither a lock nor a privilege on the table is needed.
-- Locks: none on the table. Errors: 25006, 42501 where no temporary table can be made.
create or replace function routeledger._make_probe(
  p_table regclass
)
returns regclass
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set default_table_access_method = 'heap'
as $$
declare
  v_name name;
  v_columns text;
  v_dropped text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  select
    c.relname,
    coalesce(string_agg(case
      when a.attisdropped then format('%I "char"', a.attname)
      else format(
        '%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
        case when l.oid is not null then format(' collate %I.%I', n.nspname, l.collname) end) end, ', ' order by a.attnum), ''),
    string_agg(format('drop column %I', a.attname), ', ') filter (where a.attisdropped)
  into strict v_name, v_columns, v_dropped
  from pg_class c
  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
  left join pg_collation l on l.oid = a.attcollation
  left join pg_namespace n on n.oid = l.collnamespace
  where c.oid = p_table
  group by c.relname;
  if exists (select from pg_class c where c.relnamespace = pg_my_temp_schema() and c.relname = v_name) then
    execute format('alter table pg_temp.%I rename to %I', v_name, 'routeledger_' || gen_random_uuid());
  end if;
  execute format('create temporary table pg_temp.%I (%s)', v_name, v_columns);
  if v_dropped is not null then
    execute format('alter table pg_temp.%I %s', v_name, v_dropped);
  end if;
  return format('pg_temp.%I', v_name)::regclass;
end
$$;

-- Returns the functions that a stored expression calls: each with its volatility, and those that are not the server's
-- own with a digest of what they do.
-- Locks: none. Errors: none.
create or replace function routeledger._functions_in(
  p_tree text
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
set standard_conforming_strings = on
as $$
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return coalesce((
    select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'function', p.oid::regprocedure::text,
      'volatility', case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
      'digest', case when p.oid >= 16384 then
        md5(concat_ws(E'\x1f', l.lanname, p.prosrc, p.probin, pg_get_function_sqlbody(p.oid), p.proconfig::text)) end))
      order by p.oid::regprocedure::text)
    from pg_proc p
    join pg_language l on l.oid = p.prolang
    where p.oid in (select f.id[1]::oid from regexp_matches(p_tree, ':(?:funcid|opfuncid) (\d+)', 'g') f (id))
      and (p.oid >= 16384 or p.provolatile <> 'i')), '[]');
end
$$;

-- Returns the functions that a stored expression calls, and the domains that it casts to, whose owners have not the
-- rights of the caller already: to run it would give them these rights.
-- Locks: none. Errors: none.
create or replace function routeledger._code_of_others(
  p_tree text
)
returns text[]
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
set standard_conforming_strings = on
as $$
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return array(
    select p.oid::regprocedure::text
    from regexp_matches(p_tree, ':(?:funcid|opfuncid) (\d+)', 'g') f (id)
    join pg_proc p on p.oid = f.id[1]::oid
    where p.oid >= 16384 and not pg_has_role(p.proowner, current_user, 'member')
    union
    select t.oid::regtype::text
    from regexp_matches(p_tree, ':resulttype (\d+)', 'g') f (id)
    join pg_type r on r.oid = f.id[1]::oid
    join pg_type t on t.oid in (r.oid, r.typelem)
    where t.oid >= 16384 and t.typtype = 'd' and not pg_has_role(t.typowner, current_user, 'member')
    order by 1);
end
$$;

-- Returns the canonical text of a predicate over a table, with all that is known of it: "texts" (what PostgreSQL
-- prints in each round until it is the same again; the last is the one that is installed), "columns", "functions",
-- "others" (what _code_of_others() finds in it) and "notes"; and "live", the constraints of p_names as they are, by
-- name, read without a lock on the table. Where the session can make no temporary table: "refused", with the reason,
-- and "message". Nothing of the predicate is executed, not even a function over constants (the CHECKs of the probe are
-- NOT VALID): it may be somebody else's.
-- Locks: none on the table. Errors: RL116.
create or replace function routeledger._canonical_check(
  p_table regclass,
  p_predicate text,
  p_names text[] default '{}'
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
set client_min_messages = warning
as $$
declare
  c_rounds constant integer := 5;
  v_fault text := routeledger._expression_fault(p_predicate);
  v_path text := routeledger._path_of(p_table);
  v_probe regclass;
  v_relname name;
  v_stage text := 'table';
  v_text text := p_predicate;
  v_texts text[] := array[]::text[];
  v_tree text;
  v_key smallint[];
  v_other text;
  v_columns text[];
  v_functions jsonb;
  v_live jsonb;
  v_refused text;
  v_state text;
  v_message text;
begin
  if v_fault is not null then
    perform routeledger._raise('RL116', jsonb_build_object('predicate', p_predicate, 'reason', v_fault));
  end if;
  begin
    v_probe := routeledger._make_probe(p_table);
    v_relname := (select c.relname from pg_class c where c.oid = v_probe);
    v_stage := 'predicate';
    for v_round in 0 .. c_rounds loop
      perform set_config('search_path', v_path, true);
      execute format(E'alter table pg_temp.%I add constraint %I check (%s\n) not valid', v_relname, 'c' || v_round, v_text);
      perform set_config('search_path', 'pg_catalog, pg_temp', true);
      select pg_get_expr(c.conbin, c.conrelid), c.conbin::text, c.conkey into strict v_text, v_tree, v_key
      from pg_constraint c
      where c.conrelid = v_probe and c.conname = 'c' || v_round;
      exit when v_text = v_texts[v_round];
      if v_round = c_rounds then
        v_fault := 'its text never settles';
      end if;
      v_texts := v_texts || v_text;
    end loop;
    v_columns := array(select a.attname from pg_attribute a where a.attrelid = v_probe and a.attnum = any (v_key) order by a.attnum);
    v_functions := routeledger._functions_in(v_tree);
    v_live := (
      select jsonb_object_agg(n.name, l.live)
      from (select distinct u.name from unnest(p_names) u (name)) n
      cross join lateral routeledger._live_constraint(p_table, n.name, v_probe) l (live)
      where l.live is not null);

    -- the same text in a session of other settings has to be the same expression
    v_stage := 'session';
    perform set_config('search_path', v_path, true), set_config('timezone', '<x37>-05:37', true),
      set_config('datestyle', 'SQL, DMY', true), set_config('intervalstyle', 'sql_standard', true);
    execute format(E'alter table pg_temp.%I add constraint other check (%s\n) not valid', v_relname, p_predicate);
    perform set_config('search_path', 'pg_catalog, pg_temp', true), set_config('timezone', 'UTC', true),
      set_config('datestyle', 'ISO, YMD', true), set_config('intervalstyle', 'postgres', true);
    select pg_get_expr(c.conbin, c.conrelid) into strict v_other from pg_constraint c where c.conrelid = v_probe and c.conname = 'other';
    if v_other <> v_texts[1] then
      v_fault := 'a literal of it means something else in a session with another TimeZone, DateStyle or IntervalStyle';
    end if;
    raise exception using errcode = 'Z0000', message = 'the probe is rolled back';
  exception
    when sqlstate 'Z0000' then
      null;
    when others then
      get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
      if v_state = '25006' or (v_stage = 'table' and v_state = '42501') then
        v_refused := case v_state when '25006' then 'read_only' else 'no_privilege' end;
      elsif v_stage = 'session' and left(v_state, 2) = '22' then
        v_fault := 'a literal of it cannot be read in a session with another TimeZone, DateStyle or IntervalStyle';
      elsif v_stage <> 'table' and left(v_state, 2) in ('0A', '22', '2B', '3F', '42', '54') then
        v_fault := case when v_message ~ '\mpg_temp(_\d+)?\.' then 'it hands the whole row to something that takes rows of this table only: hand it the columns. ' else '' end || v_message;
      else
        raise;
      end if;
  end;
  if v_refused is not null then
    return jsonb_build_object('refused', v_refused, 'message', v_message);
  end if;
  -- 'now' and its like are read once and for all when the constraint is made
  v_fault := coalesce(v_fault, (
    select format('%s is a time of its own each time that it is read', m.literal[1])
    from regexp_matches(p_predicate, '(''\s*(?:now|today|tomorrow|yesterday)\M[^'']*'')', 'gi') m (literal)
    where strpos(v_texts[1], m.literal[1]) = 0
    limit 1));
  if v_fault is not null then
    perform routeledger._raise('RL116', jsonb_build_object('predicate', p_predicate, 'reason', v_fault));
  end if;
  return jsonb_build_object(
    'texts', v_texts,
    'columns', v_columns,
    'live', coalesce(v_live, '{}'),
    'others', routeledger._code_of_others(v_tree),
    'functions', jsonb_path_query_array(v_functions, '$[*] ? (exists (@.digest))'),
    'notes', coalesce((
      select jsonb_agg(n.note order by n.note)
      from (
        select format('%s is %s: PostgreSQL takes a CHECK to be immutable, and does not look at a row again when the result changes', f ->> 'function', f ->> 'volatility') as note
        from jsonb_array_elements(v_functions) f
        where f ->> 'volatility' <> 'immutable'
        union all
        select 'the user, the date or the settings of the session decide: a row that passes now may fail when it is restored'
        where v_tree ~ '\{(SQLVALUEFUNCTION|COERCEVIAIO) '
      ) n), '[]'));
end
$$;

-- Says whether what has this xmin was written by the transaction that asks, and not before it.
-- Locks: none. Errors: none.
create or replace function routeledger._is_uncommitted(
  p_xmin xid
)
returns boolean
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  -- what is seen and still in progress is one's own; ids that are older than the transaction are not asked for
  return pg_current_xact_id_if_assigned() is not null and age(p_xmin) <= 0
    and pg_xact_status((pg_current_xact_id_if_assigned()::text::numeric - age(p_xmin))::text::xid8) = 'in progress';
end
$$;

-- Returns the constraint of that name on a table as it is, printed the same in every session: null when there is none.
-- "kind" is that of pg_constraint; "uncommitted" says that this very transaction has made or changed it.
-- PostgreSQL opens a table to print an expression of it, under a lock that waits for whoever alters it: with p_probe a
-- CHECK is printed as one of that probe instead.
-- Locks: access share for a moment, with p_probe none. Errors: none.
create or replace function routeledger._live_constraint(
  p_table regclass,
  p_name text,
  p_probe regclass default null
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
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
as $$
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);  -- what is printed names the rest in full
  return (
    select jsonb_build_object(
      'table', routeledger._qualified(c.conrelid),
      'name', c.conname,
      'kind', c.contype,
      'definition', case
        when c.contype = 'c' then format('CHECK (%s)', e.predicate)
          || case when c.connoinherit then ' NO INHERIT' else '' end
          || case when not e.enforced then ' NOT ENFORCED' when not c.convalidated then ' NOT VALID' else '' end
        else pg_get_constraintdef(c.oid) end,
      'predicate', e.predicate,
      'columns', (
        select jsonb_agg(a.attname order by a.attnum)
        from pg_attribute a
        where a.attrelid = c.conrelid and a.attnum = any (c.conkey)),
      'validated', c.convalidated,
      'enforced', e.enforced,
      'no_inherit', c.connoinherit,
      'local', c.conislocal,
      'inherited', c.coninhcount,
      'comment', obj_description(c.oid, 'pg_constraint'),
      'functions', jsonb_path_query_array(routeledger._functions_in(c.conbin::text), '$[*] ? (exists (@.digest))'),
      'uncommitted', routeledger._is_uncommitted(c.xmin))
    from pg_constraint c
    cross join lateral (
      select
        pg_get_expr(c.conbin, coalesce(p_probe, c.conrelid::regclass)) as predicate,
        coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true) as enforced) e
    where c.conrelid = p_table and c.conname = p_name and c.contypid = 0);
end
$$;

-- Returns a constraint as the history keeps it: what it takes to put it back.
-- Locks: none. Errors: none.
create or replace function routeledger._image_of_constraint(
  p_live jsonb
)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select p_live - array['local', 'inherited', 'uncommitted', 'functions', 'columns']
$$;

-- Counts the rows of a table for which a predicate is false, and shows up to five of them by their primary key, else
-- by their place. The predicate is canonical text. Where the caller may not see every row, or the predicate fails on
-- one: "refused", with the reason, and "message".
-- Locks: access share, given back. Errors: none of ours.
create or replace function routeledger._violations(
  p_table regclass,
  p_predicate text,
  p_only boolean default false
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set row_security = off
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set quote_all_identifiers = off
set standard_conforming_strings = on
set transform_null_equals = off
set array_nulls = on
set lc_monetary = 'C'
set xmloption = 'content'
as $$
declare
  v_from text := case when p_only then 'only ' else '' end || routeledger._qualified(p_table);
  v_path text := routeledger._path_of(p_table);
  v_name text := (select quote_ident(c.relname) from pg_class c where c.oid = p_table);
  v_key text;
  v_samples jsonb := '[]'::jsonb;
  v_count bigint := 0;
  v_state text;
  v_message text;
begin
  select string_agg(format('%L, %s.%I', a.attname, v_name, a.attname), ', ' order by k.n) into v_key
  from pg_index i
  cross join lateral unnest(i.indkey) with ordinality k (attnum, n)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
  where i.indrelid = p_table and i.indisprimary;
  if v_key is null then
    v_key := format('%L, routeledger._qualified(%s.tableoid), %L, %2$s.ctid::pg_catalog.text', 'table', v_name, 'ctid');
  end if;
  begin
    perform set_config('search_path', v_path, true);
    execute format(
      'select coalesce(pg_catalog.jsonb_agg(s.sample), %L) from (select pg_catalog.jsonb_build_object(%s) as sample from %s where (%s) is false limit 5) s',
      '[]', v_key, v_from, p_predicate)
    into strict v_samples;
    if v_samples <> '[]' then
      execute format('select pg_catalog.count(*) from %s where (%s) is false', v_from, p_predicate) into strict v_count;
    end if;
    -- the lock is given back with the subtransaction: whoever kept it and then asked for more would wait for its like
    raise exception using errcode = 'Z0000', message = 'the count is done';
  exception
    when sqlstate 'Z0000' then
      return jsonb_build_object('violations', v_count, 'samples', v_samples);
    when insufficient_privilege then
      get stacked diagnostics v_message = message_text;
      return jsonb_build_object('message', v_message, 'refused', case
        when exists (select from routeledger._tree(p_table) t where row_security_active(t.relation)) then 'row_security'
        else 'no_privilege' end);
    when data_exception then
      get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
      return jsonb_build_object('refused', 'predicate_fails', 'message', v_message, 'sqlstate', v_state);
  end;
end
$$;

-- Does one step of ensure_check() or ensure_not_null(), or says in a dry run what would come of it. With p_there the
-- constraint is there and the statements validate it: rows are counted only when that fails. Else the statements put
-- it there, and the rows that violate p_predicate (null: none can) are counted before. Returns "outcome" (refused or
-- pending, none when the step was done), "reason", "violations", "samples", "message", "attempts".
-- Locks: as _violations() and _run_locked(). Errors: 55P03, and what else the table raises.
create or replace function routeledger._take_step(
  p_table regclass,
  p_predicate text,
  p_only boolean,
  p_there boolean,
  p_statements text[],
  p_if_violated text,
  p_lock_timeout interval,
  p_attempts integer,
  p_dry_run boolean
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_tried boolean := p_there and not p_dry_run;
  v_count jsonb := '{}'::jsonb;
  v_message text;
begin
  if v_tried then
    begin
      return jsonb_build_object('violations', 0, 'attempts', routeledger._run_locked(p_table, p_statements, p_lock_timeout, p_attempts));
    exception
      when check_violation or not_null_violation or data_exception then
        null;  -- which rows they are is counted now
    end;
  end if;
  if p_predicate is not null then
    v_count := routeledger._violations(p_table, p_predicate, p_only);
    if v_count ? 'refused' then
      return (v_count - 'refused') || jsonb_build_object('outcome', 'refused', 'reason', v_count -> 'refused');
    elsif v_tried or v_count -> 'samples' <> '[]' then
      v_count := v_count || jsonb_strip_nulls(jsonb_build_object('reason', 'violations', 'outcome', case
        when p_there then 'pending' when p_if_violated = 'refuse' then 'refused' end));
    else
      v_count := v_count - 'samples';
    end if;
  end if;
  if p_dry_run or v_count ? 'outcome' then
    return v_count;
  end if;
  return v_count || jsonb_build_object('attempts', routeledger._run_locked(p_table, p_statements, p_lock_timeout, p_attempts));
exception
  when lock_not_available then
    raise;  -- the conditions below stand for their whole classes, and this is of one of them
  when object_not_in_prerequisite_state or invalid_table_definition or feature_not_supported or duplicate_object then
    get stacked diagnostics v_message = message_text;
    return jsonb_build_object('outcome', 'refused', 'reason', 'not_possible', 'message', v_message);
end
$$;

-- Says whether a table and all that inherits from it hold not even a dead row.
-- Locks: none. Errors: none.
create or replace function routeledger._is_empty(
  p_table regclass
)
returns boolean
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select bool_and(c.relkind in ('r', 'p') and pg_relation_size(c.oid) = 0)
    from routeledger._tree(p_table) t
    join pg_class c on c.oid = t.relation);
end
$$;

-- Raises unless constraints of this relation can be declared.
-- Locks: none. Errors: RL101, RL117.
create or replace function routeledger._check_table(
  p_table regclass
)
returns void
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_reason text;
begin
  if p_table is null then
    perform routeledger._raise_fault('RL101 table');
  end if;
  select case
    when c.relkind not in ('r', 'p') then 'not an ordinary or partitioned table'
    when c.relpersistence = 't' then 'a temporary table'
    when n.nspname in ('pg_catalog', 'information_schema', 'pg_toast') then 'a table of the system'
    else ''
  end
  into v_reason
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  where c.oid = p_table;
  if v_reason is distinct from '' then
    perform routeledger._raise('RL117', jsonb_build_object(
      'table', coalesce(routeledger._qualified(p_table), p_table::text), 'reason', coalesce(v_reason, 'there is no such table')));
  end if;
end
$$;

-- Returns the fault of the name of a constraint, of a label or of the policy for violators; null when there is none.
-- Locks: none. Errors: none.
create or replace function routeledger._constraint_fault(
  p_name text,
  p_label text,
  p_if_violated text
)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when coalesce(p_name, '') = '' then 'RL101 name'
    when octet_length(p_name) > 63 then 'RL108 name 63 bytes'
    when length(p_label) > 300 then 'RL108 label 300 characters'
    when p_if_violated is null or p_if_violated not in ('refuse', 'add_not_valid') then 'RL102 if_violated refuse, add_not_valid'
  end
$$;

-- Returns what the history knows: "labelled", whether a change of this constraint under this label is on record and
-- has not been undone; and "functions", those of the last change that left one of these texts, null when none did.
-- Locks: none. Errors: none.
create or replace function routeledger._recorded(
  p_target text,
  p_name text,
  p_kind text,
  p_label text,
  p_texts text[]
)
returns jsonb
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return jsonb_build_object(
    'labelled', exists (
      select from routeledger.constraint_changes c
      where c.target = p_target and c.name = p_name and c.kind = p_kind and c.label = p_label and c.undone_at is null),
    'functions', (
      select c.functions
      from routeledger.constraint_changes c
      where c.target = p_target and c.name = p_name and c.kind = p_kind and c.after ->> 'predicate' = any (p_texts) and c.undone_at is null
      order by c.id desc
      limit 1));
end
$$;

-- Records once for each label that a constraint was found to be as declared, so that undoing that label leaves it
-- alone; and once for what it calls, so that it is seen when that changes. Returns the number of the record, null
-- when there was nothing to record.
-- Locks: none. Errors: none.
create or replace function routeledger._record_unchanged(
  p_target text,
  p_name text,
  p_kind text,
  p_now jsonb,
  p_label text,
  p_functions jsonb default '[]'
)
returns bigint
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_known jsonb;
begin
  if (p_label is null and p_functions = '[]') or not routeledger._may_alter(to_regclass(p_target)) then
    return null;
  end if;
  v_known := routeledger._recorded(p_target, p_name, p_kind, p_label, array[p_now ->> 'predicate']);
  if (p_label is null or (v_known ->> 'labelled')::boolean) and (p_functions = '[]' or v_known -> 'functions' <> 'null') then
    return null;
  end if;
  return routeledger._record_change(p_target, p_name, p_kind, 'unchanged', p_now, p_now, p_label, null, p_functions);
end
$$;

-- Says whether two lists of functions do the same, whatever the functions are called.
-- Locks: none. Errors: none.
create or replace function routeledger._same_functions(
  p_one jsonb,
  p_other jsonb
)
returns boolean
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select (select array_agg(f ->> 'digest' order by f ->> 'digest') from jsonb_array_elements(p_one) f)
    is not distinct from (select array_agg(f ->> 'digest' order by f ->> 'digest') from jsonb_array_elements(p_other) f)
$$;

-- Returns the ALTER TABLE clause that adds a CHECK, not yet validated.
-- Locks: none. Errors: none.
create or replace function routeledger._add_check_sql(
  p_name text,
  p_predicate text,
  p_no_inherit boolean,
  p_enforced boolean default true
)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select format('add constraint %I check (%s)', p_name, p_predicate)
    || case when p_no_inherit then ' no inherit' else '' end
    || case when p_enforced then ' not valid' else ' not enforced' end
$$;

-- Returns the constraints of that name that tables below this one have of their own and that are not the one to be
-- inherited: they have to go before it can be added.
-- Locks: none that is kept. Errors: none.
create or replace function routeledger._children_in_the_way(
  p_table regclass,
  p_name text,
  p_texts text[]
)
returns jsonb
language plpgsql
stable
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return coalesce((
    select jsonb_agg(l.live order by l.live ->> 'table')
    from routeledger._tree(p_table) t
    cross join lateral routeledger._live_constraint(t.relation, p_name) l (live)
    where t.level > 0 and (l.live ->> 'local')::boolean
      and not (l.live ->> 'kind' = 'c' and l.live ->> 'predicate' = any (p_texts)
        and (l.live ->> 'validated')::boolean and (l.live ->> 'enforced')::boolean and not (l.live ->> 'no_inherit')::boolean)), '[]');
end
$$;

-- Returns the statements that put one CHECK in the place of another of its name (p_add null: only take it away), with
-- the constraints in p_also, and those of that name in p_children, dropped at the same time. Where nothing below is
-- in the way it is one ALTER TABLE; else the whole tree is locked first.
-- Locks: none. Errors: none.
create or replace function routeledger._swap_statements(
  p_table regclass,
  p_name text,
  p_add text,
  p_comment text,
  p_also text[],
  p_children jsonb
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_table text := routeledger._qualified(p_table);
  v_drop text := (
    select string_agg(format('drop constraint if exists %I', d.name), ', ' order by d.n)
    from unnest(array[p_name] || p_also) with ordinality d (name, n));
begin
  return array_remove(
    case
      when p_children = '[]' then array[format('alter table %s %s', v_table, concat_ws(', ', v_drop, p_add))]
      else array[format('lock table %s in access exclusive mode', v_table), format('alter table %s %s', v_table, v_drop)]
        || array(
          select format('alter table %s drop constraint if exists %I', c ->> 'table', p_name)
          from jsonb_array_elements(p_children) with ordinality e (c, n)
          order by e.n)
        || case when p_add is not null then format('alter table %s %s', v_table, p_add) end
    end
    || case when p_add is not null and p_comment is not null then format('comment on constraint %I on %s is %L', p_name, v_table, p_comment) end,
    null);
end
$$;

-- Returns the table from which a table has inherited the constraint of that name: the highest one.
-- Locks: none. Errors: none.
create or replace function routeledger._root_of(
  p_table regclass,
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
    with recursive up (id, depth) as (
      select p_table::oid, 0
      union all
      select i.inhparent, up.depth + 1
      from up
      join pg_inherits i on i.inhrelid = up.id
      join pg_constraint c on c.conrelid = i.inhparent and c.conname = p_name
    )
    select routeledger._qualified(up.id) from up order by up.depth desc, up.id limit 1);
end
$$;

-- Returns the owners of a table and of all that inherits from it.
-- Locks: none. Errors: none.
create or replace function routeledger._owners_of(
  p_table regclass
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
    select jsonb_agg(distinct r.rolname)
    from routeledger._tree(p_table) t
    join pg_class c on c.oid = t.relation
    join pg_roles r on r.oid = c.relowner);
end
$$;

-- Brings a table to hold exactly this CHECK under this name, whatever it holds under it now, and says what it found
-- and did. `unchanged`: there, of this predicate, and validated; no lock was taken on the table. `created`,
-- `replaced`: now there, for every row that is written from now on; old rows are looked at in a later call.
-- `validated`: the old rows were looked at too. `pending`: there, and rows that violate it remain, or it was made in
-- this very transaction. `refused`: nothing was changed, for the reason given. Where next is not null, the same call
-- in a new transaction goes on.
--
-- The predicate is read by the path pg_catalog, the schema of the table, the schemas of its columns' types; what is
-- installed is its canonical text. Rows that violate it are counted, and five of them shown in detail.samples, before
-- anything is changed: p_if_violated `refuse` then changes nothing, `add_not_valid` adds it nevertheless (an UPDATE
-- of such a row fails from then on, whatever it changes). p_also_drop names older CHECKs that this one takes the
-- place of. p_label groups changes for undo_constraint(). Functions are noted, and followed: when one of them does
-- something else than when the constraint was put there, it counts as replaced and every row is looked at again.
--
-- Reasons of `pending`: violations, uncommitted. Of `refused`: violations, predicate_fails, row_security, no_privilege
-- and not_possible (with what PostgreSQL said in detail.message), read_only, not_owner (detail.owners), inherited
-- (detail.root), name_taken. With p_strict a refusal is an error. In a dry run nothing is changed, and outcome and
-- violations are what the step would come to. detail also names the other CHECKs of the same columns (suspects), what
-- is dropped with the old one (also_dropped, children), what is doubtful about the predicate (notes), its functions,
-- and the record in the history (change_id).
--
-- Locks: none when unchanged, and none is waited for. Otherwise the advisory lock of (table, constraint); access
-- share for the count, given back; then for a change access exclusive on the table and all that inherits from it (one
-- ALTER TABLE, no scan), to validate share update exclusive (readers and writers pass), each waiting at most
-- p_lock_timeout, p_attempts times.
-- Errors: RL101, RL102, RL103, RL108, RL116, RL117, RL309, 55P03.
create or replace function routeledger.ensure_check(
  p_table regclass,
  p_name text,
  p_predicate text,
  p_if_violated text default 'refuse',
  p_no_inherit boolean default false,
  p_also_drop text[] default '{}',
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
set lock_timeout = 0
set quote_all_identifiers = off
set client_min_messages = warning
as $$
#variable_conflict use_column
declare
  c_next constant text := 'Commit, then call ensure_check again: it validates the constraint.';
  v_fault text := coalesce(
    routeledger._constraint_fault(p_name, p_label, p_if_violated),
    routeledger._lock_fault(p_lock_timeout, p_attempts),
    case
      when p_predicate is null then 'RL101 predicate'
      when p_no_inherit is null then 'RL101 no_inherit'
      when p_strict is null then 'RL101 strict'
      when p_dry_run is null then 'RL101 dry_run'
      when array_ndims(p_also_drop) > 1 or exists (select from unnest(p_also_drop) d where d is null) then 'RL101 also_drop'
    end);
  v_target text;
  v_want jsonb;
  v_texts text[];
  v_text text;
  v_all jsonb;
  v_live jsonb;
  v_found text;  -- a variable named found is the one of plpgsql
  v_known jsonb;
  v_aliases jsonb;
  v_children jsonb := '[]'::jsonb;
  v_suspects jsonb;
  v_same boolean;
  v_there boolean;
  v_before jsonb;
  v_statements text[];
  v_step jsonb;
  v_message text;
  v_said text;
  v_began timestamptz := clock_timestamp();
begin
  perform routeledger._check_table(p_table);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  if p_no_inherit and (select c.relkind = 'p' from pg_class c where c.oid = p_table) then
    perform routeledger._raise('RL117', jsonb_build_object(
      'table', routeledger._qualified(p_table), 'reason', 'a partitioned table has no rows of its own: no_inherit does not suit it'));
  end if;

  v_target := routeledger._qualified(p_table);
  detail := case when p_dry_run then jsonb_build_object('dry_run', true) else '{}' end;
  validated := false;
  <<decide>>
  begin
    perform set_config('lock_timeout', routeledger._total_wait(p_lock_timeout, p_attempts), true);
    v_want := routeledger._canonical_check(p_table, p_predicate, array[p_name] || p_also_drop);
    if v_want ? 'refused' then
      outcome := 'refused';
      reason := v_want ->> 'refused';
      detail := detail || jsonb_build_object('message', v_want -> 'message');
      exit decide;
    end if;
    v_texts := array(select t from jsonb_array_elements_text(v_want -> 'texts') with ordinality x (t, n) order by n);
    v_text := v_texts[cardinality(v_texts)];
    definition := v_text;
    detail := detail || case when v_want -> 'notes' <> '[]' then jsonb_build_object('notes', v_want -> 'notes') else '{}' end
      || case when v_want -> 'functions' <> '[]' then jsonb_build_object('functions', v_want -> 'functions') else '{}' end;

    -- looked at without the advisory lock, and once more with it when something has to be done
    for v_look in 1 .. 2 loop
      detail := detail - 'function_changed';
      if v_look = 1 then
        v_all := v_want -> 'live';
      else
        v_all := (
          select jsonb_object_agg(n.name, coalesce(routeledger._live_constraint(p_table, n.name), 'null'))
          from (select distinct u.name from unnest(array[p_name] || p_also_drop) u (name)) n);
      end if;
      v_live := nullif(v_all -> p_name, 'null');
      v_aliases := coalesce((
        select jsonb_agg(a.value order by a.key)
        from jsonb_each(v_all - p_name) a
        where a.value <> 'null'), '[]');
      v_known := routeledger._recorded(v_target, p_name, 'check', p_label, v_texts);
      v_same := coalesce(v_live ->> 'kind' = 'c' and v_live ->> 'predicate' = any (v_texts) and (v_live ->> 'enforced')::boolean
        and (v_live ->> 'no_inherit')::boolean = p_no_inherit, false);
      if v_same and v_known -> 'functions' <> 'null' and not routeledger._same_functions(v_known -> 'functions', v_want -> 'functions') then
        v_same := false;
        detail := detail || '{"function_changed": true}';
      end if;
      v_found := case when v_live ->> 'kind' = 'c' then v_live ->> 'predicate' else v_live ->> 'definition' end;
      validated := v_same and (v_live ->> 'validated')::boolean;

      if v_live ->> 'kind' <> 'c' then
        outcome := 'refused';
        reason := 'name_taken';
        exit decide;
      elsif (v_live ->> 'inherited')::integer > 0 then
        outcome := 'refused';
        reason := 'inherited';
        detail := detail || jsonb_build_object('root', routeledger._root_of(p_table, p_name));
        exit decide;
      elsif jsonb_path_exists(v_aliases, '$[*] ? (@.kind != "c" || @.inherited > 0)') then
        outcome := 'refused';
        reason := case when jsonb_path_exists(v_aliases, '$[*] ? (@.kind != "c")') then 'name_taken' else 'inherited' end;
        detail := detail || jsonb_build_object('also_drop', jsonb_path_query_array(v_aliases, '$[*] ? (@.kind != "c" || @.inherited > 0).name'));
        exit decide;
      elsif validated and v_aliases = '[]' then
        outcome := 'unchanged';
        if not p_dry_run then
          detail := detail || jsonb_strip_nulls(jsonb_build_object('change_id', routeledger._record_unchanged(
            v_target, p_name, 'check', routeledger._image_of_constraint(v_live), p_label, v_want -> 'functions')));
        end if;
        exit decide;
      elsif not routeledger._may_alter(p_table) then
        outcome := 'refused';
        reason := 'not_owner';
        detail := detail || jsonb_build_object('owners', routeledger._owners_of(p_table));
        exit decide;
      end if;
      exit when p_dry_run or v_look = 2;
      perform routeledger._serialize(p_table, p_name);
    end loop;

    v_there := v_same and v_aliases = '[]';
    if v_there then
      if (v_live ->> 'uncommitted')::boolean and not routeledger._is_empty(p_table) then
        outcome := 'pending';
        reason := 'uncommitted';
        next := c_next;
        exit decide;
      end if;
      v_before := routeledger._image_of_constraint(v_live);
      v_statements := array[format('alter table %s validate constraint %I', v_target, p_name)];
    else
      -- another one, none, or one too many
      v_suspects := (
        select jsonb_agg(jsonb_build_object('name', c.conname, 'definition', routeledger._live_constraint(p_table, c.conname) -> 'definition') order by c.conname)
        from pg_constraint c
        where c.conrelid = p_table and c.contype = 'c' and c.conname <> p_name and c.conname <> all (coalesce(p_also_drop, '{}'))
          and v_want -> 'columns' <> '[]'
          and (select jsonb_agg(a.attname order by a.attnum) from pg_attribute a where a.attrelid = p_table and a.attnum = any (c.conkey)) = v_want -> 'columns');
      if not p_no_inherit then
        v_children := routeledger._children_in_the_way(p_table, p_name, v_texts);
      end if;
      detail := detail || jsonb_strip_nulls(jsonb_build_object(
        'suspects', v_suspects,
        'also_dropped', nullif(jsonb_path_query_array(v_aliases, '$[*].name'), '[]'),
        'children', (select jsonb_agg(jsonb_build_object('table', c -> 'table', 'definition', c -> 'definition')) from jsonb_array_elements(v_children) c)));
      if jsonb_path_exists(v_children, '$[*] ? (@.kind != "c")') then
        outcome := 'refused';
        reason := 'name_taken';
        exit decide;
      end if;
      v_before := nullif(jsonb_strip_nulls(coalesce(routeledger._image_of_constraint(v_live), '{}') || jsonb_build_object(
        'also', (select jsonb_agg(routeledger._image_of_constraint(a)) from jsonb_array_elements(v_aliases) a),
        'children', (select jsonb_agg(routeledger._image_of_constraint(c)) from jsonb_array_elements(v_children) c))), '{}');
      v_statements := case
        when validated then array[format('alter table %s %s', v_target, (
          select string_agg(format('drop constraint if exists %I', a ->> 'name'), ', ') from jsonb_array_elements(v_aliases) a))]
        else routeledger._swap_statements(
          p_table, p_name, routeledger._add_check_sql(p_name, v_text, p_no_inherit), v_live ->> 'comment',
          array(select a ->> 'name' from jsonb_array_elements(v_aliases) a), v_children) end;
    end if;

    v_step := routeledger._take_step(
      p_table, case when not validated then v_text end, p_no_inherit, v_there, v_statements, p_if_violated, p_lock_timeout, p_attempts, p_dry_run);
    violations := (v_step ->> 'violations')::bigint;
    reason := v_step ->> 'reason';
    detail := detail || (v_step - array['outcome', 'reason', 'violations']);
    outcome := coalesce(v_step ->> 'outcome', case when v_there then 'validated' when v_live is null then 'created' else 'replaced' end);
    if v_step ? 'outcome' or p_dry_run then
      next := case when outcome = 'pending' and violations = 0 then c_next end;  -- they are gone since
      exit decide;
    elsif v_there then
      validated := true;
    elsif not validated and violations = 0 then
      -- the table is locked now: what is empty stays so, and is looked at in no time
      if routeledger._is_empty(p_table) then
        perform routeledger._run_locked(p_table, array[format('alter table %s validate constraint %I', v_target, p_name)], p_lock_timeout, p_attempts);
        validated := true;
      else
        next := c_next;
      end if;
    end if;
    v_live := routeledger._live_constraint(p_table, p_name);
    if coalesce(v_live ->> 'predicate', '') <> all (v_texts) or (v_live ->> 'validated')::boolean <> validated then
      perform routeledger._raise('RL116', jsonb_build_object(
        'predicate', p_predicate, 'reason', 'the table holds something else than was put there', 'definition', v_live -> 'definition'));
    end if;
    detail := detail || jsonb_build_object('change_id', routeledger._record_change(
      v_target, p_name, 'check', outcome, v_before, routeledger._image_of_constraint(v_live), p_label, null, v_want -> 'functions'));
  exception
    when lock_not_available then
      get stacked diagnostics v_message = message_text, v_said = pg_exception_detail;
      if v_said like '{%' then
        raise;  -- _run_locked() has said who is in the way
      end if;
      perform routeledger._raise_locked(p_table, p_lock_timeout, p_attempts, v_began, v_message);
  end;

  if outcome = 'refused' and p_strict then
    perform routeledger._raise('RL309', detail || jsonb_strip_nulls(jsonb_build_object(
      'table', v_target, 'name', p_name, 'reason', reason, 'violations', violations, 'definition', definition, 'found', v_found)));
  end if;
  return query select outcome, validated, violations, definition, v_found, reason, next, detail;
end
$$;

-- Returns what is known of NOT NULL on a column: "not_null", "validated", and from PostgreSQL 18 on "name",
-- "inherited" and "uncommitted" of its constraint. Null when there is no such column.
-- Locks: none. Errors: none.
create or replace function routeledger._live_not_null(
  p_table regclass,
  p_column text
)
returns jsonb
language plpgsql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (
    select jsonb_strip_nulls(jsonb_build_object(
      'table', routeledger._qualified(p_table),
      'kind', 'n',
      'column', a.attname,
      'not_null', a.attnotnull,
      'validated', a.attnotnull and coalesce(c.convalidated, true),
      'name', c.conname,
      'inherited', c.coninhcount,
      'definition', case when a.attnotnull then 'NOT NULL' || case when c.convalidated is false then ' NOT VALID' else '' end end,
      'uncommitted', routeledger._is_uncommitted(c.xmin)))
    from pg_attribute a
    left join pg_constraint c on c.conrelid = a.attrelid and c.contype = 'n' and c.conkey = array[a.attnum]
    where a.attrelid = p_table and a.attname = p_column and a.attnum > 0 and not a.attisdropped);
end
$$;

-- Returns the name that PostgreSQL 18 would give to the NOT NULL of a column: at most 63 bytes.
-- Locks: none. Errors: none.
create or replace function routeledger._not_null_name(
  p_table regclass,
  p_column text
)
returns text
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_table text := (select c.relname from pg_class c where c.oid = p_table);
  v_column text := p_column;
begin
  while octet_length(v_table) + octet_length(v_column) > 53 loop
    if octet_length(v_table) >= octet_length(v_column) then
      v_table := left(v_table, -1);
    else
      v_column := left(v_column, -1);
    end if;
  end loop;
  return v_table || '_' || v_column || '_not_null';
end
$$;

-- Brings a column to be NOT NULL without a scan under a lock that stops readers or writers, in two or three
-- transactions. From PostgreSQL 18 on: a NOT NULL constraint of that name, NOT VALID, then validated. Before: a CHECK
-- of that name, NOT VALID, validated, and then taken for the proof that SET NOT NULL needs, and dropped. Arguments,
-- outcomes, reasons and errors as in ensure_check(), and `pending` for the reason proved when only SET NOT NULL
-- remains; p_name is by default what PostgreSQL would call it. A column that is NOT NULL already is `unchanged`,
-- whatever its constraint is called (detail.name_found).
-- Locks: none when unchanged. Otherwise the advisory lock of (table, constraint); access share for the count, given
-- back; then access exclusive (no scan) or, to validate, share update exclusive, each waiting at most p_lock_timeout,
-- p_attempts times.
-- Errors: RL101, RL102, RL103, RL108, RL113, RL117, RL309, 55P03.
create or replace function routeledger.ensure_not_null(
  p_table regclass,
  p_column text,
  p_name text default null,
  p_if_violated text default 'refuse',
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
set lock_timeout = 0
set quote_all_identifiers = off
set client_min_messages = warning
as $$
#variable_conflict use_column
declare
  c_next constant text := 'Commit, then call ensure_not_null again: it validates the constraint.';
  c_native constant boolean := current_setting('server_version_num')::integer >= 180000;
  v_fault text := coalesce(
    case when coalesce(p_column, '') = '' then 'RL101 column' end,
    routeledger._constraint_fault(coalesce(p_name, '-'), p_label, p_if_violated),
    routeledger._lock_fault(p_lock_timeout, p_attempts),
    case when p_strict is null then 'RL101 strict' when p_dry_run is null then 'RL101 dry_run' end);
  v_target text;
  v_column text;
  v_name text;
  v_check text;
  v_live jsonb;
  v_found text;  -- a variable named found is the one of plpgsql
  v_helper jsonb;
  v_taken jsonb;
  v_now jsonb;
  v_statements text[];
  v_step jsonb;
  v_message text;
  v_said text;
  v_began timestamptz := clock_timestamp();
begin
  perform routeledger._check_table(p_table);
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_target := routeledger._qualified(p_table);
  v_column := routeledger._column_named(p_table, p_column);
  if v_column is null then
    perform routeledger._raise('RL113', jsonb_build_object('target', v_target, 'column', p_column));
  end if;
  v_name := coalesce(p_name, routeledger._not_null_name(p_table, v_column));
  definition := 'NOT NULL';
  -- of a composite type `is not null` would ask for each field; this is printed as IS NOT NULL for any other
  v_check := format('%I is distinct from null', v_column);
  detail := jsonb_build_object('column', v_column, 'name', v_name) || case when p_dry_run then jsonb_build_object('dry_run', true) else '{}' end;
  <<decide>>
  begin
    perform set_config('lock_timeout', routeledger._total_wait(p_lock_timeout, p_attempts), true);
    for v_look in 1 .. 2 loop
      v_live := routeledger._live_not_null(p_table, v_column);
      v_found := v_live ->> 'definition';
      validated := (v_live ->> 'validated')::boolean;
      if validated then
        outcome := 'unchanged';
        if not p_dry_run then
          detail := detail || jsonb_strip_nulls(jsonb_build_object('change_id', routeledger._record_unchanged(
            v_target, v_name, 'not_null', v_live - 'uncommitted', p_label)));
        end if;
        detail := detail || case when v_live ->> 'name' <> v_name then jsonb_build_object('name_found', v_live -> 'name') else '{}' end;
        exit decide;
      elsif not routeledger._may_alter(p_table) then
        outcome := 'refused';
        reason := 'not_owner';
        detail := detail || jsonb_build_object('owners', routeledger._owners_of(p_table));
        exit decide;
      elsif current_setting('transaction_read_only')::boolean then
        outcome := 'refused';
        reason := 'read_only';
        exit decide;
      end if;
      exit when p_dry_run or v_look = 2;
      perform routeledger._serialize(p_table, v_name);
    end loop;

    -- what stands for it until it is valid: the constraint itself, or a CHECK in its place
    v_taken := routeledger._live_constraint(p_table, v_name);
    if c_native then
      v_helper := case when (v_live ->> 'not_null')::boolean then v_live end;
      v_name := coalesce(v_helper ->> 'name', v_name);
    elsif v_taken ->> 'kind' = 'c' and v_taken ->> 'predicate' in (format('(%I IS NOT NULL)', v_column), format('(%I IS DISTINCT FROM NULL)', v_column)) then
      v_helper := v_taken;
      v_found := v_taken ->> 'predicate';
    end if;
    if v_helper is null and v_taken is not null then
      outcome := 'refused';
      reason := 'name_taken';
      v_found := v_taken ->> 'definition';
      exit decide;
    elsif (v_helper ->> 'inherited')::integer > 0 then
      outcome := 'refused';
      reason := 'inherited';
      detail := detail || jsonb_build_object('root', routeledger._root_of(p_table, v_name));
      exit decide;
    elsif (v_helper ->> 'uncommitted')::boolean and not routeledger._is_empty(p_table) then
      outcome := 'pending';
      reason := 'uncommitted';
      next := c_next;
      exit decide;
    end if;

    v_statements := case
      when v_helper is null then array[format(
        'alter table %s add constraint %I %s not valid', v_target, v_name,
        case when c_native then format('not null %I', v_column) else format('check (%s)', v_check) end)]
      when (v_helper ->> 'validated')::boolean then routeledger._not_null_statements(p_table, v_column, v_name)
      else array[format('alter table %s validate constraint %I', v_target, v_name)] end;
    v_step := routeledger._take_step(
      p_table, v_check, false, v_helper is not null, v_statements, p_if_violated, p_lock_timeout, p_attempts, p_dry_run);
    violations := (v_step ->> 'violations')::bigint;
    reason := v_step ->> 'reason';
    detail := detail || (v_step - array['outcome', 'reason', 'violations']);
    outcome := coalesce(v_step ->> 'outcome', case when v_helper is null then 'created' else 'validated' end);
    if v_step ? 'outcome' or p_dry_run then
      next := case when outcome = 'pending' and violations = 0 then c_next end;  -- they are gone since
      exit decide;
    elsif v_helper is null and violations = 0 and routeledger._is_empty(p_table) then
      -- the table is locked now: what is empty stays so, and is looked at in no time
      perform routeledger._run_locked(p_table, routeledger._not_null_statements(p_table, v_column, v_name), p_lock_timeout, p_attempts);
    end if;
    v_now := routeledger._live_not_null(p_table, v_column);
    validated := (v_now ->> 'validated')::boolean;
    if not validated and v_helper is not null then
      outcome := 'pending';
      reason := 'proved';
      next := 'Commit, then call ensure_not_null again: it sets NOT NULL, of which the validated CHECK is the proof.';
      exit decide;
    elsif not validated and violations = 0 then
      next := c_next;
    end if;
    detail := detail || jsonb_build_object('change_id', routeledger._record_change(
      v_target, coalesce(p_name, v_name), 'not_null', outcome, v_live - 'uncommitted', v_now - 'uncommitted', p_label, null, null));
  exception
    when lock_not_available then
      get stacked diagnostics v_message = message_text, v_said = pg_exception_detail;
      if v_said like '{%' then
        raise;  -- _run_locked() has said who is in the way
      end if;
      perform routeledger._raise_locked(p_table, p_lock_timeout, p_attempts, v_began, v_message);
  end;

  if outcome = 'refused' and p_strict then
    perform routeledger._raise('RL309', detail || jsonb_strip_nulls(jsonb_build_object(
      'table', v_target, 'name', v_name, 'reason', reason, 'violations', violations, 'definition', definition, 'found', v_found)));
  end if;
  return query select outcome, validated, violations, definition, v_found, reason, next, detail;
end
$$;

-- Returns the statements that make a column NOT NULL where it is proved that it can be.
-- Locks: none. Errors: none.
create or replace function routeledger._not_null_statements(
  p_table regclass,
  p_column text,
  p_name text
)
returns text[]
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_table text := routeledger._qualified(p_table);
begin
  if current_setting('server_version_num')::integer >= 180000 then
    return array[format('alter table %s validate constraint %I', v_table, p_name)];
  end if;
  -- not in one statement: the CHECK would be dropped before it is taken for the proof
  return array[
    format('alter table %s alter column %I set not null', v_table, p_column),
    format('alter table %s drop constraint if exists %I', v_table, p_name)];
end
$$;

-- Puts back what a change of the history found (its `before`): the CHECK with its comment, those that were dropped with
-- it, those of the tables that still inherit from it; or takes the constraint away where there was none. What had been
-- validated is so at once only where the table is empty. Returns whether all that was put back is as it was. Nothing of
-- p_before is run as it is written: tables are those of the catalogue, names are quoted, and a predicate has to be one
-- expression, which only becomes a CHECK of a table that the caller may alter.
-- Locks: access exclusive on the table and all that inherits from it, without a scan, waiting at most p_lock_timeout,
-- p_attempts times. Errors: RL116, 55P03, and what the table raises.
create or replace function routeledger._restore_check(
  p_table regclass,
  p_name text,
  p_kind text,
  p_before jsonb,
  p_lock_timeout interval,
  p_attempts integer
)
returns boolean
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set quote_all_identifiers = off
set standard_conforming_strings = on
set client_min_messages = warning
as $$
declare
  v_table text := routeledger._qualified(p_table);
  v_statements text[];
  v_valid text[];
  v_one record;
  v_fault text;
begin
  if p_kind = 'not_null' then
    if not (p_before ->> 'not_null')::boolean then
      perform routeledger._run_locked(
        p_table,
        array[
          format('alter table %s alter column %I drop not null', v_table, p_before ->> 'column'),
          format('alter table %s drop constraint if exists %I', v_table, p_name)],
        p_lock_timeout, p_attempts);
    end if;
    return true;
  end if;

  v_statements := routeledger._swap_statements(p_table, p_name, null, null, '{}', '[]');
  for v_one in
    select routeledger._qualified(t.relation) as relation, e.was
    from (
      select 0 as n, p_before || jsonb_build_object('table', v_table, 'name', p_name) as was where p_before ? 'predicate'
      union all
      select 1, a || jsonb_build_object('table', v_table) from jsonb_array_elements(p_before -> 'also') a
      union all
      select 2, c
      from jsonb_array_elements(p_before -> 'children') c
      where not p_before ? 'predicate' or (p_before ->> 'no_inherit')::boolean  -- else they inherit it again
    ) e
    join routeledger._tree(p_table) t on routeledger._qualified(t.relation) = e.was ->> 'table'
    order by e.n, e.was ->> 'table', e.was ->> 'name'
  loop
    v_fault := routeledger._expression_fault(v_one.was ->> 'predicate');
    if v_fault is not null then
      perform routeledger._raise('RL116', jsonb_build_object('predicate', v_one.was -> 'predicate', 'reason', v_fault));
    end if;
    v_statements := v_statements || format('alter table %s %s', v_one.relation, routeledger._add_check_sql(
      v_one.was ->> 'name', v_one.was ->> 'predicate', (v_one.was ->> 'no_inherit')::boolean, (v_one.was ->> 'enforced')::boolean));
    if v_one.was ->> 'comment' is not null then
      v_statements := v_statements || format('comment on constraint %I on %s is %L', v_one.was ->> 'name', v_one.relation, v_one.was ->> 'comment');
    end if;
    if (v_one.was ->> 'validated')::boolean then
      v_valid := v_valid || format('alter table %s validate constraint %I', v_one.relation, v_one.was ->> 'name');
    end if;
  end loop;
  perform routeledger._run_locked(p_table, v_statements, p_lock_timeout, p_attempts);
  if v_valid is not null and routeledger._is_empty(p_table) then
    perform routeledger._run_locked(p_table, v_valid, p_lock_timeout, p_attempts);
    v_valid := null;
  end if;
  return v_valid is null;
end
$$;
