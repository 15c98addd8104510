"""The command line: install and look after a ledger, bring things in, run the demo.

Every command that talks to a database takes ``--dsn`` or libpq's own environment, and ``--json``,
which puts one JSON document on standard output and everything else on standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from routeledger import _terminal as terminal
from routeledger import (
    catalog,
    cli_constraints,
    cli_corpus,
    cli_judge,
    cli_patterns,
    cli_repair,
    cli_replay,
    cli_routing,
    doctor,
    install,
)
from routeledger._terminal import (
    DATABASE,
    FINDING,
    INTERRUPTED,
    MISSING,
    NO_CONNECTION,
    OK,
    REFUSED,
    USAGE,
    AsJson,
    Dsn,
    Yes,
)
from routeledger._version import __version__

__all__ = [
    "DATABASE",
    "FINDING",
    "INTERRUPTED",
    "MISSING",
    "NO_CONNECTION",
    "OK",
    "REFUSED",
    "USAGE",
    "app",
    "main",
]

EPILOG = """
[bold]Exit codes[/bold]

0  done, nothing to object to\n
1  a check found something (verify, doctor, refused rows), or you said no\n
2  wrong usage\n
3  no connection to the database\n
4  refused by the ledger: an RLnnn error, printed with its detail and hint\n
5  another database error, printed with its SQLSTATE\n
6  an optional part is not installed\n
130  interrupted
"""

app = typer.Typer(
    name="routeledger",
    help=(
        "A ledger for LLM routers inside Postgres.\n\n"
        "Every command finds its database through --dsn, or through libpq's environment "
        "(PGHOST, PGPORT, PGUSER, PGDATABASE, PGSERVICE, PGPASSFILE).\n\n"
        "[bold]Examples[/bold]\n\n"
        "routeledger demo\n\n"
        "routeledger plan --dsn postgresql://me@db/app\n\n"
        "PGSERVICE=app routeledger install && PGSERVICE=app routeledger models import\n\n"
        "routeledger doctor --json | jq '.checks[] | select(.status != \"ok\")'"
    ),
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(no_args_is_help=True, help="The catalog: models and their dated prices.")
spool_app = typer.Typer(no_args_is_help=True, help="Writes kept while the database was down.")
app.add_typer(models_app, name="models")
app.add_typer(cli_judge.app, name="judge")
app.add_typer(cli_patterns.app, name="patterns")
app.add_typer(cli_constraints.app, name="constraints")
app.add_typer(cli_repair.app, name="repair")
app.add_typer(cli_corpus.app, name="corpus")
app.command("replay")(cli_replay.replay_command)
app.command("rank")(cli_routing.rank_command)
app.command("route")(cli_routing.route_command)
app.add_typer(cli_routing.policy_app, name="policy")
app.add_typer(cli_routing.budget_app, name="budget")
app.add_typer(spool_app, name="spool")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"routeledger {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


# -- install and look after ------------------------------------------------------------------------


@app.command("plan")
def plan_command(dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Say what is in the database and what install or upgrade would do. Writes nothing.

    Exit code 4 when they would be refused.
    """
    with terminal.answering(as_json):
        found = install.plan(dsn)
        if as_json:
            terminal.print_json(found)
        else:
            out = terminal.out()
            out.print(
                f"database   {escape(found.database)} on PostgreSQL {found.server_version}, "
                f"as {escape(found.role)}"
            )
            out.print(f"installed  {found.installed or 'nothing'}")
            out.print(f"release    {found.release}")
            out.print(f"action     [bold]{_ACTIONS[found.action]}[/]")
            for script in found.scripts:
                out.print(f"           {script}")
            for note in found.notes:
                out.print(f"note       {escape(note)}")
        if found.error is not None:
            terminal.report(found.error, as_json=False)
            raise typer.Exit(terminal.exit_code(found.error))


_ACTIONS = {
    "install": "install: `routeledger install` would create the schema routeledger",
    "upgrade": "upgrade: `routeledger upgrade` would run, each in a transaction,",
    "nothing": "nothing to do: this release is there (installing again re-asserts it)",
    "refuse": "refuse",
}


@app.command("install")
def install_command(dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Install routeledger into a database; where it is already, re-assert it.

    One transaction. Needs CREATE on the database, no superuser; with CREATEROLE the roles
    routeledger_reader, _writer, _judge and _admin are made as well.

    [bold]Example[/bold]: routeledger install --dsn postgresql://owner@db/app
    """
    with terminal.answering(as_json):
        _show_install(install.install(dsn), as_json)


@app.command("upgrade")
def upgrade_command(dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Bring an installed older version to this one, script by script.

    `routeledger plan` shows which scripts; `routeledger sql --upgrade-from VERSION` prints them.
    """
    with terminal.answering(as_json):
        _show_install(install.upgrade(dsn), as_json)


def _show_install(result: install.InstallResult, as_json: bool) -> None:
    if as_json:
        terminal.print_json(result)
        return
    out = terminal.out()
    where = f"in {escape(result.database)}, owned by {escape(result.role)}"
    if result.action == "upgraded":
        out.print(f"routeledger {result.before} is now {result.version} {where}")
        for script in result.scripts:
            out.print(f"  {script}")
    elif result.action == "installed":
        out.print(f"routeledger {result.version} is installed {where}")
    elif result.action == "reasserted":
        out.print(f"routeledger {result.version} was installed {where}; re-asserted")
    else:
        out.print(f"routeledger {result.version} is installed {where}; nothing to do")
    for note in result.notes:
        terminal.err().print(f"note: {escape(note)}")


@app.command("sql")
def sql_command(
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="X.Y.Z", help="A frozen release instead of this one."),
    ] = None,
    upgrade_from: Annotated[
        str | None,
        typer.Option("--upgrade-from", metavar="X.Y.Z", help="The upgrade from there to here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the SQL that would be run: for review, for psql, for your own migrations.

    Needs no database.

    [bold]Example[/bold]: routeledger sql | psql -v ON_ERROR_STOP=1 app
    """
    with terminal.answering(as_json):
        if version is not None and upgrade_from is not None:
            terminal.fail(
                "give --version or --upgrade-from, not both", USAGE, as_json, name="usage"
            )
        if upgrade_from is not None:
            text = install.upgrade_sql(upgrade_from)
        elif version is not None:
            try:
                text = install.released_sql(version)
            except ValueError as exc:
                terminal.fail(str(exc), USAGE, as_json, name="usage")
        else:
            text = install.install_sql()
        if as_json:
            terminal.print_json(
                {"version": version or __version__, "from": upgrade_from, "sql": text}
            )
        else:
            sys.stdout.write(text)


@app.command("verify")
def verify_command(dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Check that what is installed equals the release, object by object. Writes nothing.

    Compares functions, tables, columns, constraints, indexes, grants and comments. Exit code 1
    when something differs; `routeledger install` re-asserts functions, grants and comments.
    """
    with terminal.answering(as_json):
        result = install.verify(dsn)
        if as_json:
            terminal.print_json(result)
        elif result.ok:
            terminal.out().print(
                f"routeledger {result.version} in {escape(result.database)} is as released "
                f"({result.facts} facts)"
            )
        else:
            out = terminal.out()
            for fact in result.missing:
                out.print(f"[red]-[/] {escape(fact)}")
            for fact in result.unexpected:
                out.print(f"[green]+[/] {escape(fact)}")
            out.print(
                f"routeledger {result.version} in {escape(result.database)} differs from the "
                f"release: - {len(result.missing)} it lacks, + {len(result.unexpected)} it should "
                "not have"
            )
        if result.absent_roles and not as_json:
            terminal.err().print(f"note: absent roles: {', '.join(result.absent_roles)}")
        if not result.ok:
            raise typer.Exit(FINDING)


@app.command("facts", hidden=True)
def facts_command(dsn: Dsn = None) -> None:
    """Print the installed objects, one line a fact."""
    with terminal.answering(as_json=False):
        for fact in install.snapshot(dsn):
            typer.echo(fact)


@app.command("uninstall")
def uninstall_command(
    dsn: Dsn = None,
    roles: Annotated[
        bool, typer.Option("--roles", help="Drop the roles too, where nothing else uses them.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove routeledger and every row in it. Shows what will be lost, then asks.

    [bold]Example[/bold]: routeledger uninstall --roles --yes --dsn postgresql://owner@db/scratch
    """
    with terminal.answering(as_json):
        if as_json and not yes:
            terminal.fail("--json cannot ask: add --yes", USAGE, as_json, name="usage")
        if not yes:
            found = install.contents(dsn)
            err = terminal.err()
            if found.installed is None and not roles:
                err.print(f"there is no routeledger in {escape(found.database)}")
                return
            err.print(
                f"[bold]This drops routeledger {found.installed or ''} from "
                f"{escape(found.database)}, with:[/]"
            )
            for name, count in found.rows.items():
                number = f"about {-count:,}" if count < 0 else f"{count:,}"
                err.print(f"  {number:>16} rows in {name}")
            if not found.rows:
                err.print("  no rows")
            for dependent in found.dependents:
                err.print(f"  and {escape(dependent)}, which depends on it")
            typer.confirm("Drop it all?", abort=True, err=True)
        result = install.uninstall(dsn, roles=roles)
        if as_json:
            terminal.print_json(result)
            return
        out = terminal.out()
        if result.removed:
            lost = sum(abs(count) for count in result.rows.values())
            out.print(f"routeledger is gone from {escape(result.database)}, with {lost:,} rows")
        else:
            out.print(f"there is no routeledger in {escape(result.database)}")
        for role in result.roles_dropped:
            out.print(f"dropped role {role}")
        for role, why in result.roles_kept.items():
            out.print(f"kept role {role}: {escape(why)}")


_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]", "skip": "skip"}


@app.command("doctor")
def doctor_command(
    dsn: Dsn = None,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", help="A spool file whose backlog to look at.", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that the ledger is well, and say what to do where it is not. Writes nothing.

    Server and schema version, objects as released, roles, partitions ahead, leases past their end,
    orphans, reconciliation, prices, clocks, durability settings. Exit code 1 when one fails.
    """
    with terminal.answering(as_json):
        checks = doctor.diagnose(dsn, spool=spool)
        bad = {"fail", "warn"} if strict else {"fail"}
        healthy = not any(check.status in bad for check in checks)
        if as_json:
            terminal.print_json({"ok": healthy, "checks": checks})
        else:
            table = terminal.table("", "check", "finding")
            for check in checks:
                advice = f"\n[dim]{escape(check.advice)}[/]" if check.advice else ""
                table.add_row(_MARKS[check.status], check.name, escape(check.finding) + advice)
            terminal.out().print(table)
        if not healthy:
            raise typer.Exit(FINDING)


# -- running it ------------------------------------------------------------------------------------


@app.command("reap")
def reap_command(
    dsn: Dsn = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Decisions a call.")] = 1000,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only this tenant.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One call, not until none is left.")] = False,
    as_json: AsJson = False,
) -> None:
    """Close what dead processes left: decisions in flight whose lease ran out become `abandoned`.

    Safe to run from many places at once. Meant for cron, every minute.
    """
    with terminal.answering(as_json), install.connection(dsn) as conn:
        reaped: list[dict[str, Any]] = []
        while True:
            batch = terminal.rows(
                conn,
                "select * from routeledger.reap(p_limit => %(limit)s, p_tenant_id => %(tenant)s)",
                {"limit": limit, "tenant": tenant},
            )
            reaped += batch
            if once or len(batch) < limit:
                break
        if as_json:
            terminal.print_json({"reaped": len(reaped), "decisions": reaped})
        else:
            terminal.out().print(f"reaped {len(reaped):,} decisions")


@app.command("maintain")
def maintain_command(
    dsn: Dsn = None,
    ahead: Annotated[
        str | None,
        typer.Option(
            "--ahead",
            metavar="INTERVAL",
            help="How far ahead partitions must exist, such as '6 weeks'; the setting otherwise.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the partitions that will be needed. Meant for cron, daily."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        actions = terminal.rows(
            conn,
            "select * from routeledger.maintain(p_ahead => %(ahead)s::interval)",
            {"ahead": ahead},
        )
        if as_json:
            terminal.print_json({"actions": actions})
        elif not actions:
            terminal.out().print("nothing to do")
        else:
            for action in actions:
                terminal.out().print(f"{action['action']} {escape(str(action['object']))}")


class LearnPriors(str, Enum):
    """What the first guess at a model's quality comes from."""

    PRICE = "price"
    BENCHMARK = "benchmark"


@app.command("demo")
def demo_command(
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            metavar="CONNINFO",
            help="A server of yours; without it a private one is started.",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Requests to replay: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="How many to replay.", show_default=False),
    ] = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="The loop instead: route, judge, count, and route by what was measured, through an "
            "outage and the silent move of an alias.",
        ),
    ] = False,
    days: Annotated[
        int | None,
        typer.Option(
            "--days", min=8, help="With --learn: how many days; 14 otherwise.", show_default=False
        ),
    ] = None,
    priors: Annotated[
        LearnPriors | None,
        typer.Option(
            "--priors",
            help="With --learn: what a model's quality is guessed from at first; price otherwise.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The report.")] = Path("report.html"),
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is random.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demo's database.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what went wrong.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replay LLM traffic through a ledger with failing providers and a killed writer.

    Without --dsn a private Postgres is started, so this needs nothing installed but
    `pip install 'routeledger\\[demo]'`. Writes a self-contained report.html.
    """
    with terminal.answering(as_json):
        if learn and trace is not None:
            terminal.fail("--learn takes no --trace", USAGE, as_json, name="usage")
        if not learn and (days is not None or priors is not None):
            terminal.fail("--days and --priors belong to --learn", USAGE, as_json, name="usage")
        try:
            if learn:
                from routeledger.demo.learn import run_learn

                code = run_learn(
                    dsn,
                    days=days,
                    requests=requests,
                    priors=(priors or LearnPriors.PRICE).value,
                    out=out,
                    seed=seed,
                    keep=keep,
                    json=as_json,
                    quiet=quiet,
                )
            else:
                from routeledger.demo import run_demo

                code = run_demo(
                    dsn,
                    trace=trace,
                    requests=requests,
                    out=out,
                    seed=seed,
                    keep=keep,
                    json=as_json,
                    quiet=quiet,
                )
        except ModuleNotFoundError as exc:
            if (exc.name or "").split(".")[0] == "routeledger":
                raise
            terminal.fail(
                f"the demo needs {exc.name}, which is not installed",
                MISSING,
                as_json,
                hint="pip install 'routeledger[demo]'",
                name="missing",
            )
        except RuntimeError as exc:
            # no private server to be had (it says what to do), or the demo itself broke
            hint = getattr(exc, "hint", None)
            message = getattr(exc, "message", None) or str(exc)
            terminal.fail(message, MISSING if hint else FINDING, as_json, hint=hint, name="demo")
        except (ValueError, OSError) as exc:  # a trace or a report path that will not do
            terminal.fail(str(exc), USAGE, as_json, name="demo")
        if code:
            raise typer.Exit(code)


# -- catalog ---------------------------------------------------------------------------------------


@models_app.command("import")
def models_import_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A LiteLLM price file, a price CSV, or - for standard input; each may be gzipped. "
            "Without it, the catalog of the genai-prices package.",
            show_default=False,
        ),
    ] = None,
    genai_prices: Annotated[
        bool, typer.Option("--genai-prices", help="The genai-prices package, said outright.")
    ] = False,
    valid_from: Annotated[
        datetime | None,
        typer.Option(
            "--valid-from",
            metavar="DATE",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
            help="Since when prices without a date of their own hold (UTC); always, otherwise. "
            "Give it when you bring in a newer catalog and want the older prices kept.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Bring models and dated prices in.

    An empty price is unknown, never free. Running it again changes nothing. Exit code 1 when rows
    were refused or could not be read.

    [bold]Examples[/bold]\n
    routeledger models import\n
    routeledger models import model_prices_and_context_window.json --valid-from 2026-11-01\n
    curl -s $URL | routeledger models import -
    """
    with terminal.answering(as_json):
        if file is not None and genai_prices:
            terminal.fail("give a file or --genai-prices, not both", USAGE, as_json, name="usage")
        since = valid_from.replace(tzinfo=timezone.utc) if valid_from else None
        with contextlib.ExitStack() as stack:
            if file is None:
                rows: Iterable[catalog.CatalogRow | catalog.Skipped] = catalog.read_genai_prices(
                    valid_from=since
                )
            else:
                rows = stack.enter_context(catalog.read_file(file, valid_from=since))
            conn = stack.enter_context(install.connection(dsn))
            progress = stack.enter_context(
                Progress(
                    SpinnerColumn(),
                    TextColumn("{task.completed:,} rows"),
                    BarColumn(),
                    TimeElapsedColumn(),
                    console=terminal.err(),
                    transient=True,
                    disable=as_json or not sys.stderr.isatty(),
                )
            )
            task = progress.add_task("import", total=None)
            report = catalog.import_rows(
                conn, rows, progress=lambda so_far: progress.update(task, completed=so_far.read)
            )
        if as_json:
            terminal.print_json(report)
        else:
            _show_import(report)
        if report.refused or report.unreadable:
            raise typer.Exit(FINDING)


def _show_import(report: catalog.ImportReport) -> None:
    out = terminal.out()
    out.print(
        f"{report.read:,} rows read: {report.accepted:,} accepted, {report.replayed:,} known "
        f"already, {report.refused:,} refused, {report.unreadable:,} unreadable, "
        f"{report.skipped:,} skipped (prices by time of day)"
    )
    out.print(
        f"{report.unknown_price:,} without a known price; {report.flagged:,} flagged as far off "
        "their neighbours"
    )
    err = terminal.err()
    for refusal in report.refusals:
        err.print(
            f"refused {escape(str(refusal['model']))}: {refusal['code']} "
            f"{escape(str(refusal['message']))} {escape(json.dumps(refusal['detail']))}"
        )
    for entry in report.unread:
        err.print(f"unreadable {escape(entry['model'])}: {escape(entry['reason'])}")


@models_app.command("list")
def models_list_command(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of the model's name.", show_default=False)
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", show_default=False)] = None,
    flagged: Annotated[bool, typer.Option("--flagged", help="Only flagged prices.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 100,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """List models with the price in force now, USD per million tokens; `-` is unknown."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        models = terminal.rows(
            conn,
            """
            select * from routeledger.current_prices
            where (%(pattern)s::text is null or strpos(lower(model_slug), lower(%(pattern)s)) > 0)
              and (%(provider)s::text is null or provider = %(provider)s)
              and (not %(flagged)s or flag is not null)
            order by model_slug limit %(limit)s + 1
            """,
            {"pattern": pattern, "provider": provider, "flagged": flagged, "limit": limit},
        )
        more = len(models) > limit
        models = models[:limit]
        if as_json:
            terminal.print_json({"models": models, "more": more})
            return
        table = terminal.table(
            "model",
            "provider",
            "input",
            "output",
            "cache read",
            "cache write",
            "since",
            "flag",
            right=("input", "output", "cache read", "cache write"),
        )
        for model in models:
            table.add_row(
                escape(model["model_slug"]),
                escape(model["provider"] or "-"),
                *(
                    "-" if model[column] is None else format(model[column].normalize(), "f")
                    for column in (
                        "input_usd_per_mtok",
                        "output_usd_per_mtok",
                        "cache_read_usd_per_mtok",
                        "cache_creation_usd_per_mtok",
                    )
                ),
                _since(model["valid_from"]),
                model["flag"] or "",
            )
        terminal.out().print(table)
        if more:
            terminal.err().print(f"only the first {limit:,}: narrow it down, or raise --limit")


def _since(instant: datetime | None) -> str:
    if instant is None:
        return "-"
    return "always" if instant <= catalog.ALWAYS else instant.date().isoformat()


# -- spool -----------------------------------------------------------------------------------------

SpoolPath = Annotated[
    Path | None,
    typer.Argument(
        help="The spool_path of the client; without it, the client's own default.",
        show_default=False,
    ),
]


@spool_app.command("show")
def spool_show_command(path: SpoolPath = None, as_json: AsJson = False) -> None:
    """Say what a spool holds. Needs no database."""
    with terminal.answering(as_json):
        backlog = doctor.spool_backlog(path)
        if as_json:
            terminal.print_json(backlog)
            return
        out = terminal.out()
        out.print(f"{backlog.records:,} records, {backlog.bytes:,} bytes in {backlog.path}")
        for routine, count in backlog.routines.items():
            out.print(f"  {count:>8,} {escape(routine)}")
        if backlog.torn:
            out.print(f"  {backlog.torn:>8,} torn by a crash, not to be had back")
        if backlog.refused:
            out.print(f"  {backlog.refused:>8,} refused before, kept in {backlog.refused_path}")


@spool_app.command("replay")
def spool_replay_command(path: SpoolPath = None, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Bring spooled writes into the ledger, each once: running it again adds nothing.

    What the ledger refuses is kept beside the spool, with the reason; exit code 1 then.
    """
    with terminal.answering(as_json):
        from routeledger import connect, spool

        kept = spool.Spool(path)
        with install.connection(dsn):
            pass  # nobody there: say so now, not when the pool gives up
        with connect(dsn, min_size=1, max_size=2) as ledger:
            report = ledger.replay_spool(kept)
        if as_json:
            terminal.print_json(report)
        else:
            out = terminal.out()
            out.print(
                f"{report.total:,} records: {report.accepted:,} brought in, "
                f"{report.replayed:,} known already, {report.refused:,} refused, "
                f"{report.torn:,} torn"
            )
            if report.refused:
                terminal.err().print(f"the refused ones, with reasons: {kept.refused_path}")
        if report.refused:
            raise typer.Exit(FINDING)


def main() -> None:
    """The entry point of the `routeledger` command."""
    app()


if __name__ == "__main__":
    main()
