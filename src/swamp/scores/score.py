"""What a score is, and what it may look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError
from swamp.masks import Mask


def call(model: nn.Module, inputs: Any) -> Tensor:
    """`model(inputs)`."""
    return model(inputs)


@dataclass(frozen=True)
class Evidence:
    """What a score may look at besides the weights.

    generator: the score's own random numbers.
    batches: called for a fresh pass over batches of (inputs, targets) on the model's device; None: there is no data.
    forward: (model, inputs) -> outputs. loss: (outputs, targets) -> scalar, the mean over the batch.
    examples: how many training examples a score takes, at most.
    """

    generator: torch.Generator
    batches: Callable[[], Iterable[tuple[Any, Tensor]]] | None = None
    forward: Callable[[nn.Module, Any], Tensor] = call
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy
    examples: int = 1000

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise SwampError(f"a score takes 1 example or more, got examples={self.examples}.")


Score = Callable[[nn.Module, Mask, Evidence], dict[str, Tensor]]
"""(model, mask, evidence) -> for each tensor of the mask a score of its shape; the largest are kept.

It scores the pruned network: living weights as they are, the others zero. Model and global generator stay as they were.
"""
