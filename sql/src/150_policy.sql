-- 150 · Policy: what the ledger consults when a provider fails.

do $types$
begin
  if to_regtype('routeledger.next_step') is null then
    create type routeledger.next_step as (
      action text,
      delay_ms bigint
    );
  end if;
end
$types$;

-- Returns what to do after a failed attempt: `retry` the same candidate after a delay, or go on (`failover`).
--
-- Worth a retry: no HTTP status (timeouts, broken connections), 408, 409, 425, 429 and 5xx, as long as the
-- candidate has attempts left. Everything else says that this model will answer the same again.
-- delay = max(retry-after, jitter * U(0, b) + (1 - jitter) * b) with b = min(cap, base * 2^(attempts - 1)):
-- exponential backoff with full jitter at retry_jitter = 1 (Brooker, "Exponential Backoff And Jitter").
-- A provider that asks for more than retry_cap is not waited for.
-- p_attempts counts the candidate's attempts so far (1 or more); p_random is uniform in [0, 1).
-- Locks: none. Errors: none.
create or replace function routeledger._after_failure(
  p_settings routeledger.settings,
  p_http_status integer,
  p_attempts integer,
  p_retry_after_ms bigint,
  p_random double precision
)
returns routeledger.next_step
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_step routeledger.next_step;
  v_cap_ms double precision := extract(epoch from p_settings.retry_cap) * 1000;
  v_backoff_ms double precision;
begin
  v_step.action := 'failover';
  v_step.delay_ms := 0;
  if p_attempts >= p_settings.retry_attempts_per_model
    or not (p_http_status is null or p_http_status in (408, 409, 425, 429) or p_http_status >= 500)
    or p_retry_after_ms > v_cap_ms
  then
    return v_step;
  end if;
  v_backoff_ms := least(v_cap_ms, extract(epoch from p_settings.retry_base) * 1000 * 2 ^ least(p_attempts - 1, 30));
  v_step.action := 'retry';
  v_step.delay_ms := greatest(
    coalesce(p_retry_after_ms, 0),
    round(v_backoff_ms * (1 - p_settings.retry_jitter + p_settings.retry_jitter * p_random))::bigint);
  return v_step;
end
$$;
