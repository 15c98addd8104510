"""`routeledger constraints` and `routeledger repair`: what they print, change and exit with."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from psycopg.errors import UniqueViolation

from routeledger import cli
from tests.command import Result, commands
from tests.conftest import Database

NOWHERE = "host=127.0.0.1 port=1 user=nobody"
OLDER = "decision_rule <> 'cheapest_clearing_floor' or inference_id is not null"
NEWER = f"outcome_status is null or {OLDER}"

TABLES = f"""
create schema app;
create table app.outcomes (
  id bigint primary key,
  agent_id text,
  decision_rule text not null,
  outcome_status text,
  inference_id bigint,
  constraint chosen_has_inference check ({OLDER})
);
create table app.costs (
  id bigint generated always as identity primary key,
  day date not null,
  agent text not null,
  calls bigint not null
);
insert into app.outcomes values (1, 'a', 'cheapest_clearing_floor', 'succeeded', 7),
  (2, null, 'caller_ranked', 'succeeded', null);
insert into app.costs (day, agent, calls)
select date '2026-01-01' + k, 'a', n from generate_series(1, 10) k, generate_series(1, 3) n;
"""

FILE = f"""
[[check]]
table = "app.outcomes"
name = "chosen_has_inference"
predicate = "{NEWER}"

[[unique]]
table = "app.costs"
name = "costs_key"
columns = ["day", "agent"]
keep = "greatest calls"
"""

NOT_NULL = """
[[not_null]]
table = "app.outcomes"
name = "agent_known"
column = "agent_id"
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("constraints", "plan", …)`: the command in this process."""
    return commands(capsys)


@pytest.fixture
def app(db: Database) -> Database:
    """Tables of somebody else's, as production has them."""
    db.execute(TABLES)
    return db


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


DEFINITIONS = """
select conname, pg_get_constraintdef(oid) from pg_constraint
where conrelid in ('app.outcomes'::regclass, 'app.costs'::regclass) order by conname
"""


def ours(db: Database) -> int:
    """How many declarations there are of tables in app."""
    found = db.value(
        "select count(*) from routeledger.constraint_states() where target like 'app.%'"
    )
    assert isinstance(found, int)
    return found


# -- constraints -----------------------------------------------------------------------------------


def test_plan_says_what_would_be_done_and_does_nothing(
    app: Database, run: Callable[..., Result], file: Path
) -> None:
    before = app.execute(DEFINITIONS)
    shown = run("constraints", "plan", "--file", file, "--dsn", app.dsn)
    assert shown.code == 0, shown
    assert "app.outcomes chosen_has_inference: would be replaced" in shown.out
    assert "app.costs costs_key: would be created" in shown.out
    assert "duplicates: 20" in shown.out
    planned = run("constraints", "plan", "-f", file, "--dsn", app.dsn, "--json")
    assert planned.code == 0
    assert planned.json["ok"] is True
    kinds = {row["name"]: row["outcome"] for row in planned.json["constraints"]}
    assert kinds == {"chosen_has_inference": "replaced", "costs_key": "created"}
    assert app.execute(DEFINITIONS) == before
    assert ours(app) == 0
    assert app.value("select count(*) from app.costs") == 30


@pytest.mark.parametrize("online", [[], ["--online"]], ids=["locked", "online"])
def test_apply_then_nothing_is_left_to_do(
    app: Database, run: Callable[..., Result], file: Path, online: list[str]
) -> None:
    args = ("constraints", "apply", "--file", file, *online, "--dsn", app.dsn)
    done = run(*args)
    assert done.code == 0, done
    assert "app.outcomes chosen_has_inference: replaced, then validated" in done.out
    assert "app.costs costs_key: created" in done.out
    assert ("concurrently" in done.err.lower()) is bool(online)
    assert bool(re.search(r"\b2-\d: 20 rows of 10 keys removed in ", done.err)) is bool(online)
    assert done.err.count("a batch of duplicates") == len(online)
    assert app.value("select count(*) from app.costs") == 10
    assert app.value("select min(calls) from app.costs") == 3
    app.execute("insert into app.outcomes values (3, 'a', 'cheapest_clearing_floor', null, null)")
    again = run(*args, "--json")
    assert again.code == 0, again
    assert [row["outcome"] for row in again.json["constraints"]] == ["unchanged", "unchanged"]
    drift = run("constraints", "drift", "--dsn", app.dsn)
    assert drift.code == 0, drift
    assert "as declared" in drift.out
    listed = run("repair", "list", "--json", "--dsn", app.dsn).json["repairs"]
    assert [(row["kind"], row["removed"]) for row in listed] == [("collapse", 20)]


def test_drift_shows_the_two_side_by_side(
    app: Database, run: Callable[..., Result], file: Path
) -> None:
    drift = run("constraints", "drift", "--file", file, "app.outcomes", "--dsn", app.dsn)
    assert drift.code == cli.FINDING
    (line,) = [line for line in drift.out.splitlines() if "chosen_has_inference" in line]
    assert "different" in line
    assert line.index("outcome_status IS NULL") < line.rindex("((decision_rule <> ")
    assert line.count("cheapest_clearing_floor") == 2
    assert "1 of 1" in drift.err
    assert ours(app) == 0
    listed = run("constraints", "drift", "--file", file, "--dsn", app.dsn, "--json")
    assert listed.code == cli.FINDING
    assert [row["state"] for row in listed.json["drift"]] == ["different", "missing"]


def test_drift_that_cannot_be_known(app: Database, run: Callable[..., Result], file: Path) -> None:
    assert run("constraints", "apply", "--file", file, "--dsn", app.dsn).code == 0
    read_only = make_conninfo(app.dsn, options="-c default_transaction_read_only=on")
    drift = run("constraints", "drift", "app.outcomes", "--dsn", read_only, "--json")
    assert drift.code == cli.FINDING, drift
    assert [row["state"] for row in drift.json["drift"]] == ["unknown"]


def test_rows_in_the_way_then_validated(
    app: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    """NOT VALID first, the rows corrected, and then VALIDATE."""
    file = tmp_path / "constraints.toml"
    file.write_text(NOT_NULL, encoding="utf-8")
    args = ("--file", file, "--dsn", app.dsn)
    refused = run("constraints", "apply", *args)
    assert refused.code == cli.FINDING
    assert "app.outcomes agent_known: refused: violations" in refused.out
    assert "rows in the way: 1" in refused.out
    file.write_text(NOT_NULL + 'if_violated = "add_not_valid"\n', encoding="utf-8")
    pending = run("constraints", "apply", *args)
    assert pending.code == cli.FINDING, pending
    assert "app.outcomes agent_known: created, not valid: violations" in pending.out
    assert run("constraints", "drift", *args).code == cli.FINDING
    assert run("constraints", "validate", *args).code == cli.FINDING
    app.execute("update app.outcomes set agent_id = 'unknown' where agent_id is null")
    assert run("constraints", "validate", *args).code == 0
    assert run("constraints", "drift", *args).code == 0
    assert app.value(
        "select attnotnull from pg_attribute"
        " where attrelid = 'app.outcomes'::regclass and attname = 'agent_id'"
    )


def test_validate_adds_nothing(app: Database, run: Callable[..., Result], file: Path) -> None:
    before = app.execute(DEFINITIONS)
    run("constraints", "validate", "--file", file, "--dsn", app.dsn)
    assert app.execute(DEFINITIONS) == before


@pytest.mark.parametrize("online", [[], ["--online"]], ids=["locked", "online"])
def test_one_that_fails_does_not_keep_the_others_away(
    app: Database, run: Callable[..., Result], file: Path, online: list[str]
) -> None:
    text = FILE.replace(
        "[[check]]",
        '[[check]]\ntable = "app.gone"\nname = "c"\npredicate = "x > 0"\n\n[[check]]',
        1,
    )
    file.write_text(text.replace('keep = "greatest calls"', ""), encoding="utf-8")
    done = run("constraints", "apply", "--file", file, *online, "--dsn", app.dsn, "--json")
    assert done.code == cli.FINDING, done
    results = {row["name"]: row for row in done.json["constraints"]}
    assert results["chosen_has_inference"]["outcome"] in ("replaced", "validated")
    assert (results["costs_key"]["outcome"], results["costs_key"]["reason"]) == (
        "refused",
        "duplicates",
    )
    assert (results["c"]["outcome"], results["c"]["reason"]) == ("refused", "table_missing")


def test_online_where_the_table_is_missing(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "constraints.toml"
    file.write_text('[[unique]]\ntable = "app.gone"\nname = "k"\ncolumns = ["a"]\n')
    for mode in ([], ["--online"]):
        done = run("constraints", "apply", "--file", file, *mode, "--dsn", db.dsn, "--json")
        assert done.code == cli.FINDING
        (row,) = done.json["constraints"]
        assert (row["outcome"], row["reason"]) == ("refused", "table_missing")


def test_a_refusal_says_why_and_what_to_do(
    app: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    """Read by people: a line a fact, no JSON, and the next thing to do."""
    file = tmp_path / "constraints.toml"
    file.write_text(FILE.replace('keep = "greatest calls"', ""), encoding="utf-8")
    refused = run("constraints", "plan", "--file", file, "app.costs", "--dsn", app.dsn)
    assert refused.code == cli.FINDING
    assert "would be refused: duplicates" in refused.out
    assert "  samples:\n    key (2026-01-02, a), rows 3\n" in refused.out
    assert '  to do: declare which row of a key stays, such as keep = "latest' in refused.out
    file.write_text(FILE.replace("greatest calls", "gratest calls"), encoding="utf-8")
    args = ("--file", file, "app.costs", "--dsn", app.dsn)
    for command, verdict in (("plan", "would fail: "), ("apply", "failed: ")):
        failed = run("constraints", command, *args)
        assert failed.code == cli.FINDING
        assert f"app.costs costs_key: {verdict}the precedence cannot be read" in failed.out
        assert "  code: RL114\n  " in failed.out
        assert "  hint: Write terms such as" in failed.out
        failed = run("constraints", command, *args, "--json")
        (row,) = failed.json["constraints"]
        assert (row["error"]["code"], row["error"]["detail"]["precedence"]) == (
            "RL114",
            "gratest calls",
        )


def test_a_plan_of_several_steps_is_good(
    app: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    """An index that was left behind broken goes first: that is nothing in the way."""
    with app.connect() as conn, pytest.raises(UniqueViolation):
        conn.execute("create unique index concurrently costs_key on app.costs (day, agent)")
    file = tmp_path / "constraints.toml"
    file.write_text(FILE, encoding="utf-8")
    args = ("--file", file, "app.costs", "--dsn", app.dsn)
    planned = run("constraints", "plan", *args)
    assert planned.code == 0, planned
    assert "leftovers" in planned.out
    drift = run("constraints", "drift", *args, "--json")
    assert [row["state"] for row in drift.json["drift"]] == ["invalid_index"]
    assert run("constraints", "apply", *args).code == 0
    assert run("constraints", "drift", *args).code == 0


def test_only_some(app: Database, run: Callable[..., Result], file: Path) -> None:
    args = ("--file", file, "--dsn", app.dsn, "--json")
    some = run("constraints", "plan", "app.costs", *args)
    assert [row["name"] for row in some.json["constraints"]] == ["costs_key"]
    quoted = run("constraints", "plan", '"app"."outcomes"', "chosen_has_inference", *args)
    assert [row["name"] for row in quoted.json["constraints"]] == ["chosen_has_inference"]
    for command in ("plan", "drift", "apply", "validate"):
        none = run("constraints", command, "app.costs", "another", *args)
        assert none.code == cli.USAGE, none
        assert "no constraint another of app.costs is declared" in none.json["error"]["message"]
    none = run("constraints", "drift", "app.cots", "--dsn", app.dsn)
    assert (none.code, none.out) == (cli.USAGE, "")
    assert "no constraint of app.cots is declared" in none.err


def test_declared_in_the_database(app: Database, run: Callable[..., Result]) -> None:
    app.execute(
        "select routeledger.declare_constraint('app.outcomes', 'chosen_has_inference', 'check', %s)",
        [NEWER],
    )
    assert run("constraints", "drift", "app.outcomes", "--dsn", app.dsn).code == cli.FINDING
    done = run("constraints", "apply", "app.outcomes", "chosen_has_inference", "--dsn", app.dsn)
    assert (done.code, "replaced, then validated" in done.out) == (0, True)
    everything = run("constraints", "drift", "--dsn", app.dsn)
    assert everything.code == 0, everything.out


def test_a_file_that_is_wrong(app: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "constraints.toml"
    file.write_text('[[check]]\ntable = "app.costs"\nname = "c"\npredicat = "true"\n')
    for command in ("plan", "apply", "drift", "validate"):
        wrong = run("constraints", command, "--file", file, "--dsn", app.dsn)
        assert wrong.code == cli.USAGE
        assert (
            f"{file}:4: [[check]] number 1 (app.costs, c): no key is called predicat" in wrong.err
        )
    file.write_text(FILE.replace('"greatest calls"', '"greatest calls"\nnulls = "sometimes"'))
    wrong = run("constraints", "apply", "--file", file, "--dsn", app.dsn, "--json")
    assert wrong.code == cli.REFUSED
    error = wrong.json["error"]
    place = {"at": f"{file}:7", "table": "app.costs", "name": "costs_key"}
    assert error["code"] == "RL102"
    assert error["detail"].items() >= place.items()
    assert ours(app) == 0  # none of the file
    file.write_text(FILE + FILE.replace('"app.', '"\\"app\\".'))
    wrong = run("constraints", "apply", "--file", file, "--dsn", app.dsn)
    assert wrong.code == cli.USAGE
    assert "declared twice, here and as app.outcomes at" in wrong.err
    assert ours(app) == 0
    assert run("constraints", "plan", "--file", tmp_path / "none.toml").code == cli.USAGE


@pytest.mark.parametrize(
    "args",
    [
        ["constraints", "plan"],
        ["constraints", "apply"],
        ["constraints", "apply", "--online"],
        ["constraints", "validate"],
        ["constraints", "drift"],
        ["repair", "list"],
        ["repair", "show", "1"],
        ["repair", "undo", "1"],
        ["repair", "orphans"],
    ],
    ids=" ".join,
)
def test_without_a_ledger(empty_db: Database, run: Callable[..., Result], args: list[str]) -> None:
    assert run(*args, "--dsn", NOWHERE).code == cli.NO_CONNECTION
    absent = run(*args, "--dsn", empty_db.dsn)
    assert absent.code == cli.REFUSED, absent
    assert "RL905 not_installed" in absent.err


def test_doctor_compares_what_is_declared(
    app: Database, run: Callable[..., Result], file: Path
) -> None:
    """Drift of routeledger's own constraints fails, that of others warns, and apply mends both."""

    def found(dsn: str = app.dsn) -> tuple[str, str]:
        result = run("doctor", "--dsn", dsn, "--json")
        (check,) = [one for one in result.json["checks"] if one["name"] == "constraints"]
        assert (result.code == cli.FINDING) is (check["status"] == "fail")
        return check["status"], check["finding"]

    assert found()[0] == "ok"
    assert run("constraints", "apply", "--file", file, "--dsn", app.dsn).code == 0
    assert found()[0] == "ok"
    app.execute("alter table app.outcomes drop constraint chosen_has_inference")
    status, finding = found()
    assert (status, finding.split(", such as ")[1]) == (
        "warn",
        "chosen_has_inference of app.outcomes: missing",
    )
    name = app.value(
        "select name from routeledger.constraint_states() where origin = 'routeledger'"
        " and target = 'routeledger.inferences' order by name limit 1"
    )
    app.execute(
        f"alter table routeledger.inferences drop constraint {name},"
        f" add constraint {name} check (cost_usd is null or cost_usd > -1)"
    )
    status, finding = found()
    assert (status, finding.split(", such as ")[1]) == (
        "fail",
        f"{name} of routeledger.inferences: different",
    )
    assert run("constraints", "apply", "--dsn", app.dsn).code == 0
    # its comment went with the one that was dropped
    assert run("install", "--dsn", app.dsn).code == 0
    assert found()[0] == "ok"
    read_only = make_conninfo(app.dsn, options="-c default_transaction_read_only=on")
    assert found(read_only)[0] == "warn"  # it cannot be known there


# -- repair ----------------------------------------------------------------------------------------


@pytest.fixture
def collapsed(app: Database, run: Callable[..., Result], file: Path) -> int:
    """The repair that made app.costs unique."""
    assert run("constraints", "apply", "-f", file, "app.costs", "--dsn", app.dsn).code == 0
    found = app.value("select id from routeledger.repair_history")
    assert isinstance(found, int)
    return found


def contents(db: Database) -> list[tuple[Any, ...]]:
    return db.execute("select c::text from app.costs c order by id")


def test_list_show_and_undo(app: Database, run: Callable[..., Result], collapsed: int) -> None:
    listed = run("repair", "list", "--dsn", app.dsn)
    assert listed.code == 0
    assert "collapse" in listed.out
    assert "app.costs" in listed.out
    assert re.search(r"done, kept until \d{4}-\d\d-\d\d ", listed.out)
    assert "app.costs" not in run("repair", "list", "app.outcomes", "--dsn", app.dsn).out
    shown = run("repair", "show", collapsed, "--dsn", app.dsn, "--json")
    assert sum(row["what"] == "removed" for row in shown.json["rows"]) == 20
    short = run("repair", "show", collapsed, "--limit", 3, "--dsn", app.dsn)
    assert (short.code, len(short.out.splitlines())) == (0, 4)
    assert "only the first 3 rows" in short.err
    dry = run("repair", "undo", collapsed, "--dry-run", "--dsn", app.dsn)
    assert (dry.code, "20 rows would be put back" in dry.out) == (0, True)
    assert app.value("select count(*) from app.costs") == 10
    undone = run("repair", "undo", collapsed, "--reason", "wrong key", "--dsn", app.dsn, "--json")
    assert (undone.code, undone.json["restored"]) == (0, 20)
    assert app.value("select count(*) from app.costs") == 30
    assert run("repair", "undo", collapsed, "--dsn", app.dsn).code == cli.REFUSED
    redone = run("repair", "undo", undone.json["repair_id"], "--dsn", app.dsn)
    assert redone.code == 0, redone
    assert app.value("select count(*) from app.costs") == 10
    listed = run("repair", "list", "--dsn", app.dsn)
    assert f"undone by {undone.json['repair_id']}" in listed.out
    assert "wrong key" in listed.out
    assert run("repair", "show", 999, "--dsn", app.dsn).code == cli.REFUSED


def test_undo_after_later_writes(
    app: Database, run: Callable[..., Result], collapsed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.execute("update app.costs set calls = 100 where day = '2026-01-02'")
    written = contents(app)
    refused = run("repair", "undo", collapsed, "--dsn", app.dsn)
    assert refused.code == cli.REFUSED
    assert "RL310 changed_since" in refused.err
    line = r"table app\.costs, row no \d+, reason changed, found \(.*\), expected \("
    assert re.search(rf"  rows:\n    {line}", refused.err)
    dry = run("repair", "undo", collapsed, "--dry-run", "--dsn", app.dsn)
    assert (dry.code, dry.out) == (
        cli.FINDING,
        "would be refused: what it would put back has changed since\n",
    )
    assert re.search(rf"changed since:\n  {line}", dry.err)
    assert run("repair", "undo", collapsed, "--dry-run", "--json", "--dsn", app.dsn).code == 1
    forced = run("repair", "undo", collapsed, "--dry-run", "--force", "--dsn", app.dsn)
    assert (forced.code, "20 rows would be put back" in forced.out) == (0, True)
    assert contents(app) == written
    usage = run("repair", "undo", collapsed, "--force", "--json", "--dsn", app.dsn)
    assert usage.code == cli.USAGE
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    no = run("repair", "undo", collapsed, "--force", "--dsn", app.dsn)
    assert (no.code, "Overwrite" in no.err) == (1, True)
    assert contents(app) == written
    forced = run("repair", "undo", collapsed, "--force", "--yes", "--dsn", app.dsn)
    assert forced.code == 0, forced
    assert app.value("select count(*) from app.costs") == 30


OLD_LEDGER = """
create schema old;
create table old.inferences (id integer primary key, agent_id text, model_slug text,
  created_at timestamp with time zone, cost_usd numeric, status text);
create table old.outcomes (id integer primary key, agent_name text, model_slug text,
  created_at timestamp with time zone, cost_usd numeric, inference_id integer, decision_rule text);
insert into old.inferences values
  (1, 'a', 'small', '2026-01-01 00:00:00Z', 0.1, 'succeeded'),
  (2, 'b', 'small', '2026-01-01 00:00:00Z', 0.1, 'succeeded'),
  (3, 'b', 'small', '2026-01-01 00:00:01Z', 0.1, 'succeeded');
insert into old.outcomes (id, agent_name, model_slug, created_at, cost_usd, decision_rule) values
  (11, 'a', 'small', '2026-01-01 00:00:01Z', 0.1, 'cheapest'),
  (12, 'b', 'small', '2026-01-01 00:00:01Z', 0.1, 'cheapest');
"""


def test_orphans_of_tables_of_ones_own(db: Database, run: Callable[..., Result]) -> None:
    db.execute(OLD_LEDGER)
    tables = ("--outcomes", "old.outcomes", "--inferences", "old.inferences")
    columns = ("--column", "outcome.agent=agent_name", "--column", "outcome.cost=")
    args = ("repair", "orphans", *tables, *columns, "--dsn", db.dsn)
    dry = run(*args)
    assert dry.code == cli.FINDING, dry
    assert "1 would be linked" in dry.out
    assert "several_inferences" in dry.out
    assert db.value("select count(inference_id) from old.outcomes") == 0
    done = run(*args, "--apply", "--reason", "crash", "--json")
    assert done.code == cli.FINDING
    links = [case for case in done.json["cases"] if case["action"] == "link"]
    assert [(case["outcome"], case["inference"]) for case in links] == [("11", "1")]
    assert db.execute("select id from old.outcomes where inference_id = 1") == [(11,)]
    undone = run("repair", "undo", links[0]["repair_id"], "--dsn", db.dsn)
    assert (undone.code, "1 changed back" in undone.out) == (0, True)
    assert db.value("select count(inference_id) from old.outcomes") == 0
    missing = run("repair", "orphans", "--outcomes", "old.none", *tables[2:], "--dsn", db.dsn)
    assert missing.code == cli.DATABASE


def test_orphans_of_our_own(db: Database, run: Callable[..., Result]) -> None:
    none = run("repair", "orphans", "--tenant", "acme", "--dsn", db.dsn)
    assert (none.code, none.out) == (0, "0 would be linked, 0 would be closed, 0 left\n")


@pytest.mark.parametrize(
    "args",
    [
        ["--outcomes", "a"],
        ["--inferences", "a"],
        ["--column", "outcome.id=x"],
        ["--outcomes", "a", "--inferences", "b", "--tenant", "acme"],
        ["--outcomes", "a", "--inferences", "b", "--column", "id=x"],
        ["--outcomes", "a", "--inferences", "b", "--column", "outcome.id"],
    ],
    ids=" ".join,
)
def test_wrong_usage_of_orphans(run: Callable[..., Result], args: list[str]) -> None:
    assert run("repair", "orphans", *args, "--dsn", NOWHERE).code == cli.USAGE
