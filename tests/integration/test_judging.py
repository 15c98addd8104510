"""A judge in its loop: what it is given, what it answers, how it fails, and how it stops."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from routeledger import AsyncLedger, errors
from routeledger.judging import JudgeUnavailable, Verdict, Worker
from tests.conftest import Database
from tests.judgements import fill, held, hurry, statuses, verdicts


@pytest_asyncio.fixture
async def ledger(db: Database) -> AsyncIterator[AsyncLedger]:
    async with await AsyncLedger.connect(db.dsn_as("judge")) as opened:
        yield opened


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


async def test_every_decision_is_judged_once(db: Database, ledger: AsyncLedger) -> None:
    ids = await fill(db, 30)
    seen: list[UUID] = []
    told: list[int] = []

    async def judge(judgement: Any) -> Verdict:
        seen.append(judgement.id)
        question = judgement.request["messages"][0]["content"]
        answer = judgement.response["choices"][0]["message"]["content"]
        right = int(answer) == 2 * int(question.split()[0])
        return Verdict(
            float(right), "correct", "sums", "m", input_tokens=3, cost_usd=Decimal("0.01")
        )

    worker = Worker(
        ledger,
        judge,
        name="sums",
        version="1",
        concurrency=7,
        once=True,
        progress=lambda report: told.append(report.recorded),
    )
    report = await worker.run()
    assert sorted(seen) == sorted(ids)
    assert [row[0] for row in verdicts(db)] == sorted(ids)
    assert statuses(db) == {"labeled": 30}
    assert (report.claimed, report.recorded, report.usable) == (30, 30, 30)
    assert (report.stopped, report.mean_score, report.cost_usd) == ("empty", 1.0, Decimal("0.30"))
    assert report.input_tokens == 90
    assert told[-1] == 30
    again = await Worker(ledger, judge, name="sums", version="1", once=True).run()
    assert again.claimed == 0


async def test_a_plain_function_runs_in_threads(db: Database, ledger: AsyncLedger) -> None:
    await fill(db, 9)
    meet = threading.Barrier(3, timeout=30)  # three calls are under way at the same time

    def judge(judgement: Any) -> bool:
        meet.wait()
        return bool(judgement.model_slug == "large")

    report = await Worker(ledger, judge, name="plain", version="1", concurrency=3, once=True).run()
    assert report.recorded == 9
    assert report.mean_score == pytest.approx(4 / 9)


async def test_tenant_since_and_limit(db: Database, ledger: AsyncLedger) -> None:
    await fill(db, 3)
    other = await fill(db, 6, "umbrella")
    seen: list[Any] = []

    async def judge(judgement: Any) -> float:
        seen.append(judgement)
        return 0.5

    options: dict[str, Any] = {"name": "some", "version": "1", "once": True}
    late = await Worker(
        ledger, judge, since=datetime.now(timezone.utc).date() + timedelta(days=1), **options
    ).run()
    assert late.claimed == 0
    report = await Worker(
        ledger, judge, tenant_id="umbrella", limit=4, payloads=False, concurrency=2, **options
    ).run()
    assert (report.claimed, report.recorded, report.stopped) == (4, 4, "limit")
    assert [j.id for j in seen] == other[:4]
    assert {(j.tenant_id, j.request, j.response) for j in seen} == {("umbrella", None, None)}


@pytest.mark.usefixtures("hurried")
async def test_what_is_no_verdict_counts_and_is_never_a_score(
    db: Database, ledger: AsyncLedger
) -> None:
    db.execute("""select routeledger.configure('{"judge_retry_delay": "0"}')""")
    ids = await fill(db, 6)
    answers: dict[UUID, Any] = dict(zip(ids, [None, "0.9", 7, math.nan, -1, 1], strict=True))
    raises = {ids[0]: KeyError("no such field")}
    calls: Counter[UUID] = Counter()

    async def judge(judgement: Any) -> Any:
        calls[judgement.id] += 1
        if judgement.id in raises:
            raise raises[judgement.id]
        return answers[judgement.id]

    report = await Worker(ledger, judge, name="odd", version="1", once=True, batch=1).run()
    assert report.errors == 4 * 3
    assert [calls[id_] for id_ in ids] == [3, 3, 3, 3, 1, 1]
    found = {row[0]: row[1:] for row in verdicts(db)}
    assert [found[id_][0] for id_ in ids] == [None, None, None, None, -1, 1]
    assert found[ids[0]] == (None, "cannot_evaluate", "KeyError: 'no such field'", 3)
    assert found[ids[1]][2] == "BadVerdict: a score is a number, not str"
    assert (report.usable, report.unusable) == (1, 1)
    assert statuses(db) == {"cannot_evaluate": 5, "labeled": 1}
    assert db.value("select sum(reward) from routeledger.routing_outcomes") == 1


class StatusError(Exception):
    """As clients of providers raise them."""

    def __init__(self, status_code: int, **headers: str) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = headers


async def test_a_judge_that_is_away_costs_nobody_an_attempt(
    db: Database, ledger: AsyncLedger
) -> None:
    await fill(db, 12)
    failures = [
        StatusError(429, **{"retry-after": "0.1"}),
        StatusError(503),
        ConnectionResetError("gone"),
        JudgeUnavailable("warming up", retry_after=0.1),
        None,  # it does not answer at all
    ]
    most = under_way = 0

    async def judge(judgement: Any) -> float:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.01)
            if failures:
                most = 0
                failure = failures.pop(0)
                if failure is not None:
                    raise failure
                await asyncio.sleep(60)
            return 1.0
        finally:
            under_way -= 1

    report = await Worker(
        ledger, judge, name="away", version="1", once=True, concurrency=4, timeout=1.5
    ).run()
    assert (report.put_off, report.errors, report.recorded) == (5, 0, 12)
    assert report.last_error == "TimeoutError: no answer in 1.5 s"
    assert {row[4] for row in verdicts(db)} == {1}
    assert most == 4


@pytest.mark.usefixtures("hurried")
async def test_a_decision_that_kills_its_calls_is_found_out(
    db: Database, ledger: AsyncLedger
) -> None:
    """The judge is away for it alone: that is put down to the decision, not to the judge."""
    db.execute("""select routeledger.configure('{"judge_retry_delay": "0"}')""")
    ids = await fill(db, 8)

    async def judge(judgement: Any) -> float:
        if judgement.id == ids[0]:
            await fill(db, 1)  # something to compare it with
            raise ConnectionResetError("it breaks the connection")
        return 1.0

    report = await Worker(ledger, judge, name="poison", version="1", once=True, concurrency=2).run()
    assert report.put_off >= 1
    assert report.errors == 3
    assert statuses(db) == {"labeled": 7 + report.put_off + report.errors, "cannot_evaluate": 1}
    found = {row[0]: row[1:] for row in verdicts(db)}
    why = "ConnectionResetError: it breaks the connection"
    assert found[ids[0]] == (None, "cannot_evaluate", why, 3)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("away", [False, True])
async def test_a_judge_that_keeps_failing_does_not_spend_the_queue(
    db: Database, ledger: AsyncLedger, away: bool
) -> None:
    await fill(db, 20)

    def judge(judgement: Any) -> float:
        raise StatusError(500) if away else NameError("scroe")

    report = await Worker(
        ledger, judge, name="broken", version="1", concurrency=3, give_up_after=5
    ).run()
    assert report.stopped == "failing"
    assert 5 <= (report.put_off if away else report.errors) <= 7
    assert report.last_error == ("StatusError: status 500" if away else "NameError: scroe")
    assert verdicts(db) == []
    assert held(db) == 0
    spent = db.value("select coalesce(sum(attempts), 0) from routeledger.judge_leases")
    assert spent == (0 if away else report.errors)


async def test_a_judge_that_will_never_work_stops_the_worker(
    db: Database, ledger: AsyncLedger
) -> None:
    await fill(db, 5)

    async def judge(judgement: Any) -> float:
        raise JudgeUnavailable("no such key", fatal=True)

    with pytest.raises(JudgeUnavailable, match="no such key"):
        await Worker(ledger, judge, name="locked out", version="1").run()
    assert held(db) == 0
    assert db.value("select coalesce(sum(attempts), 0) from routeledger.judge_leases") == 0


async def test_long_calls_keep_their_claims(db: Database, ledger: AsyncLedger) -> None:
    """They take longer than the lease; another worker of the same judge gets nothing."""
    ids = await fill(db, 3)
    begun = asyncio.Event()

    async def judge(judgement: Any) -> float:
        begun.set()
        await asyncio.sleep(4)
        return 1.0

    options: dict[str, Any] = {"name": "slow", "version": "1", "lease": timedelta(seconds=3)}
    first = Worker(ledger, judge, concurrency=3, once=True, **options)
    working = asyncio.ensure_future(first.run())
    await begun.wait()

    async def nothing(judgement: Any) -> float:
        raise AssertionError("it is claimed")

    second = Worker(ledger, nothing, poll=0.1, give_up_after=1, **options)
    watching = asyncio.ensure_future(second.run())
    report = await working
    second.stop()
    assert (await watching).claimed == 0
    assert (report.recorded, report.lost) == (3, 0)
    assert [(row[0], row[4]) for row in verdicts(db)] == [(id_, 1) for id_ in sorted(ids)]


async def test_a_claim_that_was_given_away_is_dropped(db: Database, ledger: AsyncLedger) -> None:
    """One while its call runs, one before it has begun, and one whose answer comes first."""
    ids = await fill(db, 3)
    who: dict[str, Any] = {"judge": "late", "judge_version": "1"}
    cancelled: list[UUID] = []

    async def judge(judgement: Any) -> float:
        if judgement.id == ids[0]:
            await asyncio.sleep(0.3)
            return 0.25
        db.execute("update routeledger.judge_leases set due_at = now() - interval '1 minute'")
        taken = await ledger.claim_judgements(**who, limit=10)
        assert {j.attempt_no for j in taken} == {2}
        if judgement.id == ids[1]:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(judgement.id)
                raise
        return 0.5

    worker = Worker(
        ledger,
        judge,
        name="late",
        version="1",
        batch=3,
        concurrency=1,
        once=True,
        lease=timedelta(seconds=2),
    )
    report = await worker.run()
    assert (report.recorded, report.lost) == (1, 2)
    assert cancelled == [ids[1]]
    assert [row[:2] for row in verdicts(db)] == [(ids[0], 0.25)]
    assert held(db) == 2


@pytest.mark.parametrize("now", [False, True])
async def test_stopping(db: Database, ledger: AsyncLedger, now: bool) -> None:
    """What is under way ends, or is given back; the rest is given back; no attempt is counted."""
    await fill(db, 10)
    started = asyncio.Event()
    go = asyncio.Event()

    async def judge(judgement: Any) -> float:
        started.set()
        await go.wait()
        return 1.0

    worker = Worker(ledger, judge, name="stopped", version="1", concurrency=2)
    working = asyncio.ensure_future(worker.run())
    await started.wait()
    worker.stop(now=now)
    if not now:
        go.set()
    report = await working
    done = 0 if now else 2
    assert (report.claimed, report.recorded, report.given_back) == (10, done, 10 - done)
    assert report.stopped == "asked"
    assert held(db) == 0
    go.set()
    rest = await Worker(ledger, judge, name="stopped", version="1", once=True).run()
    assert rest.recorded == 10 - done
    assert {row[4] for row in verdicts(db)} == {1}


async def test_a_judge_that_will_not_be_cancelled(db: Database, ledger: AsyncLedger) -> None:
    await fill(db, 1)
    started, go = asyncio.Event(), asyncio.Event()

    async def judge(judgement: Any) -> float:
        started.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return 1.0

    worker = Worker(ledger, judge, name="stubborn", version="1")
    working = asyncio.ensure_future(worker.run())
    await started.wait()
    worker.stop(now=True)
    report = await working
    go.set()
    assert (report.given_back, report.recorded, held(db)) == (1, 0, 0)


async def test_a_hanging_function_does_not_keep_the_worker(
    db: Database, ledger: AsyncLedger
) -> None:
    await fill(db, 2)
    started, go = threading.Event(), threading.Event()

    def judge(judgement: Any) -> float:
        started.set()
        go.wait(60)
        return 1.0

    worker = Worker(ledger, judge, name="hangs", version="1", grace=0.1, concurrency=2)
    working = asyncio.ensure_future(worker.run())
    await asyncio.to_thread(started.wait)
    working.cancel()  # as asyncio.run() does when it is interrupted
    with pytest.raises(asyncio.CancelledError):
        await working
    go.set()
    assert (worker.report.given_back, held(db)) == (2, 0)


async def test_lost_connections_lose_no_verdict(db: Database, ledger: AsyncLedger) -> None:
    await fill(db, 25)
    calls: Counter[UUID] = Counter()

    async def judge(judgement: Any) -> float:
        calls[judgement.id] += 1
        if len(calls) % 5 == 0:
            db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and usename = 'test_judge'"
            )
        return 1.0

    report = await Worker(
        ledger, judge, name="cut", version="1", once=True, lease=timedelta(seconds=1)
    ).run()
    assert report.recorded == 25
    assert [row[1] for row in verdicts(db)] == [1.0] * 25


async def test_a_ledger_that_refuses_ends_the_worker(db: Database) -> None:
    async def judge(judgement: Any) -> float:
        return 1.0

    async with await AsyncLedger.connect(db.dsn_as("judge")) as ledger:
        with pytest.raises(errors.MissingArgument):
            await Worker(ledger, judge, name="", version="1").run()
    async with await AsyncLedger.connect(db.dsn_as("reader")) as ledger:
        with pytest.raises(errors.LedgerError, match="42501"):
            await Worker(ledger, judge, name="reader", version="1").run()


async def test_a_ledger_that_goes_away(
    db: Database, ledger: AsyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, with the verdict in hand; a worker that is asked to stop gives up on it."""
    await fill(db, 2)
    elsewhere = Database(db.server, "postgres")

    def connections(allowed: bool) -> None:
        elsewhere.execute(f'alter database "{db.name}" allow_connections {str(allowed).lower()}')
        elsewhere.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [db.name]
        )

    async def judge(judgement: Any) -> float:
        connections(allowed=False)
        return 1.0

    monkeypatch.setattr(ledger, "_timeout", 0.2)
    worker = Worker(ledger, judge, name="gone", version="1", concurrency=1, limit=1)
    working = asyncio.ensure_future(worker.run())
    try:
        while worker.report.last_error is None:
            await asyncio.sleep(0.02)
    finally:
        connections(allowed=True)
    assert (await working).recorded == 1

    worker = Worker(ledger, judge, name="gone", version="1", grace=0.1)
    working = asyncio.ensure_future(worker.run())
    try:
        while worker.report.last_error is None:
            await asyncio.sleep(0.02)
        worker.stop()
        report = await working
    finally:
        connections(allowed=True)
    assert (report.recorded, report.stopped, held(db)) == (0, "asked", 1)
