"""Particles auto: how many particles a cycle trains, and what of them is averaged."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS, Cycle
from swamp.algorithms.evaluator import Evaluator
from swamp.algorithms.waves import Waves
from swamp.backends import Particle
from swamp.training import Task

from .conftest import PLAN, TRAINING, run, same

SIZE = 8


def particles_at(points: torch.Tensor) -> list[Particle]:
    return [Particle({"weight": point[None]}, i, "", "", 0, 1, (1.0,), 0.0) for i, point in enumerate(points)]


class Asked:
    """Trains particles at given points, and remembers how many were asked for."""

    def __init__(self, points: torch.Tensor):
        self.particles, self.asked = particles_at(points), []

    def __call__(self, count: int) -> list[Particle]:
        self.asked.append(count)
        return self.particles[:count]


def quadratic() -> Evaluator:
    """A loss |w|^2 + 1: the squared error of a linear network on unit vectors whose targets are 0 (and 1 in all)."""
    inputs = torch.eye(SIZE) * SIZE**0.5
    data = inputs, torch.zeros(SIZE, 1)
    task = Task.of(data, data, data, loss=lambda outputs, targets: (outputs - targets).square().mean() + 1)
    return Evaluator(nn.Linear(SIZE, 1, bias=False), task, 100)


def test_the_law_is_exact_for_a_quadratic_loss():
    # Particles at the same distance from each other and from the minimum: the law holds for every choice of them.
    given = Asked(torch.eye(SIZE))
    kept, waves, asked = Waves(2, SIZE, 1, 0.0).train(given, quadratic())
    assert given.asked == asked == [2, 3, 4, 5, 6, 7, 8]
    assert len(kept) == SIZE
    assert [wave.decision for wave in waves] == ["more"] * 6 + ["all"]
    for wave, following in zip(waves, [*waves[1:], None], strict=True):
        assert wave.single == pytest.approx(2)
        assert wave.pair == pytest.approx(1.5)
        assert wave.mean == pytest.approx(1 + 1 / wave.trained)
        if following:
            assert wave.predicted == pytest.approx(following.mean)
            assert wave.gain == pytest.approx((wave.mean - following.mean) / wave.mean)


@pytest.mark.parametrize(("least", "trained"), [(0.2, 2), (0.1, 3), (0.06, 4), (0.0, 8)])
def test_particles_are_trained_while_each_gains_enough(least, trained):
    # Gains of the third, fourth, fifth particle: 1/6 of 1.5, 1/12 of 1.33, 1/20 of 1.25.
    kept, waves, _ = Waves(2, SIZE, 1, least).train(Asked(torch.eye(SIZE)), quadratic())
    assert len(kept) == waves[-1].trained == trained
    assert waves[-1].decision == ("all" if trained == SIZE else "enough")


def test_the_gain_of_a_wave_is_that_of_each_of_its_particles():
    given = Asked(torch.eye(SIZE))
    _, waves, _ = Waves(3, SIZE, 3, 0.0).train(given, quadratic())
    assert given.asked == [3, 6, 8]
    assert waves[0].predicted == pytest.approx(1 + 1 / 6)
    assert waves[0].gain == pytest.approx((1 / 3 - 1 / 6) / 3 / (4 / 3))


def test_a_wave_that_raises_the_loss_of_the_mean_is_left_out_and_is_the_last():
    points = torch.eye(SIZE)
    points[3] = 10
    kept, waves, asked = Waves(2, SIZE, 1, 0.0).train(Asked(points), quadratic())
    assert [particle.index for particle in kept] == [0, 1, 2]
    assert (waves[-1].decision, waves[-1].trained, waves[-1].kept, asked[-1]) == ("dropped", 4, 3, 4)
    assert "the last ones raise it, 3 kept" in waves[-1].sentence


def test_a_loss_that_is_not_a_number_ends_the_waves():
    points = torch.eye(SIZE)
    points[2] = torch.nan
    kept, waves, _ = Waves(2, SIZE, 1, 0.0).train(Asked(points), quadratic())
    assert (len(kept), waves[-1].decision, waves[-1].trained) == (2, "dropped", 3)


def test_beyond_a_barrier_one_particle_remains():
    class Product(nn.Module):
        """y = a b x: two minima, with a barrier between them."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 2))

        def forward(self, x):
            return self.weight.prod() * x

    data = torch.ones(40, 1), torch.ones(40, 1)
    task = Task.of(data, data, data, loss=nn.functional.mse_loss)
    kept, (wave,), _ = Waves(2, 8, 1, 0.0).train(
        Asked(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])), Evaluator(Product(), task, 100)
    )
    assert [particle.index for particle in kept] == [0]
    assert (wave.single, wave.mean, wave.decision) == (0, 1, "dropped")


@pytest.mark.parametrize("method", ["swamp", "swamp-no-swa", "sms"])
def test_the_averaged_particles_are_those_of_a_run_with_as_many(method, mlp, task):
    chosen = run(mlp, task, method, particles=("auto",), least_gain=0.001, max_particles=4)
    numbers = tuple(len(cycle.particles) for cycle in chosen)
    assert method == "sms" or len({*numbers}) > 1
    fixed = run(mlp, task, method, particles=numbers)
    assert all(same(a, b) for a, b in zip(chosen, fixed, strict=True))
    for cycle in chosen:
        trained = cycle.waves[-1].trained
        ticket = 6 if cycle.index == 0 else 0
        assert cycle.cost.steps == ticket + trained * 24
        # The waves follow each other: a pair, then one by one.
        assert cycle.cost.sequential_steps == ticket + (trained - 1) * 24


def test_numbers_may_be_given_for_some_cycles(mlp, task):
    record = run(mlp, task, "swamp", particles=(1, 3, "auto"), max_particles=2)
    assert [len(cycle.waves) for cycle in record] == [0, 0, 1, 1]
    assert [len(cycle.particles) for cycle in record[:2]] == [1, 3]


def test_the_decisions_are_in_the_record(mlp, task):
    cycle = run(mlp, task, "swamp", particles=("auto",), densities=(1.0,))[0]
    assert cycle.waves
    again = Cycle.from_json(cycle.to_json(), cycle.mask, cycle.weights)
    assert again.waves == cycle.waves


def test_the_last_cycle_whose_model_remains_trains_more():
    plan = replace(PLAN, particles=("auto",), least_gain=0.04)
    assert [plan.least_gain_of(cycle) for cycle in range(len(plan.schedule()))] == pytest.approx(
        [0.04, 0.04, 0.04, 0.002]
    )


def test_with_a_late_branch_the_particles_of_all_waves_share_one_trunk(mlp, task):
    chosen = run(mlp, task, "swamp", particles=("auto",), branch=0.25, least_gain=0.0, max_particles=4)
    numbers = tuple(len(cycle.particles) for cycle in chosen)
    fixed = run(mlp, task, "swamp", particles=numbers, branch=0.25)
    assert all(same(a, b) for a, b in zip(chosen, fixed, strict=True) if a.waves[-1].kept > 1)
    for cycle in chosen[1:]:
        assert cycle.cost.steps == 18 + 6 * cycle.waves[-1].trained


REFUSED = [
    name
    for name, method in METHODS.items()
    if method.equal_cost or not method.multi_particle or method.masks == "dynamic" or method.combine != "mean"
]


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_are_refused(method):
    with pytest.raises(swamp.SwampError, match=rf'particles="auto" trains as many .* but {method} .*Give it a number'):
        swamp.Plan(method, particles=("auto",))


def test_validation_data_are_needed(mlp, task):
    with pytest.raises(swamp.SwampError, match='particles="auto" chooses on validation data, and the task has none'):
        run(mlp, replace(task, validation=None), "swamp", particles=("auto",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": "automatic"}, "particles must be a whole number, or auto"),
        ({"particles": "auto", "max_particles": 1}, "max_particles must be 2 or more, got 1"),
        ({"particles": "auto", "wave": 0}, "wave must be 1 or more, got 0"),
        ({"particles": "auto", "least_gain": -0.1}, "least_gain must be 0 or more, got -0.1"),
    ],
)
def test_impossible_values_are_refused(options, message, mlp, task):
    with pytest.raises(swamp.SwampError, match=message):
        swamp.prune(mlp, task, training=TRAINING, **options)


def test_a_task_of_two_functions_is_judged_by_its_error(mlp, task):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def accuracy(model):
        return {"accuracy": float((model(task.test.inputs).argmax(1) == task.test.targets).float().mean())}

    own = Task.custom((task.train.inputs, task.train.targets), loss, accuracy, validate=accuracy)
    record = run(mlp, own, "swamp", particles=("auto",), densities=(1.0, 0.5), max_particles=3)
    assert all(0 <= cycle.waves[0].mean <= 1 for cycle in record)
