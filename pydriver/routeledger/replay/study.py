"""Policies replayed over a matrix: learnt on one half of the prompts, tried on the other.

Every split puts half of each task type's prompts into training. The training half becomes the catalog's
priors and the buckets of a tenant of its own; the database ranks with them; the other half says what
the choice was worth, by what each model really answered and used. Then the halves change places.
Nothing that chooses sees the half that judges. All of it happens in one transaction, rolled back.
"""

from __future__ import annotations

import json
import math
import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

from routeledger import catalog

from .lines import RESAMPLES, Line, Policy, Sample, bootstrap
from .matrix import Matrix, mean

BEST_ANSWER = {
    "min_quality": 0, "ordering": "expected_total_cost", "failure_cost_usd": 1_000_000,
}  # fmt: skip
"""The model that is right most often, whatever it costs."""

FLOORS = (0.80, 0.90, 0.95)
FAILURE_COSTS = (0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3)

BEST_SINGLE = "best single model"
CHEAP_SINGLE = "best cheap single model"
CHEAP_SHARE = 10
"""A model is cheap that costs at most one part in so many of what the best one does."""


def _floor(
    floor: float, title: str, family: str, /, *, rejects: bool = False, **more: Any
) -> Policy:
    rules = {"min_quality": floor, "min_samples": 1, **more}
    return Policy(
        title, "default", rules, None if rejects else {**BEST_ANSWER, "min_samples": 1}, family
    )


REFERENCE = tuple(
    _floor(floor, f"cheapest ≥ {floor:.2f}, else the best", "cheapest above a floor")
    for floor in FLOORS
)

RULES: tuple[Policy, ...] = (
    *REFERENCE,
    *(
        _floor(floor, f"cheapest ≥ {floor:.2f}, else rejected", "rejecting", rejects=True)
        for floor in FLOORS
    ),
    *(
        _floor(floor, f"lower bound ≥ {floor:.2f} at {confidence:.0%}, else the best", "lower bound",
               floor="lower_bound", confidence=confidence)
        for confidence in (0.80, 0.95)
        for floor in (0.75, 0.80, 0.90)
    ),
    *(
        _floor(floor, f"cost per success, ≥ {floor:.2f}, else the best", "cost per success",
               ordering="expected_cost_per_success")
        for floor in (0.0, 0.70, 0.80)
    ),
    *(
        Policy(f"a wrong answer costs ${cost:g}", "default",
               {"min_quality": 0, "ordering": "expected_total_cost", "failure_cost_usd": cost},
               family="price of a wrong answer")
        for cost in FAILURE_COSTS
    ),
)  # fmt: skip
"""Every rule that is tried, and shown."""


@dataclass(frozen=True, slots=True)
class Single:
    """One model for everything: the share of all prompts it gets right, USD per 1,000."""

    model: str
    right: float
    usd_per_1000: float


@dataclass(frozen=True, slots=True)
class Study:
    """The replay of a matrix. ``one_split`` is the even prompts for training and the odd for trial."""

    label: str
    synthetic: bool
    prompts: int
    models: int
    priced: int
    flagged: tuple[str, ...]
    imputed: int
    splits: int
    seed: int
    baselines: tuple[str, ...]
    lines: tuple[Line, ...]
    one_split: tuple[Line, ...]
    singles: tuple[Single, ...]

    def line(self, title: str) -> Line:
        """The line of that title."""
        return next(line for line in self.lines if line.title == title)


def replay_matrix(
    conn: psycopg.Connection[Any],
    matrix: Matrix,
    *,
    policies: Sequence[Policy] = RULES,
    splits: int = 10,
    seed: int = 1,
    resamples: int = RESAMPLES,
    neighbours: Iterable[catalog.CatalogRow | catalog.Skipped] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Replay policies over a matrix on ``conn``, which is not in a transaction; leaves nothing behind.

    ``splits`` times two halves are tried. ``neighbours`` are rows of a price catalog: prices of the same base
    models, which a price far out of line is told by. Needs routeledger_admin.
    """
    desk = _Desk(conn, matrix, list(neighbours))
    with conn.transaction(force_rollback=True):
        desk.open()
        return _study(desk, tuple(policies), splits, seed, resamples, progress)


def _study(
    desk: _Desk,
    policies: tuple[Policy, ...],
    splits: int,
    seed: int,
    resamples: int,
    progress: Callable[[int, int], None] | None,
) -> Study:
    matrix = desk.matrix
    halves = [pair for n in range(splits) for pair in _halve(matrix, f"{seed} {n}")]
    shares = _Shares(len(matrix.tasks))
    total = len(halves) + 1
    for n, (training, trial) in enumerate(halves):
        _try(desk, policies, training, trial, shares, seed=f"{seed} {n}")
        if progress is not None:
            progress(n + 1, total)
    odd, even = _parity(matrix)
    one = _Shares(len(matrix.tasks))
    _try(desk, REFERENCE, even, odd, one, seed=None)
    if progress is not None:
        progress(total, total)
    everything = list(matrix.prompts)
    baselines = (BEST_SINGLE, CHEAP_SINGLE)
    return Study(
        label=matrix.label,
        synthetic=matrix.synthetic,
        prompts=len(matrix.tasks),
        models=len(matrix.models),
        priced=len(desk.candidates),
        flagged=desk.flagged,
        imputed=desk.imputed,
        splits=splits,
        seed=seed,
        baselines=baselines,
        lines=tuple(
            bootstrap(shares.samples(everything), baselines, seed=seed, resamples=resamples)
        ),
        one_split=tuple(bootstrap(one.samples(odd), baselines, seed=seed, resamples=resamples)),
        singles=tuple(
            sorted(
                (
                    Single(
                        matrix.models[m].name,
                        mean([matrix.right[m][p] for p in everything]),
                        mean([desk.usd[m][p] for p in everything]) * 1000,
                    )
                    for m in desk.candidates
                ),
                key=lambda single: single.usd_per_1000,
            )
        ),
    )


# -- halves ----------------------------------------------------------------------------------------


def _by_task(matrix: Matrix, prompts: Iterable[int]) -> dict[str, list[int]]:
    """The prompts of each task type, in their order."""
    tasks: dict[str, list[int]] = {}
    for p in prompts:
        tasks.setdefault(matrix.tasks[p], []).append(p)
    return tasks


def _parity(matrix: Matrix) -> tuple[list[int], list[int]]:
    """The second, fourth, … prompt of each task type, and the first, third, …"""
    tasks = _by_task(matrix, matrix.prompts).values()
    return [p for t in tasks for p in t[1::2]], [p for t in tasks for p in t[::2]]


def _halve(
    matrix: Matrix, seed: str, prompts: Sequence[int] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Two halves with half of each task type in both, as (training, trial) and the other way round."""
    rng = random.Random(f"routeledger halves {seed}")  # noqa: S311
    one: list[int] = []
    other: list[int] = []
    for mine in _by_task(matrix, matrix.prompts if prompts is None else prompts).values():
        rng.shuffle(mine)
        cut = len(mine) // 2
        one += mine[:cut]
        other += mine[cut:]
    return [(one, other), (other, one)]


# -- asking the database ---------------------------------------------------------------------------

_PERSIST = (
    "select refused, refusals from routeledger.persist_model_performance(p_rows => %s::jsonb)"
)
_CHOOSE = """
select r.model_slug
from unnest(
    %(tasks)s::text[], %(policies)s::text[], %(rules)s::jsonb[], %(input)s::bigint[], %(output)s::bigint[]
  ) with ordinality q (task_type, policy, rules, input_tokens, output_tokens, n)
left join lateral routeledger.rank_candidates(
    p_tenant_id => %(tenant)s, p_task_type => q.task_type, p_policy => q.policy, p_overrides => q.rules,
    p_candidates => %(slugs)s::text[], p_input_tokens => q.input_tokens, p_output_tokens => q.output_tokens,
    p_at => %(at)s
  ) r on r.rank = 1
order by q.n
"""
_DROPPED = """
select model_slug, drop_reason from routeledger.rank_candidates(
  p_tenant_id => %(tenant)s, p_policy => 'default', p_candidates => %(slugs)s::text[], p_at => %(at)s)
"""


class _Desk:
    """The database with a training half in it, and the costs that the matrix recorded.

    ``usd[m][p]`` is what model m's answer to prompt p cost; where its tokens are not known, what the task
    type's mean tokens cost at its price. ``candidates`` are the models whose price is known and
    in line.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        matrix: Matrix,
        neighbours: list[catalog.CatalogRow | catalog.Skipped],
    ) -> None:
        self.conn = conn
        self.matrix = matrix
        self.neighbours = neighbours
        self.prefix = f"replay-{secrets.token_hex(4)}/"
        self.slugs = [self.prefix + model.name for model in matrix.models]
        self.known = {slug: m for m, slug in enumerate(self.slugs)}
        self.candidates = [m for m, model in enumerate(matrix.models) if model.priced]
        self.flagged: tuple[str, ...] = ()
        self.imputed = 0
        self.usd: list[list[float]] = []
        self.tenants = 0
        self.at: datetime

    def open(self) -> None:
        """Bring the prices in, and compute what the answers cost."""
        self.at = self.conn.execute("select routeledger.clock()").fetchall()[0][0]
        rows = [
            {**row, "model_slug": f"{self.prefix}catalog/{row['model_slug']}", "enrolled": False,
             "base_model": self.prefix + str(row.get("base_model") or row["model_slug"])}
            for row in self.neighbours
            if not isinstance(row, catalog.Skipped)
        ]  # fmt: skip
        report = catalog.import_rows(self.conn, [*rows, *self._rows()])
        if report.refused:
            message = f"the catalog refused {report.refusals[0]}"
            raise ValueError(message)
        found = self.conn.execute(
            _DROPPED, {"tenant": self.prefix, "slugs": self.slugs, "at": self.at}
        ).fetchall()
        flagged = {self.known[slug] for slug, why in found if why == "price_flagged"}
        self.flagged = tuple(sorted(self.matrix.models[m].name for m in flagged))
        self.candidates = [m for m in self.candidates if m not in flagged]
        task_tokens = self._task_tokens(self.matrix.prompts)
        for model, tokens in zip(self.matrix.models, self.matrix.tokens, strict=True):
            usd = []
            for task, counts in zip(self.matrix.tasks, tokens, strict=True):
                if not model.priced:
                    usd.append(math.nan)
                    continue
                self.imputed += counts is None
                used = counts or task_tokens[task]
                usd.append(
                    (used[0] * float(model.input_usd or 0) + used[1] * float(model.output_usd or 0))
                    / 1e6
                )
            self.usd.append(usd)

    def _rows(self, priors: Mapping[int, float] | None = None) -> list[catalog.CatalogRow]:
        if priors is not None:
            return [{"model_slug": self.slugs[m], "q_prior": q} for m, q in priors.items()]  # type: ignore[dict-item]
        return [
            {
                "model_slug": slug,
                "provider": "replay",
                "base_model": self.prefix + model.base_model,
                "valid_from": "1970-01-01T00:00:00+00:00",
                "input_usd_per_mtok": model.input_usd,
                "output_usd_per_mtok": model.output_usd,
            }
            for slug, model in zip(self.slugs, self.matrix.models, strict=True)
        ]

    def _task_tokens(self, prompts: Iterable[int]) -> dict[str, tuple[int, int]]:
        """The mean tokens of each task type over the models that say, as whole numbers."""
        found = {}
        for task, mine in _by_task(self.matrix, prompts).items():
            counts = [
                c for tokens in self.matrix.tokens for p in mine if (c := tokens[p]) is not None
            ]
            found[task] = (
                round(mean([c[0] for c in counts])),
                round(mean([c[1] for c in counts])),
            )
        return found

    def learn(self, training: Sequence[int]) -> _Learnt:
        """Make a tenant that knows the training prompts and nothing else."""
        self.tenants += 1
        tenant = f"{self.prefix}{self.tenants}"
        tasks = _by_task(self.matrix, training)
        everyone = range(len(self.slugs))
        priors = {m: mean([self.matrix.right[m][p] for p in training]) for m in everyone}
        catalog.import_rows(self.conn, self._rows(priors))
        buckets = [
            {
                "tenant_id": tenant,
                "model_key": self.slugs[m],
                "task_type": task,
                "day": self.at.date().isoformat(),
                "n": len(mine),
                "reward_sum": sum(self.matrix.right[m][p] for p in mine),
                "reward_sq_sum": sum(self.matrix.right[m][p] for p in mine),
            }
            for task, mine in tasks.items()
            for m in everyone
        ]
        for i in range(0, len(buckets), 5_000):
            row = self.conn.execute(_PERSIST, [json.dumps(buckets[i : i + 5_000])]).fetchone()
            if row is None or row[0]:
                message = f"the ledger refused buckets: {row}"
                raise ValueError(message)
        return _Learnt(self, tenant, self._task_tokens(training))


@dataclass(frozen=True, slots=True)
class _Learnt:
    """A tenant of the database, and the tokens that its training half leads one to expect."""

    desk: _Desk
    tenant: str
    tokens: Mapping[str, tuple[int, int]]

    def choose(self, policies: Sequence[Policy]) -> list[dict[str, int | None]]:
        """For each policy the model of each task type; None where it chooses nothing."""
        asked = [
            (task, policy.name, dict(rules))
            for policy in policies
            for rules in (policy.overrides, policy.otherwise)
            if rules is not None
            for task in self.tokens
        ]
        answers = iter(self._ask(asked))
        chosen = []
        for policy in policies:
            mine = {task: next(answers) for task in self.tokens}
            if policy.otherwise is not None:
                last = {task: next(answers) for task in self.tokens}
                mine = {task: last[task] if m is None else m for task, m in mine.items()}
            chosen.append(mine)
        return chosen

    def _ask(self, asked: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[int | None]:
        rows = self.desk.conn.execute(
            _CHOOSE.encode(),
            {
                "tenant": self.tenant,
                "slugs": self.desk.slugs,
                "at": self.desk.at,
                "tasks": [task for task, _, _ in asked],
                "policies": [name for _, name, _ in asked],
                "rules": [json.dumps(rules) for _, _, rules in asked],
                "input": [self.tokens[task][0] for task, _, _ in asked],
                "output": [self.tokens[task][1] for task, _, _ in asked],
            },
        ).fetchall()
        return [None if slug is None else self.desk.known[slug] for (slug,) in rows]


# -- trying ----------------------------------------------------------------------------------------


class _Shares:
    """Sums per line and prompt over the trials, and each trial's own share and cost."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self.lines: dict[str, _Sums] = {}

    def add(self, desk: _Desk, policy: Policy, chosen: Mapping[int, int | None]) -> None:
        """One trial of a line: which model each prompt of the trial half went to."""
        sums = self.lines.setdefault(policy.title, _Sums(policy, self.prompts))
        right = usd = 0.0
        for p, m in chosen.items():
            sums.n[p] += 1
            if m is not None:
                sums.answered += 1
                sums.right[p] += desk.matrix.right[m][p]
                sums.usd[p] += desk.usd[m][p]
                right += desk.matrix.right[m][p]
                usd += desk.usd[m][p]
                name = desk.matrix.models[m].name
                counts = sums.models.setdefault(desk.matrix.tasks[p], {})
                counts[name] = counts.get(name, 0) + 1
        sums.halves.append((right / len(chosen), usd / len(chosen) * 1000))
        sums.rules.append(dict(policy.overrides))

    def samples(self, prompts: Sequence[int]) -> list[Sample]:
        """One sample a line, over these prompts."""
        found = []
        for title, sums in self.lines.items():
            found.append(
                Sample(
                    title=title,
                    family=sums.policy.family,
                    right=[sums.right[p] / sums.n[p] for p in prompts],
                    usd=[sums.usd[p] / sums.n[p] for p in prompts],
                    answered=sums.answered / sum(sums.n),
                    halves=sums.halves if len(sums.halves) > 1 else (),
                    rules=_most_common(sums.rules),
                    # the model that it went to most often
                    models={task: max(sorted(c), key=c.__getitem__) for task, c in sums.models.items()},
                )
            )  # fmt: skip
        return found


class _Sums:
    def __init__(self, policy: Policy, prompts: int) -> None:
        self.policy = policy
        self.n = [0] * prompts
        self.right = [0.0] * prompts
        self.usd = [0.0] * prompts
        self.answered = 0
        self.halves: list[tuple[float, float]] = []
        self.models: dict[str, dict[str, int]] = {}
        self.rules: list[dict[str, Any]] = []


def _most_common(rules: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rules that came most often, those that came first of several."""
    return max(rules, key=rules.count)


def _try(
    desk: _Desk,
    policies: Sequence[Policy],
    training: Sequence[int],
    trial: Sequence[int],
    shares: _Shares,
    *,
    seed: str | None,
) -> None:
    """Learn on one half and try on the other: the baselines, the policies, and what the training half
    itself chooses for the money of each baseline (not without a seed)."""
    singles = _singles(desk, training)
    picked = [] if seed is None else _pick(desk, policies, singles, training, seed)
    for title, m in singles.items():
        shares.add(desk, Policy(title, family="one model"), dict.fromkeys(trial, m))
    shares.add(desk, Policy("oracle", family="oracle"), {p: _oracle(desk, p) for p in trial})
    asked = [*policies, *picked]
    for policy, chosen in zip(asked, desk.learn(training).choose(asked), strict=True):
        shares.add(desk, policy, {p: chosen[desk.matrix.tasks[p]] for p in trial})


def _pick(
    desk: _Desk,
    policies: Sequence[Policy],
    singles: Mapping[str, int],
    training: Sequence[int],
    seed: str,
) -> list[Policy]:
    """For each baseline the price of a wrong answer that the training half would choose: tried on
    its own two halves, the one that is right most often for no more money than the baseline."""
    grid = [policy for policy in policies if policy.family == "price of a wrong answer"]
    tries = [_Shares(len(desk.matrix.tasks)) for _ in grid]
    for inner, rest in _halve(desk.matrix, f"{seed} inner", training) if grid else []:
        for policy, chosen, tried in zip(grid, desk.learn(inner).choose(grid), tries, strict=True):
            tried.add(desk, policy, {p: chosen[desk.matrix.tasks[p]] for p in rest})
    found = [tried.samples(training)[0] for tried in tries]
    picked = []
    for title, m in singles.items() if grid else ():
        most = mean([desk.usd[m][p] for p in training])
        affordable = [i for i, one in enumerate(found) if mean(one.usd) <= most]
        best = max(affordable, key=lambda i: (mean(found[i].right), -i), default=0)
        name = f"chosen in training, for the money of the {title}"
        picked.append(replace(grid[best], title=name, family="chosen in training"))
    return picked


def _singles(desk: _Desk, training: Sequence[int]) -> dict[str, int]:
    """The model that is right most often in training, and the one that is among the cheap."""

    def right(m: int) -> float:
        return mean([desk.matrix.right[m][p] for p in training])

    def usd(m: int) -> float:
        return mean([desk.usd[m][p] for p in training])

    best = max(desk.candidates, key=lambda m: (right(m), -usd(m)))
    cheap = [m for m in desk.candidates if usd(m) <= usd(best) / CHEAP_SHARE]
    cheap = cheap or [min(desk.candidates, key=usd)]
    return {BEST_SINGLE: best, CHEAP_SINGLE: max(cheap, key=lambda m: (right(m), -usd(m)))}


def _oracle(desk: _Desk, prompt: int) -> int:
    """The cheapest model that gets the prompt right; where none does, the cheapest."""
    able = [m for m in desk.candidates if desk.matrix.right[m][prompt]] or desk.candidates
    return min(able, key=lambda m: desk.usd[m][prompt])
