"""The report's figures, as plotly's plain JSON; see :mod:`routeledger.demo.figures`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from routeledger.demo.words import money, percent

from .summary import BEST_SINGLE, ORACLE, WITH, WITHOUT, Learning, Line, Run

Figure = dict[str, Any]

COLOURS = {
    WITHOUT: "--accent",
    WITH: "--first",
    BEST_SINGLE: "--rejected",
    ORACLE: "--abandoned",
}
DASHES = {BEST_SINGLE: "dash", ORACLE: "dot"}
MODELS = (
    "--accent", "--first", "--failover", "--cancelled", "--retry", "--rejected", "--abandoned",
)  # fmt: skip


def figures(learning: Learning) -> dict[str, Figure]:
    """All figures of the report by the id of the element that shows them."""
    without, with_it = learning.runs
    return {
        "right": right(learning),
        "cost": cost(learning),
        "regret": regret(learning),
        "shares-without": shares(learning, without),
        "shares-with": shares(learning, with_it),
    }


def right(learning: Learning) -> Figure:
    """The share of right answers, day by day."""
    return _by_day(
        learning,
        {line.title: [day.right / day.requests for day in line.days] for line in _lines(learning)},
        {"tickformat": ".0%"},
        percent,
    )


def cost(learning: Learning) -> Figure:
    """What the answers cost, in USD per 1,000, day by day, on a logarithmic axis."""
    return _by_day(
        learning,
        {
            line.title: [day.usd / day.requests * 1000 for day in line.days]
            for line in _lines(learning)
        },
        {
            "type": "log",
            "tickprefix": "$",
            "tickvals": [m * 10.0**e for e in range(-3, 3) for m in (1, 2, 5)],
        },
        money,
    )


def _lines(learning: Learning) -> list[Line]:
    return [*(run.line for run in learning.runs), *learning.baselines]


def _by_day(
    learning: Learning,
    lines: dict[str, list[float]],
    axis: dict[str, Any],
    words: Callable[[float], str],
) -> Figure:
    middles = [day + 0.5 for day in range(learning.days)]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": title,
            "x": middles,
            "y": [round(value, 6) for value in values],
            "line": {"color": COLOURS[title], "width": 2, "dash": DASHES.get(title, "solid")},
            "marker": {"color": COLOURS[title], "size": 6},
            "customdata": [
                f"day {day + 1}, {title}: {words(value)}" for day, value in enumerate(values)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        for title, values in lines.items()
    ]
    return {"data": data, "layout": _layout(learning, axis)}


def regret(learning: Learning) -> Figure:
    """The regret added up, round by round."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": run.line.title,
            "x": [round((n + 1) / learning.rounds_a_day, 4) for n in range(len(run.regret))],
            "y": [round(total, 4) for total in accumulate(run.regret)],
            "line": {"color": COLOURS[run.line.title], "width": 2},
            "hovertemplate": f"{run.line.title}: $%{{y:.2f}}<extra></extra>",
        }
        for run in learning.runs
    ]
    return {"data": data, "layout": _layout(learning, {"tickprefix": "$", "rangemode": "tozero"})}


def shares(learning: Learning, run: Run) -> Figure:
    """Which model answered, day by day."""
    totals = [day.requests for day in run.line.days]
    data = [
        {
            "type": "bar",
            "name": model.model,
            "x": [day + 0.5 for day in range(learning.days)],
            "y": [
                round(n / total, 5)
                for n, total in zip(run.served[model.model], totals, strict=True)
            ],
            "width": 0.88,
            "marker": {"color": colour, "line": {"width": 0}},
            "hovertemplate": f"{model.model}: %{{y:.1%}}<extra></extra>",
        }
        for model, colour in zip(learning.fleet, MODELS, strict=True)
    ]
    layout = _layout(learning, {"tickformat": ".0%", "range": [0, 1]})
    layout |= {"barmode": "stack", "bargap": 0.1, "height": 380}
    layout["legend"]["traceorder"] = "normal"
    return {"data": data, "layout": layout}


def _layout(learning: Learning, yaxis: dict[str, Any]) -> dict[str, Any]:
    shapes, annotations = _marks(learning)
    return {
        "height": 330,
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.14, "x": 0},
        "margin": {"l": 8, "r": 8, "t": 26, "b": 0},
        "xaxis": {
            "range": [0, learning.days],
            "showgrid": False,
            "tickvals": [day + 0.5 for day in range(learning.days)],
            "ticktext": [str(day + 1) for day in range(learning.days)],
        },
        "yaxis": yaxis,
        "shapes": shapes,
        "annotations": annotations,
    }


def _marks(learning: Learning) -> tuple[list[Figure], list[Figure]]:
    """The outage, shaded, and the move, as a line."""
    begin, end = (learning.outage_day + part for part in learning.outage)
    outage = {
        "type": "rect", "xref": "x", "yref": "paper", "x0": begin, "x1": end, "y0": 0, "y1": 1,
        "fillcolor": "--failover", "opacity": 0.18, "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
    move = {
        "type": "line", "xref": "x", "yref": "paper", "x0": learning.move_day,
        "x1": learning.move_day, "y0": 0, "y1": 1,
        "line": {"color": "--failed", "width": 1.5, "dash": "dot"},
    }  # fmt: skip
    notes = (
        (f"{learning.outage_provider} is down", (begin + end) / 2, "--soft"),
        (f"{learning.alias} moves", learning.move_day, "--failed"),
    )
    return [outage, move], [_note(*note) for note in notes]


def _note(text: str, x: float, colour: str) -> Figure:
    return {
        "text": text, "x": x, "y": 1, "xref": "x", "yref": "paper", "yanchor": "bottom",
        "showarrow": False, "font": {"size": 12, "color": colour},
    }  # fmt: skip
