-- 320 · Patterns: scores by v1 and v2, rule sets, and one current measurement of each pattern.
begin;
\ir common.psql
select plan(59);

-- shape
select has_table('routeledger', 'pattern_quality_metrics', 'measurements');
select col_is_pk('routeledger', 'pattern_quality_metrics', 'pattern_id', 'one of each pattern');
select is_empty(
  $$
    select v.spoilt, c.code
    from jsonb_array_elements('[
      {"quality_score": 1.01}, {"quality_score": "NaN"}, {"completeness": -0.1}, {"documentation": 2}, {"architecture_compliance": 2}, {"metadata_richness": 2},
      {"complexity_fit": 2}, {"confidence": "NaN"}, {"measurement_timestamp": "infinity"}, {"version": ""}, {"metadata": []}]') v (spoilt)
    cross join lateral pg_temp.caught(format(
      'insert into routeledger.pattern_quality_metrics select (jsonb_populate_record(null::routeledger.pattern_quality_metrics, %L)).*',
      '{"pattern_id": "00000000-0000-4000-8000-000000000320", "quality_score": 0.5, "measurement_timestamp": "epoch", "version": "x"}'::jsonb || v.spoilt)) c
    where c.code is distinct from '23514'
  $$,
  'no score, time, version or metadata that is none');
select results_eq(
  $$
    select f.version,
      array[f.completeness_weight, f.documentation_weight, f.architecture_compliance_weight, f.metadata_richness_weight, f.complexity_fit_weight]::text,
      array[f.excellent, f.good, f.fair]::text
    from routeledger.pattern_formulas f order by 1
  $$,
  $$ values ('v1', '{0.30,0.25,0.20,0.15,0.10}', '{0.9,0.7,0.5}'), ('v2', '{0.30,0.25,0.20,0.15,0.10}', '{0.9,0.7,0.5}') $$,
  'weights and thresholds, by version');
select throws_ok(
  $$ update routeledger.pattern_formulas set completeness_weight = 0.31 $$, '23514',
  'new row for relation "pattern_formulas" violates check constraint "pattern_formulas_weights_check"', 'the weights sum to 1');
select results_eq(
  $$ select r.rule_set, r.version, r.node_type, r.method from routeledger.current_pattern_rules r where r.rule_set = 'onex' order by r.node_type $$,
  $$
    values
      ('onex', 1, 'Compute', 'async def execute_compute'), ('onex', 1, 'Effect', 'async def execute_effect'),
      ('onex', 1, 'Orchestrator', 'async def execute_orchestration'), ('onex', 1, 'Reducer', 'async def execute_reduction')
  $$,
  'the default rule set');

-- v1: one dimension at a time
create function pg_temp.score(p_pattern jsonb, p_version text, p_rule_set text default 'onex') returns text
language sql stable
as $$
  select concat_ws(' ', s.completeness, s.documentation, s.architecture_compliance, s.metadata_richness, s.complexity_fit)
  from routeledger.score_pattern(p_pattern, p_version, p_rule_set) s
$$;
create function pg_temp.completeness(p_code text, p_version text) returns numeric
language sql stable
as $$ select s.completeness::numeric from routeledger.score_pattern(jsonb_build_object('code', p_code), p_version) s $$;
create function pg_temp.documentation(p_code text, p_version text) returns numeric
language sql stable
as $$ select s.documentation::numeric from routeledger.score_pattern(jsonb_build_object('code', p_code), p_version) s $$;
set local role routeledger_reader;
select is(pg_temp.score('{}', 'v1'), '0 0 0.3 0 0.4', 'v1: nothing is there');
select is(
  pg_temp.score('{"code": null, "text": null, "pattern_name": null, "node_type": null, "use_cases": null, "examples": null, "metadata": null, "complexity": null}', 'v1'),
  '0 0 0.3 0 0.4', 'null is as absent');
select is(
  pg_temp.score('{"code": "", "text": "", "pattern_name": "", "node_type": "", "use_cases": [], "examples": [], "metadata": {}, "complexity": ""}', 'v1'),
  '0 0 0.3 0 0.4', 'and so is empty');
select results_eq(
  $$
    select v.code, pg_temp.completeness(v.code, 'v1')
    from (values ('x'), ('TODO'), ('TODO TODO'), ('bypass'), ('...'), ('. . .'), ('abc'), ('NotImplemented'), ('raise NotImplementedError'),
      ('TODO if '), ('TODO if for'), ('TODO if for while '), ('TODO async def '), ('TODO subclass of'), ('TODO import x'), ('TODO if import '),
      ('pass TODO ... raise NotImplementedError')) v (code)
  $$,
  $$
    values
      ('x', 1::numeric), ('TODO', 0.81), ('TODO TODO', 0.81), ('bypass', 0.81), ('...', 0.81), ('. . .', 1), ('abc', 1), ('NotImplemented', 0.81),
      ('raise NotImplementedError', 0.61), ('TODO if ', 0.91), ('TODO if for', 0.91), ('TODO if for while ', 0.91), ('TODO async def ', 0.91),
      ('TODO subclass of', 0.91), ('TODO import x', 0.86), ('TODO if import ', 0.96), ('pass TODO ... raise NotImplementedError', 0.01)
  $$,
  'completeness: a marker counts once, as plain text; never under 0 or over 1');
select results_eq(
  $$ select pg_temp.completeness('TODO' || repeat(e, n), 'v1') from (values (E'\n', 0), (E'\n', 1), (E'\r\n', 4), (E'\r', 4), (E'\n', 14), (E'\n', 15), (E'\n', 99)) v (e, n) $$,
  $$ values (0.81::numeric), (0.82), (0.85), (0.81), (0.95), (0.95), (0.95) $$,
  'lines are what line feeds separate');
select results_eq(
  $$
    select v.code, pg_temp.documentation(v.code, 'v1')
    from (values ('"""'), (''''''''), (''''''), ('#'), (E'##\n#\r\n#\n'), (repeat(E'#\n', 9)), ('x:int'), (E'x: \t\r\n_'), ('f() ->  str'), ('x: =')) v (code)
  $$,
  $$
    values ('"""', 0.4), (E'\'\'\'', 0.4), (E'\'\'', 0), ('#', 0.05), (E'##\n#\r\n#\n', 0.15), (repeat(E'#\n', 9), 0.2), ('x:int', 0.2), (E'x: \t\r\n_', 0.2),
      ('f() ->  str', 0.2), ('x: =', 0)
  $$,
  'documentation: quotes, comments, hints');
select results_eq(
  $$ select s.documentation from generate_series(100, 101) n cross join lateral routeledger.score_pattern(jsonb_build_object('text', repeat('é', n)), 'v1') s $$,
  $$ values (0::double precision), (0.2) $$, 'and a text of more than 100 characters');
select results_eq(
  $$
    select s.architecture_compliance
    from jsonb_array_elements('[
      {"pattern_name": "MyEffective"}, {"pattern_name": "my_effect"}, {"node_type": "Gateway"}, {"node_type": "EFFECT", "pattern_name": "my_effect"},
      {"node_type": "effect", "code": "async def execute_effects"}, {"node_type": "Reducer", "pattern_name": "aReDuCeR", "code": "async def execute_reduction"},
      {"node_type": "Reducer", "code": "async def execute_reducer"}, {"node_type": "Compute", "code": "async def execute_compute"},
      {"node_type": "orchestrator", "code": "async def execute_orchestration"}]') with ordinality e (pattern, n)
    cross join lateral routeledger.score_pattern(e.pattern, 'v1') s order by e.n
  $$,
  $$ values (0.5::double precision), (0.3), (0.7), (0.85), (0.85), (1), (0.7), (0.85), (0.85) $$,
  'architecture: node type, name and method');
select results_eq(
  $$
    select s.metadata_richness::numeric
    from jsonb_array_elements('[
      {"use_cases": [null]}, {"use_cases": [1, 1, 1]}, {"use_cases": [1, 2, 3, 4]}, {"examples": [{}]}, {"examples": [1, 2, 3]},
      {"metadata": {"a": 1, "b": 1, "c": 1}}, {"metadata": {"a": null, "b": null, "c": null, "d": null}}]') with ordinality e (pattern, n)
    cross join lateral routeledger.score_pattern(e.pattern, 'v1') s order by e.n
  $$,
  $$ values (0.133333333333333), (0.4), (0.4), (0.15), (0.3), (0), (0.3) $$,
  'metadata: use cases, examples, fields');
select results_eq(
  $$
    select s.complexity_fit
    from (values ('if if ', 'low'), ('if for while ', 'Medium'), ('if for while ', 'low'), (repeat('except ', 7), 'MEDIUM'), (repeat('except ', 8), 'high'),
      (repeat('elif ', 8), 'high'), ('x', 'none'), ('x', ''), ('', 'low')) v (code, declared)
    cross join lateral routeledger.score_pattern(jsonb_build_object('code', v.code, 'complexity', v.declared), 'v1') s
  $$,
  $$ values (1::double precision), (1), (0.6), (1), (1), (1), (0.6), (0.4), (0.4) $$,
  'complexity: what is declared against what is counted');

-- v2: what v1 takes for something else
select is(pg_temp.score('{}', 'v2'), '0 0 0.3 0 0.4', 'v2: nothing is there');
select results_eq(
  $$
    select v.code, pg_temp.completeness(v.code, 'v2')
    from (values
      ('bypass(password)'), ('x = "pass"'), ('x = 1 # pass'), ('def f(): pass'), (E'try:\n  x()\nexcept E:\n  pass'), (E'class E(Exception):\n  pass'), (E'class E:\n  pass'),
      ('x: tuple[int, ...]'), ('x = f(...)'), ('def f(): ...'), (E'@overload\ndef f(): ...'), (E'@abstractmethod\ndef f(\n  a, b=g(1)\n) -> T:\n  """d"""\n  ...'),
      (E'class P(Protocol):\n  def f(): ...\n'), (E'class P(Protocol):\n  def f(): ...\ndef g(): ...'),
      ('return NotImplemented'), ('raise NotImplementedError("x")'), (E'@abstractmethod\ndef f(): raise NotImplementedError'),
      ('Status.TODO'), ('x = 1 # TODO: y'), ('x = 1 # FIXME'), ('# TODOS'), ('x # TODOS'),
      ('pass;while(x): y'), ('pass # if for '), ('pass;import os'), ('pass # import os'), (E'pass\n\n\n\n'), ('"""only"""')) v (code)
  $$,
  $$
    values
      ('bypass(password)', 1::numeric), ('x = "pass"', 1), ('x = 1 # pass', 1), ('def f(): pass', 0.81), (E'try:\n  x()\nexcept E:\n  pass', 1),
      (E'class E(Exception):\n  pass', 1), (E'class E:\n  pass', 0.92),
      ('x: tuple[int, ...]', 1), ('x = f(...)', 1), ('def f(): ...', 0.81), (E'@overload\ndef f(): ...', 1), (E'@abstractmethod\ndef f(\n  a, b=g(1)\n) -> T:\n  """d"""\n  ...', 1),
      (E'class P(Protocol):\n  def f(): ...\n', 1), (E'class P(Protocol):\n  def f(): ...\ndef g(): ...', 0.93),
      ('return NotImplemented', 1), ('raise NotImplementedError("x")', 0.61), (E'@abstractmethod\ndef f(): raise NotImplementedError', 1),
      ('Status.TODO', 1), ('x = 1 # TODO: y', 0.81), ('x = 1 # FIXME', 0.81), ('# TODOS', 0), ('x # TODOS', 1),
      ('pass;while(x): y', 0.91), ('pass # if for ', 0.81), ('pass;import os', 0.86), ('pass # import os', 0.81), (E'pass\n\n\n\n', 0.81), ('"""only"""', 0)
  $$,
  'completeness: statements, and the words of comments');
select results_eq(
  $$
    select v.code, pg_temp.documentation(v.code, 'v2')
    from (values
      ('x = """data"""'), (E'def f(a,\n  b):\n  r''Doc.'''), (E'"Doc."\n'), (E'def f():\n  x = "a"'), ('x = "#"'), (E'x # y\n#\n## z'), ('x = {a: b}'), ('y[1:n]'),
      ('lambda x: y'), ('if x: y'), ('else: y'), ('x: int = 1'), ('def f(a, *b: "T"): 1'), ('def f(a=(1, 2), b: int = 3): 1'), ('def f(a) -> T: 1')) v (code)
  $$,
  $$
    values ('x = """data"""', 0::numeric), (E'def f(a,\n  b):\n  r''Doc.''', 0.4), (E'"Doc."\n', 0.4), (E'def f():\n  x = "a"', 0), ('x = "#"', 0), (E'x # y\n#\n## z', 0.1),
      ('x = {a: b}', 0), ('y[1:n]', 0), ('lambda x: y', 0), ('if x: y', 0), ('else: y', 0), ('x: int = 1', 0.2), ('def f(a, *b: "T"): 1', 0.2),
      ('def f(a=(1, 2), b: int = 3): 1', 0.2), ('def f(a) -> T: 1', 0.2)
  $$,
  'documentation: docstrings, comments that say something, annotations');
select results_eq(
  $$ select s.documentation from unnest(array[repeat(' ', 200), repeat('a  ', 50), repeat('a  ', 51)]) t cross join lateral routeledger.score_pattern(jsonb_build_object('text', t)) s $$,
  $$ values (0::double precision), (0), (0.2) $$, 'and a text that is long without its white space');
select results_eq(
  $$
    select s.architecture_compliance
    from jsonb_array_elements('[
      {"pattern_name": "MyEffective"}, {"pattern_name": "my-effect 2"}, {"node_type": "Gateway", "pattern_name": "Gateway"}, {"node_type": "Gateway", "pattern_name": "XEffect"},
      {"node_type": "node_effect", "pattern_name": "HTTPEffectNode"}, {"node_type": "effect", "code": "async def execute_effects"},
      {"node_type": "effect", "code": "# async def execute_effect"}, {"node_type": "effect", "code": "async\tdef  execute_effect()", "pattern_name": "Effect"}]')
      with ordinality e (pattern, n)
    cross join lateral routeledger.score_pattern(e.pattern) s order by e.n
  $$,
  $$ values (0.3::double precision), (0.5), (0.3), (0.5), (0.85), (0.7), (0.7), (1) $$,
  'architecture: words of names, and a definition');
select results_eq(
  $$
    select s.metadata_richness::numeric
    from jsonb_array_elements('[
      {"use_cases": [null, "", " ", [], {}]}, {"use_cases": ["a", " a", "a\n"]}, {"use_cases": ["a", 1, true]}, {"examples": [{"a": 1}, {"a": 1}]},
      {"metadata": {"a": 1, "b": null, "c": "", "d": []}}, {"metadata": {"a": 1, "b": 1, "c": 1, "d": false}}]') with ordinality e (pattern, n)
    cross join lateral routeledger.score_pattern(e.pattern) s order by e.n
  $$,
  $$ values (0::numeric), (0.133333333333333), (0.4), (0.15), (0), (0.3) $$,
  'metadata: what says something');
select results_eq(
  $$
    select s.complexity_fit
    from (values (E'if(x):\nelif x:\nexcept: y', 'medium'), ('x = "if for while " # if', ' Low '), ('xif_ + motif', 'low'), ('x', 'none'), ('# only', 'low')) v (code, declared)
    cross join lateral routeledger.score_pattern(jsonb_build_object('code', v.code, 'complexity', v.declared)) s
  $$,
  $$ values (1::double precision), (1), (1), (0.4), (0.4) $$,
  'complexity: keywords, and a vocabulary');

-- the mean, and what it is called
select results_eq(
  $$
    select s.quality_score, s.rating, s.version
    from unnest(array['v1', 'v2']) v
    cross join lateral routeledger.score_pattern(jsonb_build_object(
      'pattern_name', 'DbEffect', 'node_type', 'Effect', 'text', repeat('t ', 60), 'use_cases', '["a", "b", "c"]'::jsonb, 'examples', '["a", "b"]'::jsonb,
      'metadata', '{"a": 1, "b": 1, "c": 1, "d": 1}'::jsonb, 'complexity', 'low',
      'code', E'"""Doc."""\nimport os\nasync def execute_effect(a: int):\n' || repeat(E'  # it is so\n', 4)), v) s
  $$,
  $$ values (1::double precision, 'excellent', 'v1/onex/1'), (1, 'excellent', 'v2/onex/1') $$, 'all of it is there');
select results_eq(
  $$
    select s.quality_score, s.rating
    from jsonb_array_elements('[
      {"code": "\"\"\"x: y", "text": "t", "node_type": "Effect", "pattern_name": "Effect", "use_cases": [1], "examples": [1, 2], "metadata": {"a": 1, "b": 1, "c": 1, "d": 1}, "complexity": "low"},
      {"code": "x", "node_type": "Effect", "pattern_name": "Effect"}]') with ordinality e (pattern, n)
    cross join lateral routeledger.score_pattern(e.pattern, 'v1') s order by e.n
  $$,
  $$ values (0.83::double precision, 'good'), (0.51, 'fair') $$, 'thirds leave no trace');
select is((select s.rating from routeledger.score_pattern('{"code": "x"}') s), 'poor', 'and poor');
select is((select s.version from routeledger.score_pattern('{}') s), 'v2/onex/1', 'v2 and onex are the default');

-- refusals of a score
select results_eq(
  $$
    select c.code, c.detail ->> 'parameter', c.message = e.message and c.hint = e.hint
    from unnest(array['null', '''null''', '''5''', '''[]''', '''{"code": 5}''', '''{"text": []}''', '''{"pattern_name": true}''', '''{"node_type": {}}''', '''{"complexity": 1}''',
      '''{"use_cases": "a"}''', '''{"examples": {}}''', '''{"metadata": []}''', '''{}'', ''v3''', '''{}'', null', '''{}'', ''v1'', ''none''', '''{}'', ''v1'', null']) with ordinality v (a, n)
    cross join lateral pg_temp.caught(format('select routeledger.score_pattern(%s)', v.a)) c
    left join routeledger.errors() e on e.code = c.code
    order by v.n
  $$,
  $$
    values ('RL101', 'pattern', true), ('RL107', 'pattern', true), ('RL107', 'pattern', true), ('RL107', 'pattern', true), ('RL107', 'code', true), ('RL107', 'text', true),
      ('RL107', 'pattern_name', true), ('RL107', 'node_type', true), ('RL107', 'complexity', true), ('RL107', 'use_cases', true), ('RL107', 'examples', true),
      ('RL107', 'metadata', true), ('RL205', 'version', true), ('RL101', 'version', true), ('RL205', 'rule_set', true), ('RL101', 'rule_set', true)
  $$,
  'each bad field is refused by name');
select is(
  (select c.detail -> 'allowed' from pg_temp.caught($$ select routeledger.score_pattern('{}', 'v3') $$) c), '["v1", "v2"]'::jsonb, 'DETAIL lists the versions');
select ok(
  (select c.detail -> 'allowed' ? 'onex' from pg_temp.caught($$ select routeledger.score_pattern('{}', 'v1', 'none') $$) c), 'and the rule sets');
select throws_ok(
  $$ select routeledger.score_pattern(jsonb_build_object('code', repeat('x', 17000000))) $$, 'RL108', 'a text or document is longer than the ledger keeps', 'a pattern has its limit');

-- rule sets
select throws_ok(
  $$ select routeledger.set_pattern_rules('tap320', '[]') $$, '42501', 'permission denied for function set_pattern_rules', 'a reader may not set rules');
set local role routeledger_admin;
select results_eq(
  $$ select * from routeledger.set_pattern_rules('tap320', '[{"node_type": "Service", "method": "def handle"}, {"node_type": "OrderService", "method": null}]') $$,
  $$ values ('tap320', 1, true) $$, 'a project puts its own rules in');
select results_eq(
  $$ select * from routeledger.set_pattern_rules('tap320', '[{"node_type": "OrderService"}, {"node_type": "Service", "method": "def handle"}]') $$,
  $$ values ('tap320', 1, false) $$, 'the same again, in any order, changes nothing');
select is(
  pg_temp.score('{"node_type": "service", "pattern_name": "BillingService", "code": "def handle(): 1"}', 'v2', 'tap320'), '1 0 1 0 0.4', 'patterns are scored by them');
select is(
  pg_temp.score('{"node_type": "order_service", "pattern_name": "BillingService", "code": "def handle(): 1"}', 'v2', 'tap320'), '1 0 0.7 0 0.4',
  'the most particular rule that fits decides');
select is(pg_temp.score('{"pattern_name": "BillingService"}', 'v1', 'tap320'), '0 0 0.5 0 0.4', 'by v1 too');
select is(
  (select s.version from routeledger.score_pattern('{}', 'v1', 'tap320') s), 'v1/tap320/1', 'the version says which');
select results_eq(
  $$ select * from routeledger.set_pattern_rules('tap320', '[{"node_type": "Service", "method": "def run"}]') $$,
  $$ values ('tap320', 2, true) $$, 'other rules have another number');
select results_eq(
  $$ select r.version, r.node_type, r.method from routeledger.current_pattern_rules r where r.rule_set = 'tap320' $$,
  $$ values (2, 'Service', 'def run') $$, 'and are in force');
reset role;
select results_eq(
  $$ select r.version, r.node_type from routeledger.pattern_rules r where r.rule_set = 'tap320' order by 1, 2 $$,
  $$ values (1, 'OrderService'), (1, 'Service'), (2, 'Service') $$, 'the old ones are kept');
set local role routeledger_admin;
select results_eq(
  $$
    select c.code, c.detail ->> 'parameter', c.detail ->> 'ord'
    from (values
      (1, 'null', '[]'), (2, '''a/b''', '[]'), (3, '''tap320''', null), (4, '''tap320''', '{}'), (5, '''tap320''', '[{"node_type": "A"}, 5]'),
      (6, '''tap320''', '[{"node_type": "A"}, {}]'), (7, '''tap320''', '[{"node_type": "a b"}]'), (8, '''tap320''', '[{"node_type": "A", "method": "x("}]'),
      (9, '''tap320''', '[{"node_type": "A"}, {"node_type": "B"}, {"node_type": "b"}]'),
      (10, '''tap320''', (select jsonb_agg(jsonb_build_object('node_type', 'A' || n))::text from generate_series(1, 1001) n))) v (n, name, rules)
    cross join lateral pg_temp.caught(format('select routeledger.set_pattern_rules(%s, %L)', v.name, v.rules)) c
    order by v.n
  $$,
  $$
    values ('RL101', 'rule_set', null), ('RL102', 'rule_set', null), ('RL101', 'rules', null), ('RL107', 'rules', null), ('RL107', 'row', '2'), ('RL101', 'node_type', '2'),
      ('RL107', 'node_type', '1'), ('RL107', 'method', '1'), ('RL107', 'node_type', '2'), ('RL501', null, null)
  $$,
  'a bad rule is refused, and its place said');
select is(
  (select s.version from routeledger.score_pattern('{}', 'v1', 'tap320') s), 'v1/tap320/2', 'and then nothing has changed');
select throws_ok(
  $$ select * from routeledger.pattern_rules $$, '42501', 'permission denied for table pattern_rules', 'no table, even to an admin');

-- measurements
set local role routeledger_writer;
create function pg_temp.row_of(p_name text, p_score double precision, p_after interval default '0') returns jsonb
language sql stable
as $$ select jsonb_build_object('pattern_id', pg_temp.id(p_name), 'quality_score', p_score, 'version', 'tap', 'measurement_timestamp', pg_temp.t0() + p_after) $$;
select is(
  (select r from routeledger.persist_pattern_quality(jsonb_build_array(
    pg_temp.row_of('a', 0.5), pg_temp.row_of('b', 0.6) || '{"completeness": 1, "confidence": 0.25, "metadata": {"by": "tap"}}', pg_temp.row_of('a', 0.4, '-1 minute'))) r)::text,
  '(3,1,2,0,0,0,[])', 'three measurements of two patterns: two rows');
select is(
  (select r from routeledger.persist_pattern_quality(jsonb_build_array(pg_temp.row_of('a', 0.9, '-1 hour'), pg_temp.row_of('b', 0.7, '1 second'))) r)::text,
  '(2,0,0,1,1,0,[])', 'one that arrives late changes nothing, a later one stands');
select is(
  (select r from routeledger.persist_pattern_quality(jsonb_build_array(pg_temp.row_of('a', 0.5), pg_temp.row_of('b', 0.7, '1 second'))) r)::text,
  '(2,0,0,0,2,0,[])', 'the same again is unchanged');
select is((select r from routeledger.persist_pattern_quality('[]') r)::text, '(0,0,0,0,0,0,[])', 'none');
set local role routeledger_reader;
select results_eq(
  $$
    select v.pattern_id, v.quality_score, v.rating, v.completeness, v.confidence, v.measurement_timestamp - pg_temp.t0(), v.version, v.metadata
    from routeledger.pattern_quality v where v.pattern_id in (pg_temp.id('a'), pg_temp.id('b')) order by v.quality_score
  $$,
  $$
    values
      (pg_temp.id('a'), 0.5::double precision, 'fair', null::double precision, null::double precision, '0'::interval, 'tap', null::jsonb),
      (pg_temp.id('b'), 0.7, 'good', null, null, '1 second', 'tap', null)
  $$,
  'the latest measurement stands as a whole');
select throws_ok(
  $$ select routeledger.persist_pattern_quality('[]') $$, '42501', 'permission denied for function persist_pattern_quality', 'a reader may not measure');
select throws_ok(
  $$ select * from routeledger.pattern_quality_metrics $$, '42501', 'permission denied for table pattern_quality_metrics', 'nor read the table');
set local role routeledger_writer;
create temp table answer as
select r.* from routeledger.persist_pattern_quality(pg_temp.each(pg_temp.row_of('c', 0.5), jsonb_build_array(
  '{}'::jsonb,
  '{"pattern_id": null}'::jsonb,
  '{"pattern_id": "c"}'::jsonb,
  '{"quality_score": null}'::jsonb,
  '{"quality_score": 1.0001}'::jsonb,
  '{"quality_score": "NaN"}'::jsonb,
  '{"completeness": -1}'::jsonb,
  '{"documentation": 2}'::jsonb,
  '{"architecture_compliance": 2}'::jsonb,
  '{"metadata_richness": 2}'::jsonb,
  '{"complexity_fit": 2}'::jsonb,
  '{"confidence": "Infinity"}'::jsonb,
  '{"measurement_timestamp": "infinity"}'::jsonb,
  jsonb_build_object('measurement_timestamp', pg_temp.t0() + interval '61 minutes'),
  '{"measurement_timestamp": "1969-12-31T23:00Z"}'::jsonb,
  '{"version": ""}'::jsonb,
  jsonb_build_object('version', repeat('x', 201)),
  '{"metadata": []}'::jsonb,
  jsonb_build_object('metadata', jsonb_build_object('x', repeat('x', 70000))),
  '{"rating": "good"}'::jsonb))) r;
select results_eq(
  $$
    select (r.value ->> 'ord')::integer, r.value ->> 'code', r.value -> 'detail' ->> 'parameter', r.value ->> 'message' = e.message and r.value ->> 'hint' = e.hint
    from answer a cross join jsonb_array_elements(a.refusals) with ordinality r (value, n)
    left join routeledger.errors() e on e.code = r.value ->> 'code'
    order by r.n
  $$,
  $$
    values
      (2, 'RL101', 'pattern_id', true), (3, 'RL107', 'row', true), (4, 'RL101', 'quality_score', true), (5, 'RL103', 'quality_score', true), (6, 'RL103', 'quality_score', true),
      (7, 'RL103', 'completeness', true), (8, 'RL103', 'documentation', true), (9, 'RL103', 'architecture_compliance', true), (10, 'RL103', 'metadata_richness', true),
      (11, 'RL103', 'complexity_fit', true), (12, 'RL103', 'confidence', true), (13, 'RL109', 'measurement_timestamp', true), (14, 'RL109', 'measurement_timestamp', true),
      (15, 'RL109', 'measurement_timestamp', true), (16, 'RL101', 'version', true), (17, 'RL108', 'version', true), (18, 'RL107', 'metadata', true),
      (19, 'RL108', 'metadata', true), (20, 'RL107', 'rating', true)
  $$,
  'each bad field is refused by name, in its place');
select results_eq(
  $$ select a.received, a.collapsed, a.inserted, a.updated, a.unchanged, a.refused from answer a $$, $$ values (20::bigint, 0::bigint, 1::bigint, 0::bigint, 0::bigint, 19::bigint) $$,
  'and the good row is written');

-- scored and kept
select is(
  (select r from routeledger.score_patterns(jsonb_build_array(
    jsonb_build_object('pattern_id', pg_temp.id('d'), 'pattern', '{"code": "# only"}'::jsonb, 'measurement_timestamp', pg_temp.t0(), 'confidence', 0.5, 'metadata', '{"n": 1}'::jsonb),
    jsonb_build_object('pattern_id', pg_temp.id('e'), 'pattern', '{}'::jsonb)), 'v1') r)::text,
  '(2,0,2,0,0,0,[])', 'patterns are scored and kept in one call');
select is(
  (select r from routeledger.score_patterns(jsonb_build_array(
    jsonb_build_object('pattern_id', pg_temp.id('d'), 'pattern', '{"code": "# only"}'::jsonb, 'measurement_timestamp', pg_temp.t0(), 'confidence', 0.5, 'metadata', '{"n": 1}'::jsonb),
    jsonb_build_object('pattern_id', pg_temp.id('f'), 'pattern', '{"code": "pass"}'::jsonb)), p_rule_set => 'tap320') r)::text,
  '(2,0,1,1,0,0,[])', 'by another version too, which of two at one time stands if it is the later one');
select is(
  (select r from routeledger.score_patterns(jsonb_build_array(
    jsonb_build_object('pattern_id', pg_temp.id('d'), 'pattern', '{"code": "# only"}'::jsonb, 'measurement_timestamp', pg_temp.t0())), 'v1') r)::text,
  '(1,0,0,0,1,0,[])', 'and the earlier one changes nothing');
reset role;
select results_eq(
  $$
    select m.quality_score, m.completeness, m.confidence, m.measurement_timestamp - pg_temp.t0(), m.version, m.metadata
    from routeledger.pattern_quality_metrics m
    join (values ('d', 1), ('e', 2), ('f', 3)) v (name, n) on m.pattern_id = pg_temp.id(v.name) order by v.n
  $$,
  $$
    values
      (0.1125::double precision, 0::double precision, 0.5::double precision, '0'::interval, 'v2/tap320/2', '{"n": 1}'::jsonb),
      (0.1, 0, null, '0', 'v1/onex/1', null), (0.343, 0.81, null, '0', 'v2/tap320/2', null)
  $$,
  'at the time given, or by the clock');
set local role routeledger_writer;
select results_eq(
  $$
    select (f.value ->> 'ord')::integer, f.value ->> 'code', f.value -> 'detail' ->> 'parameter'
    from routeledger.score_patterns(pg_temp.each(jsonb_build_object('pattern_id', pg_temp.id('g'), 'pattern', '{}'::jsonb), '[
      {"pattern_id": null}, {"pattern": null}, {"pattern": 5}, {}, {"pattern": {"code": 5}}, {"confidence": 2}, {"measurement_timestamp": "soon"}, {"quality_score": 1},
      {"metadata": [1]}]')) r
    cross join jsonb_array_elements(r.refusals) f
  $$,
  $$
    values (1, 'RL101', 'pattern_id'), (2, 'RL101', 'pattern'), (3, 'RL107', 'pattern'), (5, 'RL107', 'code'), (6, 'RL103', 'confidence'), (7, 'RL107', 'row'),
      (8, 'RL107', 'quality_score'), (9, 'RL107', 'metadata')
  $$,
  'each bad row is refused in its place');
select results_eq(
  $$
    select c.code from unnest(array['null', '''{}''', '''[]'', ''v3''', '''[]'', ''v2'', ''none''']) v
    cross join lateral pg_temp.caught(format('select routeledger.score_patterns(%s)', v)) c
    union all
    select c.code from pg_temp.caught('select routeledger.persist_pattern_quality((select jsonb_agg(''{}''::jsonb) from generate_series(1, 10001)))') c
  $$,
  $$ values ('RL101'), ('RL107'), ('RL205'), ('RL205'), ('RL501') $$, 'and a bad call as a whole');

select * from finish();
rollback;
