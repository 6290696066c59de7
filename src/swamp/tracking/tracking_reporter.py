"""Sends the events of a run to trackers."""

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, cast

from swamp.algorithms import Cycle
from swamp.errors import Interrupted, SwampError, warn
from swamp.files import make_folder, parse_json, read_text, save_tensors
from swamp.runs.config import RunConfig, flattened
from swamp.runs.directory import replace_nonfinite, write_json
from swamp.runs.overview import Overview
from swamp.runs.run_progress import Reporter, Reporters, TrainingStep
from swamp.tracking.feed import Feed
from swamp.tracking.tracker import TrackedRun, Tracker, chosen_trackers
from swamp.tracking.tracker_process import TrackerProcess

POINTS = 100
"""Points of the loss and the learning rate in the training of one particle."""
POINT_SECONDS = 10.0
"""A slow training has more points: one in so many seconds."""
FINISH_SECONDS, STOP_SECONDS = 120.0, 30.0
"""The longest time that the end of a finished, or of a stopped run waits for its trackers."""
_STATE = "state.json"


class TrackingReporter(Reporter):
    """Logs a run to trackers. Whatever they do, the run goes on with the same bits.

    Args:
        trackers: Names of `TRACKERS`, and objects.
        config: The configuration of the run.
        path: Its directory; the trackers' files are in the folder `tracking` there. None: they are below `tracking` in
            the working folder, and the tracked run cannot be resumed.
        shown: Is told when the run waits for its trackers.
    """

    def __init__(
        self,
        trackers: Sequence[str | Tracker],
        config: RunConfig,
        path: Path | None,
        shown: Reporter | None = None,
    ) -> None:
        self.trackers, self.config, self.path = trackers, config, path
        self.shown = shown or Reporter()
        self.feeds: list[Feed] = []
        self.state: dict[str, dict[str, Any]] = {}
        self.run = Overview()
        self.point_times: dict[tuple[int | None, int], float] = {}
        self.records: list[dict[str, Any]] = []
        self.last: Cycle | None = None
        self.broken, self.lock = False, Lock()

    def __exit__(self, *error: Any) -> None:
        self._guarded(self._finish, error[0])

    def started(self, run: Overview) -> None:
        """Start every tracker, in a thread of its own."""
        self._guarded(self._start, run)

    def training(self, at: TrainingStep) -> None:
        """Log the loss and the learning rate, if a point is due."""
        now = time.monotonic()
        before = self.point_times.setdefault((at.cycle, at.index), now)
        if at.step * POINTS // at.total > (at.step - 1) * POINTS // at.total or now - before >= POINT_SECONDS:
            self.point_times[at.cycle, at.index] = now
            self._guarded(self._point, at)

    def finished(self, cycle: Cycle) -> None:
        """Log the record of a cycle, unless an earlier session did."""
        self._guarded(self._cycle, cycle)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work`. If it fails, tracking ends with one warning."""
        if self.broken:
            return
        try:
            work(*arguments)
        except Exception as error:  # a full disk, a figure that cannot be drawn: the run must go on
            self.broken = True
            with suppress(UserWarning):
                what = str(error).strip() or type(error).__name__
                warn(f"the run is not tracked any more, and continues: {what}")

    def _start(self, run: Overview) -> None:
        self.run = run
        name = self.config.name() if self.path is None else self.path.resolve().name
        if self.path is None:
            folder = Path("tracking") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        else:
            folder = self.path / "tracking"
        folder = folder.absolute()  # the process may change its working folder while trackers write
        make_folder(folder)
        self.state = _read_state(folder / _STATE)
        config = flattened(json.loads(json.dumps(replace_nonfinite(self.config.to_json()))))
        for key, tracker in self._named():
            known = self._known(key)
            tracked_run = TrackedRun(name, config, folder, str(known["id"]))
            one = TrackerProcess(tracker) if isinstance(tracker, str) else tracker
            self.feeds.append(Feed(key, one, tracked_run, partial(self._note, folder, key, "id")))

    def _named(self) -> Iterator[tuple[str, str | Tracker]]:
        """The trackers by different names: those of objects are their classes, numbered if there are several."""
        count = Counter[str]()
        for tracker in self.trackers:
            name = tracker if isinstance(tracker, str) else type(tracker).__name__
            count[name] += 1
            yield (name if count[name] == 1 else f"{name}-{count[name]}"), tracker

    def _known(self, name: str) -> dict[str, Any]:
        with self.lock:
            return self.state.setdefault(name, {"id": "", "cycles": 0})

    def _note(self, folder: Path, name: str, key: str, value: Any) -> None:
        """Keep what a resumed run needs. Called in the thread of a tracker."""
        with self.lock:
            self.state[name][key] = value
            write_json(folder / _STATE, self.state)

    def _point(self, at: TrainingStep) -> None:
        network = "ticket" if at.cycle is None else f"particle-{at.index}"
        self._log({f"loss/{network}": at.loss(), f"lr/{network}": at.lr}, self.run.axis(at.cycle, at.step), point=True)

    def _cycle(self, cycle: Cycle) -> None:
        record = replace_nonfinite(cycle.to_json())
        self.records.append(record)
        self.last = cycle
        values = {**cycle_values(record), **self._unreported_losses(cycle)}
        step = self.run.axis(cycle.index + 1, 0)
        for feed in self.feeds:
            if cycle.index >= self._known(feed.name)["cycles"]:
                self._log(values, step, feeds=[feed])
                folder = feed.run.folder
                feed.put(partial(self._note, folder, feed.name, "cycles", cycle.index + 1))

    def _unreported_losses(self, cycle: Cycle) -> dict[str, float]:
        """The last losses of the particles that report no steps: of other ranks, and of custom trainers."""
        seen = {index for one, index in self.point_times if one == cycle.index}
        return {f"loss/particle-{one.index}": one.loss for one in cycle.particles if one.index not in seen}

    def _log(
        self, values: Mapping[str, Any], step: int, *, point: bool = False, feeds: Sequence[Feed] | None = None
    ) -> None:
        known = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        for feed in self.feeds if feeds is None else feeds:
            if known:
                feed.put(partial(feed.tracker.log, known, step), point=point)

    def _finish(self, kind: type[BaseException] | None) -> None:
        stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt | GeneratorExit)
        state = "finished" if kind is None else "stopped" if stopped else "failed"
        until = time.monotonic() + (FINISH_SECONDS if kind is None else STOP_SECONDS)
        with ExitStack() as stack:
            try:
                if kind is None and self.last is not None and self.feeds:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swamp-")))
                    self._results(self.last, folder)
            finally:
                for feed in self.feeds:
                    feed.put(partial(feed.tracker.finish, state))
                if self.feeds:
                    self.shown.stage("finishing the trackers", once=True)
                for feed in self.feeds:
                    feed.close(until)

    def _results(self, last: Cycle, folder: Path) -> None:
        """Log the figures and the final model."""
        # Imported here, because matplotlib takes a second, and most runs have no tracker.
        from swamp.report.write import draw_run

        model = folder / "model"
        make_folder(model)
        write_json(model / "config.json", self.config.to_json())
        (model / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))
        save_tensors(model / "model.safetensors", last.weights)
        last.mask.save(model / "mask.safetensors")
        for name, file in draw_run(model, folder).items():
            for feed in self.feeds:
                feed.put(partial(feed.tracker.image, name, file))
        for feed in self.feeds:
            feed.put(partial(feed.tracker.artifact, "model", model))


def tracked(shown: Reporter, config: RunConfig, path: Path, *, resumed: bool = False) -> Reporter:
    """`shown`, and the trackers that `config` names.

    Raises SwampError for an unknown tracker, and for one whose library is missing; with `resumed` it is left out with a
    warning, as a run that began with it can continue without it.
    """
    try:
        trackers = chosen_trackers(config.track)
    except SwampError as error:
        if not resumed:
            raise
        warn(f"{error} Continuing without trackers.")
        return shown
    return Reporters(shown, TrackingReporter(trackers, config, path, shown)) if trackers else shown


def cycle_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a cycle's record, by the names that trackers show."""
    splits: dict[str, Mapping[str, Any]] = {name: record[name] or {} for name in ("train", "validation", "test")}
    barrier: Mapping[str, Any] = record["barrier"] or {}
    particles: list[Mapping[str, Any]] = record["particles"]
    tests = [cast("Mapping[str, float | None]", particle["test"]) for particle in particles]
    inside = {name: [one.get(name) for one in tests] for name in splits["test"]} if len(tests) > 1 else {}
    return {
        "cycle": record["cycle"],
        "sparsity": record["sparsity"],
        "nnz": record["nnz"],
        "density/all": record["density"]["all"],
        **{f"{split}/{name}": value for split, metrics in splits.items() for name, value in metrics.items()},
        **{f"particles/{name}": _mean(values) for name, values in inside.items()},
        **{f"barrier/{name}": value for name, value in barrier.items()},
        **{f"cost/{name}": record[name] for name in ("seconds", "steps", "samples", "flops")},
        **{f"total/{name}": value for name, value in record["total"].items()},
        "diverged": len(record["divergences"]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier sessions noted; empty if there is none, or it is damaged."""
    try:
        found = parse_json(read_text(path))
        return {str(name): {"id": str(one["id"]), "cycles": int(one["cycles"])} for name, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
