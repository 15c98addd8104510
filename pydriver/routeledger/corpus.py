"""The labelled corpus as a file: Parquet or JSON lines, with a manifest beside it.

An export is one snapshot of the ledger (REPEATABLE READ), read in pages and written as it arrives, so
that its memory does not grow with its rows. It is written under another name and takes its own when
it is whole. The same labels give the same bytes, and the same content hash in either format.

The content hash is the SHA-256 of the canonical lines: a JSON object a row in order of the ids, each
with a line feed after it; keys as in :data:`COLUMNS`; no blanks between values; text with no escape
but those that JSON demands; numbers as PostgreSQL prints them; times in UTC with six decimals and Z;
JSON documents as PostgreSQL prints a jsonb. A file of JSON lines is these lines, and its SHA-256 the hash.

Parquet has a column for each, JSON documents and ids as text. It takes ``pip install
'routeledger[parquet]'``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, Any, Literal, cast

import psycopg
from psycopg.rows import dict_row

from ._version import __version__
from .errors import LedgerError, translate
from .install import Target, connection

__all__ = ["COLUMNS", "Exported", "Format", "Verified", "export_corpus", "manifest_of", "verify"]

Format = Literal["parquet", "jsonl"]
Kind = Literal["text", "integer", "double", "decimal", "time", "json"]

COLUMNS: dict[str, Kind] = {
    "tenant_id": "text",
    "id": "text",
    "agent_id": "text",
    "task_type": "text",
    "traffic_class": "text",
    "decision_rule": "text",
    "policy_version": "text",
    "ruleset_hash": "text",
    "min_quality": "double",
    "propensity": "double",
    "candidates": "json",
    "metadata": "json",
    "event_at": "time",
    "completed_at": "time",
    "attempts": "integer",
    "inference_id": "text",
    "attempt_no": "integer",
    "model_slug": "text",
    "provider": "text",
    "response_model": "text",
    "input_tokens": "integer",
    "output_tokens": "integer",
    "cache_read_input_tokens": "integer",
    "cache_creation_input_tokens": "integer",
    "reasoning_output_tokens": "integer",
    "cost_usd": "decimal",
    "cost_source": "text",
    "cost_flag": "text",
    "latency_ms": "double",
    "ttft_ms": "double",
    "reward": "double",
    "reward_source": "text",
    "verdict_n": "integer",
    "verdicts": "json",
    "request": "json",
    "response": "json",
}
"""The columns of ``routeledger.export_corpus``; request and response only with payloads."""

PAYLOADS = ("request", "response")
PAGE = 10_000
PAGE_WITH_PAYLOADS = 500
BATCH_ROWS = 2_000
BATCH_CHARACTERS = 4 * 1024 * 1024
GROUP_ROWS = 50_000
GROUP_BYTES = 32 * 1024 * 1024
COST_PLACES = 18

Row = Sequence[str | None]

_FILTERS = """
  p_tenant_id => %(tenant)s, p_from => %(from)s::date, p_to => %(to)s::date,
  p_traffic_class => %(traffic_class)s::text[], p_mix_synthetic => %(mix_synthetic)s::boolean,
  p_reward_source => %(reward_source)s::text[], p_task_type => %(task_type)s
"""
_MANIFEST = f"""
select m.*, routeledger.clock() as taken_at from routeledger.corpus_manifest({_FILTERS}) m
"""  # noqa: S608
_PAGE = f"""
copy (
  select {{shown}} from routeledger.export_corpus(
    {_FILTERS}, p_payloads => %(payloads)s::boolean, p_after => %(after)s::uuid,
    p_limit => %(limit)s::integer) e
) to stdout
"""  # noqa: S608
# what text depends on
_SETTINGS = (
    "set local extra_float_digits = 1; set local datestyle = iso; set local timezone = 'UTC'"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A corpus that was written: the file, its manifest's file, and what the manifest says."""

    path: Path
    manifest_path: Path
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verified:
    """A corpus file read again: whether ``rows`` and ``content_sha256`` are those of its manifest."""

    path: Path
    rows: int
    content_sha256: str
    manifest: dict[str, Any]

    @property
    def agrees(self) -> bool:
        """Whether the file is what its manifest says."""
        return (self.rows, self.content_sha256) == (
            self.manifest["rows"],
            self.manifest["content_sha256"],
        )


def manifest_of(path: Path) -> Path:
    """Where the manifest of a corpus file is."""
    return path.with_name(path.name + ".manifest.json")


def export_corpus(
    target: Target,
    tenant: str,
    out: str | os.PathLike[str],
    *,
    format: Format | None = None,  # noqa: A002 - as the option is called
    begin: date | None = None,
    end: date | None = None,
    traffic_class: Sequence[str] = ("production",),
    mix_synthetic: bool = False,
    reward_source: Sequence[str] | None = None,
    task_type: str | None = None,
    payloads: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write the labelled, linked outcomes of ``tenant`` to ``out``, and a manifest beside it.

    Args:
        target: a DSN (None: libpq's environment) or a connection outside a transaction.
        out: the file; one that is there is replaced when the new one is whole.
        format: ``parquet`` or ``jsonl``; by default what the file is named.
        begin, end: decided from this day up to, not including, that one (UTC).
        traffic_class: production, shadow, synthetic, replay.
        mix_synthetic: allows synthetic or replay beside production or shadow.
        reward_source: judge, human; None for both.
        task_type: only this one.
        payloads: with requests, responses and the rationales of the verdicts.
        progress: told how many rows of how many are written.

    Raises:
        EmptyCorpus: nothing passes the filters; no file is written.
        ValueError: ``out`` or ``format`` will not do, or another export is writing there.
        ModuleNotFoundError: Parquet without pyarrow.
        LedgerError: what the ledger refuses.
    """
    path = Path(out)
    chosen = _format_of(path, format)
    if path.exists() and not path.is_file():
        msg = f"{path} is no file"
        raise ValueError(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent}"
        raise ValueError(msg)
    columns = [name for name in COLUMNS if payloads or name not in PAYLOADS]
    if chosen == "parquet":
        _arrow()
    filters = {
        "tenant": tenant,
        "from": begin,
        "to": end,
        "traffic_class": list(traffic_class),
        "mix_synthetic": mix_synthetic,
        "reward_source": None if reward_source is None else list(reward_source),
        "task_type": task_type,
    }
    with _translated(), connection(target) as conn, conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute(_SETTINGS)
        with conn.cursor(row_factory=dict_row) as cursor:
            counted = cursor.execute(_MANIFEST.encode(), filters).fetchone()
        assert counted is not None
        total = counted["outcomes"]
        tell = progress or (lambda *_: None)
        tell(0, total)
        with _whole(path) as file:
            lines = _Lines(columns)
            writing = _Parquet(file, columns) if chosen == "parquet" else contextlib.nullcontext()
            pages = contextlib.closing(_rows(conn, filters, columns, payloads))
            with writing as table, pages as rows:
                for batch in _batches(rows):
                    text = lines.add(batch)
                    if table is None:
                        file.write(text)
                    else:
                        table.write(batch)
                    tell(lines.rows, total)
            if lines.rows != total:
                raise LedgerError(
                    "the pages of the corpus are not those of one snapshot",
                    detail={"counted": total, "read": lines.rows},
                    hint="Connect without a pooler that shares a connection by statement.",
                )
            manifest = _manifest(counted, chosen, path, lines, file.tell(), payloads)
            # a manifest never stands beside another file than its own
            manifest_of(path).unlink(missing_ok=True)
    with _whole(manifest_of(path)) as file:
        file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
    return Exported(path, manifest_of(path), manifest)


def verify(path: str | os.PathLike[str]) -> Verified:
    """Read a corpus file and its manifest, and make the content hash anew.

    Raises:
        OSError: one of the two is not there.
        ValueError: one of them cannot be read.
        ModuleNotFoundError: Parquet without pyarrow.
    """
    file = Path(path)
    manifest = json.loads(manifest_of(file).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not {"format", "rows", "content_sha256"} <= set(manifest):
        msg = f"{manifest_of(file)} is no manifest of a corpus"
        raise ValueError(msg)
    if manifest["format"] == "parquet":
        return _verify_parquet(file, manifest)
    digest, rows = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
            rows += block.count(b"\n")
    return Verified(file, rows, digest.hexdigest(), manifest)


def _format_of(path: Path, given: str | None) -> Format:
    name = given or path.suffix.removeprefix(".")
    if name not in ("parquet", "jsonl"):
        raise ValueError(
            f"{name!r} is neither parquet nor jsonl"
            if given or name
            else f"{path.name} does not say whether it is parquet or jsonl"
        )
    return cast("Format", name)


def _manifest(
    counted: dict[str, Any], chosen: Format, path: Path, lines: _Lines, size: int, payloads: bool
) -> dict[str, Any]:
    def plain(value: object) -> object:
        if isinstance(value, (datetime, date)):
            return value.isoformat()
        return float(value) if isinstance(value, Decimal) else value

    facts = {name: plain(value) for name, value in counted.items()}
    return {
        "routeledger": __version__,
        "file": path.name,
        "format": chosen,
        "bytes": size,
        "rows": lines.rows,
        "content_sha256": lines.digest.hexdigest(),
        "columns": list(lines.columns),
        "taken_at": facts["taken_at"],
        "filters": {
            "tenant_id": facts["tenant_id"],
            "from": facts["from_day"],
            "to": facts["to_day"],
            "traffic_class": facts["traffic_class"],
            "mix_synthetic": facts["mix_synthetic"],
            "reward_source": facts["reward_source"],
            "task_type": facts["task_type"],
            "payloads": payloads,
        },
        "first_id": str(facts["first_id"]),
        "last_id": str(facts["last_id"]),
        **{
            name: facts[name]
            for name in (
                "verdicts", "mean_reward", "cost_usd", "input_tokens", "output_tokens", "models",
                "task_types", "traffic_classes", "reward_sources", "judges", "left_out",
            )
        },
    }  # fmt: skip


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


# -- from the ledger -------------------------------------------------------------------------------


def _rows(
    conn: Any, filters: dict[str, Any], columns: Sequence[str], payloads: bool
) -> Generator[Row, None, None]:
    """The rows as the text that PostgreSQL prints, page after page, one at a time in memory."""
    shown = ", ".join(
        f"""to_char(e.{name} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        if COLUMNS[name] == "time"
        else f"e.{name}"
        for name in columns
    )
    query = _PAGE.format(shown=shown).encode()
    limit = PAGE_WITH_PAYLOADS if payloads else PAGE
    place = columns.index("id")
    after: str | None = None
    read = limit
    while read == limit:
        read = 0
        row: Row = ()
        with (
            conn.cursor() as cursor,
            cursor.copy(
                query, {**filters, "payloads": payloads, "after": after, "limit": limit}
            ) as copy,
        ):
            for row in copy.rows():
                read += 1
                yield row
        if read:
            after = row[place]


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in batches of bounded size; the same rows, the same batches."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(map(len, filter(None, row)))
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Lines:
    """The canonical lines of rows, and their hash and number so far."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.digest = hashlib.sha256()
        self.rows = 0
        self._form = "{" + ",".join(f"{encode_basestring(name)}:%s" for name in columns) + "}\n"
        quoted = ("text", "time")
        self._encoders = [encode_basestring if COLUMNS[name] in quoted else str for name in columns]

    def add(self, rows: Sequence[Row]) -> bytes:
        """The lines of these rows."""
        form, encoders = self._form, self._encoders
        text = "".join(
            [
                form
                % tuple(
                    [
                        "null" if value is None else encode(value)
                        for encode, value in zip(encoders, row, strict=True)
                    ]
                )
                for row in rows
            ]
        ).encode()
        self.digest.update(text)
        self.rows += len(rows)
        return text


# -- to a file -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is written to the end, and else is gone.

    What a killed process leaves is hidden under one name, which the next export takes over.
    """
    scratch = path.with_name(f".{path.name}.part")
    file = _locked(scratch)
    with file:
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    # so that the name outlives a power cut, where folders can be synced
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _locked(scratch: Path) -> IO[bytes]:
    """The file of that name, locked; what another process has locked or renamed meanwhile is not it."""
    while True:
        file = os.fdopen(os.open(scratch, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), scratch.stat()):
                    return file
        except BlockingIOError as exc:
            file.close()
            msg = f"another export is writing {scratch}"
            raise ValueError(msg) from exc
        file.close()


class _Parquet:
    """Parquet, in row groups of bounded size."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self._arrow, parquet = _arrow()
        self._schema = self._arrow.schema([(name, self._type(name)) for name in columns])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._group: list[Any] = []

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Add these rows."""
        arrays = [
            self._arrow.array(values, self._arrow.string()).cast(field.type)
            for values, field in zip(zip(*rows, strict=True), self._schema, strict=True)
        ]
        self._group.append(self._arrow.record_batch(arrays, schema=self._schema))
        if (
            sum(batch.num_rows for batch in self._group) >= GROUP_ROWS
            or sum(batch.nbytes for batch in self._group) >= GROUP_BYTES
        ):
            self._flush()

    def _flush(self) -> None:
        if self._group:
            table = self._arrow.Table.from_batches(self._group)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._group = []

    def _type(self, name: str) -> Any:
        arrow = self._arrow
        return {
            "text": arrow.string,
            "json": arrow.string,
            "integer": arrow.int64,
            "double": arrow.float64,
            "decimal": lambda: arrow.decimal128(38, COST_PLACES),
            "time": lambda: arrow.timestamp("us", "UTC"),
        }[COLUMNS[name]]()


def _arrow() -> tuple[Any, Any]:
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


# -- and back --------------------------------------------------------------------------------------


def _verify_parquet(path: Path, manifest: dict[str, Any]) -> Verified:
    _, parquet = _arrow()
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if not set(columns) <= set(COLUMNS):
            msg = f"{path} is no corpus: its columns are others"
            raise ValueError(msg)
        lines = _Lines(columns)
        # never more than a row group at a time: a batch would go on into the next ones
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                texts = [
                    [None if value is None else _TEXTS[COLUMNS[name]](value) for value in values]
                    for name, values in zip(
                        columns, (column.to_pylist() for column in batch.columns), strict=True
                    )
                ]
                lines.add(list(zip(*texts, strict=True)))
    return Verified(path, lines.rows, lines.digest.hexdigest(), manifest)


_TEXTS: dict[Kind, Callable[[Any], str]] = {
    "text": str,
    "json": str,
    "integer": str,
    # PostgreSQL prints as Python does below 1e15, but for the point; the ledger keeps none above 1e12
    "double": lambda value: repr(value).removesuffix(".0"),
    "decimal": lambda value: format(value.normalize(), "f"),
    "time": lambda value: value.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
}
