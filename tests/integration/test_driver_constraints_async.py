"""Constraints and repairs through the client: its own transactions, and those of the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from psycopg import AsyncConnection

from routeledger import AsyncLedger, errors
from tests.conftest import Database

TABLES = """
create schema app;
create table app.t (
  id integer primary key,
  a text,
  n integer not null,
  constraint n_is_small check (n < 10)
);
insert into app.t select n, 'key ' || n % 4, n % 10 from generate_series(1, 40) n;
"""
DEFINITION = """
select pg_get_constraintdef(oid) from pg_constraint
where conrelid = 'app.t'::regclass and conname = %s
"""
SOON = timedelta(milliseconds=50)


@pytest_asyncio.fixture
async def async_ledger(db: Database) -> AsyncIterator[AsyncLedger]:
    """A client of the owner of everything."""
    db.execute(TABLES)
    async with await AsyncLedger.connect(db.dsn, max_size=4) as ledger:
        yield ledger


async def test_check_in_two_transactions(async_ledger: AsyncLedger, db: Database) -> None:
    made = await async_ledger.ensure_check("app.t", "n_is_small", "n between 0 and 100")
    assert (made.outcome, made.steps) == ("validated", ("replaced", "validated"))
    assert (made.validated, made.next, made.reason) == (True, None, None)
    assert (made.found, made.definition) == ("(n < 10)", "((n >= 0) AND (n <= 100))")
    assert db.value(DEFINITION, ["n_is_small"]) == "CHECK (((n >= 0) AND (n <= 100)))"
    again = await async_ledger.ensure_check("app.t", "n_is_small", "n >= 0 and n<=100")
    assert (again.outcome, again.steps) == ("unchanged", ("unchanged",))


async def test_one_step_on_a_connection_of_the_caller(
    async_ledger: AsyncLedger, db: Database
) -> None:
    async with await AsyncConnection.connect(db.dsn) as conn:
        first = await async_ledger.ensure_check("app.t", "n_is_small", "n < 20", conn=conn)
        assert (first.outcome, first.validated, first.steps) == ("replaced", False, ("replaced",))
        assert first.next is not None
        assert first.next.startswith("Commit, then ")
        await conn.commit()
        second = await async_ledger.ensure_check("app.t", "n_is_small", "n < 20", conn=conn)
        assert (second.outcome, second.next) == ("validated", None)
        await conn.rollback()
    assert db.value(DEFINITION, ["n_is_small"]) == "CHECK ((n < 20)) NOT VALID"


async def test_dry_run_and_refusals(async_ledger: AsyncLedger, db: Database) -> None:
    before = db.value(DEFINITION, ["n_is_small"])
    would = await async_ledger.ensure_check("app.t", "n_is_small", "n < 20", dry_run=True)
    assert (would.outcome, would.detail["dry_run"]) == ("replaced", True)
    refused = await async_ledger.ensure_check("app.t", "n_is_small", "n < 5")
    assert (refused.outcome, refused.reason, refused.violations) == ("refused", "violations", 20)
    with pytest.raises(errors.ConstraintRefused):
        await async_ledger.ensure_check("app.t", "n_is_small", "n < 5", strict=True)
    with pytest.raises(errors.UnsuitablePredicate):
        await async_ledger.ensure_check("app.t", "n_is_small", "n < 5); drop table app.t; --")
    with pytest.raises(errors.LedgerError) as raised:
        await async_ledger.ensure_check("app.gone", "c", "true")
    assert raised.value.sqlstate == "42P01"
    assert db.value(DEFINITION, ["n_is_small"]) == before


async def test_a_lock_that_cannot_be_had(async_ledger: AsyncLedger, db: Database) -> None:
    async with (
        await AsyncConnection.connect(db.dsn) as reader,
        await AsyncConnection.connect(db.dsn, autocommit=True) as conn,
    ):
        await reader.execute("select from app.t")
        with pytest.raises(errors.LedgerBusy) as raised:
            await async_ledger.ensure_check(
                "app.t", "n_is_small", "n < 20", lock_timeout=SOON, attempts=2, conn=conn
            )
        assert raised.value.sqlstate == "55P03"
        assert raised.value.detail["blockers"][0]["pid"] == reader.info.backend_pid
        assert raised.value.hint


async def test_not_null(async_ledger: AsyncLedger, db: Database) -> None:
    made = await async_ledger.ensure_not_null("app.t", "a", name="a_known")
    assert (made.validated, made.next) == (True, None)
    assert db.value(
        "select attnotnull from pg_attribute where attrelid = 'app.t'::regclass and attname = 'a'"
    )
    assert (await async_ledger.ensure_not_null("app.t", "a", name="a_known")).steps == (
        "unchanged",
    )


async def test_unique_then_undone(async_ledger: AsyncLedger, db: Database) -> None:
    before = db.execute("select t::text from app.t t order by 1")
    plan = await async_ledger.ensure_unique(
        "app.t", "t_key", ["a"], keep="greatest n", dry_run=True
    )
    assert (plan.outcome, plan.detail["duplicates"]) == ("created", 36)
    made = await async_ledger.ensure_unique(
        "app.t", "t_key", ["a"], keep="greatest n", form="constraint", reason="twice"
    )
    assert (made.steps[0], made.next, made.validated) == ("created", None, True)
    assert db.value(DEFINITION, ["t_key"]) == "UNIQUE (a)"
    (id_,) = [row[0] for row in db.execute("select id from routeledger.repair_history")]
    shown = await async_ledger.show_repair(id_)
    assert sum(row.what == "removed" for row in shown) == 36
    assert len(await async_ledger.show_repair(id_, limit=5)) == 5
    dry = await async_ledger.undo_repair(id_, dry_run=True)
    assert (dry.repair_id, dry.restored) == (None, 36)
    undone = await async_ledger.undo_repair(id_, reason="a mistake")
    assert (undone.restored, undone.conflicts) == (36, [])
    assert db.execute("select t::text from app.t t order by 1") == before
    with pytest.raises(errors.AlreadyUndone):
        await async_ledger.undo_repair(id_)
    with pytest.raises(errors.RepairNotFound):
        await async_ledger.undo_repair(99)


async def test_undo_of_a_constraint(async_ledger: AsyncLedger, db: Database) -> None:
    before = db.value(DEFINITION, ["n_is_small"])
    await async_ledger.ensure_check("app.t", "n_is_small", "n < 20", label="release 7")
    undone = await async_ledger.undo_constraint("app.t", "n_is_small", label="release 7")
    assert undone.next is None
    assert db.value(DEFINITION, ["n_is_small"]) == before
    with pytest.raises(errors.ChangeNotFound):
        await async_ledger.undo_constraint("app.t", "n_is_small", label="release 8")


async def test_declared_planned_and_applied(async_ledger: AsyncLedger, db: Database) -> None:
    declared = {"kind": "check", "predicate": "n < 20", "options": {"if_violated": "refuse"}}
    assert await async_ledger.declare_constraint("app.t", "n_is_small", **declared)
    assert not await async_ledger.declare_constraint("app.t", "n_is_small", **declared)
    (state,) = await async_ledger.constraint_states("app.t")
    assert (state.name, state.kind, state.state, state.origin) == (
        "n_is_small",
        "check",
        "different",
        "user",
    )
    (planned,) = await async_ledger.plan_constraints("app.t", "n_is_small")
    assert (planned.target, planned.outcome) == ("app.t", "replaced")
    (applied,) = await async_ledger.apply_constraints("app.t")
    assert (applied["name"], applied["validated"], applied["next"]) == ("n_is_small", True, None)
    (state,) = await async_ledger.constraint_states("app.t")
    assert state.state == "unchanged"
    assert await async_ledger.undeclare_constraint("app.t", "n_is_small")
    assert not await async_ledger.undeclare_constraint("app.t", "n_is_small")
    assert await async_ledger.constraint_states("app.t") == []
    assert db.value(DEFINITION, ["n_is_small"]) == "CHECK ((n < 20))"


async def test_apply_commits_so_it_needs_a_connection_that_does(
    async_ledger: AsyncLedger, db: Database
) -> None:
    await async_ledger.declare_constraint("app.t", "n_is_small", "check", predicate="n < 20")
    async with await AsyncConnection.connect(db.dsn) as conn:
        (applied,) = await async_ledger.apply_constraints("app.t", conn=conn)
        assert applied["validated"] is True
        assert not conn.autocommit
        await conn.execute("select 1")
        with pytest.raises(errors.LedgerError):
            await async_ledger.apply_constraints("app.t", conn=conn)


async def test_orphans(async_ledger: AsyncLedger, db: Database) -> None:
    assert await async_ledger.repair_orphans(stuck_after=timedelta(days=1)) == []
    db.execute(
        "create table app.i (id integer primary key, agent_id text, model_slug text,"
        " at timestamp with time zone, cost_usd numeric, status text);"
        "create table app.o (id integer primary key, agent_id text, model_slug text,"
        " at timestamp with time zone, cost_usd numeric, inference_id integer, outcome_status text);"
        "insert into app.i values (1, 'a', 'm', '2026-01-01 00:00:00Z', 1, 'succeeded');"
        "insert into app.o values (2, 'a', 'm', '2026-01-01 00:00:02Z', 1, null, 'succeeded')"
    )
    with pytest.raises(errors.NoSuchColumn):
        await async_ledger.repair_orphans_in("app.o", "app.i")
    columns = {"outcome": {"at": "at", "tenant": None}, "inference": {"at": "at"}}
    found = await async_ledger.repair_orphans_in("app.o", "app.i", columns=columns)
    assert [(case.action, case.outcome, case.inference) for case in found] == [("link", "2", "1")]
    assert found[0].repair_id is None
    near = await async_ledger.repair_orphans_in(
        "app.o", "app.i", columns=columns, window=timedelta(seconds=1)
    )
    assert [case.action for case in near] == ["leave"]
    done = await async_ledger.repair_orphans_in("app.o", "app.i", columns=columns, dry_run=False)
    assert db.value("select inference_id from app.o") == 1
    assert done[0].repair_id is not None
    undone = await async_ledger.undo_repair(done[0].repair_id)
    assert undone.changed == 1
    assert db.value("select inference_id from app.o") is None
