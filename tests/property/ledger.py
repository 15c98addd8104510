"""What the property tests share: the public routines as the catalogue lists them, a call in its
single form or its set form with one kind of answer for both, and a digest of all that is stored.

A row is a dict of parameters without their `p_`, with Python values. What is absent is left to the
routine's default.
"""

from __future__ import annotations

import json
import math
import os
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

Row = dict[str, Any]
Connection = psycopg.Connection[Any]

# The ledger's clock stands still here until a test moves it.
NOON: Final = datetime(2030, 1, 16, 12, tzinfo=timezone.utc)

THOROUGH: Final = "thorough" in (
    os.environ.get("ROUTELEDGER_HYPOTHESIS"),
    os.environ.get("HYPOTHESIS_PROFILE"),
)

# single form to set form; extend_lease to extend_leases, and so on
SET_FORMS: Final = {
    name: f"{name}s"
    for name in (
        "insert_decision",
        "route",
        "start_attempt",
        "fail_attempt",
        "complete_decision",
        "extend_lease",
        "record_outcome",
        "record_payload",
        "record_verdict",
        "renew_judgement",
        "release_judgement",
    )
}


class JsonNull:
    """The JSON value null where SQL's NULL would mean an absent argument."""

    def __repr__(self) -> str:
        return "json null"


JSON_NULL: Final = JsonNull()


@dataclass(frozen=True)
class Answer:
    """What a call said, whichever form it had."""

    status: str
    code: str | None = None
    message: str | None = None
    detail: Any = None
    hint: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        return self.status == "refused"


class NotOursError(AssertionError):
    """A routine let an error out that is not one of the ledger's."""


def uuid7(at: datetime = NOON, rng: random.Random | None = None) -> uuid.UUID:
    """A UUID version 7 of that millisecond."""
    rng = rng or random.Random()
    millis = round(at.timestamp() * 1000)
    value = millis << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
    return uuid.UUID(int=value)


def public_routines(conn: Connection) -> dict[str, dict[str, str]]:
    """Each routine for callers, with its parameters (without `p_`) and their SQL types."""
    rows = conn.execute(
        """
        select p.proname, a.name, format_type(a.type, null)
        from pg_proc p
        left join lateral unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[])
          with ordinality a (name, type, n) on true
        where p.pronamespace = 'routeledger'::regnamespace and p.proname not like '\\_%'
        order by p.proname, a.n
        """
    ).fetchall()
    found: dict[str, dict[str, str]] = {}
    for name, parameter, kind in rows:
        found.setdefault(name, {})
        if parameter is not None:
            found[name][parameter.removeprefix("p_")] = kind
    return found


def fields_of(conn: Connection, type_name: str) -> dict[str, str]:
    """The attributes of a composite type of the ledger, with their SQL types."""
    rows = conn.execute(
        """
        select a.attname, format_type(a.atttypid, null)
        from pg_attribute a
        where a.attrelid = (select t.typrelid from pg_type t where t.oid = %s::regtype)
          and a.attnum > 0 and not a.attisdropped
        order by a.attnum
        """,
        [f"routeledger.{type_name}"],
    ).fetchall()
    return dict(rows)


def as_json(value: Any) -> Any:
    """The value as it stands in a row of a set form."""
    if value is JSON_NULL:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_json(v) for v in value]
    return value


def _argument(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "jsonb":
        return Jsonb(as_json(value))
    return value


def refusal(error: psycopg.Error) -> Answer:
    """The answer that an exception stands for; any other SQLSTATE is a failure of the test."""
    if not (error.sqlstate or "").startswith("RL"):
        msg = f"{error.sqlstate} {error}"
        raise NotOursError(msg) from error
    detail = error.diag.message_detail
    return Answer(
        "refused",
        error.sqlstate,
        error.diag.message_primary,
        json.loads(detail) if detail else None,
        error.diag.message_hint,
    )


def rows_of(
    conn: Connection,
    routine: str,
    types: Mapping[str, str],
    row: Mapping[str, Any],
    verb: str = "select * from",
) -> list[Row]:
    """The rows that a routine returns; raises what it raises. A procedure's verb is call."""
    query = sql.SQL(f"{verb} routeledger.{{}}({{}})").format(
        sql.Identifier(routine),
        sql.SQL(", ").join(
            sql.SQL("{} => {}::{}").format(
                sql.Identifier(f"p_{name}"),
                sql.Placeholder(name),
                sql.SQL(types[name]),
            )
            for name in row
        ),
    )
    arguments = {name: _argument(value, types[name]) for name, value in row.items()}
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, arguments).fetchall()


def single(
    conn: Connection, routine: str, types: Mapping[str, str], row: Mapping[str, Any]
) -> Answer:
    """One call of a single form, in a transaction or savepoint of its own."""
    try:
        with conn.transaction():
            found = rows_of(conn, routine, types, row)
    except psycopg.Error as error:
        return refusal(error)
    assert len(found) == 1, found
    values = dict(found[0])
    created = values.pop("created", True)
    return Answer("accepted" if created else "replayed", values=values)


def many(conn: Connection, routine: str, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """One call of a set form (or import_models), in a transaction or savepoint of its own."""
    document = [as_json(row) for row in rows]
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        query = sql.SQL("select * from routeledger.{}(p_rows => %s)").format(
            sql.Identifier(routine)
        )
        found = cursor.execute(query, [Jsonb(document)]).fetchall()
    assert [row.pop("ord") for row in found] == list(range(1, len(rows) + 1))
    answers = []
    for row in found:
        head = {key: row.pop(key) for key in ("status", "code", "message", "detail", "hint")}
        assert head["status"] in {"accepted", "replayed", "refused"}
        assert (head["status"] == "refused") == (head["code"] is not None), head
        if head["status"] == "refused" and routine != "import_models":
            assert set(row.values()) == {None}, row
        answers.append(Answer(**head, values=row))
    return answers


def set_clock(conn: Connection, at: datetime) -> None:
    """The time that this session believes in; for the superuser's and admin's sessions."""
    conn.execute("select routeledger.set_clock(%s)", [at])


# Made by the superuser, it shows any session whether anything at all has changed. (The catalog
# dates its rows by the real clock.)
DIGEST = """
create function public.digest() returns text
language plpgsql security definer as $$
declare
  v_table regclass;
  v_rows text;
  v_all text := '';
begin
  for v_table in
    select c.oid::regclass
    from pg_class c
    where c.relnamespace = 'routeledger'::regnamespace and c.relkind in ('r', 'p')
    order by c.relispartition, c.relname
  loop
    v_all := v_all || v_table::text || ' ';
    if not (select c.relispartition from pg_class c where c.oid = v_table) then
      execute format(
        'select count(*) || '' '' || coalesce(md5(string_agg(x, ''|'' order by x)), '''')'
        ' from (select (to_jsonb(t) - %L::text[])::text as x from %s t) t',
        case when v_table::text ~ 'model' then '{created_at}' else '{}' end, v_table) into v_rows;
      v_all := v_all || v_rows || ' ';
    end if;
  end loop;
  return v_all;
end
$$;
grant execute on function public.digest() to public;
"""


def digest(conn: Connection) -> str:
    """Row counts and checksums of all tables of the ledger, and the names of its partitions."""
    row = conn.execute("select public.digest()").fetchone()
    assert row is not None
    return str(row[0])
