"""Checks that an exported network computes what the network computed: at export, and at each load on a machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swamp.batches import tensors_of
from swamp.errors import SwampError, first_line, warn
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.kernels import CompilerError, KernelConfig, KernelExecutor, RegionExecutor, kernel_library
from swamp.runtime.program import Program, torch_call
from swamp.runtime.recurrent import original_node, unroll_recurrences
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units

RELATIVE_TOLERANCE = 1e-4
"""Largest difference, relative to the largest number of the tensor, that rounding in float32 explains."""
_SIZES = (1, 2, 5)
"""Sizes at which programs are compared, in each dimension that varies."""
_BLOCKS = (1, 16)
"""Examples in a block: single examples have kernels of their own."""


def difference(found: Any, expected: Any) -> float:
    """The largest difference between two nested outputs, relative to the largest finite number of each tensor.

    NaN and infinity must be in the same places, and shapes and types must be equal; if not, the difference is infinite.
    """
    ours, theirs = tensors_of(found), tensors_of(expected)
    if len(ours) != len(theirs):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True)), default=0.0)


@torch.no_grad()
def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not (found.is_floating_point() or found.is_complex()):
        return 0.0 if torch.equal(found, expected) else float("inf")
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.allclose(
        found[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(expected[finite].abs().max())
    return float((found[finite] - expected[finite]).abs().max()) / max(scale, 1e-30)


def compared_program(
    program: Program, network: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor]
) -> tuple[Program, float]:
    """Compare a program with the network that it was traced from, and what the kernels compute with both.

    The inputs of the example are used, and random ones with three numbers for each size that varies. A kernel region
    whose result differs is noted in the program, and torch will execute it.

    Args:
        program: What `trace` returned.
        network: Computes the output of the network from inputs in the order of the program.
        inputs: The inputs of the example.

    Returns:
        The program, and the largest relative difference of its outputs.

    Raises:
        SwampError: The network does not take the example, or the outputs of the program differ from its outputs.
    """
    compact = remove_dead_units(fold_batchnorm(program))
    dense = DenseNetwork(compact).eval()
    largest = 0.0
    cases: list[tuple[str, int, Sequence[Tensor]]] = [("", 0, inputs)]
    for name, size in program.sizes.items():
        numbers = [n for n in _SIZES if size.minimum <= n <= (size.maximum or n)]
        cases += [(name, number, program.inputs_of_size(name, number, seed=number)) for number in numbers]
    used: list[tuple[Sequence[Tensor], Any]] = []
    for name, number, given in cases:
        with torch.no_grad():
            try:
                expected = network([tensor.clone() for tensor in given])
            # The network itself may not take this batch size, or these numbers.
            except Exception as error:
                if not name:
                    raise SwampError(f"the network cannot be called with the example ({first_line(error)}).") from error
                continue
            try:
                found = dense.execute([tensor.clone() for tensor in given])
            except Exception:
                found = None
        differs = difference(found, expected)
        if differs > RELATIVE_TOLERANCE and number == 1:
            # The code of a network can treat a size of 1 in another way, for instance with squeeze().
            sizes = {**program.sizes, name: replace(program.sizes[name], minimum=2)}
            program, compact = replace(program, sizes=sizes), replace(compact, sizes=sizes)
            continue
        if not differs <= RELATIVE_TOLERANCE:
            raise SwampError(
                f"the outputs of the exported program differ from those of the network by {differs:.2g} of their "
                f"largest number{f' at {name} size {number}' if name else ''}, more than rounding can explain; nothing "
                "was written. Does the network keep numbers from call to call, depend on the batch size, or use nested "
                "tensors? nn.TransformerEncoder with a padding mask needs enable_nested_tensor=False."
            )
        largest = max(largest, differs)
        used.append((given, expected))
    wrong, in_kernels = _compared_kernels(unroll_recurrences(compact), used)
    return replace(program, in_torch=frozenset(map(original_node, wrong))), max(largest, in_kernels)


def _compared_kernels(program: Program, cases: Sequence[tuple[Sequence[Tensor], Any]]) -> tuple[set[str], float]:
    """Nodes that torch must execute, and the largest difference of the outputs when the kernels execute all others.

    cases: inputs, and the outputs of the network for them.
    """
    try:
        kernel_library()
    except CompilerError as error:
        warn(str(error))
        return set(), 0.0
    executors = [KernelExecutor(program, KernelConfig(block)) for block in _BLOCKS]
    wrong = {name for one in executors for inputs, _ in cases for name in differing_nodes(one, inputs)}
    if wrong:
        program = replace(program, in_torch=frozenset(wrong))
        executors = [KernelExecutor(program, KernelConfig(block)) for block in _BLOCKS]
    largest = max((difference(one(inputs), expected) for one in executors for inputs, expected in cases), default=0.0)
    if largest <= RELATIVE_TOLERANCE:
        return wrong, largest
    # Each region agrees, but the network amplifies rounding.
    warn(
        f"with the kernels, the outputs differ by {largest:.1g} of their largest number, because the network amplifies "
        "rounding; torch executes it, zeros included."
    )
    return wrong | {node.name for one in executors for region in one.regions for node in region.region.nodes}, 0.0


def differing_nodes(executor: KernelExecutor, inputs: Sequence[Tensor]) -> set[str]:
    """Names of the nodes in regions whose outputs differ from those of torch, with a warning that names the operations.

    A region is compared for the same inputs, so that rounding does not add up over the network.
    """
    program = executor.program
    values = program.start(inputs)
    wrong: set[str] = set()
    with torch.no_grad():
        for call in executor.calls:
            if not isinstance(call, RegionExecutor):
                call(values)
                continue
            expected = dict(values)
            for node in call.region.nodes:
                torch_call(node)(expected)
            call(values)
            outputs: Mapping[str, Tensor] = {name: expected[name] for name in call.region.outputs}
            for name, tensor in outputs.items():
                if not _difference(values[name], tensor) <= RELATIVE_TOLERANCE:
                    wrong |= {node.name for node in call.region.nodes}
                    operations = ", ".join(f"{node.module or 'the model'}: {node.op}" for node in call.region.nodes)
                    warn(
                        f"the kernels differ from torch in {name!r}; torch executes these operations ({operations}). "
                        "Please report this with the model."
                    )
                    break
            values |= outputs
    return wrong
