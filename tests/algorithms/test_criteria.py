"""Every criterion inside the loop: what it is given to look at, and that masks stay what they must be."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import swamp
from swamp import SwampError
from swamp.algorithms.next_mask import Pruner
from swamp.algorithms.unused import unused_options
from swamp.scores import SCORES, ScoringContext
from swamp.training.flops import FlopCounter

from .conftest import PLAN, TRAINING, run, same

DENSITIES = PLAN.schedule().densities


@pytest.mark.parametrize("score", SCORES)
def test_every_score_gives_nested_masks_exact_counts_and_the_same_run_twice(normed, task, score):
    record = run(normed, task, "imp", score=score)
    prunable = record[0].mask.prunable
    assert [cycle.mask.nnz for cycle in record] == [round(prunable * density) for density in DENSITIES]
    assert all(after.mask.issubset(before.mask) for before, after in pairwise(record))
    for cycle in record:
        cycle.mask.require_zeros(cycle.weights)
    assert all(same(one, other) for one, other in zip(record, run(normed, task, "imp", score=score), strict=True))


def test_a_score_is_given_the_tasks_own_batches_forward_and_loss(mlp, task, monkeypatch):
    given: list[ScoringContext] = []

    def spying(model, mask, evidence):
        given.append(evidence)
        return SCORES["magnitude"](model, mask, evidence)

    monkeypatch.setitem(SCORES, "spying", spying)
    run(mlp, task, "imp", score="spying", score_examples=77)
    first, second = given[:2]
    assert (first.forward, first.loss, first.examples) == (task.forward, task.loss, 77)
    once, again, other = ([targets for _, targets in one.batches()] for one in (first, first, second))
    assert [len(targets) for targets in once] == 6 * [16]
    # A pass can be had again, and the next cycle looks in another order.
    assert all(map(torch.equal, once, again))
    assert not all(map(torch.equal, once, other))


@pytest.mark.parametrize(
    ("sizes", "used"), [(10 * [32], 320), ([512, 512], 512), (200 * [1], 200), ([32, 32, 7], 71), ([2000, 3], 1000)]
)
def test_the_cost_of_a_score_counts_the_examples_of_a_list_of_batches_that_it_uses(mlp, sizes, used):
    data = [(torch.randn(size, 6), torch.zeros(size, dtype=torch.long)) for size in sizes]
    task, plan = swamp.Task.of(train=data, test=data[:1]), replace(PLAN, score="snip", score_examples=1000)
    flops, mask = FlopCounter.of(mlp, task), swamp.Mask.ones(mlp)
    # An order that begins with the first batch.
    seed = next(one for one in map(swamp.Seed, range(99)) if len(first_targets(task, one)) == sizes[0])
    pruned = Pruner(mlp, task, plan, 128, flops, {}).prune(mask, mlp.state_dict(), 72, seed)
    assert pruned.flops == 3 * used * flops.forward(mask)


def first_targets(task, seed):
    return next(task.train.shuffled(1, seed, 0))[1]


def test_the_cost_of_a_score_of_the_user_is_a_gradient_of_each_example_that_it_reads(mlp, task, monkeypatch):
    def flops(score, **options):
        _, pruned = run(mlp, task, "imp", training, score=score, densities=(1.0, 0.5), **options)
        return pruned.cost.flops

    training = swamp.Training(epochs=2, batch_size=48)

    monkeypatch.setitem(SCORES, "reads", lambda *given: SCORES["snip"](*given))
    monkeypatch.setitem(SCORES, "reads nothing", lambda *given: SCORES["magnitude"](*given))
    assert flops("reads", score_examples=32) == flops("snip", score_examples=32) < flops("reads") == flops("snip")
    assert flops("reads nothing") == flops("magnitude") < flops("reads", score_examples=32)


def test_the_number_of_examples_has_an_effect_on_a_score_of_the_user(mlp, task, monkeypatch):
    monkeypatch.setitem(SCORES, "reads", lambda *given: SCORES["snip"](*given))
    assert "score_examples" not in unused_options(replace(PLAN, score="reads"), TRAINING)
    assert "score_examples" in unused_options(PLAN, TRAINING)


def test_a_plan_refuses_to_score_on_no_examples():
    with pytest.raises(SwampError, match="score_examples must be 1 or more, got 0"):
        swamp.Plan(score_examples=0)
