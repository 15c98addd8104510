"""Rows of an upsert: read off whatever holds them, fit for binary COPY or not, as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import logging
import sqlite3
from collections import Counter, defaultdict, namedtuple
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from routeledger import errors
from routeledger._rows import (
    ABSENT,
    BinaryForm,
    Chunk,
    DocumentsWanted,
    NotBinary,
    RowReader,
    json_rows,
)
from routeledger._upsert_async import AsyncUpsert, log_notice

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass(slots=True)
class Both:
    """A row."""

    a: int
    b: Any


def read(items: list[Any], columns: tuple[str, ...] | None = None) -> Chunk:
    chunk = Chunk(1, 1)
    RowReader(columns).read(items, chunk)
    assert chunk.size == len(items) == len(chunk.rows) + len(chunk.refused)
    return chunk


# -- reading --


@pytest.mark.parametrize(
    "items",
    [
        [{"a": 1, "b": 2}, {"b": 4, "a": 3}],
        [MappingProxyType({"a": 1, "b": 2}), MappingProxyType({"a": 3, "b": 4})],
        [Both(1, 2), Both(3, 4)],
        [Pair(1, 2), Pair(3, 4)],
        [{"a": 1, "b": 2}, Both(3, 4)],
        [Pair(1, 2), {"b": 4, "a": 3}],
        [Both(1, 2), (3, 4)],
        [Both(1, 2), [3, 4]],
    ],
)
def test_rows_of_all_kinds(items: list[Any]) -> None:
    chunk = read(items)
    assert [tuple(row) for row in chunk.rows] == [(1, 2), (3, 4)]
    assert not chunk.ragged
    assert not chunk.refused


def test_rows_of_sqlite() -> None:
    conn = sqlite3.connect(":memory:")
    conn.row_factory = sqlite3.Row
    rows = conn.execute("select 1 as a, 2 as b union all select 3, 4").fetchall()
    conn.close()
    assert read(rows).rows == [(1, 2), (3, 4)]


def test_one_column_is_a_row_too() -> None:
    rows: list[Any]
    for rows in ([{"a": 1}, {"a": 2}], [SimpleRow(1), SimpleRow(2)], [(1,), (2,)]):
        assert [tuple(row) for row in read(rows, ("a",)).rows] == [(1,), (2,)]


@dataclasses.dataclass
class SimpleRow:
    """A row of one column."""

    a: int


def test_columns_select_and_order() -> None:
    rows: list[Any]
    for rows in (
        [{"a": 1, "b": 2, "c": 3}, {"a": 4, "b": 5}],
        [Both(1, 2), Both(4, 5)],
        [Pair(1, 2), Pair(4, 5)],
    ):
        assert read(rows, ("b", "a")).rows == [(2, 1), (5, 4)]


def test_what_a_row_lacks_is_absent() -> None:
    chunk = read([{"a": 1, "b": 2}, {"a": 3}, {}])
    assert chunk.rows == [(1, 2), (3, ABSENT), (ABSENT, ABSENT)]
    assert chunk.ragged
    assert read([{"a": 1}, SimpleRow(2)], ("a", "b")).ragged


def test_mappings_that_make_up_values_are_not_asked_to() -> None:
    for kind in (lambda d: defaultdict(int, d), Counter):
        rows = [kind({"a": 1, "b": 2}), kind({"a": 3, "c": 4})]
        chunk = read(rows)
        assert chunk.rows == [(1, 2)]
        assert len(chunk.refused) == 1
        assert "b" not in rows[1]


def test_what_does_not_fit_the_first_row_is_refused_in_its_place() -> None:
    items = [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, (1,), None, {"a": 5, "b": 6}, "ab"]
    chunk = Chunk(3, 101)
    RowReader(None).read(items, chunk)
    assert chunk.rows == [(1, 2), (5, 6)]
    assert [(ord_, error.sqlstate) for ord_, error in chunk.refused] == [
        (102, "RL113"),
        (103, "RL107"),
        (104, "RL107"),
        (106, "RL107"),
    ]
    assert [chunk.ord_of(n) for n in (1, 2)] == [101, 105]
    chunk.drop({1: errors.MalformedRow()})
    assert (chunk.rows, chunk.ords, chunk.refused[-1][0]) == ([(1, 2)], [101], 105)
    chunk.extend([(7, 8)])
    assert chunk.ord_of(2) == 107


def test_a_first_row_that_names_nothing() -> None:
    for item in ({}, {1: 2}, 5, None, "text", (1, 2), [1]):
        with pytest.raises(TypeError):
            read([item])


# -- binary --

INT4, TEXT = (23, "int4recv"), (25, "textrecv")
NUMERIC, JSONB = (1700, "numeric_recv"), (3802, "jsonb_recv")


def fit(column: tuple[int, str], *values: Any) -> list[Any]:
    return [row[0] for row in BinaryForm([column]).fit([(value,) for value in values])]


def test_only_exact_types_within_their_range_go_in_binary() -> None:
    assert fit(INT4, 1, None, -(2**31), 2**31 - 1) == [1, None, -(2**31), 2**31 - 1]
    for bad in (2**31, -(2**31) - 1, True, 1.0, "1", Decimal(1)):
        with pytest.raises(NotBinary):
            fit(INT4, 1, bad)
    assert fit(TEXT, "a", None) == ["a", None]
    for bad in (1, b"a", dt.date(2026, 1, 1)):
        with pytest.raises(NotBinary):
            fit(TEXT, bad)
    with pytest.raises(NotBinary):
        fit((1186, "interval_recv"), "1 day")
    with pytest.raises(NotBinary):
        fit((1082, "date_recv"), dt.datetime(2026, 1, 1))
    with pytest.raises(NotBinary):
        BinaryForm([(600, "point_recv")])
    with pytest.raises(NotBinary):
        BinaryForm([(99999, None)])


def test_floats_of_numeric_columns_are_the_decimals_that_json_would_carry() -> None:
    assert fit(NUMERIC, 0.1, 1, None, Decimal("0.10")) == [
        Decimal("0.1"),
        1,
        None,
        Decimal("0.10"),
    ]


def test_documents_are_encoded_once_and_alike() -> None:
    assert fit(JSONB, {"a": [1, "é"]}, None, "x") == [
        b'\x01{"a":[1,"\xc3\xa9"]}',
        None,
        b'\x01"x"',
    ]
    for bad in ({"a": float("nan")}, {"a": "\x00"}, {"a": object()}, ["\ud800"]):
        with pytest.raises(NotBinary):
            fit(JSONB, bad)


def test_arrays() -> None:
    assert fit((1016, "array_recv"), [1, 2], [], None) == [[1, 2], [], None]
    for bad in ([True], [2**63], [None], [[1]], (1, 2)):
        with pytest.raises(NotBinary):
            fit((1016, "array_recv"), bad)


def test_rows_that_fit_are_not_copied() -> None:
    rows = [(1, "a"), (2, "b")]
    assert BinaryForm([INT4, TEXT]).fit(rows) is rows


# -- JSON --


def sent(*values: Any, documents: frozenset[str] | None = frozenset()) -> list[Any]:
    text, refused = json_rows(("v",), [(value,) for value in values], documents)
    assert not refused
    return [row.get("v", ABSENT) for row in json.loads(text)]


def test_values_as_json() -> None:
    assert sent(
        Decimal("1.10"),
        dt.timedelta(days=-1, seconds=5, microseconds=7),
        b"\x00\xff",
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
        ABSENT,
        None,
    ) == ["1.10", "-1 days 5.000007 seconds", "\\x00ff", "2026-01-01T00:00:00+00:00", ABSENT, None]


def test_numbers_that_are_not_finite_are_texts_outside_documents() -> None:
    values = [float("nan"), float("inf"), float("-inf"), [float("nan"), 1.0]]
    assert sent(*values) == ["NaN", "Infinity", "-Infinity", ["NaN", 1.0]]
    with pytest.raises(DocumentsWanted):
        json_rows(("v",), [(value,) for value in values], None)
    text, refused = json_rows(("v",), [(1,), (float("nan"),)], frozenset({"v"}))
    assert (text, list(refused)) == ('[{"v":1}]', [1])


def test_what_json_cannot_carry_is_refused_alone() -> None:
    recursive: list[Any] = []
    recursive.append(recursive)
    bad = ["\x00", "\ud800", object(), recursive, {"a": float("nan")}]
    rows = [(value,) for value in ["good", *bad, "\\u0000 is fine"]]
    text, refused = json_rows(("v",), rows, frozenset())
    assert json.loads(text) == [{"v": "good"}, {"v": "\\u0000 is fine"}]
    assert sorted(refused) == [1, 2, 3, 4, 5]
    assert all(error.detail["reason"] and error.hint for error in refused.values())


# -- what is tried again, and what is logged --


async def test_which_errors_are_worth_another_try() -> None:
    upsert = AsyncUpsert(
        SimpleNamespace(max_size=4),  # type: ignore[arg-type]
        {"on_tie": "greatest_row"},
        timeout=1,
        batch_id=None,
        progress=None,
        chunk_rows=1,
        connections=2,
        copy_threshold=1,
        conn=None,
    )
    for error, again in (
        (errors.LedgerBusy(sqlstate="40001"), True),
        (errors.LedgerUnavailable(), True),
        (errors.LedgerError(sqlstate="23505", constraint="t_pkey_ccnew"), True),
        (errors.LedgerError(sqlstate="23505", constraint="t_pkey_ccold1"), True),
        (errors.LedgerError(sqlstate="23505"), False),
        (errors.LedgerError(sqlstate="23514", constraint="t_ccnew"), False),
        (errors.LedgerError(sqlstate="21000"), False),
        (errors.LedgerError(sqlstate="42P10"), False),
        (errors.BatchReused(), False),
    ):
        assert await upsert._worth_repeating(error) is again, error


def test_notices_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="routeledger"):
        for severity, detail in (("WARNING", None), ("NOTICE", "more"), ("DEBUG", None)):
            diag = SimpleNamespace(
                severity_nonlocalized=severity, message_primary="100 %s", message_detail=detail
            )
            log_notice(diag)  # type: ignore[arg-type]
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "100 %s"),
        (logging.INFO, "100 %s (more)"),
        (logging.DEBUG, "100 %s"),
    ]
