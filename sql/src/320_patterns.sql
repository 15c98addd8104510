-- 320 · Patterns: how good is a code pattern, in five dimensions, and the current score of each.
--
-- A score says how it was made: its version is formulas/rule set/number of the rule set ("v2/onex/1").
-- The formulas and their weights never change under one name, and neither do the rules under one number, so two scores of
-- one version can be compared, and one pattern has one score for each version, in every database.
-- All matching is by bytes: case is that of ASCII, and a word is made of ASCII letters, digits and underscores.

create table if not exists routeledger.pattern_formulas (
  version text not null,
  completeness_weight numeric not null,
  documentation_weight numeric not null,
  architecture_compliance_weight numeric not null,
  metadata_richness_weight numeric not null,
  complexity_fit_weight numeric not null,
  excellent numeric not null,
  good numeric not null,
  fair numeric not null,
  constraint pattern_formulas_pkey primary key (version),
  constraint pattern_formulas_version_check check (version in ('v1', 'v2')),
  constraint pattern_formulas_weights_check check (
    completeness_weight >= 0 and documentation_weight >= 0 and architecture_compliance_weight >= 0
    and metadata_richness_weight >= 0 and complexity_fit_weight >= 0
    and completeness_weight + documentation_weight + architecture_compliance_weight + metadata_richness_weight + complexity_fit_weight = 1),
  constraint pattern_formulas_thresholds_check check (0 < fair and fair < good and good < excellent and excellent <= 1)
);

insert into routeledger.pattern_formulas (
  version, completeness_weight, documentation_weight, architecture_compliance_weight, metadata_richness_weight, complexity_fit_weight,
  excellent, good, fair)
values
  ('v1', 0.30, 0.25, 0.20, 0.15, 0.10, 0.9, 0.7, 0.5),
  ('v2', 0.30, 0.25, 0.20, 0.15, 0.10, 0.9, 0.7, 0.5)
on conflict do nothing;

create table if not exists routeledger.pattern_rule_sets (
  name text not null,
  version integer not null,
  constraint pattern_rule_sets_pkey primary key (name),
  constraint pattern_rule_sets_name_check check (name ~ '^[A-Za-z0-9_.-]{1,100}$'),
  constraint pattern_rule_sets_version_check check (version >= 0)
);

create table if not exists routeledger.pattern_rules (
  rule_set text not null,
  version integer not null,
  node_type text not null,
  method text,
  constraint pattern_rules_pkey primary key (rule_set, version, node_type),
  constraint pattern_rules_rule_set_fkey foreign key (rule_set) references routeledger.pattern_rule_sets (name),
  constraint pattern_rules_version_check check (version >= 1),
  constraint pattern_rules_node_type_check check (node_type ~ '^[A-Za-z][A-Za-z0-9_]{0,99}$'),
  constraint pattern_rules_method_check check (length(method) <= 200 and method ~ '^[A-Za-z_][A-Za-z0-9_]*( [A-Za-z_][A-Za-z0-9_]*)*$')
);

insert into routeledger.pattern_rule_sets (name, version) values ('onex', 1) on conflict do nothing;
insert into routeledger.pattern_rules (rule_set, version, node_type, method)
values
  ('onex', 1, 'Effect', 'async def execute_effect'),
  ('onex', 1, 'Compute', 'async def execute_compute'),
  ('onex', 1, 'Reducer', 'async def execute_reduction'),
  ('onex', 1, 'Orchestrator', 'async def execute_orchestration')
on conflict do nothing;

create table if not exists routeledger.pattern_quality_metrics (
  pattern_id uuid not null,
  quality_score double precision not null,
  completeness double precision,
  documentation double precision,
  architecture_compliance double precision,
  metadata_richness double precision,
  complexity_fit double precision,
  confidence double precision,
  measurement_timestamp timestamptz not null,
  version text not null,
  metadata jsonb,
  constraint pattern_quality_metrics_pkey primary key (pattern_id),
  constraint pattern_quality_metrics_scores_check check (
    quality_score between 0 and 1 and completeness between 0 and 1 and documentation between 0 and 1
    and architecture_compliance between 0 and 1 and metadata_richness between 0 and 1 and complexity_fit between 0 and 1
    and confidence between 0 and 1),
  constraint pattern_quality_metrics_measurement_timestamp_check check (isfinite(measurement_timestamp)),
  constraint pattern_quality_metrics_version_check check (version <> '' and length(version) <= 200),
  constraint pattern_quality_metrics_metadata_check check (jsonb_typeof(metadata) = 'object')
);

do $types$
begin
  if to_regtype('routeledger.pattern_input') is null then
    create type routeledger.pattern_input as (
      pattern_id uuid,
      pattern jsonb,
      measurement_timestamp timestamptz,
      confidence double precision,
      metadata jsonb
    );
    create type routeledger.pattern_quality_input as (
      pattern_id uuid,
      quality_score double precision,
      completeness double precision,
      documentation double precision,
      architecture_compliance double precision,
      metadata_richness double precision,
      complexity_fit double precision,
      confidence double precision,
      measurement_timestamp timestamptz,
      version text,
      metadata jsonb
    );
    create type routeledger.pattern_rule_input as (
      node_type text,
      method text
    );
    create type routeledger.pattern_yardstick as (
      version text,
      formulas text,
      weights numeric[],
      thresholds numeric[],
      node_types text[],
      methods text[]
    );
    create type routeledger.pattern_score as (
      completeness double precision,
      documentation double precision,
      architecture_compliance double precision,
      metadata_richness double precision,
      complexity_fit double precision,
      quality_score double precision,
      rating text,
      version text
    );
  end if;
end
$types$;

-- Returns what a pattern is measured by: the weights and thresholds of those formulas and the rules now in force
-- in that rule set, read in one statement.
-- Locks: none. Errors: RL101, RL205.
create or replace function routeledger._pattern_yardstick(
  p_version text,
  p_rule_set text
)
returns routeledger.pattern_yardstick
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_result routeledger.pattern_yardstick;
begin
  if p_version is null then
    perform routeledger._raise_fault('RL101 version');
  elsif p_rule_set is null then
    perform routeledger._raise_fault('RL101 rule_set');
  end if;

  select
    f.version || '/' || s.name || '/' || s.version,
    f.version,
    array[f.completeness_weight, f.documentation_weight, f.architecture_compliance_weight, f.metadata_richness_weight, f.complexity_fit_weight],
    array[f.excellent, f.good, f.fair],
    r.node_types,
    r.methods
  into v_result
  from routeledger.pattern_formulas f
  cross join routeledger.pattern_rule_sets s
  cross join lateral (
    -- of several that fit, the longest name is the most particular one
    select
      coalesce(array_agg(r.node_type order by length(r.node_type) desc, r.node_type collate "C"), '{}') as node_types,
      coalesce(array_agg(r.method order by length(r.node_type) desc, r.node_type collate "C"), '{}') as methods
    from routeledger.pattern_rules r
    where r.rule_set = s.name and r.version = s.version
  ) r
  where f.version = p_version and s.name = p_rule_set;

  if v_result.version is null then
    if not exists (select from routeledger.pattern_formulas f where f.version = p_version) then
      perform routeledger._raise('RL205', jsonb_build_object(
        'parameter', 'version', 'version', left(p_version, 100),
        'allowed', (select jsonb_agg(f.version order by f.version collate "C") from routeledger.pattern_formulas f)));
    end if;
    perform routeledger._raise('RL205', jsonb_build_object(
      'parameter', 'rule_set', 'rule_set', left(p_rule_set, 100),
      'allowed', (select jsonb_agg(s.name order by s.name collate "C") from routeledger.pattern_rule_sets s)));
  end if;
  return v_result;
end
$$;

-- Returns the fault of a pattern: null when each field that the formulas read is absent, null or of its type.
-- Locks: none. Errors: none.
create or replace function routeledger._pattern_fault(
  p_pattern jsonb
)
returns text
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
begin
  return case
    when p_pattern is null then 'RL101 pattern'
    when jsonb_typeof(p_pattern) <> 'object' then 'RL107 pattern a JSON object'
    when pg_column_size(p_pattern) > 16777216 then 'RL108 pattern 16 MiB'
    when jsonb_typeof(p_pattern -> 'pattern_name') not in ('string', 'null') then 'RL107 pattern_name a string or null'
    when jsonb_typeof(p_pattern -> 'code') not in ('string', 'null') then 'RL107 code a string or null'
    when jsonb_typeof(p_pattern -> 'text') not in ('string', 'null') then 'RL107 text a string or null'
    when jsonb_typeof(p_pattern -> 'node_type') not in ('string', 'null') then 'RL107 node_type a string or null'
    when jsonb_typeof(p_pattern -> 'complexity') not in ('string', 'null') then 'RL107 complexity a string or null'
    when jsonb_typeof(p_pattern -> 'use_cases') not in ('array', 'null') then 'RL107 use_cases an array or null'
    when jsonb_typeof(p_pattern -> 'examples') not in ('array', 'null') then 'RL107 examples an array or null'
    when jsonb_typeof(p_pattern -> 'metadata') not in ('object', 'null') then 'RL107 metadata an object or null'
  end;
end
$$;

-- Returns the words of a name in lower case, each between blanks, whether it is written in CamelCase or with
-- separators: "NodeDBEffect" and "node_db-effect" give " node db effect ".
-- Locks: none. Errors: none.
create or replace function routeledger._name_words(
  p_name text
)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
  select ' ' || lower(regexp_replace(
    regexp_replace(
      regexp_replace(p_name collate "C", '([A-Z]+)([A-Z][a-z])', '\1 \2', 'g'),
      '([a-z])([A-Z])', '\1 \2', 'g'),
    '[^A-Za-z]+', ' ', 'g')) || ' '
$$;

-- Returns how many of the values say anything: distinct ones, without null, blank texts, empty arrays and objects.
-- Locks: none. Errors: none.
create or replace function routeledger._count_filled(
  p_values jsonb
)
returns bigint
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
  select count(distinct case when jsonb_typeof(e) = 'string' then to_jsonb(btrim(e #>> '{}', E' \t\r\n')) else e end)
  from jsonb_array_elements(p_values) e
  where e not in ('null', '[]', '{}') and (jsonb_typeof(e) <> 'string' or (e #>> '{}') collate "C" ~ '\S')
$$;

-- Returns the five dimensions of a pattern by the formulas v1, exact and not yet held within 0 and 1. Markers are
-- plain text, found anywhere, and each counts once.
--
-- completeness: 0 without code; else 1, less 0.2 for each of `pass`, `TODO`, `NotImplemented`, `...`, `raise
-- NotImplementedError`; 0.1 more for any of `if `, `for `, `while `, `async def `, `class `; 0.05 for `import `;
-- and lines/100, at most 0.15. Lines are what line feeds separate: one more than there are line feeds, so an
-- ending line feed begins an empty line.
--
-- documentation: 0.4 for a triple quote in the code; lines of code holding `#`, by 20, at most 0.2; 0.2 for a type
-- hint in the code (`:` or `->`, any white space, a word); 0.2 for a text of more than 100 characters.
--
-- architecture: without node type 0.5 if the name holds one of the rule set's, as it is written there, else 0.3;
-- with one 0.7, 0.15 more if the name holds it (any case), 0.15 more if the code holds the method of that node
-- type (any case of the type).
--
-- metadata: 0.4 for 3 use cases, 0.3 for 2 examples, less for fewer in proportion; 0.3 for more than 3 metadata
-- fields.
--
-- complexity: 0.4 without code or declared complexity; 1 if it is (any case) that of the occurrences of `if `,
-- `for `, `while `, `except ` (under 3 low, under 8 medium, else high), else 0.6.
-- Locks: none. Errors: none.
create or replace function routeledger._score_v1(
  p_pattern jsonb,
  p_node_types text[],
  p_methods text[]
)
returns numeric[]
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_name text collate "C" := coalesce(p_pattern ->> 'pattern_name', '');
  v_code text collate "C" := coalesce(p_pattern ->> 'code', '');
  v_text text collate "C" := coalesce(p_pattern ->> 'text', '');
  v_node_type text collate "C" := coalesce(p_pattern ->> 'node_type', '');
  v_declared text collate "C" := lower(coalesce(p_pattern ->> 'complexity', ''));
  v_use_cases integer := coalesce(jsonb_array_length(nullif(p_pattern -> 'use_cases', 'null')), 0);
  v_examples integer := coalesce(jsonb_array_length(nullif(p_pattern -> 'examples', 'null')), 0);
  v_fields integer := cardinality(array(select jsonb_object_keys(nullif(p_pattern -> 'metadata', 'null'))));
  v_method text collate "C";
  v_branches integer := 0;
  v_completeness numeric := 0;
  v_documentation numeric := 0;
  v_architecture numeric;
  v_complexity numeric := 0.4;
begin
  if v_code <> '' then
    v_completeness := 1.0
      - 0.2 * (select count(*) from unnest(array['pass', 'TODO', 'NotImplemented', '...', 'raise NotImplementedError']) m where strpos(v_code, m) > 0)
      + case when exists (select from unnest(array['if ', 'for ', 'while ', 'async def ', 'class ']) m where strpos(v_code, m) > 0) then 0.1 else 0 end
      + case when strpos(v_code, 'import ') > 0 then 0.05 else 0 end
      + least(0.15, (length(v_code) - length(replace(v_code, E'\n', '')) + 1) / 100.0);
    v_documentation :=
      case when strpos(v_code, '"""') > 0 or strpos(v_code, '''''''') > 0 then 0.4 else 0 end
      + least(0.2, regexp_count(v_code, '#[^\n]*') / 20.0)
      + case when v_code ~ '(?::|->)\s*\w' then 0.2 else 0 end;
  end if;
  v_documentation := v_documentation + case when length(v_text) > 100 then 0.2 else 0 end;

  if v_node_type = '' then
    v_architecture := case when exists (select from unnest(p_node_types) t where strpos(v_name, t) > 0) then 0.5 else 0.3 end;
  else
    v_method := (select r.method from unnest(p_node_types, p_methods) r (node_type, method) where lower(r.node_type collate "C") = lower(v_node_type));
    v_architecture := 0.7
      + case when strpos(lower(v_name), lower(v_node_type)) > 0 then 0.15 else 0 end
      + case when strpos(v_code, v_method) > 0 then 0.15 else 0 end;
  end if;

  if v_code <> '' and v_declared <> '' then
    v_branches := (
      select sum((length(v_code) - length(replace(v_code, m, ''))) / length(m)) from unnest(array['if ', 'for ', 'while ', 'except ']) m);
    v_complexity := case
      when v_declared = case when v_branches < 3 then 'low' when v_branches < 8 then 'medium' else 'high' end then 1.0
      else 0.6
    end;
  end if;

  return array[
    v_completeness,
    v_documentation,
    v_architecture,
    least(0.4, v_use_cases * 0.4 / 3) + least(0.3, v_examples * 0.3 / 2) + case when v_fields > 3 then 0.3 else 0 end,
    v_complexity];
end
$$;

-- Returns the five dimensions of a pattern by the formulas v2, exact and not yet held within 0 and 1: the amounts
-- of v1, given for what is meant. Code is read as Python: a comment runs from `#` to the end of its line, strings
-- are taken out of the code, and what is left is statements; line ends may be LF, CR LF or CR.
--
-- completeness: 0 when nothing but comments and strings is there; else 1, less 0.2 for a statement `pass`, 0.2 for
-- TODO or FIXME as a word of a comment, 0.2 for a statement `...`, 0.4 for `raise NotImplementedError` (or
-- NotImplemented). Not stubs are the bodies of abstract methods, overloads and Protocol classes, and `pass` in an
-- except clause or in a class that has a base. 0.1 more for a keyword if, for, while, async def or class; 0.05 for
-- an import statement; and lines that hold code, by 100, at most 0.15.
--
-- documentation: 0.4 for a docstring (first in the module, a class or a function, of whichever quotes); comments
-- that hold a word, by 20, at most 0.2; 0.2 for an annotated parameter, result or variable; 0.2 for a text of more
-- than 100 characters, runs of white space counted as one.
--
-- architecture: a node type that the rule set does not know is none. Names are compared by their words, in any
-- case: NodeEffect, effect_node and "Effect node" hold Effect, SideEffective does not. 0.5 or 0.3 without, 0.7
-- with one, 0.15 more if the name holds it, 0.15 more if the code defines its method: outside of comments and
-- strings, as whole words.
--
-- metadata: as in v1, of use cases and examples that are distinct and not blank, and of fields that are not blank.
--
-- complexity: as in v1, from the keywords if, elif, for, while and except; a declared word other than low, medium
-- and high is none.
-- Locks: none. Errors: none.
create or replace function routeledger._score_v2(
  p_pattern jsonb,
  p_node_types text[],
  p_methods text[]
)
returns numeric[]
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  -- Strings as Python reads them; one that is not closed ends with its line, or with the code when it has three quotes.
  c_strings constant text := $re$(")""(?:"{0,2}(?:[^"\\]|\\.))*(?:"""|"{0,2}\\?$)|(')''(?:'{0,2}(?:[^'\\]|\\.))*(?:'''|'{0,2}\\?$)|(")(?:[^"\\\n]|\\.)*"?|(')(?:[^'\\\n]|\\.)*'?$re$;
  v_name text collate "C" := routeledger._name_words(coalesce(p_pattern ->> 'pattern_name', ''));
  v_node_type text collate "C" := routeledger._name_words(coalesce(p_pattern ->> 'node_type', ''));
  v_declared text collate "C" := lower(btrim(coalesce(p_pattern ->> 'complexity', ''), E' \t\r\n'));
  v_code text collate "C" := replace(replace(coalesce(p_pattern ->> 'code', ''), E'\r\n', E'\n'), E'\r', E'\n');
  v_text text collate "C" := btrim(regexp_replace(coalesce(p_pattern ->> 'text', '') collate "C", '\s+', ' ', 'g'));
  v_noted text collate "C";
  v_statements text collate "C";
  v_rule record;
  v_branches integer;
  v_completeness numeric := 0;
  v_documentation numeric := 0;
  v_architecture numeric;
  v_complexity numeric := 0.4;
begin
  -- Each string becomes two quotes: what is left of a line begins its comment with the first number sign.
  v_noted := regexp_replace(v_code, c_strings || '|(#[^\n]*)', '\1\1\2\2\3\3\4\4\5', 'g') || E'\n';
  v_code := regexp_replace(v_noted, '#[^\n]*', '', 'g');

  -- From here on (?n) lets ^ and $ match at each line.
  if v_code ~ '[^\s"'']' then
    v_statements := v_code;
    if strpos(v_code, 'Protocol') > 0 then
      v_statements := regexp_replace(v_statements, '(?n)^class[ \t]+\w+[ \t]*\((?:[^\n]*\W)?Protocol\W[^\n]*\n(?:[ \t]+[^\n]*\n|\n)*', E'\n', 'g');
    end if;
    if v_code ~ '@(?:[\w.]+\.)?(?:abstract\w+|overload)\s' then
      v_statements := regexp_replace(
        v_statements,
        '@(?:[\w.]+\.)?(?:abstract\w+|overload)\s+(?:@[^\n]*\n\s*)*(?:async\s+)?def\s+\w+\s*(?:\[[^\]]*\]\s*)?'
          '\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*(?:->[^:]*)?:\s*(?:[rRuU]?(?:""|'''')\s*)?(?:\.\.\.|pass|raise\s+NotImplemented(?:Error)?)(?!\w)',
        '', 'g');
    end if;
    if strpos(v_statements, 'pass') > 0 then
      v_statements := regexp_replace(
        v_statements,
        '(?n)^[ \t]*(?:class[ \t]+\w+[ \t]*\([ \t]*[^\s)][^\n]*\)|except(?:\W[^\n]*)?):\s*(?:[rRuU]?(?:""|'''')\s*)?pass(?!\w)',
        '', 'g');
    end if;

    v_completeness := 1.0
      - case when v_statements ~ '(?n)(?:^|[:;])[ \t]*pass[ \t]*(?:;|$)' then 0.2 else 0 end
      - case when v_noted ~ '#(?:[^\n]*\W)?(?:TODO|FIXME)\W' then 0.2 else 0 end
      - case when v_statements ~ '(?n)(?:^|[:;])[ \t]*\.\.\.[ \t]*(?:;|$)' then 0.2 else 0 end
      - case when v_statements ~ '(?n)(?:^|[:;])[ \t]*raise[ \t]+NotImplemented(?:Error)?(?:\W|$)' then 0.4 else 0 end
      + case when v_code ~ '(?:^|\W)(?:if|for|while|class|async\s+def)(?:\W|$)' then 0.1 else 0 end
      + case when v_code ~ '(?n)(?:^|[:;])[ \t]*(?:import|from)[ \t]+[\w.]' then 0.05 else 0 end
      + least(0.15, regexp_count(v_code, '\S[^\n]*') / 100.0);

    if v_declared in ('low', 'medium', 'high') then
      v_branches := regexp_count(v_code, '(?:^|\W)(?:if|elif|for|while|except)(?!\w)');
      v_complexity := case
        when v_declared = case when v_branches < 3 then 'low' when v_branches < 8 then 'medium' else 'high' end then 1.0
        else 0.6
      end;
    end if;
  end if;

  v_documentation :=
    case
      when v_code ~ '(?n)\A\s*[rRuU]?(?:""|'''')[ \t]*(?:;|$)' then 0.4
      when v_code ~ '(?n)(?:^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t][^\n]*|\)[^\n]*):[ \t]*\n\s*[rRuU]?(?:""|'''')[ \t]*(?:;|$)' then 0.4
      else 0
    end
    + least(0.2, regexp_count(v_noted, '#[^\w\n]*\w[^\n]*') / 20.0)
    + case
      when v_code ~ '\)\s*->\s*[A-Za-z_"'']' then 0.2
      when v_code ~ '(?:^|\W)def\s+\w+\s*(?:\[[^\]]*\]\s*)?\((?:(?:[^()]|\([^()]*\))*,)?\s*\*{0,2}[A-Za-z_]\w*\s*:\s*[A-Za-z_"'']' then 0.2
      when v_code ~ '(?n)^[ \t]*(?!(?:else|try|except|finally|lambda)\W)(?:self\.)?[A-Za-z_]\w*[ \t]*:[ \t]*[A-Za-z_"''](?:[^\n]*[^\s,{(\[\\:])?[ \t]*$' then 0.2
      else 0
    end
    + case when length(v_text) > 100 then 0.2 else 0 end;

  select r.words, r.method into v_rule
  from (
    select routeledger._name_words(r.node_type) as words, r.method, r.n
    from unnest(p_node_types, p_methods) with ordinality r (node_type, method, n)
  ) r
  where strpos(v_node_type, r.words) > 0
  order by r.n
  limit 1;
  if v_rule.words is null then
    v_architecture := case
      when exists (select from unnest(p_node_types) t where strpos(v_name, routeledger._name_words(t)) > 0) then 0.5
      else 0.3
    end;
  else
    v_architecture := 0.7
      + case when strpos(v_name, v_rule.words) > 0 then 0.15 else 0 end
      + case when v_code ~ ('(?:^|\W)' || replace(v_rule.method, ' ', '\s+') || '(?:\W|$)') then 0.15 else 0 end;
  end if;

  return array[
    v_completeness,
    v_documentation,
    v_architecture,
    least(0.4, coalesce(routeledger._count_filled(nullif(p_pattern -> 'use_cases', 'null')), 0) * 0.4 / 3)
      + least(0.3, coalesce(routeledger._count_filled(nullif(p_pattern -> 'examples', 'null')), 0) * 0.3 / 2)
      + case when (
        select count(*) from jsonb_each(nullif(p_pattern -> 'metadata', 'null')) f where routeledger._count_filled(jsonb_build_array(f.value)) > 0
      ) > 3 then 0.3 else 0 end,
    v_complexity];
end
$$;

-- Returns the score of a pattern that has no fault: each dimension within 0 and 1, and their weighted mean,
-- computed in decimals and rounded to 15 places, so that a score which is 0.9 on paper is `excellent`.
-- Locks: none. Errors: none.
create or replace function routeledger._score_pattern(
  p_pattern jsonb,
  p_by routeledger.pattern_yardstick
)
returns routeledger.pattern_score
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_score numeric[];
  v_mean numeric := 0;
begin
  if p_by.formulas = 'v1' then
    v_score := routeledger._score_v1(p_pattern, p_by.node_types, p_by.methods);
  else
    v_score := routeledger._score_v2(p_pattern, p_by.node_types, p_by.methods);
  end if;
  for i in 1 .. 5 loop
    v_score[i] := least(greatest(v_score[i], 0), 1);
    v_mean := v_mean + v_score[i] * p_by.weights[i];
    v_score[i] := round(v_score[i], 15);
  end loop;
  v_mean := round(v_mean, 15);
  return row(
    v_score[1], v_score[2], v_score[3], v_score[4], v_score[5],
    v_mean,
    case
      when v_mean >= p_by.thresholds[1] then 'excellent'
      when v_mean >= p_by.thresholds[2] then 'good'
      when v_mean >= p_by.thresholds[3] then 'fair'
      else 'poor'
    end,
    p_by.version)::routeledger.pattern_score;
end
$$;

-- Scores a pattern: five dimensions from 0 to 1, quality_score their weighted mean (completeness 0.30,
-- documentation 0.25, architecture compliance 0.20, metadata richness 0.15, complexity fit 0.10), rating excellent
-- (from 0.9), good (0.7), fair (0.5) or poor, and version, which says by what. The same pattern has the same score
-- by the same version, always. Nothing is stored.
--
-- The pattern is a JSON object of pattern_name, code, text (its documentation), node_type, complexity (declared:
-- low, medium or high), all strings; use_cases and examples, arrays; metadata, an object. Each may be absent or
-- null, and then counts as empty; what else the object holds is not read.
--
-- p_version: v1 (markers as plain text, anywhere) or v2 (the statements and words that are meant); _score_v1 and
-- _score_v2 say how.
--
-- p_rule_set: node types and their methods, as set_pattern_rules() has put them in.
-- Locks: none. Errors: RL101, RL107, RL108, RL205.
create or replace function routeledger.score_pattern(
  p_pattern jsonb,
  p_version text default 'v2',
  p_rule_set text default 'onex'
)
returns table (
  completeness double precision,
  documentation double precision,
  architecture_compliance double precision,
  metadata_richness double precision,
  complexity_fit double precision,
  quality_score double precision,
  rating text,
  version text
)
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_by routeledger.pattern_yardstick := routeledger._pattern_yardstick(p_version, p_rule_set);
  v_fault text := routeledger._pattern_fault(p_pattern);
  v_score routeledger.pattern_score;
begin
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_score := routeledger._score_pattern(p_pattern, v_by);
  return query select
    v_score.completeness, v_score.documentation, v_score.architecture_compliance, v_score.metadata_richness, v_score.complexity_fit,
    v_score.quality_score, v_score.rating, v_score.version;
end
$$;

-- Puts a project's own rule set in, or replaces one, and returns the number under which scores made by it are
-- stored: the whole set or nothing. What is in force already stays under its number, whatever its order (created
-- is false); anything else gets the next number, and the old rules are kept under theirs.
--
-- p_rules: a JSON array of {"node_type": a word, "method": the words that begin its definition, such as "async def
-- run", or null}.
--
-- p_rule_set: letters, digits, `_`, `.` and `-`. Scores that are stored already do not change.
-- Locks: the rule set's row. Errors: RL101, RL102, RL107, RL501.
create or replace function routeledger.set_pattern_rules(
  p_rule_set text,
  p_rules jsonb
)
returns table (
  rule_set text,
  version integer,
  created boolean
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_inputs routeledger.pattern_rule_input[];
  v_faults text[];
  v_first integer;
  v_version integer;
begin
  if p_rule_set is null then
    perform routeledger._raise_fault('RL101 rule_set');
  elsif p_rule_set collate "C" !~ '^[A-Za-z0-9_.-]{1,100}$' then
    perform routeledger._raise_fault('RL102 rule_set 1 to 100 letters, digits, _, . and -');
  elsif p_rules is null then
    perform routeledger._raise_fault('RL101 rules a JSON array of objects');
  elsif jsonb_typeof(p_rules) <> 'array' then
    perform routeledger._raise_fault('RL107 rules a JSON array of objects');
  elsif jsonb_array_length(p_rules) > 1000 then
    perform routeledger._raise('RL501', jsonb_build_object('rows', jsonb_array_length(p_rules), 'limit', 1000));
  end if;

  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.pattern_rule_input, p_rules, '{}') r;
  v_faults := array(
    select coalesce(v_faults[r.n], case
      when coalesce(r.node_type, '') = '' then 'RL101 node_type'
      when r.node_type collate "C" !~ '^[A-Za-z][A-Za-z0-9_]{0,99}$' then 'RL107 node_type a word of at most 100 ASCII letters, digits and _'
      when r.method collate "C" !~ '^[A-Za-z_][A-Za-z0-9_]*( [A-Za-z_][A-Za-z0-9_]*)*$' or length(r.method) > 200
        then 'RL107 method words of ASCII letters, digits and _, a blank between them, at most 200 characters'
      when count(*) over (partition by lower(r.node_type collate "C")) > 1 then 'RL107 node_type each once, in whatever case'
    end)
    from unnest(v_inputs) with ordinality r (node_type, method, n)
    order by r.n);
  select f.n into v_first from unnest(v_faults) with ordinality f (fault, n) where f.fault is not null order by f.n limit 1;
  if v_first is not null then
    perform routeledger._raise(
      split_part(v_faults[v_first], ' ', 1), jsonb_build_object('ord', v_first) || routeledger._fault_detail(v_faults[v_first]));
  end if;

  insert into routeledger.pattern_rule_sets (name, version) values (p_rule_set, 0) on conflict (name) do nothing;
  select s.version into strict v_version from routeledger.pattern_rule_sets s where s.name = p_rule_set for update;
  if v_version > 0 and not exists (
    (select i.node_type, i.method from unnest(v_inputs) i
     except
     select r.node_type, r.method from routeledger.pattern_rules r where r.rule_set = p_rule_set and r.version = v_version)
    union all
    (select r.node_type, r.method from routeledger.pattern_rules r where r.rule_set = p_rule_set and r.version = v_version
     except
     select i.node_type, i.method from unnest(v_inputs) i))
  then
    return query select p_rule_set, v_version, false;
    return;
  end if;
  v_version := v_version + 1;
  update routeledger.pattern_rule_sets s set version = v_version where s.name = p_rule_set;
  insert into routeledger.pattern_rules (rule_set, version, node_type, method)
  select p_rule_set, v_version, i.node_type, i.method from unnest(v_inputs) i;
  return query select p_rule_set, v_version, true;
end
$$;

-- Writes the measurements that have no fault, the latest of each pattern, and answers for all: see
-- persist_pattern_quality(). Numbers pass through JSON with all their digits whatever the session shows.
-- Locks: the patterns' rows by pattern_id. Errors: none; a fault is part of the result.
create or replace function routeledger._persist_pattern_quality(
  p_inputs routeledger.pattern_quality_input[],
  p_faults text[],
  p_now timestamptz
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
set extra_float_digits = 1
as $$
#variable_conflict use_column
declare
  v_newest timestamptz := p_now + (select s.id_window_future from routeledger.settings s);
  v_faults text[];
  v_rows jsonb;
  v_ords integer[];
begin
  v_faults := array(
    select coalesce(p_faults[i.n], case
      when i.pattern_id is null then 'RL101 pattern_id'
      when i.quality_score is null then 'RL101 quality_score'
      when i.quality_score not between 0 and 1 then 'RL103 quality_score 0 to 1'
      when i.completeness not between 0 and 1 then 'RL103 completeness 0 to 1'
      when i.documentation not between 0 and 1 then 'RL103 documentation 0 to 1'
      when i.architecture_compliance not between 0 and 1 then 'RL103 architecture_compliance 0 to 1'
      when i.metadata_richness not between 0 and 1 then 'RL103 metadata_richness 0 to 1'
      when i.complexity_fit not between 0 and 1 then 'RL103 complexity_fit 0 to 1'
      when i.confidence not between 0 and 1 then 'RL103 confidence 0 to 1'
      when i.measurement_timestamp not between timestamptz 'epoch' and v_newest then 'RL109 measurement_timestamp 1970 to now plus id_window_future'
      when coalesce(i.version, '') = '' then 'RL101 version'
      when length(i.version) > 200 then 'RL108 version 200 characters'
      when jsonb_typeof(i.metadata) <> 'object' then 'RL107 metadata a JSON object'
      when pg_column_size(i.metadata) > 65536 then 'RL108 metadata 64 KiB'
    end)
    from unnest(p_inputs) with ordinality i (
      pattern_id, quality_score, completeness, documentation, architecture_compliance, metadata_richness, complexity_fit, confidence,
      measurement_timestamp, version, metadata, n)
    order by i.n);

  select coalesce(jsonb_agg(to_jsonb(i) - 'n' order by i.n), '[]'), array_agg(i.n order by i.n)
  into v_rows, v_ords
  from (
    select
      i.pattern_id, i.quality_score, i.completeness, i.documentation, i.architecture_compliance, i.metadata_richness, i.complexity_fit,
      i.confidence, coalesce(i.measurement_timestamp, p_now) as measurement_timestamp, i.version, i.metadata, i.n
    from unnest(p_inputs) with ordinality i (
      pattern_id, quality_score, completeness, documentation, architecture_compliance, metadata_richness, complexity_fit, confidence,
      measurement_timestamp, version, metadata, n)
    where v_faults[i.n] is null
  ) i;

  return query
  select
    cardinality(v_faults)::bigint, u.collapsed, u.inserted, u.updated, u.unchanged, u.refused + o.refused,
    routeledger._place_refusals(v_faults, v_ords, u.refusals)
  from routeledger.upsert(
    'routeledger.pattern_quality_metrics'::regclass, v_rows,
    p_key => array['pattern_id'],
    p_precedence => 'latest measurement_timestamp, greatest version',
    p_columns => array[
      'pattern_id', 'quality_score', 'completeness', 'documentation', 'architecture_compliance', 'metadata_richness', 'complexity_fit',
      'confidence', 'measurement_timestamp', 'version', 'metadata']) u
  cross join (select count(f.fault) as refused from unnest(v_faults) f (fault)) o;
end
$$;

-- Keeps one current row for each pattern: of all measurements of a pattern, in this call, in others and stored,
-- the latest by measurement_timestamp stands, whatever the order in which they come; of two of one time, the one of
-- the later version (as text), and then the whole row decides. A measurement that arrives late changes nothing, one
-- that is stored already is `unchanged`, and a bad row never fails its neighbours.
--
-- Rows: pattern_id, quality_score and version (by what it was scored), required; the five dimensions, confidence,
-- measurement_timestamp (now, by clock()) and metadata (an object). Received is the sum of all the other counts;
-- refusals hold ord, the row's place from 1.
-- Locks: the patterns' rows by pattern_id. Errors: RL101, RL107, RL501 for the call; per row RL101, RL103, RL107, RL108, RL109.
create or replace function routeledger.persist_pattern_quality(
  p_rows jsonb
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_inputs routeledger.pattern_quality_input[];
  v_faults text[];
begin
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.pattern_quality_input, p_rows, array['metadata']) r;
  return query select p.* from routeledger._persist_pattern_quality(v_inputs, v_faults, routeledger._now()) p;
end
$$;

-- Scores many patterns by one version and rule set and keeps the scores, as score_pattern() and
-- persist_pattern_quality() would one after the other; a bad row never fails its neighbours.
--
-- Rows: pattern_id and pattern (as score_pattern() takes it), required; measurement_timestamp (now, by clock()),
-- confidence and metadata (of the measurement). Give measurement_timestamp where a call may be repeated: only then
-- is the repetition `unchanged`.
-- Locks: the patterns' rows by pattern_id. Errors: RL101, RL107, RL501, RL205 for the call; per row RL101, RL103, RL107, RL108, RL109.
create or replace function routeledger.score_patterns(
  p_rows jsonb,
  p_version text default 'v2',
  p_rule_set text default 'onex'
)
returns table (
  received bigint,
  collapsed bigint,
  inserted bigint,
  updated bigint,
  unchanged bigint,
  refused bigint,
  refusals jsonb
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_by routeledger.pattern_yardstick := routeledger._pattern_yardstick(p_version, p_rule_set);
  v_inputs routeledger.pattern_input[];
  v_faults text[];
  v_row routeledger.pattern_input;
  v_score routeledger.pattern_score;
  v_scored routeledger.pattern_quality_input[] := array[]::routeledger.pattern_quality_input[];
begin
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.pattern_input, p_rows, array['pattern', 'metadata']) r;
  for i in 1 .. cardinality(v_faults) loop
    v_row := v_inputs[i];
    v_faults[i] := coalesce(v_faults[i], case when v_row.pattern_id is null then 'RL101 pattern_id' end, routeledger._pattern_fault(v_row.pattern));
    if v_faults[i] is null then
      v_score := routeledger._score_pattern(v_row.pattern, v_by);
    else
      v_score := null;
    end if;
    v_scored[i] := row(
      v_row.pattern_id, v_score.quality_score, v_score.completeness, v_score.documentation, v_score.architecture_compliance,
      v_score.metadata_richness, v_score.complexity_fit, v_row.confidence, v_row.measurement_timestamp, v_score.version, v_row.metadata
    )::routeledger.pattern_quality_input;
  end loop;
  return query select p.* from routeledger._persist_pattern_quality(v_scored, v_faults, routeledger._now()) p;
end
$$;

-- A version that is not ours is rated by the thresholds of v2.
create or replace view routeledger.pattern_quality
with (security_barrier = true)
as
select
  m.pattern_id,
  m.quality_score,
  case
    when m.quality_score::numeric >= f.excellent then 'excellent'
    when m.quality_score::numeric >= f.good then 'good'
    when m.quality_score::numeric >= f.fair then 'fair'
    else 'poor'
  end as rating,
  m.completeness,
  m.documentation,
  m.architecture_compliance,
  m.metadata_richness,
  m.complexity_fit,
  m.confidence,
  m.measurement_timestamp,
  m.version,
  m.metadata
from routeledger.pattern_quality_metrics m
cross join (select v.excellent, v.good, v.fair from routeledger.pattern_formulas v where v.version = 'v2') d
left join routeledger.pattern_formulas o on o.version = split_part(m.version, '/', 1)
cross join lateral (
  select coalesce(o.excellent, d.excellent) as excellent, coalesce(o.good, d.good) as good, coalesce(o.fair, d.fair) as fair
) f;

create or replace view routeledger.current_pattern_rules
with (security_barrier = true)
as
select
  r.rule_set,
  r.version,
  r.node_type,
  r.method
from routeledger.pattern_rules r
join routeledger.pattern_rule_sets s on s.name = r.rule_set and s.version = r.version;
