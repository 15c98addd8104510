"""The loop closed, on a real server: routed by priors, judged, counted, and routed by what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from routeledger._embedded import embedded
from routeledger.cli import app
from routeledger.demo.learn import run_learn
from routeledger.demo.learn.loop import Loop
from routeledger.demo.trace import data_dir
from routeledger.replay.matrix import FOLDER
from tests.conftest import Database

RECORDED = (data_dir() or Path()) / FOLDER / "matrix.csv.gz"
DAYS, A_DAY = 8, 72


def learn(
    dsn: str, out: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> tuple[int, Any]:
    told = {"days": DAYS, "requests": DAYS * A_DAY, **changes}
    code = run_learn(dsn, out=out, json=True, quiet=True, **told)
    return code, json.loads(capsys.readouterr().out)


def check_books(db: Database, learnt: Any) -> None:
    """The summary says what the ledger says, request by request."""
    for run, books in zip(learnt["runs"], learnt["books"], strict=True):
        tenant = run["tenant"]
        right = sum(day["right"] for day in run["line"]["days"])
        assert db.execute(
            """
            select count(*), count(*) filter (where o.outcome_status = 'succeeded'), sum(o.reward),
              count(*) filter (where o.judge_status = 'labeled' and o.reward_source = 'judge'),
              count(*) filter (where o.decision_rule = 'exploration')
            from routeledger.routing_outcomes o where o.tenant_id = %s
            """,
            [tenant],
        ) == [(DAYS * A_DAY, DAYS * A_DAY, right, DAYS * A_DAY, run["explored"])]
        assert db.execute(
            """
            select sum(b.reward_n), sum(b.reward_sum)
            from routeledger.model_performance_buckets b where b.tenant_id = %s
            """,
            [tenant],
        ) == [(DAYS * A_DAY, right)]
        served = dict(
            db.execute(
                """
                select regexp_replace(i.model_slug, '^demo-learn/', ''), count(*)
                from routeledger.inferences i
                where i.tenant_id = %s and i.status = 'succeeded' group by 1
                """,
                [tenant],
            )
        )
        assert served == {model: sum(days) for model, days in run["served"].items() if sum(days)}
        failed = (
            "select count(*) from routeledger.attempts where tenant_id = %s and status = 'failed'"
        )
        assert db.value(failed, [tenant]) == run["outage"]["failed_attempts"] > 0
        cost = sum(day["usd"] for day in run["line"]["days"])
        assert books["cost_usd"] == pytest.approx(cost, abs=1e-5)


def test_the_loop_closes(db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the recorded answers where they are there, else on made-up ones."""
    recorded = RECORDED.is_file()
    with db.connect() as conn:
        conn.execute(
            """
            select routeledger.import_models(
              '[{"model_slug": "gpt-4o", "provider": "us", "valid_from": "2024-01-01",
                 "input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "q_prior": 1}]')
            """
        )
    code, learnt = learn(db.dsn, tmp_path / "report.html", capsys)
    assert learnt["problems"] == []
    assert code == 0
    assert learnt["synthetic"] is not recorded
    check_books(db, learnt)

    for run in learnt["runs"]:
        # what was measured led elsewhere than the priors had
        changed = [
            choice["task_type"]
            for choice in run["choices"]
            if choice["by_priors"] and choice["before_move"] != choice["by_priors"]
        ]
        assert changed
        # the alias was in use, its move was noticed in time, and it paid to have noticed it
        notice = run["notice"]
        held = [gone for gone in notice["task_types"] if gone["promised"]]
        assert held
        assert all(gone["after"] <= learnt["notice_limit"] for gone in held)
        assert notice["after"] == max(gone["after"] for gone in held)
        assert notice["right"] > notice["frozen_right"]
        # the outage was routed around: every request was answered, and most never saw the dead provider
        outage = run["outage"]
        assert outage["unanswered"] == 0
        assert 0 < outage["hit"] < outage["requests"] / 2
        assert 0 < run["line"]["right"] <= learnt["baselines"][1]["right"]
    without, with_it = learnt["runs"]
    assert without["explored"] == 0 < with_it["explored"]
    # another tenant's model of that name had no part in it
    assert db.value("select count(*) from routeledger.attempts where model_slug = 'gpt-4o'") == 0

    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The loop closed." in report
    assert ("The answers are synthetic." in report) is not recorded


def test_the_same_seed_learns_the_same(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice in one database: the first time leaves nothing that the second would learn from."""
    found = [
        learn(db.dsn, tmp_path / "report.html", capsys, seed=5, requests=DAYS * 24)[1]
        for _ in range(2)
    ]
    for learnt in found:
        assert len({run.pop("tenant") for run in learnt["runs"]}) == 2
    one, same = ([learnt["runs"], learnt["baselines"]] for learnt in found)
    assert one == same


def test_a_loop_without_its_judge_is_said_to_be_open(
    db: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is learnt, so everything stays with the model that the priors favour."""
    monkeypatch.setenv("ROUTELEDGER_DATA", "")
    idle: list[str] = []
    monkeypatch.setattr(Loop, "_judge", lambda _, tenant: idle.append(tenant))
    code, learnt = learn(db.dsn, tmp_path / "report.html", capsys, requests=DAYS * 24)
    assert idle
    assert code == 1
    assert learnt["ok"] is False
    problems = " ".join(learnt["problems"])
    assert "never noticed" in problems
    assert "changed no choice" in problems
    assert "0 labelled" in problems
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The loop did not close." in report


def test_wrong_usage_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, out = "host=nowhere.invalid", tmp_path / "report.html"
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"days": 7}, "7 days are too few"),
        ({"days": 10, "requests": 239}, "239 requests are too few"),
        ({"out": tmp_path}, "is a directory"),
    )
    for changes, text in wrong:
        assert run_learn(nowhere, **{"out": out, **changes}) == 2
        assert text in " ".join(capsys.readouterr().err.split())
    for arguments in (
        ["--learn", "--trace", str(tmp_path / "trace.csv")],
        ["--days", "9"],
        ["--priors", "price"],
        ["--learn", "--priors", "stars"],
        ["--learn", "--days", "3"],
    ):
        told = CliRunner().invoke(app, ["demo", "--dsn", nowhere, "--out", str(out), *arguments])
        assert told.exit_code == 2, told.output
    assert not out.exists()


@pytest.mark.db
@pytest.mark.usefixtures("private_home")
def test_learning_with_nothing_but_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without recorded answers, as on any machine."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("ROUTELEDGER_DATA", "")
    out = tmp_path / "report.html"
    told = CliRunner().invoke(
        app, ["demo", "--learn", "--days", "8", "--requests", "384", "--out", str(out)]
    )
    assert told.exit_code == 0, told.output
    assert "The loop closed." in told.output
    assert "without exploration" in told.output
    assert "synthetic" in told.output
    assert out.is_file()
    with embedded() as server, psycopg.connect(server.dsn) as conn:
        left = conn.execute("select from pg_database where datname like 'routeledger_demo%'")
        assert left.rowcount == 0
