"""The world in which the loop learns: models, what they answer, and what becomes of them.

It is made from a matrix in which every model answered every prompt. A fleet of seven is taken from it:
an alias, which answers with one model until it moves and with a worse one afterwards, and six cheaper
models. Nothing of this module is known to the router but prices, tokens of the prompts, and priors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from routeledger.replay.matrix import Matrix, Model, mean

TYPES: Mapping[str, tuple[str, ...]] = {
    "one_function": ("simple", "executable_simple", "relevance"),
    "several_functions": ("multiple_function", "executable_multiple_function"),
    "parallel_calls": (
        "parallel_function", "executable_parallel_function",
        "parallel_multiple_function", "executable_parallel_multiple_function",
    ),
    "java_or_javascript": ("java", "javascript"),
    "rest": ("rest",),
}  # fmt: skip
"""What a caller can tell from a request: the task types of the matrix, merged. `relevance`, where no
function fits and none must be called, looks like any other request with one function."""

FAILURE_COST_USD = 0.05
"""What a wrong answer costs whoever gets it."""

ALIAS = "gpt-4o"
MOVES = ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06")
"""What the alias answers with before it moves and afterwards, both in prompt mode."""

OTHERS = (
    ("claude-3-haiku-20240307", "anthropic"),
    ("gpt-3.5-turbo-0125", "openai"),
    ("mistral-small-2402", "mistral"),
    ("open-mixtral-8x7b", "mistral"),
    ("open-mistral-nemo-2407", "mistral"),
    ("databricks-dbrx-instruct", "databricks"),
)
"""The cheaper models. The stronger ones of the matrix are left out: beside them the alias would
never be chosen, and its move would touch nobody."""

MADE_UP_PROVIDERS = ("birch", "cedar", "maple")
PRIORS = ("price", "benchmark")


@dataclass(frozen=True, slots=True)
class Arm:
    """A model of the fleet: its prices in USD per million tokens, and by prompt whether its answer
    is right, the tokens it takes, and the name of the recorded answer's model. Two of each for the alias,
    before its move and after; the others answer the same all along."""

    slug: str
    provider: str
    input_usd: float
    output_usd: float
    answers_with: tuple[str, str]
    right: tuple[bytes, bytes]
    tokens: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]

    def usd(self, prompt: int, moved: bool) -> float:
        used = self.tokens[moved][prompt]
        return (used[0] * self.input_usd + used[1] * self.output_usd) / 1e6


@dataclass(frozen=True)
class World:
    """``type_of[p]`` is the place in ``types`` of prompt p's task type; ``alias`` is a place in ``arms``."""

    label: str
    synthetic: bool
    types: tuple[str, ...]
    type_of: tuple[int, ...]
    arms: tuple[Arm, ...]
    alias: int

    @cached_property
    def input_tokens(self) -> tuple[int, ...]:
        """By prompt, the mean over the fleet: what a caller expects before the call."""
        return tuple(
            round(mean([arm.tokens[0][p][0] for arm in self.arms]))
            for p in range(len(self.type_of))
        )

    @cached_property
    def output_tokens(self) -> int:
        """The mean over the fleet and all prompts: what the policy expects."""
        return round(mean([used[1] for arm in self.arms for used in arm.tokens[0]]))

    @cached_property
    def losses(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """``[moved][type][arm]``: the expected cost of a request, a wrong answer's included, in USD."""
        prompts: list[list[int]] = [[] for _ in self.types]
        for p, t in enumerate(self.type_of):
            prompts[t].append(p)
        return tuple(
            tuple(
                tuple(mean([self.loss(a, p, moved) for p in mine]) for a in range(len(self.arms)))
                for mine in prompts
            )
            for moved in (False, True)
        )

    def loss(self, arm: int, prompt: int, moved: bool) -> float:
        """What this answer costs, and what its being wrong costs."""
        one = self.arms[arm]
        return one.usd(prompt, moved) + FAILURE_COST_USD * (1 - one.right[moved][prompt])

    def is_right(self, answer: str) -> bool:
        """The judge's lookup: whether the answer of that name (see `answer_name`) is right."""
        return self._right[answer]

    @cached_property
    def _right(self) -> dict[str, bool]:
        return {
            answer_name(name, p): bool(right)
            for arm in self.arms
            for name, row in zip(arm.answers_with, arm.right, strict=True)
            for p, right in enumerate(row)
        }

    def share_right(self, arm: int, moved: bool = False) -> float:
        return mean(list(self.arms[arm].right[moved]))

    def priors(self, kind: str) -> dict[str, float]:
        """By model. `price`: the dearest 0.9, the cheapest 0.6, the others by the logarithm of
        what the mean prompt costs. `benchmark`: its share of right answers to all the prompts."""
        if kind == "benchmark":
            return {arm.slug: round(self.share_right(a), 3) for a, arm in enumerate(self.arms)}
        tokens_in = mean(self.input_tokens)
        logs = [
            math.log(tokens_in * arm.input_usd + self.output_tokens * arm.output_usd)
            for arm in self.arms
        ]
        low, width = min(logs), max(logs) - min(logs)
        return {
            arm.slug: round(0.6 + 0.3 * (log - low) / width, 3)
            for arm, log in zip(self.arms, logs, strict=True)
        }

    @cached_property
    def leaned_on(self) -> str:
        """The provider that most of the traffic goes to if one knows every model's quality, that of the
        alias left out: the one whose outage hurts most."""
        counts: dict[str, int] = {}
        for t in self.type_of:
            losses = self.losses[False][t]
            provider = self.arms[losses.index(min(losses))].provider
            counts[provider] = counts.get(provider, 0) + 1
        for arm in self.arms:
            counts.setdefault(arm.provider, 0)
        del counts[self.arms[self.alias].provider]
        return max(sorted(counts), key=counts.__getitem__)


def answer_name(model: str, prompt: int) -> str:
    """What an answer goes by: the model that gave it, and the prompt."""
    return f"{model} #{prompt}"


def make_world(matrix: Matrix, seed: int) -> World:
    """The fleet from the recorded matrix, or, where the matrix does not have its models, one made alike."""
    inverse = {task: t for t, tasks in enumerate(TYPES.values()) for task in tasks}
    unknown = sorted(set(matrix.tasks) - set(inverse))
    type_of = tuple(inverse.get(task, len(TYPES)) for task in matrix.tasks)
    types = (*TYPES, *(("other",) if unknown else ()))
    names = {model.name: m for m, model in enumerate(matrix.models)}
    wanted = [*MOVES, *(name for name, _ in OTHERS)]
    if all(name in names and matrix.models[names[name]].priced for name in wanted):
        old, new = (names[name] for name in MOVES)
        arms = [
            _arm(matrix, old, ALIAS, "openai", new),
            *(_arm(matrix, names[name], name, provider) for name, provider in OTHERS),
        ]
    else:
        arms = _made_up(matrix, type_of, seed)
    return World(matrix.label, matrix.synthetic, types, type_of, tuple(arms), 0)


def _arm(matrix: Matrix, m: int, slug: str, provider: str, after: int | None = None) -> Arm:
    model = matrix.models[m]
    rows = (m, m if after is None else after)
    return Arm(
        slug,
        provider,
        float(model.input_usd or 0),
        float(model.output_usd or 0),
        (matrix.models[rows[0]].name, matrix.models[rows[1]].name),
        (matrix.right[rows[0]], matrix.right[rows[1]]),
        (_tokens(matrix, rows[0]), _tokens(matrix, rows[1])),
    )


def _tokens(matrix: Matrix, m: int) -> tuple[tuple[int, int], ...]:
    """A model's tokens; where they are not known, the model's means, never none."""
    known = [used for used in matrix.tokens[m] if used is not None]
    usual = (round(mean([k[0] for k in known])), round(mean([k[1] for k in known])))
    return tuple(used or usual for used in matrix.tokens[m])


def _made_up(matrix: Matrix, type_of: Sequence[int], seed: int) -> list[Arm]:
    """As the recorded fleet is: the alias is the dearest, and the best buy for the commonest task type; the
    others are cheaper and the next best there. When it moves it forgets two of three right answers."""
    commonest = max(range(len(TYPES)), key=list(type_of).count)
    prompts = [p for p, t in enumerate(type_of) if t == commonest]
    usable = [
        m for m, model in enumerate(matrix.models)
        if model.priced and any(used is not None for used in matrix.tokens[m])
    ]  # fmt: skip
    usd = {}
    for m in usable:
        used = _tokens(matrix, m)
        usd[m] = mean([_usd(matrix.models[m], used[p]) for p in prompts])
    loss = {
        m: usd[m] + FAILURE_COST_USD * (1 - mean([matrix.right[m][p] for p in prompts]))
        for m in usable
    }

    def beaten_by(m: int) -> list[int]:
        worse = (o for o in usable if usd[o] < usd[m] and loss[o] > loss[m])
        return sorted(worse, key=loss.__getitem__)[: len(OTHERS)]

    alias = min(usable, key=lambda m: (-len(beaten_by(m)), loss[m]))
    others = beaten_by(alias)
    rng = random.Random(f"routeledger learn {seed}")  # noqa: S311
    arms = [_arm(matrix, alias, "alias", "aspen")]
    forgotten = bytes(r and rng.random() < 1 / 3 for r in arms[0].right[0])
    name = arms[0].answers_with[0]
    arms[0] = Arm(
        "alias", "aspen", arms[0].input_usd, arms[0].output_usd, (name, f"{name}-next"),
        (arms[0].right[0], forgotten), arms[0].tokens,
    )  # fmt: skip
    for n, m in enumerate(others):
        provider = MADE_UP_PROVIDERS[n % len(MADE_UP_PROVIDERS)]
        arms.append(_arm(matrix, m, matrix.models[m].name, provider))
    return arms


def _usd(model: Model, used: tuple[int, int]) -> float:
    return (used[0] * float(model.input_usd or 0) + used[1] * float(model.output_usd or 0)) / 1e6
