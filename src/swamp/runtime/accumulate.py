"""Accumulate kernels: sparse weighted sums, stored as CSR offsets, and the kernel steps that compute them.

A kernel computes all examples of a block at once. It processes each output channel in runs: contiguous ranges of floats
that share the input offsets of every weight. A sum over many inputs is split into parts, so that the inputs of one part
fit into a cache; a slice is a group of output channels that a kernel computes together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from swamp.runtime.activations import IDENTITY, Activation
from swamp.runtime.arena import GATHER, MAX, SUM, ArenaView, BufferLayout, ImageShape, Ints, RegionBuilder, scalars
from swamp.runtime.program import Node, Program, as_pair
from swamp.runtime.regions import Extent

_L1_BYTES = 48 * 1024
"""Bytes of the L1 cache. The value is not critical: VGG-11 is equally fast with 40 kB and with 64 kB."""
_LINEAR_BYTES, _LINEAR_SLICED_BYTES = 128 * 1024, 40 * 1024
"""Bytes of the inputs that one part of a linear layer reads, without and with slices. Slices allow shorter sums."""
_MIN_WEIGHTS = 16
"""Least mean number of weights of an output channel in one part; half of it with slices."""
_CHANNEL_GROUPS = 16
"""Groups into which output channels are divided; a thread takes a whole group. Few, because the channels of a slice,
which should have equal numbers of weights, come from one group."""
SLICE_CHANNELS = {1: 4, 2: 4, 3: 2, 4: 2}
"""SIMD vectors in a run -> output channels in a slice (SLICES in kernels.c); 1 for longer runs."""


@dataclass(eq=False)
class CsrOffsets:
    """The non-zero weights of a layer in compressed sparse rows (CSR), one row for each output channel.

    For the output at (y, x), an entry reads input channel `channel` at row y * stride + dy, column x * stride + dx.
    """

    op: int
    row_starts: Ints
    """(channels + 1,): index of the first entry of each output channel."""
    channel: Ints
    dy: Ints
    dx: Ints
    values: NDArray[Any]
    bias: NDArray[Any]
    stride: tuple[int, int] = (1, 1)
    offsets: Ints | None = None
    """Offsets of the entries in the input; only for a linear layer, whose input is a vector."""
    source: str = ""
    """Name of the input value."""
    elementwise: bool = False
    tables: dict[Any, list[dict[str, int]]] = field(default_factory=dict[Any, list[dict[str, int]]])
    """Layout -> the tables of each part of the sum, for kernel steps that compute the same sums of other inputs."""

    @classmethod
    def per_channel(cls, scale: NDArray[Any], bias: NDArray[Any], source: str) -> "CsrOffsets":
        """Multiply each channel by its scale and add its bias."""
        count = len(scale)
        zeros = np.zeros(count, np.int64)
        starts = np.arange(count + 1)
        return cls(SUM, starts, np.arange(count), zeros, zeros, scale, bias, source=source, elementwise=True)

    def needs_phases(self, block: int, simd_width: int) -> bool:
        """Whether the input must be split into phases, one image for each remainder of (row, column) modulo the stride.

        This makes the reads of a strided layer contiguous. Not needed if a block fills whole SIMD vectors.
        """
        return self.offsets is None and self.stride != (1, 1) and block % simd_width != 0

    @property
    def phases(self) -> list[tuple[int, int]]:
        """The remainders of (row, column) modulo the stride that entries read."""
        remainders = zip(self.dy % self.stride[0], self.dx % self.stride[1], strict=True)
        return sorted({(int(y), int(x)) for y, x in remainders}) or [(0, 0)]

    def border(self, image: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of padding around the image that are read to compute an output of size `output`."""
        if not len(self.dy):
            return 0, 0
        padding = (
            max(0, -int(shift.min()), int(shift.max()) + step * (out - 1) + 1 - size)
            for shift, step, size, out in zip((self.dy, self.dx), self.stride, image, output, strict=True)
        )
        return next(padding), next(padding)

    def phase_image(self, image: ImageShape, output: tuple[int, int]) -> tuple[ImageShape, tuple[int, int]]:
        """Shape and border of the image that holds the phases of an image as channels."""
        height, width = (-(-size // step) for size, step in zip(image[1:], self.stride, strict=True))
        shifted = replace(self, dy=self.dy // self.stride[0], dx=self.dx // self.stride[1], stride=(1, 1), offsets=None)
        return (image[0] * len(self.phases), height, width), shifted.border((height, width), output)

    def parts(self, shape: ImageShape, length: int, block: int, simd_width: int, *, sliced: bool) -> Ints:
        """Assign each entry to a part of the sum, numbered from 0. The inputs of one part fit into a cache.

        Args:
            shape: Shape of the input.
            length: Floats in a run of outputs.
            block: Examples in a block.
            simd_width: Floats in a SIMD register.
            sliced: Whether slices have more than one channel.
        """
        count = len(self.values)
        if self.op != SUM or self.elementwise or not count:
            return np.zeros(count, np.int64)
        tile = min(8, -(-length // simd_width))
        if self.offsets is None:
            position, positions, cache = self.channel, shape[0], _L1_BYTES
            rows = int(np.ptp(self.dy)) + 1
            columns = tile * self.stride[1] + int(np.ptp(self.dx)) * block // simd_width
            size = positions * rows * columns * simd_width * 4
        else:
            position, positions = self.offsets, int(self.offsets.max()) + 1
            cache = _LINEAR_SLICED_BYTES if sliced else _LINEAR_BYTES
            size = int(np.prod(shape)) * tile * simd_width * 4
        # Each additional part reads and writes all sums again.
        least = _MIN_WEIGHTS // 2 if sliced else _MIN_WEIGHTS
        parts = max(1, min(-(-size // cache), count // (least * (len(self.row_starts) - 1))))
        return position * parts // positions

    def offsets_in(self, view: ArenaView, *, phased: bool) -> Ints:
        """Offsets of the entries, in floats from the first pixel of the input."""
        if self.offsets is not None:
            return self.offsets
        if not phased:
            return self.channel * view.strides[0] + self.dy * view.strides[1] + self.dx * view.strides[2]
        index = {phase: number for number, phase in enumerate(self.phases)}
        remainders = zip(self.dy % self.stride[0], self.dx % self.stride[1], strict=True)
        phase = np.array([index[int(y), int(x)] for y, x in remainders], np.int64)
        channel = self.channel + phase * view.shape[0]
        y, x = self.dy // self.stride[0], self.dx // self.stride[1]
        return channel * view.strides[0] + y * view.strides[1] + x * view.strides[2]


def linear_offsets(weight: Tensor, bias: Tensor | None, offsets: Ints, source: str) -> CsrOffsets:
    """The sums of a linear layer. offsets: position of each input feature in the arena, relative to the first."""
    values = weight.detach().numpy()
    out, feature = values.nonzero()
    starts = np.searchsorted(out, np.arange(len(values) + 1))
    shift = np.zeros(len(values)) if bias is None else bias.detach().numpy()
    none = np.zeros(0, np.int64)
    weights = values[out, feature]
    return CsrOffsets(SUM, starts, none, none, none, weights, shift, offsets=offsets[feature], source=source)


def convolution_offsets(program: Program, node: Node, image: Extent, output: Extent) -> CsrOffsets:
    """The sums of a convolution, without entries that read only padding."""
    signal, given = node.op == "conv1d", node.arguments
    values = program.tensors[node.args[1].name].detach().numpy()
    values = values[:, :, None] if signal else values
    (sy, sx), (py, px), (ly, lx) = (as_pair(given[name]) for name in ("stride", "padding", "dilation"))
    if signal:
        sy, py, ly = 1, 0, 1
    out, channel, ky, kx = values.nonzero()
    weights = values[out, channel, ky, kx]
    channel = channel + out // (len(values) // given["groups"]) * values.shape[1]
    dy, dx = ky * ly - py, kx * lx - px
    inside = _reads_image(dy, sy, image[1], output[1]) & _reads_image(dx, sx, image[2], output[2])
    out, channel, dy, dx, weights = (array[inside] for array in (out, channel, dy, dx, weights))
    bias = program.bias_of(node)
    shift = np.zeros(len(values)) if bias is None else bias.detach().numpy()
    starts = np.searchsorted(out, np.arange(len(values) + 1))
    return CsrOffsets(SUM, starts, channel, dy, dx, weights, shift, (sy, sx), source=node.args[0].name)


def _reads_image(shift: Ints, stride: int, size: int, output: int) -> Any:
    """Whether any of `output` outputs reads a pixel of the image, and not only padding, at this shift."""
    return (shift < size) & (shift + stride * (output - 1) >= 0)


def pooling_offsets(node: Node, image: Extent) -> CsrOffsets:
    """The sums or maxima of max_pool2d and avg_pool2d."""
    source, given = node.args[0].name, node.arguments
    kernel, padding, dilation = (as_pair(given.get(name, 1)) for name in ("kernel_size", "padding", "dilation"))
    stride = as_pair(given["stride"] or kernel)
    ys, xs = (np.arange(size) * step - pad for size, step, pad in zip(kernel, dilation, padding, strict=True))
    count = len(ys) * len(xs)
    channels = np.arange(image[0])
    values = np.full(image[0] * count, 1 / count)
    dy, dx = np.tile(np.repeat(ys, len(xs)), image[0]), np.tile(xs, len(ys) * image[0])
    op = MAX if node.op == "max_pool2d" else SUM
    starts = np.arange(image[0] + 1) * count
    return CsrOffsets(op, starts, np.repeat(channels, count), dy, dx, values, np.zeros(image[0]), stride, source=source)


@dataclass(eq=False)
class PendingAccumulate:
    """A sum that is not emitted yet, so that a residual addition or an activation can be fused into it.

    It is emitted when another node reads its value.
    """

    csr: CsrOffsets
    shape: ImageShape
    name: str
    """Name of its value."""
    layer: str
    """The node under which a profile counts its time."""
    residual: str | None = None
    gate: bool = False
    """Whether the sum is multiplied by the residual, in place of adding it."""
    act: Activation = IDENTITY


class Emission:
    """The kernel steps of a sum with its fused residual and activation."""

    def __init__(self, builder: RegionBuilder, pending: PendingAccumulate) -> None:
        self.builder, self.pending, self.csr = builder, pending, pending.csr
        self.block, self.simd_width = builder.block, builder.simd_width
        self.contiguous_step = {"in_step": self.simd_width, "out_step": self.simd_width, "parts": 1}
        self.phased = self.csr.needs_phases(self.block, self.simd_width)
        one_pixel = pending.shape[1:] == (1, 1)
        self.one_number = self.block == 1 and one_pixel
        self.gathers = self.one_number and self.csr.op == SUM
        """Whether the kernel gathers single inputs, and its SIMD vectors hold neighbouring output channels."""
        self.slides = self.csr.offsets is None and not self.gathers
        """Whether the kernel slides over an image (a convolution or pooling)."""

    def emit(self) -> None:
        """Emit the steps, and register the view of the value that they compute."""
        builder, pending, csr = self.builder, self.pending, self.csr
        source = builder.view(csr.source) if csr.offsets is not None else builder.image(csr.source)
        residual = builder.image(pending.residual) if pending.residual is not None else None
        if self.one_number and csr.elementwise and source.strides == (1, 1, 1) and self._emit_flat(source, residual):
            return
        source, pitch = self._prepared(source)
        layout = builder.layout(pending.shape, dense=self.gathers)
        layout = layout.with_pitch(pitch if self.slides else 0, self.simd_width)
        target = ArenaView.whole(builder.arena.allocate(layout))
        if residual is not None and self.slides and self._runs(target, target, residual) is None:
            alike = builder.layout(residual.shape).with_pitch(target.strides[1], self.simd_width)
            residual = builder.copied(pending.layer, residual, alike)
        if self.gathers:
            self._emit_gather(source, target, residual)
        else:
            self._emit_sums(source, target, residual)
        self._finish(target)

    def _finish(self, target: ArenaView) -> None:
        self.builder.bind(self.pending.name, target)
        self.builder.mark_read(self.csr.source, *([self.pending.residual] if self.pending.residual is not None else []))

    def _prepared(self, source: ArenaView) -> tuple[ArenaView, int]:
        """Copy the input to a layout that the kernel supports if necessary.

        Returns the view of the input, and the least number of floats between rows of the output.
        """
        builder, csr, (_, height, width) = self.builder, self.csr, self.pending.shape
        pitch = 0
        if self.phased:
            shape, border = csr.phase_image(source.shape, self.pending.shape[1:])
            layout = BufferLayout.for_image(shape, self.block, self.simd_width, border, dense=False)
            pitch = max(layout.pitch, builder.layout(self.pending.shape).pitch)
            source = self._split_phases(source, layout.with_pitch(pitch, self.simd_width))
            assert _covers(source.border, border)
        elif self.slides:
            border = csr.border(source.shape[1:], self.pending.shape[1:])
            copies = not _covers(source.border, border)
            if csr.stride == (1, 1):
                # A run that spans rows and borders needs equal distances between rows in input and output.
                if self.block % self.simd_width:
                    pitch = max(source.strides[1], builder.layout(self.pending.shape).pitch)
                separate = width > 1 and source.strides[2] != self.block
                copies |= separate or (pitch > 0 and source.strides[1] != pitch and height > 1)
            if copies:
                layout = builder.layout(source.shape).with_pitch(pitch, self.simd_width)
                source = builder.copied(self.pending.layer, source, layout)
            assert _covers(source.border, border)
        return source, pitch

    def _split_phases(self, source: ArenaView, layout: BufferLayout) -> ArenaView:
        """Copy each phase (the rows and columns with one remainder modulo the stride) to channels of its own."""
        csr, builder = self.csr, self.builder
        split = ArenaView.whole(builder.arena.allocate(layout, reusable=False))
        part = source.subsampled(1, csr.stride[0]).subsampled(2, csr.stride[1])
        for number, (y, x) in enumerate(csr.phases):
            rows, columns = (
                -(-(size - at) // step) for size, at, step in zip(source.shape[1:], (y, x), csr.stride, strict=True)
            )
            offset = split.offset + number * source.shape[0] * split.strides[0]
            fields = {"in": source.offset + y * source.strides[1] + x * source.strides[2], "out": offset}
            shape = (source.shape[0], rows, columns)
            builder.emit_copy(self.pending.layer, shape, [*part.strides, 1], [*split.strides, 1], fields)
        return replace(split, shape=(source.shape[0], *split.shape[1:]))

    def _emit_flat(self, source: ArenaView, residual: ArenaView | None) -> bool:
        """Try to emit a layer without weights and biases (identity, addition, activation) as one elementwise step.

        Applies to one example whose values are contiguous. Returns False if nothing was emitted.
        """
        plain = bool((self.csr.values == 1).all() and not self.csr.bias.any())
        if not plain or (residual is not None and residual.strides[0] != 1):
            return False
        pin, target = self.builder.pin, self.builder.allocate(self.pending.shape)
        fields = {"in": source.offset, "out": target.offset, "channels": 1, "runs": 1, "length": self.pending.shape[0]}
        fields |= self._residual_fields(residual) | self._act_fields()
        fields |= {"row_starts": pin(np.array([0, 1], np.int32)), "offsets": pin(np.zeros(1, np.int32))}
        fields |= {"values": pin(np.ones(1, np.float32)), "bias": pin(np.zeros(1, np.float32))}
        self.builder.emit(self.pending.layer, op=SUM, **fields, **self.contiguous_step)
        self._finish(target)
        return True

    def _emit_gather(self, source: ArenaView, target: ArenaView, residual: ArenaView | None) -> None:
        fields = self._places(source, target) | self._act_fields() | self._residual_fields(residual)
        self.builder.emit(self.pending.layer, op=GATHER, **fields, **self._tables(source, 1, self.simd_width)[0])

    def _emit_sums(self, source: ArenaView, target: ArenaView, residual: ArenaView | None) -> None:
        """Emit one kernel step for each part of the sum; each adds to the result of the previous step."""
        fields = self._places(source, target) | self._loop_fields(source, target, residual)
        tables = self._tables(source, fields["length"], self._slice_channels(fields))
        chain = len(tables) - 1
        for number, part in enumerate(tables):
            # The first part adds the bias and the residual. Each later part adds to the output of the previous part.
            part = part | (self._residual_fields(residual) if not number else _added(target))
            part |= (self._act_fields() if number == chain else {}) | {"chain": 0 if number else chain}
            self.builder.emit(self.pending.layer, op=self.csr.op, **fields, **part)

    def _tables(self, source: ArenaView, length: int, channels: int) -> list[dict[str, int]]:
        """The addresses of the tables of weights and offsets, for each part of the sum.

        length: floats in a run of outputs. channels: output channels in a slice.
        """
        csr, key = self.csr, (source.strides, source.shape, length, channels)
        if key not in csr.tables:
            bias, offsets = csr.bias.astype(np.float32), csr.offsets_in(source, phased=self.phased)
            parts = np.zeros(len(csr.values), np.int64)
            if not self.gathers:
                parts = csr.parts(source.shape, length, self.block, self.simd_width, sliced=channels > 1)
            chain = int(parts.max(initial=0))
            csr.tables[key] = []
            for number in range(chain + 1):
                mine = parts == number
                starts = np.concatenate([[0], mine.cumsum()])[csr.row_starts]
                shift = 0 * bias if number else bias
                table = self._part_tables(starts, offsets[mine], csr.values[mine], shift, channels, chained=chain > 0)
                csr.tables[key].append(table)
        return csr.tables[key]

    def _residual_fields(self, residual: ArenaView | None) -> dict[str, int]:
        return {} if residual is None else _added(residual) | {"gate": int(self.pending.gate)}

    def _act_fields(self) -> dict[str, int]:
        return {"act": self.pending.act.code, "scalars": scalars(self.pending.act.low, self.pending.act.high)}

    def _places(self, source: ArenaView, target: ArenaView) -> dict[str, int]:
        fields = {"in": source.offset, "out": target.offset, "channels": self.pending.shape[0]}
        return fields | {"out_channel": target.strides[0]}

    def _slice_channels(self, fields: Mapping[str, int]) -> int:
        contiguous = fields["in_step"] == fields["out_step"] == self.simd_width
        vectors = -(-fields["length"] // self.simd_width)
        return SLICE_CHANNELS.get(vectors, 1) if contiguous and self.csr.op == SUM else 1

    def _loop_fields(self, source: ArenaView, target: ArenaView, residual: ArenaView | None) -> dict[str, int]:
        """Number, length and distances of the runs in which the kernel computes an image."""
        csr, (_, height, width) = self.csr, self.pending.shape
        fields = {"in_run": source.strides[1], "out_run": target.strides[1], "pitch": target.strides[1]}
        if csr.stride != (1, 1) and not self.phased:
            parts = self.block // self.simd_width
            fields |= {"runs": height * parts, "length": width * self.simd_width, "parts": parts, "gaps": 0}
            fields |= {"in_step": csr.stride[1] * source.strides[2], "out_step": target.strides[2]}
            return fields | {"in_run": csr.stride[0] * source.strides[1]}
        runs = self._runs(source, target, residual)
        assert runs is not None
        bordered = target.buffer.layout.border != (0, 0)
        clears = runs["gaps"] or (bordered and runs["length"] % self.simd_width)
        return fields | runs | self.contiguous_step | {"row": width * self.block if clears else 0}

    def _runs(self, source: ArenaView, target: ArenaView, residual: ArenaView | None) -> dict[str, int] | None:
        """Number and length of contiguous runs: one run over all rows and their borders, or one run for each row.

        Returns the cheaper of the two, or None if neither is possible. In a run, the input, the output and the residual
        must have the same relative offsets.
        """
        views = [source, target, *([residual] if residual else [])]
        _, height, width = self.pending.shape
        if width > 1 and any(view.strides[2] != self.block for view in views):
            return None
        row, pitch = width * self.block, target.strides[1]
        candidates: list[dict[str, int]] = []
        if height == 1 or len({view.strides[1] for view in views}) == 1:
            gaps = height - 1 if pitch > row else 0
            candidates.append({"runs": 1, "length": (height - 1) * pitch + row, "gaps": gaps})
        if row % self.simd_width == 0:
            candidates.append({"runs": height, "length": row, "gaps": 0})
        return min(candidates, key=self._loads, default=None)

    def _loads(self, runs: Mapping[str, int]) -> int:
        """Memory loads for one weight: its input vectors, and its value and offset for each tile of eight vectors."""
        vectors = -(-runs["length"] // self.simd_width)
        return runs["runs"] * (vectors + 2 * -(-vectors // 8))

    def _part_tables(
        self, starts: Ints, offsets: Ints, weights: NDArray[Any], bias: NDArray[Any], channels: int, *, chained: bool
    ) -> dict[str, int]:
        """Store the tables of weights and offsets, with `channels` output channels in a slice; return their addresses.

        Channels are sorted so that those of a slice have similar numbers of weights. chained: several steps add to the
        same sums, so each channel stays in one group, which the same thread computes in every step.
        """
        pin = self.builder.pin
        if channels == 1:
            tables = {"row_starts": starts.astype(np.int32), "offsets": offsets.astype(np.int32)}
            tables |= {"values": weights.astype(np.float32), "bias": bias}
            return {name: pin(table) for name, table in tables.items()}
        counts = np.diff(starts)
        group = -(-len(counts) // (_CHANNEL_GROUPS * channels)) * channels if chained else len(counts)
        order = np.lexsort((-counts, np.arange(len(counts)) // group))
        tables = _sliced_tables(starts, offsets, weights, bias, order, channels)
        addresses = {name: pin(table) for name, table in tables.items()}
        return addresses | {"slice": channels, "group": group // channels if chained else 1}


def _sliced_tables(
    starts: Ints, offsets: Ints, weights: NDArray[Any], bias: NDArray[Any], order: Ints, channels: int
) -> dict[str, NDArray[Any]]:
    """Interleave the entries of each slice of `channels` channels, taken in `order`; shorter channels get zeros."""
    counts = np.diff(starts)
    slices = -(-len(order) // channels)
    padded = np.concatenate([order, np.full(slices * channels - len(order), -1)]).reshape(slices, channels)
    # The first channel of a slice has the most entries.
    depths = np.array([counts[one[0]] for one in padded])
    slice_starts = np.concatenate([[0], depths.cumsum()])
    at, value = (np.zeros((slice_starts[-1], channels), dtype) for dtype in (np.int32, np.float32))
    shift = np.zeros((slices, channels), np.float32)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    channel = np.repeat(np.arange(len(counts)), counts)
    depth = np.arange(len(channel)) - np.repeat(starts[:-1], counts)
    row, column = slice_starts[position[channel] // channels] + depth, position[channel] % channels
    at[row, column], value[row, column] = offsets, weights
    shift.reshape(-1)[: len(order)] = bias[order]
    tables = {"row_starts": slice_starts.astype(np.int32), "offsets": at, "values": value, "bias": shift}
    return tables | {"order": padded.astype(np.int32)}


def _added(view: ArenaView) -> dict[str, int]:
    """The kernel fields of a residual, the value that is added to a sum."""
    return {"residual": view.offset, "residual_channel": view.strides[0], "residual_run": view.strides[1]}


def _covers(border: tuple[int, int], needed: tuple[int, int]) -> bool:
    """Whether a border of zeros has the rows and columns that a sum reads outside the image."""
    return border[0] >= needed[0] and border[1] >= needed[1]
