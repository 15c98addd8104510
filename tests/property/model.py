"""The ledger's rules once more, in Python and in memory: what each call has to answer.

It is written from the documented behaviour and not from the SQL. Rows are those of the single
forms; ids, and attempts' ids above all, may be left to the ledger, and are then learnt from its
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.property.ledger import Row

LEASE = timedelta(seconds=60)
ATTEMPTS_PER_MODEL = 2
MAX_ATTEMPTS = 4
BASE_MS = 100
CAP_MS = 10_000

SETTINGS = {
    "lease": "60 seconds",
    "retry_attempts_per_model": ATTEMPTS_PER_MODEL,
    "retry_max_attempts": MAX_ATTEMPTS,
    "retry_base": "100 milliseconds",
    "retry_cap": "10 seconds",
    "retry_jitter": 0,
    "cooldown_cap": "0",
}
# USD a million tokens, in and out; what is not here has no known price
PRICES = {"alpha": (Decimal(1), Decimal(2)), "beta": (Decimal(0), Decimal(0))}
PROVIDERS = {"beta": "lab"}

ANY = object()
"""A value that the ledger makes up."""


@dataclass
class Expected:
    """What the ledger has to say; values that are ANY are its own choice."""

    status: str
    code: str | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def matches(self, values: Mapping[str, Any]) -> bool:
        return all(want is ANY or values[name] == want for name, want in self.values.items())


def refused(code: str) -> Expected:
    return Expected("refused", code)


@dataclass
class Attempt:
    id: str | None
    number: int
    candidate: int | None
    model: str
    provider: str | None
    started_at: datetime
    status: str = "routed"
    # what the caller said when it ended
    said: Row = field(default_factory=dict)
    cost: Decimal | None = None
    cost_source: str | None = None
    # what fail_attempt answered
    action: str | None = None
    delay_ms: int = 0
    reaped: bool = False


@dataclass
class Decision:
    row: Row
    candidates: list[Row]
    rule: str
    chosen: str | None
    lease: timedelta
    lease_until: datetime | None
    told: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    outcome: str | None = None
    override: str | None = None
    linked: Attempt | None = None
    late: bool = False
    abandoned: bool = False
    # closed while no attempt was open: the failure that stood there was linked as it was
    closed_on_hold: bool = False

    @property
    def open(self) -> Attempt | None:
        found = [attempt for attempt in self.attempts if attempt.status == "routed"]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    def attempt(self, id: str | None) -> Attempt | None:
        return next((a for a in self.attempts if id is not None and a.id == id), None)


def text(value: str | None) -> str | None:
    """An error message as it is kept."""
    if value is not None and len(value) > 8192:
        return f"{value[:8150]} [cut from {len(value)} characters]"
    return value


def lease_of(row: Mapping[str, Any]) -> timedelta:
    """Its own lease, in whole seconds, or that of the settings."""
    given = row.get("lease")
    return timedelta(seconds=int(given.split()[0])) if given else LEASE


def cost(model: str, row: Mapping[str, Any]) -> tuple[Decimal | None, str]:
    """What an attempt cost, and who says so. A token whose price is unknown has no cost at all."""
    given = row.get("cost_usd")
    if given is not None:
        return Decimal(str(given)), "caller"
    tokens = [row.get("input_tokens"), row.get("output_tokens")]
    if tokens == [None, None]:
        return None, "no_usage"
    if model not in PRICES:
        return None, "unpriced"
    prices = PRICES[model]
    return sum((Decimal(n or 0) * p for n, p in zip(tokens, prices, strict=True)), Decimal(0)) / (
        1_000_000
    ), "catalog"


class Ledger:
    """All decisions of one tenant."""

    def __init__(self) -> None:
        self.decisions: dict[str, Decision] = {}
        self.payloads: dict[tuple[str, str], Row] = {}

    def answer(self, routine: str, row: Row, now: datetime) -> Expected:
        """What this call has to say, done."""
        found: Expected = getattr(self, routine)(row, now)
        return found

    # -- a decision begins ------------------------------------------------------------------

    def _prepared(self, row: Row) -> tuple[list[Row], int | None, str | None, str]:
        """Candidates as they are kept, the chosen one's place and model, and the rule."""
        candidates = [
            {"model_slug": c} if isinstance(c, str) else c for c in row.get("candidates") or []
        ]
        rule = row.get("decision_rule")
        if rule in ("no_candidate_clears_floor", "no_candidate_enrolled"):
            return candidates, None, None, rule
        chosen = row.get("chosen_model_slug")
        eligible = [n for n, c in enumerate(candidates, 1) if c.get("drop_reason") is None]
        if chosen is not None:
            places = [n for n, c in enumerate(candidates, 1) if c["model_slug"] == chosen]
            place = next((n for n in places if n in eligible), places[0] if places else None)
            return candidates, place, chosen, rule or ("caller_ranked" if candidates else "pinned")
        if eligible:
            slug = candidates[eligible[0] - 1]["model_slug"]
            return candidates, eligible[0], slug, rule or "caller_ranked"
        none = "no_candidate_clears_floor" if candidates else "no_candidate_enrolled"
        return candidates, None, None, rule or none

    def _provider(self, decision: Decision, place: int | None, model: str) -> str | None:
        named = decision.candidates[place - 1].get("provider") if place else None
        return named or PROVIDERS.get(model)

    FACTS = ("agent_id", "task_type", "min_quality", "policy_version", "metadata")

    def insert_decision(self, row: Row, now: datetime) -> Expected:
        candidates, place, chosen, rule = self._prepared(row)
        known = self.decisions.get(row["id"])
        if known is not None:
            first = known.attempts[0] if known.attempts else None
            same = (
                not known.told
                and (known.candidates, known.chosen, known.rule) == (candidates, chosen, rule)
                and all(known.row.get(k) == row.get(k) for k in self.FACTS)
                # what the ledger fills in by itself is compared where the caller states it
                and row.get("lease") in (None, known.row.get("lease"))
                # of a rejected decision no attempt was kept
                and (first is None or row.get("attempt_id") in (None, first.id))
            )
            if not same:
                return refused("RL301")
            return Expected("replayed", values=self._decided(row["id"], known))
        decision = Decision(row, candidates, rule, chosen, lease_of(row), None)
        self.decisions[row["id"]] = decision
        if chosen is None:
            decision.outcome = "rejected"
        else:
            decision.lease_until = now + decision.lease
            provider = self._provider(decision, place, chosen)
            decision.attempts.append(
                Attempt(row.get("attempt_id"), 1, place, chosen, provider, now)
            )
        return Expected("accepted", values=self._decided(row["id"], decision))

    def _decided(self, id: str, decision: Decision) -> Row:
        first = decision.attempts[0] if decision.attempts else None
        return {
            "id": id,
            "attempt_id": first and (first.id or ANY),
            "attempt_no": first and 1,
            "model_slug": first and first.model,
            "provider": first and first.provider,
            "decision_rule": decision.rule,
            "outcome_status": None if first else "rejected",
        }

    # -- an attempt fails, another starts ---------------------------------------------------

    FAILURE = (
        "error_type",
        "http_status",
        "retry_after_ms",
        "provider_response_id",
        "input_tokens",
        "output_tokens",
    )

    def _failed(self, id: str, decision: Decision, attempt: Attempt) -> Row:
        following = None
        if attempt.action in ("retry", "failover"):
            following = decision.attempts[attempt.number]
        return {
            "id": id,
            "attempt_id": attempt.id,
            "action": attempt.action,
            "next_attempt_id": following and (following.id or ANY),
            "next_attempt_no": following and following.number,
            "next_model_slug": following and following.model,
            "next_provider": following and following.provider,
            "delay_ms": attempt.delay_ms,
            "outcome_status": "failed" if attempt.action == "give_up" else None,
        }

    def fail_attempt(self, row: Row, now: datetime) -> Expected:
        if row.get("next_attempt_id") == row["attempt_id"]:
            return refused("RL103")
        decision = self.decisions.get(row["id"])
        if decision is None:
            return refused("RL201")
        attempt = decision.attempt(row["attempt_id"])
        if attempt is None:
            return refused("RL202")
        wish = row.get("next") or "policy"
        if attempt.status != "routed":
            if attempt.action is None or not self._same_failure(attempt, row, wish):
                return refused("RL401" if attempt.reaped else "RL304")
            if attempt.action in ("retry", "failover") and row.get("next_attempt_id") not in (
                None,
                decision.attempts[attempt.number].id,
            ):
                return refused("RL301")
            return Expected("replayed", values=self._failed(row["id"], decision, attempt))

        action, delay, place = self._next(decision, attempt, row, wish)
        if action in ("retry", "failover") and decision.attempt(row.get("next_attempt_id")):
            return refused("RL301")
        attempt.status = "failed"
        attempt.said = dict(row)
        attempt.cost, attempt.cost_source = cost(attempt.model, row)
        attempt.action, attempt.delay_ms = action, delay
        if action in ("retry", "failover"):
            wait = timedelta(milliseconds=delay)
            number = len(decision.attempts) + 1
            new = Attempt(row.get("next_attempt_id"), number, place, "", None, now + wait)
            if action == "retry":
                new.model, new.provider = attempt.model, attempt.provider
            else:
                assert place is not None
                new.model = decision.candidates[place - 1]["model_slug"]
                new.provider = self._provider(decision, place, new.model)
            decision.attempts.append(new)
            self._prolong(decision, now + wait)
        elif action == "give_up":
            self._close(decision, "failed", attempt)
        return Expected("accepted", values=self._failed(row["id"], decision, attempt))

    def _same_failure(self, attempt: Attempt, row: Row, wish: str) -> bool:
        return (
            all(attempt.said.get(k) == row.get(k) for k in self.FAILURE)
            and text(attempt.said.get("error_message")) == text(row.get("error_message"))
            and row.get("cost_usd") in (None, attempt.said.get("cost_usd"))
            and wish in ("policy", attempt.action)
        )

    def _next(
        self, decision: Decision, attempt: Attempt, row: Row, wish: str
    ) -> tuple[str, int, int | None]:
        """What to do, after how many milliseconds, with which candidate."""
        if wish != "policy":
            return wish, 0, None
        if len(decision.attempts) >= MAX_ATTEMPTS:
            return "give_up", 0, None
        if row["error_type"] in ("abandoned", "bad_request"):
            return "give_up", 0, None
        same = [
            a
            for a in decision.attempts
            if (a.model, a.candidate) == (attempt.model, attempt.candidate)
        ]
        status, wait = row.get("http_status"), row.get("retry_after_ms") or 0
        passing = status is None or status in (408, 409, 425, 429) or status >= 500
        if len(same) < ATTEMPTS_PER_MODEL and passing and wait <= CAP_MS:
            backoff = min(CAP_MS, BASE_MS * 2 ** (len(same) - 1))
            return "retry", max(wait, backoff), attempt.candidate
        tried = {a.candidate for a in decision.attempts}
        for place, candidate in enumerate(decision.candidates, 1):
            if candidate.get("drop_reason") is None and place not in tried:
                return "failover", 0, place
        return "give_up", 0, None

    def start_attempt(self, row: Row, now: datetime) -> Expected:
        decision = self.decisions.get(row["id"])
        if decision is None:
            return refused("RL201")
        model, provider = row["model_slug"], row.get("provider")
        known = decision.attempt(row.get("attempt_id"))
        if known:
            if known.model != model or provider not in (None, known.provider):
                return refused("RL301")
            return Expected("replayed", values=self._started(row["id"], known))
        if decision.outcome == "abandoned":
            return refused("RL401")
        if decision.outcome is not None:
            return refused("RL305")
        if decision.open:
            return refused("RL303")
        if len(decision.attempts) >= MAX_ATTEMPTS:
            return refused("RL503")
        place = next(
            (
                n
                for n, c in enumerate(decision.candidates, 1)
                if c["model_slug"] == model and provider in (None, c.get("provider") or provider)
            ),
            None,
        )
        provider = provider or self._provider(decision, place, model)
        attempt = Attempt(
            row.get("attempt_id"), len(decision.attempts) + 1, place, model, provider, now
        )
        decision.attempts.append(attempt)
        self._prolong(decision, now)
        return Expected("accepted", values=self._started(row["id"], attempt))

    def _started(self, id: str, attempt: Attempt) -> Row:
        return {
            "id": id,
            "attempt_id": attempt.id or ANY,
            "attempt_no": attempt.number,
            "model_slug": attempt.model,
            "provider": attempt.provider,
        }

    def _prolong(self, decision: Decision, start: datetime) -> None:
        assert decision.lease_until is not None
        decision.lease_until = max(decision.lease_until, start + decision.lease)

    # -- a decision ends --------------------------------------------------------------------

    COMPLETION = (
        "input_tokens",
        "output_tokens",
        "http_status",
        "cost_usd",
        "provider_response_id",
        "finish_reasons",
    )

    def _close(self, decision: Decision, outcome: str, linked: Attempt | None) -> None:
        decision.outcome = outcome
        decision.linked = linked
        decision.lease_until = None

    def _end(self, attempt: Attempt, row: Row) -> None:
        attempt.status = row["outcome_status"]
        attempt.said = dict(row)
        if row.get("decision_rule_override"):
            attempt.said.setdefault("error_type", "not_dispatched")
        attempt.cost, attempt.cost_source = cost(attempt.model, row)

    def _same_completion(self, attempt: Attempt, row: Row) -> bool:
        unsent = "not_dispatched" if row.get("decision_rule_override") else None
        return (
            attempt.status == row["outcome_status"]
            and all(attempt.said.get(k) == row.get(k) for k in self.COMPLETION)
            and text(attempt.said.get("error_message")) == text(row.get("error_message"))
            and attempt.said.get("error_type") == (row.get("error_type") or unsent)
        )

    def complete_decision(self, row: Row, now: datetime) -> Expected:
        decision = self.decisions.get(row["id"])
        if decision is None:
            return refused("RL201")
        attempt = decision.last
        if row.get("attempt_id") is not None:
            attempt = decision.attempt(row["attempt_id"])
            if attempt is None:
                return refused("RL202")
        override = row.get("decision_rule_override")

        if decision.outcome is None:
            assert attempt is not None
            if override:
                if len(decision.attempts) > 1 or decision.open is None:
                    return refused("RL306")
                self._end(attempt, row)
            elif attempt.status == "routed":
                self._end(attempt, row)
            elif decision.open or row["outcome_status"] != "failed" or attempt != decision.last:
                return refused("RL304")
            else:
                decision.closed_on_hold = True
            decision.override = override
            self._close(decision, row["outcome_status"], None if override else attempt)
            status = "accepted"
        elif attempt and attempt.reaped and not override:
            attempt.reaped = False
            self._end(attempt, row)
            self._close(decision, row["outcome_status"], attempt)
            decision.late = True
            status = "accepted"
        elif (
            attempt
            and attempt is decision.last
            and (decision.outcome, decision.override) == (row["outcome_status"], override)
            and (decision.closed_on_hold or self._same_completion(attempt, row))
        ):
            status = "replayed"
        else:
            return refused("RL305" if decision.outcome in ("rejected", "abandoned") else "RL302")
        return Expected(
            status,
            values={
                "id": row["id"],
                "inference_id": None if override else attempt.id,
                "attempt_no": attempt.number,
                "outcome_status": row["outcome_status"],
                "cost_usd": attempt.cost,
                "cost_source": attempt.cost_source,
                "late": decision.late,
            },
        )

    def record_outcome(self, row: Row, now: datetime) -> Expected:
        told = row.get("attempts") or []
        override = row.get("decision_rule_override")
        first = told[0]["model_slug"] if told else None
        candidates, _, chosen, rule = self._prepared(
            {**row, "chosen_model_slug": row.get("chosen_model_slug") or first}
        )
        if override and told:
            return refused("RL306")
        if chosen is not None and not told and not override:
            return refused("RL101")
        known = self.decisions.get(row["id"])
        if known is not None:
            same = known.told and {k: v for k, v in known.row.items() if v is not None} == {
                k: v for k, v in row.items() if v is not None
            }
            if not same:
                return refused("RL301")
            return Expected("replayed", values=self._told(row["id"], known))
        decision = Decision(row, candidates, rule, chosen, LEASE, None, told=True)
        for number, one in enumerate(told, 1):
            model = one["model_slug"]
            place = next((n for n, c in enumerate(candidates, 1) if c["model_slug"] == model), None)
            provider = self._provider(decision, place, model)
            attempt = Attempt(one.get("id"), number, place, model, provider, now)
            attempt.status = one["status"]
            attempt.said = dict(one)
            attempt.cost, attempt.cost_source = cost(model, one)
            decision.attempts.append(attempt)
        decision.override = override
        outcome = told[-1]["status"] if told else ("failed" if override else "rejected")
        self._close(decision, outcome, decision.last)
        self.decisions[row["id"]] = decision
        return Expected("accepted", values=self._told(row["id"], decision))

    def _told(self, id: str, decision: Decision) -> Row:
        costs = [a.cost for a in decision.attempts if a.cost is not None]
        last = decision.last
        return {
            "id": id,
            "inference_id": last and (last.id or ANY),
            "attempts": len(decision.attempts),
            "outcome_status": decision.outcome,
            "cost_usd": sum(costs) if costs else None,
        }

    # -- leases -----------------------------------------------------------------------------

    def extend_lease(self, row: Row, now: datetime) -> Expected:
        decision = self.decisions.get(row["id"])
        if decision is None:
            return refused("RL201")
        if decision.abandoned:
            return refused("RL401")
        if decision.outcome is not None:
            return refused("RL305")
        assert decision.lease_until is not None
        # by default as long as at its start
        until = now + (lease_of(row) if row.get("lease") else decision.lease)
        status = "accepted" if until > decision.lease_until else "replayed"
        decision.lease_until = max(until, decision.lease_until)
        return Expected(status, values={"id": row["id"], "lease_expires_at": decision.lease_until})

    def expired(self, now: datetime) -> list[tuple[datetime, str]]:
        """What the reaper may close, the oldest lease first."""
        return sorted(
            (d.lease_until, key)
            for key, d in self.decisions.items()
            if d.lease_until is not None and d.lease_until <= now
        )

    def reap(self, id: str) -> Attempt:
        """The reaper closed this decision; returns the attempt that it has to link."""
        decision = self.decisions[id]
        attempt = decision.open
        if attempt:
            attempt.status = "failed"
            attempt.said = {"error_type": "abandoned"}
            attempt.cost_source = "no_usage"
            attempt.reaped = True
        last = decision.last
        assert last is not None
        self._close(decision, "abandoned", last)
        decision.abandoned = True
        return last

    # -- payloads ---------------------------------------------------------------------------

    def record_payload(self, row: Row, now: datetime) -> Expected:
        parts = {k: row[k] for k in ("request", "response") if row.get(k) is not None}
        if not parts:
            return refused("RL101")
        decision = self.decisions.get(row["id"])
        if decision is None:
            return refused("RL201")
        if decision.attempt(row["attempt_id"]) is None:
            return refused("RL202")
        kept = self.payloads.setdefault((row["id"], row["attempt_id"]), {})
        if any(kept.get(k, v) != v for k, v in parts.items()):
            return refused("RL301")
        status = "replayed" if parts.items() <= kept.items() else "accepted"
        kept.update(parts)
        return Expected(status, values={"id": row["id"], "attempt_id": row["attempt_id"]})

    # -- sums -------------------------------------------------------------------------------

    def totals(self) -> Row:
        """What the reconciliation has to add up to."""
        all_decisions = self.decisions.values()
        outcomes = [d.outcome for d in all_decisions]
        attempts = [a for d in all_decisions for a in d.attempts]
        costs = [a.cost for a in attempts if a.cost is not None]
        return {
            "decided": len(outcomes),
            **{k: outcomes.count(k) for k in ("succeeded", "failed", "rejected", "abandoned")},
            "in_flight": outcomes.count(None),
            "attempts": len(attempts),
            "open_attempts": sum(a.status == "routed" for a in attempts),
            "cost_usd": sum(costs) if costs else None,
        }

    def learn(self, routine: str, row: Row, values: Mapping[str, Any]) -> None:
        """The ids that the ledger made up."""
        decision = self.decisions[row["id"]]
        new = {
            "insert_decision": "attempt_id",
            "start_attempt": "attempt_id",
            "fail_attempt": "next_attempt_id",
            "record_outcome": "inference_id",
        }.get(routine)
        for attempt in decision.attempts:
            if attempt.id is None:
                assert new is not None
                attempt.id = str(values[new])
