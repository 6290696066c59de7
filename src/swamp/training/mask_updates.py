"""Masks that change during training: SET, RigL, gradual magnitude pruning and AC/DC."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swamp.arguments import named_fields
from swamp.batches import batch_to
from swamp.errors import SwampError
from swamp.fields import check_at_least, check_fields
from swamp.masks import Mask
from swamp.masks.patterns import structure_named
from swamp.training.average import State
from swamp.training.batchnorm import frozen_statistics
from swamp.training.dropout import DropoutStream
from swamp.training.loop import smoothed
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task


@named_fields
@dataclass(frozen=True)
class Dynamic:
    """When and by how much a dynamic mask changes (Evci et al. 2020).

    Gradual magnitude pruning uses the times only. AC/DC has its own times, by default those of Peste et al. (2021): of
    100 epochs 10 are dense, then compressed and dense phases of 5 alternate, and the last 15 are compressed.

    Raises:
        SwampError: A value is out of range.

    Examples:
        >>> dynamic = Dynamic(update_interval=10, drop_fraction=0.3)
        >>> dynamic.steps(Training(epochs=4, swa_fraction=0.0), per_epoch=10)
        (10, 20)
        >>> [round(dynamic.fraction_at(step, end=30), 3) for step in (10, 20)]
        [0.225, 0.075]
    """

    update_interval: int = 100
    """Training steps between mask updates (SET, RigL, gradual pruning)."""
    drop_fraction: float = 0.3
    """Fraction of the active weights of a layer to replace at the start; it decays to 0 as a cosine (SET, RigL)."""
    dst_stop: float = 0.75
    """Fraction of the training steps after which the mask is fixed, at the latest at the start of the tail."""
    dual_interval: int = 32
    """Training steps between two projections, at which the dual variable changes (safe)."""
    acdc_warmup: float = 0.1
    """Fraction of the training steps before the first compressed phase, with all weights (AC/DC)."""
    acdc_phase: float = 0.05
    """Length of a compressed phase, and of the dense phase after it, as a fraction of the training steps (AC/DC)."""
    acdc_final: float = 0.15
    """Length of the last phase, which is compressed, as a fraction of the training steps (AC/DC)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "update_interval", "dual_interval")
        wrong = [
            (not 0 < self.drop_fraction < 1, "drop_fraction", "in (0, 1)"),
            (not 0 < self.dst_stop <= 1, "dst_stop", "in (0, 1]"),
            (not 0 < self.acdc_warmup < 1, "acdc_warmup", "in (0, 1)"),
            (not 0 < self.acdc_phase < 1, "acdc_phase", "in (0, 1)"),
            (not 0 < self.acdc_final < 1, "acdc_final", "in (0, 1)"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")

    def end(self, training: Training, per_epoch: int) -> int:
        """The step from which the mask is fixed."""
        total = training.epochs * per_epoch
        return min(round(self.dst_stop * total), total - training.swa_epochs * per_epoch)

    def steps(self, training: Training, per_epoch: int) -> tuple[int, ...]:
        """The steps after which the mask changes. Raises SwampError if the training is too short for a change."""
        end = self.end(training, per_epoch)
        if end <= self.update_interval:
            raise SwampError(
                f"the mask would never change: it is fixed from step {end} of {training.epochs * per_epoch}, and the "
                f"first change is after step {self.update_interval}. Decrease update_interval, or increase epochs."
            )
        return tuple(range(self.update_interval, end, self.update_interval))

    def phases(self, training: Training, per_epoch: int) -> tuple[int, ...]:
        """The steps after which a phase of AC/DC begins: compressed, dense, compressed ... compressed.

        Phases alternate while a compressed and a dense one fit before the last compressed one; the dense phase before
        that lasts until it begins. Raises SwampError if the training is too short for that.
        """
        total = training.epochs * per_epoch
        warmup, length = round(self.acdc_warmup * total), round(self.acdc_phase * total)
        last = total - round(self.acdc_final * total)
        pairs = (last - warmup) // (2 * length) if length else 0
        if min(warmup, pairs, total - last) < 1:
            raise SwampError(
                f"AC/DC has no compressed phase before the last one: of {total} steps, acdc_warmup="
                f"{self.acdc_warmup:g} are {warmup}, acdc_phase={self.acdc_phase:g} are {length} and acdc_final="
                f"{self.acdc_final:g} are {total - last}. Decrease them, or increase epochs."
            )
        return (*range(warmup, warmup + 2 * pairs * length, length), last)

    def dual_steps(self, training: Training, per_epoch: int) -> tuple[int, ...]:
        """The steps after which SAFE projects the weights; it also does so before the first and after the last step."""
        return tuple(range(self.dual_interval, training.epochs * per_epoch, self.dual_interval))

    def fraction_at(self, step: int, end: int) -> float:
        """Fraction to replace after `step` steps: drop_fraction / 2 * (1 + cos(pi * step / end))."""
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
    """Drop the smallest active weights of each layer and grow as many of the weights that are then inactive.

    The rule is that of RigL (Evci et al. 2020, algorithm 1): k = fraction * active weights are dropped, and k are grown
    among all weights that were not kept. A dropped weight may be grown at once; its value is then kept. In a layer
    denser than 1 / (1 + fraction), k exceeds the inactive weights, so that some dropped weights always return.

    Args:
        mask: The present mask.
        weights: Parameter name -> weight; the smallest magnitudes are dropped.
        growth: Parameter name -> growth score; the largest are grown. A layer without scores keeps its mask.
        fraction: Fraction of the active weights of each layer to drop.
        structure: Sparsity pattern; both steps preserve it.

    Returns:
        A mask with the same number of active weights in each layer.

    Raises:
        SwampError: A weight or a score is NaN.
    """
    grown: dict[str, Tensor] = {}
    for name, active in mask.items():
        if name not in growth:
            grown[name] = active
            continue
        nnz = mask.nnz_by_layer[name]
        # At least one channel must remain.
        least = active[0].numel() if structure == "channel" else 0
        replaced = max(0, min(round(fraction * nnz), nnz - least))
        remaining = _largest(name, weights[name].abs(), active, nnz - replaced, structure)
        # Remaining weights rank above all candidates for growth.
        scores = growth[name].to(remaining.device).nan_to_num(torch.nan, torch.finfo(growth[name].dtype).max)
        scores = scores.masked_fill(remaining, torch.inf)
        grown[name] = _largest(name, scores, torch.ones_like(remaining), nnz, structure)
    return Mask(grown)


def prune_to_budget(
    weights: State, budget: Mask, structure: str = "unstructured", ties: Mapping[str, str] | None = None
) -> tuple[Mask, State]:
    """Prune the mean of networks with different masks by magnitude.

    A layer whose nonzero weights all lie in its budget's mask, such as a frozen one, keeps that mask.

    Args:
        weights: State dict of the mean.
        budget: Its number of active weights in each layer is the budget of that layer.
        structure: Sparsity pattern.
        ties: `tied_names` of the model: a tied weight is pruned under each of its names.

    Returns:
        The new mask, and the state dict with pruned weights set to zero.

    Raises:
        SwampError: A weight is NaN.
    """
    nnz = budget.nnz_by_layer

    def pruned(name: str, active: Tensor) -> Tensor:
        weight = weights[name]
        if not bool(weight.masked_fill(active.to(weight.device), 0).any()):
            return active  # A ranking would choose among all zeros, active or not.
        return _largest(name, weight.abs(), torch.ones_like(active), nnz[name], structure)

    mask = Mask({name: pruned(name, active) for name, active in budget.items()})
    return mask, masked_state(weights, mask, ties)


def masked_state(weights: State, mask: Mask, ties: Mapping[str, str] | None = None) -> State:
    """The state dict with pruned weights set to zero. ties: as in `prune_to_budget`."""
    owners = {name: (ties or {}).get(name, name) for name in weights}
    return {n: value * mask[o].to(value.device) if (o := owners[n]) in mask else value for n, value in weights.items()}


def _largest(name: str, score: Tensor, active: Tensor, nnz: int, structure: str) -> Tensor:
    # Sorting would rank NaN silently. Infinite scores are valid: they mark remaining weights.
    if bool(score.isnan().any()):
        raise SwampError(
            f"the weights or gradients of {name!r} are NaN: no mask can be computed. Lower the learning rate."
        )
    return structure_named(structure).prune(Mask({name: active}), {name: score}, nnz, "uniform", 0)[name]


def dense_gradients(model: nn.Module, task: Task, training: Training, seed: Seed, step: int) -> dict[str, Tensor]:
    """The gradient of all weights, including pruned ones, on the batch of step `step`.

    The model is in train mode, with the dropout masks of that step. Running statistics and `grad` are unchanged.
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
