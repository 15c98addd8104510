"""Roll-ups and callers with buckets, many at once: no deadlock, nothing lost, the same table in the end."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.books import call, call_rows, scaled, uuid7
from tests.concurrency.test_callers import together
from tests.conftest import Database

TENANTS = ("a", "b", "c")
MODELS = ("alpha", "beta", "gamma", "delta")
DAY = 86400
SEED = 20261120

NAIVE = """
select i.tenant_id, i.model_slug, coalesce(o.task_type, '__global__'),
  (routeledger.uuid_v7_time(o.id) at time zone 'UTC')::date,
  count(*), count(*) filter (where i.status = 'succeeded'), sum(i.cost_usd)
from routeledger.routing_outcomes o
join routeledger.inferences i on (i.tenant_id, i.outcome_id) = (o.tenant_id, o.id)
where i.status <> 'routed'
group by 1, 2, 3, 4
order by 1, 2, 3, 4
"""
STORED = """
select tenant_id, model_key, task_type, day, n, success_n, cost_usd
from routeledger.model_performance_buckets
where from_ledger
order by 1, 2, 3, 4
"""
REWARDS_NAIVE = """
select i.tenant_id, i.model_slug, coalesce(o.task_type, '__global__'),
  (routeledger.uuid_v7_time(o.id) at time zone 'UTC')::date,
  count(o.reward), round(coalesce(sum(o.reward::numeric), 0), 9)
from routeledger.routing_outcomes o
join routeledger.inferences i on (i.tenant_id, i.outcome_id) = (o.tenant_id, o.id)
where i.id = o.inference_id
group by 1, 2, 3, 4
order by 1, 2, 3, 4
"""
REWARDS_STORED = """
select tenant_id, model_key, task_type, day, reward_n, round(reward_sum::numeric, 9)
from routeledger.model_performance_buckets
where model_key <> 'omega'
order by 1, 2, 3, 4
"""
VERSIONS = """
select ctid::text, xmin::text from routeledger.model_performance_buckets order by 1, 2
"""


def story(tenant: str, model: str, at: float, task: str | None = None) -> dict[str, Any]:
    """A decision of that time, told as a row of record_outcomes."""
    usage = {"input_tokens": 1, "output_tokens": 1, "cost_usd": 0.25, "latency_ms": 12.5}
    return {
        "tenant_id": tenant,
        "id": uuid7(at),
        "task_type": task,
        "attempts": [
            {"model_slug": "omega", "status": "failed", "error_type": "429"},
            {"model_slug": model, "status": "succeeded", **usage},
        ],
    }


def tell(conn: psycopg.Connection[Any], rows: list[dict[str, Any]]) -> None:
    assert {row["status"] for row in call_rows(conn, "record_outcomes", rows)} == {"accepted"}


def roll_up(conn: psycopg.Connection[Any], **arguments: Any) -> dict[str, Any]:
    return call(conn, "rollup_model_performance", **arguments)


def utc_day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def test_roll_ups_and_callers_and_writers(db: Database) -> None:
    """All at once, in opposite orders, on the same buckets: what is left is a naive GROUP BY."""
    now = time.time()
    turns = scaled(12)

    def write(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for _ in range(turns):
            tell(
                conn,
                [
                    story(
                        rng.choice(TENANTS),
                        rng.choice(MODELS),
                        now - rng.randrange(3) * DAY,
                        rng.choice([None, "chat"]),
                    )
                    for _ in range(8)
                ],
            )

    def bring(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for _ in range(turns):
            rows = [
                {
                    "tenant_id": tenant,
                    "model_key": model,
                    "task_type": task,
                    "day": utc_day(now - day * DAY),
                    "n": rng.randrange(1, 1000),
                }
                for tenant in TENANTS
                for model in (*MODELS, "of callers only")
                for task in (None, "chat")
                for day in range(3)
            ]
            rng.shuffle(rows)
            rows = rows[: rng.randrange(1, len(rows))]
            answer = call(conn, "persist_model_performance", rows=rows)
            assert answer["refused"] == 0
            assert answer["collapsed"] == 0

    def roll(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for _ in range(turns):
            day = rng.randrange(4)
            arguments = rng.choice(
                [
                    {},
                    {},
                    {"tenant_id": rng.choice(TENANTS)},
                    {"from": utc_day(now - day * DAY)},
                    {"from": utc_day(now - day * DAY), "to": utc_day(now - (day - 1) * DAY)},
                ]
            )
            answer = roll_up(conn, **arguments)
            kinds = ("inserted", "updated", "unchanged")
            assert answer["buckets"] == sum(answer[kind] for kind in kinds)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set client_min_messages = error")
        (write, bring, bring, roll, roll)[n % 5](random.Random(SEED + n), conn)

    together(db, 10, work)
    with db.connect() as conn:
        roll_up(conn)
        assert conn.execute(STORED).fetchall() == conn.execute(NAIVE).fetchall()
        # what callers brought and the ledger knows nothing of is still there
        (brought,) = conn.execute(
            "select count(*) from routeledger.model_performance_buckets where not from_ledger"
        ).fetchone() or (0,)
        assert brought > 0
        before = conn.execute(VERSIONS).fetchall()
        again = roll_up(conn, **{"from": "1970-01-01"})
        assert (again["inserted"], again["updated"]) == (0, 0)
        assert conn.execute(VERSIONS).fetchall() == before
        deadlocks = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
        assert deadlocks == (0,)


def test_callers_bring_what_a_roll_up_is_counting(db: Database) -> None:
    """Half of the buckets are new and half are a caller's, and all sessions write them all: no deadlock."""
    now = time.time()
    # so many that the sessions are sure to meet
    buckets = [(t, f"m{k:04}") for t in TENANTS for k in range(1000)]
    day = utc_day(now)
    with db.connect() as conn:
        for tenant in TENANTS:
            tell(conn, [story(tenant, model, now) for t, model in buckets if t == tenant])

    def bring(conn: psycopg.Connection[Any], rng: random.Random, some: int, n: int) -> None:
        rows = [
            {"tenant_id": tenant, "model_key": model, "day": day, "n": n}
            for tenant, model in buckets[::some]
        ]
        rng.shuffle(rows)
        assert call(conn, "persist_model_performance", rows=rows)["refused"] == 0

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        conn.execute("set client_min_messages = error")
        conn.execute("set deadlock_timeout = '100ms'")
        for turn in range(2):
            if n == 0:
                assert roll_up(conn)["buckets"] == len(buckets) + len(TENANTS)
            else:
                bring(conn, rng, 1, 10 * turn + n)

    for turn in range(scaled(5)):
        with db.connect() as conn:
            conn.execute("delete from routeledger.model_performance_buckets")
            conn.execute("set client_min_messages = error")
            bring(conn, random.Random(turn), 2, 1)
        together(db, 3, work)
        with db.connect() as conn:
            assert conn.execute(STORED).fetchall() == conn.execute(NAIVE).fetchall()


def test_identical_roll_ups_write_no_tuple(db: Database) -> None:
    """The same roll-up from many sessions: one of them writes, the others find it right."""
    now = time.time()
    with db.connect() as conn:
        tell(conn, [story(t, m, now - d * DAY) for t in TENANTS for m in MODELS for d in range(5)])
    answers = []

    def work(_: int, conn: psycopg.Connection[Any]) -> None:
        answers.append(roll_up(conn))

    together(db, 8, work)
    expected = len(TENANTS) * (len(MODELS) + 1) * 5
    assert sorted(answer["inserted"] for answer in answers) == [0] * 7 + [expected]
    assert [answer["updated"] for answer in answers] == [0] * 8
    with db.connect() as conn:
        conn.execute("select pg_stat_clear_snapshot()")
        for _ in range(100):  # sessions report when they end
            found = conn.execute(
                """
                select n_tup_ins, n_tup_upd, n_tup_del from pg_stat_all_tables
                where relid = 'routeledger.model_performance_buckets'::regclass
                """
            ).fetchone()
            if found == (expected, 0, 0):
                break
            time.sleep(0.1)
        assert found == (expected, 0, 0)


def test_the_last_to_write_is_the_last_that_read(db: Database) -> None:
    """A roll-up waits for one that is under way, and only then reads."""
    now = time.time()
    with db.connect() as conn:
        tell(conn, [story("a", "alpha", now)])
    with db.connect(autocommit=False) as early, db.connect() as late, db.connect() as other:
        assert roll_up(early)["inserted"] == 2
        tell(other, [story("a", "alpha", now)])
        late.execute("set lock_timeout = '200ms'")
        for arguments in ({}, {"tenant_id": "a"}, {"from": utc_day(now)}):
            with pytest.raises(errors.LockNotAvailable):
                roll_up(late, **arguments)
        early.commit()
        assert roll_up(late, **{"from": utc_day(now)})["updated"] == 2
        assert late.execute(STORED).fetchall() == late.execute(NAIVE).fetchall()


def test_tenants_do_not_wait_for_each_other(db: Database) -> None:
    now = time.time()
    with db.connect() as conn:
        tell(conn, [story(t, "alpha", now) for t in TENANTS])
    with db.connect(autocommit=False) as first, db.connect() as second:
        assert roll_up(first, tenant_id="a")["inserted"] == 2
        second.execute("set lock_timeout = '2s'")
        assert roll_up(second, tenant_id="b")["inserted"] == 2
        # nor does a caller wait who brings in what no roll-up is writing
        bucket = {"tenant_id": "a", "model_key": "of callers only", "day": utc_day(now), "n": 1}
        assert call(second, "persist_model_performance", rows=[bucket])["inserted"] == 1
        first.rollback()
        assert roll_up(second)["inserted"] == 4


def test_what_is_committed_late_is_counted(db: Database) -> None:
    """A transaction that was open at the time of a roll-up: its decisions are counted by the next one."""
    with db.connect() as conn, db.connect(autocommit=False) as writer:
        conn.execute("""select routeledger.configure('{"rollup_look_back": "2 days"}')""")
        now = time.time()
        tell(writer, [story("a", "alpha", now)])
        # hours later, and two days later all but a moment, it is still open
        for later in ("3 hours", "47 hours 59 minutes"):
            conn.execute("select routeledger.set_clock(clock_timestamp() + %s::interval)", [later])
            assert roll_up(conn)["buckets"] == 0
        writer.commit()
        # the next roll-up, however long after
        conn.execute("select routeledger.set_clock(clock_timestamp() + '20 days')")
        assert roll_up(conn)["inserted"] == 2

        # what is committed later than that is not promised, until somebody asks for the day
        tell(writer, [story("a", "alpha", now)])
        assert roll_up(conn)["updated"] == 0
        writer.commit()
        assert roll_up(conn)["updated"] == 0
        assert roll_up(conn, **{"from": utc_day(now)})["updated"] == 2


def judge(
    conn: psycopg.Connection[Any], outcome: dict[str, Any], name: str, score: float
) -> dict[str, Any]:
    return call(
        conn,
        "record_verdict",
        tenant_id=outcome["tenant_id"],
        id=outcome["id"],
        judge=name,
        judge_version="1",
        score=score,
    )


def test_no_late_reward_is_lost(db: Database) -> None:
    """Judges, withdrawals and incremental roll-ups, all at once, on days that no look-back reaches."""
    now = time.time()
    judges, rollers = 5, 3
    rng = random.Random(SEED)
    told = [
        story(tenant, rng.choice(MODELS), now - rng.randrange(5, 45) * DAY)
        for tenant in TENANTS
        for _ in range(scaled(40))
    ]
    with db.connect() as conn:
        tell(conn, told)
        roll_up(conn)
        assert conn.execute(STORED).fetchall() == conn.execute(NAIVE).fetchall()
    judging = threading.Semaphore(0)
    done = threading.Event()
    updated: list[int] = []

    def label(rng: random.Random, conn: psycopg.Connection[Any], name: str) -> None:
        conn.autocommit = False
        mine = list(told)
        rng.shuffle(mine)
        while mine:
            # outcomes are locked in order, as every transaction that holds several has to
            some = sorted((mine.pop() for _ in range(min(len(mine), rng.randrange(1, 4)))), key=key)
            for outcome in some:
                judge(conn, outcome, name, rng.choice([0, 0.25, 1]))
            time.sleep(rng.choice([0, 0, 0.02]))
            if rng.random() < 0.1:
                conn.rollback()
            else:
                conn.commit()
            if rng.random() < 0.1:
                conn.execute(
                    "select from routeledger.withdraw_verdicts(%s, %s, '1', 'a second thought')",
                    [rng.choice(TENANTS), name],
                )
                conn.commit()

    def key(outcome: dict[str, Any]) -> tuple[str, str]:
        return outcome["tenant_id"], outcome["id"]

    def roll(rng: random.Random, conn: psycopg.Connection[Any], n: int) -> None:
        conn.autocommit = False
        if n == 0:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        while not done.is_set():
            try:
                answer = roll_up(conn, **rng.choice([{}, {"tenant_id": rng.choice(TENANTS)}]))
                time.sleep(rng.choice([0, 0.02]))
                conn.commit()
                updated.append(answer["updated"])
            except errors.SerializationFailure:
                conn.rollback()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set client_min_messages = error")
        rng = random.Random(SEED + n)
        if n >= judges:
            return roll(rng, conn, n - judges)
        try:
            label(rng, conn, f"judge {n}")
        finally:
            judging.release()
            if n == 0:
                for _ in range(judges):
                    judging.acquire()
                done.set()

    together(db, judges + rollers, work)
    assert sum(updated) > 0
    with db.connect() as conn:
        roll_up(conn)
        stored = conn.execute(REWARDS_STORED).fetchall()
        assert stored == conn.execute(REWARDS_NAIVE).fetchall()
        assert sum(row[4] for row in stored) > 0
        assert conn.execute("select count(*) from routeledger.rollup_days").fetchone() == (0,)
        deadlocks = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
        assert deadlocks == (0,)


def test_late_rewards_and_roll_ups_do_not_wait_for_each_other(db: Database) -> None:
    """Each order in which a reward, its commit and roll-ups can come: none waits, each reward is counted."""
    now = time.time()
    outcomes = [story("a", "alpha", now - 30 * DAY) for _ in range(4)]

    def rewards(conn: psycopg.Connection[Any]) -> int:
        query = "select sum(reward_n)::integer from routeledger.model_performance_buckets"
        return int((conn.execute(query).fetchone() or (0,))[0])

    with (
        db.connect() as conn,
        db.connect(autocommit=False) as first,
        db.connect(autocommit=False) as second,
        db.connect(autocommit=False) as roller,
    ):
        tell(conn, outcomes)
        roll_up(conn)
        for session in (conn, first, second, roller):
            session.execute("set lock_timeout = '2s'")
            session.commit()

        # a reward is open while roll-ups come and go, and the clock with them
        judge(first, outcomes[0], "j", 1)
        assert roll_up(conn)["updated"] == 0
        conn.execute("select routeledger.set_clock(clock_timestamp() + '20 days')")
        assert roll_up(conn)["updated"] == 0
        first.commit()
        assert roll_up(conn)["updated"] == 1
        assert rewards(conn) == 1

        # two are open; one is committed, and counted, while the other holds a mark of that day
        judge(first, outcomes[1], "j", 1)
        judge(second, outcomes[2], "j", 1)
        first.commit()
        judge(first, outcomes[1], "k", 1)
        assert roll_up(conn)["updated"] == 1
        assert rewards(conn) == 2
        second.commit()
        first.commit()
        assert roll_up(conn)["updated"] == 1
        assert rewards(conn) == 3

        # a roll-up that has taken the mark away is open when the next reward comes
        judge(conn, outcomes[0], "k", 0)
        assert roll_up(roller)["updated"] == 1
        judge(first, outcomes[3], "j", 1)
        first.commit()
        roller.commit()
        assert rewards(conn) == 3
        assert roll_up(conn)["updated"] == 1
        assert rewards(conn) == 4

        # one that is undone leaves the mark where it was
        judge(conn, outcomes[1], "l", 0)
        assert roll_up(roller)["updated"] == 1
        roller.rollback()
        assert roll_up(conn)["updated"] == 1

        # a mark that the roll-up sees has been used again since: the old snapshot may not take it away
        judge(conn, outcomes[2], "k", 0)
        roller.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        roller.execute("select 1")
        judge(conn, outcomes[3], "k", 0)
        with pytest.raises(errors.SerializationFailure):
            roll_up(roller)
        roller.rollback()
        assert roll_up(conn)["updated"] == 1
        assert conn.execute(REWARDS_STORED).fetchall() == conn.execute(REWARDS_NAIVE).fetchall()


def test_under_repeatable_read(db: Database) -> None:
    """The watermark is never later than the snapshot, and an old snapshot never writes over a newer one."""
    now = time.time()
    with db.connect() as conn:
        tell(conn, [story("a", "alpha", now)])
    with db.connect(autocommit=False) as old, db.connect() as conn:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select 1")
        time.sleep(0.05)
        roll_up(old)
        found = old.execute(
            "select watermark <= transaction_timestamp() from routeledger.rollup_watermarks"
        ).fetchone()
        assert found == (True,)
        old.rollback()

        old.execute("select 1")
        tell(conn, [story("a", "alpha", now)])
        roll_up(conn)
        with pytest.raises(errors.SerializationFailure):
            roll_up(old)
        old.rollback()
        assert conn.execute(STORED).fetchall() == conn.execute(NAIVE).fetchall()


def test_fifty_buckets_from_many_processes(db: Database) -> None:
    """Each process sends what it has counted so far, again and again: the highest counts stay."""
    day = utc_day(time.time())
    senders, rounds = 8, scaled(10)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        conn.execute("set client_min_messages = error")
        for turn in range(1, rounds + 1):
            rows = [
                {
                    "tenant_id": "a",
                    "model_key": f"m{k}",
                    "day": day,
                    "n": turn * 10 + rng.randrange(10),
                }
                for k in range(50)
            ]
            rows.append({**rows[0], "n": turn * 10 - 1})  # the same key twice
            rows.append({**rows[1], "n": -1})  # and one that is wrong
            rows += [{**row, "n": rounds * 10 + 10} for row in rows[2:4] if turn == rounds]
            rng.shuffle(rows)
            answer = call(conn, "persist_model_performance", rows=rows)
            assert answer["refused"] == 1
            assert answer["collapsed"] >= 1

    together(db, senders, work)
    with db.connect() as conn:
        stored = dict(
            conn.execute(
                "select model_key, n from routeledger.model_performance_buckets"
            ).fetchall()
        )
        assert len(stored) == 50
        assert min(stored.values()) >= rounds * 10
        assert stored["m2"] == stored["m3"] == rounds * 10 + 10
        deadlocks = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
        assert deadlocks == (0,)
