"""Unique keys made while writers go on: under load, killed at every step, and what was left over."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from routeledger import connect, errors
from routeledger.constraints import OnlineStep, ensure_unique_online
from tests.conftest import Database

COSTS = """
create schema app;
create table app.costs (
  id bigint generated always as identity primary key,
  day date not null,
  agent text not null,
  calls bigint not null,
  note json,
  updated_at timestamp with time zone not null
);
"""
DUPLICATES = """
insert into app.costs (day, agent, calls, note, updated_at)
select date '2026-01-01' + k %% 40, 'agent ' || k %% 25, n, json_build_object('n', n),
  timestamp with time zone '2026-02-01 00:00+00' + n * interval '1 minute'
from generate_series(1, %(keys)s) k cross join generate_series(1, %(times)s) n
"""
KEY = ("app.costs", "costs_key", ["day", "agent"])
KEEP = "greatest calls, latest updated_at"
UPSERT = """
insert into app.costs (day, agent, calls, updated_at) values (%s, %s, %s, now())
on conflict (day, agent) do update set calls = excluded.calls
"""


@pytest.fixture
def costs(db: Database) -> Database:
    """A table whose 200 keys are there 5 times."""
    db.execute(COSTS)
    db.execute(DUPLICATES, {"keys": 200, "times": 5})
    return db


def rows(db: Database, table: str = "app.costs") -> list[str]:
    found = db.execute(f"select t::text from {table} t order by 1")
    return [row[0] for row in found]


def indexes(db: Database, table: str = "app.costs") -> dict[str, tuple[bool, bool]]:
    """Name to unique and valid, of what stands on a table."""
    found = db.execute(
        "select c.relname, i.indisunique, i.indisvalid and i.indisready and i.indislive"
        " from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = %s::regclass",
        [table],
    )
    return {name: (unique, valid) for name, unique, valid in found}


def assert_made(db: Database, table: str = "app.costs", name: str = "costs_key") -> None:
    """The index is there, valid, and nothing that was needed on the way is."""
    left = {key: value for key, value in indexes(db, table).items() if not key.endswith("_pkey")}
    assert left == {name: (True, True)}
    assert (
        db.value(f"select max(n) from (select count(*) n from {table} group by day, agent) g") == 1
    )
    db.execute(UPSERT, ["2026-01-01", "somebody", 1])
    db.execute(UPSERT, ["2026-01-01", "somebody", 2])


def assert_kept(db: Database, before: list[str]) -> None:
    """What was there is there, or among the removed rows of a repair; each once."""
    ids = [row[0] for row in db.execute("select id from routeledger.repair_history order by id")]
    with connect(db.dsn, coalesce=False) as ledger:
        removed = [
            row.row_text
            for id_ in ids
            for row in ledger.show_repair(id_, limit=100_000)
            if row.what == "removed"
        ]
    assert sorted(rows(db) + removed) == before


def test_duplicates_become_a_key(costs: Database) -> None:
    before = rows(costs)
    steps: list[OnlineStep] = []
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=steps.append)
    assert (result.outcome, result.validated, result.next) == ("created", True, None)
    assert_kept(costs, before)
    assert costs.value("select count(*) from app.costs") == 200
    assert costs.value("select min(calls) from app.costs") == 5
    assert_made(costs)
    assert [step.seconds is None for step in steps] == [True, False] * (len(steps) // 2)
    assert {step.action for step in steps} == {"run", "collapse"}
    assert any("concurrently" in step.command.lower() for step in steps)
    again = ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    assert (again.outcome, again.steps) == ("unchanged", ("unchanged",))


def test_the_fence_stands_while_duplicates_are_collapsed(costs: Database) -> None:
    """New rows cannot be duplicates of one another then; it is gone in the end."""
    seen: list[dict[str, tuple[bool, bool]]] = []

    def look(step: OnlineStep) -> None:
        if step.action == "collapse" and step.seconds is None:
            seen.append(indexes(costs))
            day = f"2027-01-{len(seen):02}"
            twice = (
                "insert into app.costs (day, agent, calls, updated_at) values (%s, 'x', 1, now())"
            )
            costs.execute(twice, [day])
            with pytest.raises(psycopg.errors.UniqueViolation, match="costs_key__fence"):
                costs.execute(twice, [day])

    ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=look)
    assert seen
    assert all(found["costs_key__fence"] == (True, True) for found in seen)
    assert_made(costs)


def test_a_build_that_meets_a_duplicate_each_time(costs: Database) -> None:
    """What was built is dropped and the collapse goes on; at last it is done with writers waiting."""
    before = rows(costs)
    built: list[str] = []
    locked: list[str] = []

    def spoil(step: OnlineStep) -> None:
        if step.seconds is not None:
            return
        if step.command.startswith("create unique index concurrently costs_key on"):
            built.append(step.command)
            costs.execute(
                "insert into app.costs (day, agent, calls, updated_at)"
                " select day, agent, 100, updated_at from app.costs order by id offset %s limit 1",
                [len(built)],
            )
            before.append(costs.value("select t::text from app.costs t order by id desc limit 1"))
        elif "routeledger.ensure_unique" in step.command:
            locked.append(step.command)

    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=spoil)
    assert result.outcome == "created"
    assert len(built) == 5
    assert len(locked) == 1
    assert result.detail["rounds"] == 5
    assert_kept(costs, sorted(before))
    assert_made(costs)


def test_the_same_as_the_locked_mode(
    costs: Database, make_database: Callable[..., Database]
) -> None:
    other = make_database()
    other.execute(COSTS)
    other.execute(DUPLICATES, {"keys": 200, "times": 5})
    ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    with connect(other.dsn, coalesce=False) as ledger:
        assert ledger.ensure_unique(*KEY, keep=KEEP).outcome == "created"
    assert rows(costs) == rows(other)
    definition = "select pg_get_indexdef('app.costs_key'::regclass)"
    assert costs.value(definition) == other.value(definition)


def test_undo_puts_every_row_back(costs: Database) -> None:
    before = rows(costs)
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    with connect(costs.dsn, coalesce=False) as ledger:
        undone = ledger.undo_repair(result.detail["repair_id"])
    assert undone.restored == 800
    assert rows(costs) == before
    assert "costs_key" not in indexes(costs)


def test_as_a_constraint(costs: Database) -> None:
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP, form="constraint")
    assert result.outcome == "created"
    assert_made(costs)
    definition = costs.value(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'costs_key'"
    )
    assert definition == "UNIQUE (day, agent)"


def test_without_a_precedence_duplicates_refuse(costs: Database) -> None:
    before = rows(costs)
    result = ensure_unique_online(costs.dsn, *KEY)
    assert (result.outcome, result.reason) == ("refused", "duplicates")
    assert rows(costs) == before
    assert set(indexes(costs)) == {"costs_pkey"}
    with pytest.raises(errors.ConstraintRefused):
        ensure_unique_online(costs.dsn, *KEY, strict=True)


# -- live writers ----------------------------------------------------------------------------------


@contextmanager
def writers(db: Database, number: int) -> Iterator[dict[str, int]]:
    """Sessions that write new rows, half of them duplicates of what is there, until the end."""
    counts = {"written": 0, "refused": 0}
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            with db.connect() as conn:
                for n in itertools.count():
                    if stop.is_set():
                        return
                    key = (seed * 7919 + n * 31) % 400
                    try:
                        conn.execute(
                            "insert into app.costs (day, agent, calls, updated_at)"
                            " values (date '2026-01-01' + %s, %s, %s, now())",
                            [key % 40, f"agent {key % 25}", n],
                        )
                        counts["written"] += 1
                    except psycopg.errors.UniqueViolation:
                        counts["refused"] += 1
                    time.sleep(0.002)
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.2)
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_under_live_writers(db: Database) -> None:
    """They are never locked out, and what they wrote is there or among the removed rows."""
    db.execute(COSTS)
    db.execute(DUPLICATES, {"keys": 1000, "times": 6})
    initial = db.value("select count(*) from app.costs")
    with writers(db, 4) as counts:
        result = ensure_unique_online(db.dsn, *KEY, keep=KEEP)
        after = dict(counts)
        time.sleep(0.2)
    assert result.outcome == "created"
    assert counts["refused"] > after["refused"]  # by the key, now that it is there
    removed = db.value("select coalesce(sum(removed), 0) from routeledger.repair_history")
    assert db.value("select count(*) from app.costs") == initial + counts["written"] - removed
    assert_made(db)


def test_two_at_once(costs: Database) -> None:
    """One does it, the other waits and finds it done."""
    results: list[Any] = []
    waited = threading.Event()

    def watch(step: OnlineStep) -> None:
        if step.action == "wait":
            waited.set()

    def second() -> None:
        results.append(ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=watch))

    thread = threading.Thread(target=second)

    def first(step: OnlineStep) -> None:
        if step.number == 1 and step.seconds is None:
            thread.start()
            assert waited.wait(20)

    results.append(ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=first))
    thread.join()
    assert [result.outcome for result in results] == ["created", "unchanged"]
    assert_made(costs)


def test_the_locked_mode_beside_it(costs: Database) -> None:
    """A call of the routine waits no longer than it says, so that no index waits for it."""
    caught: list[errors.LedgerError] = []

    def locked(step: OnlineStep) -> None:
        if step.seconds is None and not caught:
            conn = costs.connect()
            with conn, connect(costs.dsn, coalesce=False) as ledger:
                with pytest.raises(errors.LedgerBusy) as raised:
                    ledger.ensure_unique(*KEY, keep=KEEP, attempts=2, conn=conn)
                caught.append(raised.value)

    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP, progress=locked)
    assert result.outcome == "created"
    assert caught[0].sqlstate == "55P03"
    assert_made(costs)


# -- killed ----------------------------------------------------------------------------------------

CLIENT = """
import json, os, signal, sys
from routeledger.constraints import ensure_unique_online

dsn, moment, table, name, columns, options = json.loads(sys.argv[1])
passed = 0

def progress(step):
    global passed
    if step.action == "wait":
        return
    passed += 1
    if passed == moment:
        os.kill(os.getpid(), signal.SIGKILL)

if not moment:
    print("begins", flush=True)
print(ensure_unique_online(dsn, table, name, columns, **options, progress=progress).outcome)
"""


def client(dsn: str, moment: int, *key: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The online mode in a process that kills itself before or after its nth command."""
    return subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps([dsn, moment, *key, options])],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.faults
@pytest.mark.parametrize("form", ["index", "constraint"])
def test_killed_at_each_step_and_run_again(
    make_database: Callable[..., Database], form: str
) -> None:
    """Before and after each command; the next run goes on, and ends as one that was not killed."""
    for moment in itertools.count(1):
        db = make_database()
        db.execute(COSTS)
        db.execute(DUPLICATES, {"keys": 100, "times": 3})
        before = rows(db)
        first = client(db.dsn, moment, *KEY, keep=KEEP, form=form)
        if first.returncode != -signal.SIGKILL:
            assert (first.returncode, first.stdout, first.stderr) == (0, "created\n", "")
            assert moment > 6
            return
        second = client(db.dsn, 1_000, *KEY, keep=KEEP, form=form)
        assert (second.returncode, second.stderr) == (0, "")
        # validated: the index was there, and has become the constraint
        assert second.stdout in ("created\n", "unchanged\n", "validated\n")
        assert_kept(db, before)
        assert_made(db)


@pytest.mark.faults
def test_killed_again_and_again(costs: Database) -> None:
    """Each run gets one command further than the one before it, until one comes through."""
    before = rows(costs)
    for _ in range(50):
        done = client(costs.dsn, 2, *KEY, keep=KEEP)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0
    assert_kept(costs, before)
    assert_made(costs)


@pytest.mark.faults
def test_killed_in_the_middle_of_a_command(db: Database) -> None:
    """At any moment; what the server is at then goes on without its client, and the next waits."""
    db.execute(COSTS)
    db.execute(DUPLICATES, {"keys": 200, "times": 200})
    before = rows(db)
    chance = random.Random(7)
    killed = 0
    for _ in range(60):
        key = json.dumps([db.dsn, 0, *KEY, {"keep": KEEP}])
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, key], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() == b"begins\n":
                time.sleep(chance.random() * 0.2)
            process.kill()
        if process.returncode == 0:
            break
        killed += 1
    assert killed > 2
    result = ensure_unique_online(db.dsn, *KEY, keep=KEEP)
    assert result.outcome in ("created", "unchanged")
    assert_kept(db, before)
    assert_made(db)


def test_the_server_ends_the_connection(costs: Database) -> None:
    """At each command in turn; the call says that the ledger is gone, and the next goes on."""
    before = rows(costs)
    for moment in itertools.count(1):

        def end(step: OnlineStep, moment: int = moment) -> None:
            if step.number == moment and step.seconds is None:
                costs.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'online'"
                )

        try:
            result = ensure_unique_online(
                make_conninfo(costs.dsn, application_name="online"), *KEY, keep=KEEP, progress=end
            )
            break
        except errors.LedgerUnavailable:
            assert moment < 30
    assert result.outcome in ("created", "unchanged")
    assert_kept(costs, before)
    assert_made(costs)


# -- left over -------------------------------------------------------------------------------------


def test_an_invalid_index_of_that_name_is_made_anew(costs: Database) -> None:
    """As CREATE INDEX CONCURRENTLY leaves it behind when it meets duplicates."""
    with pytest.raises(psycopg.errors.UniqueViolation):
        costs.execute("create unique index concurrently costs_key on app.costs (day, agent)")
    assert indexes(costs)["costs_key"] == (True, False)
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    assert result.outcome in ("created", "replaced")
    assert_made(costs)


def test_an_index_of_that_name_with_other_columns_is_replaced(costs: Database) -> None:
    costs.execute("create index costs_key on app.costs (agent)")
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    assert result.outcome == "replaced"
    assert result.found is not None
    assert_made(costs)


def test_children_are_repointed(costs: Database) -> None:
    costs.execute(
        "create table app.items (id bigint primary key, cost_id bigint not null"
        " references app.costs on delete cascade)"
    )
    costs.execute("insert into app.items select id, id from app.costs")
    refused = ensure_unique_online(costs.dsn, *KEY, keep=KEEP)
    assert (refused.outcome, refused.reason) == ("refused", "children")
    result = ensure_unique_online(costs.dsn, *KEY, keep=KEEP, children="repoint")
    assert result.outcome == "created"
    assert costs.value("select count(*) from app.items") == 1000
    assert costs.value("select count(distinct cost_id) from app.items") == 200
    assert_made(costs)
    costs.execute("delete from app.costs where agent = 'somebody'")
    with connect(costs.dsn, coalesce=False) as ledger:
        ledger.undo_repair(result.detail["repair_id"])
    assert costs.value("select bool_and(id = cost_id) from app.items")


def test_a_partitioned_table(db: Database) -> None:
    db.execute(
        "create schema app;"
        "create table app.costs (id bigint generated by default as identity, day date not null,"
        " agent text not null, calls bigint not null, updated_at timestamptz not null)"
        " partition by range (day);"
        "create table app.costs_1 partition of app.costs for values from ('2026-01-01') to ('2026-01-21');"
        "create table app.costs_2 partition of app.costs for values from ('2026-01-21') to ('2026-04-01')"
        " partition by list (agent);"
        "create table app.costs_2_a partition of app.costs_2 for values in ('agent 1');"
        "create table app.costs_2_b partition of app.costs_2 default;"
    )
    db.execute(
        DUPLICATES.replace("note, ", "").replace("json_build_object('n', n),", ""),
        {"keys": 200, "times": 4},
    )
    result = ensure_unique_online(db.dsn, *KEY, keep=KEEP)
    assert result.outcome == "created"
    assert db.value("select count(*) from app.costs") == 200
    for table in ("app.costs", "app.costs_1", "app.costs_2", "app.costs_2_a", "app.costs_2_b"):
        assert list(indexes(db, table).values()) == [(True, True)]
    db.execute(UPSERT, ["2026-01-01", "somebody", 1])
    db.execute(UPSERT, ["2026-01-01", "somebody", 2])
    again = ensure_unique_online(db.dsn, *KEY, keep=KEEP)
    assert again.outcome == "unchanged"
    without = ensure_unique_online(db.dsn, "app.costs", "by_agent", ["agent"], keep=KEEP)
    assert (without.outcome, without.reason) == ("refused", "partition_key")


def test_nulls_and_a_predicate(db: Database) -> None:
    db.execute(
        "create table public.seen (a integer, b text, at timestamp with time zone not null);"
        "insert into public.seen select n % 3, nullif(n % 2, 0)::text, now() + n * interval '1 s'"
        " from generate_series(1, 60) n"
    )
    key = ("public.seen", "seen_key", ["a", "coalesce(b, '')"])
    result = ensure_unique_online(
        db.dsn, *key, keep="latest at", nulls="not_distinct", where="a > 0"
    )
    assert result.outcome == "created"
    assert db.value("select count(*) from public.seen where a > 0") == 4
    assert db.value("select count(*) from public.seen where a = 0") == 20
    assert "NULLS NOT DISTINCT WHERE (a > 0)" in db.value(
        "select pg_get_indexdef('seen_key'::regclass)"
    )


def test_a_borrowed_connection_is_left_as_it_was(costs: Database) -> None:
    with costs.connect(autocommit=False) as conn:
        result = ensure_unique_online(conn, *KEY, keep=KEEP)
        assert result.outcome == "created"
        assert not conn.autocommit
        locks = conn.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
        assert locks == (0,)
    with costs.connect(autocommit=False) as conn:
        conn.execute("select 1")
        with pytest.raises(ValueError, match="transaction"):
            ensure_unique_online(conn, *KEY)
