"""The writing routines: statement, set-based statement, defaults, and how an answer is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _calls, types
from ._codec import Row

if TYPE_CHECKING:
    from typing_extensions import LiteralString

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Routine(Generic[T]):
    """A routine in both its forms.

    `order` is the place of its rows where one transaction carries several routines: what opens
    comes before what closes. `arrays` are those of its parameters that are no documents.
    """

    name: str
    many_name: str
    single: LiteralString
    many: LiteralString
    result: Callable[..., T]
    defaults: Row
    has_created: bool
    order: int
    arrays: tuple[str, ...] = ()
    before_created: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.has_created:
            names = [of.name for of in fields(self.result)]  # type: ignore[arg-type]
            object.__setattr__(self, "before_created", names.index("created"))

    def read_single(self, record: tuple[Any, ...]) -> T:
        """The result of the single form's one row."""
        return self.result(*record)

    def read_many(self, record: tuple[Any, ...]) -> T:
        """The result of one accepted or replayed row of the set-based form."""
        if self.has_created:
            place = 6 + self.before_created
            return self.result(*record[6:place], record[1] == "accepted", *record[place:])
        return self.result(*record[6:])

    def read_row(self, record: tuple[Any, ...]) -> types.RowResult[T]:
        """One row's answer, refused or not."""
        result = None if record[1] == "refused" else self.read_many(record)
        ord_, status, code, message, detail, hint = record[:6]
        return types.RowResult(ord_, status, code, message, detail, hint, result)


def _nulls(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split())


_USAGE = "input_tokens output_tokens cost_usd latency_ms ttft_ms provider_response_id"
_DECISION = {
    **_nulls(
        "id agent_id task_type chosen_model_slug decision_rule min_quality budget_cap_usd"
        " policy_version event_at metadata"
    ),
    "candidates": [],
    "traffic_class": "production",
}

INSERT_DECISION = Routine(
    "insert_decision",
    "insert_decisions",
    _calls.INSERT_DECISION,
    _calls.INSERT_DECISIONS,
    types.Decision,
    {
        **_DECISION,
        **_nulls("lease attempt_id budget_key deadline ruleset_hash propensity"),
    },
    True,
    0,
)
ROUTE = Routine(
    "route",
    "routes",
    _calls.ROUTE,
    _calls.ROUTES,
    types.Routed,
    {
        **_nulls(
            "id agent_id task_type candidates input_tokens output_tokens pinned_model budget_key"
            " deadline event_at lease attempt_id metadata seed"
        ),
        "policy": "default",
        "overrides": {},
        "traffic_class": "production",
    },
    True,
    0,
    ("candidates",),
)
START_ATTEMPT = Routine(
    "start_attempt",
    "start_attempts",
    _calls.START_ATTEMPT,
    _calls.START_ATTEMPTS,
    types.StartedAttempt,
    _nulls("attempt_id provider"),
    True,
    1,
)
FAIL_ATTEMPT = Routine(
    "fail_attempt",
    "fail_attempts",
    _calls.FAIL_ATTEMPT,
    _calls.FAIL_ATTEMPTS,
    types.NextStep,
    {
        **_nulls(f"error_message http_status retry_after_ms next_attempt_id {_USAGE}"),
        "next": "policy",
    },
    True,
    2,
)
EXTEND_LEASE = Routine(
    "extend_lease",
    "extend_leases",
    _calls.EXTEND_LEASE,
    _calls.EXTEND_LEASES,
    types.Lease,
    _nulls("lease"),
    False,
    3,
)
COMPLETE_DECISION = Routine(
    "complete_decision",
    "complete_decisions",
    _calls.COMPLETE_DECISION,
    _calls.COMPLETE_DECISIONS,
    types.Completion,
    _nulls(
        f"attempt_id {_USAGE} cache_read_input_tokens cache_creation_input_tokens"
        " reasoning_output_tokens http_status error_type error_message response_model"
        " finish_reasons decision_rule_override"
    ),
    True,
    4,
    ("finish_reasons",),
)
RECORD_OUTCOME = Routine(
    "record_outcome",
    "record_outcomes",
    _calls.RECORD_OUTCOME,
    _calls.RECORD_OUTCOMES,
    types.RecordedOutcome,
    {**_DECISION, "attempts": [], "decision_rule_override": None},
    True,
    5,
)
RECORD_PAYLOAD = Routine(
    "record_payload",
    "record_payloads",
    _calls.RECORD_PAYLOAD,
    _calls.RECORD_PAYLOADS,
    types.StoredPayload,
    _nulls("request response"),
    True,
    6,
)
RENEW_JUDGEMENT = Routine(
    "renew_judgement",
    "renew_judgements",
    _calls.RENEW_JUDGEMENT,
    _calls.RENEW_JUDGEMENTS,
    types.JudgementLease,
    _nulls("lease"),
    False,
    7,
)
RELEASE_JUDGEMENT = Routine(
    "release_judgement",
    "release_judgements",
    _calls.RELEASE_JUDGEMENT,
    _calls.RELEASE_JUDGEMENTS,
    types.ReleasedJudgement,
    _nulls("error delay"),
    False,
    8,
)
RECORD_VERDICT = Routine(
    "record_verdict",
    "record_verdicts",
    _calls.RECORD_VERDICT,
    _calls.RECORD_VERDICTS,
    types.RecordedVerdict,
    {
        **_nulls(
            "score label rationale lease_token judge_model input_tokens output_tokens cost_usd"
        ),
        "reward_source": "judge",
    },
    True,
    9,
)
IMPORT_MODELS = Routine(
    "import_models",
    "import_models",
    _calls.IMPORT_MODELS,
    _calls.IMPORT_MODELS,
    types.ImportedModel,
    {},
    False,
    10,
)

ROUTINES: dict[str, Routine[Any]] = {
    r.name: r
    for r in (
        INSERT_DECISION,
        ROUTE,
        START_ATTEMPT,
        FAIL_ATTEMPT,
        EXTEND_LEASE,
        COMPLETE_DECISION,
        RECORD_OUTCOME,
        RECORD_PAYLOAD,
        RENEW_JUDGEMENT,
        RELEASE_JUDGEMENT,
        RECORD_VERDICT,
    )
}
