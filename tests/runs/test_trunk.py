"""Runs whose particles share a trunk: stopped anywhere, killed at any moment, on several ranks, to the same bits."""

import random
from dataclasses import replace
from threading import Event

import pytest

from swamp.algorithms import Plan
from swamp.backends import ticket
from swamp.errors import Interrupted
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter

from .conftest import StopAt, assert_same_outcome, go, go_on, killed_and_resumed, tiny
from .test_ranks import ranks_of

TICKET, TRUNK, APART = 10, 40, 10
"""Steps of a run of `late`: of the ticket, and in each cycle of the trunk and of each of its two particles."""


def late(method: str = "swamp-late-carry", **changes) -> RunConfig:
    plan = Plan(method, particles=(2,), densities=(1.0, 0.5), ticket_epochs=1, barrier_threshold=1.0, branch=0.33)
    config = tiny(plan=plan, backend="sequential", **changes)
    return replace(config, training=replace(config.training, epochs=3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, go(late(), path)["seconds"]


class Steps(Reporter):
    def __init__(self) -> None:
        self.seen = []

    def training(self, at):
        self.seen.append((at.cycle, at.index, at.step, at.in_trunk))


# In the ticket; in the trunk, at its last step; in the first particle, at its first and last steps; in the second.
@pytest.mark.parametrize("step", [3, 12, 50, 51, 55, 60, 61, 67])
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(step, whole, tmp_path):
    run, stop, steps = tmp_path / "run", Event(), Steps()
    with pytest.raises(Interrupted, match="swamp resume"):
        start(late(), run, StopAt(step, stop), stop)
    resume(run, steps, Event())
    assert_same_outcome(whole[0], run)
    assert len(steps.seen) == TICKET + 2 * (TRUNK + 2 * APART) - step, "steps were taken twice"
    assert not list(run.rglob("unfinished*"))
    assert (run / "cycle-01" / "trunk.safetensors").exists()


def test_snapshots_left_by_a_kill_right_after_the_ticket_or_the_trunk_are_deleted(whole, tmp_path):
    run, stop, directory = tmp_path / "run", Event(), RunDirectory(tmp_path / "run")
    with pytest.raises(Interrupted):
        start(late(), run, StopAt(55, stop), stop)
    for left in (directory.snapshot(None, 0), directory.snapshot(0, ticket.TRUNK)):
        left.write_bytes(directory.snapshot(0, 0).read_bytes())
    resume(run, Reporter(), Event())
    assert_same_outcome(whole[0], run)
    assert not list(run.rglob("unfinished*"))


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bits(whole, tmp_path):
    moments, run = random.Random(3), tmp_path / "run"
    pauses = [moments.uniform(0.05, whole[1] * 0.6) for _ in range(3)]
    killed_and_resumed(late(snapshot_seconds=1e-9), run, pauses)
    assert_same_outcome(whole[0], run)


def test_a_damaged_trunk_is_trained_again_to_the_same_bits(whole, tmp_path):
    run, stop = tmp_path / "run", Event()
    with pytest.raises(Interrupted):
        start(late(), run, StopAt(55, stop), stop)
    trunk, unfinished = RunDirectory(run).trunk(0), RunDirectory(run).snapshot(0, 0)
    trunk.write_bytes(trunk.read_bytes()[:1000])
    unfinished.unlink()
    with pytest.warns(UserWarning, match=r"trunk\.safetensors"):
        go_on(run)
    assert_same_outcome(whole[0], run)


def test_the_trunk_is_kept_with_the_particles_and_deleted_with_them(whole, tmp_path):
    go(late(keep_checkpoints="means"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("trunk*"))
    assert not list((tmp_path / "run").rglob("particle-*"))


def test_steps_of_the_trunk_are_reported_once_and_as_such(tmp_path):
    steps = Steps()
    start(late(), tmp_path / "run", steps, Event())
    of_cycle = [(index, step, trunk) for cycle, index, step, trunk in steps.seen if cycle == 1]
    shared = [(0, step, True) for step in range(1, TRUNK + 1)]
    own = [(index, step, False) for index in (0, 1) for step in range(TRUNK + 1, TRUNK + APART + 1)]
    assert of_cycle == [*shared, *own]


@pytest.mark.slow
def test_ranks_train_the_trunk_once_and_share_its_particles(whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = ranks_of(2, log, "run", "--config", whole[0] / "config.json", "--out", run, "--quiet")
    assert [rank.wait() for rank in ranks] == [0, 0], log.read_text()
    assert_same_outcome(whole[0], run)


@pytest.mark.slow
def test_sharded_particles_cannot_share_a_trunk(whole, tmp_path):
    log = tmp_path / "log"
    ranks = ranks_of(4, log, "run", "--config", whole[0] / "config.json", "--shard", "--out", tmp_path / "run")
    assert [rank.wait() for rank in ranks] == [2] * 4
    assert "--shard cannot be used with particles that share a trunk" in log.read_text()
