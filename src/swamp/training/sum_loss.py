"""Losses as a sum and the weight that their mean divides by: what gradient accumulation adds up."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SumLoss(NamedTuple):
    """A loss whose mean over a batch is `total(outputs, targets) / weight(targets)`."""

    total: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


def sum_loss(loss: Any) -> SumLoss | None:
    """The sum and weight of a cross-entropy or nll loss; None for other losses, whose mean is over the examples.

    With ignored targets or class weights, the mean of a batch is not the mean of the means of its parts.

    Args:
        loss: `F.cross_entropy`, `F.nll_loss`, a functools.partial of them, `nn.CrossEntropyLoss` or `nn.NLLLoss`
            themselves, no subclass.
    """
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        options, loss = loss.keywords, cast("functools.partial[Any]", loss).func
    elif type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):  # a subclass may have another formula
        options = {"weight": loss.weight, "ignore_index": loss.ignore_index, "reduction": loss.reduction}
        if isinstance(loss, nn.CrossEntropyLoss):
            options["label_smoothing"] = loss.label_smoothing
        loss = F.cross_entropy if isinstance(loss, nn.CrossEntropyLoss) else F.nll_loss
    if loss not in (F.cross_entropy, F.nll_loss) or options.get("reduction", "mean") != "mean":
        return None
    ignored, weights = options.get("ignore_index", -100), options.get("weight")

    def weight(targets: Tensor) -> Tensor:
        if targets.is_floating_point():  # probabilities (batch, classes, ...): the mean is over all but the classes
            return torch.tensor(targets.numel() / targets.shape[1], device=targets.device)
        active = targets[targets != ignored]
        return weights[active].sum() if weights is not None else torch.tensor(active.numel(), device=targets.device)

    return SumLoss(functools.partial(loss, **{**options, "reduction": "sum"}), weight)
