"""`routeledger doctor`: is this ledger well, and if not, what to do?

Each check stands alone: one that the role may not make, or that breaks, says so and the others go
on. Nothing is written; the empty tables on which predicates are compared are never committed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psycopg

from routeledger import install
from routeledger._version import __version__
from routeledger.errors import LedgerError, translate

__all__ = ["Backlog", "Check", "diagnose", "spool_backlog"]

Status = Literal["ok", "warn", "fail", "skip"]

CLOCK_WARN_SECONDS = 2.0
CLOCK_FAIL_SECONDS = 60.0
SLOWEST_SECONDS = 60
EXPIRED_GRACE = "1 minute"
PARTITION_WARN_DAYS = 1.0
FINDING_DAYS = 30


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``advice`` is what to do about it, empty when there is nothing to do."""

    name: str
    status: Status
    finding: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def diagnose(target: install.Target = None, *, spool: Path | None = None) -> list[Check]:
    """Every check, in order. Raises only when there is no connection to be had."""
    with install.connection(target) as conn:
        checks = [_server(conn)]
        version = _version(conn)
        checks.append(version)
        if version.status != "fail":
            for name, check in _CHECKS.items():
                checks.append(_guarded(name, check, conn))
            checks.append(_guarded("constraints", _constraints, conn, read_only=False))
        checks.append(_guarded("clock", _clock, conn))
        checks.append(_guarded("settings", _settings, conn))
    checks.append(_spool(spool))
    return checks


def _guarded(
    name: str,
    check: Callable[[psycopg.Connection[Any]], Check],
    conn: psycopg.Connection[Any],
    *,
    read_only: bool = True,
) -> Check:
    try:
        with conn.transaction(force_rollback=not read_only):
            if read_only:
                conn.execute("set transaction read only")
            conn.execute(f"set local statement_timeout = '{SLOWEST_SECONDS}s'".encode())
            return check(conn)
    except psycopg.errors.QueryCanceled:
        return Check(
            name,
            "skip",
            f"took more than {SLOWEST_SECONDS} s, given up",
            "Run the query by hand, at a quiet hour.",
        )
    except psycopg.errors.InsufficientPrivilege as exc:
        return Check(
            name,
            "skip",
            exc.diag.message_primary or "not allowed",
            "Run doctor as a member of routeledger_admin or as the schema's owner.",
        )
    except (psycopg.Error, LedgerError, OSError) as exc:
        error = translate(exc)
        return Check(name, "fail", f"the check itself failed: {error.message}", error.hint or "")


def _one(conn: psycopg.Connection[Any], query: str, params: Any = None) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row


def _server(conn: psycopg.Connection[Any]) -> Check:
    version, number = _one(
        conn,
        "select current_setting('server_version'), current_setting('server_version_num')::integer",
    )
    if number < install.OLDEST_SERVER:
        return Check(
            "server",
            "fail",
            f"PostgreSQL {version} is too old",
            "Use PostgreSQL 15, 16, 17 or 18.",
        )
    return Check("server", "ok", f"PostgreSQL {version}")


def _version(conn: psycopg.Connection[Any]) -> Check:
    found = install.plan(conn)
    if found.installed is None:
        if found.error is not None and found.error.sqlstate == "RL901":
            return Check("version", "fail", found.error.message, found.error.hint or "")
        return Check(
            "version",
            "fail",
            f"routeledger is not installed in {found.database}",
            "Run `routeledger install`.",
        )
    if found.installed == __version__:
        return Check("version", "ok", f"routeledger {found.installed}, as this client")
    if found.scripts:
        return Check(
            "version",
            "fail",
            f"routeledger {found.installed} is installed, this client is {__version__}",
            "Run `routeledger upgrade`.",
        )
    error = found.error
    return Check(
        "version",
        "fail",
        f"routeledger {found.installed} is installed, this client is {__version__}",
        (error.hint if error else None) or "Run `routeledger plan`.",
    )


def _objects(conn: psycopg.Connection[Any]) -> Check:
    result = install.verify_within(conn)
    if result.ok:
        return Check("objects", "ok", f"{result.facts} facts, all as released")
    return Check(
        "objects",
        "fail",
        f"{len(result.missing)} facts of the release are missing, "
        f"{len(result.unexpected)} are not of the release",
        "Run `routeledger verify` to see them; `routeledger install` re-asserts functions, grants "
        "and comments.",
    )


def _roles(conn: psycopg.Connection[Any]) -> Check:
    (present,) = _one(
        conn,
        "select array(select rolname::text from pg_roles where rolname = any (%s))",
        (list(install.ROLES),),
    )
    absent = [role for role in install.ROLES if role not in present]
    if not absent:
        return Check("roles", "ok", "all four roles exist")
    return Check(
        "roles",
        "warn",
        f"absent: {', '.join(absent)}",
        "Have a role with CREATEROLE run: "
        + " ".join(f"create role {role} nologin;" for role in absent)
        + " Then run `routeledger install` again, which grants to them.",
    )


def _partitions(conn: psycopg.Connection[Any]) -> Check:
    bounds = conn.execute(
        r"""
        select b.bound[1]::uuid, b.bound[2]::uuid
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid,
        regexp_match(pg_get_expr(c.relpartbound, c.oid),
          $re$FROM \(\'([0-9a-f-]{36})\'\) TO \(\'([0-9a-f-]{36})\'\)$re$) as b (bound)
        where i.inhparent = 'routeledger.routing_outcomes'::regclass and b.bound is not null
        order by 1
        """
    ).fetchall()
    (now,) = _one(conn, "select extract(epoch from clock_timestamp())::double precision")
    covered = float(now)
    for lower, upper in bounds:  # in order: how far is it covered without a gap?
        if _uuid_epoch(lower) <= covered < _uuid_epoch(upper):
            covered = _uuid_epoch(upper)
    days = (covered - float(now)) / 86400
    if days >= PARTITION_WARN_DAYS:
        return Check("partitions", "ok", f"{len(bounds)}, the next {days:.0f} days are covered")
    return Check(
        "partitions",
        "warn",
        f"{len(bounds)}, only the next {days:.1f} days are covered",
        "Run `routeledger maintain` daily. A write that finds no partition makes it, and is slower "
        "for it.",
    )


def _uuid_epoch(bound: UUID) -> float:
    return (bound.int >> 80) / 1000


def _leases(conn: psycopg.Connection[Any]) -> Check:
    expired, oldest = _one(
        conn,
        """
        select count(*), max(routeledger.clock() - f.lease_expires_at)
        from routeledger.in_flight f
        where f.lease_expires_at < routeledger.clock() - %s::interval
        """,
        (EXPIRED_GRACE,),
    )
    if not expired:
        return Check("leases", "ok", "no decision in flight is past its lease")
    return Check(
        "leases",
        "warn",
        f"{expired} decisions in flight are past their lease, the oldest by {_age(oldest)}",
        "Run `routeledger reap` every minute: cron, pg_cron or a loop in one of your services.",
    )


def _orphans(conn: psycopg.Connection[Any]) -> Check:
    (count,) = _one(conn, "select count(*) from routeledger.orphans")
    if not count:
        return Check("orphans", "ok", "none")
    return Check(
        "orphans",
        "fail",
        f"{count} rows without their other half",
        "select * from routeledger.orphans; says which and why. Somebody wrote past the "
        "procedures, or this is a bug worth reporting.",
    )


def _reconciliation(conn: psycopg.Connection[Any]) -> Check:
    hours, decided, wrong = _one(
        conn,
        """
        select count(*), coalesce(sum(r.decided), 0)::bigint, count(*) filter (where not r.agrees)
        from routeledger.reconciliation r
        """,
    )
    if wrong:
        return Check(
            "reconciliation",
            "fail",
            f"{wrong} of {hours} sums do not agree",
            "select * from routeledger.reconciliation where not agrees;",
        )
    return Check("reconciliation", "ok", f"{decided} decisions, all sums agree")


def _prices(conn: psycopg.Connection[Any]) -> Check:
    models, priced, flagged = _one(
        conn,
        """
        select (select count(*) from routeledger.current_prices),
          (select count(*) from routeledger.current_prices where input_usd_per_mtok is not null),
          (select count(*) from routeledger.flagged_prices)
        """,
    )
    if not models:
        return Check(
            "prices",
            "warn",
            "the catalog is empty: costs that callers do not give stay unknown",
            "Run `routeledger models import`.",
        )
    finding = f"{models} models, {priced} with a price"
    if flagged:
        return Check(
            "prices",
            "warn",
            f"{finding}; {flagged} prices are far off their neighbours",
            "select * from routeledger.flagged_prices; a flagged price never makes a model cheap.",
        )
    return Check("prices", "ok", finding)


def _judges(conn: psycopg.Connection[Any]) -> Check:
    found = conn.execute(
        """
        select f.kind, f.judge, f.judge_version, f.model_slug, f.tenant_id, f.n
        from routeledger.judge_findings f
        where f.last_at > routeledger.clock() - make_interval(days => %s)
        order by f.n desc, f.tenant_id, f.judge, f.judge_version, f.model_slug
        """,
        (FINDING_DAYS,),
    ).fetchall()
    if not found:
        return Check("judges", "ok", f"none is conspicuous in the last {FINDING_DAYS} days")
    kind, judge, version, model, tenant, n = found[0]
    said = f"nothing but 0, {n} times in a row" if kind == "mono_zero" else f"no score {n} times"
    return Check(
        "judges",
        "warn",
        f"{len(found)} findings, such as {judge} {version} on {model} for {tenant}: {said}",
        "Run `routeledger judge findings` and look at an example. `routeledger judge withdraw` "
        "takes the verdicts of a judge that is wrong out of all rewards; the next roll-up follows.",
    )


def _constraints(conn: psycopg.Connection[Any]) -> Check:
    states = conn.execute(
        "select origin, state, target, name from routeledger.constraint_states()"
        " order by origin, target, name"
    ).fetchall()
    off = [row for row in states if row[1] != "unchanged"]
    if not off:
        return Check("constraints", "ok", f"{len(states)} declared, all as declared")
    ours = [row for row in off if row[0] == "routeledger" and row[1] != "unknown"]
    _, state, target, name = (ours or off)[0]
    return Check(
        "constraints",
        "fail" if ours else "warn",
        f"{len(off)} of {len(states)} are not as declared, such as {name} of {target}: {state}",
        "Run `routeledger constraints drift` to see them, `routeledger constraints apply` to mend "
        "them.",
    )


def _clock(conn: psycopg.Connection[Any]) -> Check:
    best: tuple[float, float] | None = None
    for _ in range(3):  # the quickest of three round trips bounds the skew best
        before = time.time()
        (server,) = _one(conn, "select extract(epoch from clock_timestamp())::double precision")
        after = time.time()
        trip = after - before
        if best is None or trip < best[0]:
            best = (trip, float(server) - (before + after) / 2)
    assert best is not None
    trip, skew = best
    finding = f"server {skew:+.3f} s against this machine (± {trip / 2:.3f} s)"
    if abs(skew) - trip / 2 > CLOCK_FAIL_SECONDS:
        status: Status = "fail"
    elif abs(skew) - trip / 2 > CLOCK_WARN_SECONDS:
        status = "warn"
    else:
        return Check("clock", "ok", finding)
    return Check(
        "clock",
        status,
        finding,
        "Ids made by clients carry their time and are refused outside the window that the ledger "
        "accepts: synchronise the clocks (NTP).",
    )


def _settings(conn: psycopg.Connection[Any]) -> Check:
    off = [
        name
        for name, value in conn.execute(
            "select name, setting from pg_settings"
            " where name in ('fsync', 'synchronous_commit', 'full_page_writes')"
        )
        if value == "off"
    ]
    if not off:
        return Check("settings", "ok", "commits are durable")
    lost = (
        "a crash can corrupt the whole cluster"
        if {"fsync", "full_page_writes"} & set(off)
        else "a crash can lose acknowledged rows"
    )
    return Check(
        "settings",
        "warn",
        f"{', '.join(sorted(off))} off: {lost}",
        "Turn it on wherever the ledger matters.",
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a spool holds that the ledger does not know of yet."""

    path: Path
    records: int
    bytes: int
    torn: int
    routines: dict[str, int]
    refused: int
    refused_path: Path
    oldest: float | None


def spool_backlog(path: Path | None = None) -> Backlog:
    """Read a spool without touching it. ``oldest`` is when its file was begun, epoch seconds."""
    from routeledger import spool

    kept = spool.Spool(path)
    routines: dict[str, int] = {}
    torn = 0
    begun: list[float] = []
    for file, offset in ((kept._replaying, kept._read_position()), (kept.path, 0)):
        with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
            begun.append(file.stat().st_mtime)
            lines.seek(offset)
            for line in lines:
                record = spool._record(line, 0)
                if record is None:
                    torn += 1
                else:
                    routines[record.routine] = routines.get(record.routine, 0) + 1
    refused = 0
    with contextlib.suppress(FileNotFoundError), kept.refused_path.open("rb") as lines:
        refused = sum(1 for _ in lines)
    return Backlog(
        path=kept.path,
        records=sum(routines.values()),
        bytes=kept.size,
        torn=torn,
        routines=dict(sorted(routines.items())),
        refused=refused,
        refused_path=kept.refused_path,
        oldest=min(begun, default=None),
    )


def _spool(path: Path | None) -> Check:
    backlog = spool_backlog(path)
    if backlog.records:
        return Check(
            "spool",
            "warn",
            f"{backlog.records} writes wait in {backlog.path}",
            f"Run `routeledger spool replay {backlog.path}`.",
        )
    if backlog.torn or backlog.refused:
        return Check(
            "spool",
            "warn",
            f"{backlog.refused} writes were refused, {backlog.torn} torn",
            f"Look at {backlog.refused_path}; remove it when dealt with.",
        )
    return Check("spool", "ok", "empty")


def _age(value: Any) -> str:
    return str(value).split(".", 1)[0]


_CHECKS: dict[str, Callable[[psycopg.Connection[Any]], Check]] = {
    "objects": _objects,
    "roles": _roles,
    "partitions": _partitions,
    "leases": _leases,
    "orphans": _orphans,
    "reconciliation": _reconciliation,
    "prices": _prices,
    "judges": _judges,
}
