"""Through a pooler in transaction mode: no session state is relied upon."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeledger import AsyncLedger, connect
from tests.conftest import Database, login_of
from tests.servers import launch

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
USAGE: dict[str, Any] = {"input_tokens": 10, "output_tokens": 2}

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled(db: Database) -> Iterator[str]:
    """A DSN that leads to the test's database through two pooled server connections."""
    user = login_of("admin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # not in pytest's own folder, which an unprivileged service user may not enter
    folder = Path(tempfile.mkdtemp(prefix="routeledger-pooler-"))
    folder.chmod(0o755)
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n"
        f"* = host={db.server.host} port={db.server.port} user={user}\n"
        f"[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
        f"max_client_conn = 100\n"
    )
    assert PGBOUNCER is not None
    process = subprocess.Popen(
        launch([PGBOUNCER, "-q", config]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    dsn = f"host=127.0.0.1 port={port} dbname={db.name} user={user}"
    try:
        for _ in range(100):
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield dsn
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


async def test_cycles_through_a_transaction_pooler(pooled: str, db: Database) -> None:
    async with (
        await AsyncLedger.connect(pooled, max_size=8) as coalesced,
        await AsyncLedger.connect(pooled, max_size=8, coalesce=False) as single,
    ):

        async def work(ledger: AsyncLedger) -> None:
            for _ in range(5):
                async with ledger.decision(tenant_id="acme", candidates=["m"]) as decision:
                    async for attempt in decision.attempts():
                        async with attempt:
                            attempt.succeed(**USAGE)

        await asyncio.gather(*(work(ledger) for ledger in (coalesced, single) for _ in range(16)))
    assert db.value("select count(*) from routeledger.decisions") == 160
    assert db.execute("select * from routeledger.orphans") == []


def test_the_threads_client_through_a_transaction_pooler(pooled: str, db: Database) -> None:
    with connect(pooled) as ledger, ledger.decision(tenant_id="acme", candidates=["m"]) as decision:
        for attempt in decision.attempts():
            with attempt:
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert decision.outcome.status == "succeeded"
    assert db.value("select count(*) from routeledger.decisions") == 1


async def test_upserts_through_a_transaction_pooler(pooled: str, db: Database) -> None:
    db.execute("create table t (k integer primary key, hits bigint); grant all on t to public")
    rows = [{"k": n % 500, "hits": 1} for n in range(5000)]
    async with await AsyncLedger.connect(pooled, max_size=8) as ledger:
        for copy_threshold in (0, 10**9):
            await asyncio.gather(
                *(
                    ledger.upsert(
                        "t",
                        rows,
                        precedence="sum hits",
                        batch_id=f"{copy_threshold}-{n}",
                        chunk_rows=700,
                        copy_threshold=copy_threshold,
                    )
                    for n in range(4)
                )
            )
    with connect(pooled) as ledger_of_threads:
        ledger_of_threads.upsert("t", rows, precedence="sum hits", batch_id="x", chunk_rows=700)
    assert db.execute("select distinct hits from t") == [(90,)]
