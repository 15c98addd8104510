"""The constraints as operations of Django: one migration, whatever the database held before."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.writer import MigrationWriter
from django.db.models import Q
from django.db.utils import ConnectionHandler
from django.test.utils import override_settings

from routeledger import django as ours
from tests.conftest import Database

NAME = "shop_outcome_floor_check"
OLDER = "decision_rule <> 'cheapest_clearing_floor' OR inference_id IS NOT NULL"
RIGHT = f"outcome_status = 'pending' OR {OLDER}"
STATES = {
    "older": f"alter table shop_outcome add constraint {NAME} check ({OLDER})",
    "absent": "select",
    "not_valid": f"alter table shop_outcome add constraint {NAME} check ({RIGHT}) not valid",
    "right": f"alter table shop_outcome add constraint {NAME} check ({RIGHT})",
}
ROWS = """
insert into shop_outcome (decision_rule, inference_id, outcome_status)
select 'cheapest_clearing_floor', n, 'completed' from generate_series(1, 100) n
"""
PENDING = """
insert into shop_outcome (decision_rule, outcome_status)
values ('cheapest_clearing_floor', 'pending') returning id
"""
VIOLATE = """
insert into shop_outcome (decision_rule, outcome_status)
values ('cheapest_clearing_floor', 'completed')
"""
FIRST = """
migrations.CreateModel("Outcome", [
    ("id", models.BigAutoField(primary_key=True)),
    ("decision_rule", models.TextField()),
    ("inference", models.BigIntegerField(null=True, db_column="inference_id")),
    ("outcome_status", models.CharField(max_length=20)),
]),
"""
# as the older predicate was written, and the 'pending' of the two-phase write
CONDITION = """
models.Q(outcome_status="pending") | ~models.Q(decision_rule="cheapest_clearing_floor")
| models.Q(inference__isnull=False)
"""
CHECK = f'EnsureCheck("outcome", "{NAME}", {RIGHT!r}),'

_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Django project of one app without models: `shop`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        if not settings.configured:
            settings.configure(INSTALLED_APPS=["shop"], USE_TZ=True)
            django.setup()
        assert apps.is_installed("shop")
        yield


class Project:
    """The migrations of `shop`, on one database."""

    def __init__(self, folder: Path) -> None:
        self.package = f"shop_migrations_{next(_numbers)}"
        self.folder = folder / self.package
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()
        self.names: list[str] = []

    def migration(self, operations: str, *, atomic: bool = False) -> str:
        """One more migration, after the last one."""
        name = f"{len(self.names) + 1:04}_step"
        before = [("shop", self.names[-1])] if self.names else []
        body = textwrap.indent(textwrap.dedent(operations).strip(), "        ")
        (self.folder / f"{name}.py").write_text(
            "from django.db import migrations, models\n"
            "from routeledger.django import EnsureCheck, EnsureUnique\n\n"
            f"class Migration(migrations.Migration):\n    atomic = {atomic}\n"
            f"    dependencies = {before}\n    operations = [\n{body}\n    ]\n"
        )
        self.names.append(name)
        return name

    def executor(self) -> MigrationExecutor:
        return MigrationExecutor(connections["default"])

    def migrate(self, to: str | None) -> None:
        self.executor().migrate([("shop", to)])

    def again(self, name: str) -> None:
        """One migration once more, as if it had not run."""
        executor = self.executor()
        executor.recorder.record_unapplied("shop", name)
        self.migrate(name)

    def script(self, name: str, *, backwards: bool = False) -> str:
        """What `sqlmigrate` prints."""
        loader = self.executor().loader
        plan = [(loader.graph.nodes["shop", name], backwards)]
        return "\n".join(loader.collect_sql(plan))


@pytest.fixture
def project(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(tmp_path)
    made = Project(tmp_path)
    handler = ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": db.name,
                "USER": "postgres",
                "HOST": db.server.host,
                "PORT": db.server.port,
            }
        }
    )
    connections["default"] = handler["default"]
    with override_settings(MIGRATION_MODULES={"shop": made.package}):
        yield made
    connections["default"].close()
    del connections["default"]


def constraint(db: Database, name: str = NAME) -> tuple[str, bool] | None:
    rows = db.execute(
        "select pg_get_constraintdef(oid), convalidated from pg_constraint where conname = %s",
        [name],
    )
    return rows[0] if rows else None


def two_phases(db: Database) -> None:
    """What the application does: an outcome before its inference is known, completed later."""
    row = db.execute(PENDING)[0]
    db.execute(
        "update shop_outcome set inference_id = id, outcome_status = 'completed' where id = %s", row
    )


@pytest.mark.parametrize("state", STATES)
def test_one_migration_for_every_database(project: Project, db: Database, state: str) -> None:
    first = project.migration(FIRST)
    project.migrate(first)
    db.execute(ROWS)
    db.execute(STATES[state])
    found = constraint(db)
    ensure = project.migration(CHECK)
    project.migrate(ensure)
    declared = constraint(db)
    project.again(ensure)
    assert constraint(db) == declared
    assert declared is not None
    assert declared[1]
    assert (declared == found) is (state == "right")
    two_phases(db)
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(VIOLATE)
    labels = {row[0] for row in db.execute("select label from routeledger.constraint_history")}
    assert labels == {f"shop.{ensure}"}
    project.migrate(first)
    assert constraint(db) == found


def test_a_condition_in_python(project: Project, db: Database) -> None:
    project.migration(FIRST)
    ensure = project.migration(f'EnsureCheck("outcome", "{NAME}", {CONDITION.strip()}),')
    project.migrate(ensure)
    declared = constraint(db)
    assert declared is not None
    assert "inference_id IS NOT NULL" in declared[0]
    two_phases(db)
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(VIOLATE)


def test_in_one_transaction(project: Project, db: Database) -> None:
    """An atomic migration does it where one step is enough, else it is rolled back whole."""
    first = project.migration(FIRST, atomic=True)
    ensure = project.migration(CHECK, atomic=True)
    project.migrate(ensure)
    declared = constraint(db)
    assert declared is not None
    assert declared[1]
    project.migrate(first)
    assert constraint(db) is None
    db.execute(ROWS)
    with pytest.raises(ours.MigrationRefused, match="atomic = False"):
        project.migrate(ensure)
    assert constraint(db) is None
    db.execute(STATES["right"])
    project.migrate(ensure)
    assert constraint(db) == declared


def test_a_refusal_ends_the_migration(project: Project, db: Database) -> None:
    first = project.migration(FIRST)
    project.migrate(first)
    db.execute(VIOLATE)
    ensure = project.migration(CHECK)
    with pytest.raises(ours.MigrationRefused, match="RL309") as refused:
        project.migrate(ensure)
    assert "violations" in str(refused.value)
    assert constraint(db) is None
    assert ("shop", ensure) not in project.executor().recorder.applied_migrations()


def test_not_valid_then_backfill_then_validate(project: Project, db: Database) -> None:
    project.migrate(project.migration(FIRST))
    db.execute(VIOLATE)
    project.migrate(project.migration(CHECK[:-2] + ', if_violated="add_not_valid"),'))
    found = constraint(db)
    assert found is not None
    assert not found[1]
    project.migration('migrations.RunSQL("update shop_outcome set inference_id = id", ""),')
    project.migrate(project.migration(CHECK))
    found = constraint(db)
    assert found is not None
    assert found[1]


def test_unique_and_back(project: Project, db: Database) -> None:
    first = project.migration(FIRST)
    project.migrate(first)
    db.execute(ROWS)
    db.execute(ROWS)
    before = db.execute("select * from shop_outcome order by id")
    unique = project.migration(
        """
        EnsureUnique("outcome", "shop_outcome_key", ["decision_rule", "inference"],
                     keep="greatest id", where=models.Q(outcome_status="completed"),
                     reason="the upsert needs it"),
        """
    )
    project.migrate(unique)
    assert db.value("select count(*) from shop_outcome") == 100
    assert db.value("select min(id) from shop_outcome") == 101
    project.again(unique)
    db.execute(
        "insert into shop_outcome (decision_rule, inference_id, outcome_status) values"
        " ('cheapest_clearing_floor', 1, 'completed') on conflict (decision_rule, inference_id)"
        " where outcome_status = 'completed' do nothing"
    )
    project.migrate(first)
    assert db.execute("select * from shop_outcome order by id") == before
    assert db.value("select to_regclass('shop_outcome_key')") is None


@pytest.mark.parametrize("atomic", [True, False])
def test_as_sql(project: Project, db: Database, atomic: bool) -> None:
    first = project.migration(FIRST)
    project.migrate(first)
    ensure = project.migration(CHECK, atomic=atomic)
    if not atomic:
        db.execute(ROWS)
        db.execute(STATES["older"])
    found = constraint(db)
    db.server.psql(db.name, stdin=project.script(ensure))
    declared = constraint(db)
    assert declared is not None
    assert declared[1]
    db.server.psql(db.name, stdin=project.script(ensure, backwards=True))
    assert constraint(db) == found


def test_the_models_stay_as_they_are(project: Project) -> None:
    project.migration(FIRST)
    project.migration(CHECK)
    loader = project.executor().loader
    before = loader.project_state(("shop", project.names[0]))
    state = loader.project_state(("shop", project.names[1]))
    operation = loader.disk_migrations["shop", project.names[1]].operations[0]
    assert state == before
    assert operation.describe() == f"Ensure check {NAME} on outcome"
    assert operation.migration_name_fragment == f"ensure_{NAME}"


def test_the_writer_writes_them() -> None:
    made: tuple[Any, ...] = (
        ours.EnsureCheck("outcome", "c", Q(id__gt=0), if_violated="add_not_valid"),
        ours.EnsureUnique("outcome", "u", ["id"], keep="greatest id", where="id > 0"),
    )
    migration = type("Migration", (django.db.migrations.Migration,), {"operations": list(made)})
    text = (
        MigrationWriter(migration("0001", "shop"), include_header=False)
        .as_string()
        .replace('"', "'")
    )
    assert "import routeledger.django" in text
    assert "routeledger.django.EnsureCheck(" in text
    assert "if_violated='add_not_valid'" in text
    assert "keep='greatest id'" in text
    assert made[1].describe() == "Ensure unique u on outcome"
    assert made[1].migration_name_fragment == "ensure_u"


def test_other_databases_and_routers(project: Project, db: Database) -> None:
    first = project.migration(FIRST)
    ensure = project.migration(CHECK)

    class Elsewhere:
        def allow_migrate(self, *args: Any, **hints: Any) -> bool:
            return False

    with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
        project.migrate(first)
        project.migrate(ensure)
    assert db.value("select to_regclass('shop_outcome')") is None
    connections["default"].close()
    lite = ConnectionHandler(
        {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    )
    connections["default"] = lite["default"]
    project.migrate(first)
    with pytest.raises(ours.MigrationRefused, match="sqlite"):
        project.migrate(ensure)
