"""Writes sql/routeledger.facts: what a fresh install of sql/routeledger.sql holds, one line a fact.

    python -m tools.gen_facts            write the file
    python -m tools.gen_facts --check    fail when the file is stale (CI)

`routeledger verify` compares a database with it. Needs a server: it starts one, the first of
ROUTELEDGER_PG, for facts are the same on every supported major.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from routeledger import install
from tests.servers import Server, find_server, majors_requested

REPO = Path(__file__).resolve().parent.parent


def facts() -> str:
    """The facts of a fresh install."""
    with Server(find_server(majors_requested()[0])) as server:
        server.install("postgres")
        return "".join(f"{fact}\n" for fact in install.snapshot(server.dsn()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when the file is stale")
    options = parser.parse_args(argv)
    target = REPO / "sql" / "routeledger.facts"
    text = facts()
    current = target.read_text(encoding="utf-8") if target.exists() else None
    if current == text:
        return 0
    if options.check:
        print(f"gen_facts: {target} is stale: run `make facts`", file=sys.stderr)
        return 1
    target.write_text(text, encoding="utf-8")
    print(f"gen_facts: wrote {target.relative_to(REPO)}, {text.count(chr(10))} facts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
