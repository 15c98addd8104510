"""Simulated providers and the ranking: deterministic, and as unreliable as they say."""

from __future__ import annotations

import asyncio
import gzip
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path
from time import perf_counter

import pytest

from routeledger.demo import fleet
from routeledger.demo.fleet import AGENTS, MODELS, Agent, Model, agent_for, rank
from routeledger.demo.providers import (
    CLIENT_TIMEOUT_MS,
    HANG_UP,
    RATE_LIMIT,
    Answers,
    ProviderError,
    Providers,
    Reply,
)
from routeledger.demo.trace import Request, generate

SUPPORT = AGENTS[0]
TRACE = generate(4_000, 2)


def providers(**changes: object) -> Providers:
    return Providers(MODELS, TRACE.span_s, **changes)  # type: ignore[arg-type]


def outcome(p: Providers, request: Request, agent: Agent, slug: str, attempt_no: int = 1) -> object:
    try:
        return p.plan(request, agent, slug, attempt_no)
    except ProviderError as error:
        return (error.error_type, error.http_status, error.retry_after_ms, error.latency_ms)


def test_same_seed_same_faults() -> None:
    once, again, other = providers(seed=5), providers(seed=5), providers(seed=6)
    first = [outcome(once, r, SUPPORT, "gpt-4o-mini") for r in TRACE.requests[:800]]
    assert first == [outcome(again, r, SUPPORT, "gpt-4o-mini") for r in TRACE.requests[:800]]
    assert first != [outcome(other, r, SUPPORT, "gpt-4o-mini") for r in TRACE.requests[:800]]
    assert [once.hangs_up_after_ms(r) for r in TRACE.requests] == [
        again.hangs_up_after_ms(r) for r in TRACE.requests
    ]


def test_order_of_calls_does_not_matter() -> None:
    p = providers()
    forwards = [outcome(p, r, SUPPORT, "gpt-4o-mini") for r in TRACE.requests[:100]]
    backwards = [outcome(p, r, SUPPORT, "gpt-4o-mini") for r in reversed(TRACE.requests[:100])]
    assert forwards == backwards[::-1]


def test_a_second_attempt_is_another_draw() -> None:
    p = providers()
    failing = [
        r for r in TRACE.requests if not isinstance(outcome(p, r, SUPPORT, "gpt-4o-mini"), Reply)
    ]
    second = [outcome(p, r, SUPPORT, "gpt-4o-mini", 2) for r in failing]
    assert any(isinstance(one, Reply) for one in second)


def test_faults_come_at_the_stated_rates() -> None:
    p = providers(incidents=())
    seen = Counter(
        one[0] if isinstance(one := outcome(p, r, SUPPORT, "gpt-4o-mini"), tuple) else "answered"
        for r in TRACE.requests
    )
    assert abs(seen["rate_limit"] / len(TRACE.requests) - RATE_LIMIT) < 0.01
    assert seen["server_error"] > 10
    assert seen["timeout"] > 3
    assert seen["answered"] > 0.9 * len(TRACE.requests)
    left = sum(p.hangs_up_after_ms(r) is not None for r in TRACE.requests)
    assert abs(left / len(TRACE.requests) - HANG_UP) < 0.005


def test_faults_look_like_those_of_providers() -> None:
    p = providers()
    for slug in ("gpt-4o-mini", "claude-3.5-sonnet", "mistral-large"):
        for r in TRACE.requests:
            one = outcome(p, r, SUPPORT, slug)
            if not isinstance(one, tuple):
                continue
            error_type, status, retry_after_ms, latency_ms = one
            if error_type == "rate_limit":
                assert status == 429
                assert 0 < retry_after_ms <= 1_000
            elif error_type == "timeout":
                assert status is None
                assert latency_ms == CLIENT_TIMEOUT_MS
            elif error_type == "overloaded":
                assert status == 529
            else:
                assert error_type == "server_error"
                assert status in (500, 502, 503)


def test_incidents_strike_one_provider_for_a_while() -> None:
    p = providers()
    strike = next(one for one in p.incidents if one.provider == "anthropic")
    share = [0, 0, 0, 0]  # failures and calls: during, elsewhen
    for r in TRACE.requests:
        during = strike.begins <= r.offset_s / TRACE.span_s < strike.ends
        failed = not isinstance(outcome(p, r, SUPPORT, "claude-3.5-sonnet"), Reply)
        share[0 if during else 2] += failed
        share[1 if during else 3] += 1
    assert share[0] / share[1] > 0.5
    assert share[2] / share[3] < 0.1


def test_prompts_that_do_not_fit_are_refused() -> None:
    agent = next(a for a in AGENTS if a.max_tokens == 4_096)
    p = providers(incidents=())
    with pytest.raises(ProviderError) as caught:
        p.plan(Request(1, 0.0, 4_097, 10), agent, "gpt-4", 1)
    assert caught.value.error_type == "context_length"
    assert caught.value.http_status == 400
    assert "8192" in caught.value.message
    fits = outcome(p, Request(1, 0.0, 4_096, 10), agent, "gpt-4")
    assert isinstance(fits, Reply) or fits[0] != "context_length"  # type: ignore[index]


def test_healthy_providers_never_fail() -> None:
    p = providers(healthy=True)
    for r in TRACE.requests[:500]:
        assert isinstance(p.plan(r, SUPPORT, "arctic-instruct", 1), Reply)
        assert p.hangs_up_after_ms(r) is None


def test_answers_are_plausible() -> None:
    p = providers(healthy=True)
    for r in TRACE.requests[:500]:
        reply = p.plan(r, SUPPORT, "claude-3-opus", 1)
        assert reply.input_tokens == r.context_tokens
        assert 0.7 * r.generated_tokens - 1 <= reply.output_tokens <= 1.3 * r.generated_tokens + 1
        assert 0 < reply.ttft_ms <= reply.latency_ms
        assert math.isfinite(reply.latency_ms)
        assert reply.correct is None


def test_time_is_compressed_but_reported_true() -> None:
    p = providers(healthy=True, speed=1_000.0)
    request = Request(9, 0.0, 1_000, 400)
    began = perf_counter()
    reply = asyncio.run(p.call(request, SUPPORT, "claude-3-opus", 1))
    took_ms = (perf_counter() - began) * 1000
    assert reply.latency_ms > 3_000
    assert took_ms < reply.latency_ms / 4


def test_recorded_answers_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "bfcl_2024_08"
    folder.mkdir()
    benchmark = MODELS["gpt-4o-mini"].benchmark
    (folder / "matrix.csv.gz").write_bytes(
        gzip.compress(
            (
                "model,category,idx,prompt_id,input_tokens,output_tokens,latency_s,correct,error_type,result_is_error\n"
                f"{benchmark},simple,0,simple_0,300,21,0.7512,1,,0\n"
                f"{benchmark},simple,1,simple_1,300,34,1.5,0,value_error:string,0\n"
                f"{benchmark},simple,2,simple_2,300,,,0,,0\n"
                "somebody-else,simple,0,simple_0,300,21,0.7512,1,,0\n"
            ).encode()
        )
    )
    answers = Answers.load(tmp_path, MODELS)
    assert answers is not None
    assert len(answers) == 2
    p = providers(healthy=True, answers=answers)
    first = p.plan(Request(0, 0.0, 555, 10), SUPPORT, "gpt-4o-mini", 1)
    assert (first.input_tokens, first.output_tokens) == (555, 21)
    assert first.latency_ms == pytest.approx(751.2)
    assert first.correct is True
    assert p.plan(Request(3, 0.0, 555, 10), SUPPORT, "gpt-4o-mini", 1).correct is False
    assert p.plan(Request(3, 0.0, 555, 10), SUPPORT, "gpt-4o", 1).correct is None
    assert Answers.load(None, MODELS) is None
    assert Answers.load(tmp_path / "none", MODELS) is None


# -- the models and the ranking --------------------------------------------------------------------


def test_agents_use_models_that_exist() -> None:
    assert math.isclose(sum(agent.share for agent in AGENTS), 1.0)
    for agent in AGENTS:
        assert set(agent.models) <= set(MODELS)


def test_agents_get_their_share() -> None:
    seen = Counter(agent_for(r, 1).name for r in TRACE.requests)
    for agent in AGENTS:
        assert abs(seen[agent.name] / len(TRACE.requests) - agent.share) < 0.03


def test_ranking_is_cheapest_first_above_the_floor() -> None:
    billing = next(agent for agent in AGENTS if agent.name == "billing")
    ranked = rank(billing, Request(0, 0.0, 1_000, 100), MODELS)
    eligible = [c for c in ranked if "drop_reason" not in c]
    costs = [MODELS[c["model_slug"]].cost(1_000, 100) for c in eligible]
    assert costs == sorted(costs, key=float)  # type: ignore[arg-type]
    assert all(c["quality"] >= billing.floor - 0.001 for c in eligible)
    dropped = [c for c in ranked if "drop_reason" in c]
    assert [c["model_slug"] for c in dropped] == ["gpt-3.5-turbo"]


def test_no_model_is_good_enough_for_the_audit() -> None:
    audit = next(agent for agent in AGENTS if agent.name == "audit")
    assert all("drop_reason" in c for c in rank(audit, TRACE.requests[0], MODELS))


def test_an_unknown_price_is_not_a_low_price() -> None:
    agent = Agent("t", "a", "x", 1, 0.0, ("arctic-instruct", "gpt-4"))
    ranked = rank(agent, Request(0, 0.0, 10, 10), MODELS)
    assert [c["model_slug"] for c in ranked] == ["gpt-4", "arctic-instruct"]


def test_catalog_rows_keep_unknown_prices_null() -> None:
    rows = {row["model_slug"]: row for row in fleet.catalog_rows(MODELS)}
    assert len(rows) >= 12
    assert rows["arctic-instruct"]["input_usd_per_mtok"] is None
    assert rows["arctic-instruct"]["output_usd_per_mtok"] is None
    assert Decimal(str(rows["gpt-4o-mini"]["input_usd_per_mtok"])) == Decimal("0.15")
    assert all(0 <= row["q_prior"] <= 1 for row in rows.values())


def test_recorded_prices_win(tmp_path: Path) -> None:
    folder = tmp_path / "bfcl_2024_08"
    folder.mkdir()
    mini, arctic = MODELS["gpt-4o-mini"], MODELS["arctic-instruct"]
    (folder / "model_prices.csv").write_text(
        "model,input_usd_per_token,output_usd_per_token,requests,correct\n"
        f"{mini.benchmark},2e-07,8e-07,1700,1485\n"
        f"{arctic.benchmark},,,1700,1107\n"
    )
    models = fleet.load_models(tmp_path)
    assert models["gpt-4o-mini"].input_usd == pytest.approx(0.2)
    assert models["gpt-4o-mini"].output_usd == pytest.approx(0.8)
    assert models["arctic-instruct"].input_usd is None
    assert models["gpt-4o"] == MODELS["gpt-4o"]
    assert fleet.load_models(None) == dict(MODELS)


def test_cost() -> None:
    model = Model("m", "p", 1.0, 2.0, 1, 1, 0.5, 1, 1, "b")
    assert model.cost(1_000_000, 500_000) == 2.0
    assert MODELS["arctic-instruct"].cost(1, 1) is None
