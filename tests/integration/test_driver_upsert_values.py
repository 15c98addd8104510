"""A value is stored alike, or refused alike, whichever way an upsert sends it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import uuid
from collections.abc import Iterator
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import pytest
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

import routeledger
from routeledger import Ledger, _calls
from routeledger._rows import BinaryForm, NotBinary
from tests.conftest import Database

JSON, COPY = 10**9, 0
UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def ledger(db: Database) -> Iterator[Ledger]:
    """A client that may write and no more."""
    db.execute(
        """
        create type mood as enum ('sad', 'ok');
        create domain positive as int check (value > 0);
        create domain small_positive as positive check (value < 10);
        create type pair as (a int, b text)
        """
    )
    with routeledger.connect(db.dsn_as("writer")) as ledger:
        yield ledger


class Mood(Enum):
    """A word of an enum type."""

    OK = "ok"


# types that psycopg dumps inexactly, or not at all, or whose text jsonb would rewrite
NEVER_COPIED = {"real", "json", "jsonb[]", "int4range", "inet", "pair", "oid"}
TYPES = """
bool, smallint, int, bigint, real, double precision, numeric, numeric(10,2), text, varchar(3), char(4),
mood, positive, small_positive, timestamp, timestamptz, date, time, timetz, interval, uuid, bytea, json,
jsonb, int[], bigint[], text[], double precision[], uuid[], jsonb[], int4range, inet, pair, oid
""".replace("(10,2)", "(10;2)").split(",")  # fmt: skip
VALUES: list[Any] = [
    None, True, 5, -(2**31), 2**31, 2**63, 10**30, 3.0, 3.5, 1.1, 1e300, 1e-50, float("nan"),
    float("-inf"), Decimal("1.10"), Decimal("NaN"), Decimal("1e400"), "5", "ok", "x" * 5, "true",
    "{1,2}", "2026-01-01", "00000000-0000-0000-0000-000000000007", Mood.OK, b"ab", bytearray(b"c"),
    dt.datetime(2026, 1, 1, 5), dt.datetime(2026, 1, 1, 23, 0, 0, 5, dt.timezone(dt.timedelta(hours=-5))),
    dt.date(2026, 1, 2), dt.time(5, 6), dt.time(5, 6, tzinfo=UTC), dt.timedelta(-1, 5, 7),
    uuid.UUID(int=7), {"a": 1}, {"a": float("nan")}, {"d": Decimal("1.0"), "t": START}, [1, 2], ["a"],
    [], [None, 1], ["a", None], [[1, 2], [3, 4]], [2**40], [1.5], [float("inf")], [uuid.UUID(int=1)],
    {1}, Jsonb({"b": [1]}), Range(1, 5), ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_network("10.0.0.0/8"), (1, "x"), np.int64(5), np.float64(2.5), np.array([1, 2]),
    pd.Timestamp("2026-01-01T00:00:00Z"), pd.NaT, pd.NA, "a\x00b", "\ud800", object(),
]  # fmt: skip


@pytest.mark.parametrize("kind", [text.strip().replace(";", ",") for text in TYPES])
def test_every_value_ends_the_same_way(ledger: Ledger, db: Database, kind: str) -> None:
    """No value is taken for another type's binary form, and none is cut to fit."""
    db.execute(f"create table m (k int primary key, v {kind}); grant all on m to public")
    rows = [{"k": k, "v": value} for k, value in enumerate(VALUES)]
    result = ledger.upsert("m", rows, copy_threshold=JSON)
    refused = {refusal.ord - 1 for refusal in result.refusals}
    assert result.received == result.inserted + result.refused == len(VALUES)
    stored = dict(db.execute("select k, v::text from m"))
    assert len(stored) == result.inserted
    db.execute("truncate m")
    columns = [row[1:] for row in db.execute(_calls.UPSERT_COLUMNS, {"target": "m"})]
    copied = 0
    for k, value in enumerate(VALUES):
        try:
            BinaryForm(columns).fit([(k, value)])
        except NotBinary:
            continue  # goes as JSON either way
        copied += 1
        result = ledger.upsert("m", [{"k": k, "v": value}], copy_threshold=COPY)
        assert result.refused == (k in refused), value
    for k, text in db.execute("select k, v::text from m"):
        assert text == stored[k], VALUES[k]
    assert bool(copied) is (kind not in NEVER_COPIED)
