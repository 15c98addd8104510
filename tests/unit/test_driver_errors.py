"""The driver's exceptions: chosen by SQLSTATE, whole, and fit to travel."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout

from routeledger import errors
from routeledger.types import Refusal, RowResult, UpsertResult


def test_every_code_has_one_class_in_its_group() -> None:
    groups = {
        "RL1": errors.BadArgument,
        "RL2": errors.NotFound,
        "RL3": errors.Conflict,
        "RL4": errors.LeaseError,
        "RL5": errors.LimitExceeded,
        "RL9": errors.InstallError,
    }
    for code, kind in errors.ERRORS.items():
        assert issubclass(kind, groups[code[:3]])
        assert kind.code == code
        # MissingArgument is missing_argument
        assert kind.__name__ == "".join(w.capitalize() for w in kind.default_name.split("_"))
        assert kind.__name__ in errors.__all__
        assert not kind.retryable


@pytest.mark.parametrize(
    ("exc", "kind", "retryable"),
    [
        (pg.SerializationFailure("x"), errors.LedgerBusy, True),
        (pg.DeadlockDetected("x"), errors.LedgerBusy, True),
        (pg.LockNotAvailable("x"), errors.LedgerBusy, True),
        (pg.AdminShutdown("x"), errors.LedgerUnavailable, True),
        (pg.CannotConnectNow("x"), errors.LedgerUnavailable, True),
        (pg.ConnectionFailure("x"), errors.LedgerUnavailable, True),
        (psycopg.OperationalError("the connection is lost"), errors.LedgerUnavailable, True),
        (psycopg.InterfaceError("closed"), errors.LedgerUnavailable, True),
        (PoolTimeout("x"), errors.LedgerUnavailable, True),
        (pg.DiskFull("x"), errors.LedgerUnavailable, False),
        (pg.ReadOnlySqlTransaction("x"), errors.LedgerUnavailable, False),
        (pg.QueryCanceled("x"), errors.LedgerUnavailable, False),
        (PoolClosed("x"), errors.LedgerClosed, False),
        (pg.InsufficientPrivilege("x"), errors.LedgerError, False),
        (psycopg.DataError("a NUL"), errors.MalformedRow, False),
    ],
)
def test_psycopg_errors_are_translated_by_state(
    exc: Exception, kind: type[errors.LedgerError], retryable: bool
) -> None:
    error = errors.translate(exc)
    assert type(error) is kind
    assert error.retryable is retryable
    assert errors.translate(error) is error


def test_an_unknown_code_becomes_its_group() -> None:
    error = errors.from_code("RL399", "new", {"a": 1}, "do")
    assert type(error) is errors.Conflict
    assert (error.sqlstate, error.message, error.detail, error.hint) == (
        "RL399",
        "new",
        {"a": 1},
        "do",
    )


def test_an_error_tells_all_and_can_be_pickled_and_copied() -> None:
    error = errors.IdReused("m", detail={"id": "x"}, hint="h", constraint="c")
    assert str(error) == 'RL301 id_reused: m {"id": "x"}\nHINT: h'
    for twin in (pickle.loads(pickle.dumps(error)), error.copy()):
        assert type(twin) is errors.IdReused
        assert twin is not error
        assert twin.__dict__ == error.__dict__
        assert str(twin) == str(error)


def test_what_an_upsert_had_written_travels_with_its_error() -> None:
    error = errors.BatchReused("m")
    assert error.partial is None
    error.partial = UpsertResult(3, 1, 1, 0, 0, 1, [Refusal(2, "RL115", "m", {"a": 1}, "h")])
    twin = pickle.loads(pickle.dumps(error))
    assert twin.partial == error.partial
    assert isinstance(twin.partial.refusals[0].error, errors.NoKey)


def test_a_refused_row_carries_the_single_forms_error() -> None:
    row: RowResult[Any] = RowResult(1, "refused", "RL201", "m", {"id": 1}, "h", None)
    assert isinstance(row.error, errors.DecisionNotFound)
    with pytest.raises(errors.DecisionNotFound):
        row.unwrap()
    assert RowResult(1, "accepted", None, None, None, None, 7).unwrap() == 7
    assert RowResult(1, "accepted", None, None, None, None, 7).error is None
