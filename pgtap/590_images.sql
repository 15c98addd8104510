-- 590 · Repairs and their images: who may open one, what is kept, what has to add up.
begin;
\ir common.psql
select plan(58);

create schema tap590;
create role tap590_one;
create role tap590_two;
create role tap590_reader;
grant usage on schema tap590 to tap590_one, tap590_two, tap590_reader;
grant routeledger_writer to tap590_one, tap590_two, tap590_reader;
create type tap590.mood as enum ('sad', 'ok');
create table tap590.things (
  id integer primary key,
  "Big Name" numeric(10, 2),
  mood tap590.mood,
  label varchar(7) collate "C",
  doubled integer generated always as (id * 2) stored);
alter table tap590.things add column gone text;
alter table tap590.things drop column gone;
insert into tap590.things select i, i / 4.0, 'ok', 'n' || i from generate_series(1, 5) i;
create table tap590.others (_rl_id integer, _rl1_x integer);
create temporary table tap590_temp (a integer);
create view tap590.seen as select * from tap590.things;
create table tap590.nothing ();
grant select, update, delete on tap590.things, tap590.others to tap590_one, tap590_two;
grant select on tap590.things to tap590_reader;

-- names and columns
select is(routeledger._qualified('tap590.things'), 'tap590.things', 'a table is known with its schema');
set local quote_all_identifiers = on;
select is(routeledger._qualified('tap590.things'), 'tap590.things', 'whatever the session quotes');
set local quote_all_identifiers = off;
select is(routeledger._image_columns('tap590.things'), 'id, "Big Name", mood, label, doubled', 'the columns of a row, in order, without what was dropped');
select is(routeledger._image_columns('tap590.things', 't'), 't.id, t."Big Name", t.mood, t.label, t.doubled', 'with an alias');
select is(
  routeledger._column_list('tap590.things'),
  '[{"name": "id", "type": "integer", "collation": null, "generated": false},
    {"name": "Big Name", "type": "numeric(10,2)", "collation": null, "generated": false},
    {"name": "mood", "type": "tap590.mood", "collation": null, "generated": false},
    {"name": "label", "type": "character varying(7)", "collation": "pg_catalog.\"C\"", "generated": false},
    {"name": "doubled", "type": "integer", "collation": null, "generated": true}]'::jsonb,
  'columns are described in full');

-- who may open a repair, and of what
select throws_ok($$ select routeledger._open_repair('collapse', null, null) $$, 'RL101', 'a required argument is missing', 'no table');
select throws_ok($$ select routeledger._open_repair('cleanup', 'tap590.things', null) $$, 'RL102', 'an argument is not one of the words allowed for it', 'no such kind');
select throws_ok($$ select routeledger._open_repair(null, 'tap590.things', null) $$, 'RL102', 'an argument is not one of the words allowed for it', 'no kind');
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590.things', repeat('x', 2001)) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a reason of 2001 characters');
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590.seen', null) $$, 'RL117', 'constraints of this relation cannot be declared here', 'a view');
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590_temp', null) $$, 'RL117', 'constraints of this relation cannot be declared here', 'a temporary table');
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590.nothing', null) $$, 'RL117', 'constraints of this relation cannot be declared here', 'a table without columns');
set local role tap590_reader;
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590.things', null) $$, '42501',
  'permission denied: a repair is opened by a role that may change the rows of its table', 'who may not change the rows opens no repair of them');
reset role;

set local role tap590_one;
select is(routeledger._caller_role(), 'tap590_one', 'the caller is the role that SET ROLE chose');
create temporary table tap590_ids as
select routeledger._open_repair('collapse', 'tap590.things', 'a reason', '{"a": 1, "index": {"definition": "drop table x"}}') as id;
grant select on tap590_ids to public;
create function pg_temp.r() returns bigint language sql stable as $$ select id from tap590_ids $$;
reset role;
select results_eq(
  $$ select kind, target, reason, role_name, login = session_user, state, details, removed from routeledger.repairs where id = pg_temp.r() $$,
  $$ values ('collapse', 'tap590.things', 'a reason', 'tap590_one'::name, true, 'open', '{"a": 1}'::jsonb, 0::bigint) $$,
  'it is entered with who and why; the definition of an index is never taken from the caller');

-- the image
set local role tap590_one;
select results_eq(
  $$ select image::text, prefix from routeledger._image_of(pg_temp.r(), 'tap590.things') $$,
  $$ select 'routeledger.repair_rows_' || pg_temp.r() || '_1', '_rl_' $$, 'an image is a table of the registry');
select results_eq(
  $$ select image::text from routeledger._image_of(pg_temp.r(), 'tap590.things') $$,
  $$ select 'routeledger.repair_rows_' || pg_temp.r() || '_1' $$, 'one for each target, however often it is asked for');
select results_eq(
  $$ select image::text, prefix from routeledger._image_of(pg_temp.r(), 'tap590.others') $$,
  $$ select 'routeledger.repair_rows_' || pg_temp.r() || '_2', '_rl2_' $$, 'no column of the target begins with the prefix');
select throws_ok($$ select routeledger._image_of(null, 'tap590.things') $$, 'RL101', 'a required argument is missing', 'no repair');
select throws_ok($$ select routeledger._image_of(pg_temp.r(), null) $$, 'RL101', 'a required argument is missing', 'no table');
select throws_ok($$ select routeledger._image_of(0, 'tap590.things') $$, 'RL206', 'there is no such repair', 'an unknown repair');
select throws_ok($$ select routeledger._image_of(pg_temp.r(), 'tap590.nothing') $$, '42501',
  'permission denied: images are kept for a role that may change the rows of the table', 'nor is there an image of a table that the role may not change');
set local role tap590_two;
select throws_ok($$ select routeledger._image_of(pg_temp.r(), 'tap590.things') $$, '42501',
  'permission denied: this repair was opened by another role', 'another role writes no images of this repair');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 0, 0, 0, 0, 0, '{}') $$, '42501',
  'permission denied: this repair was opened by another role', 'nor does it close it');
reset role;
select results_eq(
  $$
    select a.attname::text collate "default", format_type(a.atttypid, a.atttypmod) collate "default"
    from pg_attribute a
    where a.attrelid = ('routeledger.repair_rows_' || pg_temp.r() || '_1')::regclass and a.attnum > 0
    order by a.attnum
  $$,
  $$ values ('id'::text, 'integer'::text), ('Big Name', 'numeric(10,2)'), ('mood', 'tap590.mood'), ('label', 'character varying(7)'), ('doubled', 'integer'),
            ('_rl_no', 'bigint'), ('_rl_what', 'text') $$,
  'it has the columns of its target, of the same types, and two of ours');
select ok(not has_table_privilege('tap590_two', 'routeledger.repair_rows_' || pg_temp.r() || '_1', 'select'), 'nobody else reads it');

-- a column that is added meanwhile
savepoint changed;
alter table tap590.things add column more integer;
set local role tap590_one;
select throws_ok($$ select routeledger._image_of(pg_temp.r(), 'tap590.things') $$, 'RL117', 'constraints of this relation cannot be declared here', 'a repair does not go on over other columns');
rollback to changed;

-- what has to add up
set local role tap590_one;
do $$
begin
  execute format(
    'with d as (delete from tap590.things where id <= 2 returning *) insert into routeledger.repair_rows_%1$s_1 select d.*, row_number() over (), ''removed'' from d', pg_temp.r());
  execute format('insert into routeledger.repair_rows_%1$s_1 select t.*, 10, ''before'' from tap590.things t where id = 3', pg_temp.r());
  update tap590.things set label = 'new' where id = 3;
  execute format('insert into routeledger.repair_rows_%1$s_1 select t.*, 10, ''after'' from tap590.things t where id = 3', pg_temp.r());
end
$$;
select throws_ok(format('insert into routeledger.repair_rows_%s_1 select t.*, 11, ''other'' from tap590.things t', pg_temp.r()), '23514', null, 'an image holds nothing else');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 1, 1, 0, '{}') $$, 'RL313', 'a repair does not add up and was rolled back', 'fewer removed than there are images');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 2, 0, 0, '{}') $$, 'RL313', 'a repair does not add up and was rolled back', 'fewer changed');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 2, 1, 1, '{}') $$, 'RL313', 'a repair does not add up and was rolled back', 'more added');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 4, 2, 1, 0, '{}') $$, 'RL313', 'a repair does not add up and was rolled back', 'rows that are in no image');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger._close_repair(pg_temp.r(), 5, 4, 2, 1, 0, '{}') $$) c) - 'repair_id',
  '{"table": "tap590.things", "rows_before": 5, "rows_after": 4, "counted": {"removed": 2, "changed": 1, "added": 0},
    "images": {"removed": 2, "before": 1, "after": 1, "pairs": 1, "added": 0}}'::jsonb, 'DETAIL has all the counts');
savepoint lonely;
do $$ begin execute format('insert into routeledger.repair_rows_%1$s_1 select t.*, 12, ''before'' from tap590.things t where id = 4', pg_temp.r());
  execute format('insert into routeledger.repair_rows_%1$s_1 select t.*, 13, ''after'' from tap590.things t where id = 4', pg_temp.r()); end $$;
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 2, 2, 0, '{}') $$, 'RL313', 'a repair does not add up and was rolled back', 'a before and an after of different rows');
rollback to lonely;
set local role tap590_one;
select lives_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 2, 1, 0, '{"b": 2, "index": 1}') $$, 'the right counts close it');
select throws_ok($$ select routeledger._close_repair(pg_temp.r(), 5, 3, 2, 1, 0, '{}') $$, 'RL206', 'there is no such repair', 'once');
select throws_ok(format('insert into routeledger.repair_rows_%s_1 select t.*, 11, ''kept'' from tap590.things t', pg_temp.r()), '42501', null, 'its images are read-only then');
select lives_ok(format('select * from routeledger.repair_rows_%s_1', pg_temp.r()), 'for who made them');
reset role;
select results_eq(
  $$ select state, before_count, after_count, removed, changed, added, details, finished_at from routeledger.repairs where id = pg_temp.r() $$,
  $$ select 'done', 5::bigint, 3::bigint, 2::bigint, 1::bigint, 0::bigint, '{"a": 1, "b": 2}'::jsonb, routeledger.clock() $$, 'it is entered as done');

-- the index
create unique index tap590_key on tap590.things (label);
set local role tap590_one;
select throws_ok($$ select routeledger._note_index(pg_temp.r(), 'tap590.tap590_key') $$, '42501',
  'permission denied: an index is noted by the owner of its table', 'only the owner of the table notes an index');
reset role;
select routeledger._note_index(pg_temp.r(), 'tap590.tap590_key');
select is(
  (select details -> 'index' from routeledger.repairs where id = pg_temp.r()),
  '{"schema": "tap590", "name": "tap590_key", "definition": "CREATE UNIQUE INDEX tap590_key ON tap590.things USING btree (label)"}'::jsonb,
  'its definition is that of the catalogue');
select throws_ok($$ select routeledger._note_index(pg_temp.r(), 'routeledger.models_base_model_idx') $$, 'RL117', 'constraints of this relation cannot be declared here', 'no index of another table');
select throws_ok($$ select routeledger._note_index(0, 'tap590.tap590_key') $$, 'RL206', 'there is no such repair', 'no index of a repair that is not');
create unique index tap590_fixed on tap590.others (_rl_id) where _rl_id::bigint <> extract(year from timestamp '2026-02-01 10:00');
set local datestyle = 'SQL, DMY';
set local standard_conforming_strings = off;
set local quote_all_identifiers = on;
select is(routeledger._describe_index('tap590.tap590_fixed'::regclass) ->> 'definition',
  'CREATE UNIQUE INDEX tap590_fixed ON tap590.others USING btree (_rl_id) WHERE (((_rl_id)::bigint)::numeric <> EXTRACT(year FROM ''2026-02-01 10:00:00''::timestamp without time zone))',
  'an index is described the same in every session');
set local datestyle = 'ISO, MDY';
set local standard_conforming_strings = on;
set local quote_all_identifiers = off;

-- who is told of it, and who may call it undone
set local role tap590_two;
select throws_ok($$ select routeledger._read_repair(pg_temp.r()) $$, '42501',
  'permission denied: a repair is seen and undone by the role that made it, the owner of its table, or an admin', 'nobody else is told of a repair');
select throws_ok($$ select routeledger._share_images(pg_temp.r()) $$, '42501', null, 'or gets its images, though it may read and change the table');
select throws_ok($$ select routeledger._open_repair('undo', 'tap590.things', null, '{}', pg_temp.r()) $$, '42501', null, 'or opens its undo, to mark it as undone');
select throws_ok($$ select routeledger._open_repair('collapse', 'tap590.things', null, '{}', pg_temp.r()) $$, 'RL206', 'there is no such repair', 'under whatever name');
select throws_ok($$ select routeledger._open_repair('undo', 'tap590.things', null) $$, 'RL206', 'there is no such repair', 'an undo undoes something');
select routeledger._open_repair('collapse', 'tap590.things', null) as x \gset
select throws_ok(format('select routeledger._mark_undone(pg_temp.r(), %s)', :x), 'RL206', 'there is no such repair', 'and what is no undo marks nothing');
reset role;
select is((select state from routeledger.repairs where id = pg_temp.r()), 'done', 'it stays as it was');
set local role tap590_one;
select is((select (x.repair).target from routeledger._read_repair(pg_temp.r()) x), 'tap590.things', 'who made it is told');
reset role;

-- members of the role write images as well, until the repair is closed
create role tap590_member in role tap590_one;
set local role tap590_one;
select routeledger._open_repair('collapse', 'tap590.things', null) as x \gset
set local role tap590_member;
select image::text as image from routeledger._image_of(:x, 'tap590.things') \gset
set local role tap590_one;
select routeledger._close_repair(:x, null, null, 0, 0, 0, '{}');
reset role;
select is((select count(*) from pg_class c, aclexplode(c.relacl) a where c.oid = :'image'::regclass and a.privilege_type = 'INSERT' and a.grantee <> c.relowner), 0::bigint,
  'nobody writes an image after that');

-- a table that was put in place of the target does not get at its images
create role tap590_admin in role routeledger_admin;
grant usage on schema tap590 to tap590_admin;
grant select, update, delete on tap590.things to tap590_admin;
set local role tap590_admin;
select routeledger._share_images(pg_temp.r());
select lives_ok(format('select * from routeledger.repair_rows_%s_1', pg_temp.r()), 'an admin who may read and change the table is given its images');
reset role;
revoke all on all tables in schema routeledger from tap590_admin;
alter table tap590.things owner to tap590_two;
set local role tap590_admin;
select routeledger._share_images(pg_temp.r());
select throws_ok(format('select * from routeledger.repair_rows_%s_1', pg_temp.r()), '42501', null, 'but not once the table is somebody else''s');
reset role;

-- what others build on an image does not keep it
set local role tap590_one;
do $$ begin execute format('create temporary view tap590_on as select * from routeledger.repair_rows_%s_1', pg_temp.r()); end $$;
reset role;

-- retention
select is((select count(*) from routeledger._drop_old_images()), 0::bigint, 'images are kept');
select pg_temp.at('91 days');
create temporary table tap590_dropped as select * from routeledger._drop_old_images();
select set_eq(
  $$ select action, replace(object, 'repair_rows_' || pg_temp.r() || '_', 'repair_rows_r_') from tap590_dropped where object like '%\_' || pg_temp.r() || '\_%' $$,
  $$ values ('dropped', 'routeledger.repair_rows_r_1'), ('dropped', 'routeledger.repair_rows_r_2') $$, 'for 90 days, unless configured otherwise');
select is(to_regclass('tap590_on'), null, 'with what was built on them');

select * from finish();
rollback;
