-- 230 · Attempts: fail_attempt closes one and says what to do next; start_attempt opens one by hand.
begin;
\ir common.psql
do $$
begin
  perform routeledger.configure('{"lease": "5 minutes", "retry_attempts_per_model": 2, "retry_max_attempts": 5, "retry_base": "2 seconds",
    "retry_cap": "20 seconds", "retry_jitter": 0, "cooldown": "0", "cooldown_cap": "0"}');
end
$$;
insert into routeledger.models (model_slug, provider) values ('tap230/a', 'pa'), ('tap230/b', 'pb');
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok) values ('tap230/a', 'epoch', 2, 8);
select plan(96);

create function pg_temp.decision(p_name text) returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = 'tap230' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.attempts(p_name text) returns setof routeledger.inferences
language sql stable security definer
as $$ select * from routeledger.inferences i where i.tenant_id = 'tap230' and i.outcome_id = pg_temp.id(p_name) order by i.attempt_no $$;
-- a decision in flight: its attempts are called name/1, name/2, …
create function pg_temp.decide(p_name text, p_candidates jsonb default '["tap230/a", {"model_slug": "tap230/x", "drop_reason": "x"}, "tap230/b"]', p_lease interval default null)
returns void language sql volatile
as $$
  select routeledger.insert_decision('tap230', pg_temp.id(p_name), p_candidates => p_candidates, p_lease => p_lease,
    p_attempt_id => pg_temp.id(p_name || '/1'))
$$;
create function pg_temp.fail(p_name text, p_no integer, p_status integer default null, p_next text default 'policy', p_retry_after_ms bigint default null,
  p_error text default 'http')
returns table (action text, next_no integer, next_model text, next_provider text, delay_ms bigint, outcome_status text, created boolean)
language sql volatile
as $$
  select f.action, f.next_attempt_no, f.next_model_slug, f.next_provider, f.delay_ms, f.outcome_status, f.created
  from routeledger.fail_attempt('tap230', pg_temp.id(p_name), pg_temp.id(p_name || '/' || p_no), p_error, p_http_status => p_status,
    p_retry_after_ms => p_retry_after_ms, p_next => p_next,
    p_next_attempt_id => case when p_next = 'policy' then pg_temp.id(p_name || '/' || p_no + 1) end) f
$$;
set local role routeledger_writer;

-- the policy, from the first failure to the last
do $$ begin perform pg_temp.decide('policy'); perform pg_temp.at('10 seconds'); end $$;
select results_eq(
  $$
    select f.* from routeledger.fail_attempt('tap230', pg_temp.id('policy'), pg_temp.id('policy/1'), '429', 'slow down', 429, 3000, 'policy',
      pg_temp.id('policy/2'), 1000, 500, null, 9000, 120, 'resp-1') f
  $$,
  $$
    values (pg_temp.id('policy'), pg_temp.id('policy/1'), 'retry', pg_temp.id('policy/2'), 2, 'tap230/a', 'pa', 3000::bigint, null::text, true,
      pg_temp.t0() + interval '13 seconds')
  $$,
  'a busy provider is tried again, after the time it asks for');
select results_eq(
  $$
    select i.attempt_no, i.candidate_no, i.status::text, i.error_type, i.error_message, i.http_status, i.retry_after_ms, i.next_action, i.next_delay_ms,
      i.input_tokens, i.output_tokens, i.cost_usd, i.cost_source, i.cost_flag, i.latency_ms, i.ttft_ms, i.provider_response_id,
      i.started_at, i.completed_at
    from pg_temp.attempts('policy') i
  $$,
  $$
    values
      (1, 1, 'failed', '429', 'slow down', 429, 3000::bigint, 'retry', 3000::bigint, 1000::bigint, 500::bigint, 0.006::numeric, 'catalog',
       null::text, 9000::double precision, 120::double precision, 'resp-1', pg_temp.t0(), pg_temp.t0() + interval '10 seconds'),
      (2, 1, 'routed', null, null, null, null, null, null, null, null, null, null, null, null, null, null,
       pg_temp.t0() + interval '13 seconds', null)
  $$,
  'the failure is closed with all that was said of it, the next attempt begins after the wait');
select results_eq(
  $$ select d.open_attempt_id, d.attempt_count, d.outcome_status::text, d.lease_expires_at from pg_temp.decision('policy') d $$,
  $$ values (pg_temp.id('policy/2'), 2, null::text, pg_temp.t0() + interval '10 seconds' + interval '3 seconds' + interval '5 minutes') $$,
  'the lease covers the wait, and then as long again');
select results_eq(
  $$ select * from pg_temp.fail('policy', 2, 503) $$,
  $$ values ('failover', 3, 'tap230/b', 'pb', 0::bigint, null::text, true) $$,
  'a candidate that has used up its attempts is left for the next that was not dropped');
select results_eq(
  $$ select * from pg_temp.fail('policy', 3, null) $$,
  $$ values ('retry', 4, 'tap230/b', 'pb', 2000::bigint, null::text, true) $$, 'which has attempts of its own');
select results_eq(
  $$ select * from pg_temp.fail('policy', 4, 400) $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', true) $$, 'when no candidate is left: give up');
select results_eq(
  $$
    select d.outcome_status::text, d.inference_id, d.open_attempt_id, d.attempt_count, d.lease_expires_at, d.completed_at
    from pg_temp.decision('policy') d
  $$,
  $$
    values ('failed', pg_temp.id('policy/4'), null::uuid, 4, null::timestamptz, pg_temp.t0() + interval '10 seconds')
  $$,
  'the decision is closed, the last attempt linked');
select results_eq(
  $$ select i.candidate_no, i.next_action, i.cost_source, i.latency_ms from pg_temp.attempts('policy') i where i.attempt_no > 1 $$,
  $$
    values
      (1, 'failover', 'no_usage', 0::double precision), (3, 'retry', 'no_usage', 0), (3, 'give_up', 'no_usage', 0)
  $$,
  'an attempt that fails before its wait is over took no time');

-- other ways out
do $$ begin perform pg_temp.at('0'); perform pg_temp.decide('client'); perform pg_temp.at('2 seconds'); end $$;
select results_eq(
  $$ select * from pg_temp.fail('client', 1, 404) $$,
  $$ values ('failover', 2, 'tap230/b', 'pb', 0::bigint, null::text, true) $$, 'what this model would answer again goes to the next at once');
select is(
  (select i.latency_ms from pg_temp.attempts('client') i where i.attempt_no = 1), 2000::double precision, 'latency is measured where it is not given');
do $$ begin perform pg_temp.decide('impatient'); end $$;
select results_eq(
  $$ select * from pg_temp.fail('impatient', 1, 429, 'policy', 60000) $$,
  $$ values ('failover', 2, 'tap230/b', 'pb', 0::bigint, null::text, true) $$, 'nobody waits longer than the cap');
do $$ begin perform pg_temp.decide('stop'); end $$;
select results_eq(
  $$ select * from pg_temp.fail('stop', 1, 429, 'give_up') $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', true) $$, 'the caller may give up');
do $$ begin perform pg_temp.decide('pinned', '["tap230/p"]'); end $$;
select results_eq(
  $$ select * from pg_temp.fail('pinned', 1, 404) $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', true) $$, 'with a single candidate there is no next');
do $$
begin
  perform routeledger.insert_decision('tap230', pg_temp.id('outside'), p_candidates => '["tap230/a"]', p_chosen_model_slug => 'tap230/z',
    p_attempt_id => pg_temp.id('outside/1'));
end
$$;
select results_eq(
  $$ select * from pg_temp.fail('outside', 1, 404) $$,
  $$ values ('failover', 2, 'tap230/a', 'pa', 0::bigint, null::text, true) $$, 'a model from outside the ranking fails over into it');
do $$ begin perform pg_temp.decide('twice', '[{"model_slug": "tap230/m", "provider": "p1"}, {"model_slug": "tap230/m", "provider": "p2"}]'); end $$;
select results_eq(
  $$ select * from pg_temp.fail('twice', 1, 404) $$,
  $$ values ('failover', 2, 'tap230/m', 'p2', 0::bigint, null::text, true) $$, 'the same model at another provider is another candidate');
select results_eq(
  $$ select * from pg_temp.fail('twice', 2, 500) $$,
  $$ values ('retry', 3, 'tap230/m', 'p2', 2000::bigint, null::text, true) $$, 'with attempts of its own');
do $$
begin
  perform pg_temp.decide('many', '["1", "2", "3", "4", "5", "6", "7"]');
  for n in 1 .. 4 loop perform pg_temp.fail('many', n, 404); end loop;
end
$$;
select results_eq(
  $$ select * from pg_temp.fail('many', 5, 404) $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', true) $$, 'there is an end to all attempts');
do $$ begin perform pg_temp.decide('long', '["tap230/a"]', '1 hour'); perform pg_temp.fail('long', 1, 500); end $$;
select is(
  (select d.lease_expires_at from pg_temp.decision('long') d), pg_temp.t0() + interval '2 seconds' + interval '2 seconds' + interval '1 hour',
  'a lease of the decision''s own length is renewed by that length');
do $$ begin perform pg_temp.at('0'); perform pg_temp.decide('short'); perform routeledger.extend_lease('tap230', pg_temp.id('short'), '2 hours'); perform pg_temp.fail('short', 1, 500); end $$;
select is(
  (select d.lease_expires_at from pg_temp.decision('short') d), pg_temp.t0() + interval '2 hours', 'and never shortened');
do $$
begin
  perform pg_temp.decide('words');
  perform routeledger.fail_attempt('tap230', pg_temp.id('words'), pg_temp.id('words/1'), 'http', repeat('é', 9000), p_cost_usd => 0.5,
    p_next_attempt_id => pg_temp.id('words/2'));
end
$$;
select results_eq(
  $$
    select length(i.error_message), right(i.error_message, 26), i.cost_usd, i.cost_source, i.cost_flag
    from pg_temp.attempts('words') i where i.attempt_no = 1
  $$,
  $$ values (8177, '[cut from 9000 characters]'::text, 0.5::numeric, 'caller', 'above_any_price') $$, 'a long message is cut, and says so; a given cost is kept');
reset role;
select is(routeledger._error_text(repeat('x', 8192)), repeat('x', 8192), 'what fits is kept whole');
set local role routeledger_writer;

-- again
select results_eq(
  $$
    select f.* from routeledger.fail_attempt('tap230', pg_temp.id('policy'), pg_temp.id('policy/1'), '429', 'slow down', 429, 3000, 'policy',
      pg_temp.id('policy/2'), 1000, 500, null, 9000, 120, 'resp-1') f
  $$,
  $$
    values (pg_temp.id('policy'), pg_temp.id('policy/1'), 'retry', pg_temp.id('policy/2'), 2, 'tap230/a', 'pa', 3000::bigint, null::text, false,
      pg_temp.t0() + interval '13 seconds')
  $$,
  'the same failure again gets the same answer');
select results_eq(
  $$ select * from pg_temp.fail('policy', 2, 503) $$,
  $$ values ('failover', 3, 'tap230/b', 'pb', 0::bigint, null::text, false) $$, 'whatever happened since');
select results_eq(
  $$ select * from pg_temp.fail('policy', 4, 400) $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', false) $$, 'also when it was the last');
select results_eq(
  $$ select * from pg_temp.fail('stop', 1, 429, 'give_up') $$,
  $$ values ('give_up', null::integer, null::text, null::text, 0::bigint, 'failed', false) $$, 'or the caller''s own');
select results_eq(
  $$
    select f.action, f.created from routeledger.fail_attempt('tap230', pg_temp.id('words'), pg_temp.id('words/1'), 'http', repeat('é', 9000),
      p_cost_usd => 0.5) f
  $$,
  $$ values ('retry', false) $$, 'a message that was cut is the same message');
select results_eq(
  $$
    select r.ord, r.code
    from routeledger.fail_attempts(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('policy'), 'attempt_id', pg_temp.id('policy/1'), 'error_type', '429',
        'error_message', 'slow down', 'http_status', 429, 'retry_after_ms', 3000, 'input_tokens', 1000, 'output_tokens', 500,
        'provider_response_id', 'resp-1'),
      jsonb_build_array(
        '{}'::jsonb, '{"error_type": "500"}'::jsonb, '{"error_message": null}'::jsonb, '{"http_status": 500}'::jsonb, '{"retry_after_ms": 1}'::jsonb,
        '{"input_tokens": 1}'::jsonb, '{"output_tokens": null}'::jsonb, '{"provider_response_id": "resp-2"}'::jsonb, '{"cost_usd": 1}'::jsonb,
        '{"next": "hold"}'::jsonb, jsonb_build_object('next_attempt_id', pg_temp.id('other'))))) r
  $$,
  $$
    values (1, null), (2, 'RL304'), (3, 'RL304'), (4, 'RL304'), (5, 'RL304'), (6, 'RL304'), (7, 'RL304'), (8, 'RL304'), (9, 'RL304'), (10, 'RL304'),
      (11, 'RL301')
  $$,
  'another failure of a closed attempt is RL304, another id for the next RL301');
select throws_ok(
  $$ select * from pg_temp.fail('policy', 1, 500) $$, 'RL304', 'this attempt is not open', 'from the single form too');
select results_eq(
  $$ select c.detail ->> 'attempt_status', c.detail ->> 'error_type' from pg_temp.caught($sql$ select * from pg_temp.fail('policy', 1, 500) $sql$) c $$,
  $$ values ('failed', '429') $$, 'DETAIL says what it is');

-- what does not fit the ledger
do $$
begin
  perform pg_temp.decide('busy');
  perform pg_temp.decide('done');
  perform routeledger.complete_decision('tap230', pg_temp.id('done'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
  perform pg_temp.decide('late');
  perform pg_temp.decide('late hold');
  perform pg_temp.fail('late hold', 1, 500, 'hold');
  perform routeledger.insert_decision('tap230', pg_temp.id('rejected'));
end
$$;
select throws_ok(
  $$ select routeledger.fail_attempt('tap230', pg_temp.id('nowhere'), pg_temp.id('busy/1'), 'x') $$, 'RL201', 'there is no such decision',
  'an unknown decision');
select throws_ok(
  $$ select routeledger.fail_attempt('tap230-other', pg_temp.id('busy'), pg_temp.id('busy/1'), 'x') $$, 'RL201', 'there is no such decision',
  'or another tenant''s');
select throws_ok(
  $$ select routeledger.fail_attempt('tap230', pg_temp.id('busy'), pg_temp.id('done/1'), 'x') $$, 'RL202', 'this decision has no such attempt',
  'an attempt of another decision');
select throws_ok(
  $$ select routeledger.fail_attempt('tap230', pg_temp.id('done'), pg_temp.id('done/1'), 'x') $$, 'RL304', 'this attempt is not open',
  'a success does not fail any more');
select throws_ok(
  $$ select routeledger.fail_attempt('tap230', pg_temp.id('policy'), pg_temp.id('policy/3'), 'x') $$, 'RL304', 'this attempt is not open',
  'nor does a failure fail otherwise');
select results_eq(
  $$
    select r.status, r.code, r.detail ->> 'next_attempt_id', r.action
    from routeledger.fail_attempts(jsonb_build_array(jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('twice'),
      'attempt_id', pg_temp.id('twice/3'), 'error_type', 'x', 'next_attempt_id', pg_temp.id('twice/1')))) r
  $$,
  $$ values ('accepted', null::text, null::text, 'give_up') $$, 'an id for a next attempt that never comes is no matter');
select throws_ok(
  $$
    select routeledger.fail_attempt('tap230', pg_temp.id('impatient'), pg_temp.id('impatient/2'), 'x', p_next_attempt_id => pg_temp.id('impatient/1'))
  $$,
  'RL301', 'this id already holds a different payload', 'the next attempt needs an id of its own');
select is(
  (select i.status::text from pg_temp.attempts('impatient') i where i.attempt_no = 2), 'routed', 'nothing was closed by that');
do $$ begin perform pg_temp.at('1 hour'); perform routeledger.reap(p_tenant_id => 'tap230'); end $$;
select throws_ok(
  $$ select * from pg_temp.fail('late', 1, 500) $$, 'RL401', 'the lease ran out and the reaper closed this decision', 'after the reaper it is too late');
select throws_ok(
  $$ select * from pg_temp.fail('late', 1, null, 'policy', null, 'abandoned') $$, 'RL401', 'the lease ran out and the reaper closed this decision',
  'whatever the error is called');
do $$ begin perform pg_temp.at('0'); end $$;

-- refusals
do $$ begin perform pg_temp.decide('fresh'); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint
    from routeledger.fail_attempts(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('fresh'), 'attempt_id', pg_temp.id('fresh/1'), 'error_type', 'x'),
      jsonb_build_array(
        '{"tenant_id": null}'::jsonb, jsonb_build_object('tenant_id', repeat('x', 201)), '{"id": null}'::jsonb,
        '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"attempt_id": null}'::jsonb,
        '{"attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"error_type": null}'::jsonb, '{"error_type": ""}'::jsonb,
        jsonb_build_object('error_type', repeat('x', 201)), '{"retry_after_ms": -1}'::jsonb, '{"retry_after_ms": 10000000001}'::jsonb,
        '{"next": "again"}'::jsonb, '{"next_attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb,
        jsonb_build_object('next_attempt_id', pg_temp.id('fresh/1')), jsonb_build_object('provider_response_id', repeat('x', 501)),
        '{"input_tokens": -1}'::jsonb, '{"output_tokens": 1000000000001}'::jsonb, '{"cost_usd": -0.01}'::jsonb, '{"cost_usd": "NaN"}'::jsonb,
        '{"latency_ms": -1}'::jsonb, '{"latency_ms": "NaN"}'::jsonb, '{"ttft_ms": "infinity"}'::jsonb, '{"http_status": 99}'::jsonb,
        '{"http_status": 600}'::jsonb, '{"status": 500}'::jsonb, '{"http_status": "teapot"}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
    order by r.ord
  $$,
  $$
    select n::integer, 'refused', split_part(fault, ' ', 1), split_part(fault, ' ', 2), true
    from unnest(array[
      'RL101 tenant_id', 'RL108 tenant_id', 'RL101 id', 'RL104 id', 'RL101 attempt_id', 'RL104 attempt_id', 'RL101 error_type', 'RL101 error_type',
      'RL108 error_type', 'RL103 retry_after_ms', 'RL103 retry_after_ms', 'RL102 next', 'RL104 next_attempt_id', 'RL103 next_attempt_id',
      'RL108 provider_response_id', 'RL103 input_tokens', 'RL103 output_tokens', 'RL103 cost_usd', 'RL103 cost_usd', 'RL103 latency_ms',
      'RL103 latency_ms', 'RL103 ttft_ms', 'RL103 http_status', 'RL103 http_status', 'RL107 status', 'RL107 row'
    ]) with ordinality w (fault, n)
  $$,
  'each bad argument of a failure is refused by name');
select is(
  (select i.status::text from pg_temp.attempts('fresh') i), 'routed', 'and changes nothing');
reset role;
select results_eq(
  $$
    select n, routeledger._usage_fault(
      case when n = 1 then -1 end, case when n = 2 then -1 end, case when n = 3 then -1 end, case when n = 4 then -1 end,
      case when n = 5 then -1 end, case when n = 6 then -1 end, case when n = 7 then -1 end, case when n = 8 then -1 end,
      case when n = 9 then -1 end)
    from generate_series(0, 9) n
  $$,
  $$
    values
      (0, null), (1, 'RL103 input_tokens 0 to 1e12'), (2, 'RL103 output_tokens 0 to 1e12'), (3, 'RL103 cache_read_input_tokens 0 to 1e12'),
      (4, 'RL103 cache_creation_input_tokens 0 to 1e12'), (5, 'RL103 reasoning_output_tokens 0 to 1e12'), (6, 'RL103 cost_usd 0 to 1e9'),
      (7, 'RL103 latency_ms 0 to 1e10'), (8, 'RL103 ttft_ms 0 to 1e10'), (9, 'RL103 http_status 100 to 599')
  $$,
  'each measurement has its range');
select is_empty(
  $$
    select tokens, cost, ms, http
    from unnest(array[null, -1, 0, 1000000000000, 1000000000001]) tokens
    cross join unnest(array[null, -0.1, 0, 1000000000, 1000000001, 'NaN']::numeric[]) cost
    cross join unnest(array[null, -0.1, 0, 10000000000, 10000000001, 'NaN', 'infinity']::double precision[]) ms
    cross join unnest(array[null, 99, 100, 599, 600]) http
    where routeledger._usage_in_range(tokens, 5, null, tokens, null, cost, ms, null, http)
      <> (routeledger._usage_fault(tokens, 5, null, tokens, null, cost, ms, null, http) is null)
      or routeledger._usage_in_range(5, tokens, tokens, null, tokens, cost, 1, ms, http)
      <> (routeledger._usage_fault(5, tokens, tokens, null, tokens, cost, 1, ms, http) is null)
  $$,
  'the short form of that judgement says the same');
set local role routeledger_writer;

-- hold, and start by hand
do $$ begin perform pg_temp.at('0'); perform pg_temp.decide('hold', '[{"model_slug": "tap230/a"}, {"model_slug": "tap230/b", "provider": "pb2"}]'); end $$;
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/b') $$, 'RL303', 'an attempt of this decision is still open',
  'as long as an attempt is open no other begins');
select is(
  (select c.detail ->> 'open_attempt_id' from pg_temp.caught($$ select routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/b') $$) c),
  pg_temp.id('hold/1')::text, 'DETAIL names it');
select results_eq(
  $$ select * from pg_temp.fail('hold', 1, 429, 'hold') $$,
  $$ values ('hold', null::integer, null::text, null::text, 0::bigint, null::text, true) $$, 'hold: no attempt follows by itself');
select results_eq(
  $$ select d.open_attempt_id, d.attempt_count, d.outcome_status::text, d.lease_expires_at from pg_temp.decision('hold') d $$,
  $$ values (null::uuid, 1, null::text, pg_temp.t0() + interval '5 minutes') $$, 'the decision stays in flight');
select results_eq(
  $$ select * from pg_temp.fail('hold', 1, 429, 'hold') $$,
  $$ values ('hold', null::integer, null::text, null::text, 0::bigint, null::text, false) $$, 'again: the same');
do $$ begin perform pg_temp.at('1 minute'); end $$;
select results_eq(
  $$ select s.* from routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/b', pg_temp.id('hold/2')) s $$,
  $$ values (pg_temp.id('hold'), pg_temp.id('hold/2'), 2, 'tap230/b', 'pb2', true) $$, 'start_attempt() opens the next; the ranking knows the provider');
select results_eq(
  $$
    select i.candidate_no, i.status::text, i.started_at, d.open_attempt_id, d.attempt_count, d.lease_expires_at
    from pg_temp.attempts('hold') i, pg_temp.decision('hold') d where i.attempt_no = 2
  $$,
  $$ values (2, 'routed', pg_temp.t0() + interval '1 minute', pg_temp.id('hold/2'), 2, pg_temp.t0() + interval '6 minutes') $$,
  'it is the open one, and renews the lease');
select results_eq(
  $$ select s.* from routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/b', pg_temp.id('hold/2')) s $$,
  $$ values (pg_temp.id('hold'), pg_temp.id('hold/2'), 2, 'tap230/b', 'pb2', false) $$, 'again: the same');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/a', pg_temp.id('hold/2')) $$, 'RL301',
  'this id already holds a different payload', 'another model under its id');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/b', pg_temp.id('hold/2'), 'elsewhere') $$, 'RL301',
  'this id already holds a different payload', 'or another provider');
do $$ begin perform pg_temp.fail('hold', 2, 500, 'hold'); end $$;
select results_eq(
  $$ select s.attempt_no, s.model_slug, s.provider, s.created, s.attempt_id is not null from routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/new') s $$,
  $$ values (3, 'tap230/new', null::text, true, true) $$, 'a model from outside the ranking, without an id');
do $$
declare
  v_id uuid;
begin
  select i.id into v_id from pg_temp.attempts('hold') i where i.attempt_no = 3;
  perform routeledger.fail_attempt('tap230', pg_temp.id('hold'), v_id, 'x', p_next => 'hold');
end
$$;
select results_eq(
  $$ select s.attempt_no, s.provider from routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/a', pg_temp.id('hold/4'), 'third') s $$,
  $$ values (4, 'third') $$, 'at a provider of the caller''s choice');
do $$
begin
  perform pg_temp.fail('hold', 4, 500, 'hold');
  perform routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/a', pg_temp.id('hold/5'));
  perform pg_temp.fail('hold', 5, 500, 'hold');
end
$$;
select results_eq(
  $$ select i.attempt_no, i.candidate_no, i.provider from pg_temp.attempts('hold') i $$,
  $$ values (1, 1, 'pa'), (2, 2, 'pb2'), (3, null, null), (4, 1, 'third'), (5, 1, 'pa') $$, 'each attempt knows its place in the ranking');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('hold'), 'tap230/a') $$, 'RL503', 'this decision has used up its attempts',
  'there is an end to these as well');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('nowhere'), 'm') $$, 'RL201', 'there is no such decision', 'start: an unknown decision');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('done'), 'm') $$, 'RL305', 'this decision is already closed', 'a closed one');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('rejected'), 'm') $$, 'RL305', 'this decision is already closed', 'a rejected one');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', pg_temp.id('late hold'), 'm') $$, 'RL401', 'the lease ran out and the reaper closed this decision',
  'one that the reaper closed');

-- the set forms
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter'
    from routeledger.start_attempts(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('hold'), 'model_slug', 'm'),
      jsonb_build_array(
        '{"tenant_id": ""}'::jsonb, '{"id": null}'::jsonb, '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"model_slug": null}'::jsonb,
        '{"model_slug": ""}'::jsonb, jsonb_build_object('model_slug', repeat('x', 301)), jsonb_build_object('provider', repeat('x', 301)),
        '{"attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"model": "m"}'::jsonb))) r
  $$,
  $$
    values
      (1, 'refused', 'RL101', 'tenant_id'), (2, 'refused', 'RL101', 'id'), (3, 'refused', 'RL104', 'id'), (4, 'refused', 'RL101', 'model_slug'),
      (5, 'refused', 'RL101', 'model_slug'), (6, 'refused', 'RL108', 'model_slug'), (7, 'refused', 'RL108', 'provider'),
      (8, 'refused', 'RL104', 'attempt_id'), (9, 'refused', 'RL107', 'model')
  $$,
  'each bad argument of a start is refused by name');
do $$
begin
  perform pg_temp.at('0');
  perform pg_temp.decide('s1');
  perform pg_temp.decide('s2');
  perform pg_temp.decide('s3');
end
$$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.attempt_id, r.action, r.next_attempt_id, r.next_attempt_no, r.next_model_slug, r.next_provider, r.delay_ms,
      r.outcome_status
    from routeledger.fail_attempts(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s3'), 'attempt_id', pg_temp.id('s3/1'), 'error_type', 'x', 'next', 'hold'),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s1'), 'attempt_id', pg_temp.id('s1/1'), 'error_type', 'x', 'http_status', 500,
        'next_attempt_id', pg_temp.id('s1/2')),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('nowhere'), 'attempt_id', pg_temp.id('s1/1'), 'error_type', 'x'),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s2'), 'attempt_id', pg_temp.id('s2/1'), 'error_type', 'x', 'next', 'give_up'),
      'null'::jsonb,
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s1'), 'attempt_id', pg_temp.id('s1/1'), 'error_type', 'x', 'http_status', 500))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('s3'), pg_temp.id('s3/1'), 'hold', null::uuid, null::integer, null::text, null::text, 0::bigint, null::text),
      (2, 'accepted', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 'retry', pg_temp.id('s1/2'), 2, 'tap230/a', 'pa', 2000, null),
      (3, 'refused', 'RL201', null, null, null, null, null, null, null, null, null),
      (4, 'accepted', null, pg_temp.id('s2'), pg_temp.id('s2/1'), 'give_up', null, null, null, null, 0, 'failed'),
      (5, 'refused', 'RL107', null, null, null, null, null, null, null, null, null),
      (6, 'replayed', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 'retry', pg_temp.id('s1/2'), 2, 'tap230/a', 'pa', 2000, null)
  $$,
  'many failures: an answer each, in the order given');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.attempt_id, r.attempt_no, r.model_slug, r.provider
    from routeledger.start_attempts(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s3'), 'model_slug', 'tap230/b', 'attempt_id', pg_temp.id('s3/2')),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s2'), 'model_slug', 'tap230/b'),
      'null'::jsonb,
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s3'), 'model_slug', 'tap230/b', 'attempt_id', pg_temp.id('s3/2')),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('s3'), 'model_slug', 'tap230/b'))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('s3'), pg_temp.id('s3/2'), 2, 'tap230/b', 'pb'), (2, 'refused', 'RL305', null, null, null, null, null),
      (3, 'refused', 'RL107', null, null, null, null, null), (4, 'replayed', null, pg_temp.id('s3'), pg_temp.id('s3/2'), 2, 'tap230/b', 'pb'),
      (5, 'refused', 'RL303', null, null, null, null, null)
  $$,
  'many starts as well');
select is_empty($$ select * from routeledger.fail_attempts('[]') $$, 'no failures, no answers');
select is_empty($$ select * from routeledger.start_attempts('[]') $$, 'no starts, no answers');
select throws_ok($$ select routeledger.fail_attempts(null) $$, 'RL101', 'a required argument is missing', 'fail_attempts(null)');
select throws_ok($$ select routeledger.start_attempts(null) $$, 'RL101', 'a required argument is missing', 'start_attempts(null)');
select throws_ok(
  $$ select routeledger.fail_attempt(null, pg_temp.id('busy'), pg_temp.id('busy/1'), 'x') $$, 'RL101', 'a required argument is missing',
  'a failure needs a tenant');
select throws_ok(
  $$ select routeledger.start_attempt('tap230', null, 'm') $$, 'RL101', 'a required argument is missing', 'a start needs a decision');

reset role;
-- who closed it?
select results_eq(
  $$
    select d.name, routeledger._was_reaped(o, i)
    from unnest(array['done', 'late', 'late hold', 'policy']) d (name)
    cross join lateral pg_temp.decision(d.name) o
    cross join lateral (select * from pg_temp.attempts(d.name) x order by x.attempt_no desc limit 1) i
  $$,
  $$ values ('done', false), ('late', true), ('late hold', false), ('policy', false) $$, 'only the reaper''s work is the reaper''s');
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap230%' $$, 'no orphans');
select is_empty(
  $$ select * from routeledger.reconciliation r where r.tenant_id like 'tap230%' and not r.agrees $$, 'the sums agree');

-- cooldowns: what a failure does to the model, and the model to what follows
do $$
begin
  perform routeledger.configure('{"cooldown": "30 seconds", "cooldown_cap": "10 minutes", "cooldown_failures": 3, "probe_lease": "10 seconds",
    "retry_attempts_per_model": 2, "retry_max_attempts": 5}');
  perform pg_temp.at('0');
end
$$;
create function pg_temp.cool(p_model text) returns text language sql volatile security definer
as $$
  select format('%s %s %s', m.state, extract(epoch from m.until_at - pg_temp.t0())::integer, m.probe_attempt_id is not null)
  from routeledger.model_cooldowns m where m.tenant_id = 'tap230' and m.model_slug = p_model
$$;
create function pg_temp.next(p_name text, p_no integer, p_status integer, p_retry_after_ms bigint default null, p_error text default 'http')
returns table (action text, next_model text, delay_ms bigint, available numeric)
language sql volatile
as $$
  select f.action, f.next_model_slug, f.delay_ms, round(extract(epoch from f.available_at - pg_temp.t0()), 3)
  from routeledger.fail_attempt('tap230', pg_temp.id(p_name), pg_temp.id(p_name || '/' || p_no), p_error, p_http_status => p_status,
    p_retry_after_ms => p_retry_after_ms, p_next_attempt_id => pg_temp.id(p_name || '/' || p_no + 1)) f
$$;
create function pg_temp.open(p_name text, p_models text[], p_deadline interval default null, p_costs numeric[] default null, p_cap numeric default null) returns void
language sql volatile
as $$
  select routeledger.insert_decision('tap230', pg_temp.id(p_name), p_attempt_id => pg_temp.id(p_name || '/1'), p_deadline => p_deadline, p_budget_cap_usd => p_cap,
    p_candidates => (
      select jsonb_agg(jsonb_strip_nulls(jsonb_build_object('model_slug', m, 'projected_cost_usd', c)) order by n)
      from unnest(p_models, p_costs) with ordinality x (m, c, n)))
$$;
set local role routeledger_writer;
do $$ begin perform pg_temp.open('k1', '{c1,c2}'); perform pg_temp.open('k2', '{c1,c2}'); perform pg_temp.open('k3', '{c3,c1,c2}'); perform pg_temp.open('k4', '{c1}'); end $$;
select results_eq($$ select * from pg_temp.next('k1', 1, 429, 4000) $$, $$ values ('retry', 'c1', 4000::bigint, 4.000) $$, 'a provider that says for how long');
select is(pg_temp.cool('c1'), 'open 4 t', 'is left alone for as long, and the one who waits will be its probe');
select results_eq($$ select * from pg_temp.next('k2', 1, 500) $$, $$ values ('failover', 'c2', 0::bigint, 0.000) $$, 'others go on to the next at once');
select results_eq($$ select * from pg_temp.next('k3', 1, 400, null, 'ContextWindowExceededError') $$, $$ values ('failover', 'c2', 0::bigint, 0.000) $$, 'passing over what cools down');
select results_eq($$ select * from pg_temp.next('k4', 1, 503) $$, $$ values ('retry', 'c1', 14000::bigint, 14.000) $$, 'who has no other waits until the probe is back');
select results_eq($$ select * from pg_temp.next('k2', 1, 500) $$, $$ values ('failover', 'c2', 0::bigint, 0.000) $$, 'the same failure again gets the same answer');
do $$ begin perform pg_temp.at('4 seconds'); perform pg_temp.next('k1', 2, 503); end $$;
select is(pg_temp.cool('c1'), 'open 64 f', 'a probe that fails opens the cooldown again, for twice as long');
do $$ begin perform pg_temp.open('k5', '{c1}', '40 seconds'); end $$;
select results_eq($$ select * from pg_temp.next('k5', 1, 503) $$, $$ values ('give_up', null::text, 60000::bigint, 64.000) $$, 'who cannot wait so long gives up, and is told for how long');
select results_eq($$ select * from pg_temp.next('k5', 1, 503) $$, $$ values ('give_up', null::text, 60000::bigint, 64.000) $$, 'and told so again');
do $$ begin perform pg_temp.open('k6', '{c1}', '2 minutes'); end $$;
select results_eq($$ select * from pg_temp.next('k6', 1, 503) $$, $$ values ('retry', 'c1', 60000::bigint, 64.000) $$, 'who has the time waits');
do $$ begin perform pg_temp.at('64 seconds'); perform routeledger.fail_attempt('tap230', pg_temp.id('k6'), pg_temp.id('k6/2'), 'x', p_next => 'hold'); end $$;
select is(pg_temp.cool('c1'), 'open 184 f', 'a probe may end on hold as well');
do $$ begin perform pg_temp.at('185 seconds'); perform routeledger.start_attempt('tap230', pg_temp.id('k6'), 'c1', pg_temp.id('k6/3')); end $$;
select is(pg_temp.cool('c1'), 'probing 184 t', 'an attempt started by hand is a probe where one is due');
do $$
begin
  perform routeledger.complete_decision('tap230', pg_temp.id('k6'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1);
  perform pg_temp.at('0');
end
$$;
select is(pg_temp.cool('c1'), null, 'and its success ends the cooldown');
do $$ begin perform pg_temp.open('k7', '{d1,d2}'); end $$;
select results_eq($$ select * from pg_temp.next('k7', 1, 401) $$, $$ values ('give_up', null::text, 0::bigint, null::numeric) $$, 'what would fail everywhere gives up at once');
do $$ begin perform pg_temp.open('k8', '{d1,d2}', '0'); perform pg_temp.at('1 second'); end $$;
select results_eq($$ select * from pg_temp.next('k8', 1, 500) $$, $$ values ('give_up', null::text, 0::bigint, null::numeric) $$, 'after its deadline nothing is tried any more');
do $$ begin perform pg_temp.at('0'); perform pg_temp.open('k9', '{d1,d2,d3}', null, array[0.1, 0.5, 0.2], 0.3); end $$;
select results_eq($$ select * from pg_temp.next('k9', 1, 404) $$, $$ values ('failover', 'd3', 0::bigint, 0.000) $$, 'what costs more than the decision''s cap is passed over');
do $$ begin perform pg_temp.open('kx', '{e1,e2}'); perform pg_temp.open('ky', '{e1,e2}'); perform pg_temp.open('kz', '{e2}'); end $$;
select results_eq(
  $$
    select r.ord, r.action, r.next_model_slug
    from routeledger.fail_attempts(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('kx'), 'attempt_id', pg_temp.id('kx/1'), 'error_type', 'RateLimitError', 'retry_after_ms', 30000),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('ky'), 'attempt_id', pg_temp.id('ky/1'), 'error_type', 'RateLimitError', 'retry_after_ms', 30000),
      jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('kz'), 'attempt_id', pg_temp.id('kz/1'), 'error_type', 'x', 'http_status', 404))) r
  $$,
  $$ values (1, 'failover', 'e2'), (2, 'failover', 'e2'), (3, 'give_up', null) $$, 'a batch of failures cools models down too');
select is(pg_temp.cool('e1'), 'open 30 f', 'once');
reset role;

-- budgets
do $$ begin perform routeledger.set_budget('tap230', 'b', 1, p_period => 'total'); end $$;
create function pg_temp.money() returns text language sql volatile security definer
as $$ select format('%s %s', trim_scale(b.reserved_usd), trim_scale(b.spent_usd)) from routeledger.budget_status b where b.tenant_id = 'tap230' $$;
set local role routeledger_writer;
do $$ begin perform pg_temp.open('m1', '{f1,f2,f3}', null, array[0.1, 0.95, 0.3]); perform pg_temp.open('m2', '{f1}', null, array[0.1]); end $$;
select results_eq($$ select * from pg_temp.next('m1', 1, 404) $$, $$ values ('failover', 'f3', 0::bigint, 0.000) $$, 'what the budget does not cover is passed over');
select is(pg_temp.money(), '0.4 0', 'what is held is raised to what the next may cost');
do $$ begin perform routeledger.fail_attempt('tap230', pg_temp.id('m1'), pg_temp.id('m1/2'), 'x', p_http_status => 400, p_cost_usd => 0.05); end $$;
select is(pg_temp.money(), '0.1 0.05', 'giving up settles what the attempts have cost');
select is(
  (select r.action from routeledger.fail_attempts(pg_temp.each(jsonb_build_object('tenant_id', 'tap230', 'id', pg_temp.id('m2'), 'attempt_id', pg_temp.id('m2/1'),
    'error_type', 'x', 'http_status', 400, 'input_tokens', 10), '[{}, {}]')) r where r.ord = 1), 'give_up', 'so does a batch');
select is(pg_temp.money(), '0 0.15', 'where usage at an unknown price counts as what was reserved');
reset role;
do $$ begin perform routeledger.drop_budget('tap230', 'b'); end $$;

select * from finish();
rollback;
