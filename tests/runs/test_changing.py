"""Runs whose masks change while they train: stopped anywhere, killed at any moment, with nothing lost but a part."""

import random
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from swamp.algorithms import METHODS, Plan
from swamp.errors import CorruptFile, Interrupted
from swamp.files import load_tensors
from swamp.runs import checkpoints, open_run
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter
from swamp.runs.snapshot_files import load_phase, save_phase
from swamp.training.mask_updates import Dynamic

from .conftest import StopAt, assert_same_outcome, go, go_on, killed_and_resumed, tiny

INTERVAL = 6
CHANGING = [name for name, method in METHODS.items() if method.masks == "dynamic"]


def changing(method: str, **changes) -> RunConfig:
    """Two densities of 40 steps a particle; changes after 6, 12 and 18 of them, later ones where there is no tail."""
    plan = Plan(method, particles=(2,), densities=(0.5, 0.2), ticket_epochs=0.5, barrier_threshold=1.0)
    plan = replace(plan, dynamic=Dynamic(update_interval=INTERVAL, drop_fraction=0.5, dual_interval=7))
    return tiny(plan=plan, **changes)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", CHANGING)
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(method, tmp_path):
    config = changing(method)
    whole = StopAt(10**6, Event())
    start(config, tmp_path / "whole", whole, Event())
    steps = 10**6 - whole.left
    step = random.Random(method).randrange(1, steps)
    run, stop = tmp_path / str(step), Event()
    with pytest.raises(Interrupted, match="swamp resume"):
        start(config, run, StopAt(step, stop), stop)
    counter = StopAt(10**6, Event())
    resume(run, counter, Event())
    # What is redone is at most one part of each particle.
    assert 0 <= 10**6 - counter.left - (steps - step) <= 2 * INTERVAL
    assert_same_outcome(tmp_path / "whole", run)
    assert not list(run.rglob("unfinished*"))


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bits(tmp_path):
    config = changing("rigl-swamp", snapshot_seconds=1e-9)
    seconds = go(config, tmp_path / "whole")["seconds"]
    killed_and_resumed(config, tmp_path / "run", [seconds * 0.4, seconds * 0.3])
    assert_same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_what_is_kept_between_two_changes_comes_back_as_it_was(tmp_path):
    config, run, stop = changing("rigl-swamp-own"), tmp_path / "run", Event()
    with pytest.raises(Interrupted):
        start(config, run, StopAt(60, stop), stop)
    path = run / "cycle-00" / "unfinished.safetensors"
    phase = load_phase(path)
    assert phase.step % INTERVAL == 0
    assert len(phase.masks) == len(phase.snapshots) == 2
    assert phase.masks[0] != phase.masks[1]
    for mask, snapshot in zip(phase.masks, phase.snapshots, strict=True):
        mask.require_zeros(snapshot.weights)
        assert snapshot.step == phase.step
    with pytest.raises(CorruptFile, match="belongs to another run"):
        RunDirectory(run, "other").verify_owner(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"unfinished\.safetensors .* the cycle starts again"):
        go_on(run)
    assert len(go_on(run)["cycles"]) == 2


@pytest.mark.slow
def test_particles_of_changing_masks_are_kept_like_others(tmp_path):
    go(changing("rigl-swamp-own"), tmp_path / "run")
    assert len(list((tmp_path / "run").rglob("particle-*.safetensors"))) == 4
    go(changing("rigl-swamp-own", keep_checkpoints="means"), tmp_path / "means")
    assert not list((tmp_path / "means").rglob("particle-*.safetensors"))


@pytest.mark.slow
def test_the_seconds_of_an_earlier_session_count_in_the_cycle_and_in_its_particles(tmp_path):
    config, run, stop = changing("rigl-swamp"), tmp_path / "run", Event()
    with pytest.raises(Interrupted):
        start(config, run, StopAt(60, stop), stop)
    path = run / "cycle-00" / "unfinished.safetensors"
    save_phase(path, replace(load_phase(path), seconds=1000.0), open_run(run)[0].provenance(path))
    cycle = go_on(run)["cycles"][0]
    assert 1000 < cycle["seconds"] < 1100
    assert 1000 < sum(particle["seconds"] for particle in cycle["particles"]) < 1100


def test_a_run_that_crashed_has_its_last_change_on_disk_and_a_stopped_one_whatever_the_time(tmp_path):
    class Crash(Reporter):
        steps = 0

        def training(self, at):
            assert at.total == 40
            self.steps += 1
            if self.steps == 15:
                raise RuntimeError("crash")

    def step(name: str) -> int:
        path = tmp_path / name / "cycle-00" / "unfinished.safetensors"
        return load_phase(path).step if path.exists() else -1

    often = changing("rigl", snapshot_seconds=1e-9)
    configs = {"often": often, "seldom": replace(often, snapshot_seconds=1000.0)}
    for name, config in configs.items():
        with pytest.raises(RuntimeError, match="crash"):
            start(config, tmp_path / name, Crash(), Event())
    assert (step("often"), step("seldom")) == (2 * INTERVAL, -1)
    stop = Event()
    with pytest.raises(Interrupted):
        resume(tmp_path / "seldom", StopAt(20, stop), stop)
    assert step("seldom") == 3 * INTERVAL


def test_what_is_kept_between_changes_is_written_as_often_as_asked(tmp_path, monkeypatch):
    moments, written = iter([0.0, 9.0, 11.0, 12.0, 22.0, 23.0]), []
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    monkeypatch.setattr(checkpoints, "save_phase", lambda path, phase, run: written.append(phase))
    keeping = RunStore(RunDirectory(tmp_path, "run"), Reporter(), Event(), snapshot_seconds=10)
    for number in range(5):
        keeping.keep_phase(0, number)
    # Ten seconds after the first that was not written, and ten after the last that was.
    assert written == [2, 4]
    keeping.keep_phase(0, 5, due=True)
    assert written == [2, 4, 5]


@pytest.mark.slow
def test_pools_keep_the_run_they_are_made_of_in_a_folder_of_its_own(tmp_path):
    config = tiny(plan=replace(tiny().plan, method="lottery-pools"))
    go(config, tmp_path / "pools")
    go(replace(config, plan=replace(config.plan, method="imp")), tmp_path / "imp")
    for number in range(3):
        inner, alone = (
            load_tensors(path / f"cycle-0{number}" / "mean.safetensors")[0]
            for path in (tmp_path / "pools" / "member-0", tmp_path / "imp")
        )
        assert all(torch.equal(inner[name], alone[name]) for name in alone)
    assert not list((tmp_path / "pools").glob("cycle-*/particle-*"))
