-- phase:    one step; programs of 0.1.0 go on working while it runs and after it
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
  if routeledger.version() <> '0.1.0' then
    raise exception using
      errcode = 'RL902',
      message = 'another version of routeledger is installed',
      detail = jsonb_build_object('installed', routeledger.version(), 'this', '0.1.0')::text,
      hint = 'Run `routeledger plan` to see the way from that version to this one, then `routeledger upgrade`.';
  end if;
end
$pre$;

-- It takes a hint now; a routine of the same name with fewer parameters would make its calls ambiguous.
-- squawk-ignore ban-drop-function
drop function if exists routeledger._raise(text, jsonb);

-- One row: to look at it takes no time.
alter table routeledger.settings
add column if not exists rollup_look_back interval not null default interval '3 days',
-- squawk-ignore constraint-missing-not-valid
add constraint settings_rollup_look_back_check check (rollup_look_back between interval '0' and interval '10 years');
