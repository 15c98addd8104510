"""The coalescing writer, against a ledger of the test's own making."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from routeledger import errors
from routeledger._coalesce_async import AsyncCoalescer
from routeledger._coalesce_sync import Coalescer
from routeledger._routines import COMPLETE_DECISION, EXTEND_LEASE, INSERT_DECISION, Routine


def answer(query: str, rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    out: list[tuple[Any, ...]] = []
    for n, row in enumerate(rows, 1):
        if row.get("refuse"):
            out.append((n, "refused", "RL201", "m", {"id": row["id"]}, "h", None, None))
        else:
            out.append((n, "accepted", None, None, None, None, row["id"], query.strip()))
    return out


class Cursor:
    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows


class Pipeline:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass


class FakeConnection:
    """Answers in `delay` seconds; remembers the batches; raises what it is told to."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.lock = asyncio.Lock()
        self.batches: list[list[list[Any]]] = []
        self.raises: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.singles: list[Any] = []

    def pipeline(self) -> Pipeline:
        return Pipeline()

    async def execute(self, query: str, params: dict[str, Any]) -> Cursor:
        rows = json.loads(params["rows"])
        self.batches[-1].append([r["id"] for r in rows])
        return Cursor(answer(query, rows))

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        async with self.lock:  # one connection
            self.batches.append([])
            await asyncio.sleep(self.delay)
            if self.gate is not None:
                await self.gate.wait()
            if self.raises:
                raise self.raises.pop(0)
            return await work(self)

    async def single(self, routine: Routine[Any], row: Any) -> Any:
        self.singles.append(row["id"])
        if row.get("bad"):
            raise errors.OutOfRange("alone")
        return ("alone", row["id"])


def routine(name: str, order: int) -> Routine[Any]:
    def result(*columns: Any) -> Any:
        return columns

    return Routine(name, name + "s", "", name, result, {}, False, order)


FIRST, SECOND = routine("first", 0), routine("second", 1)


def make(conn: FakeConnection, **kwargs: Any) -> AsyncCoalescer:
    settings = {"max_batch": 10, "max_wait": 0.002, "max_queue": 100, **kwargs}
    return AsyncCoalescer(conn.run, conn.single, **settings)


async def test_an_idle_writer_sends_at_once_and_a_busy_one_gathers() -> None:
    conn = FakeConnection()
    conn.delay = 0.01
    writer = make(conn)
    tasks = [asyncio.ensure_future(writer.write(FIRST, {"id": 0}))]
    await asyncio.sleep(0.005)
    tasks += [asyncio.ensure_future(writer.write(FIRST, {"id": n})) for n in range(1, 26)]
    results = await asyncio.gather(*tasks)
    assert [r[0] for r in results] == list(range(26))
    assert [len(b[0]) for b in conn.batches] == [1, 10, 10, 5]
    await writer.close()


async def test_kinds_share_a_round_trip_in_their_order() -> None:
    conn = FakeConnection()
    writer = make(conn)
    results = await asyncio.gather(
        writer.write(SECOND, {"id": "b"}), writer.write(FIRST, {"id": "a"})
    )
    assert list(results) == [("b", "second"), ("a", "first")]
    assert conn.batches == [[["a"], ["b"]]]
    await writer.close()


async def test_each_caller_has_its_own_error() -> None:
    writer = make(FakeConnection())
    results = await asyncio.gather(
        *(writer.write(FIRST, {"id": n, "refuse": n == 1}) for n in range(3)),
        return_exceptions=True,
    )
    assert results[0] == (0, "first")
    assert isinstance(results[1], errors.DecisionNotFound)
    assert results[1].detail == {"id": 1}
    assert results[2] == (2, "first")
    await writer.close()


async def test_a_row_that_no_batch_can_carry_goes_alone() -> None:
    conn = FakeConnection()
    writer = make(conn)
    results = await asyncio.gather(
        writer.write(FIRST, {"id": 0}),
        writer.write(FIRST, {"id": 1, "latency": float("nan"), "bad": True}),
        writer.write(FIRST, {"id": 2, "text": "\x00"}),
        return_exceptions=True,
    )
    assert results[0] == (0, "first")
    assert isinstance(results[1], errors.OutOfRange)
    assert results[2] == ("alone", 2)
    await writer.close()


async def test_a_spoiled_batch_is_taken_apart() -> None:
    conn = FakeConnection()
    conn.raises = [errors.LedgerError("x", sqlstate="22021")]
    writer = make(conn)
    results = await asyncio.gather(
        *(writer.write(FIRST, {"id": n, "bad": n == 1}) for n in range(3)), return_exceptions=True
    )
    assert results[0] == ("alone", 0)
    assert isinstance(results[1], errors.OutOfRange)
    assert results[2] == ("alone", 2)
    assert conn.singles == [0, 1, 2]
    await writer.close()


async def test_a_lost_ledger_is_everybodys_error_each_a_copy() -> None:
    conn = FakeConnection()
    conn.raises = [errors.LedgerUnavailable("x")]
    writer = make(conn)
    results = await asyncio.gather(
        *(writer.write(FIRST, {"id": n}) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(r, errors.LedgerUnavailable) for r in results)
    assert len({id(r) for r in results}) == 3
    assert await writer.write(FIRST, {"id": 3}) == (3, "first")
    await writer.close()


async def test_a_cancelled_caller_leaves_its_neighbours_alone() -> None:
    conn = FakeConnection()
    conn.gate = asyncio.Event()
    writer = make(conn)
    first = asyncio.ensure_future(writer.write(FIRST, {"id": 0}))
    await asyncio.sleep(0.01)  # sent
    rest = [asyncio.ensure_future(writer.write(FIRST, {"id": n})) for n in (1, 2)]
    await asyncio.sleep(0)
    first.cancel()
    rest[0].cancel()
    await asyncio.sleep(0)
    conn.gate.set()
    assert await rest[1] == (2, "first")
    assert first.cancelled()
    assert rest[0].cancelled()
    assert conn.batches == [[[0]], [[2]]]  # 1 was withdrawn before it was sent
    await writer.close()


async def test_callers_wait_rather_than_being_dropped() -> None:
    conn = FakeConnection()
    conn.gate = asyncio.Event()
    writer = make(conn, max_queue=4)
    tasks = [asyncio.ensure_future(writer.write(FIRST, {"id": n})) for n in range(50)]
    await asyncio.sleep(0.01)
    assert sum(len(b) for batch in conn.batches for b in batch) + len(writer._pending) <= 4
    tasks[20].cancel()  # while it waits for a place
    conn.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [r for r in results if not isinstance(r, BaseException)]
    assert [r[0] for r in kept] == [n for n in range(50) if n != 20]
    assert writer._slots._free == 4
    await writer.close()


async def test_closing_writes_what_waits_and_refuses_what_comes() -> None:
    conn = FakeConnection()
    conn.delay = 0.01
    writer = make(conn)
    tasks = [asyncio.ensure_future(writer.write(FIRST, {"id": n})) for n in range(15)]
    await asyncio.sleep(0)
    await writer.close()
    assert [r[0] for r in await asyncio.gather(*tasks)] == list(range(15))
    with pytest.raises(errors.LedgerClosed):
        await writer.write(FIRST, {"id": 99})
    await writer.close()


async def test_a_bug_in_the_way_reaches_the_callers_and_the_writer_lives() -> None:
    conn = FakeConnection()
    conn.raises = [ValueError("bug")]
    writer = make(conn)
    with pytest.raises(ValueError, match="bug"):
        await writer.write(FIRST, {"id": 0})
    assert await writer.write(FIRST, {"id": 1}) == (1, "first")
    await writer.close()


def test_the_order_of_kinds_opens_before_it_closes() -> None:
    assert INSERT_DECISION.order < EXTEND_LEASE.order < COMPLETE_DECISION.order


class SyncConnection:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def execute(self, query: str, params: dict[str, Any]) -> Any:
        rows = json.loads(params["rows"])
        self.batches.append(len(rows))
        time.sleep(0.002)
        records = answer(query, rows)

        class Result:
            def fetchall(self) -> Any:
                return records

        return Result()


def test_threads_share_batches_too() -> None:
    conn = SyncConnection()
    writer = Coalescer(
        lambda work: work(conn),  # type: ignore[arg-type]
        lambda _, row: ("alone", row["id"]),
        max_batch=100,
        max_wait=0.002,
        max_queue=8,
    )
    wrong: list[Any] = []

    def caller(who: int) -> None:
        for n in range(20):
            row = {"id": who * 100 + n, "refuse": n == 7}
            try:
                if writer.write(FIRST, row)[0] != row["id"]:
                    wrong.append(row)
            except errors.DecisionNotFound as exc:
                if n != 7 or exc.detail != {"id": row["id"]}:
                    wrong.append(row)

    threads = [threading.Thread(target=caller, args=(who,)) for who in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert sum(conn.batches) == 320
    assert max(conn.batches) <= 8  # the bounded queue
    assert len(conn.batches) < 320
    writer.close()
    with pytest.raises(errors.LedgerClosed):
        writer.write(FIRST, {"id": 1})
