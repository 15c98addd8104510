"""Install, plan, upgrade, verify, dump and restore, uninstall: on a real server."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from routeledger import errors, install
from routeledger._version import __version__
from tests.conftest import Database
from tests.servers import INSTALL_SQL, Server

# Everything of a database that an install could leave behind, and of the cluster.
FINGERPRINT = """
select x.kind, x.n from (
  select 'namespaces' as kind, count(*) as n from pg_namespace where nspname !~ '^pg_(toast_)?temp'
  union all select 'relations', count(*) from pg_class where oid >= 16384
  union all select 'routines', count(*) from pg_proc where oid >= 16384
  union all select 'types', count(*) from pg_type where oid >= 16384
  union all select 'constraints', count(*) from pg_constraint where oid >= 16384
  union all select 'default grants', count(*) from pg_default_acl
  union all select 'settings', count(*) from pg_db_role_setting
  union all select 'event triggers', count(*) from pg_event_trigger
  union all select 'extensions', count(*) from pg_extension
  union all select 'comments', count(*) from pg_description where objoid >= 16384
  union all select 'shared comments', count(*) from pg_shdescription where objoid >= 16384
  union all select 'roles', count(*) from pg_roles
  union all select 'memberships', count(*) from pg_auth_members
) x order by 1
"""


def read_only(dsn: str) -> str:
    """The same database in sessions that cannot write."""
    return psycopg.conninfo.make_conninfo(dsn, options="-c default_transaction_read_only=on")


def write_a_decision(db: Database) -> None:
    """One decision, completed, and one in flight."""
    with db.connect() as conn:
        row = conn.execute(
            "select id from routeledger.insert_decision(p_tenant_id => 'acme',"
            " p_candidates => '[\"some-model\"]')"
        ).fetchone()
        assert row is not None
        conn.execute(
            "select * from routeledger.complete_decision(p_tenant_id => 'acme', p_id => %s,"
            " p_outcome_status => 'succeeded', p_input_tokens => 10, p_output_tokens => 5)",
            row,
        )
        conn.execute(
            "select id from routeledger.insert_decision(p_tenant_id => 'acme',"
            " p_candidates => '[\"some-model\"]')"
        )


# -- install ---------------------------------------------------------------------------------------


def test_install_into_an_empty_database(empty_db: Database) -> None:
    result = install.install(empty_db.dsn)
    assert (result.action, result.version, result.before) == ("installed", __version__, None)
    assert empty_db.value("select routeledger.version()") == __version__
    assert install.verify(empty_db.dsn).ok


def test_installing_again_changes_nothing(db: Database) -> None:
    facts = install.snapshot(db.dsn)
    log = db.execute("select * from routeledger.install_log")
    write_a_decision(db)
    rows = db.execute("select * from routeledger.decisions order by id")
    for _ in range(2):
        assert install.install(db.dsn).action == "reasserted"
    assert install.snapshot(db.dsn) == facts
    assert db.execute("select * from routeledger.install_log") == log
    assert db.execute("select * from routeledger.decisions order by id") == rows


def test_twenty_installers_at_once(empty_db: Database) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: install.install(empty_db.dsn), range(20)))
    assert {result.version for result in results} == {__version__}
    assert empty_db.value("select count(*) from routeledger.install_log") == 1
    assert install.verify(empty_db.dsn).ok


def test_installers_in_several_processes(empty_db: Database) -> None:
    program = "import sys; from routeledger.install import install; install(sys.argv[1])"
    running = [
        subprocess.Popen([sys.executable, "-c", program, empty_db.dsn], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert empty_db.value("select count(*) from routeledger.install_log") == 1


def test_installers_in_several_databases_share_the_roles(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    names = [server.create_database() for _ in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda name: install.install(server.dsn(name)), names))
    assert {result.action for result in results} == {"installed"}
    for name in names:
        assert install.verify(server.dsn(name)).ok


def test_psql_and_the_driver_install_the_same(
    empty_db: Database, make_database: Callable[..., Database]
) -> None:
    by_psql = make_database(installed=False)
    by_psql.server.psql(by_psql.name, "-f", str(INSTALL_SQL))
    install.install(empty_db.dsn)
    assert install.snapshot(by_psql.dsn) == install.snapshot(empty_db.dsn)
    by_psql.server.psql(by_psql.name, "-f", str(INSTALL_SQL))
    assert install.verify(by_psql.dsn).ok


def test_install_is_all_or_nothing(empty_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    script = install.install_sql().replace("\ncommit;", "\nselect 1/0;\ncommit;")
    monkeypatch.setattr(install, "install_sql", lambda: script)
    with pytest.raises(errors.LedgerError) as failed:
        install.install(empty_db.dsn)
    assert failed.value.sqlstate == "22012"
    assert empty_db.value("select to_regnamespace('routeledger')") is None


def test_a_borrowed_connection_is_given_back_as_it_came(empty_db: Database) -> None:
    with empty_db.connect(autocommit=False) as conn:
        assert install.install(conn).action == "installed"
        assert conn.autocommit is False
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        conn.execute("select 1")
        with pytest.raises(ValueError, match="inside a transaction"):
            install.install(conn)


def test_no_server_there() -> None:
    with pytest.raises(errors.LedgerUnavailable) as refused:
        install.plan("host=127.0.0.1 port=1 password=secret")
    assert "secret" not in str(refused.value)


# -- without superuser -----------------------------------------------------------------------------


@pytest.fixture
def fresh(make_server: Callable[..., Server]) -> Server:
    """A cluster without our roles."""
    return make_server()


@pytest.mark.parametrize("createrole", [True, False], ids=["createrole", "no createrole"])
def test_install_by_a_role_that_may_only_create_in_the_database(
    fresh: Server, createrole: bool
) -> None:
    name = fresh.create_database()
    with fresh.connect() as conn:
        conn.execute(
            sql.SQL("create role installer login {}").format(
                sql.SQL("createrole" if createrole else "nocreaterole")
            )
        )
        conn.execute(
            sql.SQL("grant create on database {} to installer").format(sql.Identifier(name))
        )
    dsn = fresh.dsn(name, "installer")
    planned = install.plan(dsn)
    result = install.install(dsn)
    assert result.action == "installed"
    assert result.missing_roles == (() if createrole else install.ROLES)
    assert bool(planned.notes) is not createrole
    verified = install.verify(dsn)
    assert verified.ok, (verified.missing, verified.unexpected)
    write_a_decision(Database(fresh, name))
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select count(*) from routeledger.decisions").fetchone() == (2,)
    assert install.install(dsn).action == "reasserted"
    # A DBA makes the roles later; installing again grants to them.
    if not createrole:
        with fresh.connect() as conn:
            for role in install.ROLES:
                conn.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
        assert not install.verify(dsn).ok
        assert install.install(dsn).missing_roles == ()
        assert install.verify(dsn).ok
    gone = install.uninstall(dsn, roles=True)
    assert gone.removed
    assert bool(gone.roles_dropped) is createrole


def test_a_role_without_create_is_told_what_it_lacks(fresh: Server) -> None:
    name = fresh.create_database()
    with fresh.connect() as conn:
        conn.execute("create role bystander login")
    planned = install.plan(fresh.dsn(name, "bystander"))
    assert planned.action == "refuse"
    with pytest.raises(errors.LedgerError) as refused:
        install.install(fresh.dsn(name, "bystander"))
    assert refused.value.sqlstate == "42501"
    assert "grant create on database" in (refused.value.hint or "")


def test_another_role_may_not_mix_its_objects_in(fresh: Server) -> None:
    name = fresh.create_database()
    with fresh.connect() as conn:
        conn.execute("create role installer login")
        conn.execute(
            sql.SQL("grant create on database {} to installer").format(sql.Identifier(name))
        )
    install.install(fresh.dsn(name, "installer"))
    with pytest.raises(errors.SchemaNotOurs) as refused:
        install.install(fresh.dsn(name))
    assert refused.value.detail == {"owner": "installer", "role": "postgres"}
    as_owner = psycopg.conninfo.make_conninfo(fresh.dsn(name), options="-c role=installer")
    assert install.install(as_owner).action == "reasserted"
    assert install.verify(fresh.dsn(name)).ok


# -- what is not ours, or not of this version ------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "create table routeledger.things (id int)",
        "create function routeledger.f() returns int language sql as 'select 1'",
        (
            "create function routeledger.version() returns text language plpgsql"
            " as $$ begin raise exception 'executed'; end $$"
        ),
    ],
    ids=["a table", "a function", "a function named version"],
)
def test_a_schema_that_is_not_ours_is_left_alone(empty_db: Database, statement: str) -> None:
    empty_db.execute("create schema routeledger")
    empty_db.execute(statement)
    before = empty_db.execute(FINGERPRINT)
    assert install.plan(empty_db.dsn).action == "refuse"
    for act in (install.install, install.upgrade, install.verify, install.uninstall):
        with pytest.raises(errors.SchemaNotOurs) as refused:
            act(empty_db.dsn)
        assert refused.value.sqlstate == "RL901"
    assert empty_db.execute(FINGERPRINT) == before


def test_the_script_itself_refuses_what_is_not_ours(empty_db: Database) -> None:
    empty_db.execute("create schema routeledger create table things (id int)")
    with empty_db.connect() as conn, pytest.raises(psycopg.Error) as refused:
        conn.execute(install.install_sql().encode())
    assert refused.value.sqlstate == "RL901"


def test_an_empty_schema_of_that_name_is_used(empty_db: Database) -> None:
    empty_db.execute("create schema routeledger")
    assert install.plan(empty_db.dsn).action == "install"
    install.install(empty_db.dsn)
    assert install.verify(empty_db.dsn).ok


def pretend(db: Database, version: str) -> None:
    db.execute(
        f"create or replace function routeledger.version() returns text language sql immutable"
        f" parallel safe set search_path = pg_catalog, routeledger, pg_temp"
        f" as $$ select '{version}' $$"
    )


@pytest.mark.parametrize(
    ("version", "error"),
    [("0.0.1", errors.NoUpgradePath), ("99.0.0", errors.SchemaTooNew)],
)
def test_a_version_that_no_script_leads_from(
    db: Database, version: str, error: type[errors.LedgerError]
) -> None:
    pretend(db, version)
    planned = install.plan(db.dsn)
    assert (planned.action, planned.installed) == ("refuse", version)
    for act in (install.install, install.upgrade):
        with pytest.raises(error):
            act(db.dsn)
    with pytest.raises(errors.OtherVersionInstalled):
        install.verify(db.dsn)
    with db.connect() as conn, pytest.raises(psycopg.Error) as refused:
        conn.execute(install.install_sql().encode())
    assert refused.value.sqlstate == "RL902"


def made_up_step(start: str, goal: str) -> str:
    return f"""
begin;
select pg_advisory_xact_lock(hashtextextended('routeledger.install', 0));
do $$ begin
  if routeledger.version() <> '{start}' then raise exception 'not {start}'; end if;
end $$;
create or replace function routeledger.version() returns text language sql immutable
  parallel safe set search_path = pg_catalog, routeledger, pg_temp as $$ select '{goal}' $$;
commit;
"""


def test_upgrade_runs_the_chain(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {
        "routeledger--0.0.8--0.0.9.sql": made_up_step("0.0.8", "0.0.9"),
        f"routeledger--0.0.9--{__version__}.sql": made_up_step("0.0.9", __version__),
    }
    read = install._read
    monkeypatch.setattr(install, "_names", lambda: list(scripts))
    monkeypatch.setattr(install, "_read", lambda name: scripts.get(name) or read(name))
    pretend(db, "0.0.8")
    planned = install.plan(db.dsn)
    assert planned.action == "upgrade"
    assert planned.scripts == tuple(scripts)
    with pytest.raises(errors.OtherVersionInstalled, match="another version"):
        install.install(db.dsn)
    result = install.upgrade(db.dsn)
    assert (result.action, result.before, result.version) == ("upgraded", "0.0.8", __version__)
    assert install.upgrade(db.dsn).action == "nothing"


def test_an_upgrade_that_breaks_goes_on_from_where_it_was(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {
        "routeledger--0.0.8--0.0.9.sql": made_up_step("0.0.8", "0.0.9"),
        f"routeledger--0.0.9--{__version__}.sql": "begin;\nselect 1/0;\ncommit;\n",
    }
    monkeypatch.setattr(install, "_names", lambda: list(scripts))
    monkeypatch.setattr(install, "_read", scripts.__getitem__)
    pretend(db, "0.0.8")
    with pytest.raises(errors.LedgerError):
        install.upgrade(db.dsn)
    assert install.plan(db.dsn).installed == "0.0.9"
    scripts[f"routeledger--0.0.9--{__version__}.sql"] = made_up_step("0.0.9", __version__)
    result = install.upgrade(db.dsn)
    assert (result.before, result.version) == ("0.0.9", __version__)


def test_upgrade_of_nothing(empty_db: Database) -> None:
    with pytest.raises(errors.NotInstalled) as refused:
        install.upgrade(empty_db.dsn)
    assert refused.value.sqlstate == "RL905"


# -- plan ------------------------------------------------------------------------------------------


def test_plan_writes_nothing(empty_db: Database) -> None:
    before = empty_db.execute(FINGERPRINT)
    assert install.plan(read_only(empty_db.dsn)).action == "install"
    assert empty_db.execute(FINGERPRINT) == before
    install.install(empty_db.dsn)
    installed = empty_db.execute(FINGERPRINT)
    planned = install.plan(read_only(empty_db.dsn))
    assert (planned.action, planned.installed) == ("nothing", __version__)
    assert install.verify(read_only(empty_db.dsn)).ok
    assert install.contents(read_only(empty_db.dsn)).installed == __version__
    assert empty_db.execute(FINGERPRINT) == installed


# -- verify ----------------------------------------------------------------------------------------


def test_the_committed_facts_are_those_of_the_script(db: Database) -> None:
    """Stale: run `make facts`. The same on every major."""
    committed = install._read("routeledger.facts").splitlines()
    assert install.snapshot(db.dsn) == committed


def test_every_reader_may_verify(db: Database) -> None:
    assert install.verify(db.dsn_as("nobody")).ok


TAMPERED = {
    "a function's body": (
        (
            "do $do$ begin execute replace(pg_get_functiondef('routeledger.clock()'::regprocedure),"
            " '$function$', '$function$ '); end $do$"
        ),
        "function routeledger.clock()",
    ),
    "a function's pin": (
        "alter function routeledger.clock() set search_path = public",
        "function routeledger.clock()",
    ),
    "a grant lost": (
        "revoke execute on function routeledger.reap(integer, text) from routeledger_writer",
        "to routeledger_writer",
    ),
    "a grant to all": (
        "grant select on routeledger.routing_outcomes to public",
        "grant SELECT on relation routeledger.routing_outcomes to public",
    ),
    "a comment": ("comment on function routeledger.clock() is 'mine'", "comment on function"),
}
REPAIRED_BY_INSTALL = sorted(TAMPERED)
TAMPERED |= {
    "a column more": ("alter table routeledger.models add column mine text", "column"),
    "a constraint less": (
        "alter table routeledger.models drop constraint models_q_prior_check",
        "constraint models_q_prior_check",
    ),
    "an index less": ("drop index routeledger.models_base_model_idx", "index"),
    "a table more": ("create table routeledger.mine ()", "relation routeledger.mine"),
    "a default": (
        "alter table routeledger.settings alter column lease set default interval '1 hour'",
        "column routeledger.settings.lease",
    ),
}


@pytest.mark.parametrize("what", sorted(TAMPERED))
def test_verify_finds(db: Database, what: str) -> None:
    statement, named = TAMPERED[what]
    db.execute(statement)
    found = install.verify(db.dsn)
    assert not found.ok
    assert any(named in fact for fact in (*found.missing, *found.unexpected))
    assert len(found.missing) + len(found.unexpected) <= 8
    if what in REPAIRED_BY_INSTALL:
        install.install(db.dsn)
        assert install.verify(db.dsn).ok


def test_partitions_and_rows_are_not_facts(db: Database) -> None:
    write_a_decision(db)
    db.execute("select routeledger.maintain(interval '90 days')")
    db.execute('select routeledger.configure(\'{"lease": "1 minute"}\')')
    assert install.verify(db.dsn).ok


# -- dump and restore ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_dump_and_restore(
    db: Database, make_database: Callable[..., Database], tmp_path: Path, form: str
) -> None:
    write_a_decision(db)
    db.execute('select routeledger.import_models(\'[{"model_slug": "m"}]\')')
    file = tmp_path / "dump"
    run(db, "pg_dump", "--format", form, "--file", str(file), "--dbname", db.dsn)
    restored = make_database(installed=False)
    if form == "plain":
        restored.server.psql(restored.name, "-f", str(file))
    else:
        run(db, "pg_restore", "--exit-on-error", "--dbname", restored.dsn, str(file))

    assert install.snapshot(restored.dsn) == install.snapshot(db.dsn)
    for name in tables(db):
        query = f"select to_jsonb(t) from routeledger.{name} t order by to_jsonb(t)::text"
        assert restored.execute(query) == db.execute(query), name
    assert db.value("select count(*) from routeledger.decisions") == 2
    write_a_decision(restored)
    assert restored.value("select count(*) from routeledger.decisions") == 4
    assert restored.execute("select * from routeledger.orphans") == []
    assert restored.value("select bool_and(agrees) from routeledger.reconciliation")
    assert install.install(restored.dsn).action == "reasserted"


def run(db: Database, program: str, *args: str) -> None:
    binaries = db.server.binaries
    done = subprocess.run(
        binaries.command(program, *args),
        env=binaries.env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def tables(db: Database) -> list[str]:
    return [
        name
        for (name,) in db.execute(
            "select relname from pg_class where relnamespace = 'routeledger'::regnamespace"
            " and relkind in ('r', 'p') and not relispartition order by 1"
        )
    ]


# -- uninstall -------------------------------------------------------------------------------------


def test_uninstall_leaves_nothing(fresh: Server) -> None:
    db = Database(fresh, fresh.create_database())
    before = db.execute(FINGERPRINT)
    install.install(db.dsn)
    write_a_decision(db)
    result = install.uninstall(db.dsn, roles=True)
    assert result.removed
    assert result.rows["routing_outcomes"] == 2
    assert sorted(result.roles_dropped) == sorted(install.ROLES)
    assert result.roles_kept == {}
    assert db.execute(FINGERPRINT) == before
    assert install.uninstall(db.dsn, roles=True).removed is False
    assert install.install(db.dsn).action == "installed"


def test_roles_stay_while_another_database_uses_them(fresh: Server) -> None:
    one, two = fresh.create_database(), fresh.create_database()
    install.install(fresh.dsn(one))
    install.install(fresh.dsn(two))
    result = install.uninstall(fresh.dsn(one), roles=True)
    assert result.roles_dropped == ()
    assert result.roles_kept == dict.fromkeys(install.ROLES, f"still used by database {two}")
    assert install.verify(fresh.dsn(two)).ok
    result = install.uninstall(fresh.dsn(two), roles=True)
    assert sorted(result.roles_dropped) == sorted(install.ROLES)


def test_roles_stay_without_being_asked_for(db: Database) -> None:
    result = install.uninstall(db.dsn)
    assert (result.removed, result.roles_dropped) == (True, ())
    assert db.value("select count(*) from pg_roles where rolname ~ '^routeledger_'") == 4


def test_what_depends_on_it_is_named(db: Database) -> None:
    db.execute("create view public.mine as select tenant_id from routeledger.decisions")
    db.execute("create table public.theirs (setting routeledger.settings)")
    found = install.contents(db.dsn)
    assert found.dependents == ("column setting of table theirs", "view mine") or set(
        found.dependents
    ) == {"view mine", "table theirs"}
    assert install.uninstall(db.dsn).dependents == found.dependents
    assert db.value("select to_regclass('public.mine')") is None


def test_a_count_that_takes_too_long_becomes_an_estimate(
    db: Database, superuser: Callable[..., psycopg.Connection[Any]]
) -> None:
    write_a_decision(db)
    with superuser(autocommit=False) as blocker:
        blocker.execute("lock table routeledger.inferences in access exclusive mode")
        found = install.contents(db.dsn)
    assert found.rows["inferences"] < 0
    assert found.rows["routing_outcomes"] == 2


@pytest.fixture
def login(server: Server) -> Iterator[str]:
    """A login role of the test's own, dropped after it."""
    name = f"t_{uuid.uuid4().hex[:8]}"
    with server.connect() as conn:
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    yield name
    with server.connect() as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def test_only_the_owner_uninstalls(db: Database, login: str) -> None:
    with pytest.raises(errors.LedgerError):
        install.uninstall(db.server.dsn(db.name, login))
    assert install.verify(db.dsn).ok
