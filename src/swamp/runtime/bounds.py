"""Proof that the kernels stay inside their memory: all addresses that the steps of a lowered region read or write.

kernels.c defines what a step touches, and the proof has one function for each of its ops. An address is a sum of terms
that vary independently (base + channel * stride + run * stride + vector * stride + table entry), so its extremes are
the sums of the extremes of the terms. The proof holds for any batch size, for any number of examples in the last block
(1 to `block`), and for any division of the work among threads.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swamp.errors import SwampError
from swamp.runtime.accumulate import SLICE_CHANNELS
from swamp.runtime.arena import COPY, FIELDS, GATHER, MAX, MEAN, NORM, SUM, RegionBuilder

_OPS = {SUM: "SUM", MAX: "MAX", GATHER: "GATHER", MEAN: "MEAN", NORM: "NORM", COPY: "COPY"}
_LOOPS = ("op", "channels", "runs", "length", "parts", "slice", "group")
"""Fields that divide the work of a chain: kernels.c takes them from its first step."""

Step = dict[str, int]


class BoundsError(SwampError):
    """A kernel step could touch memory outside of its buffers: an error of swamp, not of its user."""


def check_bounds(builder: RegionBuilder) -> None:
    """Prove that every address which the emitted kernel steps may touch lies inside its buffer, tensor or table.

    Args:
        builder: The kernel steps of a region, with the buffers and tables to which they point.

    Raises:
        BoundsError: An address may lie outside. The message names the step and its node.
    """
    proof = _Proof(builder)
    chained, head = 0, Step()
    for number, (row, name) in enumerate(zip(builder.steps, builder.names, strict=True)):
        step: Step = dict(zip(FIELDS, row.tolist(), strict=True))
        proof.where = f"kernel step {number} ({_OPS.get(step['op'], step['op'])} of node {name!r})"
        if chained:
            fits = not step["chain"] and all(step[field] == head[field] for field in _LOOPS)
            proof.require(fits, "does not fit its chain")
        else:
            head, chained = step, step["chain"] + 1
            proof.require(0 <= step["chain"] < len(builder.steps) - number, "has a chain of the wrong length")
            proof.require(step["chain"] == 0 or step["op"] == SUM, "cannot start a chain")
        chained -= 1
        proof.require(step["op"] in _TOUCHES, "has an unknown op")
        _TOUCHES[step["op"]](proof, step)


@dataclass(frozen=True)
class _Reach:
    """The first and the last of a set of addresses, in floats."""

    first: int = 0
    last: int = 0

    def plus(self, low: int, high: int) -> "_Reach":
        return _Reach(self.first + low, self.last + high)

    def times(self, count: int, stride: int) -> "_Reach":
        """The addresses moved by 0, 1, ..., count - 1 strides."""
        reach = (count - 1) * stride
        return self.plus(min(0, reach), max(0, reach))


class _Proof:
    """What a step may touch: buffers, tensors and tables. `where` names the step in messages."""

    def __init__(self, builder: RegionBuilder) -> None:
        self.block, self.simd_width, self.where = builder.block, builder.simd_width, ""
        self.table_at = {array.ctypes.data: array for array in builder.pinned}
        self.buffer_starts = [buffer.offset for buffer in builder.arena.buffers]
        self.buffer_ends = [*self.buffer_starts[1:], builder.arena.size]
        region = builder.region
        self.tensors = [math.prod(region.extents[name]) for name in (*region.inputs, *region.outputs)]
        """Floats in one example of each tensor: the inputs, then the outputs."""
        self.inputs = len(region.inputs)

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise BoundsError(f"internal error: {self.where} {what}; please report this network.")

    def table(self, step: Step, field: str, count: int, kind: type[Any] = np.int32) -> NDArray[Any]:
        """The first `count` numbers of the table at the address in `field`."""
        found = self.table_at.get(step[field])
        self.require(found is not None and found.dtype == kind and found.size >= count, f"exceeds its table {field}")
        assert found is not None
        return found.reshape(-1)[:count]

    def arena(self, step: Step, field: str, reach: _Reach) -> int:
        """Require that these addresses, relative to that in `field`, lie in the buffer of the address; its number."""
        start = step[field]
        number = bisect_right(self.buffer_starts, start) - 1
        begin, end = (self.buffer_starts[number], self.buffer_ends[number]) if number >= 0 else (0, 0)
        inside = begin <= start + reach.first and start + reach.last < end
        touched = f"[{start + reach.first}, {start + reach.last}]"
        self.require(inside, f"touches the floats {touched} through {field}, outside of the buffer [{begin}, {end})")
        return number

    def places(self, step: Step, reads: _Reach | None, writes: _Reach, residual: _Reach | None = None) -> None:
        """Require that the step reads and writes the arena inside of its buffers, and no buffer that it writes.

        A sum may add to its own output, vector by vector.
        """
        target = self.arena(step, "out", writes)
        if reads is not None:
            self.require(self.arena(step, "in", reads) != target, "reads the buffer that it writes")
        self.require(step["residual"] >= -1, "has a residual before its arena")
        if residual is not None and step["residual"] >= 0:
            fits = self.arena(step, "residual", residual) != target or step["residual"] == step["out"]
            self.require(fits and (step["residual"] != step["out"] or residual == writes), "adds its own output")

    def sums(self, step: Step, channels: int) -> _Reach | None:
        """Check the tables of sparse sums, `channels` in a slice; the offsets that they read relative to `in`."""
        self.require(step["slice"] == channels and step["group"] >= 1, "has slices that its kernel does not support")
        slices = -(-step["channels"] // channels)
        starts = self.table(step, "row_starts", slices + 1)
        counts = np.diff(starts)
        self.require(starts[0] >= 0 and bool((counts >= (step["op"] == MAX)).all()), "has rows of negative length")
        entries = int(starts[-1]) * channels
        offsets = self.table(step, "offsets", entries)[int(starts[0]) * channels :]
        if step["op"] != MAX:
            self.table(step, "values", entries, np.float32)
            self.table(step, "bias", slices * channels, np.float32)
        if channels > 1:
            order = self.table(step, "order", slices * channels)
            whole = bool((np.sort(order[: step["channels"]]) == np.arange(step["channels"])).all())
            self.require(whole and bool((order[step["channels"] :] < 0).all()), "does not compute each channel once")
        return _Reach(int(offsets.min()), int(offsets.max())) if len(offsets) else None


def _accumulate(proof: _Proof, step: Step) -> None:
    width = proof.simd_width
    vectors = -(-step["length"] // width)
    proof.require(min(vectors, step["runs"], step["channels"], step["parts"]) >= 1, "has an empty loop")
    proof.require(step["runs"] % step["parts"] == 0, "has a row with a part missing")
    sliced = step["slice"] > 1
    if sliced:
        proof.require(step["op"] == SUM and step["in_step"] == step["out_step"] == width, "slices separate vectors")
    offsets = proof.sums(step, SLICE_CHANNELS.get(vectors, 1) if sliced else 1)

    def vector_of(run: str, stride: str) -> _Reach:
        rows = _Reach().times(step["runs"] // step["parts"], step[run]).times(step["parts"], width)
        return rows.times(vectors, step[stride]).times(width, 1)

    channel = vector_of("out_run", "out_step")
    if step["row"]:
        # clear(): the borders between the rows of the only run, and the rest of its last vector.
        proof.require(step["runs"] == 1 and step["gaps"] >= 0 and 0 <= step["row"] <= step["pitch"], "clears pixels")
        channel = _Reach(0, max(channel.last, step["gaps"] * step["pitch"] - 1))
    apart = step["channels"] == 1 or step["out_channel"] > channel.last - channel.first
    proof.require(apart, "writes a channel over another")
    reads = vector_of("in_run", "in_step").plus(offsets.first, offsets.last) if offsets else None
    writes = channel.times(step["channels"], step["out_channel"])
    # The residual is read where the result is written, with its own strides.
    residual = vector_of("residual_run", "out_step").times(step["channels"], step["residual_channel"])
    if step["residual"] == step["out"]:
        same = all(step[f"residual_{axis}"] == step[f"out_{axis}"] for axis in ("channel", "run"))
        proof.require(same, "adds its own output")
        residual = writes
    proof.places(step, reads, writes, residual if step["op"] == SUM else None)


def _gather(proof: _Proof, step: Step) -> None:
    proof.require(step["channels"] >= 1, "has an empty loop")
    offsets = proof.sums(step, proof.simd_width)
    proof.require(step["channels"] == 1 or step["out_channel"] > 0, "writes a channel over another")
    writes = _Reach().times(step["channels"], step["out_channel"])
    proof.places(step, offsets, writes, _Reach().times(step["channels"], step["residual_channel"]))


def _mean(proof: _Proof, step: Step) -> None:
    proof.require(step["block"] == proof.block, "has blocks of another size")
    proof.require(min(step["length"], step["runs"], step["channels"], step["pixels"]) >= 1, "has an empty loop")
    length = -(-step["length"] // proof.block) * proof.block
    reads = _Reach().times(length, 1).times(step["runs"], step["in_run"]).times(step["channels"], step["in_channel"])
    channel = _Reach().times(proof.block, 1)
    proof.require(step["channels"] == 1 or step["out_channel"] > channel.last, "writes a channel over another")
    proof.places(step, reads, channel.times(step["channels"], step["out_channel"]))


def _norm(proof: _Proof, step: Step) -> None:
    proof.require(min(step["length"], step["channels"]) >= 1, "has an empty loop")
    for table in ("values", "bias"):
        proof.table(step, table, step["channels"], np.float32)
    channel = _Reach().times(-(-step["length"] // proof.simd_width) * proof.simd_width, 1)
    proof.require(step["channels"] == 1 or step["out_channel"] > channel.last, "writes a channel over another")
    reads, writes = (channel.times(step["channels"], step[f"{side}_channel"]) for side in ("in", "out"))
    proof.places(step, reads, writes)


def _copy(proof: _Proof, step: Step) -> None:
    sizes = [step[f"size{axis}"] for axis in range(5)]
    proof.require(min(sizes) >= 0 and 0 <= step["split"] < 4, "has a loop of negative length")
    proof.require(sizes[4] == proof.block, "has blocks of another size")
    if not min(sizes):
        return  # such as the odd columns of an image with one column
    inside: dict[str, _Reach] = {}
    for side in ("in", "out"):
        strides = [step[f"{side}_stride{axis}"] for axis in range(5)]
        pixels = _Reach()
        for size, stride in zip(sizes[:4], strides[:4], strict=True):
            pixels = pixels.times(size, stride)
        number = step[f"{side}_tensor"]
        if number < 0:
            inside[side] = pixels.times(proof.block, strides[4])
            continue
        # An example is `strides[4]` floats, so no example reaches into the one behind it, in any block.
        written = side == "out"
        fits = number < len(proof.tensors) and (number >= proof.inputs) == written
        proof.require(fits, f"cannot {'write' if written else 'read'} tensor {number}")
        size = proof.tensors[number]
        proof.require(strides[4] == step[f"{side}_example"] == size, "has examples of another size than its tensor")
        start, end = step[side] + pixels.first, step[side] + pixels.last
        proof.require(start >= 0 and end < size, f"touches the floats [{start}, {end}] of {size} in a tensor")
    if "out" not in inside:
        proof.require("in" in inside, "copies a tensor to a tensor")
        proof.arena(step, "in", inside["in"])
    elif "in" not in inside:
        proof.arena(step, "out", inside["out"])
    else:
        proof.places(step, inside["in"], inside["out"])


_TOUCHES: Mapping[int, Callable[[_Proof, Step], None]] = {
    SUM: _accumulate,
    MAX: _accumulate,
    GATHER: _gather,
    MEAN: _mean,
    NORM: _norm,
    COPY: _copy,
}
