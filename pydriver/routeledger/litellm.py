# ruff: noqa: ARG002 - hooks have the parameters that LiteLLM gives them
"""LiteLLM's decisions, attempts and outcomes, in the ledger. Needs the extra ``[litellm]``.

    import litellm
    from routeledger.litellm import RouteLedgerLogger

    litellm.callbacks = [RouteLedgerLogger("postgresql:///app", tenant="acme")]

One request is one decision; each call of a deployment is an attempt, written before it is made.
`RouteLedgerLogger` records what the SDK, the Router and the proxy do; `RouteLedgerStrategy` lets
the ledger pick the Router's deployment as well.

=======================  ==========================================================================
decision                 ``litellm_trace_id``, which is the same over retries and fallbacks. One
                         that is a UUID of version 7 is the decision's id; any other is kept in
                         ``metadata.litellm.trace_id``, beside an id of the ledger's
attempt                  ``litellm_call_id``: see `call_suffix`; the provider's id of a response is
                         an attribute only
tenant                   see `RouteLedgerLogger`
cost                     LiteLLM's own, digit by digit
=======================  ==========================================================================

Nothing here fails a request: what the database cannot take goes to the spool, with one warning.
A cancelled request and a stream that is left fire no event: the reaper ends them as ``abandoned``.

Threads: the database is written from one thread with an event loop of its own, so that one logger
serves any number of event loops and threads. A process made by ``fork`` starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import litellm
from litellm.exceptions import BudgetExceededError
from litellm.integrations.custom_logger import CustomLogger

from ._async import AsyncLedger
from ._litellm_books import (
    KEPT,
    Ask,
    Books,
    Call,
    Facts,
    Picked,
    Request,
    WriterThread,
    call_suffix,
    compact,
)
from ._litellm_words import (
    billed,
    call_key,
    caller,
    continues,
    estimate,
    failure,
    metadata_of,
    read_call,
    slug_of_deployment,
    times,
    usage,
    word,
)
from .errors import LedgerClosed, LedgerError
from .spool import DEFAULT_MAX_BYTES, Spool

__all__ = ["RouteLedgerLogger", "RouteLedgerStrategy", "call_suffix"]

T = TypeVar("T")
Tenant = str | Callable[[Mapping[str, Any]], str]

logger = logging.getLogger("routeledger")

_TURNS = 10
"""Turns of the event loop in which tasks of LiteLLM's that were just started queue their events."""
_LISTS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "_async_success_callback",
    "_async_failure_callback",
)


class RouteLedgerLogger(CustomLogger):  # type: ignore[misc]
    """A callback of LiteLLM's that keeps the books: ``litellm.callbacks = [RouteLedgerLogger(…)]``.

    The proxy takes an instance from a module beside its configuration, or `proxy_logger` from this
    module, which reads its settings from the environment.

    Args:
        dsn: a libpq connection string; libpq's environment (``PGHOST`` …) when absent.
        tenant: whose decisions they are, or a function of the request's metadata that says so.
            A team of the proxy's (``user_api_key_team_id``) is a tenant of its own; without the
            proxy ``metadata={"tenant_id": …}`` names one; every other request is this tenant's.
        wait: hold an attempt back until it is durable. False hands the writes over and goes on, so
            that a crash within milliseconds may lose them, and no budget holds a request back.
        lease: how long the reaper leaves a request alone; the ledger's setting when absent. An
            answer that comes later is written all the same, as late.
        settle_after: seconds after a failed attempt without another one in which the decision is
            closed as failed, where the end of the request cannot be seen. Longer than the Router's
            longest pause between retries.
        enforce_budgets: what happens to an asynchronous request that a budget of the ledger's does
            not cover: it fails with ``litellm.BudgetExceededError``. False lets it pass and tells
            its story afterwards, so that the budget shows what was spent.
        timeout: seconds that the database has before a write goes to the spool.
        spool_path: the spool's file; in the user's folder for state when absent.
        spool_max_bytes: the most that the spool holds.
        max_size: most connections.

    The caller's ``metadata`` may hold ``decision_id`` (a UUID of version 7), ``agent_id``,
    ``task_type`` and, without the proxy, ``traffic_class``.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        tenant: Tenant = "default",
        wait: bool = True,
        lease: timedelta | None = None,
        settle_after: float = 90.0,
        enforce_budgets: bool = True,
        timeout: float = 2.0,
        spool_path: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = DEFAULT_MAX_BYTES,
        max_size: int = 4,
    ) -> None:
        super().__init__()
        self._dsn = dsn
        self._tenant = tenant
        self._wait = wait
        self._lease = lease
        self._settle_after = settle_after
        self._enforce_budgets = enforce_budgets
        self._timeout = timeout
        self._spool_path = spool_path
        self._spool_max_bytes = spool_max_bytes
        self._max_size = max_size
        self._starting = threading.Lock()
        self._thread: WriterThread | None = None
        self._books: Books | None = None
        self._posted: set[Future[Any]] = set()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._groups: OrderedDict[str, list[Any]] = OrderedDict()
        self._callers: weakref.WeakKeyDictionary[asyncio.Task[Any], list[Request]] = (
            weakref.WeakKeyDictionary()
        )
        self._exiting = False
        self._closed = False
        atexit.register(_at_exit, weakref.ref(self))

    # -- what an operator asks --

    @property
    def lost(self) -> int:
        """Events that neither the ledger took nor the spool."""
        return 0 if self._books is None else self._books.lost

    async def flush(self) -> None:
        """Wait for LiteLLM's events and for the writes, and close the decisions that failed.

        For the end of the work: a request under way that waits for its next retry is closed as
        failed too, and its retry becomes a decision of its own.
        """
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        with contextlib.suppress(ImportError, AttributeError):
            from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

            await GLOBAL_LOGGING_WORKER.flush()
        if self._books is not None and self._here:
            await self._settled(*self._posted)
            await self._settled(self._post(self._books.flush()))

    async def close(self) -> None:
        """Flush, take the logger out of LiteLLM, and close the connections for good."""
        await self.flush()
        for name in _LISTS:
            registered = getattr(litellm, name, None)
            while isinstance(registered, list) and self in registered:
                registered.remove(self)
        await self.flush()
        self._closed = True
        await asyncio.to_thread(self._stop, 30.0)

    def decision_id(self, trace_id: str) -> UUID | None:
        """The decision of a trace of LiteLLM's; None when it is not remembered."""
        requests = [] if self._books is None else self._books._traces.get(trace_id, [])
        return UUID(requests[-1].id) if requests else None

    # -- LiteLLM's hooks: an attempt, on asynchronous paths --

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Remember between which models the Router chooses."""
        with _harmless():
            trace = (request_kwargs or {}).get("litellm_trace_id")
            if trace:
                self._remember_group(str(trace), healthy_deployments)
        return healthy_deployments

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Write the attempt, before the provider is called."""
        over_budget: LedgerError | None = None
        with _harmless():
            call = read_call(kwargs)
            if call is not None:
                over_budget = await self._begin(call, asyncio.current_task())
        if over_budget is not None:
            limit = over_budget.detail
            raise BudgetExceededError(
                current_cost=float(limit.get("spent_usd") or limit.get("limit_usd") or 0),
                max_budget=float(limit.get("limit_usd") or 0),
                message=str(over_budget),
            )
        return None

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,
        fallback_depth: int | None = None,
    ) -> None:
        """Close the attempt as failed."""
        with _harmless():
            if (key := call_key(request_data)) is not None:
                await self._send(self._opened().fail(key, failure(exception)))

    # -- LiteLLM's events --

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Complete the decision."""
        with _harmless():
            await self._send(self._on_success(kwargs, response_obj))

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Close the attempt as failed, unless its hook has."""
        with _harmless():
            await self._send(self._on_failure(kwargs))

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        """Write the attempt on synchronous paths; on asynchronous ones it is written already."""
        with _harmless():
            key = call_key(kwargs)
            if key is None or key in self._seen:
                return
            call = read_call(kwargs)
            if call is None:
                return
            future = self._post_begin(call)
            if self._wait and not _in_event_loop():
                future.result(self._patience)

    def log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """`async_log_success_event` for synchronous calls."""
        with _harmless():
            self._send_now(self._on_success(kwargs, response_obj))

    def log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """`async_log_failure_event` for synchronous calls."""
        with _harmless():
            self._send_now(self._on_failure(kwargs))

    # -- from the caller's thread to the writing one --

    @property
    def _patience(self) -> float:
        """Seconds after which a request no longer waits; its writes go on."""
        return self._timeout + 1.0

    async def _begin(self, call: Call, task: asyncio.Task[Any] | None) -> LedgerError | None:
        future = self._post_begin(call)
        if task is not None:
            future.add_done_callback(functools.partial(self._watch, task, call.caller))
        if self._wait:
            await self._settled(future)
        return future.result().over_budget if future.done() else None

    def _post_begin(self, call: Call) -> Future[Request]:
        self._seen[call.key] = None
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        decision = self._decision(call)
        return self._post(self._opened().begin(call, decision, self._groups.get(call.trace, [])))

    def _watch(self, task: asyncio.Task[Any], caller: int, future: Future[Request]) -> None:
        """See to it that the end of the caller's task is noticed."""
        if future.cancelled() or future.exception() is not None or future.result().closed:
            return
        request = future.result()
        loop = task.get_loop()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._watch_here, task, caller, request)

    def _watch_here(self, task: asyncio.Task[Any], caller: int, request: Request) -> None:
        known = self._callers.get(task)
        if known is None:
            known = self._callers[task] = []
            task.add_done_callback(functools.partial(self._left, known, caller))
        known[:] = [r for r in known if not r.closed and r is not request]
        known.append(request)

    def _left(self, requests: list[Request], caller: int, task: asyncio.Task[Any]) -> None:
        for request in requests:
            if not request.closed:
                with _harmless():
                    self._post(self._opened().leave(request, caller))

    async def _send(self, work: Coroutine[Any, Any, Any]) -> None:
        future = self._post(work)
        if self._wait or self._exiting:
            await self._settled(future)

    def _send_now(self, work: Coroutine[Any, Any, Any]) -> None:
        future = self._post(work)
        if (self._wait and not _in_event_loop()) or self._exiting:
            future.result(self._patience)

    async def _settled(self, *futures: Future[Any]) -> None:
        """Wait for writes, for as long as a caller should; they go on without him."""
        waiting = [asyncio.wrap_future(future) for future in futures]
        if waiting:
            done, _ = await asyncio.wait(waiting, timeout=self._patience)
            for one in done:
                if not one.cancelled():
                    one.result()

    def _post(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            self._opened()
        except LedgerClosed:
            work.close()
            raise
        assert self._thread is not None
        future = self._thread.post(work)
        self._posted.add(future)
        future.add_done_callback(self._posted.discard)
        return future

    @property
    def _here(self) -> bool:
        """Whether the writing thread is this process's: a fork has none."""
        return self._thread is not None and self._thread.pid == os.getpid()

    def _opened(self) -> Books:
        """The books, in this process."""
        if self._closed:
            raise LedgerClosed("The logger is closed.")
        if self._books is not None and self._here:
            return self._books
        with self._starting:
            if not self._here:
                self._thread = WriterThread()
                self._posted = set()
                self._books = self._thread.post(self._make_books()).result()
            assert self._books is not None
            return self._books

    async def _make_books(self) -> Books:
        spool = Spool(self._spool_path, max_bytes=self._spool_max_bytes)

        async def connect() -> AsyncLedger:
            return await AsyncLedger.connect(
                self._dsn,
                max_size=self._max_size,
                timeout=self._timeout,
                on_ledger_error="spool",
                spool_path=self._spool_path,
                spool_max_bytes=self._spool_max_bytes,
            )

        return Books(
            connect,
            spool,
            lease=self._lease,
            settle_after=self._settle_after,
            enforce_budgets=self._enforce_budgets,
        )

    def _stop(self, timeout: float) -> None:
        with self._starting:
            thread, books = self._thread, self._books
        if thread is not None and books is not None and self._here:
            thread.post(books.close()).result(timeout)
            thread.stop()

    # -- reading LiteLLM's words --

    async def _on_success(self, kwargs: Mapping[str, Any], response: Any) -> None:
        key = call_key(kwargs)
        if key is None:
            return
        facts = usage(kwargs, response)
        books = self._opened()
        if not await books.succeed(key, facts) and (call := read_call(kwargs)) is not None:
            await books.tell(
                call, self._decision(call), {**facts, **times(kwargs), "status": "succeeded"}
            )

    async def _on_failure(self, kwargs: Mapping[str, Any]) -> None:
        key = call_key(kwargs)
        exception = kwargs.get("exception")
        if key is None or not isinstance(exception, BaseException):
            return
        facts = {**failure(exception), **billed(kwargs)}
        books = self._opened()
        if not await books.fail(key, facts) and (call := read_call(kwargs)) is not None:
            await books.tell(
                call, self._decision(call), {**facts, **times(kwargs), "status": "failed"}
            )

    def _remember_group(self, trace: str, deployments: list[Any]) -> None:
        known = self._groups.setdefault(trace, [])
        for deployment in deployments:
            slug, provider = slug_of_deployment(deployment)
            if all(one["model_slug"] != slug or one["provider"] != provider for one in known):
                known.append({"model_slug": slug, "provider": provider})
        while len(self._groups) > KEPT:
            self._groups.popitem(last=False)

    def _decision(self, call: Call) -> Facts:
        """What `insert_decision` is told beside the models."""
        group = call.metadata.get("model_group")
        return {
            **self._said(call.metadata, call.trace, call.key),
            "decision_rule": "pinned" if group is None else "litellm_router",
        }

    def _said(self, said: Mapping[str, Any], trace: str, key: str | None) -> Facts:
        litellm_says = {
            "trace_id": trace,
            "call_id": key,
            "model_group": said.get("model_group"),
            "key_alias": said.get("user_api_key_alias"),
            "routing_decision": said.get("routing_decision"),
        }
        return compact(
            {
                "tenant_id": self._tenant_of(said),
                "agent_id": word(said.get("agent_id") or said.get("user_api_key_alias")),
                "task_type": word(said.get("task_type")),
                "budget_key": word(said.get("user_api_key_hash")),
                "traffic_class": _traffic_class(said),
                "metadata": {"litellm": compact(litellm_says)},
            }
        )

    def _tenant_of(self, said: Mapping[str, Any]) -> str:
        if callable(self._tenant):
            return self._tenant(said)
        named = said.get("user_api_key_team_id" if _on_the_proxy(said) else "tenant_id")
        return str(named or self._tenant)


class RouteLedgerStrategy(RouteLedgerLogger):
    """The logger, and the ledger's pick: ``litellm.callbacks = [RouteLedgerStrategy(…)]``.

    Give the models among which the ledger is to choose one group's name in the Router's
    ``model_list``. Each asynchronous request is routed by ``Ledger.route`` under `policy`, and the
    group narrowed to the deployments of the model picked. Retries and fallbacks stay LiteLLM's: a
    retry takes the next model of the ledger's order that LiteLLM holds for healthy. A ledger that
    is away picks nothing, and LiteLLM chooses as it would without it.

    Args:
        dsn, tenant, options: see `RouteLedgerLogger`.
        policy: the routing policy's name.
        strict: when no model is good enough, let the request fail. False lets LiteLLM choose, as a
            decision of its own beside the rejected one.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        tenant: Tenant = "default",
        policy: str = "default",
        strict: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dsn, tenant=tenant, **options)
        self._policy = policy
        self._strict = strict

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Narrow a group to the deployments of the model that the ledger picks."""
        await super().async_filter_deployments(
            model, healthy_deployments, messages, request_kwargs, parent_otel_span
        )
        with _harmless():
            picked = await self._pick(healthy_deployments, messages, request_kwargs or {})
            if picked is not None and picked.model_slug is None:
                return [] if self._strict else healthy_deployments
            if picked is not None:
                await asyncio.sleep(picked.delay)
                return [
                    deployment
                    for deployment in healthy_deployments
                    if slug_of_deployment(deployment)[0] == picked.model_slug
                ]
        return healthy_deployments

    async def _pick(
        self, deployments: list[Any], messages: list[Any] | None, asked: Mapping[str, Any]
    ) -> Picked | None:
        trace = asked.get("litellm_trace_id")
        slugs = list(dict.fromkeys(slug_of_deployment(d)[0] for d in deployments))
        if not trace or not slugs:
            return None
        said = metadata_of(asked)
        row = {
            **self._said(said, str(trace), None),
            "policy": self._policy,
            "input_tokens": estimate(messages),
            "lease": self._lease,
        }
        ask = Ask(str(trace), caller(), continues(said))
        future = self._post(self._opened().pick(ask, said, compact(row), slugs))
        done, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=self._patience)
        return next(iter(done)).result() if done else None


def __getattr__(name: str) -> Any:
    if name == "proxy_logger":
        return _from_environment(RouteLedgerLogger)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


@functools.cache
def _from_environment(kind: type[RouteLedgerLogger]) -> RouteLedgerLogger:
    """The logger of this process: ROUTELEDGER_DSN, ROUTELEDGER_TENANT, ROUTELEDGER_SPOOL."""
    return kind(
        os.environ.get("ROUTELEDGER_DSN"),
        tenant=os.environ.get("ROUTELEDGER_TENANT") or "default",
        spool_path=os.environ.get("ROUTELEDGER_SPOOL") or None,
    )


def _at_exit(reference: weakref.ref[RouteLedgerLogger]) -> None:
    """Write what is waiting. LiteLLM's own worker empties its queue after this, so the thread
    stays, and each of its events is waited for."""
    found = reference()
    if found is None or found._books is None or not found._here:
        return
    found._exiting = True
    with contextlib.suppress(Exception):
        for future in list(found._posted):
            future.result(found._patience)
        found._post(found._books.flush()).result(found._patience)


@contextlib.contextmanager
def _harmless() -> Any:
    """No fault of the bookkeeping's reaches the request."""
    try:
        yield
    except LedgerClosed:
        logger.debug("an event of LiteLLM's came after the logger was closed")
    except Exception:
        logger.exception("an event of LiteLLM's could not be recorded")


def _on_the_proxy(said: Mapping[str, Any]) -> bool:
    """Whether the metadata are those of a client of the proxy's, who is not to be believed."""
    return "user_api_key_hash" in said or "user_api_key" in said


def _traffic_class(said: Mapping[str, Any]) -> str | None:
    found = None if _on_the_proxy(said) else said.get("traffic_class")
    return found if found in ("production", "shadow", "synthetic", "replay") else None


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
