-- 030 · Settings: one row, typed, checked.
begin;
\ir common.psql
select plan(24);

select has_table('routeledger', 'settings', 'settings exists');
select col_is_pk('routeledger', 'settings', 'only_row', 'keyed by a column that is always true');
select results_eq(
  $$ select count(*) from routeledger.settings $$, $$ values (1::bigint) $$, 'it holds one row');
select throws_ok(
  $$ insert into routeledger.settings default values $$, '23505',
  'duplicate key value violates unique constraint "settings_pkey"', 'and no second');
select throws_ok(
  $$ insert into routeledger.settings (only_row) values (false) $$, '23514',
  'new row for relation "settings" violates check constraint "settings_only_row"', 'of no kind');
select throws_ok(
  $$ delete from routeledger.settings; insert into routeledger.settings (lease) values ('0') $$, '23514',
  'new row for relation "settings" violates check constraint "settings_lease_check"', 'its values are checked');

set local role routeledger_writer;
select throws_ok(
  $$ select routeledger.configure('{}') $$, '42501', 'permission denied for function configure', 'a writer may not configure');
reset role;
set local role routeledger_admin;

select set_eq(
  $$ select jsonb_object_keys(routeledger.configure()) $$,
  array['lease', 'id_window_past', 'id_window_future', 'event_at_max_age', 'partition_width', 'partitions_ahead',
    'retry_attempts_per_model', 'retry_max_attempts', 'retry_base', 'retry_cap', 'retry_jitter', 'implausible_factor',
    'implausible_usd_per_mtok', 'rollup_look_back', 'repair_retention', 'cooldown_failures', 'cooldown_window', 'cooldown',
    'cooldown_cap', 'cooldown_scope', 'probe_lease', 'assumed_cost_usd', 'budget_retention', 'judge_lease', 'judge_max_attempts',
    'judge_retry_delay', 'judge_look_every', 'judge_look_back', 'mono_zero_n'],
  'configure() returns what can be set');
select is(
  routeledger.configure('{}'),
  '{"lease": "00:05:00", "id_window_past": "90 days", "id_window_future": "01:00:00", "event_at_max_age": "10 years",
    "partition_width": "week", "partitions_ahead": 4, "retry_attempts_per_model": 2, "retry_max_attempts": 12,
    "retry_base": "00:00:00.5", "retry_cap": "00:00:20", "retry_jitter": 1, "implausible_factor": 10,
    "implausible_usd_per_mtok": 10000, "rollup_look_back": "3 days", "repair_retention": "90 days", "cooldown_failures": 3,
    "cooldown_window": "00:01:00", "cooldown": "00:00:30", "cooldown_cap": "00:10:00", "cooldown_scope": "tenant",
    "probe_lease": "00:00:10", "assumed_cost_usd": 0.01, "budget_retention": "400 days", "judge_lease": "00:10:00",
    "judge_max_attempts": 3, "judge_retry_delay": "00:01:00", "judge_look_every": "00:01:00", "judge_look_back": "01:00:00",
    "mono_zero_n": 20}'::jsonb,
  'these are the defaults');
select is(
  routeledger.configure('{"lease": "10 minutes", "retry_jitter": 0}') - array['lease', 'retry_jitter'],
  routeledger.configure('{}') - array['lease', 'retry_jitter'], 'what is not named stays');
select results_eq(
  $$ select c ->> 'lease', c ->> 'retry_jitter' from routeledger.configure('{}') c $$, $$ values ('00:10:00', '0') $$,
  'what is named changes');
select is(
  routeledger.configure(
    '{"lease": "1 second", "id_window_past": "1 hour", "id_window_future": "1 second", "event_at_max_age": "1 day",
      "partition_width": "day", "partitions_ahead": 1, "retry_attempts_per_model": 1, "retry_max_attempts": 1,
      "retry_base": "0", "retry_cap": "0", "retry_jitter": 0, "implausible_factor": 2, "implausible_usd_per_mtok": 1,
      "rollup_look_back": "0", "repair_retention": "1 day", "cooldown_failures": 1, "cooldown_window": "1 second", "cooldown": "0",
      "cooldown_cap": "0", "cooldown_scope": "all", "probe_lease": "1 second", "assumed_cost_usd": 0, "budget_retention": "1 day",
      "judge_lease": "1 second", "judge_max_attempts": 1, "judge_retry_delay": "0", "judge_look_every": "0", "judge_look_back": "0",
      "mono_zero_n": 2}'),
  '{"lease": "00:00:01", "id_window_past": "01:00:00", "id_window_future": "00:00:01", "event_at_max_age": "1 day",
    "partition_width": "day", "partitions_ahead": 1, "retry_attempts_per_model": 1, "retry_max_attempts": 1,
    "retry_base": "00:00:00", "retry_cap": "00:00:00", "retry_jitter": 0, "implausible_factor": 2, "implausible_usd_per_mtok": 1,
    "rollup_look_back": "00:00:00", "repair_retention": "1 day", "cooldown_failures": 1, "cooldown_window": "00:00:01",
    "cooldown": "00:00:00", "cooldown_cap": "00:00:00", "cooldown_scope": "all", "probe_lease": "00:00:01", "assumed_cost_usd": 0,
    "budget_retention": "1 day", "judge_lease": "00:00:01", "judge_max_attempts": 1, "judge_retry_delay": "00:00:00",
    "judge_look_every": "00:00:00", "judge_look_back": "00:00:00", "mono_zero_n": 2}'::jsonb,
  'all at once, to the lowest');
select lives_ok(
  $$
    select routeledger.configure(
      '{"lease": "24 hours", "id_window_past": "100 years", "id_window_future": "30 days", "event_at_max_age": "100 years",
        "partition_width": "month", "partitions_ahead": 120, "retry_attempts_per_model": 10, "retry_max_attempts": 1000,
        "retry_base": "1 hour", "retry_cap": "24 hours", "retry_jitter": 1, "implausible_factor": 1000,
        "implausible_usd_per_mtok": 1000000000, "rollup_look_back": "10 years", "repair_retention": "100 years", "judge_lease": "24 hours",
        "judge_max_attempts": 1000, "judge_retry_delay": "24 hours", "judge_look_every": "24 hours", "judge_look_back": "10 years",
        "mono_zero_n": 1000000}')
  $$, 'and to the highest');

-- refusals
create temp table bad (setting text, value jsonb);
insert into bad values
  ('lease', '"999 milliseconds"'), ('lease', '"25 hours"'), ('lease', '"-1 hour"'),
  ('id_window_past', '"59 minutes"'), ('id_window_past', '"101 years"'),
  ('id_window_future', '"0"'), ('id_window_future', '"31 days"'),
  ('event_at_max_age', '"23 hours"'), ('event_at_max_age', '"101 years"'),
  ('partition_width', '"year"'), ('partition_width', '""'),
  ('partitions_ahead', '0'), ('partitions_ahead', '121'),
  ('retry_attempts_per_model', '0'), ('retry_attempts_per_model', '11'),
  ('retry_max_attempts', '0'), ('retry_max_attempts', '1001'),
  ('retry_base', '"-1 second"'), ('retry_base', '"61 minutes"'),
  ('retry_cap', '"-1 second"'), ('retry_cap', '"25 hours"'),
  ('retry_jitter', '-0.1'), ('retry_jitter', '1.1'), ('retry_jitter', '"NaN"'), ('retry_jitter', '"infinity"'),
  ('implausible_factor', '1.9'), ('implausible_factor', '1001'), ('implausible_factor', '"NaN"'),
  ('implausible_usd_per_mtok', '0'), ('implausible_usd_per_mtok', '1000000001'),
  ('rollup_look_back', '"-1 second"'), ('rollup_look_back', '"11 years"'),
  ('repair_retention', '"23 hours"'), ('repair_retention', '"101 years"'),
  ('judge_lease', '"999 milliseconds"'), ('judge_lease', '"25 hours"'),
  ('judge_max_attempts', '0'), ('judge_max_attempts', '1001'),
  ('judge_retry_delay', '"-1 second"'), ('judge_retry_delay', '"25 hours"'),
  ('judge_look_every', '"-1 second"'), ('judge_look_every', '"25 hours"'),
  ('judge_look_back', '"-1 second"'), ('judge_look_back', '"11 years"'),
  ('mono_zero_n', '1'), ('mono_zero_n', '1000001');
select is_empty(
  $$
    select b.setting, b.value, c.code, c.detail
    from bad b
    cross join lateral pg_temp.caught(format('select routeledger.configure(%L)', jsonb_build_object(b.setting, b.value))) c
    where c.code is distinct from 'RL103' or c.detail ->> 'parameter' <> b.setting or c.detail ->> 'allowed' not like 'CHECK%'
  $$,
  'a value out of range is RL103, and DETAIL names the setting and its range');
select throws_ok(
  $$ select routeledger.configure('{"lease": "1 year"}') $$, 'RL103', 'a number is outside the range allowed for it',
  'with the message of that error');
select throws_ok(
  $$ select routeledger.configure('{"lease": "soon"}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters',
  'a value that does not fit its type is RL107');
select is_empty(
  $$
    select v.settings, c.code
    from (values ('{"partitions_ahead": 1.5}'), ('{"partitions_ahead": 99999999999}'), ('{"lease": {"a": 1}}'), ('{"retry_jitter": "x"}'),
      ('{"id_window_past": "999999999 years"}')) v (settings)
    cross join lateral pg_temp.caught(format('select routeledger.configure(%L)', v.settings)) c
    where c.code is distinct from 'RL107' or not c.detail ? 'reason'
  $$,
  'whatever the misfit, and DETAIL has the reason');
select throws_ok(
  $$ select routeledger.configure('{"leese": "1 hour"}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters',
  'an unknown setting is RL107');
select results_eq(
  $$
    select c.detail ->> 'setting', c.detail -> 'allowed' ? 'lease', c.detail -> 'allowed' ? 'tenants_bound'
    from pg_temp.caught($sql$ select routeledger.configure('{"tenants_bound": false, "lease": "1 hour"}') $sql$) c
  $$,
  $$ values ('tenants_bound', true, false) $$,
  'so is one that routines keep by themselves, and DETAIL lists the known');
select throws_ok(
  $$ select routeledger.configure('{"lease": null}') $$, 'RL101', 'a required argument is missing', 'null is no value');
select throws_ok(
  $$ select routeledger.configure(null) $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'no object at all');
select throws_ok(
  $$ select routeledger.configure('[]') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'nor is an array one');
select throws_ok(
  $$ select routeledger.configure('{"lease": "2 hours", "retry_jitter": 2}') $$, 'RL103', 'a number is outside the range allowed for it',
  'one bad value of two');
select is(routeledger.configure('{}') ->> 'lease', '24:00:00', 'changes nothing');

select * from finish();
rollback;
