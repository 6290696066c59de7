"""Floating-point operations (FLOPs) per example, for the active weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from swamp.batches import batch_to
from swamp.errors import first_line, warn
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training.data import BatchList, Data
from swamp.training.flop_trace import trace_flops
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.streams import StreamData
from swamp.training.task import Task

_FORWARDS_PER_STEP = 3
"""A training step costs three forward passes: one forward and two backward (Evci et al. 2020, appendix H)."""
_BATCHES = 4
"""Batches of a BatchList that are counted, evenly spaced: their sizes may differ."""


@dataclass(frozen=True, eq=False)
class FlopCounter:
    """FLOPs of one example in the matrix products, convolutions and attention products of a model.

    Dense, this is what torch's FlopCounterMode counts. An active weight costs two FLOPs, a multiplication and an
    addition, each time it is used: per sequence position, per output position of a convolution (padding included), per
    input position of a transposed convolution. Products of activations, as in attention, cost the same for every mask.
    Nothing else is counted, as in RigL (Evci et al. 2020, appendix H): normalisation, activations, biases, pooling, and
    the rows that an embedding looks up.

    Args:
        uses: Parameter name -> multiplications of each element in one forward pass: one number for all elements, or
            a tensor of the parameter's shape; float64. Parameters that no product uses are left out.
        sizes: Parameter name -> number of its elements.
        activations: FLOPs of products without a parameter.

    Examples:
        >>> import torch
        >>> data = torch.randn(6, 8), torch.zeros(6, dtype=torch.long)
        >>> flops = FlopCounter.of(torch.nn.Linear(8, 3), Task.of(train=data, test=data))
        >>> flops.forward(None)
        48.0
    """

    uses: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    activations: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> "FlopCounter":
        """Count on the first example of the training data, on a copy of the model in eval mode.

        A BatchList is counted on four of its batches, as the mean over their examples. If the forward pass fails, a
        warning is given and each weight is counted once, as in a network of linear layers.
        """
        fresh = copied_model(model).eval()
        sizes = {name: parameter.numel() for name, parameter in fresh.named_parameters()}
        device = next(fresh.parameters()).device
        examples = 0

        def run() -> None:
            nonlocal examples
            for batch in _batches(task.train):
                inputs, targets = batch_to(batch, device)
                task.forward(fresh, to_memory_format_of(fresh, inputs))
                examples += len(targets)

        try:
            with isolated(Seed(0).at("operations"), device):
                total, found = trace_flops(fresh, run)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = first_line(error)
            warn(f"FLOPs count every weight once: the forward pass of one example failed ({reason}).")
            matrices = [name for name, parameter in fresh.named_parameters() if parameter.dim() > 1]
            return cls({name: torch.ones((), dtype=torch.float64) for name in matrices}, sizes)
        uses = {name: times / examples for name, times in found.items()}
        dense = sum(2 * _total(times, sizes[name]) for name, times in uses.items())
        return cls(uses, sizes, max(0.0, total / examples - dense))

    def by_layer(self, mask: Mask | None) -> dict[str, float]:
        """FLOPs of the forward pass of one example, per parameter. Parameters not in `mask` count as dense."""
        found: dict[str, float] = {}
        for name, times in self.uses.items():
            active = None if mask is None else mask.get(name)
            if active is None:
                found[name] = 2 * _total(times, self.sizes[name])
            elif times.dim():
                found[name] = 2 * float((times * active.cpu()).sum())
            else:
                found[name] = 2 * float(times) * int(active.count_nonzero())
        return found

    def forward(self, mask: Mask | None) -> float:
        """FLOPs of the forward pass of one example. mask: None for the dense model."""
        return sum(self.by_layer(mask).values()) + self.activations

    def training_step(self, mask: Mask | None, training: Training) -> float:
        """FLOPs of a training step per example: three times the forward pass; six times with SAM and ASAM."""
        return _FORWARDS_PER_STEP * training.passes * self.forward(mask)


def examples_per_step(data: Data, batch_size: int) -> float:
    """Examples of one training step; of batches that were given as they are, the mean over an epoch."""
    if isinstance(data, StreamData):
        return data.batch_examples(batch_size)
    return len(data) / data.steps(batch_size) if isinstance(data, BatchList) else min(batch_size, len(data))


def _total(times: Tensor, size: int) -> float:
    return float(times.sum()) if times.dim() else float(times) * size


def _batches(data: Data) -> Iterator[Any]:
    if not isinstance(data, BatchList):
        return islice(data.in_order(1), 1)
    count = len(data.batches)
    every = max(1, -(-count // _BATCHES))
    return islice(data.in_order(1), 0, None, every)
