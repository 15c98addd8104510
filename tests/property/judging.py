"""The rules of judging once more, in Python and in memory: who is given what, and what counts.

It is written from the documented behaviour and not from the SQL. Outcomes are few, so that one search finds
all that others have labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from tests.property.ledger import Row

LEASE = timedelta(seconds=60)
RETRY_DELAY = timedelta(seconds=30)
LOOK_EVERY = timedelta(seconds=40)
SEARCH_ANEW = timedelta(days=1)
SHORTCUT_FOR = timedelta(minutes=1)
MAX_ATTEMPTS = 3

SETTINGS = {
    "judge_lease": "60 seconds",
    "judge_retry_delay": "30 seconds",
    "judge_look_every": "40 seconds",
    "judge_look_back": "10 years",
    "judge_max_attempts": MAX_ATTEMPTS,
}

Judge = tuple[str, str]
OutcomeKey = tuple[str, str]
Key = tuple[str, str, str, str]
EARLIEST = date(1970, 1, 1)


@dataclass
class Expected:
    """What the ledger has to say."""

    status: str
    code: str | None = None
    values: Row = field(default_factory=dict)


@dataclass
class Outcome:
    decided_at: datetime
    model: str
    judgeable: bool


@dataclass
class Verdict:
    # what was said, which the same call again has to repeat
    said: tuple[Any, ...]
    score: float | None
    source: str
    attempt_no: int | None
    withdrawal: str | None = None

    @property
    def usable(self) -> bool:
        return self.score is not None and 0 <= self.score <= 1

    @property
    def counts(self) -> bool:
        return self.usable and self.withdrawal is None


@dataclass
class Lease:
    due_at: datetime
    token: str | None = None
    attempts: int = 0
    last_error: str | None = None


@dataclass
class Search:
    from_day: date
    begun_at: datetime
    ended_at: datetime | None = None


@dataclass
class Withdrawal:
    tenant: str
    judge: Judge
    verdicts: int
    # how many outcomes were without a reward when it had been taken back
    unlabeled: int | None = None


def said_in(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that a verdict says."""
    return (
        row.get("score"),
        row.get("label"),
        row.get("rationale"),
        row.get("reward_source") or "judge",
        row.get("judge_model"),
    )


def seconds_of(row: Mapping[str, Any], name: str) -> timedelta | None:
    given = row.get(name)
    return None if given is None else timedelta(seconds=int(given.split()[0]))


@dataclass
class Judging:
    """Outcomes, who has them, and what was said of them."""

    outcomes: dict[OutcomeKey, Outcome] = field(default_factory=dict)
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    leases: dict[Key, Lease] = field(default_factory=dict)
    searches: dict[tuple[str, str, str], Search] = field(default_factory=dict)
    withdrawals: dict[str, Withdrawal] = field(default_factory=dict)
    # when a claim last began at a tenant's oldest outcome
    began: dict[str, datetime] = field(default_factory=dict)

    # -- what an outcome says ----------------------------------------------------------------

    def verdicts_on(self, outcome: OutcomeKey) -> list[Verdict]:
        return [v for key, v in self.verdicts.items() if key[:2] == outcome]

    def label(self, outcome: OutcomeKey) -> tuple[str, float | None, str | None]:
        """judge_status, reward, reward_source."""
        verdicts = self.verdicts_on(outcome)
        standing = [v for v in verdicts if v.withdrawal is None]
        counting = [v for v in standing if v.counts]
        if counting:
            scores = [Fraction(Decimal(str(v.score))) for v in counting]
            by_human = any(v.source == "human" for v in counting)
            reward = float(sum(scores) / len(scores))
            return "labeled", reward, "human" if by_human else "judge"
        source = "withdrawn" if verdicts and not standing else None
        if any(key[:2] == outcome and lease.attempts for key, lease in self.leases.items()):
            return "claimed", None, source
        return "cannot_evaluate" if standing else "unlabeled", None, source

    # -- claims ------------------------------------------------------------------------------

    def claim(
        self,
        tenants: Sequence[tuple[str, str]],
        judge: Judge,
        limit: int,
        lease: timedelta | None,
        from_day: date | None,
        now: datetime,
    ) -> list[Key]:
        """What a judge is given, but for the tokens.

        The tenants are served in this order, and with each comes the id where it begins to look for what
        nobody has labelled: at the oldest where that is empty, or where it would find too little, or a minute
        after it last did.
        """
        given: list[Key] = []
        since = from_day or EARLIEST
        until = now + (lease or LEASE)
        for tenant, start in tenants:
            left = limit - len(given)
            if not left:
                break
            taken = self._claim_due(tenant, judge, left, until, since, now)
            if len(taken) < left:
                most = left - len(taken)
                taken += self._claim_unlabeled(tenant, start, judge, most, until, since, now)
            if len(taken) < left and self._search(tenant, judge, since, now):
                taken += self._claim_due(tenant, judge, left - len(taken), until, since, now)
            given += taken
        return given

    def _since(self, outcome: OutcomeKey, day: date) -> bool:
        return self.outcomes[outcome].decided_at.date() >= day

    def _claim_due(
        self, tenant: str, judge: Judge, limit: int, until: datetime, since: date, now: datetime
    ) -> list[Key]:
        due = sorted(
            (lease.due_at, key)
            for key, lease in self.leases.items()
            if key[0] == tenant and key[2:] == judge and lease.due_at <= now
            if self._since(key[:2], since)
        )
        taken = []
        for _, key in due[:limit]:
            if self.leases[key].attempts >= MAX_ATTEMPTS:
                self._give_up(key)
                continue
            lease = self.leases[key]
            lease.attempts += 1
            lease.due_at = until
            taken.append(key)
        return taken

    def unlabeled(self, tenant: str, judge: Judge, since: date, now: datetime) -> list[Key]:
        """What a judge may claim because nobody has claimed or labelled it, the oldest first."""
        found = []
        for outcome in sorted(self.outcomes):
            key = (*outcome, *judge)
            if (
                outcome[0] == tenant
                and self.outcomes[outcome].judgeable
                and self._since(outcome, since)
                and self.label(outcome) == ("unlabeled", None, None)
                and (key not in self.leases or self.leases[key].due_at <= now)
            ):
                found.append(key)
        return found

    def _claim_unlabeled(
        self,
        tenant: str,
        start: str,
        judge: Judge,
        limit: int,
        until: datetime,
        since: date,
        now: datetime,
    ) -> list[Key]:
        found = self.unlabeled(tenant, judge, since, now)
        taken = [key for key in found if key[1] >= start][:limit]
        began = self.began.get(tenant)
        if len(taken) < limit or began is None or began <= now - SHORTCUT_FOR:
            taken = found[:limit]
        if taken == found[:limit] and since == EARLIEST:
            self.began[tenant] = now
        for key in taken:
            lease = self.leases.setdefault(key, Lease(until))
            lease.attempts += 1
            lease.due_at = until
        return taken

    def _search(self, tenant: str, judge: Judge, since: date, now: datetime) -> int:
        of = (tenant, *judge)
        search = self.searches.get(of)
        if search is None:
            search = self.searches[of] = Search(since, now)
        elif since < search.from_day or now >= search.begun_at + SEARCH_ANEW:
            search.from_day = min(since, search.from_day)
            search.begun_at = now
        elif search.ended_at is not None and search.ended_at > now - LOOK_EVERY:
            return 0
        search.ended_at = now
        found = 0
        for outcome, one in self.outcomes.items():
            key = (*outcome, *judge)
            if (
                outcome[0] == tenant
                and one.judgeable
                and self._since(outcome, max(since, search.from_day))
                and self.label(outcome) != ("unlabeled", None, None)
                and key not in self.verdicts
                and key not in self.leases
            ):
                self.leases[key] = Lease(now)
                found += 1
        return found

    def _give_up(self, key: Key) -> None:
        lease = self.leases.pop(key)
        rationale = lease.last_error or "the lease ran out"
        said = (None, "cannot_evaluate", rationale, "judge", None)
        self.verdicts[key] = Verdict(said, None, "judge", lease.attempts)

    # -- what the holders of claims say ---------------------------------------------------------

    def _holds(self, key: Key, token: str | None) -> str | None:
        """The code of a refusal, or None."""
        if key[:2] not in self.outcomes:
            return "RL201"
        lease = self.leases.get(key)
        return None if lease is not None and lease.token == token else "RL402"

    def renew(self, key: Key, row: Row, now: datetime) -> Expected:
        code = self._holds(key, row["lease_token"])
        if code is not None:
            return Expected("refused", code)
        lease = self.leases[key]
        before = lease.due_at
        lease.due_at = max(before, now + (seconds_of(row, "lease") or LEASE))
        status = "accepted" if lease.due_at > before else "replayed"
        return Expected(status, None, {"id": key[1], "lease_expires_at": lease.due_at})

    def release(self, key: Key, row: Row, now: datetime) -> Expected:
        code = self._holds(key, row["lease_token"])
        if code is not None:
            return Expected("refused", code)
        lease = self.leases[key]
        error = row.get("error")
        delay = seconds_of(row, "delay")
        due: datetime | None = None
        lease.last_error = error or lease.last_error
        if error is not None and lease.attempts >= MAX_ATTEMPTS:
            self._give_up(key)
        else:
            if delay is None:
                delay = timedelta(0) if error is None else RETRY_DELAY
            due = lease.due_at = now + delay
            lease.token = None
            lease.attempts -= error is None
        status = self.label(key[:2])[0]
        return Expected(
            "accepted", None, {"id": key[1], "judge_status": status, "available_at": due}
        )

    def record(self, key: Key, row: Row, now: datetime) -> Expected:
        token = row.get("lease_token")
        lease = self.leases.get(key)
        lost = token is not None and (lease is None or lease.token != token)
        verdict = self.verdicts.get(key)
        status = "accepted"
        if key[:2] not in self.outcomes:
            return Expected("refused", "RL201")
        if verdict is not None:
            if verdict.said != said_in(row):
                return Expected("refused", "RL402" if lost else "RL314")
            status = "replayed"
        elif not self.outcomes[key[:2]].judgeable:
            return Expected("refused", "RL315")
        elif lost or (token is None and lease and lease.token is not None and lease.due_at > now):
            return Expected("refused", "RL402")
        else:
            self.leases.pop(key, None)
            attempt = lease.attempts if lease else 0
            said = said_in(row)
            verdict = Verdict(said, said[0], said[3], attempt or None)
            self.verdicts[key] = verdict
        judge_status, reward, source = self.label(key[:2])
        values = {
            "id": key[1],
            "usable": verdict.usable,
            "reward": reward,
            "reward_source": source,
            "judge_status": judge_status,
        }
        return Expected(status, None, values)

    # -- withdrawals ------------------------------------------------------------------------------

    def withdrawable(
        self, tenant: str | None, judge: Judge, model: str | None, days: tuple[date, date] | None
    ) -> dict[str, list[Key]]:
        """By tenant, the verdicts that a withdrawal would mark."""
        found: dict[str, list[Key]] = {}
        for key, verdict in sorted(self.verdicts.items(), key=lambda item: item[0]):
            outcome = self.outcomes[key[:2]]
            if (
                key[2:] == judge
                and verdict.withdrawal is None
                and tenant in (None, key[0])
                and model in (None, outcome.model)
                and (days is None or days[0] <= outcome.decided_at.date() < days[1])
            ):
                found.setdefault(key[0], []).append(key)
        return found

    def mark(self, keys: Iterable[Key], withdrawal: str | None) -> int:
        """Marks verdicts as withdrawn, or as standing; how many outcomes are without a reward then."""
        outcomes = set()
        for key in keys:
            self.verdicts[key].withdrawal = withdrawal
            outcomes.add(key[:2])
        return sum(self.label(outcome)[1] is None for outcome in outcomes)
