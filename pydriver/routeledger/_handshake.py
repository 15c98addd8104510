"""What is looked at when a client opens, and when it takes a connection from the pool."""

from __future__ import annotations

import select
import shlex

import psycopg
from psycopg import BaseConnection, conninfo, pq

from ._version import __version__
from .errors import LedgerError, NotInstalled, OtherVersionInstalled, SchemaTooNew

MINIMUM = "0.1.0"
"""The oldest schema that this client works with."""

# invalid_schema_name, undefined_function
_ABSENT = frozenset({"3F000", "42883"})
_FORBIDDEN = "42501"


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers; what follows a hyphen or plus does not count."""
    core = version.split("+")[0].split("-")[0]
    return tuple(int(part) for part in core.split(".") if part.isdecimal())


def command(verb: str, dsn: str) -> str:
    """The command line that does it to this database, without the password."""
    try:
        parts = {k: v for k, v in conninfo.conninfo_to_dict(dsn).items() if k != "password"}
    except psycopg.Error:
        return f"routeledger {verb}"
    shown = conninfo.make_conninfo("", **parts)
    return f"routeledger {verb}" + (f" --dsn {shlex.quote(shown)}" if shown else "")


def explain(exc: LedgerError, dsn: str) -> LedgerError:
    """The error of the handshake, in terms of what to do."""
    if exc.sqlstate in _ABSENT:
        return NotInstalled(
            "routeledger is not installed in this database",
            hint=f"Run: {command('install', dsn)}",
        )
    if exc.sqlstate == _FORBIDDEN:
        return LedgerError(
            exc.message,
            sqlstate=exc.sqlstate,
            name=exc.name,
            detail=exc.detail,
            hint="Grant this role routeledger_writer (or _reader, _judge, _admin).",
        )
    return exc


def check(installed: str, dsn: str) -> None:
    """See that the schema is of a version that this client understands.

    Before 1.0 a new minor version may change what a client relies on; from 1.0 on a new major
    version may.

    Raises:
        OtherVersionInstalled: it is older than this client needs.
        SchemaTooNew: it is newer than this client understands.
    """
    theirs, ours = numbers(installed), numbers(__version__)
    detail = {"installed": installed, "driver": __version__}
    if theirs < numbers(MINIMUM):
        raise OtherVersionInstalled(
            "another version of routeledger is installed",
            detail=detail,
            hint=f"Run: {command('upgrade', dsn)}",
        )
    significant = 1 if ours and ours[0] > 0 else 2
    if theirs[:significant] > ours[:significant]:
        raise SchemaTooNew(
            "the installed schema is newer than this driver understands",
            detail=detail,
            hint=f"Run: pip install --upgrade 'routeledger>={installed}'",
        )


def check_socket(conn: BaseConnection[object]) -> None:
    """Raise when the server has closed an idle connection; takes microseconds."""
    pgconn = conn.pgconn
    if pgconn.status == pq.ConnStatus.OK:
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        if not poll.poll(0):
            return
        pgconn.consume_input()  # raises when the other end is gone
        if pgconn.status == pq.ConnStatus.OK:
            return
    raise psycopg.OperationalError("the connection was closed by the server")
