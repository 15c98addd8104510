"""The demo from beginning to end; see :func:`routeledger.demo.run_demo`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter
from typing import Protocol
from uuid import UUID

import psycopg
from psycopg import conninfo, sql

from routeledger import AsyncLedger, __version__, install
from routeledger._embedded import EmbeddedError, embedded

from .audit import read_books
from .fleet import AGENTS, Model, catalog_rows, load_models, rank
from .killing import KilledWriter, WriterError, kill_a_writer, tell
from .providers import Answers, Providers
from .replay import Replay
from .report import write_report
from .summary import Incident, Latency, Phase, Server, Summary, Traffic, find_problems, slice_width
from .terminal import Screen
from .trace import Request, Trace, TraceError, data_dir, find_trace, load_trace
from .words import number, plural, seconds

REQUESTS = 20_000
CONCURRENCY = 100
SPEED = 100.0
ONE_BY_ONE = 200
BUDGET_S = 50.0
"""The replay of as many requests as nobody asked for ends after this, on slow machines."""
VICTIM_LEASE_S = 2.0
VICTIM_IN_FLIGHT = 40
REAP_EVERY_S = 0.5
PATIENCE_S = 8.0
"""How long after the last lease the reaper is waited for."""

KNOWN_MODELS = "select model_slug from routeledger.current_prices"

BROKEN_BOOKS = 1
WRONG_USAGE = 2
NO_SERVER = 6


def run_demo(
    dsn: str | None,
    *,
    trace: str | Path | None,
    requests: int | None,
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
        limit = requests or REQUESTS
        budget_s = BUDGET_S if requests is None else float("inf")
        traffic = load_trace(trace, limit) if trace else find_trace(limit, seed)
    except (TraceError, OSError) as error:
        screen.error(str(error))
        return WRONG_USAGE
    screen.title(__version__)
    demo = Demo(screen, traffic, seed, budget_s)
    try:
        with open_database(dsn, demo, keep=keep) as server:
            summary = asyncio.run(demo.run(server))
    except WriterError as error:
        screen.error(str(error))
        return BROKEN_BOOKS
    except EmbeddedError as error:
        screen.error(str(error))
        return NO_SERVER
    report = write_report(summary, out)
    screen.show(summary, report)
    return 0 if summary.ok else BROKEN_BOOKS


def check_out(out: Path) -> None:
    """Fail now rather than after the run when the report could not be written."""
    if out.is_dir():
        message = f"{out} is a directory: --out names the report's file"
        raise OSError(message)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        message = f"{out} cannot be written"
        raise OSError(message)


# ---------------------------------------------------------------------------------------------
# The database
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Database:
    """Where the demo writes. ``prefix`` keeps its tenants apart from everybody else's."""

    dsn: str
    server: Server
    prefix: str


class Steps(Protocol):
    """What shows that something is done, and keeps how long it took since ``began``."""

    def step(self, name: str, text: str, began: float) -> None: ...


@contextmanager
def open_database(dsn: str | None, demo: Steps, *, keep: bool) -> Iterator[Database]:
    """The given database, or one of the demo's own on a private server, with routeledger in it."""
    tag = secrets.token_hex(3)
    began = perf_counter()
    if dsn is not None:
        with install.connection(dsn) as conn:
            version, name = conn.info.parameter_status("server_version") or "", conn.info.dbname
            where = f"PostgreSQL {version} at {conn.info.host or 'localhost'}, database {name}"
        demo.step("server", where, began)
        _install(dsn, demo)
        yield Database(dsn, Server(where, version, False, name), f"demo-{tag}-")
        return
    with embedded() as private:
        name = f"routeledger_demo_{tag}"
        with psycopg.connect(private.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        own = conninfo.make_conninfo(private.dsn, dbname=name)
        try:
            demo.step("server", private.note, began)
            _install(own, demo)
            server = Server(private.note, private.version, True, name, own if keep else None)
            yield Database(own, server, "")
        finally:
            if not keep:
                drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
                with psycopg.connect(private.dsn, autocommit=True) as conn:
                    conn.execute(drop)


def _install(dsn: str, demo: Steps) -> None:
    began = perf_counter()
    if install.plan(dsn).action == "nothing":
        demo.step("install", f"routeledger {__version__} is there already", began)
        return
    result = install.install(dsn)
    demo.step("install", f"routeledger {result.version}, one transaction", began)


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Demo:
    """One run: what it shows, what it replays, and how long its steps took."""

    screen: Screen
    trace: Trace
    seed: int
    budget_s: float = BUDGET_S
    concurrency: int = CONCURRENCY
    speed: float = SPEED
    began: float = field(default_factory=perf_counter)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    phases: list[Phase] = field(default_factory=list)
    reaped: set[UUID] = field(default_factory=set)

    def step(self, name: str, text: str, began: float) -> None:
        """Something is done: show it, and keep how long it took."""
        took = perf_counter() - began
        self.phases.append(Phase(name, took))
        self.screen.step(name, text, took if took >= 0.05 else None)

    async def run(self, database: Database) -> Summary:
        tenants = sorted({database.prefix + agent.tenant for agent in AGENTS})
        async with await AsyncLedger.connect(database.dsn, min_size=2, max_size=6) as ledger:
            models, answers = await self._import_catalog(ledger, database)
            replay = Replay(
                ledger=ledger,
                models=models,
                providers=Providers(
                    models, self.trace.span_s, self.seed, self.speed, answers=answers
                ),
                anchor=self.started_at - timedelta(seconds=self.trace.span_s + 1),
                tenant=lambda name: database.prefix + name,
                seed=self.seed,
            )
            alone, rest = self._split()
            quiet_calls = await self._one_by_one(replay, alone)
            replay_seconds, writer = await self._replay(replay, rest, database, tenants)
            return self._audit(
                replay, writer, database, tenants, quiet_calls, replay_seconds, bool(answers)
            )

    def _split(self) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
        """The requests to serve one by one, and those to serve at full speed."""
        n = min(ONE_BY_ONE, len(self.trace.requests) // 4)
        return self.trace.requests[:n], self.trace.requests[n:]

    async def _import_catalog(
        self, ledger: AsyncLedger, database: Database
    ) -> tuple[dict[str, Model], Answers | None]:
        began = perf_counter()
        folder = data_dir()
        models = load_models(folder)
        rows = catalog_rows(models)
        if not database.server.private:
            # A catalog that is in use keeps its own prices.
            with psycopg.connect(database.dsn, autocommit=True) as conn:
                known = {slug for (slug,) in conn.execute(KNOWN_MODELS)}
            rows = [row for row in rows if row["model_slug"] not in known]
        for result in await ledger.import_models(rows):
            result.unwrap()
        priced = sum(model.input_usd is not None for model in models.values())
        answers = Answers.load(folder, models)
        text = f"{len(models)} models, {priced} with a known price"
        self.step("catalog", text, began)
        count = plural(len(self.trace.requests), "request")
        if self.trace.synthetic:
            text = f"synthetic: {count} from a {self.trace.label}"
        else:
            text = f"{count}: {seconds(self.trace.span_s)} of the {self.trace.label}"
        self.screen.step("traffic", text, mark="note" if self.trace.synthetic else "ok")
        return models, answers

    async def _one_by_one(
        self, replay: Replay, requests: tuple[Request, ...]
    ) -> tuple[Latency, ...]:
        """A single caller and providers that answer at once: what the ledger's calls take alone."""
        began = perf_counter()
        providers, took = replay.providers, replay.took
        replay.providers = Providers(
            replay.models, self.trace.span_s, self.seed, speed=float("inf"),
            answers=providers.answers, healthy=True,
        )  # fmt: skip
        replay.took = {"insert_decision": [], "complete_decision": [], "fail_attempt": []}
        await replay.run(requests, concurrency=1)
        latencies = _latencies("one by one", replay.took)
        replay.providers, replay.took = providers, took
        if requests:
            self.step("one by one", f"{plural(len(requests), 'request')}, a single caller", began)
        return latencies

    async def _replay(
        self,
        replay: Replay,
        requests: tuple[Request, ...],
        database: Database,
        tenants: list[str],
    ) -> tuple[float, KilledWriter]:
        """Full speed, with a writer killed on the way and the reaper at work all the time."""
        began = perf_counter()
        job = self._job_for_victim(replay, database)
        goal = max(3, min(VICTIM_IN_FLIGHT, len(requests)))
        reaper = asyncio.create_task(self._reap(replay.ledger, tenants))
        killing = asyncio.create_task(kill_a_writer(database.dsn, job, goal))
        try:
            with self.screen.progress(len(self.trace.requests), replay.counts):
                before = replay.counts["requests"]
                await replay.run(requests, self.concurrency, self.budget_s)
            took = perf_counter() - began
            served = replay.counts["requests"] - before
            count = plural(served, "request")
            if served < len(requests):
                count = f"{number(served)} of {number(len(requests))} requests in the time given"
            text = f"{count}, {self.concurrency} at a time, {number(served / took)} a second"
            self.step("replay", text, began)
            began = perf_counter()
            writer = await killing
            text = f"a writer, with {writer.exit_signal}: {len(writer.leases)} decisions in flight"
            self.screen.step("killed", text, mark="kill")
            await self._until_reaped(writer, reaper)
            self.step(
                "reaper",
                f"{len(self.reaped & set(writer.leases))} of {len(writer.leases)} closed as"
                " abandoned, each linked to its attempt",
                began,
            )
        finally:
            for task in (killing, reaper):
                task.cancel()
            await asyncio.gather(killing, reaper, return_exceptions=True)
        return took, writer

    def _job_for_victim(self, replay: Replay, database: Database) -> dict[str, object]:
        agent = AGENTS[0]
        sample = self.trace.requests[:50]
        return {
            "tenant": database.prefix + agent.tenant,
            "agent": "killed-writer",
            "lease_s": VICTIM_LEASE_S,
            "candidates": [rank(agent, request, replay.models) for request in sample],
            "event_at": (replay.anchor + timedelta(seconds=self.trace.span_s / 8)).isoformat(),
        }

    async def _reap(self, ledger: AsyncLedger, tenants: list[str]) -> None:
        """What a deployment runs as a cron job: close what nobody will close."""
        while True:
            for tenant in tenants:
                for one in await ledger.reap(tenant_id=tenant):
                    if one.inference_id is not None:
                        self.reaped.add(one.id)
            await asyncio.sleep(REAP_EVERY_S)

    async def _until_reaped(self, writer: KilledWriter, reaper: asyncio.Task[None]) -> None:
        """Wait for the killed writer's leases to run out, and for the reaper to see it."""
        deadline = perf_counter() + VICTIM_LEASE_S + PATIENCE_S
        while not set(writer.leases) <= self.reaped and perf_counter() < deadline:
            if reaper.done():
                reaper.result()
            await asyncio.sleep(0.05)

    def _audit(
        self,
        replay: Replay,
        writer: KilledWriter,
        database: Database,
        tenants: list[str],
        quiet_calls: tuple[Latency, ...],
        replay_seconds: float,
        recorded_answers: bool,
    ) -> Summary:
        began = perf_counter()
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            books = read_books(conn, tenants)
        victim = tell(writer, books, self.reaped)
        endings = books.endings()
        lost = books.lost(replay.told) + books.lost(writer.told())
        models = books.models(replay.right)
        width = slice_width(self.trace.span_s)
        self.step("audit", f"{plural(len(books.decisions), 'decision')} read back", began)
        return Summary(
            version=__version__,
            started_at=self.started_at,
            seconds=perf_counter() - self.began,
            phases=tuple(self.phases),
            server=database.server,
            traffic=Traffic(
                label=self.trace.label,
                synthetic=self.trace.synthetic,
                requests=replay.counts["requests"],
                span_s=self.trace.span_s,
                answers=RECORDED_ANSWERS if recorded_answers else MADE_UP_ANSWERS,
                concurrency=self.concurrency,
                speed=self.speed,
            ),
            decisions=len(books.decisions),
            endings=endings,
            attempts=sum(map(len, books.attempts.values())),
            retries=books.count("retry"),
            failovers=books.count("failover"),
            rescued=endings.get("retry", 0) + endings.get("failover", 0),
            cost_usd=books.cost_usd(),
            unpriced=sum(line.unpriced for line in models),
            input_tokens=sum(line.input_tokens for line in models),
            output_tokens=sum(line.output_tokens for line in models),
            replay_seconds=replay_seconds,
            ledger_calls=sum(map(len, replay.took.values())),
            models=models,
            faults=books.faults(),
            flows=books.flows(),
            slice_s=width,
            slices=books.slices(replay.anchor, width),
            incidents=self._incidents(replay.providers),
            latencies=(*quiet_calls, *_latencies("under load", replay.took)),
            victim=victim,
            reconciliation=books.reconciliation,
            orphans=books.orphans,
            lost=lost,
            problems=find_problems(
                orphans=books.orphans,
                lost=lost,
                in_flight=endings.get("in flight", 0),
                reconciliation=books.reconciliation,
                victim=victim,
            ),
        )

    def _incidents(self, providers: Providers) -> tuple[Incident, ...]:
        span = self.trace.span_s
        return tuple(
            Incident(
                f"{one.provider}: {one.error_type.replace('_', ' ')}",
                one.begins * span,
                one.ends * span,
            )
            for one in providers.incidents
        )


RECORDED_ANSWERS = (
    "tokens, seconds and right or wrong are what each model really answered to prompts of the"
    " Berkeley Function Calling Leaderboard; prompt lengths are the traffic's"
)
MADE_UP_ANSWERS = "lengths follow the traffic, seconds follow each model's usual speed"


def _latencies(mode: str, took: dict[str, list[float]]) -> tuple[Latency, ...]:
    calls = ("insert_decision", "fail_attempt", "complete_decision")
    return tuple(Latency.of(call, mode, took[call]) for call in calls if took.get(call))
