"""SynFlow: synaptic flow, without data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swamp.errors import SwampError, shortened
from swamp.masks import Mask
from swamp.scores.context import (
    ScoringContext,
    all_batches,
    gradient,
    pruned_copy,
    refuse_batch_statistics,
    scored_weights,
)


def synflow(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Synaptic flow |dR/dw * w|, R the sum of outputs of the network of |w| on an input of ones (Tanaka et al. 2020).

    Without biases and normalisation this is the sum over all paths through the weight of the product of the absolute
    weights on the path. As in the authors' code every tensor of the state dict is made absolute, biases and BatchNorm
    statistics included, and the network is in eval mode, so that BatchNorm is linear. This function is one round; the
    published 100 rounds of exponentially falling density are a schedule. Computed in float64.

    Args:
        model: The network; it is not changed.
        mask: The current mask; pruned weights count as zero.
        context: Only the shape of one example is used, not its values.

    Returns:
        Name to float64 scores of the weight's shape.

    Raises:
        SwampError: For complex weights, for BatchNorm without running statistics, for inputs that are not a float
            tensor, and for a flow that is infinite or zero everywhere.
    """
    imaginary = [name for name, parameter in model.named_parameters() if parameter.is_complex()]
    if imaginary:
        raise SwampError(
            f"synflow is defined for real weights, and {shortened(imaginary)} are complex. Choose another score, e.g. "
            "snip or magnitude."
        )
    refuse_batch_statistics(model, "synflow")
    with pruned_copy(model, mask, context.generator) as copied:
        copied.double()
        with torch.no_grad():
            values: dict[str, Any] = copied.state_dict()
            for tensor in values.values():
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    tensor.abs_()
        weights = scored_weights(copied, mask)
        flow = context.forward(copied, _ones(context)).sum()
        gradients = gradient(flow, list(weights.values()))
        scores = {
            name: (grad * weight.detach()).abs()
            for (name, weight), grad in zip(weights.items(), gradients, strict=True)
        }
    _check(scores)
    return scores


def _ones(context: ScoringContext) -> Tensor:
    inputs: Any = next(all_batches(context, "synflow"))[0]
    kind = "a mapping" if isinstance(inputs, Mapping) else str(getattr(inputs, "dtype", type(inputs).__name__))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise SwampError(
            f"synflow evaluates the network on an input of ones, so the inputs must be a float tensor, got {kind}. "
            "Choose another score, e.g. snip or magnitude."
        )
    return torch.ones_like(inputs[:1], dtype=torch.float64)


def _check(scores: Mapping[str, Tensor]) -> None:
    if not all(bool(torch.isfinite(score).all()) for score in scores.values()):
        raise SwampError(
            "the synaptic flow is infinite, even in float64: products of absolute weights over layers exceed 1e308. "
            "Use smaller initial weights, or choose another score, e.g. snip."
        )
    if not any(bool(score.any()) for score in scores.values()):
        raise SwampError(
            "the synaptic flow is zero everywhere: no path of active weights connects inputs and outputs, or the "
            "products on it underflow float64. Prune less or in more rounds, or choose another score, e.g. magnitude."
        )
