"""Clients and backends that die at each step of each way to make, check and undo a constraint.

A client is killed with SIGKILL, as the kernel would; its backend may still go on to the end of its statement.
A backend is terminated. Each time somebody holds what the step needs, and the victim is seen to wait for it. Then
the same is run again by somebody else, and ends in what is declared, with every row there or in a repair.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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

VICTIM = "the one that is killed"
DEATHS = ("client", "backend")


class Victim:
    """psql with a statement that is under way, in a process of its own."""

    def __init__(self, db: Database, *statements: str) -> None:
        binaries = db.server.binaries
        self.process = subprocess.Popen(
            binaries.command("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", db.dsn),
            env={**binaries.env(), "PGAPPNAME": VICTIM},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{statement};\n" for statement in statements))
        self.process.stdin.flush()
        self.look = db.connect()

    def state(self) -> tuple[Any, ...] | None:
        return self.look.execute(
            """select pid, state, wait_event_type, wait_event, pg_blocking_pids(pid)
               from pg_stat_activity where application_name = %s and datname = current_database()""",
            [VICTIM],
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
    # a change that somebody else has not yet committed
    "another operator": "select pg_advisory_xact_lock(routeledger._constraint_key('things', %(name)s))",
    # a reader: in the way of a change
    "a reader": "select count(*) from things",
    # a writer: in the way of whatever keeps writers out
    "a writer": "insert into things values (9999, 9999, 1, 'writer')",
    # one of the rows that are to go
    "a row": "select from things where id = 0 for update",
    # somebody else who validates or analyses
    "a vacuum": "lock table things in share update exclusive mode",
    # in the middle of a scan of the table
    "a scan": "select pg_advisory_xact_lock(4711)",
}


@dataclass(frozen=True)
class Moment:
    """A step of a way, and what holds it up."""

    way: Declared
    # outcomes of the steps that are done and committed before
    done: list[str]
    # what holds it up; None: it has done the step and has not committed
    hold: str | None
    times: int = 1
    # None, when no constraint is to be there in the end (an undo)
    end: str | None = "unchanged"
    setup: list[Declared] = field(default_factory=list)


CHECK = check("n > 0")
GATED = check("gate(n)")
BACK = {"table": "things", "label": "release 7"}
MOMENTS = {
    "check, first step: waits for another operator": Moment(CHECK, [], "another operator"),
    "check, first step: counts": Moment(GATED, [], "a scan"),
    "check, first step: waits for the table": Moment(CHECK, [], "a reader"),
    "check, first step: not committed": Moment(CHECK, [], None),
    "check, swap: waits for the table": Moment(CHECK, [], "a reader", setup=[check("n < 100")]),
    "check, swap: not committed": Moment(CHECK, [], None, setup=[check("n < 100")]),
    "check, second step: waits for another operator": Moment(CHECK, ["created"], "another operator"),
    "check, second step: waits for the table": Moment(CHECK, ["created"], "a vacuum"),
    "check, second step: scans": Moment(GATED, ["created"], "a scan"),
    "check, second step: not committed": Moment(CHECK, ["created"], None),
    "not null, first step: waits for another operator": Moment(not_null(), [], "another operator"),
    "not null, first step: waits for the table": Moment(not_null(), [], "a reader"),
    "not null, first step: not committed": Moment(not_null(), [], None),
    "not null, second step: waits for the table": Moment(not_null(), ["created"], "a vacuum"),
    "not null, second step: not committed": Moment(not_null(), ["created"], None),
    "not null, third step: waits for the table": Moment(not_null(), ["created", "pending"], "a reader"),
    "not null, third step: not committed": Moment(not_null(), ["created", "pending"], None),
    "unique: waits for another operator": Moment(unique(), [], "another operator", 3),
    "unique: waits for the table": Moment(unique(), [], "a writer", 3),
    "unique: waits for a row": Moment(unique(), [], "a row", 3),
    "unique: builds the index": Moment(unique(columns=["gated(k)"]), [], "a scan", 3),
    "unique: not committed": Moment(unique(), [], None, 3),
    "unique, attach: waits for the table": Moment(unique(form="constraint"), ["created"], "a reader", 3),
    "unique, attach: not committed": Moment(unique(form="constraint"), ["created"], None, 3),
}  # fmt: skip


def literal(one: Declared) -> str:
    """The call with its arguments written into it."""
    with psycopg.connect(os.environ.get("ROUTELEDGER_NO_SUCH", "")) if False else _mogrify() as mogrify:
        return mogrify(one)


@contextmanager
def _mogrify() -> Iterator[Callable[[Declared], str]]:
    raise NotImplementedError
    yield


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again(db: Database, moment: str, death: str) -> None:
    ...
