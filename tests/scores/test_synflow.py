from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.synflow import synflow

from .networks import context, examples, linear, network, weights_of

ONE = (torch.full((4, 2), -7.0), torch.zeros(4, dtype=torch.long))


def test_synflow_by_hand() -> None:
    # |W1| = [[1, 2], [3, 0.5]], |W2| = [1, 2]. A weight of the first layer times the one path behind it; one of the
    # second times the sum of all that leads to it: 1 + 2 = 3 and 3 + 0.5 = 3.5.
    model = linear([[1.0, -2.0], [3.0, 0.5]], [[-1.0, 2.0]])
    score = synflow(model, Mask.ones(model), context(ONE))
    assert score["0.weight"].tolist() == [[1.0, 2.0], [6.0, 1.0]]
    assert score["1.weight"].tolist() == [[3.0, 7.0]]


def test_synflow_is_the_flow_over_all_paths_through_a_weight() -> None:
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.ReLU())
    model.append(nn.Linear(4, 3, bias=False))
    one, two, three = (weight.double().abs() for weight in weights_of(model).values())
    scores = synflow(model, Mask.ones(model), context((torch.randn(2, 5), torch.zeros(2, dtype=torch.long))))
    after_one, after_two = three.sum(0) @ two, three.sum(0)
    before_two = one.sum(1)
    expected = {
        "0.weight": after_one[:, None] * one,
        "2.weight": after_two[:, None] * two * before_two,
        "4.weight": three * (two @ before_two),
    }
    for name, score in expected.items():
        torch.testing.assert_close(scores[name], score, rtol=1e-12, atol=0)
        # What flows in flows out (Tanaka et al., theorem 1): every layer carries the whole of it.
        torch.testing.assert_close(scores[name].sum(), scores["0.weight"].sum())


def test_pruned_weights_carry_no_flow() -> None:
    model = linear([[1.0, -2.0], [3.0, 0.5]], [[-1.0, 2.0]])
    mask = Mask({"0.weight": torch.tensor([[True, True], [True, False]]), "1.weight": torch.tensor([[False, True]])})
    score = synflow(model, mask, context(ONE))
    assert score["0.weight"].tolist() == [[0.0, 0.0], [6.0, 0.0]]
    assert score["1.weight"].tolist() == [[0.0, 6.0]]


def test_synflow_makes_biases_and_normalisation_absolute_and_uses_running_statistics() -> None:
    # x = 1: |w| = 2, |b| = 3, so 5; less |mean| = 1, over the square root of 4, times |gamma| = 6, plus |beta| = 5:
    # 4 / 2 * 6 + 5 = 17, then |v| = 7. dR/dv v = 119; dR/dw w = 7 * 6 / 2 * 2 = 42.
    first, norm, last = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0), nn.Linear(1, 1)
    model = nn.Sequential(first, norm, last).train()
    values = {"0.weight": -2, "0.bias": -3, "1.weight": -6, "1.bias": -5, "1.running_mean": -1, "1.running_var": 4}
    state = {name: torch.full_like(model.state_dict()[name], value) for name, value in values.items()}
    model.load_state_dict({**model.state_dict(), **state, "2.weight": torch.tensor([[-7.0]])})
    score = synflow(model, Mask.ones(model), context((torch.zeros(1, 1), torch.zeros(1))))
    assert (score["0.weight"].item(), score["2.weight"].item()) == (42.0, 119.0)


def test_synflow_does_not_depend_on_the_data_and_looks_at_one_batch() -> None:
    model = network("mlp-bn-8-8", 6)
    asked: list[int] = []

    def batches() -> Iterator[Any]:
        for index in range(3):
            asked.append(index)
            yield examples(8, 6, seed=index)

    scores = synflow(model, Mask.ones(model), replace(context(), batches=batches))
    again = synflow(model, Mask.ones(model), context(examples(3, 6, seed=9)))
    assert asked == [0]
    assert all(torch.equal(score, again[name]) for name, score in scores.items())


def test_a_deep_network_whose_flow_leaves_float32_is_scored_in_float64() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(30)))
    for weight in model.parameters():
        nn.init.constant_(weight, 1.0)
    score = synflow(model, Mask.ones(model), context((torch.ones(1, 64), torch.zeros(1))))
    # 64 ways on in each of 30 layers, one of them here: 64^29 paths through a weight, and 64 inputs and outputs.
    assert score["3.weight"][0, 0].item() == pytest.approx(64.0**29)


def test_synflow_says_when_even_float64_overflows() -> None:
    model = linear([[1e200]], [[1e200]])
    with pytest.raises(SwampError, match=r"is infinite, even in float64.*smaller initial weights"):
        synflow(model, Mask.ones(model), context((torch.ones(1, 1), torch.zeros(1))))


def test_synflow_says_when_no_path_is_left() -> None:
    model = linear([[0.0]], [[1.0]])
    with pytest.raises(SwampError, match=r"zero everywhere: no path of active weights"):
        synflow(model, Mask.ones(model), context((torch.ones(1, 1), torch.zeros(1))))


@pytest.mark.parametrize(
    ("inputs", "kind"), [({"ids": torch.ones(2, 6)}, "a mapping"), (torch.ones(2, 6, dtype=torch.long), "torch.int64")]
)
def test_synflow_refuses_inputs_that_cannot_be_ones(inputs: Tensor, kind: str) -> None:
    model = network("mlp-8", 6)
    with pytest.raises(SwampError, match=rf"float tensor, got {kind}.*Choose another score"):
        synflow(model, Mask.ones(model), context((inputs, torch.zeros(2))))
