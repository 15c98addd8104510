"""`routeledger corpus`: what is exported, the same each time, and no half of it ever left."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from routeledger import corpus, errors
from routeledger.corpus import export_corpus, manifest_of, verify
from tests.books import uuid7
from tests.command import Result, commands
from tests.conftest import Database

FORMATS = ("jsonl", "parquet")
AWKWARD = 'a "b"\\n\\\t\n\r\x01\x7f/</é\u2028\U0001f600\\N,\\.'
# so many labelled outcomes of a tenant, each with a verdict and, where asked for, a payload of so
# many characters
SEED = """
with drawn as materialized (
  select k, at, head || '8' || tail as id, head || '9' || tail as attempt,
    'model-' || k %% 8 as model, (k %% 11) / 10.0 as score
  from (
    select k, now() + k * interval '1 millisecond' as at,
      lpad(to_hex((extract(epoch from now()) * 1000)::bigint + k), 12, '0') || '7000' as head,
      substr(md5(%(tenant)s || k), 1, 15) as tail
    from generate_series(1, %(rows)s::integer) k) x
), attempts as (
  insert into routeledger.inferences (
    tenant_id, outcome_id, id, attempt_no, model_slug, status, input_tokens, output_tokens,
    cost_usd, cost_source, latency_ms, created_at, started_at, completed_at)
  select %(tenant)s, id::uuid, attempt::uuid, 1, model, 'succeeded', k, k %% 100,
    k * 0.0000012, 'catalog', k / 7.0, at, at, at from drawn
), outcomes as (
  insert into routeledger.routing_outcomes (
    tenant_id, id, task_type, decision_rule, chosen_model_slug, candidates, attempt_count,
    inference_id, outcome_status, judge_status, reward, reward_source, event_at, created_at,
    completed_at, propensity)
  select %(tenant)s, id::uuid, 'chat', 'cheapest', model,
    jsonb_build_array(jsonb_build_object('model_slug', model)), 1, attempt::uuid, 'succeeded',
    'labeled', score, 'judge', at, at, at, 1 / (1.0 + k %% 3) from drawn
), verdicts as (
  insert into routeledger.judge_verdicts (
    tenant_id, outcome_id, judge, judge_version, inference_id, model_slug, task_type, score,
    usable, reward_source, recorded_at)
  select %(tenant)s, id::uuid, 'rubric', 'v1', attempt::uuid, model, 'chat', score, true,
    'judge', at from drawn
)
insert into routeledger.inference_payloads (
  tenant_id, outcome_id, inference_id, request, created_at)
select %(tenant)s, id::uuid, attempt::uuid,
  to_jsonb(repeat(md5(k::text), %(payload)s::integer / 32)), at
from drawn where %(payload)s::integer > 0
"""

Run = Callable[..., Result]


def seed(db: Database, rows: int, *, tenant: str = "acme", payload: int = 0) -> None:
    db.execute(SEED, {"tenant": tenant, "rows": rows, "payload": payload})


def serve(conn: psycopg.Connection[Any], *, tenant: str = "acme", **changes: Any) -> str:
    """A decision that succeeded; its id."""
    given: dict[str, Any] = {
        "tenant_id": tenant,
        "id": uuid7(),
        "attempts": [
            {"model_slug": "m", "status": "succeeded", "input_tokens": 10, "output_tokens": 1}
        ],
        **changes,
    }
    answer = conn.execute(
        "select status, code, detail from routeledger.record_outcomes(%s::jsonb)",
        [json.dumps([given])],
    ).fetchone()
    assert answer is not None
    assert answer[0] == "accepted", answer
    return str(given["id"])


def label(
    conn: psycopg.Connection[Any],
    outcome: str,
    score: float | None,
    judge: str = "rubric",
    **more: Any,
) -> None:
    row = {"tenant_id": "acme", "id": outcome, "judge": judge, "judge_version": "v1", **more}
    answer = conn.execute(
        "select status, code, detail from routeledger.record_verdicts(%s::jsonb)",
        [json.dumps([{**row, "score": score}])],
    ).fetchone()
    assert answer is not None
    assert answer[0] == "accepted", answer


def awkward(db: Database) -> None:
    """Rows of the kinds that formats disagree on."""
    with db.connect() as conn:
        odd = serve(
            conn,
            agent_id=AWKWARD,
            task_type=AWKWARD,
            metadata={AWKWARD: [AWKWARD, 1e300, 0.1, -5, None, {"z": 1, "aa": 2}]},
            attempts=[
                {"model_slug": AWKWARD, "status": "failed", "error_type": "500"},
                {
                    "model_slug": AWKWARD, "provider": "é", "status": "succeeded",
                    "input_tokens": 10**12, "output_tokens": 0, "cost_usd": "0.00000250",
                    "latency_ms": 1e-7, "ttft_ms": 10**10,
                },
            ],
        )  # fmt: skip
        label(conn, odd, 1 / 3, label=AWKWARD, rationale=AWKWARD)
        label(conn, odd, 1, "ann", reward_source="human")
        inference = conn.execute(
            "select inference_id from routeledger.routing_outcomes where id = %s", [odd]
        ).fetchone()
        assert inference is not None
        conn.execute(
            "select from routeledger.record_payload('acme', %s, %s, %s, %s)",
            [odd, inference[0], json.dumps({"content": AWKWARD}), json.dumps([AWKWARD, 1.50, 1])],
        )
        bare = serve(conn, traffic_class="production")
        label(conn, bare, 0)
        costly = serve(
            conn,
            attempts=[
                {
                    "model_slug": "m", "status": "succeeded", "input_tokens": 0,
                    "output_tokens": 0, "cost_usd": 1_000_000_000, "latency_ms": 123456789.25,
                }
            ],
        )  # fmt: skip
        label(conn, costly, 0.1)


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("export", …)`: the command in this process."""
    command = commands(capsys)
    return lambda *args: command("corpus", *args)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pages, batches and row groups of few rows."""
    monkeypatch.setattr(corpus, "PAGE", 7)
    monkeypatch.setattr(corpus, "PAGE_WITH_PAYLOADS", 4)
    monkeypatch.setattr(corpus, "BATCH_ROWS", 5)
    monkeypatch.setattr(corpus, "GROUP_ROWS", 12)


# -- the same content ------------------------------------------------------------------------------


def read_line(name: str, value: Any) -> Any:
    """A value of a JSON line, as the ledger has it."""
    kind = corpus.COLUMNS[name]
    if value is not None and kind == "time":
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return float(value) if value is not None and kind == "double" else value


def test_both_formats_hold_what_the_ledger_holds(db: Database, tmp_path: Path) -> None:
    awkward(db)
    seed(db, 30, payload=64)
    made = {f: export_corpus(db.dsn, "acme", tmp_path / f"c.{f}", payloads=True) for f in FORMATS}
    jsonl, parquet = made["jsonl"], made["parquet"]
    assert jsonl.manifest["content_sha256"] == parquet.manifest["content_sha256"]
    text = jsonl.path.read_bytes()
    assert hashlib.sha256(text).hexdigest() == jsonl.manifest["content_sha256"]
    assert all(verify(one.path).agrees for one in made.values())

    # both, and the ledger, row by row
    lines = [json.loads(line, parse_float=Decimal) for line in text.decode().split("\n")[:-1]]
    with db.connect() as conn, conn.cursor(row_factory=dict_row) as cursor:
        ledger = cursor.execute(
            "select e.* from routeledger.export_corpus('acme', p_payloads => true) e"
        ).fetchall()
    assert len(lines) == len(ledger) == jsonl.manifest["rows"] == 33
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    table = pq.read_table(parquet.path)
    assert str(table.schema.field("cost_usd").type) == "decimal128(38, 18)"
    for line, row, stored in zip(lines, ledger, table.to_pylist(), strict=True):
        assert list(line) == list(row) == list(stored) == list(corpus.COLUMNS)
        for name, kind in corpus.COLUMNS.items():
            value = str(row[name]) if name in ("id", "inference_id") else row[name]
            if kind == "json":
                assert (stored[name] is None) == (value is None) == (line[name] is None)
                assert json.loads(stored[name] or "null") == value
                assert json.loads(json.dumps(line[name], default=float)) == value
            else:
                assert stored[name] == value == read_line(name, line[name])
    odd = next(line for line in lines if line["agent_id"] == AWKWARD)
    assert odd["cost_usd"] == Decimal("0.0000025")
    assert [v["judge"] for v in odd["verdicts"]] == ["ann", "rubric"]
    assert odd["verdicts"][1]["rationale"] == odd["response"][0] == AWKWARD
    assert (odd["attempts"], odd["attempt_no"], odd["reward_source"]) == (2, 2, "human")


def test_the_same_labels_give_the_same_bytes(
    db: Database, tmp_path: Path, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever pages, and whatever the session's settings are."""
    awkward(db)
    seed(db, 40)
    odd = "-c extra_float_digits=-15 -c datestyle=German -c timezone=Asia/Tokyo -c bytea_output=escape"
    for kind in FORMATS:
        once = export_corpus(db.dsn, "acme", tmp_path / f"once.{kind}")
        again = export_corpus(
            make_conninfo(db.dsn, options=odd), "acme", tmp_path / f"again.{kind}"
        )
        assert once.path.read_bytes() == again.path.read_bytes()
        same = {**once.manifest, "file": again.path.name, "taken_at": again.manifest["taken_at"]}
        assert again.manifest == same
        assert verify(once.path).agrees
    small = once.manifest["content_sha256"]
    monkeypatch.undo()
    whole = export_corpus(db.dsn, "acme", tmp_path / "whole.parquet")
    assert whole.manifest["content_sha256"] == small
    assert pq.ParquetFile(tmp_path / "once.parquet").num_row_groups > 2
    assert pq.ParquetFile(whole.path).num_row_groups == 1


def test_numbers_read_from_parquet_are_written_as_postgresql_prints_them(db: Database) -> None:
    chance = random.Random(430)
    doubles = [0.0, 0.1, 1 / 3, 5e-324, 1e-5, 1e-4, 9.999e-5, 123456789012.0]
    doubles += [10.0**power for power in range(-20, 13)]
    doubles += [chance.random() * 10.0 ** chance.randint(-20, 12) for _ in range(2_000)]
    decimals = [Decimal(chance.randrange(10**30)).scaleb(-18) for _ in range(500)]
    decimals += [Decimal(text) for text in ("0", "1", "100", "0.000000000000000001", "1000000000")]
    for kind, values, text in (
        ("double", doubles, "unnest(%s::float8[])::text"),
        ("decimal", decimals, "trim_scale(unnest(%s::numeric[]))::text"),
    ):
        printed = [row[0] for row in db.execute(f"select {text}", [values])]
        assert [corpus._TEXTS[kind](value) for value in values] == printed


def test_one_snapshot_while_others_write(db: Database, tmp_path: Path, small_pages: None) -> None:
    seed(db, 60)
    before = export_corpus(db.dsn, "acme", tmp_path / "before.jsonl")
    told: list[tuple[int, int]] = []

    def meddle(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            seed(db, 50, tenant="acme ")  # the same ids' times, another tenant
            with db.connect() as conn:
                for _ in range(5):
                    label(conn, serve(conn), 1)
                conn.execute(
                    "select from routeledger.withdraw_verdicts('acme', 'rubric', 'v1', 'wrong', 'model-3')"
                )

    during = export_corpus(db.dsn, "acme", tmp_path / "during.jsonl", progress=meddle)
    assert during.path.read_bytes() == before.path.read_bytes()
    assert told[0] == (0, 60)
    assert told[-1] == (60, 60)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    after = export_corpus(db.dsn, "acme", tmp_path / "after.jsonl")
    assert after.manifest["rows"] == 60 - 8 + 5  # model-3 answered every eighth


# -- what is refused, and what is never left behind -------------------------------------------------


def test_an_empty_corpus_is_refused(db: Database, tmp_path: Path, run: Run) -> None:
    with db.connect() as conn:
        unlabelled = serve(conn)
        label(conn, serve(conn), None, label="no answer")
        serve(conn, attempts=[{"model_slug": "m", "status": "failed", "error_type": "500"}])
    for kind in FORMATS:
        result = run(
            "export", "--tenant", "acme", "-o", tmp_path / f"c.{kind}", "--dsn", db.dsn, "--json"
        )
        assert result.code == 4
        error = result.json["error"]
        assert error["code"] == "RL212"
        assert error["detail"]["left_out"] == {"unlabeled": 1, "cannot_evaluate": 1, "failed": 1}
        assert "label outcomes first" in result.err
    assert left(tmp_path) == []

    # one that was written before stays as it was
    with db.connect() as conn:
        label(conn, unlabelled, 1)
        whole = export_corpus(db.dsn, "acme", tmp_path / "c.jsonl")
        assert whole.manifest["rows"] == 1
        conn.execute("select from routeledger.withdraw_verdicts('acme', 'rubric', 'v1', 'wrong')")
    with pytest.raises(errors.EmptyCorpus):
        export_corpus(db.dsn, "acme", whole.path)
    assert left(tmp_path) == ["c.jsonl", "c.jsonl.manifest.json"]
    assert verify(whole.path).agrees


def test_what_was_made_up_is_not_mixed_in_without_saying_so(
    db: Database, tmp_path: Path, run: Run
) -> None:
    with db.connect() as conn:
        for kind in ("production", "shadow", "synthetic", "replay"):
            label(conn, serve(conn, traffic_class=kind), 1)

    def classes(*kinds: str, mix: bool = False, format: str = "jsonl") -> dict[str, int]:
        done = export_corpus(
            db.dsn, "acme", tmp_path / f"c.{format}", traffic_class=kinds, mix_synthetic=mix
        )
        assert verify(done.path).agrees
        found: dict[str, int] = done.manifest["traffic_classes"]
        return found

    assert export_corpus(db.dsn, "acme", tmp_path / "p.parquet").manifest["traffic_classes"] == {
        "production": 1
    }
    assert classes("production", "shadow") == {"production": 1, "shadow": 1}
    assert classes("synthetic", "replay") == {"synthetic": 1, "replay": 1}
    before = left(tmp_path)
    for kinds in (("production", "synthetic"), ("replay", "shadow"), ("production", "replay")):
        with pytest.raises(errors.NotInVocabulary):
            classes(*kinds)
        options = [part for kind in kinds for part in ("--traffic-class", kind)]
        refused = run(
            "export", "--tenant", "acme", "-o", tmp_path / "x.jsonl", *options, "--dsn", db.dsn
        )
        assert refused.code == 2
        assert "--mix-synthetic" in refused.err
    assert left(tmp_path) == before
    mixed = classes("production", "synthetic", mix=True, format="parquet")
    assert mixed == {"production": 1, "synthetic": 1}


def test_withdrawn_verdicts_label_nothing(db: Database, tmp_path: Path) -> None:
    with db.connect() as conn:
        both, one = serve(conn), serve(conn)
        label(conn, both, 1)
        label(conn, both, 0, "poisoned")
        label(conn, one, 0, "poisoned")
        whole = export_corpus(db.dsn, "acme", tmp_path / "c.jsonl")
        assert [whole.manifest[key] for key in ("rows", "verdicts", "mean_reward")] == [2, 3, 0.25]
        withdrawal = conn.execute(
            "select withdrawal_id from routeledger.withdraw_verdicts('acme', 'poisoned', 'v1', 'a fault')"
        ).fetchone()
        assert withdrawal is not None
        fewer = export_corpus(db.dsn, "acme", tmp_path / "c.jsonl")
        assert [fewer.manifest[key] for key in ("rows", "verdicts", "mean_reward")] == [1, 1, 1]
        assert [judge["judge"] for judge in fewer.manifest["judges"]] == ["rubric"]
        assert fewer.manifest["left_out"] == {"unlabeled": 1}
        assert b"poisoned" not in fewer.path.read_bytes()
        conn.execute("select from routeledger.reinstate_verdicts('acme', %s)", withdrawal)
    again = export_corpus(db.dsn, "acme", tmp_path / "c.jsonl")
    assert again.manifest["content_sha256"] == whole.manifest["content_sha256"]


def test_whose_outcomes_whom(db: Database, tmp_path: Path) -> None:
    """Readers, judges and admins export; a role that is bound to tenants exports those of its own."""
    seed(db, 3)
    seed(db, 4, tenant="other")
    for role in ("reader", "judge", "admin"):
        done = export_corpus(db.dsn_as(role), "acme", tmp_path / f"{role}.parquet")
        assert done.manifest["rows"] == 3
    for role in ("writer", "nobody"):
        with pytest.raises(errors.LedgerError) as refused:
            export_corpus(db.dsn_as(role), "acme", tmp_path / f"{role}.parquet")
        assert refused.value.sqlstate == "42501"
    with db.connect() as conn:
        conn.execute("select routeledger.grant_tenant('test_reader', 'other')")
        try:
            assert (
                export_corpus(db.dsn_as("reader"), "other", tmp_path / "b.jsonl").manifest["rows"]
                == 4
            )
            with pytest.raises(errors.TenantNotGranted):
                export_corpus(db.dsn_as("reader"), "acme", tmp_path / "writer.jsonl")
        finally:
            conn.execute("select routeledger.unbind_role('test_reader')")
    assert not list(tmp_path.glob("writer*")) + list(tmp_path.glob("nobody*"))


# writes half of a corpus, says so, and waits to be killed
HALF = """
import sys, time
from routeledger import corpus
corpus.BATCH_ROWS, corpus.GROUP_ROWS = 20, 60

def stop(done, total):
    if done >= total / 2:
        print(done, flush=True)
        time.sleep(600)

corpus.export_corpus(sys.argv[1], "acme", sys.argv[2], progress=stop)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_killed_in_the_middle(db: Database, tmp_path: Path, format: str) -> None:
    seed(db, 400)
    out = tmp_path / f"c.{format}"
    old = export_corpus(db.dsn, "acme", out, task_type="chat").path.read_bytes()
    seed(db, 200)
    with subprocess.Popen(
        [sys.executable, "-c", HALF, db.dsn, out], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "300\n"
        with pytest.raises(ValueError, match="another export is writing"):
            export_corpus(db.dsn, "acme", out)
        killed.send_signal(signal.SIGKILL)
    scratch = f".c.{format}.part"
    assert left(tmp_path) == sorted([scratch, out.name, manifest_of(out).name])
    assert out.read_bytes() == old
    assert verify(out).agrees
    # the next one takes over what was left
    assert export_corpus(db.dsn, "acme", out).manifest["rows"] == 600
    assert verify(out).agrees
    assert left(tmp_path) == [out.name, manifest_of(out).name]


class StoppedError(Exception):
    """What a progress function may raise."""


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_left_of_what_went_wrong(
    db: Database, tmp_path: Path, small_pages: None, format: str
) -> None:
    seed(db, 60)

    def stop(done: int, total: int) -> None:
        if done > 20:
            raise StoppedError

    def cut(done: int, total: int) -> None:
        if done > 20:
            db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and datname = %s",
                [db.name],
            )

    out = tmp_path / f"c.{format}"
    with pytest.raises(StoppedError):
        export_corpus(db.dsn, "acme", out, progress=stop)
    with pytest.raises(errors.LedgerUnavailable):
        export_corpus(db.dsn, "acme", out, progress=cut)
    assert left(tmp_path) == []
    # a connection of the caller's is given back as it was
    with db.connect(autocommit=False) as conn:
        with pytest.raises(StoppedError):
            export_corpus(conn, "acme", out, progress=stop)
        assert export_corpus(conn, "acme", out).manifest["rows"] == 60
        assert not conn.autocommit
        assert conn.execute("show transaction_read_only").fetchone() == ("off",)


# -- how much it takes -----------------------------------------------------------------------------

# the most memory that this process has held, in KiB (what getrusage says begins with its parent's),
# and how many rows it wrote
PEAK = """
import sys
from pathlib import Path
from routeledger.corpus import export_corpus
done = export_corpus(sys.argv[1], sys.argv[2], sys.argv[3], payloads=True)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0], done.manifest["rows"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_is_bounded(db: Database, tmp_path: Path) -> None:
    """80 MB more of payloads take no more memory."""
    peaks: dict[str, dict[str, int]] = {kind: {} for kind in FORMATS}
    for tenant, rows in (("small", 4_000), ("large", 14_000)):
        seed(db, rows, tenant=tenant, payload=8_000)
        for kind in FORMATS:
            told = subprocess.run(
                [sys.executable, "-c", PEAK, db.dsn, tenant, tmp_path / f"{tenant}.{kind}"],
                capture_output=True, text=True, check=True,
            ).stdout.split()  # fmt: skip
            assert int(told[1]) == rows
            peaks[kind][tenant] = int(told[0]) * 1024
    for peak in peaks.values():
        assert peak["large"] - peak["small"] < 30 * 2**20


# -- the command -----------------------------------------------------------------------------------


def test_the_command(
    db: Database, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    awkward(db)
    with db.connect() as conn:
        serve(conn)
    out = tmp_path / "c.parquet"
    shown = run("export", "--tenant", "acme", "-o", out, "--dsn", db.dsn)
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"3 rows to {out} (")
    assert lines[0].endswith(" bytes): 2 models, 4 verdicts of 2 judges, mean reward 0.256")
    assert lines[1] == "left out: 1 unlabeled"
    manifest = json.loads(manifest_of(out).read_text())
    assert lines[2] == f"content sha256 {manifest['content_sha256']}"
    assert manifest["bytes"] == out.stat().st_size

    year = datetime.now(timezone.utc).year
    told = run(
        "export", "--tenant", "acme", "--format", "jsonl", "-o", tmp_path / "any.txt", "--json",
        "--from", f"{year - 1}-01-01", "--to", f"{year + 1}-01-01", "--task-type", AWKWARD,
        "--reward-source", "human", "--payloads", "--dsn", db.dsn,
    )  # fmt: skip
    assert (told.code, told.json["rows"], told.json["format"]) == (0, 1, "jsonl")
    assert told.json["left_out"] == {"task_type": 3}
    assert told.json["filters"] == {
        "tenant_id": "acme",
        "from": f"{year - 1}-01-01",
        "to": f"{year + 1}-01-01",
        "traffic_class": ["production"],
        "mix_synthetic": False,
        "reward_source": ["human"],
        "task_type": AWKWARD,
        "payloads": True,
    }
    monkeypatch.chdir(tmp_path)
    for options, name in (((), "corpus.parquet"), (("--format", "jsonl"), "corpus.jsonl")):
        told_name = run("export", "--tenant", "acme", *options, "--dsn", db.dsn, "--json")
        assert (told_name.json["path"], verify(name).agrees) == (name, True)
    assert "request" in told.json["columns"]
    assert "request" not in manifest["columns"]
    written = {**told.json, "path": None, "manifest": None}
    assert written == {
        **json.loads(Path(told.json["manifest"]).read_text()),
        "path": None,
        "manifest": None,
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_was_changed_is_found_out(
    db: Database, tmp_path: Path, run: Run, format: str
) -> None:
    seed(db, 5)
    out = export_corpus(db.dsn, "acme", tmp_path / f"c.{format}").path
    good = run("verify", out)
    assert (good.code, good.out) == (0, f"{out} holds the 5 rows of its manifest\n")
    db.execute("update routeledger.routing_outcomes set reward = 0.123 where reward = 0.2")
    other = export_corpus(db.dsn, "acme", tmp_path / f"d.{format}").path
    out.write_bytes(other.read_bytes())
    bad = run("verify", out)
    assert bad.code == 1
    assert "is not what its manifest says: 5 rows with hash " in bad.out
    told = run("verify", out, "--json")
    assert (told.code, told.json["agrees"], told.json["rows"]) == (1, False, 5)
    out.write_bytes(other.read_bytes()[:-100])
    assert run("verify", out).code == (1 if format == "jsonl" else 2)


def test_what_the_command_will_not_do(
    db: Database, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(db, 5)

    def refused(out: Path, *more: str) -> tuple[int, str]:
        result = run("export", "--tenant", "acme", "-o", out, *more)
        assert "Traceback" not in result.err
        return result.code, result.err

    here = ("--dsn", db.dsn)
    assert refused(tmp_path / "c.csv", *here) == (2, "corpus: 'csv' is neither parquet nor jsonl\n")
    assert refused(tmp_path / "c", *here)[0] == 2
    assert refused(tmp_path, "--format", "jsonl", *here) == (2, f"corpus: {tmp_path} is no file\n")
    nowhere = tmp_path / "nowhere" / "c.jsonl"
    assert refused(nowhere, *here) == (2, f"corpus: there is no folder {nowhere.parent}\n")
    assert (
        refused(tmp_path / "c.jsonl", *here, "--from", "2026-02-02", "--to", "2026-02-01")[0] == 4
    )
    assert refused(tmp_path / "c.jsonl", "--dsn", "host=127.0.0.1 port=1 user=nobody")[0] == 3
    assert run("verify", tmp_path / "c.jsonl").code == 6
    (tmp_path / "c.jsonl.manifest.json").write_text("[]")
    assert run("verify", tmp_path / "c.jsonl").code == 2
    (tmp_path / "c.jsonl.manifest.json").unlink()
    # pyarrow is for Parquet only, and asked for before anything else
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    code, said = refused(tmp_path / "c.parquet", "--dsn", "host=127.0.0.1 port=1 user=nobody")
    assert code == 6
    assert "pip install 'routeledger[parquet]'" in said
    assert left(tmp_path) == []
    assert export_corpus(db.dsn, "acme", tmp_path / "c.jsonl").manifest["rows"] == 5
