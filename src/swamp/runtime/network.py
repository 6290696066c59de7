"""SparseNetwork: an exported network as a module that skips its zeros, executed by the method that is fastest here."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from swamp.errors import SwampError, first_line, warn
from swamp.runtime.archive import read
from swamp.runtime.checks import differing_nodes
from swamp.runtime.dense import DenseNetwork, ExportedNetwork
from swamp.runtime.gpu import GpuNetwork
from swamp.runtime.kernels import CompilerError, CsrNetwork, KernelConfig, KernelExecutor, kernel_library
from swamp.runtime.program import BATCH, LAYERS, Program, torch_call
from swamp.runtime.recurrent import original_node, unroll_recurrences
from swamp.runtime.regions import fallback_ops
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units

Executor = Callable[[Sequence[Tensor]], Any]

_BLOCKS = (1, 4, 16, 32, 64, 128)
_TUNING_SECONDS = 1.2
_CALLS = 3
"""Calls of an executor in a row: the first finds caches that the executor before has filled."""
_DROPPED = {1: 2.0, 2: 1.5, 4: 1.25, 8: 1.12, 16: 1.06}
"""After this many rounds, executors that took this many times as long as the fastest are no longer timed."""
_ALIKE = 1.03
"""Times that differ by less are noise: the first executor is chosen."""


@dataclass(frozen=True)
class Tuning:
    """What was measured at one batch size, and the chosen method.

    Attributes:
        batch: The batch size.
        method: "kernels, blocks of N" (N examples at once), "mixed" (some layers dense), "csr" or "dense".
        seconds: Method -> least measured seconds of a call. Slow methods are measured less often than fast ones.
        dense_layers: Module paths of the layers that torch executes if the method is "mixed".
    """

    batch: int
    method: str
    seconds: dict[str, float]
    dense_layers: tuple[str, ...]


class _InvalidInputsError(SwampError):
    """The network cannot be executed with inputs of this size, or with these numbers."""


class SparseNetwork(ExportedNetwork):
    """An exported network for inference on the CPU in float32. It is called like the network that was traced.

    For each batch size in `batch`, several methods are timed, and the fastest is kept: the kernels with different block
    sizes, dense execution by torch, and kernels with some layers dense. Other batch sizes use the method of the next
    smaller one. They are timed with random inputs; if the network takes none of these (because indices must be in
    order, for instance), with the inputs of the first call. What is kept has computed the same as torch: a region of
    the kernels that differs runs in torch, with a warning. Concurrent calls are executed one by one. Without a C
    compiler, a warning is issued, and CSR products of torch are timed in place of the kernels.

    Args:
        program: What `trace` or `read` returned.
        batch: The batch size or sizes to tune for.

    Attributes:
        tuned: Batch size -> what was measured and chosen.
        in_kernels: The program of the kernels, in which recurrent layers are unrolled.

    Raises:
        SwampError: A batch size is below 1. A call raises it for inputs of another shape or dtype, and for inputs that
            require gradients.
    """

    def __init__(self, program: Program, *, batch: int | Sequence[int] = (1, 32)) -> None:
        sizes = _batch_sizes(batch)
        super().__init__(remove_dead_units(fold_batchnorm(program)))
        self.dense = DenseNetwork(self.program).eval()
        self.in_kernels = unroll_recurrences(self.program)
        self.tuned: dict[int, Tuning] = {}
        self._executors: dict[int, Executor] = {}
        # Without a size that varies, or with others than the batch, there is one case.
        for size in sorted(set(sizes) if BATCH in program.sizes else {1}):
            with suppress(_InvalidInputsError):
                self._tune(size, self.program.example_inputs(size))

    def execute(self, inputs: Sequence[Tensor], batch: int) -> Any:
        """The output for inputs in the order of the program."""
        if not self._executors:
            self._tune(batch, inputs)
        smaller = [tuned for tuned in self._executors if tuned <= batch]
        return self._executors[max(smaller) if smaller else min(self._executors)](inputs)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{one.name} ({', '.join(map(str, one.shape))})" for one in self.program.inputs)
        in_torch = len(self.fallback_ops)
        lines = [f"SparseNetwork({inputs}): {in_torch} of {len(self.program.nodes)} operations in torch"]
        lines += [
            f"  batch {size}: {tuned.method}, {1e3 * tuned.seconds[tuned.method]:.3g} ms "
            f"(dense {1e3 * tuned.seconds['dense']:.3g} ms)"
            for size, tuned in self.tuned.items()
        ]
        return "\n".join(lines)

    @property
    def fallback_ops(self) -> list[str]:
        """Operators that torch executes between the kernels, as "module: operator"."""
        return fallback_ops(self.in_kernels)

    def _tune(self, size: int, inputs: Sequence[Tensor]) -> None:
        try:
            self.dense.execute(inputs)
        # The program may come from a file, and torch raises errors of any type.
        except Exception as error:
            raise _InvalidInputsError(
                f"the exported network cannot be executed with these inputs, {size} examples ({first_line(error)})."
            ) from error
        dense: dict[str, Executor] = {"dense": self.dense.execute}
        dense_layers: tuple[str, ...] = ()
        try:
            kernel_library()
        except CompilerError as error:
            warn(str(error))
            executors: dict[str, Executor] = {"csr": CsrNetwork(self.program).execute, **dense}
            seconds = _least_seconds(executors, inputs)
        else:
            program = self.in_kernels
            first = KernelExecutor(program, KernelConfig(16))
            first(inputs)
            configs = _configs(max((region.rows for region in first.regions), default=size))
            kernels = {str(one): first if one == first.config else KernelExecutor(program, one) for one in configs}
            executors = {**kernels, **dense}
            seconds = _least_seconds(executors, inputs)
            best = _choice(seconds, kernels)
            dense_layers = self._layers_faster_in_torch(kernels[best], inputs)
            if dense_layers:
                mixed = KernelExecutor(program, replace(kernels[best].config, dense=frozenset(dense_layers)))
                executors = {best: kernels[best], "mixed": mixed, **dense}
                seconds |= _least_seconds(executors, inputs)
        method = _choice(seconds, executors)
        names = dense_layers if method == "mixed" else ()
        modules = tuple(self.in_kernels.node_by_name[name].module for name in names)
        chosen = executors[method]
        wrong = differing_nodes(chosen, inputs) if isinstance(chosen, KernelExecutor) else set[str]()
        if wrong:
            self.in_kernels = replace(self.in_kernels, in_torch=self.in_kernels.in_torch | wrong)
            self._tune(size, inputs)
            return
        self.tuned[size] = Tuning(size, method, seconds, modules)
        self._executors[size] = chosen

    def _layers_faster_in_torch(self, executor: KernelExecutor, inputs: Sequence[Tensor]) -> tuple[str, ...]:
        kernel_seconds = executor.profile(inputs)
        faster: list[str] = []
        program = self.in_kernels
        values = program.start(inputs)
        for node in program.nodes:
            call = torch_call(node)
            call(values)
            # Not the steps of a recurrent layer: between them, torch would be called at every step.
            if node.op in LAYERS and node.name in kernel_seconds and original_node(node.name) == node.name:
                before = {name: values[name] for name in node.reads}
                if (
                    min(_seconds(lambda call=call, before=before: call(before)) for _ in range(6))
                    < kernel_seconds[node.name]
                ):
                    faster.append(node.name)
        return tuple(faster)


def load(
    path: Path | str,
    *,
    batch: int | Sequence[int] = (1, 32),
    dense: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load an exported network for inference.

    Needs torch, numpy and safetensors; to be fast on a CPU, also a C compiler. No code of the file is executed.

    Args:
        path: A file that `swamp.export` or `swamp export` wrote, or the run directory in which it lies.
        batch: The batch size or sizes to tune for. A GPU is tuned for the largest.
        dense: Execute the network in torch, zeros included.
        device: A device of torch. On a GPU the network is dense, except for linear layers with a 2:4 pattern in float16
            or bfloat16.
        dtype: Type in which a GPU computes. A CPU computes in float32.

    Returns:
        A `SparseNetwork`, `DenseNetwork` or `GpuNetwork`.

    Raises:
        SwampError: The file is cut short, altered or of another format, a batch size is below 1, the device is not
            available, or a CPU is asked for another dtype.

    Examples:
        >>> import swamp
        >>> network = swamp.load("runs/x/export.safetensors", batch=32)  # doctest: +SKIP
        >>> outputs = network(inputs)  # doctest: +SKIP
    """
    sizes, place = _batch_sizes(batch), _device(device)
    if place.type == "cpu" and dtype != torch.float32:
        raise SwampError(f"on CPU exported networks compute in float32, got dtype {dtype}; omit dtype.")
    program = read(exported_file(Path(path)))
    if place.type != "cpu":
        return GpuNetwork(program, place, dtype, batch=max(sizes))
    return DenseNetwork(fold_batchnorm(program)).eval() if dense else SparseNetwork(program, batch=sizes)


def _batch_sizes(batch: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (batch,) if isinstance(batch, int) else tuple(batch)
    if not sizes or any(size < 1 for size in sizes):
        raise SwampError(f"batch sizes must be 1 or more, got {sizes}.")
    return sizes


def exported_file(path: Path) -> Path:
    """The exported file: the path itself, or that in a run directory. Raises SwampError for another directory."""
    if path.is_dir() and not (path / "config.json").exists() and not (path / "export.safetensors").exists():
        raise SwampError(f"{path} is a directory without an exported network, and no run of swamp. Give another path.")
    if path.is_dir() and not (path / "export.safetensors").exists():
        if (path / "mask.safetensors").exists() and not (path / "environment.json").exists():
            raise SwampError(
                f"{path} has a model, but no exported network. Read it with swamp.pretrained.from_pretrained, or save "
                "it again with an example."
            )
        raise SwampError(f"{path} has no exported network. Write one with: swamp export {quote(str(path))}")
    return path / "export.safetensors" if path.is_dir() else path


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).rstrip(".")
        raise SwampError(f"the device {name!r} cannot be used: {reason}. Use cpu, or cuda on a GPU.") from error
    return device


def _configs(rows: int) -> list[KernelConfig]:
    # Blocks up to the number of rows, but not much smaller.
    blocks = [1] if rows == 1 else [block for block in _BLOCKS if rows <= 32 * block and block < rows + 15]
    configs = [KernelConfig(block) for block in blocks or _BLOCKS[-2:]]
    if torch.get_num_threads() > 1:
        configs += [replace(config, one_thread=True) for config in configs if config.block in (1, 16)]
    return configs


def _least_seconds(executors: dict[str, Executor], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Least seconds of a call of each executor: other load of the machine only adds to them.

    They are measured in turn, and the longer the closer an executor is to the fastest.
    """
    least = dict.fromkeys(executors, math.inf)
    remaining = list(executors)
    end = time.perf_counter() + _TUNING_SECONDS
    with torch.no_grad():
        for rounds in range(1, 101):
            for name in remaining:
                times = [_seconds(lambda name=name: executors[name](inputs)) for _ in range(_CALLS)]
                least[name] = min(least[name], *times)
            limit = _DROPPED.get(rounds, math.inf) * min(least.values())
            remaining = [name for name in remaining if least[name] <= limit]
            if len(remaining) == 1 or (rounds >= 4 and time.perf_counter() > end):
                break
    return least


def _choice(seconds: Mapping[str, float], names: Iterable[str]) -> str:
    """The first of the names whose seconds are those of the fastest, up to noise."""
    limit = _ALIKE * min(seconds[name] for name in names)
    return next(name for name in names if seconds[name] <= limit)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
