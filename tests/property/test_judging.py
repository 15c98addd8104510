"""Judges of several versions claim, die, answer late, twice or not at all; a model foretells every answer.

Calls are made in the single form and in the set form, by several sessions; the clock jumps past the ends
of leases; people speak as well; verdicts are withdrawn and reinstated. After every step leases, verdicts
and labels are as the model has them, and at the end every judge version has said one thing of each
outcome that can be judged.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import permutations, product
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
from tests.property.judging import (
    EARLIEST,
    SETTINGS,
    Expected,
    Judge,
    Judging,
    Key,
    Lease,
    Outcome,
    Withdrawal,
    said_in,
)
from tests.property.ledger import (
    NOON,
    THOROUGH,
    Answer,
    Row,
    many,
    public_routines,
    rows_of,
    set_clock,
    single,
    uuid7,
)

pytestmark = pytest.mark.property

CLIENTS = 3
TENANTS = ("acme", "umbrella")
MODELS = ("alpha", "beta")
JUDGES: tuple[Judge, ...] = (("strict", "1"), ("strict", "2"), ("lenient", "1"))
PEOPLE: tuple[Judge, ...] = (("ann", "1"), ("strict", "2"))
SCORES = (0.0, 0.1, 0.25, 1.0, 1.0, -1.0)
TABLES = (
    "judge_verdicts",
    "judge_leases",
    "judge_searches",
    "judge_fronts",
    "verdict_withdrawals_log",
    "rollup_days",
    "routing_outcomes",
    "inferences",
)


class World:
    """One database for all examples, emptied after each, and the sessions of its judges."""

    def __init__(self, database: Database) -> None:
        self.owner = database.connect()
        self.clients = [database.connect("admin") for _ in range(CLIENTS)]
        for conn in (self.owner, *self.clients):
            conn.adapters.register_loader("uuid", TextLoader)
        self.types = public_routines(self.owner)
        self.owner.execute("select routeledger.configure(%s)", [Jsonb(SETTINGS)])

    def rows(self, query: str) -> list[Row]:
        with self.owner.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query).fetchall()

    def empty(self) -> None:
        for table in TABLES:
            self.owner.execute(f"delete from routeledger.{table}")

    def close(self) -> None:
        for conn in (self.owner, *self.clients):
            conn.close()


class JudgesAtWork(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Judging()
        self.rng = random.Random(1)
        self.now = NOON
        # decisions in flight, and the claims that anybody ever held
        self.open: list[tuple[str, str]] = []
        self.claims: list[tuple[Key, str]] = []
        self.said: list[tuple[Key, Row]] = []
        self._set_clocks()

    def teardown(self) -> None:
        try:
            self._work_off()
        finally:
            self.world.empty()

    # -- calls ------------------------------------------------------------------------------

    def _set_clocks(self) -> None:
        for conn in self.world.clients:
            set_clock(conn, self.now)

    def _client(self, data: st.DataObject) -> Any:
        return self.world.clients[data.draw(st.integers(0, CLIENTS - 1), label="client")]

    def _call(
        self, data: st.DataObject, routine: str, key: Key, row: Row, expected: Expected
    ) -> Answer:
        """Makes a call in one form or the other and holds the answer against the model's."""
        client = self._client(data)
        in_set = data.draw(st.booleans(), label="in the set form")
        names = dict(zip(("tenant_id", "id", "judge", "judge_version"), key, strict=True))
        row = {**names, **row}
        if in_set:
            answer = many(client, f"{routine}s", [row])[0]
        else:
            answer = single(client, routine, self.world.types[routine], row)
        status = expected.status
        if not in_set and routine == "renew_judgement" and status == "replayed":
            status = "accepted"  # the single form has no `created`
        assert (answer.status, answer.code) == (status, expected.code), (row, expected, answer)
        if not answer.refused:
            assert answer.values == expected.values, (row, expected, answer)
        return answer

    def _claim(
        self,
        client: Any,
        judge: Judge,
        tenant: str | None,
        limit: int,
        lease: str | None = None,
        since: date | None = None,
    ) -> list[Key]:
        """Claims, and learns the tokens. In which order all tenants are served is the ledger's choice."""
        row: Row = {"tenant_id": tenant, "judge": judge[0], "judge_version": judge[1]}
        row |= {"limit": limit, "lease": lease, "from": since}
        client.execute("select setseed(0.5)")  # the order of the tenants
        found = rows_of(client, "claim_judgements", self.world.types["claim_judgements"], row)
        given: list[Key] = [(r["tenant_id"], r["id"], *judge) for r in found]
        stored = self._stored_leases()
        span = timedelta(seconds=int(lease.split()[0])) if lease else None
        for tenants in self._ways(judge, tenant, since):
            model = copy.deepcopy(self.model)
            if model.claim(tenants, judge, limit, span, since, self.now) != given:
                continue
            for key, one in zip(given, found, strict=True):
                held = model.leases[key]
                held.token = one["lease_token"]
                assert one["attempt_no"] == held.attempts
                assert one["lease_expires_at"] == held.due_at
                assert one["model_slug"] == model.outcomes[key[:2]].model
            if model.leases == stored:
                self.model = model
                break
        else:
            pytest.fail(f"{row} at {self.now} gave {given}")
        tokens = [one["lease_token"] for one in found]
        assert len({*tokens, *(token for _, token in self.claims)}) == len(tokens) + len(
            self.claims
        )
        self.claims += zip(given, tokens, strict=True)
        return given

    def _ways(
        self, judge: Judge, tenant: str | None, since: date | None
    ) -> Iterator[tuple[tuple[str, str], ...]]:
        """In which order the tenants may be served, and where it may begin with each."""
        names = (tenant,) if tenant else TENANTS
        starts = {
            name: ["", *(key[1] for key in found)]
            for name in names
            for found in [self.model.unlabeled(name, judge, since or EARLIEST, self.now)]
        }
        for order in permutations(names):
            for places in product(*(starts[name] for name in order)):
                yield tuple(zip(order, places, strict=True))

    def _verdict(self, data: st.DataObject) -> Row:
        score = data.draw(st.sampled_from([*SCORES, None]))
        row: Row = {"label": "cannot_say"} if score is None else {"score": score}
        if data.draw(st.booleans()):
            row |= {"rationale": data.draw(st.sampled_from(["so it is", "so it seems"]))}
        return row

    def _record(self, data: st.DataObject, key: Key, row: Row) -> Answer:
        self.said.append((key, row))
        return self._call(data, "record_verdict", key, row, self.model.record(key, row, self.now))

    # -- steps ------------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        for _ in range(4):
            self.arrive(data, "succeeded")

    @rule(data=st.data(), how=st.sampled_from(["succeeded", "succeeded", "failed", "open"]))
    def arrive(self, data: st.DataObject, how: str) -> None:
        """An outcome, decided up to three days ago."""
        decided = self.now - timedelta(hours=data.draw(st.integers(0, 72), label="hours ago"))
        key = (data.draw(st.sampled_from(TENANTS)), str(uuid7(decided, self.rng)))
        names = dict(zip(("tenant_id", "id"), key, strict=True))
        model = data.draw(st.sampled_from(MODELS))
        conn = self.world.clients[0]
        if how == "open":
            row = {**names, "candidates": [model]}
            assert many(conn, "insert_decisions", [row])[0].status == "accepted"
            self.open.append(key)
        else:
            ended: Row = {"model_slug": model, "status": how}
            ended |= (
                {"input_tokens": 1, "output_tokens": 1}
                if how == "succeeded"
                else {"error_type": "timeout"}
            )
            row = {**names, "attempts": [ended]}
            assert many(conn, "record_outcomes", [row])[0].status == "accepted"
        self.model.outcomes[key] = Outcome(decided, model, how == "succeeded")

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """A decision that was in flight ends at last."""
        key = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        row = dict(zip(("tenant_id", "id"), key, strict=True))
        row |= {"outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}
        answer = many(self.world.clients[0], "complete_decisions", [row])[0]
        assert answer.status == "accepted"
        self.model.outcomes[key].judgeable = True

    @rule(data=st.data(), judge=st.sampled_from(JUDGES), tenant=st.sampled_from([None, *TENANTS]))
    def claim(self, data: st.DataObject, judge: Judge, tenant: str | None) -> None:
        self._claim(
            self._client(data),
            judge,
            tenant,
            data.draw(st.sampled_from([1, 2, 3, 1000]), label="limit"),
            data.draw(st.sampled_from([None, None, "5 seconds", "600 seconds"]), label="lease"),
            data.draw(st.sampled_from([None, None, None, 0, 1, 2]).map(self._day), label="from"),
        )

    def _day(self, ago: int | None) -> date | None:
        return None if ago is None else (self.now - timedelta(days=ago)).date()

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A holder answers: in time, late, or after somebody else."""
        key, token = self._held(data)
        self._record(data, key, {**self._verdict(data), "lease_token": token})

    def _held(self, data: st.DataObject) -> tuple[Key, str]:
        """A claim, of those that are out by preference."""
        out = [(key, token) for key, token in self.claims if self._is_current(key, token)]
        return data.draw(
            st.sampled_from(out if out and data.draw(st.integers(0, 3)) else self.claims)
        )

    def _is_current(self, key: Key, token: str) -> bool:
        lease = self.model.leases.get(key)
        return lease is not None and lease.token == token

    @precondition(lambda self: self.model.outcomes)
    @rule(data=st.data())
    def speak_unasked(self, data: st.DataObject) -> None:
        """A person, or a judge that brings what it has, without a claim."""
        outcome = data.draw(st.sampled_from(sorted(self.model.outcomes)))
        judge = data.draw(st.sampled_from([*JUDGES, *PEOPLE]))
        row = self._verdict(data)
        if judge in PEOPLE:
            row |= {"reward_source": "human"}
        if not data.draw(st.integers(0, 9)):
            outcome = (outcome[0], str(uuid7(self.now, self.rng)))
        self._record(data, (*outcome, *judge), row)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """An earlier verdict once more, word for word, or with one thing changed."""
        key, row = data.draw(st.sampled_from(self.said))
        alterations: list[Row] = [{}, {}, {"judge_model": "another"}, {"score": 0.5}]
        altered = data.draw(st.sampled_from(alterations))
        self._record(data, key, {**row, **altered})

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        key, token = self._held(data)
        row = {"lease_token": token}
        lease = data.draw(st.sampled_from([None, "2 seconds", "300 seconds"]))
        row |= {} if lease is None else {"lease": lease}
        self._call(data, "renew_judgement", key, row, self.model.renew(key, row, self.now))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), error=st.sampled_from([None, "out of order"]))
    def release(self, data: st.DataObject, error: str | None) -> None:
        key, token = self._held(data)
        row = {"lease_token": token}
        delay = data.draw(st.sampled_from([None, None, "0 seconds", "50 seconds"]))
        row |= {} if error is None else {"error": error}
        row |= {} if delay is None else {"delay": delay}
        self._call(data, "release_judgement", key, row, self.model.release(key, row, self.now))

    @rule(seconds=st.sampled_from([1, 5, 31, 41, 61, 700, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self._set_clocks()

    @precondition(lambda self: any(lease.token for lease in self.model.leases.values()))
    @rule(data=st.data(), tenant=st.sampled_from([None, *TENANTS]))
    def crash(self, data: st.DataObject, tenant: str | None) -> None:
        """A judge dies; its lease runs out, and the next one of its kind comes for it."""
        held = sorted(key for key, lease in self.model.leases.items() if lease.token)
        key = data.draw(st.sampled_from(held))
        self.now = max(self.now, self.model.leases[key].due_at)
        self._set_clocks()
        self._claim(self._client(data), key[2:], tenant, data.draw(st.sampled_from([1, 1000])))

    @precondition(lambda self: self.model.verdicts)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """The verdicts of a judge version: all, or those on a model, or of some days."""
        judge = data.draw(st.sampled_from(sorted({key[2:] for key in self.model.verdicts})))
        tenant = data.draw(st.sampled_from([None, *TENANTS]))
        model = data.draw(st.sampled_from([None, None, *MODELS]))
        ago = data.draw(st.sampled_from([None, None, (1, -1), (3, 0), (4, 2)]))
        row: Row = {"tenant_id": tenant, "judge": judge[0], "judge_version": judge[1]}
        row |= {"reason": "it was wrong", "model_slug": model}
        days = None
        if ago is not None:
            days = (
                (self.now - timedelta(days=ago[0])).date(),
                (self.now - timedelta(days=ago[1])).date(),
            )
            row |= {"from": days[0], "to": days[1]}
        types = self.world.types["withdraw_verdicts"]
        found = rows_of(self._client(data), "withdraw_verdicts", types, row)
        marked = self.model.withdrawable(tenant, judge, model, days)
        assert sorted(one["tenant_id"] for one in found) == sorted(marked)
        for one in found:
            keys = marked[one["tenant_id"]]
            unlabeled = self.model.mark(keys, one["withdrawal_id"])
            assert (one["verdicts"], one["unlabeled"]) == (len(keys), unlabeled)
            self.model.withdrawals[one["withdrawal_id"]] = Withdrawal(
                one["tenant_id"], judge, len(keys)
            )

    @precondition(lambda self: self.model.withdrawals)
    @rule(data=st.data())
    def reinstate(self, data: st.DataObject) -> None:
        """A withdrawal is taken back, perhaps for the second time, or by a tenant that it is not of."""
        number, withdrawal = data.draw(st.sampled_from(list(self.model.withdrawals.items())))
        tenant = data.draw(st.sampled_from([withdrawal.tenant] * 3 + [*TENANTS]))
        types = self.world.types["reinstate_verdicts"]
        row = {"tenant_id": tenant, "withdrawal_id": number}
        answer = single(self._client(data), "reinstate_verdicts", types, row)
        if tenant != withdrawal.tenant:
            assert answer.code == "RL211"
            return
        if withdrawal.unlabeled is None:
            keys = [key for key, v in self.model.verdicts.items() if v.withdrawal == number]
            assert len(keys) == withdrawal.verdicts
            withdrawal.unlabeled = self.model.mark(keys, None)
        counts = {"verdicts": withdrawal.verdicts, "unlabeled": withdrawal.unlabeled}
        assert answer.values == {**row, **counts}

    # -- what always holds --------------------------------------------------------------------

    def _stored_leases(self) -> dict[Key, Lease]:
        rows = self.world.rows("select * from routeledger.judge_leases")
        return {
            (row["tenant_id"], row["outcome_id"], row["judge"], row["judge_version"]): Lease(
                row["due_at"], row["lease_token"], row["attempts"], row["last_error"]
            )
            for row in rows
        }

    @invariant()
    def the_leases_are_the_model_s(self) -> None:
        assert self._stored_leases() == self.model.leases

    @invariant()
    def the_labels_are_the_model_s(self) -> None:
        rows = self.world.rows("select * from routeledger.routing_outcomes")
        assert {
            (row["tenant_id"], row["id"]): (
                row["judge_status"],
                row["reward"],
                row["reward_source"],
            )
            for row in rows
        } == {outcome: self.model.label(outcome) for outcome in self.model.outcomes}

    @invariant()
    def the_verdicts_are_the_model_s(self) -> None:
        rows = self.world.rows("select * from routeledger.judge_verdicts")
        assert {
            (row["tenant_id"], row["outcome_id"], row["judge"], row["judge_version"]): (
                said_in(row),
                row["usable"],
                row["attempt_no"],
                row["model_slug"],
                row["withdrawal_id"],
                row["withdrawn_at"] is not None,
            )
            for row in rows
        } == {
            key: (
                verdict.said,
                verdict.usable,
                verdict.attempt_no,
                self.model.outcomes[key[:2]].model,
                verdict.withdrawal,
                verdict.withdrawal is not None,
            )
            for key, verdict in self.model.verdicts.items()
        }

    def _work_off(self) -> None:
        """Judges that do not die: each outcome that can be judged gets the verdicts that it lacks."""
        for judge in JUDGES:
            for _ in range(3):
                # past every lease and delay, and to the next search from the beginning
                self.now += timedelta(days=2)
                self._set_clocks()
                for tenant in TENANTS:
                    for key in self._claim(self.world.clients[0], judge, tenant, 1000):
                        row = {"score": 0.75, "lease_token": self.model.leases[key].token}
                        names = dict(
                            zip(("tenant_id", "id", "judge", "judge_version"), key, strict=True)
                        )
                        answer = many(self.world.clients[0], "record_verdicts", [{**names, **row}])
                        expected = self.model.record(key, row, self.now)
                        assert (answer[0].status, answer[0].values) == ("accepted", expected.values)
            wanted = {o for o, outcome in self.model.outcomes.items() if outcome.judgeable}
            assert {key[:2] for key in self.model.verdicts if key[2:] == judge} == wanted
        assert self.model.leases == {}
        self.the_leases_are_the_model_s()
        self.the_labels_are_the_model_s()
        self.the_verdicts_are_the_model_s()


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    world = World(db)
    yield world
    world.close()


def test_every_judgement_is_foretold(world: World) -> None:
    run_state_machine_as_test(
        lambda: JudgesAtWork(world),  # type: ignore[arg-type]
        settings=settings(
            max_examples=1_000 if THOROUGH else 30,
            stateful_step_count=60 if THOROUGH else 30,
        ),
    )
