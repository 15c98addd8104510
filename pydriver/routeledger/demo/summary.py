"""What the demo found, as plain data: the terminal, the report and ``--json`` all print this."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any

# How a decision can end, in the order in which people want to read it.
ENDINGS = (
    "first attempt",  # succeeded, nothing went wrong
    "retry",  # succeeded after another try at the same model
    "failover",  # succeeded at another model
    "failed",  # every candidate failed
    "cancelled",  # the client hung up
    "rejected",  # no candidate was good enough: nothing was called
    "abandoned",  # its writer died; the reaper closed it
    "in flight",
)


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Server:
    """``description`` says which server this was, whose, and as which user it ran."""

    description: str
    version: str
    private: bool
    database: str
    dsn: str | None = None  # only when the database was kept


@dataclass(frozen=True, slots=True)
class Traffic:
    label: str
    synthetic: bool
    requests: int
    span_s: float
    answers: str  # where the simulated answers come from
    concurrency: int
    speed: float


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One model: attempts made at it and what came of them. ``unpriced``: answers of unknown
    cost. ``right``: the share of its answers that were right, where known."""

    model: str
    provider: str
    attempts: int
    answered: int
    cost_usd: float | None
    unpriced: int
    input_tokens: int
    output_tokens: int
    latency_p50_ms: float | None
    right: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Attempts that failed with one ``error_type``, and how many of their decisions were
    answered all the same."""

    error_type: str
    attempts: int
    decisions: int
    answered: int


@dataclass(frozen=True, slots=True)
class Flow:
    """``n`` decisions whose first attempt, at ``first``, failed with ``fault``, and which ended
    at ``end``: the model that answered, or an ending such as 'failed'."""

    first: str
    fault: str
    end: str
    n: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Decisions by ending, of a stretch of the traffic that begins ``begins_s`` into it."""

    begins_s: float
    endings: dict[str, int]


SLICES_S = (1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 10_800, 21_600, 86_400)


def slice_width(span_s: float) -> int:
    """How long a slice of the timeline is, so that there are at most about seventy."""
    return next((width for width in SLICES_S if span_s / width <= 70), SLICES_S[-1])


@dataclass(frozen=True, slots=True)
class Incident:
    """A provider's bad spell, in seconds from the beginning of the traffic."""

    label: str
    begins_s: float
    ends_s: float


# The edges, in ms, of the histogram's bins: ten to a factor of ten, from 0.1 ms to 10 s.
EDGES = tuple(10 ** (k / 10) for k in range(-10, 41))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one kind of ledger call took, in ms, as its caller saw it. ``histogram`` counts
    calls by the bins of ``EDGES``; what lies outside counts in the first or last bin."""

    call: str
    mode: str
    n: int
    p50: float
    p95: float
    p99: float
    max: float
    histogram: tuple[int, ...]

    @classmethod
    def of(cls, call: str, mode: str, ms: Sequence[float]) -> Latency:
        ordered = sorted(ms)
        counts = [0] * (len(EDGES) - 1)
        for value in ordered:
            counts[min(max(bisect_right(EDGES, value) - 1, 0), len(counts) - 1)] += 1
        return cls(
            call,
            mode,
            len(ordered),
            percentile(ordered, 0.50),
            percentile(ordered, 0.95),
            percentile(ordered, 0.99),
            ordered[-1] if ordered else 0.0,
            tuple(counts),
        )


def percentile(ordered: Sequence[float], level: float) -> float:
    """The nearest-rank percentile of ascending values: a value that was really measured."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(level * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class VictimDecision:
    """A decision of the writer that was killed; times in seconds since the writer's start."""

    id: str
    model: str | None
    attempts: int
    created_s: float
    closed_s: float | None
    lease_ends_s: float | None
    status: str | None
    error_type: str | None
    linked: bool
    in_flight_when_killed: bool


@dataclass(frozen=True, slots=True)
class Victim:
    """The killed writer. Of ``in_flight`` decisions open at the kill, the reaper closed
    ``reaped``; ``abandoned_and_linked`` of them stand so in the books."""

    pid: int
    exit_signal: str
    lease_s: float
    written: int
    completed: int
    in_flight: int
    abandoned_and_linked: int
    reaped: int
    killed_s: float
    reaped_s: float
    decisions: tuple[VictimDecision, ...]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One line of the reconciliation view: an hour of a tenant."""

    hour: datetime
    tenant: str
    decided: int
    succeeded: int
    failed: int
    rejected: int
    abandoned: int
    in_flight: int
    attempts: int
    open_attempts: int
    cost_usd: float | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Summary:
    version: str
    started_at: datetime
    seconds: float
    phases: tuple[Phase, ...]
    server: Server
    traffic: Traffic
    decisions: int
    endings: dict[str, int]
    attempts: int
    retries: int
    failovers: int
    rescued: int  # answered although an attempt had failed
    cost_usd: float
    unpriced: int
    input_tokens: int
    output_tokens: int
    replay_seconds: float
    ledger_calls: int
    models: tuple[ModelLine, ...]
    faults: tuple[Fault, ...]
    flows: tuple[Flow, ...]
    slice_s: int
    slices: tuple[Slice, ...]
    incidents: tuple[Incident, ...]
    latencies: tuple[Latency, ...]
    victim: Victim
    reconciliation: tuple[Reconciled, ...]
    orphans: int
    lost: int  # decisions that a caller was told are durable and the books do not hold
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the books are in order."""
        return not self.problems

    @property
    def agrees(self) -> bool:
        """Whether every line of the reconciliation agrees."""
        return all(line.agrees for line in self.reconciliation)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON types, without the histograms' bins."""
        document: dict[str, Any] = plain(dataclasses.asdict(self))
        document["ok"] = self.ok
        document["reconciliation_agrees"] = self.agrees
        for latency in document["latencies"]:
            del latency["histogram"]
        return document


def find_problems(
    *,
    orphans: int,
    lost: int,
    in_flight: int,
    reconciliation: Sequence[Reconciled],
    victim: Victim,
) -> tuple[str, ...]:
    """Everything that is wrong with the books, one sentence each; empty when all is well."""
    problems = []
    if orphans:
        problems.append(f"{orphans} orphans: outcomes or attempts without their other half")
    if lost:
        problems.append(f"{lost} decisions were acknowledged but are not in the books")
    if in_flight:
        problems.append(f"{in_flight} decisions are still in flight")
    wrong = sum(not line.agrees for line in reconciliation)
    if wrong:
        problems.append(f"{wrong} of {len(reconciliation)} reconciliation lines disagree")
    if not reconciliation:
        problems.append("the reconciliation is empty")
    if not victim.in_flight:
        problems.append("the killed writer had nothing in flight, so nothing was proved")
    left = victim.in_flight - victim.abandoned_and_linked
    if left:
        problems.append(
            f"{left} of the killed writer's {victim.in_flight} decisions in flight "
            "were not closed as abandoned and linked"
        )
    return tuple(problems)


def plain(value: Any) -> Any:
    """A document with times as text, numbers as floats to six places, and tuples as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return round(value, 6)
    return value
