"""A client of the ledger that is killed, for test_clients.py.

    python -m tests.faults.client DSN

reads jobs from standard input, one a line, and runs each in a child of its own, forked so that
two hundred clients are quick to start. It says `started PID` and, when the child is gone,
`ended STATUS`. A job is JSON: the journal to report to, the tenant, a seed, how many stories to
tell, and where to die: `{"die": [story, unit, moment]}`, or null to be killed from outside.

The journal has a line for each unit of work before it is sent (`will`) and one after it is
acknowledged (`done`, with the answers); each is handed to the kernel before the client goes on, so
that it survives the client.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from typing import Any

import psycopg

from tests.books import Answer, Call, Connection, Unit, story

# before the unit is sent; its statement is sent, nothing is read; the server's answer is read, and
# told to nobody; it is told
MOMENTS = ("before", "sent", "answered", "told")
# in a transaction also: one statement is answered; COMMIT is sent
MOMENTS_OF_TRANSACTION = (*MOMENTS, "open", "commit")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def send(conn: Connection, statement: bytes) -> None:
    conn.pgconn.send_query(statement)
    while conn.pgconn.flush():
        pass


def receive(conn: Connection) -> list[Answer]:
    answers: list[Answer] = []
    while (result := conn.pgconn.get_result()) is not None:
        if result.status == psycopg.pq.ExecStatus.TUPLES_OK:
            answers += [json.loads(result.get_value(n, 0) or b"") for n in range(result.ntuples)]
        elif result.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise RuntimeError(result.error_message.decode())
    return answers


def ask(conn: Connection, one: Call | bytes, dead_when_sent: bool) -> list[Answer]:
    send(conn, one if isinstance(one, bytes) else one.text(conn))
    if dead_when_sent:
        die()
    return receive(conn)


def work(conn: Connection, unit: Unit, moment: str | None) -> list[Answer]:
    if len(unit.calls) == 1:
        return ask(conn, unit.calls[0], moment == "sent")
    ask(conn, b"begin", dead_when_sent=False)
    answers = []
    for n, one in enumerate(unit.calls):
        answers += ask(conn, one, moment == "sent" and n == len(unit.calls) - 1)
        if moment == "open":
            die()
    ask(conn, b"commit", moment == "commit")
    return answers


def client(dsn: str, job: dict[str, Any]) -> None:
    journal = os.open(job["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def report(**line: Any) -> None:
        os.write(journal, (json.dumps(line) + "\n").encode())

    rng = random.Random(job["seed"])
    # its backend is found by this name
    with psycopg.connect(dsn, autocommit=True, application_name=job["tenant"]) as conn:
        for number in range(job["stories"]):
            for index, unit in enumerate(story(job["tenant"], rng)):
                here = job["die"] is not None and job["die"][:2] == [number, index]
                moment = job["die"][2] if here else None
                if moment == "before":
                    die()
                report(will=unit.to_json())
                answers = work(conn, unit, moment)
                if moment == "answered":
                    die()
                report(done=answers)
                if moment == "told":
                    die()
    report(end=True)


def read_journal(path: str) -> tuple[list[Unit], bool]:
    """What a client wrote down, and whether it came to its end. A torn last line is none."""
    units: list[Unit] = []
    ended = False
    with open(path, encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            if "will" in entry:
                units.append(Unit.from_json(entry["will"]))
            elif "done" in entry:
                units[-1].answers = entry["done"]
            else:
                ended = True
    return units, ended


def main() -> None:
    dsn = sys.argv[1]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                client(dsn, json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(f"started {pid}", flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
