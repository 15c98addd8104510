"""Sources of patterns: every record once and in order, bad ones passed over, any position gone on
from; and what of a record becomes which field of a pattern."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from routeledger import patterns
from routeledger.errors import BadArgument, MalformedRow, MissingArgument
from routeledger.patterns import Fields, Record, Source, open_source

A_UUID = "0d1f5c1e-3f52-4d8e-8a2f-1c9f2b7a6e54"
RECORDS = [
    {"id": f"p{n}", "code": f"x = {n}\n# ü\n", "metadata": {"n": n}, "use_cases": ["a", "b"]}
    for n in range(700)
]


def jsonl(path: Path, records: list[Any]) -> Path:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def csv_file(path: Path, records: list[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    for record in records:
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()}
        writer.writerow(cells)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def parquet(path: Path, records: list[dict[str, Any]], **options: Any) -> Path:
    arrow = pytest.importorskip("pyarrow")
    write = pytest.importorskip("pyarrow.parquet").write_table
    write(arrow.Table.from_pylist(records), path, row_group_size=300, **options)
    return path


def qdrant(path: Path, collections: dict[str, list[tuple[Any, dict[str, Any]]]]) -> Path:
    """A folder of Qdrant's local mode with these collections."""
    package = pytest.importorskip("qdrant_client")
    models = package.models
    client = package.QdrantClient(path=str(path))
    for name, points in collections.items():
        vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=vectors)
        if points:
            client.upsert(
                name,
                [models.PointStruct(id=i, vector=[1.0, 0.5], payload=p) for i, p in points],
            )
    client.close()
    return path


def read(source: Source, after: Any = None, **options: Any) -> list[Record]:
    return list(source.read(after, **options))


def make(kind: str, folder: Path) -> Source:
    """The records above, from a source of each kind."""
    if kind == "qdrant":
        points: list[tuple[Any, dict[str, Any]]] = [
            (n if n % 2 else str(uuid.UUID(int=n)), record) for n, record in enumerate(RECORDS)
        ]
        two = {"code_patterns": points[:400], "execution_patterns": points[400:], "other": []}
        return open_source(str(qdrant(folder / "db", two)), list(two))
    path = folder / f"patterns.{kind}"
    writers = {"parquet": parquet, "csv": csv_file, "csv.gz": csv_file}
    return open_source(str(writers.get(kind, jsonl)(path, RECORDS)))


# -- all kinds -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Local mode is not recommended:UserWarning")
@pytest.mark.parametrize(
    "kind", ["jsonl", "ndjson", "jsonl.gz", "csv", "csv.gz", "parquet", "qdrant"]
)
def test_every_record_once_and_from_any_position(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    found = read(source)
    assert [record.problem for record in found] == [None] * len(RECORDS)
    key = (lambda r: r["id"]) if kind != "qdrant" else (lambda r: r["metadata"]["n"])
    got = [record.data for record in found]
    if kind.startswith("csv"):
        got = [{**d, "metadata": json.loads(d["metadata"])} for d in got if d]
        got = [{**d, "use_cases": json.loads(d["use_cases"])} for d in got if d]
    assert sorted(got, key=key) == sorted(RECORDS, key=key)  # type: ignore[arg-type]
    if kind != "qdrant":
        assert [d["id"] for d in got if d] == [r["id"] for r in RECORDS]
    assert [r.done for r in found] == sorted(r.done for r in found)
    assert source.total is not None
    assert found[-1].done <= source.total
    for n in (0, 1, 255, 256, 299, 300, 301, 399, 400, 655, 698, 699):
        position = json.loads(json.dumps(found[n].position))
        assert read(source, position) == found[n + 1 :]
    source.close()


@pytest.mark.filterwarnings("ignore:Local mode is not recommended:UserWarning")
@pytest.mark.parametrize("kind", ["parquet", "qdrant"])
def test_only_the_fields_that_are_wanted(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    for record in read(source, only=frozenset({"code", "id", "absent"})):
        assert record.data is not None
        assert set(record.data) == {"code", "id"}
    source.close()


def test_a_file_says_when_it_was_changed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{}])
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    source = open_source(str(path))
    assert source.measured_at == datetime(2023, 11, 14, 22, 13, 20, 123456, timezone.utc)
    before = dict(source.state)
    path.touch()
    assert open_source(str(path)).state != before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.jsonl", None, "No such file"),
        ("patterns.json", b"[]", "no known kind"),
        ("patterns", b"{}", "no known kind"),
        ("a.csv", b"", "no header"),
        ("a.csv", b"id,id\n", "no header"),
        ("a.csv", b"\xff\n", "no header"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 1000, mtime=0)[:-20], "ended before"),
        ("a.parquet", b"PAR1 no", "arquet"),
    ],
)
def test_a_source_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(patterns.SourceError) as raised:
        read(open_source(str(path)))
    assert reason in str(raised.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for module in ("pyarrow", "qdrant_client"):
        monkeypatch.setitem(sys.modules, module, None)
    for source, extra in ((tmp_path / "a.parquet", "parquet"), (tmp_path, "qdrant")):
        with pytest.raises(patterns.ExtraMissing) as raised:
            open_source(str(source))
        assert raised.value.hint == f"pip install 'routeledger[{extra}]'"


# -- one kind each ---------------------------------------------------------------------------------


def test_bad_lines_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_RECORD_BYTES", 5000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + b"\n".join(
            [
                b'{"id": "first"}',
                b"",
                b'{"id": ',
                b"[1]",
                b'{"id": NaN}',
                b'{"id": "\xff"}',
                b'{"id": "' + b"x" * 12000 + b'"}',
                b"[" * 4000,
                b'{"id": ' + b"1" * 4500 + b"}",
                b'{"id": "last"}',
            ]
        )
    )
    found = read(open_source(str(path)))
    assert [record.place["line"] for record in found] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert found[0].data == {"id": "first"}
    assert found[-1].data == {"id": "last"}
    reasons = ["not JSON: ", "not an object but a list", "NaN", "not UTF-8: byte 9", "longer than"]
    for record, reason in zip(found[1:], reasons, strict=False):
        assert reason in str(record.problem)
    assert all(record.problem for record in found[1:-1])
    for n in range(len(found)):
        assert read(open_source(str(path)), found[n].position) == found[n + 1 :]


def test_bad_rows_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,code\r\n"
        b'1,"x\r\ny"\r\n'
        b"2\r\n"
        b"\r\n"
        b'3,"a"b\r\n'
        b"4,\xff\r\n"
        b"5,,\r\n"
        b"6,\r\n"
        b'7,"never closed\r\n'
    )
    found = read(open_source(str(path)))
    assert [record.place["line"] for record in found] == [3, 4, 6, 7, 8, 9, 10]
    assert found[0].data == {"id": "1", "code": "x\r\ny"}
    assert found[5].data == {"id": "6"}
    assert [bool(r.problem) for r in found] == [False, True, True, True, True, False, True]
    assert "1 fields, and the header has 2" in str(found[1].problem)


def test_what_parquet_holds(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    at = datetime(2026, 11, 20, 9, 30, tzinfo=timezone.utc)
    table = arrow.table(
        {
            "id": arrow.array([uuid.UUID(A_UUID).bytes, b"x" * 16], arrow.binary(16)),
            "updated_at": arrow.array([1_795_080_600_000_000_001, None], arrow.timestamp("ns")),
            "created_at": arrow.array([at, at], arrow.timestamp("s", "Europe/Berlin")),
            "metadata": arrow.array(
                [[("a", "1")], None], arrow.map_(arrow.string(), arrow.string())
            ),
            "code": arrow.array(["x", "y"]).dictionary_encode(),
            "embedding": [[0.5] * 8] * 2,
        }
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    first, second = (Fields().row(r) for r in read(open_source(str(path)), only=Fields().wanted))
    told = json.loads(first.json)
    assert str(first.pattern_id) == A_UUID
    assert told["measurement_timestamp"] == "2026-11-19T09:30:00+00:00"
    assert told["pattern"] == {"code": "x", "metadata": {"a": "1"}}
    assert json.loads(second.json)["measurement_timestamp"] == at.isoformat()
    assert not second.mapped


@pytest.mark.filterwarnings("ignore:Local mode is not recommended:UserWarning")
def test_the_ids_of_points(tmp_path: Path) -> None:
    path = qdrant(
        tmp_path / "db",
        {
            "code_patterns": [
                (7, {"code": "a"}),
                (8, {"pattern_id": "eight"}),
                (A_UUID, {"id": 1}),
            ],
            "execution_patterns": [(7, {})],
        },
    )
    source = open_source(str(path), ["code_patterns", "execution_patterns", "code_patterns"])
    fields = Fields(measured_at=datetime(2026, 11, 20, tzinfo=timezone.utc))
    rows = [json.loads(fields.row(record).json) for record in read(source)]
    by_number = uuid.uuid5(patterns.NAMESPACE, "code_patterns/7")
    assert [row["pattern_id"] for row in rows] == [
        str(by_number),
        str(uuid.uuid5(patterns.NAMESPACE, "eight")),
        A_UUID,
        str(uuid.uuid5(patterns.NAMESPACE, "execution_patterns/7")),
    ]
    assert rows[0]["metadata"] == {"original_id": "code_patterns/7"}
    with pytest.raises(patterns.SourceError, match="already accessed"):
        open_source(str(path), ["code_patterns"])
    source.close()
    for names, there in (([], "no collection is named"), (["nowhere"], "no such collection")):
        with pytest.raises(patterns.SourceError, match=there) as raised:
            open_source(str(path), names)
        assert raised.value.detail["there"] == ["code_patterns", "execution_patterns"]
    open_source(str(path), ["code_patterns"]).close()


def test_a_folder_that_is_none_of_qdrants_stays_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(patterns.SourceError, match=r"meta\.json"):
        open_source(str(tmp_path), ["code_patterns"])
    assert list(tmp_path.iterdir()) == []


def test_collections_are_for_qdrant(tmp_path: Path) -> None:
    with pytest.raises(patterns.SourceError, match="only Qdrant"):
        open_source(str(jsonl(tmp_path / "a.jsonl", [])), ["code_patterns"])


# -- a Qdrant server, as far as it is asked --------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str | None]]]:
    """The URL of what answers like a Qdrant server with the records, and the API keys it saw."""
    keys: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"collections": [{"name": "code_patterns"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.split("?")[0].endswith("/count"):
                self.answer({"count": len(RECORDS)})
                return
            first = asked.get("offset") or 0
            until = first + asked["limit"]
            points = [
                {"id": n, "payload": record}
                for n, record in enumerate(RECORDS)
                if first <= n < until
            ]
            following = until if until < len(RECORDS) else None
            self.answer({"points": points, "next_page_offset": following})

        def answer(self, result: dict[str, Any]) -> None:
            keys.append(self.headers["api-key"])
            right = keys[-1] == "right"
            body = {"result": result, "status": "ok", "time": 0} if right else {}
            data = json.dumps(body).encode()
            self.send_response(200 if right else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    pytest.importorskip("qdrant_client")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", keys
        running.shutdown()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_a_server(server: tuple[str, list[str | None]]) -> None:
    url, keys = server
    source = open_source(url, ["code_patterns"], api_key="right")
    assert (source.name, source.total, source.measured_at) == (url, len(RECORDS), None)
    found = read(source, only=Fields().wanted)
    assert [record.data for record in found] == RECORDS
    assert read(source, found[300].position) == found[301:]
    assert set(keys) == {"right"}
    source.close()
    with pytest.raises(patterns.SourceError, match="403") as raised:
        open_source(url, ["code_patterns"], api_key="wrong")
    assert "QDRANT_API_KEY" in str(raised.value.hint)


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(patterns.SourceUnavailable):
        open_source("http://127.0.0.1:1", ["code_patterns"])


# -- from records to patterns ----------------------------------------------------------------------

NOW = datetime(2026, 11, 20, tzinfo=timezone.utc)


def row_of(data: dict[str, Any], fields: Fields | None = None, id: object = None) -> dict[str, Any]:
    record = Record({"line": 1}, {}, 1, data, id)
    told: dict[str, Any] = json.loads((fields or Fields(measured_at=NOW)).row(record).json)
    return told


def test_names_that_vary() -> None:
    assert row_of(
        {
            "id": A_UUID,
            "title": "N",
            "implementation": "c",
            "code": " ",
            "code_snippet": None,
            "description": "d",
            "node_types": ["Effect", "Compute"],
            "use_cases": '["a", "b"]',
            "examples": "just one",
            "metadata": '{"k": 1}',
            "complexity": 3,
            "confidence": "0.5",
            "unknown": "left out",
        }
    ) == {
        "pattern_id": A_UUID,
        "pattern": {
            "pattern_name": "N",
            "code": "c",
            "text": "d",
            "node_type": "Effect",
            "use_cases": ["a", "b"],
            "examples": ["just one"],
            "metadata": {"k": 1},
            "complexity": "3",
        },
        "measurement_timestamp": NOW.isoformat(),
        "confidence": 0.5,
        "metadata": {"pattern_name": "N"},
    }


def test_names_that_are_said() -> None:
    fields = Fields(
        {
            "pattern_id": ["meta.key"],
            "code": ["files.1.src", "files.0.src"],
            "text": [],
            "pattern_name": ["a.b"],
        },
        NOW,
    )
    data = {
        "id": "no",
        "meta": {"key": A_UUID},
        "files": [{"src": "c"}],
        "text": "t",
        "a.b": "literally",
        "a": {"b": "not"},
    }
    told = row_of(data, fields)
    assert told["pattern_id"] == A_UUID
    assert told["pattern"] == {"code": "c", "pattern_name": "literally"}
    assert {"meta", "files", "a.b", "a", "id"} <= fields.wanted
    assert "text" not in fields.wanted
    with pytest.raises(ValueError, match="no field cod; there are: pattern_id"):
        Fields({"cod": ["code"]})


@pytest.mark.parametrize(
    "same",
    [
        A_UUID,
        A_UUID.upper(),
        A_UUID.replace("-", ""),
        "{" + A_UUID + "}",
        f"urn:uuid:{A_UUID}",
        uuid.UUID(A_UUID),
        uuid.UUID(A_UUID).bytes,
    ],
)
def test_a_uuid_is_taken_as_it_is(same: object) -> None:
    assert patterns.pattern_uuid(same) == (uuid.UUID(A_UUID), None)


def test_other_ids_are_mapped_and_always_the_same() -> None:
    # by hand: uuid5(NAMESPACE, "effect-42"); a change here would make every backfill a new one
    assert patterns.pattern_uuid("effect-42") == (
        uuid.UUID("b3ecb55d-a2e6-5ccf-9d49-b2dc7446ae08"),
        "effect-42",
    )
    assert patterns.pattern_uuid(42) == patterns.pattern_uuid("42")
    assert patterns.pattern_uuid("{" + A_UUID)[1] is not None
    assert patterns.pattern_uuid(A_UUID.replace("-", "", 1))[1] is not None
    for wrong in (1.5, True, [], b"short", "\ud800"):
        with pytest.raises(MalformedRow):
            patterns.pattern_uuid(wrong)


@pytest.mark.parametrize(
    ("value", "instant"),
    [
        ("2026-11-20", "2026-11-20T00:00:00"),
        ("2026-11-20T09:30", "2026-11-20T09:30:00"),
        ("2026-11-20 09:30:15.5Z", "2026-11-20T09:30:15.500000"),
        ("2026-11-20T09:30:15.123456789+02:00", "2026-11-20T07:30:15.123456"),
        ("2026-11-20t09:30:15-0330", "2026-11-20T13:00:15"),
        ("2026-11-20 09:30:15 UTC", "2026-11-20T09:30:15"),
        (1_795_166_999, "2026-11-20T09:29:59"),
        (1_795_166_999.25, "2026-11-20T09:29:59.250000"),
        (1_795_166_999_250, "2026-11-20T09:29:59.250000"),
        ("1795166999", "2026-11-20T09:29:59"),
        (Decimal("1795166999.000001"), "2026-11-20T09:29:59.000001"),
        (date(2026, 11, 20), "2026-11-20T00:00:00"),
        (datetime(2026, 11, 20, 9), "2026-11-20T09:00:00"),
        (datetime(2026, 11, 20, 9, tzinfo=timezone(timedelta(hours=9))), "2026-11-20T00:00:00"),
    ],
)
def test_times(value: object, instant: str) -> None:
    told = row_of({"id": 1, "updated_at": value, "created_at": "2000-01-01"})
    assert told["measurement_timestamp"] == f"{instant}+00:00"


def test_which_time_it_is() -> None:
    data = {"id": 1, "created_at": "2026-01-01", "updated_at": "2026-01-02"}
    assert row_of(data)["measurement_timestamp"].startswith("2026-01-02")
    data["measurement_timestamp"] = "2026-01-03"
    assert row_of(data)["measurement_timestamp"].startswith("2026-01-03")
    none = Fields({"measurement_timestamp": []}, NOW)
    assert row_of(data, none)["measurement_timestamp"] == NOW.isoformat()
    with pytest.raises(MissingArgument, match="measured-at") as raised:
        row_of({"id": 1}, Fields())
    assert raised.value.detail == {"field": "measurement_timestamp"}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"id": 1.5}, "pattern_id"),
        ({"id": 1, "updated_at": "yesterday"}, "measurement_timestamp"),
        ({"id": 1, "updated_at": "2026-13-01"}, "measurement_timestamp"),
        ({"id": 1, "updated_at": "0001-01-01T00:00+05:00"}, "measurement_timestamp"),
        ({"id": 1, "updated_at": 10**18}, "measurement_timestamp"),
        ({"id": 1, "updated_at": float("inf")}, "measurement_timestamp"),
        ({"id": 1, "updated_at": "nan"}, "measurement_timestamp"),
        ({"id": 1, "updated_at": True}, "measurement_timestamp"),
        ({"id": 1, "confidence": "high"}, "confidence"),
        ({"id": 1, "confidence": float("inf")}, "confidence"),
        ({"id": 1, "confidence": "nan"}, "confidence"),
        ({"id": 1, "code": ["x"]}, "code"),
        ({"id": 1, "code": b"x"}, "code"),
        ({"id": 1, "metadata": [1]}, "metadata"),
        ({"id": 1, "metadata": "{"}, "metadata"),
        ({"id": 1, "code": "\x00"}, None),
        ({"id": 1, "code": "\ud800"}, None),
        ({"id": 1, "metadata": {"n": float("nan")}}, None),
        ({"id": 1, "code": "x" * 20_000_000}, None),
        ({"id": 1, "code": "€" * 6_000_000}, None),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_no_pattern_can_be_made_of(data: dict[str, Any], field: str | None) -> None:
    with pytest.raises(MalformedRow) as raised:
        row_of(data)
    assert raised.value.detail.get("field") == field


@pytest.mark.parametrize("data", [{}, {"id": None}, {"id": ""}, {"id": " "}, {"pattern_id": []}])
def test_without_an_id(data: dict[str, Any]) -> None:
    with pytest.raises(MissingArgument):
        row_of(data)
    assert row_of(data, id=A_UUID)["pattern_id"] == A_UUID


def test_what_is_nested_too_deeply_for_the_server() -> None:
    def nested(levels: int) -> Any:
        value: Any = {}
        for _ in range(levels):
            value = [value]
        return {"id": 1, "metadata": {"x": value}, "code": "{" * 600}

    # the row, its pattern, metadata and the innermost object are levels too
    assert row_of(nested(patterns.MAX_DEPTH - 4))
    with pytest.raises(MalformedRow, match="nested more than 500 deep"):
        row_of(nested(patterns.MAX_DEPTH))


def test_all_refusals_are_of_one_kind() -> None:
    assert issubclass(MissingArgument, BadArgument)
    with pytest.raises(BadArgument, match="not UTF-8"):
        Fields().row(Record({"line": 1}, {}, 1, problem="not UTF-8"))
