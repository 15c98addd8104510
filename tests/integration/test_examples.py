"""The psql scripts of examples/, and the pages that say so, print what is committed.

`ROUTELEDGER_ACCEPT=1 pytest tests/integration/test_examples.py` writes what they print now.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Database

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sql"))

RUN = "<!-- The tests run the console blocks of this page, in order, and compare. -->"
PAGES = sorted(p for p in (REPO / "docs").rglob("*.md") if RUN in p.read_text(encoding="utf-8"))
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(SCRIPTS) >= 5
    assert PAGES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_prints_what_is_committed(script: Path, db: Database) -> None:
    printed = db.server.psql(db.name, "-a", stdin=script.read_text(encoding="utf-8")).stdout
    expected = script.with_suffix(".out")
    if os.environ.get("ROUTELEDGER_ACCEPT"):
        expected.write_text(printed, encoding="utf-8")
    assert printed == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_prints_what_is_committed(page: Path, db: Database, tmp_path: Path) -> None:
    """Its commands run in a copy of examples/, in a database that has routeledger."""
    pytest.importorskip("qdrant_client")
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    binaries = db.server.binaries
    paths = [str(Path(sys.executable).parent), str(binaries.bindir), os.environ["PATH"]]
    names = {"dbname": "PGDATABASE"}
    given = psycopg.conninfo.conninfo_to_dict(db.dsn)
    environment = {
        **binaries.env(),
        **{names.get(key, f"PG{key.upper()}"): str(value) for key, value in given.items()},
        "PATH": os.pathsep.join(paths),
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PGTZ": "UTC",
        "PYTHONWARNINGS": "ignore",
    }

    def run(block: re.Match[str]) -> str:
        commands = [line for line in block[0].splitlines() if line.startswith("$ ")]
        # after each a NUL, and its exit code kept for the next
        script = "".join(f"{line[2:]}\ns=$?; printf '\\0'; (exit $s)\n" for line in commands)
        done = subprocess.run(
            ["bash"],
            input=f"exec 2>&1\n{script}",
            stdout=subprocess.PIPE,
            cwd=folder,
            env=environment,
            text=True,
            check=False,
        )
        outputs = done.stdout.split("\0")
        assert len(outputs) == len(commands) + 1
        return "".join(f"{c}\n{o}" for c, o in zip(commands, outputs, strict=False))

    committed = page.read_text(encoding="utf-8")
    printed = BLOCK.sub(run, committed)
    if os.environ.get("ROUTELEDGER_ACCEPT"):
        page.write_text(printed, encoding="utf-8")
        committed = printed
    assert printed == committed
