"""Runs the stages of `make check`: everything that CI wants beside the tests.

    python -m tools.run_checks [--only NAME]

A stage that fails does not stop the others; the summary says which did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def stages() -> dict[str, list[str]]:
    """Name and command of every stage that applies to this tree."""
    python, sql = sys.executable, REPO / "sql"
    todo = {
        "build_sql": [python, "tools/build_sql.py", "--check"],
        "gen_comments": [python, "tools/gen_comments.py", "--check"],
        "gen_sync": [python, "tools/gen_sync.py", "--check"],
        "ruff": [str(BIN / "ruff"), "check", "."],
        "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
        "mypy": [str(BIN / "mypy"), "pydriver", "tools"],
        "sqlfluff": [str(BIN / "sqlfluff"), "lint", "--processes", "2", "sql/src"],
    }
    todo["pgspot"] = [python, "-m", "tools.run_pgspot"]
    upgrades = sorted(sql.glob("routeledger--*--*.sql"))
    if upgrades:
        todo["squawk"] = [
            str(BIN / "squawk"), "--pg-version=15", "--reporter=gcc",
            "--exclude=prefer-bigint-over-int",  # a number of attempts is no key
            *(str(file.relative_to(REPO)) for file in upgrades),
        ]  # fmt: skip
    if (REPO / "tools" / "gen_facts.py").exists():
        todo["facts"] = [python, "-m", "tools.gen_facts", "--check"]
    if (REPO / "tools" / "gen_docs.py").exists():
        todo["docs"] = [python, "-m", "tools.gen_docs", "--check"]
    return todo


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", help="stages by name; default all")
    options = parser.parse_args(argv)
    failed = []
    for name, cmd in stages().items():
        if options.only and name not in options.only:
            continue
        began = time.monotonic()
        try:
            done = subprocess.run(cmd, cwd=REPO, capture_output=True, text=True, check=False)
            code, output = done.returncode, done.stdout + done.stderr
        except FileNotFoundError:
            code, output = 127, f"{cmd[0]} is not installed: make check\n"
        verdict = "ok" if code == 0 else "FAILED"
        print(f"  {name:<12} {verdict:<7} {time.monotonic() - began:5.1f} s", flush=True)
        if code:
            failed.append(name)
            print("".join(f"    {line}\n" for line in output.splitlines()), end="", flush=True)
    print(f"check: {'FAILED: ' + ', '.join(failed) if failed else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
