"""The general upsert: one end for every permutation, split and replay of the same rows, whatever the
table's key, the precedence and the names; and a bad row changes nothing for its neighbours.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.property.ledger import THOROUGH, Connection, Row
from tests.servers import Server

pytestmark = pytest.mark.property

EXAMPLES = 500 if THOROUGH else 40
COUNTS = ("collapsed", "inserted", "updated", "unchanged", "refused")
Term = tuple[str, str]

# What a column may hold: few values, so that they meet; several spellings of equal ones.
VALUES: dict[str, list[Any]] = {
    "n": [None, 0, 1, "1", 2],
    "f": [None, "NaN", "-0", "0", 1.5, "Infinity"],
    "at": [
        None,
        "2030-01-01T00:00:00Z",
        "2030-01-01T01:00:00+01:00",
        "2030-01-02T00:00:00Z",
        "-infinity",
    ],
    "note": [None, "", "a", "b", "a b"],
    "amount": [None, "NaN", 1, "1.0", "1.00", 2],
    "j": [None, {"a": 1}, {"a": 2}, []],
}
VALUE_COLUMNS = "n int, f float8, at timestamptz, note text default 'none', amount numeric, j json"


@dataclass(frozen=True)
class Shape:
    """A table: its key, what the parts of the key may hold, and how it is made."""

    name: str
    key: tuple[str, ...]
    keys: dict[str, list[Any]]
    columns: str = field(repr=False)  # those of the key, and constraints
    tail: str = field(default="", repr=False)
    after: tuple[str, ...] = field(default=(), repr=False)
    same_when_equal: bool = True

    @property
    def written(self) -> list[str]:
        return [*self.keys, *VALUES]

    def statements(self) -> Iterator[str]:
        yield f"create table {self.name} ({self.columns}, {VALUE_COLUMNS}) {self.tail}"
        yield from self.after
        yield f"create table kept_{self.name} (like {self.name})"

    def rows(self, columns: Iterable[str] | None = None) -> st.SearchStrategy[Row]:
        """Rows of any values; a column that is not in the key may be absent."""
        some = [c for c in VALUES if columns is None or c in columns]
        return st.fixed_dictionaries(
            {c: st.sampled_from(v) for c, v in self.keys.items()},
            optional={c: st.sampled_from(VALUES[c]) for c in some},
        )


def partitions(name: str, *bounds: str) -> tuple[str, ...]:
    return tuple(f"create table {name}_{n} partition of {name} {b}" for n, b in enumerate(bounds))


SHAPES = [
    Shape("ints", ("k",), {"k": [1, "1", 2, -3]}, "k int primary key"),
    Shape("texts", ("k",), {"k": ["a", "A", "é", "", "b "]}, "k text primary key"),
    Shape(
        "pairs",
        ("b", "a"),
        {"a": [1, 2], "b": ["x", "y"]},
        "a int not null, b text not null, unique (a, b)",
    ),
    Shape(
        "numerics",
        ("k",),
        {"k": ["1", "1.0", 1, "1.00", "2", "NaN"]},
        "k numeric primary key",
        same_when_equal=False,
    ),
    Shape(
        "floats",
        ("k",),
        {"k": ["0", "-0", "NaN", 1.5]},
        "k float8 primary key",
        same_when_equal=False,
    ),
    Shape(
        "scaled",
        ("k",),
        {"k": ["1.001", "1.002", 1, "1.01"]},
        "k numeric(10, 2) primary key",
    ),
    Shape("padded", ("k",), {"k": ["a", "a ", "b"]}, "k bpchar primary key", same_when_equal=False),
    Shape(
        "blind",
        ("k",),
        {"k": ["a", "A", "b"]},
        "k text collate blind primary key",
        same_when_equal=False,
    ),
    Shape(
        "lowered",
        ("lower(email)",),
        {"email": ["A@x", "a@x", "a@X", "b@x"]},
        "email text not null",
        after=("create unique index on lowered (lower(email))",),
        same_when_equal=False,
    ),
    Shape(
        "generated",
        ("handle",),
        {"email": ["A@x", "a@x", "a@X", "b@x"]},
        "email text, handle text generated always as (lower(email)) stored unique",
        same_when_equal=False,
    ),
    Shape(
        "nulls",
        ("a", "b"),
        {"a": [None, 1, 2], "b": [None, "x"]},
        "a int, b text, unique nulls not distinct (a, b)",
    ),
    Shape(
        "partial",
        ("k",),
        {"k": [1, 2], "live": [True, "t"]},
        "k int, live boolean",
        after=("create unique index on partial (k) where live",),
    ),
    Shape(
        "ranged",
        ("k",),
        {"k": [-3, 1, "2", 3]},
        "k int primary key",
        "partition by range (k)",
        partitions(
            "ranged", "for values from (minvalue) to (2)", "for values from (2) to (maxvalue)"
        ),
    ),
    Shape(
        "hashed",
        ("k", "t"),
        {"k": ["1", "1.0", "1.00", "2"], "t": ["x", "y"]},
        "t text, k numeric, primary key (t, k)",
        "partition by hash (k)",
        partitions("hashed", *(f"for values with (modulus 3, remainder {n})" for n in range(3))),
        same_when_equal=False,
    ),
    Shape(
        "listed",
        ("a", "b"),
        {"a": [None, 1, 2], "b": [None, "x"]},
        "a int, b text, unique nulls not distinct (a, b)",
        "partition by list (a)",
        partitions("listed", "for values in (1)", "default"),
    ),
]


@dataclass(frozen=True)
class World:
    """The database of the module, and what the tests ask of it."""

    conn: Connection

    def value(self, query: Any, params: Any = None) -> Any:
        row = self.conn.execute(query, params).fetchone()
        assert row is not None
        return row[0]

    def size(self, table: str) -> int:
        return int(self.value(f"select count(*) from {table}"))

    def call(self, routine: str, target: str, last: Any, **options: Any) -> Row:
        """upsert() or upsert_from(); its promises about the counts are looked at each time."""
        before = self.size(target)
        query = sql.SQL("select * from routeledger.{}(%(target)s::regclass, {}{})").format(
            sql.Identifier(routine),
            sql.SQL("%(last)s" if routine == "upsert" else "%(last)s::regclass"),
            sql.SQL("").join(
                sql.SQL(", {} => {}").format(sql.Identifier(f"p_{o}"), sql.Placeholder(o))
                for o in options
            ),
        )
        with self.conn.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(query, {"target": target, "last": last, **options}).fetchall()
        assert len(found) == 1
        result = found[0]
        assert all(result[name] >= 0 for name in COUNTS), result
        assert result["received"] == sum(result[name] for name in COUNTS), result
        assert result["inserted"] == self.size(target) - before, result
        assert len(result["refusals"]) == result["refused"]
        ords = [refusal["ord"] for refusal in result["refusals"]]
        assert ords == sorted(set(ords))
        assert all(1 <= n <= result["received"] for n in ords)
        return result

    def upsert(self, target: str, rows: Sequence[Any], **options: Any) -> Row:
        result = self.call("upsert", target, Jsonb(rows), **options)
        assert result["received"] == len(rows)
        return result

    def bring(self, shape: Shape, rows: Sequence[Any], terms: Sequence[Term], **more: Any) -> Row:
        """upsert() with all that a shape says about itself."""
        options = {"columns": shape.written, "key": list(shape.key), "precedence": say(terms)}
        return self.upsert(shape.name, rows, **options, **more)

    def end(self, table: str) -> list[str]:
        """All there is, in its stored spelling."""
        found: list[str] = self.value(
            f"""select coalesce(array_agg(x order by x collate "C"), '{{}}')
            from (select whole::text || record_send(whole)::text as x from {table} whole) rows"""
        )
        return found

    def tuples(self, table: str) -> list[Any]:
        """Where each version of a row is, and who wrote it."""
        return self.conn.execute(
            f"select tableoid, ctid, xmin, cmin from {table} order by tableoid, ctid"
        ).fetchall()

    def keep(self, shape: Shape) -> None:
        """Remembers the table, for same()."""
        self.conn.execute(f"truncate kept_{shape.name}")
        self.conn.execute(
            f"insert into kept_{shape.name} overriding system value select * from {shape.name}"
            if shape.name != "generated"
            else "insert into kept_generated table generated"
        )

    def same(self, shape: Shape) -> bool:
        """Whether the table is what it was then, byte for byte."""
        same: bool = self.value(
            f"""
            select (select count(*) from kept_{shape.name}) = (select count(*) from {shape.name})
              and not exists (
                select from {shape.name} t
                where not exists (select from kept_{shape.name} k where k.* *= t.*))
              and not exists (
                select from kept_{shape.name} k
                where not exists (select from {shape.name} t where k.* *= t.*))
            """
        )
        return same

    def empty(self, *tables: str) -> None:
        self.conn.execute("truncate routeledger.upsert_batches, " + ", ".join(tables))


def say(terms: Sequence[Term]) -> str | None:
    return ", ".join(f"{word} {column}".strip() for word, column in terms) or None


@pytest.fixture(scope="module")
def world(server: Server, template: str) -> Iterator[World]:
    """One database for all; every example empties the tables that it uses."""
    name = server.create_database(template)
    try:
        with server.connect(name) as conn:
            try:
                conn.execute(
                    "create collation blind"
                    " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
                )
            except psycopg.errors.FeatureNotSupported:  # a server that was built without ICU
                conn.execute('create collation blind from "C"')
            for shape in SHAPES:
                for statement in shape.statements():
                    conn.execute(statement)
            yield World(conn)
    finally:
        server.drop_database(name)


# -- which row stays ------------------------------------------------------------------------------

words = {
    "n": ["", "greatest", "first"],
    "f": ["", "GREATEST", "first"],
    "at": ["latest", "first", "greatest"],
    "note": ["greatest", "first"],
    "amount": ["greatest", "first"],
}


def precedences(columns: Iterable[str] = tuple(words), most: int = 3) -> st.SearchStrategy[Any]:
    """Terms: none, one, or several."""
    return st.lists(
        st.sampled_from(list(columns)).flatmap(
            lambda c: st.tuples(st.sampled_from(words[c]), st.just(c))
        ),
        max_size=most,
        unique_by=lambda term: term[1],
    )


@st.composite
def stories(draw: st.DrawFn, most: int = 9) -> tuple[Shape, list[Term], list[Row]]:
    shape = draw(st.sampled_from(SHAPES))
    return shape, draw(precedences()), draw(st.lists(shape.rows(), min_size=1, max_size=most))


def dealt(rows: Sequence[Row], cuts: Sequence[int]) -> list[list[Row]]:
    """The rows in consecutive parts, none of them empty."""
    places = sorted({cut % len(rows) for cut in cuts} | {0, len(rows)})
    return [list(rows[a:b]) for a, b in pairwise(places)]


def test_every_permutation_split_and_replay_ends_in_one_table(world: World) -> None:
    """And a replay writes no tuple."""

    @settings(max_examples=3 * EXAMPLES)
    @given(stories(), st.lists(st.integers(0, 99), max_size=4), st.randoms())
    def run(story: tuple[Shape, list[Term], list[Row]], cuts: list[int], rng: Random) -> None:
        shape, terms, rows = story
        world.empty(shape.name)
        first = world.bring(shape, rows, terms)
        assert (first["updated"], first["unchanged"], first["refused"]) == (0, 0, 0)
        world.keep(shape)
        end = world.end(shape.name)
        tuples = world.tuples(shape.name)
        for again in (rows, rng.sample(rows, rng.randint(1, len(rows)))):
            replayed = world.bring(shape, again, terms)
            assert (replayed["inserted"], replayed["updated"], replayed["refused"]) == (0, 0, 0)
        assert world.tuples(shape.name) == tuples

        world.empty(shape.name)
        shuffled = [*rows, *rng.sample(rows, len(rows) // 2)]
        rng.shuffle(shuffled)
        for part in dealt(shuffled, cuts):
            world.bring(shape, part, terms)
        assert world.end(shape.name) == end
        assert world.same(shape)

    run()


def test_keep_decides_within_a_call_by_the_whole_row(world: World) -> None:
    """Any order within the call ends the same, and so does the same call again, which writes no tuple."""

    @settings(max_examples=EXAMPLES)
    @given(stories(), st.randoms())
    def run(story: tuple[Shape, list[Term], list[Row]], rng: Random) -> None:
        shape, terms, rows = story
        world.empty(shape.name)
        world.bring(shape, rows, terms, on_tie="keep")
        end, tuples = world.end(shape.name), world.tuples(shape.name)
        shuffled = rng.sample(rows, len(rows))
        again = world.bring(shape, shuffled, terms, on_tie="keep")
        assert (again["inserted"], again["updated"]) == (0, 0)
        assert world.tuples(shape.name) == tuples
        world.empty(shape.name)
        world.bring(shape, shuffled, terms, on_tie="keep")
        assert world.end(shape.name) == end

    run()


# -- a model --------------------------------------------------------------------------------------

MODELLED = [shape for shape in SHAPES if shape.name in {
    "ints", "texts", "pairs", "scaled", "lowered", "ranged", "nulls", "listed"
}]  # fmt: skip


class Model:
    """The same in Python, for keys whose equality is plain and columns whose bytes are."""

    columns = ("n", "f", "note")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rows: dict[Any, Row] = {}

    def read(self, row: Row) -> Row:
        """A row as it will be stored."""
        full = {"n": None, "f": None, "note": "none", **row}
        for name in ("n", "a"):
            full[name] = None if full.get(name) is None else int(full[name])
        full["f"] = None if full["f"] is None else float(full["f"])
        return full

    def key(self, row: Row) -> Any:
        if self.shape.name in {"ints", "ranged"}:
            return int(row["k"])
        if self.shape.name == "scaled":
            return round(Decimal(row["k"]), 2)
        if self.shape.name == "lowered":
            return row["email"].lower()
        return tuple(row[part] for part in self.shape.keys)

    def image(self, row: Row) -> tuple[Any, ...]:
        """What is compared byte for byte: known values first, NULL above the others, unsigned."""
        values = [row["email"]] if self.shape.name == "lowered" else []
        values += [row[name] for name in self.columns]
        parts: list[tuple[Any, ...]] = []
        for value in values:
            if value is None:
                parts.append((1,))
            elif isinstance(value, float):
                parts.append((0, struct.pack(">d", value)))
            else:
                parts.append((0, value.encode() if isinstance(value, str) else value))
        return (sum(value is not None for value in values), *parts)

    def rank(self, row: Row, terms: Sequence[Term]) -> tuple[Any, ...]:
        """Greater is better."""
        ranks: list[tuple[Any, ...]] = []
        for word, column in terms:
            value = row[column]
            if value is None or (isinstance(value, float) and math.isnan(value)):
                ranks.append((0,))
            else:
                ranks.append((1, Opposite(value) if word == "first" else value))
        return tuple(ranks)

    def upsert(self, given: Sequence[Row], terms: Sequence[Term], on_tie: str) -> Row:
        rows = [self.read(row) for row in given]
        best: dict[Any, tuple[Any, Row]] = {}
        for n, row in enumerate(rows):
            place = (self.rank(row, terms), n if on_tie == "replace" else 0, self.image(row))
            if self.key(row) not in best or place > best[self.key(row)][0]:
                best[self.key(row)] = (place, row)
        counts = dict.fromkeys(COUNTS, 0)
        counts["collapsed"] = len(rows) - len(best)
        for key, (_, row) in best.items():
            stored = self.rows.get(key)
            if stored is None:
                counts["inserted"] += 1
            elif self.wins(row, stored, terms, on_tie):
                counts["updated"] += 1
            else:
                counts["unchanged"] += 1
                continue
            self.rows[key] = row
        return counts

    def wins(self, row: Row, stored: Row, terms: Sequence[Term], on_tie: str) -> bool:
        new, old = self.rank(row, terms), self.rank(stored, terms)
        if new != old:
            return new > old
        if on_tie == "replace":
            return self.image(row) != self.image(stored)
        return on_tie == "greatest_row" and self.image(row) > self.image(stored)


@dataclass(frozen=True, order=False)
class Opposite:
    """A value that sorts the other way."""

    value: Any

    def __lt__(self, other: Opposite) -> bool:
        return bool(self.value > other.value)

    def __gt__(self, other: Opposite) -> bool:
        return bool(self.value < other.value)


@st.composite
def modelled(draw: st.DrawFn) -> tuple[Shape, list[Term], str, list[list[Row]]]:
    shape = draw(st.sampled_from(MODELLED))
    calls = draw(st.lists(st.lists(shape.rows(Model.columns), max_size=5), min_size=1, max_size=4))
    on_tie = draw(st.sampled_from(["greatest_row", "greatest_row", "replace", "keep"]))
    return shape, draw(precedences(Model.columns)), on_tie, calls


def test_a_small_model_says_the_same(world: World) -> None:
    """Table and counts, call by call, under each rule for ties."""

    @settings(max_examples=2 * EXAMPLES)
    @given(modelled())
    def run(story: tuple[Shape, list[Term], str, list[list[Row]]]) -> None:
        shape, terms, on_tie, calls = story
        model = Model(shape)
        world.empty(shape.name)
        for rows in calls:
            result = world.bring(shape, rows, terms, on_tie=on_tie)
            expected = model.upsert(rows, terms, on_tie)
            assert {name: result[name] for name in COUNTS} == expected
            with world.conn.cursor(row_factory=dict_row) as cursor:
                stored = cursor.execute(f"select * from {shape.name}").fetchall()
            assert len(stored) == len(model.rows)
            for row in stored:
                have = {name: row[name] for name in (*shape.keys, *Model.columns)}
                assert model.image(have) == model.image(model.rows[model.key(have)])

    run()


# -- sums -----------------------------------------------------------------------------------------

SUMMED = [shape for shape in SHAPES if shape.same_when_equal]


@st.composite
def additions(draw: st.DrawFn) -> tuple[Shape, list[Row]]:
    shape = draw(st.sampled_from(SUMMED))
    row = st.fixed_dictionaries(
        {
            **{c: st.sampled_from(v) for c, v in shape.keys.items()},
            "n": st.sampled_from([None, -1, 0, 1, 5]),
            "amount": st.sampled_from([None, "0.5", "-1.25", "10", "0.00"]),
        }
    )
    return shape, draw(st.lists(row, min_size=1, max_size=10))


def test_sums_are_the_same_however_the_rows_are_dealt_out(world: World) -> None:
    """A batch that comes again adds nothing, and any order and split of the rows has the same sums."""

    @settings(max_examples=2 * EXAMPLES)
    @given(
        additions(),
        st.lists(st.integers(0, 99), max_size=4),
        st.randoms(use_true_random=False),
    )
    def run(story: tuple[Shape, list[Row]], cuts: list[int], rng: Random) -> None:
        shape, rows = story
        options = {
            "columns": [*shape.keys, "n", "amount"],
            "key": list(shape.key),
            "precedence": "sum n, amount",
        }
        world.empty(shape.name)
        world.upsert(shape.name, rows, batch_id="all", **options)
        world.keep(shape)
        end, tuples = world.end(shape.name), world.tuples(shape.name)
        again = world.upsert(shape.name, rng.sample(rows, len(rows)), batch_id="all", **options)
        assert again["unchanged"] == len(rows)
        assert world.tuples(shape.name) == tuples
        for column in ("n", "amount"):
            known = [Decimal(row[column]) for row in rows if row[column] is not None]
            total = world.value(f"select sum({column}) from {shape.name}")
            assert total == (sum(known) if known else None)

        world.empty(shape.name)
        shuffled = rng.sample(rows, len(rows))
        batches = list(enumerate(dealt(shuffled, cuts)))
        for name, part in [*batches, *rng.sample(batches, len(batches) // 2)]:
            world.upsert(shape.name, part, batch_id=f"batch {name}", **options)
        assert world.end(shape.name) == end
        assert world.same(shape)

    run()


# -- merging --------------------------------------------------------------------------------------


def test_merging_is_associative_commutative_and_idempotent(world: World) -> None:
    """(a + b) + c = a + (b + c), a + b = b + a, a + a = a, where a sum of rows is what a table holds."""

    @settings(max_examples=EXAMPLES)
    @given(stories(most=3), st.booleans())
    def run(story: tuple[Shape, list[Term], list[Row]], add: bool) -> None:
        shape, terms, rows = story
        a, b, c = (rows * 3)[:3]
        precedence = say(terms)
        columns = shape.written
        batch = iter(range(99))
        adds = add and shape.same_when_equal
        if adds:
            precedence = "sum n, amount"
            columns = [*shape.keys, "n", "amount"]
            a, b, c = ({k: row[k] for k in columns if k in row} for row in (a, b, c))
            a, b, c = ({**row, "amount": None if row.get("amount") == "NaN" else row.get("amount")}
                       for row in (a, b, c))  # fmt: skip

        def options() -> Row:
            return {
                "columns": columns,
                "key": list(shape.key),
                "precedence": precedence,
                "batch_id": f"{next(batch)}" if adds else None,
            }

        def merged(*parts: Row | list[Row]) -> list[str]:
            """Each part after the other; a list of rows is merged first, and comes as its result."""
            world.empty(shape.name, f"kept_{shape.name}")
            for part in parts:
                if isinstance(part, list):
                    with world.conn.transaction():
                        world.conn.execute(f"create temp table was as table {shape.name}")
                        world.conn.execute(f"truncate {shape.name}")
                        for row in part:
                            world.upsert(shape.name, [row], **options())
                        world.keep(shape)
                        world.conn.execute(f"truncate {shape.name}")
                        names = ", ".join(shape.written)
                        world.conn.execute(
                            f"insert into {shape.name} ({names}) select {names} from was"
                        )
                        world.conn.execute("drop table was")
                    world.call("upsert_from", shape.name, f"kept_{shape.name}", **options())
                else:
                    world.upsert(shape.name, [part], **options())
            return world.end(shape.name)

        assert merged(a, b) == merged(b, a)
        assert merged(a, b, c) == merged(a, [b, c]) == merged([a, c], b)
        if not adds:
            assert merged(a, a) == merged(a)

    run()


# -- two ways in ----------------------------------------------------------------------------------


def test_rows_and_a_staging_table_end_alike(world: World) -> None:
    """Same table, same counts, same refusals; also over what is stored."""

    @settings(max_examples=EXAMPLES)
    @given(
        stories(),
        st.lists(st.sampled_from([{"n": 13}, {"live": False}, {"k": None}]), max_size=2),
        st.sampled_from(["greatest_row", "replace", "keep"]),
        st.integers(0, 9),
    )
    def run(
        story: tuple[Shape, list[Term], list[Row]], spoilt: list[Row], on_tie: str, half: int
    ) -> None:
        shape, terms, rows = story
        before, after = rows[:half], rows[half:]
        for spoil in spoilt:
            if set(spoil) <= set(shape.written):
                after.insert(len(after) // 2, {**rows[0], **spoil})
        options = {"columns": shape.written, "key": list(shape.key), "precedence": say(terms)}
        options["on_tie"] = on_tie

        def stored() -> None:
            world.empty(shape.name)
            if before:
                world.upsert(shape.name, before, **options)

        full = [{"note": "none", **row} for row in after]
        stored()
        by_rows = world.upsert(shape.name, after, **options)
        end = world.end(shape.name)

        stored()
        names = ", ".join(shape.written)
        world.conn.execute(f"create temp table stage as select {names} from {shape.name} limit 0")
        try:
            world.conn.execute(
                f"insert into stage select {names} from jsonb_populate_recordset(null::stage, %s)",
                [Jsonb(full)],
            )
            by_table = world.call("upsert_from", shape.name, "stage", **options)
        finally:
            world.conn.execute("drop table stage")
        assert by_table == by_rows
        assert world.end(shape.name) == end

    run()


# -- bad rows -------------------------------------------------------------------------------------

STRICT_TABLES = {
    "plain": """create table plain (k int primary key, n int check (n < 1000), note varchar(3),
        at timestamptz, up int default 7)""",
    "split": """create table split (k int primary key, n int check (n < 1000), note varchar(3),
        at timestamptz, up int default 7) partition by hash (k);
        create table split_0 partition of split for values with (modulus 2, remainder 0);
        create table split_1 partition of split for values with (modulus 2, remainder 1)""",
    "ranges": """create table ranges (k int, n int check (n < 1000), note varchar(3) not null default 'x',
        at timestamptz, up int default 7) partition by range (k);
        create unique index on ranges (k);
        create table ranges_0 partition of ranges for values from (0) to (100)""",
}
good_rows: st.SearchStrategy[Row] = st.fixed_dictionaries(
    {"k": st.integers(0, 4), "n": st.integers(0, 9)},
    optional={
        "note": st.sampled_from(["", "a", "abc", "abc   "]),
        "at": st.sampled_from(["2030-01-01", None]),
        "up": st.integers(0, 2),
    },
)
# what makes a good row bad, and the code of its refusal; each beats every good row of its key
spoilings: st.SearchStrategy[tuple[Row, str]] = st.sampled_from(
    [
        ({"k": None, "n": 1}, "RL115"),
        ({"n": 1000}, "RL307"),
        ({"k": "one"}, "RL107"),
        ({"k": 2**31}, "RL107"),
        ({"k": [1]}, "RL107"),
        ({"n": {}}, "RL107"),
        ({"note": "abcd"}, "RL107"),
        ({"at": "tomorrow week"}, "RL107"),
        ({"colour": "blue"}, "RL113"),
        ({"": 1}, "RL113"),
        ({"k) --": 1, "K": 2}, "RL113"),
    ]
)
not_rows = st.sampled_from([None, 5, "row", [], [1], True]).map(lambda row: (row, "RL107"))
mixed = st.lists(
    st.one_of(
        good_rows.map(lambda row: (row, None)),
        good_rows.map(lambda row: (row, None)),
        st.tuples(good_rows, spoilings).map(lambda both: ({**both[0], **both[1][0]}, both[1][1])),
        not_rows,
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def strict_tables(world: World) -> World:
    for statement in STRICT_TABLES.values():
        world.conn.execute(statement)
    return world


def test_a_bad_row_never_fails_its_neighbours(strict_tables: World) -> None:
    """What the good rows do is what they do alone; refused are exactly the bad ones, each with its code."""
    world = strict_tables
    options = {"columns": ["k", "n", "note", "at", "up"], "key": ["k"]}

    @settings(max_examples=2 * EXAMPLES)
    @given(
        st.sampled_from(sorted(STRICT_TABLES)),
        mixed,
        st.lists(good_rows, max_size=3),
        st.sampled_from(["n", "greatest n, latest at"]),
    )
    def run(
        table: str, rows: list[tuple[Any, str | None]], stored: list[Row], precedence: str
    ) -> None:
        good = [row for row, code in rows if code is None]
        ends = []
        for given_rows in (good, [row for row, _ in rows]):
            world.empty(table)
            world.upsert(table, stored, precedence=precedence, **options)
            result = world.upsert(table, given_rows, precedence=precedence, **options)
            counts = {name: result[name] for name in COUNTS if name != "refused"}
            ends.append((counts, world.end(table)))
            if given_rows is good:
                assert result["refusals"] == []
        assert ends[0] == ends[1]
        assert [(r["ord"], r["code"]) for r in result["refusals"]] == [
            (n, code) for n, (_, code) in enumerate(rows, 1) if code is not None
        ]
        assert all(r["message"] and r["detail"] and r["hint"] for r in result["refusals"])
        tuples = world.tuples(table)
        again = world.upsert(table, [row for row, _ in rows], precedence=precedence, **options)
        assert again["refusals"] == result["refusals"]
        assert world.tuples(table) == tuples

    run()


# -- names ----------------------------------------------------------------------------------------

PIECES = [
    '"', "'", "%", "%s", "%I", "{", "}", "{x}", "{rel}", "{table}", ".", "\\", "\\1", "$", "$1", "$$",
    "\n", "\t", " ", ",", "é", "雪", "😀", "A", "a", "b", "_", "_rl_", "_rl__", "k1", "ord", "there",
    "known", "--", "/*", ";", "(", ")", "[", "select", "user", "table", "order", "null", "excluded",
    "t", "u", "w", "s", "r", "old", "new", "src", "win", "todo", "ins", "upd", "is_new", "lower",
    "greatest", "latest", "first", "sum", "u&", "pg_temp", "public", "operator", "record", "text",
]  # fmt: skip


def within_63_bytes(name: str) -> str:
    return name.encode()[:63].decode(errors="ignore")


names = st.one_of(
    st.sampled_from([p for p in PIECES if p]),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).map(within_63_bytes),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(
        lambda some: within_63_bytes("".join(some) * 63)
    ),
    st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    ).map(within_63_bytes),
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# what there is beside the one schema, and what the ledger itself holds, but for the counts
ELSEWHERE = """
select jsonb_build_array(
  (select jsonb_agg(jsonb_build_array(c.oid, c.relname, c.relnamespace) order by c.oid) from pg_class c
   where c.relname not like 'pg_toast%'),
  (select jsonb_agg(n.nspname order by n.oid) from pg_namespace n),
  (select jsonb_agg(array[p.oid, p.pronamespace] order by p.oid) from pg_proc p where p.oid > 16383),
  (select jsonb_agg(r.rolname order by r.oid) from pg_roles r),
  (select jsonb_agg(to_jsonb(i) order by i.k) from ints i),
  (select count(*) from routeledger.upsert_batches),
  current_setting('search_path'))
"""


@st.composite
def hostile(draw: st.DrawFn) -> tuple[str, str, str, list[str]]:
    kind = draw(st.sampled_from(["plain", "lower", "hash"]))
    columns = draw(st.lists(names, min_size=4, max_size=4, unique=True))
    schema = draw(names.filter(lambda n: not n.startswith("pg_") and n != "public"))
    return kind, schema, draw(names), columns


def test_hostile_names_are_only_names(world: World) -> None:
    """The table ends up right, and nothing else has changed."""

    @settings(max_examples=2 * EXAMPLES)
    @given(hostile(), st.booleans())
    @example(("plain", "{x}", "%I", ['"', "'", "{rel}", "$1"]), True)
    @example(("hash", "a.b", 'x"."y', ["_rl_k1", "_rl_", "_rl__ord", "excluded"]), False)
    @example(("lower", "A", "w", ["s", "w", "t", "u"]), True)
    @example(("plain", "a", "text", ["record", "int4", "text", "tid"]), True)
    def run(story: tuple[str, str, str, list[str]], staged: bool) -> None:
        kind, schema, table, (k, i, n, note) = story
        target = f"{quoted(schema)}.{quoted(table)}"
        world.empty("ints")
        # PostgreSQL itself finds no name for the array type of a table called so
        assume(len(table) < 63 or table.strip("_"))
        world.conn.execute("insert into ints (k, note) values (1, 'left alone')")
        world.conn.execute(f"create schema {quoted(schema)}")
        try:
            world.conn.execute(
                f"create table {target} ({quoted(k)} text not null, {quoted(i)} int not null,"
                f" {quoted(n)} int, {quoted(note)} text)"
                + (f" partition by hash ({quoted(i)})" if kind == "hash" else "")
            )
            if kind == "hash":
                world.conn.execute(
                    f"create table {quoted(schema)}.p0 partition of {target}"
                    " for values with (modulus 1, remainder 0)"
                    if table != "p0"
                    else f"create table {quoted(schema)}.p1 partition of {target}"
                    " for values with (modulus 1, remainder 0)"
                )
            first = f"lower({quoted(k)})" if kind == "lower" else quoted(k)
            world.conn.execute(f"create unique index on {target} ({first}, {quoted(i)})")
            elsewhere = world.value(ELSEWHERE)
            if kind == "lower":
                first = world.value(
                    "select pg_get_indexdef(i.indexrelid, 1, false) from pg_index i"
                    " where i.indrelid = %s::regclass",
                    [target],
                )
            options = {
                "key": [i, first if kind == "lower" else k],
                "precedence": f"greatest {quoted(n)}, first {quoted(note)}",
            }
            rows: list[Row] = [
                {k: "a", i: 1, n: 1, note: "loses"},
                {k: "a", i: 1, n: 2, note: "x"},
                {k: "a", i: 1, n: 2, note: "w"},
                {k: "b", i: 1, n: None, note: None},
            ]
            if staged:
                world.conn.execute(f"create temp table {quoted(table)} as table {target}")
                try:
                    with world.conn.cursor() as cursor:
                        cursor.executemany(
                            f"insert into pg_temp.{quoted(table)} values (%s, %s, %s, %s)".replace(
                                quoted(table), quoted(table).replace("%", "%%")
                            ),
                            [list(row.values()) for row in rows],
                        )
                    elsewhere = world.value(ELSEWHERE)
                    result = world.call(
                        "upsert_from", target, f"pg_temp.{quoted(table)}", **options
                    )
                    assert world.value(ELSEWHERE) == elsewhere
                finally:
                    world.conn.execute(f"drop table pg_temp.{quoted(table)}")
                elsewhere = world.value(ELSEWHERE)
            else:
                result = world.upsert(target, rows, **options)
            assert [result[name] for name in COUNTS] == [2, 2, 0, 0, 0]
            rows = [
                {k: "b", i: 1, n: 0, note: "y"},
                {k: "a", i: 1, n: 1, note: "loses"},
                {k: "c", i: "1", n: 1, note: "z"},
                {k: "c", i: 1, n: "many", note: "bad"},
                {k: "c", i: 1, n: 1, note: "bad", f"{k} {i}?": 0},
            ]
            result = world.upsert(target, rows, columns=[k, i, n, note], **options)
            assert [result[name] for name in COUNTS] == [0, 1, 1, 1, 2]
            assert [(r["ord"], r["code"]) for r in result["refusals"]] == [
                (4, "RL107"),
                (5, "RL113"),
            ]
            stored = world.conn.execute(f"table {target}").fetchall()
            assert sorted(stored) == [("a", 1, 2, "w"), ("b", 1, 0, "y"), ("c", 1, 1, "z")]
            assert world.value(ELSEWHERE) == elsewhere
            name = world.value("select format('%%I.%%I', %s::text, %s::text)", [schema, table])
            counted = world.value(
                "select sum(received) from routeledger.upsert_activity where target = %s", [name]
            )
            assert counted == 9
        finally:
            world.conn.execute(f"drop schema {quoted(schema)} cascade")
            world.conn.execute("truncate routeledger.upsert_counts")

    run()
