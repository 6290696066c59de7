"""Averages of weights. Sums run in float32 or better and are cast once, at the end."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks.dtensor import gathered_copy, to_local
from swamp.training.module_extra_state import as_tensors, is_extra_state

State = Mapping[str, Tensor]
"""A state dict: names to tensors."""


class RunningMean:
    """Mean of state dicts in one pass: the uniform mean, or an exponential moving average.

    Memory for one state is needed, whatever their number. Sums are in float32 or better; complex tensors are averaged
    too. Integer tensors (such as num_batches_tracked) and extra state keep the latest value. Zeros that all states
    share stay exactly zero, and the mean of one state equals it. A tensor with infinities, such as an attention mask,
    is kept if it is equal in all states; otherwise the mean is not finite.

    Args:
        total: `partial()` of an earlier mean, to continue it.
        count: `count` of the earlier mean.
        like: A state with the dtypes of the result, needed if no state is added to the earlier mean.
        decay: Decay of an exponential moving average (0: uniform mean). After t states it is at most
            (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage: the first state is forgotten sooner.

    Examples:
        >>> import torch
        >>> running = RunningMean()
        >>> for value in (1.0, 2.0, 6.0):
        ...     running.add({"weight": torch.tensor([value])})
        >>> running.mean(), running.count
        ({'weight': tensor([3.])}, 3)
    """

    def __init__(
        self, total: State | None = None, count: int = 0, like: State | None = None, *, decay: float = 0.0
    ) -> None:
        self.count, self.decay = count, decay
        self._mean = copied(total or {})
        self._infinite = {name for name, tensor in self._mean.items() if _has_infinity(tensor)}
        self._types = {name: tensor.dtype for name, tensor in (like or {}).items()}

    @torch.no_grad()
    def add(self, state: State) -> None:
        """Add a state to the mean. Raises SwampError if its names or shapes differ from the earlier states."""
        state = as_tensors(state)
        if self._mean and _shapes(self._mean) != _shapes(state):
            raise SwampError("states of different models cannot be averaged: their names or shapes differ.")
        means: list[Tensor] = []
        added: list[Tensor] = []
        for name, tensor in state.items():
            self._types[name] = tensor.dtype
            if name in self._infinite and torch.equal(self._mean[name], tensor.to(self._mean[name])):
                continue
            if name in self._mean and is_inexact(tensor) and not is_extra_state(name):
                # A particle that was read from disk may be on another device than a trained one.
                current = to_local(self._mean[name])
                means.append(current)
                added.append(to_local(tensor.detach()).to(current))
            else:
                self._mean[name] = tensor.detach().to(_wide(tensor.dtype), copy=True)
                if _has_infinity(tensor):
                    self._infinite.add(name)
        if means:
            torch._foreach_lerp_(means, added, self._next_weight())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        self.count += 1

    def _next_weight(self) -> float:
        """The weight of the next state in the mean."""
        if self.decay:
            return 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        return 1 / (self.count + 1)

    def mean(self) -> dict[str, Tensor]:
        """The mean, in the dtypes of the states. Raises SwampError if no state was added."""
        if not self.count:
            raise SwampError("the mean of zero states is undefined: add one first.")
        return {name: tensor.to(self._types.get(name, tensor.dtype), copy=True) for name, tensor in self._mean.items()}

    def partial(self) -> dict[str, Tensor]:
        """The mean so far in the wider dtype, with full tensors; a new RunningMean takes it as `total`."""
        return {name: gathered_copy(tensor) for name, tensor in self._mean.items()}


def copied(state: State) -> dict[str, Tensor]:
    """A copy of the state, detached, that does not share memory; extra state becomes tensors (`as_tensors`)."""
    return {name: tensor.detach().clone() for name, tensor in as_tensors(state).items()}


def is_inexact(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, which can be averaged; integers and flags cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def mean(states: Iterable[State]) -> dict[str, Tensor]:
    """Uniform mean of state dicts (a uniform soup); see RunningMean.

    Args:
        states: State dicts with equal names and shapes; read one at a time.

    Returns:
        Name -> mean, in the dtypes of the states; extra state is that of the first.

    Raises:
        SwampError: There are no states, or their names or shapes differ.

    Examples:
        >>> import torch
        >>> mean([{"weight": torch.tensor([1.0, 0.0])}, {"weight": torch.tensor([2.0, 0.0])}])
        {'weight': tensor([1.5000, 0.0000])}
    """
    running = RunningMean()
    extra: dict[str, Tensor] = {}
    for state in map(as_tensors, states):
        running.add(state)
        extra = extra or {name: value.clone() for name, value in state.items() if is_extra_state(name)}
    return running.mean() | extra


def interpolate(a: State, b: State, share: float) -> dict[str, Tensor]:
    """Linear interpolation of two state dicts, (1 - share) * a + share * b; exact at both ends.

    Args:
        a: State dict; integer tensors and extra state of the result are always those of `a`.
        b: State dict with the same names and shapes.
        share: Weight of `b`; values outside of [0, 1] extrapolate.

    Returns:
        Name -> interpolated tensor.

    Examples:
        >>> import torch
        >>> interpolate({"weight": torch.tensor([1.0])}, {"weight": torch.tensor([3.0])}, 0.25)
        {'weight': tensor([1.5000])}
    """
    if share in (0, 1):
        return dict(b if share else a)
    return {
        # Equal values are kept: the difference of two infinities is NaN.
        name: torch.where(tensor == b[name], tensor, tensor.lerp(b[name], share))
        if is_inexact(tensor) and not is_extra_state(name)
        else tensor
        for name, tensor in a.items()
    }


def _shapes(state: State) -> dict[str, torch.Size]:
    # The length of extra state may change.
    return {name: torch.Size() if is_extra_state(name) else tensor.shape for name, tensor in state.items()}


def _has_infinity(tensor: Tensor) -> bool:
    return is_inexact(tensor) and not bool(to_local(tensor).isfinite().all())


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype == torch.complex32:
        return torch.complex64
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
