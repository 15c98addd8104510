# Generated from pydriver/routeledger/_async.py by `make sync`: edit that, not this.
# ruff: noqa: A002 - parameters are named as the routines name them
"""The synchronous client. The synchronous one is generated from it."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

import psycopg
from psycopg import Connection, conninfo
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from . import _calls, _codec, _handshake, _routines, types
from ._classify import Failure
from ._coalesce_sync import Coalescer
from ._codec import Row
from ._ids import IdMaker
from ._loop_sync import OpenDecision
from ._replay_sync import Replay
from ._routines import Routine
from ._threads import Later, Timers, sleep
from ._upsert_sync import Rows, Upsert
from .errors import LedgerClosed, LedgerError, LedgerUnavailable, translate
from .spool import DEFAULT_MAX_BYTES, ReplayReport, Spool
from .types import Candidate, ConstraintKind, OutcomeStatus, RowResult

if TYPE_CHECKING:
    from typing_extensions import LiteralString, Self

__all__ = ["Ledger"]

T = TypeVar("T")
Record = tuple[Any, ...]
Candidates = Sequence[Candidate | Mapping[str, Any] | str]
Money = Decimal | float | int | str
Id = UUID | str
Next = Literal["policy", "hold", "give_up"]
Scope = Literal["tenant", "agent", "key"]
Period = Literal["hour", "day", "month", "total"]
OnTie = Literal["greatest_row", "replace", "keep"]
TrafficClass = Literal["production", "shadow", "synthetic", "replay"]
OnLedgerError = Literal["raise", "spool"]
IfViolated = Literal["refuse", "add_not_valid"]
Conn = Connection[Any]

logger = logging.getLogger("routeledger")

_FIRST_DELAY = 0.02
_LONGEST_DELAY = 1.0
_DOWN_FOR = 1.0
_LOCK_TIMEOUT = timedelta(seconds=1)
_WINDOW = timedelta(seconds=3)
_MOST_STEPS = 100
_COALESCED = frozenset(
    {
        "insert_decision",
        "route",
        "start_attempt",
        "fail_attempt",
        "complete_decision",
        "extend_lease",
        "record_outcome",
        "record_verdict",
    }
)


class Ledger:
    """A client of the ledger. Open it with `connect`, and use it as a context manager.

    Every method takes ``conn=``: with it the call runs on that connection, in its transaction, and
    is neither committed nor tried again. Without it the call is committed when the method returns;
    lost connections, serialization failures, deadlocks and lock timeouts are tried again with
    growing, random delays for `timeout` seconds, which is safe because every call is idempotent by
    id. The client makes the ids (UUID version 7) where the caller gave none, before the first try.

    All errors are `LedgerError` and its subclasses. All times carry a time zone.
    """

    def __init__(
        self,
        pool: ConnectionPool[Conn],
        *,
        owns_pool: bool = True,
        dsn: str = "",
        timeout: float = 10.0,
        on_ledger_error: OnLedgerError = "raise",
        spool: Spool | None = None,
        coalesce: bool = True,
        max_batch: int = 200,
        max_wait_ms: float = 2.0,
        max_queue: int = 10_000,
    ) -> None:
        self._pool = pool
        self._owns_pool = owns_pool
        self._dsn = dsn
        self._timeout = timeout
        self._spool = spool if on_ledger_error == "spool" else None
        self._warned = False
        self._down_until = 0.0
        self._ids = IdMaker()
        self._timers = Timers()
        self._closed = False
        self._coalescer = (
            Coalescer(
                self._run,
                self._one_uncoalesced,
                max_batch=max_batch,
                max_wait=max_wait_ms / 1000,
                max_queue=max_queue,
            )
            if coalesce
            else None
        )

    @classmethod
    def connect(
        cls,
        dsn: str | None = None,
        *,
        min_size: int = 1,
        max_size: int = 10,
        timeout: float | None = None,
        on_ledger_error: OnLedgerError = "raise",
        spool_path: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = DEFAULT_MAX_BYTES,
        coalesce: bool = True,
        max_batch: int = 200,
        max_wait_ms: float = 2.0,
        max_queue: int = 10_000,
        check_version: bool = True,
        prepare_threshold: int | None = None,
        pool: ConnectionPool[Conn] | None = None,
    ) -> Self:
        """Open a client and see that the schema is there and of a version that it understands.

        Args:
            dsn: a libpq connection string; libpq's environment (``PGHOST`` …) when absent.
            min_size: connections kept open.
            max_size: most connections.
            timeout: seconds that a call may take to get through, retries included; 10, or 2 with
                ``on_ledger_error="spool"``.
            on_ledger_error: what the decision loop does when the ledger cannot be reached:
                ``raise``, or ``spool`` (keep the records in a local file, see `routeledger.spool`,
                and let the caller have the provider's answer).
            spool_path: the spool's file; in the user's folder for state when absent.
            spool_max_bytes: the most that the spool holds.
            coalesce: let concurrent writes share a statement and a commit.
            max_batch: most rows in one statement.
            max_wait_ms: most milliseconds that a row waits for company.
            max_queue: most rows on their way before further callers wait.
            check_version: False leaves out the look at the schema's version.
            prepare_threshold: psycopg's; None (never prepare) works through transaction poolers.
            pool: the caller's own pool, which it opens and closes itself.

        Raises:
            NotInstalled: there is no routeledger in this database.
            OtherVersionInstalled: the schema is older than this client needs.
            SchemaTooNew: the schema is newer than this client understands.
            LedgerUnavailable: no connection, with ``on_ledger_error="raise"``.
        """
        dsn = dsn or ""
        if timeout is None:
            timeout = 2.0 if on_ledger_error == "spool" else 10.0
        owned = pool is None
        if pool is None:
            kwargs: dict[str, Any] = {"autocommit": True, "prepare_threshold": prepare_threshold}
            given = conninfo.conninfo_to_dict(dsn)
            if "connect_timeout" not in given and "PGCONNECT_TIMEOUT" not in os.environ:
                kwargs["connect_timeout"] = 5
            pool = ConnectionPool(
                dsn,
                kwargs=kwargs,
                min_size=min_size,
                max_size=max_size,
                open=False,
                check=_check,
                timeout=timeout,
                name="routeledger",
            )
            pool.open()
        ledger = cls(
            pool,
            owns_pool=owned,
            dsn=dsn,
            timeout=timeout,
            on_ledger_error=on_ledger_error,
            spool=(
                Spool(spool_path, max_bytes=spool_max_bytes) if on_ledger_error == "spool" else None
            ),
            coalesce=coalesce,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
        )
        try:
            if check_version:
                ledger._shake_hands()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is waiting, then close the pool. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._timers.close()
        if self._coalescer is not None:
            self._coalescer.close()
        if self._owns_pool:
            self._pool.close()

    # -- two phases --

    def decision(
        self,
        *,
        tenant_id: str,
        candidates: Candidates = (),
        id: Id | None = None,
        agent_id: str | None = None,
        task_type: str | None = None,
        chosen_model_slug: str | None = None,
        decision_rule: str | None = None,
        min_quality: float | None = None,
        budget_cap_usd: Money | None = None,
        policy_version: str | None = None,
        traffic_class: TrafficClass = "production",
        event_at: datetime | None = None,
        lease: timedelta | None = None,
        attempt_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        budget_key: str | None = None,
        deadline: timedelta | None = None,
        ruleset_hash: str | None = None,
        propensity: float | None = None,
        heartbeat: bool = True,
        classify: Callable[[BaseException], Failure] | None = None,
    ) -> OpenDecision:
        """A decision as a block whose every exit closes the books.

            with ledger.decision(tenant_id="acme", candidates=ranked) as decision:
                for attempt in decision.attempts():
                    with attempt:
                        reply = call_provider(attempt.model_slug)
                        attempt.succeed(input_tokens=…, output_tokens=…)

        An exception in an attempt block is the provider's error: it is recorded, and the loop waits
        and goes on as the ledger says; when the ledger gives up, the exception passes through. A
        rejected decision has no attempts.

        Args:
            heartbeat: extend the lease in the background while the block is open. Where `lease` is
                not given the first extension comes after 30 seconds; give it when the setting is
                shorter than a minute.
            classify: reads an exception, in place of `routeledger.classify`.

        The other arguments are those of `insert_decision`. There is no ``conn=``: the decision is
        committed before the provider is called.
        """
        params = {
            "tenant_id": tenant_id,
            "id": self._ids() if id is None else str(id),
            "agent_id": agent_id,
            "task_type": task_type,
            "candidates": candidates,
            "chosen_model_slug": chosen_model_slug,
            "decision_rule": decision_rule,
            "min_quality": min_quality,
            "budget_cap_usd": budget_cap_usd,
            "policy_version": policy_version,
            "traffic_class": traffic_class,
            "event_at": event_at,
            "lease": lease,
            "attempt_id": self._ids() if attempt_id is None else str(attempt_id),
            "metadata": metadata,
            "budget_key": budget_key,
            "deadline": deadline,
            "ruleset_hash": ruleset_hash,
            "propensity": propensity,
        }
        return OpenDecision(self, params, heartbeat=heartbeat, classifier=classify)

    def routed(
        self,
        *,
        tenant_id: str,
        id: Id | None = None,
        agent_id: str | None = None,
        task_type: str | None = None,
        policy: str = "default",
        candidates: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        pinned_model: str | None = None,
        budget_key: str | None = None,
        deadline: timedelta | None = None,
        traffic_class: TrafficClass = "production",
        event_at: datetime | None = None,
        lease: timedelta | None = None,
        attempt_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: int | None = None,
        heartbeat: bool = True,
        classify: Callable[[BaseException], Failure] | None = None,
    ) -> OpenDecision:
        """A decision that the ledger makes, as a block whose every exit closes the books.

            with ledger.routed(tenant_id="acme", task_type="chat") as decision:
                for attempt in decision.attempts():
                    with attempt:
                        reply = call_provider(attempt.model_slug)
                        attempt.succeed(input_tokens=…, output_tokens=…)

        The arguments are those of `route`, and the block is that of `decision`; `result` is a
        `Routed`. With ``on_ledger_error="spool"`` and no ledger to ask, the pinned model or the
        candidates named are tried in the order given; without either it raises.
        """
        params = {
            "tenant_id": tenant_id,
            "id": self._ids() if id is None else str(id),
            "agent_id": agent_id,
            "task_type": task_type,
            "policy": policy,
            "candidates": None if candidates is None else list(candidates),
            "overrides": overrides,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "pinned_model": pinned_model,
            "budget_key": budget_key,
            "deadline": deadline,
            "traffic_class": traffic_class,
            "event_at": event_at,
            "lease": lease,
            "attempt_id": None if attempt_id is None else str(attempt_id),
            "metadata": metadata,
            "seed": seed,
        }
        return OpenDecision(
            self, params, heartbeat=heartbeat, classifier=classify, opens=_routines.ROUTE
        )

    def insert_decision(
        self,
        *,
        tenant_id: str,
        candidates: Candidates = (),
        id: Id | None = None,
        agent_id: str | None = None,
        task_type: str | None = None,
        chosen_model_slug: str | None = None,
        decision_rule: str | None = None,
        min_quality: float | None = None,
        budget_cap_usd: Money | None = None,
        policy_version: str | None = None,
        traffic_class: TrafficClass = "production",
        event_at: datetime | None = None,
        lease: timedelta | None = None,
        attempt_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        budget_key: str | None = None,
        deadline: timedelta | None = None,
        ruleset_hash: str | None = None,
        propensity: float | None = None,
        conn: Conn | None = None,
    ) -> types.Decision:
        """Write a decision, and its first attempt, before the provider is called.

        Args:
            tenant_id: whose decision it is.
            candidates: ranked, best first: slugs, `Candidate`, or mappings with a ``model_slug``.
            id: the decision's UUID v7, which is the idempotency key.
            agent_id: who asks.
            task_type: what for.
            chosen_model_slug: the model chosen; the first eligible candidate when absent.
            decision_rule: how it was chosen.
            min_quality: the floor, 0 to 1.
            budget_cap_usd: US dollars.
            policy_version: of the caller's routing policy.
            traffic_class: ``production``, ``shadow``, ``synthetic`` or ``replay``.
            event_at: when it happened, if not now.
            lease: how long the reaper leaves it alone; the ledger's setting when absent.
            attempt_id: the UUID v7 of the first attempt.
            metadata: anything, as a JSON object.
            budget_key: whose budgets of the scope ``key`` it counts against.
            deadline: how long the caller will wait in all for an answer.
            ruleset_hash: of the rules that chose.
            propensity: the probability with which this model was chosen, 0 to 1.
            conn: a connection of the caller's, which is not committed.

        Raises:
            BudgetExhausted: a budget does not cover it; nothing was written.
        """
        row = {
            "tenant_id": tenant_id,
            "id": self._ids() if id is None else id,
            "agent_id": agent_id,
            "task_type": task_type,
            "candidates": candidates,
            "chosen_model_slug": chosen_model_slug,
            "decision_rule": decision_rule,
            "min_quality": min_quality,
            "budget_cap_usd": budget_cap_usd,
            "policy_version": policy_version,
            "traffic_class": traffic_class,
            "event_at": event_at,
            "lease": lease,
            "attempt_id": self._ids() if attempt_id is None else attempt_id,
            "metadata": metadata,
            "budget_key": budget_key,
            "deadline": deadline,
            "ruleset_hash": ruleset_hash,
            "propensity": propensity,
        }
        return self._submit(_routines.INSERT_DECISION, _compact(row), conn)

    def route(
        self,
        *,
        tenant_id: str,
        id: Id | None = None,
        agent_id: str | None = None,
        task_type: str | None = None,
        policy: str = "default",
        candidates: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        pinned_model: str | None = None,
        budget_key: str | None = None,
        deadline: timedelta | None = None,
        traffic_class: TrafficClass = "production",
        event_at: datetime | None = None,
        lease: timedelta | None = None,
        attempt_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: int | None = None,
        conn: Conn | None = None,
    ) -> types.Routed:
        """Have the ledger choose the model, and write the decision and its first attempt.

        Args:
            tenant_id: whose request it is.
            id: the decision's UUID v7, which is the idempotency key: a known one returns what was
                decided then.
            agent_id: who asks.
            task_type: what for: the buckets of this task type say how good each model is at it.
            policy: the name of a routing policy, or ``name@version``.
            candidates: the models to choose from; all enrolled ones when absent.
            overrides: rules of the policy with other values, for this call.
            input_tokens: tokens of the prompt; the policy's assumption when absent.
            output_tokens: tokens expected; the policy's assumption when absent.
            pinned_model: take this one, unless the policy denies it.
            budget_key: whose budgets of the scope ``key`` it counts against.
            deadline: how long the caller will wait in all; where every acceptable model cools down,
                the first to return is chosen if that is in time.
            traffic_class: ``production``, ``shadow``, ``synthetic`` or ``replay``.
            event_at: when it happened, if not now.
            lease: how long the reaper leaves it alone; the ledger's setting when absent.
            attempt_id: the UUID v7 of the first attempt.
            metadata: anything, as a JSON object.
            seed: of the draws of a policy that explores; they come from the id when absent.
            conn: a connection of the caller's, which is not committed.

        Raises:
            PolicyNotFound: there is no such policy.
            IdReused: another request was routed under this id.
        """
        row = {
            "tenant_id": tenant_id,
            "id": self._ids() if id is None else id,
            "agent_id": agent_id,
            "task_type": task_type,
            "policy": policy,
            "candidates": None if candidates is None else list(candidates),
            "overrides": overrides,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "pinned_model": pinned_model,
            "budget_key": budget_key,
            "deadline": deadline,
            "traffic_class": traffic_class,
            "event_at": event_at,
            "lease": lease,
            "attempt_id": attempt_id,
            "metadata": metadata,
            "seed": seed,
        }
        return self._submit(_routines.ROUTE, _compact(row), conn)

    def rank_candidates(
        self,
        *,
        tenant_id: str,
        task_type: str | None = None,
        policy: str = "default",
        candidates: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        at: datetime | None = None,
        conn: Conn | None = None,
    ) -> list[types.Ranked]:
        """Say how a request would be routed, and why each model is where it is. Writes nothing.

        Args:
            at: the time of prices, measurements and cooldowns; now when absent.

        The other arguments are those of `route`.
        """
        params = {
            "tenant_id": tenant_id,
            "task_type": task_type,
            "policy": policy,
            "candidates": None if candidates is None else list(candidates),
            "overrides": _codec.dumps(overrides or {}),
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "at": at,
        }
        records = self._query(_calls.RANK_CANDIDATES, params, conn)
        return [types.Ranked(*r) for r in records]

    def start_attempt(
        self,
        *,
        tenant_id: str,
        id: Id,
        model_slug: str,
        attempt_id: Id | None = None,
        provider: str | None = None,
        conn: Conn | None = None,
    ) -> types.StartedAttempt:
        """Open the next attempt by the caller's own choice, after ``fail_attempt(next="hold")``.

        Raises:
            AttemptOpen: one is open already.
            DecisionClosed: the decision is closed.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "model_slug": model_slug,
            "attempt_id": self._ids() if attempt_id is None else attempt_id,
            "provider": provider,
        }
        return self._submit(_routines.START_ATTEMPT, _compact(row), conn)

    def fail_attempt(
        self,
        *,
        tenant_id: str,
        id: Id,
        attempt_id: Id,
        error_type: str,
        error_message: str | None = None,
        http_status: int | None = None,
        retry_after_ms: int | None = None,
        next: Next = "policy",
        next_attempt_id: Id | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: Money | None = None,
        latency_ms: float | None = None,
        ttft_ms: float | None = None,
        provider_response_id: str | None = None,
        conn: Conn | None = None,
    ) -> types.NextStep:
        """Close an attempt as failed and learn what to do next.

        Args:
            tenant_id: whose decision it is.
            id: the decision.
            attempt_id: the attempt that failed.
            error_type: the kind of error.
            error_message: what the provider said.
            http_status: 100 to 599.
            retry_after_ms: what the provider asked for, in milliseconds.
            next: ``policy`` (the ledger chooses), ``hold`` (the caller will), ``give_up``.
            next_attempt_id: the UUID v7 of the attempt that the ledger opens next.
            input_tokens: tokens read, if billed all the same.
            output_tokens: tokens written.
            cost_usd: US dollars; computed from the catalogue when absent.
            latency_ms: milliseconds; the ledger's own measure when absent.
            ttft_ms: milliseconds to the first token.
            provider_response_id: the provider's id of the response.
            conn: a connection of the caller's, which is not committed.

        Raises:
            AttemptClosed: it is closed already, in another way.
            LeaseLost: the reaper closed it.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "attempt_id": attempt_id,
            "error_type": error_type,
            "error_message": error_message,
            "http_status": http_status,
            "retry_after_ms": retry_after_ms,
            "next": next,
            "next_attempt_id": self._ids() if next_attempt_id is None else next_attempt_id,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_usd": cost_usd,
            "latency_ms": latency_ms,
            "ttft_ms": ttft_ms,
            "provider_response_id": provider_response_id,
        }
        return self._submit(_routines.FAIL_ATTEMPT, _compact(row), conn)

    def complete_decision(
        self,
        *,
        tenant_id: str,
        id: Id,
        outcome_status: OutcomeStatus,
        attempt_id: Id | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cache_read_input_tokens: int | None = None,
        cache_creation_input_tokens: int | None = None,
        reasoning_output_tokens: int | None = None,
        cost_usd: Money | None = None,
        latency_ms: float | None = None,
        ttft_ms: float | None = None,
        http_status: int | None = None,
        error_type: str | None = None,
        error_message: str | None = None,
        provider_response_id: str | None = None,
        response_model: str | None = None,
        finish_reasons: Sequence[str] | None = None,
        decision_rule_override: str | None = None,
        conn: Conn | None = None,
    ) -> types.Completion:
        """Close a decision and its open attempt, and link the two.

        Args:
            tenant_id: whose decision it is.
            id: the decision.
            outcome_status: ``succeeded`` (tokens required) or ``failed`` (error_type required).
            attempt_id: the attempt meant; the open one when absent.
            input_tokens: all tokens read, cached ones included.
            output_tokens: all tokens written, those of reasoning included.
            cache_read_input_tokens: of the input, those read from a cache.
            cache_creation_input_tokens: of the input, those written to a cache.
            reasoning_output_tokens: of the output, those of reasoning.
            cost_usd: US dollars; computed from the catalogue when absent.
            latency_ms: milliseconds; the ledger's own measure when absent.
            ttft_ms: milliseconds to the first token.
            http_status: 100 to 599.
            error_type: the kind of error.
            error_message: what the provider said.
            provider_response_id: the provider's id of the response.
            response_model: the model that the provider says answered.
            finish_reasons: why it stopped, one a choice.
            decision_rule_override: for a failure before any dispatch; links nothing.
            conn: a connection of the caller's, which is not committed.

        Raises:
            DecisionNotFound: no such decision of this tenant.
            AlreadyCompleted: it was completed in another way.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "outcome_status": outcome_status,
            "attempt_id": attempt_id,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_input_tokens": cache_read_input_tokens,
            "cache_creation_input_tokens": cache_creation_input_tokens,
            "reasoning_output_tokens": reasoning_output_tokens,
            "cost_usd": cost_usd,
            "latency_ms": latency_ms,
            "ttft_ms": ttft_ms,
            "http_status": http_status,
            "error_type": error_type,
            "error_message": error_message,
            "provider_response_id": provider_response_id,
            "response_model": response_model,
            "finish_reasons": finish_reasons,
            "decision_rule_override": decision_rule_override,
        }
        return self._submit(_routines.COMPLETE_DECISION, _compact(row), conn)

    def extend_lease(
        self,
        *,
        tenant_id: str,
        id: Id,
        lease: timedelta | None = None,
        conn: Conn | None = None,
    ) -> types.Lease:
        """Keep the reaper away from a decision in flight; a lease is never shortened.

        Raises:
            LeaseLost: the reaper has closed it.
            DecisionClosed: it was completed.
        """
        row = {"tenant_id": tenant_id, "id": id, "lease": lease}
        return self._submit(_routines.EXTEND_LEASE, _compact(row), conn)

    # -- afterwards --

    def record_outcome(
        self,
        *,
        tenant_id: str,
        attempts: Sequence[Mapping[str, Any]] = (),
        candidates: Candidates = (),
        id: Id | None = None,
        agent_id: str | None = None,
        task_type: str | None = None,
        chosen_model_slug: str | None = None,
        decision_rule: str | None = None,
        min_quality: float | None = None,
        budget_cap_usd: Money | None = None,
        policy_version: str | None = None,
        traffic_class: TrafficClass = "production",
        event_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        decision_rule_override: str | None = None,
        conn: Conn | None = None,
    ) -> types.RecordedOutcome:
        """Write a whole story in one call, for a caller who learns of it afterwards.

        Args:
            attempts: in order, mappings with ``model_slug``, ``status`` (``succeeded`` or
                ``failed``) and the facts that `complete_decision` and `fail_attempt` take, with
                ``started_at`` and ``completed_at``.

        The other arguments are those of `insert_decision`. To make repetition safe give the `id`,
        and give each attempt its own ``id``.
        """
        row = {
            "tenant_id": tenant_id,
            "id": self._ids() if id is None else id,
            "agent_id": agent_id,
            "task_type": task_type,
            "candidates": candidates,
            "chosen_model_slug": chosen_model_slug,
            "decision_rule": decision_rule,
            "min_quality": min_quality,
            "budget_cap_usd": budget_cap_usd,
            "policy_version": policy_version,
            "traffic_class": traffic_class,
            "event_at": event_at,
            "metadata": metadata,
            "attempts": attempts,
            "decision_rule_override": decision_rule_override,
        }
        return self._submit(_routines.RECORD_OUTCOME, _compact(row), conn)

    def record_payload(
        self,
        *,
        tenant_id: str,
        id: Id,
        attempt_id: Id,
        request: Any = None,
        response: Any = None,
        conn: Conn | None = None,
    ) -> types.StoredPayload:
        """Keep what was sent to a provider and what came back, as JSON."""
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "attempt_id": attempt_id,
            "request": request,
            "response": response,
        }
        return self._submit(_routines.RECORD_PAYLOAD, _compact(row), conn)

    # -- judging --

    def claim_judgements(
        self,
        *,
        judge: str,
        judge_version: str,
        tenant_id: str | None = None,
        limit: int = 10,
        lease: timedelta | None = None,
        from_: date | None = None,
        payloads: bool = True,
        conn: Conn | None = None,
    ) -> list[types.Judgement]:
        """Take decisions that this version of a judge has not judged, oldest first.

        Nobody else is given them until the lease runs out. Answer each with `record_verdict` or
        `release_judgement`; `routeledger.judging` does all of it. Only decisions that succeeded are
        judged.

        Args:
            judge: its name.
            judge_version: each version judges each decision once.
            tenant_id: whose decisions; those of all tenants in turn when absent.
            limit: at most so many, 1 to 1,000.
            lease: how long they are kept for it; the ledger's setting when absent.
            from_: only those decided on that day (UTC) or later.
            payloads: whether request and response come along.
            conn: a connection of the caller's, which is not committed.

        A call that is made again after its connection was lost may leave decisions claimed that
        nobody knows of; they return when their lease has run out.
        """
        params = {
            "tenant_id": tenant_id,
            "judge": judge,
            "judge_version": judge_version,
            "limit": limit,
            "lease": lease,
            "from": from_,
            "payloads": payloads,
        }
        records = self._query(_calls.CLAIM_JUDGEMENTS, params, conn)
        return [types.Judgement(*r) for r in records]

    def renew_judgement(
        self,
        *,
        tenant_id: str,
        id: Id,
        judge: str,
        judge_version: str,
        lease_token: Id,
        lease: timedelta | None = None,
        conn: Conn | None = None,
    ) -> types.JudgementLease:
        """Keep a claim for longer, from now on.

        Raises:
            ClaimLost: the token is not the current one: stop the work.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "judge": judge,
            "judge_version": judge_version,
            "lease_token": lease_token,
            "lease": lease,
        }
        return self._submit(_routines.RENEW_JUDGEMENT, _compact(row), conn)

    def release_judgement(
        self,
        *,
        tenant_id: str,
        id: Id,
        judge: str,
        judge_version: str,
        lease_token: Id,
        error: str | None = None,
        delay: timedelta | None = None,
        conn: Conn | None = None,
    ) -> types.ReleasedJudgement:
        """Give a claim back without a verdict.

        Args:
            error: why it could not be judged. The attempt then counts, and the last one of
                ``settings.judge_max_attempts`` ends as ``cannot_evaluate``, with this as the
                rationale. Without it the attempt does not count.
            delay: until it may be claimed again; with an error ``settings.judge_retry_delay`` when
                absent.

        Raises:
            ClaimLost: the token is not the current one.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "judge": judge,
            "judge_version": judge_version,
            "lease_token": lease_token,
            "error": error,
            "delay": delay,
        }
        return self._submit(_routines.RELEASE_JUDGEMENT, _compact(row), conn)

    def record_verdict(
        self,
        *,
        tenant_id: str,
        id: Id,
        judge: str,
        judge_version: str,
        score: float | None = None,
        label: str | None = None,
        rationale: str | None = None,
        lease_token: Id | None = None,
        reward_source: types.RewardSource = "judge",
        judge_model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: Money | None = None,
        conn: Conn | None = None,
    ) -> types.RecordedVerdict:
        """Record what a judge, or a human, says of a decision, and bring its reward up to date.

        Args:
            tenant_id: whose decision it is.
            id: the decision.
            judge: who judges.
            judge_version: in which version; each has one verdict on a decision, for good.
            score: 0 (wrong) to 1 (right); None, with a label, or -1 says that it cannot be
                evaluated, which is kept and counts for nothing.
            label: a word of the judge's own, such as ``correct``.
            rationale: why.
            lease_token: of the claim; absent for humans and imports, who claim nothing.
            reward_source: ``judge`` or ``human``.
            judge_model: the model that judged.
            input_tokens: of judging: tokens read.
            output_tokens: tokens written.
            cost_usd: US dollars.
            conn: a connection of the caller's, which is not committed.

        Raises:
            ClaimLost: the claim was given away, or, without a token, another holds one.
            VerdictDiffers: this version has given another verdict.
            NotJudgeable: the decision did not succeed, or is not closed.
            DecisionNotFound: no such decision of this tenant.
        """
        row = {
            "tenant_id": tenant_id,
            "id": id,
            "judge": judge,
            "judge_version": judge_version,
            "score": score,
            "label": label,
            "rationale": rationale,
            "lease_token": lease_token,
            "reward_source": reward_source,
            "judge_model": judge_model,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_usd": cost_usd,
        }
        return self._submit(_routines.RECORD_VERDICT, _compact(row), conn)

    def withdraw_verdicts(
        self,
        *,
        judge: str,
        judge_version: str,
        reason: str,
        tenant_id: str | None = None,
        model_slug: str | None = None,
        from_: date | None = None,
        to: date | None = None,
        conn: Conn | None = None,
    ) -> list[types.Withdrawal]:
        """Take the verdicts of a judge version out of all rewards; they are kept, and marked.

        Args:
            judge: whose verdicts.
            judge_version: of which version.
            reason: kept with the withdrawal.
            tenant_id: of one tenant; of all, one result each, when absent.
            model_slug: only those on this model.
            from_: only those on decisions of this day (UTC) or later.
            to: only those on decisions before this day.
            conn: a connection of the caller's, which is not committed.
        """
        params = {
            "tenant_id": tenant_id,
            "judge": judge,
            "judge_version": judge_version,
            "reason": reason,
            "model_slug": model_slug,
            "from": from_,
            "to": to,
        }
        records = self._query(_calls.WITHDRAW_VERDICTS, params, conn)
        return [types.Withdrawal(*r) for r in records]

    def reinstate_verdicts(
        self, *, tenant_id: str, withdrawal_id: Id, conn: Conn | None = None
    ) -> types.Withdrawal:
        """Count verdicts again that were withdrawn.

        Raises:
            WithdrawalNotFound: this tenant has no such withdrawal.
        """
        params = {"tenant_id": tenant_id, "withdrawal_id": withdrawal_id}
        return types.Withdrawal(*(self._query(_calls.REINSTATE_VERDICTS, params, conn))[0])

    # -- the corpus --

    def export_corpus(
        self,
        *,
        tenant_id: str,
        from_: date | None = None,
        to: date | None = None,
        traffic_class: Sequence[TrafficClass] = ("production",),
        mix_synthetic: bool = False,
        reward_source: Sequence[types.RewardSource] | None = None,
        task_type: str | None = None,
        payloads: bool = False,
        after: Id | None = None,
        page: int = 10_000,
        conn: Conn | None = None,
    ) -> Iterator[list[types.CorpusRow]]:
        """Labelled decisions in order of their ids, in pages; see ``docs/how-to/corpus.md``.

            for page in ledger.export_corpus(tenant_id="acme"):
                ...

        Each page is read in a transaction of its own, so later pages may show later verdicts. For
        one state of the ledger give a `conn` in a transaction under REPEATABLE READ, as
        `routeledger.corpus` does.

        Args:
            tenant_id: whose decisions.
            from_: only those of this day (UTC) and later.
            to: only those before this day.
            traffic_class: of these classes.
            mix_synthetic: allow ``synthetic`` or ``replay`` beside ``production`` or ``shadow``.
            reward_source: only rewards from ``judge`` or from ``human``; both when absent.
            task_type: only of this type.
            payloads: with requests, responses and rationales.
            after: go on after this id.
            page: rows of a page, at most 100,000.
            conn: a connection of the caller's, which is not committed.
        """
        params = {
            "tenant_id": tenant_id,
            "from": from_,
            "to": to,
            "traffic_class": list(traffic_class),
            "mix_synthetic": mix_synthetic,
            "reward_source": None if reward_source is None else list(reward_source),
            "task_type": task_type,
            "payloads": payloads,
            "after": after,
            "limit": page,
        }
        while records := self._query(_calls.EXPORT_CORPUS, params, conn):
            rows = [types.CorpusRow(*r) for r in records]
            yield rows
            params["after"] = rows[-1].id

    def corpus_manifest(
        self,
        *,
        tenant_id: str,
        from_: date | None = None,
        to: date | None = None,
        traffic_class: Sequence[TrafficClass] = ("production",),
        mix_synthetic: bool = False,
        reward_source: Sequence[types.RewardSource] | None = None,
        task_type: str | None = None,
        conn: Conn | None = None,
    ) -> types.CorpusManifest:
        """Count what `export_corpus` returns by these filters, and what they leave out.

        Raises:
            EmptyCorpus: nothing; ``detail`` says what was left out and why.
        """
        params = {
            "tenant_id": tenant_id,
            "from": from_,
            "to": to,
            "traffic_class": list(traffic_class),
            "mix_synthetic": mix_synthetic,
            "reward_source": None if reward_source is None else list(reward_source),
            "task_type": task_type,
        }
        return types.CorpusManifest(*(self._query(_calls.CORPUS_MANIFEST, params, conn))[0])

    def estimate_policy(
        self,
        *,
        tenant_id: str,
        policy: str = "default",
        overrides: Mapping[str, Any] | None = None,
        from_: date | None = None,
        to: date | None = None,
        limit: int = 10_000,
        all_models: bool = False,
        confidence: float = 0.95,
        max_weight: float | None = None,
        conn: Conn | None = None,
    ) -> list[types.PolicyEstimate]:
        """Say what quality and cost another policy would have had on decisions of the past; see
        ``docs/how-to/off-policy.md``.

        Args:
            tenant_id: whose decisions.
            policy: the other policy, or ``name@version``.
            overrides: rules of it with other values.
            from_: only decisions of this day (UTC) and later.
            to: only those before this day.
            limit: at most so many.
            all_models: it may choose among all enrolled models, not only the candidates there were.
            confidence: of the intervals, 0.5 to 0.999.
            max_weight: cut weights at this one; none is cut when absent.
            conn: a connection of the caller's, which is not committed.

        Raises:
            PolicyNotFound: there is no such policy.
        """
        params = {
            "tenant_id": tenant_id,
            "policy": policy,
            "overrides": _codec.dumps(overrides or {}),
            "from": from_,
            "to": to,
            "limit": limit,
            "all_models": all_models,
            "confidence": confidence,
            "max_weight": max_weight,
        }
        records = self._query(_calls.ESTIMATE_POLICY, params, conn)
        return [types.PolicyEstimate(*r) for r in records]

    # -- many at once --

    def insert_decisions(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.Decision]]:
        """`insert_decision` for many: one answer a row, in order; a bad row spoils no other.

        Args:
            rows: mappings with the arguments of the single form; at most 10,000.
        """
        return self._many(_routines.INSERT_DECISION, self._with_ids(rows, "id", "attempt_id"), conn)

    def routes(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.Routed]]:
        """`route` for many; see `insert_decisions`. They are routed one after the other, and each
        sees what the ones before it reserved."""
        return self._many(_routines.ROUTE, self._with_ids(rows, "id"), conn)

    def start_attempts(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.StartedAttempt]]:
        """`start_attempt` for many; see `insert_decisions`."""
        return self._many(_routines.START_ATTEMPT, self._with_ids(rows, "attempt_id"), conn)

    def fail_attempts(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.NextStep]]:
        """`fail_attempt` for many; see `insert_decisions`."""
        return self._many(_routines.FAIL_ATTEMPT, self._with_ids(rows, "next_attempt_id"), conn)

    def complete_decisions(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.Completion]]:
        """`complete_decision` for many; see `insert_decisions`."""
        return self._many(_routines.COMPLETE_DECISION, list(rows), conn)

    def extend_leases(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.Lease]]:
        """`extend_lease` for many; see `insert_decisions`."""
        return self._many(_routines.EXTEND_LEASE, list(rows), conn)

    def record_outcomes(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.RecordedOutcome]]:
        """`record_outcome` for many; see `insert_decisions`."""
        return self._many(_routines.RECORD_OUTCOME, self._with_ids(rows, "id"), conn)

    def record_payloads(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.StoredPayload]]:
        """`record_payload` for many; see `insert_decisions`."""
        return self._many(_routines.RECORD_PAYLOAD, list(rows), conn)

    def renew_judgements(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.JudgementLease]]:
        """`renew_judgement` for many; see `insert_decisions`."""
        return self._many(_routines.RENEW_JUDGEMENT, list(rows), conn)

    def release_judgements(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.ReleasedJudgement]]:
        """`release_judgement` for many; see `insert_decisions`."""
        return self._many(_routines.RELEASE_JUDGEMENT, list(rows), conn)

    def record_verdicts(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.RecordedVerdict]]:
        """`record_verdict` for many; see `insert_decisions`."""
        return self._many(_routines.RECORD_VERDICT, list(rows), conn)

    def import_models(
        self, rows: Iterable[Row], *, conn: Conn | None = None
    ) -> list[RowResult[types.ImportedModel]]:
        """Bring models and their dated prices (US dollars a million tokens) into the catalogue.

        Args:
            rows: mappings with ``model_slug``, ``valid_from``, ``input_usd_per_mtok``,
                ``output_usd_per_mtok`` and more; an absent price is unknown, never free.
        """
        return self._many(_routines.IMPORT_MODELS, list(rows), conn)

    # -- any table --

    def upsert(
        self,
        table: str,
        rows: Rows,
        *,
        key: Sequence[str] | None = None,
        precedence: str | None = None,
        on_tie: OnTie = "greatest_row",
        columns: Sequence[str] | None = None,
        batch_id: str | None = None,
        strict: bool = False,
        progress: Callable[[types.UpsertProgress], object] | None = None,
        chunk_rows: int = 50_000,
        connections: int = 2,
        copy_threshold: int = 1000,
        conn: Conn | None = None,
    ) -> types.UpsertResult:
        """Write rows into any table, each key once, whatever the order in which they come.

        Of several rows of a key, in the stream and in the table, one stays: the one that wins by
        `precedence`, and between equals the greater row as a whole. So the same rows in any order,
        in any split, and once more, end in the same table. The rows are read chunk by chunk; each
        chunk is a transaction of its own, and is tried again (5 times) after lost connections,
        deadlocks, serialization failures and lock timeouts.

        Args:
            table: its name as SQL writes it, with its schema and quoted where that is needed.
            rows: mappings, dataclass instances, named tuples, or sequences with `columns`; an
                iterable of them, synchronous or not; a pandas or polars DataFrame, a pyarrow
                Table, RecordBatch or RecordBatchReader, or an iterable of such frames. They are
                read once. Missing values of frames become NULL, see `routeledger._frames`.
            key: the columns of a unique index; the primary key when absent, or the only unique
                index whose columns are written.
            precedence: ``greatest n``, ``latest updated_at``, ``first seen_at``, several terms by
                commas, or ``sum hits, cost``, which needs `batch_id`.
            on_tie: which of equal rows stays: the greater one as a whole (``greatest_row``), the
                later one (``replace``), or the one that is there (``keep``). With the latter two
                the order matters, so the chunks are written one after the other.
            columns: those to write; what else a row has is left out. When absent they are those
                of the first row, and a row with others is refused. A row that lacks one gets the
                column's default where that is a constant, NULL where there is none, and is refused
                otherwise.
            batch_id: names the whole stream, so that a batch of sums that comes again adds
                nothing; the same rows in the same order, `chunk_rows` and `copy_threshold` are
                needed to recognise it.
            strict: raise the first refusal; its chunk is not written.
            progress: called with an `UpsertProgress` after each chunk, where the call was made.
            chunk_rows: rows of a transaction, at most 100,000.
            connections: chunks under way at the same time, each on a connection of the pool, and
                the most that are in memory.
            copy_threshold: rows from which a chunk goes through COPY; fewer go as one JSON array.
            conn: a connection of the caller's: all in its transaction, one chunk after the other,
                not tried again and not committed.

        Returns:
            Exact counts, and why each row that was refused was; a bad row spoils no other.

        Raises:
            NoUniqueIndex: there is none of this key.
            NoSuchColumn, UnsuitableTarget, UnsuitablePrecedence: the call is wrong as it stands.
            BatchReused: the batch was applied with other rows, or in other chunks.
            LedgerError: whatever else the table or the way to it refuses.

        Any exception, those of the caller's own iterator included, carries as ``partial`` the
        `UpsertResult` of the chunks that were committed before it. The same call again is safe.
        """
        options = {
            "target": table,
            "key": None if key is None else list(key),
            "precedence": precedence,
            "on_tie": on_tie,
            "strict": strict,
        }
        upsert = Upsert(
            self._pool,
            options,
            timeout=self._timeout,
            batch_id=batch_id,
            progress=progress,
            chunk_rows=chunk_rows,
            connections=connections,
            copy_threshold=copy_threshold,
            conn=conn,
        )
        return upsert.run(rows, columns)

    # -- constraints --

    def ensure_check(
        self,
        table: str,
        name: str,
        predicate: str,
        *,
        if_violated: IfViolated = "refuse",
        no_inherit: bool = False,
        also_drop: Sequence[str] = (),
        label: str | None = None,
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        attempts: int = 10,
        strict: bool = False,
        dry_run: bool = False,
        conn: Conn | None = None,
    ) -> types.EnsureResult:
        """Make a table have this CHECK, whatever it has under this name now, and see it validated.

        What is there and what is declared are compared by Postgres itself; when they agree no lock
        is taken. Otherwise one ALTER swaps them without an unprotected moment, and the rows are
        validated in a transaction of its own, while readers and writers go on.

        Args:
            table: its name as SQL writes it, with its schema and quoted where that is needed.
            name: of the constraint.
            predicate: one boolean expression over the columns of the table.
            if_violated: what to do when rows violate it: ``refuse``, or ``add_not_valid``, which
                holds for what is written from now on, updates of the violating rows included.
            no_inherit: leave the tables that inherit from this one alone.
            also_drop: names of constraints that this one takes the place of, dropped by the same
                ALTER.
            label: names this change, so that `undo_constraint` can find it again.
            lock_timeout: how long one try waits for the lock.
            attempts: how often it is tried.
            strict: raise `ConstraintRefused` where it would be refused.
            dry_run: look, and change nothing.
            conn: a connection of the caller's: one step in its transaction. `EnsureResult.next`
                says whether the same call in a later transaction has something left to do; without
                ``conn`` this method makes all of them.

        Raises:
            UnsuitablePredicate: it is not one expression, or means something else in another
                session.
            UnsuitableTable: this is no table that can have it.
            LedgerBusy: the lock could not be had (55P03); ``detail`` says who holds it.
        """
        params = {
            "table": table,
            "name": name,
            "predicate": predicate,
            "if_violated": if_violated,
            "no_inherit": no_inherit,
            "also_drop": list(also_drop),
            "label": label,
            "lock_timeout": lock_timeout,
            "attempts": attempts,
            "strict": strict,
            "dry_run": dry_run,
        }
        return self._ensure(_calls.ENSURE_CHECK, params, conn)

    def ensure_not_null(
        self,
        table: str,
        column: str,
        *,
        name: str | None = None,
        if_violated: IfViolated = "refuse",
        label: str | None = None,
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        attempts: int = 10,
        strict: bool = False,
        dry_run: bool = False,
        conn: Conn | None = None,
    ) -> types.EnsureResult:
        """Make a column NOT NULL without a scan of the table under a lock; see `ensure_check`."""
        params = {
            "table": table,
            "column": column,
            "name": name,
            "if_violated": if_violated,
            "label": label,
            "lock_timeout": lock_timeout,
            "attempts": attempts,
            "strict": strict,
            "dry_run": dry_run,
        }
        return self._ensure(_calls.ENSURE_NOT_NULL, params, conn)

    def ensure_unique(
        self,
        table: str,
        name: str,
        columns: Sequence[str],
        *,
        keep: str | None = None,
        nulls: Literal["distinct", "not_distinct"] = "distinct",
        where: str | None = None,
        form: Literal["index", "constraint"] = "index",
        children: Literal["refuse", "repoint"] = "refuse",
        triggers: Literal["refuse", "fire"] = "refuse",
        reason: str | None = None,
        label: str | None = None,
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        attempts: int = 10,
        strict: bool = False,
        dry_run: bool = False,
        conn: Conn | None = None,
    ) -> types.EnsureResult:
        """Make these columns a unique key, so that ON CONFLICT works, collapsing duplicates first.

        Writers wait while duplicates are collapsed and the index is built; readers go on. For large
        tables see `routeledger.constraints.ensure_unique_online`. Every removed row is kept, and
        `undo_repair` puts it back.

        Args:
            table: its name as SQL writes it.
            name: of the index, and of the constraint if it is to be one.
            columns: names or expressions, each once.
            keep: which of the rows of a key stays, in the words of `upsert`: ``latest updated_at``,
                ``greatest n`` …; without it duplicates refuse.
            nulls: whether two NULLs are two keys (``distinct``) or one.
            where: the predicate of a partial index.
            form: ``index``, which is all that ON CONFLICT needs, or ``constraint``.
            children: where foreign keys reference rows that would be removed: ``refuse``, or
                ``repoint`` the children to the row that stays.
            triggers: where triggers of the table would fire: ``refuse``, or let them ``fire``.
            reason: kept with the repair.
            label, lock_timeout, attempts, strict, dry_run, conn: see `ensure_check`.

        Raises:
            UnsuitableColumns: they cannot be a unique key.
            UnsuitablePrecedence: `keep` cannot be read.
            LedgerBusy: the lock could not be had (55P03); ``detail`` says who holds it.
        """
        params = {
            "table": table,
            "name": name,
            "columns": list(columns),
            "keep": keep,
            "nulls": nulls,
            "where": where,
            "form": form,
            "children": children,
            "triggers": triggers,
            "reason": reason,
            "label": label,
            "lock_timeout": lock_timeout,
            "attempts": attempts,
            "strict": strict,
            "dry_run": dry_run,
        }
        return self._ensure(_calls.ENSURE_UNIQUE, params, conn)

    def undo_constraint(
        self,
        table: str,
        name: str,
        *,
        label: str | None = None,
        rows: Literal["restore", "leave"] = "restore",
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        attempts: int = 10,
        strict: bool = False,
        conn: Conn | None = None,
    ) -> types.EnsureResult:
        """Put back what the last change of a constraint, or the one with this label, found.

        Args:
            table: its name as SQL writes it.
            name: of the constraint or index.
            label: that of the change.
            rows: whether rows that were collapsed come back too, or are left away.
            lock_timeout, attempts, strict, conn: see `ensure_check`.

        Raises:
            ChangeNotFound: there is no such change to undo.
            ChangedSince: rows of the repair have changed since.
        """
        params = {
            "table": table,
            "name": name,
            "label": label,
            "rows": rows,
            "lock_timeout": lock_timeout,
            "attempts": attempts,
            "strict": strict,
        }
        return self._ensure(_calls.UNDO_CONSTRAINT, params, conn)

    def declare_constraint(
        self,
        table: str,
        name: str,
        kind: ConstraintKind,
        *,
        predicate: str | None = None,
        columns: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        conn: Conn | None = None,
    ) -> bool:
        """Keep the declaration of a constraint, for `apply_constraints`; True when it is new.

        Args:
            table: its name as SQL writes it; it need not exist yet.
            name: of the constraint.
            kind: ``check`` (with `predicate`), ``not_null`` or ``unique`` (with `columns`).
            predicate: of a CHECK.
            columns: of a unique key, or the one that is not null.
            options: the other parameters of `ensure_check`, `ensure_not_null` or `ensure_unique`.
            conn: a connection of the caller's, which is not committed.
        """
        params = {
            "table": table,
            "name": name,
            "kind": kind,
            "predicate": predicate,
            "columns": None if columns is None else list(columns),
            "options": _codec.dumps(options or {}),
        }
        return bool((self._query(_calls.DECLARE_CONSTRAINT, params, conn))[0][0])

    def undeclare_constraint(self, table: str, name: str, *, conn: Conn | None = None) -> bool:
        """Forget a declaration; the constraint itself stays. True when there was one."""
        params = {"table": table, "name": name}
        return bool((self._query(_calls.UNDECLARE_CONSTRAINT, params, conn))[0][0])

    def constraint_states(
        self, table: str | None = None, name: str | None = None, *, conn: Conn | None = None
    ) -> list[types.ConstraintState]:
        """What is declared beside what is live; takes no lock on the tables."""
        records = self._query(_calls.CONSTRAINT_STATES, {"table": table, "name": name}, conn)
        return [types.ConstraintState(*r) for r in records]

    def plan_constraints(
        self, table: str | None = None, name: str | None = None, *, conn: Conn | None = None
    ) -> list[types.PlannedConstraint]:
        """What `apply_constraints` would do first; changes nothing."""
        records = self._query(_calls.PLAN_CONSTRAINTS, {"table": table, "name": name}, conn)
        return [types.PlannedConstraint(*r) for r in records]

    def apply_constraints(
        self,
        table: str | None = None,
        name: str | None = None,
        *,
        only_validate: bool = False,
        conn: Conn | None = None,
    ) -> list[dict[str, Any]]:
        """Make the declared constraints true, each step in a transaction of its own.

        Args:
            table: only those of this table.
            name: only this one.
            only_validate: add and replace nothing, only validate what is there and not valid.
            conn: a connection of the caller's that is not inside a transaction.

        Returns:
            An object a constraint, with ``target``, ``name``, ``kind`` and the fields of
            `EnsureResult`; one that failed does not keep the others from being applied.
        """
        params = {"table": table, "name": name, "only_validate": only_validate, "results": None}

        def work(conn: Conn) -> list[dict[str, Any]]:
            borrowed = conn.autocommit
            if not borrowed:
                conn.set_autocommit(True)  # the procedure commits
            try:
                with conn.cursor(row_factory=tuple_row) as cursor:
                    cursor.execute(_calls.APPLY_CONSTRAINTS, params)
                    record = cursor.fetchone()
                    return list(record[0] or ()) if record else []
            finally:
                if not borrowed and not conn.closed:
                    conn.set_autocommit(False)

        if conn is None:
            return self._run(work)
        try:
            return work(conn)
        except psycopg.Error as exc:
            raise translate(exc) from exc

    # -- repairs --

    def repair_orphans(
        self,
        *,
        window: timedelta = _WINDOW,
        dry_run: bool = True,
        stuck_after: timedelta | None = None,
        tenant_id: str | None = None,
        reason: str | None = None,
        conn: Conn | None = None,
    ) -> list[types.OrphanRepair]:
        """Link outcomes without an inference to the inference that can only be theirs.

        A pair is linked when each is the other's only match by tenant, agent, model, cost and time;
        every other case is left and listed with the reason.

        Args:
            window: how far the two may be apart.
            dry_run: list, and change nothing.
            stuck_after: close inferences that have been under way for longer than this.
            tenant_id: only this tenant's.
            reason: kept with the repair.
            conn: a connection of the caller's, which is not committed.
        """
        params = {
            "window": window,
            "dry_run": dry_run,
            "stuck_after": stuck_after,
            "tenant_id": tenant_id,
            "reason": reason,
        }
        records = self._query(_calls.REPAIR_ORPHANS, params, conn)
        return [types.OrphanRepair(*r) for r in records]

    def repair_orphans_in(
        self,
        outcomes: str,
        inferences: str,
        *,
        columns: Mapping[str, Mapping[str, str | None]] | None = None,
        window: timedelta = _WINDOW,
        dry_run: bool = True,
        stuck_after: timedelta | None = None,
        reason: str | None = None,
        conn: Conn | None = None,
    ) -> list[types.OrphanRepair]:
        """`repair_orphans` for two tables of the caller's.

        Args:
            outcomes: the table of outcomes, as SQL writes its name.
            inferences: the table of inferences.
            columns: what the columns are called there: ``{"outcome": {"agent": "agent_name"}}``.
            window, dry_run, stuck_after, reason, conn: see `repair_orphans`.
        """
        params = {
            "outcomes": outcomes,
            "inferences": inferences,
            "columns": _codec.dumps(columns or {}),
            "window": window,
            "dry_run": dry_run,
            "stuck_after": stuck_after,
            "reason": reason,
        }
        records = self._query(_calls.REPAIR_ORPHANS_IN, params, conn)
        return [types.OrphanRepair(*r) for r in records]

    def undo_repair(
        self,
        id: int,
        *,
        force: bool = False,
        reason: str | None = None,
        dry_run: bool = False,
        conn: Conn | None = None,
    ) -> types.UndoneRepair:
        """Put back, byte for byte, the rows that a repair removed or changed.

        It is recorded as a repair itself, so undoing that does the repair again.

        Args:
            id: of the repair.
            force: overwrite rows that have changed since; only for an admin.
            reason: kept with the undoing.
            dry_run: say what would be done, and change nothing.
            conn: a connection of the caller's, which is not committed.

        Raises:
            RepairNotFound: there is no such repair.
            ChangedSince: rows have changed since; ``detail`` lists them.
            AlreadyUndone: it has been; also when this call was made again after a connection was
                lost and the first try had got through.
            ImagesDropped: the rows are past their retention.
        """
        params = {"id": id, "force": force, "reason": reason, "dry_run": dry_run}
        return types.UndoneRepair(*(self._query(_calls.UNDO_REPAIR, params, conn))[0])

    def show_repair(
        self, id: int, *, limit: int = 100, conn: Conn | None = None
    ) -> list[types.RepairRow]:
        """The rows that a repair removed, changed, added and kept, at most `limit`."""
        records = self._query(_calls.SHOW_REPAIR, {"id": id, "limit": limit}, conn)
        return [types.RepairRow(*r) for r in records]

    # -- upkeep --

    def reap(
        self, *, limit: int = 1000, tenant_id: str | None = None, conn: Conn | None = None
    ) -> list[types.Reaped]:
        """Close decisions whose lease has run out, at most `limit`; safe from many places."""
        params = {"limit": limit, "tenant_id": tenant_id}
        return [types.Reaped(*r) for r in self._query(_calls.REAP, params, conn)]

    def maintain(
        self, *, ahead: timedelta | None = None, conn: Conn | None = None
    ) -> list[types.MaintainAction]:
        """Make the partitions that the time ahead needs."""
        records = self._query(_calls.MAINTAIN, {"ahead": ahead}, conn)
        return [types.MaintainAction(*r) for r in records]

    def configure(
        self, settings: Mapping[str, Any] | None = None, *, conn: Conn | None = None
    ) -> dict[str, Any]:
        """Change settings by name, all or none, and return those in force. Intervals are text."""
        params = {"settings": _codec.dumps(settings or {})}
        records = self._query(_calls.CONFIGURE, params, conn)
        return dict(records[0][0])

    def set_policy(
        self, name: str, policy: Mapping[str, Any] | None = None, *, conn: Conn | None = None
    ) -> types.PolicyVersion:
        """Store a routing policy; other content becomes its next version.

        Args:
            name: letters, digits, dots, dashes and underscores.
            policy: rules by name; one that is left out has its default. See
                ``docs/how-to/route.md``.
        """
        params = {"name": name, "policy": _codec.dumps(policy or {})}
        return types.PolicyVersion(*(self._query(_calls.SET_POLICY, params, conn))[0])

    def set_retry_policy(
        self,
        policy: Mapping[str, Any],
        *,
        tenant_id: str = "",
        model_slug: str = "",
        conn: Conn | None = None,
    ) -> types.RetryPolicy:
        """Say how failures are met: of all tenants and models, or of one; see
        ``docs/how-to/failover.md``. An empty policy takes it back."""
        params = {
            "tenant_id": tenant_id,
            "model_slug": model_slug,
            "policy": _codec.dumps(policy),
        }
        return types.RetryPolicy(*(self._query(_calls.SET_RETRY_POLICY, params, conn))[0])

    def set_budget(
        self,
        tenant_id: str,
        name: str,
        limit_usd: Money,
        *,
        scope: Scope = "tenant",
        subject: str = "",
        period: Period = "day",
        shards: int = 1,
        conn: Conn | None = None,
    ) -> bool:
        """Make a budget or change it; True when it is new. See ``docs/how-to/budgets.md``.

        Args:
            tenant_id: whose decisions it limits.
            name: its name.
            limit_usd: US dollars in a period.
            scope: what it limits: all decisions of the ``tenant``, or those of an ``agent`` or
                budget ``key``.
            subject: which agent or key; ``*`` gives each of them a budget of its own.
            period: ``hour``, ``day`` or ``month`` (UTC), or ``total``.
            shards: counters it is kept in; more than 1 where many sessions write to it at once.
            conn: a connection of the caller's, which is not committed.
        """
        params = {
            "tenant_id": tenant_id,
            "name": name,
            "limit_usd": limit_usd,
            "scope": scope,
            "subject": subject,
            "period": period,
            "shards": shards,
        }
        return bool((self._query(_calls.SET_BUDGET, params, conn))[0][0])

    def drop_budget(self, tenant_id: str, name: str, *, conn: Conn | None = None) -> None:
        """Drop a budget and all that was counted in it.

        Raises:
            BudgetNotFound: there is no such budget.
        """
        self._query(_calls.DROP_BUDGET, {"tenant_id": tenant_id, "name": name}, conn)

    def replay_spool(self, spool: Spool | str | os.PathLike[str] | None = None) -> ReplayReport:
        """Bring the spool's records in, each once; see `routeledger.spool`.

        Args:
            spool: the spool or its path; the client's own, or the default one, when absent.

        Raises:
            LedgerUnavailable: the ledger is gone; what is left stays for the next replay.
        """
        if not isinstance(spool, Spool):
            spool = (self._spool or Spool()) if spool is None else Spool(Path(spool))
        report = Replay(self, spool).run()
        self._warned = False
        return report

    # -- reading --

    def version(self, *, conn: Conn | None = None) -> str:
        """The version of the schema."""
        return str((self._query(_calls.VERSION, {}, conn))[0][0])

    def decisions(
        self,
        *,
        tenant_id: str | None = None,
        id: Id | None = None,
        limit: int = 100,
        conn: Conn | None = None,
    ) -> list[types.DecisionRow]:
        """Lines of the view ``decisions``, newest first."""
        params = {"tenant_id": tenant_id, "id": id, "limit": limit}
        return [types.DecisionRow(*r) for r in self._query(_calls.DECISIONS, params, conn)]

    def in_flight(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.InFlightRow]:
        """Lines of the view ``in_flight``, soonest to expire first."""
        params = {"tenant_id": tenant_id, "limit": limit}
        return [types.InFlightRow(*r) for r in self._query(_calls.IN_FLIGHT, params, conn)]

    def orphans(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.OrphanRow]:
        """Lines of the view ``orphans``: always none."""
        params = {"tenant_id": tenant_id, "limit": limit}
        return [types.OrphanRow(*r) for r in self._query(_calls.ORPHANS, params, conn)]

    def reconciliation(
        self,
        *,
        tenant_id: str | None = None,
        since: datetime | None = None,
        limit: int = 10_000,
        conn: Conn | None = None,
    ) -> list[types.ReconciliationRow]:
        """Lines of the view ``reconciliation``, an hour of a tenant each, oldest first."""
        params = {"tenant_id": tenant_id, "since": since, "limit": limit}
        records = self._query(_calls.RECONCILIATION, params, conn)
        return [types.ReconciliationRow(*r) for r in records]

    def verdicts(
        self,
        *,
        tenant_id: str | None = None,
        id: Id | None = None,
        judge: str | None = None,
        judge_version: str | None = None,
        limit: int = 100,
        conn: Conn | None = None,
    ) -> list[types.VerdictRow]:
        """Lines of the view ``verdicts``, those on the newest decisions first."""
        params = {
            "tenant_id": tenant_id,
            "id": id,
            "judge": judge,
            "judge_version": judge_version,
            "limit": limit,
        }
        return [types.VerdictRow(*r) for r in self._query(_calls.VERDICTS, params, conn)]

    def judge_findings(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.JudgeFinding]:
        """Lines of the view ``judge_findings``: none is good."""
        params = {"tenant_id": tenant_id, "limit": limit}
        records = self._query(_calls.JUDGE_FINDINGS, params, conn)
        return [types.JudgeFinding(*r) for r in records]

    def judge_agreement(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.JudgeAgreement]:
        """Lines of the view ``judge_agreement``: each two judge versions with decisions in common."""
        params = {"tenant_id": tenant_id, "limit": limit}
        records = self._query(_calls.JUDGE_AGREEMENT, params, conn)
        return [types.JudgeAgreement(*r) for r in records]

    def judge_drift(
        self,
        *,
        tenant_id: str | None = None,
        since: date | None = None,
        limit: int = 10_000,
        conn: Conn | None = None,
    ) -> list[types.JudgeDrift]:
        """Lines of the view ``judge_drift``, a day of a judge version each, oldest first."""
        params = {"tenant_id": tenant_id, "since": since, "limit": limit}
        records = self._query(_calls.JUDGE_DRIFT, params, conn)
        return [types.JudgeDrift(*r) for r in records]

    def judge_queue(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.JudgeQueue]:
        """Lines of the view ``judge_queue``: what waits, for each judge version."""
        params = {"tenant_id": tenant_id, "limit": limit}
        records = self._query(_calls.JUDGE_QUEUE, params, conn)
        return [types.JudgeQueue(*r) for r in records]

    def verdict_withdrawals(
        self, *, tenant_id: str | None = None, limit: int = 1000, conn: Conn | None = None
    ) -> list[types.VerdictWithdrawal]:
        """Lines of the view ``verdict_withdrawals``, newest first."""
        params = {"tenant_id": tenant_id, "limit": limit}
        records = self._query(_calls.VERDICT_WITHDRAWALS, params, conn)
        return [types.VerdictWithdrawal(*r) for r in records]

    # -- the way there --

    def _with_ids(self, rows: Iterable[Row], *keys: str) -> list[Row]:
        """The rows with ids in place before the first try, so that a retry repeats them."""
        out: list[Row] = []
        for row in rows:
            missing = [k for k in keys if row.get(k) is None]
            out.append({**row, **{k: self._ids() for k in missing}} if missing else row)
        return out

    def _ensure(
        self, query: LiteralString, params: Mapping[str, Any], conn: Conn | None
    ) -> types.EnsureResult:
        """The same call in new transactions until nothing is left to do; one step on `conn`."""
        results: list[types.EnsureResult] = []
        while True:
            results.append(types.EnsureResult(*(self._query(query, params, conn))[0]))
            last = results[-1]
            once = conn is not None or params.get("dry_run", False)
            if once or last.next is None or len(results) == _MOST_STEPS:
                steps = tuple(result.outcome for result in results)
                return replace(last, found=results[0].found, steps=steps)

    def _submit(self, routine: Routine[T], row: Row, conn: Conn | None = None) -> T:
        if conn is None and self._coalescer is not None and routine.name in _COALESCED:
            return self._coalescer.write(routine, row)
        return self._one(routine, row, conn)

    def _one_uncoalesced(self, routine: Routine[T], row: Row) -> T:
        return self._one(routine, row, None)

    def _one(self, routine: Routine[T], row: Row, conn: Conn | None) -> T:
        params = _codec.single_params(row, routine.defaults, routine.arrays)
        return routine.read_single((self._query(routine.single, params, conn))[0])

    def _many(
        self, routine: Routine[T], rows: Sequence[Row], conn: Conn | None = None
    ) -> list[RowResult[T]]:
        payload, refused = _codec.dumps_rows(rows)
        records = self._query(routine.many, {"rows": payload}, conn)
        answers = iter(records)
        results: list[RowResult[T]] = []
        for n in range(len(rows)):
            if (error := refused.get(n)) is not None:
                results.append(
                    RowResult(
                        n + 1, "refused", error.code, error.message, error.detail, error.hint, None
                    )
                )
            else:
                record = next(answers)
                results.append(routine.read_row((n + 1, *record[1:])))
        return results

    def _query(
        self, query: LiteralString, params: Mapping[str, Any], conn: Conn | None
    ) -> list[Record]:
        def work(conn: Conn) -> list[Record]:
            with conn.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(query, params)
                return cursor.fetchall()

        if conn is None:
            return self._run(work)
        try:
            return work(conn)
        except psycopg.Error as exc:
            raise translate(exc) from exc

    def _run(self, work: Callable[[Conn], Later[T]]) -> T:
        """Run committed work, again after what is worth it, until `timeout` seconds are over."""
        if self._closed and self._coalescer is None:
            raise LedgerClosed("The client is closed.")
        now = time.monotonic()
        if now < self._down_until:
            raise LedgerUnavailable("The ledger could not be reached a moment ago.")
        deadline = now + self._timeout
        delay = _FIRST_DELAY
        while True:
            try:
                left = max(0.01, deadline - time.monotonic())
                with self._pool.connection(timeout=left) as conn:
                    return work(conn)
            except psycopg.Error as exc:
                error = translate(exc)
                wait = delay * (0.5 + random.random())  # noqa: S311
                if not error.retryable or time.monotonic() + wait > deadline:
                    if self._spool is not None and isinstance(error, LedgerUnavailable):
                        self._down_until = time.monotonic() + _DOWN_FOR
                    raise error from exc
            sleep(wait)
            delay = min(delay * 2, _LONGEST_DELAY)

    def _shake_hands(self) -> None:
        before = time.time()
        try:
            record = (self._query(_calls.VERSION, {}, None))[0]
        except LedgerUnavailable as exc:
            if self._spool is None:
                raise
            self._warn_spooling(exc)
            return
        except LedgerError as exc:
            raise _handshake.explain(exc, self._dsn) from exc
        _handshake.check(str(record[0]), self._dsn)
        middle = (before + time.time()) / 2
        skew = round((record[1].timestamp() - middle) * 1000)
        self._ids.skew_ms = skew if abs(skew) > 1000 else 0

    def _server_now(self) -> datetime:
        return datetime.now(timezone.utc) + timedelta(milliseconds=self._ids.skew_ms)

    def _warn_spooling(self, exc: LedgerError) -> None:
        if not self._warned:
            self._warned = True
            path = self._spool.path if self._spool is not None else None
            logger.warning("the ledger cannot be reached; writing to the spool %s: %s", path, exc)


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if v is not None}


def _check(conn: Connection[Any]) -> None:
    """Refuse a pooled connection that the server has closed, without a round trip."""
    _handshake.check_socket(conn)
