"""The exceptions of the driver, one class for each code of the ledger, chosen by SQLSTATE.

The codes, names, messages and hints are those of ``routeledger.errors()``. Catch a group
(`BadArgument`, `NotFound`, `Conflict`, `LeaseError`, `LimitExceeded`, `InstallError`), one code
(`IdReused`), or all of them (`LedgerError`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg import errors as pg_errors
from psycopg_pool import PoolClosed, PoolTimeout

if TYPE_CHECKING:
    from .types import UpsertResult

__all__ = [
    "ERRORS",
    "AlreadyCompleted",
    "AlreadyDispatched",
    "AlreadyUndone",
    "AttemptClosed",
    "AttemptNotFound",
    "AttemptOpen",
    "BadArgument",
    "BatchReused",
    "BatchTooLarge",
    "BudgetExhausted",
    "BudgetNotFound",
    "ChangeNotFound",
    "ChangedSince",
    "ClaimLost",
    "Conflict",
    "ConstraintRefused",
    "CountsDisagree",
    "DecisionClosed",
    "DecisionNotFound",
    "DeclarationNotFound",
    "EmptyCorpus",
    "IdOutsideWindow",
    "IdReused",
    "ImagesDropped",
    "InstallError",
    "LeaseError",
    "LeaseLost",
    "LedgerBusy",
    "LedgerClosed",
    "LedgerError",
    "LedgerUnavailable",
    "LimitExceeded",
    "MalformedAttempts",
    "MalformedCandidates",
    "MalformedRow",
    "MissingArgument",
    "NoKey",
    "NoSuchColumn",
    "NoUniqueIndex",
    "NoUpgradePath",
    "NotFound",
    "NotInVocabulary",
    "NotInstalled",
    "NotJudgeable",
    "NotUuidV7",
    "OtherVersionInstalled",
    "OutOfRange",
    "PolicyNotFound",
    "RepairNotFound",
    "RoleNotFound",
    "RowRefused",
    "RuleSetNotFound",
    "SchemaNotOurs",
    "SchemaTooNew",
    "ServerTooOld",
    "SpoolFull",
    "TenantNotGranted",
    "TextTooLong",
    "TimeOutOfRange",
    "TooManyAttempts",
    "TooManyCandidates",
    "UnsuitableColumns",
    "UnsuitablePrecedence",
    "UnsuitablePredicate",
    "UnsuitableTable",
    "UnsuitableTarget",
    "VerdictDiffers",
    "WithdrawalNotFound",
    "from_code",
    "translate",
]


class LedgerError(Exception):
    """Whatever the ledger or the way to it refuses.

    Attributes:
        sqlstate: five characters; ``RLnnn`` for the ledger's own codes, None when no server spoke.
        name: the code's name, such as ``id_reused``.
        message: one constant sentence a code.
        detail: what the message is about, for machines.
        hint: what to do next.
        retryable: True when the same call may succeed unchanged.
        constraint: the name of the constraint concerned, if one is.
        partial: of an upsert that ended early, what had been written and committed by then.
    """

    code: ClassVar[str | None] = None
    default_name: ClassVar[str] = "ledger_error"
    retryable: bool = False
    partial: UpsertResult | None = None

    def __init__(
        self,
        message: str = "",
        *,
        sqlstate: str | None = None,
        name: str | None = None,
        detail: Mapping[str, Any] | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        constraint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate if sqlstate is not None else self.code
        self.name = name or self.default_name
        self.detail: dict[str, Any] = dict(detail or {})
        self.hint = hint
        self.constraint = constraint
        if retryable is not None and retryable is not self.retryable:
            self.retryable = retryable

    def __str__(self) -> str:
        head = f"{self.sqlstate} {self.name}" if self.sqlstate else self.name
        text = f"{head}: {self.message}"
        if self.detail:
            text += f" {json.dumps(self.detail, default=str)}"
        if self.hint:
            text += f"\nHINT: {self.hint}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"partial": self.partial} if self.partial is not None else None
        return (_rebuild, (type(self), self.message, self._facts()), state)

    def _facts(self) -> dict[str, Any]:
        return {
            "sqlstate": self.sqlstate,
            "name": self.name,
            "detail": self.detail,
            "hint": self.hint,
            "retryable": self.retryable,
            "constraint": self.constraint,
        }

    def copy(self) -> LedgerError:
        """The same error as a fresh exception, with a traceback and context of its own."""
        return type(self)(self.message, **self._facts())


def _rebuild(kind: type[LedgerError], message: str, facts: dict[str, Any]) -> LedgerError:
    return kind(message, **facts)


# -- the way to the ledger ------------------------------------------------------------------------


class LedgerUnavailable(LedgerError):  # noqa: N818
    """No answer: the connection was lost, none could be had in time, or the server cannot write.

    Whether the last try took effect is unknown. Every call is idempotent by id, so the same call
    again is safe.
    """

    default_name = "ledger_unavailable"
    retryable = True


class LedgerBusy(LedgerError):  # noqa: N818
    """A serialization failure (40001), deadlock (40P01) or lock timeout (55P03) that retries did
    not get past."""

    default_name = "ledger_busy"
    retryable = True


class LedgerClosed(LedgerError):  # noqa: N818
    """The client was closed before the call could be made."""

    default_name = "ledger_closed"


class SpoolFull(LedgerError):  # noqa: N818
    """The spool has reached its size limit; the write is kept nowhere."""

    default_name = "spool_full"


# -- groups ---------------------------------------------------------------------------------------


class BadArgument(LedgerError):  # noqa: N818
    """RL1xx: the call is wrong as it stands; nothing was changed."""


class NotFound(LedgerError):  # noqa: N818
    """RL2xx: what the call is about is not there."""


class Conflict(LedgerError):  # noqa: N818
    """RL3xx: the ledger already holds something else; nothing was changed."""


class LeaseError(LedgerError):
    """RL4xx: the lease is gone."""


class LimitExceeded(LedgerError):  # noqa: N818
    """RL5xx: too much in one call."""


class InstallError(LedgerError):
    """RL9xx: the schema is absent, foreign, or of another version."""


# -- one class a code -----------------------------------------------------------------------------


class MissingArgument(BadArgument):
    """A required argument is null."""

    code, default_name = "RL101", "missing_argument"


class NotInVocabulary(BadArgument):
    """A word outside a closed vocabulary."""

    code, default_name = "RL102", "not_in_vocabulary"


class OutOfRange(BadArgument):
    """A number outside its range, or not a number."""

    code, default_name = "RL103", "out_of_range"


class NotUuidV7(BadArgument):
    """The id is not a time-ordered UUID, version 7."""

    code, default_name = "RL104", "not_uuid_v7"


class IdOutsideWindow(BadArgument):
    """The id is dated outside the window that the ledger accepts."""

    code, default_name = "RL105", "id_outside_window"


class MalformedCandidates(BadArgument):
    """The candidates are not an array of slugs and objects with a ``model_slug``."""

    code, default_name = "RL106", "malformed_candidates"


class MalformedRow(BadArgument):
    """A row with an unknown field, or a value that does not fit its type."""

    code, default_name = "RL107", "malformed_row"


class TextTooLong(BadArgument):
    """A text beyond its limit."""

    code, default_name = "RL108", "text_too_long"


class TimeOutOfRange(BadArgument):
    """An ``event_at`` or other time that the ledger does not accept."""

    code, default_name = "RL109", "time_out_of_range"


class TenantNotGranted(BadArgument):
    """The role is bound to other tenants."""

    code, default_name = "RL110", "tenant_not_granted"


class MalformedAttempts(BadArgument):
    """The attempts of a told story do not make sense."""

    code, default_name = "RL111", "malformed_attempts"


class UnsuitableTarget(BadArgument):
    """The relation cannot be upserted as asked."""

    code, default_name = "RL112", "unsuitable_target"


class NoSuchColumn(BadArgument):
    """A column does not exist in the target or cannot be written."""

    code, default_name = "RL113", "no_such_column"


class UnsuitablePrecedence(BadArgument):
    """The precedence cannot be read or does not suit its columns."""

    code, default_name = "RL114", "unsuitable_precedence"


class NoKey(BadArgument):
    """A key column of a row is null, or the row is outside the unique index."""

    code, default_name = "RL115", "no_key"


class UnsuitablePredicate(BadArgument):
    """The text cannot be the predicate of a constraint."""

    code, default_name = "RL116", "unsuitable_predicate"


class UnsuitableTable(BadArgument):
    """Constraints of the relation cannot be declared here."""

    code, default_name = "RL117", "unsuitable_table"


class UnsuitableColumns(BadArgument):
    """The columns cannot be a unique key."""

    code, default_name = "RL118", "unsuitable_columns"


class DecisionNotFound(NotFound):
    """No such decision of this tenant."""

    code, default_name = "RL201", "decision_not_found"


class AttemptNotFound(NotFound):
    """No such attempt of this decision."""

    code, default_name = "RL202", "attempt_not_found"


class RoleNotFound(NotFound):
    """No such role in this cluster."""

    code, default_name = "RL203", "role_not_found"


class NoUniqueIndex(NotFound):
    """No unique index of the target fits the key."""

    code, default_name = "RL204", "no_unique_index"


class RuleSetNotFound(NotFound):
    """No such rule set, or no such version of the scores."""

    code, default_name = "RL205", "rule_set_not_found"


class RepairNotFound(NotFound):
    """No such repair."""

    code, default_name = "RL206", "repair_not_found"


class DeclarationNotFound(NotFound):
    """No constraint of that name is declared for that table."""

    code, default_name = "RL207", "declaration_not_found"


class ChangeNotFound(NotFound):
    """No change of that constraint is on record that could be undone."""

    code, default_name = "RL208", "change_not_found"


class PolicyNotFound(NotFound):
    """There is no such routing policy, or not in that version."""

    code, default_name = "RL209", "policy_not_found"


class BudgetNotFound(NotFound):
    """There is no such budget."""

    code, default_name = "RL210", "budget_not_found"


class WithdrawalNotFound(NotFound):
    """There is no such withdrawal of verdicts."""

    code, default_name = "RL211", "withdrawal_not_found"


class EmptyCorpus(NotFound):
    """No labelled outcome passes the filters; ``detail`` counts what each of them left out."""

    code, default_name = "RL212", "empty_corpus"


class IdReused(Conflict):
    """The id already stands for a different payload."""

    code, default_name = "RL301", "id_reused"


class AlreadyCompleted(Conflict):
    """The decision was completed in a different way."""

    code, default_name = "RL302", "already_completed"


class AttemptOpen(Conflict):
    """An attempt of this decision is still open."""

    code, default_name = "RL303", "attempt_open"


class AttemptClosed(Conflict):
    """The attempt is closed already."""

    code, default_name = "RL304", "attempt_closed"


class DecisionClosed(Conflict):
    """The decision is closed already."""

    code, default_name = "RL305", "decision_closed"


class AlreadyDispatched(Conflict):
    """An override is only for failures before any dispatch."""

    code, default_name = "RL306", "already_dispatched"


class RowRefused(Conflict):
    """The table refused the row: a constraint, a policy or a trigger of its own."""

    code, default_name = "RL307", "row_refused"


class BatchReused(Conflict):
    """The batch id was applied with other rows."""

    code, default_name = "RL308", "batch_reused"


class ConstraintRefused(Conflict):
    """The constraint was not put in place; ``detail`` says what is in the way."""

    code, default_name = "RL309", "constraint_refused"


class ChangedSince(Conflict):
    """Rows have changed since the repair; ``detail`` lists them."""

    code, default_name = "RL310", "changed_since"


class ImagesDropped(Conflict):
    """The images of the repair are past their retention."""

    code, default_name = "RL311", "images_dropped"


class AlreadyUndone(Conflict):
    """The repair has been undone already."""

    code, default_name = "RL312", "already_undone"


class CountsDisagree(Conflict):
    """A repair did not add up and was rolled back."""

    code, default_name = "RL313", "counts_disagree"


class VerdictDiffers(Conflict):
    """This judge version has given another verdict on the outcome, and a verdict is never
    overwritten."""

    code, default_name = "RL314", "verdict_differs"


class NotJudgeable(Conflict):
    """The outcome did not succeed, or is not closed and linked."""

    code, default_name = "RL315", "not_judgeable"


class LeaseLost(LeaseError):  # noqa: N818
    """The reaper has closed the decision: its lease had run out."""

    code, default_name = "RL401", "lease_lost"


class ClaimLost(LeaseError):  # noqa: N818
    """The claim is somebody else's now, or nobody's: it ran out and was given away, was released,
    or has been answered."""

    code, default_name = "RL402", "claim_lost"


class BatchTooLarge(LimitExceeded):
    """More rows than one call takes."""

    code, default_name = "RL501", "batch_too_large"


class TooManyCandidates(LimitExceeded):
    """More candidates than one decision takes."""

    code, default_name = "RL502", "too_many_candidates"


class TooManyAttempts(LimitExceeded):
    """More attempts than one decision takes."""

    code, default_name = "RL503", "too_many_attempts"


class BudgetExhausted(LimitExceeded):
    """A budget does not cover the decision; ``detail`` names it, what is left, and when it resets."""

    code, default_name = "RL504", "budget_exhausted"


class SchemaNotOurs(InstallError):  # noqa: N818
    """A schema named routeledger exists and is somebody else's."""

    code, default_name = "RL901", "schema_not_ours"


class OtherVersionInstalled(InstallError):  # noqa: N818
    """The installed schema is of another version."""

    code, default_name = "RL902", "other_version_installed"


class ServerTooOld(InstallError):  # noqa: N818
    """The Postgres server is older than supported."""

    code, default_name = "RL903", "server_too_old"


class SchemaTooNew(InstallError):  # noqa: N818
    """The installed schema is newer than this client understands."""

    code, default_name = "RL904", "schema_too_new"


class NotInstalled(InstallError):  # noqa: N818
    """There is no routeledger in this database."""

    code, default_name = "RL905", "not_installed"


class NoUpgradePath(InstallError):  # noqa: N818
    """No script leads from the installed version to this one."""

    code, default_name = "RL906", "no_upgrade_path"


def _leaves(kind: type[LedgerError]) -> list[type[LedgerError]]:
    found = [kind] if kind.code is not None and "code" in vars(kind) else []
    for child in kind.__subclasses__():
        found += _leaves(child)
    return found


ERRORS: dict[str, type[LedgerError]] = {str(kind.code): kind for kind in _leaves(LedgerError)}
"""Code to class, for every code of the ledger."""

_GROUPS: dict[str, type[LedgerError]] = {
    "RL1": BadArgument,
    "RL2": NotFound,
    "RL3": Conflict,
    "RL4": LeaseError,
    "RL5": LimitExceeded,
    "RL9": InstallError,
}

_BUSY = frozenset({"40001", "40P01", "55P03"})
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})
# The server answers and cannot write now. The same call may succeed later, but not in a moment.
_CANNOT_WRITE = frozenset({"25006", "57014"})
_CANNOT_WRITE_CLASSES = ("53", "58")


def from_code(
    code: str,
    message: str,
    detail: Mapping[str, Any] | None = None,
    hint: str | None = None,
    constraint: str | None = None,
) -> LedgerError:
    """The exception for a code of the ledger; a code of a newer schema becomes its group's."""
    kind = ERRORS.get(code) or _GROUPS.get(code[:3], LedgerError)
    return kind(message, sqlstate=code, detail=detail, hint=hint, constraint=constraint)


def _detail_of(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        return {"detail": text}
    return value if isinstance(value, dict) else {"detail": value}


def translate(exc: Exception) -> LedgerError:
    """The driver's exception for one of psycopg's, by SQLSTATE, never by message text."""
    if isinstance(exc, LedgerError):
        return exc
    if isinstance(exc, PoolClosed):
        return LedgerClosed("The client is closed.")
    if isinstance(exc, PoolTimeout):
        return LedgerUnavailable(
            "No connection to the ledger could be had in time.",
            hint="Check that the server is up and that the pool is large enough (max_size).",
        )
    state = getattr(exc, "sqlstate", None)
    if state is None:
        if isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError, OSError)):
            return LedgerUnavailable(
                "The connection to the ledger was lost.", detail={"reason": str(exc).strip()}
            )
        if isinstance(exc, (psycopg.DataError, psycopg.ProgrammingError)):
            return MalformedRow(
                "A value cannot be sent to the ledger.",
                detail={"reason": str(exc).strip()},
                hint="Send text without NUL characters and numbers that are numbers.",
            )
        return LedgerError(str(exc).strip() or type(exc).__name__)
    diag = exc.diag if isinstance(exc, psycopg.Error) else None
    message = (diag.message_primary if diag else None) or str(exc).strip()
    hint = diag.message_hint if diag else None
    constraint = diag.constraint_name if diag else None
    detail = _detail_of(diag.message_detail if diag else None)
    if state.startswith("RL"):
        return from_code(state, message, detail, hint, constraint)
    kind: type[LedgerError] = LedgerError
    retryable: bool | None = None
    if state in _BUSY:
        kind = LedgerBusy
    elif state.startswith("08") or state in _LOST:
        kind = LedgerUnavailable
    elif state in _CANNOT_WRITE or state.startswith(_CANNOT_WRITE_CLASSES):
        kind, retryable = LedgerUnavailable, False
    return kind(
        message,
        sqlstate=state,
        name=_condition_name(state),
        detail=detail,
        hint=hint,
        retryable=retryable,
        constraint=constraint,
    )


def _condition_name(state: str) -> str | None:
    try:
        name = pg_errors.lookup(state).__name__
    except KeyError:
        return None
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
