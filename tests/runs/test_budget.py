"""Budgets: what is trained for a number of dense trainings, and what it costs."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import swamp
from swamp.algorithms import METHODS, Plan
from swamp.recipes import configuration
from swamp.runs.budget import BUDGET_TOLERANCE, allot, dense_trainings, training_cost
from swamp.training import Training

PLAN = Plan(sparsity=0.9, prune_fraction=(0.4,))
TRAINING = Training(epochs=20)


@pytest.mark.slow
@settings(deadline=None)
@given(
    method=st.sampled_from([name for name, method in METHODS.items() if not method.cyclic]),
    budget=st.floats(2, 60),
    epochs=st.integers(10, 200),
    fraction=st.floats(0.1, 0.9),
)
def test_whatever_it_allots_costs_the_budget_and_reaches_the_sparsity(method, budget, epochs, fraction):
    plan = replace(PLAN, method=method, prune_fraction=(fraction,))
    training = Training(epochs=epochs)
    try:
        found = allot(plan, training, budget, ["method"])
    except swamp.SwampError as error:
        assume("cannot be divided" in str(error))
        # Only where an epoch of all particles is more than the tolerance.
        assert budget * epochs < 40 * len(plan.schedule()) * plan.most_particles
        return
    assert abs(found.cost / budget - 1) <= BUDGET_TOLERANCE
    assert found.cost == training_cost(found.plan, found.training) / epochs
    assert found.plan.method == method
    assert found.plan.schedule().densities[-1] == pytest.approx(0.1)
    assert len(found.plan.schedule()) <= max(2, len(plan.schedule()))


def test_more_budget_gives_more_cycles_and_longer_trainings():
    small, middle, large = (allot(PLAN, TRAINING, budget) for budget in (2, 12, 40))
    cycles = [len(one.plan.schedule()) for one in (small, middle, large)]
    assert cycles == sorted(cycles)
    assert cycles[0] == 2
    assert cycles[-1] == len(PLAN.schedule())
    assert small.training.epochs < middle.training.epochs < large.training.epochs
    assert [one.plan.method for one in (small, middle, large)] == ["lrr"] * 3


def test_more_budget_gives_a_method_of_several_particles_more_of_them():
    counts = [
        allot(replace(PLAN, method="swamp"), TRAINING, budget, ["method"]).plan.particles for budget in (4, 12, 40)
    ]
    assert counts == [(1,), (3,), (6,)]


def test_what_is_given_stays():
    found = allot(replace(PLAN, particles=(3,)), TRAINING, 24, ["particles", "method"])
    assert (found.plan.method, found.plan.particles) == ("swamp", (3,))
    found = allot(replace(PLAN, densities=(1.0, 0.5, 0.1)), TRAINING, 24, ["densities"])
    assert found.plan.schedule().densities == (1.0, 0.5, 0.1)
    found = allot(replace(PLAN, cycles=2), TRAINING, 24, ["cycles"])
    assert len(found.plan.schedule()) == 3


@pytest.mark.parametrize("recipe", ["mnist1d-mlp", "digits-mlp", "fashion-mnist-lenet", "movie-reviews-minilm"])
@pytest.mark.parametrize("budget", [4, 12, 40])
def test_the_recipes_have_a_use_for_every_budget(recipe, budget):
    config = configuration(recipe, "", "")
    assert abs(allot(config.plan, config.training, budget).cost / budget - 1) <= BUDGET_TOLERANCE


@pytest.mark.parametrize(("text", "expected"), [("12", 12), (" 2.5 ", 2.5), ("90s", 9), ("3min", 18), ("1h", 360)])
def test_a_budget_is_a_number_or_a_time(text, expected):
    assert dense_trainings(text, lambda: 10.0) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "x", "12 trainings", "-3", "1e3", "nan", "30 m"])
def test_other_budgets_are_refused(text):
    with pytest.raises(swamp.SwampError, match="a number of dense trainings, such as 12, or a time, such as 30min"):
        dense_trainings(text, lambda: 10.0)


@pytest.mark.parametrize(
    ("plan", "budget", "given", "message"),
    [
        (PLAN, 1.5, [], "too small: the dense cycle and one pruned cycle need 2"),
        (PLAN, float("nan"), [], "too small"),
        (PLAN, float("inf"), [], "too large: 1,000,000 is the most"),
        (replace(PLAN, particles=("auto",)), 12, ["particles"], 'particles="auto" costs what it finds'),
        (replace(PLAN, last_epochs=3), 12, ["last_epochs"], "a budget sets last_epochs"),
        (replace(PLAN, cycles=60), 2, ["cycles"], "cannot be divided into whole epochs"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(plan, budget, given, message):
    with pytest.raises(swamp.SwampError, match=message):
        allot(plan, TRAINING, budget, given)


def test_a_call_from_python_keeps_to_its_budget():
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 6, generator=generator)
    task = swamp.Task.of((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()))
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    how = swamp.Training(epochs=6, batch_size=32)
    sparse = swamp.prune(model, task, sparsity=0.8, training=how, budget=5, ticket_epochs=1)
    # Four batches an epoch.
    assert sparse.cycles[-1].total.steps == pytest.approx(5 * 6 * 4, rel=0.03)
    assert sparse.sparsity == pytest.approx(0.8, abs=0.01)
    assert {len(cycle.particles) for cycle in sparse.cycles} == {1}
    # Four is also the default: here it is asked for.
    asked = swamp.prune(model, task, sparsity=0.8, training=how, budget=9, particles=4, cycles=1, ticket_epochs=1)
    assert {len(cycle.particles) for cycle in asked.cycles} == {4}
