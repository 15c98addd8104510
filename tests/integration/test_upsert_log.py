"""What an upsert leaves in the log: one line a call, which is a warning when rows were duplicates."""

from __future__ import annotations

from tests.conftest import Database

ROWS = """[{"k": 1, "n": 1}, {"k": 2, "n": 1}, {"k": null}]"""
TWICE = """[{"k": 1, "n": 1}, {"k": 1, "n": 2}]"""


def test_one_line_a_call(db: Database) -> None:
    said: list[tuple[str | None, str | None]] = []
    db.execute('create table "T" (k integer primary key, n integer)')
    with db.connect() as conn:
        conn.add_notice_handler(lambda note: said.append((note.severity, note.message_primary)))
        for statement in (
            f"""select routeledger.upsert('"T"', '{ROWS}')""",
            f"""select routeledger.upsert('"T"', '{TWICE}', p_precedence => 'n')""",
            f"""select routeledger.upsert('"T"', '{ROWS}')""",
            """select routeledger.upsert('"T"', '[]')""",
            'create temp table s as select k, n from "T" union all select 1, 0',
            """select routeledger.upsert_from('"T"', 's', p_precedence => 'n')""",
        ):
            conn.execute(statement.encode())
    line = (
        'upsert into public."T": received {}, collapsed {}, inserted {}, updated {}, '
        "unchanged {}, refused {}"
    )
    assert said == [
        ("NOTICE", line.format(3, 0, 2, 0, 0, 1)),
        ("WARNING", line.format(2, 1, 0, 1, 0, 0)),
        ("NOTICE", line.format(3, 0, 0, 0, 2, 1)),
        ("NOTICE", line.format(0, 0, 0, 0, 0, 0)),
        ("WARNING", line.format(3, 1, 0, 0, 2, 0)),
    ]


def test_a_quiet_session_and_a_rollback(db: Database) -> None:
    """The counters hold what was committed, whoever was listening."""
    db.execute("create table t (k integer primary key, n integer)")
    with db.connect() as conn:
        conn.execute("set client_min_messages = error")
        with conn.transaction(force_rollback=True):
            conn.execute(f"select routeledger.upsert('t', '{ROWS}')".encode())
        conn.execute(f"select routeledger.upsert('t', '{TWICE}')".encode())
    assert db.execute(
        "select target, calls, calls_with_duplicates, received from routeledger.upsert_activity"
    ) == [("public.t", 1, 1, 2)]
