-- 605 · Unique keys: a table comes to hold the unique index that ON CONFLICT needs, also when it is full of duplicates.
begin;
\ir common.psql
set local client_min_messages = error;
select plan(112);

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
create collation tap605.blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create table blind (id integer primary key, k text collate tap605.blind);
insert into blind values (1, 'a'), (2, 'A'), (3, 'b');
select is(pg_temp.said('blind', 'blind_k', '{k}', 'first id'), 'created 1 -1', 'a collation that is blind to capitals');

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
select is(pg_temp.said('tree', 'tree_up', '{up,k}', 'first id', p_children => 'repoint'), 'created 0', 'no duplicates as long as nothing is repointed');

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
set local role tap605_owner;
create table tap605.owned (id integer primary key, k integer);
insert into tap605.owned values (1, 1), (2, 1);
reset role;
grant select on owned to tap605_other;

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
select is(pg_temp.batches(33), '4 29, 4 30, 5 29, 1 2, 0 0, ', 'in batches, the winner of a key that is cut in two goes on');
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

select * from finish();
rollback;
