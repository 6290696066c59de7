"""The sparse runtime: a program whose linear and convolutional parts run on kernels that skip zeros."""

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp.runtime.compiler import kernels
from swamp.runtime.layout import LINE
from swamp.runtime.lower import Lowered, lower
from swamp.runtime.program import Program, Ref, Step, mapped, operation
from swamp.runtime.segments import Segment, segments

Run = Callable[[dict[str, Any]], None]
"""Reads values by name, and adds those it makes."""


@dataclass(frozen=True)
class Choice:
    """How a program is run at one batch size."""

    width: int
    """Examples side by side in a block."""
    dense: frozenset[str] = frozenset()
    """Layers that torch runs."""
    alone: bool = False
    """One thread: on little work, or a busy machine, several wait for each other longer than they work."""

    def __str__(self) -> str:
        return f"kernels, {self.width} side by side" + (", one thread" if self.alone else "")


class Plan:
    """A program, lowered in one way, with the memory it needs. One call at a time."""

    def __init__(self, program: Program, choice: Choice) -> None:
        self.program, self.choice = program, choice
        self.lock = threading.Lock()
        self.kernels = kernels()
        lanes = self.kernels.swamp_lanes()
        self.runs: list[Run] = []
        self.segments: list[Kernels] = []
        for part in segments(program, choice.dense):
            if isinstance(part, Step):
                self.runs.append(in_torch(part))
                continue
            self.segments.append(Kernels(self.kernels, part, lower(program, part, choice.width, lanes), choice.alone))
            self.runs.append(self.segments[-1])

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """The program's output."""
        values: dict[str, Any] = dict(self.program.tensors)
        for given, tensor in zip(self.program.inputs, inputs, strict=True):
            values[given.name] = tensor
        with self.lock:
            for run in self.runs:
                run(values)
        return mapped(self.program.output, lambda ref: values[ref.name])

    def profile(self, inputs: Sequence[Tensor], rounds: int = 5) -> dict[str, float]:
        """Seconds that the kernels take for each layer, copies into its layout included."""
        for part in self.segments:
            part.times = np.zeros(len(part.lowered.steps))
        for _ in range(rounds):
            self(inputs)
        spent: dict[str, float] = {}
        for part in self.segments:
            for name, seconds in zip(part.lowered.names, part.times, strict=True):
                spent[name] = spent.get(name, 0.0) + float(seconds) / rounds
            part.times = None
        return spent


class Csr:
    """A program whose linear layers are products of sparse matrices in torch: for machines without a compiler."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.runs = [_in_csr(step, program) if step.op == "linear" else in_torch(step) for step in program.steps]

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """The program's output."""
        values: dict[str, Any] = dict(self.program.tensors)
        values.update(zip((given.name for given in self.program.inputs), inputs, strict=True))
        for run in self.runs:
            run(values)
        return mapped(self.program.output, lambda ref: values[ref.name])


def csr(matrix: Tensor) -> Tensor:
    """A matrix in torch's CSR layout."""
    with warnings.catch_warnings():
        # That the layout is in beta is said once a process.
        warnings.simplefilter("ignore")
        return matrix.to_sparse_csr()


def _in_csr(step: Step, program: Program) -> Run:
    known = isinstance(step.args[1], Ref) and step.args[1].name in program.tensors
    if not known or not bool((program.tensors[step.args[1].name] == 0).any()):
        return in_torch(step)
    weight = csr(program.tensors[step.args[1].name])

    def run(values: dict[str, Any]) -> None:
        inputs, bias = values[step.args[0].name], step.args[2] if len(step.args) > 2 else None
        product = (weight @ inputs.reshape(-1, inputs.shape[-1]).T).T
        if bias is not None:
            product = product + values[bias.name]
        values[step.name] = product.reshape(*inputs.shape[:-1], -1)

    return run


def in_torch(step: Step) -> Run:
    """A step run by torch."""
    call = operation(step.target)

    def run(values: dict[str, Any]) -> None:
        args, kwargs = mapped((step.args, step.kwargs), lambda ref: values[ref.name])
        values[step.name] = call(*args, **kwargs)

    return run


class Kernels:
    """A lowered segment and the arenas of its threads."""

    def __init__(self, library: Any, segment: Segment, lowered: Lowered, alone: bool = False) -> None:
        self.library, self.segment, self.lowered, self.alone = library, segment, lowered, alone
        self.arena = np.zeros(0, np.float32)
        self.times: Any = None

    def __call__(self, values: dict[str, Any]) -> None:
        """Run on the values of the segment's inputs."""
        segment, lowered = self.segment, self.lowered
        inputs = [values[name].contiguous() for name in segment.inputs]
        kinds = [segment.kinds[name] for name in segment.inputs]
        lead = next((x.shape[:1] if len(kind) == 3 else x.shape[:-1] for x, kind in zip(inputs, kinds, strict=True)))
        examples = lead.numel()
        outputs = [self._output(name, lead, inputs[0]) for name in segment.outputs]
        threads = 1 if self.alone else torch.get_num_threads()
        if len(self.arena) < threads * lowered.arena:
            self.arena = _aligned(threads * lowered.arena)
        tensors = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*(x.data_ptr() for x in (*inputs, *outputs)))
        self.library.swamp_run(
            lowered.steps.ctypes.data,
            len(lowered.steps),
            self.arena.ctypes.data,
            lowered.arena,
            ctypes.addressof(tensors),
            examples,
            lowered.width,
            threads,
            None if self.times is None else self.times.ctypes.data,
        )
        values.update(zip(segment.outputs, outputs, strict=True))

    def _output(self, name: str, lead: torch.Size, like: Tensor) -> Tensor:
        kind = self.segment.kinds[name]
        shape: tuple[int, ...] = (*lead, *kind)
        step = next(step for step in self.segment.steps if step.name == name)
        if len(kind) == 3 and step.shape is not None and len(step.shape) == 3:
            shape = (*lead, kind[0], kind[2])
        return torch.empty(shape, dtype=torch.float32)


def _aligned(count: int) -> Any:
    """Zeros on a cache line: a vector on two of them takes twice as long to read, which is nearly all that is done."""
    whole = np.zeros(count + LINE, np.float32)
    start = -whole.ctypes.data // whole.itemsize % LINE
    return whole[start : start + count]
