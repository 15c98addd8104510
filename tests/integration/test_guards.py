"""A judge that cannot read an answer, from the first wrong verdict to the last right one.

Two models add numbers, and are right. The cheaper one begins to fence its JSON; the judge takes
what it cannot parse for a wrong answer; routing believes the judge and pays for the other model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from routeledger import AsyncLedger, doctor
from routeledger.judging import Judge, Report, Verdict, Worker
from routeledger.types import Judgement
from tests.books import uuid7
from tests.conftest import Database

TENANT = "acme"
TASK = "sums"
DAY = 86400
# so that the days of the story lie behind each other, and all of them behind today
FIRST_DAY = time.time() // DAY * DAY - 30 * DAY + DAY / 2
USAGE: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 500}
MODELS: list[dict[str, Any]] = [
    {
        "model_slug": model,
        "q_prior": prior,
        "valid_from": "2020-01-01",
        "input_usd_per_mtok": price,
        "output_usd_per_mtok": price,
    }
    for model, prior, price in (("cheap", 0.8, 0.1), ("dear", 0.9, 2.0))
]
POLICY = {"min_quality": 0.7, "min_samples": 20, "window_days": 30}


def at(dsn: str, day: float) -> str:
    """The DSN, for sessions that believe in that day of the story."""
    options = f"-c routeledger.fake_now={FIRST_DAY + day * DAY}"
    return psycopg.conninfo.make_conninfo(dsn, options=options)


@asynccontextmanager
async def on_day(db: Database, day: float) -> AsyncIterator[AsyncLedger]:
    async with await AsyncLedger.connect(at(db.dsn_as("admin"), day), max_size=4) as ledger:
        yield ledger


async def serve(ledger: AsyncLedger, day: float, count: int, *, fenced: bool) -> set[str]:
    """Requests of a day: routed, answered, recorded. Returns the models that were chosen."""

    async def one(n: int) -> str:
        given = uuid7(FIRST_DAY + day * DAY + n)
        routed = await ledger.route(tenant_id=TENANT, id=given, task_type=TASK)
        assert routed.attempt_id is not None
        assert routed.model_slug is not None
        answer = json.dumps({"sum": n + 7})
        if routed.model_slug == "cheap" and fenced:
            answer = f"```json\n{answer}\n```"
        await ledger.complete_decision(
            tenant_id=TENANT, id=given, outcome_status="succeeded", **USAGE
        )
        await ledger.record_payload(
            tenant_id=TENANT,
            id=given,
            attempt_id=routed.attempt_id,
            request={"a": n, "b": 7},
            response={"text": answer},
        )
        return routed.model_slug

    return set(await asyncio.gather(*map(one, range(count))))


def judge_1(given: Judgement) -> Verdict:
    """With the fault: what it cannot parse is wrong."""
    try:
        answer = json.loads(given.response["text"])
    except ValueError as error:
        return Verdict(0.0, label="wrong", rationale=str(error))
    return judged(given, answer)


def judge_2(given: Judgement) -> Verdict:
    """Reads fences, and says so where it cannot judge."""
    text = given.response["text"].removeprefix("```json").removesuffix("```")
    try:
        answer = json.loads(text)
    except ValueError as error:
        return Verdict(-1, label="unreadable", rationale=str(error))
    return judged(given, answer)


def judged(given: Judgement, answer: Any) -> Verdict:
    right = answer["sum"] == given.request["a"] + given.request["b"]
    return Verdict(float(right), label="right" if right else "wrong")


async def label(ledger: AsyncLedger, judge: Judge, version: str) -> Report:
    return await Worker(ledger, judge, name="sums", version=version, batch=100, once=True).run()


async def quality(ledger: AsyncLedger) -> dict[str, tuple[float, str | None, int]]:
    """What routing holds of each model: quality, whence, and from how many rewards."""
    ranked = await ledger.rank_candidates(tenant_id=TENANT, task_type=TASK)
    return {
        r.model_slug: (round(r.quality or 0, 6), r.quality_source, int(r.samples or 0))
        for r in ranked
    }


def roll_up(db: Database, day: float) -> int:
    """Incremental, as a cron job does it. Returns how many buckets changed."""
    with psycopg.connect(at(db.dsn, day)) as conn:
        query = "select inserted + updated from routeledger.rollup_model_performance()"
        return int((conn.execute(query).fetchone() or (0,))[0])


def finding(db: Database, day: float) -> doctor.Check:
    return next(check for check in doctor.diagnose(at(db.dsn, day)) if check.name == "judges")


async def test_a_poisoned_judge(db: Database) -> None:
    # the first day: the cheap model is good enough, and the judge says so
    async with on_day(db, 0) as ledger:
        assert not [r for r in await ledger.import_models(MODELS) if r.error]
        await ledger.set_policy("default", POLICY)
        assert await serve(ledger, 0, 30, fenced=False) == {"cheap"}
        assert (await label(ledger, judge_1, "1")).recorded == 30
        assert roll_up(db, 0.1) == 1
        assert (await quality(ledger))["cheap"] == (1.0, "measured", 30)

    # the second day: fences, and nothing but zeros; routing turns away from a model that is right
    async with on_day(db, 1) as ledger:
        assert await serve(ledger, 1, 40, fenced=True) == {"cheap"}
        await label(ledger, judge_1, "1")
        assert roll_up(db, 1.1) == 1
        assert (await quality(ledger))["cheap"] == (0.428571, "measured", 70)
    async with on_day(db, 2) as ledger:
        assert await serve(ledger, 2, 25, fenced=True) == {"dear"}
        await label(ledger, judge_1, "1")
        roll_up(db, 2.1)

    # ten days later somebody looks; the days are far behind what a roll-up counts again
    async with on_day(db, 12) as ledger:
        roll_up(db, 12)
        (found,) = await ledger.judge_findings()
        assert (found.kind, found.judge, found.judge_version) == ("mono_zero", "sums", "1")
        assert (found.tenant_id, found.model_slug, found.n) == (TENANT, "cheap", 40)
        assert (found.detail["n_before"], found.detail["mean_before"]) == (30, 1)
        assert found.detail["chance"] < 0.001
        assert found.detail["this_judge_on_other_models"] == {"n": 25, "mean": 1}
        (example,) = await ledger.verdicts(id=found.detail["example"])
        assert (example.score, example.label) == (0, "wrong")
        assert "Expecting value" in (example.rationale or "")
        check = finding(db, 12)
        assert check.status == "warn"
        assert "sums 1 on cheap for acme" in check.finding

        # one call: kept, marked, out of every reward
        (withdrawn,) = await ledger.withdraw_verdicts(
            judge="sums", judge_version="1", reason="does not read fenced JSON"
        )
        assert (withdrawn.tenant_id, withdrawn.verdicts) == (TENANT, 95)
        kept = await ledger.verdicts(judge="sums", limit=1000)
        assert len(kept) == 95
        assert {(v.withdrawal_id, v.counts) for v in kept} == {(withdrawn.withdrawal_id, False)}
        assert [v.score for v in kept].count(0) == 40
        assert await ledger.judge_findings() == []
        assert finding(db, 12).status == "ok"

        # the next roll-up counts those days again, and routing is back where its priors were
        assert (await quality(ledger))["cheap"] == (0.428571, "measured", 70)
        assert roll_up(db, 12) == 3
        assert await quality(ledger) == {"cheap": (0.8, "prior", 0), "dear": (0.9, "prior", 0)}
        assert await serve(ledger, 12, 1, fenced=True) == {"cheap"}

        # the version that was withdrawn gets only what is new; a new one judges everything
        assert (await label(ledger, judge_1, "1")).recorded == 1
        assert (await label(ledger, judge_2, "2")).recorded == 96
        await ledger.withdraw_verdicts(judge="sums", judge_version="1", reason="once more")
        roll_up(db, 12.1)
        assert await quality(ledger) == {
            "cheap": (1.0, "measured", 71),
            "dear": (1.0, "measured", 25),
        }
        assert await serve(ledger, 12, 5, fenced=True) == {"cheap"}
        assert await ledger.judge_findings() == []
        versions = [v.judge_version for v in await ledger.verdicts(judge="sums", limit=1000)]
        assert (versions.count("1"), versions.count("2")) == (96, 96)
