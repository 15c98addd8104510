"""Pattern quality: the formulas against readings of their own, and `latest` against every order.

v1 is written down a second time here, in fractions, and the database has to agree on generated
patterns. v2 is compared with what Python's own parser and tokenizer say of real code, and each way
in which it differs from v1 is a case of a table.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import string
import sysconfig
import tokenize
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.property.ledger import NOON, THOROUGH, Connection, refusal, set_clock
from tests.servers import REPO

pytestmark = pytest.mark.property

Pattern = dict[str, Any]

DIMENSIONS: Final = (
    "completeness",
    "documentation",
    "architecture_compliance",
    "metadata_richness",
    "complexity_fit",
)
WEIGHTS: Final = [Fraction(w, 100) for w in (30, 25, 20, 15, 10)]
ONEX: Final = {
    "Effect": "async def execute_effect",
    "Compute": "async def execute_compute",
    "Reducer": "async def execute_reduction",
    "Orchestrator": "async def execute_orchestration",
}
EXAMPLES: Final = 1000 if THOROUGH else 60

# -- the formulas v1, once more ---------------------------------------------------------------


def ascii_lower(text: str) -> str:
    return text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))


def part(numerator: int, denominator: int) -> Fraction:
    return Fraction(numerator, denominator)


def v1_completeness(code: str) -> Fraction:
    if not code:
        return Fraction(0)
    score = Fraction(1)
    for marker in ("pass", "TODO", "NotImplemented", "...", "raise NotImplementedError"):
        if marker in code:
            score -= part(2, 10)
    if any(word in code for word in ("if ", "for ", "while ", "async def ", "class ")):
        score += part(1, 10)
    if "import " in code:
        score += part(5, 100)
    return score + min(part(15, 100), part(len(code.split("\n")), 100))


def v1_documentation(code: str, text: str) -> Fraction:
    score = Fraction(0)
    if '"""' in code or "'''" in code:
        score += part(4, 10)
    score += min(part(2, 10), part(sum("#" in line for line in code.split("\n")), 20))
    if re.search(r"(:|->)\s*\w", code, re.ASCII):
        score += part(2, 10)
    if len(text) > 100:
        score += part(2, 10)
    return score


def v1_architecture(name: str, code: str, node_type: str) -> Fraction:
    if not node_type:
        return part(5, 10) if any(known in name for known in ONEX) else part(3, 10)
    score = part(7, 10)
    if ascii_lower(node_type) in ascii_lower(name):
        score += part(15, 100)
    methods = {ascii_lower(known): method for known, method in ONEX.items()}
    method = methods.get(ascii_lower(node_type))
    if method is not None and method in code:
        score += part(15, 100)
    return score


def v1_complexity(code: str, declared: str) -> Fraction:
    if not code or not declared:
        return part(4, 10)
    branches = sum(code.count(word) for word in ("if ", "for ", "while ", "except "))
    found = "low" if branches < 3 else "medium" if branches < 8 else "high"
    return Fraction(1) if ascii_lower(declared) == found else part(6, 10)


def v1_metadata(use_cases: list[Any], examples: list[Any], fields: dict[str, Any]) -> Fraction:
    return (
        min(part(4, 10), part(len(use_cases), 3) * part(4, 10))
        + min(part(3, 10), part(len(examples), 2) * part(3, 10))
        + (part(3, 10) if len(fields) > 3 else 0)
    )


def reference(pattern: Pattern) -> tuple[list[Fraction], Fraction, str]:
    """Dimensions, composite and rating by v1, exactly."""
    name, code, text, node_type, declared = (
        pattern.get(field) or ""
        for field in ("pattern_name", "code", "text", "node_type", "complexity")
    )
    dimensions = [
        min(Fraction(1), max(Fraction(0), score))
        for score in (
            v1_completeness(code),
            v1_documentation(code, text),
            v1_architecture(name, code, node_type),
            v1_metadata(
                pattern.get("use_cases") or [],
                pattern.get("examples") or [],
                pattern.get("metadata") or {},
            ),
            v1_complexity(code, declared),
        )
    ]
    mean = sum((w * d for w, d in zip(WEIGHTS, dimensions, strict=True)), Fraction(0))
    limits = ((part(9, 10), "excellent"), (part(7, 10), "good"), (part(5, 10), "fair"))
    return dimensions, mean, next((word for limit, word in limits if mean >= limit), "poor")


# -- the world --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(server: Any, template: str) -> Iterator[Database]:
    made = Database(server, server.create_database(template))
    yield made
    server.drop_database(made.name)


@pytest.fixture(scope="module")
def owner(database: Database) -> Iterator[Connection]:
    with database.connect() as conn:
        conn.execute("set client_min_messages = error")
        conn.execute("set timezone = 'UTC'")
        set_clock(conn, NOON)
        yield conn


@pytest.fixture(scope="module")
def writer(database: Database) -> Iterator[Connection]:
    """A writer, as the driver and the command line are."""
    with database.connect("writer") as conn:
        conn.execute("set client_min_messages = error")
        yield conn


def score(
    conn: Connection, patterns: Sequence[Pattern], version: str = "v2", rule_set: str = "onex"
) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """
            select s.*
            from jsonb_array_elements(%s) with ordinality e (pattern, n)
            cross join lateral routeledger.score_pattern(e.pattern, %s, %s) s
            order by e.n
            """,
            [Jsonb(list(patterns)), version, rule_set],
        ).fetchall()


def one(conn: Connection, pattern: Pattern, version: str = "v2") -> dict[str, Any]:
    return score(conn, [pattern], version)[0]


def persist(conn: Connection, rows: Sequence[Any]) -> dict[str, Any]:
    return call(conn, "persist_pattern_quality", rows)


def call(conn: Connection, routine: str, rows: Sequence[Any], *more: Any) -> dict[str, Any]:
    holes = ", ".join(["%s"] * (1 + len(more)))
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"select * from routeledger.{routine}({holes})", [Jsonb(list(rows)), *more])
        (found,) = cursor.fetchall()
    counted = ("collapsed", "inserted", "updated", "unchanged", "refused")
    assert found["received"] == len(rows) == sum(found[name] for name in counted), found
    assert found["refused"] == len(found["refusals"])
    return found


def stored(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute(
        "select m.* from routeledger.pattern_quality_metrics m order by m.pattern_id"
    ).fetchall()


# -- patterns ---------------------------------------------------------------------------------

PIECES = [
    *("pass", "password", "TODO", "todo", "NotImplemented", "...", ". . .", "…"),
    *("raise NotImplementedError", "raise NotImplementedError()", "return NotImplemented"),
    *("if ", "elif ", "if(", "for ", "while ", "while(", "except ", "except:", "async def "),
    *("class ", "subclass ", "def f(x: int) -> str:", "import ", "from x import y", "@overload"),
    *('"""', "'''", '"', "'", "\\", "#", "# ", ":", "->", ": ", "->\t", "= ", "(", ")", ", "),
    *("\n", "\n", "\n\n", "\r\n", "\r", "\t", " ", "    ", "\u2028", "\x0b", "\x0c", "\x85"),
    *("x", "word_1", "é", "日本", "😀", "ſ", "K", "%", ".*", "$1", "\\1"),
    *ONEX.values(),
]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=150)
codes = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(PIECES), texts), max_size=40).map(
        "".join
    ),
    texts,
)
names = st.one_of(
    st.lists(
        st.sampled_from([*ONEX, *map(str.lower, ONEX), "EFFECT", "Node", "_", "ive", "É", "K"]),
        max_size=5,
    ).map("".join),
    texts,
)
node_types = st.one_of(
    st.sampled_from([*ONEX, *map(str.upper, ONEX), "", " ", "Gateway", "Effects", "ORCHEſTRATOR"]),
    names,
)
declared_words = st.one_of(
    st.sampled_from(["low", "LOW", "Medium", "high", "HIGH", "", "extreme", " low "]), texts
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["", " ", "a", "b"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
arrays = st.lists(json_values, max_size=6)
objects = st.dictionaries(texts, json_values, max_size=6)
patterns = st.fixed_dictionaries(
    {},
    optional={
        "pattern_name": st.one_of(st.none(), names),
        "code": st.one_of(st.none(), codes, codes, codes),
        "text": st.one_of(st.none(), texts, st.integers(98, 103).map(lambda n: "é" * n)),
        "node_type": st.one_of(st.none(), node_types),
        "use_cases": st.one_of(st.none(), arrays),
        "examples": st.one_of(st.none(), arrays),
        "metadata": st.one_of(st.none(), objects),
        "complexity": st.one_of(st.none(), declared_words),
        "something else": json_values,
    },
)


def well_formed(row: dict[str, Any], version: str) -> None:
    """What is true of every score."""
    for name in (*DIMENSIONS, "quality_score"):
        assert 0 <= row[name] <= 1, (name, row)
    mean = math.fsum(float(w) * row[d] for w, d in zip(WEIGHTS, DIMENSIONS, strict=True))
    assert row["quality_score"] == pytest.approx(mean, rel=0, abs=1e-12)
    assert row["version"] == f"{version}/onex/1"
    exact = round(row["quality_score"], 12)
    rating = "excellent" if exact >= 0.9 else "good" if exact >= 0.7 else "fair"
    assert row["rating"] == (rating if exact >= 0.5 else "poor")


# -- v1 ---------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES)
@given(st.lists(patterns, min_size=1, max_size=20))
@example([{}])
@example([{"code": "raise NotImplementedError"}])
@example([{"code": "x\n" * n} for n in range(20)])
@example([{"code": "#\n" * n} for n in range(8)])
@example([{"code": "x:\r\n\ty"}, {"code": "x: é"}, {"code": ":\xa0x"}, {"code": "->  _"}])
@example([{"use_cases": [None] * n, "examples": [None] * n} for n in range(5)])
@example([{"metadata": dict.fromkeys("abcdef"[:n])} for n in range(6)])
@example([{"code": "if " * n, "complexity": w} for n in range(10) for w in ("low", "high")])
def test_v1_is_the_formula(owner: Connection, found: list[Pattern]) -> None:
    for pattern, row in zip(found, score(owner, found, "v1"), strict=True):
        dimensions, mean, rating = reference(pattern)
        well_formed(row, "v1")
        for name, exact in zip(DIMENSIONS, dimensions, strict=True):
            assert row[name] == pytest.approx(float(exact), rel=0, abs=1e-12), (name, pattern)
        assert row["quality_score"] == pytest.approx(float(mean), rel=0, abs=1e-12)
        assert row["rating"] == rating


WHOLE: Final[Pattern] = {
    "pattern_name": "NodeDatabaseEffect",
    "node_type": "effect",
    "code": '"""Doc."""\nimport x\nasync def execute_effect(a: int): if a: return 1\n'
    + "# c\n" * 4,
    "text": "t" * 101,
    "use_cases": ["a", "b", "c"],
    "examples": ["a", "b"],
    "metadata": dict.fromkeys("abcd", 1),
    "complexity": "Low",
}


def test_v1_at_its_limits(owner: Connection) -> None:
    row = one(owner, WHOLE, "v1")
    assert [row[name] for name in DIMENSIONS] == [1, 1, 1, 1, 1]
    assert (row["quality_score"], row["rating"]) == (1, "excellent")
    markers = "pass TODO ... raise NotImplementedError"
    assert one(owner, {"code": markers}, "v1")["completeness"] == pytest.approx(0.01)
    assert one(owner, {"code": markers * 1000}, "v1")["completeness"] == pytest.approx(0.01)
    assert one(owner, {"code": "abc" * 5}, "v1")["completeness"] == 1
    # a dot of the marker is a dot
    assert one(owner, {"code": "TODO abc pass"}, "v1")["completeness"] == pytest.approx(0.61)


@pytest.mark.parametrize(
    ("code", "lines"),
    [("x", 1), ("x\n", 2), ("x\r\n", 2), ("x\ry", 1), ("x\u2028y\x0by\x0cy\x85", 1), ("\n\n", 3)],
)
def test_v1_counts_lines_by_line_feeds(owner: Connection, code: str, lines: int) -> None:
    code += "TODO"
    assert len(code.split("\n")) == lines
    row = one(owner, {"code": code}, "v1")
    assert row["completeness"] == pytest.approx(0.8 + lines / 100, rel=0, abs=1e-12)


def test_thresholds_are_met_on_paper(owner: Connection) -> None:
    # 0.30 + 0.25 + 0.20 + 0.15 * 0.4 / 3 + … : thirds must not cost a rating
    base = {**WHOLE, "examples": [], "metadata": {}, "use_cases": ["a"]}
    row = one(owner, {**base, "complexity": "high"}, "v1")
    assert row["quality_score"] == pytest.approx(0.75 + 0.02 + 0.06)
    # 0.3 + 0.25 * 0.8 + 0.2 + 0.15 * (0.4 / 3 + 0.3 + 0.3) … = 0.9 exactly
    near = {**WHOLE, "text": "", "use_cases": ["a"], "complexity": "low"}
    exact = reference(near)[1]
    assert one(owner, near, "v1")["quality_score"] == float(exact)
    tried = [
        {**WHOLE, "use_cases": u, "examples": e, "metadata": m, "text": t, "complexity": c}
        for u in (["a"] * n for n in range(4))
        for e in ([], ["a"], ["a", "b"])
        for m in ({}, WHOLE["metadata"])
        for t in ("", WHOLE["text"])
        for c in ("low", "high", "")
    ]
    for pattern, found in zip(tried, score(owner, tried, "v1"), strict=True):
        assert found["rating"] == reference(pattern)[2], (pattern, found)
    assert any(reference(pattern)[1] == part(9, 10) for pattern in tried)


# -- v2 ---------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES)
@given(st.lists(patterns, min_size=1, max_size=20))
def test_v2_is_a_score(owner: Connection, found: list[Pattern]) -> None:
    rows = score(owner, found)
    for row in rows:
        well_formed(row, "v2")
    assert score(owner, found) == rows
    # other line ends are the same lines
    for end in ("\r\n", "\r"):
        other = [
            {**p, "code": re.sub("\r\n?|\n", end, p["code"])} if p.get("code") else p for p in found
        ]
        assert score(owner, other) == rows


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.sampled_from([p for p in PIECES if not set(p) & set("\"'\\\n\r#")]), max_size=20),
    st.sampled_from(['"', "'", '"""', "'''"]),
)
def test_v2_does_not_look_into_strings(owner: Connection, pieces: list[str], quotes: str) -> None:
    code = "def f(x):\n    y = {}\n    return y\n"
    plain = {"code": code.format(quotes + quotes), "complexity": "low"}
    rows = score(owner, [plain, {**plain, "code": code.format(quotes + "".join(pieces) + quotes)}])
    assert rows[0] == rows[1]


@settings(max_examples=EXAMPLES)
@given(
    st.lists(
        st.sampled_from([p for p in PIECES if not set(p) & set("\n\r") and p != "TODO"]),
        max_size=20,
    )
)
def test_v2_finds_nothing_but_todo_in_comments(owner: Connection, pieces: list[str]) -> None:
    plain = {"code": "def f(x):\n    return x  # y\n", "complexity": "low"}
    noted = {**plain, "code": f"def f(x):\n    return x  # y {''.join(pieces)}\n"}
    rows = score(owner, [plain, noted])
    assert rows[0] == rows[1]


@dataclass(frozen=True)
class Difference:
    """A pattern on which v1 and v2 differ in one dimension, and only there."""

    name: str
    pattern: Pattern
    dimension: str
    v1: float
    v2: float


def code(name: str, text: str, v1: float, v2: float, dimension: str = "completeness") -> Difference:
    return Difference(name, {"code": text}, dimension, v1, v2)


def shape(name: str, given: Pattern, v1: float, v2: float) -> Difference:
    return Difference(name, given, "architecture_compliance", v1, v2)


DIFFERENCES: Final = [
    # completeness: one line gives 0.01, and more than 1 is 1
    code("pass in a word", "password = bypass(1)", 0.81, 1),
    code("pass in a string", "x = 'pass'", 0.81, 1),
    code("pass in a comment", "x = 1  # pass it on", 0.81, 1),
    code("pass in an except clause", "try:\n  x()\nexcept E:\n  pass", 0.84, 1),
    code("pass in an exception", "class E(Exception):\n  '''Doc.'''\n\n  pass", 0.94, 1),
    code("ellipsis in a type", "x = tuple[int, ...]", 0.81, 1),
    code("ellipsis in a slice", "y = x[..., 0]", 0.81, 1),
    code("ellipsis as a default", "x = Field(...)", 0.81, 1),
    code("ellipsis in a string", "print('wait...')", 0.81, 1),
    code("ellipsis in a comment", "x = 1  # and so on ...", 0.81, 1),
    code("ellipsis of a protocol", "class P(Protocol):\n  def f(self): ...\n", 0.93, 1),
    code("ellipsis of an overload", "@overload\ndef f(a: A) -> B: ...\n", 0.83, 1),
    code(
        "ellipsis of an abstract method",
        "@abc.abstractmethod\n@other(1)\nasync def f(\n  a=(1, g(2)),\n) -> dict[str, int]:\n"
        '  """Doc."""\n  ...\n',
        0.98,
        1,
    ),
    code(
        "error of an abstract method",
        "@abstractmethod\ndef f():\n  raise NotImplementedError",
        0.63,
        1,
    ),
    code("NotImplemented as an answer", "return NotImplemented", 0.81, 1),
    code("NotImplementedError caught", "x = NotImplementedError", 0.81, 1),
    code("TODO in a word", "x = TODOS + Status.TODO", 0.81, 1),
    code("TODO in a string", "x = 'TODO'", 0.81, 1),
    code("FIXME in a comment", "x = 1  # FIXME later", 1, 0.81),
    code("if in a string", "x = 'what if TODO'; pass", 0.71, 0.81),
    code("for in prose", "pass  # for one", 0.91, 0.81),
    code("keyword in a word", "pass;elif_ = subclass + 1", 0.91, 0.81),
    code("keyword before a parenthesis", "while(1):\n  pass", 0.82, 0.92),
    code("keyword before a line break", "pass\nwhile\\\n  x: y", 0.83, 0.93),
    code("two blanks in async def", "async  def f(): pass", 0.81, 0.91),
    code("import in a comment", "pass  # import x", 0.86, 0.81),
    code("import with from", "from x import(y);pass", 0.81, 0.86),
    code("comments only", "# nothing here\n", 1, 0),
    code("a docstring only", '"""Nothing here."""\n', 1, 0),
    code("white space only", " \n\t\n", 1, 0),
    code("blank lines", "pass\n\n\n\n\n\n", 0.87, 0.81),
    # documentation
    code("triple quotes that are data", "x = '''data'''", 0.4, 0, "documentation"),
    code("docstring in single quotes", "def f():\n  'Doc.'\n", 0, 0.4, "documentation"),
    code(
        "docstring after a long head",
        "def f(\n  a,  # first\n  b=(1, 2)\n):\n\n  r'''Doc.'''\n  return a",
        0.65,
        0.45,
        "documentation",
    ),
    code("number sign in a string", "x = ['#', '#fff']", 0.05, 0, "documentation"),
    code("comments that say nothing", "x = 1\n#\n####\n", 0.1, 0, "documentation"),
    code("colon of a dict", "x = {'a': b, c: d}", 0.2, 0, "documentation"),
    code("colon of a slice", "y = x[1:n]", 0.2, 0, "documentation"),
    code("colon of a lambda", "y = lambda x: x", 0.2, 0, "documentation"),
    code("colon of a block", "if x: y\nelse: z\ntry: a\nexcept: b", 0.2, 0, "documentation"),
    code("colon in a string", "x = 'a: b'", 0.2, 0, "documentation"),
    code("hint in quotes", "def f(a: 'A'): 'b'", 0, 0.2, "documentation"),
    Difference("blank text", {"text": " " * 200}, "documentation", 0.2, 0),
    # architecture
    shape("a name in another case", {"pattern_name": "database_effect_node"}, 0.3, 0.5),
    shape("a type within a word", {"pattern_name": "EffectiveNode"}, 0.5, 0.3),
    shape("an unknown type", {"node_type": "banana", "pattern_name": "Banana"}, 0.85, 0.3),
    shape(
        "an unknown type and a name", {"node_type": "banana", "pattern_name": "AnEffect"}, 0.7, 0.5
    ),
    shape(
        "a type of two words", {"node_type": "EffectNode", "pattern_name": "DBEffect"}, 0.7, 0.85
    ),
    shape(
        "the type as part of a word",
        {"node_type": "effect", "pattern_name": "Effective"},
        0.85,
        0.7,
    ),
    shape("a blank type", {"node_type": " ", "pattern_name": "MyEffect"}, 0.7, 0.5),
    shape(
        "method in a comment",
        {"node_type": "effect", "code": "# async def execute_effect"},
        0.85,
        0.7,
    ),
    shape(
        "method in a string",
        {"node_type": "effect", "code": "'async def execute_effect'"},
        0.85,
        0.7,
    ),
    shape(
        "a longer method", {"node_type": "effect", "code": "async def execute_effects()"}, 0.85, 0.7
    ),
    shape(
        "method with two blanks",
        {"node_type": "Effect", "code": "async  def execute_effect()"},
        0.7,
        0.85,
    ),
    # metadata
    Difference("use cases of nothing", {"use_cases": [None, "", " "]}, "metadata_richness", 0.4, 0),
    Difference(
        "one use case thrice", {"use_cases": ["a", "a", " a"]}, "metadata_richness", 0.4, 0.4 / 3
    ),
    Difference("an example twice", {"examples": [{"a": 1}] * 2}, "metadata_richness", 0.3, 0.15),
    Difference(
        "empty fields",
        {"metadata": {"a": 1, "b": None, "c": "", "d": []}},
        "metadata_richness",
        0.3,
        0,
    ),
    # complexity
    Difference(
        "if in a string", {"code": "x = 'if if if '", "complexity": "low"}, "complexity_fit", 0.6, 1
    ),
    Difference(
        "if in a comment", {"code": "x # if if if y", "complexity": "low"}, "complexity_fit", 0.6, 1
    ),
    Difference(
        "if in a word",
        {"code": "elif_ = motif + x if y else serif - xif + z", "complexity": "low"},
        "complexity_fit",
        0.6,
        1,
    ),
    Difference(
        "no blank",
        {"code": "if(x):\n while\\\n (x):\n  if x\\\n: y\nexcept: z", "complexity": "medium"},
        "complexity_fit",
        0.6,
        1,
    ),
    Difference("another word", {"code": "x", "complexity": "extreme"}, "complexity_fit", 0.6, 0.4),
    Difference("blanks around", {"code": "x", "complexity": " Low\n"}, "complexity_fit", 0.6, 1),
]


@pytest.mark.parametrize("case", DIFFERENCES, ids=lambda c: f"{c.dimension}, {c.name}")
def test_v2_differs(owner: Connection, case: Difference) -> None:
    assert case.v1 != case.v2
    assert one(owner, case.pattern, "v1")[case.dimension] == pytest.approx(case.v1)
    assert one(owner, case.pattern)[case.dimension] == pytest.approx(case.v2)


STUBS: Final = [
    ("def f(): pass", 0.81),
    ("def f():\n  pass", 0.82),
    ("class A: pass", 0.91),
    ("class A():\n  '''Doc.'''\n  pass", 0.93),
    ("if x: pass", 0.91),
    ("x = 1; pass", 0.81),
    ("pass # nothing", 0.81),
    ("def f(): ...", 0.81),
    ("def f(x: tuple[int, ...]):\n  ...", 0.82),
    ("def f(): raise NotImplementedError", 0.61),
    ("def f():\n  raise NotImplementedError('later')", 0.62),
    ("def f(): raise NotImplemented", 0.61),
    ("# TODO: all\nx = 1", 0.81),
    ("x = 1 # TODO", 0.81),
    ("@overload\ndef f(): ...\ndef g(): ...", 0.83),
    ("@abstractmethod\ndef f(): ...\nclass P(Protocol): ...\ndef g(): pass", 0.94),
    (
        "class P(Protocol):\n  def f(): ...\n\n  x: int = ...\nclass Q(Protocol):\n  ...\ndef f(): ...",
        0.96,
    ),
    ("except_ = 1\nclass E(B):\n  pass\npass", 0.94),
]


@pytest.mark.parametrize(("text", "expected"), STUBS)
def test_v2_still_finds_what_is_unfinished(owner: Connection, text: str, expected: float) -> None:
    row = one(owner, {"code": text})
    assert row["completeness"] == pytest.approx(expected)


# -- v2 against Python's own reading of real code ---------------------------------------------


@dataclass
class Tokens:
    names: list[str]
    comments: list[str]
    lines: set[int]


def tokens_of(source: str) -> Tokens:
    """Names, comments and lines with code; what is inside an f-string is inside a string."""
    found = Tokens([], [], set())
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("FSTRING_START", "TSTRING_START"):
            found.lines.add(token.start[0])
            depth += 1
        elif kind in ("FSTRING_END", "TSTRING_END"):
            depth -= 1
        elif depth:
            continue
        elif kind == "COMMENT":
            found.comments.append(token.string)
        elif kind in ("NAME", "NUMBER", "OP", "STRING"):
            found.lines.add(token.start[0])
            if kind == "NAME":
                found.names.append(token.string)
    return found


def is_text(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def is_ellipsis(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and value.value is Ellipsis


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def intended(tree: ast.Module) -> set[int]:
    """The statements that look like stubs and are none."""
    found: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        first = [s for s in body if not is_text(s)] if isinstance(body, list) else []
        if isinstance(node, ast.ClassDef):
            if any("Protocol" in ast.unparse(base) for base in node.bases) and not node.col_offset:
                found |= {id(inner) for inner in ast.walk(node)}
            if (node.bases or node.keywords) and first and isinstance(first[0], ast.Pass):
                found.add(id(first[0]))
        elif isinstance(node, ast.ExceptHandler) and isinstance(node.body[0], ast.Pass):
            found.add(id(node.body[0]))
        elif isinstance(node, FUNCTIONS) and first:
            words = [
                ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list
            ]
            if any(word.startswith("abstract") or word == "overload" for word in words):
                found.add(id(first[0]))
    return found


def is_raised(node: ast.AST) -> bool:
    if not isinstance(node, ast.Raise) or node.exc is None:
        return False
    return ast.unparse(node.exc).partition("(")[0] in ("NotImplementedError", "NotImplemented")


def is_hinted(node: ast.AST) -> bool:
    if isinstance(node, FUNCTIONS):
        a = node.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        return node.returns is not None or any(x.annotation for x in arguments if x)
    return isinstance(node, ast.AnnAssign)


def read_by_python(source: str) -> tuple[float, float, float]:
    """Completeness, documentation and complexity fit (declared low) of code that Python parses."""
    tree = ast.parse(source)
    tokens = tokens_of(source)
    fine = intended(tree)
    nodes = list(ast.walk(tree))
    left = [node for node in nodes if id(node) not in fine]
    todo = any(re.search(r"\b(TODO|FIXME)\b", c, re.ASCII) for c in tokens.comments)
    shaped = not {"if", "for", "while", "class"}.isdisjoint(tokens.names)
    shaped |= ("async", "def") in pairwise(tokens.names)
    completeness = (
        1
        - 0.2 * any(isinstance(node, ast.Pass) for node in left)
        - 0.2 * todo
        - 0.2 * any(map(is_ellipsis, left))
        - 0.4 * any(map(is_raised, left))
        + 0.1 * shaped
        + 0.05 * any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes)
        + min(0.15, len(tokens.lines) / 100)
    )
    documented = any(
        isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node)
        for node in nodes
    )
    words = sum(bool(re.search(r"\w", c, re.ASCII)) for c in tokens.comments)
    documentation = 0.4 * documented + min(0.2, words / 20) + 0.2 * any(map(is_hinted, nodes))
    branches = sum(name in ("if", "elif", "for", "while", "except") for name in tokens.names)
    return min(1, max(0, completeness)), documentation, 1.0 if branches < 3 else 0.6


def real_code() -> list[str]:
    """Modules of the standard library and of this project, and their classes and functions."""
    files = [
        *sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")),
        *sorted((REPO / "pydriver").rglob("*.py")),
        *sorted((REPO / "tests").rglob("*.py")),
    ]
    found = []
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        if not tree.body or "\f" in source:
            continue
        lines = source.split("\n")
        found.append(source)
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found.append("\n".join(lines[first - 1 : node.end_lineno]))
    return found


def test_v2_reads_real_code_as_python_does(owner: Connection) -> None:
    sources = real_code()[:: 1 if THOROUGH else 3]
    assert len(sources) > 500
    wrong = 0
    for at in range(0, len(sources), 500):
        batch = sources[at : at + 500]
        rows = score(owner, [{"code": source, "complexity": "low"} for source in batch])
        for source, row in zip(batch, rows, strict=True):
            found = row["completeness"], row["documentation"], row["complexity_fit"]
            wrong += found != pytest.approx(read_by_python(source))
    # regular expressions do not parse: a dict over several lines may look like annotations
    assert wrong <= len(sources) // 200, f"{wrong} of {len(sources)}"


# -- size -------------------------------------------------------------------------------------

MEGABYTE: Final = 1_000_000
HUGE: Final = [
    *("x", "\n", " ", "#", "#\n", "'", '"', '"""', "'\"", '""x', "\\", '\\"', "é→", "a: b, ", "; "),
    *("if ", "async ", "raise ", "import ", "except:\n", "except ", "@a.", "@overload\n", "...\n"),
    *("pass\n", "class A(\n", "class A(b):\n\n", "class P(Protocol):\n", "def f(", "def f(a,"),
    *("def f[", "def f():\n\n", ")\n->", "@overload\ndef f(", "@overload\ndef f() ->", "():"),
    "@abstractmethod\ndef f(a: int) -> str:\n    '''Doc.'''\n    ...\n",
    "class A(b): pass\n",
    "Effect",
    "EFFECt1",
]


@pytest.mark.parametrize("piece", HUGE, ids=ascii)
def test_a_megabyte(owner: Connection, piece: str) -> None:
    """No text makes the time explode: what takes hours otherwise is over within the limit."""
    text = piece * (MEGABYTE // len(piece))
    tried = [
        {"code": text, "complexity": "low", "node_type": "effect"},
        {"code": f"{text}x\n\n@overload\ndef f(): ...\npass\n", "pattern_name": text},
        {"code": '"""' + text, "text": text, "node_type": text},
    ]
    with owner.transaction():
        owner.execute("set local statement_timeout = '60s'")
        for row, pattern in zip(score(owner, tried, "v1"), tried, strict=True):
            assert row["quality_score"] == pytest.approx(float(reference(pattern)[1]))
        for row in score(owner, tried):
            well_formed(row, "v2")


def test_a_pattern_is_at_most_16_mib(owner: Connection) -> None:
    owner.execute("select routeledger.score_pattern(%s)", [Jsonb({"code": "x" * 16_700_000})])
    with pytest.raises(psycopg.Error) as caught:
        owner.execute("select routeledger.score_pattern(%s)", [Jsonb({"code": "x" * 16_800_000})])
    assert refusal(caught.value).detail == {"parameter": "pattern", "allowed": "16 MiB"}


# -- bad patterns -----------------------------------------------------------------------------

WRONG_TYPES: Final = {
    "string": [5, 1.5, True, ["a"], {"a": 1}],
    "array": [5, "a", True, {"a": 1}],
    "object": [5, "a", True, ["a"]],
}
FIELDS: Final = {
    **dict.fromkeys(("pattern_name", "code", "text", "node_type", "complexity"), "string"),
    **dict.fromkeys(("use_cases", "examples"), "array"),
    "metadata": "object",
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_another_type(owner: Connection, writer: Connection, name: str) -> None:
    for value in WRONG_TYPES[FIELDS[name]]:
        pattern = {**WHOLE, name: value}
        for version in ("v1", "v2"):
            with pytest.raises(psycopg.Error) as caught:
                score(owner, [pattern], version)
            answer = refusal(caught.value)
            assert (answer.code, answer.detail["parameter"]) == ("RL107", name)
        found = call(
            writer, "score_patterns", [{"pattern_id": str(uuid.uuid4()), "pattern": pattern}]
        )
        (refused,) = found["refusals"]
        assert (refused["ord"], refused["code"]) == (1, "RL107")
        assert refused["detail"]["parameter"] == name
        assert (refused["message"], refused["hint"]) == (answer.message, answer.hint)


@pytest.mark.parametrize("value", [None, 5, "{}", True, [], [{}]], ids=repr)
def test_a_pattern_that_is_no_object(owner: Connection, value: Any) -> None:
    with pytest.raises(psycopg.Error) as caught:
        owner.execute("select routeledger.score_pattern(%s)", [Jsonb(value)])
    answer = refusal(caught.value)
    assert (answer.code, answer.detail["parameter"]) == ("RL107", "pattern")


# -- rule sets --------------------------------------------------------------------------------


def set_rules(conn: Connection, name: str, rules: Any) -> tuple[int, bool]:
    row = conn.execute(
        "select r.version, r.created from routeledger.set_pattern_rules(%s, %s) r",
        [name, Jsonb(rules)],
    ).fetchone()
    assert row is not None
    return row


def test_a_project_has_its_own_rules(owner: Connection, database: Database) -> None:
    pattern = {
        "pattern_name": "OrderSagaService",
        "node_type": "Service",
        "code": "def handle(order):\n    return order\n",
    }
    service = {"node_type": "Service", "method": "def handle"}
    saga = {"node_type": "Saga", "method": None}
    with database.connect("admin") as admin:
        assert set_rules(admin, "shop", [service, saga]) == (1, True)
        assert set_rules(admin, "shop", [saga, service]) == (1, False)
        for version in ("v1", "v2"):
            (row,) = score(owner, [pattern], version, "shop")
            assert (row["architecture_compliance"], row["version"]) == (1, f"{version}/shop/1")
            assert one(owner, pattern, version)["version"] == f"{version}/onex/1"
        assert set_rules(admin, "shop", [saga]) == (2, True)
        assert score(owner, [pattern], "v2", "shop")[0]["architecture_compliance"] == 0.5
        assert set_rules(admin, "shop", []) == (3, True)
        assert score(owner, [pattern], "v2", "shop")[0]["architecture_compliance"] == 0.3
        assert set_rules(admin, "shop", [service, saga]) == (4, True)
        kept = owner.execute(
            """
            select r.version, count(*) from routeledger.pattern_rules r
            where r.rule_set = 'shop' group by r.version order by r.version
            """
        ).fetchall()
        assert kept == [(1, 2), (2, 1), (4, 2)]


def test_rule_sets_changed_at_once(database: Database) -> None:
    def change(n: int) -> tuple[int, bool]:
        with database.connect("admin") as conn:
            return set_rules(conn, "race", [{"node_type": f"Kind{n}"}])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(change, range(8)))
    assert sorted(answers) == [(n, True) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("name", "rules", "code", "parameter"),
    [
        (None, [], "RL101", "rule_set"),
        ("", [], "RL102", "rule_set"),
        ("a/b", [], "RL102", "rule_set"),
        ("x" * 101, [], "RL102", "rule_set"),
        ("good", {}, "RL107", "rules"),
        ("good", None, "RL107", "rules"),
        ("good", ["Effect"], "RL107", "row"),
        ("good", [{"node_type": ""}], "RL101", "node_type"),
        ("good", [{"method": "def f"}], "RL101", "node_type"),
        ("good", [{"node_type": "two words"}], "RL107", "node_type"),
        ("good", [{"node_type": "1st"}], "RL107", "node_type"),
        ("good", [{"node_type": "é"}], "RL107", "node_type"),
        ("good", [{"node_type": "x" * 101}], "RL107", "node_type"),
        ("good", [{"node_type": "A"}, {"node_type": "a"}], "RL107", "node_type"),
        ("good", [{"node_type": "A", "method": "def  f"}], "RL107", "method"),
        ("good", [{"node_type": "A", "method": ""}], "RL107", "method"),
        ("good", [{"node_type": "A", "method": "f(.*"}], "RL107", "method"),
        ("good", [{"node_type": "A", "method": "x" * 201}], "RL107", "method"),
        ("good", [{"node_type": "A", "colour": 1}], "RL107", "colour"),
        ("good", [{"node_type": f"A{n}"} for n in range(1001)], "RL501", None),
    ],
)
def test_rules_are_refused_whole(
    owner: Connection, name: str | None, rules: Any, code: str, parameter: str | None
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        owner.execute(
            "select * from routeledger.set_pattern_rules(%s, %s)",
            [name, Jsonb([{"node_type": "Fine"}, *rules] if isinstance(rules, list) else rules)],
        )
    answer = refusal(caught.value)
    assert (answer.code, answer.detail.get("parameter")) == (code, parameter)
    held = owner.execute("select 1 from routeledger.pattern_rule_sets where name = 'good'")
    assert held.fetchone() is None


@pytest.mark.parametrize("routine", ["score_pattern", "score_patterns"])
@pytest.mark.parametrize(
    ("version", "rule_set", "code", "parameter"),
    [
        ("v3", "onex", "RL205", "version"),
        ("V2", "onex", "RL205", "version"),
        ("v2/onex/1", "onex", "RL205", "version"),
        ("x" * MEGABYTE, "onex", "RL205", "version"),
        (None, "onex", "RL101", "version"),
        ("v2", "ONEX", "RL205", "rule_set"),
        ("v2", "", "RL205", "rule_set"),
        ("v2", None, "RL101", "rule_set"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_an_unknown_yardstick(
    owner: Connection,
    routine: str,
    version: str | None,
    rule_set: str | None,
    code: str,
    parameter: str,
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        owner.execute(f"select routeledger.{routine}(%s, %s, %s)", [Jsonb({}), version, rule_set])
    answer = refusal(caught.value)
    assert (answer.code, answer.detail["parameter"]) == (code, parameter)
    if code == "RL205":
        assert {"v1", "v2"} <= set(answer.detail["allowed"]) or "onex" in answer.detail["allowed"]


# -- the latest measurement ---------------------------------------------------------------------

IDS: Final = [f"0000000{n}-0000-4000-8000-000000000000" for n in range(3)]
TIMES: Final = ["2029-05-01T10:00:00Z", "2029-05-01T10:00:00.000001Z", "2029-05-02T09:00:00+09:00"]
measurements = st.builds(
    lambda n, at, quality, more: {
        "pattern_id": IDS[n],
        "measurement_timestamp": TIMES[at],
        "quality_score": quality,
        "version": "test",
        **more,
    },
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from([0, 0.1, 0.3, 1 / 3, 1]),
    st.sampled_from([{}, {"metadata": {"a": 1}}, {"metadata": {"b": 1}}, {"confidence": 0.5}]),
)


def splits(rows: Sequence[Any]) -> Iterator[list[Sequence[Any]]]:
    """Every way to cut the rows into batches, in their order."""
    for cuts in range(2 ** max(len(rows) - 1, 0)):
        batches, start = [], 0
        for n in range(1, len(rows)):
            if cuts >> (n - 1) & 1:
                batches.append(rows[start:n])
                start = n
        yield [*batches, rows[start:]]


@settings(max_examples=100 if THOROUGH else 12)
@given(st.lists(measurements, min_size=1, max_size=4))
def test_the_latest_wins_in_every_order(owner: Connection, rows: list[dict[str, Any]]) -> None:
    ends = set()
    with owner.transaction(force_rollback=True):
        for order in permutations(rows):
            for batches in splits(order):
                owner.execute("delete from routeledger.pattern_quality_metrics")
                for batch in batches:
                    assert not persist(owner, batch)["refused"]
                ends.add(json.dumps(stored(owner), default=str))
        # all of it again changes nothing
        again = persist(owner, rows)
        assert again["inserted"] == again["updated"] == 0
        assert json.dumps(stored(owner), default=str) in ends
        found = {str(row[0]): row for row in stored(owner)}
    assert len(ends) == 1
    at = [datetime.fromisoformat(t.replace("Z", "+00:00")) for t in TIMES]
    for pattern_id in {row["pattern_id"] for row in rows}:
        mine = [row for row in rows if row["pattern_id"] == pattern_id]
        newest = max(at[TIMES.index(row["measurement_timestamp"])] for row in mine)
        assert found[pattern_id][8] == newest
        scores = {
            r["quality_score"]
            for r in mine
            if at[TIMES.index(r["measurement_timestamp"])] == newest
        }
        assert found[pattern_id][1] in scores


def version_of_row(conn: Connection, pattern_id: str) -> Any:
    return conn.execute(
        """
        select m.ctid, m.xmin, m.* from routeledger.pattern_quality_metrics m
        where m.pattern_id = %s
        """,
        [pattern_id],
    ).fetchone()


def test_an_old_measurement_that_arrives_late_changes_nothing(
    owner: Connection, writer: Connection
) -> None:
    new = str(uuid.uuid4())
    row = {"pattern_id": new, "quality_score": 0.2, "version": "x"}
    times = [NOON - timedelta(days=10 * n) for n in range(3)]
    stamped = [{**row, "measurement_timestamp": at.isoformat()} for at in times]
    assert persist(owner, [stamped[1]])["inserted"] == 1
    before = version_of_row(owner, new)
    late = persist(owner, [{**stamped[2], "quality_score": 0.9}])
    same = persist(owner, [stamped[1]])
    assert (late["unchanged"], same["unchanged"]) == (1, 1)
    assert version_of_row(owner, new) == before
    assert persist(owner, [stamped[0]])["updated"] == 1
    assert version_of_row(owner, new) != before


@settings(max_examples=EXAMPLES)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*IDS, None, "no id", 5]),
            st.one_of(patterns, st.sampled_from([None, 5, "x", [], {"code": 5}])),
            st.sampled_from([*TIMES, None, "soon", "infinity", "2999-01-01", "1969-12-31"]),
            st.sampled_from([None, 0, 0.5, 1, 1.01, -1, "NaN", "much"]),
        ),
        max_size=12,
    )
)
def test_score_and_persist(owner: Connection, found: list[tuple[Any, Any, Any, Any]]) -> None:
    """The set form is the two single ones, row by row, and bad rows never hurt their neighbours."""
    rows = [
        {"pattern_id": i, "pattern": p, "measurement_timestamp": t, "confidence": c}
        for i, p, t, c in found
    ]
    good = [
        n
        for n, (i, p, t, c) in enumerate(found, 1)
        if i in IDS
        and isinstance(p, dict)
        and p.get("code") != 5
        and (t is None or t in TIMES)
        and c in (None, 0, 0.5, 1)
    ]
    with owner.transaction(force_rollback=True):
        owner.execute("delete from routeledger.pattern_quality_metrics")
        answer = call(owner, "score_patterns", rows)
        refused = [r["ord"] for r in answer["refusals"]]
        assert sorted([*good, *refused]) == list(range(1, len(rows) + 1))
        assert refused == sorted(refused)
        for r in answer["refusals"]:
            assert set(r) == {"ord", "code", "message", "detail", "hint"}
            assert r["code"] in {"RL101", "RL103", "RL107", "RL109"}
        first = stored(owner)
        owner.execute("delete from routeledger.pattern_quality_metrics")
        for n in good:
            i, p, t, c = found[n - 1]
            made = one(owner, p)
            del made["rating"]
            at = {} if t is None else {"measurement_timestamp": t}
            persist(owner, [{"pattern_id": i, **made, "confidence": c, **at}])
        assert stored(owner) == first
        again = call(owner, "score_patterns", rows)
        assert again["inserted"] == again["updated"] == 0


def test_every_digit_is_kept(owner: Connection) -> None:
    odd = [0.1 + 0.2, 1 / 3, 2 / 3, 5e-324, 1 - 2**-53, 0.0]
    rows = [
        {"pattern_id": str(uuid.UUID(int=n)), "quality_score": q, "version": "x"}
        for n, q in enumerate(odd)
    ]
    with owner.transaction(force_rollback=True):
        owner.execute("delete from routeledger.pattern_quality_metrics")
        owner.execute("set local extra_float_digits = -15")
        owner.execute("set local datestyle = 'German, DMY'")
        persist(owner, [{**row, "measurement_timestamp": "2029-03-02 01:00+00"} for row in rows])
        owner.execute("set local extra_float_digits = 1")
        owner.execute("set local datestyle = 'ISO'")
        found = stored(owner)
        assert [row[1] for row in found] == odd
        assert {row[8] for row in found} == {datetime(2029, 3, 2, 1, tzinfo=timezone.utc)}


def test_the_view_rates_as_the_score_does(owner: Connection) -> None:
    scores = [0, 0.4999999, 0.5, 0.6999999, 0.7, 0.8999999, 0.9, 0.8999999999999999, 1]
    rows = [
        {"pattern_id": str(uuid.UUID(int=n)), "quality_score": q, "version": v}
        for n, (q, v) in enumerate((q, v) for q in scores for v in ("v1/onex/1", "v2", "mine"))
    ]
    with owner.transaction(force_rollback=True):
        owner.execute("delete from routeledger.pattern_quality_metrics")
        persist(owner, rows)
        found = owner.execute(
            "select v.rating from routeledger.pattern_quality v order by v.pattern_id"
        ).fetchall()
    words = ["poor", "poor", "fair", "fair", "good", "good", "excellent", "excellent", "excellent"]
    assert [word for (word,) in found] == [word for word in words for _ in range(3)]
