"""Evaluating many points at once, one at a time, and as models gives equal results."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.weight_space import LinearCombination
from swamp.training import Seed, evaluate, with_reestimated_batchnorm
from swamp.training.average import interpolate
from swamp.training.data import BatchList
from swamp.training.rng import isolated
from swamp.training.streams import StreamData


class Unstackable(nn.Module):
    """Branches on the values of its weights, which vmap does not support."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.inner(inputs) * (2.0 if float(self.inner.weight.sum()) > 0 else 1.0)


def states(model: nn.Module, count: int) -> list[dict]:
    others = []
    for number in range(2):
        with isolated(Seed(number).at("init")):
            other = copy.deepcopy(model)
            for parameter in other.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
            others.append({name: value.clone() for name, value in other.state_dict().items()})
    return [interpolate(*others, k / (count - 1)) for k in range(count)]


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, inputs):
        return torch.nn.functional.dropout(self.inner(inputs), 0.1)


def spectral() -> nn.Module:
    with isolated(Seed(0).at("init")):
        return nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("kind", ["mlp", "normed", "unstackable", "spectral"])
def test_points_have_the_loss_and_error_of_their_models(kind, task, request):
    own = {"unstackable": Unstackable, "spectral": spectral}
    model = own[kind]() if kind in own else request.getfixturevalue(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = states(model, 7)
    values = PointEvaluator(model, task)(
        [*points[:3], LinearCombination([points[2], points[4]], (0.5, 0.5)), *points[4:]]
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for state, value in zip(points, values, strict=True):
        model.load_state_dict(state)
        found = evaluate(with_reestimated_batchnorm(model, task.train), task, task.validation)
        assert value.error == pytest.approx(1 - found["accuracy"], abs=1e-9)
        assert value.loss == pytest.approx(found["nll"], rel=1e-5)


class Twice(nn.Module):
    """Calls its first layer twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.outer(self.inner(self.inner(inputs)))


class Peeking(nn.Module):
    """Uses the weights of its first layer outside the layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.outer(self.inner(inputs)) * self.inner.weight.square().sum()


class Scaled(nn.Module):
    """Applies a parameter to the inputs before the first layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6))

    def forward(self, inputs):
        return self.inner(inputs * self.scale)


@pytest.mark.parametrize(
    ("kind", "first"), [("mlp", True), ("normed", True), (Twice, False), (Peeking, False), (Scaled, False)]
)
def test_combinations_with_the_first_layer_computed_once_equal_their_weights(kind, first, task, request):
    model = request.getfixturevalue(kind) if isinstance(kind, str) else kind()
    one, *_, other = states(model, 3)
    points = PointEvaluator(model, task)
    assert bool(points.first) is first
    ends = (one, other)
    blends = [LinearCombination(ends, (1 - k / 8, k / 8)) for k in range(-1, 10)]
    for found, alone in zip(points(blends), points([blend.weights() for blend in blends]), strict=True):
        assert found.loss == pytest.approx(alone.loss, rel=1e-5)
        assert found.error == alone.error


def test_a_network_that_is_not_finite_affects_only_points_with_its_coefficient(mlp, task):
    tame, other = states(mlp, 2)
    wild = {name: torch.full_like(value, torch.nan) for name, value in mlp.state_dict().items()}
    networks = (tame, other, wild)
    found = PointEvaluator(mlp, task)(
        [LinearCombination(networks, (1 - k / 4, k / 4, 0.0)) for k in range(5)]
        + [LinearCombination(networks, (0, 0, 1))]
    )
    assert all(value.loss < 10 for value in found[:5])
    assert found[5].loss != found[5].loss


def test_only_the_given_number_of_examples_is_used(normed, task):
    points = states(normed, 3)
    values = PointEvaluator(normed, task, task.train, examples=40)(points)
    for state, value in zip(points, values, strict=True):
        normed.load_state_dict(state)
        fresh = with_reestimated_batchnorm(normed, task.train, examples=40)
        assert value.loss == pytest.approx(evaluate(fresh, task, task.train, examples=40)["nll"], rel=1e-5)


def test_a_loss_that_is_not_finite_is_returned(mlp, task):
    wild = {name: torch.full_like(value, torch.nan) for name, value in mlp.state_dict().items()}
    wild_value, tame_value = PointEvaluator(mlp, task)([wild, states(mlp, 2)[0]])
    assert wild_value.loss != wild_value.loss
    assert tame_value.loss < 10


def test_statistics_from_a_stream_read_the_given_number_of_examples(normed, task):
    read = []

    def batches(seed):
        for batch in task.train.in_order(8):
            read.append(len(batch[1]))
            yield batch

    streamed = replace(task, train=StreamData(batches, steps_per_epoch=len(task.train) // 8, collate=None))
    evaluator, points = PointEvaluator(normed, streamed, examples=16), states(normed, 3)
    stacked = evaluator(points)
    assert read == [8, 8]
    for state, value in zip(points, stacked, strict=True):
        [alone] = evaluator([state])
        assert value.loss == pytest.approx(alone.loss, rel=1e-5)


def test_statistics_from_batches_of_unequal_sizes_count_every_example(normed, task):
    inputs, targets = task.train.inputs, task.train.targets
    parts = zip(
        inputs.split([7, 5, 6, 4, len(inputs) - 22]), targets.split([7, 5, 6, 4, len(inputs) - 22]), strict=True
    )
    batches = replace(task, train=BatchList(list(parts)))
    points = states(normed, 3)
    for state, value in zip(points, PointEvaluator(normed, batches)(points), strict=True):
        normed.load_state_dict(state)
        found = evaluate(with_reestimated_batchnorm(normed, batches.train), task, task.validation)
        assert value.loss == pytest.approx(found["nll"], rel=1e-5)


def test_the_global_generator_is_not_touched(task):
    model = Noisy()
    before = torch.get_rng_state()
    PointEvaluator(model, task)([model.state_dict()] * 2)
    assert torch.equal(torch.get_rng_state(), before)
