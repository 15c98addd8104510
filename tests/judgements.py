"""What tests of judges share: decisions to judge, and a look at what was said of them."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from routeledger import AsyncLedger, judging
from tests.conftest import Database


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that nobody has to wait for."""
    for name in ("_LONGEST_PAUSE", "_LONGEST_AFTER_ERRORS", "_LEAST_DELAY"):
        monkeypatch.setattr(judging, name, 0.02)


async def fill(db: Database, number: int, tenant_id: str = "acme") -> list[UUID]:
    """So many decisions that succeeded, with what was asked and answered."""
    async with await AsyncLedger.connect(db.dsn_as("writer")) as writer:

        async def one(n: int) -> UUID:
            done = await writer.record_outcome(
                tenant_id=tenant_id,
                task_type="sums",
                attempts=[
                    {
                        "model_slug": ("small", "large")[n % 2],
                        "status": "succeeded",
                        "input_tokens": 10,
                        "output_tokens": 5,
                    }
                ],
            )
            assert done.inference_id is not None
            await writer.record_payload(
                tenant_id=tenant_id,
                id=done.id,
                attempt_id=done.inference_id,
                request={"messages": [{"role": "user", "content": f"{n} + {n}?"}]},
                response={"choices": [{"message": {"role": "assistant", "content": str(2 * n)}}]},
            )
            return done.id

        return [await one(n) for n in range(number)]


def verdicts(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(
        "select outcome_id, score, label, rationale, attempt_no from routeledger.judge_verdicts"
        " order by outcome_id, judge, judge_version"
    )


def statuses(db: Database) -> dict[str, int]:
    rows = db.execute("select judge_status::text from routeledger.routing_outcomes")
    return Counter(row[0] for row in rows)


def held(db: Database) -> int:
    return int(
        db.value("select count(*) from routeledger.judge_leases where lease_token is not null")
    )
