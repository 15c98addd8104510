"""What the demo makes of the books' rows, and how it says so in a terminal."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from routeledger.demo.audit import AttemptRow, Books, DecisionRow
from routeledger.demo.killing import KilledWriter, tell
from routeledger.demo.run import check_out
from routeledger.demo.summary import Flow

ANCHOR = datetime(2026, 3, 1, 9, tzinfo=timezone.utc)


def uid(n: int) -> UUID:
    return UUID(int=n)


def decision(n: int, status: str | None, *, at_s: float = 0, **changes: Any) -> DecisionRow:
    row = DecisionRow(
        tenant_id="acme",
        id=uid(n),
        agent_id="support",
        first="a",
        model="a",
        override=None,
        status=status,
        attempts=1,
        failovers=0,
        inference_id=uid(n * 100 + 1),
        created_at=ANCHOR + timedelta(seconds=at_s),
        event_at=ANCHOR + timedelta(seconds=at_s),
        completed_at=ANCHOR + timedelta(seconds=at_s + 1),
    )
    return row._replace(**changes)


def attempt(n: int, k: int = 1, model: str = "a", **changes: Any) -> AttemptRow:
    row = AttemptRow(
        decision_id=uid(n),
        id=uid(n * 100 + k),
        model=model,
        provider="p",
        status="succeeded",
        error_type=None,
        next_action=None,
        input_tokens=10,
        output_tokens=5,
        cost_usd=Decimal("0.25"),
        latency_ms=100.0,
    )
    return row._replace(**changes)


def failed(n: int, k: int, error: str, action: str | None, model: str = "a") -> AttemptRow:
    return attempt(
        n, k, model, status="failed", error_type=error, next_action=action,
        input_tokens=None, output_tokens=None, cost_usd=None,
    )  # fmt: skip


@pytest.fixture
def books() -> Books:
    decisions = [
        decision(1, "succeeded"),
        decision(2, "succeeded", attempts=2, at_s=61),
        decision(3, "succeeded", attempts=2, failovers=1, model="b", at_s=62),
        decision(4, "failed", at_s=63),
        decision(5, "failed", at_s=64),
        decision(6, "failed", override="not_dispatched", inference_id=None, at_s=65),
        decision(7, "rejected", first=None, model=None, attempts=0, inference_id=None, at_s=66),
        decision(8, "abandoned", agent_id="killed-writer", at_s=67),
        decision(9, None, inference_id=None, completed_at=None, at_s=185),
    ]
    attempts = {
        uid(1): [attempt(1)],
        uid(2): [failed(2, 1, "rate_limit", "retry"), attempt(2, 2)],
        uid(3): [
            failed(3, 1, "timeout", "failover"),
            attempt(3, 2, "b", cost_usd=None, latency_ms=300.0),
        ],
        uid(4): [failed(4, 1, "rate_limit", "give_up")],
        uid(5): [failed(5, 1, "cancelled", None)],
        uid(8): [failed(8, 1, "abandoned", None)],
        uid(9): [attempt(9, status="routed", cost_usd=None, latency_ms=None)],
    }
    return Books(decisions, attempts, orphans=0, reconciliation=())


def test_endings(books: Books) -> None:
    assert books.endings() == {
        "first attempt": 1, "retry": 1, "failover": 1, "failed": 1, "cancelled": 2,
        "rejected": 1, "abandoned": 1, "in flight": 1,
    }  # fmt: skip


def test_flows_are_those_whose_first_attempt_failed(books: Books) -> None:
    assert set(books.flows()) == {
        Flow("a", "rate_limit", "a", 1),
        Flow("a", "timeout", "b", 1),
        Flow("a", "rate_limit", "failed", 1),
        Flow("a", "cancelled", "cancelled", 1),
        Flow("a", "abandoned", "abandoned", 1),
    }


def test_slices_have_no_holes(books: Books) -> None:
    slices = books.slices(ANCHOR, 60)
    assert [one.begins_s for one in slices] == [0, 60, 120, 180]
    assert slices[0].endings == {"first attempt": 1}
    assert slices[2].endings == {}
    assert sum(sum(one.endings.values()) for one in slices) == len(books.decisions)


def test_models(books: Books) -> None:
    lines = {line.model: line for line in books.models({"a": [1, 2]})}
    assert lines["a"].answered == 2
    assert lines["a"].cost_usd == 0.5
    assert lines["a"].right == 0.5
    assert lines["b"].cost_usd is None
    assert lines["b"].unpriced == 1
    assert lines["b"].latency_p50_ms == 300.0
    assert books.cost_usd() == 0.5


def test_faults(books: Books) -> None:
    faults = {one.error_type: one for one in books.faults()}
    assert (faults["rate_limit"].attempts, faults["rate_limit"].decisions) == (2, 2)
    assert faults["rate_limit"].answered == 1
    assert faults["abandoned"].answered == 0
    assert books.count("retry") == books.count("failover") == 1


def test_lost_decisions_are_noticed(books: Books) -> None:
    assert books.lost({uid(1): "succeeded", uid(4): "failed", uid(5): None}) == 0
    assert books.lost({uid(77): None}) == 1
    assert books.lost({uid(1): "failed"}) == 1


def test_story_of_the_killed_writer(books: Books) -> None:
    writer = KilledWriter(7, "killed-writer", 2.0, "SIGKILL", {uid(8)}, set())
    writer.killed_at = ANCHOR + timedelta(seconds=67.5)
    writer.leases = {uid(8): ANCHOR + timedelta(seconds=69)}
    victim = tell(writer, books, {uid(8)})
    assert (victim.written, victim.in_flight, victim.reaped) == (1, 1, 1)
    assert victim.abandoned_and_linked == 1
    assert victim.killed_s == 0.5
    unlinked = [d._replace(inference_id=None) if d.id == uid(8) else d for d in books.decisions]
    worse = Books(unlinked, books.attempts, 0, ())
    assert tell(writer, worse, {uid(8)}).abandoned_and_linked == 0


def test_where_the_report_goes(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "report.html")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(OSError, match="is a directory"):
        check_out(tmp_path)


def test_books_are_shown_in_80_columns(books: Books) -> None:
    from routeledger.demo.terminal import summary_view
    from tests.unit.test_demo_report import sample

    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(summary_view(sample(), Path("report.html")))
    console.print(summary_view(sample(orphans=2, problems=("2 orphans",)), Path("report.html")))
    text = out.getvalue()
    assert "The books are in order" in text
    assert "The books are not in order" in text
    assert "answered by another model" in text
    assert max(map(len, text.splitlines())) <= 80
