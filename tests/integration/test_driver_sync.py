# Generated from tests/integration/test_driver_async.py by `make sync`: edit that, not this.
"""Every method and every way out of the loop, against a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from routeledger import Candidate, Ledger, errors
from routeledger._threads import sleep
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


@pytest.fixture(params=["coalesced", "single"])
def ledger(request: pytest.FixtureRequest, db: Database) -> Iterator[Ledger]:
    """A client of the test's own database, in both ways of writing."""
    with Ledger.connect(
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


def test_a_cycle(ledger: Ledger, db: Database) -> None:
    decision = ledger.insert_decision(
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
    step = ledger.fail_attempt(
        tenant_id=TENANT,
        id=decision.id,
        attempt_id=decision.attempt_id or MISSING,
        error_type="rate_limited",
        error_message="slow down",
        http_status=404,
        latency_ms=12.5,
    )
    assert (step.action, step.next_model_slug, step.next_provider) == ("failover", "large", "p")
    done = ledger.complete_decision(
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
    (row,) = ledger.decisions(tenant_id=TENANT)
    assert (row.id, row.attempts, row.failovers, row.outcome_status) == (
        decision.id,
        2,
        1,
        "succeeded",
    )
    assert row.event_at is not None
    assert row.event_at < row.created_at
    assert ledger.decisions(tenant_id="other") == []
    assert [r.id for r in ledger.decisions(id=str(decision.id))] == [decision.id]
    books(db)


def test_repetition_gives_the_first_answer(ledger: Ledger, db: Database) -> None:
    first = ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    again = ledger.insert_decision(
        tenant_id=TENANT, candidates=RANKED, id=first.id, attempt_id=first.attempt_id
    )
    assert not again.created
    assert (again.id, again.attempt_id, again.model_slug) == (
        first.id,
        first.attempt_id,
        first.model_slug,
    )
    with pytest.raises(errors.IdReused) as reused:
        ledger.insert_decision(
            tenant_id=TENANT, candidates=["other"], id=first.id, attempt_id=first.attempt_id
        )
    assert reused.value.sqlstate == "RL301"
    assert reused.value.detail["id"] == str(first.id)
    assert reused.value.hint
    assert not reused.value.retryable
    for created in (True, False):
        done = ledger.complete_decision(
            tenant_id=TENANT,
            id=first.id,
            outcome_status="succeeded",
            attempt_id=first.attempt_id,
            **USAGE,
        )
        assert done.created is created
    with pytest.raises(errors.AlreadyCompleted):
        ledger.complete_decision(
            tenant_id=TENANT, id=first.id, outcome_status="failed", error_type="x"
        )
    books(db)


def test_hold_and_start(ledger: Ledger, db: Database) -> None:
    decision = ledger.insert_decision(tenant_id=TENANT, chosen_model_slug="m1")
    assert decision.decision_rule == "pinned"
    with pytest.raises(errors.AttemptOpen):
        ledger.start_attempt(tenant_id=TENANT, id=decision.id, model_slug="m2")
    step = ledger.fail_attempt(
        tenant_id=TENANT,
        id=str(decision.id),
        attempt_id=str(decision.attempt_id),
        error_type="x",
        next="hold",
    )
    assert (step.action, step.next_attempt_id) == ("hold", None)
    started = ledger.start_attempt(tenant_id=TENANT, id=decision.id, model_slug="m2", provider="q")
    assert (started.attempt_no, started.model_slug, started.provider) == (2, "m2", "q")
    lease = ledger.extend_lease(tenant_id=TENANT, id=decision.id, lease=timedelta(hours=1))
    assert lease.lease_expires_at > datetime.now(timezone.utc) + timedelta(minutes=50)
    (flying,) = ledger.in_flight(tenant_id=TENANT)
    assert (flying.attempt_id, flying.expired) == (started.attempt_id, False)
    ledger.complete_decision(
        tenant_id=TENANT, id=decision.id, outcome_status="failed", error_type="gave_up"
    )
    assert ledger.in_flight() == []
    with pytest.raises(errors.DecisionClosed):
        ledger.start_attempt(tenant_id=TENANT, id=decision.id, model_slug="m3")
    books(db)


def test_a_story_and_a_payload(ledger: Ledger, db: Database) -> None:
    now = datetime.now(timezone.utc)
    story: dict[str, Any] = {
        "tenant_id": TENANT,
        "id": str(UUID(ledger._ids())),
        "candidates": RANKED,
        "event_at": now - timedelta(days=1),
        "attempts": [
            {
                "id": ledger._ids(),
                "model_slug": "small",
                "status": "failed",
                "error_type": "timeout",
                "latency_ms": 30_000,
            },
            {
                "id": ledger._ids(),
                "model_slug": "large",
                "status": "succeeded",
                "started_at": now - timedelta(seconds=5),
                "completed_at": now - timedelta(seconds=4),
                "cost_usd": Decimal("0.25"),
                **USAGE,
            },
        ],
    }
    told = ledger.record_outcome(**story)
    assert (told.attempts, told.outcome_status, told.cost_usd, told.created) == (
        2,
        "succeeded",
        Decimal("0.25"),
        True,
    )
    assert not (ledger.record_outcome(**story)).created
    assert told.inference_id is not None
    stored = ledger.record_payload(
        tenant_id=TENANT,
        id=told.id,
        attempt_id=told.inference_id,
        request={"messages": ["hi"]},
        response=["text", 1.5],
    )
    assert stored.created
    (payload,) = db.execute("select request, response from routeledger.inference_payloads")
    assert payload == ({"messages": ["hi"]}, ["text", 1.5])
    assert (ledger.reconciliation(since=now - timedelta(hours=2)))[0].agrees
    books(db)


def test_upkeep(db: Database) -> None:
    with Ledger.connect(db.dsn_as("admin")) as ledger:
        assert ledger.version() == __version__
        assert (ledger.configure({"lease": "1 second"}))["lease"] == "00:00:01"
        assert (ledger.configure())["lease"] == "00:00:01"
        with pytest.raises(errors.LedgerError) as unknown:
            ledger.configure({"nonsense": 1})
        assert unknown.value.sqlstate == "RL107"
        imported = ledger.import_models(
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
        assert isinstance(ledger.maintain(ahead=timedelta(days=60)), list)
        assert ledger.maintain(ahead=timedelta(days=60)) == []
    with Ledger.connect(db.dsn_as("admin")) as ledger:
        decision = ledger.insert_decision(tenant_id=TENANT, candidates=["small"])
        assert decision.provider == "p"
        sleep(1.1)
        reaped = ledger.reap(limit=10)
        assert [(r.tenant_id, r.id, r.inference_id) for r in reaped] == [
            (TENANT, decision.id, decision.attempt_id)
        ]
        assert ledger.reap(tenant_id=TENANT) == []
        with pytest.raises(errors.LeaseLost):
            ledger.extend_lease(tenant_id=TENANT, id=decision.id)
        late = ledger.complete_decision(
            tenant_id=TENANT,
            id=decision.id,
            outcome_status="succeeded",
            input_tokens=2_000_000,
            output_tokens=1_000_000,
        )
        assert late.late
        assert (late.cost_usd, late.cost_source) == (Decimal(2), "catalog")
        assert ledger.orphans() == []
    books(db)


# -- many at once --


def test_set_forms_answer_per_row(ledger: Ledger, db: Database) -> None:
    opened = ledger.insert_decisions(
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
    failed = ledger.fail_attempts(
        [{**key, "attempt_id": first.attempt_id, "error_type": "x", "next": "hold"}]
    )
    assert failed[0].unwrap().action == "hold"
    started = ledger.start_attempts([{**key, "model_slug": "m"}])
    second = started[0].unwrap()
    assert second.created
    leases = ledger.extend_leases([{**key, "lease": timedelta(hours=2)}, key])
    assert [r.status for r in leases] == ["accepted", "replayed"]
    stored = ledger.record_payloads([{**key, "attempt_id": second.attempt_id, "request": {"q": 1}}])
    assert stored[0].unwrap().created
    done = ledger.complete_decisions(
        [
            {**key, "outcome_status": "succeeded", **USAGE},
            {**key, "id": MISSING, "outcome_status": "succeeded", **USAGE},
        ]
    )
    assert [r.status for r in done] == ["accepted", "refused"]
    assert isinstance(done[1].error, errors.DecisionNotFound)
    told = ledger.record_outcomes([{"tenant_id": TENANT, "candidates": []}])
    assert told[0].unwrap().outcome_status == "rejected"
    assert ledger.insert_decisions([]) == []
    assert db.execute("select * from routeledger.orphans") == []


def test_bad_values_have_the_same_error_in_every_way(ledger: Ledger) -> None:
    with pytest.raises(errors.OutOfRange):
        ledger.insert_decision(tenant_id=TENANT, candidates=["m"], min_quality=float("nan"))
    with pytest.raises(errors.MissingArgument):
        ledger.insert_decision(tenant_id="", candidates=["m"])
    with pytest.raises(errors.MalformedRow):
        ledger.insert_decision(tenant_id="a\x00", candidates=["m"])
    with pytest.raises(errors.MalformedRow):
        ledger.insert_decision(tenant_id=TENANT, metadata={"x": "\x00"})
    with pytest.raises(errors.MalformedCandidates):
        ledger.insert_decision(tenant_id=TENANT, candidates=[{"slug": "m"}])
    with pytest.raises(errors.NotUuidV7):
        ledger.insert_decision(
            tenant_id=TENANT, candidates=["m"], id="8c4f1d3e-46b5-4b0f-9d0c-2f6a4d5b6c7d"
        )
    with pytest.raises(errors.IdOutsideWindow):
        ledger.insert_decision(
            tenant_id=TENANT, candidates=["m"], id="f1900000-0000-7000-8000-000000000000"
        )


# -- the caller's connection --


def test_a_borrowed_connection_is_not_committed(ledger: Ledger, db: Database) -> None:
    with Connection.connect(db.dsn_as("admin"), row_factory=dict_row) as conn:
        decision = ledger.insert_decision(tenant_id=TENANT, candidates=RANKED, conn=conn)
        ledger.complete_decision(
            tenant_id=TENANT,
            id=decision.id,
            outcome_status="succeeded",
            conn=conn,
            **USAGE,
        )
        assert len(ledger.decisions(conn=conn)) == 1
        assert ledger.decisions() == []
        assert ledger.orphans(conn=conn) == []
        assert ledger.version(conn=conn) == __version__
        conn.rollback()
        assert ledger.decisions() == []
        rows = ledger.insert_decisions([{"tenant_id": TENANT, "candidates": RANKED}], conn=conn)
        assert rows[0].status == "accepted"
        with pytest.raises(errors.DecisionNotFound):
            ledger.extend_lease(tenant_id=TENANT, id=MISSING, conn=conn)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        conn.rollback()
        ledger.insert_decision(tenant_id=TENANT, candidates=RANKED, conn=conn)
        conn.commit()
    assert len(ledger.decisions()) == 1


def test_a_lost_borrowed_connection_is_an_error_at_once(ledger: Ledger, db: Database) -> None:
    with Connection.connect(db.dsn_as("admin")) as conn:
        db.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(errors.LedgerUnavailable):
            ledger.insert_decision(tenant_id=TENANT, candidates=RANKED, conn=conn)


# -- the loop --


def test_loop_first_attempt_succeeds(ledger: Ledger, db: Database) -> None:
    with ledger.decision(
        tenant_id=TENANT, agent_id="support", task_type="chat", candidates=RANKED
    ) as decision:
        assert db.value("select count(*) from routeledger.in_flight") == 1
        for attempt in decision.attempts():
            with attempt:
                assert (attempt.model_slug, attempt.attempt_no) == ("small", 1)
                sleep(0.01)
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
def test_loop_goes_on_after_provider_errors(ledger: Ledger, db: Database) -> None:
    seen: list[Any] = []
    with ledger.decision(
        tenant_id=TENANT, candidates=[*RANKED, {"model_slug": "x", "drop_reason": "slow"}, "last"]
    ) as decision:
        for attempt in decision.attempts():
            with attempt:
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


def test_loop_retries_after_a_delay(ledger: Ledger, db: Database) -> None:
    with ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
        for attempt in decision.attempts():
            with attempt:
                if attempt.attempt_no == 1:
                    raise ProviderError(503, **{"retry-after-ms": "300"})
                attempt.succeed(**USAGE)
    book = books(db)
    assert book["attempts"] == 2
    first, second = book["tried"]
    assert second["started_at"] - first["completed_at"] >= timedelta(milliseconds=300)
    assert book["completed_at"] - first["completed_at"] >= timedelta(milliseconds=295)


@pytest.mark.usefixtures("quick")
def test_loop_raises_the_last_error_when_nothing_is_left(ledger: Ledger, db: Database) -> None:
    with pytest.raises(ProviderError, match="status 501"):
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    raise ProviderError(499 + attempt.attempt_no)
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.error_type) == ("failed", "server_error")
    book = books(db)
    assert (book["outcome_status"], book["attempts"]) == ("failed", 2)


@pytest.mark.usefixtures("quick")
def test_loop_ends_quietly_when_fail_was_said(ledger: Ledger, db: Database) -> None:
    with ledger.decision(tenant_id=TENANT, candidates=["m"]) as decision:
        for attempt in decision.attempts():
            with attempt:
                attempt.fail("empty_answer")
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.error_type) == ("failed", "empty_answer")
    assert books(db)["outcome_status"] == "failed"


def test_loop_rejected_has_no_attempts(ledger: Ledger, db: Database) -> None:
    with ledger.decision(
        tenant_id=TENANT, candidates=[Candidate("m", drop_reason="floor")]
    ) as decision:
        assert decision.rejected
        assert decision.decision_rule == "no_candidate_clears_floor"
        for _ in decision.attempts():
            pytest.fail("there is nothing to call")
    assert decision.outcome is not None
    assert decision.outcome.status == "rejected"
    assert books(db)["outcome_status"] == "rejected"


def test_leaving_by_break_inside_the_attempt(ledger: Ledger, db: Database) -> None:
    with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        for attempt in decision.attempts():
            with attempt:
                break
    assert decision.outcome is not None
    assert decision.outcome.status == "failed"
    book = books(db)
    assert (book["outcome_status"], book["tried"][0]["error_type"]) == ("failed", "caller_left")


def test_leaving_by_return(ledger: Ledger, db: Database) -> None:
    def call() -> str:
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    return "gone"
        return "never"

    assert call() == "gone"
    assert books(db)["tried"][0]["error_type"] == "caller_left"


@pytest.mark.usefixtures("quick")
def test_leaving_between_attempts(ledger: Ledger, db: Database) -> None:
    with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
        for attempt in decision.attempts():
            with attempt:
                raise ProviderError(500)
            break
    book = books(db)
    assert (book["outcome_status"], book["attempts"]) == ("failed", 2)
    assert [t["error_type"] for t in book["tried"]] == ["server_error", "caller_left"]


def test_leaving_before_any_dispatch(ledger: Ledger, db: Database) -> None:
    with pytest.raises(KeyError):
        with ledger.decision(tenant_id=TENANT, candidates=RANKED):
            raise KeyError("nothing was called")
    book = books(db)
    assert (book["outcome_status"], book["decision_rule_override"]) == (
        "failed",
        "not_dispatched",
    )
    assert db.value("select inference_id from routeledger.routing_outcomes") is None
    assert book["tried"][0]["error_type"] == "caller_left"
    assert "KeyError" in book["tried"][0]["error_message"]


def test_an_error_after_success_changes_nothing(ledger: Ledger, db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    attempt.succeed(**USAGE)
                    raise ZeroDivisionError
    assert books(db)["outcome_status"] == "succeeded"


@pytest.mark.parametrize("way_out", [KeyboardInterrupt, SystemExit])
def test_interrupts_close_the_books(
    ledger: Ledger, db: Database, way_out: type[BaseException]
) -> None:
    def work() -> None:
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    raise way_out

    caught = False
    try:
        work()
    except way_out:
        caught = True
    assert caught
    assert books(db)["tried"][0]["error_type"] == "cancelled"


def test_a_closed_generator_closes_the_books(ledger: Ledger, db: Database) -> None:
    def stream() -> Iterator[str]:
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    yield "first token"
                    attempt.succeed(**USAGE)

    tokens = stream()
    for token in tokens:
        assert token == "first token"
        break
    tokens.close()  # type: ignore[attr-defined]
    book = books(db)
    assert (book["outcome_status"], book["tried"][0]["error_type"]) == ("failed", "caller_left")


def test_misuse_is_an_error(ledger: Ledger, db: Database) -> None:
    with pytest.raises(RuntimeError, match="context manager"):
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for _ in decision.attempts():
                pass
    assert books(db)["decision_rule_override"] == "not_dispatched"
    with pytest.raises(RuntimeError, match="entered once"):
        with decision:
            pass


def test_a_refused_decision_is_the_callers_error(ledger: Ledger) -> None:
    with pytest.raises(errors.OutOfRange):
        with ledger.decision(tenant_id=TENANT, candidates=RANKED, min_quality=2.0):
            pytest.fail("the block must not run")


def test_the_heartbeat_keeps_the_reaper_away(ledger: Ledger, db: Database) -> None:
    with ledger.decision(
        tenant_id=TENANT, candidates=RANKED, lease=timedelta(seconds=1)
    ) as decision:
        for attempt in decision.attempts():
            with attempt:
                sleep(1.7)
                assert ledger.reap() == []
                attempt.succeed(**USAGE)
    assert not decision.lease_lost
    assert books(db)["outcome_status"] == "succeeded"


def test_without_heartbeat_the_ending_is_late(ledger: Ledger, db: Database) -> None:
    with ledger.decision(
        tenant_id=TENANT, candidates=RANKED, lease=timedelta(seconds=1), heartbeat=False
    ) as decision:
        for attempt in decision.attempts():
            with attempt:
                sleep(1.2)
                assert len(ledger.reap()) == 1
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert decision.outcome.late
    book = books(db)
    assert (book["outcome_status"], book["late_completion"]) == ("succeeded", True)


def test_a_writer_needs_no_more_rights(db: Database) -> None:
    with Ledger.connect(db.dsn_as("writer")) as ledger:
        with ledger.decision(tenant_id=TENANT, candidates=RANKED) as decision:
            for attempt in decision.attempts():
                with attempt:
                    attempt.succeed(**USAGE)
        with pytest.raises(errors.LedgerError) as forbidden:
            ledger.decisions()
        assert forbidden.value.sqlstate == "42501"
        assert forbidden.value.name == "insufficient_privilege"
    assert books(db)["outcome_status"] == "succeeded"


# -- opening and closing --


def test_not_installed_says_what_to_run(empty_db: Database) -> None:
    with pytest.raises(errors.NotInstalled) as missing:
        Ledger.connect(empty_db.dsn)
    assert missing.value.hint is not None
    assert missing.value.hint.startswith("Run: routeledger install --dsn ")
    assert empty_db.name in missing.value.hint
    with Ledger.connect(empty_db.dsn, check_version=False):
        pass


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("0.0.9", errors.OtherVersionInstalled),
        ("9.0.0", errors.SchemaTooNew),
        ("0.1.99", None),
    ],
)
def test_other_versions(db: Database, version: str, error: type[errors.LedgerError] | None) -> None:
    db.execute(
        f"create or replace function routeledger.version() returns text language sql immutable "
        f"parallel safe as 'select ''{version}''::text'"
    )
    if error is None:
        with Ledger.connect(db.dsn):
            pass
        return
    with pytest.raises(error) as found:
        Ledger.connect(db.dsn)
    assert found.value.detail["installed"] == version
    assert found.value.hint


def test_no_rights_says_what_to_grant(db: Database) -> None:
    with pytest.raises(errors.LedgerError) as forbidden:
        Ledger.connect(db.dsn_as("nobody"))
    assert forbidden.value.sqlstate == "42501"
    assert "routeledger_writer" in (forbidden.value.hint or "")


def test_no_server_is_unavailable() -> None:
    with pytest.raises(errors.LedgerUnavailable):
        Ledger.connect("host=127.0.0.1 port=1 dbname=x", timeout=0.3)


def test_a_closed_client_refuses(db: Database) -> None:
    ledger = Ledger.connect(db.dsn_as("admin"))
    ledger.close()
    ledger.close()
    with pytest.raises(errors.LedgerClosed):
        ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)
    with pytest.raises(errors.LedgerClosed):
        ledger.version()


def test_a_killed_backend_is_replaced_unseen(ledger: Ledger, db: Database) -> None:
    ledger.version()
    for _ in range(3):
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        assert (ledger.insert_decision(tenant_id=TENANT, candidates=RANKED)).created in (
            True,
            False,
        )
    assert db.value("select count(*) from routeledger.in_flight") == 3
