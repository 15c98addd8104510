"""The driver on a network that keeps losing its connections, and on a server that crashes."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg
import pytest

import routeledger
from tests.books import call, check_sound, reap_all, scaled
from tests.conftest import Database
from tests.faults.proxy import Proxy
from tests.servers import Server

pytestmark = pytest.mark.faults

THREADS = 8
DECISIONS = 20  # a thread
CUTS = 20
SEED = 20260606


class Crew:
    """Threads that share a ledger and tell stories through the loop."""

    def __init__(self, ledger: routeledger.Ledger) -> None:
        # (id, agent, attempts) of each decision that the driver said is closed
        self.told: list[tuple[str, str, int]] = []
        self._ledger = ledger
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(THREADS)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads:
            thread.join()
        for error in self._errors:
            raise error

    def progress(self, more: int) -> bool:
        """Waits until that many more are told; False when all are, or somebody failed."""
        aim = min(len(self.told) + more, THREADS * DECISIONS)
        while len(self.told) < aim and not self._errors:
            time.sleep(0.002)
        return len(self.told) < THREADS * DECISIONS and not self._errors

    def _work(self, n: int) -> None:
        rng = random.Random(SEED + n)
        try:
            for number in range(DECISIONS):
                self._tell(f"thread-{n}-{number}", failures=rng.randrange(3))
        except BaseException as error:  # noqa: BLE001 - raised when all have ended
            self._errors.append(error)

    def _tell(self, agent: str, failures: int) -> None:
        tries = 0
        with self._ledger.decision(
            tenant_id="t",
            agent_id=agent,
            # models of its own, so that the failures of many decisions cool down none
            candidates=[f"{model} {agent}" for model in ("alpha", "beta", "gamma")],
        ) as decision:
            for attempt in decision.attempts():
                tries += 1
                with attempt:
                    if tries <= failures:
                        raise ConnectionError("the provider hung up")
                    attempt.succeed(input_tokens=10, output_tokens=tries)
        self.told.append((str(decision.id), agent, tries))


def check(conn: psycopg.Connection[Any], told: list[tuple[str, str, int]]) -> None:
    """Each decision is there, once, closed, with the attempts that were made, and nothing else is."""
    assert len(told) == THREADS * DECISIONS
    stored = conn.execute(
        "select id, agent_id, attempts, outcome_status from routeledger.decisions"
    ).fetchall()
    assert sorted((str(i), agent, n, status) for i, agent, n, status in stored) == sorted(
        (i, agent, n, "succeeded") for i, agent, n in told
    )
    check_sound(conn)
    assert reap_all(conn) == []


def never_wait(conn: psycopg.Connection[Any]) -> None:
    """A failed attempt is tried again at once."""
    call(
        conn,
        "configure",
        settings={"retry_base": "1 millisecond", "retry_cap": "1 millisecond"},
    )


def test_connections_lost(db: Database) -> None:
    rng = random.Random(SEED)
    with db.connect() as conn, Proxy(db.server.host, db.server.port) as proxy:
        never_wait(conn)
        dsn = psycopg.conninfo.make_conninfo(
            db.dsn_as("writer"), host="127.0.0.1", port=proxy.port, sslmode="disable"
        )
        lost = 0
        with (
            routeledger.connect(dsn, max_size=4, timeout=120) as ledger,
            Crew(ledger) as crew,
        ):
            while lost < scaled(CUTS) and crew.progress(rng.randrange(1, 6)):
                if rng.random() < 0.5:
                    lost += proxy.cut_all() > 0
                else:
                    manner = rng.choice(["close", "reset", "silence"])
                    proxy.cut_after(rng.randrange(1, 4000), "to client", manner)
                    lost += 1
        assert lost
        check(conn, crew.told)


def test_server_crashes(durable_server: Server) -> None:
    with durable_server.connect() as conn:
        never_wait(conn)
    dsn = durable_server.dsn(user="test_writer")
    with routeledger.connect(dsn, max_size=4, timeout=120) as ledger, Crew(ledger) as crew:
        crew.progress(20)
        durable_server.kill()
        durable_server.start()
    with durable_server.connect() as conn:
        check(conn, crew.told)
