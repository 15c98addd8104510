"""Runs the stages of `make test` one after the other and sums up; a failure does not stop the rest.

    python -m tools.run_tests [--major 15] [--major 18] [--only pytest] [-- pytest arguments]

pgTAP on every major, isolation specs on every major, then pytest: all of it on the first major,
what uses a server on the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tests.servers import REPO, ServerMissingError, find_server

STAGES = ("pgtap", "isolation", "pytest")


def command(stage: str, major: int, extra: list[str], *, first: bool) -> list[str]:
    python = [sys.executable, "-m"]
    if stage == "pytest":
        # what uses no server of the suite gives the same on every major: once is enough
        chosen = [] if first or "-m" in extra else ["-m", "db"]
        # most tests wait for a server: one process more than the two processors of a small machine
        spread = [] if "-n" in extra else ["-n", os.environ.get("ROUTELEDGER_WORKERS", "3")]
        shown = ["-q", "--durations=10", "--durations-min=3"]
        return [*python, "pytest", *spread, *shown, *chosen, *extra]
    return [*python, f"tools.run_{stage}", "--major", str(major)]


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    extra: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, extra = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--major", type=int, action="append", required=True)
    parser.add_argument("--only", choices=STAGES, action="append")
    options = parser.parse_args(arguments)

    results: list[tuple[str, str, float]] = []
    for stage in options.only or STAGES:
        for major in options.major:
            name = f"{stage} on {major}"
            print(f"\n### {name}", flush=True)
            began = time.monotonic()
            try:
                print(find_server(major), flush=True)
            except ServerMissingError as error:
                print(error)
                results.append((name, "MISSING", 0.0))
                continue
            # how a test finds its server: tests/servers.py
            env = ["/usr/bin/env", f"ROUTELEDGER_PG={major}"]
            first = major == options.major[0]
            done = subprocess.run(
                [*env, *command(stage, major, extra, first=first)], cwd=REPO, check=False
            )
            # 5: pytest chose none, as when only unit tests were asked for
            ok = done.returncode in ((0,) if first or stage != "pytest" else (0, 5))
            results.append((name, "ok" if ok else "FAILED", time.monotonic() - began))

    print("\n### summary")
    for name, verdict, seconds in results:
        print(f"  {name:<18} {verdict:<8} {seconds:6.1f} s")
    return 0 if all(verdict == "ok" for _, verdict, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
