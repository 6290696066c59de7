"""Workers take runs from the directories: each run once, abandoned ones again, and one that fails stops no other."""

import fcntl
import json
import os
import re
import signal
from contextlib import ExitStack, suppress
from dataclasses import replace
from threading import Event

import pytest

from swamp.errors import CorruptFile, Interrupted
from swamp.runs import open_run
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.read import write_config
from swamp.runs.run_progress import Reporter
from swamp.runs.study_queue import StudyDirectory, work, worker_name

from .conftest import StopAt, assert_same_outcome, go, in_child, tiny


def seeded(*seeds: int) -> dict[str, RunConfig]:
    # The backend is named: choosing one by timing may end otherwise in a resumed run than in the whole one.
    config = tiny(backend="sequential", snapshot_seconds=0.05)
    return {f"seed{s}": replace(config, plan=replace(tiny().plan, seed=s)) for s in seeds}


def sessions(study: StudyDirectory) -> list[int]:
    """How many sessions worked on each run."""
    return [len(json.loads(study.run(name).environment.read_text())) for name in study.runs]


def states(study: StudyDirectory) -> list[str]:
    return [state.state for state in study.states()]


@pytest.fixture
def child():
    """Starts work in a forked process; what is left of them is killed after the test, whatever became of it."""
    pids: list[int] = []

    def started(work) -> int:
        pids.append(in_child(work))
        return pids[-1]

    yield started
    for pid in pids:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                kill(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class PauseAt(StopAt):
    """Stands still at the given step, after a word through the pipe."""

    def __init__(self, step: int, pipe: int) -> None:
        super().__init__(step, Event())
        self.pipe = pipe

    def training(self, at):
        super().training(at)
        if self.stop.is_set():
            os.write(self.pipe, b"x")
            signal.pause()


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_is_taken_by_the_next_and_ends_like_one_never_interrupted(child, tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1))
    for name, config in study.runs.items():
        go(config, tmp_path / name)
    read, write = os.pipe()
    pid = child(lambda: work(study, lambda *run: PauseAt(101, write), Event()))
    os.read(read, 1)
    assert study.holder("seed0") == worker_name().replace(str(os.getpid()), str(pid))
    running = study.state("seed0")
    assert running.state == "running"
    assert (running.done, running.total) == (2 * 4, 3 * 2 * 4)
    kill(pid)
    assert states(study) == ["waiting", "waiting"]
    work(study, lambda *run: Reporter(), Event())
    assert states(study) == ["finished", "finished"]
    assert sessions(study) == [2, 1]
    for name in study.runs:
        assert_same_outcome(tmp_path / name, study.run(name).path)


@pytest.mark.slow
def test_workers_at_the_same_time_do_every_run_once_and_share_them_out(child, tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1, 2, 3))
    pids = [child(lambda: work(study, lambda *run: Reporter(), Event())) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert states(study) == ["finished"] * 4
    assert sessions(study) == [1, 1, 1, 1]
    assert len({(study.path / name / ".claim").read_text() for name in study.runs}) > 1


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_skipped_until_it_is_retried(tmp_path):
    good = seeded(0)["seed0"]
    wild = replace(good, training=replace(good.training, lr=1e30))
    nowhere = replace(good, device="cuda:9")
    study = StudyDirectory.join(tmp_path / "s", {"wild": wild, "nowhere": nowhere, "good": good})
    work(study, lambda *run: Reporter(), Event())
    assert states(study) == ["failed", "failed", "finished"]
    assert re.search(r"is NaN|infinite|diverged|became", study.state("wild").error)
    assert json.loads((study.path / "nowhere" / "failed.json").read_text())["worker"] == worker_name()
    work(study, lambda *run: Reporter(), Event())
    assert sessions(StudyDirectory(study.path, {"wild": wild, "good": good})) == [1, 1]
    mended = StudyDirectory.join(study.path, {**study.runs, "nowhere": replace(good, device="cpu")})
    assert mended.retry() == ["wild", "nowhere"]
    work(mended, lambda *run: Reporter(), Event())
    assert states(mended) == ["failed", "finished", "finished"]
    # As a disk leaves it that fails right after the last word of a run.
    mended.fail("good", OSError("the disk is gone"), "the disk is gone")
    assert states(mended) == ["failed", "finished", "finished"]
    assert mended.retry() == ["wild"]
    assert not (study.path / "good" / "failed.json").exists()


def test_a_run_that_began_takes_settings_beside_the_result_from_the_changed_study(tmp_path):
    timed = replace(seeded(0)["seed0"], backend="auto:threads")
    means = replace(timed, keep_checkpoints="means")
    write_config(RunDirectory(tmp_path / "s" / "a", timed.digest()), timed)
    for backend, there in (("auto", means), ("sequential", replace(means, backend="sequential"))):
        config = replace(means, backend=backend)
        study, stop = StudyDirectory.join(tmp_path / "s", {"a": config}), Event()
        with pytest.raises(Interrupted):
            work(study, lambda *run, stop=stop: StopAt(5, stop), stop)
        assert RunConfig.load(study.run("a").config) == there


def test_a_fault_of_the_program_costs_one_run_and_its_traceback_is_kept(tmp_path, monkeypatch):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1))
    original = RunDirectory.locked
    monkeypatch.setattr(RunDirectory, "locked", lambda run: 1 / 0 if run.path.name == "seed0" else original(run))
    work(study, lambda *run: Reporter(), Event())
    assert states(study) == ["failed", "finished"]
    assert "Traceback" in study.state("seed0").error
    assert study.state("seed0").error.strip().endswith("ZeroDivisionError: division by zero")


def held(child, study: StudyDirectory, name: str) -> int:
    """A process that claims the run and does nothing; returns its pid once it has it."""
    read, write = os.pipe()

    def hold():
        with study.claimed(name) as mine:
            os.write(write, b"y" if mine else b"n")
            signal.pause()

    pid = child(hold)
    assert os.read(read, 1) == b"y"
    return pid


@pytest.mark.slow
def test_a_run_claimed_by_another_worker_is_skipped_and_awaited_only_with_wait(child, tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1))
    pid = held(child, study, "seed0")
    work(study, lambda *run: Reporter(), Event())
    assert states(study) == ["running", "finished"]
    assert study.holder("seed0").endswith(f":{pid}")

    class Waited(Event):
        def wait(self, timeout=None):
            kill(pid)
            return super().wait(0)

    work(study, lambda *run: Reporter(), Waited(), wait=True)
    assert states(study) == ["finished", "finished"]


def test_the_advice_on_an_incomplete_summary_names_the_directory_of_the_run(tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0))
    work(study, lambda *run: Reporter(), Event())
    directory, _ = open_run(study.path / "seed0")
    directory.write(directory.summary, {"sparsity": 0.5})
    with pytest.raises(CorruptFile, match=f"swamp resume {study.path / 'seed0'}$"):
        study.summary("seed0")


def test_a_run_that_somebody_resumes_by_hand_is_no_failure(tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1))
    with study.run("seed0").locked():
        work(study, lambda *run: Reporter(), Event())
    assert states(study) == ["waiting", "finished"]


def test_a_directory_that_holds_another_run_is_never_written(tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0))
    go(seeded(7)["seed7"], study.path / "other")
    os.rename(study.path / "other", study.path / "seed0")
    (study.path / "seed0" / "summary.json").unlink()
    work(study, lambda *run: Reporter(), Event())
    assert "holds another run than the study's (plan.seed: 7 -> 0)" in study.state("seed0").error
    assert sessions(study) == [1]


@pytest.mark.slow
def test_a_stopped_worker_saves_and_the_next_one_resumes(tmp_path):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1))
    stop = Event()
    with pytest.raises(Interrupted):
        work(study, lambda *run: StopAt(30, stop), stop)
    assert study.run("seed0").snapshot(0, 0).exists()
    assert states(study) == ["waiting", "waiting"]
    with pytest.raises(Interrupted):
        work(study, lambda *run: Reporter(), stop)
    work(study, lambda *run: Reporter(), Event())
    assert sessions(study) == [2, 1]


def test_reading_a_study_does_not_block_workers(tmp_path, monkeypatch):
    study = StudyDirectory.join(tmp_path / "s", seeded(0))
    with study.claimed("seed0") as mine:
        assert mine
    looking = os.open(study.path / "seed0" / ".claim", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert study.holder("seed0") == ""
    monkeypatch.setattr("time.sleep", lambda _: os.close(looking))
    with study.claimed("seed0") as mine:
        assert mine


def test_the_progress_of_an_ensemble_counts_its_members(tmp_path):
    config = replace(seeded(0)["seed0"], plan=replace(tiny().plan, method="imp-ensemble"))
    study = StudyDirectory.join(tmp_path / "s", {"e": config})
    assert (study.state("e").done, study.state("e").total) == (0, 2 * 3 * 4)
    stop = Event()
    with pytest.raises(Interrupted):
        work(study, lambda *run: StopAt(101, stop), stop)
    done = study.state("e").done
    assert 0 < done < 2 * 3 * 4
    assert done % 4 == 0


def test_what_was_left_behind_comes_before_what_nobody_began(tmp_path, monkeypatch):
    study = StudyDirectory.join(tmp_path / "s", seeded(0, 1, 2))
    order, other = [], ExitStack()
    other.enter_context(study.claimed("seed0"))

    def execute(study, name, *_):
        order.append(name)
        study.run(name).summary.write_text("{}")
        other.close()

    monkeypatch.setattr("swamp.runs.study_queue._execute", execute)
    work(study, lambda *run: Reporter(), Event())
    assert order == ["seed1", "seed0", "seed2"]


def test_a_run_finished_between_the_look_and_the_claim_is_not_done_again(tmp_path, monkeypatch):
    study = StudyDirectory.join(tmp_path / "s", seeded(0))
    looks = iter([False])
    monkeypatch.setattr(StudyDirectory, "over", lambda *_: next(looks, True))
    work(study, lambda *run: Reporter(), Event())
    assert not study.run("seed0").config.exists()
