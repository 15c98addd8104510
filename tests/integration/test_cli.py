"""The command line: what each command prints, its exit code, and that --json is JSON."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeledger import catalog, cli, doctor, install, spool
from routeledger._version import __version__
from tests.command import Result, commands
from tests.conftest import Database

NOWHERE = "host=127.0.0.1 port=1 user=nobody"

PRICES = """\
model_slug,provider,input_usd_per_mtok,output_usd_per_mtok
small,maker,0.15,0.6
large,maker,2.5,10
unpriced,maker,,
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("plan", "--dsn", …)`: the command in this process."""
    return commands(capsys)


def decide(db: Database, tenant: str = "acme") -> None:
    db.execute(
        "select id from routeledger.insert_decision(p_tenant_id => %s,"
        " p_candidates => '[\"small\"]', p_lease => '1 second')",
        (tenant,),
    )


# -- the command as a whole ------------------------------------------------------------------------


def test_the_command_runs_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "routeledger.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"routeledger {__version__}"


def test_help_lists_the_commands_and_the_exit_codes(run: Callable[..., Result]) -> None:
    shown = run("--help")
    assert shown.code == 0
    words = ["install", "verify", "doctor", "demo", "models", "patterns", "spool"]
    for word in (*words, "Exit codes"):
        assert word in shown.out
    for command in ("plan", "install", "verify", "uninstall", "reap", "maintain", "doctor"):
        assert "--json" in run(command, "--help").out


@pytest.mark.parametrize(
    "args",
    [
        ["plan", "--nonsense"],
        ["nonsense"],
        ["sql", "--version", "0.1.0", "--upgrade-from", "0.1.0"],
        ["sql", "--version", "0.0.0"],
        ["models", "import", "a-file", "--genai-prices"],
        ["uninstall", "--json"],
        ["reap", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Callable[..., Result], args: list[str]) -> None:
    assert run(*args).code == cli.USAGE


@pytest.mark.parametrize(
    "args",
    [
        ["plan"],
        ["install"],
        ["upgrade"],
        ["verify"],
        ["doctor"],
        ["reap"],
        ["maintain"],
        ["models", "list"],
        ["uninstall", "--yes"],
        ["spool", "replay", "no-such-spool"],
    ],
    ids=" ".join,
)
def test_no_connection(run: Callable[..., Result], args: list[str]) -> None:
    result = run(*args, "--dsn", NOWHERE, "--json")
    assert result.code == cli.NO_CONNECTION
    assert result.json["error"]["name"] == "ledger_unavailable"
    assert "hint" in result.err
    assert "Traceback" not in result.err


def test_a_connection_string_that_is_none(run: Callable[..., Result]) -> None:
    result = run("plan", "--dsn", "nonsense")
    assert result.code == cli.NO_CONNECTION
    assert "connection info string" in result.err


def test_the_environment_of_libpq_is_the_default(
    empty_db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in psycopg.conninfo.conninfo_to_dict(empty_db.dsn).items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), str(value))
    assert run("plan", "--json").json["database"] == empty_db.name


@pytest.mark.parametrize(
    "args",
    [["verify"], ["upgrade"], ["reap"], ["maintain"], ["models", "list"]],
    ids=" ".join,
)
def test_not_installed(empty_db: Database, run: Callable[..., Result], args: list[str]) -> None:
    result = run(*args, "--dsn", empty_db.dsn, "--json")
    assert result.code == cli.REFUSED
    assert result.json["error"]["code"] == "RL905"
    assert "routeledger install" in result.err


# -- install and look after ------------------------------------------------------------------------


def test_from_plan_to_uninstall(empty_db: Database, run: Callable[..., Result]) -> None:
    dsn = ["--dsn", empty_db.dsn]
    planned = run("plan", *dsn, "--json")
    assert (planned.code, planned.json["action"]) == (0, "install")
    assert "would create" in run("plan", *dsn).out

    assert run("install", *dsn, "--json").json["action"] == "installed"
    again = run("install", *dsn)
    assert (again.code, "re-asserted" in again.out) == (0, True)
    assert run("plan", *dsn, "--json").json["action"] == "nothing"
    assert run("upgrade", *dsn, "--json").json["action"] == "nothing"
    assert "nothing to do" in run("upgrade", *dsn).out

    verified = run("verify", *dsn, "--json")
    assert (verified.code, verified.json["ok"]) == (0, True)
    assert "as released" in run("verify", *dsn).out
    assert run("facts", *dsn).out.splitlines() == install.snapshot(empty_db.dsn)

    gone = run("uninstall", *dsn, "--yes", "--json")
    assert (gone.code, gone.json["removed"]) == (0, True)
    assert "there is no routeledger" in run("uninstall", *dsn, "--yes").out


def test_verify_prints_what_differs(db: Database, run: Callable[..., Result]) -> None:
    db.execute("comment on function routeledger.clock() is 'mine'")
    result = run("verify", "--dsn", db.dsn)
    assert result.code == cli.FINDING
    assert "+ comment on function routeledger.clock() is 'mine'" in result.out
    assert "- comment on function routeledger.clock()" in result.out
    result = run("verify", "--dsn", db.dsn, "--json")
    assert (result.code, result.json["ok"]) == (cli.FINDING, False)
    assert len(result.json["missing"]) == len(result.json["unexpected"]) == 1


def test_a_refusal_is_printed_with_code_detail_and_hint(
    empty_db: Database, run: Callable[..., Result]
) -> None:
    empty_db.execute("create schema routeledger create table mine ()")
    for command in ("plan", "install", "upgrade", "verify", "uninstall"):
        args = ["--yes"] if command == "uninstall" else []
        result = run(command, *args, "--dsn", empty_db.dsn)
        assert result.code == cli.REFUSED
        assert "RL901 schema_not_ours" in result.err
        assert '"owner": "postgres"' in result.err
        assert "hint: Rename or drop" in result.err
    planned = run("plan", "--dsn", empty_db.dsn, "--json")
    assert planned.code == cli.REFUSED
    assert (planned.json["action"], planned.json["error"]["code"]) == ("refuse", "RL901")
    refused = run("install", "--dsn", empty_db.dsn, "--json")
    assert refused.json["error"]["detail"] == {"owner": "postgres"}


def test_another_database_error_keeps_its_sqlstate(
    db: Database, run: Callable[..., Result]
) -> None:
    result = run("reap", "--dsn", db.dsn_as("reader"), "--json")
    assert result.code == cli.DATABASE
    assert result.json["error"]["code"] == "42501"
    assert "42501 insufficient_privilege" in result.err


def test_sql_prints_the_script(
    run: Callable[..., Result], empty_db: Database, tmp_path: Path
) -> None:
    printed = run("sql")
    assert (printed.code, printed.out) == (0, install.install_sql())
    script = tmp_path / "install.sql"
    script.write_text(printed.out, encoding="utf-8")
    empty_db.server.psql(empty_db.name, "-f", str(script))
    assert install.verify(empty_db.dsn).ok
    assert run("sql", "--json").json["sql"] == install.install_sql()
    assert run("sql", "--upgrade-from", __version__).out == ""
    none = run("sql", "--upgrade-from", "0.0.1")
    assert (none.code, "RL906" in none.err) == (cli.REFUSED, True)


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_uninstall_shows_what_is_lost_and_asks(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(db)
    db.execute("create view public.mine as select tenant_id from routeledger.decisions")
    for said in ("n\n", "\n", ""):
        answer(monkeypatch, said)
        result = run("uninstall", "--dsn", db.dsn)
        assert result.code == cli.FINDING
        assert "1 rows in routing_outcomes" in result.err
        assert "view mine, which depends on it" in result.err
    assert install.verify(db.dsn).ok
    answer(monkeypatch, "y\n")
    result = run("uninstall", "--dsn", db.dsn)
    assert (result.code, "routeledger is gone" in result.out) == (0, True)
    assert db.value("select to_regnamespace('routeledger')") is None
    assert run("uninstall", "--dsn", db.dsn).code == 0


def test_roles_that_others_use_are_kept_and_said_so(
    db: Database, run: Callable[..., Result]
) -> None:
    result = run("uninstall", "--dsn", db.dsn, "--roles", "--yes")
    assert result.code == 0
    assert "kept role routeledger_writer: still used by database" in result.out


# -- running it ------------------------------------------------------------------------------------


def test_reap(db: Database, run: Callable[..., Result]) -> None:
    for _ in range(5):
        decide(db)
    decide(db, "other")
    db.execute("select pg_sleep(1.1)")
    once = run("reap", "--dsn", db.dsn, "--limit", "2", "--once", "--tenant", "acme", "--json")
    assert once.json["reaped"] == len(once.json["decisions"]) == 2
    assert "reaped 3 decisions" in run("reap", "--dsn", db.dsn, "--tenant", "acme").out
    assert run("reap", "--dsn", db.dsn, "--limit", "1", "--json").json["reaped"] == 1
    assert run("reap", "--dsn", db.dsn, "--json").json == {"reaped": 0, "decisions": []}


def test_maintain(db: Database, run: Callable[..., Result]) -> None:
    assert "nothing to do" in run("maintain", "--dsn", db.dsn).out
    made = run("maintain", "--dsn", db.dsn, "--ahead", "10 weeks", "--json").json["actions"]
    assert {action["action"] for action in made} == {"created"}
    wrong = run("maintain", "--dsn", db.dsn, "--ahead", "100 years")
    assert (wrong.code, "RL103" in wrong.err) == (cli.REFUSED, True)
    assert run("maintain", "--dsn", db.dsn, "--ahead", "soon").code == cli.DATABASE


def test_the_demo_says_what_is_missing(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "routeledger.demo", None)
    importing = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "routeledger.demo":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = run("demo", "--json")
    assert result.code == cli.MISSING
    assert "pip install 'routeledger[demo]'" in result.json["error"]["hint"]


def test_the_demo_says_what_will_not_do(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoServerError(RuntimeError):
        message = "no PostgreSQL was found"
        hint = "set PG_BIN"

    demo = types.ModuleType("routeledger.demo")
    monkeypatch.setitem(sys.modules, "routeledger.demo", demo)
    for raised, code in (
        (NoServerError("x"), cli.MISSING),
        (RuntimeError("broke"), cli.FINDING),
        (ValueError("not a trace"), cli.USAGE),
        (OSError("no such folder"), cli.USAGE),
    ):

        def fail(*args: object, raised: Exception = raised, **options: object) -> int:
            raise raised

        monkeypatch.setattr(demo, "run_demo", fail, raising=False)
        result = run("demo", "--json")
        assert (result.code, result.json["error"]["name"]) == (code, "demo")
    monkeypatch.setattr(demo, "run_demo", lambda *args, **options: 1)
    assert run("demo").code == 1


# -- catalog ---------------------------------------------------------------------------------------


def test_models(db: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(PRICES, encoding="utf-8")
    args = ["--dsn", db.dsn_as("admin"), "--json"]
    first = run("models", "import", str(file), *args)
    assert first.code == 0
    assert (first.json["accepted"], first.json["unknown_price"]) == (3, 1)
    assert run("models", "import", str(file), *args).json["replayed"] == 3
    dated = run("models", "import", str(file), "--valid-from", "2026-01-31", *args)
    assert dated.json["accepted"] == 3

    listed = run("models", "list", "--dsn", db.dsn_as("reader"), "--json").json
    assert [(m["model_slug"], m["input_usd_per_mtok"]) for m in listed["models"]] == [
        ("large", 2.5),
        ("small", 0.15),
        ("unpriced", None),
    ]
    assert listed["models"][0]["valid_from"] == "2026-01-31T00:00:00+00:00"
    assert not listed["more"]
    shown = run("models", "list", "SMA", "--dsn", db.dsn_as("reader")).out.splitlines()
    assert shown[1].split() == ["small", "maker", "0.15", "0.6", "-", "-", "2026-01-31"]
    assert len(shown) == 2
    few = run("models", "list", "--limit", "1", "--dsn", db.dsn, "--json").json
    assert (len(few["models"]), few["more"]) == (1, True)
    assert run("models", "list", "--flagged", "--dsn", db.dsn, "--json").json["models"] == []


def test_rows_that_cannot_be_taken_are_a_finding(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(PRICES + "bad,maker,-1,1\nworse,maker,cheap,1\n", encoding="utf-8")
    result = run("models", "import", str(file), "--dsn", db.dsn)
    assert result.code == cli.FINDING
    assert "3 accepted" in result.out
    assert "refused bad: RL103" in result.err
    assert "unreadable worse: not a number: 'cheap'" in result.err


def test_a_catalog_from_standard_input(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(PRICES.encode())))  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("models", "import", "-", "--dsn", db.dsn, "--json").json["accepted"] == 3


def test_a_catalog_that_is_none(db: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "prices"
    file.write_text("a,b\n", encoding="utf-8")
    for path in (file, tmp_path / "absent"):
        result = run("models", "import", str(path), "--dsn", db.dsn, "--json")
        assert result.code == cli.USAGE
        assert result.json["error"]["name"] == "catalog"


def test_without_the_default_catalog(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    result = run("models", "import", "--dsn", db.dsn, "--json")
    assert result.code == cli.MISSING
    assert "routeledger[catalog]" in result.json["error"]["message"]


# -- doctor ----------------------------------------------------------------------------------------


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in result.json["checks"]}


@pytest.fixture
def no_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    monkeypatch.setattr(spool, "default_path", lambda: path)
    return path


@pytest.mark.usefixtures("no_spool")
def test_doctor_finds_a_new_ledger_well(db: Database, run: Callable[..., Result]) -> None:
    result = run("doctor", "--dsn", db.dsn, "--json")
    assert (result.code, result.json["ok"]) == (0, True)
    found = checks(result)
    assert {name for name, check in found.items() if check["status"] != "ok"} == {
        "prices",  # none yet
        "settings",  # the servers of the tests do not sync
    }
    assert run("doctor", "--dsn", db.dsn, "--strict").code == cli.FINDING
    printed = run("doctor", "--dsn", db.dsn)
    assert "routeledger models import" in printed.out


@pytest.mark.usefixtures("no_spool")
def test_doctor_writes_nothing(db: Database) -> None:
    dsn = psycopg.conninfo.make_conninfo(db.dsn, options="-c default_transaction_read_only=on")
    assert {check.status for check in doctor.diagnose(dsn)} <= {"ok", "warn"}


@pytest.mark.usefixtures("no_spool")
def test_doctor_says_what_is_wrong(db: Database, run: Callable[..., Result]) -> None:
    decide(db)
    db.execute("alter table routeledger.routing_outcomes disable trigger all")
    with db.connect() as conn:
        conn.execute("set session_replication_role = replica")
        conn.execute(
            "update routeledger.routing_outcomes set attempt_count = 7,"
            " lease_expires_at = now() - interval '1 hour'"
        )
        for (leaf,) in conn.execute(
            "select c.oid::regclass::text from pg_inherits i join pg_class c on c.oid = i.inhrelid"
            " where i.inhparent = 'routeledger.routing_outcomes'::regclass order by c.relname"
            " offset 1"
        ).fetchall():
            conn.execute(f"drop table {leaf} cascade")
        conn.execute("drop index routeledger.models_base_model_idx")
        conn.execute("alter database " + db.name + " set synchronous_commit = off")
    found = checks(run("doctor", "--dsn", db.dsn, "--json"))
    status = {name: check["status"] for name, check in found.items()}
    assert status["orphans"] == status["reconciliation"] == status["objects"] == "fail"
    assert status["leases"] == "warn"
    assert "routeledger reap" in found["leases"]["advice"]
    assert status["partitions"] in ("ok", "warn")  # this week's is left, and may end today
    assert "synchronous_commit" in found["settings"]["finding"]
    assert run("doctor", "--dsn", db.dsn).code == cli.FINDING


@pytest.mark.usefixtures("no_spool")
def test_doctor_without_a_ledger(empty_db: Database, run: Callable[..., Result]) -> None:
    result = run("doctor", "--dsn", empty_db.dsn, "--json")
    assert result.code == cli.FINDING
    assert checks(result)["version"]["advice"] == "Run `routeledger install`."


@pytest.mark.usefixtures("no_spool")
def test_doctor_as_a_role_that_may_see_little(db: Database, run: Callable[..., Result]) -> None:
    result = run("doctor", "--dsn", db.dsn_as("writer"), "--json")
    assert result.code == 0
    assert checks(result)["orphans"]["status"] == "skip"
    assert checks(result)["objects"]["status"] == "ok"


# -- spool -----------------------------------------------------------------------------------------


def test_the_spool_is_shown_and_replayed_once(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "spool.jsonl"
    (one,) = db.execute("select routeledger.uuid_v7()::text")[0]
    told = {"model_slug": "small", "status": "succeeded", "input_tokens": 9, "output_tokens": 1}
    row = {"tenant_id": "acme", "id": one, "candidates": ["small"], "attempts": [told]}
    wrong = {"tenant_id": "acme", "candidates": "small"}
    spool.Spool(path).append(
        [
            {"routine": "record_outcome", "row": row},
            {"routine": "record_outcome", "row": wrong},
        ]
    )
    shown = run("spool", "show", str(path), "--json")
    assert (shown.code, shown.json["records"]) == (0, 2)
    assert "record_outcome" in run("spool", "show", str(path)).out
    found = {c.name: c for c in doctor.diagnose(db.dsn, spool=path)}
    assert (found["spool"].status, "spool replay" in found["spool"].advice) == ("warn", True)

    replayed = run("spool", "replay", str(path), "--dsn", db.dsn, "--json")
    assert replayed.code == cli.FINDING
    assert (replayed.json["accepted"], replayed.json["refused"]) == (1, 1)
    assert db.value("select count(*) from routeledger.decisions") == 1
    again = run("spool", "replay", str(path), "--dsn", db.dsn, "--json")
    assert (again.code, again.json["accepted"]) == (0, 0)
    shown = run("spool", "show", str(path), "--json").json
    assert (shown["records"], shown["refused"]) == (0, 1)
    assert doctor.diagnose(db.dsn, spool=path)[-1].status == "warn"


def test_a_price_that_is_always_valid_is_said_so() -> None:
    assert cli._since(catalog.ALWAYS) == "always"
    assert cli._since(None) == "-"
