"""Constraints that were declared, dumped and restored are still what was declared: nothing is done again.

PostgreSQL prints some predicates in another form when they come out of a dump (`varchar in (…)` is the best
known): a tool that compares texts would replace those after each restore.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.concurrency.test_constraints import Declared
from tests.conftest import Database
from tests.servers import SUPPORTED, Server, find_server, launch, server_binaries

TABLE = """
create schema "Shop";
create type "Shop".mood as enum ('sad', 'ok', 'happy');
create domain "Shop".code as varchar(10) check (value <> '');
create function "Shop".is_fine(text) returns boolean language sql immutable
  as 'select $1 is distinct from ''bad''';
create table "Shop"."Order Lines" (
  id integer primary key,
  n integer,
  x double precision,
  d numeric(8, 2),
  t text,
  v varchar(20),
  c char(4),
  code "Shop".code,
  b boolean,
  at timestamp with time zone,
  local timestamp without time zone,
  day date,
  span interval,
  tags varchar(10)[],
  doc jsonb,
  raw bytea,
  how "Shop".mood,
  "Mixed Case" integer
);
insert into "Shop"."Order Lines" (id, v, n, b) values (1, 'x', 1, true);
"""
TARGET = '"Shop"."Order Lines"'
PREDICATES = {
    "varchar in": "v in ('x', 'y')",
    "varchar not in": "v not in ('p', 'q')",
    "varchar any": "v = any (array['x', 'y']::varchar[])",
    "char in": "c in ('a', 'b')",
    "domain in": "code in ('a', 'b')",
    "text in": "t in ('a', 'b')",
    "between": "n between 1 and 10 and x not between -0.5 and 1e-7",
    "right-nested": "n > 0 and (n < 100 or (b and (t is null or length(t) > 2)))",
    "not": "not (n is null) and not (b = false)",
    "enum": "how in ('ok', 'happy') or how is null",
    "quoted name": '"Mixed Case" % 2 = 0 and "Order Lines"."Mixed Case" < 7',
    "whole row": '"Order Lines" is not null or n > 0',
    "case": "case when b then n > 0 when not b then n < 0 else n = 0 end is not false",
    "strings": r"t <> 'it''s \ here' and t <> E'tab\t' and t not like '100!%%' escape '!'",
    "times": "at > timestamp with time zone '2020-01-01 00:00+05:30' and day >= date '2020-02-03'"
    " and local < timestamp '2030-01-01 12:00:00.5'",
    "interval": "span < interval '1 year 2 days 03:04:05'",
    "array": "tags <@ array['a', 'b']::varchar[] and coalesce(array_length(tags, 1), 0) < 5"
    " and 'c' <> all (tags)",
    "json": "doc ->> 'kind' in ('a', 'b') or doc @> '{\"n\": [1, 2]}' or not doc ? 'kind'",
    "bytes": r"raw <> '\xdeadbeef'::bytea and octet_length(raw) <= 100",
    "casts": "d::integer > 0 and n::text <> '5' and x::numeric(4, 1) <> 1.5",
    "functions": "lower(v) = v and coalesce(nullif(t, ''), 'x') <> 'y' and greatest(n, 1, d) < 1000",
    "own function": '"Shop".is_fine(t)',
    "collation": 't collate "C" >= \'a\' collate "C"',
    "regular expression": r"v ~ '^[a-z]+\d*$' and t !~* '(foo|bar)'",
    "row": "(n, v) <> (1, 'z') and row(n, x) is distinct from row(0, 0)",
    "distinct": "v is distinct from 'z' and (b is true or n is not distinct from 1)",
    "parts of times": "extract(year from day) > 2000 and (at at time zone 'UTC')::date > date '2020-01-01'",
}


def check(name: str, predicate: str, **more: Any) -> Declared:
    return Declared("ensure_check", {"table": TARGET, "name": name, "predicate": predicate, **more})


def unique(name: str, columns: list[str], **more: Any) -> Declared:
    return Declared("ensure_unique", {"table": TARGET, "name": name, "columns": columns, **more})


OTHERS: list[Declared] = [
    Declared("ensure_not_null", {"table": TARGET, "column": "v", "name": "Lines_v_not_null"}),
    unique("lines_v_key", ["v"], form="constraint"),
    unique("lines_expression", ["lower(v)", "coalesce(t, '-')"], where="v in ('x', 'y') and n > 0"),
    unique("lines_nulls", ["code", "Mixed Case"], nulls="not_distinct"),
]


def declared() -> Iterator[tuple[str, Declared]]:
    for title, predicate in PREDICATES.items():
        yield title, check(f"Check of {title}", predicate)
    for title, predicate in PREDICATES.items():
        # what is there from elsewhere, found by its meaning
        yield f"{title}, from elsewhere", check(f"elsewhere {title}", predicate)
    for one in OTHERS:
        yield one.routine, one


def fill(conn: psycopg.Connection[Any]) -> None:
    """The table, and on it what is declared, some of it made by hand."""
    conn.execute(TABLE)
    for title, predicate in PREDICATES.items():
        conn.execute(
            f'alter table {TARGET} add constraint "elsewhere {title}" check ({predicate})'.encode()
        )
    for title, one in declared():
        made = one.settle(conn)
        assert made[-1] in ("unchanged" if "elsewhere" in title else "created", "validated"), (
            title,
            made,
        )


def still(conn: psycopg.Connection[Any]) -> None:
    """All of it is unchanged, and the ledger's own constraints are; nothing is done about any."""
    count = "select count(*) from routeledger.constraint_changes"
    before = conn.execute(count).fetchone()
    for title, one in declared():
        answer = one.run(conn)
        assert (answer["outcome"], answer["validated"]) == ("unchanged", True), (title, answer)
    assert conn.execute(count).fetchone() == before
    assert (
        conn.execute(
            "select target, name, declared, found from routeledger.constraint_drift"
        ).fetchall()
        == []
    )
    own = conn.execute(
        """select count(*), count(*) filter (where state = 'unchanged')
           from routeledger.constraint_states('routeledger.routing_outcomes')"""
    ).fetchone()
    assert own is not None
    assert own[0] == own[1] >= 4


def copy_of(source: Server, dbname: str, target: Server, into: str) -> None:
    """pg_dump | pg_restore, both of the newer version."""
    binaries = max(source, target, key=lambda one: one.major).binaries
    dump = subprocess.Popen(
        binaries.command("pg_dump", "--format=custom", "--dbname", source.dsn(dbname)),
        env=binaries.env(),
        stdout=subprocess.PIPE,
    )
    restore = subprocess.run(
        binaries.command("pg_restore", "--exit-on-error", "--dbname", target.dsn(into)),
        env=binaries.env(), stdin=dump.stdout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert dump.stdout is not None
    dump.stdout.close()
    assert (dump.wait(), restore.returncode) == (0, 0), restore.stderr


def test_dumped_and_restored(db: Database, make_database: Callable[..., Database]) -> None:
    """Twice over: what comes out of the second dump is what came out of the first."""
    with db.connect() as conn:
        fill(conn)
        still(conn)
    printed = []
    for _ in range(2):
        restored = make_database(installed=False)
        copy_of(db.server, db.name, restored.server, restored.name)
        with restored.connect() as conn:
            still(conn)
        printed.append(
            restored.execute(
                """select conname, pg_get_constraintdef(oid)
                   from pg_constraint where conrelid = %s::regclass order by 1""",
                [TARGET],
            )
        )
        db = restored
    assert printed[0] == printed[1]


SETTINGS = {
    "TimeZone": "'America/St_Johns'",
    "DateStyle": "'German, DMY'",
    "IntervalStyle": "'iso_8601'",
    "quote_all_identifiers": "on",
    "search_path": '"Shop", public',
    "standard_conforming_strings": "off",
    "extra_float_digits": "-5",
    "bytea_output": "'escape'",
}


def test_restored_elsewhere(db: Database, make_database: Callable[..., Database]) -> None:
    """From the oldest version that is here into a database of the one under test, with other defaults."""
    oldest = min(major for major in server_binaries() if major in SUPPORTED)
    restored = make_database(installed=False)
    for name, value in SETTINGS.items():
        restored.execute(f'alter database {restored.name} set "{name}" = {value}')
    with Server(find_server(oldest)) as old:
        old.install("postgres")
        with old.connect() as conn:
            fill(conn)
        copy_of(old, "postgres", restored.server, restored.name)
    with restored.connect() as conn:
        still(conn)


def settled(server: Server) -> Path:
    """The data of a server that has been shut down."""
    server.shutdown()
    return Path(server._postgres.get_data_directory())


def test_upgraded_in_place(major: int) -> None:
    """pg_upgrade from the oldest version that is here to the one under test."""
    oldest = min(major for major in server_binaries() if major in SUPPORTED)
    with Server(find_server(oldest)) as old, Server(find_server(major)) as new:
        old.install("postgres")
        with old.connect() as conn:
            fill(conn)
            before = conn.execute(CHECKSUMS).fetchone()
        with new.connect() as conn:
            after = conn.execute(CHECKSUMS).fetchone()
        new.drop_database("test")  # that of testing.postgresql
        data = settled(old), settled(new)
        if before != after:
            run_in(data[0], old.binaries.command("pg_checksums", "--enable", "-D", data[0]))
        run_in(
            data[1].parent,
            new.binaries.command(
                "pg_upgrade", "-U", "postgres",
                "-b", old.binaries.bindir, "-B", new.binaries.bindir, "-d", data[0], "-D", data[1],
            ),
        )  # fmt: skip
        new.start()
        with new.connect() as conn:
            still(conn)


CHECKSUMS = "select current_setting('data_checksums')"


def run_in(folder: Path, command: list[str]) -> None:
    """As the owner of a cluster."""
    done = subprocess.run(
        launch(["/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = "".join(log.read_text() for log in folder.rglob("pg_upgrade_dump*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
