"""The parent's side of the killed writer: start it, listen, kill it, tell its story."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from .audit import Books
from .summary import Victim, VictimDecision

START_TIMEOUT_S = 30.0

IN_FLIGHT = """
select id, lease_expires_at
from routeledger.in_flight
where tenant_id = %(tenant)s and agent_id = %(agent)s
"""


class WriterError(RuntimeError):
    """The writer ended, or wrote nothing, before it could be killed."""


@dataclass(slots=True)
class KilledWriter:
    """A writer that was killed. ``wrote`` and ``closed``: the decisions it knew to be durable;
    ``leases``: those in flight after its death, and until when they were leased."""

    pid: int
    agent: str
    lease_s: float
    exit_signal: str = ""
    wrote: set[UUID] = field(default_factory=set)
    closed: set[UUID] = field(default_factory=set)
    killed_at: datetime | None = None
    leases: dict[UUID, datetime] = field(default_factory=dict)

    def told(self) -> dict[UUID, str | None]:
        """What the writer was told of each decision: how it ended, None when in flight."""
        return {key: "succeeded" if key in self.closed else None for key in self.wrote}


async def kill_a_writer(dsn: str, job: Mapping[str, Any], in_flight: int) -> KilledWriter:
    """Start a writer on ``job``, and kill it with SIGKILL once it has ``in_flight`` decisions
    open. Raises :class:`WriterError` when it does not get that far."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "routeledger.demo.victim",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    writer = KilledWriter(process.pid, job["agent"], job["lease_s"])
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"dsn": dsn, **job}).encode() + b"\n")
        await process.stdin.drain()
        await asyncio.wait_for(_listen(process, writer, in_flight), START_TIMEOUT_S)
    except asyncio.TimeoutError:
        message = f"the writer had {len(writer.wrote)} decisions after {START_TIMEOUT_S:.0f} s"
        raise WriterError(message) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        code = await process.wait()
    writer.exit_signal = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        who = {"tenant": job["tenant"], "agent": job["agent"]}
        cursor = await conn.execute("select routeledger.clock()")
        writer.killed_at = (await cursor.fetchone() or (None,))[0]
        await asyncio.sleep(0.2)  # what was being committed at the moment of the kill
        cursor = await conn.execute(IN_FLIGHT, who)
        writer.leases = {row[0]: row[1] async for row in cursor}
    return writer


async def _listen(
    process: asyncio.subprocess.Process, writer: KilledWriter, in_flight: int
) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    while len(writer.wrote) - len(writer.closed) < in_flight:
        line = await process.stdout.readline()
        if not line:
            trouble = (await process.stderr.read()).decode(errors="replace").splitlines()
            raise WriterError("the writer ended by itself: " + " ".join(trouble[-3:]))
        for what, key in json.loads(line).items():
            (writer.wrote if what == "wrote" else writer.closed).add(UUID(key))


def _environment() -> dict[str, str]:
    """The child finds the package where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def tell(writer: KilledWriter, books: Books, reaped: set[UUID]) -> Victim:
    """What became of the writer's decisions, by the books."""
    assert writer.killed_at is not None
    rows = [row for row in books.decisions if row.agent_id == writer.agent]
    begin = min((row.created_at for row in rows), default=writer.killed_at)

    def since(at: datetime | None) -> float | None:
        return None if at is None else (at - begin).total_seconds()

    decisions = []
    for row in rows:
        attempts = books.attempts.get(row.id, [])
        linked = next((a for a in attempts if a.id == row.inference_id), None)
        decisions.append(
            VictimDecision(
                id=str(row.id),
                model=row.model,
                attempts=row.attempts,
                created_s=(row.created_at - begin).total_seconds(),
                closed_s=since(row.completed_at),
                lease_ends_s=since(writer.leases.get(row.id)),
                status=row.status,
                error_type=linked.error_type if linked else None,
                linked=linked is not None,
                in_flight_when_killed=row.id in writer.leases,
            )
        )
    left = [one for one in decisions if one.in_flight_when_killed]
    kept = [one for one in left if one.status == one.error_type == "abandoned" and one.linked]
    ends = [one.closed_s for one in kept if one.closed_s is not None]
    return Victim(
        pid=writer.pid,
        exit_signal=writer.exit_signal,
        lease_s=writer.lease_s,
        written=len(rows),
        completed=sum(one.status == "succeeded" for one in decisions),
        in_flight=len(left),
        abandoned_and_linked=len(kept),
        reaped=len(reaped & set(writer.leases)),
        killed_s=(writer.killed_at - begin).total_seconds(),
        reaped_s=max(ends, default=0.0),
        decisions=tuple(decisions),
    )
