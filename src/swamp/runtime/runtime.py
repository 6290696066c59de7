"""Sparse: a network as a module that skips its zeros, each part run in the way that is fastest here."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.runtime.archive import read
from swamp.runtime.compact import compacted
from swamp.runtime.compiler import NoCompiler, kernels
from swamp.runtime.gpu import OnGpu
from swamp.runtime.program import LAYERS, Dense, Program, Step, pattern
from swamp.runtime.rewrite import folded
from swamp.runtime.segments import segments
from swamp.runtime.sparse import Choice, Csr, Plan, in_torch

_WIDTHS = (1, 4, 16, 32, 64, 128)
_WARM_UPS = 3


@dataclass(frozen=True)
class Tuned:
    """What was measured at one batch size, and what is run there."""

    batch: int
    way: str
    """kernels (and with how many examples side by side), mixed (some layers dense), csr, or dense."""
    seconds: dict[str, float]
    """Lower quartile of the times of each way that was tried: the machine's noise only adds to them."""
    dense_layers: tuple[str, ...]
    """Modules that torch runs dense in the way that was chosen."""


class Sparse(nn.Module):
    """A program as a module for inference on CPU in float32, with the interface of the network it was traced from.

    batch: sizes that it is tuned for: each way of running it is timed, down to single layers, and the fastest is kept,
    dense torch among them. Other sizes run as the nearest of these below does. Calls from several threads wait for each
    other. Raises SwampError for inputs of another shape or type, and where gradients are asked for.
    """

    def __init__(self, program: Program, *, batch: int | Sequence[int] = (1, 32)) -> None:
        super().__init__()
        sizes = (batch,) if isinstance(batch, int) else tuple(batch)
        if not sizes or any(size < 1 for size in sizes):
            raise SwampError(f"batch sizes must be 1 or more, got {sizes}.")
        self.program = compacted(folded(program))
        self.dense = Dense(self.program).eval()
        fixed = next((given.shape[0] for given in self.program.inputs), None)
        self.tuned: dict[int, Tuned] = {}
        self._ways: dict[int, Callable[[Sequence[Tensor]], Any]] = {}
        for size in sorted({fixed} if fixed else set(sizes)):
            self._tune(size)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The network's output."""
        self.program.check(inputs)
        size = len(inputs[0]) if inputs and inputs[0].dim() else 1
        below = [tuned for tuned in self._ways if tuned <= size]
        return self._ways[max(below) if below else min(self._ways)](inputs)

    @property
    def outside(self) -> list[str]:
        """Operations that torch runs between the sparse parts, as "module: operation"."""
        found = [part for part in segments(self.program) if isinstance(part, Step) and "operator" not in part.target]
        return [f"{step.module or 'the model'}: {step.target}" for step in found]

    def _tune(self, size: int) -> None:
        inputs = [pattern(given.shape, given.dtype, size) for given in self.program.inputs]
        ways: dict[str, Callable[[Sequence[Tensor]], Any]] = {"dense": lambda given: self.dense(*given)}
        try:
            kernels()
        except NoCompiler as error:
            warnings.warn(str(error), stacklevel=4)
            ways["csr"] = Csr(self.program)
            dense: tuple[str, ...] = ()
            took = _times(ways, inputs)
        else:
            choices = _choices(size)
            ways |= {str(choice): Plan(self.program, choice) for choice in choices}
            took = _times(ways, inputs)
            best = min(choices, key=lambda choice: took[str(choice)])
            dense = self._slow(ways[str(best)], size, inputs)
            if dense:
                mixed = replace(best, dense=frozenset(dense))
                ways = {"dense": ways["dense"], str(best): ways[str(best)], "mixed": Plan(self.program, mixed)}
                took |= _times(ways, inputs)
        name = min(ways, key=lambda name: took[name])
        modules = tuple(self.program.step_of[layer].module for layer in dense) if name == "mixed" else ()
        self.tuned[size] = Tuned(size, name, took, modules)
        self._ways[size] = ways[name]

    def _slow(self, plan: Any, size: int, inputs: list[Tensor]) -> tuple[str, ...]:
        """Layers that the kernels take longer for than torch does, dense."""
        spent = plan.profile(inputs)
        slow: list[str] = []
        for step in self.program.steps:
            shape = self.program.shape_of(step.args[0].name) if step.op in LAYERS else None
            if shape is None or step.name not in spent:
                continue
            values: dict[str, Any] = dict(self.program.tensors)
            values[step.args[0].name] = pattern(shape, torch.float32, size)
            run = in_torch(step)
            if _quartile(lambda run=run, values=values: run(values)) < spent[step.name]:
                slow.append(step.name)
        return tuple(slow)


def load(
    path: Path | str,
    *,
    batch: int | Sequence[int] = (1, 32),
    dense: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The network in a file that `swamp export` or `swamp.runtime.save` wrote, ready for inference.

    batch: sizes that it is tuned for (see Sparse; on a GPU the largest). dense: run by torch alone, as the network it
    was. device, dtype: on a GPU the network is dense, but for 2:4 layers in float16 or bfloat16 (see OnGpu).
    Needs torch, numpy and safetensors, and a C compiler to be fast. Raises SwampError for a file that is cut short,
    altered, or of another kind, and for a device that is not here.
    """
    place = _device(device)
    if place.type == "cpu" and dtype != torch.float32:
        raise SwampError(f"on CPU exported networks compute in float32, got {dtype}; leave dtype out.")
    program = read(path)
    if place.type != "cpu":
        sizes = (batch,) if isinstance(batch, int) else tuple(batch)
        return OnGpu(program, place, dtype, batch=max(sizes))
    return Dense(folded(program)).eval() if dense else Sparse(program, batch=batch)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SwampError(f"the device {name!r} cannot be used here: {reason} Take cpu, or cuda on a GPU.") from error
    return device


def _choices(size: int) -> list[Choice]:
    widest = max(16, -(-size // 16) * 16)
    choices = [Choice(width) for width in _WIDTHS if width <= widest] if size > 1 else [Choice(1)]
    if torch.get_num_threads() > 1:
        choices += [replace(choice, alone=True) for choice in choices if choice.width in (1, 16)]
    return choices


def _times(ways: dict[str, Callable[[Sequence[Tensor]], Any]], inputs: list[Tensor]) -> dict[str, float]:
    """Lower quartile of the seconds of each way, measured in turns so that the machine's noise hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    until = time.perf_counter() + 1.2
    with torch.no_grad():
        for work in ways.values():
            work(inputs)
        for rounds in range(100):
            for name, work in ways.items():
                # The first calls find caches full of what the way before has left there.
                for _ in range(_WARM_UPS):
                    work(inputs)
                began = time.perf_counter()
                work(inputs)
                found[name].append(time.perf_counter() - began)
            if rounds >= 4 and time.perf_counter() > until:
                break
    return {name: statistics.quantiles(times, n=4)[0] for name, times in found.items()}


def _quartile(work: Callable[[], object], rounds: int = 5) -> float:
    times: list[float] = []
    with torch.no_grad():
        work()
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=4)[0]
