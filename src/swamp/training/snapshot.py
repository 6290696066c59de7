"""The state of a training between two steps, to resume it bit for bit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.masks.dtensor import gathered_copy, is_sharded, shard_like
from swamp.training.average import State, is_inexact

_LENGTH = "length"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a training between two steps; `fit` continues from it with the same bits."""

    step: int
    """Optimizer steps taken."""
    weights: State
    optimizer: Mapping[str, Tensor]
    """See `optimizer_tensors`."""
    mean: State
    """The mean of the samples so far, in the wider dtype."""
    averaged: int
    """Samples in the mean."""
    losses: tuple[float, ...]
    """Mean training loss of each finished epoch."""
    running_loss: float
    """Sum of the losses of the present epoch."""
    losses_seen: int
    """Number of losses in that sum."""
    gradient: State = field(default_factory=dict[str, Tensor])
    """The gradient of the last step, if the next step needs it (s2-sam)."""
    anchor: State = field(default_factory=dict[str, Tensor])
    """Trainable parameter -> the weights to which a penalty draws it (safe). The mask is dense then."""


class LazySnapshot:
    """Takes the snapshot of a training when it is called; the loss and the learning rate need no copy of the weights.

    Args:
        take: Takes the snapshot.
        loss: Mean training loss of the present epoch; it waits for the device.
        lr: Learning rate of the last step.
    """

    def __init__(self, take: Callable[[], Snapshot], loss: Callable[[], float], lr: float) -> None:
        self.take, self.loss, self.lr = take, loss, lr

    def __call__(self) -> Snapshot:
        """The snapshot."""
        return self.take()


def epoch_mean(losses: Sequence[float], running_loss: float | Tensor, seen: int) -> float:
    """Mean loss of the present epoch, or of the last one before its first step; NaN before the first step of all."""
    return float(running_loss) / seen if seen else losses[-1] if losses else math.nan


def tied_names(model: nn.Module) -> dict[str, str]:
    """The other names of each tied parameter -> the name under which `named_parameters`, and so a mask, has it."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def masked_snapshot(
    snapshot: Snapshot, mask: Mask, names: Sequence[str], ties: Mapping[str, str] | None = None
) -> Snapshot:
    """The snapshot with zeros at pruned positions of weights, optimizer state, mean and gradient.

    names: Names of the trainable parameters, in the order of the optimizer.
    ties: `tied_names` of the model: a tied weight is cut under each of its names.
    """

    def cut(name: str, value: Tensor) -> Tensor:
        name = (ties or {}).get(name, name)
        belongs = name in mask and value.shape == mask[name].shape and is_inexact(value)
        return value.masked_fill(~mask[name].to(value.device), 0) if belongs else value

    def owner(key: str) -> str:
        number = key.partition("/")[0]
        return names[int(number)] if number.isdigit() else ""

    return replace(
        snapshot,
        weights={name: cut(name, value) for name, value in snapshot.weights.items()},
        optimizer={key: cut(owner(key), value) for key, value in snapshot.optimizer.items()},
        mean={name: cut(name, value) for name, value in snapshot.mean.items()},
        gradient={name: cut(name, value) for name, value in snapshot.gradient.items()},
    )


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """State of an optimizer: `0/exp_avg` of parameter 0, `group0/d` of group 0; names of Python numbers end in `#`."""
    flat: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        slots = optimizer.state.get(parameter, {})
        # Sorted: state from a file may have any order, and all processes must gather in the same order.
        for key in sorted(slots):
            flat |= _flat(f"{index}/{key}", slots[key])
    # Some optimizers keep state (a step size, a weight sum) in the parameter group.
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor | int | float):
                name, tensor = _as_tensor(f"group{index}/{key}", value)
                flat[name] = tensor
    return flat


def load_optimizer(optimizer: Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Load the state from `optimizer_tensors` into a new `optimizer`."""
    if not flat:
        # Loading an empty state would remove the initial state of Adagrad.
        return
    slots: dict[int, dict[str, Any]] = {}
    groups = optimizer.param_groups
    for name, tensor in flat.items():
        owner, key = name.removesuffix("#").split("/", 1)
        value = tensor.item() if name.endswith("#") else tensor.clone()
        if owner.startswith("group"):
            groups[int(owner.removeprefix("group"))][key] = value
        else:
            slots.setdefault(int(owner), {})[key] = value
    slots = {index: _nested(own) for index, own in slots.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        if is_sharded(parameter) and index in slots:
            # Sharded before torch moves it to the device, which may have no memory for the full tensor.
            slots[index] = {key: _part(value, parameter) for key, value in slots[index].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    # torch casts the state to the dtype of its parameter: restore the exact bits.
    for index, parameter in enumerate(_parameters(optimizer)):
        placed = optimizer.state.get(parameter, {})
        for key, value in slots.get(index, {}).items():
            placed[key] = _placed(value, placed[key], parameter)


def _placed(value: Any, like: Any, parameter: nn.Parameter) -> Any:
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        return [_placed(part, other, parameter) for part, other in zip(parts, like, strict=True)]
    if not isinstance(value, Tensor) or is_sharded(value):
        return value
    value = value.to(like.device)
    # Same memory format as its parameter, as fused kernels require.
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value


def _part(value: Any, parameter: nn.Parameter) -> Any:
    belongs = isinstance(value, Tensor) and value.shape == parameter.shape
    return shard_like(value, parameter, value.dtype) if belongs else value


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat(name: str, value: Any) -> dict[str, Tensor]:
    """Tensors and numbers of one entry of the state; items of a list (as in SOAP) are named `name/0`, `name/1` ..."""
    if value is None:
        return {}
    if not isinstance(value, list | tuple):
        return dict([_as_tensor(name, value)])
    parts = cast("Sequence[Any]", value)
    flat = {f"{name}/{_LENGTH}": torch.tensor(len(parts))}
    for place, part in enumerate(parts):
        flat |= _flat(f"{name}/{place}", part)
    return flat


def _nested(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `_flat` for the entries of one parameter."""
    lists = [name.removesuffix(f"/{_LENGTH}") for name in slots if name.endswith(f"/{_LENGTH}")]

    def build(name: str) -> Any:
        if name not in lists:
            return slots.get(name)
        return [build(f"{name}/{place}") for place in range(int(slots[f"{name}/{_LENGTH}"]))]

    return {name: build(name) for name in [*lists, *slots] if "/" not in name}


def _as_tensor(name: str, value: Any) -> tuple[str, Tensor]:
    if isinstance(value, Tensor):
        return name, gathered_copy(value)
    if isinstance(value, bool | int | float):
        # Python floats are float64: float32 would change the resumed training.
        return f"{name}#", torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    raise SwampError(
        f"the optimizer state {name!r} is a {type(value).__name__}, which cannot be stored for a resume. "
        "Use an optimizer whose state is tensors and numbers, or train without interruptions."
    )
