"""What was finished is never redone, and what is resumed equals what was never interrupted."""

import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import sleep

import pytest

from swamp.algorithms.evaluator import Evaluator
from swamp.algorithms.store import Store
from swamp.backends import Particle, threads
from swamp.backends.sequential import ParticleJob
from swamp.errors import Interrupted, SwampError
from swamp.runs import checkpoints, open_run
from swamp.runs.checkpoints import RunStore
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter

from .conftest import StopAt, assert_same_outcome, go, go_on, in_child, kill_after, killed_and_resumed, tiny

EVERY_STEP = {"snapshot_seconds": 1e-9}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, float]:
    """An undisturbed run, and about how long it takes."""
    path = tmp_path_factory.mktemp("reference") / "run"
    return path, go(tiny(**EVERY_STEP), path)["seconds"]


@pytest.mark.slow
def test_killed_at_random_moments_the_run_ends_like_one_never_interrupted(reference, tmp_path):
    path, seconds = reference
    moments, run = random.Random(0), tmp_path / "run"
    killed_and_resumed(tiny(**EVERY_STEP), run, [moments.uniform(0.02, seconds * 0.3) for _ in range(5)])
    assert_same_outcome(path, run)
    assert not list(run.rglob("unfinished-*")), "a snapshot was left behind"
    assert not list(run.rglob(".*")), "half-written files were left behind"


@pytest.mark.slow
def test_asked_to_stop_while_a_cycle_is_measured_it_does_not_measure_the_rest(reference, tmp_path, monkeypatch):
    run, stop, measured, judged = tmp_path / "run", Event(), [], Evaluator.evaluate

    def stopping(self, *given, **options):
        measured.append(given)
        stop.set()
        return judged(self, *given, **options)

    with monkeypatch.context() as inside:
        inside.setattr(Evaluator, "evaluate", stopping)
        inside.setattr("swamp.algorithms.evaluator.cores", lambda: 2)
        with pytest.raises(Interrupted, match="Continue with: swamp resume"):
            start(tiny(), run, Reporter(), stop)
    assert len(measured) <= 2
    assert not RunDirectory(run).record(0).exists()
    trained, original = [], ParticleJob.train
    monkeypatch.setattr(
        ParticleJob, "train", lambda self, *given, **more: trained.append(given[0]) or original(self, *given, **more)
    )
    go_on(run)
    plan = tiny().plan
    assert len(trained) == plan.particles[0] * (len(plan.schedule()) - 1), "particles of the first cycle trained again"
    assert_same_outcome(reference[0], run)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A finished run, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "run")


class Crash(BaseException):
    """The machine stops here."""


@pytest.mark.slow
def test_a_crash_before_any_single_write_loses_nothing(tmp_path, monkeypatch):
    config = tiny()
    plan, training = replace(config.plan, method="imp", sparsity=0.5), replace(config.training, epochs=2)
    config = replace(config, plan=plan, training=training)
    writes, rename = [], os.replace

    def count(source, target):
        writes.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr("os.replace", count)
    go(config, tmp_path / "whole")
    names = list(writes)
    assert names.count("record.json") == 2
    for crash_at in range(len(names)):
        writes.clear()

        def crash(source, target, crash_at=crash_at):
            if len(writes) == crash_at:
                raise Crash
            count(source, target)

        run = tmp_path / f"{crash_at}-{names[crash_at]}"
        monkeypatch.setattr("os.replace", crash)
        with pytest.raises(Crash):
            go(config, run)
        monkeypatch.setattr("os.replace", count)
        go_on(run) if (run / "config.json").exists() else go(config, run)
        assert_same_outcome(tmp_path / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["imp-ensemble", "lrr", "swamp-no-swa", "imp-best"])
def test_other_methods_survive_kills_too(method, tmp_path, uncompiled_graph):
    # The members of the ensemble are trained in one stack, which a kill leaves at different steps.
    config = tiny(**EVERY_STEP, backend="vmapped" if method == "imp-ensemble" else "sequential")
    config = replace(config, plan=replace(config.plan, method=method, sparsity=0.5))
    seconds = go(config, tmp_path / "whole")["seconds"]
    killed_and_resumed(config, tmp_path / "run", [seconds * 0.4, seconds * 0.3])
    assert_same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("step", [1, 10, 11, 49, 50, 51, 91, 170])
def test_stopped_at_any_step_no_step_is_taken_twice(step, reference, tmp_path):
    # Particles one after the other: side by side, those not yet told of a stop end the step they are in.
    config, stop = replace(tiny(), backend="sequential"), Event()
    with pytest.raises(Interrupted, match="swamp resume"):
        start(config, tmp_path / "run", StopAt(step, stop), stop)
    counter = StopAt(0, Event())
    resume(tmp_path / "run", counter, Event())
    total = 10 + 3 * 2 * 40  # the ticket's epoch, and three cycles of two particles
    assert step - counter.left == total
    assert_same_outcome(reference[0], tmp_path / "run")


def test_a_run_killed_between_record_and_publication_publishes_on_resume(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(RunStore, "publish", lambda self, cycle: self.stop.set() if cycle.index == 2 else None)
    with pytest.raises(Interrupted):
        start(tiny(), tmp_path / "run", Reporter(), Event())
    monkeypatch.undo()
    go_on(tmp_path / "run")
    assert_same_outcome(reference[0], tmp_path / "run")


@pytest.mark.slow
def test_an_interrupted_ensemble_is_resumed_by_the_run_not_by_a_member(config, tmp_path):
    config = replace(config, plan=replace(config.plan, method="imp-ensemble"))
    stop = Event()
    with pytest.raises(Interrupted, match=f"swamp resume {tmp_path / 'run'}$"):
        start(config, tmp_path / "run", StopAt(30, stop), stop)
    assert len(go_on(tmp_path / "run")["cycles"]) == 3


def test_finished_particles_and_cycles_are_not_trained_again(copied, monkeypatch):
    directory = RunDirectory(copied)
    directory.record(2).unlink()
    directory.particle(2, 1).unlink()
    trained = []
    original = ParticleJob.train
    monkeypatch.setattr(
        ParticleJob, "train", lambda self, *a, **k: trained.append((a[0], a[1].path)) or original(self, *a, **k)
    )
    go_on(copied)
    assert trained == [(1, ("cycle", 2, "particle", 1))]


def test_the_seconds_of_a_resumed_cycle_count_the_particles_trained_before(copied):
    directory, _ = open_run(copied)
    path = directory.particle(2, 0)
    replace(Particle.load(path), seconds=1000.0).save(path, directory.provenance(path))
    directory.record(2).unlink()
    directory.particle(2, 1).unlink()
    assert go_on(copied)["cycles"][2]["seconds"] > 1000


def test_resuming_a_finished_run_computes_nothing_and_says_the_same(finished, copied, monkeypatch):
    monkeypatch.setattr(ParticleJob, "train", lambda *_, **__: pytest.fail("trained again"))
    assert go_on(copied) == finished[1] | {"run": str(copied)}


def test_a_second_process_is_refused_with_the_owner_of_the_lock(config, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.locked(), pytest.raises(SwampError, match=f"being written by process {os.getpid()}"):
        go(config, tmp_path / "run")


def test_the_lock_of_a_killed_process_is_lifted(config, tmp_path):
    read, write = os.pipe()

    def hold():
        with RunDirectory(tmp_path / "run").locked():
            os.write(write, b"x")
            signal.pause()

    pid = in_child(hold)
    os.read(read, 1)
    with pytest.raises(SwampError, match=f"process {pid}"):
        go(config, tmp_path / "run")
    kill_after(pid, 0)
    with RunDirectory(tmp_path / "run").locked():
        pass


def test_what_a_kill_left_of_a_finished_cycle_is_removed(reference, tmp_path, monkeypatch):
    config = replace(tiny(), keep_checkpoints="means")
    monkeypatch.setattr(RunStore, "_tidy", lambda self, cycle: self.stop.set() if cycle.index == 1 else None)
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", Reporter(), Event())
    monkeypatch.undo()
    assert list((tmp_path / "run").glob("cycle-01/particle-*"))
    go_on(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("particle-*"))


@pytest.mark.slow
def test_each_record_is_read_once_however_many_cycles_are_published(tmp_path, monkeypatch):
    read, read_json = [], checkpoints.read_json
    monkeypatch.setattr(checkpoints, "read_json", lambda path: read.append(path) or read_json(path))
    go(tiny(), tmp_path / "run")
    assert [path.name for path in read] == ["record.json"] * 3


class StopAfter(Reporter):
    """Asks the run to stop at the first step at which so many particles of cycle 0 are finished.

    Not after a number of steps: how far each thread is by then depends on the machine's load.
    """

    def __init__(self, finished: int, run: Path, stop: Event) -> None:
        self.finished_particles, self.files, self.stop = finished, RunDirectory(run), stop

    def training(self, at):
        if at.cycle == 0 and sum(self.files.particle(0, i).exists() for i in range(3)) == self.finished_particles:
            self.stop.set()


@pytest.mark.slow
@pytest.mark.parametrize("finished", [0, 2])
def test_the_last_unfinished_particle_resumes_in_threads_to_the_same_bits(finished, tmp_path, monkeypatch):
    # With both of torch's threads for itself it would round otherwise: it is as large as it must be for that.
    monkeypatch.setattr(threads, "cores", lambda: 2)
    config = tiny(model="lenet-300-100", backend="threads", threads=2)
    config = replace(config, plan=replace(config.plan, particles=(3,), densities=(1.0,)))
    config = replace(config, training=replace(config.training, batch_size=128))
    go(config, tmp_path / "whole")
    run, stop, train = tmp_path / "run", Event(), ParticleJob.train

    def last_alone(self, index, seed):
        # The third takes the place of the first to finish; it could else finish together with the second.
        while index == 2 and not all(RunDirectory(run).particle(0, i).exists() for i in (0, 1)) and not stop.is_set():
            sleep(0.01)
        return train(self, index, seed)

    with monkeypatch.context() as inside:
        inside.setattr(ParticleJob, "train", last_alone)
        with pytest.raises(Interrupted):
            start(config, run, StopAfter(finished, run, stop), stop)
    assert sum(RunDirectory(run).particle(0, i).exists() for i in range(3)) == finished
    go_on(run)
    assert_same_outcome(tmp_path / "whole", run)


def test_a_run_directory_keeps_every_step_of_the_loop():
    missing = [name for name in vars(Store) if not name.startswith("__") and name not in vars(RunStore)]
    assert missing == []
