"""Constraints that are declared in a file, and unique keys that are made while writers go on.

A file ``constraints.toml`` holds one block a constraint::

    [[check]]
    table = "app.routing_outcomes"
    name = "chosen_has_inference"
    predicate = "decision_rule <> 'cheapest_clearing_floor' or inference_id is not null"

    [[not_null]]
    table = "app.routing_outcomes"
    name = "agent_known"
    column = "agent_id"

    [[unique]]
    table = "app.daily_costs"
    name = "daily_costs_key"
    columns = ["day", "agent_id"]
    keep = "latest updated_at"

The other keys of a block are the parameters of ``routeledger.ensure_check``, ``ensure_not_null`` and
``ensure_unique``. `read` sees that the blocks have the right shape, and names the line where one has
not; what the words mean, and whether they are allowed, is for the database to say.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from . import _calls, install
from ._codec import dumps
from .errors import LedgerError, LedgerUnavailable, _detail_of, translate
from .types import ConstraintKind, EnsureResult

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from typing_extensions import LiteralString

__all__ = [
    "BLOCKS",
    "Declaration",
    "FileError",
    "OnlineStep",
    "apply",
    "declare",
    "ensure_unique_online",
    "is_good",
    "only",
    "plan",
    "read",
    "states",
]


class FileError(ValueError):
    """A file of declarations cannot be read: where, and why."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A constraint as a file declares it; the arguments of ``routeledger.declare_constraint``.

    Attributes:
        place: the file, and the line where its block begins, as far as that can be told.
    """

    table: str
    name: str
    kind: ConstraintKind
    predicate: str | None = None
    columns: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)


_TEXT = 'a text in quotes, such as "…"'
_FLAG = "true or false, without quotes"
_TEXTS = 'a list of texts, such as ["…", "…"]'
_NUMBER = "a whole number, without quotes"

_NAMED = {"table": _TEXT, "name": _TEXT}
_COMMON = {"label": _TEXT, "lock_timeout": _TEXT, "attempts": _NUMBER}

BLOCKS: dict[ConstraintKind, dict[str, str]] = {
    "check": {
        **_NAMED,
        "predicate": _TEXT,
        "if_violated": _TEXT,
        "no_inherit": _FLAG,
        "also_drop": _TEXTS,
        **_COMMON,
    },
    "not_null": {**_NAMED, "column": _TEXT, "if_violated": _TEXT, **_COMMON},
    "unique": {
        **_NAMED,
        "columns": _TEXTS,
        "keep": _TEXT,
        "nulls": _TEXT,
        "where": _TEXT,
        "form": _TEXT,
        "children": _TEXT,
        "triggers": _TEXT,
        "reason": _TEXT,
        **_COMMON,
    },
}
"""The keys of each kind of block, and what stands there."""

_REQUIRED: dict[ConstraintKind, str] = {
    "check": "predicate",
    "not_null": "column",
    "unique": "columns",
}


def read(file: str | os.PathLike[str]) -> list[Declaration]:
    """The declarations of a file, in its order, kind by kind.

    Raises:
        FileError: it is no TOML, or a block lacks a key, has one that is not known, or holds
            something else in it than belongs there.
        OSError: the file cannot be read.
    """
    name = os.fspath(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"{name}: no TOML: {exc}"
        raise FileError(msg) from None
    places = _Places(name, text)
    found: list[Declaration] = []
    for key, blocks in document.items():
        if key not in BLOCKS:
            msg = f"{places.block(key)}: {_unknown(key, BLOCKS, 'kind of constraint')}"
            raise FileError(msg)
        if not isinstance(blocks, list):
            msg = f"{places.block(key)}: each {key} is a block of its own, under [[{key}]]"
            raise FileError(msg)
        for number, block in enumerate(blocks, 1):
            found.append(_declaration(places, key, number, block))
    seen: dict[tuple[str, str], Declaration] = {}
    for one in found:
        _refuse_twin(seen.setdefault((one.table, one.name), one), one)
    return found


def _declaration(places: _Places, kind: ConstraintKind, number: int, block: object) -> Declaration:
    where = places.block(kind, number)
    what = f"[[{kind}]] number {number}"
    if not isinstance(block, dict):
        msg = f"{where}: {what}: no block of keys"
        raise FileError(msg)
    named = [block[key] for key in _NAMED if isinstance(block.get(key), str)]
    if named:
        what = f"{what} ({', '.join(named)})"
    keys = BLOCKS[kind]
    for key, value in block.items():
        if key not in keys:
            msg = f"{places.key(kind, number, key)}: {what}: {_unknown(key, keys, 'key')}"
            raise FileError(msg)
        if not _fits(value, keys[key]):
            msg = f"{places.key(kind, number, key)}: {what}: {key} must be {keys[key]}"
            raise FileError(msg)
    for key in (*_NAMED, _REQUIRED[kind]):
        if not block.get(key):
            msg = f"{where}: {what}: {key} is missing: it must be {keys[key]}"
            raise FileError(msg)
    columns = [block["column"]] if kind == "not_null" else block.get("columns")
    options = {k: v for k, v in block.items() if k not in (*_NAMED, _REQUIRED[kind])}
    return Declaration(
        block["table"],
        block["name"],
        kind,
        block.get("predicate"),
        None if columns is None else tuple(columns),
        options,
        where,
    )


def _refuse_twin(one: Declaration, other: Declaration) -> None:
    if one is not other:
        msg = (
            f"{other.place}: {other.table}, {other.name}: declared twice, here and as {one.table} "
            f"at {one.place}: keep one of them"
        )
        raise FileError(msg)


class _Places:
    """Where the blocks of a file and their keys stand, which the reader of TOML does not tell.

    What begins like a block or a key may be a line of a text. It is none where what stands before
    it, from the beginning of the block before, is whole by itself.
    """

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines = text.split("\n")
        self._blocks: dict[str, list[tuple[int, list[str]]]] = {}
        lines: list[str] = []
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\[?\s*[\"']?(\w+)[\"']?\s*\]", line)
            if header and _is_whole(lines):
                lines = []
                self._blocks.setdefault(header[1], []).append((number, lines))
            lines.append(line)

    def block(self, kind: str, number: int = 1) -> str:
        """A block of a kind, counted from 1, or the key that stands in the place of all."""
        blocks = self._blocks.get(kind, [])
        found = number <= len(blocks)
        return self._at(blocks[number - 1][0] if found else _line_of(kind, self._lines))

    def key(self, kind: str, number: int, key: str) -> str:
        """A key of a block."""
        blocks = self._blocks.get(kind, [])
        if number > len(blocks):
            return self.block(kind)
        begin, lines = blocks[number - 1]
        line = _line_of(key, lines)
        return self._at(begin if line is None else begin + line - 1)

    def _at(self, line: int | None) -> str:
        return self._file if line is None else f"{self._file}:{line}"


def _line_of(key: str, lines: Sequence[str]) -> int | None:
    begins = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
    for number, line in enumerate(lines, 1):
        if begins.match(line) and _is_whole(lines[: number - 1]):
            return number
    return None


def _is_whole(lines: Sequence[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _fits(value: object, wanted: str) -> bool:
    if wanted == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if wanted == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if wanted == _TEXT else bool)


def _unknown(word: str, known: Mapping[Any, object], what: str) -> str:
    near = difflib.get_close_matches(word, [str(one) for one in known], 1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(map(str, known))}"
    return f"no {what} is called {word}: {advice}"


# -- what the commands do --------------------------------------------------------------------------

Row = dict[str, Any]


def is_good(row: Row, *, planned: bool = False) -> bool:
    """Whether nothing is in the way of a constraint that was applied, or `planned`."""
    if planned and row["next"] is not None:
        return True  # a step, after which there are others
    return row["outcome"] not in (None, "pending", "refused") and row["reason"] is None


def only(
    conn: psycopg.Connection[Any],
    declared: Sequence[Declaration],
    table: str | None,
    name: str | None,
) -> list[Declaration]:
    """The declarations of one table, however its name is written, or of one constraint."""
    return [
        one
        for one in declared
        if name in (None, one.name) and (table is None or _is_same(conn, one.table, table))
    ]


def _is_same(conn: psycopg.Connection[Any], table: str, other: str) -> bool:
    if table == other:
        return True
    (row,) = _rows(conn, _calls.SAME_TABLE, {"one": table, "other": other})
    return bool(row["same"])


def declare(conn: psycopg.Connection[Any], declared: Sequence[Declaration]) -> int:
    """Keep declarations in the database; how many of them are new there, or changed.

    Raises:
        FileError: two of them are one constraint, its table written in two ways.
        LedgerError: the database refuses one; ``detail`` says which.
    """
    for one, other in itertools.combinations(declared, 2):
        if one.name == other.name and _is_same(conn, one.table, other.table):
            _refuse_twin(one, other)
    changed = 0
    for one in declared:
        params = {
            "table": one.table,
            "name": one.name,
            "kind": one.kind,
            "predicate": one.predicate,
            "columns": None if one.columns is None else list(one.columns),
            "options": dumps(one.options),
        }
        try:
            (row,) = _rows(conn, _calls.DECLARE_CONSTRAINT, params)
        except LedgerError as exc:
            at = {"at": one.place} if one.place else {}
            exc.detail = {**at, "table": one.table, "name": one.name, **exc.detail}
            raise
        changed += row["changed"]
    return changed


def plan(conn: psycopg.Connection[Any], table: str | None, name: str | None) -> list[Row]:
    """What applying what is declared would do first; where that fails, ``error`` says why."""
    planned = _rows(conn, _calls.PLAN_CONSTRAINTS, {"table": table, "name": name})
    return [_with_error(row, row["detail"].pop("error", None)) for row in planned]


def states(conn: psycopg.Connection[Any], table: str | None, name: str | None) -> list[Row]:
    """What is declared beside what is live."""
    return _rows(conn, _calls.CONSTRAINT_STATES, {"table": table, "name": name})


def apply(
    conn: psycopg.Connection[Any],
    table: str | None,
    name: str | None,
    *,
    online: bool = False,
    only_validate: bool = False,
    progress: Callable[[OnlineStep], object] | None = None,
) -> list[Row]:
    """Make what is declared true, on an autocommit connection.

    Args:
        conn: the connection, outside a transaction.
        table: only constraints of this table.
        name: only this one.
        online: unique keys by `ensure_unique_online`.
        only_validate: validate what is there, add and replace nothing.
        progress: see `ensure_unique_online`.

    Returns:
        A row a constraint; where one failed, ``error`` says why and ``outcome`` is None.
    """
    if not online or only_validate:
        return _applied(conn, table, name, only_validate)
    results: list[Row] = []
    for state in states(conn, table, name):
        target = {"target": state["target"], "name": state["name"], "kind": state["kind"]}
        if state["kind"] != "unique" or state["state"] in ("unchanged", "table_missing"):
            results += _applied(conn, state["target"], state["name"], only_validate)
            continue
        declaration = state["detail"]["declaration"]
        try:
            result = ensure_unique_online(
                conn,
                state["target"],
                state["name"],
                declaration["columns"],
                **declaration["options"],
                progress=progress,
            )
        except LedgerUnavailable:
            raise
        except LedgerError as exc:
            error = {
                "code": exc.sqlstate,
                "message": exc.message,
                "detail": exc.detail,
                "hint": exc.hint,
            }
            results.append({**target, "outcome": None, "reason": None, "steps": [], "error": error})
        else:
            results.append({**target, **asdict(result), "error": None})
    return results


def _applied(
    conn: psycopg.Connection[Any], table: str | None, name: str | None, only_validate: bool
) -> list[Row]:
    params = {"table": table, "name": name, "only_validate": only_validate, "results": None}
    results: list[Row] = _rows(conn, _calls.APPLY_CONSTRAINTS, params)[0]["p_results"]
    return [_with_error(row, row["error"]) for row in results]


def _with_error(row: Row, error: Row | None) -> Row:
    return {**row, "error": error and {**error, "detail": _detail_of(error["detail"])}}


# -- unique keys while writers go on ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnlineStep:
    """A command that is about to be run, or, with `seconds`, has been.

    Attributes:
        number: from 1.
        action: ``run`` (outside a transaction), ``collapse`` (a batch of duplicates, committed), or
            ``wait`` (somebody else is at this constraint; there is no command).
        command: the SQL.
        seconds: how long it took; None before.
        row: what it returned, if anything.
        error: why it will be tried again.
    """

    number: int
    action: str
    command: str
    seconds: float | None = None
    row: Row | None = None
    error: LedgerError | None = None

    def __str__(self) -> str:
        if self.action == "wait":
            return "somebody else is at this constraint: waiting"
        if self.seconds is None:
            what = "a batch of duplicates" if self.action == "collapse" else self.command
            return f"{self.number}: {what}"
        text = f"{self.number}: {self.seconds:.1f} s"
        if self.error is not None:
            return f"{text}, and again: {self.error.message}"
        if self.row is None:
            return text
        if self.action == "collapse":
            return f"{text}: {self.row['groups']:,} keys, {self.row['removed']:,} rows removed"
        return f"{text}: {self.row['outcome']}"


def ensure_unique_online(
    target: install.Target,
    table: str,
    name: str,
    columns: Sequence[str],
    *,
    keep: str | None = None,
    nulls: str = "distinct",
    where: str | None = None,
    form: str = "index",
    children: str = "refuse",
    triggers: str = "refuse",
    reason: str | None = None,
    label: str | None = None,
    lock_timeout: timedelta | str = timedelta(seconds=1),
    attempts: int = 10,
    strict: bool = False,
    progress: Callable[[OnlineStep], object] | None = None,
) -> EnsureResult:
    """Make columns a unique key of a table that is being written to.

    ``routeledger.unique_step`` names one command after the other, each time from what is in the
    catalogue then: invalid leftovers are dropped, a fence keeps new duplicates out where the table
    has a primary key that grows, duplicates are collapsed in batches, indexes are built
    CONCURRENTLY. So whatever kills this, the same call goes on where it was.

    Args:
        target: a connection string, or an autocommit connection outside a transaction. It must not
            go through a transaction-mode pooler: a lock of the session keeps others away.
        lock_timeout: how long a command that needs a lock waits for it, before it is tried again.
        attempts: how often.
        progress: called before and after each command.

    The other arguments and the result are those of `Ledger.ensure_unique`.

    Raises:
        LedgerUnavailable: the connection was lost; call again.
        LedgerError: a command failed for a reason that will not pass.
    """
    params = {
        "table": table,
        "name": name,
        "columns": list(columns),
        "keep": keep,
        "nulls": nulls,
        "where": where,
        "form": form,
        "children": children,
        "triggers": triggers,
        "reason": reason,
        "label": label,
        "lock_timeout": lock_timeout,
        "attempts": attempts,
        "strict": strict,
    }
    with install.connection(target) as conn:
        return _Online(conn, params, progress or (lambda _: None)).run()


_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_WAIT = 0.5
_BUSY = frozenset({"40001", "40P01", "55P03"})
_REFUSED = "RL309"
_VIOLATED = "23"


class _Online:
    """One unique key on its way, over one autocommit connection."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        params: dict[str, Any],
        progress: Callable[[OnlineStep], object],
    ) -> None:
        self._conn = conn
        self._params = params
        self._progress = progress
        self._number = 0
        self._pause = _FIRST_PAUSE

    def run(self) -> EnsureResult:
        """Step after step, until none is left, without time limits of the session."""
        (before,) = _rows(self._conn, _calls.TIMEOUTS, {})
        _rows(self._conn, _calls.SET_TIMEOUTS, dict.fromkeys(before, "0"))
        try:
            return self._steps()
        except BaseException:
            with contextlib.suppress(LedgerError):
                _rows(self._conn, _calls.UNIQUE_UNLOCK, self._params)
            raise
        finally:
            with contextlib.suppress(LedgerError):
                _rows(self._conn, _calls.SET_TIMEOUTS, before)

    def _steps(self) -> EnsureResult:
        state: Row = {}
        while True:
            (row,) = _rows(self._conn, _calls.UNIQUE_STEP, {**self._params, "state": dumps(state)})
            action, command, state = row.pop("action"), row.pop("command"), row.pop("state")
            if action in ("done", "refused"):
                return EnsureResult(**row, steps=(row["outcome"],))
            if action == "wait":
                self._progress(OnlineStep(self._number, action, ""))
                time.sleep(_WAIT * (0.5 + random.random()))  # noqa: S311
            else:
                # CREATE INDEX CONCURRENTLY waits for whoever is there, and holds up no one meanwhile
                limit = self._params["lock_timeout"] if state.get("lock_timeout") else timedelta()
                _rows(self._conn, _calls.SET_LOCK_TIMEOUT, {"lock_timeout": limit})
                state = {**state, "last": self._execute(action, command)}

    def _execute(self, action: str, command: str) -> Row:
        """Run a command, and say what came of it."""
        self._number += 1
        step = OnlineStep(self._number, action, command)
        self._progress(step)
        began = time.monotonic()
        found: list[Row] = []
        error: LedgerError | None = None
        try:
            with self._conn.cursor(row_factory=dict_row) as cursor:
                cursor.execute(command.encode())
                found = cursor.fetchall() if cursor.description else []
        except psycopg.Error as exc:
            error = translate(exc)
            state = error.sqlstate or ""
            if state not in (*_BUSY, _REFUSED) and not state.startswith(_VIOLATED):
                raise error from exc
        row = found[0] if found else None
        self._progress(replace(step, seconds=time.monotonic() - began, row=row, error=error))
        if error is None or error.sqlstate not in _BUSY:
            self._pause = _FIRST_PAUSE
        else:
            time.sleep(self._pause * (0.5 + random.random()))  # noqa: S311
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        facts = None
        if error is not None:
            facts = {
                "sqlstate": error.sqlstate,
                "message": error.message,
                "detail": error.detail,
                "constraint": error.constraint,
            }
        return {"action": action, "command": command, "error": facts, "row": row}


def _rows(
    conn: psycopg.Connection[Any], query: LiteralString, params: Mapping[str, Any]
) -> list[Row]:
    try:
        with conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params).fetchall()
    except psycopg.Error as exc:
        raise translate(exc) from exc
