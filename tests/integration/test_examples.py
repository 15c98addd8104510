"""The psql scripts of examples/ print what is committed beside them.

`ROUTELEDGER_ACCEPT=1 pytest tests/integration/test_examples.py` writes what they print now.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Database

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sql"))


def test_there_are_examples() -> None:
    assert len(SCRIPTS) >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_prints_what_is_committed(script: Path, db: Database) -> None:
    printed = db.server.psql(db.name, "-a", stdin=script.read_text(encoding="utf-8")).stdout
    expected = script.with_suffix(".out")
    if os.environ.get("ROUTELEDGER_ACCEPT"):
        expected.write_text(printed, encoding="utf-8")
    assert printed == expected.read_text(encoding="utf-8")
