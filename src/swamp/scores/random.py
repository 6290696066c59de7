"""Random: the control that any criterion must beat."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.context import ScoringContext


def random(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Uniform random scores: the control that any criterion must beat. Needs no data.

    Args:
        model: Not used.
        mask: Names and shapes of the weights to score.
        context: Its generator draws the scores.

    Returns:
        Name to float32 scores in [0, 1) of the weight's shape.
    """
    del model
    source = context.generator
    return {name: torch.rand(tensor.shape, generator=source, device=source.device) for name, tensor in mask.items()}
