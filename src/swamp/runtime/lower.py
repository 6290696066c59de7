"""From a segment to kernel steps: layouts, borders, fused sums and activations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from swamp.runtime.layout import GELU, MEAN, RELU, SUM, Ints
from swamp.runtime.program import Program, Step
from swamp.runtime.segments import CONVOLUTIONS, Segment, values
from swamp.runtime.sums import Pending, emit_sum, taken_apart
from swamp.runtime.taps import Taps, convolution, dense_taps, pooling
from swamp.runtime.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Lowered:
    """What the kernels are given for one segment."""

    steps: Ints
    """A row of layout.FIELDS for each."""
    arena: int
    """Floats one thread needs."""
    width: int
    """Examples of a block."""
    names: tuple[str, ...]
    """Of the value that each kernel step serves."""
    kept: tuple[Any, ...]
    """Arrays that the steps point into."""


def lower(program: Program, segment: Segment, width: int, lanes: int) -> Lowered:
    """Kernel steps of `segment` for blocks of `width` examples, side by side; vectors hold `lanes` numbers."""
    return _Lowering(program, segment, width, lanes).lowered()


class _Lowering:
    def __init__(self, program: Program, segment: Segment, width: int, lanes: int) -> None:
        self.program, self.segment, self.width, self.lanes = program, segment, width, lanes
        self.found: dict[str, Taps] = {}
        self.pending: dict[str, Pending] = {}
        self.work = Workspace(segment, width, lanes, self._borders(), self._run)
        self.uses = dict(self.work.left)

    def lowered(self) -> Lowered:
        work = self.work
        for step in self.segment.steps:
            self.step(step)
        for number, name in enumerate(self.segment.outputs):
            work.give(name, len(self.segment.inputs) + number)
        # Kernels may read one vector beyond the end.
        size = work.arena.size + 64
        return Lowered(np.stack(work.records), size, self.width, tuple(work.names), tuple(work.kept))

    def _run(self, name: str) -> None:
        """Emit a sum that waited for what might be fused into it."""
        if name in self.pending:
            emit_sum(self.work, self.pending.pop(name))

    def _borders(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Of each size of image the border that all its readers need, so that images of one size are alike."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for step in self.segment.steps:
            kind = self.segment.kinds[values(step)[0]]
            taps = self.taps(step)
            if taps is not None and len(kind) == 3 and not taken_apart(taps, self.width, self.lanes):
                border = taps.border(kind[1:], self.segment.kinds[step.name][1:])  # pyright: ignore
                before = found.get(kind[1:], (0, 0))  # pyright: ignore
                found[kind[1:]] = (max(before[0], border[0]), max(before[1], border[1]))  # pyright: ignore
        return found

    def taps(self, step: Step) -> Taps | None:
        """The weighted sum that a step is, if it is one over images."""
        kinds = self.segment.kinds
        kind, own = kinds[values(step)[0]], kinds[step.name]
        if step.name not in self.found and step.op in CONVOLUTIONS:
            self.found[step.name] = convolution(step, self.program.tensors, kind, own)
        if step.name not in self.found and step.op in ("max_pool2d", "avg_pool2d"):
            self.found[step.name] = pooling(step, kind, own)
        return self.found.get(step.name)

    def step(self, step: Step) -> None:
        """Emit a step, or note it for fusing."""
        getattr(self, f"_{'pool' if 'pool2d' in step.op else step.op}")(step)

    def _linear(self, step: Step) -> None:
        source = self.work.place(step.args[0].name)
        weight = self.program.tensors[step.args[1].name]
        taps = dense_taps(weight, self._bias(step), source.offsets())
        self.pending[step.name] = Pending(taps, (len(weight), 1, 1), step.name, step.name)
        self.pending[step.name].taps.source = step.args[0].name

    def _bias(self, step: Step) -> Tensor | None:
        given = step.args[2] if len(step.args) > 2 else step.kwargs.get("bias")
        return None if given is None else self.program.tensors[given.name]

    def _conv2d(self, step: Step) -> None:
        taps = self.taps(step)
        assert taps is not None
        taps.source = step.args[0].name
        self.pending[step.name] = Pending(taps, self.segment.kinds[step.name], step.name, step.name)  # pyright: ignore

    _conv1d = _pool2d = _conv2d

    def _pool(self, step: Step) -> None:
        if step.op == "adaptive_avg_pool2d":
            self._mean(step)
        else:
            self._conv2d(step)

    def _batch_norm(self, step: Step) -> None:
        gain, shift, mean, var = (
            None if ref is None else self.program.tensors[ref.name].double() for ref in step.args[1:5]
        )
        assert mean is not None
        assert var is not None
        scale = (var + step.args[7]).rsqrt() * (1 if gain is None else gain)
        bias = (0 if shift is None else shift) - mean * scale
        kind = self.segment.kinds[step.name]
        taps = Taps.each(scale.numpy(), bias.numpy(), step.args[0].name)
        self.pending[step.name] = Pending(taps, kind if len(kind) == 3 else (kind[0], 1, 1), step.name, step.name)  # pyright: ignore

    def _add(self, step: Step) -> None:
        one, two = (ref.name for ref in step.args)
        # The later of two sums takes the other in, as it is not computed before that one.
        for own, other in ((two, one), (one, two)):
            waiting = self.pending.get(own)
            fusable = waiting is not None and waiting.taps.op == SUM and not waiting.act and waiting.residual is None
            if waiting is not None and fusable and self.uses[own] == 1:
                del self.pending[own]
                waiting.residual, waiting.name = other, step.name
                self.work.left[own] -= 1
                self.pending[step.name] = waiting
                return
        kind = self.segment.kinds[step.name]
        shape = kind if len(kind) == 3 else (kind[0], 1, 1)
        ones = np.ones(shape[0])
        taps = Taps.each(ones, np.zeros(shape[0]), one)
        self.pending[step.name] = Pending(taps, shape, step.name, step.name, residual=two)  # pyright: ignore

    def _relu(self, step: Step) -> None:
        self._activated(step, RELU)

    def _gelu(self, step: Step) -> None:
        self._activated(step, GELU)

    def _activated(self, step: Step, act: int) -> None:
        name = step.args[0].name
        waiting = self.pending.get(name)
        if waiting is not None and not waiting.act and self.uses[name] == 1:
            del self.pending[name]
            waiting.act, waiting.name = act, step.name
            self.work.left[name] -= 1
        else:
            kind = self.segment.kinds[step.name]
            shape = kind if len(kind) == 3 else (kind[0], 1, 1)
            taps = Taps.each(np.ones(shape[0]), np.zeros(shape[0]), name)
            waiting = Pending(taps, shape, step.name, step.name, act=act)  # pyright: ignore
        self.pending[step.name] = waiting

    def _mean(self, step: Step) -> None:
        name = step.args[0].name
        source = self.work.image(name)
        if not source.contiguous:
            source = self.work.copied(name, source, self.work.layout(source.shape))
        channels, height, width = source.shape
        target = self.work.bind(step.name, self.work.take((channels, 1, 1)))
        fields = {"in": source.offset, "out": target.offset, "in_channel": source.strides[0]}
        fields |= {"out_channel": target.strides[0], "runs": height, "in_run": source.strides[1]}
        fields |= {"length": width * self.width, "pixels": height * width, "width": self.width, "channels": channels}
        self.work.emit(step.name, op=MEAN, **fields)
        self.work.done(name)

    def _flatten(self, step: Step) -> None:
        name = step.args[0].name
        place = self.work.place(name)
        self.work.bind(step.name, replace(place, flat=place.flat or place.shape[1:] != (1, 1)))
        self.work.done(name)

    def _slice(self, step: Step) -> None:
        name = step.args[0].name
        self.work.bind(
            step.name, self.work.place(name).subsampled(step.args[1] - 1, (*step.args, None, None, 1)[4] or 1)
        )
        self.work.done(name)

    def _pad(self, step: Step) -> None:
        name = step.args[0].name
        source = self.work.image(name)
        shape = self.segment.kinds[step.name]
        # Not shared: the channels that nothing writes stay zero.
        target = self.work.bind(step.name, self.work.take(shape, shared=False))  # pyright: ignore
        first = step.args[1][4]
        fields = {"in": source.offset, "out": target.offset + first * target.strides[0]}
        self.work.copy(step.name, source.shape, [0, *source.strides, 1], [0, *target.strides, 1], fields)
        self.work.done(name)
