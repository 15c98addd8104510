"""kill -9 of a backend, which makes the server throw everybody out and recover, and of the postmaster."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import psycopg
import pytest

from tests.books import check_acknowledged, check_nothing_else, check_sound, scaled
from tests.faults.workers import Worker, patiently
from tests.servers import Server

pytestmark = pytest.mark.faults

BACKEND_KILLS = 12
POSTMASTER_KILLS = 8
WORKERS = 4
SEED = 20260604


def busy(server: Server, turn: str, rng: random.Random) -> list[Worker]:
    """Workers that have been at it for a while."""
    workers = [
        Worker(
            f"{turn}-{n}",
            rng.randrange(1 << 30),
            lambda: psycopg.connect(
                server.dsn(), autocommit=True, application_name="a client of the ledger"
            ),
        )
        for n in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    enough = rng.randrange(20, 80)
    deadline = time.monotonic() + 60
    while sum(worker.acknowledged for worker in workers) < enough:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return workers


def after(server: Server, workers: list[Worker], every: list[Worker]) -> None:
    """The books once the server is back: those of this crash, and everybody's."""
    for worker in workers:
        worker.join()
    with patiently(server.connect) as conn:
        for worker in workers:
            worker.check(conn)
        check_sound(conn)
    every += workers


def at_last(conn: psycopg.Connection[Any], every: list[Worker]) -> None:
    """Nothing that was there after one crash was lost in a later one."""
    for worker in every:
        check_acknowledged(conn, worker.units)
        check_nothing_else(conn, worker.tenant, worker.units)
    check_sound(conn)


def test_backend_killed(durable_server: Server) -> None:
    rng = random.Random(SEED)
    every: list[Worker] = []
    for turn in range(scaled(BACKEND_KILLS)):
        with durable_server.connect() as conn:
            workers = busy(durable_server, f"backend-{turn}", rng)
            victims = conn.execute(
                "select pid from pg_stat_activity where application_name = 'a client of the ledger'"
            ).fetchall()
            assert len(victims) == WORKERS
            os.kill(rng.choice(victims)[0], signal.SIGKILL)
        after(durable_server, workers, every)
    with durable_server.connect() as conn:
        at_last(conn, every)


def test_postmaster_killed(durable_server: Server) -> None:
    rng = random.Random(SEED + 1)
    every: list[Worker] = []
    for turn in range(scaled(POSTMASTER_KILLS)):
        workers = busy(durable_server, f"postmaster-{turn}", rng)
        durable_server.kill()
        durable_server.start()
        after(durable_server, workers, every)
    with durable_server.connect() as conn:
        at_last(conn, every)
