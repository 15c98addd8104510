"""Connections cut in the middle of a call, in either direction, at any byte."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import Any

import psycopg
import pytest

from tests.books import (
    REPLAYED,
    Unit,
    check_acknowledged,
    check_nothing_else,
    check_sound,
    reap_all,
    scaled,
    story,
)
from tests.conftest import Database
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.faults

CUTS = 150
CLIENTS = 3
SEED = 20260605


class Stubborn:
    """A client that says a call again, with the same ids, until it is answered."""

    def __init__(self, db: Database, tenant: str, seed: int, cuts: int) -> None:
        self.tenant = tenant
        self.units: list[Unit] = []
        self.cuts = 0
        self.replays = 0
        self.first_writes = 0
        self.error: BaseException | None = None
        self._db = db
        self._rng = random.Random(seed)
        self._wanted = cuts
        self._conn: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with Proxy(self._db.server.host, self._db.server.port) as proxy:
                while self.cuts < self._wanted:
                    for unit in story(self.tenant, self._rng):
                        self.units.append(unit)
                        self._insist(proxy, unit)
                if self._conn is not None:
                    self._conn.close()
        except BaseException as error:  # noqa: BLE001 - raised by join()
            self.error = error

    def _insist(self, proxy: Proxy, unit: Unit) -> None:
        was_cut = False
        while True:
            try:
                conn = self._connection(proxy)
                if self._rng.random() < 0.6:
                    self._arm(proxy, conn, unit)
                unit.run(conn)
            except psycopg.OperationalError:
                was_cut = True
                self.cuts += 1
                if self._conn is not None:
                    self._conn.close()
                self._conn = None
            else:
                break
        if was_cut and unit.calls[-1].routine in REPLAYED:
            if unit.answers[-1]["created"]:
                self.first_writes += 1
            else:
                self.replays += 1

    def _connection(self, proxy: Proxy) -> psycopg.Connection[Any]:
        if self._conn is None:
            self._conn = psycopg.connect(
                self._db.dsn,
                host="127.0.0.1",
                port=proxy.port,
                sslmode="disable",
                gssencmode="disable",
                autocommit=True,
            )
            self._conn.prepare_threshold = None
        return self._conn

    def _arm(self, proxy: Proxy, conn: psycopg.Connection[Any], unit: Unit) -> None:
        manner = self._rng.choice(["close", "reset", "silence"])
        if self._rng.random() < 0.5:
            size = sum(len(one.text(conn)) + 100 for one in unit.calls)
            proxy.cut_after(self._rng.randrange(1, size), "to server", manner)
        else:
            proxy.cut_after(self._rng.randrange(1, 300 * len(unit.calls)), "to client", manner)


def test_connection_cut_in_the_middle_of_a_call(db: Database) -> None:
    cuts = scaled(CUTS)
    clients = [Stubborn(db, f"client-{n}", SEED + n, -(-cuts // CLIENTS)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    with db.connect() as conn:
        for client in clients:
            assert all(unit.acknowledged for unit in client.units)
            # the first answer that arrived may be that of a replay; from then on all are the same
            for unit in client.units:
                for answer in unit.answers:
                    if "created" in answer:
                        answer["created"] = False
            check_acknowledged(conn, client.units)
            check_nothing_else(conn, client.tenant, client.units)
        check_sound(conn)
        assert reap_all(conn) == []
    if cuts >= CUTS:  # both happened: lost on the way there, and lost on the way back
        assert sum(client.replays for client in clients) > 0
        assert sum(client.first_writes for client in clients) > 0


def test_connection_lost_in_an_open_transaction(db: Database) -> None:
    """A caller's own transaction that is cut leaves nothing, whichever call it had come to."""
    rng = random.Random(SEED)
    with Proxy(db.server.host, db.server.port) as proxy, db.connect() as conn:
        for stop in range(1, 10):
            tenant = f"open-{stop}"
            units = story(tenant, rng)
            with contextlib.suppress(psycopg.OperationalError):
                lost = psycopg.connect(db.dsn, host="127.0.0.1", port=proxy.port, sslmode="disable")
                for unit in units[:stop]:
                    for one in unit.calls:
                        one.run(lost)
                assert proxy.cut_all() == 1
                lost.commit()
                pytest.fail("the connection was not cut")
            for unit in units:  # waits for what the server has not yet given up
                unit.run(conn)
            check_acknowledged(conn, units)
            assert all(a.get("created", True) for unit in units for a in unit.answers)
            check_nothing_else(conn, tenant, units)
        check_sound(conn)
