"""SNIP: connection sensitivity."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.probe import check_loss, gradient, pruned_copy, scored_weights, some_batches
from swamp.scores.score import Evidence


def snip(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Connection sensitivity |g * w|, g the gradient of the mean loss over the examples (Lee et al. 2019).

    It is |dL/dc| at c = 1 of a factor c on the weight: how much the loss feels the connection. One gradient, over all
    examples looked at (at most `evidence.examples`, whole batches). BatchNorm uses batch statistics, as in training
    and as published; dropout is off. Float64 scores. Raises SwampError without data and for a loss that is not finite.
    """
    with pruned_copy(model, mask, evidence.generator, batch_statistics=True) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        seen = 0
        for inputs, targets in some_batches(evidence, "snip"):
            loss = evidence.loss(evidence.forward(copied, inputs), targets)
            check_loss(loss, "snip")
            for total, slope in zip(sums.values(), gradient(loss, list(weights.values())), strict=True):
                total.add_(slope, alpha=len(targets))
            seen += len(targets)
    return {name: (sums[name] / seen * weight.detach()).abs() for name, weight in weights.items()}
