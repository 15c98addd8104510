"""The way from one version to another, and the scripts that the package carries."""

from __future__ import annotations

import pytest

from routeledger import install
from routeledger._version import __version__
from routeledger.errors import NoUpgradePath


def scripts(*steps: str) -> list[str]:
    return [f"routeledger--{step}.sql" for step in steps]


def test_no_step_is_needed() -> None:
    assert install.upgrade_path("0.1.0", "0.1.0", []) == []


def test_one_step() -> None:
    names = scripts("0.1.0--0.2.0")
    assert install.upgrade_path("0.1.0", "0.2.0", names) == names


def test_a_chain_whatever_the_order_of_the_files() -> None:
    names = scripts("0.2.0--0.10.0", "0.10.0--0.11.0", "0.1.0--0.2.0")
    assert install.upgrade_path("0.1.0", "0.11.0", names) == scripts(
        "0.1.0--0.2.0", "0.2.0--0.10.0", "0.10.0--0.11.0"
    )


def test_the_shortest_way_wins() -> None:
    names = scripts("0.1.0--0.2.0", "0.2.0--0.3.0", "0.3.0--0.4.0", "0.1.0--0.3.0")
    assert install.upgrade_path("0.1.0", "0.4.0", names) == scripts("0.1.0--0.3.0", "0.3.0--0.4.0")


def test_of_two_equal_ways_the_one_through_later_versions() -> None:
    names = scripts("0.1.0--0.9.0", "0.9.0--1.0.0", "0.1.0--0.10.0", "0.10.0--1.0.0")
    assert install.upgrade_path("0.1.0", "1.0.0", names) == scripts(
        "0.1.0--0.10.0", "0.10.0--1.0.0"
    )


@pytest.mark.parametrize(
    ("start", "goal"), [("0.1.0", "0.3.0"), ("0.2.0", "0.1.0"), ("9.9.9", "0.2.0")]
)
def test_no_way(start: str, goal: str) -> None:
    assert install.upgrade_path(start, goal, scripts("0.1.0--0.2.0")) is None


def test_a_circle_comes_to_an_end() -> None:
    names = scripts("0.1.0--0.2.0", "0.2.0--0.1.0")
    assert install.upgrade_path("0.1.0", "0.3.0", names) is None


def test_other_files_are_no_steps() -> None:
    names = [
        "routeledger.sql",
        "routeledger--0.1.0.sql",
        "routeledger--0.1.0--0.2.0.sql.bak",
        "snapshot.sql",
        "routeledger--x--y.sql",
    ]
    assert install.upgrade_path("0.1.0", "0.2.0", names) is None


def test_release_candidates_come_before_their_release() -> None:
    versions = ["0.2.0", "0.10.0", "0.2.0rc1", "0.1.9", "0.2.1"]
    assert sorted(versions, key=install._version_key) == [
        "0.1.9",
        "0.2.0rc1",
        "0.2.0",
        "0.2.1",
        "0.10.0",
    ]


def test_the_upgrade_to_itself_is_empty() -> None:
    assert install.upgrade_sql(__version__) == ""


def test_an_upgrade_from_nowhere_is_refused() -> None:
    with pytest.raises(NoUpgradePath) as refused:
        install.upgrade_sql("0.0.1")
    assert refused.value.sqlstate == "RL906"
    assert refused.value.detail == {"installed": "0.0.1", "this": __version__}


def test_the_install_script_is_one_transaction_without_psql_commands() -> None:
    lines = install.install_sql().splitlines()
    assert len([line for line in lines if line.startswith("begin") and line.endswith(";")]) == 1
    assert lines.count("commit;") == 1
    assert not [line for line in lines if line.startswith("\\")]


def test_an_unknown_release_is_not_made_up() -> None:
    with pytest.raises(ValueError, match=r"no release 0\.0\.1 here"):
        install.released_sql("0.0.1")


def test_facts_about_absent_roles_are_told_apart() -> None:
    absent = ["routeledger_judge"]
    for fact in (
        "grant EXECUTE on function routeledger.version() to routeledger_judge",
        "role routeledger_judge login=f superuser=f",
        "member routeledger_judge of routeledger_admin admin=f",
        "member routeledger_x of routeledger_judge admin=f",
    ):
        assert install._concerns(fact, absent), fact
    for fact in (
        "grant EXECUTE on function routeledger.version() to routeledger_writer",
        "comment on function routeledger.f() is 'granted to routeledger_judge'",
        "schema routeledger",
    ):
        assert not install._concerns(fact, absent), fact
