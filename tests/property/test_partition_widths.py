"""A write never fails for want of a partition, whatever widths the ledger has had before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.property.ledger import (
    NOON,
    THOROUGH,
    Connection,
    Row,
    many,
    public_routines,
    set_clock,
    single,
    uuid7,
)

pytestmark = pytest.mark.property

hours_ago = st.integers(-1, 89 * 24)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("width"), st.sampled_from(["day", "week", "month"])),
        st.tuples(st.just("width"), st.sampled_from(["day", "week", "month"])),
        st.tuples(st.just("one"), hours_ago),
        st.tuples(st.just("one"), hours_ago),
        st.tuples(st.just("many"), st.lists(hours_ago, min_size=2, max_size=5)),
        st.tuples(st.just("tell"), hours_ago),
        st.tuples(st.just("tell many"), st.lists(hours_ago, min_size=2, max_size=5)),
        st.tuples(st.just("maintain"), st.none()),
    ),
    min_size=2,
    max_size=10,
)


@pytest.fixture
def ledger(db: Database) -> Iterator[Connection]:
    with db.connect() as conn:
        set_clock(conn, NOON)
        yield conn


def decision(ago: int) -> Row:
    at = NOON - timedelta(hours=ago)
    return {
        "tenant_id": "acme",
        "id": str(uuid7(at)),
        "attempt_id": str(uuid7(at)),
        "candidates": ["alpha"],
    }


def story(ago: int) -> Row:
    told = {key: decision(ago)[key] for key in ("tenant_id", "id", "candidates")}
    return {**told, "chosen_model_slug": "alpha", "decision_rule_override": "provider_down"}


# a period of which some days have had a partition of another width, others none
PATCHY = [("width", "day"), ("one", 37), ("width", "week")]


def test_every_write_inside_the_window_finds_a_partition(ledger: Connection) -> None:
    types = public_routines(ledger)

    def call(routine: str, row: Row) -> str | None:
        answer = single(ledger, routine, types[routine], row)
        return answer.code or answer.status

    @settings(max_examples=300 if THOROUGH else 40)
    @given(steps, st.lists(hours_ago, max_size=3))
    @example([*PATCHY, ("many", [37, 13])], [])
    @example([*PATCHY, ("tell many", [37, 13])], [13])
    def check(steps: list[tuple[str, Any]], unknown: list[int]) -> None:
        with ledger.transaction(force_rollback=True):
            written: list[Row] = []
            for step, what in steps:
                if step == "width":
                    ledger.execute(
                        "select routeledger.configure(%s)", [Jsonb({"partition_width": what})]
                    )
                elif step == "maintain":
                    ledger.execute("select routeledger.maintain()")
                elif step == "one":
                    written.append(decision(what))
                    assert call("insert_decision", written[-1]) == "accepted"
                elif step == "many":
                    rows = [decision(ago) for ago in what]
                    answers = many(ledger, "insert_decisions", rows)
                    assert {answer.status for answer in answers} == {"accepted"}
                    written += rows
                elif step == "tell":
                    assert call("record_outcome", story(what)) == "accepted"
                else:
                    answers = many(ledger, "record_outcomes", [story(ago) for ago in what])
                    assert {answer.status for answer in answers} == {"accepted"}

            usage = {"outcome_status": "succeeded", "input_tokens": 1, "output_tokens": 1}
            for n, row in enumerate(written):
                assert call("insert_decision", row) == "replayed"
                done = {"tenant_id": "acme", "id": row["id"], **usage}
                if n % 2:
                    assert call("complete_decision", done) == "accepted"
                else:
                    assert many(ledger, "complete_decisions", [done, done])[0].status == "accepted"
            for ago in unknown:
                row = {"tenant_id": "acme", "id": decision(ago)["id"], **usage}
                assert call("complete_decision", row) == "RL201"
                answers = many(ledger, "complete_decisions", [row, row])
                assert {answer.code for answer in answers} == {"RL201"}

            assert ledger.execute("select * from routeledger.orphans").fetchall() == []
            bounds = ledger.execute(
                "select lower_id, upper_id from routeledger._partitions() order by lower_id"
            ).fetchall()
            assert all(lower < upper for lower, upper in bounds)
            assert all(a[1] <= b[0] for a, b in pairwise(bounds))

    check()
