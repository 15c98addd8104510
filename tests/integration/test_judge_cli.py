"""`routeledger judge …`, and workers as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routeledger import cli_judge
from tests.command import Result, commands
from tests.conftest import Database
from tests.judgements import fill, held, hurry, statuses, verdicts
from tests.loopback import Loopback, answering, failing
from tests.servers import REPO

Run = Callable[..., Result]

JUDGES = '''
import asyncio
import os
import time
from pathlib import Path


def plain(judgement):
    print("a judge may print")
    question = judgement.request["messages"][0]["content"]
    said = judgement.response["choices"][0]["message"]["content"]
    return {"score": int(said) == 2 * int(question.split()[0]), "label": "checked"}


plain.version = 3


async def zeros_for_small(judgement):
    return 0.0 if judgement.model_slug == "small" else 1.0


async def broken(judgement):
    raise NameError("scroe")


async def waits(judgement):
    """Says that it has begun, and takes its time; the file `go` lets it end."""
    folder = Path(os.environ["JUDGE_FOLDER"])
    with open(folder / f"begun-{os.getpid()}", "a") as file:
        file.write(f"{judgement.id}\\n")
    while not (folder / "go").exists():
        await asyncio.sleep(0.02)
    return 1.0


def waits_in_a_thread(judgement):
    folder = Path(os.environ["JUDGE_FOLDER"])
    (folder / f"begun-{os.getpid()}").touch()
    time.sleep(600)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of judges in it that no other test has loaded."""
    (tmp_path / "judges_of_cli.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "judges_of_cli", raising=False)
    return tmp_path


@pytest.fixture
def run(db: Database, capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    return commands(capsys, "--dsn", db.dsn_as("judge"))


@pytest.fixture
def as_admin(db: Database, capsys: pytest.CaptureFixture[str]) -> Run:
    return commands(capsys, "--dsn", db.dsn_as("admin"))


def test_a_function(db: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_judge, "_EVERY", 0.0)
    asyncio.run(fill(db, 5))
    arguments = ("judge", "run", "--judge", "judges_of_cli:plain", "--once")
    done = run(*arguments, "--limit", 2, "--json")
    assert done.code == 0
    assert done.err.count("a judge may print") == 2
    assert "1 verdict, mean 1.000" in done.err
    wanted = {"judge": "judges_of_cli:plain", "version": "3", "recorded": 2, "stopped": "limit"}
    assert wanted.items() <= done.json.items()
    done = run(*arguments, "--concurrency", 3)
    assert done.out.splitlines()[-1] == "judges_of_cli:plain 3: 3 verdicts, mean 1.000"
    assert {row[1:3] for row in verdicts(db)} == {(1.0, "checked")}
    assert run(*arguments, "--version", "4", "--name", "checks", "--json").json["recorded"] == 5
    done = run(*arguments, "--since", "2999-01-01", "--version", "5", "--json")
    assert done.json["claimed"] == 0


def test_a_model(db: Database, run: Run, folder: Path) -> None:
    pytest.importorskip("openai")
    asyncio.run(fill(db, 3))
    db.execute(
        "select * from routeledger.import_models(%s)",
        [json.dumps([{
            "model_slug": "here/judge-1", "valid_from": "2020-01-01T00:00:00Z",
            "input_usd_per_mtok": 3, "output_usd_per_mtok": 6,
        }])],
    )  # fmt: skip
    (folder / "rubric.md").write_text("Sums.\n")
    text = '{"rationale": "", "score": 4, "label": "partly"}'
    with Loopback() as endpoint:
        endpoint.plan("judge-1", answering(input_tokens=1000, output_tokens=500, text=text))
        arguments = (
            *("judge", "run", "--model", "judge-1", "--base-url", endpoint.base_url),
            *("--rubric", "rubric.md", "--scale", "0:8", "--param", "seed=1", "--once", "--json"),
        )
        done = run(*arguments)
        assert done.code == 0
        assert (done.json["mean_score"], done.json["input_tokens"]) == (0.5, 3000)
        assert done.json["cost_usd"] == pytest.approx(3 * 0.006)
        assert done.json["judge"] == "judge-1"
        assert endpoint.seen[0].body["seed"] == 1
        assert "Sums." in endpoint.seen[0].body["messages"][0]["content"]
        assert run(*arguments).json["claimed"] == 0
        done = run(*arguments, "--prices", "1:2", "--param", "temperature=null")
        assert done.json["cost_usd"] == pytest.approx(3 * 0.002)
        assert "temperature" not in endpoint.seen[-1].body

        endpoint.plan("judge-1", failing(401, message="Incorrect API key"))
        done = run(*arguments, "--version", "next")
        assert done.code == 1
        assert "the judge cannot work" in done.err
        assert "Incorrect API key" in done.err
        assert done.json["recorded"] == 0
    assert held(db) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        ([], 2, "give --judge or --model"),
        (["--judge", "a:b", "--model", "m"], 2, "give --judge or --model"),
        (["--judge", "judges_of_cli"], 2, "module:function"),
        (["--judge", "surely_not_there:judge"], 2, "no module surely_not_there"),
        (["--judge", "judges_of_cli:absent"], 2, "can be called"),
        (["--judge", "judges_of_cli:waits"], 2, "--version"),
        (["--judge", "judges_of_cli:plain", "--scale", "1:5"], 2, "for --model"),
        (["--judge", "judges_of_cli:plain", "--concurrency", "0"], 2, "--concurrency"),
        (["--judge", "judges_of_cli:plain", "--since", "yesterday"], 2, "--since"),
        (["--model", "m"], 2, "no key for OpenAI"),
        (["--model", "m", "--base-url", "http://127.0.0.1:1", "--scale", "5"], 2, "LOW:HIGH"),
        (["--model", "m", "--base-url", "http://127.0.0.1:1", "--scale", "5:1"], 2, "scale"),
        (["--model", "m", "--base-url", "http://127.0.0.1:1", "--prices", "1"], 2, "IN:OUT"),
        (["--model", "m", "--base-url", "http://127.0.0.1:1", "--param", "x"], 2, "NAME=JSON"),
        (["--model", "m", "--base-url", "http://127.0.0.1:1", "--rubric", "none.md"], 2, "none.md"),
        (["--judge", "judges_of_cli:plain", "--name", "x" * 201], 4, "RL108"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_usage(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, fragment: str
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    done = run("judge", "run", "--once", *arguments)
    assert done.code == code
    assert fragment in " ".join(done.err.split())


def test_a_judge_that_keeps_failing(
    db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    asyncio.run(fill(db, 10))
    done = run(
        *("judge", "run", "--judge", "judges_of_cli:broken", "--version", "1", "--once"),
        *("--give-up-after", 3, "--concurrency", 1, "--json"),
    )
    assert done.code == 1
    assert "the judge failed on" in done.err
    assert "the judge kept failing: last: NameError: scroe" in done.err
    assert (done.json["errors"], done.json["stopped"]) == (3, "failing")
    assert held(db) == 0
    assert statuses(db) == {"unlabeled": 7, "claimed": 3}


def test_from_a_finding_to_the_reinstatement(db: Database, run: Run, as_admin: Run) -> None:
    asyncio.run(fill(db, 60))
    assert run("judge", "findings").out == "no findings\n"
    judge = ("--judge", "judges_of_cli:zeros_for_small", "--name", "sums", "--version", "1")
    assert run("judge", "run", *judge, "--once").code == 0

    found = run("judge", "findings", "--json")
    assert found.code == 1
    (finding,) = found.json["findings"]
    assert (finding["kind"], finding["judge"], finding["judge_version"]) == (
        "mono_zero",
        "sums",
        "1",
    )
    assert (finding["model_slug"], finding["n"]) == ("small", 30)
    shown = run("judge", "findings", "--tenant", "acme")
    assert shown.code == 1
    assert "mono_zero" in shown.out
    assert run("judge", "findings", "--tenant", "other").code == 0
    status = run("judge", "status", "--json").json
    assert [(row["judge"], row["ready"]) for row in status["queue"]] == [("sums", 0)]
    assert status["latest_day"][0]["mean_score"] == 0.5
    assert "sums" in run("judge", "status").out

    take = ("judge", "withdraw", "sums", "1", "--reason", "parsing fault", "--model", "small")
    assert run(*take, "--yes").code == 5  # not as a judge
    assert as_admin(*take, "--json").code == 2  # it cannot ask
    taken = as_admin(*take, "--yes", "--json")
    assert taken.code == 0
    (withdrawal,) = taken.json["withdrawals"]
    assert (withdrawal["tenant_id"], withdrawal["verdicts"]) == ("acme", 30)
    assert withdrawal["unlabeled"] == 30
    assert run("judge", "findings").code == 0
    assert as_admin(*take, "--yes").code == 1
    listed = run("judge", "withdrawals").out
    assert "parsing fault" in listed
    assert str(withdrawal["withdrawal_id"]) in listed

    back = ("judge", "reinstate", withdrawal["withdrawal_id"], "--tenant", "acme")
    assert "30 verdicts of acme reinstated" in as_admin(*back).out
    assert run("judge", "findings").code == 1
    assert "reinstated" in run("judge", "withdrawals").out
    other = as_admin("judge", "reinstate", withdrawal["withdrawal_id"], "--tenant", "b", "--json")
    assert (other.code, other.json["error"]["code"]) == (4, "RL211")


class Process:
    """`routeledger judge run` as a process of its own."""

    def __init__(self, db: Database, folder: Path, judge: str, *arguments: object) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "routeledger.cli", "judge", "run"),
                *("--judge", f"judges_of_cli:{judge}", "--name", "together", "--version", "1"),
                *("--json", "--dsn", db.dsn_as("judge"), *map(str, arguments)),
            ],
            cwd=folder,
            env={
                **os.environ,
                "JUDGE_FOLDER": str(folder),
                "PYTHONPATH": str(REPO / "pydriver"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begun(self) -> None:
        """Wait until its judge has begun."""
        while not (self._folder / f"begun-{self._process.pid}").exists():
            assert self._process.poll() is None, self._process.communicate()
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def end(self) -> tuple[int, dict[str, Any]]:
        out, err = self._process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return self._process.returncode, json.loads(out)


def test_processes_share_a_queue_and_stop_cleanly(db: Database, folder: Path) -> None:
    """Three workers; one is terminated, one interrupted twice, one ends when all is done."""
    ids = asyncio.run(fill(db, 40))
    options = ("--concurrency", 2)
    terminated = Process(db, folder, "waits", *options)
    impatient = Process(db, folder, "waits", *options)
    lasting = Process(db, folder, "waits", *options, "--once")
    for process in (terminated, impatient, lasting):
        process.begun()
    assert held(db) == 30

    impatient.signal(signal.SIGINT)
    while held(db) > 22:  # what it has not begun comes back at once
        time.sleep(0.02)
    impatient.signal(signal.SIGINT)
    code, report = impatient.end()
    assert (code, report["recorded"], report["given_back"]) == (130, 0, 10)
    terminated.signal(signal.SIGTERM)
    (folder / "go").touch()
    code, report = terminated.end()
    assert (code, report["recorded"], report["given_back"]) == (0, 2, 8)
    code, report = lasting.end()
    assert (code, report["recorded"], report["stopped"]) == (0, 38, "empty")

    said = verdicts(db)
    assert [row[0] for row in said] == sorted(ids)
    assert {row[4] for row in said} == {1}  # no attempt was counted for what was given back
    assert db.value("select count(*) from routeledger.judge_leases") == 0
    assert Counter(row[1] for row in said) == {1.0: 40}


def test_a_process_does_not_wait_for_a_thread(db: Database, folder: Path) -> None:
    asyncio.run(fill(db, 1))
    process = Process(db, folder, "waits_in_a_thread", "--grace", 0.1)
    process.begun()
    process.signal(signal.SIGTERM)
    code, report = process.end()
    assert (code, report["given_back"], held(db)) == (0, 1, 0)
