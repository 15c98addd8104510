-- Two tables that an older writer left: choices of a model, and the calls that were made for them. It lost
-- some of the links between them, and two calls were never completed. docs/how-to/repairs.md works on these.
\pset pager off
\set ON_ERROR_STOP on
begin;
create schema old;
create table old.calls (
  call_id uuid primary key,
  bot text,
  model text not null,
  state text not null,
  usd numeric(12, 6),
  called_at timestamp with time zone not null,
  finished_at timestamp with time zone,
  error_text text,
  raw json
);
create table old.choices (
  id bigint primary key,
  agent_id text,
  chosen_model_slug text,
  decision_rule text not null,
  inference_id uuid references old.calls,
  cost_usd double precision,
  created_at timestamp with time zone not null
);
insert into old.calls
select md5('call ' || n)::uuid, 'agent ' || n % 5, 'model ' || n % 3, 'succeeded', n * 0.0013,
  timestamptz '2025-10-01 00:00Z' + n * interval '70 seconds', timestamptz '2025-10-01 00:00Z' + n * interval '70 seconds',
  null, format('{"n":  %s}', n)::json
from generate_series(1, 500) n;
insert into old.choices
select n, 'agent ' || n % 5, 'model ' || n % 3, 'cheapest', case when n not in (23, 170, 401) then md5('call ' || n)::uuid end, n * 0.0013,
  timestamptz '2025-10-01 00:00Z' + n * interval '70 seconds' - interval '0.8 seconds'
from generate_series(1, 500) n;
-- rightly without a call
insert into old.choices values (501, 'agent 1', null, 'no_candidate_clears_floor', null, null, '2025-10-02 10:00Z');
-- two choices and two calls, alike in everything that is known of them
insert into old.calls
select md5('twin ' || n)::uuid, 'agent 1', 'model 1', 'succeeded', 0.5, '2025-10-03 12:00:00Z', '2025-10-03 12:00:01Z', null, null
from generate_series(1, 2) n;
insert into old.choices
select 600 + n, 'agent 1', 'model 1', 'cheapest', null, 0.5, '2025-10-03 12:00:00Z' from generate_series(1, 2) n;
-- the same model, the same second, and another price
insert into old.calls values (md5('dear')::uuid, 'agent 2', 'model 2', 'succeeded', 0.31, '2025-10-03 13:00Z', '2025-10-03 13:00Z', null, null);
insert into old.choices values (603, 'agent 2', 'model 2', 'cheapest', null, 0.3, '2025-10-03 13:00Z');
-- never completed
insert into old.calls values
  (md5('stuck 1')::uuid, 'agent 3', 'model 0', 'routed', null, '2025-10-04 09:00Z', null, null, null),
  (md5('stuck 2')::uuid, 'agent 4', 'model 0', 'routed', null, '2025-10-14 21:00Z', null, null, null);
commit;
