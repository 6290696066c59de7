"""SNIP, Taylor and Fisher: the criteria made of gradients."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from swamp.masks import Mask
from swamp.scores.fisher import fisher
from swamp.scores.snip import snip
from swamp.scores.taylor import taylor

from .networks import (
    TWO,
    Fields,
    batches_of,
    by_backward,
    context,
    examples,
    half_square,
    linear,
    mean_of,
    network,
    weights_of,
)


def test_snip_by_hand() -> None:
    # Mean slope ((1 - 2) / 2, (1 - 6) / 2) = (-0.5, -2.5); times (2, -1).
    model = linear([[2.0, -1.0]])
    score = snip(model, Mask.ones(model), context(TWO, loss=half_square))
    assert score["0.weight"].tolist() == [[1.0, 2.5]]


@pytest.mark.parametrize("sizes", [[1, 1], [2]])
def test_snip_takes_one_gradient_over_all_batches(sizes: list[int]) -> None:
    model = linear([[2.0, -1.0]])
    batches = list(zip(TWO[0].split(sizes), TWO[1].split(sizes), strict=True))
    score = snip(model, Mask.ones(model), context(*batches, loss=half_square))
    assert score["0.weight"].tolist() == [[1.0, 2.5]]


def test_snip_weighs_batches_by_their_examples() -> None:
    # One example of slope (1, 1), then two of (-2, -6): the mean is (-1, -11 / 3).
    model = linear([[2.0, -1.0]])
    second = TWO[0][[1, 1]], TWO[1][[1, 1]]
    score = snip(model, Mask.ones(model), context((TWO[0][:1], TWO[1][:1]), second, loss=half_square))
    torch.testing.assert_close(score["0.weight"], torch.tensor([[2.0, 11 / 3]], dtype=torch.float64))


def test_snip_is_the_slope_of_the_loss_by_a_factor_on_each_weight() -> None:
    model = network("mlp-bn-8-8", 6)
    inputs, targets = examples(24, 6)
    factors = {
        name: torch.ones(active.shape, dtype=torch.float64, requires_grad=True)
        for name, active in Mask.ones(model).items()
    }
    weights = {name: weights_of(model)[name] * factor for name, factor in factors.items()}
    model.train()
    expected = torch.autograd.grad(
        F.cross_entropy(functional_call(model, weights, (inputs,)), targets), list(factors.values())
    )
    scores = snip(model, Mask.ones(model), context((inputs, targets)))
    for name, slope in zip(factors, expected, strict=True):
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-10, atol=1e-14)


def test_taylor_by_hand() -> None:
    # Slope times weight: (2, -1), then (-4, 6); squared (4, 1) and (16, 36).
    model = linear([[2.0, -1.0]])
    apart = taylor(model, Mask.ones(model), context(*batches_of(*TWO, 1), loss=half_square))
    assert apart["0.weight"].tolist() == [[10.0, 18.5]]
    # As one batch the slopes are averaged first: (-0.5, -2.5) times (2, -1), squared.
    together = taylor(model, Mask.ones(model), context(TWO, loss=half_square))
    assert together["0.weight"].tolist() == [[1.0, 6.25]]


def test_fisher_by_hand() -> None:
    # Mean of squared slopes ((1 + 4) / 2, (1 + 36) / 2); times the squared weights (4, 1), halved.
    model = linear([[2.0, -1.0]])
    for batches in ([TWO], batches_of(*TWO, 1)):
        score = fisher(model, Mask.ones(model), context(*batches, loss=half_square))
        assert score["0.weight"].tolist() == [[5.0, 9.25]]


def test_taylor_and_fisher_equal_a_loop_of_backward_passes_in_eval_mode() -> None:
    model = network("mlp-bn-8-8", 6)
    data = examples(24, 6)
    batches, alone = batches_of(*data, 8), batches_of(*data, 1)
    found = {score: score(model.train(), Mask.ones(model), context(*batches)) for score in (taylor, fisher)}
    model.eval()
    by_batch, by_example = (mean_of(by_backward(model, some), power=2) for some in (batches, alone))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(found[taylor][name], weight**2 * by_batch[name], rtol=1e-10, atol=1e-18)
        torch.testing.assert_close(found[fisher][name], weight**2 * by_example[name] / 2, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("named", [False, True])
def test_fisher_takes_the_examples_of_a_batch_at_once_where_the_network_allows_it(named: bool) -> None:
    model, calls = network("mlp-bn-8", 6), list[int]()

    def forward(model: nn.Module, inputs: Any) -> Tensor:
        calls.append(1)
        return model(inputs["x"] if named else inputs)

    batches = batches_of(*examples(24, 6), 8)
    given = [(Fields(x=inputs), targets) for inputs, targets in batches] if named else batches
    fisher(model, Mask.ones(model), context(*given, forward=forward))
    assert len(calls) == 3


class Branching(nn.Module):
    """A path chosen by the data: torch.func cannot vectorise it."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = linear([[2.0, -1.0]]), linear([[1.0, 1.0]])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.positive(inputs) if inputs.sum() > 0 else self.negative(inputs)


def test_fisher_processes_examples_one_by_one_if_the_network_cannot_be_vectorised() -> None:
    model = Branching()
    # The third example takes the other branch: y = -3, slope (y - t) x = (-3)(-1, -2) = (3, 6).
    inputs = torch.cat([TWO[0], torch.tensor([[-1.0, -2.0]], dtype=torch.float64)])
    targets = torch.cat([TWO[1], torch.zeros(1, dtype=torch.float64)])
    score = fisher(model, Mask.ones(model), context((inputs, targets), loss=half_square))
    torch.testing.assert_close(score["positive.0.weight"][0], torch.tensor([10.0, 18.5], dtype=torch.float64) / 3)
    torch.testing.assert_close(score["negative.0.weight"][0], torch.tensor([1.5, 6.0], dtype=torch.float64))


def test_fisher_in_small_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("mlp-8", 6)
    data = context(examples(24, 6))
    whole = fisher(model, Mask.ones(model), data)
    # 72 weights: six examples at once. The function hides its module's name.
    monkeypatch.setattr(sys.modules[fisher.__module__], "_MAX_GRADIENTS", 500)
    pieces = fisher(model, Mask.ones(model), data)
    for name, score in whole.items():
        torch.testing.assert_close(pieces[name], score, rtol=1e-12, atol=0)
