-- 150 · Policy: what follows a failed attempt.
begin;
\ir common.psql
do $$
begin
  perform routeledger.configure(
    '{"retry_attempts_per_model": 3, "retry_base": "500 milliseconds", "retry_cap": "20 seconds", "retry_jitter": 0}');
end
$$;
select plan(16);

create function pg_temp.step(
  p_status integer, p_attempts integer default 1, p_retry_after_ms bigint default null, p_random double precision default 0.5)
returns text language sql stable
as $$ select routeledger._after_failure(s, p_status, p_attempts, p_retry_after_ms, p_random)::text from routeledger.settings s $$;

-- what is worth a retry
select is(pg_temp.step(null), '(retry,500)', 'no answer at all: try the same again');
select results_eq(
  $$ select s, pg_temp.step(s) from unnest(array[408, 409, 425, 429, 500, 502, 503, 504, 529, 599]) s $$,
  $$ select s, '(retry,500)' from unnest(array[408, 409, 425, 429, 500, 502, 503, 504, 529, 599]) s $$,
  'so for what passes: too busy, too early, broken');
select results_eq(
  $$ select s, pg_temp.step(s) from unnest(array[100, 200, 301, 400, 401, 402, 403, 404, 413, 422, 451, 499]) s $$,
  $$ select s, '(failover,0)' from unnest(array[100, 200, 301, 400, 401, 402, 403, 404, 413, 422, 451, 499]) s $$,
  'all else this model would answer again');
select results_eq(
  $$ select n, pg_temp.step(500, n) from generate_series(1, 5) n $$,
  $$ values (1, '(retry,500)'), (2, '(retry,1000)'), (3, '(failover,0)'), (4, '(failover,0)'), (5, '(failover,0)') $$,
  'as long as the candidate has attempts left, after a wait that doubles');

-- the wait
do $$ begin perform routeledger.configure('{"retry_attempts_per_model": 10}'); end $$;
select results_eq(
  $$ select pg_temp.step(500, n) from generate_series(5, 9) n $$,
  $$ values ('(retry,8000)'), ('(retry,16000)'), ('(retry,20000)'), ('(retry,20000)'), ('(retry,20000)') $$, 'up to the cap');
select is(pg_temp.step(429, 1, 3000), '(retry,3000)', 'a provider that asks for more time gets it');
select is(pg_temp.step(429, 4, 3000), '(retry,4000)', 'one that asks for less waits the backoff');
select is(pg_temp.step(429, 1, 0), '(retry,500)', 'or for none');
select is(pg_temp.step(429, 1, 20000), '(retry,20000)', 'up to the cap');
select is(pg_temp.step(429, 1, 20001), '(failover,0)', 'beyond it nobody waits');

-- jitter
do $$ begin perform routeledger.configure('{"retry_jitter": 1}'); end $$;
select results_eq(
  $$ select pg_temp.step(500, 3, null, r) from unnest(array[0, 0.25, 0.999999]) r $$,
  $$ values ('(retry,0)'), ('(retry,500)'), ('(retry,2000)') $$, 'full jitter: anything from nothing to the backoff');
select is(pg_temp.step(429, 3, 1500, 0.25), '(retry,1500)', 'never less than the provider asks for');
do $$ begin perform routeledger.configure('{"retry_jitter": 0.5}'); end $$;
select results_eq(
  $$ select pg_temp.step(500, 3, null, r) from unnest(array[0, 0.5, 1]) r $$,
  $$ values ('(retry,1000)'), ('(retry,1500)'), ('(retry,2000)') $$, 'half jitter: the upper half');

-- the edges
do $$ begin perform routeledger.configure('{"retry_base": "1 hour", "retry_cap": "24 hours", "retry_jitter": 0}'); end $$;
select is(
  (select routeledger._after_failure(s, 500, 1000, null, 0) from (select x.* from routeledger.settings x) s)::text, '(failover,0)',
  'a thousand attempts are too many');
select is(pg_temp.step(500, 9), '(retry,86400000)', 'the longest wait is the cap of a day');
do $$ begin perform routeledger.configure('{"retry_base": "0", "retry_cap": "0"}'); end $$;
select is(pg_temp.step(500, 9), '(retry,0)', 'and with no base there is none');

select * from finish();
rollback;
