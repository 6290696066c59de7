"""Self-supervised features: SimCLR on two views of each image, judged by probes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.problem import Problem
from swamp.datasets.unlabelled.probes import knn_probe, linear_probe
from swamp.datasets.unlabelled.reduction import PROBE_EXAMPLES, applied, images_of
from swamp.datasets.unlabelled.views import Composed, ViewData
from swamp.errors import SwampError
from swamp.training.augment import contrast_cutout
from swamp.training.data import TensorData, sampled
from swamp.training.task import Task, call_model

_OUTPUTS = 64
"""Dimensions of the projection."""
_BATCH = 256
"""Images in a batch of the measured loss, which depends on it."""


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, SimCLR) of projections (batch, d) of two views."""
    both = F.normalize(torch.cat([first, second]), dim=1)
    count = len(first)
    # Each view is compared with all others but itself.
    own = torch.eye(2 * count, dtype=torch.bool, device=both.device)
    similar = (both @ both.T / temperature).masked_fill(own, -math.inf)
    return F.cross_entropy(similar, torch.arange(2 * count, device=both.device).roll(count))


def self_supervised(problem: Problem, name: str) -> Problem:
    """The images of a classification problem, to learn features from two views of each.

    The outputs of the network are the projection (64 numbers), the inputs of its last linear layer the features.
    Training and choices read no label; the probes on test data are fitted to labelled training examples.
    """
    train, test, validation = images_of(problem, name)
    probed = cast(TensorData, sampled(train.plain(), PROBE_EXAMPLES))
    task = Task.custom(
        views_of(train, train),
        simclr_loss,
        _FeatureMetrics(views_of(test, train), (probed, test), problem.classes),
        validate=None if validation is None else _FeatureMetrics(views_of(validation, train)),
        error="loss",
        # The loss of projections that say nothing.
        error_scale=math.log(2 * _BATCH - 1),
    )
    return replace(problem, task=task, classes=_OUTPUTS, adapt=partial(_with_features, name))


def views_of(data: TensorData, like: TensorData) -> ViewData:
    """The images of `data` in two strong views, by the augmentation of `like`."""
    strong = Composed((like.augment or Composed(()), contrast_cutout()))
    return ViewData(cast(Tensor, data.inputs), (strong, strong), data.normalise)


def simclr_loss(model: nn.Module, batch: Any) -> Tensor:
    """`nt_xent` of the projections of a batch of `ViewData`."""
    (first, second), _ = batch
    projections = call_model(model, torch.cat([first, second]))
    return nt_xent(projections[: len(first)], projections[len(first) :])


def _last_linear(network: nn.Module) -> nn.Linear | None:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _with_features(name: str, network: nn.Module) -> nn.Module:
    if _last_linear(network) is None:
        raise SwampError(f"{name} needs a network that ends in a linear layer, got {type(network).__name__}.")
    return network


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs (batch, d) of the last linear layer of `model`."""
    seen: list[Tensor] = []
    layer = _last_linear(model)
    assert layer is not None
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        call_model(model, inputs)
    finally:
        handle.remove()
    return seen[0].flatten(1)


@dataclass(frozen=True)
class _FeatureMetrics:
    views: ViewData
    probes: tuple[TensorData, TensorData] | None = None
    """Examples with labels to which probes are fitted, and those on which they are measured."""
    classes: int = 0

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        device = next(model.parameters()).device
        with torch.no_grad():
            # A last batch of fewer images would have another loss.
            size = min(_BATCH, len(self.views))
            batches = self.views.to(device).in_order(_BATCH)
            losses = [float(simclr_loss(model, batch)) for batch in batches if len(batch[1]) == size]
        loss = {"loss": sum(losses) / len(losses)}
        if self.probes is None:
            return loss
        train, test = (
            (applied(partial(features, model), data, device), data.targets.to(device)) for data in self.probes
        )
        return loss | {
            "linear_probe": linear_probe(train, test, self.classes),
            "knn_probe": knn_probe(train, test, self.classes),
        }
