"""The learning demo's report: one HTML file with everything in it; it fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from routeledger.demo.page import card, render_page, tiles, write_page
from routeledger.demo.words import money, number, percent, plural, seconds

from . import words
from .figures import figures
from .plan import MIN_SAMPLES, NOTICE_DAYS
from .summary import Learning, Run
from .world import FAILURE_COST_USD


def write_report(learning: Learning, path: str | Path) -> Path:
    """Write the report and return where it is. Needs plotly."""
    return write_page(path, **_page(learning))


def render(learning: Learning) -> str:
    """The report as one HTML document."""
    return render_page(**_page(learning))


def _page(learning: Learning) -> dict[str, Any]:
    return {
        "title": "routeledger: the loop closed",
        "body": _body(learning),
        "figures": figures(learning),
    }


def _body(s: Learning) -> str:
    without, with_it = s.runs
    sections = (
        _header(s),
        _tiles(s),
        card(
            "right",
            "Right answers, day by day",
            "Both runs begin with priors only. The best single model is the one that is right most often on"
            " this very traffic; the oracle takes the cheapest model that is right, request by request."
            " Shaded: a provider is down. Dotted: the alias moves.",
        ),
        card("cost", "USD per 1,000 requests", "What the answers cost, by the ledger's own books."),
        card("regret", "Regret, added up", escape(_regret_note(s))),
        '<div class="pair">',
        card(
            "shares-without", "Who answered, without exploration", escape(words.notice(s, without))
        ),
        card("shares-with", "Who answered, with exploration", escape(words.notice(s, with_it))),
        "</div>",
        _lines(s),
        *(_choices(run) for run in s.runs),
        _fleet(s),
        _footer(s),
    )
    return "\n".join(sections)


def _regret_note(s: Learning) -> str:
    return (
        "By how much the requests were expected to cost more than with the best model of each task type, for"
        f" one who knows them all: answers at their price, a wrong one at {money(FAILURE_COST_USD)}."
        f" {words.exploration(s).capitalize()}."
    )


def _header(s: Learning) -> str:
    mark = '<span class="mark">✓</span>' if s.ok else '<span class="mark bad">✗</span>'
    items = "".join(f"<li>{escape(problem)}</li>" for problem in s.problems)
    problems = f'</p><ul class="problems">{items}</ul><p>' if items else ""
    synthetic = " The answers are synthetic." if s.synthetic else ""
    return (
        f'<header><div class="name">routeledger {escape(s.version)} · demo --learn</div>'
        f"<h1>{mark}{words.title(s)}</h1>"
        f'<p class="lead"><b>{plural(s.requests, "request")}</b> in {plural(s.days, "day")}, routed by'
        " guesses at first, then by what a judge had said of the answers. On day"
        f" {s.outage_day + 1} {escape(s.outage_provider)} was down; on day {s.move_day + 1}"
        f" <b>{escape(s.alias)}</b> moved, unannounced, from {escape(s.moves[0])} to"
        f" {escape(s.moves[1])}.{synthetic}{problems}</p></header>"
    )


def _tiles(s: Learning) -> str:
    without, with_it = s.runs
    single = s.baselines[0]
    line, bare = with_it.line, without.line
    shown = (
        ("Right, exploring", percent(line.right), f"{percent(bare.right)} without", ""),
        ("Best single model", percent(single.right), single.model or "", ""),
        ("USD per 1,000", money(line.usd_per_1000), f"{money(bare.usd_per_1000)} without", ""),
        (
            "Move noticed after",
            _after(without),
            f"requests, at most {number(s.notice_limit)}; exploring: {_after(with_it)}",
            "good" if s.ok else "bad",
        ),
        (
            "Right since the move",
            percent(without.notice.right),
            f"{percent(without.notice.frozen_right)} had nothing been learnt",
            "",
        ),
        ("Regret, exploring", money(line.regret_usd), f"{money(bare.regret_usd)} without", ""),
    )
    return tiles(shown)


def _after(run: Run) -> str:
    return "—" if run.notice.after is None else number(run.notice.after)


def _table(title: str, note: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<section class="card"><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f'<div class="scroll"><table style="white-space: nowrap"><tr>{top}</tr>{body}</table></div></section>'
    )


def _lines(s: Learning) -> str:
    rows = [
        (
            run.line.title, percent(run.line.right), money(run.line.usd_per_1000),
            money(run.line.total_usd), money(run.line.regret_usd), number(run.explored),
            number(run.outage.failed_attempts), number(run.outage.unanswered),
            number(run.notice.retries),
        )
        for run in s.runs
    ]  # fmt: skip
    for line in s.baselines:
        title = line.title if line.model is None else f"{line.title}: {line.model}"
        rows.append(
            (title, percent(line.right), money(line.usd_per_1000), money(line.total_usd), *"—————")
        )  # fmt: skip
    return _table(
        "All of it",
        f"With wrong answers: what the answers cost, and {money(FAILURE_COST_USD)} for each wrong one."
        " Failed, unanswered: attempts and requests of the outage. Tried again: requests that went to"
        f" {s.alias} once more because the window had forgotten it and its prior was believed again.",
        ("", "right", "USD per 1,000", "with wrong answers", "regret", "explored", "failed",
         "unanswered", "tried again"),
        rows,
    )  # fmt: skip


def _choices(run: Run) -> str:
    rows = [
        (
            choice.task_type, number(choice.requests), choice.by_priors or "—",
            choice.before_move or "—", choice.best[0], choice.at_end or "—", choice.best[1],
        )
        for choice in run.choices
    ]  # fmt: skip
    return _table(
        f"What was learnt, {run.line.title}",
        "Where each task type went, explored requests left out: at first, by priors; last before the move;"
        " and at the end. Best: where one would have gone who knows every model.",
        ("", "requests", "by priors", "before the move", "best", "at the end", "best"),
        rows,
    )


def _fleet(s: Learning) -> str:
    rows = [
        (
            model.model, model.provider, f"{model.prior:.3f}", percent(model.right[0]),
            percent(model.right[1]) if model.model == s.alias else "",
            money(model.usd_per_1000[0]),
        )
        for model in s.fleet
    ]  # fmt: skip
    return _table(
        "The fleet",
        "The prior is all that the router knew of a model's quality on the first day. The share that is"
        " truly right was known to nobody.",
        ("model", "provider", "prior", "right", "after the move", "USD per 1,000"),
        rows,
    )


def _footer(s: Learning) -> str:
    phases = ", ".join(f"{phase.name} {seconds(phase.seconds)}" for phase in s.phases)
    rules = ", ".join(f"{rule} {value}" for rule, value in s.policy.items())
    first, last = (f"{part * 24:.0f}:00" for part in s.outage)
    facts = {
        "Server": s.server.description,
        "Answers": f"{'synthetic, from a ' if s.synthetic else ''}{s.label}; the judge looks up whether"
        " the recorded answer is right",
        "Traffic": f"{plural(s.requests, 'request')} with the answers' mixture of task types, seed {s.seed}",
        "Policy": rules,
        "Exploration": "thompson, for exploration_share of the decisions of one of the two runs",
        "Priors": f"by {s.priors}",
        "Noticed": f"when a task type that went to {s.alias} at the move had gone elsewhere, and a day's"
        f" requests went by without its coming back. It must be within {NOTICE_DAYS:g} days' requests for"
        f" task types with at least {MIN_SAMPLES} requests a day",
        "Outage": f"day {s.outage_day + 1}, {first} to {last}: every call to {s.outage_provider} fails",
        "Clock": f"the ledger's own, set {s.rounds_a_day} times a day: route, answer, judge, roll up",
        "This run": f"{s.started_at:%Y-%m-%d %H:%M} UTC, {seconds(s.seconds)}: {phases}",
    }
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()
    )
    return f"<footer><h2>How this was made</h2><dl>{items}</dl></footer>"
