"""LiteLLM's proxy, a process of its own, with the logger as a callback of its configuration."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routeledger._ids import IdMaker
from tests.conftest import Database
from tests.litellm_books import HELLO, agrees, attempts, deployments, eventually, outcomes
from tests.loopback import Loopback, answering, failing
from tests.servers import REPO

KEY = "sk-of-the-tests"
new_id = IdMaker()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Ask = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def start_proxy(db: Database, provider: Loopback, tmp_path: Path) -> Iterator[Callable[..., Ask]]:
    """`start_proxy(callbacks, groups, …)` starts one and returns what asks it."""
    running: list[subprocess.Popen[bytes]] = []

    def start(callback: str, groups: dict[str, list[str]], **router_settings: Any) -> Ask:
        config = {
            "model_list": deployments(provider, groups),
            "litellm_settings": {"callbacks": callback, "telemetry": False},
            "router_settings": {"retry_after": 0, **router_settings},
            "general_settings": {"master_key": KEY, "always_include_stream_usage": True},
        }
        (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(
            [
                sys.executable, "-c", "from litellm import run_server; run_server()",
                "--config", str(tmp_path / "config.yaml"),
                "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False",
            ],
            env={
                **os.environ,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "PYTHONPATH": str(REPO / "pydriver"),
                "ROUTELEDGER_DSN": db.dsn_as("writer"),
                "ROUTELEDGER_TENANT": "acme",
                "ROUTELEDGER_SPOOL": str(tmp_path / "spool"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )  # fmt: skip
        running.append(process)
        log.close()

        def ask(path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}",
                data=None if body is None else json.dumps(body).encode(),
                headers={
                    "authorization": f"Bearer {KEY}",
                    "content-type": "application/json",
                    **{name.replace("_", "-"): value for name, value in headers.items()},
                },
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, dict(answer.headers), answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, dict(error.headers), error.read().decode()

        for _ in range(1500):
            try:
                if ask("/health/liveliness")[0] == 200:
                    return ask
            except OSError:
                pass
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text()[-5000:])

    yield start
    for process in running:
        process.terminate()
        process.wait(30)
    assert not (tmp_path / "spool").exists()


async def test_requests_over_http_are_decisions(
    start_proxy: Callable[..., Ask], db: Database, provider: Loopback
) -> None:
    ask = start_proxy(
        "routeledger.litellm.proxy_logger",
        {"a": ["gpt-4o-mini"], "b": ["gpt-4o"], "c": ["gpt-4.1"]},
        fallbacks=[{"a": ["b"]}],
        num_retries=1,
        allowed_fails=1000,
    )
    await retries_failures_and_streams(ask, db, provider)
    await thirty_two_at_a_time(ask, db, provider)
    agrees(db, provider)


async def retries_failures_and_streams(ask: Ask, db: Database, provider: Loopback) -> None:
    provider.plan("gpt-4o-mini", failing(429, retry_after=0.05))
    provider.plan("gpt-4o", answering(input_tokens=1000, output_tokens=10))
    provider.plan("gpt-4.1", failing(500))
    decision_id = new_id()
    said = {"task_type": "greeting", "tenant_id": "another's", "traffic_class": "replay"}
    body = {"model": "a", "messages": HELLO, "metadata": said}
    status, headers, _ = await asyncio.to_thread(
        ask, "/v1/chat/completions", body, x_litellm_trace_id=decision_id
    )
    assert status == 200
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o", "succeeded", 3)])
    [(*who, cost)] = db.execute(
        "select tenant_id, id::text, task_type, traffic_class, cost_usd from routeledger.decisions"
    )
    assert who == ["acme", decision_id, "greeting", "production"]
    assert float(cost) == float(headers["x-litellm-response-cost"])

    status, *_ = await asyncio.to_thread(
        ask, "/v1/chat/completions", {"model": "c", "messages": HELLO}
    )
    assert status == 500
    await eventually(lambda: outcomes(db)[-1] == ("openai/gpt-4.1", "failed", 2))

    body = {"model": "b", "messages": HELLO, "stream": True}
    status, _, text = await asyncio.to_thread(ask, "/v1/chat/completions", body)
    assert status == 200
    assert "[DONE]" in text
    await eventually(lambda: outcomes(db)[-1] == ("openai/gpt-4o", "succeeded", 1))
    assert db.value(
        "select (input_tokens, output_tokens) = (1000, 10) from routeledger.attempts"
        " order by outcome_id desc limit 1"
    )


async def thirty_two_at_a_time(ask: Ask, db: Database, provider: Loopback) -> None:
    for model in ("gpt-4o-mini", "gpt-4o"):
        provider.plan(model, *[failing(500), answering(), answering()] * 8, answering())
    body = {"model": "a", "messages": HELLO, "metadata": {"task_type": "crowd"}}
    limit = asyncio.Semaphore(32)

    async def one() -> tuple[int, float]:
        async with limit:
            status, headers, _ = await asyncio.to_thread(ask, "/v1/chat/completions", body)
            return status, float(headers.get("x-litellm-response-cost") or 0)

    def ended() -> list[tuple[str | None, float | None]]:
        return db.execute(
            "select outcome_status, cost_usd from routeledger.decisions where task_type = 'crowd'"
        )

    answers = await asyncio.gather(*(one() for _ in range(96)))
    wanted = Counter("succeeded" if status == 200 else "failed" for status, _ in answers)
    await eventually(lambda: Counter(status for status, _ in ended()) == wanted)
    costs = [round(float(cost), 9) for status, cost in ended() if status == "succeeded" and cost]
    assert sorted(costs) == sorted(round(cost, 9) for status, cost in answers if status == 200)


async def test_a_logger_of_one_s_own_beside_the_configuration(
    start_proxy: Callable[..., Ask], db: Database, provider: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "my_books.py").write_text(
        "import os\n"
        "from routeledger.litellm import RouteLedgerLogger\n"
        "books = RouteLedgerLogger(\n"
        "    os.environ['ROUTELEDGER_DSN'], tenant=lambda said: said['customer'],\n"
        "    spool_path=os.environ['ROUTELEDGER_SPOOL'])\n"
    )
    ask = start_proxy("my_books.books", {"a": ["gpt-4o-mini"]})
    body = {"model": "a", "messages": HELLO, "metadata": {"customer": "globex"}}
    status, *_ = await asyncio.to_thread(ask, "/v1/chat/completions", body)
    assert status == 200
    await eventually(lambda: outcomes(db) == [("openai/gpt-4o-mini", "succeeded", 1)])
    assert db.value("select tenant_id from routeledger.decisions") == "globex"
    assert attempts(db) == [("openai/gpt-4o-mini", "succeeded", None, None)]
