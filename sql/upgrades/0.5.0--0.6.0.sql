-- phase:    one step; programs of 0.5.0 go on working while it runs and after it
-- breaking: nothing
-- locks:    share update exclusive on routeledger.routing_outcomes throughout: no partition is made meanwhile. A session that waits to make
--           one makes it without a leaf for verdicts, so let maintain() rest. Then share on it while the index of outcomes without a
--           label is built: decisions wait so long, about a second for a million of them. Where that is too long, build it on the
--           partitions beforehand; the upgrade takes over what it finds there:
--             create index concurrently on routeledger.routing_outcomes_p20261116w (tenant_id, id)
--               where judge_status = 'unlabeled' and reward_source is null and outcome_status = 'succeeded' and inference_id is not null;
--           access exclusive on routeledger.settings for a moment
begin isolation level read committed;

set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;

select pg_advisory_xact_lock(hashtextextended('routeledger.install', 0));

set local lock_timeout = '15s';
set local statement_timeout = '30min';

do $pre$
begin
  if routeledger.version() <> '0.5.0' then
    raise exception using
      errcode = 'RL902',
      message = 'another version of routeledger is installed',
      detail = jsonb_build_object('installed', routeledger.version(), 'this', '0.5.0')::text,
      hint = 'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.';
  end if;
end
$pre$;

-- One row: to look at it takes no time.
alter table routeledger.settings
add column if not exists judge_lease interval not null default interval '10 minutes',
add column if not exists judge_max_attempts integer not null default 3,
add column if not exists judge_retry_delay interval not null default interval '1 minute',
add column if not exists judge_look_every interval not null default interval '1 minute',
add column if not exists judge_look_back interval not null default interval '1 hour',
add column if not exists mono_zero_n integer not null default 20,
-- squawk-ignore constraint-missing-not-valid
add constraint settings_judge_lease_check check (judge_lease between interval '1 second' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_judge_max_attempts_check check (judge_max_attempts between 1 and 1000),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_judge_retry_delay_check check (judge_retry_delay between interval '0' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_judge_look_every_check check (judge_look_every between interval '0' and interval '24 hours'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_judge_look_back_check check (judge_look_back between interval '0' and interval '10 years'),
-- squawk-ignore constraint-missing-not-valid
add constraint settings_mono_zero_n_check check (mono_zero_n between 2 and 1000000);

-- The verdicts have a leaf beside each leaf of the ledger; nobody makes one meanwhile.
lock table only routeledger.routing_outcomes in share update exclusive mode;

create table if not exists routeledger.judge_verdicts (
  tenant_id text not null,
  outcome_id uuid not null,
  judge text not null,
  judge_version text not null,
  inference_id uuid not null,
  model_slug text not null,
  task_type text,
  score double precision,
  usable boolean not null,
  label text,
  rationale text,
  reward_source text not null,
  attempt_no integer,
  judge_model text,
  input_tokens bigint,
  output_tokens bigint,
  cost_usd numeric,
  recorded_at timestamptz not null,
  withdrawal_id uuid,
  withdrawn_at timestamptz,
  constraint judge_verdicts_pkey primary key (tenant_id, outcome_id, judge, judge_version),
  constraint verdict_usable_has_score check (
    usable = (score is not null and score between 0 and 1)),
  constraint verdict_withdrawn_has_withdrawal check (
    (withdrawal_id is null) = (withdrawn_at is null))
) partition by range (outcome_id);

do $leaves$
declare
  v_partition record;
begin
  for v_partition in select p.suffix, p.lower_id, p.upper_id from routeledger._partitions() p order by p.lower_id loop
    execute format(
      'create table routeledger.%I (like routeledger.judge_verdicts including defaults including constraints) with (fillfactor = 85)',
      'judge_verdicts_' || v_partition.suffix);
    execute format(
      'alter table routeledger.judge_verdicts attach partition routeledger.%I for values from (%L) to (%L)',
      'judge_verdicts_' || v_partition.suffix, v_partition.lower_id, v_partition.upper_id);
  end loop;
end
$leaves$;
