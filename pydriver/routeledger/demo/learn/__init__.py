"""The loop closed: routed by priors, judged, counted, and routed by what was measured.

``routeledger demo --learn`` calls :func:`run_learn`. Two runs serve the same requests, one of them with
exploration. On one day a provider is down; on another an alias begins to answer with a worse
model, which nobody says. The answers, right or wrong, are those of a recorded matrix
(:mod:`routeledger.replay.matrix`), or of a generated one where there is none.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["run_learn"]


def run_learn(
    dsn: str | None = None,
    *,
    days: int | None = None,
    requests: int | None = None,
    priors: str = "price",
    out: str | Path = "report.html",
    seed: int = 1,
    keep: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Run it and return its exit status: 0 when the loop did what it must, 1 when not.

    ``dsn``: the server to use, whose login owns the schema and so may set the clock; without one a
    private server is started, and the database on it is dropped at the end unless ``keep``. ``days`` and
    ``requests``: how much traffic, in all. ``priors``: where the first guess at a model's quality
    comes from, its `price` or a `benchmark`. ``out``: where the HTML report goes. ``json``: print the
    summary as one JSON document and nothing else on standard output. ``quiet``: print only what
    went wrong.
    """
    from .run import run_learn as run

    return run(
        dsn,
        days=days,
        requests=requests,
        priors=priors,
        out=out,
        seed=seed,
        keep=keep,
        json=json,
        quiet=quiet,
    )
