"""The step of N models as one: every tensor has a leading dimension for the particle, and one step moves them all."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]

from swamp.particles.update import Update
from swamp.training import Task, Training, smoothed
from swamp.training.data import rows_of
from swamp.training.noise import Noise, scaled

Tensors = dict[str, Tensor]


class Network(nn.Module):
    """The model as its task calls it, so that `functional_call` reaches into a task's own forward pass."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.run = task.forward

    def forward(self, inputs: Any) -> Tensor:
        """Outputs of the task's forward pass."""
        return self.run(self.model, inputs)


class Step:
    """The arithmetic of one step of stacked models, apart from their tensors: compiled once, used for every cycle."""

    def __init__(self, model: nn.Module, task: Task, training: Training) -> None:
        self.network = Network(copy.deepcopy(model), task).train()
        self.training = training
        self.device = next(model.parameters()).device
        self.loss = smoothed(task.loss, training.label_smoothing)
        self.shapes: dict[Any, list[tuple[tuple[int, ...], float, torch.dtype]]] = {}
        self._whole: Callable[..., Tensor] | None = None

    def gradients(
        self, weights: Tensors, others: Tensors, masks: Tensors, inputs: Any, targets: Tensor, noise: list[Tensor]
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Masked gradients (particle, ...), losses (particle,) and the buffers after the forward pass."""
        derive = grad_and_value(self._loss_of, has_aux=True)
        gradients, (losses, after) = vmap(derive)(weights, others, inputs, targets, noise)
        return {n: g * masks[n] if n in masks else g for n, g in gradients.items()}, losses, after

    def moved(
        self, weights: Tensors, others: Tensors, masks: Tensors, inputs: Any, targets: Tensor, noise: list[Tensor]
    ) -> tuple[Tensors, Tensor]:
        """The gradients that the optimizer gets, with SAM and clipping; buffers move in place."""
        before = {name: value.clone() for name, value in others.items()} if self.training.sam else {}
        gradients, losses, after = self.gradients(weights, others, masks, inputs, targets, noise)
        if self.training.sam:
            norms = _norms(gradients) + 1e-12
            there = {n: w + gradients[n] * _each(self.training.sam / norms, w) for n, w in weights.items()}
            # The second pass may not move the statistics, or they would take every batch twice.
            gradients, _, _ = self.gradients(there, before, masks, inputs, targets, noise)
        if self.training.clip:
            share = (self.training.clip / (_norms(gradients) + 1e-6)).clamp(max=1.0)
            gradients = {name: value * _each(share, value) for name, value in gradients.items()}
        for name, value in after.items():
            others[name].copy_(value)
        return gradients, losses

    def _loss_of(
        self, weights: Tensors, others: Tensors, inputs: Any, targets: Tensor, noise: list[Tensor]
    ) -> tuple[Tensor, Tensors]:
        others = dict(others)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.training.precision == "bfloat16"):
            if noise:
                given = iter(noise)
                with Noise(lambda shape, kept, like: next(given)):
                    outputs = functional_call(self.network, (weights, others), (inputs,))
            else:
                outputs = functional_call(self.network, (weights, others), (inputs,))
            loss = self.loss(outputs, targets)
        return loss, others

    def draws(self, inputs: Any, targets: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """The dropout noise of one step: for each call of dropout, that of all particles; seeds: one a particle."""
        key = targets.shape
        if key not in self.shapes:
            self.shapes[key] = self._asked(inputs)
        asked = self.shapes[key]
        if not asked:
            return []
        found: list[list[Tensor]] = []
        generator = torch.Generator(self.device)
        for seed in seeds:
            generator.manual_seed(seed)
            drawn = [
                (torch.empty(s, dtype=d, device=self.device).bernoulli_(k, generator=generator), k) for s, k, d in asked
            ]
            found.append([scaled(noise, kept) for noise, kept in drawn])
        return [torch.stack(of_all) for of_all in zip(*found, strict=True)]

    def _asked(self, inputs: Any) -> list[tuple[tuple[int, ...], float, torch.dtype]]:
        """What dropout asks for in one forward pass of one particle."""
        asked: list[tuple[tuple[int, ...], float, torch.dtype]] = []

        def record(shape: tuple[int, ...], kept: float, like: Tensor) -> Tensor:
            asked.append((shape, kept, like.dtype))
            return torch.ones(shape, dtype=like.dtype, device=like.device)

        first = rows_of(inputs, 0)
        narrow = self.training.precision == "bfloat16"
        with torch.no_grad(), Noise(record), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=narrow):
            copy.deepcopy(self.network)(first)
        return asked

    def whole(self, update: Update) -> Callable[..., Tensor]:
        """The step with the optimizer's update in it, compiled at its first call; the losses come back."""
        if self._whole is None:

            def body(
                weights: Tensors, others: Tensors, masks: Tensors, state: Any, numbers: Tensor, *batch: Any
            ) -> Tensor:
                gradients, losses = self.moved(weights, others, masks, *batch)
                update([*weights.values()], [gradients[name] for name in weights], state, numbers)
                return losses

            self._whole = torch.compile(body, fullgraph=True, dynamic=False)  # pyright: ignore[reportUnknownMemberType]
        return self._whole


def _norms(gradients: Tensors) -> Tensor:
    """The norm of each particle's whole gradient (particle,)."""
    return torch.stack([(g.flatten(1) ** 2).sum(1) for g in gradients.values()]).sum(0).sqrt()


def _each(factors: Tensor, like: Tensor) -> Tensor:
    """One factor a particle, shaped to multiply a stacked tensor."""
    return factors.to(like.dtype).view(-1, *(1 for _ in like.shape[1:]))
