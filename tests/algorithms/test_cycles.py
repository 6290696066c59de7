"""What every cycle promises, and where the methods differ."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS, ensemble
from swamp.backends import Particle, Progress, Sequential
from swamp.training import TensorData, Training, evaluate
from swamp.training.average import mean

from .conftest import COVERING, PLAN, SHORT, TRAINING, Spy, Tickets, run, same, spied, swamp_initial


@pytest.mark.fast_cases(12)
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.ensemble])
def test_every_method_gives_exact_counts_and_exact_zeros_and_iterative_ones_nested_masks(normed, task, method):
    record = run(normed, task, method, SHORT, cycles=2, min_per_layer=2)
    assert [cycle.mask.nnz for cycle in record] == [round(0.2 ** (k / 2) * 144) for k in range(3)]
    for before, after in pairwise(record):
        assert after.mask.issubset(before.mask) or METHODS[method].masks != "iterative" or METHODS[method].pools
    for cycle in record:
        for name, alive in cycle.mask.items():
            assert not cycle.weights[name][~alive].any()


def test_recorded_metrics_are_those_of_the_stored_weights(normed, task):
    for cycle in run(normed, task, "swamp"):
        normed.load_state_dict(cycle.weights)
        assert evaluate(normed, task, task.test) == cycle.metrics.test
        assert evaluate(normed, task, task.validation) == cycle.metrics.validation


@pytest.mark.slow
def test_metrics_are_recorded_before_and_after_the_batchnorm_update(mlp, normed, task):
    record = run(normed, task, "swamp")
    assert all(cycle.metrics_before_bn_update.keys() == cycle.metrics.test.keys() for cycle in record)
    assert any(cycle.metrics_before_bn_update != cycle.metrics.test for cycle in record)
    # One particle that is a mean over its tail is an average too.
    assert all(cycle.metrics_before_bn_update is not None for cycle in run(normed, task, "imp-swa"))
    # Nothing was averaged, or there is nothing to go stale.
    assert {cycle.metrics_before_bn_update for cycle in run(normed, task, "imp")} == {None}
    assert {cycle.metrics_before_bn_update for cycle in run(mlp, task, "swamp")} == {None}


def normed_twice() -> nn.Module:
    """A network with the statistics of BatchNorm and of InstanceNorm: both come from data."""
    with swamp_initial():
        return nn.Sequential(
            nn.Unflatten(1, (1, 6)),
            nn.Conv1d(1, 8, 3),
            nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.BatchNorm1d(8),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(32, 3),
        )


@pytest.mark.fast_cases(6)
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", COVERING)
def test_the_test_data_decides_nothing(task, method):
    # The inputs differ too, by more than normalisation could hide: statistics of them would change every weight.
    other = replace(task, test=TensorData(100 * task.test.inputs + 7, 2 - task.test.targets))
    model = normed_twice()
    plan = replace(PLAN, method=method, min_per_layer=1, particles=(2,), cycles=1)

    def record(task) -> list[swamp.Cycle]:
        if METHODS[method].ensemble:
            return list(ensemble(lambda seed: model, task, plan, SHORT))
        return list(swamp.cycles(model, task, plan, SHORT))

    for a, b in zip(record(task), record(other), strict=True):
        assert same(a, b)
        assert (a.metrics.train, a.metrics.validation) == (b.metrics.train, b.metrics.validation)
        assert [(p.metrics.train, p.metrics.validation, p.loss) for p in a.particles] == [
            (p.metrics.train, p.metrics.validation, p.loss) for p in b.particles
        ]
        assert (a.barrier, a.warnings, a.cost.flops) == (b.barrier, b.warnings, b.cost.flops)
        assert a.metrics.test != b.metrics.test


def test_the_best_particle_is_the_one_with_least_validation_error(normed, task):
    for cycle in run(normed, task, "imp-best"):
        scores = [particle.metrics.validation["accuracy"] for particle in cycle.particles]
        assert cycle.metrics.validation["accuracy"] == max(scores)
        assert cycle.barrier is None


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.ensemble and not m.independent])
def test_every_method_with_a_dense_cycle_starts_from_the_same_ticket(mlp, task, method):
    store, reference = Tickets(), Tickets()
    list(swamp.cycles(mlp, task, replace(PLAN, method=method, sparsity=0.0), TRAINING, store=store))
    list(swamp.cycles(mlp, task, replace(PLAN, method="imp", sparsity=0.0), TRAINING, store=reference))
    assert [ticket.id for ticket in store.tickets] == [ticket.id for ticket in reference.tickets]
    assert store.tickets[0].steps == 6


def test_rewinding_methods_start_every_cycle_at_the_ticket_and_carrying_ones_at_their_own_weights(mlp, task):
    for method in ("imp", "swamp"):
        record, calls = spied(mlp, task, method)
        assert len({ticket.id for ticket, *_ in calls}) == 1
    for method in ("lrr", "sms"):
        record, calls = spied(mlp, task, method)
        for cycle, (ticket, *_) in zip(record, calls[1:], strict=False):
            assert all(torch.equal(ticket.weights[name], cycle.weights[name]) for name in cycle.weights)


def test_particles_differ_in_their_seed_alone(mlp, task):
    _, calls = spied(mlp, task, "swamp")
    seeds = [seed for call in calls for seed in call[3]]
    assert len(seeds) == len(set(seeds)) == 12
    assert {seed.root for seed in seeds} == {0}


def test_swamp_plus_trains_one_particle_while_most_weights_live(mlp, task):
    record, _ = spied(mlp, task, "swamp+")
    assert [len(cycle.particles) for cycle in record] == [1, 1, 3, 3]


def test_particles_may_be_given_cycle_by_cycle(mlp, task):
    assert [len(cycle.particles) for cycle in run(mlp, task, "swamp", particles=(1, 2))] == [1, 2, 2, 2]


PATHS = {
    "constant": {},
    "more particles later": {"particles": (1, 1, 3)},
    "fewer particles later": {"particles": (3, 2)},
    "cycles": {"cycles": 2, "particles": (1, 3)},
    "several fractions": {"prune_fraction": (0.5, 0.3), "particles": (2, 1, 3)},
    "densities": {"densities": (1.0, 0.6, 0.3), "particles": (1, 2, 3)},
    "2:4": {"structure": "2:4", "include": ("2.weight",), "particles": (1, 3)},
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("after", "options"),
    [
        *(pytest.param("restart", options, id=f"restart-{name}") for name, options in PATHS.items()),
        *(pytest.param("advance", PATHS[name], id=f"advance-{name}") for name in ("constant", "densities")),
    ],
)
def test_the_equal_cost_controls_of_a_cycle_take_as_many_steps_as_the_particles(mlp, task, options, after):
    training = replace(TRAINING, lr_after_rewind=after, batch_size=48)
    many = run(mlp, task, "swamp", training, **options)
    for control in ("imp-long", "imp-best"):
        record = run(mlp, task, control, training, **options)
        assert [cycle.cost.steps for cycle in record] == [cycle.cost.steps for cycle in many]
        assert [cycle.cost.samples for cycle in record] == [48 * cycle.cost.steps for cycle in record]
    carried, control = (run(mlp, task, method, training, **options) for method in ("sms", "lrr-long"))
    assert [cycle.cost.steps for cycle in control] == [cycle.cost.steps for cycle in carried]
    # From its step in the schedule, which is as much longer, the ticket leaves as much to train.
    skipped = 2 if after == "advance" else 0
    assert many[0].cost.steps == len(many[0].particles) * (8 - skipped) + 2


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_the_equal_cost_controls_of_a_run_take_as_many_steps_as_all_cycles(mlp, task, options):
    training = replace(TRAINING, batch_size=48)
    for iterative, control in (("swamp", "cyclic-long"), ("imp", "cyclic")):
        whole = run(mlp, task, iterative, training, **options)
        record = run(mlp, task, control, training, **options)
        # The ticket's epoch is what an iterative run has more.
        assert record[-1].total.steps == whole[-1].total.steps - 2
        assert record[-1].sparsity == whole[-1].sparsity
        if len(record) > 1:
            assert [cycle.total.steps for cycle in record] == [cycle.total.steps - 2 for cycle in whole]


@pytest.mark.slow
def test_the_three_things_that_averaging_changes_are_separate(mlp, task):
    names = ("imp", "imp-tail", "imp-swa", "swamp-no-swa", "swamp")
    settings = {name: spied(mlp, task, name)[1][0][2] for name in names}
    assert {n: (s.swa_fraction, s.swa) for n, s in settings.items()} == {
        "imp": (0.0, False),
        "imp-tail": (0.5, False),
        "imp-swa": (0.5, True),
        "swamp-no-swa": (0.0, False),
        "swamp": (0.5, True),
    }
    assert spied(mlp, task, "imp-sam")[1][0][2].sam == 0.05
    assert spied(mlp, task, "imp-sam", replace(TRAINING, sam=0.2))[1][0][2].sam == 0.2
    for method, radius, sharpness in (("imp-asam", 0.5, "asam"), ("imp-s2sam", 0.05, "s2-sam")):
        chosen = spied(mlp, task, method)[1][0][2]
        assert (chosen.sam, chosen.sharpness, chosen.ema) == (radius, sharpness, 0)
    assert spied(mlp, task, "imp-ema")[1][0][2].ema == 0.999
    assert spied(mlp, task, "imp-ema", replace(TRAINING, ema=0.9))[1][0][2].ema == 0.9
    for method, epochs in (("imp-lawa", 4), ("lrr-lawa", 4), ("imp-long-lawa", 12), ("lrr-long-lawa", 12)):
        chosen = spied(mlp, task, method)[1][0][2]
        assert (chosen.lawa, chosen.swa_fraction, chosen.swa, chosen.ema) == (6, 0.0, False, 0.0)
        assert (chosen.averaged_epochs, chosen.epochs) == (min(6, epochs), epochs)
    assert spied(mlp, task, "imp-lawa", replace(TRAINING, lawa=2))[1][0][2].lawa == 2


def test_an_advanced_schedule_continues_from_the_step_of_the_ticket(mlp, task):
    record, calls = spied(mlp, task, "imp", replace(TRAINING, lr_after_rewind="advance"))
    assert all(request.first == 6 for *_, request in calls)
    assert record[1].cost.steps == 24 - 6


def test_a_ticket_at_step_zero_is_the_initial_network(mlp, task):
    store = Tickets()
    list(swamp.cycles(mlp, task, replace(PLAN, ticket_epochs=0, sparsity=0.0), TRAINING, store=store))
    assert all(torch.equal(store.tickets[0].weights[k], v) for k, v in mlp.state_dict().items())


def test_cycles_come_one_at_a_time(mlp, task):
    spy = Spy(mlp, task)
    iterator = swamp.cycles(mlp, task, PLAN, TRAINING, backend=spy)
    assert spy.calls == []
    next(iterator)
    assert len(spy.calls) == 2


def test_the_users_model_is_left_alone(normed, task):
    before = {name: tensor.clone() for name, tensor in normed.state_dict().items()}
    result = swamp.prune(
        normed, task, sparsity=0.8, particles=2, training=TRAINING, prune_fraction=(0.5,), barrier_threshold=1
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in normed.state_dict().items())
    assert result.model is not normed
    assert list(result.model.state_dict()) == list(normed.state_dict())


def test_a_trainer_of_ones_own_plugs_in(mlp, task):
    class Trainer:
        def train(self, request):
            made, ticket, mask = [], request.ticket, request.mask
            for index, seed in request.seeds:
                noise = seed.generator()
                moved = {k: v + 0.01 * torch.randn(v.shape, generator=noise) for k, v in ticket.weights.items()}
                moved |= {name: moved[name] * alive for name, alive in mask.items()}
                made.append(Particle(moved, index, ticket.id, mask.digest, 0, 1, (0.5,), 0.1))
            return made

    record = list(swamp.cycles(mlp, task, replace(PLAN, min_per_layer=1), TRAINING, backend=Trainer()))
    assert [cycle.mask.nnz for cycle in record] == [144, 84, 49, 29]
    assert record[2].cost.steps == 3


def test_particles_are_averaged_in_any_order(mlp, task):
    class Reversed(Sequential):
        def train(self, request):
            return super().train(replace(request, seeds=request.seeds[::-1]))

    plain = list(swamp.cycles(mlp, task, PLAN, TRAINING))
    other = list(swamp.cycles(mlp, task, PLAN, TRAINING, backend=Reversed(mlp, task)))
    assert all(same(a, b) for a, b in zip(plain, other, strict=True))


def test_a_mean_of_particles_is_their_mean(mlp, task):
    class Keeps(Tickets):
        def progress(self, cycle, particles, *, trunk=0):
            store = self

            class Kept(Progress):
                def on_finished(self, particle):
                    store.starts.append(particle)

            return Kept()

    store = Keeps()
    record = list(swamp.cycles(mlp, task, replace(PLAN, sparsity=0.0), TRAINING, store=store))
    expected = mean(particle.weights for particle in store.starts[1:])
    assert all(torch.equal(record[0].weights[name], expected[name]) for name in expected)


def test_random_scores_prune_at_random_but_exactly(mlp, task):
    record = run(mlp, task, "imp", score="random")
    assert record[-1].mask.nnz == 29
    assert record[-1].mask != run(mlp, task, "imp")[-1].mask


def test_a_layer_that_dies_is_named_and_a_floor_saves_it(task):
    with swamp_initial():
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model[2].weight.data *= 1e-6
    options = {"sparsity": 0.95, "prune_fraction": (0.95,), "ticket_epochs": 0}
    still = Training(epochs=1, batch_size=16, lr=1e-9, swa_fraction=0, swa=False)
    with pytest.warns(UserWarning, match="2.weight"):
        record = run(model, task, "imp", still, **options)
    assert "2.weight" in record[1].warnings[0]
    floored = run(model, task, "imp", still, min_per_layer=2, **options)
    assert floored[1].mask.nnz_by_layer == {"0.weight": 5, "2.weight": 2}
    assert floored[1].warnings == ()


@pytest.mark.parametrize(("method", "options"), [("swamp", {}), ("lrr", {"retrain_epochs": 2}), ("imp", {})])
def test_the_last_cycle_trains_for_its_own_number_of_epochs(method, options, mlp, task):
    record = run(mlp, task, method, last_epochs=7, **options)
    steps = [cycle.particles[0].steps for cycle in record]
    middle = 6 * options.get("retrain_epochs", 4)
    assert steps == [24, middle, middle, 42]
    # Earlier cycles are those of a run without it.
    assert all(same(a, b) for a, b in zip(record[:-1], run(mlp, task, method, **options)[:-1], strict=True))


def test_a_schedule_that_advances_to_the_ticket_must_end_after_it(mlp, task):
    advancing = replace(TRAINING, lr_after_rewind="advance", swa_fraction=0)
    with pytest.raises(swamp.SwampError, match="the ticket is taken after 2 epochs, the training has 2"):
        run(mlp, task, "imp", advancing, ticket_epochs=2, last_epochs=2)
