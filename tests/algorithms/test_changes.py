"""What each change of a mask is decided on, and what it costs."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import swamp
from swamp.algorithms import dynamic
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.average import State, copied, mean
from swamp.training.mask_updates import Dynamic

from .conftest import PLAN, TRAINING, Spy, run

SEED = Seed(0).at("cycle", 0)
PARTICLES = [SEED.at("particle", i) for i in range(3)]


@dataclass
class Changes:
    """Dense gradients and regrowths, in the order in which they came."""

    gradients: list[tuple[State, Seed, int, State]] = field(default_factory=list)
    drop_and_grow: list[tuple[State, dict[str, Tensor], float]] = field(default_factory=list)


@pytest.fixture
def changes(monkeypatch) -> Changes:
    seen = Changes()

    def dense_gradients(model, task, training, seed, step):
        found = originals[0](model, task, training, seed, step)
        seen.gradients.append((copied(model.state_dict()), seed, step, found))
        return found

    def drop_and_grow(mask, weights, growth, fraction, structure):
        seen.drop_and_grow.append((weights, growth, fraction))
        return originals[1](mask, weights, growth, fraction, structure)

    originals = (dynamic.dense_gradients, dynamic.drop_and_grow)
    monkeypatch.setattr(dynamic, "dense_gradients", dense_gradients)
    monkeypatch.setattr(dynamic, "drop_and_grow", drop_and_grow)
    return seen


def equal(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_one_mask_for_all_changes_by_mean_weights_and_mean_gradients_of_the_batches_that_come_next(mlp, task, changes):
    run(mlp, task, "rigl-swamp")
    # A change of the trunk after 4 of 6 steps, one of three particles after 8; the tail begins at 12.
    assert [(seed, step) for _, seed, step, _ in changes.gradients] == [
        (SEED.at("trunk"), 4),
        *((seed, 8) for seed in PARTICLES),
    ]
    _, (weights, growth, _) = changes.drop_and_grow
    states, *_, found = zip(*changes.gradients[1:], strict=True)
    assert equal(weights, mean(states))
    assert equal(growth, {name: value.abs() for name, value in mean(found).items()})


def test_each_mask_of_its_own_changes_by_its_own_particle(mlp, task, changes):
    run(mlp, task, "rigl-swamp-own")
    assert [seed for _, seed, *_ in changes.gradients[1:]] == PARTICLES
    for (state, _, _, found), (weights, growth, _) in zip(changes.gradients, changes.drop_and_grow, strict=True):
        assert equal(weights, state)
        assert equal(growth, {name: value.abs() for name, value in found.items()})


def test_random_growth_is_another_for_each_mask_and_at_each_change(mlp, task, changes):
    run(mlp, task, "set-swamp-own", replace(TRAINING, swa_fraction=0.25))
    # Of the trunk after 4 steps, of three masks after 8, 12 and 16.
    drawn = [tuple(growth["0.weight"].flatten().tolist()) for _, growth, _ in changes.drop_and_grow]
    assert len(drawn) == len(set(drawn)) == 10


def test_before_each_learning_rate_cycle_the_full_drop_fraction_is_replaced(mlp, task, changes):
    run(mlp, task, "sup-tickets", replace(TRAINING, swa_cycles=2))
    shares = [PLAN.dynamic.fraction_at(4, 12), PLAN.dynamic.fraction_at(8, 12), PLAN.dynamic.drop_fraction]
    assert [share for *_, share in changes.drop_and_grow] == shares
    # One cycle ends in one sample, which is no average.
    with pytest.raises(swamp.SwampError, match="SWA would average 1 sample"):
        run(mlp, task, "sup-tickets", replace(TRAINING, swa_cycles=1))


def test_a_step_of_the_trunk_counts_once_and_a_dense_gradient_for_each_particle(mlp, task):
    options = {"allocation": "uniform"}
    for kind in ("", "-own"):
        random, gradient = (run(mlp, task, f"{name}-swamp{kind}", **options)[0].cost for name in ("set", "rigl"))
        assert random.steps == gradient.steps == 6 + 3 * 18
        assert random.samples == 16 * random.steps
        assert random.flops == pytest.approx(random.steps * 16 * 6 * 29)
        # One of the trunk, one of each particle: two sparse passes and a dense one, each on a batch of 16.
        assert gradient.flops == pytest.approx(random.flops + (1 + 3) * 16 * (2 * 2 * 29 + 2 * 144))


def test_the_mean_of_a_cyclic_tail_is_of_the_ends_of_all_its_cycles(mlp, task, monkeypatch):
    taken, original = [], dynamic.masked_snapshot
    spy = Spy(mlp, task)
    monkeypatch.setattr(
        dynamic, "masked_snapshot", lambda snapshot, *more: taken.append(snapshot) or original(snapshot, *more)
    )
    plan = replace(PLAN, method="sup-tickets")
    (cycle,) = swamp.cycles(mlp, task, plan, replace(TRAINING, swa_cycles=2), backend=spy)
    ends = [taken[-1].weights, spy.last[0].weights]
    assert taken[-1].step == 18
    for name, alive in cycle.mask.items():
        expected = mean(ends)[name].abs().flatten()
        kept = expected.argsort(descending=True, stable=True)[: int(alive.sum())]
        assert alive.flatten()[kept].all(), name
    assert torch.allclose(cycle.weights["2.bias"], mean(ends)["2.bias"])


def test_frozen_parameters_do_not_shift_which_momentum_is_masked(task):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    seen: list[tuple[Mask, State]] = []

    class Looking(Spy):
        def train(self, request):
            snapshot = request.progress.load_snapshot(0)
            if snapshot:
                seen.append((request.mask, snapshot.optimizer))
            return super().train(request)

    plan = replace(PLAN, method="set", exclude=("0.weight",), dynamic=Dynamic(update_interval=4, drop_fraction=0.9))
    list(swamp.cycles(model, task, plan, TRAINING, backend=Looking(model, task)))
    assert seen
    for mask, moments in seen:
        assert not moments["0/momentum_buffer"][~mask["1.weight"]].any()
        assert not moments["2/momentum_buffer"][~mask["3.weight"]].any()


def test_gradual_pruning_keeps_the_floor_and_the_allocation_of_the_plan(mlp, task):
    mlp[2].weight.data *= 1e-3
    still = replace(TRAINING, lr=1e-9)
    assert run(mlp, task, "gmp", still, min_per_layer=9)[0].mask.nnz_by_layer == {"0.weight": 20, "2.weight": 9}
    assert run(mlp, task, "gmp", still, allocation="uniform")[0].mask.nnz_by_layer == {"0.weight": 19, "2.weight": 10}
    with pytest.warns(UserWarning, match=r"no weight of 2\.weight is left"):
        (emptied,) = run(mlp, task, "gmp", still, min_per_layer=0)
    assert "2.weight" in emptied.warnings[0]
    with pytest.warns(UserWarning, match=r"2\.weight would lose all weights") as caught:
        (kept,) = run(mlp, task, "gmp", still)
    assert [str(one.message) for one in caught] == [*kept.warnings[:1]], "once, and it is recorded"
    assert kept.mask.nnz_by_layer == {"0.weight": 26, "2.weight": 3}


def test_a_snapshot_is_masked_by_the_new_mask(mlp, task, monkeypatch):
    cut, original, spy = [], dynamic.masked_snapshot, Spy(mlp, task)
    monkeypatch.setattr(
        dynamic, "masked_snapshot", lambda snapshot, mask, *more: cut.append(mask) or original(snapshot, mask, *more)
    )
    next(swamp.cycles(mlp, task, replace(PLAN, method="rigl-swamp-own"), TRAINING, backend=spy))
    own = [mask for _, mask, *_ in spy.calls[-3:]]
    assert cut[-3:] == own
    assert len({mask.digest for mask in own}) == 3
