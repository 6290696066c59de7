"""A training stopped between two steps, so that it can go on bit for bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swamp.errors import SwampError
from swamp.masks import Mask, gathered_copy, is_sharded, shard_like
from swamp.training.average import State


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training stopped between two steps: with it, `fit` goes on as if it had never stopped."""

    step: int
    weights: State
    optimizer: Mapping[str, Tensor]
    mean: State
    averaged: int
    losses: tuple[float, ...]
    running_loss: float
    losses_seen: int
    gradient: State = field(default_factory=dict[str, Tensor])
    """That of the last step, where the next one needs it (s2-sam)."""


def masked_snapshot(snapshot: Snapshot, mask: Mask, names: Sequence[str]) -> Snapshot:
    """The snapshot with exact zeros off `mask`, whatever is kept of a weight: its moments, its moving average.

    names: of the parameters that train, in the optimizer's order.
    """

    def cut(name: str, value: Tensor) -> Tensor:
        belongs = name in mask and value.shape == mask[name].shape and value.is_floating_point()
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
    """What `optimizer` remembers: `0/exp_avg` of parameter 0, `group0/d` of group 0; `#` ends names of numbers."""
    flat: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        slots = optimizer.state.get(parameter, {})
        # Sorted: what was read from a file came in any order, and processes must gather in one and the same.
        for key in sorted(slots):
            value = slots[key]
            if value is not None:
                name, tensor = _as_tensor(f"{index}/{key}", value)
                flat[name] = tensor
    # Some optimizers keep what they learn (a step size, a weight sum) in the group, among the options.
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor | int | float):
                name, tensor = _as_tensor(f"group{index}/{key}", value)
                flat[name] = tensor
    return flat


def load_optimizer(optimizer: Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Give a fresh `optimizer` the memory that `optimizer_tensors` took."""
    if not flat:
        # Nothing was kept: loading an empty state would remove the one that Adagrad starts from.
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
    for index, parameter in enumerate(_parameters(optimizer)):
        if is_sharded(parameter) and index in slots:
            # Before torch takes it to the device, where all of it may have no room.
            slots[index] = {key: _part(value, parameter) for key, value in slots[index].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    # torch places each tensor on its device, but casts it to its parameter's type: bits must come back as they were.
    for index, parameter in enumerate(_parameters(optimizer)):
        placed = optimizer.state.get(parameter, {})
        for key, value in slots.get(index, {}).items():
            placed[key] = _placed(value, placed[key], parameter) if isinstance(value, Tensor) else value


def _placed(value: Tensor, like: Tensor, parameter: nn.Parameter) -> Tensor:
    if is_sharded(value):
        return value
    value = value.to(like.device)
    # In the order in memory of its parameter: fused kernels walk both side by side.
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value


def _part(value: Any, parameter: nn.Parameter) -> Any:
    belongs = isinstance(value, Tensor) and value.shape == parameter.shape
    return shard_like(value, parameter, value.dtype) if belongs else value


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _as_tensor(name: str, value: Any) -> tuple[str, Tensor]:
    if isinstance(value, Tensor):
        return name, gathered_copy(value)
    if isinstance(value, bool | int | float):
        # float64, as Python's own numbers are: float32 would change the training that goes on.
        return f"{name}#", torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    raise SwampError(
        f"the optimizer keeps {name!r} as a {type(value).__name__}, which cannot be stored for a resume. "
        "Use an optimizer whose state is tensors and numbers, or train without interruptions."
    )
