"""Several clients make random calls, and a model in Python foretells every answer.

Calls are new, repeated and altered, in the single form and in the set form; the clock jumps ahead;
the reaper comes; completions come too late. After every step nothing is orphaned, no decision has
two open attempts, the reconciliation agrees, and all rows are as the model has them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg.types.string import TextLoader

from tests.conftest import Database
from tests.property.ledger import (
    NOON,
    SET_FORMS,
    THOROUGH,
    Answer,
    Row,
    many,
    public_routines,
    set_clock,
    single,
    uuid7,
)
from tests.property.model import ANY, MAX_ATTEMPTS, PRICES, PROVIDERS, SETTINGS, Ledger

pytestmark = pytest.mark.property

CLIENTS = 3
TENANT = "acme"

MODELS = ("alpha", "beta", "gamma")
CANDIDATES: list[list[Any]] = [
    ["alpha"],
    ["alpha", "beta"],
    ["gamma", "alpha", "beta"],
    [{"model_slug": "alpha", "provider": "lab"}, {"model_slug": "alpha", "provider": "cloud"}],
    [{"model_slug": "beta", "drop_reason": "cost"}, "alpha"],
    ["alpha", {"model_slug": "beta", "drop_reason": "cost"}, "gamma"],
    [{"model_slug": "alpha", "drop_reason": "cost"}],
    [],
]
FAILURES: list[Row] = [
    {"error_type": "rate_limit", "http_status": 429},
    {"error_type": "rate_limit", "http_status": 429, "retry_after_ms": 2_000},
    {"error_type": "rate_limit", "http_status": 429, "retry_after_ms": 60_000},
    {"error_type": "overloaded", "http_status": 503, "error_message": "x" * 9_000},
    {"error_type": "timeout", "input_tokens": 12, "output_tokens": 0},
    {"error_type": "timeout", "cost_usd": 0.5},
    {"error_type": "bad_request", "http_status": 400, "error_message": "no such tool"},
    {"error_type": "abandoned"},
]
USAGE: list[Row] = [
    {"input_tokens": 1_000, "output_tokens": 50},
    {"input_tokens": 1_000, "output_tokens": 51, "finish_reasons": ["stop"]},
    {"input_tokens": 0, "output_tokens": 0, "http_status": 200},
    {"input_tokens": 7, "output_tokens": 7, "cost_usd": 0.25, "provider_response_id": "r"},
]
ENDINGS: list[Row] = [
    *({"outcome_status": "succeeded", **usage} for usage in USAGE),
    *({"outcome_status": "succeeded", **usage} for usage in USAGE),
    {"outcome_status": "failed", "error_type": "timeout"},
    {"outcome_status": "failed", "error_type": "cancelled", "input_tokens": 9, "output_tokens": 1},
    {"outcome_status": "failed", "error_type": "abandoned"},
    {"outcome_status": "failed", "decision_rule_override": "provider_down"},
    {"outcome_status": "failed", "decision_rule_override": "provider_down", "error_type": "dns"},
]


class World:
    """One database for all examples, emptied after each, and the clients' connections."""

    def __init__(self, database: Database) -> None:
        self.owner = database.connect()
        self.clients = [database.connect("admin") for _ in range(CLIENTS)]
        for conn in self.clients:
            conn.adapters.register_loader("uuid", TextLoader)
        self.types = public_routines(self.owner)
        prices = [
            {
                "model_slug": model,
                "provider": PROVIDERS.get(model),
                "input_usd_per_mtok": prices[0],
                "output_usd_per_mtok": prices[1],
            }
            for model, prices in PRICES.items()
        ]
        assert {a.status for a in many(self.owner, "import_models", prices)} == {"accepted"}
        self.owner.execute("select routeledger.configure(%s)", [Jsonb(SETTINGS)])

    def empty(self) -> None:
        for table in ("inference_payloads", "routing_outcomes", "inferences"):
            self.owner.execute(f"delete from routeledger.{table}")

    def close(self) -> None:
        for conn in (self.owner, *self.clients):
            conn.close()


class Lifecycle(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Ledger()
        self.rng = random.Random(1)
        self.history: list[tuple[str, Row, Answer]] = []
        self.now = NOON
        self._set_clocks()

    def teardown(self) -> None:
        try:
            # whatever is left behind, the reaper closes
            self.now += timedelta(days=3)
            self._set_clocks()
            self._reap(0, 10_000)
            self.the_books_are_right()
            assert self.model.totals()["in_flight"] == 0
        finally:
            self.world.empty()

    # -- calls ------------------------------------------------------------------------------

    def _set_clocks(self) -> None:
        for conn in self.world.clients:
            set_clock(conn, self.now)

    def _new_id(self) -> str:
        return str(uuid7(self.now, self.rng))

    def _call(self, data: st.DataObject, routine: str, row: Row) -> Answer:
        """Makes a call and holds the answer against the model's."""
        client = self.world.clients[data.draw(st.integers(0, CLIENTS - 1), label="client")]
        in_set = data.draw(st.booleans(), label="in the set form")
        row = {"tenant_id": TENANT, **row}
        expected = self.model.answer(routine, row, self.now)
        if in_set:
            answer = many(client, SET_FORMS[routine], [row])[0]
        else:
            answer = single(client, routine, self.world.types[routine], row)
        said = (answer.status, answer.code, dict(answer.values))
        if routine == "extend_lease" and not in_set and expected.status == "replayed":
            expected.status = "accepted"  # the single form has no `created`
        assert (answer.status, answer.code) == (expected.status, expected.code), (row, said)
        if not answer.refused:
            assert expected.matches(answer.values), (row, expected, said)
            self.model.learn(routine, row, answer.values)
        self.history.append((routine, row, answer))
        return answer

    def _reap(self, client: int, limit: int) -> None:
        due = self.model.expired(self.now)
        while limit < len(due) and due[limit - 1][0] == due[limit][0]:
            limit += 1  # which of equals comes first is nobody's promise
        with self.world.clients[client].cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute("select * from routeledger.reap(%s)", [limit]).fetchall()
        assert len(rows) == min(limit, len(due))
        reaped = {row["id"] for row in rows}
        ends = [end for end, key in due if key in reaped]
        assert ends == [end for end, _ in due[: len(rows)]], "not the oldest leases first"
        for row in rows:
            linked = self.model.reap(row["id"])
            assert (row["tenant_id"], row["inference_id"], row["attempt_no"]) == (
                TENANT,
                linked.id,
                linked.number,
            )

    def _earlier(self, data: st.DataObject) -> tuple[str, Row, Answer]:
        # the latest is call 0, the simplest choice
        back = data.draw(st.integers(0, len(self.history) - 1), label="calls ago")
        return self.history[-1 - back]

    # -- rows -------------------------------------------------------------------------------

    def _decision(self, data: st.DataObject) -> str:
        """A known decision, in flight by preference; now and then one that nobody knows."""
        known = list(self.model.decisions)
        live = [key for key, d in self.model.decisions.items() if d.outcome is None]
        kind = data.draw(st.sampled_from(["live"] * 6 + ["known"] * 3 + ["unknown"]))
        if kind == "live" and live:
            return data.draw(st.sampled_from(live))
        if kind != "unknown" and known:
            return data.draw(st.sampled_from(known))
        return self._new_id()

    def _attempt(self, data: st.DataObject, decision: str) -> str:
        """One of its attempts, the open one by preference; now and then another's."""
        found = self.model.decisions.get(decision)
        attempts = [a.id for a in found.attempts] if found else []
        if found and found.open and data.draw(st.integers(0, 3)):
            return str(found.open.id)
        return str(data.draw(st.sampled_from([*attempts, self._new_id()])))

    def _draw(self, data: st.DataObject, routine: str) -> Row:
        row: Row = getattr(self, f"_{routine}")(data)
        return {name: value for name, value in row.items() if value is not None}

    def _insert_decision(self, data: st.DataObject) -> Row:
        used = list(self.model.decisions)
        fresh = not used or data.draw(st.integers(0, 5))
        return {
            "id": self._new_id() if fresh else data.draw(st.sampled_from(used)),
            "candidates": data.draw(st.sampled_from(CANDIDATES)),
            "chosen_model_slug": data.draw(st.sampled_from([None, None, None, "alpha", "delta"])),
            "task_type": data.draw(st.sampled_from([None, "chat"])),
            "lease": data.draw(st.sampled_from([None, None, "30 seconds", "600 seconds"])),
            "attempt_id": self._new_id() if data.draw(st.booleans()) else None,
        }

    def _start_attempt(self, data: st.DataObject) -> Row:
        decision = self._decision(data)
        known = self._attempt(data, decision)
        return {
            "id": decision,
            "model_slug": data.draw(st.sampled_from(MODELS)),
            "attempt_id": data.draw(st.sampled_from([None, self._new_id(), known])),
            "provider": data.draw(st.sampled_from([None, None, "cloud"])),
        }

    def _fail_attempt(self, data: st.DataObject) -> Row:
        decision = self._decision(data)
        known = self._attempt(data, decision)
        return {
            "id": decision,
            "attempt_id": self._attempt(data, decision),
            **data.draw(st.sampled_from(FAILURES)),
            "next": data.draw(st.sampled_from([None, "policy", "policy", "hold", "give_up"])),
            "next_attempt_id": data.draw(
                st.sampled_from([None, None, self._new_id(), self._new_id(), known])
            ),
        }

    def _complete_decision(self, data: st.DataObject) -> Row:
        decision = self._decision(data)
        named = data.draw(st.booleans())
        return {
            "id": decision,
            "attempt_id": self._attempt(data, decision) if named else None,
            **data.draw(st.sampled_from(ENDINGS)),
        }

    def _extend_lease(self, data: st.DataObject) -> Row:
        return {
            "id": self._decision(data),
            "lease": data.draw(st.sampled_from([None, "1 second", "45 seconds", "3600 seconds"])),
        }

    def _record_outcome(self, data: st.DataObject) -> Row:
        used = list(self.model.decisions)
        fresh = not used or data.draw(st.integers(0, 5))
        failures = data.draw(st.lists(st.sampled_from(FAILURES), max_size=2))
        attempts = [{"status": "failed", **failure} for failure in failures]
        if data.draw(st.booleans()):
            attempts.append({"status": "succeeded", **data.draw(st.sampled_from(USAGE))})
        told = [
            {"id": self._new_id(), "model_slug": data.draw(st.sampled_from(MODELS)), **one}
            for one in attempts
        ]
        return {
            "id": self._new_id() if fresh else data.draw(st.sampled_from(used)),
            "candidates": data.draw(st.sampled_from(CANDIDATES)),
            "agent_id": "storyteller",
            "attempts": told,
            "decision_rule_override": data.draw(st.sampled_from([None, None, "provider_down"])),
        }

    def _record_payload(self, data: st.DataObject) -> Row:
        decision = self._decision(data)
        return {
            "id": decision,
            "attempt_id": self._attempt(data, decision),
            "request": data.draw(st.sampled_from([None, {"q": 1}, {"q": 2}])),
            "response": data.draw(st.sampled_from([None, {"a": 1}, "a"])),
        }

    # -- steps ------------------------------------------------------------------------------

    @initialize(data=st.data(), count=st.integers(1, 3))
    def begin(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            row = {"id": self._new_id(), "candidates": data.draw(st.sampled_from(CANDIDATES[:6]))}
            self._call(data, "insert_decision", row)

    @rule(data=st.data())
    def insert(self, data: st.DataObject) -> None:
        self._call(data, "insert_decision", self._draw(data, "insert_decision"))

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self._call(data, "fail_attempt", self._draw(data, "fail_attempt"))

    @precondition(lambda self: any(d.open for d in self.model.decisions.values()))
    @rule(data=st.data(), times=st.integers(1, MAX_ATTEMPTS + 1))
    def fail_again_and_again(self, data: st.DataObject, times: int) -> None:
        """The providers are down; the client does as it is told."""
        live = [key for key, d in self.model.decisions.items() if d.open]
        key = data.draw(st.sampled_from(live))
        for _ in range(times):
            attempt = self.model.decisions[key].open
            if attempt is None:
                break
            failed = {"id": key, "attempt_id": attempt.id, **data.draw(st.sampled_from(FAILURES))}
            self._call(data, "fail_attempt", failed)

    @precondition(lambda self: any(d.open for d in self.model.decisions.values()))
    @rule(data=st.data())
    def pick_by_hand(self, data: st.DataObject) -> None:
        """Attempts fail, and each time the client chooses the next model itself."""
        live = [key for key, d in self.model.decisions.items() if d.open]
        key = data.draw(st.sampled_from(live))
        for _ in range(data.draw(st.integers(1, MAX_ATTEMPTS), label="times")):
            attempt = self.model.decisions[key].open
            if attempt is None:
                break
            failed = {"id": key, "attempt_id": attempt.id, **data.draw(st.sampled_from(FAILURES))}
            self._call(data, "fail_attempt", {**failed, "next": "hold"})
            self._call(data, "start_attempt", {**self._draw(data, "start_attempt"), "id": key})

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._call(data, "start_attempt", self._draw(data, "start_attempt"))

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self._call(data, "complete_decision", self._draw(data, "complete_decision"))

    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        self._call(data, "extend_lease", self._draw(data, "extend_lease"))

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        self._call(data, "record_outcome", self._draw(data, "record_outcome"))

    @rule(data=st.data())
    def keep_payload(self, data: st.DataObject) -> None:
        self._call(data, "record_payload", self._draw(data, "record_payload"))

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """An earlier call once more, from any client: a replay, whatever has happened since."""
        routine, row, before = self._earlier(data)
        after = self._call(data, routine, row)
        names_its_attempt = routine != "start_attempt" or "attempt_id" in row
        if not before.refused and names_its_attempt and routine != "extend_lease":
            assert (after.status, after.values) == ("replayed", before.values)

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def alter(self, data: st.DataObject) -> None:
        """An earlier call with one thing said differently."""
        routine, row, _ = self._earlier(data)
        other = self._draw(data, routine)
        names = sorted((set(row) | set(other)) - {"tenant_id", "id"})
        name = data.draw(st.sampled_from(["everything", *names]), label="altered")
        required = {"start_attempt": {"model_slug"}, "fail_attempt": {"attempt_id", "error_type"}}
        required["record_payload"] = {"attempt_id"}
        if name == "everything" or routine == "complete_decision":
            # what an ending says hangs together
            row = {**other, "id": row["id"]}
        elif name in other:
            row = {**row, name: other[name]}
        elif name not in required.get(routine, ()):
            row = {key: value for key, value in row.items() if key != name}
        self._call(data, routine, row)

    @rule(seconds=st.sampled_from([1, 29, 31, 61, 700, 4_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self._set_clocks()

    @rule(client=st.integers(0, CLIENTS - 1), limit=st.sampled_from([1, 2, 1_000]))
    def reap(self, client: int, limit: int) -> None:
        self._reap(client, limit)

    @precondition(lambda self: any(d.outcome is None for d in self.model.decisions.values()))
    @rule(data=st.data())
    def lose_the_lease(self, data: st.DataObject) -> None:
        """A client sleeps too long, the reaper comes, and the client speaks up after all."""
        ends: list[datetime] = [
            d.lease_until for d in self.model.decisions.values() if d.lease_until
        ]
        self.now = max([self.now, data.draw(st.sampled_from(ends))])
        self._set_clocks()
        self._reap(0, data.draw(st.sampled_from([1_000, 1]), label="limit"))
        lost = [key for key, d in self.model.decisions.items() if d.outcome == "abandoned"]
        if lost:
            row = self._draw(data, "complete_decision")
            row.pop("attempt_id", None)
            self._call(data, "complete_decision", {**row, "id": data.draw(st.sampled_from(lost))})

    # -- what always holds --------------------------------------------------------------------

    def _rows(self, query: str) -> list[Row]:
        with self.world.clients[-1].cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query).fetchall()

    @invariant()
    def the_books_are_right(self) -> None:
        assert self._rows("select * from routeledger.orphans") == []
        hours = self._rows("select * from routeledger.reconciliation")
        assert all(hour["agrees"] for hour in hours), hours
        costs = [hour["cost_usd"] for hour in hours if hour["cost_usd"] is not None]
        totals = self.model.totals()
        assert {name: sum(h[name] for h in hours) for name in totals if name != "cost_usd"} == {
            name: total for name, total in totals.items() if name != "cost_usd"
        }
        assert (sum(costs) if costs else None) == totals["cost_usd"]

    @invariant()
    def the_attempts_are_the_model_s(self) -> None:
        rows = self._rows("select * from routeledger.attempts order by outcome_id, attempt_no")
        assert [
            (
                row["outcome_id"],
                row["attempt_no"],
                row["id"],
                row["candidate_no"],
                row["model_slug"],
                row["provider"],
                row["status"],
                row["error_type"],
                row["next_action"],
                row["next_delay_ms"] or 0,
                row["input_tokens"],
                row["cost_usd"],
                row["cost_source"],
            )
            for row in rows
        ] == [
            (
                key,
                attempt.number,
                attempt.id,
                attempt.candidate,
                attempt.model,
                attempt.provider,
                attempt.status,
                attempt.said.get("error_type"),
                attempt.action,
                attempt.delay_ms,
                attempt.said.get("input_tokens"),
                attempt.cost,
                attempt.cost_source,
            )
            for key, decision in sorted(self.model.decisions.items())
            for attempt in decision.attempts
        ]

    @invariant()
    def the_decisions_are_the_model_s(self) -> None:
        rows = self._rows("select * from routeledger.decisions order by id")
        assert [
            (
                row["id"],
                row["outcome_status"],
                row["decision_rule"],
                row["decision_rule_override"],
                row["chosen_model_slug"],
                row["inference_id"],
                row["attempts"],
                row["late_completion"],
            )
            for row in rows
        ] == [
            (
                key,
                decision.outcome,
                decision.rule,
                decision.override,
                decision.chosen,
                decision.linked and decision.linked.id,
                len(decision.attempts),
                decision.late,
            )
            for key, decision in sorted(self.model.decisions.items())
        ]

    @invariant()
    def what_is_in_flight_is_the_model_s(self) -> None:
        rows = self._rows("select * from routeledger.in_flight order by id")
        assert [(r["id"], r["attempt_id"], r["lease_expires_at"], r["expired"]) for r in rows] == [
            (
                key,
                decision.open and decision.open.id,
                decision.lease_until,
                decision.lease_until <= self.now,
            )
            for key, decision in sorted(self.model.decisions.items())
            if decision.lease_until is not None
        ]


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    world = World(db)
    yield world
    world.close()


def test_every_answer_is_foretold(world: World) -> None:
    run_state_machine_as_test(
        lambda: Lifecycle(world),  # type: ignore[arg-type]
        settings=settings(
            max_examples=1_000 if THOROUGH else 50,
            stateful_step_count=60 if THOROUGH else 30,
        ),
    )


def test_the_model_leaves_nothing_open() -> None:
    """The model itself: every exit of a decision is one of its outcomes."""
    ledger = Ledger()
    row = {"id": "d", "attempt_id": "a", "candidates": ["alpha"]}
    assert ledger.insert_decision(row, NOON).values["outcome_status"] is None
    assert ledger.insert_decision(row, NOON).status == "replayed"
    late = NOON + timedelta(hours=1)
    assert [key for _, key in ledger.expired(late)] == ["d"]
    assert ledger.reap("d").id == "a"
    done = {"id": "d", "outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}
    assert ledger.complete_decision(done, late).values["late"] is True
    assert ledger.complete_decision(done, late).status == "replayed"
    assert ledger.insert_decision({**row, "attempt_id": None}, late).values["attempt_id"] == "a"
    assert ANY not in ledger.totals().values()
