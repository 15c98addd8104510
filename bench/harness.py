"""What the measurements share: one durable server, databases on it, pgbench."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers import Server

TPS = re.compile(r"^tps = ([0-9.]+) \(without", re.MULTILINE)
PRICES = (
    "select count(*) from routeledger.import_models("
    '\'[{"model_slug": "bench/small", "provider": "bench",'
    ' "input_usd_per_mtok": 2.5, "output_usd_per_mtok": 10}]\')'
)


class Bench:
    """A server with fsync on, how long and how often to measure, and with how many rows."""

    def __init__(
        self, server: Server, *, seconds: float, rounds: int, sizes: Sequence[int] = ()
    ) -> None:
        self.server = server
        self.seconds = seconds
        self.rounds = rounds
        self.sizes = sizes

    def database(self) -> str:
        """A new database with routeledger and one price."""
        name = self.server.create_database()
        self.server.install(name)
        self.query(name, PRICES)
        return name

    def query(self, database: str, statements: str) -> str:
        """The last line that psql prints for these statements."""
        return self.server.psql(database, "-At", stdin=statements).stdout.strip().split("\n")[-1]

    def pgbench(self, database: str, script: str, clients: int, folder: Path) -> float:
        """Scripts a second, with prepared statements, after a short warm-up."""
        file = folder / "script.sql"
        file.write_text(script)
        file.chmod(0o644)
        command = self.server.binaries.command(
            "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)),
            "-f", str(file), self.server.dsn(database),
        )  # fmt: skip
        for duration in ("1", str(int(self.seconds))):
            done = subprocess.run(
                [*command, "-T", duration],
                capture_output=True, text=True, check=False, env=self.server.binaries.env(),
            )  # fmt: skip
            match = TPS.search(done.stdout)
            if done.returncode or match is None:
                raise RuntimeError(f"pgbench: {done.stdout}{done.stderr}")
        return float(match[1])
