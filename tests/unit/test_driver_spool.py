"""The spool's file: synced, bounded, whole lines or none, many processes."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path
from typing import Any

import pytest

from routeledger import errors
from routeledger.spool import Record, Spool, SpoolBusy, default_path


def record(n: int = 0, **row: Any) -> dict[str, Any]:
    return {"routine": "complete_decision", "row": {"n": n, **row}}


def read(spool: Spool) -> list[Record | None]:
    assert spool.begin()
    return list(spool.records())


def rows(spool: Spool) -> list[Any]:
    return [r and r.row["n"] for r in read(spool)]


def test_append_and_read_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "deep" / "spool.jsonl")
    assert not spool.begin()
    spool.append([record(1), record(2)])
    spool.append([{**record(3, text="ü\n"), "instead_of": "x"}])
    found = read(spool)
    assert [r and r.row["n"] for r in found] == [1, 2, 3]
    assert found[2] is not None
    assert found[2].instead_of == "x"
    assert found[2].row["text"] == "ü\n"
    assert stat.S_IMODE(spool.path.with_name("spool.jsonl.replaying").stat().st_mode) == 0o600


def test_full_keeps_nothing_of_the_append(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", max_bytes=200)
    spool.append([record(1)])
    before = spool.path.read_bytes()
    with pytest.raises(errors.SpoolFull) as full:
        spool.append([record(2), record(3, text="x" * 200)])
    assert full.value.detail["max_bytes"] == 200
    assert spool.path.read_bytes() == before
    assert spool.begin()  # what is being replayed counts as well
    with pytest.raises(errors.SpoolFull):
        spool.append([record(2, text="x" * 100)])
    spool.end()
    spool.append([record(2, text="x" * 100)])


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.append([record(1), record(2)])
    with spool.path.open("rb+") as file:
        file.truncate(spool.path.stat().st_size - 5)
    spool.append([record(3)])
    assert rows(spool) == [1, None, 3]


def test_a_changed_line_is_not_believed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.append([record(1), record(2), record(3)])
    spool.path.write_bytes(spool.path.read_bytes().replace(b'"n":2', b'"n":9') + b"rubbish\n\n")
    assert rows(spool) == [1, None, 3, None, None]


def test_a_replay_goes_on_where_the_last_one_came_to(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.append([record(n) for n in range(4)])
    found = read(spool)
    assert found[1] is not None
    spool.advance(found[1].end)
    spool.append([record(9)])  # meanwhile
    again = Spool(tmp_path / "s")
    assert rows(again) == [2, 3]
    again.end()
    assert rows(again) == [9]
    again.end()
    assert not again.begin()
    assert again.size == 0


def test_refused_records_are_kept_once_with_the_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.append([record(1), record(2)])
    found = [r for r in read(spool) if r is not None]
    error = errors.AlreadyCompleted("m", detail={"id": "x"}, hint="h")
    spool.refuse([(found[0], error)])
    spool.refuse([(found[0], error), (found[1], error)])
    lines = [json.loads(line) for line in spool.refused_path.read_text().splitlines()]
    assert [json.loads(line["record"])["row"]["n"] for line in lines] == [1, 2]
    assert lines[0]["code"] == "RL302"
    assert lines[0]["detail"] == {"id": "x"}


def test_one_replay_at_a_time(tmp_path: Path) -> None:
    first, second = Spool(tmp_path / "s"), Spool(tmp_path / "s")
    with first.replaying(), pytest.raises(SpoolBusy) as busy, second.replaying():
        pass
    assert busy.value.retryable
    with second.replaying():
        pass


def _append_many(path: str, who: int) -> None:
    spool = Spool(path)
    for n in range(50):
        spool.append([record(who * 1000 + n, text="x" * (n * 7))])


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_append_many, args=(str(tmp_path / "s"), who)) for who in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = rows(Spool(tmp_path / "s"))
    assert len(found) == 150
    for who in range(3):
        assert [n for n in found if n // 1000 == who] == [who * 1000 + n for n in range(50)]


def test_default_path_is_in_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_path() == Path("/somewhere/routeledger/spool.jsonl")
