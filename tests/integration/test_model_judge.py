"""A model as the judge, behind an endpoint of one's own that answers as it was told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from routeledger import AsyncLedger
from routeledger.judging import JudgeUnavailable, Report, Worker
from routeledger.model_judge import ModelJudge, Prices, Scale
from tests.conftest import Database
from tests.judgements import fill, hurry, statuses
from tests.loopback import Loopback, answering, dropping, failing

pytest.importorskip("openai")

RIGHT = '{"rationale": "The sum is right.", "score": 1, "label": "correct"}'


@pytest.fixture
def endpoint() -> Iterator[Loopback]:
    with Loopback() as running:
        running.plan("judge-1", answering(input_tokens=100, output_tokens=10, text=RIGHT))
        yield running


@pytest_asyncio.fixture
async def ledger(db: Database) -> AsyncIterator[AsyncLedger]:
    async with await AsyncLedger.connect(db.dsn_as("judge")) as opened:
        yield opened


async def run(ledger: AsyncLedger, endpoint: Loopback, **options: Any) -> Report:
    judge = ModelJudge("judge-1", base_url=endpoint.base_url, api_key="none", **options)
    async with judge:
        worker = Worker(ledger, judge, name=judge.name, version=judge.version, once=True)
        return await worker.run()


def said(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(
        "select score, label, rationale, judge_model, input_tokens, output_tokens, cost_usd,"
        " attempt_no from routeledger.judge_verdicts order by outcome_id"
    )


async def test_it_asks_and_records(db: Database, ledger: AsyncLedger, endpoint: Loopback) -> None:
    await fill(db, 2)
    report = await run(
        ledger,
        endpoint,
        rubric="Only sums count.",
        params={"seed": 7},
        prices=Prices(Decimal(2), Decimal(10)),
    )
    cost = Decimal("0.0003")
    assert said(db) == [(1, "correct", "The sum is right.", "judge-1", 100, 10, cost, 1)] * 2
    assert (report.input_tokens, report.output_tokens, report.cost_usd) == (200, 20, 2 * cost)
    assert statuses(db) == {"labeled": 2}

    first = endpoint.seen[0].body
    assert {k: v for k, v in first.items() if k != "messages"} == {
        "model": "judge-1",
        "temperature": 0,
        "response_format": {"type": "json_object"},
        "seed": 7,
    }
    system, user = first["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Only sums count." in system["content"]
    shown = json.loads(user["content"])
    assert shown["task_type"] == "sums"
    assert shown["request"]["messages"][0]["content"] in ("0 + 0?", "1 + 1?")
    assert shown["answer"] == {
        "role": "assistant",
        "content": str(2 * int(shown["request"]["messages"][0]["content"][0])),
    }
    # it is not told who answered
    assert not {"small", "large"} & set(user["content"].split('"'))


async def test_another_question_is_another_version(endpoint: Loopback) -> None:
    def version(**options: Any) -> str:
        return ModelJudge("judge-1", base_url=endpoint.base_url, api_key="a", **options).version

    versions = [
        version(),
        version(rubric="other"),
        version(scale=Scale(1, 5)),
        version(response_format="text"),
        version(params={"seed": 1}),
        version(params={"temperature": None}),
        version(strict=True),
    ]
    assert len(set(versions)) == len(versions)
    assert version() == version(prices=Prices(Decimal(1), Decimal(1)), timeout=7)


async def test_what_cannot_be_read_is_asked_for_again_and_then_has_no_score(
    db: Database, ledger: AsyncLedger, endpoint: Loopback
) -> None:
    await fill(db, 1)
    endpoint.plan(
        "judge-1",
        answering(input_tokens=100, output_tokens=5, text="I give it 9 of 10."),
        answering(input_tokens=130, output_tokens=9, text="```\n" + RIGHT + "\n```"),
    )
    await run(ledger, endpoint)
    assert said(db)[0][:6] == (1, "correct", "The sum is right.", "judge-1", 230, 14)
    again = endpoint.seen[1].body["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == "I give it 9 of 10."
    assert "there is no JSON object in it" in again[3]["content"]

    endpoint.plan("judge-1", answering(text='{"score": 9, "label": "good"}', input_tokens=50))
    await run(ledger, endpoint, rubric="Give up to ten points.")
    assert sorted(said(db), key=str)[1][:5] == (
        None,
        "unreadable",
        'the score 9 is not from 0 to 1: {"score": 9, "label": "good"}',
        "judge-1",
        100,
    )
    assert db.value("select reward from routeledger.routing_outcomes") == 1


async def test_a_scale_of_its_own(db: Database, ledger: AsyncLedger, endpoint: Loopback) -> None:
    await fill(db, 1)
    endpoint.plan("judge-1", answering(text='{"score": 4}', usage={"cost": 0.01}, model=None))
    await run(ledger, endpoint, scale=Scale(1, 5), response_format="text")
    score, _, _, model, *tokens, cost, _ = said(db)[0]
    assert (score, model, tokens, cost) == (0.75, "judge-1", [None, None], Decimal("0.01"))
    assert "response_format" not in endpoint.seen[0].body
    assert "from 1 (wrong) to 5 (right)" in endpoint.seen[0].body["messages"][0]["content"]


async def test_an_endpoint_that_is_away_is_waited_for(
    db: Database,
    ledger: AsyncLedger,
    endpoint: Loopback,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch)
    await fill(db, 1)
    endpoint.plan(
        "judge-1",
        failing(429, retry_after=1.5),
        failing(503),
        dropping(),
        answering(choices=None, error={"message": "upstream is away"}),
        answering(text=RIGHT),
    )
    report = await run(ledger, endpoint)
    assert (report.put_off, report.errors, report.recorded) == (4, 0, 1)
    assert said(db)[0][-1] == 1
    assert "pausing 1.5 s: RateLimitError" in caplog.messages[0]
    assert 'no chat completion: {"message": "upstream is away"}' in caplog.messages[3]


@pytest.mark.parametrize(
    ("step", "fragment"),
    [
        (failing(401, message="Incorrect API key"), "Incorrect API key"),
        (failing(404, message="no such model"), "no such model"),
        (failing(429, error="insufficient_quota", message="pay first"), "pay first"),
        (failing(400, message="response_format is not supported"), "response_format"),
    ],
    ids=["key", "model", "quota", "format"],
)
async def test_what_no_waiting_mends(
    db: Database, ledger: AsyncLedger, endpoint: Loopback, step: Any, fragment: str
) -> None:
    await fill(db, 3)
    endpoint.plan("judge-1", step)
    with pytest.raises(JudgeUnavailable, match=fragment):
        await run(ledger, endpoint)
    assert statuses(db) == {"unlabeled": 3}
    assert db.value("select coalesce(sum(attempts), 0) from routeledger.judge_leases") == 0


async def test_what_the_endpoint_will_not_judge_has_no_score(
    db: Database, ledger: AsyncLedger, endpoint: Loopback
) -> None:
    await fill(db, 5)
    endpoint.plan(
        "judge-1",
        failing(400, error="context_length_exceeded"),
        failing(400, message="This model's maximum context length is 8192 tokens"),
        failing(400, error="content_filter"),
        answering(choices=[{"message": {"content": None, "refusal": "I will not."}}]),
        answering(choices=[{"message": {"content": ""}, "finish_reason": "content_filter"}]),
    )
    report = await run(ledger, endpoint)
    assert (report.unusable, report.errors, report.usable) == (5, 0, 0)
    assert sorted(row[1] for row in said(db)) == ["refused"] * 3 + ["too_long"] * 2
    assert {row[0] for row in said(db)} == {None}


async def test_nothing_recorded_is_an_error_and_not_a_zero(
    db: Database, ledger: AsyncLedger, endpoint: Loopback
) -> None:
    ids = await fill(db, 2)
    db.execute("delete from routeledger.inference_payloads where outcome_id = %s", [ids[0]])
    report = await run(ledger, endpoint)
    assert (report.recorded, report.errors) == (1, 1)
    assert endpoint.count() == 1
    assert "no response was recorded" in (report.last_error or "")
    assert statuses(db) == {"labeled": 1, "claimed": 1}
