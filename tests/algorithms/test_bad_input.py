"""Everything that cannot be is refused before a single step is trained."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS
from swamp.training import Task, TensorData, Training

TRAINING = Training(epochs=2, batch_size=16, swa_fraction=0.5)


class NeverCalled:
    def train(self, *_, **__):
        raise AssertionError("training started")


def attempt(model, task, training=TRAINING, **options):
    return list(swamp.cycles(model, task, swamp.Plan(**options), training, backend=NeverCalled()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1"),
        ({"sparsity": -0.1}, r"sparsity must lie"),
        ({"sparsity": math.nan}, "sparsity must be a finite number, got nan"),
        ({"particles": (0,)}, "particles must be 1 or more"),
        ({"particles": (-2,)}, "particles must be 1 or more"),
        ({"particles": ()}, "particles must be 1 or more"),
        ({"prune_fraction": (0.0,)}, r"prune_fraction.*\(0, 1\)"),
        ({"prune_fraction": (1.0,)}, r"prune_fraction.*\(0, 1\)"),
        ({"prune_fraction": (0.5, 0.2), "cycles": 2, "sparsity": 0.9}, "end at sparsity 0.6000, not at sparsity=0.9"),
        ({"cycles": -1}, "cycles must be 0 or more"),
        ({"cycles": 2**31}, "cycles must be 0 or more, and 10000 at most"),
        ({"prune_fraction": (1e-12,)}, "takes [0-9]+ cycles, more than the maximum of 10000"),
        ({"prune_fraction": (0.5, 1e-12)}, "takes 10001 cycles, more than the maximum of 10000"),
        ({"structure": "1:100000"}, "structure 1:100000 takes 99999 cycles"),
        ({"ticket_epochs": 1e30}, "ticket_epochs must be 0 or more, and a billion at most"),
        ({"sparsity": "0.5"}, "sparsity must be a number, got '0.5'"),
        ({"densities": (0.5, 0.1)}, "densities start at 1"),
        ({"densities": (1.0, 0.1, 0.5)}, "densities must fall"),
        ({"method": "swmp"}, "unknown method 'swmp'. Did you mean .*swamp"),
        ({"score": "magnitud"}, "Did you mean magnitude"),
        ({"allocation": "globl"}, "Did you mean global"),
        ({"structure": "unstruct"}, "Did you mean unstructured"),
        ({"min_per_layer": -1}, "min_per_layer must be 0 or more"),
        ({"ticket_epochs": -1}, "ticket_epochs must be 0 or more"),
        ({"barrier_points": -1}, "barrier_points must be 0 or more"),
        ({"barrier_threshold": -1}, "barrier_threshold must be 0 or more"),
        ({"evaluation_examples": 0}, "evaluation_examples must be 1 or more"),
        ({"ticket_epochs": 3}, "the training has 2"),
        ({"sparsity": 0.999}, "would keep 0 of 144 weights"),
        ({"sparsity": 0.95, "min_per_layer": 4}, "would keep 7 of 144 weights, with at least 4"),
        ({"exclude": ("*",)}, "nothing to prune"),
        ({"method": "imp-ensemble"}, "swamp.algorithms.ensemble"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_training(mlp, task, options, message):
    with pytest.raises(swamp.SwampError, match=message):
        attempt(mlp, task, **options)


def test_a_model_without_weights_to_prune_is_refused(task):
    with pytest.raises(swamp.SwampError, match="nothing to prune"):
        attempt(nn.BatchNorm1d(6), task)


def test_a_model_without_values_or_whose_copies_cannot_be_trained_is_refused(mlp, task):
    with pytest.raises(swamp.SwampError, match="Identity has nothing to prune: none of its 0 parameters"):
        swamp.prune(nn.Identity(), task, training=TRAINING)
    with pytest.raises(swamp.SwampError, match=r"2.bias have no values: they are on the meta device"):
        attempt(copy.deepcopy(mlp).to("meta"), task)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        scripted = torch.jit.script(mlp)
        with pytest.raises(swamp.SwampError, match=r"copies of a scripted or traced module \(torch.jit\) cannot"):
            attempt(scripted, task)


def test_averaging_without_a_tail_is_refused_but_only_where_a_method_averages(mlp, task):
    bare = replace(TRAINING, swa_fraction=0.0)
    with pytest.raises(swamp.SwampError, match="swa_fraction=0 leaves none"):
        attempt(mlp, task, bare, method="swamp")
    for method in ("imp", "swamp-no-swa", "lrr"):
        with pytest.raises(AssertionError, match="training started"):
            attempt(mlp, task, bare, method=method)
    with pytest.raises(AssertionError, match="training started"):
        attempt(mlp, task, replace(bare, swa=False), method="swamp")


def test_choosing_the_best_particle_needs_validation_data(mlp, task):
    with pytest.raises(swamp.SwampError, match="chooses on validation data"):
        attempt(mlp, replace(task, validation=None), method="imp-best")


def test_a_backend_that_cannot_train_is_refused(mlp, task):
    with pytest.raises(swamp.SwampError, match=r"backend must be an object with the method train, or text, got \[\]"):
        swamp.prune(mlp, task, backend=[])


@pytest.mark.parametrize("particles", [2.5, (None,), object()])
def test_particles_that_are_no_numbers_are_refused_by_prune(particles, mlp, task):
    with pytest.raises(swamp.SwampError, match="particles must be"):
        swamp.prune(mlp, task, particles=particles, backend=NeverCalled())


def test_an_unknown_option_of_prune_is_named(mlp, task):
    with pytest.raises(swamp.SwampError, match=r"no argument 'ticket_epoch'. Did you mean ticket_epochs"):
        swamp.prune(mlp, task, ticket_epoch=1)


def test_several_prune_fractions_and_cycles_may_be_given_where_they_agree():
    plan = swamp.Plan(prune_fraction=(0.5, 0.2), cycles=2, sparsity=0.6)
    assert plan.schedule().densities == pytest.approx((1, 0.5, 0.4))


def test_a_training_that_diverges_names_particle_and_cycle_and_keeps_the_cycles_before(mlp, task):
    wild = Training(epochs=4, batch_size=16, lr=0.1, swa_fraction=0, swa=False, schedule="constant")
    generator = swamp.cycles(
        mlp,
        Exploding.after(task, steps=60),
        swamp.Plan(method="imp", sparsity=0.8, prune_fraction=(0.5,), on_divergence="stop"),
        wild,
    )
    assert [next(generator).index, next(generator).index] == [0, 1]
    with pytest.raises(swamp.Diverged, match=r"cycle 2, particle 0: .*nan.*What was finished before is kept"):
        next(generator)


def test_a_ticket_that_diverges_is_named(mlp, task):
    with pytest.raises(swamp.Diverged, match=r"the ticket diverged: the training loss became nan"):
        list(swamp.cycles(mlp, Exploding.after(task, steps=3), swamp.Plan(on_divergence="stop"), TRAINING))


class Exploding:
    """A loss that is NaN from a given call on."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, outputs, targets):
        self.left -= 1
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss if self.left >= 0 else loss * torch.nan

    @classmethod
    def after(cls, task: Task, steps: int) -> Task:
        return replace(task, loss=cls(steps))


def test_every_method_has_a_summary_that_says_something():
    assert all(len(method.summary) > 20 for method in METHODS.values())


def test_a_task_without_validation_runs_and_says_none(mlp, task):
    record = list(
        swamp.cycles(
            mlp,
            replace(task, validation=None),
            swamp.Plan(method="swamp", sparsity=0.5, particles=(2,), prune_fraction=(0.5,), barrier_threshold=1),
            TRAINING,
        )
    )
    assert record[0].metrics.validation is None
    assert record[0].barrier is not None
    assert record[0].to_json()["validation"] is None


def test_regression_with_its_own_loss_metrics_and_error_runs(mlp):
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = TensorData(inputs, inputs[:, :3] ** 2)

    def mse(outputs, targets):
        return float(nn.functional.mse_loss(outputs, targets))

    regression = Task(
        data, data, loss=nn.functional.mse_loss, metrics={"mse": mse}, error=lambda o, t: min(1, mse(o, t))
    )
    plan = swamp.Plan(sparsity=0.5, particles=(2,), prune_fraction=(0.5,), barrier_threshold=1)
    record = list(swamp.cycles(mlp, regression, plan, Training(epochs=2, batch_size=16, lr=0.01, swa_fraction=0.5)))
    assert record[-1].metrics.test["mse"] < 3
