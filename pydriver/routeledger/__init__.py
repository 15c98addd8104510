"""A ledger for LLM routers inside Postgres.

Every decision is written before the provider is called, every attempt is a row, and every exit ends
in a closed row. This package is the thin client of the stored procedures::

    import routeledger

    with routeledger.connect("postgresql:///app") as ledger:
        with ledger.decision(tenant_id="acme", candidates=["small", "large"]) as decision:
            for attempt in decision.attempts():
                with attempt:
                    reply = call_provider(attempt.model_slug)
                    attempt.succeed(input_tokens=reply.input, output_tokens=reply.output)

`AsyncLedger` is the same for asyncio. Money is `decimal.Decimal` in US dollars, latencies are
milliseconds, ids are time-ordered UUIDs (version 7). Errors are `LedgerError` and its subclasses,
see `routeledger.errors`. With ``on_ledger_error="spool"`` a ledger that is down does not hide the
provider's answer, see `routeledger.spool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from routeledger import errors, spool, types
from routeledger._async import AsyncLedger
from routeledger._classify import Failure, classify
from routeledger._loop_async import AsyncOpenAttempt, AsyncOpenDecision
from routeledger._loop_sync import OpenAttempt, OpenDecision
from routeledger._sync import Ledger
from routeledger._version import __version__
from routeledger.errors import LedgerError, LedgerUnavailable
from routeledger.types import (
    Candidate,
    Completion,
    ConstraintState,
    CorpusManifest,
    CorpusRow,
    Decision,
    DecisionOutcome,
    DecisionRow,
    EnsureResult,
    ImportedModel,
    InFlightRow,
    JudgeAgreement,
    JudgeDrift,
    JudgeFinding,
    Judgement,
    JudgementLease,
    JudgeQueue,
    Lease,
    MaintainAction,
    NextStep,
    OrphanRepair,
    OrphanRow,
    PlannedConstraint,
    PolicyEstimate,
    PolicyVersion,
    Ranked,
    Reaped,
    ReconciliationRow,
    RecordedOutcome,
    RecordedVerdict,
    Refusal,
    ReleasedJudgement,
    RepairRow,
    RetryPolicy,
    Routed,
    RowResult,
    StartedAttempt,
    StoredPayload,
    UndoneRepair,
    UpsertProgress,
    UpsertResult,
    VerdictRow,
    VerdictWithdrawal,
    Withdrawal,
)

if TYPE_CHECKING:
    from routeledger._embedded import EmbeddedError, EmbeddedServer, embedded

__all__ = [
    "AsyncLedger",
    "AsyncOpenAttempt",
    "AsyncOpenDecision",
    "Candidate",
    "Completion",
    "ConstraintState",
    "CorpusManifest",
    "CorpusRow",
    "Decision",
    "DecisionOutcome",
    "DecisionRow",
    "EmbeddedError",
    "EmbeddedServer",
    "EnsureResult",
    "Failure",
    "ImportedModel",
    "InFlightRow",
    "JudgeAgreement",
    "JudgeDrift",
    "JudgeFinding",
    "JudgeQueue",
    "Judgement",
    "JudgementLease",
    "Lease",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "MaintainAction",
    "NextStep",
    "OpenAttempt",
    "OpenDecision",
    "OrphanRepair",
    "OrphanRow",
    "PlannedConstraint",
    "PolicyEstimate",
    "PolicyVersion",
    "Ranked",
    "Reaped",
    "ReconciliationRow",
    "RecordedOutcome",
    "RecordedVerdict",
    "Refusal",
    "ReleasedJudgement",
    "RepairRow",
    "RetryPolicy",
    "Routed",
    "RowResult",
    "StartedAttempt",
    "StoredPayload",
    "UndoneRepair",
    "UpsertProgress",
    "UpsertResult",
    "VerdictRow",
    "VerdictWithdrawal",
    "Withdrawal",
    "__version__",
    "classify",
    "connect",
    "embedded",
    "errors",
    "spool",
    "types",
]

connect = Ledger.connect


def __getattr__(name: str) -> Any:
    if name in {"embedded", "EmbeddedServer", "EmbeddedError"}:
        from routeledger import _embedded  # starts servers; not needed by those who have one

        return getattr(_embedded, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
