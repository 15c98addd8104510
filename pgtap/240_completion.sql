-- 240 · complete_decision: the outcome and its link, in one statement.
begin;
\ir common.psql
do $$ begin perform routeledger.configure('{"lease": "5 minutes", "retry_attempts_per_model": 2, "retry_jitter": 0}'); end $$;
insert into routeledger.models (model_slug, provider) values ('tap240/a', 'pa');
insert into routeledger.model_prices (model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok, cache_read_usd_per_mtok)
values ('tap240/a', 'epoch', 2, 8, 0.5);
select plan(80);

create function pg_temp.decision(p_name text) returns setof routeledger.routing_outcomes
language sql stable security definer
as $$ select * from routeledger.routing_outcomes o where o.tenant_id = 'tap240' and o.id = pg_temp.id(p_name) $$;
create function pg_temp.attempts(p_name text) returns setof routeledger.inferences
language sql stable security definer
as $$ select * from routeledger.inferences i where i.tenant_id = 'tap240' and i.outcome_id = pg_temp.id(p_name) order by i.attempt_no $$;
create function pg_temp.ghosts() returns bigint
language sql stable security definer
as $$ select count(*) from routeledger.routing_outcomes o where o.created_at = '-infinity' $$;
-- a decision in flight: its attempts are called name/1, name/2, …
create function pg_temp.decide(p_name text, p_tenant text default 'tap240') returns void
language sql volatile
as $$
  select routeledger.insert_decision(p_tenant, pg_temp.id(p_name), p_candidates => '["tap240/a", "tap240/b"]', p_attempt_id => pg_temp.id(p_name || '/1'))
$$;
create function pg_temp.fail(p_name text, p_no integer, p_next text default 'policy') returns void
language sql volatile
as $$
  select routeledger.fail_attempt('tap240', pg_temp.id(p_name), pg_temp.id(p_name || '/' || p_no), '500', p_http_status => 500, p_next => p_next,
    p_next_attempt_id => case when p_next = 'policy' then pg_temp.id(p_name || '/' || p_no + 1) end)
$$;
set local role routeledger_writer;

-- success
do $$ begin perform pg_temp.decide('plain'); perform pg_temp.at('1500 milliseconds'); end $$;
select results_eq(
  $$
    select c.* from routeledger.complete_decision('tap240', pg_temp.id('plain'), 'succeeded', p_input_tokens => 1000, p_output_tokens => 500) c
  $$,
  $$
    values (pg_temp.id('plain'), pg_temp.id('plain/1'), 1, 'succeeded', 0.006::numeric, 'catalog', false, true)
  $$,
  'a success links the open attempt and says what it cost');
select results_eq(
  $$
    select d.outcome_status::text, d.inference_id, d.open_attempt_id, d.lease_expires_at, d.completed_at, d.late_completion, d.decision_rule_override,
      d.abandoned_at, d.decision_rule, d.created_at
    from pg_temp.decision('plain') d
  $$,
  $$
    values ('succeeded', pg_temp.id('plain/1'), null::uuid, null::timestamptz, pg_temp.t0() + interval '1500 milliseconds', false, null::text,
      null::timestamptz, 'caller_ranked', pg_temp.t0())
  $$,
  'the decision is closed');
select results_eq(
  $$
    select i.status::text, i.attempt_no, i.model_slug, i.input_tokens, i.output_tokens, i.cost_usd, i.cost_source, i.latency_ms, i.completed_at,
      i.error_type, i.created_at, i.started_at
    from pg_temp.attempts('plain') i
  $$,
  $$
    values ('succeeded', 1, 'tap240/a', 1000::bigint, 500::bigint, 0.006::numeric, 'catalog', 1500::double precision,
      pg_temp.t0() + interval '1500 milliseconds', null::text, pg_temp.t0(), pg_temp.t0())
  $$,
  'so is the attempt; its latency is measured');
do $$ begin perform pg_temp.at('0'); perform pg_temp.decide('full'); end $$;
select results_eq(
  $$
    select c.* from routeledger.complete_decision('tap240', pg_temp.id('full'), 'succeeded', pg_temp.id('full/1'), 1000, 500, 400, 100, 300, 0.7,
      2500.5, 120, 200, null, null, 'resp-1', 'tap240/a-2026', '{stop,length}') c
  $$,
  $$ values (pg_temp.id('full'), pg_temp.id('full/1'), 1, 'succeeded', 0.7::numeric, 'caller', false, true) $$, 'a cost that is given is kept');
select results_eq(
  $$
    select i.input_tokens, i.output_tokens, i.cache_read_input_tokens, i.cache_creation_input_tokens, i.reasoning_output_tokens, i.cost_usd,
      i.cost_source, i.cost_flag, i.latency_ms, i.ttft_ms, i.http_status, i.provider_response_id, i.response_model, i.finish_reasons
    from pg_temp.attempts('full') i
  $$,
  $$
    values (1000::bigint, 500::bigint, 400::bigint, 100::bigint, 300::bigint, 0.7::numeric, 'caller', 'above_catalog', 2500.5::double precision,
      120::double precision, 200, 'resp-1', 'tap240/a-2026', '{stop,length}'::text[])
  $$,
  'so is everything else, and the cost flagged where it is implausible');
do $$
begin
  perform routeledger.insert_decision('tap240', pg_temp.id('unpriced'), p_candidates => '["tap240/none"]');
  perform pg_temp.decide('second');
  perform pg_temp.fail('second', 1);
end
$$;
select results_eq(
  $$
    select c.cost_usd, c.cost_source from routeledger.complete_decision('tap240', pg_temp.id('unpriced'), 'succeeded', p_input_tokens => 0, p_output_tokens => 0) c
  $$,
  $$ values (null::numeric, 'unpriced') $$, 'an unknown price is not free');
select results_eq(
  $$
    select c.inference_id, c.attempt_no
    from routeledger.complete_decision('tap240', pg_temp.id('second'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) c
  $$,
  $$ values (pg_temp.id('second/2'), 2) $$, 'without attempt_id the open attempt is meant');

-- failure
do $$ begin perform pg_temp.decide('broken'); end $$;
select results_eq(
  $$
    select c.* from routeledger.complete_decision('tap240', pg_temp.id('broken'), 'failed', p_error_type => 'timeout', p_error_message => 'no answer',
      p_http_status => 504) c
  $$,
  $$ values (pg_temp.id('broken'), pg_temp.id('broken/1'), 1, 'failed', null::numeric, 'no_usage', false, true) $$, 'a failure is linked as well');
select results_eq(
  $$
    select i.status::text, i.error_type, i.error_message, i.http_status, d.outcome_status::text, d.inference_id
    from pg_temp.attempts('broken') i, pg_temp.decision('broken') d
  $$,
  $$ values ('failed', 'timeout', 'no answer', 504, 'failed', pg_temp.id('broken/1')) $$, 'with its error');
do $$
begin
  perform pg_temp.decide('half');
  perform routeledger.complete_decision('tap240', pg_temp.id('half'), 'failed', p_error_type => 'cut', p_error_message => repeat('x', 9000),
    p_input_tokens => 1000, p_output_tokens => 10);
end
$$;
select results_eq(
  $$ select length(i.error_message), i.cost_usd, i.cost_source from pg_temp.attempts('half') i $$,
  $$ values (8177, 0.00208::numeric, 'catalog') $$, 'what was used before it broke has its price; a long message is cut');

-- a failure before any dispatch
do $$ begin perform pg_temp.decide('quota'); perform pg_temp.decide('quota 2'); end $$;
select results_eq(
  $$ select c.* from routeledger.complete_decision('tap240', pg_temp.id('quota'), 'failed', p_decision_rule_override => 'quota_exhausted') c $$,
  $$ values (pg_temp.id('quota'), null::uuid, 1, 'failed', null::numeric, 'no_usage', false, true) $$, 'an override links nothing');
select results_eq(
  $$
    select d.outcome_status::text, d.decision_rule_override, d.inference_id, d.open_attempt_id, i.status::text, i.error_type
    from pg_temp.decision('quota') d, pg_temp.attempts('quota') i
  $$,
  $$ values ('failed', 'quota_exhausted', null::uuid, null::uuid, 'failed', 'not_dispatched') $$, 'its attempt is closed all the same');
select results_eq(
  $$ select c.inference_id, c.created from routeledger.complete_decision('tap240', pg_temp.id('quota'), 'failed', p_decision_rule_override => 'quota_exhausted') c $$,
  $$ values (null::uuid, false) $$, 'again: the same');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('quota'), 'failed', p_decision_rule_override => 'other') $$, 'RL302',
  'this decision already has a different outcome', 'another override is another outcome');
select results_eq(
  $$
    select c.created
    from routeledger.complete_decision('tap240', pg_temp.id('quota 2'), 'failed', pg_temp.id('quota 2/1'), p_error_type => 'budget',
      p_error_message => 'spent', p_decision_rule_override => 'budget_exhausted') c
  $$,
  $$ values (true) $$, 'it may have an error of its own');
select is((select i.error_type from pg_temp.attempts('quota 2') i), 'budget', 'which is kept');
do $$ begin perform pg_temp.decide('tried'); perform pg_temp.fail('tried', 1); perform pg_temp.decide('held'); perform pg_temp.fail('held', 1, 'hold'); end $$;
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('tried'), 'failed', p_decision_rule_override => 'x') $$, 'RL306',
  'decision_rule_override is only for a failure before any dispatch', 'after a retry it is too late for that');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('held'), 'failed', p_decision_rule_override => 'x') $$, 'RL306',
  'decision_rule_override is only for a failure before any dispatch', 'after a failure on hold too');

-- on hold
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('held'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$, 'RL304',
  'this attempt is not open', 'on hold there is nothing to succeed');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('tried'), 'failed', pg_temp.id('tried/1'), p_error_type => 'x') $$, 'RL304',
  'this attempt is not open', 'an attempt that is closed does not complete');
select is(
  (select c.detail from pg_temp.caught($$
    select routeledger.complete_decision('tap240', pg_temp.id('tried'), 'failed', pg_temp.id('tried/1'), p_error_type => 'x') $$) c),
  jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('tried'), 'attempt_id', pg_temp.id('tried/1'), 'attempt_status', 'failed',
    'open_attempt_id', pg_temp.id('tried/2')), 'DETAIL names the open one');
select results_eq(
  $$ select c.* from routeledger.complete_decision('tap240', pg_temp.id('held'), 'failed', p_error_type => 'enough') c $$,
  $$ values (pg_temp.id('held'), pg_temp.id('held/1'), 1, 'failed', null::numeric, 'no_usage', false, true) $$, 'on hold a failure says that none will follow');
select results_eq(
  $$ select d.inference_id, i.error_type from pg_temp.decision('held') d, pg_temp.attempts('held') i $$,
  $$ values (pg_temp.id('held/1'), '500') $$, 'the last attempt is linked as it was recorded');
select is(
  (select c.created from routeledger.complete_decision('tap240', pg_temp.id('held'), 'failed', p_error_type => 'enough') c), false, 'again: the same');

-- again
select results_eq(
  $$ select c.* from routeledger.complete_decision('tap240', pg_temp.id('plain'), 'succeeded', p_input_tokens => 1000, p_output_tokens => 500) c $$,
  $$ values (pg_temp.id('plain'), pg_temp.id('plain/1'), 1, 'succeeded', 0.006::numeric, 'catalog', false, false) $$, 'the same completion again is a replay');
select results_eq(
  $$
    select c.created from routeledger.complete_decision('tap240', pg_temp.id('plain'), 'succeeded', pg_temp.id('plain/1'), 1000, 500,
      p_latency_ms => 1500) c
  $$,
  $$ values (false) $$, 'also where it states what the ledger measured');
select results_eq(
  $$
    select r.ord, r.status, r.code
    from routeledger.complete_decisions(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('full'), 'outcome_status', 'succeeded', 'attempt_id', pg_temp.id('full/1'),
        'input_tokens', 1000, 'output_tokens', 500, 'cache_read_input_tokens', 400, 'cache_creation_input_tokens', 100,
        'reasoning_output_tokens', 300, 'cost_usd', 0.7, 'latency_ms', 2500.5, 'ttft_ms', 120, 'http_status', 200,
        'provider_response_id', 'resp-1', 'response_model', 'tap240/a-2026', 'finish_reasons', '["stop", "length"]'::jsonb),
      jsonb_build_array(
        '{}'::jsonb, '{"attempt_id": null}'::jsonb, '{"latency_ms": null}'::jsonb,
        '{"input_tokens": 1}'::jsonb, '{"output_tokens": 1}'::jsonb, '{"cache_read_input_tokens": null}'::jsonb,
        '{"cache_creation_input_tokens": 1}'::jsonb, '{"reasoning_output_tokens": 1}'::jsonb, '{"cost_usd": null}'::jsonb, '{"cost_usd": 0.8}'::jsonb,
        '{"latency_ms": 1}'::jsonb, '{"ttft_ms": null}'::jsonb, '{"http_status": 201}'::jsonb, '{"provider_response_id": "x"}'::jsonb,
        '{"response_model": null}'::jsonb, '{"finish_reasons": ["stop"]}'::jsonb, '{"outcome_status": "failed", "error_type": "x"}'::jsonb))) r
  $$,
  $$
    select n::integer, case when n <= 3 then 'replayed' else 'refused' end, case when n > 3 then 'RL302' end from generate_series(1, 17) n
  $$,
  'a different one is RL302');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('plain'), 'succeeded', p_input_tokens => 1, p_output_tokens => 500) $$, 'RL302',
  'this decision already has a different outcome', 'from the single form too');
select results_eq(
  $$
    select c.detail ->> 'outcome_status', c.detail ->> 'inference_id'
    from pg_temp.caught($sql$
      select routeledger.complete_decision('tap240', pg_temp.id('plain'), 'failed', p_error_type => 'x') $sql$) c
  $$,
  $$ values ('succeeded', pg_temp.id('plain/1')::text) $$, 'DETAIL says which it has');
select is((select i.input_tokens from pg_temp.attempts('plain') i), 1000::bigint, 'and nothing is overwritten');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('second'), 'succeeded', pg_temp.id('second/1'), 1, 1) $$, 'RL302',
  'this decision already has a different outcome', 'an earlier attempt is another outcome');
do $$ begin perform pg_temp.decide('given up'); perform pg_temp.fail('given up', 1, 'give_up'); end $$;
select results_eq(
  $$
    select c.inference_id, c.created from routeledger.complete_decision('tap240', pg_temp.id('given up'), 'failed', p_error_type => '500', p_http_status => 500) c
  $$,
  $$ values (pg_temp.id('given up/1'), false) $$, 'a failure that fail_attempt closed the decision with is the same failure');

-- what does not fit the ledger
do $$ begin perform pg_temp.decide('open'); perform routeledger.insert_decision('tap240', pg_temp.id('rejected')); end $$;
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('nowhere'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$, 'RL201',
  'there is no such decision', 'an unknown decision');
select throws_ok(
  $$ select routeledger.complete_decision('tap240-other', pg_temp.id('open'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$, 'RL201',
  'there is no such decision', 'or another tenant''s');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', '017f22e2-79b0-7cc3-98c4-dc0c0c07398f', 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$,
  'RL201', 'there is no such decision', 'or one of a time without a partition');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('open'), 'succeeded', pg_temp.id('plain/1'), 1, 1) $$, 'RL202',
  'this decision has no such attempt', 'an attempt of another decision');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('rejected'), 'failed', p_error_type => 'x') $$, 'RL305',
  'this decision is already closed', 'a rejected decision has no outcome to give');
select is(
  (select d.outcome_status from pg_temp.decision('open') d), null, 'the open decision is still open');

-- after the reaper
do $$
begin
  perform pg_temp.decide('late');
  perform pg_temp.decide('late 2');
  perform pg_temp.decide('late 3');
  perform pg_temp.fail('late 3', 1);
  perform pg_temp.decide('late hold');
  perform pg_temp.fail('late hold', 1, 'hold');
  perform pg_temp.at('1 hour');
  perform routeledger.reap(p_tenant_id => 'tap240');
  perform pg_temp.at('61 minutes');
end
$$;
select results_eq(
  $$ select c.* from routeledger.complete_decision('tap240', pg_temp.id('late'), 'succeeded', p_input_tokens => 1000, p_output_tokens => 500) c $$,
  $$ values (pg_temp.id('late'), pg_temp.id('late/1'), 1, 'succeeded', 0.006::numeric, 'catalog', true, true) $$, 'a completion that comes too late is accepted, and marked');
select results_eq(
  $$
    select d.outcome_status::text, d.late_completion, d.inference_id, d.abandoned_at, d.completed_at, d.lease_expires_at, i.status::text, i.error_type,
      i.error_message, i.completed_at
    from pg_temp.decision('late') d, pg_temp.attempts('late') i
  $$,
  $$
    values ('succeeded', true, pg_temp.id('late/1'), pg_temp.t0() + interval '1 hour', pg_temp.t0() + interval '61 minutes', null::timestamptz,
      'succeeded', null::text, null::text, pg_temp.t0() + interval '61 minutes')
  $$,
  'the attempt is what it turned out to be');
select results_eq(
  $$ select c.late, c.created from routeledger.complete_decision('tap240', pg_temp.id('late'), 'succeeded', p_input_tokens => 1000, p_output_tokens => 500) c $$,
  $$ values (true, false) $$, 'again: the same');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('late'), 'succeeded', p_input_tokens => 2, p_output_tokens => 500) $$, 'RL302',
  'this decision already has a different outcome', 'once');
select results_eq(
  $$ select c.outcome_status, c.late from routeledger.complete_decision('tap240', pg_temp.id('late 2'), 'failed', pg_temp.id('late 2/1'), p_error_type => 'cancelled') c $$,
  $$ values ('failed', true) $$, 'a failure may be late too');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('late 3'), 'succeeded', pg_temp.id('late 3/1'), 1, 1) $$, 'RL305',
  'this decision is already closed', 'but not for an attempt that had failed before');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('late 3'), 'failed', p_decision_rule_override => 'x') $$, 'RL305',
  'this decision is already closed', 'nor as one that was never dispatched');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('late hold'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1) $$, 'RL305',
  'this decision is already closed', 'nor for one on hold');
do $$ begin perform pg_temp.at('0'); end $$;

-- refusals
do $$ begin perform pg_temp.decide('fresh'); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint
    from routeledger.complete_decisions(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('fresh'), 'outcome_status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1),
      jsonb_build_array(
        '{"tenant_id": null}'::jsonb, jsonb_build_object('tenant_id', repeat('x', 201)), '{"id": null}'::jsonb,
        '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"outcome_status": null}'::jsonb, '{"outcome_status": "abandoned"}'::jsonb,
        '{"outcome_status": "done"}'::jsonb, '{"attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb,
        '{"input_tokens": null}'::jsonb, '{"output_tokens": null}'::jsonb, '{"error_type": "x"}'::jsonb, '{"error_message": "x"}'::jsonb,
        '{"decision_rule_override": "x"}'::jsonb, '{"outcome_status": "failed"}'::jsonb, '{"outcome_status": "failed", "error_type": ""}'::jsonb,
        jsonb_build_object('outcome_status', 'failed', 'error_type', repeat('x', 201)),
        '{"outcome_status": "failed", "decision_rule_override": "No Such"}'::jsonb,
        jsonb_build_object('provider_response_id', repeat('x', 501)), jsonb_build_object('response_model', repeat('x', 301)),
        jsonb_build_object('finish_reasons', (select jsonb_agg('x'::text) from generate_series(1, 101))),
        '{"finish_reasons": [["stop"], ["stop"]]}'::jsonb, jsonb_build_object('finish_reasons', jsonb_build_array(repeat('x', 9000))),
        '{"input_tokens": -1}'::jsonb, '{"output_tokens": 1000000000001}'::jsonb, '{"cache_read_input_tokens": -1}'::jsonb,
        '{"cache_creation_input_tokens": -1}'::jsonb, '{"reasoning_output_tokens": -1}'::jsonb, '{"cost_usd": "NaN"}'::jsonb,
        '{"latency_ms": -1}'::jsonb, '{"ttft_ms": "NaN"}'::jsonb, '{"http_status": 0}'::jsonb, '{"tokens": 1}'::jsonb, '{"input_tokens": 1.5}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
    order by r.ord
  $$,
  $$
    select n::integer, 'refused', split_part(fault, ' ', 1), split_part(fault, ' ', 2), true
    from unnest(array[
      'RL101 tenant_id', 'RL108 tenant_id', 'RL101 id', 'RL104 id', 'RL101 outcome_status', 'RL102 outcome_status', 'RL102 outcome_status',
      'RL104 attempt_id', 'RL101 input_tokens', 'RL101 output_tokens', 'RL102 outcome_status', 'RL102 outcome_status', 'RL102 outcome_status',
      'RL101 error_type', 'RL101 error_type', 'RL108 error_type', 'RL102 decision_rule_override', 'RL108 provider_response_id',
      'RL108 response_model', 'RL108 finish_reasons', 'RL108 finish_reasons', 'RL108 finish_reasons', 'RL103 input_tokens', 'RL103 output_tokens',
      'RL103 cache_read_input_tokens', 'RL103 cache_creation_input_tokens', 'RL103 reasoning_output_tokens', 'RL103 cost_usd', 'RL103 latency_ms',
      'RL103 ttft_ms', 'RL103 http_status', 'RL107 tokens', 'RL107 row'
    ]) with ordinality w (fault, n)
  $$,
  'each bad argument is refused by name');
select is((select d.outcome_status from pg_temp.decision('fresh') d), null, 'and changes nothing');
select throws_ok(
  $$ select routeledger.complete_decision('tap240', pg_temp.id('fresh'), 'abandoned') $$, 'RL102', 'an argument is not one of the words allowed for it',
  'only the reaper abandons');
select lives_ok(
  $$
    select routeledger.complete_decision('tap240', pg_temp.id('fresh'), 'succeeded', p_input_tokens => 1000000000000, p_output_tokens => 0,
      p_cost_usd => 1000000000, p_latency_ms => 10000000000, p_ttft_ms => 0, p_http_status => 599, p_provider_response_id => repeat('x', 500),
      p_response_model => repeat('x', 300), p_finish_reasons => (select array_agg('x'::text) from generate_series(1, 100)))
  $$, 'what is just within bounds is accepted');

-- the set form
do $$ begin perform pg_temp.decide('s' || n) from generate_series(1, 6) n; perform pg_temp.fail('s4', 1); end $$;
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.inference_id, r.attempt_no, r.outcome_status, r.cost_usd, r.cost_source, r.late
    from routeledger.complete_decisions(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s3'), 'outcome_status', 'failed', 'error_type', 'x', 'attempt_id', pg_temp.id('s3/1')),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s1'), 'outcome_status', 'succeeded', 'attempt_id', pg_temp.id('s1/1'),
        'input_tokens', 1000, 'output_tokens', 500),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s2'), 'outcome_status', 'succeeded', 'input_tokens', 1000, 'output_tokens', 0),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s1'), 'outcome_status', 'succeeded', 'input_tokens', 1000, 'output_tokens', 500),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s4'), 'outcome_status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1,
        'attempt_id', pg_temp.id('s4/1')),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('nowhere'), 'outcome_status', 'succeeded', 'input_tokens', 1, 'output_tokens', 1),
      '"x"'::jsonb,
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s5'), 'outcome_status', 'failed', 'decision_rule_override', 'quota'),
      jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s6'), 'outcome_status', 'succeeded', 'input_tokens', 1))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('s3'), pg_temp.id('s3/1'), 1, 'failed', null::numeric, 'no_usage', false),
      (2, 'accepted', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 1, 'succeeded', 0.006, 'catalog', false),
      (3, 'accepted', null, pg_temp.id('s2'), pg_temp.id('s2/1'), 1, 'succeeded', 0.002, 'catalog', false),
      (4, 'replayed', null, pg_temp.id('s1'), pg_temp.id('s1/1'), 1, 'succeeded', 0.006, 'catalog', false),
      (5, 'refused', 'RL304', null, null, null, null, null, null, null),
      (6, 'refused', 'RL201', null, null, null, null, null, null, null),
      (7, 'refused', 'RL107', null, null, null, null, null, null, null),
      (8, 'accepted', null, pg_temp.id('s5'), null, 1, 'failed', null, 'no_usage', false),
      (9, 'refused', 'RL101', null, null, null, null, null, null, null)
  $$,
  'many completions: an answer each, in the order given, whatever becomes of the neighbours');
select is(pg_temp.ghosts(), 0::bigint, 'no row is left of a decision that did not exist');
select is_empty($$ select * from routeledger.complete_decisions('[]') $$, 'none: no answers');
select results_eq(
  $$
    select r.ord, r.status, r.inference_id
    from routeledger.complete_decisions(jsonb_build_array(jsonb_build_object('tenant_id', 'tap240', 'id', pg_temp.id('s6'), 'outcome_status', 'succeeded',
      'input_tokens', 1, 'output_tokens', 1))) r
  $$,
  $$ values (1, 'accepted', pg_temp.id('s6/1')) $$, 'one');
select throws_ok($$ select routeledger.complete_decisions(null) $$, 'RL101', 'a required argument is missing', 'null');
select throws_ok(
  $$ select routeledger.complete_decisions('{}') $$, 'RL107', 'a row does not have the shape of this routine''s parameters', 'not an array');

-- the set form is the single form, row by row
reset role;
create temp table story (n integer primary key, given jsonb not null);
grant select on story to public;
insert into story
select row_number() over (), v.given
from (values
  ('{"outcome_status": "succeeded", "input_tokens": 1000, "output_tokens": 500}'::jsonb),
  ('{"outcome_status": "succeeded", "input_tokens": 1000, "output_tokens": 500, "cache_read_input_tokens": 400, "cost_usd": 0.5, "latency_ms": 7,
     "ttft_ms": 3, "http_status": 200, "provider_response_id": "r", "response_model": "m", "reasoning_output_tokens": 9,
     "cache_creation_input_tokens": 5}'),
  ('{"outcome_status": "succeeded", "input_tokens": 0, "output_tokens": 0, "finish_reasons": ["stop"]}'),
  ('{"outcome_status": "failed", "error_type": "timeout"}'),
  ('{"outcome_status": "failed", "error_type": "500", "error_message": "x", "http_status": 500, "input_tokens": 5}'),
  ('{"outcome_status": "failed", "decision_rule_override": "quota"}'),
  ('{"outcome_status": "failed"}'), ('{"outcome_status": "succeeded"}'), ('{}')) v (given);
create function pg_temp.singly(p_n integer, p_given jsonb) returns text
language plpgsql volatile
as $$
declare
  c record;
  g routeledger.completion_input := jsonb_populate_record(null::routeledger.completion_input, p_given);
begin
  select * into c from routeledger.complete_decision('tap240-single', pg_temp.id('story ' || p_n), g.outcome_status, null, g.input_tokens, g.output_tokens,
    g.cache_read_input_tokens, g.cache_creation_input_tokens, g.reasoning_output_tokens, g.cost_usd, g.latency_ms, g.ttft_ms, g.http_status,
    g.error_type, g.error_message, g.provider_response_id, g.response_model, g.finish_reasons, g.decision_rule_override);
  return concat_ws('|', case when c.created then 'accepted' else 'replayed' end, c.inference_id, c.attempt_no, c.outcome_status, c.cost_usd, c.cost_source, c.late);
exception
  when others then
    return 'refused|' || sqlstate;
end
$$;
create function pg_temp.together(p_tenant text, p_named boolean) returns table (n integer, answer text)
language sql volatile
as $$
  select r.ord, concat_ws('|', r.status, r.code, r.inference_id, r.attempt_no, r.outcome_status, r.cost_usd, r.cost_source, r.late)
  from routeledger.complete_decisions((
    select jsonb_agg(s.given || jsonb_build_object('tenant_id', p_tenant, 'id', pg_temp.id('story ' || s.n))
      || case when p_named then jsonb_build_object('attempt_id', pg_temp.id('story ' || s.n || '/1')) else '{}' end order by s.n)
    from story s)) r
$$;
set local role routeledger_writer;
do $$
begin
  perform pg_temp.decide('story ' || s.n, t)
  from story s cross join unnest(array['tap240-single', 'tap240-many', 'tap240-named']) t;
  perform pg_temp.at('3 seconds');
end
$$;
select results_eq(
  $$ select * from pg_temp.together('tap240-many', false) $$, $$ select s.n, pg_temp.singly(s.n, s.given) from story s order by s.n $$,
  'together as one by one: the same answers');
select results_eq(
  $$ select * from pg_temp.together('tap240-named', true) $$,
  $$ select t.n, replace(t.answer, 'replayed', 'accepted') from pg_temp.together('tap240-many', false) t $$, 'with the attempt named: the same');
select results_eq(
  $$ select * from pg_temp.together('tap240-named', true) $$, $$ select s.n, pg_temp.singly(s.n, s.given) from story s order by s.n $$, 'and again: the same');
reset role;
select results_eq(
  $$ select to_jsonb(o) - 'tenant_id' from routeledger.routing_outcomes o where o.tenant_id = 'tap240-many' order by o.id $$,
  $$ select to_jsonb(o) - 'tenant_id' from routeledger.routing_outcomes o where o.tenant_id = 'tap240-single' order by o.id $$,
  'the rows are the same');
select results_eq(
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap240-many' order by i.outcome_id $$,
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap240-single' order by i.outcome_id $$,
  'so are the attempts');
select results_eq(
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap240-named' order by i.outcome_id $$,
  $$ select to_jsonb(i) - 'tenant_id' from routeledger.inferences i where i.tenant_id = 'tap240-single' order by i.outcome_id $$,
  'with the attempt named as well');
select is_empty($$ select * from routeledger.orphans o where o.tenant_id like 'tap240%' $$, 'no orphans');
select is_empty(
  $$ select * from routeledger.reconciliation r where r.tenant_id like 'tap240%' and not r.agrees $$, 'the sums agree');

-- budgets
reset role;
do $$ begin perform pg_temp.at('0'); perform routeledger.set_budget('tap240b', 'b', 1, p_period => 'total'); end $$;
create function pg_temp.money() returns text language sql volatile security definer
as $$ select format('%s %s', trim_scale(b.reserved_usd), trim_scale(b.spent_usd)) from routeledger.budget_status b where b.tenant_id = 'tap240b' $$;
create function pg_temp.buy(p_name text) returns void language sql volatile
as $$
  select routeledger.insert_decision('tap240b', pg_temp.id(p_name), p_candidates => '[{"model_slug": "tap240b", "projected_cost_usd": 0.1}]', p_lease => '1 minute')
$$;
create function pg_temp.sell(p_name text, p_cost numeric, p_status text default 'succeeded') returns boolean language sql volatile
as $$
  select c.created
  from routeledger.complete_decision('tap240b', pg_temp.id(p_name), p_status, p_cost_usd => p_cost, p_error_type => case p_status when 'failed' then 'x' end,
    p_input_tokens => case p_status when 'succeeded' then 1 end, p_output_tokens => case p_status when 'succeeded' then 1 end) c
$$;
set local role routeledger_writer;
do $$ begin perform pg_temp.buy('m' || n) from generate_series(1, 8) n; end $$;
select is(pg_temp.money(), '0.8 0', 'eight decisions hold their projected cost');
select is(pg_temp.sell('m1', 0.03), true, 'a completion');
select is(pg_temp.money(), '0.7 0.03', 'settles what it cost');
select is(pg_temp.sell('m1', 0.03), false, 'a replay of it');
select is(pg_temp.money(), '0.7 0.03', 'nothing more');
do $$ begin perform pg_temp.sell('m2', null); end $$;
select is(pg_temp.money(), '0.6 0.13', 'a success at an unknown cost counts as what was reserved');
do $$ begin perform pg_temp.sell('m3', null, 'failed'); end $$;
select is(pg_temp.money(), '0.5 0.13', 'a failure without usage as nothing');
do $$ begin perform pg_temp.sell('m4', 0.4); end $$;
select is(pg_temp.money(), '0.4 0.53', 'a cost beyond what was reserved is spent all the same');
do $$ begin perform routeledger.complete_decision('tap240b', pg_temp.id('m5'), 'failed', p_decision_rule_override => 'no_network'); end $$;
select is(pg_temp.money(), '0.3 0.53', 'what was never dispatched costs nothing');
select results_eq(
  $$
    select r.ord, r.status
    from routeledger.complete_decisions(pg_temp.each('{"tenant_id": "tap240b", "outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.01}',
      jsonb_build_array(jsonb_build_object('id', pg_temp.id('m6')), jsonb_build_object('id', pg_temp.id('m7')), jsonb_build_object('id', pg_temp.id('m6')),
        jsonb_build_object('id', pg_temp.id('m1'), 'cost_usd', 0.03)))) r
  $$,
  $$ values (1, 'accepted'), (2, 'accepted'), (3, 'replayed'), (4, 'replayed') $$, 'a batch');
select is(pg_temp.money(), '0.1 0.55', 'settles each once');
reset role;
do $$ begin perform pg_temp.at('1 hour'); perform routeledger.reap(p_tenant_id => 'tap240b'); end $$;
select is(pg_temp.money(), '0 0.55', 'the reaper releases what was abandoned');
set local role routeledger_writer;
do $$ begin perform pg_temp.sell('m8', 0.02); end $$;
select is(pg_temp.money(), '0 0.57', 'and a late completion is spent after all');
reset role;
select is((select count(*) from routeledger.budget_holds h where h.tenant_id = 'tap240b'), 0::bigint, 'nothing is held in the end');
do $$ begin perform routeledger.drop_budget('tap240b', 'b'); end $$;

-- probes
insert into routeledger.cooldowns (tenant_id, model_slug, until_at, opened_count, first_failed_at, last_failed_at, probe_attempt_id, probe_until)
select 'tap240b', 'p' || n, pg_temp.t0(), 1, pg_temp.t0(), pg_temp.t0(), pg_temp.id('probe' || n || '/1'), pg_temp.t0() + interval '1 day' from generate_series(1, 4) n;
do $$ begin perform pg_temp.at('0'); end $$;
do $$
begin
  for n in 1 .. 5 loop
    perform routeledger.insert_decision('tap240b', pg_temp.id('probe' || n), p_attempt_id => pg_temp.id('probe' || n || '/1'), p_candidates => format('["p%s"]', least(n, 4))::jsonb);
  end loop;
  update routeledger.routing_outcomes o set probe_attempt_id = o.open_attempt_id
  where o.tenant_id = 'tap240b' and o.id in (select pg_temp.id('probe' || n) from generate_series(1, 4) n);
end
$$;
set local role routeledger_writer;
do $$ begin perform pg_temp.sell('probe5', 0); perform pg_temp.sell('probe1', 0); perform pg_temp.sell('probe2', 0, 'failed'); end $$;
select is(
  (select r.status from routeledger.complete_decisions(pg_temp.each('{"tenant_id": "tap240b", "outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}',
    jsonb_build_array(jsonb_build_object('id', pg_temp.id('probe3')), jsonb_build_object('id', pg_temp.id('probe3'))))) r where r.ord = 1), 'accepted', 'probes in a batch');
reset role;
select results_eq(
  $$ select c.model_slug, c.probe_attempt_id is not null, c.until_at > pg_temp.t0(), c.opened_count from routeledger.cooldowns c where c.tenant_id = 'tap240b' order by 1 $$,
  $$ values ('p2', false, true, 2), ('p4', true, false, 1) $$, 'a probe that succeeds ends the cooldown, one that fails renews it, and what is no probe touches nothing');

select * from finish();
rollback;
