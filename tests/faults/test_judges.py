"""Twenty judges of three kinds, killed with SIGKILL at any moment, while outcomes come in.

However often they die with claims in their hands or a verdict on its way, each outcome that can be
judged gets one verdict of each judge version: none is lost, and none is given twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.books import call, call_rows, check_sound, scaled, uuid7
from tests.concurrency.test_callers import together
from tests.conftest import Database
from tests.faults.judge import LEASE, read_journal, turn
from tests.servers import REPO

pytestmark = pytest.mark.faults

JUDGES = [("strict", "1"), ("strict", "2"), ("lenient", "1")]
TENANTS = ("acme", "umbrella")
PROCESSES = 20
SECONDS = 6  # a minute with ROUTELEDGER_FAULT_RUNS=10
SEED = 20261121


class Bench:
    """Judges in processes of their own; whoever is killed is followed by another of the same kind."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.judge", dsn],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pids = [0] * PROCESSES
        self.seats = Counter[int]()
        for seat in range(PROCESSES):
            self.seat(seat)

    def journals(self) -> list[Path]:
        return sorted(self._folder.glob("*.journal"))

    def seat(self, seat: int) -> None:
        """The next judge of that seat."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        turn = self.seats[seat]
        self.seats[seat] += 1
        judge, version = JUDGES[seat % len(JUDGES)]
        journal = self._folder / f"{judge}-{version}-{seat}-{turn}.journal"
        journal.touch()
        job = {
            "journal": str(journal),
            "judge": judge,
            "judge_version": version,
            "seed": SEED + seat + PROCESSES * turn,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self._pids[seat] = int(self._process.stdout.readline())

    def kill(self, seat: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # its journal says why
            os.kill(self._pids[seat], signal.SIGKILL)

    def close(self) -> None:
        for seat in range(PROCESSES):
            self.kill(seat)
        self._process.communicate()


def arrivals(rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Stories of which most can be judged, some were an hour under way, and some failed."""
    usage = {"input_tokens": 10, "output_tokens": 5, "latency_ms": 12.5}
    while True:
        yield [
            {
                "tenant_id": rng.choice(TENANTS),
                "id": uuid7(time.time() - rng.choice([0, 0, 3600])),
                "task_type": rng.choice(["chat", None]),
                "attempts": [
                    {"model_slug": rng.choice(["alpha", "beta"]), "status": "succeeded", **usage}
                    if rng.random() < 0.8
                    else {"model_slug": "beta", "status": "failed", "error_type": "timeout"}
                ],
            }
            for _ in range(20)
        ]


def write(db: Database, done: threading.Event, errors: list[BaseException]) -> None:
    """Outcomes come in, and others are closed that were open when the judges came."""
    rng = random.Random(SEED)
    try:
        with db.connect() as conn:
            opened: list[dict[str, Any]] = []
            for rows in arrivals(rng):
                if done.wait(0.05):
                    return
                told = call_rows(conn, "record_outcomes", rows)
                assert {row["status"] for row in told} == {"accepted"}
                key = {"tenant_id": rng.choice(TENANTS), "id": uuid7()}
                call(conn, "insert_decision", **key, candidates=["alpha"])
                opened.append(key)
                if len(opened) > 10:
                    one = opened.pop(rng.randrange(len(opened)))
                    tokens = {"input_tokens": 1, "output_tokens": 1}
                    call(conn, "complete_decision", **one, outcome_status="succeeded", **tokens)
    except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
        errors.append(error)


def drain(db: Database) -> None:
    """One judge of each kind that nobody kills, until nothing is left for it."""

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        judge, version = JUDGES[n]
        name = {"judge": judge, "judge_version": version}
        rng = random.Random(SEED + n)
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "there is no end to it"
            if turn(conn, name, rng, lambda **_: None):
                continue
            left = conn.execute(
                "select from routeledger.judge_leases where (judge, judge_version) = (%s, %s)",
                [judge, version],
            ).rowcount
            if not left:
                return
            time.sleep(0.05)

    together(db, len(JUDGES), work)


LOST = """
select o.tenant_id, o.id, j.judge, j.judge_version
from routeledger.routing_outcomes o
cross join unnest(%s::text[], %s::text[]) j (judge, judge_version)
where o.outcome_status = 'succeeded' and o.inference_id is not null
  and (
    select count(*) from routeledger.judge_verdicts v
    where (v.tenant_id, v.outcome_id) = (o.tenant_id, o.id)
      and (v.judge, v.judge_version) = (j.judge, j.judge_version)
      and v.usable and v.inference_id = o.inference_id
  ) <> 1
"""
WRONG = """
select o.tenant_id, o.id, o.judge_status, o.reward, o.reward_source, v.n, v.mean
from routeledger.routing_outcomes o
left join (
  select v.tenant_id, v.outcome_id, count(*) as n, avg(v.score) as mean
  from routeledger.judge_verdicts v
  group by v.tenant_id, v.outcome_id) v on (v.tenant_id, v.outcome_id) = (o.tenant_id, o.id)
where case
  when o.outcome_status = 'succeeded' and o.inference_id is not null then
    (v.n, o.judge_status, o.reward_source) is distinct from (3, 'labeled', 'judge')
      or (abs(o.reward - v.mean) < 1e-12) is not true
  else v.n is not null or o.judge_status <> 'unlabeled' or o.reward is not null
end
"""


def check_books(conn: psycopg.Connection[Any]) -> None:
    judges, versions = zip(*JUDGES, strict=True)
    assert conn.execute(LOST, [list(judges), list(versions)]).fetchall() == []
    assert conn.execute(WRONG).fetchall() == []
    assert conn.execute("select * from routeledger.judge_leases").fetchall() == []
    check_sound(conn)
    assert conn.execute(
        "select deadlocks from pg_stat_database where datname = current_database()"
    ).fetchone() == (0,)


def check_journals(conn: psycopg.Connection[Any], journals: list[Path]) -> None:
    """What was acknowledged is what is stored, what is stored somebody said, and claims did not overlap."""
    stored = {
        (judge, version, str(outcome)): score
        for judge, version, outcome, score in conn.execute(
            "select judge, judge_version, outcome_id, score from routeledger.judge_verdicts"
        )
    }
    said: dict[tuple[str, str, str], set[float]] = defaultdict(set)
    first = Counter[tuple[str, str, str]]()
    leases: dict[tuple[str, str, str], dict[str, list[datetime]]] = defaultdict(dict)
    given_back: set[str] = set()
    for path in journals:
        judge, version = path.stem.split("-")[:2]
        for line in read_journal(path):
            assert "error" not in line, line["error"]
            if "claim" in line:
                outcome, token, until = line["claim"]
                lease = leases[judge, version, outcome].setdefault(token, [])
                lease.append(datetime.fromisoformat(until))
            given_back.add(line.get("release", ""))
            for outcome, score in line.get("will", ()):
                said[judge, version, outcome].add(score)
            for outcome, score, answer in line.get("done", ()):
                if answer["code"] is None:
                    assert stored[judge, version, outcome] == score
                    first[judge, version, outcome] += answer["created"]
    assert set(first.values()) <= {0, 1}
    assert sum(first.values()) > 0
    for key, scores in said.items():
        assert key in stored
        assert key not in first or stored[key] in scores
    for held in leases.values():
        # a claim begins when the one before it has run out or was given back
        order = sorted(held.items(), key=lambda item: item[1][0])
        for (token, one), (_, other) in pairwise(order):
            assert token in given_back or max(one) <= other[0] - timedelta(seconds=LEASE)


def test_twenty_judges_killed_at_any_moment(db: Database, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    done = threading.Event()
    errors: list[BaseException] = []
    settings = {"judge_max_attempts": 1000, "judge_look_every": "0", "judge_look_back": "1 day"}
    with db.connect() as conn:
        conn.execute("select routeledger.configure(%s)", [Jsonb(settings)])
        stories = arrivals(rng)
        for _ in range(20):
            call_rows(conn, "record_outcomes", next(stories))
    writer = threading.Thread(target=write, args=(db, done, errors))
    bench = Bench(db.dsn, tmp_path)
    try:
        writer.start()
        end = time.monotonic() + scaled(SECONDS)
        while time.monotonic() < end:
            time.sleep(rng.uniform(0, 0.15))
            seat = rng.randrange(PROCESSES)
            bench.kill(seat)
            bench.seat(seat)
    finally:
        done.set()
        bench.close()
        writer.join()
    assert errors == []
    assert bench.seats.total() > PROCESSES * 2
    drain(db)
    with db.connect() as conn:
        check_books(conn)
        check_journals(conn, bench.journals())
