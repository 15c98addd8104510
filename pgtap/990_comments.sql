-- 990, 991 · Comments: every object has one, and those of routines say what they lock and raise.
begin;
\ir common.psql
select plan(14);

create temp view routine as
select p.oid, p.proname::text as name, obj_description(p.oid, 'pg_proc') as comment
from pg_proc p where p.pronamespace = 'routeledger'::regnamespace;

select isnt(obj_description('routeledger'::regnamespace, 'pg_namespace'), null, 'the schema');
select is_empty(
  $$
    select c.relname from pg_class c
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
      and coalesce(obj_description(c.oid, 'pg_class'), '') = ''
  $$,
  'every table and view');
select is_empty(
  $$
    select c.relname, a.attname
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and coalesce(col_description(c.oid, a.attnum), '') = ''
  $$,
  'every column of every table');
select is_empty(
  $$
    select t.typname from pg_type t
    where t.typnamespace = 'routeledger'::regnamespace
      and (t.typtype = 'd' or (t.typtype = 'c' and (select c.relkind = 'c' from pg_class c where c.oid = t.typrelid)))
      and coalesce(obj_description(t.oid, 'pg_type'), '') = ''
  $$,
  'every domain and composite type');
select is_empty(
  $$
    select c.conname from pg_constraint c
    where c.conrelid in ('routeledger.routing_outcomes'::regclass, 'routeledger.inferences'::regclass) and c.contype = 'c'
      and coalesce(obj_description(c.oid, 'pg_constraint'), '') = ''
  $$,
  'every rule of the ledger');
select is_empty($$ select r.name from routine r where coalesce(r.comment, '') = '' $$, 'every routine');
select is_empty(
  $$ select r.name from routine r where r.comment !~ '\nLocks: [^\n]+\. Errors: [^\n]+\.$' $$, 'each says which locks it takes and what it raises, last');
select is_empty(
  $$ select r.name from routine r where r.comment !~ '^[A-Z][^\n]{20,}' $$, 'after a sentence that says what is guaranteed');
select is_empty(
  $$
    select r.name, m[1] from routine r
    cross join regexp_matches(r.comment, '(RL[0-9]{3})', 'g') m
    where not exists (select from routeledger.errors() e where e.code = m[1])
  $$,
  'the codes it names exist');
select is_empty(
  $$
    select r.name from routine r join pg_proc p on p.oid = r.oid
    where p.proname !~ '^_' and p.provolatile = 'v' and p.prosrc ~ '_raise' and r.comment !~ 'Errors: .*RL[0-9]'
  $$,
  'a routine that raises names its codes');
select is_empty(
  $$
    select r.name from routine r
    join pg_proc p on p.oid = r.oid
    where p.proargnames[1] = 'p_rows' and p.proname <> '_rows_at' and r.comment !~ 'RL101, RL107, RL501'
  $$,
  'a set form names those of the call');
select is_empty(
  $$
    select d.description
    from pg_description d
    where (d.objoid, d.classoid) in (
        select p.oid, 'pg_proc'::regclass from pg_proc p where p.pronamespace = 'routeledger'::regnamespace
        union all select c.oid, 'pg_class'::regclass from pg_class c where c.relnamespace = 'routeledger'::regnamespace
        union all select t.oid, 'pg_type'::regclass from pg_type t where t.typnamespace = 'routeledger'::regnamespace)
      and (d.description ~ '^\s|\s$|  |\t' or d.description !~ '[.…]$')
  $$,
  'comments are sentences');

-- units, where a number has one
select is_empty(
  $$
    select c.relname, a.attname, col_description(c.oid, a.attnum)
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and ((a.attname ~ '_ms$' and col_description(c.oid, a.attnum) !~ 'milliseconds')
        or (a.attname ~ '_usd' and col_description(c.oid, a.attnum) !~ 'USD'))
  $$,
  'milliseconds and USD are called so');
-- vocabularies are spelled out
select is_empty(
  $$
    select t.typname, m[1]
    from pg_type t
    join pg_constraint c on c.contypid = t.oid
    cross join regexp_matches(pg_get_constraintdef(c.oid), '''([a-z_]+)''', 'g') m
    where t.typnamespace = 'routeledger'::regnamespace and strpos(obj_description(t.oid, 'pg_type'), m[1]) = 0
  $$,
  'a domain lists its words');

select * from finish();
rollback;
