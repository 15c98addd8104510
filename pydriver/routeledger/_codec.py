"""How values travel: JSON for rows and documents, with exact decimals and nothing silently lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from .errors import MalformedRow
from .types import Candidate

Row = Mapping[str, Any]
Params = dict[str, Any]

JSON_PARAMS = (
    "candidates",
    "metadata",
    "attempts",
    "request",
    "response",
    "settings",
    "overrides",
)
_NUL = "\\u0000"


def _default(value: object) -> object:
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    if isinstance(value, Candidate):
        return value.as_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    msg = f"a {type(value).__name__} has no JSON form"
    raise TypeError(msg)


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
).encode


def dumps(value: object) -> str:
    """JSON text that Postgres takes as jsonb.

    Raises:
        MalformedRow: for what jsonb cannot hold: NaN and infinities, NUL characters, unpaired
            surrogates, objects without a JSON form.
    """
    try:
        text = _encode(value)
        text.encode()  # unpaired surrogates
    except (TypeError, ValueError, RecursionError) as exc:
        raise _malformed(str(exc)) from None
    if _NUL in text and _NUL in text.replace("\\\\", ""):
        raise _malformed("a text holds a NUL character")
    return text


def _malformed(reason: str) -> MalformedRow:
    return MalformedRow(
        "a row does not have the shape of this routine's parameters",
        detail={"reason": reason},
        hint="Pass JSON values without NUL characters, and numbers that are finite.",
    )


def dumps_rows(rows: Sequence[Row]) -> tuple[str, dict[int, MalformedRow]]:
    """The JSON array of all rows that can travel, and an error for each position that cannot."""
    try:
        return dumps(rows), {}
    except MalformedRow:
        pass
    texts: list[str] = []
    refused: dict[int, MalformedRow] = {}
    for n, row in enumerate(rows):
        try:
            texts.append(dumps(row))
        except MalformedRow as exc:  # noqa: PERF203
            refused[n] = exc
    return f"[{','.join(texts)}]", refused


def single_params(row: Row, defaults: Row, arrays: Collection[str] = ()) -> Params:
    """The parameters of a single form: documents as JSON text, what is an array to it as a list,
    absent ones at their defaults."""
    params: Params = {**defaults, **row}
    for key in JSON_PARAMS:
        value = params.get(key)
        if value is not None and key not in arrays:
            params[key] = dumps(value)
    for key in arrays:
        value = params.get(key)
        if value is not None and not isinstance(value, (list, str)):
            params[key] = list(value)
    return params


def clean_text(text: str, limit: int) -> str:
    """The text as Postgres can hold it, cut to a number of characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
