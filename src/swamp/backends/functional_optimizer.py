"""SGD and AdamW as functions of stacked tensors, so that a whole training step can be compiled."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


class Update(Protocol):
    """An update rule: changes the weights, and the optimizer state of each weight, in place."""

    def __call__(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor
    ) -> None:
        """Take one step. numbers: values that change from step to step, such as the learning rate."""
        ...


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether stacked weights are updated exactly like separate ones, as by SGD and AdamW."""
    return type(optimizer) in (SGD, Adam, AdamW)


def is_functional(optimizer: Optimizer) -> bool:
    """Whether `FunctionalOptimizer` has the update of this optimizer with its options."""
    if type(optimizer) not in (SGD, AdamW) or len(optimizer.param_groups) > 1:
        return False
    group = optimizer.param_groups[0]
    return not (group.get("maximize") or group.get("amsgrad") or group.get("dampening"))


class FunctionalOptimizer:
    """The update of a torch optimizer as a function; its state stays in the optimizer, from which snapshots read it.

    Args:
        optimizer: `is_functional`.
        weights: Those of its parameters that have a gradient; the others do not change (default: all).
    """

    def __init__(self, optimizer: Optimizer, weights: Sequence[Tensor] | None = None) -> None:
        self.group = optimizer.param_groups[0]
        used: Sequence[Tensor] = self.group["params"] if weights is None else weights
        adam = type(optimizer) is AdamW
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",) if self.group["momentum"] else ()
        kept = [optimizer.state[weight] for weight in used]
        for weight, own in zip(used, kept, strict=True):
            for name in names:
                if own.get(name) is None:
                    own[name] = torch.zeros_like(weight)
            if adam and "step" not in own:
                own["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        self.state = [[own[name] for name in names] for own in kept]
        self.steps: list[Tensor] = [own["step"] for own in kept] if adam else []
        self.taken = int(self.steps[0]) if self.steps else 0
        # A NumPy view: creating a tensor from Python numbers takes ten times as long as writing into this one.
        self.numbers = np.zeros(3 if adam else 1)
        on_cpu = torch.from_numpy(self.numbers)  # pyright: ignore[reportUnknownMemberType]
        device = used[0].device
        self.as_tensor = on_cpu if device.type == "cpu" else on_cpu.to(device)
        self.update: Update = _adamw(self.group) if adam else _sgd(self.group)

    def next_numbers(self) -> Tensor:
        """Count a step and return its numbers (float64, on the weights' device; the next call overwrites them)."""
        group = self.group
        if self.steps:
            self.taken += 1
            torch._foreach_add_(self.steps, 1)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            # In float64, as in torch: in float32 the first steps would be off by 1e-7.
            first, second = (1 - beta**self.taken for beta in group["betas"])
            self.numbers[:] = 1 - group["lr"] * group["weight_decay"], group["lr"] / first, second**0.5
        else:
            self.numbers[0] = group["lr"]
        if self.as_tensor.device.type != "cpu":
            # One by one: a copy from CPU memory waits for all queued work of the GPU.
            for place, number in zip(self.as_tensor, self.numbers.tolist(), strict=True):
                place.fill_(number)
        return self.as_tensor


def _sgd(group: Mapping[str, Any]) -> Update:
    momentum, decay, nesterov = group["momentum"], group["weight_decay"], group["nesterov"]

    def update(
        weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor
    ) -> None:
        for weight, gradient, kept in zip(weights, gradients, state, strict=True):
            change = gradient + decay * weight if decay else gradient
            if momentum:
                buffer = kept[0].mul_(momentum).add_(change)
                change = change + momentum * buffer if nesterov else buffer
            weight.sub_(numbers[0] * change)

    return update


def _adamw(group: Mapping[str, Any]) -> Update:
    beta1, beta2 = group["betas"]
    epsilon = group["eps"]

    def update(
        weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor
    ) -> None:
        shrink, size, root = numbers.unbind()
        for weight, gradient, (mean, square) in zip(weights, gradients, state, strict=True):
            if weight.is_complex():
                # As in torch: the two parts of a complex number are two weights.
                weight, gradient, mean, square = map(torch.view_as_real, (weight, gradient, mean, square))
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight.mul_(shrink).sub_(size * mean / (square.sqrt() / root + epsilon))

    return update
