-- 700 · Operations: what a scheduler runs.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"partition_width": "week", "partitions_ahead": 4}'); end $$;
select plan(19);

set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.maintain() $$, '42501', 'permission denied for function maintain', 'a writer need not maintain');
set local role routeledger_admin;

do $$ begin perform routeledger.set_clock('2041-06-12 15:00+00'); end $$; -- a Wednesday
select results_eq(
  $$ select m.action, m.object from routeledger.maintain() m $$,
  $$
    values
      ('created', 'routeledger.routing_outcomes_p20410610w'), ('created', 'routeledger.routing_outcomes_p20410617w'),
      ('created', 'routeledger.routing_outcomes_p20410624w'), ('created', 'routeledger.routing_outcomes_p20410701w'),
      ('created', 'routeledger.routing_outcomes_p20410708w')
  $$,
  'this week and as many ahead as the settings say');
select is_empty($$ select * from routeledger.maintain() $$, 'and then nothing');
do $$ begin perform routeledger.set_clock('2041-06-17 00:00+00'); end $$;
select results_eq(
  $$ select m.object from routeledger.maintain() m $$, $$ values ('routeledger.routing_outcomes_p20410715w') $$, 'a week later one more');
select results_eq(
  $$ select m.object from routeledger.maintain('42 days') m $$,
  $$ values ('routeledger.routing_outcomes_p20410722w'), ('routeledger.routing_outcomes_p20410729w') $$, 'or as far ahead as asked for');
select is_empty($$ select * from routeledger.maintain('0') $$, 'not at all, if need be');
select throws_ok(
  $$ select routeledger.maintain('-1 second') $$, 'RL103', 'a number is outside the range allowed for it', 'never backwards');
select throws_ok(
  $$ select routeledger.maintain('201 weeks') $$, 'RL103', 'a number is outside the range allowed for it', 'nor more at once than a server has locks for');
select throws_ok(
  $$ select routeledger.maintain('6 years') $$, 'RL103', 'a number is outside the range allowed for it', 'nor without end');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.maintain('6 years') $$) c), '{"parameter": "ahead", "allowed": "0 to 5 years"}'::jsonb,
  'DETAIL gives the range');

-- the first run within a week that is under way, wherever the session is
savepoint s;
do $$ begin perform routeledger.set_clock('2042-03-05 23:30+00'); end $$;
set local timezone = 'Asia/Tokyo';
select results_eq(
  $$ select m.object from routeledger.maintain('14 days') m $$,
  $$
    values ('routeledger.routing_outcomes_p20420303w'), ('routeledger.routing_outcomes_p20420310w'), ('routeledger.routing_outcomes_p20420317w')
  $$,
  'the same weeks in Tokyo');
rollback to s;
do $$ begin perform routeledger.set_clock('2042-03-05 23:30+00'); end $$;
set local timezone = 'America/Los_Angeles';
select results_eq(
  $$ select m.object from routeledger.maintain('14 days') m $$,
  $$
    values ('routeledger.routing_outcomes_p20420303w'), ('routeledger.routing_outcomes_p20420310w'), ('routeledger.routing_outcomes_p20420317w')
  $$,
  'and in Los Angeles, across a change of its clocks');
set local timezone = 'UTC';

-- other widths
do $$ begin perform routeledger.configure('{"partition_width": "day", "partitions_ahead": 2}'); perform routeledger.set_clock('2043-02-27 12:00+00'); end $$;
select results_eq(
  $$ select m.object from routeledger.maintain() m $$,
  $$
    values ('routeledger.routing_outcomes_p20430227d'), ('routeledger.routing_outcomes_p20430228d'), ('routeledger.routing_outcomes_p20430301d')
  $$,
  'days');
do $$ begin perform routeledger.configure('{"partition_width": "month", "partitions_ahead": 3}'); perform routeledger.set_clock('2044-10-31 12:00+00'); end $$;
select results_eq(
  $$ select m.object from routeledger.maintain() m $$,
  $$
    values
      ('routeledger.routing_outcomes_p20441001m'), ('routeledger.routing_outcomes_p20441101m'), ('routeledger.routing_outcomes_p20441201m'),
      ('routeledger.routing_outcomes_p20450101m')
  $$,
  'months, from the last of a long one');
do $$ begin perform routeledger.configure('{"partition_width": "week", "partitions_ahead": 2}'); perform routeledger.set_clock('2045-01-25 12:00+00'); end $$;
select results_eq(
  $$ select m.object from routeledger.maintain() m $$,
  $$ values ('routeledger.routing_outcomes_p20450201x'), ('routeledger.routing_outcomes_p20450206w') $$,
  'a new width takes over where the old one ends');
reset role;
select is_empty(
  $$
    select d::date from generate_series('2044-10-01'::timestamptz, '2045-02-12', '1 day') d
    where (select count(*) from routeledger._partitions() p
           where routeledger._uuid_floor(d) >= p.lower_id and routeledger._uuid_floor(d) < p.upper_id) <> 1
  $$,
  'without a gap or an overlap');
select is_empty(
  $$
    select p.suffix from routeledger._partitions() p
    where to_regclass('routeledger.inferences_' || p.suffix) is null or to_regclass('routeledger.inference_payloads_' || p.suffix) is null
      or to_regclass('routeledger.judge_verdicts_' || p.suffix) is null
  $$,
  'each with its attempts, payloads and verdicts');

-- what a write needs is there
do $$ begin perform routeledger.set_clock('2045-02-08 12:00+00'); end $$;
select is(routeledger._has_partition(routeledger.clock(), 'week'), true, 'a write finds its partition');
set local role routeledger_writer;
select lives_ok($$ select routeledger.insert_decision('tap700', p_candidates => '["m"]') $$, 'and has none to make');

select * from finish();
rollback;
