"""GraSP: gradient signal preservation."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.batches import map_tensors, rows_of, tensors_of
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.context import (
    ScoringContext,
    all_batches,
    check_loss,
    effect,
    gradient,
    pruned_copy,
    scored_weights,
    wide_zeros,
)

PER_CLASS = 10
"""Examples of each class, as published for CIFAR."""
TEMPERATURE = 200
"""Divisor of the logits, as published."""

_Batch = tuple[Any, Tensor]


def grasp(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Gradient flow lost with the weight, w * (H g), with its sign (Wang et al. 2020).

    Gradient flow is g'g, the rate at which a small step lowers the loss. Removing weight q changes w by -w_q e_q, and
    g'g by -2 w_q (H g)_q to first order. The paper removes the largest S = -w * (H g): removing them increases the
    flow, or reduces it least. Here the largest scores stay, hence w * (H g).

    H and g are of the mean loss over the first 10 examples of each class (one class per output), in batches no larger
    than the given ones; logits are divided by 200. BatchNorm uses batch statistics, as in training and as published;
    dropout is off.

    Args:
        model: The network; it is not changed.
        mask: The current mask; pruned weights count as zero.
        context: Data and loss.

    Returns:
        Name to float64 scores of the weight's shape.

    Raises:
        SwampError: Without data; if the classes need more than `context.examples` examples, or the data has too few
            of a class; for targets that are not classes; for a loss that is not finite.
    """
    with pruned_copy(model, mask, context.generator, batch_statistics=True) as copied:
        weights = scored_weights(copied, mask)
        tensors = list(weights.values())
        parts = _balanced(copied, context)
        flow = [wide_zeros(weight) for weight in tensors]
        for part in parts:
            loss = _loss(copied, context, part)
            check_loss(loss, "grasp")
            _add(flow, gradient(loss, tensors), part)
        product = [torch.zeros_like(total) for total in flow]
        for part in parts:
            gradients = gradient(_loss(copied, context, part), tensors, create_graph=True)
            # The first factor is a constant: the derivative of g_stopped' g is H g_stopped.
            inner = torch.stack(
                [effect(g, grad.to(g.dtype)).sum() for g, grad in zip(flow, gradients, strict=True)]
            ).sum()
            _add(product, gradient(inner, tensors), part)
        total = sum(len(targets) for _, targets in parts)
    # Both are sums over examples; g and H are means.
    return {
        name: effect(hg, weight.detach()) / total**2
        for (name, weight), hg in zip(weights.items(), product, strict=True)
    }


def _loss(copied: nn.Module, context: ScoringContext, part: _Batch) -> Tensor:
    inputs, targets = part
    return context.loss(context.forward(copied, inputs) / TEMPERATURE, targets)


def _add(sums: list[Tensor], gradients: list[Tensor], part: _Batch) -> None:
    for total, grad in zip(sums, gradients, strict=True):
        total.add_(grad.detach(), alpha=len(part[1]))


def _balanced(copied: nn.Module, context: ScoringContext) -> list[_Batch]:
    """The first PER_CLASS examples of each class, in parts of nearly equal size, at most the largest batch."""
    missing: dict[int, int] = {}
    found: list[_Batch] = []
    largest = 1
    for inputs, targets in all_batches(context, "grasp"):
        if not found:
            classes = _classes(copied, context, inputs, targets)
            missing = dict.fromkeys(range(classes), PER_CLASS)
        largest = max(largest, len(targets))
        found.append(_select(inputs, targets, missing))
        if not any(missing.values()):
            break
    if any(missing.values()):
        full = sum(count == 0 for count in missing.values())
        raise SwampError(
            f"grasp needs {PER_CLASS} examples of each class and found them for {full} of {len(missing)} classes in "
            "one pass over the training data. Provide more data, use a network with exactly one output per class, or "
            "choose another score, e.g. snip."
        )
    inputs, targets = _concatenated([inputs for inputs, _ in found]), torch.cat([targets for _, targets in found])
    index = torch.arange(len(targets), device=targets.device).tensor_split(-(-len(targets) // largest))
    return [(rows_of(inputs, part), targets[part]) for part in index]


def _classes(copied: nn.Module, context: ScoringContext, inputs: Any, targets: Tensor) -> int:
    with torch.no_grad():
        outputs = context.forward(copied, inputs)
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        raise SwampError(
            "grasp selects examples by class, so it needs outputs of shape (batch, classes) and integer targets of "
            f"shape (batch,), got {tuple(outputs.shape)} and {targets.dtype} of shape {tuple(targets.shape)}. Choose "
            "another score, e.g. snip."
        )
    classes = outputs.shape[1]
    if PER_CLASS * classes > context.examples:
        raise SwampError(
            f"grasp needs {PER_CLASS} examples of each of {classes} classes, and the limit is {context.examples} in "
            f"total. Raise score_examples to {PER_CLASS * classes}."
        )
    return classes


def _select(inputs: Any, targets: Tensor, missing: dict[int, int]) -> _Batch:
    labels = cast(list[int], targets.tolist())  # pyright: ignore[reportUnknownMemberType]
    chosen: list[int] = []
    for row, label in enumerate(labels):
        if missing.get(label, 0):
            missing[label] -= 1
            chosen.append(row)
    index = torch.tensor(chosen, dtype=torch.long, device=targets.device)
    return rows_of(inputs, index), targets[index]


def _concatenated(parts: list[Any]) -> Any:
    columns = [iter(tensors_of(part).values()) for part in parts]
    return map_tensors(lambda _: torch.cat([next(column) for column in columns]), parts[0])
