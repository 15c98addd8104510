"""What the logger adds to a request of LiteLLM's Router.

Each side asks the same provider, a process of its own on the loopback, through a Router: with a
callback that does nothing, with the logger awaited (the attempt is durable before the call), and
with the logger that hands its writes over. One caller, then sixteen, whose writes share commits.
Rounds alternate; what counts are the milliseconds of one request, of all rounds of a side.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Bench
from tests.servers import REPO

PROVIDER = """
import sys
from tests.loopback import Loopback
with Loopback() as provider:
    print(provider.base_url, flush=True)
    sys.stdin.read()
"""
SIDES = ("no-op", "awaited", "handed over")
CALLERS = (1, 16)


def measure(bench: Bench, _: Path) -> dict[str, Any]:
    """Milliseconds of a request on each side, and what they are of the no-op's."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    dsn = bench.server.dsn(bench.database())
    with subprocess.Popen(
        [sys.executable, "-c", PROVIDER],
        cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as provider:  # fmt: skip
        assert provider.stdout is not None
        base_url = provider.stdout.readline().strip()
        taken = asyncio.run(_rounds(dsn, base_url, bench.seconds, bench.rounds))
        provider.communicate()
    sides = {
        f"{callers} callers, {side}": {
            "p50_ms": statistics.median(found),
            "p95_ms": statistics.quantiles(found, n=20)[-1],
            "requests": len(found),
        }
        for (callers, side), found in taken.items()
    }
    return {
        "what": "milliseconds of a Router's request with the logger against a no-op callback",
        "sides": sides,
        "added_ms": {
            name: side["p50_ms"] - sides[f"{name.split(',')[0]}, no-op"]["p50_ms"]
            for name, side in sides.items()
            if not name.endswith("no-op")
        },
        "ratio": {
            name: side["p50_ms"] / sides[f"{name.split(',')[0]}, no-op"]["p50_ms"]
            for name, side in sides.items()
            if not name.endswith("no-op")
        },
        "target": "none: LiteLLM's own time varies with its version",
    }


async def _rounds(
    dsn: str, base_url: str, seconds: float, rounds: int
) -> dict[tuple[int, str], list[float]]:
    import litellm  # takes seconds
    from litellm.integrations.custom_logger import CustomLogger

    from routeledger.litellm import RouteLedgerLogger

    with tempfile.TemporaryDirectory() as spool:
        callbacks = {
            "no-op": CustomLogger(),
            "awaited": RouteLedgerLogger(dsn, tenant="bench", spool_path=f"{spool}/a"),
            "handed over": RouteLedgerLogger(
                dsn, tenant="bench", wait=False, spool_path=f"{spool}/b"
            ),
        }
        router = litellm.Router(
            model_list=[
                {
                    "model_name": "a",
                    "litellm_params": {
                        "model": "openai/gpt-4o-mini",
                        "api_base": base_url,
                        "api_key": "none",
                    },
                }
            ]
        )
        taken: dict[tuple[int, str], list[float]] = {}
        for number in range(rounds + 1):
            for callers in CALLERS:
                for side in SIDES:
                    litellm.logging_callback_manager._reset_all_callbacks()
                    litellm.callbacks = [callbacks[side]]
                    found = await _round(router, seconds, callers)
                    if number:  # the first round warms up
                        taken.setdefault((callers, side), []).extend(found)
        for callback in callbacks.values():
            if isinstance(callback, RouteLedgerLogger):
                await callback.close()
                assert callback.lost == 0
    return taken


async def _round(router: Any, seconds: float, callers: int) -> list[float]:
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < until:
            await router.acompletion(model="a", messages=[{"role": "user", "content": "hello"}])
            found.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return found
