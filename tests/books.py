"""Calls of the SQL routines without the driver, and the audit that concurrency and fault tests end with.

A call is written down as `Call(routine, arguments)`; its answer is the row as JSON, so that calls
and answers can be kept in a file, sent over a pipe, repeated and compared.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import psycopg
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]
Answer = dict[str, Any]

LATER = "2 days"  # past every lease

# calls whose repetition says created = false; an extended lease has nothing to say it with
REPLAYED = frozenset(
    {
        "insert_decision",
        "start_attempt",
        "fail_attempt",
        "complete_decision",
        "record_outcome",
        "record_payload",
    }
)


def uuid7(at: float | None = None) -> str:
    """A UUID version 7, dated now or `at` seconds after the epoch."""
    millis = int((time.time() if at is None else at) * 1000)
    bits = secrets.randbits(74)
    number = millis << 80 | 7 << 76 | (bits >> 62) << 64 | 2 << 62 | (bits & (1 << 62) - 1)
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def scaled(runs: int) -> int:
    """`runs` times ROUTELEDGER_FAULT_RUNS (0.1 for a glance, 10 for a night)."""
    return max(1, round(runs * float(os.environ.get("ROUTELEDGER_FAULT_RUNS", "1"))))


# -- calls ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a public routine; the arguments' names are without the p_."""

    routine: str
    arguments: dict[str, Any]

    @property
    def query(self) -> str:
        named = ", ".join(f"p_{name} => %({name})s" for name in self.arguments)
        return f"select to_jsonb(r) from routeledger.{self.routine}({named}) r"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            name: Jsonb(value) if isinstance(value, (dict, list)) else value
            for name, value in self.arguments.items()
        }

    def text(self, conn: Connection) -> bytes:
        """The statement with its arguments written into it."""
        cursor = psycopg.ClientCursor(conn)
        return cursor.mogrify(cast("Any", self.query), self.parameters).encode()

    def run(self, conn: Connection) -> Answer:
        """The one row that a single form answers with."""
        rows = self.rows(conn)
        assert len(rows) == 1, rows
        return rows[0]

    def rows(self, conn: Connection) -> list[Answer]:
        """All rows that a set form answers with."""
        return [row[0] for row in conn.execute(cast("Any", self.query), self.parameters)]


def call(conn: Connection, routine: str, **arguments: Any) -> Answer:
    return Call(routine, arguments).run(conn)


def call_rows(conn: Connection, routine: str, rows: list[dict[str, Any]]) -> list[Answer]:
    return Call(routine, {"rows": rows}).rows(conn)


@dataclass
class Unit:
    """What becomes durable together: one call, or the calls of one transaction."""

    calls: list[Call]
    answers: list[Answer] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        return len(self.answers) == len(self.calls)

    def run(self, conn: Connection) -> None:
        """Runs it on an autocommit connection; the answers are kept once they are durable."""
        if len(self.calls) == 1:
            self.answers = [self.calls[0].run(conn)]
            return
        with conn.transaction():
            answers = [one.run(conn) for one in self.calls]
        self.answers = answers

    def to_json(self) -> str:
        return json.dumps([[one.routine, one.arguments] for one in self.calls])

    @classmethod
    def from_json(cls, text: str) -> Unit:
        return cls([Call(routine, arguments) for routine, arguments in json.loads(text)])


# -- the work that is interrupted ---------------------------------------------------------------


def story(tenant: str, rng: random.Random) -> list[Unit]:
    """One decision through every transition, then one in a single transaction, then one told afterwards.

    All ids are the caller's, so that each unit can be repeated without knowing what became of it.
    """
    now, first, second, third = (uuid7() for _ in range(4))
    key = {"tenant_id": tenant, "id": now}
    tokens = {"input_tokens": rng.randrange(1, 5000), "output_tokens": rng.randrange(1, 900)}
    whole, only, after, told = (uuid7() for _ in range(4))
    # models of its own, so that the failures of many stories cool down none
    models = [f"{slug} {now}" for slug in ("alpha", "beta", "gamma")]
    candidates = [{"model_slug": slug, "provider": "p"} for slug in models]

    def one(routine: str, **arguments: Any) -> Unit:
        return Unit([Call(routine, {**key, **arguments})])

    return [
        one("insert_decision", attempt_id=first, candidates=candidates, lease="30 seconds"),
        one("extend_lease", lease="10 minutes"),
        one(
            "fail_attempt",
            attempt_id=first,
            next_attempt_id=second,
            error_type="rate_limit",
            http_status=rng.choice([429, 404]),
        ),
        one("fail_attempt", attempt_id=second, error_type="timeout", next="hold"),
        one("start_attempt", attempt_id=third, model_slug=models[2]),
        one("record_payload", attempt_id=third, request={"n": 1}, response={"n": 2}),
        one("complete_decision", attempt_id=third, outcome_status="succeeded", **tokens),
        Unit(
            [
                Call(
                    "insert_decision",
                    {"tenant_id": tenant, "id": whole, "attempt_id": only, "candidates": ["alpha"]},
                ),
                Call(
                    "complete_decision",
                    {
                        "tenant_id": tenant,
                        "id": whole,
                        "attempt_id": only,
                        "outcome_status": "failed",
                        "error_type": "overloaded",
                    },
                ),
            ]
        ),
        Unit(
            [
                Call(
                    "record_outcome",
                    {
                        "tenant_id": tenant,
                        "id": after,
                        "candidates": ["alpha"],
                        "attempts": [
                            {"id": told, "model_slug": "alpha", "status": "succeeded", **tokens}
                        ],
                    },
                )
            ]
        ),
    ]


# -- what must hold afterwards ------------------------------------------------------------------


def made(units: Iterable[Unit]) -> tuple[set[str], set[str]]:
    """The ids of decisions and of attempts that the callers of these units made."""
    decisions: set[str] = set()
    attempts: set[str] = set()
    for unit in units:
        for one in unit.calls:
            decisions.add(one.arguments["id"])
            for name in ("attempt_id", "next_attempt_id"):
                if name in one.arguments:
                    attempts.add(one.arguments[name])
            attempts.update(a["id"] for a in one.arguments.get("attempts", ()))
    return decisions, attempts


def is_there(conn: Connection, one: Call, answer: Answer) -> bool:
    """Looks an acknowledged call up in the tables."""
    a = {**one.arguments, **{k: v for k, v in answer.items() if v is not None}}
    query = {
        "insert_decision": """
            select from routeledger.routing_outcomes o
            join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id
            where o.tenant_id = %(tenant_id)s and o.id = %(id)s and i.id = %(attempt_id)s
              and i.attempt_no = 1""",
        "extend_lease": """
            select from routeledger.routing_outcomes o
            where o.tenant_id = %(tenant_id)s and o.id = %(id)s
              and (o.outcome_status is not null or o.lease_expires_at >= %(lease_expires_at)s)""",
        "fail_attempt": """
            select from routeledger.inferences i
            where i.tenant_id = %(tenant_id)s and i.outcome_id = %(id)s and i.id = %(attempt_id)s
              and i.status = 'failed' and i.error_type = %(error_type)s
              and (i.next_action = 'hold' or exists (
                select from routeledger.inferences n
                where n.tenant_id = i.tenant_id and n.outcome_id = i.outcome_id
                  and n.id = %(next_attempt_id)s and n.attempt_no = i.attempt_no + 1))""",
        "start_attempt": """
            select from routeledger.inferences i
            where i.tenant_id = %(tenant_id)s and i.outcome_id = %(id)s and i.id = %(attempt_id)s
              and i.attempt_no = %(attempt_no)s""",
        "record_payload": """
            select from routeledger.inference_payloads p
            where p.tenant_id = %(tenant_id)s and p.outcome_id = %(id)s
              and p.inference_id = %(attempt_id)s and p.request is not null""",
        "complete_decision": """
            select from routeledger.routing_outcomes o
            join routeledger.inferences i on i.tenant_id = o.tenant_id and i.outcome_id = o.id
            where o.tenant_id = %(tenant_id)s and o.id = %(id)s
              and o.outcome_status = %(outcome_status)s and o.inference_id = %(inference_id)s
              and i.id = o.inference_id and i.status = %(outcome_status)s
              and i.output_tokens is not distinct from %(output_tokens)s""",
        "record_outcome": """
            select from routeledger.routing_outcomes o
            where o.tenant_id = %(tenant_id)s and o.id = %(id)s
              and o.outcome_status = %(outcome_status)s and o.inference_id = %(inference_id)s""",
    }[one.routine]
    values = {"next_attempt_id": None, "output_tokens": None, **a}
    values = {k: v for k, v in values.items() if not isinstance(v, (dict, list))}
    return conn.execute(cast("Any", query), values).rowcount == 1


def check_acknowledged(conn: Connection, units: Iterable[Unit]) -> None:
    """What was acknowledged is there, and saying it again changes nothing and answers the same."""
    for unit in units:
        if not unit.acknowledged:
            continue
        for one, answer in zip(unit.calls, unit.answers, strict=True):
            assert is_there(conn, one, answer), (one, answer)
            if one.routine in REPLAYED:
                assert one.run(conn) == {**answer, "created": False}, (one, answer)


def check_nothing_else(conn: Connection, tenant: str, units: Iterable[Unit]) -> None:
    """The tables hold nothing of the tenant that no caller made, and nothing of it twice."""
    decisions, attempts = made(units)
    stored = [
        str(row[0])
        for row in conn.execute(
            "select id from routeledger.routing_outcomes where tenant_id = %s", [tenant]
        )
    ]
    assert len(stored) == len(set(stored))
    assert set(stored) <= decisions
    tried = [
        str(row[0])
        for row in conn.execute(
            "select id from routeledger.inferences where tenant_id = %s", [tenant]
        )
    ]
    assert len(tried) == len(set(tried))
    assert set(tried) <= attempts


def check_sound(conn: Connection, tenant: str | None = None) -> None:
    """No orphan, sums that agree, no placeholder of a completion; of one tenant or of all."""
    wrong = conn.execute(
        "select * from routeledger.orphans where tenant_id = coalesce(%s, tenant_id)", [tenant]
    ).fetchall()
    assert wrong == []
    wrong = conn.execute(
        """select * from routeledger.reconciliation
           where not agrees and tenant_id = coalesce(%s, tenant_id)""",
        [tenant],
    ).fetchall()
    assert wrong == []
    wrong = conn.execute(
        """select tenant_id, id from routeledger.routing_outcomes where created_at = '-infinity'
           union all
           select tenant_id, id from routeledger.inferences where created_at = '-infinity'"""
    ).fetchall()
    assert wrong == []


def reap_all(conn: Connection, tenant: str | None = None) -> list[str]:
    """Lets every lease run out (for this session only) and reaps; the ids that were closed."""
    conn.execute("select routeledger.set_clock(clock_timestamp() + %s::interval)", [LATER])
    closed: list[str] = []
    try:
        while True:
            rows = Call("reap", {"limit": 1000, "tenant_id": tenant}).rows(conn)
            closed += [row["id"] for row in rows]
            if not rows:
                break
    finally:
        conn.execute("select routeledger.set_clock(null)")
    left = conn.execute(
        "select * from routeledger.in_flight where tenant_id = coalesce(%s, tenant_id)", [tenant]
    ).fetchall()
    assert left == []
    return closed
