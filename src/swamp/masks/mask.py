"""Mask: which weights are active. It is kept beside the model, never inside it."""

import html
import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from swamp.arguments import checked
from swamp.errors import CorruptFile, MaskError, plural, shortened
from swamp.fields import check_value
from swamp.files import digest, load_tensors, require_format, save_tensors
from swamp.masks.dtensor import full_tensor, local_shard, to_local
from swamp.masks.scope import Scope
from swamp.masks.zeros import masks_from_zeros

_FORMAT = "swamp-mask-1"
_HTML_ROWS = 12


class Mask(Mapping[str, Tensor]):
    """Frozen mapping from parameter name to a bool tensor of the parameter's shape; True means active (not pruned).

    Density and sparsity are relative to the prunable weights, those that the mask names. Do not write to the tensors:
    create a new mask.

    Args:
        tensors: Parameter name to bool tensor. The tensors are copied.

    Raises:
        MaskError: For a tensor that is not bool.

    Examples:
        >>> import torch
        >>> mask = Mask({"weight": torch.tensor([[True, False], [True, True]])})
        >>> mask
        Mask(3 of 4 weights, sparsity 0.2500, 1 layer)
        >>> mask.nnz, mask.density
        (3, 0.75)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        check_value("tensors", Mapping, tensors)
        for name, tensor in tensors.items():
            kind = tensor.dtype if isinstance(cast(Any, tensor), Tensor) else f"a {type(tensor).__name__}"
            if kind != torch.bool:
                raise MaskError(f"a mask consists of bool tensors; {name!r} is {kind}.")
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @classmethod
    @checked
    def ones(cls, model: nn.Module, scope: Scope | None = None) -> "Mask":
        """The dense mask of a model.

        Args:
            model: Its parameters give names, shapes and devices.
            scope: Which parameters are prunable; default: the weights of all layers, see `Scope`.

        Returns:
            A mask with every prunable weight active.

        Raises:
            SwampError: If the model has no prunable parameter.

        Examples:
            >>> from torch import nn
            >>> Mask.ones(nn.Linear(4, 2))
            Mask(8 of 8 weights, sparsity 0.0000, 1 layer)
        """
        weights = (scope or Scope()).prunable(model)
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})

    @classmethod
    def from_zeros(cls, model: nn.Module, scope: Scope | None = None) -> "Mask":
        """The mask of a sparse model: a weight is active where it is not zero.

        Without a scope all parameters are read: the mask covers the default scope, and every other parameter that has
        zeros. Zeros by initialisation are not pruned weights. A parameter that is all zeros and requires a gradient is
        active, with a warning if it is a matrix: LoRA's second factor, heads that start at zero. So is a vector with
        one single nonzero value, as a bias of an LSTM, and the padding row of an embedding. Other zeros of a vector are
        held, also those that training left there by accident; give the scope that was pruned to leave vectors out.

        Args:
            model: A sparse model.
            scope: The parameters to read.

        Returns:
            The mask, in the order of `model.named_parameters()`.

        Raises:
            SwampError: If the scope is empty, or no parameter is prunable or has zeros.

        Examples:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> model.load_state_dict({"weight": torch.tensor([[0.0, 1.0]]), "bias": torch.zeros(1)})
            <All keys matched successfully>
            >>> Mask.from_zeros(model)["weight"]
            tensor([[False,  True]])
        """
        # Not by the decorator: warnings name the line of the caller.
        check_value("model", nn.Module, model)
        check_value("scope", Scope | None, scope)
        return cls(masks_from_zeros(model, scope))

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
        layers = plural(len(self), "layer")
        return f"Mask({self.nnz:,} of {self.prunable:,} weights, sparsity {self.sparsity:.4f}, {layers})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{self.nnz_by_layer[name]:,}</td><td>{tensor.numel():,}</td>"
            f"<td>{self.density_by_layer[name]:.4f}</td></tr>"
            for name, tensor in list(self.items())[:_HTML_ROWS]
        ]
        left_out = len(self) - len(rows)
        if left_out > 0:
            rows.append(f"<tr><td colspan='4'>and {left_out} more</td></tr>")
        head = "<tr><th>layer</th><th>active</th><th>weights</th><th>density</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{head}{''.join(rows)}</table>"

    @cached_property
    def nnz_by_layer(self) -> dict[str, int]:
        """Number of active weights of each tensor."""
        return {name: int(tensor.count_nonzero()) for name, tensor in self.items()}

    @cached_property
    def digest(self) -> str:
        """Fingerprint of names, shapes and bits: equal masks have equal digests on every machine."""
        return digest(self)

    @property
    def density_by_layer(self) -> dict[str, float]:
        """Active weights over all weights of each tensor."""
        return {name: nnz / max(1, self[name].numel()) for name, nnz in self.nnz_by_layer.items()}

    @property
    def nnz(self) -> int:
        """Number of active weights."""
        return sum(self.nnz_by_layer.values())

    @property
    def prunable(self) -> int:
        """Number of weights that the mask covers, active or not."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def density(self) -> float:
        """nnz / prunable."""
        return self.nnz / self.prunable if self.prunable else 1.0

    @property
    def sparsity(self) -> float:
        """1 - nnz / prunable."""
        return 1 - self.density

    @property
    def empty_layers(self) -> list[str]:
        """Names of tensors without an active weight."""
        return [name for name, nnz in self.nnz_by_layer.items() if nnz == 0]

    def density_of_all(self, model: nn.Module) -> float:
        """Parameters that are not pruned over all parameters of `model`, biases and embeddings included."""
        total = sum(parameter.numel() for parameter in model.parameters())
        return (total - self.prunable + self.nnz) / total if total else 1.0

    def issubset(self, other: "Mask") -> bool:
        """Whether every weight active here is active in `other`. Raises MaskError for a mask of another model."""
        self._require_same_shapes(other)
        return all(not bool((tensor & ~other[name].to(tensor.device)).any()) for name, tensor in self.items())

    def overlap(self, other: "Mask") -> float:
        """Jaccard index: weights active in both masks over weights active in either.

        Args:
            other: A mask with the same names and shapes.

        Returns:
            A number in [0, 1]; 1 for equal masks.

        Raises:
            MaskError: For a mask of another model.
        """
        self._require_same_shapes(other)
        both = sum(int((tensor & other[name].to(tensor.device)).count_nonzero()) for name, tensor in self.items())
        either = self.nnz + other.nnz - both
        return both / either if either else 1.0

    def to(self, device: torch.device | str) -> "Mask":
        """A copy of the mask on another device."""
        return Mask({name: tensor.to(device) for name, tensor in self.items()})

    @checked
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
                    f"{tuple(parameters[name].shape)}. Use a mask that was created for this model."
                )

    @torch.no_grad()
    @checked
    def apply_(self, model: nn.Module) -> None:
        """Set the pruned weights of `model` to zero, in place. Raises MaskError if the mask does not fit the model."""
        self.check(model)
        parameters = dict(model.named_parameters())
        for name, tensor in self.items():
            weight = to_local(parameters[name])
            weight.masked_fill_(~local_shard(tensor, parameters[name]).to(weight.device), 0)

    def require_zeros(self, weights: Mapping[str, Tensor]) -> None:
        """Raise MaskError if a pruned weight is not zero: the check before every save and evaluation."""
        # Sorted: `full_tensor` needs the same order in all processes, and the order of names in a file may differ.
        for name in sorted(self):
            if name not in weights:
                raise MaskError(f"the mask names {name!r}, which is not among the weights.")
            tensor, weight = self[name], full_tensor(weights[name]).detach()
            # Not a product: inf * 0 is NaN, so that an active weight that is not finite would count.
            nonzero = int(((weight != 0) & ~tensor.to(weight.device)).count_nonzero())
            if nonzero:
                raise MaskError(
                    f"{nonzero} pruned weights of {name!r} are not zero. Something changed them after the mask was "
                    "applied: an optimizer that was not passed to swamp.hold, or a step outside the `with` block."
                )

    @checked
    def save(self, path: Path | str, about: Mapping[str, str] | None = None) -> None:
        """Write the mask to a safetensors file, one bit per weight.

        Args:
            path: The file. It is replaced atomically.
            about: Further metadata of the file.

        Raises:
            SwampError: If the file cannot be written.
        """
        packed = {name: _packed(tensor) for name, tensor in self.items()}
        shapes = {name: list(tensor.shape) for name, tensor in self.items()}
        own = {"format": _FORMAT, "shapes": json.dumps(shapes), "digest": self.digest}
        save_tensors(Path(path), packed, {**(about or {}), **own})

    @classmethod
    @checked
    def load(cls, path: Path | str) -> "Mask":
        """Read a mask that `save` wrote.

        Raises:
            SwampError: For a file that is missing, altered or not a mask.
        """
        packed, metadata = load_tensors(Path(path))
        require_format(path, metadata, _FORMAT, "a mask file")
        try:
            shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
            mask = cls({name: _unpacked(packed.pop(name), shape) for name, shape in shapes.items()})
            matches = mask.digest == metadata["digest"] and not packed
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CorruptFile(f"{path} is damaged: its metadata is incomplete. Restore it or run again.") from error
        if not matches:
            raise CorruptFile(f"{path} is damaged: its bits do not match its own checksum. Restore it or run again.")
        return mask

    def _require_same_shapes(self, other: "Mask") -> None:
        check_value("other", Mask, other)
        shapes = {name: tensor.shape for name, tensor in self.items()}
        if shapes != {name: tensor.shape for name, tensor in other.items()}:
            raise MaskError("the two masks belong to different models: their names or shapes differ.")


def _packed(tensor: Tensor) -> Tensor:
    bits = np.packbits(tensor.cpu().numpy().reshape(-1))
    return torch.from_numpy(bits)  # pyright: ignore[reportUnknownMemberType]


def _unpacked(packed: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    # numpy would pad to any requested number of bits, whatever the memory it takes.
    if not 0 <= count <= 8 * packed.numel():
        raise ValueError(f"{packed.numel()} bytes are no mask of shape {shape}")
    bits = np.unpackbits(packed.numpy(), count=count).astype(bool)
    return torch.from_numpy(bits).reshape(shape)  # pyright: ignore[reportUnknownMemberType]
