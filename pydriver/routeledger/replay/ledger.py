"""Policies replayed over a ledger: what each would have cost, and how good it would have been.

``routeledger.replay_policy`` ranks every decision anew and judges the choice; this adds up, and says
how sure the sums are. Requests for which something is not known count in no sum, and are counted.

Beside it ``routeledger.estimate_policy`` says what the decisions themselves tell, by the propensities
stored with them: off-policy estimates, which do not take it that a model does equally well everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg.rows import dict_row

from routeledger.types import PolicyEstimate

from .lines import RESAMPLES, Line, Policy, Sample, bootstrap

AS_IT_WAS = "as it was"

_REPLAY = """
select * from routeledger.replay_policy(
  p_tenant_id => %(tenant)s, p_policy => %(policy)s, p_overrides => %(rules)s::jsonb,
  p_from => %(from)s::date, p_to => %(to)s::date, p_limit => %(limit)s, p_all_models => %(all_models)s)
"""

_ESTIMATE = """
select * from routeledger.estimate_policy(
  p_tenant_id => %(tenant)s, p_policy => %(policy)s, p_overrides => %(rules)s::jsonb,
  p_from => %(from)s::date, p_to => %(to)s::date, p_limit => %(limit)s, p_all_models => %(all_models)s,
  p_max_weight => %(max_weight)s::double precision)
"""

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What became of the decisions under one policy.

    Of those judged, ``changed`` would have gone to another model and ``by_reward`` are judged by their
    own reward. Of all, ``unpriced`` have no known cost and ``unmeasured`` no known quality, under the
    policy or as they were; ``without_candidates`` have no candidates stored.
    """

    changed: int
    by_reward: int
    unpriced: int
    unmeasured: int
    without_candidates: int
    ruleset_hash: str | None


@dataclass(frozen=True, slots=True)
class LedgerReplay:
    """The replay of a tenant's window of decisions; ``coverage`` is by the policies' titles.

    ``judged`` are the decisions whose cost and quality are known under every policy and as they were:
    the lines, the first of which is how it was, are all made of these. ``estimates`` are by the policies'
    titles, ten each: for each measure one an estimator.
    """

    tenant: str
    begin: date | None
    end: date | None
    decisions: int
    judged: int
    implausible_costs: int
    all_models: bool
    lines: tuple[Line, ...]
    coverage: Mapping[str, Coverage]
    estimates: Mapping[str, tuple[PolicyEstimate, ...]]


def replay_ledger(
    conn: psycopg.Connection[Any],
    tenant: str,
    policies: Sequence[Policy],
    *,
    begin: date | None = None,
    end: date | None = None,
    limit: int = 10_000,
    all_models: bool = False,
    max_weight: float | None = None,
    seed: int = 1,
    resamples: int = RESAMPLES,
) -> LedgerReplay:
    """Replay policies over the decisions of ``tenant`` from ``begin`` up to, not including, ``end`` (UTC).

    Reads only, and needs no more than routeledger_reader. ``limit`` decisions are drawn from the window.
    ``max_weight`` cuts the weights of the estimates down to that.
    """
    window = {
        "tenant": tenant,
        "from": begin,
        "to": end,
        "limit": limit,
        "all_models": all_models,
        "max_weight": max_weight,
    }
    replayed = [(policy, _ask(conn, _REPLAY, policy, window)) for policy in policies]
    judged = [
        rows
        for rows in zip(*(rows for _, rows in replayed), strict=True)
        if all(_known(row, "served_") and _known(row, "") for row in rows)
    ]
    samples = [_sample(AS_IT_WAS, "as it was", [rows[0] for rows in judged], "served_")]
    coverage = {}
    for n, (policy, rows) in enumerate(replayed):
        mine = [chosen[n] for chosen in judged]
        samples.append(_sample(policy.title, "policy", mine, "", policy))
        coverage[policy.title] = Coverage(
            changed=sum(row["model_slug"] != row["served_model_slug"] for row in mine),
            by_reward=sum(row["quality_source"] == "reward" for row in mine),
            unpriced=sum(_lacks(row, "cost_usd") for row in rows),
            unmeasured=sum(_lacks(row, "quality") for row in rows),
            without_candidates=sum(row["candidates"] == 0 for row in rows),
            ruleset_hash=rows[0]["ruleset_hash"] if rows else None,
        )
    first = replayed[0][1]
    return LedgerReplay(
        tenant=tenant,
        begin=begin,
        end=end,
        decisions=len(first),
        judged=len(judged),
        implausible_costs=sum(row["served_cost_source"] == "catalog" for row in first),
        all_models=all_models,
        lines=tuple(bootstrap(samples, [AS_IT_WAS], seed=seed, resamples=resamples)),
        coverage=coverage,
        estimates={policy.title: _estimates(conn, policy, window) for policy in policies},
    )


def _ask(
    conn: psycopg.Connection[Any], query: str, policy: Policy, window: Mapping[str, Any]
) -> list[_Row]:
    rules = json.dumps(dict(policy.overrides))
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            query.encode(), {**window, "policy": policy.name, "rules": rules}
        ).fetchall()


def _estimates(
    conn: psycopg.Connection[Any], policy: Policy, window: Mapping[str, Any]
) -> tuple[PolicyEstimate, ...]:
    return tuple(PolicyEstimate(**row) for row in _ask(conn, _ESTIMATE, policy, window))


def _known(row: _Row, side: str) -> bool:
    """Whether a side of a row has cost and quality, or no model, which costs nothing."""
    return row[f"{side}model_slug"] is None or (
        row[f"{side}cost_usd"] is not None and row[f"{side}quality"] is not None
    )


def _lacks(row: _Row, column: str) -> bool:
    """Whether one of the sides has a model, but not this column."""
    return any(
        row[f"{side}model_slug"] is not None and row[f"{side}{column}"] is None
        for side in ("served_", "")
    )


def _sample(
    title: str,
    family: str,
    rows: Sequence[_Row],
    side: str,
    policy: Policy | None = None,
) -> Sample:
    """A side of the rows. Rows judged by the same buckets share their error; each group's adds up."""
    model = f"{side}model_slug"
    groups: dict[tuple[Any, ...], tuple[int, float]] = {}
    models: dict[str, dict[str, int]] = {}
    for row in rows:
        if row[model] is None:
            continue
        counts = models.setdefault(row["task_type"] or "", {})
        counts[row[model]] = counts.get(row[model], 0) + 1
        if row[f"{side}quality_source"] == "buckets":
            key = (row["task_type"], row[model], row[f"{side}samples"], row[f"{side}quality"])
            count, error = groups.get(key, (0, row[f"{side}error"] or 0.0))
            groups[key] = (count + 1, error)
    # the buckets of later days are part of those of earlier ones: errors of a model add up linearly
    errors: dict[tuple[Any, ...], float] = {}
    for (task, name, *_), (count, error) in groups.items():
        errors[task, name] = errors.get((task, name), 0.0) + count * error
    n = max(len(rows), 1)
    return Sample(
        title=title,
        family=family,
        right=[row[f"{side}quality"] or 0.0 if row[model] is not None else 0.0 for row in rows],
        usd=[float(row[f"{side}cost_usd"] or 0) if row[model] is not None else 0.0 for row in rows],
        noise=math.sqrt(sum(e * e for e in errors.values())) / n,
        answered=sum(row[model] is not None for row in rows) / n,
        rules=dict(policy.overrides) if policy is not None else None,
        models={task: max(sorted(c), key=c.__getitem__) for task, c in models.items()},
    )
