"""Export a network: trace it, check the program against it, and write the file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from swamp.errors import SwampError, warn
from swamp.masks import Mask
from swamp.runtime.archive import save
from swamp.runtime.checks import compared_program
from swamp.runtime.flat_model import FlatModel, VaryingSizes
from swamp.runtime.program import Program
from swamp.runtime.recurrent import unroll_recurrences
from swamp.runtime.regions import fallback_ops
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import bake_mask, trace_flat


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: The file.
        file_bytes: Its size.
        dense_bytes: Bytes of the state dict in its own types, zeros included.
        sparsity: Fraction of zeros among the weights (parameters of two or more dimensions).
        difference: Largest difference between the outputs of the file and of the network, relative to the largest
            number of each output.
        in_torch: Operations that torch executes, as "module: operator"; all others run in the kernels.
        left_out: Outputs that the file does not return, such as caches.
    """

    path: Path
    file_bytes: int
    dense_bytes: int
    sparsity: float
    difference: float
    in_torch: tuple[str, ...]
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [
            f"{self.path}: {self.file_bytes:,} bytes, 1/{self.dense_bytes / self.file_bytes:.1f} of the dense weights "
            f"({self.sparsity:.1%} zeros); outputs differ by {self.difference:.1g}"
        ]
        if self.in_torch:
            shown = sorted({one.rpartition(": ")[2] for one in self.in_torch})
            lines.append(f"in torch: {len(self.in_torch)} operations ({', '.join(shown[:8])})")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        return "\n".join(lines)


def export(
    model: Any,
    path: Path | str,
    example: Any,
    mask: Mask | None = None,
    *,
    dynamic: VaryingSizes | None = None,
    values: torch.dtype = torch.float32,
    provenance: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a sparse network to a file that `swamp.load` executes, without the classes it was written with.

    Before anything is written, the outputs of the file's program and of the kernels are compared with those of the
    network, for the example and for random inputs with three numbers for each size that varies.

    Args:
        model: The network, or what `swamp.prune` returned. It is not changed.
        path: The file to write; by custom, it ends in .safetensors.
        example: What the network is called with: a tensor, a tuple (positional arguments) or a dict (keyword
            arguments). Numbers, text and None in it stay as they are in the exported network.
        mask: The active weights. Default: those of the result, or all weights that are not zero.
        dynamic: Input -> its dimensions that vary from call to call, with a name for each size, for instance
            {"input_ids": {0: "batch", 1: "tokens"}}; equal names are equal sizes. Default: the batch, in dimension 0
            of the inputs.
        values: Type of the weights in the file: float32, or bfloat16 (rounded, half the size).
        provenance: JSON values to store with the network, such as its accuracy.

    Returns:
        Sizes, sparsity, and what runs in torch.

    Raises:
        SwampError: torch.export cannot follow the network (with its reason), the network is random, or outputs differ.

    Examples:
        >>> import tempfile, torch, swamp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = torch.nn.init.sparse_(model[0].weight, 0.75)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = swamp.export(model, f"{folder}/network.safetensors", torch.ones(2, 4))
        ...     network = swamp.load(f"{folder}/network.safetensors")
        >>> torch.allclose(network(torch.ones(3, 4)), model(torch.ones(3, 4)), atol=1e-6)
        True
    """
    if not isinstance(model, nn.Module):
        model, mask = _of_result(model, mask)
    if not isinstance(cast("Any", mask), Mask | None):
        raise SwampError(f"mask must be a swamp.Mask, got {type(mask).__name__}: swamp.Mask(tensors) makes one.")
    done = checked_program(bake_mask(model, mask), example, dynamic=dynamic)
    if provenance is not None:
        done = replace(done, program=replace(done.program, provenance=json.loads(json.dumps(dict(provenance)))))
    save(done.program, path, values=values)
    return described(done, Path(path))


@dataclass(frozen=True)
class CheckedProgram:
    """A program whose outputs equal those of its network."""

    program: Program
    difference: float
    """Largest relative difference of the outputs."""
    left_out: tuple[str, ...]
    """Outputs that the program does not return."""


def checked_program(model: nn.Module, example: Any, *, dynamic: VaryingSizes | None = None) -> CheckedProgram:
    """Trace a network in eval mode, and compare the program with it. The arguments are those of `export`."""
    flat = FlatModel(model.cpu().eval(), example)
    program = trace_flat(flat, dynamic)
    left_out = tuple(flat.record.left_out)
    program, largest = compared_program(program, lambda inputs: flat(*inputs), list(flat.tensors.values()))
    if not any(bool((parameter == 0).any()) for parameter in model.parameters() if parameter.dim() > 1):
        warn(f"{type(model).__name__} has no pruned weights, and no mask was given.")
    return CheckedProgram(program, largest, left_out)


def described(done: CheckedProgram, path: Path) -> Exported:
    """What a file with this program contains."""
    program = done.program
    tensors = [program.tensors[name] for name in sorted(set(program.state.values()))]
    weights = [tensor for tensor in tensors if tensor.dim() > 1 and tensor.is_floating_point()]
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    return Exported(
        path,
        path.stat().st_size,
        sum(tensor.numel() * tensor.itemsize for tensor in tensors),
        zeros / max(1, sum(tensor.numel() for tensor in weights)),
        done.difference,
        tuple(fallback_ops(unroll_recurrences(remove_dead_units(fold_batchnorm(program))))),
        done.left_out,
    )


def _of_result(result: Any, mask: Mask | None) -> tuple[nn.Module, Mask | None]:
    """The model and mask of what `swamp.prune` returned."""
    model, own = getattr(result, "model", None), getattr(result, "mask", None)
    if not isinstance(model, nn.Module) or not isinstance(own, Mask):
        raise SwampError(
            f"swamp.export takes a torch module, or what swamp.prune returned, got {type(result).__name__}."
        )
    return model, own if mask is None else mask
