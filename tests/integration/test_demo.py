"""The demo on a real server: the books are in order, and it notices when they are not."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeledger._embedded import embedded
from routeledger.demo import run_demo
from routeledger.demo.killing import WriterError, kill_a_writer
from tests.conftest import Database


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without recorded data."""
    monkeypatch.setenv("ROUTELEDGER_DATA", "")


def demo(db: Database, out: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> Any:
    code = run_demo(db.dsn, requests=120, out=out, json=True, quiet=True, **changes)
    return code, json.loads(capsys.readouterr().out)


def test_demo_ends_in_order(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = demo(db, tmp_path / "report.html", capsys)
    assert summary["problems"] == []
    assert code == 0
    assert summary["ok"] is True
    assert summary["orphans"] == 0
    assert summary["reconciliation_agrees"] is True
    assert summary["traffic"]["synthetic"] is True
    assert summary["traffic"]["requests"] == 120
    assert summary["decisions"] == 120 + summary["victim"]["written"]
    assert sum(summary["endings"].values()) == summary["decisions"]
    assert "in flight" not in summary["endings"]
    assert summary["cost_usd"] > 0

    victim = summary["victim"]
    assert victim["exit_signal"] == "SIGKILL"
    assert victim["in_flight"] >= 3
    assert victim["abandoned_and_linked"] == victim["in_flight"] == victim["reaped"]
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The books are in order." in report

    # The summary says what the views say.
    assert db.value("select count(*) from routeledger.orphans") == 0
    assert db.value("select bool_and(agrees) from routeledger.reconciliation")
    assert db.value("select count(*) from routeledger.decisions") == summary["decisions"]
    assert db.value("select count(*) from routeledger.attempts") == summary["attempts"]
    assert db.value("select count(*) from routeledger.in_flight") == 0
    for one in victim["decisions"]:
        status, error = db.execute(
            "select d.outcome_status, a.error_type from routeledger.decisions d"
            " join routeledger.attempts a on a.tenant_id = d.tenant_id and a.outcome_id = d.id"
            " and a.id = d.inference_id where d.id = %s",
            [one["id"]],
        )[0]
        assert status == ("abandoned" if one["in_flight_when_killed"] else "succeeded")
        assert error == ("abandoned" if one["in_flight_when_killed"] else None)
    # No price of the demo's catalog looks implausible, and no cost does.
    assert db.value("select count(*) from routeledger.flagged_prices") == 0
    assert db.value("select count(*) from routeledger.implausible_costs") == 0


def test_demo_notices_books_that_are_not_in_order(
    db: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a reaper the killed writer's decisions stay open, and the demo says so."""
    from routeledger.demo import run

    async def no_reaper(self: object, ledger: object, tenants: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(run.Demo, "_reap", no_reaper)
    monkeypatch.setattr(run, "VICTIM_LEASE_S", 1.0)
    monkeypatch.setattr(run, "PATIENCE_S", 0.0)
    code, summary = demo(db, tmp_path / "report.html", capsys)
    assert code == 1
    assert summary["ok"] is False
    assert any("still in flight" in problem for problem in summary["problems"])
    assert any("killed writer" in problem for problem in summary["problems"])
    assert "The books are not in order." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_demo_leaves_other_tenants_and_prices_alone(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with db.connect() as conn:
        conn.execute(
            """
            select routeledger.import_models(
              '[{"model_slug": "gpt-4o", "provider": "us", "valid_from": "2024-01-01",
                 "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}]')
            """
        )
        conn.execute("select routeledger.insert_decision('acme', p_candidates => '[\"gpt-4o\"]')")
    code, summary = demo(db, tmp_path / "report.html", capsys)
    assert code == 0
    assert all(line["tenant"].startswith("demo-") for line in summary["reconciliation"])
    assert db.value("select count(*) from routeledger.in_flight where tenant_id = 'acme'") == 1
    prices = db.execute(
        "select input_usd_per_mtok from routeledger.model_prices where model_slug = 'gpt-4o'"
    )
    assert prices == [(1,)]


def test_demo_installs_where_nothing_is(
    empty_db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = demo(empty_db, tmp_path / "report.html", capsys, seed=3)
    assert code == 0, summary["problems"]


def test_demo_replays_a_file(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:15:{n:02}.6805900,{300 + n},{40 + n}\n" for n in range(30))
    )
    code, summary = demo(db, tmp_path / "report.html", capsys, trace=trace)
    assert code == 0, summary["problems"]
    assert summary["traffic"]["label"] == "trace.csv"
    assert summary["traffic"]["synthetic"] is False
    assert summary["traffic"]["requests"] == 30


def test_wrong_usage_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo("host=nowhere.invalid", trace=tmp_path / "none.csv", out=tmp_path / "r") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert run_demo("host=nowhere.invalid", requests=1, out=tmp_path) == 2
    assert "is a directory" in " ".join(capsys.readouterr().err.split())


def test_a_writer_that_cannot_start_is_an_error(empty_db: Database) -> None:
    job = {
        "tenant": "acme",
        "agent": "killed-writer",
        "lease_s": 2.0,
        "candidates": [["gpt-4o"]],
        "event_at": datetime.now(timezone.utc).isoformat(),
    }
    with pytest.raises(WriterError, match="NotInstalled"):
        asyncio.run(kill_a_writer(empty_db.dsn, job, 3))


@pytest.mark.db
@pytest.mark.usefixtures("private_home")
def test_demo_with_nothing_but_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code = run_demo(requests=60, out=tmp_path / "report.html")
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "The books are in order" in shown
    assert "SIGKILL" in shown
    assert "synthetic" in shown
    assert str(tmp_path) in "".join(shown.split())
    with embedded() as server, psycopg.connect(server.dsn) as conn:
        left = conn.execute("select from pg_database where datname like 'routeledger_demo%'")
        assert left.rowcount == 0
