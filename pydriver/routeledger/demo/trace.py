"""The traffic: a recorded trace of LLM requests, or a seeded generator with the same shape.

A trace says when each request came, how long its prompt was and how long the answer was, in the
format of the Azure LLM inference traces: a CSV with the columns TIMESTAMP, ContextTokens and
GeneratedTokens. It names no model and no outcome; those are the demo's to decide.
"""

from __future__ import annotations

import csv
import gzip
import math
import os
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TextIO

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

AZURE_FILE = Path("azure_llm_2023") / "AzureLLMInferenceTrace_conv.csv.gz"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: ``offset_s`` seconds after the first, token counts of prompt and answer."""

    n: int
    offset_s: float
    context_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order they came. ``label`` says in a few words where they are from."""

    label: str
    synthetic: bool
    requests: tuple[Request, ...]

    @property
    def span_s(self) -> float:
        return self.requests[-1].offset_s if self.requests else 0.0


class TraceError(ValueError):
    """The file is not a trace; the message names the file, the line and what is wrong there."""


# ---------------------------------------------------------------------------------------------
# Recorded traces
# ---------------------------------------------------------------------------------------------


def data_dir() -> Path | None:
    """The folder of recorded data, when there is one; nothing requires it.

    ROUTELEDGER_DATA names it; a checkout of the project also looks in ``../shared/data``.
    """
    named = os.environ.get("ROUTELEDGER_DATA")
    if named is not None:
        return Path(named) if named and Path(named).is_dir() else None
    root = Path(__file__).resolve().parents[3]
    beside = root.parent / "shared" / "data"
    is_checkout = (root / "pyproject.toml").is_file() and (root / "sql" / "src").is_dir()
    return beside if is_checkout and beside.is_dir() else None


def find_trace(limit: int | None = None, seed: int = 1) -> Trace:
    """The recorded conversation trace where it is present, else the generator."""
    folder = data_dir()
    if folder is not None and (folder / AZURE_FILE).is_file():
        return load_trace(folder / AZURE_FILE, limit, label="Azure LLM inference trace 2023")
    return generate(limit if limit is not None else 20_000, seed)


def load_trace(path: str | Path, limit: int | None = None, *, label: str | None = None) -> Trace:
    """Read ``path`` (CSV, gzipped when its name ends in .gz), at most ``limit`` requests."""
    path = Path(path)
    try:
        with _open(path) as file:
            rows = list(islice(_rows(path, file), limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read: {error}"
        raise TraceError(message) from error
    if not rows:
        message = f"{path}: holds no requests"
        raise TraceError(message)
    rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    return Trace(
        label=label or path.name,
        synthetic=False,
        requests=tuple(
            Request(n, (at - first) / _TICKS, context, generated)
            for n, (at, context, generated) in enumerate(rows)
        ),
    )


_TICKS = 10_000_000  # a recorded time has seven fractional digits, one more than datetime holds
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d(?::?\d\d)?)?\Z"
)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, int, int]]:
    reader = csv.reader(file)
    header = [name.strip().lower() for name in next(reader, [])]
    try:
        where = [header.index(name.lower()) for name in COLUMNS]
    except ValueError:
        message = f"{path}: line 1: the columns must include {', '.join(COLUMNS)}"
        raise TraceError(message) from None
    for row in reader:
        if not row:
            continue
        try:
            at, context, generated = (row[i] for i in where)
            yield parse_ticks(at), _tokens(context), _tokens(generated)
        except (ValueError, IndexError) as error:
            message = f"{path}: line {reader.line_num}: {error}"
            raise TraceError(message) from None


def parse_ticks(text: str) -> int:
    """A timestamp as ticks of 100 ns since 1970; a time without a zone counts as UTC."""
    match = _TIME.match(text.strip())
    if match is None:
        message = f"{text!r} is not a timestamp such as 2023-11-16 18:15:46.6805900"
        raise ValueError(message)
    day, clock, fraction, zone = match.groups()
    at = datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=timezone.utc)
    ticks = (at - _EPOCH) // timedelta(seconds=1) * _TICKS + int((fraction or "").ljust(7, "0")[:7])
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        east = (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * _TICKS
        ticks += east if zone[0] == "-" else -east
    return ticks


def _tokens(text: str) -> int:
    count = int(text)
    if count < 0:
        message = f"{text!r} is not a number of tokens"
        raise ValueError(message)
    return count


# ---------------------------------------------------------------------------------------------
# The generator
# ---------------------------------------------------------------------------------------------
# The numbers below summarise the conversation trace of the Azure public data set (2023, CC-BY
# 4.0; Patel et al., Splitwise, ISCA 2024). Its arrivals are a Poisson process whose rate drifts
# over the hour (within two minutes the gaps are exponential: mean 1.00, deviation 1.03); its
# prompt lengths cluster near 200, 400, 1,050 and 4,100 tokens; and the length of an answer
# depends strongly on which of those clusters the prompt is in.

# Requests a minute, in steps of two minutes.
RATE_PER_MINUTE = (
    228, 341, 290, 264, 310, 302, 336, 281, 294, 347, 347, 402, 392, 456, 464,
    478, 426, 420, 388, 322, 344, 340, 354, 290, 235, 272, 255, 251, 236,
)  # fmt: skip
STEP_S = 120.0

CONTEXT_LEVELS = (
    0, .005, .01, .02, .05, .10, .15, .20, .25, .30, .35, .40, .45, .50,
    .55, .60, .65, .70, .75, .80, .85, .90, .95, .98, .99, .995, .999, 1,
)  # fmt: skip
CONTEXT_TOKENS = (
    2, 17, 29, 91, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020,
    1045, 1071, 1097, 1130, 1189, 1315, 1876, 2735, 4083, 4098, 4142, 4831, 6212, 14050,
)  # fmt: skip

# For prompts below each bound, the answer's length at these levels.
GENERATED_LEVELS = (0, .02, .05, .10, .25, .40, .50, .60, .75, .90, .95, .98, 1)  # fmt: skip
GENERATED_TOKENS: tuple[tuple[float, tuple[int, ...]], ...] = (
    (300, (11, 12, 14, 51, 94, 130, 152, 163, 183, 217, 217, 244, 1000)),
    (390, (7, 18, 18, 18, 59, 68, 73, 79, 88, 101, 114, 131, 436)),
    (430, (25, 65, 77, 82, 89, 94, 98, 102, 112, 136, 148, 166, 200)),
    (900, (10, 37, 45, 57, 83, 90, 95, 102, 117, 274, 403, 429, 739)),
    (1060, (27, 61, 89, 157, 390, 396, 402, 411, 425, 465, 536, 600, 992)),
    (1100, (31, 84, 368, 378, 394, 398, 409, 415, 429, 502, 559, 626, 1000)),
    (1150, (28, 77, 128, 375, 393, 398, 406, 414, 428, 489, 561, 629, 1000)),
    (1300, (26, 43, 50, 74, 377, 396, 400, 408, 421, 477, 565, 610, 992)),
    (2000, (24, 43, 50, 56, 82, 107, 132, 150, 181, 228, 285, 415, 918)),
    (3500, (15, 33, 42, 47, 66, 80, 89, 99, 118, 147, 164, 191, 458)),
    (math.inf, (17, 27, 29, 34, 42, 49, 55, 63, 80, 125, 154, 200, 757)),
)
_BOUNDS = [bound for bound, _ in GENERATED_TOKENS]


def generate(n: int, seed: int = 1) -> Trace:
    """``n`` synthetic requests; the same ``n`` and ``seed`` give the same requests everywhere."""
    rng = random.Random(f"routeledger trace {seed}")  # noqa: S311
    requests = []
    at = 0.0
    for i in range(n):
        context = _quantile(CONTEXT_LEVELS, CONTEXT_TOKENS, rng.random())
        band = min(bisect_right(_BOUNDS, context), len(GENERATED_TOKENS) - 1)
        generated = _quantile(GENERATED_LEVELS, GENERATED_TOKENS[band][1], rng.random())
        requests.append(Request(i, round(at, 7), round(context), max(1, round(generated))))
        rate = RATE_PER_MINUTE[int(at / STEP_S) % len(RATE_PER_MINUTE)] / 60.0
        at += rng.expovariate(rate)
    return Trace(
        label=f"generator with the shape of real traffic (seed {seed})",
        synthetic=True,
        requests=tuple(requests),
    )


def _quantile(levels: Sequence[float], values: Sequence[float], u: float) -> float:
    """The value at level ``u`` (0..1) of a distribution given by some of its quantiles."""
    i = min(bisect_right(levels, u), len(levels) - 1)
    low, high = levels[i - 1], levels[i]
    return values[i - 1] + (values[i] - values[i - 1]) * (u - low) / (high - low)
