"""What a replay answers with: one line per policy, and how sure it is of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy to replay: a name known to the database, with some of its rules changed.

    ``otherwise`` is asked where it chooses nothing; without one the request goes unanswered.
    """

    title: str
    name: str = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    otherwise: Mapping[str, Any] | None = None
    family: str = "given"


_SPELLING = re.compile(r"\s*(?P<name>[^\s{]+)?\s*(?P<rules>\{.*\})?\s*\Z", re.DOTALL)


def read_policy(text: str) -> Policy:
    """Read ``NAME``, ``NAME {"rule": value}`` or ``{"rule": value}``, which changes `default`.

    Raises ValueError for anything else.
    """
    match = _SPELLING.match(text)
    if match is None or not text.strip():
        message = f"{text!r} is not a policy: write NAME, or NAME and its changed rules as JSON"
        raise ValueError(message)
    try:
        rules = json.loads(match["rules"] or "{}")
    except ValueError as error:
        message = f"{match['rules']} is not JSON: {error}"
        raise ValueError(message) from None
    return Policy(" ".join(text.split()), match["name"] or "default", rules)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One policy: the share answered right (0..1), USD per 1,000 requests, and the share answered.

    ``spread`` is how far the share of right answers and the cost move between training halves (one
    standard deviation; None where there is only one). ``against`` compares it with each baseline.
    ``models`` has for each task type the model that it went to most often.
    """

    title: str
    family: str
    right: Interval
    usd_per_1000: Interval
    answered: float
    spread: tuple[float, float] | None = None
    against: Mapping[str, Comparison] = field(default_factory=dict)
    rules: Mapping[str, Any] | None = None
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line less a baseline, in share of right answers and USD per 1,000.

    ``sure`` is the share of resamples in which the line is at least as good and at most as dear;
    ``halves`` that of the trial halves (None where there is only one).
    """

    right: Interval
    usd_per_1000: Interval
    sure: float
    halves: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A line before its intervals: per request, the (expected) right answer and the cost in USD.

    ``noise`` is the standard error of the mean of ``right`` that comes from estimating it. ``halves``
    are share and cost of each trial half, where there are several.
    """

    title: str
    family: str
    right: Sequence[float]
    usd: Sequence[float]
    noise: float = 0.0
    answered: float = 1.0
    halves: Sequence[tuple[float, float]] = ()
    rules: Mapping[str, Any] | None = None
    models: Mapping[str, str] = field(default_factory=dict)


def bootstrap(
    samples: Sequence[Sample], baselines: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> list[Line]:
    """Lines with percentile bootstrap intervals (Efron 1979) over the requests.

    The same requests are drawn for every line, so that differences are paired.
    """
    n = len(samples[0].right)
    if n == 0:
        nothing = Interval(0.0, 0.0, 0.0)
        return [
            Line(s.title, s.family, nothing, nothing, s.answered, rules=s.rules) for s in samples
        ]
    rng = random.Random(f"routeledger bootstrap {seed}")  # noqa: S311
    everything = range(n)
    drawn: list[list[tuple[float, float]]] = [[] for _ in samples]
    for _ in range(resamples):
        chosen = rng.choices(everything, k=n)
        for sample, means in zip(samples, drawn, strict=True):
            means.append((
                sum(map(sample.right.__getitem__, chosen)) / n + rng.gauss(0, sample.noise),
                sum(map(sample.usd.__getitem__, chosen)) / n * 1000,
            ))  # fmt: skip
    names = [sample.title for sample in samples]
    bases = [(name, names.index(name)) for name in baselines if name in names]
    lines = []
    for i, sample in enumerate(samples):
        right, usd = sum(sample.right) / n, sum(sample.usd) / n * 1000
        against = {}
        for name, b in bases:
            if b == i:
                continue
            pairs = [(x[0] - y[0], x[1] - y[1]) for x, y in zip(drawn[i], drawn[b], strict=True)]
            against[name] = Comparison(
                _interval(right - sum(samples[b].right) / n, [p[0] for p in pairs]),
                _interval(usd - sum(samples[b].usd) / n * 1000, [p[1] for p in pairs]),
                sum(p[0] >= 0 and p[1] <= 0 for p in pairs) / resamples,
                _share_better(sample.halves, samples[b].halves),
            )
        lines.append(
            Line(
                title=sample.title,
                family=sample.family,
                right=_interval(right, [x[0] for x in drawn[i]]),
                usd_per_1000=_interval(usd, [x[1] for x in drawn[i]]),
                answered=sample.answered,
                spread=_deviations(sample.halves),
                against=against,
                rules=sample.rules,
                models=sample.models,
            )
        )
    return lines


def _interval(value: float, drawn: Sequence[float]) -> Interval:
    ordered = sorted(drawn)
    cut = round(len(ordered) * 0.025)
    return Interval(value, ordered[cut], ordered[-1 - cut])


def _share_better(
    halves: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]
) -> float | None:
    if len(halves) < 2:
        return None
    pairs = zip(halves, base, strict=True)
    return sum(h[0] >= b[0] and h[1] <= b[1] for h, b in pairs) / len(halves)


def _deviations(halves: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if len(halves) < 2:
        return None
    return stdev([h[0] for h in halves]), stdev([h[1] for h in halves])
