"""`routeledger patterns`: what is written from each kind of source, again, and after a kill."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeledger import backfill as filling
from routeledger import cli, connect, patterns
from routeledger.errors import LedgerError
from tests.command import Result, commands
from tests.conftest import Database

NOWHERE = "host=127.0.0.1 port=1 user=nobody"
NODES = ("Effect", "Compute", "Reducer", "Orchestrator")

TABLE = """
select pattern_id::text, quality_score, completeness, documentation, architecture_compliance,
  metadata_richness, complexity_fit, confidence, measurement_timestamp, version, metadata
from routeledger.pattern_quality_metrics order by pattern_id
"""


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's folder for state is the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    return tmp_path / "state"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("backfill", …)`: the command in this process."""
    command = commands(capsys)
    return lambda *args: command("patterns", *args)


def pattern(n: int, seed: int = 1) -> dict[str, Any]:
    """A record as a store of code patterns has it; the same for the same numbers."""
    chance = random.Random(f"{seed} {n}")
    node = chance.choice(NODES)
    lines = ["import os", f"class Node{node}:", '    """What it does."""']
    lines += [f"    def step_{i}(self, x: int) -> int: return x + {i}" for i in range(n % 7)]
    return {
        "pattern_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "pattern_name": f"Node{n}{node}",
        "code": "\n".join(lines),
        "documentation": "Says what it is for. " * (n % 9),
        "node_types": [node] if n % 3 else [],
        "use_cases": ["one", "two", "three"][: n % 4],
        "examples": ["first", "second"][: n % 3],
        "metadata": {f"field_{i}": i for i in range(n % 6)},
        "complexity": chance.choice(["low", "medium", "high"]),
        "confidence": round(chance.random(), 3),
        "created_at": "2026-11-01T00:00:00Z",
        "updated_at": f"2026-11-{1 + n % 20:02}T12:00:00Z",
    }


def jsonl(path: Path, records: list[Any]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def qdrant(path: Path, collections: dict[str, dict[Any, dict[str, Any]]]) -> Path:
    package = pytest.importorskip("qdrant_client")
    models = package.models
    client = package.QdrantClient(path=str(path))
    for name, points in collections.items():
        vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=vectors)
        client.upsert(
            name,
            [models.PointStruct(id=i, vector=[1.0, 0.5], payload=p) for i, p in points.items()],
        )
    client.close()
    return path


def counts(result: Result) -> dict[str, int]:
    names = ("received", "collapsed", "inserted", "updated", "unchanged", "refused", "mapped")
    return {name: result.json[name] for name in names if result.json[name]}


def table(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(TABLE)


# -- files -----------------------------------------------------------------------------------------


def make_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    rows = [{**r, "metadata": json.dumps(r["metadata"])} for r in records]  # fields vary
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    return path


def make_csv(path: Path, records: list[dict[str, Any]]) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        for r in records:
            cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()}
            writer.writerow(cells)
    return path


def test_run_twice(db: Database, run: Callable[..., Result], tmp_path: Path, state: Path) -> None:
    """Same rows, no duplicates, and the second run says that nothing changed."""
    file = jsonl(tmp_path / "patterns.jsonl.gz", [pattern(n) for n in range(230)])
    args = ("backfill", file, "--dsn", db.dsn_as("writer"), "--batch-size", 50)
    first = run(*args, "--json")
    assert (first.code, counts(first)) == (0, {"received": 230, "inserted": 230})
    assert first.err == ""
    assert (first.json["version"], first.json["resumed"]) == ("v2/onex/1", 0)
    written = table(db)
    assert len(written) == 230
    # nothing is left to go on from
    assert not list(state.rglob("*.json"))
    again = run(*args, "--json")
    assert (again.code, counts(again)) == (0, {"received": 230, "unchanged": 230})
    assert table(db) == written
    shown = run(*args)
    assert shown.out == (
        "230 records read: 0 inserted, 0 updated, 230 unchanged, 0 collapsed, 0 refused\n"
    )


def test_every_kind_of_file_gives_the_same_table(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    records = [{**pattern(n), "node_type": NODES[n % 4]} for n in range(120)]
    for record in records:
        del record["node_types"]
    files = [
        jsonl(tmp_path / "a.ndjson", records),
        make_csv(tmp_path / "a.csv", records),
        make_parquet(tmp_path / "a.parquet", records),
    ]
    found = []
    for file in files:
        result = run("backfill", file, "--dsn", db.dsn, "--json")
        assert (result.code, result.json["received"]) == (0, 120)
        found.append(table(db))
        db.execute("truncate routeledger.pattern_quality_metrics")
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 120


def test_the_scores_are_those_of_the_database(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    record = pattern(5)
    file = jsonl(tmp_path / "a.jsonl", [record])
    for version, at in (("v2", "2026-11-20"), ("v1", "2026-11-21")):
        # measured anew: the record's own time is left out
        args = ("--version", version, "--field", "measurement_timestamp=", "--measured-at", at)
        assert run("backfill", file, *args, "--dsn", db.dsn).code == 0
        ((score, kept_version, measured),) = db.execute(
            "select quality_score, version, measurement_timestamp::date::text"
            " from routeledger.pattern_quality_metrics"
        )
        assert (kept_version, measured) == (f"{version}/onex/1", at)
        alone = run("score", file, "--version", version, "--dsn", db.dsn, "--json")
        assert (alone.json["quality_score"], alone.json["version"]) == (score, kept_version)


def test_a_later_measurement_replaces_and_an_earlier_one_does_not(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    def fill(name: str, *changed: dict[str, Any]) -> dict[str, int]:
        records = [{**pattern(3), **change} for change in changed]
        file = jsonl(tmp_path / name, records)
        return counts(run("backfill", file, "--dsn", db.dsn, "--json"))

    later = {"updated_at": "2026-11-19", "code": "pass"}
    both = fill("a.jsonl", {}, {"updated_at": "2026-10-01"})
    assert both == {"received": 2, "inserted": 1, "collapsed": 1}
    assert fill("b.jsonl", later) == {"received": 1, "updated": 1}
    assert fill("c.jsonl", {}) == {"received": 1, "unchanged": 1}
    assert db.value(
        "select measurement_timestamp::date::text from routeledger.pattern_quality"
    ) == ("2026-11-19")


def test_records_without_a_time_are_of_the_files(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"id": "a"}, {"id": "b", "created_at": 1_790_000_000}])
    os.utime(file, (1_795_000_000, 1_795_000_000))
    assert run("backfill", file, "--dsn", db.dsn).code == 0
    at = "select extract(epoch from measurement_timestamp)::bigint from routeledger.pattern_quality"
    assert sorted(t for (t,) in db.execute(at)) == [1_790_000_000, 1_795_000_000]
    again = run("backfill", file, "--dsn", db.dsn, "--json")
    assert counts(again) == {"received": 2, "unchanged": 2, "mapped": 2}


def test_ids_that_are_no_uuids(db: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{**pattern(n), "pattern_id": f"p-{n}"} for n in range(3)])
    result = run("backfill", file, "--dsn", db.dsn)
    assert result.code == 0
    assert "3 ids are no UUIDs and were mapped to version 5 UUIDs" in result.out
    kept = db.execute(
        "select pattern_id, metadata ->> 'original_id' from routeledger.pattern_quality_metrics"
    )
    assert {(uuid.uuid5(patterns.NAMESPACE, f"p-{n}"), f"p-{n}") for n in range(3)} == set(kept)


def test_bad_records_are_refused_and_their_neighbours_written(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    jsonl(file, [pattern(n) for n in range(10)])
    lines = file.read_text().splitlines()
    lines[1] = "{"
    lines[3] = json.dumps({**pattern(3), "confidence": 1.5})
    lines[5] = json.dumps({**pattern(5), "code": "\x00"})
    lines[7] = json.dumps({**pattern(7), "pattern_id": None})
    lines[8] = json.dumps({**pattern(8), "updated_at": "2999-01-01"})
    file.write_text("\n".join(lines))
    reasons = tmp_path / "refused.jsonl"
    args = ("backfill", file, "--dsn", db.dsn, "--refused", reasons)
    for size in (500, 3, 1):
        result = run(*args, "--batch-size", size, "--json")
        assert result.code == cli.FINDING
        assert (result.json["received"], result.json["refused"]) == (10, 5)
        refusals = result.json["refusals"]
        assert [(r["place"]["line"], r["code"]) for r in refusals] == [
            (2, "RL107"),
            (4, "RL103"),
            (6, "RL107"),
            (8, "RL101"),
            (9, "RL109"),
        ]
        assert refusals[1]["id"] == pattern(3)["pattern_id"]
        assert all(refusal["hint"] and refusal["message"] for refusal in refusals)
        assert [json.loads(line) for line in reasons.read_text().splitlines()] == refusals
    good = {pattern(n)["pattern_id"] for n in (0, 2, 4, 6, 9)}
    assert {row[0] for row in table(db)} == good
    shown = run(*args)
    assert "refused line 2: RL107 a record does not have the shape of a pattern" in shown.err
    assert "not JSON" in shown.err


def test_only_the_first_refusals_are_shown(
    db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [[]] * 25)
    result = run("backfill", file, "--dsn", db.dsn)
    assert result.code == cli.FINDING
    assert len([line for line in result.err.splitlines() if line.startswith("refused ")]) == 20
    assert "5 more were refused; --refused FILE or --json lists them all" in result.err
    assert len(run("backfill", file, "--dsn", db.dsn, "--json").json["refusals"]) == 25


def test_a_dry_run_writes_nothing(
    db: Database, run: Callable[..., Result], tmp_path: Path, state: Path
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*(pattern(n) for n in range(30)), {}])
    result = run("backfill", file, "--dsn", db.dsn, "--dry-run", "--batch-size", 7, "--json")
    assert (result.code, result.json["dry_run"]) == (cli.FINDING, True)
    assert counts(result) == {"received": 31, "inserted": 30, "refused": 1}
    assert sum(result.json["ratings"].values()) == 30
    assert table(db) == []
    assert db.value("select count(*) from routeledger.upsert_activity") == 0
    assert not list(state.rglob("*.json"))
    shown = run("backfill", file, "--dsn", db.dsn, "--dry-run")
    assert "would be 30 inserted" in shown.out
    assert "nothing was written" in shown.out
    run("backfill", file, "--dsn", db.dsn)
    rated = dict(db.execute("select rating, count(*) from routeledger.pattern_quality group by 1"))
    assert result.json["ratings"] == rated


# -- Qdrant ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Local mode is not recommended:UserWarning")
def test_collections(
    db: Database, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {n: {**pattern(n), "pattern_id": None} for n in range(1, 300)}
    code[300] = {**pattern(300), "pattern_id": "named"}
    execution: dict[Any, dict[str, Any]] = {
        str(uuid.UUID(int=n, version=4)): {
            "title": f"run {n}",
            "description": "What was done and how it went. " * 4,
            "examples": [{"input": n}],
            "metadata": {"duration_ms": n},
        }
        for n in range(40)
    }
    execution[1] = {"title": "a point of the same number", "created_at": "2026-11-02"}
    path = qdrant(tmp_path / "db", {"code_patterns": code, "execution_patterns": execution})
    args = ["backfill", path, "--dsn", db.dsn_as("writer"), "--collection", "code_patterns"]
    args += ["--collection", "execution_patterns", "--json"]

    undated = run(*args, "--dry-run")
    assert counts(undated)["refused"] == 40
    refusal = undated.json["refusals"][0]
    assert refusal["place"]["collection"] == "execution_patterns"
    assert "--measured-at" in refusal["hint"]

    args += ["--measured-at", "2026-11-20"]
    first = run(*args)
    assert (first.code, counts(first)) == (0, {"received": 341, "inserted": 341, "mapped": 301})
    written = table(db)
    again = run(*args)
    assert counts(again) == {"received": 341, "unchanged": 341, "mapped": 301}
    assert table(db) == written
    kept = {row[0]: row for row in written}
    for original in ("code_patterns/1", "execution_patterns/1", "named"):
        key = str(uuid.uuid5(patterns.NAMESPACE, original))
        assert kept[key][-1]["original_id"] == original
    # no code: that dimension is 0, and the others still count
    execution_row = kept[str(uuid.UUID(int=7, version=4))]
    assert execution_row[2] == 0
    assert execution_row[3] > 0

    absent = run("backfill", path, "--dsn", db.dsn, "--collection", "nowhere", "--json")
    assert (absent.code, absent.json["error"]["name"]) == (cli.USAGE, "source")


def test_without_the_package(
    db: Database, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("qdrant_client", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    result = run("backfill", "http://127.0.0.1:1", "--collection", "a", "--dsn", db.dsn, "--json")
    assert result.code == cli.MISSING
    assert result.json["error"]["hint"] == "pip install 'routeledger[qdrant]'"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    result = run("backfill", tmp_path / "a.parquet", "--dsn", db.dsn)
    assert result.code == cli.MISSING
    assert "pip install 'routeledger[parquet]'" in result.err


def test_a_qdrant_server_that_does_not_answer(db: Database, run: Callable[..., Result]) -> None:
    pytest.importorskip("qdrant_client")
    result = run("backfill", "http://127.0.0.1:1", "--collection", "a", "--dsn", db.dsn, "--json")
    assert (result.code, result.json["error"]["name"]) == (cli.NO_CONNECTION, "source_unavailable")


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["backfill", "absent.jsonl"],
        ["backfill", "pyproject.toml"],
        ["backfill", "a.jsonl", "--field", "code"],
        ["backfill", "a.jsonl", "--field", "cod=code"],
        ["backfill", "a.jsonl", "--measured-at", "yesterday"],
        ["backfill", "a.jsonl", "--batch-size", "0"],
        ["backfill", "a.jsonl", "--batch-size", "10001"],
        ["score", "absent.json"],
        ["score", "pyproject.toml"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Callable[..., Result], args: list[str]) -> None:
    result = run(*args, "--dsn", NOWHERE)
    assert result.code == cli.USAGE
    assert "Traceback" not in result.err


def test_what_the_database_refuses_as_a_whole(
    db: Database, empty_db: Database, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [])
    for dsn, more, code, error in (
        (NOWHERE, [], cli.NO_CONNECTION, None),
        (empty_db.dsn, [], cli.REFUSED, "RL905"),
        (db.dsn, ["--version", "v9"], cli.REFUSED, "RL205"),
        (db.dsn, ["--rule-set", "none"], cli.REFUSED, "RL205"),
        (db.dsn_as("nobody"), [], cli.DATABASE, "42501"),
    ):
        result = run("backfill", file, "--dsn", dsn, *more, "--json")
        assert (result.code, result.json["error"]["code"]) == (code, error)
    wrong = run("backfill", file, "--dsn", db.dsn, "--refused", tmp_path / "no" / "such")
    assert wrong.code == cli.USAGE


def test_score(db: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "node_store_effect.py"
    file.write_text('class A:\n    """Doc."""\n    x: int = 1\n', encoding="utf-8")
    args = ("--dsn", db.dsn_as("reader"))
    shown = run("score", file, *args)
    assert shown.code == 0
    lines = dict(line.rsplit(None, 1) for line in shown.out.splitlines())
    assert lines["completeness"] == "1.0000"
    assert set(lines) >= {"quality score", "rating", "version"}
    told = run("score", file, *args, "--json").json
    direct = {"pattern_name": file.stem, "code": file.read_text(encoding="utf-8")}
    ((expected,),) = db.execute(
        "select to_jsonb(s) from routeledger.score_pattern(%s::jsonb) s", [json.dumps(direct)]
    )
    assert told == expected
    other = tmp_path / "a.json"
    other.write_text('{"src": "x = 1", "title": "Effect"}', encoding="utf-8")
    v1 = run("score", other, "--field", "code=src", "--version", "v1", *args, "--json").json
    assert (v1["architecture_compliance"], v1["version"]) == (0.5, "v1/onex/1")


def test_score_of_standard_input(db: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "routeledger.cli", "patterns", "score", "-", "--json"],
        input='{"code": "x = 1"}',
        env={**os.environ, **libpq(db)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["completeness"] > 0.9


# -- killed, and run again -------------------------------------------------------------------------


def libpq(db: Database) -> dict[str, str]:
    given = psycopg.conninfo.conninfo_to_dict(db.dsn)
    return {f"PG{k.upper()}".replace("DBNAME", "DATABASE"): str(v) for k, v in given.items()}


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "routeledger.cli", "patterns", "backfill", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(db: Database, state: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        written = db.value("select count(*) from routeledger.pattern_quality_metrics")
        if written >= rows and list(state.rglob("*.json")):
            return
        time.sleep(0.01)
    pytest.fail("the backfill does not get on")


@pytest.fixture
def many(tmp_path: Path) -> list[dict[str, Any]]:
    """A thousand records, 20 of them bad and 100 of them older measurements of others."""
    records: list[dict[str, Any]] = [pattern(n) for n in range(900)]
    records += [{**pattern(n), "updated_at": "2026-10-01"} for n in range(0, 900, 9)]
    random.Random(1).shuffle(records)
    for n in range(0, 1000, 50):
        records[n] = {**records[n], "confidence": 2}
    return records


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "qdrant"])
@pytest.mark.filterwarnings("ignore:Local mode is not recommended:UserWarning")
def test_killed_and_run_again(
    kind: str,
    make_database: Callable[..., Database],
    run: Callable[..., Result],
    many: list[dict[str, Any]],
    tmp_path: Path,
    state: Path,
) -> None:
    """Killed twice, then run to its end: the same table and totals as in one run."""
    if kind == "qdrant":
        points: dict[Any, dict[str, Any]] = dict(enumerate(many))
        path = qdrant(tmp_path / "db", {"code_patterns": points})
        args: list[Any] = [path, "--collection", "code_patterns"]
    elif kind == "parquet":
        args = [make_parquet(tmp_path / "a.parquet", many)]
    else:
        args = [jsonl(tmp_path / "a.jsonl.gz", many)]
    clean, db = make_database(), make_database()
    refused = tmp_path / "refused.jsonl"
    args += ["--json", "--refused", refused]

    whole = run("backfill", *args, "--dsn", clean.dsn)
    assert (whole.code, counts(whole)["received"]) == (cli.FINDING, 1000)
    listed = refused.read_bytes()
    refused.unlink()

    for rows in (100, 350):
        process = start(*args, "--batch-size", 4, "--dsn", db.dsn)
        wait_for_rows(db, state, rows, process)
        process.kill()
        process.communicate()
    assert len(table(db)) < len(table(clean))
    last = run("backfill", *args, "--batch-size", 70, "--dsn", db.dsn)
    assert last.code == cli.FINDING
    assert last.json["resumed"] >= 350
    assert last.json["restarted"] is None
    assert table(db) == table(clean)
    for name in ("received", "refused", "mapped"):
        assert last.json[name] == whole.json[name]
    assert refused.read_bytes() == listed
    assert not list(state.rglob("*.json"))
    assert run("backfill", *args, "--dsn", db.dsn).json["inserted"] == 0


def test_interrupted(
    db: Database,
    run: Callable[..., Result],
    many: list[dict[str, Any]],
    tmp_path: Path,
    state: Path,
) -> None:
    args = [jsonl(tmp_path / "a.jsonl", many), "--batch-size", 2, "--dsn", db.dsn]
    process = start(*args)
    wait_for_rows(db, state, 100, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (cli.INTERRUPTED, "")
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert len(list(state.rglob("*.json"))) == 1
    rest = run("backfill", *args[:1], "--dsn", db.dsn)
    assert "of the records were done by an earlier run" in rest.out
    assert rest.out.startswith("1,000 records read")


# -- what was left is not believed blindly ---------------------------------------------------------


class StopError(Exception):
    """Ends a backfill in the middle."""


def begin(db: Database, file: Path, **options: Any) -> None:
    """Two batches of ten."""

    def stop(report: filling.Report, done: int) -> None:
        if report.received == 20:
            raise StopError

    with connect(db.dsn, coalesce=False) as ledger, pytest.raises(StopError):
        filling.backfill(
            ledger, patterns.open_source(str(file)), batch_rows=10, progress=stop, **options
        )
    assert len(table(db)) == 20


def test_begun_and_gone_on(db: Database, run: Callable[..., Result], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [pattern(n) for n in range(50)])
    begin(db, file)
    rest = run("backfill", file, "--dsn", db.dsn, "--json")
    assert (rest.json["resumed"], counts(rest)) == (20, {"received": 50, "inserted": 50})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("file", "have changed since"),
        ("options", "have changed since"),
        ("rules", "have changed since"),
        ("table", "the database does not hold what it says"),
        ("checkpoint", "cannot be read"),
        ("restart", None),
        ("database", None),
    ],
)
def test_begun_and_something_changed(
    change: str,
    reason: str | None,
    db: Database,
    make_database: Callable[..., Database],
    run: Callable[..., Result],
    tmp_path: Path,
    state: Path,
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [pattern(n) for n in range(50)])
    begin(db, file)
    args: list[Any] = ["backfill", file, "--json"]
    if change == "file":
        jsonl(file, [pattern(n, seed=2) for n in range(50)])
    elif change == "options":
        args += ["--field", "code=", "--field", "measurement_timestamp="]
    elif change == "rules":
        db.execute(
            "select * from routeledger.set_pattern_rules('onex', '[{\"node_type\": \"Effect\"}]')"
        )
    elif change == "table":
        db.execute("truncate routeledger.pattern_quality_metrics")
    elif change == "checkpoint":
        (left,) = state.rglob("*.json")
        left.write_text("{")
    elif change == "restart":
        args += ["--restart"]
    elif change == "database":
        db = make_database()
    result = run(*args, "--dsn", db.dsn)
    assert result.code == 0
    assert (result.json["resumed"], result.json["received"]) == (0, 50)
    assert (
        reason is None if result.json["restarted"] is None else reason in result.json["restarted"]
    )
    assert len(table(db)) == (70 if change == "file" else 50)


def test_without_a_folder_for_state(
    db: Database, run: Callable[..., Result], tmp_path: Path, state: Path
) -> None:
    state.write_text("not a folder")
    file = jsonl(tmp_path / "a.jsonl", [pattern(n) for n in range(3)])
    assert counts(run("backfill", file, "--dsn", db.dsn, "--json")) == {
        "received": 3,
        "inserted": 3,
    }


def test_a_lost_connection_is_found_again(
    db: Database, tmp_path: Path, superuser: Callable[..., psycopg.Connection[Any]]
) -> None:
    """Every batch meets a connection that was cut, or a lock, and all are written once."""
    file = jsonl(tmp_path / "a.jsonl", [pattern(n) for n in range(40)])
    other = superuser()

    def cut(report: filling.Report, done: int) -> None:
        other.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )

    with connect(db.dsn, coalesce=False, max_size=1) as ledger:
        source = patterns.open_source(str(file))
        report = filling.backfill(ledger, source, batch_rows=10, progress=cut)
    assert (report.received, report.inserted) == (40, 40)
    assert len(table(db)) == 40


def test_an_index_that_is_rebuilt(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refuses is tried again; there is no telling when, so the refusals are made up."""
    file = jsonl(tmp_path / "a.jsonl", [pattern(n) for n in range(3)])
    refusals = [LedgerError("duplicate key", sqlstate="23505")] * 3
    with connect(db.dsn, coalesce=False) as ledger:
        inner = ledger._run

        def run_or_refuse(work: Any) -> Any:
            if work.__name__ == "work" and refusals:
                raise refusals.pop()
            return inner(work)

        monkeypatch.setattr(ledger, "_run", run_or_refuse)
        assert filling.backfill(ledger, patterns.open_source(str(file))).inserted == 3
        assert not refusals
        refusals.append(LedgerError("out of order", sqlstate="42501"))
        with pytest.raises(LedgerError, match="out of order"):
            filling.backfill(ledger, patterns.open_source(str(file)))


def test_wide_records_make_small_batches(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "MAX_BATCH_BYTES", 100_000)
    wide = [{"id": n, "code": "x = 1\n" * 1000, "created_at": "2026-11-20"} for n in range(40)]
    file = jsonl(tmp_path / "a.jsonl", wide)
    batches: list[int] = []
    with connect(db.dsn, coalesce=False) as ledger:
        filling.backfill(
            ledger,
            patterns.open_source(str(file)),
            progress=lambda report, done: batches.append(report.received),
        )
    assert len(batches) == 3  # a record is a little over 7,000 bytes
    assert len(table(db)) == 40


@pytest.mark.parametrize("rows", [0, filling.MAX_BATCH_ROWS + 1])
def test_the_size_of_a_batch(db: Database, tmp_path: Path, rows: int) -> None:
    source = patterns.open_source(str(jsonl(tmp_path / "a.jsonl", [])))
    with connect(db.dsn) as ledger, pytest.raises(ValueError, match="a batch holds 1 to 10,000"):
        filling.backfill(ledger, source, batch_rows=rows)


def test_the_time_that_the_caller_gave(db: Database, tmp_path: Path) -> None:
    at = datetime(2026, 1, 2, tzinfo=timezone.utc)
    source = patterns.open_source(str(jsonl(tmp_path / "a.jsonl", [{"id": 1}])))
    with connect(db.dsn) as ledger:
        filling.backfill(ledger, source, fields=patterns.Fields(measured_at=at))
    assert db.value("select measurement_timestamp from routeledger.pattern_quality") == at
