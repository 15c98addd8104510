"""The replay as one HTML file: the picture and the table; it fetches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from routeledger.demo.page import render_page, write_page
from routeledger.demo.words import money, number, percent, plural
from routeledger.types import PolicyEstimate

from .ledger import LedgerReplay
from .lines import Interval, Line
from .study import Single, Study

Figure = dict[str, Any]

FAMILIES: dict[str, tuple[str, str]] = {
    "price of a wrong answer": ("--accent", "circle"),
    "chosen in training": ("--first", "diamond"),
    "cheapest above a floor": ("--failover", "square"),
    "lower bound": ("--cancelled", "triangle-up"),
    "cost per success": ("--failed", "triangle-down"),
    "rejecting": ("--rejected", "square-open"),
    "given": ("--accent", "circle"),
    "policy": ("--accent", "circle"),
    "as it was": ("--rejected", "circle"),
    "oracle": ("--abandoned", "star"),
}
"""Colour (a variable of the page) and mark of each family of policies."""

JOINED = frozenset({"price of a wrong answer", "cheapest above a floor"})


def write_report(result: Study | LedgerReplay, path: str | Path) -> Path:
    """Write the report and return where it is. Needs plotly."""
    return write_page(path, **_parts(result))


def render(result: Study | LedgerReplay) -> str:
    """The report as one HTML document."""
    return render_page(**_parts(result))


def _parts(result: Study | LedgerReplay) -> dict[str, Any]:
    if isinstance(result, Study):
        body, figure = _study_body(result), frontier(result.lines, result.singles)
    else:
        body, figure = _ledger_body(result), frontier(result.lines, ())
    return {"title": "routeledger replay", "body": body, "figures": {"frontier": figure}}


# -- the picture -----------------------------------------------------------------------------------


def frontier(lines: Sequence[Line], singles: Sequence[Single]) -> Figure:
    """Share of right answers over cost, one mark a policy; the models alone as a staircase of the
    best for the money. The cost axis is logarithmic, so what costs nothing is not drawn."""
    data: list[dict[str, Any]] = []
    if singles:
        data += _models_alone(singles)
    families: dict[str, list[Line]] = {}
    for line in lines:
        if line.family != "one model" and line.usd_per_1000.value > 0:
            families.setdefault(line.family, []).append(line)
    for family, members in families.items():
        colour, symbol = FAMILIES.get(family, ("--soft", "circle"))
        members = sorted(members, key=lambda line: line.usd_per_1000.value)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if family in JOINED else "markers",
                "name": family,
                "x": [round(line.usd_per_1000.value, 5) for line in members],
                "y": [round(line.right.value, 5) for line in members],
                "error_y": _bars([line.right for line in members], colour),
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "customdata": [_words(line) for line in members],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 560,
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.16, "x": 0},
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "xaxis": {
                "type": "log",
                "title": {"text": "USD per 1,000 requests"},
                "tickprefix": "$",
                "tickvals": [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)],
            },
            "yaxis": {"title": {"text": "answered right"}, "tickformat": ".0%", **_range(lines)},
        },
    }


def _range(lines: Sequence[Line]) -> dict[str, Any]:
    shown = [line.right.value for line in lines if line.right.value > 0]
    if not shown:
        return {}
    return {"range": [max(0.0, min(shown) - 0.06), min(1.0, max(shown) + 0.03)]}


def _models_alone(singles: Sequence[Single]) -> list[dict[str, Any]]:
    singles = [single for single in singles if single.usd_per_1000 > 0]
    best = list(accumulate((single.right for single in singles), max))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one model for everything",
            "x": [round(single.usd_per_1000, 5) for single in singles],
            "y": [round(single.right, 5) for single in singles],
            "marker": {"color": "--rejected", "size": 7},
            "customdata": [
                f"{single.model}: {percent(single.right)} right, {money(single.usd_per_1000)}"
                for single in singles
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "the best one model for the money",
            "x": [round(single.usd_per_1000, 5) for single in singles],
            "y": [round(right, 5) for right in best],
            "line": {"color": "--rejected", "width": 1.5, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        },
    ]


def _bars(intervals: Sequence[Interval], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [round(i.high - i.value, 5) for i in intervals],
        "arrayminus": [round(i.value - i.low, 5) for i in intervals],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _words(line: Line) -> str:
    return f"{line.title}: {percent(line.right.value)} right, {money(line.usd_per_1000.value)}"


# -- the words -------------------------------------------------------------------------------------


def _page(head: str, lead: str, note: str, tables: str, facts: dict[str, str]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()
    )
    return (
        f'<header><div class="name">routeledger · replay</div><h1>{escape(head)}</h1>'
        f'<p class="lead">{lead}</p></header>'
        '<section class="card"><h2>Right answers for the money</h2>'
        f'<p class="note">{note}</p><div class="chart" id="frontier"></div></section>'
        f"{tables}<footer><h2>How this was made</h2><dl>{items}</dl></footer>"
    )


def _table(title: str, note: str, lines: Sequence[Line], baselines: Sequence[str]) -> str:
    against = [f"against {base}" for base in baselines]
    columns = ["right", "95 %", "USD per 1,000", "95 %", "answered", *against]
    head = "".join(f"<th>{escape(text)}</th>" for text in columns)
    rows = []
    for line in lines:
        compared = "".join(f"<td>{_against(line, base)}</td>" for base in baselines)
        rows.append(
            f'<tr><td style="white-space: normal">{escape(line.title)}</td>'
            f"<td>{percent(line.right.value)}</td>"
            f"<td class=dim>{line.right.low * 100:.1f} – {line.right.high * 100:.1f}</td>"
            f"<td>{money(line.usd_per_1000.value)}</td>"
            f"<td class=dim>{money(line.usd_per_1000.low)} – {money(line.usd_per_1000.high)}</td>"
            f"<td>{percent(line.answered)}</td>{compared}</tr>"
        )
    return (
        f'<section class="card"><h2>{escape(title)}</h2><p class="note">{note}</p>'
        '<div class="scroll"><table style="white-space: nowrap">'
        f"<tr><th>policy</th>{head}</tr>{''.join(rows)}</table></div></section>"
    )


def _against(line: Line, base: str) -> str:
    found = line.against.get(base)
    if found is None:
        return "—"
    kind = "yes" if found.right.low > 0 and found.usd_per_1000.high < 0 else "dim"
    return (
        f'<span class="{kind}">{signed(found.right.value * 100)} points, '
        f"{signed(found.usd_per_1000.value, money)}</span>"
    )


ESTIMATORS = {
    "as_it_was": "as it was",
    "direct": "direct",
    "ips": "inverse propensity",
    "snips": "self-normalised",
    "doubly_robust": "doubly robust",
}
"""What the estimators are called where people read."""

COLUMNS = ("right", "95 %", "USD per 1,000", "95 %", "decisions", "matched", "effective")


def estimate_rows(estimates: Sequence[PolicyEstimate]) -> list[list[str]]:
    """One row an estimator: its name, then COLUMNS; a dash where nothing can be said.

    The counts are those of the quality, or of the cost where no reward is known.
    """
    rows = []
    for name, words in ESTIMATORS.items():
        mine = {e.measure: e for e in estimates if e.estimator == name}
        quality, cost = mine["quality"], mine["cost_usd"]
        about = quality if quality.n else cost
        rows.append([
            words,
            *_valued(quality, percent, 1, lambda end: f"{end * 100:.1f}"),
            *_valued(cost, money, 1000, money),
            number(about.n),
            "—" if about.matched is None else number(about.matched),
            "—" if about.effective_n is None else number(round(about.effective_n)),
        ])  # fmt: skip
    return rows


def mean_weight(estimates: Sequence[PolicyEstimate]) -> str:
    """The mean weight in words, "" where nothing weighs."""
    found = next((e.mean_weight for e in estimates if e.mean_weight is not None), None)
    if found is None:
        return ""
    return f"mean weight {found:.2f}: near 1 where the propensities are right and enough matched"


def _valued(
    e: PolicyEstimate, words: Callable[[float], str], factor: float, ends: Callable[[float], str]
) -> tuple[str, str]:
    if e.value is None:
        return "—", "—"
    value = ("−" if e.value < 0 else "") + words(abs(e.value) * factor)
    if e.low is None or e.high is None:
        return value, "—"
    low, high = (("−" if end < 0 else "") + ends(abs(end) * factor) for end in (e.low, e.high))
    return value, f"{low} – {high}"


def left_out(estimates: Sequence[PolicyEstimate]) -> str:
    """Of how many decisions the estimates are, and why others are not among them."""
    quality, cost = (
        next(e for e in estimates if (e.estimator, e.measure) == ("direct", measure))
        for measure in ("quality", "cost_usd")
    )
    reasons = [
        f"{number(count)} {words}"
        for count, words in (
            (quality.no_candidates, "without candidates stored"),
            (quality.no_propensity, "without a propensity"),
            (quality.no_chance, "for which the policy's choice had no chance"),
            (quality.unmeasured, "whose choice has fewer than two rewards on the task type"),
            (cost.unmeasured, "whose choice has fewer than two known costs there"),
        )
        if count
    ]
    told = (
        f"the quality of {number(quality.n)}, the cost of {number(cost.n)} of "
        f"{plural(quality.decisions, 'decision')}"
    )
    return told + (f"; left out: {', '.join(reasons)}" if reasons else "")


def signed(value: float, words: Callable[[float], str] = "{:.1f}".format) -> str:
    """A difference with its sign: ``signed(-0.25, money)`` is '−$0.250'."""
    return ("−" if value < 0 else "+") + words(abs(value))


def _study_body(s: Study) -> str:
    lead = (
        f"<b>{plural(s.prompts, 'prompt')}</b>, answered by {plural(s.models, 'model')} each. Every policy"
        " learnt on one half of the prompts and was tried on the other, by what the models really answered."
        + (" The answers are synthetic." if s.synthetic else "")
    )
    note = (
        "One mark is one policy, tried on prompts that it has not seen; bars are 95 % intervals over the"
        " prompts. Dotted: the best that one model for everything gives for the money, chosen with"
        " hindsight. The oracle knows each answer beforehand."
    )
    facts = {
        "Answers": s.label,
        "Models": f"{s.models}, of which {s.priced} have a price in line; "
        f"flagged and not used: {', '.join(s.flagged) or 'none'}",
        "Tokens": f"{plural(s.imputed, 'answer')} of priced models without token counts: charged at the "
        "mean of their task type, never as free",
        "Splits": f"{s.splits} times two halves, seed {s.seed}",
        "Choices": "routeledger.rank_candidates, which knew the training half only",
    }
    return _page(
        "What other policies would have made of it",
        lead,
        note,
        _table("All policies tried", "In the order in which they were given.", s.lines, s.baselines)
        + _table(
            "One split",
            "Even prompts for training, odd ones for the trial.",
            s.one_split,
            s.baselines,
        ),
        facts,
    )


def _ledger_body(r: LedgerReplay) -> str:
    lead = (
        f"<b>{plural(r.decisions, 'decision')}</b> of {escape(r.tenant)}, ranked anew under each policy with"
        " what was known the day before, and judged by what came later."
    )
    note = (
        "Quality is the decision's own reward where the same model answered it, else the mean reward of"
        " that model on the task type, from that day on. All marks are of the same decisions: those for which"
        " cost and quality are known under every policy and as they were."
    )
    table = _table(
        "Policies",
        f"{number(r.judged)} of {plural(r.decisions, 'decision')}. "
        + " ".join(
            f"{escape(title)}: {number(c.changed)} would have gone elsewhere; not known: the quality of "
            f"{number(c.unmeasured)}, the cost of {number(c.unpriced)}."
            for title, c in r.coverage.items()
        ),
        r.lines,
        (r.lines[0].title,),
    )
    table += "".join(_estimated(title, found) for title, found in r.estimates.items())
    facts = {
        "Costs": f"{plural(r.implausible_costs, 'recorded cost')} flagged as implausible: replaced by the "
        "catalog's",
        "Candidates": "all enrolled models" if r.all_models else "those stored with each decision",
        "Not replayed": "cooldowns and budgets of the time",
    }
    return _page("What another policy would have made of it", lead, note, table, facts)


def _estimated(title: str, estimates: Sequence[PolicyEstimate]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in estimate_rows(estimates)
    )
    note = (
        "By the propensities stored with the decisions. Direct takes it that a model does equally well"
        " everywhere; the last three do not, and are as good as the propensities. Effective: how many"
        f" equally weighing decisions would say as much. Estimated are {escape(left_out(estimates))}."
    )
    weight = mean_weight(estimates)
    if weight:
        note += f" The {escape(weight)}."
    return (
        f'<section class="card"><h2>What the decisions tell of {escape(title)}</h2>'
        f'<p class="note">{note}</p><div class="scroll"><table style="white-space: nowrap">'
        f"<tr><th>estimate</th>{head}</tr>{rows}</table></div></section>"
    )
