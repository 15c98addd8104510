"""The page that every report is: one HTML document, with its pictures and what draws them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any


def write_page(
    path: str | Path, *, title: str, body: str, figures: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Write a page and return where it is. Needs plotly."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(title=title, body=body, figures=figures), encoding="utf-8")
    return path


def render_page(*, title: str, body: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: ``body`` is HTML, ``figures`` are Plotly's, by the ids of the charts in it."""
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    parts = {
        "title": title,
        "plotly": str(import_module("plotly.offline").get_plotlyjs()),
        "body": body,
        # "</" would end the script element that carries the data.
        "figures": json.dumps(figures, separators=(",", ":")).replace("</", "<\\/"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def card(chart: str, title: str, note: str, more: str = "") -> str:
    """A section with a chart; ``note`` and ``more`` are HTML."""
    return (
        f'<section class="card"><h2>{escape(title)}</h2><p class="note">{note}</p>'
        f'{more}<div class="chart" id="{chart}"></div></section>'
    )


def tiles(figures: Iterable[tuple[str, str, str, str]]) -> str:
    """A row of figures, each a label, the value, what more there is to say, and good, bad or ""."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile {kind}"><div class="label">{escape(label)}</div>'
            f'<div class="value">{escape(value)}</div><div class="more">{escape(more)}</div></div>'
            for label, value, more, kind in figures
        )
        + "</div>"
    )
