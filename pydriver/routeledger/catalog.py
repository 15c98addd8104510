"""Price catalogs: read one, turn it into rows, hand them to ``routeledger.import_models``.

Shapes understood, each plain or gzipped, recognised by content and not by file name:

- LiteLLM's ``model_prices_and_context_window.json``: an object by model name, USD per token;
- a CSV with ``input_cost_per_token`` columns, USD per token, dated by ``snapshot``;
- a CSV with ``input_usd_per_mtok`` columns, USD per million tokens, dated by ``start_date``;
- the ledger's own rows: a JSON array, or a CSV, with a ``model_slug`` column;
- the ``genai-prices`` package (``pip install 'routeledger[catalog]'``), which needs no file.

What holds for all of them:

- prices leave here as USD per million tokens, computed with :class:`~decimal.Decimal`, never float;
- an empty price is *unknown* and stays null; a zero is free and stays zero. The one exception:
  a model whose token prices are all zero while something else is charged for (a query, an image, a
  second), or which is no token model at all (``rerank``, ``image_generation``, ...), is not free:
  its token prices are unknown;
- a price that depends on the length of the prompt is recorded as its first tier, and ``source``
  says so; a price that depends on the time of day is skipped for the one that does not;
- a row without a date of its own is valid from 1970-01-01, that is, always, unless ``valid_from``
  says otherwise: a catalog without dates knows no other price, so history is priced with it too.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation, localcontext
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

import psycopg
from psycopg.rows import dict_row

__all__ = [
    "ALWAYS",
    "CatalogError",
    "CatalogRow",
    "ImportReport",
    "Skipped",
    "import_rows",
    "read_file",
    "read_genai_prices",
]

ALWAYS = datetime(1970, 1, 1, tzinfo=timezone.utc)
"""The ``valid_from`` of a price without a date: valid always."""

BATCH_ROWS = 1000
KEPT_EXAMPLES = 50

CatalogRow = dict[str, "str | int | Decimal | bool | None"]
"""One row for ``import_models``: keys are its field names, prices are Decimal."""

# Modes billed by something else than tokens: a zero token price there says nothing.
_NOT_BY_TOKEN = frozenset(
    {
        "audio_speech",
        "audio_transcription",
        "image_edit",
        "image_generation",
        "ocr",
        "rerank",
        "search",
        "vector_store",
        "video_generation",
    }
)

# Sold by its maker, a model goes by its own name; sold by anyone else, by `provider/name`.
_MAKERS: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("claude",),
    "cohere": ("command", "embed", "c4ai"),
    "deepseek": ("deepseek",),
    "google": ("gemini", "gemma"),
    "mistral": (
        "codestral",
        "devstral",
        "magistral",
        "ministral",
        "mistral",
        "mixtral",
        "pixtral",
        "voxtral",
    ),
    "moonshotai": ("kimi", "moonshot"),
    "openai": ("",),
    "voyageai": ("voyage",),
    "x-ai": ("grok",),
    "zai": ("glm",),
}

_PRICE_FIELDS = (
    "input_usd_per_mtok",
    "output_usd_per_mtok",
    "cache_read_usd_per_mtok",
    "cache_creation_usd_per_mtok",
)

_NATIVE_NUMBERS = (*_PRICE_FIELDS, "q_prior", "expected_latency_ms")
_NATIVE_INTEGERS = ("max_input_tokens", "max_output_tokens")
_NATIVE_TEXTS = ("model_slug", "provider", "brand_slug", "base_model", "mode", "source")
_NATIVE_TIMES = ("valid_from", "deprecated_at")


class CatalogError(ValueError):
    """The catalog cannot be read: not a known shape, not readable, or not there."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of the catalog that was not sent, and why.

    ``by_rule``: left out on purpose; otherwise it could not be read.
    """

    name: str
    reason: str
    by_rule: bool = False


@dataclass(slots=True)
class ImportReport:
    """What became of a catalog.

    ``read`` is the sum of ``accepted`` (new or changed), ``replayed`` (known already), ``refused``
    (by the ledger), ``skipped`` (left out by rule) and ``unreadable``. ``flagged`` prices and those
    ``unknown_price`` are among the first two. The lists hold the first 50 of each.
    """

    read: int = 0
    accepted: int = 0
    replayed: int = 0
    refused: int = 0
    flagged: int = 0
    skipped: int = 0
    unreadable: int = 0
    unknown_price: int = 0
    refusals: list[dict[str, Any]] = field(default_factory=list)
    flags: list[dict[str, Any]] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)


def import_rows(
    conn: psycopg.Connection[Any],
    rows: Iterable[CatalogRow | Skipped],
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[ImportReport], None] | None = None,
) -> ImportReport:
    """Send rows to ``import_models`` in batches of about ``batch_rows``; say what became of them.

    Running it again sends the same rows and they are replayed, so an interrupted import is simply
    run again. Where rows of several dates describe one model, its attributes (token limits,
    deprecation, mode) are those of the latest.
    """
    report = ImportReport()
    batch: list[CatalogRow] = []
    for family in _families(rows, report):
        batch += family
        if len(batch) >= batch_rows:
            _send(conn, batch, report)
            batch = []
            if progress is not None:
                progress(report)
    if batch:
        _send(conn, batch, report)
    if progress is not None:
        progress(report)
    return report


def _families(
    rows: Iterable[CatalogRow | Skipped], report: ImportReport
) -> Iterator[list[CatalogRow]]:
    """The rows by base model, each family whole and in order of date.

    Prices are judged against those of the same base model, so a family that came in two batches
    would be judged twice, and the first time on half of the evidence.
    """
    families: dict[str, list[CatalogRow]] = {}
    for entry in rows:
        if not isinstance(entry, Skipped):
            key = str(entry.get("base_model") or _base_model(str(entry.get("model_slug"))))
            families.setdefault(key, []).append(entry)
        elif entry.by_rule:
            report.skipped += 1
        else:
            report.unreadable += 1
            _keep(report.unread, {"model": entry.name, "reason": entry.reason})
    report.read = report.skipped + report.unreadable
    for family in families.values():
        family.sort(key=lambda row: str(row.get("valid_from")))
        yield _attributes_of_latest(family)


_ATTRIBUTES = (
    "provider",
    "brand_slug",
    "mode",
    "max_input_tokens",
    "max_output_tokens",
    "deprecated_at",
    "q_prior",
    "expected_latency_ms",
    "enrolled",
)


def _attributes_of_latest(family: list[CatalogRow]) -> list[CatalogRow]:
    """Leave a model's attributes in its latest row only, so that dates do not overwrite another."""
    latest = {row.get("model_slug"): position for position, row in enumerate(family)}
    return [
        row
        if latest[row.get("model_slug")] == position
        else {key: value for key, value in row.items() if key not in _ATTRIBUTES}
        for position, row in enumerate(family)
    ]


def _send(conn: psycopg.Connection[Any], batch: list[CatalogRow], report: ImportReport) -> None:
    text = "[" + ",".join(_to_json(row) for row in batch) + "]"
    report.read += len(batch)
    report.unknown_price += sum(row.get("input_usd_per_mtok") is None for row in batch)
    with conn.cursor(row_factory=dict_row) as cur:
        cur.execute(
            "select * from routeledger.import_models(p_rows => %(rows)s::jsonb)", {"rows": text}
        )
        for row, answer in zip(batch, cur.fetchall(), strict=True):
            status = answer["status"]
            if status == "accepted":
                report.accepted += 1
            elif status == "replayed":
                report.replayed += 1
            else:
                report.refused += 1
                _keep(
                    report.refusals,
                    {
                        "model": row.get("model_slug"),
                        "code": answer["code"],
                        "message": answer["message"],
                        "detail": answer["detail"],
                        "hint": answer["hint"],
                    },
                )
            if status != "refused" and answer["flag"] is not None:
                report.flagged += 1
                _keep(
                    report.flags,
                    {
                        "model": answer["model_slug"],
                        "valid_from": answer["valid_from"],
                        "flag": answer["flag"],
                    },
                )


def _keep(kept: list[dict[str, Any]], item: dict[str, Any]) -> None:
    if len(kept) < KEPT_EXAMPLES:
        kept.append(item)


def _to_json(row: CatalogRow) -> str:
    """JSON with each Decimal written out digit by digit: json.dumps would go through float."""
    return (
        "{"
        + ",".join(
            json.dumps(key)
            + ":"
            + (format(value, "f") if isinstance(value, Decimal) else json.dumps(value))
            for key, value in row.items()
        )
        + "}"
    )


# -- reading ---------------------------------------------------------------------------------------


@contextmanager
def read_file(
    path: str | Path, *, valid_from: datetime | None = None
) -> Iterator[Iterator[CatalogRow | Skipped]]:
    """Open a catalog file (``-`` for standard input) and give its rows one by one.

    ``valid_from`` dates the rows that carry no date of their own. Raises :class:`CatalogError`
    when the file is not there or in none of the known shapes.
    """
    undated = valid_from or ALWAYS
    with _open_text(path) as text:
        first = text.read(1)
        while first and (first.isspace() or first == "\ufeff"):
            first = text.read(1)
        if not first:
            raise CatalogError("the catalog is empty")
        if first in "{[":
            yield _read_json(first + text.read(), undated)
        else:
            yield _read_csv(chain([first + text.readline()], text), undated)


@contextmanager
def _open_text(path: str | Path) -> Iterator[TextIO]:
    if str(path) == "-":
        with _decoded(sys.stdin.buffer) as text:
            yield text
        return
    try:
        raw = Path(path).open("rb")  # noqa: SIM115 - closed by the with below
    except OSError as exc:
        msg = f"cannot read {path}: {exc.strerror or exc}"
        raise CatalogError(msg) from exc
    with raw, _decoded(raw) as text:
        yield text


@contextmanager
def _decoded(raw: IO[bytes]) -> Iterator[TextIO]:
    try:
        zipped = isinstance(raw, io.BufferedReader) and raw.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        yield io.TextIOWrapper(stream, encoding="utf-8", newline="")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, IsADirectoryError) as exc:
        msg = f"the catalog is not readable: {exc}"
        raise CatalogError(msg) from exc


def _read_json(text: str, undated: datetime) -> Iterator[CatalogRow | Skipped]:
    try:
        loaded = json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except ValueError as exc:
        msg = f"the catalog is not valid JSON: {exc}"
        raise CatalogError(msg) from exc
    if isinstance(loaded, list):
        if not any(isinstance(item, dict) and "model_slug" in item for item in loaded):
            raise CatalogError("a JSON array must hold objects with model_slug")
        return (_native(item, undated) for item in loaded)
    if not any(
        isinstance(value, dict)
        and ("litellm_provider" in value or any("cost_per_" in key for key in value))
        for value in loaded.values()
    ):
        raise CatalogError(
            "a JSON object must be a LiteLLM price file: model names with litellm_provider "
            "and input_cost_per_token below them"
        )
    return (
        _litellm(name, entry, undated) for name, entry in loaded.items() if name != "sample_spec"
    )


def _no_constant(name: str) -> None:
    msg = f"{name} is not a number"
    raise ValueError(msg)


def _read_csv(lines: Iterable[str], undated: datetime) -> Iterator[CatalogRow | Skipped]:
    reader = csv.DictReader(lines)
    columns = set(reader.fieldnames or ())
    convert: Callable[[dict[str, str], datetime], CatalogRow | Skipped]
    if "model_slug" in columns:
        convert = _native
    elif {"model", "input_cost_per_token", "output_cost_per_token"} <= columns:
        convert = _per_token_csv
    elif {"model", "input_usd_per_mtok", "output_usd_per_mtok"} <= columns:
        convert = _per_mtok_csv
    else:
        msg = (
            "a CSV needs the columns model_slug, or model, input_cost_per_token and "
            "output_cost_per_token, or model, input_usd_per_mtok and output_usd_per_mtok; "
            f"this one has: {', '.join(sorted(columns))}"
        )
        raise CatalogError(msg)

    def rows() -> Iterator[CatalogRow | Skipped]:
        try:
            for row in reader:
                if None in row or None in row.values():
                    yield Skipped(f"line {reader.line_num}", "not as many fields as the header")
                else:
                    yield convert(row, undated)
        except csv.Error as exc:
            msg = f"line {reader.line_num}: {exc}"
            raise CatalogError(msg) from exc

    return rows()


# -- one reader a shape ----------------------------------------------------------------------------


def _litellm(name: str, entry: object, undated: datetime) -> CatalogRow | Skipped:
    if not isinstance(entry, dict):
        return Skipped(name, "not an object")
    notes: list[str] = ["litellm"]
    costs: dict[str, Any] = entry
    tiers = entry.get("tiered_pricing")
    if isinstance(tiers, list) and tiers and isinstance(tiers[0], dict):
        if entry.get("input_cost_per_token") is None:
            costs = {**entry, **tiers[0]}
        notes.append("first tier")
    elif any("_cost_per_token_above_" in key for key in entry):
        notes.append("first tier")
    try:
        row: CatalogRow = {
            "model_slug": name,
            "provider": _text(entry.get("litellm_provider")),
            "mode": _text(entry.get("mode")),
            "base_model": _base_model(name),
            "valid_from": _utc(undated),
            "input_usd_per_mtok": _per_mtok(costs.get("input_cost_per_token")),
            "output_usd_per_mtok": _per_mtok(costs.get("output_cost_per_token")),
            "cache_read_usd_per_mtok": _per_mtok(costs.get("cache_read_input_token_cost")),
            "cache_creation_usd_per_mtok": _per_mtok(costs.get("cache_creation_input_token_cost")),
            "max_input_tokens": _tokens(entry.get("max_input_tokens", entry.get("max_tokens"))),
            "max_output_tokens": _tokens(entry.get("max_output_tokens")),
            "deprecated_at": _day(entry.get("deprecation_date")),
            "source": ", ".join(notes),
        }
        charged_otherwise = any(
            "_cost_per_" in key and "token" not in key and _positive(value)
            for key, value in entry.items()
        )
    except ValueError as exc:
        return Skipped(name, str(exc))
    return _free_or_unknown(row, charged_otherwise=charged_otherwise)


def _per_token_csv(line: dict[str, str], undated: datetime) -> CatalogRow | Skipped:
    name = line["model"]
    try:
        row: CatalogRow = {
            "model_slug": name,
            "provider": _text(line.get("provider")),
            "mode": _text(line.get("mode")),
            "base_model": _base_model(name),
            "valid_from": _day(line.get("snapshot")) or _utc(undated),
            "input_usd_per_mtok": _per_mtok(line["input_cost_per_token"]),
            "output_usd_per_mtok": _per_mtok(line["output_cost_per_token"]),
            "cache_read_usd_per_mtok": _per_mtok(line.get("cache_read_cost_per_token")),
            "cache_creation_usd_per_mtok": _per_mtok(line.get("cache_creation_cost_per_token")),
            "max_input_tokens": _tokens(line.get("max_input_tokens")),
            "max_output_tokens": _tokens(line.get("max_output_tokens")),
            "deprecated_at": _day(line.get("deprecation_date")),
            "source": _text(line.get("source")) or "csv",
        }
    except ValueError as exc:
        return Skipped(name, str(exc))
    return _free_or_unknown(row)


def _per_mtok_csv(line: dict[str, str], undated: datetime) -> CatalogRow | Skipped:
    name = line["model"]
    provider = _text(line.get("provider"))
    constraint = _text(line.get("constraint"))
    if constraint not in (None, "StartDateConstraint"):
        return Skipped(name, f"conditional price: {constraint}", by_rule=True)
    notes = [_text(line.get("source")) or "csv"]
    prices: dict[str, Decimal | None] = {}
    try:
        for column in _PRICE_FIELDS:
            text = line.get(column) or ""
            if text.startswith("tiered:"):
                text = text.removeprefix("tiered:")
                if "first tier" not in notes:
                    notes.append("first tier")
            prices[column] = _number(text)
        return _free_or_unknown(
            {
                "model_slug": _slug(provider, name),
                "provider": provider,
                "mode": _text(line.get("mode")),
                "base_model": _base_model(name),
                "valid_from": _day(line.get("start_date")) or _utc(undated),
                **prices,
                "max_input_tokens": _tokens(
                    line.get("context_window") or line.get("max_input_tokens")
                ),
                "max_output_tokens": _tokens(line.get("max_output_tokens")),
                "deprecated_at": _day(line.get("deprecation_date")),
                "source": ", ".join(notes),
            }
        )
    except ValueError as exc:
        return Skipped(name, str(exc))


def _native(entry: object, undated: datetime) -> CatalogRow | Skipped:
    """The ledger's own shape: columns go through under their names, empty text is null."""
    if not isinstance(entry, dict):
        return Skipped(str(entry)[:80], "not an object")
    name = str(entry.get("model_slug"))
    row: CatalogRow = {}
    try:
        for key, value in entry.items():
            if key in _NATIVE_NUMBERS:
                row[key] = _number(value)
            elif key in _NATIVE_INTEGERS:
                row[key] = _tokens(value)
            elif key in _NATIVE_TIMES:
                row[key] = _day(value)
            elif key == "enrolled":
                row[key] = _boolean(value)
            elif key in _NATIVE_TEXTS:
                row[key] = _text(value)
            elif value not in (None, ""):
                msg = f"unknown field {key}"
                raise ValueError(msg)
    except ValueError as exc:
        return Skipped(name, str(exc))
    row["valid_from"] = row.get("valid_from") or _utc(undated)
    return row


def read_genai_prices(*, valid_from: datetime | None = None) -> list[CatalogRow | Skipped]:
    """The rows of the installed ``genai-prices`` package, dated where it has dates.

    Raises :class:`CatalogError` when the package is not installed.
    """
    return list(_genai_prices(valid_from or ALWAYS))


def _genai_prices(undated: datetime) -> Iterator[CatalogRow | Skipped]:
    try:
        import genai_prices
        from genai_prices.data import providers
        from genai_prices.types import ConditionalPrice, StartDateConstraint, TieredPrices
    except ImportError as exc:
        raise CatalogError(
            "the default catalog is not installed; get it with: pip install "
            "'routeledger[catalog]', or give a price file"
        ) from exc
    origin = f"genai-prices {genai_prices.__version__}"
    names = {
        "input_usd_per_mtok": "input_mtok",
        "output_usd_per_mtok": "output_mtok",
        "cache_read_usd_per_mtok": "cache_read_mtok",
        "cache_creation_usd_per_mtok": "cache_write_mtok",
    }
    for provider in providers:
        for model in provider.models:
            slug = _slug(provider.id, model.id)
            listed = model.prices
            conditional = listed if isinstance(listed, list) else [ConditionalPrice(prices=listed)]
            for item in conditional:
                since = _utc(undated)
                if isinstance(item.constraint, StartDateConstraint):
                    since = _utc(_midnight(item.constraint.start_date))
                elif item.constraint is not None:
                    yield Skipped(
                        slug, f"conditional price: {type(item.constraint).__name__}", by_rule=True
                    )
                    continue
                notes = [origin]
                prices: dict[str, Decimal | None] = {}
                for column, attribute in names.items():
                    price = getattr(item.prices, attribute, None)
                    if isinstance(price, TieredPrices):
                        price = price.base
                        if "first tier" not in notes:
                            notes.append("first tier")
                    prices[column] = price
                yield _free_or_unknown(
                    {
                        "model_slug": slug,
                        "provider": provider.id,
                        "base_model": _base_model(model.id),
                        "valid_from": since,
                        **prices,
                        "max_input_tokens": model.context_window,
                        "source": ", ".join(notes),
                    },
                    charged_otherwise=any(
                        not key.endswith("_mtok") and isinstance(value, Decimal) and value > 0
                        for key, value in vars(item.prices).items()
                    ),
                )


# -- values ----------------------------------------------------------------------------------------


def _slug(provider: str | None, name: str) -> str:
    if provider is None or name.lower().startswith(_MAKERS.get(provider, ("\0",))):
        return name
    return f"{provider}/{name}"


def _base_model(name: str) -> str:
    """The model behind a reseller's name: the last part of the path, lower case, no variant tag."""
    last = name.rsplit("/", 1)[-1].lower()
    return last.split("@", 1)[0] or name


def _free_or_unknown(row: CatalogRow, *, charged_otherwise: bool = False) -> CatalogRow:
    """Turn all-zero token prices into unknown ones where zero does not mean free."""
    if charged_otherwise or row.get("mode") in _NOT_BY_TOKEN:
        known = [row.get(column) for column in _PRICE_FIELDS if row.get(column) is not None]
        if all(price == 0 for price in known):
            for column in _PRICE_FIELDS:
                if column in row:
                    row[column] = None
    return row


def _number(value: object) -> Decimal | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        msg = f"not a number: {value!r}"
        raise ValueError(msg)
    try:
        number = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        msg = f"not a number: {value!r}"
        raise ValueError(msg) from None
    if not number.is_finite() or not -30 <= number.adjusted() <= 30:
        msg = f"not a price: {value!r}"
        raise ValueError(msg)
    return number


def _positive(value: object) -> bool:
    number = _number(value) if isinstance(value, (str, int, Decimal)) else None
    return number is not None and number > 0


def _per_mtok(value: object) -> Decimal | None:
    number = _number(value)
    if number is None:
        return None
    with localcontext() as context:
        context.prec = 100
        return number.scaleb(6)


def _tokens(value: object) -> int | None:
    try:
        number = _number(value)
    except ValueError:
        return None
    return None if number is None or number <= 0 else int(number)


def _text(value: object) -> str | None:
    if value is None:
        return None
    return str(value).strip() or None


def _boolean(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    known = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False, "": None}
    text = str(value).strip().lower()
    if text not in known:
        msg = f"not a boolean: {value!r}"
        raise ValueError(msg)
    return known[text]


_DATE = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?(?=$|[ T(])")


def _day(value: object) -> str | None:
    """An instant in ISO 8601, UTC, of a date, a month (``2026-11 (…)``: its first), or a time."""
    text = _text(value)
    if text is None:
        return None
    match = _DATE.match(text)
    if match is None:
        msg = f"not a date: {value!r}"
        raise ValueError(msg)
    year, month, day = (int(part or 1) for part in match.groups())
    try:
        if text[match.end() : match.end() + 1] in ("T", " ") and match.group(3):
            instant = datetime.fromisoformat(text.replace("Z", "+00:00"))
        else:
            instant = datetime(year, month, day, tzinfo=timezone.utc)
    except ValueError:
        msg = f"not a date: {value!r}"
        raise ValueError(msg) from None
    return _utc(instant if instant.tzinfo else instant.replace(tzinfo=timezone.utc))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)


def _utc(instant: datetime) -> str:
    return instant.astimezone(timezone.utc).isoformat()
