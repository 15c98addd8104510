"""sql/snapshot.sql: the same text wherever it is asked, and another one when anything differs."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database
from tests.servers import REPO

SCRIPT = REPO / "sql" / "snapshot.sql"


def facts(db: Database, role: str | None = None, path: str | None = None) -> list[str]:
    with db.connect(role) as conn:
        if path is not None:
            conn.execute(sql.SQL("set search_path = {}").format(sql.SQL(path)))  # type: ignore[arg-type]
        return [fact for (fact,) in conn.execute(SCRIPT.read_bytes())]


def test_the_same_for_everybody_on_every_path(db: Database) -> None:
    expected = facts(db)
    assert len(expected) > 500
    assert len(expected) == len(set(expected))
    assert facts(db, path="routeledger") == expected
    assert facts(db, path="pg_temp, public, routeledger") == expected
    assert facts(db, "nobody") == expected
    printed = db.server.psql(db.name, "-At", "-f", str(SCRIPT)).stdout
    assert printed == "\n".join(expected) + "\n"


def test_it_is_one_plain_statement() -> None:
    code = [line for line in SCRIPT.read_text().splitlines() if not line.lstrip().startswith("--")]
    assert not any(";" in line for line in code)


def test_partitions_and_rows_are_no_facts(db: Database) -> None:
    before = facts(db)
    db.execute("select * from routeledger.maintain(p_ahead => '400 days')")
    db.execute(
        "select * from routeledger.insert_decision(p_tenant_id => 'a', p_candidates => '[]')"
    )
    assert facts(db) == before


def test_an_absent_schema_has_no_facts(empty_db: Database) -> None:
    assert facts(empty_db) == []


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("revoke execute on function routeledger.version() from routeledger_reader", "version"),
        ("grant select on routeledger.models to public", "relation routeledger.models to public"),
        ("grant select (model_slug) on routeledger.models to test_nobody", "column"),
        ("comment on table routeledger.models is 'another'", "comment on relation"),
        ("alter function routeledger.clock() reset search_path", "routeledger.clock() args"),
        ("alter function routeledger.clock() security invoker", "routeledger.clock() args"),
        ("alter table routeledger.models alter column provider set not null", "models.provider"),
        ("alter table routeledger.models add check (model_slug <> 'x')", "constraint"),
        ("create index extra on routeledger.models (provider)", "index"),
        ("create type routeledger.colour as enum ('red')", "type routeledger.colour"),
        ("alter table routeledger.models enable row level security", "row security"),
        ("alter table routeledger.models set (fillfactor = 50)", "fillfactor"),
        ("alter table routeledger.models owner to test_nobody", "owner of relation"),
        ("alter default privileges in schema routeledger grant select on tables to public", "defa"),
        ("create or replace view routeledger.current_prices as select 1 as n", "view"),
    ],
)
def test_a_change_is_seen(db: Database, change: str, seen: str) -> None:
    before = set(facts(db))
    with db.connect() as conn:
        if change.startswith("create or replace view"):
            conn.execute("drop view routeledger.current_prices cascade")
        conn.execute(change)  # type: ignore[arg-type]
    difference = before ^ set(facts(db))
    assert any(seen in fact for fact in difference), difference


def test_it_leaves_the_path_of_a_session_alone(db: Database) -> None:
    with db.connect() as conn:
        before = conn.execute("show search_path").fetchone()
        conn.execute(SCRIPT.read_bytes())
        assert conn.execute("show search_path").fetchone() == before


def test_it_runs_read_only(db: Database) -> None:
    with psycopg.connect(db.dsn, options="-c default_transaction_read_only=on") as conn:
        assert conn.execute(SCRIPT.read_bytes()).fetchone()
