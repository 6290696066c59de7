"""Fisher: what the loss would change by, to second order, where the first order is spent."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from swamp.masks import Mask
from swamp.scores.probe import check_loss, gradient, pruned_copy, rows, scored_weights, some_batches
from swamp.scores.score import Evidence

_GRADIENTS_AT_ONCE = 2**26
"""Numbers that the gradients of the examples taken together may have: 256 MB in float32."""


def fisher(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Second-order change of the loss by the empirical Fisher, w^2 * mean over examples of g^2 / 2 (Theis et al. 2018).

    It is w^2 H_qq / 2, what removing one weight of a trained network costs, with the diagonal of the empirical Fisher
    for the Hessian's (as in Singh & Alistarh 2020): g is the gradient of one example's loss at its own target. At most
    `evidence.examples` examples, whole batches. Eval mode: BatchNorm uses its running statistics, dropout is off.
    Vectorised over examples by torch.func where the network allows it, else one by one: equal to rounding. Float64
    scores. Raises SwampError without data and for a loss that is not finite.
    """
    with pruned_copy(model, mask, evidence.generator) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        squares = _Squares(copied, evidence, weights)
        seen = 0
        for inputs, targets in some_batches(evidence, "fisher"):
            for start in range(0, len(targets), squares.at_once):
                part = slice(start, start + squares.at_once)
                for name, square in squares.of(rows(inputs, part), targets[part]).items():
                    sums[name] += square
            seen += len(targets)
    return {name: sums[name] / (2 * seen) * weight.detach().double().square() for name, weight in weights.items()}


class _Called(nn.Module):
    """The model called the task's way, so that torch.func can hand it other weights."""

    def __init__(self, model: nn.Module, evidence: Evidence) -> None:
        super().__init__()
        self.model, self.evidence = model, evidence

    def forward(self, inputs: Any) -> Tensor:
        return self.evidence.forward(self.model, inputs)


class _Squares:
    """Sums over examples of squared gradients."""

    def __init__(self, model: nn.Module, evidence: Evidence, weights: dict[str, Tensor]) -> None:
        self.called, self.evidence, self.weights = _Called(model, evidence), evidence, weights
        self.at_once = max(1, _GRADIENTS_AT_ONCE // sum(weight.numel() for weight in weights.values()))
        self.vectorised = True

    def of(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        if self.vectorised:
            try:
                return self.together(inputs, targets)
            except (RuntimeError, ValueError):
                # Some networks cannot be vectorised; an error of the network's own comes again, one by one.
                self.vectorised = False
        return self.one_by_one(inputs, targets)

    def together(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        values = {f"model.{name}": weight.detach() for name, weight in self.weights.items()}
        each: Any = vmap(grad_and_value(self.loss), in_dims=(None, 0, 0))
        slopes, losses = each(values, inputs, targets)
        check_loss(losses, "fisher")
        return {name: slopes[f"model.{name}"].double().square().sum(0) for name in self.weights}

    def loss(self, values: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.called, values, (rows(inputs, None),))
        return self.evidence.loss(outputs, target[None])

    def one_by_one(self, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in self.weights.items()}
        for row in range(len(targets)):
            alone = slice(row, row + 1)
            loss = self.evidence.loss(self.called(rows(inputs, alone)), targets[alone])
            check_loss(loss, "fisher")
            for name, slope in zip(sums, gradient(loss, list(self.weights.values())), strict=True):
                sums[name] += slope.double().square()
        return sums
