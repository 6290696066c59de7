"""A tracker in a process of its own, to which every call is sent as a line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from swamp.tracking.tracker import TrackedRun, Tracker


class TrackerLost(Exception):  # noqa: N818
    """A tracker that failed or whose process ended. The run goes on without it."""


class TrackerProcess(Tracker):
    """Sends every call to the tracker `name` of `TRACKERS` in another process.

    The process has a session of its own, so that Ctrl-C does not reach it, and ends when this process ends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[str] | None = None

    def start(self, run: TrackedRun) -> str:
        """Start the process and the tracker in it."""
        paths = os.pathsep.join(path for path in sys.path if path)
        with (run.folder / f"{self.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "swamp.tracking.worker", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
        self._send("start", name=run.name, config=dict(run.config), folder=str(run.folder.resolve()), resume=run.resume)
        return str(self._answer()["id"])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._send("log", values=dict(values), step=step)

    def image(self, name: str, file: Path) -> None:
        """See Tracker."""
        self._send("image", name=name, file=str(file.resolve()))

    def artifact(self, name: str, folder: Path) -> None:
        """See Tracker."""
        self._send("artifact", name=name, folder=str(folder.resolve()))

    def finish(self, state: str) -> None:
        """Let the tracker finish, and wait for the end of its process."""
        self._send("finish", state=state)
        self._answer()
        self._end()

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()
            self._end()

    def _end(self) -> None:
        assert self.process is not None
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.close()

    def _send(self, call: str, **values: Any) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"call": call, **values}) + "\n")
            self.process.stdin.flush()
        except OSError:
            # The process has ended. Its last answer has the reason.
            self._answer()
            raise TrackerLost("its process ended.") from None

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise TrackerLost(f"its process ended with code {self.process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrackerLost(answer["error"])
        return answer
