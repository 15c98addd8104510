"""The set form of a writer does what its single form does, call by call.

The same calls, right and wrong, new, repeated and contradictory, are made one by one on one
database and in batches on another, with the same ids at the same times. Every call gets the same
answer, and in the end both ledgers hold the same rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from psycopg.types.string import TextLoader

from tests.conftest import Database
from tests.property.ledger import (
    JSON_NULL,
    NOON,
    SET_FORMS,
    THOROUGH,
    Answer,
    Connection,
    Row,
    many,
    public_routines,
    set_clock,
    single,
    uuid7,
)

pytestmark = pytest.mark.property


# -- calls ------------------------------------------------------------------------------------

_rng = random.Random(20300116)
LAST_MONTH = NOON - timedelta(days=33)  # a partition that nobody made
DECISIONS = [str(uuid7(at, _rng)) for at in (NOON, NOON, NOON, LAST_MONTH)]
ATTEMPTS = [str(uuid7(NOON, _rng)) for _ in range(4)]
BAD_IDS = ["3f2b8c1e-7d54-4e0a-9b6f-2a1c5d7e9f00", "00000000-0000-7000-8000-000000000001"]


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    """Right so often that a sequence gets somewhere."""
    return st.sampled_from([*(good * (12 * len(bad) // len(good) + 1)), *bad])


tenants = mostly(["acme"], ["Acme", "", "x" * 201])
decisions = mostly(DECISIONS[:1] * 3 + DECISIONS, BAD_IDS)
attempts = mostly(ATTEMPTS[:1] * 3 + ATTEMPTS, BAD_IDS)
models = st.sampled_from(["alpha", "beta", "gamma"])
tokens = mostly([0, 7, 1200, 10**12], [10**12 + 1, -1])
errors = mostly(["timeout", "rate_limit", "abandoned"], ["", "x" * 201])
millis = mostly([0.0, 12.5, 1e10], [1e11, -1.0])
moneys = mostly([0, 0.25, 500], [-1])
leases = mostly(["1 second", "10 minutes", "24 hours"], ["0", "-1 hour", "2 days"])
candidates = mostly(
    [
        ["alpha", "beta"],
        ["beta", {"model_slug": "alpha", "provider": "lab"}],
        [{"model_slug": "alpha", "provider": "lab"}, {"model_slug": "beta", "provider": "lab"}],
        [{"model_slug": "alpha", "drop_reason": "cost"}, "gamma"],
        [{"model_slug": "alpha", "drop_reason": "cost"}],
        ["alpha", "alpha", "beta"],
        [],
    ],
    [[5], [["alpha"]], {"model_slug": "alpha"}, "alpha"],
)
documents = st.sampled_from([{}, {"a": 1}, {"a": [1, None]}, [], 5, "text"])
# Each ledger makes its own tokens: the one that is current there stands for HELD.
HELD = "the token of the claim"
NOBODYS = "3f2b8c1e-7d54-4e0a-9b6f-2a1c5d7e9f00"
tokens_of_claims = mostly([HELD], [NOBODYS, None])
judges = mostly(["j", "j", "k"], ["", "x" * 201])
versions = mostly(["1"], ["2", None])
scores = mostly([0.0, 0.25, 1.0, -1.0], [-2.0, 1.5, float("nan"), None])


def rows(
    required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[Row]:
    """Rows with all of the required parameters, mostly, and a few of the others."""
    return st.fixed_dictionaries(required, optional=optional)


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*[strategy] * 9, st.none())


usage = {
    "input_tokens": tokens,
    "output_tokens": tokens,
    "cost_usd": moneys,
    "latency_ms": millis,
    "ttft_ms": millis,
    "provider_response_id": mostly(["r-1", ""], ["x" * 501]),
}
answer_usage = {
    **usage,
    "cache_read_input_tokens": tokens,
    "cache_creation_input_tokens": tokens,
    "reasoning_output_tokens": tokens,
    "response_model": mostly(["alpha-2"], ["x" * 301]),
    "finish_reasons": mostly([["stop"], [], ["stop", None]], [["x"] * 101]),
    "http_status": mostly([200, 429, 500], [99]),
    "error_message": st.sampled_from(["no", "x" * 9000]),
}
decision = {
    "agent_id": mostly(["support", "sales"], ["", "x" * 201]),
    "task_type": mostly(["chat", "code"], [""]),
    "chosen_model_slug": mostly(["alpha", "beta", "delta"], [""]),
    "decision_rule": mostly(["pinned", "cheapest", "no_candidate_enrolled"], ["Not a word"]),
    "min_quality": mostly([0.0, 0.5, 1.0], [2.0, float("nan")]),
    "budget_cap_usd": moneys,
    "policy_version": mostly(["v1", "v2"], ["x" * 201]),
    "traffic_class": mostly(["production", "shadow", "replay"], ["other"]),
    "event_at": mostly(
        [NOON.isoformat(), "2030-01-01 00:00:00+00"], ["1970-01-01 00:00:00+00", "infinity"]
    ),
    "metadata": mostly([{}, {"a": 1}], [[], 5]),
}
told = st.fixed_dictionaries(
    {
        "id": attempts,
        "model_slug": some(models),
        "status": st.sampled_from(["failed", "failed", "succeeded"]),
    },
    optional={
        **answer_usage,
        "error_type": errors,
        "provider": st.sampled_from(["lab", "other"]),
        "retry_after_ms": mostly([0, 100], [-1]),
        "started_at": mostly(["2030-01-16 11:59:58+00"], ["1970-01-01 00:00:00+00"]),
        "completed_at": mostly(["2030-01-16 11:59:59+00"], ["2030-01-16 11:59:57+00"]),
    },
)
told_failure = st.fixed_dictionaries(
    {"id": attempts, "model_slug": models, "status": st.just("failed"), "error_type": errors}
)
told_success = st.fixed_dictionaries(
    {
        "id": attempts,
        "model_slug": models,
        "status": st.just("succeeded"),
        "input_tokens": tokens,
        "output_tokens": tokens,
    }
)

verdict = {
    "label": mostly(["good", "bad"], ["", "x" * 201]),
    "rationale": st.sampled_from(["because", ""]),
    "reward_source": mostly(["judge", "human"], ["", "other"]),
    "judge_model": mostly(["alpha"], [""]),
    "input_tokens": tokens,
    "output_tokens": tokens,
    "cost_usd": moneys,
}

keys = {"tenant_id": tenants, "id": decisions}
judged = {**keys, "judge": judges, "judge_version": versions}
# Ids are always given: those that the ledger makes up would differ.
ROWS: dict[str, st.SearchStrategy[Row]] = {
    "insert_decision": st.one_of(
        rows({**keys, "attempt_id": attempts, "candidates": candidates}, lease=leases),
        rows({**keys, "attempt_id": attempts, "candidates": candidates}, lease=leases, **decision),
    ),
    "start_attempt": rows(
        {**keys, "attempt_id": attempts, "model_slug": some(models)},
        provider=st.sampled_from(["lab", "other"]),
    ),
    "fail_attempt": rows(
        {
            **keys,
            "attempt_id": some(attempts),
            "error_type": errors,
            "next_attempt_id": attempts,
            "next": mostly(["policy", "policy", "hold", "give_up", None], ["other"]),
        },
        http_status=mostly([400, 408, 429, 503], [99]),
        retry_after_ms=mostly([0, 800, 60_000], [-1]),
        error_message=st.sampled_from(["no", "x" * 9000]),
        **usage,
    ),
    "complete_decision": st.one_of(
        rows(
            {
                **keys,
                "outcome_status": st.just("succeeded"),
                "input_tokens": tokens,
                "output_tokens": tokens,
            },
            attempt_id=attempts,
            **{k: v for k, v in answer_usage.items() if "put_tokens" not in k},
        ),
        rows(
            {**keys, "outcome_status": st.just("failed"), "error_type": some(errors)},
            attempt_id=attempts,
            decision_rule_override=mostly(["provider_down"], ["Not a word"]),
            **answer_usage,
        ),
        rows({**keys, "outcome_status": mostly(["failed"], ["rejected", None])}),
    ),
    "extend_lease": rows(keys, lease=leases),
    "record_outcome": rows(
        {
            **keys,
            "attempts": st.one_of(
                st.lists(told, max_size=3),
                st.tuples(told_failure, told_success).map(list),
                st.lists(told_success, min_size=1, max_size=1),
                documents,
            ),
        },
        candidates=candidates,
        decision_rule_override=mostly(["provider_down"], ["Not a word"]),
        **decision,
    ),
    "record_payload": rows(
        {**keys, "attempt_id": some(attempts)}, request=documents, response=documents
    ),
    "record_verdict": st.one_of(
        rows({**judged, "score": scores, "lease_token": tokens_of_claims}, **verdict),
        rows({**judged, "score": scores}, **verdict),
    ),
    "renew_judgement": rows({**judged, "lease_token": tokens_of_claims}, lease=leases),
    "release_judgement": rows(
        {**judged, "lease_token": tokens_of_claims},
        error=mostly(["no answer", "x" * 9000], [""]),
        delay=mostly(["0", "10 minutes"], ["-1 second", "25 hours"]),
    ),
}


@dataclass(frozen=True)
class Batch:
    """Calls of one routine, at one time."""

    routine: str
    rows: list[Row]
    after: int  # seconds since the batch before
    reap: bool
    claim: int  # how many outcomes a judge claims before


@st.composite
def sequences(draw: st.DrawFn) -> list[Batch]:
    """Batches in which about every third row repeats an earlier one, as it was or altered."""
    batches: list[Batch] = []
    seen: dict[str, list[Row]] = {}
    # a decision to begin with, or most of what follows finds none
    first = {"tenant_id": "acme", "id": DECISIONS[0], "attempt_id": ATTEMPTS[0]}
    begin = [{**first, "candidates": draw(candidates)}]
    begin += [{**first, "id": d, "candidates": ["alpha", "beta"]} for d in DECISIONS[1:]]
    batches.append(Batch("insert_decision", begin[: draw(st.integers(1, 4))], 0, False, 0))
    seen["insert_decision"] = list(batches[0].rows)
    # and a few that have succeeded, or judges find none
    usage = {"outcome_status": "succeeded", "input_tokens": 7, "output_tokens": 7}
    finished = draw(st.lists(st.sampled_from(DECISIONS), max_size=3, unique=True))
    done = [{"tenant_id": "acme", "id": d, **usage} for d in finished]
    batches.append(Batch("complete_decision", done, 0, False, 0))
    for _ in range(draw(st.integers(1, 6))):
        routine = draw(st.sampled_from(list(ROWS)))
        batch: list[Row] = []
        for _ in range(draw(st.integers(1, 8))):
            earlier = seen.get(routine)
            how = draw(st.sampled_from(["new", "new", "again", "altered"])) if earlier else "new"
            if how == "new" or earlier is None:
                row = draw(ROWS[routine])
            else:
                row = draw(st.sampled_from(earlier))
                if how == "altered":
                    other = draw(ROWS[routine])
                    name = draw(st.sampled_from(sorted(other)))
                    row = {**row, name: other[name]}
            batch.append(row)
            seen.setdefault(routine, []).append(row)
        after = draw(st.sampled_from([0, 0, 1, 600, 90_000]))
        claim = draw(st.sampled_from([0, 1, 3]))
        batches.append(Batch(routine, batch, after, draw(st.booleans()), claim))
    return batches


# -- two ledgers ------------------------------------------------------------------------------

# Answers that even a short run meets.
REACHED = {"accepted", "replayed"}
REACHED |= {f"RL{n}" for n in (101, 102, 103, 201, 301, 305, 315, 402)}
CONTENTS = {
    "routing_outcomes": "tenant_id, id",
    "inferences": "tenant_id, outcome_id, attempt_no",
    "inference_payloads": "tenant_id, outcome_id, inference_id",
    "judge_verdicts": "tenant_id, outcome_id, judge, judge_version",
    "judge_leases": "tenant_id, outcome_id, judge, judge_version",
}
# What the answer for a verdict says of its outcome is so after all rows of the call.
OF_THE_OUTCOME = {"reward", "reward_source", "judge_status"}


def contents(conn: Connection) -> dict[str, list[Any]]:
    """Every column of every row, and of a token whether there is one."""
    held = "jsonb_build_object('held', to_jsonb(t) ->> 'lease_token' is not null)"
    return {
        table: conn.execute(
            f"select to_jsonb(t) - 'lease_token' || {held} from routeledger.{table} t"
            f" order by {order}"
        ).fetchall()
        for table, order in CONTENTS.items()
    }


def reap(conn: Connection) -> list[Any]:
    return sorted(conn.execute("select t::text from routeledger.reap() t").fetchall())


def claim(conn: Connection, limit: int) -> list[Any]:
    return conn.execute(
        "select id, attempt_no, lease_expires_at"
        " from routeledger.claim_judgements('acme', 'j', '1', %s)",
        [limit],
    ).fetchall()


def with_tokens(conn: Connection, batch: list[Row]) -> list[Row]:
    """The rows as this ledger has them: HELD becomes the token of the claim that is out. Where
    none is, a verdict goes without, and anything else comes with a token that is nobody's."""
    found = conn.execute(
        "select outcome_id::text, judge, judge_version, lease_token::text"
        " from routeledger.judge_leases where tenant_id = 'acme'"
    ).fetchall()
    held = {tuple(key): token for *key, token in found}

    def token(row: Row) -> str | None:
        current = held.get((row["id"], row["judge"], row["judge_version"]))
        return current or (None if "score" in row else NOBODYS)

    return [
        {**row, "lease_token": token(row)} if row.get("lease_token") == HELD else row
        for row in batch
    ]


@pytest.fixture
def ledgers(make_database: Callable[..., Database]) -> Iterator[tuple[Connection, Connection]]:
    """One for the single forms and one for the set forms; prices known for two of the models."""
    conns = []
    for _ in range(2):
        conn = make_database().connect()
        conn.adapters.register_loader("timestamptz", TextLoader)
        set_clock(conn, NOON)
        conn.execute(
            """select routeledger.configure('{"retry_jitter": 0, "retry_max_attempts": 4}')"""
        )
        conn.execute("select routeledger.maintain()")
        prices = [
            {"model_slug": "alpha", "input_usd_per_mtok": 3, "output_usd_per_mtok": 15},
            {"model_slug": "beta", "provider": "lab", "input_usd_per_mtok": 0.5},
        ]
        assert {answer.status for answer in many(conn, "import_models", prices)} == {"accepted"}
        conns.append(conn)
    yield conns[0], conns[1]
    for conn in conns:
        conn.close()


def comparable(answer: Answer, routine: str, alone: bool = True) -> tuple[Any, ...]:
    # these have no `created`: their single forms do not tell a replay
    untold = routine in ("extend_lease", "renew_judgement") and not answer.refused
    status = "accepted" if untold else answer.status
    said = (answer.message, answer.detail, answer.hint)
    values = {} if answer.refused else dict(answer.values)
    if routine == "record_verdict" and not alone:
        values = {name: value for name, value in values.items() if name not in OF_THE_OUTCOME}
    return status, answer.code, said, values


def test_the_set_form_says_and_does_what_the_single_form_does(
    ledgers: tuple[Connection, Connection],
) -> None:
    one_by_one, in_batches = ledgers
    types = public_routines(one_by_one)
    met: Counter[str] = Counter()

    @settings(max_examples=2000 if THOROUGH else 150)
    @given(sequences())
    def check(batches: list[Batch]) -> None:
        with (
            one_by_one.transaction(force_rollback=True),
            in_batches.transaction(force_rollback=True),
        ):
            now = NOON
            for batch in batches:
                now += timedelta(seconds=batch.after)
                set_clock(one_by_one, now)
                set_clock(in_batches, now)
                if batch.reap:
                    assert reap(one_by_one) == reap(in_batches)
                if batch.claim:
                    assert claim(one_by_one, batch.claim) == claim(in_batches, batch.claim)
                singly = [
                    single(one_by_one, batch.routine, types[batch.routine], row)
                    for row in with_tokens(one_by_one, batch.rows)
                ]
                together = many(
                    in_batches, SET_FORMS[batch.routine], with_tokens(in_batches, batch.rows)
                )
                often = Counter(row.get("id") for row in batch.rows)
                for row, a, b in zip(batch.rows, singly, together, strict=True):
                    note(f"{batch.routine} {row}: {a.status} {a.code}")
                    met[b.code or b.status] += 1
                    alone = often[row.get("id")] == 1
                    assert comparable(a, batch.routine, alone) == (
                        comparable(b, batch.routine, alone)
                    )
            assert contents(one_by_one) == contents(in_batches)

    check()
    # The test is worth something only as far as its calls get.
    assert set(met) >= REACHED, met


def test_json_null_is_an_absent_value(ledgers: tuple[Connection, Connection]) -> None:
    one_by_one, in_batches = ledgers
    types = public_routines(one_by_one)["insert_decision"]
    row = {"tenant_id": "acme", "id": DECISIONS[0], "attempt_id": ATTEMPTS[0], "candidates": ["a"]}
    absent = dict.fromkeys(sorted(set(types) - set(row)))
    assert comparable(single(one_by_one, "insert_decision", types, {**row, **absent}), "") == (
        comparable(
            many(in_batches, "insert_decisions", [{**row, **dict.fromkeys(absent, JSON_NULL)}])[0],
            "",
        )
    )
    assert contents(one_by_one) == contents(in_batches)
