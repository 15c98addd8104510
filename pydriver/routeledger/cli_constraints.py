"""`routeledger constraints`: what is declared, what is live, and making the one like the other."""

from __future__ import annotations

import contextlib
import difflib
import re
import time
from collections.abc import Callable, Iterator, Sequence
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
    rich_markup_mode="rich",
    help="""Constraints that are what you declared, on tables that are in use.

Say in a file what there shall be, a block a constraint, whatever the database holds now:

\b
\\[\\[check]]
table = "app.outcomes"
name = "chosen_has_inference"
predicate = "outcome_status is null or inference_id is not null"

\b
\\[\\[not_null]]
table = "app.outcomes"
name = "agent_known"
column = "agent_id"

\b
\\[\\[unique]]
table = "app.daily_costs"
name = "daily_costs_key"
columns = ["day", "agent_id"]
keep = "latest updated_at"      # which of several rows stays

Then [bold]drift[/] shows the difference, [bold]plan[/] what would be done and what is in the way,
[bold]apply[/] does it and keeps the declarations in the database, and [bold]drift[/] without --file
watches them from then on. select routeledger.undeclare_constraint('TABLE', 'NAME') ends that.

The role needs routeledger_writer and the ownership of the tables; drift without --file
routeledger_reader.
""",
)

Table = Annotated[
    str | None,
    typer.Argument(
        help="Only constraints of this table, such as app.outcomes.", show_default=False
    ),
]
Name = Annotated[
    str | None, typer.Argument(help="Only the constraint of this name.", show_default=False)
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A constraints.toml; without it, what was declared in the database before.",
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

    Reads the tables to count, writes nothing, and rolls back what a file declares. Exit code 1 when
    something would be refused or rows are in the way; then it says what to do about it.

    [bold]Examples[/bold]\n
    routeledger constraints plan --file constraints.toml\n
    routeledger constraints plan --file constraints.toml app.daily_costs daily_costs_key
    """
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction(force_rollback=True):
            planned = [
                row
                for scope in _scopes(conn, declared, table, name)
                for row in constraints.plan(conn, *scope)
            ]
        _found(planned, table, name, as_json)
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
            help="Let writers go on while unique keys are made: collapse duplicates in batches, "
            "build the index concurrently. Not through a transaction-mode pooler.",
        ),
    ] = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Make the declared constraints true, each step in a transaction of its own.

    What is as declared is left alone. A changed CHECK is swapped in one statement that waits for its
    lock a second at most and tries again, and then validated while readers and writers go on. For a
    unique key writers wait while duplicates are collapsed and the index is built, or go on, with
    --online; every row that goes is kept, for: routeledger repair undo.

    One that cannot be applied does not keep the others from it. Killed at whatever moment, the same
    command goes on. Exit code 1 when one was refused or failed, or rows are in the way.

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

    The last of three steps, where rows are in the way: declare the constraint with if_violated =
    "add_not_valid" and apply it, so that new rows obey; correct the old ones; validate. Readers and
    writers go on meanwhile. Exit code 1 when rows are still in the way, or when what is there is not
    what is declared.

    [bold]Example[/bold]: routeledger constraints validate app.outcomes agent_known
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
    be known, so that it can stand in CI. The states: missing, different (another definition),
    not_valid (old rows were never looked at), not_enforced, function_changed (a function of the
    predicate does something else now), invalid_index (a build was broken off), table_missing,
    unknown (a read-only session, or no privilege).

    [bold]Examples[/bold]\n
    routeledger constraints drift\n
    routeledger constraints drift --file constraints.toml --json | jq '.drift\\[].name'
    """
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction(force_rollback=True):
            states = [
                row
                for scope in _scopes(conn, declared, table, name)
                for row in constraints.states(conn, *scope)
            ]
        _found(states, table, name, as_json)
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
    with terminal.answering(as_json), _opened(dsn, file, as_json) as (conn, declared):
        with conn.transaction():
            scopes = _scopes(conn, declared, table, name)
        with terminal.working(as_json) as progress:

            def say(line: object) -> None:
                progress.console.print(escape(str(line)))

            conn.add_notice_handler(lambda notice: say(notice.message_primary))
            steps = _Steps(say)
            results = [
                row
                for scope in scopes
                for row in constraints.apply(
                    conn, *scope, online=online, only_validate=only_validate, progress=steps.show
                )
            ]
            steps.end_batches()
        _found(results, table, name, as_json)
        _show(results, as_json)


_OFTEN = 10.0


class _Steps:
    """What --online shows: every command, and of the batches of duplicates how far they are."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._keys = self._rows = self._first = self._last = 0
        self._began = self._said = 0.0

    def show(self, step: constraints.OnlineStep) -> None:
        """Before and after each step."""
        if step.action != "collapse":
            self.end_batches()
            self._say(str(step))
            return
        if not self._first:
            self._first, self._began = step.number, time.monotonic()
            self._said = self._began
            self._say(str(step))
        self._last = step.number
        if step.error is not None:
            self._say(str(step))
        elif step.row is not None:
            self._keys += step.row["groups"]
            self._rows += step.row["removed"]
            if time.monotonic() - self._said > _OFTEN:
                self._said = time.monotonic()
                self._say(f"{self._last}: {self._so_far()}")

    def end_batches(self) -> None:
        """Sum them up."""
        if self._first:
            batches = f"{self._first}-{self._last}" if self._last > self._first else self._first
            self._say(f"{batches}: {self._so_far()}")
            self._keys = self._rows = self._first = 0

    def _so_far(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{self._rows:,} rows of {self._keys:,} keys removed in {seconds:.1f} s"


def _found(rows: Sequence[object], table: str | None, name: str | None, as_json: bool) -> None:
    """A name that is not declared is a mistake: what was asked for is not as declared."""
    if not rows and (table or name):
        terminal.fail(
            f"no constraint {f'{name} ' if name else ''}of {table} is declared",
            USAGE,
            as_json,
            hint="Without TABLE and NAME the command is about all that are.",
            name="usage",
        )


@contextlib.contextmanager
def _opened(
    dsn: str | None, file: Path | None, as_json: bool
) -> Iterator[tuple[psycopg.Connection[Any], list[Declaration] | None]]:
    """A connection, and what the file declares."""
    try:
        try:
            declared = None if file is None else constraints.read(file)
        except OSError as exc:
            raise constraints.FileError(str(exc)) from None
        with install.connection(dsn) as conn:
            yield conn, declared
    except constraints.FileError as exc:
        terminal.fail(str(exc), USAGE, as_json, name="file")


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

# what to do about the reason why one is refused or pending
_ADVICE = {
    "violations": 'correct these rows; or declare if_violated = "add_not_valid" and apply, so that '
    "new rows obey at once, correct the old ones, and run: routeledger constraints validate",
    "predicate_fails": "some row makes the predicate fail: guard it, such as with case or nullif",
    "row_security": "connect as a role from which row-level security hides no row",
    "not_owner": "connect as a member of the owner",
    "declared_by_other": "let the owner of the table, or an admin, declare it again",
    "code_of_others": "apply it as the role that declared it: it calls code of a role without the "
    "rights of yours",
    "read_only": "connect to the primary, in a session that may write",
    "inherited": "declare it for the root that is named",
    "name_taken": "declare it under another name, or rename what has this one",
    "duplicates": 'declare which row of a key stays, such as keep = "latest updated_at"',
    "children": 'declare children = "repoint", so that they refer to the row that stays',
    "triggers": 'declare triggers = "fire" when they may run for the rows that go',
    "sentinel": "rows with NULL and rows with the literal would be one key: correct either",
    "self_reference": "apply it without --online: rows of the table refer to others that go",
    "referenced": "drop the foreign keys that are named, apply, and make them again",
    "replica_identity": "give the table another replica identity first",
    "partition_key": "add the partition key to columns",
    "partitioned_constraint": "leave form out: an index is all that ON CONFLICT needs",
    "table_missing": "correct the name, or make the table first",
    "not_as_declared": "validate puts nothing in the place of anything: apply",
}


def _show(rows: list[dict[str, Any]], as_json: bool, *, would: bool = False) -> None:
    bad = [row for row in rows if not constraints.is_good(row, planned=would)]
    if as_json:
        terminal.print_json({"ok": not bad, "constraints": rows})
    else:
        out = terminal.out()
        for row in rows:
            out.print(f"[bold]{escape(_title(row))}[/]: {escape(_verdict(row, would))}")
            for line in _facts(row):
                out.print(f"  {escape(line)}")
        if not rows:
            out.print("nothing is declared")
    if bad:
        raise typer.Exit(FINDING)


def _title(row: dict[str, Any]) -> str:
    return f"{row['target']} {row['name']}"


def _verdict(row: dict[str, Any], would: bool) -> str:
    if row["error"] is not None:
        return f"{'would fail' if would else 'failed'}: {row['error']['message']}"
    words = [word for word in row.get("steps") or [row["outcome"]] if word != "unchanged"]
    if not words:
        return "as declared"
    text = ("would be " if would else "") + ", then ".join(words)
    if row["reason"] is None:
        return text
    return f"{text}{'' if row['outcome'] == 'refused' else ', not valid'}: {row['reason']}"


def _facts(row: dict[str, Any]) -> Iterator[str]:
    """What is worth a line each, below the verdict."""
    if error := row["error"]:
        yield from terminal.facts({"code": error["code"], **error["detail"], "hint": error["hint"]})
        return
    if row["outcome"] == "unchanged":
        return
    said = {"declared": row["definition"], "found": row["found"]}
    if row["violations"] and row["kind"] != "unique":
        said["rows in the way"] = row["violations"]
    shown = {k: v for k, v in (row["detail"] or {}).items() if k not in _UNSHOWN}
    advice = {"to do": _ADVICE.get(row["reason"])}
    if row["reason"] == "violations" and row["outcome"] != "refused":
        advice = {"to do": "correct these rows, then: routeledger constraints validate"}
    yield from terminal.facts({**said, **shown, "next": row["next"], **advice})


def _show_drift(drift: list[dict[str, Any]], looked_at: int) -> None:
    out = terminal.out()
    if not drift:
        out.print(
            f"{looked_at:,} declared constraints are as declared"
            if looked_at
            else "nothing is declared"
        )
        return
    table = terminal.table("constraint", "state", "declared", "live")
    for row in drift:
        declared, live = _side_by_side(row["declared"] or "-", row["found"] or "-")
        table.add_row(escape(_title(row)), row["state"], declared, live)
    out.print(table)
    terminal.err().print(
        f"{len(drift):,} of {looked_at:,} declared constraints are not as declared; "
        "what would be done: routeledger constraints plan"
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
