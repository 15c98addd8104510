"""The replay: requests through the ledger's loop, at full speed, at unreliable providers."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import perf_counter
from uuid import UUID

from routeledger import AsyncLedger

from .fleet import Model, agent_for, rank
from .providers import ProviderError, Providers
from .trace import Request


@dataclass(slots=True)
class Replay:
    """Serves requests, and remembers what the ledger's callers were told.

    ``anchor``: the moment to which the trace's beginning is moved. ``told``: how each decision
    ended as its caller saw it, None where the caller left before the end. ``took``: how long the
    ledger's calls took, in ms. ``right``: right and known answers by model.
    """

    ledger: AsyncLedger
    models: Mapping[str, Model]
    providers: Providers
    anchor: datetime
    tenant: Callable[[str], str]
    seed: int = 1
    told: dict[UUID, str | None] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    right: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    counts: Counter[str] = field(default_factory=Counter)

    async def run(
        self, requests: Iterable[Request], concurrency: int, budget_s: float = float("inf")
    ) -> None:
        """Serve the requests, ``concurrency`` at a time; none is begun after ``budget_s``."""
        waiting = iter(requests)
        deadline = perf_counter() + budget_s

        async def work() -> None:
            for request in waiting:
                if perf_counter() > deadline:
                    return
                await self._serve_client(request)
                self.counts["requests"] += 1

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _serve_client(self, request: Request) -> None:
        """Serve a request whose client may hang up, which cancels its task wherever it is."""
        patience_ms = self.providers.hangs_up_after_ms(request)
        if patience_ms is None:
            await self._serve(request, None)
            return
        task = asyncio.create_task(self._serve(request, patience_ms))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            self.counts["cancelled"] += 1
        else:
            task.result()

    async def _serve(self, request: Request, patience_ms: float | None) -> None:
        agent = agent_for(request, self.seed)
        began = perf_counter()
        async with self.ledger.decision(
            tenant_id=self.tenant(agent.tenant),
            agent_id=agent.name,
            task_type=agent.task_type,
            candidates=rank(agent, request, self.models),
            min_quality=agent.floor,
            policy_version="demo-1",
            traffic_class="replay",
            event_at=self.anchor + timedelta(seconds=request.offset_s),
        ) as decision:
            self._took("insert_decision", began)
            self.told[decision.id] = None
            if patience_ms is not None:
                self._hang_up_after(patience_ms)
            async for attempt in decision.attempts():
                async with attempt:
                    try:
                        reply = await self.providers.call(
                            request, agent, attempt.model_slug, attempt.attempt_no
                        )
                    except ProviderError as error:
                        self.counts[error.error_type] += 1
                        attempt.fail(
                            error.error_type,
                            error.message,
                            http_status=error.http_status,
                            retry_after_ms=error.retry_after_ms,
                            latency_ms=error.latency_ms,
                        )
                        call = "fail_attempt"
                    else:
                        attempt.succeed(
                            input_tokens=reply.input_tokens,
                            output_tokens=reply.output_tokens,
                            latency_ms=reply.latency_ms,
                            ttft_ms=reply.ttft_ms,
                            http_status=200,
                            provider_response_id=reply.response_id,
                            finish_reasons=[reply.finish_reason],
                        )
                        call = "complete_decision"
                        if reply.correct is not None:
                            self.right[attempt.model_slug][0] += reply.correct
                            self.right[attempt.model_slug][1] += 1
                    began = perf_counter()
                self._took(call, began)
        outcome = decision.outcome
        self.told[decision.id] = outcome.status if outcome else None
        self.counts[outcome.status if outcome else "unknown"] += 1

    def _took(self, call: str, began: float) -> None:
        self.took[call].append((perf_counter() - began) * 1000.0)

    def _hang_up_after(self, patience_ms: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        delay = patience_ms / 1000.0 / self.providers.speed
        asyncio.get_running_loop().call_later(delay, task.cancel)
