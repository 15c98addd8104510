"""`routeledger patterns`: score patterns, one or all that a file or a Qdrant collection holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from routeledger import _terminal as terminal
from routeledger import backfill as filling
from routeledger import connect, install, patterns
from routeledger._codec import dumps
from routeledger._sync import Ledger
from routeledger._terminal import FINDING, USAGE, AsJson, Dsn

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Pattern quality: how good a code pattern is, in five dimensions from 0 to 1.",
)

SHOWN_REFUSALS = 20
TRIED_FOR = 60.0
RATINGS = ("excellent", "good", "fair", "poor")
DIMENSIONS = (
    "completeness",
    "documentation",
    "architecture_compliance",
    "metadata_richness",
    "complexity_fit",
)

Formulas = Annotated[
    str, typer.Option("--version", metavar="v1|v2", help="The formulas that score.")
]
RuleSet = Annotated[
    str, typer.Option("--rule-set", metavar="NAME", help="The node types and their methods.")
]
FieldPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="TARGET=PATH",
        help="Where a field of the pattern is in a record: a dotted path such as payload.src or "
        "node_types.0. Several for one field are tried in order; an empty path leaves it out.",
        show_default=False,
    ),
]

_TABLE = "\n\n".join(f"{name}: {', '.join(paths)}" for name, paths in patterns.FIELDS.items())

_HELP = f"""
Score every pattern of a source and keep the scores, the latest measurement of each pattern.

SOURCE is a file (.jsonl, .ndjson or .csv, each also as .gz; .parquet), the folder of a Qdrant
database in local mode, or the http(s):// URL of a Qdrant server, whose API key is taken from
QDRANT_API_KEY. Running it again changes nothing. A run that was killed goes on where it was when
the same command is started again. Exit code 1 when records were refused: they are listed with their
place, and all others are written.

[bold]Fields[/bold]: the first of these that a record has and that is not empty

{_TABLE}

Without pattern_id the id is the point's (Qdrant) or the field id (files). An id that is no UUID
becomes the version 5 UUID of its text in the namespace {patterns.NAMESPACE}; the number of a point
is taken as collection/number. Without a time of its own a record was measured at --measured-at,
else when the file was last changed; a point without either is refused.

[bold]Examples[/bold]

routeledger patterns backfill patterns.jsonl.gz

routeledger patterns backfill export.parquet --field code=payload.src --dry-run

routeledger patterns backfill ./qdrant --collection code_patterns --collection execution_patterns

QDRANT_API_KEY=… routeledger patterns backfill https://qdrant.example:6333 --collection code_patterns
"""


def _paragraphs(text: str) -> str:
    """Each paragraph on one line: typer would keep the line ends."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


@app.command("backfill", help=_paragraphs(_HELP))
def backfill_command(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a URL.", show_default=False)],
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", help="Of Qdrant; repeatable.", show_default=False),
    ] = None,
    field: FieldPaths = None,
    measured_at: Annotated[
        str | None,
        typer.Option(
            "--measured-at",
            metavar="TIME",
            help="When records without a time of their own were measured: ISO 8601, UTC where it "
            "names no zone.",
            show_default=False,
        ),
    ] = None,
    version: Formulas = "v2",
    rule_set: RuleSet = "onex",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", min=1, max=filling.MAX_BATCH_ROWS, help="Records a transaction."
        ),
    ] = filling.BATCH_ROWS,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Score everything and roll it back: what would be written."),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin at the beginning, not where a run was killed.")
    ] = False,
    refused: Annotated[
        Path | None,
        typer.Option(
            "--refused",
            metavar="FILE",
            help="Write the refused records' places and reasons there, one JSON object a line.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    refusals: list[filling.Refusal] = []

    def keep(refusal: filling.Refusal) -> None:
        if as_json or len(refusals) < SHOWN_REFUSALS:
            refusals.append(refusal)

    with terminal.answering(as_json):
        try:
            fields = _fields(field, measured_at)
        except ValueError as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(
                contextlib.closing(
                    patterns.open_source(
                        source, collection or (), api_key=os.environ.get("QDRANT_API_KEY")
                    )
                )
            )
            ledger = stack.enter_context(_ledger(dsn))
            progress = stack.enter_context(
                Progress(
                    SpinnerColumn(),
                    TextColumn(
                        "{task.fields[records]:,} records, {task.fields[refused]:,} refused"
                    ),
                    BarColumn(),
                    TaskProgressColumn(),
                    TimeElapsedColumn(),
                    console=terminal.err(),
                    transient=True,
                    disable=as_json or not sys.stderr.isatty(),
                )
            )
            task = progress.add_task("backfill", total=opened.total, records=0, refused=0)
            try:
                report = filling.backfill(
                    ledger,
                    opened,
                    fields=fields,
                    version=version,
                    rule_set=rule_set,
                    batch_rows=batch_size,
                    dry_run=dry_run,
                    resume=not restart,
                    refused=refused,
                    on_refusal=keep,
                    progress=lambda so_far, done: progress.update(
                        task, completed=done, records=so_far.received, refused=so_far.refused
                    ),
                )
            except KeyboardInterrupt:
                if not dry_run:
                    progress.stop()
                    terminal.err().print(
                        "what was done is kept: the same command goes on from there"
                    )
                raise
            except OSError as exc:  # the file of the refusals
                terminal.fail(str(exc), USAGE, as_json, name="usage")
        if as_json:
            terminal.print_json({**dataclasses.asdict(report), "refusals": refusals})
        else:
            _show(report, refusals, refused)
        if report.refused:
            raise typer.Exit(FINDING)


def _fields(given: list[str] | None, measured_at: str | None) -> patterns.Fields:
    """What --field and --measured-at say. Raises ValueError."""
    paths: dict[str, list[str]] = {}
    for text in given or ():
        target, equals, path = text.partition("=")
        if not equals:
            msg = f"--field wants TARGET=PATH, not {text}"
            raise ValueError(msg)
        kept = paths.setdefault(target, [])
        if path:
            kept.append(path)
    try:
        at = None if measured_at is None else patterns.parse_time(measured_at)
    except ValueError as exc:
        msg = f"--measured-at: {exc}"
        raise ValueError(msg) from None
    return patterns.Fields(paths, at)


@contextlib.contextmanager
def _ledger(dsn: str | None) -> Iterator[Ledger]:
    with install.connection(dsn):
        pass  # nobody there: say so now, not when the pool gives up
    with connect(dsn, min_size=1, max_size=1, timeout=TRIED_FOR, coalesce=False) as ledger:
        yield ledger


def _show(report: filling.Report, refusals: list[filling.Refusal], file: Path | None) -> None:
    out, err = terminal.out(), terminal.err()
    if report.restarted:
        err.print(f"began at the beginning, not where an earlier run was: {report.restarted}")
    would = "would be " if report.dry_run else ""
    out.print(
        f"{report.received:,} records read: {would}{report.inserted:,} inserted, "
        f"{report.updated:,} updated, {report.unchanged:,} unchanged, {report.collapsed:,} "
        f"collapsed, {report.refused:,} refused"
    )
    if report.mapped:
        out.print(f"{report.mapped:,} ids are no UUIDs and were mapped to version 5 UUIDs")
    if report.resumed:
        out.print(f"{report.resumed:,} of the records were done by an earlier run")
    if report.dry_run:
        rated = ", ".join(f"{report.ratings.get(word, 0):,} {word}" for word in RATINGS)
        out.print(f"by {escape(report.version)} they rate: {rated}; nothing was written")
    for refusal in refusals:
        place = " ".join(f"{key} {value}" for key, value in refusal["place"].items())
        err.print(
            f"refused {escape(place)}: {refusal['code']} {escape(refusal['message'])} "
            f"{escape(json.dumps(refusal['detail'], ensure_ascii=False))}"
        )
    if report.refused > len(refusals):
        where = f"all of them: {file}" if file else "--refused FILE or --json lists them all"
        err.print(f"{report.refused - len(refusals):,} more were refused; {escape(where)}")


@app.command("score")
def score_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A pattern as a JSON object, or a .py file as its code; - is standard input.",
            show_default=False,
        ),
    ],
    field: FieldPaths = None,
    version: Formulas = "v2",
    rule_set: RuleSet = "onex",
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Score one pattern and say how it comes about. Writes nothing.

    The fields of the object are found as `patterns backfill` finds them. Of a .py file the name of
    the pattern is the name of the file.

    [bold]Examples[/bold]\n
    routeledger patterns score node_store_effect.py\n
    jq '.[0]' patterns.json | routeledger patterns score - --version v1
    """
    with terminal.answering(as_json):
        try:
            pattern = _pattern(file, _fields(field, None))
        except (ValueError, OSError) as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        with install.connection(dsn) as conn:
            (score,) = terminal.rows(
                conn,
                "select * from routeledger.score_pattern(p_pattern => %(pattern)s::jsonb,"
                " p_version => %(version)s::text, p_rule_set => %(rule_set)s::text)",
                {"pattern": dumps(pattern), "version": version, "rule_set": rule_set},
            )
        if as_json:
            terminal.print_json(score)
            return
        table = terminal.table("dimension", "score", right=("score",))
        for name in (*DIMENSIONS, "quality_score"):
            table.add_row(name.replace("_", " "), f"{score[name]:.4f}")
        table.add_row("rating", score["rating"])
        table.add_row("version", escape(score["version"]))
        terminal.out().print(table)


def _pattern(file: Path, fields: patterns.Fields) -> dict[str, Any]:
    """The pattern in a file. Raises ValueError for what is neither an object nor code."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    if file.suffix == ".py":
        return {"pattern_name": file.stem, "code": text}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        msg = f"{file} holds no JSON: {exc}"
        raise ValueError(msg) from None
    if not isinstance(data, dict):
        msg = f"{file} holds no JSON object"
        raise ValueError(msg)
    return fields.pattern(data)
