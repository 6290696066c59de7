"""Mask: which weights live, kept beside the model and never inside it."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from swamp.errors import CorruptFile, MaskError, shortened
from swamp.files import digest, load_tensors, require_format, save_tensors
from swamp.masks.scope import Scope
from swamp.masks.spread import own, own_part, whole


class Mask(Mapping[str, Tensor]):
    """Frozen mapping from parameter name to a bool tensor of the parameter's shape; True means the weight lives.

    Density and sparsity always count the prunable weights, those that the mask names. Do not write into the
    tensors: make a new mask.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        wrong = [name for name, tensor in tensors.items() if tensor.dtype != torch.bool]
        if wrong:
            raise MaskError(f"a mask is made of bool tensors; {wrong[0]!r} is {tensors[wrong[0]].dtype}.")
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @classmethod
    def ones(cls, model: nn.Module, scope: Scope | None = None) -> "Mask":
        """The dense mask over the prunable weights of `model`."""
        weights = (scope or Scope()).prunable(model)
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})

    @classmethod
    def from_zeros(cls, model: nn.Module, scope: Scope | None = None) -> "Mask":
        """The mask of a model that is sparse already: a weight lives where it is not zero."""
        weights = (scope or Scope()).prunable(model)
        return cls({name: weight.detach() != 0 for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Mask({self.kept:,} of {self.prunable:,} weights, sparsity {self.sparsity:.4f})"

    @cached_property
    def kept_by_layer(self) -> dict[str, int]:
        """Living weights of each tensor."""
        return {name: int(tensor.count_nonzero()) for name, tensor in self.items()}

    @cached_property
    def digest(self) -> str:
        """Fingerprint of names, shapes and bits: equal on every machine that holds the same mask."""
        return digest(self)

    @property
    def density_by_layer(self) -> dict[str, float]:
        """Share of each tensor's weights that live."""
        return {name: kept / max(1, self[name].numel()) for name, kept in self.kept_by_layer.items()}

    @property
    def kept(self) -> int:
        """Number of living weights."""
        return sum(self.kept_by_layer.values())

    @property
    def prunable(self) -> int:
        """Number of weights the mask speaks of."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def density(self) -> float:
        """kept / prunable."""
        return self.kept / self.prunable if self.prunable else 1.0

    @property
    def sparsity(self) -> float:
        """1 - kept / prunable."""
        return 1 - self.density

    @property
    def empty_layers(self) -> list[str]:
        """Names of tensors with no living weight."""
        return [name for name, kept in self.kept_by_layer.items() if kept == 0]

    def density_of_all(self, model: nn.Module) -> float:
        """Living parameters over all parameters of `model`, biases and the rest included."""
        total = sum(parameter.numel() for parameter in model.parameters())
        return (total - self.prunable + self.kept) / total

    def issubset(self, other: "Mask") -> bool:
        """Whether every weight that lives here lives in `other`."""
        self._same_layout(other)
        return all(not bool((tensor & ~other[name].to(tensor.device)).any()) for name, tensor in self.items())

    def overlap(self, other: "Mask") -> float:
        """Jaccard index of two masks: weights alive in both over weights alive in either."""
        self._same_layout(other)
        both = sum(int((tensor & other[name].to(tensor.device)).count_nonzero()) for name, tensor in self.items())
        either = self.kept + other.kept - both
        return both / either if either else 1.0

    def to(self, device: torch.device | str) -> "Mask":
        """The same mask on another device."""
        return Mask({name: tensor.to(device) for name, tensor in self.items()})

    def check(self, model: nn.Module) -> None:
        """Raise MaskError unless every name is a parameter of `model` with the same shape."""
        parameters = dict(model.named_parameters())
        for name, tensor in self.items():
            if name not in parameters:
                raise MaskError(
                    f"the mask names {name!r}, which {type(model).__name__} does not have. "
                    f"Its parameters are {shortened(list(parameters))}."
                )
            if parameters[name].shape != tensor.shape:
                raise MaskError(
                    f"the mask of {name!r} has shape {tuple(tensor.shape)}, the parameter "
                    f"{tuple(parameters[name].shape)}. Use the mask made for this model."
                )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set the pruned weights of `model` to zero, in place."""
        self.check(model)
        parameters = dict(model.named_parameters())
        for name, tensor in self.items():
            weight = own(parameters[name])
            weight.masked_fill_(~own_part(tensor, parameters[name]).to(weight.device), 0)

    def require_zeros(self, weights: Mapping[str, Tensor]) -> None:
        """Raise MaskError if any weight lives that the mask prunes: the check before every save and evaluation."""
        # A mask that was read from a file has its names in any order, and `whole` needs one and the same everywhere.
        for name in sorted(self):
            tensor, weight = self[name], whole(weights[name]).detach()
            # No product: a living weight that is not finite would count, since inf * 0 is NaN.
            alive = int(((weight != 0) & ~tensor.to(weight.device)).count_nonzero())
            if alive:
                raise MaskError(
                    f"{alive} pruned weights of {name!r} are not zero. Something wrote to them after the mask was "
                    "applied: an optimizer that swamp.hold does not know, or a step outside the `with` block."
                )

    def save(self, path: Path | str, about: Mapping[str, str] | None = None) -> None:
        """Write the mask bit-packed (one bit a weight) as safetensors, and what is said `about` it as metadata."""
        packed = {name: _packed(tensor) for name, tensor in self.items()}
        shapes = {name: list(tensor.shape) for name, tensor in self.items()}
        own = {"format": "swamp-mask-1", "shapes": json.dumps(shapes), "digest": self.digest}
        save_tensors(Path(path), packed, {**(about or {}), **own})

    @classmethod
    def load(cls, path: Path | str) -> "Mask":
        """Read a mask that `save` wrote. Raises SwampError for a file that is missing, altered or anything else."""
        packed, metadata = load_tensors(Path(path))
        require_format(path, metadata, "swamp-mask-1", "a mask file")
        try:
            shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
            mask = cls({name: _unpacked(packed.pop(name), shape) for name, shape in shapes.items()})
            whole = mask.digest == metadata["digest"] and not packed
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CorruptFile(f"{path} is damaged: its description is not whole. Restore it or run again.") from error
        if not whole:
            raise CorruptFile(f"{path} is damaged: its bits do not match its own checksum. Restore it or run again.")
        return mask

    def _same_layout(self, other: "Mask") -> None:
        mine = {name: tensor.shape for name, tensor in self.items()}
        if mine != {name: tensor.shape for name, tensor in other.items()}:
            raise MaskError("the two masks belong to different models: their names or shapes differ.")


def _packed(tensor: Tensor) -> Tensor:
    bits = np.packbits(tensor.cpu().numpy().reshape(-1))
    return torch.from_numpy(bits)  # pyright: ignore[reportUnknownMemberType]


def _unpacked(packed: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    # Asked for more bits than there are, numpy makes them, however many.
    if not 0 <= count <= 8 * packed.numel():
        raise ValueError(f"{packed.numel()} bytes are no mask of shape {shape}")
    bits = np.unpackbits(packed.numpy(), count=count).astype(bool)
    return torch.from_numpy(bits).reshape(shape)  # pyright: ignore[reportUnknownMemberType]
