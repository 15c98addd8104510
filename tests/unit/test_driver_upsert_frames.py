"""Data frames and Arrow tables as records, a slice at a time, with real ones."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from routeledger._frames import frame_of

UTC = dt.timezone.utc
NAN = float("nan")
FIRST, SECOND = dt.datetime(2026, 1, 1), dt.datetime(2026, 6, 1, 12, 0, 0, 5)
DAY, DELTA, PRICE = dt.date(2026, 1, 1), dt.timedelta(1, 5, 6), Decimal("1.10")
AWARE = [FIRST.replace(tzinfo=UTC), None, SECOND.replace(tzinfo=UTC)]


def values(frame: Any, step: int = 2) -> list[Any]:
    """Those of the only column, in their exact types."""
    read = frame_of(frame)
    assert read is not None
    out: list[Any] = []
    while part := read.take(step, read.columns):
        assert len(part) <= step
        out += [record[0] for record in part]
    assert len(out) == read.length
    return out


def series(data: Any, dtype: Any = None) -> pd.DataFrame:
    frame = pd.DataFrame({"v": pd.Series(data, dtype=dtype)})
    return frame.set_index(pd.Index([5, 5, 6]))  # which does not matter


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (series([1, 2, 3]), [1, 2, 3]),
        (series([1, 2, 255], "uint8"), [1, 2, 255]),
        (series([1, None, 3]), [1, None, 3]),  # kept as floats by pandas
        (series([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        (series([1.5, NAN, float("inf")]), [1.5, None, float("inf")]),
        (series([2.0**60, None, 3]), [2.0**60, None, 3.0]),
        (series([None, None, NAN], "float64"), [None, None, None]),
        (series([True, False, True]), [True, False, True]),
        (series([True, None, False], "boolean"), [True, None, False]),
        (series([1, None, 3], "Int64"), [1, None, 3]),
        (series([1.5, None, 3], "Float64"), [1.5, None, 3.0]),
        (series(["a", None, "é"]), ["a", None, "é"]),
        (series(["a", None, "b"], "string"), ["a", None, "b"]),
        (series(["a", pd.NA, NAN], object), ["a", None, None]),
        (series([{"a": 1}, None, [1, 2]], object), [{"a": 1}, None, [1, 2]]),
        (series([Decimal("1.10"), None, Decimal(2)]), [Decimal("1.10"), None, Decimal(2)]),
        (series([DAY, None, DAY], object), [DAY, None, DAY]),
        (series([FIRST, None, SECOND]), [FIRST, None, SECOND]),
        (series([FIRST, None, SECOND], "datetime64[ns]"), [FIRST, None, SECOND]),
        (series([FIRST, None, SECOND], "datetime64[s]"), [FIRST, None, SECOND.replace(microsecond=0)]),
        (series(AWARE), AWARE),
        (series(pd.Series(AWARE).dt.tz_convert("Europe/Berlin").to_list()), AWARE),
        (series([DELTA, None, DELTA / 7]), [DELTA, None, DELTA / 7]),
        (series(["x", None, "y"], "category"), ["x", None, "y"]),
        (series([7, None, 8], "category"), [7, None, 8]),
        (series([1, None, 2], "int64[pyarrow]"), [1, None, 2]),
        (series([1.5, None, NAN], pd.ArrowDtype(pa.float64())), [1.5, None, None]),
        (series(["a", None, "b"], "string[pyarrow]"), ["a", None, "b"]),
        (series(AWARE, pd.ArrowDtype(pa.timestamp("ns", "UTC"))), AWARE),
        (series([DAY, None, DAY], pd.ArrowDtype(pa.date32())), [DAY, None, DAY]),
        (series([PRICE, None, PRICE], pd.ArrowDtype(pa.decimal128(5, 2))), [PRICE, None, PRICE]),
        (pl.DataFrame({"v": [1, None, 3]}), [1, None, 3]),
        (pl.DataFrame({"v": AWARE}), AWARE),
        (pl.DataFrame({"v": [[1, 2], None, []]}), [[1, 2], None, []]),
        (pl.DataFrame({"v": [{"a": 1}, {"a": 2}]}), [{"a": 1}, {"a": 2}]),
        (pl.DataFrame({"v": ["x", None]}, schema={"v": pl.Categorical}), ["x", None]),
        (pl.DataFrame({"v": [Decimal("1.10"), None]}), [Decimal("1.10"), None]),
        (pa.table({"v": [1, 2, 3]}), [1, 2, 3]),
        (pa.table({"v": [1, None, 3]}), [1, None, 3]),
        (pa.table({"v": [1.5, None]}), [1.5, None]),
        (pa.table({"v": pa.array(AWARE, pa.timestamp("ns", "UTC"))}), AWARE),
        (pa.table({"v": pa.array(AWARE, pa.timestamp("us", "Asia/Tokyo"))}), AWARE),
        (pa.table({"v": pa.array([FIRST, None], pa.timestamp("us"))}), [FIRST, None]),
        (pa.table({"v": pa.array([5_000, None], pa.duration("ns"))}), [dt.timedelta(microseconds=5), None]),
        (pa.table({"v": pa.array([5_000, None], pa.time64("ns"))}), [dt.time(0, 0, 0, 5), None]),
        (pa.table({"v": pa.array([{"a": 1}, None], pa.map_(pa.string(), pa.int8()))}), [{"a": 1}, None]),
        (pa.table({"v": pa.array(["x", None, "x"]).dictionary_encode()}), ["x", None, "x"]),
        (pa.table({"v": pa.array([b"a", None], pa.large_binary())}), [b"a", None]),
        (pa.RecordBatch.from_pydict({"v": [[1], None]}), [[1], None]),
        (pa.table({"v": pa.chunked_array([[1], [2, 3]])}), [1, 2, 3]),
    ],
)  # fmt: skip
def test_values(frame: Any, expected: list[Any]) -> None:
    found = values(frame)
    assert found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


@pytest.mark.parametrize("frame", [pl.DataFrame({"v": [1.5, NAN]}), pa.table({"v": [1.5, NAN]})])
def test_nan_is_a_number_where_missing_is_something_else(frame: Any) -> None:
    assert values(frame)[0] == 1.5
    assert np.isnan(values(frame)[1])


def test_integers_with_gaps_are_told_by_the_whole_column() -> None:
    frame = pd.DataFrame({"v": [1.0, None, 3.0, 4.0, 5.5]})
    assert [type(v) for v in values(frame)] == [float, type(None), float, float, float]


def test_what_is_no_frame() -> None:
    thing: Any
    for thing in (
        5,
        None,
        [{"a": 1}],
        pd.Series([1]),
        pl.Series([1]),
        pa.array([1]),
        pa.table({"a": [1]}).to_reader(),
    ):
        assert frame_of(thing) is None
    with pytest.raises(TypeError, match="collect"):
        frame_of(pl.LazyFrame({"a": [1]}))
    for thing in (
        pd.DataFrame([[1, 2]]),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ):
        with pytest.raises(TypeError, match="columns"):
            frame_of(thing)


def test_empty_frames() -> None:
    for frame in (pd.DataFrame({"a": []}), pl.DataFrame({"a": []}), pa.table({"a": []})):
        read = frame_of(frame)
        assert read is not None
        assert read.columns == ("a",)
        assert read.take(5, read.columns) == []


@pytest.mark.parametrize(
    "make", [pd.DataFrame, pl.DataFrame, pa.Table.from_pydict], ids=["pandas", "polars", "arrow"]
)
def test_a_frame_is_never_objects_as_a_whole(make: Any) -> None:
    frame = frame_of(make({"k": list(range(200_000)), "v": ["a text"] * 200_000}))
    assert frame is not None
    tracemalloc.start()
    try:
        count = 0
        while part := frame.take(4096, frame.columns):
            count += len(part)
        del part
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < 4 * 2**20


def test_the_libraries_are_not_imported_by_us() -> None:
    check = (
        "import sys, routeledger, routeledger._upsert_sync;"
        "from routeledger._frames import frame_of; frame_of([1]);"
        "print(sorted({'pandas', 'polars', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
