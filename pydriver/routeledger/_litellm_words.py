"""What LiteLLM's dictionaries say, as the ledger's routines take it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import litellm

from ._classify import classify
from ._codec import clean_text
from ._litellm_books import Call, Facts, compact

_REFUSALS = {
    "ContextWindowExceededError": "context_length",
    "context_length_exceeded": "context_length",
    "ContentPolicyViolationError": "content_policy",
    "content_policy_violation": "content_policy",
    "content_filter": "content_policy",
}
"""Refusals that another model may accept, by the exception's name and by OpenAI's error code."""
_ROUTED = ("attempted_retries", "attempted_fallbacks")


def word(value: Any) -> str | None:
    return clean_text(str(value), 200) if value else None


def call_key(kwargs: Mapping[str, Any]) -> str | None:
    """The call id. Wrappers around one call share its logging object, not its call id."""
    log = kwargs.get("litellm_logging_obj")
    key = getattr(log, "litellm_call_id", None) or kwargs.get("litellm_call_id")
    return str(key) if key else None


def metadata_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # where there are both, the former is the client's own
    for name in ("metadata", "litellm_metadata"):
        for source in (kwargs.get("litellm_params"), kwargs):
            said = source.get(name) if isinstance(source, Mapping) else None
            if isinstance(said, Mapping):
                found.update(said)
    return found


def read_call(kwargs: Mapping[str, Any]) -> Call | None:
    key = call_key(kwargs)
    model = kwargs.get("model")
    if key is None or not isinstance(model, str) or not model:
        return None
    params = kwargs.get("litellm_params") or {}
    log = kwargs.get("litellm_logging_obj")
    trace = (
        kwargs.get("litellm_trace_id")
        or params.get("litellm_trace_id")
        or getattr(log, "litellm_trace_id", None)
        or key
    )
    said = metadata_of(kwargs)
    info = kwargs.get("model_info") or params.get("model_info") or said.get("model_info") or {}
    slug, provider = _slug(
        model,
        kwargs.get("custom_llm_provider") or params.get("custom_llm_provider"),
        kwargs.get("api_base") or params.get("api_base"),
        info.get("base_model"),
    )
    return Call(
        key,
        str(trace),
        slug,
        provider,
        bool(kwargs.get("stream")),
        said,
        caller(),
        continues(said),
    )


def continues(said: Mapping[str, Any]) -> bool | None:
    """Whether the Router says that this is a retry or a fallback; None without a Router."""
    numbers = [said.get(name) for name in _ROUTED]
    return None if all(n is None for n in numbers) else any(numbers)


def caller() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:
        return threading.get_ident()


def slug_of_deployment(deployment: Mapping[str, Any]) -> tuple[str, str | None]:
    params = deployment.get("litellm_params") or {}
    info = deployment.get("model_info") or {}
    return _slug(
        params["model"],
        params.get("custom_llm_provider"),
        params.get("api_base"),
        info.get("base_model"),
    )


@functools.lru_cache(maxsize=4096)
def _slug(
    model: str, provider: str | None, api_base: str | None, base_model: str | None
) -> tuple[str, str | None]:
    """The model's slug, ``provider/model``, and its provider."""
    try:
        name, found, *_ = litellm.get_llm_provider(
            model=model, custom_llm_provider=provider, api_base=api_base
        )
    except Exception:  # noqa: BLE001 - a name that LiteLLM does not know is a name all the same
        name, found = model, provider
    slug = base_model or name
    if found and not slug.startswith(f"{found}/"):
        slug = f"{found}/{slug}"
    return clean_text(slug, 300), found and clean_text(str(found), 300)


def failure(exception: BaseException) -> Facts:
    found = classify(exception)
    body = getattr(exception, "body", None)
    words = [kind.__name__ for kind in type(exception).__mro__]
    words += [str(body.get(name)) for name in ("code", "type")] if isinstance(body, Mapping) else []
    special = next((_REFUSALS[word] for word in words if word in _REFUSALS), None)
    return compact(
        {
            "error_type": special or found.error_type,
            "error_message": found.error_message,
            "http_status": found.http_status,
            "retry_after_ms": found.retry_after_ms,
        }
    )


def _standard(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    found = kwargs.get("standard_logging_object")
    return found if isinstance(found, Mapping) else {}


def _cost(said: Mapping[str, Any]) -> Decimal | None:
    cost = said.get("response_cost")
    return None if cost is None else Decimal(str(cost))


def billed(kwargs: Mapping[str, Any]) -> Facts:
    """What a failed attempt cost, where LiteLLM says so: streams that broke off."""
    said = _standard(kwargs)
    cost = _cost(said)
    if not cost:
        return {}
    return {
        "input_tokens": said.get("prompt_tokens") or 0,
        "output_tokens": said.get("completion_tokens") or 0,
        "cost_usd": cost,
    }


def usage(kwargs: Mapping[str, Any], response: Any) -> Facts:
    said = _standard(kwargs)
    usage = (said.get("metadata") or {}).get("usage_object") or {}
    read = usage.get("prompt_tokens_details") or {}
    written = usage.get("completion_tokens_details") or {}
    identity = said.get("id")
    model = getattr(response, "model", None)
    reasons = [getattr(c, "finish_reason", None) for c in getattr(response, "choices", None) or ()]
    began, first, ended = (
        said.get(name) for name in ("startTime", "completionStartTime", "endTime")
    )
    return compact(
        {
            "input_tokens": said.get("prompt_tokens") or 0,
            "output_tokens": said.get("completion_tokens") or 0,
            "cache_read_input_tokens": read.get("cached_tokens")
            or usage.get("cache_read_input_tokens"),
            "cache_creation_input_tokens": usage.get("cache_creation_input_tokens"),
            "reasoning_output_tokens": written.get("reasoning_tokens"),
            "cost_usd": _cost(said),
            "latency_ms": _milliseconds(began, ended),
            "ttft_ms": _milliseconds(began, first) if said.get("stream") else None,
            "provider_response_id": clean_text(str(identity), 500) if identity else None,
            "response_model": clean_text(str(model), 300) if model else None,
            "finish_reasons": [str(r) for r in reasons if r] or None,
        }
    )


def _milliseconds(began: Any, ended: Any) -> float | None:
    if not isinstance(began, (int, float)) or not isinstance(ended, (int, float)):
        return None
    return round(max(0.0, ended - began) * 1000, 3)


def times(kwargs: Mapping[str, Any]) -> Facts:
    said = _standard(kwargs)
    names = {"started_at": "startTime", "completed_at": "endTime"}
    return {
        name: datetime.fromtimestamp(said[theirs], timezone.utc)
        for name, theirs in names.items()
        if isinstance(said.get(theirs), (int, float))
    }


def estimate(messages: list[Any] | None) -> int | None:
    """Tokens of the request, at four characters a token; None when there are no messages."""
    if not messages:
        return None
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    return max(1, sum(len(c if isinstance(c, str) else str(c or "")) for c in contents) // 4)
