"""Geometry and loss of hulls whose points are chosen so that both are known by hand."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from swamp.analysis import ANALYSES
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.hull import (
    Hull,
    centroid,
    dirichlet_samples,
    edge,
    evaluate_hull,
    extreme_point,
    greedy_soup,
    halves,
    hull_of_cycle,
    learned_soup,
    size_and_gain,
    size_of,
    triangle_grid,
)
from swamp.analysis.point_evaluator import PointEvaluator, PointMetrics
from swamp.analysis.run_data import RunData
from swamp.analysis.weight_space import (
    LinearCombination,
    angles,
    covariance_spectrum,
    distances,
    inner_products,
    participation_ratio,
)
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, evaluate, with_reestimated_batchnorm
from swamp.training.average import mean
from swamp.training.data import BatchList, sampled

from .known_losses import WeightsAndOffset, squared_distance_task
from .known_losses import state_without_offset as state
from .runs import blind, records_of, run

EXAMPLES = AnalysisSettings(examples=100)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("hull") / "run")


def mask_of(size: int) -> Mask:
    return Mask({"weight": torch.ones(1, size, dtype=torch.bool)})


def test_orthogonal_particles_span_a_regular_simplex():
    states = [
        state(3, 0, 0, 0),
        state(0, 3, 0, 0),
        state(0, 0, 3, 0),
        state(0, 0, 0, 3),
    ]
    found = size_of(states, mask_of(4))
    expected = 3 * math.sqrt(2) * (1 - np.eye(4))
    np.testing.assert_allclose(found["distances"], expected, rtol=1e-14)
    assert found["radius"] == pytest.approx(3 * math.sqrt(3 / 4), rel=1e-14)
    assert found["mean_distance"] == pytest.approx(3 * math.sqrt(2), rel=1e-14)
    # The covariance of N orthogonal points of length c has N - 1 eigenvalues c^2 / N.
    assert found["spectrum"] == pytest.approx([9 / 4] * 3, rel=1e-13)
    assert found["dimension"] == pytest.approx(3, rel=1e-13)
    seen = angles(inner_products(states, state(0, 0, 0, 0), ["weight"]))
    np.testing.assert_allclose(seen, 90 * (1 - np.eye(4)), atol=1e-12)


def test_angles_are_measured_from_the_start_of_the_particles():
    inner = inner_products([state(2, 1), state(1, 2), state(1, 1)], state(1, 1), ["weight"])
    found = angles(inner)
    assert found[0, 1] == pytest.approx(90)
    assert found[:2, 2].isnan().all()
    assert found[2, 2].isnan()


def test_points_on_a_line_have_one_dimension_and_equal_points_none():
    line = size_of([state(0, 0), state(1, 1), state(2, 2)], mask_of(2))
    assert line["spectrum"] == pytest.approx([4 / 3, 0], abs=1e-15)
    assert line["dimension"] == pytest.approx(1)
    assert math.isnan(
        participation_ratio(covariance_spectrum(inner_products([state(1, 1)] * 3, state(1, 1), ["weight"])))
    )


def test_small_distances_far_from_the_origin_are_exact():
    states = [state(1e4, 1e4), state(1e4 + 2**-9, 1e4), state(1e4, 1e4 + 2**-9)]
    found = size_of(states, mask_of(2))["distances"]
    assert found[0][1:] == pytest.approx([2**-9, 2**-9], rel=1e-9)
    assert found[1][2] == pytest.approx(2**-8.5, rel=1e-9)
    equal = distances(inner_products([states[1], states[1]], states[0], ["weight"]))
    assert equal.count_nonzero() == 0


def test_only_prunable_weights_count():
    here, there = state(1, 2), {"weight": torch.tensor([[1.0, 2.0]]), "offset": torch.tensor([9.0, 9.0])}
    assert size_of([here, there], mask_of(2))["radius"] == 0


def test_points_of_different_networks_are_refused():
    with pytest.raises(SwampError, match=r"'weight' has different shapes.*one network"):
        inner_products([state(1, 2), state(1, 2, 3)], state(0, 0), ["weight"])


def test_every_value_in_the_hull_is_that_of_the_quadratic():
    corners = torch.eye(4)[:3] * 2
    target = torch.tensor([0.5, 1.0, 0.0, 0.25])
    whole = Hull(
        [state(*row.tolist()) for row in corners],
        PointEvaluator(WeightsAndOffset(4), squared_distance_task(target)),
    )
    found = evaluate_hull(whole, Seed(0))

    def loss(shares):
        return float((torch.tensor(shares, dtype=torch.float64) @ corners.double() - target).square().sum())

    drawn = [(sample["coefficients"], sample["loss"], sample["error"]) for sample in found["samples"]]
    grid = found["triangle"]
    drawn += list(zip(grid["coefficients"], grid["loss"], grid["error"], strict=True))
    for side in found["edges"]:
        i, j = side["between"]
        for share, value, error in zip(side["coefficients"], side["loss"], side["error"], strict=True):
            drawn.append(([(1 - share) * (n == i) + share * (n == j) for n in range(3)], value, error))
    assert len(drawn) == 20 + 28 + 9
    for shares, value, error in drawn:
        assert sum(shares) == pytest.approx(1)
        assert value == pytest.approx(loss(shares), rel=1e-5)
        assert error == pytest.approx(loss(shares) / 10, rel=1e-5)
    alone = [loss(extreme_point(n, 3)) for n in range(3)]
    assert [one["loss"] for one in found["extreme_points"]] == pytest.approx(alone)
    # For a quadratic loss, the gain is the mean squared distance of the networks from their mean: here 4 * 2/3.
    assert found["loss_gain"] == pytest.approx(8 / 3, rel=1e-5)
    assert found["gain"] == pytest.approx(8 / 30, rel=1e-5)


def test_no_point_is_evaluated_twice():
    asked = []

    class Counted(PointEvaluator):
        def __call__(self, points):
            points = list(points)
            asked.append(len(points))
            return super().__call__(points)

    whole = Hull(
        [state(1, 0), state(0, 1), state(1, 1)],
        Counted(WeightsAndOffset(2), squared_distance_task(torch.zeros(2))),
    )
    evaluate_hull(whole, Seed(0))
    # 3 networks, their mean (also a grid point), 20 samples, 3 per edge, and 28 - 3 - 9 - 1 other grid points.
    assert sum(asked) == 3 + 1 + 20 + 9 + 15


def test_combinations_are_exact_for_one_network_and_on_zeros():
    count = torch.tensor(7)
    one = {"w": torch.tensor([0.1, 0.0, 3.0]), "n": count}
    two = {"w": torch.tensor([0.7, 0.0, 5.0]), "n": count + 1}
    broken = {"w": torch.full((3,), torch.nan), "n": count}
    assert torch.equal(LinearCombination([one, two], (0.0, 1.0)).weights()["w"], two["w"])
    mixed = LinearCombination([one, two, broken], (0.25, 0.75, 0.0)).weights()
    torch.testing.assert_close(mixed["w"], torch.tensor([0.55, 0.0, 4.5]))
    assert mixed["w"][1] == 0
    assert mixed["n"] == 7
    half = {"w": torch.tensor([1.0, 2049.0], dtype=torch.bfloat16), "n": count}
    assert LinearCombination([half, half], (0.5, 0.5)).weights()["w"].dtype == torch.bfloat16


def test_coefficients_are_those_of_a_convex_hull():
    assert edge(0, 2, 3) == [(4 / 6, 0, 2 / 6), (3 / 6, 0, 3 / 6), (2 / 6, 0, 4 / 6)]
    assert len(set(triangle_grid(4))) == 28
    assert all(shares[3] == 0 and sum(shares) == pytest.approx(1) for shares in triangle_grid(4))
    drawn = np.array(dirichlet_samples(2000, 3, Seed(1)))
    assert (drawn >= 0).all()
    np.testing.assert_allclose(drawn.sum(1), 1)
    # Uniform on the triangle: a coordinate's mean is 1/3 and its variance 1/18.
    np.testing.assert_allclose(drawn.mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(drawn.var(0), 1 / 18, atol=0.006)


@pytest.mark.parametrize("best", [(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.7, 0.0, 0.3)])
def test_the_learned_soup_finds_the_minimum_of_a_quadratic(best):
    def evaluate_at(places):
        return [PointMetrics(sum((a - b) ** 2 for a, b in zip(at, best, strict=True)), 0.5) for at in places]

    found = learned_soup(evaluate_at, 3)
    assert found == pytest.approx(best, abs=0.03)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    assert found == learned_soup(evaluate_at, 3)


def test_the_learned_soup_is_not_worse_than_the_mean_and_ignores_losses_that_are_not_finite():
    def wild(places):
        return [PointMetrics(0.1 if shares == centroid(4) else math.nan, 0.5) for shares in places]

    assert learned_soup(wild, 4) == centroid(4)

    def without_mean(places):
        return [PointMetrics(math.nan if shares == centroid(4) else 1 - shares[2], 0.5) for shares in places]

    assert learned_soup(without_mean, 4) == extreme_point(2, 4)


def test_the_greedy_soup_adds_networks_that_do_not_raise_the_error():
    # Errors are 0.3, 0.1, 0.2, 0.4. Adding network 2 to 1 keeps the error; 0 raises it; 3 lowers it.
    known = {(1, 2): 0.1, (0, 1, 2): 0.11, (1, 2, 3): 0.05, (0, 1, 2, 3): 0.2}
    alone = (0.3, 0.1, 0.2, 0.4)

    def evaluate_at(places):
        taken = [tuple(n for n in range(4) if place[n]) for place in places]
        return [PointMetrics(9.0, alone[t[0]] if len(t) == 1 else known[t]) for t in taken]

    assert greedy_soup(evaluate_at, 4) == (1, 2, 3)
    alone = (math.nan, 0.1, 0.2, 0.4)
    assert greedy_soup(evaluate_at, 4) == (1, 2, 3)


@pytest.mark.parametrize("examples", [5, 11, 1000])
def test_halves_are_disjoint_and_complete(examples):
    data = TensorData(torch.arange(11.0)[:, None], torch.arange(11))
    for given in (data, BatchList([(data.inputs[:3], data.targets[:3]), (data.inputs[3:], data.targets[3:])])):
        parts = [torch.cat([targets for _, targets in half.in_order(1)]).tolist() for half in halves(given, examples)]
        assert (
            sorted(parts[0] + parts[1])
            == torch.cat([t for _, t in sampled(given, examples).in_order(11)]).tolist()[:examples]
        )
        assert abs(len(parts[0]) - len(parts[1])) <= 1 or isinstance(given, BatchList)


def test_few_held_out_examples_do_not_limit_the_examples_of_normalisation(finished):
    # A single training example has no variance.
    run_data = RunData.open(finished)
    held_out = run_data.task.validation
    few = replace(held_out, inputs=held_out.inputs[:2], targets=held_out.targets[:2])
    soups = hull_of_cycle(replace(run_data, task=replace(run_data.task, validation=few)), 1, EXAMPLES)["soups"]
    assert (soups["chosen_on"], soups["compared_on"]) == (1, 1)
    assert math.isfinite(soups["mean"]["loss"])


def test_a_task_of_two_functions_has_no_hull(finished):
    run_data = RunData.open(finished)
    custom = Task.custom(torch.zeros(8, 2), lambda model, batch: batch.sum(), lambda model: {"loss": 0.0})
    with pytest.raises(SwampError, match="the hull needs the outputs of the model"):
        hull_of_cycle(replace(run_data, task=custom), 1, EXAMPLES)


def test_the_record_agrees_with_its_models(finished):
    run_data = blind(RunData.open(finished))
    found = hull_of_cycle(run_data, 1, EXAMPLES)
    particles, mask, task = run_data.particles(1), run_data.cycle(1).mask, run_data.task
    flat = torch.stack([torch.cat([p.weights[n].double().flatten() for n in mask]) for p in particles])
    torch.testing.assert_close(torch.tensor(found["distances"], dtype=torch.float64), torch.cdist(flat, flat))
    assert found["radius"] == pytest.approx(float((flat - flat.mean(0)).norm(dim=1).max()))
    values = np.linalg.eigvalsh(np.cov(flat.numpy().T, bias=True))[::-1][:2]
    np.testing.assert_allclose(found["spectrum"], values, rtol=1e-9)
    start = torch.cat([(run_data.ticket.weights[n].double() * mask[n]).flatten() for n in mask])
    assert found["start"] == "ticket"
    assert found["to_ticket"]["mean"] == pytest.approx(float((flat.mean(0) - start).norm()))
    a, b = flat[0] - start, flat[1] - start
    assert found["angles"][0][1] == pytest.approx(math.degrees(math.acos(float(a @ b / a.norm() / b.norm()))))

    def worth(weights, data):
        run_data.model.load_state_dict(weights)
        fresh = with_reestimated_batchnorm(run_data.model, task.train, examples=100)
        return evaluate(fresh, task, data, examples=100)

    assert [1 - one["error"] for one in found["extreme_points"]] == pytest.approx(
        [worth(p.weights, task.validation)["accuracy"] for p in particles]
    )
    average = mean(p.weights for p in particles)
    assert found["mean"]["loss"] == pytest.approx(worth(average, task.validation)["nll"], rel=1e-5)
    soups, second = found["soups"], halves(task.validation, 100)[1]
    assert (soups["chosen_on"], soups["compared_on"]) == (50, 50)
    assert soups["mean"]["loss"] == pytest.approx(worth(average, second)["nll"], rel=1e-5)
    shares = soups["learned"]["coefficients"]
    mixed = {n: sum(s * p.weights[n] for s, p in zip(shares, particles, strict=True)) for n in average}
    mixed.update({n: value for n, value in average.items() if not value.is_floating_point()})
    assert soups["learned"]["loss"] == pytest.approx(worth(mixed, second)["nll"], rel=1e-4)
    taken = mean(particles[n].weights for n in soups["greedy"]["taken"])
    assert soups["greedy"]["error"] == pytest.approx(1 - worth(taken, second)["accuracy"])


@pytest.mark.slow
def test_tasks_are_computed_once_and_reproducible(finished, tmp_path, monkeypatch):
    copies = [tmp_path / name for name in ("one", "two")]
    for path in copies:
        shutil.copytree(finished, path)
    records = [list(records_of(RunData.open(path), ANALYSES["hull"], EXAMPLES)) for path in copies]
    assert records[0] == records[1]
    assert [record["key"] for record in records[0]] == [*(f"hull/cycle-0{n}" for n in range(3)), "hull/all"]
    assert records[0][-1]["cycles"] == 3

    # With its last two lines deleted, the analysis continues from the others, with the same result.
    file = copies[1] / "analysis.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    done = []
    whole = hull_of_cycle
    monkeypatch.setitem(
        ANALYSES["hull"].__globals__, "hull_of_cycle", lambda s, i, e: (done.append(i), whole(s, i, e))[1]
    )
    again = list(records_of(RunData.open(copies[1]), ANALYSES["hull"], EXAMPLES))
    assert done == [2]
    assert json.dumps(again) == json.dumps(records[0])
    reseeded = AnalysisSettings(examples=100, seed=1)
    other = next(iter(records_of(RunData.open(copies[1]), ANALYSES["hull"], reseeded)))
    assert other["samples"] != records[0][0]["samples"]
    assert other["distances"] == records[0][0]["distances"]


def test_size_and_gain_are_rank_correlated_over_cycles():
    lines = [
        {"radius": 1.0, "mean_distance": 4.0, "dimension": 2.0, "sparsity": 0.0, "gain": 0.1, "loss_gain": 1.0},
        {"radius": 2.0, "mean_distance": 3.0, "dimension": 2.0, "sparsity": 0.5, "gain": 0.2, "loss_gain": 3.0},
        {"radius": 4.0, "mean_distance": 1.0, "dimension": 2.0, "sparsity": 0.7, "gain": 0.9, "loss_gain": 2.0},
    ]
    found = size_and_gain(lines)
    # Ranks 1 2 3 beside 1 3 2: 1 - 6 * 2 / (3 * 8).
    assert found["gain"] == pytest.approx(
        {"radius": 1, "mean_distance": -1, "dimension": math.nan, "sparsity": 1}, nan_ok=True
    )
    assert found["loss_gain"]["radius"] == pytest.approx(0.5)
    assert found["cycles"] == 3
    assert size_and_gain(lines[:2])["gain"]["radius"] is None
    assert size_and_gain([{**lines[0], "gain": None}, *lines[1:]])["gain"]["radius"] is None
    assert size_and_gain([{**lines[0], "gain": math.nan}, *lines[1:]])["gain"]["radius"] is None


def test_missing_particles_are_named_in_the_error(tmp_path):
    run_data = RunData.open(run(tmp_path / "run", 2, keep_checkpoints="means", sparsity=0.5))
    with pytest.raises(SwampError, match=r"0 particles on disk; at least 2 are needed.*--keep-checkpoints particles"):
        hull_of_cycle(run_data, 0, EXAMPLES)
    (line,) = records_of(run_data, ANALYSES["hull"], EXAMPLES)
    assert line["cycles"] == 0
    assert "--keep-checkpoints particles" in line["skipped"]


@pytest.mark.slow
def test_without_rewinding_particles_start_from_the_previous_model(tmp_path):
    run_data = RunData.open(run(tmp_path / "run", 2, method="sms", sparsity=0.5))
    assert [hull_of_cycle(run_data, index, EXAMPLES)["start"] for index in (0, 1)] == ["ticket", "cycle 0"]


def test_a_run_in_progress_has_no_summary_over_cycles(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "cycle-02" / "record.json").unlink()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:2]))
    keys = [task.key for task in ANALYSES["hull"](RunData.open(path), EXAMPLES)]
    assert keys == ["hull/cycle-00", "hull/cycle-01"]
