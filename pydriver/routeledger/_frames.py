"""Data frames and Arrow tables as records, a slice at a time.

Nothing here is imported unless the caller's object comes from that library: pandas, polars and
pyarrow are known by the module of the object's type, and are in `sys.modules` then.

Missing values become NULL. What counts as missing is the library's own view: in pandas all that
``isna`` finds, NaN in a column of floats included, as in ``DataFrame.to_sql``; in polars and Arrow
a null, while NaN is a number and stays NaN. A pandas column of floats that holds whole numbers and
missing values, which is how pandas keeps integers with gaps, is sent as integers. The index of a
pandas frame is not a column. Times finer than a microsecond are cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timezone
from typing import Any

Record = Sequence[Any]


class Frame:
    """A frame that is read from top to bottom.

    Args:
        columns: the names of all its columns.
        length: its number of rows.
        read: the records from one row up to another, of the columns selected.
    """

    def __init__(
        self,
        columns: Sequence[Any],
        length: int,
        read: Callable[[int, int, Sequence[str]], Iterable[Record]],
    ) -> None:
        self.columns: tuple[Any, ...] = tuple(columns)
        self.length = length
        self._read = read
        self._at = 0

    def take(self, number: int, columns: Sequence[str]) -> list[Record]:
        """The next records, none at its end."""
        start, self._at = self._at, min(self._at + number, self.length)
        if start == self._at:
            return []
        return list(self._read(start, self._at, columns))


def frame_of(thing: object) -> Frame | None:
    """The frame that this is, or None. A ``RecordBatchReader`` is none, but yields some."""
    library = type(thing).__module__.partition(".")[0]
    make = {"pandas": _pandas, "polars": _polars, "pyarrow": _arrow}.get(library)
    if make is None or library not in sys.modules:
        return None
    frame = make(thing, sys.modules[library])
    if frame is not None:
        wrong = [name for name in frame.columns if not isinstance(name, str)]
        if wrong or len(set(frame.columns)) != len(frame.columns):
            msg = f"the columns of a frame need different names that are text: {frame.columns!r}"
            raise TypeError(msg)
    return frame


# -- pandas ---------------------------------------------------------------------------------------


def _pandas(thing: Any, pd: Any) -> Frame | None:
    if not isinstance(thing, pd.DataFrame):
        return None
    whole: dict[str, bool] = {}

    def read(start: int, stop: int, columns: Sequence[str]) -> Iterable[Record]:
        for name in columns:
            if name not in whole:
                whole[name] = _holds_integers_with_gaps(thing[name])
        part = thing.iloc[start:stop]
        return zip(*(_pandas_values(part[n], pd, whole[n]) for n in columns), strict=True)

    return Frame(list(thing.columns), len(thing), read)


def _holds_integers_with_gaps(series: Any) -> bool:
    if series.dtype.kind != "f" or not series.dtype.name.startswith("float"):
        return False
    there = series.to_numpy()
    there = there[series.notna().to_numpy()]
    return (
        0 < len(there) < len(series)
        and bool((abs(there) < 2.0**53).all())
        and bool((there == there.round()).all())
    )


def _pandas_values(series: Any, pd: Any, whole: bool) -> list[Any]:
    dtype = series.dtype
    kind = getattr(dtype, "kind", "O")
    if isinstance(dtype, pd.CategoricalDtype):
        words = [*_pandas_values(pd.Series(dtype.categories), pd, False), None]
        return [words[code] for code in series.cat.codes.tolist()]
    missing = series.isna().to_numpy()
    if hasattr(dtype, "pyarrow_dtype"):
        values = _arrow_values(series.array.__arrow_array__(), sys.modules["pyarrow"])
    elif kind == "M" and getattr(dtype, "tz", None) is not None:
        values = _zoned(series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy())
    elif kind == "M":
        values = series.to_numpy().astype("datetime64[us]").astype(object).tolist()
    elif kind == "m":
        values = series.to_numpy().astype("timedelta64[us]").astype(object).tolist()
    elif whole:
        values = [v if m else int(v) for v, m in zip(series.tolist(), missing, strict=True)]
    else:
        values = series.tolist()
    if missing.any():
        values = [None if m else v for v, m in zip(values, missing, strict=True)]
    return values


def _zoned(moments: Any) -> list[Any]:
    """Times in UTC, from a numpy array of times without a zone."""
    values = moments.astype("datetime64[us]").astype(object).tolist()
    return [v if v is None else v.replace(tzinfo=timezone.utc) for v in values]


# -- polars ---------------------------------------------------------------------------------------


def _polars(thing: Any, pl: Any) -> Frame | None:
    if isinstance(thing, pl.LazyFrame):
        msg = "collect() the LazyFrame first, or pass collect_batches()"
        raise TypeError(msg)
    if not isinstance(thing, pl.DataFrame):
        return None

    def read(start: int, stop: int, columns: Sequence[str]) -> Iterable[Record]:
        part = thing.slice(start, stop - start)
        return zip(*(part.get_column(name).to_list() for name in columns), strict=True)

    return Frame(thing.columns, thing.height, read)


# -- Arrow ----------------------------------------------------------------------------------------


def _arrow(thing: Any, pa: Any) -> Frame | None:
    if not isinstance(thing, (pa.Table, pa.RecordBatch)):
        return None

    def read(start: int, stop: int, columns: Sequence[str]) -> Iterable[Record]:
        part = thing.slice(start, stop - start)
        return zip(*(_arrow_values(part.column(name), pa) for name in columns), strict=True)

    return Frame(thing.schema.names, thing.num_rows, read)


def _arrow_values(column: Any, pa: Any) -> list[Any]:
    kind = column.type
    is_ = pa.types
    is_number = is_.is_integer(kind) or is_.is_floating(kind)
    if is_.is_timestamp(kind) and "numpy" in sys.modules:
        flat = column.cast(pa.int64()).cast(pa.timestamp(kind.unit))
        moments = flat.to_numpy(zero_copy_only=False)
        return _zoned(moments) if kind.tz else list(moments.astype("M8[us]").astype(object))
    if is_.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif is_.is_duration(kind) and kind.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    elif is_.is_time64(kind) and kind.unit == "ns":
        column = column.cast(pa.time64("us"), safe=False)
    elif is_.is_map(kind):
        return [None if v is None else dict(v) for v in column.to_pylist()]
    elif is_number and not column.null_count and "numpy" in sys.modules:
        return list(column.to_numpy(zero_copy_only=False).tolist())
    return list(column.to_pylist())
