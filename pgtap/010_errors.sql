-- 010 · Errors: one table, and two helpers that raise from it.
begin;
\ir common.psql
select plan(21);

select has_function('routeledger', 'errors', array[]::text[], 'errors() exists');
select results_eq(
  $$ select pg_get_function_result('routeledger.errors()'::regprocedure) $$,
  $$ values ('TABLE(code text, name text, message text, hint text, retryable boolean)') $$,
  'errors() has the columns that the driver and the docs read');
select set_eq(
  $$ select e.code, e.name from routeledger.errors() e $$,
  $$
    values
      ('RL101', 'missing_argument'), ('RL102', 'not_in_vocabulary'), ('RL103', 'out_of_range'), ('RL104', 'not_uuid_v7'),
      ('RL105', 'id_outside_window'), ('RL106', 'malformed_candidates'), ('RL107', 'malformed_row'), ('RL108', 'text_too_long'),
      ('RL109', 'time_out_of_range'), ('RL110', 'tenant_not_granted'), ('RL111', 'malformed_attempts'),
      ('RL201', 'decision_not_found'), ('RL202', 'attempt_not_found'), ('RL203', 'role_not_found'),
      ('RL301', 'id_reused'), ('RL302', 'already_completed'), ('RL303', 'attempt_open'), ('RL304', 'attempt_closed'),
      ('RL112', 'unsuitable_target'), ('RL113', 'no_such_column'), ('RL114', 'unsuitable_precedence'), ('RL115', 'no_key'),
      ('RL204', 'no_unique_index'), ('RL205', 'rule_set_not_found'), ('RL307', 'row_refused'), ('RL308', 'batch_reused'),
      ('RL116', 'unsuitable_predicate'), ('RL117', 'unsuitable_table'), ('RL118', 'unsuitable_columns'),
      ('RL206', 'repair_not_found'), ('RL207', 'declaration_not_found'), ('RL208', 'change_not_found'), ('RL209', 'policy_not_found'), ('RL210', 'budget_not_found'),
      ('RL211', 'withdrawal_not_found'), ('RL212', 'empty_corpus'),
      ('RL309', 'constraint_refused'), ('RL310', 'changed_since'), ('RL311', 'images_dropped'), ('RL312', 'already_undone'),
      ('RL313', 'counts_disagree'), ('RL314', 'verdict_differs'), ('RL315', 'not_judgeable'),
      ('RL305', 'decision_closed'), ('RL306', 'already_dispatched'),
      ('RL401', 'lease_lost'), ('RL402', 'claim_lost'),
      ('RL501', 'batch_too_large'), ('RL502', 'too_many_candidates'), ('RL503', 'too_many_attempts'), ('RL504', 'budget_exhausted'),
      ('RL901', 'schema_not_ours'), ('RL902', 'other_version_installed'), ('RL903', 'server_too_old'),
      ('RL904', 'schema_too_new'), ('RL905', 'not_installed'), ('RL906', 'no_upgrade_path')
  $$,
  'the codes and names are those of the contract');
select is(
  (select array_agg(e.code) from routeledger.errors() e),
  (select array_agg(e.code order by e.code) from routeledger.errors() e), 'sorted by code');
select is_empty(
  $$ select e.code from routeledger.errors() e group by 1 having count(*) > 1 $$, 'a code stands for one error');
select is_empty(
  $$ select e.name from routeledger.errors() e group by 1 having count(*) > 1 $$, 'a name as well');
select is_empty(
  $$ select e.message from routeledger.errors() e group by 1 having count(*) > 1 $$, 'and a message');
select is_empty(
  $$ select e.code from routeledger.errors() e where e.code !~ '^RL[1-59][0-9][0-9]$' or e.code ~ '00$' $$,
  'every code is in a class that is documented, and none ends in 00');
select is_empty(
  $$ select e.code from routeledger.errors() e where e.name !~ '^[a-z][a-z0-9_]+$' or e.message !~ '^[a-z].*[^.]$' or e.message ~ '%' $$,
  'names are words, messages constant sentences without a stop');
select is_empty(
  $$ select e.code from routeledger.errors() e where e.hint !~ '^[A-Z`].{10,}\.$' $$, 'each hint says what to do next');
select is_empty(
  $$ select e.code from routeledger.errors() e where e.retryable $$,
  'no RL error is cured by repeating the call: those keep their standard codes');

-- _raise
select results_eq(
  $$
    select c.code, c.message, c.hint, c.detail
    from routeledger.errors() e
    cross join lateral pg_temp.caught(format($sql$ select routeledger._raise(%L, '{"a": [1, 2]}') $sql$, e.code)) c
  $$,
  $$ select e.code, e.message, e.hint, '{"a": [1, 2]}'::jsonb from routeledger.errors() e $$,
  'each error is raised with its own code, message and hint, and the detail given');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger._raise('RL201', null) $$) c), '{}'::jsonb, 'without detail: an empty object');
select throws_ok(
  $$ select routeledger._raise('RL999', '{}') $$, 'P0002', 'query returned no rows', 'a code that is not in the table cannot be raised');

-- faults
select is(routeledger._fault_detail(null), null::jsonb, 'no fault, no detail');
select is(routeledger._fault_detail('RL104'), '{}'::jsonb, 'a bare code');
select is(routeledger._fault_detail('RL104 id'), '{"parameter": "id"}'::jsonb, 'with the parameter');
select is(
  routeledger._fault_detail('RL103 min_quality 0 to 1'), '{"parameter": "min_quality", "allowed": "0 to 1"}'::jsonb,
  'with what is allowed');
select is(
  routeledger._fault_detail('RL107 row a JSON object'), '{"parameter": "row", "reason": "a JSON object"}'::jsonb,
  'a malformed row has a reason instead');
select throws_ok(
  $$ select routeledger._raise_fault('RL103 min_quality 0 to 1') $$, 'RL103', 'a number is outside the range allowed for it',
  'a fault is raised as its error');
select is(
  (select c.detail from pg_temp.caught($$ select routeledger._raise_fault('RL103 min_quality 0 to 1') $$) c),
  '{"parameter": "min_quality", "allowed": "0 to 1"}'::jsonb, 'with its detail');

select * from finish();
rollback;
