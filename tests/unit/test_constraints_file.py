"""constraints.toml: what is read from it, and that every fault names its line, block and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from routeledger.constraints import Declaration, FileError, OnlineStep, read
from routeledger.errors import LedgerBusy

EVERYTHING = """
# as the page shows them
[[check]]
table = "app.routing_outcomes"
name = "chosen_has_inference"
predicate = '''
decision_rule <> 'cheapest_clearing_floor' or inference_id is not null'''
if_violated = "add_not_valid"
no_inherit = true
also_drop = ["older", "\\"Oldest\\""]
label = "release 7"
lock_timeout = "2 seconds"
attempts = 20

[[check]]
table = "app.daily_costs"
name = "cost_is_not_negative"
predicate = "cost >= 0"

[[not_null]]
table = "app.routing_outcomes"
name = "agent_known"
column = "agent_id"

[[unique]]
table = 'app."Daily"'
name = "daily_key"
columns = ["day", "coalesce(agent_id, '')"]
keep = "latest updated_at, greatest n"
nulls = "not_distinct"
where = "day > '2026-01-01'"
form = "index"
children = "repoint"
triggers = "fire"
reason = "written twice in March"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "constraints.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_everything_is_read_in_order(tmp_path: Path) -> None:
    assert read(write(tmp_path, EVERYTHING)) == [
        Declaration(
            "app.routing_outcomes",
            "chosen_has_inference",
            "check",
            "decision_rule <> 'cheapest_clearing_floor' or inference_id is not null",
            None,
            {
                "if_violated": "add_not_valid",
                "no_inherit": True,
                "also_drop": ["older", '"Oldest"'],
                "label": "release 7",
                "lock_timeout": "2 seconds",
                "attempts": 20,
            },
        ),
        Declaration("app.daily_costs", "cost_is_not_negative", "check", "cost >= 0", None, {}),
        Declaration("app.routing_outcomes", "agent_known", "not_null", None, ("agent_id",), {}),
        Declaration(
            'app."Daily"',
            "daily_key",
            "unique",
            None,
            ("day", "coalesce(agent_id, '')"),
            {
                "keep": "latest updated_at, greatest n",
                "nulls": "not_distinct",
                "where": "day > '2026-01-01'",
                "form": "index",
                "children": "repoint",
                "triggers": "fire",
                "reason": "written twice in March",
            },
        ),
    ]


def test_an_empty_file_declares_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path, "# nothing yet\n")) == []


CHECK = '[[check]]\ntable = "app.t"\nname = "c"\n'
UNIQUE = "[[unique]]\nname = 'u'\ntable = 'app.t'\n"
TRAP = """
[[check]]
table = "app.t"
name = "first"
predicate = '''
a <> '
[[check]]
no_inherit = 1
' '''

[[ "check" ]]  # the second
table = "app.t"
name = "c"
also_drop = [
  "a",
  ["b"],
]
predicate = "x > 0"
"""


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("[[check]\n", None, "no TOML: Expected ']]'"),
        ("[[chek]]\n", 1, "no kind of constraint is called chek: did you mean check?"),
        (
            "\ntitle = 'ours'\n",
            2,
            "no kind of constraint is called title: there are check, not_null, unique",
        ),
        ('[check]\ntable = "t"\n', 1, "each check is a block of its own, under [[check]]"),
        ("\n\ncheck = [1]\n", 3, "[[check]] number 1: no block of keys"),
        ("check = [{nam = 1}]\n", 1, "[[check]] number 1: no key is called nam: did you mean name"),
        (
            CHECK + 'predicat = "x > 0"\n',
            4,
            "[[check]] number 1 (app.t, c): no key is called predicat: did you mean predicate?",
        ),
        (
            CHECK + 'predicate = "x > 0"\nkeep = "latest at"\n',
            5,
            "[[check]] number 1 (app.t, c): no key is called keep: there are table, name, predicate",
        ),
        (CHECK + "[check.keep]\n", 1, "[[check]] number 1 (app.t, c): no key is called keep"),
        (CHECK + "keep.it = 1\n", 4, "[[check]] number 1 (app.t, c): no key is called keep"),
        (
            CHECK,
            1,
            "[[check]] number 1 (app.t, c): predicate is missing: it must be a text in quotes",
        ),
        (CHECK + "predicate = ''\n", 1, "[[check]] number 1 (app.t, c): predicate is missing"),
        (CHECK + "predicate = 1\n", 4, "[[check]] number 1 (app.t, c): predicate must be a text"),
        (
            CHECK + "predicate = 'x > 0'\nno_inherit = 'yes'\n",
            5,
            "[[check]] number 1 (app.t, c): no_inherit must be true or false, without quotes",
        ),
        (
            CHECK + "predicate = 'x > 0'\n[[check]]\ntable = 'app.u'\npredicate = 'y > 0'\n",
            5,
            "[[check]] number 2 (app.u): name is missing",
        ),
        (TRAP, 14, "[[check]] number 2 (app.t, c): also_drop must be a list of texts, such as ["),
        (
            CHECK + "predicate = 'x > 0'\n\n" + UNIQUE + "columns = 'a, b'\n",
            9,
            "[[unique]] number 1 (app.t, u): columns must be a list of texts",
        ),
        (
            UNIQUE + "columns = ['a', 2]\n",
            4,
            "[[unique]] number 1 (app.t, u): columns must be a list of texts",
        ),
        (
            CHECK + "predicate = 'x > 0'\nattempts = true\n",
            5,
            "[[check]] number 1 (app.t, c): attempts must be a whole number",
        ),
        (UNIQUE + "columns = []\n", 1, "[[unique]] number 1 (app.t, u): columns is missing"),
        (
            "[[not_null]]\nname = 'u'\ntable = 'app.t'\n",
            1,
            "[[not_null]] number 1 (app.t, u): column is missing",
        ),
        (
            CHECK + "predicate = 'x > 0'\n" + CHECK + "predicate = 'x > 1'\n",
            5,
            "app.t, c: declared twice, here and as app.t at ",
        ),
    ],
)
def test_a_fault_names_line_block_and_key(
    tmp_path: Path, text: str, line: int | None, fault: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(FileError) as raised:
        read(file)
    place = file if line is None else f"{file}:{line}"
    assert str(raised.value).startswith(f"{place}: {fault}")


def test_each_declaration_knows_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, EVERYTHING)
    assert [one.place for one in read(file)] == [f"{file}:{line}" for line in (3, 15, 20, 25)]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "constraints.toml"
    file.write_bytes(b"\xff\xfe[")
    with pytest.raises(FileError, match="no TOML"):
        read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "constraints.toml")


def test_a_step_as_it_is_shown() -> None:
    about = OnlineStep(3, "run", "create unique index concurrently k on app.t (a)")
    assert str(about) == "3: create unique index concurrently k on app.t (a)"
    before = OnlineStep(4, "collapse", "select …")
    assert str(before) == "4: a batch of duplicates"
    batch = OnlineStep(4, "collapse", "select …", 0.25, {"groups": 3, "removed": 4000})
    assert str(batch) == "4: 0.2 s: 3 keys, 4,000 rows removed"
    attached = OnlineStep(6, "run", "select …", 0.25, {"outcome": "created", "detail": {"a": 1}})
    assert str(attached) == "6: 0.2 s: created"
    again = OnlineStep(5, "run", "…", 1.0, None, LedgerBusy("canceling statement"))
    assert str(again) == "5: 1.0 s, and again: canceling statement"
    assert str(OnlineStep(5, "run", "…", 2.0)) == "5: 2.0 s"
    assert "waiting" in str(OnlineStep(0, "wait", ""))
