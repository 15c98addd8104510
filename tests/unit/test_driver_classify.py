"""What the driver reads off exceptions of providers' clients."""

from __future__ import annotations

import email.utils
import time
from types import SimpleNamespace
from typing import Any

import pytest

from routeledger import classify


def error(name: str = "APIError", message: str = "no", **attributes: Any) -> Exception:
    exc: Exception = type(name, (Exception,), {})(message)
    for key, value in attributes.items():
        setattr(exc, key, value)
    return exc


@pytest.mark.parametrize(
    ("exc", "error_type", "status"),
    [
        (error(status_code=429), "rate_limited", 429),
        (error(http_status=503), "unavailable", 503),
        (error(response=SimpleNamespace(status_code=500, headers={})), "server_error", 500),
        (error(status_code="504"), "timeout", 504),
        (error(code=418), "client_error", 418),
        (error(code="rate_limit_exceeded", status_code=429), "rate_limited", 429),
        (error(code=7), "APIError", None),
        (error(status_code=True), "APIError", None),
        (error("ReadTimeout"), "timeout", None),
        (TimeoutError("slow"), "timeout", None),
        (ConnectionResetError("gone"), "connection_error", None),
        (error("ConnectError"), "connection_error", None),
        (KeyError("usage"), "KeyError", None),
    ],
)
def test_kind_and_status(exc: Exception, error_type: str, status: int | None) -> None:
    failure = classify(exc)
    assert (failure.error_type, failure.http_status) == (error_type, status)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"response": SimpleNamespace(headers={"Retry-After": "2"})}, 2000),
        ({"headers": {"retry-after-ms": "150", "retry-after": "9"}}, 150),
        ({"litellm_response_headers": {"retry-after": "0.5"}}, 500),
        ({"retry_after": 1.5}, 1500),
        ({"headers": {"retry-after": "soon"}}, None),
        ({"headers": {"retry-after": "-4"}}, None),
        ({"headers": {"retry-after": "nan"}}, None),
        ({"headers": "rubbish"}, None),
        ({}, None),
    ],
)
def test_retry_after(attributes: dict[str, Any], expected: int | None) -> None:
    assert classify(error(**attributes)).retry_after_ms == expected


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    found = classify(error(headers={"retry-after": date})).retry_after_ms
    assert found is not None
    assert 27_000 < found < 31_000


def test_messages_are_fit_for_the_ledger() -> None:
    assert classify(error(message="a\x00b")).error_message == "a\ufffdb"
    long = classify(error(message="x" * 100_000)).error_message
    assert long is not None
    assert len(long) < 10_000
    assert classify(error(message="\ud800")).error_message == "?"
    assert classify(TimeoutError()).error_message == "TimeoutError"

    class RudeError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert classify(RudeError()).error_message == "RudeError"
