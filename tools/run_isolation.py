"""Runs tests/isolation/specs/*.spec through isolationtester and compares with expected/*.out.

    python -m tools.run_isolation [--major 15] [--match reap] [--accept]

Each spec runs in a database of its own, cloned from one with routeledger installed; the same
expected output holds for every major.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

from tests.servers import REPO, Binaries, Server, ServerMissingError, find_server, majors_requested
from tests.servers import server_binaries as all_binaries

SPECS = REPO / "tests" / "isolation" / "specs"
EXPECTED = REPO / "tests" / "isolation" / "expected"
RELATIVE = Path("lib/pgxs/src/test/isolation/isolationtester")
TIMEOUT = 120


def find_isolationtester(binaries: Binaries) -> tuple[Path, Binaries] | None:
    """That server's own tester, else any other one's (it is only a client)."""
    for one in (binaries, *all_binaries().values()):
        for base in (one.bindir.parent, one.bindir.parent.parent):
            if (base / RELATIVE).is_file():
                return base / RELATIVE, one
    return None


def run_spec(tester: Path, owner: Binaries, server: Server, template: str, spec: Path) -> str:
    """The output of one spec."""
    dbname = server.create_database(template, name=f"iso_{spec.stem.replace('-', '_')}"[:60])
    cmd = [str(tester), server.dsn(dbname)]
    env = owner.env()
    if "LD_LIBRARY_PATH" not in env:  # a tester that came without a search path for its libpq
        env["LD_LIBRARY_PATH"] = str(owner.bindir.parent / "lib")
    try:
        with spec.open(encoding="utf-8") as lines:
            done = subprocess.run(
                cmd, stdin=lines, capture_output=True, text=True, check=False, env=env,
                timeout=TIMEOUT,
            )  # fmt: skip
        output = done.stdout
        if done.returncode:
            output += f"isolationtester ended with {done.returncode}: {done.stderr}"
    except subprocess.TimeoutExpired:
        output = f"no end after {TIMEOUT} s\n"
    finally:
        server.drop_database(dbname)
    return output


def run(major: int, options: argparse.Namespace) -> bool:
    """One major; True when every spec gave what was expected."""
    binaries = find_server(major)
    specs = [
        s for s in sorted(SPECS.glob("*.spec")) if not options.match or options.match in s.stem
    ]
    found = find_isolationtester(binaries)
    if found is None:
        print(
            "isolationtester is not here, so the isolation specs were not run. Debian: it is part "
            "of postgresql-client-15; elsewhere of the server's development files (pgxs).",
            file=sys.stderr,
        )
        return bool(options.optional)
    passed = True
    with Server(binaries) as server:
        print(f"== isolation specs on {server.binaries} with {found[0]}", flush=True)
        template = server.create_database(name="iso_template")
        if not options.no_install:
            server.install(template)
        server.freeze(template)
        for spec in specs:
            output = run_spec(*found, server, template, spec)
            expected = EXPECTED / f"{spec.stem}.out"
            if options.accept:
                expected.write_text(output, encoding="utf-8")
                print(f"  written {expected.relative_to(REPO)}")
                continue
            wanted = expected.read_text(encoding="utf-8") if expected.exists() else ""
            same = output == wanted
            passed &= same
            print(f"  {'ok' if same else 'FAIL':4} {spec.stem}", flush=True)
            if not same:
                diff = difflib.unified_diff(
                    wanted.splitlines(), output.splitlines(), "expected", "got", lineterm=""
                )
                print("\n".join(f"    {line}" for line in diff))
        print(f"{len(specs)} specs: {'ok' if passed else 'FAIL'}")
    return passed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--major", type=int, action="append", help="default: ROUTELEDGER_PG")
    parser.add_argument("--match", help="only specs whose name holds this text")
    parser.add_argument("--accept", action="store_true", help="write the output as expected")
    parser.add_argument("--optional", action="store_true", help="a missing tester is no failure")
    parser.add_argument(
        "--no-install", action="store_true", help="specs that bring their own schema"
    )
    options = parser.parse_args(argv)
    passed = True
    for major in options.major or majors_requested():
        try:
            passed &= run(major, options)
        except ServerMissingError as error:  # noqa: PERF203
            print(f"run_isolation: {error}", file=sys.stderr)
            passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
