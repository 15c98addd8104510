"""Locks are taken in one order: the outcome, then its inferences; of several decisions, by (tenant, id).

A session that waits is looked at from outside: what it waits for, and what it does not hold yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.books import Call, call, check_sound, uuid7
from tests.conftest import Database

TENANT = "t"


class Patient:
    """A call in a session of its own that is expected to wait."""

    def __init__(self, db: Database, one: Call, before: str = "") -> None:
        self._conn = db.connect()
        self._conn.execute("set deadlock_timeout = '100ms'")
        if before:
            self._conn.execute(before)
        self.pid = self._conn.info.backend_pid
        self.rows: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self._one = one
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.rows = self._one.rows(self._conn)
        except BaseException as error:  # noqa: BLE001 - raised by result()
            self.error = error

    def waits_for(self, conn: psycopg.Connection[Any], pid: int) -> None:
        """Returns once it waits for a lock of that session."""
        deadline = time.monotonic() + 30
        while True:
            row = conn.execute(
                """select a.wait_event_type, pg_blocking_pids(a.pid)
                   from pg_stat_activity a where a.pid = %s""",
                [self.pid],
            ).fetchone()
            if row == ("Lock", [pid]):
                return
            assert self._thread.is_alive(), (self.rows, self.error)
            assert time.monotonic() < deadline, row
            time.sleep(0.005)

    def result(self) -> list[dict[str, Any]]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._conn.close()
        if self.error is not None:
            raise self.error
        return self.rows


def is_free(conn: psycopg.Connection[Any], table: str, key: str, value: str) -> bool:
    """Whether nobody holds a lock on those rows."""
    try:
        with conn.transaction(force_rollback=True):
            rows = conn.execute(
                psycopg.sql.SQL(
                    "select from routeledger.{} where {} = %s for update nowait"
                ).format(psycopg.sql.Identifier(table), psycopg.sql.Identifier(key)),
                [value],
            ).rowcount
            assert rows
            return True
    except errors.LockNotAvailable:
        return False


@contextmanager
def held(db: Database, table: str, key: str, value: str) -> Iterator[int]:
    """A session that holds those rows; its process id."""
    with db.connect(autocommit=False) as conn:
        conn.execute(
            psycopg.sql.SQL("select from routeledger.{} where {} = %s for update").format(
                psycopg.sql.Identifier(table), psycopg.sql.Identifier(key)
            ),
            [value],
        )
        yield conn.info.backend_pid
        conn.rollback()


TRANSITIONS: dict[str, Callable[[dict[str, Any], str], Call]] = {
    "complete_decision": lambda key, attempt: Call(
        "complete_decision",
        {**key, "outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1},
    ),
    "complete_decision named": lambda key, attempt: Call(
        "complete_decision",
        {**key, "attempt_id": attempt, "outcome_status": "failed", "error_type": "timeout"},
    ),
    "complete_decision override": lambda key, attempt: Call(
        "complete_decision",
        {**key, "outcome_status": "failed", "decision_rule_override": "budget_gone"},
    ),
    "complete_decisions": lambda key, attempt: Call(
        "complete_decisions",
        {
            "rows": [
                {
                    **key,
                    "attempt_id": attempt,
                    "outcome_status": "succeeded",
                    "input_tokens": 1,
                    "output_tokens": n,
                }
                for n in (1, 2)
            ]
        },
    ),
    "fail_attempt": lambda key, attempt: Call(
        "fail_attempt", {**key, "attempt_id": attempt, "error_type": "timeout"}
    ),
    "fail_attempt give_up": lambda key, attempt: Call(
        "fail_attempt", {**key, "attempt_id": attempt, "error_type": "timeout", "next": "give_up"}
    ),
    "fail_attempts": lambda key, attempt: Call(
        "fail_attempts", {"rows": [{**key, "attempt_id": attempt, "error_type": "timeout"}]}
    ),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_outcome_first_then_inference(db: Database, name: str) -> None:
    decision, attempt = uuid7(), uuid7()
    key = {"tenant_id": TENANT, "id": decision}
    with db.connect() as conn:
        call(conn, "insert_decision", **key, attempt_id=attempt, candidates=["alpha", "beta"])
        one = TRANSITIONS[name](key, attempt)

        with held(db, "routing_outcomes", "id", decision) as holder:
            patient = Patient(db, one, "begin")
            patient.waits_for(conn, holder)
            assert is_free(conn, "inferences", "id", attempt)
        assert patient.result()  # and is undone: its transaction was never committed

        with held(db, "inferences", "id", attempt) as holder:
            patient = Patient(db, one)
            patient.waits_for(conn, holder)
            assert not is_free(conn, "routing_outcomes", "id", decision)
        assert patient.result()
        check_sound(conn)


def test_reap_takes_the_outcome_first(db: Database) -> None:
    decision, attempt = uuid7(), uuid7()
    late = "select routeledger.set_clock(clock_timestamp() + '1 hour')"
    with db.connect() as conn:
        call(
            conn,
            "insert_decision",
            tenant_id=TENANT,
            id=decision,
            attempt_id=attempt,
            candidates=["alpha"],
        )
        with held(db, "routing_outcomes", "id", decision):
            assert Patient(db, Call("reap", {}), late).result() == []  # it waits for nobody
        with held(db, "inferences", "id", attempt) as holder:
            patient = Patient(db, Call("reap", {}), late)
            patient.waits_for(conn, holder)
            assert not is_free(conn, "routing_outcomes", "id", decision)
            assert Patient(db, Call("reap", {}), late).result() == []
        assert [row["id"] for row in patient.result()] == [decision]
        check_sound(conn)


BATCHES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "complete_decisions": lambda decision, attempt: {
        "attempt_id": attempt,
        "outcome_status": "succeeded",
        "input_tokens": 1,
        "output_tokens": 1,
    },
    "complete_decisions unnamed": lambda decision, attempt: {
        "outcome_status": "failed",
        "error_type": "timeout",
    },
    "fail_attempts": lambda decision, attempt: {"attempt_id": attempt, "error_type": "timeout"},
    "extend_leases": lambda decision, attempt: {"lease": "1 hour"},
    "start_attempts": lambda decision, attempt: {"model_slug": "alpha"},
}


@pytest.mark.parametrize("name", BATCHES)
def test_decisions_in_the_order_of_their_keys(db: Database, name: str) -> None:
    """A batch, given backwards, that waits for its middle row holds the rows before it, none after."""
    keys = sorted(
        ((tenant, uuid7(), uuid7()) for tenant in ("a", "b") for _ in range(3)),
        key=lambda key: key[:2],
    )
    with db.connect() as conn:
        for tenant, decision, attempt in keys:
            call(
                conn,
                "insert_decision",
                tenant_id=tenant,
                id=decision,
                attempt_id=attempt,
                candidates=["alpha"],
            )
        rows = [
            {"tenant_id": tenant, "id": decision, **BATCHES[name](decision, attempt)}
            for tenant, decision, attempt in reversed(keys)
        ]
        middle = keys[3][1]
        with held(db, "routing_outcomes", "id", middle) as holder:
            patient = Patient(db, Call(name.split()[0], {"rows": rows}))
            patient.waits_for(conn, holder)
            free = [is_free(conn, "routing_outcomes", "id", decision) for _, decision, _ in keys]
            assert free == [False, False, False, False, True, True]
        assert len(patient.result()) == len(keys)
        check_sound(conn)
