"""The report's figures, as plotly's plain JSON: ``{"data": […], "layout": {…}}``.

Colours are names of the page's CSS variables; the page resolves them, in light and dark.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from .summary import EDGES, ENDINGS, Latency, ModelLine, Summary
from .words import duration, money, number, percent

Figure = dict[str, Any]

COLOURS = {
    "first attempt": "--first",
    "retry": "--retry",
    "failover": "--failover",
    "failed": "--failed",
    "cancelled": "--cancelled",
    "rejected": "--rejected",
    "abandoned": "--abandoned",
    "in flight": "--flight",
}
NAMES = {
    "first attempt": "answered at once",
    "retry": "answered after a retry",
    "failover": "answered by another model",
    "failed": "every candidate failed",
    "cancelled": "client hung up",
    "rejected": "rejected: nothing good enough",
    "abandoned": "abandoned: writer killed",
    "in flight": "in flight",
}
END_NAMES = {
    "failed": "no candidate answered",
    "cancelled": "client hung up",
    "abandoned": "writer killed",
}


def fault_name(error_type: str) -> str:
    """An error type in words."""
    return END_NAMES.get(error_type, error_type.replace("_", " "))


def figures(summary: Summary) -> dict[str, Figure]:
    """All figures of the report by the id of the element that shows them."""
    return {
        "timeline": timeline(summary),
        "flow": flow(summary),
        "cost": cost(summary),
        "faults": faults(summary),
        "latency": latency(summary),
        "victim": victim(summary),
    }


def timeline(summary: Summary) -> Figure:
    """Decisions along the traffic, stacked by how they ended."""
    hours = summary.slices and summary.slices[-1].begins_s > 3 * 3600
    unit, unit_s = ("h", 3600.0) if hours else ("min", 60.0)
    width = summary.slice_s / unit_s
    middles = [one.begins_s / unit_s + width / 2 for one in summary.slices]
    data = []
    for ending in ENDINGS:
        counts = [one.endings.get(ending, 0) for one in summary.slices]
        if any(counts):
            data.append(
                {
                    "type": "bar",
                    "name": NAMES[ending],
                    "x": middles,
                    "y": counts,
                    "width": width * 0.88,
                    "marker": {"color": COLOURS[ending], "line": {"width": 0}},
                    "hovertemplate": f"%{{y:,}} {NAMES[ending]}<extra></extra>",
                }
            )
    end = summary.slices[-1].begins_s + summary.slice_s if summary.slices else 0
    shown = [incident for incident in summary.incidents if incident.begins_s < end]
    shapes = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": incident.begins_s / unit_s,
            "x1": incident.ends_s / unit_s,
            "y0": 0,
            "y1": 1,
            "fillcolor": "--failover",
            "opacity": 0.10,
            "line": {"width": 0},
            "layer": "below",
        }
        for incident in shown
    ]
    annotations = [
        {
            "text": incident.label,
            "x": (incident.begins_s + incident.ends_s) / 2 / unit_s,
            "y": 1.0,
            "xref": "x",
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12, "color": "--soft"},
        }
        for incident in shown
    ]
    return {
        "data": data,
        "layout": {
            "barmode": "stack",
            "height": 330,
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.16, "x": 0, "traceorder": "normal"},
            "margin": {"l": 8, "r": 8, "t": 26, "b": 0},
            "xaxis": {"ticksuffix": f" {unit}", "showgrid": False, "rangemode": "tozero"},
            "yaxis": {"tickformat": ",d"},
            "shapes": shapes,
            "annotations": annotations,
        },
    }


def flow(summary: Summary) -> Figure:
    """Decisions whose first attempt failed: first choice, what went wrong, who answered."""
    nodes: dict[tuple[int, str], int] = {}
    totals: Counter[tuple[int, str]] = Counter()
    links: Counter[tuple[tuple[int, str], tuple[int, str], str]] = Counter()
    for one in sorted(summary.flows, key=lambda one: one.end in ENDINGS):
        first, fault, end = (0, one.first), (1, fault_name(one.fault)), (2, one.end)
        for node in (first, fault, end):
            nodes.setdefault(node, len(nodes))
            totals[node] += one.n
        if one.end in ENDINGS:
            colour = "--bad-link"
        elif one.end == one.first:
            colour = "--same-link"
        else:
            colour = "--loud-link"
        links[first, fault, "--quiet-link"] += one.n
        links[fault, end, colour] += one.n

    def node_colour(node: tuple[int, str]) -> str:
        column, name = node
        if column == 2:
            return COLOURS.get(name, "--first")
        return "--accent" if column == 0 else "--rejected"

    return {
        "data": [
            {
                "type": "sankey",
                "arrangement": "snap",
                "node": {
                    "label": [f"{END_NAMES.get(n, n)}  {number(totals[c, n])}" for c, n in nodes],
                    "color": [node_colour(node) for node in nodes],
                    "pad": 14,
                    "thickness": 12,
                    "line": {"width": 0},
                    "hovertemplate": "%{label} decisions<extra></extra>",
                },
                "link": {
                    "source": [nodes[source] for source, _, _ in links],
                    "target": [nodes[target] for _, target, _ in links],
                    "value": list(links.values()),
                    "color": [colour for _, _, colour in links],
                    "customdata": [f"{source[1]} → {target[1]}" for source, target, _ in links],
                    "hovertemplate": "%{customdata}: %{value:,} decisions<extra></extra>",
                },
                "valueformat": ",d",
            }
        ],
        "layout": {"height": 460, "margin": {"l": 4, "r": 4, "t": 12, "b": 12}},
    }


def cost(summary: Summary) -> Figure:
    """What each model cost; models of unknown price are listed, without a bar."""

    def label(line: ModelLine) -> str:
        if line.cost_usd is None:
            return f"price unknown · {number(line.answered)} answers"
        return f"{money(line.cost_usd)} · {number(line.answered)} answers"

    def more(line: ModelLine) -> str:
        text = f"{line.model}: {label(line)}"
        if line.latency_p50_ms is not None:
            text += f", {duration(line.latency_p50_ms)} at the median"
        return text if line.right is None else f"{text}, {percent(line.right)} right"

    lines = sorted(
        (line for line in summary.models if line.answered),
        key=lambda line: -1.0 if line.cost_usd is None else line.cost_usd,
    )
    most = max((line.cost_usd or 0.0 for line in lines), default=0.0)
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": [line.model for line in lines],
                "x": [line.cost_usd or 0.0 for line in lines],
                "text": [label(line) for line in lines],
                "textposition": "outside",
                "cliponaxis": False,
                "textfont": {"color": "--soft", "size": 12.5},
                "marker": {"color": "--accent"},
                "customdata": [more(line) for line in lines],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        ],
        "layout": {
            "height": 60 + 27 * len(lines),
            "bargap": 0.35,
            "xaxis": {"visible": False, "range": [0, most * 1.95 or 1.0]},
            "yaxis": {"showgrid": False, "ticksuffix": "  "},
        },
    }


def faults(summary: Summary) -> Figure:
    """What went wrong: decisions that met each fault, answered all the same or not."""
    lines = sorted(summary.faults, key=lambda line: line.decisions)
    names = [fault_name(line.error_type) for line in lines]
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": "answered all the same",
                "y": names,
                "x": [line.answered for line in lines],
                "marker": {"color": "--first"},
                "hovertemplate": "%{y}: %{x:,} answered all the same<extra></extra>",
            },
            {
                "type": "bar",
                "orientation": "h",
                "name": "not answered, but closed",
                "y": names,
                "x": [line.decisions - line.answered for line in lines],
                "text": [number(line.decisions) for line in lines],
                "textposition": "outside",
                "cliponaxis": False,
                "textfont": {"color": "--soft", "size": 12.5},
                "marker": {"color": "--failed"},
                "hovertemplate": "%{y}: %{x:,} not answered<extra></extra>",
            },
        ],
        "layout": {
            "barmode": "stack",
            "height": 60 + 27 * max(len(lines), sum(1 for m in summary.models if m.answered)),
            "bargap": 0.35,
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.04, "x": 0, "traceorder": "normal"},
            "margin": {"l": 8, "r": 46, "t": 8, "b": 8},
            "xaxis": {"visible": False},
            "yaxis": {"showgrid": False, "ticksuffix": "  "},
        },
    }


def latency(summary: Summary) -> Figure:
    """How long the ledger's calls took, one by one and under load, on a logarithmic axis."""
    data = []
    peak = 0.0
    low, high = len(EDGES), 0
    shades = {"one by one": "--accent", "under load": "--failover"}
    for mode, colour in shades.items():
        mine = [line for line in summary.latencies if line.mode == mode]
        counts = _add(mine)
        total = sum(counts)
        if not total:
            continue
        used = [i for i, n in enumerate(counts) if n]
        low, high = min(low, used[0]), max(high, used[-1])
        shares = [n / total for n in counts]
        peak = max(peak, *shares)
        centres = [math.sqrt(a * b) for a, b in pairwise(EDGES)]
        data.append(
            {
                "type": "bar",
                "name": f"{mode} ({number(total)} calls)",
                "x": [round(x, 4) for x in centres],
                "y": [round(share, 5) for share in shares],
                "width": [round(b - a, 4) for a, b in pairwise(EDGES)],
                "marker": {"color": colour, "opacity": 0.72, "line": {"width": 0}},
                "customdata": [f"{duration(a)} to {duration(b)}" for a, b in pairwise(EDGES)],
                "hovertemplate": "%{customdata}: %{y:.1%} of calls " + mode + "<extra></extra>",
            }
        )
    ticks = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000]
    return {
        "data": data,
        "layout": {
            "barmode": "overlay",
            "height": 300,
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.14, "x": 0},
            "xaxis": {
                "type": "log",
                "showgrid": False,
                "range": [
                    math.log10(EDGES[max(low - 1, 0)]) if data else -1,
                    math.log10(EDGES[min(high + 2, len(EDGES) - 1)]) if data else 4,
                ],
                "tickvals": ticks,
                "ticktext": [duration(t) for t in ticks],
            },
            "yaxis": {"tickformat": ".0%", "range": [0, peak * 1.08 or 1]},
        },
    }


def _add(latencies: list[Latency]) -> list[int]:
    total = [0] * (len(EDGES) - 1)
    for one in latencies:
        total = [a + b for a, b in zip(total, one.histogram, strict=True)]
    return total


def victim(summary: Summary) -> Figure:
    """The killed writer's decisions, one line each, from their beginning to their closing."""
    v = summary.victim
    shown = v.decisions[:60]
    rows = list(range(1, len(shown) + 1))
    bars: dict[str, tuple[list[float], list[float], list[int]]] = {
        "closed by the writer itself": ([], [], []),
        "in flight, writer alive": ([], [], []),
        "in flight, writer dead": ([], [], []),
    }
    for row, one in zip(rows, shown, strict=True):
        end = one.closed_s if one.closed_s is not None else v.reaped_s
        if one.in_flight_when_killed:
            parts = [
                ("in flight, writer alive", one.created_s, v.killed_s),
                ("in flight, writer dead", v.killed_s, end),
            ]
        else:
            parts = [("closed by the writer itself", one.created_s, end)]
        for name, begin, stop in parts:
            bars[name][0].append(round(begin, 4))
            bars[name][1].append(round(max(stop - begin, 0.012), 4))
            bars[name][2].append(row)
    colours = {
        "closed by the writer itself": "--first",
        "in flight, writer alive": "--flight",
        "in flight, writer dead": "--rejected",
    }
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "base": base,
            "x": length,
            "y": row,
            "width": 0.7,
            "marker": {"color": colours[name], "line": {"width": 0}},
            "hovertemplate": f"decision %{{y}}: {name}<extra></extra>",
        }
        for name, (base, length, row) in bars.items()
        if row
    ]
    reaped = [
        (row, one)
        for row, one in zip(rows, shown, strict=True)
        if one.status == "abandoned" and one.closed_s is not None
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "closed by the reaper: abandoned, linked",
            "x": [one.closed_s for _, one in reaped],
            "y": [row for row, _ in reaped],
            "marker": {"color": "--abandoned", "size": 7, "symbol": "diamond"},
            "hovertemplate": "decision %{y}: closed by the reaper after %{x:.1f} s<extra></extra>",
        }
    )

    def mark(x: float, text: str, colour: str, anchor: str) -> tuple[Figure, Figure]:
        line = {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "line": {"color": colour, "width": 1.5, "dash": "dot"},
        }
        note = {
            "text": text,
            "x": x,
            "y": 1,
            "xref": "x",
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": anchor,
            "showarrow": False,
            "font": {"size": 12, "color": colour},
        }
        return line, note

    marks = [
        mark(v.killed_s, f"SIGKILL at {v.killed_s:.1f} s", "--bad", "center"),
        mark(v.reaped_s, f"reaper at {v.reaped_s:.1f} s", "--soft", "right"),
    ]
    return {
        "data": data,
        "layout": {
            "barmode": "overlay",
            "height": 150 + 7 * len(shown),
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.14, "x": 0, "traceorder": "normal"},
            "margin": {"l": 8, "r": 12, "t": 28, "b": 8},
            "xaxis": {"ticksuffix": " s", "rangemode": "tozero"},
            "yaxis": {"visible": False, "autorange": "reversed"},
            "shapes": [line for line, _ in marks],
            "annotations": [note for _, note in marks],
        },
    }
