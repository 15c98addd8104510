"""Rows of an upsert on their way: read off whatever holds them, fit for binary COPY, or as JSON.

A row becomes a tuple in the order of the columns; `ABSENT` stands where it lacks one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.json import Json, Jsonb

from .errors import LedgerError, MalformedRow, NoSuchColumn

Record = Sequence[Any]


class _Absent:
    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()

_SHAPE = "Pass mappings, dataclass instances, or sequences with a value for each column."


@dataclass(slots=True, eq=False)
class Chunk:
    """Consecutive rows of a stream: those that can be sent, and those that no table could take.

    `first` is the position of its first row in the stream, `ords` the positions of `rows` where
    some were refused.
    """

    number: int
    first: int
    size: int = 0
    rows: list[Record] = field(default_factory=list)
    ragged: bool = False
    ords: list[int] | None = None
    refused: list[tuple[int, LedgerError]] = field(default_factory=list)
    last: bool = False

    def extend(self, rows: Iterable[Record]) -> None:
        """Add rows that have all columns."""
        before = len(self.rows)
        self.rows.extend(rows)
        added = len(self.rows) - before
        if self.ords is not None:
            self.ords.extend(range(self.first + self.size, self.first + self.size + added))
        self.size += added

    def refuse(self, error: LedgerError) -> None:
        """Add a row that is refused."""
        self._keep_ords(len(self.rows))
        self.refused.append((self.first + self.size, error))
        self.size += 1

    def drop(self, errors: Mapping[int, LedgerError]) -> None:
        """Refuse some of `rows`, by their index."""
        self._keep_ords(len(self.rows))
        ords = self.ords or []
        self.refused += [(ords[n], error) for n, error in errors.items()]
        self.rows = [row for n, row in enumerate(self.rows) if n not in errors]
        self.ords = [ord_ for n, ord_ in enumerate(ords) if n not in errors]

    def deal(self, hashes: Sequence[int], number: int) -> list[Chunk]:
        """The chunk in so many parts, each row in the one that its hash says."""
        self._keep_ords(len(self.rows))
        lanes = [hash_ % number for hash_ in hashes]
        parts = []
        for lane in range(number):
            mine = [lane == other for other in lanes]
            part = Chunk(self.number, self.first, ragged=self.ragged)
            part.rows = list(compress(self.rows, mine))
            part.ords = list(compress(self.ords or (), mine))
            part.size = len(part.rows)
            parts.append(part)
        parts[0].refused = self.refused
        parts[0].size += len(self.refused)
        return parts

    def ord_of(self, position: int) -> int:
        """The place in the stream of the row that the server saw at this place, both from 1."""
        return self.first + position - 1 if self.ords is None else self.ords[position - 1]

    def _keep_ords(self, count: int) -> None:
        if self.ords is None:
            self.ords = list(range(self.first, self.first + count))


def malformed(reason: str, hint: str) -> LedgerError:
    """The error of a row that cannot be read or sent."""
    return MalformedRow(
        "a row does not have the shape of this routine's parameters",
        detail={"reason": reason},
        hint=hint,
    )


def _one_too_many(column: str) -> LedgerError:
    return NoSuchColumn(
        "a column does not exist in the target or cannot be written",
        detail={"column": column, "reason": "the first row does not have it"},
        hint="Give the first row every column, or name in columns= those that are to be written.",
    )


# -- reading --------------------------------------------------------------------------------------


class RowReader:
    """Turns mappings, dataclass instances, named tuples and sequences into records.

    The columns are those given, which select among what a row has, or those of the first row, to
    which the others must keep: what is left out is `ABSENT`, and what is added is refused.
    """

    def __init__(self, columns: Sequence[str] | None) -> None:
        self._given = columns is not None
        self.columns: tuple[str, ...] = tuple(columns or ())
        self._fast: dict[type, Callable[[Any], Record] | None] = {}

    def read(self, items: list[Any], chunk: Chunk) -> None:
        """Add the rows to the chunk."""
        if not self.columns:
            self.columns = _columns_of(items[0])
        kinds = set(map(type, items))
        if len(kinds) == 1:
            kind = kinds.pop()
            convert = self._converter(kind)
            if convert is not None and self._lengths_agree(kind, items):
                try:
                    chunk.extend(list(map(convert, items)))
                except (KeyError, AttributeError):
                    pass  # one of them lacks a column
                else:
                    return
        for item in items:
            self._read_one(item, chunk)

    def _converter(self, kind: type) -> Callable[[Any], Record] | None:
        if kind not in self._fast:
            self._fast[kind] = self._make_converter(kind)
        return self._fast[kind]

    def _make_converter(self, kind: type) -> Callable[[Any], Record] | None:
        names = self.columns
        if fields := getattr(kind, "_fields", None):
            return (
                _picker(itemgetter, [fields.index(n) for n in names]) if self._fit(fields) else None
            )
        if issubclass(kind, (tuple, list)):
            return _itself
        if dataclasses.is_dataclass(kind):
            fields = [f.name for f in dataclasses.fields(kind)]
            return _picker(attrgetter, names) if self._fit(fields) else None
        if issubclass(kind, Mapping) and not hasattr(kind, "__missing__"):
            return _picker(itemgetter, names)
        return None

    def _fit(self, fields: Sequence[str]) -> bool:
        names = set(self.columns)
        return names <= set(fields) if self._given else names == set(fields)

    def _lengths_agree(self, kind: type, items: list[Any]) -> bool:
        if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
            return True
        if self._given and issubclass(kind, Mapping):
            return True
        return set(map(len, items)) == {len(self.columns)}

    def _read_one(self, item: Any, chunk: Chunk) -> None:
        names = self.columns
        row = _as_mapping(item)
        if row is None:
            if not isinstance(item, (tuple, list)):
                chunk.refuse(malformed(f"a {type(item).__name__} is not a row", _SHAPE))
            elif len(item) != len(names):
                reason = f"the row has {len(item)} values for {len(names)} columns"
                chunk.refuse(malformed(reason, _SHAPE))
            else:
                chunk.extend([item])
            return
        if not self._given:
            extra = [key for key in row if key not in names]
            if extra:
                chunk.refuse(_one_too_many(str(extra[0])))
                return
        chunk.ragged = chunk.ragged or any(name not in row for name in names)
        chunk.extend([tuple([row.get(name, ABSENT) for name in names])])


def _itself(row: Record) -> Record:
    return row


def _picker(
    make: Callable[..., Callable[[Any], Any]], keys: Sequence[Any]
) -> Callable[[Any], Record]:
    get = make(*keys)
    if len(keys) > 1:
        return get
    return lambda row: (get(row),)


def _as_mapping(item: Any) -> Mapping[Any, Any] | None:
    """What has names as a mapping, or None."""
    if isinstance(item, Mapping):
        return item
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
    if fields := getattr(item, "_fields", None):
        return dict(zip(fields, item, strict=True))
    keys = getattr(item, "keys", None)  # sqlite3.Row and the like
    if callable(keys) and hasattr(item, "__getitem__"):
        return {key: item[key] for key in keys()}
    return None


def _columns_of(item: Any) -> tuple[str, ...]:
    row = _as_mapping(item)
    if row is None:
        if isinstance(item, (tuple, list)):
            msg = "rows without names need columns="
            raise TypeError(msg)
        msg = f"a {type(item).__name__} is not a row: pass mappings, dataclass instances, or sequences"
        raise TypeError(msg)
    names = tuple(row)
    if not names or not all(isinstance(name, str) for name in names):
        msg = f"the first row does not name its columns: {names!r}"
        raise TypeError(msg)
    return names


# -- binary ---------------------------------------------------------------------------------------

# psycopg's dumpers, by oid. They are trusted with the types below only: some do not look at what
# they are given and would send a wrong value (an integer that does not fit, a text for an interval).
_TEXT, _BYTES = 25, 17
_INT_RANGE = {21: 2**15, 23: 2**31, 20: 2**63}
_BY_RECEIVER: Final[dict[str, tuple[int, frozenset[type]]]] = {
    "boolrecv": (16, frozenset({bool})),
    "int2recv": (21, frozenset({int})),
    "int4recv": (23, frozenset({int})),
    "int8recv": (20, frozenset({int})),
    "float8recv": (701, frozenset({float, int})),
    "numeric_recv": (1700, frozenset({Decimal, int})),
    "textrecv": (_TEXT, frozenset({str})),
    "varcharrecv": (_TEXT, frozenset({str})),
    "bpcharrecv": (_TEXT, frozenset({str})),
    "enum_recv": (_TEXT, frozenset({str})),
    "bytearecv": (_BYTES, frozenset({bytes, bytearray, memoryview})),
    "date_recv": (1082, frozenset({date})),
    "time_recv": (1083, frozenset({time})),
    "timetz_recv": (1266, frozenset({time})),
    "timestamp_recv": (1114, frozenset({datetime})),
    "timestamptz_recv": (1184, frozenset({datetime})),
    "interval_recv": (1186, frozenset({timedelta})),
    "uuid_recv": (2950, frozenset({UUID})),
    "jsonb_recv": (_BYTES, frozenset({dict, list, str, int, float, bool})),
}
# arrays by their oid: the oid of the elements, and their types
_ARRAYS: Final[dict[int, tuple[int, frozenset[type]]]] = {
    1005: (21, frozenset({int})),
    1007: (23, frozenset({int})),
    1016: (20, frozenset({int})),
    1022: (701, frozenset({float})),
    1009: (25, frozenset({str})),
    2951: (2950, frozenset({UUID})),
}
_NONE = type(None)


class NotBinary(Exception):  # noqa: N818
    """These rows cannot go through binary COPY as they are."""


class BinaryForm:
    """How records of these columns go through binary COPY.

    Args:
        columns: of each column its base type's oid and the name of the function that receives its
            binary form, which is what says how that form looks.

    Raises:
        NotBinary: a column's type has no binary form that is known here.
    """

    def __init__(self, columns: Sequence[tuple[int, str | None]]) -> None:
        self.oids: list[int] = []
        self._check: list[Callable[[Sequence[Any]], Sequence[Any]]] = []
        for oid, receiver in columns:
            if oid in _ARRAYS:
                self.oids.append(oid)
                self._check.append(_array_check(*_ARRAYS[oid]))
            elif receiver in _BY_RECEIVER:
                dumper, kinds = _BY_RECEIVER[receiver]
                self.oids.append(dumper)
                self._check.append(_scalar_check(receiver, dumper, kinds))
            else:
                raise NotBinary

    def fit(self, rows: Sequence[Record]) -> Sequence[Record]:
        """The rows with every value in a type that its column's dumper is right for.

        Raises:
            NotBinary: there is a value that is not, and that cannot be converted exactly.
        """
        before = list(zip(*rows, strict=True))
        after = [check(column) for check, column in zip(self._check, before, strict=True)]
        if all(a is b for a, b in zip(after, before, strict=True)):
            return rows
        return list(zip(*after, strict=True))


def _scalar_check(
    receiver: str, oid: int, kinds: frozenset[type]
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    limit = _INT_RANGE.get(oid)

    def check(column: Sequence[Any]) -> Sequence[Any]:
        found = set(map(type, column))
        if receiver == "numeric_recv" and float in found:
            column = [_exact(v) if type(v) is float else v for v in column]
            found = set(map(type, column))
        nulls = _NONE in found
        found.discard(_NONE)
        if not found <= kinds:
            raise NotBinary
        if limit is not None and found:
            values = [v for v in column if v is not None] if nulls else column
            if min(values) < -limit or max(values) >= limit:
                raise NotBinary
        if receiver == "jsonb_recv":
            return [None if v is None else b"\x01" + _document(v) for v in column]
        return column

    return check


def _array_check(oid: int, kinds: frozenset[type]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    limit = _INT_RANGE.get(oid)

    def check(column: Sequence[Any]) -> Sequence[Any]:
        if not set(map(type, column)) <= {list, _NONE}:
            raise NotBinary
        elements = list(chain.from_iterable([v for v in column if v]))
        if not set(map(type, elements)) <= kinds:
            raise NotBinary
        if limit is not None and elements and not -limit <= min(elements) <= max(elements) < limit:
            raise NotBinary
        return column

    return check


def _exact(value: float) -> Decimal:
    """The shortest decimal that is this float, as JSON would carry it."""
    return Decimal(repr(value))


def _document(value: Any) -> bytes:
    try:
        return _checked(_encode(value)).encode()
    except (TypeError, ValueError, RecursionError):
        raise NotBinary from None


# -- JSON -----------------------------------------------------------------------------------------


def json_rows(
    columns: Sequence[str], rows: Sequence[Record], documents: frozenset[str] | None
) -> tuple[str, dict[int, LedgerError]]:
    """The rows as text of a JSON array of objects, and an error for each index that has no form.

    Args:
        documents: the columns that hold JSON, in which a number that is not finite has no place;
            elsewhere it becomes the text that its column reads. None while that is not known.

    Raises:
        DocumentsWanted: `documents` is None and matters.
    """
    objects = _objects(columns, rows)
    try:
        return _checked(_encode(list(objects))), {}
    except (TypeError, ValueError, RecursionError):
        pass
    if documents is None:
        raise DocumentsWanted
    texts: list[str] = []
    refused: dict[int, LedgerError] = {}
    for n, row in enumerate(_objects(columns, rows)):
        try:
            plain = {k: v if k in documents else _finite(v) for k, v in row.items()}
            texts.append(_checked(_encode(plain)))
        except (TypeError, ValueError, RecursionError) as exc:  # noqa: PERF203
            hint = "Pass values that JSON can carry, and text without NUL characters."
            refused[n] = malformed(str(exc), hint)
    return f"[{','.join(texts)}]", refused


class DocumentsWanted(Exception):  # noqa: N818
    """Which columns hold JSON has to be known before these rows can be written."""


def _objects(columns: Sequence[str], rows: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {key: v for key, v in zip(columns, row, strict=True) if v is not ABSENT}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        return [_finite(element) for element in value]
    return value


def _checked(text: str) -> str:
    text.encode()  # unpaired surrogates
    if "\\u0000" in text and "\\u0000" in text.replace("\\\\", ""):
        msg = "a text holds a NUL character"
        raise ValueError(msg)
    return text


def _default(value: object) -> object:
    kind = type(value)
    if kind.__name__ in {"NaTType", "NAType"} and kind.__module__.startswith("pandas"):
        return None
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"\\x{bytes(value).hex()}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (Json, Jsonb)):
        return value.obj
    if isinstance(value, Mapping):
        return dict(value)
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    try:  # ranges, network addresses and whatever else psycopg knows
        data = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    except (psycopg.Error, AttributeError):
        data = None
    if data is not None:
        return bytes(data).decode()
    if isinstance(value, Iterable):
        return list(value)
    msg = f"a {kind.__name__} has no form that can be sent"
    raise TypeError(msg)


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
).encode
