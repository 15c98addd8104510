"""Every method and every way out of the loop, against a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from routeledger import AsyncLedger, Candidate, errors
from routeledger._aio import sleep
from routeledger._version import __version__
from tests.conftest import Database

TENANT = "acme"
RANKED: list[Any] = ["small", Candidate("large", provider="p", extra={"score": 0.5})]
USAGE: dict[str, Any] = {"input_tokens": 100, "output_tokens": 20}
MISSING = UUID("01900000-0000-7000-8000-000000000000")


class ProviderError(Exception):
    """As providers' clients raise them."""

    def __init__(self, status_code: int | None = None, **headers: str) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = headers


@pytest_asyncio.fixture(params=["coalesced", "single"])
async def async_ledger(request: pytest.FixtureRequest, db: Database) -> AsyncIterator[AsyncLedger]:
    """A client of the test's own database, in both ways of writing."""
    async with await AsyncLedger.connect(
        db.dsn_as("admin"), coalesce=request.param == "coalesced", max_size=4
    ) as ledger:
        yield ledger


@pytest.fixture
def quick(db: Database) -> None:
    """No waiting before retries; one attempt a candidate."""
    db.execute(
        "select routeledger.configure(%s)",
        ['{"retry_attempts_per_model": 1, "retry_base": "0 seconds"}'],
    )


def books(db: Database) -> dict[str, Any]:
    """The only decision there is, with its attempts; the ledger must be sound."""
    assert db.execute("select * from routeledger.orphans") == []
    assert db.execute("select * from routeledger.reconciliation where not agrees") == []
    with db.connect() as conn:
        conn.row_factory = dict_row
        decisions: list[Any] = conn.execute("select * from routeledger.decisions").fetchall()
        assert len(decisions) == 1
        attempts = conn.execute("select * from routeledger.attempts order by attempt_no").fetchall()
    return {**decisions[0], "tried": attempts}


# -- two phases --


async def test_a_cycle(async_ledger: AsyncLedger, db: Database) -> None:
    decision = await async_ledger.insert_decision(
        tenant_id=TENANT,
        candidates=RANKED,
        agent_id="support",
        task_type="chat",
        min_quality=0.4,
        budget_cap_usd=Decimal("0.05"),
        policy_version="7",
        traffic_class="synthetic",
        event_at=datetime.now(timezone.utc) - timedelta(minutes=1),
        lease=timedelta(minutes=1),
        metadata={"π": [1, {"a": None}]},
    )
    assert (decision.model_slug, decision.attempt_no, decision.created) == ("small", 1, True)
    assert decision.decision_rule == "caller_ranked"
    assert not decision.rejected
    step = await async_ledger.fail_attempt(
        tenant_id=TENANT,
        id=decision.id,
        attempt_id=decision.attempt_id or MISSING,
        error_type="rate_limited",
        error_message="slow down",
        http_status=404,
        latency_ms=12.5,
    )
    assert (step.action, step.next_model_slug, step.next_provider) == ("failover", "large", "p")
    done = await async_ledger.complete_decision(
        tenant_id=TENANT,
        id=decision.id,
        outcome_status="succeeded",
        cost_usd=Decimal("0.0000001"),
        finish_reasons=["stop"],
        response_model="large-2",
        provider_response_id="r1",
        **USAGE,
    )
    assert (done.outcome_status, done.attempt_no, done.late, done.created) == (
        "succeeded",
        2,
        False,
        True,
    )
    assert done.inference_id == step.next_attempt_id
    assert (done.cost_usd, done.cost_source) == (Decimal("0.0000001"), "caller")
    (row,) = await async_ledger.decisions(tenant_id=TENANT)
    assert (row.id, row.attempts, row.failovers, row.outcome_status) == (
        decision.id,
        2,
        1,
        "succeeded",
    )
    assert row.event_at is not None
    assert row.event_at < row.created_at
    assert await async_ledger.decisions(tenant_id="other") == []
    assert [r.id for r in await async_ledger.decisions(id=str(decision.id))] == [decision.id]
    books(db)


async def test_repetition_gives_the_first_answer(async_ledger: AsyncLedger, db: Database) -> None:
    first = await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    again = await async_ledger.insert_decision(
        tenant_id=TENANT, candidates=RANKED, id=first.id, attempt_id=first.attempt_id
    )
    assert not again.created
    assert (again.id, again.attempt_id, again.model_slug) == (
        first.id,
        first.attempt_id,
        first.model_slug,
    )
    with pytest.raises(errors.IdReused) as reused:
        await async_ledger.insert_decision(
            tenant_id=TENANT, candidates=["other"], id=first.id, attempt_id=first.attempt_id
        )
    assert reused.value.sqlstate == "RL301"
    assert reused.value.detail["id"] == str(first.id)
    assert reused.value.hint
    assert not reused.value.retryable
    for created in (True, False):
        done = await async_ledger.complete_decision(
            tenant_id=TENANT,
            id=first.id,
            outcome_status="succeeded",
            attempt_id=first.attempt_id,
            **USAGE,
        )
        assert done.created is created
    with pytest.raises(errors.AlreadyCompleted):
        await async_ledger.complete_decision(
            tenant_id=TENANT, id=first.id, outcome_status="failed", error_type="x"
        )
    books(db)


async def test_hold_and_start(async_ledger: AsyncLedger, db: Database) -> None:
    decision = await async_ledger.insert_decision(tenant_id=TENANT, chosen_model_slug="m1")
    assert decision.decision_rule == "pinned"
    with pytest.raises(errors.AttemptOpen):
        await async_ledger.start_attempt(tenant_id=TENANT, id=decision.id, model_slug="m2")
    step = await async_ledger.fail_attempt(
        tenant_id=TENANT,
        id=str(decision.id),
        attempt_id=str(decision.attempt_id),
        error_type="x",
        next="hold",
    )
    assert (step.action, step.next_attempt_id) == ("hold", None)
    started = await async_ledger.start_attempt(
        tenant_id=TENANT, id=decision.id, model_slug="m2", provider="q"
    )
    assert (started.attempt_no, started.model_slug, started.provider) == (2, "m2", "q")
    lease = await async_ledger.extend_lease(
        tenant_id=TENANT, id=decision.id, lease=timedelta(hours=1)
    )
    assert lease.lease_expires_at > datetime.now(timezone.utc) + timedelta(minutes=50)
    (flying,) = await async_ledger.in_flight(tenant_id=TENANT)
    assert (flying.attempt_id, flying.expired) == (started.attempt_id, False)
    await async_ledger.complete_decision(
        tenant_id=TENANT, id=decision.id, outcome_status="failed", error_type="gave_up"
    )
    assert await async_ledger.in_flight() == []
    with pytest.raises(errors.DecisionClosed):
        await async_ledger.start_attempt(tenant_id=TENANT, id=decision.id, model_slug="m3")
    books(db)


async def test_a_story_and_a_payload(async_ledger: AsyncLedger, db: Database) -> None:
    now = datetime.now(timezone.utc)
    story: dict[str, Any] = {
        "tenant_id": TENANT,
        "id": str(UUID(async_ledger._ids())),
        "candidates": RANKED,
        "event_at": now - timedelta(days=1),
        "attempts": [
            {
                "id": async_ledger._ids(),
                "model_slug": "small",
                "status": "failed",
                "error_type": "timeout",
                "latency_ms": 30_000,
            },
            {
                "id": async_ledger._ids(),
                "model_slug": "large",
                "status": "succeeded",
                "started_at": now - timedelta(seconds=5),
                "completed_at": now - timedelta(seconds=4),
                "cost_usd": Decimal("0.25"),
                **USAGE,
            },
        ],
    }
    told = await async_ledger.record_outcome(**story)
    assert (told.attempts, told.outcome_status, told.cost_usd, told.created) == (
        2,
        "succeeded",
        Decimal("0.25"),
        True,
    )
    assert not (await async_ledger.record_outcome(**story)).created
    assert told.inference_id is not None
    stored = await async_ledger.record_payload(
        tenant_id=TENANT,
        id=told.id,
        attempt_id=told.inference_id,
        request={"messages": ["hi"]},
        response=["text", 1.5],
    )
    assert stored.created
    (payload,) = db.execute("select request, response from routeledger.inference_payloads")
    assert payload == ({"messages": ["hi"]}, ["text", 1.5])
    assert (await async_ledger.reconciliation(since=now - timedelta(hours=2)))[0].agrees
    books(db)


async def test_upkeep(db: Database) -> None:
    async with await AsyncLedger.connect(db.dsn_as("admin")) as ledger:
        assert await ledger.version() == __version__
        assert (await ledger.configure({"lease": "1 second"}))["lease"] == "00:00:01"
        assert (await ledger.configure())["lease"] == "00:00:01"
        with pytest.raises(errors.LedgerError) as unknown:
            await ledger.configure({"nonsense": 1})
        assert unknown.value.sqlstate == "RL107"
        imported = await ledger.import_models(
            [
                {
                    "model_slug": "small",
                    "provider": "p",
                    "valid_from": datetime(2026, 1, 1, tzinfo=timezone.utc),
                    "input_usd_per_mtok": Decimal("0.5"),
                    "output_usd_per_mtok": 1,
                },
                {"model_slug": ""},
            ]
        )
        assert [r.status for r in imported] == ["accepted", "refused"]
        assert imported[0].unwrap().model_slug == "small"
        assert isinstance(imported[1].error, errors.MissingArgument)
        assert isinstance(await ledger.maintain(ahead=timedelta(days=60)), list)
        assert await ledger.maintain(ahead=timedelta(days=60)) == []
    async with await AsyncLedger.connect(db.dsn_as("admin")) as ledger:
        decision = await ledger.insert_decision(tenant_id=TENANT, candidates=["small"])
        assert decision.provider == "p"
        await sleep(1.1)
        reaped = await ledger.reap(limit=10)
        assert [(r.tenant_id, r.id, r.inference_id) for r in reaped] == [
            (TENANT, decision.id, decision.attempt_id)
        ]
        assert await ledger.reap(tenant_id=TENANT) == []
        with pytest.raises(errors.LeaseLost):
            await ledger.extend_lease(tenant_id=TENANT, id=decision.id)
        late = await ledger.complete_decision(
            tenant_id=TENANT,
            id=decision.id,
            outcome_status="succeeded",
            input_tokens=2_000_000,
            output_tokens=1_000_000,
        )
        assert late.late
        assert (late.cost_usd, late.cost_source) == (Decimal(2), "catalog")
        assert await ledger.orphans() == []
    books(db)


# -- judging --


async def succeeded(ledger: AsyncLedger, number: int) -> list[UUID]:
    """So many decisions that can be judged."""
    attempt = {"model_slug": "small", "status": "succeeded", "cost_usd": 1, **USAGE}
    told = await ledger.record_outcomes(
        [{"tenant_id": TENANT, "candidates": ["small"], "attempts": [attempt]}] * number
    )
    return [one.unwrap().id for one in told]


async def test_judging(async_ledger: AsyncLedger, db: Database) -> None:
    ids = await succeeded(async_ledger, 5)
    who: dict[str, Any] = {"judge": "sums", "judge_version": "1"}
    assert [q.ready for q in await async_ledger.judge_queue()] == [5]
    claimed = await async_ledger.claim_judgements(
        **who, tenant_id=TENANT, limit=4, lease=timedelta(minutes=1), from_=date(2020, 1, 1)
    )
    assert [c.id for c in claimed] == ids[:4]
    assert {(c.tenant_id, c.attempt_no, c.model_slug, c.cost_usd) for c in claimed} == {
        (TENANT, 1, "small", Decimal(1))
    }
    keys: list[dict[str, Any]] = [
        {"tenant_id": c.tenant_id, "id": c.id, "lease_token": c.lease_token, **who} for c in claimed
    ]
    renewed = await async_ledger.renew_judgement(**keys[0], lease=timedelta(hours=1))
    assert renewed.lease_expires_at > claimed[0].lease_expires_at
    again = await async_ledger.renew_judgements([keys[0], {**keys[1], "lease_token": MISSING}])
    assert [r.status for r in again] == ["replayed", "refused"]
    assert isinstance(again[1].error, errors.ClaimLost)

    verdict: dict[str, Any] = {
        "score": 0.5,
        "label": "partly",
        "rationale": "half of it",
        "judge_model": "m",
        "input_tokens": 3,
        "output_tokens": 4,
        "cost_usd": Decimal("0.01"),
    }
    done = await async_ledger.record_verdict(**keys[0], **verdict)
    assert (done.id, done.usable, done.reward, done.reward_source, done.judge_status) == (
        ids[0],
        True,
        0.5,
        "judge",
        "labeled",
    )
    assert done.created
    assert not (await async_ledger.record_verdict(**keys[0], **verdict)).created
    with pytest.raises(errors.VerdictDiffers):
        await async_ledger.record_verdict(**{**keys[0], "lease_token": None}, score=1)
    with pytest.raises(errors.ClaimLost):
        await async_ledger.record_verdict(**{**keys[1], "lease_token": MISSING}, score=1)
    human = await async_ledger.record_verdict(
        tenant_id=TENANT, id=ids[0], judge="ann", judge_version="1", score=1, reward_source="human"
    )
    assert (human.reward, human.reward_source) == (0.75, "human")
    many = await async_ledger.record_verdicts([{**keys[1], "score": -1}, {**keys[2], "score": 7}])
    assert [r.code for r in many] == [None, "RL103"]
    assert (many[0].unwrap().usable, many[0].unwrap().judge_status) == (False, "cannot_evaluate")

    back = await async_ledger.release_judgement(**keys[2], error="no", delay=timedelta(hours=1))
    assert (back.judge_status, back.available_at is None) == ("claimed", False)
    freed = await async_ledger.release_judgements([keys[3], keys[0]])
    assert [r.code for r in freed] == [None, "RL402"]
    assert freed[0].unwrap().judge_status == "unlabeled"
    open_ = await async_ledger.insert_decision(tenant_id=TENANT, candidates=["small"])
    with pytest.raises(errors.NotJudgeable):
        await async_ledger.record_verdict(tenant_id=TENANT, id=open_.id, **who, score=1)

    rows = await async_ledger.verdicts(tenant_id=TENANT, id=ids[0], judge="sums")
    assert [(r.score, r.label, r.cost_usd, r.counts) for r in rows] == [
        (0.5, "partly", Decimal("0.01"), True)
    ]
    assert [(a.judge_a, a.judge_b, a.n) for a in await async_ledger.judge_agreement()] == [
        ("ann", "sums", 1)
    ]
    days = await async_ledger.judge_drift(since=date(2020, 1, 1))
    assert [(d.judge, d.n, d.unusable_n) for d in days] == [("ann", 1, 0), ("sums", 1, 1)]
    assert await async_ledger.judge_findings() == []
    (taken,) = await async_ledger.withdraw_verdicts(
        **who, reason="a fault", model_slug="small", from_=date(2020, 1, 1), to=date(2999, 1, 1)
    )
    assert (taken.tenant_id, taken.verdicts, taken.unlabeled) == (TENANT, 2, 1)
    assert db.value("select max(reward) from routeledger.routing_outcomes") == 1
    (listed,) = await async_ledger.verdict_withdrawals()
    assert (listed.withdrawal_id, listed.reason) == (taken.withdrawal_id, "a fault")
    put_back = await async_ledger.reinstate_verdicts(
        tenant_id=TENANT, withdrawal_id=taken.withdrawal_id
    )
    assert put_back.verdicts == 2
    assert db.value("select max(reward) from routeledger.routing_outcomes") == 0.75
    with pytest.raises(errors.WithdrawalNotFound):
        await async_ledger.reinstate_verdicts(tenant_id=TENANT, withdrawal_id=MISSING)


async def test_the_corpus_and_the_estimates(async_ledger: AsyncLedger) -> None:
    with pytest.raises(errors.EmptyCorpus) as empty:
        await async_ledger.corpus_manifest(tenant_id=TENANT)
    assert empty.value.detail["tenant_id"] == TENANT
    ids = await succeeded(async_ledger, 5)
    await async_ledger.record_verdicts(
        [
            {"tenant_id": TENANT, "id": id_, "judge": "a", "judge_version": "1", "score": 0.5}
            for id_ in ids
        ]
    )
    pages = []
    async for page in async_ledger.export_corpus(tenant_id=TENANT, page=2):
        pages.append(page)
    assert [len(page) for page in pages] == [2, 2, 1]
    rows = [row for page in pages for row in page]
    assert [row.id for row in rows] == ids
    assert {(row.reward, row.model_slug, row.cost_usd, row.verdict_n) for row in rows} == {
        (0.5, "small", Decimal(1), 1)
    }
    rest = [
        row.id
        async for page in async_ledger.export_corpus(
            tenant_id=TENANT, after=ids[2], reward_source=["judge"], payloads=True
        )
        for row in page
    ]
    assert rest == ids[3:]
    manifest = await async_ledger.corpus_manifest(tenant_id=TENANT, from_=date(2020, 1, 1))
    assert (manifest.outcomes, manifest.first_id, manifest.models) == (5, ids[0], {"small": 5})
    with pytest.raises(errors.NotInVocabulary):
        await async_ledger.corpus_manifest(
            tenant_id=TENANT, traffic_class=["production", "synthetic"]
        )
    estimates = await async_ledger.estimate_policy(
        tenant_id=TENANT, policy="default", overrides={"min_quality": 0.1}, confidence=0.9
    )
    assert len(estimates) == 10
    was = next(e for e in estimates if (e.estimator, e.measure) == ("as_it_was", "quality"))
    assert (was.decisions, was.no_propensity) == (5, 5)
    with pytest.raises(errors.PolicyNotFound):
        await async_ledger.estimate_policy(tenant_id=TENANT, policy="none")


# -- many at once --


async def test_set_forms_answer_per_row(async_ledger: AsyncLedger, db: Database) -> None:
    opened = await async_ledger.insert_decisions(
        [
            {"tenant_id": TENANT, "candidates": RANKED},
            {"tenant_id": TENANT, "candidates": RANKED, "min_quality": float("nan")},
            {"tenant_id": TENANT, "min_quality": 7},
            {"tenant_id": TENANT, "candidates": RANKED, "nonsense": 1},
            {"tenant_id": TENANT, "candidates": []},
        ]
    )
    assert [(r.ord, r.status, r.code) for r in opened] == [
        (1, "accepted", None),
        (2, "refused", "RL107"),
        (3, "refused", "RL103"),
        (4, "refused", "RL107"),
        (5, "accepted", None),
    ]
    assert opened[4].unwrap().rejected
    assert isinstance(opened[2].error, errors.OutOfRange)
    first = opened[0].unwrap()
    key = {"tenant_id": TENANT, "id": first.id}
    failed = await async_ledger.fail_attempts(
        [{**key, "attempt_id": first.attempt_id, "error_type": "x", "next": "hold"}]
    )
    assert failed[0].unwrap().action == "hold"
    started = await async_ledger.start_attempts([{**key, "model_slug": "m"}])
    second = started[0].unwrap()
    assert second.created
    leases = await async_ledger.extend_leases([{**key, "lease": timedelta(hours=2)}, key])
    assert [r.status for r in leases] == ["accepted", "replayed"]
    stored = await async_ledger.record_payloads(
        [{**key, "attempt_id": second.attempt_id, "request": {"q": 1}}]
    )
    assert stored[0].unwrap().created
    done = await async_ledger.complete_decisions(
        [
            {**key, "outcome_status": "succeeded", **USAGE},
            {**key, "id": MISSING, "outcome_status": "succeeded", **USAGE},
        ]
    )
    assert [r.status for r in done] == ["accepted", "refused"]
    assert isinstance(done[1].error, errors.DecisionNotFound)
    told = await async_ledger.record_outcomes([{"tenant_id": TENANT, "candidates": []}])
    assert told[0].unwrap().outcome_status == "rejected"
    assert await async_ledger.insert_decisions([]) == []
    assert db.execute("select * from routeledger.orphans") == []


async def test_bad_values_have_the_same_error_in_every_way(async_ledger: AsyncLedger) -> None:
    with pytest.raises(errors.OutOfRange):
        await async_ledger.insert_decision(
            tenant_id=TENANT, candidates=["m"], min_quality=float("nan")
        )
    with pytest.raises(errors.MissingArgument):
        await async_ledger.insert_decision(tenant_id="", candidates=["m"])
    with pytest.raises(errors.MalformedRow):
        await async_ledger.insert_decision(tenant_id="a\x00", candidates=["m"])
    with pytest.raises(errors.MalformedRow):
        await async_ledger.insert_decision(tenant_id=TENANT, metadata={"x": "\x00"})
    with pytest.raises(errors.MalformedCandidates):
        await async_ledger.insert_decision(tenant_id=TENANT, candidates=[{"slug": "m"}])
    with pytest.raises(errors.NotUuidV7):
        await async_ledger.insert_decision(
            tenant_id=TENANT, candidates=["m"], id="8c4f1d3e-46b5-4b0f-9d0c-2f6a4d5b6c7d"
        )
    with pytest.raises(errors.IdOutsideWindow):
        await async_ledger.insert_decision(
            tenant_id=TENANT, candidates=["m"], id="f1900000-0000-7000-8000-000000000000"
        )


# -- the caller's connection --


async def test_a_borrowed_connection_is_not_committed(
    async_ledger: AsyncLedger, db: Database
) -> None:
    async with await AsyncConnection.connect(db.dsn_as("admin"), row_factory=dict_row) as conn:
        decision = await async_ledger.insert_decision(
            tenant_id=TENANT, candidates=RANKED, conn=conn
        )
        await async_ledger.complete_decision(
            tenant_id=TENANT,
            id=decision.id,
            outcome_status="succeeded",
            conn=conn,
            **USAGE,
        )
        assert len(await async_ledger.decisions(conn=conn)) == 1
        assert await async_ledger.decisions() == []
        assert await async_ledger.orphans(conn=conn) == []
        assert await async_ledger.version(conn=conn) == __version__
        await conn.rollback()
        assert await async_ledger.decisions() == []
        rows = await async_ledger.insert_decisions(
            [{"tenant_id": TENANT, "candidates": RANKED}], conn=conn
        )
        assert rows[0].status == "accepted"
        with pytest.raises(errors.DecisionNotFound):
            await async_ledger.extend_lease(tenant_id=TENANT, id=MISSING, conn=conn)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        await conn.rollback()
        await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED, conn=conn)
        await conn.commit()
    assert len(await async_ledger.decisions()) == 1


async def test_a_lost_borrowed_connection_is_an_error_at_once(
    async_ledger: AsyncLedger, db: Database
) -> None:
    async with await AsyncConnection.connect(db.dsn_as("admin")) as conn:
        db.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(errors.LedgerUnavailable):
            await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED, conn=conn)


# -- the loop --


async def test_loop_first_attempt_succeeds(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(
        tenant_id=TENANT, agent_id="support", task_type="chat", candidates=RANKED
    ) as decision:
        assert db.value("select count(*) from routeledger.in_flight") == 1
        async for attempt in decision.attempts():
            async with attempt:
                assert (attempt.model_slug, attempt.attempt_no) == ("small", 1)
                await sleep(0.01)
                attempt.first_token()
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.model_slug) == ("succeeded", "small")
    book = books(db)
    assert book["outcome_status"] == "succeeded"
    (tried,) = book["tried"]
    assert tried["latency_ms"] >= 10
    assert 10 <= tried["ttft_ms"] <= tried["latency_ms"]


@pytest.mark.usefixtures("quick")
async def test_loop_goes_on_after_provider_errors(async_ledger: AsyncLedger, db: Database) -> None:
    seen: list[Any] = []
    async with async_ledger.decision(
        tenant_id=TENANT, candidates=[*RANKED, {"model_slug": "x", "drop_reason": "slow"}, "last"]
    ) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                seen.append((attempt.model_slug, attempt.provider, attempt.candidate.get("score")))
                if attempt.model_slug == "small":
                    raise ProviderError(429, **{"retry-after": "120"})
                if attempt.model_slug == "large":
                    attempt.fail("context_length_exceeded", "no", http_status=400, input_tokens=5)
                else:
                    attempt.succeed(**USAGE)
    assert seen == [("small", None, None), ("large", "p", 0.5), ("last", None, None)]
    book = books(db)
    assert (book["outcome_status"], book["attempts"], book["model_slug"]) == (
        "succeeded",
        3,
        "last",
    )
    first, second, _ = book["tried"]
    assert (first["error_type"], first["http_status"], first["retry_after_ms"]) == (
        "rate_limited",
        429,
        120_000,
    )
    assert first["error_message"] == "status 429"
    assert (second["error_type"], second["error_message"], second["input_tokens"]) == (
        "context_length_exceeded",
        "no",
        5,
    )


async def test_loop_retries_after_a_delay(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                if attempt.attempt_no == 1:
                    raise ProviderError(503, **{"retry-after-ms": "300"})
                attempt.succeed(**USAGE)
    book = books(db)
    assert book["attempts"] == 2
    first, second = book["tried"]
    assert second["started_at"] - first["completed_at"] >= timedelta(milliseconds=300)
    assert book["completed_at"] - first["completed_at"] >= timedelta(milliseconds=295)


@pytest.mark.usefixtures("quick")
async def test_loop_raises_the_last_error_when_nothing_is_left(
    async_ledger: AsyncLedger, db: Database
) -> None:
    with pytest.raises(ProviderError, match="status 501"):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    raise ProviderError(499 + attempt.attempt_no)
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.error_type) == ("failed", "server_error")
    book = books(db)
    assert (book["outcome_status"], book["attempts"]) == ("failed", 2)


@pytest.mark.usefixtures("quick")
async def test_loop_ends_quietly_when_fail_was_said(
    async_ledger: AsyncLedger, db: Database
) -> None:
    async with async_ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                attempt.fail("empty_answer")
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.error_type) == ("failed", "empty_answer")
    assert books(db)["outcome_status"] == "failed"


async def test_loop_rejected_has_no_attempts(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(
        tenant_id=TENANT, candidates=[Candidate("m", drop_reason="floor")]
    ) as decision:
        assert decision.rejected
        assert decision.decision_rule == "no_candidate_clears_floor"
        async for _ in decision.attempts():
            pytest.fail("there is nothing to call")
    assert decision.outcome is not None
    assert decision.outcome.status == "rejected"
    assert books(db)["outcome_status"] == "rejected"


async def test_leaving_by_break_inside_the_attempt(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                break
    assert decision.outcome is not None
    assert decision.outcome.status == "failed"
    book = books(db)
    assert (book["outcome_status"], book["tried"][0]["error_type"]) == ("failed", "caller_left")


async def test_leaving_by_return(async_ledger: AsyncLedger, db: Database) -> None:
    async def call() -> str:
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    return "gone"
        return "never"

    assert await call() == "gone"
    assert books(db)["tried"][0]["error_type"] == "caller_left"


@pytest.mark.usefixtures("quick")
async def test_leaving_between_attempts(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                raise ProviderError(500)
            break
    book = books(db)
    assert (book["outcome_status"], book["attempts"]) == ("failed", 2)
    assert [t["error_type"] for t in book["tried"]] == ["server_error", "caller_left"]


async def test_leaving_before_any_dispatch(async_ledger: AsyncLedger, db: Database) -> None:
    with pytest.raises(KeyError):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED):
            raise KeyError("nothing was called")
    book = books(db)
    assert (book["outcome_status"], book["decision_rule_override"]) == (
        "failed",
        "not_dispatched",
    )
    assert db.value("select inference_id from routeledger.routing_outcomes") is None
    assert book["tried"][0]["error_type"] == "caller_left"
    assert "KeyError" in book["tried"][0]["error_message"]


async def test_an_error_after_success_changes_nothing(
    async_ledger: AsyncLedger, db: Database
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    attempt.succeed(**USAGE)
                    raise ZeroDivisionError
    assert books(db)["outcome_status"] == "succeeded"


@pytest.mark.parametrize("way_out", [KeyboardInterrupt, SystemExit])
async def test_interrupts_close_the_books(
    async_ledger: AsyncLedger, db: Database, way_out: type[BaseException]
) -> None:
    async def work() -> None:
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    raise way_out

    caught = False
    try:
        await work()
    except way_out:
        caught = True
    assert caught
    assert books(db)["tried"][0]["error_type"] == "cancelled"


async def test_a_closed_generator_closes_the_books(async_ledger: AsyncLedger, db: Database) -> None:
    async def stream() -> AsyncIterator[str]:
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    yield "first token"
                    attempt.succeed(**USAGE)

    tokens = stream()
    async for token in tokens:
        assert token == "first token"
        break
    await tokens.aclose()  # type: ignore[attr-defined]
    book = books(db)
    assert (book["outcome_status"], book["tried"][0]["error_type"]) == ("failed", "caller_left")


async def test_misuse_is_an_error(async_ledger: AsyncLedger, db: Database) -> None:
    with pytest.raises(RuntimeError, match="context manager"):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for _ in decision.attempts():
                pass
    assert books(db)["decision_rule_override"] == "not_dispatched"
    with pytest.raises(RuntimeError, match="entered once"):
        async with decision:
            pass


async def test_a_refused_decision_is_the_callers_error(async_ledger: AsyncLedger) -> None:
    with pytest.raises(errors.OutOfRange):
        async with async_ledger.decision(tenant_id=TENANT, candidates=RANKED, min_quality=2.0):
            pytest.fail("the block must not run")


async def test_the_heartbeat_keeps_the_reaper_away(async_ledger: AsyncLedger, db: Database) -> None:
    async with async_ledger.decision(
        tenant_id=TENANT, candidates=RANKED, lease=timedelta(seconds=1)
    ) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                await sleep(1.7)
                assert await async_ledger.reap() == []
                attempt.succeed(**USAGE)
    assert not decision.lease_lost
    assert books(db)["outcome_status"] == "succeeded"


async def test_without_heartbeat_the_ending_is_late(
    async_ledger: AsyncLedger, db: Database
) -> None:
    async with async_ledger.decision(
        tenant_id=TENANT, candidates=RANKED, lease=timedelta(seconds=1), heartbeat=False
    ) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                await sleep(1.2)
                assert len(await async_ledger.reap()) == 1
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert decision.outcome.late
    book = books(db)
    assert (book["outcome_status"], book["late_completion"]) == ("succeeded", True)


async def test_a_writer_needs_no_more_rights(db: Database) -> None:
    async with await AsyncLedger.connect(db.dsn_as("writer")) as ledger:
        async with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    attempt.succeed(**USAGE)
        with pytest.raises(errors.LedgerError) as forbidden:
            await ledger.decisions()
        assert forbidden.value.sqlstate == "42501"
        assert forbidden.value.name == "insufficient_privilege"
    assert books(db)["outcome_status"] == "succeeded"


# -- opening and closing --


async def test_not_installed_says_what_to_run(empty_db: Database) -> None:
    with pytest.raises(errors.NotInstalled) as missing:
        await AsyncLedger.connect(empty_db.dsn)
    assert missing.value.hint is not None
    assert missing.value.hint.startswith("Run: routeledger install --dsn ")
    assert empty_db.name in missing.value.hint
    async with await AsyncLedger.connect(empty_db.dsn, check_version=False):
        pass


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("0.0.9", errors.OtherVersionInstalled),
        ("9.0.0", errors.SchemaTooNew),
        ("0.1.99", None),
    ],
)
async def test_other_versions(
    db: Database, version: str, error: type[errors.LedgerError] | None
) -> None:
    db.execute(
        f"create or replace function routeledger.version() returns text language sql immutable "
        f"parallel safe as 'select ''{version}''::text'"
    )
    if error is None:
        async with await AsyncLedger.connect(db.dsn):
            pass
        return
    with pytest.raises(error) as found:
        await AsyncLedger.connect(db.dsn)
    assert found.value.detail["installed"] == version
    assert found.value.hint


async def test_no_rights_says_what_to_grant(db: Database) -> None:
    with pytest.raises(errors.LedgerError) as forbidden:
        await AsyncLedger.connect(db.dsn_as("nobody"))
    assert forbidden.value.sqlstate == "42501"
    assert "routeledger_writer" in (forbidden.value.hint or "")


async def test_no_server_is_unavailable() -> None:
    with pytest.raises(errors.LedgerUnavailable):
        await AsyncLedger.connect("host=127.0.0.1 port=1 dbname=x", timeout=0.3)


async def test_a_closed_client_refuses(db: Database) -> None:
    ledger = await AsyncLedger.connect(db.dsn_as("admin"))
    await ledger.close()
    await ledger.close()
    with pytest.raises(errors.LedgerClosed):
        await ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    with pytest.raises(errors.LedgerClosed):
        await ledger.version()


async def test_a_killed_backend_is_replaced_unseen(async_ledger: AsyncLedger, db: Database) -> None:
    await async_ledger.version()
    for _ in range(3):
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        assert (
            await async_ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
        ).created in (True, False)
    assert db.value("select count(*) from routeledger.in_flight") == 3
