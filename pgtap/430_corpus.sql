-- 430 · Corpus: what is labelled and linked, and nothing else.
begin;
\ir common.psql
create function pg_temp.day(p_days integer default 0) returns date
language sql stable
as $$ select (pg_temp.t0() at time zone 'UTC')::date + p_days $$;
create role tap430_bound in role routeledger_reader;
do $$ begin perform routeledger.grant_tenant('tap430_bound', 'tap430-b'); end $$;
select plan(32);

-- An id of that day that the name can be read back from.
create function pg_temp.id_at(p_name text, p_days integer default 0) returns uuid
language sql stable
as $$
  select (lpad(to_hex((extract(epoch from pg_temp.t0() + p_days * interval '1 day') * 1000)::bigint), 12, '0')
    || right(replace(pg_temp.id(p_name)::text, '-', ''), 20))::uuid
$$;
create temp table told (name text, id uuid, tenant text);
create function pg_temp.serve(p_name text, p_days integer default 0, p_class text default 'production', p_task text default 'chat',
  p_attempts jsonb default '[{"model_slug": "tap430/big", "provider": "a", "status": "succeeded", "input_tokens": 1000, "output_tokens": 100, "cost_usd": 0.0120, "latency_ms": 250.5}]',
  p_tenant text default 'tap430') returns void
language plpgsql volatile
as $$
begin
  perform routeledger.set_clock(pg_temp.t0() + p_days * interval '1 day');
  perform routeledger.record_outcome(p_tenant, pg_temp.id_at(p_name, p_days), p_task_type => p_task, p_traffic_class => p_class, p_attempts => p_attempts);
  insert into told values (p_name, pg_temp.id_at(p_name, p_days), p_tenant);
end
$$;
create function pg_temp.judge(p_name text, p_score double precision, p_judge text default 'rubric', p_source text default 'judge', p_label text default null)
returns void
language sql volatile
as $$
  select routeledger.record_verdict(t.tenant, t.id, p_judge, 'v1', p_score, p_label, 'because', p_reward_source => p_source) from told t where t.name = p_name
$$;
do $$
begin
  -- six rows, of three days in two weeks
  perform pg_temp.serve('first');
  perform pg_temp.judge('first', 0.5, p_label => 'middling');
  perform pg_temp.serve('switched', p_task => 'code', p_attempts => '[{"model_slug": "tap430/big", "status": "failed", "error_type": "429"},
    {"model_slug": "tap430/small", "provider": "b", "status": "succeeded", "input_tokens": 7, "output_tokens": 3}]');
  perform pg_temp.judge('switched', 1);
  perform pg_temp.judge('switched', 0, 'second');
  perform pg_temp.judge('switched', null, 'third', p_label => 'no answer');
  perform pg_temp.serve('human', 1);
  perform pg_temp.judge('human', 0.25);
  perform pg_temp.judge('human', 0.75, 'ann', 'human');
  perform pg_temp.serve('shadow', 1, 'shadow');
  perform pg_temp.judge('shadow', 1);
  perform pg_temp.serve('made up', 1, 'synthetic');
  perform pg_temp.judge('made up', 1);
  perform pg_temp.serve('again', 16, 'replay', p_task => null);
  perform pg_temp.judge('again', 0);
  -- no rows
  perform pg_temp.serve('failed', p_attempts => '[{"model_slug": "tap430/big", "status": "failed", "error_type": "500"}]');
  perform pg_temp.serve('nobody judged');
  perform pg_temp.serve('beyond judging');
  perform pg_temp.judge('beyond judging', null, p_label => 'no answer');
  perform pg_temp.serve('withdrawn', p_attempts => '[{"model_slug": "tap430/odd", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}]');
  perform pg_temp.judge('withdrawn', 0);
  perform pg_temp.judge('withdrawn', 0, 'poisoned');
  perform pg_temp.judge('first', 0, 'poisoned');
  perform routeledger.withdraw_verdicts('tap430', 'poisoned', 'v1', 'a parsing fault');
  perform routeledger.withdraw_verdicts('tap430', 'rubric', 'v1', 'so is this', 'tap430/odd');
  perform pg_temp.serve('being judged');
  perform routeledger.insert_decision('tap430', p_candidates => '["tap430/big"]');
  perform routeledger.insert_decision('tap430', p_task_type => 'chat', p_candidates => '[{"model_slug": "tap430/small", "drop_reason": "below_quality_floor"}]');
  perform pg_temp.serve('other', p_tenant => 'tap430-b');
  perform pg_temp.judge('other', 1);
  perform routeledger.claim_judgements('tap430', 'slow', 'v1', 1, p_from => pg_temp.day());
end
$$;
-- whichever outcome the claim has taken is the one that is being judged
do $$
begin
  update told set name = case t.name when 'nobody judged' then 'being judged' else 'nobody judged' end
  from routeledger.routing_outcomes o, told t
  where t.name in ('nobody judged', 'being judged') and told.id = t.id and o.id = t.id
    and (o.judge_status = 'claimed') is distinct from (t.name = 'being judged');
  perform routeledger.record_payload('tap430', o.id, o.inference_id, '{"messages": ["hello"]}', '{"text": "hi"}')
  from routeledger.routing_outcomes o
  join told t on t.id = o.id
  where t.name in ('first', 'switched');
end
$$;
create function pg_temp.rows(p_mix boolean default true, p_class text[] default '{production,shadow,synthetic,replay}') returns setof text
language sql stable
as $$
  select t.name from routeledger.export_corpus('tap430', p_traffic_class => p_class, p_mix_synthetic => p_mix) with ordinality e
  join told t on t.id = e.id
  order by e.ordinality
$$;

-- which rows
select results_eq(
  $$ select pg_temp.rows() order by 1 $$, array['again', 'first', 'human', 'made up', 'shadow', 'switched'],
  'labelled and linked: not failed, in flight, rejected, unjudged, being judged, beyond judging or robbed of its verdicts');
select results_eq($$ select pg_temp.rows() $$, $$ select t.name from told t where t.name in (select pg_temp.rows()) order by t.id $$, 'in order of the ids');
select results_eq($$ select pg_temp.rows(false, '{production}') order by 1 $$, array['first', 'human', 'switched'], 'of production');
select results_eq(
  $$ select t.name from routeledger.export_corpus('tap430') e join told t on t.id = e.id order by 1 $$, array['first', 'human', 'switched'], 'which is the default');
select results_eq($$ select pg_temp.rows(false, '{synthetic, replay}') order by 1 $$, array['again', 'made up'], 'what was made up, apart');
select results_eq($$ select pg_temp.rows(false, '{shadow, production}') order by 1 $$, array['first', 'human', 'shadow', 'switched'], 'shadow traffic is real');
select is(
  (select string_agg(w, ' ' order by w) from (
    select t.name as w from routeledger.export_corpus('tap430', p_from => pg_temp.day(1), p_to => pg_temp.day(2)) e join told t on t.id = e.id) x),
  'human', 'from a day up to, not including, another');
select is((select count(*) from routeledger.export_corpus('tap430', p_to => pg_temp.day())), 0::bigint, 'an empty window is an empty page');
select results_eq(
  $$ select t.name from routeledger.export_corpus('tap430', p_task_type => 'code') e join told t on t.id = e.id $$, array['switched'], 'of a task type');
select results_eq(
  $$ select t.name from routeledger.export_corpus('tap430', p_reward_source => '{human}') e join told t on t.id = e.id $$, array['human'], 'with a label of a person');
select results_eq(
  $$ select t.name from routeledger.export_corpus('tap430', p_reward_source => '{judge}') e join told t on t.id = e.id order by 1 $$, array['first', 'switched'], 'without');

-- pages
create function pg_temp.walk(p_limit integer) returns uuid[]
language plpgsql stable
as $$
declare
  v_all uuid[] := '{}';
  v_page uuid[];
begin
  loop
    v_page := array(
      select e.id from routeledger.export_corpus(
        'tap430', p_traffic_class => '{production,shadow,synthetic,replay}', p_mix_synthetic => true,
        p_after => v_all[cardinality(v_all)], p_limit => p_limit) e);
    exit when v_page = '{}';
    v_all := v_all || v_page;
  end loop;
  return v_all;
end
$$;
select is(
  array(select distinct pg_temp.walk(n) from generate_series(1, 7) n),
  array(select array_agg(t.id order by t.id) from told t where t.name in (select pg_temp.rows())), 'pages of any size are the whole, once each');

-- what a row holds
select is(
  (select to_jsonb(e) - '{id,inference_id,event_at,completed_at,verdicts,ruleset_hash,policy_version,decision_rule,metadata}'::text[]
   from routeledger.export_corpus('tap430') e join told t on t.id = e.id where t.name = 'first'),
  '{"tenant_id": "tap430", "agent_id": null, "task_type": "chat", "traffic_class": "production", "min_quality": null, "propensity": null,
    "candidates": [], "attempts": 1, "attempt_no": 1, "model_slug": "tap430/big", "provider": "a", "response_model": null,
    "input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": null, "cache_creation_input_tokens": null, "reasoning_output_tokens": null,
    "cost_usd": 0.012, "cost_source": "caller", "cost_flag": null, "latency_ms": 250.5, "ttft_ms": null, "reward": 0.5, "reward_source": "judge",
    "verdict_n": 1, "request": null, "response": null}'::jsonb, 'the decision, its attempt and its reward');
select is(
  (select row(e.attempts, e.attempt_no, e.model_slug, e.provider, e.cost_usd, e.inference_id = o.inference_id, e.event_at = o.event_at, e.completed_at = o.completed_at)::text
   from routeledger.export_corpus('tap430') e join told t on t.id = e.id join routeledger.routing_outcomes o on o.id = e.id where t.name = 'switched'),
  '(2,2,tap430/small,b,,t,t,t)', 'the attempt that answered; a cost that is not known is null, never 0');
select is(
  (select jsonb_build_array(e.reward, e.verdict_n, e.verdicts) from routeledger.export_corpus('tap430') e join told t on t.id = e.id where t.name = 'switched'),
  '[0.5, 2, [{"judge": "rubric", "judge_version": "v1", "reward_source": "judge", "score": 1, "label": null},
    {"judge": "second", "judge_version": "v1", "reward_source": "judge", "score": 0, "label": null}]]'::jsonb, 'the usable verdicts, by judge');
select is(
  (select jsonb_build_array(e.verdicts -> 0 -> 'rationale', e.request, e.response)
   from routeledger.export_corpus('tap430', p_payloads => true) e join told t on t.id = e.id where t.name = 'first'),
  '["because", {"messages": ["hello"]}, {"text": "hi"}]'::jsonb, 'payloads and rationales where asked for');
select is(
  (select count(*) from routeledger.export_corpus('tap430', p_payloads => true) e where e.request is null), 1::bigint, 'and a row without a payload stays a row');
do $$ begin update routeledger.inferences set cost_usd = 1.0000000000000000005000001 where tenant_id = 'tap430' and outcome_id = pg_temp.id_at('first'); end $$;
select is((select e.cost_usd::text from routeledger.export_corpus('tap430') e where e.id = pg_temp.id_at('first')), '1.000000000000000001', 'rounded to 18 places');

-- the manifest
select is(
  (select to_jsonb(m) - '{first_id,last_id,cost_usd}'::text[]
   from routeledger.corpus_manifest('tap430', p_from => pg_temp.day(), p_to => pg_temp.day(7), p_traffic_class => '{production,production}') m),
  jsonb_build_object('from_day', pg_temp.day(), 'to_day', pg_temp.day(7)) || '{"tenant_id": "tap430", "traffic_class": ["production"], "mix_synthetic": false,
    "reward_source": null, "task_type": null, "outcomes": 3, "verdicts": 5, "mean_reward": 0.5, "input_tokens": 2007, "output_tokens": 203,
    "models": {"tap430/big": 2, "tap430/small": 1}, "task_types": {"chat": 2, "code": 1}, "traffic_classes": {"production": 3},
    "reward_sources": {"judge": 2, "human": 1},
    "judges": [{"judge": "ann", "judge_version": "v1", "reward_source": "human", "verdicts": 1},
      {"judge": "rubric", "judge_version": "v1", "reward_source": "judge", "verdicts": 3}, {"judge": "second", "judge_version": "v1", "reward_source": "judge", "verdicts": 1}],
    "left_out": {"traffic_class": 2, "in_flight": 1, "failed": 1, "rejected": 1, "unlabeled": 2, "claimed": 1, "cannot_evaluate": 1}}'::jsonb,
  'counts the rows, the verdicts under them, and why the others are none');
select is(
  (select m.task_types from routeledger.corpus_manifest('tap430', p_traffic_class => '{replay}') m), '{"": 1}', 'a row without a task type is counted under none');
select is(
  (select row(m.reward_source, m.task_type, m.outcomes, m.left_out)::text
   from routeledger.corpus_manifest('tap430', p_reward_source => '{judge,judge}', p_task_type => 'code', p_from => pg_temp.day(), p_to => pg_temp.day(1)) m),
  '({judge},code,1,"{""task_type"": 8}")', 'each of the others once, under the first reason');

-- whatever the filters: the manifest counts what is exported, and with what is left out everything
create temp table combined as
select f.*, m.outcomes, m.verdicts, m.first_id, m.last_id, m.mean_reward, m.cost_usd, m.models, m.left_out
from (
  select w.from_day, w.to_day, c.classes, s.sources, k.task
  from (values (null::date, null::date), (pg_temp.day(1), null), (null, pg_temp.day(1)), (pg_temp.day(), pg_temp.day(2))) w (from_day, to_day)
  cross join (values (array['production']), (array['synthetic', 'replay']), (array['production', 'shadow', 'synthetic', 'replay'])) c (classes)
  cross join (values (null::text[]), (array['judge']), (array['human'])) s (sources)
  cross join (values (null), ('chat')) k (task)
) f
cross join lateral (
  select count(*) as n from routeledger.export_corpus('tap430', f.from_day, f.to_day, f.classes, true, f.sources, f.task)
) e
cross join lateral routeledger.corpus_manifest('tap430', f.from_day, f.to_day, f.classes, true, f.sources, f.task) m
where e.n > 0;
select ok((select count(*) > 20 from combined), 'of many filters');
select is_empty(
  $$
    select c.* from combined c
    cross join lateral (
      select count(*) as n, sum(x.verdict_n) as verdicts, avg(x.reward) as reward, sum(x.cost_usd) as usd, min(x.id::text)::uuid as first_id, max(x.id::text)::uuid as last_id,
        count(distinct x.model_slug) as models
      from routeledger.export_corpus('tap430', c.from_day, c.to_day, c.classes, true, c.sources, c.task) x
    ) e
    where (c.outcomes, c.verdicts, c.first_id, c.last_id, c.cost_usd) is distinct from (e.n, e.verdicts, e.first_id, e.last_id, e.usd)
      or abs(c.mean_reward - e.reward) > 1e-12 or e.models <> (select count(*) from jsonb_object_keys(c.models))
  $$, 'the manifest is that of the rows');
select is_empty(
  $$
    select c.* from combined c
    where c.outcomes + (select coalesce(sum(l.value::bigint), 0) from jsonb_each_text(c.left_out) l) <> (
      select count(*) from routeledger.routing_outcomes o
      where o.tenant_id = 'tap430' and (c.from_day is null or o.id >= routeledger._uuid_floor(c.from_day::timestamp at time zone 'UTC'))
        and (c.to_day is null or o.id < routeledger._uuid_floor(c.to_day::timestamp at time zone 'UTC')))
  $$, 'and leaves nothing out uncounted');
select is(
  (select row(c.code, c.detail - 'tenant_id')::text from pg_temp.caught($$ select * from routeledger.corpus_manifest('tap430', p_task_type => 'code', p_reward_source => '{human}', p_from => pg_temp.day(), p_to => pg_temp.day(1)) $$) c),
  '(RL212,"{""left_out"": {""task_type"": 8, ""reward_source"": 1}}")', 'an empty corpus is refused, with what its filters left out');
select is(
  (select row(c.code, c.detail)::text from pg_temp.caught($$ select * from routeledger.corpus_manifest('tap430-none') $$) c),
  '(RL212,"{""left_out"": {}, ""tenant_id"": ""tap430-none""}")', 'and so is that of a tenant without outcomes');
-- what no routine writes
do $$ begin update routeledger.routing_outcomes set reward = 'NaN' where tenant_id = 'tap430' and id = pg_temp.id_at('first'); end $$;
select is(
  (select row(m.outcomes, m.left_out -> 'without_reward', (select count(*) from routeledger.export_corpus('tap430')))::text from routeledger.corpus_manifest('tap430') m),
  '(2,1,2)', 'NaN is no label');

-- arguments and roles
select is(
  (select array_agg((c).code || ' ' || coalesce((c).detail ->> 'parameter', '') order by n, f) from (
    select n, f, pg_temp.caught(format('select * from routeledger.%s(%s)', f, s)) as c
    from unnest(array[
      $$ null $$, $$ '' $$, $$ repeat('x', 201) $$, $$ 'tap430', p_from => '-infinity' $$, $$ 'tap430', p_to => 'infinity' $$,
      $$ 'tap430', '2026-02-02', '2026-02-01' $$, $$ 'tap430', p_traffic_class => null $$, $$ 'tap430', p_traffic_class => '{}' $$,
      $$ 'tap430', p_traffic_class => '{production,null}' $$, $$ 'tap430', p_traffic_class => '{live}' $$, $$ 'tap430', p_mix_synthetic => null $$,
      $$ 'tap430', p_traffic_class => '{production,synthetic}' $$, $$ 'tap430', p_traffic_class => '{shadow,replay}' $$,
      $$ 'tap430', p_reward_source => '{}' $$, $$ 'tap430', p_reward_source => '{null}' $$, $$ 'tap430', p_reward_source => '{withdrawn}' $$,
      $$ 'tap430', p_task_type => '' $$, $$ 'tap430', p_task_type => repeat('x', 201) $$]) with ordinality t (s, n)
    cross join unnest(array['export_corpus', 'corpus_manifest']) f) x),
  (select array_agg(e order by n) from unnest(array[
    'RL101 tenant_id', 'RL101 tenant_id', 'RL108 tenant_id', 'RL109 from', 'RL109 to', 'RL103 to', 'RL101 traffic_class', 'RL101 traffic_class',
    'RL102 traffic_class', 'RL102 traffic_class', 'RL101 mix_synthetic', 'RL102 traffic_class', 'RL102 traffic_class', 'RL101 reward_source',
    'RL102 reward_source', 'RL102 reward_source', 'RL101 task_type', 'RL108 task_type']) with ordinality u (e, n), generate_series(1, 2)),
  'each fault by its code, the same of both');
select is(
  (select array_agg((c).code || ' ' || coalesce((c).detail ->> 'parameter', '') order by n) from (
    select n, pg_temp.caught(format($$ select * from routeledger.export_corpus('tap430', %s) $$, s)) as c
    from unnest(array['p_payloads => null', 'p_limit => null', 'p_limit => 0', 'p_limit => 100001']) with ordinality t (s, n)) x),
  array['RL101 payloads', 'RL101 limit', 'RL103 limit', 'RL103 limit'], 'and those of a page');
set local role tap430_bound;
select is(
  array[(pg_temp.caught($$ select * from routeledger.export_corpus('tap430') $$)).code, (pg_temp.caught($$ select * from routeledger.corpus_manifest('tap430') $$)).code],
  array['RL110', 'RL110'], 'not of a tenant that the role is not bound to');
select is(
  (select row(m.outcomes, (select count(*) from routeledger.export_corpus('tap430-b')))::text from routeledger.corpus_manifest('tap430-b') m), '(1,1)', 'but of its own');
reset role;
set local role routeledger_writer;
select throws_ok($$ select * from routeledger.export_corpus('tap430') $$, '42501', null, 'writers do not export');

select * from finish();
rollback;
