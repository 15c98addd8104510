"""Constraints declared by many sessions at once, on tables that others read and write meanwhile.

Where it is said that a session waits, another one looks at it; nothing here depends on how long things take.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.rows import dict_row

from tests.books import Answer, Call, call, check_sound, scaled, uuid7
from tests.concurrency.test_callers import together
from tests.concurrency.test_locks import Patient
from tests.conftest import Database

KINDS = ("ordinary", "partitioned")
OPERATORS = 20
PATIENCE = 60.0
ROWS = 40

# what each argument is, so that a list of Python arrives as an array and not as JSON
TYPES = {
    "table": "regclass",
    "columns": "text[]",
    "also_drop": "text[]",
    "lock_timeout": "interval",
    "attempts": "int4",
    "no_inherit": "bool",
    "strict": "bool",
    "dry_run": "bool",
    "force": "bool",
    "id": "int8",
}


@dataclass(frozen=True)
class Declared(Call):
    """A call of a routine that makes, checks or undoes a constraint."""

    @property
    def query(self) -> str:
        named = ", ".join(
            f"p_{name} => %({name})s::pg_catalog.{TYPES.get(name, 'text')}"
            for name in self.arguments
        )
        return f"select to_jsonb(r) from routeledger.{self.routine}({named}) r"

    @property
    def parameters(self) -> dict[str, Any]:
        return self.arguments

    def settle(self, conn: psycopg.Connection[Any]) -> list[str]:
        """The outcomes of this call, repeated in new transactions until nothing remains to be done."""
        outcomes = []
        for _ in range(10):
            answer = self.run(conn)
            outcomes.append(answer["outcome"])
            if answer["next"] is None:
                return outcomes
            assert answer["next"].startswith("Commit, then "), answer
        return pytest.fail(f"no end: {outcomes}")

    def but(self, **arguments: Any) -> Declared:
        """The same call with other arguments."""
        return Declared(self.routine, {**self.arguments, **arguments})


def check(predicate: str, name: str = "things_n_check", **more: Any) -> Declared:
    return Declared(
        "ensure_check", {"table": "things", "name": name, "predicate": predicate, **more}
    )


def unique(**more: Any) -> Declared:
    """Of the rows of one k, the one with the highest n stays."""
    arguments = {"table": "things", "name": "things_k_key", "columns": ["k"], "keep": "greatest n"}
    return Declared("ensure_unique", {**arguments, **more})


def not_null(**more: Any) -> Declared:
    arguments = {"table": "things", "column": "n", "name": "things_n_not_null"}
    return Declared("ensure_not_null", {**arguments, **more})


def make_table(db: Database, kind: str = "ordinary", times: int = 1) -> None:
    """The table `things`: each k of 0 to ROWS - 1 so many times, with n from 1 to `times`."""
    with db.connect() as conn:
        if kind == "ordinary":
            conn.execute(
                "create table things (id integer primary key, k integer, n integer, v text)"
            )
        else:
            conn.execute(
                "create table things (id integer, k integer, n integer, v text) partition by hash (k)"
            )
            for i in range(3):
                conn.execute(
                    f"create table things_{i} partition of things for values with (modulus 3, remainder {i})"
                )
        conn.execute(
            "insert into things select (t - 1) * %(rows)s + k, k, t, 'stored'"
            " from generate_series(1, %(times)s) t, generate_series(0, %(rows)s - 1) k",
            {"rows": ROWS, "times": times},
        )


def fingerprint(db: Database) -> list[Any]:
    """All that a constraint could have changed, of all tables of the schema public and of the history."""
    return db.execute(
        """
        select 'constraint', c.conrelid::regclass::text, c.conname::text, pg_get_constraintdef(c.oid),
          c.convalidated
        from pg_constraint c where c.connamespace = 'public'::regnamespace
        union all
        select 'index', i.indrelid::regclass::text, i.indexrelid::regclass::text,
          pg_get_indexdef(i.indexrelid), i.indisvalid
        from pg_index i join pg_class c on c.oid = i.indexrelid
        where c.relnamespace = 'public'::regnamespace
        union all
        select 'column', a.attrelid::regclass::text, a.attname::text, a.atttypid::regtype::text, a.attnotnull
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0
        union all
        select 'change', c.target, c.name, c.id || ' ' || c.action, c.undone_at is null
        from routeledger.constraint_changes c
        union all
        select 'repair', r.target, r.kind, r.id::text, r.state = 'done' from routeledger.repairs r
        order by 1, 2, 3, 4
        """
    )


def contents(db: Database, table: str = "things") -> list[str]:
    """Its rows, byte for byte."""
    return [row for (row,) in db.execute(f"select t::text from {table} t order by 1")]


def deadlocks(db: Database) -> int:
    """How many the server has counted in this database; sessions report when they end."""
    db.execute("select pg_stat_force_next_flush()")
    return int(
        db.value("select deadlocks from pg_stat_database where datname = current_database()")
    )


def until(condition: Callable[[], Any]) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def transaction(db: Database, *statements: str | Call) -> Iterator[psycopg.Connection[Any]]:
    """A session that has run these in a transaction, which is open; undone at the end if it still is."""
    with db.connect(autocommit=False) as conn:
        conn.execute("set local application_name = 'the one before'")
        conn.execute("set local deadlock_timeout = '50ms'")
        for statement in statements:
            if isinstance(statement, Call):
                statement.run(conn)
            else:
                conn.execute(sql.SQL(statement))
        yield conn
        conn.rollback()


@dataclass(frozen=True)
class Statement(Call):
    """Any statement, where a call is expected."""

    def rows(self, conn: psycopg.Connection[Any]) -> list[Answer]:
        with conn.cursor(row_factory=dict_row) as cursor:
            cursor.execute(self.routine.encode())
            return cursor.fetchall() if cursor.description else []


def statement(text: str) -> Statement:
    return Statement(text, {})


# -- no moment without ------------------------------------------------------------------------


class Hammer:
    """Writers who try forbidden rows all the time, each in a way of its own, while one session swaps.

    Both predicates forbid `never`; `north` allows the rows `north`, `south` the rows `south`. `in_force`
    is the predicate that surely holds from now on, or None while a swap is under way.
    """

    ALLOWED: ClassVar = {"north": "v in ('stored', 'north')", "south": "v in ('stored', 'south')"}

    def __init__(self, writers: int) -> None:
        self.writers = writers
        self.turn = 0
        self.in_force: str | None = None
        self.over = False
        self.refused: Counter[tuple[str, int]] = Counter()
        self.accepted: Counter[str] = Counter()
        self.overlapped: Counter[int] = Counter()
        self.slipped: list[Any] = []
        self.ids = itertools.count(1000)
        self.turns_of = [0] * writers
        self._lock = threading.Lock()

    def check(self, predicate: str) -> Declared:
        """Rows of the other predicate are there, so that the new one is not validated."""
        return check(self.ALLOWED[predicate], if_violated="add_not_valid", attempts=1000)

    def tries(self, conn: psycopg.Connection[Any], way: int, value: str) -> bool:
        """Whether the row is taken."""
        try:
            if way % 4 == 0:
                conn.execute("insert into things values (%s, 1, 1, %s)", [next(self.ids), value])
            elif way % 4 == 1:
                conn.execute("update things set v = %s where id = %s and k = %s", [value, way, way])
            elif way % 4 == 2:
                with conn.cursor().copy("copy things from stdin") as copy:
                    copy.write_row((next(self.ids), 2, 2, value))
            else:
                conn.execute(
                    "insert into things values (%s, 3, 3, %s) on conflict do nothing",
                    [next(self.ids), value],
                )
        except errors.CheckViolation as error:
            if error.diag.constraint_name != "things_n_check":
                raise
            return False
        return True

    def has_been_round(self) -> bool:
        """Whether each writer has tried everything since the last swap."""
        return self.over or min(self.turns_of) == self.turn

    def write(self, n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        while not self.over:
            turn, before = self.turn, self.in_force
            for value in ("never", "north", "south"):
                taken = self.tries(conn, n, value)
                steady = before is not None and (self.turn, self.in_force) == (turn, before)
                with self._lock:
                    self.overlapped[n] += not steady
                    if value == "never" or (steady and value != before):
                        if taken:
                            self.slipped.append((turn, before, value, n))
                        self.refused[value, n] += steady
                    elif taken:
                        self.accepted[value] += 1
            if before is not None and (self.turn, self.in_force) == (turn, before):
                self.turns_of[n] = turn


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_forbidden_gets_in_during_swaps(db: Database, kind: str) -> None:
    """Predicates are swapped back and forth; every second time it is committed when all writers wait for it.

    A row that both forbid is never taken, nor one that the newer forbids once the swap has returned.
    """
    writers = 4
    make_table(db, kind)
    hammer = Hammer(writers)
    with db.connect() as conn:
        hammer.check("north").run(conn)

    def waiting(look: psycopg.Connection[Any], pid: int) -> int:
        row = look.execute(
            """select count(*) from pg_stat_activity
               where datname = current_database() and %s = any (pg_blocking_pids(pid))""",
            [pid],
        ).fetchone()
        assert row is not None
        return int(row[0])

    def swap(conn: psycopg.Connection[Any]) -> None:
        with db.connect() as look:
            for turn in range(1, scaled(16) + 1):
                predicate = ("north", "south")[turn % 2]
                hammer.in_force = None
                hammer.turn = turn
                with conn.transaction():
                    answer = hammer.check(predicate).run(conn)
                    assert answer["outcome"] == "replaced"
                    if turn % 2:
                        until(
                            lambda: hammer.over or waiting(look, conn.info.backend_pid) == writers
                        )
                hammer.in_force = predicate
                # and on with it when each of them has been all the way round
                until(hammer.has_been_round)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        try:
            if n < writers:
                hammer.write(n, conn)
            else:
                swap(conn)
        finally:
            hammer.over = True

    together(db, writers + 1, work)
    assert hammer.slipped == []
    assert db.value("select count(*) from things where v = 'never'") == 0
    turns = scaled(16)
    for n in range(writers):
        assert hammer.refused["never", n] >= turns
        assert hammer.refused["north", n] + hammer.refused["south", n] >= turns
        assert hammer.overlapped[n] >= turns // 2
    assert all(hammer.accepted[value] for value in ("north", "south"))
    assert deadlocks(db) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_for_a_swap_is_under_the_newer(db: Database, kind: str) -> None:
    """A row that the older allows is refused when its statement began before the newer was committed."""
    make_table(db, kind)
    with db.connect() as conn:
        assert check("n > 0").settle(conn) == ["created", "validated"]
    insert = statement("insert into things values (500, 5, 200, 'new') returning n")
    with transaction(db, check("n between 1 and 100")) as swap, db.connect() as look:
        writer = Patient(db, insert)
        writer.waits_for(look, swap.info.backend_pid)
        swap.commit()
        with pytest.raises(errors.CheckViolation):
            writer.result()
    with transaction(db, check("n > 0")) as swap, db.connect() as look:
        writer = Patient(db, insert)
        writer.waits_for(look, swap.info.backend_pid)
        swap.rollback()
        with pytest.raises(errors.CheckViolation):
            writer.result()
    with transaction(db, check("n > 0")) as swap, db.connect() as look:
        writer = Patient(db, insert)
        writer.waits_for(look, swap.info.backend_pid)
        swap.commit()
        assert writer.result() == [{"n": 200}]


def test_readers_and_writers_pass_a_validation(db: Database) -> None:
    """It waits for neither, and neither waits for it."""
    make_table(db)
    with db.connect() as conn, db.connect() as other:
        other.execute("set lock_timeout = '10s'")
        assert check("n > 0").run(conn)["outcome"] == "created"
        held = "insert into things values (500, 5, 5, 'open')"
        with transaction(db, "select count(*) from things", held) as writer:
            with conn.transaction():
                assert check("n > 0").run(conn)["outcome"] == "validated"
                other.execute("insert into things values (501, 5, 5, 'meanwhile')")
                assert other.execute("select count(*) from things").fetchone() == (ROWS + 1,)
            writer.commit()
        assert check("n > 0").run(conn)["outcome"] == "unchanged"


# -- the two-phase write path -----------------------------------------------------------------

OUTCOMES = "routeledger.routing_outcomes"
REQUIRES = "outcome_requires_inference_when_model_chosen"
OLDER = "decision_rule <> 'cheapest_clearing_floor' or inference_id is not null"


def declared_of_ledger(db: Database) -> str:
    """What the ledger itself declares of an outcome with a model chosen."""
    return str(
        db.value(
            """select pg_get_expr(conbin, conrelid) from pg_constraint
               where conrelid = %s::regclass and conname = %s""",
            [OUTCOMES, REQUIRES],
        )
    )


def requires(predicate: str, **more: Any) -> Declared:
    return Declared(
        "ensure_check", {"table": OUTCOMES, "name": REQUIRES, "predicate": predicate, **more}
    )


def two_phases(conn: psycopg.Connection[Any]) -> tuple[str, str]:
    """A decision is written, then completed: both as callers of the ledger do it."""
    key = {"tenant_id": "t", "id": uuid7()}
    call(
        conn,
        "insert_decision",
        **key,
        attempt_id=uuid7(),
        candidates=["alpha"],
        decision_rule="cheapest_clearing_floor",
    )
    answer = call(
        conn,
        "complete_decision",
        **key,
        outcome_status="succeeded",
        input_tokens=1,
        output_tokens=1,
    )
    assert answer["outcome_status"] == "succeeded", answer
    return key["tenant_id"], key["id"]


def test_two_phases_during_swaps(db: Database) -> None:
    """The ledger's own constraint comes and goes in another spelling; no caller hears of it."""
    declared = declared_of_ledger(db)
    spelled = f"not (not ({declared}))"
    done: list[tuple[str, str]] = []
    swapped = threading.Event()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        if n == 3:
            try:
                for turn in range(scaled(10)):
                    answer = requires((spelled, declared)[turn % 2], attempts=1000).run(conn)
                    assert answer["outcome"] == "replaced", answer
                    if turn % 4 > 1:
                        answer = requires((spelled, declared)[turn % 2], attempts=1000).run(conn)
                        assert answer["outcome"] == "validated", answer
                    go_on = len(done) + 5
                    until(lambda: len(done) > go_on)  # noqa: B023 - called in this round only
            finally:
                swapped.set()
            return
        while not swapped.is_set():
            done.append(two_phases(conn))

    together(db, 4, work)
    with db.connect() as conn:
        requires(declared).settle(conn)
        assert requires(declared).run(conn)["outcome"] == "unchanged"
        check_sound(conn)
    assert (
        db.value("select count(*) from routeledger.routing_outcomes where outcome_status is null")
        == 0
    )
    assert db.value("select count(*) from routeledger.routing_outcomes") == len(done)


@pytest.mark.parametrize(
    "state", ["older", "older, not valid", "none", "right, not valid", "right"]
)
def test_two_phases_where_production_has_an_older_one(db: Database, state: str) -> None:
    """The older one refuses a decision in flight; a writer who waits for the swap is the first to pass."""
    declared = declared_of_ledger(db)
    db.execute(f"alter table {OUTCOMES} drop constraint {REQUIRES}")
    if state != "none":
        predicate = OLDER if "older" in state else declared
        not_valid = "not valid" if "not valid" in state else ""
        db.execute(
            f"alter table {OUTCOMES} add constraint {REQUIRES} check ({predicate}) {not_valid}"
        )
    call_start = Call(
        "insert_decision",
        {
            "tenant_id": "t",
            "id": uuid7(),
            "attempt_id": uuid7(),
            "candidates": ["alpha"],
            "decision_rule": "cheapest_clearing_floor",
        },
    )
    with db.connect() as conn:
        if "older" in state:
            with pytest.raises(errors.CheckViolation):
                two_phases(conn)
        else:
            two_phases(conn)
        with transaction(db, requires(declared)) as swap, db.connect() as look:
            if "right" in state:
                writer = Patient(db, call_start)
            else:
                writer = Patient(db, call_start)
                writer.waits_for(look, swap.info.backend_pid)
            swap.commit()
            assert len(writer.result()) == 1
        two_phases(conn)
        for _ in range(2):
            requires(declared).settle(conn)
            two_phases(conn)
        with transaction(db) as unchanged:
            assert requires(declared).run(unchanged)["outcome"] == "unchanged"
            two_phases(conn)
        check_sound(conn)


# -- tables that somebody holds ---------------------------------------------------------------

MODES: dict[str, tuple[Declared, str]] = {
    # what takes the lock, and what holds it up
    "check": (check("n > 0"), "select count(*) from things"),
    "not null": (not_null(), "select count(*) from things"),
    "unique": (unique(), "update things set v = v where id = 1"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_cannot_be_had(db: Database, kind: str, mode: str) -> None:
    """55P03 after the tries, with those who are in the way; nothing was changed, and nothing is held."""
    make_table(db, kind, times=2 if mode == "unique" else 1)
    wanted, holding = MODES[mode]
    before, rows = fingerprint(db), contents(db)
    with transaction(db, holding) as holder, db.connect(autocommit=False) as conn:
        with pytest.raises(errors.LockNotAvailable) as refused:
            wanted.but(lock_timeout="20 milliseconds", attempts=3).run(conn)
        conn.rollback()
        detail = json.loads(refused.value.diag.message_detail or "")
        assert detail["attempts"] == 3
        assert detail["table"] == "public.things"
        (blocker,) = detail["blockers"]
        assert blocker["pid"] == holder.info.backend_pid
        assert blocker["application_name"] == "the one before"
        assert blocker["state"] == "idle in transaction"
        assert blocker["seconds"] >= 0
        assert refused.value.diag.message_hint
        assert (fingerprint(db), contents(db)) == (before, rows)
        holder.rollback()
        conn.autocommit = True
        assert wanted.settle(conn)[0] == "created"
        assert wanted.run(conn)["outcome"] == "unchanged"


@pytest.mark.parametrize("mode", ["check", "not null"])
def test_readers_do_not_wait_for_what_waits(db: Database, mode: str) -> None:
    """A reader queues behind a waiting change, and gets on when that gives up its try.

    The first one still reads then. The change has tries enough, and is done when the first reader is.
    """
    make_table(db)
    wanted, holding = MODES[mode]
    with transaction(db, holding) as holder, db.connect() as look:
        change = Patient(db, wanted.but(lock_timeout="500 milliseconds", attempts=1000))
        change.waits_for(look, holder.info.backend_pid)
        reader = Patient(db, statement("select count(*) as rows from things"))
        reader.waits_for(look, change.pid)
        assert reader.result() == [{"rows": ROWS}]
        change.waits_for(look, holder.info.backend_pid)
        holder.rollback()
        (answer,) = change.result()
    assert answer["outcome"] == "created"


@pytest.mark.parametrize("form", ["index", "constraint"])
def test_a_reader_that_goes_on_to_write(db: Database, form: str) -> None:
    """It read before a unique key is made, and writes while that is being made: there is no deadlock."""
    make_table(db, times=3)
    wanted = unique(form=form, lock_timeout="30 seconds", attempts=1)
    read = "select count(*) from things"
    write = "insert into things (id, k, n) values (%s, %s, 1)"
    with transaction(db, read) as reader, transaction(db) as maker, db.connect() as look:
        assert wanted.run(maker)["outcome"] == "created"
        pid = reader.info.backend_pid
        writing = threading.Thread(target=lambda: reader.execute(write, [1000, ROWS]))
        writing.start()
        until(
            lambda: (
                look.execute("select pg_blocking_pids(%s)", [pid]).fetchone()
                == ([maker.info.backend_pid],)
            )
        )
        maker.commit()
        writing.join(PATIENCE)
        reader.commit()
    with transaction(db, read) as reader, db.connect() as look:
        rest = Patient(db, wanted)
        if form == "constraint":
            rest.waits_for(look, reader.info.backend_pid)
        reader.execute(write, [1001, ROWS + 1])
        reader.commit()
        (answer,) = rest.result()
    with db.connect() as conn:
        assert answer["outcome"] == ("unchanged" if form == "index" else "validated"), answer
        assert wanted.settle(conn) == ["unchanged"]
    assert db.value("select count(*) from things") == ROWS + 2
    assert deadlocks(db) == 0


@pytest.mark.parametrize("mode", ["check", "not null"])
def test_a_reader_that_writes_while_a_change_waits(db: Database, mode: str) -> None:
    """The change waits for it alone: its write goes ahead, and what it wrote is under the change."""
    make_table(db)
    wanted, read = MODES[mode]
    with transaction(db, read) as reader, db.connect() as look:
        change = Patient(db, wanted.but(lock_timeout="30 seconds", attempts=1))
        change.waits_for(look, reader.info.backend_pid)
        reader.execute("insert into things values (1000, 1, null, 'new')")
        reader.commit()
        (answer,) = change.result()
    with db.connect() as conn:
        assert answer["outcome"] == "created"
        # the row came after those were counted that violate it
        assert wanted.run(conn)["outcome"] == ("validated" if mode == "check" else "pending")
        db.execute("update things set n = 1 where n is null")
        wanted.settle(conn)
        assert wanted.run(conn)["outcome"] == "unchanged"
    assert deadlocks(db) == 0


# -- several operators ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, ROWS])
def test_many_ensure_the_same_check(db: Database, rows: int) -> None:
    """One creates it and one validates it, who may be the same; the others see it unchanged."""
    make_table(db)
    if not rows:
        db.execute("truncate things")
    outcomes: list[list[str]] = []

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        outcomes.append(check("n > 0").settle(conn))

    together(db, OPERATORS, work)
    told = Counter(outcome for steps in outcomes for outcome in steps)
    assert told["created"] == 1
    assert told["validated"] == bool(rows)
    assert told["unchanged"] >= OPERATORS - 2
    assert set(told) <= {"created", "validated", "unchanged"}
    recorded = db.execute("select action from routeledger.constraint_changes order by id")
    assert recorded == [("created",), ("validated",)][: 2 if rows else 1]


def test_many_ensure_different_constraints(db: Database) -> None:
    """Of one table, with readers and writers at it: each is made, and nobody is told of a deadlock."""
    make_table(db, times=2)
    wanted = [check(f"n > {-n}", f"check_{n}") for n in range(4)] + [not_null(), unique()]
    over = threading.Event()
    ended: list[int] = []
    made: Counter[str] = Counter()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        if n < len(wanted):
            try:
                made[wanted[n].but(attempts=1000).settle(conn)[0]] += 1
            finally:
                ended.append(n)
                if len(ended) == len(wanted):
                    over.set()
            return
        while not over.is_set():
            with conn.transaction():
                conn.execute("select count(*) from things")
                conn.execute("update things set v = v where id = %s", [n])

    together(db, len(wanted) + 2, work)
    assert made == {"created": len(wanted)}
    assert deadlocks(db) == 0
    with db.connect() as conn:
        assert {one.run(conn)["outcome"] for one in wanted} == {"unchanged"}


def test_many_ensure_checks_of_two_minds(db: Database) -> None:
    """Each change found what the one before it left; what is there at last is the last of them."""
    make_table(db)
    predicates = ("n > 0", "n between 1 and 100")

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        for _ in range(5):
            check(predicates[n % 2], attempts=100).run(conn)

    together(db, 8, work)
    changes = db.execute(
        """select before ->> 'definition', after ->> 'definition'
           from routeledger.constraint_changes order by id"""
    )
    live = db.value(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'things_n_check'"
    )
    assert [before for before, _ in changes] == [None, *(after for _, after in changes[:-1])]
    assert changes[-1][1] == live
    assert deadlocks(db) == 0


def apply_all(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    row = conn.execute("call routeledger.apply_constraints('things')").fetchone()
    assert row is not None
    results: list[dict[str, Any]] = row[0]
    return sorted(results, key=lambda one: str(one["name"]))


def declare(db: Database) -> None:
    """A check, a NOT NULL and a unique key of `things`."""
    db.execute(
        "select routeledger.declare_constraint('public.things', 'things_n_check', 'check', 'n > 0')"
    )
    db.execute(
        "select routeledger.declare_constraint('public.things', 'things_n_not_null', 'not_null',"
        " p_columns => '{n}')"
    )
    db.execute(
        "select routeledger.declare_constraint('public.things', 'things_k_key', 'unique', p_columns => '{k}',"
        ' p_options => \'{"keep": "greatest n"}\')'
    )


def test_many_apply_what_is_declared(db: Database) -> None:
    """Twenty at once: of each constraint one makes it, and nineteen see it unchanged."""
    make_table(db, times=3)
    declare(db)
    results: list[list[dict[str, Any]]] = []

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set client_min_messages = error")
        results.append(apply_all(conn))

    together(db, OPERATORS, work)
    steps: dict[str, Counter[str]] = {}
    for answer in results:
        assert [one["error"] for one in answer] == [None] * 3, answer
        for one in answer:
            steps.setdefault(one["name"], Counter())[" ".join(one["steps"])] += 1
    others = Counter(unchanged=OPERATORS - 1)
    # before 18 a CHECK that is validated first saves the scan
    native, helped = "created validated", "created pending validated"
    assert steps == {
        "things_n_check": others + Counter({"created validated": 1}),
        "things_n_not_null": others + Counter({native if db.server.major >= 18 else helped: 1}),
        "things_k_key": others + Counter(created=1),
    }
    assert db.value("select count(*) from routeledger.repairs") == 1
    assert db.value("select count(*) from pg_locks where locktype = 'advisory'") == 0
    assert (
        db.execute("select name from routeledger.constraint_drift where target = 'public.things'")
        == []
    )


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_make_the_same_unique_key(db: Database, kind: str, ending: str) -> None:
    """The second waits for the first, and finds it done; or does it, when the first was undone."""
    make_table(db, kind, times=3)
    before = contents(db)
    with transaction(db) as first, db.connect() as look:
        assert unique().run(first)["outcome"] == "created"
        second = Patient(db, unique())
        second.waits_for(look, first.info.backend_pid)
        getattr(first, ending)()
        (answer,) = second.result()
    assert answer["outcome"] == ("unchanged" if ending == "commit" else "created")
    assert db.execute("select k, n from things order by k") == [(k, 3) for k in range(ROWS)]
    repairs = db.execute("select id, before_count, after_count, removed from routeledger.repairs")
    assert [repair[1:] for repair in repairs] == [(3 * ROWS, ROWS, 2 * ROWS)]
    assert sorted(contents(db) + removed_rows(db, repairs[0][0])) == before


def test_many_make_the_same_unique_key(db: Database) -> None:
    """While others write rows of the keys: one makes it; from then on a second row of a key is refused."""
    make_table(db, times=3)
    outcomes: Counter[str] = Counter()
    taken: list[str] = []
    made = threading.Event()
    ids = itertools.count(10_000)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        if n < 6:
            outcomes[unique(attempts=1000).settle(conn)[0]] += 1
            made.set()
            return
        refused = 0
        while not made.is_set() or refused < 5:
            try:
                row = conn.execute(
                    "insert into things as t values (%s, %s, 0, 'live') returning t::text",
                    [next(ids), refused],
                ).fetchone()
            except errors.UniqueViolation:
                refused += 1
            else:
                assert row is not None
                taken.append(row[0])

    before = contents(db)
    together(db, 8, work)
    assert outcomes == {"created": 1, "unchanged": 5}
    (repair,) = db.execute("select id from routeledger.repairs")
    assert sorted(contents(db) + removed_rows(db, repair[0])) == sorted(before + taken)
    assert db.value("select count(distinct k) - count(*) from things") == 0
    assert deadlocks(db) == 0


def removed_rows(db: Database, repair: int) -> list[str]:
    """The rows that a repair has taken away, byte for byte as they were."""
    found = db.execute(
        "select row_text from routeledger.show_repair(%s, 100000) where what = 'removed'", [repair]
    )
    return [row for (row,) in found]


# -- unchanged --------------------------------------------------------------------------------


HOLD_ALL = "lock table things in access exclusive mode"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_takes_no_lock(db: Database, kind: str, mode: str) -> None:
    """Neither on the table nor on its constraints nor an advisory one; and it waits for nobody."""
    make_table(db, kind)
    wanted, _ = MODES[mode]
    with db.connect(autocommit=False) as conn:
        for _ in range(3):
            wanted.run(conn)
            conn.commit()
        answer = wanted.run(conn)
        assert (answer["outcome"], answer["next"]) == ("unchanged", None)
        held = conn.execute(
            """select l.locktype, l.mode, l.relation::regclass::text from pg_locks l
               where l.pid = pg_backend_pid()
                 and (l.locktype not in ('relation', 'virtualxid', 'transactionid')
                   or l.relation in (
                     select c.oid from pg_class c where c.relnamespace = 'public'::regnamespace))"""
        ).fetchall()
        assert held == []
        conn.rollback()
    with transaction(db, HOLD_ALL) as holder, db.connect() as conn:
        conn.execute("set statement_timeout = '20s'")
        hurried = wanted.but(lock_timeout="20 milliseconds", attempts=2)
        if mode == "unique":
            # to print an index PostgreSQL opens its table: who has that is named in time
            refused = None
            try:
                answer = hurried.run(conn)
            except errors.LockNotAvailable as error:
                refused = json.loads(error.diag.message_detail or "")
            if refused is not None:
                assert [one["pid"] for one in refused["blockers"]] == [holder.info.backend_pid]
                return
        else:
            answer = hurried.run(conn)
        assert (answer["outcome"], answer["next"]) == ("unchanged", None)


def test_what_is_declared_is_compared_while_a_table_is_held(db: Database) -> None:
    """Checks and NOT NULLs are; of a unique key it may be told, in time, that it cannot be seen."""
    make_table(db)
    declare(db)
    states = "select name, state from routeledger.constraint_states('things') order by name"
    names = ["things_k_key", "things_n_check", "things_n_not_null"]
    with db.connect() as conn:
        conn.execute("set client_min_messages = error")
        apply_all(conn)
        assert conn.execute(states).fetchall() == [(name, "unchanged") for name in names]
        with transaction(db, HOLD_ALL):
            conn.execute("set statement_timeout = '20s'")
            seen = dict(conn.execute(states).fetchall())
            assert seen.pop("things_k_key") in ("unchanged", "unknown")
            assert seen == dict.fromkeys(names[1:], "unchanged")
        assert {tuple(one["steps"]) for one in apply_all(conn)} == {("unchanged",)}


# -- sessions of every kind -------------------------------------------------------------------

HOSTILE = """
create schema evil;
create function evil.lower(text) returns text language sql immutable as $$ select 'evil' $$;
create function evil.length(text) returns integer language sql immutable as $$ select 0 $$;
create function evil.yes(integer, integer) returns boolean language sql immutable as $$ select true $$;
create function evil.format(text, variadic text[]) returns text language sql immutable
as $$ select 'drop table things' $$;
create function evil.quote_ident(text) returns text language sql immutable as $$ select 'pg_class' $$;
create operator evil.> (leftarg = integer, rightarg = integer, function = evil.yes);
create operator evil.= (leftarg = integer, rightarg = integer, function = evil.yes);
create operator evil.<> (leftarg = integer, rightarg = integer, function = evil.yes);
create type evil.mood as enum ('happy', 'sad');
create schema moods;
create type moods.mood as enum ('sad', 'ok', 'happy');
create domain evil.text as integer;
create domain evil.regclass as integer;
create table evil.pg_constraint (oid integer);
create table evil.things (id integer, n text, v integer, at text, span text);
"""
SETTINGS = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "backslash_quote": "on",
    "escape_string_warning": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmloption": "document",
    "check_function_bodies": "on",
    "client_min_messages": "debug1",
    "lock_timeout": "1ms",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "session_replication_role": "replica",
    "jit": "off",  # which a plan without its scans would be thought to be worth
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "plpgsql.extra_errors": "all",
    "plpgsql.variable_conflict": "use_variable",
    "plpgsql.print_strict_params": "on",
    "default_with_oids": "off",
    "gin_fuzzy_search_limit": "1",
    "from_collapse_limit": "1",
    "join_collapse_limit": "1",
}
PREDICATES = {
    "comparison": "n > 0 and n <> 77",
    "function": "lower(v) = v or length(v) > 1",
    "list": "v in ('stored', 'new')",
    "backslash": r"v <> 'a\b'",
    "escaped": r"v <> E'a\\b'",
    "null": "v = null or n > 0",
    "zoned": "at > timestamp with time zone '2020-01-02 03:04:05+00'",
    "date": "at > date '2020-02-01'",
    "interval": "span < interval '1 day 02:00:00'",
    "float": "n::double precision > 0.1::double precision / 3",
    "array": "n = any ('{1,2,3,NULL}'::integer[])",
    "bytes": r"v::bytea <> '\xdeadbeef'::bytea",
    "whole row": "things is not null or n > 0",
    "enum": "how in ('ok', 'happy') and how > 'sad'",
}


def test_settings_of_the_session_do_not_matter(db: Database) -> None:
    """What a session of other settings has made is what a plain one declares, and the other way round."""
    make_table(db)
    db.execute(
        "alter table things add at timestamp with time zone default '2026-01-01 00:00+00',"
        " add span interval"
    )
    db.execute(HOSTILE)
    db.execute("alter table things add how moods.mood default 'ok'")
    with db.connect() as plain, db.connect() as hostile:
        known = {name for (name,) in plain.execute("select name from pg_settings")}
        for name, value in SETTINGS.items():
            if name in known or name.startswith("plpgsql."):
                hostile.execute(
                    sql.SQL("set {} = {}").format(sql.Identifier(*name.split(".")), value)
                )
        hostile.execute("set search_path = evil, pg_temp, public, pg_catalog")
        hostile.execute("create temporary table pg_class (oid integer)")
        hostile.execute("create temporary table pg_attribute (oid integer)")
        for number, (title, predicate) in enumerate(PREDICATES.items()):
            answers = []
            for turn, conns in enumerate(((plain, hostile), (hostile, plain))):
                wanted = check(predicate, f"check_{number}_{turn}", table="public.things")
                answer = wanted.run(conns[0])
                assert (answer["outcome"], answer["violations"]) == ("created", 0), (title, answer)
                assert wanted.run(conns[1])["outcome"] == "validated", title
                assert wanted.run(conns[0])["outcome"] == "unchanged", title
                answers.append(answer["definition"])
            assert answers[0] == answers[1], title
    definitions = db.execute(
        """select conname, pg_get_constraintdef(oid)
           from pg_constraint where conname like 'check~_%' escape '~'"""
    )
    by_name = dict(definitions)
    assert len(by_name) == 2 * len(PREDICATES)
    for number in range(len(PREDICATES)):
        assert by_name[f"check_{number}_0"] == by_name[f"check_{number}_1"]
    assert "evil" not in str(definitions)


@pytest.mark.parametrize("mode", ["not null", "unique"])
def test_settings_do_not_matter_to_the_others(db: Database, mode: str) -> None:
    make_table(db, times=2)
    db.execute(HOSTILE)
    wanted = MODES[mode][0].but(table="public.things")
    with db.connect() as plain, db.connect() as hostile:
        known = {name for (name,) in plain.execute("select name from pg_settings")}
        for name, value in SETTINGS.items():
            if name in known or name.startswith("plpgsql."):
                hostile.execute(
                    sql.SQL("set {} = {}").format(sql.Identifier(*name.split(".")), value)
                )
        hostile.execute("set search_path = evil, pg_temp, public, pg_catalog")
        assert wanted.settle(hostile)[0] == "created"
        assert wanted.settle(plain) == ["unchanged"]
        assert wanted.settle(hostile) == ["unchanged"]
    if mode == "unique":
        assert db.execute("select k, n from things order by k") == [(k, 2) for k in range(ROWS)]


def test_a_session_that_only_reads(db: Database) -> None:
    """It is told that nothing can be said, and nothing happens."""
    make_table(db)
    with db.connect() as conn:
        conn.execute("set default_transaction_read_only = on")
        answer = check("n > 0").run(conn)
        assert (answer["outcome"], answer["reason"]) == ("refused", "read_only")
        assert not_null().run(conn)["outcome"] == "refused"
        assert unique().run(conn)["outcome"] == "refused"


# -- duplicates that others point to ----------------------------------------------------------

CHILDREN = """
alter table things add unique (id);
create table children (
  c integer primary key,
  thing integer {not_null} references things (id) on delete {on_delete},
  note text
);
insert into children select id, id, 'of ' || id from things;
"""
ON_DELETE = ("cascade", "set null", "no action", "restrict")


# each child with its note, and the n of the row that it points to
POINTING = (
    "select c.c, c.note, t.n from children c left join things t on t.id = c.thing order by c.c"
)


@pytest.mark.parametrize("on_delete", ON_DELETE)
def test_no_child_vanishes(db: Database, on_delete: str) -> None:
    """Refused, unless children are to be repointed; then all of them are there, at the row that stays."""
    make_table(db, times=3)
    db.execute(CHILDREN.format(on_delete=on_delete, not_null=""))
    before, rows, children = fingerprint(db), contents(db), contents(db, "children")
    with db.connect() as conn:
        answer = unique().run(conn)
        assert answer["outcome"] == "refused"
        assert answer["reason"] == "children"
        assert [(c["table"], c["rows"]) for c in answer["detail"]["children"]] == [
            ("public.children", 2 * ROWS)
        ]
        assert (fingerprint(db), contents(db), contents(db, "children")) == (before, rows, children)
        answer = unique(children="repoint").run(conn)
        assert answer["outcome"] == "created", answer
        assert conn.execute(POINTING).fetchall() == [(c, f"of {c}", 3) for c in range(3 * ROWS)]
        undone = conn.execute(
            "select removed, restored, changed from routeledger.undo_repair(%s)",
            [answer["detail"]["repair_id"]],
        ).fetchone()
        assert undone == (0, 2 * ROWS, 2 * ROWS)
    assert (contents(db), contents(db, "children")) == (rows, children)


@pytest.mark.parametrize("on_delete", ON_DELETE)
@pytest.mark.parametrize("children", ["refuse", "repoint"])
def test_a_child_that_is_being_written(db: Database, children: str, on_delete: str) -> None:
    """Its transaction is open when the collapse begins. It is waited for, and its row is there at the end."""
    make_table(db, times=3)
    db.execute(CHILDREN.format(on_delete=on_delete, not_null=""))
    if children == "refuse":
        db.execute("delete from children")
    insert = "insert into children values (1000, 0, 'late')"  # id 0 is the first of the rows of k 0
    with transaction(db, insert) as writer, db.connect() as look:
        maker = Patient(db, unique(children=children, lock_timeout="30 seconds"))
        maker.waits_for(look, writer.info.backend_pid)
        writer.commit()
        (answer,) = maker.result()
    assert db.value("select note from children where c = 1000") == "late"
    if children == "refuse":
        assert (answer["outcome"], answer["reason"]) == ("refused", "children"), answer
        assert db.value("select count(*) from things") == 3 * ROWS
    else:
        assert answer["outcome"] == "created", answer
        assert db.execute(
            "select t.n from children c join things t on t.id = c.thing where c.c = 1000"
        ) == [(3,)]


def test_a_child_that_comes_while_rows_are_collapsed(db: Database) -> None:
    """It waits until that is committed; then the row it wanted to point to is gone, and it is told so."""
    make_table(db, times=3)
    db.execute(CHILDREN.format(on_delete="cascade", not_null="not null"))
    with transaction(db) as maker, db.connect() as look:
        assert unique(children="repoint").run(maker)["outcome"] == "created"
        child = Patient(db, statement("insert into children values (1000, 0, 'late')"))
        child.waits_for(look, maker.info.backend_pid)
        maker.commit()
        with pytest.raises(errors.ForeignKeyViolation):
            child.result()
    assert db.value("select count(*) from children") == 3 * ROWS


def test_rows_that_point_to_their_own_table(db: Database) -> None:
    """A tree whose parents are among the rows that go: each row hangs at the one that stayed."""
    make_table(db, times=3)
    db.execute(
        "alter table things add unique (id),"
        " add parent integer references things (id) on delete cascade"
    )
    db.execute("update things set parent = (id + 1) %% %s where id < %s", [3 * ROWS, 3 * ROWS])
    rows = contents(db)
    with db.connect() as conn:
        assert unique().run(conn)["reason"] == "children"
        answer = unique(children="repoint").run(conn)
        assert answer["outcome"] == "created", answer
        assert conn.execute(
            "select t.k, p.k from things t join things p on p.id = t.parent order by 1"
        ).fetchall() == [(k, (k + 1) % ROWS) for k in range(ROWS)]
        conn.execute("select from routeledger.undo_repair(%s)", [answer["detail"]["repair_id"]])
    assert contents(db) == rows


# -- sentinels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column", ["coalesce(v, '-')", "COALESCE ( v,'-' )", "coalesce(v, '-'::text)"]
)
def test_a_row_that_is_the_sentinel(db: Database, column: str) -> None:
    """NULL and the literal that stands for it would become one key: refused, and both rows are there."""
    make_table(db)
    db.execute(
        "insert into things values (1000, 900, 1, null), (1001, 900, 2, '-'), (1002, 901, 1, null)"
    )
    before, rows = fingerprint(db), contents(db)
    wanted = unique(columns=["k", column])
    with db.connect() as conn:
        answer = wanted.run(conn)
        assert (answer["outcome"], answer["reason"]) == ("refused", "sentinel"), answer
        assert (fingerprint(db), contents(db)) == (before, rows)
        # the same literal in another key, where no NULL is, is none
        conn.execute("update things set k = 902 where id = 1001")
        answer = wanted.run(conn)
        assert answer["outcome"] == "created", answer
        assert "-" in json.dumps(answer["detail"]["notes"])
    assert db.value("select count(*) from things") == ROWS + 3


# -- undo -------------------------------------------------------------------------------------

LATER_WRITES = {
    "a survivor is changed": "update things set n = 99 where k = 3",
    "a survivor is gone": "delete from things where k = 3",
    "a removed row's id is taken": "insert into things values (3, 500, 1, 'other')",
    "a survivor's key is changed": "update things set k = 501 where k = 3",
}


@pytest.mark.parametrize("write", LATER_WRITES)
def test_undo_after_later_writes(db: Database, write: str) -> None:
    """It refuses, lists what has changed since, and changes nothing.

    Forced, it puts back every row that was removed, in the place of one that has its key since. The rows
    that had stayed are as they were written; and the undo of that brings back what it found.
    """
    make_table(db, times=3)
    with db.connect() as conn:
        repair = unique().run(conn)["detail"]["repair_id"]
        conn.execute(LATER_WRITES[write].encode())
        before, rows = fingerprint(db), contents(db)
        with pytest.raises(psycopg.Error) as refused:
            conn.execute("select from routeledger.undo_repair(%s)", [repair])
        assert refused.value.sqlstate == "RL310"
        assert refused.value.diag.message_detail
        json.loads(refused.value.diag.message_detail)
        assert (fingerprint(db), contents(db)) == (before, rows)
        forced = "select repair_id from routeledger.undo_repair(%s, p_force => true)"
        undo = conn.execute(forced, [repair]).fetchone()
        assert undo is not None
        restored = {*rows, *removed_rows(db, repair)} - {"(3,500,1,other)"}
        assert contents(db) == sorted(restored)
        conn.execute("select from routeledger.undo_repair(%s)", [undo[0]])
        assert contents(db) == rows


def test_undo_after_rows_of_other_keys(db: Database) -> None:
    """New rows are no matter, and stay; twice undone is an error, and the undo can be undone."""
    make_table(db, times=3)
    stored = contents(db)
    with db.connect() as conn:
        repair = unique().run(conn)["detail"]["repair_id"]
        collapsed = contents(db)
        conn.execute("insert into things values (1000, 500, 1, 'new')")
        undo = conn.execute(
            "select repair_id from routeledger.undo_repair(%s)", [repair]
        ).fetchone()
        assert undo is not None
        new = "(1000,500,1,new)"
        assert contents(db) == sorted([*stored, new])
        with pytest.raises(psycopg.Error) as refused:
            conn.execute("select from routeledger.undo_repair(%s)", [repair])
        assert refused.value.sqlstate == "RL312"
        conn.execute("select from routeledger.undo_repair(%s)", [undo[0]])
        assert contents(db) == sorted([*collapsed, new])
        assert unique().run(conn)["outcome"] == "unchanged"


def test_undo_while_a_survivor_is_written(db: Database) -> None:
    """That writer is waited for; then its row has changed since."""
    make_table(db, times=3)
    with db.connect() as conn:
        repair = unique().run(conn)["detail"]["repair_id"]
    rows = len(contents(db))
    undo = Declared("undo_repair", {"id": repair})
    with transaction(db, "update things set n = 99 where k = 3") as writer, db.connect() as look:
        undoing = Patient(db, undo)
        undoing.waits_for(look, writer.info.backend_pid)
        writer.commit()
        with pytest.raises(psycopg.Error) as refused:
            undoing.result()
    assert refused.value.sqlstate == "RL310"
    assert len(contents(db)) == rows


def test_two_undo_the_same(db: Database) -> None:
    """One does, the other is told that it is done."""
    make_table(db, times=3)
    stored = contents(db)
    with db.connect() as conn:
        repair = unique().run(conn)["detail"]["repair_id"]
    told: Counter[str] = Counter()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '50ms'")
        try:
            Declared("undo_repair", {"id": repair}).run(conn)
            told["done"] += 1
        except psycopg.Error as error:
            told[str(error.sqlstate)] += 1

    together(db, 4, work)
    assert told == {"done": 1, "RL312": 3}
    assert contents(db) == stored
