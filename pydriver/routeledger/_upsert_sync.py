# Generated from pydriver/routeledger/_upsert_async.py by `make sync`: edit that, not this.
"""The upsert of a stream of rows: chunk by chunk, each in a transaction of its own.

A chunk is copied in binary into a temporary table and merged from there; a small one, one whose
rows differ in their columns, and one that COPY will not take go as JSON, so that bad rows are
refused one by one and their neighbours are written. The merge is a total order, so a chunk may be
repeated whole, and the order in which chunks arrive does not matter: that is what retries and
working on several connections rest on.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from operator import itemgetter
from typing import Any, Protocol

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from . import _calls
from ._frames import Frame, frame_of
from ._rows import BinaryForm, Chunk, DocumentsWanted, NotBinary, RowReader, json_rows
from ._threads import Cancelled, Slots, Worker, give_way, sleep
from .errors import LedgerError, translate
from .types import Refusal, UpsertProgress, UpsertResult

Conn = Connection[Any]
Progress = Callable[[UpsertProgress], object]

logger = logging.getLogger("routeledger")

MOST_REFUSALS = 10_000
"""How many refusals a result holds; all of them are counted."""

MOST_ROWS = 100_000
"""Most rows that one call of the routine takes, and a chunk may have to go as one."""

_BLOCK = 4096  # rows read, or converted, before others have their turn
_TRIES = 5
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 2.0
_NOTHING = (0, 0, 0, 0, 0, 0, ())
# what psycopg's dumpers raise at a value that they cannot dump
_DUMP_ERRORS = (TypeError, ValueError, OverflowError, AttributeError, IndexError, struct.error)


class Schematic(Protocol):
    """What Arrow's tables and batches have."""

    @property
    def schema(self) -> Any:
        """The columns."""


Rows = Iterable[Any] | Schematic
"""Rows, a frame of them, or an iterable of frames."""


class Source:
    """Cuts whatever holds rows into chunks."""

    def __init__(self, rows: Rows, columns: Sequence[str] | None) -> None:
        self._given = None if columns is None else tuple(columns)
        self._reader = RowReader(self._given)
        self._frame: Frame | None = None
        self._frames = False
        self._started = False
        self._number = 0
        self._next = 1
        self.columns: tuple[str, ...] | None = self._given
        self.total: int | None = None
        self._items: Any = iter(())
        frame = frame_of(rows)
        if frame is not None:
            self.total = frame.length
            self._begin(frame)
        elif isinstance(rows, Iterable):
            with contextlib.suppress(TypeError):
                self.total = len(rows)  # type: ignore[arg-type]
            self._items = iter(rows)
        else:
            msg = f"a {type(rows).__name__} holds no rows: pass an iterable of rows, or a frame"
            raise TypeError(msg)

    def chunk(self, limit: int) -> Chunk:
        """The next rows, at most `limit`; the last chunk may be empty."""
        self._number += 1
        chunk = Chunk(self._number, self._next)
        while chunk.size < limit:
            want = min(_BLOCK, limit - chunk.size)
            if self._frame is not None:
                records = self._frame.take(want, self.columns or ())
                if records:
                    chunk.extend(records)
                    give_way()
                    continue
                self._frame = None
            items = self._pull(want if self._started and not self._frames else 1)
            if not items:
                chunk.last = True
                break
            if self._frames or not self._started:
                self._started = True
                frame = frame_of(items[0])
                self._frames = frame is not None or self._frames
                if self._frames:
                    self._begin(frame)
                    continue
            self._reader.read(items, chunk)
            self.columns = self._reader.columns
            give_way()
        self._next += chunk.size
        return chunk

    def _begin(self, frame: Frame | None) -> None:
        if frame is None:
            msg = "a stream that begins with a frame holds frames only"
            raise TypeError(msg)
        if self.columns is None:
            self.columns = frame.columns
        missing = [name for name in self.columns if name not in frame.columns]
        if missing or (self._given is None and len(frame.columns) != len(self.columns)):
            msg = f"a frame has the columns {frame.columns!r} where {self.columns!r} are written"
            raise TypeError(msg)
        self._frame = frame

    def _pull(self, number: int) -> list[Any]:
        return list(islice(self._items, number))


class Upsert:
    """One call of `upsert`.

    Args:
        pool: where connections come from, unless `conn` is given.
        timeout: seconds to wait for a connection.
        options: parameters of the routine, but the rows and the batch id.
        chunk_rows: rows of a transaction, about: dealt rows never come out even.
        connections: parts of chunks on their way at the same time.
        copy_threshold: rows from which a chunk is copied.
    """

    def __init__(
        self,
        pool: ConnectionPool[Conn],
        options: Mapping[str, Any],
        *,
        timeout: float,
        batch_id: str | None,
        progress: Progress | None,
        chunk_rows: int,
        connections: int,
        copy_threshold: int,
        conn: Conn | None,
    ) -> None:
        if not 1 <= chunk_rows <= MOST_ROWS or connections < 1 or copy_threshold < 0:
            msg = (
                f"chunk_rows is from 1 to {MOST_ROWS}, connections at least 1, "
                "copy_threshold at least 0"
            )
            raise ValueError(msg)
        self._pool = pool
        self._options = options
        self._timeout = timeout
        self._batch_id = batch_id
        self._progress = progress
        self._chunk_rows = chunk_rows
        self._copy_threshold = copy_threshold
        self._conn = conn
        if conn is not None or options["on_tie"] != "greatest_row":
            connections = 1  # what came later wins, or loses, so the order matters
        self._connections = min(connections, pool.max_size)
        # Rows of one key always take the same lane: two connections that brought a new key at the
        # same time would wait for each other, and one would have to begin again.
        self._lanes = [Slots(1) for _ in range(self._connections)]
        self._key: Callable[[Any], Any] | None = None
        self._columns: tuple[str, ...] | None = None
        self._table: sql.Identifier | None = None
        self._documents: frozenset[str] | None = None
        self._error: BaseException | None = None
        self._done: deque[tuple[Any, ...]] = deque()
        self._counts = [0] * 6
        self._refusals: list[Refusal] = []
        self._chunks = 0

    def run(self, rows: Rows, columns: Sequence[str] | None) -> UpsertResult:
        """Write them all."""
        try:
            self._write_all(Source(rows, columns))
        except BaseException as exc:
            self._count()
            with contextlib.suppress(AttributeError):
                exc.partial = self._result()  # type: ignore[attr-defined]
            raise
        return self._result()

    def _write_all(self, source: Source) -> None:
        workers: list[Worker] = []
        begun = Slots(0)
        try:
            while not self._failed():
                chunk = source.chunk(self._limit())
                self._columns = source.columns
                # The first chunk of a batch goes alone: it tells whether the batch has been
                # applied in other chunks before, which no other may find out too late.
                few = chunk.last and chunk.size <= self._chunk_rows
                first = chunk.number == 1 and (few or self._batch_id is not None)
                if first or self._connections == 1:
                    if chunk.size or chunk.number == 1:
                        self._write(chunk)
                        self._report(source)
                else:
                    if chunk.number == 1:
                        self._learn_key()
                    workers = [worker for worker in workers if not worker.ended()]
                    parts = self._parts(chunk)
                    for lane, part in parts:
                        work = partial(self._work, part, lane, begun)
                        workers.append(Worker(work, "routeledger-upsert"))
                    for _ in parts:  # before more is read
                        begun.take()
                    self._report(source)
                if chunk.last:
                    break
        except Cancelled as exc:
            self._error = self._error or exc  # what has not begun yet never does
            for worker in workers:
                worker.cancel()
            raise
        finally:
            for worker in workers:
                worker.join()
        if self._error is not None:
            raise self._error
        self._report(source)

    def _limit(self) -> int:
        """How many rows to read at once: of those that are dealt, a chunk for each lane.

        Held are at most twice as many, those on their way and those that are read meanwhile.
        """
        if self._connections == 1 or self._batch_id is not None:
            return self._chunk_rows
        return min(MOST_ROWS, self._chunk_rows * self._connections)

    def _failed(self) -> bool:
        return self._error is not None

    def _work(self, chunk: Chunk, lane: Slots, begun: Slots) -> None:
        lane.take()
        begun.give(1)
        try:
            if not self._failed():
                self._write(chunk)
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            self._error = self._error or exc
        finally:
            lane.give(1)

    def _learn_key(self) -> None:
        """Find out by which columns rows are dealt to the lanes; of an expression by none."""
        params = {**self._options, "columns": list(self._columns or ())}
        del params["strict"]
        with contextlib.suppress(psycopg.Error, ValueError):  # the write itself says what is wrong
            with self._pool.connection(timeout=self._timeout) as conn:
                record = _fetch(conn, _calls.PLAN_UPSERT, params)
            places = [(self._columns or ()).index(name) for name in record[2]]
            # one of them twice, so that it is a tuple: an integer is its own hash, and all may be even
            self._key = itemgetter(*places, *places[:1])

    def _parts(self, chunk: Chunk) -> Sequence[tuple[Slots, Chunk]]:
        """What of a chunk goes on which lane, a transaction each."""
        if not chunk.size:
            return []
        if self._key is not None and self._batch_id is None:
            with contextlib.suppress(TypeError):  # a value that has no hash
                parts = chunk.deal(list(map(hash, map(self._key, chunk.rows))), len(self._lanes))
                return [
                    (lane, piece)
                    for lane, part in zip(self._lanes, parts, strict=True)
                    if part.size
                    for piece in self._pieces(part)
                ]
        lanes = islice(cycle(self._lanes), chunk.number % len(self._lanes), None)
        return list(zip(lanes, self._pieces(chunk), strict=False))

    def _pieces(self, part: Chunk) -> Sequence[Chunk]:
        """A part in pieces of `chunk_rows`, a tenth more where that saves one."""
        number = -(-len(part.rows) * 10 // (self._chunk_rows * 11))
        if number <= 1:
            return [part]
        return part.deal(range(len(part.rows)), number)

    # -- what came of it --

    def _report(self, source: Source) -> None:
        if self._count() and self._progress is not None:
            self._progress(self._so_far(source.total))

    def _count(self) -> bool:
        seen = self._chunks
        while self._done:
            *counts, refusals = self._done.popleft()
            self._chunks += 1
            self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]
            if refusals:
                self._refusals = sorted(
                    [*self._refusals, *refusals], key=lambda refusal: refusal.ord
                )[:MOST_REFUSALS]
        return self._chunks > seen

    def _so_far(self, total: int | None) -> UpsertProgress:
        received, collapsed, inserted, updated, unchanged, refused = self._counts
        return UpsertProgress(
            received, collapsed, inserted, updated, unchanged, refused, self._chunks, total
        )

    def _result(self) -> UpsertResult:
        received, collapsed, inserted, updated, unchanged, refused = self._counts
        return UpsertResult(
            received, collapsed, inserted, updated, unchanged, refused, list(self._refusals)
        )

    # -- a chunk --

    def _write(self, chunk: Chunk) -> None:
        self._be_strict(chunk)
        received, *counts, refused, refusals = self._send(chunk)
        own = [
            Refusal(ord_, error.sqlstate or "", error.message, error.detail, error.hint)
            for ord_, error in chunk.refused
        ]
        theirs = [
            Refusal(chunk.ord_of(r["ord"]), r["code"], r["message"], r["detail"] or {}, r["hint"])
            for r in refusals or ()
        ]
        self._done.append((received + len(own), *counts, refused + len(own), [*own, *theirs]))

    def _be_strict(self, chunk: Chunk) -> None:
        if chunk.refused and self._options["strict"]:
            ord_, error = chunk.refused[0]
            error.detail["ord"] = ord_
            raise error

    def _send(self, chunk: Chunk) -> Sequence[Any]:
        """Write a chunk, again after what is worth it."""
        if self._conn is not None:
            try:
                return self._attempt(self._conn, chunk)
            except psycopg.Error as exc:
                raise self._placed(translate(exc), chunk) from exc
        delay = _FIRST_DELAY
        tries = 1
        while True:
            try:
                with self._pool.connection(timeout=self._timeout) as conn:
                    return self._attempt(conn, chunk)
            except psycopg.Error as exc:
                error = self._placed(translate(exc), chunk)
                again = not isinstance(exc, PoolTimeout) and self._worth_repeating(error)
                if tries == _TRIES or not again:
                    raise error from exc
            sleep(delay * (0.5 + random.random()))  # noqa: S311
            delay = min(delay * 3, _LONGEST_DELAY)
            tries += 1

    def _placed(self, error: LedgerError, chunk: Chunk) -> LedgerError:
        """The error with the row's place in the stream, where it tells its place in the call."""
        place = error.detail.get("ord")
        if isinstance(place, int) and 0 < place <= len(chunk.rows):
            error.detail["ord"] = chunk.ord_of(place)
        return error

    def _worth_repeating(self, error: LedgerError) -> bool:
        if error.sqlstate != "23505" or error.constraint is None:
            return error.retryable
        # While the unique index is built anew, ON CONFLICT may miss a row of another session.
        if re.search(r"_cc(new|old)\d*$", error.constraint):
            return True
        # Under a fixed snapshot it may be of a row that only the next transaction sees.
        params = {**self._options, "columns": list(self._columns or ())}
        with self._pool.connection(timeout=self._timeout) as conn:
            record = _fetch(conn, _calls.PLAN_UPSERT, params)
        name = error.constraint.replace('"', '""')
        return str(record[1]).endswith((f".{name}", f'."{name}"'))

    def _attempt(self, conn: Conn, chunk: Chunk) -> Sequence[Any]:
        conn.add_notice_handler(log_notice)
        try:
            if not chunk.size:
                return self._look(conn)
            if chunk.rows and not chunk.ragged and len(chunk.rows) >= self._copy_threshold:
                try:
                    return self._copy(conn, chunk)
                except NotBinary:
                    chunk.ragged = True  # for the next try too
            return self._send_json(conn, chunk)
        finally:
            conn.remove_notice_handler(log_notice)

    def _look(self, conn: Conn) -> Sequence[Any]:
        """Nothing to write: see that there is a table, and a key, that could be written to."""
        if self._columns is None:
            _fetch(conn, _calls.UPSERT_TARGET, self._options)
            return _NOTHING
        return _fetch(conn, _calls.UPSERT, self._params("[]", None))

    def _params(self, rows: str, chunk: Chunk | None) -> dict[str, Any]:
        return {
            **self._options,
            "rows": rows,
            "columns": list(self._columns or ()),
            "batch_id": (
                f"{self._batch_id}/{chunk.number}"
                if chunk is not None and self._batch_id is not None
                else None
            ),
        }

    def _send_json(self, conn: Conn, chunk: Chunk) -> Sequence[Any]:
        columns = self._columns or ()
        try:
            text, refused = json_rows(columns, chunk.rows, self._documents)
        except DocumentsWanted:
            records = _fetch_all(conn, _calls.UPSERT_COLUMNS, self._options)
            self._documents = frozenset(
                name for name, _, receiver in records if receiver in {"json_recv", "jsonb_recv"}
            )
            text, refused = json_rows(columns, chunk.rows, self._documents)
        if refused:
            chunk.drop(refused)
            self._be_strict(chunk)
        if not chunk.rows:
            return _NOTHING
        return _fetch(conn, _calls.UPSERT, self._params(text, chunk))

    def _copy(self, conn: Conn, chunk: Chunk) -> Sequence[Any]:
        columns = self._columns or ()
        if self._table is None:
            schema, name = _fetch(conn, _calls.UPSERT_TARGET, self._options)
            self._table = sql.Identifier(schema, name)
        with conn.transaction():
            stage = sql.SQL(_calls.UPSERT_STAGE).format(
                columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
                target=self._table,
            )
            try:
                conn.execute(stage)
            except psycopg.ProgrammingError as exc:
                # No such column, or no right to it or to temporary tables: the other way says so,
                # or does not need it.
                raise NotBinary from exc
            source = _calls.UPSERT_SOURCE
            described = _fetch_all(conn, _calls.UPSERT_COLUMNS, {"target": source})
            form = BinaryForm([(oid, receiver) for _, oid, receiver in described])
            self._fill(conn, chunk, form)
            params = {**self._params("", chunk), "source": source}
            result = _fetch(conn, _calls.UPSERT_FROM, params)
            if conn is self._conn:
                conn.execute(_calls.UPSERT_UNSTAGE)
            return result

    def _fill(self, conn: Conn, chunk: Chunk, form: BinaryForm) -> None:
        try:
            with conn.cursor() as cursor, cursor.copy(_calls.UPSERT_COPY) as copy:
                copy.set_types(form.oids)
                write = copy.write_row
                for start in range(0, len(chunk.rows), _BLOCK):
                    for row in form.fit(chunk.rows[start : start + _BLOCK]):
                        write(row)
                    give_way()
        except (psycopg.DataError, psycopg.IntegrityError, *_DUMP_ERRORS) as exc:
            raise NotBinary from exc


def _fetch_all(conn: Conn, query: Any, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(query, params)
        return cursor.fetchall()


def _fetch(conn: Conn, query: Any, params: Mapping[str, Any]) -> tuple[Any, ...]:
    return (_fetch_all(conn, query, params))[0]


def log_notice(diag: psycopg.errors.Diagnostic) -> None:
    """Pass on what the server says beside its answer."""
    severity = diag.severity_nonlocalized
    level = {"WARNING": logging.WARNING, "NOTICE": logging.INFO}.get(severity or "", logging.DEBUG)
    if diag.message_detail:
        logger.log(level, "%s (%s)", diag.message_primary, diag.message_detail)
    else:
        logger.log(level, "%s", diag.message_primary)
