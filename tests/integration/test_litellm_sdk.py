"""LiteLLM's SDK without a Router, processes that end, and a database that is away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import litellm
import openai
import pytest
import pytest_asyncio

from routeledger import AsyncLedger
from routeledger._ids import IdMaker
from routeledger.litellm import RouteLedgerLogger, call_suffix
from tests.conftest import Database
from tests.litellm_books import HELLO, Bill, agrees, attempts, eventually, kept_by, outcomes, router
from tests.loopback import Loopback, answering, failing
from tests.servers import REPO

new_id = IdMaker()


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest_asyncio.fixture
async def books(db: Database, tmp_path: Path) -> AsyncIterator[RouteLedgerLogger]:
    logger = RouteLedgerLogger(
        db.dsn_as("writer"), tenant=lambda said: str(said.get("customer", "nobody")),
        spool_path=tmp_path / "spool", timeout=0.5,
    )  # fmt: skip
    async with kept_by(logger):
        yield logger


def there(provider: Loopback) -> dict[str, Any]:
    """Arguments of a call of the provider's, without the retries of OpenAI's own client."""
    return {"api_base": provider.base_url, "api_key": "none", "max_retries": 0}


async def test_a_call_a_stream_and_an_embedding(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    bill = Bill()
    litellm.callbacks.append(bill)
    decision_id = new_id()
    await litellm.acompletion(
        model="openai/gpt-4o-mini",
        messages=HELLO,
        metadata={"customer": "acme", "decision_id": decision_id},
        **there(provider),
    )
    stream = await litellm.acompletion(
        model="gpt-4o",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        **there(provider),
    )
    async for _ in stream:
        pass
    await litellm.aembedding(
        model="openai/text-embedding-3-small", input="hello", **there(provider)
    )
    await eventually(lambda: len(bill.costs) == 3)
    await books.flush()
    agrees(db, provider)
    rows = db.execute(
        "select id::text, tenant_id, model_slug, decision_rule, outcome_status, cost_usd"
        " from routeledger.decisions order by created_at"
    )
    assert rows[0][0] == decision_id
    assert [row[1:5] for row in rows] == [
        ("acme", "openai/gpt-4o-mini", "pinned", "succeeded"),
        ("nobody", "openai/gpt-4o", "pinned", "succeeded"),
        ("nobody", "openai/text-embedding-3-small", "pinned", "succeeded"),
    ]
    assert sorted(row[5] for row in rows) == sorted(bill.costs.values())


async def test_a_failure_closes_the_decision(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(400))

    async def ask() -> None:
        with pytest.raises(openai.BadRequestError):
            await litellm.acompletion(model="openai/gpt-4o-mini", messages=HELLO, **there(provider))

    await asyncio.create_task(ask())
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "failed", 1)])
    agrees(db, provider)
    assert attempts(db) == [("openai/gpt-4o-mini", "failed", "bad_request", 400)]


async def test_fallbacks_of_the_sdk_are_attempts_of_one_decision(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500))
    await litellm.acompletion(
        model="openai/gpt-4o-mini", messages=HELLO, fallbacks=["openai/gpt-4o"], **there(provider)
    )
    await books.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o", "succeeded", 2)]


async def test_retries_inside_the_provider_s_client_are_one_attempt(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500), answering())
    await litellm.acompletion(
        model="openai/gpt-4o-mini", messages=HELLO, **{**there(provider), "max_retries": 2}
    )
    await books.flush()
    assert provider.count() == 2
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)]


async def test_synchronous_calls_from_threads(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o", failing(500))

    def ask(model: str, stream: bool = False) -> None:
        answer = litellm.completion(
            model=f"openai/{model}", messages=HELLO, stream=stream, **there(provider)
        )
        if stream:
            list(answer)

    asked = [asyncio.to_thread(ask, "gpt-4o-mini", stream) for stream in (False, True)]
    asked.append(asyncio.to_thread(ask, "gpt-4o"))
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[2], openai.InternalServerError)
    await eventually(lambda: [s for _, s, _ in attempts_of(db)].count("succeeded") == 2)
    await books.flush()
    agrees(db, provider)
    assert sorted(outcomes(db)) == [
        ("openai/gpt-4o", "failed", 1),
        ("openai/gpt-4o-mini", "succeeded", 1),
        ("openai/gpt-4o-mini", "succeeded", 1),
    ]


def attempts_of(db: Database) -> list[tuple[Any, ...]]:
    return [row[:3] for row in attempts(db)]


async def test_a_process_that_ends_has_written_everything(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    script = f"""
        import asyncio, litellm
        from routeledger.litellm import RouteLedgerLogger, call_suffix
        litellm.callbacks = [
            RouteLedgerLogger({db.dsn_as("writer")!r}, wait=False, spool_path={str(tmp_path / "spool")!r})
        ]
        there = dict(api_base={provider.base_url!r}, api_key="none", max_retries=0)
        hello = [dict(role="user", content="hello")]
        async def main():
            for model in ("gpt-4o-mini", "gpt-4o"):
                try:
                    await litellm.acompletion(model="openai/" + model, messages=hello, **there)
                except Exception:
                    pass
        asyncio.run(main())
    """
    provider.plan("gpt-4o", failing(500))
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": str(REPO / "pydriver"),
    }
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    agrees(db, provider)
    assert outcomes(db) == [
        ("openai/gpt-4o-mini", "succeeded", 1),
        ("openai/gpt-4o", "failed", 1),
    ]
    assert not (tmp_path / "spool").exists()


async def test_a_database_that_is_away_fails_no_request(
    books: RouteLedgerLogger,
    db: Database,
    provider: Loopback,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.plan("gpt-4o-mini", answering(), failing(500), answering())
    routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=1)
    await routing.acompletion(model="a", messages=HELLO)
    await books.flush()
    with db.server.connect("postgres") as conn:
        conn.execute(f"alter database {db.name} allow_connections false")
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [db.name]
        )
    with caplog.at_level(logging.WARNING, logger="routeledger"):
        for _ in range(3):
            assert await routing.acompletion(model="a", messages=HELLO)
        await books.flush()
    said = [r.getMessage() for r in caplog.records if r.name == "routeledger"]
    assert len([text for text in said if "writing to the spool" in text]) == 1
    assert books.lost == 0
    kept = [
        json.loads(line.partition(" ")[2]) for line in (tmp_path / "spool").read_text().splitlines()
    ]
    kept.sort(key=lambda record: record["row"]["id"])
    assert [record["routine"] for record in kept] == [
        "insert_decision", "fail_attempt", "start_attempt", "complete_decision",
        "insert_decision", "complete_decision",
        "insert_decision", "complete_decision",
    ]  # fmt: skip

    with db.server.connect("postgres") as conn:
        conn.execute(f"alter database {db.name} allow_connections true")
    async with await AsyncLedger.connect(db.dsn_as("writer")) as ledger:
        report = await ledger.replay_spool(tmp_path / "spool")
        assert (report.accepted, report.refused) == (8, 0)
        again = await ledger.replay_spool(tmp_path / "spool")
        assert again.total == 0
    agrees(db, provider)
    assert outcomes(db) == [
        ("openai/gpt-4o-mini", "succeeded", 1),
        ("openai/gpt-4o-mini", "succeeded", 2),
        ("openai/gpt-4o-mini", "succeeded", 1),
        ("openai/gpt-4o-mini", "succeeded", 1),
    ]


async def test_a_database_without_a_ledger_fails_no_request(
    empty_db: Database, provider: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RouteLedgerLogger(empty_db.dsn, spool_path=tmp_path / "spool")
    async with kept_by(logger):
        routing = router(provider, {"a": ["gpt-4o-mini"]})
        for _ in range(2):
            assert await routing.acompletion(model="a", messages=HELLO)
    assert len([r for r in caplog.records if r.name == "routeledger"]) == 1
    assert len((tmp_path / "spool").read_text().splitlines()) == 4
    assert logger.lost == 0


async def test_what_the_ledger_refuses_is_counted_and_fails_no_request(
    db: Database, provider: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RouteLedgerLogger(db.dsn_as("writer"), tenant="x" * 201, spool_path=tmp_path / "spool")
    async with kept_by(logger):
        routing = router(provider, {"a": ["gpt-4o-mini"]})
        for _ in range(2):
            assert await routing.acompletion(model="a", messages=HELLO)
        await logger.flush()
        await logger.flush()
    assert len([r for r in caplog.records if r.name == "routeledger"]) == 1
    assert logger.lost == 4
    assert outcomes(db) == []


async def test_an_exhausted_budget_fails_the_request_before_the_call(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    with db.connect("admin") as conn:
        conn.execute("select from routeledger.set_budget('acme', 'day', 0)")
    logger = RouteLedgerLogger(db.dsn_as("writer"), tenant="acme", spool_path=tmp_path / "spool")
    async with kept_by(logger):
        with pytest.raises(litellm.BudgetExceededError):
            await litellm.acompletion(model="openai/gpt-4o-mini", messages=HELLO, **there(provider))
        await logger.flush()
    assert provider.count() == 0
    assert logger.lost == 0
    assert outcomes(db) == [(None, "rejected", 0)]
    [(candidate,)] = (db.value("select candidates from routeledger.routing_outcomes"),)
    assert candidate["drop_reason"] == "exceeds_budget_cap"


async def test_what_a_budget_does_not_cover_is_told_afterwards_if_it_may_pass(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    with db.connect("admin") as conn:
        conn.execute("select from routeledger.set_budget('acme', 'day', 0)")
    logger = RouteLedgerLogger(
        db.dsn_as("writer"), tenant="acme", enforce_budgets=False, spool_path=tmp_path / "spool"
    )
    provider.plan("gpt-4o-mini", failing(500), answering(), failing(500))
    async with kept_by(logger):
        routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=1)
        await routing.acompletion(model="a", messages=HELLO)
        with pytest.raises(openai.APIError):
            await routing.acompletion(model="a", messages=HELLO)
        await logger.flush()
    assert logger.lost == 0
    agrees(db, provider)
    assert [row[1:] for row in outcomes(db)] == [("succeeded", 2), ("failed", 2)]
    assert db.value("select spent_usd from routeledger.budget_status") == db.value(
        "select sum(cost_usd) from routeledger.attempts"
    )


async def test_a_call_whose_beginning_was_not_seen_is_told_as_a_story(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    logger = RouteLedgerLogger(db.dsn_as("writer"), tenant="acme", spool_path=tmp_path / "spool")
    provider.plan("gpt-4o-mini", answering(delay=0.5))
    async with kept_by(logger):
        litellm.callbacks = []
        asked = asyncio.create_task(
            litellm.acompletion(model="openai/gpt-4o-mini", messages=HELLO, **there(provider))
        )
        await eventually(lambda: provider.count() == 1)
        litellm.logging_callback_manager.add_litellm_async_success_callback(logger)
        await asked
        await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)])
    agrees(db, provider)
    assert logger.lost == 0


async def test_more_attempts_than_the_ledger_allows_are_a_decision_of_their_own(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    with db.connect("admin") as conn:
        conn.execute("select routeledger.configure('{\"retry_max_attempts\": 2}')")
    logger = RouteLedgerLogger(db.dsn_as("writer"), tenant="acme", spool_path=tmp_path / "spool")
    provider.plan("gpt-4o-mini", failing(500), failing(500), failing(500), answering())
    async with kept_by(logger):
        await router(provider, {"a": ["gpt-4o-mini"]}, num_retries=3).acompletion(
            model="a", messages=HELLO
        )
        await logger.flush()
    assert logger.lost == 0
    agrees(db, provider)
    rows = db.execute(
        "select id::text, outcome_status, metadata -> 'litellm' ->> 'continues'"
        " from routeledger.routing_outcomes order by id"
    )
    assert [row[1] for row in rows] == ["failed", "succeeded"]
    assert [row[2] for row in rows] == [None, rows[0][0]]


async def test_a_call_id_finds_its_attempt(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    for _ in range(3):
        answer = await litellm.acompletion(
            model="openai/gpt-4o-mini",
            messages=HELLO,
            litellm_call_id=f"call {_}",
            **there(provider),
        )
        assert answer.id == "chatcmpl-always-the-same"
    await books.flush()
    found = db.execute(
        "select metadata -> 'litellm' ->> 'call_id' from routeledger.routing_outcomes"
        " where inference_id::text like '%%' || %s",
        [call_suffix("call 1")],
    )
    assert found == [("call 1",)]


async def test_a_failed_decision_is_closed_after_a_while_where_no_end_is_seen(
    db: Database, provider: Loopback, tmp_path: Path
) -> None:
    logger = RouteLedgerLogger(
        db.dsn_as("writer"), tenant="acme", settle_after=0.2, spool_path=tmp_path / "spool"
    )
    provider.plan("gpt-4o-mini", failing(500))
    async with kept_by(logger):
        with pytest.raises(openai.APIError):  # in this task, which goes on
            await litellm.acompletion(model="openai/gpt-4o-mini", messages=HELLO, **there(provider))
        await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "failed", 1)])
    agrees(db, provider)


async def test_an_answer_after_the_lease_is_late(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(delay=0.5))
    asked = asyncio.create_task(
        litellm.acompletion(model="openai/gpt-4o-mini", messages=HELLO, **there(provider))
    )
    await eventually(lambda: provider.count() == 1)
    with db.connect("admin") as conn:
        conn.execute("select routeledger.set_clock(clock_timestamp() + interval '10 minutes')")
        conn.execute("select from routeledger.reap()")
    await asked
    await books.flush()
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)]
    assert db.value("select late_completion from routeledger.decisions")
    assert books.lost == 0


async def test_an_answer_from_the_cache_costs_nothing(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    litellm.cache = litellm.Cache()
    try:
        for _ in range(2):
            await litellm.acompletion(
                model="openai/gpt-4o-mini", messages=HELLO, caching=True, **there(provider)
            )
            await books.flush()
    finally:
        litellm.cache = None
    assert provider.count() == 1
    await eventually(lambda: [s for _, s, _ in outcomes(db)] == ["succeeded", "succeeded"])
    costs = [
        cost for (cost,) in db.execute("select cost_usd from routeledger.decisions order by id")
    ]
    assert costs[0] > 0
    assert costs[1] == 0


def test_a_fork_keeps_books_of_its_own(db: Database, tmp_path: Path) -> None:
    # LiteLLM's own threads do not survive a fork, so its hooks are called by hand
    script = f"""
        import os
        from routeledger.litellm import RouteLedgerLogger
        books = RouteLedgerLogger({db.dsn_as("writer")!r}, spool_path={str(tmp_path / "spool")!r})
        def call(key):
            said = {{"model": "openai/gpt-4o-mini", "litellm_call_id": key}}
            books.log_pre_api_call("gpt-4o-mini", [], said)
            said["standard_logging_object"] = {{
                "prompt_tokens": 1, "completion_tokens": 1, "response_cost": 0.5
            }}
            books.log_success_event(said, None, None, None)
        call("before")
        child = os.fork()
        call("parent" if child else "child")
        if not child:
            os._exit(0 if books.lost == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": str(REPO / "pydriver"),
        },
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)] * 3
    assert not (tmp_path / "spool").exists()
