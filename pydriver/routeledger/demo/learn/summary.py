"""What the loop learnt, as plain data: the terminal, the report and ``--json`` all print this."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from routeledger.demo.summary import Phase, Server, plain
from routeledger.replay.matrix import mean

from .loop import Served
from .plan import MIN_SAMPLES, Plan
from .world import FAILURE_COST_USD, World

WITHOUT = "without exploration"
WITH = "with exploration"
BEST_SINGLE = "best single model"
ORACLE = "oracle"


@dataclass(frozen=True, slots=True)
class Day:
    """A day of one line: how many requests, how many of them right, what they cost in USD.

    ``regret_usd``: by how much what the requests were expected to cost, wrong answers included, exceeds what
    the best model of each task type would have, for one who knows them all; None for a baseline.
    """

    requests: int
    right: int
    usd: float
    regret_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the plot, day by day: a run of the loop, or what it is held against."""

    title: str
    model: str | None
    days: tuple[Day, ...]

    @property
    def requests(self) -> int:
        return sum(day.requests for day in self.days)

    @property
    def right(self) -> float:
        """The share of right answers."""
        return sum(day.right for day in self.days) / self.requests

    @property
    def usd_per_1000(self) -> float:
        return sum(day.usd for day in self.days) / self.requests * 1000

    @property
    def total_usd(self) -> float:
        """What the answers cost, and what the wrong ones cost."""
        wrong = sum(day.requests - day.right for day in self.days)
        return sum(day.usd for day in self.days) + FAILURE_COST_USD * wrong

    @property
    def regret_usd(self) -> float:
        return sum(day.regret_usd or 0.0 for day in self.days)


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the requests of a task type went, exploration left out: at first, when it had fewer rewards than
    count as a measurement; last before the alias moved; and last of all. ``best`` are the best
    models before and after the move, for one who knows."""

    task_type: str
    requests: int
    by_priors: str | None
    before_move: str | None
    at_end: str | None
    best: tuple[str, str]

    @property
    def learnt(self) -> bool:
        """Whether what was measured led elsewhere than the priors had, before the move or after."""
        return self.by_priors is not None and {self.before_move, self.at_end} != {self.by_priors}


@dataclass(frozen=True, slots=True)
class Gone:
    """How a task type that went to the alias when it moved went elsewhere.

    ``after``: with so many requests since the move, of all task types, the last of its own had gone to the
    alias before a day's requests went by without one; None where that never came. ``toll``: how
    many of its requests the alias still answered until then. ``promised``: whether it has requests
    enough to be held to the limit.
    """

    task_type: str
    after: int | None
    toll: int
    promised: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """How the move was met, explored requests left out.

    ``after``: the most requests that any task type held to the limit took; None where one never went
    elsewhere, 0 where there was nothing to notice. ``retries``: how many requests went to the alias once
    more because the window had forgotten it and its prior was believed again. ``right`` and
    ``frozen_right``: the share of right answers since the move, and what it would have been had every task
    type stayed where it went before.
    """

    task_types: tuple[Gone, ...]
    after: int | None
    retries: int
    right: float
    frozen_right: float

    @property
    def toll(self) -> int:
        """How many requests the alias still answered."""
        return sum(gone.toll for gone in self.task_types)


@dataclass(frozen=True, slots=True)
class Outage:
    """How the outage was met: requests of its rounds, how many of them went to the dead provider at
    first, those in its first round, attempts that failed, and requests that nobody answered."""

    requests: int
    hit: int
    hit_in_first_round: int
    failed_attempts: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the loop. ``served[model]`` counts its answers day by day."""

    line: Line
    tenant: str
    explored: int
    served: Mapping[str, tuple[int, ...]]
    regret: tuple[float, ...]
    choices: tuple[Choice, ...]
    notice: Notice
    outage: Outage


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model of the fleet: the first guess at its quality, and its true share of right answers and
    its cost, before the move and after."""

    model: str
    provider: str
    prior: float
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    right: tuple[float, float]
    usd_per_1000: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Books:
    """What the ledger says of a tenant at the end: its decisions, its verdicts, and its buckets."""

    tenant: str
    decisions: int
    succeeded: int
    labelled: int
    verdicts: int
    rewards: int
    reward_sum: float
    cost_usd: float
    orphans: int


@dataclass(frozen=True, slots=True)
class Learning:
    version: str
    started_at: datetime
    seconds: float
    phases: tuple[Phase, ...]
    server: Server
    label: str
    synthetic: bool
    seed: int
    priors: str
    policy: Mapping[str, Any]
    exploring: Mapping[str, Any]
    days: int
    rounds_a_day: int
    requests: int
    task_types: Mapping[str, int]
    fleet: tuple[FleetModel, ...]
    alias: str
    moves: tuple[str, str]
    move_day: int
    outage_provider: str
    outage_day: int
    outage: tuple[float, float]
    notice_limit: int
    runs: tuple[Run, ...]
    baselines: tuple[Line, ...]
    books: tuple[Books, ...]
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def exploration_saves_usd(self) -> float:
        """How much less regret there is with exploration; negative where it does not pay."""
        without, with_it = self.runs
        return without.line.regret_usd - with_it.line.regret_usd

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON types."""
        document: dict[str, Any] = plain(dataclasses.asdict(self))
        document["ok"] = self.ok
        document["exploration_saves_usd"] = round(self.exploration_saves_usd, 6)
        for line, of in (
            *(
                (run.line, where["line"])
                for run, where in zip(self.runs, document["runs"], strict=True)
            ),
            *zip(self.baselines, document["baselines"], strict=True),
        ):
            of["right"] = round(line.right, 6)
            of["usd_per_1000"] = round(line.usd_per_1000, 6)
            of["total_usd"] = round(line.total_usd, 6)
        return document


# -- baselines -------------------------------------------------------------------------------------


def baselines(world: World, plan: Plan) -> tuple[Line, ...]:
    """The best single model, which is right most often on this very traffic, and the oracle, which takes
    for each request the cheapest model that is right, or where none is the cheapest. An alias
    that has moved and a provider that is down count for them too."""
    singles = [
        _line(
            plan, BEST_SINGLE, arm.slug, [_alone(world, plan, a, i) for i in range(len(plan.requests))]
        )
        for a, arm in enumerate(world.arms)
    ]  # fmt: skip
    best = max(singles, key=lambda line: (line.right, -line.usd_per_1000))
    oracle = [_oracle(world, plan, i) for i in range(len(plan.requests))]
    return best, _line(plan, ORACLE, None, oracle)


def _alone(world: World, plan: Plan, a: int, request: int) -> tuple[bool, float]:
    n, prompt = plan.round_of(request), plan.requests[request]
    moved = plan.moved(n)
    if world.arms[a].provider == plan.down(n):
        return False, 0.0
    return bool(world.arms[a].right[moved][prompt]), world.arms[a].usd(prompt, moved)


def _oracle(world: World, plan: Plan, request: int) -> tuple[bool, float]:
    tried = [
        _alone(world, plan, a, request)
        for a, arm in enumerate(world.arms)
        if arm.provider != plan.down(plan.round_of(request))
    ]
    right = [one for one in tried if one[0]] or tried
    return min(right, key=lambda one: one[1])


def _line(plan: Plan, title: str, model: str | None, answers: Sequence[tuple[bool, float]]) -> Line:
    days = []
    for day in range(plan.days):
        mine = [answers[i] for i in plan.of_day(day)]
        days.append(Day(len(mine), sum(one[0] for one in mine), sum(one[1] for one in mine)))
    return Line(title, model, tuple(days))


# -- runs ------------------------------------------------------------------------------------------


def read_run(world: World, plan: Plan, title: str, tenant: str, served: Iterable[Served]) -> Run:
    """Everything that is said of a run, from how its requests were served."""
    ordered = sorted(served, key=lambda one: one.request)
    regrets = [_regret(world, plan, one) for one in ordered]
    days = []
    counts = {arm.slug: [0] * plan.days for arm in world.arms}
    for day in range(plan.days):
        mine = plan.of_day(day)
        for i in mine:
            counts[world.arms[ordered[i].arm].slug][day] += 1
        days.append(
            Day(
                len(mine),
                sum(ordered[i].right for i in mine),
                sum(ordered[i].usd for i in mine),
                sum(regrets[i] for i in mine),
            )
        )
    return Run(
        line=Line(title, None, tuple(days)),
        tenant=tenant,
        explored=sum(one.explored for one in ordered),
        served={model: tuple(n) for model, n in counts.items()},
        regret=tuple(
            sum(regrets[i] for i in plan.of_round(n)) for n in range(plan.rounds)
        ),
        choices=_choices(world, plan, ordered),
        notice=_notice(world, plan, ordered),
        outage=_outage(world, plan, ordered),
    )  # fmt: skip


def _regret(world: World, plan: Plan, one: Served) -> float:
    n = plan.round_of(one.request)
    losses = world.losses[plan.moved(n)][world.type_of[plan.requests[one.request]]]
    up = [a for a, arm in enumerate(world.arms) if arm.provider != plan.down(n)]
    return losses[one.arm] - min(losses[a] for a in up)


def _choices(world: World, plan: Plan, served: Sequence[Served]) -> tuple[Choice, ...]:
    found = []
    for t, task_type in enumerate(world.types):
        mine = [one for one in served if world.type_of[plan.requests[one.request]] == t]
        chosen = [one for one in mine if not one.explored]
        early = [one for one in mine[:MIN_SAMPLES] if not one.explored]
        before = [one for one in chosen if one.request < plan.first_after_move]
        best = [losses[t].index(min(losses[t])) for losses in world.losses]
        if mine:
            found.append(
                Choice(
                    task_type,
                    len(mine),
                    _slug(world, early[:1]),
                    _slug(world, before[-1:]),
                    _slug(world, chosen[-1:]),
                    (world.arms[best[0]].slug, world.arms[best[1]].slug),
                )
            )
    return tuple(found)


def _slug(world: World, served: Sequence[Served]) -> str | None:
    return world.arms[served[0].first].slug if served else None


def _notice(world: World, plan: Plan, served: Sequence[Served]) -> Notice:
    moved_at = plan.first_after_move
    since = served[moved_at:]
    frozen = {
        world.type_of[plan.requests[one.request]]: one.first
        for one in served[:moved_at]
        if not one.explored
    }
    to_alias = [one for one in since if one.first == world.alias and not one.explored]
    gone = []
    for t in sorted(t for t, arm in frozen.items() if arm == world.alias):
        places = [
            one.request - moved_at
            for one in to_alias
            if world.type_of[plan.requests[one.request]] == t
        ]
        until = _episode(places, plan.a_day)
        never = bool(until) and until[-1] + plan.a_day >= len(since)
        asked = sum(world.type_of[p] == t for p in plan.requests)
        gone.append(
            Gone(
                world.types[t],
                None if never else until[-1] + 1 if until else 0,
                len(until),
                asked >= MIN_SAMPLES * plan.days,
            )
        )
    waits = [one.after for one in gone if one.promised]
    stayed = [
        _alone(
            world,
            plan,
            frozen.get(world.type_of[plan.requests[one.request]], one.first),
            one.request,
        )[0]
        for one in since
    ]
    return Notice(
        task_types=tuple(gone),
        after=None if None in waits else max((after or 0 for after in waits), default=0),
        retries=len(to_alias) - sum(one.toll for one in gone),
        right=mean([one.right for one in since]),
        frozen_right=mean(stayed),
    )


def _episode(places: Sequence[int], gap: int) -> Sequence[int]:
    """The places up to the first stretch of ``gap`` without one."""
    before = -1
    for n, place in enumerate(places):
        if place - before > gap:
            return places[:n]
        before = place
    return places


def _outage(world: World, plan: Plan, served: Sequence[Served]) -> Outage:
    mine = [served[i] for n in plan.outage for i in plan.of_round(n)]
    hit = [one for one in mine if world.arms[one.first].provider == plan.provider]
    return Outage(
        requests=len(mine),
        hit=len(hit),
        hit_in_first_round=sum(one.request in plan.of_round(plan.outage.start) for one in hit),
        failed_attempts=sum(one.attempts - 1 for one in mine),
        unanswered=sum(world.arms[one.arm].provider == plan.provider for one in mine),
    )


def fleet(world: World, priors: Mapping[str, float]) -> tuple[FleetModel, ...]:
    prompts = range(len(world.type_of))
    return tuple(
        FleetModel(
            arm.slug,
            arm.provider,
            priors[arm.slug],
            arm.input_usd,
            arm.output_usd,
            (world.share_right(a), world.share_right(a, moved=True)),
            (
                mean([arm.usd(p, False) for p in prompts]) * 1000,
                mean([arm.usd(p, True) for p in prompts]) * 1000,
            ),
        )
        for a, arm in enumerate(world.arms)
    )


def task_types(world: World, plan: Plan) -> dict[str, int]:
    counts = Counter(world.types[world.type_of[p]] for p in plan.requests)
    return {name: counts[name] for name in world.types if counts[name]}


# -- what must hold --------------------------------------------------------------------------------


def find_problems(runs: Sequence[Run], books: Sequence[Books], plan: Plan) -> tuple[str, ...]:
    """Everything that is not as it must be, one sentence each; empty when all is well."""
    problems = []
    for run in runs:
        name, notice = run.line.title, run.notice
        if notice.after is None:
            problems.append(f"{name}: the move of the alias was never noticed")
        elif notice.after > plan.notice_limit:
            problems.append(
                f"{name}: the move of the alias was noticed after {notice.after} requests only,"
                f" not within {plan.notice_limit}"
            )
        if run.outage.unanswered:
            problems.append(
                f"{name}: {run.outage.unanswered} requests of the outage went unanswered"
            )
    if not any(gone.promised for run in runs for gone in run.notice.task_types):
        problems.append("the alias was not in use when it moved: there was nothing to notice")
    if not any(choice.learnt for run in runs for choice in run.choices):
        problems.append("what was measured changed no choice")
    expected = len(plan.requests)
    for run, one in zip(runs, books, strict=True):
        counts = (one.decisions, one.succeeded, one.labelled, one.verdicts, one.rewards)
        if counts != (expected,) * 5:
            problems.append(
                f"{one.tenant}: of {expected} requests there are {one.decisions} decisions,"
                f" {one.succeeded} answered, {one.labelled} labelled, {one.verdicts} verdicts, and"
                f" {one.rewards} rewards in the buckets"
            )
        if round(one.reward_sum) != sum(day.right for day in run.line.days):
            problems.append(f"{one.tenant}: the rewards are not what was right")
        if one.orphans:
            problems.append(f"{one.tenant}: {one.orphans} orphans")
    return tuple(problems)
