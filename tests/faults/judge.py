"""A judge that is killed, for test_judges.py.

    python -m tests.faults.judge DSN

reads jobs from standard input, one a line, forks a judge for each, and says its process id. A job is
JSON: the journal to report to, the judge and its version, a seed. A judge works until it is killed:
it claims a few outcomes, and answers most of them, one by one or together; now and then it renews a
claim, gives some back, forgets some, sleeps until they have run out and answers all the same, or says
a verdict twice.

The journal has a line for what it was given (`claim`), one for what it is about to say (`will`), and
one for each answer (`done`); each is handed to the kernel before the judge goes on, so that it
survives the judge. Anything that should not happen is a line `error`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.books import Answer, Call, Connection

LEASE = 1.0
# a claim that somebody else has got since, or has answered since
TOO_LATE = frozenset({"RL314", "RL402"})

Report = Callable[..., None]


def attempt(conn: Connection, routine: str, arguments: dict[str, Any]) -> Answer:
    """The answer of a single form; `code` is that of a claim lost, or null."""
    try:
        return {**Call(routine, arguments).run(conn), "code": None}
    except psycopg.Error as error:
        if error.sqlstate not in TOO_LATE:
            raise
        return {"code": error.sqlstate}


def attempt_all(conn: Connection, routine: str, rows: list[dict[str, Any]]) -> list[Answer]:
    """The answers of a set form, in the shape of the single form's."""
    answers = Call(routine, {"rows": rows}).rows(conn)
    for answer in answers:
        if answer["code"] is not None and answer["code"] not in TOO_LATE:
            raise RuntimeError(json.dumps(answer))
        answer["created"] = answer["status"] == "accepted"
    return answers


def turn(conn: Connection, judge: dict[str, str], rng: random.Random, report: Report) -> bool:
    """Claims and answers once; False when there was nothing to claim."""
    limit = {"tenant_id": None, "limit": rng.randint(1, 8), "lease": f"{LEASE} seconds"}
    claims = Call("claim_judgements", {**judge, **limit, "payloads": False}).rows(conn)
    held = [
        {**judge, **{name: claim[name] for name in ("tenant_id", "id", "lease_token")}}
        for claim in claims
    ]
    for claim in claims:
        report(claim=[claim["id"], claim["lease_token"], claim["lease_expires_at"]])
    habit = rng.random()
    if habit < 0.04:
        return bool(held)  # forgotten
    if habit < 0.06:
        time.sleep(LEASE * 1.1)
    elif habit < 0.12 and held:
        back = held[: rng.randint(1, len(held))]
        for one in back:
            report(release=one["lease_token"])
        if rng.random() < 0.5:
            attempt_all(conn, "release_judgements", back)
        else:
            # one that counts as an attempt, and one that does not
            error = rng.choice([None, "out of order"])
            for one in back:
                attempt(conn, "release_judgement", {**one, "error": error, "delay": "0"})
        held = held[len(back) :]
    elif habit < 0.2:
        for one in held:
            answer = attempt(conn, "renew_judgement", {**one, "lease": f"{LEASE} seconds"})
            if answer["code"] is None:
                report(claim=[one["id"], one["lease_token"], answer["lease_expires_at"]])
    verdicts = [{**one, "score": rng.random(), "label": "a word"} for one in held]
    if rng.random() < 0.5:
        report(will=[[one["id"], one["score"]] for one in verdicts])
        rng.shuffle(verdicts)
        answers = attempt_all(conn, "record_verdicts", verdicts)
        report(done=[[v["id"], v["score"], a] for v, a in zip(verdicts, answers, strict=True)])
    else:
        for one in verdicts:
            for _ in range(rng.choice([1, 1, 1, 2])):
                report(will=[[one["id"], one["score"]]])
                answer = attempt(conn, "record_verdict", one)
                report(done=[[one["id"], one["score"], answer]])
    return bool(claims)


def judge(dsn: str, job: dict[str, Any]) -> None:
    """One judge, until it is killed."""
    journal = os.open(job["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def report(**line: Any) -> None:
        os.write(journal, (json.dumps(line) + "\n").encode())

    rng = random.Random(job["seed"])
    name = {"judge": job["judge"], "judge_version": job["judge_version"]}
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while True:
                if not turn(conn, name, rng, report):
                    time.sleep(0.02)
    except BaseException:  # noqa: BLE001 - told to the test, which is another process
        report(error=traceback.format_exc())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines that a judge wrote down. A torn last line is none."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    dsn = sys.argv[1]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                judge(dsn, json.loads(line))
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
