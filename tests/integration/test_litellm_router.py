"""LiteLLM's Router with the logger: what the provider saw is what the ledger holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from routeledger._ids import IdMaker
from routeledger.litellm import RouteLedgerLogger
from tests.conftest import Database
from tests.litellm_books import (
    HELLO,
    Bill,
    agrees,
    attempts,
    eventually,
    kept_by,
    outcomes,
    router,
)
from tests.loopback import Loopback, answering, dropping, failing

new_id = IdMaker()


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def bill() -> Bill:
    return Bill()


@pytest_asyncio.fixture
async def books(db: Database, bill: Bill, tmp_path: Path) -> AsyncIterator[RouteLedgerLogger]:
    logger = RouteLedgerLogger(db.dsn_as("writer"), tenant="acme", spool_path=tmp_path / "spool")
    async with kept_by(logger, bill):
        yield logger
    assert logger.lost == 0
    assert not (tmp_path / "spool").exists()


async def test_retries_and_fallbacks_are_attempts_of_one_decision(
    books: RouteLedgerLogger, bill: Bill, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(429, retry_after=0.05))
    provider.plan("gpt-4o", failing(500))
    provider.plan("gpt-4.1", answering(input_tokens=120, output_tokens=35, cached_tokens=100))
    routing = router(
        provider,
        {"a": ["gpt-4o-mini"], "b": ["gpt-4o"], "c": ["gpt-4.1"]},
        fallbacks=[{"a": ["b", "c"]}],
        num_retries=1,
    )
    decision_id = new_id()
    await routing.acompletion(
        model="a",
        messages=HELLO,
        litellm_trace_id=decision_id,
        metadata={"task_type": "greeting", "agent_id": "tester"},
    )
    await books.flush()
    agrees(db, provider)
    assert attempts(db) == [
        ("openai/gpt-4o-mini", "failed", "rate_limited", 429),
        ("openai/gpt-4o-mini", "failed", "rate_limited", 429),
        ("openai/gpt-4o", "failed", "server_error", 500),
        ("openai/gpt-4o", "failed", "server_error", 500),
        ("openai/gpt-4.1", "succeeded", None, None),
    ]
    [decision] = db.execute(
        "select id::text, tenant_id, agent_id, task_type, model_slug, outcome_status, decision_rule,"
        " cost_usd from routeledger.decisions"
    )
    assert decision[:-1] == (
        decision_id, "acme", "tester", "greeting", "openai/gpt-4.1", "succeeded", "litellm_router",
    )  # fmt: skip
    [cost] = bill.costs.values()
    assert cost > 0
    assert decision[-1] == cost
    assert db.execute(
        "select input_tokens, output_tokens, cache_read_input_tokens, cost_source, finish_reasons,"
        " provider_response_id from routeledger.attempts where status = 'succeeded'"
    ) == [(120, 35, 100, "caller", ["stop"], "chatcmpl-always-the-same")]
    assert db.value("select min(retry_after_ms) from routeledger.attempts") == 50


async def test_a_request_that_fails_for_good_is_a_failed_decision(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500))
    provider.plan("gpt-4o", failing(401))
    routing = router(
        provider, {"a": ["gpt-4o-mini"], "b": ["gpt-4o"]}, fallbacks=[{"a": ["b"]}], num_retries=1
    )
    with pytest.raises(openai.APIError):
        await routing.acompletion(model="a", messages=HELLO)
    await books.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o", "failed", provider.count())]
    assert attempts(db)[-1] == ("openai/gpt-4o", "failed", "authentication", 401)


async def test_the_end_of_the_request_s_task_closes_a_failed_decision(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500))
    routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=0)
    await asyncio.gather(
        *(routing.acompletion(model="a", messages=HELLO) for _ in range(3)), return_exceptions=True
    )
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "failed", 1)] * 3)
    agrees(db, provider)


@pytest.mark.parametrize(
    ("code", "message", "error_type"),
    [
        ("", "This model's maximum context length is 10 tokens", "context_length"),
        ("context_length_exceeded", "too long", "context_length"),
        ("content_policy_violation", "not that", "content_policy"),
    ],
)
async def test_refusals_have_their_class(
    books: RouteLedgerLogger,
    db: Database,
    provider: Loopback,
    code: str,
    message: str,
    error_type: str,
) -> None:
    provider.plan("gpt-4o-mini", failing(400, error=code, message=message))
    routing = router(
        provider, {"a": ["gpt-4o-mini"], "b": ["gpt-4o"]}, fallbacks=[{"a": ["b"]}], num_retries=0
    )
    await routing.acompletion(model="a", messages=HELLO)
    await books.flush()
    agrees(db, provider)
    assert attempts(db) == [
        ("openai/gpt-4o-mini", "failed", error_type, 400),
        ("openai/gpt-4o", "succeeded", None, None),
    ]


async def test_timeouts_and_lost_connections(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(delay=1.0), dropping(), answering())
    routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=2)
    await routing.acompletion(model="a", messages=HELLO, timeout=0.4)
    await books.flush()
    agrees(db, provider)
    assert [row[1:3] for row in attempts(db)] == [
        ("failed", "timeout"),
        ("failed", "server_error"),  # LiteLLM calls a lost connection an InternalServerError
        ("succeeded", None),
    ]


async def test_the_group_s_other_deployments_are_candidates(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(429))
    routing = router(provider, {"a": ["gpt-4o-mini", "gpt-4o"]}, num_retries=2)
    for _ in range(4):
        await routing.acompletion(model="a", messages=HELLO)
    await books.flush()
    agrees(db, provider)
    assert {slug for slug, *_ in outcomes(db)} == {"openai/gpt-4o"}
    first = db.value("select candidates from routeledger.routing_outcomes order by id limit 1")
    assert {c["model_slug"] for c in first} == {"openai/gpt-4o-mini", "openai/gpt-4o"}
    assert all(c["provider"] == "openai" for c in first)


async def test_a_stream_is_one_attempt_with_its_first_token(
    books: RouteLedgerLogger, bill: Bill, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(input_tokens=50, output_tokens=7, pause=0.03))
    routing = router(provider, {"a": ["gpt-4o-mini"]})
    stream = await routing.acompletion(
        model="a", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    async for _ in stream:
        pass
    await eventually(lambda: len(bill.costs) == 1)
    await books.flush()
    agrees(db, provider)
    [(status, tokens_in, tokens_out, cost, latency, ttft)] = db.execute(
        "select status, input_tokens, output_tokens, cost_usd, latency_ms, ttft_ms"
        " from routeledger.attempts"
    )
    assert (status, tokens_in, tokens_out) == ("succeeded", 50, 7)
    assert cost == bill.costs.popitem()[1] > 0
    assert 0 < ttft < latency


async def test_a_stream_cut_before_its_first_word_falls_back(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(cut_after=0))
    routing = router(
        provider, {"a": ["gpt-4o-mini"], "b": ["gpt-4o"]}, fallbacks=[{"a": ["b"]}], num_retries=0
    )
    words = [
        chunk async for chunk in await routing.acompletion(model="a", messages=HELLO, stream=True)
    ]
    assert words
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o", "succeeded", 2)])
    agrees(db, provider)
    assert attempts(db)[0][:2] == ("openai/gpt-4o-mini", "failed")
    assert attempts(db)[0][2] != "superseded"


async def test_a_stream_cut_in_the_middle_costs_what_litellm_says(
    books: RouteLedgerLogger, bill: Bill, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(words=5, cut_after=3))
    routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=0)
    with pytest.raises(openai.APIError):
        async for _ in await routing.acompletion(model="a", messages=HELLO, stream=True):
            pass
    await eventually(lambda: attempts(db)[0][1] == "failed")
    await books.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", "failed", 1)]
    assert db.value("select cost_usd from routeledger.attempts") == bill.failed.popitem()[1] > 0
    assert db.value("select output_tokens from routeledger.attempts") > 0


async def test_what_fires_no_event_ends_as_abandoned(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(delay=5))
    provider.plan("gpt-4o", answering(pause=0.05, words=100))
    routing = router(provider, {"a": ["gpt-4o-mini"], "b": ["gpt-4o"]}, num_retries=0)

    cancelled = asyncio.create_task(routing.acompletion(model="a", messages=HELLO))
    await eventually(lambda: provider.count("gpt-4o-mini") == 1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled

    left = await routing.acompletion(model="b", messages=HELLO, stream=True)
    await left.__anext__()
    await left.aclose()

    await books.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", None, 1), ("openai/gpt-4o", None, 1)]
    with db.connect("admin") as conn:
        conn.execute("select routeledger.set_clock(clock_timestamp() + interval '10 minutes')")
        conn.execute("select from routeledger.reap()")
    assert [status for _, status, _ in outcomes(db)] == ["abandoned", "abandoned"]
    assert {error for _, _, error, _ in attempts(db)} == {"abandoned"}


async def test_thirty_two_at_a_time(
    books: RouteLedgerLogger, bill: Bill, db: Database, provider: Loopback
) -> None:
    for model in ("gpt-4o-mini", "gpt-4o", "gpt-4.1"):
        steps = [failing(429, retry_after=0.01), failing(500), answering()] * 12
        provider.plan(model, *steps, answering())
    routing = router(
        provider,
        {"a": ["gpt-4o-mini"], "b": ["gpt-4o"], "c": ["gpt-4.1"]},
        fallbacks=[{"a": ["b", "c"]}],
        num_retries=1,
        allowed_fails=1000,
    )
    limit = asyncio.Semaphore(32)

    async def ask(n: int) -> bool:
        async with limit:
            try:
                await routing.acompletion(
                    model="a", messages=HELLO, metadata={"task_type": f"task {n % 5}"}
                )
            except openai.APIError:
                return False
            return True

    answers = await asyncio.gather(*(ask(n) for n in range(96)))
    await eventually(lambda: len(bill.costs) == sum(answers))
    await books.flush()
    agrees(db, provider)
    ended = Counter(status for _, status, _ in outcomes(db))
    assert ended == Counter(succeeded=sum(answers), failed=len(answers) - sum(answers)) - Counter()
    costs = db.execute(
        "select cost_usd from routeledger.attempts where status = 'succeeded' order by cost_usd"
    )
    assert [cost for (cost,) in costs] == sorted(bill.costs.values())


async def test_one_trace_over_several_requests_is_several_decisions(
    books: RouteLedgerLogger, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", answering(delay=0.1))
    routing = router(provider, {"a": ["gpt-4o-mini"]})
    trace = new_id()
    ask = {"model": "a", "messages": HELLO, "litellm_trace_id": trace}
    await asyncio.gather(*(routing.acompletion(**ask) for _ in range(4)))
    await routing.acompletion(**ask)
    await books.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)] * 5
    traces = db.execute(
        "select distinct metadata -> 'litellm' ->> 'trace_id' from routeledger.routing_outcomes"
    )
    assert traces == [(trace,)]
    assert db.value(f"select count(*) from routeledger.routing_outcomes where id = '{trace}'") == 1


async def test_synchronous_calls(
    books: RouteLedgerLogger, bill: Bill, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500), answering())
    routing = router(provider, {"a": ["gpt-4o-mini"]}, num_retries=1)
    await asyncio.to_thread(routing.completion, model="a", messages=HELLO)
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 2)])
    agrees(db, provider)
    assert db.value("select cost_usd from routeledger.decisions") == bill.costs.popitem()[1]
