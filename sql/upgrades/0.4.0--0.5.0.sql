-- phase:    one step; programs of 0.4.0 go on working while it runs and after it
-- breaking: fail_attempt() gives up at once on errors of authentication and on bad requests, which it used to fail over,
--           and passes over models that are cooling down; cooldown_cap 0 turns cooldowns off
-- locks:    access exclusive on routeledger.routing_outcomes with its partitions and on routeledger.settings, for a moment:
--           the columns are added without a rewrite
begin isolation level read committed;

set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;

select pg_advisory_xact_lock(hashtextextended('routeledger.install', 0));

set local lock_timeout = '15s';
set local statement_timeout = '10min';

do $pre$
begin
  if routeledger.version() <> '0.4.0' then
    raise exception using
      errcode = 'RL902',
      message = 'another version of routeledger is installed',
      detail = jsonb_build_object('installed', routeledger.version(), 'this', '0.4.0')::text,
      hint = 'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.';
  end if;
end
$pre$;

-- They take more now, or return more; routines of the same name with fewer parameters would make calls ambiguous.
-- squawk-ignore ban-drop-function
drop function if exists routeledger.insert_decision(
  text, uuid, text, text, jsonb, text, text, double precision, numeric, text, text, timestamptz, interval, uuid, jsonb);
-- squawk-ignore ban-drop-function
drop function if exists routeledger.fail_attempt(
  text, uuid, uuid, text, text, integer, bigint, text, uuid, bigint, bigint, numeric, double precision, double precision, text);
-- squawk-ignore ban-drop-function
drop function if exists routeledger.fail_attempts(jsonb);
-- squawk-ignore ban-drop-function
drop function if exists routeledger._after_failure(routeledger.settings, integer, integer, bigint, double precision);
-- squawk-ignore ban-drop-function
drop function if exists routeledger._complete_decision(routeledger.completion_input, routeledger.settings, timestamptz);
-- squawk-ignore ban-drop-function
drop function if exists routeledger._complete_other(routeledger.completion_input, timestamptz);

alter type routeledger.decision_input
add attribute budget_key text,
add attribute deadline interval,
add attribute ruleset_hash text,
add attribute propensity double precision;

alter type routeledger.decision_ready
add attribute probe boolean,
add attribute starts_at timestamptz;

alter type routeledger.failure_result
add attribute available_at timestamptz;

-- Constants for defaults: no row is rewritten.
alter table routeledger.routing_outcomes
add column if not exists budget_key text,
add column if not exists deadline_at timestamptz,
add column if not exists ruleset_hash text,
add column if not exists propensity double precision,
add column if not exists holds_budget boolean not null default false,
add column if not exists probe_attempt_id uuid;

-- One row: to look at it takes no time.
alter table routeledger.settings
add column if not exists cooldown_failures integer not null default 3,
add column if not exists cooldown_window interval not null default interval '1 minute',
add column if not exists cooldown interval not null default interval '30 seconds',
add column if not exists cooldown_cap interval not null default interval '10 minutes',
add column if not exists cooldown_scope text not null default 'tenant',
add column if not exists probe_lease interval not null default interval '10 seconds',
add column if not exists assumed_cost_usd numeric not null default 0.01,
add column if not exists budgets_defined boolean not null default false,
add column if not exists budget_retention interval not null default interval '400 days',
-- squawk-ignore constraint-missing-not-valid
add constraint settings_cooldown_failures_check check (cooldown_failures between 1 and 1000),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_cooldown_window_check check (cooldown_window between interval '1 second' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_cooldown_check check (cooldown between interval '0' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_cooldown_cap_check check (cooldown_cap between interval '0' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_cooldown_scope_check check (cooldown_scope in ('tenant', 'all')),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_probe_lease_check check (probe_lease between interval '1 second' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_assumed_cost_usd_check check (assumed_cost_usd between 0 and 1000000000),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_budget_retention_check check (budget_retention between interval '1 day' and interval '100 years');
