"""The demo's models, and its agents: who asks for what, and which models may answer.

The ranking here is deliberately small: filter by quality, sort by price. The ledger records
whatever ranking its caller made, with the reason why each dropped candidate was dropped.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .trace import Request


@dataclass(frozen=True, slots=True)
class Model:
    """A model: list price in USD per million tokens (None: unknown), limits, and its habits.

    ``quality`` is the share of function-calling tasks it gets right (0..1); ``ttft_ms`` and
    ``tokens_per_s`` shape its simulated latency; ``benchmark`` is its name in the Berkeley
    Function Calling Leaderboard's results.
    """

    slug: str
    provider: str
    input_usd: float | None
    output_usd: float | None
    context: int
    max_output: int
    quality: float
    ttft_ms: float
    tokens_per_s: float
    benchmark: str

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """What such a call costs in USD, or None when the price is not known."""
        if self.input_usd is None or self.output_usd is None:
            return None
        return (self.input_usd * input_tokens + self.output_usd * output_tokens) / 1e6


PRICES_VALID_FROM = "2024-10-17"

# Public list prices of October 2024. One model has no list price, as a self-hosted one would:
# what it costs stays unknown in the books and is never counted as free.
_MODELS = (
    # slug, provider, in, out, context, max out, quality, ttft, tok/s, name in the benchmark
    ("gpt-4o", "openai", 2.5, 10.0, 128_000, 16_384, .856, 450, 80, "gpt-4o-2024-08-06-FC"),
    ("gpt-4o-mini", "openai", .15, .60, 128_000, 16_384, .874, 420, 75, "gpt-4o-mini-2024-07-18"),
    ("gpt-4-turbo", "openai", 10.0, 30.0, 128_000, 4_096, .871, 700, 32, "gpt-4-turbo-2024-04-09"),
    ("gpt-4", "openai", 30.0, 60.0, 8_192, 4_096, .885, 750, 26, "gpt-4-0613"),
    ("gpt-3.5-turbo", "openai", .5, 1.5, 16_385, 4_096, .736, 330, 85, "gpt-3.5-turbo-0125"),
    ("claude-3.5-sonnet", "anthropic", 3.0, 15.0, 200_000, 8_192, .905, 750, 65,
     "claude-3-5-sonnet-20240620"),
    ("claude-3-opus", "anthropic", 15.0, 75.0, 200_000, 4_096, .880, 1_300, 27,
     "claude-3-opus-20240229"),
    ("claude-3-haiku", "anthropic", .25, 1.25, 200_000, 4_096, .751, 480, 120,
     "claude-3-haiku-20240307"),
    ("gemini-1.5-pro", "google", 3.5, 10.5, 2_097_152, 8_192, .814, 900, 55,
     "gemini-1.5-pro-preview-0514"),
    ("gemini-1.5-flash", "google", .075, .30, 1_048_576, 8_192, .806, 400, 150,
     "gemini-1.5-flash-preview-0514"),
    ("mistral-large", "mistral", 3.0, 9.0, 128_000, 8_192, .769, 600, 45,
     "mistral-large-2407-FC-Any"),
    ("command-r-plus", "cohere", 2.5, 10.0, 128_000, 4_096, .808, 350, 60, "command-r-plus"),
    ("arctic-instruct", "self-hosted", None, None, 4_096, 2_048, .651, 420, 45, "snowflake_arctic"),
)  # fmt: skip

MODELS: Mapping[str, Model] = {row[0]: Model(*row) for row in _MODELS}


def load_models(data: Path | None = None) -> dict[str, Model]:
    """The models by slug; where the benchmark's price list is present, its prices win."""
    models = dict(MODELS)
    prices = data / "bfcl_2024_08" / "model_prices.csv" if data else None
    if prices is None or not prices.is_file():
        return models
    with prices.open(encoding="utf-8", newline="") as file:
        priced = {row["model"]: row for row in csv.DictReader(file)}
    for slug, model in models.items():
        row = priced.get(model.benchmark)
        if row and row["input_usd_per_token"] and row["output_usd_per_token"]:
            models[slug] = replace(
                model,
                input_usd=float(row["input_usd_per_token"]) * 1e6,
                output_usd=float(row["output_usd_per_token"]) * 1e6,
                quality=int(row["correct"]) / int(row["requests"]),
            )
    return models


def catalog_rows(models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """The models as rows for ``import_models``; an unknown price stays null."""
    return [
        {
            "model_slug": model.slug,
            "provider": model.provider,
            "brand_slug": model.provider,
            "base_model": model.slug,
            "mode": "chat",
            "valid_from": PRICES_VALID_FROM,
            "input_usd_per_mtok": _price(model.input_usd),
            "output_usd_per_mtok": _price(model.output_usd),
            "max_input_tokens": model.context,
            "max_output_tokens": model.max_output,
            "q_prior": round(model.quality, 4),
            "expected_latency_ms": model.ttft_ms + 200 / model.tokens_per_s * 1000,
            "source": "list prices, October 2024",
        }
        for model in models.values()
    ]


def _price(usd: float | None) -> float | None:
    return None if usd is None else round(usd, 9)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who asks: a tenant's agent, the quality it needs, and the models it may use.

    ``order`` None ranks by expected price; otherwise the models are tried as listed.
    ``max_tokens`` is what it asks the provider to reserve for the answer.
    """

    tenant: str
    name: str
    task_type: str
    share: float
    floor: float
    models: tuple[str, ...]
    listed_order: bool = False
    max_tokens: int = 1_024


AGENTS = (
    Agent("acme", "support", "chat", .34, .70,
          ("gemini-1.5-flash", "gpt-4o-mini", "claude-3-haiku", "gpt-3.5-turbo")),
    Agent("acme", "billing", "tool_use", .16, .85,
          ("gpt-4o-mini", "gpt-4o", "claude-3.5-sonnet", "gpt-3.5-turbo")),
    Agent("globex", "tagger", "classification", .14, .60,
          ("arctic-instruct", "claude-3-haiku", "gpt-3.5-turbo"), listed_order=True),
    Agent("globex", "analyst", "reasoning", .12, .87,
          ("claude-3.5-sonnet", "gpt-4-turbo", "claude-3-opus", "gpt-4o")),
    Agent("initech", "reviewer", "code", .15, .75,
          ("mistral-large", "command-r-plus", "gemini-1.5-pro", "gpt-4o"), listed_order=True),
    Agent("initech", "contracts", "extraction", .08, .80,
          ("gpt-4", "gpt-4-turbo"), listed_order=True, max_tokens=4_096),
    Agent("initech", "audit", "reasoning", .01, .95,
          ("claude-3.5-sonnet", "claude-3-opus", "gpt-4")),
)  # fmt: skip


def agent_for(request: Request, seed: int) -> Agent:
    """Whose request it is: the same for the same request and seed."""
    u = random.Random(f"agent {seed} {request.n}").random()  # noqa: S311
    for agent in AGENTS:
        u -= agent.share
        if u < 0:
            return agent
    return AGENTS[0]


def rank(agent: Agent, request: Request, models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """The agent's candidates, best first; those below its floor carry a ``drop_reason``."""

    def price(model: Model) -> float:
        cost = model.cost(request.context_tokens, request.generated_tokens)
        return float("inf") if cost is None else cost

    mine = [models[slug] for slug in agent.models]
    if not agent.listed_order:
        mine.sort(key=price)
    candidates: list[dict[str, Any]] = []
    for model in mine:
        candidate: dict[str, Any] = {
            "model_slug": model.slug,
            "provider": model.provider,
            "quality": round(model.quality, 3),
        }
        if model.quality < agent.floor:
            candidate["drop_reason"] = "below_quality_floor"
        candidates.append(candidate)
    return candidates
