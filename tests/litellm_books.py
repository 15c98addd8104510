"""What the tests of LiteLLM share: a provider on the loopback, a logger, and LiteLLM's own bill."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
from litellm.integrations.custom_logger import CustomLogger

from routeledger.litellm import RouteLedgerLogger
from tests.conftest import Database
from tests.loopback import Loopback

HELLO = [{"role": "user", "content": "hello"}]


class Bill(CustomLogger):
    """What LiteLLM itself says that each call cost, those that failed included."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Decimal] = {}
        self.failed: dict[str, Decimal] = {}

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._note(self.costs, kwargs)

    def log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._note(self.costs, kwargs)

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._note(self.failed, kwargs)

    def _note(self, costs: dict[str, Decimal], kwargs: Any) -> None:
        said = kwargs["standard_logging_object"]
        costs[said["litellm_call_id"]] = Decimal(str(said["response_cost"]))


@asynccontextmanager
async def kept_by(logger: RouteLedgerLogger, *others: CustomLogger) -> AsyncIterator[None]:
    """LiteLLM with these callbacks and no others."""
    litellm.callbacks = [logger, *others]
    try:
        yield
    finally:
        await logger.close()
        litellm.logging_callback_manager._reset_all_callbacks()


def router(provider: Loopback, groups: dict[str, list[str]], **options: Any) -> litellm.Router:
    """A Router without pauses between retries: model groups over models of the provider's."""
    return litellm.Router(model_list=deployments(provider, groups), retry_after=0, **options)


def deployments(provider: Loopback, groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The model list of a Router."""
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": provider.base_url,
                "api_key": "none",
            },
        }
        for group, models in groups.items()
        for model in models
    ]


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something is so: events of LiteLLM's come from tasks and threads of its own."""
    for _ in range(600):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came to be")


def outcomes(db: Database) -> list[tuple[Any, ...]]:
    """Model, status and number of attempts of each decision, oldest first."""
    return db.execute(
        "select model_slug, outcome_status, attempts from routeledger.decisions order by id"
    )


def attempts(db: Database) -> list[tuple[Any, ...]]:
    """Model, status, error and HTTP status of each attempt, in order."""
    return db.execute(
        "select model_slug, status, error_type, http_status from routeledger.attempts"
        " order by outcome_id, attempt_no"
    )


def agrees(db: Database, provider: Loopback) -> None:
    """Each request that the provider saw is one attempt, and the books are sound."""
    tried = Counter(slug.removeprefix("openai/") for slug, *_ in attempts(db))
    assert tried == Counter(one.model for one in provider.seen)
    assert db.execute("select * from routeledger.orphans") == []
    assert db.execute("select * from routeledger.reconciliation where not agrees") == []
