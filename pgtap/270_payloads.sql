-- 270 · Payloads: what was asked and answered, kept apart.
begin;
\ir common.psql
select plan(30);

create function pg_temp.payload(p_attempt text) returns setof routeledger.inference_payloads
language sql stable security definer
as $$ select * from routeledger.inference_payloads p where p.tenant_id = 'tap270' and p.inference_id = pg_temp.id(p_attempt) $$;
set local role routeledger_writer;
do $$
declare
  v_name text;
begin
  foreach v_name in array array['d', 'e', 'f'] loop
    perform routeledger.insert_decision('tap270', pg_temp.id(v_name), p_candidates => '["m"]', p_attempt_id => pg_temp.id(v_name || '/1'));
  end loop;
  perform routeledger.fail_attempt('tap270', pg_temp.id('d'), pg_temp.id('d/1'), '500', p_next_attempt_id => pg_temp.id('d/2'));
end
$$;

select results_eq(
  $$ select p.* from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), '{"q": 1}', '{"a": 1}') p $$,
  $$ values (pg_temp.id('d'), pg_temp.id('d/2'), true) $$, 'a request and its response are kept');
select results_eq(
  $$ select p.outcome_id, p.request, p.response, p.created_at from pg_temp.payload('d/2') p $$,
  $$ values (pg_temp.id('d'), '{"q": 1}'::jsonb, '{"a": 1}'::jsonb, pg_temp.t0()) $$, 'as they are');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), '{"q": 1}', '{"a": 1}') p), false, 'again: a replay');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), '{"q": 1}') p), false, 'so is a part of it');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), p_response => '{"a": 1}') p), false, 'either part');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), '{"q": 2}') $$, 'RL301',
  'this id already holds a different payload', 'another request is RL301');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/2'), '{"q": 1}', '{"a": 2}') $$, 'RL301',
  'this id already holds a different payload', 'another response too');
select results_eq(
  $$ select p.request, p.response from pg_temp.payload('d/2') p $$, $$ values ('{"q": 1}'::jsonb, '{"a": 1}'::jsonb) $$, 'and nothing changes');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/1'), p_request => '{"q": 1}') p), true,
  'the request first, of an attempt that failed as well');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/1'), p_response => '"no"') p), true, 'then the response');
select results_eq(
  $$ select p.request, p.response from pg_temp.payload('d/1') p $$, $$ values ('{"q": 1}'::jsonb, '"no"'::jsonb) $$, 'make one payload');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('e'), pg_temp.id('e/1'), p_response => 'null') p), true, 'or the response first');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('e'), pg_temp.id('e/1'), '{"q": 1}', '{"a": 2}') $$, 'RL301',
  'this id already holds a different payload', 'a new part beside one that differs: neither is kept');
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('e'), pg_temp.id('e/1'), '{"q": 1}', 'null') p), true,
  'a new part beside the one that is there');
do $$ begin perform routeledger.complete_decision('tap270', pg_temp.id('f'), 'succeeded', p_input_tokens => 1, p_output_tokens => 1); end $$;
select is(
  (select p.created from routeledger.record_payload('tap270', pg_temp.id('f'), pg_temp.id('f/1'), '[]') p), true, 'after the decision was closed, too');

-- refusals
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('nowhere'), pg_temp.id('d/1'), '{}') $$, 'RL201', 'there is no such decision', 'an unknown decision');
select throws_ok(
  $$ select routeledger.record_payload('tap270-other', pg_temp.id('d'), pg_temp.id('d/1'), '{}') $$, 'RL201', 'there is no such decision', 'another tenant''s');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('e/1'), '{}') $$, 'RL202', 'this decision has no such attempt', 'an attempt of another');
select throws_ok(
  $$ select routeledger.record_payload(null, pg_temp.id('d'), pg_temp.id('d/1'), '{}') $$, 'RL101', 'a required argument is missing', 'no tenant');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger.record_payload('tap270', pg_temp.id('nowhere'), pg_temp.id('d/1'), '{}') $$) c),
  jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('nowhere'), 'attempt_id', pg_temp.id('d/1')), 'DETAIL says what was looked for');
select results_eq(
  $$
    select r.ord, r.status, r.code, r.detail ->> 'parameter', r.message = e.message and r.hint = e.hint
    from routeledger.record_payloads(pg_temp.each(
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('d'), 'attempt_id', pg_temp.id('d/1'), 'request', '{}'::jsonb),
      jsonb_build_array(
        '{"tenant_id": ""}'::jsonb, jsonb_build_object('tenant_id', repeat('x', 201)), '{"id": null}'::jsonb,
        '{"id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"attempt_id": null}'::jsonb,
        '{"attempt_id": "919108f7-52d1-4320-9bac-f847db4148a8"}'::jsonb, '{"reply": 1}'::jsonb, '{"id": "x"}'::jsonb))) r
    left join routeledger.errors() e on e.code = r.code
  $$,
  $$
    select n::integer, 'refused', split_part(fault, ' ', 1), split_part(fault, ' ', 2), true
    from unnest(array['RL101 tenant_id', 'RL108 tenant_id', 'RL101 id', 'RL104 id', 'RL101 attempt_id', 'RL104 attempt_id', 'RL107 reply', 'RL107 row'])
      with ordinality w (fault, n)
  $$,
  'each bad argument is refused by name');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/1')) $$, 'RL101', 'a required argument is missing', 'nothing to keep');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/1'), to_jsonb(repeat('x', 16777217))) $$, 'RL108',
  'a text or document is longer than the ledger keeps', 'a request that is too large');
select throws_ok(
  $$ select routeledger.record_payload('tap270', pg_temp.id('d'), pg_temp.id('d/1'), p_response => to_jsonb(repeat('x', 16777217))) $$, 'RL108',
  'a text or document is longer than the ledger keeps', 'or a response');

-- the set form
select results_eq(
  $$
    select r.ord, r.status, r.code, r.id, r.attempt_id
    from routeledger.record_payloads(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('f'), 'attempt_id', pg_temp.id('f/1'), 'response', '[1]'::jsonb),
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('d'), 'attempt_id', pg_temp.id('d/2'), 'request', '{"q": 1}'::jsonb),
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('d'), 'attempt_id', pg_temp.id('d/2'), 'request', '{"q": 3}'::jsonb),
      '[]'::jsonb,
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('f'), 'attempt_id', pg_temp.id('f/1'), 'response', '[1]'::jsonb),
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('nowhere'), 'attempt_id', pg_temp.id('f/1'), 'response', '[1]'::jsonb))) r
  $$,
  $$
    values
      (1, 'accepted', null::text, pg_temp.id('f'), pg_temp.id('f/1')), (2, 'replayed', null, pg_temp.id('d'), pg_temp.id('d/2')),
      (3, 'refused', 'RL301', null, null), (4, 'refused', 'RL107', null, null), (5, 'replayed', null, pg_temp.id('f'), pg_temp.id('f/1')),
      (6, 'refused', 'RL201', null, null)
  $$,
  'many payloads: an answer each, in the order given, whatever becomes of the neighbours');
select is_empty($$ select * from routeledger.record_payloads('[]') $$, 'none: no answers');
select throws_ok($$ select routeledger.record_payloads(null) $$, 'RL101', 'a required argument is missing', 'null');
select results_eq(
  $$
    select r.response ->> 'a' from routeledger.record_payloads(jsonb_build_array(
      jsonb_build_object('tenant_id', 'tap270', 'id', pg_temp.id('d'), 'attempt_id', pg_temp.id('d/2'), 'response', '{"a": 1}'::jsonb))) p
    cross join pg_temp.payload('d/2') r
  $$,
  $$ values ('1') $$, 'one');

-- apart
reset role;
select is_empty(
  $$
    select a.attname from pg_attribute a
    where a.attrelid in ('routeledger.routing_outcomes'::regclass, 'routeledger.inferences'::regclass) and a.attname in ('request', 'response')
  $$,
  'no payload in the rows that every query reads');
select is_empty(
  $$
    select v.viewname from pg_views v
    where v.schemaname = 'routeledger' and v.definition ~ 'inference_payloads'
  $$,
  'nor in any view');

select * from finish();
rollback;
