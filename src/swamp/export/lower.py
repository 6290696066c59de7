"""From a segment to kernel steps: layouts, borders, fused sums and activations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from swamp.export.layout import (
    COPY,
    GATHER,
    GELU,
    MEAN,
    NONE,
    RELU,
    SUM,
    Arena,
    Layout,
    Place,
    record,
    runs,
    with_pitch,
)
from swamp.export.program import Program, Step
from swamp.export.segments import CONVOLUTIONS, Segment, values
from swamp.export.taps import Taps, convolution, dense_taps, pooling

Ints = NDArray[np.int64]


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


@dataclass(eq=False)
class _Pending:
    """A sum whose residual or activation may still be fused; it runs when somebody reads it."""

    taps: Taps
    shape: tuple[int, int, int]
    name: str
    layer: str
    """The step that the time of this sum is counted for."""
    residual: str | None = None
    act: int = NONE


def lower(program: Program, segment: Segment, width: int, lanes: int) -> Lowered:
    """Kernel steps of `segment` for blocks of `width` examples, side by side; vectors hold `lanes` numbers."""
    return _Lowering(program, segment, width, lanes).lowered()


class _Lowering:
    def __init__(self, program: Program, segment: Segment, width: int, lanes: int) -> None:
        self.program, self.segment, self.width, self.lanes = program, segment, width, lanes
        self.side_by_side = {"in_step": lanes, "out_step": lanes, "parts": 1}
        self.arena = Arena(lanes)
        self.records: list[Ints] = []
        self.names: list[str] = []
        self.kept: list[Any] = []
        self.places: dict[str, Place] = {}
        self.pending: dict[str, _Pending] = {}
        self.found: dict[str, Taps] = {}
        outputs = set(segment.outputs)
        self.left = {name: 0 for name in segment.kinds}
        for step in segment.steps:
            for name in values(step):
                self.left[name] += 1
        for name in outputs:
            self.left[name] += 1
        self.uses = dict(self.left)
        self.borders = self._borders()

    def lowered(self) -> Lowered:
        for step in self.segment.steps:
            self.step(step)
        for number, name in enumerate(self.segment.outputs):
            self.give(name, len(self.segment.inputs) + number)
        # Kernels may read one vector beyond the end.
        size = self.arena.size + 64
        return Lowered(np.stack(self.records), size, self.width, tuple(self.names), tuple(self.kept))

    def _borders(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Of each size of image the border that all its readers need, so that images of one size are alike."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for step in self.segment.steps:
            kind = self.segment.kinds[values(step)[0]]
            taps = self.taps(step)
            if taps is not None and len(kind) == 3 and not self.phased(taps):
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

    def phased(self, taps: Taps) -> bool:
        """Whether its input is taken apart first: where a stride is not one over whole vectors."""
        return taps.given is None and taps.stride != (1, 1) and self.width % self.lanes != 0

    def step(self, step: Step) -> None:
        """Emit a step, or note it for fusing."""
        getattr(self, f"_{'pool' if 'pool2d' in step.op else step.op}")(step)

    # Where values are.

    def place(self, name: str) -> Place:
        """Where a value lies: what is pending runs now, what comes from outside is fetched."""
        if name in self.pending:
            self._emit(self.pending.pop(name))
        if name not in self.places:
            self.fetch(name)
        return self.places[name]

    def image(self, name: str) -> Place:
        """A value's place as channels, rows and columns; vectors are images of one pixel."""
        place = self.place(name)
        if place.flat and place.shape[1:] != (1, 1):
            place = self.copied(name, place, self.layout((int(np.prod(place.shape)), 1, 1)))
        return place

    def layout(self, shape: tuple[int, int, int], *, dense: bool = True) -> Layout:
        return Layout.of(shape, self.width, self.lanes, self.borders.get(shape[1:], (0, 0)), dense=dense)

    def bind(self, name: str, place: Place) -> Place:
        """The value `name` lies there until it was read by all."""
        place.buffer.holds += 1
        self.places[name] = place
        return place

    def done(self, *names: str) -> None:
        """One reader of each was served."""
        for name in names:
            self.left[name] -= 1
            if not self.left[name] and name in self.places:
                self.arena.release(self.places[name].buffer)

    def emit(self, name: str, **fields: int) -> None:
        self.records.append(record(**fields))
        self.names.append(name)

    def keep(self, array: NDArray[Any]) -> int:
        array = np.ascontiguousarray(array)
        self.kept.append(array)
        return array.ctypes.data

    # Copies.

    def fetch(self, name: str) -> None:
        """From an input tensor, examples first, into the arena."""
        number = self.segment.inputs.index(name)
        kind = self.segment.kinds[name]
        channels, height, width = shape = kind if len(kind) == 3 else (kind[0], 1, 1)
        place = self.bind(name, Place.whole(self.arena.take(self.layout(shape))))
        each = channels * height * width
        outer = [0, height * width, width, 1, each], [0, *place.strides, 1]
        self.copy(name, shape, *outer, {"in_tensor": number, "in_example": each, "out": place.offset})

    def give(self, name: str, number: int) -> None:
        """From the arena into an output tensor."""
        place = self.place(name)
        channels, height, width = place.shape
        each = channels * height * width
        outer = [0, *place.strides, 1], [0, height * width, width, 1, each]
        self.copy(name, place.shape, *outer, {"out_tensor": number, "out_example": each, "in": place.offset})
        self.done(name)

    def copied(self, name: str, place: Place, layout: Layout) -> Place:
        """A copy in another layout; the arena's buffers are all alike to whoever comes later."""
        buffer = self.arena.take(layout, shared=False)
        target = Place.whole(buffer)
        fields = {"in": place.offset, "out": target.offset}
        self.copy(name, place.shape, [0, *place.strides, 1], [0, *_strides(target, place), 1], fields)
        return target

    def copy(
        self, name: str, shape: tuple[int, int, int], source: list[int], target: list[int], fields: dict[str, int]
    ) -> None:
        """Copy an image; source and target: strides of nothing, channels, rows, columns, examples."""
        sizes = [1, *shape, self.width]
        if shape[1:] == (1, 1):
            # One pixel: channels take the place of columns, the loop that transposes.
            sizes, source, target = ([1, 1, 1, x[1], x[4]] for x in (sizes, source, target))
        split = max(range(4), key=lambda axis: (min(sizes[axis], 4), -axis))
        strides = {f"size{axis}": size for axis, size in enumerate(sizes)}
        strides |= {f"in_stride{axis}": stride for axis, stride in enumerate(source)}
        strides |= {f"out_stride{axis}": stride for axis, stride in enumerate(target)}
        self.emit(name, op=COPY, split=split, **strides, **fields)

    # Steps.

    def _linear(self, step: Step) -> None:
        source = self.place(step.args[0].name)
        weight = self.program.tensors[step.args[1].name]
        taps = dense_taps(weight, self._bias(step), source.offsets())
        self.pending[step.name] = _Pending(taps, (len(weight), 1, 1), step.name, step.name)
        self.pending[step.name].taps.source = step.args[0].name

    def _bias(self, step: Step) -> Tensor | None:
        given = step.args[2] if len(step.args) > 2 else step.kwargs.get("bias")
        return None if given is None else self.program.tensors[given.name]

    def _conv2d(self, step: Step) -> None:
        taps = self.taps(step)
        assert taps is not None
        taps.source = step.args[0].name
        self.pending[step.name] = _Pending(taps, self.segment.kinds[step.name], step.name, step.name)  # pyright: ignore

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
        self.pending[step.name] = _Pending(taps, kind if len(kind) == 3 else (kind[0], 1, 1), step.name, step.name)  # pyright: ignore

    def _add(self, step: Step) -> None:
        one, two = (ref.name for ref in step.args)
        # The later of two sums takes the other in, as it is not computed before that one.
        for own, other in ((two, one), (one, two)):
            waiting = self.pending.get(own)
            fusable = waiting is not None and waiting.taps.op == SUM and not waiting.act and waiting.residual is None
            if waiting is not None and fusable and self.uses[own] == 1:
                del self.pending[own]
                waiting.residual, waiting.name = other, step.name
                self.left[own] -= 1
                self.pending[step.name] = waiting
                return
        kind = self.segment.kinds[step.name]
        shape = kind if len(kind) == 3 else (kind[0], 1, 1)
        ones = np.ones(shape[0])
        taps = Taps.each(ones, np.zeros(shape[0]), one)
        self.pending[step.name] = _Pending(taps, shape, step.name, step.name, residual=two)  # pyright: ignore

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
            self.left[name] -= 1
        else:
            kind = self.segment.kinds[step.name]
            shape = kind if len(kind) == 3 else (kind[0], 1, 1)
            taps = Taps.each(np.ones(shape[0]), np.zeros(shape[0]), name)
            waiting = _Pending(taps, shape, step.name, step.name, act=act)  # pyright: ignore
        self.pending[step.name] = waiting

    def _mean(self, step: Step) -> None:
        name = step.args[0].name
        source = self.image(name)
        if not source.contiguous:
            source = self.copied(name, source, self.layout(source.shape))
        channels, height, width = source.shape
        target = self.bind(step.name, Place.whole(self.arena.take(self.layout((channels, 1, 1)))))
        fields = {"in": source.offset, "out": target.offset, "in_channel": source.strides[0]}
        fields |= {"out_channel": target.strides[0], "runs": height, "in_run": source.strides[1]}
        fields |= {"length": width * self.width, "pixels": height * width, "width": self.width, "channels": channels}
        self.emit(step.name, op=MEAN, **fields)
        self.done(name)

    def _flatten(self, step: Step) -> None:
        name = step.args[0].name
        place = self.place(name)
        self.bind(step.name, replace(place, flat=place.flat or place.shape[1:] != (1, 1)))
        self.done(name)

    def _slice(self, step: Step) -> None:
        name = step.args[0].name
        self.bind(step.name, self.place(name).subsampled(step.args[1] - 1, (*step.args, None, None, 1)[4] or 1))
        self.done(name)

    def _pad(self, step: Step) -> None:
        name = step.args[0].name
        source = self.image(name)
        shape = self.segment.kinds[step.name]
        # Not shared: the channels that nothing writes stay zero.
        target = self.bind(step.name, Place.whole(self.arena.take(self.layout(shape), shared=False)))  # pyright: ignore
        first = step.args[1][4]
        fields = {"in": source.offset, "out": target.offset + first * target.strides[0]}
        self.copy(step.name, source.shape, [0, *source.strides, 1], [0, *target.strides, 1], fields)
        self.done(name)

    # Sums.

    def _emit(self, waiting: _Pending) -> None:
        taps, name = waiting.taps, waiting.taps.source
        source = self.place(name) if taps.given is not None else self.image(name)
        residual = self.image(waiting.residual) if waiting.residual is not None else None
        _, height, width = waiting.shape
        thin = self.width == 1 and (height, width) == (1, 1)
        if thin and taps.elementwise and source.strides == (1, 1, 1) and self._collapsed(waiting, source, residual):
            return
        single = thin and taps.op == SUM
        spread = taps.given is None and not single
        pitch = 0
        if self.phased(taps):
            phases = self._phase_layout(waiting, source)
            pitch = max(phases.pitch, self.layout(waiting.shape).pitch)
            source = self._phases(waiting, source, with_pitch(phases, pitch, self.lanes))
        elif taps.stride != (1, 1):
            if source.strides != Place.whole(source.buffer).strides:
                source = self.copied(waiting.layer, source, self.layout(source.shape))
        elif spread:
            # One run over rows and borders needs rows of one length: the longer of the two.
            pitch = max(source.strides[1], self.layout(waiting.shape).pitch) if self.width % self.lanes else 0
            apart = width > 1 and source.strides[2] != self.width
            if apart or (pitch and source.strides[1] != pitch and height > 1):
                source = self.copied(waiting.layer, source, with_pitch(self.layout(source.shape), pitch, self.lanes))
        if not self.width % self.lanes:
            pitch = 0
        target = Place.whole(
            self.arena.take(with_pitch(self.layout(waiting.shape, dense=single), pitch if spread else 0, self.lanes))
        )
        if residual is not None and spread and self._runs(waiting.shape, target, target, residual) is None:
            alike = with_pitch(self.layout(residual.shape), target.strides[1], self.lanes)
            residual = self.copied(waiting.layer, residual, alike)
        self._sum(waiting, source, target, residual, single)
        self.bind(waiting.name, target)
        self.done(name, *([waiting.residual] if waiting.residual is not None else []))

    def _runs(
        self, shape: tuple[int, int, int], source: Place, target: Place, residual: Place | None
    ) -> dict[str, Any] | None:
        places = [source, target, *([residual] if residual else [])]
        pitches, columns = [place.strides[1] for place in places], [place.strides[2] for place in places]
        return runs(shape[1:], self.width, self.lanes, pitches, columns)

    def _collapsed(self, waiting: _Pending, source: Place, residual: Place | None) -> bool:
        """Numbers of one example side by side: one channel of all of them."""
        plain = bool((waiting.taps.values == 1).all() and not waiting.taps.bias.any())
        if not plain or (residual is not None and residual.strides[0] != 1):
            return False
        count = waiting.shape[0]
        target = self.bind(waiting.name, Place.whole(self.arena.take(self.layout(waiting.shape))))
        fields = {"in": source.offset, "out": target.offset, "channels": 1, "runs": 1, "length": count}
        fields["residual"] = residual.offset if residual else -1
        fields |= {"rows": self.keep(np.array([0, 1], np.int32)), "offsets": self.keep(np.zeros(1, np.int32))}
        fields |= {"values": self.keep(np.ones(1, np.float32)), "bias": self.keep(np.zeros(1, np.float32))}
        fields |= self.side_by_side
        self.emit(waiting.layer, op=SUM, act=waiting.act, **fields)
        self.done(waiting.taps.source, *([waiting.residual] if waiting.residual is not None else []))
        return True

    def _phase_layout(self, waiting: _Pending, source: Place) -> Layout:
        shape, border = waiting.taps.phased(source.shape, waiting.shape[1:])
        return Layout.of(shape, self.width, self.lanes, border, dense=False)

    def _phases(self, waiting: _Pending, source: Place, layout: Layout) -> Place:
        """With a stride: every so many-th row and column apart, each such image beside the others as more channels."""
        taps = waiting.taps
        split = Place.whole(self.arena.take(layout, shared=False))
        for number, (y, x) in enumerate(taps.phases):
            part = source.subsampled(1, taps.stride[0]).subsampled(2, taps.stride[1])
            rows, columns = (
                -(-(size - at) // step) for size, at, step in zip(source.shape[1:], (y, x), taps.stride, strict=True)
            )
            offset = split.offset + number * source.shape[0] * split.strides[0]
            fields = {"in": source.offset + y * source.strides[1] + x * source.strides[2], "out": offset}
            each = (source.shape[0], rows, columns)
            self.copy(waiting.layer, each, [0, *part.strides, 1], [0, *split.strides, 1], fields)
        return replace(split, shape=(source.shape[0], *split.shape[1:]))

    def _sum(self, waiting: _Pending, source: Place, target: Place, residual: Place | None, single: bool) -> None:
        taps = waiting.taps
        rows, offsets, weights = taps.table(source, phased=self.phased(taps))
        fields = {"in": source.offset, "out": target.offset, "channels": waiting.shape[0]}
        fields |= {"out_channel": target.strides[0]}
        bias = taps.bias.astype(np.float32)
        if single:
            fields |= {"act": waiting.act, **_added(residual)} | self._sliced(rows, offsets, weights, bias)
            self.emit(waiting.layer, op=GATHER, **fields)
            return
        fields |= self._ways(waiting, source, target, residual)
        parts = taps.parts(source.shape[0], int(fields["length"]), self.width, self.lanes)
        chain = int(parts.max(initial=0))
        for number in range(chain + 1):
            mine = parts == number
            starts = np.concatenate([[0], mine.cumsum()])[rows].astype(np.int32)
            tables = (
                starts,
                offsets[mine].astype(np.int32),
                weights[mine].astype(np.float32),
                0 * bias if number else bias,
            )
            part = dict(zip(("rows", "offsets", "values", "bias"), map(self.keep, tables), strict=True))
            # Each part adds to what the one before has written; the first to the residual.
            part |= _added(target if number else residual)
            part |= {"act": waiting.act if number == chain else NONE, "chain": 0 if number else chain}
            self.emit(waiting.layer, op=taps.op, **fields, **part)

    def _ways(self, waiting: _Pending, source: Place, target: Place, residual: Place | None) -> dict[str, int]:
        """How the kernels go over an image: in runs, whose vectors lie side by side or, with a stride, apart."""
        taps, (_, height, width) = waiting.taps, waiting.shape
        fields = {"in_run": source.strides[1], "out_run": target.strides[1], "pitch": target.strides[1]}
        if taps.stride != (1, 1) and not self.phased(taps):
            parts = self.width // self.lanes
            fields |= {"runs": height * parts, "length": width * self.lanes, "parts": parts, "gaps": 0}
            fields |= {"in_step": taps.stride[1] * source.strides[2], "out_step": target.strides[2]}
            return fields | {"in_run": taps.stride[0] * source.strides[1]}
        found = self._runs(waiting.shape, source, target, residual)
        assert found is not None
        bordered = target.buffer.layout.border != (0, 0)
        clears = found["gaps"] or (bordered and found["length"] % self.lanes)
        fields |= {"runs": found["count"], "length": found["length"], "gaps": found["gaps"]}
        return fields | self.side_by_side | {"row": width * self.width if clears else 0}

    def _sliced(self, rows: Ints, offsets: Ints, weights: NDArray[Any], bias: NDArray[Any]) -> dict[str, int]:
        """Channels in slices of one a lane, sorted by how many weights they have, so that a slice is nearly full."""
        counts, lanes = np.diff(rows), self.lanes
        order = np.argsort(-counts, kind="stable")
        slices = -(-len(order) // lanes)
        padded = np.concatenate([order, np.full(slices * lanes - len(order), -1)]).reshape(slices, lanes)
        depths = np.array([counts[one[0]] for one in padded])
        starts = np.concatenate([[0], depths.cumsum()])
        at, value = np.zeros((starts[-1], lanes), np.int32), np.zeros((starts[-1], lanes), np.float32)
        shift = np.zeros((slices, lanes), np.float32)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        owner = np.repeat(np.arange(len(counts)), counts)
        depth = np.arange(len(owner)) - np.repeat(rows[:-1], counts)
        row, lane = starts[place[owner] // lanes] + depth, place[owner] % lanes
        at[row, lane], value[row, lane] = offsets, weights
        shift.reshape(-1)[: len(order)] = bias[order]
        fields = {"rows": self.keep(starts.astype(np.int32)), "offsets": self.keep(at), "values": self.keep(value)}
        return fields | {"bias": self.keep(shift), "order": self.keep(padded.astype(np.int32))}


def _added(place: Place | None) -> dict[str, int]:
    """What a sum is added to."""
    if place is None:
        return {"residual": -1}
    return {"residual": place.offset, "residual_channel": place.strides[0], "residual_run": place.strides[1]}


def _strides(target: Place, place: Place) -> tuple[int, int, int]:
    """Strides of the target for an image that becomes a vector there, if it does."""
    if not place.flat:
        return target.strides
    one = target.strides[0]
    return (one * place.shape[1] * place.shape[2], one * place.shape[2], one)
