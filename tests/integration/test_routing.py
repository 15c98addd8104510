"""Routing through the driver and the command line: from measurements to the call that is made."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from routeledger import AsyncLedger, Ledger, PolicyVersion, RetryPolicy, errors
from routeledger._routines import ROUTE
from tests.command import Result, commands
from tests.conftest import Database

TENANT = "acme"
MODELS: list[dict[str, Any]] = [
    {"model_slug": "cheap", "provider": "p", "q_prior": 0.85, "price": 0.2},
    {"model_slug": "good", "provider": "p", "q_prior": 0.95, "price": 1},
    {"model_slug": "weak", "provider": "q", "q_prior": 0.4, "price": 0.05},
]
USAGE: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 500}


def priced(model: dict[str, Any]) -> dict[str, Any]:
    price = model.pop("price")
    return {**model, "input_usd_per_mtok": price, "output_usd_per_mtok": 2 * price}


@pytest.fixture
def ledger(db: Database) -> Iterator[Ledger]:
    with Ledger.connect(db.dsn_as("admin"), max_size=8) as client:
        refused = [r for r in client.import_models([priced(dict(m)) for m in MODELS]) if r.error]
        assert refused == []
        client.configure({"retry_attempts_per_model": 1, "retry_base": "0 seconds"})
        yield client


@pytest_asyncio.fixture
async def async_ledger(ledger: Ledger, db: Database) -> AsyncIterator[AsyncLedger]:
    async with await AsyncLedger.connect(db.dsn_as("writer"), max_size=4) as client:
        yield client


class ProviderError(Exception):
    """As providers' clients raise them."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


# -- the driver ------------------------------------------------------------------------------------


def test_a_request_is_routed_and_finished(ledger: Ledger) -> None:
    routed = ledger.route(tenant_id=TENANT, task_type="chat", metadata={"k": [1]})
    assert (routed.model_slug, routed.provider) == ("cheap", "p")
    assert routed.decision_rule == "cheapest_clearing_floor"
    assert routed.fallbacks == ["good"]
    assert (routed.created, routed.rejected, routed.delay_ms) == (True, False, 0)
    assert routed.projected_cost_usd == Decimal("0.0004")
    assert (routed.policy_version, routed.propensity) == ("default@1", 1.0)
    done = ledger.complete_decision(
        tenant_id=TENANT, id=routed.id, outcome_status="succeeded", **USAGE
    )
    assert (done.inference_id, done.cost_usd) == (routed.attempt_id, Decimal("0.0004"))
    again = ledger.route(tenant_id=TENANT, id=routed.id, task_type="chat", metadata={"k": [1]})
    assert again.created is False
    assert (again.attempt_id, again.model_slug) == (routed.attempt_id, "cheap")
    with pytest.raises(errors.IdReused):
        ledger.route(tenant_id=TENANT, id=routed.id, task_type="code")


def test_all_that_route_takes(ledger: Ledger, db: Database) -> None:
    ledger.set_budget(TENANT, "keyed", Decimal("1.5"), scope="key", subject="k", period="month")
    routed = ledger.route(
        tenant_id=TENANT,
        agent_id="support",
        task_type="chat",
        policy="default@1",
        candidates=("good", "weak"),
        overrides={"min_quality": Decimal("0.9")},
        input_tokens=10,
        output_tokens=20,
        budget_key="k",
        deadline=timedelta(seconds=30),
        traffic_class="shadow",
        lease=timedelta(minutes=2),
        seed=-7,
    )
    assert (routed.model_slug, routed.fallbacks) == ("good", [])
    assert routed.projected_cost_usd == Decimal("0.00005")
    stored = db.execute(
        "select agent_id, budget_key, deadline_at - created_at, traffic_class, lease, ruleset_hash"
        " from routeledger.routing_outcomes"
    )
    assert stored == [
        ("support", "k", timedelta(seconds=30), "shadow", timedelta(minutes=2), routed.ruleset_hash)
    ]
    pinned = ledger.route(tenant_id=TENANT, pinned_model="weak")
    assert (pinned.model_slug, pinned.decision_rule) == ("weak", "pinned")
    none = ledger.route(tenant_id=TENANT, overrides={"min_quality": 1})
    assert none.rejected
    assert (none.model_slug, none.attempt_id, none.delay_ms) == (None, None, None)
    with pytest.raises(errors.PolicyNotFound):
        ledger.route(tenant_id=TENANT, policy="nowhere")


def test_many_at_once(ledger: Ledger) -> None:
    rows: list[dict[str, Any]] = [
        {"tenant_id": TENANT, "task_type": "chat"},
        {"tenant_id": TENANT, "overrides": {"min_quality": 0.9}, "deadline": timedelta(seconds=1)},
        {"tenant_id": TENANT, "policy": "nowhere"},
        {"tenant_id": TENANT, "candidates": ["weak"]},
    ]
    answers = ledger.routes(rows)
    assert [a.status for a in answers] == ["accepted", "accepted", "refused", "accepted"]
    assert [a.result.model_slug if a.result else None for a in answers] == [
        "cheap",
        "good",
        None,
        None,
    ]
    assert isinstance(answers[2].error, errors.PolicyNotFound)
    assert answers[3].unwrap().rejected


def test_the_ranking_says_why(ledger: Ledger) -> None:
    rows = ledger.rank_candidates(
        tenant_id=TENANT, overrides={"latency_cap_ms": 1}, candidates=["good", "weak", "unknown"]
    )
    assert [(r.rank, r.model_slug, r.drop_reason) for r in rows] == [
        (1, "good", None),
        (None, "weak", "below_quality_floor"),
        (None, "unknown", "not_enrolled_no_price"),
    ]
    assert rows[0].projected_cost_usd == rows[0].ranking_score == Decimal("0.002")
    assert rows[0].quality_source == "prior"


def test_policies_budgets_and_retry_policies(ledger: Ledger) -> None:
    first = ledger.set_policy("careful", {"min_quality": 0.9, "floor": "lower_bound"})
    assert first == PolicyVersion("careful", 1, first.ruleset_hash, created=True)
    same = ledger.set_policy("careful", {"floor": "lower_bound", "min_quality": Decimal("0.90")})
    assert same == PolicyVersion("careful", 1, first.ruleset_hash, created=False)
    second = ledger.set_policy("careful", {"min_quality": 0.5})
    assert (second.version, second.created) == (2, True)
    assert ledger.route(tenant_id=TENANT, policy="careful@1").ruleset_hash == first.ruleset_hash
    assert ledger.route(tenant_id=TENANT, policy="careful").policy_version == "careful@2"
    with pytest.raises(errors.OutOfRange):
        ledger.set_policy("careful", {"min_quality": 2})

    assert ledger.set_budget(TENANT, "daily", 1) is True
    assert ledger.set_budget(TENANT, "daily", "2.5", shards=4) is False
    ledger.drop_budget(TENANT, "daily")
    with pytest.raises(errors.BudgetNotFound):
        ledger.drop_budget(TENANT, "daily")

    policy = {"error_class": "timeout", "attempts_per_model": 3}
    assert ledger.set_retry_policy(policy, tenant_id=TENANT) == RetryPolicy(
        TENANT, "", "timeout", changed=True
    )
    assert ledger.set_retry_policy(policy, tenant_id=TENANT).changed is False


def test_measured_quality_moves_the_choice(ledger: Ledger, db: Database) -> None:
    """Forty rewarded decisions each: the cheap model turns out worse than thought, the weak better."""
    for slug, reward in (("cheap", 0.5), ("weak", 0.9)):
        for _ in range(40):
            done = ledger.route(tenant_id=TENANT, task_type="chat", pinned_model=slug)
            ledger.complete_decision(
                tenant_id=TENANT, id=done.id, outcome_status="succeeded", **USAGE
            )
        db.execute(
            "update routeledger.routing_outcomes set reward = %s where chosen_model_slug = %s",
            [reward, slug],
        )
    assert ledger.route(tenant_id=TENANT, task_type="chat").model_slug == "cheap"
    db.execute("select from routeledger.rollup_model_performance()")
    routed = ledger.route(tenant_id=TENANT, task_type="chat")
    assert (routed.model_slug, routed.fallbacks) == ("weak", ["good"])
    assert ledger.route(tenant_id=TENANT, task_type="code").model_slug == "cheap"


def test_poisoned_entries_do_not_win(ledger: Ledger, db: Database) -> None:
    # one price sixteen times below those of the same model elsewhere
    family = [("a/x", 1.25), ("b/x", 1.25), ("c/x", 1.3), ("vertex/x", 1.25 / 16)]
    rows = [
        priced({"model_slug": slug, "base_model": "x", "q_prior": 0.99, "price": price})
        for slug, price in family
    ]
    assert [r.unwrap().flag for r in ledger.import_models(rows)][-1] == "input_below_neighbours"
    named = [slug for slug, _ in family]
    ranked = ledger.rank_candidates(tenant_id=TENANT, candidates=named)
    assert [(r.model_slug, r.drop_reason) for r in ranked] == [
        ("a/x", None),
        ("b/x", None),
        ("c/x", None),
        ("vertex/x", "price_flagged"),
    ]
    before = ledger.rank_candidates(tenant_id=TENANT, task_type="chat")

    # ten tokens for $9,990, and calls that say nothing of their tokens
    for usage in (
        {"input_tokens": 8, "output_tokens": 2, "cost_usd": 9990},
        {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0},
    ):
        for slug in ("cheap", "good"):
            for _ in range(40):
                done = ledger.route(tenant_id=TENANT, task_type="chat", pinned_model=slug)
                ledger.complete_decision(
                    tenant_id=TENANT, id=done.id, outcome_status="succeeded", **usage
                )
    assert db.value("select count(*) from routeledger.implausible_costs") > 0
    db.execute("select from routeledger.rollup_model_performance()")
    after = ledger.rank_candidates(tenant_id=TENANT, task_type="chat")
    numbers = [(r.model_slug, r.rank, r.projected_cost_usd, r.cost_per_success_usd) for r in before]
    assert numbers == [
        (r.model_slug, r.rank, r.projected_cost_usd, r.cost_per_success_usd) for r in after
    ]
    assert ledger.route(tenant_id=TENANT, task_type="chat").model_slug == "cheap"


def test_a_budget_holds_under_many_callers(ledger: Ledger, db: Database) -> None:
    """0.0004 a call: of 0.01 there are 25, not one more and not one less."""
    ledger.set_budget(TENANT, "small", "0.01", shards=4)

    def call(_: int) -> str | None:
        return ledger.route(tenant_id=TENANT, candidates=["cheap"]).model_slug

    with ThreadPoolExecutor(16) as pool:
        served = Counter(pool.map(call, range(64)))
    assert served == {"cheap": 25, None: 39}
    status = db.execute("select reserved_usd, remaining_usd from routeledger.budget_status")
    assert status == [(Decimal("0.01"), Decimal(0))]
    rejected = db.execute(
        "select distinct candidates -> 0 ->> 'drop_reason' from routeledger.routing_outcomes"
        " where outcome_status = 'rejected'"
    )
    assert rejected == [("exceeds_budget_cap",)]


@pytest.mark.parametrize("coalesce", [True, False])
def test_one_id_is_routed_once(ledger: Ledger, db: Database, coalesce: bool) -> None:
    with Ledger.connect(db.dsn_as("writer"), max_size=8, coalesce=coalesce) as client:
        ids = [db.value("select routeledger.uuid_v7()") for _ in range(8)]
        with ThreadPoolExecutor(16) as pool:
            routed = list(pool.map(lambda i: client.route(tenant_id=TENANT, id=i), ids * 8))
    assert Counter(r.created for r in routed) == {True: 8, False: 56}
    assert len({(r.id, r.attempt_id) for r in routed}) == 8


def test_a_transaction_of_the_callers(ledger: Ledger, db: Database) -> None:
    with db.connect("writer", autocommit=False) as conn:
        assert ledger.route(tenant_id=TENANT, conn=conn).created
        assert ledger.rank_candidates(tenant_id=TENANT, conn=conn)
        conn.rollback()
    assert db.value("select count(*) from routeledger.routing_outcomes") == 0


# -- the block -------------------------------------------------------------------------------------


async def test_the_loop_fails_over_in_the_order_of_the_ranking(
    async_ledger: AsyncLedger, db: Database
) -> None:
    called = []
    async with async_ledger.routed(tenant_id=TENANT, task_type="chat") as decision:
        assert decision.result.model_slug == "cheap"
        async for attempt in decision.attempts():
            async with attempt:
                called.append(attempt.model_slug)
                if attempt.model_slug == "cheap":
                    raise ProviderError(500)
                attempt.succeed(**USAGE)
    assert called == ["cheap", "good"]
    assert decision.outcome is not None
    assert (decision.outcome.status, decision.outcome.model_slug) == ("succeeded", "good")
    assert decision.outcome.cost_usd == Decimal("0.002")
    assert db.execute("select * from routeledger.orphans") == []
    rows = db.execute("select model_slug, status from routeledger.attempts order by attempt_no")
    assert rows == [("cheap", "failed"), ("good", "succeeded")]


async def test_a_rejected_request_has_no_attempts(async_ledger: AsyncLedger) -> None:
    async with async_ledger.routed(tenant_id=TENANT, overrides={"min_quality": 1}) as decision:
        assert decision.rejected
        assert [a async for a in decision.attempts()] == []
    assert decision.outcome is not None
    assert decision.outcome.status == "rejected"


async def test_the_loop_waits_for_the_first_to_return(
    async_ledger: AsyncLedger, db: Database
) -> None:
    db.execute(
        "insert into routeledger.cooldowns"
        " (tenant_id, model_slug, until_at, first_failed_at, last_failed_at)"
        " values (%s, 'good', now() + interval '300 ms', now(), now())",
        [TENANT],
    )
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with async_ledger.routed(
        tenant_id=TENANT, candidates=["good"], deadline=timedelta(seconds=30)
    ) as decision:
        async for attempt in decision.attempts():
            async with attempt:
                waited = loop.time() - begun
                attempt.succeed(**USAGE)
    assert decision.outcome is not None
    assert decision.outcome.status == "succeeded"
    assert waited > 0.1
    assert db.execute("select * from routeledger.cooldowns") == []  # it was the probe


async def test_without_a_ledger_the_order_given_is_tried(
    ledger: Ledger, db: Database, tmp_path: Path
) -> None:
    async with await AsyncLedger.connect(
        "host=127.0.0.1 port=1 user=nobody",
        on_ledger_error="spool",
        spool_path=tmp_path / "spool",
        timeout=0.2,
    ) as offline:
        with pytest.raises(errors.LedgerUnavailable):
            async with offline.routed(tenant_id=TENANT):
                pass
        called = []
        async with offline.routed(
            tenant_id=TENANT, candidates=["good", "cheap"], budget_key="k", overrides={}
        ) as decision:
            async for attempt in decision.attempts():
                async with attempt:
                    called.append(attempt.model_slug)
                    if len(called) == 1:
                        raise ProviderError(500)
                    attempt.succeed(**USAGE)
        async with offline.routed(tenant_id=TENANT, pinned_model="weak") as pinned:
            async for attempt in pinned.attempts():
                async with attempt:
                    attempt.succeed(**USAGE)
    assert called == ["good", "cheap"]
    assert decision.outcome is not None
    assert decision.outcome.spooled
    report = ledger.replay_spool(tmp_path / "spool")
    assert (report.accepted, report.refused) == (2, 0)
    rows = db.execute("select model_slug, outcome_status, attempts from routeledger.decisions")
    assert sorted(rows) == [("cheap", "succeeded", 2), ("weak", "succeeded", 1)]


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], ledger: Ledger, db: Database) -> Callable[..., Result]:
    """`run("rank", …)`: the command in this process, as an admin."""
    return commands(capsys, "--dsn", db.dsn_as("admin"))


def test_rank(run: Callable[..., Result]) -> None:
    shown = run("rank", "--tenant", TENANT, "--set", "min_quality=0.9")
    assert shown.code == 0
    assert [line.split()[:3] for line in shown.out.splitlines()[1:2]] == [["1", "good", "p"]]
    assert "below_quality_floor" in shown.out
    found = run("rank", "cheap", "nobody", "--tenant", TENANT, "--input-tokens", "0", "--json")
    assert [(r["model_slug"], r["rank"]) for r in found.json["candidates"]] == [
        ("cheap", 1),
        ("nobody", None),
    ]
    assert run("rank", "weak", "--tenant", TENANT).code == 1
    assert run("rank", "--tenant", TENANT, "--set", "min_quality").code == 2
    assert run("rank", "--tenant", TENANT, "--at", "yesterday").code == 2
    assert run("rank", "--tenant", TENANT, "--set", "nothing=1").code == 4
    past = run("rank", "cheap", "--tenant", TENANT, "--at", "1971-01-02", "--json")
    assert past.json["candidates"][0]["rank"] == 1


def test_route(run: Callable[..., Result], db: Database) -> None:
    shown = run("route", "--tenant", TENANT, "--task", "chat", "--set", "deny=weak,other")
    assert shown.code == 0
    assert "model      cheap at p" in shown.out
    assert "then       good" in shown.out
    found = run("route", "--tenant", TENANT, "--pin", "weak", "--deadline", "1.5", "--json").json
    assert (found["model_slug"], found["decision_rule"]) == ("weak", "pinned")
    assert set(found) == set(ROUTE.result.__dataclass_fields__)
    again = run("route", "--tenant", TENANT, "--pin", "weak", "--id", found["id"], "--json")
    assert again.code == 4  # it had a deadline
    assert run("route", "weak", "--tenant", TENANT).code == 1
    assert run("route", "--tenant", TENANT, "--set", "=1").code == 2
    db.execute(
        "insert into routeledger.cooldowns"
        " (tenant_id, model_slug, until_at, first_failed_at, last_failed_at)"
        " select %s, m, now() + interval '1 hour', now(), now()"
        " from unnest(array['good', 'cheap']) m",
        [TENANT],
    )
    assert "available" in run("route", "--tenant", TENANT).out
    waits = run("route", "--tenant", TENANT, "--deadline", "7200")
    assert "every model cools down" in waits.out


def test_policies(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "careful.json"
    file.write_text('{"min_quality": 0.9, "deny": ["weak"], "latency_cap_ms": 900}')
    assert run("policy", "set", "careful", "--file", str(file)).out == "careful@1\n"
    again = run("policy", "set", "careful", "--file", str(file))
    assert again.out == "careful@1 is that already\n"
    capped = run(
        "policy",
        "set",
        "careful",
        "--set",
        "budget_cap_usd=0.5",
        "--set",
        "floor=lower_bound",
        "--json",
    )
    assert (capped.json["version"], capped.json["created"]) == (2, True)
    listed = run("policy", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == [
        "policy",
        "careful@2",
        "default@1",
    ]
    assert "(lower_bound)" in listed.out
    assert "0.5 USD" in listed.out
    assert len(run("policy", "list", "--json").json["policies"]) == 2
    assert "lower_bound" in run("policy", "show", "careful").out
    assert run("policy", "show", "careful", "--json").json["version"] == 2
    assert run("policy", "show", "nowhere").code == 1
    file.write_text("[]")
    assert run("policy", "set", "careful", "--file", str(file)).code == 2
    assert run("policy", "set", "careful", "--file", str(tmp_path / "none")).code == 2
    assert run("policy", "set", "careful", "--set", "min_quality=2").code == 4
    lifted = run("policy", "set", "careful", "--set", "budget_cap_usd=", "--json")
    assert lifted.json["version"] == 3


def test_budgets(run: Callable[..., Result]) -> None:
    assert run("budget", "set", "daily", "25", "--tenant", TENANT).out == "made\n"
    assert run("budget", "set", "daily", "2.5", "--tenant", TENANT).out == "changed\n"
    made = run(
        "budget",
        "set",
        "each",
        "1",
        "--tenant",
        TENANT,
        "--scope",
        "agent",
        "--subject",
        "*",
        "--json",
    )
    assert made.json == {"created": True}
    run("route", "--tenant", TENANT, "--agent", "a")
    listed = run("budget", "list", "--tenant", TENANT)
    assert listed.code == 0
    assert "0.0004" in listed.out
    budgets = run("budget", "list", "--json").json["budgets"]
    assert [(b["name"], b["limit_usd"]) for b in budgets] == [("daily", 2.5), ("each", 1.0)]
    assert run("budget", "set", "daily", "much", "--tenant", TENANT).code == 2
    assert run("budget", "set", "daily", "2e9", "--tenant", TENANT).code == 4
    assert run("budget", "drop", "daily", "--tenant", TENANT, "--yes").out == "dropped\n"
    assert run("budget", "drop", "daily", "--tenant", TENANT, "--yes").code == 4
    assert run("budget", "drop", "each", "--tenant", TENANT, "-y", "--json").json == {
        "dropped": "each"
    }
