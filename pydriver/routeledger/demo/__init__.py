"""The demo: real traffic, failing providers, a killed writer, and books that still agree.

``routeledger demo`` calls :func:`run_demo`, which returns the exit status. Everything here uses
the public driver only; in the rest of the package only the replay imports it, for its page and words.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["run_demo"]


def run_demo(
    dsn: str | None = None,
    *,
    trace: str | Path | None = None,
    requests: int | None = None,
    out: str | Path = "report.html",
    seed: int = 1,
    keep: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Run the demo and return its exit status: 0 when the books are in order, 1 when not.

    ``dsn``: the server to use; without one a private server is started, and the demo's database
    on it is dropped at the end unless ``keep``. ``trace``: a CSV (or .csv.gz) with the columns
    TIMESTAMP, ContextTokens, GeneratedTokens. ``requests``: how many requests to replay.
    ``out``: where the HTML report goes. ``json``: print the summary as one JSON document and
    nothing else on standard output. ``quiet``: print only what went wrong.
    """
    from .run import run_demo as run

    return run(
        dsn,
        trace=trace,
        requests=requests,
        out=out,
        seed=seed,
        keep=keep,
        json=json,
        quiet=quiet,
    )
