# Generated from pydriver/routeledger/_loop_async.py by `make sync`: edit that, not this.
"""The decision loop: decide, attempt, and leave with the books closed, whatever the road out.

    with ledger.decision(tenant_id="acme", candidates=ranked) as decision:
        for attempt in decision.attempts():
            with attempt:
                reply = call_provider(attempt.model_slug)
                attempt.succeed(input_tokens=…, output_tokens=…)

What ends an attempt block:

=============================  ===================================================================
``succeed()`` was called       attempt and decision succeed; a later exception passes through
an exception                   the attempt fails as classified; the ledger says what next: the loop
                               waits and goes on, or the exception passes through
``fail()`` was called          the same, without an exception
none of these                  the decision fails, ``caller_left``
cancellation, interrupts       the decision fails, ``cancelled``; the closing write is shielded
=============================  ===================================================================

A time limit of the caller's own goes inside the attempt block, where it is the provider's timeout;
around it, it is a cancellation of the decision.

Leaving the decision block before any attempt block was entered closes the decision as failed with
``decision_rule_override = 'not_dispatched'``, and links nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from . import _routines
from ._classify import MESSAGE_LIMIT, Failure, classify
from ._codec import Row, clean_text
from ._threads import Cancelled, Later, Timer, run_blocking, shielded, sleep
from .errors import LeaseLost, LedgerBusy, LedgerError, LedgerUnavailable
from .types import (
    Candidate,
    Completion,
    Decision,
    DecisionOutcome,
    NextStep,
    OutcomeStatus,
    Routed,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._sync import Ledger

logger = logging.getLogger("routeledger")

FIRST_BEAT = 30.0
"""Seconds to the first lease extension where the caller did not say how long the lease is."""

_OFFLINE = (LedgerUnavailable, LedgerBusy)


class OpenAttempt:
    """One call of a provider. Use it as a context manager around the call.

    Attributes:
        id: the attempt's id.
        attempt_no: counts from 1.
        model_slug: the model to call.
        provider: whom to call, if known.
        candidate: what the caller said of this candidate, with all its fields.
    """

    __slots__ = (
        "_decision",
        "_entered",
        "_failure",
        "_left",
        "_started",
        "_started_at",
        "_ttft_ms",
        "_usage",
        "attempt_no",
        "candidate",
        "id",
        "model_slug",
        "provider",
    )

    def __init__(
        self,
        decision: OpenDecision,
        attempt_id: UUID,
        attempt_no: int,
        model_slug: str,
        provider: str | None,
        candidate: Mapping[str, Any],
    ) -> None:
        self._decision = decision
        self._entered = False
        self._left = False
        self._usage: dict[str, Any] | None = None
        self._failure: dict[str, Any] | None = None
        self._started = 0.0
        self._started_at: datetime | None = None
        self._ttft_ms: float | None = None
        self.id = attempt_id
        self.attempt_no = attempt_no
        self.model_slug = model_slug
        self.provider = provider
        self.candidate = candidate

    def first_token(self) -> None:
        """Mark the arrival of a stream's first token; later calls change nothing."""
        if self._ttft_ms is None:
            self._ttft_ms = self._elapsed_ms()

    def succeed(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        cache_read_input_tokens: int | None = None,
        cache_creation_input_tokens: int | None = None,
        reasoning_output_tokens: int | None = None,
        cost_usd: Decimal | float | None = None,
        latency_ms: float | None = None,
        ttft_ms: float | None = None,
        http_status: int | None = None,
        provider_response_id: str | None = None,
        response_model: str | None = None,
        finish_reasons: Sequence[str] | None = None,
    ) -> None:
        """Say that the provider answered. It is written when the block is left.

        Args:
            input_tokens: all tokens read, those read from a cache included.
            output_tokens: all tokens written, those of reasoning included.
            cache_read_input_tokens: of the input, those read from a cache.
            cache_creation_input_tokens: of the input, those written to a cache.
            reasoning_output_tokens: of the output, those of reasoning.
            cost_usd: US dollars; computed from the catalogue when absent.
            latency_ms: milliseconds; measured from the start of the block when absent.
            ttft_ms: milliseconds to the first token; see `first_token`.
            http_status: the provider's.
            provider_response_id: the provider's id of the response.
            response_model: the model that the provider says answered.
            finish_reasons: why it stopped, one a choice.
        """
        self._failure = None
        self._usage = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_input_tokens": cache_read_input_tokens,
            "cache_creation_input_tokens": cache_creation_input_tokens,
            "reasoning_output_tokens": reasoning_output_tokens,
            "cost_usd": cost_usd,
            "latency_ms": self._elapsed_ms() if latency_ms is None else latency_ms,
            "ttft_ms": self._ttft_ms if ttft_ms is None else ttft_ms,
            "http_status": http_status,
            "provider_response_id": provider_response_id,
            "response_model": response_model,
            "finish_reasons": finish_reasons,
        }

    def fail(
        self,
        error_type: str,
        error_message: str | None = None,
        *,
        http_status: int | None = None,
        retry_after_ms: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: Decimal | float | None = None,
        latency_ms: float | None = None,
        ttft_ms: float | None = None,
        provider_response_id: str | None = None,
    ) -> None:
        """Say that the provider failed, without an exception. The loop goes on as after one, and
        ends quietly when the ledger gives up: see `OpenDecision.outcome`."""
        self._usage = None
        self._failure = {
            "error_type": clean_text(error_type, 200),
            "error_message": error_message and clean_text(error_message, MESSAGE_LIMIT),
            "http_status": http_status,
            "retry_after_ms": retry_after_ms,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_usd": cost_usd,
            "latency_ms": self._elapsed_ms() if latency_ms is None else latency_ms,
            "ttft_ms": self._ttft_ms if ttft_ms is None else ttft_ms,
            "provider_response_id": provider_response_id,
        }

    def _elapsed_ms(self) -> float:
        return round((time.perf_counter() - self._started) * 1000, 3)

    def _failed(self, failure: Failure) -> dict[str, Any]:
        return {
            "error_type": failure.error_type,
            "error_message": failure.error_message,
            "http_status": failure.http_status,
            "retry_after_ms": failure.retry_after_ms,
            "latency_ms": self._elapsed_ms(),
            "ttft_ms": self._ttft_ms,
        }

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError("An attempt block is entered once.")
        self._entered = True
        self._decision._dispatched = True
        self._started = time.perf_counter()
        self._started_at = datetime.now(timezone.utc)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._left = True
        decision = self._decision
        if self._usage is not None:
            if exc is None or isinstance(exc, Exception):
                decision._complete("succeeded", self, self._usage)
            else:
                decision._quietly(decision._complete, "succeeded", self, self._usage)
            return False
        if exc is None and self._failure is None:
            decision._leave("caller_left", "the attempt block was left without a verdict")
            return False
        if exc is None or isinstance(exc, Exception):
            failed = self._failure
            if failed is None:
                assert exc is not None
                failed = self._failed(decision._classify(exc))
            return decision._fail(self, failed)
        reason = "cancelled" if isinstance(exc, Cancelled) else "caller_left"
        decision._quietly(decision._leave, reason, type(exc).__name__)
        return False


class Attempts:
    """The attempts of a decision, one after the other, as the ledger gives them out."""

    __slots__ = ("_decision",)

    def __init__(self, decision: OpenDecision) -> None:
        self._decision = decision

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> OpenAttempt:
        decision = self._decision
        attempt = decision.attempt
        if decision.closed or attempt is None:
            raise StopIteration
        if decision._given is attempt:
            raise RuntimeError("Use each attempt as a context manager before the next.")
        decision._given = attempt
        if decision._delay > 0:
            delay, decision._delay = decision._delay, 0.0
            sleep(delay)
        return attempt


class OpenDecision:
    """A decision in flight. Use it as a context manager; see the module.

    Attributes:
        attempt: the attempt to make now, or None.
        outcome: how it ended, once it has.
        lease_lost: the reaper closed the decision meanwhile; an ending is still written, as late.
    """

    def __init__(
        self,
        ledger: Ledger,
        params: dict[str, Any],
        *,
        heartbeat: bool,
        classifier: Callable[[BaseException], Failure] | None,
        opens: _routines.Routine[Any] = _routines.INSERT_DECISION,
    ) -> None:
        self._ledger = ledger
        self._params = params
        self._opens = opens
        self._classify = classifier or classify
        self._heartbeat = heartbeat
        self._timer: Timer | None = None
        self._ended = False  # no more extensions of the lease
        self._decision: Decision | Routed | None = None
        self._delay = 0.0
        self._dispatched = False
        self._given: OpenAttempt | None = None
        self._tried: set[int] = set()
        self._story: list[dict[str, Any]] | None = None  # of a decision born while offline
        self._spooling = False  # once a write was spooled, the later ones follow it
        self.attempt: OpenAttempt | None = None
        self.outcome: DecisionOutcome | None = None
        self.lease_lost = False

    # -- what the caller sees --

    @property
    def id(self) -> UUID:
        """The decision's id."""
        return UUID(self._params["id"])

    @property
    def tenant_id(self) -> str:
        """Whose decision it is."""
        return str(self._params["tenant_id"])

    @property
    def result(self) -> Decision | Routed:
        """What `insert_decision` or `route` returned."""
        if self._decision is None:
            raise RuntimeError("The decision block has not been entered.")
        return self._decision

    @property
    def decision_rule(self) -> str:
        """The rule by which the model was chosen, or by which none was."""
        return self.result.decision_rule

    @property
    def rejected(self) -> bool:
        """True when no candidate was eligible: there are no attempts to make."""
        return self.result.rejected

    @property
    def closed(self) -> bool:
        """True once the books are closed."""
        return self.outcome is not None

    def attempts(self) -> Attempts:
        """The attempts to make, until one succeeds or the ledger gives up."""
        return Attempts(self)

    # -- the block --

    def __enter__(self) -> Self:
        if self._decision is not None:
            raise RuntimeError("A decision block is entered once.")
        row = {k: v for k, v in self._params.items() if v is not None}
        try:
            decision = self._ledger._submit(self._opens, row)
        except Cancelled:
            self._quietly(self._close_unseen, row)
            raise
        except _OFFLINE as exc:
            if self._ledger._spool is None or not self._can_choose():
                raise
            self._ledger._warn_spooling(exc)
            self._begin_offline()
            return self
        self._decision = decision
        if decision.rejected:
            self.outcome = DecisionOutcome("rejected")
            return self
        if decision.outcome_status is not None:
            self.outcome = DecisionOutcome(decision.outcome_status)
            return self
        self._open(decision.attempt_id, decision.attempt_no, decision.model_slug, decision.provider)
        if isinstance(decision, Routed):
            self._delay = (decision.delay_ms or 0) / 1000
        if self._heartbeat:
            lease = self._params.get("lease")
            seconds = lease.total_seconds() / 2 if isinstance(lease, timedelta) else FIRST_BEAT
            self._timer = self._ledger._timers.after(seconds, self._beat)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.closed:
                return
            if exc is None:
                self._leave("caller_left", "the decision block was left")
            elif isinstance(exc, Cancelled):
                self._quietly(self._leave, "cancelled", type(exc).__name__)
            else:
                message = clean_text(f"{type(exc).__name__}: {exc}", MESSAGE_LIMIT)
                self._quietly(self._leave, "caller_left", message)
        finally:
            self._stop_timer()

    # -- endings --

    def _leave(self, error_type: str, message: str) -> None:
        """Close the decision as failed, linked to its open attempt if any was dispatched."""
        attempt = self.attempt
        facts: dict[str, Any] = {"error_type": error_type, "error_message": message}
        if attempt is not None and attempt._entered:
            facts["latency_ms"] = attempt._elapsed_ms()
            facts["ttft_ms"] = attempt._ttft_ms
            if attempt._failure is not None:
                facts |= {k: v for k, v in attempt._failure.items() if k != "retry_after_ms"}
        override = None if self._dispatched else "not_dispatched"
        self._complete("failed", None if override else attempt, facts, override)

    def _complete(
        self,
        status: OutcomeStatus,
        attempt: OpenAttempt | None,
        facts: dict[str, Any],
        override: str | None = None,
    ) -> None:
        self._stop_timer()
        row = {
            **self._key(),
            "outcome_status": status,
            "attempt_id": str(attempt.id) if attempt else None,
            "decision_rule_override": override,
            **facts,
        }
        row = {k: v for k, v in row.items() if v is not None}

        def settle(done: Completion | None) -> None:
            self.attempt = None
            self.outcome = DecisionOutcome(
                status=status,
                attempt_id=attempt.id if attempt else None,
                attempt_no=attempt.attempt_no if attempt else None,
                model_slug=attempt.model_slug if attempt else None,
                cost_usd=done.cost_usd if done else None,
                cost_source=done.cost_source if done else None,
                error_type=facts.get("error_type"),
                late=done.late if done else False,
                spooled=done is None,
            )

        if self._story is not None:
            if attempt is not None:
                self._story.append(_told(attempt, status, facts))
            settle(None)
            self._spool_story(override)
        elif not self._write(_routines.COMPLETE_DECISION, row, settle):
            settle(None)
            self._append([{"routine": "complete_decision", "row": row}])

    def _fail(self, attempt: OpenAttempt, failed: dict[str, Any]) -> bool:
        """Record the failure and take up the next attempt; False when the ledger gives up."""
        if self._story is not None:
            self._story.append(_told(attempt, "failed", failed))
            if self._open_next(attempt) is not None:
                return True
            self._end_failed(attempt, failed, spooled=True)
            self._spool_story(None)
            return False

        def settle(step: NextStep) -> None:
            if step.next_attempt_id is None:
                self._end_failed(attempt, failed, spooled=False)
                return
            self._delay = (step.delay_ms or 0) / 1000
            self._open(
                step.next_attempt_id, step.next_attempt_no, step.next_model_slug, step.next_provider
            )

        row = {**self._key(), "attempt_id": str(attempt.id), "next_attempt_id": self._ledger._ids()}
        row |= {k: v for k, v in failed.items() if v is not None}
        if not self._write(_routines.FAIL_ATTEMPT, row, settle):
            return self._fail_offline(attempt, row)
        return not self.closed

    def _fail_offline(self, attempt: OpenAttempt, row: dict[str, Any]) -> bool:
        """The ledger cannot say what next: go on to the next candidate of the caller's order.

        The try may have reached the ledger, which then opened `next_attempt_id` by its own choice:
        the spool names it, so that the replay can close it in favour of ours.
        """
        theirs = row.pop("next_attempt_id")
        upcoming = self._open_next(attempt)
        row["next"] = "give_up" if upcoming is None else "hold"
        records: list[dict[str, Any]] = [{"routine": "fail_attempt", "row": row}]
        if upcoming is None:
            records[0]["instead_of"] = theirs
            self._end_failed(attempt, row, spooled=True)
        else:
            start = {
                **self._key(),
                "model_slug": upcoming.model_slug,
                "attempt_id": str(upcoming.id),
            }
            if upcoming.provider is not None:
                start["provider"] = upcoming.provider
            records.append({"routine": "start_attempt", "row": start, "instead_of": theirs})
        self._append(records)
        return upcoming is not None

    def _end_failed(self, attempt: OpenAttempt, failed: Row, *, spooled: bool) -> None:
        self._stop_timer()
        self.attempt = None
        self.outcome = DecisionOutcome(
            status="failed",
            attempt_id=attempt.id,
            attempt_no=attempt.attempt_no,
            model_slug=attempt.model_slug,
            error_type=failed["error_type"],
            spooled=spooled,
        )

    def _quietly(self, work: Callable[..., Later[Any]], *args: Any) -> None:
        """Finish a closing write although the caller is leaving; its errors do not replace the
        caller's own way out, and the reaper ends what could not be written."""
        try:
            shielded(work(*args))
        except LedgerError as exc:
            logger.warning("decision %s could not be closed: %s", self.id, exc)

    def _close_unseen(self, row: Row) -> None:
        """Close a decision whose insert was interrupted. The insert may still be under way on its
        connection: the same call again waits for it, and makes sure of it."""
        decision = self._ledger._submit(self._opens, row)
        if not decision.rejected:
            closing = {
                **self._key(),
                "outcome_status": "failed",
                "error_type": "cancelled",
                "decision_rule_override": "not_dispatched",
            }
            self._ledger._submit(_routines.COMPLETE_DECISION, closing)

    # -- writes --

    def _key(self) -> dict[str, Any]:
        return {"tenant_id": self._params["tenant_id"], "id": self._params["id"]}

    def _write(
        self, routine: _routines.Routine[Any], row: Row, settle: Callable[[Any], None]
    ) -> bool:
        """Write a row and settle with the answer; False when the row is to be spooled instead."""
        if self._spooling:
            return False
        try:
            self._submit(routine, row, settle)
        except Cancelled:
            # The row may not have been sent. It is idempotent: make sure of it, then go.
            self._quietly(self._submit, routine, row, settle)
            raise
        except _OFFLINE as exc:
            if self._ledger._spool is None:
                raise
            self._ledger._warn_spooling(exc)
            self._spooling = True
            return False
        return True

    def _submit(
        self, routine: _routines.Routine[Any], row: Row, settle: Callable[[Any], None]
    ) -> None:
        settle(self._ledger._submit(routine, row))

    def _append(self, records: list[dict[str, Any]]) -> None:
        assert self._ledger._spool is not None
        shielded(run_blocking(self._ledger._spool.append, records))

    def _spool_story(self, override: str | None) -> None:
        told = {"tenant_id", *_routines.RECORD_OUTCOME.defaults}
        row = {k: v for k, v in self._params.items() if v is not None and k in told}
        row["attempts"] = self._story or []
        if override is not None:
            row["decision_rule_override"] = override
        self._append([{"routine": "record_outcome", "row": row}])

    # -- offline --

    def _can_choose(self) -> bool:
        """Whether there is something to choose without the ledger: it ranks, nobody else can."""
        if self._opens is _routines.INSERT_DECISION:
            return True
        return bool(self._params["pinned_model"] or self._params["candidates"])

    def _begin_offline(self) -> None:
        """Decide as the ledger would: the model that was named, else the first eligible one."""
        self._story = []
        self._spooling = True
        params = self._params
        if self._opens is _routines.ROUTE:
            params["chosen_model_slug"] = params["pinned_model"]
        if params.get("event_at") is None:
            params["event_at"] = datetime.now(timezone.utc)
        chosen = params.get("chosen_model_slug")
        place = None
        for n, candidate in enumerate(self._candidates()):
            if candidate.get("model_slug") == chosen or (
                chosen is None and candidate.get("drop_reason") is None
            ):
                place = n
                break
        rule = params.get("decision_rule")
        nothing = rule in ("no_candidate_clears_floor", "no_candidate_enrolled")
        if nothing or (chosen is None and place is None):
            if rule is None:
                rule = (
                    "no_candidate_clears_floor" if self._candidates() else "no_candidate_enrolled"
                )
            self._decision = Decision(self.id, None, None, None, None, rule, "rejected", True)
            self._spool_story(None)
            self.outcome = DecisionOutcome("rejected", spooled=True)
            return
        if place is not None:
            self._tried.add(place)
            chosen = self._candidates()[place]["model_slug"]
        assert chosen is not None
        if rule is None:
            rule = "caller_ranked" if self._candidates() else "pinned"
        provider = self._candidates()[place].get("provider") if place is not None else None
        attempt_id = UUID(params["attempt_id"] or self._ledger._ids())
        self._decision = Decision(
            self.id, attempt_id, 1, chosen, provider, rule, None, created=True
        )
        self._open(attempt_id, 1, chosen, provider)

    def _candidates(self) -> list[Mapping[str, Any]]:
        out: list[Mapping[str, Any]] = []
        for candidate in self._params.get("candidates") or ():
            if isinstance(candidate, Candidate):
                out.append(candidate.as_dict())
            elif isinstance(candidate, Mapping):
                out.append(candidate)
            else:
                out.append({"model_slug": candidate})
        return out

    def _open(
        self,
        attempt_id: UUID | None,
        attempt_no: int | None,
        model_slug: str | None,
        provider: str | None,
    ) -> OpenAttempt:
        assert attempt_id is not None
        assert attempt_no is not None
        assert model_slug is not None
        found: Mapping[str, Any] = {"model_slug": model_slug}
        for n, candidate in enumerate(self._candidates()):
            if candidate.get("model_slug") == model_slug:
                found = candidate
                self._tried.add(n)
                break
        self.attempt = OpenAttempt(self, attempt_id, attempt_no, model_slug, provider, found)
        return self.attempt

    def _open_next(self, after: OpenAttempt) -> OpenAttempt | None:
        for n, candidate in enumerate(self._candidates()):
            if n not in self._tried and candidate.get("drop_reason") is None:
                self._tried.add(n)
                attempt_id = UUID(self._ledger._ids())
                slug, provider = candidate["model_slug"], candidate.get("provider")
                self._delay = 0.0
                self.attempt = OpenAttempt(
                    self, attempt_id, after.attempt_no + 1, slug, provider, candidate
                )
                return self.attempt
        return None

    # -- the lease --

    def _beat(self) -> None:
        if self._ended:
            return
        again = FIRST_BEAT
        row = self._key()
        if self._params.get("lease") is not None:
            row["lease"] = self._params["lease"]
        try:
            lease = self._ledger._submit(_routines.EXTEND_LEASE, row)
        except LeaseLost:
            self.lease_lost = True
            logger.warning("decision %s lost its lease; its ending will be late", self.id)
            return
        except LedgerError as exc:
            if not exc.retryable:
                return
            again = 5.0
        else:
            left = lease.lease_expires_at - self._ledger._server_now()
            again = max(0.2, left.total_seconds() / 2)
        if self.outcome is None and not self._ended:
            self._timer = self._ledger._timers.after(again, self._beat)

    def _stop_timer(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _told(attempt: OpenAttempt, status: str, facts: Row) -> dict[str, Any]:
    """An attempt as a told story has it."""
    told = {
        "id": str(attempt.id),
        "model_slug": attempt.model_slug,
        "provider": attempt.provider,
        "status": status,
        "started_at": attempt._started_at,
        "completed_at": datetime.now(timezone.utc),
        **facts,
    }
    return {k: v for k, v in told.items() if v is not None}
