"""Each criterion's mask equals, weight for weight, that of an independent computation, on an MLP and on ResNet-20."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from swamp.masks import Mask, prune_mask
from swamp.scores import SCORES

from .networks import batches_of, by_backward, context, examples, mean_of, network, weights_of

Batches = list[tuple[Tensor, Tensor]]
Scores = dict[str, Tensor]
Scored = Callable[[nn.Module, Batches], Scores]
NETWORKS = {"mlp-bn-20-20": (6,), "resnet-20": (3, 8, 8)}


def magnitude(model: nn.Module, batches: Batches) -> Scores:
    del batches
    return {name: weight.abs() for name, weight in weights_of(model).items()}


def snip(model: nn.Module, batches: Batches) -> Scores:
    slopes = mean_of(by_backward(model.train(), batches))
    return {name: (slopes[name] * weight).abs() for name, weight in weights_of(model).items()}


def grasp(model: nn.Module, batches: Batches) -> Scores:
    """By autograd's own Hessian-vector product."""
    weights = weights_of(model.train())

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip(weights, values, strict=True))
        return torch.stack([F.cross_entropy(functional_call(model, given, (x,)) / 200, t) for x, t in batches]).mean()

    values = tuple(weights.values())
    slopes: Any = torch.autograd.functional.jacobian(loss, values)
    product: Any = torch.autograd.functional.hvp(loss, values, slopes)[1]
    return {name: weight * hg for (name, weight), hg in zip(weights.items(), product, strict=True)}


def synflow(model: nn.Module, batches: Batches) -> Scores:
    """By a factor on each weight of the network of absolute values, at factor one."""
    state = {name: value.abs() for name, value in model.eval().state_dict().items()}
    ones = torch.ones(1, *batches[0][0].shape[1:], dtype=torch.float64)
    weights = weights_of(model)

    def flow(*factors: Tensor) -> Tensor:
        scaled = {name: factor * state[name] for name, factor in zip(weights, factors, strict=True)}
        return functional_call(model, {**state, **scaled}, (ones,)).sum()

    slopes: Any = torch.autograd.functional.jacobian(flow, tuple(torch.ones_like(one) for one in weights.values()))
    return {name: slope.abs() for name, slope in zip(weights, slopes, strict=True)}


def taylor(model: nn.Module, batches: Batches) -> Scores:
    squares = mean_of(by_backward(model.eval(), batches), power=2)
    return {name: weight**2 * squares[name] for name, weight in weights_of(model).items()}


def fisher(model: nn.Module, batches: Batches) -> Scores:
    alone = [one for inputs, targets in batches for one in batches_of(inputs, targets, 1)]
    squares = mean_of(by_backward(model.eval(), alone), power=2)
    return {name: weight**2 * squares[name] / 2 for name, weight in weights_of(model).items()}


INDEPENDENT: dict[str, Scored] = {
    "magnitude": magnitude,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "taylor": taylor,
    "fisher": fisher,
}


def kept_by(scored: Scored, model: nn.Module, mask: Mask, batches: Batches, kept: int) -> dict[str, Any]:
    """The `kept` active weights with the largest scores over all tensors, by a stable sort; ties: the earlier stays."""
    pruned = copy.deepcopy(model)
    mask.apply_(pruned)
    found = scored(pruned, batches)
    scores = [np.where(mask[name].numpy(), found[name].numpy(), -np.inf) for name in mask]
    flat = np.concatenate([score.reshape(-1) for score in scores])
    chosen = np.zeros(len(flat), dtype=bool)
    chosen[np.argsort(-flat, kind="stable")[:kept]] = True
    ends = np.cumsum([score.size for score in scores])[:-1]
    pieces = np.split(chosen, ends)
    return {name: piece.reshape(mask[name].shape) for name, piece in zip(mask, pieces, strict=True)}


def test_every_criterion_but_chance_has_an_independent_computation() -> None:
    assert {"random", *INDEPENDENT} == set(SCORES)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("criterion", INDEPENDENT)
def test_masks_agree_weight_for_weight(criterion: str, architecture: str) -> None:
    shape = NETWORKS[architecture]
    model = network(architecture, *shape)
    # 30 examples, ten of each class, in equal batches: what grasp takes is all there is, in its own parts.
    batches = batches_of(*examples(30, *shape), 15 if criterion == "grasp" else 10)
    mask = Mask.ones(model)
    data = context(*batches)
    # From dense, and from half the weights: the pruned network is what is scored.
    for density in (0.5, 0.1):
        kept = round(density * mask.prunable)
        expected = kept_by(INDEPENDENT[criterion], model, mask, batches, kept)
        smaller = prune_mask(mask, SCORES[criterion](model, mask, data), kept)
        assert smaller.nnz == kept
        wrong = [name for name, tensor in smaller.items() if not np.array_equal(tensor.numpy(), expected[name])]
        assert not wrong
        mask = smaller
