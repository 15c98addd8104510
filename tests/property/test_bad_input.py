"""The bad input table: every parameter of every public routine against every kind of bad value.

A value is either accepted by a rule that the table states, or refused with the code that the table
states, a hint and a JSON detail that names the parameter; and then nothing has changed. The single
form and the set form say the same. A routine, a parameter, a field of a row or a setting without
an entry here fails the test, and so does an entry that leaves a kind of value out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
from psycopg.types.string import TextLoader

from tests.conftest import Database
from tests.property.ledger import (
    DIGEST,
    JSON_NULL,
    NOON,
    SET_FORMS,
    Answer,
    Connection,
    Row,
    digest,
    fields_of,
    many,
    public_routines,
    refusal,
    rows_of,
    set_clock,
    single,
    uuid7,
)

pytestmark = pytest.mark.property

OK: Final = None
# a code, or OK
Verdict = str | None


class Same:
    """The same verdict in both forms."""


SAME: Final = Same()


@dataclass(frozen=True)
class Value:
    """A value of this test's own, with its verdict, and where it differs that in the set form."""

    value: Any
    verdict: Verdict
    in_set: Verdict | Same = SAME

    @property
    def set_verdict(self) -> Verdict:
        return self.verdict if isinstance(self.in_set, Same) else self.in_set


@dataclass(frozen=True)
class Rule:
    """What becomes of the values of one parameter: kind of value to verdict, and more values."""

    kinds: Mapping[str, Verdict | Value]
    # the row of which the parameter is a part, where it is not the usual one
    given: Mapping[str, Any] = field(default_factory=dict)
    # what the detail calls the parameter, where not by its name; "" where it does not name one
    called: str | None = None


# -- values: each kind that each type has -----------------------------------------------------

LONG = "x" * 1_000_000
TEXT = {"null": None, "empty": "", "huge": LONG, "odd": "no such word"}
UUID = {
    "null": None,
    "v4": "3f2b8c1e-7d54-4e0a-9b6f-2a1c5d7e9f00",
    "nil": "00000000-0000-0000-0000-000000000000",
    "no variant": "01890a5d-ac96-774b-cdef-0123456789ab",
    "1970": "00000000-0000-7000-8000-000000000001",
    "2200": "06999999-9999-7999-8999-999999999999",
    "last": "ffffffff-ffff-7fff-bfff-ffffffffffff",
}
DOUBLE = {
    "null": None,
    "negative": -1.0,
    "nan": float("nan"),
    "infinite": float("inf"),
    "minus infinite": float("-inf"),
    "huge": 1e308,
}
NUMERIC = {
    "null": None,
    "negative": Decimal(-1),
    "nan": Decimal("NaN"),
    "infinite": Decimal("Infinity"),
    "minus infinite": Decimal("-Infinity"),
    "huge": Decimal("1e1000"),
    "fine": Decimal("1e-1000"),
}
BIGINT = {"null": None, "negative": -1, "zero": 0, "huge": 2**63 - 1, "minus huge": -(2**63)}
INTEGER = {"null": None, "negative": -1, "zero": 0, "huge": 2**31 - 1, "minus huge": -(2**31)}
TIME = {
    "null": None,
    "1970": "1970-01-01 00:00:00+00",
    "2200": "2200-01-01 00:00:00+00",
    "infinite": "infinity",
    "minus infinite": "-infinity",
    "first": "4713-01-01 00:00:00+00 BC",
    "last": "294276-12-31 00:00:00+00",
}
DATE = {
    "null": None,
    "1970": "1970-01-01",
    "2200": "2200-01-01",
    "infinite": "infinity",
    "minus infinite": "-infinity",
    "first": "4713-01-01 BC",
    "last": "5874897-12-31",
}
INTERVAL = {
    "null": None,
    "zero": "0",
    "negative": "-1 second",
    "huge": "178000000 years",
    "minus huge": "-178000000 years",
}
JSON: dict[str, Any] = {
    "null": None,
    "json null": JSON_NULL,
    "number": 5,
    "string": "a",
    "boolean": True,
    "object": {},
    "array": [],
    "numbers": [1],
    "nulls": [JSON_NULL],
    "arrays": [[]],
    "nested": [[{"model_slug": "alpha", "status": "failed", "error_type": "x"}]],
    "objects": [{}],
    "huge": {"x": "y" * 17_000_000},
}
WORDS = {
    "null": None,
    "empty": [],
    "null word": [None],
    "empty word": [""],
    "huge word": [LONG],
    "100 words": ["stop"] * 100,
    "101 words": ["stop"] * 101,
    "two-dimensional": [["stop"], ["stop"]],
}
NAME = {"null": None, "empty": "", "odd": "no such role", "huge": LONG}
BOOLEAN = {"null": None}
RELATION = {
    "null": None,
    "none": "0",
    "dropped": "4294967295",
    "view": "routeledger.decisions",
    "index": "public.shelf_pkey",
    "type": "public.pair",
}

KINDS: dict[str, Mapping[str, Any]] = {
    "text": TEXT,
    "uuid": UUID,
    "double precision": DOUBLE,
    "numeric": NUMERIC,
    "bigint": BIGINT,
    "integer": INTEGER,
    "timestamp with time zone": TIME,
    "date": DATE,
    "interval": INTERVAL,
    "jsonb": JSON,
    "text[]": WORDS,
    "name": NAME,
    "boolean": BOOLEAN,
    "regclass": RELATION,
}

# What does not even fit the type, in a row of a set form.
UNFIT: dict[str, tuple[Any, ...]] = {
    "text": ({"a": 1}, ["a"]),
    "uuid": ("", "no id", 5, True, {"a": 1}, ["a"], "018f"),
    "double precision": ("", "five", True, {"a": 1}, [1], "1e999"),
    "numeric": ("", "five", True, {"a": 1}, [1]),
    "bigint": ("", "five", "1.5", 1.5, True, {"a": 1}, [1], 2**63, "99999999999999999999"),
    "integer": ("", "five", "1.5", 1.5, True, {"a": 1}, [1], 2**31),
    "timestamp with time zone": ("", "noon", 5, True, {"a": 1}, ["now"], "300000-01-01"),
    "interval": ("", "long", True, {"a": 1}, ["1 second"], "1e30 years"),
    "jsonb": (),
    "text[]": ("stop", 5, True, {"a": 1}, [["a"], "b"]),
    "boolean": ("", "maybe", 5, {"a": 1}, [True]),
}


# -- rules ------------------------------------------------------------------------------------


def text(
    limit: int | None = None,
    *,
    null: Verdict = OK,
    empty: Verdict = OK,
    odd: Verdict = OK,
    huge: Verdict = "RL108",
    given: Mapping[str, Any] | None = None,
    called: str | None = None,
    **more: Verdict | Value,
) -> Rule:
    kinds: dict[str, Verdict | Value] = {
        "null": null,
        "empty": empty,
        "odd": odd,
        "huge": huge if limit or huge != "RL108" else OK,
    }
    if limit is not None:
        kinds["as long as allowed"] = Value("x" * limit, odd)
        kinds["one longer"] = Value("ż" * (limit + 1), huge)
    return Rule({**kinds, **more}, given or {}, called)


def word(*, null: Verdict = OK, **options: Any) -> Rule:
    """A text of a closed vocabulary, or of the shape of a word."""
    return text(None, null=null, empty="RL102", odd="RL102", huge="RL102", **options)


def key(
    null: Verdict = "RL101", other: Verdict = "RL201", called: str | None = None, **more: Value
) -> Rule:
    """An id: only version 7; `other` for one that is well-formed and dated anywhere."""
    dated = dict.fromkeys(("1970", "2200", "last"), other)
    bad = dict.fromkeys(("v4", "nil", "no variant"), "RL104")
    return Rule({"null": null, **bad, **dated, **more}, called=called)


def amount(
    null: Verdict = OK,
    *,
    zero: bool = False,
    given: Mapping[str, Any] | None = None,
    called: str | None = None,
) -> Rule:
    """A double precision (or integer, with `zero`) that is finite and not negative."""
    if zero:
        kinds = {"null": null, "negative": "RL103", "zero": OK, "huge": "RL103"}
        return Rule({**kinds, "minus huge": "RL103"}, given or {}, called)
    bad = dict.fromkeys(("negative", "nan", "infinite", "minus infinite", "huge"), "RL103")
    return Rule({"null": null, **bad}, given or {}, called)


def money(called: str | None = None) -> Rule:
    """A numeric that is finite and not negative, however fine."""
    return Rule({**amount().kinds, "fine": OK, "zero": Value(Decimal(0), OK)}, called=called)


def moment(
    *, past: Verdict = "RL109", future: Verdict = "RL109", ancient: Verdict = "RL109", **more: Any
) -> Rule:
    bad = dict.fromkeys(("infinite", "minus infinite", "last"), "RL109")
    return Rule({"null": OK, "1970": past, "2200": future, "first": ancient, **bad}, **more)


def span(zero: Verdict = "RL103", **more: Any) -> Rule:
    bad = dict.fromkeys(("negative", "huge", "minus huge"), "RL103")
    return Rule({"null": OK, "zero": zero, **bad}, **more)


def day(far: Verdict, null: Verdict = OK, given: Mapping[str, Any] | None = None) -> Rule:
    kinds = dict.fromkeys(("1970", "2200"), OK) | dict.fromkeys(("first", "last"), far)
    bad = dict.fromkeys(("infinite", "minus infinite"), "RL109")
    return Rule({"null": null, **kinds, **bad}, given or {})


def corpus(none: Verdict) -> dict[str, Rule]:
    """The filters of a corpus; `none` where they leave nothing over."""
    odd = dict.fromkeys(("null word", "empty word", "huge word"), "RL102")
    stop = dict.fromkeys(("100 words", "101 words", "two-dimensional"), "RL102")
    both = ["production", "replay"]
    return {
        "from": Rule({**day("RL109").kinds, "2200": none}),
        "to": Rule({**day("RL109").kinds, "1970": none}),
        "traffic_class": Rule(
            {
                "null": "RL101",
                "empty": "RL101",
                **odd,
                **stop,
                "twice": Value(["production", "production"], OK),
                "shadow": Value(["shadow"], none),
                "a mixture": Value(both, "RL102"),
            }
        ),
        "mix_synthetic": Rule({"null": "RL101", "yes": Value(True, OK)}, {"traffic_class": both}),
        "reward_source": Rule(
            {
                "null": OK,
                "empty": "RL101",
                **odd,
                **stop,
                "both": Value(["judge", "human"], OK),
                "human": Value(["human"], none),
                "withdrawn": Value(["withdrawn"], "RL102"),
            }
        ),
        "task_type": text(200, empty="RL101", odd=none),
    }


LEASE = span()
TENANT = text(200, null="RL101", empty="RL101", odd="RL201")
COUNT = amount(zero=True)
STATUS_CODE = Rule(
    {**COUNT.kinds, "zero": "RL103", "599": Value(599, OK), "600": Value(600, "RL103")}
)
REASONS = Rule(
    {
        "null": OK,
        "empty": OK,
        "null word": OK,
        "empty word": OK,
        "huge word": "RL108",
        "100 words": OK,
        "101 words": "RL108",
        "two-dimensional": "RL108",
    }
)
METADATA = Rule(
    {
        "null": OK,
        "json null": Value(JSON_NULL, "RL107", OK),  # in a row, null is an absent value
        "object": OK,
        "huge": "RL108",
        **dict.fromkeys(
            (
                "number",
                "string",
                "boolean",
                "array",
                "numbers",
                "nulls",
                "arrays",
                "nested",
                "objects",
            ),
            "RL107",
        ),
    }
)
ALPHA = {"model_slug": "alpha", "provider": "lab"}
CANDIDATES = Rule(
    {
        "null": OK,  # none: rejected, no_candidate_enrolled
        "json null": Value(JSON_NULL, "RL106", OK),
        "array": OK,
        **dict.fromkeys(("number", "string", "boolean", "object"), "RL106"),
        **dict.fromkeys(("numbers", "nulls", "arrays", "nested", "objects"), "RL106"),
        "huge": "RL106",
        "huge array": Value([{"model_slug": "a", "note": LONG}], "RL108"),
        "500": Value(["a"] * 500, OK),
        "501": Value(["a"] * 501, "RL502"),
        "no slug in a later one": Value(["a", {}], "RL106"),
        "an array later": Value([ALPHA, [ALPHA]], "RL106"),
        "words in an array": Value([["a"]], "RL106"),
        "empty slug": Value([{"model_slug": ""}], "RL106"),
        "empty word": Value([""], "RL106"),
        "slug an array": Value([{"model_slug": ["a"]}], "RL106"),
        "slug an object": Value([{"model_slug": {"a": 1}}], "RL106"),
        "slug a number": Value([{"model_slug": 5}], "RL106"),
        "slug null": Value([{"model_slug": JSON_NULL}], "RL106"),
        "longest slug": Value(["x" * 300], OK),
        "slug too long": Value(["x" * 301], "RL108"),
        "provider too long": Value([{"model_slug": "a", "provider": "p" * 301}], OK),  # is cut
        "all dropped": Value([{"model_slug": "a", "drop_reason": "cost"}], OK),  # is rejected
        "dropped for null": Value([{"model_slug": "a", "drop_reason": JSON_NULL}], OK),  # is not
    }
)
# A choice needs a model; a refusal has none.
RULE_WORD = Rule(
    {
        **word().kinds,
        "longest": Value("a" + "b" * 62, OK),
        "too long": Value("a" + "b" * 63, "RL102"),
        "line break": Value("pinned\n", "RL102"),
        "no one enrolled": Value("no_candidate_enrolled", OK),
    }
)
PAYLOAD = Rule({**dict.fromkeys(JSON, OK), "huge": "RL108"})
# Rows that are answered for in one line: what is no row is counted as refused.
ROWS = Rule(
    {
        **dict.fromkeys(JSON, "RL107"),
        "null": "RL101",
        **dict.fromkeys(("array", "numbers", "nulls", "arrays", "nested", "objects"), OK),
        "10001 rows": Value([{}] * 10_001, "RL501"),
    }
)
# An upsert says in its answer what a row is refused for; a call is refused for what is wrong with it.
UPSERT_TARGET = Rule({**dict.fromkeys(RELATION, "RL112"), "null": "RL101"}, called="")
NO_NAMES = dict.fromkeys(("empty", "null word", "two-dimensional"), "RL101")
UPSERT_KEY = Rule(
    {
        **dict.fromkeys(WORDS, "RL204"),
        "null": OK,
        **NO_NAMES,
        "the key": Value(["k"], OK),
        "the key twice, and quoted": Value(["k", '"k"', "K"], OK),
    }
)
UPSERT_RULE = {
    "key": UPSERT_KEY,
    "precedence": Rule({**dict.fromkeys(TEXT, "RL114"), "null": OK}, called=""),
    "on_tie": word(null="RL102"),
}
UPSERT = {
    **UPSERT_RULE,
    "target": UPSERT_TARGET,
    "batch_id": text(300),
    "strict": Rule({"null": "RL101"}),
}
YARDSTICK = {
    name: Rule({**dict.fromkeys(TEXT, "RL205"), "null": "RL101"})
    for name in ("version", "rule_set")
}

# A name of a constraint, an index or a table: taken as it is, and never cut.
NAMED = Rule(
    {
        "null": "RL101",
        "empty": "RL101",
        "odd": OK,
        "huge": "RL108",
        "63 bytes": Value("ż" * 31 + "x", OK),
        "64 bytes": Value("ż" * 32, "RL108"),
    }
)
FLAG = Rule({"null": "RL101"})
LABEL = text(300)
REASON = text(2000)
CONSTRAINED = Rule(
    {
        **dict.fromkeys(RELATION, "RL117"),
        "null": "RL101",
        "a foreign table": Value("depot.abroad", "RL117"),
        "a table of the system": Value("pg_catalog.pg_class", "RL117"),
    },
    called="",
)
LOCKING = {
    "lock_timeout": Rule(
        {
            **dict.fromkeys(INTERVAL, "RL103"),
            "null": "RL101",
            "shortest": Value("1 millisecond", OK),
            "too short": Value("999 microseconds", "RL103"),
            "longest": Value("1 hour", OK),
            "too long": Value("1 hour 1 microsecond", "RL103"),
        }
    ),
    "attempts": Rule(
        {
            **dict.fromkeys(INTEGER, "RL103"),
            "null": "RL101",
            "1000": Value(1000, OK),
            "1001": Value(1001, "RL103"),
        }
    ),
}
DECLARED = {"label": LABEL, **LOCKING, "strict": FLAG}
IF_VIOLATED = word(null="RL102", other=Value("add_not_valid", OK))
# What is to be true of a row: one expression of its columns, of type boolean.
NO_PREDICATES = {
    "a second statement": Value("n > 0); drop table depot.goods; --", "RL116"),
    "a second constraint": Value("n > 0), add constraint x check (true", "RL116"),
    "unbalanced": Value("(n > 0", "RL116"),
    "half a literal": Value("v = 'x", "RL116"),
    "no such column": Value("colour = 'blue'", "RL116"),
    "of another type": Value("n + 1", "RL116"),
    "a subquery": Value("n in (select 1)", "RL116"),
    "an aggregate": Value("count(*) > 0", "RL116"),
    "without a time zone": Value("at > '2026-01-01 00:00'", "RL116"),
    "a parameter": Value("n > $1", "RL116"),
}
PREDICATE = Rule({**dict.fromkeys(TEXT, "RL116"), "null": "RL101", **NO_PREDICATES}, called="")
WHERE = Rule({**dict.fromkeys(TEXT, "RL116"), "null": OK, **NO_PREDICATES}, called="")
NO_KEYS = {
    "no such column": Value(["colour"], "RL118"),
    "two in one": Value(["k, n"], "RL118"),
    "one twice": Value(["k", "K"], "RL118"),
    "unbalanced": Value(["lower(v"], "RL118"),
    "a second statement": Value(["k); drop table depot.goods; --"], "RL118"),
    "of no order": Value(["doc"], "RL118"),
    "33 columns": Value([f"k + {i}" for i in range(33)], "RL118"),
}
KEYS = Rule(
    {
        **dict.fromkeys(WORDS, "RL118"),
        **dict.fromkeys(("null", "empty", "null word", "two-dimensional"), "RL101"),
        **NO_KEYS,
    },
    called="",
)
KEEP = Rule(
    {
        **dict.fromkeys(TEXT, "RL114"),
        "null": OK,
        "a sum": Value("sum n", "RL114"),
        "no such column": Value("greatest colour", "RL114"),
        "of no order": Value("greatest doc", "RL114"),
    },
    called="",
)
COLLAPSE = {
    "table": CONSTRAINED,
    "columns": KEYS,
    "keep": KEEP,
    "nulls": word(null="RL102"),
    "where": WHERE,
    "children": word(null="RL102"),
    "triggers": word(null="RL102"),
    "reason": REASON,
}
UNIQUE = {**COLLAPSE, "name": NAMED, "form": word(null="RL102"), **DECLARED}
# A table by its name, which need not exist yet.
TABLE_NAME = Rule(
    {
        "null": "RL101",
        "empty": "RL101",
        "odd": "RL117",
        "huge": "RL108",
        "three parts": Value("a.b.c", "RL117"),
        "unbalanced": Value('depot."goods', "RL117"),
        "a view": Value("routeledger.decisions", "RL117"),
        "an index": Value("depot.goods_pkey", "RL117"),
        "64 bytes": Value(f'depot."{"ż" * 32}"', "RL108"),
    },
    called="",
)
# Of what is declared, those that are meant.
NO_TABLES = {
    "a view": Value("routeledger.decisions", "RL207"),
    "an index": Value("depot.goods_pkey", "RL207"),
}
MEANT = {
    "table": Rule({**TABLE_NAME.kinds, "null": OK, **NO_TABLES}, called=""),
    "name": text(odd="RL207", empty="RL207", huge="RL207", called=""),
}
OPTIONS = Rule(
    {
        **dict.fromkeys(JSON, "RL107"),
        "object": OK,
        "huge": "RL102",
        "unknown": Value({"colour": "blue"}, "RL102"),
        "of another kind": Value({"keep": "greatest n"}, "RL102"),
        "no word": Value({"if_violated": 5}, "RL107"),
        "another word": Value({"if_violated": "repair"}, "RL102"),
        "null in it": Value({"if_violated": JSON_NULL}, "RL107"),
        "words that are none": Value({"also_drop": [5]}, "RL107"),
        "no interval": Value({"lock_timeout": "soon"}, "RL103"),
        "an interval too long": Value({"lock_timeout": "2 hours"}, "RL103"),
        "no integer": Value({"attempts": 1.5}, "RL103"),
        "too many attempts": Value({"attempts": 1001}, "RL103"),
        "more than an integer": Value({"attempts": 2**40}, "RL103"),
        "a label too long": Value({"label": "x" * 301}, "RL108"),
    },
    called="",
)
REPAIR_ID = Rule({**dict.fromkeys(BIGINT, "RL206"), "null": "RL101"}, called="")
WINDOW = Rule(
    {
        **span(zero=OK).kinds,
        "null": "RL101",
        "longest": Value("1 day", OK),
        "too long": Value("1 day 1 second", "RL103"),
    }
)
ORPHANS = {
    "window": WINDOW,
    "dry_run": FLAG,
    "stuck_after": Rule(
        {**span().kinds, "shortest": Value("1 minute", OK), "59 s": Value("59 seconds", "RL103")}
    ),
    "reason": REASON,
}
ORPHAN_TABLE = Rule({**dict.fromkeys(RELATION, "RL117"), "null": "RL101"}, called="")

# A judge and its version, and the token of a claim.
JUDGE = text(200, null="RL101", empty="RL101")
HOLDER = text(200, null="RL101", empty="RL101", odd="RL402")
TOKEN = Rule({**dict.fromkeys(UUID, "RL402"), "null": "RL101"})
CLAIMED = {
    "tenant_id": TENANT,
    "id": key(),
    "judge": HOLDER,
    "judge_version": HOLDER,
    "lease_token": TOKEN,
}
SCORE = Rule(
    {
        **amount("RL101").kinds,  # null is for a verdict with a label
        "negative": OK,  # -1: it cannot say
        "-2": Value(-2.0, "RL103"),
        "0": Value(0.0, OK),
        "1": Value(1.0, OK),
        "a little less": Value(-1e-300, "RL103"),
        "a little more": Value(1.0000001, "RL103"),
    }
)

FAILED = {"status": "failed", "error_type": "x"}
SUCCEEDED = {"status": "succeeded", "input_tokens": 1, "output_tokens": 1}

DECISION: dict[str, Rule] = {
    "tenant_id": text(200, null="RL101", empty="RL101"),
    "id": key(null=OK, other="RL105"),
    "agent_id": text(200, empty="RL103"),
    "task_type": text(200, empty="RL103"),
    "candidates": CANDIDATES,
    "chosen_model_slug": text(300, empty="RL103"),
    "decision_rule": RULE_WORD,
    "min_quality": Rule({**amount().kinds, "2": Value(2.0, "RL103"), "1": Value(1.0, OK)}),
    "budget_cap_usd": money(),
    "policy_version": text(200, empty="RL103"),
    "traffic_class": word(),
    "event_at": moment(),
    "metadata": METADATA,
}

ROUTED: dict[str, Rule] = {
    "budget_key": text(200, empty="RL103"),
    "deadline": span(zero=OK),
}
REPLAYED: dict[str, Rule] = {
    "from": Rule({**day("RL109").kinds, "1970": "RL109"}, {"to": "4900-01-01"}),
    "to": Rule({**day("RL109").kinds, "1970": "RL109"}),
    "limit": Rule(
        {
            **COUNT.kinds,
            "null": "RL101",
            "zero": "RL103",
            "1000001": Value(1_000_001, "RL103"),
        }
    ),
    "all_models": FLAG,
}
RANKED: dict[str, Rule] = {
    "tenant_id": text(200, null="RL101", empty="RL101"),
    "task_type": text(200, empty="RL103"),
    "policy": Rule({**dict.fromkeys(TEXT, "RL209"), "null": OK}),
    "candidates": Rule(
        {
            **dict.fromkeys(("null", "empty", "100 words", "101 words", "two-dimensional"), OK),
            "null word": "RL106",
            "empty word": "RL106",
            "huge word": "RL108",
            "500 words": Value(["a"] * 500, OK),
            "501 words": Value(["a"] * 501, "RL502"),
        }
    ),
    "overrides": Rule(
        {
            **dict.fromkeys(JSON, "RL107"),
            "null": OK,
            "json null": Value(JSON_NULL, "RL107", OK),
            "object": OK,
            "a rule": Value({"min_quality": 0.5, "deny": ["a"]}, OK),
            "no rule": Value({"version": 2}, "RL107"),
            "a word for a number": Value({"min_quality": "much"}, "RL107"),
            "out of range": Value({"min_quality": 2}, "RL103"),
        },
        called="",
    ),
    "input_tokens": COUNT,
    "output_tokens": COUNT,
}

TABLE: dict[str, dict[str, Rule]] = {
    "insert_decision": {
        **DECISION,
        **ROUTED,
        "ruleset_hash": text(200, empty="RL103"),
        "propensity": Rule({**amount().kinds, "2": Value(2.0, "RL103"), "1": Value(1.0, OK)}),
        "lease": LEASE,
        "attempt_id": key(null=OK, other=OK),  # unique within its decision, so dated as it likes
    },
    "rank_candidates": {**RANKED, "at": moment(past="RL109", future=OK)},
    "replay_policy": {
        "tenant_id": RANKED["tenant_id"],
        "policy": RANKED["policy"],
        "overrides": RANKED["overrides"],
        **REPLAYED,
    },
    "estimate_policy": {
        "tenant_id": RANKED["tenant_id"],
        "policy": RANKED["policy"],
        "overrides": RANKED["overrides"],
        **REPLAYED,
        "confidence": Rule(
            {
                **dict.fromkeys(DOUBLE, "RL103"),
                "null": "RL101",
                "0.5": Value(0.5, OK),
                "0.499": Value(0.499, "RL103"),
                "0.999": Value(0.999, OK),
                "1": Value(1.0, "RL103"),
            }
        ),
        "max_weight": Rule(
            {
                **amount().kinds,
                "1": Value(1.0, OK),
                "0.999": Value(0.999, "RL103"),
                "1e9": Value(1e9, OK),
            }
        ),
    },
    "route": {
        **RANKED,
        **ROUTED,
        "id": DECISION["id"],
        "agent_id": DECISION["agent_id"],
        "pinned_model": text(300, empty="RL103"),
        "traffic_class": word(),
        "event_at": moment(),
        "lease": LEASE,
        "attempt_id": key(null=OK, other=OK),
        "metadata": METADATA,
        "seed": Rule(dict.fromkeys(BIGINT, OK)),
    },
    "start_attempt": {
        "tenant_id": TENANT,
        "id": key(),
        "model_slug": text(300, null="RL101", empty="RL101"),
        "attempt_id": key(null=OK, other=OK),
        "provider": text(300),
    },
    "fail_attempt": {
        "tenant_id": TENANT,
        "id": key(),
        "attempt_id": key(other="RL202"),
        "error_type": text(200, null="RL101", empty="RL101"),
        "error_message": text(),  # is cut
        "http_status": STATUS_CODE,
        "retry_after_ms": COUNT,
        "next": word(),
        "next_attempt_id": key(null=OK, other=OK),
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "cost_usd": money(),
        "latency_ms": amount(),
        "ttft_ms": amount(),
        "provider_response_id": text(500),
    },
    "complete_decision": {
        "tenant_id": TENANT,
        "id": key(),
        "outcome_status": word(
            null="RL101",
            rejected=Value("rejected", "RL102"),
            abandoned=Value("abandoned", "RL102"),
            routed=Value("routed", "RL102"),
        ),
        "attempt_id": key(null=OK, other="RL202"),
        "input_tokens": amount("RL101", zero=True),
        "output_tokens": amount("RL101", zero=True),
        "cache_read_input_tokens": COUNT,
        "cache_creation_input_tokens": COUNT,
        "reasoning_output_tokens": COUNT,
        "cost_usd": money(),
        "latency_ms": amount(),
        "ttft_ms": amount(),
        "http_status": STATUS_CODE,
        "error_type": text(
            200, null="RL101", empty="RL101", given={"outcome_status": "failed", "error_type": "x"}
        ),
        "error_message": text(given={"outcome_status": "failed", "error_type": "x"}),
        "provider_response_id": text(500),
        "response_model": text(300),
        "finish_reasons": REASONS,
        "decision_rule_override": word(given={"outcome_status": "failed", "error_type": "x"}),
    },
    "extend_lease": {"tenant_id": TENANT, "id": key(), "lease": LEASE},
    "record_outcome": {
        **DECISION,
        # the model called is that of the first attempt
        "candidates": Rule({**CANDIDATES.kinds, "slug too long": Value(["x" * 301], OK)}),
        "decision_rule": Rule(
            {**word().kinds, "none enrolled": Value("no_candidate_enrolled", "RL102")}
        ),
        "attempts": Rule(
            {
                # candidates to choose from, and nobody called: then why is it told?
                "null": "RL101",
                "json null": Value(JSON_NULL, "RL111", "RL101"),
                "array": "RL101",
                **dict.fromkeys(("number", "string", "boolean", "object", "huge"), "RL111"),
                **dict.fromkeys(("numbers", "nulls", "arrays", "nested", "objects"), "RL111"),
                "unknown field": Value([{**ALPHA, **FAILED, "colour": "blue"}], "RL111"),
                "a number, and no candidates": Value([5], "RL111"),
                "121": Value([{**ALPHA, **FAILED}] * 121, "RL503"),
                "succeeded, then failed": Value(
                    [{**ALPHA, **SUCCEEDED}, {**ALPHA, **FAILED}],
                    "RL111",
                ),
                "one id twice": Value(
                    [{"id": UUID["1970"], **ALPHA, **FAILED}] * 2,
                    "RL111",
                ),
                "ends before it starts": Value(
                    [
                        {
                            **ALPHA,
                            **FAILED,
                            "started_at": "2030-01-16 11:00+00",
                            "completed_at": "2030-01-16 10:00+00",
                        }
                    ],
                    "RL109",
                ),
            }
        ),
        "decision_rule_override": word(
            given={"attempts": None, "chosen_model_slug": "alpha"},
            null="RL101",  # chosen, not called, and no word of why
            called="",
        ),
    },
    "record_payload": {
        "tenant_id": TENANT,
        "id": key(),
        "attempt_id": key(other="RL202"),
        "request": PAYLOAD,
        "response": PAYLOAD,
    },
    "claim_judgements": {
        "tenant_id": text(200, empty="RL101"),  # null: of all tenants
        "judge": JUDGE,
        "judge_version": JUDGE,
        "limit": Rule(
            {
                **COUNT.kinds,
                "null": "RL101",
                "zero": "RL103",
                "1000": Value(1000, OK),
                "1001": Value(1001, "RL103"),
            }
        ),
        "lease": LEASE,
        "from": day("RL109"),
        "payloads": FLAG,
    },
    "renew_judgement": {**CLAIMED, "lease": LEASE},
    "release_judgement": {
        **CLAIMED,
        "error": text(empty="RL101"),  # is cut
        "delay": Rule({**span(zero=OK).kinds, "25 hours": Value("25 hours", "RL103")}),
    },
    "record_verdict": {
        "tenant_id": TENANT,
        "id": key(),
        "judge": JUDGE,
        "judge_version": JUDGE,
        "score": SCORE,
        "label": text(200, empty="RL101"),
        "rationale": text(20_000),
        "lease_token": Rule({**TOKEN.kinds, "null": OK}),
        "reward_source": word(withdrawn=Value("withdrawn", "RL102")),
        "judge_model": text(300, empty="RL101"),
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "cost_usd": money(),
    },
    "withdraw_verdicts": {
        "tenant_id": text(200, empty="RL101"),  # null: of all tenants
        "judge": JUDGE,
        "judge_version": JUDGE,
        "reason": text(2000, null="RL101", empty="RL101"),
        "model_slug": text(empty="RL101"),  # one that is none has no verdicts
        "from": day("RL109"),
        "to": day("RL109"),
    },
    "reinstate_verdicts": {
        "tenant_id": text(200, null="RL101", empty="RL101", odd="RL211"),
        "withdrawal_id": Rule({**dict.fromkeys(UUID, "RL211"), "null": "RL101"}),
    },
    "export_corpus": {
        "tenant_id": text(200, null="RL101", empty="RL101"),
        **corpus(OK),
        "payloads": FLAG,
        "after": Rule(dict.fromkeys(UUID, OK)),
        "limit": Rule(
            {
                **COUNT.kinds,
                "null": "RL101",
                "zero": "RL103",
                "100000": Value(100_000, OK),
                "100001": Value(100_001, "RL103"),
            }
        ),
    },
    # what leaves nothing over is refused
    "corpus_manifest": {
        "tenant_id": text(200, null="RL101", empty="RL101", odd="RL212"),
        **corpus("RL212"),
    },
    "reap": {
        "limit": Rule(
            {**COUNT.kinds, "null": "RL101", "zero": "RL103", "10001": Value(10001, "RL103")}
        ),
        "tenant_id": text(200, empty="RL101"),
    },
    "upsert": {
        **UPSERT,
        "rows": Rule(
            {**ROWS.kinds, "objects": "RL113", "10001 rows": Value([{}] * 100_001, "RL501")},
            called="",
        ),
        "columns": Rule(
            {**dict.fromkeys(WORDS, OK), **NO_NAMES}
        ),  # a row has others: it is refused
    },
    "upsert_from": {
        **UPSERT,
        "source": Rule(
            {**dict.fromkeys(RELATION, "RL112"), **dict.fromkeys(("null", "none"), "RL101")},
            called="",
        ),
        "columns": Rule({**dict.fromkeys(WORDS, "RL113"), **NO_NAMES, "null": OK}, called=""),
    },
    "plan_upsert": {
        **UPSERT_RULE,
        "target": UPSERT_TARGET,
        "columns": Rule({**dict.fromkeys(WORDS, "RL113"), **NO_NAMES}, called=""),
    },
    "persist_model_performance": {"rows": ROWS},
    "rollup_model_performance": {
        "from": day("RL109"),
        "to": day("RL109"),
        "tenant_id": text(200, empty="RL101"),
    },
    "model_performance_between": {
        "tenant_id": text(200, empty="RL101"),
        "from": day(OK, null="RL101", given={"to": DATE["last"]}),
        "to": day(OK, null="RL101", given={"from": DATE["first"]}),
        "task_type": text(),
    },
    "maintain": {"ahead": span(zero=OK)},
    "configure": {
        "settings": Rule({**dict.fromkeys(JSON, "RL107"), "object": OK, "huge": "RL107"}, called="")
    },
    "grant_tenant": {
        "role": Rule(
            {"null": "RL101", "empty": "RL203", "odd": "RL203", "huge": "RL203"}, called=""
        ),
        "tenant_id": text(200, null="RL101", empty="RL101"),
    },
    # to take back what nobody has is to do nothing
    "revoke_tenant": {
        "role": Rule({"null": "RL101", "empty": OK, "odd": OK, "huge": OK}),
        "tenant_id": text(null="RL101", empty="RL101"),
    },
    "unbind_role": {"role": Rule({"null": "RL101", "empty": OK, "odd": OK, "huge": OK})},
    "set_clock": {"now": moment(future=OK)},
    "set_policy": {
        "name": Rule(
            {
                "null": "RL101",
                "empty": "RL101",
                "odd": "RL103",  # it has blanks
                "huge": "RL108",
                "as long as allowed": Value("x" * 100, OK),
                "one longer": Value("ż" * 101, "RL108"),
            }
        ),
        "policy": Rule({**dict.fromkeys(JSON, "RL107"), "null": "RL101", "object": OK}, called=""),
    },
    "set_retry_policy": {
        "tenant_id": text(200, null="RL101"),
        "model_slug": text(300, null="RL101"),
        "policy": Rule({**dict.fromkeys(JSON, "RL107"), "object": OK}, called=""),
    },
    "set_budget": {
        "tenant_id": text(200, null="RL101", empty="RL101"),
        "name": text(100, null="RL101", empty="RL101"),
        "limit_usd": Rule({**money().kinds, "null": "RL101"}),
        "scope": word(null="RL102"),
        # that of a tenant has none
        "subject": text(null=OK, odd="RL103", huge="RL103"),
        "period": word(null="RL102"),
        "shards": Rule({**dict.fromkeys(INTEGER, "RL103"), "128": Value(128, OK)}),
    },
    "drop_budget": {
        "tenant_id": Rule(
            {**dict.fromkeys(TEXT, "RL210"), "null": "RL101", "empty": "RL101"}, called=""
        ),
        "name": Rule(
            {**dict.fromkeys(TEXT, "RL210"), "null": "RL101", "empty": "RL101"}, called=""
        ),
    },
    "score_pattern": {
        "pattern": Rule(
            {**dict.fromkeys(JSON, "RL107"), "null": "RL101", "object": OK, "huge": "RL108"}
        ),
        **YARDSTICK,
    },
    "score_patterns": {"rows": ROWS, **YARDSTICK},
    "persist_pattern_quality": {"rows": ROWS},
    "set_pattern_rules": {
        "rule_set": word(null="RL101"),
        "rules": Rule(
            {
                **dict.fromkeys(JSON, "RL107"),
                "null": "RL101",
                "array": OK,  # a rule set without node types
                "objects": "RL101",
            },
            called="",
        ),
    },
    "ensure_check": {
        "table": CONSTRAINED,
        "name": NAMED,
        "predicate": PREDICATE,
        "if_violated": IF_VIOLATED,
        "no_inherit": FLAG,
        "also_drop": Rule(
            {**dict.fromkeys(WORDS, OK), **dict.fromkeys(("null word", "two-dimensional"), "RL101")}
        ),
        **DECLARED,
        "dry_run": FLAG,
    },
    "ensure_not_null": {
        "table": CONSTRAINED,
        "column": Rule(
            {**dict.fromkeys(TEXT, "RL113"), **dict.fromkeys(("null", "empty"), "RL101")}, called=""
        ),
        "name": Rule({**NAMED.kinds, "null": OK}),
        "if_violated": IF_VIOLATED,
        **DECLARED,
        "dry_run": FLAG,
    },
    "ensure_unique": {**UNIQUE, "dry_run": FLAG},
    "unique_step": {
        **UNIQUE,
        "state": Rule({**dict.fromkeys(JSON, "RL107"), "null": "RL101", "object": OK, "huge": OK}),
    },
    "collapse_duplicates": {
        **COLLAPSE,
        "keep": Rule({**KEEP.kinds, "null": "RL101"}, called=""),
        "limit": Rule(
            {
                **dict.fromkeys(INTEGER, "RL103"),
                "null": "RL101",
                "1": Value(1, "RL103"),
                "2": Value(2, OK),
                "1000001": Value(1_000_001, "RL103"),
            }
        ),
        "repair_id": Rule({**dict.fromkeys(BIGINT, "RL206"), "null": OK}, called=""),
    },
    "declare_constraint": {
        "table": TABLE_NAME,
        "name": NAMED,
        "kind": Rule({**word(null="RL101").kinds, "empty": "RL101"}),
        "predicate": PREDICATE,
        "columns": Rule({**dict.fromkeys(WORDS, "RL102"), "null": OK}),
        "options": OPTIONS,
    },
    # to take back what is not declared is to do nothing
    "undeclare_constraint": {
        "table": Rule(
            {
                **TABLE_NAME.kinds,
                "a view": Value("routeledger.decisions", OK),
                "an index": Value("depot.goods_pkey", OK),
            },
            called="",
        ),
        "name": NAMED,
    },
    "constraint_states": MEANT,
    "plan_constraints": MEANT,
    "apply_constraints": {**MEANT, "only_validate": FLAG, "results": Rule(dict.fromkeys(JSON, OK))},
    "undo_constraint": {
        "table": CONSTRAINED,
        "name": Rule(
            {**NAMED.kinds, "odd": "RL208", "63 bytes": Value("x" * 63, "RL208")}, called=""
        ),
        "label": text(300, odd="RL208", empty="RL208", called=""),
        "rows": word(null="RL102"),
        **LOCKING,
        "strict": FLAG,
    },
    "undo_repair": {"id": REPAIR_ID, "force": FLAG, "reason": REASON, "dry_run": FLAG},
    "show_repair": {
        "id": REPAIR_ID,
        "limit": Rule(
            {
                **dict.fromkeys(INTEGER, "RL103"),
                "null": "RL101",
                "100000": Value(100_000, OK),
                "100001": Value(100_001, "RL103"),
            }
        ),
    },
    "repair_orphans": {**ORPHANS, "tenant_id": text(200, empty="RL101")},
    "repair_orphans_in": {
        "outcomes": ORPHAN_TABLE,
        "inferences": ORPHAN_TABLE,
        "columns": Rule(
            {
                **dict.fromkeys(JSON, "RL107"),
                "object": OK,
                "an unknown side": Value({"colour": {}}, "RL107"),
                "no object": Value({"outcome": []}, "RL107"),
                "an unknown part": Value({"outcome": {"colour": "id"}}, "RL107"),
                "no name": Value({"outcome": {"id": 5}}, "RL107"),
                "no such column": Value({"outcome": {"id": "colour"}}, "RL113"),
                "a needed part is none": Value({"outcome": {"id": JSON_NULL}}, "RL113"),
                "no time": Value({"outcome": {"at": "id"}}, "RL113"),
                "no number": Value({"outcome": {"cost": "id"}}, "RL113"),
            },
            called="",
        ),
        **ORPHANS,
    },
    "uuid_v7_time": {"id": Rule(dict.fromkeys(UUID, OK))},
    "bound_tenants": {},
    "clock": {},
    "errors": {},
    "uuid_v7": {},
    "version": {},
}

# One attempt of a told story: the fields of routeledger.attempt_input.
TOLD: dict[str, Rule] = {
    "id": key(null=OK, other=OK),
    "model_slug": text(300, null="RL111", empty="RL111"),
    "provider": text(300),
    "status": text(null="RL111", empty="RL111", odd="RL111", huge="RL111"),
    "input_tokens": amount("RL111", zero=True),
    "output_tokens": amount("RL111", zero=True),
    "cache_read_input_tokens": COUNT,
    "cache_creation_input_tokens": COUNT,
    "reasoning_output_tokens": COUNT,
    "cost_usd": money(),
    "latency_ms": amount(),
    "ttft_ms": amount(),
    "http_status": STATUS_CODE,
    "error_type": text(200, null="RL111", empty="RL111", given=FAILED),
    "error_message": text(given=FAILED),
    "retry_after_ms": COUNT,
    "provider_response_id": text(500),
    "response_model": text(300),
    "finish_reasons": REASONS,
    "started_at": moment(),
    "completed_at": moment(),
}

# One row of import_models: the fields of routeledger.model_input.
CATALOG: dict[str, Rule] = {
    "model_slug": text(300, null="RL101", empty="RL101"),
    "provider": text(300, called=""),
    "brand_slug": text(300, called=""),
    "base_model": text(300, called=""),
    "mode": text(300, called=""),
    "valid_from": moment(past=OK, ancient=OK),
    "input_usd_per_mtok": money(),
    "output_usd_per_mtok": money(),
    "cache_read_usd_per_mtok": money(),
    "cache_creation_usd_per_mtok": money(),
    "max_input_tokens": Rule({**COUNT.kinds, "huge": OK}),
    "max_output_tokens": Rule({**COUNT.kinds, "huge": OK}),
    "deprecated_at": Rule({**moment(past=OK, future=OK, ancient=OK).kinds, "last": OK}),
    "q_prior": Rule({**amount().kinds, "2": Value(2.0, "RL103")}),
    "expected_latency_ms": amount(),
    "enrolled": Rule({"null": OK}),
    "source": text(300, called=""),
}

# Each setting: what fits its type and is out of range, and what does not fit.
SETTINGS: dict[str, tuple[list[Any], list[Any]]] = {
    "lease": (["0", "-1 second", "25 hours", "178000000 years"], ["soon", "", {}, [], True]),
    "id_window_past": (["0", "-1 day", "101 years"], ["soon", "", {}, []]),
    "id_window_future": (["0", "-1 day", "31 days"], ["soon", "", {}, []]),
    "event_at_max_age": (["0", "-1 day", "101 years"], ["soon", "", {}, []]),
    "partition_width": (["", "year", "WEEK", {}, [], 7, True], []),
    "partitions_ahead": ([0, -1, 121, 2**31 - 1], ["many", "", 1.5, 2**31, {}, [], True]),
    "retry_attempts_per_model": ([0, -1, 11], ["many", "", 1.5, 2**31, {}, [], True]),
    "retry_max_attempts": ([0, -1, 1001], ["many", "", 1.5, 2**31, {}, [], True]),
    "retry_base": (["-1 second", "2 hours"], ["soon", "", {}, []]),
    "retry_cap": (["-1 second", "25 hours"], ["soon", "", {}, []]),
    "retry_jitter": ([-0.1, 1.1, "NaN", "Infinity", "-Infinity"], ["much", "", {}, [], True]),
    "implausible_factor": ([0, -1, 1.9, 1001, "NaN", "Infinity"], ["much", "", {}, [], True]),
    "implausible_usd_per_mtok": ([0, -1, 1e10, "NaN", "Infinity"], ["much", "", {}, [], True]),
    "rollup_look_back": (["-1 second", "11 years"], ["soon", "", {}, []]),
    "repair_retention": (["0", "-1 day", "101 years"], ["soon", "", {}, []]),
    "cooldown_failures": ([0, -1, 1001], ["many", "", 1.5, 2**31, {}, [], True]),
    "cooldown_window": (["0", "-1 second", "25 hours"], ["soon", "", {}, []]),
    "cooldown": (["-1 second", "25 hours"], ["soon", "", {}, []]),
    "cooldown_cap": (["-1 second", "25 hours"], ["soon", "", {}, []]),
    "cooldown_scope": (["", "none", "ALL", {}, [], 7, True], []),
    "probe_lease": (["0", "-1 second", "25 hours"], ["soon", "", {}, []]),
    "assumed_cost_usd": ([-1, 1e10, "NaN", "Infinity"], ["much", "", {}, [], True]),
    "budget_retention": (["0", "-1 day", "101 years"], ["soon", "", {}, []]),
    "judge_lease": (["0", "-1 second", "25 hours"], ["soon", "", {}, [], True]),
    "judge_max_attempts": ([0, -1, 1001], ["many", "", 1.5, 2**31, {}, [], True]),
    "judge_retry_delay": (["-1 second", "25 hours"], ["soon", "", {}, []]),
    "judge_look_every": (["-1 second", "25 hours"], ["soon", "", {}, []]),
    "judge_look_back": (["-1 second", "11 years"], ["soon", "", {}, []]),
    "mono_zero_n": ([0, 1, -1, 1_000_001], ["many", "", 1.5, 2**31, {}, [], True]),
}


# Something to upsert into.
SHELF = """
create table public.shelf (k integer primary key, n integer);
create table public.staged_shelf as select 1 as k, 1 as n;
create type public.pair as (k integer, n integer);
grant select, insert, update on public.shelf, public.staged_shelf to test_admin"""

# Tables of the administrator's own, in which each key is there twice, and orphans.
DEPOT = """
create schema depot authorization test_admin;
set role test_admin;
create table depot.goods (
  id integer primary key, k integer, n integer, v text, at timestamp with time zone, doc json);
insert into depot.goods select i, i % 5, i, 'v' from generate_series(1, 10) i;
create table depot.parts (id integer primary key, k integer, n integer);
insert into depot.parts select i, i % 5, i from generate_series(1, 10) i;
create table depot.outcomes (
  id text primary key, model_slug text, inference_id text, created_at timestamp with time zone,
  cost_usd numeric);
create table depot.inferences (
  id text primary key, model_slug text, created_at timestamp with time zone, cost_usd numeric,
  status text);
insert into depot.outcomes values ('o', 'alpha', null, '2026-01-01 00:00+00', 1);
insert into depot.inferences values ('i', 'alpha', '2026-01-01 00:00+00', 1, 'succeeded');
reset role;
create foreign data wrapper nowhere;
create server nowhere foreign data wrapper nowhere;
create foreign table depot.abroad (k integer, n integer) server nowhere;
alter foreign table depot.abroad owner to test_admin;
grant all on database {database} to test_admin
"""

# -- the world in which they are called ---------------------------------------------------------


GOODS = {"table": "depot.goods"}
COLLAPSED = {"columns": ["k"], "keep": "greatest n"}


# They commit: what they do cannot be taken back, and here they have nothing to do.
PROCEDURES = {"apply_constraints"}


@dataclass
class World:
    """A ledger with decisions to act upon, and an administrator whose clock stands still."""

    database: Database
    conn: Connection
    routines: dict[str, dict[str, str]]
    attempt_fields: dict[str, str]
    model_fields: dict[str, str]
    # three decisions of each sort, with their first attempts: the one acted upon, two neighbours
    open: list[Row]
    held: list[Row]
    # three that succeeded, with the tokens under which a judge has them
    judged: list[Row]
    # of the verdicts on another, which is labelled all the same
    withdrawal: str
    # that has collapsed the rows of depot.parts
    repair: int

    def row(self, routine: str, n: int = 0) -> Row:
        """A call that is right in every way; `n` tells three of them apart."""
        decision = self.held[n] if routine == "start_attempt" else self.open[n]
        keys = {"tenant_id": "acme", "id": decision["id"]}
        new = {"tenant_id": "acme", "id": str(uuid7()), "candidates": ["alpha", "beta"]}
        attempt = decision["attempt_id"]
        usage = {"input_tokens": 10, "output_tokens": 5}
        told = {"model_slug": "alpha", "status": "succeeded", **usage}
        rows: dict[str, Row] = {
            "insert_decision": {**new, "attempt_id": str(uuid7())},
            "rank_candidates": {"tenant_id": "acme"},
            "replay_policy": {"tenant_id": "acme"},
            "route": {"tenant_id": "acme", "id": str(uuid7()), "attempt_id": str(uuid7())},
            "start_attempt": {**keys, "model_slug": "alpha", "attempt_id": str(uuid7())},
            "fail_attempt": {
                **keys,
                "attempt_id": attempt,
                "error_type": "timeout",
                "next_attempt_id": str(uuid7()),
            },
            "complete_decision": {
                **keys,
                "attempt_id": attempt,
                "outcome_status": "succeeded",
                **usage,
            },
            "extend_lease": {**keys, "lease": "1 hour"},
            "record_outcome": {**new, "attempts": [{"id": str(uuid7()), **told}]},
            "record_payload": {
                **keys,
                "attempt_id": attempt,
                "request": {"q": 1},
                "response": {"a": 1},
            },
            "claim_judgements": {"tenant_id": "acme", "judge": "new", "judge_version": "1"},
            "renew_judgement": {**self.judged[n], "lease": "1 hour"},
            "release_judgement": {**self.judged[n], "error": "no answer"},
            "record_verdict": {
                **{k: v for k, v in self.judged[n].items() if k != "lease_token"},
                "judge": "new",
                "score": 0.5,
            },
            "withdraw_verdicts": {
                "tenant_id": "acme",
                "judge": "kept",
                "judge_version": "1",
                "reason": "why",
            },
            "reinstate_verdicts": {"tenant_id": "acme", "withdrawal_id": self.withdrawal},
            "export_corpus": {"tenant_id": "acme"},
            "corpus_manifest": {"tenant_id": "acme"},
            "estimate_policy": {"tenant_id": "acme"},
            "reap": {"limit": 10, "tenant_id": "nobody"},
            "upsert": {"target": "public.shelf", "rows": [{"k": 1, "n": 1}]},
            "upsert_from": {"target": "public.shelf", "source": "public.staged_shelf"},
            "plan_upsert": {"target": "public.shelf", "columns": ["k", "n"]},
            "persist_model_performance": {"rows": []},
            "rollup_model_performance": {"tenant_id": "nobody"},
            "model_performance_between": {
                "tenant_id": "acme",
                "from": "2030-01-01",
                "to": "2030-01-16",
            },
            "maintain": {"ahead": "1 day"},
            "configure": {"settings": {}},
            "grant_tenant": {"role": "test_writer", "tenant_id": "acme"},
            "revoke_tenant": {"role": "test_writer", "tenant_id": "acme"},
            "unbind_role": {"role": "test_writer"},
            "set_clock": {"now": NOON.isoformat()},
            "set_policy": {"name": "own", "policy": {}},
            "set_retry_policy": {"tenant_id": "acme", "model_slug": "", "policy": {}},
            "set_budget": {"tenant_id": "acme", "name": "own", "limit_usd": "1"},
            "drop_budget": {"tenant_id": "acme", "name": "kept"},
            "score_pattern": {"pattern": {"code": "x = 1"}},
            "score_patterns": {"rows": []},
            "persist_pattern_quality": {"rows": []},
            "set_pattern_rules": {"rule_set": "own", "rules": [{"node_type": "Step"}]},
            "ensure_check": {**GOODS, "name": "goods_n_check", "predicate": "n > 0"},
            "ensure_not_null": {**GOODS, "column": "n"},
            "ensure_unique": {**GOODS, **COLLAPSED, "name": "goods_k_key"},
            "unique_step": {**GOODS, **COLLAPSED, "name": "goods_k_key"},
            "collapse_duplicates": {**GOODS, **COLLAPSED},
            "declare_constraint": {
                **GOODS,
                "name": "goods_n_check",
                "kind": "check",
                "predicate": "n > 0",
            },
            "undeclare_constraint": {**GOODS, "name": "goods_v_check"},
            "constraint_states": {**GOODS, "name": "goods_v_check"},
            "plan_constraints": {**GOODS, "name": "goods_v_check"},
            "apply_constraints": {**GOODS, "name": "goods_v_check"},
            "undo_constraint": {"table": "depot.parts", "name": "parts_k_key"},
            "undo_repair": {"id": self.repair},
            "show_repair": {"id": self.repair},
            "repair_orphans": {"dry_run": False},
            "repair_orphans_in": {
                "outcomes": "depot.outcomes",
                "inferences": "depot.inferences",
                "dry_run": False,
            },
            "uuid_v7_time": {"id": str(uuid7())},
            "import_models": {
                "model_slug": f"gamma-{n}",
                "base_model": f"gamma-{n}",
                "valid_from": "2029-01-01",
                "input_usd_per_mtok": 1,
                "output_usd_per_mtok": 2,
            },
        }
        return rows[routine]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever is done inside is taken back; the clock stays where it was."""
        with self.conn.transaction(force_rollback=True):
            yield

    def digest(self) -> str:
        return digest(self.conn)

    def call(self, routine: str, row: Row) -> Answer:
        """The single form, or any routine that has no set form."""
        types = self.routines[routine]
        if routine in SET_FORMS:
            return single(self.conn, routine, types, row)
        try:
            if routine in PROCEDURES:
                rows = rows_of(self.conn, routine, types, row, "call")
            else:
                with self.conn.transaction():
                    rows = rows_of(self.conn, routine, types, row)
        except psycopg.Error as error:
            return refusal(error)
        return Answer("accepted", values={"rows": rows})


def stock(conn: Connection) -> int:
    """A constraint that is declared and there, and a repair, whose id is returned."""
    conn.execute("set client_min_messages = warning")
    declare = "select routeledger.declare_constraint('depot.goods', 'goods_v_check', 'check', %s)"
    conn.execute(declare, ["v <> ''"])
    conn.execute("call routeledger.apply_constraints('depot.goods')")
    row = conn.execute(
        """select (detail -> 'repair_id')::bigint
           from routeledger.ensure_unique('depot.parts', 'parts_k_key', '{k}', 'greatest n')"""
    ).fetchone()
    assert row is not None
    return int(row[0])


def judge(conn: Connection, types: Mapping[str, Mapping[str, str]]) -> tuple[list[Row], str]:
    """Three successes that a judge has claimed, after one that is labelled; and the id of the
    withdrawal of another judge's verdict on that one."""

    def made(routine: str, row: Row) -> None:
        assert not single(conn, routine, types[routine], row).refused

    for _ in range(4):
        keys = {"tenant_id": "acme", "id": str(uuid7())}
        made("insert_decision", {**keys, "candidates": ["alpha"]})
        usage = {"input_tokens": 1, "output_tokens": 1}
        made("complete_decision", {**keys, "outcome_status": "succeeded", **usage})
    for name in ("kept", "wrong"):
        verdict = {**keys, "judge": name, "judge_version": "1", "score": 1.0}
        made("record_verdict", verdict)
    (withdrawn,) = conn.execute(
        "select withdrawal_id::text from routeledger.withdraw_verdicts('acme', 'wrong', '1', 'why')"
    ).fetchall()
    claimed = conn.execute(
        "select id::text, lease_token::text from routeledger.claim_judgements('acme', 'held', '1', 3)"
    ).fetchall()
    held = {"tenant_id": "acme", "judge": "held", "judge_version": "1"}
    return [{**held, "id": id_, "lease_token": token} for id_, token in claimed], withdrawn[0]


@pytest.fixture(scope="module")
def world(server: Any, template: str) -> Iterator[World]:
    database = Database(server, server.create_database(template))
    with database.connect() as owner, database.connect("admin") as conn:
        # as text: Python has no year 0 and no year 10000
        conn.adapters.register_loader("timestamptz", TextLoader)
        owner.execute(DIGEST)
        owner.execute(SHELF)
        owner.execute(DEPOT.format(database=database.name).encode())
        set_clock(conn, NOON)
        conn.execute("""select routeledger.configure('{"retry_jitter": 0}')""")
        conn.execute("select routeledger.maintain()")
        types = public_routines(owner)
        repair = stock(conn)
        decisions = []
        for n in range(6):
            row = {
                "tenant_id": "acme",
                "id": str(uuid7()),
                "attempt_id": str(uuid7()),
                "candidates": ["alpha", "beta"],
            }
            assert not single(conn, "insert_decision", types["insert_decision"], row).refused
            decisions.append(row)
            if n >= 3:
                held = {**row, "error_type": "x", "next": "hold"}
                del held["candidates"]
                assert not single(conn, "fail_attempt", types["fail_attempt"], held).refused
        judged, withdrawal = judge(conn, types)
        yield World(
            database,
            conn,
            types,
            fields_of(owner, "attempt_input"),
            fields_of(owner, "model_input"),
            decisions[:3],
            decisions[3:],
            judged,
            withdrawal,
            repair,
        )
    server.drop_database(database.name)


# -- the checks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    value: Any
    verdict: Verdict
    set_verdict: Verdict


def cases(rule: Rule, kind: str) -> list[Case]:
    """The values that a rule judges: each kind of the type, and the rule's own."""
    values = KINDS[kind]
    assert set(values) <= set(rule.kinds), f"no verdict on {sorted(set(values) - set(rule.kinds))}"
    found = []
    for name, verdict in rule.kinds.items():
        if isinstance(verdict, Value):
            found.append(Case(name, verdict.value, verdict.verdict, verdict.set_verdict))
        else:
            found.append(Case(name, values[name], verdict, verdict))
    return found


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 200 else f"{shown[:200]}…"


def complaint(
    answer: Answer, verdict: Verdict, parameter: str, messages: Mapping[str, tuple[str, str]]
) -> str | None:
    """What is wrong with an answer, or None."""
    if answer.code != verdict:
        said = f"{answer.code} {answer.detail}" if answer.code else answer.status
        return f"{said}, not {verdict or 'accepted'}"
    if answer.code is None:
        return None
    message, hint = messages[answer.code]
    if answer.code == "RL204":  # says what to call
        hint = answer.hint or ""
    if (answer.message, answer.hint) != (message, hint):
        return f"{answer.code} says {answer.message!r} {answer.hint!r}"
    if not isinstance(answer.detail, dict) or not answer.detail:
        return f"{answer.code} has the detail {answer.detail!r}"
    if answer.code.startswith("RL1") and parameter:
        named = answer.detail.get("parameter")
        if named != parameter:
            return f"{answer.code} blames {named!r}: {answer.detail}"
    return None


@pytest.fixture(scope="module")
def messages(world: World) -> dict[str, tuple[str, str]]:
    rows = world.conn.execute("select code, message, hint from routeledger.errors()").fetchall()
    return {code: (message, hint) for code, message, hint in rows}


def check_single(
    world: World,
    call: Callable[[Any], Answer],
    tried: Sequence[Case],
    parameter: str,
    messages: Mapping[str, tuple[str, str]],
    commits: bool = False,
) -> list[str]:
    """Every value on its own; what is refused changed nothing, what is accepted is taken back."""
    wrong = []
    before = world.digest()
    for case in tried:
        try:
            if case.verdict is OK and not commits:
                with world.undone():
                    answer = call(case.value)
                set_clock(world.conn, NOON)
            else:
                answer = call(case.value)
        except (psycopg.Error, AssertionError) as error:
            wrong.append(f"{case.name} {short(case.value)}: {type(error).__name__} {error}")
            continue
        found = complaint(answer, case.verdict, parameter, messages)
        if found:
            wrong.append(f"{case.name} {short(case.value)}: {found}")
    if world.digest() != before:
        wrong.append("something was changed")
    return wrong


def check_set(
    world: World,
    routine: str,
    bad_row: Callable[[Any], Row],
    tried: Sequence[Case],
    parameter: str,
    messages: Mapping[str, tuple[str, str]],
) -> list[str]:
    """All refused values in one batch, between good neighbours; each accepted one in its own."""
    form = SET_FORMS.get(routine, routine)
    good = [world.row(routine, 1), world.row(routine, 2)]
    with world.undone():
        assert [a.status for a in many(world.conn, form, good)] == ["accepted"] * 2
        expected = world.digest()
    wrong = []

    def send(batch: Sequence[Case]) -> None:
        rows = [good[0], *(bad_row(case.value) for case in batch), good[1]]
        with world.undone():
            answers = many(world.conn, form, rows)
            after = world.digest()
        for answer in (answers[0], answers[-1]):
            if answer.status != "accepted":
                wrong.append(f"a good neighbour was {answer}")
        for case, answer in zip(batch, answers[1:-1], strict=True):
            found = complaint(answer, case.set_verdict, parameter, messages)
            if found:
                wrong.append(f"set form, {case.name} {short(case.value)}: {found}")
        if all(case.set_verdict is not OK for case in batch) and after != expected:
            wrong.append("the refused rows changed something")

    refused = [case for case in tried if case.set_verdict is not OK]
    for batch in [refused, *([case] for case in tried if case.set_verdict is OK)]:
        try:
            send(batch)
        except (psycopg.Error, AssertionError) as error:
            names = ", ".join(case.name for case in batch)
            wrong.append(f"set form, {names}: {type(error).__name__} {error}")
    return wrong


def report(wrong: list[str]) -> None:
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


PARAMETERS = [(routine, name) for routine, rules in TABLE.items() for name in rules]


@pytest.mark.parametrize(("routine", "parameter"), PARAMETERS, ids=lambda x: x)
def test_a_parameter(
    world: World, messages: dict[str, tuple[str, str]], routine: str, parameter: str
) -> None:
    rule = TABLE[routine][parameter]
    kind = world.routines[routine][parameter]
    tried = cases(rule, kind)
    if kind == "interval" and world.database.server.major >= 17:
        tried += [
            Case("infinite", "infinity", "RL103", "RL103"),
            Case("minus infinite", "-infinity", "RL103", "RL103"),
        ]

    def row(value: Any) -> Row:
        made = {**world.row(routine), **rule.given}
        if made.get("outcome_status") == "failed":
            made = {k: v for k, v in made.items() if k not in ("input_tokens", "output_tokens")}
        return {**made, parameter: value}

    called = parameter if rule.called is None else rule.called
    wrong = check_single(
        world,
        lambda v: world.call(routine, row(v)),
        tried,
        called,
        messages,
        commits=routine in PROCEDURES,
    )
    if routine in SET_FORMS:
        wrong += check_set(world, routine, row, tried, called, messages)
    report(wrong)


@pytest.mark.parametrize("name", TOLD)
def test_a_field_of_a_told_attempt(
    world: World, messages: dict[str, tuple[str, str]], name: str
) -> None:
    rule = TOLD[name]
    tried = [c for c in cases(rule, world.attempt_fields[name]) if c.value is not JSON_NULL]

    def row(value: Any) -> Row:
        made = world.row("record_outcome")
        attempt = {**made["attempts"][0], **rule.given}
        if attempt["status"] == "failed":
            del attempt["input_tokens"], attempt["output_tokens"]
        attempt[name] = value
        # a failure before it, so that the fault is found wherever it stands
        first = {"model_slug": "alpha", **FAILED}
        return {**made, "attempts": [first, attempt]}

    wrong = check_single(world, lambda v: world.call("record_outcome", row(v)), tried, "", messages)
    wrong += check_set(world, "record_outcome", row, tried, "", messages)
    unfit = [
        Case(f"unfit {n}", value, "RL111", "RL111")
        for n, value in enumerate(UNFIT[world.attempt_fields[name]])
    ]
    wrong += check_single(
        world, lambda v: world.call("record_outcome", row(v)), unfit, "", messages
    )
    wrong += check_set(world, "record_outcome", row, unfit, "", messages)
    report(wrong)


@pytest.mark.parametrize("name", CATALOG)
def test_a_field_of_the_catalog(
    world: World, messages: dict[str, tuple[str, str]], name: str
) -> None:
    rule = CATALOG[name]
    called = name if rule.called is None else rule.called
    report(
        check_set(
            world,
            "import_models",
            lambda value: {**world.row("import_models"), name: value},
            cases(rule, world.model_fields[name]),
            called,
            messages,
        )
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting(world: World, messages: dict[str, tuple[str, str]], name: str) -> None:
    out_of_range, unfit = SETTINGS[name]
    values = [("RL103", v) for v in out_of_range] + [("RL107", v) for v in unfit]
    tried = [Case(code, v, code, code) for code, v in values]
    tried.append(Case("null", JSON_NULL, "RL101", "RL101"))

    def change(value: Any) -> Answer:
        # a change that would be right on its own is not made either
        return world.call("configure", {"settings": {"partitions_ahead": 7, name: value}})

    report(check_single(world, change, tried, "", messages))


def set_forms() -> list[str]:
    return [*SET_FORMS, "import_models"]


@pytest.mark.parametrize("routine", set_forms())
def test_the_rows_as_a_whole(
    world: World, messages: dict[str, tuple[str, str]], routine: str
) -> None:
    form = SET_FORMS.get(routine, routine)
    assert world.routines[form] == {"rows": "jsonb"}
    values: list[tuple[str, Any, Verdict]] = [
        ("null", None, "RL101"),
        ("json null", JSON_NULL, "RL107"),
        ("number", 5, "RL107"),
        ("string", "[]", "RL107"),
        ("boolean", True, "RL107"),
        ("object", world.row(routine), "RL107"),
        ("10001 rows", [{}] * 10_001, "RL501"),
        ("10001 good rows", [world.row(routine)] * 10_001, "RL501"),
        ("no rows", [], OK),
    ]
    tried = [Case(name, value, verdict, verdict) for name, value, verdict in values]

    def send(value: Any) -> Answer:
        answer = world.call(form, {"rows": value})
        assert answer.refused or answer.values == {"rows": []}
        return answer

    wrong = check_single(world, send, tried, "", messages)
    report(wrong)
    with world.undone():
        answers = many(world.conn, form, [{}] * 10_000)
    assert {answer.code for answer in answers} == {"RL101"}


@pytest.mark.parametrize("routine", set_forms())
def test_a_row_that_is_none(
    world: World, messages: dict[str, tuple[str, str]], routine: str
) -> None:
    good = world.row(routine)
    rows: list[tuple[str, Any, Verdict]] = [
        ("null", JSON_NULL, "RL107"),
        ("number", 5, "RL107"),
        ("string", json.dumps({"a": 1}), "RL107"),
        ("boolean", False, "RL107"),
        ("array", [], "RL107"),
        ("a row in an array", [good], "RL107"),
        ("empty", {}, "RL101"),
        ("unknown field", {**good, "colour": "blue"}, "RL107"),
        ("unknown field of a long, odd name", {**good, "\u202e \"'%s" * 500: 1}, "RL107"),
        ("unknown field without a name", {**good, "": 1}, "RL107"),
        ("unknown field that is null", {**good, "colour": JSON_NULL}, "RL107"),
        ("a parameter's own name", {f"p_{k}": v for k, v in good.items()}, "RL107"),
        ("capitals", {k.upper(): v for k, v in good.items()}, "RL107"),
    ]
    tried = [Case(name, row, verdict, verdict) for name, row, verdict in rows]
    report(check_set(world, routine, lambda row: row, tried, "", messages))


@pytest.mark.parametrize("routine", set_forms())
def test_a_value_that_does_not_fit_its_type(
    world: World, messages: dict[str, tuple[str, str]], routine: str
) -> None:
    types = world.routines[routine] if routine in SET_FORMS else world.model_fields
    tried = [
        Case(name, {**world.row(routine), name: value}, "RL107", "RL107")
        for name, kind in types.items()
        for value in UNFIT[kind]
    ]
    report(check_set(world, routine, lambda row: row, tried, "", messages))


@pytest.mark.parametrize("nothing", ["nothing", "json null"])
def test_a_payload_of_nothing(
    world: World, messages: dict[str, tuple[str, str]], nothing: str
) -> None:
    keys = world.row("record_payload")
    del keys["request"], keys["response"]
    if nothing == "nothing":
        empty = {**keys, "request": None, "response": None}
        tried = [Case("absent", keys, "RL101", "RL101"), Case("null", empty, "RL101", "RL101")]
    else:
        # in the single form, the JSON value null is a payload
        tried = [Case("json null", {**keys, "request": JSON_NULL}, OK, "RL101")]
    wrong = check_single(
        world, lambda row: world.call("record_payload", row), tried, "request", messages
    )
    wrong += check_set(world, "record_payload", lambda row: row, tried, "request", messages)
    report(wrong)


# -- another's tenant -------------------------------------------------------------------------

# Administrators' routines take a tenant as their object.
ABOUT_TENANTS = {"grant_tenant", "revoke_tenant"}


# What only they may call, and what judges may and writers may not.
OF_ADMINS = {
    "repair_orphans",
    "set_retry_policy",
    "set_budget",
    "drop_budget",
    "withdraw_verdicts",
    "reinstate_verdicts",
}
OF_JUDGES = {
    "claim_judgements",
    "renew_judgement",
    "release_judgement",
    "export_corpus",
    "corpus_manifest",
}


def takes_tenant() -> list[str]:
    return [r for r, rules in TABLE.items() if "tenant_id" in rules and r not in ABOUT_TENANTS]


@pytest.fixture
def bound(world: World, routine: str) -> Iterator[Connection]:
    """One who may call the routine and is bound to another tenant than the one acted upon."""
    role = "admin" if routine in OF_ADMINS else "judge" if routine in OF_JUDGES else "writer"
    with world.database.connect() as owner, world.database.connect(role) as conn:
        owner.execute(
            "select routeledger.grant_tenant(%s::text::name, 'elsewhere')", [f"test_{role}"]
        )
        yield conn
        owner.execute("select routeledger.unbind_role(%s::text::name)", [f"test_{role}"])


@pytest.mark.parametrize("routine", takes_tenant())
def test_a_bound_role_and_another_tenant(
    world: World, messages: dict[str, tuple[str, str]], bound: Connection, routine: str
) -> None:
    before = world.digest()
    row = world.row(routine)
    types = world.routines[routine]
    if routine not in SET_FORMS:
        with pytest.raises(psycopg.Error) as caught:
            rows_of(bound, routine, types, {**row, "tenant_id": "acme"})
        answers = [refusal(caught.value)]
    else:
        answers = [single(bound, routine, types, row)]
        batch = [row, row, {**row, "tenant_id": "ACME"}, {**row, "tenant_id": "acme "}]
        answers += many(bound, SET_FORMS[routine], batch)
    for answer in answers:
        assert complaint(answer, "RL110", "tenant_id", messages) is None
    assert world.digest() == before


# -- the table itself -------------------------------------------------------------------------


def test_the_table_has_every_routine_and_every_parameter(world: World) -> None:
    listed = {routine: set(rules) for routine, rules in TABLE.items()}
    listed |= {name: {"rows"} for name in (*SET_FORMS.values(), "import_models")}
    assert listed == {name: set(types) for name, types in world.routines.items()}


def test_the_table_has_every_field_and_every_setting(world: World) -> None:
    assert set(TOLD) == set(world.attempt_fields)
    assert set(CATALOG) == set(world.model_fields)
    settings = world.database.value("select routeledger.configure('{}')")
    assert set(SETTINGS) == set(settings)
