"""Judges, people, withdrawals and roll-ups at once: no deadlock, each reward the mean of what counts."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.books import Answer, Call, call, call_rows, scaled, uuid7
from tests.concurrency.test_callers import together
from tests.conftest import Database

TENANTS = ("a", "b", "c")
MODELS = ("alpha", "beta")
JUDGES = (("strict", "1"), ("strict", "2"), ("lenient", "1"))
DAY = 86400
SEED = 20261121

WRONG = """
select o.tenant_id, o.id, o.judge_status, o.reward, o.reward_source, v.*
from routeledger.routing_outcomes o
cross join lateral (
  select
    avg(v.score) filter (where v.usable and v.withdrawn_at is null) as mean,
    count(*) filter (where v.withdrawn_at is null) as standing,
    case
      when bool_or(v.reward_source = 'human') filter (where v.usable and v.withdrawn_at is null) then 'human'
      when bool_or(v.usable and v.withdrawn_at is null) then 'judge'
      when count(*) > 0 and count(*) filter (where v.withdrawn_at is null) = 0 then 'withdrawn'
    end as source
  from routeledger.judge_verdicts v
  where v.tenant_id = o.tenant_id and v.outcome_id = o.id) v
where (abs(o.reward - v.mean) < 1e-12) is distinct from (v.mean is not null or null)
  or o.reward_source is distinct from v.source
  or o.judge_status <> case
    when v.mean is not null then 'labeled'
    when exists (
      select from routeledger.judge_leases l
      where (l.tenant_id, l.outcome_id) = (o.tenant_id, o.id) and l.attempts > 0) then 'claimed'
    when v.standing > 0 then 'cannot_evaluate'
    else 'unlabeled'
  end
"""
NAIVE = """
select i.tenant_id, i.model_slug, (routeledger.uuid_v7_time(o.id) at time zone 'UTC')::date, count(*),
  count(o.reward), round(coalesce(sum(o.reward), 0)::numeric, 9),
  round(coalesce(sum(o.reward ^ 2), 0)::numeric, 9)
from routeledger.routing_outcomes o
join routeledger.inferences i on (i.tenant_id, i.outcome_id) = (o.tenant_id, o.id)
group by 1, 2, 3
order by 1, 2, 3
"""
STORED = """
select tenant_id, model_key, day, n, reward_n, round(reward_sum::numeric, 9), round(reward_sq_sum::numeric, 9)
from routeledger.model_performance_buckets
order by 1, 2, 3
"""


def tell(conn: psycopg.Connection[Any], rng: random.Random, count: int, days: int) -> None:
    """Outcomes of the last so many days."""
    usage = {"status": "succeeded", "input_tokens": 1, "output_tokens": 1}
    rows = [
        {
            "tenant_id": rng.choice(TENANTS),
            "id": uuid7(time.time() - rng.uniform(0, days) * DAY),
            "attempts": [{"model_slug": rng.choice(MODELS), **usage}],
        }
        for _ in range(count)
    ]
    assert {row["status"] for row in call_rows(conn, "record_outcomes", rows)} == {"accepted"}


def patient(conn: psycopg.Connection[Any], one: Call) -> list[Answer]:
    """The rows of a call, which is made again after a serialization failure and after nothing else."""
    while True:
        try:
            return one.rows(conn)
        except psycopg.errors.SerializationFailure:
            continue


def claim(conn: psycopg.Connection[Any], **arguments: Any) -> list[dict[str, Any]]:
    """What a judge is given, as rows to which its verdicts are added."""
    claims = patient(conn, Call("claim_judgements", {**arguments, "payloads": False}))
    judge = {name: arguments[name] for name in ("judge", "judge_version")}
    return [
        {**judge, **{name: one[name] for name in ("tenant_id", "id", "lease_token")}}
        for one in claims
    ]


def test_judges_people_withdrawals_and_roll_ups(db: Database) -> None:
    """All at once, in opposite orders, half of the sessions under repeatable read."""
    turns = scaled(12)
    codes: Counter[str | None] = Counter()
    with db.connect() as conn:
        settings = {"judge_look_every": "0", "judge_look_back": "20 days", "judge_max_attempts": 2}
        conn.execute("select routeledger.configure(%s)", [Jsonb(settings)])
        tell(conn, random.Random(SEED), 240, 10)
        call(conn, "rollup_model_performance", **{"from": "1970-01-01"})

    def judge(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        name, version = rng.choice(JUDGES)
        for _ in range(turns):
            which = {"tenant_id": rng.choice([None, *TENANTS]), "limit": rng.randint(1, 12)}
            held = claim(conn, judge=name, judge_version=version, lease="1 second", **which)
            rng.shuffle(held)
            back = held[: rng.choice([0, 0, 0, 2])]
            for one in back:
                one["error"] = rng.choice([None, "out of order"])
            verdicts = [{**one, "score": rng.choice([-1, 0, 0.1, 1])} for one in held[len(back) :]]
            for routine, rows in (("release_judgements", back), ("record_verdicts", verdicts)):
                answers = patient(conn, Call(routine, {"rows": rows}))
                codes.update(answer["code"] for answer in answers)

    def person(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for turn in range(turns):
            rows = [
                {
                    "tenant_id": tenant,
                    "id": str(outcome),
                    "judge": "ann",
                    "judge_version": str(turn % 3),
                }
                for tenant, outcome in conn.execute(
                    "select tenant_id, id from routeledger.routing_outcomes order by random() limit 6"
                )
            ]
            for row in rows:
                row |= {"score": rng.choice([0, 1]), "reward_source": "human"}
            answers = patient(conn, Call("record_verdicts", {"rows": rows}))
            codes.update(answer["code"] for answer in answers)

    def withdraw(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for _ in range(turns):
            name, version = rng.choice((*JUDGES, ("ann", "0")))
            which = {
                "tenant_id": rng.choice([None, *TENANTS]),
                "judge": name,
                "judge_version": version,
                "model_slug": rng.choice([None, *MODELS]),
                "reason": "a parsing fault",
            }
            made = patient(conn, Call("withdraw_verdicts", which))
            for one in made:
                if rng.random() < 0.7:
                    key = {name: one[name] for name in ("tenant_id", "withdrawal_id")}
                    again = patient(conn, Call("reinstate_verdicts", key))
                    assert again[0]["verdicts"] == one["verdicts"]

    def roll(rng: random.Random, conn: psycopg.Connection[Any]) -> None:
        for _ in range(turns):
            tenant = {"tenant_id": rng.choice([None, None, *TENANTS])}
            patient(conn, Call("rollup_model_performance", tenant))
            tell(conn, rng, 5, 0)

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        if n % 2:
            conn.execute("set default_transaction_isolation = 'repeatable read'")
        conn.execute("set client_min_messages = error")
        (judge, judge, person, withdraw, roll)[n // 2](random.Random(SEED + n), conn)

    together(db, 10, work)
    assert set(codes) <= {None, "RL314", "RL402"}
    with db.connect() as conn:
        assert conn.execute(WRONG).fetchall() == []
        # late rewards, of days that no incremental roll-up looks at by itself, are counted
        call(conn, "rollup_model_performance")
        assert conn.execute(STORED).fetchall() == conn.execute(NAIVE).fetchall()
        assert conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone() == (0,)


def test_new_workers_of_a_new_version(db: Database) -> None:
    """They begin together, over all tenants: nobody waits, and each outcome is given to one of them."""
    with db.connect() as conn:
        conn.execute("""select routeledger.configure('{"judge_look_every": "0"}')""")
        tell(conn, random.Random(SEED), 300, 3)
    given: Counter[tuple[int, str]] = Counter()
    lock = threading.Lock()

    def label(conn: psycopg.Connection[Any], version: int) -> None:
        judge = {"tenant_id": None, "judge": "strict", "judge_version": str(version)}
        while held := claim(conn, **judge, limit=7):
            with lock:
                given.update((version, one["id"]) for one in held)
            answers = call_rows(conn, "record_verdicts", [{**one, "score": 1} for one in held])
            assert {answer["status"] for answer in answers} == {"accepted"}

    def work(n: int, conn: psycopg.Connection[Any]) -> None:
        conn.execute("set deadlock_timeout = '100ms'")
        label(conn, 1 + n % 2)

    together(db, 8, work)
    with db.connect() as conn:
        for version in (1, 2):
            label(conn, version)
        assert conn.execute(WRONG).fetchall() == []
    assert set(given.values()) == {1}
    assert len(given) == 600


def test_an_old_decision_that_ends_late_is_not_passed_over(db: Database) -> None:
    """New outcomes come without end; within a minute of its end the old one is given to a judge."""
    judge = {"tenant_id": "a", "judge": "strict", "judge_version": "1"}
    with db.connect() as conn:
        old = call(conn, "insert_decision", tenant_id="a", candidates=["alpha"], lease="1 hour")
        for second in range(0, 75, 3):
            conn.execute("select routeledger.set_clock(now() + %s * interval '1 second')", [second])
            rows = [
                {
                    "tenant_id": "a",
                    "id": uuid7(time.time() + second),
                    "attempts": [
                        {
                            "model_slug": "beta",
                            "status": "succeeded",
                            "input_tokens": 1,
                            "output_tokens": 1,
                        }
                    ],
                }
                for _ in range(10)
            ]
            call_rows(conn, "record_outcomes", rows)
            if second == 9:
                ended = {"outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}
                call(conn, "complete_decision", tenant_id="a", id=old["id"], **ended)
            claims = Call("claim_judgements", {**judge, "limit": 5}).rows(conn)
            assert len(claims) == 5
            if old["id"] in {one["id"] for one in claims}:
                break
        assert 9 <= second <= 69
