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
      (array['maintain', 'configure', 'import_models', 'set_clock', 'grant_tenant', 'revoke_tenant', 'unbind_role', 'set_pattern_rules'],
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
        execute format('grant execute on function %s to %I', v_routine.signature, 'routeledger_' || v_role);
      end loop;
    end loop;
  end loop;

  for v_grant in
    select g.names, g.roles
    from (values
      (array['decisions', 'attempts', 'in_flight', 'orphans', 'reconciliation', 'implausible_costs', 'current_prices', 'flagged_prices', 'upsert_activity', 'model_performance',
             'pattern_quality', 'current_pattern_rules'],
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
