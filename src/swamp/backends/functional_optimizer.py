"""The steps of sgd and adamw as plain functions of stacked tensors, so that a whole training step can be compiled."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


class Update(Protocol):
    """How weights move: in place, and the state kept for each with them."""

    def __call__(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor
    ) -> None:
        """`numbers` are those that change from step to step, the learning rate among them."""
        ...


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether it treats stacked weights as it would each of them, as sgd and adamw do."""
    return type(optimizer) in (SGD, Adam, AdamW)


def is_functional(optimizer: Optimizer) -> bool:
    """Whether its update is written out here, with the options it has."""
    if type(optimizer) not in (SGD, AdamW) or len(optimizer.param_groups) > 1:
        return False
    group = optimizer.param_groups[0]
    return not (group.get("maximize") or group.get("amsgrad") or group.get("dampening"))


class FunctionalOptimizer:
    """The update of one optimizer of torch; its state stays in the optimizer, where snapshots look for it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.group = optimizer.param_groups[0]
        weights: list[Tensor] = self.group["params"]
        adam = type(optimizer) is AdamW
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",) if self.group["momentum"] else ()
        kept = [optimizer.state[weight] for weight in weights]
        for weight, own in zip(weights, kept, strict=True):
            for name in names:
                if own.get(name) is None:
                    own[name] = torch.zeros_like(weight)
            if adam and "step" not in own:
                own["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        self.state = [[own[name] for name in names] for own in kept]
        self.steps: list[Tensor] = [own["step"] for own in kept] if adam else []
        self.taken = int(self.steps[0]) if self.steps else 0
        # A view of numpy's: making a new tensor of Python's numbers takes ten times as long as writing into this one.
        self.numbers = np.zeros(3 if adam else 1)
        on_cpu = torch.from_numpy(self.numbers)  # pyright: ignore[reportUnknownMemberType]
        device = weights[0].device
        self.as_tensor = on_cpu if device.type == "cpu" else on_cpu.to(device)
        self.update: Update = _adamw(self.group) if adam else _sgd(self.group)

    def next_numbers(self) -> Tensor:
        """The numbers of the next step (float64, where the weights are, overwritten by the step after it), counted."""
        group = self.group
        if self.steps:
            self.taken += 1
            torch._foreach_add_(self.steps, 1)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            # In float64, as torch has them: in the weights' float32 the first steps would be off by 1e-7.
            first, second = (1 - beta**self.taken for beta in group["betas"])
            self.numbers[:] = 1 - group["lr"] * group["weight_decay"], group["lr"] / first, second**0.5
        else:
            self.numbers[0] = group["lr"]
        if self.as_tensor.device.type != "cpu":
            # One by one: a copy from the CPU's memory waits for all that the GPU has still to do.
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
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight.mul_(shrink).sub_(size * mean / (square.sqrt() / root + epsilon))

    return update
