"""How values travel, ids, and the version handshake's reading of versions."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from routeledger import Candidate, _handshake, errors
from routeledger._codec import clean_text, dumps, dumps_rows, single_params
from routeledger._ids import IdMaker
from routeledger._routines import INSERT_DECISION
from routeledger._version import __version__


def test_values_keep_their_exact_meaning() -> None:
    some_id = UUID(int=7)
    text = dumps(
        {
            "id": some_id,
            "cost": Decimal("0.000001234500"),
            "at": datetime(2026, 1, 2, tzinfo=timezone.utc),
            "lease": timedelta(minutes=2),
            "candidates": (Candidate("a", "p", extra={"q": 1}), "b"),
            "names": {"ü"},
        }
    )
    assert json.loads(text) == {
        "id": str(some_id),
        "cost": "0.000001234500",
        "at": "2026-01-02T00:00:00+00:00",
        "lease": "120.0 seconds",
        "candidates": [{"q": 1, "model_slug": "a", "provider": "p"}, "b"],
        "names": ["ü"],
    }


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "a\x00b", "\ud800", object(), b"bytes", {"k": {"\x00"}}]
)
def test_what_jsonb_cannot_hold_is_refused_alone(value: Any) -> None:
    with pytest.raises(errors.MalformedRow):
        dumps({"v": value})
    payload, refused = dumps_rows([{"v": 1}, {"v": value}, {"v": 3}])
    assert json.loads(payload) == [{"v": 1}, {"v": 3}]
    assert list(refused) == [1]


def test_a_backslash_before_u0000_is_only_text() -> None:
    assert json.loads(dumps({"v": r"\u0000"})) == {"v": r"\u0000"}
    assert json.loads(dumps({"v": r"\\u0000"})) == {"v": r"\\u0000"}


def test_single_forms_get_documents_as_text_and_defaults() -> None:
    params = single_params({"tenant_id": "t", "metadata": {"a": 1}}, INSERT_DECISION.defaults)
    assert params["metadata"] == '{"a":1}'
    assert params["candidates"] == "[]"
    assert params["traffic_class"] == "production"
    assert params["agent_id"] is None


def test_clean_text() -> None:
    assert clean_text("abc", 3) == "abc"
    assert clean_text("abcd", 3) == "ab…"
    assert clean_text("a\x00", 9) == "a\ufffd"


def test_ids_are_uuids_of_version_7_dated_now() -> None:
    make = IdMaker()
    made = [UUID(make()) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert [m.int >> 64 for m in made] == sorted(m.int >> 64 for m in made)
    for one in made:
        assert (one.version, one.variant) == (7, "specified in RFC 4122")
        assert abs((one.int >> 80) / 1000 - time.time()) < 5
    ahead = UUID(IdMaker(3_600_000)())
    assert 3590 < (ahead.int >> 80) / 1000 - time.time() < 3610


def test_versions() -> None:
    dsn = "dbname=d password=secret"
    _handshake.check("0.1.0", dsn)
    _handshake.check("0.2.7", dsn)
    major, minor, _ = __version__.split(".")
    ahead = f"{major}.{int(minor) + 1}.0"
    with pytest.raises(errors.SchemaTooNew) as newer:
        _handshake.check(ahead, dsn)
    assert newer.value.hint == f"Run: pip install --upgrade 'routeledger>={ahead}'"
    with pytest.raises(errors.OtherVersionInstalled) as older:
        _handshake.check("0.0.9", dsn)
    assert older.value.hint == "Run: routeledger upgrade --dsn dbname=d"


def test_commands_never_show_the_password() -> None:
    assert _handshake.command("install", "") == "routeledger install"
    shown = _handshake.command("install", "postgresql://u:secret@h:5433/d")
    assert "secret" not in shown
    assert "5433" in shown
    assert _handshake.command("install", "not = = a dsn") == "routeledger install"
