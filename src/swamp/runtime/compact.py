"""Dead units leave a program, exactly: channels that nothing reads, and channels that are the same for every input."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swamp.runtime.program import Program, Ref, Step
from swamp.runtime.segments import pair

_LAYERS = ("linear", "conv1d", "conv2d")
_BETWEEN = ("relu", "gelu", "max_pool2d", "adaptive_avg_pool2d", "mean", "flatten")
"""What keeps channels apart, and gives a constant channel as a constant one."""


@dataclass(frozen=True)
class _Chain:
    """Two layers, and the steps by which one alone reads the other."""

    layer: Step
    between: tuple[Step, ...]
    reader: Step


def compacted(program: Program) -> Program:
    """The program (folded before) without dead units; outputs are equal to rounding.

    A unit is dead when every weight that reads it is zero, or when its own weights are all zero: then it is a constant,
    which goes into the bias of its reader. Units of a layer that is read by several, as at a residual connection, stay;
    so do constants that a padded convolution reads, which are none at its border; and one unit in any case.
    """
    # From the last layer on, since what a dead unit read may be dead after it.
    for step in reversed(program.steps):
        chain = _chain(program, step)
        if chain is not None:
            program = _without_dead(program, chain)
    return program.pruned_of_dead()


def _chain(program: Program, step: Step) -> _Chain | None:
    if not _plain(program, step):
        return None
    between: list[Step] = []
    now = step
    while program.uses.get(now.name) == 1:
        reader = next((one for one in program.steps if one.args and one.args[0] == Ref(now.name)), None)
        if reader is None:
            return None
        if reader.op in _LAYERS:
            # A linear layer reads the last dimension: of an image that is not the channels.
            fits = reader.op != "linear" or step.op == "linear" or len(now.shape or ()) == 2
            return _Chain(step, tuple(between), reader) if fits and _plain(program, reader) else None
        whole = reader.op != "flatten" or tuple(reader.args[1:]) in ((1,), (1, -1), (1, 3))
        if reader.op not in _BETWEEN or not whole:
            return None
        between.append(reader)
        now = reader
    return None


def _plain(program: Program, step: Step) -> bool:
    """Whether it is a layer of one group whose weight is its own."""
    if step.op not in _LAYERS or step.kwargs or not isinstance(step.args[1], Ref):
        return False
    groups = step.args[6] if len(step.args) > 6 else 1
    names = [ref.name for ref in step.args[1:3] if ref is not None]
    return groups == 1 and all(name in program.tensors and program.uses[name] == 1 for name in names)


def _without_dead(program: Program, chain: _Chain) -> Program:
    layer, reader = chain.layer, chain.reader
    weight, reading = (program.tensors[step.args[1].name] for step in (layer, reader))
    units = len(weight)
    # A flattened image has several inputs of the reader for each channel.
    each = reading.shape[1] // units
    if reading.shape[1] != each * units:
        return program
    per_unit = reading.reshape(len(reading), units, -1)
    unread = (per_unit == 0).all(2).all(0)
    constant = (weight.flatten(1) == 0).all(1)
    bias = _bias(program, layer)
    value = torch.zeros(units) if bias is None else bias.clone()
    for step in chain.between:
        value = value.relu() if step.op == "relu" else torch.nn.functional.gelu(value) if step.op == "gelu" else value
    if reader.op != "linear" and any(_padding(reader)):
        constant &= value == 0
    keep = ~(unread | constant)
    if bool(keep.all()):
        return program
    keep[0] |= not bool(keep.any())
    tensors = dict(program.tensors)
    gone = torch.where(constant & ~keep, value, torch.zeros(units))
    more = (per_unit.double() * gone.double()[None, :, None]).sum((1, 2))
    before = _bias(program, reader)
    name = f"{reader.args[1].name}.compact_bias"
    tensors[name] = (more if before is None else more + before.double()).to(reading.dtype)
    tensors[layer.args[1].name] = weight[keep].clone()
    if bias is not None:
        tensors[layer.args[2].name] = bias[keep].clone()
    inputs = keep.repeat_interleave(each)
    tensors[reader.args[1].name] = reading[:, inputs].clone()
    changed = {reader.name: replace(reader, args=(*reader.args[:2], Ref(name), *reader.args[3:]))}
    left = int(keep.sum())
    for step in (layer, *chain.between):
        changed[step.name] = replace(step, shape=_narrowed(step.shape, layer.op, units, left))
    return replace(program, steps=tuple(changed.get(step.name, step) for step in program.steps), tensors=tensors)


def _bias(program: Program, step: Step) -> Tensor | None:
    return program.tensors[step.args[2].name] if len(step.args) > 2 and step.args[2] is not None else None


def _padding(step: Step) -> tuple[int, int]:
    given: Any = step.args[4] if len(step.args) > 4 else 0
    return (1, 1) if isinstance(given, str) else pair(given)


def _narrowed(shape: tuple[int | None, ...] | None, op: str, units: int, left: int) -> tuple[int | None, ...] | None:
    """The shape with the units that are left; a flattened image has a multiple of them."""
    if shape is None:
        return None
    axis = len(shape) - 1 if op == "linear" else 1
    size = shape[axis]
    return (*shape[:axis], None if size is None else size // units * left, *shape[axis + 1 :])
