"""Upserts by many sessions at once: no deadlock, the best row of each key stays, and the counts are exact.

Where it is said that a session waits, another one looks at it; nothing here depends on how long things take.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.books import Answer, Call, scaled
from tests.concurrency.test_callers import together
from tests.concurrency.test_locks import Patient
from tests.conftest import Database

WORKERS = 4
BATCHES_EACH = 150
BATCH_ROWS = 200
STORED = 400
SEED = 20261121
KINDS = ("ordinary", "partitioned")
COUNTS = ("received", "collapsed", "inserted", "updated", "unchanged", "refused")

Key = tuple[str, str]
Row = dict[str, Any]


def key(number: int) -> Key:
    return f"g{number % 7}", f"item{number:06d}"


def row(number: int, n: int, m: int = 0) -> Row:
    a, b = key(number)
    return {"a": a, "b": b, "n": n, "m": m}


def make_table(db: Database, kind: str, stored: int = 0) -> None:
    """The table `things` with the keys 0 to `stored` in it, each with an n that every other one beats."""
    partition_by = "partition by hash (a)" if kind == "partitioned" else ""
    with db.connect() as conn:
        conn.execute(
            f"create table things (a text, b text, n bigint, m bigint, primary key (a, b)) {partition_by}"
        )
        if partition_by:
            for i in range(4):
                conn.execute(
                    f"create table things_{i} partition of things for values with (modulus 4, remainder {i})"
                )
        conn.cursor().executemany(
            "insert into things values (%s, %s, -1, 0)", [key(number) for number in range(stored)]
        )
        conn.execute("analyze things")


def contents(db: Database) -> dict[Key, tuple[int, int]]:
    return {(a, b): (n, m) for a, b, n, m in db.execute("select a, b, n, m from things")}


def upsert(rows: list[Row], **more: Any) -> Call:
    """Of several rows of a key the one with the highest n, and of those the one with the highest m."""
    return Call("upsert", {"target": "things", "rows": rows, "precedence": "n, m", **more})


def add(rows: list[Row], batch_id: str) -> Call:
    return upsert(rows, precedence="sum n, m", batch_id=batch_id)


def quick(conn: psycopg.Connection[Any]) -> None:
    """A deadlock shows at once, and what is reported is not sent."""
    conn.execute("set deadlock_timeout = '50ms'")
    conn.execute("set client_min_messages = error")


@contextmanager
def transaction(db: Database, *statements: str | Call) -> Iterator[psycopg.Connection[Any]]:
    """A session that has run these in a transaction, which is open; undone at the end if it still is."""
    with db.connect(autocommit=False) as conn:
        for statement in statements:
            if isinstance(statement, Call):
                statement.run(conn)
            else:
                conn.execute(statement)
        yield conn
        conn.rollback()


class Tally:
    """What all sessions have written between them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.best: dict[Key, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def keep(self, rows: list[Row], answer: Answer) -> None:
        assert answer["received"] == len(rows)
        assert answer["received"] == sum(answer[name] for name in COUNTS[1:]), answer
        with self._lock:
            self.counts["calls"] += 1
            for name in COUNTS:
                self.counts[name] += answer[name]
            for one in rows:
                of, value = (one["a"], one["b"]), (one["n"], one["m"])
                self.best[of] = max(value, self.best.get(of, value))

    def check(self, db: Database, stored: int) -> None:
        """The best row of each key is there, and each row of the table was counted once."""
        expected = {key(number): (-1, 0) for number in range(stored)} | self.best
        assert contents(db) == expected
        assert self.counts["inserted"] == len(expected) - stored
        assert self.counts["refused"] == 0
        self.check_counters(db)

    def check_counters(self, db: Database) -> None:
        """What an operator sees is what the callers were told."""
        names = ("calls", *COUNTS)
        seen = db.execute(f"select {', '.join(f'sum({name})' for name in names)} from upsert_seen")
        assert seen == [tuple(self.counts[name] for name in names)]


@pytest.fixture(autouse=True)
def upsert_seen(db: Database) -> None:
    db.execute(
        "create view upsert_seen as"
        " select * from routeledger.upsert_activity where target = 'public.things'"
    )


class Source:
    """The batches of one session: rows of stored keys, of new ones that others insert too, or of both."""

    def __init__(self, session: int, keys: str) -> None:
        self._rng = random.Random(SEED + session)
        self._session = session
        self._keys = keys

    def batch(self, turn: int) -> list[Row]:
        rng = self._rng
        share = {"stored": BATCH_ROWS, "new": 0, "half": BATCH_ROWS // 2}[self._keys]
        new = BATCH_ROWS - share
        first = STORED + turn * new // 2  # each window overlaps with the next one
        numbers = [*rng.sample(range(STORED), share), *range(first, first + new)]
        if self._session < 2:
            numbers.sort(reverse=self._session == 1)
        else:
            rng.shuffle(numbers)
        return [row(number, rng.randrange(1000), rng.randrange(1000)) for number in numbers]


@pytest.mark.parametrize("keys", ["stored", "new", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_in_opposite_orders(db: Database, kind: str, keys: str) -> None:
    """600 batches of overlapping keys, each session in an order of its own: not one deadlock."""
    make_table(db, kind, STORED)
    tally = Tally()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        source = Source(n, keys)
        for turn in range(scaled(BATCHES_EACH)):
            rows = source.batch(turn)
            tally.keep(rows, upsert(rows).run(conn))

    together(db, WORKERS, work)
    assert tally.counts["collapsed"] == 0
    tally.check(db, STORED)


def test_the_same_batches_without_order_deadlock(db: Database) -> None:
    """What people write today, as the measure of the test before: its first deadlock ends it."""
    make_table(db, "ordinary", STORED)
    deadlocked = threading.Event()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        source = Source(n, "stored")
        for turn in range(BATCHES_EACH * 4):
            if deadlocked.is_set():
                return
            try:
                conn.execute(
                    """insert into things as t
                       select a, b, n, m
                       from jsonb_to_recordset(%s) r (a text, b text, n bigint, m bigint)
                       on conflict (a, b) do update set n = excluded.n, m = excluded.m
                       where (excluded.n, excluded.m) > (t.n, t.m)""",
                    [Jsonb(source.batch(turn))],
                )
            except errors.DeadlockDetected:
                deadlocked.set()

    together(db, WORKERS, work)
    assert deadlocked.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_passed_over_and_held_by_another(db: Database, kind: str) -> None:
    """New rows that came from elsewhere are existing ones when their turn comes: nothing new is held then."""
    make_table(db, kind)
    with (
        transaction(db, upsert([row(5, 1)])) as five,
        transaction(db, upsert([row(6, 1)])) as six,
        transaction(db, upsert([row(13, 1)])) as last,
        db.connect() as look,
    ):
        one = Patient(db, upsert([row(n, 2) for n in (1, 5, 6, 13)]))
        one.waits_for(look, five.info.backend_pid)
        five.commit()
        one.waits_for(look, six.info.backend_pid)
        last.commit()
        two = Patient(db, upsert([row(n, 3) for n in (1, 13)]))
        two.waits_for(look, one.pid)
        six.commit()
        answers = [*one.result(), *two.result()]
    # either of them may be the first to write, once both have the same rows in sight
    for answer in answers:
        assert answer["received"] == sum(answer[name] for name in COUNTS[1:])
    assert [sum(answer[name] for answer in answers) for name in ("inserted", "refused")] == [1, 0]
    assert contents(db) == {key(1): (3, 0), key(5): (2, 0), key(6): (2, 0), key(13): (3, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_while_the_indexes_are_rebuilt(db: Database, kind: str) -> None:
    """REINDEX CONCURRENTLY again and again: no caller hears of it.

    Of a partitioned table one partition after the other: of the whole it locks all partitions against
    writers for a moment, which may deadlock with whatever writes two of them.
    """
    make_table(db, kind, STORED)
    tally = Tally()
    rebuilt = threading.Event()
    tables = ["things"] if kind == "ordinary" else [f"things_{i}" for i in range(4)]

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        if n == WORKERS:
            try:
                for turn in range(12):
                    conn.execute(f"reindex table concurrently {tables[turn % len(tables)]}")
            finally:
                rebuilt.set()
            return
        source = Source(n, "half")
        turn = 0
        while turn < 20 or not rebuilt.is_set():
            rows = source.batch(turn)
            tally.keep(rows, upsert(rows).run(conn))
            turn += 1

    together(db, WORKERS + 1, work)
    tally.check(db, STORED)
    assert db.value("select count(*) from pg_index where not indisvalid") == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_snapshots_with_retry(db: Database, kind: str, level: str) -> None:
    """A serialization failure, and nothing else, tells the caller to repeat; then all of it is there."""
    make_table(db, kind, STORED)
    tally = Tally()
    failures: Counter[int] = Counter()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        conn.execute(f"set default_transaction_isolation = '{level}'")
        source = Source(n, "half")
        for turn in range(scaled(25)):
            rows = source.batch(turn)
            for _ in range(1000):
                try:
                    answer = upsert(rows).run(conn)
                except errors.SerializationFailure:
                    failures[n] += 1
                else:
                    tally.keep(rows, answer)
                    break
            else:
                pytest.fail("no end of serialization failures")

    together(db, WORKERS, work)
    assert failures.total() > 0
    tally.check(db, STORED)


# -- batches that add up ----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_claimed_by_two(db: Database, kind: str, ending: str) -> None:
    """The second session waits for the first: it answers as the first did, or it is the first."""
    make_table(db, kind, 2)
    batch = add([row(1, 10), row(1, 5), row(2, 7), {**row(3, 1), "n": "many"}], "one")
    with transaction(db) as first, db.connect() as look:
        answer = batch.run(first)
        second = Patient(db, batch)
        second.waits_for(look, first.info.backend_pid)
        getattr(first, ending)()
        (again,) = second.result()
    counted = [answer[name] for name in COUNTS]
    assert counted == [4, 1, 1, 1, 0, 1]
    assert [refusal["ord"] for refusal in answer["refusals"]] == [4]
    assert again["refusals"] == answer["refusals"]
    assert [again[name] for name in COUNTS] == (
        [4, 0, 0, 0, 3, 1] if ending == "commit" else counted
    )
    assert contents(db) == {key(0): (-1, 0), key(1): (14, 0), key(2): (7, 0)}


def test_a_batch_claimed_by_two_with_different_rows(db: Database) -> None:
    make_table(db, "ordinary")
    with transaction(db, add([row(1, 10)], "one")) as first, db.connect() as look:
        second = Patient(db, add([row(1, 11)], "one"))
        second.waits_for(look, first.info.backend_pid)
        first.commit()
        with pytest.raises(psycopg.Error) as refused:
            second.result()
    assert refused.value.sqlstate == "RL308"
    assert contents(db) == {key(1): (10, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_all_send_the_same_batches(db: Database, kind: str) -> None:
    """Eight sessions, each with all batches in an order of its own: each batch adds once."""
    make_table(db, kind, STORED)
    rng = random.Random(SEED)
    numbers = range(STORED // 2, STORED * 2)  # half of them stored, half of them new
    batches = {
        f"batch {n}": [row(rng.choice(numbers), rng.randrange(9), 1) for _ in range(300)]
        for n in range(12)
    }
    applied: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    lock = threading.Lock()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        for name in random.Random(SEED + n).sample(sorted(batches), len(batches)):
            answer = add(batches[name], name).run(conn)
            with lock:
                applied[name] += answer["unchanged"] == 0
                totals.update({count: answer[count] for count in COUNTS})

    together(db, 8, work)
    assert applied == Counter(dict.fromkeys(batches, 1))
    expected = {key(number): (-1, 0) for number in range(STORED)}
    for one in (one for rows in batches.values() for one in rows):
        n, m = expected.get((one["a"], one["b"]), (0, 0))
        expected[one["a"], one["b"]] = (n + one["n"], m + one["m"])
    assert contents(db) == expected
    assert totals["inserted"] == len(expected) - STORED
    assert totals["unchanged"] == 7 * 12 * 300
    assert totals["received"] == sum(totals[name] for name in COUNTS[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_whose_transactions_fail(db: Database, kind: str) -> None:
    """In each stream every third batch is undone after it was written, and repeated: it adds once."""
    make_table(db, kind)
    turns = 12
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        for turn in range(turns):
            rows = [row(number, 1, n) for number in range(turn, turn + 50)]
            if n % 2:
                rows.reverse()
            batch = add(rows, f"stream {n} batch {turn}")
            if turn % 3 == 2:
                with pytest.raises(errors.DivisionByZero), conn.transaction():
                    batch.run(conn)
                    conn.execute("select 1 / 0")
            answer = batch.run(conn)
            assert answer["inserted"] + answer["updated"] == 50
            with lock:
                told.update({name: answer[name] for name in COUNTS}, calls=1)

    together(db, WORKERS, work)
    expected: Counter[Key] = Counter()
    for turn in range(turns):
        expected.update(key(number) for number in range(turn, turn + 50))
    each = sum(range(WORKERS))
    assert contents(db) == {of: (n * WORKERS, n * each) for of, n in expected.items()}
    assert told["inserted"] == len(expected)
    # of what was undone nothing was counted and no batch was booked
    assert db.execute("select calls, received, inserted, updated from upsert_seen") == [
        tuple(told[name] for name in ("calls", "received", "inserted", "updated"))
    ]
    assert db.value("select count(*) from routeledger.upsert_batches") == WORKERS * turns


# -- sessions that end, rows that go ----------------------------------------------------------


@pytest.mark.parametrize("waits_at", ["new key", "stored row"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_is_killed(db: Database, kind: str, waits_at: str) -> None:
    """In the middle of its batch: nothing of it is there, and its repetition ends as if it were the first."""
    make_table(db, kind, 10)
    before = contents(db)
    batch = add([row(number, 5) for number in range(20)], "one")
    hold = (
        "insert into things values ('g3', 'item000017', 1, 1)"
        if waits_at == "new key"
        else "select from things where b = 'item000004' for update"
    )
    with transaction(db, hold) as holder, db.connect() as look:
        victim = Patient(db, batch)
        victim.waits_for(look, holder.info.backend_pid)
        ended = look.execute("select pg_terminate_backend(%s, 30000)", [victim.pid]).fetchone()
        assert ended == (True,)
        with pytest.raises(psycopg.OperationalError):
            victim.result()
        holder.rollback()
    assert contents(db) == before
    assert db.execute("select from upsert_seen") == []
    assert db.execute("select from routeledger.upsert_batches") == []
    with db.connect() as conn:
        answer = batch.run(conn)
    assert (answer["inserted"], answer["updated"]) == (10, 10)
    assert contents(db) == {key(number): (4 if number < 10 else 5, 0) for number in range(20)}


@pytest.mark.parametrize("kind", KINDS)
def test_while_rows_are_deleted(db: Database, kind: str) -> None:
    """Deletes take rows in an order of their own, so a deadlock may be; repeated, nothing is lost.

    What was inserted less what was deleted is there, so no row was counted twice or not at all, and of
    the keys that nobody deletes the best row stays.
    """
    make_table(db, kind, STORED)
    tally = Tally()
    deleted: Counter[int] = Counter()
    lasting = {key(number) for number in range(STORED // 2)}

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        quick(conn)
        rng = random.Random(SEED - n)
        source = Source(n, "stored")

        def insist(statement: Any) -> Any:
            for _ in range(100):
                try:
                    return statement()
                except errors.DeadlockDetected:
                    continue
            return pytest.fail("no end of deadlocks")

        for turn in range(scaled(60)):
            gone = [key(number)[1] for number in rng.sample(range(STORED // 2, STORED), 20)]
            deleted[n] += insist(
                lambda gone=gone: conn.execute("delete from things where b = any (%s)", [gone])
            ).rowcount
            rows = source.batch(turn)
            tally.keep(rows, insist(lambda rows=rows: upsert(rows).run(conn)))

    together(db, WORKERS, work)
    after = contents(db)
    there = STORED + tally.counts["inserted"] - deleted.total()
    if kind == "partitioned" and db.server.major < 18:
        # a row deleted between look-up and write counts as updated there
        assert there <= len(after)
    else:
        assert there == len(after)
    assert lasting <= after.keys()
    assert {of: after[of] for of in lasting} == {of: tally.best[of] for of in lasting}
    tally.check_counters(db)
    with db.connect() as conn:
        answer = upsert([row(number, 2000) for number in range(STORED)]).run(conn)
    assert (answer["inserted"], answer["updated"]) == (STORED - len(after), len(after))


# -- what nobody waits for, and what is not written -------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_counters_keep_nobody_waiting(db: Database, kind: str) -> None:
    """Transactions that stay open after an upsert hold their rows of the table and nothing else."""
    make_table(db, kind, 10)
    with db.connect() as conn:
        upsert([row(0, 0)]).run(conn)  # there is a counter to take
    with (
        transaction(db, upsert([row(1, 1)])) as one,
        transaction(db, upsert([row(2, 1)])) as two,
        db.connect() as three,
    ):
        three.execute("set statement_timeout = '30s'")
        assert upsert([row(3, 1), row(30, 1)]).run(three)["inserted"] == 1
        two.commit()
        one.rollback()
    assert db.execute("select calls, received, inserted, updated from upsert_seen") == [
        (3, 4, 1, 3)
    ]
    # a counter that is free is used again
    counters = db.value("select count(*) from routeledger.upsert_counts")
    with db.connect() as conn:
        upsert([row(4, 1)]).run(conn)
    assert db.value("select count(*) from routeledger.upsert_counts") == counters


def wal_of(conn: psycopg.Connection[Any], statement: Any) -> int:
    """The bytes of WAL of the server meanwhile: the least of five, because others may write, too."""

    def position() -> int:
        found = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert found is not None
        return int(found[0])

    written = []
    for _ in range(5):
        before = position()
        statement()
        written.append(position() - before)
    return min(written)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_writes_nothing(db: Database, kind: str) -> None:
    """Rows that the table has are neither locked nor written; ON CONFLICT … WHERE false does both."""
    make_table(db, kind)
    rows = [row(number, number, 1) for number in range(5000)]
    versions = "select tableoid, ctid, xmin, xmax from things order by 1, 2"
    with db.connect() as conn:
        upsert(rows).run(conn)
        conn.execute("vacuum (analyze) things")
        before = conn.execute(versions).fetchall()

        def replay() -> None:
            answer = upsert(rows).run(conn)
            assert [answer[name] for name in COUNTS] == [5000, 0, 0, 0, 5000, 0]

        def naive() -> None:
            done = conn.execute(
                """insert into things as t
                   select a, b, n, m
                   from jsonb_to_recordset(%s) r (a text, b text, n bigint, m bigint)
                   on conflict (a, b) do update set n = excluded.n
                   where (excluded.n, excluded.m) > (t.n, t.m)""",
                [Jsonb(rows)],
            )
            assert done.rowcount == 0

        assert wal_of(conn, replay) < len(rows)
        assert conn.execute(versions).fetchall() == before
        assert wal_of(conn, naive) > 20 * len(rows)
        assert conn.execute(versions).fetchall() != before
