"""SynFlow: synaptic flow, which needs no data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.probe import all_batches, gradient, pruned_copy, scored_weights
from swamp.scores.score import Evidence


def synflow(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Synaptic flow |dR/dw * w|, R the summed outputs on ones of the network of |w|; without data (Tanaka et al. 2020).

    Without biases and normalisation that is the flow over all paths through the weight: the product of the absolute
    weights along a path, summed. As in the authors' code every tensor of the state dict is made absolute, biases and
    BatchNorm statistics too, and the network is in eval mode, so that BatchNorm is linear. One round: the published
    100 rounds of exponentially falling density are a schedule. Looks at the shape of one example, never at its values.
    Computed in float64, the scores too. Raises SwampError for inputs that are no float tensor, and for a flow that is
    infinite or nowhere.
    """
    with pruned_copy(model, mask, evidence.generator) as copied:
        copied.double()
        with torch.no_grad():
            for tensor in copied.state_dict().values():
                if tensor.is_floating_point():
                    tensor.abs_()
        weights = scored_weights(copied, mask)
        flow = evidence.forward(copied, _ones(evidence)).sum()
        slopes = gradient(flow, list(weights.values()))
        scores = {
            name: (slope * weight.detach()).abs() for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
    _check(scores)
    return scores


def _ones(evidence: Evidence) -> Tensor:
    inputs: Any = next(all_batches(evidence, "synflow"))[0]
    kind = "a mapping" if isinstance(inputs, Mapping) else str(getattr(inputs, "dtype", type(inputs).__name__))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise SwampError(
            f"synflow sends an input of ones through the network, so it needs inputs that are a float tensor, and "
            f"these are {kind}: a network of token ids has no such flow. Take another score, e.g. snip or magnitude."
        )
    return torch.ones_like(inputs[:1], dtype=torch.float64)


def _check(scores: Mapping[str, Tensor]) -> None:
    if not all(bool(torch.isfinite(score).all()) for score in scores.values()):
        raise SwampError(
            "the synaptic flow has no finite value, even in float64: the absolute weights multiply from layer to layer "
            "beyond 1e308. Start from smaller initial weights, or take another score, e.g. snip."
        )
    if not any(bool(score.any()) for score in scores.values()):
        raise SwampError(
            "the synaptic flow is zero everywhere: no path of living weights leads from inputs to outputs, or the "
            "products along it vanish in float64. Prune less or in more rounds, or take another score, e.g. magnitude."
        )
