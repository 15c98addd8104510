"""What the ledger takes and returns: frozen, slotted dataclasses.

Money is `decimal.Decimal` in US dollars, latencies are milliseconds, token counts are integers,
ids are time-ordered UUIDs (version 7), times carry their time zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from . import errors

__all__ = [
    "Action",
    "Candidate",
    "Completion",
    "ConstraintKind",
    "ConstraintState",
    "CorpusManifest",
    "CorpusRow",
    "CostSource",
    "Decision",
    "DecisionOutcome",
    "DecisionRow",
    "DropReason",
    "EnsureOutcome",
    "EnsureResult",
    "ImportedModel",
    "InFlightRow",
    "JudgeAgreement",
    "JudgeDrift",
    "JudgeFinding",
    "JudgeQueue",
    "JudgeStatus",
    "Judgement",
    "JudgementLease",
    "Lease",
    "MaintainAction",
    "NextStep",
    "OrphanRepair",
    "OrphanRow",
    "OutcomeStatus",
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
    "RewardSource",
    "Routed",
    "RowResult",
    "RowStatus",
    "StartedAttempt",
    "StoredPayload",
    "UndoneRepair",
    "UpsertProgress",
    "UpsertResult",
    "VerdictRow",
    "VerdictWithdrawal",
    "Withdrawal",
]

OutcomeStatus = Literal["succeeded", "failed", "rejected", "abandoned"]
Action = Literal["retry", "failover", "hold", "give_up"]
CostSource = Literal["caller", "catalog", "unpriced", "no_usage"]
JudgeStatus = Literal["unlabeled", "claimed", "labeled", "cannot_evaluate"]
RewardSource = Literal["judge", "human"]
RowStatus = Literal["accepted", "replayed", "refused"]
EnsureOutcome = Literal["unchanged", "created", "replaced", "validated", "pending", "refused"]
ConstraintKind = Literal["check", "not_null", "unique"]
DropReason = Literal[
    "not_enrolled_no_price",
    "price_flagged",
    "not_enrolled_no_q_prior",
    "m_allowed_veto",
    "below_quality_floor",
    "exceeds_budget_cap",
    "exceeds_latency_cap",
    "cooling_down",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One ranked candidate of a decision.

    A candidate with a `drop_reason` was considered and is not eligible. `extra` is stored with it.
    """

    model_slug: str
    provider: str | None = None
    drop_reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The object that the ledger stores."""
        out: dict[str, Any] = {**self.extra, "model_slug": self.model_slug}
        if self.provider is not None:
            out["provider"] = self.provider
        if self.drop_reason is not None:
            out["drop_reason"] = self.drop_reason
        return out


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision is in the ledger; attempt 1 is open, or `outcome_status` is ``rejected``."""

    id: UUID
    attempt_id: UUID | None
    attempt_no: int | None
    model_slug: str | None
    provider: str | None
    decision_rule: str
    outcome_status: OutcomeStatus | None
    created: bool

    @property
    def rejected(self) -> bool:
        """True when no candidate was eligible, so that there is nothing to call."""
        return self.outcome_status == "rejected"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate as the router sees it: it has a `rank`, from 1, or a `drop_reason`.

    `quality` is what the floor is held against, 0 to 1; `quality_source` says whether that is the
    catalog's ``prior``, the ``measured`` mean of `samples` rewards, or its ``lower_bound``.
    """

    rank: int | None
    model_slug: str
    provider: str | None
    drop_reason: DropReason | None
    quality: float | None
    quality_source: Literal["prior", "measured", "lower_bound"] | None
    samples: int
    projected_cost_usd: Decimal | None
    cost_per_success_usd: Decimal | None
    expected_latency_ms: float | None
    ranking_score: Decimal | None
    ruleset_hash: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A request was routed and the decision is in the ledger; attempt 1 is open, to be dispatched
    after `delay_ms`, or `outcome_status` is ``rejected``.

    `fallbacks` are the models that follow when this one fails; `propensity` is the probability with
    which this model was served. `available_at`: when the first model returns, where all that is
    acceptable cools down.
    """

    id: UUID
    attempt_id: UUID | None
    attempt_no: int | None
    model_slug: str | None
    provider: str | None
    decision_rule: str
    outcome_status: OutcomeStatus | None
    fallbacks: list[str]
    delay_ms: int | None
    available_at: datetime | None
    projected_cost_usd: Decimal | None
    policy_version: str
    ruleset_hash: str
    propensity: float | None
    created: bool

    @property
    def rejected(self) -> bool:
        """True when no candidate was acceptable, so that there is nothing to call."""
        return self.outcome_status == "rejected"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A routing policy is stored under this version; not `created` where it was that already."""

    name: str
    version: int
    ruleset_hash: str
    created: bool


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Whose failures are met as was set: '' stands for all. Not `changed` where it was so before."""

    tenant_id: str
    model_slug: str
    error_class: str
    changed: bool


@dataclass(frozen=True, slots=True)
class StartedAttempt:
    """An attempt was opened by the caller's own choice."""

    id: UUID
    attempt_id: UUID
    attempt_no: int
    model_slug: str
    provider: str | None
    created: bool


@dataclass(frozen=True, slots=True)
class NextStep:
    """An attempt failed; what to do next. With ``retry`` and ``failover`` the next attempt is
    open already, and is to be dispatched after `delay_ms`, at `available_at`. With ``give_up``
    `available_at` says when the first model returns, where all that is left cools down."""

    id: UUID
    attempt_id: UUID
    action: Action
    next_attempt_id: UUID | None
    next_attempt_no: int | None
    next_model_slug: str | None
    next_provider: str | None
    delay_ms: int | None
    outcome_status: OutcomeStatus | None
    created: bool
    available_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A decision is closed. `late`: the reaper had closed it before."""

    id: UUID
    inference_id: UUID | None
    attempt_no: int | None
    outcome_status: OutcomeStatus
    cost_usd: Decimal | None
    cost_source: CostSource | None
    late: bool
    created: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The time until which the reaper leaves a decision alone."""

    id: UUID
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """A whole story was recorded in one call."""

    id: UUID
    inference_id: UUID | None
    attempts: int
    outcome_status: OutcomeStatus
    cost_usd: Decimal | None
    created: bool


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """The request and response of an attempt are stored."""

    id: UUID
    attempt_id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision that this judge has claimed: what was asked, what was answered, and what it took.

    `id` is the decision's; `lease_token` belongs to the answer, until `lease_expires_at` and after
    it until somebody else takes the claim. `attempt_no` counts the claims of this judge version,
    from 1. `request` and `response` are None where no payload was recorded, or none was asked for.
    """

    tenant_id: str
    id: UUID
    lease_token: UUID
    attempt_no: int
    lease_expires_at: datetime
    inference_id: UUID
    agent_id: str | None
    task_type: str | None
    model_slug: str
    provider: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    latency_ms: float | None
    event_at: datetime | None
    traffic_class: str
    metadata: dict[str, Any] | None
    request: Any
    response: Any


@dataclass(frozen=True, slots=True)
class JudgementLease:
    """The time until which nobody else is given a claimed decision."""

    id: UUID
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True)
class ReleasedJudgement:
    """A claim was given back. It is to be had again at `available_at`, which is None where the last
    attempt was used up."""

    id: UUID
    judge_status: JudgeStatus
    available_at: datetime | None


@dataclass(frozen=True, slots=True)
class RecordedVerdict:
    """A verdict is in the ledger. `reward` is the mean of all usable ones on the decision, 0 to 1,
    and `reward_source` ``human`` where a human's is among them, ``withdrawn`` where all were."""

    id: UUID
    usable: bool
    reward: float | None
    reward_source: Literal["judge", "human", "withdrawn"] | None
    judge_status: JudgeStatus
    created: bool


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Verdicts of one tenant that were withdrawn or reinstated together, one a decision, and how
    many of these decisions have no reward left."""

    tenant_id: str
    withdrawal_id: UUID
    verdicts: int
    unlabeled: int


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A line of the view ``verdicts``. It counts where it is `usable` and not withdrawn."""

    tenant_id: str
    outcome_id: UUID
    judge: str
    judge_version: str
    inference_id: UUID
    model_slug: str
    task_type: str | None
    score: float | None
    usable: bool
    label: str | None
    rationale: str | None
    reward_source: RewardSource
    attempt_no: int | None
    judge_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    recorded_at: datetime
    withdrawal_id: UUID | None
    withdrawn_at: datetime | None
    counts: bool


@dataclass(frozen=True, slots=True)
class JudgeFinding:
    """A line of the view ``judge_findings``: a judge version that should not be believed on a model
    as it stands. `n` verdicts since `since` say so; `detail` has what others say, and an example."""

    tenant_id: str
    kind: Literal["mono_zero", "mostly_unusable"]
    judge: str
    judge_version: str
    model_slug: str
    n: int
    since: datetime
    last_at: datetime
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """A line of the view ``judge_agreement``: two judge versions on the `n` decisions that both
    have judged.

    `equal_scores` and `agreement` are shares, the latter of those where both are on the same side
    of 0.5, of which `kappa` is Cohen's; `label_agreement` and `label_kappa` are of the `label_n`
    where both gave a label.
    """

    tenant_id: str
    judge_a: str
    version_a: str
    judge_b: str
    version_b: str
    n: int
    equal_scores: float
    mean_a: float
    mean_b: float
    agreement: float
    kappa: float | None
    label_n: int
    label_agreement: float | None
    label_kappa: float | None


@dataclass(frozen=True, slots=True)
class JudgeDrift:
    """A line of the view ``judge_drift``: what a judge version said on a day (UTC), beside the
    seven days before; `z` is the change in standard errors."""

    tenant_id: str
    judge: str
    judge_version: str
    day: date
    n: int
    unusable_n: int
    mean_score: float | None
    sd: float | None
    before_n: int
    before_mean: float | None
    change: float | None
    z: float | None


@dataclass(frozen=True, slots=True)
class JudgeQueue:
    """A line of the view ``judge_queue``: what waits for a judge version, or, with `judge` None, for
    whichever comes first. `ready` is what a claim could get now."""

    tenant_id: str
    judge: str | None
    judge_version: str | None
    ready: int
    unlabeled: int
    delayed: int
    claimed: int
    expired: int
    oldest_at: datetime | None
    searched_at: datetime | None


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A labelled decision, the attempt that answered it, and the verdicts on it.

    What follows from `attempt_no` to `ttft_ms` is about that attempt; `attempts` counts all.
    `reward` is the mean of `verdict_n` scores. `request`, `response` and the rationales of
    `verdicts` are there where payloads were asked for.
    """

    tenant_id: str
    id: UUID
    agent_id: str | None
    task_type: str | None
    traffic_class: str
    decision_rule: str
    policy_version: str | None
    ruleset_hash: str | None
    min_quality: float | None
    propensity: float | None
    candidates: list[Any]
    metadata: dict[str, Any] | None
    event_at: datetime | None
    completed_at: datetime
    attempts: int
    inference_id: UUID
    attempt_no: int
    model_slug: str
    provider: str | None
    response_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_input_tokens: int | None
    cache_creation_input_tokens: int | None
    reasoning_output_tokens: int | None
    cost_usd: Decimal | None
    cost_source: CostSource | None
    cost_flag: str | None
    latency_ms: float | None
    ttft_ms: float | None
    reward: float
    reward_source: RewardSource
    verdict_n: int
    verdicts: list[dict[str, Any]]
    request: Any
    response: Any


@dataclass(frozen=True, slots=True)
class CorpusManifest:
    """What a corpus holds, and by which filters. `models` and the like count its rows by value,
    and `left_out` the decisions in the window that are none, by the reason."""

    tenant_id: str
    from_day: date | None
    to_day: date | None
    traffic_class: list[str]
    mix_synthetic: bool
    reward_source: list[str] | None
    task_type: str | None
    outcomes: int
    first_id: UUID
    last_id: UUID
    verdicts: int
    mean_reward: float
    cost_usd: Decimal | None
    input_tokens: int | None
    output_tokens: int | None
    models: dict[str, int]
    task_types: dict[str, int]
    traffic_classes: dict[str, int]
    reward_sources: dict[str, int]
    judges: list[dict[str, Any]]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class PolicyEstimate:
    """What a policy would have been worth or have cost, by the decisions that were made.

    `measure` is quality (the mean reward) or cost_usd (the mean in USD per decision), in an interval from
    `low` to `high`; None where it cannot be said. Of `decisions` closed ones it is about `n`; the last
    counts say why the others are left out. For `answered` of the n the policy chooses a model, and
    `matched` had that model chosen, with a known result. `effective_n` equally weighing decisions would
    say as much; `mean_weight` is near 1 where the propensities are right. These are None of the first two
    estimators."""

    estimator: Literal["as_it_was", "direct", "ips", "snips", "doubly_robust"]
    measure: Literal["quality", "cost_usd"]
    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    decisions: int
    n: int
    answered: int
    matched: int | None
    effective_n: float | None
    mean_weight: float | None
    largest_weight: float | None
    no_candidates: int
    no_propensity: int
    no_chance: int
    unmeasured: int
    ruleset_hash: str


@dataclass(frozen=True, slots=True)
class VerdictWithdrawal:
    """A line of the view ``verdict_withdrawals``: what was withdrawn, by whom, and why. `from_day`
    and `to_day` (exclusive) are days of the decisions in UTC."""

    tenant_id: str
    withdrawal_id: UUID
    judge: str
    judge_version: str
    model_slug: str | None
    from_day: date | None
    to_day: date | None
    reason: str
    verdicts: int
    unlabeled: int
    withdrawn_by: str
    withdrawn_at: datetime
    reinstated_by: str | None
    reinstated_at: datetime | None


@dataclass(frozen=True, slots=True)
class Reaped:
    """The reaper closed this decision as ``abandoned``."""

    tenant_id: str
    id: UUID
    inference_id: UUID | None
    attempt_no: int | None


@dataclass(frozen=True, slots=True)
class MaintainAction:
    """One thing that maintenance did, and to what."""

    action: str
    object: str


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """One dated price of one model, as it stands in the catalogue."""

    model_slug: str
    valid_from: datetime
    flag: str | None


@dataclass(frozen=True, slots=True)
class RowResult(Generic[T]):
    """The answer to one row of a set-based call; `ord` counts from 1 in the order sent."""

    ord: int
    status: RowStatus
    code: str | None
    message: str | None
    detail: dict[str, Any] | None
    hint: str | None
    result: T | None

    @property
    def error(self) -> errors.LedgerError | None:
        """The exception that the single form would have raised, or None."""
        if self.status != "refused":
            return None
        return errors.from_code(self.code or "RL107", self.message or "", self.detail, self.hint)

    def unwrap(self) -> T:
        """The result; raises the row's error when it was refused."""
        if (error := self.error) is not None:
            raise error
        assert self.result is not None
        return self.result


@dataclass(frozen=True, slots=True)
class DecisionOutcome:
    """How a decision of the loop ended.

    `spooled` is True when the ledger could not be reached and the ending waits in the spool; the
    cost is then unknown to the client.
    """

    status: OutcomeStatus
    attempt_id: UUID | None = None
    attempt_no: int | None = None
    model_slug: str | None = None
    cost_usd: Decimal | None = None
    cost_source: CostSource | None = None
    error_type: str | None = None
    late: bool = False
    spooled: bool = False


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A line of the view ``decisions``. `latency_ms` is from creation to completion."""

    tenant_id: str
    id: UUID
    agent_id: str | None
    task_type: str | None
    model_slug: str | None
    provider: str | None
    decision_rule: str
    decision_rule_override: str | None
    outcome_status: OutcomeStatus | None
    attempts: int
    failovers: int
    cost_usd: Decimal | None
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float | None
    created_at: datetime
    event_at: datetime | None
    completed_at: datetime | None
    late_completion: bool
    traffic_class: str


@dataclass(frozen=True, slots=True)
class InFlightRow:
    """A line of the view ``in_flight``: a decision that is not closed yet."""

    tenant_id: str
    id: UUID
    agent_id: str | None
    task_type: str | None
    attempt_id: UUID | None
    attempt_no: int | None
    model_slug: str | None
    created_at: datetime
    lease_expires_at: datetime
    expired: bool
    age: timedelta


@dataclass(frozen=True, slots=True)
class OrphanRow:
    """A line of the view ``orphans``, which is always empty."""

    tenant_id: str
    outcome_id: UUID | None
    inference_id: UUID | None
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReconciliationRow:
    """A line of the view ``reconciliation``: an hour of one tenant. `agrees` is always true."""

    hour: datetime
    tenant_id: str
    decided: int
    succeeded: int
    failed: int
    rejected: int
    abandoned: int
    in_flight: int
    attempts: int
    open_attempts: int
    cost_usd: Decimal | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that an upsert did not write: its place in the stream, from 1, and why."""

    ord: int
    code: str
    message: str
    detail: dict[str, Any]
    hint: str | None

    @property
    def error(self) -> errors.LedgerError:
        """The exception that strict mode would have raised."""
        return errors.from_code(self.code, self.message, self.detail, self.hint)


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What became of the rows: received = collapsed + inserted + updated + unchanged + refused.

    `collapsed` lost against another row of their key in the same chunk, `unchanged` against the
    one in the table, or are equal to it. `refusals` holds the first 10,000 in the order of rows.
    """

    received: int
    collapsed: int
    inserted: int
    updated: int
    unchanged: int
    refused: int
    refusals: list[Refusal]


@dataclass(frozen=True, slots=True)
class UpsertProgress:
    """How far an upsert is: rows that are done, and chunks (or parts of them, where several
    connections share one). `total` is None for a stream."""

    received: int
    collapsed: int
    inserted: int
    updated: int
    unchanged: int
    refused: int
    chunks: int
    total: int | None


@dataclass(frozen=True, slots=True)
class EnsureResult:
    """What was found of a constraint, and done about it.

    Attributes:
        outcome: ``unchanged``; ``created``, ``replaced``, ``validated``; ``pending`` (it is there
            and not validated yet); ``refused`` (nothing was changed, and `reason` says why).
        validated: it holds for every row, not only for those written from now on.
        violations: rows that violate it; None where they were not counted.
        definition: what was declared, as Postgres writes it: a predicate, or an index.
        found: what was there before the first call; None when nothing was.
        reason: one word, where something is in the way.
        next: what remains to be done; None when nothing does.
        detail: samples, notes, what is in the way, the ids of the change and of the repair.
        steps: the outcome of each call that was made, each in a transaction of its own.
    """

    outcome: EnsureOutcome
    validated: bool | None
    violations: int | None
    definition: str | None
    found: str | None
    reason: str | None
    next: str | None
    detail: dict[str, Any]
    steps: tuple[EnsureOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class ConstraintState:
    """A declared constraint beside the one that is live; `state` is ``unchanged`` if they agree."""

    target: str
    name: str
    kind: ConstraintKind
    state: str
    declared: str | None
    found: str | None
    detail: dict[str, Any]
    origin: str


@dataclass(frozen=True, slots=True)
class PlannedConstraint:
    """What the next step of applying a declared constraint would be; see `EnsureResult`."""

    target: str
    name: str
    kind: ConstraintKind
    outcome: EnsureOutcome
    validated: bool | None
    violations: int | None
    definition: str | None
    found: str | None
    reason: str | None
    next: str | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrphanRepair:
    """A case that a repair of orphans looked at.

    `action` is ``link``, ``close`` or ``leave``; `outcome` and `inference` are the ids of the rows
    as text. `repair_id` is None in a dry run and for what was left.
    """

    action: Literal["link", "close", "leave"]
    outcome: str | None
    inference: str | None
    reason: str
    repair_id: int | None


@dataclass(frozen=True, slots=True)
class UndoneRepair:
    """Rows put back, taken away again and changed back; `repair_id` is that of the undoing itself.

    `conflicts` are the rows that had changed since and were overwritten (``force``), or would be
    in the way (``dry_run``).
    """

    repair_id: int | None
    restored: int
    removed: int
    changed: int
    conflicts: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RepairRow:
    """A row as a repair found or left it, as text; `what` is ``removed``, ``before``, ``after``,
    ``added`` or ``kept``."""

    target: str
    row_no: int
    what: str
    row_text: str
