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
             'persist_pattern_quality', 'score_patterns'],
        array['writer', 'admin']),
      (array['model_performance_between'],
        array['reader', 'writer', 'admin']),
      -- upsert() and what it calls run as their caller
      (array['upsert', 'upsert_from', 'plan_upsert', '_upsert', '_run_upsert', '_run_one_by_one', '_bad_rows', '_kept_out', '_upsert_shape', '_check_names', '_rows_at', '_is_about_a_row',
             '_digest_rows', '_claim_batch', '_settle_batch', '_count_upsert', '_plan_upsert', '_raise', '_raise_fault'],
        array['writer', 'judge', 'admin']),
      -- and so do the constraints and repairs
      (array['ensure_check', 'ensure_not_null', 'ensure_unique', 'unique_step', 'collapse_duplicates', 'declare_constraint', 'undeclare_constraint', 'plan_constraints', 'apply_constraints',
             'constraint_states', 'undo_constraint', 'undo_repair', 'show_repair', 'repair_orphans_in'],
        array['writer', 'judge', 'admin']),
      (array['_caller_role', '_qualified', '_image_columns', '_column_list', '_may_repair', '_open_repair', '_image_of', '_note_index', '_close_repair', '_mark_undone', '_read_repair', '_share_images',
             '_tree', '_may_alter', '_serialize', '_path_of', '_lock_fault', '_run_locked', '_holders', '_record_change', '_expression_fault', '_is_one_expression', '_make_probe', '_functions_in', '_canonical_check',
             '_live_constraint', '_image_of_constraint', '_violations', '_is_empty', '_check_table', '_constraint_fault', '_recorded', '_record_unchanged', '_same_functions', '_add_check_sql', '_children_in_the_way',
             '_swap_statements', '_root_of', '_owners_of', '_live_not_null', '_not_null_name', '_not_null_statements', '_restore_check',
             '_table_meant', '_declarations', '_store_declaration', '_options_fault', '_declare_constraint', '_declarations_meant', '_state_of_check', '_state_of_not_null', '_constraint_states',
             '_ensure_declared', '_plan_constraints',
             '_path_with_temp', '_rows_of', '_written_columns', '_listed', '_key_of', '_same_key', '_net_image', '_locate', '_differences', '_references_to', '_triggers_of', '_index_state', '_index_statements',
             '_undo', '_undo_in_ledger', '_undo_repair', '_orphan_columns', '_check_times', '_repair_orphans', '_changes_to_undo', '_mark_changes_undone', '_live_index', '_restore_index', '_undo_constraint'],
        array['writer', 'judge', 'admin']),
      (array['constraint_states'],
        array['reader']),
      (array['repair_orphans', 'maintain', 'configure', 'import_models', 'set_clock', 'grant_tenant', 'revoke_tenant', 'unbind_role', 'set_pattern_rules'],
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
      (array['decisions', 'attempts', 'in_flight', 'orphans', 'reconciliation', 'implausible_costs', 'current_prices', 'flagged_prices', 'upsert_activity', 'model_performance',
             'pattern_quality', 'current_pattern_rules', 'constraint_history', 'constraint_drift', 'repair_history'],
        array['reader', 'admin'])
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
