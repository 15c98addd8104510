-- 030 · Settings: one row, typed, checked, read once by every transition.

create table if not exists routeledger.settings (
  only_row boolean not null default true,
  lease interval not null default interval '5 minutes',
  id_window_past interval not null default interval '90 days',
  id_window_future interval not null default interval '1 hour',
  event_at_max_age interval not null default interval '10 years',
  partition_width text not null default 'week',
  partitions_ahead integer not null default 4,
  retry_attempts_per_model integer not null default 2,
  retry_max_attempts integer not null default 12,
  retry_base interval not null default interval '500 milliseconds',
  retry_cap interval not null default interval '20 seconds',
  retry_jitter double precision not null default 1.0,
  implausible_factor numeric not null default 10,
  implausible_usd_per_mtok numeric not null default 10000,
  tenants_bound boolean not null default false,
  rollup_look_back interval not null default interval '3 days',
  repair_retention interval not null default interval '90 days',
  cooldown_failures integer not null default 3,
  cooldown_window interval not null default interval '1 minute',
  cooldown interval not null default interval '30 seconds',
  cooldown_cap interval not null default interval '10 minutes',
  cooldown_scope text not null default 'tenant',
  probe_lease interval not null default interval '10 seconds',
  assumed_cost_usd numeric not null default 0.01,
  budgets_defined boolean not null default false,
  budget_retention interval not null default interval '400 days',
  judge_lease interval not null default interval '10 minutes',
  judge_max_attempts integer not null default 3,
  judge_retry_delay interval not null default interval '1 minute',
  judge_look_every interval not null default interval '1 minute',
  judge_look_back interval not null default interval '1 hour',
  mono_zero_n integer not null default 20,
  constraint settings_pkey primary key (only_row),
  constraint settings_only_row check (only_row),
  constraint settings_lease_check check (lease between interval '1 second' and interval '24 hours'),
  constraint settings_id_window_past_check check (id_window_past between interval '1 hour' and interval '100 years'),
  constraint settings_id_window_future_check check (id_window_future between interval '1 second' and interval '30 days'),
  constraint settings_event_at_max_age_check check (event_at_max_age between interval '1 day' and interval '100 years'),
  constraint settings_partition_width_check check (partition_width in ('day', 'week', 'month')),
  constraint settings_partitions_ahead_check check (partitions_ahead between 1 and 120),
  constraint settings_retry_attempts_per_model_check check (retry_attempts_per_model between 1 and 10),
  constraint settings_retry_max_attempts_check check (retry_max_attempts between 1 and 1000),
  constraint settings_retry_base_check check (retry_base between interval '0' and interval '1 hour'),
  constraint settings_retry_cap_check check (retry_cap between interval '0' and interval '24 hours'),
  constraint settings_retry_jitter_check check (retry_jitter between 0 and 1),
  constraint settings_implausible_factor_check check (implausible_factor between 2 and 1000),
  constraint settings_implausible_usd_per_mtok_check check (implausible_usd_per_mtok between 1 and 1000000000),
  constraint settings_rollup_look_back_check check (rollup_look_back between interval '0' and interval '10 years'),
  constraint settings_repair_retention_check check (repair_retention between interval '1 day' and interval '100 years'),
  constraint settings_cooldown_failures_check check (cooldown_failures between 1 and 1000),
  constraint settings_cooldown_window_check check (cooldown_window between interval '1 second' and interval '24 hours'),
  constraint settings_cooldown_check check (cooldown between interval '0' and interval '24 hours'),
  constraint settings_cooldown_cap_check check (cooldown_cap between interval '0' and interval '24 hours'),
  constraint settings_cooldown_scope_check check (cooldown_scope in ('tenant', 'all')),
  constraint settings_probe_lease_check check (probe_lease between interval '1 second' and interval '24 hours'),
  constraint settings_assumed_cost_usd_check check (assumed_cost_usd between 0 and 1000000000),
  constraint settings_budget_retention_check check (budget_retention between interval '1 day' and interval '100 years'),
  constraint settings_judge_lease_check check (judge_lease between interval '1 second' and interval '24 hours'),
  constraint settings_judge_max_attempts_check check (judge_max_attempts between 1 and 1000),
  constraint settings_judge_retry_delay_check check (judge_retry_delay between interval '0' and interval '24 hours'),
  constraint settings_judge_look_every_check check (judge_look_every between interval '0' and interval '24 hours'),
  constraint settings_judge_look_back_check check (judge_look_back between interval '0' and interval '10 years'),
  constraint settings_mono_zero_n_check check (mono_zero_n between 2 and 1000000)
);

insert into routeledger.settings default values on conflict do nothing;

-- Changes the settings named in a JSON object and returns all that are now in force. Either all of the
-- changes take effect or none does; transitions that have begun finish under the old ones.
-- Locks: the settings row. Errors: RL101, RL103, RL107.
create or replace function routeledger.configure(
  p_settings jsonb default '{}'
)
returns jsonb
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_old jsonb;
  v_new routeledger.settings;
  v_unknown text;
  v_constraint text;
begin
  if p_settings is null or jsonb_typeof(p_settings) <> 'object' then
    perform routeledger._raise_fault('RL107 settings a JSON object');
  end if;

  select to_jsonb(s) - array['only_row', 'tenants_bound', 'budgets_defined'] into v_old from routeledger.settings s for update;

  select k into v_unknown from jsonb_object_keys(p_settings) k where not v_old ? k order by k limit 1;
  if v_unknown is not null then
    perform routeledger._raise('RL107', jsonb_build_object('setting', v_unknown, 'allowed', (select jsonb_agg(k order by k) from jsonb_object_keys(v_old) k)));
  end if;
  select s.key into v_unknown from jsonb_each(p_settings) s where s.value = 'null' order by s.key limit 1;
  if v_unknown is not null then
    perform routeledger._raise_fault('RL101 ' || v_unknown);
  end if;
  if p_settings = '{}' then
    return v_old;
  end if;

  begin
    v_new := jsonb_populate_record((select s from routeledger.settings s), p_settings);
    update routeledger.settings set
      lease = v_new.lease,
      id_window_past = v_new.id_window_past,
      id_window_future = v_new.id_window_future,
      event_at_max_age = v_new.event_at_max_age,
      partition_width = v_new.partition_width,
      partitions_ahead = v_new.partitions_ahead,
      retry_attempts_per_model = v_new.retry_attempts_per_model,
      retry_max_attempts = v_new.retry_max_attempts,
      retry_base = v_new.retry_base,
      retry_cap = v_new.retry_cap,
      retry_jitter = v_new.retry_jitter,
      implausible_factor = v_new.implausible_factor,
      implausible_usd_per_mtok = v_new.implausible_usd_per_mtok,
      rollup_look_back = v_new.rollup_look_back,
      repair_retention = v_new.repair_retention,
      cooldown_failures = v_new.cooldown_failures,
      cooldown_window = v_new.cooldown_window,
      cooldown = v_new.cooldown,
      cooldown_cap = v_new.cooldown_cap,
      cooldown_scope = v_new.cooldown_scope,
      probe_lease = v_new.probe_lease,
      assumed_cost_usd = v_new.assumed_cost_usd,
      budget_retention = v_new.budget_retention,
      judge_lease = v_new.judge_lease,
      judge_max_attempts = v_new.judge_max_attempts,
      judge_retry_delay = v_new.judge_retry_delay,
      judge_look_every = v_new.judge_look_every,
      judge_look_back = v_new.judge_look_back,
      mono_zero_n = v_new.mono_zero_n
    where only_row;
  exception
    when check_violation then
      get stacked diagnostics v_constraint = constraint_name;
      perform routeledger._raise('RL103', jsonb_build_object(
        'parameter', regexp_replace(v_constraint, '^settings_(.*)_check$', '\1'),
        'allowed', (select pg_get_constraintdef(c.oid) from pg_constraint c
                    where c.conname = v_constraint and c.conrelid = 'routeledger.settings'::regclass)));
    when data_exception then
      perform routeledger._raise('RL107', jsonb_build_object('settings', p_settings, 'reason', sqlerrm));
  end;

  return (select to_jsonb(s) - array['only_row', 'tenants_bound', 'budgets_defined'] from routeledger.settings s);
end
$$;
