"""Simulated providers: seeded, deterministic, and as unreliable as the real ones.

What happens to the k-th attempt of a request at a model depends on the seed and on those three
alone, never on timing, so that two runs meet the same faults. Provider time is compressed: a
provider that takes two seconds sleeps ``2 s / speed``, and reports the two seconds.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .fleet import Agent, Model
from .trace import Request


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``correct``: whether it was right, where the benchmark knows."""

    input_tokens: int
    output_tokens: int
    latency_ms: float
    ttft_ms: float
    response_id: str
    finish_reason: str = "stop"
    correct: bool | None = None


class ProviderError(Exception):
    """What a provider's client raises. ``latency_ms``: how long the caller waited for it."""

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        http_status: int | None = None,
        retry_after_ms: int | None = None,
        latency_ms: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.http_status = http_status
        self.retry_after_ms = retry_after_ms
        self.latency_ms = latency_ms


@dataclass(frozen=True, slots=True)
class Incident:
    """A bad spell of one provider, between two moments of the trace (as shares of its length)."""

    provider: str
    begins: float
    ends: float
    error_type: str
    rate: float


INCIDENTS = (
    Incident("openai", 0.22, 0.27, "rate_limit", 0.70),
    Incident("anthropic", 0.50, 0.56, "overloaded", 0.70),
    Incident("mistral", 0.76, 0.82, "server_error", 0.85),
)

RATE_LIMIT = 0.030
SERVER_ERROR = 0.012
TIMEOUT = 0.004
HANG_UP = 0.006
CLIENT_TIMEOUT_MS = 30_000.0

_STATUS = {"rate_limit": 429, "overloaded": 529}
_MESSAGES = {
    "rate_limit": "rate limit reached for requests",
    "overloaded": "the provider is overloaded",
    "server_error": "the provider had an internal error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model really answered to one prompt of the benchmark."""

    output_tokens: int
    latency_ms: float
    correct: bool


class Answers:
    """Recorded answers by model; request n meets the benchmark's prompt n, round and round."""

    def __init__(self, by_model: Mapping[str, list[Answer]]) -> None:
        self._by_model = by_model

    def find(self, slug: str, n: int) -> Answer | None:
        answers = self._by_model.get(slug)
        return answers[n % len(answers)] if answers else None

    def __len__(self) -> int:
        return sum(len(answers) for answers in self._by_model.values())

    @classmethod
    def load(cls, data: Path | None, models: Mapping[str, Model]) -> Answers | None:
        """The benchmark's results for ``models``, or None where the file is not present."""
        path = data / "bfcl_2024_08" / "matrix.csv.gz" if data else None
        if path is None or not path.is_file():
            return None
        slugs = {model.benchmark: slug for slug, model in models.items()}
        by_model: dict[str, list[Answer]] = {slug: [] for slug in models}
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            column = {name: i for i, name in enumerate(next(rows))}
            model, tokens = column["model"], column["output_tokens"]
            seconds, correct = column["latency_s"], column["correct"]
            for row in rows:
                slug = slugs.get(row[model])
                if slug is not None and row[seconds] and row[tokens]:
                    by_model[slug].append(
                        Answer(int(row[tokens]), float(row[seconds]) * 1000, row[correct] == "1")
                    )
        return cls(by_model)


@dataclass(slots=True)
class Providers:
    """All the providers at once. ``speed``: how many times faster than in truth they answer."""

    models: Mapping[str, Model]
    span_s: float
    seed: int = 1
    speed: float = 100.0
    answers: Answers | None = None
    incidents: tuple[Incident, ...] = INCIDENTS
    healthy: bool = False  # nothing fails, for measurements

    async def call(self, request: Request, agent: Agent, slug: str, attempt_no: int) -> Reply:
        """Answer after a while, or raise :class:`ProviderError` after a while."""
        try:
            reply = self.plan(request, agent, slug, attempt_no)
        except ProviderError as error:
            await self.sleep(error.latency_ms)
            raise
        await self.sleep(reply.latency_ms)
        return reply

    async def sleep(self, ms: float) -> None:
        """Let ``ms`` of provider time pass."""
        await asyncio.sleep(ms / 1000.0 / self.speed)

    def plan(self, request: Request, agent: Agent, slug: str, attempt_no: int) -> Reply:
        """What happens, at once: a reply, or a raised :class:`ProviderError`."""
        model = self.models[slug]
        rng = random.Random(f"call {self.seed} {request.n} {slug} {attempt_no}")  # noqa: S311
        if not self.healthy:
            self._refuse_long_prompt(request, agent, model, rng)
            self._fail_by_chance(request, model, rng)
        return self._answer(request, model, rng)

    def hangs_up_after_ms(self, request: Request) -> float | None:
        """After how long the client gives up waiting, in provider time; None: it does not."""
        rng = random.Random(f"client {self.seed} {request.n}")  # noqa: S311
        if self.healthy or rng.random() >= HANG_UP:
            return None
        return rng.uniform(100.0, 1_500.0)

    def _refuse_long_prompt(
        self, request: Request, agent: Agent, model: Model, rng: random.Random
    ) -> None:
        asked = request.context_tokens + min(agent.max_tokens, model.max_output)
        if asked > model.context:
            message = f"maximum context length is {model.context} tokens, {asked} were requested"
            raise ProviderError(
                "context_length", message, http_status=400, latency_ms=rng.uniform(40, 120)
            )

    def _fail_by_chance(self, request: Request, model: Model, rng: random.Random) -> None:
        where = request.offset_s / self.span_s if self.span_s else 0.0
        for incident in self.incidents:
            if incident.provider == model.provider and incident.begins <= where < incident.ends:
                if rng.random() < incident.rate:
                    raise self._failure(incident.error_type, rng)
                break
        u = rng.random()
        if u < RATE_LIMIT:
            raise self._failure("rate_limit", rng)
        if u < RATE_LIMIT + SERVER_ERROR:
            raise self._failure("server_error", rng)
        if u < RATE_LIMIT + SERVER_ERROR + TIMEOUT:
            message = f"no answer within {CLIENT_TIMEOUT_MS / 1000:.0f} s"
            raise ProviderError("timeout", message, latency_ms=CLIENT_TIMEOUT_MS)

    def _failure(self, error_type: str, rng: random.Random) -> ProviderError:
        retry_after = rng.choice((50, 100, 200, 400)) if error_type == "rate_limit" else None
        return ProviderError(
            error_type,
            _MESSAGES[error_type],
            http_status=_STATUS.get(error_type) or rng.choice((500, 502, 503)),
            retry_after_ms=retry_after,
            latency_ms=rng.uniform(30, 200),
        )

    def _answer(self, request: Request, model: Model, rng: random.Random) -> Reply:
        recorded = self.answers.find(model.slug, request.n) if self.answers else None
        if recorded is not None:
            output_tokens = recorded.output_tokens
            latency_ms = recorded.latency_ms
            correct: bool | None = recorded.correct
        else:
            output_tokens = max(1, round(request.generated_tokens * rng.uniform(0.8, 1.2)))
            typical = model.ttft_ms + output_tokens / model.tokens_per_s * 1000.0
            latency_ms = typical * math.exp(rng.gauss(0.0, 0.35))
            correct = None
        return Reply(
            input_tokens=request.context_tokens,
            output_tokens=output_tokens,
            latency_ms=round(latency_ms, 1),
            ttft_ms=round(min(latency_ms, model.ttft_ms * math.exp(rng.gauss(0.0, 0.25))), 1),
            response_id=f"resp_{rng.getrandbits(64):016x}",
            correct=correct,
        )
