-- 910 · Security and house rules, over the whole catalogue: nothing new is exempt.
-- What the catalogue does not keep is read from the sources: run this from the top of the tree.
begin;
\ir common.psql
select plan(34);

\set source `cat sql/src/*.sql`
create temp table text_of (source text not null);
insert into text_of values (:'source');
create temp view routine as
select
  p.oid, p.proname::text collate "default" as name, p.proname !~ '^_' as is_public, p.prosecdef as is_definer, l.lanname::text as language, p.prosrc as source,
  p.provolatile as volatility, p.proparallel as parallel, coalesce(p.proconfig, '{}') as config, p.proargnames as arguments,
  array(select a.grantee::regrole::text from aclexplode(p.proacl) a where a.grantee <> p.proowner order by 1) as granted_to,
  p.proowner as owner
from pg_proc p
join pg_language l on l.oid = p.prolang
where p.pronamespace = 'routeledger'::regnamespace;
create temp view relation as
select c.* from pg_class c where c.relnamespace = 'routeledger'::regnamespace;

create temp table calls as
select a.name, b.name as callee, strpos('isv', a.volatility::text) as volatility, strpos('isv', b.volatility::text) as callee_volatility,
  strpos('sru', a.parallel::text) as parallel, strpos('sru', b.parallel::text) as callee_parallel
from routine a
join routine b on a.source ~ ('\mrouteledger\.' || b.name || '\(') and b.name <> a.name
where a.name not in ('errors', '_errors') and (a.name, b.name) <> ('_find_arbiter', 'ensure_unique'); -- hints that name routines

-- The one exception: what writes into tables that are not ours, or alters them, does so with its caller's privileges and
-- nobody else's. These are its doors; an `entry` hands its caller's search_path on, so it cannot have a pin. What they
-- reach goes on as the caller (a `step`) or reads the catalogue, or books and counts in the ledger, as the owner (a
-- `service`). Steps and services are granted to whom the doors are, because it is the caller who calls them.
create temp table as_caller (name text primary key, part text not null, granted_to text[]);
insert into as_caller (name, part)
select n, 'entry' from unnest(array[
  'upsert', 'upsert_from', 'declare_constraint', 'undeclare_constraint', 'constraint_states', 'plan_constraints', 'apply_constraints',
  'undo_constraint', 'undo_repair', 'repair_orphans_in']) n
union all
select n, 'door' from unnest(array[
  'ensure_check', 'ensure_not_null', 'ensure_unique', 'unique_step', 'collapse_duplicates', 'show_repair']) n;
with recursive reached as (
  select a.name as door, a.name, false as is_definer from as_caller a
  union
  select x.door, c.callee, r.is_definer
  from reached x
  join calls c on c.name = x.name
  join routine r on r.name = c.callee
  where not x.is_definer
)
insert into as_caller
select x.name, case when bool_or(x.is_definer) then 'service' else 'step' end, array(
  select distinct g from reached y join routine d on d.name = y.door cross join unnest(d.granted_to) g where y.name = x.name order by g)
from reached x
where x.name ~ '^_'
group by x.name;

-- search_path
select cmp_ok((select count(*) from routine), '>', 50::bigint, 'the routines are found');
select is_empty(
  $$ select r.name from routine r where r.is_definer and not 'search_path=pg_catalog, routeledger, pg_temp' = any (r.config) $$,
  'each SECURITY DEFINER routine pins its search_path, pg_temp last');
select is_empty(
  $$
    select r.name from routine r
    where not 'search_path=pg_catalog, routeledger, pg_temp' = any (r.config)
      and not (not r.is_definer and 'search_path=pg_catalog, pg_temp' = any (r.config)) -- see below
      and not (r.language = 'sql' and not r.is_definer and not r.is_public and r.granted_to = '{}')
      and r.name not in (select a.name from as_caller a where a.part = 'entry')
  $$,
  'so does every other, but for private SQL that is meant to be inlined, and those that hand their caller''s on');
select is_empty(
  $$
    select r.name, m[1]
    from routine r
    join as_caller a on a.name = r.name and a.part = 'entry'
    cross join regexp_matches(regexp_replace(r.source, '--[^\n]*|:=', '', 'g'), '((?<![\w.])(?!coalesce\()\w+\(|::\w+(?![\w.])| [-+*/<>=~!@#%^&|`?]+ )', 'g') m
  $$,
  'in which every function and every type is named in full, and there is no operator');
select is_empty(
  $$
    select r.name, x from routine r cross join unnest(r.config) x
    where x like 'search\_path=%' and x <> 'search_path=pg_catalog, routeledger, pg_temp'
      and r.name not in ('_foreign_code', '_index_definition', '_index_identity') -- print names in full
  $$,
  'there is one pin, and one for what prints names in full');
select is_empty(
  $$
    select r.name from routine r
    where r.source ~ '(?<![eE])''[^'']*\\' and not 'standard_conforming_strings=on' = any (r.config)
  $$,
  'a routine in whose literals a backslash stands says how it is read');
select is_empty(
  $$
    select r.name, m[1] from routine r
    cross join regexp_matches(r.source, '\m(?:from|join|insert\s+into|update)\s+(?:only\s+)?([a-z_]+)\M(?!\s*[.(])', 'g') m
    join relation c on c.relname = m[1]
  $$,
  'and still every table is named in full');

-- who may do what
select is_empty(
  $$ select r.name from routine r where has_function_privilege('public', r.oid, 'execute') $$, 'PUBLIC may execute nothing');
select is_empty(
  $$ select r.name from routine r where r.is_public and r.granted_to = '{}' $$, 'a public routine is granted to somebody');
select set_eq(
  $$ select r.name, r.granted_to from routine r where not r.is_public and r.granted_to <> '{}' $$,
  $$ select a.name, a.granted_to from as_caller a where a.part in ('step', 'service') $$,
  'a private one to nobody, but for what is reached by those that run as their caller');
select is_empty(
  $$
    select r.name, g from routine r cross join unnest(r.granted_to) g
    where g not in ('routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin')
  $$,
  'only to the roles of the house');
select set_eq(
  $$ select r.name from routine r where r.is_public and not r.is_definer and r.volatility <> 'i' $$,
  $$ select a.name from as_caller a where a.part in ('entry', 'door') $$,
  'a public routine that reads or writes anything does so as the owner, but for these');
select is_empty(
  $$
    select c.relname, a.grantee::regrole, a.privilege_type
    from relation c cross join aclexplode(c.relacl) a
    where c.relkind in ('r', 'p', 'S', 'm', 'f') and a.grantee <> c.relowner
  $$,
  'no role but the owner may touch a table');
select is_empty(
  $$
    select c.relname, a.attname from relation c join pg_attribute a on a.attrelid = c.oid where a.attacl is not null
  $$,
  'nor a column of one');
select is_empty(
  $$
    select c.relname, a.grantee, a.privilege_type
    from relation c cross join aclexplode(c.relacl) a
    where c.relkind = 'v' and a.grantee <> c.relowner
      and (a.privilege_type <> 'SELECT' or a.grantee = 0
        or a.grantee::regrole::text not in ('routeledger_reader', 'routeledger_admin')
        and c.relname not in ('constraint_drift', 'constraint_history', 'repair_history')
        and (a.grantee::regrole::text, c.relname ~ '^(judge|verdict)' or c.relname = 'current_prices') <> ('routeledger_judge', true))
  $$,
  'views are read, by readers and admins, those of constraints and repairs by those who make them, and those of verdicts, and of what judging costs, by judges');
select is_empty(
  $$ select a.grantee, a.privilege_type from relation c cross join aclexplode(c.relacl) a where a.is_grantable and a.grantee <> c.relowner $$,
  'nothing may be passed on');
select is_empty(
  $$
    select a.grantee, a.privilege_type
    from pg_namespace n cross join aclexplode(n.nspacl) a
    where n.nspname = 'routeledger' and a.grantee <> n.nspowner
      and (a.privilege_type <> 'USAGE' or a.grantee = 0 or a.grantee::regrole::text !~ '^routeledger_(reader|writer|judge|admin)$')
  $$,
  'in the schema nobody else may create, and only our roles look inside');
select is_empty(
  $$
    select x.name from (
      select c.relname::text, c.relowner from relation c where c.relkind <> 'i'
      union all select r.name, r.owner from routine r
      union all select t.typname, t.typowner from pg_type t where t.typnamespace = 'routeledger'::regnamespace
    ) x (name, owner)
    where x.owner <> (select n.nspowner from pg_namespace n where n.nspname = 'routeledger')
  $$,
  'everything belongs to the owner of the schema');
select is_empty(
  $$ select c.relname from relation c where c.relkind = 'v' and 'security_invoker=true' = any (c.reloptions) $$, 'views read as the owner');

-- set forms
create temp view writer as
select r.*, s.oid as set_oid, s.source as set_source
from routine r
left join routine s on s.name = r.name || 's' and s.arguments[1] = 'p_rows'
where r.is_public and 'p_tenant_id' = any (r.arguments) and 'p_id' = any (r.arguments)
  and r.granted_to && array['routeledger_writer', 'routeledger_judge'];
select cmp_ok((select count(*) from writer), '>=', 11::bigint, 'the writers are found');
select is_empty($$ select w.name from writer w where w.set_oid is null $$, 'each has a set form');
select is_empty(
  $$
    select w.name, x.field
    from writer w
    join pg_proc p on p.oid = w.oid
    cross join lateral (
      (select substr(a, 3) collate "default" from unnest(p.proargnames[1:p.pronargs]) a
       union
       select t.attname::text collate "default" from pg_attribute t
       where t.attrelid = ('routeledger.' || substring(w.set_source from '_read_rows\(null::routeledger\.([a-z_]+)'))::regclass)
      except
      (select substr(a, 3) collate "default" from unnest(p.proargnames[1:p.pronargs]) a
       intersect
       select t.attname::text collate "default" from pg_attribute t
       where t.attrelid = ('routeledger.' || substring(w.set_source from '_read_rows\(null::routeledger\.([a-z_]+)'))::regclass)
    ) x (field)
  $$,
  'whose rows have the parameters of the single form');
select is_empty(
  $$
    select w.name, s.proargnames
    from writer w
    join pg_proc p on p.oid = w.oid
    join pg_proc s on s.oid = w.set_oid
    where s.proargnames[2:] is distinct from
      array['ord', 'status', 'code', 'message', 'detail', 'hint'] || array_remove(p.proargnames[p.pronargs + 1:], 'created')
  $$,
  'and whose answers have its columns');
select is_empty(
  $$
    select w.name, p.proargnames from writer w join pg_proc p on p.oid = w.oid
    where w.name !~ '^(extend|renew|release)_' and not 'created' = any (p.proargnames)
  $$,
  'each says whether it was the first to write');

-- labels
create temp view header as
select split_part(h, '(', 1) as name, substring(h from '^(.*?)\nas \$\$') as text
from text_of t cross join regexp_split_to_table(t.source, 'create or replace (?:function|procedure) routeledger\.') with ordinality x (h, n)
where n > 1;
select set_eq(
  $$ select h.name from header h $$, $$ select r.name collate "default" from routine r $$, 'the sources hold the routines that are installed');
select is_empty(
  $$
    select h.name from header h
    where h.name <> 'apply_constraints' -- a procedure has no such labels
      and h.text !~ '\nlanguage (sql|plpgsql)\n(immutable|stable|volatile)\nparallel (safe|restricted|unsafe)\nsecurity (definer|invoker)(\nset [^\n]+)*$'
  $$,
  'each writes out its volatility, parallel label and security, in this order');
select is_empty(
  $$ select c.name, c.callee from calls c where c.callee_volatility > c.volatility $$, 'no routine promises more stability than what it calls');
select is_empty(
  $$ select c.name, c.callee from calls c where c.callee_parallel > c.parallel $$, 'nor more parallel safety');
select is_empty(
  $$ select r.name from routine r where r.language = 'plpgsql' and r.volatility <> 'v' and r.name <> '_plan_upsert' and r.source ~ '\m(insert\s+into|update\s+routeledger|delete\s+from)\M' $$,
  'what writes is volatile; _plan_upsert only writes it down');
select set_eq(
  $$
    select r.name from routine r
    where r.source ~ '\mexecute\M' and (r.is_definer or r.name not in (select a.name from as_caller a))
  $$,
  array['_ensure_partition', '_image_of', '_close_repair', '_share_images', '_drop_old_images'],
  'dynamic SQL as the owner is for making partitions and the images of rows; all other is for tables that are not ours');
select set_eq(
  $$
    select r.name from routine r
    where r.source ~ '\mexception\s+when\M' and (r.is_definer or r.name not in (select a.name from as_caller a))
  $$,
  array['_read_rows', 'configure', '_drop_old_images', 'set_retry_policy', '_reserve_budgets'],
  'no EXCEPTION block on a hot path of the ledger; budgets of several shards are let go of by one');

-- the link
select is_empty(
  $$
    select l.relname
    from pg_inherits i
    join pg_class l on l.oid = i.inhrelid
    left join pg_constraint c on c.conrelid = l.oid and c.conname = 'outcome_links_own_attempt'
    where i.inhparent = 'routeledger.routing_outcomes'::regclass
      and (c.oid is null or not c.convalidated or pg_get_constraintdef(c.oid) <> format(
        'FOREIGN KEY (tenant_id, id, inference_id) REFERENCES routeledger.%I(tenant_id, outcome_id, id)',
        replace(l.relname, 'routing_outcomes', 'inferences')))
  $$,
  'each leaf of routing_outcomes links to the attempts of its twin');

-- errors
select is_empty(
  $$
    select distinct r.name, m[1] from routine r
    cross join regexp_matches(r.source, '''(RL[0-9]{3})', 'g') m
    where not exists (select from routeledger.errors() e where e.code = m[1])
  $$,
  'each code that a routine raises is in errors()');
select is_empty(
  $$
    select e.code from routeledger.errors() e
    where e.code not in ('RL904', 'RL905', 'RL906') -- the driver's own
      and strpos((select replace(t.source, r.source, '') from text_of t, routine r where r.name = '_errors'), '''' || e.code) = 0
  $$,
  'and each code in errors() is raised somewhere');

select * from finish();
rollback;
