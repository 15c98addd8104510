"""Constraints that are what a revision declares: operations and autogenerate for Alembic.

`import routeledger.alembic` in `env.py` registers, for PostgreSQL:

`op.ensure_check(name, table, condition)`
    in the place of `op.create_check_constraint`: the CHECK is there with this condition afterwards,
    whatever the database held under that name before.
`op.ensure_unique(name, table, columns)`
    in the place of `op.create_unique_constraint`; duplicates refuse, or are collapsed by `keep=`.
`op.ensure_not_null(table, column)`
    in the place of `op.alter_column(nullable=False)`.
`op.undo_constraint(name, table)`
    the downgrade of all three: it puts back what *this* revision found in *this* database.

and a comparator for `alembic revision --autogenerate` and `alembic check`, which lets the database
itself compare the conditions of named CHECK constraints.

Each operation begins in the transaction of the migration and, when more remains to be done
(VALIDATE must not hold the lock of the change), commits it and goes on in an
`autocommit_block()`. A refusal ends the migration with `MigrationRefused`, which says why.
With `--sql` the same is written as SQL that psql runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from alembic.autogenerate import comparators, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import CheckConstraint, Connection, Table, UniqueConstraint, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import Constraint, CreateTable
from sqlalchemy.sql import ClauseElement

from routeledger._migrations import MAX_STEPS, Call, Outcome, caller, ensure, explain, quoted, undo

__all__ = [
    "EnsureCheckOp",
    "EnsureNotNullOp",
    "EnsureUniqueOp",
    "MigrationRefused",
    "UndoConstraintOp",
]

log = logging.getLogger("alembic.routeledger")

IMPORT = "import routeledger.alembic  # noqa: F401"


class MigrationRefused(CommandError):  # noqa: N818
    """The database did not let a constraint become what the revision declares; it says why."""


# -- operations ------------------------------------------------------------------------------------


class _Op(MigrateOperation):
    """An operation on one constraint of one table."""

    operation: str
    validate: bool = True

    def __init__(
        self,
        name: str | None,
        table_name: str,
        schema: str | None,
        label: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.constraint_name = name
        self.table_name = table_name
        self.schema = schema
        self.label = label
        # those that were given, by the name of the parameter without p_
        self.options = {key: value for key, value in options.items() if value is not None}

    def positional(self) -> tuple[Any, ...]:
        """The positional arguments of the directive."""
        return (self.constraint_name, self.table_name)

    def call(self) -> Call:
        """The call of the routine."""
        raise NotImplementedError

    def reverse(self) -> MigrateOperation:
        """The directive of the downgrade: what was found is put back."""
        if self.constraint_name is None:
            raise NotImplementedError("name the constraint to have it undone")
        return UndoConstraintOp(
            self.constraint_name, self.table_name, schema=self.schema, label=self.label
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.operation, self.schema, *self.positional(), self.options)

    def _call(self, routine: str, arguments: Mapping[str, tuple[Any, str]]) -> Call:
        return ensure(
            routine,
            quoted(self.table_name, self.schema),
            self.constraint_name or self.positional()[-1],
            arguments,
            {**self.options, "label": self.label},
            validate=self.validate,
        )


@Operations.register_operation("ensure_check")
class EnsureCheckOp(_Op):
    """A CHECK constraint that is as declared afterwards."""

    operation = "ensure_check"

    def __init__(
        self,
        constraint_name: str,
        table_name: str,
        condition: str | ClauseElement,
        *,
        schema: str | None = None,
        label: str | None = None,
        validate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(constraint_name, table_name, schema, label, options)
        self.condition = _condition(condition)
        self.validate = validate

    def positional(self) -> tuple[Any, ...]:
        return (self.constraint_name, self.table_name, self.condition)

    def call(self) -> Call:
        return self._call(
            "ensure_check",
            {"name": (self.constraint_name, "text"), "predicate": (self.condition, "text")},
        )

    @classmethod
    def ensure_check(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        condition: Any,
        *,
        schema: str | None = None,
        if_violated: str | None = None,
        no_inherit: bool | None = None,
        also_drop: Sequence[str] | None = None,
        validate: bool = True,
        label: str | None = None,
        lock_timeout: str | None = None,
        attempts: int | None = None,
    ) -> Any:
        """Let the table have this CHECK constraint, whatever it had under that name.

        :param constraint_name: its name.
        :param table_name: the table, without its schema.
        :param condition: SQL, or an expression of SQLAlchemy.
        :param schema: the schema of the table.
        :param if_violated: `refuse` (the default) or `add_not_valid`: what happens when there are
         rows that violate it.
        :param no_inherit: NO INHERIT.
        :param also_drop: older names of the same rule, dropped in the same statement.
        :param validate: False leaves the constraint NOT VALID; a later call validates it.
        :param label: under which the change is recorded, by default the id of the revision.
        :param lock_timeout: how long each try waits for its lock, such as `2 seconds`.
        :param attempts: how many tries.
        """
        return operations.invoke(
            cls(
                constraint_name,
                table_name,
                condition,
                schema=schema,
                label=label or _revision(),
                validate=validate,
                if_violated=if_violated,
                no_inherit=no_inherit,
                also_drop=_listed(also_drop),
                lock_timeout=lock_timeout,
                attempts=attempts,
            )
        )


@Operations.register_operation("ensure_unique")
class EnsureUniqueOp(_Op):
    """A unique index or constraint that is as declared afterwards."""

    operation = "ensure_unique"

    def __init__(
        self,
        constraint_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        label: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(constraint_name, table_name, schema, label, options)
        self.columns = _listed(columns)

    def positional(self) -> tuple[Any, ...]:
        return (self.constraint_name, self.table_name, self.columns)

    def call(self) -> Call:
        return self._call(
            "ensure_unique",
            {"name": (self.constraint_name, "text"), "columns": (self.columns, "text[]")},
        )

    @classmethod
    def ensure_unique(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        keep: str | None = None,
        nulls: str | None = None,
        where: str | None = None,
        form: str | None = None,
        children: str | None = None,
        triggers: str | None = None,
        reason: str | None = None,
        label: str | None = None,
        lock_timeout: str | None = None,
        attempts: int | None = None,
    ) -> Any:
        """Let the table have this unique index, which ON CONFLICT needs.

        :param constraint_name: its name.
        :param table_name: the table, without its schema.
        :param columns: columns or expressions, in SQL.
        :param schema: the schema of the table.
        :param keep: which row of a key stays, such as `latest updated_at`; without it duplicates
         refuse. The others are kept as images: `routeledger repair undo` brings them back.
        :param nulls: `distinct` (the default) or `not_distinct`.
        :param where: the predicate of a partial index.
        :param form: `index` (the default) or `constraint`.
        :param children: `refuse` (the default) or `repoint` rows that refer to removed ones.
        :param triggers: `refuse` (the default) or `fire` the triggers of the removal.
        :param reason: recorded with the repair.
        :param label: under which the change is recorded, by default the id of the revision.
        :param lock_timeout: how long each try waits for its lock, such as `2 seconds`.
        :param attempts: how many tries.
        """
        return operations.invoke(
            cls(
                constraint_name,
                table_name,
                columns,
                schema=schema,
                label=label or _revision(),
                keep=keep,
                nulls=nulls,
                where=where,
                form=form,
                children=children,
                triggers=triggers,
                reason=reason,
                lock_timeout=lock_timeout,
                attempts=attempts,
            )
        )


@Operations.register_operation("ensure_not_null")
class EnsureNotNullOp(_Op):
    """A column that is NOT NULL afterwards."""

    operation = "ensure_not_null"

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        constraint_name: str | None = None,
        schema: str | None = None,
        label: str | None = None,
        validate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(constraint_name, table_name, schema, label, options)
        self.column_name = column_name
        self.validate = validate

    def positional(self) -> tuple[Any, ...]:
        return (self.table_name, self.column_name)

    def call(self) -> Call:
        arguments = {"column": (self.column_name, "text")}
        if self.constraint_name is not None:
            arguments["name"] = (self.constraint_name, "text")
        return self._call("ensure_not_null", arguments)

    @classmethod
    def ensure_not_null(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        constraint_name: str | None = None,
        schema: str | None = None,
        if_violated: str | None = None,
        validate: bool = True,
        label: str | None = None,
        lock_timeout: str | None = None,
        attempts: int | None = None,
    ) -> Any:
        """Let the column be NOT NULL, without a scan under an exclusive lock.

        :param table_name: the table, without its schema.
        :param column_name: the column.
        :param constraint_name: the name under which it is recorded and undone.
        :param schema: the schema of the table.
        :param if_violated: `refuse` (the default) or `add_not_valid`: what happens when there are
         nulls.
        :param validate: False leaves it NOT VALID; a later call validates it.
        :param label: under which the change is recorded, by default the id of the revision.
        :param lock_timeout: how long each try waits for its lock, such as `2 seconds`.
        :param attempts: how many tries.
        """
        return operations.invoke(
            cls(
                table_name,
                column_name,
                constraint_name=constraint_name,
                schema=schema,
                label=label or _revision(),
                validate=validate,
                if_violated=if_violated,
                lock_timeout=lock_timeout,
                attempts=attempts,
            )
        )


@Operations.register_operation("undo_constraint")
class UndoConstraintOp(_Op):
    """A constraint that is what it was before a change of it."""

    operation = "undo_constraint"

    def __init__(
        self,
        constraint_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        label: str | None = None,
        rows: str | None = None,
    ) -> None:
        super().__init__(constraint_name, table_name, schema, label, {"rows": rows})

    def call(self) -> Call:
        return undo(
            str(self.constraint_name),
            quoted(self.table_name, self.schema),
            label=self.label,
            rows=self.options.get("rows", "restore"),
        )

    def reverse(self) -> MigrateOperation:
        raise NotImplementedError("an undo cannot be turned round: write the ensure_* directive")

    @classmethod
    def undo_constraint(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        rows: str | None = None,
        label: str | None = None,
    ) -> Any:
        """Put back what the revision found: the earlier definition, NOT VALID, or nothing.

        :param constraint_name: its name.
        :param table_name: the table, without its schema.
        :param schema: the schema of the table.
        :param rows: `restore` (the default) or `leave` rows that `ensure_unique` removed.
        :param label: of the change, by default the id of the revision.
        """
        return operations.invoke(
            cls(constraint_name, table_name, schema=schema, label=label or _revision(), rows=rows)
        )


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else [names] if isinstance(names, str) else list(names)


def _revision() -> str | None:
    """The id of the revision that is running: of the script that called the directive."""

    def sees(frame: FrameType) -> str | None:
        names = frame.f_globals
        revision = names.get("revision")
        return revision if isinstance(revision, str) and "down_revision" in names else None

    return caller(sees)


# A PostgreSQL whose SQL is not prepared for a parameter style: % stays %.
_PLAIN = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]


def _condition(condition: str | ClauseElement) -> str:
    """SQL, as it stands in a CREATE TABLE: columns without their table, literals in place."""
    if isinstance(condition, str):
        return condition
    return str(
        condition.compile(
            dialect=_PLAIN, compile_kwargs={"literal_binds": True, "include_table": False}
        )
    )


# -- running them ----------------------------------------------------------------------------------


@Operations.implementation_for(EnsureCheckOp)
@Operations.implementation_for(EnsureUniqueOp)
@Operations.implementation_for(EnsureNotNullOp)
@Operations.implementation_for(UndoConstraintOp)
def _run(operations: Operations, op: _Op) -> Outcome | None:
    context = operations.migration_context
    if context.dialect.name != "postgresql":
        msg = f"op.{op.operation} is for PostgreSQL, not {context.dialect.name}"
        raise MigrationRefused(msg)
    if context.as_sql:
        _write(context, op.call(), further=op.validate)
        return None
    return _execute(context, op.call(), further=op.validate)


def _write(context: MigrationContext, call: Call, *, further: bool) -> None:
    write = context.impl.static_output
    write(call.first_sql())
    with context.autocommit_block():
        if further:
            write(call.further_sql())
    if further:
        write(call.proof_sql())


def _execute(context: MigrationContext, call: Call, *, further: bool) -> Outcome:
    done = _step(context, call)
    fault = call.fault(done)
    # others wait for the lock that a change took until it is committed; of an empty table, nobody
    if done.next is not None or (not fault and done.outcome != "unchanged" and not done.validated):
        with _autocommit(context, call, done):
            for _ in range(MAX_STEPS):
                if done.next is None or not further:
                    break
                done = _step(context, call)
        fault = call.fault(done)
    if further and fault:
        raise MigrationRefused(fault)
    return done


def _step(context: MigrationContext, call: Call) -> Outcome:
    connection = context.connection
    assert connection is not None
    statement, values = call.bound(":{}".format)
    try:
        outcome = Outcome.of(connection.execute(text(statement), values).one())
    except DBAPIError as error:
        if error.connection_invalidated or error.orig is None:
            raise
        raise MigrationRefused(explain(call.subject, error.orig)) from error
    level = logging.WARNING if outcome.outcome == "pending" or outcome.violations else logging.INFO
    log.log(level, "%s", outcome.line(call.subject))
    return outcome


@contextmanager
def _autocommit(context: MigrationContext, call: Call, done: Outcome) -> Iterator[None]:
    """Outside any transaction: Alembic's is committed; one of the caller's own is not ours."""
    connection = context.connection
    assert connection is not None
    dbapi = connection.connection.dbapi_connection
    if getattr(dbapi, "autocommit", False):
        yield
    elif getattr(context, "_transaction", None) is not None:
        with context.autocommit_block():
            yield
    elif done.next is None:
        yield
    else:
        msg = (
            f"{call.subject}: {done.next} But the transaction is not Alembic's to commit. Let "
            "env.py begin it with context.begin_transaction(), or pass validate=False"
        )
        raise MigrationRefused(msg)


# -- autogenerate ----------------------------------------------------------------------------------


@renderers.dispatch_for(_Op)
def _render(context: AutogenContext, op: _Op) -> str:
    context.imports.add(IMPORT)
    arguments = [repr(argument) for argument in op.positional()]
    named = {"schema": op.schema, **op.options, "validate": None if op.validate else False}
    if isinstance(op, EnsureNotNullOp):
        named["constraint_name"] = op.constraint_name
    arguments += [f"{key}={value!r}" for key, value in named.items() if value is not None]
    prefix = context.opts["alembic_module_prefix"] or ""
    return f"{prefix}{op.operation}({', '.join(arguments)})"


def _compare(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Iterable[str | None]
) -> None:
    """Adds the directives that make the CHECK and UNIQUE constraints what the metadata says."""
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    if not _installed(connection):
        log.warning(
            "routeledger 0.4.0 or later is not installed in this database: "
            "the conditions of CHECK constraints are not compared"
        )
        return
    found: list[MigrateOperation] = []
    for table in context.sorted_tables:
        schema = None if table.schema == connection.dialect.default_schema_name else table.schema
        if (
            schema not in schemas
            or not context.run_name_filters(table.name, "table", {"schema_name": schema})
            or not context.run_object_filters(table, table.name, "table", False, None)
        ):
            continue
        kind = connection.execute(
            text("select relkind::text from pg_class where oid = to_regclass(:name)"),
            {"name": quoted(table.name, table.schema)},
        ).scalar()
        if kind == "r":
            found += _uniques(upgrade_ops, table, schema)
        if kind in ("r", "p"):
            found += _checks(context, upgrade_ops, table, schema)
    # after all others, in one transaction before the first of these commits it
    upgrade_ops.ops.extend(found)


def _register() -> None:
    try:
        from alembic.util import DispatchPriority
    except ImportError:  # before Alembic 1.18 they run in the order of registration
        comparators.dispatch_for("schema")(_compare)
    else:
        comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(_compare)


_register()


def _installed(connection: Connection) -> bool:
    return bool(
        connection.execute(
            text(
                "select count(*) from pg_proc where pronamespace = to_regnamespace('routeledger') "
                "and proname = 'ensure_check'"
            )
        ).scalar()
    )


def _checks(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, table: Table, schema: str | None
) -> Iterator[MigrateOperation]:
    declared = {
        name: constraint
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
        and (name := _name(constraint)) is not None
        and _is_created(constraint)
        and context.run_object_filters(constraint, name, "check_constraint", False, None)
    }
    # detection by name alone, where it has been turned on, would say it twice
    _without(upgrade_ops, table, schema, set(declared), (ops.CreateCheckConstraintOp,), "check")
    for name in sorted(declared):
        op = _check_op(name, table, declared[name])
        if _differs(context, op, not_valid=not op.validate):
            log.info("Detected missing or different check constraint %r on %r", name, table.name)
            yield op


def _check_op(name: str, table: Table, constraint: CheckConstraint) -> EnsureCheckOp:
    options = constraint.dialect_options["postgresql"]
    not_valid = bool(options.get("not_valid"))
    return EnsureCheckOp(
        name,
        table.name,
        constraint.sqltext,
        schema=table.schema,
        validate=not not_valid,
        if_violated="add_not_valid" if not_valid else None,
        no_inherit=True if options.get("no_inherit") else None,
    )


def _differs(context: AutogenContext, op: EnsureCheckOp, *, not_valid: bool) -> bool:
    """Whether the database holds something else under that name; it compares by itself."""
    connection = context.connection
    assert connection is not None
    call = op.call()
    arguments = {k: v for k, v in call.arguments.items() if k != "strict"}
    # violating rows are a matter of the upgrade, not of the comparison
    arguments["if_violated"] = ("add_not_valid", "text")
    arguments["dry_run"] = (True, "boolean")
    statement, values = Call(call.routine, call.subject, arguments).bound(":{}".format)
    inside = connection.begin_nested() if connection.in_transaction() else nullcontext()
    try:
        with inside:
            outcome = Outcome.of(connection.execute(text(statement), values).one())
    except SQLAlchemyError as error:
        reason = explain(call.subject, getattr(error, "orig", None) or error)
        log.info("The database cannot compare yet, taken as different. %s", reason)
        return True
    if outcome.definition is None or outcome.reason == "inherited":
        log.warning("%s is not compared: %s", call.subject, outcome.reason)
        return False
    same = ("unchanged", "validated", "pending") if not_valid else ("unchanged",)
    return outcome.outcome not in same


def _uniques(
    upgrade_ops: ops.UpgradeOps, table: Table, schema: str | None
) -> Iterator[MigrateOperation]:
    """Alembic has found which UNIQUE constraints are missing; here they become ensure_unique."""
    declared = {
        name: constraint
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
        and (name := _name(constraint)) is not None
        and not (constraint.deferrable or constraint.initially)
        and not constraint.dialect_options["postgresql"].get("include")
    }
    missing = {
        str(op.constraint_name)
        for modified in _modified(upgrade_ops, table, schema)
        for op in modified.ops
        if isinstance(op, ops.CreateUniqueConstraintOp)
    } & set(declared)
    created = (ops.CreateUniqueConstraintOp, ops.DropIndexOp)
    _without(upgrade_ops, table, schema, missing, created, "unique")
    for name in sorted(missing):
        options = declared[name].dialect_options["postgresql"]
        yield EnsureUniqueOp(
            name,
            table.name,
            [_PLAIN.identifier_preparer.quote(column.name) for column in declared[name].columns],
            schema=table.schema,
            form="constraint",
            nulls="not_distinct" if options.get("nulls_not_distinct") else None,
        )


def _modified(
    upgrade_ops: ops.UpgradeOps, table: Table, schema: str | None
) -> Iterator[ops.ModifyTableOps]:
    for op in upgrade_ops.ops:
        if (
            isinstance(op, ops.ModifyTableOps)
            and op.table_name == table.name
            and op.schema in (schema, table.schema)
        ):
            yield op


def _without(
    upgrade_ops: ops.UpgradeOps,
    table: Table,
    schema: str | None,
    names: set[str],
    kinds: tuple[type[MigrateOperation], ...],
    drop: str,
) -> None:
    """Takes Alembic's own directives about these constraints out of the script."""

    def superseded(op: MigrateOperation) -> bool:
        if isinstance(op, ops.DropIndexOp) and ops.DropIndexOp in kinds:
            return op.index_name in names
        if isinstance(op, ops.DropConstraintOp):
            return op.constraint_type == drop and op.constraint_name in names
        return isinstance(op, kinds) and getattr(op, "constraint_name", None) in names

    for modified in list(_modified(upgrade_ops, table, schema)):
        modified.ops = [op for op in modified.ops if not superseded(op)]
        if not modified.ops:
            upgrade_ops.ops.remove(modified)


def _name(constraint: Constraint) -> str | None:
    """The name as it is in the database: after the naming convention, cut where it is too long."""
    if constraint.name is None:
        return None
    name = _PLAIN.identifier_preparer.format_constraint(constraint)
    if name is None:
        return None
    return name[1:-1].replace('""', '"') if name.startswith('"') else str(name)


def _is_created(constraint: CheckConstraint) -> bool:
    """Whether CREATE TABLE writes it: not that of an Enum that is a type of its own."""
    rule = getattr(constraint, "_create_rule", None)
    return rule is None or bool(rule(_PLAIN.ddl_compiler(_PLAIN, CreateTable(constraint.table))))
