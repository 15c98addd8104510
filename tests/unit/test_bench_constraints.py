"""What the measurement of constraints makes of the readings and the statements it has collected."""

from __future__ import annotations

import pytest

from bench.constraints import (
    EXCLUSIVE,
    Reading,
    exclusive,
    held,
    ratio,
    summarise,
    under_way,
    within,
)


def readings(seen: str) -> list[Reading]:
    """One every second, asked on the second and answered a tenth later; X: the lock was there."""
    return [
        Reading(float(n), n + 0.1, (EXCLUSIVE,) if mark == "X" else ("AccessShareLock",))
        for n, mark in enumerate(seen)
    ]


@pytest.mark.parametrize(
    ("seen", "least", "most"),
    [
        ("", 0.0, 0.0),
        ("....", 0.0, 0.0),
        (".X..", 0.0, 2.1),
        (".XXX.", 1.9, 4.1),
        (".XX.X.", 0.9, 3.1 + 2.1),
        ("XX.", 0.9, 2.1),
        (".XX", 0.9, 2.1),
        ("X", 0.0, 0.1),
    ],
)
def test_held_lies_between_neighbouring_readings(seen: str, least: float, most: float) -> None:
    assert held(readings(seen), EXCLUSIVE) == pytest.approx((least, most))


def test_a_lock_that_is_waited_for_is_not_held() -> None:
    waiting = [Reading(n, n + 0.1, (f"{EXCLUSIVE} (waiting)",)) for n in range(3)]
    assert held(waiting, EXCLUSIVE) == (0.0, 0.0)


def test_a_lock_that_no_reading_saw_was_shorter_than_the_time_between_two() -> None:
    seen = [Reading(at, at + 0.1, ()) for at in (0.0, 1.0, 3.0, 4.0)]
    assert exclusive(seen) == pytest.approx((0.0, 2.1))
    assert exclusive(readings(".X..")) == held(readings(".X.."), EXCLUSIVE)


def test_within_takes_one_more_reading_on_either_side() -> None:
    of_ten = readings("." * 10)
    assert [r.asked for r in within(of_ten, (3.5, 5.5))] == [3.0, 4.0, 5.0, 6.0]
    assert [r.asked for r in within(of_ten, (3.05, 4.5))] == [2.0, 3.0, 4.0, 5.0]
    assert [r.asked for r in within(of_ten, (-1.0, 0.5))] == [0.0, 1.0]
    assert within(of_ten, (20.0, 21.0)) == []


def test_a_statement_counts_in_full_when_any_part_of_it_is_in_the_span() -> None:
    statements = [(0.0, 1.0), (0.5, 2.5), (2.0, 2.5), (2.9, 5.0), (3.5, 4.0)]
    assert under_way(statements, (2.0, 3.0)) == pytest.approx([2.0, 0.5, 2.1])


def test_ratio_is_the_median_of_the_rounds_not_of_the_sides() -> None:
    assert ratio([10.0, 30.0, 100.0], [1.0, 10.0, 50.0]) == 3.0


def test_summary() -> None:
    spans = {
        "ours": [(0.5, 3.5)],
        "drop_add": [(6.5, 12.5)],
        "calm": [(14.5, 16.5)],
        "unchanged": [(18.5, 19.5)],
    }
    seen = readings("..X.....XXXX.........")
    statements = [(1.0, 2.0), (7.0, 11.0), (15.0, 15.5), (16.0, 16.25)]
    summary = summarise(spans, seen, statements, [])
    assert summary["medians"]["ours"]["access_exclusive_ms_at_most"] == 2100
    assert summary["medians"]["drop_add"]["access_exclusive_ms_at_least"] == 2900
    assert summary["medians"]["drop_add"]["access_exclusive_ms_at_most"] == 5100
    assert summary["medians"]["calm"]["worst_stall_ms"] == 500
    assert summary["medians"]["calm"]["median_statement_ms"] == 375
    assert summary["ratio"] == {"access_exclusive": 2.429, "worst_stall": 4.0, "seconds": 2.0}
    assert summary["unchanged"]["readings"] == 3
    assert summary["unchanged"]["locks_seen"] == ["AccessShareLock"]
    assert summary["observer_ms_between_readings"]["median"] == 1100
