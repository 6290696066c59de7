"""Several seeds of one method, cycle by cycle: all of their particles are trained at once."""

from dataclasses import replace

import pytest
import torch

import swamp
from swamp.errors import SwampError
from swamp.methods import NoStore, cycles_in_step
from swamp.particles import Stacked

from .conftest import PLAN, TRAINING, AtOnce, exact, fresh_mlp, same, swamp_initial

SEEDS = (0, 1, 2)


def models():
    with swamp_initial():
        return [fresh_mlp() for _ in SEEDS]


def plans(method: str = "swamp", **options) -> list[swamp.Plan]:
    return [replace(PLAN, method=method, seed=seed, **options) for seed in SEEDS]


@pytest.mark.parametrize(
    ("method", "options"),
    # With allr the learning rate hangs on what was pruned, so that these are not alike.
    [(method, {}) for method in ("swamp", "imp", "lrr", "rigl", "swamp-greedy", "random")]
    + [("lrr", {"retrain": "allr", "retrain_epochs": 1})],
)
def test_each_seed_is_the_run_that_it_is_alone(method, options, task):
    given = plans(method, **options)
    found = [*zip(*cycles_in_step(models(), task, given, TRAINING, backend="sequential"), strict=True)]
    for run, model, plan in zip(found, models(), given, strict=True):
        expected = [*swamp.cycles(model, task, plan, TRAINING, backend="sequential")]
        assert all(same(one, other) for one, other in zip(run, expected, strict=True))
        assert [one.total.steps for one in run] == [one.total.steps for one in expected]
        assert [one.measured for one in run] == [one.measured for one in expected]
    assert len({run[-1].mask.digest for run in found}) == len(SEEDS)


def test_all_particles_of_all_seeds_are_trained_at_once(task):
    backend = AtOnce(models()[0], task)
    rounds = [*cycles_in_step(models(), task, plans(), TRAINING, backend=backend)]
    assert backend.calls == [([1], 1)] * 3 + [([3, 3, 3], 9)] * len(rounds)


def test_as_one_stack_they_are_what_they_are_alone(task):
    _, task = exact(models()[0], task)
    given = [model.double() for model in models()]
    stack = Stacked(given[0], task, compiled=False)
    found = [*cycles_in_step(given, task, plans(), TRAINING, backend=stack)]
    expected = [*cycles_in_step(given, task, plans(), TRAINING, backend="sequential")]
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.mask == other.mask
            torch.testing.assert_close(dict(one.weights), dict(other.weights), rtol=0, atol=1e-10)


def test_a_seed_that_breaks_is_trained_again_and_the_others_are_what_they_were(task, poisoned):
    from swamp.training import Seed

    broken = poisoned(task, [Seed(1).at("cycle", 1, "particle", 2)])
    with pytest.warns(UserWarning, match="broke"):
        found = [*zip(*cycles_in_step(models(), broken, plans(), TRAINING, backend="sequential"), strict=True)]
    whole = [*zip(*cycles_in_step(models(), task, plans(), TRAINING, backend="sequential"), strict=True)]
    assert [[(b.cycle, b.particle) for c in run for b in c.broken] for run in found] == [[], [(1, 2)], []]
    for number in (0, 2):
        assert all(same(one, other) for one, other in zip(found[number], whole[number], strict=True))


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        (plans()[:2], {}, "got 3, 2 and 2"),
        (plans(), {"stores": [NoStore()]}, "got 3, 3 and 1"),
        ([*plans()[:2], replace(plans()[2], sparsity=0.5)], {}, "differ in their seeds only"),
        (plans("lottery-pools"), {}, "one after the other"),
        (plans("imp-ensemble"), {}, "swamp.methods.ensemble"),
    ],
)
def test_what_cannot_go_in_step_is_refused_before_any_training(given, options, text, task):
    with pytest.raises(SwampError, match=text):
        cycles_in_step(models(), task, given, TRAINING, **options)
