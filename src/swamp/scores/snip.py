"""SNIP: connection sensitivity."""

from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.context import ScoringContext, batch_gradients, effect, pruned_copy, scored_weights, wide_zeros


def snip(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Connection sensitivity |g * w|, g the gradient of the mean loss over the examples (Lee et al. 2019).

    |g * w| is |dL/dc| at c = 1 for a factor c on the weight. BatchNorm uses batch statistics, as in training and as
    published; dropout is off.

    Args:
        model: The network; it is not changed.
        mask: The current mask; pruned weights count as zero.
        context: Data and loss. Whole batches are used, at most `context.examples` examples.

    Returns:
        Name to float64 scores of the weight's shape.

    Raises:
        SwampError: Without data, and for a loss that is not finite.
    """
    with pruned_copy(model, mask, context.generator, batch_statistics=True) as copied:
        weights = scored_weights(copied, mask)
        sums = {name: wide_zeros(weight) for name, weight in weights.items()}
        seen = 0
        for count, gradients in batch_gradients(copied, list(weights.values()), context, "snip"):
            for total, grad in zip(sums.values(), gradients, strict=True):
                total.add_(grad, alpha=count)
            seen += count
    return {name: effect(sums[name] / seen, weight.detach()).abs() for name, weight in weights.items()}
