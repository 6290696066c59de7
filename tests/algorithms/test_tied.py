"""A weight that two layers share is one weight in every method: pruned under both names, and shared in the result."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.training.rng import isolated

from .conftest import PLAN, TRAINING


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.two.weight = self.one.weight

    def forward(self, inputs):
        return self.out(torch.tanh(self.two(torch.tanh(self.one(torch.tanh(self.into(inputs)))))))


@pytest.mark.slow_cases("sms", "gmp", "set", "imp-best", "rigl", "snip")
@pytest.mark.filterwarnings("ignore:cycle")
@pytest.mark.parametrize(
    "method",
    ["swamp", "lrr", "sms", "gmp", "set", "rigl", "rigl-swamp", "rigl-swamp-own", "sup-tickets", "lottery-pools",
     "one-shot", "imp-best", "snip"],
)  # fmt: skip
def test_a_tied_weight_is_pruned_under_both_names(method, task):
    with isolated(swamp.Seed(0).at("init")):
        model = Tied()
    plan = replace(PLAN, method=method, barrier_points=0)
    for cycle in swamp.cycles(model, task, plan, TRAINING, backend="sequential"):
        assert "one.weight" in cycle.mask
        assert "two.weight" not in cycle.mask
        assert torch.equal(cycle.weights["one.weight"], cycle.weights["two.weight"])
        assert not bool(cycle.weights["two.weight"][~cycle.mask["one.weight"]].any())
        fresh = Tied()
        fresh.load_state_dict(dict(cycle.weights))
        cycle.mask.require_zeros(dict(fresh.named_parameters()))
        assert fresh.one.weight is fresh.two.weight
