"""The learning demo from beginning to end; see :func:`routeledger.demo.learn.run_learn`."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg

from routeledger import Ledger, __version__
from routeledger._embedded import EmbeddedError
from routeledger.demo.run import (
    BROKEN_BOOKS,
    NO_SERVER,
    WRONG_USAGE,
    Database,
    check_out,
    open_database,
)
from routeledger.demo.summary import Phase
from routeledger.demo.terminal import Screen
from routeledger.demo.trace import data_dir
from routeledger.demo.words import number, plural
from routeledger.replay.matrix import MatrixError, find_matrix

from .loop import Branch, Loop
from .plan import EXPLORING, OUTAGE, Plan, make_plan, policy
from .report import write_report
from .summary import (
    WITH,
    WITHOUT,
    Books,
    Learning,
    baselines,
    find_problems,
    fleet,
    read_run,
    task_types,
)
from .terminal import learning_view
from .world import World, make_world

POLICY = "demo-learn"
STEADY = {"jitter": 0}
"""How failures are met: as always, but the pauses are not random."""

_BOOKS = """
with decided as (
  select count(*) as n, count(*) filter (where d.outcome_status = 'succeeded') as succeeded,
    coalesce(sum(d.cost_usd), 0)::double precision as cost_usd
  from routeledger.decisions d where d.tenant_id = %(tenant)s
),
judged as (
  select count(*) as n, count(distinct v.outcome_id) filter (where v.usable) as labelled
  from routeledger.verdicts v where v.tenant_id = %(tenant)s
),
counted as (
  select coalesce(sum(p.reward_n), 0)::bigint as n,
    coalesce(sum(p.reward_n * p.mean_reward), 0)::double precision as reward_sum
  from routeledger.model_performance_between(%(tenant)s, %(from)s, %(to)s) p
)
select d.n, d.succeeded, j.labelled, j.n, c.n, c.reward_sum, d.cost_usd,
  (select count(*) from routeledger.orphans o where o.tenant_id = %(tenant)s)
from decided d, judged j, counted c
"""


def run_learn(
    dsn: str | None,
    *,
    days: int | None,
    requests: int | None,
    priors: str,
    out: str | Path,
    seed: int,
    keep: bool,
    json: bool,
    quiet: bool,
) -> int:
    if importlib.util.find_spec("plotly") is None:
        raise ModuleNotFoundError("plotly is not installed", name="plotly")
    screen = Screen(json=json, quiet=quiet)
    try:
        check_out(Path(out))
        world = make_world(find_matrix(data_dir(), seed), seed)
        plan = make_plan(world, days, requests, seed)
    except (MatrixError, ValueError, OSError) as error:
        screen.error(str(error))
        return WRONG_USAGE
    screen.title(__version__, "demo --learn")
    demo = LearnDemo(screen, world, plan, priors)
    try:
        with open_database(dsn, demo, keep=keep) as server:
            learning = demo.run(server)
    except EmbeddedError as error:
        screen.error(str(error))
        return NO_SERVER
    report = write_report(learning, out)
    screen.finish(learning.to_json(), learning_view(learning, report), report, learning.problems)
    return 0 if learning.ok else BROKEN_BOOKS


@dataclass(slots=True)
class LearnDemo:
    """One run of the demo: what it shows, the world, and how long its steps took."""

    screen: Screen
    world: World
    plan: Plan
    priors: str
    began: float = field(default_factory=perf_counter)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    phases: list[Phase] = field(default_factory=list)

    @property
    def begin(self) -> datetime:
        """The midnight (UTC) at which the first day begins; the last one is yesterday."""
        today = self.started_at.replace(hour=0, minute=0, second=0, microsecond=0)
        return today - timedelta(days=self.plan.days)

    def step(self, name: str, text: str, began: float) -> None:
        """Something is done: show it, and keep how long it took."""
        took = perf_counter() - began
        self.phases.append(Phase(name, took))
        self.screen.step(name, text, took if took >= 0.05 else None)

    def run(self, database: Database) -> Learning:
        world, plan = self.world, self.plan
        branches = [
            Branch(f"{database.prefix}learn-greedy", {}, []),
            Branch(f"{database.prefix}learn-exploring", EXPLORING, []),
        ]
        with (
            Ledger.connect(database.dsn, min_size=1, max_size=1) as ledger,
            psycopg.connect(database.dsn, autocommit=True) as conn,
        ):
            # in a catalog that is in use these are models of their own
            own = "" if database.server.private else f"{POLICY}/"
            slugs = [own + arm.slug for arm in world.arms]
            rules = self._catalog(ledger, conn, slugs)
            for branch in branches:
                ledger.set_retry_policy(STEADY, tenant_id=branch.tenant, conn=conn)
            self._loop(ledger, conn, slugs, branches)
            began = perf_counter()
            books = tuple(
                _read_books(conn, branch.tenant, self.begin, plan.days) for branch in branches
            )
        runs = tuple(
            read_run(world, plan, title, branch.tenant, branch.served)
            for title, branch in zip((WITHOUT, WITH), branches, strict=True)
        )
        count = sum(one.verdicts for one in books)
        self.step("audit", f"{plural(count, 'verdict')}, each counted once in the buckets", began)
        return Learning(
            version=__version__,
            started_at=self.started_at,
            seconds=perf_counter() - self.began,
            phases=tuple(self.phases),
            server=database.server,
            label=world.label,
            synthetic=world.synthetic,
            seed=plan.seed,
            priors=self.priors,
            policy={rule: value for rule, value in rules.items() if rule != "allow"},
            exploring=EXPLORING,
            days=plan.days,
            rounds_a_day=plan.rounds_a_day,
            requests=len(plan.requests),
            task_types=task_types(world, plan),
            fleet=fleet(world, world.priors(self.priors)),
            alias=world.arms[world.alias].slug,
            moves=world.arms[world.alias].answers_with,
            move_day=plan.move_day,
            outage_provider=plan.provider,
            outage_day=plan.outage_day,
            outage=OUTAGE,
            notice_limit=plan.notice_limit,
            runs=runs,
            baselines=baselines(world, plan),
            books=books,
            problems=find_problems(runs, books, plan),
        )

    def _catalog(
        self, ledger: Ledger, conn: psycopg.Connection[Any], slugs: Sequence[str]
    ) -> dict[str, Any]:
        """Prices, priors, and the policy: all that the router knows on the first day."""
        began = perf_counter()
        priors = self.world.priors(self.priors)
        rows = [
            {
                "model_slug": slug,
                "provider": arm.provider,
                "valid_from": "1970-01-01T00:00:00+00:00",
                "input_usd_per_mtok": arm.input_usd,
                "output_usd_per_mtok": arm.output_usd,
                "q_prior": priors[arm.slug],
            }
            for slug, arm in zip(slugs, self.world.arms, strict=True)
        ]
        for imported in ledger.import_models(rows, conn=conn):
            imported.unwrap()
        rules = policy(self.world, slugs)
        stored = ledger.set_policy(POLICY, rules, conn=conn)
        text = f"{plural(len(rows), 'model')}, priors by {self.priors}; policy {stored.name}@{stored.version}"
        self.step("catalog", text, began)
        text = (
            f"{plural(len(self.plan.requests), 'request')} in {plural(self.plan.days, 'day')},"
            f" answers of the {self.world.label}"
        )
        if self.world.synthetic:
            text = f"synthetic: {text}"
        self.screen.step("traffic", text, mark="note" if self.world.synthetic else "ok")
        return rules

    def _loop(
        self,
        ledger: Ledger,
        conn: psycopg.Connection[Any],
        slugs: Sequence[str],
        branches: Sequence[Branch],
    ) -> None:
        began = perf_counter()
        plan = self.plan
        loop = Loop(
            ledger=ledger,
            conn=conn,
            world=self.world,
            plan=plan,
            slugs=slugs,
            policy=POLICY,
            begin=self.begin,
        )
        counts: Counter[str] = Counter()

        def progress(done: int) -> None:
            counts["requests"] = plan.of_round(done - 1).stop
            counts["rounds"] = done

        def live(counts: Counter[str]) -> str:
            return self._news(counts["rounds"])

        with self.screen.progress(len(plan.requests), counts, "learn", live):
            loop.run(branches, progress)
        took = perf_counter() - began
        served = sum(len(branch.served) for branch in branches)
        self.step(
            "loop",
            f"{plural(served, 'request')} in two runs, each routed, answered, judged and counted,"
            f" {number(served / took)} a second",
            began,
        )

    def _news(self, n: int) -> str:
        """The day of a round, and what has happened so far."""
        plan = self.plan
        day = min(n // plan.rounds_a_day, plan.days - 1)
        text = f"day {day + 1}"
        if n >= plan.outage.start:
            text += f" · {plan.provider} {'is' if plan.down(n) else 'was'} down"
        if plan.moved(n):
            text += f" · {self.world.arms[self.world.alias].slug} has moved"
        return text


def _read_books(conn: psycopg.Connection[Any], tenant: str, begin: datetime, days: int) -> Books:
    params = {
        "tenant": tenant,
        "from": begin.date(),
        "to": begin.date() + timedelta(days=days),
    }
    row = conn.execute(_BOOKS, params).fetchone()
    assert row is not None
    return Books(tenant, *row)
