"""Many sessions at once on the same decisions: one answer each, the same for all, and sound books."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from tests.books import (
    Answer,
    Call,
    Unit,
    call,
    call_rows,
    check_acknowledged,
    check_nothing_else,
    check_sound,
    reap_all,
    uuid7,
)
from tests.conftest import Database

CALLERS = 64
SHARED_DECISIONS = 40
CALLS_EACH = 20

BATCHERS = 8
BATCHES_EACH = 12
BATCH_ROWS = 30

REAPERS = 6
EXPIRED = 400

MAKERS = 12
WEEKS = 20
SEED = 20260607


def together(
    db: Database, count: int, work: Callable[[int, psycopg.Connection[Any]], None]
) -> None:
    """Runs work(n, connection) in `count` sessions that begin at the same time."""
    gate = threading.Barrier(count)
    errors: list[BaseException] = []

    def session(n: int) -> None:
        try:
            with db.connect() as conn:
                gate.wait(60)
                work(n, conn)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=session, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors


def attempt(one: Call, conn: psycopg.Connection[Any]) -> Answer | str:
    """The answer, or the code of the refusal. Anything but an RL code is a failure of the test."""
    try:
        return one.run(conn)
    except psycopg.Error as error:
        if (error.sqlstate or "").startswith("RL"):
            return str(error.sqlstate)
        raise


def test_64_callers_on_the_same_decisions(db: Database) -> None:
    """Random calls with random duplicates and contradictions: each id is written by one call only."""
    ids = [(uuid7(), uuid7(), uuid7()) for _ in range(SHARED_DECISIONS)]
    log: list[tuple[Call, Answer | str]] = []

    def calls(rng: random.Random) -> list[Call]:
        decision, first, second = rng.choice(ids)
        key = {"tenant_id": "t", "id": decision}
        insert = Call(
            "insert_decision",
            {**key, "attempt_id": first, "candidates": ["alpha", "beta"], "agent_id": "a"},
        )
        fail = Call(
            "fail_attempt",
            {**key, "attempt_id": first, "next_attempt_id": second, "error_type": "timeout"},
        )
        done = [
            Call(
                "complete_decision",
                {
                    **key,
                    "attempt_id": which,
                    "outcome_status": "succeeded",
                    "input_tokens": 1,
                    "output_tokens": tokens,
                },
            )
            for which in (first, second)
            for tokens in (1, 2)
        ]
        other = Call("insert_decision", {**insert.arguments, "agent_id": "b"})
        gave_up = Call(
            "complete_decision", {**key, "outcome_status": "failed", "error_type": "timeout"}
        )
        lease = Call("extend_lease", {**key, "lease": "1 hour"})
        kinds = [[insert, insert, fail], done, [insert, other, gave_up], [lease, fail]]
        return [rng.choice(kind) for kind in kinds]

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for _ in range(CALLS_EACH // 4):
            for one in calls(rng):
                log.append((one, attempt(one, conn)))

    together(db, CALLERS, work)

    # of the writes of one thing exactly one is the first, and all answers to one call are the same
    firsts: Counter[tuple[str, str]] = Counter()
    answers: dict[str, Answer] = {}
    for one, answer in log:
        if isinstance(answer, str) or "created" not in answer:
            continue
        what = one.arguments["attempt_id"] if one.routine == "fail_attempt" else ""
        firsts[one.routine + what, one.arguments["id"]] += answer["created"]
        kept = {k: v for k, v in answer.items() if k != "created"}
        assert answers.setdefault(repr((one.routine, one.arguments)), kept) == kept
    assert set(firsts.values()) == {1}
    refusals = {answer for _, answer in log if isinstance(answer, str)}
    assert refusals <= {"RL201", "RL202", "RL301", "RL302", "RL304", "RL305"}
    assert len(refusals) >= 4

    units = [
        Unit([one], [answer])
        for one, answer in log
        if not isinstance(answer, str) and one.routine != "extend_lease"
    ]
    with db.connect() as conn:
        check_acknowledged(conn, units)
        check_nothing_else(conn, "t", [Unit([one]) for one, _ in log])
        check_sound(conn)
        reap_all(conn)
        check_sound(conn)


def test_batches_in_opposite_orders(db: Database) -> None:
    """Set forms of every kind on overlapping rows in random orders: no deadlock, no torn batch."""
    decisions = [(uuid7(), uuid7(), uuid7()) for _ in range(BATCH_ROWS * 2)]
    accepted: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    def rows(kind: str, rng: random.Random) -> list[dict[str, Any]]:
        chosen = rng.sample(decisions, BATCH_ROWS)
        out = []
        for decision, first, second in chosen:
            row: dict[str, Any] = {"tenant_id": "t", "id": decision}
            if kind == "insert_decisions":
                row |= {"attempt_id": first, "candidates": ["alpha", "beta"]}
            elif kind == "fail_attempts":
                row |= {"attempt_id": first, "next_attempt_id": second, "error_type": "timeout"}
            elif kind == "extend_leases":
                row |= {"lease": f"{rng.randrange(1, 20)} hours"}
            elif kind == "start_attempts":
                row |= {"attempt_id": second, "model_slug": "alpha"}
            elif kind == "record_outcomes":
                row |= {
                    "candidates": ["alpha", "beta"],
                    "attempts": [
                        {
                            "id": first,
                            "model_slug": "alpha",
                            "status": "failed",
                            "error_type": "timeout",
                        }
                    ],
                }
            elif kind == "record_payloads":
                row |= {"attempt_id": first, "request": {"n": rng.randrange(2)}}
            else:  # with and without the attempt's id, right or wrong
                row |= {"outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}
                row |= rng.choice([{}, {"attempt_id": first}, {"attempt_id": second}])
            out.append(row)
        return out

    kinds = [
        "insert_decisions",
        "fail_attempts",
        "complete_decisions",
        "extend_leases",
        "start_attempts",
        "record_payloads",
        "record_outcomes",
    ]

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for turn in range(BATCHES_EACH):
            # all begin with what there is to fight about
            kind = kinds[0] if turn == 0 else rng.choice(kinds)
            sent = rows(kind, rng)
            got = call_rows(conn, kind, sent)
            assert [row["ord"] for row in got] == list(range(1, BATCH_ROWS + 1))
            with lock:
                for row, answer in zip(sent, got, strict=True):
                    assert answer["status"] in {"accepted", "replayed", "refused"}
                    assert (answer["code"] is not None) == (answer["status"] == "refused")
                    if kind not in {"extend_leases", "record_payloads"}:
                        group = "insert" if kind[0] in "ir" else kind
                        accepted[group, row["id"]] += answer["status"] == "accepted"

    together(db, BATCHERS, work)
    assert set(accepted.values()) <= {0, 1}
    with db.connect() as conn:
        n = conn.execute("select count(*) from routeledger.routing_outcomes").fetchone()
        assert n is not None
        assert n[0] == sum(accepted[group, i] for group, i in accepted if group == "insert")
        check_sound(conn)
        reap_all(conn)
        check_sound(conn)
        deadlocks = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
        assert deadlocks == (0,)


def test_batches_that_need_partitions(db: Database) -> None:
    """Batches over old and new weeks, tenants in opposite order: no deadlock on the way to a partition."""
    now = time.time()
    for turn in range(6):
        old = uuid7()
        new = [uuid7(now - (turn * 2 + 1) * 7 * 86400 - n) for n in range(4)]
        story = {"candidates": ["alpha"], "decision_rule_override": "budget_gone"}
        batches = [
            [
                {"tenant_id": "b", "id": new[0], **story},
                {"tenant_id": "b", "id": old, **story},
            ],
            [
                {"tenant_id": "a", "id": new[1], **story},
                {"tenant_id": "b", "id": old, **story},
                {"tenant_id": "c", "id": new[2], **story},
            ],
            [
                {"tenant_id": "b", "id": old, **story},
                {"tenant_id": "c", "id": new[3], **story},
            ],
        ]

        def work(n: int, conn: psycopg.Connection[Any]) -> None:
            for row in call_rows(conn, "record_outcomes", batches[n % 3]):  # noqa: B023
                assert row["status"] in {"accepted", "replayed"}

        together(db, 6, work)
    with db.connect() as conn:
        check_sound(conn)


def test_reapers(db: Database) -> None:
    """Several reapers and late callers: each lease is ended by one reaper, or its caller is in time."""
    rows = [
        {
            "tenant_id": f"t{n % 3}",
            "id": uuid7(),
            "attempt_id": uuid7(),
            "candidates": ["alpha"],
            "lease": f"{n % 50 + 1} seconds",
        }
        for n in range(EXPIRED)
    ]
    with db.connect() as conn:
        assert {r["status"] for r in call_rows(conn, "insert_decisions", rows)} == {"accepted"}
    reaped: Counter[str] = Counter()
    completed: dict[str, Answer] = {}
    lock = threading.Lock()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        if n < REAPERS:
            conn.execute("select routeledger.set_clock(clock_timestamp() + '1 hour')")
            rng = random.Random(SEED + n)
            while True:
                limit = rng.randrange(1, 20)
                got = [r["id"] for r in Call("reap", {"limit": limit}).rows(conn)]
                assert len(got) <= limit
                with lock:
                    reaped.update(got)
                if not got:
                    return
        for row in rows[n - REAPERS :: 8]:
            answer = call(
                conn,
                "complete_decision",
                tenant_id=row["tenant_id"],
                id=row["id"],
                attempt_id=row["attempt_id"],
                outcome_status="succeeded",
                input_tokens=1,
                output_tokens=1,
            )
            with lock:
                completed[row["id"]] = answer

    together(db, REAPERS + 2, work)
    with db.connect() as conn:
        reaped.update(reap_all(conn))  # what a reaper passed over while its caller held it
        assert set(reaped.values()) <= {1}
        assert set(reaped) | set(completed) == {row["id"] for row in rows}
        for i, answer in completed.items():
            assert answer["created"]
            assert answer["late"] == (i in reaped)
        stored = conn.execute(
            "select id, outcome_status, late_completion from routeledger.decisions"
        ).fetchall()
        for i, status, late in stored:
            assert status == ("succeeded" if str(i) in completed else "abandoned")
            assert late == (str(i) in completed and str(i) in reaped)
        check_sound(conn)


def test_partitions_made_while_writing(db: Database) -> None:
    """Writers of many weeks, maintain() and readers at once: every write gets through, no gap, no overlap."""
    now = time.time()
    written: Counter[str] = Counter()
    lock = threading.Lock()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        if n == 0:
            for weeks in range(1, WEEKS, 2):
                conn.execute("select routeledger.maintain(%s::interval)", [f"{weeks * 7} days"])
            return
        if n == 1:
            for _ in range(WEEKS * 2):
                conn.execute("select count(*) from routeledger.decisions")
            return
        weeks = list(range(WEEKS))
        rng.shuffle(weeks)
        for week in weeks:
            at = now - (week % 12) * 7 * 86400 - rng.random() * 86400
            rows = [
                {
                    "tenant_id": "t",
                    "id": uuid7(at + k * 3 * 86400 - 3 * 86400),
                    "candidates": ["alpha"],
                }
                for k in range(2)
            ]
            if rng.random() < 0.5:
                got = call_rows(conn, "insert_decisions", rows)
                assert {row["status"] for row in got} == {"accepted"}
            else:
                for row in rows:
                    assert call(conn, "insert_decision", **row)["created"]
            with lock:
                written.update(row["id"] for row in rows)

    together(db, MAKERS, work)
    with db.connect() as conn:
        stored = conn.execute("select id, tableoid from routeledger.routing_outcomes").fetchall()
        assert {str(row[0]) for row in stored} == set(written)
        assert len({row[1] for row in stored}) >= 12
        # equal leaves of the four tables, a link on each
        odd = conn.execute(
            r"""
            with leaf as (
              select p.relname as parent, replace(c.relname, p.relname, '') as suffix,
                pg_get_expr(c.relpartbound, c.oid) as bounds,
                (select count(*) from pg_constraint f where f.conrelid = c.oid and f.contype = 'f')
                  as links
              from pg_inherits i
              join pg_class p on p.oid = i.inhparent
              join pg_class c on c.oid = i.inhrelid
              where p.relnamespace = 'routeledger'::regnamespace and p.relkind = 'p')
            select suffix
            from leaf
            group by suffix
            having count(*) <> 4 or count(distinct bounds) <> 1 or sum(links) <> 1"""
        ).fetchall()
        assert odd == []
        check_sound(conn)
