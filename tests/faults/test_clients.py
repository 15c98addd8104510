"""Clients killed with SIGKILL at each step of the cycle, and at any moment."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.books import (
    Unit,
    check_acknowledged,
    check_nothing_else,
    check_sound,
    made,
    reap_all,
    scaled,
    story,
)
from tests.conftest import Database
from tests.faults.client import MOMENTS, MOMENTS_OF_TRANSACTION, read_journal
from tests.servers import REPO

pytestmark = pytest.mark.faults

KILLS_AT_STEPS = 160
KILLS_AT_ANY_MOMENT = 40
AT_ONCE = 3
SEED = 20260603


class Nursery:
    """A process that forks clients, one after the other."""

    def __init__(self, dsn: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.client", dsn],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _word(self, name: str) -> int:
        assert self._process.stdout is not None
        said, _, number = self._process.stdout.readline().partition(" ")
        assert said == name, said
        return int(number)

    def start(self, job: str) -> int:
        """Starts a client; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()
        return self._word("started")

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return self._word("ended")

    def close(self) -> None:
        self._process.communicate()


def steps() -> list[list[Any]]:
    """Every unit of a story, at every moment of it."""
    return [
        [index, moment]
        for index, unit in enumerate(story("t", random.Random(SEED)))
        for moment in (MOMENTS if len(unit.calls) == 1 else MOMENTS_OF_TRANSACTION)
    ]


def backend_gone(conn: psycopg.Connection[Any], tenant: str) -> None:
    """Waits until the server has noticed that the client is dead."""
    deadline = time.monotonic() + 30
    while conn.execute(
        "select from pg_stat_activity where application_name = %s and datname = current_database()",
        [tenant],
    ).rowcount:
        assert time.monotonic() < deadline, "the backend of a dead client lives on"
        time.sleep(0.005)


def check(conn: psycopg.Connection[Any], tenant: str, units: list[Unit], *, repeat: bool) -> None:
    """The books after the death of the only client of a tenant."""
    check_acknowledged(conn, units)
    open_end = units[-1] if units and not units[-1].acknowledged else None
    if open_end is not None and repeat:
        # a successor says the unacknowledged call again, dead or alive as the first one may be
        open_end.run(conn)
    backend_gone(conn, tenant)
    check_sound(conn, tenant)
    closed = reap_all(conn, tenant)
    assert len(closed) <= 1
    assert set(closed) <= made(units)[0]
    check_sound(conn, tenant)
    check_nothing_else(conn, tenant, units)
    if open_end is not None and repeat:
        check_acknowledged(conn, units[-1:])


class Yard:
    """Runs clients, a few at a time, and looks at the books after each."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._folder = folder
        self._errors: list[BaseException] = []

    def run(self, jobs: Iterator[dict[str, Any]]) -> None:
        waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        threads = [threading.Thread(target=self._work, args=(waiting,)) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in self._errors:
            raise error

    def _work(self, waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
        nursery = Nursery(self._db.dsn)
        try:
            with self._db.connect() as conn:
                while not self._errors:
                    try:
                        job = waiting.get_nowait()
                    except queue.Empty:
                        return
                    self._one(nursery, conn, job)
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
            self._errors.append(error)
        finally:
            nursery.close()

    def _one(self, nursery: Nursery, conn: psycopg.Connection[Any], job: dict[str, Any]) -> None:
        journal = self._folder / f"{job['tenant']}.journal"
        journal.touch()
        pid = nursery.start(json.dumps({**job, "journal": str(journal)}))
        if job["die"] is None:
            # once it is at work, at any moment
            deadline = time.monotonic() + 30
            while not journal.stat().st_size and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(random.Random(job["seed"]).uniform(0, 0.08))
            os.kill(pid, signal.SIGKILL)
        status = nursery.wait()
        assert status == -signal.SIGKILL, status
        units, ended = read_journal(str(journal))
        assert not ended, "the client was quicker than its killer"
        check(conn, job["tenant"], units, repeat=job["repeat"])


def test_killed_at_each_step(db: Database, tmp_path: Path) -> None:
    # each step in turn; every other round, a successor says the unacknowledged call again
    rounds = [(turn, step) for turn in range(scaled(KILLS_AT_STEPS)) for step in steps()]
    Yard(db, tmp_path).run(
        {
            "tenant": f"step-{n}",
            "seed": SEED + n,
            "stories": 2,
            "die": [1, *step],
            "repeat": turn % 2 == 0,
        }
        for n, (turn, step) in enumerate(rounds[: scaled(KILLS_AT_STEPS)])
    )
    with db.connect() as conn:
        check_sound(conn)


def test_killed_at_any_moment(db: Database, tmp_path: Path) -> None:
    Yard(db, tmp_path).run(
        {
            "tenant": f"any-{n}",
            "seed": SEED + n,
            "stories": 10_000,
            "die": None,
            "repeat": n % 2 == 0,
        }
        for n in range(scaled(KILLS_AT_ANY_MOMENT))
    )
    with db.connect() as conn:
        check_sound(conn)
