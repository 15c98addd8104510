"""Random predicates over a small table, and texts that are none.

A predicate that PostgreSQL takes is installed in one form, whatever it was written like, and that form is
itself a way to write it; what it violates is what a plain count says. A text that is no predicate, a name
or a column of any kind: nothing but the constraint is ever made or dropped, and every refusal is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.concurrency.test_constraints import Declared
from tests.conftest import Database

pytestmark = pytest.mark.property

TABLE = """
create schema "Sales Ledger";
create type "Sales Ledger".mood as enum ('sad', 'ok', 'happy');
create table "Sales Ledger"."Items" (
  id integer primary key,
  n integer,
  m bigint,
  x double precision,
  d numeric(8, 2),
  t text,
  v varchar(20),
  c char(4),
  b boolean,
  at timestamp with time zone,
  day date,
  span interval,
  tags text[],
  doc jsonb,
  how "Sales Ledger".mood,
  "Mixed Case" integer
);
insert into "Sales Ledger"."Items" values
  (1, 1, 10, 0.5, 1.25, 'a', 'a', 'a', true,
   '2026-01-01 00:00+00', '2026-01-01', '1 hour', '{a,b}', '{"n": 1}', 'ok', 1),
  (2, 2, 20, 'NaN', 0, 'b', 'b', 'b', false,
   '2026-06-01 00:00+00', '2026-06-01', '1 day', '{}', '{}', 'sad', 2),
  (3, -3, -30, '-0', -1.25, '', '', '', null,
   'infinity', '-infinity', '-1 month', '{NULL}', '[]', 'happy', -3),
  (4, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
  (5, 2147483647, 9223372036854775807, 'Infinity', 999999.99, 'A''B\\C', 'x', 'abcd', true,
   '1900-01-01 00:00+00', '1900-01-01', '10 years', '{c}', 'null', 'ok', 0);
"""
TARGET = '"Sales Ledger"."Items"'


@pytest.fixture(scope="module")
def items(server: Any, template: str) -> Iterator[Database]:
    """A database that the examples of a test share, with the table in it."""
    database = Database(server, server.create_database(template))
    database.execute(TABLE)
    yield database
    server.drop_database(database.name)


@pytest.fixture(scope="module")
def conn(items: Database) -> Iterator[psycopg.Connection[Any]]:
    with items.connect() as connection:
        connection.execute("set client_min_messages = error")
        yield connection


def ensure(name: str, predicate: str, **more: Any) -> Declared:
    arguments = {
        "table": TARGET,
        "name": name,
        "predicate": predicate,
        "if_violated": "add_not_valid",
    }
    return Declared("ensure_check", {**arguments, **more})


# -- predicates -------------------------------------------------------------------------------

NUMBERS = st.sampled_from(["0", "1", "-3", "2.50", "1e2", "2147483648", "'7'", "null"])
WORDS = st.sampled_from(
    [
        "'a'",
        "'b'",
        "''",
        "'A''B'",
        r"'a\b'",
        r"E'a\\b'",
        "'%'",
        "'ÄÖ'",
        "null",
        "'a'::varchar",
        "U&'\\0061'",
    ]
)
MOMENTS = st.sampled_from(
    ["timestamptz '2026-03-01 00:00+00'", "'infinity'", "null", "'2026-01-01 12:00:00Z'"]
)


@st.composite
def atoms(draw: st.DrawFn) -> str:
    """A comparison of a column with something."""
    number = draw(
        st.sampled_from(
            [
                "n",
                "m",
                "x",
                "d",
                '"Mixed Case"',
                '"Items".n',
                "abs(n)",
                "n + 1",
                "coalesce(n, 0)",
                "id",
            ]
        )
    )
    word = draw(
        st.sampled_from(
            ["t", "v", "c", "lower(t)", "v || t", '"Items".v', 't collate "C"', "trim(v)"]
        )
    )
    compare = draw(st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="]))
    some = draw(st.lists(WORDS, min_size=1, max_size=3))
    numbers = draw(st.lists(NUMBERS, min_size=1, max_size=3))
    return draw(
        st.sampled_from(
            [
                f"{number} {compare} {numbers[0]}",
                f"{number} between {numbers[0]} and {numbers[-1]}",
                f"{number} not in ({', '.join(numbers)})",
                f"{word} {compare} {some[0]}",
                f"{word} in ({', '.join(some)})",
                f"{word} = any (array[{', '.join(some)}])",
                f"{word} like {some[0]} || '%'",
                f"{word} ~ '^[a-z]*$'",
                f"{word} is not distinct from {some[-1]}",
                f"{number} is null",
                "b",
                "b is not true",
                "how in ('ok', 'happy')",
                "how > 'sad'",
                f"at {compare} {draw(MOMENTS)}",
                f"day {compare} date '2026-02-01'",
                f"span {compare} interval '1 day 02:00'",
                f"{some[0]} = any (tags)",
                "tags && '{a,c}'::text[]",
                f"tags[1] {compare} {some[0]}",
                f"cardinality(tags) {compare} 1",
                "doc @> '{\"n\": 1}'",
                "doc ? 'n'",
                "doc ->> 'n' is null",
                "jsonb_typeof(doc) = 'object'",
                '"Items" is not null',
                f"case when {number} > 0 then b else {number} < 0 end",
                f"({number}, {word}) is distinct from ({numbers[0]}, {some[0]})",
                f"length({word}) {compare} {numbers[0]}",
                f"num_nonnulls(n, t, v) {compare} 1",
            ]
        )
    )


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    gap = st.sampled_from([" ", "\n", "\t  ", " /* and */ ", " -- or\n"])
    return st.one_of(
        st.builds("({0}){1}and{1}({2})".format, inner, gap, inner),
        st.builds("({0}){1}OR{1}({2})".format, inner, gap, inner),
        st.builds("not{1}({0})".format, inner, gap),
        st.builds("({0}) is{1}not false".format, inner, gap),
        st.builds(" ( {0} ) ".format, inner),
    )


PREDICATES = st.recursive(atoms(), joined, max_leaves=5)


def installed(conn: psycopg.Connection[Any], name: str) -> str | None:
    row = conn.execute(
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass and conname = %s",
        [TARGET, name],
    ).fetchone()
    return None if row is None else row[0]


@settings(max_examples=60)
@given(predicate=PREDICATES)
@example(predicate="v in ('a', 'b')")
@example(predicate="c in ('a', 'b') and (v in ('x') and v <> 'y')")
def test_one_form_of_a_predicate(conn: psycopg.Connection[Any], predicate: str) -> None:
    name = "a check"
    conn.execute(f'alter table {TARGET} drop constraint if exists "{name}"'.encode())
    try:
        with conn.transaction():
            conn.execute(
                f'alter table {TARGET} add constraint "{name}" check ({predicate}\n) not valid'.encode()
            )
    except psycopg.Error as error:
        plain: str | None = error.sqlstate
    else:
        plain = None
        conn.execute(f'alter table {TARGET} drop constraint "{name}"'.encode())
    if plain is not None:
        with pytest.raises(psycopg.Error) as refused:
            ensure(name, predicate).run(conn)
        assert refused.value.sqlstate == "RL116"
        assert installed(conn, name) is None
        return
    try:
        counted = conn.execute(
            f"select count(*) from {TARGET} where ({predicate}\n) is false".encode()
        ).fetchone()
    except psycopg.DataError:
        answer = ensure(name, predicate).run(conn)
        assert (answer["outcome"], answer["reason"]) == ("refused", "predicate_fails")
        assert installed(conn, name) is None
        return
    assert counted is not None

    dry = ensure(name, predicate, dry_run=True).run(conn)
    assert installed(conn, name) is None
    first = ensure(name, predicate).run(conn)
    assert first["outcome"] == dry["outcome"] == "created"
    assert first["violations"] == dry["violations"] == counted[0]
    assert first["definition"] == dry["definition"]
    assert len(first["detail"].get("samples", [])) == min(counted[0], 5)
    assert (first["next"] is None) == (counted[0] > 0)
    made = installed(conn, name)

    second = ensure(name, predicate).run(conn)
    assert (second["outcome"], second["validated"]) == (
        ("pending", False) if counted[0] else ("validated", True)
    )
    # and again, as declared and as printed: the same constraint
    row = conn.execute(
        "select oid, xmin::text from pg_constraint where conrelid = %s::regclass and conname = %s",
        [TARGET, name],
    ).fetchone()
    for text in (predicate, first["definition"], f"\n(({predicate}\n))"):
        again = ensure(name, text).run(conn)
        assert again["outcome"] == ("pending" if counted[0] else "unchanged"), (text, again)
        assert again["definition"] == first["definition"]
        assert again["violations"] == (counted[0] or None) or again["violations"] == counted[0]
    assert (
        row
        == conn.execute(
            "select oid, xmin::text from pg_constraint where conrelid = %s::regclass and conname = %s",
            [TARGET, name],
        ).fetchone()
    )
    # a dump has the printed form, which is read back as itself
    assert made is not None
    restored = made.removesuffix(" NOT VALID")
    conn.execute(f'alter table {TARGET} drop constraint "{name}"'.encode())
    conn.execute(f'alter table {TARGET} add constraint "{name}" {restored} not valid'.encode())
    assert installed(conn, name) == made
    assert ensure(name, predicate).run(conn)["outcome"] == second["outcome"]


# -- what is there already --------------------------------------------------------------------

# what a live constraint can be beside its predicate
ATTRIBUTES = st.lists(
    st.sampled_from(["no inherit", "not valid", "not enforced"]), unique=True, max_size=2
)
STATE = """
select c.connoinherit, c.convalidated, to_jsonb(c) ->> 'conenforced' is distinct from 'false'
from pg_constraint c where c.conrelid = %s::regclass and c.conname = %s
"""


def is_predicate(conn: psycopg.Connection[Any], text: str, table: str = TARGET) -> bool:
    """Whether PostgreSQL takes it, and every row can be asked."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(f"alter table {table} add check ({text}) not valid".encode())
            conn.execute(f"select count(*) from {table} where ({text})".encode())
            violators(conn, text, table)  # which asks in the order of the text
    except psycopg.Error:
        return False
    return True


def violators(conn: psycopg.Connection[Any], predicate: str, table: str = TARGET) -> int:
    row = conn.execute(f"select count(*) from {table} where ({predicate}) is false".encode())
    return int(row.fetchall()[0][0])


@settings(max_examples=60)
@given(
    live=atoms(),
    attributes=ATTRIBUTES,
    predicate=st.one_of(st.none(), atoms()),
    no_inherit=st.booleans(),
)
@example(live="n > 0", attributes=["not enforced"], predicate=None, no_inherit=False)
@example(live="id > 0", attributes=["not enforced"], predicate=None, no_inherit=False)
@example(live="id > 0", attributes=["no inherit", "not valid"], predicate=None, no_inherit=False)
@example(live="id > 0", attributes=["not valid"], predicate="id >= 0", no_inherit=True)
def test_whatever_is_there(
    conn: psycopg.Connection[Any],
    live: str,
    attributes: list[str],
    predicate: str | None,
    no_inherit: bool,
) -> None:
    """A constraint of the name, of this predicate (None) or another: it becomes what is declared."""
    name = "a check"
    conn.execute(f'alter table {TARGET} drop constraint if exists "{name}"'.encode())
    wanted = predicate or live
    if not (is_predicate(conn, live) and is_predicate(conn, wanted)):
        return
    if conn.info.server_version < 180000:
        attributes = [one for one in attributes if one != "not enforced"]
    if violators(conn, live) and not {"not valid", "not enforced"} & set(attributes):
        attributes.append("not valid")
    kind = " ".join(attributes)
    conn.execute(f'alter table {TARGET} add constraint "{name}" check ({live}) {kind}'.encode())

    one = ensure(name, wanted, no_inherit=no_inherit)
    same = (
        one.but(dry_run=True).run(conn)["definition"]
        == ensure("another", live, dry_run=True).run(conn)["definition"]
        and no_inherit == ("no inherit" in attributes)
        and "not enforced" not in attributes
    )
    violated = violators(conn, wanted) > 0
    outcomes = one.settle(conn)
    if not same:
        expected = ["replaced"] if violated else ["replaced", "validated"]
    elif "not valid" in attributes:
        expected = ["pending" if violated else "validated"]
    else:
        expected = ["unchanged"]
    assert outcomes == expected
    assert conn.execute(STATE, [TARGET, name]).fetchone() == (no_inherit, not violated, True)
    assert one.run(conn)["outcome"] == ("pending" if violated else "unchanged")


OTHER_TYPES = {
    "n": ["bigint", "numeric", "smallint"],
    "v": ["text", "varchar(50)", "char(20)"],
    "t": ["varchar(30)", "varchar"],
    "c": ["text", "char(8)", "varchar(4)"],
    "d": ["numeric", "numeric(12, 1)", "double precision"],
    "at": ["timestamp(0) with time zone"],
}


@settings(max_examples=40)
@given(
    predicate=PREDICATES,
    change=st.sampled_from([(name, kind) for name, kinds in OTHER_TYPES.items() for kind in kinds]),
)
@example(predicate="v in ('a', 'b')", change=("v", "text"))
@example(predicate="n between -3 and 7", change=("n", "numeric"))
def test_a_column_of_another_type(
    conn: psycopg.Connection[Any], predicate: str, change: tuple[str, str]
) -> None:
    """ALTER TABLE has written the constraint anew: what is declared is met after one swap at most."""
    table, name = 'retyped."Items"', "a check"
    conn.execute("drop schema if exists retyped cascade; create schema retyped")
    conn.execute(f"create table {table} (like {TARGET})".encode())
    conn.execute(f"insert into {table} select * from {TARGET}".encode())
    if not is_predicate(conn, predicate, table):
        return
    one = ensure(name, predicate, table=table)
    one.settle(conn)
    column, kind = change
    try:
        conn.execute(f"alter table {table} alter {column} type {kind}".encode())
    except psycopg.Error:
        return
    if not is_predicate(conn, predicate, table):
        return
    violated = violators(conn, predicate, table) > 0
    outcomes = one.settle(conn)
    assert outcomes[outcomes[0] == "replaced" :] in ([], ["validated"], ["pending"], ["unchanged"])
    assert conn.execute(STATE, [table, name]).fetchone() == (False, not violated, True)
    assert one.run(conn)["outcome"] == ("pending" if violated else "unchanged")


# -- texts that are none ----------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "n > 0", "true", "(", ")", "((", "))", ";", "--", "/*", "*/", "'", "''", '"', "$$", "$a$",
        "\\", "\\'", "E'", "U&'", 'U&"', "B'", "\n", "\r", "\x0b", "\t", " ", ",", "%s", "%I", "%%",
        "$1", ":n", "::", "é", "\u2028",
        ") not valid", ") no inherit", ") not enforced", "), add column z integer", "), drop column n",
        "), drop constraint other", "), disable trigger all", "), add constraint third check (true",
        "); drop table victims; --", "); commit; --", "n > (select 1)", "exists (select from victims)",
        "set_config('search_path', 'public', false) is not null", "pg_sleep(0) is null", "victims_are(n)",
        "nextval('victims_ids') > 0", "pg_catalog.pg_advisory_lock(1) is null",
        "row_number() over () > 0", "count(*) > 0", "generate_series(1, n) > 0", "tableoid > 0",
        "ctid is null",
        "current_user = 'postgres'", "at > 'now'", "at > 'today'::timestamptz", "day > '01/02/2026'",
        "at > '2026-01-01'", "span > '1 02:00'", "xmin is null", "old.n", "new.n", "value > 0",
        "default", "null", "n := 1", "n / 0 > 1", "1 / 0 > 1", "repeat('x', 100)",
        "'x'::regclass is null", "not", "and", "or", "in (", "any (", "array[",
    ]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=7).map("".join),
    st.lists(PIECES, min_size=1, max_size=7).map(" ".join),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=30),
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "other",
            "items_pkey",
            "Items_pkey",
            "id",
            "",
            " ",
            "a" * 63,
            "é" * 32,
            "ü" * 31,
            '"',
            "a;b",
            "'",
            "%I",
            "\n",
        ]
    ),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=70),
)
VICTIMS = """
create table victims (v integer constraint victims_check check (v > 0));
insert into victims values (1);
create sequence victims_ids;
create function victims_are(integer) returns boolean language plpgsql as $$
begin
  delete from victims;
  return true;
end
$$;
alter table "Sales Ledger"."Items" add constraint other check (id > 0);
"""
EVERYTHING = """
select 'class', c.oid::text, c.relname::text, c.relkind::text || ' ' || c.relnatts, c.reltuples < -1
from pg_class c where c.relnamespace <> 'pg_toast'::regnamespace
  and not (c.relnamespace::regnamespace::text like 'pg~_temp%' escape '~')
union all
select 'column', a.attrelid::text, a.attname::text,
  a.atttypid::text || coalesce(a.attmissingval::text, ''), a.attnotnull
from pg_attribute a join pg_class c on c.oid = a.attrelid and c.relkind <> 'i'
where c.relnamespace in ('"Sales Ledger"'::regnamespace, 'public'::regnamespace)
union all
select 'function', p.oid::text, p.proname::text, p.prosrc, p.prosecdef from pg_proc p
where p.pronamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
union all
select 'constraint', c.oid::text, c.conname::text, pg_get_constraintdef(c.oid), c.convalidated
from pg_constraint c where c.conrelid <> 0
union all
select 'victim', '', '', v::text, true from victims
union all
select 'rows', '', '', t::text, true from "Sales Ledger"."Items" t
union all
select 'change', id::text, name, action, undone_at is null from routeledger.constraint_changes
union all
select 'sequence', '', '', last_value::text, is_called from victims_ids
"""


@pytest.fixture(scope="module")
def victims(items: Database) -> Iterator[psycopg.Connection[Any]]:
    """A session with tables that nothing may touch."""
    items.execute(f'alter table {TARGET} drop constraint if exists "a check"')
    items.execute(VICTIMS)
    with items.connect(autocommit=False) as connection:
        connection.execute("set client_min_messages = error")
        connection.commit()
        yield connection


def everything(conn: psycopg.Connection[Any]) -> set[tuple[Any, ...]]:
    return set(conn.execute(EVERYTHING))


def attempt(
    conn: psycopg.Connection[Any], run: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any] | None, set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What it answered (None: refused with an error of ours), what has come and what has gone by it."""
    before = everything(conn)
    try:
        with conn.transaction():
            answer = run()
    except psycopg.Error as error:
        if not (error.sqlstate or "").startswith("RL"):
            raise
        json.loads(error.diag.message_detail or "{}")
        answer = None
    after = everything(conn)
    return answer, after - before, before - after


@settings(max_examples=150)
@given(text=TEXTS, name=st.just("hostile"))
@example(text="n > 0) not valid; drop table victims; --", name="hostile")
@example(text="n > 0\n), drop constraint other, add constraint third check (true", name="hostile")
@example(text="n > 0 --", name="hostile")
@example(text="victims_are(n)", name="hostile")
@example(text="nowhere.is_a_function(n)", name="hostile")
@example(text="n > 0", name='"; drop table victims; --')
@example(text="E'\\' or true) --' <> 'x'", name="hostile")
@example(text="'\\' or true) --' <> 'x'", name="hostile")
@example(text="U&'\\0027' <> ') --'", name="hostile")
@example(text="n > 0 /* /* */ ) -- */", name="hostile")
def test_nothing_but_the_constraint(victims: psycopg.Connection[Any], text: str, name: str) -> None:
    """Whatever the text is: what comes is one CHECK of that name, with its change in the history."""
    try:
        answer, come, gone = attempt(victims, lambda: ensure(name, text).run(victims))
        assert gone == set()
        if answer is None or answer["outcome"] == "refused":
            assert come == set()
        else:
            assert answer["outcome"] == "created"
            assert sorted((row[0], row[2]) for row in come) == [
                ("change", name),
                ("constraint", name),
            ]
            (made,) = (row for row in come if row[0] == "constraint")
            assert made[3].startswith("CHECK (")
            assert made[3].removesuffix(" NOT VALID") == f"CHECK {answer['definition']}" or made[
                3
            ] == (f"CHECK ({answer['definition']}) NOT VALID")
            assert made[4] is False
    finally:
        victims.rollback()


@settings(max_examples=80)
@given(name=NAMES, routine=st.sampled_from(["ensure_check", "ensure_not_null"]))
def test_names_of_every_kind(victims: psycopg.Connection[Any], name: str, routine: str) -> None:
    """A name is taken as it is, or refused: never cut, folded or read as SQL."""
    target = "public.victims"
    one = (
        Declared(routine, {"table": target, "name": name, "predicate": "v is not null"})
        if routine == "ensure_check"
        else Declared(routine, {"table": target, "name": name, "column": "v"})
    )
    try:
        answer, come, gone = attempt(victims, lambda: one.run(victims))
        if answer is None or answer["outcome"] == "refused":
            assert come == gone == set()
        else:
            changed = {(row[0], row[2]) for row in come | gone}
            assert changed <= {("change", name), ("constraint", name), ("column", "v")}
    finally:
        victims.rollback()


@settings(max_examples=80)
@given(
    column=st.one_of(NAMES, TEXTS),
    where=st.one_of(st.none(), TEXTS),
    keep=st.one_of(st.none(), TEXTS),
)
@example(column="n", where="n > 0) ; drop table victims; --", keep=None)
@example(column="lower(t)", where=None, keep="greatest n; drop table victims")
@example(column="n) where (true", where=None, keep=None)
@example(column="id", where="0 < 0", keep=None)
@example(column="nowhere.is_a_function(n)", where="nowhere.is_a_function(n)", keep=None)
def test_keys_of_every_kind(
    victims: psycopg.Connection[Any], column: str, where: str | None, keep: str | None
) -> None:
    """Columns, expressions, predicates, precedences of a unique key: nothing but that index comes."""
    arguments = {
        "table": TARGET,
        "name": "hostile_key",
        "columns": [column],
        "where": where,
        "keep": keep,
    }
    try:
        answer, come, gone = attempt(
            victims, lambda: Declared("ensure_unique", arguments).run(victims)
        )
        ours = {row for row in come if row[0] == "class" and row[2].startswith("repair_rows_")}
        if answer is None or answer["outcome"] == "refused":
            assert come == gone == set()
        else:
            assert {(row[0], row[2]) for row in come - ours if row[0] != "function"} <= {
                ("change", "hostile_key"), ("class", "hostile_key"), ("rows", ""),
            }  # fmt: skip
            assert {row[0] for row in gone} <= {"rows"}
    finally:
        victims.rollback()
