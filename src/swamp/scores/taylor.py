"""Taylor: what the loss would change by, to first order."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.probe import check_loss, gradient, pruned_copy, scored_weights, some_batches
from swamp.scores.score import Evidence


def taylor(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Squared first-order change of the loss, mean over batches of (g * w)^2 (Molchanov et al. 2019).

    g is the gradient of one batch's mean loss: squared batch by batch, slopes of opposite signs do not cancel, as
    they do in SNIP. Each batch counts alike (whole batches, at most `evidence.examples` examples in all). Eval mode:
    BatchNorm uses its running statistics, dropout is off. Float64 scores. Raises SwampError without data and for a
    loss that is not finite.
    """
    with pruned_copy(model, mask, evidence.generator) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        count = 0
        for inputs, targets in some_batches(evidence, "taylor"):
            loss = evidence.loss(evidence.forward(copied, inputs), targets)
            check_loss(loss, "taylor")
            for total, slope in zip(sums.values(), gradient(loss, list(weights.values())), strict=True):
                total.add_(slope.double().square())
            count += 1
    return {name: sums[name] / count * weight.detach().double().square() for name, weight in weights.items()}
