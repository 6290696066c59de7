"""Feed: the calls to one tracker, made by a thread of its own, so that a slow or dead tracker delays nothing."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from swamp.errors import warn
from swamp.tracking.tracker import TrackedRun, Tracker
from swamp.tracking.tracker_process import TrackerProcess

MOST_WAITING = 10_000
"""Calls that may wait; more points are left out."""


class Feed:
    """Makes calls to one tracker in the order in which they are put.

    A call that fails ends the feed with one warning; later calls do nothing. No method raises.

    Args:
        name: Of the tracker, for the warning.
        tracker: Receives the calls.
        run: What `Tracker.start` is given.
        on_started: Called in the thread with what `Tracker.start` returned.
    """

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, on_started: Callable[[str], None]) -> None:
        self.name, self.tracker, self.run, self.on_started = name, tracker, run, on_started
        self.waiting = SimpleQueue[Callable[[], Any] | None]()
        """Calls in order; None: there are no more."""
        self.lost = False
        self.points = self.left_out = 0
        # A daemon: a tracker that never returns does not keep the program from ending.
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def put(self, call: Callable[[], Any], *, point: bool = False) -> None:
        """Queue a call. point: it may be left out if too many calls wait."""
        if self.lost:
            return
        self.points += point
        if point and self.waiting.qsize() >= MOST_WAITING:
            self.left_out += 1
            return
        self.waiting.put(call)

    def close(self, until: float) -> None:
        """Wait until all calls are made, at most until the time `until` of `time.monotonic`."""
        self.waiting.put(None)
        self.thread.join(max(0.0, until - time.monotonic()))
        if self.thread.is_alive():
            waiting = max(0, self.waiting.qsize() - 1)  # without the None
            self._give_up(f"{waiting} calls were still waiting when the run ended.")
        elif self.left_out and not self.lost:
            _warn(f"tracker {self.name}: it was too slow for {self.left_out:,} of {self.points:,} points; left out.")

    def _work(self) -> None:
        try:
            self.on_started(self.tracker.start(self.run))
            while (call := self.waiting.get()) is not None and not self.lost:
                call()
        except Exception as error:  # whatever a library raises: the run must go on
            self._give_up(str(error).strip() or type(error).__name__)

    def _give_up(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        if isinstance(self.tracker, TrackerProcess):
            self.tracker.kill()
            why = f"{why} (Its output: {self.run.folder / self.name}.log)"
        _warn(f"tracker {self.name} is lost, the run continues without it: {why}")


def _warn(text: str) -> None:
    # Where warnings are errors, this one still must not end the run.
    with suppress(UserWarning):
        warn(text)
