"""Load an exported network, compare it with the outputs of the original, and print what was found as JSON.

Executed by zoo/export.py with an environment that has only what `swamp.load` needs: torch, numpy and safetensors.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

import swamp
from swamp.errors import SwampError
from swamp.runtime.checks import difference
from swamp.runtime.flat_model import call_arguments
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.regions import FusedRegion, partition

LIBRARIES = ("timm", "torchvision", "transformers", "torch_geometric", "diffusers", "scipy")


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return tensors_of(list(value.values()))
    return [tensor for one in value for tensor in tensors_of(one)] if isinstance(value, list | tuple) else []


def call(network: torch.nn.Module, inputs: Any) -> Any:
    """The outputs for positional arguments (a tuple) or keyword arguments (a dict)."""
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        return network(*args, **kwargs)


def bound(program: Any, inputs: Any) -> list[torch.Tensor]:
    """The tensors in the order of the program."""
    return program.bind(*call_arguments(inputs))


def compare(network: Any, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """The differences of a loaded network from pairs of inputs and expected outputs."""
    parts = partition(network.program)
    found = {
        "in_kernels": sum(len(part.nodes) for part in parts if isinstance(part, FusedRegion)),
        "in_torch": len(network.fallback_ops),
        "difference": max(_difference(call(network, inputs), expected) for inputs, expected in pairs),
        "kernel_difference": 0.0,
    }
    # The tuner may have chosen another way: the kernels must be right in any case.
    for block in (1, 16):
        executor = KernelExecutor(network.program, KernelConfig(block))
        for inputs, expected in pairs:
            with torch.no_grad():
                outputs = executor(bound(network.program, inputs))
            found["kernel_difference"] = max(found["kernel_difference"], _difference(outputs, expected))
    return found


def _difference(outputs: Any, expected: Any) -> float:
    return difference(tensors_of(outputs), tensors_of(expected))


def main(path: str, checks: str) -> None:
    """Print the differences from what `checks` contains: a list of (inputs, outputs)."""
    assert not any(find_spec(name) for name in LIBRARIES), "this environment has more than the runtime needs"
    torch.set_num_threads(1)
    start = time.perf_counter()
    network: Any = swamp.load(path, batch=1)
    seconds = time.perf_counter() - start
    print(json.dumps({"load_seconds": seconds, **compare(network, torch.load(checks, weights_only=True))}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SwampError as error:
        sys.exit(f"refused: {error}")
