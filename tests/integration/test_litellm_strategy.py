"""The ledger picks the Router's deployment, and LiteLLM's failover goes on from there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import litellm
import pytest
import pytest_asyncio
from litellm.types.router import RouterRateLimitError

from routeledger._ids import IdMaker
from routeledger.litellm import RouteLedgerStrategy
from tests.conftest import Database
from tests.litellm_books import (
    HELLO,
    Bill,
    agrees,
    attempts,
    eventually,
    kept_by,
    outcomes,
    router,
)
from tests.loopback import Loopback, answering, failing

MODELS = ["gpt-4o", "gpt-4o-mini", "gpt-4.1-nano"]
PRICES = {
    "gpt-4o": (2.5, 10, 0.9),
    "gpt-4o-mini": (0.15, 0.6, 0.8),
    "gpt-4.1-nano": (0.1, 0.4, 0.5),
}
new_id = IdMaker()


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def priced(db: Database) -> None:
    """Three models with prices and qualities, and a floor between the worst and the middle one."""
    with db.connect("admin") as conn:
        for model, (price_in, price_out, quality) in PRICES.items():
            row = {
                "model_slug": f"openai/{model}",
                "provider": "openai",
                "brand_slug": "openai",
                "q_prior": quality,
                "enrolled": True,
                "input_usd_per_mtok": price_in,
                "output_usd_per_mtok": price_out,
                "valid_from": "2026-01-01T00:00:00Z",
            }
            conn.execute(
                "select from routeledger.import_models(jsonb_build_array(%s::jsonb))",
                [json.dumps(row)],
            )
        conn.execute("select from routeledger.set_policy('default', '{\"min_quality\": 0.7}')")


@pytest_asyncio.fixture
async def strategy(
    db: Database, priced: None, tmp_path: Path
) -> AsyncIterator[RouteLedgerStrategy]:
    chooser = RouteLedgerStrategy(
        db.dsn_as("writer"), tenant="acme", spool_path=tmp_path / "spool", timeout=1.0
    )
    async with kept_by(chooser):
        yield chooser
    assert chooser.lost == 0


async def test_the_cheapest_model_that_clears_the_floor_is_called(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback
) -> None:
    bill = Bill()
    litellm.callbacks.append(bill)
    routing = router(provider, {"auto": MODELS})
    decision_id = new_id()
    for n in range(4):
        await routing.acompletion(
            model="auto",
            messages=HELLO,
            metadata={"task_type": "greeting"},
            **({"litellm_trace_id": decision_id} if n == 0 else {}),
        )
    await eventually(lambda: len(bill.costs) == 4)
    await strategy.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)] * 4
    rows = db.execute(
        "select id::text, decision_rule, task_type, policy_version, ruleset_hash"
        " from routeledger.routing_outcomes order by id"
    )
    assert rows[0][0] == decision_id
    assert {row[1:3] for row in rows} == {("cheapest_clearing_floor", "greeting")}
    assert all(version and len(digest) == 64 for *_, version, digest in rows)
    costs = db.execute("select cost_usd from routeledger.decisions")
    assert sorted(cost for (cost,) in costs) == sorted(bill.costs.values())


async def test_a_retry_takes_the_next_model_of_the_ledger_s_order(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", failing(500))
    routing = router(provider, {"auto": MODELS}, num_retries=2)
    await routing.acompletion(model="auto", messages=HELLO)
    await strategy.flush()
    agrees(db, provider)
    assert attempts(db) == [
        ("openai/gpt-4o-mini", "failed", "server_error", 500),
        ("openai/gpt-4o", "succeeded", None, None),
    ]


async def test_fallbacks_to_other_groups_are_kept(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback
) -> None:
    for model in MODELS:
        provider.plan(model, failing(500))
    routing = router(
        provider,
        {"auto": MODELS, "last": ["gpt-4.1"]},
        fallbacks=[{"auto": ["last"]}],
        num_retries=1,
    )
    await routing.acompletion(model="auto", messages=HELLO)
    await strategy.flush()
    agrees(db, provider)
    assert outcomes(db) == [("openai/gpt-4.1", "succeeded", 3)]


async def test_when_nothing_clears_the_floor(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback, tmp_path: Path
) -> None:
    with db.connect("admin") as conn:
        conn.execute("select from routeledger.set_policy('default', '{\"min_quality\": 0.95}')")
    routing = router(provider, {"auto": MODELS}, num_retries=0)
    await routing.acompletion(model="auto", messages=HELLO)
    await strategy.flush()
    agrees(db, provider)
    assert [status for _, status, _ in outcomes(db)] == ["rejected", "succeeded"]

    strict = RouteLedgerStrategy(
        db.dsn_as("writer"), tenant="acme", strict=True, spool_path=tmp_path / "other"
    )
    before = provider.count()
    async with kept_by(strict):
        with pytest.raises(RouterRateLimitError):
            await routing.acompletion(model="auto", messages=HELLO)
    assert provider.count() == before
    assert [status for _, status, _ in outcomes(db)][-1] == "rejected"


async def test_a_ledger_that_is_away_leaves_the_choice_to_litellm(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback, tmp_path: Path
) -> None:
    routing = router(provider, {"auto": MODELS})
    await routing.acompletion(model="auto", messages=HELLO)
    await strategy.flush()
    with db.server.connect("postgres") as conn:
        conn.execute(f"alter database {db.name} allow_connections false")
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [db.name]
        )
    for _ in range(2):
        assert await routing.acompletion(model="auto", messages=HELLO)
    await strategy.flush()
    with db.server.connect("postgres") as conn:
        conn.execute(f"alter database {db.name} allow_connections true")
    assert provider.count() == 3
    assert len((tmp_path / "spool").read_text().splitlines()) == 4
    assert outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)]


async def test_thirty_two_at_a_time(
    strategy: RouteLedgerStrategy, db: Database, provider: Loopback
) -> None:
    provider.plan("gpt-4o-mini", *[answering(), failing(500), answering()] * 8, answering())
    routing = router(provider, {"auto": MODELS}, num_retries=2, allowed_fails=1000)
    limit = asyncio.Semaphore(32)

    async def ask() -> Any:
        async with limit:
            return await routing.acompletion(model="auto", messages=HELLO)

    await asyncio.gather(*(ask() for _ in range(64)))
    await eventually(lambda: [status for _, status, _ in outcomes(db)].count("succeeded") == 64)
    agrees(db, provider)
    assert {slug for slug, *_ in attempts(db)} == {"openai/gpt-4o-mini", "openai/gpt-4o"}


async def test_a_ledger_that_is_slow_is_not_waited_for(
    db: Database, priced: None, provider: Loopback, tmp_path: Path
) -> None:
    chooser = RouteLedgerStrategy(
        db.dsn_as("writer"), tenant="acme", timeout=0.2, spool_path=tmp_path / "spool"
    )
    routing = router(provider, {"auto": MODELS})
    async with kept_by(chooser):
        with db.connect(autocommit=False) as conn:
            conn.execute("lock table routeledger.routing_policies in access exclusive mode")
            assert await routing.acompletion(model="auto", messages=HELLO)
            conn.rollback()
        await eventually(lambda: len(outcomes(db)) == 2)
        await chooser.flush()
    assert chooser.lost == 0
    found = db.execute(
        "select decision_rule, outcome_status, decision_rule_override from routeledger.decisions"
    )
    assert sorted(found) == [
        ("cheapest_clearing_floor", "failed", "not_dispatched"),
        ("litellm_router", "succeeded", None),
    ]
