"""Lottery Pools on four numbers, with an error that is written down."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from swamp.algorithms import Cost, Cycle, Plan
from swamp.algorithms.cycle import SplitMetrics
from swamp.algorithms.evaluator import Evaluation
from swamp.algorithms.lottery_pools import pooled
from swamp.algorithms.store import Store
from swamp.masks import Mask

PLAN = Plan(method="lottery-pools")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
NOTHING = SplitMetrics({}, None, {})


class Distance:
    """An Evaluator whose error is the squared distance to `goal`; remembers what was tried, and what was judged."""

    examples = 10
    ties: ClassVar[dict[str, str]] = {}

    def __init__(self, *goal: float) -> None:
        self.goal, self.tried, self.judgements = torch.tensor(goal), [], []

    def map(self, work, items):
        return [work(nn.Module(), item) for item in items]

    def load(self, model, weights, mask, *, refresh_bn, examples):
        assert refresh_bn
        assert examples == 10
        mask.require_zeros(weights)
        return weights

    def error(self, model):
        self.tried.append(model["w"].tolist())
        return float((model["w"] - self.goal).square().sum())

    def evaluate(self, model, weights, mask, *, refresh_bn, with_error):
        self.judgements.append(refresh_bn)
        return Evaluation(NOTHING, 0.0, weights)


def cycle(index: int, *weights: float, kept: tuple[int, ...] = (1, 1, 1, 1)) -> Cycle:
    mask = Mask({"w": torch.tensor(kept, dtype=torch.bool)})
    total = Cost(steps=10 * (index + 1))
    return Cycle(index, mask, {"w": torch.tensor(weights)}, 1.0, NOTHING, (), None, None, Cost(steps=10), total)


def pools(measure: Distance, *run: Cycle) -> list[Cycle]:
    return list(pooled(iter(run), PLAN, measure, Store()))


AXES = [
    cycle(0, 0.0, 0.0, 1.0, 0.0),
    cycle(1, 1.0, 0.0, 0.0, 0.0),
    cycle(2, 0.0, 0.0, 0.0, 0.0),
    cycle(3, 0.0, 1.0, 0.0, 0.0),
    cycle(4, 0.0, 0.0, 0.0, 1.0),
]


def test_the_nearest_neighbours_come_first_each_with_its_best_share_into_what_was_found_so_far():
    measure = Distance(0.3, 0.4, 0.3, 0.4)
    found = pools(measure, *AXES)[2]
    start = 1 + 8 * 2 + 1 + 8 * 3
    tried = torch.tensor(measure.tried[start : start + 33])
    best = torch.zeros(4)
    assert tried[0].tolist() == best.tolist()
    for place, unit in enumerate(torch.eye(4)):
        ways = torch.stack([(1 - a) * best + a * unit for a in SHARES])
        assert torch.allclose(tried[1 + 8 * place : 9 + 8 * place], ways)
        best = min(ways, key=lambda way: float((way - measure.goal).square().sum()))
    assert bool((best > 0).all())
    assert torch.allclose(found.weights["w"], best)
    # The fourth cycle was used, with all that it cost.
    assert (found.total.steps, found.cost.steps) == (50, 10)


def test_neighbours_that_do_not_help_are_left_out_with_their_cost():
    measure = Distance(1.0, 0.0, 0.0, 0.0)
    found = pools(measure, *AXES)
    # Cycle 1 is the goal already; to cycle 2 nobody helps but cycle 1, which it has paid for.
    assert [measure.judgements[i] for i in (1, 2)] == [False, True]
    assert found[1].weights is AXES[1].weights
    assert found[2].weights["w"].tolist() == pytest.approx([0.7, 0, 0, 0])
    assert [one.total.steps for one in found[1:3]] == [20, 30]


def test_the_density_of_attention_heads_is_the_one_of_the_pooled_mask(monkeypatch):
    monkeypatch.setattr("swamp.algorithms.lottery_pools.head_densities", lambda _, mask: {"w": mask["w"].tolist()})
    measure = Distance(0.0, 0.5, 0.0, 0.0)
    _, found = pools(measure, cycle(0, 0.0, 1.0, 0.1, 0.1), cycle(1, 0.2, 0.0, 0.0, 0.0, kept=(1, 0, 0, 0)))
    assert found.heads == {"w": [False, True, False, False]}


def test_a_neighbour_that_changes_nothing_is_not_taken():
    measure = Distance(1.0, 1.0, 1.0, 1.0)
    found = pools(measure, *(cycle(index, 0.0, 0.0, 0.0, 0.0) for index in range(3)))
    assert measure.judgements == [False] * 3
    assert [one.total.steps for one in found] == [10, 20, 30]


def test_what_is_found_is_pruned_to_as_many_weights_as_the_model_has():
    measure = Distance(0.0, 0.5, 0.0, 0.0)
    dense, sparse = cycle(0, 0.0, 1.0, 0.1, 0.1), cycle(1, 0.2, 0.0, 0.0, 0.0, kept=(1, 0, 0, 0))
    _, found = pools(measure, dense, sparse)
    assert found.mask["w"].tolist() == [False, True, False, False]
    assert found.weights["w"].tolist() == pytest.approx([0, 0.5, 0, 0])


@pytest.mark.parametrize("length", range(1, 8))
def test_every_cycle_comes_out_once_and_sees_two_on_either_side(length):
    measure = Distance(9.0, 9.0, 9.0, 9.0)
    run = [cycle(index, *[0.0] * 4) for index in range(length)]
    assert [one.index for one in pools(measure, *run)] == list(range(length))
    seen = sum(0 < abs(one - other) <= 2 for one in range(length) for other in range(length))
    assert len(measure.tried) == length + 8 * seen


class Undefined(Distance):
    """The errors with these numbers are NaN."""

    def __init__(self, *undefined: int) -> None:
        super().__init__(1.0, 1.0, 1.0, 1.0)
        self.undefined = undefined

    def error(self, model):
        found = super().error(model)
        return math.nan if len(self.tried) - 1 in self.undefined else found


@pytest.mark.parametrize("undefined", [0, 1])
def test_an_error_that_is_nan_is_higher_than_all_others(undefined):
    run = [cycle(0, 0.0, 0.0, 0.0, 0.0), cycle(1, 1.0, 1.0, 1.0, 1.0)]
    first = next(iter(pools(Undefined(undefined), *run)))
    assert torch.allclose(first.weights["w"], torch.full((4,), 0.7))
