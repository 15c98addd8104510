"""What the commands share: where they print, how they fail, and their exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import psycopg
import typer
from psycopg.rows import dict_row
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from routeledger import catalog, patterns
from routeledger.errors import LedgerError, LedgerUnavailable, NotInstalled, translate

OK = 0
FINDING = 1
USAGE = 2
NO_CONNECTION = 3
REFUSED = 4
DATABASE = 5
MISSING = 6
INTERRUPTED = 130

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="CONNINFO",
        help="Connection string or URI; without it libpq's environment is used.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def day_option(flag: str, help: str) -> Any:  # noqa: A002 - as typer has it
    """An option that takes a day (UTC), to be used as ``Annotated[datetime | None, day_option(…)]``."""
    return typer.Option(flag, metavar="DATE", formats=["%Y-%m-%d"], help=help, show_default=False)


def day(given: datetime | None) -> date | None:
    """What such an option was given."""
    return given.date() if given else None


def out() -> Console:
    """Standard output: what the command is asked for."""
    # Into a pipe a line stays a line: what reads it may be grep.
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 500)


def err() -> Console:
    """Standard error: everything else."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: object) -> None:
    """The one document of ``--json``."""
    json.dump(document, sys.stdout, default=plain, indent=2)
    sys.stdout.write("\n")


def plain(value: object) -> object:
    """What JSON has no word for: times in ISO 8601, intervals in seconds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, LedgerError):
        return error_document(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (UUID, Path)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    msg = f"no JSON for {type(value).__name__}"
    raise TypeError(msg)


def error_document(error: LedgerError) -> dict[str, Any]:
    """An error as ``--json`` shows it."""
    return {
        "code": error.sqlstate,
        "name": error.name,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    }


def fail(
    message: str, code: int, as_json: bool, *, hint: str | None = None, name: str = "error"
) -> NoReturn:
    """Say what is wrong and end with an exit code."""
    report(LedgerError(message, name=name, hint=hint), as_json)
    raise typer.Exit(code)


def report(error: LedgerError, as_json: bool) -> None:
    """An error on standard error, with detail and hint; with ``--json`` as the document too."""
    console = err()
    head = f"{error.sqlstate} {error.name}" if error.sqlstate else error.name
    console.print(f"[bold red]{escape(head)}[/]: {escape(error.message)}")
    if error.detail:
        if set(error.detail) <= {"reason", "detail"}:
            for text in error.detail.values():
                console.print(f"  {escape(str(text))}")
        elif any(_is_listed(value) for value in error.detail.values()):
            for line in facts(error.detail):
                console.print(f"  {escape(line)}")
        else:
            console.print(f"  detail: {escape(json.dumps(error.detail, default=str))}")
    if error.hint:
        console.print(f"  hint: {escape(error.hint)}")
    if as_json:
        print_json({"error": error_document(error)})


def _is_listed(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def facts(document: Mapping[str, Any]) -> Iterator[str]:
    """A line a key, and for a list of objects a line each, as people read them."""
    for key, value in document.items():
        if value in (None, [], {}):
            continue
        name = key.replace("_", " ")
        if _is_listed(value):
            yield f"{name}:"
            yield from (f"  {_flat(item, inside=False)}" for item in value)
        else:
            yield f"{name}: {_flat(value, inside=False)}"


# what an object of a list is about stands first; PostgreSQL keeps keys by their length
_FIRST = ("table", "row_no", "constraint", "key", "reason")


def _flat(value: object, *, inside: bool = True) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
        text = ", ".join(f"{key.replace('_', ' ')} {_flat(value[key])}" for key in keys)
    elif isinstance(value, list):
        text = ", ".join(map(_flat, value))
    else:
        return json.dumps(value, ensure_ascii=False, default=plain)
    return f"({text})" if inside else text


@contextlib.contextmanager
def working(as_json: bool) -> Iterator[Progress]:
    """On a terminal, how long it has been; nothing elsewhere. What is printed stands above it."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err(),
        transient=True,
        disable=as_json or not sys.stderr.isatty(),
    ) as progress:
        progress.add_task("working")
        yield progress


@contextlib.contextmanager
def answering(as_json: bool) -> Iterator[None]:
    """Turn whatever goes wrong into a message and an exit code; never a traceback."""
    try:
        yield
    except catalog.CatalogError as exc:
        missing = isinstance(exc.__cause__, ImportError)
        fail(str(exc), MISSING if missing else USAGE, as_json, name="catalog")
    except LedgerError as exc:
        error = _not_installed(exc) if exc.sqlstate in ("3F000", "42883") else _advised(exc)
        report(error, as_json)
        raise typer.Exit(exit_code(error)) from exc
    except psycopg.Error as exc:
        error = translate(exc)
        if error.sqlstate in ("3F000", "42883", "42P01"):
            error = _not_installed(error)
        report(_advised(error), as_json)
        raise typer.Exit(exit_code(error)) from exc
    except BrokenPipeError:
        raise  # whoever reads our output has had enough
    except OSError as exc:
        fail(str(exc), MISSING, as_json, name="missing")
    except KeyboardInterrupt:
        err().print("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def _advised(error: LedgerError) -> LedgerError:
    if error.sqlstate == "42501" and error.hint is None:
        error.hint = (
            "To look takes routeledger_reader; to label, routeledger_judge; to change a table's "
            "constraints or rows takes routeledger_writer and the rights of its owner; to run the "
            "ledger, routeledger_admin."
        )
    return error


def _not_installed(error: LedgerError) -> LedgerError:
    return NotInstalled(
        "there is no routeledger in this database, or not this version of it",
        detail={"reason": error.message},
        hint="Run `routeledger plan`, then `routeledger install`.",
    )


_SOURCE_CODES: dict[type[patterns.SourceError], int] = {
    patterns.ExtraMissing: MISSING,
    patterns.SourceUnavailable: NO_CONNECTION,
}


def exit_code(error: LedgerError) -> int:
    """The exit code that an error ends a command with."""
    if isinstance(error, patterns.SourceError):
        return _SOURCE_CODES.get(type(error), USAGE)
    if error.sqlstate is not None and error.sqlstate.startswith("RL"):
        return REFUSED
    if isinstance(error, LedgerUnavailable):
        return NO_CONNECTION
    return DATABASE


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without lines, for people."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def rows(
    conn: psycopg.Connection[Any], query: str, params: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The rows of a query, by column name."""
    with conn.cursor(row_factory=dict_row) as cur:
        return cur.execute(query.encode(), params).fetchall()
