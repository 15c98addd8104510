"""The servers of the tests are what the tests believe them to be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ROLES, Database, login_of
from tests.servers import Server, majors_requested, service_user


def setting(server: Server, name: str) -> str:
    with server.connect() as conn:
        return str(conn.execute("select current_setting(%s)", [name]).fetchone()[0])


def test_the_major_is_the_one_asked_for(server: Server, major: int) -> None:
    assert int(setting(server, "server_version_num")) // 10000 == major == server.major
    assert major in majors_requested()


def test_settings_that_tests_rely_on(server: Server) -> None:
    assert setting(server, "max_locks_per_transaction") == "256"
    assert setting(server, "fsync") == "off"
    assert setting(server, "server_encoding") == "UTF8"


def test_root_only_drops_privileges_for_the_server(server: Server) -> None:
    ids = service_user()
    expected = os.geteuid() if ids is None else ids[0]
    assert Path(f"/proc/{server.pid}").stat().st_uid == expected


def test_each_test_gets_its_own_database(make_database: Callable[..., Database]) -> None:
    one, two = make_database(), make_database()
    one.execute("create table public.mine ()")
    assert two.value("select to_regclass('public.mine')") is None
    assert two.value("select routeledger.version()") == one.value("select routeledger.version()")


def test_an_empty_database_is_empty(empty_db: Database) -> None:
    assert empty_db.value("select to_regnamespace('routeledger')") is None


@pytest.mark.parametrize("role", ROLES)
def test_logins_hold_their_role_and_no_other(db: Database, role: str) -> None:
    with db.connect(role) as conn:
        assert conn.execute("select session_user").fetchone() == (login_of(role),)
        held = conn.execute(
            "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid"
            " where m.member = session_user::regrole"
        ).fetchall()
    assert held == [(f"routeledger_{role}",)]


def test_nobody_holds_nothing(db: Database) -> None:
    with db.connect("nobody") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("select * from routeledger.decisions")


@pytest.mark.faults
def test_a_durable_server_survives_a_crash(durable_server: Server) -> None:
    assert setting(durable_server, "fsync") == "on"
    with durable_server.connect() as conn:
        conn.execute("create table public.kept as select 1 as n")
        durable_server.kill()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
    durable_server.start()
    with durable_server.connect() as conn:
        assert conn.execute("select n from public.kept").fetchone() == (1,)
