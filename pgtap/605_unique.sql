-- 605 · Unique keys: a table comes to hold the unique index that ON CONFLICT needs, also when it is full of duplicates.
begin;
\ir common.psql
set local client_min_messages = error;
select plan(206);

create schema tap605;
create role tap605_owner;
create role tap605_other;
grant usage, create on schema tap605 to tap605_owner;
grant usage on schema tap605 to tap605_other;
set local search_path = tap605, public;

-- outcome, reason, duplicates, rows removed, and `...` where a next step remains
create function pg_temp.said(p_table text, p_name text, p_columns text[], p_keep text default null, p_nulls text default 'distinct', p_where text default null,
  p_form text default 'index', p_children text default 'refuse', p_triggers text default 'refuse', p_label text default null, p_dry_run boolean default false) returns text
language sql volatile
as $$
  select concat_ws(' ', e.outcome, e.reason, e.violations, '-' || (e.detail ->> 'removed'), case when e.next like 'Commit, then %' then '...' when e.next is not null then '?' end)
  from routeledger.ensure_unique(p_table::regclass, p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_children, p_triggers, 'a reason', p_label, p_dry_run => p_dry_run) e
$$;
create function pg_temp.detail(p_table text, p_name text, p_columns text[], p_keep text default null, p_nulls text default 'distinct', p_where text default null,
  p_form text default 'index', p_children text default 'refuse', p_triggers text default 'refuse') returns jsonb
language sql volatile
as $$ select e.detail from routeledger.ensure_unique(p_table::regclass, p_name, p_columns, p_keep, p_nulls, p_where, p_form, p_children, p_triggers, p_dry_run => true) e $$;
-- the rows of a table, in one text
create function pg_temp.held(p_table text) returns text
language plpgsql volatile
as $$
declare
  v text;
begin
  execute format('select string_agg(x.*::text, '' '' order by x.*::text collate "C") from %s x', p_table) into v;
  return v;
end
$$;
-- Undoes the last repair, and says how many rows came back.
create function pg_temp.undone() returns text
language sql volatile
as $$ select concat_ws(' ', u.restored, u.removed, u.changed) from (select max(id) as id from routeledger.repairs where kind = 'collapse' and state <> 'undone') r, routeledger.undo_repair(r.id) u $$;
create function pg_temp.indexes(p_table text) returns text
language sql volatile
as $$ select string_agg(c.relname, ' ' order by c.relname) from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = p_table::regclass $$;

create table plain (id integer primary key, k text, n integer, v json);
insert into plain values (1, 'a', 1, '{"x": 1}'), (2, 'a', 3, '{"x":1}'), (3, 'a', 3, null), (4, 'b', 1, null), (5, null, 1, null), (6, null, 2, null);

-- arguments
select throws_ok($$ select routeledger.ensure_unique(null, 'u', '{k}') $$, 'RL101', 'a required argument is missing', 'no table');
select throws_ok($$ select routeledger.ensure_unique('plain', '', '{k}') $$, 'RL101', 'a required argument is missing', 'no name');
select throws_ok($$ select routeledger.ensure_unique('plain', repeat('x', 64), '{k}') $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a name of 64 bytes');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{}') $$, 'RL101', 'a required argument is missing', 'no columns');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k,NULL}') $$, 'RL101', 'a required argument is missing', 'columns with null in it');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_nulls => 'equal') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown NULLS mode');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_form => 'key') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown form');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_children => 'drop') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown word for children');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_triggers => 'skip') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown word for triggers');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_attempts => 0) $$, 'RL103', 'a number is outside the range allowed for it', 'no attempt');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_strict => null) $$, 'RL101', 'a required argument is missing', 'neither strict nor not');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', 'sum n') $$, 'RL114', 'the precedence cannot be read or does not suit its columns', 'rows are not added up');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', 'greatest nope') $$, 'RL114', 'the precedence cannot be read or does not suit its columns', 'a precedence by no column');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{nope}') $$, 'RL118', 'these columns cannot be a unique key', 'no such column');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{v}') $$, 'RL118', 'these columns cannot be a unique key', 'a json column has no order');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k,K}') $$, 'RL118', 'these columns cannot be a unique key', 'a column twice');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', array['k) , (n']) $$, 'RL118', 'these columns cannot be a unique key', 'two in the place of one');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', array['k || now()::text']) $$, 'RL118', 'these columns cannot be a unique key', 'an expression that is not the same each time');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_where => 'true); drop table plain; --') $$, 'RL116', 'this cannot be the predicate of a constraint', 'a predicate that closes its parenthesis');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_where => 'n') $$, 'RL116', 'this cannot be the predicate of a constraint', 'a predicate that is none');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_where => $q$ '2026-01-02 00:00'::timestamptz > '2026-01-01' $q$) $$, 'RL116', 'this cannot be the predicate of a constraint', 'a time without its zone');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', array['lower(k)'], p_form => 'constraint') $$, 'RL118', 'these columns cannot be a unique key', 'a constraint over an expression');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_form => 'constraint', p_where => 'n > 1') $$, 'RL118', 'these columns cannot be a unique key', 'a constraint over some rows');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', array['k collate "C"'], p_form => 'constraint') $$, 'RL118', 'these columns cannot be a unique key', 'a constraint in another collation');
select throws_ok($$ select routeledger.ensure_unique('pg_class', 'u', '{relname}') $$, 'RL117', 'constraints of this relation cannot be declared here', 'a table of the system');

-- nothing, one and many duplicates
select is(pg_temp.said('plain', 'plain_n_key', '{id,n}'), 'created 0', 'no duplicates: the index is made');
select is(pg_temp.said('plain', 'plain_n_key', '{id,n}'), 'unchanged', 'and made once');
select is(pg_temp.said('plain', 'u', '{k}'), 'refused duplicates 2', 'duplicates, and no word on which of them stays');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_strict => true) $$, 'RL309', 'the constraint was not put in place', 'the same as an error');
select is(pg_temp.said('plain', 'u', '{k}', 'greatest n', p_dry_run => true), 'created 2', 'what it would do');
select is(pg_temp.detail('plain', 'u', '{k}', 'greatest n') - 'table_bytes',
  '{"dry_run": true, "rows": 6, "groups": 1, "duplicates": 2, "largest_group": 3, "sentinel_collisions": 0, "children": [], "triggers": [], "samples": [{"key": ["a"], "rows": 3}]}'::jsonb, 'in numbers');
select is(pg_temp.indexes('plain'), 'plain_n_key plain_pkey', 'a dry run changes nothing');
select pg_temp.held('plain') as plain_before \gset
select is(pg_temp.said('plain', 'u', '{k}', 'greatest n', p_label => 'first'), 'created 2 -2', 'duplicates are collapsed');
select is(pg_temp.held('plain'), '(2,a,3,"{""x"":1}") (4,b,1,) (5,,1,) (6,,2,)', 'the greatest stays, between equals the one that says more; NULLs are not duplicates');
select is((select concat_ws(' ', r.kind, r.target, r.reason, r.state, r.before_count, r.after_count, r.removed, r.details #>> '{index,definition}') from routeledger.repairs r order by id desc limit 1),
  'collapse tap605.plain a reason done 6 4 2 CREATE UNIQUE INDEX u ON tap605.plain USING btree (k)', 'there is a repair with its counts and its index');
select is(pg_temp.said('plain', 'u', '{k}', 'greatest n', p_label => 'second'), 'unchanged', 'again: unchanged');
select is((select string_agg(c.action || ' ' || coalesce(c.label, '-'), ', ' order by c.id) from routeledger.constraint_changes c where c.target = 'tap605.plain' and c.name = 'u'),
  'created first, unchanged second', 'the history has both');
select is(pg_temp.undone(), '2 0 0', 'undone');
select is(pg_temp.held('plain'), :'plain_before', 'every byte is back');
select is(pg_temp.indexes('plain'), 'plain_n_key plain_pkey', 'and the index is gone');
select is(pg_temp.said('plain', 'u', '{k}', 'first n', 'not_distinct'), 'created 3 -3', 'NULLS NOT DISTINCT: NULLs are one key');
select is(pg_temp.held('plain'), '(1,a,1,"{""x"": 1}") (4,b,1,) (5,,1,)', 'the first stays');
select is(pg_temp.said('plain', 'u', '{k}', 'first n'), 'created 0 ...', 'the other NULLS mode is another index');
select is(pg_temp.indexes('plain'), 'plain_n_key plain_pkey u u__new', 'made under another name, while the old one still stands');
select is(pg_temp.said('plain', 'u', '{k}', 'first n'), 'replaced', 'and put in its place');
select is(pg_temp.indexes('plain'), 'plain_n_key plain_pkey u', 'under the name declared');

-- keys
create table odd (id integer generated always as identity primary key, f double precision, m numeric, c text collate "C", g text generated always as (lower(c)) stored, a integer[]);
insert into odd (f, m, c, a) values ('NaN', 1.0, 'A', '{1}'), ('NaN', 1.00, 'a', '{1}'), (0, 'NaN', 'B', null), ('-0', 'NaN', 'b', '{}');
select pg_temp.held('odd') as odd_before \gset
select is(pg_temp.said('odd', 'odd_f', '{f}', 'greatest id'), 'created 2 -2', 'NaN is NaN, and -0 is 0');
select is(pg_temp.undone(), '2 0 0', 'undone, identity and generated columns as well');
select is(pg_temp.held('odd'), :'odd_before', 'to the byte');
select is(pg_temp.said('odd', 'odd_m', '{m}', 'first id', p_dry_run => true), 'created 2', 'numeric 1.0 is 1.00');
select is(pg_temp.said('odd', 'odd_c', '{c}'), 'created 0', 'A is not a');
select is(pg_temp.said('odd', 'odd_g', '{g}', 'first id', p_dry_run => true), 'created 2', 'a generated column');
select is(pg_temp.said('odd', 'odd_l', array['lower(c)'], 'first id'), 'created 2 -2', 'an expression');
select is(pg_temp.said('odd', 'odd_l', array['( LOWER( c ) )'], 'first id'), 'unchanged', 'however it is written');
select is(pg_temp.said('odd', 'another', array['lower(c)']), 'unchanged', 'by whatever name');
select is((select e.detail ->> 'name_found' from routeledger.ensure_unique('odd', 'another', array['lower(c)']) e), 'odd_l', 'which it says');
select is(pg_temp.said('odd', 'the_id', '{id}', p_nulls => 'not_distinct'), 'unchanged', 'a primary key is a unique index, and knows no NULL');
select is(pg_temp.said('odd', 'odd_w', '{f}', null, 'distinct', 'c = ''A'''), 'created 0', 'a partial key');
select is(pg_temp.said('odd', 'odd_w', '{f}', null, 'distinct', '''A'' = c'), 'created 0 ...', 'the predicate is a part of it');
select is(pg_temp.said('odd', 'odd_v', array['f', '(c)::varchar(10)'], null, 'distinct', 'c::varchar in (''A'', ''B'')'), 'created 0', 'what is printed in two ways');
select is(pg_temp.said('odd', 'odd_v', array['f', '(c)::varchar(10)'], null, 'distinct', 'c::varchar in (''A'', ''B'')'), 'unchanged', 'is found in both');
create unique index odd_desc on odd (f desc nulls last, m) include (a);
select is(pg_temp.said('odd', 'x', '{f,m}'), 'unchanged', 'DESC and INCLUDE make no other key');
select is(pg_temp.said('odd', 'x', '{m,f}'), 'created 0', 'the order of the columns does');
select is(pg_temp.said('odd', 'odd_c2', array['c collate "POSIX"']), 'created 0', 'another collation is another index');
create table blind (id integer primary key, k text);
insert into blind values (1, 'a'), (2, 'A'), (3, 'b');
do $$
begin
  create collation tap605.blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  alter table blind alter k type text collate tap605.blind;
exception
  when feature_not_supported then
    alter table blind alter k type char(2); -- a server without ICU: blanks at the end do not count either
    update blind set k = case id when 2 then 'a ' else k end;
end
$$;
select is(pg_temp.said('blind', 'blind_k', '{k}', 'first id'), 'created 1 -1', 'texts that differ and are equal');
select is((select string_agg(id::text, ' ' order by id) from blind), '1 3', 'are one key');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_where => 'current_date > ''today''') $$, 'RL116', 'this cannot be the predicate of a constraint', 'a time that is another each day');
select throws_ok($$ select routeledger.ensure_unique('plain', 'u', '{k}', p_where => '''now''::timestamptz > ''2026-01-01 00:00Z''') $$, 'RL116', 'this cannot be the predicate of a constraint', 'and each time');

-- NULL and what stands for it
create table scoped (id integer primary key, k text, scope text);
insert into scoped values (1, 'a', null), (2, 'a', '*'), (3, 'b', null), (4, 'b', null);
select is(pg_temp.said('scoped', 'scoped_key', array['k', 'coalesce(scope, ''*'')'], 'greatest id'), 'refused sentinel 2', 'NULL and the value that stands for it meet');
delete from scoped where id = 2;
select is(pg_temp.said('scoped', 'scoped_key', array['k', 'coalesce(scope, ''*'')'], 'greatest id', p_dry_run => true), 'created 1', 'where they do not it goes');
select is(pg_temp.detail('scoped', 'scoped_key', array['k', 'coalesce(scope, ''*'')'], 'greatest id') -> 'notes',
  '["NULL in scope counts as ''*'' in this key: add check (scope <> ''*''), so that the two never meet"]'::jsonb, 'with a word of advice');

-- what stands in the way of the name
create table taken (id integer primary key, k integer, n integer);
create unique index taken_k on taken (n);
create index taken_plain on taken (k);
create table points (n integer references taken (id));
select is(pg_temp.said('taken', 'taken_pkey', '{k}'), 'refused name_taken', 'a primary key is not replaced');
select is(pg_temp.said('taken', 'points', '{k}'), 'refused name_taken', 'nor is a table');
select is(pg_temp.said('taken', 'taken_plain', '{k}'), 'created 0 ...', 'an index that is not unique');
select is(pg_temp.said('taken', 'taken_plain', '{k}'), 'replaced', 'is');
alter table taken add constraint taken_defer unique (n, k) deferrable initially deferred;
select is(pg_temp.said('taken', 'taken_defer', '{n,k}'), 'created 0 ...', 'ON CONFLICT cannot use a constraint that can wait');
select is(pg_temp.said('taken', 'taken_defer', '{n,k}', p_form => 'constraint'), 'replaced', 'so it is replaced');
select is((select pg_get_constraintdef(oid) from pg_constraint where conname = 'taken_defer'), 'UNIQUE (n, k)', 'by one that cannot');
alter table taken add constraint taken_ck check (n > 0);
select is(pg_temp.said('taken', 'taken_ck', '{n,k}', p_form => 'constraint'), 'unchanged', 'the same constraint by another name is enough');
select is(pg_temp.said('taken', 'taken_ck', '{k,n}', p_form => 'constraint'), 'refused name_taken', 'a CHECK of that name is not');
create table refers (n integer references taken (n));
select is(pg_temp.said('taken', 'taken_k', '{n,id}'), 'refused referenced', 'a foreign key needs the old one');
create table known (k integer not null, n integer);
create unique index known_k on known (k);
alter table known replica identity using index known_k;
select is(pg_temp.said('known', 'known_k', '{n}'), 'refused replica_identity', 'replicas know the rows by the old one');
create unique index known_n on known (n);
comment on index known_n is 'as it was';
select is(pg_temp.said('known', 'known_n', '{n}', p_form => 'constraint'), 'validated', 'an index becomes the constraint');
select is((select obj_description(oid, 'pg_constraint') from pg_constraint where conname = 'known_n'), 'as it was', 'and what was said of it stays');

-- what a broken build left behind
create table broken (id integer primary key, k integer);
insert into broken values (1, 1), (2, 2);
create unique index broken_k on broken (k);
update pg_index set indisvalid = false where indexrelid = 'broken_k'::regclass;
select is((select routeledger._unique_plan('broken', 'broken_k', '{k}', null, 'distinct', null, 'index') ->> 'state'), 'invalid_index', 'an index that is not valid is not there');
select is(pg_temp.said('broken', 'broken_k', '{k}', p_dry_run => true), 'pending leftovers ...', 'it has to go first');
select is(pg_temp.said('broken', 'broken_k', '{k}'), 'pending leftovers ...', 'and goes');
select is(pg_temp.said('broken', 'broken_k', '{k}'), 'created 0', 'then the index is made');
update pg_index set indisvalid = false, indisready = false where indexrelid = 'broken_k'::regclass;
select is(pg_temp.said('broken', 'broken_k', '{k}') || ', ' || pg_temp.said('broken', 'broken_k', '{k}'), 'pending leftovers ..., created 0', 'one that was not even ready');
create unique index broken_k__fence on broken (k) where id > 2;
select is(pg_temp.said('broken', 'broken_k', '{k}') || ', ' || pg_temp.said('broken', 'broken_k', '{k}'), 'pending leftovers ..., unchanged', 'the fence of an online build goes');

-- foreign keys
create table parent (id integer primary key, k text);
create table child (id integer primary key, parent_id integer references parent on delete cascade, other_id integer references parent on delete set null, v text);
insert into parent values (1, 'a'), (2, 'a'), (3, 'b');
insert into child values (10, 1, 1, 'x'), (11, 2, 1, 'y'), (12, 3, null, 'z');
select pg_temp.held('parent') || pg_temp.held('child') as family_before \gset
select is(pg_temp.said('parent', 'parent_k', '{k}', 'greatest id'), 'refused children 1', 'rows that point to what would go');
select is(pg_temp.detail('parent', 'parent_k', '{k}', 'greatest id') -> 'children',
  '[{"constraint": "child_other_id_fkey", "table": "tap605.child", "rows": 2, "on_delete": "set null", "itself": false},
    {"constraint": "child_parent_id_fkey", "table": "tap605.child", "rows": 1, "on_delete": "cascade", "itself": false}]'::jsonb, 'by constraint');
select is(pg_temp.said('parent', 'parent_k', '{k}', 'greatest id', p_children => 'repoint'), 'created 1 -1', 'they are made to point to what stays');
select is(pg_temp.held('child'), '(10,2,2,x) (11,2,2,y) (12,3,,z)', 'each once, in both columns');
select is(pg_temp.undone(), '1 0 2', 'undone: the row is back, and what pointed to it');
select is(pg_temp.held('parent') || pg_temp.held('child'), :'family_before', 'to the byte');
create unique index child_once on child (parent_id) where v in ('x', 'y');
select is(pg_temp.said('parent', 'parent_k', '{k}', 'greatest id', p_children => 'repoint'), 'refused collision 1', 'a child whose own key would then collide');
select is(pg_temp.held('parent') || pg_temp.held('child'), :'family_before', 'leaves all as it was');
create table tree (id integer primary key, k text, up integer references tree deferrable initially deferred);
insert into tree values (1, 'root', null), (2, 'a', 1), (3, 'a', 1), (4, 'b', 2), (5, 'b', 3), (6, 'c', 2);
select pg_temp.held('tree') as tree_before \gset
select is(pg_temp.said('tree', 'tree_k', '{k}', 'greatest id'), 'refused children 2', 'a table that points to itself');
select is(pg_temp.said('tree', 'tree_k', '{k}', 'first id', p_children => 'repoint'), 'created 2 -2', 'is repointed as well');
select is(pg_temp.held('tree'), '(1,root,) (2,a,1) (4,b,2) (6,c,2)', 'without the rows that go themselves');
select pg_temp.undone();
select is(pg_temp.said('tree', 'tree_k', '{k}', 'greatest id', p_children => 'repoint'), 'created 2 -2', 'the other way round');
select is(pg_temp.held('tree'), '(1,root,) (3,a,1) (5,b,3) (6,c,3)', 'too');
select pg_temp.undone();
select is(pg_temp.held('tree'), :'tree_before', 'undone to the byte');
select is(pg_temp.said('tree', 'tree_up', '{up,k}', 'first id', p_children => 'repoint'), 'refused self_reference 1', 'not where the key itself would change with it');

-- triggers
create table noisy (id integer primary key, k integer);
create table heard (id integer);
insert into noisy values (1, 1), (2, 1);
create function hears() returns trigger language plpgsql as $$ begin insert into heard values (old.id); return old; end $$;
create trigger hears before delete on noisy for each row execute function hears();
select is(pg_temp.said('noisy', 'noisy_k', '{k}', 'first id'), 'refused triggers 1', 'a trigger that would fire');
select is(pg_temp.said('noisy', 'noisy_k', '{k}', 'first id', p_triggers => 'fire'), 'created 1 -1', 'fires when it may');
select is(pg_temp.held('heard'), '(2)', 'with the path of its table');
select pg_temp.undone();
create function keeps() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger keeps before delete on noisy for each row execute function keeps();
select throws_ok($$ select routeledger.ensure_unique('noisy', 'noisy_k', '{k}', 'first id', p_triggers => 'fire') $$, 'RL313', 'a repair does not add up and was rolled back', 'a trigger that keeps the row');

-- partitions
create table parted (id integer, k integer, d date, v text) partition by list (d);
create table parted_1 partition of parted for values in ('2026-01-01');
create table parted_2 (v text, d date, k integer, id integer);
alter table parted attach partition parted_2 for values in ('2026-01-02');
insert into parted values (1, 1, '2026-01-01', 'a'), (2, 1, '2026-01-01', 'b'), (3, 1, '2026-01-02', 'c'), (4, 1, '2026-01-02', 'd');
select pg_temp.held('parted') as parted_before \gset
select is(pg_temp.said('parted', 'parted_k', '{k}', 'first id'), 'refused partition_key', 'the key has to hold the partition key');
select is(pg_temp.said('parted', 'parted_k', '{k,d}', 'first id', p_form => 'constraint'), 'refused partitioned_constraint', 'a partitioned table takes no index for a constraint');
select is(pg_temp.said('parted', 'parted_k', '{k,d}', 'first id'), 'created 2 -2', 'each partition by itself');
select is(pg_temp.said('parted', 'parted_k', '{k,d}', 'first id'), 'unchanged', 'once');
select is(pg_temp.said('parted_1', 'parted_1_k', '{k,d}', 'first id'), 'unchanged', 'a partition has it from its table');
select is(pg_temp.undone() || ' ' || (pg_temp.held('parted') = :'parted_before')::text, '2 0 0 true', 'undone to the byte');

-- whose table, whose rows
grant routeledger_writer to tap605_owner, tap605_other;
-- Runs it as that role, and returns what it returns, or the code and the reason of its error.
create function pg_temp.as_role(p_role text, p_sql text) returns text
language plpgsql volatile
as $$
declare
  v text;
  v_detail text;
begin
  perform set_config('role', p_role, true);
  begin
    execute p_sql into v;
  exception
    when others then
      get stacked diagnostics v_detail = pg_exception_detail;
      v := concat_ws(' ', sqlstate, case when sqlstate like 'RL%' then v_detail::jsonb ->> 'reason' end);
  end;
  perform set_config('role', 'none', true);
  return v;
end
$$;
set local role tap605_owner;
create table tap605.owned (id integer primary key, k integer);
insert into tap605.owned values (1, 1), (2, 1), (3, 2);
reset role;
grant create on schema tap605 to tap605_other;
set local role tap605_other;
create table tap605.theirs (id integer primary key, k integer);
insert into tap605.theirs values (1, 1), (2, 1), (3, 1);
create function tap605.evil(integer) returns integer language plpgsql immutable
as $$ begin raise exception 'evil runs as %', current_user; end $$;
reset role;
grant select, update, delete on owned to tap605_other;
create function pg_temp.ensure(p_keep text default 'first id') returns text
language sql volatile
as $$ select format('select concat_ws('' '', outcome, reason) from routeledger.ensure_unique(%L, %L, %L, %L)', 'tap605.owned', 'owned_k', '{k}', p_keep) $$;
create function pg_temp.collapse(p_table text, p_repair_id bigint default null) returns text
language sql volatile
as $$ select format('select concat_ws('' '', groups, removed, remaining) from routeledger.collapse_duplicates(%L, %L, %L, p_repair_id => %L)', 'tap605.' || p_table, '{k}', 'first id', p_repair_id) $$;
select is(pg_temp.as_role('tap605_other', pg_temp.ensure()), 'refused not_owner', 'only the owner of a table makes its index');
select is(pg_temp.as_role('tap605_other', pg_temp.collapse('owned')), 'RL309 not_owner', 'and collapses its duplicates');

-- what another role has opened, noted or written is relied on by nobody
select pg_temp.as_role('tap605_other', $$ select routeledger._open_repair('collapse', 'tap605.owned', '', '{"unique": "owned_k"}') $$) as forged \gset
select pg_temp.as_role('tap605_other', $$ select routeledger._open_repair('collapse', 'tap605.theirs', '', '{"unique": "theirs_k"}') $$) as mine \gset
select isnt(pg_temp.as_role('tap605_other', $$ select routeledger._open_collapse('tap605.owned', 'owned_k') $$), null, 'one has a repair open');
select is(pg_temp.as_role('tap605_owner', $$ select routeledger._open_collapse('tap605.owned', 'owned_k') $$), null, 'the owner does not go on with it');
select is(routeledger._open_collapse('owned', 'owned_k'), null, 'nor does a superuser');
select is(pg_temp.as_role('tap605_owner', format('select routeledger._note_duplicates(%s, %L, %L, %L)', :'forged', 'tap605.owned', '{1,1}', '{"(0,1)","(0,2)"}')), '42501', 'notes are made in one''s own repair only');
select is(pg_temp.as_role('tap605_owner', format('select routeledger._take_duplicates(%s, 10)::text', :'forged')), '42501', 'and taken from it');
select is(pg_temp.as_role('tap605_other', format('select routeledger._note_duplicates(%s, %L, %L, %L)', :'mine', 'tap605.owned', '{1,1,2}', '{"(0,1)","(0,2)","(0,3)"}')), '', 'rows of another table, noted');
select is(pg_temp.as_role('none', pg_temp.collapse('theirs', :'mine')), '1 2 t', 'are forgotten when somebody else goes on with it');
select is(pg_temp.held('owned'), '(1,1) (2,1) (3,2)', 'and still there');
select is(pg_temp.as_role('none', pg_temp.collapse('owned', :'mine')), 'RL206', 'a repair of one table is none of another');
select is(pg_temp.as_role('none', $$ select routeledger._unique_plan('tap605.owned', 'u', array['(k + tap605.evil(1))'], null, 'distinct', null, 'index') ->> 'state' $$),
  'RL118 it calls tap605.evil(integer), of another role, and would run it with the rights of the caller', 'a function of another role is not run to look at a declaration');
select is(pg_temp.as_role('none', $$ select routeledger._unique_plan('tap605.owned', 'u', '{k}', null, 'distinct', 'k > tap605.evil(1)', 'index') ->> 'state' $$),
  'RL118 it calls tap605.evil(integer), of another role, and would run it with the rights of the caller', 'nor in a predicate');
select is(pg_temp.as_role('none', $$ select routeledger._unique_plan('tap605.owned', 'u', array['(k + lower(''A'')::integer)'], null, 'distinct', null, 'index') ->> 'state' $$),
  'RL118 invalid input syntax for type integer: "a"', 'those of the server are');
select is(pg_temp.as_role('tap605_owner', pg_temp.ensure()), 'created', 'the owner makes the index');
select is(pg_temp.held('owned'), '(1,1) (3,2)', 'and the duplicates go');
select is(pg_temp.as_role('tap605_other', $$ select routeledger._renote_index('tap605.owned', 'owned_k', 'tap605.owned_pkey') $$), '42501', 'another role does not say which index an undo drops');
select is((select r.details #>> '{index,name}' from routeledger.repairs r where r.target = 'tap605.owned' and r.state = 'done'), 'owned_k', 'it stays the one that was made');

-- rows that are not seen
alter table owned enable row level security;
alter table owned force row level security;
drop index owned_k;
select is(pg_temp.as_role('tap605_owner', pg_temp.ensure()), 'refused row_security', 'rows that the caller does not see may be duplicates');
select is(pg_temp.as_role('tap605_owner', pg_temp.collapse('owned')), 'RL309 row_security', 'in batches too');
select is(pg_temp.as_role('tap605_owner', $$ select concat_ws(' ', action, reason) from routeledger.unique_step('tap605.owned', 'owned_k', '{k}', 'first id') $$), 'refused row_security', 'and online');
create function pg_temp.read_only(p_sql text) returns text
language plpgsql volatile
as $$
declare
  v text;
begin
  begin
    perform set_config('transaction_read_only', 'on', true);
    execute p_sql into v;
    raise exception using errcode = 'Z0001', message = v;
  exception
    when sqlstate 'Z0001' then
      return v;
    when sqlstate 'RL309' then
      return sqlstate;
  end;
end
$$;
select is(pg_temp.read_only(pg_temp.ensure()), 'refused read_only', 'a session that may not write');
select is(pg_temp.read_only(pg_temp.collapse('owned')), 'RL309', 'does not collapse anything');
select is(pg_temp.read_only($$ select concat_ws(' ', action, reason) from routeledger.unique_step('tap605.owned', 'owned_k', '{k}', 'first id') $$), 'refused read_only', 'nor take a step');
create foreign data wrapper tap605_wrapper;
create server tap605_server foreign data wrapper tap605_wrapper;
create table far (k integer) partition by list (k);
create foreign table far_1 partition of far for values in (1) server tap605_server;
select is(pg_temp.said('far', 'far_k', '{k}'), 'refused foreign_partition', 'a partition that is elsewhere');
create table near (k integer) partition by list (k);
create table near_1 partition of near for values in (1);
create unique index near_k on near (k);
select is(pg_temp.said('near_1', 'near_1_k_idx', '{k}', p_where => 'k > 0'), 'refused inherited', 'the index of a partition that its table needs');

-- what collapse_duplicates() is told
select throws_ok($$ select routeledger.collapse_duplicates('plain', '{k}', null) $$, 'RL101', 'a required argument is missing', 'which row stays');
select throws_ok($$ select routeledger.collapse_duplicates('plain', '{k}', 'first n', p_children => 'drop') $$, 'RL102', 'an argument is not one of the words allowed for it', 'children');
select throws_ok($$ select routeledger.collapse_duplicates('plain', '{k}', 'first n', p_triggers => 'skip') $$, 'RL102', 'an argument is not one of the words allowed for it', 'triggers');
select throws_ok($$ select routeledger.collapse_duplicates('plain', '{k}', 'first n', p_limit => 1) $$, 'RL103', 'a number is outside the range allowed for it', 'a batch of one');
select throws_ok($$ select routeledger.collapse_duplicates('plain', '{k}', 'first n', p_limit => null) $$, 'RL101', 'a required argument is missing', 'a batch of no size');
insert into scoped values (2, 'a', '*');
select is(pg_temp.as_role('none', $$ select routeledger.collapse_duplicates('tap605.scoped', array['k', 'coalesce(scope, ''*'')'], 'first id')::text $$), 'RL309 sentinel', 'NULL and what stands for it');
select is(pg_temp.as_role('none', $$
    select routeledger._collapse_and_build(routeledger._unique_plan('tap605.scoped', 's', array['k', 'coalesce(scope, ''*'')'], 'first id', 'distinct', null, 'index'),
      'tap605.scoped', 'refuse', 'refuse', null, null, '1 second', 1)::text $$), 'RL309 sentinel', 'looked for under the lock as well');
select is(pg_temp.as_role('none', $$ select routeledger.collapse_duplicates('tap605.tree', '{k}', 'greatest id')::text $$), 'RL309 children', 'rows that are pointed to');
select is(pg_temp.as_role('none', $$ select routeledger.collapse_duplicates('tap605.tree', '{k}', 'greatest id', p_children => 'repoint')::text $$), 'RL309 self_reference', 'a table that points to itself is collapsed at once');
select is(pg_temp.as_role('none', $$ select routeledger.collapse_duplicates('tap605.noisy', '{k}', 'first id')::text $$), 'RL309 triggers', 'triggers');
drop index child_once;
create table loud (id integer primary key, parent_id integer references parent);
insert into loud values (1, 1);
create trigger hears before update on loud for each row execute function hears();
select is(pg_temp.as_role('none', $$ select routeledger.collapse_duplicates('tap605.parent', '{k}', 'greatest id', p_children => 'repoint')::text $$), 'RL309 triggers', 'those of a row that is repointed too');
create table giant (id integer primary key, k integer);
insert into giant select i, 1 from generate_series(1, 10) i;
create function pg_temp.rounds() returns text
language plpgsql volatile
as $$
declare
  v record;
  v_id bigint;
  v_said text := '';
begin
  for v_round in 1 .. 9 loop
    select c.* into v from routeledger.collapse_duplicates('giant', '{k}', 'first id', p_limit => 4, p_repair_id => v_id) c;
    v_id := v.repair_id;
    v_said := v_said || concat_ws(' ', v.groups, v.removed) || ', ';
    exit when not v.remaining;
  end loop;
  return v_said || (select r.state || ' ' || r.removed from routeledger.repairs r where r.id = v_id);
end
$$;
select is(pg_temp.rounds(), '1 3, 1 3, 1 3, 0 0, done 9', 'of a key with more rows than a batch the winner goes on, and the repair is closed in the end');
select is(pg_temp.held('giant'), '(1,1)', 'one is left');
select is(pg_temp.undone(), '9 0 0', 'undone');
select is(pg_temp.as_role('none', $$ select concat_ws(' ', removed, remaining) from routeledger.collapse_duplicates('tap605.plain', '{id}', 'first n') $$), '0 f', 'no duplicates, no repair');

-- the steps of the online mode, as far as they can be seen inside a transaction
create table online (id bigint primary key, k integer);
insert into online select i, i % 10 from generate_series(1, 100) i;
select is((select concat_ws(' ', s.action, s.command) from routeledger.unique_step('online', 'online_k', '{k}') s), 'refused', 'duplicates, and no word on which of them stays');
select is((select concat_ws(' ', s.action, s.command) from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s),
  'run create unique index concurrently online_k__fence on tap605.online USING btree (k) where  (id > ''100''::bigint)', 'first the fence');
create unique index online_k__fence on online (k) where id > 100;
select matches((select concat_ws(' ', s.action, s.command) from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s),
  'collapse select \* from routeledger.collapse_duplicates\(.*p_repair_id => \d+\)', 'then the duplicates');
create function pg_temp.batches(p_limit integer) returns text
language plpgsql volatile
as $$
declare
  v record;
  v_said text := '';
begin
  loop
    select c.* into v from routeledger.collapse_duplicates('online', '{k}', 'first id', p_limit => p_limit, p_repair_id => routeledger._open_collapse('online', 'online_k')) c;
    v_said := v_said || concat_ws(' ', v.groups, v.removed) || ', ';
    exit when not v.remaining;
  end loop;
  return v_said;
end
$$;
select is(pg_temp.batches(33), '3 27, 3 27, 3 27, 1 9, 0 0, ', 'in batches of whole keys');
select is(pg_temp.held('online'), '(1,1) (10,0) (2,2) (3,3) (4,4) (5,5) (6,6) (7,7) (8,8) (9,9)', 'the same rows stay');
select is((select concat_ws(' ', s.action, s.command) from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s),
  'run create unique index concurrently online_k on tap605.online USING btree (k)', 'then the index');
create unique index online_k on online (k);
select is((select concat_ws(' ', s.action, s.command) from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s),
  'run drop index concurrently if exists tap605.online_k__fence', 'then the fence goes');
drop index online_k__fence;
select is((select concat_ws(' ', s.action, s.outcome, s.detail ->> 'removed') from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s), 'done created 90', 'done');
select is((select concat_ws(' ', s.action, s.outcome) from routeledger.unique_step('online', 'online_k', '{k}', 'first id') s), 'done unchanged', 'and again');
select is((select count(*) from pg_locks where locktype = 'advisory' and objsubid = 1 and pid = pg_backend_pid() and (classid::bigint << 32 | objid::bigint) = routeledger._online_key('online', 'online_k')), 0::bigint, 'no lock is left');

-- what is handed back to unique_step()
create table steps (id bigint primary key, k integer, n integer);
insert into steps values (1, 1, 1), (2, 1, 2), (3, 2, 1);
create function pg_temp.step(p_state jsonb, p_table text default 'steps', p_keep text default 'first id', p_form text default 'index', p_children text default 'refuse', p_name text default 'steps_k', p_columns text[] default '{k}') returns text
language sql volatile
as $$
  select concat_ws(' ', s.action, regexp_replace(s.command, '\(p_table.*', ''), s.outcome, s.reason)
  from routeledger.unique_step(p_table, p_name, p_columns, p_keep, p_form => p_form, p_children => p_children, p_attempts => 1, p_state => p_state) s
$$;
create function pg_temp.failed(p_state jsonb, p_action text, p_code text, p_detail jsonb default null) returns jsonb
language sql immutable
as $$ select p_state || jsonb_build_object('last', jsonb_build_object('action', p_action, 'error', jsonb_build_object('sqlstate', p_code, 'message', 'm', 'detail', p_detail::text, 'constraint', 'c'))) $$;
select is((pg_temp.caught($$ select routeledger.unique_step('steps', 'steps_k', '{k}', p_state => '[]') $$)).code, 'RL107', 'a state that is none');
select is((pg_temp.caught($$ select routeledger.unique_step('steps', 'steps_k', '{k}', p_state => null) $$)).code, 'RL101', 'no state');
select throws_ok($$ select routeledger.unique_step('steps', 'steps_k', '{k}', p_strict => true) $$, 'RL309', 'the constraint was not put in place', 'a refusal as an error');
select is(pg_temp.step('{}'), 'run create unique index concurrently steps_k__fence on tap605.steps USING btree (k) where  (id > ''3''::bigint)', 'a fence first');
select is(pg_temp.step(pg_temp.failed('{"doing": "fence"}', 'run', '23505')), 'collapse select * from routeledger.collapse_duplicates', 'where it cannot stand it goes without');
select is(pg_temp.step(pg_temp.failed('{"no_fence": true}', 'collapse', '40P01')), 'collapse select * from routeledger.collapse_duplicates', 'a deadlock: once more');
select throws_ok($$ select pg_temp.step(pg_temp.failed('{"no_fence": true, "tries": 10}', 'collapse', '55P03')) $$, '55P03', 'the lock on the table could not be had in time', 'but not for ever');
select is(pg_temp.step(pg_temp.failed('{}', 'collapse', 'RL309', '{"reason": "children"}')), 'refused refused children', 'what a batch refuses');
select is(pg_temp.step(pg_temp.failed('{}', 'collapse', '23503')), 'refused refused collision', 'what its tables refuse');
select is(pg_temp.step('{"last": {"action": "run", "row": {"outcome": "refused", "reason": "sentinel", "detail": {}}}}'), 'refused refused sentinel', 'what the locked mode refuses');
select is(pg_temp.step('{"surveyed": true, "remaining": true, "no_fence": true, "last": {"action": "collapse", "row": {"removed": 10, "remaining": true}}}'),
  'collapse select * from routeledger.collapse_duplicates', 'the next batch');
select is(pg_temp.step('{"surveyed": true, "remaining": true, "short": 4, "last": {"action": "collapse", "row": {"removed": 1, "remaining": true}}}'),
  'run create unique index concurrently steps_k on tap605.steps USING btree (k)', 'others make new ones all the time: the build may fail for the last');
select is(pg_temp.step(pg_temp.failed('{"surveyed": true, "remaining": false, "no_fence": true, "doing": "build"}', 'run', '23505')), 'collapse select * from routeledger.collapse_duplicates', 'a build that meets a duplicate');
select is(pg_temp.step(pg_temp.failed('{"surveyed": true, "remaining": false, "no_fence": true, "doing": "build", "rounds": 4}', 'run', '23505')), 'run select * from routeledger.ensure_unique', 'five times');
select is(pg_temp.step(pg_temp.failed('{"surveyed": true, "remaining": false, "doing": "build"}', 'run', '23505'), p_keep => null), 'refused refused duplicates', 'and nobody says which stays');
create unique index steps_k on steps (n, k);
select is(pg_temp.step('{"surveyed": true, "remaining": false}'), 'run create unique index concurrently steps_k__new on tap605.steps USING btree (k)', 'beside another of its name');
delete from steps where id = 2;
create unique index steps_k__new on steps (k);
select is(pg_temp.step('{}'), 'run select * from routeledger.ensure_unique', 'which is swapped');
update pg_index set indisvalid = false where indexrelid = 'steps_k__new'::regclass;
select is(pg_temp.step('{}'), 'run drop index concurrently if exists tap605.steps_k__new', 'unless it is not valid');
drop index steps_k, steps_k__new;
create unique index steps_k on steps (k);
select is(pg_temp.step('{}', p_form => 'constraint'), 'run select * from routeledger.ensure_unique', 'an index becomes a constraint');
select is(pg_temp.step('{"built": true, "doing": "finish", "outcome": "replaced", "last": {"action": "run", "row": {"outcome": "created", "detail": {"removed": 1}}}}'), 'done replaced', 'what it comes to in the end');
select is(pg_temp.step('{}', p_name => 'another'), 'done unchanged', 'under whatever name');
select is(pg_temp.step('{}', 'tree', 'greatest id', p_children => 'repoint', p_name => 'tree_s'), 'refused refused self_reference', 'a table that points to itself');
create table parted_steps (k integer) partition by list (k);
create table parted_steps_1 partition of parted_steps for values in (1);
select matches(pg_temp.step('{}', 'parted_steps', p_keep => null, p_name => 'parted_k'), '^run create unique index concurrently parted_k_[0-9a-f]{12} on tap605.parted_steps_1 USING btree \(k\)$', 'leaf by leaf');
create unique index parted_k on only parted_steps (k);
select is(pg_temp.step('{}', 'parted_steps', p_keep => null, p_name => 'parted_k'), 'run select * from routeledger.ensure_unique', 'an index of the root that was never finished goes under a lock');
create table uuids (id uuid primary key, k integer);
insert into uuids values ('00000000-0000-4000-8000-000000000001', 1), ('00000000-0000-4000-8000-000000000002', 1);
select is(pg_temp.step('{}', 'uuids', p_name => 'uuids_k'), 'collapse select * from routeledger.collapse_duplicates', 'a primary key that does not grow: no fence');

-- what was built online, by a client that did not come to say so
create table quiet (id integer primary key, k integer);
insert into quiet values (1, 1), (2, 1);
create function pg_temp.collapsed(p_name text) returns bigint
language plpgsql volatile
as $$
declare
  v_id bigint := routeledger._open_repair('collapse', 'quiet', '', jsonb_build_object('unique', p_name));
begin
  perform from routeledger.collapse_duplicates('quiet', '{k}', 'first id', p_repair_id => v_id);
  execute format('create unique index %I on quiet (k)', p_name);
  return v_id;
end
$$;
select pg_temp.collapsed('quiet_k') as quiet \gset
select is((select concat_ws(' ', e.outcome, e.detail ->> 'removed', (e.detail ->> 'repair_id')::bigint = :quiet) from routeledger.ensure_unique('quiet', 'quiet_k', '{k}', 'first id') e), 'unchanged 1 t', 'the next call closes its repair');
select is((select r.state || ' ' || (r.details #>> '{index,name}') from routeledger.repairs r where r.id = :quiet), 'done quiet_k', 'and notes the index');
select is(pg_temp.undone(), '1 0 0', 'which goes when the rows come back');
select pg_temp.collapsed('quiet_c') as quiet \gset
select is(pg_temp.said('quiet', 'quiet_c', '{k}', 'first id', p_form => 'constraint'), 'created -1', 'as a constraint too');
select is((select r.details #>> '{index,constraint}' from routeledger.repairs r where r.id = :quiet), 'quiet_c', 'which is noted');

-- names and triggers in the way
create table hedged (id integer primary key, _rl_a integer, _rl1_b integer);
insert into hedged values (1, 1, 1), (2, 1, 2);
select is(pg_temp.said('hedged', repeat('ä', 31), '{_rl_a}', 'greatest _rl1_b'), 'created 1 -1', 'columns that begin as our own names do, and a name of 62 bytes');
select is(pg_temp.said('hedged', repeat('ä', 31), '{_rl1_b}'), 'created 0 ...', 'beside which another is made');
select is(pg_temp.indexes('hedged'), 'hedged_pkey ' || repeat('ä', 29) || '__new ' || repeat('ä', 31), 'under a name that is shorter');
create table parent_of_quiet (id integer primary key, k integer);
insert into parent_of_quiet values (1, 1), (2, 1);
create table stubborn (id integer primary key, up integer references parent_of_quiet);
insert into stubborn values (1, 2);
create trigger keeps before update on stubborn for each row execute function keeps();
select throws_ok($$ select routeledger.ensure_unique('parent_of_quiet', 'parent_of_quiet_k', '{k}', 'first id', p_children => 'repoint', p_triggers => 'fire') $$,
  'RL313', 'a repair does not add up and was rolled back', 'a trigger that keeps a row from being repointed');
select is(pg_temp.held('stubborn') || pg_temp.held('parent_of_quiet'), '(1,2)(1,1) (2,1)', 'leaves all as it was');

-- notes of what is gone
create table shrinking (k integer, d integer, id integer) partition by list (d);
create table shrinking_1 partition of shrinking for values in (1);
create table shrinking_2 partition of shrinking for values in (2);
insert into shrinking select 1, d, i from generate_series(1, 2) d, generate_series(1, 4) i;
select is((select concat_ws(' ', c.groups, c.removed, c.remaining) from routeledger.collapse_duplicates('shrinking', '{k,d}', 'first id', p_limit => 2) c), '1 1 t', 'one batch');
select max(id) as shrinking from routeledger.repairs \gset
drop table shrinking_1;
create function pg_temp.go_on(p_id bigint) returns text
language plpgsql volatile
as $$
declare
  v record;
  v_removed bigint := 0;
begin
  for v_round in 1 .. 9 loop
    select c.* into v from routeledger.collapse_duplicates('shrinking', '{k,d}', 'first id', p_limit => 2, p_repair_id => p_id) c;
    v_removed := v_removed + v.removed;
    exit when not v.remaining;
  end loop;
  return concat_ws(' ', v_removed, v.remaining);
end
$$;
select is(pg_temp.go_on(:shrinking), '3 f', 'a partition that is dropped meanwhile is forgotten');
select is((select count(*) from routeledger.duplicate_rows d join routeledger.repairs r on r.id = d.repair_id and r.state = 'open' where r.target like 'tap605.%'), 0::bigint, 'no note is left');
create table renewed (id integer primary key, k integer);
select from routeledger._image_of(routeledger._open_repair('collapse', 'renewed', '', '{"unique": "renewed_k"}'), 'renewed');
select isnt(routeledger._open_collapse('renewed', 'renewed_k'), null, 'an open repair is gone on with');
alter table renewed add column n integer;
select is(routeledger._open_collapse('renewed', 'renewed_k'), null, 'but not when its images have other columns');

select * from finish();
rollback;
