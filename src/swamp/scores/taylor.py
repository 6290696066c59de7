"""Taylor: first-order change of the loss."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.context import ScoringContext, batch_gradients, pruned_copy, scored_weights, square, squared_effect


def taylor(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Squared first-order change of the loss, mean over batches of (g * w)^2 (Molchanov et al. 2019).

    g is the gradient of the mean loss of one batch. Squared batch by batch, gradients of opposite signs do not cancel,
    as they do in SNIP. All batches have equal weight. Eval mode: BatchNorm uses its running statistics, dropout is off.

    Args:
        model: The network; it is not changed.
        mask: The current mask; pruned weights count as zero.
        context: Data and loss. Whole batches are used, at most `context.examples` examples.

    Returns:
        Name to float64 scores of the weight's shape.

    Raises:
        SwampError: Without data, and for a loss that is not finite.
    """
    with pruned_copy(model, mask, context.generator) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        batches = 0
        for _, gradients in batch_gradients(copied, list(weights.values()), context, "taylor"):
            for (name, weight), grad in zip(weights.items(), gradients, strict=True):
                sums[name].add_(square(grad, weight))
            batches += 1
    return {name: squared_effect(sums[name] / batches, weight) for name, weight in weights.items()}
