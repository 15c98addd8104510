"""The spool: where the driver keeps what it could not tell the ledger, until it can.

One append-only file of lines, each a CRC-32 and a JSON record; every append is synced to disk
before it returns. The file is bounded: when it is full, an append raises `SpoolFull` and keeps
nothing. Several processes may append to one spool, and one at a time replays it.

`replay` brings every record in once, in the order kept. It is safe to kill: what was brought in
already is recognised by its id. What the ledger refuses goes to the file ``….refused``, with the
reason; what a crash tore is counted and passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ._codec import dumps
from .errors import LedgerError, SpoolFull

if TYPE_CHECKING:
    from ._async import AsyncLedger
    from ._sync import Ledger

__all__ = ["ReplayReport", "Spool", "areplay", "default_path", "replay"]

DEFAULT_MAX_BYTES = 64 * 1024 * 1024


def default_path() -> Path:
    """Where the spool is when nobody says: in the user's folder for state."""
    return Path(platformdirs.user_state_dir("routeledger", appauthor=False)) / "spool.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the spool: a routine, its row, and hints for the replay.

    `end` is the offset in bytes of the record after it; `line` is the record as it was kept.
    """

    routine: str
    row: dict[str, Any]
    instead_of: str | None
    end: int
    line: str


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did: records brought in, found there already, refused, and torn."""

    accepted: int = 0
    replayed: int = 0
    refused: int = 0
    torn: int = 0

    @property
    def total(self) -> int:
        """All records that were read."""
        return self.accepted + self.replayed + self.refused + self.torn


class SpoolBusy(LedgerError):  # noqa: N818
    """Another process is replaying this spool."""

    default_name = "spool_busy"
    retryable = True


class Spool:
    """A bounded, synced, append-only file of records.

    Args:
        path: the file; its folder is made when absent.
        max_bytes: the most that the spool holds, what is being replayed included.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.max_bytes = max_bytes
        self._replaying = self.path.with_name(self.path.name + ".replaying")
        self._position = self.path.with_name(self.path.name + ".position")
        self._lock = self.path.with_name(self.path.name + ".lock")
        self._replay_lock = self.path.with_name(self.path.name + ".replay-lock")
        self.refused_path = self.path.with_name(self.path.name + ".refused")

    @property
    def size(self) -> int:
        """Bytes kept, what is being replayed included."""
        return _size(self.path) + _size(self._replaying)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep records, all or none, synced to disk.

        Args:
            records: objects with ``routine`` and ``row``.

        Raises:
            SpoolFull: they would not fit.
        """
        data = b"".join(_line(record) for record in records)
        with self._locked(self._lock):
            size = self.size
            if size + len(data) > self.max_bytes:
                raise SpoolFull(
                    "The spool is full.",
                    detail={"path": str(self.path), "bytes": size, "max_bytes": self.max_bytes},
                    hint="Bring the ledger back and run `routeledger spool replay`.",
                )
            created = not self.path.exists()
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                end = os.fstat(fd).st_size
                if end and os.pread(fd, 1, end - 1) != b"\n":
                    data = b"\n" + data  # a crash tore the last line: leave it, on its own
                _write_all(fd, data)
                os.fsync(fd)
            except OSError:
                # Take back what was written in part: all or none.
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
            finally:
                os.close(fd)
            if created:
                _sync_folder(self.path.parent)

    # -- the replay's side --

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Be the one that replays this spool.

        Raises:
            SpoolBusy: another process is.
        """
        with self._locked(self._replay_lock, wait=False):
            yield

    def begin(self) -> bool:
        """Set aside what is to be replayed; appends go on in a new file. False: no records."""
        if self._replaying.exists():  # an earlier replay did not come to its end
            return True
        with self._locked(self._lock):
            if _size(self.path) == 0:
                return False
            self._position.unlink(missing_ok=True)
            self.path.rename(self._replaying)
            _sync_folder(self.path.parent)
        return True

    def records(self) -> Iterator[Record | None]:
        """The records set aside, from where the last replay came to; None for a torn line."""
        offset = self._read_position()
        with self._replaying.open("rb") as file:
            file.seek(offset)
            for data in file:
                offset += len(data)
                yield _record(data, offset)

    def advance(self, end: int) -> None:
        """Remember that everything before this offset was dealt with."""
        scratch = self._position.with_name(self._position.name + ".new")
        scratch.write_text(str(end))
        scratch.replace(self._position)

    def end(self) -> None:
        """All that was set aside was dealt with."""
        self._replaying.unlink(missing_ok=True)
        self._position.unlink(missing_ok=True)
        _sync_folder(self.path.parent)

    def refuse(self, refused: Sequence[tuple[Record, LedgerError]]) -> None:
        """Keep refused records, each once, with the ledger's reason."""
        known = self._refused_lines()
        data = b"".join(
            dumps(
                {
                    "code": error.sqlstate,
                    "name": error.name,
                    "message": error.message,
                    "detail": error.detail,
                    "hint": error.hint,
                    "record": record.line,
                }
            ).encode()
            + b"\n"
            for record, error in refused
            if record.line not in known
        )
        if not data:
            return
        fd = os.open(self.refused_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        _sync_folder(self.path.parent)

    def _refused_lines(self) -> set[str]:
        lines: set[str] = set()
        with contextlib.suppress(FileNotFoundError), self.refused_path.open("rb") as file:
            for data in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    lines.add(json.loads(data)["record"])
        return lines

    def _read_position(self) -> int:
        try:
            return int(self._position.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool = True) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise SpoolBusy(
                    "Another process is replaying this spool.", detail={"path": str(self.path)}
                ) from None
            yield
        finally:
            os.close(fd)


def replay(ledger: Ledger, path: str | os.PathLike[str] | Spool | None = None) -> ReplayReport:
    """Bring the spool's records into the ledger, each once.

    Raises:
        LedgerUnavailable: the ledger is gone (again); what is left stays for the next replay.
        SpoolBusy: another process is replaying.
    """
    return ledger.replay_spool(path)


async def areplay(
    ledger: AsyncLedger, path: str | os.PathLike[str] | Spool | None = None
) -> ReplayReport:
    """`replay` for the asynchronous client."""
    return await ledger.replay_spool(path)


def _line(record: Mapping[str, Any]) -> bytes:
    body = dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _record(data: bytes, end: int) -> Record | None:
    crc, _, body = data.rstrip(b"\n").partition(b" ")
    try:
        if not data.endswith(b"\n") or int(crc, 16) != zlib.crc32(body):
            return None
        value = json.loads(body)
        return Record(value["routine"], value["row"], value.get("instead_of"), end, body.decode())
    except (ValueError, KeyError, TypeError):
        return None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
