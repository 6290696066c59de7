"""The process of one tracker: reads calls as JSON lines from standard input, and answers `start` and the end.

A library that crashes, hangs, prints, or reads random numbers does so here, not in the process that trains.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swamp.errors import type_and_message
from swamp.tracking.tracker import TrackedRun, Tracker, adapter


def serve_tracker() -> None:
    """Serve the tracker that the first argument names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log, with their warnings

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        tracker = adapter(sys.argv[1])
        state = "failed"  # the end of the input without `finish`: the training process has died
        for call, values in _calls():
            if call == "finish":
                state = values["state"]
                break
            if call == "start":
                run = TrackedRun(values["name"], values["config"], Path(values["folder"]), values["resume"])
                answer(id=tracker.start(run))
            else:
                _pass_on(tracker, call, values)
        tracker.finish(state)
        answer(finished=True)
    except Exception as error:
        answer(error=type_and_message(error)[:500])
        raise


def _calls() -> Iterator[tuple[str, dict[str, Any]]]:
    for line in sys.stdin:
        if line.endswith("\n"):  # else the training process died while it wrote
            values = json.loads(line)
            yield values.pop("call"), values


def _pass_on(tracker: Tracker, call: str, values: dict[str, Any]) -> None:
    if call == "log":
        tracker.log(values["values"], values["step"])
    elif call == "image":
        tracker.image(values["name"], Path(values["file"]))
    else:
        tracker.artifact(values["name"], Path(values["folder"]))


if __name__ == "__main__":
    serve_tracker()
