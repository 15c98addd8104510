"""Runs pgspot, which looks for search_path hijacks, over the assembled SQL.

    python -m tools.run_pgspot [FILE ...]

pgspot reads text, not a catalogue, so it gets a copy in which three things are said its way: the
schema is created by a plain statement; a variable of one of our composite types is a record; and
the routines of INLINED and HANDED_ON carry a pin that they do not have.

INLINED have none of their own, because a routine with a SET clause is never inlined; nobody may
call them but pinned routines of ours. HANDED_ON have none because they hand the search_path of
their caller on to a pinned routine, which a pin would hide from them: the triggers and defaults of
a caller's table run with it. They run as their caller, so there are no privileges to hijack, and
pgtap/910_security.sql checks that every name in them is written in full.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PGSPOT = REPO / ".venv-pgspot" / "bin" / "pgspot"
PRELUDE = "set search_path = pg_catalog, pg_temp;\ncreate schema routeledger;\n"
PIN = "set search_path = pg_catalog, routeledger, pg_temp"

# single expressions in SQL, called once or more for every row
INLINED = (
    "_amount_to_reserve",
    "_bin_latency",
    "_budget_end",
    "_budget_subject",
    "_budget_window",
    "_completion_is_plain",
    "_cooldown_tenant",
    "_cooling",
    "_decision_is_plain",
    "_drop_reason",
    "_error_text",
    "_errors",
    "_floor_time",
    "_has_partition",
    "_id_time",
    "_judge_candidates",
    "_latency_bin",
    "_now",
    "_partition_suffix",
    "_plain_decision",
    "_projected_cost",
    "_rank_candidates",
    "_ranking_version",
    "_seeded",
    "_usage_cost",
    "_usage_in_range",
    "_uuid_v7_at",
)

HANDED_ON = (
    "apply_constraints",
    "constraint_states",
    "declare_constraint",
    "plan_constraints",
    "repair_orphans_in",
    "undeclare_constraint",
    "undo_constraint",
    "undo_repair",
    "upsert",
    "upsert_from",
)


def prepare(text: str) -> tuple[str, list[str]]:
    """What pgspot gets, and the entries of both lists that name no unpinned routine any more."""
    stale = []
    for name in (*INLINED, *HANDED_ON):
        header = re.compile(
            rf"(^create or replace (?:function|procedure) routeledger\.{name}\((?:(?!^as \$).)*?)(^as \$)",
            re.MULTILINE | re.DOTALL,
        )
        found = header.search(text)
        if found is None or PIN in found[1]:
            stale.append(name)
        else:
            text = header.sub(rf"\g<1>{PIN}\n\g<2>", text)
    text = re.sub(r"^(\s+v_\w+) routeledger\.\w+(;| :=)", r"\1 record\2", text, flags=re.MULTILINE)
    return PRELUDE + text, stale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[REPO / "sql" / "routeledger.sql"])
    parser.add_argument("--pgspot", type=Path, default=PGSPOT)
    options = parser.parse_args(argv)
    code = 0
    for file in options.files:
        text, stale = prepare(file.read_text(encoding="utf-8"))
        for name in stale:
            print(f"run_pgspot: {name} has a pin or is gone: take it off its list")
            code = 1
        with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as copy:
            copy.write(text)
            copy.flush()
            try:
                done = subprocess.run(
                    [options.pgspot, copy.name], capture_output=True, text=True, check=False
                )
            except FileNotFoundError:
                print(f"run_pgspot: {options.pgspot} is not installed: run `make check`")
                return 127
        if done.returncode or "Errors: 0 Warnings: 0 Unknown: 0" not in done.stdout:
            print(f"{file}:\n{done.stdout}{done.stderr}")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
