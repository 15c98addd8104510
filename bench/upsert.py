"""Bulk upserts of rows with duplicates: the driver against what people write today.

The same list of dicts, of which 20 % repeat a key, goes into the same table, and each side ends in the
same rows: of each key the one with the highest `n`. Every side is timed from the list to the
commit, work on the client included, in alternating rounds on a server with fsync on:

- ours: `Ledger.upsert`, on one connection and on two, its default. It counts as well.
- values: duplicates collapsed in Python, then INSERT … VALUES … ON CONFLICT of 1000 rows a statement.
- sqlalchemy: the same through Core's insertmanyvalues.
- executemany: the same through psycopg's executemany, which pipelines.
- copy: the limit, for new rows only: collapsed in Python, then one binary COPY into the table.

Kinds: new, into an empty table; existing, where every key is there and every new row wins; replay,
where the table holds the outcome already. How much memory the client needs on top is measured apart,
each side in a process of its own that draws the rows from a generator.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

import routeledger
from bench.harness import Bench

Row = dict[str, Any]
Side = Callable[[str], AbstractContextManager[Callable[[Iterable[Row]], Any]]]

SIZES = (10_000, 200_000)
KINDS = ("new", "existing", "replay")
DUPLICATES = 0.2
COLUMNS = ("grp", "item", "n", "mean", "at")
TABLE = """
create table bulk (
  grp text, item text, n bigint, mean double precision, at timestamptz,
  primary key (grp, item)
) with (autovacuum_enabled = off)
"""
ON_CONFLICT = (
    "on conflict (grp, item) do update set n = excluded.n, mean = excluded.mean, at = excluded.at "
    "where excluded.n > t.n"
)
OUTCOME = "select count(*), sum(n), sum(hashtext(bulk::text)) from bulk"
# as it is before a round of that kind; `outcome` holds the winners in the order of arrival
BEFORE = {
    "new": "select",
    "existing": "insert into bulk select grp, item, n - 1000000000, mean, at from outcome",
    "replay": "insert into bulk select * from outcome",
}
SQLALCHEMY = "python -m pip install 'sqlalchemy>=2'"


def generate(size: int) -> Iterator[Row]:
    """So many rows in no order, of which 20 % repeat a key, each `n` once."""
    chance = random.Random(size)
    keys = size - int(size * DUPLICATES)
    order = [*range(keys), *(chance.randrange(keys) for _ in range(size - keys))]
    chance.shuffle(order)
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for n, key in enumerate(order):
        yield {
            "grp": f"group-{key % 400:04d}",
            "item": f"item-{key:08d}",
            "n": n,
            "mean": chance.random(),
            "at": start + timedelta(seconds=n),
        }


def collapse(rows: Iterable[Row]) -> list[Row]:
    """Of each key the row with the highest `n`."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["grp"], row["item"]
        there = best.get(key)
        if there is None or row["n"] > there["n"]:
            best[key] = row
    return list(best.values())


# -- the sides: each connects, and then writes rows ---------------------------------------------------


@contextmanager
def ours(dsn: str, connections: int) -> Iterator[Callable[[Iterable[Row]], Any]]:
    """The driver, without the log line that every chunk with duplicates gives."""
    logging.getLogger("routeledger").setLevel(logging.ERROR)
    with routeledger.connect(dsn, min_size=connections, max_size=connections) as ledger:
        ledger.upsert("bulk", [], columns=COLUMNS)
        yield partial(
            ledger.upsert, "bulk", precedence="greatest n", columns=COLUMNS, connections=connections
        )


@contextmanager
def values(dsn: str) -> Iterator[Callable[[Iterable[Row]], Any]]:
    """Statements of 1000 rows in one transaction."""
    page = 1000
    with psycopg.connect(dsn) as conn:

        def write(rows: Iterable[Row]) -> None:
            winners = collapse(rows)
            for start in range(0, len(winners), page):
                part = winners[start : start + page]
                row = "(%s, %s, %s, %s, %s)"
                statement = (
                    f"insert into bulk as t ({', '.join(COLUMNS)}) "
                    f"values {', '.join([row] * len(part))} {ON_CONFLICT}"
                )
                conn.execute(statement, [value for row in part for value in row.values()])
            conn.commit()

        yield write


@contextmanager
def sqlalchemy_core(dsn: str) -> Iterator[Callable[[Iterable[Row]], Any]]:
    """One call of Core, which sends pages of 5000 rows: as fast as any size here."""
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import insert

    table = sa.Table(
        "bulk",
        sa.MetaData(),
        sa.Column("grp", sa.Text, primary_key=True),
        sa.Column("item", sa.Text, primary_key=True),
        sa.Column("n", sa.BigInteger),
        sa.Column("mean", sa.Double),
        sa.Column("at", sa.DateTime(timezone=True)),
    )
    statement = insert(table)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=[table.c.grp, table.c.item],
        set_={name: new[name] for name in ("n", "mean", "at")},
        where=new.n > table.c.n,
    )
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(url, insertmanyvalues_page_size=5000)
    engine.dialect.use_insertmanyvalues_wo_returning = True
    with engine.connect() as conn:

        def write(rows: Iterable[Row]) -> None:
            conn.execute(statement, collapse(rows))
            conn.commit()

        yield write
    engine.dispose()


@contextmanager
def executemany(dsn: str) -> Iterator[Callable[[Iterable[Row]], Any]]:
    """One call of psycopg's executemany."""
    statement = (
        f"insert into bulk as t ({', '.join(COLUMNS)}) "
        f"values (%(grp)s, %(item)s, %(n)s, %(mean)s, %(at)s) {ON_CONFLICT}"
    )
    with psycopg.connect(dsn) as conn:

        def write(rows: Iterable[Row]) -> None:
            conn.cursor().executemany(statement, collapse(rows))
            conn.commit()

        yield write


@contextmanager
def copy(dsn: str) -> Iterator[Callable[[Iterable[Row]], Any]]:
    """One binary COPY, which fails where a key is there already."""
    with psycopg.connect(dsn) as conn:

        def write(rows: Iterable[Row]) -> None:
            winners = collapse(rows)
            with (
                conn.cursor() as cursor,
                cursor.copy(
                    f"copy bulk ({', '.join(COLUMNS)}) from stdin (format binary)"
                ) as stream,
            ):
                stream.set_types(["text", "text", "int8", "float8", "timestamptz"])
                for row in winners:
                    stream.write_row(tuple(row.values()))
            conn.commit()

        yield write


OURS: dict[str, Side] = {
    "ours_1": partial(ours, connections=1),
    "ours_2": partial(ours, connections=2),
}
OTHERS: dict[str, Side] = {
    "values": values,
    "sqlalchemy": sqlalchemy_core,
    "executemany": executemany,
}
LIMIT: dict[str, Side] = {"copy": copy}
SIDES = {**OURS, **OTHERS, **LIMIT}


# -- measuring ------------------------------------------------------------------------------------


def prepare(conn: psycopg.Connection[Any], kind: str) -> None:
    """Bring the table into the state that a round of this kind begins with."""
    conn.execute("truncate bulk")
    conn.execute(BEFORE[kind])
    conn.execute("vacuum analyze bulk")
    conn.execute("checkpoint")


def time_side(dsn: str, side: str, rows: list[Row]) -> float:
    """Seconds from the list of rows to their commit."""
    with SIDES[side](dsn) as write:
        gc.collect()
        start = time.perf_counter()
        write(rows)
        return time.perf_counter() - start


def measure_kind(
    conn: psycopg.Connection[Any],
    dsn: str,
    kind: str,
    rows: list[Row],
    sides: list[str],
    rounds: int,
) -> dict[str, Any]:
    """Seconds of each side, and how often its time ours goes into."""
    wanted = conn.execute(OUTCOME.replace("bulk", "outcome")).fetchone()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            prepare(conn, kind)
            seconds[side].append(time_side(dsn, side, rows))
            if conn.execute(OUTCOME).fetchone() != wanted:
                raise RuntimeError(f"{side}: the rows of kind {kind} are not those of the others")
    best = [min(times) for times in zip(*(seconds[s] for s in sides if s in OTHERS), strict=True)]
    ratios: dict[str, Any] = {}
    for mine in OURS:
        ratios[mine] = {
            "best_of_others": _ratio(best, seconds[mine]),
            **{side: _ratio(seconds[side], seconds[mine]) for side in sides if side not in OURS},
        }
    return {
        "seconds": {side: round(statistics.median(times), 3) for side, times in seconds.items()},
        "rows_per_second": {
            side: round(len(rows) / statistics.median(times)) for side, times in seconds.items()
        },
        "ratio": ratios,
        "rounds": {side: [round(t, 3) for t in times] for side, times in seconds.items()},
    }


def _ratio(theirs: list[float], mine: list[float]) -> float:
    return round(statistics.median(t / m for t, m in zip(theirs, mine, strict=True)), 3)


def high_water() -> float:
    """The most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program only, where getrusage() remembers the one it came from
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def peak_of_side(dsn: str, side: str, size: int) -> float:
    """MB that a side takes on top, for rows that come from a generator; runs in a process of its own."""
    with SIDES[side](dsn) as write:
        rows = generate(size)
        first = next(rows)  # the order of the keys is the generator's, not the side's
        before = high_water()
        write(row for part in ((first,), rows) for row in part)
        return high_water() - before


def measure_peaks(
    conn: psycopg.Connection[Any], dsn: str, sides: list[str], size: int
) -> dict[str, float]:
    """MB of client memory that each side takes on top."""
    peaks = {}
    for side in sides:
        prepare(conn, "new")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[side] = round(pool.submit(peak_of_side, dsn, side, size).result(), 1)
    return peaks


def measure(bench: Bench, _: Path) -> dict[str, Any]:
    """Seconds, ratios and memory by number of rows and kind."""
    missing = {}
    if importlib.util.find_spec("sqlalchemy") is None:
        missing["sqlalchemy"] = SQLALCHEMY
        print(f"SQLAlchemy is missing ({SQLALCHEMY}): without that side", file=sys.stderr)
    dsn = bench.server.dsn(bench.database())
    results: dict[str, Any] = {}
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLE)
        for size in bench.sizes or SIZES:
            rows = list(generate(size))
            sides = [side for side in SIDES if side not in missing]
            prepare(conn, "new")
            time_side(dsn, "copy", rows)
            conn.execute("drop table if exists outcome")
            conn.execute("create table outcome as select * from bulk")
            rounds = max(1, min(bench.rounds, bench.rounds * 200_000 // size))
            kinds = {}
            for kind in KINDS:
                print(f"  {size} rows, {kind} …", file=sys.stderr, flush=True)
                able = [side for side in sides if kind == "new" or side not in LIMIT]
                times = 1 if kind == "replay" else rounds
                kinds[kind] = measure_kind(conn, dsn, kind, rows, able, times)
            del rows
            peaks = measure_peaks(conn, dsn, sides, size)
            results[str(size)] = {"kinds": kinds, "client_peak_mb": peaks}
    return {
        "what": "bulk upserts with 20 % duplicates, two connections: the driver against the best of "
        "multi-row VALUES, SQLAlchemy Core and executemany, and against a bare COPY",
        "missing": missing,
        "rows": results,
        "ratio": {
            f"{size} {kind}{' copy' if against == 'copy' else ''}": of_kind["ratio"]["ours_2"][
                against
            ]
            for size, of_size in results.items()
            for kind, of_kind in of_size["kinds"].items()
            for against in ("best_of_others", "copy")
            if against in of_kind["ratio"]["ours_2"]
        },
        "target": "new and existing >= 2, copy >= 0.45, at 200000 rows",
    }
