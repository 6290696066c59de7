"""Late branching: what a trunk costs, who trains it, and what becomes of one that diverges."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import swamp
from swamp.algorithms import METHODS, ensemble
from swamp.backends import Sequential, Vmapped
from swamp.backends.ticket import TRUNK, Trunk
from swamp.training import Seed
from swamp.training.average import mean
from swamp.training.loop import fit

from .conftest import PLAN, SHORT, TRAINING, Tickets, exact, fresh_mlp, run, same

LATE = [name for name, method in METHODS.items() if method.branch < 1]
ROOT = Seed(PLAN.seed)
STEPS = TRAINING.epochs * 6
"""Steps of a training: six batches an epoch."""


@pytest.mark.parametrize("method", LATE)
@settings(deadline=None)
@given(
    particles=st.integers(1, 12),
    epochs=st.integers(4, 200),
    branch=st.floats(0.05, 1),
    per_epoch=st.integers(1, 500),
)
def test_a_late_method_costs_as_much_as_its_particles_without_a_trunk(method, particles, epochs, branch, per_epoch):
    plan = replace(PLAN, method=method, particles=(particles,), branch=branch)
    for cycle in range(len(plan.schedule())):
        whole = plan.particle_epochs(cycle, epochs) * per_epoch
        assert 0 < plan.apart(cycle, epochs) <= 1
        # Whole steps: half a step for each particle, and at least one step.
        steps = whole + (particles - 1) * plan.steps_apart(cycle, epochs, whole)
        assert abs(steps - particles * epochs * per_epoch) <= particles
        assert plan.cycle_epochs(cycle, epochs) == pytest.approx(particles * epochs)


@pytest.mark.slow
@pytest.mark.parametrize("method", LATE)
def test_the_cost_in_the_record_is_that_of_the_control_within_one_percent(method, mlp, task):
    control = "lrr-long" if METHODS[method].start == "pruned" else "imp-long"
    late, long = run(mlp, task, method), run(mlp, task, control)
    for one, other in zip(late, long, strict=True):
        assert one.cost.steps == pytest.approx(other.cost.steps, rel=0.01)
        assert one.total.steps == pytest.approx(other.total.steps, rel=0.01)
        assert one.trunk > 0
        assert one.cost.steps - (6 if one.index == 0 else 0) == one.trunk + sum(p.steps for p in one.particles)


@pytest.mark.slow
def test_branch_shortens_any_method_of_several_particles_and_is_in_the_record(mlp, task):
    late, whole = (run(mlp, task, "swamp", branch=branch) for branch in (0.25, 1.0))
    assert [cycle.trunk for cycle in late] == [18, 18, 18, 18]
    assert [cycle.cost.steps for cycle in late[1:]] == [18 + 3 * 6] * 3
    assert all(same(a, b) for a, b in zip(whole, run(mlp, task, "swamp"), strict=True))
    assert late[1].to_json()["trunk"] == 18


@pytest.mark.slow
def test_the_steps_in_sequence_are_those_of_the_longest_particle(mlp, task):
    each = {
        "imp": STEPS,
        "swamp": STEPS,
        "imp-long": 3 * STEPS,
        "lrr-long": 3 * STEPS,
        # Three times 24 steps: a trunk of 47, and 3 particles of 8 (rounded).
        "swamp-late": replace(PLAN, method="swamp-late").particle_epochs(0, TRAINING.epochs) * 6,
        "imp-sam": 2 * STEPS,
        "rigl-swamp": STEPS,
    }
    for method, steps in each.items():
        first, *others = run(mlp, task, method)
        ticket = 0 if METHODS[method].independent else 6
        assert first.cost.sequential_steps == ticket + steps, method
        assert all(cycle.cost.sequential_steps == steps for cycle in others), method
        iterative = METHODS[method].masks == "iterative"
        total = ticket + steps * (1 + len(others) if iterative else 1)
        assert (others or [first])[-1].total.sequential_steps == total, method


def test_members_of_an_ensemble_train_at_the_same_time(task):
    plan = replace(PLAN, method="imp-ensemble", particles=(2,))
    record = list(ensemble(lambda seed: fresh_mlp(), task, plan, TRAINING))
    assert [cycle.cost.steps for cycle in record][1:] == [2 * STEPS] * 3
    assert record[-1].total.sequential_steps == 6 + 4 * STEPS


class KeepsTrunks(Tickets):
    def __init__(self):
        super().__init__()
        self.trunks: dict[int, Trunk] = {}
        self.broken = []

    def keep_trunk(self, cycle, trunk):
        self.trunks[cycle] = trunk

    def keep_divergence(self, broke):
        self.broken.append(broke)


def test_a_cycle_is_the_mean_of_particles_trained_by_hand_from_one_trunk(mlp, task):
    store = KeepsTrunks()
    plan = replace(PLAN, method="swamp", branch=0.5, densities=(1.0, 0.5))
    record = list(swamp.cycles(mlp, task, plan, TRAINING, backend=Sequential(mlp, task), store=store))
    training, mask, ticket = plan.training(TRAINING, 1), record[1].mask, store.tickets[0]

    def trained(index: str | int, **how):
        model = type(mlp)(*(type(layer)(*_sizes(layer)) for layer in mlp))
        model.load_state_dict({n: v * mask[n] if n in mask else v for n, v in ticket.weights.items()})
        seed = ROOT.at("cycle", 1, index) if index == "trunk" else ROOT.at("cycle", 1, "particle", index)
        return fit(model, task, training, seed, mask=mask, **how)

    ends = []
    trained("trunk", last=12, on_step=lambda step, total, snapshot: ends.append(snapshot()) if step == 12 else None)
    parts = [trained(i, first=12, resume=ends[0]).weights for i in range(3)]
    assert all(torch.equal(store.trunks[1].snapshot.weights[name], value) for name, value in ends[0].weights.items())
    assert all(torch.equal(record[1].weights[name], value) for name, value in mean(parts).items())


def test_a_stack_of_particles_starts_at_a_trunk_too(mlp, task):
    model, task = exact(mlp, task)
    plan = replace(PLAN, method="swamp-late", particles=(2,), densities=(1.0,), ticket_epochs=0)
    backends = Sequential(model, task), Vmapped(model, task, compiled=False)
    one, other = (next(swamp.cycles(model, task, plan, SHORT, backend=backend)) for backend in backends)
    assert one.trunk == other.trunk > 0
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=0, atol=1e-10)


def _sizes(layer) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, torch.nn.Linear) else ()


def test_a_trunk_that_diverges_is_trained_again_and_its_particles_at_its_rate(mlp, task, poisoned):
    store = KeepsTrunks()
    spoilt = poisoned(task, [ROOT.at("cycle", 1, "trunk")])
    plan = replace(PLAN, method="swamp", branch=0.5, densities=(1.0, 0.5))
    with pytest.warns(UserWarning, match="Cycle 1, the trunk, diverged") as told:
        record = list(swamp.cycles(mlp, spoilt, plan, TRAINING, backend=Sequential(mlp, spoilt), store=store))
    assert "particle" not in str(told[0].message).partition("diverged")[0]
    assert "trunk" not in str(told[0].message).partition("diverged")[2]
    assert [(one.cycle, one.particle, one.again) for one in store.broken] == [(1, TRUNK, 0.05)]
    # The particles go on at half the rate, and a particle's own divergence would halve it once more.
    usual = list(swamp.cycles(mlp, task, plan, TRAINING, backend=Sequential(mlp, task)))
    assert same(usual[0], record[0])
    assert not same(usual[1], record[1])
    assert record[1].cost.steps == 12 + 3 * 12 + 12


@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_without_a_restart_a_trunk_that_diverges_ends_the_run(policy, mlp, task, poisoned):
    spoilt = poisoned(task, [ROOT.at("cycle", 1, "trunk")])
    plan = replace(PLAN, method="swamp", branch=0.5, densities=(1.0, 0.5), on_divergence=policy)
    with pytest.raises(swamp.SwampError, match="cycle 1, the trunk: "):
        list(swamp.cycles(mlp, spoilt, plan, TRAINING))
