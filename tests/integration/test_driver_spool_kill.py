"""A replay that is killed, again and again, brings every record in, once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import routeledger
from routeledger._ids import IdMaker
from routeledger.spool import Spool, replay
from tests.conftest import Database

REPLAY = """
import sys, routeledger
from routeledger import _replay_sync
from routeledger.spool import Spool
_replay_sync.BATCH = 25
with routeledger.connect(sys.argv[1]) as ledger:
    print("replaying", flush=True)
    ledger.replay_spool(Spool(sys.argv[2]))
"""


@pytest.mark.faults
def test_killed_replays_bring_each_record_in_once(db: Database, tmp_path: Path) -> None:
    make, rng = IdMaker(), random.Random(3)
    spool = Spool(tmp_path / "spool")
    ids = [make() for _ in range(1500)]
    rows = []
    for n, one in enumerate(ids):
        usage = {"status": "succeeded", "input_tokens": n, "output_tokens": 1}
        attempt = {"id": make(), "model_slug": "m", **usage}
        row: dict[str, Any] = {
            "tenant_id": "acme",
            "id": one,
            "candidates": ["m"],
            "attempts": [attempt],
        }
        if n % 100 == 7:
            row["min_quality"] = 3  # to be refused
        rows.append({"routine": "record_outcome", "row": row})
    spool.append(rows)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", REPLAY, db.dsn_as("writer"), str(spool.path)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
        if spool.size == 0 or kills >= 8:
            break
    with routeledger.connect(db.dsn_as("writer")) as ledger:
        replay(ledger, spool)
        assert spool.size == 0
        assert replay(ledger, spool).total == 0
    assert kills >= 1
    good = {one for n, one in enumerate(ids) if n % 100 != 7}
    found = db.execute("select id::text, attempts from routeledger.decisions")
    assert {one for one, _ in found} == good
    assert all(attempts == 1 for _, attempts in found)
    assert len(spool.refused_path.read_text().splitlines()) == 15
    assert db.execute("select * from routeledger.orphans") == []
