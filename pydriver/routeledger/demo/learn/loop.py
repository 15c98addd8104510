"""The loop, through the ledger: route, call, judge, count, round by round."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from routeledger import Ledger
from routeledger.types import Judgement

from .plan import Plan
from .world import World, answer_name

JUDGE = "recorded-answers"
JUDGE_VERSION = "1"

_SET_CLOCK = "select routeledger.set_clock(%s)"
_ROLL_UP = "select from routeledger.rollup_model_performance(p_tenant_id => %s)"

CLAIM = 1000
JUDGE_AFTER = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Served:
    """A request as it was served. ``arm`` is the model that answered, ``first`` the one that the
    decision went to; ``explored`` whether that was another than the best by what was known."""

    request: int
    arm: int
    first: int
    explored: bool
    attempts: int
    usd: float
    right: bool


@dataclass(slots=True)
class Branch:
    """One run: a tenant, and what its policy is changed by."""

    tenant: str
    overrides: Mapping[str, Any]
    served: list[Served]


@dataclass(slots=True)
class _Open:
    """A request that is being served."""

    branch: Branch
    request: int
    id: UUID
    first: int
    explored: bool
    attempt_id: UUID
    arm: int
    attempts: int = 1


@dataclass(frozen=True)
class Loop:
    """The fake clock is the connection's own, so every call goes through this one connection."""

    ledger: Ledger
    conn: psycopg.Connection[Any]
    world: World
    plan: Plan
    slugs: Sequence[str]
    policy: str
    begin: datetime

    def run(self, branches: Sequence[Branch], progress: Callable[[int], None]) -> None:
        """Serve all requests in each branch; ``progress`` is told the rounds that are done."""
        for n in range(self.plan.rounds):
            self._round(n, branches)
            progress(n + 1)

    def _round(self, n: int, branches: Sequence[Branch]) -> None:
        begins = self.begin + timedelta(days=n / self.plan.rounds_a_day)
        now = begins
        self._set_clock(now)
        pending = self._route(n, now, branches)
        while pending:
            delay_ms, pending = self._call(n, now, pending)
            now += timedelta(milliseconds=delay_ms)
            self._set_clock(now)
        self._set_clock(begins + JUDGE_AFTER)
        for branch in branches:
            self._judge(branch.tenant)
            self.conn.execute(_ROLL_UP, [branch.tenant])

    def _set_clock(self, now: datetime) -> None:
        self.conn.execute(_SET_CLOCK, [now])

    def _id(self, now: datetime, request: int) -> UUID:
        """A UUID of version 7 of the loop's own time: the client's are dated by the machine's clock. The
        ledger routes in the order of the ids, so they come in a fixed one."""
        ms = round(now.timestamp() * 1000) << 80
        return UUID(int=ms | 7 << 76 | request % 4096 << 64 | 2 << 62 | secrets.randbits(62))

    # -- serving -----------------------------------------------------------------------------------

    def _route(self, n: int, now: datetime, branches: Sequence[Branch]) -> list[_Open]:
        world = self.world
        asked = [(branch, i) for branch in branches for i in self.plan.of_round(n)]
        answers = self.ledger.routes(
            (
                {
                    "tenant_id": branch.tenant,
                    "id": self._id(now, i),
                    "task_type": world.types[world.type_of[prompt]],
                    "policy": self.policy,
                    "overrides": branch.overrides,
                    "candidates": self.slugs,
                    "input_tokens": world.input_tokens[prompt],
                    "metadata": {"prompt": prompt},
                    "seed": self.plan.seed * 1_000_003 + i,
                }
                for branch, i in asked
                for prompt in (self.plan.requests[i],)
            ),
            conn=self.conn,
        )
        opened = []
        for (branch, i), answer in zip(asked, answers, strict=True):
            routed = answer.unwrap()
            if routed.attempt_id is None or routed.model_slug is None:
                message = f"request {i} of {branch.tenant} was rejected: {routed.decision_rule}"
                raise RuntimeError(message)
            arm = self.slugs.index(routed.model_slug)
            explored = routed.decision_rule == "exploration"
            opened.append(_Open(branch, i, routed.id, arm, explored, routed.attempt_id, arm))
        return opened

    def _call(self, n: int, now: datetime, pending: Sequence[_Open]) -> tuple[int, list[_Open]]:
        """Call the providers. Returns what is left to be tried again, and how long to wait, in ms."""
        down, moved = self.plan.down(n), self.plan.moved(n)
        failed = [one for one in pending if self.world.arms[one.arm].provider == down]
        answered = [one for one in pending if self.world.arms[one.arm].provider != down]
        self._complete(answered, moved)
        delay_ms = 0
        again = []
        rows = [
            {"tenant_id": one.branch.tenant, "id": one.id, "attempt_id": one.attempt_id,
             "next_attempt_id": self._id(now, one.request), "error_type": "server_error",
             "error_message": "the provider is down", "http_status": 503}
            for one in failed
        ]  # fmt: skip
        answers = self.ledger.fail_attempts(rows, conn=self.conn) if rows else []
        for one, answer in zip(failed, answers, strict=True):
            step = answer.unwrap()
            if step.next_attempt_id is None or step.next_model_slug is None:
                message = f"request {one.request} of {one.branch.tenant} went unanswered"
                raise RuntimeError(message)
            one.attempt_id = step.next_attempt_id
            one.arm = self.slugs.index(step.next_model_slug)
            one.attempts += 1
            delay_ms = max(delay_ms, step.delay_ms or 0)
            again.append(one)
        return delay_ms, again

    def _complete(self, answered: Sequence[_Open], moved: bool) -> None:
        """The answers: their tokens, and for the judge what was asked and which recorded answer it was."""
        if not answered:
            return
        completions, payloads = [], []
        for one in answered:
            arm, prompt = self.world.arms[one.arm], self.plan.requests[one.request]
            used = arm.tokens[moved][prompt]
            keys = {"tenant_id": one.branch.tenant, "id": one.id, "attempt_id": one.attempt_id}
            completions.append(
                keys
                | {
                    "outcome_status": "succeeded",
                    "input_tokens": used[0],
                    "output_tokens": used[1],
                    "http_status": 200,
                }
            )
            answer = answer_name(arm.answers_with[moved], prompt)
            payloads.append(keys | {"request": {"prompt": prompt}, "response": {"answer": answer}})
        done = self.ledger.complete_decisions(completions, conn=self.conn)
        for stored in self.ledger.record_payloads(payloads, conn=self.conn):
            stored.unwrap()
        for one, completed in zip(answered, done, strict=True):
            cost = completed.unwrap().cost_usd
            right = self.world.arms[one.arm].right[moved][self.plan.requests[one.request]]
            one.branch.served.append(
                Served(one.request, one.arm, one.first, one.explored, one.attempts,
                       float(cost or 0), bool(right))
            )  # fmt: skip

    # -- learning ----------------------------------------------------------------------------------

    def _judge(self, tenant: str) -> None:
        """Claim what nobody has judged, and say of each whether the recorded answer is right."""
        claimed = None
        while claimed is None or len(claimed) == CLAIM:
            claimed = self.ledger.claim_judgements(
                judge=JUDGE, judge_version=JUDGE_VERSION, tenant_id=tenant, limit=CLAIM, conn=self.conn
            )  # fmt: skip
            for recorded in self.ledger.record_verdicts(
                map(self._verdict, claimed), conn=self.conn
            ):
                recorded.unwrap()

    def _verdict(self, claimed: Judgement) -> dict[str, Any]:
        right = self.world.is_right(str((claimed.response or {})["answer"]))
        return {
            "tenant_id": claimed.tenant_id,
            "id": claimed.id,
            "judge": JUDGE,
            "judge_version": JUDGE_VERSION,
            "lease_token": claimed.lease_token,
            "score": float(right),
            "label": "right" if right else "wrong",
        }
