"""A judge of one's own in a loop: claim, call, record.

    from routeledger import AsyncLedger
    from routeledger.judging import Verdict, Worker

    async def judge(judgement):
        right = judgement.response["answer"] == await look_up(judgement.request)
        return Verdict(1.0 if right else 0.0, label="correct" if right else "wrong")

    async with await AsyncLedger.connect("postgresql:///app") as ledger:
        report = await Worker(ledger, judge, name="look-up", version="1", once=True).run()

A judge is any callable, ``async`` or not, that takes a `routeledger.types.Judgement` and returns a
`Verdict`, a mapping with the same names, a score from 0 to 1, True or False, or -1 where it cannot
say. Whatever else it returns, and whatever it raises, is an error, and never a score.

`routeledger.model_judge.ModelJudge` is a judge that asks a model; ``routeledger judge run`` is all
of this on the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import logging
import math
import numbers
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

from . import types
from ._async import AsyncLedger
from ._classify import classify
from ._codec import clean_text
from .errors import BadArgument, ClaimLost, Conflict, LedgerError, NotFound

__all__ = ["BadVerdict", "Judge", "JudgeUnavailable", "Report", "Verdict", "Worker", "load"]

logger = logging.getLogger("routeledger.judging")

LABEL_LIMIT = 200
RATIONALE_LIMIT = 20_000
MODEL_LIMIT = 300
ERROR_LIMIT = 2000

_LONGEST_PAUSE = 60.0
_LONGEST_AFTER_ERRORS = 10.0
_LONGEST_RETRY_AFTER = 3600.0
_LONGEST_DELAY = timedelta(hours=24)
_FIRST_LOOK = 0.5
_LEAST_DELAY = 1.0  # beyond the pause
_MOST_WAITS = 3
_REMEMBERED = 10_000
_REFUSED = (ClaimLost, Conflict, NotFound, BadArgument)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one decision.

    Attributes:
        score: 0 (wrong) to 1 (right); None, or -1, where the judge cannot say.
        label: a word of the judge's own, at most 200 characters.
        rationale: why, at most 20,000 characters.
        judge_model: the model that judged.
        input_tokens: of judging: tokens read.
        output_tokens: tokens written.
        cost_usd: US dollars.
    """

    score: float | None
    label: str | None = None
    rationale: str | None = None
    judge_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | float | None = None

    @property
    def usable(self) -> bool:
        """Whether it has a score that counts."""
        return self.score is not None and self.score >= 0


Judge = Callable[[types.Judgement], Any]
Stopped = Literal["empty", "limit", "asked", "failing"]


class BadVerdict(ValueError):  # noqa: N818
    """What a judge returned is no verdict."""


class JudgeUnavailable(Exception):  # noqa: N818
    """The judge cannot work now, whichever decision it is given: it is no fault of this one's.

    Args:
        message: why.
        retry_after: seconds until it can, if that is known.
        fatal: it will not be able to until somebody changes something: the worker stops.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, fatal: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.fatal = fatal


@dataclass(slots=True)
class Report:
    """What a worker has done so far.

    Attributes:
        claimed: judgements taken.
        recorded: verdicts in the ledger, of which `usable` have a score and `unusable` have none.
        errors: attempts that the judge failed and that count.
        put_off: judgements given back because the judge could not work; they do not count.
        given_back: judgements given back untouched or half done, when the worker stopped or paused.
        lost: claims that were somebody else's, or verdicts that were there, when the answer came.
        input_tokens, output_tokens, cost_usd: of the verdicts recorded, as far as they are known.
        score_sum: of the usable ones.
        seconds: since the start.
        stopped: why it ended: the queue was ``empty``, the ``limit`` was reached, it was ``asked``
            to, or the judge kept ``failing``.
        last_error: the last thing that went wrong.
    """

    claimed: int = 0
    recorded: int = 0
    usable: int = 0
    unusable: int = 0
    errors: int = 0
    put_off: int = 0
    given_back: int = 0
    lost: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = field(default_factory=Decimal)
    score_sum: float = 0.0
    seconds: float = 0.0
    stopped: Stopped | None = None
    last_error: str | None = None

    @property
    def mean_score(self) -> float | None:
        """Of the usable verdicts."""
        return self.score_sum / self.usable if self.usable else None


def load(spec: str) -> Judge:
    """The judge that ``module:name`` names; a class is made without arguments.

    The current folder is looked into as well.

    Raises:
        ValueError: there is no such thing, or it cannot be called.
    """
    module_name, colon, path = spec.partition(":")
    if not (module_name and colon and path):
        msg = f"a judge is named as module:function, not {spec}"
        raise ValueError(msg)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        msg = f"there is no module {exc.name}"
        raise ValueError(msg) from None
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        msg = f"{spec} is nothing that can be called"
        raise ValueError(msg)
    return cast("Judge", found() if inspect.isclass(found) else found)


def is_async(judge: Judge) -> bool:
    """Whether it is called on the event loop, not in a thread of its own."""
    return inspect.iscoroutinefunction(judge) or inspect.iscoroutinefunction(
        getattr(judge, "__call__", None)  # noqa: B004 - of an instance with an async __call__
    )


_NAMES = frozenset(f.name for f in fields(Verdict))


def as_verdict(value: Any) -> Verdict:
    """What a judge returned, as a verdict that the ledger will take.

    Raises:
        BadVerdict: it is none.
    """
    if isinstance(value, Mapping):
        unknown = ", ".join(sorted(str(key) for key in value if key not in _NAMES))
        if unknown:
            msg = f"a verdict has no {unknown}"
            raise BadVerdict(msg)
        if "score" not in value:
            msg = "a verdict has a score, which may be None"
            raise BadVerdict(msg)
        value = Verdict(**value)
    elif not isinstance(value, Verdict):
        if value is None:
            msg = "the judge returned None; Verdict(None) says that it cannot tell"
            raise BadVerdict(msg)
        value = Verdict(value)
    score = None if value.score is None else _score(value.score)
    label = _text("label", value.label, LABEL_LIMIT)
    return Verdict(
        score,
        label if label or score is not None else "cannot_evaluate",
        _text("rationale", value.rationale, RATIONALE_LIMIT),
        _text("judge_model", value.judge_model, MODEL_LIMIT),
        _count("input_tokens", value.input_tokens),
        _count("output_tokens", value.output_tokens),
        _money(value.cost_usd),
    )


def _score(value: object) -> float:
    if not isinstance(value, (numbers.Real, Decimal)):
        msg = f"a score is a number, not {type(value).__name__}"
        raise BadVerdict(msg)
    score = float(value)
    if not (0 <= score <= 1 or score == -1):
        msg = f"a score is from 0 to 1, or -1, not {value}"
        raise BadVerdict(msg)
    return score


def _text(name: str, value: object, limit: int) -> str | None:
    if value is not None and not isinstance(value, str):
        msg = f"{name} is a text, not {type(value).__name__}"
        raise BadVerdict(msg)
    return clean_text(value, limit) if value else None


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        msg = f"{name} is a whole number from 0, not {value!r}"
        raise BadVerdict(msg)
    return int(value)


def _money(value: object) -> Decimal | None:
    if value is None:
        return None
    if type(value) is not bool and isinstance(value, (numbers.Real, Decimal)):
        number = Decimal(str(value))
        if number.is_finite() and number >= 0:
            return number
    msg = f"cost_usd is a number of dollars, not {value!r}"
    raise BadVerdict(msg)


@dataclass(slots=True, eq=False)
class _Claim:
    """A judgement in hand. `expires` and `length` are seconds, by the monotonic clock; `round` and
    `successes` are those of the worker when its call began."""

    judgement: types.Judgement
    expires: float
    length: float
    call: asyncio.Future[Verdict] | None = None
    round: int = 0
    successes: int = 0
    lost: bool = False
    abandoned: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """Of the decision, and of the claim on it."""
        return {
            "tenant_id": self.judgement.tenant_id,
            "id": self.judgement.id,
            "lease_token": self.judgement.lease_token,
        }


class Worker:
    """Labels decisions with a judge, until there are none or for ever.

    It claims some decisions, calls the judge for each, `concurrency` at a time, and records the
    verdicts. Claims in hand are renewed for as long as their calls take.

    When the judge cannot work (`JudgeUnavailable`, a 429, a 5xx, a connection that fails, a call
    that takes longer than `timeout`), what it was given goes back without being counted, and the
    worker pauses: as long as a retry-after says, else about one second, two, four, up to a minute;
    then it tries one decision. A decision that fails so again while others succeed is the cause
    itself, and its attempts count from then on. Whatever else the judge raises, or returns that is
    no verdict, counts at once: after ``settings.judge_max_attempts`` the decision is
    ``cannot_evaluate``. A worker whose judge fails `give_up_after` times in a row stops, before it
    has spent the attempts of a whole queue.

    Args:
        ledger: an open client of a role that may judge.
        judge: the judge.
        name: under which it judges.
        version: a version judges each decision once; another one judges them all again.
        tenant_id: whose decisions; those of all tenants in turn when absent.
        since: only decisions of this day (UTC) and later.
        concurrency: calls of the judge at a time; those of one that is not ``async`` are made in
            threads.
        limit: stop after so many calls.
        once: stop when nothing is left to claim; what the judge has failed comes back later.
        lease: how long a claim holds; the ledger's setting when absent.
        timeout: seconds that a call may take.
        payloads: whether requests and responses are read along.
        batch: decisions claimed at a time; 10, or twice `concurrency` if that is more, when absent.
        poll: seconds between looks into an empty queue.
        give_up_after: failures in a row.
        grace: seconds that calls under way have to end when the worker is asked to stop.
        progress: called with the `Report` whenever it has changed.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        judge: Judge,
        *,
        name: str,
        version: str,
        tenant_id: str | None = None,
        since: date | None = None,
        concurrency: int = 4,
        limit: int | None = None,
        once: bool = False,
        lease: timedelta | None = None,
        timeout: float = 300.0,
        payloads: bool = True,
        batch: int | None = None,
        poll: float = 5.0,
        give_up_after: int = 20,
        grace: float = 30.0,
        progress: Callable[[Report], object] | None = None,
    ) -> None:
        self.report = Report()
        self._ledger = ledger
        self._judge = judge
        self._in_loop = is_async(judge)
        self._who: dict[str, Any] = {"judge": name, "judge_version": version}
        self._tenant_id = tenant_id
        self._since = since
        self._concurrency = concurrency
        self._left = math.inf if limit is None else limit  # calls to begin
        self._once = once
        self._lease = lease
        self._timeout = timeout
        self._payloads = payloads
        self._batch = min(1000, batch or max(10, 2 * concurrency))
        self._poll = poll
        self._give_up_after = give_up_after
        self._grace = grace
        self._progress = progress

        self._started = time.monotonic()
        self._claims: set[_Claim] = set()  # all that is in hand
        self._ready: deque[_Claim] = deque()  # of these, what is not begun
        self._turn = asyncio.Lock()  # of the lane that takes what comes next
        self._changed = asyncio.Event()  # for a lane that waits
        self._claimed = asyncio.Event()  # for what renews
        self._asked = asyncio.Event()  # for what heeds stop()
        self._stop_said = asyncio.Event()  # for what waits for the ledger
        self._stopping = self._over = False
        self._deadline = math.inf  # of calls under way, once asked to stop
        self._cut: asyncio.Future[None]  # done when calls under way are abandoned
        self._fatal: BaseException | None = None

        self._empty_looks = 0  # in a row
        self._paused_until = 0.0
        self._put_off_until = 0.0  # when the last decision that was put off returns
        self._waits = 0  # for that, since something succeeded
        self._round = 0  # calls begun between two pauses belong to one round
        self._down = 0  # rounds in a row in which the judge could not work
        self._in_row = 0  # errors of the judge in a row
        self._successes = 0
        self._strikes: dict[Any, int] = {}  # a decision that failed: the successes before its call
        self._ledger_failures = 0  # in a row

    # -- from outside --

    def stop(self, *, now: bool = False) -> None:
        """Claim nothing more, give back what is not begun, and let calls under way end.

        They have `grace` seconds, or none with `now`; what has not ended by then is given back. It
        is to be called on the event loop, as its signal handlers are.
        """
        self.report.stopped = self.report.stopped or "asked"
        self._stopping = True
        self._stop_said.set()
        self._deadline = min(self._deadline, time.monotonic() + (0.0 if now else self._grace))
        self._asked.set()
        self._changed.set()

    async def run(self) -> Report:
        """Work until there is nothing left to do, or until `stop`.

        Raises:
            JudgeUnavailable: the judge cannot work until somebody changes something.
            LedgerError: the ledger refuses, or could not be reached `give_up_after` times in a row.
        """
        self._started = time.monotonic()
        self._cut = asyncio.get_running_loop().create_future()
        lanes = [asyncio.ensure_future(self._lane()) for _ in range(self._concurrency)]
        renewing = asyncio.ensure_future(self._keep_renewing())
        heeding = asyncio.ensure_future(self._heed())
        watched: set[asyncio.Future[Any]] = {*lanes, renewing}
        try:
            while not all(lane.done() for lane in lanes):
                done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := task.exception()) is not None:
                        self._fatal = self._fatal or error
                        self.stop()
        except asyncio.CancelledError:
            self.stop(now=True)
            await asyncio.wait(lanes)
            raise
        finally:
            renewing.cancel()
            self._over = True
            self._asked.set()
            await asyncio.wait([renewing, heeding])
            await self._give_back(list(self._claims))
            self._tell()
        if self._fatal is not None:
            raise self._fatal
        return self.report

    async def _heed(self) -> None:
        """Once asked to stop: give back at once what is not begun, and in time what has not ended."""
        while not self._over:
            left = None if self._deadline == math.inf else self._deadline - time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._asked.wait(), None if left is None else max(0.05, left)
                )
            self._asked.clear()
            if self._stopping:
                await self._give_back(list(self._ready))
            if time.monotonic() >= self._deadline:
                self._abandon_calls()

    def _abandon_calls(self) -> None:
        if not self._cut.done():
            self._cut.set_result(None)
        for claim in self._claims:
            claim.abandoned = True
            if claim.call is not None:
                claim.call.cancel()

    def _tell(self) -> None:
        self.report.seconds = time.monotonic() - self._started
        if self._progress is not None:
            self._progress(self.report)

    # -- the lanes: each takes one judgement after the other --

    async def _lane(self) -> None:
        while (claim := await self._next()) is not None:
            await self._judge_one(claim)
            self._changed.set()

    async def _next(self) -> _Claim | None:
        """The next judgement, begun, when its time has come; None when there is none to come."""
        async with self._turn:
            while not self._stopping:
                if self._left < 1:
                    self.report.stopped = self.report.stopped or "limit"
                    break
                pause = self._paused_until - time.monotonic()
                if pause > 0:
                    await self._wait(pause)
                elif self._down and len(self._claims) > len(self._ready):
                    await self._wait(None)  # one call shows whether the judge works again
                elif self._ready:
                    claim = self._ready.popleft()
                    claim.call = asyncio.ensure_future(self._call(claim.judgement))
                    claim.round, claim.successes = self._round, self._successes
                    self._left -= 1
                    return claim
                elif not await self._claim():
                    if self._once and await self._wait_for_put_off():
                        continue
                    if self._once:
                        self.report.stopped = self.report.stopped or "empty"
                        break
                    self._empty_looks += 1
                    longest = min(self._poll, _FIRST_LOOK * 2 ** min(self._empty_looks, 20))
                    await self._wait(longest * random.uniform(0.5, 1))  # noqa: S311
            return None

    async def _wait_for_put_off(self) -> bool:
        """Wait for what was put off, where that makes sense; False where the queue is done with.

        What fails three times more while nothing else is left to compare it with is for the next
        run, unless nothing has succeeded in this one: then the judge is away.
        """
        left = self._put_off_until - time.monotonic()
        if left <= 0 or (self._successes and self._waits >= _MOST_WAITS):
            return False
        self._waits += 1
        await self._wait(left)
        return True

    async def _wait(self, seconds: float | None) -> None:
        """Until something has changed or the seconds are over."""
        self._changed.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _claim(self) -> bool:
        """Take what is next; False where nothing is."""
        try:
            found = await self._ledger.claim_judgements(
                **self._who,
                tenant_id=self._tenant_id,
                limit=1 if self._down else int(min(self._batch, self._left)),
                lease=self._lease,
                from_=self._since,
                payloads=self._payloads,
            )
        except LedgerError as exc:
            await self._ledger_failed(exc)
            return True
        self._ledger_failures = 0
        now = time.monotonic()
        for judgement in found:
            length = (judgement.lease_expires_at - self._ledger._server_now()).total_seconds()
            claim = _Claim(judgement, now + length, length)
            self._claims.add(claim)
            self._ready.append(claim)
        if found:
            self._claimed.set()
            self._empty_looks = 0
            self.report.claimed += len(found)
            self._tell()
        return bool(found)

    async def _call(self, judgement: types.Judgement) -> Verdict:
        try:
            if self._in_loop:
                answer = await self._judge(judgement)
            else:
                answer = await _in_thread(self._judge, judgement)
                if inspect.isawaitable(answer):
                    answer = await answer
        except (SystemExit, KeyboardInterrupt) as exc:  # of the judge's, not of ours
            msg = f"the judge raised {type(exc).__name__}"
            raise RuntimeError(msg) from exc
        return as_verdict(answer)

    async def _judge_one(self, claim: _Claim) -> None:
        call = claim.call
        assert call is not None
        ends: set[asyncio.Future[Any]] = {call, self._cut}
        await asyncio.wait(ends, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        in_time = call.done()
        if not in_time:
            call.cancel()
            await asyncio.wait({call}, timeout=1)
        if claim.lost:
            self.report.lost += 1
            self._tell()
        elif claim.abandoned and not (in_time and not call.cancelled()):
            return  # given back with all the others
        elif not in_time:
            await self._failed(claim, TimeoutError(f"no answer in {self._timeout:g} s"))
        elif call.cancelled():
            await self._failed(claim, RuntimeError("the judge was cancelled"))
        elif (error := call.exception()) is not None:
            await self._failed(claim, error)
        else:
            await self._record(claim, call.result())

    # -- answers --

    async def _record(self, claim: _Claim, verdict: Verdict) -> None:
        self._down = self._in_row = self._waits = 0
        self._successes += 1
        self._strikes.pop(claim.judgement.id, None)
        row = {f.name: getattr(verdict, f.name) for f in fields(Verdict)}
        try:
            done = await self._sent(
                lambda: self._ledger.record_verdict(**claim.key, **self._who, **row)
            )
        except (ClaimLost, Conflict, NotFound) as exc:
            logger.warning("a verdict on %s came too late: %s", claim.judgement.id, exc.message)
            self._claims.discard(claim)
            self.report.lost += 1
        except BadArgument as exc:
            await self._failed(claim, exc)
        else:
            if not done:
                return
            self._claims.discard(claim)
            self._count(verdict)
        self._tell()

    def _count(self, verdict: Verdict) -> None:
        report = self.report
        report.recorded += 1
        if verdict.usable:
            report.usable += 1
            report.score_sum += verdict.score or 0.0
        else:
            report.unusable += 1
        report.input_tokens += verdict.input_tokens or 0
        report.output_tokens += verdict.output_tokens or 0
        report.cost_usd += Decimal(verdict.cost_usd or 0)

    async def _failed(self, claim: _Claim, error: BaseException) -> None:
        """The judge gave no verdict."""
        text = clean_text(f"{type(error).__name__}: {error}", ERROR_LIMIT)
        self.report.last_error = text
        away = _unavailable(error)
        if away is not None and away.fatal:
            raise error  # the claim goes back with all the others
        id_ = claim.judgement.id
        others_succeed = self._strikes.get(id_, self._successes) < self._successes
        if len(self._strikes) >= _REMEMBERED:
            self._strikes.clear()
        self._strikes[id_] = claim.successes
        if away is not None and (away.rate_limited or not others_succeed):
            pause = self._pause(away.retry_after, claim.round)
            logger.warning("the judge cannot work, pausing %.1f s: %s", pause, text)
            # until after the pause: another one has to show whether the judge works again
            pause += max(_LEAST_DELAY, pause / 2)
            if await self._release(claim, {"delay": min(_LONGEST_DELAY, timedelta(seconds=pause))}):
                self.report.put_off += 1
                self._put_off_until = max(self._put_off_until, time.monotonic() + pause)
            await self._give_back(list(self._ready))
        else:
            self._in_row += 1
            self._down = 0 if away is None else self._down
            logger.warning("the judge failed on %s: %s", id_, text)
            if self._in_row > 1:
                self._pause_for(min(_LONGEST_AFTER_ERRORS, 2.0 ** min(self._in_row - 2, 10)))
            # a worker that stops because nothing succeeds need not spend what else it had begun
            if self.report.stopped == "failing":
                await self._give_back([claim])
            elif await self._release(claim, {"error": text}):
                self.report.errors += 1
        if max(self._down, self._in_row) >= self._give_up_after:
            self.report.stopped = "failing"
            self.stop()
        self._tell()

    def _pause(self, retry_after: float | None, began: int) -> float:
        """Pause, longer with each round that fails; returns for how long from now."""
        if began == self._round:
            self._round += 1
            self._down += 1
            self._pause_for(min(_LONGEST_PAUSE, 2.0 ** min(self._down - 1, 10)))
        if retry_after is not None:
            until = time.monotonic() + min(retry_after, _LONGEST_RETRY_AFTER)
            self._paused_until = max(self._paused_until, until)
        return max(0.0, self._paused_until - time.monotonic())

    def _pause_for(self, seconds: float) -> None:
        seconds *= random.uniform(0.5, 1)  # noqa: S311
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._changed.set()

    async def _release(self, claim: _Claim, why: Mapping[str, Any]) -> bool:
        """Give one back; False where it was not ours any more."""
        try:
            await self._sent(
                lambda: self._ledger.release_judgement(**claim.key, **self._who, **why)
            )
        except (ClaimLost, NotFound):
            self.report.lost += 1
            return False
        finally:
            self._claims.discard(claim)
        return True

    async def _give_back(self, claims: list[_Claim]) -> None:
        """Give back, uncounted, what got no answer; where that fails the leases run out."""
        if not claims:
            return
        self._ready = deque(claim for claim in self._ready if claim not in claims)
        self._claims.difference_update(claims)
        for n in range(0, len(claims), 1000):
            rows = [{**claim.key, **self._who} for claim in claims[n : n + 1000]]
            try:
                answers = await self._ledger.release_judgements(rows)
            except LedgerError as exc:
                logger.warning("%d claims were not given back: %s", len(rows), exc.message)
            else:
                self.report.given_back += sum(a.status != "refused" for a in answers)

    # -- the ledger --

    async def _sent(self, send: Callable[[], Awaitable[Any]]) -> bool:
        """Send until it is written; False where time is up before that."""
        while True:
            try:
                await send()
            except LedgerError as exc:  # noqa: PERF203 - a call each
                if isinstance(exc, _REFUSED):
                    raise
                if time.monotonic() >= self._deadline:
                    return False
                await self._ledger_failed(exc)
            else:
                self._ledger_failures = 0
                return True

    async def _ledger_failed(self, exc: LedgerError) -> None:
        """Wait for the ledger to come back, or raise."""
        self._ledger_failures += 1
        if not exc.retryable or self._ledger_failures >= self._give_up_after:
            raise exc
        self.report.last_error = str(exc)
        pause = min(_LONGEST_PAUSE, 2.0 ** min(self._ledger_failures - 1, 10))
        logger.warning("the ledger cannot be reached, again in %.0f s: %s", pause, exc.message)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop_said.wait(), pause)
        if self._stopping:
            await asyncio.sleep(max(0.0, min(1.0, self._deadline - time.monotonic())))

    async def _keep_renewing(self) -> None:
        """Renew each claim when half of its lease is over, for as long as the worker runs."""
        while True:
            self._claimed.clear()
            soonest = min((c.expires - c.length / 2 for c in self._claims), default=math.inf)
            seconds = max(0.05, soonest - time.monotonic())
            with contextlib.suppress(asyncio.TimeoutError):
                waited = self._claimed.wait()
                await asyncio.wait_for(waited, None if seconds == math.inf else seconds)
            now = time.monotonic()
            due = [c for c in self._claims if not c.lost and c.expires - c.length / 2 <= now]
            if not due:
                continue
            rows = [{**c.key, **self._who, "lease": self._lease} for c in due]
            try:
                answers = await self._ledger.renew_judgements(rows)
            except LedgerError as exc:
                if not exc.retryable:
                    raise
                logger.warning("claims could not be renewed: %s", exc.message)
                continue
            for claim, answer in zip(due, answers, strict=True):
                if answer.result is not None:
                    left = answer.result.lease_expires_at - self._ledger._server_now()
                    claim.length = left.total_seconds()
                    claim.expires = time.monotonic() + claim.length
                elif claim in self._claims:
                    self._drop(claim)

    def _drop(self, claim: _Claim) -> None:
        """Somebody else has it by now."""
        claim.lost = True
        self._claims.discard(claim)
        if claim.call is not None:
            claim.call.cancel()
        else:
            self._ready.remove(claim)
            self.report.lost += 1


@dataclass(frozen=True, slots=True)
class _Away:
    """Why a judge could not work."""

    retry_after: float | None
    rate_limited: bool
    fatal: bool


# what says nothing about the decision: no key, too many requests, nobody there
_ITS_OWN = frozenset(
    {
        "authentication",
        "permission_denied",
        "timeout",
        "too_early",
        "rate_limited",
        "unavailable",
        "overloaded",
        "server_error",
        "connection_error",
    }
)


def _unavailable(error: BaseException) -> _Away | None:
    """None where the decision, or the judge's code, is to blame."""
    if isinstance(error, JudgeUnavailable):
        return _Away(error.retry_after, error.retry_after is not None, error.fatal)
    if isinstance(error, LedgerError):
        return None
    found = classify(error)
    if found.error_type not in _ITS_OWN:
        return None
    wait = None if found.retry_after_ms is None else found.retry_after_ms / 1000
    return _Away(wait, found.error_type == "rate_limited", fatal=False)


def _in_thread(work: Callable[[types.Judgement], Any], given: types.Judgement) -> Awaitable[Any]:
    """Run it in a thread of its own that nobody waits for when the process ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def put(result: Any, error: BaseException | None) -> None:
        if answer.done():  # nobody waits for it any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = context.run(work, given)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the judge's answer
            failure = exc
        if isinstance(failure, StopIteration):  # which no future can hold
            failure = RuntimeError("the judge raised StopIteration")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(put, result, failure)

    threading.Thread(target=run, name="routeledger-judge", daemon=True).start()
    return answer
