"""Cooldowns under many sessions at once: one probe at a time, never shortened, untouched by success."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.books import check_sound
from tests.concurrency.test_callers import together
from tests.conftest import Database

SESSIONS = 64
SEED = 20260720

FAIL = (
    "select action, next_attempt_id::text, next_model_slug, delay_ms from routeledger.fail_attempt("
    "'t', %s::uuid, %s::uuid, 'http', p_http_status => %s, p_retry_after_ms => %s)"
)
SUCCEED = (
    "select created from routeledger.complete_decision('t', %s::uuid, 'succeeded',"
    " p_input_tokens => 1, p_output_tokens => 1)"
)
COOL = (
    "insert into routeledger.cooldowns (tenant_id, model_slug, until_at, opened_count,"
    " first_failed_at, last_failed_at) select 't', m, clock_timestamp() + %s::interval, 1,"
    " clock_timestamp(), clock_timestamp() from unnest(%s::text[]) m"
)


def decide(conn: psycopg.Connection[Any], models: list[str], deadline: str | None = None) -> Any:
    """A decision in flight: its id and that of its first attempt."""
    row = conn.execute(
        "select id::text, attempt_id::text from routeledger.insert_decision("
        "'t', p_candidates => %s, p_deadline => %s)",
        [Jsonb(models), deadline],
    ).fetchone()
    assert row
    return row


def test_one_probe_at_a_time(db: Database) -> None:
    """64 failovers meet a model that is half open: one goes to it, the others pass it over."""
    db.execute(COOL, ["-1 second", ["second"]])
    went: Counter[str] = Counter()

    def work(_: int, conn: psycopg.Connection[Any]) -> None:
        decision, attempt = decide(conn, ["first", "second", "third"])
        row = conn.execute(FAIL, [decision, attempt, 404, None]).fetchone()
        assert row
        assert row[0] == "failover"
        assert row[3] == 0
        went[row[2]] += 1

    together(db, SESSIONS, work)
    assert went == {"second": 1, "third": SESSIONS - 1}
    ((state, probe),) = db.execute(
        "select state, probe_attempt_id from routeledger.model_cooldowns where model_slug = 'second'"
    )
    assert state == "probing"
    ((decision, held),) = db.execute(
        "select id, probe_attempt_id from routeledger.routing_outcomes where probe_attempt_id is not null"
    )
    assert held == probe
    # the probe's success lets everybody back
    assert db.value(SUCCEED, [decision]) is True
    assert db.execute("select * from routeledger.model_cooldowns") == []


def test_probes_asked_for_directly(db: Database) -> None:
    """Whoever asks for the probe of one model gets a yes or a no; of all one yes."""
    db.execute(COOL, ["-1 second", ["m"]])
    answers: Counter[bool | None] = Counter()

    def work(_: int, conn: psycopg.Connection[Any]) -> None:
        with conn.transaction():
            row = conn.execute(
                "select routeledger._take_probe('t', 'm', null, routeledger.uuid_v7(),"
                " clock_timestamp(), '1 hour')"
            ).fetchone()
            assert row
            answers[row[0]] += 1

    together(db, SESSIONS, work)
    assert answers == {True: 1, False: SESSIONS - 1}


def test_a_cooldown_is_never_shortened(db: Database) -> None:
    """Whatever order failures come in, the model is left alone for the longest time asked for."""
    db.execute('select routeledger.configure(\'{"cooldown_cap": "24 hours"}\')')
    waits = [1000 * (n + 1) for n in range(SESSIONS)]
    random.Random(SEED).shuffle(waits)
    asked: list[float] = []

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        decision, attempt = decide(conn, ["m", "other"])
        before = until(conn)
        conn.execute(FAIL, [decision, attempt, 429, waits[n]])
        row = conn.execute(
            "select extract(epoch from completed_at) from routeledger.attempts where id = %s::uuid",
            [attempt],
        ).fetchone()
        assert row
        own = float(row[0]) + waits[n] / 1000
        asked.append(own)
        after = until(conn)
        assert after is not None
        assert before is None or after >= before
        assert after >= own - 0.001

    def until(conn: psycopg.Connection[Any]) -> float | None:
        row = conn.execute(
            "select extract(epoch from until_at) from routeledger.model_cooldowns where model_slug = 'm'"
        ).fetchone()
        return None if row is None else float(row[0])

    together(db, SESSIONS, work)
    with db.connect() as conn:
        assert until(conn) == pytest.approx(max(asked), abs=0.001)
        check_sound(conn)


def test_success_touches_no_row(db: Database) -> None:
    """64 sessions succeed on models with a cooldown, open, half open or only counting: nothing is written."""
    models = ["open", "half open", "counting"]
    db.execute(COOL, ["1 hour", ["open"]])
    db.execute(COOL, ["-1 second", ["half open"]])
    db.execute(
        "insert into routeledger.cooldowns (tenant_id, model_slug, failures, first_failed_at,"
        " last_failed_at) select 't', 'counting', 2, clock_timestamp(), clock_timestamp()"
    )
    look = "select model_slug, xmin::text, xmax::text, ctid::text from routeledger.cooldowns order by 1"
    before = db.execute(look)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        for number in range(4):
            decision, _ = decide(conn, [models[(n + number) % 3]])
            conn.execute(SUCCEED, [decision])

    together(db, SESSIONS, work)
    assert db.execute(look) == before


def test_a_storm_is_written_down_once(db: Database) -> None:
    """Once a model cools down long enough, further failures leave its row alone."""
    with db.connect() as conn:
        decision, attempt = decide(conn, ["m", "other"])
        conn.execute(FAIL, [decision, attempt, 429, 300000])
    look = (
        "select xmin::text, ctid::text, failures from routeledger.cooldowns where model_slug = 'm'"
    )
    before = db.execute(look)

    def work(_: int, conn: psycopg.Connection[Any]) -> None:
        decision, attempt = decide(conn, ["m", "other"])
        conn.execute(FAIL, [decision, attempt, 503, None])

    together(db, SESSIONS, work)
    assert db.execute(look) == before


def test_batches_of_failures_in_any_order(db: Database) -> None:
    """Batches whose failures name models in opposite orders, with single ones in between: no deadlock."""
    models = [f"m{n}" for n in range(6)]

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        rng = random.Random(SEED + n)
        for _ in range(4):
            rows = []
            for model in rng.sample(models, len(models)):
                decision, attempt = decide(conn, [model, *models])
                rows.append(
                    {
                        "tenant_id": "t",
                        "id": decision,
                        "attempt_id": attempt,
                        "error_type": "server",
                        "http_status": 500,
                        "next": "give_up",
                    }
                )
            if n % 3 == 0:
                for row in rows:
                    conn.execute(FAIL, [row["id"], row["attempt_id"], 500, None])
            else:
                answers = conn.execute(
                    "select status from routeledger.fail_attempts(%s)", [Jsonb(rows)]
                ).fetchall()
                assert set(answers) == {("accepted",)}

    together(db, 12, work)
    assert db.value("select count(*) from routeledger.model_cooldowns where state = 'open'") == 6
    with db.connect() as conn:
        check_sound(conn)


def test_waiting_for_the_first_to_return(db: Database) -> None:
    """All candidates cool down: each decision waits for the first, one as its probe, or gives up in time."""
    db.execute('select routeledger.configure(\'{"probe_lease": "30 minutes"}\')')
    db.execute(COOL, ["2 hours", ["slow"]])
    db.execute(COOL, ["1 hour", ["quick"]])
    actions: Counter[tuple[str, str | None]] = Counter()
    delays: list[int] = []

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        patient = n % 2 == 0
        decision, attempt = decide(
            conn, ["first", "slow", "quick"], "1 day" if patient else "1 second"
        )
        row = conn.execute(FAIL, [decision, attempt, 404, None]).fetchone()
        assert row
        assert row[0] == ("failover" if patient else "give_up")
        actions[row[0], row[2]] += 1
        if patient:
            delays.append(row[3])

    together(db, SESSIONS, work)
    assert actions == {("failover", "quick"): SESSIONS // 2, ("give_up", None): SESSIONS // 2}
    # one waits for the cooldown to be over, the others until its probe has to be back
    assert sum(delay <= 3600000 for delay in delays) == 1
    assert (
        db.value(
            "select count(*) from routeledger.routing_outcomes where probe_attempt_id is not null"
        )
        == 1
    )
    assert db.value(
        "select probe_attempt_id is not null from routeledger.cooldowns where model_slug = 'quick'"
    )
