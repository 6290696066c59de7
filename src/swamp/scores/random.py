"""Random: the control that any criterion must beat."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.score import Evidence


def random(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Uniform random scores from the score's generator. Needs no data; the count of survivors is exact."""
    del model
    source = evidence.generator
    return {name: torch.rand(tensor.shape, generator=source, device=source.device) for name, tensor in mask.items()}
