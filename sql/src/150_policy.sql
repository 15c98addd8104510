-- 150 · Policy: what the router ranks by, and what the ledger consults when a provider fails or money runs out.
--
-- Routing policies are named and versioned; a version never changes. Retry policies say how often and how long;
-- the more specific row wins, column by column, and the settings are the last word.
--
-- A cooldown is a row of (tenant, model, provider), '' for what is not known or not told apart. It counts failures
-- within a window; once it is open (until_at is set) the model is left alone until then, and after that one attempt
-- at a time may probe it (half open). What succeeds without being a probe touches no row here.
--
-- A budget is counted per subject and window. Where it has several shards each holds an allowance of its own, and a
-- reservation touches one of them. The allowances of a window add up to the limit, always: free = allowance -
-- reserved - spent may be negative only in a counter marked overdrawn, so what one shard has free the whole has too.
--
-- Lock order, after the outcomes and inferences of the ledger: cooldowns by key, then budgets, then counters by
-- (tenant_id, name, subject, window_start, shard).

create table if not exists routeledger.routing_policies (
  name text not null,
  version integer not null,
  min_quality double precision not null default 0.8,
  budget_cap_usd numeric,
  latency_cap_ms double precision,
  min_samples integer not null default 30,
  window_days integer not null default 7,
  floor text not null default 'mean',
  confidence double precision not null default 0.95,
  ordering text not null default 'price',
  diversity_penalty double precision not null default 0,
  allow text[] not null default '{}',
  deny text[] not null default '{}',
  exploration text not null default 'off',
  exploration_share double precision not null default 0.05,
  exploration_min_samples integer not null default 10,
  input_tokens bigint not null default 1000,
  output_tokens bigint not null default 500,
  failure_cost_usd numeric not null default 0,
  ruleset_hash text not null,
  created_by name not null,
  created_at timestamptz not null,
  constraint routing_policies_pkey primary key (name, version)
);

create table if not exists routeledger.retry_policies (
  tenant_id text not null default '',
  model_slug text not null default '',
  error_class text not null default '',
  attempts_per_model integer,
  max_attempts integer,
  base interval,
  cap interval,
  jitter double precision,
  cooldown_failures integer,
  cooldown_window interval,
  cooldown interval,
  cooldown_cap interval,
  constraint retry_policies_pkey primary key (tenant_id, model_slug, error_class)
);

create table if not exists routeledger.cooldowns (
  tenant_id text not null,
  model_slug text not null,
  provider text not null default '',
  failures integer not null default 0,
  until_at timestamptz,
  opened_count integer not null default 0,
  error_class text,
  http_status integer,
  first_failed_at timestamptz not null,
  last_failed_at timestamptz not null,
  probe_attempt_id uuid,
  probe_until timestamptz,
  constraint cooldowns_pkey primary key (tenant_id, model_slug, provider)
) with (fillfactor = 50);

create table if not exists routeledger.budgets (
  tenant_id text not null,
  name text not null,
  scope text not null,
  subject text not null,
  period text not null,
  limit_usd numeric not null,
  shards integer not null,
  created_at timestamptz not null,
  constraint budgets_pkey primary key (tenant_id, name)
);

create table if not exists routeledger.budget_counters (
  tenant_id text not null,
  name text not null,
  subject text not null,
  window_start timestamptz not null,
  shard integer not null,
  allowance_usd numeric not null,
  reserved_usd numeric not null default 0,
  spent_usd numeric not null default 0,
  overdrawn boolean not null default false,
  constraint budget_counters_pkey primary key (tenant_id, name, subject, window_start, shard)
) with (fillfactor = 50);

create table if not exists routeledger.budget_holds (
  tenant_id text not null,
  outcome_id uuid not null,
  name text not null,
  subject text not null,
  window_start timestamptz not null,
  shard integer not null,
  amount_usd numeric not null,
  released boolean not null default false,
  constraint budget_holds_pkey primary key (tenant_id, outcome_id, name)
) with (fillfactor = 80);

do $types$
begin
  if to_regtype('routeledger.next_step') is null then
    create type routeledger.next_step as (
      action text,
      delay_ms bigint
    );
  end if;
  if to_regtype('routeledger.retry_rules') is null then
    create type routeledger.retry_rules as (
      attempts_per_model integer,
      max_attempts integer,
      base interval,
      cap interval,
      jitter double precision,
      cooldown_failures integer,
      cooldown_window interval,
      cooldown interval,
      cooldown_cap interval
    );
    -- What one decision asks of its tenant's budgets, and what that means for one of them.
    create type routeledger.budget_want as (
      tenant_id text,
      outcome_id uuid,
      agent_id text,
      budget_key text,
      amount_usd numeric
    );
    create type routeledger.budget_line as (
      want integer,
      counter integer,
      tenant_id text,
      outcome_id uuid,
      amount_usd numeric,
      name text,
      scope text,
      period text,
      subject text,
      window_start timestamptz,
      limit_usd numeric,
      shard integer,
      shards integer
    );
  end if;
end
$types$;

-- The version of the ranking's algorithm: part of every ruleset_hash, so that the same rules under another
-- algorithm have another hash. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._ranking_version()
returns integer
language sql
immutable
parallel safe
security invoker
as $$
  select 1
$$;

-- Judges the rules of a policy one by one; returns the first fault, or null.
-- Locks: none. Errors: none.
create or replace function routeledger._policy_fault(
  p routeledger.routing_policies
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if (p.min_quality between 0 and 1) is not true then return 'RL103 min_quality 0 to 1';
  elsif p.budget_cap_usd not between 0 and 1000000000 then return 'RL103 budget_cap_usd 0 to 1e9, or null';
  elsif p.latency_cap_ms not between 0 and 10000000000 then return 'RL103 latency_cap_ms 0 to 1e10, or null';
  elsif (p.min_samples between 1 and 1000000000) is not true then return 'RL103 min_samples 1 to 1e9';
  elsif (p.window_days between 1 and 3650) is not true then return 'RL103 window_days 1 to 3650';
  elsif (p.floor in ('mean', 'lower_bound')) is not true then return 'RL103 floor mean, lower_bound';
  elsif (p.confidence between 0.5 and 0.9999) is not true then return 'RL103 confidence 0.5 to 0.9999';
  elsif (p.ordering in ('price', 'expected_cost_per_success', 'expected_total_cost')) is not true
    then return 'RL103 ordering price, expected_cost_per_success, expected_total_cost';
  elsif (p.failure_cost_usd between 0 and 1000000000) is not true then return 'RL103 failure_cost_usd 0 to 1e9';
  elsif (p.diversity_penalty between 0 and 10) is not true then return 'RL103 diversity_penalty 0 to 10';
  elsif p.allow is null or array_ndims(p.allow) > 1 or cardinality(p.allow) > 1000 or exists (select from unnest(p.allow) a where a is null)
    then return 'RL103 allow an array of at most 1000 model slugs; empty allows all';
  elsif p.deny is null or array_ndims(p.deny) > 1 or cardinality(p.deny) > 1000 or exists (select from unnest(p.deny) d where d is null)
    then return 'RL103 deny an array of at most 1000 model slugs';
  elsif (p.exploration in ('off', 'thompson')) is not true then return 'RL103 exploration off, thompson';
  elsif (p.exploration_share between 0 and 1) is not true then return 'RL103 exploration_share 0 to 1';
  elsif (p.exploration_min_samples between 0 and 1000000) is not true then return 'RL103 exploration_min_samples 0 to 1e6';
  elsif (p.input_tokens between 0 and 1000000000) is not true then return 'RL103 input_tokens 0 to 1e9';
  elsif (p.output_tokens between 0 and 1000000000) is not true then return 'RL103 output_tokens 0 to 1e9';
  end if;
  return null;
end
$$;

-- Returns the rules of a policy as one JSON object, without its name, version and origin. Equal rules give
-- equal objects: lists are sorted, numbers have no trailing zeros.
-- Locks: none. Errors: none.
create or replace function routeledger._policy_rules(
  p routeledger.routing_policies
)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select jsonb_build_object(
    'min_quality', (p).min_quality,
    'budget_cap_usd', trim_scale((p).budget_cap_usd),
    'latency_cap_ms', (p).latency_cap_ms,
    'min_samples', (p).min_samples,
    'window_days', (p).window_days,
    'floor', (p).floor,
    'confidence', (p).confidence,
    'ordering', (p).ordering,
    'diversity_penalty', (p).diversity_penalty,
    'allow', array(select distinct a collate "C" from unnest((p).allow) a order by 1),
    'deny', array(select distinct d collate "C" from unnest((p).deny) d order by 1),
    'exploration', (p).exploration,
    'exploration_share', (p).exploration_share,
    'exploration_min_samples', (p).exploration_min_samples,
    'input_tokens', (p).input_tokens,
    'output_tokens', (p).output_tokens,
    'failure_cost_usd', trim_scale((p).failure_cost_usd))
$$;

-- Returns a policy with some of its rules changed and its hash computed: sha256, in hex, of the rules as canonical JSON
-- together with the version of the ranking; or the fault in them, and its detail where that says more than the fault. A
-- null lifts budget_cap_usd and latency_cap_ms.
-- Locks: none. Errors: none; a fault is part of the result.
create or replace function routeledger._read_rules(
  p_base routeledger.routing_policies,
  p_rules jsonb,
  out policy routeledger.routing_policies,
  out fault text,
  out detail jsonb
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_known jsonb := routeledger._policy_rules(p_base);
  v_unknown text;
begin
  if p_rules is null or jsonb_typeof(p_rules) <> 'object' then
    fault := 'RL107 policy a JSON object';
    return;
  end if;
  select k into v_unknown from jsonb_object_keys(p_rules) k where not v_known ? k order by k limit 1;
  if v_unknown is not null then
    fault := 'RL107 rule';
    detail := jsonb_build_object('rule', v_unknown, 'allowed', (select jsonb_agg(k order by k) from jsonb_object_keys(v_known) k));
    return;
  end if;
  select r.faults[1] into fault from routeledger._read_rows(p_base, jsonb_build_array(p_rules), array['allow', 'deny']) r;
  if fault is not null then
    detail := jsonb_build_object('policy', p_rules, 'reason', substr(fault, 11));
    return;
  end if;
  policy := jsonb_populate_record(p_base, p_rules);
  fault := routeledger._policy_fault(policy);
  policy.ruleset_hash := encode(sha256(convert_to(
    (routeledger._policy_rules(policy) || jsonb_build_object('ranking', routeledger._ranking_version()))::text, 'UTF8')), 'hex');
end
$$;

-- Returns a policy with some of its rules changed, as _read_rules() does.
-- Locks: none. Errors: RL103, RL107.
create or replace function routeledger._with_rules(
  p_base routeledger.routing_policies,
  p_rules jsonb
)
returns routeledger.routing_policies
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_read record;
begin
  select r.policy, r.fault, r.detail into v_read from routeledger._read_rules(p_base, p_rules) r;
  if v_read.fault is not null then
    perform routeledger._raise(split_part(v_read.fault, ' ', 1), coalesce(v_read.detail, routeledger._fault_detail(v_read.fault)));
  end if;
  return v_read.policy;
end
$$;

-- Returns version 1 of a policy whose rules all have their defaults, as the table's columns have them.
-- Locks: none. Errors: none.
create or replace function routeledger._blank_policy(
  p_name text
)
returns routeledger.routing_policies
language sql
volatile
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select row(p_name, 1, 0.8, null, null, 30, 7, 'mean', 0.95, 'price', 0, array[]::text[], array[]::text[], 'off', 0.05, 10, 1000, 500, 0,
    '', session_user, routeledger.clock())::routeledger.routing_policies
$$;

-- Returns the policy of that name in its newest version, or in the one that `name@version` asks for, with
-- the overrides applied and ruleset_hash computed anew; or the fault, and its detail where that says more. Without a
-- name it is `default`.
-- Locks: none. Errors: none; a fault is part of the result.
create or replace function routeledger._read_policy(
  p_name text,
  p_overrides jsonb,
  out policy routeledger.routing_policies,
  out fault text,
  out detail jsonb
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_version text := substring(p_name from '@([0-9]{1,9})$');
  v_read record;
begin
  select p.* into policy
  from routeledger.routing_policies p
  where p.name = coalesce(case when v_version is null then p_name else left(p_name, -1 - length(v_version)) end, 'default')
    and (v_version is null or p.version = v_version::integer)
  order by p.version desc
  limit 1;
  if not found then
    fault := 'RL209 policy';
    detail := jsonb_build_object(
      'policy', p_name,
      'known', (select jsonb_agg(distinct p.name || case when v_version is null then '' else '@' || p.version end) from routeledger.routing_policies p));
  elsif p_overrides <> '{}' then
    select r.policy, r.fault, r.detail into v_read from routeledger._read_rules(policy, p_overrides) r;
    policy := v_read.policy;
    fault := v_read.fault;
    detail := v_read.detail;
  end if;
end
$$;

-- Returns the policy of that name, as _read_policy() does.
-- Locks: none. Errors: RL103, RL107, RL209.
create or replace function routeledger._policy(
  p_name text,
  p_overrides jsonb default '{}'
)
returns routeledger.routing_policies
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_read record;
begin
  select r.policy, r.fault, r.detail into v_read from routeledger._read_policy(p_name, p_overrides) r;
  if v_read.fault is not null then
    perform routeledger._raise(split_part(v_read.fault, ' ', 1), coalesce(v_read.detail, routeledger._fault_detail(v_read.fault)));
  end if;
  return v_read.policy;
end
$$;

-- Writes the policy of that name. A rule that is left out has its default. Content that is that of the newest version
-- already changes nothing and has created = false; other content becomes the next version. Policies are never
-- changed or deleted, so that a decision's policy_version says for ever what it was ranked by.
-- Locks: the policies (share row exclusive). Errors: RL101, RL103, RL107, RL108.
create or replace function routeledger.set_policy(
  p_name text,
  p_policy jsonb
)
returns table (
  name text,
  version integer,
  ruleset_hash text,
  created boolean
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
  v_newest routeledger.routing_policies;
  v_policy routeledger.routing_policies;
begin
  if coalesce(p_name, '') = '' then
    perform routeledger._raise_fault('RL101 name');
  elsif length(p_name) > 100 then
    perform routeledger._raise_fault('RL108 name 100 characters');
  elsif p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]*$' then
    perform routeledger._raise_fault('RL103 name letters, digits, dots, dashes and underscores');
  elsif p_policy is null then
    perform routeledger._raise_fault('RL101 policy a JSON object');
  end if;
  v_policy := routeledger._with_rules(routeledger._blank_policy(p_name), p_policy);

  lock table routeledger.routing_policies in share row exclusive mode;
  select p.* into v_newest from routeledger.routing_policies p where p.name = p_name order by p.version desc limit 1;
  if v_newest.ruleset_hash = v_policy.ruleset_hash then
    return query select v_newest.name, v_newest.version, v_newest.ruleset_hash, false;
    return;
  end if;
  v_policy.version := coalesce(v_newest.version, 0) + 1;
  insert into routeledger.routing_policies select v_policy.*;
  return query select v_policy.name, v_policy.version, v_policy.ruleset_hash, true;
end
$$;

insert into routeledger.routing_policies
select p.*
from routeledger._with_rules(routeledger._blank_policy('default'), '{}') p
where not exists (select from routeledger.routing_policies q where q.name = 'default');

create or replace view routeledger.current_policies
as
select distinct on (p.name)
  p.name,
  p.version,
  p.min_quality,
  p.budget_cap_usd,
  p.latency_cap_ms,
  p.min_samples,
  p.window_days,
  p.floor,
  p.confidence,
  p.ordering,
  p.diversity_penalty,
  p.allow,
  p.deny,
  p.exploration,
  p.exploration_share,
  p.exploration_min_samples,
  p.input_tokens,
  p.output_tokens,
  p.failure_cost_usd,
  p.ruleset_hash,
  p.created_by,
  p.created_at
from routeledger.routing_policies p
order by p.name, p.version desc;

-- Returns the class of an error: one of rate_limited, overloaded, server, timeout, connection, context_length,
-- content_policy, authentication, bad_request, abandoned, other.
--
-- The type may be an exception's name (of LiteLLM, OpenAI, Anthropic, httpx, with its module or without), an
-- error.type of OpenTelemetry, a provider's code, or a status in digits. What it says beyond the status counts first
-- (a context that is too long comes as 400), then the status, then the rest of the type. An unknown type without a
-- status is `connection`: nothing answered.
-- Locks: none. Errors: none.
create or replace function routeledger._error_class(
  p_error_type text,
  p_http_status integer
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  -- RateLimitError, litellm.exceptions.RateLimitError and rate_limit_error are one word
  v_type text := regexp_replace(lower(regexp_replace(coalesce(p_error_type, ''), '^.*[.:/]', '')), '[^a-z0-9]', '', 'g');
  v_status integer := coalesce(p_http_status, case when v_type ~ '^[1-5][0-9][0-9]$' then v_type::integer end);
  v_class text;
begin
  v_type := regexp_replace(v_type, '(.)(error|exception)+$', '\1');
  v_class := case
    when v_type in ('abandoned', 'cancelled', 'canceled', 'requestcancelled', 'clientdisconnected', 'clientclosedrequest') then 'abandoned'
    when v_type in ('contextwindowexceeded', 'contextlengthexceeded', 'contextlength', 'requesttoolarge', 'prompttoolong', 'stringabovemaxlength',
      'maxtokensexceeded') then 'context_length'
    when v_type in ('contentpolicyviolation', 'contentpolicy', 'contentfilter', 'contentfiltered', 'contentfilterfinishreason', 'responsibleaipolicyviolation',
      'safety', 'recitation', 'refusal', 'moderationblocked', 'guardrailintervened') then 'content_policy'
    when v_type in ('overloaded', 'modeloverloaded', 'serveroverloaded', 'engineoverloaded', 'slowdown') then 'overloaded'
    when v_type in ('insufficientquota', 'billing', 'budgetexceeded', 'notfound', 'modelnotfound', 'deploymentnotfound') then 'other'
  end;
  if v_class is not null then
    return v_class;
  end if;
  v_class := case
    when v_status = 429 then 'rate_limited'
    when v_status = 529 then 'overloaded'
    when v_status in (408, 504, 524) then 'timeout'
    when v_status >= 500 or v_status in (409, 425) then 'server'
    when v_status in (401, 403, 407) then 'authentication'
    when v_status = 413 then 'context_length'
    when v_status = 451 then 'content_policy'
    when v_status = 499 then 'abandoned'
    when v_status in (402, 404, 405, 406, 410) then 'other'
    when v_status between 400 and 499 then 'bad_request'
  end;
  -- A client's name for what happened on the way says more than the 500 that it made up for it.
  if v_class is not null and v_class <> 'server' then
    return v_class;
  end if;
  return case
    when v_type in ('timeout', 'apitimeout', 'requesttimeout', 'readtimeout', 'writetimeout', 'connecttimeout', 'pooltimeout', 'gatewaytimeout',
      'deadlineexceeded', 'timedout') then 'timeout'
    when v_type in ('connection', 'apiconnection', 'connect', 'connectionreset', 'connectionrefused', 'connectionaborted', 'clientconnector', 'clientos',
      'serverdisconnected', 'brokenpipe', 'network', 'read', 'write', 'remoteprotocol', 'incompleteread', 'chunkedencoding', 'ssl', 'dns', 'nameresolution')
      then 'connection'
    when v_class is not null then v_class
    when v_type in ('ratelimit', 'ratelimited', 'ratelimitexceeded', 'toomanyrequests', 'throttling', 'throttled', 'resourceexhausted', 'quotaexceeded', 'routerratelimit')
      then 'rate_limited'
    when v_type in ('server', 'internalserver', 'internal', 'internalfailure', 'serviceunavailable', 'unavailable', 'badgateway', 'api', 'apistatus', 'midstreamfallback')
      then 'server'
    when v_type in ('authentication', 'permissiondenied', 'permission', 'unauthorized', 'unauthenticated', 'forbidden', 'accessdenied', 'invalidapikey')
      then 'authentication'
    when v_type in ('badrequest', 'invalidrequest', 'invalidargument', 'unprocessableentity', 'unsupportedparams', 'validation', 'jsonschemavalidation',
      'failedprecondition') then 'bad_request'
    when v_status is not null or v_type = 'other' then 'other'
    else 'connection'
  end;
end
$$;

-- Returns the retry rules for an error of that class by that model and tenant: of each column the value of the most
-- specific row of retry_policies that has one (the tenant counts before the model, the model before the class), else the setting.
-- Locks: none. Errors: none.
create or replace function routeledger._retry_rules(
  p_tenant_id text,
  p_model_slug text,
  p_error_class text,
  p_settings routeledger.settings
)
returns routeledger.retry_rules
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_rules routeledger.retry_rules;
  v_row routeledger.retry_policies;
begin
  for v_row in
    select r.*
    from routeledger.retry_policies r
    where r.tenant_id in ('', p_tenant_id) and r.model_slug in ('', p_model_slug) and r.error_class in ('', p_error_class)
    order by r.tenant_id = '', r.model_slug = '', r.error_class = ''
  loop
    v_rules.attempts_per_model := coalesce(v_rules.attempts_per_model, v_row.attempts_per_model);
    v_rules.max_attempts := coalesce(v_rules.max_attempts, v_row.max_attempts);
    v_rules.base := coalesce(v_rules.base, v_row.base);
    v_rules.cap := coalesce(v_rules.cap, v_row.cap);
    v_rules.jitter := coalesce(v_rules.jitter, v_row.jitter);
    v_rules.cooldown_failures := coalesce(v_rules.cooldown_failures, v_row.cooldown_failures);
    v_rules.cooldown_window := coalesce(v_rules.cooldown_window, v_row.cooldown_window);
    v_rules.cooldown := coalesce(v_rules.cooldown, v_row.cooldown);
    v_rules.cooldown_cap := coalesce(v_rules.cooldown_cap, v_row.cooldown_cap);
  end loop;
  v_rules.attempts_per_model := coalesce(v_rules.attempts_per_model, p_settings.retry_attempts_per_model);
  v_rules.max_attempts := coalesce(v_rules.max_attempts, p_settings.retry_max_attempts);
  v_rules.base := coalesce(v_rules.base, p_settings.retry_base);
  v_rules.cap := coalesce(v_rules.cap, p_settings.retry_cap);
  v_rules.jitter := coalesce(v_rules.jitter, p_settings.retry_jitter);
  v_rules.cooldown_failures := coalesce(v_rules.cooldown_failures, p_settings.cooldown_failures);
  v_rules.cooldown_window := coalesce(v_rules.cooldown_window, p_settings.cooldown_window);
  v_rules.cooldown := coalesce(v_rules.cooldown, p_settings.cooldown);
  v_rules.cooldown_cap := coalesce(v_rules.cooldown_cap, p_settings.cooldown_cap);
  return v_rules;
end
$$;

-- Sets how failures are met: for all tenants ('') or one, all models ('') or one, and, with "error_class" in the object, all
-- classes or one. The object replaces the row; what it leaves out is as the less specific rows and the settings say, and
-- an empty one removes the row. Keys: error_class, attempts_per_model, max_attempts, base, cap, jitter,
-- cooldown_failures, cooldown_window, cooldown, cooldown_cap. changed is false where the row was that already.
-- Locks: the row. Errors: RL101, RL102, RL103, RL107, RL108, RL110.
create or replace function routeledger.set_retry_policy(
  p_tenant_id text,
  p_model_slug text,
  p_policy jsonb
)
returns table (
  tenant_id text,
  model_slug text,
  error_class text,
  changed boolean
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_row routeledger.retry_policies;
  v_unknown text;
  v_fault text;
begin
  if p_tenant_id is null then
    perform routeledger._raise_fault('RL101 tenant_id '''' for all');
  elsif p_model_slug is null then
    perform routeledger._raise_fault('RL101 model_slug '''' for all');
  elsif length(p_tenant_id) > 200 then
    perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif length(p_model_slug) > 300 then
    perform routeledger._raise_fault('RL108 model_slug 300 characters');
  elsif p_tenant_id <> all (routeledger.bound_tenants()) then
    perform routeledger._raise_fault('RL110 tenant_id');
  elsif p_policy is null or jsonb_typeof(p_policy) <> 'object' then
    perform routeledger._raise_fault('RL107 policy a JSON object');
  end if;
  v_row.error_class := '';
  select k into v_unknown
  from jsonb_object_keys(p_policy) k
  where not to_jsonb(v_row) ? k or k in ('tenant_id', 'model_slug')
  order by k
  limit 1;
  if v_unknown is not null then
    perform routeledger._raise('RL107', jsonb_build_object(
      'rule', v_unknown, 'allowed', (select jsonb_agg(k order by k) from jsonb_object_keys(to_jsonb(v_row) - array['tenant_id', 'model_slug']) k)));
  end if;
  begin
    v_row := jsonb_populate_record(v_row, p_policy);
  exception
    when data_exception then
      perform routeledger._raise('RL107', jsonb_build_object('policy', p_policy, 'reason', sqlerrm));
  end;
  v_row.tenant_id := p_tenant_id;
  v_row.model_slug := p_model_slug;
  v_row.error_class := coalesce(v_row.error_class, '');
  v_fault := case
    when v_row.error_class not in ('', 'rate_limited', 'overloaded', 'server', 'timeout', 'connection', 'context_length', 'content_policy', 'authentication',
      'bad_request', 'abandoned', 'other') then 'RL102 error_class'
    when v_row.attempts_per_model not between 1 and 10 then 'RL103 attempts_per_model 1 to 10'
    when v_row.max_attempts not between 1 and 1000 then 'RL103 max_attempts 1 to 1000'
    when v_row.base not between interval '0' and interval '1 hour' then 'RL103 base 0 to 1 hour'
    when v_row.cap not between interval '0' and interval '24 hours' then 'RL103 cap 0 to 24 hours'
    when v_row.jitter not between 0 and 1 then 'RL103 jitter 0 to 1'
    when v_row.cooldown_failures not between 1 and 1000 then 'RL103 cooldown_failures 1 to 1000'
    when v_row.cooldown_window not between interval '1 second' and interval '24 hours' then 'RL103 cooldown_window 1 second to 24 hours'
    when v_row.cooldown not between interval '0' and interval '24 hours' then 'RL103 cooldown 0 to 24 hours'
    when v_row.cooldown_cap not between interval '0' and interval '24 hours' then 'RL103 cooldown_cap 0 to 24 hours'
  end;
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;

  tenant_id := v_row.tenant_id;
  model_slug := v_row.model_slug;
  error_class := v_row.error_class;
  if jsonb_strip_nulls(p_policy - 'error_class') = '{}' then
    delete from routeledger.retry_policies r
    where r.tenant_id = v_row.tenant_id and r.model_slug = v_row.model_slug and r.error_class = v_row.error_class;
  else
    insert into routeledger.retry_policies as r select v_row.*
    on conflict (tenant_id, model_slug, error_class) do update set
      attempts_per_model = excluded.attempts_per_model,
      max_attempts = excluded.max_attempts,
      base = excluded.base,
      cap = excluded.cap,
      jitter = excluded.jitter,
      cooldown_failures = excluded.cooldown_failures,
      cooldown_window = excluded.cooldown_window,
      cooldown = excluded.cooldown,
      cooldown_cap = excluded.cooldown_cap
    where r is distinct from excluded;
  end if;
  changed := found;
  return next;
end
$$;

-- Returns what to do after a failed attempt: `retry` the same candidate after a delay, go on to another (`failover`), or `give_up`.
--
-- rate_limited, overloaded, server, timeout and connection are worth a retry as long as the candidate has attempts
-- left; authentication and bad_request would fail everywhere, and abandoned has nobody left to answer; of the rest
-- (context_length, content_policy, other) another model may make something.
-- delay = max(retry-after, jitter * U(0, b) + (1 - jitter) * b) with b = min(cap, base * 2^(attempts - 1)):
-- exponential backoff with full jitter at jitter = 1 (Brooker, "Exponential Backoff And Jitter").
-- A provider that asks for more than the cap is not waited for.
-- p_attempts counts the candidate's attempts so far (1 or more); p_random is uniform in [0, 1).
-- Locks: none. Errors: none.
create or replace function routeledger._after_failure(
  p_rules routeledger.retry_rules,
  p_error_class text,
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
  v_cap_ms double precision := extract(epoch from p_rules.cap) * 1000;
  v_backoff_ms double precision;
begin
  v_step.delay_ms := 0;
  if p_error_class in ('authentication', 'bad_request', 'abandoned') then
    v_step.action := 'give_up';
    return v_step;
  end if;
  v_step.action := 'failover';
  if p_attempts >= p_rules.attempts_per_model
    or p_error_class not in ('rate_limited', 'overloaded', 'server', 'timeout', 'connection')
    or p_retry_after_ms > v_cap_ms
  then
    return v_step;
  end if;
  v_backoff_ms := least(v_cap_ms, extract(epoch from p_rules.base) * 1000 * 2 ^ least(p_attempts - 1, 30));
  v_step.action := 'retry';
  v_step.delay_ms := greatest(
    coalesce(p_retry_after_ms, 0),
    round(v_backoff_ms * (1 - p_rules.jitter + p_rules.jitter * p_random))::bigint);
  return v_step;
end
$$;

-- Returns the tenant under which a cooldown of this tenant is kept: '' where settings.cooldown_scope is `all`.
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._cooldown_tenant(
  p_tenant_id text,
  p_settings routeledger.settings
)
returns text
language sql
immutable
parallel safe
security invoker
as $$
  select case p_settings.cooldown_scope when 'all' then '' else p_tenant_id end
$$;

-- Returns the models that this tenant should leave alone, provider '' for all providers of the model: `open` until
-- until_at, or `probing`, where an attempt has been made the probe and has until until_at to come back. Without a pinned
-- path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._cooling(
  p_tenant_id text,
  p_now timestamptz
)
returns table (
  model_slug text,
  provider text,
  until_at timestamptz,
  state text
)
language sql
stable
parallel safe
security invoker
as $$
  select
    c.model_slug,
    c.provider,
    greatest(c.until_at, c.probe_until),
    case when c.probe_until > p_now then 'probing' else 'open' end
  from routeledger.cooldowns c
  where c.tenant_id in ('', p_tenant_id) and c.first_failed_at <= p_now and (c.until_at > p_now or (c.until_at is not null and c.probe_until > p_now))
$$;

-- Makes an attempt that starts at p_start (by default now) the probe of a model whose cooldown is over by then. Returns
-- null where there is no cooldown to probe, true where the attempt is the probe (until it ends, or p_lease after its
-- start), false where the model is still cooling down or another attempt is its probe. Of several at once one gets
-- true, and the others do not wait for it (SKIP LOCKED, which waits in one case: on following an update that was
-- committed in this very moment, for who has locked the new version since).
-- Locks: the cooldown (skip locked). Errors: none.
create or replace function routeledger._take_probe(
  p_tenant_id text,
  p_model_slug text,
  p_provider text,
  p_attempt_id uuid,
  p_now timestamptz,
  p_lease interval,
  p_start timestamptz default null
)
returns boolean
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_open integer;
  v_free integer;
begin
  select
    count(*),
    count(*) filter (where c.until_at <= coalesce(p_start, p_now) and (c.probe_until is null or c.probe_until <= p_now or c.probe_attempt_id = p_attempt_id))
  into v_open, v_free
  from routeledger.cooldowns c
  where c.tenant_id in ('', p_tenant_id) and c.model_slug = p_model_slug and c.provider in ('', coalesce(p_provider, '')) and c.until_at is not null;
  if v_open = 0 then
    return null;
  elsif v_free < v_open then
    return false;
  end if;
  select count(*) into v_free
  from (
    select
    from routeledger.cooldowns c
    where c.tenant_id in ('', p_tenant_id) and c.model_slug = p_model_slug and c.provider in ('', coalesce(p_provider, ''))
      and c.until_at <= coalesce(p_start, p_now) and (c.probe_until is null or c.probe_until <= p_now or c.probe_attempt_id = p_attempt_id)
    for update skip locked
  ) f;
  if v_free < v_open then
    return false;
  end if;
  update routeledger.cooldowns c set probe_attempt_id = p_attempt_id, probe_until = coalesce(p_start, p_now) + p_lease
  where c.tenant_id in ('', p_tenant_id) and c.model_slug = p_model_slug and c.provider in ('', coalesce(p_provider, '')) and c.until_at is not null;
  return true;
end
$$;

-- Ends a probe. Where the model answered, its cooldown is over and the row goes; else the next attempt may probe it.
-- A cooldown that another failure is being noted in stays as that one leaves it.
-- Locks: the cooldown (skip locked). Errors: none.
create or replace function routeledger._end_probe(
  p_tenant_id text,
  p_model_slug text,
  p_provider text,
  p_attempt_id uuid,
  p_answered boolean
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_held record;
begin
  for v_held in
    select c.tenant_id, c.model_slug, c.provider
    from routeledger.cooldowns c
    where c.tenant_id in ('', p_tenant_id) and c.model_slug = p_model_slug and c.provider in ('', coalesce(p_provider, ''))
      and c.probe_attempt_id = p_attempt_id
    for update skip locked
  loop
    if p_answered then
      delete from routeledger.cooldowns c
      where c.tenant_id = v_held.tenant_id and c.model_slug = v_held.model_slug and c.provider = v_held.provider;
    else
      update routeledger.cooldowns c set probe_attempt_id = null, probe_until = null
      where c.tenant_id = v_held.tenant_id and c.model_slug = v_held.model_slug and c.provider = v_held.provider;
    end if;
  end loop;
end
$$;

-- Notes a failure of a model. It cools down at once where the provider said for how long (429 or 529 with retry-after),
-- where a probe failed, or where it fails again within cooldown_window of its last cooldown; else after cooldown_failures
-- failures within cooldown_window. The n-th cooldown in a row lasts cooldown * 2^(n - 1), at most cooldown_cap, which also
-- bounds what a provider may ask for. A cooldown is never shortened, and one that is long enough is not written to.
-- What says nothing of the model's health (a refusal, a bad request) only ends the probe that it was.
-- Locks: the cooldown. Errors: none.
create or replace function routeledger._note_failure(
  p_tenant_id text,
  p_model_slug text,
  p_provider text,
  p_error_class text,
  p_http_status integer,
  p_retry_after_ms bigint,
  p_attempt_id uuid,
  p_is_probe boolean,
  p_rules routeledger.retry_rules,
  p_settings routeledger.settings,
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_tenant text := routeledger._cooldown_tenant(p_tenant_id, p_settings);
  v_provider text := coalesce(p_provider, '');
  v_cap double precision := extract(epoch from p_rules.cooldown_cap);
  v_asked timestamptz;
  v_until timestamptz;
  v_row routeledger.cooldowns;
begin
  if p_error_class not in ('rate_limited', 'overloaded', 'server', 'timeout', 'connection') then
    if p_is_probe then
      perform routeledger._end_probe(
        p_tenant_id, p_model_slug, p_provider, p_attempt_id, p_error_class in ('context_length', 'content_policy', 'bad_request'));
    end if;
    return;
  end if;
  if p_error_class in ('rate_limited', 'overloaded') and p_retry_after_ms > 0 then
    v_asked := p_now + make_interval(secs => least(v_cap, p_retry_after_ms / 1000.0));
  end if;

  if not p_is_probe and exists (
    select from routeledger.cooldowns c
    where c.tenant_id = v_tenant and c.model_slug = p_model_slug and c.provider = v_provider and c.until_at > p_now
      and c.until_at >= coalesce(v_asked, p_now))
  then
    return;
  end if;
  loop
    insert into routeledger.cooldowns (tenant_id, model_slug, provider, first_failed_at, last_failed_at)
    values (v_tenant, p_model_slug, v_provider, p_now, p_now)
    on conflict (tenant_id, model_slug, provider) do nothing;
    select c.* into v_row
    from routeledger.cooldowns c
    where c.tenant_id = v_tenant and c.model_slug = p_model_slug and c.provider = v_provider
    for update;
    exit when found; -- a probe's success may have taken it away in between
  end loop;

  if coalesce(v_row.until_at, v_row.first_failed_at) + p_rules.cooldown_window < p_now and not p_is_probe then
    v_row.failures := 0;
    v_row.opened_count := 0;
    v_row.until_at := null;
    v_row.probe_attempt_id := null;
    v_row.probe_until := null;
    v_row.first_failed_at := p_now;
  end if;
  v_row.failures := v_row.failures + 1;
  v_until := v_asked;
  if p_is_probe or v_row.until_at <= p_now or (v_row.until_at is null and v_row.failures >= p_rules.cooldown_failures) then
    v_until := greatest(v_until, p_now + make_interval(
      secs => least(v_cap, extract(epoch from p_rules.cooldown) * 2 ^ least(v_row.opened_count, 30))));
  end if;
  if v_until > greatest(v_row.until_at, p_now) then
    v_row.opened_count := v_row.opened_count + case when v_row.until_at > p_now then 0 else 1 end;
    v_row.until_at := v_until;
    v_row.probe_attempt_id := null;
    v_row.probe_until := null;
  end if;
  update routeledger.cooldowns c set
    failures = v_row.failures,
    until_at = v_row.until_at,
    opened_count = v_row.opened_count,
    error_class = p_error_class,
    http_status = p_http_status,
    first_failed_at = v_row.first_failed_at,
    last_failed_at = greatest(c.last_failed_at, p_now),
    probe_attempt_id = v_row.probe_attempt_id,
    probe_until = v_row.probe_until
  where c.tenant_id = v_tenant and c.model_slug = p_model_slug and c.provider = v_provider;
end
$$;

-- Locks the cooldowns of these models in their order, and makes those that are missing, so that a batch of failures
-- can note each of them without waiting out of order.
-- Locks: the cooldowns by key. Errors: none.
create or replace function routeledger._lock_cooldowns(
  p_tenants text[],
  p_models text[],
  p_providers text[],
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  insert into routeledger.cooldowns (tenant_id, model_slug, provider, first_failed_at, last_failed_at)
  select distinct k.tenant_id, k.model_slug, k.provider, p_now, p_now
  from unnest(p_tenants, p_models, p_providers) k (tenant_id, model_slug, provider)
  order by 1, 2, 3
  on conflict (tenant_id, model_slug, provider) do nothing;
  perform
  from routeledger.cooldowns c
  where (c.tenant_id, c.model_slug, c.provider) in (
    select k.tenant_id, k.model_slug, k.provider from unnest(p_tenants, p_models, p_providers) k (tenant_id, model_slug, provider))
  order by c.tenant_id, c.model_slug, c.provider
  for update of c;
end
$$;

create or replace view routeledger.model_cooldowns
with (security_barrier = true)
as
select
  c.tenant_id,
  c.model_slug,
  c.provider,
  case when c.until_at > t.now then 'open' when c.probe_until > t.now then 'probing' else 'half_open' end as state,
  c.until_at,
  c.failures,
  c.opened_count,
  c.error_class,
  c.http_status,
  c.first_failed_at,
  c.last_failed_at,
  c.probe_attempt_id,
  c.probe_until
from routeledger.cooldowns c
cross join (select routeledger.clock() as now) t
where c.until_at is not null
  and ((select routeledger.bound_tenants()) is null or c.tenant_id = '' or c.tenant_id = any ((select routeledger.bound_tenants())::text[]));

-- Returns the window of a budget at that time, by its start in UTC: the hour, day or month, or -infinity (`total`).
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._budget_window(
  p_period text,
  p_at timestamptz
)
returns timestamptz
language sql
stable
parallel safe
security invoker
as $$
  select case p_period when 'total' then timestamptz '-infinity' else date_trunc(p_period, p_at, 'UTC') end
$$;

-- Returns when the window of a budget ends and the next one begins; null for `total`. Without a pinned path so
-- that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._budget_end(
  p_period text,
  p_window_start timestamptz
)
returns timestamptz
language sql
stable
parallel safe
security invoker
as $$
  select case when p_period <> 'total' then ((p_window_start at time zone 'UTC') + ('1 ' || p_period)::interval) at time zone 'UTC' end
$$;

-- Returns the subject under which a budget counts a decision, or null where the budget is not concerned. Without
-- a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._budget_subject(
  p_budget routeledger.budgets,
  p_agent_id text,
  p_budget_key text
)
returns text
language sql
immutable
parallel safe
security invoker
as $$
  select case
    when p_budget.scope = 'tenant' then ''
    when p_budget.scope = 'agent' and p_budget.subject in ('*', p_agent_id) then p_agent_id
    when p_budget.scope = 'key' and p_budget.subject in ('*', p_budget_key) then p_budget_key
  end
$$;

-- Returns what a refusal for want of money says.
-- Locks: none. Errors: none.
create or replace function routeledger._budget_refusal(
  p_line routeledger.budget_line,
  p_free_usd numeric
)
returns jsonb
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'budget', p_line.name,
    'scope', p_line.scope,
    'subject', nullif(p_line.subject, ''),
    'period', p_line.period,
    'limit_usd', p_line.limit_usd,
    'remaining_usd', greatest(trim_scale(p_free_usd), 0),
    'wanted_usd', trim_scale(p_line.amount_usd),
    'resets_at', routeledger._budget_end(p_line.period, p_line.window_start)))
$$;

-- Tells, without a lock, what the budgets say to a decision of that amount: null where none is concerned, the JSON value
-- true where all that are have as much, else what the refusal says. A refusal stands: what is committed is read in
-- one moment, and a budget that was short in that moment may refuse.
-- Locks: none. Errors: none.
create or replace function routeledger._ask_budgets(
  p_tenant_id text,
  p_agent_id text,
  p_budget_key text,
  p_amount_usd numeric,
  p_now timestamptz
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set enable_nestloop = on
as $$
declare
  v_answer jsonb;
begin
  select case
    when f.free_usd < p_amount_usd then routeledger._budget_refusal(
      row(1, 1, b.tenant_id, null, p_amount_usd, b.name, b.scope, b.period, k.subject, k.window_start, b.limit_usd, 0, b.shards)::routeledger.budget_line,
      f.free_usd)
    else 'true'
  end
  into v_answer
  from routeledger.budgets b
  cross join lateral (
    select routeledger._budget_subject(b, p_agent_id, p_budget_key) as subject, routeledger._budget_window(b.period, p_now) as window_start
  ) k
  cross join lateral (
    select coalesce(sum(c.allowance_usd - c.reserved_usd - c.spent_usd), b.limit_usd) as free_usd
    from routeledger.budget_counters c
    where c.tenant_id = b.tenant_id and c.name = b.name and c.subject = k.subject and c.window_start = k.window_start
  ) f
  where b.tenant_id = p_tenant_id and k.subject is not null
  order by f.free_usd >= p_amount_usd, b.name
  limit 1;
  return v_answer;
end
$$;

-- As _ask_budgets(), but null also where all have as much: what a caller needs that would go on to a cheaper model.
-- Locks: none. Errors: none.
create or replace function routeledger._budget_short(
  p_tenant_id text,
  p_agent_id text,
  p_budget_key text,
  p_amount_usd numeric,
  p_now timestamptz
)
returns jsonb
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return nullif(routeledger._ask_budgets(p_tenant_id, p_agent_id, p_budget_key, p_amount_usd, p_now), 'true');
end
$$;

-- Spreads what is free in a window evenly over its shards; a window that is overdrawn has it all in shard 0, and
-- says so in each. The caller holds all of them.
-- Locks: the counters, held by the caller. Errors: none.
create or replace function routeledger._level_budget(
  p_tenant_id text,
  p_name text,
  p_subject text,
  p_window_start timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_free numeric;
  v_share numeric;
  v_n integer;
begin
  select sum(c.allowance_usd - c.reserved_usd - c.spent_usd), count(*) into v_free, v_n
  from routeledger.budget_counters c
  where c.tenant_id = p_tenant_id and c.name = p_name and c.subject = p_subject and c.window_start = p_window_start;
  v_share := greatest(trunc(v_free / v_n, 12), 0);
  update routeledger.budget_counters c set
    allowance_usd = trim_scale(c.reserved_usd + c.spent_usd + case c.shard when 0 then v_free - v_share * (v_n - 1) else v_share end),
    overdrawn = v_free < 0
  where c.tenant_id = p_tenant_id and c.name = p_name and c.subject = p_subject and c.window_start = p_window_start;
end
$$;

-- Makes the counters of budget windows that have none yet; their allowances add up to the limit in force.
-- Locks: the budgets (for share), then the new counters by key. Errors: none.
create or replace function routeledger._open_windows(
  p_lines routeledger.budget_line[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set enable_nestloop = on
as $$
declare
  v_line record;
begin
  for v_line in
    select distinct l.tenant_id, l.name, l.subject, l.window_start
    from unnest(p_lines) l
    where not exists (
      select from routeledger.budget_counters c
      where c.tenant_id = l.tenant_id and c.name = l.name and c.subject = l.subject and c.window_start = l.window_start)
    order by 1, 2, 3, 4
  loop
    -- Shared with other openers, not with whoever changes the limit; a budget that is gone opens nothing.
    with budget as (
      select b.limit_usd, b.shards
      from routeledger.budgets b
      where b.tenant_id = v_line.tenant_id and b.name = v_line.name
      for share
    )
    insert into routeledger.budget_counters (tenant_id, name, subject, window_start, shard, allowance_usd)
    select v_line.tenant_id, v_line.name, v_line.subject, v_line.window_start, s.shard,
      trim_scale(case s.shard when 0 then b.limit_usd - trunc(b.limit_usd / b.shards, 12) * (b.shards - 1) else trunc(b.limit_usd / b.shards, 12) end)
    from budget b
    cross join lateral generate_series(0, b.shards - 1) s (shard)
    order by s.shard
    on conflict (tenant_id, name, subject, window_start, shard) do nothing;
  end loop;
end
$$;

-- Reserves the amounts of several decisions, each in all the budgets that concern it or in none. Returns an
-- array as long as the one given: null where the decision is covered, else the refusal as JSON. Exact: nothing is
-- reserved beyond a limit, and nothing is refused that the budget has, wherever among its shards.
--
-- A window with several shards is first asked for what it has in the caller's own one (by backend, so that two sessions
-- meet seldom). Only where that lacks are all shards locked, in order, counted together, and spread anew. Since a
-- row that lacked stays locked until the transaction ends, and out of order, the first try is undone before. Nested
-- loops are back on, which insert_decisions() does without: the joins here have no other way.
-- Locks: the counters by key. Errors: none; refusals are part of the result.
create or replace function routeledger._reserve_budgets(
  p_wants routeledger.budget_want[],
  p_now timestamptz
)
returns jsonb[]
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set enable_nestloop = on
as $$
declare
  v_refused jsonb[] := array_fill(null::jsonb, array[cardinality(p_wants)]);
  v_lines routeledger.budget_line[];
  v_kept routeledger.budget_line[];
  v_line routeledger.budget_line;
  v_counter record;
  v_want record;
  v_sharded boolean;
  v_unopened boolean;
  v_reserved boolean := false;
  v_free numeric[];
  v_need numeric[];
  v_short routeledger.budget_line;
  v_shards integer[];
begin
  select
    array_agg(row(x.*)::routeledger.budget_line order by x.want, x.counter),
    bool_or(x.shards > 1),
    bool_or(not exists (
      select from routeledger.budget_counters c
      where c.tenant_id = x.tenant_id and c.name = x.name and c.subject = x.subject and c.window_start = x.window_start))
  into v_lines, v_sharded, v_unopened
  from (
    select
      w.n::integer as want,
      (dense_rank() over (order by b.tenant_id, b.name, k.subject, k.window_start))::integer as counter,
      b.tenant_id, w.outcome_id, w.amount_usd, b.name, b.scope, b.period, k.subject, k.window_start, b.limit_usd,
      pg_backend_pid() % b.shards as shard,
      b.shards
    from unnest(p_wants) with ordinality w (tenant_id, outcome_id, agent_id, budget_key, amount_usd, n)
    join routeledger.budgets b on b.tenant_id = w.tenant_id
    cross join lateral (
      select routeledger._budget_subject(b, w.agent_id, w.budget_key) as subject, routeledger._budget_window(b.period, p_now) as window_start
    ) k
    where k.subject is not null
  ) x;
  if v_lines is null then
    return v_refused;
  end if;
  if v_unopened then
    perform routeledger._open_windows(v_lines);
  end if;

  if cardinality(v_lines) = 1 and not v_sharded then
    -- The one row: there is no order to keep.
    with taken as (
      update routeledger.budget_counters c set reserved_usd = c.reserved_usd + l.amount_usd
      from unnest(v_lines) l
      where c.tenant_id = l.tenant_id and c.name = l.name and c.subject = l.subject and c.window_start = l.window_start and c.shard = 0
        and c.allowance_usd - c.reserved_usd - c.spent_usd >= l.amount_usd
      returning l.*
    )
    insert into routeledger.budget_holds (tenant_id, outcome_id, name, subject, window_start, shard, amount_usd)
    select t.tenant_id, t.outcome_id, t.name, t.subject, t.window_start, 0, t.amount_usd from taken t;
    if found then
      return v_refused;
    end if;
  elsif v_sharded then
    begin
      for v_counter in
        select l.tenant_id, l.name, l.subject, l.window_start, l.shard, sum(l.amount_usd) as need
        from unnest(v_lines) l
        group by 1, 2, 3, 4, 5
        order by 1, 2, 3, 4, 5
      loop
        update routeledger.budget_counters c set reserved_usd = c.reserved_usd + v_counter.need
        where c.tenant_id = v_counter.tenant_id and c.name = v_counter.name and c.subject = v_counter.subject
          and c.window_start = v_counter.window_start and c.shard = v_counter.shard
          and not c.overdrawn and c.allowance_usd - c.reserved_usd - c.spent_usd >= v_counter.need;
        if not found then
          raise exception using errcode = 'RL504', message = 'the own shard lacks';
        end if;
      end loop;
      v_reserved := true;
      v_kept := v_lines;
    exception
      when sqlstate 'RL504' then
        null; -- its locks are gone with it
    end;
  end if;

  if not v_reserved then
    v_free := array_fill(null::numeric, array[(select max(l.counter) from unnest(v_lines) l)]);
    v_need := array_fill(0::numeric, array[cardinality(v_free)]);
    v_shards := array_fill(0, array[cardinality(v_free)]);
    for v_counter in
      select k.counter, c.allowance_usd - c.reserved_usd - c.spent_usd as free_usd
      from (select distinct l.counter, l.tenant_id, l.name, l.subject, l.window_start from unnest(v_lines) l) k
      join routeledger.budget_counters c
        on c.tenant_id = k.tenant_id and c.name = k.name and c.subject = k.subject and c.window_start = k.window_start
      order by c.tenant_id, c.name, c.subject, c.window_start, c.shard
      for update of c
    loop
      v_free[v_counter.counter] := coalesce(v_free[v_counter.counter], 0) + v_counter.free_usd;
      v_shards[v_counter.counter] := v_shards[v_counter.counter] + 1;
    end loop;

    -- A counter without rows is of a budget that has just been dropped.
    for v_want in
      select l.want, array_agg(l order by l.counter) as lines from unnest(v_lines) l group by l.want order by l.want
    loop
      v_short := null;
      foreach v_line in array v_want.lines loop
        if v_free[v_line.counter] < v_line.amount_usd then
          v_short := v_line;
          exit;
        end if;
      end loop;
      if v_short.want is not null then
        v_refused[v_want.want] := routeledger._budget_refusal(v_short, v_free[v_short.counter]);
        continue;
      end if;
      foreach v_line in array v_want.lines loop
        if v_free[v_line.counter] is not null then
          v_free[v_line.counter] := v_free[v_line.counter] - v_line.amount_usd;
          v_need[v_line.counter] := v_need[v_line.counter] + v_line.amount_usd;
          v_kept := v_kept || v_line;
        end if;
      end loop;
    end loop;

    for v_counter in
      select distinct l.counter, l.tenant_id, l.name, l.subject, l.window_start, l.shard from unnest(v_kept) l order by l.counter
    loop
      -- the shard may be of a number that the window does not have, when that has just been changed
      update routeledger.budget_counters c set reserved_usd = c.reserved_usd + v_need[v_counter.counter]
      where c.tenant_id = v_counter.tenant_id and c.name = v_counter.name and c.subject = v_counter.subject
        and c.window_start = v_counter.window_start and c.shard = v_counter.shard % v_shards[v_counter.counter];
      if v_shards[v_counter.counter] > 1 then
        perform routeledger._level_budget(v_counter.tenant_id, v_counter.name, v_counter.subject, v_counter.window_start);
      end if;
    end loop;
  end if;

  insert into routeledger.budget_holds (tenant_id, outcome_id, name, subject, window_start, shard, amount_usd)
  select l.tenant_id, l.outcome_id, l.name, l.subject, l.window_start,
    case when v_reserved then l.shard else l.shard % v_shards[l.counter] end, l.amount_usd
  from unnest(v_kept) l;
  return v_refused;
end
$$;

-- Reserves the amount of one decision in every budget that concerns it, or in none. Returns null where it is covered (or
-- no budget is concerned), else the refusal as JSON: budget, scope, subject, period, limit_usd, remaining_usd,
-- wanted_usd, resets_at.
-- Locks: the counters by key. Errors: none; a refusal is the result.
create or replace function routeledger._reserve_budget(
  p_tenant_id text,
  p_outcome_id uuid,
  p_agent_id text,
  p_budget_key text,
  p_amount_usd numeric,
  p_now timestamptz
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return (routeledger._reserve_budgets(
    array[row(p_tenant_id, p_outcome_id, p_agent_id, p_budget_key, p_amount_usd)::routeledger.budget_want], p_now))[1];
end
$$;

-- Locks the counters that hold something for these decisions, all shards of each, in their order, so that a batch can
-- raise and settle its holds one by one.
-- Locks: the counters by key. Errors: none.
create or replace function routeledger._lock_holds(
  p_tenants text[],
  p_outcomes uuid[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  perform
  from (
    select distinct h.tenant_id, h.name, h.subject, h.window_start
    from unnest(p_tenants, p_outcomes) d (tenant_id, outcome_id)
    join routeledger.budget_holds h on h.tenant_id = d.tenant_id and h.outcome_id = d.outcome_id
  ) k
  join routeledger.budget_counters c
    on c.tenant_id = k.tenant_id and c.name = k.name and c.subject = k.subject and c.window_start = k.window_start
  order by c.tenant_id, c.name, c.subject, c.window_start, c.shard
  for update of c;
end
$$;

-- Raises what is held for a decision to p_amount_usd, in every budget that holds something for it or in none. Returns
-- null where that is done or is held already, else the refusal as JSON.
-- Locks: the counters by key. Errors: none; a refusal is the result.
create or replace function routeledger._raise_hold(
  p_tenant_id text,
  p_outcome_id uuid,
  p_amount_usd numeric
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_refusal jsonb;
  v_hold record;
begin
  if not exists (
    select from routeledger.budget_holds h
    where h.tenant_id = p_tenant_id and h.outcome_id = p_outcome_id and h.amount_usd < p_amount_usd and not h.released)
  then
    return null;
  end if;
  perform routeledger._lock_holds(array[p_tenant_id], array[p_outcome_id]);
  select routeledger._budget_refusal(
    row(1, 1, b.tenant_id, null, p_amount_usd - h.amount_usd, b.name, b.scope, b.period, h.subject, h.window_start, b.limit_usd, 0, b.shards)::routeledger.budget_line,
    f.free_usd)
  into v_refusal
  from routeledger.budget_holds h
  join routeledger.budgets b on b.tenant_id = h.tenant_id and b.name = h.name
  cross join lateral (
    select sum(c.allowance_usd - c.reserved_usd - c.spent_usd) as free_usd
    from routeledger.budget_counters c
    where c.tenant_id = h.tenant_id and c.name = h.name and c.subject = h.subject and c.window_start = h.window_start
  ) f
  where h.tenant_id = p_tenant_id and h.outcome_id = p_outcome_id and f.free_usd < p_amount_usd - h.amount_usd
  order by b.name
  limit 1;
  if v_refusal is not null then
    return v_refusal;
  end if;
  for v_hold in
    select h.*
    from routeledger.budget_holds h
    where h.tenant_id = p_tenant_id and h.outcome_id = p_outcome_id and h.amount_usd < p_amount_usd
    order by h.name
  loop
    update routeledger.budget_counters c set reserved_usd = c.reserved_usd + p_amount_usd - v_hold.amount_usd
    where c.tenant_id = v_hold.tenant_id and c.name = v_hold.name and c.subject = v_hold.subject and c.window_start = v_hold.window_start
      and c.shard = v_hold.shard;
    perform routeledger._level_budget(v_hold.tenant_id, v_hold.name, v_hold.subject, v_hold.window_start);
  end loop;
  update routeledger.budget_holds h set amount_usd = greatest(h.amount_usd, p_amount_usd)
  where h.tenant_id = p_tenant_id and h.outcome_id = p_outcome_id;
  return null;
end
$$;

-- Adds to and takes from counters: for each (tenant, name, subject, window, shard) of p_lines, in order. Where more is
-- spent than was reserved, the window's shards are spread anew, so that what another shard has free is there.
-- Locks: the counters by key. Errors: none.
create or replace function routeledger._move_budgets(
  p_holds routeledger.budget_holds[],
  p_spent numeric[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_window record;
begin
  for v_window in
    select
      m.tenant_id, m.name, m.subject, m.window_start,
      array_agg(m.shard order by m.shard) as shards, array_agg(m.freed order by m.shard) as freed, array_agg(m.spent order by m.shard) as spent,
      bool_or(m.spent > m.freed) as beyond
    from (
      select h.tenant_id, h.name, h.subject, h.window_start, h.shard, sum(case when h.released then 0 else h.amount_usd end) as freed, sum(h.spent) as spent
      from unnest(p_holds, p_spent) h (tenant_id, outcome_id, name, subject, window_start, shard, amount_usd, released, spent)
      group by 1, 2, 3, 4, 5
    ) m
    group by 1, 2, 3, 4
    order by 1, 2, 3, 4
  loop
    if v_window.beyond or cardinality(v_window.shards) > 1 then
      perform
      from routeledger.budget_counters c
      where c.tenant_id = v_window.tenant_id and c.name = v_window.name and c.subject = v_window.subject and c.window_start = v_window.window_start
        and (v_window.beyond or c.shard = any (v_window.shards))
      order by c.shard
      for update;
    end if;
    update routeledger.budget_counters c set reserved_usd = c.reserved_usd - m.freed, spent_usd = c.spent_usd + m.spent
    from unnest(v_window.shards, v_window.freed, v_window.spent) m (shard, freed, spent)
    where c.tenant_id = v_window.tenant_id and c.name = v_window.name and c.subject = v_window.subject and c.window_start = v_window.window_start
      and c.shard = m.shard;
    if v_window.beyond then
      perform routeledger._level_budget(v_window.tenant_id, v_window.name, v_window.subject, v_window.window_start);
    end if;
  end loop;
end
$$;

-- Settles what is held for these decisions: the reservation goes, the cost is spent, in the window of the decision. A
-- cost of which a part is unknown counts at least as the amount reserved. What a reaper released is spent all the same when the cost is known
-- after all.
-- Locks: the counters by key; the caller holds the outcomes. Errors: none.
create or replace function routeledger._settle_budgets(
  p_tenants text[],
  p_outcomes uuid[],
  p_costs numeric[],
  p_unknown boolean[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_holds routeledger.budget_holds[];
  v_spent numeric[];
begin
  with gone as (
    delete from routeledger.budget_holds h
    using unnest(p_tenants, p_outcomes, p_costs, p_unknown) d (tenant_id, outcome_id, cost_usd, is_unknown)
    where h.tenant_id = d.tenant_id and h.outcome_id = d.outcome_id
    returning h, case when d.is_unknown then greatest(d.cost_usd, h.amount_usd) else d.cost_usd end as spent
  )
  select array_agg(g.h), array_agg(g.spent) into v_holds, v_spent from gone g;
  perform routeledger._move_budgets(v_holds, v_spent);
end
$$;

-- Releases what is held for decisions that were abandoned. The hold is kept, as released, for a completion that comes late.
-- Locks: the counters by key; the caller holds the outcomes. Errors: none.
create or replace function routeledger._release_budgets(
  p_tenants text[],
  p_outcomes uuid[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_holds routeledger.budget_holds[];
begin
  select array_agg(h) into v_holds
  from unnest(p_tenants, p_outcomes) d (tenant_id, outcome_id)
  join routeledger.budget_holds h on h.tenant_id = d.tenant_id and h.outcome_id = d.outcome_id
  where not h.released;
  if v_holds is null then
    return;
  end if;
  update routeledger.budget_holds h set released = true
  from unnest(p_tenants, p_outcomes) d (tenant_id, outcome_id)
  where h.tenant_id = d.tenant_id and h.outcome_id = d.outcome_id and not h.released;
  perform routeledger._move_budgets(v_holds, array_fill(0::numeric, array[cardinality(v_holds)]));
end
$$;

-- Spends what decisions cost that were made without asking, in the windows of their times; nothing is refused.
-- Locks: the counters by key. Errors: none.
create or replace function routeledger._charge_budgets(
  p_tenants text[],
  p_agents text[],
  p_costs numeric[],
  p_times timestamptz[]
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_lines routeledger.budget_line[];
  v_holds routeledger.budget_holds[];
  v_spent numeric[];
begin
  select
    array_agg(row(d.n, 0, b.tenant_id, null, d.cost_usd, b.name, b.scope, b.period, k.subject, k.window_start, b.limit_usd, 0, b.shards)::routeledger.budget_line),
    array_agg(row(b.tenant_id, null, b.name, k.subject, k.window_start, pg_backend_pid() % b.shards, 0, true)::routeledger.budget_holds),
    array_agg(d.cost_usd)
  into v_lines, v_holds, v_spent
  from unnest(p_tenants, p_agents, p_costs, p_times) with ordinality d (tenant_id, agent_id, cost_usd, at, n)
  join routeledger.budgets b on b.tenant_id = d.tenant_id
  cross join lateral (
    select routeledger._budget_subject(b, d.agent_id, null) as subject, routeledger._budget_window(b.period, d.at) as window_start
  ) k
  where k.subject is not null and d.cost_usd > 0;
  if v_lines is not null then
    perform routeledger._open_windows(v_lines);
    perform routeledger._move_budgets(v_holds, v_spent);
  end if;
end
$$;

-- Makes a budget or changes it. It limits what a tenant's decisions may cost per hour, day or month (UTC) or in `total`:
-- all of them (scope `tenant`), those of one agent (scope `agent`, subject its id) or one budget key (scope `key`), or of each
-- agent or key for itself (subject '*'). A new limit holds in the window that is running, for what is reserved and spent in
-- it already. Another scope, subject or period begins anew. With p_shards above 1 it is counted in that many rows, for
-- budgets that many sessions write to at once. Returns true where the budget is new.
-- Locks: the budget, then its counters by key, then the settings row. Errors: RL101, RL102, RL103, RL108, RL110.
create or replace function routeledger.set_budget(
  p_tenant_id text,
  p_name text,
  p_limit_usd numeric,
  p_scope text default 'tenant',
  p_subject text default '',
  p_period text default 'day',
  p_shards integer default 1
)
returns boolean
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_now timestamptz := routeledger.clock();
  v_old routeledger.budgets;
  v_window record;
begin
  if coalesce(p_tenant_id, '') = '' then perform routeledger._raise_fault('RL101 tenant_id');
  elsif length(p_tenant_id) > 200 then perform routeledger._raise_fault('RL108 tenant_id 200 characters');
  elsif p_tenant_id <> all (routeledger.bound_tenants()) then perform routeledger._raise_fault('RL110 tenant_id');
  elsif coalesce(p_name, '') = '' then perform routeledger._raise_fault('RL101 name');
  elsif length(p_name) > 100 then perform routeledger._raise_fault('RL108 name 100 characters');
  elsif p_limit_usd is null then perform routeledger._raise_fault('RL101 limit_usd');
  elsif p_limit_usd not between 0 and 1000000000 then perform routeledger._raise_fault('RL103 limit_usd 0 to 1e9');
  elsif p_scope is null or p_scope not in ('tenant', 'agent', 'key') then perform routeledger._raise_fault('RL102 scope tenant, agent, key');
  elsif p_scope = 'tenant' and p_subject <> '' then perform routeledger._raise_fault('RL103 subject empty for the scope tenant');
  elsif p_scope <> 'tenant' and coalesce(p_subject, '') = '' then perform routeledger._raise_fault('RL101 subject an id, or * for each its own');
  elsif length(p_subject) > 200 then perform routeledger._raise_fault('RL108 subject 200 characters');
  elsif p_period is null or p_period not in ('hour', 'day', 'month', 'total') then perform routeledger._raise_fault('RL102 period hour, day, month, total');
  elsif p_shards is null or p_shards not between 1 and 128 then perform routeledger._raise_fault('RL103 shards 1 to 128');
  end if;

  insert into routeledger.budgets (tenant_id, name, scope, subject, period, limit_usd, shards, created_at)
  values (p_tenant_id, p_name, p_scope, coalesce(p_subject, ''), p_period, p_limit_usd, p_shards, v_now)
  on conflict (tenant_id, name) do nothing;
  if found then
    update routeledger.settings set budgets_defined = true where not budgets_defined;
    return true;
  end if;

  select b.* into strict v_old from routeledger.budgets b where b.tenant_id = p_tenant_id and b.name = p_name for update;
  update routeledger.budgets b set scope = p_scope, subject = coalesce(p_subject, ''), period = p_period, limit_usd = p_limit_usd, shards = p_shards
  where b.tenant_id = p_tenant_id and b.name = p_name;
  if (v_old.scope, v_old.subject, v_old.period) <> (p_scope, coalesce(p_subject, ''), p_period) then
    delete from routeledger.budget_holds h where h.tenant_id = p_tenant_id and h.name = p_name;
    delete from routeledger.budget_counters c where c.tenant_id = p_tenant_id and c.name = p_name;
    return false;
  end if;
  for v_window in
    select distinct c.subject, c.window_start
    from routeledger.budget_counters c
    where c.tenant_id = p_tenant_id and c.name = p_name and c.window_start >= routeledger._budget_window(p_period, v_now)
    order by 1, 2
  loop
    perform
    from routeledger.budget_counters c
    where c.tenant_id = p_tenant_id and c.name = p_name and c.subject = v_window.subject and c.window_start = v_window.window_start
    order by c.shard
    for update;
    insert into routeledger.budget_counters (tenant_id, name, subject, window_start, shard, allowance_usd)
    select p_tenant_id, p_name, v_window.subject, v_window.window_start, s, 0 from generate_series(0, p_shards - 1) s
    on conflict (tenant_id, name, subject, window_start, shard) do nothing;
    update routeledger.budget_counters c set allowance_usd = c.allowance_usd + p_limit_usd - v_old.limit_usd
    where c.tenant_id = p_tenant_id and c.name = p_name and c.subject = v_window.subject and c.window_start = v_window.window_start and c.shard = 0;
    perform routeledger._level_budget(p_tenant_id, p_name, v_window.subject, v_window.window_start);
  end loop;
  return false;
end
$$;

-- Drops a budget with all that was counted in it; decisions in flight that it reserved for go on.
-- Locks: the budget, then its counters, then the settings row. Errors: RL101, RL110, RL210.
create or replace function routeledger.drop_budget(
  p_tenant_id text,
  p_name text
)
returns void
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  if coalesce(p_tenant_id, '') = '' then
    perform routeledger._raise_fault('RL101 tenant_id');
  elsif coalesce(p_name, '') = '' then
    perform routeledger._raise_fault('RL101 name');
  elsif p_tenant_id <> all (routeledger.bound_tenants()) then
    perform routeledger._raise_fault('RL110 tenant_id');
  end if;
  delete from routeledger.budgets b where b.tenant_id = p_tenant_id and b.name = p_name;
  if not found then
    perform routeledger._raise('RL210', jsonb_build_object('tenant_id', p_tenant_id, 'budget', p_name));
  end if;
  delete from routeledger.budget_holds h where h.tenant_id = p_tenant_id and h.name = p_name;
  delete from routeledger.budget_counters c where c.tenant_id = p_tenant_id and c.name = p_name;
  update routeledger.settings set budgets_defined = exists (select from routeledger.budgets) where budgets_defined;
end
$$;

-- Forgets what no longer counts: windows of budgets that began longer ago than settings.budget_retention, with what
-- reapers released of them, and cooldowns that nobody has written to for a day after they were over.
-- Locks: the rows that go (skip locked). Errors: none.
create or replace function routeledger._forget_policy(
  p_settings routeledger.settings,
  p_now timestamptz
)
returns void
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_old record;
begin
  delete from routeledger.budget_holds h
  where h.released and h.window_start > '-infinity' and h.window_start < p_now - p_settings.budget_retention;
  for v_old in
    select c.tenant_id, c.name, c.subject, c.window_start, c.shard
    from routeledger.budget_counters c
    where c.window_start > '-infinity' and c.window_start < p_now - p_settings.budget_retention
      and not exists (
        select from routeledger.budget_holds h
        where h.tenant_id = c.tenant_id and h.name = c.name and h.subject = c.subject and h.window_start = c.window_start)
    for update of c skip locked
  loop
    delete from routeledger.budget_counters c
    where c.tenant_id = v_old.tenant_id and c.name = v_old.name and c.subject = v_old.subject and c.window_start = v_old.window_start
      and c.shard = v_old.shard;
  end loop;
  for v_old in
    select c.tenant_id, c.model_slug, c.provider
    from routeledger.cooldowns c
    where greatest(c.until_at, c.probe_until, c.last_failed_at) < p_now - interval '1 day'
    for update of c skip locked
  loop
    delete from routeledger.cooldowns c
    where c.tenant_id = v_old.tenant_id and c.model_slug = v_old.model_slug and c.provider = v_old.provider;
  end loop;
end
$$;

create or replace view routeledger.budget_status
with (security_barrier = true)
as
select
  b.tenant_id,
  b.name,
  b.scope,
  coalesce(c.subject, b.subject) as subject,
  b.period,
  nullif(w.window_start, '-infinity') as window_start,
  case when b.period <> 'total' then ((w.window_start at time zone 'UTC') + ('1 ' || b.period)::interval) at time zone 'UTC' end as resets_at,
  b.limit_usd,
  coalesce(c.reserved_usd, 0) as reserved_usd,
  coalesce(c.spent_usd, 0) as spent_usd,
  b.limit_usd - coalesce(c.reserved_usd + c.spent_usd, 0) as remaining_usd
from routeledger.budgets b
cross join lateral (
  select case b.period when 'total' then timestamptz '-infinity' else date_trunc(b.period, routeledger.clock(), 'UTC') end as window_start
) w
left join lateral (
  select k.subject, sum(k.reserved_usd) as reserved_usd, sum(k.spent_usd) as spent_usd
  from routeledger.budget_counters k
  where k.tenant_id = b.tenant_id and k.name = b.name and k.window_start = w.window_start
  group by k.subject
) c on true
where (select routeledger.bound_tenants()) is null or b.tenant_id = any ((select routeledger.bound_tenants())::text[]);
