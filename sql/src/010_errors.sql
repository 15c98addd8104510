-- 010 · Errors: one table that feeds SQL, the driver's exception classes and the docs.
--
-- SQLSTATE class RL: RL1xx bad argument, RL2xx not found, RL3xx conflict, RL4xx lease lost,
-- RL5xx limit, RL9xx install and version. What is worth trying again keeps its standard code
-- (40001, 40P01, 55P03): no RL error is cured by repeating the same call.

-- The table of errors. Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._errors()
returns table (
  code text,
  name text,
  message text,
  hint text,
  retryable boolean
)
language sql
immutable
parallel safe
security invoker
as $$
  values
    ('RL101', 'missing_argument', 'a required argument is missing',
      'Pass a value for the parameter named in DETAIL.', false),
    ('RL102', 'not_in_vocabulary', 'an argument is not one of the words allowed for it',
      'Use one of the words that the routine''s comment lists for the parameter named in DETAIL.', false),
    ('RL103', 'out_of_range', 'a number is outside the range allowed for it',
      'Pass a finite number within the range that DETAIL gives for that parameter.', false),
    ('RL104', 'not_uuid_v7', 'an id is not a UUID version 7',
      'Make ids with routeledger.uuid_v7(), with the driver, or leave the id out and keep the one returned.', false),
    ('RL105', 'id_outside_window', 'an id is dated outside the window that this ledger accepts',
      'Check the clock of the machine that made the id; to import older decisions raise id_window_past with routeledger.configure().', false),
    ('RL106', 'malformed_candidates', 'the candidates are not a ranked array of models',
      'Pass a JSON array whose elements are objects with a non-empty "model_slug", best first.', false),
    ('RL107', 'malformed_row', 'a row does not have the shape of this routine''s parameters',
      'Pass a JSON object whose keys are the parameter names without p_, and values of their types.', false),
    ('RL108', 'text_too_long', 'a text or document is longer than the ledger keeps',
      'Shorten the value of the parameter named in DETAIL; large documents belong in record_payload().', false),
    ('RL109', 'time_out_of_range', 'a time is not finite or not plausible',
      'Pass a time between now minus event_at_max_age and now plus id_window_future (see routeledger.settings).', false),
    ('RL110', 'tenant_not_granted', 'this role is bound to other tenants',
      'Use a role that routeledger.grant_tenant() has bound to this tenant.', false),
    ('RL111', 'malformed_attempts', 'the attempts are not a list of finished attempts',
      'Pass a JSON array of objects with "model_slug" and "status" (succeeded or failed), oldest first; only the last may have succeeded.', false),
    ('RL112', 'unsuitable_target', 'this relation cannot be upserted as asked',
      'Pass an ordinary or partitioned table, and a source whose columns have the types of the target''s; DETAIL says what is in the way.', false),
    ('RL113', 'no_such_column', 'a column does not exist in the target or cannot be written',
      'Name columns of the target that are not generated; DETAIL says which one is in the way.', false),
    ('RL114', 'unsuitable_precedence', 'the precedence cannot be read or does not suit its columns',
      'Write terms such as ''greatest n'', ''latest updated_at'', ''first seen_at'', or ''sum hits, cost'' over columns that are written; DETAIL says which term is in the way.', false),
    ('RL115', 'no_key', 'a row has no key: a key column is null, or the row is outside the unique index',
      'Give every key column a value that the unique index named in DETAIL covers.', false),
    ('RL116', 'unsuitable_predicate', 'this cannot be the predicate of a constraint',
      'Write one boolean expression over the columns of the table that means the same in every session; DETAIL says what is in the way.', false),
    ('RL117', 'unsuitable_table', 'constraints of this relation cannot be declared here',
      'Pass an ordinary or partitioned table, or for what is inherited the table that DETAIL names.', false),
    ('RL118', 'unsuitable_columns', 'these columns cannot be a unique key',
      'Name columns or expressions whose types have an order, each once; DETAIL says what is in the way.', false),
    ('RL201', 'decision_not_found', 'there is no such decision',
      'Check tenant_id and id, and that insert_decision was committed before this call.', false),
    ('RL202', 'attempt_not_found', 'this decision has no such attempt',
      'Pass the attempt_id that insert_decision, start_attempt or fail_attempt returned for this decision.', false),
    ('RL203', 'role_not_found', 'there is no such role',
      'Create the role first, then bind it.', false),
    ('RL204', 'no_unique_index', 'no unique index of the target fits this key',
      'Name the columns of a unique index in key, or make one.', false),
    ('RL205', 'rule_set_not_found', 'there is no such rule set or version',
      'Use one of those that DETAIL lists, or make a rule set with set_pattern_rules().', false),
    ('RL206', 'repair_not_found', 'there is no such repair',
      'Read routeledger.repair_history, or run `routeledger repair list`.', false),
    ('RL207', 'declaration_not_found', 'no constraint of that name is declared for that table',
      'Read routeledger.constraint_states(), or declare it with declare_constraint().', false),
    ('RL208', 'change_not_found', 'no change of that constraint is on record that could be undone',
      'Read routeledger.constraint_history; a change is undone once, the last one first.', false),
    ('RL209', 'policy_not_found', 'there is no such policy',
      'Use one of those that DETAIL lists, or make one with set_policy().', false),
    ('RL210', 'budget_not_found', 'there is no such budget',
      'Read routeledger.budget_status, or make one with set_budget().', false),
    ('RL211', 'withdrawal_not_found', 'there is no such withdrawal of verdicts',
      'Read routeledger.verdict_withdrawals; withdraw_verdicts() returned its id.', false),
    ('RL212', 'empty_corpus', 'no labelled outcome passes these filters',
      'DETAIL counts what each filter left out: label outcomes first, or widen the window, the traffic classes or the sources.', false),
    ('RL301', 'id_reused', 'this id already holds a different payload',
      'Repeat the first call exactly, or use a new id for a new decision or attempt.', false),
    ('RL302', 'already_completed', 'this decision already has a different outcome',
      'Read it in routeledger.decisions; an outcome is final and is never overwritten.', false),
    ('RL303', 'attempt_open', 'an attempt of this decision is still open',
      'Finish the open attempt with fail_attempt or complete_decision before you start another.', false),
    ('RL304', 'attempt_closed', 'this attempt is not open',
      'Pass the id of the open attempt (see routeledger.in_flight); a closed attempt does not change.', false),
    ('RL305', 'decision_closed', 'this decision is already closed',
      'Start a new decision; a closed one takes no further attempts.', false),
    ('RL306', 'already_dispatched', 'decision_rule_override is only for a failure before any dispatch',
      'Leave decision_rule_override out: an attempt of this decision has been made and will be linked.', false),
    ('RL307', 'row_refused', 'the table refused this row',
      'DETAIL holds what the table said: mend the row, or the constraint, policy or trigger that refused it.', false),
    ('RL308', 'batch_reused', 'this batch id was applied with other rows',
      'Repeat the batch exactly, or give new rows a new batch id.', false),
    ('RL309', 'constraint_refused', 'the constraint was not put in place',
      'DETAIL says what is in the way and how much of it; leave p_strict out to get the same as a row.', false),
    ('RL310', 'changed_since', 'rows have changed since the repair',
      'Look at the rows in DETAIL; an admin may pass force => true, which overwrites them and keeps their images too.', false),
    ('RL311', 'images_dropped', 'the images of this repair are past their retention',
      'Restore from a backup; settings.repair_retention says how long images are kept.', false),
    ('RL312', 'already_undone', 'this repair has been undone already',
      'Undo the repair that DETAIL names to have it back.', false),
    ('RL313', 'counts_disagree', 'a repair does not add up and was rolled back',
      'Nothing was changed. A trigger or a rule of the table has probably changed other rows: DETAIL has the counts.', false),
    ('RL314', 'verdict_differs', 'this judge version has given another verdict on this outcome',
      'A verdict is never overwritten: judge again under a new judge_version, or withdraw the old one with withdraw_verdicts().', false),
    ('RL315', 'not_judgeable', 'only an outcome that succeeded and is linked can be judged',
      'Leave this outcome out: DETAIL has its outcome_status.', false),
    ('RL401', 'lease_lost', 'the lease ran out and the reaper closed this decision',
      'Stop the work, or finish it: a completion is still accepted once and marked as late.', false),
    ('RL402', 'claim_lost', 'another judge, or nobody, holds this claim now',
      'Drop this piece of work: the claim ran out and was given away, was released, or has been answered. Claim again.', false),
    ('RL501', 'batch_too_large', 'too many rows in one call',
      'Send at most as many rows a call as DETAIL says.', false),
    ('RL502', 'too_many_candidates', 'too many candidates in one decision',
      'Pass at most 500 candidates.', false),
    ('RL503', 'too_many_attempts', 'this decision has used up its attempts',
      'Give up with complete_decision(failed), or raise retry_max_attempts with routeledger.configure().', false),
    ('RL504', 'budget_exhausted', 'a budget does not cover this decision',
      'Wait until resets_at in DETAIL, choose a cheaper model, or raise the limit with set_budget().', false),
    ('RL901', 'schema_not_ours', 'a schema named routeledger exists and is not ours',
      'Rename or drop that schema, install as its owner, or install into another database.', false),
    ('RL902', 'other_version_installed', 'another version of routeledger is installed',
      'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.', false),
    ('RL903', 'server_too_old', 'routeledger needs PostgreSQL 15 or later',
      'Install into a server of major 15, 16, 17 or 18.', false),
    ('RL904', 'schema_too_new', 'the installed schema is newer than this driver understands',
      'Upgrade the driver: pip install --upgrade routeledger.', false),
    ('RL905', 'not_installed', 'routeledger is not installed in this database',
      'Run `routeledger install` against this database.', false),
    ('RL906', 'no_upgrade_path', 'there is no way from the installed version to this one',
      'Install a driver release that ships the missing upgrade script, upgrade, then come back to this one.', false)
$$;

-- Returns every RL error that routeledger or its driver raises.
-- Locks: none. Errors: none.
create or replace function routeledger.errors()
returns table (
  code text,
  name text,
  message text,
  hint text,
  retryable boolean
)
language sql
immutable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select e.code, e.name, e.message, e.hint, e.retryable from routeledger._errors() e
$$;

-- Raises the RL error of that code with its constant message and p_detail as one-line JSON. The hint is the
-- constant one too, unless what to do next can be said exactly.
-- Locks: none. Errors: the one asked for.
create or replace function routeledger._raise(
  p_code text,
  p_detail jsonb,
  p_hint text default null
)
returns void
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_error record;
begin
  select e.message, e.hint into strict v_error from routeledger._errors() e where e.code = p_code;
  raise exception using
    errcode = p_code,
    message = v_error.message,
    detail = coalesce(p_detail, '{}')::text,
    hint = coalesce(p_hint, v_error.hint);
end
$$;

-- A fault is the short text that validation hands on: a code, a blank, the parameter, and optionally a
-- blank and a remark ("RL103 min_quality 0 to 1"). Returns the JSON detail that says the same.
-- Locks: none. Errors: none.
create or replace function routeledger._fault_detail(
  p_fault text
)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case when p_fault is not null then
    jsonb_strip_nulls(jsonb_build_object(
      'parameter', nullif(split_part(p_fault, ' ', 2), ''),
      case when p_fault like 'RL107 %' then 'reason' else 'allowed' end,
      nullif(substr(p_fault, length(split_part(p_fault, ' ', 1)) + length(split_part(p_fault, ' ', 2)) + 3), '')))
  end
$$;

-- Raises the error that a fault stands for.
-- Locks: none. Errors: the one asked for.
create or replace function routeledger._raise_fault(
  p_fault text
)
returns void
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  perform routeledger._raise(split_part(p_fault, ' ', 1), routeledger._fault_detail(p_fault));
end
$$;
