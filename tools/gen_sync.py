"""Generates the synchronous twins of asynchronous Python files.

    python tools/gen_sync.py            write the targets of PAIRS that exist as sources
    python tools/gen_sync.py --check    fail when one is stale (CI)

What it does, and nothing more: drops the keywords `async` and `await`, renames by the tables below
(names, strings that are exactly such a name, and class names within any text), leaves out blocks
between the comment lines `# ASYNC-ONLY` and `# END ASYNC-ONLY`, brings in blocks between
`# SYNC-ONLY` and `# END SYNC-ONLY`, whose lines are commented out in the source (`# x = 1` becomes
`x = 1`), and has ruff sort the imports and format the result. Comments and docstrings are kept,
with the phrases of PHRASES replaced. What the two need to do differently goes into a module that
each imports under its name.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

# (source, target), relative to the repository; a source that does not exist yet is passed over
PAIRS: list[tuple[str, str]] = [
    ("pydriver/routeledger/_async.py", "pydriver/routeledger/_sync.py"),
    ("pydriver/routeledger/_loop_async.py", "pydriver/routeledger/_loop_sync.py"),
    ("pydriver/routeledger/_coalesce_async.py", "pydriver/routeledger/_coalesce_sync.py"),
    ("pydriver/routeledger/_replay_async.py", "pydriver/routeledger/_replay_sync.py"),
    ("pydriver/routeledger/_upsert_async.py", "pydriver/routeledger/_upsert_sync.py"),
    ("tests/integration/test_driver_async.py", "tests/integration/test_driver_sync.py"),
    (
        "tests/integration/test_driver_constraints_async.py",
        "tests/integration/test_driver_constraints_sync.py",
    ),
    (
        "tests/integration/test_driver_upsert_async.py",
        "tests/integration/test_driver_upsert_sync.py",
    ),
    (
        "tests/integration/test_driver_spool_async.py",
        "tests/integration/test_driver_spool_sync.py",
    ),
]

# identifiers, wherever they stand; also the content of a string that is exactly one of them, and
# those that begin with Async within any string or comment
NAMES: dict[str, str] = {
    # ours
    "AsyncLedger": "Ledger",
    "AsyncAttempts": "Attempts",
    "AsyncCoalescer": "Coalescer",
    "AsyncOpenAttempt": "OpenAttempt",
    "AsyncReplay": "Replay",
    "AsyncSource": "Source",
    "AsyncUpsert": "Upsert",
    "AsyncOpenDecision": "OpenDecision",
    "_async": "_sync",
    "_loop_async": "_loop_sync",
    "_coalesce_async": "_coalesce_sync",
    "_replay_async": "_replay_sync",
    "_upsert_async": "_upsert_sync",
    "_aio": "_threads",
    "async_ledger": "ledger",
    # psycopg
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncNullConnectionPool": "NullConnectionPool",
    "AsyncCursor": "Cursor",
    "AsyncPipeline": "Pipeline",
    "AsyncTransaction": "Transaction",
    # the language and its library
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "anext": "next",
    "aiter": "iter",
    "asynccontextmanager": "contextmanager",
    "AsyncContextManager": "ContextManager",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncExitStack": "ExitStack",
    "enter_async_context": "enter_context",
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncGenerator": "Generator",
    "StopAsyncIteration": "StopIteration",
    "pytest_asyncio": "pytest",
}

# dotted names, replaced as a whole before NAMES is looked at
DOTTED: dict[str, str] = {
    "asyncio.sleep": "time.sleep",
}

# imports of whole modules
IMPORTS: dict[str, str] = {
    "import asyncio": "import time",
}

# in comments and docstrings, literally
PHRASES: dict[str, str] = {
    "async with": "with",
    "async for": "for",
    "await ": "",
    "An asynchronous": "A synchronous",
    "an asynchronous": "a synchronous",
    "asynchronous": "synchronous",
}

HEADER = "# Generated from {source} by `make sync`: edit that, not this.\n"


class SyncError(Exception):
    """A source cannot be converted."""


@dataclass(frozen=True)
class Rules:
    """The rename tables of one conversion."""

    names: dict[str, str]
    dotted: dict[str, str]
    imports: dict[str, str]
    phrases: dict[str, str]


RULES = Rules(NAMES, DOTTED, IMPORTS, PHRASES)


def select_blocks(text: str) -> str:
    """Leaves out ASYNC-ONLY blocks and uncomments SYNC-ONLY blocks."""
    out: list[str] = []
    mode: str | None = None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        mark = re.fullmatch(r"\s*# (END )?(ASYNC|SYNC)-ONLY\s*", line)
        if mark:
            ends, kind = bool(mark[1]), mark[2]
            if ends != (mode is not None) or (ends and mode != kind):
                msg = f"line {number}: unbalanced {line.strip()}"
                raise SyncError(msg)
            mode = None if ends else kind
        elif mode is None:
            out.append(line)
        elif mode == "SYNC":
            if not re.match(r"\s*(#|$)", line):
                msg = f"line {number}: a line of a SYNC-ONLY block is a comment"
                raise SyncError(msg)
            out.append(re.sub(r"^(\s*)# ?", r"\1", line))
    if mode is not None:
        msg = f"{mode}-ONLY is never ended"
        raise SyncError(msg)
    return "".join(out)


def _replace_phrases(text: str, rules: Rules) -> str:
    for old, new in rules.phrases.items():
        text = text.replace(old, new)
    return _rename_classes(text, rules)


def _rename_classes(text: str, rules: Rules) -> str:
    """Names such as AsyncLedger, in forward references, messages and prose."""
    named = {old: new for old, new in rules.names.items() if old.startswith("Async")}
    text = re.sub(r"\b([Aa])n (?=Async)", r"\1 ", text)
    return re.sub(r"\w+", lambda match: named.get(match[0], match[0]), text)


def _rename_string(literal: str, rules: Rules) -> str:
    match = re.fullmatch(r"([A-Za-z]*)(\"\"\"|'''|\"|')(.*)\2", literal, re.DOTALL)
    if match is None:
        return literal
    prefix, quote, body = match.groups()
    if "f" in prefix.lower():  # opaque before Python 3.12, so on every version
        refused = {"async", "await", *rules.names} & set(re.findall(r"\w+", body))
        if refused:
            msg = f"an f-string holds {', '.join(sorted(refused))}: name it outside the string"
            raise SyncError(msg)
        return literal
    if len(quote) == 3:
        body = _replace_phrases(body, rules)
    elif body in rules.names:
        body = rules.names[body]
    else:
        body = _rename_classes(body, rules)
    return f"{prefix}{quote}{body}{quote}"


def convert(text: str, rules: Rules = RULES) -> str:
    """The synchronous text, neither sorted nor formatted."""
    text = select_blocks(text)
    for old, new in rules.imports.items():
        text = re.sub(rf"^(\s*){re.escape(old)}$", rf"\1{new}", text, flags=re.MULTILINE)
    for old, new in rules.dotted.items():
        text = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, text)

    lines = text.splitlines(keepends=True)

    def between(start: tuple[int, int], end: tuple[int, int]) -> str:
        if start >= end:
            return ""
        if start[0] == end[0]:
            return lines[start[0] - 1][start[1] : end[1]]
        tail = lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""
        middle = "".join(lines[start[0] : end[0] - 1])
        return lines[start[0] - 1][start[1] :] + middle + tail

    def tokens() -> Iterator[tokenize.TokenInfo]:
        """Like tokenize, with f-strings as one token on every version of Python."""
        start, depth = (0, 0), 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = tokenize.tok_name[token.type]
            if kind == "FSTRING_START":
                start, depth = (token.start if depth == 0 else start), depth + 1
            elif kind == "FSTRING_END":
                depth -= 1
                if depth == 0:
                    whole = between(start, token.end)
                    yield tokenize.TokenInfo(tokenize.STRING, whole, start, token.end, "")
            elif depth == 0:
                yield token

    out: list[str] = []
    position = (1, 0)
    for token in tokens():
        out.append(between(position, token.start))
        position = token.end
        if token.type == tokenize.NAME and token.string in ("async", "await"):
            row, column = token.end
            while lines[row - 1][column : column + 1] == " ":  # the blank after the keyword goes
                column += 1
            position = (row, column)
        elif token.type == tokenize.NAME:
            out.append(rules.names.get(token.string, token.string))
        elif token.type == tokenize.STRING:
            out.append(_rename_string(token.string, rules))
        elif token.type == tokenize.COMMENT:
            out.append(_replace_phrases(token.string, rules))
        else:
            out.append(between(token.start, token.end))
    return "".join(out)


def _ruff() -> str | None:
    beside = Path(sys.executable).with_name("ruff")
    return str(beside) if beside.exists() else shutil.which("ruff")


def tidy(text: str, target: Path) -> str:
    """Imports sorted, unused ones dropped, and formatted, by the project's own ruff settings."""
    ruff = _ruff()
    if ruff is None:
        msg = "ruff is not installed: pip install ruff"
        raise SyncError(msg)
    for arguments in (
        ["check", "--fix-only", "--quiet", "--select", "I,F401,UP035", "--unfixable", "RUF"],
        ["format", "--quiet"],
    ):
        done = subprocess.run(
            [ruff, *arguments, "--stdin-filename", str(target), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"{target}: ruff {arguments[0]}: {done.stderr.strip()}"
            raise SyncError(msg)
        text = done.stdout
    return text


def generate(source: str, target: Path, text: str) -> str:
    """The whole target file."""
    return tidy(HEADER.format(source=source) + convert(text), target)


def main(argv: list[str] | None = None, repo: Path = REPO) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when a target is stale")
    options = parser.parse_args(argv)
    stale = 0
    for source, target in PAIRS:
        origin, destination = repo / source, repo / target
        if not origin.exists():
            continue
        try:
            new = generate(source, destination, origin.read_text(encoding="utf-8"))
        except SyncError as error:
            print(f"gen_sync: {source}: {error}", file=sys.stderr)
            return 2
        old = destination.read_text(encoding="utf-8") if destination.exists() else None
        if old == new:
            continue
        if options.check:
            print(f"gen_sync: {target} is stale: run `make sync`", file=sys.stderr)
            stale += 1
        else:
            destination.write_text(new, encoding="utf-8")
            print(f"gen_sync: wrote {target}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
