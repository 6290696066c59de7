"""Where masks come from: before training, in one shot, round by round; how pruned weights train on; what it costs."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS, Cost
from swamp.masks import Mask, prune_mask
from swamp.scores import ScoringContext
from swamp.scores.synflow import synflow
from swamp.training import Training
from swamp.training.mask_updates import Dynamic

from .conftest import PLAN, TRAINING, Spy, run, spied

BEFORE = [name for name, method in METHODS.items() if method.masks == "initial"]
ONCE = [name for name, method in METHODS.items() if method.masks == "once"]


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", BEFORE)
def test_pruning_before_training_trains_the_initial_weights_once_on_its_mask(normed, task, method):
    record, calls = spied(normed, task, method, min_per_layer=1)
    # There is no ticket, so the call that is left out here is the training itself.
    assert (len(record), len(calls)) == (1, 0)
    (cycle,) = record
    assert cycle.mask.nnz == round(0.2 * 144)
    assert cycle.total == cycle.cost


def test_before_training_the_largest_initial_weights_stay(normed, task):
    (cycle,) = run(normed, task, "magnitude-init")
    scores = {name: dict(normed.named_parameters())[name].abs() for name in cycle.mask}
    assert cycle.mask == prune_mask(Mask.ones(normed), scores, 29, allocation="erk")


def test_synflow_prunes_in_a_hundred_rounds_of_falling_density(mlp, task):
    (cycle,) = run(mlp, task, "synflow", sparsity=0.9)
    dense = Mask.ones(mlp)
    mask, evidence = dense, ScoringContext(torch.Generator(), lambda: [(task.train.inputs[:1], task.train.targets[:1])])
    for number in range(1, 101):
        mask = prune_mask(mask, synflow(mlp, mask, evidence), round(144 * (14 / 144) ** (number / 100)))
    assert cycle.mask == mask
    # Of the first round's scores alone one layer would get nothing.
    with pytest.warns(UserWarning, match=r"no weight of 0\.weight is left"):
        prune_mask(dense, synflow(mlp, dense, evidence), 14, min_per_layer=0)


def test_random_masks_have_the_layers_of_erk(mlp, task):
    (cycle,) = run(mlp, task, "random")
    # Shares are 6 + 16 and 16 + 3: 29 weights in 22 : 19.
    assert cycle.mask.nnz_by_layer == {"0.weight": 16, "2.weight": 13}
    (cycle,) = run(mlp, task, "random-uniform")
    assert cycle.mask.nnz_by_layer == {"0.weight": 19, "2.weight": 10}


@pytest.mark.parametrize("method", ONCE)
def test_one_shot_prunes_the_dense_network_at_every_sparsity(normed, task, method):
    record, calls = spied(normed, task, method, densities=(1.0, 0.5, 0.25))
    dense, half, quarter = record
    assert [cycle.mask.nnz for cycle in record] == [144, 72, 36]
    if METHODS[method].score == "magnitude":
        scores = {name: dense.weights[name].abs() for name in dense.mask}
        assert quarter.mask == prune_mask(dense.mask, scores, 36)
    starts = [ticket for ticket, *_ in calls]
    if METHODS[method].start == "pruned":
        for start in starts[1:]:
            assert all(torch.equal(start.weights[name], dense.weights[name]) for name in dense.weights)
    else:
        assert len({start.id for start in starts}) == 1
    assert half.total == dense.cost + half.cost
    assert quarter.total == dense.cost + quarter.cost


def test_the_score_and_the_allocation_of_the_plan_come_before_the_method_s(mlp, task):
    (cycle,) = run(mlp, task, "random", score="magnitude", allocation="uniform")
    scores = {name: dict(mlp.named_parameters())[name].abs() for name in cycle.mask}
    assert cycle.mask == prune_mask(Mask.ones(mlp), scores, 29, allocation="uniform")


@pytest.mark.parametrize(
    ("retrain", "epochs", "first", "rates"),
    [
        ("ft", 2, 0, (0.05 * (1 - 0.5**0.5), 0.05 * (1 - 0.5**0.5))),
        ("lrw", 2, 12, (None, None)),
        ("llr", 2, 0, (0.1, 0.05)),
        ("slr", 0, 0, (0.1, None)),
    ],
)
def test_carried_weights_are_retrained_by_the_chosen_schedule(mlp, task, retrain, epochs, first, rates):
    record, calls = spied(mlp, task, "sms", retrain=retrain, retrain_epochs=epochs)
    for _, _, training, _, request in calls[1:]:
        assert request.first == first
        assert training.epochs == (4 if retrain in ("lrw", "slr") else epochs)
        if rates[0] and rates[1]:
            assert [training.rate(step, 1) for step in (0, 1)] == pytest.approx(rates)
    steps = 3 * 6 * (epochs or 4)
    assert [cycle.cost.steps for cycle in record[1:]] == [steps] * 3


def test_allr_lowers_the_peak_by_how_mild_the_pruning_was(mlp, task):
    record, calls = spied(mlp, task, "lrr", retrain="allr", retrain_epochs=1)
    for before, after, (_, _, training, *_) in zip(record[:-1], record[1:], calls[1:], strict=False):
        norm = sum(float(before.weights[name].double().square().sum()) for name in before.mask) ** 0.5
        gone = sum(float(before.weights[name][~after.mask[name]].double().square().sum()) for name in after.mask) ** 0.5
        share = 1 - after.mask.nnz / before.mask.nnz
        assert training.lr == pytest.approx(0.1 * max(gone / (norm * share**0.5), 0.25))


def test_more_retraining_than_training_cannot_be_rewound_to(mlp, task):
    with pytest.raises(swamp.SwampError, match="lrw trains the last 5 epochs of 4 again"):
        run(mlp, task, "lrr", retrain="lrw", retrain_epochs=5)


def test_cyclic_training_takes_as_many_schedules_as_an_iterative_run_has_cycles(mlp, task):
    spies = {method: spied(mlp, task, method) for method in ("cyclic", "cyclic-long", "imp")}
    (cyclic,), (long,), imp = (record for record, _ in spies.values())
    # The dense training and three prunings to 80 %; the ticket's epoch is what an iterative run has more.
    assert len(imp) == 4
    assert cyclic.cost.steps == imp[-1].total.steps - 6
    assert long.cost.steps == 3 * cyclic.cost.steps
    # 1, 0.5, 0.2; and nine prunings of a fifth.
    assert replace(PLAN, method="cyclic", prune_fraction=(0.5, 0.9)).particle_epochs(0, 1) == 3
    assert replace(PLAN, method="cyclic", prune_fraction=(0.2,)).particle_epochs(0, 1) == 9
    assert replace(PLAN, method="cyclic-long", prune_fraction=(0.5, 0.9), particles=(1, 2)).particle_epochs(0, 1) == 5


def test_rates_of_cyclic_training_repeat(mlp, task):
    spy = Spy(mlp, task)
    list(swamp.cycles(mlp, task, replace(PLAN, method="cyclic"), TRAINING, backend=spy))
    ((_, _, training, *_),) = spy.calls
    assert training.epochs == 16
    assert training.schedule_repeats == 4
    rates = [training.rate(step, 6) for step in range(96)]
    assert rates[:24] == rates[24:48] == rates[72:]


def test_the_total_cost_of_a_model_is_shown_beside_the_cost_of_its_cycle(mlp, task):
    dense_step, batch = 3 * 2 * 144, 16
    imp = run(mlp, task, "imp")
    # The ticket's 6 steps are dense, and so are the 24 of cycle 0; later ones count living weights only.
    assert [cycle.cost.flops for cycle in imp] == pytest.approx(
        [30 * batch * dense_step, *(24 * batch * 6 * cycle.mask.nnz for cycle in imp[1:])]
    )
    total = Cost()
    for cycle in imp:
        total += cycle.cost
        assert cycle.total == total
    (snip,) = run(mlp, task, "snip")
    # One gradient of all 96 examples before training.
    assert snip.cost.flops == pytest.approx(24 * batch * 6 * 29 + 96 * dense_step)


def test_rigl_counts_a_dense_gradient_at_every_change(mlp, task):
    (rigl,), (static,) = run(mlp, task, "rigl", allocation="uniform"), run(mlp, task, "random-uniform")
    # Changes after 4, 8, 12 and 16 of 24 steps, each on a batch of 16: two sparse passes and a dense one.
    changes = 4 * 16 * (2 * 2 * 29 + 2 * 144)
    assert rigl.cost.flops == pytest.approx(static.cost.flops + changes)
    assert run(mlp, task, "set", allocation="uniform")[0].cost.flops == pytest.approx(static.cost.flops)


def test_sharpness_aware_steps_count_twice_but_single_ones(mlp, task):
    plain, sam, single = (run(mlp, task, method) for method in ("imp", "imp-sam", "imp-s2sam"))
    assert sam[-1].cost.flops == 2 * plain[-1].cost.flops
    assert single[-1].cost.flops == plain[-1].cost.flops
    # The 6 steps of the ticket, beside 24, are plain ones.
    assert sam[0].cost.flops == pytest.approx(plain[0].cost.flops * 54 / 30)


def test_densities_of_independent_cycles_need_not_start_dense(mlp, task):
    record = run(mlp, task, "rigl", densities=(0.5, 0.25))
    assert [cycle.mask.nnz for cycle in record] == [72, 36]
    (alone,) = run(mlp, task, "rigl", densities=(0.25,))
    # Seeds go by the place in the schedule, so that a run that stops earlier is the same run.
    assert record[0].cost.steps == record[1].total.steps == alone.cost.steps
    with pytest.raises(swamp.SwampError, match=r"densities start at 1, the dense cycle 0 that imp needs, got \[0.5"):
        run(mlp, task, "imp", densities=(0.5, 0.25))


def test_a_plan_with_an_unknown_retraining_or_none_of_the_examples_is_refused():
    with pytest.raises(swamp.SwampError, match="unknown retrain 'lrx'"):
        replace(PLAN, retrain="lrx")
    with pytest.raises(swamp.SwampError, match="retrain_epochs must be 0 or more"):
        replace(PLAN, method="lrr", retrain_epochs=-1)
    for given in ({"retrain": "clr"}, {"retrain_epochs": 2}):
        with pytest.raises(swamp.SwampError, match="swamp rewinds its weights"):
            replace(PLAN, method="swamp", **given)
    with pytest.raises(swamp.SwampError, match="update_interval must be 1 or more"):
        replace(PLAN, dynamic=Dynamic(update_interval=0))


@pytest.mark.parametrize("method", ["sms-swa", "lrr-swa", "swamp-late-carry"])
@pytest.mark.parametrize("retrain", ["ft", "clr", "llr", "allr"])
def test_a_retraining_that_leaves_nothing_to_average_is_refused_unless_averaging_is_off(mlp, task, method, retrain):
    plan, training = replace(PLAN, method=method, retrain=retrain), Training(epochs=4, batch_size=16)
    with pytest.raises(swamp.SwampError, match=f"{method} averages weights .* by {retrain} has no such part"):
        swamp.cycles(mlp, task, plan, training, backend="sequential")
    swamp.cycles(mlp, task, plan, replace(training, swa=False), backend="sequential")
    swamp.cycles(mlp, task, replace(plan, retrain="lrw"), training, backend="sequential")


def test_a_tail_of_cycles_that_do_not_divide_it_is_refused_before_training(mlp, task):
    with pytest.raises(swamp.SwampError, match="swa_cycles must divide the 2 epochs"):
        run(mlp, task, "sup-tickets", Training(epochs=4, batch_size=16, swa_fraction=0.5, swa_cycles=3))


def test_retraining_that_cannot_be_is_refused_before_the_dense_training(mlp, task):
    spy = Spy(mlp, task)
    plan = replace(PLAN, method="lrr", retrain_epochs=3)
    with pytest.raises(swamp.SwampError, match="schedule_repeats must divide the 3 epochs"):
        next(swamp.cycles(mlp, task, plan, replace(TRAINING, schedule_repeats=2), backend=spy))
    assert not spy.calls


def test_retraining_of_a_method_of_equal_cost_is_checked_with_the_epochs_that_it_has(mlp, task):
    # 4 particles of 4 epochs, of which they train half apart: cycles of 9 epochs (4 * 14 of 14, and 31 + 3 of 14).
    training, spy = replace(TRAINING, schedule_repeats=2, swa_fraction=0.0), Spy(mlp, task)
    plan = replace(PLAN, method="sms-late", particles=(4,), sparsity=0.5, retrain_epochs=4, ticket_epochs=0)
    with pytest.raises(swamp.SwampError, match="schedule_repeats must divide the 9 epochs"):
        next(swamp.cycles(mlp, task, plan, replace(training, epochs=14), backend=spy))
    assert not spy.calls
    # 3 times as many as 3 do divide.
    plan = replace(PLAN, method="lrr-long", particles=(2,), sparsity=0.5, retrain_epochs=3, ticket_epochs=0)
    next(swamp.cycles(mlp, task, plan, training, backend=spy))
    assert len(spy.calls) == 1


@pytest.mark.filterwarnings("ignore:FLOPs count every weight once")
def test_scores_of_a_network_that_normalises_by_the_batch_alone(task):
    untracked = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Linear(16, 3))
    (cycle,) = run(untracked, task, "grasp")
    assert cycle.cost.flops > 0
    for method in ("synflow", "one-shot-fisher"):
        with pytest.raises(swamp.SwampError, match=r"one example at a time, and '1' \(BatchNorm1d\) normalises by the"):
            run(untracked, task, method, sparsity=0.5)


@pytest.mark.slow_cases("96")
@pytest.mark.parametrize(("most", "looked_at"), [(1000, 96), (40, 32), (10, 10)])
def test_a_score_costs_the_gradients_it_takes_in_each_round(normed, task, most, looked_at):
    def scoring(method: str) -> float:
        (cycle,) = run(normed, task, method, min_per_layer=1, score_examples=most)
        return cycle.cost.flops - 24 * 16 * 6 * 29

    living = sum(round(144 * (29 / 144) ** (number / 100)) for number in range(100))
    assert scoring("snip") == pytest.approx(looked_at * 6 * 144)
    assert scoring("snip-iterative") == pytest.approx(looked_at * 6 * living)
    # One example of ones, whatever the data.
    assert scoring("synflow") == pytest.approx(6 * living)
    assert scoring("random") == 0


def test_grasp_costs_three_gradients_of_ten_examples_a_class(mlp, task):
    (cycle,) = run(mlp, task, "grasp")
    assert cycle.cost.flops == pytest.approx(24 * 16 * 6 * 29 + 3 * 30 * 6 * 144)


@pytest.mark.parametrize("method", ["imp", "lrr"])
def test_each_cycle_pays_for_the_score_that_found_its_mask(mlp, task, method):
    record = run(mlp, task, method, score="snip", min_per_layer=1)
    for before, after in pairwise(record):
        # All 96 examples on the weights that lived before.
        assert after.cost.flops == pytest.approx(24 * 16 * 6 * after.mask.nnz + 96 * 6 * before.mask.nnz)
