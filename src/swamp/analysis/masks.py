"""Which weights survive: layer by layer, from cycle to cycle, and beside another mask."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.algorithms import Cycle
from swamp.analysis.analysis import Settings, Unit
from swamp.analysis.correlation import spearman
from swamp.analysis.subject import Subject
from swamp.masks import Mask
from swamp.training import State

Record = dict[str, Any]


def masks(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """Which weights survive, which units die with them, and were they the ticket's large ones?"""
    del settings
    for index in range(subject.cycles):
        yield Unit(f"masks/cycle-{index:02d}", partial(mask_of_cycle, subject, index))


def mask_of_cycle(subject: Subject, index: int) -> Record:
    """The record of one cycle. What needs a cycle before, or a ticket, is null where there is none."""
    cycle = subject.cycle(index)
    before = subject.cycle(index - 1) if index else None
    ticket = None if subject.ticket is None else subject.ticket.weights
    return {
        "cycle": index,
        "sparsity": cycle.sparsity,
        "layers": layers(cycle.mask),
        "dead": dead(cycle.mask, transposed(subject.model)),
        "before": before and cycle.mask.overlap(before.mask),
        "kept_of_before": before and kept_of(before, cycle),
        "signs": {
            "ticket": None if ticket is None else same_signs(cycle.mask, cycle.weights, ticket),
            "before": before and same_signs(cycle.mask, cycle.weights, before.weights),
        },
        "magnitude_rank": None if ticket is None else magnitude_rank(cycle.mask, ticket, cycle.weights),
    }


def layers(mask: Mask) -> Record:
    """Survivors of each tensor: number, size and the share of one in the other."""
    nnz = mask.nnz_by_layer
    return {
        name: {
            "density": nnz[name] / tensor.numel() if tensor.numel() else 1.0,
            "nnz": nnz[name],
            "size": tensor.numel(),
        }
        for name, tensor in mask.items()
    }


def dead(mask: Mask, transposed: frozenset[str] = frozenset()) -> dict[str, dict[str, int | None]]:
    """Outputs that no weight feeds and inputs that no weight reads, of each tensor (out, in, ...).

    transposed: names of tensors (in, out, ...), as transposed convolutions have them. The inputs of a grouped
    convolution are those of a group. A vector has outputs alone.
    """
    found: dict[str, dict[str, int | None]] = {}
    for name, tensor in mask.items():
        first, second = _dead_along(tensor, 0), _dead_along(tensor, 1) if tensor.dim() > 1 else None
        outputs, inputs = (second, first) if name in transposed else (first, second)
        found[name] = {"outputs": outputs, "inputs": inputs}
    return found


def transposed(model: nn.Module) -> frozenset[str]:
    """Names of the weights that are stored with their inputs first."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    wanted = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def kept_of(before: Cycle, after: Cycle) -> float:
    """Share of the survivors of one cycle that are still alive in a later one; below 1 - alpha where some came back."""
    both = sum(int((alive & before.mask[name]).count_nonzero()) for name, alive in after.mask.items())
    return both / before.mask.nnz if before.mask.nnz else float("nan")


def same_signs(mask: Mask, weights: State, others: State) -> float:
    """Share of the survivors whose weight has the sign it has in `others`; one that is 0 has a sign of its own."""
    same = sum(int((weights[n].sign() == others[n].sign())[alive].count_nonzero()) for n, alive in mask.items())
    return same / mask.nnz if mask.nnz else float("nan")


def magnitude_rank(mask: Mask, ticket: State, weights: State) -> float:
    """Spearman correlation of |ticket| with |weights| over the survivors; NaN for fewer than two."""
    return spearman(_alive(mask, ticket).abs(), _alive(mask, weights).abs())


def expected_overlap(a: Mask, b: Mask) -> float:
    """The Jaccard index to expect of random masks with the layer densities of these two.

    A layer of n weights that keeps a and b of them at random shares a b / n of them on average; the index is taken
    of these averages, right to first order in 1/n. Raises MaskError for masks of different models.
    """
    a.overlap(b)  # refuses masks of different models
    mine, theirs = a.nnz_by_layer, b.nnz_by_layer
    both = sum(mine[name] * theirs[name] / tensor.numel() for name, tensor in a.items() if tensor.numel())
    either = a.nnz + b.nnz - both
    return both / either if either else 1.0


def overlap_by_layer(a: Mask, b: Mask) -> dict[str, float]:
    """Jaccard index of each tensor of two masks; 1 where both are empty."""
    a.overlap(b)
    return {name: Mask({name: alive}).overlap(Mask({name: b[name]})) for name, alive in a.items()}


def overlap(a: Mask, b: Mask) -> Record:
    """How alike two masks are, beside what chance makes of the same layer densities.

    "above_chance": (found - expected) / (1 - expected), 1 for equal masks and 0 for unrelated ones; NaN where chance
    alone makes them equal.
    """
    found, expected = a.overlap(b), expected_overlap(a, b)
    above = (found - expected) / (1 - expected) if expected < 1 else float("nan")
    return {"jaccard": found, "expected": expected, "above_chance": above, "layers": overlap_by_layer(a, b)}


def _dead_along(alive: Tensor, axis: int) -> int:
    return int((~alive.movedim(axis, 0).flatten(1).any(1)).count_nonzero()) if alive.dim() > 1 else int((~alive).sum())


def _alive(mask: Mask, weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].detach().cpu()[alive.cpu()] for name, alive in mask.items()])
