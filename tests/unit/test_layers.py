"""What has a lower number never names what has a higher one, read off the sources.

A source owns what it creates. Comments and string constants name nothing; a routine's body does.
Files from 980 on (grants, comments, version) speak of everything, and nothing speaks of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import REPO

SOURCES = sorted((REPO / "sql" / "src").glob("[0-9][0-9][0-9]_*.sql"))
FREE_FROM = 980

CREATES = re.compile(
    r"\bcreate\s+(?:or\s+replace\s+)?(?:unlogged\s+)?"
    r"(?P<kind>table|view|materialized\s+view|function|procedure|aggregate|type|domain|sequence)\s+"
    r"(?:if\s+not\s+exists\s+)?routeledger\.(?P<name>[a-z_][a-z_0-9]*)",
    re.IGNORECASE,
)
MENTIONS = re.compile(r"\brouteledger\.(?P<name>[a-z_][a-z_0-9]*)", re.IGNORECASE)


def number(file: Path) -> int:
    return int(file.name[:3])


def strip(text: str) -> str:
    """Without comments and string constants; dollar-quoted bodies stay."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    out = []
    # strings first where a line has both: a "--" inside quotes begins no comment
    token = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
    position = 0
    for match in token.finditer(text):
        out.append(text[position : match.start()])
        out.append("''" if match[0].startswith("'") else "")
        position = match.end()
    out.append(text[position:])
    return "".join(out)


def created(files: list[Path]) -> dict[str, int]:
    """The lowest number of a file that creates each object (an overload may come later)."""
    owners: dict[str, int] = {}
    for file in files:
        for match in CREATES.finditer(strip(file.read_text(encoding="utf-8"))):
            owners.setdefault(match["name"].lower(), number(file))
    return owners


def violations(files: list[Path]) -> Iterator[str]:
    owners = created(files)
    for file in files:
        if number(file) >= FREE_FROM:
            continue
        text = strip(file.read_text(encoding="utf-8"))
        for line_number, line in enumerate(text.split("\n"), 1):
            for match in MENTIONS.finditer(line):
                name = match["name"].lower()
                owner = owners.get(name)
                if owner is not None and owner > number(file):
                    yield f"{file.name}:{line_number}: routeledger.{name} is of {owner:03d}"


def test_no_source_names_what_a_later_one_owns() -> None:
    assert SOURCES
    assert list(violations(SOURCES)) == []


def test_every_source_but_the_frame_owns_something() -> None:
    owned = set(created(SOURCES).values())
    idle = [f.name for f in SOURCES if 0 < number(f) < FREE_FROM and number(f) not in owned]
    assert idle == []


@pytest.mark.parametrize(
    ("early", "found"),
    [
        ("create function routeledger.a() as $$ select routeledger.late() $$;\n", True),
        ("create view routeledger.a as select * from routeledger.late;\n", True),
        ("select 1; -- routeledger.late() comes later\n", False),
        ("raise exception using hint = 'call routeledger.late()';\n", False),
        ("select '-- no comment', routeledger.late();\n", True),
        ("select 'it''s', routeledger.early();\n", False),
    ],
)
def test_the_rule_itself(tmp_path: Path, early: str, found: bool) -> None:
    first, second = tmp_path / "100_early.sql", tmp_path / "200_late.sql"
    first.write_text(early)
    second.write_text("create or replace function routeledger.late() as $$ $$;\n")
    assert bool(list(violations([first, second]))) is found
