"""A writer that is going to be killed: ``python -m routeledger.demo.victim``.

It reads one line of JSON from standard input (so that no password stands in a process list),
writes decisions without end, and says what it knows to be durable, one JSON line each:
``{"wrote": id}`` and ``{"closed": id}``. A third of its requests is answered; the others wait for
a provider that never answers, their leases kept alive, until the process is killed. It ends by
itself only when its standard input does, which is when its parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta
from threading import Thread
from typing import Any

from routeledger import AsyncLedger

PAUSE_S = 0.02
"""Between two new requests."""


def say(**facts: str) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def serve(ledger: AsyncLedger, job: dict[str, Any], n: int) -> None:
    """One request. The ledger's loop is the one that any caller would write."""
    async with ledger.decision(
        tenant_id=job["tenant"],
        agent_id=job["agent"],
        task_type="chat",
        candidates=job["candidates"][n % len(job["candidates"])],
        lease=timedelta(seconds=job["lease_s"]),
        traffic_class="replay",
        event_at=datetime.fromisoformat(job["event_at"]),
    ) as decision:
        say(wrote=str(decision.id))
        async for attempt in decision.attempts():
            async with attempt:
                if n % 3:
                    await asyncio.Event().wait()  # an answer that never comes
                await asyncio.sleep(0.15)
                attempt.succeed(input_tokens=400 + n, output_tokens=120, latency_ms=1_500.0)
        say(closed=str(decision.id))


def leave_with_parent() -> None:
    """Runs in a thread of its own: blocks until the parent's end of the pipe is closed."""
    while os.read(0, 4096):
        pass
    os._exit(3)


async def main() -> None:
    job = json.loads(sys.stdin.readline())
    Thread(target=leave_with_parent, daemon=True).start()
    async with await AsyncLedger.connect(job["dsn"], max_size=4) as ledger:
        requests = set()
        n = 0
        while True:
            requests.add(asyncio.create_task(serve(ledger, job, n)))
            n += 1
            await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    asyncio.run(main())
