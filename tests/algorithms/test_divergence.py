"""What a run does with a particle that broke: it says so, and goes on to what could have been had without the fault."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import swamp
from swamp.algorithms.ensembles import member_seed
from swamp.algorithms.store import Store
from swamp.backends import CustomTrainer, Sequential, Threads, Ticket, Vmapped
from swamp.training import Seed, TensorData, Training
from swamp.training.average import mean
from swamp.training.loop import fit

from .conftest import PLAN, TRAINING, Tickets, fresh_mlp, run, same

ROOT = Seed(PLAN.seed)
WHO = ROOT.at("cycle", 1, "particle", 1)
BACKENDS = {"sequential": Sequential, "threads": Threads, "vmapped": partial(Vmapped, compiled=False)}


class Kept(Tickets):
    """Remembers what broke too."""

    def __init__(self):
        super().__init__()
        self.broken = []

    def keep_divergence(self, broke):
        self.broken.append(broke)


def whole(model, task, **options):
    """Cycles, and what was kept of them."""
    store, plan = Kept(), replace(PLAN, **{"method": "swamp", "densities": (1.0, 0.5), **options})
    with pytest.warns(UserWarning, match="diverged") as told:
        record = list(swamp.cycles(model, task, plan, TRAINING, backend=options.pop("backend", None), store=store))
    return record, store, [str(one.message) for one in told]


def alone(model, task, ticket, mask, training, seed):
    """The reference: one particle, trained by itself."""
    own = copy.deepcopy(model)
    own.load_state_dict({n: v * mask[n] if n in mask else v for n, v in ticket.weights.items()})
    return fit(own, task, training, seed, mask=mask).weights


@pytest.mark.slow_cases("vmapped")
@pytest.mark.parametrize("backend", BACKENDS)
def test_restart_is_the_training_from_the_ticket_with_half_the_rate_and_noise_of_its_own(backend, mlp, task, poisoned):
    plan = replace(PLAN, method="swamp", densities=(1.0, 0.5))
    store = Kept()
    spoilt = poisoned(task, [WHO, WHO.at("restart", 1)])
    with pytest.warns(UserWarning, match="Cycle 1, particle 1, diverged") as told:
        record = list(swamp.cycles(mlp, spoilt, plan, TRAINING, backend=BACKENDS[backend](mlp, spoilt), store=store))
    training = plan.spec.training(TRAINING)
    seeds = {i: ROOT.at("cycle", 1, "particle", i) for i in range(3)}
    rates = {0: 0.1, 1: 0.1 / 4, 2: 0.1}
    seeds[1] = WHO.at("restart", 2)
    parts = [
        alone(mlp, task, store.tickets[0], record[1].mask, replace(training, lr=rates[i]), seeds[i]) for i in range(3)
    ]
    expected = mean(parts)
    bits = backend != "vmapped"
    assert all(torch.allclose(record[1].weights[n], v, rtol=0, atol=0 if bits else 1e-6) for n, v in expected.items())
    assert [(b.cycle, b.particle, b.lr, b.again, b.steps) for b in record[1].divergences] == [
        (1, 1, 0.1, 0.05, 12),
        (1, 1, 0.05, 0.025, 12),
    ]
    assert len(told) == 2
    assert "It is trained again with learning rate 0.05" in str(told[0].message)
    assert record[0].divergences == ()
    assert list(record[1].divergences) == store.broken
    # Paid for: three trainings of 24 steps, and two that ended after 12.
    assert record[1].cost.steps == 3 * 24 + 2 * 12
    undisturbed = run(mlp, task, "swamp", densities=(1.0, 0.5))
    assert record[1].cost.flops > undisturbed[1].cost.flops
    assert record[0].mask == undisturbed[0].mask
    if bits:
        assert same(record[0], undisturbed[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_drop_is_the_mean_of_the_others(backend, mlp, task, poisoned):
    plan = replace(PLAN, method="swamp", densities=(1.0, 0.5), on_divergence="drop")
    store, spoilt = Kept(), poisoned(task, [WHO])
    with pytest.warns(UserWarning, match=r"particle 1, diverged: .* It is left out of the mean"):
        record = list(swamp.cycles(mlp, spoilt, plan, TRAINING, backend=BACKENDS[backend](mlp, spoilt), store=store))
    training, mask = plan.spec.training(TRAINING), record[1].mask
    parts = [alone(mlp, task, store.tickets[0], mask, training, ROOT.at("cycle", 1, "particle", i)) for i in (0, 2)]
    atol = 1e-6 if backend == "vmapped" else 0
    assert all(torch.allclose(record[1].weights[n], v, rtol=0, atol=atol) for n, v in mean(parts).items())
    assert [p.index for p in record[1].particles] == [0, 2]
    assert [p["index"] for p in record[1].to_json()["particles"]] == [0, 2]
    assert [(b.particle, b.again) for b in record[1].divergences] == [(1, None)]
    assert record[1].barrier is not None


def test_stop_ends_the_run_at_once_and_keeps_nothing_of_it(mlp, task, poisoned):
    store = Kept()
    plan = replace(PLAN, method="swamp", on_divergence="stop")
    with pytest.raises(swamp.Diverged, match=r"cycle 1, particle 1: .* What was finished before is kept"):
        list(swamp.cycles(mlp, poisoned(task, [WHO]), plan, TRAINING, store=store))
    assert store.broken == []


def test_a_particle_that_diverges_at_every_rate_ends_the_run_with_the_number_of_attempts(mlp, task, poisoned):
    spoilt = poisoned(task, [WHO, *(WHO.at("restart", times) for times in range(1, 9))])
    plan = replace(PLAN, method="swamp")
    with (
        pytest.warns(UserWarning, match="diverged"),
        pytest.raises(swamp.Diverged, match=r"cycle 1, particle 1: .* It diverged 4 times"),
    ):
        list(swamp.cycles(mlp, spoilt, plan, TRAINING))


def test_what_breaks_in_all_particles_cannot_be_left_out(mlp, task, poisoned):
    everyone = [ROOT.at("cycle", 1, "particle", i) for i in range(3)]
    plan = replace(PLAN, method="swamp", on_divergence="drop")
    with pytest.warns(UserWarning, match="diverged"), pytest.raises(swamp.Diverged, match="No particle is left"):
        list(swamp.cycles(mlp, poisoned(task, everyone), plan, TRAINING))
    first = poisoned(task, [ROOT.at("cycle", 1, "particle", 0)])
    with pytest.raises(swamp.Diverged, match=r"cycle 1, particle 0: .* No particle is left"):
        list(swamp.cycles(mlp, first, replace(plan, method="imp"), TRAINING))


def test_a_diverged_ticket_is_trained_again_and_the_first_record_has_it(mlp, task, poisoned):
    seed = ROOT.at("ticket")
    spoilt = poisoned(task, [seed], epoch=0)
    record, store, told = whole(mlp, spoilt)
    training = replace(TRAINING.plain(), lr=0.05)
    expected = fit(copy.deepcopy(mlp), task, training, seed.at("restart", 1), last=6).weights
    assert Ticket(expected, 6).id == store.tickets[0].id
    assert [(b.cycle, b.again) for b in record[0].divergences] == [(None, 0.05)]
    assert record[1].divergences == ()
    assert record[0].cost.steps == 6 + 6 + 3 * 24
    assert told[0].startswith("The ticket diverged: the training loss became nan")


@pytest.mark.parametrize("method", ["rigl-swamp", "set", "gmp"])
def test_where_masks_change_all_start_over(method, mlp, task, poisoned):
    """Its weights had a share in the masks of the others."""
    options = {"densities": (0.5,), "sparsity": 0.5}
    seed = ROOT.at("cycle", 0)
    many = method == "rigl-swamp"
    name = ("particle", 1) if many else ("particle", 0)
    spoilt = poisoned(task, [seed.at(*name)], epoch=2)
    plan = replace(PLAN, method=method, **options)
    with pytest.warns(UserWarning, match="trained again with learning rate 0.05"):
        (record,) = swamp.cycles(mlp, spoilt, plan, TRAINING, backend="sequential")
    # The same as a run whose seed and rate are those of the second attempt.
    from swamp.algorithms import dynamic

    before = dynamic.restart_seed
    dynamic.restart_seed = lambda seed, times: before(seed, 1)
    try:
        (expected,) = swamp.cycles(mlp, task, plan, replace(TRAINING, lr=0.05), backend="sequential")
    finally:
        dynamic.restart_seed = before
    assert same(record, expected)
    assert [(b.particle, b.lr, b.again) for b in record.divergences] == [(name[1], 0.1, 0.05)]
    assert record.cost.steps > expected.cost.steps


def test_with_dynamic_masks_the_others_restart_without_a_diverged_particle(mlp, task, poisoned):
    plan = replace(PLAN, method="rigl-swamp", densities=(0.5,), on_divergence="drop")
    spoilt = poisoned(task, [ROOT.at("cycle", 0, "particle", 1)], epoch=2)
    with pytest.warns(UserWarning, match="left out of the mean"):
        (record,) = swamp.cycles(mlp, spoilt, plan, TRAINING, backend="sequential")
    assert [p.index for p in record.particles] == [0, 2]
    trunk = poisoned(task, [ROOT.at("cycle", 0, "trunk")], epoch=0)
    with pytest.raises(swamp.Diverged, match="No particle is left"):
        list(swamp.cycles(mlp, trunk, plan, TRAINING, backend="sequential"))


@pytest.mark.parametrize(("method", "policy"), [("rigl-swamp", "restart"), ("set-swamp", "drop")])
@pytest.mark.parametrize("who", [("trunk",), ("particle", 0), ("particle", 2)])
def test_with_dynamic_masks_the_cost_has_all_steps_of_all_attempts(mlp, task, poisoned, method, policy, who):
    # Without the trunk nothing could go on: it is always trained again.
    policy = "restart" if who == ("trunk",) else policy
    plan = replace(PLAN, method=method, densities=(0.5,), on_divergence=policy)
    spoilt = poisoned(task, [ROOT.at("cycle", 0, *who)], epoch=0 if who == ("trunk",) else 2)
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        with pytest.warns(UserWarning, match="diverged"):
            (record,) = swamp.cycles(mlp, spoilt, plan, TRAINING, backend="sequential")
    finally:
        hook.remove()
    assert record.cost.steps == len(steps)


def test_gradients_that_grow_weights_and_are_not_finite_make_no_mask(mlp, task, loses_its_gradient, poisoned):
    """They were ranked all the same: NaN somewhere, infinity before weights that were to stay."""
    plan = replace(PLAN, method="rigl", densities=(0.5,))
    seed = ROOT.at("cycle", 0, "particle", 0)
    # The batch after the first change, at step 4, which no training of that step reaches: it is the gradient's alone
    # only for one attempt, so that the second one is whole.
    spoilt = replace(poisoned(task, [seed], epoch=0, step=4), forward=loses_its_gradient)
    with pytest.warns(UserWarning, match="the dense gradients diverged at step 4"):
        (record,) = swamp.cycles(mlp, spoilt, plan, TRAINING, backend="sequential")
    assert record.divergences[0].again == 0.05


def test_a_member_of_an_ensemble_is_named_by_its_number(task, poisoned):
    def initial(seed):
        from swamp.training.rng import isolated

        with isolated(Seed(seed).at("init")):
            return fresh_mlp()

    second = Seed(member_seed(0, 1)).at("cycle", 1, "particle", 0)
    plan = replace(PLAN, method="imp-ensemble", particles=(2,), densities=(1.0, 0.5))
    with pytest.warns(UserWarning, match="diverged"):
        record = list(swamp.algorithms.ensemble(initial, poisoned(task, [second]), plan, TRAINING))
    assert [(b.particle, b.cycle) for b in record[1].divergences] == [(1, 1)]


def test_a_trainer_of_the_users_own_is_asked_again_with_half_the_rate(mlp, task):
    asked = []

    def train(work):
        asked.append((work.name, work.rate(0)))
        with torch.no_grad():
            work.model[0].bias.uniform_()
        for _ in range(work.steps):
            work.stepped()
        return float("nan") if work.name == "cycle-1-particle-1" else 0.5

    plan = replace(PLAN, method="swamp", densities=(1.0, 0.5))
    with pytest.warns(UserWarning, match="trained again"):
        record = list(swamp.cycles(mlp, task, plan, TRAINING, backend=CustomTrainer(mlp, task, train)))
    assert asked[-1] == ("cycle-1-particle-1-restart-1", 0.05)
    assert [p.index for p in record[1].particles] == [0, 1, 2]


def test_a_record_that_is_written_and_read_keeps_its_divergences(mlp, task, poisoned):
    record, _, _ = whole(mlp, poisoned(task, [WHO]))
    again = swamp.algorithms.Cycle.from_json(record[1].to_json(), record[1].mask, record[1].weights)
    assert again.divergences == record[1].divergences
    assert again.particles == record[1].particles
    incomplete = record[0].to_json()
    del incomplete["divergences"]
    with pytest.raises(swamp.SwampError, match=r"the record of a cycle is damaged \(KeyError: 'divergences'\)"):
        swamp.algorithms.Cycle.from_json(incomplete, record[0].mask, {})


def test_bfloat16_is_named_where_it_may_be_the_cause(mlp, task, poisoned):
    plan = replace(PLAN, method="imp", on_divergence="stop")
    training = replace(TRAINING, precision="bfloat16")
    spoilt = poisoned(task, [ROOT.at("cycle", 0, "particle", 0)])
    with pytest.raises(swamp.Diverged, match=r"trained in bfloat16.*try precision=\"float32\""):
        list(swamp.cycles(mlp, spoilt, plan, training))


def test_half_precision_weights_that_overflow_are_named_with_what_to_do(task):
    model = fresh_mlp().to(torch.float16)
    data = TensorData(task.train.inputs.half() * 1000, task.train.targets)
    plan = replace(PLAN, method="imp", on_divergence="stop", ticket_epochs=0)
    half = replace(task, train=data, test=data, validation=None)
    with pytest.raises(swamp.Diverged, match=r"The weights are float16, whose largest value is 6.55e\+04"):
        list(swamp.cycles(model, half, plan, Training(epochs=4, batch_size=16, lr=1000.0, swa_fraction=0.5)))


def test_a_store_that_keeps_nothing_has_no_divergences():
    assert Store().divergences() == ()
