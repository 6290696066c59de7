"""Random: the control that any criterion must beat."""

import torch
from torch import Tensor, nn

from swamp.scores.score import Batches, Generator
from swamp.sparsity import Mask


def random(model: nn.Module, mask: Mask, batches: Batches, generator: Generator) -> dict[str, Tensor]:
    """Uniform random scores from `generator`. Needs no data; the count of survivors is exact, not Bernoulli."""
    del model, batches
    return {
        name: torch.rand(tensor.shape, generator=generator, device=generator.device) for name, tensor in mask.items()
    }
