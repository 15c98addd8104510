-- A labelled corpus: what is exported, and what is left out and why.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/corpus.sql
-- The clock is set by hand and the ids are given, so that it prints the same each time. It commits: docs/how-to/corpus.md
-- exports what it leaves.
\pset pager off
\set ON_ERROR_STOP on
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;

-- Five decisions of two days: one of them made up by a load test, one that failed.
select count(*) filter (where status = 'accepted') as recorded
from routeledger.record_outcomes('[
  {"tenant_id": "acme", "id": "01a1f2d1-d400-7000-8000-000000000001", "task_type": "chat", "attempts": [
    {"id": "01a1f2d1-d400-7000-9000-000000000001", "model_slug": "openai/gpt-4o-mini", "status": "failed", "error_type": "429"},
    {"id": "01a1f2d1-d400-7000-9000-000000000002", "model_slug": "anthropic/claude-haiku", "status": "succeeded", "input_tokens": 374, "output_tokens": 51, "cost_usd": 0.0005}]},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000003", "task_type": "code", "attempts": [
    {"id": "01a1f7f8-3000-7000-9000-000000000003", "model_slug": "openai/gpt-4o-mini", "status": "succeeded", "input_tokens": 420, "output_tokens": 60}]},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000004", "task_type": "chat", "attempts": [
    {"id": "01a1f7f8-3000-7000-9000-000000000004", "model_slug": "openai/gpt-4o-mini", "status": "succeeded", "input_tokens": 90, "output_tokens": 4}]},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000005", "task_type": "chat", "traffic_class": "synthetic", "attempts": [
    {"id": "01a1f7f8-3000-7000-9000-000000000005", "model_slug": "openai/gpt-4o-mini", "status": "succeeded", "input_tokens": 1, "output_tokens": 1}]},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000006", "task_type": "chat", "attempts": [
    {"id": "01a1f7f8-3000-7000-9000-000000000006", "model_slug": "openai/gpt-4o-mini", "status": "failed", "error_type": "500"}]}]');

-- A judge labels three of them, and a person one of these again. One nobody has looked at yet.
select id, usable, reward, reward_source, judge_status
from routeledger.record_verdicts('[
  {"tenant_id": "acme", "id": "01a1f2d1-d400-7000-8000-000000000001", "judge": "rubric", "judge_version": "v1", "score": 0.9, "label": "good"},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000003", "judge": "rubric", "judge_version": "v1", "score": 0, "label": "does not run"},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000003", "judge": "ann", "judge_version": "1", "score": 0.5, "reward_source": "human"},
  {"tenant_id": "acme", "id": "01a1f7f8-3000-7000-8000-000000000005", "judge": "rubric", "judge_version": "v1", "score": 1, "label": "good"}]');

-- The rows, in order of their ids.
select id, task_type, attempts, model_slug, cost_usd, reward, reward_source, verdict_n from routeledger.export_corpus('acme');

-- What they are in all, and why the others are none.
select outcomes, verdicts, mean_reward, models, left_out from routeledger.corpus_manifest('acme');
