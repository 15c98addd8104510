# Generated from pydriver/routeledger/_coalesce_async.py by `make sync`: edit that, not this.
"""The coalescing writer: concurrent writes share a statement and a commit.

Batching is natural: while one batch is on its way, the next gathers; an idle writer sends the
first row at once. With many callers there are two batches, half of the rows each: while the
database writes one, the answers of the other are handed out and its callers come back.

A caller has its answer when its own row is durable, and gets its own error. Nothing is ever
dropped: with `max_queue` rows on their way, further callers wait.

A caller that is cancelled does not touch its neighbours. Its row is withdrawn if it has not been
sent; once sent it may be written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from psycopg import Connection, Cursor

from . import _codec
from ._codec import Row
from ._routines import Routine
from ._threads import Later, Signal, Slots, Waiter, Worker, answer, give_way, new_waiter, pause
from .errors import LedgerClosed, LedgerError, from_code

T = TypeVar("T")
Entry = tuple[Routine[Any], Row, Waiter[Any]]
Work = Callable[[Connection[Any]], Later[Any]]
Runner = Callable[[Work], Later[Any]]
Single = Callable[[Routine[Any], Row], Later[Any]]

# Fewer rows than this are not worth two batches.
_SMALL = 32


class Coalescer:
    """Gathers rows and writes them in batches.

    Args:
        run: runs work on a connection, again after lost connections and retryable errors.
        single: writes one row by the single form.
        max_batch: most rows in a statement.
        max_wait: most seconds that a row waits for company; only when the last batch had company.
        max_queue: most rows on their way before callers wait.
    """

    def __init__(
        self, run: Runner, single: Single, *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self._run = run
        self._single = single
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._pending: deque[Entry] = deque()
        self._sent = 0
        self._slots = Slots(max_queue)
        self._closing = False
        self._last = 0
        self.batches = 0
        self.rows = 0
        self._signals = (Signal(), Signal())
        first, second = self._signals
        self._workers = (
            Worker(lambda: self._work(first), "routeledger-writer-1"),
            Worker(lambda: self._work(second), "routeledger-writer-2"),
        )

    def write(self, routine: Routine[T], row: Row) -> T:
        """Write one row; returns when it is durable.

        Raises:
            LedgerError: this row's own error, or that of the whole batch.
        """
        if not self._slots.try_take():
            self._slots.take()
        if self._closing or self._ended():
            self._slots.give(1)
            raise LedgerClosed("The client is closed.")
        waiter: Waiter[T] = new_waiter()
        self._pending.append((routine, row, waiter))
        self._wake()
        if self._ended():  # it ended at this moment
            self._refuse(self._take(len(self._pending)))
        return answer(waiter)

    def close(self) -> None:
        """Write what is waiting, then stop."""
        self._closing = True
        self._wake()
        for worker in self._workers:
            worker.join()
        self._refuse(self._take(len(self._pending)))

    def _wake(self) -> None:
        for signal in self._signals:
            signal.set()

    def _ended(self) -> bool:
        return self._workers[0].ended() or self._workers[1].ended()

    # -- the workers --

    def _work(self, more: Signal) -> None:
        try:
            while True:
                more.wait()
                while self._pending:
                    self._gather()
                    batch = self._take(self._share())
                    if batch:
                        self._write_batch(batch)
                if self._closing:
                    return
        finally:
            self._closing = True
            self._refuse(self._take(len(self._pending)))

    def _share(self) -> int:
        """Most rows of the next batch: half of those on their way, where they are many."""
        return min(self._max_batch, max(_SMALL, (len(self._pending) + self._sent + 1) // 2))

    def _gather(self) -> None:
        """Give the callers of the last batch a moment to come back with their next row."""
        expected = min(self._last, self._share()) // 2
        if len(self._pending) >= expected or self._closing:
            return
        deadline = time.monotonic() + self._max_wait
        seen = 0
        while seen < len(self._pending) < expected and time.monotonic() < deadline:
            seen = len(self._pending)
            pause()

    def _take(self, number: int) -> list[Entry]:
        batch: list[Entry] = []
        while self._pending and len(batch) < number:
            entry = self._pending.popleft()
            if entry[2].done():  # cancelled before it was sent
                self._slots.give(1)
            else:
                batch.append(entry)
        return batch

    def _refuse(self, entries: Iterable[Entry]) -> None:
        for _, _, waiter in entries:
            if not waiter.done():
                waiter.set_exception(LedgerClosed("The client is closed."))
            self._slots.give(1)

    def _write_batch(self, batch: list[Entry]) -> None:
        self._last = len(batch)
        self._sent += len(batch)
        self.batches += 1
        self.rows += len(batch)
        groups: dict[Routine[Any], list[Entry]] = {}
        for entry in batch:
            groups.setdefault(entry[0], []).append(entry)
        alone: list[Entry] = []
        try:
            parts = []
            for routine in sorted(groups, key=_order):
                entries = groups[routine]
                payload, refused = _codec.dumps_rows([row for _, row, _ in entries])
                if refused:
                    # What no batch can carry goes by itself, and has the single form's own error.
                    alone += [entries[n] for n in refused]
                    entries = [e for n, e in enumerate(entries) if n not in refused]
                if entries:
                    parts.append((routine, entries, payload))
            if parts:
                alone += self._send(parts)
            for routine, row, waiter in alone:
                self._write_alone(routine, row, waiter)
        except Exception as exc:  # noqa: BLE001 - every caller must have an answer
            for _, _, waiter in batch:
                if not waiter.done():
                    waiter.set_exception(exc.copy() if isinstance(exc, LedgerError) else exc)
        finally:
            for _, _, waiter in batch:
                if not waiter.done():  # the worker itself was ended
                    waiter.set_exception(LedgerClosed("The client was closed during the write."))
            self._sent -= len(batch)
            self._slots.give(len(batch))

    def _send(self, parts: list[tuple[Routine[Any], list[Entry], str]]) -> list[Entry]:
        """Send a batch and hand out the answers; returns the entries that must go by themselves."""

        def work(conn: Connection[Any]) -> list[Cursor[Any]]:
            if len(parts) == 1:
                return [conn.execute(parts[0][0].many, {"rows": parts[0][2]})]
            # One round trip and one commit for all kinds: a pipeline up to its sync is one
            # transaction.
            with conn.pipeline():
                return [conn.execute(r.many, {"rows": payload}) for r, _, payload in parts]

        try:
            cursors = self._run(work)
        except LedgerError as exc:
            entries = [entry for _, entries, _ in parts for entry in entries]
            if len(entries) == 1 or not _may_be_one_row(exc):
                raise
            return entries
        give_way()  # the other batch goes out first; what came is read meanwhile
        for (routine, entries, _), cursor in zip(parts, cursors, strict=True):
            read = routine.read_many
            for (_, _, waiter), record in zip(entries, cursor.fetchall(), strict=True):
                if waiter.done():
                    continue
                if record[1] == "refused":
                    waiter.set_exception(from_code(record[2], record[3], record[4], record[5]))
                else:
                    waiter.set_result(read(record))
        return []

    def _write_alone(self, routine: Routine[Any], row: Row, waiter: Waiter[Any]) -> None:
        try:
            result = self._single(routine, row)
        except LedgerError as exc:
            if not waiter.done():
                waiter.set_exception(exc)
        else:
            if not waiter.done():
                waiter.set_result(result)


def _order(routine: Routine[Any]) -> int:
    return routine.order


def _may_be_one_row(exc: LedgerError) -> bool:
    """True for errors that a single row may have brought upon the batch: bad data, checks, limits
    of the server; not for those that concern the way or the rights."""
    state = exc.sqlstate or ""
    return not exc.retryable and state[:2] in {"21", "22", "23", "54", "P0", "XX", "RL"}
