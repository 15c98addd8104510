-- phase:    one step; programs of 0.3.0 go on working while it runs and after it
-- breaking: nothing
-- locks:    access exclusive on routeledger.settings for a moment; no table of the ledger is locked
begin isolation level read committed;

set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;

select pg_advisory_xact_lock(hashtextextended('routeledger.install', 0));

set local lock_timeout = '15s';
set local statement_timeout = '10min';

do $pre$
begin
  if routeledger.version() <> '0.3.0' then
    raise exception using
      errcode = 'RL902',
      message = 'another version of routeledger is installed',
      detail = jsonb_build_object('installed', routeledger.version(), 'this', '0.3.0')::text,
      hint = 'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.';
  end if;
end
$pre$;

-- One row: to look at it takes no time.
alter table routeledger.settings
add column if not exists repair_retention interval not null default interval '90 days',
-- squawk-ignore constraint-missing-not-valid
add constraint settings_repair_retention_check check (repair_retention between interval '1 day' and interval '100 years');
