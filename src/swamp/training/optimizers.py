"""Optimizers by name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from swamp.errors import SwampError, unknown
from swamp.masks.dtensor import is_sharded
from swamp.training.options import Training

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Parameters -> optimizer. The schedule sets its learning rate before every step."""


def build_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> Optimizer:
    """The optimizer named by `training.optimizer`. Raises SwampError for an unknown name, with the nearest one."""
    kept = list(parameters)
    # Fused kernels: 1.2 times the throughput for small networks. On a CPU they are wrong for 16-bit weights
    # (torch issue 191763).
    exact = (torch.float32, torch.float64)
    fused = all(
        (p.device.type == "cuda" and p.is_floating_point()) or (p.device.type == "cpu" and p.dtype in exact)
        for p in kept
    )
    way: dict[str, Any] = {"foreach": True} if any(map(is_sharded, kept)) else {"fused": fused}
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            kept,
            lr=training.lr,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
            **way,
        )
    if training.optimizer == "adamw":
        return torch.optim.AdamW(kept, lr=training.lr, weight_decay=training.weight_decay, **way)
    others = torch_optimizers()
    if training.optimizer not in others:
        raise unknown("optimizer", training.optimizer, ["sgd", "adamw", *others])
    try:
        return others[training.optimizer](kept, lr=training.lr, weight_decay=training.weight_decay)
    except (TypeError, ValueError) as error:
        raise SwampError(
            f"torch.optim.{training.optimizer} cannot be built from lr and weight_decay ({error}). "
            "In Python, pass optimizer=lambda parameters: ... instead."
        ) from error


def torch_optimizers() -> dict[str, Any]:
    """Name -> class of all optimizers in torch.optim that need no closure."""
    found = {name: getattr(torch.optim, name) for name in dir(torch.optim)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    }
