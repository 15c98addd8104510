# Generated from pydriver/routeledger/_replay_async.py by `make sync`: edit that, not this.
"""Bringing the spool's records into the ledger.

Records go in the order kept, neighbours of one routine in one call. Three kinds of refusal are not
the end, because the try that led to the spool may have reached the ledger after all:

- a story whose decision is there already is told again as calls about that decision;
- a failure that is there already stands as it is;
- an attempt that the ledger opened by its own choice, and that was never dispatched, is closed in
  favour of the one that the client made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._codec import Row
from ._routines import COMPLETE_DECISION, FAIL_ATTEMPT, ROUTINES, START_ATTEMPT, Routine
from .errors import (
    AttemptClosed,
    AttemptOpen,
    IdReused,
    LedgerBusy,
    LedgerClosed,
    LedgerError,
    LedgerUnavailable,
    MalformedRow,
)
from .spool import Record, ReplayReport, Spool

if TYPE_CHECKING:
    from ._sync import Ledger

BATCH = 500
_NOT_NOW = (LedgerUnavailable, LedgerBusy, LedgerClosed)


class Replay:
    """One replay of one spool."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self._ledger = ledger
        self._spool = spool
        self._accepted = 0
        self._replayed = 0
        self._refused = 0
        self._torn = 0

    def run(self) -> ReplayReport:
        """Replay until the spool is empty.

        Raises:
            LedgerUnavailable: the ledger is gone; what is left stays for the next replay.
        """
        with self._spool.replaying():
            while self._spool.begin():
                batch: list[Record] = []
                for record in self._spool.records():
                    if record is None:
                        self._torn += 1
                        continue
                    if batch and (record.routine != batch[0].routine or len(batch) == BATCH):
                        self._bring_in(batch)
                        batch = []
                    batch.append(record)
                if batch:
                    self._bring_in(batch)
                self._spool.end()
        return ReplayReport(self._accepted, self._replayed, self._refused, self._torn)

    def _bring_in(self, batch: list[Record]) -> None:
        refused: list[tuple[Record, LedgerError]] = []
        for record, error in self._send(batch):
            if error is not None and not self._mend(record, error):
                refused.append((record, error))
        self._refused += len(refused)
        self._spool.refuse(refused)
        self._spool.advance(batch[-1].end)

    def _send(self, batch: list[Record]) -> list[tuple[Record, LedgerError | None]]:
        routine = ROUTINES.get(batch[0].routine)
        if routine is None:
            unknown = MalformedRow("no such routine", detail={"routine": batch[0].routine})
            return [(record, unknown) for record in batch]
        try:
            results = self._ledger._many(routine, [record.row for record in batch])
        except _NOT_NOW:
            raise
        except LedgerError as exc:
            if len(batch) == 1:
                return [(batch[0], exc)]
            out: list[tuple[Record, LedgerError | None]] = []
            for record in batch:  # one of them spoils the call: find it
                out += self._send([record])
            return out
        self._accepted += sum(result.status == "accepted" for result in results)
        self._replayed += sum(result.status == "replayed" for result in results)
        return [(record, result.error) for record, result in zip(batch, results, strict=True)]

    def _mend(self, record: Record, error: LedgerError) -> bool:
        """Bring in what was refused because an earlier try had reached the ledger."""
        try:
            if record.routine == "record_outcome" and isinstance(error, IdReused):
                self._tell_as_calls(record.row)
                self._accepted += 1
                return True
            if record.routine == "start_attempt" and isinstance(error, AttemptOpen):
                self._drop(record, "hold")
                self._call(START_ATTEMPT, record.row)
                self._accepted += 1
                return True
            if (
                record.routine == "fail_attempt"
                and isinstance(error, AttemptClosed)
                and error.detail.get("attempt_status") == "failed"
            ):
                if record.row.get("next") == "give_up":
                    self._drop(record, "give_up")
                self._replayed += 1
                return True
        except _NOT_NOW:
            raise
        except LedgerError:
            return False
        return False

    def _drop(self, record: Record, upcoming: str) -> None:
        """Close the attempt that the ledger opened and nobody dispatched."""
        if record.instead_of is None:
            return
        row = {
            "tenant_id": record.row["tenant_id"],
            "id": record.row["id"],
            "attempt_id": record.instead_of,
            "error_type": "not_dispatched",
            "next": upcoming,
        }
        self._call(FAIL_ATTEMPT, row)

    def _tell_as_calls(self, story: Row) -> None:
        key = {"tenant_id": story["tenant_id"], "id": story["id"]}
        attempts = story.get("attempts") or []
        if not attempts:
            override = story.get("decision_rule_override")
            row = {
                **key,
                "outcome_status": "failed",
                "error_type": "caller_left",
                "decision_rule_override": override,
            }
            self._call(COMPLETE_DECISION, row)
        for n, attempt in enumerate(attempts):
            facts = {
                k: v
                for k, v in attempt.items()
                if k not in ("id", "model_slug", "provider", "status", "started_at", "completed_at")
            }
            if n > 0:
                start = {**key, "model_slug": attempt["model_slug"], "attempt_id": attempt["id"]}
                if attempt.get("provider") is not None:
                    start["provider"] = attempt["provider"]
                self._call(START_ATTEMPT, start)
            if n < len(attempts) - 1:
                failed = {k: v for k, v in facts.items() if k in FAIL_ATTEMPT.defaults}
                failed |= {**key, "attempt_id": attempt["id"], "next": "hold"}
                failed["error_type"] = attempt["error_type"]
                self._call(FAIL_ATTEMPT, failed)
            else:
                facts.pop("retry_after_ms", None)
                facts |= {"outcome_status": attempt["status"], "attempt_id": attempt["id"]}
                self._call(COMPLETE_DECISION, {**key, **facts})

    def _call(self, routine: Routine[Any], row: Row) -> None:
        self._ledger._one(routine, row, None)
