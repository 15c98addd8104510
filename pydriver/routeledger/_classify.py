"""What an exception of a provider's client says, without importing any provider's client."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._codec import clean_text

__all__ = ["Failure", "classify"]

MESSAGE_LIMIT = 2000
_STATUS_ATTRIBUTES = ("status_code", "http_status", "status", "code")
_TYPES = {
    400: "bad_request",
    401: "authentication",
    403: "permission_denied",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "request_too_large",
    422: "bad_request",
    425: "too_early",
    429: "rate_limited",
    499: "client_closed_request",
    503: "unavailable",
    504: "timeout",
    529: "overloaded",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is recorded of a failed attempt. `retry_after_ms` is what the provider asked for."""

    error_type: str
    error_message: str | None = None
    http_status: int | None = None
    retry_after_ms: int | None = None


def classify(exc: BaseException) -> Failure:
    """Read the HTTP status, the retry-after and the kind of error off an exception.

    Looks at ``status_code``, ``http_status``, ``status`` and ``code`` of the exception and of its
    ``response``; at ``retry-after-ms`` and ``retry-after`` among the headers of the response, of
    the exception, and in ``litellm_response_headers``; and at the names of its classes for
    timeouts and broken connections.
    """
    status = _http_status(exc)
    try:
        message = str(exc) or type(exc).__name__
    except Exception:  # noqa: BLE001 - a foreign __str__ must not hide the failure
        message = type(exc).__name__
    return Failure(
        error_type=_error_type(exc, status),
        error_message=clean_text(message, MESSAGE_LIMIT),
        http_status=status,
        retry_after_ms=_retry_after_ms(exc),
    )


def _error_type(exc: BaseException, status: int | None) -> str:
    if status is not None:
        if status in _TYPES:
            return _TYPES[status]
        return "server_error" if status >= 500 else "client_error"
    names = [kind.__name__ for kind in type(exc).__mro__]
    if isinstance(exc, TimeoutError) or any("Timeout" in name for name in names):
        return "timeout"
    if isinstance(exc, ConnectionError) or any(
        "ConnectError" in name or "ConnectionError" in name for name in names
    ):
        return "connection_error"
    return clean_text(type(exc).__name__, 100)


def _http_status(exc: BaseException) -> int | None:
    for source in (exc, getattr(exc, "response", None)):
        for name in _STATUS_ATTRIBUTES:
            value = getattr(source, name, None)
            if isinstance(value, str) and value.isdecimal():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
                return int(value)
    return None


def _retry_after_ms(exc: BaseException) -> int | None:
    response = getattr(exc, "response", None)
    for headers in (
        getattr(response, "headers", None),
        getattr(exc, "headers", None),
        getattr(exc, "litellm_response_headers", None),
    ):
        found = _from_headers(headers)
        if found is not None:
            return found
    return _milliseconds(getattr(exc, "retry_after", None), 1000)


def _from_headers(headers: Any) -> int | None:
    if headers is None:
        return None
    try:
        lower = {str(k).lower(): v for k, v in dict(headers).items()}
    except (TypeError, ValueError):
        return None
    if (found := _milliseconds(lower.get("retry-after-ms"), 1)) is not None:
        return found
    value = lower.get("retry-after")
    if (found := _milliseconds(value, 1000)) is not None:
        return found
    if isinstance(value, str):
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0, round((at.timestamp() - time.time()) * 1000))
    return None


def _milliseconds(value: Any, factor: int) -> int | None:
    if value is None or isinstance(value, (bool, Mapping)):
        return None
    try:
        ms = float(value) * factor
    except (TypeError, ValueError):
        return None
    return round(ms) if 0 <= ms < 10**12 else None
