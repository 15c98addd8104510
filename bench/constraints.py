"""Constraints on a live table, and a table full of duplicates, against what people write by hand.

A check of another predicate takes the place of an older one while four sessions insert and update:

- ours: `ensure_check`, twice, as its answer says: the change, and in the next transaction the scan.
- drop_add: DROP CONSTRAINT and a validating ADD CONSTRAINT in one transaction.
- calm: nothing, for comparison.

Of each side, in alternating rounds: how long the session that changes the constraint held ACCESS
EXCLUSIVE on the table, and the longest and the median statement of any writer meanwhile. The lock is
seen by an observer that reads pg_locks about once a millisecond, so that the time is known within the
two readings on either side: `at_least` lies between readings that saw it, `at_most` between those that
did not. Ratios are of `at_most`. `unchanged` is the same call when nothing is left to do.

A unique key comes to a table of which 1 % and 20 % of the rows repeat one:

- ours: `ensure_unique` in one transaction, which keeps an image of every row first.
- by_hand: DELETE … USING row_number(), then CREATE UNIQUE INDEX, which keeps nothing.

The collapse is timed up to the beginning of the index, which both sides build in the same way, on at most
500,000 rows; then ours is undone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg

from bench.harness import Bench

Connection = psycopg.Connection[Any]
Span = tuple[float, float]

SIZES = (1_000_000,)
WRITERS = 4
PAUSE = 0.002
QUIET = 0.5
CALLS = 20
MOST_TO_COLLAPSE = 500_000
SHARES = (0.01, 0.2)

EXCLUSIVE = "AccessExclusiveLock"
OLDER = "decision_rule <> 'cheapest_clearing_floor' or inference_id is not null"
WANTED = f"{OLDER} or completed_at is null"
OUTCOMES = """
create table outcomes (
  id bigint generated always as identity,
  decision_rule text not null,
  inference_id bigint,
  completed_at timestamptz
) with (autovacuum_enabled = off)
"""
FILL = """
insert into outcomes (decision_rule, inference_id, completed_at)
select case when i %% 2 = 0 then 'cheapest_clearing_floor' else 'caller_ranked' end, i, now()
from generate_series(1, %s) i
"""
PUT_BACK = (
    "alter table outcomes drop constraint if exists outcomes_rule_check, "
    f"add constraint outcomes_rule_check check ({OLDER}) not valid"
)
BY_HAND = (
    "alter table outcomes drop constraint outcomes_rule_check",
    f"alter table outcomes add constraint outcomes_rule_check check ({WANTED})",
)
ENSURE_CHECK = (
    "select outcome, next from routeledger.ensure_check('outcomes', 'outcomes_rule_check', %s)"
)
INSERT = (
    "insert into outcomes (decision_rule, inference_id) "
    "values ('cheapest_clearing_floor', 1) returning id"
)
UPDATE = "update outcomes set completed_at = clock_timestamp() where id = %s"
LOCKS = """
select mode || case when granted then '' else ' (waiting)' end
from pg_locks
where locktype = 'relation' and relation = %s and pid = %s
"""

MEASURED = """
create table measured (
  id bigint primary key, grp text, item text, n bigint, mean double precision, at timestamptz
) with (autovacuum_enabled = off);
create unlogged table source (like measured) with (autovacuum_enabled = off);
-- what began last and was not rolled back again is the index on the table
create function note() returns event_trigger language plpgsql as $$
begin
  perform set_config('bench.' || tg_event, extract(epoch from clock_timestamp())::text, false);
end $$;
create event trigger note_start on ddl_command_start when tag in ('CREATE INDEX') execute function note();
create event trigger note_end on ddl_command_end when tag in ('CREATE INDEX') execute function note();
"""
# so many rows in no order, of which a share repeats a key of the others; each n once
SOURCE = """
insert into source
select row_number() over (), 'group-' || lpad((key %% 400)::text, 4, '0'),
  'item-' || lpad(key::text, 8, '0'), n, random(), '2026-01-01Z'::timestamptz + n * interval '1 second'
from (
  select n, case when n <= %(keys)s then n else 1 + floor(random() * %(keys)s)::bigint end as key
  from generate_series(1, %(rows)s) n
  order by random()
) s
"""
DELETE = """
delete from measured m
using (select ctid, row_number() over (partition by grp, item order by n desc) as place from measured) r
where m.ctid = r.ctid and r.place > 1
"""
ENSURE_UNIQUE = """
select outcome, (detail ->> 'repair_id')::bigint
from routeledger.ensure_unique('measured', 'measured_key', array['grp', 'item'], p_keep => 'greatest n')
"""
CONTENT = "select count(*), sum(hashtext(t::text)::bigint) from {} t"
WINNERS = "(select distinct on (grp, item) * from source order by grp, item, n desc)"


# -- arithmetic -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """The locks that one session had, or waited for, at a moment between these two."""

    asked: float
    answered: float
    modes: tuple[str, ...]


def held(readings: Sequence[Reading], mode: str) -> tuple[float, float]:
    """Seconds for which a lock was held at least, and at most; between neighbours that do not see it."""
    least = most = 0.0
    first = None
    before = readings[0].asked if readings else 0.0
    for number, reading in enumerate(readings):
        last = number == len(readings) - 1
        if mode in reading.modes:
            first = first or reading
            if not last:
                continue
        if first:
            seen = reading if mode in reading.modes else readings[number - 1]
            least += max(0.0, seen.asked - first.answered)
            most += reading.answered - before
            first = None
        before = reading.asked
    return least, most


def exclusive(readings: Sequence[Reading]) -> tuple[float, float]:
    """The same for a lock that was surely held: when no reading saw it, between two of them."""
    least, most = held(readings, EXCLUSIVE)
    return least, most or max(gaps(readings))


def gaps(readings: Sequence[Reading]) -> list[float]:
    """Seconds from each reading to the next, the time of both included."""
    return [b.answered - a.asked for a, b in pairwise(readings)]


def within(readings: Sequence[Reading], span: Span) -> list[Reading]:
    """The readings that a span touches, and one more on either side."""
    touched = [i for i, r in enumerate(readings) if r.answered >= span[0] and r.asked <= span[1]]
    return list(readings[max(0, touched[0] - 1) : touched[-1] + 2]) if touched else []


def under_way(statements: Sequence[Span], span: Span) -> list[float]:
    """How long those statements took that were under way in a span, in whole or in part."""
    return [end - start for start, end in statements if end >= span[0] and start <= span[1]]


def ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """How often mine goes into theirs: the median over the rounds."""
    return round(statistics.median(t / m for t, m in zip(theirs, mine, strict=True)), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# -- the sessions beside, each a process of its own ---------------------------------------------------


def write(dsn: str, stop: Path) -> list[Span]:
    """Inserts a row and completes it, again and again; when each statement began and ended."""
    spans = []
    with psycopg.connect(dsn, autocommit=True, application_name="bench writer") as conn:
        while not stop.exists():
            row = 0
            for statement in (INSERT, UPDATE):
                start = time.perf_counter()
                cursor = conn.execute(statement, [row] if row else [], prepare=True)
                spans.append((start, time.perf_counter()))
                row = row or cursor.fetchall()[0][0]
                time.sleep(PAUSE)
    return spans


def observe(dsn: str, relation: int, pid: int, stop: Path) -> list[Reading]:
    """Reads what a session has locked, about once a millisecond."""
    readings = []
    with psycopg.connect(dsn, autocommit=True, application_name="bench observer") as conn:
        cursor = conn.cursor()
        while not stop.exists():
            asked = time.perf_counter()
            cursor.execute(LOCKS, [relation, pid], prepare=True)
            modes = tuple(sorted(mode for (mode,) in cursor))
            readings.append(Reading(asked, time.perf_counter(), modes))
            time.sleep(max(0.0, asked + 0.001 - time.perf_counter()))
    return readings


@dataclass(frozen=True, slots=True)
class Beside:
    """What the writers and the observer have seen; there once they are at their end."""

    writers: list[Future[list[Span]]]
    observer: Future[list[Reading]]


@contextmanager
def sessions_beside(conn: Connection, dsn: str, folder: Path) -> Iterator[Beside]:
    """Writers on the table and an observer of this connection, until the block ends."""
    stop = folder / "stop"
    stop.unlink(missing_ok=True)
    relation = one(conn, "select 'outcomes'::regclass::oid")[0]
    with ProcessPoolExecutor(WRITERS + 1, mp_context=get_context("spawn")) as pool:
        beside = Beside(
            [pool.submit(write, dsn, stop) for _ in range(WRITERS)],
            pool.submit(observe, dsn, relation, conn.info.backend_pid, stop),
        )
        try:
            until(
                lambda: (
                    one(
                        conn,
                        "select count(*) from pg_stat_activity where application_name like 'bench %'",
                    )[0]
                    > WRITERS
                )
            )
            yield beside
        finally:
            stop.touch()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns when it is true; an error when that takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError("the sessions beside do not begin")
        time.sleep(0.05)


def one(conn: Connection, query: str, parameters: Any = None) -> tuple[Any, ...]:
    """The only row of a query."""
    (row,) = conn.execute(query, parameters)
    return tuple(row)


# -- a check in place of an older one -----------------------------------------------------------------


def ensure(conn: Connection) -> list[str]:
    """Calls until nothing is left to do, each call a transaction; what each has done."""
    outcomes = []
    following: str | None = "the first call"
    while following:
        outcome, following = one(conn, ENSURE_CHECK, [WANTED])
        outcomes.append(outcome)
    return outcomes


def replace_ours(conn: Connection) -> None:
    """By ensure_check."""
    outcomes = ensure(conn)
    if outcomes != ["replaced", "validated"]:
        raise RuntimeError(f"ensure_check: {outcomes}")


def replace_by_hand(conn: Connection) -> None:
    """By two statements in one transaction, the second of which scans the table."""
    with conn.transaction():
        for statement in BY_HAND:
            conn.execute(statement)


def fill(conn: Connection, rows: int) -> None:
    """The table with its key and the older check, in parts, so that the log is never long."""
    conn.execute(OUTCOMES)
    for start in range(0, rows, 1_000_000):
        conn.execute(FILL, [min(1_000_000, rows - start)])
        conn.execute("checkpoint")
    conn.execute("alter table outcomes add primary key (id)")
    conn.execute("vacuum analyze outcomes")
    conn.execute("checkpoint")


def put_back(conn: Connection) -> None:
    """The older check again, validated; its locks and who waited for them belong to no span."""
    time.sleep(QUIET)
    conn.execute(PUT_BACK)
    conn.execute("alter table outcomes validate constraint outcomes_rule_check")
    time.sleep(QUIET)


def measure_check(bench: Bench, folder: Path, rows: int) -> dict[str, Any]:
    """The lock, and what the writers felt of it, on a table of so many rows."""
    sides: dict[str, Callable[[Connection], Any]] = {
        "ours": replace_ours,
        "drop_add": replace_by_hand,
        "calm": lambda _: time.sleep(bench.seconds),
    }
    database = bench.database()
    dsn = bench.server.dsn(database)
    spans: dict[str, list[Span]] = {side: [] for side in (*sides, "unchanged")}
    own_locks: list[Any] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        fill(conn, rows)
        with sessions_beside(conn, dsn, folder) as beside:
            for number in range(bench.rounds):
                for side in sides if number % 2 == 0 else [*sides][::-1]:
                    put_back(conn)
                    start = time.perf_counter()
                    sides[side](conn)
                    spans[side].append((start, time.perf_counter()))
            if ensure(conn)[-1] not in ("validated", "unchanged"):
                raise RuntimeError("ensure_check does not come to an end")
            time.sleep(QUIET)
            for _ in range(CALLS):
                start = time.perf_counter()
                with conn.transaction():
                    if ensure(conn) != ["unchanged"]:
                        raise RuntimeError("ensure_check has changed what was there")
                    own_locks += conn.execute(
                        LOCKS,
                        [one(conn, "select 'outcomes'::regclass::oid")[0], conn.info.backend_pid],
                    )
                spans["unchanged"].append((start, time.perf_counter()))
        readings = beside.observer.result()
        statements = [future.result() for future in beside.writers]
    bench.server.drop_database(database)
    return summarise(spans, readings, [s for writer in statements for s in writer], own_locks)


def summarise(
    spans: dict[str, list[Span]],
    readings: Sequence[Reading],
    statements: Sequence[Span],
    own_locks: list[Any],
) -> dict[str, Any]:
    """Medians and ratios of what the observer and the writers saw in the spans of each side."""
    rounds: dict[str, dict[str, list[float]]] = {}
    for side in ("ours", "drop_add", "calm"):
        locks = [
            (0.0, 0.0) if side == "calm" else exclusive(within(readings, span))
            for span in spans[side]
        ]
        felt = [under_way(statements, span) for span in spans[side]]
        rounds[side] = {
            "seconds": [round(end - start, 3) for start, end in spans[side]],
            "access_exclusive_ms_at_least": [_ms(least) for least, _ in locks],
            "access_exclusive_ms_at_most": [_ms(most) for _, most in locks],
            "worst_stall_ms": [_ms(max(times)) for times in felt],
            "median_statement_ms": [_ms(statistics.median(times)) for times in felt],
        }
    quiet = [within(readings, span) for span in spans["unchanged"]]
    apart = sorted(gaps(readings))
    ours, theirs = rounds["ours"], rounds["drop_add"]
    return {
        "medians": {
            side: {name: round(statistics.median(values), 3) for name, values in of_side.items()}
            for side, of_side in rounds.items()
        },
        "unchanged": {
            "calls": len(quiet),
            "readings": sum(len(part) for part in quiet),
            "locks_seen": sorted({mode for part in quiet for r in part for mode in r.modes}),
            "locks_before_commit": sorted({mode for (mode,) in own_locks}),
            "ms_a_call": _ms(statistics.median(end - start for start, end in spans["unchanged"])),
        },
        "observer_ms_between_readings": {
            "median": _ms(statistics.median(apart)),
            "p99": _ms(apart[len(apart) * 99 // 100]),
            "longest": _ms(apart[-1]),
        },
        "writers": {"sessions": WRITERS, "statements": len(statements)},
        "ratio": {
            "access_exclusive": ratio(
                theirs["access_exclusive_ms_at_most"], ours["access_exclusive_ms_at_most"]
            ),
            "worst_stall": ratio(theirs["worst_stall_ms"], ours["worst_stall_ms"]),
            "seconds": ratio(theirs["seconds"], ours["seconds"]),
        },
        "rounds": rounds,
    }


# -- a unique key on a table full of duplicates ---------------------------------------------------------


def unique_ours(conn: Connection) -> int:
    """By ensure_unique; the number of the repair."""
    outcome, repair = one(conn, ENSURE_UNIQUE)
    if outcome != "created":
        raise RuntimeError(f"ensure_unique: {outcome}")
    return int(repair)


def unique_by_hand(conn: Connection) -> int:
    """By DELETE and CREATE UNIQUE INDEX; no repair."""
    with conn.transaction():
        conn.execute("lock table measured in share row exclusive mode")
        conn.execute(DELETE)
        conn.execute("create unique index measured_key on measured (grp, item)")
    return 0


def prepare(conn: Connection) -> None:
    """The table as a round begins with it."""
    conn.execute("drop index if exists measured_key")
    conn.execute("truncate measured")
    conn.execute("insert into measured select * from source")
    conn.execute("vacuum analyze measured")
    conn.execute("checkpoint")


def measure_collapse(bench: Bench, rows: int, share: float) -> dict[str, Any]:
    """Seconds of the collapse and of its undo, of so many rows of which a share goes."""
    sides = {"ours": unique_ours, "by_hand": unique_by_hand}
    surplus = int(rows * share)
    database = bench.database()
    collapse: dict[str, list[float]] = {side: [] for side in sides}
    index: dict[str, list[float]] = {side: [] for side in sides}
    undo: list[float] = []
    with psycopg.connect(bench.server.dsn(database), autocommit=True) as conn:
        conn.execute(MEASURED)
        conn.execute(SOURCE, {"rows": rows, "keys": rows - surplus})
        conn.execute("analyze source")
        everything = one(conn, CONTENT.format("source"))
        winners = one(conn, CONTENT.format(WINNERS))
        for number in range(bench.rounds):
            for side in sides if number % 2 == 0 else [*sides][::-1]:
                prepare(conn)
                start = float(one(conn, "select extract(epoch from clock_timestamp())")[0])
                repair = sides[side](conn)
                began, ended = (
                    float(one(conn, f"select current_setting('bench.ddl_command_{event}')")[0])
                    for event in ("start", "end")
                )
                collapse[side].append(began - start)
                index[side].append(ended - began)
                if one(conn, CONTENT.format("measured")) != winners:
                    raise RuntimeError(f"{side}: other rows have stayed")
                if repair:
                    conn.execute("checkpoint")
                    tick = time.perf_counter()
                    conn.execute("select from routeledger.undo_repair(%s)", [repair])
                    undo.append(time.perf_counter() - tick)
                    if one(conn, CONTENT.format("measured")) != everything:
                        raise RuntimeError("the undo has not put back what was there")
    bench.server.drop_database(database)
    total = {
        side: [c + i for c, i in zip(collapse[side], index[side], strict=True)] for side in sides
    }
    return {
        "rows": rows,
        "removed": surplus,
        "seconds": {
            **{side: round(statistics.median(times), 3) for side, times in collapse.items()},
            "index": round(statistics.median(index["by_hand"]), 3),
            "undo": round(statistics.median(undo), 3),
        },
        "removed_per_second": {
            side: round(surplus / statistics.median(times)) for side, times in collapse.items()
        },
        "scanned_per_second": {
            side: round(rows / statistics.median(times)) for side, times in collapse.items()
        },
        "undone_per_second": round(surplus / statistics.median(undo)),
        "ratio": {
            "collapse": ratio(collapse["by_hand"], collapse["ours"]),
            "with_index": ratio(total["by_hand"], total["ours"]),
        },
        "rounds": {
            **{side: [round(t, 3) for t in times] for side, times in collapse.items()},
            "undo": [round(t, 3) for t in undo],
        },
    }


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Locks, stalls and rows a second by number of rows."""
    checks: dict[str, Any] = {}
    collapses: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for rows in bench.sizes or SIZES:
        print(f"  {rows} rows, check …", file=sys.stderr, flush=True)
        checks[str(rows)] = check = measure_check(bench, folder, rows)
        for name in ("access_exclusive", "worst_stall"):
            ratios[f"{rows} {name}"] = check["ratio"][name]
    for rows in sorted({min(rows, MOST_TO_COLLAPSE) for rows in bench.sizes or SIZES}):
        for share in SHARES:
            name = f"{rows} collapse {share:.0%}"
            print(f"  {name} …", file=sys.stderr, flush=True)
            collapses[name] = measure_collapse(bench, rows, share)
            ratios[name] = collapses[name]["ratio"]["collapse"]
    return {
        "what": "a check replaced under four writers: DROP and validating ADD against ensure_check; "
        "duplicates removed: DELETE by row_number() without images against ensure_unique",
        "check": checks,
        "collapse": collapses,
        "ratio": ratios,
        "target": "access_exclusive >= 50 and worst_stall >= 10 at 10000000 rows, collapse >= 0.25",
    }
