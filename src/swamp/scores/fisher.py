"""Fisher: second-order change of the loss at a minimum."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from swamp.batches import map_tensors, rows_of
from swamp.masks import Mask
from swamp.scores.context import (
    ScoringContext,
    check_loss,
    gradient,
    pruned_copy,
    refuse_batch_statistics,
    scored_weights,
    some_batches,
    square,
    squared_effect,
)

_MAX_GRADIENTS = 2**26
"""Most gradient values computed at a time, over examples and weights: 256 MB in float32."""


def fisher(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Second-order change of the loss by the empirical Fisher, w^2 * mean over examples of g^2 / 2 (Theis et al. 2018).

    This is w^2 H_qq / 2, the cost of removing one weight of a trained network, with the diagonal of the empirical
    Fisher matrix in place of the Hessian's (as in Singh & Alistarh 2020): g is the gradient of one example's loss at
    its own target. Eval mode: BatchNorm uses its running statistics, dropout is off. Vectorised over examples by
    torch.func where the network supports it, otherwise one example at a time; both agree to rounding.

    Args:
        model: The network; it is not changed.
        mask: The current mask; pruned weights count as zero.
        context: Data and loss. Whole batches are used, at most `context.examples` examples.

    Returns:
        Name to float64 scores of the weight's shape.

    Raises:
        SwampError: Without data, for BatchNorm without running statistics, and for a loss that is not finite.
    """
    refuse_batch_statistics(model, "fisher")
    with pruned_copy(model, mask, context.generator) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        squares = _Squares(copied, context, weights)
        seen = 0
        for inputs, targets in some_batches(context, "fisher"):
            for start in range(0, len(targets), squares.chunk):
                part = slice(start, start + squares.chunk)
                for name, square in squares.of(rows_of(inputs, part), targets[part]).items():
                    sums[name] += square
            seen += len(targets)
    return {name: squared_effect(sums[name] / (2 * seen), weight) for name, weight in weights.items()}


class _Called(nn.Module):
    """The model with the context's forward, so that torch.func can replace its weights."""

    def __init__(self, model: nn.Module, context: ScoringContext) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(self, inputs: Any) -> Tensor:
        return self.context.forward(self.model, inputs)


class _Squares:
    """Sums over examples of squared gradients."""

    def __init__(self, model: nn.Module, context: ScoringContext, weights: dict[str, Tensor]) -> None:
        self.called, self.context, self.weights = _Called(model, context), context, weights
        self.chunk = max(1, _MAX_GRADIENTS // sum(weight.numel() for weight in weights.values()))
        self.vectorised = True

    def of(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        if self.vectorised:
            try:
                return self.vmapped(inputs, targets)
            except (RuntimeError, ValueError):
                # Some networks cannot be vectorised. An error of the network itself is raised again below.
                self.vectorised = False
        return self.sequential(inputs, targets)

    def vmapped(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        values = {f"model.{name}": weight.detach() for name, weight in self.weights.items()}
        each: Any = vmap(grad_and_value(self.loss), in_dims=(None, 0, 0))
        gradients, losses = each(values, inputs, targets)
        check_loss(losses, "fisher")
        return {name: square(gradients[f"model.{name}"], weight).sum(0) for name, weight in self.weights.items()}

    def loss(self, values: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.called, values, (map_tensors(lambda tensor: tensor[None], inputs),))
        return self.context.loss(outputs, target[None])

    def sequential(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in self.weights.items()}
        for row in range(len(targets)):
            one = slice(row, row + 1)
            loss = self.context.loss(self.called(rows_of(inputs, one)), targets[one])
            check_loss(loss, "fisher")
            for name, grad in zip(sums, gradient(loss, list(self.weights.values())), strict=True):
                sums[name] += square(grad, self.weights[name])
        return sums
