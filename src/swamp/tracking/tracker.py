"""Tracker: what a run logs to. The trackers that swamp has, and how each is installed."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from swamp.errors import SwampError, unknown


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when a run starts."""

    name: str
    """Name of the run."""
    config: Mapping[str, Any]
    """All settings, by dotted name."""
    folder: Path
    """Folder for the tracker's files; it exists."""
    resume: str = ""
    """What `start` returned in an earlier session of this run; empty in the first one."""


class Tracker:
    """Receives what a run logs. A subclass overrides what it needs; this base class does nothing.

    All methods of one tracker are called from one thread, which is not the thread of the training. If a method raises,
    the run goes on without this tracker, after one warning.

    Examples:
        >>> from swamp.tracking.tracker import Tracker
        >>> class Printed(Tracker):
        ...     def log(self, values, step):
        ...         print(step, values)
        >>> sparse = swamp.prune(model, task, track=Printed())  # doctest: +SKIP
    """

    def start(self, run: TrackedRun) -> str:
        """The run starts, or continues. Returns what a later session needs to continue the tracked run."""
        return ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values by name, at a training step. Steps may repeat and go back: particles train one after another."""

    def image(self, name: str, file: Path) -> None:
        """A figure, as a PNG file that is deleted afterwards."""

    def artifact(self, name: str, folder: Path) -> None:
        """A folder of files, such as the final model, that is deleted afterwards."""

    def finish(self, state: str) -> None:
        """The session ends. state: "finished", "stopped" (it can be resumed) or "failed"."""


@dataclass(frozen=True)
class _Library:
    adapter: str
    """Module of `swamp.tracking`, and the class in it."""
    package: str
    """What it imports."""


TRACKERS: dict[str, _Library] = {
    "tensorboard": _Library("tensorboard_adapter:TensorBoardTracker", "tensorboard"),
    "wandb": _Library("wandb_adapter:WandbTracker", "wandb"),
    "mlflow": _Library("mlflow_adapter:MlflowTracker", "mlflow"),
    "trackio": _Library("trackio_adapter:TrackioTracker", "trackio"),
}
"""Tracker by name. An extra of the same name installs its library."""

Track = str | Tracker | Sequence[str | Tracker]
"""Trackers, as `swamp.prune(track=...)` takes them: names, objects, or a list of both."""


def chosen_trackers(track: Track) -> tuple[str | Tracker, ...]:
    """The trackers that were asked for, each once; a text may have several names, separated by commas.

    Raises SwampError for an unknown name, a library that is not installed, or an object without the methods.
    """
    given: list[Any] = [track] if isinstance(track, str) or not isinstance(track, Sequence) else [*track]
    found: list[Any] = []
    for one in given:
        names = [name.strip() for name in one.split(",") if name.strip()] if isinstance(one, str) else [one]
        if one and not names:
            raise SwampError(f"track={one!r} names no tracker. Choose from {', '.join(TRACKERS)}.")
        found += names
    for one in found:
        _check(one)
    return tuple(dict.fromkeys(found))


def _check(one: Any) -> None:
    if not isinstance(one, str):
        missing = [name for name in ("start", "log", "image", "artifact", "finish") if not hasattr(one, name)]
        if missing or isinstance(one, type):
            what = "the class" if isinstance(one, type) else "an object"
            raise SwampError(
                f"track was given {what} {getattr(one, '__name__', type(one).__name__)}. Give the name of a tracker "
                f"({', '.join(TRACKERS)}) or an object of a subclass of swamp.tracking.tracker.Tracker."
            )
    elif one not in TRACKERS:
        raise unknown("tracker", one, TRACKERS)
    elif importlib.util.find_spec(TRACKERS[one].package) is None:
        raise SwampError(
            f"the tracker {one} needs {TRACKERS[one].package}, which is not installed. "
            f"Install it: pip install 'swamp[{one}]'"
        )


def adapter(name: str) -> Tracker:
    """A new tracker of `TRACKERS`; imports its library."""
    module, _, kind = TRACKERS[name].adapter.partition(":")
    return getattr(import_module(f"swamp.tracking.{module}"), kind)()
