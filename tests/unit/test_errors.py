"""One table of errors: what the SQL raises, errors(), the driver's classes and the page agree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from routeledger import errors

REPO = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPO / "sql" / "src").glob("*.sql"))
PAGE = REPO / "docs" / "reference" / "errors.md"

# raised where there is no ledger that could raise them
DRIVER_ONLY = {"RL904", "RL905", "RL906"}


@dataclass(frozen=True)
class Entry:
    code: str
    name: str
    message: str
    hint: str
    retryable: bool


def _table() -> list[Entry]:
    (source,) = (path for path in SOURCES if path.name.startswith("010_"))
    quoted = r"'((?:[^']|'')*)'"
    row = re.compile(rf"\({quoted}, {quoted}, {quoted},\s+{quoted}, (true|false)\)")
    found = []
    for match in row.finditer(source.read_text()):
        code, name, message, hint = (word.replace("''", "'") for word in match.groups()[:4])
        found.append(Entry(code, name, message, hint, match[5] == "true"))
    return found


TABLE = _table()
CODES = {entry.code for entry in TABLE}


def _code(text: str) -> str:
    """SQL without its comments."""
    return re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE)


def _raised() -> set[str]:
    """Codes in the statements of the sources, apart from the table itself and from texts."""
    found: set[str] = set()
    for path in SOURCES:
        if path.name.startswith(("990_", "991_")):
            continue
        text = _code(path.read_text())
        if path.name.startswith("010_"):
            text = text[text.index("function routeledger._raise(") :]
        found |= set(re.findall(r"'(RL\d{3})\b", text))
    return found


def test_the_table_is_read_whole() -> None:
    text = next(path for path in SOURCES if path.name.startswith("010_")).read_text()
    body = text[: text.index("function routeledger._raise(")]
    assert len(TABLE) == len(re.findall(r"\('RL\d{3}',", body)) == len(CODES)


def test_the_sql_raises_what_the_table_lists() -> None:
    assert _raised() == CODES - DRIVER_ONLY


def test_every_code_that_the_sources_speak_of_is_listed() -> None:
    spoken = {code for path in SOURCES for code in re.findall(r"RL\d{3}", path.read_text())}
    assert spoken == CODES


def test_what_is_raised_before_there_is_a_table_says_the_same() -> None:
    entries = {entry.code: entry for entry in TABLE}
    text = next(path for path in SOURCES if path.name.startswith("000_")).read_text()
    raised = re.findall(
        r"errcode = '(RL\d{3})',\s+message = '((?:[^']|'')*)',.*?hint = '((?:[^']|'')*)'",
        text,
        flags=re.DOTALL,
    )
    assert raised
    for code, message, hint in raised:
        assert (message, hint) == (entries[code].message, entries[code].hint)


def test_the_driver_has_a_class_for_each() -> None:
    classes = {code: (kind.default_name, kind.retryable) for code, kind in errors.ERRORS.items()}
    assert classes == {entry.code: (entry.name, entry.retryable) for entry in TABLE}


def test_the_page_has_a_row_for_each() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| *`?RL\d{3}", line)
    ]
    assert [[cell.strip("`") for cell in row[:2]] + row[2:4] for row in rows] == [
        [entry.code, entry.name, entry.message, entry.hint] for entry in TABLE
    ]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.code)
def test_an_entry_reads_well(entry: Entry) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.name)
    # a message is constant and says what is wrong, a hint is a sentence and says what to do
    assert entry.message
    assert not entry.message.endswith(".")
    assert re.search(r"[.!?]$", entry.hint)
    assert len({e.name for e in TABLE}) == len({e.message for e in TABLE}) == len(TABLE)
