import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.grasp import grasp

from .networks import batches_of, context, examples, linear, network


def quadratic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance to one-hot targets, of logits that grasp has divided by 200."""
    return (200 * outputs - F.one_hot(targets, outputs.shape[1])).square().sum(1).mean() / 2


def ten_of_each() -> tuple[Tensor, Tensor]:
    """Class 0 is x = 1, class 1 is x = 2."""
    targets = torch.arange(20) % 2
    return (1.0 + targets.double())[:, None], targets


def test_grasp_by_hand() -> None:
    # Two outputs w_c x, w = (3, -1). H_cc = mean x^2 = (1 + 4) / 2 = 2.5. g_c = 2.5 w_c - mean of x where t = c:
    # g = (7.5 - 0.5, -2.5 - 1) = (7, -3.5); H g = (17.5, -8.75); times w = (52.5, 8.75).
    model = linear([[3.0], [-1.0]])
    score = grasp(model, Mask.ones(model), context(ten_of_each(), loss=quadratic))
    torch.testing.assert_close(score["0.weight"], torch.tensor([[52.5], [8.75]], dtype=torch.float64))


def test_what_grasp_keeps_preserves_more_gradient_flow_than_what_it_removes() -> None:
    def flow(model: nn.Sequential) -> float:
        inputs, targets = ten_of_each()
        (slope,) = torch.autograd.grad(quadratic(model(inputs) / 200, targets), list(model.parameters()))
        return float(slope.square().sum())

    # 61.25 = 7^2 + 3.5^2 with both. Without the first weight g_0 = -0.5, without the second g_1 = -1.
    assert flow(linear([[3.0], [-1.0]])) == pytest.approx(61.25)
    assert flow(linear([[3.0], [0.0]])) == pytest.approx(50.0)
    assert flow(linear([[0.0], [-1.0]])) == pytest.approx(12.5)
    # A weight that the flow is better off without scores below zero: w = (-0.1, 1), g = (-0.75, 1.5).
    better_without = linear([[-0.1], [1.0]])
    score = grasp(better_without, Mask.ones(better_without), context(ten_of_each(), loss=quadratic))["0.weight"]
    torch.testing.assert_close(score, torch.tensor([[0.1875], [3.75]], dtype=torch.float64))


def test_grasp_equals_the_full_hessian_of_a_small_network() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = examples(30, 4)
    weights = {name: dict(model.named_parameters())[name].detach() for name in Mask.ones(model)}

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([weight.numel() for weight in weights.values()])
        values = {name: piece.view_as(weights[name]) for name, piece in zip(weights, pieces, strict=True)}
        return F.cross_entropy(functional_call(model, values, (inputs,)) / 200, targets)

    flat = torch.cat([weight.flatten() for weight in weights.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    slope = torch.autograd.functional.jacobian(loss, flat)
    expected = flat * (hessian @ slope)
    for size in (30, 30, 10, 7):
        # Whatever the batches: of the mean loss over the 30 there is one Hessian.
        scores = grasp(model, Mask.ones(model), context(*batches_of(inputs, targets, size)))
        found = torch.cat([score.flatten() for score in scores.values()])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-20)


def test_grasp_takes_the_first_ten_examples_of_each_class() -> None:
    model = network("mlp-8", 6)
    inputs, _ = examples(70, 6)
    # Class 0 forty times, then classes 1 and 2 in turns.
    targets = torch.tensor([0] * 40 + [1, 2] * 15)
    chosen = torch.tensor([*range(10), *range(40, 60)])
    seen: list[int] = []

    def forward(model: nn.Module, given: Tensor) -> Tensor:
        seen.append(len(given))
        return model(given)

    among = grasp(model, Mask.ones(model), context(*batches_of(inputs, targets, 7), forward=forward))
    alone = grasp(model, Mask.ones(model), context((inputs[chosen], targets[chosen])))
    for name, score in alone.items():
        torch.testing.assert_close(among[name], score, rtol=1e-9, atol=1e-20)
    # One batch to count the outputs; then 30 examples twice, in parts of at most 7.
    assert seen == [7, *2 * [6, 6, 6, 6, 6]]


def test_grasp_of_a_loss_without_curvature_is_zero() -> None:
    model = linear([[3.0], [-1.0]])
    score = grasp(model, Mask.ones(model), context(ten_of_each(), loss=lambda outputs, _: outputs.mean()))
    assert not score["0.weight"].any()


def test_grasp_says_when_classes_are_missing() -> None:
    model = network("mlp-8", 6, classes=5)
    with pytest.raises(
        SwampError, match=r"10 examples of each class and found them for 3 of 5 classes.*Provide more data"
    ):
        grasp(model, Mask.ones(model), context(examples(60, 6)))


def test_grasp_says_how_many_examples_it_needs() -> None:
    model = network("mlp-8", 6)
    with pytest.raises(
        SwampError, match=r"each of 3 classes, and the limit is 29 in total\. Raise score_examples to 30"
    ):
        grasp(model, Mask.ones(model), context(examples(60, 6), examples=29))
    assert grasp(model, Mask.ones(model), context(examples(60, 6), examples=30))


@pytest.mark.parametrize("targets", [torch.zeros(60), torch.zeros(60, 2, dtype=torch.long)])
def test_grasp_refuses_targets_that_are_no_classes(targets: Tensor) -> None:
    model = network("mlp-8", 6)
    with pytest.raises(SwampError, match=r"by class.*\(60, 3\).*Choose another score"):
        grasp(model, Mask.ones(model), context((examples(60, 6)[0], targets)))
