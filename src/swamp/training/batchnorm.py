"""Fresh batch-normalisation statistics for weights that were averaged, not trained."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from swamp.training.data import Data, batch_to
from swamp.training.memory_format import to_memory_format_of
from swamp.training.task import Forward, call_model, evaluating


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def with_reestimated_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, batches: int | None = None
) -> nn.Module:
    """`reestimate_batchnorm` on a copy of `model`. Returns `model` itself if it has no running statistics."""
    if not batchnorm_layers(model):
        return model
    fresh = copy.deepcopy(model)
    reestimate_batchnorm(fresh, data, forward=forward, batch_size=batch_size, batches=batches)
    return fresh


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, batches: int | None = None
) -> None:
    """Make running statistics of `model` the equal-weight mean over batches of `data`.

    Reset, then one pass in fixed order without augmentation (at most `batches`), dropout off; an incomplete last
    batch is left out as it would count like a whole one. A model without such layers is left as it is.
    """
    layers = batchnorm_layers(model)
    if not layers:
        return
    device = next(model.parameters()).device
    momenta = [layer.momentum for layer in layers]
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's name for a cumulative mean
            layer.train()
        first_size = 0
        for batch in islice(data.in_order(batch_size), batches):
            inputs, targets = batch_to(batch, device)
            first_size = first_size or len(targets)
            if len(targets) >= first_size:
                forward(model, to_memory_format_of(model, inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """Batches are normalised as usual inside the block, but running statistics do not move."""
    # A layer in eval mode moves nothing, and without its statistics it would normalise by the batch's.
    layers = [layer for layer in batchnorm_layers(model) if layer.training]
    for layer in layers:
        layer.track_running_stats = False
    saved = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # With statistics absent, train mode uses the batch's own and writes nothing.
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (mean, var, count) in zip(layers, saved, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, count
            layer.track_running_stats = True
