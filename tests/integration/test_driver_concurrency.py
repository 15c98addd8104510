"""Many callers, cancelled callers, cut connections: what was acknowledged is there, once."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import routeledger
from routeledger import AsyncLedger, errors
from tests.conftest import Database

TENANT = "acme"
USAGE: dict[str, Any] = {"input_tokens": 10, "output_tokens": 2}


class ContextWindowExceededError(Exception):
    """As clients of providers call it."""


@pytest_asyncio.fixture
async def ledger(db: Database) -> AsyncIterator[AsyncLedger]:
    async with await AsyncLedger.connect(db.dsn_as("admin"), max_size=2) as opened:
        yield opened


def sound(db: Database) -> None:
    assert db.execute("select * from routeledger.orphans") == []
    assert db.execute("select * from routeledger.reconciliation where not agrees") == []


async def cycle(ledger: AsyncLedger, n: object) -> Any:
    decision = await ledger.insert_decision(tenant_id=TENANT, candidates=["m"], agent_id=str(n))
    await ledger.complete_decision(
        tenant_id=TENANT,
        id=decision.id,
        attempt_id=decision.attempt_id,
        outcome_status="succeeded",
        **USAGE,
    )
    return decision.id


async def test_concurrent_cycles_share_commits(ledger: AsyncLedger, db: Database) -> None:
    ids = await asyncio.gather(*(cycle(ledger, n) for n in range(300)))
    assert len(set(ids)) == 300
    rows = db.execute("select id, agent_id, outcome_status from routeledger.decisions")
    assert {(i, str(n), "succeeded") for n, i in enumerate(ids)} == set(rows)
    assert ledger._coalescer is not None
    assert ledger._coalescer.rows == 600
    assert ledger._coalescer.batches < 60
    sound(db)


async def test_each_caller_gets_its_own_error(ledger: AsyncLedger, db: Database) -> None:
    tenants = [TENANT if n % 3 else "" for n in range(60)]
    results = await asyncio.gather(
        *(ledger.insert_decision(tenant_id=t, candidates=["m"]) for t in tenants),
        return_exceptions=True,
    )
    for tenant, result in zip(tenants, results, strict=True):
        if tenant:
            assert isinstance(result, routeledger.Decision)
        else:
            assert isinstance(result, errors.MissingArgument)
            assert result.detail["parameter"] == "tenant_id"
    assert db.value("select count(*) from routeledger.in_flight") == 40


async def test_the_same_id_twice_in_one_batch(ledger: AsyncLedger, db: Database) -> None:
    one, attempt = ledger._ids(), ledger._ids()
    results = await asyncio.gather(
        *(
            ledger.insert_decision(tenant_id=TENANT, id=one, attempt_id=attempt, candidates=[slug])
            for slug in ("a", "a", "b")
        ),
        return_exceptions=True,
    )
    assert [getattr(r, "created", None) for r in results] == [True, False, None]
    assert isinstance(results[2], errors.IdReused)
    sound(db)


async def test_cancelling_one_caller_leaves_the_others(ledger: AsyncLedger, db: Database) -> None:
    rng = random.Random(7)
    tasks = [asyncio.ensure_future(cycle(ledger, n)) for n in range(200)]
    for _ in range(6):
        await asyncio.sleep(0.002)
        for task in rng.sample(tasks, 10):
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [r for r in results if not isinstance(r, BaseException)]
    assert all(isinstance(r, asyncio.CancelledError) for r in results if r not in kept)
    done = {
        row[0]
        for row in db.execute(
            "select id from routeledger.decisions where outcome_status = 'succeeded'"
        )
    }
    assert set(kept) <= done
    sound(db)


@pytest.mark.parametrize("coalesce", [True, False])
async def test_cancelled_in_the_attempt(db: Database, coalesce: bool) -> None:
    async with await AsyncLedger.connect(db.dsn_as("admin"), coalesce=coalesce) as ledger:
        dispatched = asyncio.Event()

        async def work() -> None:
            async with ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
                async for attempt in decision.attempts():
                    async with attempt:
                        dispatched.set()
                        await asyncio.sleep(60)

        task = asyncio.ensure_future(work())
        await dispatched.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert db.execute("select outcome_status, attempts from routeledger.decisions") == [
        ("failed", 1)
    ]
    assert db.execute("select status, error_type from routeledger.attempts") == [
        ("failed", "cancelled")
    ]
    sound(db)


@pytest.mark.parametrize("coalesce", [True, False])
async def test_cancelled_at_any_moment_the_books_are_closed(db: Database, coalesce: bool) -> None:
    """Cancel after k turns of the event loop, for every k that a decision takes."""
    async with await AsyncLedger.connect(db.dsn_as("admin"), coalesce=coalesce) as ledger:

        async def work(n: int) -> None:
            async with ledger.decision(
                tenant_id=TENANT, candidates=["a", "b"], agent_id=str(n)
            ) as decision:
                async for attempt in decision.attempts():
                    async with attempt:
                        if attempt.attempt_no == 1:
                            raise ContextWindowExceededError("no")  # another model may take it
                        attempt.succeed(**USAGE)

        cancelled = 0
        for turns in range(90):
            task = asyncio.ensure_future(work(turns))
            for _ in range(turns // 3):
                await asyncio.sleep(0)
            await asyncio.sleep(turns * 0.0001)
            if turns % 2:
                task.cancel()
                await asyncio.sleep(0)
            task.cancel()  # and once more while it closes
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled > 5
    assert db.execute("select * from routeledger.in_flight") == []
    sound(db)


async def test_cut_connections_lose_nothing_and_double_nothing(db: Database) -> None:
    rng = random.Random(11)
    cuts = 0
    seen: list[tuple[Any, str]] = []
    async with await AsyncLedger.connect(
        db.dsn_as("admin"), max_size=2, max_batch=20, timeout=120
    ) as ledger:

        async def caller(who: int) -> None:
            n = 0
            while cuts < 10:
                name = f"{who}.{n}"
                seen.append((await cycle(ledger, name), name))
                n += 1

        async def cutter() -> None:
            nonlocal cuts
            while True:
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                cuts += await asyncio.to_thread(
                    db.value,
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    " where datname = current_database() and usename = 'test_admin'",
                )

        cutting = asyncio.ensure_future(cutter())
        try:
            await asyncio.gather(*(caller(n) for n in range(60)))
        finally:
            cutting.cancel()
    rows = db.execute(
        "select id, agent_id from routeledger.decisions where outcome_status = 'succeeded'"
    )
    assert set(rows) == set(seen)
    assert len(rows) == len(seen) == db.value("select count(*) from routeledger.attempts")
    sound(db)


async def test_lock_timeouts_and_deadlocks_are_tried_again(db: Database) -> None:
    async with await AsyncLedger.connect(db.dsn_as("admin"), coalesce=False) as ledger:
        decision = await ledger.insert_decision(tenant_id=TENANT, candidates=["m"])
        db.execute(f"alter role test_admin in database {db.name} set lock_timeout = '50ms'")
        async with await AsyncLedger.connect(db.dsn_as("admin"), coalesce=False) as timid:
            with db.connect(autocommit=False) as blocker:
                blocker.execute("select from routeledger.routing_outcomes for update")
                waiting = asyncio.ensure_future(
                    timid.complete_decision(
                        tenant_id=TENANT, id=decision.id, outcome_status="succeeded", **USAGE
                    )
                )
                await asyncio.sleep(0.3)
                assert not waiting.done()
                blocker.rollback()
            assert (await waiting).created


def test_threads_share_commits(db: Database) -> None:
    ids: list[Any] = []
    with routeledger.connect(db.dsn_as("admin"), max_size=2) as ledger:

        def caller() -> None:
            for _ in range(10):
                with ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
                    for attempt in decision.attempts():
                        with attempt:
                            attempt.succeed(**USAGE)
                ids.append(decision.id)

        threads = [threading.Thread(target=caller) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert ledger._coalescer is not None
        assert ledger._coalescer.rows == 400
        assert ledger._coalescer.batches < 300
    assert len(set(ids)) == 200
    assert db.execute(
        "select count(*) from routeledger.decisions where outcome_status = 'succeeded'"
    ) == [(200,)]
    sound(db)


async def test_an_event_loop_that_ends_leaves_no_caller_waiting(db: Database) -> None:
    """`asyncio.run` cancels what is left; nobody hangs, and nothing acknowledged is missing."""

    def run() -> list[Any]:
        seen: list[Any] = []

        async def main() -> None:
            ledger = await AsyncLedger.connect(db.dsn_as("admin"))

            async def caller(n: int) -> None:
                while True:
                    seen.append(await cycle(ledger, n))

            for n in range(20):
                asyncio.ensure_future(caller(n))  # noqa: RUF006 - left behind on purpose
            await asyncio.sleep(0.3)

        asyncio.run(main())
        return seen

    seen = await asyncio.wait_for(asyncio.to_thread(run), 30)
    rows = db.execute("select id from routeledger.decisions where outcome_status = 'succeeded'")
    assert set(seen) <= {row[0] for row in rows}
