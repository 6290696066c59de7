"""Every criterion inside the loop: what it is given to look at, and that masks stay what they must be."""

from itertools import pairwise

import pytest
import torch

import swamp
from swamp import SwampError
from swamp.scores import SCORES, ScoringContext

from .conftest import PLAN, run, same

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


def test_a_plan_refuses_to_score_on_no_examples():
    with pytest.raises(SwampError, match="score_examples must be 1 or more, got 0"):
        swamp.Plan(score_examples=0)
