"""Statistics of masks: layer by layer, from cycle to cycle, and the overlap of masks of different runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from swamp.algorithms import Cycle
from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, Record
from swamp.analysis.mask_training import MaskSource
from swamp.analysis.run_data import RunData
from swamp.masks import Mask
from swamp.runs.read import read_mask, read_weights
from swamp.training.average import State
from swamp.training.metrics import spearman


def mask_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """Which weights remain, which units die with the others, and were the remaining ones large in the ticket?"""
    del settings
    for index in range(run.cycles):
        yield AnalysisTask(f"masks/cycle-{index:02d}", partial(mask_of_cycle, run, index))


def mask_of_cycle(run: RunData, index: int) -> Record:
    """The mask measurements of one cycle, as a record.

    Values that need a previous cycle, or a ticket, are None if there is none."""
    cycle = run.cycle(index)
    before = run.cycle(index - 1) if index else None
    ticket = None if run.ticket is None else run.ticket.weights
    return {
        "cycle": index,
        "sparsity": cycle.sparsity,
        "layers": layer_densities(cycle.mask),
        "dead": dead_units(cycle.mask, transposed_weights(run.model)),
        "before": before and cycle.mask.overlap(before.mask),
        "kept_of_before": before and fraction_kept(before, cycle),
        "signs": {
            "ticket": None if ticket is None else equal_signs(cycle.mask, cycle.weights, ticket),
            "before": before and equal_signs(cycle.mask, cycle.weights, before.weights),
        },
        "magnitude_rank": None if ticket is None else magnitude_correlation(cycle.mask, ticket, cycle.weights),
    }


def layer_densities(mask: Mask) -> Record:
    """For each tensor: the number of active weights, the size, and the ratio of the two."""
    nnz = mask.nnz_by_layer
    return {
        name: {
            "density": nnz[name] / tensor.numel() if tensor.numel() else 1.0,
            "nnz": nnz[name],
            "size": tensor.numel(),
        }
        for name, tensor in mask.items()
    }


def dead_units(mask: Mask, transposed: frozenset[str] = frozenset()) -> dict[str, dict[str, int | None]]:
    """Number of outputs and inputs of each tensor (out, in, ...) without an active weight.

    Inputs of a grouped convolution are counted within a group. A vector has outputs only.

    Args:
        mask: the mask.
        transposed: names of tensors (in, out, ...), as in transposed convolutions.
    """
    found: dict[str, dict[str, int | None]] = {}
    for name, tensor in mask.items():
        first, second = _empty_slices(tensor, 0), _empty_slices(tensor, 1) if tensor.dim() > 1 else None
        outputs, inputs = (second, first) if name in transposed else (first, second)
        found[name] = {"outputs": outputs, "inputs": inputs}
    return found


def transposed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the weights with shape (in, out, ...), which are weights of transposed convolutions."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    weights = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in weights)


def fraction_kept(before: Cycle, after: Cycle) -> float:
    """Fraction of the active weights of one cycle that are active in a later cycle; weights may also regrow."""
    both = sum(int((active & before.mask[name]).count_nonzero()) for name, active in after.mask.items())
    return both / before.mask.nnz if before.mask.nnz else float("nan")


def equal_signs(mask: Mask, weights: State, others: State) -> float:
    """Fraction of the active weights with the same sign in `weights` and `others`; zero counts as a third sign.

    The signs of both parts of a complex weight must be equal.
    """
    same = sum(int(_equal_sign(weights[n], others[n])[active].count_nonzero()) for n, active in mask.items())
    return same / mask.nnz if mask.nnz else float("nan")


def magnitude_correlation(mask: Mask, ticket: State, weights: State) -> float:
    """Spearman correlation of |ticket| and |weights| over the active weights; NaN for fewer than two."""
    return spearman(_active_weights(mask, ticket).abs(), _active_weights(mask, weights).abs(), constant=math.nan)


def expected_overlap(a: Mask, b: Mask) -> float:
    """Expected Jaccard index of random masks with the layer densities of `a` and `b`.

    In a layer of n weights, random masks with a and b active weights share a b / n on average. The Jaccard index of
    these averages is the expectation to first order in 1/n.
    """
    first, second = a.nnz_by_layer, b.nnz_by_layer
    both = sum(first[name] * second[name] / tensor.numel() for name, tensor in a.items() if tensor.numel())
    either = a.nnz + b.nnz - both
    return both / either if either else 1.0


def overlap(a: Mask, b: Mask) -> Record:
    """Jaccard index of two masks, its expectation for random masks, and the excess over the expectation.

    "above_chance" is (found - expected) / (1 - expected): 1 for equal masks, 0 on average for random ones, NaN if
    random masks are always equal.

    Raises:
        MaskError: the masks are of different models.
    """
    found, expected = a.overlap(b), expected_overlap(a, b)
    above = (found - expected) / (1 - expected) if expected < 1 else float("nan")
    return {"jaccard": found, "expected": expected, "above_chance": above}


def compare_masks(runs: Mapping[tuple[str, int], MaskSource], densities: Sequence[float]) -> Iterator[Record]:
    """Compare the masks of every two runs at each density that both have.

    Args:
        runs: (label, seed) -> run.
        densities: fractions of active prunable weights, see `shared_densities`.

    Yields:
        The records of `compare_two_masks`, with the labels "a" and "b" and the two "seeds".

    Raises:
        MaskError: the runs have different networks.
    """
    for ((a, seed), one), ((b, other_seed), other) in combinations(runs.items(), 2):
        for record in compare_two_masks(one, other, densities):
            yield {"a": a, "b": b, "seeds": [seed, other_seed], **record}


def compare_two_masks(a: MaskSource, b: MaskSource, densities: Sequence[float]) -> list[Record]:
    """`overlap` of two runs at each density that both have, for the whole masks and for each layer.

    "signs" is the fraction of the weights active in both masks that have the same sign; NaN if there are none.
    """
    found: list[Record] = []
    for row, density in enumerate(densities):
        one, other = a.at(density), b.at(density)
        if one and other:
            cycles = one["cycle"], other["cycle"]
            first, second = read_mask(a.directory, cycles[0]), read_mask(b.directory, cycles[1])
            weights = read_weights(a.directory, cycles[0]), read_weights(b.directory, cycles[1])
            whole = _overlap_and_signs(first, second, *weights)
            layers = {
                name: _overlap_and_signs(Mask({name: active}), Mask({name: second[name]}), *weights)
                for name, active in first.items()
            }
            found.append({"row": row, "sparsity": 1 - density, "cycles": list(cycles), **whole, "layers": layers})
    return found


def _overlap_and_signs(a: Mask, b: Mask, weights_a: State, weights_b: State) -> Record:
    found = overlap(a, b)
    both = Mask({name: active & b[name] for name, active in a.items()})
    return {**found, "signs": equal_signs(both, weights_a, weights_b)}


def _equal_sign(one: Tensor, other: Tensor) -> Tensor:
    if one.is_complex():
        return (torch.view_as_real(one).sign() == torch.view_as_real(other).sign()).all(-1)
    return one.sign() == other.sign()


def _empty_slices(active: Tensor, axis: int) -> int:
    if active.dim() == 1:
        return int((~active).sum())
    return int((~active.movedim(axis, 0).flatten(1).any(1)).count_nonzero())


def _active_weights(mask: Mask, weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].detach().cpu()[active.cpu()] for name, active in mask.items()])
