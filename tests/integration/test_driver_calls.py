"""The driver says what the database says: signatures, defaults, results, errors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from routeledger import (
    Ledger,
    _calls,
    _migrations,
    _routines,
    alembic,
    constraints,
    django,
    errors,
    types,
)
from tests.conftest import Database

STATEMENTS = {
    name: text
    for name, text in vars(_calls).items()
    if name.isupper() and not name.startswith("_") and isinstance(text, str)
}
CALLS = {
    name: text
    for name, text in STATEMENTS.items()
    if re.search(r"routeledger\.\w+\(\s*p_\w+ =>", text)
}
VIEWS = {
    "DECISIONS": ("decisions", types.DecisionRow),
    "IN_FLIGHT": ("in_flight", types.InFlightRow),
    "ORPHANS": ("orphans", types.OrphanRow),
    "RECONCILIATION": ("reconciliation", types.ReconciliationRow),
    "VERDICTS": ("verdicts", types.VerdictRow),
    "VERDICT_WITHDRAWALS": ("verdict_withdrawals", types.VerdictWithdrawal),
    "JUDGE_FINDINGS": ("judge_findings", types.JudgeFinding),
    "JUDGE_AGREEMENT": ("judge_agreement", types.JudgeAgreement),
    "JUDGE_DRIFT": ("judge_drift", types.JudgeDrift),
    "JUDGE_QUEUE": ("judge_queue", types.JudgeQueue),
}


def parse(text: str) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """The routine called, its arguments (name, placeholder, type), and the columns selected."""
    found = re.search(r"routeledger\.(\w+)\((.*)\)", text, re.DOTALL)
    assert found
    name, inside = found.groups()
    arguments = re.findall(r"(p_\w+) => %\((\w+)\)s::([\w ]+(?:\[\])?)", inside)
    assert len(arguments) == inside.count("=>")
    head = text.split("from routeledger.")[0]
    scalar = re.search(r"\) as \w+\s*$", text) or text.lstrip().startswith("call")
    columns = [] if scalar else re.findall(r"\w+", head)[1:]
    return name, arguments, columns


def signature(db: Database, name: str) -> dict[str, Any]:
    rows = db.execute(
        """
        select p.proargnames, p.proargmodes::text[], p.pronargs,
          array(
            select format_type(t, null)
            from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality u (t, n)
            order by n),
          p.pronargdefaults, pg_get_function_arguments(p.oid)
        from pg_proc p
        where p.pronamespace = 'routeledger'::regnamespace and p.proname = %s
        """,
        [name],
    )
    assert len(rows) == 1, f"{name} must exist exactly once"
    names, modes, nargs, kinds, ndefaults, text = rows[0]
    modes = modes or ["i"] * nargs
    inputs = [(n, k) for n, k, m in zip(names, kinds, modes, strict=True) if m in "ib"]
    outputs = [n for n, m in zip(names, modes, strict=True) if m == "t"]
    return {"inputs": inputs, "outputs": outputs, "required": nargs - ndefaults, "text": text}


@pytest.mark.parametrize("constant", sorted(CALLS))
def test_calls_are_the_routines(db: Database, constant: str) -> None:
    name, arguments, columns = parse(CALLS[constant])
    assert name == constant.lower()
    found = signature(db, name)
    assert [(p, kind) for p, _, kind in arguments] == found["inputs"]
    assert all(p == f"p_{key}" for p, key, _ in arguments)
    assert columns == found["outputs"]


@pytest.mark.parametrize("routine", _routines.ROUTINES.values(), ids=lambda r: str(r.name))
def test_defaults_are_those_of_the_routine(db: Database, routine: _routines.Routine[Any]) -> None:
    found = signature(db, routine.name)
    optional = [n.removeprefix("p_") for n, _ in found["inputs"][found["required"] :]]
    assert sorted(routine.defaults) == sorted(optional)
    for key, value in routine.defaults.items():
        text = re.search(rf"\bp_{key} [\w ]+(?:\[\])? DEFAULT ([^,]+)", found["text"])
        assert text, key
        stated = text[1].split("::")[0].strip("'")
        assert stated == (
            "NULL" if value is None else value if isinstance(value, str) else str(value)
        )


@pytest.mark.parametrize("routine", _routines.ROUTINES.values(), ids=lambda r: str(r.name))
def test_results_are_the_columns(routine: _routines.Routine[Any]) -> None:
    fields = [f.name for f in dataclasses.fields(routine.result)]  # type: ignore[arg-type]
    assert parse(routine.single)[2] == fields
    assert ("created" in fields) is routine.has_created
    head = ["ord", "status", "code", "message", "detail", "hint"]
    assert parse(routine.many)[2] == head + [f for f in fields if f != "created"]
    assert parse(routine.many)[0] == routine.many_name
    assert [f.name for f in dataclasses.fields(types.RowResult)] == [*head, "result"]


@pytest.mark.parametrize("constant", sorted(VIEWS))
def test_readers_are_the_views(db: Database, constant: str) -> None:
    view, kind = VIEWS[constant]
    columns = re.findall(r"\w+", STATEMENTS[constant].split("from routeledger.")[0])[1:]
    assert columns == [f.name for f in dataclasses.fields(kind)]
    there = {
        row[0]
        for row in db.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0",
            [f"routeledger.{view}"],
        )
    }
    assert set(columns) <= there


ROWS: dict[str, tuple[type[Any], set[str]]] = {
    "ENSURE_CHECK": (types.EnsureResult, {"steps"}),
    "ENSURE_NOT_NULL": (types.EnsureResult, {"steps"}),
    "ENSURE_UNIQUE": (types.EnsureResult, {"steps"}),
    "UNDO_CONSTRAINT": (types.EnsureResult, {"steps"}),
    "CONSTRAINT_STATES": (types.ConstraintState, set()),
    "PLAN_CONSTRAINTS": (types.PlannedConstraint, set()),
    "REPAIR_ORPHANS": (types.OrphanRepair, set()),
    "REPAIR_ORPHANS_IN": (types.OrphanRepair, set()),
    "UNDO_REPAIR": (types.UndoneRepair, set()),
    "SHOW_REPAIR": (types.RepairRow, set()),
    "CLAIM_JUDGEMENTS": (types.Judgement, set()),
    "WITHDRAW_VERDICTS": (types.Withdrawal, set()),
    "REINSTATE_VERDICTS": (types.Withdrawal, set()),
    "EXPORT_CORPUS": (types.CorpusRow, set()),
    "CORPUS_MANIFEST": (types.CorpusManifest, set()),
    "ESTIMATE_POLICY": (types.PolicyEstimate, set()),
}


@pytest.mark.parametrize("constant", sorted(ROWS))
def test_rows_are_the_columns(constant: str) -> None:
    kind, ours = ROWS[constant]
    fields = [field.name for field in dataclasses.fields(kind) if field.name not in ours]
    assert parse(CALLS[constant])[2] == fields


@pytest.mark.parametrize("kind", sorted(constraints.BLOCKS))
def test_blocks_of_a_file_are_the_parameters(db: Database, kind: str) -> None:
    """Of the routine that makes such a constraint, but for those of one call."""
    of_a_call = {"strict", "dry_run"}
    found = signature(db, f"ensure_{kind}")
    names = {name.removeprefix("p_") for name, _ in found["inputs"]}
    assert set(constraints.BLOCKS[kind]) == names - of_a_call  # type: ignore[index]


@pytest.mark.parametrize(
    ("operation", "routine", "own"),
    [
        (alembic.EnsureCheckOp.ensure_check, "ensure_check", {"schema", "validate"}),
        (alembic.EnsureUniqueOp.ensure_unique, "ensure_unique", {"schema"}),
        (
            alembic.EnsureNotNullOp.ensure_not_null,
            "ensure_not_null",
            {"schema", "validate", "constraint_name"},
        ),
        (django.EnsureCheck, "ensure_check", set()),
        (django.EnsureUnique, "ensure_unique", set()),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_options_of_migrations_are_the_parameters(
    db: Database, operation: Callable[..., Any], routine: str, own: set[str]
) -> None:
    found = signature(db, routine)
    optional = {n.removeprefix("p_"): k for n, k in found["inputs"][found["required"] :]}
    # of a call; ensure_not_null's name is constraint_name, as it is elsewhere in a migration
    theirs = {k: v for k, v in optional.items() if k not in ("strict", "dry_run", "name")}
    parameters = inspect.signature(operation).parameters.values()
    assert {p.name for p in parameters if p.default is not p.empty} == set(theirs) | own
    assert theirs.items() <= _migrations.OPTIONS.items()


@pytest.mark.parametrize(
    ("routine", "constant"),
    [
        ("ensure_check", "ENSURE_CHECK"),
        ("ensure_not_null", "ENSURE_NOT_NULL"),
        ("ensure_unique", "ENSURE_UNIQUE"),
        ("undo_constraint", "UNDO_CONSTRAINT"),
        ("repair_orphans", "REPAIR_ORPHANS"),
        ("repair_orphans_in", "REPAIR_ORPHANS_IN"),
        ("undo_repair", "UNDO_REPAIR"),
        ("show_repair", "SHOW_REPAIR"),
    ],
)
def test_methods_have_the_defaults_of_the_routines(
    db: Database, routine: str, constant: str
) -> None:
    found = signature(db, routine)
    optional = {name.removeprefix("p_") for name, _ in found["inputs"][found["required"] :]}
    parameters = inspect.signature(getattr(Ledger, routine)).parameters
    assert set(parameters) - {"self", "conn"} == {key for _, key, _ in parse(CALLS[constant])[1]}
    given = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty and key != "conn"
    }
    assert set(given) == optional
    for key, value in given.items():
        stated = re.search(rf"\bp_{key} [\w ]+(?:\[\])? DEFAULT ([^,]+)", found["text"])
        assert stated, key
        text = stated[1].split("::")[0].strip("'")
        if isinstance(value, timedelta):
            assert db.value("select %s::interval = %s::interval", [text, value])
        elif value in (None, ()):
            assert text in ("NULL", "{}")
        else:
            assert text == str(value).lower(), key


def test_every_statement_is_looked_at() -> None:
    # those that call nothing of ours, and readers of the command line, are run by their own tests
    upsert = {
        f"UPSERT_{word}" for word in ("TARGET", "COLUMNS", "STAGE", "SOURCE", "COPY", "UNSTAGE")
    }
    others = {
        "SAME_TABLE",
        "TIMEOUTS",
        "SET_TIMEOUTS",
        "SET_LOCK_TIMEOUT",
        "UNIQUE_UNLOCK",
        "REPAIR_HISTORY",
        "COUNT_VERDICTS",
        "PRICE_OF",
    }
    assert set(STATEMENTS) == {*CALLS, *VIEWS, *upsert, *others, "VERSION"}


def test_errors_are_those_of_the_ledger(db: Database) -> None:
    rows = db.execute("select code, name, retryable from routeledger.errors()")
    assert {code: name for code, name, _ in rows} == {
        code: kind.default_name for code, kind in errors.ERRORS.items()
    }
    for code, _, retryable in rows:
        assert errors.ERRORS[code].retryable is retryable
