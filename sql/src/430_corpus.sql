-- 430 · Corpus: labelled outcomes as rows to train and to evaluate with.
--
-- A row is an outcome that succeeded, is linked and has a label: the decision, the attempt that it links, the reward and
-- the verdicts that the reward is the mean of. What is not linked, not labelled, could not be judged or has lost its verdicts to a
-- withdrawal is no row. What was made up (synthetic and replay traffic) comes with what was asked for (production
-- and shadow traffic) only where the caller says so outright.
--
-- Rows come by id, so that a page goes on where the one before it ended. Pages of one corpus are read in one
-- transaction under REPEATABLE READ, and are then what its manifest counts, whatever is written meanwhile.
--
-- Both routines join ranges of ids that they take from every side, without nested loops: on tables that nobody has analyzed yet
-- the planner expects a row of each, and would read a range again for every row of the other.

-- Tells what is wrong with the filters of a corpus; null where nothing is.
-- Locks: none. Errors: none.
create or replace function routeledger._corpus_fault(
  p_tenant_id text,
  p_from date,
  p_to date,
  p_traffic_class text[],
  p_mix_synthetic boolean,
  p_reward_source text[],
  p_task_type text
)
returns text
language sql
stable
parallel restricted
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
  select case
    when coalesce(p_tenant_id, '') = '' then 'RL101 tenant_id'
    when length(p_tenant_id) > 200 then 'RL108 tenant_id 200 characters'
    when p_tenant_id <> all (routeledger.bound_tenants()) then 'RL110 tenant_id'
    when p_from not between date '1970-01-01' and date '4999-12-31' then 'RL109 from 1970 to 4999'
    when p_to not between date '1970-01-01' and date '4999-12-31' then 'RL109 to 1970 to 4999'
    when p_to < p_from then 'RL103 to not before from'
    when coalesce(cardinality(p_traffic_class), 0) = 0 then 'RL101 traffic_class'
    when exists (select from unnest(p_traffic_class) w where w is null or w not in ('production', 'shadow', 'synthetic', 'replay'))
      then 'RL102 traffic_class production, shadow, synthetic, replay'
    when p_mix_synthetic is null then 'RL101 mix_synthetic'
    when not p_mix_synthetic and p_traffic_class && array['synthetic', 'replay'] and p_traffic_class && array['production', 'shadow']
      then 'RL102 traffic_class synthetic and replay beside production and shadow only with mix_synthetic'
    when cardinality(p_reward_source) = 0 then 'RL101 reward_source'
    when exists (select from unnest(p_reward_source) w where w is null or w not in ('judge', 'human')) then 'RL102 reward_source judge, human'
    when p_task_type = '' then 'RL101 task_type'
    when length(p_task_type) > 200 then 'RL108 task_type 200 characters'
  end
$$;

-- Returns the labelled, linked outcomes of a tenant in order of their ids: the first p_limit (1 to 100000) that come after
-- p_after (any UUID; null: from the beginning). An empty page is the end.
--
-- Filters: decided from p_from up to, not including, p_to (UTC); traffic classes (synthetic or replay together with
-- production or shadow only with p_mix_synthetic); sources of the reward (judge, human; null: both); a task type
-- (null: all).
--
-- attempts counts all attempts of the decision; what follows from attempt_no to ttft_ms is about the linked one, the
-- one that answered. cost_usd is rounded to 18 places and null where it is not known. reward is the mean score, 0 to 1, of the verdict_n
-- usable, not withdrawn verdicts; verdicts is an array of them by judge and version, objects with judge, judge_version, reward_source,
-- score and label. propensity is the probability with which the policy chose the model, null where it did not say.
-- With p_payloads the verdicts also have their rationale, and request and response are those recorded for the linked attempt; else they are null.
-- Locks: none. Errors: RL101, RL102, RL103, RL108, RL109, RL110.
create or replace function routeledger.export_corpus(
  p_tenant_id text,
  p_from date default null,
  p_to date default null,
  p_traffic_class text[] default '{production}',
  p_mix_synthetic boolean default false,
  p_reward_source text[] default null,
  p_task_type text default null,
  p_payloads boolean default false,
  p_after uuid default null,
  p_limit integer default 10000
)
returns table (
  tenant_id text,
  id uuid,
  agent_id text,
  task_type text,
  traffic_class text,
  decision_rule text,
  policy_version text,
  ruleset_hash text,
  min_quality double precision,
  propensity double precision,
  candidates jsonb,
  metadata jsonb,
  event_at timestamptz,
  completed_at timestamptz,
  attempts integer,
  inference_id uuid,
  attempt_no integer,
  model_slug text,
  provider text,
  response_model text,
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
  reward double precision,
  reward_source text,
  verdict_n integer,
  verdicts jsonb,
  request jsonb,
  response jsonb
)
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_fault text := coalesce(
    routeledger._corpus_fault(p_tenant_id, p_from, p_to, p_traffic_class, p_mix_synthetic, p_reward_source, p_task_type),
    case
      when p_payloads is null then 'RL101 payloads'
      when p_limit is null then 'RL101 limit'
      when p_limit not between 1 and 100000 then 'RL103 limit 1 to 1e5'
    end);
  v_from uuid;
  v_to uuid;
  v_after uuid;
  v_last uuid;
begin
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_from := routeledger._uuid_floor(coalesce(p_from, date '1970-01-01')::timestamp at time zone 'UTC');
  v_to := case when p_to is null then 'ffffffff-ffff-ffff-ffff-ffffffffffff' else routeledger._uuid_floor(p_to::timestamp at time zone 'UTC') end;
  v_after := coalesce(p_after, '00000000-0000-0000-0000-000000000000');

  -- The page's last id first: between two known ids the joins below read one or two partitions.
  select r.id into v_last
  from (
    select o.id
    from routeledger.routing_outcomes o
    where o.tenant_id = p_tenant_id
      and o.id > v_after and o.id >= v_from and o.id < v_to
      and o.traffic_class = any (p_traffic_class)
      and (p_task_type is null or o.task_type = p_task_type)
      and o.outcome_status = 'succeeded' and o.inference_id is not null
      and o.judge_status = 'labeled' and o.reward between 0 and 1
      and (p_reward_source is null or o.reward_source = any (p_reward_source))
    order by o.id
    limit p_limit
  ) r
  order by r.id desc
  limit 1;
  if v_last is null then
    return;
  end if;

  return query
  select
    o.tenant_id, o.id, o.agent_id, o.task_type, o.traffic_class::text, o.decision_rule, o.policy_version, o.ruleset_hash, o.min_quality, o.propensity,
    o.candidates, o.metadata, o.event_at, o.completed_at, o.attempt_count,
    i.id, i.attempt_no, i.model_slug, i.provider, i.response_model, i.input_tokens, i.output_tokens,
    i.cache_read_input_tokens, i.cache_creation_input_tokens, i.reasoning_output_tokens,
    trim_scale(round(i.cost_usd, 18)), i.cost_source, i.cost_flag, i.latency_ms, i.ttft_ms,
    o.reward, o.reward_source, coalesce(v.n, 0), coalesce(v.verdicts, '[]'), l.request, l.response
  from routeledger.routing_outcomes o
  join routeledger.inferences i
    on i.tenant_id = p_tenant_id and i.outcome_id = o.id and i.id = o.inference_id
    and i.outcome_id > v_after and i.outcome_id >= v_from and i.outcome_id <= v_last
  left join (
    select
      w.outcome_id,
      count(*)::integer as n,
      jsonb_agg(
        jsonb_build_object('judge', w.judge, 'judge_version', w.judge_version, 'reward_source', w.reward_source, 'score', w.score, 'label', w.label)
        || case when p_payloads then jsonb_build_object('rationale', w.rationale) else '{}' end
        order by w.judge collate "C", w.judge_version collate "C") as verdicts
    from routeledger.judge_verdicts w
    where w.tenant_id = p_tenant_id
      and w.outcome_id > v_after and w.outcome_id >= v_from and w.outcome_id <= v_last
      and w.usable and w.withdrawal_id is null
    group by w.outcome_id
  ) v on v.outcome_id = o.id
  left join (
    select q.outcome_id, q.inference_id, q.request, q.response
    from routeledger.inference_payloads q
    where p_payloads and q.tenant_id = p_tenant_id
      and q.outcome_id > v_after and q.outcome_id >= v_from and q.outcome_id <= v_last
  ) l on l.outcome_id = o.id and l.inference_id = o.inference_id
  where o.tenant_id = p_tenant_id
    and o.id > v_after and o.id >= v_from and o.id <= v_last
    and o.traffic_class = any (p_traffic_class)
    and (p_task_type is null or o.task_type = p_task_type)
    and o.outcome_status = 'succeeded' and o.inference_id is not null
    and o.judge_status = 'labeled' and o.reward between 0 and 1
    and (p_reward_source is null or o.reward_source = any (p_reward_source))
  order by o.id;
end
$$;

-- Counts what export_corpus() with the same filters exports, and says what they were: one row.
--
-- outcomes is the number of rows, first_id and last_id their ends, verdicts how many verdicts they rest on; cost_usd sums what is known. models, task_types (''
-- for none), traffic_classes and reward_sources are objects of counts of rows; judges is an array of objects with judge,
-- judge_version, reward_source and verdicts. left_out counts the other outcomes of the window, each once, under the
-- first of these that holds: traffic_class, task_type (filtered out), in_flight, failed, rejected, abandoned,
-- unlinked, unlabeled, claimed, cannot_evaluate, without_reward, reward_source (filtered out); what it counts and outcomes
-- are together all outcomes of the window.
-- Locks: none. Errors: RL101, RL102, RL103, RL108, RL109, RL110; RL212 where there is no row, with left_out in DETAIL.
create or replace function routeledger.corpus_manifest(
  p_tenant_id text,
  p_from date default null,
  p_to date default null,
  p_traffic_class text[] default '{production}',
  p_mix_synthetic boolean default false,
  p_reward_source text[] default null,
  p_task_type text default null
)
returns table (
  tenant_id text,
  from_day date,
  to_day date,
  traffic_class text[],
  mix_synthetic boolean,
  reward_source text[],
  task_type text,
  outcomes bigint,
  first_id uuid,
  last_id uuid,
  verdicts bigint,
  mean_reward double precision,
  cost_usd numeric,
  input_tokens bigint,
  output_tokens bigint,
  models jsonb,
  task_types jsonb,
  traffic_classes jsonb,
  reward_sources jsonb,
  judges jsonb,
  left_out jsonb
)
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, routeledger, pg_temp
set plan_cache_mode = force_custom_plan
set enable_partitionwise_join = on
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_fault text := routeledger._corpus_fault(p_tenant_id, p_from, p_to, p_traffic_class, p_mix_synthetic, p_reward_source, p_task_type);
  v_from uuid;
  v_to uuid;
begin
  if v_fault is not null then
    perform routeledger._raise_fault(v_fault);
  end if;
  v_from := routeledger._uuid_floor(coalesce(p_from, date '1970-01-01')::timestamp at time zone 'UTC');
  v_to := case when p_to is null then 'ffffffff-ffff-ffff-ffff-ffffffffffff' else routeledger._uuid_floor(p_to::timestamp at time zone 'UTC') end;

  with counted as materialized (
    select
      x.gap, x.task, x.class, x.source,
      count(*) as n,
      min(x.id::text collate "C") as first_id,
      max(x.id::text collate "C") as last_id,
      sum(x.reward::numeric) filter (where x.gap is null) as total
    from (
      select
        o.id, o.reward, coalesce(o.task_type, '') as task, o.traffic_class::text as class, coalesce(o.reward_source, '') as source,
        case
          when o.traffic_class <> all (p_traffic_class) then 'traffic_class'
          when o.task_type is distinct from coalesce(p_task_type, o.task_type) then 'task_type'
          when o.outcome_status is null then 'in_flight'
          when o.outcome_status <> 'succeeded' then o.outcome_status::text
          when o.inference_id is null then 'unlinked'
          when o.judge_status <> 'labeled' then o.judge_status::text
          when not coalesce(o.reward between 0 and 1, false) then 'without_reward'
          when p_reward_source is not null and coalesce(o.reward_source <> all (p_reward_source), true) then 'reward_source'
        end as gap
      from routeledger.routing_outcomes o
      where o.tenant_id = p_tenant_id and o.id >= v_from and o.id < v_to
    ) x
    group by 1, 2, 3, 4
  )
  select
    coalesce(sum(c.n) filter (where c.gap is null), 0)::bigint,
    (min(c.first_id) filter (where c.gap is null))::uuid,
    (max(c.last_id) filter (where c.gap is null))::uuid,
    (sum(c.total) / nullif(sum(c.n) filter (where c.gap is null), 0))::double precision,
    (select jsonb_object_agg(g.key, g.n) from (select k.task as key, sum(k.n) as n from counted k where k.gap is null group by 1) g),
    (select jsonb_object_agg(g.key, g.n) from (select k.class as key, sum(k.n) as n from counted k where k.gap is null group by 1) g),
    (select jsonb_object_agg(g.key, g.n) from (select k.source as key, sum(k.n) as n from counted k where k.gap is null group by 1) g),
    coalesce((select jsonb_object_agg(g.key, g.n) from (select k.gap as key, sum(k.n) as n from counted k where k.gap is not null group by 1) g), '{}')
  into outcomes, first_id, last_id, mean_reward, task_types, traffic_classes, reward_sources, left_out
  from counted c;
  if outcomes = 0 then
    perform routeledger._raise('RL212', jsonb_build_object('tenant_id', p_tenant_id, 'left_out', left_out));
  end if;

  select jsonb_object_agg(m.model_slug, m.n), trim_scale(sum(m.cost_usd)), sum(m.input_tokens)::bigint, sum(m.output_tokens)::bigint
  into models, cost_usd, input_tokens, output_tokens
  from (
    select
      i.model_slug, count(*) as n, sum(round(i.cost_usd, 18)) as cost_usd, sum(i.input_tokens) as input_tokens, sum(i.output_tokens) as output_tokens
    from routeledger.routing_outcomes o
    join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id and i.id = o.inference_id
    where o.tenant_id = p_tenant_id and o.id >= first_id and o.id <= last_id
      and i.outcome_id >= first_id and i.outcome_id <= last_id
      and o.traffic_class = any (p_traffic_class)
      and (p_task_type is null or o.task_type = p_task_type)
      and o.outcome_status = 'succeeded' and o.judge_status = 'labeled' and o.reward between 0 and 1
      and (p_reward_source is null or o.reward_source = any (p_reward_source))
    group by i.model_slug
  ) m;

  select
    coalesce(sum(j.n), 0)::bigint,
    coalesce(jsonb_agg(
      jsonb_build_object('judge', j.judge, 'judge_version', j.judge_version, 'reward_source', j.reward_source, 'verdicts', j.n)
      order by j.judge collate "C", j.judge_version collate "C", j.reward_source collate "C"), '[]')
  into verdicts, judges
  from (
    select v.judge, v.judge_version, v.reward_source, count(*) as n
    from routeledger.routing_outcomes o
    join routeledger.judge_verdicts v on v.tenant_id = o.tenant_id and v.outcome_id = o.id
    where o.tenant_id = p_tenant_id and o.id >= first_id and o.id <= last_id
      and v.outcome_id >= first_id and v.outcome_id <= last_id
      and o.traffic_class = any (p_traffic_class)
      and (p_task_type is null or o.task_type = p_task_type)
      and o.outcome_status = 'succeeded' and o.inference_id is not null and o.judge_status = 'labeled' and o.reward between 0 and 1
      and (p_reward_source is null or o.reward_source = any (p_reward_source))
      and v.usable and v.withdrawal_id is null
    group by v.judge, v.judge_version, v.reward_source
  ) j;

  tenant_id := p_tenant_id;
  from_day := p_from;
  to_day := p_to;
  traffic_class := array(select distinct w from unnest(p_traffic_class) w order by w);
  mix_synthetic := p_mix_synthetic;
  reward_source := case when p_reward_source is not null then array(select distinct w from unnest(p_reward_source) w order by w) end;
  task_type := p_task_type;
  return next;
end
$$;
