"""Every statement that the driver sends: one constant a routine, in named notation with casts.

Set-based forms take one JSON array and answer one row per input row: ``ord, status, code, message,
detail, hint`` and then the columns of the single form, except ``created``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import LiteralString

VERSION: Final[LiteralString] = """
select routeledger.version() as version, routeledger.clock() as server_time
"""

# -- single forms ---------------------------------------------------------------------------------

INSERT_DECISION: Final[LiteralString] = """
select id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, created
from routeledger.insert_decision(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_agent_id => %(agent_id)s::text,
  p_task_type => %(task_type)s::text,
  p_candidates => %(candidates)s::jsonb,
  p_chosen_model_slug => %(chosen_model_slug)s::text,
  p_decision_rule => %(decision_rule)s::text,
  p_min_quality => %(min_quality)s::double precision,
  p_budget_cap_usd => %(budget_cap_usd)s::numeric,
  p_policy_version => %(policy_version)s::text,
  p_traffic_class => %(traffic_class)s::text,
  p_event_at => %(event_at)s::timestamp with time zone,
  p_lease => %(lease)s::interval,
  p_attempt_id => %(attempt_id)s::uuid,
  p_metadata => %(metadata)s::jsonb,
  p_budget_key => %(budget_key)s::text,
  p_deadline => %(deadline)s::interval,
  p_ruleset_hash => %(ruleset_hash)s::text,
  p_propensity => %(propensity)s::double precision)
"""

START_ATTEMPT: Final[LiteralString] = """
select id, attempt_id, attempt_no, model_slug, provider, created
from routeledger.start_attempt(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_model_slug => %(model_slug)s::text,
  p_attempt_id => %(attempt_id)s::uuid,
  p_provider => %(provider)s::text)
"""

FAIL_ATTEMPT: Final[LiteralString] = """
select id, attempt_id, action, next_attempt_id, next_attempt_no, next_model_slug, next_provider,
  delay_ms, outcome_status, created, available_at
from routeledger.fail_attempt(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_attempt_id => %(attempt_id)s::uuid,
  p_error_type => %(error_type)s::text,
  p_error_message => %(error_message)s::text,
  p_http_status => %(http_status)s::integer,
  p_retry_after_ms => %(retry_after_ms)s::bigint,
  p_next => %(next)s::text,
  p_next_attempt_id => %(next_attempt_id)s::uuid,
  p_input_tokens => %(input_tokens)s::bigint,
  p_output_tokens => %(output_tokens)s::bigint,
  p_cost_usd => %(cost_usd)s::numeric,
  p_latency_ms => %(latency_ms)s::double precision,
  p_ttft_ms => %(ttft_ms)s::double precision,
  p_provider_response_id => %(provider_response_id)s::text)
"""

COMPLETE_DECISION: Final[LiteralString] = """
select id, inference_id, attempt_no, outcome_status, cost_usd, cost_source, late, created
from routeledger.complete_decision(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_outcome_status => %(outcome_status)s::text,
  p_attempt_id => %(attempt_id)s::uuid,
  p_input_tokens => %(input_tokens)s::bigint,
  p_output_tokens => %(output_tokens)s::bigint,
  p_cache_read_input_tokens => %(cache_read_input_tokens)s::bigint,
  p_cache_creation_input_tokens => %(cache_creation_input_tokens)s::bigint,
  p_reasoning_output_tokens => %(reasoning_output_tokens)s::bigint,
  p_cost_usd => %(cost_usd)s::numeric,
  p_latency_ms => %(latency_ms)s::double precision,
  p_ttft_ms => %(ttft_ms)s::double precision,
  p_http_status => %(http_status)s::integer,
  p_error_type => %(error_type)s::text,
  p_error_message => %(error_message)s::text,
  p_provider_response_id => %(provider_response_id)s::text,
  p_response_model => %(response_model)s::text,
  p_finish_reasons => %(finish_reasons)s::text[],
  p_decision_rule_override => %(decision_rule_override)s::text)
"""

EXTEND_LEASE: Final[LiteralString] = """
select id, lease_expires_at
from routeledger.extend_lease(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_lease => %(lease)s::interval)
"""

RECORD_OUTCOME: Final[LiteralString] = """
select id, inference_id, attempts, outcome_status, cost_usd, created
from routeledger.record_outcome(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_agent_id => %(agent_id)s::text,
  p_task_type => %(task_type)s::text,
  p_candidates => %(candidates)s::jsonb,
  p_chosen_model_slug => %(chosen_model_slug)s::text,
  p_decision_rule => %(decision_rule)s::text,
  p_min_quality => %(min_quality)s::double precision,
  p_budget_cap_usd => %(budget_cap_usd)s::numeric,
  p_policy_version => %(policy_version)s::text,
  p_traffic_class => %(traffic_class)s::text,
  p_event_at => %(event_at)s::timestamp with time zone,
  p_metadata => %(metadata)s::jsonb,
  p_attempts => %(attempts)s::jsonb,
  p_decision_rule_override => %(decision_rule_override)s::text)
"""

RECORD_PAYLOAD: Final[LiteralString] = """
select id, attempt_id, created
from routeledger.record_payload(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_attempt_id => %(attempt_id)s::uuid,
  p_request => %(request)s::jsonb,
  p_response => %(response)s::jsonb)
"""

REAP: Final[LiteralString] = """
select tenant_id, id, inference_id, attempt_no
from routeledger.reap(
  p_limit => %(limit)s::integer,
  p_tenant_id => %(tenant_id)s::text)
"""

MAINTAIN: Final[LiteralString] = """
select action, object
from routeledger.maintain(
  p_ahead => %(ahead)s::interval)
"""

CONFIGURE: Final[LiteralString] = """
select routeledger.configure(
  p_settings => %(settings)s::jsonb) as settings
"""

# -- judging --------------------------------------------------------------------------------------

CLAIM_JUDGEMENTS: Final[LiteralString] = """
select tenant_id, id, lease_token, attempt_no, lease_expires_at, inference_id, agent_id, task_type,
  model_slug, provider, input_tokens, output_tokens, cost_usd, latency_ms, event_at, traffic_class,
  metadata, request, response
from routeledger.claim_judgements(
  p_tenant_id => %(tenant_id)s::text,
  p_judge => %(judge)s::text,
  p_judge_version => %(judge_version)s::text,
  p_limit => %(limit)s::integer,
  p_lease => %(lease)s::interval,
  p_from => %(from)s::date,
  p_payloads => %(payloads)s::boolean)
"""

RENEW_JUDGEMENT: Final[LiteralString] = """
select id, lease_expires_at
from routeledger.renew_judgement(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_judge => %(judge)s::text,
  p_judge_version => %(judge_version)s::text,
  p_lease_token => %(lease_token)s::uuid,
  p_lease => %(lease)s::interval)
"""

RELEASE_JUDGEMENT: Final[LiteralString] = """
select id, judge_status, available_at
from routeledger.release_judgement(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_judge => %(judge)s::text,
  p_judge_version => %(judge_version)s::text,
  p_lease_token => %(lease_token)s::uuid,
  p_error => %(error)s::text,
  p_delay => %(delay)s::interval)
"""

RECORD_VERDICT: Final[LiteralString] = """
select id, usable, reward, reward_source, judge_status, created
from routeledger.record_verdict(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_judge => %(judge)s::text,
  p_judge_version => %(judge_version)s::text,
  p_score => %(score)s::double precision,
  p_label => %(label)s::text,
  p_rationale => %(rationale)s::text,
  p_lease_token => %(lease_token)s::uuid,
  p_reward_source => %(reward_source)s::text,
  p_judge_model => %(judge_model)s::text,
  p_input_tokens => %(input_tokens)s::bigint,
  p_output_tokens => %(output_tokens)s::bigint,
  p_cost_usd => %(cost_usd)s::numeric)
"""

WITHDRAW_VERDICTS: Final[LiteralString] = """
select tenant_id, withdrawal_id, verdicts, unlabeled
from routeledger.withdraw_verdicts(
  p_tenant_id => %(tenant_id)s::text,
  p_judge => %(judge)s::text,
  p_judge_version => %(judge_version)s::text,
  p_reason => %(reason)s::text,
  p_model_slug => %(model_slug)s::text,
  p_from => %(from)s::date,
  p_to => %(to)s::date)
"""

REINSTATE_VERDICTS: Final[LiteralString] = """
select tenant_id, withdrawal_id, verdicts, unlabeled
from routeledger.reinstate_verdicts(
  p_tenant_id => %(tenant_id)s::text,
  p_withdrawal_id => %(withdrawal_id)s::uuid)
"""

EXPORT_CORPUS: Final[LiteralString] = """
select tenant_id, id, agent_id, task_type, traffic_class, decision_rule, policy_version,
  ruleset_hash, min_quality, propensity, candidates, metadata, event_at, completed_at, attempts,
  inference_id, attempt_no, model_slug, provider, response_model, input_tokens, output_tokens,
  cache_read_input_tokens, cache_creation_input_tokens, reasoning_output_tokens, cost_usd,
  cost_source, cost_flag, latency_ms, ttft_ms, reward, reward_source, verdict_n, verdicts, request,
  response
from routeledger.export_corpus(
  p_tenant_id => %(tenant_id)s::text,
  p_from => %(from)s::date,
  p_to => %(to)s::date,
  p_traffic_class => %(traffic_class)s::text[],
  p_mix_synthetic => %(mix_synthetic)s::boolean,
  p_reward_source => %(reward_source)s::text[],
  p_task_type => %(task_type)s::text,
  p_payloads => %(payloads)s::boolean,
  p_after => %(after)s::uuid,
  p_limit => %(limit)s::integer)
"""

CORPUS_MANIFEST: Final[LiteralString] = """
select tenant_id, from_day, to_day, traffic_class, mix_synthetic, reward_source, task_type, outcomes,
  first_id, last_id, verdicts, mean_reward, cost_usd, input_tokens, output_tokens, models, task_types,
  traffic_classes, reward_sources, judges, left_out
from routeledger.corpus_manifest(
  p_tenant_id => %(tenant_id)s::text,
  p_from => %(from)s::date,
  p_to => %(to)s::date,
  p_traffic_class => %(traffic_class)s::text[],
  p_mix_synthetic => %(mix_synthetic)s::boolean,
  p_reward_source => %(reward_source)s::text[],
  p_task_type => %(task_type)s::text)
"""

# -- routing --------------------------------------------------------------------------------------

RANK_CANDIDATES: Final[LiteralString] = """
select rank, model_slug, provider, drop_reason, quality, quality_source, samples,
  projected_cost_usd, cost_per_success_usd, expected_latency_ms, ranking_score, ruleset_hash
from routeledger.rank_candidates(
  p_tenant_id => %(tenant_id)s::text,
  p_task_type => %(task_type)s::text,
  p_policy => %(policy)s::text,
  p_candidates => %(candidates)s::text[],
  p_overrides => %(overrides)s::jsonb,
  p_input_tokens => %(input_tokens)s::bigint,
  p_output_tokens => %(output_tokens)s::bigint,
  p_at => %(at)s::timestamp with time zone)
"""

ROUTE: Final[LiteralString] = """
select id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, fallbacks,
  delay_ms, available_at, projected_cost_usd, policy_version, ruleset_hash, propensity, created
from routeledger.route(
  p_tenant_id => %(tenant_id)s::text,
  p_id => %(id)s::uuid,
  p_agent_id => %(agent_id)s::text,
  p_task_type => %(task_type)s::text,
  p_policy => %(policy)s::text,
  p_candidates => %(candidates)s::text[],
  p_overrides => %(overrides)s::jsonb,
  p_input_tokens => %(input_tokens)s::bigint,
  p_output_tokens => %(output_tokens)s::bigint,
  p_pinned_model => %(pinned_model)s::text,
  p_budget_key => %(budget_key)s::text,
  p_deadline => %(deadline)s::interval,
  p_traffic_class => %(traffic_class)s::text,
  p_event_at => %(event_at)s::timestamp with time zone,
  p_lease => %(lease)s::interval,
  p_attempt_id => %(attempt_id)s::uuid,
  p_metadata => %(metadata)s::jsonb,
  p_seed => %(seed)s::bigint)
"""

ESTIMATE_POLICY: Final[LiteralString] = """
select estimator, measure, value, standard_error, low, high, decisions, n, answered, matched,
  effective_n, mean_weight, largest_weight, no_candidates, no_propensity, no_chance, unmeasured,
  ruleset_hash
from routeledger.estimate_policy(
  p_tenant_id => %(tenant_id)s::text,
  p_policy => %(policy)s::text,
  p_overrides => %(overrides)s::jsonb,
  p_from => %(from)s::date,
  p_to => %(to)s::date,
  p_limit => %(limit)s::integer,
  p_all_models => %(all_models)s::boolean,
  p_confidence => %(confidence)s::double precision,
  p_max_weight => %(max_weight)s::double precision)
"""

SET_POLICY: Final[LiteralString] = """
select name, version, ruleset_hash, created
from routeledger.set_policy(
  p_name => %(name)s::text,
  p_policy => %(policy)s::jsonb)
"""

SET_RETRY_POLICY: Final[LiteralString] = """
select tenant_id, model_slug, error_class, changed
from routeledger.set_retry_policy(
  p_tenant_id => %(tenant_id)s::text,
  p_model_slug => %(model_slug)s::text,
  p_policy => %(policy)s::jsonb)
"""

SET_BUDGET: Final[LiteralString] = """
select routeledger.set_budget(
  p_tenant_id => %(tenant_id)s::text,
  p_name => %(name)s::text,
  p_limit_usd => %(limit_usd)s::numeric,
  p_scope => %(scope)s::text,
  p_subject => %(subject)s::text,
  p_period => %(period)s::text,
  p_shards => %(shards)s::integer) as created
"""

DROP_BUDGET: Final[LiteralString] = """
select routeledger.drop_budget(
  p_tenant_id => %(tenant_id)s::text,
  p_name => %(name)s::text) as dropped
"""

# -- upserts into any table -----------------------------------------------------------------------

UPSERT: Final[LiteralString] = """
select received, collapsed, inserted, updated, unchanged, refused, refusals
from routeledger.upsert(
  p_target => %(target)s::regclass,
  p_rows => %(rows)s::jsonb,
  p_key => %(key)s::text[],
  p_precedence => %(precedence)s::text,
  p_on_tie => %(on_tie)s::text,
  p_columns => %(columns)s::text[],
  p_batch_id => %(batch_id)s::text,
  p_strict => %(strict)s::boolean)
"""

UPSERT_FROM: Final[LiteralString] = """
select received, collapsed, inserted, updated, unchanged, refused, refusals
from routeledger.upsert_from(
  p_target => %(target)s::regclass,
  p_source => %(source)s::regclass,
  p_key => %(key)s::text[],
  p_precedence => %(precedence)s::text,
  p_on_tie => %(on_tie)s::text,
  p_columns => %(columns)s::text[],
  p_batch_id => %(batch_id)s::text,
  p_strict => %(strict)s::boolean)
"""

PLAN_UPSERT: Final[LiteralString] = """
select target, unique_index, key, columns, statement
from routeledger.plan_upsert(
  p_target => %(target)s::regclass,
  p_columns => %(columns)s::text[],
  p_key => %(key)s::text[],
  p_precedence => %(precedence)s::text,
  p_on_tie => %(on_tie)s::text)
"""

UPSERT_TARGET: Final[LiteralString] = """
select n.nspname, c.relname
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = %(target)s::regclass
"""

# Of each column: its name, its type beneath any domains, and the function that reads its binary form.
UPSERT_COLUMNS: Final[LiteralString] = """
select a.attname, t.oid, p.prosrc
from pg_catalog.pg_attribute a
cross join lateral (
  with recursive types (type) as (
    select a.atttypid
    union all
    select d.typbasetype from types s join pg_catalog.pg_type d on d.oid = s.type where d.typtype = 'd'
  )
  select s.type from types s
) s
join pg_catalog.pg_type t on t.oid = s.type and t.typtype <> 'd'
left join pg_catalog.pg_proc p on p.oid = t.typreceive
where a.attrelid = %(target)s::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

# The place where a chunk waits to be merged: a table with exactly the types of the target's columns.
UPSERT_STAGE: Final[LiteralString] = """
create temporary table _routeledger_rows on commit drop as select {columns} from {target} with no data
"""
UPSERT_SOURCE: Final[LiteralString] = "pg_temp._routeledger_rows"
UPSERT_COPY: Final[LiteralString] = "copy pg_temp._routeledger_rows from stdin (format binary)"
UPSERT_UNSTAGE: Final[LiteralString] = "drop table pg_temp._routeledger_rows"

# -- constraints ----------------------------------------------------------------------------------

ENSURE_CHECK: Final[LiteralString] = """
select outcome, validated, violations, definition, found, reason, next, detail
from routeledger.ensure_check(
  p_table => %(table)s::regclass,
  p_name => %(name)s::text,
  p_predicate => %(predicate)s::text,
  p_if_violated => %(if_violated)s::text,
  p_no_inherit => %(no_inherit)s::boolean,
  p_also_drop => %(also_drop)s::text[],
  p_label => %(label)s::text,
  p_lock_timeout => %(lock_timeout)s::interval,
  p_attempts => %(attempts)s::integer,
  p_strict => %(strict)s::boolean,
  p_dry_run => %(dry_run)s::boolean)
"""

ENSURE_NOT_NULL: Final[LiteralString] = """
select outcome, validated, violations, definition, found, reason, next, detail
from routeledger.ensure_not_null(
  p_table => %(table)s::regclass,
  p_column => %(column)s::text,
  p_name => %(name)s::text,
  p_if_violated => %(if_violated)s::text,
  p_label => %(label)s::text,
  p_lock_timeout => %(lock_timeout)s::interval,
  p_attempts => %(attempts)s::integer,
  p_strict => %(strict)s::boolean,
  p_dry_run => %(dry_run)s::boolean)
"""

ENSURE_UNIQUE: Final[LiteralString] = """
select outcome, validated, violations, definition, found, reason, next, detail
from routeledger.ensure_unique(
  p_table => %(table)s::regclass,
  p_name => %(name)s::text,
  p_columns => %(columns)s::text[],
  p_keep => %(keep)s::text,
  p_nulls => %(nulls)s::text,
  p_where => %(where)s::text,
  p_form => %(form)s::text,
  p_children => %(children)s::text,
  p_triggers => %(triggers)s::text,
  p_reason => %(reason)s::text,
  p_label => %(label)s::text,
  p_lock_timeout => %(lock_timeout)s::interval,
  p_attempts => %(attempts)s::integer,
  p_strict => %(strict)s::boolean,
  p_dry_run => %(dry_run)s::boolean)
"""

UNIQUE_STEP: Final[LiteralString] = """
select action, command, outcome, validated, violations, definition, found, reason, next, detail,
  state
from routeledger.unique_step(
  p_table => %(table)s::regclass,
  p_name => %(name)s::text,
  p_columns => %(columns)s::text[],
  p_keep => %(keep)s::text,
  p_nulls => %(nulls)s::text,
  p_where => %(where)s::text,
  p_form => %(form)s::text,
  p_children => %(children)s::text,
  p_triggers => %(triggers)s::text,
  p_reason => %(reason)s::text,
  p_label => %(label)s::text,
  p_lock_timeout => %(lock_timeout)s::interval,
  p_attempts => %(attempts)s::integer,
  p_strict => %(strict)s::boolean,
  p_state => %(state)s::jsonb)
"""

# Gives back what unique_step() holds for the session, where no last step did.
UNIQUE_UNLOCK: Final[LiteralString] = """
select pg_catalog.pg_advisory_unlock(
  routeledger._online_key(%(table)s::regclass, %(name)s::text)) as unlocked
"""

# Of the session: an index of a large table takes longer than any statement of an application.
TIMEOUTS: Final[LiteralString] = """
select pg_catalog.current_setting('statement_timeout') as statement_timeout,
  pg_catalog.current_setting('lock_timeout') as lock_timeout
"""
SET_TIMEOUTS: Final[LiteralString] = """
select pg_catalog.set_config('statement_timeout', %(statement_timeout)s::text, false),
  pg_catalog.set_config('lock_timeout', %(lock_timeout)s::text, false)
"""

SET_LOCK_TIMEOUT: Final[LiteralString] = """
select pg_catalog.set_config(
  'lock_timeout',
  pg_catalog.ceil(extract(epoch from %(lock_timeout)s::interval) * 1000)::bigint::text,
  false)
"""

UNDO_CONSTRAINT: Final[LiteralString] = """
select outcome, validated, violations, definition, found, reason, next, detail
from routeledger.undo_constraint(
  p_table => %(table)s::regclass,
  p_name => %(name)s::text,
  p_label => %(label)s::text,
  p_rows => %(rows)s::text,
  p_lock_timeout => %(lock_timeout)s::interval,
  p_attempts => %(attempts)s::integer,
  p_strict => %(strict)s::boolean)
"""

DECLARE_CONSTRAINT: Final[LiteralString] = """
select routeledger.declare_constraint(
  p_table => %(table)s::text,
  p_name => %(name)s::text,
  p_kind => %(kind)s::text,
  p_predicate => %(predicate)s::text,
  p_columns => %(columns)s::text[],
  p_options => %(options)s::jsonb) as changed
"""

UNDECLARE_CONSTRAINT: Final[LiteralString] = """
select routeledger.undeclare_constraint(
  p_table => %(table)s::text,
  p_name => %(name)s::text) as changed
"""

CONSTRAINT_STATES: Final[LiteralString] = """
select target, name, kind, state, declared, found, detail, origin
from routeledger.constraint_states(
  p_table => %(table)s::text,
  p_name => %(name)s::text)
"""

PLAN_CONSTRAINTS: Final[LiteralString] = """
select target, name, kind, outcome, validated, violations, definition, found, reason, next, detail
from routeledger.plan_constraints(
  p_table => %(table)s::text,
  p_name => %(name)s::text)
"""

APPLY_CONSTRAINTS: Final[LiteralString] = """
call routeledger.apply_constraints(
  p_table => %(table)s::text,
  p_name => %(name)s::text,
  p_only_validate => %(only_validate)s::boolean,
  p_results => %(results)s::jsonb)
"""

# The same table, however the two write its name.
SAME_TABLE: Final[LiteralString] = """
select coalesce(
  pg_catalog.to_regclass(%(one)s::text) operator(pg_catalog.=) pg_catalog.to_regclass(%(other)s::text),
  false) as same
"""

# -- repairs --------------------------------------------------------------------------------------

REPAIR_ORPHANS: Final[LiteralString] = """
select action, outcome, inference, reason, repair_id
from routeledger.repair_orphans(
  p_window => %(window)s::interval,
  p_dry_run => %(dry_run)s::boolean,
  p_stuck_after => %(stuck_after)s::interval,
  p_tenant_id => %(tenant_id)s::text,
  p_reason => %(reason)s::text)
"""

REPAIR_ORPHANS_IN: Final[LiteralString] = """
select action, outcome, inference, reason, repair_id
from routeledger.repair_orphans_in(
  p_outcomes => %(outcomes)s::regclass,
  p_inferences => %(inferences)s::regclass,
  p_columns => %(columns)s::jsonb,
  p_window => %(window)s::interval,
  p_dry_run => %(dry_run)s::boolean,
  p_stuck_after => %(stuck_after)s::interval,
  p_reason => %(reason)s::text)
"""

UNDO_REPAIR: Final[LiteralString] = """
select repair_id, restored, removed, changed, conflicts
from routeledger.undo_repair(
  p_id => %(id)s::bigint,
  p_force => %(force)s::boolean,
  p_reason => %(reason)s::text,
  p_dry_run => %(dry_run)s::boolean)
"""

SHOW_REPAIR: Final[LiteralString] = """
select target, row_no, what, row_text
from routeledger.show_repair(
  p_id => %(id)s::bigint,
  p_limit => %(limit)s::integer)
"""

REPAIR_HISTORY: Final[LiteralString] = """
select id, kind, target, reason, role_name, login, state, started_at, finished_at, before_count,
  after_count, removed, changed, added, undoes, undone_by, images_dropped_at, images_kept_until
from routeledger.repair_history
where %(table)s::text is null
  or pg_catalog.to_regclass(target) operator(pg_catalog.=) pg_catalog.to_regclass(%(table)s::text)
order by id desc
limit %(limit)s::bigint
"""

# -- set-based forms ------------------------------------------------------------------------------

INSERT_DECISIONS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status
from routeledger.insert_decisions(
  p_rows => %(rows)s::jsonb)
"""

ROUTES: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, attempt_id, attempt_no, model_slug, provider, decision_rule, outcome_status, fallbacks,
  delay_ms, available_at, projected_cost_usd, policy_version, ruleset_hash, propensity
from routeledger.routes(
  p_rows => %(rows)s::jsonb)
"""

START_ATTEMPTS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, attempt_id, attempt_no, model_slug, provider
from routeledger.start_attempts(
  p_rows => %(rows)s::jsonb)
"""

FAIL_ATTEMPTS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, attempt_id, action, next_attempt_id, next_attempt_no, next_model_slug, next_provider,
  delay_ms, outcome_status, available_at
from routeledger.fail_attempts(
  p_rows => %(rows)s::jsonb)
"""

COMPLETE_DECISIONS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, inference_id, attempt_no, outcome_status, cost_usd, cost_source, late
from routeledger.complete_decisions(
  p_rows => %(rows)s::jsonb)
"""

EXTEND_LEASES: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, lease_expires_at
from routeledger.extend_leases(
  p_rows => %(rows)s::jsonb)
"""

RECORD_OUTCOMES: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, inference_id, attempts, outcome_status, cost_usd
from routeledger.record_outcomes(
  p_rows => %(rows)s::jsonb)
"""

RECORD_PAYLOADS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, attempt_id
from routeledger.record_payloads(
  p_rows => %(rows)s::jsonb)
"""

RENEW_JUDGEMENTS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, lease_expires_at
from routeledger.renew_judgements(
  p_rows => %(rows)s::jsonb)
"""

RELEASE_JUDGEMENTS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, judge_status, available_at
from routeledger.release_judgements(
  p_rows => %(rows)s::jsonb)
"""

RECORD_VERDICTS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  id, usable, reward, reward_source, judge_status
from routeledger.record_verdicts(
  p_rows => %(rows)s::jsonb)
"""

IMPORT_MODELS: Final[LiteralString] = """
select ord, status, code, message, detail, hint,
  model_slug, valid_from, flag
from routeledger.import_models(
  p_rows => %(rows)s::jsonb)
"""

# -- readers of the views -------------------------------------------------------------------------

VERDICTS: Final[LiteralString] = """
select tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, task_type, score,
  usable, label, rationale, reward_source, attempt_no, judge_model, input_tokens, output_tokens,
  cost_usd, recorded_at, withdrawal_id, withdrawn_at, counts
from routeledger.verdicts
where (%(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text)
  and (%(id)s::uuid is null or outcome_id = %(id)s::uuid)
  and (%(judge)s::text is null or judge = %(judge)s::text)
  and (%(judge_version)s::text is null or judge_version = %(judge_version)s::text)
order by outcome_id desc, judge, judge_version
limit %(limit)s::bigint
"""

JUDGE_FINDINGS: Final[LiteralString] = """
select tenant_id, kind, judge, judge_version, model_slug, n, since, last_at, detail
from routeledger.judge_findings
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
order by tenant_id, judge, judge_version, model_slug, kind
limit %(limit)s::bigint
"""

JUDGE_AGREEMENT: Final[LiteralString] = """
select tenant_id, judge_a, version_a, judge_b, version_b, n, equal_scores, mean_a, mean_b,
  agreement, kappa, label_n, label_agreement, label_kappa
from routeledger.judge_agreement
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
order by tenant_id, judge_a, version_a, judge_b, version_b
limit %(limit)s::bigint
"""

JUDGE_DRIFT: Final[LiteralString] = """
select tenant_id, judge, judge_version, day, n, unusable_n, mean_score, sd, before_n, before_mean,
  change, z
from routeledger.judge_drift
where (%(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text)
  and (%(since)s::date is null or day >= %(since)s::date)
order by tenant_id, judge, judge_version, day
limit %(limit)s::bigint
"""

JUDGE_QUEUE: Final[LiteralString] = """
select tenant_id, judge, judge_version, ready, unlabeled, delayed, claimed, expired, oldest_at,
  searched_at
from routeledger.judge_queue
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
order by tenant_id, judge, judge_version
limit %(limit)s::bigint
"""

# What withdraw_verdicts() would take.
COUNT_VERDICTS: Final[LiteralString] = """
select tenant_id, count(*) as verdicts
from routeledger.verdicts
where judge = %(judge)s::text and judge_version = %(judge_version)s::text and withdrawn_at is null
  and (%(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text)
  and (%(model_slug)s::text is null or model_slug = %(model_slug)s::text)
  and (%(from)s::date is null
    or routeledger.uuid_v7_time(outcome_id) >= %(from)s::date::timestamp at time zone 'UTC')
  and (%(to)s::date is null
    or routeledger.uuid_v7_time(outcome_id) < %(to)s::date::timestamp at time zone 'UTC')
group by tenant_id
order by tenant_id
"""

# The catalogue's price of a model that is known to its endpoint by a name without the provider.
PRICE_OF: Final[LiteralString] = """
select input_usd_per_mtok, output_usd_per_mtok
from routeledger.current_prices
where (model_slug = %(model)s::text or model_slug like '%%/' || %(model)s::text)
  and flag is null and input_usd_per_mtok is not null and output_usd_per_mtok is not null
order by model_slug <> %(model)s::text, model_slug
limit 1
"""

VERDICT_WITHDRAWALS: Final[LiteralString] = """
select tenant_id, withdrawal_id, judge, judge_version, model_slug, from_day, to_day, reason,
  verdicts, unlabeled, withdrawn_by, withdrawn_at, reinstated_by, reinstated_at
from routeledger.verdict_withdrawals
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
order by withdrawn_at desc, tenant_id
limit %(limit)s::bigint
"""

DECISIONS: Final[LiteralString] = """
select tenant_id, id, agent_id, task_type, model_slug, provider, decision_rule,
  decision_rule_override, outcome_status, attempts, failovers, cost_usd, input_tokens,
  output_tokens, latency_ms, created_at, event_at, completed_at, late_completion, traffic_class
from routeledger.decisions
where (%(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text)
  and (%(id)s::uuid is null or id = %(id)s::uuid)
order by id desc
limit %(limit)s::bigint
"""

IN_FLIGHT: Final[LiteralString] = """
select tenant_id, id, agent_id, task_type, attempt_id, attempt_no, model_slug, created_at,
  lease_expires_at, expired, age
from routeledger.in_flight
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
order by lease_expires_at
limit %(limit)s::bigint
"""

ORPHANS: Final[LiteralString] = """
select tenant_id, outcome_id, inference_id, reason, created_at
from routeledger.orphans
where %(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text
limit %(limit)s::bigint
"""

RECONCILIATION: Final[LiteralString] = """
select hour, tenant_id, decided, succeeded, failed, rejected, abandoned, in_flight, attempts,
  open_attempts, cost_usd, agrees
from routeledger.reconciliation
where (%(tenant_id)s::text is null or tenant_id = %(tenant_id)s::text)
  and (%(since)s::timestamp with time zone is null or hour >= %(since)s::timestamp with time zone)
order by hour, tenant_id
limit %(limit)s::bigint
"""
