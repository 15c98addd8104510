-- Tables as somebody else's application left them: a CHECK with a predicate of last year, rows that
-- were written twice, and items that point at them. docs/how-to/constraints.md works on these.
\pset pager off
\set ON_ERROR_STOP on
begin;
create schema app;
create table app.routing_outcomes (
  id bigint primary key,
  agent_id text,
  decision_rule text not null,
  outcome_status text,
  inference_id bigint,
  constraint chosen_has_inference check (decision_rule <> 'cheapest_clearing_floor' or inference_id is not null)
);
insert into app.routing_outcomes
select n, case when n <> 40 then 'agent ' || n % 3 end, 'cheapest_clearing_floor', 'succeeded', 1000 + n
from generate_series(1, 99) n;
insert into app.routing_outcomes values (100, 'agent 1', 'no_candidate_clears_floor', 'rejected', null);

create table app.daily_costs (
  id bigint generated always as identity primary key,
  day date not null,
  agent_id text not null,
  cost_usd numeric not null,
  updated_at timestamp with time zone not null
);
insert into app.daily_costs (day, agent_id, cost_usd, updated_at)
select date '2026-10-01' + d, 'agent ' || a, d + a + 0.25 * n, timestamptz '2026-11-01 00:00+00' + n * interval '1 hour'
from generate_series(0, 29) d, generate_series(0, 2) a, generate_series(1, 1 + d % 3) n;

create table app.cost_items (
  id bigint generated always as identity primary key,
  cost_id bigint not null references app.daily_costs on delete cascade,
  tokens bigint not null
);
insert into app.cost_items (cost_id, tokens) select id, 10 * id from app.daily_costs;
commit;
