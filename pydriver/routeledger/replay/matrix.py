"""A matrix: every model's answer to every prompt, right or wrong, with its tokens.

The recorded one is that of the Berkeley Function Calling Leaderboard of August 2024, as two files in a
folder. Where it is not there, a seeded generator makes one of the same shape, and its label says so.

``matrix.csv`` (or .csv.gz) has one row per model and prompt, with the columns model, category,
prompt_id, input_tokens, output_tokens and correct (0 or 1). ``model_prices.csv`` has one row per model:
model, input_usd_per_token, output_usd_per_token, and if it likes price_key, the name that the price
goes by in catalogs. An empty price is unknown, and so are empty token counts and counts of 0 for both.
"""

from __future__ import annotations

import csv
import gzip
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TextIO, TypeVar

FOLDER = "bfcl_2024_08"

_Row = TypeVar("_Row")


class MatrixError(ValueError):
    """The folder holds no matrix; the message names the file, the line and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, with its price in USD per million tokens (None: unknown)."""

    name: str
    base_model: str
    input_usd: Decimal | None
    output_usd: Decimal | None

    @property
    def priced(self) -> bool:
        return self.input_usd is not None and self.output_usd is not None


@dataclass(frozen=True, slots=True)
class Matrix:
    """``right[m][p]`` is 1 where model m got prompt p right, else 0; ``tokens[m][p]`` is what it
    used, (input, output), or None where that is not known. ``tasks[p]`` is the prompt's task type.
    """

    label: str
    synthetic: bool
    models: tuple[Model, ...]
    tasks: tuple[str, ...]
    right: tuple[bytes, ...]
    tokens: tuple[tuple[tuple[int, int] | None, ...], ...]

    @property
    def prompts(self) -> range:
        return range(len(self.tasks))


# -- recorded --------------------------------------------------------------------------------------


def load_matrix(folder: str | Path, *, label: str | None = None) -> Matrix:
    """Read ``matrix.csv[.gz]`` and ``model_prices.csv`` of a folder."""
    folder = Path(folder)
    answers = next(
        (p for p in (folder / "matrix.csv.gz", folder / "matrix.csv") if p.is_file()), None
    )
    prices = folder / "model_prices.csv"
    if answers is None or not prices.is_file():
        message = f"{folder}: there must be a matrix.csv or matrix.csv.gz and a model_prices.csv"
        raise MatrixError(message)
    models = {row.name: row for row in _read(prices, _prices)}
    cells: dict[str, dict[tuple[str, str], tuple[int, tuple[int, int] | None]]] = {}
    for name, prompt, answer in _read(answers, _answers):
        cells.setdefault(name, {})[prompt] = answer
    prompts = sorted({prompt for row in cells.values() for prompt in row})
    for name, row in cells.items():
        if len(row) != len(prompts):
            message = (
                f"{answers}: {name} has {len(row)} of {len(prompts)} prompts: no holes, please"
            )
            raise MatrixError(message)
    names = sorted(cells)
    if not names:
        message = f"{answers}: holds no answers"
        raise MatrixError(message)
    return Matrix(
        label=label or folder.name,
        synthetic=False,
        models=tuple(models.get(name, Model(name, name, None, None)) for name in names),
        tasks=tuple(task for task, _ in prompts),
        right=tuple(bytes(cells[name][prompt][0] for prompt in prompts) for name in names),
        tokens=tuple(tuple(cells[name][prompt][1] for prompt in prompts) for name in names),
    )


def _read(
    path: Path, parse: Callable[[Path, csv.DictReader[str]], Iterator[_Row]]
) -> Iterator[_Row]:
    try:
        with _open(path) as file:
            yield from parse(path, csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read: {error}"
        raise MatrixError(message) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _prices(path: Path, rows: csv.DictReader[str]) -> Iterator[Model]:
    for row in rows:
        try:
            name = row["model"]
            key = row.get("price_key") or name
            yield Model(
                name,
                key.rsplit("/", 1)[-1],
                _per_mtok(row["input_usd_per_token"]),
                _per_mtok(row["output_usd_per_token"]),
            )
        except (KeyError, InvalidOperation, ValueError) as error:  # noqa: PERF203 - names the line
            message = f"{path}: line {rows.line_num}: {error!r}"
            raise MatrixError(message) from None


def _per_mtok(text: str) -> Decimal | None:
    if not text:
        return None
    price = Decimal(text) * 1_000_000
    if not price.is_finite() or price < 0:
        message = f"{text} is not a price"
        raise ValueError(message)
    return price.normalize()


def _answers(
    path: Path, rows: csv.DictReader[str]
) -> Iterator[tuple[str, tuple[str, str], tuple[int, tuple[int, int] | None]]]:
    for row in rows:
        try:
            right = {"0": 0, "1": 1}[row["correct"]]
            texts = row["input_tokens"], row["output_tokens"]
            counts = (int(texts[0]), int(texts[1])) if all(texts) else None
            if counts is not None and (min(counts) < 0 or counts == (0, 0)):
                counts = None
            # the number at the end of an id sorts as a number
            stem, _, last = row["prompt_id"].rpartition("_")
            prompt = f"{stem}_{int(last):09}" if last.isdecimal() else row["prompt_id"]
            yield row["model"], (row["category"], prompt), (right, counts)
        except (KeyError, ValueError, TypeError) as error:  # noqa: PERF203 - names the line
            message = f"{path}: line {rows.line_num}: {error!r}"
            raise MatrixError(message) from None


# -- made up ---------------------------------------------------------------------------------------

# The task types of the recorded matrix and how many prompts each has; how hard they are and how
# long, roughly as there.
_TASKS = (
    ("executable_multiple_function", 50, -0.4, 480), ("executable_parallel_function", 50, 0.3, 420),
    ("executable_parallel_multiple_function", 40, 0.5, 640), ("executable_simple", 100, -0.8, 330),
    ("java", 100, 1.6, 400), ("javascript", 50, 1.0, 380), ("multiple_function", 200, -0.6, 450),
    ("parallel_function", 200, 0.1, 420), ("parallel_multiple_function", 200, 0.4, 600),
    ("relevance", 240, 0.6, 340), ("rest", 70, -0.2, 900), ("simple", 400, -0.6, 330),
)  # fmt: skip


def generate(seed: int = 1, *, models: int = 24, share: float = 1.0) -> Matrix:
    """A synthetic matrix; the same arguments give the same one everywhere.

    Skill costs money: a model's price grows with its skill, with a wide spread, and each model has
    task types that suit it better or worse than its skill says. ``share`` of the prompts are made.
    """
    rng = random.Random(f"routeledger matrix {seed}")  # noqa: S311
    tasks: list[str] = []
    hardness: list[float] = []
    lengths: list[int] = []
    for task, count, hard, tokens in _TASKS:
        for _ in range(max(2, round(count * share))):
            tasks.append(task)
            hardness.append(hard + rng.gauss(0, 1.1))
            lengths.append(max(20, round(tokens * math.exp(rng.gauss(0, 0.3)))))
    made, right, used = [], [], []
    for n in range(models):
        skill = rng.gauss(1.2, 0.7)
        price = Decimal(math.exp(0.1 + 1.1 * (skill - 1.2) + rng.gauss(0, 1.1))).quantize(
            Decimal("0.001")
        )
        suits = {task: rng.gauss(0, 0.7) for task, *_ in _TASKS}
        wordy = math.exp(rng.gauss(0, 0.25))
        # one in eight has no list price, as a model that one hosts oneself
        known = n % 8 != 7
        name = f"model-{n:02}"
        made.append(Model(name, name, price if known else None, 4 * price if known else None))
        right.append(bytes(
            rng.random() < 1 / (1 + math.exp(-1.7 * (skill + suits[task] - hard)))
            for task, hard in zip(tasks, hardness, strict=True)
        ))  # fmt: skip
        used.append(tuple(
            (length, max(4, round(wordy * 55 * math.exp(rng.gauss(0, 0.4))))) for length in lengths
        ))  # fmt: skip
    return Matrix(
        label=f"generator with the shape of the recorded matrix (seed {seed})",
        synthetic=True,
        models=tuple(made),
        tasks=tuple(tasks),
        right=tuple(right),
        tokens=tuple(used),
    )


def find_matrix(data: Path | None, seed: int = 1) -> Matrix:
    """The recorded matrix below the folder of recorded data where it is present, else the generator."""
    if data is not None and (data / FOLDER / "matrix.csv.gz").is_file():
        return load_matrix(
            data / FOLDER, label="Berkeley Function Calling Leaderboard, August 2024"
        )
    return generate(seed)


def without(matrix: Matrix, tasks: Collection[str]) -> Matrix:
    """The matrix without the prompts of some task types; MatrixError for one that it does not have."""
    _require(matrix, tasks)
    kept = [p for p in matrix.prompts if matrix.tasks[p] not in tasks]
    if not kept:
        raise MatrixError("no prompts are left")
    return replace(
        matrix,
        tasks=tuple(matrix.tasks[p] for p in kept),
        right=tuple(bytes(row[p] for p in kept) for row in matrix.right),
        tokens=tuple(tuple(row[p] for p in kept) for row in matrix.tokens),
    )


def merged(matrix: Matrix, name: str, tasks: Collection[str]) -> Matrix:
    """The matrix with some task types taken for one; MatrixError for one that it does not have."""
    _require(matrix, tasks)
    return replace(matrix, tasks=tuple(name if task in tasks else task for task in matrix.tasks))


def _require(matrix: Matrix, tasks: Collection[str]) -> None:
    known = sorted(set(matrix.tasks))
    for task in tasks:
        if task not in known:
            message = f"{task!r} is no task type of the matrix, which has {', '.join(known)}"
            raise MatrixError(message)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0
