"""What counts as a verdict, and what a model's answer must look like to be one."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routeledger import judging
from routeledger.errors import LedgerBusy
from routeledger.judging import BadVerdict, JudgeUnavailable, Verdict, as_verdict
from routeledger.model_judge import Scale, Unreadable, read_answer


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (0.25, Verdict(0.25)),
        (1, Verdict(1.0)),
        (True, Verdict(1.0)),
        (False, Verdict(0.0)),
        (Decimal("0.5"), Verdict(0.5)),
        (-1, Verdict(-1.0)),
        (Verdict(None), Verdict(None, "cannot_evaluate")),
        (Verdict(None, "no_reference"), Verdict(None, "no_reference")),
        ({"score": 0, "label": "wrong"}, Verdict(0.0, "wrong")),
        ({"score": None, "rationale": "why"}, Verdict(None, "cannot_evaluate", "why")),
        ({"score": 1, "cost_usd": 0.1}, Verdict(1.0, cost_usd=Decimal("0.1"))),
        (Verdict(1, "", ""), Verdict(1.0)),
        (Verdict(1, "x" * 300, "a\x00b"), Verdict(1.0, "x" * 199 + "…", "a\ufffdb")),
    ],
)
def test_a_verdict(answer: Any, verdict: Verdict) -> None:
    assert as_verdict(answer) == verdict
    assert as_verdict(answer).usable is (verdict.score is not None and verdict.score >= 0)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "0.5",
        "",
        [],
        object(),
        2,
        1.01,
        -0.01,
        -2,
        math.nan,
        math.inf,
        Decimal("NaN"),
        1j,
        {},
        {"label": "right"},
        {"score": "1"},
        {"score": 1, "verdict": "right"},
        {"score": [1]},
        Verdict(1, label=7),  # type: ignore[arg-type]
        Verdict(1, rationale=["why"]),  # type: ignore[arg-type]
        Verdict(1, input_tokens=-1),
        Verdict(1, output_tokens=1.5),  # type: ignore[arg-type]
        Verdict(1, input_tokens=True),
        Verdict(1, cost_usd=-0.01),
        Verdict(1, cost_usd=math.nan),
        Verdict(1, cost_usd=True),
        Verdict(1, cost_usd="1"),  # type: ignore[arg-type]
    ],
    ids=lambda answer: "object" if type(answer) is object else repr(answer),
)
def test_no_verdict(answer: Any) -> None:
    with pytest.raises(BadVerdict):
        as_verdict(answer)


GOOD = '{"rationale": "It runs.", "score": 0.8, "label": "partly"}'


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (GOOD, 0.8),
        (f"```json\n{GOOD}\n```", 0.8),
        (f"Let me see. {{not json}} The verdict:\n{GOOD}\nThat is all.", 0.8),
        (f'<think>At first {{"score": 0.1}}, {{"score": 0.2}} …</think>\n{GOOD}', 0.8),
        ('{"score": 0.1} no, rather {"score": "0.9"}', 0.9),
        ('{"score": 1}{"note": "no score here"}', 1.0),
        ('{"score": null, "label": "cannot_judge"}', None),
        ('{"score": 0, "rationale": 7, "label": ["x"]}', 0.0),
    ],
)
def test_a_readable_answer(text: str, score: float | None) -> None:
    verdict = read_answer(text)
    assert verdict.score == score
    if text == GOOD:
        assert (verdict.label, verdict.rationale) == ("partly", "It runs.")
        assert read_answer(text, strict=True) == verdict
    elif not text.startswith('{"score": null'):
        with pytest.raises(Unreadable):
            read_answer(text, strict=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.8",
        "[0.8]",
        "The answer is correct.",
        '{"rationale": "good"}',
        '{"score": true}',
        '{"score": "high"}',
        '{"score": ""}',
        '{"score": 8}',
        '{"score": -1}',
        '{"score": 1.0000001}',
        '{"score": NaN}',
        '{"score": "nan"}',
        '{"score": Infinity}',
        '{"score": {"value": 1}}',
        '{"score": 1' + "0" * 400 + "}",
        '{"score": 0.8',
        '{"score":' * 3000,
        "[" * 50_000 + '{"a":' * 50_000,
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_unreadable_answer(text: str, strict: bool) -> None:
    with pytest.raises(Unreadable):
        read_answer(text, strict=strict)


@settings(max_examples=200)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_is_scored_by_accident(text: str) -> None:
    """Without an object that has a score there is none, and never an error of another kind."""
    with pytest.raises(Unreadable):
        read_answer(text)


@settings(max_examples=200)
@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1),
)
def test_scores_of_a_scale(low: float, width: float, value: float) -> None:
    scale = Scale(low, low + width)
    score = low + value * width if 0 <= value <= 1 else value
    if scale.low <= score <= scale.high:
        read = read_answer(json.dumps({"score": score}), scale=scale).score
        assert read is not None
        assert 0 <= read <= 1
    else:
        with pytest.raises(Unreadable):
            read_answer(json.dumps({"score": score}), scale=scale)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_no_scale(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="scale"):
        Scale(*ends)


class StatusError(Exception):
    """As clients of providers raise them."""

    def __init__(self, status_code: int, **headers: str) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = headers


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (StatusError(429, **{"retry-after": "7"}), (7.0, True, False)),
        (StatusError(429), (None, True, False)),
        (StatusError(500), (None, False, False)),
        (StatusError(529), (None, False, False)),
        (StatusError(401), (None, False, False)),
        (TimeoutError(), (None, False, False)),
        (ConnectionResetError(), (None, False, False)),
        (JudgeUnavailable("later", retry_after=3), (3, True, False)),
        (JudgeUnavailable("no key", fatal=True), (None, False, True)),
        (StatusError(400), None),
        (StatusError(404), None),
        (ValueError("mine"), None),
        (BadVerdict("none"), None),
        (LedgerBusy("the judge reads the ledger itself"), None),
    ],
    ids=repr,
)
def test_who_is_to_blame(error: Exception, away: tuple[Any, ...] | None) -> None:
    found = judging._unavailable(error)
    assert (found and (found.retry_after, found.rate_limited, found.fatal)) == away


def test_judges_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges_by_name.py").write_text(
        "import functools\n"
        "def plain(j): return 1\n"
        "async def later(j): return 1\n"
        "class Made:\n"
        "    version = '2'\n"
        "    async def __call__(self, j): return 1\n"
        "    def method(self, j): return 1\n"
        "made = Made()\n"
        "partly = functools.partial(later)\n"
        "nothing = 7\n"
        "class Needs:\n"
        "    def __init__(self, more): pass\n"
    )
    (tmp_path / "judges_broken.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(tmp_path)])
    found = {
        name: judging.is_async(judging.load(f"judges_by_name:{name}"))
        for name in ("plain", "later", "Made", "made", "made.method", "partly")
    }
    assert found == {
        "plain": False,
        "later": True,
        "Made": True,
        "made": True,
        "made.method": False,
        "partly": True,
    }
    for spec in ("judges_by_name", ":plain", "judges_by_name:", "judges_by_name:absent"):
        with pytest.raises(ValueError, match="judge"):
            judging.load(spec)
    with pytest.raises(ValueError, match="called"):
        judging.load("judges_by_name:nothing")
    with pytest.raises(ValueError, match="there is no module surely_not_there"):
        judging.load("surely_not_there.judges:judge")
    with pytest.raises(ModuleNotFoundError):
        judging.load("judges_broken:judge")
    with pytest.raises(TypeError):
        judging.load("judges_by_name:Needs")


def test_the_page_shows_the_example() -> None:
    repo = Path(__file__).resolve().parents[2]
    code = (repo / "examples" / "checks.py").read_text().split('"""\n\n', 1)[1]
    assert f"```python\n{code}```\n" in (repo / "docs" / "how-to" / "judge.md").read_text()
