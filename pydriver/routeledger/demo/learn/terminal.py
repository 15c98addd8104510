"""The end of the learning demo, at a glance."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from routeledger.demo.terminal import figures_table
from routeledger.demo.words import money, number, percent, seconds

from . import words
from .summary import Learning


def learning_view(s: Learning, report: Path) -> RenderableType:
    """Tables for people."""
    last = Table.grid(padding=(0, 2))
    last.add_row("[dim]report[/]", f"{escape(str(report))}  [dim]{seconds(s.seconds)} in all[/]")
    if s.server.dsn:
        again = "the server runs while somebody holds it: routeledger.embedded()"
        last.add_row("[dim]kept[/]", f"database {escape(s.server.database)}  [dim]{again}[/]")
    parts: list[RenderableType] = ["", _lines(s), "", _choices(s), "", _story(s), _verdict(s), last]
    return Padding(Group(*parts, ""), (0, 2))


def _lines(s: Learning) -> Table:
    table = figures_table("", "right", "USD per 1,000", "with wrong answers", "regret")
    for run in s.runs:
        line = run.line
        table.add_row(
            f"[bold]{line.title}[/]", percent(line.right), money(line.usd_per_1000),
            money(line.total_usd), money(line.regret_usd),
        )  # fmt: skip
    for line in s.baselines:
        title = line.title if line.model is None else f"{line.title} [dim]{escape(line.model)}[/]"
        table.add_row(
            title, percent(line.right), money(line.usd_per_1000), money(line.total_usd), "[dim]—[/]"
        )
    return table


def _choices(s: Learning) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for name in ("without exploration", "by priors only", "before the move", "at the end"):
        table.add_column(name)
    for choice in s.runs[0].choices:
        models = (choice.by_priors, choice.before_move, choice.at_end)
        table.add_row(choice.task_type, *(escape(model or "—") for model in models))
    return table


def _story(s: Learning) -> Table:
    table = Table.grid(padding=(0, 2))
    for run in s.runs:
        table.add_row(f"[dim]{run.line.title}[/]", "")
        table.add_row("  the move", escape(words.notice(s, run)))
        table.add_row("", escape(words.since_move(run)))
        table.add_row("  the outage", escape(words.outage(s, run)))
    return table


def _verdict(s: Learning) -> RenderableType:
    if s.ok:
        verdicts = sum(one.verdicts for one in s.books)
        text = Text.from_markup(
            f"[bold green]{words.title(s)}[/] {number(verdicts)} verdicts, each in its bucket;"
            f" {escape(words.exploration(s))}."
        )
        return Panel(text, box=box.ROUNDED, border_style="green", expand=False)
    lines = [Text(words.title(s), style="bold red")]
    lines += [Text(f"· {problem}", style="red") for problem in s.problems]
    return Panel(Group(*lines), box=box.ROUNDED, border_style="red", expand=False)
