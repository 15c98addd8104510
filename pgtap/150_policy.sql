-- 150 · Policy: rules to rank by, what follows a failure, cooldowns and their probes, budgets.
begin;
\ir common.psql
do $$
begin
  perform routeledger.configure(
    '{"retry_attempts_per_model": 3, "retry_base": "500 milliseconds", "retry_cap": "20 seconds", "retry_jitter": 0, "cooldown_failures": 3,
      "cooldown_window": "1 minute", "cooldown": "30 seconds", "cooldown_cap": "10 minutes", "probe_lease": "10 seconds"}');
end
$$;
select plan(144);

-- routing policies
select results_eq(
  $$ select p.name, p.version, p.min_quality, p.ordering, p.exploration, length(p.ruleset_hash) from routeledger.routing_policies p where p.name = 'default' $$,
  $$ values ('default', 1, 0.8::double precision, 'price', 'off', 64) $$, 'an install brings the default policy');
set local role routeledger_admin;
select results_eq(
  $$ select s.name, s.version, s.created from routeledger.set_policy('tap150', '{"min_quality": 0.9, "deny": ["b", "a"]}') s $$,
  $$ values ('tap150', 1, true) $$, 'set_policy() writes a first version');
select results_eq(
  $$ select s.name, s.version, s.created from routeledger.set_policy('tap150', '{"deny": ["a", "b", "a"], "min_quality": 0.90, "ordering": "price"}') s $$,
  $$ values ('tap150', 1, false) $$, 'the same rules again, however written, change nothing');
select results_eq(
  $$ select s.version, s.created from routeledger.set_policy('tap150', '{"min_quality": 0.95, "budget_cap_usd": 0.50}') s $$,
  $$ values (2, true) $$, 'other rules are the next version');
select results_eq(
  $$ select p.name, p.version, p.min_quality, p.deny, p.created_by = session_user from routeledger.current_policies p where p.name = 'tap150' $$,
  $$ values ('tap150', 2, 0.95::double precision, array[]::text[], true) $$, 'current_policies shows the newest; what is left out has its default');
select is(
  (select s.ruleset_hash from routeledger.set_policy('tap150-twin', '{"budget_cap_usd": 0.5, "min_quality": 0.95}') s),
  (select p.ruleset_hash from routeledger.current_policies p where p.name = 'tap150'), 'equal rules have equal hashes, whatever their name');
reset role;
select results_eq(
  $$ select p.version, p.min_quality from routeledger._policy('tap150') p union all select p.version, p.min_quality from routeledger._policy('tap150@1') p $$,
  $$ values (2, 0.95::double precision), (1, 0.9) $$, '_policy() reads the newest version, or the one named');
select is((routeledger._policy(null)).name, 'default', 'without a name the default');
select results_eq(
  $$ select p.min_quality, p.budget_cap_usd, p.ruleset_hash <> (routeledger._policy('tap150')).ruleset_hash from routeledger._policy('tap150', '{"min_quality": 0.5, "budget_cap_usd": null}') p $$,
  $$ values (0.5::double precision, null::numeric, true) $$, 'overrides change it, and its hash');
select is(
  (routeledger._policy('tap150', '{"min_quality": 0.95}')).ruleset_hash, (routeledger._policy('tap150')).ruleset_hash, 'an override that changes nothing keeps the hash');
select throws_ok($$ select routeledger._policy('tap150-none') $$, 'RL209', 'there is no such policy', 'an unknown policy');
select throws_ok($$ select routeledger._policy('tap150@7') $$, 'RL209', 'there is no such policy', 'an unknown version');
select results_eq(
  $$
    select b.rule, c.code, c.detail ->> 'parameter'
    from (values
      ('{"min_quality": 1.1}'), ('{"min_quality": null}'), ('{"budget_cap_usd": -1}'), ('{"latency_cap_ms": -1}'), ('{"min_samples": 0}'), ('{"window_days": 0}'),
      ('{"floor": "median"}'), ('{"confidence": 1}'), ('{"ordering": "luck"}'), ('{"diversity_penalty": 11}'), ('{"allow": null}'), ('{"deny": [null]}'), ('{"deny": [["a"]]}'),
      ('{"exploration": "greedy"}'), ('{"exploration_share": 2}'), ('{"exploration_min_samples": -1}'), ('{"input_tokens": -1}'), ('{"output_tokens": 1e10}'), ('{"failure_cost_usd": -1}'),
      ('{"min_quality": "much"}'), ('{"quality": 1}'), ('[]')
    ) b (rule)
    cross join lateral pg_temp.caught(format('select routeledger.set_policy(''tap150'', %L)', b.rule)) c
  $$,
  $$
    values
      ('{"min_quality": 1.1}', 'RL103', 'min_quality'), ('{"min_quality": null}', 'RL103', 'min_quality'), ('{"budget_cap_usd": -1}', 'RL103', 'budget_cap_usd'),
      ('{"latency_cap_ms": -1}', 'RL103', 'latency_cap_ms'), ('{"min_samples": 0}', 'RL103', 'min_samples'), ('{"window_days": 0}', 'RL103', 'window_days'),
      ('{"floor": "median"}', 'RL103', 'floor'), ('{"confidence": 1}', 'RL103', 'confidence'), ('{"ordering": "luck"}', 'RL103', 'ordering'),
      ('{"diversity_penalty": 11}', 'RL103', 'diversity_penalty'), ('{"allow": null}', 'RL103', 'allow'), ('{"deny": [null]}', 'RL103', 'deny'), ('{"deny": [["a"]]}', 'RL103', 'deny'),
      ('{"exploration": "greedy"}', 'RL103', 'exploration'), ('{"exploration_share": 2}', 'RL103', 'exploration_share'),
      ('{"exploration_min_samples": -1}', 'RL103', 'exploration_min_samples'), ('{"input_tokens": -1}', 'RL103', 'input_tokens'),
      ('{"output_tokens": 1e10}', 'RL103', 'output_tokens'), ('{"failure_cost_usd": -1}', 'RL103', 'failure_cost_usd'),
      ('{"min_quality": "much"}', 'RL107', null), ('{"quality": 1}', 'RL107', null),
      ('[]', 'RL107', 'policy')
  $$,
  'each rule has its range');
select throws_ok($$ select routeledger.set_policy('', '{}') $$, 'RL101', 'a required argument is missing', 'a policy needs a name');
select throws_ok($$ select routeledger.set_policy('tap150', null) $$, 'RL101', 'a required argument is missing', 'and rules');
select throws_ok($$ select routeledger.set_policy('a b', '{}') $$, 'RL103', 'a number is outside the range allowed for it', 'a name has no blanks');
select throws_ok($$ select routeledger.set_policy(repeat('x', 101), '{}') $$, 'RL108', 'a text or document is longer than the ledger keeps', 'and an end');

-- classes of errors
select results_eq(
  $$ select s, routeledger._error_class('http', s) from unnest(array[400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 451, 499, 500, 502, 503, 504, 529]) s $$,
  $$
    values
      (400, 'bad_request'), (401, 'authentication'), (402, 'other'), (403, 'authentication'), (404, 'other'), (408, 'timeout'), (409, 'server'),
      (413, 'context_length'), (422, 'bad_request'), (425, 'server'), (429, 'rate_limited'), (451, 'content_policy'), (499, 'abandoned'), (500, 'server'),
      (502, 'server'), (503, 'server'), (504, 'timeout'), (529, 'overloaded')
  $$,
  'a status has its class');
select results_eq(
  $$
    select t, routeledger._error_class(t, null)
    from unnest(array['RateLimitError', 'litellm.exceptions.RateLimitError', 'rate_limit_error', 'overloaded_error', 'InternalServerError', 'ServiceUnavailableError',
      'APIConnectionError', 'httpx.ReadTimeout', 'Timeout', 'APITimeoutError', 'ContextWindowExceededError', 'ContentPolicyViolationError', 'AuthenticationError',
      'PermissionDeniedError', 'BadRequestError', 'NotFoundError', 'insufficient_quota', 'asyncio.CancelledError', 'timeout', '429', '503', '_OTHER', 'abandoned',
      'something new', 'TooManyRequests', '200']) t
  $$,
  $$
    values
      ('RateLimitError', 'rate_limited'), ('litellm.exceptions.RateLimitError', 'rate_limited'), ('rate_limit_error', 'rate_limited'),
      ('overloaded_error', 'overloaded'), ('InternalServerError', 'server'), ('ServiceUnavailableError', 'server'), ('APIConnectionError', 'connection'),
      ('httpx.ReadTimeout', 'timeout'), ('Timeout', 'timeout'), ('APITimeoutError', 'timeout'), ('ContextWindowExceededError', 'context_length'),
      ('ContentPolicyViolationError', 'content_policy'), ('AuthenticationError', 'authentication'), ('PermissionDeniedError', 'authentication'),
      ('BadRequestError', 'bad_request'), ('NotFoundError', 'other'), ('insufficient_quota', 'other'), ('asyncio.CancelledError', 'abandoned'),
      ('timeout', 'timeout'), ('429', 'rate_limited'), ('503', 'server'), ('_OTHER', 'other'), ('abandoned', 'abandoned'), ('something new', 'connection'),
      ('TooManyRequests', 'rate_limited'), ('200', 'other')
  $$,
  'and so has the name of an exception, however written');
select results_eq(
  $$
    select t, s, routeledger._error_class(t, s)
    from (values ('ContextWindowExceededError', 400), ('overloaded_error', 503), ('insufficient_quota', 429), ('APIConnectionError', 500), ('Timeout', 500),
      ('BadRequestError', 429), ('stream cut', 200), (null, null)) x (t, s)
  $$,
  $$
    values ('ContextWindowExceededError', 400, 'context_length'), ('overloaded_error', 503, 'overloaded'), ('insufficient_quota', 429, 'other'),
      ('APIConnectionError', 500, 'connection'), ('Timeout', 500, 'timeout'), ('BadRequestError', 429, 'rate_limited'), ('stream cut', 200, 'other'),
      (null, null, 'connection')
  $$,
  'what a name says beyond the status counts');

-- what follows
create function pg_temp.step(
  p_class text, p_attempts integer default 1, p_retry_after_ms bigint default null, p_random double precision default 0.5, p_tenant text default 'tap150')
returns text language sql stable
as $$
  select routeledger._after_failure(routeledger._retry_rules(p_tenant, 'tap150/m', p_class, s), p_class, p_attempts, p_retry_after_ms, p_random)::text
  from routeledger.settings s
$$;
select results_eq(
  $$
    select c, pg_temp.step(c)
    from unnest(array['rate_limited', 'overloaded', 'server', 'timeout', 'connection', 'context_length', 'content_policy', 'other', 'authentication',
      'bad_request', 'abandoned']) c
  $$,
  $$
    values ('rate_limited', '(retry,500)'), ('overloaded', '(retry,500)'), ('server', '(retry,500)'), ('timeout', '(retry,500)'), ('connection', '(retry,500)'),
      ('context_length', '(failover,0)'), ('content_policy', '(failover,0)'), ('other', '(failover,0)'), ('authentication', '(give_up,0)'),
      ('bad_request', '(give_up,0)'), ('abandoned', '(give_up,0)')
  $$,
  'what passes is tried again, what another model may take goes on, what would fail everywhere ends');
select results_eq(
  $$ select n, pg_temp.step('server', n) from generate_series(1, 5) n $$,
  $$ values (1, '(retry,500)'), (2, '(retry,1000)'), (3, '(failover,0)'), (4, '(failover,0)'), (5, '(failover,0)') $$,
  'as long as the candidate has attempts left, after a wait that doubles');
do $$ begin perform routeledger.configure('{"retry_attempts_per_model": 10}'); end $$;
select results_eq(
  $$ select pg_temp.step('server', n) from generate_series(5, 9) n $$,
  $$ values ('(retry,8000)'), ('(retry,16000)'), ('(retry,20000)'), ('(retry,20000)'), ('(retry,20000)') $$, 'up to the cap');
select is(pg_temp.step('rate_limited', 1, 3000), '(retry,3000)', 'a provider that asks for more time gets it');
select is(pg_temp.step('rate_limited', 4, 3000), '(retry,4000)', 'one that asks for less waits the backoff');
select is(pg_temp.step('overloaded', 1, 0), '(retry,500)', 'or for none');
select is(pg_temp.step('rate_limited', 1, 20000), '(retry,20000)', 'up to the cap');
select is(pg_temp.step('rate_limited', 1, 20001), '(failover,0)', 'beyond it nobody waits');
do $$ begin perform routeledger.configure('{"retry_jitter": 1}'); end $$;
select results_eq(
  $$ select pg_temp.step('server', 3, null, r) from unnest(array[0, 0.25, 0.999999]) r $$,
  $$ values ('(retry,0)'), ('(retry,500)'), ('(retry,2000)') $$, 'full jitter: anything from nothing to the backoff');
select is(pg_temp.step('rate_limited', 3, 1500, 0.25), '(retry,1500)', 'never less than the provider asks for');
do $$ begin perform routeledger.configure('{"retry_jitter": 0.5}'); end $$;
select results_eq(
  $$ select pg_temp.step('server', 3, null, r) from unnest(array[0, 0.5, 1]) r $$,
  $$ values ('(retry,1000)'), ('(retry,1500)'), ('(retry,2000)') $$, 'half jitter: the upper half');
do $$ begin perform routeledger.configure('{"retry_base": "1 hour", "retry_cap": "24 hours", "retry_jitter": 0}'); end $$;
select is(pg_temp.step('server', 1000), '(failover,0)', 'a thousand attempts are too many');
select is(pg_temp.step('server', 9), '(retry,86400000)', 'the longest wait is the cap of a day');
do $$ begin perform routeledger.configure('{"retry_base": "0", "retry_cap": "0"}'); end $$;
select is(pg_temp.step('server', 9), '(retry,0)', 'and with no base there is none');
do $$ begin perform routeledger.configure('{"retry_attempts_per_model": 3, "retry_base": "500 milliseconds", "retry_cap": "20 seconds"}'); end $$;

-- retry policies
set local role routeledger_admin;
select results_eq(
  $$
    select s.tenant_id, s.model_slug, s.error_class, s.changed from routeledger.set_retry_policy('', '', '{"base": "1 second"}') s
    union all select s.tenant_id, s.model_slug, s.error_class, s.changed from routeledger.set_retry_policy('', '', '{"base": "1 second", "cap": null}') s
    union all select s.tenant_id, s.model_slug, s.error_class, s.changed from routeledger.set_retry_policy('', 'tap150/m', '{"base": "2 seconds", "attempts_per_model": 2}') s
    union all select s.tenant_id, s.model_slug, s.error_class, s.changed from routeledger.set_retry_policy('tap150', '', '{"base": "3 seconds"}') s
    union all select s.tenant_id, s.model_slug, s.error_class, s.changed
      from routeledger.set_retry_policy('tap150', 'tap150/m', '{"error_class": "timeout", "attempts_per_model": 9, "max_attempts": 4, "jitter": 0}') s
  $$,
  $$
    values ('', '', '', true), ('', '', '', false), ('', 'tap150/m', '', true), ('tap150', '', '', true), ('tap150', 'tap150/m', 'timeout', true)
  $$,
  'set_retry_policy() says whether it changed anything');
reset role;
select results_eq(
  $$
    select c, t, (r).base, (r).attempts_per_model, (r).max_attempts, (r).cap
    from (values ('server', 'tap150'), ('timeout', 'tap150'), ('timeout', 'tap150-other')) x (c, t)
    cross join lateral (select routeledger._retry_rules(t, 'tap150/m', c, s) as r from routeledger.settings s) y
  $$,
  $$
    values ('server', 'tap150', interval '3 seconds', 2, 12, interval '20 seconds'),
      ('timeout', 'tap150', '3 seconds', 9, 4, '20 seconds'),
      ('timeout', 'tap150-other', '2 seconds', 2, 12, '20 seconds')
  $$,
  'the more specific row wins, column by column: tenant before model before class, and the settings last');
select is(pg_temp.step('timeout', 8), '(retry,20000)', 'it is what failures follow');
set local role routeledger_admin;
select is((select s.changed from routeledger.set_retry_policy('', '', '{}') s), true, 'an empty object takes the row away');
select is((select s.changed from routeledger.set_retry_policy('', '', '{"cap": null}') s), false, 'once');
select results_eq(
  $$
    select b.policy, c.code, c.detail ->> 'parameter'
    from (values
      ('{"attempts_per_model": 0}'), ('{"max_attempts": 0}'), ('{"base": "2 hours"}'), ('{"cap": "-1 second"}'), ('{"jitter": 1.1}'), ('{"cooldown_failures": 0}'),
      ('{"cooldown_window": "0"}'), ('{"cooldown": "25 hours"}'), ('{"cooldown_cap": "25 hours"}'), ('{"error_class": "bad luck"}'), ('{"base": "soon"}'),
      ('{"tenant_id": "x"}'), ('3')
    ) b (policy)
    cross join lateral pg_temp.caught(format('select routeledger.set_retry_policy('''', '''', %L)', b.policy)) c
  $$,
  $$
    values
      ('{"attempts_per_model": 0}', 'RL103', 'attempts_per_model'), ('{"max_attempts": 0}', 'RL103', 'max_attempts'), ('{"base": "2 hours"}', 'RL103', 'base'),
      ('{"cap": "-1 second"}', 'RL103', 'cap'), ('{"jitter": 1.1}', 'RL103', 'jitter'), ('{"cooldown_failures": 0}', 'RL103', 'cooldown_failures'),
      ('{"cooldown_window": "0"}', 'RL103', 'cooldown_window'), ('{"cooldown": "25 hours"}', 'RL103', 'cooldown'),
      ('{"cooldown_cap": "25 hours"}', 'RL103', 'cooldown_cap'), ('{"error_class": "bad luck"}', 'RL102', 'error_class'), ('{"base": "soon"}', 'RL107', null),
      ('{"tenant_id": "x"}', 'RL107', null), ('3', 'RL107', 'policy')
  $$,
  'each column has its range');
select throws_ok($$ select routeledger.set_retry_policy(null, '', '{}') $$, 'RL101', 'a required argument is missing', 'all tenants are said to be all');
select throws_ok($$ select routeledger.set_retry_policy('', null, '{}') $$, 'RL101', 'a required argument is missing', 'so are all models');
select throws_ok(
  $$ select routeledger.set_retry_policy(repeat('x', 201), '', '{}') $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a tenant has an end');
select throws_ok(
  $$ select routeledger.set_retry_policy('', repeat('x', 301), '{}') $$, 'RL108', 'a text or document is longer than the ledger keeps', 'and a model');
reset role;
delete from routeledger.retry_policies;

-- cooldowns
create function pg_temp.note(
  p_model text, p_class text, p_retry_after_ms bigint default null, p_probe uuid default null, p_after interval default '0', p_provider text default null)
returns text language plpgsql volatile
as $$
begin
  perform routeledger._note_failure('tap150', p_model, p_provider, p_class, 500, p_retry_after_ms, coalesce(p_probe, pg_temp.id('x')), p_probe is not null,
    routeledger._retry_rules('tap150', p_model, p_class, s), s, pg_temp.t0() + p_after)
  from routeledger.settings s;
  return (
    select format('%s %s %s', c.failures, c.opened_count, extract(epoch from c.until_at - pg_temp.t0())::integer)
    from routeledger.cooldowns c where c.tenant_id = 'tap150' and c.model_slug = p_model and c.provider = coalesce(p_provider, ''));
end
$$;
create function pg_temp.take(p_model text, p_attempt text, p_after interval, p_start interval default null, p_provider text default null)
returns boolean language sql volatile
as $$ select routeledger._take_probe('tap150', p_model, p_provider, pg_temp.id(p_attempt), pg_temp.t0() + p_after, '10 seconds', pg_temp.t0() + p_start) $$;

select results_eq(
  $$ select pg_temp.note('few', 'server', null, null, n * interval '1 second') from generate_series(0, 3) n $$,
  $$ values ('1 0 '), ('2 0 '), ('3 1 32'), ('3 1 32') $$, 'the third failure of a minute opens a cooldown; more of them are not written down');
select is(pg_temp.note('slow', 'timeout'), '1 0 ', 'failures further apart');
select is(pg_temp.note('slow', 'timeout', null, null, '61 seconds'), '1 0 ', 'begin again at one');
select is(pg_temp.note('busy', 'rate_limited', 5000), '1 1 5', 'a provider that says how long is left alone at once');
select is(pg_temp.note('busy', 'rate_limited', 3000, null, '1 second'), '1 1 5', 'a shorter wait does not shorten it');
select is(pg_temp.note('busy', 'overloaded', 9000, null, '1 second'), '2 1 10', 'a longer one makes it longer');
select is(pg_temp.note('busy', 'server', 60000, null, '2 seconds'), '2 1 10', 'of other errors a retry-after is no cooldown');
select is(pg_temp.note('long', 'rate_limited', 86400000), '1 1 600', 'nobody is left alone for longer than the cap');
select is(pg_temp.note('refuses', 'content_policy'), null, 'a refusal says nothing of a model''s health');
select is(pg_temp.note('keyed', 'authentication'), null, 'nor does a wrong key');
select is(pg_temp.note('again', 'rate_limited', 5000), '1 1 5', 'a model that cooled down');
select is(pg_temp.note('again', 'server', null, null, '6 seconds'), '2 2 66', 'and fails again cools down at once, twice as long');
select is(pg_temp.note('again', 'server', null, null, '67 seconds'), '3 3 187', 'and so on');
select is(pg_temp.note('again', 'server', null, null, '1 hour'), '1 0 ', 'until it was well for a while');
select results_eq(
  $$ select c.model_slug, c.provider, c.state, extract(epoch from c.until_at - pg_temp.t0())::integer from routeledger._cooling('tap150', pg_temp.t0() + interval '10 seconds') c order by 1 $$,
  $$ values ('few', '', 'open', 32), ('long', '', 'open', 600) $$, '_cooling() lists what is left alone now');

select is(pg_temp.take('unknown', 'a', '0'), null, 'where there is no cooldown there is nothing to probe');
select is(pg_temp.take('slow', 'a', '0'), null, 'nor where failures are only counted');
select is(pg_temp.take('few', 'a', '10 seconds'), false, 'a model that cools down is not probed');
select is(pg_temp.take('few', 'a', '10 seconds', '32 seconds'), true, 'but for later it may be');
select is(pg_temp.take('few', 'b', '11 seconds', '60 seconds'), false, 'by one');
select is(pg_temp.take('few', 'a', '33 seconds'), true, 'who may ask again');
select is(pg_temp.take('few', 'b', '42 seconds'), false, 'as long as that one is out');
select results_eq(
  $$ select c.state, extract(epoch from c.until_at - pg_temp.t0())::integer from routeledger._cooling('tap150', pg_temp.t0() + interval '35 seconds') c where c.model_slug = 'few' $$,
  $$ values ('probing', 43) $$, 'it is listed until it has to be back');
do $$ begin perform pg_temp.at('35 seconds'); end $$;
select results_eq(
  $$ select m.model_slug, m.state from routeledger.model_cooldowns m where m.tenant_id = 'tap150' order by 1 $$,
  $$ values ('busy', 'half_open'), ('few', 'probing'), ('long', 'open') $$, 'model_cooldowns shows the three states');
select is(pg_temp.take('few', 'b', '44 seconds'), true, 'a probe that does not come back is replaced');
do $$ begin perform routeledger._end_probe('tap150', 'few', null, pg_temp.id('a'), true); end $$;
select is((select count(*) from routeledger.cooldowns c where c.model_slug = 'few'), 1::bigint, 'and ends nothing any more');
select is(pg_temp.note('few', 'server', null, pg_temp.id('b'), '45 seconds'), '4 2 105', 'a probe that fails opens the cooldown again, twice as long');
select is(pg_temp.take('few', 'c', '106 seconds'), true, 'after which there is another');
select is(pg_temp.note('few', 'authentication', null, pg_temp.id('c'), '107 seconds'), '4 2 105', 'one that learned nothing');
select is(pg_temp.take('few', 'd', '108 seconds'), true, 'makes room for the next');
select is(pg_temp.note('few', 'context_length', null, pg_temp.id('d'), '109 seconds'), null, 'one that was answered, even by a refusal, ends it');
select is(pg_temp.note('where', 'rate_limited', 5000, null, '0', 'one'), '1 1 5', 'a cooldown is the provider''s');
select is(pg_temp.take('where', 'a', '1 second', null, 'two'), null, 'not another''s');
select is(pg_temp.take('where', 'a', '6 seconds', null, 'one'), true, 'who is probed for it');
do $$ begin perform routeledger._end_probe('tap150', 'where', 'one', pg_temp.id('a'), true); end $$;
select is((select count(*) from routeledger.cooldowns c where c.model_slug = 'where'), 0::bigint, 'and acquitted');
do $$ begin perform routeledger.configure('{"cooldown_cap": "0"}'); end $$;
select is(pg_temp.note('never', 'rate_limited', 5000), '1 0 ', 'without a cap on it there are no cooldowns');
do $$ begin perform routeledger.configure('{"cooldown_cap": "10 minutes", "cooldown_scope": "all"}'); perform pg_temp.note('shared', 'rate_limited', 5000); end $$;
select results_eq(
  $$ select c.tenant_id, c.state from routeledger.model_cooldowns c where c.model_slug = 'shared' $$, $$ values ('', 'half_open') $$,
  'cooldowns of all tenants belong to none');
select is(
  (select count(*) from routeledger._cooling('tap150-other', pg_temp.t0()) c where c.model_slug = 'shared'), 1::bigint, 'and hold for each');
do $$
begin
  perform routeledger.configure('{"cooldown_scope": "tenant"}');
  perform routeledger._lock_cooldowns(array['tap150', 'tap150'], array['new', 'busy'], array['', ''], pg_temp.t0());
end
$$;
select is((select c.failures from routeledger.cooldowns c where c.model_slug = 'new'), 0, 'what a batch will note can be locked before');

-- budgets: who is concerned
set local role routeledger_admin;
select is(routeledger.set_budget('tap150', 'all', 1), true, 'set_budget() makes a budget');
select is(routeledger.set_budget('tap150', 'all', 3), false, 'or changes it');
do $$
begin
  perform routeledger.set_budget('tap150', 'each', 1, 'agent', '*', 'hour');
  perform routeledger.set_budget('tap150', 'one', 0.5, 'agent', 'a1', 'total');
  perform routeledger.set_budget('tap150', 'key', 0.25, 'key', 'k1', 'month');
end
$$;
reset role;
select is((select s.budgets_defined from routeledger.settings s), true, 'the settings say that there are some');
select is(routeledger.configure() ? 'budgets_defined', false, 'which nobody sets by hand');
create function pg_temp.reserve(p_decision text, p_amount numeric, p_agent text default null, p_key text default null, p_after interval default '0')
returns text language sql volatile
as $$
  select coalesce(r ->> 'budget' || ' ' || (r ->> 'remaining_usd'), 'reserved')
  from routeledger._reserve_budget('tap150', pg_temp.id(p_decision), p_agent, p_key, p_amount, pg_temp.t0() + p_after) r
$$;
create function pg_temp.status(p_name text) returns text language sql volatile
as $$
  select string_agg(format('%s %s/%s/%s', b.subject, trim_scale(b.reserved_usd), trim_scale(b.spent_usd), trim_scale(b.remaining_usd)), ', ' order by b.subject)
  from routeledger.budget_status b where b.tenant_id = 'tap150' and b.name = p_name
$$;
do $$ begin perform pg_temp.at('0'); end $$;
select is(pg_temp.reserve('d1', 0.2), 'reserved', 'a decision without an agent or key');
select is(pg_temp.reserve('d2', 0.3, 'a1'), 'reserved', 'with an agent');
select is(pg_temp.reserve('d3', 0.1, 'a2', 'k1'), 'reserved', 'with both');
select results_eq(
  $$ select n, pg_temp.status(n) from unnest(array['all', 'each', 'one', 'key']) n $$,
  $$ values ('all', ' 0.6/0/2.4'), ('each', 'a1 0.3/0/0.7, a2 0.1/0/0.9'), ('one', 'a1 0.3/0/0.2'), ('key', 'k1 0.1/0/0.15') $$,
  'each budget counts the decisions that concern it');
select is(pg_temp.reserve('d4', 0.3, 'a1'), 'one 0.2', 'a budget that lacks refuses');
select is(pg_temp.status('all'), ' 0.6/0/2.4', 'and the others reserve nothing');
select is(pg_temp.reserve('d4', 0.2, 'a1'), 'reserved', 'to the last cent it does not');
select is(pg_temp.reserve('d5', 0, 'a1'), 'reserved', 'what costs nothing is always covered');
select results_eq(
  $$ select r from routeledger._ask_budgets('tap150', 'a1', null, 0.1, pg_temp.t0()) r $$,
  $$ select '{"budget": "one", "scope": "agent", "subject": "a1", "period": "total", "limit_usd": 0.5, "remaining_usd": 0, "wanted_usd": 0.1}'::jsonb $$,
  'a refusal says by how much');
select results_eq(
  $$
    select routeledger._ask_budgets('tap150', 'a2', 'k1', 0.2, pg_temp.t0()) ->> 'resets_at', routeledger._ask_budgets('tap150', 'a2', 'k1', 0.1, pg_temp.t0()),
      routeledger._ask_budgets('tap150-other', 'a1', null, 100, pg_temp.t0()), routeledger._budget_short('tap150', 'a2', null, 0.1, pg_temp.t0())
  $$,
  $$ select to_jsonb(date_trunc('month', pg_temp.t0()) + interval '1 month') #>> '{}', 'true'::jsonb, null::jsonb, null::jsonb $$,
  'and until when; all may have as much, or none be concerned');
select is(pg_temp.reserve('d6', 0.9, 'a1', null, '1 hour'), 'one 0', 'a total never begins anew');
select is(pg_temp.reserve('d6', 0.95, 'a2', null, '1 hour'), 'reserved', 'an hour does');
select results_eq(
  $$
    select coalesce(x ->> 'budget', 'reserved')
    from unnest(routeledger._reserve_budgets(array[
      row('tap150', pg_temp.id('e1'), 'a3', null, 0.3), row('tap150', pg_temp.id('e2'), 'a3', null, 0.8), row('tap150-none', pg_temp.id('e3'), 'a3', null, 9),
      row('tap150', pg_temp.id('e4'), null, 'k1', 0.2), row('tap150', pg_temp.id('e5'), 'a3', null, 0.05)]::routeledger.budget_want[], pg_temp.t0())) x
  $$,
  $$ values ('reserved'), ('each'), ('reserved'), ('key'), ('reserved') $$, 'of many each is covered or refused, in their order');

-- settled, released, raised
select is(routeledger._raise_hold('tap150', pg_temp.id('d3'), 0.1), null, 'a hold that is high enough stays');
select is(routeledger._raise_hold('tap150', pg_temp.id('d3'), 0.15), null, 'one that is not is raised');
select is(routeledger._raise_hold('tap150', pg_temp.id('d3'), 0.3) ->> 'budget', 'key', 'as far as all its budgets go');
select is(pg_temp.status('key'), 'k1 0.15/0/0.1', 'in each of them');
do $$
begin
  perform routeledger._settle_budgets(array['tap150', 'tap150', 'tap150'], array[pg_temp.id('d1'), pg_temp.id('d2'), pg_temp.id('d9')], array[0.05, 0, 1], array[false, true, false]);
end
$$;
select results_eq(
  $$ select n, pg_temp.status(n) from unnest(array['all', 'one']) n $$,
  $$ values ('all', ' 1.65/0.35/1'), ('one', 'a1 0.2/0.3/0') $$, 'what is settled is spent: the cost, or what was reserved where that is unknown');
do $$ begin perform routeledger._release_budgets(array['tap150'], array[pg_temp.id('d4')]); perform routeledger._release_budgets(array['tap150'], array[pg_temp.id('d4')]); end $$;
select is(pg_temp.status('one'), 'a1 0/0.3/0.2', 'what is released is free again, once');
do $$ begin perform routeledger._settle_budgets(array['tap150'], array[pg_temp.id('d4')], array[0.6], array[false]); end $$;
select is(pg_temp.status('one'), 'a1 0/0.9/-0.4', 'and spent all the same when it comes in late, even beyond the limit');
select is(pg_temp.reserve('f1', 0.01, 'a1'), 'one 0', 'a budget that is overdrawn covers nothing');
do $$ begin perform routeledger._charge_budgets(array['tap150', 'tap150', 'tap150-other'], array['a7', 'a7', 'a7'], array[0.3, 0, 5], array[pg_temp.t0(), pg_temp.t0(), pg_temp.t0()]); end $$;
select is(pg_temp.status('each'), 'a1 0/0.9/0.1, a2 0.15/0/0.85, a3 0.35/0/0.65, a7 0/0.3/0.7', 'what was spent without asking is counted');
do $$ begin perform routeledger._charge_budgets(array['tap150-other'], array['a7'], array[5], array[pg_temp.t0()]); end $$;

-- shards
do $$ begin perform routeledger.set_budget('tap150s', 'wide', 10, p_shards => 4); end $$;
create function pg_temp.wide(p_decision text, p_amount numeric) returns text language sql volatile
as $$
  select coalesce(r ->> 'remaining_usd', 'reserved')
  from routeledger._reserve_budget('tap150s', pg_temp.id(p_decision), null, null, p_amount, pg_temp.t0()) r
$$;
create function pg_temp.shards() returns table (allowance numeric, used numeric, least_free numeric, n bigint, overdrawn boolean) language sql volatile
as $$
  select sum(c.allowance_usd), sum(c.reserved_usd + c.spent_usd), min(c.allowance_usd - c.reserved_usd - c.spent_usd), count(*), bool_or(c.overdrawn)
  from routeledger.budget_counters c where c.tenant_id = 'tap150s'
$$;
select is(pg_temp.wide('w1', 2), 'reserved', 'a shard covers what it has');
select results_eq($$ select * from pg_temp.shards() $$, $$ values (10::numeric, 2::numeric, 0.5::numeric, 4::bigint, false) $$, 'the other three have the rest');
select is(pg_temp.wide('w2', 2), 'reserved', 'what it lacks the others give');
select results_eq($$ select * from pg_temp.shards() $$, $$ values (10::numeric, 4::numeric, 1.5::numeric, 4::bigint, false) $$, 'and what is left is spread anew');
select is(pg_temp.wide('w3', 6), 'reserved', 'down to the last cent');
select is(pg_temp.wide('w4', 0.000001), '0', 'and no further');
select results_eq(
  $$
    select coalesce(x ->> 'remaining_usd', 'reserved')
    from unnest(routeledger._reserve_budgets(array[row('tap150s', pg_temp.id('w5'), null, null, 1), row('tap150s', pg_temp.id('w6'), null, null, 0)]::routeledger.budget_want[], pg_temp.t0())) x
  $$,
  $$ values ('0'), ('reserved') $$, 'nor for many');
do $$ begin perform routeledger._settle_budgets(array['tap150s'], array[pg_temp.id('w3')], array[9], array[false]); end $$;
select results_eq(
  $$ select allowance, used, n, overdrawn from pg_temp.shards() $$, $$ values (10::numeric, 13::numeric, 4::bigint, true) $$, 'a cost beyond what was reserved overdraws it');
do $$ begin perform routeledger._settle_budgets(array['tap150s'], array[pg_temp.id('w1')], array[0.5], array[false]); end $$;
select is(pg_temp.wide('w7', 0.1), '0', 'and as long as it is, what one shard gets back is not given out');
select is(routeledger.set_budget('tap150s', 'wide', 20, p_shards => 2), false, 'a new limit holds at once');
select results_eq($$ select allowance, used, n, overdrawn from pg_temp.shards() $$, $$ values (20::numeric, 11.5::numeric, 4::bigint, false) $$, 'for what is reserved and spent already');
select is(pg_temp.wide('w7', 8.5), 'reserved', 'and is there to the last cent');
select is(routeledger._raise_hold('tap150s', pg_temp.id('w7'), 8.6) ->> 'remaining_usd', '0', 'but no hold is raised beyond it');
do $$ begin perform routeledger._settle_budgets(array['tap150s'], array[pg_temp.id('w7')], array[0], array[false]); end $$;
select is(routeledger.set_budget('tap150s', 'wide', 20, p_shards => 6), false, 'more shards');
select results_eq($$ select allowance, used, n, overdrawn from pg_temp.shards() $$, $$ values (20::numeric, 11.5::numeric, 6::bigint, false) $$, 'of the same limit');

-- forgotten
do $$ begin perform pg_temp.reserve('g1', 0.1, 'a9', null, '-500 days'); end $$;
do $$ begin perform routeledger._forget_policy(s, pg_temp.t0() + interval '1 hour') from routeledger.settings s; end $$;
select is(
  (select count(*) from routeledger.budget_counters c where c.subject = 'a9'), 1::bigint, 'what is held is not forgotten');
do $$
begin
  perform routeledger._release_budgets(array['tap150'], array[pg_temp.id('g1')]);
  perform routeledger._forget_policy(s, pg_temp.t0() + interval '1 hour') from routeledger.settings s;
end
$$;
select results_eq(
  $$
    select (select count(*) from routeledger.budget_counters c where c.subject = 'a9'), (select count(*) from routeledger.budget_holds h where h.subject = 'a9'),
      (select count(*) > 0 from routeledger.budget_counters c where c.subject = 'a2'), (select count(*) > 0 from routeledger.cooldowns c where c.model_slug = 'busy')
  $$,
  $$ values (0::bigint, 0::bigint, true, true) $$, 'a window that is long over is, once nothing is held in it');
do $$ begin perform routeledger._forget_policy(s, pg_temp.t0() + interval '2 days') from routeledger.settings s; end $$;
select is((select count(*) from routeledger.cooldowns c where c.tenant_id = 'tap150'), 0::bigint, 'so is a cooldown, a day after');

-- changed and dropped
select is(routeledger.set_budget('tap150', 'one', 0.5, 'agent', 'a1', 'day'), false, 'another period');
select is(pg_temp.status('one'), 'a1 0/0/0.5', 'begins anew');
select lives_ok($$ select routeledger.drop_budget('tap150', 'one') $$, 'a budget can be dropped');
select is(pg_temp.status('one'), null, 'with all that it counted');
select throws_ok($$ select routeledger.drop_budget('tap150', 'one') $$, 'RL210', 'there is no such budget', 'once');
select is((select s.budgets_defined from routeledger.settings s), true, 'there are others');
do $$
declare
  v_budget record;
begin
  for v_budget in select b.tenant_id, b.name from routeledger.budgets b loop perform routeledger.drop_budget(v_budget.tenant_id, v_budget.name); end loop;
end
$$;
select is((select s.budgets_defined from routeledger.settings s), false, 'until there are none');
select is((select count(*) from routeledger.budget_holds h where h.tenant_id like 'tap150%'), 0::bigint, 'nothing is held any more');
select results_eq(
  $$
    select b.args, c.code, c.detail ->> 'parameter'
    from (values
      ('null, ''b'', 1'), ('repeat(''x'', 201), ''b'', 1'), ('''t'', '''', 1'), ('''t'', repeat(''x'', 101), 1'), ('''t'', ''b'', null'), ('''t'', ''b'', -1'),
      ('''t'', ''b'', ''NaN'''), ('''t'', ''b'', 1, ''user'''), ('''t'', ''b'', 1, ''tenant'', ''x'''), ('''t'', ''b'', 1, ''agent'''),
      ('''t'', ''b'', 1, ''key'', repeat(''x'', 201)'), ('''t'', ''b'', 1, p_period => ''year'''), ('''t'', ''b'', 1, p_shards => 0')
    ) b (args)
    cross join lateral pg_temp.caught(format('select routeledger.set_budget(%s)', b.args)) c
  $$,
  $$
    values
      ('null, ''b'', 1', 'RL101', 'tenant_id'), ('repeat(''x'', 201), ''b'', 1', 'RL108', 'tenant_id'), ('''t'', '''', 1', 'RL101', 'name'),
      ('''t'', repeat(''x'', 101), 1', 'RL108', 'name'), ('''t'', ''b'', null', 'RL101', 'limit_usd'), ('''t'', ''b'', -1', 'RL103', 'limit_usd'),
      ('''t'', ''b'', ''NaN''', 'RL103', 'limit_usd'), ('''t'', ''b'', 1, ''user''', 'RL102', 'scope'), ('''t'', ''b'', 1, ''tenant'', ''x''', 'RL103', 'subject'),
      ('''t'', ''b'', 1, ''agent''', 'RL101', 'subject'), ('''t'', ''b'', 1, ''key'', repeat(''x'', 201)', 'RL108', 'subject'),
      ('''t'', ''b'', 1, p_period => ''year''', 'RL102', 'period'), ('''t'', ''b'', 1, p_shards => 0', 'RL103', 'shards')
  $$,
  'each argument of a budget has its range');
select throws_ok($$ select routeledger.drop_budget('', 'b') $$, 'RL101', 'a required argument is missing', 'drop_budget() needs a tenant');
select throws_ok($$ select routeledger.drop_budget('t', null) $$, 'RL101', 'a required argument is missing', 'and a name');
select results_eq(
  $$ select p, routeledger._budget_window(p, '2026-03-31 23:59:59+00'), routeledger._budget_end(p, routeledger._budget_window(p, '2026-03-31 23:59:59+00')) from unnest(array['hour', 'day', 'month', 'total']) p $$,
  $$
    values ('hour', timestamptz '2026-03-31 23:00:00+00', timestamptz '2026-04-01 00:00:00+00'), ('day', '2026-03-31 00:00:00+00', '2026-04-01 00:00:00+00'),
      ('month', '2026-03-01 00:00:00+00', '2026-04-01 00:00:00+00'), ('total', '-infinity', null)
  $$,
  'windows are of UTC');

-- bound roles
create role tap150_bound in role routeledger_admin;
do $$ begin perform routeledger.grant_tenant('tap150_bound', 'tap150-own'); end $$;
set local role tap150_bound;
select throws_ok($$ select routeledger.set_budget('tap150', 'b', 1) $$, 'RL110', 'this role is bound to other tenants', 'a bound role sets no budget of others');
select throws_ok($$ select routeledger.drop_budget('tap150', 'b') $$, 'RL110', 'this role is bound to other tenants', 'drops none');
select throws_ok($$ select routeledger.set_retry_policy('', '', '{}') $$, 'RL110', 'this role is bound to other tenants', 'and sets no policy for all');
select lives_ok($$ select routeledger.set_budget('tap150-own', 'b', 1) $$, 'but of its own tenant');
select is((select string_agg(b.tenant_id, ' ') from routeledger.budget_status b), 'tap150-own', 'whose budgets it sees');
reset role;

select * from finish();
rollback;
