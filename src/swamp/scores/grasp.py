"""GraSP: gradient signal preservation."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.probe import all_batches, check_loss, gradient, pruned_copy, rows, scored_weights
from swamp.scores.score import Evidence

PER_CLASS = 10
"""Examples of each class, as published for CIFAR."""
TEMPERATURE = 200
"""What logits are divided by, as published."""

Batch = tuple[Any, Tensor]


def grasp(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Gradient flow that leaves with the weight, w * (H g), signed: what preserves it stays (Wang et al. 2020).

    Gradient flow is g'g, how fast a small step lowers the loss. Taking weight q away moves w by -w_q e_q, and g'g by
    -2 w_q (H g)_q to first order. The paper's score S = -w * (H g) is that change, and the largest S are removed:
    their loss helps the flow, or hurts it least. Here the largest stay, hence the sign: w * (H g).

    10 examples of each class (an output is a class), the first that the batches have; logits divided by 200. H and g
    are those of the mean loss over these, in parts no larger than the batches. BatchNorm uses the statistics of the
    part, as in training and as published; dropout is off. Float64 scores.

    Raises SwampError without data, where the classes need more than `evidence.examples` or the data has too few of
    one, for targets that are no classes, and for a loss that is not finite.
    """
    with pruned_copy(model, mask, evidence.generator, batch_statistics=True) as copied:
        weights = scored_weights(copied, mask)
        tensors = list(weights.values())
        parts = _balanced(copied, evidence)
        flow = [torch.zeros_like(weight, dtype=torch.float64) for weight in tensors]
        for part in parts:
            loss = _loss(copied, evidence, part)
            check_loss(loss, "grasp")
            _add(flow, gradient(loss, tensors), part)
        product = [torch.zeros_like(total) for total in flow]
        for part in parts:
            slopes = gradient(_loss(copied, evidence, part), tensors, create_graph=True)
            # The first factor is a constant: the derivative of g_stopped' g is H g_stopped.
            inner = torch.stack([(g * slope.double()).sum() for g, slope in zip(flow, slopes, strict=True)]).sum()
            _add(product, gradient(inner, tensors), part)
        total = sum(len(targets) for _, targets in parts)
    # Both sums are over examples, where g and H are means.
    return {name: weight.detach() * hg / total**2 for (name, weight), hg in zip(weights.items(), product, strict=True)}


def _loss(copied: nn.Module, evidence: Evidence, part: Batch) -> Tensor:
    inputs, targets = part
    return evidence.loss(evidence.forward(copied, inputs) / TEMPERATURE, targets)


def _add(sums: list[Tensor], slopes: list[Tensor], part: Batch) -> None:
    for total, slope in zip(sums, slopes, strict=True):
        total.add_(slope.detach(), alpha=len(part[1]))


def _balanced(copied: nn.Module, evidence: Evidence) -> list[Batch]:
    """The first PER_CLASS examples of each class, in parts of nearly one size that is at most the batches'."""
    missing: dict[int, int] = {}
    found: list[Batch] = []
    largest = 1
    for inputs, targets in all_batches(evidence, "grasp"):
        if not found:
            classes = _classes(copied, evidence, inputs, targets)
            missing = dict.fromkeys(range(classes), PER_CLASS)
        largest = max(largest, len(targets))
        found.append(_taken(inputs, targets, missing))
        if not any(missing.values()):
            break
    if any(missing.values()):
        full = sum(count == 0 for count in missing.values())
        raise SwampError(
            f"grasp takes {PER_CLASS} examples of each class and found them for {full} of {len(missing)} classes in "
            "one pass over the training data. Give more data, or a network with an output for each class there is and "
            "no more, or take another score, e.g. snip."
        )
    inputs, targets = _joined([inputs for inputs, _ in found]), torch.cat([targets for _, targets in found])
    index = torch.arange(len(targets), device=targets.device).tensor_split(-(-len(targets) // largest))
    return [(rows(inputs, part), targets[part]) for part in index]


def _classes(copied: nn.Module, evidence: Evidence, inputs: Any, targets: Tensor) -> int:
    with torch.no_grad():
        outputs = evidence.forward(copied, inputs)
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        raise SwampError(
            "grasp draws its examples class by class, so it needs outputs of shape (batch, classes) and whole numbers "
            f"of shape (batch,) as targets; these are {tuple(outputs.shape)} and {targets.dtype} of shape "
            f"{tuple(targets.shape)}. Take another score, e.g. snip."
        )
    classes = outputs.shape[1]
    if PER_CLASS * classes > evidence.examples:
        raise SwampError(
            f"grasp takes {PER_CLASS} examples of each of {classes} classes, and may look at {evidence.examples}. "
            f"Raise --score-examples to {PER_CLASS * classes}."
        )
    return classes


def _taken(inputs: Any, targets: Tensor, missing: dict[int, int]) -> Batch:
    labels = cast(list[int], targets.tolist())  # pyright: ignore[reportUnknownMemberType]
    chosen: list[int] = []
    for row, label in enumerate(labels):
        if missing.get(label, 0):
            missing[label] -= 1
            chosen.append(row)
    index = torch.tensor(chosen, dtype=torch.long, device=targets.device)
    return rows(inputs, index), targets[index]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in cast("Mapping[str, Tensor]", parts[0])}
    return torch.cat(parts)
