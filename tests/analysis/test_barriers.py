"""Barriers equal values computed by hand, and the ends of a segment are the given models."""

import json
import math
from dataclasses import replace

import pytest
import torch

from swamp.analysis import interpolate_models
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.barriers import Interpolation, barrier_tasks
from swamp.analysis.point_evaluator import PointMetrics
from swamp.analysis.run_data import RunData
from swamp.errors import SwampError
from swamp.training import evaluate, with_reestimated_batchnorm

from .known_losses import TwoWeights, at
from .runs import records_of

ALL = AnalysisSettings(examples=10_000, points=5)


def test_the_barrier_of_a_double_well_is_the_height_between_its_minima(well):
    # 31 points: the top, at a = 1/2, is one of them. E = L / 2.
    found = interpolate_models(TwoWeights(0, 0), well, at(-1.0, 0.0), at(1.0, 0.0), points=31).barriers
    assert found.loss == pytest.approx(1, abs=1e-5)
    assert found.error == pytest.approx(0.5, abs=1e-5)
    assert (found.chord_loss, found.chord_error) == (found.loss, found.error)


def test_on_a_slope_the_two_definitions_differ(well):
    # L(a) = ((1 - 2a)^2 - 1)^2 + a: from 0 to 1 along the chord a. Frankle: max L - 1/2; Entezari: the barrier of 1.
    shares = [k / 30 for k in range(31)]
    losses = [((1 - 2 * a) ** 2 - 1) ** 2 + a for a in shares]
    found = interpolate_models(TwoWeights(0, 0), well, at(-1.0, 0.0), at(1.0, 1.0), points=31)
    assert found.coefficients == pytest.approx(shares)
    assert [value.loss for value in found.metrics] == pytest.approx(losses, abs=1e-5)
    assert found.barriers.loss == pytest.approx(max(losses) - 0.5, abs=1e-5)
    assert found.barriers.chord_loss == pytest.approx(1, abs=1e-5)
    assert found.barriers.loss > 1.01


def test_a_descent_has_half_its_height_by_frankle_and_zero_by_the_chord(well):
    found = interpolate_models(TwoWeights(0, 0), well, at(1.0, 1.0), at(1.0, 0.0)).barriers
    assert found.loss == pytest.approx(0.5, abs=1e-6)
    assert found.chord_loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_anywhere_makes_the_barrier_nan(place):
    values = [PointMetrics(1.0, 0.1)] * 3
    values[place] = PointMetrics(math.nan, 0.1)
    found = Interpolation((0, 0.5, 1), tuple(values)).barriers
    assert math.isnan(found.loss)
    assert found.error == pytest.approx(0)


def test_the_error_says_which_model_does_not_fit_and_why(well, finished):
    with pytest.raises(SwampError, match=r"second of the two models does not fit.*shape \(1, 3\), not \(1, 2\)"):
        interpolate_models(TwoWeights(0, 0), well, at(0.0, 0.0), at(0.0, 0.0, 0.0))
    with pytest.raises(SwampError, match=r"first of the two.*'weight' is missing.*'bias' is unknown"):
        interpolate_models(TwoWeights(0, 0), well, {"bias": torch.zeros(1)}, at(0.0, 0.0))
    one, other = RunData.open(finished).require_particles(0)[:2]
    with pytest.raises(SwampError, match="different tickets"):
        interpolate_models(TwoWeights(0, 0), well, one, replace(other, ticket="another"))
    with pytest.raises(SwampError, match="2 or more, got 1"):
        interpolate_models(TwoWeights(0, 0), well, at(0.0, 0.0), at(0.0, 0.0), points=1)


@pytest.fixture(scope="module")
def records(finished):
    return {r["key"]: r for r in records_of(RunData.open(finished), barrier_tasks, ALL)}


def test_there_is_a_record_for_every_cycle_and_pair_of_consecutive_cycles(records, finished):
    ways = [f"barriers/cycle-0{c}/particles" for c in range(3)]
    ways += [f"barriers/cycle-0{c}/next" for c in range(2)]
    assert set(records) == set(ways)
    one = records["barriers/cycle-01/particles"]
    assert set(one) == {
        "key",
        "settings",
        "cycle",
        "sparsity",
        "between",
        "coefficients",
        "loss",
        "error",
        "barrier",
        "pairs",
    }
    assert one["between"] == ["particle-0", "particle-1"]
    assert one["sparsity"] == 0.5
    assert one["coefficients"] == [0, 0.25, 0.5, 0.75, 1]
    assert set(one["barrier"]) == {"error", "loss", "chord_error", "chord_loss"}
    assert (finished / "analysis.jsonl").read_text().count('{"key": "barriers/') == 5
    assert json.loads(json.dumps(records)) == records


def test_the_ends_have_the_loss_and_error_of_the_stored_models(records, finished):
    run_data = RunData.open(finished)
    task = run_data.task

    def worth(weights) -> tuple[float, float]:
        run_data.model.load_state_dict(dict(weights))
        found = evaluate(with_reestimated_batchnorm(run_data.model, task.train), task, task.held_out)
        return found["nll"], 1 - found["accuracy"]

    for index in range(3):
        record = records[f"barriers/cycle-0{index}/particles"]
        for end, particle in zip((0, -1), run_data.particles(index), strict=False):
            loss, error = worth(particle.weights)
            assert record["loss"][end] == pytest.approx(loss, rel=1e-5)
            assert record["error"][end] == pytest.approx(error, abs=1e-9)
    record = records["barriers/cycle-01/next"]
    assert record["between"] == ["cycle-01", "cycle-02"]
    for end, index in ((0, 1), (-1, 2)):
        assert record["loss"][end] == pytest.approx(worth(run_data.cycle(index).weights)[0], rel=1e-5)
        # The run evaluated its mean with statistics of all training examples, as here.
        measured = run_data.cycle(index).metrics.validation
        assert record["error"][end] == pytest.approx(1 - measured["accuracy"], abs=1e-9)


def test_a_record_names_the_particles_that_were_kept(finished, monkeypatch):
    run_data = RunData.open(finished)
    kept = [run_data.particle(1, number) for number in (0, 2)]
    monkeypatch.setattr(RunData, "require_particles", lambda *_: kept)
    tasks = barrier_tasks(run_data, AnalysisSettings(examples=20, points=2))
    (task,) = [task for task in tasks if task.key == "barriers/cycle-01/particles"]
    assert task.compute()["between"] == ["particle-0", "particle-2"]


def test_pairs_are_symmetric_and_contain_the_barrier_of_the_first_two(records, finished):
    record = records["barriers/cycle-02/particles"]
    pairs = record["pairs"]
    assert pairs[0][1] == record["barrier"]["error"]
    assert all(pairs[i][j] == pairs[j][i] for i in range(3) for j in range(3))
    assert [pairs[i][i] for i in range(3)] == [0, 0, 0]
    run_data = RunData.open(finished)
    particles = run_data.particles(2)
    found = interpolate_models(run_data.model, run_data.task, particles[1], particles[2], points=5).barriers.error
    assert pairs[1][2] == pytest.approx(found, abs=1e-12)
