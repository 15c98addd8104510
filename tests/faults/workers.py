"""Clients as threads, for faults of the server and of the network."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tests.books import Unit, check_acknowledged, check_nothing_else, check_sound, reap_all, story

Connect = Callable[[], psycopg.Connection[Any]]


class Worker:
    """Tells stories of a tenant of its own until its connection breaks."""

    def __init__(self, tenant: str, seed: int, connect: Connect) -> None:
        self.tenant = tenant
        self.units: list[Unit] = []
        self.acknowledged = 0
        self.error: BaseException | None = None
        self._rng = random.Random(seed)
        self._connect = connect
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        """Returns when its connection has broken; anything else that went wrong is raised."""
        assert self._thread is not None
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with self._connect() as conn:
                while True:
                    for unit in story(self.tenant, self._rng):
                        self.units.append(unit)
                        unit.run(conn)
                        self.acknowledged += 1
        except psycopg.OperationalError:
            return
        except BaseException as error:  # noqa: BLE001 - raised by join()
            self.error = error

    def check(self, conn: psycopg.Connection[Any]) -> None:
        """The books of this tenant, and those of the unacknowledged calls, half of them repeated."""
        check_acknowledged(conn, self.units)
        check_sound(conn, self.tenant)
        if self.units and not self.units[-1].acknowledged and self._rng.random() < 0.5:
            self.units[-1].run(conn)
            check_acknowledged(conn, self.units[-1:])
        reap_all(conn, self.tenant)
        check_sound(conn, self.tenant)
        check_nothing_else(conn, self.tenant, self.units)


def patiently(connect: Connect, seconds: float = 60) -> psycopg.Connection[Any]:
    """A connection to a server that may still be recovering."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
