"""`routeledger …` in this process, for tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from routeledger import cli


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def commands(capsys: pytest.CaptureFixture[str], *always: object) -> Callable[..., Result]:
    """A function that runs the command with the arguments it is given, and then those of `always`."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.app(args=[*map(str, args), *map(str, always)], prog_name="routeledger")
        code = ended.value.code
        printed = capsys.readouterr()
        return Result(code if isinstance(code, int) else int(bool(code)), printed.out, printed.err)

    return run
