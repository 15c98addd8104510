"""Requests as LiteLLM makes them, told to the ledger or, while it is away, to the spool.

Nothing in here imports LiteLLM. A request is a decision; its attempts are opened one by one, by
LiteLLM's own choice, so a failed attempt leaves the decision on hold until the next one, until the
end of the request is seen, or until some time has gone by.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar
from uuid import UUID

from . import _routines
from ._async import AsyncLedger
from ._codec import Row
from ._ids import IdMaker
from ._routines import Routine
from .errors import (
    BudgetExhausted,
    DecisionClosed,
    IdOutsideWindow,
    IdReused,
    LeaseLost,
    LedgerBusy,
    LedgerClosed,
    LedgerError,
    LedgerUnavailable,
    TooManyAttempts,
)
from .spool import Spool

T = TypeVar("T")
Facts = dict[str, Any]

logger = logging.getLogger("routeledger")

KEPT = 20_000
"""Requests and calls that are remembered; the oldest are forgotten first."""

_OFFLINE = (LedgerUnavailable, LedgerBusy, LedgerClosed)
_OTHER_ID = (IdReused, IdOutsideWindow)
_OVER = (DecisionClosed, LeaseLost, TooManyAttempts)
_LATE_FAILURE = 0.5
"""Seconds that a new attempt waits for the failure event of the one before: those of streams are
fired beside the request."""
_STREAM_GRACE = 2.0
"""Seconds after the failure of a stream in which LiteLLM may still fall back to another model."""
_RECONNECT = 30.0


@dataclass(slots=True)
class Call:
    """What is known of one call of a deployment before it is made."""

    key: str
    trace: str
    model_slug: str
    provider: str | None
    stream: bool
    metadata: Mapping[str, Any]
    caller: int
    continues: bool | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Who asks for a model."""

    trace: str
    caller: int
    continues: bool | None


@dataclass(frozen=True, slots=True)
class Picked:
    """What the ledger picked, and the seconds to wait; no model when none is good enough."""

    model_slug: str | None
    delay: float


@dataclass(slots=True)
class Attempt:
    """An attempt as it stands in the ledger."""

    id: str
    model_slug: str
    stream: bool
    ended: asyncio.Event
    provider: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


@dataclass(slots=True, eq=False)
class Request:
    """One request of a caller's: one decision.

    `story` holds the attempts of a request that no budget covered, to be told at its end.
    """

    tenant_id: str
    id: str
    trace: str
    caller: int
    attempts: list[Attempt] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    candidates: list[Any] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    reserved: Attempt | None = None
    story: list[Facts] | None = None
    decision: Facts = field(default_factory=dict)
    over_budget: LedgerError | None = None
    choosing: bool = False
    overtaken: bool = False
    closed: bool = False
    left: bool = False
    refused: bool = False
    spooling: bool = False
    error_type: str = "unknown"
    timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> Attempt | None:
        """The attempt under way."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and not last.ended.is_set() else None


class WriterThread:
    """A daemon thread with an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="routeledger-litellm", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def post(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Books:
    """Writes what happens to the ledger or, while that is away, to the spool.

    All of it runs in one event loop. The writes of one request are made one after the other.
    """

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, AsyncLedger]],
        spool: Spool,
        *,
        lease: timedelta | None,
        settle_after: float,
        enforce_budgets: bool,
    ) -> None:
        self._enforce_budgets = enforce_budgets
        self._connect = connect
        self._spool = spool
        self._lease = lease
        self._settle_after = settle_after
        self._ledger: AsyncLedger | None = None
        self._connecting = asyncio.Lock()
        self._again_at = 0.0
        self._ids = IdMaker()
        self._traces: OrderedDict[str, list[Request]] = OrderedDict()
        self._calls: OrderedDict[str, tuple[Request, Attempt]] = OrderedDict()
        self._said: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lost = 0

    # -- what happens --

    async def begin(self, call: Call, decision: Facts, candidates: list[Any]) -> Request:
        """An attempt is about to be made: it, and its decision when it is the first, are written."""
        if (known := self._calls.get(call.key)) is not None:
            request, attempt = known
            if not attempt.ended.is_set():
                return request  # a wrapper of LiteLLM's around the same call
            found: Request | None = None if request.closed else request
        else:
            found = await self._request_of(call.trace, call.caller, call.continues)
        if found is None:
            found = self._new_request(call.trace, call.caller, call.metadata, decision["tenant_id"])
            found.candidates = candidates
        async with found.lock:
            return await self._open(found, call, decision)

    async def fail(self, key: str, failure: Facts) -> bool:
        """An attempt failed. False when it is not known."""
        known = self._calls.get(key)
        if known is None:
            return False
        request, attempt = known
        if attempt.ended.is_set():
            return True
        attempt.ended.set()
        request.error_type = failure["error_type"]
        async with request.lock:
            if request.story is not None:
                request.story.append(_told(attempt, "failed", failure))
                self._settle_in(request, self._settle_after)
                return True
            final = request.left and not attempt.stream
            row = {
                **_key(request),
                "attempt_id": attempt.id,
                "next": "give_up" if final else "hold",
                **failure,
            }
            await self._write(request, _routines.FAIL_ATTEMPT, row)
            if final:
                self._close(request)
            elif not request.closed:
                wait = _STREAM_GRACE if request.left else self._settle_after
                wait += failure.get("retry_after_ms", 0) / 1000
                self._settle_in(request, wait)
        return True

    async def succeed(self, key: str, facts: Facts) -> bool:
        """An attempt succeeded, and its decision with it. False when it is not known."""
        known = self._calls.get(key)
        if known is None:
            return False
        request, attempt = known
        if attempt.ended.is_set():
            return True
        attempt.ended.set()
        async with request.lock:
            self._close(request)
            if request.story is not None:
                request.story.append(_told(attempt, "succeeded", facts))
                await self._tell(request)
                return True
            row = {
                **_key(request),
                "attempt_id": attempt.id,
                "outcome_status": "succeeded",
                **facts,
            }
            await self._write(request, _routines.COMPLETE_DECISION, row)
        return True

    async def tell(self, call: Call, decision: Facts, attempt: Facts) -> None:
        """A call ended whose beginning was not seen: its whole story is written at once."""
        request = self._new_request(call.trace, call.caller, call.metadata, decision["tenant_id"])
        told = Attempt(_call_uuid(self._ids(), call.key), call.model_slug, call.stream, _done())
        told.provider = call.provider
        request.attempts.append(told)
        request.decision = {**decision, "candidates": [_candidate(call)]}
        request.story = [_told(told, attempt.pop("status"), attempt)]
        self._remember_call(call.key, request, told)
        self._close(request)
        await self._tell(request)

    async def pick(
        self, ask: Ask, said: Mapping[str, Any], row: Facts, slugs: list[str]
    ) -> Picked | None:
        """The model to call among `slugs`, which are a group's; None when the ledger is away.

        The first pick of a request writes its decision and opens its first attempt; those after it
        follow the order of the first.
        """
        request = await self._request_of(ask.trace, ask.caller, ask.continues)
        if request is not None and request.order:
            tried = {attempt.model_slug for attempt in request.attempts}
            order = [slug for slug in request.order if slug in slugs]
            fresh = [slug for slug in order if slug not in tried]
            return Picked(next(iter(fresh or order), None), 0.0)
        if request is not None:
            return None
        request = self._new_request(ask.trace, ask.caller, said, row["tenant_id"])
        request.choosing = True
        try:
            ledger = await self._get_ledger()
            routed = await ledger.route(**{**row, **_key(request), "candidates": slugs})
        except LedgerError as exc:
            self._say(f"route {exc.name}", "the ledger could not route: %s", exc)
            self._traces[ask.trace].remove(request)
            return None
        request.choosing = False
        if routed.model_slug is None:
            self._close(request)
            return Picked(None, 0.0)
        if request.overtaken:
            self._close(request)
            row = {
                **_key(request),
                "outcome_status": "failed",
                "error_type": "not_dispatched",
                "error_message": "LiteLLM did not wait for the ledger's choice",
                "decision_rule_override": "not_dispatched",
            }
            await self._write(request, _routines.COMPLETE_DECISION, row)
            return None
        request.order = [routed.model_slug, *(routed.fallbacks or ())]
        request.reserved = Attempt(
            str(routed.attempt_id), routed.model_slug, False, asyncio.Event()
        )
        return Picked(routed.model_slug, (routed.delay_ms or 0) / 1000)

    async def leave(self, request: Request, caller: int) -> None:
        """The task that made the last attempt has ended: there will be no other."""
        if request.caller != caller:
            return
        request.left = True
        if request.open is None:
            await self._settle(request)

    async def flush(self) -> None:
        """Close every decision whose last attempt failed and that waits for another one."""
        for requests in list(self._traces.values()):
            for request in list(requests):
                if request.open is None:
                    await self._settle(request)

    async def close(self) -> None:
        """Write what is waiting, and close the connections."""
        await self.flush()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._ledger is not None:
            await self._ledger.close()

    # -- requests and calls --

    async def _request_of(self, trace: str, caller: int, continues: bool | None) -> Request | None:
        """The request that a call is a retry or a fallback of, or was routed for, if there is one."""
        requests = [r for r in self._traces.get(trace, ()) if not r.closed]
        for request in requests:
            if request.choosing and request.caller == caller:
                request.overtaken = True
        requests = [r for r in requests if not r.choosing]
        mine = [r for r in requests if r.caller == caller]
        for request in mine:
            if request.reserved is not None:
                return request
        if continues is False:
            # another request under the same trace: those of this task that wait are over
            for request in mine:
                if request.open is None:
                    await self._settle(request)
            return None
        for request in mine or requests:
            if (attempt := request.open) is None:
                return request
            if continues:
                await self._await_failure(request, attempt)
                return None if request.closed else request
        return None

    async def _await_failure(self, request: Request, attempt: Attempt) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(attempt.ended.wait(), _LATE_FAILURE)
        if not attempt.ended.is_set():
            attempt.ended.set()
            row = {
                **_key(request),
                "attempt_id": attempt.id,
                "error_type": "superseded",
                "error_message": "LiteLLM went on to another attempt without a failure event",
                "next": "hold",
            }
            async with request.lock:
                await self._write(request, _routines.FAIL_ATTEMPT, row)

    def _new_request(
        self, trace: str, caller: int, said: Mapping[str, Any], tenant_id: str
    ) -> Request:
        before = self._traces.get(trace, [])
        wanted = v7(said.get("decision_id")) or v7(trace)
        taken = any(request.id == wanted for request in before)
        request = Request(
            tenant_id, self._ids() if wanted is None or taken else wanted, trace, caller
        )
        self._traces[trace] = [*before[-9:], request]
        self._traces.move_to_end(trace)
        while len(self._traces) > KEPT:
            self._traces.popitem(last=False)
        return request

    def _remember_call(self, key: str, request: Request, attempt: Attempt) -> None:
        self._calls[key] = (request, attempt)
        self._calls.move_to_end(key)
        while len(self._calls) > KEPT:
            self._calls.popitem(last=False)

    async def _open(self, request: Request, call: Call, decision: Facts) -> Request:
        """Write the attempt; returns the request that it belongs to."""
        if request.timer is not None:
            request.timer.cancel()
        request.left = False
        request.caller = call.caller
        reserved, request.reserved = request.reserved, None
        if reserved is not None and reserved.model_slug == call.model_slug:
            reserved.stream = call.stream
            request.attempts.append(reserved)
            self._remember_call(call.key, request, reserved)
            return request
        if reserved is not None:
            row = {
                **_key(request),
                "attempt_id": reserved.id,
                "error_type": "not_dispatched",
                "error_message": f"LiteLLM called {call.model_slug}",
                "next": "hold",
            }
            await self._write(request, _routines.FAIL_ATTEMPT, row)
        attempt = Attempt(
            _call_uuid(self._ids(), call.key), call.model_slug, call.stream, asyncio.Event()
        )
        attempt.provider = call.provider
        first = reserved is None and not request.attempts
        request.attempts.append(attempt)
        self._remember_call(call.key, request, attempt)
        if first:
            await self._decide(request, call, attempt, decision)
        elif request.story is None:
            row = {
                **_key(request),
                "model_slug": call.model_slug,
                "attempt_id": attempt.id,
                "provider": call.provider,
            }
            refusal = await self._write(request, _routines.START_ATTEMPT, row)
            if isinstance(refusal, _OVER):  # the rest is a decision of its own
                if isinstance(refusal, TooManyAttempts):
                    await self._end_failed(request)
                self._close(request)
                other = self._new_request(call.trace, call.caller, {}, request.tenant_id)
                other.candidates = request.candidates
                other.attempts.append(attempt)
                self._remember_call(call.key, other, attempt)
                await self._decide(other, call, attempt, _continuing(decision, request))
                return other
        return request

    async def _decide(
        self, request: Request, call: Call, attempt: Attempt, decision: Facts
    ) -> None:
        """Write the decision and its first attempt."""
        request.decision = {
            **decision,
            "chosen_model_slug": call.model_slug,
            "candidates": _with_chosen(request.candidates, call),
            "event_at": datetime.now(timezone.utc),
        }
        row = {
            **request.decision,
            **_key(request),
            "attempt_id": attempt.id,
            "lease": self._lease,
        }
        refusal = await self._write(request, _routines.INSERT_DECISION, row)
        if isinstance(refusal, _OTHER_ID):  # the caller's id is not to be had: one of our own
            request.id = row["id"] = self._ids()
            refusal = await self._write(request, _routines.INSERT_DECISION, row)
        if isinstance(refusal, BudgetExhausted):
            if self._enforce_budgets:
                request.over_budget = refusal
                attempt.ended.set()
                self._close(request)
                del row["chosen_model_slug"], row["attempt_id"]
                row["decision_rule"] = "no_candidate_clears_floor"
                row["candidates"] = [
                    {**c, "drop_reason": "exceeds_budget_cap"} for c in row["candidates"]
                ]
                await self._write(request, _routines.INSERT_DECISION, row)
            else:
                request.story = []
        elif refusal is not None:
            request.refused = True

    def _close(self, request: Request) -> None:
        request.closed = True
        if request.timer is not None:
            request.timer.cancel()

    def _settle_in(self, request: Request, seconds: float) -> None:
        if request.timer is not None:
            request.timer.cancel()
        loop = asyncio.get_running_loop()
        request.timer = loop.call_later(seconds, self._start, request)

    def _start(self, request: Request) -> None:
        task = asyncio.ensure_future(self._settle(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, request: Request) -> None:
        """The last attempt failed and no other followed: the decision failed."""
        async with request.lock:
            if request.closed or request.open is not None or not request.attempts:
                return
            self._close(request)
            if request.story is not None:
                await self._tell(request)
                return
            await self._end_failed(request)

    async def _end_failed(self, request: Request) -> None:
        """Close a decision on hold; its last attempt, which failed, is the one linked."""
        row = {**_key(request), "outcome_status": "failed", "error_type": request.error_type}
        await self._write(request, _routines.COMPLETE_DECISION, row)

    # -- writing --

    async def _tell(self, request: Request) -> None:
        known = _routines.RECORD_OUTCOME.defaults
        row = {k: v for k, v in request.decision.items() if k in known}
        row |= {**_key(request), "attempts": request.story}
        await self._write(request, _routines.RECORD_OUTCOME, row)

    async def _write(self, request: Request, routine: Routine[Any], row: Row) -> LedgerError | None:
        """Write a row to the ledger or to the spool; never raises, and returns the refusal."""
        if request.refused:
            self.lost += 1
            return None
        row = compact(row)
        if not request.spooling:
            try:
                await (await self._get_ledger())._submit(routine, row)
            except _OFFLINE as exc:
                self._say("offline", "writing to the spool %s: %s", self._spool.path, exc)
                request.spooling = True
            except LedgerError as exc:
                if not isinstance(exc, (*_OTHER_ID, *_OVER, BudgetExhausted)):
                    self.lost += 1
                    self._say(
                        f"{routine.name} {exc.name}",
                        "the ledger refused a row of %s: %s",
                        routine.name,
                        exc,
                    )
                return exc
            else:
                return None
        try:
            record = {"routine": routine.name, "row": row}
            await asyncio.to_thread(self._spool.append, [record])
        except (LedgerError, OSError, RuntimeError) as exc:
            self.lost += 1
            self._say("spool", "an event could be kept neither there nor in the spool: %s", exc)
        return None

    async def _get_ledger(self) -> AsyncLedger:
        async with self._connecting:
            if self._ledger is None:
                if time.monotonic() < self._again_at:
                    raise LedgerUnavailable("The ledger could not be used a moment ago.")
                try:
                    self._ledger = await self._connect()
                except LedgerError as exc:
                    self._again_at = time.monotonic() + _RECONNECT
                    raise LedgerUnavailable(str(exc)) from exc
            return self._ledger

    def _say(self, what: str, message: str, *args: Any) -> None:
        """Warn once of each kind of trouble."""
        if what not in self._said:
            self._said.add(what)
            logger.warning(message, *args)


def _done() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def _key(request: Request) -> Facts:
    return {"tenant_id": request.tenant_id, "id": request.id}


def compact(row: Mapping[str, Any]) -> Facts:
    """The fields that have a value."""
    return {k: v for k, v in row.items() if v is not None}


def v7(value: Any) -> str | None:
    """A UUID of version 7 in its canonical form, if it is one."""
    try:
        found = value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        return None
    return str(found) if found.version == 7 else None


def call_suffix(call_id: str) -> str:
    """What the ids of the attempts of a call of LiteLLM's end with: eight hexadecimal digits."""
    return hashlib.blake2b(call_id.encode(), digest_size=4).hexdigest()


def _call_uuid(fresh: str, call_id: str) -> str:
    return fresh[:-8] + call_suffix(call_id)


def _told(attempt: Attempt, status: str, facts: Facts) -> Facts:
    return compact(
        {
            "started_at": attempt.started_at,
            "completed_at": datetime.now(timezone.utc),
            **facts,
            "id": attempt.id,
            "model_slug": attempt.model_slug,
            "provider": attempt.provider,
            "status": status,
        }
    )


def _continuing(decision: Facts, request: Request) -> Facts:
    said = decision.get("metadata", {}).get("litellm", {})
    return {**decision, "metadata": {"litellm": {**said, "continues": request.id}}}


def _candidate(call: Call) -> Facts:
    return compact({"model_slug": call.model_slug, "provider": call.provider})


def _with_chosen(candidates: list[Any], call: Call) -> list[Any]:
    """The candidates, the chosen one first."""
    chosen = _candidate(call)
    return [chosen, *(compact(c) for c in candidates if compact(c) != chosen)]
