"""Install, upgrade, verify and remove the schema `routeledger` in a database.

The SQL travels in the package; nothing is fetched. Each function takes a target: a libpq connection
string or URI, None for libpq's own environment (``PGHOST``, ``PGSERVICE``, ...), or an open psycopg
connection that is not inside a transaction, which is given back as it came.

Errors are those of :mod:`routeledger.errors`, chosen by SQLSTATE.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import psycopg
from psycopg import conninfo, sql
from psycopg.pq import TransactionStatus

from routeledger._version import __version__
from routeledger.errors import (
    LedgerError,
    LedgerUnavailable,
    NotInstalled,
    NoUpgradePath,
    OtherVersionInstalled,
    SchemaNotOurs,
    SchemaTooNew,
    ServerTooOld,
    translate,
)

__all__ = [
    "ROLES",
    "SCHEMA",
    "Contents",
    "InstallResult",
    "Plan",
    "Target",
    "UninstallResult",
    "VerifyResult",
    "connection",
    "contents",
    "install",
    "install_sql",
    "plan",
    "released_sql",
    "snapshot",
    "uninstall",
    "upgrade",
    "upgrade_path",
    "upgrade_sql",
    "verify",
    "verify_within",
]

SCHEMA = "routeledger"
ROLES = ("routeledger_reader", "routeledger_writer", "routeledger_judge", "routeledger_admin")
OLDEST_SERVER = 150000

Target = psycopg.Connection[Any] | str | None

# The same lock as the install script takes: one installer, upgrader or uninstaller at a time.
_LOCK = "select pg_advisory_xact_lock(hashtextextended('routeledger.install', 0))"

# Two databases of one cluster that install at once meet at the roles, which they share. XX000 is
# how Postgres says "tuple concurrently updated". The script is one transaction, so again is safe.
_AGAIN = frozenset({"40001", "40P01", "55P03", "XX000"})
_TRIES = 5

_SCRIPT = re.compile(r"routeledger--(?P<a>[0-9][0-9a-z.]*)(?:--(?P<b>[0-9][0-9a-z.]*))?\.sql")


# -- what the package carries ----------------------------------------------------------------------


def _read(name: str) -> str:
    return resources.files("routeledger").joinpath("sql").joinpath(name).read_text(encoding="utf-8")


def _names() -> list[str]:
    directory = resources.files("routeledger").joinpath("sql")
    return sorted(entry.name for entry in directory.iterdir() if entry.is_file())


def install_sql() -> str:
    """The install script of this release: one transaction, for psql and drivers alike."""
    return _read("routeledger.sql")


def released_sql(version: str) -> str:
    """The install script as it was frozen for a release. Raises ValueError for an unknown one."""
    frozen = sorted(
        (m["a"] for name in _names() if (m := _SCRIPT.fullmatch(name)) and not m["b"]),
        key=_version_key,
    )
    if version not in frozen:
        msg = f"no release {version} here; there are: {', '.join(frozen) or 'none'}"
        raise ValueError(msg)
    return _read(f"routeledger--{version}.sql")


def upgrade_sql(start: str, goal: str = __version__) -> str:
    """The scripts that lead from a version to this one, one after the other. Raises RL906."""
    path = upgrade_path(start, goal)
    if path is None:
        raise NoUpgradePath(
            "no script leads from the installed version to this one",
            detail={"installed": start, "this": goal},
            hint="Upgrade through a release that knows both; see CHANGELOG.md.",
        )
    return "\n".join(_read(name) for name in path)


def upgrade_path(start: str, goal: str, names: Iterable[str] | None = None) -> list[str] | None:
    """The fewest scripts ``routeledger--A--B.sql`` that lead from one version to another.

    An empty list when there is nothing to do, None when no way leads there. Of two ways of the same
    length the one through the later versions is taken.
    """
    steps: dict[str, list[tuple[str, str]]] = {}
    for name in _names() if names is None else names:
        match = _SCRIPT.fullmatch(name)
        if match and match["b"]:
            steps.setdefault(match["a"], []).append((match["b"], name))
    queue: deque[tuple[str, list[str]]] = deque([(start, [])])
    seen = {start}
    while queue:
        version, path = queue.popleft()
        if version == goal:
            return path
        for following, name in sorted(
            steps.get(version, ()), key=lambda step: _version_key(step[0]), reverse=True
        ):
            if following not in seen:
                seen.add(following)
                queue.append((following, [*path, name]))
    return None


def _version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Orders versions; a suffix such as ``rc1`` comes before the release that it leads to."""
    return tuple(
        (1, int(part)) if part.isdigit() else (0, part)
        for part in [*re.findall(r"\d+|[a-z]+", version), "0"]
    )


# -- connections -----------------------------------------------------------------------------------


@contextlib.contextmanager
def connection(target: Target = None) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to the target; a borrowed one gets its own mode back afterwards.

    Raises :class:`~routeledger.errors.LedgerUnavailable` when there is none to be had, and
    ValueError for a borrowed connection that is inside a transaction.
    """
    if isinstance(target, psycopg.Connection):
        if target.info.transaction_status != TransactionStatus.IDLE:
            raise ValueError("the connection is inside a transaction: commit it or roll it back")
        before = target.autocommit
        target.autocommit = True
        try:
            yield target
        finally:
            if not target.closed:
                target.autocommit = before
        return
    try:
        params = conninfo.conninfo_to_dict(target or "")
        params.setdefault("connect_timeout", 10)
        params.setdefault("fallback_application_name", "routeledger")
        conn = psycopg.connect(conninfo.make_conninfo("", **params), autocommit=True)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as exc:
        raise LedgerUnavailable(
            "No connection to the database could be had.",
            detail={"reason": str(exc).strip()},
            hint="Check the DSN (--dsn, or PGHOST, PGPORT, PGUSER, PGDATABASE, PGSERVICE) "
            "and that the server is up.",
            retryable=False,
        ) from exc
    with contextlib.closing(conn):
        yield conn


def _run(conn: psycopg.Connection[Any], script: str) -> None:
    """Run a script that brings its own ``begin`` and ``commit``."""
    for attempt in range(1, _TRIES + 1):
        try:
            # Bytes, unprepared: only the simple protocol takes several statements at once.
            conn.execute(script.encode(), prepare=False)
        except psycopg.Error as exc:  # noqa: PERF203 - a few tries, each a transaction
            if not conn.closed:
                conn.rollback()
            if exc.sqlstate not in _AGAIN or attempt == _TRIES or conn.closed:
                raise translate(exc) from exc
            time.sleep(0.1 * 2**attempt)
        else:
            return


# -- plan ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in a database, and what install or upgrade would do there.

    ``action`` is ``install`` (nothing there yet), ``upgrade`` (through ``scripts``), ``nothing``
    (this release is there; installing again only re-asserts it) or ``refuse`` (``error`` says why).
    """

    action: Literal["install", "upgrade", "nothing", "refuse"]
    release: str
    installed: str | None
    scripts: tuple[str, ...]
    database: str
    role: str
    server_version: str
    owner: str | None
    missing_roles: tuple[str, ...]
    notes: tuple[str, ...]
    error: LedgerError | None = None


def plan(target: Target = None) -> Plan:
    """Look and say what would be done. Runs in a read-only transaction: it cannot write."""
    with connection(target) as conn, conn.transaction():
        conn.execute("set transaction read only")
        return _plan(conn)


def _plan(conn: psycopg.Connection[Any]) -> Plan:
    row = conn.execute(
        """
        select current_database(), current_user, current_setting('server_version'),
          current_setting('server_version_num')::integer,
          has_database_privilege(current_database(), 'create'),
          coalesce((select r.rolcreaterole or r.rolsuper from pg_catalog.pg_roles r
                    where r.rolname = current_user), false),
          array(select r.rolname::text from pg_catalog.pg_roles r
                where r.rolname = any (%(roles)s)),
          (select n.nspowner::regrole::text from pg_catalog.pg_namespace n
           where n.nspname = %(schema)s),
          (select n.nspowner = current_user::regrole from pg_catalog.pg_namespace n
           where n.nspname = %(schema)s),
          exists (select from pg_catalog.pg_class c
                  where c.relnamespace = to_regnamespace(%(schema)s))
            or exists (select from pg_catalog.pg_proc p
                       where p.pronamespace = to_regnamespace(%(schema)s)),
          (select p.prosrc from pg_catalog.pg_proc p
           where p.pronamespace = to_regnamespace(%(schema)s)
             and p.proname = 'version' and p.pronargs = 0)
        """,
        {"roles": list(ROLES), "schema": SCHEMA},
    ).fetchone()
    assert row is not None
    database, role, server, server_num, may_create, may_roles = row[:6]
    present, owner, owned, occupied, version_source = row[6:]
    missing = tuple(name for name in ROLES if name not in present)

    # Read, not run: a schema of this name may be a stranger's, and so may its functions.
    match = re.search(r"'([0-9][0-9a-z.]*)'", version_source or "")
    installed = match[1] if match else None

    notes: list[str] = []
    if missing and not may_roles:
        notes.append(
            f"{role} may not create roles: these stay absent, and nothing is granted to them: "
            + ", ".join(missing)
        )
    action: Literal["install", "upgrade", "nothing", "refuse"] = "nothing"
    scripts: Sequence[str] = ()
    error: LedgerError | None = None
    if server_num < OLDEST_SERVER:
        error = ServerTooOld(
            "routeledger needs PostgreSQL 15 or later",
            detail={"server_version": server},
            hint="Install into a server of major 15, 16, 17 or 18.",
        )
    elif occupied and installed is None:
        error = SchemaNotOurs(
            "a schema named routeledger exists and is not ours",
            detail={"owner": owner},
            hint="Rename or drop that schema, or install into another database.",
        )
    elif owner is not None and not owned:
        error = SchemaNotOurs(
            "the schema routeledger belongs to another role",
            detail={"owner": owner, "role": role},
            hint=f"Connect as {owner} (or with PGOPTIONS='-c role={owner}'): objects of two "
            "owners in one schema could not call one another.",
        )
    elif installed is None:
        action = "install"
        if owner is None and not may_create:
            error = LedgerError(
                "this role may not create a schema in this database",
                sqlstate="42501",
                name="insufficient_privilege",
                detail={"role": role, "database": database},
                hint=f"grant create on database {database} to {role};",
            )
    elif installed != __version__:
        found = upgrade_path(installed, __version__)
        if found is not None:
            action, scripts = "upgrade", found
        elif _version_key(installed) > _version_key(__version__):
            error = SchemaTooNew(
                "the installed schema is newer than this client",
                detail={"installed": installed, "client": __version__},
                hint=f"Use routeledger {installed} or later: pip install -U routeledger",
            )
        else:
            error = NoUpgradePath(
                "no script leads from the installed version to this one",
                detail={"installed": installed, "this": __version__},
                hint="Upgrade through a release that knows both; see CHANGELOG.md.",
            )
    return Plan(
        action="refuse" if error else action,
        release=__version__,
        installed=installed,
        scripts=tuple(scripts),
        database=database,
        role=role,
        server_version=server,
        owner=owner,
        missing_roles=missing,
        notes=tuple(notes),
        error=error,
    )


# -- install and upgrade ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What was done. ``action``: ``installed``, ``reasserted`` (it was there) or ``upgraded``."""

    action: Literal["installed", "reasserted", "upgraded", "nothing"]
    version: str
    before: str | None
    scripts: tuple[str, ...]
    database: str
    role: str
    missing_roles: tuple[str, ...]
    notes: tuple[str, ...]


def _result(
    before: Plan,
    after: Plan,
    action: Literal["installed", "reasserted", "upgraded", "nothing"],
) -> InstallResult:
    return InstallResult(
        action=action,
        version=after.installed or after.release,
        before=before.installed,
        scripts=before.scripts,
        database=after.database,
        role=after.role,
        missing_roles=after.missing_roles,
        notes=tuple(note for note in before.notes if after.missing_roles),
    )


def install(target: Target = None) -> InstallResult:
    """Install this release; at the same version, re-assert all of it (functions, grants, comments).

    One transaction; any number of installers at once do the work once. Raises RL901, RL902, RL903,
    RL904 and RL906 as the plan says, and 42501 where the role may not.
    """
    with connection(target) as conn:
        before = plan(conn)
        if before.error is not None:
            raise before.error
        if before.action == "upgrade":
            raise OtherVersionInstalled(
                "another version of routeledger is installed",
                detail={"installed": before.installed, "this": before.release},
                hint="Run `routeledger plan` to see the way, then `routeledger upgrade`.",
            )
        _run(conn, install_sql())
        after = plan(conn)
        return _result(before, after, "installed" if before.installed is None else "reasserted")


def upgrade(target: Target = None) -> InstallResult:
    """Bring an older installed version to this release, script by script, each a transaction.

    Interrupted, it is simply run again: it goes on from the version that is there. Raises RL905
    when nothing is installed, RL906 when no scripts lead here.
    """
    with connection(target) as conn:
        before = plan(conn)
        if before.error is not None:
            raise before.error
        if before.installed is None:
            raise NotInstalled(
                "there is no routeledger in this database",
                detail={"database": before.database},
                hint="Run `routeledger install`.",
            )
        for name in before.scripts:
            _run(conn, _read(name))
        after = plan(conn)
        if after.error is not None:
            raise after.error
        return _result(before, after, "upgraded" if before.scripts else "nothing")


# -- verify ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Whether what is installed equals the release. Facts are lines of the catalogue snapshot.

    ``missing`` are facts of the release that the database lacks, ``unexpected`` the reverse; an
    object that differs stands in both.
    """

    ok: bool
    version: str
    database: str
    facts: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    absent_roles: tuple[str, ...] = ()


def snapshot(target: Target = None) -> list[str]:
    """The installed objects, one line a fact, sorted: the same on every supported major."""
    with connection(target) as conn, conn.transaction():
        conn.execute("set transaction read only")
        return _snapshot(conn)


def _snapshot(conn: psycopg.Connection[Any]) -> list[str]:
    script = _read("snapshot.sql").encode()
    return [str(fact).replace("\n", "\\n") for (fact,) in conn.execute(script, prepare=False)]


def verify(target: Target = None) -> VerifyResult:
    """Compare what is installed with the facts of this release. Writes nothing.

    Grants to roles that do not exist in this cluster are not missed. Raises RL905 when nothing is
    installed and what the plan refuses; RL902 for another version.
    """
    with connection(target) as conn, conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        return verify_within(conn)


def verify_within(conn: psycopg.Connection[Any]) -> VerifyResult:
    """:func:`verify` in the transaction that the connection is in."""
    found = _plan(conn)
    if found.installed is None and (found.error is None or found.error.sqlstate == "42501"):
        raise NotInstalled(
            "there is no routeledger in this database",
            detail={"database": found.database},
            hint="Run `routeledger install`.",
        )
    if found.installed is None and found.error is not None:
        raise found.error
    if found.installed != found.release:
        raise OtherVersionInstalled(
            "another version of routeledger is installed",
            detail={"installed": found.installed, "this": found.release},
            hint="Verify with the client of that version, or run `routeledger upgrade`.",
        )
    actual = set(_snapshot(conn))
    released = _read("routeledger.facts").splitlines()
    expected = {fact for fact in released if fact and not _concerns(fact, found.missing_roles)}
    missing = tuple(sorted(expected - actual))
    unexpected = tuple(sorted(actual - expected))
    return VerifyResult(
        ok=not missing and not unexpected,
        version=found.release,
        database=found.database,
        facts=len(expected),
        missing=missing,
        unexpected=unexpected,
        absent_roles=found.missing_roles,
    )


def _concerns(fact: str, roles: Sequence[str]) -> bool:
    """Whether a fact is about one of these roles: its existence, a grant to it, a membership."""
    return any(
        (fact.startswith(("grant ", "default grant ")) and fact.endswith(f" to {role}"))
        or fact.startswith((f"role {role} ", f"member {role} of "))
        or (fact.startswith("member ") and f" of {role} admin=" in fact)
        for role in roles
    )


# -- uninstall -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contents:
    """What an uninstall would destroy.

    ``rows`` counts the rows of each table that holds any (a negative number is an estimate: the
    count took too long). ``dependents`` are objects of other schemas that go with it.
    """

    installed: str | None
    database: str
    rows: dict[str, int]
    dependents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UninstallResult:
    """What is gone. ``roles_kept`` says of each role that stayed why it did."""

    removed: bool
    version: str | None
    database: str
    rows: dict[str, int]
    dependents: tuple[str, ...]
    roles_dropped: tuple[str, ...] = ()
    roles_kept: dict[str, str] = field(default_factory=dict)


_DEPENDENTS = """
with inside as (
  select 'pg_class'::regclass as classid, c.oid as objid from pg_class c
  where c.relnamespace = to_regnamespace(%(schema)s)
  union all
  select 'pg_proc'::regclass, p.oid from pg_proc p
  where p.pronamespace = to_regnamespace(%(schema)s)
  union all
  select 'pg_type'::regclass, t.oid from pg_type t
  where t.typnamespace = to_regnamespace(%(schema)s)
),
outer_objects as (
  select d.classid, d.objid,
    case d.classid
      when 'pg_rewrite'::regclass then (select r.ev_class from pg_rewrite r where r.oid = d.objid)
      when 'pg_attrdef'::regclass then (select a.adrelid from pg_attrdef a where a.oid = d.objid)
      when 'pg_constraint'::regclass then
        (select nullif(c.conrelid, 0) from pg_constraint c where c.oid = d.objid)
      when 'pg_trigger'::regclass then (select t.tgrelid from pg_trigger t where t.oid = d.objid)
      when 'pg_policy'::regclass then (select p.polrelid from pg_policy p where p.oid = d.objid)
      when 'pg_class'::regclass then d.objid
    end as relid,
    case d.classid
      when 'pg_proc'::regclass then (select p.pronamespace from pg_proc p where p.oid = d.objid)
      when 'pg_type'::regclass then (select t.typnamespace from pg_type t where t.oid = d.objid)
    end as nspid
  from pg_depend d
  join inside i on i.classid = d.refclassid and i.objid = d.refobjid
  where d.deptype in ('n', 'a')
)
select distinct
  case when o.classid = 'pg_rewrite'::regclass
    then pg_describe_object('pg_class'::regclass, o.relid, 0)
    else pg_describe_object(o.classid, o.objid, 0) end
from outer_objects o
left join pg_class c on c.oid = o.relid
where coalesce(c.relnamespace, o.nspid) <> to_regnamespace(%(schema)s)
  and coalesce(c.relnamespace, o.nspid) <> 'pg_toast'::regnamespace
order by 1
"""


def contents(target: Target = None) -> Contents:
    """What is there to lose. Writes nothing; a count that takes over 5 s becomes an estimate."""
    with connection(target) as conn, conn.transaction():
        conn.execute("set transaction read only")
        return _contents(conn)


def _contents(conn: psycopg.Connection[Any]) -> Contents:
    found = _plan(conn)
    if found.error is not None and found.error.sqlstate == "RL901":
        raise found.error
    if found.owner is None:
        return Contents(None, found.database, {}, ())
    rows: dict[str, int] = {}
    tables = conn.execute(
        """
        select c.relname, greatest(c.reltuples, 0)::bigint + (
          select coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint
          from pg_inherits i join pg_class l on l.oid = i.inhrelid
          where i.inhparent = c.oid)
        from pg_class c
        where c.relnamespace = to_regnamespace(%(schema)s)
          and c.relkind in ('r', 'p') and not c.relispartition
        order by 1
        """,
        {"schema": SCHEMA},
    ).fetchall()
    for name, estimate in tables:
        try:
            with conn.transaction():
                conn.execute("set local statement_timeout = '5s'")
                counted = conn.execute(
                    sql.SQL("select count(*) from {}").format(sql.Identifier(SCHEMA, name))
                ).fetchone()
            count = counted[0] if counted else 0
        except psycopg.errors.QueryCanceled:
            count = -max(int(estimate), 1)
        if count:
            rows[name] = count
    dependents = tuple(
        text for (text,) in conn.execute(_DEPENDENTS, {"schema": SCHEMA}) if text is not None
    )
    return Contents(found.installed, found.database, rows, dependents)


def uninstall(target: Target = None, *, roles: bool = False) -> UninstallResult:
    """Drop the schema with everything in it, and what depends on it, in one transaction.

    ``roles=True`` drops the four roles as well, except one that something else still refers to: an
    object of another database, a grant elsewhere. Raises RL901 when the schema is not ours.
    """
    with connection(target) as conn:
        dropped: list[str] = []
        kept: dict[str, str] = {}
        try:
            with conn.transaction():
                conn.execute(_LOCK)
                conn.execute("set local lock_timeout = '15s'")
                lost = _contents(conn)
                exists = conn.execute(
                    "select to_regnamespace(%s) is not null", (SCHEMA,)
                ).fetchone()
                removed = exists is not None and bool(exists[0])
                if removed:
                    conn.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(SCHEMA)))
                if roles:
                    _drop_roles(conn, dropped, kept)
        except psycopg.Error as exc:
            raise translate(exc) from exc
        return UninstallResult(
            removed=removed,
            version=lost.installed,
            database=lost.database,
            rows=lost.rows,
            dependents=lost.dependents,
            roles_dropped=tuple(dropped),
            roles_kept=kept,
        )


def _drop_roles(conn: psycopg.Connection[Any], dropped: list[str], kept: dict[str, str]) -> None:
    for role in ROLES:
        if conn.execute("select from pg_roles where rolname = %s", (role,)).fetchone() is None:
            continue
        used = conn.execute(
            """
            select string_agg(distinct coalesce('database ' || d.datname, 'a shared object'), ', ')
            from pg_shdepend s left join pg_database d on d.oid = s.dbid
            where s.refclassid = 'pg_authid'::regclass and s.refobjid = to_regrole(%s)
              and not (s.classid = 'pg_auth_members'::regclass)
            """,
            (role,),
        ).fetchone()
        if used is not None and used[0] is not None:
            kept[role] = f"still used by {used[0]}"
            continue
        try:
            with conn.transaction():
                conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
        except (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.DependentObjectsStillExist,
        ) as exc:
            kept[role] = exc.diag.message_primary or "not allowed"
        else:
            dropped.append(role)
