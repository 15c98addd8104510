"""Upgraded equals fresh: from every release, with data in it, by catalogue facts, grants and comments.

A release is frozen as sql/routeledger--X.sql and never edited; from then on a change ships as an
upgrade script, and this test holds that the chain of scripts ends where a fresh install begins.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from routeledger import install
from routeledger._version import __version__
from tests.conftest import Database
from tests.servers import REPO

RELEASES = {
    match[1]: path
    for path in sorted((REPO / "sql").glob("routeledger--*.sql"))
    if (match := re.fullmatch(r"routeledger--(\d+\.\d+\.\d+)\.sql", path.name))
}

FIXTURE = """
select count(*) from routeledger.import_models(
  '[{"model_slug": "a", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}]');
select count(*) from routeledger.insert_decision('acme', p_candidates => '["a", "b"]');
select count(*) from routeledger.record_outcomes('[
  {"tenant_id": "acme", "attempts": [
    {"model_slug": "a", "status": "failed", "error_type": "429", "http_status": 429},
    {"model_slug": "b", "status": "succeeded", "input_tokens": 5, "output_tokens": 7}]},
  {"tenant_id": "acme"}]');
"""
JUDGE = """
select c.model_slug, v.reward, v.judge_status
from routeledger.claim_judgements('acme', 'j', '1') c
cross join lateral routeledger.record_verdict('acme', c.id, 'j', '1', 0.5,
  p_lease_token => c.lease_token) v
"""
BOOKS = """
select o.tenant_id, o.id, o.outcome_status, o.attempt_count, i.id, i.status, i.cost_usd
from routeledger.routing_outcomes o
left join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id
order by 1, 2, i.attempt_no
"""


def test_this_version_is_released_as_it_is() -> None:
    """The sources say what the frozen file of this version says: a change raises the version."""
    assert __version__ in RELEASES
    frozen = RELEASES[__version__].read_bytes()
    assert frozen == (REPO / "sql" / "routeledger.sql").read_bytes()


@pytest.mark.parametrize("version", RELEASES)
def test_upgraded_equals_fresh(version: str, empty_db: Database) -> None:
    release: Path = RELEASES[version]
    empty_db.server.install(empty_db.name, release)
    assert empty_db.value("select routeledger.version()") == version
    empty_db.server.psql(empty_db.name, stdin=FIXTURE)
    before = empty_db.execute(BOOKS)

    install.upgrade(empty_db.dsn)

    assert empty_db.value("select routeledger.version()") == __version__
    result = install.verify(empty_db.dsn)
    assert result.ok, result
    assert empty_db.execute(BOOKS) == before
    # what succeeded before can be judged, in the partitions that were there
    (judged,) = empty_db.execute(JUDGE)
    assert judged == ("b", 0.5, "labeled")
    empty_db.server.psql(empty_db.name, stdin=FIXTURE)
    assert empty_db.value("select count(*) from routeledger.orphans") == 0
    assert empty_db.value("select bool_and(agrees) from routeledger.reconciliation")


def test_install_again_after_a_release_changes_nothing(empty_db: Database) -> None:
    empty_db.server.install(empty_db.name, RELEASES[__version__])
    before = install.snapshot(empty_db.dsn)
    empty_db.server.install(empty_db.name)
    assert install.snapshot(empty_db.dsn) == before
    assert empty_db.value("select count(*) from routeledger.install_log") == 1
