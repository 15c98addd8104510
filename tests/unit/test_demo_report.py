"""The report: renders from plain data, stands alone, and says when the books are wrong."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest

from routeledger.demo import figures, words
from routeledger.demo.report import render, write_report
from routeledger.demo.summary import (
    EDGES,
    Fault,
    Flow,
    Incident,
    Latency,
    ModelLine,
    Phase,
    Reconciled,
    Server,
    Slice,
    Summary,
    Traffic,
    Victim,
    VictimDecision,
    find_problems,
    percentile,
    slice_width,
)

pytest.importorskip("plotly")


def sample(**changes: object) -> Summary:
    rng = random.Random(7)
    at = datetime(2026, 3, 1, 9, tzinfo=timezone.utc)
    models = [("gpt-4o-mini", "openai", 3_000), ("claude-3.5-sonnet", "anthropic", 900),
              ("gemini-1.5-flash", "google", 4_100), ("mistral-large", "mistral", 1_500),
              ("arctic-instruct", "self-hosted", 1_200)]  # fmt: skip
    victims = tuple(
        VictimDecision(
            id=f"00000000-0000-7000-8000-{n:012d}",
            model="gpt-4o-mini",
            attempts=1,
            created_s=0.2 + n * 0.02,
            closed_s=0.4 + n * 0.02 if n % 3 == 0 else 5.2,
            lease_ends_s=None if n % 3 == 0 else 2.2 + n * 0.02,
            status="succeeded" if n % 3 == 0 else "abandoned",
            error_type=None if n % 3 == 0 else "abandoned",
            linked=True,
            in_flight_when_killed=n % 3 != 0,
        )
        for n in range(60)
    )
    summary = Summary(
        version="0.1.0",
        started_at=at,
        seconds=38.2,
        phases=(Phase("server", 2.1), Phase("install", 0.9), Phase("replay", 16.0)),
        server=Server("PostgreSQL 18.1, private, running as nobody", "18.1", True, "demo"),
        traffic=Traffic("a <trace>", True, 10_000, 3_501.7, "made up", 200, 100.0),
        decisions=10_060,
        endings={"first attempt": 9_000, "retry": 500, "failover": 380, "failed": 20,
                 "cancelled": 60, "rejected": 60, "abandoned": 40},
        attempts=11_400,
        retries=900,
        failovers=440,
        rescued=880,
        cost_usd=41.2345,
        unpriced=1_150,
        input_tokens=11_000_000,
        output_tokens=1_900_000,
        replay_seconds=16.0,
        ledger_calls=21_000,
        models=tuple(
            ModelLine(slug, provider, n + 90, n, None if provider == "self-hosted" else n / 200,
                      n if provider == "self-hosted" else 0, n * 1000, n * 200, 812.0, 0.8)
            for slug, provider, n in models
        ),
        faults=(Fault("rate_limit", 700, 600, 590), Fault("server_error", 300, 250, 245),
                Fault("timeout", 60, 58, 57), Fault("context_length", 200, 200, 200),
                Fault("cancelled", 60, 60, 0), Fault("abandoned", 40, 40, 0)),
        flows=(Flow("gpt-4o-mini", "rate_limit", "gpt-4o-mini", 310),
               Flow("gpt-4o-mini", "rate_limit", "claude-3.5-sonnet", 200),
               Flow("gpt-4o-mini", "rate_limit", "failed", 20),
               Flow("mistral-large", "server_error", "gemini-1.5-flash", 180),
               Flow("mistral-large", "server_error", "mistral-large", 70),
               Flow("gemini-1.5-flash", "cancelled", "cancelled", 60),
               Flow("gemini-1.5-flash", "abandoned", "abandoned", 40)),
        slice_s=60,
        slices=tuple(
            Slice(n * 60, {"first attempt": 150 + rng.randint(-20, 20), "retry": 6,
                           "failover": 60 if 13 <= n <= 15 else 3, "failed": n % 3})
            for n in range(58)
        ),
        incidents=(Incident("openai: rate limits", 768.0, 942.0),),
        latencies=tuple(
            Latency.of(call, mode, [rng.lognormvariate(middle, 0.4) for _ in range(800)])
            for mode, middle in (("one by one", 0.2), ("under load", 2.4))
            for call in ("insert_decision", "complete_decision")
        ),
        victim=Victim(4242, "SIGKILL", 2.0, 60, 20, 40, 40, 40, 1.5, 5.2, victims),
        reconciliation=(
            Reconciled(at, "acme", 6_000, 5_900, 50, 30, 20, 0, 6_800, 0, 20.5, True),
            Reconciled(at, "globex", 4_060, 3_980, 30, 30, 20, 0, 4_600, 0, None, True),
        ),
        orphans=0,
        lost=0,
    )  # fmt: skip
    return dataclasses.replace(summary, **changes)  # type: ignore[arg-type]


class Links(HTMLParser):
    """Collects everything that a browser would fetch, and counts the elements by id."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.fetched += [str(found[name]) for name in ("src", "href", "data") if name in found]
        if "id" in found:
            self.ids.append(str(found["id"]))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])


def test_report_fetches_nothing() -> None:
    html = render(sample())
    links = Links()
    links.feed(html)
    assert links.fetched == []
    assert "default-src 'none'" in links.policy
    assert "@import" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "url(" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)


def test_report_has_a_place_for_every_figure_and_fills_every_blank() -> None:
    html = render(sample())
    links = Links()
    links.feed(html)
    assert set(figures.figures(sample())) == set(links.ids)
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "{{" not in own


def test_report_escapes_what_it_is_given() -> None:
    html = render(sample())
    assert "a &lt;trace&gt;" in html
    assert "a <trace>" not in html
    evil = "x</script><script>alert(1)</script>"
    flows = (Flow(evil, evil, evil, 3),)
    assert evil not in render(sample(flows=flows))


def test_report_says_when_the_books_are_wrong() -> None:
    assert "The books are in order." in render(sample())
    wrong = render(sample(orphans=3, problems=("3 orphans were found",)))
    assert "The books are not in order." in wrong
    assert "3 orphans were found" in wrong


def test_figures_are_valid_plotly() -> None:
    go = pytest.importorskip("plotly.graph_objects")

    def grey(value: object) -> object:  # the page's variables are not colours to plotly
        if isinstance(value, str) and value.startswith("--"):
            return "#888888"
        if isinstance(value, list):
            return [grey(item) for item in value]
        if isinstance(value, dict):
            return {key: grey(item) for key, item in value.items()}
        return value

    for name, figure in figures.figures(sample()).items():
        assert go.Figure(grey(figure)).data, name


def test_every_colour_is_defined_in_both_schemes() -> None:
    html = render(sample())
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r'"(--[a-z-]+)"', json.dumps(figures.figures(sample()))))
    for colour in used:
        assert f"{colour}:" in light
        assert f"{colour}:" in dark


def test_report_of_next_to_nothing_still_renders(tmp_path: Path) -> None:
    empty = sample(
        models=(), faults=(), flows=(), slices=(), latencies=(), reconciliation=(), endings={},
        victim=Victim(1, "SIGKILL", 2.0, 0, 0, 0, 0, 0, 0.0, 0.0, ()),
    )  # fmt: skip
    path = write_report(empty, tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_problems() -> None:
    good = sample()

    def problems(**changes: object) -> tuple[str, ...]:
        facts: dict[str, object] = {
            "orphans": 0,
            "lost": 0,
            "in_flight": 0,
            "reconciliation": good.reconciliation,
            "victim": good.victim,
        }
        return find_problems(**(facts | changes))  # type: ignore[arg-type]

    assert problems() == ()
    assert problems(orphans=1)
    assert problems(lost=1)
    assert problems(in_flight=1)
    assert problems(reconciliation=())
    bad_line = dataclasses.replace(good.reconciliation[0], agrees=False)
    assert problems(reconciliation=(bad_line, good.reconciliation[1]))
    assert problems(victim=dataclasses.replace(good.victim, abandoned_and_linked=39))
    assert problems(victim=dataclasses.replace(good.victim, in_flight=0, abandoned_and_linked=0))


def test_summary_is_json() -> None:
    document = json.loads(json.dumps(sample().to_json()))
    assert document["ok"] is True
    assert document["reconciliation_agrees"] is True
    assert document["started_at"] == "2026-03-01T09:00:00+00:00"
    assert "histogram" not in document["latencies"][0]


def test_percentiles_are_measured_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.50) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1) == 100
    assert percentile([], 0.5) == 0


def test_histogram_keeps_every_call() -> None:
    latency = Latency.of("call", "mode", [0.0001, EDGES[0], 1.0, 1.1, 10.0**9])
    assert sum(latency.histogram) == 5
    assert latency.histogram[0] == 2
    assert latency.histogram[-1] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.money(None), "—"),
        (words.money(0), "$0.00"),
        (words.money(1234.5), "$1,234.50"),
        (words.money(0.05), "$0.050"),
        (words.money(0.00042), "$0.00042"),
        (words.duration(0.4211), "0.421 ms"),
        (words.duration(123.4), "123 ms"),
        (words.duration(999.7), "1 s"),
        (words.duration(12_340), "12.3 s"),
        (words.seconds(3501.7), "58 min"),
        (words.percent(0.99999), "99.9 %"),
        (words.percent(1, 8), "12.5 %"),
        (words.percent(0, 0), "0.0 %"),
        (words.percent(1), "100.0 %"),
        (words.plural(1, "orphan"), "1 orphan"),
        (words.plural(0, "orphan"), "0 orphans"),
        (words.plural(2, "retry", "retries"), "2 retries"),
        (words.tokens(9_999), "9,999"),
        (words.tokens(22_400_000), "22.4 M"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("span_s", "width_s"),
    [
        (0, 1),
        (50, 1),
        (300, 5),
        (3_500, 60),
        (86_400, 1_800),
        (7 * 86_400, 10_800),
        (10**9, 86_400),
    ],
)
def test_slices_are_few(span_s: float, width_s: int) -> None:
    assert slice_width(span_s) == width_s
