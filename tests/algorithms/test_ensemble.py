"""Ensembles of whole runs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import ensemble_predict
from swamp.algorithms.ensembles import ensemble, member_seed
from swamp.algorithms.store import Store
from swamp.backends import Sequential, Vmapped
from swamp.training import Seed, Training
from swamp.training.rng import isolated

from .conftest import exact

TRAINING = Training(epochs=3, batch_size=16, swa_fraction=0, swa=False)
PLAN = swamp.Plan(method="imp-ensemble", sparsity=0.75, prune_fraction=(0.5,), particles=(2,))


def initial(seed: int) -> nn.Module:
    with isolated(Seed(seed).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_the_first_member_is_the_plain_run_of_that_seed(task):
    joined = list(ensemble(initial, task, PLAN, TRAINING))
    plain = list(swamp.cycles(initial(0), task, replace(PLAN, method="imp"), TRAINING))
    for a, b in zip(joined, plain, strict=True):
        assert a.particles[0].metrics == b.metrics
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in b.weights)


def test_members_have_seeds_of_their_own():
    seeds = {member_seed(root, member) for root in range(3) for member in range(4)}
    assert len(seeds) == 12
    assert member_seed(5, 0) == 5


def test_the_ensemble_predicts_with_the_mean_of_its_members_probabilities(task):
    states = [initial(seed).state_dict() for seed in (0, 1, 2)]
    outputs, targets = ensemble_predict(states, initial(0), task, task.test)
    probabilities = torch.stack([initial(seed)(task.test.inputs).double().softmax(-1) for seed in (0, 1, 2)])
    torch.testing.assert_close(outputs.exp(), probabilities.mean(0))
    assert torch.equal(targets, task.test.targets)


def test_the_record_is_measured_on_the_joint_prediction_and_costs_the_sum(task):
    joined = list(ensemble(initial, task, PLAN, TRAINING))
    members = [
        list(swamp.cycles(initial(s), task, replace(PLAN, method="imp", seed=s), TRAINING))
        for s in (0, member_seed(0, 1))
    ]
    for index, cycle in enumerate(joined):
        states = [member[index].weights for member in members]
        outputs, targets = ensemble_predict(states, initial(0), task, task.test)
        assert cycle.metrics.test["accuracy"] == float((outputs.argmax(-1) == targets).double().mean())
        assert cycle.cost.steps == sum(member[index].cost.steps for member in members)
        assert len(cycle.particles) == 2


@pytest.mark.parametrize("validation", [True, False])
def test_an_ensemble_of_one_is_that_one(task, validation):
    task = task if validation else replace(task, validation=None)
    (joined,) = ensemble(initial, task, replace(PLAN, particles=(1,), sparsity=0.0), TRAINING)
    (plain,) = swamp.cycles(initial(0), task, replace(PLAN, method="imp", sparsity=0.0), TRAINING)
    assert joined.metrics.test == pytest.approx(plain.metrics.test)
    assert (joined.metrics.validation is None) is not validation


class Kept(Store):
    """Has what an interrupted run left of its members: particles by (member, cycle)."""

    def __init__(self, particles, index=0):
        self.particles, self.index = particles, index

    def member(self, index, of=1):
        return Kept(self.particles, index)

    def particle(self, cycle, index):
        return self.particles.get((self.index, cycle))


def test_a_member_whose_particle_was_kept_is_not_trained_again(task):
    class Remembers(Sequential):
        def train(self, request):
            self.done = [*getattr(self, "done", []), *super().train(request)]
            return self.done[-1:]

    plan, spy = replace(PLAN, particles=(3,), ticket_epochs=1), Remembers(initial(0), task)
    whole = list(ensemble(initial, task, plan, TRAINING, backend=spy))
    # Of each member in turn: its ticket, then its dense particle.
    second, resumed = spy.done[3], Remembers(initial(0), task)
    again = list(ensemble(initial, task, plan, TRAINING, backend=resumed, store=Kept({(1, 0): second})))
    assert len(resumed.done) == len(spy.done) - 1
    for one, other in zip(again, whole, strict=True):
        assert [p.metrics for p in one.particles] == [p.metrics for p in other.particles]
        assert one.metrics == other.metrics
        assert one.cost.steps == other.cost.steps


@pytest.mark.parametrize("backend", ["threads", "vmapped"])
def test_members_are_the_same_with_every_backend(backend, task):
    _, task = exact(initial(0), task)

    def made(seed: int) -> nn.Module:
        return initial(seed).double()

    if backend == "vmapped":
        backend = Vmapped(made(0), task, compiled=False)
    found = list(ensemble(made, task, PLAN, TRAINING, backend=backend))
    expected = list(ensemble(made, task, PLAN, TRAINING, backend="sequential"))
    for one, other in zip(found, expected, strict=True):
        assert one.mask == other.mask
        torch.testing.assert_close(dict(one.weights), dict(other.weights), rtol=0, atol=1e-10)
        assert one.metrics.test["accuracy"] == other.metrics.test["accuracy"]
        assert [p.steps for p in one.particles] == [p.steps for p in other.particles]
