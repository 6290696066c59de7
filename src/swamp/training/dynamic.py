"""Masks that change while a model trains on them: SET, RigL and gradual magnitude pruning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.masks import Mask, structure_named
from swamp.training.average import State
from swamp.training.batchnorm import frozen_statistics
from swamp.training.data import batch_to
from swamp.training.dropout import DropoutStream
from swamp.training.loop import smoothed
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task


@dataclass(frozen=True)
class Dynamic:
    """When, and by how much, a mask changes (Evci et al. 2020; of gradual pruning only the times count)."""

    update_interval: int = 100
    """Steps between two changes of a mask (SET, RigL, gradual pruning)."""
    drop_fraction: float = 0.3
    """Share of a layer's weights that the first change replaces; it falls to 0 as a cosine."""
    dst_stop: float = 0.75
    """Share of the training after which the mask stays, at the latest where the tail begins."""

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = [
            (self.update_interval < 1, "update_interval", "1 or more"),
            (not 0 < self.drop_fraction < 1, "drop_fraction", "in (0, 1)"),
            (not 0 < self.dst_stop <= 1, "dst_stop", "in (0, 1]"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")

    def end(self, training: Training, per_epoch: int) -> int:
        """The step from which the mask stays as it is."""
        total = training.epochs * per_epoch
        return min(round(self.dst_stop * total), total - training.swa_epochs * per_epoch)

    def steps(self, training: Training, per_epoch: int) -> tuple[int, ...]:
        """Steps after which the mask changes. Raises SwampError for a training too short for any."""
        end = self.end(training, per_epoch)
        if end <= self.update_interval:
            raise SwampError(
                f"the mask would never change: it may until step {end} of {training.epochs * per_epoch}, the first "
                f"change comes after {self.update_interval}. Take a smaller --update-interval, or train longer."
            )
        return tuple(range(self.update_interval, end, self.update_interval))

    def fraction_at(self, step: int, end: int) -> float:
        """drop_fraction / 2 * (1 + cos(pi * step / end)): the share that is replaced after `step` steps."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * min(step, end) / end))


def density_at(step: int, end: int, final: float, initial: float = 1.0) -> float:
    """Density of gradual pruning: final + (initial - final) * (1 - step / end)^3 (Zhu & Gupta 2017)."""
    return final + (initial - final) * (1 - min(step, end) / end) ** 3


def drop_and_grow(
    mask: Mask,
    weights: Mapping[str, Tensor],
    growth: Mapping[str, Tensor],
    fraction: float,
    structure: str = "unstructured",
) -> Mask:
    """Each tensor drops its `fraction` smallest |weights| and grows as many of the largest `growth`.

    As in RigL's own code, a weight that was dropped may be grown at once, and then keeps its value. Every tensor keeps
    exactly as many weights as it had; one with too few dead weights to choose from replaces fewer. In a pattern
    (`structure`) both steps keep to it: an N:M group grows what it dropped, channels come and go whole.
    """
    grown: dict[str, Tensor] = {}
    for name, alive in mask.items():
        kept, size = mask.nnz_by_layer[name], alive.numel()
        # One channel stays, or there would be no whole one to rank.
        least = alive[0].numel() if structure == "channel" else 0
        replaced = max(0, min(round(fraction * kept), size - kept, kept - least))
        staying = _kept(name, weights[name].abs(), alive, kept - replaced, structure)
        # What stays comes before whatever may grow.
        scores = growth[name].to(staying.device).nan_to_num(torch.nan, torch.finfo(growth[name].dtype).max)
        scores = scores.masked_fill(staying, torch.inf)
        grown[name] = _kept(name, scores, torch.ones_like(staying), kept, structure)
    return Mask(grown)


def prune_to_budget(weights: State, budget: Mask, structure: str = "unstructured") -> tuple[Mask, State]:
    """A mean of networks with unlike masks, pruned by magnitude to as many weights a tensor as `budget` has."""
    kept = budget.nnz_by_layer
    mask = Mask(
        {
            name: _kept(name, weights[name].abs(), torch.ones_like(alive), kept[name], structure)
            for name, alive in budget.items()
        }
    )
    return mask, {name: value * mask[name] if name in mask else value for name, value in weights.items()}


def _kept(name: str, score: Tensor, alive: Tensor, kept: int, structure: str) -> Tensor:
    # A number that is none would be ranked somewhere, and nobody would notice; what stays is infinite.
    if bool(score.isnan().any()):
        raise SwampError(f"the weights or gradients of {name!r} are NaN, so that no mask can be made of them.")
    return structure_named(structure).prune(Mask({name: alive}), {name: score}, kept, "uniform", 0)[name]


def dense_gradients(model: nn.Module, task: Task, training: Training, seed: Seed, step: int) -> dict[str, Tensor]:
    """The gradient of every parameter, masked or not, on the batch that step `step` of a training takes.

    In train mode, with that step's dropout; running statistics do not move, and the model's own gradients stay.
    """
    epoch, within = divmod(step, task.train.steps(training.batch_size))
    device = next(model.parameters()).device
    inputs, targets = batch_to(next(iter(task.train.shuffled(training.batch_size, seed, epoch, within))), device)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.train()
    random = DropoutStream(model, seed.at("noise").number(), device, exclusive=True)
    with isolated(seed, device), frozen_statistics(model), random.at(step, None, len(targets)):
        loss = smoothed(task.loss, training.label_smoothing)(
            task.forward(model, to_memory_format_of(model, inputs)), targets
        )
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    gradients: list[Tensor | None] = list(found)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
