"""What a score is."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from swamp.sparsity import Mask

Batches = Iterable[Any]
"""Batches of training examples, for the scores that look at data."""
Generator = torch.Generator
Score = Callable[[nn.Module, Mask, Batches, Generator], dict[str, Tensor]]
"""(model, mask, batches, generator) -> for each tensor of the mask a score of its shape; the largest are kept."""
