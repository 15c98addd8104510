# Generated from tests/integration/test_driver_upsert_async.py by `make sync`: edit that, not this.
"""`upsert` against a real server: whatever holds the rows, whichever way they go, whatever breaks."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gc
import logging
import mmap
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
from psycopg import Connection

from routeledger import Ledger, UpsertProgress, UpsertResult, errors
from routeledger._threads import sleep
from tests.conftest import Database, login_of
from tests.faults.proxy import Proxy

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = ("grp", "item", "n", "mean", "at")
JSON, COPY = 10**9, 0
LOGIN = login_of("writer")
STATM = Path("/proc/self/statm")
Bucket = namedtuple("Bucket", COLUMNS)


@dataclasses.dataclass
class Sample:
    """A row as applications hold it."""

    grp: str
    item: str
    n: int
    mean: float | None
    at: dt.datetime


def samples(count: int = 60) -> list[dict[str, Any]]:
    """Rows of 40 keys, some of them twice, with a missing value."""
    return [
        {
            "grp": f"g{i % 4}",
            "item": f"i{i % 40}",
            "n": i * 7 % 31,
            "mean": None if i == 5 else i / 8,
            "at": START + dt.timedelta(seconds=i),
        }
        for i in range(count)
    ]


def as_records(count: int = 60) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in samples(count)]


@pytest.fixture
def ledger(db: Database) -> Iterator[Ledger]:
    """A client of the test's own database that may write and no more."""
    db.execute(
        """
        create table t (
          grp text, item text, n bigint, mean double precision, at timestamptz,
          primary key (grp, item));
        create table tally (k integer primary key, hits bigint, cost numeric);
        create table item (
          k integer primary key, v varchar(5), w integer not null default 7,
          at timestamptz default now());
        grant all on t, tally, item to public
        """
    )
    with Ledger.connect(db.dsn_as("writer"), max_size=4) as ledger:
        yield ledger


def table(db: Database, name: str = "t") -> list[tuple[Any, ...]]:
    """What the table holds, in the order of its key."""
    return db.execute(f"select * from {name} order by 1, 2")


def counts(result: UpsertResult | UpsertProgress) -> tuple[int, ...]:
    """Received, collapsed, inserted, updated, unchanged, refused."""
    found = (
        result.received,
        result.collapsed,
        result.inserted,
        result.updated,
        result.unchanged,
        result.refused,
    )
    assert found[0] == sum(found[1:])
    return found


# -- whatever holds the rows --


def _frames() -> dict[str, Callable[[], Any]]:
    """Every kind of thing that holds the same rows."""

    def later() -> Iterator[dict[str, Any]]:
        rows = samples()
        while rows:
            yield rows.pop(0)

    def frames_later() -> Iterator[Any]:
        batches = arrow().to_batches(max_chunksize=7)
        while batches:
            yield batches.pop(0)

    def arrow() -> Any:
        return pa.table({name: [row[name] for row in samples()] for name in COLUMNS})

    return {
        "dicts": samples,
        "mappings": lambda: [MappingProxyType(row) for row in samples()],
        "a generator": lambda: (row for row in samples()),
        "later": later,
        "frames later": frames_later,
        "dataclasses": lambda: [Sample(**row) for row in samples()],
        "named tuples": lambda: [Bucket(**row) for row in samples()],
        "kinds mixed": lambda: [
            Sample(**row) if i % 3 else Bucket(**row) if i % 2 else row
            for i, row in enumerate(samples())
        ],
        "pandas": lambda: pd.DataFrame(samples()),
        "pandas by arrow": lambda: pd.DataFrame(samples()).convert_dtypes(dtype_backend="pyarrow"),
        "polars": lambda: pl.DataFrame(samples()),
        "arrow table": arrow,
        "record batch": lambda: arrow().combine_chunks().to_batches()[0],
        "record batches": lambda: arrow().to_batches(max_chunksize=11),
        "batch reader": lambda: arrow().to_reader(max_chunksize=9),
    }


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_whatever_holds_the_rows(ledger: Ledger, db: Database, threshold: int) -> None:
    expected: Any = None
    for name, make in _frames().items():
        for chunk_rows in (50_000, 13):
            db.execute("truncate t")
            result = ledger.upsert(
                "t",
                make(),
                precedence="greatest n",
                chunk_rows=chunk_rows,
                copy_threshold=threshold,
            )
            found = table(db)
            expected = expected or found
            assert found == expected, name
            assert len(found) == 40
            received, collapsed, inserted, *_ = counts(result)
            assert (received, inserted, result.refused) == (60, 40, 0), name
            assert collapsed == (20 if chunk_rows == 50_000 else 0), name


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_sequences_need_columns_and_columns_select(
    ledger: Ledger, db: Database, threshold: int
) -> None:
    for rows in (as_records(), [list(row) for row in as_records()]):
        ledger.upsert("t", rows, columns=COLUMNS, copy_threshold=threshold)
        assert len(table(db)) == 40
    with pytest.raises(TypeError, match="columns="):
        ledger.upsert("t", as_records())
    for make in (samples, lambda: pd.DataFrame(samples()), lambda: [Sample(**samples()[0])]):
        db.execute("truncate t")
        ledger.upsert("t", make(), columns=["item", "grp"], copy_threshold=threshold)
        assert ("g0", "i0", None, None, None) in table(db)


def test_what_is_no_rows(ledger: Ledger) -> None:
    rows: Any
    for rows in (5, "text", {"grp": "a"}, [None], [5], [{}], pl.LazyFrame({"a": [1]})):
        with pytest.raises(TypeError):
            ledger.upsert("t", rows)
    for rows in (
        [pa.table({"grp": ["a"], "item": ["b"]}), pa.table({"grp": ["a"]})],
        [pa.table({"grp": ["a"], "item": ["b"]}), {"grp": "a", "item": "c"}],
        pd.DataFrame([[1, 2]], columns=["grp", "grp"]),
        pd.DataFrame([[1, 2]]),
    ):
        with pytest.raises(TypeError):
            ledger.upsert("t", rows)
    for options in ({"chunk_rows": 0}, {"chunk_rows": 10**6}, {"connections": 0}):
        with pytest.raises(ValueError, match="chunk_rows"):
            ledger.upsert("t", [], **options)  # type: ignore[arg-type]


def test_nothing_to_write(ledger: Ledger, db: Database) -> None:
    empty = pl.DataFrame({"grp": [], "item": []})
    for rows in ([], iter(()), empty):
        assert counts(ledger.upsert("t", rows)) == (0,) * 6
    with pytest.raises(errors.LedgerError) as caught:
        ledger.upsert("missing", [])
    assert caught.value.sqlstate == "42P01"
    with pytest.raises(errors.NoUniqueIndex):
        ledger.upsert("t", empty, key=["n"])
    assert table(db) == []


# -- what has no value --


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_missing_values_of_frames(ledger: Ledger, db: Database, threshold: int) -> None:
    rows = [(1, None), (2, 5)]
    nan = float("nan")
    for frame in (
        pd.DataFrame(rows, columns=["k", "hits"]),  # floats, for want of a missing integer
        pd.DataFrame(rows, columns=["k", "hits"]).convert_dtypes(),
        pl.DataFrame(rows, schema=["k", "hits"], orient="row"),
        pa.table({"k": [1, 2], "hits": pa.array([None, 5], pa.int32())}),
    ):
        db.execute("truncate tally")
        ledger.upsert("tally", frame, copy_threshold=threshold)
        assert table(db, "tally") == [(1, None, None), (2, 5, None)]
    values = {"grp": ["a", "b"], "item": ["x", "y"], "mean": [nan, 1.5]}
    for frame, expected in (
        (pd.DataFrame(values), "{NULL,1.5}"),
        (pl.DataFrame(values), "{NaN,1.5}"),
        (pa.table(values), "{NaN,1.5}"),
        (
            [{"grp": g, "item": i, "mean": m} for g, i, m in zip(*values.values(), strict=True)],
            "{NaN,1.5}",
        ),
    ):
        db.execute("truncate t")
        ledger.upsert("t", frame, copy_threshold=threshold)
        assert db.value("select array_agg(mean order by grp)::text from t") == expected


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_hostile_names(ledger: Ledger, db: Database, threshold: int) -> None:
    db.execute(
        """
        create schema "S %s";
        create table "S %s"."T""; {0}" ("K""%(x)s" int primary key, "v'; --" text, "{}" int);
        grant usage on schema "S %s" to public;
        grant all on "S %s"."T""; {0}" to public
        """
    )
    rows = [{'K"%(x)s': k, "v'; --": "it's", "{}": 1} for k in range(3)]
    result = ledger.upsert('"S %s"."T""; {0}"', rows, key=['K"%(x)s'], copy_threshold=threshold)
    assert counts(result) == (3, 0, 3, 0, 0, 0)


# -- refusals --


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_refusals_tell_the_place_in_the_stream(
    ledger: Ledger, db: Database, threshold: int
) -> None:
    rows: list[Any] = [{"k": k, "v": "ok", "w": 1} for k in range(100)]
    rows[3] = {"k": 3, "v": "far too long", "w": 1}
    rows[30] = {"k": None, "v": "ok", "w": 1}
    rows[31] = {"k": 31, "v": "ok", "w": 1, "x": 1}
    rows[32] = ["not", "enough"]
    rows[33] = None
    rows[50] = {"k": 50, "v": "a\x00b", "w": 1}
    rows[51] = {"k": 51, "v": "ok", "w": "x"}
    rows[52] = {"k": 52, "v": "ok", "w": None}
    rows[98] = {"k": 98, "v": object(), "w": 1}
    result = ledger.upsert("item", rows, chunk_rows=20, copy_threshold=threshold)
    assert counts(result) == (100, 0, 91, 0, 0, 9)
    assert [(r.ord - 1, r.code) for r in result.refusals] == [
        (3, "RL107"),
        (30, "RL115"),
        (31, "RL113"),
        (32, "RL107"),
        (33, "RL107"),
        (50, "RL107"),
        (51, "RL107"),
        (52, "RL307"),
        (98, "RL107"),
    ]
    assert all(r.message and r.hint and r.detail for r in result.refusals)
    assert isinstance(result.refusals[1].error, errors.NoKey)
    assert isinstance(result.refusals[7].error, errors.RowRefused)
    assert {row[0] for row in table(db, "item")} == set(range(100)) - {
        3, 30, 31, 32, 33, 50, 51, 52, 98
    }  # fmt: skip


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_strict_raises_the_first_refusal(ledger: Ledger, db: Database, threshold: int) -> None:
    for bad, kind in (
        ({"k": 45, "v": "far too long"}, errors.MalformedRow),
        ({"k": None, "v": "ok"}, errors.NoKey),
        ({"k": 45, "v": "ok", "x": 1}, errors.NoSuchColumn),
        ({"k": 45, "v": object()}, errors.MalformedRow),
    ):
        db.execute("truncate item")
        rows: list[dict[str, Any]] = [{"k": k, "v": "ok"} for k in range(100)]
        rows[45] = bad
        with pytest.raises(kind) as caught:
            ledger.upsert(
                "item", rows, strict=True, chunk_rows=20, connections=1, copy_threshold=threshold
            )
        assert caught.value.detail["ord"] == 46
        assert caught.value.partial is not None
        assert counts(caught.value.partial) == (40, 0, 40, 0, 0, 0)
        assert len(table(db, "item")) == 40


def test_rows_that_lack_a_column(ledger: Ledger, db: Database) -> None:
    rows = [{"k": 1, "v": "a", "w": 1}, {"k": 2, "v": "b"}, {"k": 3, "w": 3}]
    for threshold in (JSON, COPY):
        db.execute("truncate item")
        ledger.upsert("item", rows, copy_threshold=threshold)
        assert [row[:3] for row in table(db, "item")] == [(1, "a", 1), (2, "b", 7), (3, None, 3)]
    result = ledger.upsert("item", [{"k": 4, "at": START}, {"k": 5}], columns=["k", "at"])
    assert [(r.ord, r.code) for r in result.refusals] == [(2, "RL107")]


def test_calls_that_are_wrong(ledger: Ledger, db: Database) -> None:
    rows = samples()
    for options, kind in (
        ({"key": ["n"]}, errors.NoUniqueIndex),
        ({"columns": ["grp", "item", "nope"]}, errors.NoSuchColumn),
        ({"precedence": "greatest nope"}, errors.UnsuitablePrecedence),
        ({"precedence": "sum n"}, errors.MissingArgument),
        ({"on_tie": "perhaps"}, errors.NotInVocabulary),
    ):
        for threshold in (JSON, COPY):
            with pytest.raises(kind):
                ledger.upsert("t", rows, copy_threshold=threshold, **options)
    with pytest.raises(errors.UnsuitableTarget):
        ledger.upsert("pg_roles", [{"rolname": "x"}], copy_threshold=COPY)
    db.execute("create table secret (k integer primary key)")
    for threshold in (JSON, COPY):
        with pytest.raises(errors.LedgerError) as caught:
            ledger.upsert("secret", [{"k": 1}], copy_threshold=threshold)
        assert caught.value.sqlstate == "42501"
        assert caught.value.partial is not None
    assert table(db) == []


def test_without_the_right_to_temporary_tables(ledger: Ledger, db: Database) -> None:
    db.execute(f"revoke temporary on database {db.name} from public")
    result = ledger.upsert("t", samples(), copy_threshold=COPY)
    assert counts(result) == (60, 20, 40, 0, 0, 0)


# -- order, batches, progress --


def test_the_later_row_replaces_in_every_split(ledger: Ledger, db: Database) -> None:
    rows = [{"k": k % 10, "v": str(n)} for n, k in enumerate(range(500))]
    for chunk_rows in (7, 100, 1000):
        db.execute("truncate item")
        ledger.upsert("item", rows, on_tie="replace", chunk_rows=chunk_rows, copy_threshold=50)
        assert [row[1] for row in table(db, "item")] == [str(490 + k) for k in range(10)]


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_a_batch_of_sums_that_comes_again_adds_nothing(
    ledger: Ledger, db: Database, threshold: int
) -> None:
    rows = [{"k": n % 10, "hits": 1, "cost": Decimal("0.1")} for n in range(100)]
    again: dict[str, Any] = {"precedence": "sum hits, cost", "copy_threshold": threshold}
    for _ in range(2):
        ledger.upsert("tally", rows, batch_id="b", chunk_rows=30, **again)
        assert table(db, "tally") == [(k, 10, Decimal("1.0")) for k in range(10)]
    for other, size in ((rows, 40), (rows, 100), (rows[:99], 99), (rows[::-1], 50)):
        with pytest.raises(errors.BatchReused) as caught:
            ledger.upsert("tally", other, batch_id="b", chunk_rows=size, **again)
        assert caught.value.partial is not None
        assert counts(caught.value.partial) == (0,) * 6
        assert table(db, "tally") == [(k, 10, Decimal("1.0")) for k in range(10)]
    ledger.upsert("tally", rows, batch_id="c", chunk_rows=30, **again)
    assert table(db, "tally") == [(k, 20, Decimal("2.0")) for k in range(10)]


def test_progress(ledger: Ledger, db: Database) -> None:
    # each of four chunks is dealt to the connections
    for rows, total, connections in ((samples(100), 100, 1), (iter(samples(100)), None, 2)):
        seen: list[UpsertProgress] = []
        ledger.upsert("t", rows, chunk_rows=30, connections=connections, progress=seen.append)
        assert [p.chunks for p in seen] == sorted({p.chunks for p in seen})
        assert seen[-1].chunks == 4 * connections
        assert counts(seen[-1])[0] == 100
        assert all(p.total == total for p in seen)

    def stop(_: UpsertProgress) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError) as caught:
        ledger.upsert("t", samples(100), chunk_rows=30, connections=1, progress=stop)
    assert counts(caught.value.partial)[0] == 30  # type: ignore[attr-defined]


def test_what_the_server_says_is_logged(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="routeledger"):
        ledger.upsert("t", samples(40))
        ledger.upsert("t", samples(60), copy_threshold=COPY)
    levels = [r.levelno for r in caplog.records if "received" in r.getMessage()]
    assert levels == [logging.INFO, logging.WARNING]


# -- what breaks --


def test_an_iterator_that_fails_midway(ledger: Ledger, db: Database) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        for n, row in enumerate(samples(100)):
            if n == 77:
                raise OSError("the file ends here")
            yield row

    with pytest.raises(OSError, match="ends here") as caught:
        ledger.upsert("t", broken(), precedence="greatest n", chunk_rows=20)
    assert counts(caught.value.partial)[0] == 60  # type: ignore[attr-defined]
    ledger.upsert("t", samples(100), precedence="greatest n", chunk_rows=30)
    found = table(db)
    db.execute("truncate t")
    ledger.upsert("t", samples(100), precedence="greatest n")
    assert table(db) == found


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_killed_backends_double_nothing(ledger: Ledger, db: Database, threshold: int) -> None:
    killed = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal killed
        for n in range(6000):
            if killed < 4 and n % 100 == 99:  # fewer in all than a chunk is tried
                sleep(0.002)  # let a chunk be under way
                killed += len(
                    db.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where usename = %s and query ~ 'upsert|_routeledger_rows'",
                        [LOGIN],
                    )
                )
            yield {"k": n % 50, "hits": 1, "cost": Decimal("0.25")}

    for _ in range(2):
        ledger.upsert(
            "tally",
            rows(),
            precedence="sum hits, cost",
            batch_id="b",
            chunk_rows=500,
            copy_threshold=threshold,
        )
    assert killed
    assert table(db, "tally") == [(k, 120, Decimal("30.00")) for k in range(50)]


def test_a_lost_answer_doubles_nothing(ledger: Ledger, db: Database) -> None:
    """The connection is lost at every point of the conversation, after the commit too."""
    rows = [{"k": n % 5, "hits": 1} for n in range(20)]
    with Proxy(db.server.host, db.server.port) as proxy:
        dsn = f"host=127.0.0.1 port={proxy.port} dbname={db.name} user={LOGIN}"
        with Ledger.connect(dsn, max_size=1, coalesce=False) as ledger:
            batch = 0
            for threshold in (JSON, COPY):
                for cut in range(1, 1500, 90):
                    for direction in ("to client", "to server"):
                        batch += 1
                        proxy.cut_after(cut, direction, "close")  # type: ignore[arg-type]
                        ledger.upsert(
                            "tally",
                            rows,
                            precedence="sum hits",
                            batch_id=str(batch),
                            copy_threshold=threshold,
                        )
    assert table(db, "tally") == [(k, 4 * batch, None) for k in range(5)]


def rival(work: Callable[[], None]) -> threading.Thread:
    """Somebody else, at the same time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until_blocked(conn: psycopg.Connection[Any]) -> None:
    """Until the writer's login waits for a lock that this session holds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        waiting = conn.execute(
            "select from pg_stat_activity where usename = %s"
            " and pg_backend_pid() = any (pg_blocking_pids(pid))",
            [LOGIN],
        ).fetchall()
        if waiting:
            return
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_a_deadlock_is_tried_again(ledger: Ledger, db: Database, threshold: int) -> None:
    rows = [{"k": k, "v": "b"} for k in range(10)]
    ledger.upsert("item", [{"k": k, "v": "a"} for k in range(10)])
    ours = "1500ms"  # the upsert looks for deadlocks, and is the victim
    db.execute(f"alter role {LOGIN} set deadlock_timeout = '{ours}'")
    try:
        with Ledger.connect(db.dsn_as("writer")) as ledger:
            with db.connect(autocommit=False) as other:
                other.execute("set local deadlock_timeout = '1min'")
                other.execute("update item set w = 100 where k = 9")

                def work() -> None:
                    wait_until_blocked(other)
                    other.execute("update item set w = 100 where k = 0")
                    other.commit()

                thread = rival(work)
                result = ledger.upsert("item", rows, copy_threshold=threshold)
                thread.join()
    finally:
        db.execute(f"alter role {LOGIN} reset deadlock_timeout")
    assert counts(result) == (10, 0, 0, 10, 0, 0)
    assert [row[1:3] for row in table(db, "item")] == [
        ("b", 100 if k in (0, 9) else 7) for k in range(10)
    ]
    assert db.value("select deadlocks from pg_stat_database where datname = current_database()")


@pytest.mark.parametrize("setting", ["repeatable read", "serializable", "lock_timeout"])
@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_failures_of_isolation_are_tried_again(
    ledger: Ledger, db: Database, setting: str, threshold: int
) -> None:
    """Another session inserts a key and updates another while the upsert waits for it."""
    rows = [{"k": k, "v": "b"} for k in range(10)]
    ledger.upsert("item", [{"k": k, "v": "a"} for k in range(5)])
    change = (
        "lock_timeout = '300ms'"
        if setting == "lock_timeout"
        else f"default_transaction_isolation = '{setting}'"
    )
    db.execute(f"alter role {LOGIN} set {change}")
    try:
        with Ledger.connect(db.dsn_as("writer")) as ledger:
            with db.connect(autocommit=False) as other:
                other.execute("lock table item in share row exclusive mode")

                def work() -> None:
                    wait_until_blocked(other)
                    other.execute("insert into item (k, v) values (7, 'a')")
                    other.execute("update item set w = 100 where k = 3")
                    if setting == "lock_timeout":
                        time.sleep(0.5)
                    other.commit()

                thread = rival(work)
                result = ledger.upsert("item", rows, copy_threshold=threshold)
                thread.join()
    finally:
        db.execute(f"alter role {LOGIN} reset all")
    assert counts(result) == (10, 0, 4, 6, 0, 0)
    assert [row[1] for row in table(db, "item")] == ["b"] * 10


def test_two_streams_in_opposite_order(ledger: Ledger, db: Database) -> None:
    rows = [{"k": k, "hits": k % 7} for k in range(3000)]

    threads = [
        rival(lambda p=part: ledger.upsert("tally", p, chunk_rows=300, copy_threshold=COPY))
        for part in (rows, rows[::-1], rows)
    ]
    for thread in threads:
        thread.join()
    assert [row[:2] for row in table(db, "tally")] == [(k, k % 7) for k in range(3000)]
    assert not db.value("select deadlocks from pg_stat_database where datname = current_database()")


# -- a connection of the caller's --


@pytest.mark.parametrize("threshold", [JSON, COPY], ids=["json", "copy"])
def test_a_borrowed_connection_is_never_committed(
    ledger: Ledger, db: Database, threshold: int
) -> None:
    with Connection.connect(db.dsn_as("writer")) as conn:
        for chunk_rows in (20, 1000):
            result = ledger.upsert(
                "t",
                samples(),
                precedence="greatest n",
                conn=conn,
                chunk_rows=chunk_rows,
                copy_threshold=threshold,
            )
        assert counts(result) == (60, 20, 0, 0, 40, 0)
        # a value that COPY does not take, and a failure, leave the transaction as it was
        mixed = ledger.upsert(
            "item", [{"k": 1, "v": "a"}, {"k": 2, "v": 5}], conn=conn, copy_threshold=threshold
        )
        assert mixed.inserted == 2
        assert table(db) == []
        assert table(db, "item") == []
        conn.rollback()
        assert table(db) == []
        ledger.upsert("t", samples(), conn=conn, copy_threshold=threshold)
        conn.commit()
        assert len(table(db)) == 40
    with Connection.connect(db.dsn_as("writer"), autocommit=True) as conn:
        db.execute("truncate t")
        ledger.upsert("t", samples(), conn=conn, chunk_rows=25, copy_threshold=threshold)
        assert len(table(db)) == 40
        assert not ((conn.execute("select to_regclass('_routeledger_rows')")).fetchone())[0]  # type: ignore[index]  # fmt: skip


def test_a_pool_of_one(db: Database, ledger: Ledger) -> None:
    with Ledger.connect(db.dsn_as("writer"), max_size=1) as ledger:
        ledger.upsert("t", samples(), chunk_rows=7, copy_threshold=COPY)
    assert len(table(db)) == 40


# -- how much it takes --


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not STATM.exists(), reason="the system does not say how much memory is used")
def test_memory_is_bounded(ledger: Ledger, db: Database) -> None:
    """Of a stream of 300,000 rows, 100 MB as a list, two chunks are held and no more."""
    peak = 0

    def stream(length: int) -> Iterator[dict[str, Any]]:
        nonlocal peak
        for n in range(length):
            if n % 1000 == 0:
                peak = max(peak, resident())
            yield {
                "grp": f"g{n % 100}",
                "item": f"an item with a name that takes room, and number {n % 20_000}",
                "n": n,
                "mean": n / 7,
                "at": START + dt.timedelta(seconds=n),
            }

    ledger.upsert("t", stream(50_000), chunk_rows=10_000)
    gc.collect()
    before, peak = resident(), 0
    result = ledger.upsert("t", stream(300_000), chunk_rows=10_000)
    assert result.received == 300_000
    assert len(table(db)) == 20_000
    assert peak - before < 25 * 2**20
