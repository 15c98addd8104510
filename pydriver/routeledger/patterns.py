"""Patterns from files and from Qdrant: read them one by one, and turn each into a row to score.

Sources, told apart by name:

- ``*.jsonl``, ``*.ndjson``: a JSON object a line; ``*.csv``: a header and rows; both may be gzipped;
- ``*.parquet`` (``pip install 'routeledger[parquet]'``);
- a folder, the storage of Qdrant's local mode, or ``http://…``, ``https://…``, a Qdrant server
  (``pip install 'routeledger[qdrant]'``): both want the names of collections.

A source gives its records in one fixed order, each with the *position* to go on from after it, and
holds one page of them in memory. A record that cannot be read is given with the reason, and those
after it are read all the same.

What holds for all of them:

- the fields of a pattern are looked for under the names in :data:`FIELDS`: the first that is there
  and not empty. `Fields` says other names;
- text where a list belongs is a JSON array, or else the one item of it; text where an object
  belongs is a JSON object; so CSV, which has nothing but text, can say everything;
- a pattern is known by its UUID. An id that is none becomes the version 5 UUID of its text under
  :data:`NAMESPACE`, whatever source it came from. The number that Qdrant gave a point means
  something in its collection only, so it is taken as ``collection/number``. `original_id` in the
  row's metadata keeps the id as it was, and `pattern_name` the name;
- the measurement time is the record's own (ISO 8601, in UTC where it names no zone, or seconds or
  milliseconds since 1970); else the one that the caller gave; else, for a file, when it was last
  changed. It never is the time of the run: a source read twice gives the same rows.

A folder of Qdrant's local mode holds Python pickles: read only those that you trust.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from ._codec import dumps
from .errors import LedgerError, MalformedRow, MissingArgument

__all__ = [
    "FIELDS",
    "MAX_DEPTH",
    "MAX_RECORD_BYTES",
    "NAMESPACE",
    "CsvFile",
    "ExtraMissing",
    "Fields",
    "JsonLines",
    "ParquetFile",
    "Position",
    "Qdrant",
    "Record",
    "Row",
    "Source",
    "SourceError",
    "SourceUnavailable",
    "open_source",
    "parse_time",
    "pattern_uuid",
]

NAMESPACE = UUID("b6f7c0de-5d2a-4c39-9a1e-0f4e2c7d8a51")
"""The namespace of the version 5 UUIDs of patterns whose own id is none. It never changes."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "pattern_id": ("pattern_id",),
    "measurement_timestamp": ("measurement_timestamp", "updated_at", "created_at"),
    "confidence": ("confidence", "confidence_score"),
    "pattern_name": ("pattern_name", "name", "title"),
    "code": ("code", "code_snippet", "implementation", "source_code", "content"),
    "text": ("text", "documentation", "description"),
    "node_type": ("node_type", "node_types.0"),
    "use_cases": ("use_cases",),
    "examples": ("examples",),
    "metadata": ("metadata",),
    "complexity": ("complexity",),
}
"""Where each field of a pattern is looked for: dotted paths, the first that holds something.

Without ``pattern_id`` the id is the point's (Qdrant), or the field ``id`` (files).
"""

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""A record beyond this is refused: one line must not fill the memory of client and server."""

MAX_DEPTH = 500
"""A record nested deeper is refused: parsing it could exceed the stack of the server."""

PAGE = 256
_NAME_CHARACTERS = 200

Position = dict[str, Any]
"""Where a record ends, as a JSON object: what `Source.read` goes on after."""


class SourceError(LedgerError):
    """The source is not there, not readable, or of no known kind."""

    default_name = "source"


class ExtraMissing(SourceError):  # noqa: N818
    """The package that reads this kind of source is not installed."""

    default_name = "missing"


class SourceUnavailable(SourceError):  # noqa: N818
    """The Qdrant server does not answer."""

    default_name = "source_unavailable"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a source, or why it cannot be read.

    Attributes:
        place: where it is, for people: ``{"line": 7}``.
        position: to go on after it.
        done: how far the source is read, in the units of its ``total``.
        data: the record; None where ``problem`` says why there is none.
        id: the id that the source itself gave it (a point's).
        problem: why it cannot be read.
    """

    place: dict[str, Any]
    position: Position
    done: int
    data: dict[str, Any] | None = None
    id: object = None
    problem: str | None = None


class Source(Protocol):
    """What `open_source` gives.

    Attributes:
        name: which source it is, the same in every run.
        state: changes when the contents do, as far as that can be told without reading them.
        measured_at: when records without a time of their own were measured, if the source knows.
        total: how much there is to read, in the units of `Record.done`; None if unknown.
    """

    name: str
    state: dict[str, Any]
    measured_at: datetime | None
    total: int | None

    def read(
        self, after: Position | None = None, *, only: frozenset[str] = ...
    ) -> Iterator[Record]:
        """The records, all or those after a position.

        ``only``: the fields that are wanted, where the source can leave others out; all when empty.
        """
        ...

    def close(self) -> None:
        """Let go of connections and locks."""
        ...


def open_source(
    source: str, collections: Sequence[str] = (), *, api_key: str | None = None
) -> Source:
    """Open a file, a folder of Qdrant's local mode, or a Qdrant server, by what it is called.

    Raises:
        SourceError: it is not there, not readable, or of no known kind.
        ExtraMissing: the package that reads it is not installed.
        SourceUnavailable: the Qdrant server does not answer.
    """
    if source.startswith(("http://", "https://")):
        return Qdrant(source, collections, api_key=api_key)
    path = Path(source)
    if path.is_dir():
        return Qdrant(path, collections)
    if collections:
        raise SourceError(
            "only Qdrant has collections", hint="Leave --collection out, or give a folder or URL."
        )
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind in ("jsonl", "ndjson"):
        return JsonLines(path)
    if kind == "csv":
        return CsvFile(path)
    if kind == "parquet":
        return ParquetFile(path)
    raise SourceError(
        "the source is of no known kind",
        detail={"source": source},
        hint="Known are .jsonl, .ndjson and .csv, each with or without .gz, .parquet, a folder of "
        "Qdrant's local mode, and http(s)://… of a Qdrant server. A JSON array becomes JSON lines "
        "with: jq -c '.[]'",
    )


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ExtraMissing(
            "the package that reads this kind of source is not installed",
            detail={"package": module.split(".")[0].replace("_", "-")},
            hint=f"pip install 'routeledger[{extra}]'",
        ) from exc


def _unreadable(source: str | Path, reason: str, hint: str | None = None) -> SourceError:
    return SourceError(
        "the source cannot be read", detail={"source": str(source), "reason": reason}, hint=hint
    )


# -- files -----------------------------------------------------------------------------------------


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        with self._readable():
            found = path.stat()
            path.open("rb").close()
        self.name = str(path.resolve())
        self.state: dict[str, Any] = {"bytes": found.st_size, "changed_ns": found.st_mtime_ns}
        self.measured_at: datetime | None = _EPOCH + timedelta(
            microseconds=found.st_mtime_ns // 1000
        )
        self.total: int | None = found.st_size

    def close(self) -> None:
        """Files are closed when they are read to the end."""

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            raise _unreadable(self.path, str(exc)) from exc
        except OSError as exc:
            raise _unreadable(self.path, exc.strerror or str(exc)) from exc


class _Lines:
    """The lines of a file as bytes, with the offset after each and its number, from 1."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        self._file: IO[bytes] = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if zipped else raw
        self.offset = 0
        self.number = 0

    @property
    def done(self) -> int:
        """Bytes read of the file as it lies on disk."""
        return self.offset if self._file is self._raw else self._raw.tell()

    def go_to(self, offset: int, number: int) -> None:
        self._file.seek(offset)
        self.offset, self.number = offset, number

    def next(self) -> bytes | None:
        """The next line, None at the end. Raises ValueError, once, for one that is too long."""
        line = self._file.readline(MAX_RECORD_BYTES)
        if not line:
            return None
        self.offset += len(line)
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
            return line
        while line and not line.endswith(b"\n"):
            line = self._file.readline(MAX_RECORD_BYTES)
            self.offset += len(line)
        raise ValueError(_TOO_LONG)


_TOO_LONG = f"longer than {MAX_RECORD_BYTES:,} bytes"


class JsonLines(_File):
    """A JSON object a line. Empty lines are passed over."""

    def read(
        self,
        after: Position | None = None,
        *,
        only: frozenset[str] = frozenset(),  # noqa: ARG002 - a line is read whole
    ) -> Iterator[Record]:
        """The records; see `Source`."""
        with self._readable(), self.path.open("rb") as raw:
            lines = _Lines(raw)
            if after is not None:
                lines.go_to(after["offset"], after["line"])
            while True:
                problem, data = None, None
                try:
                    line = lines.next()
                    if line is None:
                        return
                    if not line.strip():
                        continue
                    data = _object(json.loads(line, parse_constant=_no_constant))
                except (ValueError, RecursionError) as exc:
                    problem = _reason(exc)
                yield Record(
                    {"line": lines.number},
                    {"offset": lines.offset, "line": lines.number},
                    lines.done,
                    data,
                    problem=problem,
                )


def _reason(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"not JSON: {exc.msg.removesuffix(' at')} at character {exc.pos + 1}"
    if isinstance(exc, UnicodeDecodeError):
        return f"not UTF-8: byte {exc.start + 1}"
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return str(exc)


def _no_constant(name: str) -> None:
    msg = f"not JSON: {name}"
    raise ValueError(msg)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        msg = f"not an object but {_kind(value)}"
        raise ValueError(msg)
    return value


class CsvFile(_File):
    """A CSV with a header, commas and double quotes. A place is the line that a row ends on."""

    def read(
        self,
        after: Position | None = None,
        *,
        only: frozenset[str] = frozenset(),  # noqa: ARG002 - a row is read whole
    ) -> Iterator[Record]:
        """The records; see `Source`."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        with self._readable(), self.path.open("rb") as raw:
            lines = _Lines(raw)
            rows = csv.reader(_Decoded(lines), strict=True)
            try:
                header = next(rows, [])
            except (csv.Error, ValueError) as exc:
                raise _unreadable(self.path, f"no header: {exc}") from exc
            if len(set(header)) < len(header) or not any(header):
                raise _unreadable(
                    self.path, "no header of distinct names", "The first line names the columns."
                )
            if after is not None:
                lines.go_to(after["offset"], after["line"])
            while True:
                problem, data = None, None
                try:
                    row = next(rows)
                    if not row:
                        continue
                    if len(row) != len(header):
                        msg = f"{len(row)} fields, and the header has {len(header)}"
                        raise ValueError(msg)
                    data = {name: cell for name, cell in zip(header, row, strict=True) if cell}
                except StopIteration:
                    return
                except (csv.Error, ValueError) as exc:
                    problem = _reason(exc)
                yield Record(
                    {"line": lines.number},
                    {"offset": lines.offset, "line": lines.number},
                    lines.done,
                    data,
                    problem=problem,
                )


class _Decoded:
    """Lines as text. What is wrong with one is raised, and the next call gives the next."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        line = self._lines.next()
        if line is None:
            raise StopIteration
        return line.decode()


class ParquetFile(_File):
    """A Parquet file, row group by row group; only the columns that are wanted are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrow = _package("pyarrow", "parquet")
        with self._open() as file:
            self._columns: list[str] = file.schema_arrow.names
            self.total = file.metadata.num_rows

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        parquet = _package("pyarrow.parquet", "parquet")
        try:
            with self._readable(), parquet.ParquetFile(self.path) as file:
                yield file
        except self._arrow.ArrowException as exc:
            raise _unreadable(self.path, str(exc)) from exc

    def read(
        self, after: Position | None = None, *, only: frozenset[str] = frozenset()
    ) -> Iterator[Record]:
        """The records; see `Source`."""
        done = 0 if after is None else int(after["row"])
        columns = [name for name in self._columns if name in only] if only else None
        with self._open() as file:
            first = 0  # row before the group
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                skip = max(0, done - first)
                first += rows
                if skip >= rows:
                    continue
                for batch in file.iter_batches(
                    batch_size=PAGE, row_groups=[group], columns=columns
                ):
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        continue
                    for data, problem in self._rows(batch.slice(skip)):
                        done += 1
                        yield Record({"row": done}, {"row": done}, done, data, problem=problem)
                    skip = 0

    def _rows(self, batch: Any) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
        arrow = self._arrow
        # Python's times end at microseconds
        batch = batch.cast(
            arrow.schema(
                [
                    f.with_type(arrow.timestamp("us", f.type.tz))
                    if arrow.types.is_timestamp(f.type)
                    else f
                    for f in batch.schema
                ]
            ),
            safe=False,
        )
        try:
            for data in batch.to_pylist(maps_as_pydicts="lossy"):
                yield data, None
        except (ValueError, OverflowError, arrow.ArrowException):
            if batch.num_rows == 1:
                yield None, "a value that Python has no form for"
                return
            for n in range(batch.num_rows):
                yield from self._rows(batch.slice(n, 1))


# -- Qdrant ----------------------------------------------------------------------------------------


class Qdrant:
    """Collections of a Qdrant server (a URL) or of a folder of its local mode (a path).

    The local mode loads all of its collections into memory, and locks the folder.
    """

    def __init__(
        self, where: str | Path, collections: Sequence[str], *, api_key: str | None = None
    ) -> None:
        package = _package("qdrant_client", "qdrant")
        self._errors = _package("qdrant_client.http.exceptions", "qdrant")
        if isinstance(where, Path):
            self.name = str(where.resolve())
            if not (where / "meta.json").is_file():
                # the client would make an empty database of whatever folder it is given
                raise _unreadable(where, "a folder without meta.json is none of Qdrant's")
            options: dict[str, Any] = {"path": str(where)}
        else:
            parts = urlsplit(where)
            self.name = f"{parts.scheme}://{parts.hostname}:{parts.port or 6333}{parts.path}"
            options = {
                "url": where,
                "api_key": api_key,
                "timeout": 60,
                "check_compatibility": False,
            }
        self._collections = list(dict.fromkeys(collections))
        self.state: dict[str, Any] = {"collections": self._collections}
        self.measured_at: datetime | None = None
        self.total: int | None = 0
        self._client: Any = None
        try:
            with self._answering():
                try:
                    self._client = package.QdrantClient(**options)
                except (RuntimeError, ValueError, OSError) as exc:  # such as locked by another
                    raise _unreadable(self.name, str(exc)) from exc
                there = sorted(c.name for c in self._client.get_collections().collections)
                absent = [name for name in self._collections if name not in there]
                if absent or not self._collections:
                    raise SourceError(
                        "there is no such collection" if absent else "no collection is named",
                        detail={"source": self.name, "absent": absent, "there": there[:100]},
                        hint="Name one or several of those that are there with --collection.",
                    )
                for name in self._collections:
                    self.total += self._client.count(name, exact=False).count
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._errors.ResponseHandlingException as exc:
            raise SourceUnavailable(
                "Qdrant does not answer",
                detail={"source": self.name, "reason": str(exc)},
                hint="Check the URL and that the server is up, then run the same command again.",
            ) from exc
        except self._errors.UnexpectedResponse as exc:
            kind = SourceError if exc.status_code < 500 else SourceUnavailable
            raise kind(
                "Qdrant refuses the request",
                detail={
                    "source": self.name,
                    "status": exc.status_code,
                    "reason": exc.reason_phrase,
                },
                hint="The API key is taken from QDRANT_API_KEY."
                if exc.status_code in (401, 403)
                else None,
            ) from exc

    def close(self) -> None:
        """Let go of the folder or of the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def read(
        self, after: Position | None = None, *, only: frozenset[str] = frozenset()
    ) -> Iterator[Record]:
        """The records, by collection and in order of their ids; see `Source`."""
        names, offset, done = self._collections, None, 0
        if after is not None:
            names = names[names.index(after["collection"]) :]
            offset, done = after["point"], int(after["done"])
        for name in names:
            passed = offset
            while True:
                with self._answering():
                    page, following = self._client.scroll(
                        name,
                        limit=PAGE,
                        offset=offset,
                        with_payload=sorted(only) if only else True,
                        with_vectors=False,
                    )
                for point in page:
                    if point.id == passed:
                        continue  # a page begins with its offset
                    done += 1
                    yield Record(
                        {"collection": name, "point": point.id},
                        {"collection": name, "point": point.id, "done": done},
                        done,
                        point.payload or {},
                        id=f"{name}/{point.id}" if isinstance(point.id, int) else point.id,
                    )
                offset = following
                if offset is None:
                    break


# -- from records to rows --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A record as ``score_patterns`` takes it: JSON text, and whether its id was mapped."""

    json: str
    pattern_id: UUID
    mapped: bool


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the fields of a pattern are in a record, and when records without a time were measured.

    Attributes:
        paths: by field, dotted paths that take the place of those in :data:`FIELDS`; none at all
            leaves the field out.
        measured_at: for records without a time of their own.
    """

    paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    measured_at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse fields that a pattern does not have, with ValueError."""
        unknown = sorted(set(self.paths) - set(FIELDS))
        if unknown:
            msg = f"no field {unknown[0]}; there are: {', '.join(FIELDS)}"
            raise ValueError(msg)

    @property
    def wanted(self) -> frozenset[str]:
        """The top-level names that are looked at."""
        paths = [path for name in FIELDS for path in self._paths(name)]
        return frozenset({path.split(".")[0] for path in paths} | set(paths) | {"id"})

    def row(self, record: Record) -> Row:
        """The row of a record.

        Raises:
            MissingArgument: there is no id, or no time.
            MalformedRow: something in it is not what it should be, or cannot travel.
        """
        if record.data is None:
            raise _malformed(None, record.problem or "unreadable")
        data = record.data
        given = self._find(data, "pattern_id")
        if given is None:
            given = record.id if record.id is not None else _dig(data, "id")
        if _absent(given):
            raise _missing("pattern_id", "Name it with --field pattern_id=PATH.")
        pattern_id, original = pattern_uuid(given)
        row: dict[str, Any] = {
            "pattern_id": str(pattern_id),
            "pattern": self.pattern(data),
            "measurement_timestamp": self._measured_at(data),
        }
        confidence = self._find(data, "confidence")
        if confidence is not None:
            row["confidence"] = _number("confidence", confidence)
        metadata = {} if original is None else {"original_id": original}
        if name := row["pattern"].get("pattern_name"):
            metadata["pattern_name"] = name[:_NAME_CHARACTERS]
        if metadata:
            row["metadata"] = metadata
        text = dumps(row)
        if text.count("{") + text.count("[") > MAX_DEPTH and _deeper(row, MAX_DEPTH):
            raise _malformed(None, f"nested more than {MAX_DEPTH} deep")
        if len(text) > MAX_RECORD_BYTES // 4 and len(text.encode()) > MAX_RECORD_BYTES:
            raise _malformed(None, _TOO_LONG)
        return Row(text, pattern_id, original is not None)

    def pattern(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What ``score_pattern`` scores, of a record; absent fields are left out.

        Raises:
            MalformedRow: something in it is not what it should be.
        """
        pattern: dict[str, Any] = {}
        for name in ("pattern_name", "code", "text", "node_type", "complexity"):
            if (value := self._find(data, name)) is not None:
                pattern[name] = _text(name, value)
        for name in ("use_cases", "examples"):
            if (value := self._find(data, name)) is not None:
                pattern[name] = _items(value)
        if (value := self._find(data, "metadata")) is not None:
            pattern["metadata"] = _document("metadata", value)
        return pattern

    def _paths(self, name: str) -> Sequence[str]:
        return self.paths.get(name, FIELDS[name])

    def _find(self, data: Mapping[str, Any], name: str) -> Any:
        for path in self._paths(name):
            if not _absent(value := _dig(data, path)):
                return value
        return None

    def _measured_at(self, data: Mapping[str, Any]) -> str:
        value = self._find(data, "measurement_timestamp")
        if value is not None:
            return _time("measurement_timestamp", value).isoformat()
        if self.measured_at is None:
            raise _missing(
                "measurement_timestamp",
                "Say when it was measured with --measured-at TIME, or which field says so with "
                "--field measurement_timestamp=PATH.",
            )
        return self.measured_at.isoformat()


def pattern_uuid(given: object) -> tuple[UUID, str | None]:
    """The UUID of a pattern's id, and the id as it was where it had to be mapped.

    A UUID may be written with or without hyphens, in braces, or as an URN.

    Raises:
        MalformedRow: it is neither text nor a whole number.
    """
    if isinstance(given, UUID):
        return given, None
    if isinstance(given, bytes) and len(given) == 16:
        return UUID(bytes=given), None
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str):
        raise _malformed("pattern_id", f"an id is text or a whole number, not {_kind(given)}")
    found = _UUID.fullmatch(given)
    if found:
        return UUID(found[2]), None
    try:
        return uuid5(NAMESPACE, given), given
    except UnicodeEncodeError:
        raise _malformed("pattern_id", "an unpaired surrogate") from None


_UUID = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})(?(1)\})",
    re.IGNORECASE,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


# -- values ----------------------------------------------------------------------------------------


def _dig(data: object, path: str) -> Any:
    """What is at a dotted path, None if nothing; a key that holds the dots itself comes first."""
    if isinstance(data, Mapping):
        if path in data:
            return data[path]
        key, dot, rest = path.partition(".")
        return _dig(data[key], rest) if dot and key in data else None
    if isinstance(data, list):
        key, _, rest = path.partition(".")
        if key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < len(data):
            return _dig(data[int(key)], rest) if rest else data[int(key)]
    return None


def _deeper(value: object, limit: int) -> bool:
    """Whether objects and lists lie in one another more than so many times. Does not recurse."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _absent(value: object) -> bool:
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return math.isnan(value)  # how data frames say that there is nothing
    return value is None or (isinstance(value, (list, dict)) and not value)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return str(value)
    raise _malformed(name, f"not text but {_kind(value)}")


def _items(value: object) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value, parse_constant=_no_constant)
    return value if isinstance(value, list) else [value]


def _document(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as exc:
            raise _malformed(name, _reason(exc)) from None
    if not isinstance(value, dict):
        raise _malformed(name, f"not an object but {_kind(value)}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, (str, int, float, Decimal)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise _malformed(name, f"not a number: {_shown(value)}")


_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)? ?(?:(Z|UTC)|([+-])(\d\d):?(\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_MILLISECONDS_FROM = 100_000_000_000  # as seconds, a time in the year 5138


def _time(name: str, value: object) -> datetime:
    """An instant in UTC. Raises MalformedRow for what is none."""
    try:
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).astimezone(
                timezone.utc
            )
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
        if isinstance(value, str):
            text = value.strip()
            if found := _TIME.fullmatch(text):
                *parts, fraction, _, sign, hours, minutes = found.groups()
                offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
                micros = int((fraction or "0")[:6].ljust(6, "0"))
                year, month, day, hour, minute, second = (int(part or 0) for part in parts)
                local = datetime(year, month, day, hour, minute, second, micros, timezone.utc)
                return local + offset if sign == "-" else local - offset
            value = Decimal(text)
        if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
            since = Decimal(value)
            if abs(since) >= _MILLISECONDS_FROM:
                since /= 1000
            return _EPOCH + timedelta(microseconds=int(since * 1_000_000))
    except (ValueError, ArithmeticError):
        pass
    raise _malformed(name, f"not a time: {_shown(value)}")


def parse_time(text: str) -> datetime:
    """An instant that somebody typed, as in a record. Raises ValueError."""
    try:
        return _time("time", text)
    except MalformedRow as exc:
        raise ValueError(exc.detail["reason"]) from None


def _kind(value: object) -> str:
    names = {
        bool: "true or false", int: "a number", float: "a number", Decimal: "a number", str: "text",
        list: "a list", dict: "an object", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), f"of type {type(value).__name__}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _malformed(name: str | None, reason: str) -> MalformedRow:
    return MalformedRow(
        "a record does not have the shape of a pattern",
        detail={"reason": reason} if name is None else {"field": name, "reason": reason},
        hint="Correct the record, or name another field with --field.",
    )


def _missing(name: str, hint: str) -> MissingArgument:
    return MissingArgument("a record lacks what it needs", detail={"field": name}, hint=hint)
