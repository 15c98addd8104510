"""The constraints as operations of Alembic: one revision, whatever the database held before."""

from __future__ import annotations

import io
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

from routeledger import alembic as ours
from tests.conftest import Database

ENV = """
import psycopg
import sqlalchemy as sa
from alembic import context

import routeledger.alembic

config = context.config
options = dict(target_metadata=config.attributes.get("metadata"), **config.attributes["options"])
if context.is_offline_mode():
    context.configure(url="postgresql+psycopg://", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
elif (connection := config.attributes.get("connection")) is not None:
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    dsn = config.attributes["dsn"]
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=sa.pool.NullPool
    )
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''

NAME = "routing_outcomes_floor_check"
OLDER = "decision_rule <> 'cheapest_clearing_floor' OR inference_id IS NOT NULL"
RIGHT = f"outcome_status = 'pending' OR {OLDER}"
TABLE = """
create table routing_outcomes (
  id bigint generated always as identity primary key,
  decision_rule text not null,
  inference_id bigint,
  outcome_status varchar(20) not null
);
insert into routing_outcomes (decision_rule, inference_id, outcome_status)
select case n % 3 when 0 then 'no_candidate_clears_floor' else 'cheapest_clearing_floor' end,
  case n % 3 when 0 then null else n end, 'completed'
from generate_series(1, 3000) n;
"""
STATES = {
    "older": f"alter table routing_outcomes add constraint {NAME} check ({OLDER})",
    "absent": "select",
    "not_valid": f"alter table routing_outcomes add constraint {NAME} check ({RIGHT}) not valid",
    "right": f"alter table routing_outcomes add constraint {NAME} check ({RIGHT})",
}
PENDING = """
insert into routing_outcomes (decision_rule, outcome_status)
values ('cheapest_clearing_floor', 'pending') returning id
"""
COMPLETE = """
update routing_outcomes set inference_id = id, outcome_status = 'completed' where id = %s
"""
VIOLATE = """
insert into routing_outcomes (decision_rule, outcome_status)
values ('cheapest_clearing_floor', 'completed')
"""


class Migrations:
    """An Alembic environment of the test's own, on one database."""

    def __init__(self, folder: Path, db: Database, metadata: sa.MetaData | None = None) -> None:
        self.db = db
        self.folder = folder / "migrations"
        (self.folder / "versions").mkdir(parents=True)
        (self.folder / "env.py").write_text(ENV)
        (self.folder / "script.py.mako").write_text(MAKO)
        self.output = io.StringIO()
        self.config = Config(output_buffer=self.output)
        self.config.set_main_option("script_location", str(self.folder))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes.update(dsn=db.dsn, metadata=metadata, options={})
        self.last: str | None = None

    def revision(self, name: str, upgrade: str, downgrade: str = "pass") -> None:
        """One more revision, after the last one."""
        body = textwrap.indent(textwrap.dedent(upgrade).strip(), "    ")
        back = textwrap.indent(textwrap.dedent(downgrade).strip(), "    ")
        (self.folder / "versions" / f"{name}.py").write_text(
            f"from alembic import op\nimport sqlalchemy as sa\n\nrevision = {name!r}\n"
            f"down_revision = {self.last!r}\n\n\ndef upgrade():\n{body}\n\n\n"
            f"def downgrade():\n{back}\n"
        )
        self.last = name

    def upgrade(self, to: str = "head") -> None:
        command.upgrade(self.config, to)

    def downgrade(self, to: str) -> None:
        command.downgrade(self.config, to)

    def again(self, to: str = "head") -> None:
        """The same revisions once more, as if none of them had run."""
        command.stamp(self.config, "base")
        command.upgrade(self.config, to)

    def script(self, run: Callable[..., None], span: str) -> str:
        """What `--sql` writes."""
        self.output.seek(0)
        self.output.truncate()
        run(self.config, span, sql=True)
        return self.output.getvalue()

    def generate(self) -> str:
        """The text of a revision that `--autogenerate` writes."""
        made = command.revision(self.config, "generated", autogenerate=True)
        assert made is not None
        assert not isinstance(made, list)
        self.last = made.revision
        return Path(made.path).read_text()

    def current(self) -> str | None:
        """The revision that the database is at."""
        # before Alembic 1.19 an offline downgrade to base drops the table
        if self.db.value("select to_regclass('alembic_version')") is None:
            return None
        rows = self.db.execute("select version_num from alembic_version")
        return rows[0][0] if rows else None


@pytest.fixture
def migrations(tmp_path: Path, db: Database) -> Migrations:
    return Migrations(tmp_path, db)


def constraint(db: Database, name: str = NAME) -> tuple[str, bool] | None:
    """(definition, validated) as it is in the catalogue."""
    rows = db.execute(
        "select pg_get_constraintdef(oid), convalidated from pg_constraint where conname = %s",
        [name],
    )
    return rows[0] if rows else None


def identity(db: Database) -> tuple[Any, ...]:
    """The row of the constraint in the catalogue: another one after any change."""
    return db.execute("select oid, xmin::text from pg_constraint where conname = %s", [NAME])[0]


class Writer(threading.Thread):
    """Writes in two phases, one outcome after the other, and counts what was refused."""

    def __init__(self, db: Database, *, violates: bool) -> None:
        super().__init__()
        self.db = db
        self.violates = violates
        self.ending = threading.Event()
        self.begun = threading.Event()
        self.answers: list[bool] = []
        self.violations = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self.db.connect() as conn:
                while not self.ending.is_set():
                    self._write(conn)
                    if len(self.answers) >= 20:
                        self.begun.set()
        except BaseException as error:  # noqa: BLE001 – the test shows it
            self.failure = error
        finally:
            self.begun.set()

    def _write(self, conn: psycopg.Connection[Any]) -> None:
        try:
            with conn.transaction():
                row = conn.execute(PENDING).fetchone()
        except psycopg.errors.CheckViolation:
            self.answers.append(False)
        else:
            assert row is not None
            conn.execute(COMPLETE, row)
            self.answers.append(True)
        if self.violates:
            try:
                conn.execute(VIOLATE)
            except psycopg.errors.CheckViolation:
                pass
            else:
                self.violations += 1


@contextmanager
def writing(db: Database, *, violates: bool) -> Iterator[Writer]:
    writer = Writer(db, violates=violates)
    writer.start()
    try:
        assert writer.begun.wait(30)
        yield writer
    finally:
        writer.ending.set()
        writer.join(30)
        assert writer.failure is None
        assert not writer.is_alive()


ENSURE = f"op.ensure_check({NAME!r}, 'routing_outcomes', {RIGHT!r})"
UNDO = f"op.undo_constraint({NAME!r}, 'routing_outcomes')"


@pytest.mark.parametrize("state", STATES)
def test_one_revision_for_every_database(migrations: Migrations, state: str) -> None:
    db = migrations.db
    db.execute(TABLE)
    db.execute(STATES[state])
    found = constraint(db)
    migrations.revision("r1", ENSURE, UNDO)
    with writing(db, violates=state != "absent") as writer:
        migrations.upgrade()
        seen = len(writer.answers)
        made = identity(db)
        migrations.again()
        assert identity(db) == made
        while len(writer.answers) < seen + 20 and writer.is_alive():
            time.sleep(0.01)
    # refused by the older constraint until it was replaced, and never after
    assert writer.answers == sorted(writer.answers)
    assert writer.answers[0] is (state != "older")
    assert all(writer.answers[seen:])
    # no moment without the one or the other
    assert writer.violations == 0
    assert migrations.current() == "r1"
    declared = constraint(db)
    assert declared is not None
    assert declared[1]
    assert (declared == found) is (state == "right")
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(VIOLATE)
    migrations.downgrade("base")
    assert constraint(db) == found
    # and up once more, from there
    migrations.upgrade()
    assert constraint(db) == declared


def test_not_valid_then_backfill_then_validate(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    db.execute(VIOLATE)
    db.execute(VIOLATE)
    migrations.revision("r1", ENSURE[:-1] + ", if_violated='add_not_valid')", UNDO)
    migrations.revision(
        "r2",
        """
        op.execute("update routing_outcomes set inference_id = id where inference_id is null"
                   " and decision_rule = 'cheapest_clearing_floor'")
        """,
    )
    migrations.revision("r3", ENSURE, UNDO)
    migrations.upgrade("r1")
    declared = constraint(db)
    assert declared is not None
    assert not declared[1]
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(VIOLATE)
    migrations.upgrade("r2")
    migrations.upgrade("r3")
    valid = constraint(db)
    assert valid is not None
    assert valid[1]
    migrations.downgrade("r2")
    assert constraint(db) == declared
    migrations.downgrade("base")
    assert constraint(db) is None


def test_a_refusal_ends_the_migration(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    db.execute(VIOLATE)
    migrations.revision(
        "r1", "op.add_column('routing_outcomes', sa.Column('note', sa.Text))\n" + ENSURE, UNDO
    )
    with pytest.raises(ours.MigrationRefused, match="RL309") as refused:
        migrations.upgrade()
    assert NAME in str(refused.value)
    assert "violations" in str(refused.value)
    assert "3001" in str(refused.value)
    assert constraint(db) is None
    assert db.value("select to_regclass('alembic_version')") is None
    assert (
        db.value(
            "select count(*) from pg_attribute where attrelid = 'routing_outcomes'::regclass"
            " and attname = 'note'"
        )
        == 0
    )


def test_what_stays_not_valid_is_a_refusal(migrations: Migrations) -> None:
    """The constraint is there, and rows violate it: that is not what the revision declares."""
    db = migrations.db
    db.execute(TABLE)
    db.execute(VIOLATE)
    db.execute(STATES["not_valid"])
    migrations.revision("r1", ENSURE, UNDO)
    with pytest.raises(ours.MigrationRefused, match=r"1 rows violate it.*3001"):
        migrations.upgrade()
    assert db.value("select to_regclass('alembic_version')") is None
    with pytest.raises(RuntimeError, match="is not finished"):
        db.server.psql(db.name, stdin=migrations.script(command.upgrade, "head"))
    assert migrations.current() is None
    db.execute("delete from routing_outcomes where inference_id is null and id > 3000")
    migrations.upgrade()
    found = constraint(db)
    assert found is not None
    assert found[1]


def test_the_command_line_says_why(
    migrations: Migrations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = migrations.db
    db.execute(TABLE)
    db.execute(VIOLATE)
    migrations.revision("r1", ENSURE, UNDO)
    (migrations.folder / "env.py").write_text(
        ENV.replace('config.attributes["dsn"]', repr(db.dsn)).replace(
            'config.attributes["options"]', "{}"
        )
    )
    ini = tmp_path / "alembic.ini"
    ini.write_text(f"[alembic]\nscript_location = {migrations.folder}\npath_separator = os\n")
    with pytest.raises(SystemExit) as ended:
        CommandLine().main(["-c", str(ini), "upgrade", "head"])
    assert ended.value.code not in (0, None)
    said = "".join(capsys.readouterr())
    assert "FAILED" in said
    assert "RL309" in said


def test_a_lock_that_is_not_had(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    migrations.revision("r1", ENSURE[:-1] + ", lock_timeout='20 milliseconds', attempts=2)", UNDO)
    with db.connect(autocommit=False) as reader:
        reader.execute("select from routing_outcomes limit 1")
        with pytest.raises(ours.MigrationRefused, match="55P03") as refused:
            migrations.upgrade()
        assert f'"pid": {reader.info.backend_pid}' in str(refused.value)
    assert constraint(db) is None
    migrations.upgrade()
    assert constraint(db) is not None


def test_a_mistake_in_the_condition(migrations: Migrations) -> None:
    migrations.db.execute(TABLE)
    migrations.revision("r1", f"op.ensure_check({NAME!r}, 'routing_outcomes', 'true) or (true')")
    with pytest.raises(ours.MigrationRefused, match="RL116"):
        migrations.upgrade()


def test_without_routeledger(tmp_path: Path, empty_db: Database) -> None:
    empty_db.execute(TABLE)
    migrations = Migrations(tmp_path, empty_db, sa.MetaData())
    migrations.revision("r1", ENSURE, UNDO)
    with pytest.raises(ours.MigrationRefused, match="routeledger install"):
        migrations.upgrade()


def test_a_table_of_the_same_revision(migrations: Migrations) -> None:
    migrations.revision(
        "r1",
        """
        op.create_table("made", sa.Column("id", sa.Integer, primary_key=True),
                        sa.Column("n", sa.Integer))
        op.ensure_check("made_n_check", "made", sa.column("n") > 0)
        """,
        "op.undo_constraint('made_n_check', 'made')\nop.drop_table('made')",
    )
    migrations.upgrade()
    assert constraint(migrations.db, "made_n_check") == ("CHECK ((n > 0))", True)
    migrations.downgrade("base")
    assert migrations.db.value("select to_regclass('made')") is None


def test_names_of_every_kind(migrations: Migrations) -> None:
    db = migrations.db
    db.execute('create schema "Odd ""one"; create table "Odd ""one"."Ta:ble%s" ("Co""l" text)')
    db.execute("""insert into "Odd ""one"."Ta:ble%s" values ('a')""")
    condition = r""""Co""l" not like '50\%%' and "Co""l" <> ':name' and "Co""l" <> '$$'"""
    call = f"op.ensure_check('It''s a \"name\":x', 'Ta:ble%s', {condition!r}, schema='Odd \"one')"
    migrations.revision("r1", call)
    migrations.upgrade()
    made = constraint(db, 'Its a "name":x')
    assert made is not None
    assert r"'50\%%'" in made[0]
    db.execute("""alter table "Odd ""one"."Ta:ble%s" drop constraint "Its a ""name"":x" """)
    db.execute("delete from alembic_version")
    db.server.psql(
        db.name,
        stdin=migrations.script(command.upgrade, "head").replace(
            "CREATE TABLE", "CREATE TABLE IF NOT EXISTS"
        ),
    )
    assert constraint(db, 'Its a "name":x') == made


def test_in_a_transaction_of_the_callers(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(db.dsn), poolclass=sa.pool.NullPool
    )
    migrations.revision("r1", ENSURE, UNDO)
    with pytest.raises(ours.MigrationRefused, match="not Alembic's to commit"):
        with engine.connect() as connection, connection.begin():
            migrations.config.attributes["connection"] = connection
            migrations.upgrade()
    assert constraint(db) is None
    db.execute("truncate routing_outcomes")
    with engine.connect() as connection, connection.begin():
        migrations.config.attributes["connection"] = connection
        migrations.upgrade()
    found = constraint(db)
    assert found is not None
    assert found[1]


def test_in_autocommit(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    migrations.revision("r1", f"with op.get_context().autocommit_block():\n    {ENSURE}", UNDO)
    migrations.upgrade()
    found = constraint(db)
    assert found is not None
    assert found[1]


def test_validate_later(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(TABLE)
    migrations.revision("r1", ENSURE[:-1] + ", validate=False)", UNDO)
    migrations.revision("r2", ENSURE, UNDO)
    migrations.upgrade("r1")
    found = constraint(db)
    assert found is not None
    assert not found[1]
    # the lock of the change does not outlive the directive
    migrations.upgrade("r2")
    found = constraint(db)
    assert found is not None
    assert found[1]


def test_what_does_not_come_to_an_end(
    migrations: Migrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constraint is not as declared as long as a step remains."""
    migrations.db.execute(TABLE)
    migrations.revision("r1", ENSURE, UNDO)
    monkeypatch.setattr(ours, "MAX_STEPS", 0)
    with pytest.raises(ours.MigrationRefused, match=r"Commit, then call ensure_check again"):
        migrations.upgrade()
    assert migrations.current() is None
    monkeypatch.undo()
    migrations.upgrade()
    found = constraint(migrations.db)
    assert found is not None
    assert found[1]


def test_not_null_and_back(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(
        "create table plain (id integer primary key, a text); insert into plain values (1, 'x')"
    )
    migrations.revision(
        "r1",
        "op.ensure_not_null('plain', 'a', constraint_name='plain_a_not_null')",
        "op.undo_constraint('plain_a_not_null', 'plain')",
    )
    query = (
        "select attnotnull from pg_attribute where attrelid = 'plain'::regclass and attname = 'a'"
    )
    migrations.upgrade()
    assert db.value(query) is True
    migrations.again()
    assert db.value(query) is True
    migrations.downgrade("base")
    assert db.value(query) is False


def test_unique_and_back(migrations: Migrations) -> None:
    db = migrations.db
    db.execute(
        "create table quotes (id bigint generated always as identity primary key, symbol text,"
        " venue text, n integer);"
        "insert into quotes (symbol, venue, n) select 'S' || i % 50, 'X', i from generate_series(1, 200) i"
    )
    before = db.execute("select * from quotes order by id")
    migrations.revision(
        "r1",
        """
        op.ensure_unique("quotes_key", "quotes", ["symbol", "venue"], keep="greatest n",
                         form="constraint", reason="the upsert needs it")
        """,
        "op.undo_constraint('quotes_key', 'quotes')",
    )
    migrations.upgrade()
    assert constraint(db, "quotes_key") == ("UNIQUE (symbol, venue)", True)
    assert db.value("select count(*) from quotes") == 50
    assert db.value("select min(n) from quotes") == 151
    migrations.again()
    assert db.value("select count(*) from quotes") == 50
    migrations.downgrade("base")
    assert constraint(db, "quotes_key") is None
    assert db.execute("select * from quotes order by id") == before


# -- offline ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_offline(migrations: Migrations, state: str) -> None:
    db = migrations.db
    db.execute(TABLE)
    db.execute(STATES[state])
    found = constraint(db)
    migrations.revision("r1", ENSURE, UNDO)
    script = migrations.script(command.upgrade, "head")
    with writing(db, violates=state != "absent") as writer:
        db.server.psql(db.name, stdin=script)
        seen = len(writer.answers)
        assert migrations.current() == "r1"
        made = identity(db)
        db.execute("delete from alembic_version")
        db.server.psql(db.name, stdin=script.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        assert identity(db) == made
        while len(writer.answers) < seen + 20 and writer.is_alive():
            time.sleep(0.01)
    assert writer.answers == sorted(writer.answers)
    assert all(writer.answers[seen:])
    assert writer.violations == 0
    assert migrations.current() == "r1"
    declared = constraint(db)
    assert declared is not None
    assert declared[1]
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(VIOLATE)
    db.server.psql(db.name, stdin=migrations.script(command.downgrade, "r1:base"))
    assert migrations.current() is None
    assert constraint(db) == found


def test_offline_in_many_steps(migrations: Migrations) -> None:
    """An index that was left behind broken goes, the key is made, and becomes a constraint."""
    db = migrations.db
    db.execute(
        "create table quotes (id integer primary key, symbol text, venue text);"
        "insert into quotes select i, 'S' || i % 50, 'X' from generate_series(1, 200) i"
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute("create unique index concurrently quotes_key on quotes (symbol, venue)")
    migrations.revision(
        "r1",
        "op.ensure_unique('quotes_key', 'quotes', ['symbol', 'venue'], keep='greatest id',"
        " form='constraint')",
    )
    db.server.psql(db.name, stdin=migrations.script(command.upgrade, "head"))
    assert migrations.current() == "r1"
    assert constraint(db, "quotes_key") == ("UNIQUE (symbol, venue)", True)
    assert db.value("select min(id) from quotes") == 151


def test_offline_refused(migrations: Migrations) -> None:
    """psql goes on after an error unless it is told not to; the revision is not recorded anyway."""
    db = migrations.db
    db.execute(TABLE)
    db.execute(VIOLATE)
    migrations.revision("r1", ENSURE, UNDO)
    migrations.config.attributes["options"]["transaction_per_migration"] = True
    script = migrations.script(command.upgrade, "head")
    with pytest.raises(RuntimeError, match=r"RL309|refused"):
        db.server.psql(db.name, stdin=script)
    done = db.server.psql(db.name, "-v", "ON_ERROR_STOP=0", stdin=script)
    assert "violations" in done.stderr
    assert db.value("select to_regclass('alembic_version')") is None
    assert constraint(db) is None


# -- autogenerate ----------------------------------------------------------------------------------


def declared_metadata() -> sa.MetaData:
    metadata = sa.MetaData(naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s"})
    sa.Table(
        "routing_outcomes",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("decision_rule", sa.Text, nullable=False),
        sa.Column("inference_id", sa.BigInteger),
        sa.Column("outcome_status", sa.String(20), nullable=False),
        sa.CheckConstraint(RIGHT, name=sa.schema.conv(NAME)),
        sa.CheckConstraint(
            sa.column("outcome_status", sa.String).in_(["pending", "completed", "50%"]),
            name="status",
        ),
        sa.CheckConstraint("id<>7 ", name="seven"),
        sa.UniqueConstraint("id", "decision_rule", name="routing_outcomes_key"),
    )
    sa.Table(
        "listed",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column(
            "kind", sa.Enum("a", "b", native_enum=False, create_constraint=True, name="kind")
        ),
        sa.Column("mood", sa.Enum("good", "bad", name="mood")),
        sa.CheckConstraint("at > '2020-01-01 00:00:00+00' AND (kind <> 'a' OR id > 0)", name="at"),
        sa.CheckConstraint("id < 10", name="later", postgresql_not_valid=True),
    )
    return metadata


def test_autogenerate(tmp_path: Path, db: Database) -> None:
    migrations = Migrations(tmp_path, db, declared_metadata())
    db.execute(TABLE)
    db.execute(STATES["older"])
    db.execute(
        "alter table routing_outcomes add constraint ck_routing_outcomes_seven check (id != 7) not valid"
    )
    db.execute("delete from routing_outcomes where id = 7")
    db.execute(
        "create type mood as enum ('good', 'bad');"
        "create table listed (id integer primary key, at timestamptz, kind varchar(1), mood mood,"
        "  constraint ck_listed_kind check (kind in ('a')))"
    )
    db.execute("insert into listed select n from generate_series(1, 9) n")
    found = constraint(db)
    first = migrations.generate()
    assert "import routeledger.alembic" in first
    names = re.findall(r"op\.ensure_check\('(\w+)'", first)
    assert sorted(names) == [
        "ck_listed_at",
        "ck_listed_kind",
        "ck_listed_later",
        "ck_routing_outcomes_seven",
        "ck_routing_outcomes_status",
        NAME,
    ]
    assert f"op.ensure_check('{NAME}', 'routing_outcomes', {RIGHT!r})" in first
    assert "outcome_status IN ('pending', 'completed', '50%')" in first
    assert (
        "op.ensure_unique('routing_outcomes_key', 'routing_outcomes', ['id', 'decision_rule'],"
        " form='constraint')" in first
    )
    assert first.count("op.undo_constraint(") == len(names) + 1
    assert "op.create_" not in first
    assert "op.drop_" not in first
    with pytest.raises(Exception, match=r"New upgrade operations detected|not up to date"):
        command.check(migrations.config)
    migrations.upgrade()
    assert constraint(db) not in (found, None)
    assert constraint(db, "ck_listed_later") == ("CHECK ((id < 10)) NOT VALID", False)
    command.check(migrations.config)
    second = migrations.generate()
    assert "op." not in second.split("def upgrade")[1]
    migrations.upgrade()
    migrations.downgrade("base")
    assert constraint(db) == found
    assert constraint(db, "routing_outcomes_key") is None
    assert constraint(db, "ck_listed_later") is None


def test_autogenerate_beside_detection_by_name(tmp_path: Path, db: Database) -> None:
    """Alembic's own detection, where it is turned on, does not say the same again."""
    migrations = Migrations(tmp_path, db, declared_metadata())
    migrations.config.attributes["options"]["autogenerate_plugins"] = [
        "alembic.autogenerate.*",
        "alembic.ext.checkconstraint_byname",
    ]
    db.execute(TABLE)
    script = migrations.generate()
    assert script.count(NAME) == 2
    assert "create_check_constraint" not in script


def test_autogenerate_respects_the_filters(tmp_path: Path, db: Database) -> None:
    migrations = Migrations(tmp_path, db, declared_metadata())

    def include(obj: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
        return kind != "check_constraint" or name == NAME

    migrations.config.attributes["options"]["include_object"] = include
    db.execute(TABLE)
    script = migrations.generate()
    assert re.findall(r"op\.ensure_check\('(\w+)'", script) == [NAME]


def test_autogenerate_of_a_new_column_and_a_partitioned_table(tmp_path: Path, db: Database) -> None:
    metadata = sa.MetaData()
    sa.Table(
        "parts",
        metadata,
        sa.Column("id", sa.Integer),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("fresh", sa.Integer),
        sa.CheckConstraint("fresh > 0", name="parts_fresh"),
        sa.UniqueConstraint("id", "day", name="parts_key"),
        postgresql_partition_by="range (day)",
    )
    migrations = Migrations(tmp_path, db, metadata)
    db.execute(
        "create table parts (id integer, day date not null) partition by range (day);"
        "create table parts_1 partition of parts for values from ('2024-01-01') to ('2025-01-01');"
        "insert into parts values (1, '2024-05-01')"
    )
    migrations.config.attributes["options"]["include_name"] = lambda name, kind, parents: (
        kind != "table" or name == "parts"
    )
    script = migrations.generate()
    assert script.index("op.add_column('parts'") < script.index("op.ensure_check('parts_fresh'")
    migrations.upgrade()
    assert constraint(db, "parts_fresh") is not None
    command.check(migrations.config)
    assert "op." not in migrations.generate().split("def upgrade")[1]


def test_autogenerate_without_routeledger(
    tmp_path: Path, empty_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    empty_db.execute(TABLE)
    metadata = declared_metadata()
    metadata.remove(metadata.tables["listed"])
    migrations = Migrations(tmp_path, empty_db, metadata)
    script = migrations.generate()
    assert "ensure_" not in script
    assert "not installed in this database" in caplog.text


def test_the_script_is_a_revision(migrations: Migrations) -> None:
    """What other code reads of the operations: diffs and reverses."""
    op = ours.EnsureCheckOp("c", "t", sa.column("n") > 0, schema="s", if_violated="add_not_valid")
    assert op.to_diff_tuple() == (
        "ensure_check",
        "s",
        "c",
        "t",
        "n > 0",
        {"if_violated": "add_not_valid"},
    )
    back = op.reverse()
    assert isinstance(back, ours.UndoConstraintOp)
    assert (back.constraint_name, back.table_name, back.schema) == ("c", "t", "s")
    with pytest.raises(NotImplementedError):
        back.reverse()
    with pytest.raises(NotImplementedError):
        ours.EnsureNotNullOp("t", "n").reverse()
    column = sa.column("data", postgresql.JSONB)
    assert (
        ours.EnsureCheckOp("c", "t", column["a"].astext == "b%").condition
        == "(data ->> 'a') = 'b%'"
    )
    assert ScriptDirectory.from_config(migrations.config).get_heads() == []
