"""Budgets under many sessions at once: never exceeded, never refused what they have, settled to the cent.

Each test runs with one counter row and with several shards, between which allowances move while
other sessions reserve, complete, give up and are reaped.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.books import check_sound, uuid7
from tests.concurrency.test_callers import together
from tests.conftest import Database

SESSIONS = 64
SEED = 20260719
CENT = Decimal("0.01")
SHARDS = (1, 8)

INSERT = (
    "select attempt_id::text from routeledger.insert_decision('t', %s::uuid, p_agent_id => %s,"
    " p_candidates => %s, p_lease => %s)"
)
COMPLETE = (
    "select late from routeledger.complete_decision('t', %s::uuid, 'succeeded',"
    " p_input_tokens => 1, p_output_tokens => 1, p_cost_usd => %s)"
)
STATUS = (
    "select limit_usd, reserved_usd, spent_usd, remaining_usd from routeledger.budget_status"
    " where tenant_id = 't' and name = %s and subject = %s"
)
# what must hold at every moment, in one look
INVARIANT = (
    "select c.name, c.subject, b.limit_usd, sum(c.allowance_usd), sum(c.reserved_usd + c.spent_usd),"
    " min(c.allowance_usd - c.reserved_usd - c.spent_usd)"
    " from routeledger.budget_counters c join routeledger.budgets b using (tenant_id, name)"
    " group by 1, 2, 3"
)


def candidates(amount: Decimal) -> Jsonb:
    return Jsonb([{"model_slug": "m", "provider": "p", "projected_cost_usd": float(amount)}])


def set_budget(db: Database, limit: Decimal, shards: int, **more: str) -> None:
    """A budget named b, without windows unless `more` says so."""
    arguments = {"name": "b", "scope": "tenant", "subject": "", "period": "total", **more}
    db.execute(
        "select routeledger.set_budget('t', %(name)s, %(limit)s, %(scope)s, %(subject)s,"
        " %(period)s, %(shards)s)",
        {**arguments, "limit": limit, "shards": shards},
    )


def reserve(
    conn: psycopg.Connection[Any],
    decision: str,
    amount: Decimal,
    *,
    agent: str | None = None,
    lease: str = "1 hour",
) -> bool:
    """Inserts a decision; False when a budget refuses it. Any other error is the test's."""
    try:
        conn.execute(INSERT, [decision, agent, candidates(amount), lease])
    except psycopg.Error as error:
        if error.sqlstate == "RL504":
            return False
        raise
    return True


def look(db: Database) -> None:
    """No counter is beyond its allowance, and the allowances add up to the limit."""
    for name, subject, limit, allowance, used, least in db.execute(INVARIANT):
        assert allowance == limit, (name, subject, allowance, limit)
        assert used <= limit, (name, subject, used, limit)
        assert least >= 0, (name, subject, least)


@pytest.mark.parametrize("shards", SHARDS)
def test_to_the_last_cent(db: Database, shards: int) -> None:
    """More is asked for than there is: exactly what there is is given out."""
    capacity = 300
    set_budget(db, capacity * CENT, shards)
    taken: Counter[bool] = Counter()

    def work(_: int, conn: psycopg.Connection[Any]) -> None:
        taken.update(reserve(conn, uuid7(), CENT) for _ in range(8))

    together(db, SESSIONS, work)
    assert taken == {True: capacity, False: SESSIONS * 8 - capacity}
    assert db.execute(STATUS, ["b", ""]) == [(3, 3, 0, 0)]
    assert db.value("select count(*) from routeledger.budget_holds") == capacity
    # nothing of what was refused was written
    assert db.value("select count(*) from routeledger.routing_outcomes") == capacity
    assert db.value("select count(*) from routeledger.inferences") == capacity
    look(db)


@pytest.mark.parametrize("shards", [*SHARDS, 64])
def test_what_there_is_is_never_refused(db: Database, shards: int) -> None:
    """Each session holds one amount at a time and the budget is as many: no refusal would be true."""
    set_budget(db, SESSIONS * CENT, shards)
    refused = []

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for number in range(10):
            decision = uuid7()
            if not reserve(conn, decision, CENT):
                refused.append((n, number))
                continue
            how = rng.choice(["done", "failed", "gave up"])
            if how == "done":
                conn.execute(COMPLETE, [decision, Decimal(0)])
            elif how == "failed":
                conn.execute(
                    "select routeledger.complete_decision('t', %s::uuid, 'failed',"
                    " p_error_type => 'timeout')",
                    [decision],
                )
            else:
                conn.execute(
                    "select routeledger.fail_attempt('t', %s::uuid, open_attempt_id, 'timeout',"
                    " p_next => 'give_up') from routeledger.routing_outcomes where id = %s::uuid",
                    [decision, decision],
                )

    together(db, SESSIONS, work)
    assert refused == []
    assert db.execute(STATUS, ["b", ""]) == [(SESSIONS * CENT, 0, 0, SESSIONS * CENT)]
    assert db.value("select count(*) from routeledger.budget_holds") == 0
    look(db)


@dataclass
class Taken:
    """A decision that was covered: when, and what became of it."""

    amount: Decimal
    began: float
    settled: float | None = None
    cost: Decimal = Decimal(0)


@pytest.mark.parametrize("shards", SHARDS)
def test_with_completions_and_a_reaper_in_between(db: Database, shards: int) -> None:
    """Never beyond the limit at any moment looked at; no refusal that can be proved false; sound books."""
    limit = Decimal("0.60")
    set_budget(db, limit, shards)
    book: list[Taken] = []
    refusals: list[tuple[float, float, Decimal]] = []
    over = threading.Event()
    faults: list[BaseException] = []

    def watch() -> None:
        try:
            while not over.wait(0.02):
                look(db)
        except BaseException as error:  # noqa: BLE001 - raised below
            faults.append(error)

    def reap() -> None:
        try:
            with db.connect() as conn:
                while not over.wait(0.05):
                    # a minute ahead: past the short leases, which only those have who walk away
                    conn.execute(
                        "select routeledger.set_clock(clock_timestamp() + interval '1 minute')"
                    )
                    conn.execute("select count(*) from routeledger.reap()")
        except BaseException as error:  # noqa: BLE001 - raised below
            faults.append(error)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for _ in range(12):
            amount = rng.choice([CENT, 2 * CENT, 5 * CENT])
            walks_away = rng.random() < 0.2
            decision = uuid7()
            began = time.monotonic()
            if not reserve(conn, decision, amount, lease="1 second" if walks_away else "1 hour"):
                refusals.append((began, time.monotonic(), amount))
                continue
            taken = Taken(amount, began)
            book.append(taken)
            if walks_away:
                continue
            taken.cost = rng.choice([Decimal(0), Decimal("0.0001"), Decimal("0.0003")])
            conn.execute(COMPLETE, [decision, taken.cost])
            taken.settled = time.monotonic()

    threads = [threading.Thread(target=watch), threading.Thread(target=reap)]
    for thread in threads:
        thread.start()
    try:
        together(db, SESSIONS, work)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for fault in faults:
        raise fault

    for began, ended, amount in refusals:
        # the most that can have been reserved or spent at any moment of that call
        most = sum(
            (
                taken.cost if taken.settled is not None and taken.settled < began else taken.amount
                for taken in book
                if taken.began < ended
            ),
            Decimal(0),
        )
        assert most + amount > limit

    with db.connect() as conn:
        conn.execute("select routeledger.set_clock(clock_timestamp() + interval '1 day')")
        conn.execute("select count(*) from routeledger.reap()")
    spent = sum((taken.cost for taken in book), Decimal(0))
    assert db.execute(STATUS, ["b", ""]) == [(limit, 0, spent, limit - spent)]
    assert db.value("select count(*) from routeledger.budget_holds where not released") == 0
    look(db)
    with db.connect() as conn:
        check_sound(conn)


@pytest.mark.parametrize("shards", SHARDS)
def test_batches_over_several_budgets(db: Database, shards: int) -> None:
    """Batches that name agents in opposite orders: no deadlock, and each agent's budget is exact."""
    agents = [f"agent {n}" for n in range(5)]
    set_budget(db, Decimal(1000), shards)
    set_budget(db, 40 * CENT, shards, name="each", scope="agent", subject="*", period="day")
    accepted: Counter[str] = Counter()
    codes: Counter[str | None] = Counter()
    spent: Counter[str] = Counter()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for _ in range(5):
            names = [agent for agent in agents for _ in range(3)]
            rng.shuffle(names)
            rows = [
                {
                    "tenant_id": "t",
                    "id": uuid7(),
                    "agent_id": name,
                    "candidates": [{"model_slug": "m", "projected_cost_usd": 0.01}],
                }
                for name in names
            ]
            answers = conn.execute(
                "select ord, status, code from routeledger.insert_decisions(%s)", [Jsonb(rows)]
            ).fetchall()
            covered = [rows[ord_ - 1] for ord_, status, _ in answers if status == "accepted"]
            accepted.update(row["agent_id"] for row in covered)
            codes.update(code for *_, code in answers)
            done = covered[: rng.randrange(len(covered) + 1)]
            rng.shuffle(done)
            spent.update(row["agent_id"] for row in done)
            conn.execute(
                "select count(*) from routeledger.complete_decisions(%s)",
                [
                    Jsonb(
                        [
                            {
                                "tenant_id": "t",
                                "id": row["id"],
                                "outcome_status": "succeeded",
                                "input_tokens": 1,
                                "output_tokens": 1,
                                "cost_usd": 0.01,
                            }
                            for row in done
                        ]
                    )
                ],
            )

    together(db, 8, work)
    assert set(codes) == {None, "RL504"}
    # more was asked of each than it has
    assert accepted == dict.fromkeys(agents, 40)
    for agent in agents:
        ((limit, reserved, paid, remaining),) = db.execute(STATUS, ["each", agent])
        assert (limit, remaining) == (40 * CENT, 0)
        assert paid == spent[agent] * CENT
        assert reserved == (40 - spent[agent]) * CENT
    total = sum(spent.values())
    assert db.execute(STATUS, ["b", ""]) == [
        (1000, (200 - total) * CENT, total * CENT, 1000 - 200 * CENT)
    ]
    look(db)


@pytest.mark.parametrize("shards", SHARDS)
def test_a_new_limit_while_they_are_at_it(db: Database, shards: int) -> None:
    """The limit and the number of shards change under 16 sessions: what holds at the end is exact."""
    set_budget(db, 20 * CENT, shards)
    taken: Counter[bool] = Counter()

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        if n == 0:
            for step in range(1, 9):
                conn.execute(
                    "select routeledger.set_budget('t', 'b', %s, 'tenant', '', 'total', %s)",
                    [(20 + 5 * step) * CENT, 1 + (shards * step) % 5],
                )
            return
        taken.update(reserve(conn, uuid7(), CENT) for _ in range(10))

    together(db, 16, work)
    with db.connect() as conn:
        while reserve(conn, uuid7(), CENT):
            taken[True] += 1
    assert taken[True] == 60
    look(db)
