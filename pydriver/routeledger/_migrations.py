"""What the migration tools share: one call of an `ensure_*` routine, as bound and as plain SQL.

Such a call does one step in one transaction and says in `next` whether the same call, in a new
transaction, has more to do. Online the tool repeats it; offline the loop is part of the script.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = [
    "MAX_STEPS",
    "OPTIONS",
    "Call",
    "Outcome",
    "caller",
    "ensure",
    "explain",
    "quoted",
    "undo",
]

# No constraint takes more than six; a database that asks for more than this goes in circles.
MAX_STEPS = 20

OPTIONS = {
    "if_violated": "text",
    "no_inherit": "boolean",
    "also_drop": "text[]",
    "keep": "text",
    "nulls": "text",
    "where": "text",
    "form": "text",
    "children": "text",
    "triggers": "text",
    "reason": "text",
    "label": "text",
    "lock_timeout": "interval",
    "attempts": "integer",
}
"""What an operation hands on as it is given: the parameters of the routines without p_, and their types."""

_COLUMNS = "outcome, validated, violations, definition, found, reason, next"


def quoted(name: str, schema: str | None = None) -> str:
    """A name, or a name in a schema, as an SQL identifier that is taken literally."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name) if part)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value.replace("'", "''")
        return f"E'{text}'".replace("\\", "\\\\") if "\\" in text else f"'{text}'"
    if isinstance(value, Sequence):
        return f"array[{', '.join(map(_literal, value))}]"
    return str(value)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The row that a step returned.

    Attributes:
        outcome: unchanged, created, replaced, validated, pending or refused.
        validated: whether every row is known to satisfy the constraint.
        violations: how many rows do not, where they were counted.
        definition: the canonical definition that was declared.
        found: the canonical definition that the database had; None when it had none.
        reason: why it is pending or refused, in a word.
        next: what remains to be done, in a sentence; None when nothing does.
        detail: samples, suspects, functions and so on.
    """

    outcome: str
    validated: bool | None
    violations: int | None
    definition: str | None
    found: str | None
    reason: str | None
    next: str | None
    detail: Mapping[str, Any]

    @classmethod
    def of(cls, row: Sequence[Any]) -> Outcome:
        outcome, validated, violations, definition, found, reason, following, detail = row
        known = json.loads(detail) if detail else {}
        return cls(outcome, validated, violations, definition, found, reason, following, known)

    def line(self, subject: str) -> str:
        """One line for the log."""
        text = f"{subject}: {self.outcome}"
        if self.outcome == "replaced" and self.found:
            text += f", it was {self.found}"
        if self.validated is False:
            text += ", not validated yet"
        if self.violations:
            text += f", {self.violations} rows violate it"
        return text


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a routine, repeated until nothing remains to be done.

    Attributes:
        routine: its name, without the schema.
        subject: what it is about, for messages.
        arguments: name without `p_` → (value, SQL type).
        clean: whether rows that still violate the constraint in the end are a failure.
    """

    routine: str
    subject: str
    arguments: Mapping[str, tuple[Any, str]]
    clean: bool = True

    def fault(self, last: Outcome) -> str | None:
        """Why the last step is not good enough, None when it is."""
        if last.next is not None:
            return f"{self.subject}: {last.next} (after {MAX_STEPS} steps)"
        if self.clean and last.outcome == "pending":
            return (
                f"{self.subject}: {last.violations} rows violate it, so that it remains NOT VALID, "
                f"such as {json.dumps(last.detail.get('samples', []))}"
            )
        return None

    def bound(self, marker: Callable[[str], str]) -> tuple[str, dict[str, Any]]:
        """A SELECT with a placeholder for each argument, and its parameters.

        `marker` writes the placeholder of a parameter's name as the database library wants it.
        """
        values = {f"p_{name}": value for name, (value, _) in self.arguments.items()}
        arguments = ", ".join(
            f"p_{name} => cast({marker(f'p_{name}')} as {kind})"
            for name, (_, kind) in self.arguments.items()
        )
        call = f"routeledger.{self.routine}({arguments})"
        return f"select {_COLUMNS}, detail::text from {call}", values  # noqa: S608

    def _plain(self, indent: str) -> str:
        arguments = f",\n{indent}  ".join(
            f"p_{name} => {_literal(value)}" + ("" if kind in ("text", "boolean") else f"::{kind}")
            for name, (value, kind) in self.arguments.items()
        )
        return f"routeledger.{self.routine}(\n{indent}  {arguments}\n{indent})"

    def first_sql(self) -> str:
        """The first step, for the transaction of the migration."""
        return f"select {_COLUMNS}\nfrom {self._plain('')};"

    def further_sql(self) -> str:
        """All further steps, each in a transaction of its own: not for a transaction block."""
        return self._do(
            f"""\
declare
  v_next text;
begin
  for v_step in 1..{MAX_STEPS} loop
    select e.next into v_next
    from {self._plain("    ")} e;
    exit when v_next is null;
    commit;
  end loop;
end"""  # noqa: S608
        )

    def proof_sql(self) -> str:
        """Fails, and with it the transaction of the migration, unless the constraint is there."""
        pending = " or v_row.outcome = 'pending'" if self.clean else ""
        return self._do(
            f"""\
declare
  v_row record;
begin
  select e.outcome, e.violations, e.reason, e.next into v_row
  from {self._plain("  ")} e;
  if v_row.next is not null{pending} then
    raise exception using
      message = {_literal(f"{self.subject} is not finished")},
      detail = to_jsonb(v_row)::text;
  end if;
end"""  # noqa: S608
        )

    @staticmethod
    def _do(body: str) -> str:
        tag = "routeledger"
        while f"${tag}$" in body:
            tag += "_"
        return f"do ${tag}$\n{body}\n${tag}$;"


def ensure(
    routine: str,
    target: str,
    subject: str,
    arguments: Mapping[str, tuple[Any, str]],
    options: Mapping[str, Any],
    *,
    validate: bool = True,
) -> Call:
    """The call that makes a constraint of a table what is declared; options that are None are left
    to the routine. Rows that violate it may stay where it is added NOT VALID, or not validated."""
    given = {key: (value, OPTIONS[key]) for key, value in options.items() if value is not None}
    return Call(
        routine,
        f"{subject} on {target}",
        {"table": (target, "regclass"), **arguments, **given, "strict": (True, "boolean")},
        clean=validate and options.get("if_violated") != "add_not_valid",
    )


def undo(
    name: str, target: str, *, label: str | None, rows: str = "restore", strict: bool = True
) -> Call:
    """The call that puts back what the change of that label found; the last one without a label."""
    arguments: dict[str, tuple[Any, str]] = {"table": (target, "regclass"), "name": (name, "text")}
    if label is not None:
        arguments["label"] = (label, "text")
    if rows != "restore":
        arguments["rows"] = (rows, "text")
    if strict:
        arguments["strict"] = (True, "boolean")
    return Call("undo_constraint", f"undo of {name} on {target}", arguments, clean=False)


def caller(sees: Callable[[FrameType], str | None]) -> str | None:
    """The first answer that `sees` gives for one of the calling frames, from the inside out."""
    for frame in _frames():
        if (found := sees(frame)) is not None:
            return found
    return None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def explain(subject: str, error: BaseException) -> str:
    """Why a call failed: the server's message, detail and hint, from any database library."""
    diag = getattr(error, "diag", None)
    cause = error.__cause__ or error
    code = next(
        (c for c in (getattr(error, n, None) for n in ("sqlstate", "pgcode")) if c),
        getattr(diag, "sqlstate", None),
    )
    if code in ("42883", "3F000") and "routeledger" in str(error):
        return (
            f"{subject}: this database has no routeledger 0.4.0 or later ({error}). "
            "Install it with: routeledger install"
        )
    message = getattr(diag, "message_primary", None) or str(error)
    parts = [f"{subject}: {message}" + (f" ({code})" if code else "")]
    for name, label in (("detail", "DETAIL"), ("hint", "HINT")):
        text = getattr(diag, f"message_{name}", None) or getattr(cause, name, None)
        # that of a refusal is for callers of the routine
        if text and not (code == "RL309" and name == "hint"):
            parts.append(f"{label}: {text}")
    return "\n".join(parts)
