-- 200 · The ledger: decisions, their attempts, and the link that cannot be forged.
--
-- A decision is a row of routing_outcomes, written before the provider is called; each call of a provider
-- is a row of inferences. Both are partitioned by range of the decision's UUID version 7, with equal
-- bounds, so that an id alone names its partition and the leaves of a time are dropped as one. Payloads and the verdicts of
-- judges are kept beside them, in the same way.
--
-- The link is a foreign key from each leaf of routing_outcomes to its twin of inferences:
-- (tenant_id, id, inference_id) references (tenant_id, outcome_id, id), so an outcome can link only an
-- attempt of its own. It stands on the leaves (see 210), because one on the root would plan a lookup
-- over every partition at each completion.
--
-- A CHECK cannot be deferred. Each rule below has an escape for the row that is in flight; once
-- outcome_status is set, the rule holds. They are few and short on purpose: PostgreSQL reads the CHECKs of
-- a table from their text again for each statement that writes to it, and twenty of them cost more than the
-- write. The closed vocabularies are domains, whose checks a session reads once.
--
-- Lock order of every transition: the outcome, then its inferences by attempt number, then what 150 keeps
-- (cooldowns, budget counters). Of several decisions: by (tenant_id, id), all of them before anything of 150.
--
-- Two columns say that closing a decision means more than closing it: holds_budget, that money is reserved for it, and
-- probe_attempt_id, which of its attempts probes a model that was cooling down; the plain paths pass those rows over.

do $types$
begin
  if to_regtype('routeledger.outcome_status') is null then
    create domain routeledger.outcome_status as text
      constraint outcome_status_vocabulary check (value in ('succeeded', 'failed', 'rejected', 'abandoned'));
    create domain routeledger.inference_status as text
      constraint inference_status_vocabulary check (value in ('routed', 'succeeded', 'failed'));
    create domain routeledger.judge_status as text
      constraint judge_status_vocabulary check (value in ('unlabeled', 'claimed', 'labeled', 'cannot_evaluate'));
    create domain routeledger.traffic_class as text
      constraint traffic_class_vocabulary check (value in ('production', 'shadow', 'synthetic', 'replay'));
  end if;
end
$types$;

create table if not exists routeledger.routing_outcomes (
  tenant_id text not null,
  id uuid not null,
  agent_id text,
  task_type text,
  decision_rule text not null,
  decision_rule_override text,
  chosen_model_slug text,
  candidates jsonb not null default '[]',
  min_quality double precision,
  budget_cap_usd numeric,
  policy_version text,
  traffic_class routeledger.traffic_class not null default 'production',
  metadata jsonb,
  lease interval,
  open_attempt_id uuid,
  attempt_count integer not null default 0,
  inference_id uuid,
  outcome_status routeledger.outcome_status,
  late_completion boolean not null default false,
  judge_status routeledger.judge_status not null default 'unlabeled',
  reward double precision,
  reward_source text,
  event_at timestamptz not null,
  created_at timestamptz not null,
  lease_expires_at timestamptz,
  abandoned_at timestamptz,
  completed_at timestamptz,
  budget_key text,
  deadline_at timestamptz,
  ruleset_hash text,
  propensity double precision,
  holds_budget boolean not null default false,
  probe_attempt_id uuid,
  constraint routing_outcomes_pkey primary key (tenant_id, id),
  constraint outcome_requires_inference_when_model_chosen check (
    outcome_status is null or chosen_model_slug is null or decision_rule_override is not null or inference_id is not null),
  constraint outcome_closed_has_completed_at check (
    (outcome_status is null) = (completed_at is null)),
  constraint outcome_in_flight_has_lease check (
    (outcome_status is null) = (lease_expires_at is not null)),
  constraint outcome_rejected_has_no_model check (
    outcome_status <> 'rejected' or chosen_model_slug is null)
) partition by range (id);

-- What the reaper looks for: the leases of decisions in flight, and nothing else.
create index if not exists routing_outcomes_lease_idx
on routeledger.routing_outcomes (lease_expires_at)
where outcome_status is null;

-- What judges look for: successes, linked, that nobody has claimed or labelled yet.
create index if not exists routing_outcomes_unlabeled_idx
on routeledger.routing_outcomes (tenant_id, id)
where judge_status = 'unlabeled' and reward_source is null and outcome_status = 'succeeded' and inference_id is not null;

create table if not exists routeledger.inferences (
  tenant_id text not null,
  outcome_id uuid not null,
  id uuid not null,
  attempt_no integer not null,
  candidate_no integer,
  model_slug text not null,
  provider text,
  status routeledger.inference_status not null default 'routed',
  input_tokens bigint,
  output_tokens bigint,
  cache_read_input_tokens bigint,
  cache_creation_input_tokens bigint,
  reasoning_output_tokens bigint,
  cost_usd numeric,
  cost_source text,
  cost_flag text,
  latency_ms double precision,
  ttft_ms double precision,
  http_status integer,
  error_type text,
  error_message text,
  retry_after_ms bigint,
  next_action text,
  next_delay_ms bigint,
  provider_response_id text,
  response_model text,
  finish_reasons text[],
  created_at timestamptz not null,
  started_at timestamptz not null,
  completed_at timestamptz,
  constraint inferences_pkey primary key (tenant_id, outcome_id, id),
  constraint inferences_attempt_no_key unique (tenant_id, outcome_id, attempt_no),
  constraint inference_closed_has_completed_at check (
    (status = 'routed') = (completed_at is null)),
  constraint inference_succeeded_requires_tokens check (
    status <> 'succeeded' or (input_tokens is not null and output_tokens is not null)),
  constraint inference_failed_requires_error check (
    status <> 'failed' or error_type is not null),
  constraint inference_numbers_not_negative check (
    least(input_tokens, output_tokens) >= 0 and cost_usd >= 0)
) partition by range (outcome_id);

create table if not exists routeledger.inference_payloads (
  tenant_id text not null,
  outcome_id uuid not null,
  inference_id uuid not null,
  request jsonb,
  response jsonb,
  created_at timestamptz not null,
  constraint inference_payloads_pkey primary key (tenant_id, outcome_id, inference_id)
) partition by range (outcome_id);

create table if not exists routeledger.judge_verdicts (
  tenant_id text not null,
  outcome_id uuid not null,
  judge text not null,
  judge_version text not null,
  inference_id uuid not null,
  model_slug text not null,
  task_type text,
  score double precision,
  usable boolean not null,
  label text,
  rationale text,
  reward_source text not null,
  attempt_no integer,
  judge_model text,
  input_tokens bigint,
  output_tokens bigint,
  cost_usd numeric,
  recorded_at timestamptz not null,
  withdrawal_id uuid,
  withdrawn_at timestamptz,
  constraint judge_verdicts_pkey primary key (tenant_id, outcome_id, judge, judge_version),
  constraint verdict_usable_has_score check (
    usable = (score is not null and score between 0 and 1)),
  constraint verdict_withdrawn_has_withdrawal check (
    (withdrawal_id is null) = (withdrawn_at is null))
) partition by range (outcome_id);
