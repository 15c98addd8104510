"""`routeledger repair`: what repairs did, putting it back, and linking what was left unlinked."""

from __future__ import annotations

from typing import Annotated, Any

import psycopg
import typer
from rich.markup import escape

from routeledger import _calls, _codec, install
from routeledger import _terminal as terminal
from routeledger._terminal import FINDING, USAGE, AsJson, Dsn, Yes
from routeledger.errors import translate

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Repairs: every row that one removed or changed is kept, and can be put back.

A repair is what collapsed duplicates (constraints apply), linked orphans (orphans --apply), or undid
another repair. [bold]list[/] names them, [bold]show[/] prints the rows of one as they were, and
[bold]undo[/] puts them back byte for byte, or says which have changed since. Rows are kept for
settings.repair_retention.

A repair is shown to and undone by the role that made it and the owner of its table.
""",
)

RepairId = Annotated[
    int,
    typer.Argument(metavar="ID", help="Of the repair, as list shows it.", show_default=False),
]
Reason = Annotated[
    str | None,
    typer.Option("--reason", metavar="TEXT", help="Kept with the repair.", show_default=False),
]


@app.command("list")
def list_command(
    table: Annotated[
        str | None,
        typer.Argument(help="Only repairs of this table, such as app.costs.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 100,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """List repairs, newest first: what, by whom, why, how many rows, and whether it was undone.

    The kinds: collapse (duplicates, for a unique key), orphans (outcomes linked to inferences) and
    undo. The states: done, undone by another repair, open (at work, or broken off: the same command
    goes on), and until when the rows are kept.

    [bold]Examples[/bold]\n
    routeledger repair list app.daily_costs\n
    routeledger repair list --json | jq '.repairs[] | select(.kind == "collapse").id'
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(conn, _calls.REPAIR_HISTORY, {"table": table, "limit": limit + 1})
        more = len(found) > limit
        found = found[:limit]
        if as_json:
            terminal.print_json({"repairs": found, "more": more})
            return
        numbers = ("id", "removed", "changed", "added")
        shown = terminal.table(
            "id", "kind", "table", "state", *numbers[1:], "by", "when", "reason", right=numbers
        )
        for row in found:
            shown.add_row(
                str(row["id"]),
                row["kind"],
                escape(row["target"]),
                _state(row),
                *(f"{row[number] or 0:,}" for number in numbers[1:]),
                escape(row["role_name"]),
                row["started_at"].isoformat(" ", "seconds"),
                escape(row["reason"] or ""),
            )
        terminal.out().print(shown)
        if more:
            terminal.err().print(f"only the latest {limit:,}: name a table, or raise --limit")


def _state(row: dict[str, Any]) -> str:
    if row["undone_by"] is not None:
        return f"undone by {row['undone_by']}"
    text = f"{row['state']}, undoes {row['undoes']}" if row["undoes"] is not None else row["state"]
    if row["images_dropped_at"] is not None:
        return f"{text}, rows dropped"
    return f"{text}, kept until {row['images_kept_until']:%Y-%m-%d}"


@app.command("show")
def show_command(
    id: RepairId,  # noqa: A002
    limit: Annotated[int, typer.Option("--limit", min=1, max=99_999, help="Rows.")] = 100,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Show the rows that a repair removed, changed, added and kept, as they were.

    Rows of one number belong together: the removed ones and the one that was kept in their place,
    or one row before and after.

    [bold]Example[/bold]: routeledger repair show 7 --limit 20
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(conn, _calls.SHOW_REPAIR, {"id": id, "limit": limit + 1})
        more = len(found) > limit
        found = found[:limit]
        if as_json:
            terminal.print_json({"repair": id, "rows": found, "more": more})
            return
        shown = terminal.table("table", "no", "what", "row", right=("no",))
        for row in found:
            shown.add_row(
                escape(row["target"]), str(row["row_no"]), row["what"], escape(row["row_text"])
            )
        terminal.out().print(shown)
        if more:
            terminal.err().print(f"only the first {limit:,} rows: raise --limit")


@app.command("undo")
def undo_command(
    id: RepairId,  # noqa: A002
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Overwrite rows that have changed since. Asks; only for an admin."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    reason: Reason = None,
    yes: Yes = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Put back, byte for byte, the rows that a repair removed or changed.

    A unique index that came with them goes. When rows have changed since, they are listed and nothing
    is done: exit code 4 (with --dry-run 1). --force overwrites them, and keeps what it overwrites. The
    undoing is a repair itself: undo that, and the first one is done again.

    [bold]Examples[/bold]\n
    routeledger repair undo 7 --dry-run\n
    routeledger repair undo 7 --reason "wrong key"
    """
    with terminal.answering(as_json):
        if force and not (yes or dry_run):
            if as_json:
                terminal.fail("--json cannot ask: add --yes", USAGE, as_json, name="usage")
            typer.confirm(
                f"Overwrite what was written since repair {id} to the same rows?",
                abort=True,
                err=True,
            )
        with install.connection(dsn) as conn, terminal.working(as_json):
            (undone,) = terminal.rows(
                conn,
                _calls.UNDO_REPAIR,
                {"id": id, "force": force, "reason": reason, "dry_run": dry_run},
            )
        refused = dry_run and not force and bool(undone["conflicts"])
        if as_json:
            terminal.print_json(undone)
        else:
            _show_undone(undone, dry_run=dry_run, refused=refused)
        if refused:
            raise typer.Exit(FINDING)


def _show_undone(undone: dict[str, Any], *, dry_run: bool, refused: bool) -> None:
    out, err = terminal.out(), terminal.err()
    conflicts = undone["conflicts"] or []
    would = "would be " if dry_run else ""
    if refused:
        out.print("would be refused: what it would put back has changed since")
    else:
        out.print(
            f"{undone['restored']:,} rows {would}put back, {undone['removed']:,} taken away again, "
            f"{undone['changed']:,} changed back"
        )
    if undone["repair_id"] is not None:
        out.print(f"to do it again: routeledger repair undo {undone['repair_id']}")
    for line in terminal.facts({"changed since": conflicts}):
        err.print(escape(line))


@app.command("orphans")
def orphans_command(
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it; without this, only say what would be done.")
    ] = False,
    window: Annotated[
        str,
        typer.Option("--window", metavar="INTERVAL", help="How far apart a match may be."),
    ] = "3 seconds",
    stuck_after: Annotated[
        str | None,
        typer.Option(
            "--stuck-after",
            metavar="INTERVAL",
            help="Close inferences that have been under way for longer.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only this tenant's.", show_default=False)
    ] = None,
    outcomes: Annotated[
        str | None,
        typer.Option(
            "--outcomes", metavar="TABLE", help="A table of outcomes of yours.", show_default=False
        ),
    ] = None,
    inferences: Annotated[
        str | None,
        typer.Option("--inferences", metavar="TABLE", help="Its inferences.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME=COLUMN",
            help="What a column is called in your tables, such as outcome.agent=agent_name; "
            "nothing behind the = where there is none. Repeatable.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Link outcomes without an inference to the inference that can only be theirs.

    A pair is linked when each is the other's only match by tenant, agent, model, cost and time. All
    other cases are left, with the reason; exit code 1 then. Nothing is written without --apply, and
    what that writes is a repair, which can be undone. Without --outcomes and --inferences it is
    routeledger's own tables that are looked at.

    [bold]Examples[/bold]\n
    routeledger repair orphans --outcomes old.outcomes --inferences old.inferences
    --column outcome.agent=agent_name --column outcome.cost=\n
    routeledger repair orphans --stuck-after '1 day' --apply --reason "crash of 12 November"
    """
    with terminal.answering(as_json):
        try:
            params = _orphans(outcomes, inferences, tenant, column)
        except ValueError as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        params |= {
            "window": window,
            "stuck_after": stuck_after,
            "dry_run": not apply,
            "reason": reason,
        }
        query = _calls.REPAIR_ORPHANS if outcomes is None else _calls.REPAIR_ORPHANS_IN
        with install.connection(dsn) as conn, terminal.working(as_json):
            try:
                cases = terminal.rows(conn, query, params)
            except psycopg.errors.UndefinedTable as exc:
                raise (exc if outcomes is None else translate(exc)) from exc
        left = [case for case in cases if case["action"] == "leave"]
        if as_json:
            terminal.print_json({"applied": apply, "left": len(left), "cases": cases})
        else:
            _show_orphans(cases, apply)
        if left:
            raise typer.Exit(FINDING)


def _orphans(
    outcomes: str | None, inferences: str | None, tenant: str | None, column: list[str] | None
) -> dict[str, Any]:
    """What --outcomes, --inferences, --tenant and --column say. Raises ValueError."""
    if (outcomes is None) is not (inferences is None):
        msg = "--outcomes and --inferences go together"
        raise ValueError(msg)
    if outcomes is None:
        if column:
            msg = "--column is for tables of yours: give --outcomes and --inferences"
            raise ValueError(msg)
        return {"tenant_id": tenant}
    if tenant is not None:
        msg = "--tenant is for routeledger's own tables"
        raise ValueError(msg)
    columns: dict[str, dict[str, str | None]] = {}
    for text in column or ():
        name, equals, given = text.partition("=")
        side, dot, word = name.partition(".")
        if not (equals and dot):
            msg = f"--column wants NAME=COLUMN with a name such as outcome.agent, not {text}"
            raise ValueError(msg)
        columns.setdefault(side, {})[word] = given or None
    return {"outcomes": outcomes, "inferences": inferences, "columns": _codec.dumps(columns)}


def _show_orphans(cases: list[dict[str, Any]], applied: bool) -> None:
    out = terminal.out()
    shown = terminal.table("action", "outcome", "inference", "reason")
    counts = {"link": 0, "close": 0, "leave": 0}
    for case in cases:
        counts[case["action"]] += 1
        shown.add_row(
            case["action"],
            escape(case["outcome"] or "-"),
            escape(case["inference"] or "-"),
            escape(case["reason"] or ""),
        )
    if cases:
        out.print(shown)
    would = "" if applied else "would be "
    out.print(
        f"{counts['link']:,} {would}linked, {counts['close']:,} {would}closed, "
        f"{counts['leave']:,} left"
    )
    ids = sorted({case["repair_id"] for case in cases if case["repair_id"] is not None})
    for id_ in ids:
        out.print(f"to undo: routeledger repair undo {id_}")
