"""A study on disk: its folder is the queue from which workers take runs."""

import fcntl
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Any, Literal, cast

import msgspec

from swamp.backends.autotune import CHOSEN
from swamp.errors import CorruptFile, Interrupted, RunLocked, SwampError, as_swamp_error, shortened
from swamp.files import lock_file, one_at_a_time, remove_unfinished, sign
from swamp.runs.budget import total_epochs
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory, add_checksum, read_json, verify_checksum, write_json
from swamp.runs.execute import resume, start
from swamp.runs.read import open_run, read_origin, write_config
from swamp.runs.run_progress import Reporter
from swamp.runs.study import CompareOptions, names_a_run

RunStatus = Literal["finished", "failed", "running", "waiting"]
_LOOKS = 5
_LOOK_SECONDS = 0.01
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class RunState:
    """State of one run of a study."""

    name: str
    state: RunStatus
    worker: str = ""
    """The worker that has claimed it, as HOST:PID."""
    done: float = 0.0
    """Epochs of training of all finished particles."""
    total: float = 0.0
    """Epochs of training of all particles of the run, without the ticket's."""
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class StudyDirectory:
    """A study's folder: study.json, and one run directory per run."""

    path: Path
    runs: Mapping[str, RunConfig]
    """Name -> configuration, in the order in which workers take the runs."""
    compare: CompareOptions = field(default_factory=CompareOptions)

    @classmethod
    def open(cls, path: Path) -> "StudyDirectory":
        """Read a study from its folder. Raises SwampError if `path` holds none."""
        file = _listing(path)
        if not file.exists():
            raise SwampError(f"{path} holds no study: there is no {file.name} in it.")
        values, _ = verify_checksum(read_json(file), str(file))
        try:
            runs, compare = (
                cast("dict[str, Any]", values["runs"]).items(),
                msgspec.convert(values["compare"], CompareOptions),
            )
        except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
            raise CorruptFile(
                f"{file} is damaged: its entry runs or compare is missing or wrong. Restore the file, or start the "
                "study in a new folder."
            ) from error
        for name, _ in runs:
            if not names_a_run(name):
                raise CorruptFile(f"{file} is damaged: {name!r} cannot be the name of a run: it names a directory.")
        try:
            study = cls(path, {name: RunConfig.from_json(value) for name, value in runs}, compare)
        except SwampError as error:
            raise SwampError(f"{file}: {error}") from error
        others = sorted(config.parent.name for config in path.glob("*/config.json"))
        if others and not any(name in study.runs for name in others):
            raise CorruptFile(
                f"{file} belongs to another study: it lists none of the runs in its folder ({shortened(others)})."
            )
        return study

    @classmethod
    def join(cls, path: Path, runs: Mapping[str, RunConfig], compare: CompareOptions | None = None) -> "StudyDirectory":
        """Start the study in `path`, or join it if it exists; new runs are added to it.

        Raises SwampError, naming the differences, if a run exists there with other settings or is not in `runs`.
        """
        with one_at_a_time(path / ".lock"):
            remove_unfinished(_listing(path))
            there_already = cls.open(path) if _listing(path).exists() else None
            before: Mapping[str, RunConfig] = there_already.runs if there_already else {}
            wrong = [f"{name} (not in the study given)" for name in before if name not in runs]
            for name, config in runs.items():
                there = before.get(name) or _on_disk(path / name)
                if there is not None and (other := differences(there, config)):
                    wrong.append(f"{name} ({'; '.join(other)})")
            if wrong:
                raise SwampError(
                    f"{path} holds another study. It differs in {shortened(wrong)}. Choose another --out, or "
                    "restore the study file: runs may be added, but not changed or removed."
                )
            study = cls(path, runs, compare or CompareOptions())
            if study != there_already:
                listed = {name: config.to_json() for name, config in runs.items()}
                write_json(_listing(path), add_checksum({"runs": listed, "compare": asdict(study.compare)}))
        return study

    def run(self, name: str) -> RunDirectory:
        """The directory of one run."""
        return RunDirectory(self.path / name)

    @contextmanager
    def claimed(self, name: str) -> Generator[bool]:
        """Context that claims the run for this process; its value is whether that succeeded.

        The operating system releases the claim of a process that dies.

        This is not the run's lock, which `start` and `resume` take later, after they have read the data.
        """
        with lock_file(self._claim(name), "the run directory") as handle:
            got = _exclusively(handle)
            if got:
                sign(handle, worker_name())
            yield got

    def holder(self, name: str) -> str:
        """The worker that has claimed the run, as HOST:PID; empty if none has."""
        try:
            handle = os.open(self._claim(name), os.O_RDONLY)
        except OSError:
            return ""
        try:
            # Shared, so that several readers do not block each other.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ""
        except BlockingIOError:
            return os.pread(handle, 256, 0).decode(errors="replace") or "a worker"
        finally:
            os.close(handle)

    def fail(self, name: str, error: BaseException, text: str) -> None:
        """Record that the run failed; workers skip it until `retry`."""
        record = {"error": text, "kind": type(error).__name__, "worker": worker_name(), "time": time.time()}
        self.run(name).write(self._failed(name), record)

    def retry(self) -> list[str]:
        """Put failed runs back in the queue; returns their names."""
        names = [name for name in self.runs if self.state(name).state == "failed"]
        # Of all runs: a disk error right after the summary was written leaves this file in a finished run.
        for name in self.runs:
            self._failed(name).unlink(missing_ok=True)
        return names

    def over(self, name: str) -> bool:
        """Whether the run is finished or failed."""
        return self.run(name).summary.exists() or self._failed(name).exists()

    def summary(self, name: str) -> dict[str, Any]:
        """The summary of a finished run."""
        directory, _ = open_run(self.path / name)
        done = directory.read(directory.summary)
        if not {"sparsity", "test", "seconds"} <= {*done}:
            raise CorruptFile(
                f"{directory.summary} is damaged: it is incomplete. To write it again: "
                f"swamp resume {quote(str(directory.path))}"
            )
        return done

    def begun(self) -> list[Path]:
        """Directories of runs with a finished cycle. Raises SwampError if one is not the run in study.json."""
        found = [run for run in map(self.run, self.runs) if run.metrics.exists() or run.last >= 0]
        for run in found:
            other = differences(open_run(run.path)[1], self.runs[run.path.name])
            if other:
                raise SwampError(
                    f"{run.path} is not the run that {_listing(self.path)} lists ({'; '.join(other)}). Restore the "
                    "one that was moved."
                )
        return [run.path for run in found]

    def state(self, name: str) -> RunState:
        """State of one run, from its directory."""
        config = self.runs[name]
        total = total_epochs(config.plan, config.training.epochs)
        if self.run(name).summary.exists():
            return RunState(name, "finished", done=total, total=total)
        if self._failed(name).exists():
            return RunState(name, "failed", done=0.0, total=0.0, error=self._error(name))
        done = _epochs_done(self.run(name), config)
        holder = self.holder(name)
        return RunState(name, "running" if holder else "waiting", holder, done, total)

    def states(self) -> list[RunState]:
        """States of all runs, in order."""
        return [self.state(name) for name in self.runs]

    def _claim(self, name: str) -> Path:
        # Hidden: `start` refuses a directory with visible files.
        return self.path / name / ".claim"

    def _error(self, name: str) -> str:
        path = self._failed(name)
        return str(self.run(name).read(path).get("error", f"{path} states no reason."))

    def _failed(self, name: str) -> Path:
        return self.path / name / "failed.json"


def worker_name() -> str:
    """Name of this process: HOST:PID."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_study(path: Path) -> bool:
    """Whether `path` is the folder of a study."""
    return _listing(path).exists()


def _listing(path: Path) -> Path:
    return path / "study.json"


def _on_disk(path: Path) -> RunConfig | None:
    file = RunDirectory(path).config
    return RunConfig.load(file) if file.exists() else None


def _exclusively(handle: int) -> bool:
    """Lock a claim. Several attempts, because readers hold the lock for a moment."""
    for look in range(_LOOKS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if look < _LOOKS - 1:
                time.sleep(_LOOK_SECONDS)
    return False


def _epochs_done(run: RunDirectory, config: RunConfig) -> float:
    """Epochs of the particles that are finished."""
    if config.plan.spec.ensemble:
        return sum(_of_one(run.member(index), config) for index in range(config.plan.most_particles))
    if config.plan.spec.pools:
        return _of_one(run.member(0), config)
    return _of_one(run, config)


def _of_one(run: RunDirectory, config: RunConfig) -> float:
    done = 0.0
    for cycle, count in enumerate(config.plan.schedule().particles):
        epochs = config.plan.cycle_epochs(cycle, config.training.epochs)
        if run.record(cycle).exists():
            done += epochs
            continue
        return done + epochs * sum(run.particle(cycle, index).exists() for index in range(count)) / count
    return done


ReporterOf = Callable[[RunConfig, Path], Reporter]
"""Gives the reporter of a run, from its configuration and its directory."""


def work(study: StudyDirectory, reporter: ReporterOf, stop: Event, *, wait: bool = False) -> None:
    """Start or resume every run of `study` that no other worker has claimed, one at a time.

    A run that fails is recorded as failed, and the next one is taken. Raises Interrupted when `stop` is set; the run in
    progress is saved. reporter: gives what reports a run. wait: also wait for runs that other workers have claimed, and
    take over those they leave.
    """
    while True:
        held = False
        for name in study.runs:
            if stop.is_set():
                raise Interrupted("stopped.")
            if study.over(name):
                continue
            with study.claimed(name) as mine:
                # Another worker may have finished it just before the claim.
                taken = mine and (study.over(name) or _settle(study, name, reporter, stop))
            held |= not taken
            if taken:
                # From the first run again: abandoned runs come before new ones.
                break
        else:
            if not (held and wait):
                return
            stop.wait(_POLL_SECONDS)


def _settle(study: StudyDirectory, name: str, reporter: ReporterOf, stop: Event) -> bool:
    """Run `name` until it is finished or failed. Returns False if a process that is not a worker has locked it."""
    try:
        _execute(study, name, reporter, stop)
    except Interrupted:
        raise
    except RunLocked:
        return False
    except Exception as error:
        # Bad input, no memory, or a bug: it must be recorded, and must not stop the other runs.
        told = as_swamp_error(error)
        study.fail(name, told or error, str(told) if told else "".join(traceback.format_exception(error)))
    return True


def _execute(study: StudyDirectory, name: str, reporter: ReporterOf, stop: Event) -> None:
    run, config = study.run(name), study.runs[name]
    begun = run.config.exists()
    if begun:
        _update_config(run.path, config)
    with reporter(config, run.path) as shown:
        if begun:
            resume(run.path, shown, stop)
        else:
            start(config, run.path, shown, stop)


def _update_config(path: Path, config: RunConfig) -> None:
    """Write settings that the study changed since the run began, such as its device, into the run's config.json.

    Raises SwampError if the run has other settings that decide the result.
    """
    directory, before = open_run(path)
    if other := differences(before, config):
        raise SwampError(f"{path} holds another run than the study's ({'; '.join(other)}). Move it away.")
    if config.backend == "auto" and before.backend.startswith(CHOSEN):
        config = replace(config, backend=before.backend)
    if config != before:
        with directory.locked():
            write_config(directory, config, read_origin(directory))
