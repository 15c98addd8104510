"""27 orphans among 50,000 decisions, found, linked, and put back: in legacy tables and in the ledger.

Something else wrote the ledger for a while: 27 outcomes chose a model and were never linked to
their inference, two inferences were never completed (11 days and 23 hours ago). Beside them stand
two outcomes that rightly have none, and decoys: same agent, same model, same second, equal costs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.conftest import Database

LEGACY = """
create schema legacy;
create table legacy.llm_calls (
  call_id uuid primary key, bot text, model text not null, state text not null, usd numeric(12, 6),
  called_at timestamptz not null, finished_at timestamptz, error_kind text, error_text text, raw json);
create table legacy.choices (
  id bigint primary key, agent_id text, chosen_model_slug text, decision_rule text not null,
  inference_id uuid references legacy.llm_calls, cost_usd double precision,
  created_at timestamptz not null, note json, touched integer not null default 0);

insert into legacy.llm_calls
select md5('call' || i)::uuid, 'agent-' || i % 40, 'model-' || i % 9, 'succeeded', i % 977 * 0.000013,
  timestamptz '2026-10-01 00:00Z' + i * interval '61.7 seconds',
  timestamptz '2026-10-01 00:00Z' + i * interval '61.7 seconds' + interval '2.2 seconds',
  null, null, format('{"i": %s,  "i": %s}', i, i)::json
from generate_series(1, 50000) i;
insert into legacy.choices
select i, 'agent-' || i % 40, 'model-' || i % 9, 'cheapest_clearing_floor', md5('call' || i)::uuid,
  i % 977 * 0.000013, timestamptz '2026-10-01 00:00Z' + i * interval '61.7 seconds' - interval '0.9 seconds',
  format('{"n":%s }', i)::json, 0
from generate_series(1, 49992) i;

create table legacy.truth as
select id, inference_id from legacy.choices where id % 1851 = 17 order by id limit 27;
update legacy.choices set inference_id = null where id in (select id from legacy.truth);

-- rightly without one
insert into legacy.choices values
  (60001, 'agent-1', null, 'no_candidate_clears_floor', null, null, '2026-10-02 10:00Z', '{}', 0),
  (60002, 'agent-2', 'model-2', 'no_candidate_clears_floor', null, null, '2026-10-02 11:00Z', '{}', 0);

-- decoys: two decisions and two calls in the same second at equal costs
insert into legacy.llm_calls values
  (md5('twin a')::uuid, 'agent-7', 'model-3', 'succeeded', 0.5, '2026-11-15 12:00:00.1Z', null, null,
    null, null),
  (md5('twin b')::uuid, 'agent-7', 'model-3', 'succeeded', 0.5, '2026-11-15 12:00:00.2Z', null, null,
    null, null),
-- one decision, two calls that may be it
  (md5('either')::uuid, 'agent-8', 'model-3', 'succeeded', 0.25, '2026-11-15 13:00:00Z', null, null,
    null, null),
  (md5('or')::uuid, 'agent-8', 'model-3', 'succeeded', null, '2026-11-15 13:00:02Z', null, null, null, null),
-- two decisions, one call
  (md5('shared')::uuid, 'agent-9', 'model-3', 'succeeded', 0.75, '2026-11-15 14:00:00Z', null, null,
    null, null),
-- everything but the cost; another agent; another model; too late
  (md5('dear')::uuid, 'agent-10', 'model-3', 'succeeded', 0.31, '2026-11-15 15:00:00Z', null, null,
    null, null),
  (md5('stranger')::uuid, 'agent-11', 'model-3', 'succeeded', 0.1, '2026-11-15 16:00:00Z', null, null,
    null, null),
  (md5('other')::uuid, 'agent-12', 'model-4', 'succeeded', 0.1, '2026-11-15 17:00:00Z', null, null,
    null, null),
  (md5('late')::uuid, 'agent-13', 'model-3', 'succeeded', 0.1, '2026-11-15 18:00:03.1Z', null, null,
    null, null),
-- never completed
  (md5('stuck 11 days')::uuid, 'agent-3', 'model-1', 'routed', null, now() - interval '11 days', null,
    null, null, '{"a":1}'),
  (md5('stuck 23 hours')::uuid, 'agent-4', 'model-1', 'routed', null, now() - interval '23 hours', null,
    null, null, null),
  (md5('under way')::uuid, 'agent-4', 'model-1', 'routed', null, now() - interval '2 minutes', null,
    null, null, null);
insert into legacy.choices values
  (70001, 'agent-7', 'model-3', 'cheapest', null, 0.5, '2026-11-15 12:00:00Z', null, 0),
  (70002, 'agent-7', 'model-3', 'cheapest', null, 0.5, '2026-11-15 12:00:00Z', null, 0),
  (70003, 'agent-8', 'model-3', 'cheapest', null, 0.25, '2026-11-15 13:00:01Z', null, 0),
  (70004, 'agent-9', 'model-3', 'cheapest', null, 0.75, '2026-11-15 14:00:00Z', null, 0),
  (70005, 'agent-9', 'model-3', 'cheapest', null, null, '2026-11-15 14:00:01Z', null, 0),
  (70006, 'agent-10', 'model-3', 'cheapest', null, 0.3, '2026-11-15 15:00:00Z', null, 0),
  (70007, 'agent-12', 'model-3', 'cheapest', null, 0.1, '2026-11-15 16:00:00Z', null, 0),
  (70008, 'agent-12', 'model-3', 'cheapest', null, 0.1, '2026-11-15 17:00:00Z', null, 0),
  (70009, 'agent-13', 'model-3', 'cheapest', null, 0.1, '2026-11-15 18:00:00Z', null, 0),
  (70010, 'agent-4', 'model-1', 'cheapest', null, null, now() - interval '2 minutes', null, 0);
analyze legacy.choices;
analyze legacy.llm_calls;
"""
COLUMNS = """{"inference": {"id": "call_id", "agent": "bot", "model": "model", "status": "state",
  "cost": "usd", "at": "called_at", "completed_at": "finished_at", "error_type": "error_kind",
  "error_message": "error_text"}}"""
LEFT = {
    "70001": "several_inferences",
    "70002": "several_inferences",
    "70003": "several_inferences",
    "70004": "several_outcomes",
    "70005": "several_outcomes",
    "70006": "cost_differs",
    "70007": "no_match",
    "70008": "no_match",
    "70009": "no_match",
    "70010": "inference_in_flight",
}
REPAIR = """
select action, outcome, inference, reason, repair_id
from routeledger.repair_orphans_in('legacy.choices', 'legacy.llm_calls', %s::jsonb,
  p_dry_run => %s, p_stuck_after => %s::interval, p_reason => 'the old writer lost its links')
"""


def dump(conn: psycopg.Connection[Any], *queries: str) -> list[str]:
    """What COPY writes of each query."""
    digests = []
    for query in queries:
        digest = hashlib.sha256()
        with conn.cursor() as cursor, cursor.copy(f"copy ({query}) to stdout") as copy:  # type: ignore[arg-type]
            for block in copy:
                digest.update(block)
        digests.append(digest.hexdigest())
    return digests


def keep(conn: psycopg.Connection[Any], *tables: str) -> None:
    """A copy of each row, to be compared by its stored image."""
    for n, table in enumerate(tables):
        conn.execute(f"create table public.kept_{n} as select t as r from {table} t")  # type: ignore[arg-type]


def differing(conn: psycopg.Connection[Any], *tables: str) -> int:
    """Rows that are not stored as they were kept, in both directions."""
    total = 0
    for n, table in enumerate(tables):
        order = "row_number() over (order by {} using operator(pg_catalog.*<)) as k"
        row = conn.execute(
            f"""
            select count(*)
            from (select r, {order.format("r")} from public.kept_{n}) a
            full join (select t as r, {order.format("t")} from {table} t) b using (k)
            where (a.r operator(pg_catalog.*=) b.r) is not true
            """  # type: ignore[arg-type]
        ).fetchone()
        assert row
        total += row[0]
    return total


def test_legacy_tables(db: Database) -> None:
    db.execute(LEGACY)
    tables = ("legacy.choices", "legacy.llm_calls")
    rows = (
        "select * from legacy.choices order by id",
        "select * from legacy.llm_calls order by call_id",
    )
    with db.connect() as conn:
        keep(conn, *tables)
        start = dump(conn, *rows)

        # a dry run says what it would do, and does nothing
        planned = conn.execute(REPAIR, [COLUMNS, True, "12 hours"]).fetchall()
        assert dump(conn, *rows) == start
        assert db.value("select count(*) from routeledger.repairs") == 0
        assert {row[4] for row in planned} == {None}

        done = conn.execute(REPAIR, [COLUMNS, False, "12 hours"]).fetchall()
        assert [row[:4] for row in done] == [row[:4] for row in planned]
        (repair,) = {row[4] for row in done}
        assert Counter(row[0] for row in done) == {"link": 27, "close": 2, "leave": len(LEFT)}

        # 27 of 27, and nothing else
        truth = dict(db.execute("select id::text, inference_id::text from legacy.truth"))
        assert {row[1]: row[2] for row in done if row[0] == "link"} == truth
        assert {row[3] for row in done if row[0] == "link"} == {"only_match"}
        linked = """
            select c.id::text, c.inference_id::text from legacy.choices c join legacy.truth t using (id)
        """
        assert dict(db.execute(linked)) == truth
        assert {row[1]: row[3] for row in done if row[0] == "leave"} == LEFT
        nulls = "select id::text from legacy.choices where inference_id is null"
        assert {row[0] for row in db.execute(nulls)} == {*LEFT, "60001", "60002"}
        assert (
            db.value(
                "select count(*) from legacy.choices c, legacy.llm_calls l where c.inference_id = l.call_id"
            )
            == 49992
        )
        either = next(row[2] for row in done if row[1] == "70003")
        assert sorted(either.split(", ")) == sorted(
            row[0]
            for row in db.execute("select md5(x)::uuid::text from unnest(array['either', 'or']) x")
        )

        # the stuck ones are over, and say why
        closed = db.execute(
            """
            select call_id::text, state, error_kind, error_text, finished_at > now() - interval '1 hour'
            from legacy.llm_calls where error_kind is not null order by called_at
            """
        )
        assert [row[0] for row in closed] == [
            db.value("select md5('stuck 11 days')::uuid::text"),
            db.value("select md5('stuck 23 hours')::uuid::text"),
        ]
        for row in closed:
            assert row[1:3] == ("failed", "abandoned")
            assert row[3].startswith(
                f"closed by repair {repair}: no completion was recorded, routed since 2"
            )
            assert row[4]
        assert db.execute(
            "select state from legacy.llm_calls where call_id = md5('under way')::uuid"
        ) == [("routed",)]

        # the registry says who, why and how much; the images hold each row twice
        entry = db.execute(
            """
            select kind, target, reason, login, state, before_count, after_count, removed, changed, added,
              details ->> 'linked', details ->> 'closed'
            from routeledger.repair_history where id = %s
            """,
            [repair],
        )
        total = db.value("select count(*) from legacy.choices")
        assert entry == [
            (
                "orphans",
                "legacy.choices",
                "the old writer lost its links",
                "postgres",
                "done",
                total,
                total,
                0,
                29,
                0,
                "27",
                "2",
            )
        ]
        shown = conn.execute(
            "select target, what from routeledger.show_repair(%s)", [repair]
        ).fetchall()
        assert Counter(shown) == {
            ("legacy.choices", "before"): 27,
            ("legacy.choices", "after"): 27,
            ("legacy.llm_calls", "before"): 2,
            ("legacy.llm_calls", "after"): 2,
        }

        # nothing is left to do
        again = conn.execute(REPAIR, [COLUMNS, False, "12 hours"]).fetchall()
        assert {row[1]: row[3] for row in again} == LEFT
        assert {row[4] for row in again} == {None}
        repaired = dump(conn, *rows)

        # undone, the dump is what it was, byte for byte; and the undo can be undone
        undo = conn.execute("select * from routeledger.undo_repair(%s)", [repair]).fetchone()
        assert undo is not None
        assert undo[1:] == (0, 0, 29, [])
        assert dump(conn, *rows) == start
        assert differing(conn, *tables) == 0
        with pytest.raises(psycopg.Error) as twice:
            conn.execute("select * from routeledger.undo_repair(%s)", [repair])
        assert twice.value.sqlstate == "RL312"
        conn.execute("select * from routeledger.undo_repair(%s)", [undo[0]])
        assert dump(conn, *rows) == repaired


def test_a_younger_one_is_not_stuck(db: Database) -> None:
    db.execute(LEGACY)
    with db.connect() as conn:
        done = conn.execute(REPAIR, [COLUMNS, False, "7 days"]).fetchall()
        assert [row[3] for row in done if row[0] == "close"] == ["stuck"]
        assert db.execute(
            "select state from legacy.llm_calls where call_id = md5('stuck 23 hours')::uuid"
        ) == [("routed",)]


def test_a_row_that_was_written_since(db: Database) -> None:
    """The undo refuses and says which; an admin may force it, and that is undone as well."""
    db.execute(LEGACY)
    with db.connect() as conn:
        done = conn.execute(REPAIR, [COLUMNS, False, None]).fetchall()
        repair = done[0][4]
        db.execute(
            "update legacy.choices set touched = 1 where id = (select min(id) from legacy.truth)"
        )
        with pytest.raises(psycopg.Error) as refused:
            conn.execute("select * from routeledger.undo_repair(%s)", [repair])
        assert refused.value.sqlstate == "RL310"
        assert '"conflicts": 1' in (refused.value.diag.message_detail or "")
        assert '"reason": "changed"' in (refused.value.diag.message_detail or "")
        rows = "select * from legacy.choices order by id"
        before = dump(conn, rows)
        forced = conn.execute(
            "select * from routeledger.undo_repair(%s, true)", [repair]
        ).fetchone()
        assert forced is not None
        assert forced[3] == 27
        assert (
            db.value(
                """
                select count(*) from legacy.choices c join legacy.truth using (id)
                where c.inference_id is null and touched = 0
                """
            )
            == 27
        )
        conn.execute("select * from routeledger.undo_repair(%s)", [forced[0]])
        assert dump(conn, rows) == before


def test_triggers_see_the_path_of_the_caller(db: Database) -> None:
    """A trigger that names its own tables without their schema, and one that stamps each update."""
    db.execute(LEGACY)
    db.execute(
        """
        create table legacy.log (id bigint);
        create function legacy.logged() returns trigger language plpgsql
        as $$ begin insert into log values (new.id); return new; end $$;
        create trigger logged after update on legacy.choices for each row execute function legacy.logged();
        """
    )
    with db.connect() as conn:
        conn.execute("set search_path = legacy")
        done = conn.execute(REPAIR, [COLUMNS, False, None]).fetchall()
        assert db.value("select count(*) from legacy.log") == 27
        conn.execute("select * from routeledger.undo_repair(%s)", [done[0][4]])
        assert db.value("select count(*) from legacy.log") == 54

        # what is put back and stamped again is not what it was
        done = conn.execute(REPAIR, [COLUMNS, False, None]).fetchall()
        db.execute(
            """
            create function legacy.stamp() returns trigger language plpgsql
            as $$ begin new.touched := new.touched + 1; return new; end $$;
            create trigger stamp before update on legacy.choices for each row execute function legacy.stamp();
            """
        )
        with pytest.raises(psycopg.Error) as refused:
            conn.execute("select * from routeledger.undo_repair(%s)", [done[0][4]])
        assert refused.value.sqlstate == "RL313"
        assert '"stamp"' in (refused.value.diag.message_detail or "")
        assert db.value("select count(*) from legacy.choices where touched > 0") == 0


OWN = """
alter table routeledger.routing_outcomes drop constraint outcome_requires_inference_when_model_chosen;

create function public.own_id(p text) returns uuid language sql
as $$
  select (lpad(to_hex((extract(epoch from date_trunc('hour', now())) * 1000)::bigint), 12, '0')
    || '7' || substr(md5(p), 1, 3) || '8' || substr(md5(p), 4, 15))::uuid
$$;

-- a decision, closed n seconds ago
create function public.decide(p_name text, p_status text, p_model text, p_at timestamptz)
  returns void language sql
as $$
  insert into routeledger.routing_outcomes (tenant_id, id, decision_rule, chosen_model_slug,
    outcome_status, attempt_count,
    event_at, created_at, completed_at, lease_expires_at)
  values ('t', own_id(p_name),
    case when p_model is null then 'no_candidate_clears_floor' else 'cheapest' end, p_model, p_status, 1,
    p_at - interval '5 seconds', p_at - interval '5 seconds', case when p_status is not null then p_at end,
    case when p_status is null then now() + interval '1 hour' end)
$$;
create function public.attempt(p_decision text, p_name text, p_no integer, p_status text, p_model text,
  p_at timestamptz) returns void language sql
as $$
  insert into routeledger.inferences (tenant_id, outcome_id, id, attempt_no, model_slug, status,
    input_tokens, output_tokens, error_type,
    created_at, started_at, completed_at)
  values ('t', own_id(p_decision), own_id(p_name), p_no, p_model, p_status, 1, 1,
    case p_status when 'failed' then 'timeout' end,
    p_at - interval '4 seconds', p_at - interval '4 seconds', case when p_status <> 'routed' then p_at end)
$$;

select public.decide('d' || i, 'succeeded', 'm' || i % 5, now() - i * interval '20 ms')
  from generate_series(1, 50000) i;
select public.attempt('d' || i, 'a' || i, 1, 'succeeded', 'm' || i % 5,
  now() - i * interval '20 ms' + interval '10 ms') from generate_series(1, 50000) i;
update routeledger.routing_outcomes o set inference_id = i.id from routeledger.inferences i
  where i.outcome_id = o.id;
create table public.truth as
select o.id, o.inference_id from routeledger.routing_outcomes o
where o.id in (select public.own_id('d' || i * 73) from generate_series(1, 27) i);
update routeledger.routing_outcomes set inference_id = null where id in (select id from public.truth);

-- without a model; in flight; two attempts that may be it; one that ended otherwise; one of another
-- model; one long before
select public.decide('none ' || i, 'failed', null, now()) from generate_series(1, 2) i;
select public.decide('flight', null, 'm1', now());
select public.attempt('flight', 'flight', 1, 'routed', 'm1', now() - interval '2 days');
select public.decide('two', 'succeeded', 'm1', now());
select public.attempt('two', 'two 1', 1, 'succeeded', 'm1', now());
select public.attempt('two', 'two 2', 2, 'succeeded', 'm1', now());
select public.decide('ended', 'succeeded', 'm1', now());
select public.attempt('ended', 'ended', 1, 'failed', 'm1', now());
select public.decide('model', 'succeeded', 'm1', now());
select public.attempt('model', 'model', 1, 'succeeded', 'm2', now());
select public.decide('early', 'failed', 'm1', now());
select public.attempt('early', 'early', 1, 'failed', 'm1', now() - interval '1 minute');
-- left open by a decision that is over, and by one that is gone
select public.attempt('d1', 'stuck 1', 2, 'routed', 'm1', now() - interval '11 days');
select public.attempt('gone', 'stuck 2', 1, 'routed', 'm1', now() - interval '23 hours');

alter table routeledger.routing_outcomes add constraint outcome_requires_inference_when_model_chosen check (
  outcome_status is null or chosen_model_slug is null or decision_rule_override is not null
    or inference_id is not null) not valid;
"""


def test_the_ledger_itself(db: Database) -> None:
    db.execute(OWN)
    tables = ("routeledger.routing_outcomes", "routeledger.inferences")
    rows = tuple(f"select * from {table} order by id" for table in tables)
    with db.connect() as conn:
        keep(conn, *tables)
        start = dump(conn, *rows)
        done = conn.execute(
            """
            select * from routeledger.repair_orphans(
              p_dry_run => false, p_stuck_after => '12 hours', p_reason => 'import')
            """
        ).fetchall()
        truth = dict(db.execute("select id::text, inference_id::text from public.truth"))
        assert len(truth) == 27
        assert {row[1]: row[2] for row in done if row[0] == "link"} == truth
        names = {
            name: db.value("select public.own_id(%s)::text", [name])
            for name in ("two", "ended", "model", "early", "stuck 1", "stuck 2")
        }
        assert {row[1]: row[3] for row in done if row[0] == "leave"} == {
            names["two"]: "several_inferences",
            names["ended"]: "no_match",
            names["model"]: "no_match",
            names["early"]: "no_match",
        }
        assert {row[2] for row in done if row[0] == "close"} == {names["stuck 1"], names["stuck 2"]}
        linked = """
            select o.id::text, o.inference_id::text
            from routeledger.routing_outcomes o join public.truth t using (id)
        """
        assert dict(db.execute(linked)) == truth
        flight = (
            "select status::text from routeledger.inferences where id = public.own_id('flight')"
        )
        assert db.value(flight) == "routed"
        unlinked = """
            select count(*) from routeledger.routing_outcomes
            where outcome_status is not null and chosen_model_slug is not null and inference_id is null
        """
        assert db.value(unlinked) == 4

        undo = conn.execute("select * from routeledger.undo_repair(%s)", [done[0][4]])
        assert undo.fetchone()[1:] == (0, 0, 29, [])  # type: ignore[index]
        assert dump(conn, *rows) == start
        assert differing(conn, *tables) == 0

        # the constraint that such rows would violate let them come back, and holds again
        undone = "select details -> 'suspended' from routeledger.repairs order by id desc limit 1"
        assert db.value(undone) == [
            {
                "table": "routeledger.routing_outcomes",
                "constraint": "outcome_requires_inference_when_model_chosen",
            }
        ]
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute("select public.decide('later', 'succeeded', 'm1', now())")
