"""``report.html``: one file with everything in it, scripts included; it fetches nothing."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from .figures import figures
from .page import card, render_page, tiles, write_page
from .summary import Summary
from .words import duration, money, number, percent, plural, seconds, tokens


def write_report(summary: Summary, path: str | Path) -> Path:
    """Write the report and return where it is. Needs plotly."""
    return write_page(path, **_page(summary))


def render(summary: Summary) -> str:
    """The report as one HTML document."""
    return render_page(**_page(summary))


def _page(summary: Summary) -> dict[str, Any]:
    return {
        "title": "routeledger demo report",
        "body": _body(summary),
        "figures": figures(summary),
    }


def _body(summary: Summary) -> str:
    sections = (
        _header(summary),
        _tiles(summary),
        card(
            "timeline",
            "Every decision, by how it ended",
            f"One bar is {_width(summary.slice_s)} of the traffic. Shaded: a provider's bad spell."
            " A decision is written before its provider is called, so every bar is complete,"
            " whatever happened afterwards.",
        ),
        card("flow", "When the first attempt failed", _flow_note(summary)),
        '<div class="pair">',
        card("cost", "Cost by model", _cost_note(summary)),
        card("faults", "What went wrong, in decisions", _fault_note(summary)),
        "</div>",
        _victim(summary),
        _latency(summary),
        _reconciliation(summary),
        _footer(summary),
    )
    return "\n".join(sections)


def _width(s: int) -> str:
    for unit, unit_s in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if s >= unit_s:
            return plural(s // unit_s, unit)
    return plural(s, "second")


def _header(s: Summary) -> str:
    orphans = f"<b>{plural(s.orphans, 'orphan')}</b>"
    if s.ok:
        mark, verdict = '<span class="mark">✓</span>', "The books are in order."
        left = f"What is left: {orphans}, and every row closed with its reason."
    else:
        mark, verdict = '<span class="mark bad">✗</span>', "The books are not in order."
        items = "".join(f"<li>{escape(problem)}</li>" for problem in s.problems)
        left = f'What is left: {orphans}, and this:</p><ul class="problems">{items}</ul><p>'
    synthetic = " The traffic is synthetic." if s.traffic.synthetic else ""
    return (
        f'<header><div class="name">routeledger {escape(s.version)} · demo</div>'
        f"<h1>{mark}{verdict}</h1>"
        f'<p class="lead"><b>{plural(s.decisions, "decision")}</b> went to providers that'
        " throttle, fail, stall and refuse; clients hung up, and one writer was killed in the"
        f" middle of its work. {left}{synthetic}</p></header>"
    )


def _tiles(s: Summary) -> str:
    load = [line for line in s.latencies if line.mode == "under load"]
    slow = max(load, key=lambda line: line.n, default=None)
    answered = sum(s.endings.get(key, 0) for key in ("first attempt", "retry", "failover"))
    retried = f"{plural(s.retries, 'retry', 'retries')}, {plural(s.failovers, 'failover')}"
    agreement = "reconciliation agrees" if s.agrees else "reconciliation disagrees"
    shown = (
        ("Decisions", number(s.decisions), f"{percent(answered, s.decisions)} answered", ""),
        ("Attempts", number(s.attempts), retried, ""),
        ("Rescued", number(s.rescued), "answered after a failure", ""),
        ("Cost", money(s.cost_usd), f"{tokens(s.input_tokens + s.output_tokens)} tokens", ""),
        (
            "Ledger call, median",
            duration(slow.p50) if slow else "—",
            f"p99 {duration(slow.p99)} under load" if slow else "",
            "",
        ),
        ("Orphans", number(s.orphans), agreement, "good" if s.ok else "bad"),
    )
    return tiles(shown)


def _flow_note(s: Summary) -> str:
    straight = plural(s.endings.get("first attempt", 0), "decision")
    return (
        "The first choice, what went wrong there, and who answered. Green: the same model, at a"
        " later try. Amber: another candidate. Red: nobody, and the decision is closed all the"
        f" same. The {straight} answered at once are not drawn."
    )


def _cost_note(s: Summary) -> str:
    note = "Computed in the database from dated prices."
    if s.unpriced:
        note += (
            f" {plural(s.unpriced, 'answer')} came from a model without a known price: their cost"
            " stays unknown and is never counted as free."
        )
    return note


def _fault_note(s: Summary) -> str:
    failed = sum(line.attempts for line in s.faults)
    return (
        f"{plural(failed, 'attempt')} failed; {plural(s.rescued, 'decision')} were answered all"
        " the same, by a retry or another model."
    )


def _victim(s: Summary) -> str:
    v = s.victim
    kept = v.abandoned_and_linked == v.in_flight
    by_itself = f"{number(v.completed)} were answered and closed"
    kept_so = f"{number(v.abandoned_and_linked)} of {number(v.in_flight)} stand as abandoned"
    steps = (
        (
            "",
            f"{plural(v.written, 'decision')} written",
            f"by process {v.pid}, with leases of {seconds(v.lease_s)}; {by_itself}",
        ),
        (
            "kill",
            f"{v.exit_signal} at {v.killed_s:.1f} s",
            f"{plural(v.in_flight, 'decision')} in flight: no exception handler, no goodbye",
        ),
        ("", "The leases run out", "nothing else has to notice that the writer is gone"),
        (
            "done" if kept else "kill",
            f"The reaper closes {number(v.reaped)}",
            f"{kept_so}, each linked to the attempt it died in",
        ),
    )
    items = "".join(
        f'<li class="{kind}"><b>{escape(title)}</b><span>{escape(text)}</span></li>'
        for kind, title, text in steps
    )
    return card(
        "victim",
        "The killed writer",
        "A second process wrote decisions and was killed with requests in flight. One line is one"
        " of its decisions.",
        f'<ol class="steps">{items}</ol>',
    )


def _latency(s: Summary) -> str:
    rows = "".join(
        f'<tr><td>{escape(line.call)}</td><td class="left">{escape(line.mode)}</td>'
        f"<td>{number(line.n)}</td><td>{duration(line.p50)}</td><td>{duration(line.p95)}</td>"
        f"<td>{duration(line.p99)}</td><td>{duration(line.max)}</td></tr>"
        for line in s.latencies
    )
    table = (
        '<div class="scroll"><table><tr><th>call</th><th class="left">how</th><th>calls</th>'
        f"<th>median</th><th>p95</th><th>p99</th><th>slowest</th></tr>{rows}</table></div>"
    )
    rate = s.ledger_calls / s.replay_seconds if s.replay_seconds else 0.0
    return card(
        "latency",
        "What the ledger itself costs",
        "From the call until its row is durable, as the caller sees it. One by one: a single"
        f" caller, nothing shared. Under load: {number(s.traffic.concurrency)} callers at full"
        " speed, whose writes share statements and commits, in the same process as the simulated"
        f" providers: {number(rate)} ledger calls a second.",
        table,
    )


def _reconciliation(s: Summary) -> str:
    columns = ("hour (UTC)", "tenant", "decided", "succeeded", "failed", "rejected", "abandoned",
               "in flight", "attempts", "cost", "agrees")  # fmt: skip

    def cells(counts: list[int], cost: float | None) -> str:
        out = "".join(f'<td class="{"dim" if n == 0 else ""}">{number(n)}</td>' for n in counts)
        return f"{out}<td>{money(cost)}</td>"

    rows = []
    for line in s.reconciliation:
        counts = [line.decided, line.succeeded, line.failed, line.rejected, line.abandoned,
                  line.in_flight, line.attempts]  # fmt: skip
        verdict = '<span class="yes">✓</span>' if line.agrees else '<span class="no">✗</span>'
        rows.append(
            f'<tr><td>{line.hour:%d %b, %H:%M}</td><td class="left">{escape(line.tenant)}</td>'
            f"{cells(counts, line.cost_usd)}<td>{verdict}</td></tr>"
        )
    totals = [
        sum(getattr(line, name) for line in s.reconciliation)
        for name in ("decided", "succeeded", "failed", "rejected", "abandoned", "in_flight",
                     "attempts")
    ]  # fmt: skip
    known = [line.cost_usd for line in s.reconciliation if line.cost_usd is not None]
    verdict = '<span class="yes">✓</span>' if s.agrees else '<span class="no">✗</span>'
    rows.append(
        '<tr class="sum"><td>all</td><td></td>'
        f"{cells(totals, sum(known) if known else None)}<td>{verdict}</td></tr>"
    )
    head = "".join(
        f'<th class="{"left" if name == "tenant" else ""}">{name}</th>' for name in columns
    )
    return (
        '<section class="card"><h2>Reconciliation</h2><p class="note">From the view of that name:'
        " what was decided equals what ended, tenant by tenant and hour by hour, counted twice"
        " from different tables.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div></section>'
    )


def _footer(s: Summary) -> str:
    count = plural(s.traffic.requests, "request")
    origin = f"synthetic, from a {s.traffic.label}" if s.traffic.synthetic else s.traffic.label
    traffic = f"{count}: {origin}"
    phases = ", ".join(f"{phase.name} {seconds(phase.seconds)}" for phase in s.phases)
    facts = {
        "Server": s.server.description,
        "Traffic": f"{traffic}; {seconds(s.traffic.span_s)} of it, replayed in"
        f" {seconds(s.replay_seconds)} without its pauses",
        "Answers": s.traffic.answers,
        "Providers": f"simulated, {s.traffic.speed:g} times as fast as in truth; the latency that"
        " they report, and the books keep, is the true one",
        "This run": f"{s.started_at:%Y-%m-%d %H:%M} UTC, {seconds(s.seconds)}: {phases}",
    }
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()
    )
    return f"<footer><h2>How this was made</h2><dl>{items}</dl></footer>"
