-- 610 · Repairs: orphans found and linked, constraints and rows put back, and what stands in the way.
begin;
\ir common.psql
set local client_min_messages = error;
select plan(157);

create schema tap610;
create role tap610_owner;
create role tap610_admin;
create role tap610_writer;
create role tap610_bound;
grant usage, create on schema tap610 to tap610_owner;
grant usage on schema tap610 to tap610_writer;
grant routeledger_writer to tap610_owner, tap610_writer;
grant routeledger_admin to tap610_admin, tap610_bound;
set local search_path = tap610, public;

-- Removes rows (p_removed) and changes others (p_changed, p_set) of a table as a repair, and returns its id.
create function pg_temp.repair(p_table regclass, p_removed text default 'false', p_changed text default 'false', p_set text default '', p_kept text default 'false') returns bigint
language plpgsql volatile
as $$
declare
  v_id bigint := routeledger._open_repair('collapse', p_table, 'a test');
  v_columns text := routeledger._image_columns(p_table, 't');
  v_image text;
  v_before bigint;
  v_after bigint;
  v_removed bigint;
  v_changed bigint := 0;
begin
  execute format('select count(*) from %s', p_table) into v_before;
  select image::text into v_image from routeledger._image_of(v_id, p_table);
  execute format('with d as (delete from %s t where %s returning %s) insert into %s select d.*, row_number() over (), ''removed'' from d', p_table, p_removed, v_columns, v_image);
  get diagnostics v_removed = row_count;
  execute format('insert into %s select %s, 1000 + row_number() over (order by t.ctid), ''before'' from %s t where %s', v_image, v_columns, p_table, p_changed);
  if p_set <> '' then
    execute format(
      'with o as materialized (select t.ctid as tid, row_number() over (order by t.ctid) as _n from %1$s t where %2$s),
        u as (update %1$s t set %3$s from o where o.tid = t.ctid returning %4$s, o._n) insert into %5$s select %6$s, 1000 + _n, ''after'' from u',
      p_table, p_changed, p_set, v_columns, v_image, routeledger._image_columns(p_table));
    get diagnostics v_changed = row_count;
  end if;
  execute format('insert into %s select %s, 5000 + row_number() over (), ''kept'' from %s t where %s', v_image, v_columns, p_table, p_kept);
  execute format('select count(*) from %s', p_table) into v_after;
  perform routeledger._close_repair(v_id, v_before, v_after, v_removed, v_changed, 0, '{}');
  return v_id;
end
$$;
create function pg_temp.rows_of(p_table regclass) returns text
language plpgsql stable
as $$
declare
  v text;
begin
  execute format('select string_agg(t::text, '' '' order by t::text collate "C") from %s t', p_table) into v;
  return v;
end
$$;
-- What an undo did: restored removed changed, and the reasons of its conflicts.
create function pg_temp.undo(p_id bigint, p_force boolean default false, p_dry boolean default false) returns text
language sql volatile
as $$
  select concat_ws(' ', u.restored, u.removed, u.changed, (select string_agg(e ->> 'reason', ',') from jsonb_array_elements(u.conflicts) e))
  from routeledger.undo_repair(p_id, p_force, null, p_dry) u
$$;
-- The reasons that a refused undo gives.
create function pg_temp.reasons(p_sql text) returns text
language sql volatile
as $$
  select c.code || ' ' || (select string_agg(e ->> 'reason', ',') from jsonb_array_elements(c.detail -> 'rows') e) || ' ' || coalesce(c.detail ->> 'can_be_forced', '')
  from pg_temp.caught(p_sql) c
$$;
create function pg_temp.last() returns bigint language sql stable as $$ select max(id) from routeledger.repairs $$;

-- arguments
select throws_ok('select routeledger.undo_repair(null)', 'RL101', 'a required argument is missing', 'no id');
select throws_ok('select routeledger.undo_repair(1, null)', 'RL101', 'a required argument is missing', 'neither forced nor not');
select throws_ok('select routeledger.undo_repair(1, p_dry_run => null)', 'RL101', 'a required argument is missing', 'neither dry nor not');
select throws_ok('select routeledger.undo_repair(0)', 'RL206', 'there is no such repair', 'no such repair');
select throws_ok('select routeledger.show_repair(null)', 'RL101', 'a required argument is missing', 'nothing to show');
select throws_ok('select routeledger.show_repair(1, null)', 'RL101', 'a required argument is missing', 'no limit');
select throws_ok('select routeledger.show_repair(1, 0)', 'RL103', 'a number is outside the range allowed for it', 'a limit of 0');
select throws_ok('select routeledger.show_repair(0)', 'RL206', 'there is no such repair', 'no such repair to show');

-- an undo, and its undo
create table keyed (id integer primary key, v numeric, j json, d integer generated always as (id * 2) stored, n integer generated always as identity);
insert into keyed (id, v, j) select i, i * 1.10, '{"a" : 1, "a":2}' from generate_series(1, 6) i;
create temporary table tap610_kept as select pg_temp.rows_of('keyed') as r;
select pg_temp.repair('keyed', 'id in (1, 2)', 'id in (3, 4)', 'v = 0, j = ''[]''', 'id = 5') as r \gset
create temporary table tap610_repaired as select pg_temp.rows_of('keyed') as r;
select is(pg_temp.undo(:r, false, true), '2 0 2', 'a dry run says what would be done');
select is(pg_temp.rows_of('keyed'), (select r from tap610_repaired), 'and does nothing');
select is((select count(*) from routeledger.repairs where undoes = :r), 0::bigint, 'nor is it entered');
select is(pg_temp.undo(:r), '2 0 2', 'the undo does it');
select is(pg_temp.rows_of('keyed'), (select r from tap610_kept), 'every row is what it was, generated and identity columns too');
select results_eq(
  format('select state, undone_by from routeledger.repair_history where id = %s', :r),
  $$ select 'undone', pg_temp.last() $$, 'it is marked as undone');
select results_eq(
  $$ select kind, state, reason, before_count, after_count, removed, changed, added, undoes from routeledger.repair_history where id = pg_temp.last() $$,
  format($$ values ('undo', 'done', 'undo of repair %1$s', 4::bigint, 6::bigint, 0::bigint, 2::bigint, 2::bigint, %1$s::bigint) $$, :r), 'by a repair');
select throws_ok(format('select routeledger.undo_repair(%s)', :r), 'RL312', 'this repair has been undone already', 'once');
select is((select c.detail from pg_temp.caught(format('select routeledger.undo_repair(%s)', :r)) c),
  jsonb_build_object('repair_id', :r, 'undone_by', pg_temp.last()), 'DETAIL says by which one');
select is(pg_temp.undo(pg_temp.last()), '0 2 2', 'the undo of the undo is the repair again');
select is(pg_temp.rows_of('keyed'), (select r from tap610_repaired), 'byte for byte');
select is(pg_temp.undo(pg_temp.last()), '2 0 2', 'and so on');
select is(pg_temp.undo(pg_temp.last()), '0 2 2', 'and so on');

-- what is shown of it
select results_eq(
  format('select target, row_no, what, row_text from routeledger.show_repair(%s)', :r),
  $$
    values ('tap610.keyed', 1::bigint, 'removed', '(1,1.10,"{""a"" : 1, ""a"":2}",2,1)'),
           ('tap610.keyed', 2, 'removed', '(2,2.20,"{""a"" : 1, ""a"":2}",4,2)'),
           ('tap610.keyed', 5001, 'kept', '(5,5.50,"{""a"" : 1, ""a"":2}",10,5)'),
           ('tap610.keyed', 1001, 'before', '(3,3.30,"{""a"" : 1, ""a"":2}",6,3)'),
           ('tap610.keyed', 1001, 'after', '(3,0,[],6,3)'),
           ('tap610.keyed', 1002, 'before', '(4,4.40,"{""a"" : 1, ""a"":2}",8,4)'),
           ('tap610.keyed', 1002, 'after', '(4,0,[],8,4)')
  $$, 'a repair shows its rows');
select is((select count(*) from routeledger.show_repair(:r, 3)), 3::bigint, 'as many as asked for');

-- changed since
savepoint since;
update keyed set v = 7 where id = 3;
delete from keyed where id = 4;
insert into keyed (id, v, j, n) overriding system value values (1, 99, '1', 1);
update keyed set v = 8 where id = 5;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', pg_temp.last())), 'RL310 changed,gone,changed,taken true', 'rows that changed, went, or came are in the way');
select is(pg_temp.undo(pg_temp.last(), false, true), '2 0 2 changed,gone,changed,taken', 'a dry run lists them');
select results_eq(
  format($$
    select e - 'row_no' from pg_temp.caught('select routeledger.undo_repair(%s)') c, jsonb_array_elements(c.detail -> 'rows') with ordinality u (e, n) order by n limit 2
  $$, pg_temp.last()),
  $$ values ('{"table": "tap610.keyed", "reason": "changed", "expected": "(3,0,[],3)", "found": "(3,7,[],3)"}'::jsonb),
            ('{"table": "tap610.keyed", "reason": "gone", "expected": "(4,0,[],4)", "found": null}') $$, 'each as it was left and as it is');
set local role tap610_writer;
select throws_ok(format('select routeledger.undo_repair(%s)', :r), '42501', 'permission denied: a repair is seen and undone by the role that made it, the owner of its table, or an admin',
  'nor is it undone by just anybody');
select throws_ok(format('select routeledger.show_repair(%s)', :r), '42501', 'permission denied: a repair is seen and undone by the role that made it, the owner of its table, or an admin', 'or shown to them');
reset role;
create temporary table tap610_since as select pg_temp.rows_of('keyed') as r;
select is(pg_temp.undo(pg_temp.last(), true), '2 0 2 changed,gone,changed,taken', 'forced, it overwrites them');
select is(
  (select string_agg(concat_ws(':', k.id, k.v), ' ' order by k.id) from keyed k), '1:1.10 2:2.20 3:3.30 4:4.40 5:8 6:6.60', 'a kept row is left as it is');
select is((select details ->> 'forced' from routeledger.repairs where id = pg_temp.last()), '4', 'and says over how many');
select is(pg_temp.undo(pg_temp.last()), '0 2 2', 'what was overwritten is in the images as well');
select is(pg_temp.rows_of('keyed'), (select r from tap610_since), 'and comes back');
rollback to since;

-- another shape of the table
savepoint shape;
alter table keyed add column more text default 'm';
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', pg_temp.last())), 'RL310 columns_added true', 'a column that was added is in the way');
select is(pg_temp.undo(pg_temp.last(), false, true), '2 0 2 columns_added', 'as a dry run says');
select is(pg_temp.undo(pg_temp.last(), true), '2 0 2 columns_added', 'forced, it gets its default');
select is((select count(*) from keyed where more = 'm'), 6::bigint, 'in every row');
rollback to shape;
alter table keyed alter column v type text;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s, true)', pg_temp.last())), 'RL310 columns_changed false', 'another type cannot be forced');
select is(pg_temp.undo(pg_temp.last(), false, true), '0 0 0 columns_changed', 'as a dry run says');
rollback to shape;
alter table keyed drop column v;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s, true)', pg_temp.last())), 'RL310 columns_changed false', 'nor a column that is gone');
rollback to shape;
alter table keyed rename to keyed_before;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s, true)', pg_temp.last())), 'RL310 table_missing false', 'nor a table that is gone');
rollback to shape;
alter table keyed add constraint low check (id > 2);
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s, true)', pg_temp.last())), 'RL310 refused false', 'nor what the table refuses');
select is(
  (select e - 'message' - 'detail' from pg_temp.caught(format('select routeledger.undo_repair(%s, true)', pg_temp.last())) c, jsonb_array_elements(c.detail -> 'rows') e),
  '{"table": "tap610.keyed", "reason": "refused", "sqlstate": "23514", "constraint": "low"}'::jsonb, 'DETAIL says by what');
rollback to shape;
alter table keyed add constraint "LOW" check (v < 2 and j::text <> E'\\') not valid;
comment on constraint "LOW" on keyed is 'less';
select is(pg_temp.undo(pg_temp.last()), '2 0 2', 'but what is not valid has let such rows be, and lets them come back');
select is(pg_temp.rows_of('keyed'), (select r from tap610_kept), 'as they were');
select results_eq(
  $$ select pg_get_constraintdef(c.oid) collate "C", obj_description(c.oid) collate "C", r.details -> 'suspended'
     from pg_constraint c, routeledger.repairs r where c.conname = 'LOW' and r.id = pg_temp.last() $$,
  $$ values ('CHECK (((v < (2)::numeric) AND ((j)::text <> ''\''::text))) NOT VALID' collate "C", 'less' collate "C", '[{"table": "tap610.keyed", "constraint": "LOW"}]'::jsonb) $$,
  'without losing the constraint');
select throws_ok($$ insert into keyed (id, v) values (100, 3) $$, '23514', null, 'which holds again');
rollback to shape;

-- no key: equal rows are paired
create table bare (a integer, b json);
insert into bare select i % 2, '{}' from generate_series(1, 6) i;
insert into bare values (1, '{ }'), (null, null), (null, null);
create temporary table tap610_bare as select pg_temp.rows_of('bare') as r;
select pg_temp.repair('bare', 'a = 0', 'a = 1 or a is null', 'a = 1', 'false') as r \gset
select is(pg_temp.undo(:r), '3 0 6', 'rows that are equal are told apart by nothing');
select is(pg_temp.rows_of('bare'), (select r from tap610_bare), 'and each comes back as often as it was there');
select is(pg_temp.undo(pg_temp.last()), '0 3 6', 'and goes as often');
update bare set b = '{"x": 1}' where b::text = '{ }';
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', pg_temp.last())), 'RL310 gone true', 'a row that changed is gone');
select is(pg_temp.undo(pg_temp.last(), true), '4 0 5 gone', 'forced, it is added as it was');

-- inheritance and partitions
create table parent (id integer primary key, v integer);
create table child () inherits (parent);
insert into parent values (1, 1), (2, 2);
insert into child values (1, 1);
select pg_temp.repair('parent', 'id = 2 and tableoid = ''parent''::regclass') as r \gset
select is(pg_temp.undo(:r), '1 0 0', 'tables that inherit are left alone');
create table parts (k integer, t text, primary key (k)) partition by range (k);
create table parts_b (t text, extra text, k integer not null);
alter table parts_b drop column extra;
create table parts_a partition of parts for values from (0) to (10);
alter table parts attach partition parts_b for values from (10) to (20);
insert into parts select i, 'p' || i from generate_series(1, 19) i;
create temporary table tap610_parts as select pg_temp.rows_of('parts') as r;
select routeledger._open_repair('orphans', 'parts', 'moves') as r \gset
select image::text as image from routeledger._image_of(:r, 'parts') \gset
insert into :image select k, t, 1, 'before' from parts where k = 3;
update parts set t = 'moved' where k = 3;
insert into :image select k, t, 1, 'after' from parts where k = 3;
with d as (delete from parts where k > 12 returning k, t) insert into :image select k, t, k, 'removed' from d;
select routeledger._close_repair(:r, 19, 12, 7, 1, 0, '{}');
select is(pg_temp.undo(:r), '7 0 1', 'rows of partitions find their place');
select is(pg_temp.rows_of('parts'), (select r from tap610_parts), 'whatever the order of their columns');

-- an unfinished repair of many steps: a row that was touched twice, one that was kept and went
create table steps (id integer primary key, v integer);
insert into steps select i, 0 from generate_series(1, 5) i;
create temporary table tap610_steps as select pg_temp.rows_of('steps') as r;
select routeledger._open_repair('collapse', 'steps', 'in steps') as r \gset
select image::text as image from routeledger._image_of(:r, 'steps') \gset
insert into :image select id, v, 1, 'kept' from steps where id in (1, 2);
with d as (delete from steps where id = 5 returning *) insert into :image select id, v, 2, 'removed' from d;
insert into :image select id, v, 3, 'before' from steps where id = 3;
update steps set v = 1 where id = 3;
insert into :image select id, v, 3, 'after' from steps where id = 3;
insert into :image select id, v, 4, 'before' from steps where id = 3;
update steps set v = 2 where id = 3;
insert into :image select id, v, 4, 'after' from steps where id = 3;
with d as (delete from steps where id = 1 returning *) insert into :image select id, v, 5, 'removed' from d;
insert into :image select id, v, 6, 'kept' from steps where id = 2;
savepoint between;
select is(pg_temp.undo(:r), '2 0 1', 'an open repair is undone as well, by what it did in the end');
select is(pg_temp.rows_of('steps'), (select r from tap610_steps), 'all its steps');
select throws_ok(format('select routeledger._image_of(%s, ''steps'')', :r), 'RL206', 'there is no such repair', 'and does not go on');
rollback to between;
insert into :image values (3, 7, 8, 'before');
update steps set v = 9 where id = 3;
insert into :image values (3, 9, 8, 'after');
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)), 'RL310 changed true', 'a row that somebody else changed between two steps is in the way');
rollback to between;
-- without a key
create table loose (a integer);
insert into loose values (1), (1), (2);
select routeledger._open_repair('collapse', 'loose', 'in steps') as r \gset
select image::text as image from routeledger._image_of(:r, 'loose') \gset
insert into :image values (1, 1, 'kept'), (2, 2, 'kept');
delete from loose where ctid in (select min(ctid) from loose where a = 1);
insert into :image values (1, 3, 'removed'), (2, 4, 'kept');
select is(pg_temp.undo(:r), '1 0 0', 'rows that were kept more than once count once');

-- foreign keys and triggers
create table owners (id integer primary key);
create table pets (id integer primary key, owner integer references owners on delete cascade, boss integer references pets);
insert into owners values (1), (2), (3);
insert into pets values (1, 1, null), (2, 2, 1), (3, 3, 1);
create temporary table tap610_pets as select pg_temp.rows_of('owners') || pg_temp.rows_of('pets') as r;
select routeledger._open_repair('collapse', 'owners', 'one owner') as r \gset
select image::text as image from routeledger._image_of(:r, 'owners') \gset
select image::text as kids from routeledger._image_of(:r, 'pets') \gset
insert into :kids select p.*, p.id, 'before' from pets p where owner in (2, 3);
update pets set owner = 1 where owner in (2, 3);
insert into :kids select p.*, p.id, 'after' from pets p where p.id in (2, 3);
with d as (delete from owners where id in (2, 3) returning id) insert into :image select id, id, 'removed' from d;
insert into :image values (1, 100, 'kept');
select routeledger._close_repair(:r, 3, 1, 2, 2, 0, '{}');
select is(pg_temp.undo(:r), '2 0 2', 'parents come back before their children');
select is(pg_temp.rows_of('owners') || pg_temp.rows_of('pets'), (select r from tap610_pets), 'and all are as they were');
savepoint family;
insert into pets values (4, 3, null);
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', pg_temp.last())), 'RL310 referenced false', 'no row goes that others have come to refer to');
select is(
  (select e -> 'by' from pg_temp.caught(format('select routeledger.undo_repair(%s)', pg_temp.last())) c, jsonb_array_elements(c.detail -> 'rows') e),
  '[{"constraint": "pets_owner_fkey", "table": "tap610.pets", "rows": 1}]'::jsonb, 'DETAIL says by which key');
rollback to family;
select is(pg_temp.undo(pg_temp.last()), '0 2 2', 'children go elsewhere before their parents go');
create function tap610.meddle() returns trigger language plpgsql as $$ begin new.v := new.v + 1; return new; end $$;
create trigger meddle before insert or update on steps for each row execute function tap610.meddle();
select pg_temp.repair('steps', 'id = 2') as r \gset
select throws_ok(format('select routeledger.undo_repair(%s)', :r), 'RL313', 'a repair does not add up and was rolled back', 'a trigger that changes what is restored is noticed');
select is((select c.detail -> 'triggers' from pg_temp.caught(format('select routeledger.undo_repair(%s)', :r)) c), '["meddle"]'::jsonb, 'and named');
drop trigger meddle on steps;
create function tap610.meddle_after() returns trigger language plpgsql as $$ begin update tap610.steps set v = v + 1 where id = new.id; return null; end $$;
create trigger meddle after insert on steps for each row execute function tap610.meddle_after();
select throws_ok(format('select routeledger.undo_repair(%s)', :r), 'RL313', 'a repair does not add up and was rolled back', 'afterwards too');
drop trigger meddle on steps;

-- the index goes with the repair
create table dups (id integer primary key, s text);
insert into dups values (1, 'x'), (2, 'x'), (3, 'y');
select pg_temp.repair('dups', 'id = 2') as r \gset
create unique index dups_key on dups (s);
comment on index dups_key is 'one of each';
select routeledger._note_index(:r, 'dups_key');
savepoint index;
drop index dups_key;
create index dups_key on dups (s);
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)), 'RL310 index_changed true', 'another index of that name is in the way');
rollback to index;
drop index dups_key;
select is(pg_temp.undo(:r), '1 0 0', 'none is not');
rollback to index;
create table refers (s text references dups (s));
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)), 'RL310 refused false', 'one that a foreign key needs stays');
rollback to index;
select is(pg_temp.undo(:r), '1 0 0', 'the index goes');
select is(to_regclass('dups_key'), null, 'with its repair');
select is(pg_temp.undo(pg_temp.last()), '0 1 0', 'and comes back');
select results_eq(
  $$ select pg_get_indexdef('tap610.dups_key'::regclass) collate "C", obj_description('tap610.dups_key'::regclass, 'pg_class') collate "C" $$,
  $$ values ('CREATE UNIQUE INDEX dups_key ON tap610.dups USING btree (s)' collate "C", 'one of each' collate "C") $$, 'with the undo of the undo, as it was');
select is(pg_temp.undo(pg_temp.last()), '1 0 0', 'that is undone like the first');
alter table parts add column u text;
create unique index parts_key on parts (k, u);
select routeledger._index_statements('parts', routeledger._live_index('parts', 'parts_key'), true) as s \gset
select ok(:'s' not like '%ONLY%', 'the index of a partitioned table is made again on its partitions');

-- who may undo
create table theirs (id integer primary key, v integer);
insert into theirs select i, i from generate_series(1, 3) i;
alter table theirs owner to tap610_owner;
grant select, insert, update, delete on theirs to tap610_writer;
set local role tap610_writer;
select pg_temp.repair('theirs', 'id = 1') as r \gset
select throws_ok(format('select routeledger.undo_repair(%s, true)', :r), '42501', 'permission denied: only an admin undoes a repair over later changes', 'force is for admins');
reset role;
set local role tap610_owner;
select is(pg_temp.undo(:r), '1 0 0', 'who may read and change the table undoes the repair of another');
select pg_temp.repair('theirs', 'id = 2') as r \gset
reset role;
alter table theirs add constraint theirs_small check (v > 2) not valid;
set local role tap610_writer;
select pg_temp.repair('theirs', 'id = 3') as w \gset
reset role;
alter table theirs drop constraint theirs_small, add constraint theirs_small check (v > 3) not valid;
set local role tap610_writer;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :w)), 'RL310 refused false', 'what is not valid is suspended for nobody but the owner');
reset role;
alter table theirs enable row level security;
create policy all_of_it on theirs for all to tap610_writer using (true);
set local role tap610_writer;
select throws_ok(format('select * from routeledger.show_repair(%s)', :r), '42501', null, 'not where row security might hide rows from it');
select throws_ok(format('select routeledger.undo_repair(%s)', :r), '42501', null, 'nor is such a repair undone');
reset role;

-- what is undone is what the role that made the repair might have written itself
create table forged (id integer primary key, v integer);
insert into forged values (1, 1);
grant select, update, delete on forged to tap610_writer;
savepoint forged;
set local role tap610_writer;
select routeledger._open_repair('collapse', 'forged', null) as r \gset
select image::text as image from routeledger._image_of(:r, 'tap610.forged') \gset
insert into :image values (7, 7, 1, 'removed');
select routeledger._close_repair(:r, 2, 1, 1, 0, 0, '{}');
reset role;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)), 'RL310 not_allowed true', 'nobody has rows inserted that it may not insert');
select is(pg_temp.undo(:r, false, true), '1 0 0 not_allowed', 'a dry run says so');
select is(pg_temp.undo(:r, true), '1 0 0 not_allowed', 'an admin may, who has been told');
rollback to forged;
grant insert on forged to tap610_writer;
set local role tap610_writer;
select pg_temp.repair('forged', 'id = 1') as r \gset
reset role;
savepoint replaced;
alter table forged enable row level security;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)), 'RL310 not_allowed true', 'nor past row security');
rollback to replaced;
drop table forged;
create table forged (id integer primary key, v integer);
alter table forged owner to tap610_writer;
select is(pg_temp.undo(:r, false, true), '1 0 0', 'who made the images may read them, in whatever table');
alter table forged owner to tap610_bound;
select ok(pg_temp.reasons(format('select routeledger.undo_repair(%s)', :r)) like 'RL310 owner\_changed%', 'nobody gets rows by putting a table of its own in place of another''s');
drop table forged;
create view forged as select * from theirs;
select is(pg_temp.reasons(format('select routeledger.undo_repair(%s, true)', :r)), 'RL310 table_missing false', 'or a view');
drop view forged;

-- the images have an end
savepoint late;
select pg_temp.at('200 days');
select ok((select count(*) from routeledger._drop_old_images()) > 0, 'images are dropped after their retention');
select throws_ok(format('select routeledger.undo_repair(%s)', :r), 'RL311', 'the images of this repair are past their retention', 'then there is no undo');
select throws_ok(format('select routeledger.show_repair(%s)', :r), 'RL311', 'the images of this repair are past their retention', 'and nothing to show');
rollback to late;

-- orphans: arguments
create table calls (id uuid primary key default gen_random_uuid(), agent_id text, model_slug text, status text, cost_usd numeric, created_at timestamp, error_message text);
create table picks (id integer primary key, agent_id text, model_slug text, decision_rule text, inference_id text, cost_usd real, created_at timestamp, status text);
create table poor (id integer, inference_id integer, model_slug text, created_at bigint);
select throws_ok($$ select routeledger.repair_orphans_in(null, 'calls') $$, 'RL101', 'a required argument is missing', 'no outcomes');
select throws_ok($$ select routeledger.repair_orphans_in('picks', null) $$, 'RL101', 'a required argument is missing', 'no inferences');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', p_window => null) $$, 'RL101', 'a required argument is missing', 'no window');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', p_dry_run => null) $$, 'RL101', 'a required argument is missing', 'neither dry nor not');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', p_window => '-1 second') $$, 'RL103', 'a number is outside the range allowed for it', 'a window below 0');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', p_stuck_after => '1 second') $$, 'RL103', 'a number is outside the range allowed for it', 'stuck after a second');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', p_reason => repeat('x', 2001)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a reason of 2001 characters');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'picks') $$, 'RL117', 'constraints of this relation cannot be declared here', 'one table for both');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 0) $$, 'RL117', 'constraints of this relation cannot be declared here', 'no table at all');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"cost": "decision_rule"}}') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'a cost that is no number');
select throws_ok($$ select routeledger.repair_orphans(p_tenant_id => '') $$, 'RL101', 'a required argument is missing', 'a tenant without a name');
select throws_ok($$ select routeledger.repair_orphans(p_tenant_id => repeat('x', 201)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a tenant of 201 characters');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', null) $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'no columns');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcomes": {}}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'an unknown side');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"pk": "id"}}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'an unknown part');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"id": 1}}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'a name that is a number');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"id": "no"}}') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'an unknown column');
select throws_ok($$ select routeledger.repair_orphans_in('poor', 'calls') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'a time that is a number');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'poor') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'times of two types');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"id": null}}') $$, 'RL113', 'a column does not exist in the target or cannot be written', 'a part that is needed and has no column');
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"inference": {"status": null}}', p_stuck_after => '1 day') $$, 'RL113', 'a column does not exist in the target or cannot be written',
  'nothing is stuck where nothing has a status');

-- orphans: what is linked, and what is not
insert into calls values
  (pg_temp.id('c1'), 'a', 'm', 'succeeded', 0.1, '2026-01-01 10:00:00', null),
  (pg_temp.id('c2'), 'b', 'm', 'succeeded', null, '2026-01-01 10:00:00', null),
  (pg_temp.id('c3'), null, 'm', 'routed', null, '2026-01-01 10:00:00', null),
  (pg_temp.id('c4'), 'd', 'm', 'routed', null, '-infinity', null),
  (pg_temp.id('c5'), 'e', 'm', 'succeeded', null, '2026-01-01 10:00:00', null);
insert into picks values
  (1, 'a', 'm', 'cheapest', null, 0.1, '2026-01-01 10:00:03', 'done'),
  (2, 'b', 'm', 'cheapest', null, 0.2, '2026-01-01 09:59:57', 'done'),
  (3, null, 'm', 'cheapest', null, null, '2026-01-01 10:00:00', 'done'),
  (4, 'e', 'm', 'no_candidate_clears_floor', null, null, '2026-01-01 10:00:00', 'done'),
  (5, 'e', 'm', 'cheapest', null, null, '2026-01-01 10:00:03.001', 'done'),
  (6, 'e', 'm', 'cheapest', null, null, '2026-01-01 10:00:00', null);
create temporary table tap610_orphans as select pg_temp.rows_of('picks') || pg_temp.rows_of('calls') as r;
select results_eq(
  $$ select action, outcome, reason from routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"status": "status"}}') $$,
  $$ values ('link', '1', 'only_match'), ('link', '2', 'only_match'), ('leave', '3', 'inference_in_flight'), ('leave', '5', 'no_match') $$,
  'links are typed as the columns are; what is in flight is none');
select results_eq(
  $$ select action, outcome, reason from routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"agent": null}}', '0 seconds') $$,
  $$ values ('leave', '1', 'no_match'), ('leave', '2', 'no_match'), ('leave', '3', 'several_inferences'), ('leave', '5', 'no_match'), ('leave', '6', 'several_inferences') $$,
  'without agents and without a window there is less to tell them apart');
select results_eq(
  $$
    select action, outcome, inference, reason
    from routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"status": "status"}}', p_dry_run => false, p_stuck_after => '1 hour', p_reason => 'links')
  $$,
  $$
    select * from (values
      ('link', '1', pg_temp.id('c1')::text, 'only_match'), ('link', '2', pg_temp.id('c2')::text, 'only_match'), ('link', '3', pg_temp.id('c3')::text, 'only_match')) v
    union all
    (select 'close', null, x, 'stuck' from unnest(array[pg_temp.id('c3')::text, pg_temp.id('c4')::text]) x order by x collate "C")
    union all
    select 'leave', '5', null, 'no_match'
  $$, 'what is closed as stuck can be linked');
select is(
  (select string_agg(concat_ws(':', c.status, c.error_message), ' ' order by c.created_at) from calls c where c.error_message is not null),
  format('failed:closed by repair %1$s: no completion was recorded, routed since -infinity failed:closed by repair %1$s: no completion was recorded, routed since 2026-01-01 10:00:00', pg_temp.last()),
  'it says why');
select is(
  (select details - 'columns' from routeledger.repairs where id = pg_temp.last()),
  '{"inferences": "tap610.calls", "window": "00:00:03", "stuck_after": "01:00:00", "linked": 3, "closed": 2}'::jsonb, 'the registry keeps how it was called');
select is(pg_temp.undo(pg_temp.last()), '0 0 5', 'it is undone');
select is(pg_temp.rows_of('picks') || pg_temp.rows_of('calls'), (select r from tap610_orphans), 'in both tables');
create function tap610.unlink() returns trigger language plpgsql as $$ begin update tap610.picks set inference_id = null where id = new.id and inference_id is not null; return null; end $$;
create trigger unlink after update on picks for each row execute function tap610.unlink();
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"status": "status"}}', p_dry_run => false) $$, 'RL313',
  'a repair does not add up and was rolled back', 'a trigger that takes it back is noticed');
drop trigger unlink on picks;
create function tap610.skip() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger skip before update on picks for each row execute function tap610.skip();
select throws_ok($$ select routeledger.repair_orphans_in('picks', 'calls', '{"outcome": {"status": "status"}}', p_dry_run => false) $$, 'RL313',
  'a repair does not add up and was rolled back', 'and one that skips rows');

-- orphans of the ledger
set local role routeledger_writer;
select routeledger.insert_decision(p_id => pg_temp.id('d1'), p_attempt_id => pg_temp.id('a1'), p_tenant_id => 't1', p_agent_id => 'a', p_decision_rule => 'cheapest_clearing_floor', p_chosen_model_slug => 'm', p_candidates => '[{"model_slug": "m"}]');
select routeledger.complete_decision('t1', pg_temp.id('d1'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
reset role;
alter table routeledger.routing_outcomes drop constraint outcome_requires_inference_when_model_chosen;
update routeledger.routing_outcomes set inference_id = null where id = pg_temp.id('d1');
update routeledger.inferences set started_at = started_at - interval '2 days' where outcome_id = pg_temp.id('d1');
insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, created_at, started_at)
values ('t1', pg_temp.id('d1'), pg_temp.id('a2'), 2, 'm', pg_temp.t0() - interval '2 days', pg_temp.t0() - interval '2 days');
set local role tap610_admin;
select is((select count(*) from routeledger.repair_orphans(p_tenant_id => 't2')), 0::bigint, 'a tenant at a time');
select results_eq(
  $$ select action, outcome, inference, reason from routeledger.repair_orphans(p_dry_run => false, p_stuck_after => '1 day', p_tenant_id => 't1') $$,
  $$ values ('link', pg_temp.id('d1')::text, pg_temp.id('a1')::text, 'only_match'), ('close', null, pg_temp.id('a2')::text, 'stuck') $$, 'an admin repairs the ledger');
reset role;
select results_eq(
  $$ select id = pg_temp.id('a2'), status::text, error_type, completed_at = routeledger.clock() from routeledger.inferences where outcome_id = pg_temp.id('d1') and status = 'failed' $$,
  $$ values (true, 'failed', 'abandoned', true) $$, 'what was stuck is failed');
select results_eq(
  $$ select role_name, target from routeledger.repairs where id = pg_temp.last() $$, $$ values ('tap610_admin'::name, 'routeledger.routing_outcomes') $$, 'in the name of who called');
select pg_temp.last() as r \gset
set local role tap610_writer;
select throws_ok(format('select * from routeledger._undo_in_ledger(%s, false, null, false)', :r), '42501', 'permission denied: a repair of the ledger is undone by an admin', 'nobody else undoes it');
reset role;
select routeledger.grant_tenant('tap610_bound', 't2');
set local role tap610_bound;
select throws_ok($$ select routeledger.repair_orphans(p_tenant_id => 't1') $$, 'RL110', 'this role is bound to other tenants', 'a bound admin repairs its own tenants');
select is((select count(*) from routeledger.repair_orphans()), 0::bigint, 'only');
select throws_ok(format('select routeledger.undo_repair(%s)', (select max(id) from routeledger.repair_history)), 'RL110', 'this role is bound to other tenants', 'and undoes its own repairs');
reset role;
set local role tap610_admin;
select is((select count(*) from routeledger.show_repair((select max(id) from routeledger.repair_history))), 4::bigint, 'an admin sees the rows');
select results_eq(
  $$ select restored, removed, changed from routeledger.undo_repair((select max(id) from routeledger.repair_history)) $$,
  $$ values (0::bigint, 0::bigint, 2::bigint) $$, 'and undoes the repair');
reset role;
select is((select inference_id from routeledger.routing_outcomes where id = pg_temp.id('d1')), null, 'the ledger is as it was');

-- constraints
create table held (a integer, b text);
insert into held select i, 'x' || i % 3 from generate_series(1, 9) i;
alter table held add constraint held_a check (a > 0);
select throws_ok($$ select routeledger.undo_constraint('held', 'held_a', p_rows => 'all') $$, 'RL102', 'an argument is not one of the words allowed for it', 'an unknown word for the rows');
select throws_ok($$ select routeledger.undo_constraint('held', 'held_a', p_strict => null) $$, 'RL101', 'a required argument is missing', 'neither strict nor not');
select throws_ok($$ select routeledger.undo_constraint('held', 'held_a') $$, 'RL208', 'no change of that constraint is on record that could be undone', 'nothing to undo');
select routeledger.ensure_check('held', 'held_a', 'a > -5', p_label => 'one');
select results_eq(
  $$ select outcome, validated, definition, found, next is null from routeledger.undo_constraint('held', 'held_a', 'one') $$,
  $$ values ('replaced', false, '(a > 0)', '(a > ''-5''::integer)', false) $$, 'the older predicate comes back');
select is((select pg_get_constraintdef(oid) from pg_constraint where conname = 'held_a'), 'CHECK ((a > 0)) NOT VALID', 'not valid at first');
select results_eq(
  $$ select action, undone_by is not null from routeledger.constraint_history where target = 'tap610.held' order by id $$,
  $$ values ('replaced', true), ('undone', false) $$, 'the history knows');
select throws_ok($$ select routeledger.undo_constraint('held', 'held_a', 'two') $$, 'RL208', 'no change of that constraint is on record that could be undone', 'a label that never was');
select routeledger.ensure_check('held', 'held_n', 'a < 50');
select results_eq(
  $$ select outcome, definition, found, next from routeledger.undo_constraint('held', 'held_n') $$,
  $$ values ('replaced', null, '(a < 50)', null) $$, 'where there was none it goes');
select is((select count(*) from pg_constraint where conname = 'held_n'), 0::bigint, 'altogether');
select routeledger.ensure_unique('held', 'held_key', '{b}', 'greatest a', p_label => 'u');
savepoint unique_again;
update held set a = 100 where b = 'x0';
select results_eq(
  $$ select outcome, reason from routeledger.undo_constraint('held', 'held_key', 'u') $$, $$ values ('refused', 'changed_since') $$, 'rows that changed since are in the way of a unique key''s undo');
select throws_ok($$ select routeledger.undo_constraint('held', 'held_key', 'u', p_strict => true) $$, 'RL309', 'the constraint was not put in place', 'which may be an error');
select results_eq(
  $$ select outcome, definition from routeledger.undo_constraint('held', 'held_key', 'u', 'leave') $$, $$ values ('replaced', null) $$, 'unless they are left');
select is((select count(*) from held), 3::bigint, 'as they are');
rollback to unique_again;
set local role tap610_writer;
select results_eq(
  $$ select outcome, reason from routeledger.undo_constraint('tap610.held', 'held_key', 'u') $$, $$ values ('refused', 'not_owner') $$, 'only the owner undoes');
reset role;
select results_eq(
  $$ select outcome, definition, detail ? 'repairs' from routeledger.undo_constraint('held', 'held_key', 'u') $$, $$ values ('replaced', null, true) $$, 'its rows come back');
select is((select count(*) from held), 9::bigint, 'all of them');
select results_eq(
  $$ select outcome, next from routeledger.undo_constraint('held', 'held_key', 'u') $$, $$ values ('unchanged', null) $$, 'the same call again finds nothing to do');

-- an index that was there before comes back as it was
alter table held add constraint held_c unique (a) include (b);
comment on index held_c is 'of the constraint';
comment on constraint held_c on held is 'as it was';
create temporary table tap610_c as select routeledger._live_index('held', 'held_c') as d;
select routeledger._record_change('tap610.held', 'held_c', 'unique', 'dropped', (select d from tap610_c), null, 'c', null, '[]');
alter table held drop constraint held_c;
create unique index held_c on held (a) where a > 0;
select results_eq(
  $$ select outcome, validated, definition, found from routeledger.undo_constraint('held', 'held_c', 'c') $$,
  $$ values ('replaced', true, 'CREATE UNIQUE INDEX held_c ON tap610.held USING btree (a) INCLUDE (b)', 'CREATE UNIQUE INDEX held_c ON tap610.held USING btree (a) WHERE (a > 0)') $$,
  'an older index comes back');
select is(routeledger._live_index('held', 'held_c'), (select d from tap610_c), 'with its constraint and both comments');
create temporary table tap610_n as select routeledger._record_change('tap610.held', 'held_none', 'check', 'unchanged', null, null, 'n', null, '[]') as id;
select results_eq(
  $$ select outcome, next from routeledger.undo_constraint('held', 'held_none', 'n') $$, $$ values ('unchanged', null) $$, 'what was found as it should be needs no undoing');

-- what is put back is not what somebody has written into the history
create table lured (a integer);
alter table lured owner to tap610_owner;
set local role tap610_owner;
select routeledger._record_change('tap610.lured', 'l_also', 'check', 'replaced',
  '{"predicate": "(a > 0)", "validated": false, "no_inherit": false, "enforced": true,
    "also": [{"table": "tap610.keyed drop column v, alter column id set default 1, ", "name": "x", "predicate": "true", "validated": false, "no_inherit": false, "enforced": true}]}',
  null, null, null, '[]');
select routeledger._record_change('tap610.lured', 'l_key', 'unique', 'replaced', '{"definition": "CREATE UNIQUE INDEX l_key ON tap610.lured USING btree (a); drop table tap610.keyed"}', null, null, null, '[]');
select routeledger._record_change('tap610.lured', 'l_other', 'unique', 'replaced', '{"definition": "CREATE UNIQUE INDEX l_other ON tap610.keyed USING btree (v)"}', null, null, null, '[]');
reset role;
do $$ begin perform pg_temp.caught('select routeledger.undo_constraint(''lured'', ''l_also'')'); end $$;
select throws_ok($$ select routeledger.undo_constraint('lured', 'l_key') $$, 'RL208', 'no change of that constraint is on record that could be undone', 'no other statement is run');
select throws_ok($$ select routeledger.undo_constraint('lured', 'l_other') $$, 'RL208', 'no change of that constraint is on record that could be undone', 'and no index made on another table');
select is((select count(*) from keyed where v is not null), 4::bigint, 'nor is another table altered');
set local role tap610_writer;
select throws_ok($$ select routeledger._mark_changes_undone('tap610.lured', '{1}', null) $$, '42501', 'permission denied: changes of a constraint are undone by the owner of its table',
  'nobody else says that a change was undone');
reset role;

select * from finish();
rollback;
