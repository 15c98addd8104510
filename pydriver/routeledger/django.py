"""Constraints that are what a migration declares: operations for Django.

`EnsureCheck("outcome", "name", Q(…))` and `EnsureUnique("outcome", "name", ["field", …])` let a table
have the constraint, whatever the database held under that name before; migrating backwards puts
back what the migration found there. The state of the models is not touched: where `Meta` names the
constraint too, put both into a `SeparateDatabaseAndState`.

VALIDATE must not hold the lock of the change, so each step is a transaction of its own: set
`atomic = False` on the migration. In an atomic one an operation works as long as a single step does
it (the constraint is there already, or the table is empty), and refuses with everything rolled
back when another remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import django
from django.db import DatabaseError
from django.db.migrations import Migration
from django.db.migrations.operations.base import Operation
from django.db.models import CheckConstraint, Q

from routeledger._migrations import MAX_STEPS, Call, Outcome, caller, ensure, explain, quoted, undo

__all__ = ["EnsureCheck", "EnsureUnique", "MigrationRefused"]


class MigrationRefused(DatabaseError):  # type: ignore[misc]  # noqa: N818
    """The database did not let a constraint become what the migration declares; it says why."""


class _Ensure(Operation):  # type: ignore[misc]
    """An operation on one constraint of the table of one model."""

    routine: str
    reversible = True
    reduces_to_sql = True

    def __init__(
        self, model_name: str, name: str, label: str | None, options: Mapping[str, Any]
    ) -> None:
        self.model_name = model_name
        self.name = name
        self.label = label
        # by the name of the parameter without p_
        self.options = options

    def arguments(self, model: Any, schema_editor: Any) -> dict[str, tuple[Any, str]]:
        """What is declared, as arguments of the routine."""
        raise NotImplementedError

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The models stay as they are."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: Any,
        from_state: Any,  # noqa: ARG002 – Django's signature
        to_state: Any,
    ) -> None:
        """Let the table have the constraint."""
        model = self._model(app_label, schema_editor, to_state)
        if model is None:
            return
        call = ensure(
            self.routine,
            schema_editor.quote_name(model._meta.db_table),
            self.name,
            {"name": (self.name, "text"), **self.arguments(model, schema_editor)},
            {**self.options, "label": self.label or _migration()},
        )
        _run(schema_editor, call)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: Any,
        from_state: Any,  # noqa: ARG002 – Django's signature
        to_state: Any,
    ) -> None:
        """Put back what the migration found."""
        model = self._model(app_label, schema_editor, to_state)
        if model is not None:
            target = schema_editor.quote_name(model._meta.db_table)
            _run(schema_editor, undo(self.name, target, label=self.label or _migration()))

    def _model(self, app_label: str, schema_editor: Any, state: Any) -> Any:
        model = state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return None
        if connection.vendor != "postgresql":
            msg = f"{type(self).__name__} is for PostgreSQL, not {connection.vendor}"
            raise MigrationRefused(msg)
        return model


class EnsureCheck(_Ensure):
    """A CHECK constraint that is as declared afterwards.

    Args:
        model_name: the model whose table it is.
        name: its name.
        condition: a `Q`, or SQL.
        if_violated: `refuse` (the default) or `add_not_valid`: what happens when there are rows
            that violate it.
        no_inherit: NO INHERIT.
        also_drop: older names of the same rule, dropped in the same statement.
        label: under which the change is recorded, by default `app.migration`.
        lock_timeout: how long each try waits for its lock, such as `2 seconds`.
        attempts: how many tries.
    """

    routine = "ensure_check"

    # no keyword-only parameters: before Django 5 the writer of migrations leaves them out
    def __init__(
        self,
        model_name: str,
        name: str,
        condition: str | Q,
        if_violated: str | None = None,
        no_inherit: bool | None = None,
        also_drop: Sequence[str] | None = None,
        label: str | None = None,
        lock_timeout: str | None = None,
        attempts: int | None = None,
    ) -> None:
        options = {
            "if_violated": if_violated,
            "no_inherit": no_inherit,
            "also_drop": also_drop and list(also_drop),
            "lock_timeout": lock_timeout,
            "attempts": attempts,
        }
        super().__init__(model_name, name, label, options)
        self.condition = condition

    def arguments(self, model: Any, schema_editor: Any) -> dict[str, tuple[Any, str]]:
        return {"predicate": (_sql(self.condition, model, schema_editor), "text")}

    def describe(self) -> str:
        """The line of `migrate --plan`."""
        return f"Ensure check {self.name} on {self.model_name}"

    @property
    def migration_name_fragment(self) -> str:
        """The end of a generated migration's name."""
        return f"ensure_{self.name}".lower()


class EnsureUnique(_Ensure):
    """A unique index that is as declared afterwards, as `ON CONFLICT` needs it.

    Args:
        model_name: the model whose table it is.
        name: its name.
        fields: names of fields; what is none is taken as SQL: a column, or an expression.
        keep: which row of a key stays, such as `latest updated_at` (columns); without it duplicates
            refuse. The others are kept as images: `routeledger repair undo` brings them back.
        nulls: `distinct` (the default) or `not_distinct`.
        where: the predicate of a partial index, a `Q` or SQL.
        form: `index` (the default) or `constraint`.
        children: `refuse` (the default) or `repoint` rows that refer to removed ones.
        triggers: `refuse` (the default) or `fire` the triggers of the removal.
        reason: recorded with the repair.
        label: under which the change is recorded, by default `app.migration`.
        lock_timeout: how long each try waits for its lock, such as `2 seconds`.
        attempts: how many tries.
    """

    routine = "ensure_unique"

    def __init__(
        self,
        model_name: str,
        name: str,
        fields: Sequence[str],
        keep: str | None = None,
        nulls: str | None = None,
        where: str | Q | None = None,
        form: str | None = None,
        children: str | None = None,
        triggers: str | None = None,
        reason: str | None = None,
        label: str | None = None,
        lock_timeout: str | None = None,
        attempts: int | None = None,
    ) -> None:
        options = {
            "keep": keep,
            "nulls": nulls,
            "form": form,
            "children": children,
            "triggers": triggers,
            "reason": reason,
            "lock_timeout": lock_timeout,
            "attempts": attempts,
        }
        super().__init__(model_name, name, label, options)
        self.fields = list(fields)
        self.where = where

    def arguments(self, model: Any, schema_editor: Any) -> dict[str, tuple[Any, str]]:
        columns = {field.name: quoted(field.column) for field in model._meta.concrete_fields}
        found: dict[str, tuple[Any, str]] = {
            "columns": ([columns.get(name, name) for name in self.fields], "text[]")
        }
        if self.where is not None:
            found["where"] = (_sql(self.where, model, schema_editor), "text")
        return found

    def describe(self) -> str:
        """The line of `migrate --plan`."""
        return f"Ensure unique {self.name} on {self.model_name}"

    @property
    def migration_name_fragment(self) -> str:
        """The end of a generated migration's name."""
        return f"ensure_{self.name}".lower()


def _sql(condition: str | Q, model: Any, schema_editor: Any) -> str:
    """The condition as it stands in a CREATE TABLE: columns without their table, literals in place."""
    if isinstance(condition, str):
        return condition
    argument = "condition" if django.VERSION >= (5, 1) else "check"
    check = CheckConstraint(name="_", **{argument: condition})
    return str(check._get_check_sql(model, schema_editor))


def _migration() -> str | None:
    """The migration that is running, as `app.name`."""

    def sees(frame: FrameType) -> str | None:
        who = frame.f_locals.get("self")
        return f"{who.app_label}.{who.name}" if isinstance(who, Migration) else None

    return caller(sees)


def _run(schema_editor: Any, call: Call) -> None:
    connection = schema_editor.connection
    if schema_editor.collect_sql:
        alone = not schema_editor.atomic_migration
        schema_editor.collected_sql += [call.further_sql() if alone else call.first_sql()]
        schema_editor.collected_sql += [call.proof_sql()]
        return
    statement, values = call.bound("%({})s".format)
    done = _step(connection, call.subject, statement, values)
    for _ in range(MAX_STEPS):
        if done.next is None:
            break
        if connection.in_atomic_block:
            msg = f"{call.subject}: {done.next} Set atomic = False on the migration."
            raise MigrationRefused(msg)
        done = _step(connection, call.subject, statement, values)
    if fault := call.fault(done):
        raise MigrationRefused(fault)


def _step(connection: Any, subject: str, statement: str, values: Mapping[str, Any]) -> Outcome:
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return Outcome.of(cursor.fetchone())
    except DatabaseError as error:
        raise MigrationRefused(explain(subject, error.__cause__ or error)) from error
