"""Fixtures of the whole suite.

`server`          one PostgreSQL server a session and requested major (ROUTELEDGER_PG="15,18")
`template`        the name of its database with routeledger installed, never connected to
`db`              a `Database` of the test's own, cloned from the template
`empty_db`        the same, without routeledger
`make_database`   makes more of them
`superuser`       opens superuser connections to `db`
`make_server`     private servers: fresh cluster, no roles; settings to taste
`durable_server`  a private server with fsync on, for tests that kill it
`private_home`    where the embedded server of the package keeps its files, of the test's own

A `Database` knows its DSN as the superuser (`db.dsn`) and as a login that holds exactly one of the
roles (`db.dsn_as("writer")`: reader, writer, judge, admin, or nobody, who holds none).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql

from routeledger._embedded import EmbeddedServer
from tests.servers import Server, find_server, majors_requested

settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

TEMPLATE = "routeledger_template"
ROLES = ("reader", "writer", "judge", "admin")
SERVER_FIXTURES = frozenset({"server", "make_server", "durable_server"})


def login_of(role: str) -> str:
    """The login role of the tests that is a member of routeledger_`role` and of nothing else."""
    return f"test_{role}"


def create_logins(conn: psycopg.Connection[Any]) -> None:
    """test_reader, test_writer, test_judge, test_admin and test_nobody, on a server of the tests.

    They outlive an uninstall, which drops the roles that they are members of.
    """
    for role in (*ROLES, "nobody"):
        login = sql.Identifier(login_of(role))
        if not conn.execute("select from pg_roles where rolname = %s", [login_of(role)]).rowcount:
            conn.execute(sql.SQL("create role {} login").format(login))
        group = f"routeledger_{role}"
        if conn.execute("select from pg_roles where rolname = %s", [group]).rowcount:
            conn.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), login))


@dataclass(frozen=True)
class Database:
    """A database of one test."""

    server: Server
    name: str

    @property
    def dsn(self) -> str:
        """As the superuser."""
        return self.server.dsn(self.name)

    def dsn_as(self, role: str) -> str:
        """As a login that holds routeledger_`role` only; "nobody" holds none."""
        return self.server.dsn(self.name, login_of(role))

    def connect(
        self, role: str | None = None, *, autocommit: bool = True
    ) -> psycopg.Connection[Any]:
        """As the superuser, or as the login of a role. The caller closes it."""
        user = "postgres" if role is None else login_of(role)
        return self.server.connect(self.name, user, autocommit=autocommit)

    def execute(self, query: str, params: Any = None) -> list[tuple[Any, ...]]:
        """One statement as the superuser, committed; its rows, or []."""
        with self.connect() as conn:
            cursor = conn.execute(query, params)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, params: Any = None) -> Any:
        """The first column of the first row."""
        return self.execute(query, params)[0][0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.db)


def pytest_report_header() -> str:
    return f"PostgreSQL: {', '.join(map(str, majors_requested()))} (ROUTELEDGER_PG)"


@pytest.fixture(scope="session", params=majors_requested(), ids=lambda major: f"pg{major}")
def major(request: pytest.FixtureRequest) -> int:
    """The major version under test."""
    return int(request.param)


@pytest.fixture(scope="session")
def server(major: int) -> Iterator[Server]:
    """A server shared by the session: tests leave no role and no setting of the cluster behind."""
    with Server(find_server(major)) as running:
        yield running


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A database with routeledger installed: `create database x template …`."""
    server.create_database(name=TEMPLATE)
    server.install(TEMPLATE)
    with server.connect() as conn:
        create_logins(conn)
    server.freeze(TEMPLATE)
    return TEMPLATE


@pytest.fixture
def make_database(
    server: Server, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Database]]:
    """`make_database()` clones the template, `make_database(installed=False)` is an empty one."""
    made: list[Database] = []

    def make(*, installed: bool = True) -> Database:
        source = request.getfixturevalue("template") if installed else None
        made.append(Database(server, server.create_database(source)))
        return made[-1]

    yield make
    for database in made:
        server.drop_database(database.name)


@pytest.fixture
def db(make_database: Callable[..., Database]) -> Database:
    """A database of the test's own with routeledger in it."""
    return make_database()


@pytest.fixture
def empty_db(make_database: Callable[..., Database]) -> Database:
    """A database of the test's own without routeledger (its roles may exist on the server)."""
    return make_database(installed=False)


@pytest.fixture
def superuser(db: Database) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """`superuser()` opens one more superuser connection to `db`; closed after the test."""
    opened: list[psycopg.Connection[Any]] = []

    def connect(*, autocommit: bool = True) -> psycopg.Connection[Any]:
        opened.append(db.connect(autocommit=autocommit))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def make_server(major: int) -> Iterator[Callable[..., Server]]:
    """`make_server(durable=…, settings={…})`: a cluster of the test's own, without our roles."""
    running: list[Server] = []

    def make(*, durable: bool = False, settings: dict[str, str] | None = None) -> Server:
        running.append(Server(find_server(major), durable=durable, settings=settings or {}))
        return running[-1]

    yield make
    for one in running:
        one.stop()


@pytest.fixture
def durable_server(make_server: Callable[..., Server]) -> Server:
    """A private server with fsync on and routeledger in the database `postgres`.

    `durable_server.kill()` crashes it, `durable_server.start()` recovers it.
    """
    private = make_server(durable=True)
    private.install("postgres")
    with private.connect() as conn:
        create_logins(conn)
    return private


@pytest.fixture
def private_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of an embedded server. The account that runs it must be able to get there."""
    with tempfile.TemporaryDirectory(prefix="rl-demo-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("ROUTELEDGER_HOME", folder)
        yield Path(folder)
        EmbeddedServer.destroy(force=True)
