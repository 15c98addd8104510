"""Reading matrices and policies, and the arithmetic of the intervals: no database."""

from __future__ import annotations

import gzip
import random
from decimal import Decimal
from pathlib import Path

import pytest

from routeledger.replay import (
    Line,
    MatrixError,
    find_matrix,
    generate,
    load_matrix,
    merged,
    read_policy,
    without,
)
from routeledger.replay.lines import Sample, bootstrap
from routeledger.replay.report import ESTIMATORS, estimate_rows, left_out, mean_weight
from routeledger.replay.study import _halve, _parity
from routeledger.types import PolicyEstimate

ANSWERS = """model,category,prompt_id,input_tokens,output_tokens,correct
b,sums,sums_10,100,5,1
b,sums,sums_9,100,5,0
a,sums,sums_10,,,1
a,sums,sums_9,0,0,1
"""
PRICES = """model,price_key,input_usd_per_token,output_usd_per_token
a,,1.5e-07,6e-07
b,vendor/b-large,,
"""


def write(folder: Path, answers: str = ANSWERS, prices: str = PRICES) -> Path:
    (folder / "matrix.csv").write_text(answers)
    (folder / "model_prices.csv").write_text(prices)
    return folder


def test_a_folder_is_read_with_unknown_as_unknown(tmp_path: Path) -> None:
    matrix = load_matrix(write(tmp_path))
    a, b = matrix.models
    assert (a.name, a.base_model, a.input_usd, a.output_usd) == (
        "a",
        "a",
        Decimal("0.15"),
        Decimal("0.6"),
    )
    assert (b.name, b.base_model, b.priced) == ("b", "b-large", False)
    # the ninth prompt comes before the tenth
    assert matrix.right == (b"\1\1", b"\0\1")
    # no counts, and counts of nothing, are not known
    assert matrix.tokens == ((None, None), ((100, 5), (100, 5)))
    assert not matrix.synthetic
    assert matrix.label == tmp_path.name


def test_a_gzipped_matrix_and_a_model_without_price(tmp_path: Path) -> None:
    write(tmp_path, prices="model,input_usd_per_token,output_usd_per_token\na,1e-6,2e-6\n")
    (tmp_path / "matrix.csv.gz").write_bytes(gzip.compress(ANSWERS.encode()))
    (tmp_path / "matrix.csv").unlink()
    assert [model.priced for model in load_matrix(tmp_path).models] == [True, False]


@pytest.mark.parametrize(
    ("answers", "prices", "complaint"),
    [
        (ANSWERS.replace("a,sums,sums_9,0,0,1\n", ""), PRICES, "a has 1 of 2 prompts"),
        (ANSWERS.replace("100,5,1", "100,5,yes"), PRICES, "matrix.csv: line 2"),
        (ANSWERS.replace("100,5,1", "many,5,1"), PRICES, "matrix.csv: line 2"),
        (ANSWERS.replace("correct", "right"), PRICES, "matrix.csv: line 2"),
        (ANSWERS.splitlines()[0] + "\n", PRICES, "holds no answers"),
        (ANSWERS, PRICES.replace("1.5e-07", "cheap"), "model_prices.csv: line 2"),
        (ANSWERS, PRICES.replace("1.5e-07", "-1"), "model_prices.csv: line 2"),
        (ANSWERS, PRICES.replace("1.5e-07", "NaN"), "model_prices.csv: line 2"),
    ],
)
def test_what_is_no_matrix_is_told_where(
    tmp_path: Path, answers: str, prices: str, complaint: str
) -> None:
    with pytest.raises(MatrixError, match=complaint):
        load_matrix(write(tmp_path, answers, prices))


def test_a_folder_without_a_matrix_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match=r"there must be a matrix\.csv"):
        load_matrix(tmp_path)
    write(tmp_path)
    (tmp_path / "matrix.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(MatrixError, match="cannot be read"):
        load_matrix(tmp_path)


def test_the_generator_says_what_it_is_and_repeats_itself(tmp_path: Path) -> None:
    one = generate(7, models=16, share=0.1)
    assert one.synthetic
    assert "seed 7" in one.label
    assert one == generate(7, models=16, share=0.1)
    assert one != generate(8, models=16, share=0.1)
    assert sum(not model.priced for model in one.models) == 2
    full = find_matrix(None, 7)
    assert full.synthetic
    assert len(full.tasks) == 1_700
    # the recorded one where there is one
    assert find_matrix(tmp_path, 7) == full
    (tmp_path / "bfcl_2024_08").mkdir()
    folder = write(tmp_path / "bfcl_2024_08")
    (folder / "matrix.csv.gz").write_bytes(gzip.compress(ANSWERS.encode()))
    assert not find_matrix(tmp_path, 7).synthetic


def test_task_types_are_left_out_and_merged() -> None:
    matrix = generate(1, models=2, share=0.1)
    rest = without(matrix, ["java", "rest"])
    assert set(rest.tasks) == set(matrix.tasks) - {"java", "rest"}
    kept = [p for p in matrix.prompts if matrix.tasks[p] not in ("java", "rest")]
    assert rest.right[1] == bytes(matrix.right[1][p] for p in kept)
    assert rest.tokens[1] == tuple(matrix.tokens[1][p] for p in kept)
    script = merged(matrix, "script", ["java", "javascript"])
    assert script.right == matrix.right
    assert script.tasks.count("script") == matrix.tasks.count("java") + matrix.tasks.count(
        "javascript"
    )
    with pytest.raises(MatrixError, match="'jav' is no task type"):
        merged(matrix, "script", ["jav"])
    with pytest.raises(MatrixError, match="no prompts are left"):
        without(matrix, set(matrix.tasks))


def test_policies_as_they_are_written() -> None:
    assert read_policy("careful").name == "careful"
    changed = read_policy(' default  {"min_quality": 0.9} ')
    assert (changed.name, changed.overrides) == ("default", {"min_quality": 0.9})
    assert changed.title == 'default {"min_quality": 0.9}'
    assert read_policy('{"min_quality": 0}').name == "default"
    for text in ("", "  ", "default {nonsense}", "two names", "default {} more"):
        with pytest.raises(ValueError, match=r"policy|JSON"):
            read_policy(text)


def test_halves_share_every_task_and_no_prompt() -> None:
    matrix = generate(1, models=2, share=0.1)
    for training, trial in [*_halve(matrix, "x"), _parity(matrix)]:
        assert not set(training) & set(trial)
        assert sorted([*training, *trial]) == list(matrix.prompts)
        for task in set(matrix.tasks):
            counts = [sum(matrix.tasks[p] == task for p in half) for half in (training, trial)]
            assert abs(counts[0] - counts[1]) <= 1
    assert _halve(matrix, "x") == _halve(matrix, "x")
    assert _halve(matrix, "x") != _halve(matrix, "y")


def line(lines: list[Line], title: str) -> Line:
    return next(one for one in lines if one.title == title)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 100 samples of a known mean about 95 intervals hold it; 85 is six deviations off."""
    rng = random.Random(5)
    held = 0
    for n in range(100):
        right = [float(rng.random() < 0.8) for _ in range(150)]
        (found,) = bootstrap([Sample("x", "y", right, right)], [], seed=n, resamples=200)
        held += found.right.low <= 0.8 <= found.right.high
    assert held >= 85


def test_differences_are_paired_and_noise_widens() -> None:
    rng = random.Random(5)
    base = [float(rng.random() < 0.7) for _ in range(400)]
    better = [max(b, float(n % 20 == 0)) for n, b in enumerate(base)]
    samples = [
        Sample("base", "x", base, [0.002] * 400),
        Sample("better", "x", better, [0.001] * 400),
        Sample("noisy", "x", better, [0.001] * 400, noise=0.1),
    ]
    lines = bootstrap(samples, ["base"], seed=1)
    found = line(lines, "better").against["base"]
    # better or equal everywhere, and cheaper: so it is in every resample
    assert found.right.low >= 0
    assert found.usd_per_1000.high < 0
    assert found.sure == 1.0
    assert "base" not in line(lines, "base").against
    noisy, calm = line(lines, "noisy").right, line(lines, "better").right
    assert noisy.value == calm.value
    assert noisy.high - noisy.low > 3 * (calm.high - calm.low)
    assert line(lines, "better").usd_per_1000.value == pytest.approx(1.0)


def test_nothing_to_judge_is_no_error() -> None:
    (only,) = bootstrap([Sample("x", "y", [], [])], ["x"], seed=1)
    assert only.right.value == 0


def estimates(**changes: object) -> list[PolicyEstimate]:
    """Ten of an estimate of 0.5 in 90 of 100 decisions, with changes."""
    return [
        PolicyEstimate(**{
            "estimator": estimator, "measure": measure, "value": 0.5, "standard_error": 0.3, "low": -0.1,
            "high": 1.1, "decisions": 100, "n": 90, "answered": 90, "matched": 40, "effective_n": 12.6,
            "mean_weight": 1.0, "largest_weight": 4.0, "no_candidates": 0, "no_propensity": 0,
            "no_chance": 10, "unmeasured": 0, "ruleset_hash": "", **changes,
        })  # type: ignore[arg-type]
        for measure in ("quality", "cost_usd")
        for estimator in ESTIMATORS
    ]  # fmt: skip


def test_estimates_as_people_read_them() -> None:
    rows = estimate_rows(estimates())
    assert [row[0] for row in rows] == list(ESTIMATORS.values())
    assert rows[2][1:] == [
        "50.0 %",
        "−10.0 – 110.0",
        "$500.00",
        "−$100.00 – $1,100.00",
        "90",
        "40",
        "13",
    ]
    told = left_out(estimates())
    assert told == (
        "the quality of 90, the cost of 90 of 100 decisions; "
        "left out: 10 for which the policy's choice had no chance"
    )
    assert "left out" not in left_out(estimates(no_chance=0, n=100))
    assert mean_weight(estimates(mean_weight=0.874)).startswith("mean weight 0.87: ")
    assert mean_weight(estimates(mean_weight=None)) == ""


def test_what_cannot_be_estimated_is_a_dash() -> None:
    nothing = estimates(
        value=None, standard_error=None, low=None, high=None, n=0, matched=None, effective_n=None
    )
    assert estimate_rows(nothing)[4][1:] == ["—", "—", "—", "—", "0", "—", "—"]
    # one decision has a value, but no interval
    single = estimates(standard_error=None, low=None, high=None)
    assert estimate_rows(single)[1][1:5] == ["50.0 %", "—", "$500.00", "—"]
