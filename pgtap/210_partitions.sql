-- 210 · Partitions: four leaves a period, made ahead or on the spot, of any width, never in a writer's way.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"partition_width": "week", "id_window_past": "90 days"}'); end $$;
select plan(43);

create function pg_temp.leaves() returns table (parent text, suffix text, bounds text)
language sql stable
as $$
  select
    p.relname::text collate "default", substr(c.relname::text collate "default", length(p.relname) + 2), pg_get_expr(c.relpartbound, c.oid) collate "default"
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  join pg_class p on p.oid = i.inhparent
  where p.relnamespace = 'routeledger'::regnamespace and p.relkind = 'p'
$$;

-- names
select results_eq(
  $$
    select w, routeledger._partition_suffix('2026-11-18 23:59:59.999+00', w), routeledger._partition_suffix('2026-12-01 00:00+00', w)
    from unnest(array['day', 'week', 'month']) w
  $$,
  $$
    values ('day', 'p20261118d', 'p20261201d'), ('week', 'p20261116w', 'p20261130w'), ('month', 'p20261101m', 'p20261201m')
  $$,
  'a period is named by its first day and its width');
set local timezone = 'Pacific/Kiritimati';
select is(routeledger._partition_suffix('2026-11-22 23:00+00', 'week'), 'p20261116w', 'in UTC, wherever the session is');
set local timezone = 'UTC';

select is(routeledger._has_partition('2031-03-12 15:00+00', 'week'), false, 'none is there yet for a distant week');

-- what an install made
select cmp_ok(
  (select count(*) from routeledger._partitions() p where p.upper_id > routeledger._uuid_floor(now())), '>=', 5::bigint,
  'this week and four ahead are ready');
select is_empty(
  $$
    select p.suffix
    from (select *, lead(lower_id) over (order by lower_id) as next_id from routeledger._partitions()) p
    where p.upper_id > routeledger._uuid_floor(now()) and p.upper_id <> p.next_id
  $$,
  'without a gap');
select is_empty(
  $$ select l.suffix, l.bounds from pg_temp.leaves() l group by 1, 2 having count(*) <> 4 $$,
  'all four tables have the same leaves with the same bounds');
select is_empty(
  $$
    select p.suffix from routeledger._partitions() p
    where not exists (select from pg_temp.leaves() l where l.suffix = p.suffix and l.parent = 'routing_outcomes')
      or p.lower_id is null or p.upper_id is null or p.lower_id >= p.upper_id
  $$,
  '_partitions() names them and their bounds');

-- one more
select is(routeledger._ensure_partition('2031-03-12 15:00+00', 'week'), 'p20310310w', 'a missing partition is made, and named');
select is(routeledger._ensure_partition('2031-03-12 15:00+00', 'week'), null, 'once');
select is(routeledger._has_partition('2031-03-16 15:00+00', 'week'), true, 'a write finds it');
select is(routeledger._has_partition('2031-03-16 15:00+00', 'month'), false, 'one that looks for a month asks further');
select is(routeledger._ensure_partition('2031-03-10 00:00+00', 'week'), null, 'it holds its first instant');
select is(routeledger._ensure_partition('2031-03-16 23:59:59.999+00', 'week'), null, 'and its last');
select is(routeledger._ensure_partition('2031-03-17 00:00+00', 'week'), 'p20310317w', 'and no more');
select results_eq(
  $$ select l.parent, l.bounds from pg_temp.leaves() l where l.suffix = 'p20310310w' order by 1 $$,
  $$
    select t, format('FOR VALUES FROM (%L) TO (%L)', routeledger._uuid_floor('2031-03-10 00:00+00'), routeledger._uuid_floor('2031-03-17 00:00+00'))
    from unnest(array['inference_payloads', 'inferences', 'judge_verdicts', 'routing_outcomes']) t
  $$,
  'in all four tables, from Monday to Monday');
select results_eq(
  $$
    select c.conname::text collate "default", c.convalidated, pg_get_constraintdef(c.oid)
    from pg_constraint c where c.conrelid = 'routeledger.routing_outcomes_p20310310w'::regclass and c.contype = 'f'
  $$,
  $$
    values ('outcome_links_own_attempt', true,
      'FOREIGN KEY (tenant_id, id, inference_id) REFERENCES routeledger.inferences_p20310310w(tenant_id, outcome_id, id)')
  $$,
  'the leaf links to its twin');
select results_eq(
  $$
    select c.relname::text collate "default", array_to_string(c.reloptions, ' ') collate "default"
    from pg_class c where c.relnamespace = 'routeledger'::regnamespace and c.relname like '%\_p20310310w' and c.relkind = 'r' order by 1
  $$,
  $$
    values
      ('inference_payloads_p20310310w', 'fillfactor=100'), ('inferences_p20310310w', 'fillfactor=85'),
      ('judge_verdicts_p20310310w', 'fillfactor=85'), ('routing_outcomes_p20310310w', 'fillfactor=85')
  $$,
  'with room for the update that closes a row');
select is_empty(
  $$
    select a.attname, b.attname
    from pg_attribute a
    full join (select * from pg_attribute where attrelid = 'routeledger.inferences_p20310310w'::regclass) b on b.attname = a.attname
    where coalesce(a.attrelid, 'routeledger.inferences'::regclass) = 'routeledger.inferences'::regclass
      and coalesce(a.attnum, b.attnum) > 0
      and (a.attname, a.attnum, a.atttypid, a.attnotnull) is distinct from (b.attname, b.attnum, b.atttypid, b.attnotnull)
  $$,
  'its columns are the parent''s');
select is(
  (select count(*) from pg_index i where i.indrelid = 'routeledger.routing_outcomes_p20310310w'::regclass), 3::bigint, 'so are its indexes');
select is(
  (select count(*) from pg_constraint c where c.conrelid = 'routeledger.routing_outcomes_p20310310w'::regclass and c.contype = 'c'), 4::bigint,
  'and its rules');
select is(
  (select count(*) from pg_locks l
   where l.pid = pg_backend_pid() and l.relation = 'routeledger.routing_outcomes'::regclass
     and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')),
  0::bigint, 'making it locks out no reader or writer');

-- other widths
select is(routeledger._ensure_partition('2031-05-20 12:00+00', 'day'), 'p20310520d', 'a day');
select is(routeledger._ensure_partition('2031-12-31 12:00+00', 'month'), 'p20311201m', 'a month');
select results_eq(
  $$
    select p.suffix collate "default", p.lower_id, p.upper_id
    from routeledger._partitions() p where p.suffix in ('p20310520d', 'p20311201m') order by 1
  $$,
  $$
    values
      ('p20310520d', routeledger._uuid_floor('2031-05-20 00:00+00'), routeledger._uuid_floor('2031-05-21 00:00+00')),
      ('p20311201m', routeledger._uuid_floor('2031-12-01 00:00+00'), routeledger._uuid_floor('2032-01-01 00:00+00'))
  $$,
  'from midnight to midnight, UTC');
select is(routeledger._ensure_partition('2031-05-19 12:00+00', 'week'), 'p20310519x', 'the gap before a day');
select is(routeledger._ensure_partition('2031-05-25 12:00+00', 'week'), 'p20310521x', 'and after it');
select is_empty(
  $$
    select d from generate_series('2031-05-19'::timestamptz, '2031-05-25', '6 hours') d
    where (select count(*) from routeledger._partitions() p
           where routeledger._uuid_floor(d) >= p.lower_id and routeledger._uuid_floor(d) < p.upper_id) <> 1
  $$,
  'together they hold the week, each instant once');
select is(routeledger._ensure_partition('2031-05-01 00:00+00', 'month'), 'p20310501x', 'a month stops where they begin');
select is(
  (select p.upper_id from routeledger._partitions() p where p.suffix = 'p20310501x'), routeledger._uuid_floor('2031-05-19 00:00+00'),
  'exactly there');

-- tables that were detached keep their names, and their rows
create table routeledger.routing_outcomes_p20320105w (like routeledger.routing_outcomes including all);
select is(routeledger._has_partition('2032-01-06 00:00+00', 'week'), false, 'a leaf that was detached is none');
select is(routeledger._ensure_partition('2032-01-06 00:00+00', 'week'), 'p20320105wx', 'the new one gets another name');
create table routeledger.routing_outcomes_p20320112w (like routeledger.routing_outcomes including all);
create table routeledger.routing_outcomes_p20320112wx (like routeledger.routing_outcomes including all);
select is(routeledger._ensure_partition('2032-01-13 00:00+00', 'week'), 'p20320112wxx', 'whatever else is there');
select is(
  (select array_agg(l.parent order by l.parent) from pg_temp.leaves() l where l.suffix = 'p20320112wxx'),
  array['inference_payloads', 'inferences', 'judge_verdicts', 'routing_outcomes'], 'the same for all four');
create table routeledger.inferences_p20320119w (like routeledger.inferences including all);
select lives_ok(
  $$ select routeledger._ensure_partition('2032-01-20 00:00+00', 'week') $$, 'also where only the attempts were kept');
create table routeledger.judge_verdicts_p20320126w (like routeledger.judge_verdicts including all);
select is(routeledger._ensure_partition('2032-01-27 00:00+00', 'week'), 'p20320126wx', 'or only the verdicts');

-- a write whose partition is missing
do $$ begin perform routeledger.set_clock('2033-06-08 10:00+00'); end $$;
set local role routeledger_writer;
select lives_ok(
  $$ select routeledger.insert_decision('tap210', p_candidates => '["m"]') $$, 'a write whose partition is missing makes it');
reset role;
select is(
  (select count(*) from pg_temp.leaves() l where l.suffix = 'p20330606w'), 4::bigint, 'for all four tables');
do $$
begin
  perform routeledger.configure('{"partition_width": "day", "partitions_ahead": 1}');
  perform routeledger.set_clock('2034-06-05 10:00+00'); -- a Monday
  perform routeledger.maintain();
  perform routeledger.configure('{"partition_width": "week"}');
  perform routeledger.set_clock('2034-06-10 10:00+00'); -- the Saturday after
end
$$;
set local role routeledger_writer;
select lives_ok(
  $$ select routeledger.insert_decision('tap210', p_candidates => '["m"]') $$, 'also after the width was changed within the period');
select throws_ok(
  $$
    select routeledger.complete_decision('tap210', routeledger.uuid_v7(), 'failed', p_error_type => 'x')
  $$, 'RL201', 'there is no such decision', 'where a completion finds its way too');
reset role;
do $$
begin
  perform routeledger.set_clock('2034-06-06 10:00+00'); -- the Tuesday, which has a partition of a day
  perform routeledger.configure('{"partition_width": "month"}');
end
$$;
set local role routeledger_writer;
select lives_ok(
  $$
    do $do$
    declare
      v_id uuid;
    begin
      select d.id into v_id from routeledger.insert_decision('tap210', p_candidates => '["m"]') d;
      perform routeledger.complete_decision('tap210', v_id, 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
    end
    $do$
  $$, 'a partition of another width serves as well');
reset role;
do $$
begin
  perform routeledger.configure('{"partition_width": "week", "id_window_past": "100 years"}');
end
$$;
set local role routeledger_writer;
select lives_ok(
  $$ select routeledger.insert_decision('tap210', '00000a4c-b800-7000-8000-000000000000', p_candidates => '["m"]') $$,
  'the first week of 1970 begins before ids do');
reset role;
select is_empty(
  $$
    select l.suffix from pg_temp.leaves() l
    where l.parent = 'routing_outcomes' and not exists (
      select from pg_constraint c
      where c.conrelid = ('routeledger.routing_outcomes_' || l.suffix)::regclass and c.conname = 'outcome_links_own_attempt')
  $$,
  'no leaf is without its link');
select is_empty($$ select * from routeledger.orphans o where o.tenant_id = 'tap210' $$, 'and no decision is lost');

select * from finish();
rollback;
