"""The traffic: recorded files are read exactly, generated requests have the shape of real ones."""

from __future__ import annotations

import gzip
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from routeledger.demo.trace import (
    AZURE_FILE,
    Request,
    TraceError,
    data_dir,
    find_trace,
    generate,
    load_trace,
    parse_ticks,
)

SAMPLE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:15:51.2224670,879,55\r\n"
    "2023-11-16 18:15:51.2224671,91,16\r\n"
)
EXPECTED = (
    Request(0, 0.0, 374, 44),
    Request(1, 4.314579, 396, 109),
    Request(2, 4.541877, 879, 55),
    Request(3, 4.5418771, 91, 16),
)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without recorded data."""
    monkeypatch.setenv("ROUTELEDGER_DATA", "")


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


# -- recorded traces -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_reads_all_seven_digits(tmp_path: Path, name: str) -> None:
    trace = load_trace(write(tmp_path / name, SAMPLE))
    assert trace.requests == EXPECTED
    assert trace.span_s == 4.5418771
    assert trace.label == name
    assert not trace.synthetic


def test_ticks_tell_apart_what_microseconds_do_not() -> None:
    assert (
        parse_ticks("2023-11-16 18:15:51.2224671") - parse_ticks("2023-11-16 18:15:51.222467") == 1
    )
    assert parse_ticks("1970-01-01 00:00:01") == 10_000_000
    assert parse_ticks("1970-01-01T00:00:00.5Z") == 5_000_000


@pytest.mark.parametrize("zone", ["+00:00", "Z", "", " +00"])
def test_a_time_without_zone_is_utc(zone: str) -> None:
    assert parse_ticks("2024-05-12 00:00:00.0039250" + zone) == parse_ticks(
        "2024-05-12 00:00:00.003925"
    )


def test_zones_shift() -> None:
    utc = parse_ticks("2024-05-12 10:00:00")
    assert parse_ticks("2024-05-12 12:30:00+02:30") == utc
    assert parse_ticks("2024-05-12 06:00:00-0400") == utc


def test_limit_reads_the_first(tmp_path: Path) -> None:
    assert load_trace(write(tmp_path / "t.csv", SAMPLE), 2).requests == EXPECTED[:2]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    text = "\ufeffmodel,generatedtokens, ContextTokens ,TIMESTAMP\nx,44,374,2023-11-16 18:15:46\n\n"
    assert load_trace(write(tmp_path / "t.csv", text)).requests == (Request(0, 0.0, 374, 44),)


def test_unsorted_rows_are_sorted(tmp_path: Path) -> None:
    lines = SAMPLE.splitlines(keepends=True)
    shuffled = "".join([lines[0], lines[3], lines[1], lines[4], lines[2]])
    assert load_trace(write(tmp_path / "t.csv", shuffled)).requests == EXPECTED


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: the columns must include TIMESTAMP"),
        ("a,b,c\n1,2,3\n", "line 1: the columns must include TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no requests"),
        (SAMPLE + "yesterday,1,2\r\n", "line 6: 'yesterday' is not a timestamp"),
        (SAMPLE + "2023-13-16 18:15:46,1,2\r\n", "line 6: month must be in 1..12"),
        (SAMPLE + "2023-11-16 18:15:52,-1,2\r\n", "line 6: '-1' is not a number of tokens"),
        (SAMPLE + "2023-11-16 18:15:52,many,2\r\n", "line 6: invalid literal"),
        (SAMPLE + "2023-11-16 18:15:52,1\r\n", "line 6: "),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        load_trace(tmp_path / "none.csv")
    broken = tmp_path / "t.csv.gz"
    broken.write_bytes(gzip.compress(SAMPLE.encode())[:-20])
    with pytest.raises(TraceError, match="cannot be read"):
        load_trace(broken)
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(SAMPLE)
    with pytest.raises(TraceError, match="cannot be read"):
        load_trace(plain)


# -- the generator ---------------------------------------------------------------------------------


def test_same_seed_same_requests() -> None:
    assert generate(500, 3) == generate(500, 3)
    assert generate(500, 3).requests != generate(500, 4).requests


def test_fewer_requests_are_the_first_of_more() -> None:
    assert generate(50, 3).requests == generate(500, 3).requests[:50]


def test_generator_is_the_same_everywhere() -> None:
    """These values must not change with the platform or the Python version."""
    assert generate(3, 1).requests == (
        Request(0, 0.0, 201, 23),
        Request(1, 0.2345709, 4023, 42),
        Request(2, 0.9258603, 1144, 394),
    )


def test_generator_of_nothing() -> None:
    trace = generate(0)
    assert trace.requests == ()
    assert trace.span_s == 0


def close(value: float, expected: float, share: float) -> bool:
    return abs(value - expected) <= expected * share


def test_generated_lengths_have_the_shape_of_recorded_ones() -> None:
    requests = generate(20_000, 11).requests
    context = sorted(r.context_tokens for r in requests)
    generated = sorted(r.generated_tokens for r in requests)
    assert close(statistics.mean(context), 1_155, 0.04)
    assert close(statistics.mean(generated), 211, 0.04)
    for values, quantiles in (
        (context, {0.1: 207, 0.25: 396, 0.5: 1_020, 0.75: 1_189, 0.9: 2_735}),
        (generated, {0.1: 54, 0.25: 85, 0.5: 129, 0.75: 395, 0.9: 424}),
    ):
        for level, expected in quantiles.items():
            assert close(values[int(level * len(values))], expected, 0.08), (level, expected)
    assert context[0] >= 2
    assert context[-1] <= 14_050
    assert generated[0] >= 1
    assert generated[-1] <= 1_000


def test_generated_answers_depend_on_the_prompt() -> None:
    """Prompts of about a thousand tokens get long answers, others short ones."""
    requests = generate(20_000, 11).requests
    middle = [r.generated_tokens for r in requests if 900 <= r.context_tokens < 1_300]
    others = [r.generated_tokens for r in requests if r.context_tokens >= 3_500]
    assert statistics.median(middle) > 350
    assert statistics.median(others) < 80


def test_generated_arrivals_are_a_drifting_poisson_process() -> None:
    requests = generate(20_000, 11).requests
    offsets = [r.offset_s for r in requests]
    assert offsets == sorted(offsets)
    assert close(offsets[-1], 3_600, 0.05)
    # Within two minutes the gaps are exponential: mean and deviation are equal.
    begin = [at for at in offsets if 600 <= at < 720]
    gaps = [b - a for a, b in pairwise(begin)]
    assert close(statistics.mean(gaps), 60 / 302, 0.15)
    assert close(statistics.pstdev(gaps) / statistics.mean(gaps), 1.0, 0.2)
    # The busy quarter of the hour is much busier than the rest.
    busy = sum(1_500 <= at < 2_160 for at in offsets) / 660
    calm = sum(2_700 <= at < 3_360 for at in offsets) / 660
    assert busy > 1.5 * calm


# -- where the data is looked for ------------------------------------------------------------------


@pytest.mark.usefixtures("no_data")
def test_without_data_the_generator_serves() -> None:
    assert data_dir() is None
    trace = find_trace(20, seed=5)
    assert trace.synthetic
    assert trace == generate(20, 5)


def test_recorded_data_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTELEDGER_DATA", str(tmp_path))
    assert find_trace(2).synthetic
    (tmp_path / AZURE_FILE).parent.mkdir()
    write(tmp_path / AZURE_FILE, SAMPLE)
    assert data_dir() == tmp_path
    trace = find_trace(2)
    assert trace.requests == EXPECTED[:2]
    assert not trace.synthetic


def test_data_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTELEDGER_DATA", str(tmp_path / "none"))
    assert data_dir() is None
