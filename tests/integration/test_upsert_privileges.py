"""Whoever plans an upsert runs nothing of his own as the owner of the schema."""

from __future__ import annotations

import pytest

from tests.conftest import Database

PLANS = [
    "select unique_index from routeledger.plan_upsert('public.p6', '{k,n}')",
    'select inserted from routeledger.upsert(\'public.p6\', \'[{"k": "a", "n": 1}]\')',
]


@pytest.mark.parametrize("plan", PLANS, ids=["plan_upsert", "upsert"])
def test_no_type_of_the_caller_stands_in_for_one_of_the_catalogue(db: Database, plan: str) -> None:
    db.execute("create table public.p6 (k text primary key, n int)")
    db.execute("grant select, insert, update on public.p6 to test_writer")
    with db.connect("writer") as conn:
        seen: list[str] = []
        conn.add_notice_handler(lambda d: seen.append(d.message_primary or ""))
        conn.execute(
            """create function pg_temp.spy(v pg_catalog.text) returns bool language plpgsql as
               $$ begin raise notice 'spy runs as %', current_user; return true; end $$"""
        )
        conn.execute("create domain pg_temp.text as pg_catalog.text check (pg_temp.spy(value))")
        conn.execute(plan)
        assert [said for said in seen if said.startswith("spy")] == []
