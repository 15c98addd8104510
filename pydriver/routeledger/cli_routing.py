"""`routeledger rank`, `route`, `policy` and `budget`: which model, by which rules, for how much."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from routeledger import _calls, _codec, _routines, install
from routeledger import _terminal as terminal
from routeledger._ids import IdMaker
from routeledger._terminal import FINDING, USAGE, AsJson, Dsn, Yes

__all__ = ["budget_app", "policy_app", "rank_command", "route_command"]

policy_app = typer.Typer(
    no_args_is_help=True,
    help="Routing policies: named rules that choose a model. A version never changes.",
)
budget_app = typer.Typer(
    no_args_is_help=True, help="Budgets: what a tenant, an agent or a key may spend in a period."
)

Tenant = Annotated[str, typer.Option("--tenant", metavar="ID", show_default=False)]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="TYPE", help="The task type.", show_default=False),
]
PolicyName = Annotated[
    str, typer.Option("--policy", metavar="NAME", help="A policy, or NAME@VERSION.")
]
Models = Annotated[
    list[str] | None,
    typer.Argument(help="The candidates; all enrolled models when absent.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="RULE=VALUE",
        help="Another value for a rule of the policy, such as min_quality=0.9; repeatable.",
        show_default=False,
    ),
]
InputTokens = Annotated[
    int | None, typer.Option("--input-tokens", min=0, metavar="N", show_default=False)
]
OutputTokens = Annotated[
    int | None, typer.Option("--output-tokens", min=0, metavar="N", show_default=False)
]

_LISTS = ("allow", "deny")


def _rules(given: list[str] | None) -> dict[str, Any]:
    """What --set says. Raises ValueError."""
    rules: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            msg = f"--set wants RULE=VALUE, not {text}"
            raise ValueError(msg)
        if name in _LISTS:
            rules[name] = [slug for slug in value.split(",") if slug]
        elif value in ("", "null"):
            rules[name] = None
        else:
            try:
                rules[name] = Decimal(value)
            except InvalidOperation:
                rules[name] = value
    return rules


def _time(text: str | None) -> datetime | None:
    """A time in ISO 8601, in UTC where it names no zone. Raises ValueError."""
    if text is None:
        return None
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _usd(value: Decimal | None) -> str:
    return "-" if value is None else f"{value.normalize():f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rank_command(
    models: Models = None,
    tenant: Tenant = ...,  # type: ignore[assignment]
    task: Task = None,
    policy: PolicyName = "default",
    rules: Sets = None,
    input_tokens: InputTokens = None,
    output_tokens: OutputTokens = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="Prices, measurements and cooldowns as of then: ISO 8601, UTC without a zone.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Say how a request would be routed, and why each model is where it is. Writes nothing.

    Exit code 1 when no candidate is acceptable.

    [bold]Examples[/bold]\n
    routeledger rank --tenant acme --task chat\n
    routeledger rank --tenant acme --set min_quality=0.9 --input-tokens 12000 small large
    """
    with terminal.answering(as_json):
        try:
            overrides, time = _rules(rules), _time(at)
        except ValueError as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        params = {
            "tenant_id": tenant,
            "task_type": task,
            "policy": policy,
            "candidates": models or None,
            "overrides": _codec.dumps(overrides),
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "at": time,
        }
        with install.connection(dsn) as conn:
            found = terminal.rows(conn, _calls.RANK_CANDIDATES, params)
        if as_json:
            terminal.print_json({"candidates": found})
        else:
            _show_ranking(found)
        if not any(row["rank"] for row in found):
            raise typer.Exit(FINDING)


def _show_ranking(found: list[dict[str, Any]]) -> None:
    right = ("rank", "quality", "samples", "USD", "USD/success", "ms")
    shown = terminal.table(
        "rank", "model", "provider", "quality", "by", *right[2:], "dropped", right=right
    )
    for row in found:
        shown.add_row(
            "" if row["rank"] is None else str(row["rank"]),
            escape(row["model_slug"]),
            escape(row["provider"] or "-"),
            _number(row["quality"], 4),
            row["quality_source"] or "-",
            f"{row['samples']:,}",
            _usd(row["projected_cost_usd"]),
            "-" if row["cost_per_success_usd"] is None else f"{row['cost_per_success_usd']:.6g}",
            _number(row["expected_latency_ms"], 0),
            row["drop_reason"] or "",
        )
    terminal.out().print(shown)


def route_command(
    models: Models = None,
    tenant: Tenant = ...,  # type: ignore[assignment]
    id: Annotated[  # noqa: A002
        str | None,
        typer.Option("--id", metavar="UUID", help="Version 7; made when absent."),
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", show_default=False)] = None,
    task: Task = None,
    policy: PolicyName = "default",
    rules: Sets = None,
    input_tokens: InputTokens = None,
    output_tokens: OutputTokens = None,
    pin: Annotated[
        str | None,
        typer.Option("--pin", metavar="MODEL", help="Take this one.", show_default=False),
    ] = None,
    budget_key: Annotated[
        str | None, typer.Option("--budget-key", metavar="KEY", show_default=False)
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option("--deadline", min=0, metavar="SECONDS", show_default=False),
    ] = None,
    traffic: Annotated[
        str, typer.Option("--traffic", metavar="production|shadow|synthetic|replay")
    ] = "production",
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Choose a model and write the decision with its first attempt, before the provider is called.

    What was decided must be finished: with complete_decision(), or by the reaper. Exit code 1 when
    it was rejected.

    [bold]Examples[/bold]\n
    routeledger route --tenant acme --task chat --json | jq -r .model_slug
    """
    with terminal.answering(as_json):
        try:
            overrides = _rules(rules)
        except ValueError as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        params = _codec.single_params(
            {
                "tenant_id": tenant,
                "id": id or IdMaker()(),
                "agent_id": agent,
                "task_type": task,
                "policy": policy,
                "candidates": models or None,
                "overrides": overrides,
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
                "pinned_model": pin,
                "budget_key": budget_key,
                "deadline": None if deadline is None else timedelta(seconds=deadline),
                "traffic_class": traffic,
            },
            _routines.ROUTE.defaults,
            _routines.ROUTE.arrays,
        )
        with install.connection(dsn) as conn:
            (found,) = terminal.rows(conn, _calls.ROUTE, params)
        if as_json:
            terminal.print_json(found)
        else:
            out = terminal.out()
            out.print(f"decision   {found['id']}")
            out.print(f"rule       {found['decision_rule']}, policy {found['policy_version']}")
            if found["model_slug"] is not None:
                via = f" at {found['provider']}" if found["provider"] else ""
                out.print(f"model      [bold]{escape(found['model_slug'])}[/]{escape(via)}")
                out.print(f"attempt    {found['attempt_id']}")
                out.print(f"projected  {_usd(found['projected_cost_usd'])} USD")
                if found["fallbacks"]:
                    out.print(f"then       {escape(', '.join(found['fallbacks']))}")
                if found["delay_ms"]:
                    out.print(f"wait       {found['delay_ms'] / 1000:g} s: every model cools down")
            elif found["available_at"] is not None:
                out.print(f"available  {found['available_at'].isoformat(' ', 'seconds')}")
        if found["outcome_status"] == "rejected":
            raise typer.Exit(FINDING)


@policy_app.command("list")
def list_policies_command(dsn: Dsn = None, as_json: AsJson = False) -> None:
    """List the policies, each in its newest version."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(conn, "select * from routeledger.current_policies")
        if as_json:
            terminal.print_json({"policies": found})
            return
        shown = terminal.table("policy", "floor", "order", "caps", "by", "since")
        for row in found:
            bound = f" ({row['floor']})" if row["floor"] != "mean" else ""
            caps = (
                [f"{_usd(row['budget_cap_usd'])} USD"] if row["budget_cap_usd"] is not None else []
            )
            if row["latency_cap_ms"] is not None:
                caps.append(f"{row['latency_cap_ms']:g} ms")
            shown.add_row(
                escape(f"{row['name']}@{row['version']}"),
                f"{row['min_quality']:g}{bound}",
                row["ordering"],
                ", ".join(caps) or "-",
                escape(row["created_by"]),
                row["created_at"].isoformat(" ", "seconds"),
            )
        terminal.out().print(shown)


@policy_app.command("show")
def show_policy_command(
    name: Annotated[str, typer.Argument(help="Of the policy.", show_default=False)],
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Show every rule of a policy's newest version."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        query = "select * from routeledger.current_policies where name = %(name)s::text"
        found = terminal.rows(conn, query, {"name": name})
        if not found:
            terminal.fail(f"there is no policy {name}", FINDING, as_json, name="policy_not_found")
        if as_json:
            terminal.print_json(found[0])
            return
        shown = terminal.table("rule", "value")
        for rule, value in found[0].items():
            text = ", ".join(value) if isinstance(value, list) else value
            shown.add_row(rule, "-" if text is None or text == "" else escape(str(text)))
        terminal.out().print(shown)


@policy_app.command("set")
def set_policy_command(
    name: Annotated[str, typer.Argument(help="Of the policy.", show_default=False)],
    rules: Sets = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="JSON", help="The rules as a JSON object.", show_default=False
        ),
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Store a policy; other content becomes its next version. What is left out has its default.

    [bold]Examples[/bold]\n
    routeledger policy set careful --set min_quality=0.9 --set floor=lower_bound\n
    routeledger policy set careful --file careful.json
    """
    with terminal.answering(as_json):
        try:
            policy = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(policy, dict):
                msg = f"{file} holds no JSON object"
                raise ValueError(msg)
            policy |= _rules(rules)
        except (ValueError, OSError) as exc:
            terminal.fail(str(exc), USAGE, as_json, name="usage")
        with install.connection(dsn) as conn:
            params = {"name": name, "policy": _codec.dumps(policy)}
            (found,) = terminal.rows(conn, _calls.SET_POLICY, params)
        if as_json:
            terminal.print_json(found)
        else:
            version = escape(f"{found['name']}@{found['version']}")
            terminal.out().print(version if found["created"] else f"{version} is that already")


@budget_app.command("list")
def list_budgets_command(
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="ID", show_default=False)
    ] = None,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """List the budgets and what is left of them in the window that is running."""
    with terminal.answering(as_json), install.connection(dsn) as conn:
        found = terminal.rows(
            conn,
            "select * from routeledger.budget_status"
            " where %(tenant)s::text is null or tenant_id = %(tenant)s::text order by 1, 2, 4",
            {"tenant": tenant},
        )
        if as_json:
            terminal.print_json({"budgets": found})
            return
        money = ("limit", "reserved", "spent", "remaining")
        shown = terminal.table(
            "tenant", "budget", "for", "period", *money, "resets at", right=money
        )
        for row in found:
            shown.add_row(
                escape(row["tenant_id"]),
                escape(row["name"]),
                escape(f"{row['scope']} {row['subject']}".strip()),
                row["period"],
                *(_usd(row[f"{name}_usd"]) for name in money),
                "-" if row["resets_at"] is None else row["resets_at"].isoformat(" ", "seconds"),
            )
        terminal.out().print(shown)


@budget_app.command("set")
def set_budget_command(
    name: Annotated[str, typer.Argument(help="Of the budget.", show_default=False)],
    limit: Annotated[str, typer.Argument(metavar="USD", show_default=False)],
    tenant: Tenant = ...,  # type: ignore[assignment]
    scope: Annotated[str, typer.Option("--scope", metavar="tenant|agent|key")] = "tenant",
    subject: Annotated[
        str, typer.Option("--subject", metavar="ID|*", help="Which agent or key; * for each.")
    ] = "",
    period: Annotated[str, typer.Option("--period", metavar="hour|day|month|total")] = "day",
    shards: Annotated[int, typer.Option("--shards", min=1, max=128)] = 1,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Make a budget or change it. What is spent and reserved already counts on.

    [bold]Examples[/bold]\n
    routeledger budget set daily 25 --tenant acme\n
    routeledger budget set each-agent 2.50 --tenant acme --scope agent --subject '*'
    """
    with terminal.answering(as_json):
        try:
            limit_usd = Decimal(limit)
        except InvalidOperation:
            terminal.fail(f"{limit} is no amount", USAGE, as_json, name="usage")
        params = {
            "tenant_id": tenant,
            "name": name,
            "limit_usd": limit_usd,
            "scope": scope,
            "subject": subject,
            "period": period,
            "shards": shards,
        }
        with install.connection(dsn) as conn:
            (found,) = terminal.rows(conn, _calls.SET_BUDGET, params)
        if as_json:
            terminal.print_json(found)
        else:
            terminal.out().print("made" if found["created"] else "changed")


@budget_app.command("drop")
def drop_budget_command(
    name: Annotated[str, typer.Argument(help="Of the budget.", show_default=False)],
    tenant: Tenant = ...,  # type: ignore[assignment]
    yes: Yes = False,
    dsn: Dsn = None,
    as_json: AsJson = False,
) -> None:
    """Drop a budget and all that was counted in it."""
    with terminal.answering(as_json):
        if not yes:
            typer.confirm(f"Drop the budget {name} of {tenant}?", abort=True, err=True)
        with install.connection(dsn) as conn:
            terminal.rows(conn, _calls.DROP_BUDGET, {"tenant_id": tenant, "name": name})
        if as_json:
            terminal.print_json({"dropped": name})
        else:
            terminal.out().print("dropped")
