"""Durable decision cycles on one connection: coalesced, against one transaction a write.

    python bench/coalescing.py --dsn postgresql:///app [--callers 200] [--seconds 3] [--json]

A cycle is `insert_decision` and then `complete_decision`, each awaited until it is durable. Both
sides go through the same driver and one connection, in the same run, in alternating rounds:

- one transaction a write: one caller, `coalesce=False`; the asyncio and the threads client, of
  which the faster counts;
- coalesced: `--callers` concurrent callers of one client.

The ratio printed is of the medians of the rounds. The database must have routeledger installed;
rows of tenant ``bench`` are added to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from typing import Any

import routeledger

CANDIDATES = [
    {"model_slug": "bench/small", "provider": "bench", "score": 0.71},
    {"model_slug": "bench/medium", "provider": "bench", "score": 0.64},
    {"model_slug": "bench/large", "provider": "bench", "score": 0.52},
]
DECISION: dict[str, Any] = {
    "tenant_id": "bench",
    "agent_id": "support",
    "task_type": "chat",
    "candidates": CANDIDATES,
    "traffic_class": "synthetic",
}
USAGE: dict[str, Any] = {
    "tenant_id": "bench",
    "outcome_status": "succeeded",
    "input_tokens": 812,
    "output_tokens": 164,
    "latency_ms": 921.5,
}


class Round:
    """What one round measured: cycles, seconds, and each call's seconds."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.cycles = 0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        """Cycles a second."""
        return self.cycles / self.seconds


async def async_round(dsn: str, seconds: float, callers: int, *, coalesce: bool) -> Round:
    """One round of the asyncio client."""
    out = Round()
    async with await routeledger.AsyncLedger.connect(
        dsn, min_size=1, max_size=1, coalesce=coalesce, max_batch=max(callers, 1)
    ) as ledger:

        async def cycle() -> None:
            t0 = time.perf_counter()
            decision = await ledger.insert_decision(**DECISION)
            t1 = time.perf_counter()
            await ledger.complete_decision(id=decision.id, attempt_id=decision.attempt_id, **USAGE)
            t2 = time.perf_counter()
            out.calls.append(t1 - t0)
            out.calls.append(t2 - t1)
            out.cycles += 1

        async def caller(until: float) -> None:
            while time.perf_counter() < until:
                await cycle()

        await asyncio.gather(*(cycle() for _ in range(callers)))  # warm
        out.calls.clear()
        out.cycles = 0
        start = time.perf_counter()
        await asyncio.gather(*(caller(start + seconds) for _ in range(callers)))
        out.seconds = time.perf_counter() - start
    return out


def sync_round(dsn: str, seconds: float, callers: int, *, coalesce: bool) -> Round:
    """One round of the threads client."""
    out = Round()
    with routeledger.connect(
        dsn, min_size=1, max_size=1, coalesce=coalesce, max_batch=max(callers, 1)
    ) as ledger:

        def caller(until: float) -> None:
            while time.perf_counter() < until:
                t0 = time.perf_counter()
                decision = ledger.insert_decision(**DECISION)
                t1 = time.perf_counter()
                ledger.complete_decision(id=decision.id, attempt_id=decision.attempt_id, **USAGE)
                t2 = time.perf_counter()
                out.calls += (t1 - t0, t2 - t1)

        start = time.perf_counter()
        threads = [threading.Thread(target=caller, args=(start + seconds,)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        out.seconds = time.perf_counter() - start
        out.cycles = len(out.calls) // 2
    return out


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Median cycles a second, and percentiles of a call's milliseconds."""
    calls = sorted(c * 1000 for r in rounds for c in r.calls)
    return {
        "cycles_per_second": round(statistics.median(r.rate for r in rounds), 1),
        "rounds": [round(r.rate, 1) for r in rounds],
        "call_ms_p50": round(calls[len(calls) // 2], 3),
        "call_ms_p99": round(calls[len(calls) * 99 // 100], 3),
    }


def measure(dsn: str, *, callers: int, seconds: float, rounds: int, threads: int) -> dict[str, Any]:
    """All sides, in alternating rounds."""
    one_async: list[Round] = []
    one_sync: list[Round] = []
    many_async: list[Round] = []
    many_sync: list[Round] = []
    for _ in range(rounds):
        one_async.append(asyncio.run(async_round(dsn, seconds, 1, coalesce=False)))
        many_async.append(asyncio.run(async_round(dsn, seconds, callers, coalesce=True)))
        one_sync.append(sync_round(dsn, seconds, 1, coalesce=False))
        if threads:
            many_sync.append(sync_round(dsn, seconds, threads, coalesce=True))
    sides = {
        "one_by_one_asyncio": summary(one_async),
        "one_by_one_threads": summary(one_sync),
        "coalesced_asyncio": summary(many_async),
    }
    if threads:
        sides["coalesced_threads"] = summary(many_sync)
    best_single = max(
        sides["one_by_one_asyncio"]["cycles_per_second"],
        sides["one_by_one_threads"]["cycles_per_second"],
    )
    coalesced = sides["coalesced_asyncio"]["cycles_per_second"]
    return {
        "benchmark": "coalescing",
        "callers": callers,
        "threads": threads,
        "seconds": seconds,
        "sides": sides,
        "ratio": round(coalesced / best_single, 2),
        "ratio_same_client": round(coalesced / sides["one_by_one_asyncio"]["cycles_per_second"], 2),
        "target": 15.0,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dsn", default="", help="libpq's; its environment when absent")
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="also threads, so many")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    result = measure(
        options.dsn,
        callers=options.callers,
        seconds=options.seconds,
        rounds=options.rounds,
        threads=options.threads,
    )
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    for name, side in result["sides"].items():
        print(
            f"{name:20} {side['cycles_per_second']:>9,.0f} cycles/s   a call: "
            f"p50 {side['call_ms_p50']:.2f} ms, p99 {side['call_ms_p99']:.2f} ms"
        )
    print(f"coalesced by {options.callers} / one transaction a write: {result['ratio']}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
