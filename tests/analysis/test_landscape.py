"""Planes contain the models that define them, and grids have the values of their points."""

import math

import pytest
import torch
from torch import nn

from swamp.analysis import Plane
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.landscape import evaluate_grid, grid_around, landscape_tasks, random_plane
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import Seed, evaluate, with_reestimated_batchnorm

from .known_losses import TwoWeights, at
from .runs import go, records_of, tiny

ALL = AnalysisSettings(examples=10_000)


def test_a_plane_through_three_points_is_orthonormal_and_contains_them(normed):
    states = []
    for number in range(3):
        torch.manual_seed(number)
        other = {n: v + torch.randn_like(v) if v.is_floating_point() else v for n, v in normed.state_dict().items()}
        states.append(other)
    plane = Plane.through(normed, states)
    assert float(plane.u @ plane.u) == pytest.approx(1, abs=1e-12)
    assert float(plane.v @ plane.v) == pytest.approx(1, abs=1e-12)
    assert float(plane.u @ plane.v) == pytest.approx(0, abs=1e-12)
    for number, state in enumerate(states):
        x, y, off = plane.project(state)
        assert off == pytest.approx(0, abs=1e-9)
        assert (number != 0) or (x, y) == (0, 0)
        assert (number != 1) or (x > 0 and y == pytest.approx(0, abs=1e-9))
        there = plane.at(x, y).weights()
        assert there.keys() == state.keys()
        for name, _ in normed.named_parameters():
            assert torch.allclose(there[name], state[name], atol=1e-6)
            assert there[name].dtype == state[name].dtype
    a, b = (plane.project(state)[:2] for state in states[1:])
    true = sum(float((states[1][n] - states[2][n]).double().square().sum()) for n, _ in normed.named_parameters())
    assert math.dist(a, b) == pytest.approx(true**0.5, rel=1e-6)


def test_a_point_off_the_plane_has_its_distance():
    model = nn.Linear(3, 1, bias=False)

    def weights(*values):
        return {"weight": torch.tensor([values])}

    plane = Plane.through(model, [weights(0.0, 0.0, 0.0), weights(2.0, 0.0, 0.0), weights(1.0, 3.0, 0.0)])
    assert plane.project(weights(0.5, -1.0, 4.0)) == pytest.approx((0.5, -1, 4))


@pytest.mark.parametrize("third", [(2.0, 2.0), (0.0, 0.0)])
def test_points_on_one_line_are_refused(third):
    with pytest.raises(SwampError, match="on one line"):
        Plane.through(TwoWeights(0, 0), [at(0.0, 0.0), at(1.0, 1.0), at(*third)])
    with pytest.raises(SwampError, match="exactly three points, got 2"):
        Plane.through(TwoWeights(0, 0), [at(0.0, 0.0), at(1.0, 1.0)])


def test_tied_weights_are_one_coordinate_and_move_together():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    model["c"] = nn.Linear(1, 1, bias=False)
    model["b"].weight = model["a"].weight

    def weights(tied, other):
        return {
            "a.weight": torch.tensor([[tied]]),
            "b.weight": torch.tensor([[tied]]),
            "c.weight": torch.tensor([[other]]),
        }

    plane = Plane.through(model, [weights(0.0, 0.0), weights(2.0, 0.0), weights(0.0, 1.0)])
    there = plane.at(5.0, 3.0).weights()
    assert plane.project(weights(2.0, 0.0))[0] == 2
    assert (there["a.weight"].item(), there["b.weight"].item(), there["c.weight"].item()) == (5, 5, 3)


def test_a_grid_has_the_values_of_its_points(well):
    model = TwoWeights(0, 0)
    plane = Plane.through(model, [at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)])
    found = evaluate_grid(PointEvaluator(model, well), plane, [-1.0, 0.0, 2.0], [0.0, 5.0])
    # (w0^2 - 1)^2 + w1 at w0 in u, w1 in v.
    assert found["loss"] == [pytest.approx([0, 1, 9], abs=1e-5), pytest.approx([5, 6, 14], abs=1e-5)]
    assert found["error"] == [pytest.approx([0, 0.5, 1], abs=1e-5), [1, 1, 1]]
    wild = evaluate_grid(PointEvaluator(model, well), plane, [0.0, math.inf], [0.0])
    assert not math.isfinite(wild["loss"][0][1])
    assert wild["loss"][0][0] == pytest.approx(1)


def test_a_grid_has_a_margin_on_all_sides():
    u, v = grid_around([(0, 0), (10, 0), (5, 2)], 5)
    assert u == pytest.approx([-4, 0.5, 5, 9.5, 14])
    assert v == pytest.approx([-4, -1.5, 1, 3.5, 6])


def test_random_directions_have_the_norm_of_each_filter_on_the_support_of_the_mask(mlp):
    alive = {
        n: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) > 0.5 for n, p in mlp.named_parameters()
    }
    alive["0.weight"][3] = False
    mask = Mask({name: part for name, part in alive.items() if "weight" in name})
    mask.apply_(mlp)
    state = mlp.state_dict()
    plane = random_plane(mlp, state, mask, Seed(0))
    again = random_plane(mlp, state, mask, Seed(0))
    other = random_plane(mlp, state, mask, Seed(1))
    assert torch.equal(plane.u, again.u)
    assert torch.equal(plane.v, again.v)
    assert not torch.equal(plane.u, other.u)
    assert not torch.equal(plane.u, plane.v)
    for x, y in ((1.0, 0.0), (0.0, 1.0)):
        moved = {name: value - state[name] for name, value in plane.at(x, y).weights().items()}
        for name in mask:
            assert torch.allclose(moved[name].norm(dim=1), state[name].norm(dim=1), rtol=1e-4)
            assert not bool(moved[name][~mask[name]].any())
        assert not bool(moved["0.bias"].any())
    assert all(torch.equal(value, state[name]) for name, value in plane.at(0.0, 0.0).weights().items())


def test_random_directions_of_complex_weights_have_the_norm_of_each_filter():
    model = nn.Linear(3, 2, bias=False, dtype=torch.complex64)
    state = model.state_dict()
    there = random_plane(model, state, {}, Seed(0)).at(1.0, 0.0).weights()["weight"] - state["weight"]
    assert there.is_complex()
    assert torch.allclose(there.abs().square().sum(1), state["weight"].abs().square().sum(1), rtol=1e-4)


def test_the_records_of_a_run(finished):
    run_data = RunData.open(finished)
    records = {r["key"]: r for r in records_of(run_data, landscape_tasks, ALL)}
    assert set(records) == {f"landscape/cycle-0{c}{kind}" for c in range(3) for kind in ("", "/random")}
    record = records["landscape/cycle-01"]
    assert len(record["u"]) == len(record["v"]) == len(record["loss"]) == len(record["error"][0]) == 13
    points = record["points"]
    assert set(points) == {"particle-0", "particle-1", "particle-2", "mean", "ticket"}
    # The mean of three particles is the centre of the triangle; the ticket is not in the plane.
    centre = [sum(points[f"particle-{k}"][axis] for k in range(3)) / 3 for axis in (0, 1)]
    assert points["mean"] == pytest.approx(centre, abs=1e-4)
    assert record["off_plane"]["mean"] < 1e-4
    assert record["off_plane"]["ticket"] > 0.1
    for axis, name in enumerate("uv"):
        places = [points[f"particle-{k}"][axis] for k in range(3)]
        assert record[name][0] < min(places) <= max(places) < record[name][-1]
    middle = records["landscape/cycle-01/random"]
    assert middle["u"][6] == middle["v"][6] == 0
    run_data.model.load_state_dict(dict(run_data.cycle(1).weights))
    worth = evaluate(
        with_reestimated_batchnorm(run_data.model, run_data.task.train), run_data.task, run_data.task.held_out
    )
    assert middle["loss"][6][6] == pytest.approx(worth["nll"], rel=1e-5)


@pytest.mark.slow
def test_too_few_particles_are_skipped_with_the_reason(tmp_path):
    go(tiny(2), tmp_path / "run")
    records = {r["key"]: r for r in records_of(RunData.open(tmp_path / "run"), landscape_tasks, ALL)}
    assert "has 2 particles on disk; at least 3 are needed" in records["landscape/cycle-00"]["skipped"]
    assert "loss" in records["landscape/cycle-00/random"]
