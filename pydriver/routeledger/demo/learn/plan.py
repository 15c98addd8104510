"""What happens when: so much traffic, on so many days, an outage on one and the move on another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .world import FAILURE_COST_USD, World

DAYS = 14
REQUESTS_A_DAY = 240
LEAST_DAYS = 8
LEAST_A_DAY = 24

ROUNDS_A_DAY = 24
A_ROUND = 8
"""With less traffic there are fewer rounds a day: at least so many requests in each."""

WINDOW_DAYS = 4
MIN_SAMPLES = 10
EXPLORATION_SHARE = 0.2

NOTICE_DAYS = 2.5
"""The move must have been noticed within the requests of so many days, in each task type that has at
least `MIN_SAMPLES` requests a day: what is hardly asked is hardly measured."""

OUTAGE = (0.25, 0.75)
"""When the outage begins and ends, as parts of its day."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``requests[i]`` is the prompt of request i; they are spread evenly over the days.

    The loop goes round ``rounds_a_day`` times a day. ``outage_day`` and ``move_day`` count from 0. The
    alias moves at the midnight that begins its day.
    """

    days: int
    rounds_a_day: int
    requests: tuple[int, ...]
    outage_day: int
    move_day: int
    provider: str
    seed: int

    @property
    def rounds(self) -> int:
        return self.days * self.rounds_a_day

    def of_round(self, n: int) -> range:
        """The requests of a round, by their places."""
        count = len(self.requests)
        return range(count * n // self.rounds, count * (n + 1) // self.rounds)

    def of_day(self, day: int) -> range:
        """The requests of a day, by their places."""
        first, last = day * self.rounds_a_day, (day + 1) * self.rounds_a_day - 1
        return range(self.of_round(first).start, self.of_round(last).stop)

    def round_of(self, request: int) -> int:
        """The inverse of `of_round`."""
        return ((request + 1) * self.rounds - 1) // len(self.requests)

    def moved(self, n: int) -> bool:
        """Whether the alias has moved by this round."""
        return n >= self.move_day * self.rounds_a_day

    @property
    def outage(self) -> range:
        """The rounds in which the provider is down."""
        first = self.outage_day * self.rounds_a_day
        begin, end = (first + round(part * self.rounds_a_day) for part in OUTAGE)
        return range(begin, end)

    def down(self, n: int) -> str | None:
        """The provider that does not answer in this round."""
        return self.provider if n in self.outage else None

    @property
    def first_after_move(self) -> int:
        return self.of_day(self.move_day).start

    @property
    def a_day(self) -> int:
        return round(len(self.requests) / self.days)

    @property
    def notice_limit(self) -> int:
        """After so many requests since the move at the latest it must have been noticed."""
        return round(NOTICE_DAYS * self.a_day)


def make_plan(world: World, days: int | None, requests: int | None, seed: int) -> Plan:
    """The traffic: prompts drawn from the matrix, with its mixture of task types.

    Raises ValueError where there would be too few days or requests to learn anything.
    """
    days = DAYS if days is None else days
    requests = REQUESTS_A_DAY * days if requests is None else requests
    if days < LEAST_DAYS:
        message = f"{days} days are too few: an outage and a move need at least {LEAST_DAYS}"
        raise ValueError(message)
    if requests < LEAST_A_DAY * days:
        message = f"{requests} requests are too few for {days} days: at least {LEAST_A_DAY} a day"
        raise ValueError(message)
    rng = random.Random(f"routeledger learn traffic {seed}")  # noqa: S311
    return Plan(
        days=days,
        rounds_a_day=min(ROUNDS_A_DAY, requests // days // A_ROUND),
        requests=tuple(rng.choices(range(len(world.type_of)), k=requests)),
        outage_day=days * 2 // 7,
        move_day=days * 4 // 7,
        provider=world.leaned_on,
        seed=seed,
    )


def policy(world: World, slugs: Sequence[str]) -> dict[str, Any]:
    """The rules that both runs route by. Nothing is below a floor; what a wrong answer costs decides."""
    return {
        "min_quality": 0,
        "ordering": "expected_total_cost",
        "failure_cost_usd": FAILURE_COST_USD,
        "min_samples": MIN_SAMPLES,
        "window_days": WINDOW_DAYS,
        "exploration_min_samples": 0,
        "exploration_share": EXPLORATION_SHARE,
        "output_tokens": world.output_tokens,
        "allow": list(slugs),
    }


EXPLORING: dict[str, Any] = {"exploration": "thompson"}
"""What the run with exploration changes of the policy."""
