-- 020 · The clock, and ids that carry their time.
begin;
\ir common.psql
select plan(39);

create role tap020_writer in role routeledger_writer;
create role tap020_admin in role routeledger_admin;

-- the real clock
do $$ begin perform routeledger.set_clock(null); end $$;
select cmp_ok(routeledger.clock(), '>=', statement_timestamp(), 'clock() is the real time');
select isnt(routeledger.clock(), now(), 'and goes on within a transaction');

-- a fake one
select is(
  routeledger.set_clock('2027-03-04 05:06:07.890123+00'), '2027-03-04 05:06:07.890123+00'::timestamptz, 'set_clock() returns the new time');
select is(routeledger.clock(), '2027-03-04 05:06:07.890123+00'::timestamptz, 'clock() returns it too');
select is(
  routeledger.uuid_v7_time(routeledger.uuid_v7()), '2027-03-04 05:06:07.890+00'::timestamptz, 'ids are dated by it');
set local timezone = 'Asia/Kolkata';
select is(routeledger.clock(), '2027-03-04 05:06:07.890123+00'::timestamptz, 'whatever the time zone now');
set local datestyle = 'SQL, DMY';
select is(routeledger.clock(), '2027-03-04 05:06:07.890123+00'::timestamptz, 'and the date style now');
select is(
  routeledger.set_clock('2027-03-04 05:06:07+00'), '2027-03-04 05:06:07+00'::timestamptz, 'or when it was set');
set local datestyle = 'ISO, MDY';
set local timezone = 'UTC';
select throws_ok($$ select routeledger.set_clock('infinity') $$, 'RL109', 'a time is not finite or not plausible', 'it stays finite');
select throws_ok($$ select routeledger.set_clock('-infinity') $$, 'RL109', 'a time is not finite or not plausible', 'either way');
select throws_ok($$ select routeledger.set_clock('1970-12-31 00:00+00') $$, 'RL109', 'a time is not finite or not plausible', 'and within reach of an id');
select throws_ok($$ select routeledger.set_clock('5000-01-02 00:00+00') $$, 'RL109', 'a time is not finite or not plausible', 'early or late');
select cmp_ok(routeledger.set_clock(null), '>=', statement_timestamp(), 'null gives the real time back');

-- who is believed
do $$ begin perform routeledger.set_clock('2027-03-04 05:06:07+00'); end $$;
set local role tap020_writer;
select is(
  routeledger.clock(), '2027-03-04 05:06:07+00'::timestamptz, 'a login that is an admin is believed under any role');
select throws_ok(
  $$ select routeledger.set_clock(null) $$, '42501', 'permission denied for function set_clock', 'a writer may not set the clock');
reset role;
set local session authorization tap020_writer;
select cmp_ok(routeledger.clock(), '>=', statement_timestamp(), 'a login that is not, is not believed');
set local routeledger.fake_now = '946684800';
select cmp_ok(routeledger.clock(), '>=', statement_timestamp(), 'also when it sets the setting itself');
set local routeledger.fake_now = 'nonsense';
select cmp_ok(routeledger.clock(), '>=', statement_timestamp(), 'whatever it sets it to');
select cmp_ok(
  routeledger.uuid_v7_time(routeledger.uuid_v7()), '>=', date_trunc('milliseconds', statement_timestamp()), 'nor are its ids');
set local session authorization tap020_admin;
select is(
  routeledger.set_clock('2027-03-04 05:06:07+00'), '2027-03-04 05:06:07+00'::timestamptz, 'a member of routeledger_admin is');
reset session authorization;
select results_eq(
  $$
    select r, routeledger._is_admin(r)
    from unnest(array[current_user, 'tap020_admin', 'tap020_writer', 'routeledger_admin', 'routeledger_reader', 'routeledger_judge']::name[]) r
  $$,
  $$
    values
      (current_user::name, true), ('tap020_admin', true), ('tap020_writer', false), ('routeledger_admin', true),
      ('routeledger_reader', false), ('routeledger_judge', false)
  $$,
  'the owner and members of routeledger_admin are admins');
alter role routeledger_admin rename to tap020_away;
select is(routeledger._is_admin('tap020_writer'), false, 'without that role in the cluster nobody else is');
alter role tap020_away rename to routeledger_admin;

-- uuid v7
do $$ begin perform pg_temp.at('0'); end $$;
set local role routeledger_writer;
select matches(
  routeledger.uuid_v7()::text, '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'version 7, variant 10');
select is(
  (select count(distinct routeledger.uuid_v7()) from generate_series(1, 2000)), 2000::bigint,
  'two thousand ids of one instant are two thousand');
select is(routeledger.uuid_v7_time(routeledger.uuid_v7()), pg_temp.t0(), 'an id gives its time back');
select is(
  routeledger.uuid_v7_time('017f22e2-79b0-7cc3-98c4-dc0c0c07398f'), '2022-02-22 19:22:22+00'::timestamptz, 'the example of RFC 9562');
select is(routeledger.uuid_v7_time('919108f7-52d1-4320-9bac-f847db4148a8'), null, 'version 4 carries no time');
select is(routeledger.uuid_v7_time('017f22e2-79b0-7cc3-18c4-dc0c0c07398f'), null, 'nor does another variant');
select is(routeledger.uuid_v7_time('017f22e2-79b0-7cc3-c8c4-dc0c0c07398f'), null, 'on either side');
select is(routeledger.uuid_v7_time('00000000-0000-0000-0000-000000000000'), null, 'nor the nil UUID');
select is(routeledger.uuid_v7_time('ffffffff-ffff-ffff-ffff-ffffffffffff'), null, 'nor the max UUID');
select is(routeledger.uuid_v7_time(null), null, 'null in, null out');
reset role;
select is_empty(
  $$
    select n
    from generate_series(0, 3000) n
    where routeledger._uuid_v7_at(pg_temp.t0() + n * interval '1 microsecond')
      >= routeledger._uuid_v7_at(pg_temp.t0() + (n + 1) * interval '1 microsecond')
  $$,
  'an id made a microsecond later sorts later');
select is(
  routeledger._uuid_v7_at(null), null, 'no time, no id');
select is_empty(
  $$
    select i
    from unnest(array[
      routeledger.uuid_v7(), '017f22e2-79b0-7cc3-98c4-dc0c0c07398f', '919108f7-52d1-4320-9bac-f847db4148a8',
      '017f22e2-79b0-7cc3-18c4-dc0c0c07398f', '00000000-0000-0000-0000-000000000000', null]) i
    where routeledger._id_time(i) is distinct from routeledger.uuid_v7_time(i)
  $$,
  'the form that the planner inlines says the same');

-- the floor of a millisecond
select is(
  routeledger._uuid_floor('2022-02-22 19:22:22+00'), '017f22e2-79b0-0000-0000-000000000000'::uuid, 'the lowest UUID of a millisecond');
select is_empty(
  $$
    select t
    from (select pg_temp.t0() + n * interval '137 microseconds' as t from generate_series(1, 200) n) x
    where not routeledger._uuid_v7_at(t) between routeledger._uuid_floor(date_trunc('milliseconds', t))
      and routeledger._uuid_floor(date_trunc('milliseconds', t) + interval '1 millisecond')
  $$,
  'ids lie between the floors of their millisecond and the next');
select is(routeledger._uuid_floor('1970-01-01 00:00+00'), '00000000-0000-0000-0000-000000000000'::uuid, 'from the epoch on');
select is(
  routeledger._uuid_floor('1969-12-29 00:00+00'), '00000000-0000-0000-0000-000000000000'::uuid, 'before it there is nothing lower');

select * from finish();
rollback;
