"""`routeledger corpus`: labelled outcomes as a file to train and to evaluate with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
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
from routeledger import corpus
from routeledger._terminal import FINDING, MISSING, USAGE, AsJson, Dsn
from routeledger.demo.words import plural

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="The labelled corpus: rows to train and to evaluate with."
)


class _Format(str, Enum):
    parquet = "parquet"
    jsonl = "jsonl"


class _Class(str, Enum):
    production = "production"
    shadow = "shadow"
    synthetic = "synthetic"
    replay = "replay"


class _Source(str, Enum):
    judge = "judge"
    human = "human"


MADE_UP = {_Class.synthetic, _Class.replay}


@app.command("export")
def export_command(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose outcomes.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file; its manifest is written beside it. Without it corpus.parquet, or corpus.jsonl.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[  # noqa: A002 - as the option is called
        _Format | None,
        typer.Option("--format", help="Without it as the file is named.", show_default=False),
    ] = None,
    begin: Annotated[
        datetime | None,
        terminal.day_option("--from", "First day of the decisions (UTC)."),
    ] = None,
    end: Annotated[
        datetime | None,
        terminal.day_option("--to", "The day after the last (UTC)."),
    ] = None,
    traffic_class: Annotated[
        list[_Class] | None,
        typer.Option(
            "--traffic-class",
            help="Only production without it; repeatable.",
            show_default=False,
        ),
    ] = None,
    mix_synthetic: Annotated[
        bool,
        typer.Option(
            "--mix-synthetic",
            help="Allow synthetic or replay traffic beside production or shadow.",
        ),
    ] = False,
    reward_source: Annotated[
        list[_Source] | None,
        typer.Option("--reward-source", help="Both without it; repeatable.", show_default=False),
    ] = None,
    task_type: Annotated[
        str | None, typer.Option("--task-type", help="Only this one.", show_default=False)
    ] = None,
    payloads: Annotated[
        bool,
        typer.Option(
            "--payloads", help="With requests, responses and the rationales of the verdicts."
        ),
    ] = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Write the labelled, linked outcomes of a tenant, in order of their ids.

    One snapshot of the ledger, in bounded memory. The file takes its name
    when it is whole. The same labels give the same bytes, and the same content
    hash in either format. An empty corpus is refused and leaves no file.

    [bold]Examples[/bold]\n
    routeledger corpus export --tenant acme\n
    routeledger corpus export --tenant acme --from 2026-11-01 --reward-source human -o november.jsonl\n
    routeledger corpus verify corpus.parquet
    """
    classes = traffic_class or [_Class.production]
    with terminal.answering(as_json), _answering(as_json):
        if not mix_synthetic and MADE_UP & set(classes) and set(classes) - MADE_UP:
            terminal.fail(
                "synthetic and replay traffic is not mixed with production or shadow traffic",
                USAGE,
                as_json,
                hint="Export them to a file of their own, or say --mix-synthetic.",
                name="usage",
            )
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.completed:,} rows"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=terminal.err(),
            transient=True,
            disable=as_json or not sys.stderr.isatty(),
        ) as progress:
            task = progress.add_task("export", total=None)
            done = corpus.export_corpus(
                dsn,
                tenant,
                out or Path(f"corpus.{(format or _Format.parquet).value}"),
                format=format.value if format else None,
                begin=terminal.day(begin),
                end=terminal.day(end),
                traffic_class=[one.value for one in classes],
                mix_synthetic=mix_synthetic,
                reward_source=[one.value for one in reward_source] if reward_source else None,
                task_type=task_type,
                payloads=payloads,
                progress=lambda rows, total: progress.update(task, completed=rows, total=total),
            )
        if as_json:
            terminal.print_json(
                {**done.manifest, "path": done.path, "manifest": done.manifest_path}
            )
        else:
            _show(done)


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="A corpus file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Read a corpus again and compare it with its manifest. Exit code 1 when it is another."""
    with terminal.answering(as_json), _answering(as_json):
        found = corpus.verify(file)
        if as_json:
            terminal.print_json(
                {"agrees": found.agrees, "rows": found.rows, "content_sha256": found.content_sha256}
            )
        elif found.agrees:
            terminal.out().print(
                f"{escape(str(file))} holds the {_rows(found.rows)} of its manifest"
            )
        else:
            terminal.out().print(
                f"{escape(str(file))} is not what its manifest says: {_rows(found.rows)} with hash "
                f"{found.content_sha256}, not {_rows(found.manifest['rows'])} with "
                f"{found.manifest['content_sha256']}"
            )
        if not found.agrees:
            raise typer.Exit(FINDING)


@contextlib.contextmanager
def _answering(as_json: bool) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] != "pyarrow":
            raise
        terminal.fail(
            "Parquet needs pyarrow, which is not installed",
            MISSING,
            as_json,
            hint="pip install 'routeledger[parquet]', or write --format jsonl",
            name="missing",
        )
    except ValueError as exc:  # a file that will not do
        terminal.fail(str(exc), USAGE, as_json, name="corpus")


def _rows(number: int) -> str:
    return plural(number, "row")


def _show(done: corpus.Exported) -> None:
    out = terminal.out()
    told: dict[str, Any] = done.manifest
    out.print(
        f"{_rows(told['rows'])} to {escape(str(done.path))} ({told['bytes']:,} bytes): "
        f"{plural(len(told['models']), 'model')}, {plural(told['verdicts'], 'verdict')} of "
        f"{plural(len(told['judges']), 'judge')}, mean reward {told['mean_reward']:.3f}"
    )
    if told["left_out"]:
        counts = ", ".join(
            f"{number:,} {reason.replace('_', ' ')}"
            for reason, number in sorted(told["left_out"].items(), key=lambda item: -item[1])
        )
        out.print(f"left out: {counts}")
    out.print(f"content sha256 {told['content_sha256']}")
