"""Averages of weights. Sums run in float32 or better and are cast once, at the end."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.sparsity import gathered, own

State = Mapping[str, Tensor]
"""A state dict: names to tensors."""


class RunningMean:
    """Equal-weight mean of states, one pass, one state of memory.

    Integer tensors (such as num_batches_tracked) are not averaged: the latest value stays. Zeros that all states
    share stay exactly zero, and the mean of one state is that state.
    """

    def __init__(self, total: State | None = None, count: int = 0, like: State | None = None) -> None:
        """Go on from `partial()` and `count` of an earlier mean of states that have the types of `like`."""
        self.count = count
        self._mean: dict[str, Tensor] = dict(total or {})
        self._types = {name: tensor.dtype for name, tensor in (like or {}).items()}

    @torch.no_grad()
    def add(self, state: State) -> None:
        """Take one more state into the mean."""
        if self._mean and _shapes(self._mean) != _shapes(state):
            raise SwampError("states of different models cannot be averaged: their names or shapes differ.")
        self.count += 1
        for name, tensor in state.items():
            self._types[name] = tensor.dtype
            wide = tensor.detach().to(_wide(tensor.dtype), copy=True)
            if name in self._mean and wide.is_floating_point():
                # A particle read back from disk may lie on another device than one just trained.
                kept = own(self._mean[name])
                kept.lerp_(own(wide).to(kept.device), 1 / self.count)
            else:
                self._mean[name] = wide

    def mean(self) -> dict[str, Tensor]:
        """The mean, in the types that were added."""
        if not self.count:
            raise SwampError("the mean of no state is undefined: add one first.")
        return {name: tensor.to(self._types.get(name, tensor.dtype), copy=True) for name, tensor in self._mean.items()}

    def partial(self) -> dict[str, Tensor]:
        """The uncast mean so far, whole, to be stored and handed back as `total`."""
        return {name: gathered(tensor) for name, tensor in self._mean.items()}


def copied(state: State) -> dict[str, Tensor]:
    """A state that later training does not reach."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def mean(states: Iterable[State]) -> dict[str, Tensor]:
    """Equal-weight mean of states (a uniform soup)."""
    running = RunningMean()
    for state in states:
        running.add(state)
    return running.mean()


def interpolate(a: State, b: State, share: float) -> dict[str, Tensor]:
    """(1 - share) * a + share * b, elementwise; integer tensors are a's. Exact at both ends."""
    if share in (0, 1):
        return dict(b if share else a)
    return {
        name: (torch.lerp(tensor, b[name], share) if tensor.is_floating_point() else tensor)
        for name, tensor in a.items()
    }


def _shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
