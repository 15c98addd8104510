"""A ledger that is down does not hide the provider's answer, and hears of it later, once."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from routeledger import AsyncLedger, errors
from routeledger._ids import IdMaker
from tests.conftest import Database

TENANT = "acme"
RANKED: list[Any] = ["small", {"model_slug": "skipped", "drop_reason": "slow"}, "large"]
USAGE: dict[str, Any] = {"input_tokens": 100, "output_tokens": 20}
new_id = IdMaker()


@pytest.fixture
def go_down(db: Database) -> Callable[[], None]:
    """Make the database refuse everyone."""

    def down() -> None:
        with db.server.connect("postgres") as conn:
            conn.execute(f"alter database {db.name} allow_connections false")
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
                [db.name],
            )

    return down


@pytest.fixture
def come_up(db: Database) -> Callable[[], None]:
    """Let everyone in again."""

    def up() -> None:
        with db.server.connect("postgres") as conn:
            conn.execute(f"alter database {db.name} allow_connections true")

    return up


@pytest_asyncio.fixture
async def async_ledger(db: Database, tmp_path: Path) -> AsyncIterator[AsyncLedger]:
    """A client that spools."""
    async with await AsyncLedger.connect(
        db.dsn_as("admin"),
        on_ledger_error="spool",
        spool_path=tmp_path / "spool",
        timeout=0.3,
        max_size=2,
    ) as ledger:
        yield ledger


async def replay(ledger: AsyncLedger) -> Any:
    """Replay as soon as the client believes that the ledger is back."""
    for _ in range(100):
        try:
            return await ledger.replay_spool()
        except errors.LedgerUnavailable:
            time.sleep(0.1)
    raise AssertionError("the ledger did not come back")


def records(path: Path) -> list[Any]:
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]


def sound(db: Database) -> None:
    assert db.execute("select * from routeledger.orphans") == []
    assert db.execute("select * from routeledger.reconciliation where not agrees") == []


def tried(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(
        "select attempt_no, model_slug, status, error_type from routeledger.attempts"
        " order by attempt_no"
    )


async def test_a_decision_born_offline_is_told_as_a_story(
    async_ledger: AsyncLedger,
    db: Database,
    tmp_path: Path,
    go_down: Callable[[], None],
    come_up: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_down()
    with caplog.at_level(logging.WARNING, logger="routeledger"):
        for _ in range(2):
            async with async_ledger.decision(
                tenant_id=TENANT, candidates=RANKED, metadata={"a": 1}
            ) as decision:
                async for attempt in decision.attempts():
                    async with attempt:
                        if attempt.model_slug == "small":
                            raise TimeoutError("no answer")
                        attempt.succeed(**USAGE)
            assert decision.outcome is not None
            assert (decision.outcome.status, decision.outcome.spooled) == ("succeeded", True)
            assert decision.outcome.model_slug == "large"
    assert len([r for r in caplog.records if "writing to the spool" in r.message]) == 1
    told = records(tmp_path / "spool")
    assert [r["routine"] for r in told] == ["record_outcome"] * 2
    kept = tmp_path / "kept"
    shutil.copy(tmp_path / "spool", kept)
    come_up()
    report = await replay(async_ledger)
    assert (report.accepted, report.replayed, report.refused, report.torn) == (2, 0, 0, 0)
    assert (await async_ledger.replay_spool()).total == 0
    again = await async_ledger.replay_spool(kept)
    assert (again.accepted, again.replayed) == (0, 2)
    rows = db.execute(
        "select id, outcome_status, attempts, event_at < created_at, decision_rule"
        " from routeledger.decisions order by id"
    )
    assert rows[-1] == (decision.id, "succeeded", 2, True, "caller_ranked")
    assert len(rows) == 2
    sound(db)


async def test_the_endings_that_a_story_can_have(
    async_ledger: AsyncLedger,
    db: Database,
    go_down: Callable[[], None],
    come_up: Callable[[], None],
) -> None:
    go_down()
    async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED[1:2]) as decision:
        assert decision.rejected
        assert decision.decision_rule == "no_candidate_clears_floor"
    with pytest.raises(KeyError):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED):
            raise KeyError
    with pytest.raises(TimeoutError):
        async with async_ledger.decision(tenant_id=TENANT, chosen_model_slug="pin") as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    raise TimeoutError
    async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                break
    come_up()
    report = await replay(async_ledger)
    assert (report.accepted, report.refused) == (4, 0)
    rows = db.execute(
        "select outcome_status, decision_rule, decision_rule_override, attempts"
        " from routeledger.decisions order by id"
    )
    assert rows == [
        ("rejected", "no_candidate_clears_floor", None, 0),
        ("failed", "caller_ranked", "not_dispatched", 0),
        ("failed", "pinned", None, 1),
        ("failed", "caller_ranked", None, 1),
    ]
    sound(db)


async def test_a_decision_born_online_goes_on_offline(
    async_ledger: AsyncLedger,
    db: Database,
    tmp_path: Path,
    go_down: Callable[[], None],
    come_up: Callable[[], None],
) -> None:
    async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                if attempt.model_slug == "small":
                    go_down()
                    raise TimeoutError
                come_up()  # too late for this decision: what was begun in the spool ends there
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert decision.outcome.spooled
    assert [r["routine"] for r in records(tmp_path / "spool")] == [
        "fail_attempt",
        "start_attempt",
        "complete_decision",
    ]
    assert db.execute("select id from routeledger.in_flight") == [(decision.id,)]
    report = await replay(async_ledger)
    assert (report.accepted, report.refused) == (3, 0)
    assert tried(db) == [
        (1, "small", "failed", "timeout"),
        (2, "large", "succeeded", None),
    ]
    assert db.value("select outcome_status from routeledger.decisions") == "succeeded"
    sound(db)


async def test_giving_up_offline(
    async_ledger: AsyncLedger,
    db: Database,
    go_down: Callable[[], None],
    come_up: Callable[[], None],
) -> None:
    with pytest.raises(TimeoutError):
        async with async_ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    go_down()
                    raise TimeoutError
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.spooled) == ("failed", True)
    come_up()
    assert (await replay(async_ledger)).accepted == 1
    assert tried(db) == [(1, "m", "failed", "timeout")]
    sound(db)


async def test_a_failure_that_had_arrived_after_all(
    async_ledger: AsyncLedger, db: Database
) -> None:
    """The answer to fail_attempt was lost, so the ledger's next attempt and ours differ."""
    decision = await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    key = {"tenant_id": TENANT, "id": str(decision.id)}
    theirs, ours = new_id(), new_id()
    failed: dict[str, Any] = {
        **key,
        "attempt_id": str(decision.attempt_id),
        "error_type": "timeout",
    }
    step = await async_ledger.fail_attempt(**failed, next_attempt_id=theirs)
    assert step.next_model_slug == "small"
    start = {**key, "model_slug": "large", "attempt_id": ours}
    assert async_ledger._spool is not None
    async_ledger._spool.append(
        [
            {"routine": "fail_attempt", "row": {**failed, "next": "hold"}},
            {"routine": "start_attempt", "row": start, "instead_of": theirs},
            {
                "routine": "complete_decision",
                "row": {**key, "attempt_id": ours, "outcome_status": "succeeded", **USAGE},
            },
        ]
    )
    report = await async_ledger.replay_spool()
    assert (report.accepted, report.replayed, report.refused) == (2, 1, 0)
    assert tried(db) == [
        (1, "small", "failed", "timeout"),
        (2, "small", "failed", "not_dispatched"),
        (3, "large", "succeeded", None),
    ]
    sound(db)


@pytest.mark.parametrize("ending", ["succeeded", "failed", "not_dispatched"])
async def test_an_insert_that_had_arrived_after_all(
    async_ledger: AsyncLedger, db: Database, ending: str
) -> None:
    """The answer to insert_decision was lost, so the story is told of a decision that is there."""
    attempts = [new_id(), new_id()]
    decision = await async_ledger.insert_decision(
        tenant_id=TENANT, candidates=RANKED, attempt_id=attempts[0]
    )
    story: dict[str, Any] = {
        "tenant_id": TENANT,
        "id": str(decision.id),
        "candidates": RANKED,
        "traffic_class": "production",
    }
    if ending == "not_dispatched":
        story |= {"attempts": [], "decision_rule_override": ending}
    else:
        failure = {"status": "failed", "error_type": "timeout", "latency_ms": 5.0}
        success = {"status": "succeeded", "latency_ms": 6.0, **USAGE}
        story["attempts"] = [
            {"id": attempts[0], "model_slug": "small", **failure},
            {
                "id": attempts[1],
                "model_slug": "large",
                **(success if ending == "succeeded" else failure),
            },
        ]
    assert async_ledger._spool is not None
    async_ledger._spool.append([{"routine": "record_outcome", "row": story}])
    report = await async_ledger.replay_spool()
    assert (report.accepted, report.refused) == (1, 0)
    (row,) = db.execute(
        "select outcome_status, decision_rule_override, attempts from routeledger.decisions"
    )
    if ending == "not_dispatched":
        assert row == ("failed", "not_dispatched", 1)
    else:
        assert row == (ending, None, 2)
    assert db.execute("select * from routeledger.in_flight") == []
    sound(db)


async def test_what_the_ledger_refuses_is_kept_with_the_reason(
    async_ledger: AsyncLedger, db: Database
) -> None:
    decision = await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    row = {"tenant_id": TENANT, "id": str(decision.id), "outcome_status": "succeeded", **USAGE}
    spool = async_ledger._spool
    assert spool is not None
    spool.append(
        [
            {"routine": "complete_decision", "row": row},
            {"routine": "complete_decision", "row": {**row, "input_tokens": 7}},
            {"routine": "nonsense", "row": {}},
            {"routine": "complete_decision", "row": {**row, "nonsense": 1}},
            {"routine": "complete_decision", "row": row},
        ]
    )
    with spool.path.open("ab") as file:
        file.write(b"00000000 {")
    report = await async_ledger.replay_spool()
    assert (report.accepted, report.replayed, report.refused, report.torn) == (1, 1, 3, 1)
    reasons = [json.loads(line)["code"] for line in spool.refused_path.read_text().splitlines()]
    assert reasons == ["RL302", "RL107", "RL107"]
    sound(db)


async def test_a_replay_that_is_cut_short_goes_on_later(
    async_ledger: AsyncLedger,
    db: Database,
    go_down: Callable[[], None],
    come_up: Callable[[], None],
) -> None:
    spool = async_ledger._spool
    assert spool is not None
    spool.append(
        [
            {"routine": "record_outcome", "row": {"tenant_id": TENANT, "id": new_id()}}
            for _ in range(20)
        ]
    )
    go_down()
    with pytest.raises(errors.LedgerUnavailable):
        await async_ledger.replay_spool()
    spool.append([{"routine": "record_outcome", "row": {"tenant_id": TENANT, "id": new_id()}}])
    come_up()
    assert (await replay(async_ledger)).accepted == 21
    assert db.value("select count(*) from routeledger.decisions") == 21
    assert spool.size == 0


async def test_a_full_spool_says_so(
    db: Database, tmp_path: Path, go_down: Callable[[], None], come_up: Callable[[], None]
) -> None:
    async with await AsyncLedger.connect(
        db.dsn_as("admin"),
        on_ledger_error="spool",
        spool_path=tmp_path / "spool",
        spool_max_bytes=10,
        timeout=0.2,
    ) as ledger:
        go_down()
        with pytest.raises(errors.SpoolFull):
            async with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
                async for attempt in decision.attempts():
                    async with attempt:
                        attempt.succeed(**USAGE)
        come_up()


async def test_after_one_failure_the_next_calls_do_not_wait(
    async_ledger: AsyncLedger, go_down: Callable[[], None], come_up: Callable[[], None]
) -> None:
    go_down()
    start = time.monotonic()
    for _ in range(10):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    attempt.succeed(**USAGE)
    assert time.monotonic() - start < 10 * 0.3
    come_up()


async def test_without_a_spool_the_error_is_raised(
    db: Database, go_down: Callable[[], None], come_up: Callable[[], None]
) -> None:
    async with await AsyncLedger.connect(db.dsn_as("admin"), timeout=0.2) as ledger:
        go_down()
        with pytest.raises(errors.LedgerUnavailable) as gone:
            async with ledger.decision(tenant_id=TENANT, candidates=RANKED):
                pytest.fail("the block must not run")
        assert gone.value.retryable
        come_up()


async def test_opening_while_the_ledger_is_down(
    db: Database, tmp_path: Path, go_down: Callable[[], None], come_up: Callable[[], None]
) -> None:
    go_down()
    async with await AsyncLedger.connect(
        db.dsn_as("admin"), on_ledger_error="spool", spool_path=tmp_path / "s", timeout=0.2
    ) as ledger:
        async with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    attempt.succeed(**USAGE)
        come_up()
        assert (await replay(ledger)).accepted == 1
