"""Weights that are computed from other tensors: torch's parametrisations, and older forms that are refused."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from swamp.errors import SwampError
from swamp.model_copy import copied_model

_ADVICE = {
    WeightNorm: (
        "torch.nn.utils.weight_norm",
        "torch.nn.utils.remove_weight_norm(layer), then torch.nn.utils.parametrizations.weight_norm(layer)",
    ),
    SpectralNorm: (
        "torch.nn.utils.spectral_norm",
        "torch.nn.utils.remove_spectral_norm(layer), then torch.nn.utils.parametrizations.spectral_norm(layer)",
    ),
    BasePruningMethod: (
        "torch.nn.utils.prune",
        "torch.nn.utils.prune.remove(layer, 'weight'), which keeps its zeros: swamp.Mask.from_zeros reads them",
    ),
}


class Original(NamedTuple):
    """The tensor behind a parametrised weight whose zeros are zeros of the weight."""

    name: str
    """Attribute of the ParametrizationList: `original`, or `original0`, `original1`, ..."""
    slices: tuple[int, ...] | None
    """Dimensions over which a slice without any active weight would give NaN; None: no slice does."""


class Parametrized(NamedTuple):
    """One parametrised tensor of a model."""

    module: nn.Module
    """The layer that has it."""
    tensor: str
    """Its name in the layer."""
    prefix: str
    """Prefix of its originals' names in the model."""
    parametrizations: ParametrizationList
    shape: torch.Size
    original: Original | None
    """None: zeros of no original are zeros of the tensor, as for an orthogonal weight."""

    @property
    def kinds(self) -> str:
        """Class names of the parametrisations."""
        return ", ".join(type(one).__name__.lstrip("_") for one in self.parametrizations)


def require_plain_weights(model: nn.Module) -> None:
    """Raise SwampError for weights that a forward pre-hook computes: old weight_norm, spectral_norm, and torch's prune.

    Such a weight is an attribute of the layer and not a parameter, and the layer cannot be deep-copied after use.
    """
    for name, module in cast(Any, model).named_modules():
        for hook in module._forward_pre_hooks.values():
            for kind, (what, instead) in _ADVICE.items():
                if isinstance(hook, kind):
                    raise SwampError(
                        f"{name or type(model).__name__!r} has a weight that {what} computes before each forward pass, "
                        f"so that it cannot be pruned or copied. Replace it first: {instead}."
                    )


def parametrized_tensors(model: nn.Module) -> Iterator[Parametrized]:
    """The parametrised tensors of a model. Probes each parametrisation on a copy."""
    for name, module in cast(Any, model).named_modules():
        if is_parametrized(module):
            for tensor, found in module.parametrizations.items():
                prefix = f"{name}." if name else ""
                shape, original = _probed(found)
                yield Parametrized(module, tensor, f"{prefix}parametrizations.{tensor}.", found, shape, original)


def slices_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter name -> dimensions of the slices that need an active weight: an empty one would give NaN.

    weight_norm divides each slice by its norm; spectral_norm divides the whole weight.
    """
    return {
        one.prefix + one.original.name: one.original.slices
        for one in parametrized_tensors(model)
        if one.original is not None and one.original.slices is not None
    }


@torch.no_grad()
def _probed(given: ParametrizationList) -> tuple[torch.Size, Original | None]:
    probe, generator = copied_model(given).cpu().eval(), torch.Generator().manual_seed(0)
    with cast(Any, torch.random).fork_rng(devices=[]):
        shape = probe().shape
        names = [name for name in dict(cast(Any, probe).named_parameters(recurse=False)) if name.startswith("original")]
        for name in names:
            value: Tensor = getattr(probe, name)
            if value.shape == shape and value.is_floating_point():
                for other in probe.parameters():
                    other.copy_(torch.rand(other.shape, generator=generator) + 0.5)
                if _keeps_zeros(probe, value, generator):
                    return shape, Original(name, _slices(probe, value, names))
    return shape, None


def _keeps_zeros(probe: ParametrizationList, value: Tensor, generator: torch.Generator) -> bool:
    active = torch.rand(value.shape, generator=generator) < 0.5
    value.mul_(active)
    weight = probe()
    # NaN: the slice is empty by chance.
    zero, whole = (weight == 0) | weight.isnan(), weight.isfinite() & (weight != 0)
    return bool(zero[~active].all() and whole[active].all())


def _slices(probe: ParametrizationList, value: Tensor, names: list[str]) -> tuple[int, ...] | None:
    value.zero_()
    if bool(probe().isfinite().all()):
        return None
    # A second original with one entry for each slice, as the norms of weight_norm.
    sizes = [getattr(probe, name).shape for name in names if getattr(probe, name) is not value]
    divided = [size for size in sizes if len(size) == value.dim()]
    return tuple(dim for dim in range(value.dim()) if not divided or divided[0][dim] == 1)
