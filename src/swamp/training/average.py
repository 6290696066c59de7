"""Averages of weights. Sums run in float32 or better and are cast once, at the end."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks import gathered_copy, to_local

State = Mapping[str, Tensor]
"""A state dict: names to tensors."""


class RunningMean:
    """Mean of states, one pass, one state of memory: of equal weights, or an exponential moving average.

    Integer tensors (such as num_batches_tracked) are not averaged: the latest value stays. Zeros that all states
    share stay exactly zero, and the mean of one state is that state. So does a tensor with infinities in it (a buffer
    that masks attention) that is the same in all; where it is not, the mean is no number either.
    """

    def __init__(
        self, total: State | None = None, count: int = 0, like: State | None = None, *, decay: float = 0.0
    ) -> None:
        """Go on from `partial()` and `count` of an earlier mean of states that have the types of `like`.

        decay: what a state takes the mean's weight times (0: equal weights). It is at most (1 + t) / (10 + t) after t
        states, so that an average of few is not one of its first, as in TensorFlow's ExponentialMovingAverage.
        """
        self.count, self.decay = count, decay
        self._mean: dict[str, Tensor] = dict(total or {})
        self._infinite = {name for name, tensor in self._mean.items() if _has_infinity(tensor)}
        self._types = {name: tensor.dtype for name, tensor in (like or {}).items()}

    @torch.no_grad()
    def add(self, state: State) -> None:
        """Take one more state into the mean."""
        if self._mean and _shapes(self._mean) != _shapes(state):
            raise SwampError("states of different models cannot be averaged: their names or shapes differ.")
        kept: list[Tensor] = []
        added: list[Tensor] = []
        for name, tensor in state.items():
            self._types[name] = tensor.dtype
            if name in self._infinite and torch.equal(self._mean[name], tensor.to(self._mean[name])):
                continue
            if name in self._mean and tensor.is_floating_point():
                # A particle read back from disk may lie on another device than one just trained.
                place = to_local(self._mean[name])
                kept.append(place)
                added.append(to_local(tensor.detach()).to(place))
            else:
                self._mean[name] = tensor.detach().to(_wide(tensor.dtype), copy=True)
                if _has_infinity(tensor):
                    self._infinite.add(name)
        if kept:
            torch._foreach_lerp_(kept, added, self._share())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        self.count += 1

    def _share(self) -> float:
        """The weight of the state that comes next."""
        if self.decay:
            return 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        return 1 / (self.count + 1)

    def mean(self) -> dict[str, Tensor]:
        """The mean, in the types that were added."""
        if not self.count:
            raise SwampError("the mean of no state is undefined: add one first.")
        return {name: tensor.to(self._types.get(name, tensor.dtype), copy=True) for name, tensor in self._mean.items()}

    def partial(self) -> dict[str, Tensor]:
        """The uncast mean so far, whole, to be stored and handed back as `total`."""
        return {name: gathered_copy(tensor) for name, tensor in self._mean.items()}


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
        # What is equal stays, as the difference of two infinities is no number.
        name: torch.where(tensor == b[name], tensor, tensor.lerp(b[name], share))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in a.items()
    }


def _shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _has_infinity(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(to_local(tensor).isfinite().all())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
