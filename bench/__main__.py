"""Runs every comparison on one private server and prints its ratios.

    python -m bench [--only cycle] [--seconds 4] [--rounds 3] [--rows 200000] [--major 15] [--json]

With --json the results are printed as JSON and kept under bench/results/. Absolute figures mean
nothing on a shared machine; each ratio is of two sides measured in turn, in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import (
    coalescing,
    constraints,
    corpus,
    cycle,
    judging,
    litellm_added,
    partitions,
    routing,
    upsert,
)
from bench.harness import Bench
from tests.servers import Server, find_server, majors_requested

RESULTS = Path(__file__).resolve().parent / "results"


def measure_coalescing(bench: Bench, _: Path) -> dict[str, Any]:
    """Durable cycles on one connection, through the driver."""
    result = coalescing.measure(
        bench.server.dsn(bench.database()),
        callers=200,
        seconds=bench.seconds,
        rounds=bench.rounds,
        threads=0,
    )
    return {
        "what": "durable cycles a second on one connection: coalesced against one by one",
        **result,
        "target": ">= 15",
    }


COMPARISONS = {
    "cycle": cycle.measure,
    "coalescing": measure_coalescing,
    "constraints": constraints.measure,
    "corpus": corpus.measure,
    "judging": judging.measure,
    "litellm": litellm_added.measure,
    "partitions": partitions.measure,
    "routing": routing.measure,
    "upsert": upsert.measure,
}


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(COMPARISONS), action="append")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each side")
    parser.add_argument(
        "--rows",
        type=int,
        action="append",
        help="of an upsert (10000 and 200000), under a constraint, in a corpus or to judge (1000000)",
    )
    parser.add_argument("--major", type=int, default=majors_requested()[0])
    parser.add_argument("--json", action="store_true", help="print JSON and keep it")
    options = parser.parse_args()

    results: dict[str, Any] = {}
    with (
        Server(find_server(options.major), durable=True) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        Path(folder).chmod(0o755)
        bench = Bench(
            server, seconds=options.seconds, rounds=options.rounds, sizes=options.rows or ()
        )
        for name in options.only or COMPARISONS:
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = COMPARISONS[name](bench, Path(folder))
            if not options.json:
                ratio = results[name]["ratio"]
                shown = (
                    ", ".join(f"{k}: {v:.2f}×" for k, v in ratio.items())
                    if isinstance(ratio, dict)
                    else f"{ratio:.2f}×"
                )
                print(f"{results[name]['what']}\n  {shown}   (target {results[name]['target']})")
    if options.json:
        document = {
            "postgresql": options.major,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "results": results,
        }
        text = json.dumps(document, indent=2) + "\n"
        RESULTS.mkdir(exist_ok=True)
        for name in results:
            (RESULTS / f"{name}-pg{options.major}.json").write_text(
                json.dumps({**document, "results": {name: results[name]}}, indent=2) + "\n"
            )
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
