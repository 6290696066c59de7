"""Trajectories are stored exactly, do not change a run, and survive interruptions; their analysis is right."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
import torch

from swamp.analysis import interpolate_models
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.run_data import RunData
from swamp.analysis.trajectories import principal_components, stability_onset, trajectory_tasks
from swamp.analysis.weight_space import ParameterSpace, euclidean_norm
from swamp.backends import Vmapped
from swamp.errors import Interrupted, SwampError
from swamp.files import load_tensors
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.trajectory import TrajectoryWriter, read_trajectory
from swamp.training import Seed
from swamp.training.loop import fit
from swamp.training.mask_updates import masked_state

from .known_losses import TwoWeights, at
from .runs import StopAt, assert_same_tensors, go, go_on, killed_after, records_of, tiny

STEPS = 4 * 10
"""Steps of a tiny training: 640 examples in batches of 64, four epochs."""


def random_points(count: int) -> dict[int, dict]:
    alive = {"a": torch.rand(5, 7) > 0.8, "b": torch.ones(3, dtype=torch.bool), "odd": torch.rand(11) > 0.5}
    return {10 * k: {n: torch.randn(m.shape) * m for n, m in alive.items()} for k in range(1, count + 1)}


def test_a_trajectory_is_read_back_bit_for_bit_without_buffers(tmp_path):
    points = random_points(4)
    writer = TrajectoryWriter(tmp_path / "trajectory-0.safetensors")
    for step, state in points.items():
        writer.add(step, {**state, "n.running_mean": torch.ones(3), "n.num_batches_tracked": torch.tensor(3)})
        if step == 20:
            writer.flush()
    assert list(read_trajectory(writer.path)) == [10, 20]
    writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["trajectory-0.safetensors"]
    found = read_trajectory(writer.path)
    assert list(found) == list(points)
    for step, state in points.items():
        assert found[step].keys() == state.keys()
        assert all(torch.equal(found[step][name], value) for name, value in state.items())
        assert all(found[step][name].shape == value.shape for name, value in state.items())


def test_a_trajectory_takes_four_bytes_per_active_weight_and_point(tmp_path):
    alive = torch.rand(300, 100) > 0.95
    writer = TrajectoryWriter(tmp_path / "trajectory-0.safetensors")
    for step in range(20):
        writer.add(step, {"w": torch.randn(300, 100) * alive})
    writer.finish()
    exact = 20 * 4 * int(alive.sum()) + 300 * 100 / 8
    assert exact < writer.path.stat().st_size < exact + 1000


def test_points_are_written_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("swamp.runs.trajectory._MAX_BYTES", 1000)
    writer = TrajectoryWriter(tmp_path / "trajectory-0.safetensors")
    for step in range(1, 8):
        writer.add(step, {"w": torch.full((100,), float(step))})
    assert len(list(tmp_path.iterdir())) == 2
    assert len(writer.waiting) == 1
    writer.finish()
    assert {step: float(state["w"][0]) for step, state in read_trajectory(writer.path).items()} == {
        k: k for k in range(1, 8)
    }


def test_points_recorded_again_after_a_kill_replace_the_first_ones(tmp_path):
    first, again = random_points(3), random_points(3)
    for points in (first, again):
        writer = TrajectoryWriter(tmp_path / "trajectory-0.safetensors")
        for step, state in points.items():
            writer.add(step, state)
        writer.finish() if points is again else writer.flush()
    assert torch.equal(read_trajectory(writer.path)[20]["a"], again[20]["a"])


def two_cycles() -> RunConfig:
    config = tiny(2)
    return replace(config, plan=replace(config.plan, sparsity=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sequential", "vmapped", "threads"])
def test_storing_trajectories_does_not_change_the_run(backend, tmp_path, monkeypatch):
    monkeypatch.setitem(Vmapped.__init__.__kwdefaults__, "compiled", False)
    config = replace(two_cycles(), backend=backend)
    go(config, tmp_path / "without")
    go(replace(config, trajectory_every=7), tmp_path / "with")
    found = {file.relative_to(tmp_path / "with") for file in (tmp_path / "with").rglob("trajectory-*")}
    assert len(found) == 4
    assert not list((tmp_path / "without").rglob("trajectory-*"))
    for file in found:
        assert list(read_trajectory(tmp_path / "with" / file)) == [7, 14, 21, 28, 35, STEPS]
        (tmp_path / "with" / file).unlink()
    assert_same_tensors(tmp_path / "without", tmp_path / "with")
    digests = [RunConfig.load(tmp_path / name / "config.json").digest() for name in ("with", "without")]
    assert digests[0] == digests[1]


def test_points_are_the_weights_during_training(finished):
    run_data = RunData.open(finished)
    cycle = run_data.cycle(1)
    run_data.model.load_state_dict(masked_state(run_data.ticket.weights, cycle.mask))
    taken = {}

    def watch(step, total, snapshot):
        taken[step] = snapshot().weights

    training = run_data.config.plan.spec.training(run_data.config.training)
    seed = Seed(run_data.config.plan.seed).at("cycle", 1, "particle", 2)
    fit(run_data.model, run_data.task, training, seed, mask=cycle.mask, on_step=watch)
    found = read_trajectory(run_data.directory.trajectory(1, 2))
    assert list(found) == list(range(4, STEPS + 1, 4))
    for step, state in found.items():
        assert set(state) == {name for name, _ in run_data.model.named_parameters()}
        assert all(torch.equal(value, taken[step][name]) for name, value in state.items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    go(replace(two_cycles(), trajectory_every=4), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [10 + 13, 10 + STEPS, 10 + 3 * STEPS - 1, 10 + 3 * STEPS, 10 + 3 * STEPS + 1])
def test_a_run_stopped_anywhere_has_the_trajectories_of_an_uninterrupted_run(stop_at, uninterrupted, tmp_path):
    """The ticket takes 10 steps. The stops include a particle's last step and the first step of the next one."""
    stop = Event()
    with pytest.raises(Interrupted):
        go(replace(two_cycles(), trajectory_every=4), tmp_path / "run", stop, StopAt(stop_at, stop))
    go_on(tmp_path / "run")
    assert_same_tensors(uninterrupted, tmp_path / "run")
    assert {f.name for f in (tmp_path / "run").rglob("trajectory-*")} == {
        "trajectory-0.safetensors",
        "trajectory-1.safetensors",
    }


@pytest.mark.slow
def test_a_run_killed_between_frequent_snapshots_has_the_same_trajectories(tmp_path):
    config = replace(two_cycles(), trajectory_every=3, snapshot_seconds=1e-9)
    seconds = go(config, tmp_path / "whole")["seconds"]
    run = tmp_path / "run"
    for share in (0.3, 0.5, 0.6):
        killed_after(share * seconds, lambda: go_on(run) if (run / "config.json").exists() else go(config, run))
    go_on(run) if (run / "config.json").exists() else go(config, run)
    assert_same_tensors(tmp_path / "whole", run)
    assert not list(run.rglob("*.part-*"))


def test_settings_without_stored_trajectories_are_refused():
    with pytest.raises(SwampError, match="trajectory_every must be 0 or more, got -1"):
        tiny(trajectory_every=-1)
    with pytest.raises(SwampError, match=r"trajectory_every saves trajectories.*keep_checkpoints is means"):
        tiny(trajectory_every=5, keep_checkpoints="means")
    with pytest.raises(SwampError, match="--shard"):
        tiny(trajectory_every=5, shard=True)


def test_the_principal_components_of_a_planted_trajectory_are_exact():
    # Points on a rectangle of sides 6 and 2, tilted by 30 degrees: variances 9 and 1 along its sides.
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)

    def tilted(x, y):
        return {"weight": torch.tensor([[5 + x * cosine - y * sine, -2 + x * sine + y * cosine]], dtype=torch.float64)}

    corners = [(3.0, 1.0), (-3.0, 1.0), (-3.0, -1.0), (3.0, -1.0)]
    space = ParameterSpace(TwoWeights(0, 0))
    found = principal_components(space, [[tilted(*c) for c in corners[:3]], [tilted(*corners[3])]], [tilted(1.0, 0.5)])
    assert found.explained == pytest.approx((0.9, 0.1))
    assert [len(path) for path in found.trajectories] == [3, 1]
    places = [place for path in found.trajectories for place in path]
    for a, b in zip(pairwise(places), pairwise(corners), strict=True):
        assert math.dist(*a) == pytest.approx(math.dist(*b))
    assert sorted({round(abs(x), 9) for x, _ in places}) == [3]
    assert sorted({round(abs(y), 9) for _, y in places}) == [1]
    assert (abs(found.others[0][0]), abs(found.others[0][1])) == pytest.approx((1, 0.5))


def test_on_a_line_the_second_component_is_zero():
    found = principal_components(ParameterSpace(TwoWeights(0, 0)), [[at(0.0, 0.0), at(3.0, 4.0), at(6.0, 8.0)]])
    assert found.explained == pytest.approx((1, 0))
    assert [y for _, y in found.trajectories[0]] == [0, 0, 0]
    assert sorted(x for x, _ in found.trajectories[0]) == pytest.approx([-5, 0, 5])
    with pytest.raises(SwampError, match="two points or more, got 1"):
        principal_components(ParameterSpace(TwoWeights(0, 0)), [[at(0.0, 0.0)]])


@pytest.mark.parametrize(
    ("barriers", "step"),
    [
        ([0.1, 0.01, 0.1, 0.01, 0.0], 40),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 10),
        ([0.0, 0.0, 0.0, 0.0, 0.02], None),
        ([0.0, 0.0, 0.0, math.nan, 0.01], 50),
        ([0.0, 0.0, 0.0, 0.0, math.nan], None),
    ],
)
def test_the_onset_is_the_first_step_from_which_on_there_is_no_barrier(barriers, step):
    assert stability_onset([10, 20, 30, 40, 50], barriers) == step


def test_the_record_of_a_cycle(finished):
    run_data = RunData.open(finished)
    records = {r["key"]: r for r in records_of(run_data, trajectory_tasks, AnalysisSettings(examples=10_000))}
    assert set(records) == {f"trajectories/cycle-0{c}" for c in range(3)}
    record = records["trajectories/cycle-01"]
    assert set(record["points"]) == {"particle-0", "particle-1", "particle-2", "mean", "ticket"}
    assert len(record["particles"]) == 3
    one = record["particles"][1]
    assert one["steps"] == list(range(4, STEPS + 1, 4))
    assert {len(one[name]) for name in ("x", "y", "from_ticket", "between")} == {10}
    assert record["particles"][0]["between"] == [0] * 10
    taken = [read_trajectory(run_data.directory.trajectory(1, k)) for k in (0, 1)]
    space = ParameterSpace(run_data.model)
    start = space.vector(masked_state(run_data.ticket.weights, run_data.cycle(1).mask))
    assert one["between"][4] == pytest.approx(euclidean_norm(space.vector(taken[1][20]) - space.vector(taken[0][20])))
    assert one["from_ticket"][4] == pytest.approx(euclidean_norm(space.vector(taken[1][20]) - start))
    assert 0 < sum(record["explained"]) <= 1
    assert record["explained"][0] >= record["explained"][1]
    assert record["barriers"]["steps"] == one["steps"]
    like = run_data.cycle(1).weights
    way = interpolate_models(run_data.model, run_data.task, *({**like, **path[20]} for path in taken), points=7)
    assert record["barriers"]["error"][4] == pytest.approx(way.barriers.error, abs=1e-12)
    assert record["onset"] == stability_onset(record["barriers"]["steps"], record["barriers"]["error"])


def test_a_run_without_trajectories_names_the_option(tmp_path):
    config = tiny(1)
    go(replace(config, plan=replace(config.plan, sparsity=0.5)), tmp_path / "run")
    records = list(records_of(RunData.open(tmp_path / "run"), trajectory_tasks, AnalysisSettings()))
    assert "--trajectory-every" in records[0]["skipped"]
    assert json.loads((tmp_path / "run" / "analysis.jsonl").read_text().splitlines()[0])["skipped"]


def test_one_particle_has_a_trajectory_and_no_barriers(tmp_path):
    config = tiny(1, trajectory_every=10)
    go(replace(config, plan=replace(config.plan, sparsity=0.5)), tmp_path / "run")
    record = next(iter(records_of(RunData.open(tmp_path / "run"), trajectory_tasks, AnalysisSettings())))
    assert record["particles"][0]["steps"] == [10, 20, 30, 40]
    assert record["onset"] is None
    assert record["barriers"] == {"steps": [], "error": []}


def test_members_of_an_ensemble_have_trajectories(tmp_path):
    config = tiny(2, trajectory_every=10)
    go(replace(config, plan=replace(config.plan, method="imp-ensemble", sparsity=0.5)), tmp_path / "run")
    assert list(read_trajectory(RunDirectory(tmp_path / "run" / "member-1").trajectory(0, 0))) == [10, 20, 30, 40]
    assert load_tensors(tmp_path / "run" / "member-0" / "cycle-01" / "trajectory-0.safetensors")
