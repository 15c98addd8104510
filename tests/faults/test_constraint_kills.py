"""Clients and backends that die at each step of each way to make, check and undo a constraint.

A client is killed with SIGKILL, as the kernel would; its backend may still go on to the end of its
statement. A backend is terminated. Each time somebody holds what the step needs, and the victim is seen
to wait for it. Then the same is run again by somebody else, and ends in what is declared, with every row
there or in a repair.
"""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from tests.concurrency.test_constraints import (
    ROWS,
    Declared,
    check,
    contents,
    declare,
    fingerprint,
    make_table,
    not_null,
    removed_rows,
    transaction,
    unique,
    until,
)
from tests.conftest import Database

pytestmark = pytest.mark.faults

DEATHS = ("client", "backend")


class Victim:
    """psql with a statement that is under way, in a process of its own."""

    def __init__(self, db: Database, *statements: str) -> None:
        self.name = f"victim {uuid.uuid4()}"
        binaries = db.server.binaries
        self.process = subprocess.Popen(
            binaries.command("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", db.dsn),
            env={**binaries.env(), "PGAPPNAME": self.name},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{statement};\n" for statement in statements))
        self.process.stdin.flush()
        self.look = db.connect()

    def state(self) -> tuple[Any, ...] | None:
        return self.look.execute(
            """select pid, state, wait_event_type, pg_blocking_pids(pid), query
               from pg_stat_activity where application_name = %s""",
            [self.name],
        ).fetchone()

    def reaches(self, condition: Callable[[tuple[Any, ...]], bool]) -> None:
        """Returns once its backend is where it is wanted."""

        def there() -> bool:
            if self.process.poll() is not None:
                assert self.process.stdout is not None
                pytest.fail(f"it has ended: {self.process.stdout.read()}")
            found = self.state()
            return found is not None and condition(found)

        until(there)

    def dies(self, death: str) -> None:
        if death == "client":
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
        else:
            found = self.state()
            assert found is not None
            self.look.execute("select pg_terminate_backend(%s, 30000)", [found[0]])

    def is_gone(self) -> None:
        """Its backend has ended, whatever it did last."""
        until(lambda: self.state() is None)
        self.process.kill()
        self.process.communicate()
        self.look.close()


# -- what holds a step up ---------------------------------------------------------------------

GATE = """
create function gate(integer) returns boolean language plpgsql immutable as $$
begin
  perform pg_advisory_xact_lock_shared(4711);
  return true;
end
$$;
create function gated(value integer) returns integer language plpgsql immutable as $$
begin
  perform pg_advisory_xact_lock_shared(4711);
  return value;
end
$$;
"""
HOLDS = {
    "another operator": "select routeledger._serialize('things', '{name}')",
    "a reader": "select count(*) from things",
    "a writer": "insert into things values (9999, 9999, 1, 'writer')",
    # of those that are to go
    "a row": "select from things where id = 0 for update",
    "a vacuum": "lock table things in share update exclusive mode",
    # in the middle of the table
    "a scan": "select pg_advisory_xact_lock(4711)",
}


@dataclass(frozen=True)
class Moment:
    """A step of a way: the outcomes of those before, which are committed, and what holds this one up.

    None: nothing does; it is done, and not committed. Each k is there so many `times`.
    """

    way: Declared
    done: tuple[str, ...]
    hold: str | None
    times: int = 1
    setup: Declared | None = None


CHECK = check("n > 0")
OTHER = check("n < 100")
GATED = check("gate(n)")
ATTACHED = unique(form="constraint")
HELPED = ("created", "pending")  # NOT NULL before 18, whose last step is to set it
MOMENTS = {
    "check: another operator": Moment(CHECK, (), "another operator"),
    "check: counts": Moment(GATED, (), "a scan"),
    "check: the table": Moment(CHECK, (), "a reader"),
    "check: not committed": Moment(CHECK, (), None),
    "check, swap: the table": Moment(CHECK, (), "a reader", setup=OTHER),
    "check, swap: not committed": Moment(CHECK, (), None, setup=OTHER),
    "check, validate: another operator": Moment(CHECK, ("created",), "another operator"),
    "check, validate: the table": Moment(CHECK, ("created",), "a vacuum"),
    "check, validate: scans": Moment(GATED, ("created",), "a scan"),
    "check, validate: not committed": Moment(CHECK, ("created",), None),
    "not null: another operator": Moment(not_null(), (), "another operator"),
    "not null: the table": Moment(not_null(), (), "a reader"),
    "not null: not committed": Moment(not_null(), (), None),
    "not null, validate: the table": Moment(not_null(), ("created",), "a vacuum"),
    "not null, validate: not committed": Moment(not_null(), ("created",), None),
    "not null, set: the table": Moment(not_null(), HELPED, "a reader"),
    "not null, set: not committed": Moment(not_null(), HELPED, None),
    "unique: another operator": Moment(unique(), (), "another operator", 3),
    "unique: the table": Moment(unique(), (), "a writer", 3),
    "unique: reads": Moment(unique(columns=["gated(k)"]), (), "a scan", 3),
    "unique: a row": Moment(unique(), (), "a row", 3),
    "unique: not committed": Moment(unique(), (), None, 3),
    "unique, attach: the table": Moment(ATTACHED, ("created",), "a reader", 3),
    "unique, attach: not committed": Moment(ATTACHED, ("created",), None, 3),
}


def holding(stack: ExitStack, db: Database, hold: str, name: str) -> psycopg.Connection[Any]:
    """A session that holds that, until the stack is left."""
    return stack.enter_context(transaction(db, HOLDS[hold].format(name=name)))


def kill(db: Database, statement: str, hold: str | None, name: str, death: str) -> None:
    """Runs the statement until something holds it up, or it is done and not committed: kills it there."""
    with ExitStack() as held:
        if hold is None:
            victim = Victim(db, "begin", statement)
            victim.reaches(lambda at: at[1] == "idle in transaction" and "routeledger" in at[4])
        else:
            pid = holding(held, db, hold, name).info.backend_pid
            victim = Victim(db, statement)
            victim.reaches(lambda at: at[2] == "Lock" and pid in at[3])
        victim.dies(death)
    victim.is_gone()


def nothing_is_left(db: Database, names: set[str]) -> None:
    """No lock, no open repair, and on the table no index and no constraint but these."""
    assert db.value("select count(*) from pg_locks where locktype = 'advisory'") == 0
    assert db.value("select count(*) from routeledger.repairs where state = 'open'") == 0
    found = db.execute(
        """select conname, convalidated from pg_constraint
           where conrelid = 'things'::regclass and contype <> 'n'
           union
           select c.relname, i.indisvalid and i.indisready and i.indislive
           from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = 'things'::regclass"""
    )
    assert set(found) == {(name, True) for name in {"things_pkey", *names}}


def nothing_is_lost(db: Database, stored: list[str]) -> None:
    """Every row is there, or among those that a repair that stands has taken away."""
    repairs = db.execute(
        "select id from routeledger.repairs where state = 'done' and kind = 'collapse'"
    )
    removed = [row for (repair,) in repairs for row in removed_rows(db, repair)]
    assert sorted(contents(db) + removed) == stored


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("title", MOMENTS)
def test_killed_and_run_again(db: Database, title: str, death: str) -> None:
    moment = MOMENTS[title]
    if moment.done == HELPED and db.server.major >= 18:
        # the last step is to validate, which readers pass
        moment = replace(moment, done=("created",), hold=moment.hold and "a vacuum")
    db.execute(GATE)
    make_table(db, times=moment.times)
    stored = contents(db)
    name = str(moment.way.arguments["name"])
    with db.connect() as conn:
        if moment.setup is not None:
            moment.setup.settle(conn)
        assert tuple(moment.way.run(conn)["outcome"] for _ in moment.done) == moment.done
        before = fingerprint(db)
        patient = moment.way.but(lock_timeout="1 minute", attempts=1)
        kill(db, patient.text(conn).decode(), moment.hold, name, death)
        if death == "backend" or moment.hold is None:
            assert fingerprint(db) == before
        moment.way.settle(conn)
        assert moment.way.run(conn)["outcome"] == "unchanged"
    nothing_is_left(db, set() if "not null" in title else {name})
    nothing_is_lost(db, stored)
    if "not null" in title:
        assert db.value(
            "select attnotnull from pg_attribute where attrelid = 'things'::regclass and attname = 'n'"
        )


# -- the procedure that applies what is declared ----------------------------------------------


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("hold", ["a writer", "a row", "a reader", "a vacuum", None])
def test_apply_killed_and_run_again(db: Database, hold: str | None, death: str) -> None:
    """What it has committed stays; the next who applies goes on."""
    make_table(db, times=3)
    stored = contents(db)
    declare(db)
    apply = "call routeledger.apply_constraints('things')"
    with ExitStack() as held:
        if hold is None:
            # it waits for another one who applies, who is killed; then it is the one
            pid = holding(held, db, "a reader", "").info.backend_pid
            first = Victim(db, apply)
            first.reaches(lambda at: at[2] == "Lock" and pid in at[3])
            second = Victim(db, apply)
            second.reaches(lambda at: at[2] == "Timeout")
            first.dies("backend")
            first.is_gone()
            second.reaches(lambda at: at[2] == "Lock" and pid in at[3])
            second.dies(death)
        else:
            pid = holding(held, db, hold, "").info.backend_pid
            second = Victim(db, apply)
            second.reaches(lambda at: at[2] == "Lock" and pid in at[3])
            second.dies(death)
    second.is_gone()
    with db.connect() as conn:
        conn.execute("set client_min_messages = error")
        conn.execute(apply)
        assert (
            conn.execute(
                "select name from routeledger.constraint_drift where target = 'public.things'"
            ).fetchall()
            == []
        )
    nothing_is_left(db, {"things_k_key", "things_n_check"})
    nothing_is_lost(db, stored)
    assert db.execute("select k, n from things order by k") == [(k, 3) for k in range(ROWS)]


# -- undo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("hold", ["a writer", "a reader", None])
def test_undo_of_a_repair_killed_and_run_again(db: Database, hold: str | None, death: str) -> None:
    make_table(db, times=3)
    stored = contents(db)
    with db.connect() as conn:
        repair = unique().run(conn)["detail"]["repair_id"]
        collapsed, before = contents(db), fingerprint(db)
        undo = Declared("undo_repair", {"id": repair})
        kill(db, undo.text(conn).decode(), hold, "", death)
        if death == "backend" or hold is None:
            assert (contents(db), fingerprint(db)) == (collapsed, before)
        state = db.value("select state from routeledger.repairs where id = %s", [repair])
        if state == "undone":
            assert hold is not None
            assert death == "client"  # its backend went on to the end
            with pytest.raises(psycopg.Error) as refused:
                undo.run(conn)
            assert refused.value.sqlstate == "RL312"
        else:
            undo.run(conn)
    assert contents(db) == stored
    nothing_is_left(db, set())


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("hold", ["another operator", "a reader", None])
def test_undo_of_a_constraint_killed_and_run_again(
    db: Database, hold: str | None, death: str
) -> None:
    make_table(db)
    stored = contents(db)
    undo = Declared(
        "undo_constraint", {"table": "things", "name": "things_n_check", "label": "release 7"}
    )
    with db.connect() as conn:
        OTHER.settle(conn)
        CHECK.but(label="release 7").settle(conn)
        before = fingerprint(db)
        kill(db, undo.text(conn).decode(), hold, "things_n_check", death)
        if death == "backend" or hold is None:
            assert fingerprint(db) == before
        undo.settle(conn)
        OTHER.settle(conn)
    assert (
        db.value(
            "select pg_get_constraintdef(oid) from pg_constraint where conname = 'things_n_check'"
        )
        == "CHECK ((n < 100))"
    )
    nothing_is_left(db, {"things_n_check"})
    assert contents(db) == stored
