"""Reading price catalogs: shapes, exact prices, what is unknown and what is free."""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeledger import catalog
from routeledger.catalog import CatalogRow, Skipped

LITELLM = {
    "sample_spec": {
        "litellm_provider": "one of ...",
        "input_cost_per_token": 0.0,
        "deprecation_date": "date when the model becomes deprecated in the format YYYY-MM-DD",
    },
    "gpt-4o": {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": 2.5e-06,
        "output_cost_per_token": 1e-05,
        "cache_read_input_token_cost": 1.25e-06,
        "max_input_tokens": 128000,
        "max_output_tokens": 16384,
        "deprecation_date": "2026-09-30",
    },
    "unknown": {"litellm_provider": "somebody", "mode": "chat"},
    "openrouter/free:free": {
        "litellm_provider": "openrouter",
        "mode": "chat",
        "input_cost_per_token": 0,
        "output_cost_per_token": 0.0,
    },
    "rerank": {
        "litellm_provider": "cohere",
        "mode": "chat",
        "input_cost_per_query": 0.002,
        "input_cost_per_token": 0.0,
        "output_cost_per_token": 0.0,
    },
    "pictures": {
        "litellm_provider": "openai",
        "mode": "image_generation",
        "input_cost_per_token": 0.0,
        "output_cost_per_token": 0.0,
    },
    "tiered": {
        "litellm_provider": "dashscope",
        "mode": "chat",
        "tiered_pricing": [
            {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0]},
            {
                "input_cost_per_token": 2.5e-07,
                "output_cost_per_token": 2e-06,
                "range": [256e3, 1e6],
            },
        ],
    },
    "long": {
        "litellm_provider": "anthropic",
        "mode": "chat",
        "input_cost_per_token": 3e-06,
        "input_cost_per_token_above_200k_tokens": 6e-06,
        "cache_creation_input_token_cost": 3.75e-06,
    },
    "broken": {"litellm_provider": "x", "input_cost_per_token": "cheap"},
}

PER_TOKEN = """\
snapshot,source,model,provider,mode,input_cost_per_token,output_cost_per_token,cache_read_cost_per_token,max_input_tokens,max_output_tokens,deprecation_date
2024-06-15,tokens 1,gpt-4,openai,chat,3e-05,6e-05,,8192,4096,
2026-11 (prices 2),prices 2,gpt-4,openai,chat,4.688e-09,,,8192,4096,2027-01-31
"""

PER_MTOK = """\
provider,model,constraint,start_date,input_usd_per_mtok,output_usd_per_mtok,cache_read_usd_per_mtok,context_window
openai,o3,,,10,40,0.5,200000
openai,o3,StartDateConstraint,2025-06-10,2,8,0.5,200000
groq,openai/o3,,,tiered:1.5,,,
deepseek,deepseek-chat,TimeOfDateConstraint,,0.27,1.1,,
"""


def read(path: Path, **options: Any) -> list[CatalogRow | Skipped]:
    with catalog.read_file(path, **options) as rows:
        return list(rows)


def by_slug(rows: list[CatalogRow | Skipped]) -> dict[str, Any]:
    return {str(r.name if isinstance(r, Skipped) else r["model_slug"]): r for r in rows}


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "catalog"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def litellm(tmp_path: Path) -> Path:
    return written(tmp_path, json.dumps(LITELLM))


def test_litellm(litellm: Path) -> None:
    rows = by_slug(read(litellm))
    assert "sample_spec" not in rows
    assert rows["gpt-4o"] == {
        "model_slug": "gpt-4o",
        "provider": "openai",
        "mode": "chat",
        "base_model": "gpt-4o",
        "valid_from": "1970-01-01T00:00:00+00:00",
        "input_usd_per_mtok": Decimal("2.5"),
        "output_usd_per_mtok": Decimal(10),
        "cache_read_usd_per_mtok": Decimal("1.25"),
        "cache_creation_usd_per_mtok": None,
        "max_input_tokens": 128000,
        "max_output_tokens": 16384,
        "deprecated_at": "2026-09-30T00:00:00+00:00",
        "source": "litellm",
    }
    assert rows["broken"] == Skipped("broken", "not a number: 'cheap'")


def test_unknown_is_null_and_free_is_zero(litellm: Path) -> None:
    rows = by_slug(read(litellm))
    assert rows["unknown"]["input_usd_per_mtok"] is None
    assert rows["openrouter/free:free"]["input_usd_per_mtok"] == 0
    assert rows["openrouter/free:free"]["output_usd_per_mtok"] == 0
    # zero for tokens, and something else is charged for: not free
    for name in ("rerank", "pictures"):
        assert rows[name]["input_usd_per_mtok"] is None
        assert rows[name]["output_usd_per_mtok"] is None


def test_prices_by_length_are_those_of_the_first_tier(litellm: Path) -> None:
    rows = by_slug(read(litellm))
    assert rows["tiered"]["input_usd_per_mtok"] == Decimal("0.05")
    assert rows["tiered"]["source"] == "litellm, first tier"
    assert rows["long"]["input_usd_per_mtok"] == 3
    assert rows["long"]["cache_creation_usd_per_mtok"] == Decimal("3.75")
    assert rows["long"]["source"] == "litellm, first tier"


def test_no_digit_is_lost(tmp_path: Path) -> None:
    written_as = "1.000000000000000000000000000123e-07"
    text = f'{{"m": {{"litellm_provider": "x", "input_cost_per_token": {written_as}}}}}'
    (row,) = read(written(tmp_path, text))
    assert isinstance(row, dict)
    assert row["input_usd_per_mtok"] == Decimal("0.1000000000000000000000000000123")
    assert '"input_usd_per_mtok":0.1000000000000000000000000000123,' in catalog._to_json(row)


def test_gzip_is_seen_by_content(litellm: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "prices.json"
    zipped.write_bytes(gzip.compress(litellm.read_bytes()))
    assert read(zipped) == read(litellm)


def test_per_token_csv(tmp_path: Path) -> None:
    old, new = read(written(tmp_path, PER_TOKEN))
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    assert (old["valid_from"], old["input_usd_per_mtok"]) == ("2024-06-15T00:00:00+00:00", 30)
    assert old["cache_read_usd_per_mtok"] is None
    assert new["valid_from"] == "2026-11-01T00:00:00+00:00"
    assert new["input_usd_per_mtok"] == Decimal("0.004688")
    assert new["output_usd_per_mtok"] is None
    assert new["deprecated_at"] == "2027-01-31T00:00:00+00:00"
    assert new["source"] == "prices 2"


def test_per_mtok_csv(tmp_path: Path) -> None:
    rows = read(written(tmp_path, PER_MTOK))
    always, later, sold, by_hour = rows
    assert isinstance(always, dict)
    assert isinstance(later, dict)
    assert isinstance(sold, dict)
    assert (always["model_slug"], always["valid_from"]) == ("o3", "1970-01-01T00:00:00+00:00")
    assert (later["model_slug"], later["valid_from"]) == ("o3", "2025-06-10T00:00:00+00:00")
    assert later["input_usd_per_mtok"] == 2
    assert (sold["model_slug"], sold["base_model"]) == ("groq/openai/o3", "o3")
    assert (sold["input_usd_per_mtok"], sold["output_usd_per_mtok"]) == (Decimal("1.5"), None)
    assert sold["source"] == "csv, first tier"
    assert by_hour == Skipped(
        "deepseek-chat", "conditional price: TimeOfDateConstraint", by_rule=True
    )


def test_undated_rows_take_the_date_given(tmp_path: Path) -> None:
    since = datetime(2026, 11, 1, tzinfo=timezone.utc)
    always, later, *_ = read(written(tmp_path, PER_MTOK), valid_from=since)
    assert isinstance(always, dict)
    assert isinstance(later, dict)
    assert always["valid_from"] == "2026-11-01T00:00:00+00:00"
    assert later["valid_from"] == "2025-06-10T00:00:00+00:00"


def test_the_ledgers_own_shape(tmp_path: Path) -> None:
    csv_text = (
        "model_slug,valid_from,input_usd_per_mtok,enrolled,q_prior\n"
        "m,2026-01-01,0.5,false,0.75\n"
        "n,,,,\n"
    )
    one, two = read(written(tmp_path, csv_text))
    assert one == {
        "model_slug": "m",
        "valid_from": "2026-01-01T00:00:00+00:00",
        "input_usd_per_mtok": Decimal("0.5"),
        "enrolled": False,
        "q_prior": Decimal("0.75"),
    }
    assert isinstance(two, dict)
    assert two["input_usd_per_mtok"] is None
    assert two["valid_from"] == "1970-01-01T00:00:00+00:00"
    as_json = json.dumps(
        [{"model_slug": "m", "input_usd_per_mtok": 0.5}, {"model_slug": 1, "x": 2}]
    )
    one, two = read(written(tmp_path, as_json))
    assert isinstance(one, dict)
    assert one["input_usd_per_mtok"] == Decimal("0.5")
    assert two == Skipped("1", "unknown field x")


@pytest.mark.parametrize(
    "value", ["NaN", "inf", "-inf", "1e400", "abc", "1,5", "--1"], ids=lambda value: value
)
def test_what_is_no_price_is_not_read_as_one(tmp_path: Path, value: str) -> None:
    text = f'model,input_usd_per_mtok,output_usd_per_mtok\nm,"{value}",1\nn,1,1\n'
    bad, good = read(written(tmp_path, text))
    assert isinstance(bad, Skipped)
    assert not bad.by_rule
    assert isinstance(good, dict)


def test_ragged_lines_are_told_apart(tmp_path: Path) -> None:
    rows = read(written(tmp_path, PER_MTOK.splitlines()[0] + "\nopenai,o3,\n\nopenai,o4,,,1,2,,\n"))
    assert rows[0] == Skipped("line 2", "not as many fields as the header")
    assert isinstance(rows[1], dict)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("{", "not valid JSON"),
        ('{"a": NaN}', "not valid JSON"),
        ('{"a": 1}', "LiteLLM"),
        ("[1, 2]", "model_slug"),
        ("a,b\n1,2\n", "this one has: a, b"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(catalog.CatalogError, match=says):
        read(written(tmp_path, text))


def test_a_broken_gzip_and_no_file_at_all(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(PER_TOKEN.encode())[:-20])
    with pytest.raises(catalog.CatalogError, match="not readable"):
        read(broken)
    broken.write_bytes(b"\xff\xfe\x00not utf-8")
    with pytest.raises(catalog.CatalogError, match="not readable"):
        read(broken)
    with pytest.raises(catalog.CatalogError, match="cannot read"):
        read(tmp_path / "absent")
    with pytest.raises(catalog.CatalogError):
        read(tmp_path)


def test_genai_prices() -> None:
    pytest.importorskip("genai_prices")
    rows = catalog.read_genai_prices()
    o3 = [row for row in rows if isinstance(row, dict) and row["model_slug"] == "o3"]
    assert [(row["valid_from"], row["input_usd_per_mtok"]) for row in o3] == [
        ("1970-01-01T00:00:00+00:00", Decimal(10)),
        ("2025-06-10T00:00:00+00:00", Decimal(2)),
    ]
    keys = [(row["model_slug"], row["valid_from"]) for row in rows if not isinstance(row, Skipped)]
    assert len(keys) == len(set(keys)), "two rows for one model and date"
    assert all(row.by_rule for row in rows if isinstance(row, Skipped))
