-- 980 · Grants: nobody but the owner touches a table; every routine and view is granted by name.

do $grants$
declare
  v_role text;
  v_routine record;
  v_grant record;
begin
  execute 'revoke all on schema routeledger from public';
  execute 'revoke all on all tables in schema routeledger from public';
  execute 'revoke all on all routines in schema routeledger from public';

  foreach v_role in array array['routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin'] loop
    continue when to_regrole(v_role) is null;
    execute format('grant usage on schema routeledger to %I', v_role);
    execute format('revoke all on all tables in schema routeledger from %I', v_role);
    execute format('revoke all on all routines in schema routeledger from %I', v_role);
  end loop;

  for v_grant in
    select g.names, g.roles
    from (values
      (array['version', 'errors', 'clock', 'uuid_v7', 'uuid_v7_time', 'bound_tenants', 'score_pattern'],
        array['reader', 'writer', 'judge', 'admin']),
      (array['insert_decision', 'insert_decisions', 'start_attempt', 'start_attempts', 'fail_attempt', 'fail_attempts',
             'complete_decision', 'complete_decisions', 'extend_lease', 'extend_leases', 'record_outcome', 'record_outcomes',
             'record_payload', 'record_payloads', 'reap', 'persist_model_performance', 'rollup_model_performance',
             'persist_pattern_quality', 'score_patterns', 'route', 'routes'],
        array['writer', 'admin']),
      (array['model_performance_between', 'rank_candidates', 'replay_policy', 'estimate_policy'],
        array['reader', 'writer', 'admin']),
      -- upsert() and what it calls run as their caller
      (array['upsert', 'upsert_from', 'plan_upsert',
             '_bad_rows', '_digest_rows', '_is_about_a_row', '_kept_out', '_rows_at', '_run_one_by_one', '_run_upsert', '_upsert',
             '_claim_batch', '_count_upsert', '_plan_upsert', '_settle_batch', '_upsert_shape'],
        array['writer', 'judge', 'admin']),
      -- and so do the constraints and the repairs: first what it takes to look, then what it takes to act
      (array['constraint_states',
             '_base_type', '_btree_operator', '_canonical_check', '_check_table', '_code_of_others', '_column_list', '_column_named', '_columns_sql',
             '_constraint_states', '_declarations_meant', '_expression_fault', '_foreign_code', '_functions_in', '_holders', '_image_sql', '_index_columns',
             '_index_definition', '_index_identity', '_index_parts', '_is_one_expression', '_is_uncommitted', '_leaf_index_name', '_live_constraint',
             '_live_not_null', '_make_probe', '_may_alter', '_owners_of', '_path_of', '_probe_unique', '_qualified', '_raise_locked', '_read_precedence',
             '_read_unique', '_same_functions', '_same_indexes', '_state_of_check', '_state_of_not_null', '_suffixed', '_table_meant', '_term_sql', '_total_wait',
             '_tree', '_unique_declared', '_unique_obstacle', '_unique_plan',
             '_check_names', '_declarations', '_raise', '_raise_fault', '_recorded'],
        array['reader', 'writer', 'judge', 'admin']),
      (array['ensure_check', 'ensure_not_null', 'ensure_unique', 'unique_step', 'collapse_duplicates', 'declare_constraint', 'undeclare_constraint',
             'plan_constraints', 'apply_constraints', 'undo_constraint', 'undo_repair', 'show_repair', 'repair_orphans_in',
             '_add_check_sql', '_apply_step', '_begin_apply', '_caller_role', '_check_types', '_children_in_the_way', '_close_collapse', '_collapse_and_build',
             '_collapse_rows', '_constraint_fault', '_count_references', '_declaration_fault', '_declare_constraint', '_describe_index', '_differences',
             '_ensure_declared', '_fence_sql', '_fill', '_find_duplicates', '_fired_by', '_hidden_rows', '_image_columns', '_image_fault', '_image_of_constraint',
             '_image_of_index', '_index_state', '_index_statements', '_is_admin', '_is_empty', '_key_of', '_listed', '_live_index', '_locate', '_lock_fault',
             '_net_image', '_not_null_name', '_not_null_statements', '_online_key', '_options_fault', '_orphan_columns', '_path_with_temp', '_plan_constraints',
             '_rank_duplicates', '_rank_leaf', '_record_unchanged', '_references_to', '_referencing', '_repair_orphans', '_repoint', '_restore_check',
             '_restore_index', '_root_of', '_rows_of', '_run_locked', '_same_key', '_serialize', '_settle_unique', '_survey_unique', '_suspended_checks',
             '_swap_statements', '_table_named', '_take_step', '_triggers_of', '_undo', '_undo_constraint', '_undo_repair', '_unique_fault', '_unique_refusal',
             '_violations', '_written_columns',
             '_changes_to_undo', '_close_repair', '_image_of', '_mark_changes_undone', '_mark_undone', '_note_duplicates', '_note_index', '_open_collapse',
             '_open_repair', '_read_repair', '_record_change', '_renote_index', '_share_images', '_store_declaration', '_take_duplicates', '_undo_in_ledger'],
        array['writer', 'judge', 'admin']),
      (array['export_corpus', 'corpus_manifest'],
        array['reader', 'judge', 'admin']),
      (array['claim_judgements', 'renew_judgement', 'renew_judgements', 'release_judgement', 'release_judgements'],
        array['judge', 'admin']),
      (array['record_verdict', 'record_verdicts'],
        array['writer', 'judge', 'admin']),
      (array['repair_orphans', 'maintain', 'configure', 'import_models', 'set_clock', 'grant_tenant', 'revoke_tenant', 'unbind_role', 'set_pattern_rules',
             'set_policy', 'set_retry_policy', 'set_budget', 'drop_budget', 'withdraw_verdicts', 'reinstate_verdicts'],
        array['admin'])
    ) g (names, roles)
  loop
    for v_routine in
      select p.oid::regprocedure as signature
      from pg_proc p
      where p.pronamespace = 'routeledger'::regnamespace and p.proname = any (v_grant.names)
      order by 1
    loop
      foreach v_role in array v_grant.roles loop
        continue when to_regrole('routeledger_' || v_role) is null;
        execute format('grant execute on routine %s to %I', v_routine.signature, 'routeledger_' || v_role);
      end loop;
    end loop;
  end loop;

  for v_grant in
    select g.names, g.roles
    from (values
      (array['decisions', 'attempts', 'in_flight', 'orphans', 'reconciliation', 'implausible_costs', 'flagged_prices', 'upsert_activity', 'model_performance',
             'pattern_quality', 'current_pattern_rules', 'current_policies', 'model_cooldowns', 'budget_status'],
        array['reader', 'admin']),
      (array['current_prices', 'verdict_withdrawals', 'verdicts', 'judge_findings', 'judge_agreement', 'judge_drift', 'judge_queue'],
        array['reader', 'judge', 'admin']),
      (array['constraint_history', 'constraint_drift', 'repair_history'],
        array['reader', 'writer', 'judge', 'admin'])
    ) g (names, roles)
  loop
    foreach v_role in array v_grant.roles loop
      continue when to_regrole('routeledger_' || v_role) is null;
      execute format(
        'grant select on %s to %I',
        (select string_agg(format('routeledger.%I', n), ', ') from unnest(v_grant.names) n), 'routeledger_' || v_role);
    end loop;
  end loop;
end
$grants$;
