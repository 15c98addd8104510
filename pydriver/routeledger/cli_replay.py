"""`routeledger replay`: what another policy would have cost, and how good it would have been."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from routeledger import _terminal as terminal
from routeledger import catalog, install
from routeledger._embedded import EmbeddedError
from routeledger._terminal import MISSING, USAGE, AsJson, Dsn
from routeledger.demo.trace import data_dir
from routeledger.demo.words import money, percent, plural
from routeledger.replay.ledger import LedgerReplay, replay_ledger
from routeledger.replay.lines import Line, Policy, read_policy
from routeledger.replay.matrix import (
    Matrix,
    MatrixError,
    find_matrix,
    load_matrix,
    merged,
    without,
)
from routeledger.replay.report import (
    COLUMNS,
    estimate_rows,
    left_out,
    mean_weight,
    signed,
    write_report,
)
from routeledger.replay.scratch import scratch_database
from routeledger.replay.study import RULES, Study, replay_matrix

__all__ = ["replay_command"]

AUTO = "auto"


def replay_command(
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", help="Replay the decisions of this tenant.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|auto",
            help="Replay a matrix of recorded answers instead: matrix.csv[.gz] and model_prices.csv. "
            "`auto` takes the recorded one where ROUTELEDGER_DATA has it, else a seeded generator.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME [RULES]",
            help="A policy of the database, and as JSON the rules to change; repeatable.",
            show_default=False,
        ),
    ] = None,
    begin: Annotated[
        datetime | None,
        terminal.day_option("--from", "First day (UTC); 30 days before the end."),
    ] = None,
    end: Annotated[
        datetime | None,
        terminal.day_option("--to", "The day after the last (UTC); tomorrow."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="Decisions drawn from the window.")
    ] = 10_000,
    all_models: Annotated[
        bool,
        typer.Option(
            "--all-models",
            help="All enrolled models are candidates, not those stored with a decision.",
        ),
    ] = False,
    max_weight: Annotated[
        float | None,
        typer.Option(
            "--max-weight",
            min=1,
            max=1e9,
            help="Of a ledger: cut the weights of the off-policy estimates down to this.",
            show_default=False,
        ),
    ] = None,
    splits: Annotated[
        int, typer.Option("--splits", min=1, max=100, help="Of a matrix: how often it is halved.")
    ] = 10,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="TASK",
            help="Of a matrix: a task type to leave out; repeatable.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            "--merge",
            metavar="NAME=TASK,…",
            help="Of a matrix: task types to take for one, as a caller does who cannot tell them apart; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(
            "--catalog",
            help="Of a matrix: a price catalog whose prices tell which ones are far out of line.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is random.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write a report with a plot (HTML).", show_default=False),
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Say what another policy would have cost, and how good it would have been.

    With --tenant over your own ledger: each decision of the window is
    ranked anew, with what was known the day before, and judged by its own
    reward or by what was measured later. Below that, what the decisions tell
    by their propensities: off-policy estimates with 95 % intervals. Reads only.

    With --data over a matrix, where every model answered every prompt: each
    policy learns on one half and is tried on the other; without --policy a
    series of them, and the best single models beside. Without --dsn a private
    Postgres is started; with it one transaction is used there and rolled back.

    [bold]Examples[/bold]\n
    routeledger replay --tenant acme --policy default --policy 'default {"min_quality": 0.9}'\n
    routeledger replay --data auto --out replay.html
    """
    with terminal.answering(as_json):
        if (tenant is None) == (data is None):
            terminal.fail("give --tenant or --data, one of them", USAGE, as_json, name="usage")
        if out is not None and importlib.util.find_spec("plotly") is None:
            terminal.fail(
                "the report needs plotly, which is not installed",
                MISSING,
                as_json,
                hint="pip install 'routeledger[demo]'",
                name="missing",
            )
        try:
            policies = [read_policy(text) for text in policy or ()]
            result: Study | LedgerReplay
            if tenant is not None:
                with install.connection(dsn) as conn:
                    result = replay_ledger(
                        conn,
                        tenant,
                        policies or [Policy("default")],
                        begin=terminal.day(begin),
                        end=terminal.day(end),
                        limit=limit,
                        all_models=all_models,
                        max_weight=max_weight,
                        seed=seed,
                    )
            else:
                matrix = _matrix(data or AUTO, seed, leave_out or (), merge or ())
                result = _study(matrix, dsn, policies, splits, seed, prices, quiet=as_json)
        except EmbeddedError as exc:
            terminal.fail(exc.message, MISSING, as_json, hint=exc.hint, name="replay")
        except (MatrixError, ValueError) as exc:
            terminal.fail(str(exc), USAGE, as_json, name="replay")
        if out is not None:
            write_report(result, out)
        if as_json:
            terminal.print_json(result)
        elif isinstance(result, Study):
            _show_study(result)
        else:
            _show_ledger(result)
        if out is not None:
            terminal.err().print(f"the report: {escape(str(out))}")


def _matrix(data: str, seed: int, leave_out: Sequence[str], merge: Sequence[str]) -> Matrix:
    matrix = find_matrix(data_dir(), seed) if data == AUTO else load_matrix(data)
    if leave_out:
        matrix = without(matrix, leave_out)
    for text in merge:
        name, _, tasks = text.partition("=")
        matrix = merged(matrix, name.strip(), [task.strip() for task in tasks.split(",")])
    return matrix


def _study(
    matrix: Matrix,
    dsn: str | None,
    policies: Sequence[Policy],
    splits: int,
    seed: int,
    prices: Path | None,
    *,
    quiet: bool,
) -> Study:
    with contextlib.ExitStack() as stack:
        neighbours = stack.enter_context(catalog.read_file(prices)) if prices is not None else ()
        conn = stack.enter_context(
            install.connection(dsn if dsn is not None else stack.enter_context(scratch_database()))
        )
        progress = stack.enter_context(
            Progress(
                SpinnerColumn(), TextColumn("half {task.completed} of {task.total}"), BarColumn(),
                TimeElapsedColumn(), console=terminal.err(), transient=True,
                disable=quiet or not sys.stderr.isatty(),
            )
        )  # fmt: skip
        task = progress.add_task("replay", total=2 * splits + 1)
        return replay_matrix(
            conn,
            matrix,
            policies=policies or RULES,
            splits=splits,
            seed=seed,
            neighbours=neighbours,
            progress=lambda done, _: progress.update(task, completed=done),
        )


def _show_study(study: Study) -> None:
    out = terminal.out()
    what = "synthetic, " if study.synthetic else ""
    out.print(
        f"{plural(study.prompts, 'prompt')}, {plural(study.models, 'model')} ({study.priced} with a "
        f"price in line): {what}{escape(study.label)}; {study.splits} times two halves"
    )
    if study.flagged:
        out.print(f"prices out of line, not used: {escape(', '.join(study.flagged))}")
    if study.imputed:
        out.print(
            f"{plural(study.imputed, 'answer')} without token counts, charged at the task's mean"
        )
    _table(study.lines, study.baselines)
    out.print("\none split: even prompts for training, odd ones for the trial")
    _table(study.one_split, ())


def _show_ledger(replay: LedgerReplay) -> None:
    out = terminal.out()
    out.print(f"{plural(replay.decisions, 'decision')} of {escape(replay.tenant)}")
    if replay.implausible_costs:
        out.print(
            f"{plural(replay.implausible_costs, 'recorded cost')} flagged as implausible: replaced by "
            "the catalog's"
        )
    if replay.judged < replay.decisions:
        out.print(f"{replay.judged:,} judged: their cost and quality are known under every policy")
    _table(replay.lines, (replay.lines[0].title,))
    for title, c in replay.coverage.items():
        out.print(
            f"{escape(title)}: {c.changed:,} would have gone elsewhere, {c.by_reward:,} judged by their own "
            f"reward; not known: the quality of {c.unmeasured:,}, the cost of {c.unpriced:,}"
        )
        if c.without_candidates:
            out.print(
                f"{plural(c.without_candidates, 'decision')} without candidates stored: try --all-models"
            )
    for title, estimates in replay.estimates.items():
        out.print(f"\n{escape(title)}, by the propensities: {left_out(estimates)}")
        if any(e.n for e in estimates):
            table = terminal.table("estimate", *COLUMNS, right=COLUMNS)
            for row in estimate_rows(estimates):
                table.add_row(*row)
            out.print(table)
            out.print(mean_weight(estimates))


def _table(lines: Sequence[Line], baselines: Sequence[str]) -> None:
    columns = ["policy", "right", "95 %", "USD per 1,000", "95 %", "answered"]
    for base in baselines:
        columns += [f"against {base}", "better in"]
    table = terminal.table(*columns, right=columns[1:])
    for line in lines:
        cells = [
            escape(line.title),
            percent(line.right.value),
            f"{line.right.low * 100:.1f} – {line.right.high * 100:.1f}",
            money(line.usd_per_1000.value),
            f"{money(line.usd_per_1000.low)} – {money(line.usd_per_1000.high)}",
            percent(line.answered),
        ]
        for base in baselines:
            found = line.against.get(base)
            if found is None:
                cells += ["", ""]
                continue
            cells += [
                f"{signed(found.right.value * 100)} points, {signed(found.usd_per_1000.value, money)}",
                percent(found.sure),
            ]
        table.add_row(*cells)
    terminal.out().print(table)
    if baselines:
        terminal.out().print(
            "better in: of the resamples, those in which it is at least as right and at most as dear"
        )
