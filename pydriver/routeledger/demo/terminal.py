"""What the demo shows in the terminal: its steps while it runs, and the books at the end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from .summary import Summary
from .words import duration, money, number, percent, plural, seconds, tokens

WIDTH = 100


class Screen:
    """Where the demo speaks. With ``json`` standard output carries the document alone; with
    ``quiet`` only what is wrong is said, on standard error."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._json = json
        self._quiet = quiet
        self._steps = Console(stderr=json, quiet=quiet, highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        if self._steps.width > WIDTH:
            self._steps.width = WIDTH

    def title(self, version: str, name: str = "demo") -> None:
        self._steps.print(f"\n[bold]routeledger {escape(version)}[/]  [dim]{name}[/]\n")

    def step(self, name: str, text: str, took_s: float | None = None, *, mark: str = "ok") -> None:
        """One line for something done: a mark, a name, what it was, how long it took."""
        marks = {"ok": "[green]✓[/]", "kill": "[red]✗[/]", "note": "[yellow]![/]"}
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=1)
        line.add_column(width=10)
        line.add_column(ratio=1)
        line.add_column(justify="right", width=8)
        took = "" if took_s is None else f"[dim]{seconds(took_s)}[/]"
        line.add_row(marks[mark], f"[bold]{escape(name)}[/]", escape(text), took)
        self._steps.print(Padding(line, (0, 2)))

    @contextmanager
    def progress(
        self,
        total: int,
        counts: Counter[str],
        name: str = "replay",
        live: Callable[[Counter[str]], str] | None = None,
    ) -> Iterator[None]:
        """A bar that follows ``counts["requests"]`` while the block runs, and what ``live`` says of them."""
        live = live or _live
        bar = Progress(
            TextColumn(f"  [cyan]▸[/] [bold]{name:<10}[/]"),
            BarColumn(bar_width=14, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[text]}[/]", table_column=Column(no_wrap=True)),
            console=self._steps,
            transient=True,
            refresh_per_second=8,
            disable=not self._steps.is_terminal,
        )
        task = bar.add_task("", total=total, text="")
        stop = Event()

        def follow() -> None:
            while not stop.wait(0.15):
                text = live(counts)
                bar.update(task, completed=counts["requests"], text=text)

        with bar:
            thread = Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()

    def error(self, text: str) -> None:
        self._errors.print(f"[bold red]error[/]: {escape(text)}")

    def show(self, summary: Summary, report: Path) -> None:
        """The summary: tables for people, or one JSON document."""
        self.finish(summary.to_json(), summary_view(summary, report), report, summary.problems)

    def finish(
        self,
        document: dict[str, Any],
        view: RenderableType,
        report: Path,
        problems: Sequence[str],
    ) -> None:
        """The view for people, or one JSON document; where neither shows the problems, these."""
        if self._json:
            sys.stdout.write(dumps(document | {"report": str(report)}, indent=2) + "\n")
        else:
            self._steps.print(view)
        if self._quiet or self._json:
            for problem in problems:
                self.error(problem)


def _live(counts: Counter[str]) -> str:
    shown = {
        "429": counts["rate_limit"],
        "5xx": counts["server_error"] + counts["overloaded"],
        "too long": counts["context_length"],
        "timeout": counts["timeout"],
        "hung up": counts["cancelled"],
    }
    return " · ".join(f"{name} {number(n)}" for name, n in shown.items() if n)


def summary_view(s: Summary, report: Path) -> RenderableType:
    """The end of the demo, at a glance."""
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(_decisions(s), _ledger(s))
    last = Table.grid(padding=(0, 2))
    last.add_row("[dim]report[/]", f"{escape(str(report))}  [dim]{seconds(s.seconds)} in all[/]")
    if s.server.dsn:
        again = "the server runs while somebody holds it: routeledger.embedded()"
        last.add_row("[dim]kept[/]", f"database {escape(s.server.database)}  [dim]{again}[/]")
    unknown = f"[dim]* without {plural(s.unpriced, 'answer')} of unknown price[/]"
    parts: list[RenderableType] = ["", side_by_side, unknown if s.unpriced else ""]
    return Padding(Group(*parts, _latencies(s), "", _verdict(s), last, ""), (0, 2))


def _verdict(s: Summary) -> RenderableType:
    if s.ok:
        closed = f"{number(s.victim.abandoned_and_linked)} of {number(s.victim.in_flight)}"
        text = Text.from_markup(
            f"[bold green]The books are in order:[/] {plural(s.orphans, 'orphan')}, {closed}"
            " decisions of the killed writer closed and linked, every hour reconciles."
        )
        return Panel(text, box=box.ROUNDED, border_style="green", expand=False)
    lines = [Text("The books are not in order:", style="bold red")]
    lines += [Text(f"· {problem}", style="red") for problem in s.problems]
    return Panel(Group(*lines), box=box.ROUNDED, border_style="red", expand=False)


_ENDINGS = {
    "first attempt": ("answered at once", "green"),
    "retry": ("answered after a retry", "green"),
    "failover": ("answered by another model", "green"),
    "failed": ("every candidate failed", "red"),
    "cancelled": ("client hung up", "magenta"),
    "rejected": ("nothing good enough", "default"),
    "abandoned": ("writer killed, reaped", "blue"),
    "in flight": ("in flight", "red"),
}


def _decisions(s: Summary) -> Table:
    table = figures_table("decisions", number(s.decisions), "")
    for key, (name, style) in _ENDINGS.items():
        n = s.endings.get(key, 0)
        if n:
            table.add_row(f"[{style}]{name}[/]", number(n), percent(n, s.decisions))
    return table


def _ledger(s: Summary) -> Table:
    table = figures_table("attempts", number(s.attempts))
    table.add_row("retries", number(s.retries))
    table.add_row("failovers", number(s.failovers))
    table.add_row("tokens", tokens(s.input_tokens + s.output_tokens))
    table.add_row("cost", money(s.cost_usd) + ("*" if s.unpriced else ""))
    table.add_row("orphans", "[bold green]0[/]" if not s.orphans else f"[red]{s.orphans}[/]")
    agreement = "[bold green]agrees[/]" if s.agrees else "[red]disagrees[/]"
    table.add_row("reconciliation", agreement)
    return table


def _latencies(s: Summary) -> Table:
    table = figures_table("a call of the ledger takes", "p50", "p95", "p99", "calls")
    for line in s.latencies:
        times = [duration(ms) for ms in (line.p50, line.p95, line.p99)]
        table.add_row(f"{line.call} [dim]{line.mode}[/]", *times, number(line.n))
    return table


def figures_table(first: str, *others: str) -> Table:
    """A table of names, and figures to the right of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
