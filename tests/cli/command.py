"""Commands of swamp: in this process, and as processes that need not import anything anew."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swamp import cli

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from child import forked


def swamp(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


class _Forked:
    """What `swamp.cli.workers` uses of subprocess.Popen, for a fork of this process."""

    def __init__(self, line: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> None:
        self._child = forked(line[3:], Path(stdout.name), environment=env)
        self.pid, self.stdin = self._child.pid, os.fdopen(self._child.closing.pop(), "wb")

    def poll(self) -> int | None:
        return self._child.code()

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that a command starts are forked from now on: they are processes, and import nothing anew."""
    monkeypatch.setattr("swamp.cli.workers.subprocess", SimpleNamespace(Popen=_Forked, PIPE=subprocess.PIPE))
