"""Kernel steps of a weighted sum: how it goes over its image, what is copied first, and what is fused into it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swamp.runtime.layout import GATHER, NONE, SUM, Ints, Layout, Place, runs, with_pitch
from swamp.runtime.taps import Taps
from swamp.runtime.workspace import Workspace

_GROUPS = 16
"""Of channels, where threads share a layer in groups: few, as channels are only sorted within theirs."""
_SLICES = {1: 4, 2: 4, 3: 2, 4: 2}
"""Vectors of a run -> channels that kernels sum at once; the SLICES of kernels.c. One, where a run is longer."""


@dataclass(eq=False)
class Pending:
    """A sum whose residual or activation may still be fused; it runs when somebody reads it."""

    taps: Taps
    shape: tuple[int, int, int]
    name: str
    layer: str
    """The step that the time of this sum is counted for."""
    residual: str | None = None
    act: int = NONE


def emit_sum(work: Workspace, waiting: Pending) -> None:
    """Emit a sum with what was fused into it; its value has a place then."""
    _Emission(work, waiting).emit()


def taken_apart(taps: Taps, width: int, lanes: int) -> bool:
    """Whether the input of a sum is taken apart first: where a stride is not one over whole vectors."""
    return taps.given is None and taps.stride != (1, 1) and width % lanes != 0


class _Emission:
    def __init__(self, work: Workspace, waiting: Pending) -> None:
        self.work, self.waiting, self.taps = work, waiting, waiting.taps
        self.width, self.lanes = work.width, work.lanes
        self.side_by_side = {"in_step": self.lanes, "out_step": self.lanes, "parts": 1}
        self.phased = taken_apart(self.taps, self.width, self.lanes)

    def emit(self) -> None:
        work, waiting, taps, name = self.work, self.waiting, self.taps, self.taps.source
        source = work.place(name) if taps.given is not None else work.image(name)
        residual = work.image(waiting.residual) if waiting.residual is not None else None
        _, height, width = waiting.shape
        thin = self.width == 1 and (height, width) == (1, 1)
        if thin and taps.elementwise and source.strides == (1, 1, 1) and self._collapsed(source, residual):
            return
        single = thin and taps.op == SUM
        spread = taps.given is None and not single
        pitch = 0
        if self.phased:
            phases = self._phase_layout(source)
            pitch = max(phases.pitch, work.layout(waiting.shape).pitch)
            source = self._phases(source, with_pitch(phases, pitch, self.lanes))
        elif taps.stride != (1, 1):
            if source.strides != Place.whole(source.buffer).strides:
                source = work.copied(waiting.layer, source, work.layout(source.shape))
        elif spread:
            # One run over rows and borders needs rows of one length: the longer of the two.
            pitch = max(source.strides[1], work.layout(waiting.shape).pitch) if self.width % self.lanes else 0
            apart = width > 1 and source.strides[2] != self.width
            if apart or (pitch and source.strides[1] != pitch and height > 1):
                source = work.copied(waiting.layer, source, with_pitch(work.layout(source.shape), pitch, self.lanes))
        if not self.width % self.lanes:
            pitch = 0
        target = Place.whole(
            work.arena.take(with_pitch(work.layout(waiting.shape, dense=single), pitch if spread else 0, self.lanes))
        )
        if residual is not None and spread and self._runs(waiting.shape, target, target, residual) is None:
            alike = with_pitch(work.layout(residual.shape), target.strides[1], self.lanes)
            residual = work.copied(waiting.layer, residual, alike)
        self._sum(source, target, residual, single)
        work.bind(waiting.name, target)
        work.done(name, *([waiting.residual] if waiting.residual is not None else []))

    def _runs(
        self, shape: tuple[int, int, int], source: Place, target: Place, residual: Place | None
    ) -> dict[str, Any] | None:
        places = [source, target, *([residual] if residual else [])]
        pitches, columns = [place.strides[1] for place in places], [place.strides[2] for place in places]
        return runs(shape[1:], self.width, self.lanes, pitches, columns)

    def _collapsed(self, source: Place, residual: Place | None) -> bool:
        """Numbers of one example side by side: one channel of all of them."""
        plain = bool((self.taps.values == 1).all() and not self.taps.bias.any())
        if not plain or (residual is not None and residual.strides[0] != 1):
            return False
        count = self.waiting.shape[0]
        target = self.work.bind(self.waiting.name, self.work.take(self.waiting.shape))
        fields = {"in": source.offset, "out": target.offset, "channels": 1, "runs": 1, "length": count}
        fields["residual"] = residual.offset if residual else -1
        fields |= {"rows": self.work.keep(np.array([0, 1], np.int32)), "offsets": self.work.keep(np.zeros(1, np.int32))}
        fields |= {"values": self.work.keep(np.ones(1, np.float32)), "bias": self.work.keep(np.zeros(1, np.float32))}
        fields |= self.side_by_side
        self.work.emit(self.waiting.layer, op=SUM, act=self.waiting.act, **fields)
        self.work.done(self.taps.source, *([self.waiting.residual] if self.waiting.residual is not None else []))
        return True

    def _phase_layout(self, source: Place) -> Layout:
        shape, border = self.taps.phased(source.shape, self.waiting.shape[1:])
        return Layout.of(shape, self.width, self.lanes, border, dense=False)

    def _phases(self, source: Place, layout: Layout) -> Place:
        """With a stride: every so many-th row and column apart, each such image beside the others as more channels."""
        taps, work = self.taps, self.work
        split = Place.whole(work.arena.take(layout, shared=False))
        for number, (y, x) in enumerate(taps.phases):
            part = source.subsampled(1, taps.stride[0]).subsampled(2, taps.stride[1])
            rows, columns = (
                -(-(size - at) // step) for size, at, step in zip(source.shape[1:], (y, x), taps.stride, strict=True)
            )
            offset = split.offset + number * source.shape[0] * split.strides[0]
            fields = {"in": source.offset + y * source.strides[1] + x * source.strides[2], "out": offset}
            each = (source.shape[0], rows, columns)
            work.copy(self.waiting.layer, each, [0, *part.strides, 1], [0, *split.strides, 1], fields)
        return replace(split, shape=(source.shape[0], *split.shape[1:]))

    def _sum(self, source: Place, target: Place, residual: Place | None, single: bool) -> None:
        taps = self.taps
        rows, offsets, weights = taps.table(source, phased=self.phased)
        fields = {"in": source.offset, "out": target.offset, "channels": self.waiting.shape[0]}
        fields |= {"out_channel": target.strides[0]}
        bias = taps.bias.astype(np.float32)
        if single:
            fields |= {"act": self.waiting.act, **_added(residual)}
            fields |= self._tables(rows, offsets, weights, bias, self.lanes)
            self.work.emit(self.waiting.layer, op=GATHER, **fields)
            return
        fields |= self._ways(source, target, residual)
        slice = self._slice(fields)
        parts = taps.parts(source.shape, int(fields["length"]), self.width, self.lanes, sliced=slice > 1)
        chain = int(parts.max(initial=0))
        for number in range(chain + 1):
            mine = parts == number
            starts = np.concatenate([[0], mine.cumsum()])[rows]
            # Each part adds to what the one before has written; the first to the residual.
            part = _added(target if number else residual)
            part |= {"act": self.waiting.act if number == chain else NONE, "chain": 0 if number else chain}
            shift = 0 * bias if number else bias
            part |= self._tables(starts, offsets[mine], weights[mine], shift, slice, alone=not chain)
            self.work.emit(self.waiting.layer, op=taps.op, **fields, **part)

    def _slice(self, fields: Mapping[str, int]) -> int:
        near = fields["in_step"] == fields["out_step"] == self.lanes
        return _SLICES.get(-(-fields["length"] // self.lanes), 1) if near and self.taps.op == SUM else 1

    def _ways(self, source: Place, target: Place, residual: Place | None) -> dict[str, int]:
        """How the kernels go over an image: in runs, whose vectors lie side by side or, with a stride, apart."""
        taps, (_, height, width) = self.taps, self.waiting.shape
        fields = {"in_run": source.strides[1], "out_run": target.strides[1], "pitch": target.strides[1]}
        if taps.stride != (1, 1) and not self.phased:
            parts = self.width // self.lanes
            fields |= {"runs": height * parts, "length": width * self.lanes, "parts": parts, "gaps": 0}
            fields |= {"in_step": taps.stride[1] * source.strides[2], "out_step": target.strides[2]}
            return fields | {"in_run": taps.stride[0] * source.strides[1]}
        found = self._runs(self.waiting.shape, source, target, residual)
        assert found is not None
        bordered = target.buffer.layout.border != (0, 0)
        clears = found["gaps"] or (bordered and found["length"] % self.lanes)
        fields |= {"runs": found["count"], "length": found["length"], "gaps": found["gaps"]}
        return fields | self.side_by_side | {"row": width * self.width if clears else 0}

    def _tables(
        self,
        rows: Ints,
        offsets: Ints,
        weights: NDArray[Any],
        bias: NDArray[Any],
        slice: int,
        *,
        alone: bool = True,
    ) -> dict[str, int]:
        """Weights and where they read, channel by channel or in slices of channels with about equal numbers of weights.

        alone: whether no other step adds to these sums; else a channel stays in the group that one thread sums.
        """
        if slice == 1:
            tables = {"rows": rows.astype(np.int32), "offsets": offsets.astype(np.int32)}
            tables |= {"values": weights.astype(np.float32), "bias": bias}
            return {name: self.work.keep(table) for name, table in tables.items()}
        counts = np.diff(rows)
        group = len(counts) if alone else -(-len(counts) // (_GROUPS * slice)) * slice
        order = np.lexsort((-counts, np.arange(len(counts)) // group))
        slices = -(-len(order) // slice)
        padded = np.concatenate([order, np.full(slices * slice - len(order), -1)]).reshape(slices, slice)
        depths = np.array([counts[one[0]] for one in padded])
        starts = np.concatenate([[0], depths.cumsum()])
        at, value = np.zeros((starts[-1], slice), np.int32), np.zeros((starts[-1], slice), np.float32)
        shift = np.zeros((slices, slice), np.float32)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        owner = np.repeat(np.arange(len(counts)), counts)
        depth = np.arange(len(owner)) - np.repeat(rows[:-1], counts)
        row, lane = starts[place[owner] // slice] + depth, place[owner] % slice
        at[row, lane], value[row, lane] = offsets, weights
        shift.reshape(-1)[: len(order)] = bias[order]
        tables = {"rows": starts.astype(np.int32), "offsets": at, "values": value, "bias": shift}
        tables["order"] = padded.astype(np.int32)
        fields = {name: self.work.keep(table) for name, table in tables.items()}
        return fields | {"slice": slice, "group": 1 if alone else group // slice}


def _added(place: Place | None) -> dict[str, int]:
    """What a sum is added to."""
    if place is None:
        return {"residual": -1}
    return {"residual": place.offset, "residual_channel": place.strides[0], "residual_run": place.strides[1]}
