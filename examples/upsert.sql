-- Upserts into a table of your own: duplicates, precedence, refusals, sums, a large load.
-- Run it in a scratch database as the schema's owner: psql -X -f examples/upsert.sql
-- The clock is set by hand and everything is rolled back, so that it prints the same each time.
\pset pager off
\set ON_ERROR_STOP on
begin;
select routeledger.set_clock('2026-11-20 09:30:00+00') as clock;
create table quotes (
  symbol text,
  venue text,
  n integer,
  price numeric(10,2) check (price >= 0),
  seen_at timestamptz,
  primary key (symbol, venue)
);

-- Two rows of one key in one call: the one with the higher n stays, whatever the order.
select received, collapsed, inserted, updated, unchanged, refused
from routeledger.upsert('quotes', '[
  {"symbol": "A", "venue": "X", "n": 5, "price": 1.05, "seen_at": "2026-11-20T09:00:00Z"},
  {"symbol": "A", "venue": "X", "n": 12, "price": 1.12, "seen_at": "2026-11-20T09:05:00Z"},
  {"symbol": "B", "venue": "X", "n": 3, "price": 7.30, "seen_at": "2026-11-20T09:10:00Z"}]',
  p_precedence => 'greatest n');

-- An older row that arrives late changes nothing; a row like the stored one is not written again.
select received, collapsed, inserted, updated, unchanged, refused
from routeledger.upsert('quotes', '[
  {"symbol": "A", "venue": "X", "n": 7, "price": 1.07, "seen_at": "2026-11-20T09:02:00Z"},
  {"symbol": "B", "venue": "X", "n": 3, "price": 7.30, "seen_at": "2026-11-20T09:10:00Z"}]',
  p_precedence => 'greatest n');

-- A bad row is refused with its reason, and spoils no other.
select u.inserted, u.refused, r.ord, r.code, r.message, coalesce(r.detail ->> 'constraint', r.detail ->> 'reason') as what
from routeledger.upsert('quotes', '[
  {"symbol": "C", "venue": "X", "n": 1, "price": 2},
  {"symbol": "D", "venue": "X", "n": 1, "price": -1},
  {"symbol": "E", "venue": "X", "n": "many", "price": 1},
  {"symbol": "F", "venue": null, "n": 1, "price": 1}]') u
cross join jsonb_to_recordset(u.refusals) r (ord bigint, code text, message text, detail jsonb)
order by r.ord;

select symbol, venue, n, price from quotes order by symbol, venue;

-- What would decide: the unique index, its key, the columns written.
select unique_index, key, columns from routeledger.plan_upsert('quotes', '{symbol,venue,price}');

-- Deltas add up; the batch id makes a repetition harmless.
create table hits (page text primary key, hits bigint);
select inserted, updated, unchanged
from routeledger.upsert('hits', '[{"page": "/", "hits": 2}, {"page": "/", "hits": 3}]', p_precedence => 'sum hits', p_batch_id => 'worker-7/1');
select inserted, updated, unchanged
from routeledger.upsert('hits', '[{"page": "/", "hits": 2}, {"page": "/", "hits": 3}]', p_precedence => 'sum hits', p_batch_id => 'worker-7/1');
table hits;

-- A large load: COPY into a table of the same types, then one call.
create temporary table loaded on commit drop as select symbol, venue, n, price from quotes with no data;
copy loaded from stdin (format csv);
A,X,13,1.13
G,Y,1,4.00
G,Y,2,4.10
\.
select received, collapsed, inserted, updated, unchanged, refused
from routeledger.upsert_from('quotes', 'loaded', p_precedence => 'greatest n');

-- How often several rows of one key came: a sign of a key that is not what its makers believe.
select target, calls, calls_with_duplicates, received, collapsed, refused from routeledger.upsert_activity order by target;

rollback;
select routeledger.set_clock(null) is not null as clock_is_real_again;
