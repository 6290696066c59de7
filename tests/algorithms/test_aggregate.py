"""Soups and pools: chosen on validation data, against the definition written out."""

import math
from dataclasses import replace

import pytest
import torch

import swamp
from swamp.algorithms.aggregate import combined
from swamp.algorithms.evaluator import Evaluator
from swamp.algorithms.registry import method_named
from swamp.algorithms.store import Store
from swamp.backends import Particle, Progress
from swamp.training import TensorData, evaluate, with_reestimated_batchnorm
from swamp.training.average import interpolate, mean

from .conftest import PLAN, TRAINING, run, same


class Kept(Store):
    """Remembers what each of the runs inside a run kept."""

    def __init__(self):
        self.particles, self.records = {}, []

    def progress(self, cycle, particles, *, keep=True, trunk=0):
        outer = self

        class Noting(Progress):
            def on_finished(self, particle):
                outer.particles[cycle, particle.index] = particle

        return Noting()

    def keep_cycle(self, cycle):
        self.records.append(cycle)


def error_of(model, task, state, *, refresh_bn=True) -> float:
    model.load_state_dict(dict(state))
    if refresh_bn:
        model = with_reestimated_batchnorm(model, task.train)
    return 1 - evaluate(model, task, task.validation)["accuracy"]


@pytest.mark.slow_cases("swamp")
@pytest.mark.parametrize("method", ["swamp-greedy", "sms-greedy", "soup-greedy"])
def test_a_greedy_soup_takes_what_does_no_harm_on_validation_data_best_first(normed, task, method):
    store = Kept()
    plan = replace(PLAN, method=method, particles=(4,))
    for cycle in swamp.cycles(normed, task, plan, TRAINING, store=store):
        found = [store.particles[cycle.index, i] for i in range(4)]
        alone = [error_of(normed, task, p.weights, refresh_bn=p.averaged > 1) for p in found]
        order = sorted(range(4), key=lambda i: alone[i])
        taken, lowest = [order[0]], alone[order[0]]
        for i in order[1:]:
            trial = error_of(normed, task, mean(found[k].weights for k in [*taken, i]))
            if trial <= lowest:
                taken, lowest = [*taken, i], trial
        soup = mean(found[i].weights for i in taken)
        names = [name for name in soup if "running" not in name and "num_batches" not in name]
        assert all(torch.equal(cycle.weights[name], soup[name]) for name in names)
        assert cycle.barrier is None
        # Each average is measured, and recorded, with statistics of its own.
        assert [1 - p.metrics.validation["accuracy"] for p in cycle.particles] == pytest.approx(alone)
        found_error = alone[order[0]] if len(taken) == 1 else error_of(normed, task, soup)
        assert 1 - cycle.metrics.validation["accuracy"] == pytest.approx(found_error)
        assert (cycle.metrics_before_bn_update is None) == (len(taken) == 1 and found[order[0]].averaged < 2)


def test_a_soup_of_one_is_the_best_particle_with_its_own_statistics(mlp, task):
    torch.manual_seed(0)
    good = {name: value.clone() for name, value in mlp.state_dict().items()}
    bad = {name: torch.randn_like(value) * 9 for name, value in good.items()}
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(mlp(task.train.inputs), task.train.targets).backward()
        optimizer.step()
    good = {name: value.clone() for name, value in mlp.state_dict().items()}
    particles = [Particle(state, i, "t", "m", 0, 1, (0.0,), 0.0) for i, state in enumerate((bad, good))]
    weights, averaged = combined(particles, method_named("swamp-greedy"), Evaluator(mlp, task, 100))
    assert weights is particles[1].weights
    assert not averaged


@pytest.mark.parametrize("method", ["swamp-greedy", "imp-best"])
@pytest.mark.parametrize("errors", [(math.nan, 0.3, 0.1), (0.3, math.nan, 0.1), (0.1, 0.3, math.nan)])
def test_a_particle_whose_error_is_nan_is_never_the_best(mlp, task, monkeypatch, method, errors):
    states = [{name: value + i for name, value in mlp.state_dict().items()} for i in range(3)]
    particles = [Particle(state, i, "t", "m", 0, 1, (0.0,), 0.0) for i, state in enumerate(states)]
    evaluator = Evaluator(mlp, task, 100)
    found = iter([list(errors), [math.nan], [math.nan]])
    monkeypatch.setattr(evaluator, "map", lambda *_: next(found))
    assert combined(particles, method_named(method), evaluator)[0] is particles[errors.index(0.1)].weights


@pytest.mark.parametrize("method", ["swamp", "swamp-greedy", "imp-best", "rigl-swamp"])
def test_every_combination_refuses_a_particle_that_is_not_finite(mlp, task, method):
    sound = mlp.state_dict()
    broken = {name: torch.full_like(value, torch.nan) for name, value in sound.items()}
    particles = [Particle(state, i, "t", "m", 0, 1, (0.0,), 0.0) for i, state in enumerate((sound, broken))]
    with pytest.raises(swamp.SwampError, match="particle 1 has NaN or infinity"):
        combined(particles, method_named(method), Evaluator(mlp, task, 100))


@pytest.mark.slow
def test_greedy_soups_and_pools_do_not_look_at_the_test_data(normed, task):
    poisoned = replace(task, test=TensorData(task.test.inputs, 2 - task.test.targets))
    for method in ("swamp-greedy", "lottery-pools"):
        a, b = run(normed, task, method), run(normed, poisoned, method)
        assert all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ["swamp-greedy", "sms-greedy", "soup-greedy", "lottery-pools"])
def test_methods_that_choose_on_validation_data_are_refused_without_any(mlp, task, method):
    with pytest.raises(swamp.SwampError, match=f"{method} chooses on validation data, and the task has none"):
        run(mlp, replace(task, validation=None), method)


def test_pools_never_do_worse_on_validation_data_and_keep_every_layer_s_density(normed, task):
    imp, pools = run(normed, task, "imp"), run(normed, task, "lottery-pools")
    assert len(pools) == len(imp)
    changed = 0
    for before, after in zip(imp, pools, strict=True):
        assert after.mask.nnz_by_layer == before.mask.nnz_by_layer
        after.mask.require_zeros(after.weights)
        changed += not same(before, after)
        if not same(before, after):
            error = error_of(normed, task, before.weights)
            assert 1 - after.metrics.validation["accuracy"] < error
            # Its model is made of later ones too, and their cost is its own.
            assert after.total.steps >= before.total.steps
        else:
            assert after.metrics == before.metrics
    assert changed


def test_pools_interpolate_as_the_definition_says(mlp, task):
    imp, pools = run(mlp, task, "imp"), run(mlp, task, "lottery-pools")

    def pruned(state, like):
        out = {name: value.clone() for name, value in state.items()}
        for name, alive in like.items():
            size = out[name].abs().flatten()
            keep = size.argsort(descending=True, stable=True)[: int(alive.sum())]
            bits = torch.zeros_like(size).scatter_(0, keep, 1.0)
            out[name] *= bits.view_as(out[name])
        return out

    shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    for index, after in enumerate(pools):
        best = dict(imp[index].weights)
        lowest = error_of(mlp, task, best)
        for distance in (1, 2):
            for other in (index - distance, index + distance):
                if not 0 <= other < len(imp):
                    continue
                tried = [pruned(interpolate(best, imp[other].weights, a), imp[index].mask) for a in shares]
                errors = [error_of(mlp, task, state) for state in tried]
                if min(errors) < lowest:
                    lowest, best = min(errors), tried[errors.index(min(errors))]
        assert all(torch.equal(after.weights[name], best[name]) for name in best)
