"""Runs pgtap/*.sql through pg_prove on servers of its own, started with testing.postgresql.

    python -m tools.run_pgtap [--major 15] [--major 18] [--match 220] [--coverage]

A server each major: pgTAP loaded (CREATE EXTENSION, or its script where the server has no such
extension), routeledger installed by psql, then the files: in parallel, except those whose first
line is `-- serial`. Where plpgsql_check exists (Debian's PG 15) it gates first: a finding of level
error, security or warning fails unless pgtap/plpgsql_check.allow lists it; and its profiler gives
the share of statements that the files executed, which has to reach --minimum.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.servers import REPO, Binaries, Server, ServerMissingError, find_server, majors_requested

FILES = REPO / "pgtap"
ALLOW = FILES / "plpgsql_check.allow"
GATE_LEVELS = ("error", "security", "warning")
HOW_TO_INSTALL = (
    "apt-get install postgresql-15-pgtap libtap-parser-sourcehandler-pgtap-perl "
    "postgresql-15-plpgsql-check, or point PGTAP_SQL at a pgtap.sql"
)


class PgtapError(Exception):
    """The run cannot go on; the message is for the user."""


# -- pgTAP ------------------------------------------------------------------------------------


def pgtap_script(binaries: Binaries) -> Path | None:
    """The install script of pgTAP, which loads into any major."""
    named = os.environ.get("PGTAP_SQL")
    places = [Path(named)] if named else []
    places.append(binaries.sharedir / "extension" / "pgtap.sql")
    places += sorted(Path("/usr/share/postgresql").glob("*/extension/pgtap.sql"), reverse=True)
    return next((place for place in places if place.is_file()), None)


def load_pgtap(server: Server, dbname: str) -> str:
    """Loads it; returns how."""
    if server.binaries.has_extension("pgtap"):
        with server.connect(dbname) as conn:
            conn.execute("create extension pgtap")
        return "extension"
    script = pgtap_script(server.binaries)
    if script is None:
        msg = f"pgTAP is not installed: {HOW_TO_INSTALL}"
        raise PgtapError(msg)
    server.psql(dbname, "-f", str(script))
    return str(script)


def prove(server: Server, dbname: str, files: list[Path], jobs: int, verbose: bool) -> bool:
    """pg_prove, or core Perl's prove with psql, over the files; True when all passed."""
    if not files:
        return True
    names = [str(file.relative_to(REPO)) for file in files]
    flags = ["-j", str(jobs), "--ext", ".sql", *(["-v"] if verbose else [])]
    psql = str(server.binaries.program("psql"))
    pg_prove = shutil.which("pg_prove")
    if pg_prove:
        where = ["-h", server.host, "-p", str(server.port), "-U", "postgres", "-d", dbname]
        cmd = [pg_prove, "--psql-bin", psql, *where, *flags, *names]
    elif shutil.which("prove"):
        runner = f"{psql} -XAtq -P pager=off -v ON_ERROR_STOP=1 -d {server.dsn(dbname)} -f"
        cmd = ["prove", "--exec", runner, *flags, *names]
    else:
        msg = "neither pg_prove nor prove (perl) is installed: apt-get install perl"
        raise PgtapError(msg)
    return subprocess.run(cmd, env=server.binaries.env(), cwd=REPO, check=False).returncode == 0


def is_serial(file: Path) -> bool:
    with file.open(encoding="utf-8") as lines:
        return lines.readline().strip() == "-- serial"


# -- plpgsql_check ----------------------------------------------------------------------------

CHECK = """
select
  format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as routine,
  c.lineno, c.level, c.sqlstate, c.message, c.detail, c.hint
from pg_proc p
join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
left join pg_trigger t on t.tgfoid = p.oid and not t.tgisinternal
cross join lateral plpgsql_check_function_tb(
  funcoid => p.oid, relid => coalesce(t.tgrelid, 0), fatal_errors => false,
  other_warnings => true, performance_warnings => true, extra_warnings => true,
  security_warnings => true) c
where p.pronamespace = 'routeledger'::regnamespace
order by p.proname, c.lineno
"""


@dataclass
class Allowed:
    """One line of the allow-list: `routine name | sqlstate or * | part of the message`."""

    line: int
    routine: str
    sqlstate: str
    part: str
    used: bool = False

    def covers(self, routine: str, sqlstate: str, message: str) -> bool:
        return (
            self.routine in ("*", routine.partition("(")[0])
            and self.sqlstate in ("*", sqlstate)
            and self.part in message
        )


def allow_list(path: Path = ALLOW) -> list[Allowed]:
    entries = []
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            fields = [part.strip() for part in line.split("|", 2)]
            if len(fields) != 3:
                msg = f"{path.name}:{number}: routine | sqlstate | part of the message"
                raise PgtapError(msg)
            routine, sqlstate, part = fields
            entries.append(Allowed(number, routine, sqlstate, part))
    return entries


def check_bodies(conn: psycopg.Connection[Any], verbose: bool) -> bool:
    """The gate over every plpgsql routine of the schema."""
    allowed = allow_list()
    failed = 0
    notes: dict[str, int] = defaultdict(int)
    rows = conn.execute(CHECK).fetchall()
    for routine, line, level, sqlstate, message, detail, hint in rows:
        entry = next((a for a in allowed if a.covers(routine, sqlstate, message)), None)
        gated = level in GATE_LEVELS
        if entry is not None:
            entry.used = True
        elif gated:
            failed += 1
        elif level == "performance" and not verbose:
            notes[level] += 1
            continue
        mark = "allowed" if entry else ("FAIL" if gated else "note")
        extra = " ".join(filter(None, (detail, hint)))
        print(f"  {mark:7} {level} {sqlstate} {routine}:{line or '?'}: {message} {extra}".rstrip())
    for entry in allowed:
        if not entry.used:
            failed += 1
            print(f"  FAIL    {ALLOW.name}:{entry.line} covers nothing any more: remove it")
    counts = ", ".join(f"{count} {level}" for level, count in notes.items())
    print(f"plpgsql_check: {failed} findings fail{f'; seen with -v: {counts}' if counts else ''}")
    return failed == 0


# -- coverage ---------------------------------------------------------------------------------

ROUTINES = """
select p.oid::bigint, p.proname, p.prosrc
from pg_proc p
join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
where p.pronamespace = 'routeledger'::regnamespace
order by p.proname, p.oid
"""
STATEMENTS = """
select lineno, stmtname, exec_stmts + coalesce(exec_stmts_err, 0) > 0
from plpgsql_profiler_function_statements_tb(%s::oid)
order by lineno, stmtid
"""
# for routines with polymorphic parameters, which the one above cannot read
LINES = """
select lineno, 'line', exec_stmts + coalesce(exec_stmts_err, 0) > 0
from plpgsql_profiler_function_tb(%s::oid)
where stmt_lineno is not null
order by lineno
"""


def statements_of(conn: psycopg.Connection[Any], oid: int) -> list[tuple[int, str, bool]]:
    """(line, kind, whether it was ever executed) of each statement of a routine."""
    try:
        return conn.execute(STATEMENTS, [oid]).fetchall()
    except psycopg.errors.InternalError_:
        return conn.execute(LINES, [oid]).fetchall()


def branches_of(conn: psycopg.Connection[Any], oid: int) -> str:
    try:
        row = conn.execute("select plpgsql_coverage_branches(%s::oid)", [oid]).fetchone()
    except psycopg.errors.InternalError_:
        return "?"
    return f"{row[0]:.0%}" if row and row[0] is not None else "?"


def report_coverage(conn: psycopg.Connection[Any], minimum: float) -> bool:
    """Statements executed by routine; True when their overall share reaches the minimum."""
    total = done = 0
    missed: list[str] = []
    print(f"\n{'routine':<40}{'statements':>12}{'executed':>10}{'share':>8}{'branches':>10}")
    for oid, name, source in conn.execute(ROUTINES).fetchall():
        statements = statements_of(conn, oid)
        if not statements:  # never called: the profiler does not know it
            statements = [(1, "routine", False)]
        executed = sum(1 for _, _, seen in statements if seen)
        total, done = total + len(statements), done + executed
        share = executed / len(statements)
        print(
            f"{name:<40}{len(statements):>12}{executed:>10}{share:>8.0%}"
            f"{branches_of(conn, oid):>10}"
        )
        lines = source.split("\n")
        for line, kind, seen in statements:
            if not seen:
                text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
                missed.append(f"  {name}:{line} {kind}: {text[:80]}")
    overall = done / total if total else 1.0
    if missed:
        print("\nnever executed:", *missed, sep="\n")
    verdict = "ok" if overall >= minimum else f"FAIL, at least {minimum:.0%} wanted"
    print(f"\nstatement coverage {overall:.1%} ({done} of {total}): {verdict}")
    return overall >= minimum


# -- the run ----------------------------------------------------------------------------------


def has_plpgsql_check(binaries: Binaries) -> bool:
    return binaries.has_extension("plpgsql_check")


def run(major: int, options: argparse.Namespace) -> bool:
    """One major; True when everything passed."""
    binaries = find_server(major)
    checked = has_plpgsql_check(binaries)
    settings = {"shared_preload_libraries": "plpgsql,plpgsql_check"} if checked else {}
    if checked:
        settings["plpgsql_check.profiler_max_shared_chunks"] = "50000"
    files = sorted(FILES.glob("*.sql"))
    chosen = [file for file in files if not options.match or options.match in file.name]
    with Server(binaries, settings=settings) as server:
        print(f"== pgTAP on {server.binaries}", flush=True)
        dbname = server.create_database(name="pgtap")
        how = load_pgtap(server, dbname)
        with server.connect(dbname) as conn:
            if checked:
                conn.execute("create extension plpgsql_check")
            if not options.no_install:
                server.psql(dbname, "-f", str(REPO / "sql" / "routeledger.sql"))
            version = conn.execute("select pgtap_version()").fetchone()
            print(f"pgTAP {version[0] if version else '?'} from {how}; {len(chosen)} files")
            passed = True
            if checked:
                passed &= check_bodies(conn, options.verbose)
                if not options.no_coverage:
                    conn.execute("alter database pgtap set plpgsql_check.profiler = on")
                    conn.execute("select plpgsql_profiler_reset_all()")
            elif options.coverage:
                print("plpgsql_check is not installed for this server: no gate, no coverage")
                passed = False
            sys.stdout.flush()
            serial = [file for file in chosen if is_serial(file)]
            parallel = [file for file in chosen if file not in serial]
            passed &= prove(server, dbname, parallel, options.jobs, options.verbose)
            passed &= prove(server, dbname, serial, 1, options.verbose)
            if checked and not options.no_coverage and chosen == files:
                passed &= report_coverage(conn, options.minimum)
    return passed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--major", type=int, action="append", help="default: ROUTELEDGER_PG")
    parser.add_argument("--match", help="only files whose name holds this text; no coverage")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", "-v", action="store_true", help="every assertion")
    parser.add_argument("--coverage", action="store_true", help="fail without plpgsql_check")
    parser.add_argument("--no-coverage", action="store_true", help="gate only")
    parser.add_argument("--no-install", action="store_true", help="the files install by themselves")
    parser.add_argument("--minimum", type=float, default=0.95, help="statements, 0 to 1")
    options = parser.parse_args(argv)
    passed = True
    for major in options.major or majors_requested():
        try:
            passed &= run(major, options)
        except (PgtapError, ServerMissingError) as error:  # noqa: PERF203
            print(f"run_pgtap: {error}", file=sys.stderr)
            passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
