"""Score every pattern of a source and keep the scores, in batches that a kill cannot spoil.

A batch is one transaction of ``routeledger.score_patterns``: the latest measurement of a pattern
stands and one that is known changes nothing, so running a backfill again, whole or in part, ends in
the same table. What was done is therefore remembered to save time, not to be right: after each
batch a small file in the user's folder for state says how far this source is in this database. It
is not believed when the source or the options have changed since, nor when the batch that it says
was the last turns out not to be in the database (one that was restored, or emptied): then the
backfill begins at the beginning.

Lost connections, serialization failures, deadlocks and lock timeouts are tried again, and so is what
an index that is being rebuilt concurrently refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import platformdirs
import psycopg
from psycopg.rows import dict_row

from .errors import BadArgument, LedgerError
from .patterns import Fields, Position, Record, Source

if TYPE_CHECKING:
    from ._sync import Ledger

__all__ = ["BATCH_ROWS", "MAX_BATCH_ROWS", "Counts", "Report", "backfill", "checkpoints"]

BATCH_ROWS = 500
MAX_BATCH_ROWS = 10_000
MAX_BATCH_BYTES = 8 * 1024 * 1024
_REBUILD_TRIES = 5

Refusal = dict[str, Any]
"""``place``, ``id``, ``code``, ``message``, ``detail`` and ``hint``."""

_SCORE = """
select * from routeledger.score_patterns(
  p_rows => %(rows)s::jsonb, p_version => %(version)s::text, p_rule_set => %(rule_set)s::text)
"""
_RATE = """
select s.rating, count(*) as patterns
from jsonb_array_elements(%(rows)s::jsonb) with ordinality r (row, ord)
cross join lateral routeledger.score_pattern(
  p_pattern => r.row -> 'pattern', p_version => %(version)s::text, p_rule_set => %(rule_set)s::text
) s
where r.ord <> all (%(refused)s::bigint[])
group by s.rating
"""
_ABOUT = """
select s.version, current_database() as database,
  (select d.oid::bigint from pg_catalog.pg_database d where d.datname = current_database())
    as database_id,
  to_regnamespace('routeledger')::oid::bigint as schema_id
from routeledger.score_pattern(
  p_pattern => '{}', p_version => %(version)s::text, p_rule_set => %(rule_set)s::text) s
"""


@dataclass(slots=True)
class Counts:
    """What became of the records: received is the sum of the next five.

    ``collapsed``: another record of the same batch was the later measurement of the pattern.
    ``mapped``: ids that are no UUIDs, of the records that were not refused here.
    """

    received: int = 0
    collapsed: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0
    mapped: int = 0


@dataclass(slots=True)
class Report(Counts):
    """What a backfill did, with what the runs that it went on from had done.

    Attributes:
        source: the file, folder or URL.
        version: by what the patterns were scored.
        dry_run: nothing was kept.
        resumed: records done by earlier runs.
        restarted: why what an earlier run left was not gone on from, if there was something.
        ratings: of a dry run: how many records would be rated what.
    """

    source: str = ""
    version: str = ""
    dry_run: bool = False
    resumed: int = 0
    restarted: str | None = None
    ratings: dict[str, int] = field(default_factory=dict)


def checkpoints() -> Path:
    """The folder that says how far unfinished backfills are."""
    return platformdirs.user_state_path("routeledger", appauthor=False) / "backfill"


def backfill(
    ledger: Ledger,
    source: Source,
    *,
    fields: Fields | None = None,
    version: str = "v2",
    rule_set: str = "onex",
    batch_rows: int = BATCH_ROWS,
    dry_run: bool = False,
    resume: bool = True,
    refused: str | os.PathLike[str] | None = None,
    on_refusal: Callable[[Refusal], None] | None = None,
    progress: Callable[[Report, int], None] | None = None,
) -> Report:
    """Score the patterns of a source and keep the scores.

    Args:
        ledger: an open client; its timeout is how long a batch is tried again.
        source: what `routeledger.patterns.open_source` gave.
        fields: where the fields of a pattern are in a record.
        version: the formulas.
        rule_set: the node types and methods.
        batch_rows: most records in one transaction; it also ends at 8 MiB.
        dry_run: roll every batch back, and remember nothing. A pattern that comes again in another
            batch counts as new there.
        resume: go on where an earlier run of the same source, options and database ended; False
            begins at the beginning.
        refused: a file to write the refusals to, one JSON object a line.
        on_refusal: called with each refusal.
        progress: called after each batch, with the report so far and `Record.done`.

    Raises:
        SourceError: the source cannot be read further; the batches before are kept.
        LedgerError: the ledger refused a whole batch, or could not be reached in time.
    """
    run = _Run(ledger, source, fields or Fields(), version, rule_set, batch_rows, dry_run)
    run.on_refusal, run.progress = on_refusal, progress
    checkpoint = _Checkpoint(run.key, run.state) if not dry_run else None
    saved = None
    if checkpoint is not None:
        saved, run.report.restarted = checkpoint.load() if resume else (None, None)
    if saved is not None and not run.goes_on(saved):
        saved, run.report.restarted = None, "the database does not hold what it says"
    with _refusals(refused, saved) as run.refused:
        run.go(saved, checkpoint)
    if checkpoint is not None:
        checkpoint.clear()
    return run.report


# -- batches ---------------------------------------------------------------------------------------


class _Batch:
    """Records that are sent together."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.mapped = 0
        self.rows: list[str] = []
        self.sent: list[tuple[int, Record, str]] = []
        self.refusals: list[tuple[int, Refusal]] = []
        self.last: Record | None = None

    def add(self, record: Record, fields: Fields) -> None:
        self.last = record
        self.records += 1
        try:
            row = fields.row(record)
        except BadArgument as exc:
            self.refuse(self.records, record, None, exc.sqlstate, exc.message, exc.detail, exc.hint)
            return
        self.rows.append(row.json)
        self.bytes += len(row.json)
        self.mapped += row.mapped
        self.sent.append((self.records, record, str(row.pattern_id)))

    def refuse(self, n: int, record: Record, pattern_id: str | None, *why: object) -> None:
        code, message, detail, hint = why
        refusal = {"place": record.place, "id": pattern_id, "code": code, "message": message}
        self.refusals.append((n, {**refusal, "detail": detail, "hint": hint}))


class _Run:
    """One backfill: what it is of, and how far it is."""

    on_refusal: Callable[[Refusal], None] | None = None
    progress: Callable[[Report, int], None] | None = None
    refused: IO[bytes] | None = None

    def __init__(
        self,
        ledger: Ledger,
        source: Source,
        fields: Fields,
        version: str,
        rule_set: str,
        batch_rows: int,
        dry_run: bool,
    ) -> None:
        if not 1 <= batch_rows <= MAX_BATCH_ROWS:
            msg = f"a batch holds 1 to {MAX_BATCH_ROWS:,} rows"
            raise ValueError(msg)
        self._ledger = ledger
        self._source = source
        self._fields = replace(fields, measured_at=fields.measured_at or source.measured_at)
        self._scoring = {"version": version, "rule_set": rule_set}
        self._batch_rows = batch_rows
        about = ledger._run(self._about)
        self.report = Report(source=source.name, version=about["version"], dry_run=dry_run)
        self.key = {"source": source.name, **{k: about[k] for k in about if k != "version"}}
        self.state = {
            "source": source.state,
            "paths": {name: list(paths) for name, paths in sorted(fields.paths.items())},
            "measured_at": fields.measured_at.isoformat() if fields.measured_at else None,
            "version": about["version"],
        }

    def go(self, saved: dict[str, Any] | None, checkpoint: _Checkpoint | None) -> None:
        """Read on from what was saved to the end."""
        before: Position | None = None
        if saved is not None:
            before = saved["position"]
            for name, count in saved["counts"].items():
                setattr(self.report, name, count)
            self.report.resumed = self.report.received
        for batch in self._batches(before):
            assert batch.last is not None
            self._count(batch, self._send(batch))
            if checkpoint is not None:
                checkpoint.save(before, batch.last.position, self.report, self.refused)
            before = batch.last.position
            if self.progress is not None:
                self.progress(self.report, batch.last.done)

    def goes_on(self, saved: dict[str, Any]) -> bool:
        """Whether the batch that was the last is in the database: sent again, it changes nothing."""
        batch = _Batch()
        for record in self._source.read(saved["before"], only=self._fields.wanted):
            batch.add(record, self._fields)
            if record.position == saved["position"]:
                sent = self._send(batch)
                return not sent["inserted"] and not sent["updated"]
            if batch.records == MAX_BATCH_ROWS:
                break
        return False  # the record that it ended with is gone

    def _batches(self, after: Position | None) -> Iterator[_Batch]:
        batch = _Batch()
        for record in self._source.read(after, only=self._fields.wanted):
            batch.add(record, self._fields)
            if batch.records == self._batch_rows or batch.bytes >= MAX_BATCH_BYTES:
                yield batch
                batch = _Batch()
        if batch.records:
            yield batch

    def _count(self, batch: _Batch, sent: dict[str, Any]) -> None:
        for refusal in sent["refusals"]:
            n, record, pattern_id = batch.sent[refusal["ord"] - 1]
            why = (refusal[name] for name in ("code", "message", "detail", "hint"))
            batch.refuse(n, record, pattern_id, *why)
        report = self.report
        report.received += batch.records
        report.mapped += batch.mapped
        report.refused += batch.records - len(batch.rows) + sent["refused"]
        for name in ("collapsed", "inserted", "updated", "unchanged"):
            setattr(report, name, getattr(report, name) + sent[name])
        for rating, patterns in sent["ratings"].items():
            report.ratings[rating] = report.ratings.get(rating, 0) + patterns
        for _, refusal in sorted(batch.refusals, key=lambda entry: entry[0]):
            if self.refused is not None:
                self.refused.write(json.dumps(refusal).encode() + b"\n")
            if self.on_refusal is not None:
                self.on_refusal(refusal)
        if self.refused is not None:
            self.refused.flush()

    # -- what runs in a transaction, perhaps several times --

    def _send(self, batch: _Batch) -> dict[str, Any]:
        params = {"rows": f"[{','.join(batch.rows)}]", **self._scoring}

        def work(conn: psycopg.Connection[Any]) -> dict[str, Any]:
            dry = self.report.dry_run
            with conn.transaction(force_rollback=dry), conn.cursor(row_factory=dict_row) as cur:
                sent = cur.execute(_SCORE, params).fetchone()
                assert sent is not None
                sent["ratings"] = {}
                if dry:
                    refused = [refusal["ord"] for refusal in sent["refusals"]]
                    rated = cur.execute(_RATE, {**params, "refused": refused}).fetchall()
                    sent["ratings"] = {row["rating"]: row["patterns"] for row in rated}
                return sent

        for attempt in range(_REBUILD_TRIES):
            try:
                return self._ledger._run(work)
            except LedgerError as exc:
                # The one unique index of the table can be violated only while it is rebuilt.
                if exc.sqlstate != "23505":
                    raise
            time.sleep(0.05 * 2**attempt)
        return self._ledger._run(work)

    def _about(self, conn: psycopg.Connection[Any]) -> dict[str, Any]:
        with conn.cursor(row_factory=dict_row) as cur:
            about = cur.execute(_ABOUT, self._scoring).fetchone()
        assert about is not None
        return {**about, "host": conn.info.host, "port": conn.info.port}


# -- how far it is ---------------------------------------------------------------------------------


class _Checkpoint:
    """The file that says how far a source is in a database. Replaced whole, never written into.

    What keeps it from being written (a folder that is read-only) only costs time later.
    """

    def __init__(self, key: dict[str, Any], state: dict[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._path = checkpoints() / f"{name}.json"
        self._kept = {"format": 1, "key": key, "state": state}

    def load(self) -> tuple[dict[str, Any] | None, str | None]:
        """What was saved; or why what is there cannot be gone on from, if anything is."""
        try:
            saved = json.loads(self._path.read_bytes())
            if {name: saved[name] for name in self._kept} != json.loads(json.dumps(self._kept)):
                return None, "the source, the options or the rules have changed since"
            if {"before", "position", "counts", "refused"} <= set(saved):
                return saved, None
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None, "what it left cannot be read"

    def save(
        self, before: Position | None, position: Position, report: Report, refused: IO[bytes] | None
    ) -> None:
        """Say that everything up to a position is in the database."""
        counts = {name: count for name, count in asdict(report).items() if name in _COUNTS}
        file = None if refused is None else {"path": refused.name, "bytes": refused.tell()}
        saved = {"before": before, "position": position, "counts": counts, "refused": file}
        draft = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({**self._kept, **saved}), encoding="utf-8")
            draft.replace(self._path)

    def clear(self) -> None:
        """Forget it: the source is done."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


_COUNTS: Sequence[str] = tuple(Counts.__dataclass_fields__)


@contextlib.contextmanager
def _refusals(
    path: str | os.PathLike[str] | None, saved: dict[str, Any] | None
) -> Iterator[IO[bytes] | None]:
    """The file of the refusals: those that are counted already are kept, all others written anew."""
    if path is None:
        yield None
        return
    name = os.path.abspath(path)  # noqa: PTH100 - a link stays a link
    kept = 0
    if saved is not None and saved["refused"] and saved["refused"]["path"] == name:
        kept = int(saved["refused"]["bytes"])
    with open(name, "ab") as file:  # noqa: PTH123 - its name is text
        file.truncate(kept)
        file.seek(0, os.SEEK_END)
        yield file
