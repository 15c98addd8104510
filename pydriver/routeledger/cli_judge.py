"""`routeledger judge`: label decisions with a judge, and look after the judges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg.errors import InsufficientPrivilege
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from routeledger import AsyncLedger, _calls, install, judging
from routeledger import _terminal as terminal
from routeledger._terminal import FINDING, INTERRUPTED, MISSING, USAGE, AsJson, Dsn, Yes
from routeledger.demo.words import plural
from routeledger.errors import LedgerError
from routeledger.model_judge import RUBRIC, ModelJudge, Prices, Scale

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Judges: what labels the decisions that the router learns from.

[bold]run[/] is a worker: it claims decisions that succeeded, calls a judge of yours or asks a model,
and records the verdicts. Start as many as you like. [bold]status[/] shows what waits,
[bold]findings[/] which judges should not be believed, [bold]withdraw[/] takes the verdicts of one out
of all rewards, and [bold]reinstate[/] puts them back.
""",
)

Tenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="ID", help="Only this one; all of them without it."),
]
_EVERY = 60.0  # seconds between lines of progress where there is no terminal


class _Format(str, Enum):
    json_object = "json_object"
    json_schema = "json_schema"
    text = "text"


# -- run -------------------------------------------------------------------------------------------


@app.command("run")
def run_command(
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="MODULE:FUNCTION",
            help="A callable, async or not, that takes a claimed decision and returns a verdict.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Ask this model instead, behind an OpenAI-compatible endpoint.",
            show_default=False,
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="Of the endpoint; OPENAI_BASE_URL, or OpenAI, without it.",
            show_default=False,
        ),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option("--api-key-env", metavar="NAME", help="The variable that holds the key."),
    ] = "OPENAI_API_KEY",
    rubric: Annotated[
        Path | None,
        typer.Option(
            "--rubric",
            metavar="FILE",
            help="What is right and what is wrong, in words, for the model.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            metavar="LOW:HIGH",
            help="The scores that the model is asked for, such as 1:5; recorded as 0 to 1.",
            show_default=False,
        ),
    ] = None,
    response_format: Annotated[
        _Format,
        typer.Option("--response-format", help="What the endpoint holds the model to."),
    ] = _Format.json_object,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Read the model's answer only if it is the bare object."),
    ] = False,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="NAME=JSON",
            help="More for the request, such as seed=1; temperature=null leaves out the 0. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            metavar="IN:OUT",
            help="Of the judging model, USD per million tokens; the catalog's without it.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="To judge under; MODULE:FUNCTION, or the model's name, without it.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            "--version",
            help="Another one judges everything again. For a model it follows from what is asked; "
            "a function may say its own in an attribute `version`.",
            show_default=False,
        ),
    ] = None,
    tenant: Tenant = None,
    since: Annotated[
        datetime | None,
        terminal.day_option("--since", "Only decisions of this day (UTC) and later."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            max=1000,
            help="Calls at a time; 4, or 1 for a function that is not async, without it.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Stop when nothing is left, instead of waiting.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Stop after so many calls.", show_default=False),
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(
            "--lease",
            metavar="SECONDS",
            min=1,
            max=86400,
            help="How long a claim holds unless renewed; the setting judge_lease without it.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="That a call may take.")
    ] = 300.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="That calls under way have to end after SIGTERM or Ctrl-C.",
        ),
    ] = 30.0,
    give_up_after: Annotated[
        int, typer.Option("--give-up-after", metavar="N", min=1, help="Failures in a row.")
    ] = 20,
    payloads: Annotated[
        bool,
        typer.Option("--payloads/--no-payloads", help="Read requests and responses for the judge."),
    ] = True,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Label decisions with a judge: claim, call, record, for ever or until nothing is left.

    SIGTERM and Ctrl-C stop it cleanly: it claims no more, lets the calls under way end for --grace
    seconds, and gives back the rest; the second one does not wait. When the judge cannot work (no
    answer, 429, 5xx) it pauses, as long as a retry-after says, and nothing is counted against the
    decisions. Needs routeledger_judge.

    Exit code 0 when it is done or was asked to stop by SIGTERM, 1 when the judge kept failing, 130
    after Ctrl-C.

    [bold]Examples[/bold]\n
    routeledger judge run --judge checks:runs_and_matches --version 3 --once\n
    routeledger judge run --model gpt-4o-mini --rubric sql.md --since 2026-11-01 --limit 500\n
    routeledger judge run --model qwen3:8b --base-url http://localhost:11434/v1 --concurrency 2
    """
    with terminal.answering(as_json):
        if (judge is None) is (model is None):
            terminal.fail("give --judge or --model, one of them", USAGE, as_json, name="usage")
        with install.connection(dsn) as conn:
            priced = None if model is None or prices else _catalog_prices(conn, model)
        made: judging.Judge
        try:
            if judge is not None:
                _refuse_for_function(base_url, rubric, scale, param, prices, strict)
                made = _load(judge)
                name = name or judge
                version = version or _stated_version(made)
                if version is None:
                    msg = f"--version: {judge} states none of its own"
                    raise ValueError(msg)
            else:
                assert model is not None
                made = ModelJudge(
                    model,
                    base_url=base_url,
                    api_key=_key(api_key_env, base_url),
                    rubric=rubric.read_text(encoding="utf-8") if rubric else RUBRIC,
                    scale=_scale(scale),
                    response_format=response_format.value,
                    strict=strict,
                    params=_params(param),
                    prices=_prices(prices) or priced,
                    timeout=timeout,
                )
                name, version = name or made.name, version or made.version
        except ModuleNotFoundError as exc:
            hint = "pip install 'routeledger[openai]'" if exc.name == "openai" else None
            message = f"the judge needs {exc.name}, which is not installed"
            terminal.fail(message, MISSING, as_json, hint=hint, name="missing")
        except (ValueError, OSError) as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        if concurrency is None:
            concurrency = 4 if judging.is_async(made) else 1
        options = {
            "name": name,
            "version": version,
            "tenant_id": tenant,
            "since": terminal.day(since),
            "concurrency": concurrency,
            "once": once,
            "limit": limit,
            "lease": timedelta(seconds=lease) if lease is not None else None,
            "timeout": timeout,
            "grace": grace,
            "give_up_after": give_up_after,
            "payloads": payloads,
        }
        with _telling(as_json) as progress:
            report, interrupted, gave_up = asyncio.run(_work(dsn, made, options, progress))
        if as_json:
            shown = terminal.plain(report)
            assert isinstance(shown, dict)
            terminal.print_json(
                {"judge": name, "version": version, **shown, "mean_score": report.mean_score}
            )
        else:
            terminal.out().print(f"{escape(name)} {escape(version)}: {_line(report)}")
        if gave_up is not None or report.stopped == "failing":
            why = str(gave_up) if gave_up is not None else f"last: {report.last_error}"
            said = "the judge cannot work" if gave_up is not None else "the judge kept failing"
            terminal.report(LedgerError(f"{said}: {why}", name="judge"), as_json=False)
            raise typer.Exit(FINDING)
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def _refuse_for_function(*given: object) -> None:
    if any(given):
        msg = "--base-url, --rubric, --scale, --param, --prices and --strict are for --model"
        raise ValueError(msg)


def _load(spec: str) -> judging.Judge:
    try:
        return judging.load(spec)
    except (ValueError, ModuleNotFoundError):
        raise
    except Exception as exc:
        msg = f"{spec} cannot be loaded: {type(exc).__name__}: {exc}"
        raise ValueError(msg) from exc


def _stated_version(judge: judging.Judge) -> str | None:
    stated = getattr(judge, "version", None)
    return None if stated is None or callable(stated) else str(stated)


def _key(variable: str, base_url: str | None) -> str | None:
    key = os.environ.get(variable)
    if not key and base_url is None and not os.environ.get("OPENAI_BASE_URL"):
        msg = f"there is no key for OpenAI in {variable}"
        raise ValueError(msg)
    return key or "none"  # endpoints of one's own often want none


def _scale(text: str | None) -> Scale:
    if text is None:
        return Scale()
    low, colon, high = text.partition(":")
    try:
        if not colon:
            raise ValueError
        ends = float(low), float(high)
    except ValueError:
        msg = f"--scale wants LOW:HIGH, such as 1:5, not {text}"
        raise ValueError(msg) from None
    return Scale(*ends)


def _params(given: list[str] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            msg = f"--param wants NAME=JSON, not {text}"
            raise ValueError(msg)
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out


def _prices(text: str | None) -> Prices | None:
    if text is None:
        return None
    read, _, written = text.partition(":")
    try:
        made = Prices(Decimal(read), Decimal(written))
    except InvalidOperation:
        made = Prices(Decimal(-1), Decimal(-1))
    if not (made.input.is_finite() and made.output.is_finite()) or min(made.input, made.output) < 0:
        msg = f"--prices wants USD per million tokens as IN:OUT, such as 0.15:0.60, not {text}"
        raise ValueError(msg)
    return made


def _catalog_prices(conn: Any, model: str) -> Prices | None:
    try:
        found = terminal.rows(conn, _calls.PRICE_OF, {"model": model})
    except InsufficientPrivilege:
        return None  # what it costs is then not known
    return Prices(*found[0].values()) if found else None


async def _work(
    dsn: str | None, judge: judging.Judge, options: dict[str, Any], progress: Any
) -> tuple[judging.Report, bool, judging.JudgeUnavailable | None]:
    """The report, whether it was interrupted, and why the judge will not work again."""
    asked: list[int] = []
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(judge, ModelJudge):
            await stack.enter_async_context(judge)
        ledger = await stack.enter_async_context(await AsyncLedger.connect(dsn, max_size=4))
        worker = judging.Worker(ledger, judge, progress=progress, **options)

        def stop(signum: int) -> None:
            asked.append(signum)
            worker.stop(now=len(asked) > 1)

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop, signum)
            stack.callback(loop.remove_signal_handler, signum)
        try:
            await worker.run()
        except judging.JudgeUnavailable as exc:
            return worker.report, False, exc
    return worker.report, signal.SIGINT in asked, None


class _Warnings(logging.Handler):
    """What the worker has to say, one line each."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        self._console.print(escape(" ".join(record.getMessage().split())))


@contextlib.contextmanager
def _telling(as_json: bool) -> Iterator[Any]:
    """Progress and warnings on standard error: live on a terminal, else a line a minute."""
    console = terminal.err()
    live = sys.stderr.isatty() and not as_json
    handler = _Warnings(console)
    judging.logger.addHandler(handler)
    before, judging.logger.propagate = judging.logger.propagate, False
    told = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            if as_json:  # whatever the judge prints
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            bar = stack.enter_context(
                Progress(
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    TimeElapsedColumn(),
                    console=console,
                    transient=True,
                    disable=not live,
                )
            )
            task = bar.add_task("waiting for decisions")

            def tell(report: judging.Report) -> None:
                nonlocal told
                if live:
                    bar.update(task, description=escape(_line(report)))
                elif time.monotonic() >= told + _EVERY:
                    told = time.monotonic()
                    console.print(escape(_line(report)))

            yield tell
    finally:
        judging.logger.propagate = before
        judging.logger.removeHandler(handler)


def _line(report: judging.Report) -> str:
    mean = report.mean_score
    parts = [plural(report.recorded, "verdict")]
    if mean is not None:
        parts.append(f"mean {mean:.3f}")
    for number, word in (
        (report.unusable, "without a score"),
        (report.errors, "failed"),
        (report.put_off, "put off"),
        (report.given_back, "given back"),
        (report.lost, "lost"),
    ):
        if number:
            parts.append(f"{number:,} {word}")
    if report.input_tokens or report.output_tokens:
        parts.append(f"{report.input_tokens + report.output_tokens:,} tokens")
    if report.cost_usd:
        parts.append(f"${report.cost_usd.normalize():f}")
    return ", ".join(parts)


# -- looking after them ----------------------------------------------------------------------------


@app.command("status")
def status_command(tenant: Tenant = None, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Show what waits for each judge version, and what it has said lately.

    ready: what a claim could get now; unlabeled: of these, what no judge has seen; delayed: to be
    tried again later; claimed: being judged; expired: left by a worker that died, and ready again.
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        params = {"tenant_id": tenant, "limit": 10_000, "since": None}
        queue = terminal.rows(conn, _calls.JUDGE_QUEUE, params)
        drift = terminal.rows(conn, _calls.JUDGE_DRIFT, params)
        agreement = terminal.rows(conn, _calls.JUDGE_AGREEMENT, params)
        latest = list({(d["tenant_id"], d["judge"], d["judge_version"]): d for d in drift}.values())
        if as_json:
            terminal.print_json({"queue": queue, "latest_day": latest, "agreement": agreement})
            return
        out = terminal.out()
        out.print(_queue_table(queue))
        for made, rows in ((_day_table, latest), (_agreement_table, agreement)):
            if rows:
                out.print()
                out.print(made(rows))


def _queue_table(queue: list[dict[str, Any]]) -> Table:
    numbers = ("ready", "unlabeled", "delayed", "claimed", "expired")
    shown = terminal.table("tenant", "judge", "version", *numbers, "oldest", right=numbers)
    for row in queue:
        shown.add_row(
            escape(row["tenant_id"]),
            escape(row["judge"] or "whichever comes"),
            escape(row["judge_version"] or ""),
            *(f"{row[number]:,}" for number in numbers),
            row["oldest_at"].isoformat(" ", "seconds") if row["oldest_at"] else "-",
        )
    return shown


def _day_table(latest: list[dict[str, Any]]) -> Table:
    numbers = ("verdicts", "no score", "mean", "before", "z")
    shown = terminal.table("tenant", "judge", "version", "day", *numbers, right=numbers)
    for day in latest:
        shown.add_row(
            escape(day["tenant_id"]),
            escape(day["judge"]),
            escape(day["judge_version"]),
            str(day["day"]),
            f"{day['n'] + day['unusable_n']:,}",
            f"{day['unusable_n']:,}",
            _number(day["mean_score"], 3),
            _number(day["before_mean"], 3),
            _number(day["z"], 1),
        )
    return shown


def _agreement_table(agreement: list[dict[str, Any]]) -> Table:
    numbers = ("both", "equal", "agree", "kappa")
    shown = terminal.table("tenant", "judge", "and", *numbers, right=numbers)
    for pair in agreement:
        shown.add_row(
            escape(pair["tenant_id"]),
            escape(f"{pair['judge_a']} {pair['version_a']}"),
            escape(f"{pair['judge_b']} {pair['version_b']}"),
            f"{pair['n']:,}",
            _number(pair["equal_scores"], 3),
            _number(pair["agreement"], 3),
            _number(pair["kappa"], 3),
        )
    return shown


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@app.command("findings")
def findings_command(tenant: Tenant = None, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Name the judge versions that should not be believed, on which model and why.

    mono_zero: nothing but zeros for one model, which is not what the judge's history, or other
    judges, say. mostly_unusable: no score for most of a day's decisions. Exit code 1 when there are
    any. Look at an example; then `routeledger judge withdraw`.
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(conn, _calls.JUDGE_FINDINGS, {"tenant_id": tenant, "limit": 10_000})
        if as_json:
            terminal.print_json({"findings": found})
        elif not found:
            terminal.out().print("no findings")
        else:
            shown = terminal.table(
                "tenant", "finding", "judge", "version", "model", "n", "since", right=("n",)
            )
            for row in found:
                about = "\n".join(
                    f"[dim]{escape(line)}[/]" for line in terminal.facts(row["detail"])
                )
                shown.add_row(
                    escape(row["tenant_id"]),
                    f"[red]{row['kind']}[/]",
                    escape(row["judge"]),
                    escape(row["judge_version"]),
                    f"{escape(row['model_slug'])}\n{about}".rstrip(),
                    f"{row['n']:,}",
                    row["since"].isoformat(" ", "seconds"),
                )
            terminal.out().print(shown)
        if found:
            raise typer.Exit(FINDING)


@app.command("withdraw")
def withdraw_command(
    judge: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    version: Annotated[str, typer.Argument(help="Of which version.", show_default=False)],
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Kept with it.", show_default=False),
    ],
    tenant: Tenant = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Only the verdicts on this model.", show_default=False),
    ] = None,
    begin: Annotated[
        datetime | None,
        terminal.day_option("--from", "Only on decisions of this day (UTC) and later."),
    ] = None,
    end: Annotated[
        datetime | None,
        terminal.day_option("--to", "Only on decisions before this day (UTC)."),
    ] = None,
    yes: Yes = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Take verdicts of a judge version out of all rewards. Says how many, then asks.

    They are kept, and marked; the same version does not judge these decisions again, another one
    does. The buckets follow with the next roll-up, however old the days are. Needs
    routeledger_admin. Exit code 1 when there is nothing to withdraw.

    [bold]Example[/bold]: routeledger judge withdraw checks 3 --model large --reason "parsing fault"
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        if as_json and not yes:
            terminal.fail("--json cannot ask: add --yes", USAGE, as_json, name="usage")
        params = {
            "judge": judge,
            "judge_version": version,
            "reason": reason,
            "tenant_id": tenant,
            "model_slug": model,
            "from": terminal.day(begin),
            "to": terminal.day(end),
        }
        found = terminal.rows(conn, _calls.COUNT_VERDICTS, params)
        if not yes and found:
            for row in found:
                terminal.err().print(
                    f"{row['verdicts']:>12,} verdicts of {escape(row['tenant_id'])}"
                )
            typer.confirm("Withdraw them?", abort=True, err=True)
        done = terminal.rows(conn, _calls.WITHDRAW_VERDICTS, params) if found else []
        if as_json:
            terminal.print_json({"withdrawals": done})
        else:
            _show_withdrawals(done, "withdrawn")
        if not done:
            raise typer.Exit(FINDING)


def _show_withdrawals(done: list[dict[str, Any]], word: str) -> None:
    out = terminal.out()
    for row in done:
        out.print(
            f"{plural(row['verdicts'], 'verdict')} of {escape(row['tenant_id'])} {word}; "
            f"{row['unlabeled']:,} of their decisions have no reward left"
        )
        if word == "withdrawn":
            tenant = escape(row["tenant_id"])
            out.print(
                f"to undo: routeledger judge reinstate {row['withdrawal_id']} --tenant {tenant}"
            )
    if not done:
        out.print("there is nothing to withdraw")


@app.command("reinstate")
def reinstate_command(
    withdrawal: Annotated[
        str, typer.Argument(metavar="ID", help="Of the withdrawal.", show_default=False)
    ],
    tenant: Annotated[str, typer.Option("--tenant", metavar="ID", show_default=False)],
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Count the verdicts of a withdrawal again. Needs routeledger_admin."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        params = {"tenant_id": tenant, "withdrawal_id": withdrawal}
        done = terminal.rows(conn, _calls.REINSTATE_VERDICTS, params)
        if as_json:
            terminal.print_json({"withdrawals": done})
        else:
            _show_withdrawals(done, "reinstated")


@app.command("withdrawals")
def withdrawals_command(tenant: Tenant = None, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """List what was withdrawn, newest first: what, by whom, why, and whether it was reinstated."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(
            conn, _calls.VERDICT_WITHDRAWALS, {"tenant_id": tenant, "limit": 10_000}
        )
        if as_json:
            terminal.print_json({"withdrawals": found})
            return
        shown = terminal.table(
            "id", "tenant", "judge", "version", "model", "verdicts", "when", "by", "state", "reason",
            right=("verdicts",),
        )  # fmt: skip
        for row in found:
            back = row["reinstated_at"]
            shown.add_row(
                str(row["withdrawal_id"]),
                escape(row["tenant_id"]),
                escape(row["judge"]),
                escape(row["judge_version"]),
                escape(row["model_slug"] or "all"),
                f"{row['verdicts']:,}",
                row["withdrawn_at"].isoformat(" ", "seconds"),
                escape(row["withdrawn_by"]),
                f"reinstated {back:%Y-%m-%d}" if back else "withdrawn",
                escape(row["reason"]),
            )
        terminal.out().print(shown)
