"""The driver says what the database says: signatures, defaults, results, errors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from routeledger import _calls, _routines, errors, types
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
}


def parse(text: str) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """The routine called, its arguments (name, placeholder, type), and the columns selected."""
    found = re.search(r"routeledger\.(\w+)\((.*)\)", text, re.DOTALL)
    assert found
    name, inside = found.groups()
    arguments = re.findall(r"(p_\w+) => %\((\w+)\)s::([\w ]+(?:\[\])?)", inside)
    assert len(arguments) == inside.count("=>")
    head = text.split("from routeledger.")[0]
    columns = [] if "as settings" in text else re.findall(r"\w+", head)[1:]
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
    inputs = [(n, k) for n, k, m in zip(names, kinds, modes, strict=True) if m == "i"]
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
        assert stated == ("NULL" if value is None else "[]" if value == [] else value)


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


def test_every_statement_is_looked_at() -> None:
    # those of an upsert that call nothing of ours are run by its own tests
    upsert = {
        f"UPSERT_{word}" for word in ("TARGET", "COLUMNS", "STAGE", "SOURCE", "COPY", "UNSTAGE")
    }
    assert set(STATEMENTS) == {*CALLS, *VIEWS, *upsert, "VERSION"}


def test_errors_are_those_of_the_ledger(db: Database) -> None:
    rows = db.execute("select code, name, retryable from routeledger.errors()")
    assert {code: name for code, name, _ in rows} == {
        code: kind.default_name for code, kind in errors.ERRORS.items()
    }
    for code, _, retryable in rows:
        assert errors.ERRORS[code].retryable is retryable
