"""OpenAI's client between the ledger's calls, as docs/how-to/openai.md has it: its code is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from tests.conftest import Database
from tests.litellm_books import HELLO, agrees, attempts, outcomes
from tests.loopback import Loopback, answering, dropping, failing
from tests.servers import REPO

PAGE = REPO / "docs" / "how-to" / "openai.md"
PRICES = {"gpt-4o-mini": ("0.15", "0.60"), "gpt-4o": ("2.50", "10")}


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def page(db: Database, provider: Loopback) -> Iterator[Any]:
    """What the page defines, with two priced models, quick retries and the loopback server."""
    with db.connect("admin") as conn:
        rows = [
            {
                "model_slug": f"openai/{model}",
                "provider": "openai",
                "q_prior": 0.8,
                "enrolled": True,
                "input_usd_per_mtok": price_in,
                "output_usd_per_mtok": price_out,
                "valid_from": "2026-01-01T00:00:00Z",
            }
            for model, (price_in, price_out) in PRICES.items()
        ]
        conn.execute("select from routeledger.import_models(%s::jsonb)", [json.dumps(rows)])
        conn.execute("""select routeledger.configure('{"retry_base": "10 milliseconds"}')""")
    names: dict[str, Any] = {
        "BASE_URL": provider.base_url,
        "API_KEY": "none",
        "DSN": db.dsn_as("writer"),
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    yield SimpleNamespace(**names)
    names["ledger"].close()
    names["client"].close()


@pytest.mark.parametrize("streamed", [False, True])
def test_the_cheapest_model_answers(
    page: Any, db: Database, provider: Loopback, streamed: bool
) -> None:
    provider.plan("gpt-4o-mini", answering(input_tokens=1000, output_tokens=100, words=3))
    words = (page.ask_stream if streamed else page.ask)(HELLO)
    assert words.split() == ["word0", "word1", "word2"]
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)]
    cost = 1000 * Decimal("0.15") / 10**6 + 100 * Decimal("0.60") / 10**6
    assert db.value("select cost_usd from routeledger.decisions") == cost
    assert (db.value("select ttft_ms from routeledger.attempts") is not None) == streamed


@pytest.mark.parametrize("streamed", [False, True])
def test_retries_and_failover_are_the_ledger_s(
    page: Any, db: Database, provider: Loopback, streamed: bool
) -> None:
    trouble = [answering(cut_after=2)] if streamed else [dropping()]
    provider.plan("gpt-4o-mini", failing(500), *trouble, failing(500))
    assert (page.ask_stream if streamed else page.ask)(HELLO)
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o", "succeeded", provider.count())]
    tried = attempts(db)
    assert tried[0] == ("openai/gpt-4o-mini", "failed", "server_error", 500)
    assert {slug for slug, *_ in tried[:-1]} == {"openai/gpt-4o-mini"}
    assert tried[-1][:2] == ("openai/gpt-4o", "succeeded")


def test_a_429_is_waited_for(page: Any, db: Database, provider: Loopback) -> None:
    provider.plan("gpt-4o-mini", failing(429, retry_after=0.05), answering())
    provider.plan("gpt-4o", answering())
    assert page.ask(HELLO)
    agrees(db, provider)
    assert outcomes(db)[0][1:] == ("succeeded", 2)
    assert db.execute(
        "select retry_after_ms from routeledger.attempts where error_type = 'rate_limited'"
    ) == [(50,)]


def test_a_bad_key_ends_it(page: Any, db: Database, provider: Loopback) -> None:
    provider.plan("gpt-4o-mini", failing(401))
    with pytest.raises(openai.AuthenticationError):
        page.ask(HELLO)
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", "failed", 1)]


def test_nothing_acceptable_is_nothing_asked(page: Any, db: Database, provider: Loopback) -> None:
    with pytest.raises(RuntimeError, match="no_candidate"):
        page.ask(HELLO, overrides={"min_quality": 0.99})
    assert provider.count() == 0
    assert outcomes(db) == [(None, "rejected", 0)]
