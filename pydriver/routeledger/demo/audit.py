"""Reading the books after the run, through the views, as anybody could."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from .summary import Fault, Flow, ModelLine, Reconciled, Slice

DECISIONS = """
select tenant_id, id, agent_id, chosen_model_slug, model_slug, decision_rule_override,
  outcome_status, attempts, failovers, inference_id, created_at, event_at, completed_at
from routeledger.decisions
where tenant_id = any(%(tenants)s)
order by id
"""

ATTEMPTS = """
select outcome_id, id, model_slug, provider, status, error_type, next_action, input_tokens,
  output_tokens, cost_usd, latency_ms
from routeledger.attempts
where tenant_id = any(%(tenants)s)
order by outcome_id, attempt_no
"""

ORPHANS = "select count(*) from routeledger.orphans where tenant_id = any(%(tenants)s)"

RECONCILIATION = """
select hour, tenant_id, decided, succeeded, failed, rejected, abandoned, in_flight, attempts,
  open_attempts, cost_usd::double precision, agrees
from routeledger.reconciliation
where tenant_id = any(%(tenants)s)
order by hour, tenant_id
"""


class DecisionRow(NamedTuple):
    tenant_id: str
    id: UUID
    agent_id: str | None
    first: str | None
    model: str | None
    override: str | None
    status: str | None
    attempts: int
    failovers: int
    inference_id: UUID | None
    created_at: datetime
    event_at: datetime
    completed_at: datetime | None


class AttemptRow(NamedTuple):
    decision_id: UUID
    id: UUID
    model: str
    provider: str | None
    status: str
    error_type: str | None
    next_action: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Books:
    """All that the views say of some tenants."""

    decisions: list[DecisionRow]
    attempts: dict[UUID, list[AttemptRow]]
    orphans: int
    reconciliation: tuple[Reconciled, ...]

    def ending(self, decision: DecisionRow) -> str:
        """How a decision ended, in the words of ``summary.ENDINGS``."""
        if decision.status is None:
            return "in flight"
        if decision.status == "failed":
            attempts = self.attempts.get(decision.id)
            left = decision.override is not None or (
                attempts and attempts[-1].error_type == "cancelled"
            )
            return "cancelled" if left else "failed"
        if decision.status != "succeeded":
            return decision.status
        if decision.failovers:
            return "failover"
        return "retry" if decision.attempts > 1 else "first attempt"

    def endings(self) -> dict[str, int]:
        return dict(Counter(map(self.ending, self.decisions)))

    def flows(self) -> tuple[Flow, ...]:
        """What became of the decisions whose first attempt failed."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for decision in self.decisions:
            attempts = self.attempts.get(decision.id)
            if attempts and attempts[0].error_type:
                end = self.ending(decision)
                if decision.status == "succeeded":
                    end = attempts[-1].model
                counts[attempts[0].model, attempts[0].error_type, end] += 1
        return tuple(Flow(*which, n) for which, n in counts.most_common())

    def slices(self, anchor: datetime, width_s: int) -> tuple[Slice, ...]:
        """Decisions along the traffic, which began at ``anchor``, in stretches of ``width_s``."""
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for decision in self.decisions:
            n = int((decision.event_at - anchor).total_seconds() // width_s)
            counts[max(0, n)][self.ending(decision)] += 1
        return tuple(
            Slice(n * width_s, dict(counts.get(n, {}))) for n in range(max(counts, default=-1) + 1)
        )

    def models(self, right: Mapping[str, Sequence[int]]) -> tuple[ModelLine, ...]:
        by_model: dict[str, list[AttemptRow]] = defaultdict(list)
        for attempts in self.attempts.values():
            for attempt in attempts:
                by_model[attempt.model].append(attempt)
        return tuple(_model_line(model, rows, right.get(model)) for model, rows in by_model.items())

    def faults(self) -> tuple[Fault, ...]:
        attempts: Counter[str] = Counter()
        decisions: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        for decision in self.decisions:
            errors = [a.error_type for a in self.attempts.get(decision.id, []) if a.error_type]
            attempts.update(errors)
            decisions.update(set(errors))
            if decision.status == "succeeded":
                answered.update(set(errors))
        return tuple(
            Fault(name, n, decisions[name], answered[name]) for name, n in attempts.items()
        )

    def count(self, next_action: str) -> int:
        return sum(a.next_action == next_action for rows in self.attempts.values() for a in rows)

    def cost_usd(self) -> float:
        return float(sum(a.cost_usd or 0 for rows in self.attempts.values() for a in rows))

    def lost(self, told: Mapping[UUID, str | None]) -> int:
        """Decisions of which a caller was told something else than stands in the books."""
        stands = {decision.id: decision.status for decision in self.decisions}
        return sum(
            key not in stands or (status is not None and stands[key] != status)
            for key, status in told.items()
        )


def read_books(conn: psycopg.Connection[Any], tenants: Sequence[str]) -> Books:
    """Everything the views say of ``tenants``, from one snapshot."""
    who = {"tenants": list(tenants)}
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        decisions = [DecisionRow(*row) for row in conn.execute(DECISIONS, who)]
        attempts: dict[UUID, list[AttemptRow]] = defaultdict(list)
        for row in conn.execute(ATTEMPTS, who):
            attempts[row[0]].append(AttemptRow(*row))
        counted = conn.execute(ORPHANS, who).fetchone()
        lines = conn.execute(RECONCILIATION, who).fetchall()
    return Books(
        decisions=decisions,
        attempts=dict(attempts),
        orphans=counted[0] if counted else 0,
        reconciliation=tuple(Reconciled(*line) for line in lines),
    )


def _model_line(model: str, rows: Sequence[AttemptRow], right: Sequence[int] | None) -> ModelLine:
    answers = [row for row in rows if row.status == "succeeded"]
    priced = [row.cost_usd for row in rows if row.cost_usd is not None]
    seconds = [row.latency_ms for row in answers if row.latency_ms is not None]
    return ModelLine(
        model=model,
        provider=next((row.provider for row in rows if row.provider), ""),
        attempts=len(rows),
        answered=len(answers),
        cost_usd=float(sum(priced)) if priced else None,
        unpriced=sum(row.cost_usd is None for row in answers),
        input_tokens=sum(row.input_tokens or 0 for row in answers),
        output_tokens=sum(row.output_tokens or 0 for row in answers),
        latency_p50_ms=statistics.median(seconds) if seconds else None,
        right=right[0] / right[1] if right and right[1] else None,
    )
