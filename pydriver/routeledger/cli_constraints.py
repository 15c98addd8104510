"""`routeledger constraints`: what is declared, what is live, and making the one like the other."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from rich.markup import escape
from rich.text import Text

from routeledger import _terminal as terminal
from routeledger import constraints, install
from routeledger._terminal import FINDING, USAGE, AsJson, Dsn
from routeledger.constraints import Declaration

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Constraints that are what you declared, on tables that are in use.",
)

Table = Annotated[
    str | None, typer.Argument(help="Only constraints of this table.", show_default=False)
]
Name = Annotated[str | None, typer.Argument(help="Only this one.", show_default=False)]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="The declarations of a constraints.toml; without it, those in the database.",
        show_default=False,
    ),
]


@app.command("plan")
def plan_command(
    table: Table = None,
    name: Name = None,
    file: File = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Say what apply would do first: rows in the way, duplicates, children, triggers.

    Writes nothing; what a file declares is rolled back. Exit code 1 when something would be refused
    or rows are in the way.

    [bold]Example[/bold]: routeledger constraints plan --file constraints.toml
    """
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction(force_rollback=True):
            planned = [
                row
                for scope in _scopes(conn, declared, table, name)
                for row in constraints.plan(conn, *scope)
            ]
        _show(planned, as_json, would=True)


@app.command("apply")
def apply_command(
    table: Table = None,
    name: Name = None,
    file: File = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Let writers go on while unique keys are made: collapse in batches, build "
            "concurrently. Needs a connection of its own, not through a transaction-mode pooler.",
        ),
    ] = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Make the declared constraints true, each step in a transaction of its own.

    One that cannot be applied does not keep the others from it. Killed at whatever moment, the same
    command goes on. Exit code 1 when one was refused or rows are in the way.

    [bold]Examples[/bold]\n
    routeledger constraints apply --file constraints.toml\n
    routeledger constraints apply --online app.daily_costs daily_costs_key
    """
    _apply(table, name, file, dsn, as_json, online=online)


@app.command("validate")
def validate_command(
    table: Table = None,
    name: Name = None,
    file: File = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Validate what is declared and there but NOT VALID; add and replace nothing.

    Readers and writers go on meanwhile. Exit code 1 when rows are in the way.
    """
    _apply(table, name, file, dsn, as_json, only_validate=True)


@app.command("drift")
def drift_command(
    table: Table = None,
    name: Name = None,
    file: File = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """List declared constraints that are not what is live, the two side by side.

    Writes nothing and takes no lock on the tables. Exit code 1 when there is one, or when it cannot
    be known.
    """
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction(force_rollback=True):
            states = [
                row
                for scope in _scopes(conn, declared, table, name)
                for row in constraints.states(conn, *scope)
            ]
        drift = [row for row in states if row["state"] != "unchanged"]
        if as_json:
            terminal.print_json({"constraints": len(states), "drift": drift})
        else:
            _show_drift(drift, len(states))
        if drift:
            raise typer.Exit(FINDING)


def _apply(
    table: str | None,
    name: str | None,
    file: Path | None,
    dsn: str | None,
    as_json: bool,
    *,
    online: bool = False,
    only_validate: bool = False,
) -> None:
    err = terminal.err()
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction():
            scopes = _scopes(conn, declared, table, name)
        conn.add_notice_handler(lambda notice: err.print(escape(notice.message_primary or "")))
        results = [
            row
            for scope in scopes
            for row in constraints.apply(
                conn,
                *scope,
                online=online,
                only_validate=only_validate,
                progress=lambda step: err.print(escape(str(step))),
            )
        ]
        _show(results, as_json)


@contextlib.contextmanager
def _opened(
    dsn: str | None, file: Path | None, as_json: bool
) -> Iterator[tuple[psycopg.Connection[Any], list[Declaration] | None]]:
    """A connection, and what the file declares."""
    try:
        declared = None if file is None else constraints.read(file)
    except (constraints.FileError, OSError) as exc:
        terminal.fail(str(exc), USAGE, as_json, name="file")
    with install.connection(dsn) as conn:
        yield conn, declared


def _scopes(
    conn: psycopg.Connection[Any],
    declared: list[Declaration] | None,
    table: str | None,
    name: str | None,
) -> Sequence[tuple[str | None, str | None]]:
    """What to look at: table and name, of which None is every one."""
    if declared is None:
        return [(table, name)]
    wanted = constraints.only(conn, declared, table, name)
    constraints.declare(conn, wanted)
    return [(one.table, one.name) for one in wanted]


# -- for people ------------------------------------------------------------------------------------

# of a row's detail: what the other lines say already, and what only a program asks for
_UNSHOWN = frozenset({"attempts", "change_id", "declaration", "dry_run", "name"})


def _show(rows: list[dict[str, Any]], as_json: bool, *, would: bool = False) -> None:
    bad = [row for row in rows if not constraints.is_good(row)]
    if as_json:
        terminal.print_json({"ok": not bad, "constraints": rows})
    else:
        out = terminal.out()
        for row in rows:
            out.print(f"[bold]{escape(_title(row))}[/]: {escape(_verdict(row, would))}")
            for word, text in _facts(row):
                out.print(f"  {escape(word)}: {escape(text)}")
        if not rows:
            out.print("nothing is declared")
    if bad:
        raise typer.Exit(FINDING)


def _title(row: dict[str, Any]) -> str:
    return f"{row['target']} {row['name']}"


def _verdict(row: dict[str, Any], would: bool) -> str:
    if row["outcome"] is None:
        return f"failed: {row['error']['message']}"
    words = [word for word in row.get("steps") or [row["outcome"]] if word != "unchanged"]
    if not words:
        return "as declared"
    text = ("would be " if would else "") + ", then ".join(words)
    if row["reason"] is None:
        return text
    return f"{text}{'' if row['outcome'] == 'refused' else ', not valid'}: {row['reason']}"


def _facts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is worth a line each, below the verdict."""
    if error := row.get("error"):
        yield "error", f"{error['code']} {json.dumps(error['detail'], default=str)}"
        if error["hint"]:
            yield "hint", error["hint"]
    if row["outcome"] in (None, "unchanged"):
        return
    yield "declared", str(row["definition"])
    if row["found"] is not None:
        yield "found", row["found"]
    if row["violations"] and row["kind"] != "unique":
        yield "rows in the way", f"{row['violations']:,}"
    for key, value in (row["detail"] or {}).items():
        if key not in _UNSHOWN and value not in (None, [], {}):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield key.replace("_", " "), text
    if row["next"] is not None:
        yield "next", row["next"]


def _show_drift(drift: list[dict[str, Any]], looked_at: int) -> None:
    out = terminal.out()
    if not drift:
        out.print(f"{looked_at:,} declared constraints are as declared")
        return
    table = terminal.table("constraint", "state", "declared", "live")
    for row in drift:
        declared, live = _side_by_side(row["declared"] or "", row["found"] or "")
        table.add_row(escape(_title(row)), row["state"], declared, live)
    out.print(table)
    terminal.err().print(
        f"{len(drift):,} of {looked_at:,} declared constraints are not as declared"
    )


def _side_by_side(declared: str, live: str) -> tuple[Text, Text]:
    """The two texts, with what only one of them has marked."""
    ours, theirs = (re.findall(r"\w+|\s+|[^\w\s]+", text) for text in (declared, live))
    left, right = Text(), Text()
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        same = kind == "equal"
        left.append("".join(ours[a:b]), None if same else "bold green")
        right.append("".join(theirs[c:d]), None if same else "bold red")
    return left, right
