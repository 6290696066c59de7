"""The arena: the memory for activations while a fused region is executed, and the kernel steps that copy them.

Invariants that all kernel steps rely on:

- A border is zero. The arena starts as zeros, steps write pixels only or clear what else they wrote, and the memory of
  a buffer is reused only for the same layout. A view of some rows or columns has other pixels around it, hence no
  border (`ArenaView.border`): it is copied before it is padded.
- A step may read and write up to one SIMD vector behind the last pixel of a channel. `BufferLayout.plane` has room for
  it, and so has the end of a buffer whose channels are single numbers (`Arena.allocate`).
- SIMD lanes are examples or positions and are never mixed, so that NaN and infinity stay in their example.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swamp.runtime.regions import Extent, FusedRegion, activations

Ints = NDArray[np.int64]
ImageShape = tuple[int, int, int]
"""Channels, rows, columns."""

FIELDS = (
    *("op", "act", "scalars", "in", "out", "residual", "in_tensor", "in_example", "out_tensor", "out_example"),
    *("channels", "out_channel", "residual_channel", "gate", "runs", "in_run", "out_run", "residual_run", "length"),
    *("in_step", "out_step", "parts", "chain", "slice", "group"),
    *("gaps", "row", "pitch", "in_channel", "pixels", "block", "row_starts", "offsets", "values", "bias", "order"),
    *(f"{name}{axis}" for name in ("size", "in_stride", "out_stride") for axis in range(5)),
    "split",
)
"""The fields of `step` in kernels.c, in its order."""
SUM, MAX, GATHER, MEAN, NORM, COPY = range(6)
LINE = 16
"""Floats in a cache line."""


def scalars(low: float, high: float = 0.0) -> int:
    """Two float32 numbers as the field "scalars", which kernels.c reads as `low` and `high`."""
    return int(np.array([low, high], np.float32).view(np.int64)[0])


def extent_shape(extent: Extent) -> ImageShape:
    """An extent as (channels, rows, columns); a vector is an image of one pixel."""
    return extent if len(extent) == 3 else (extent[0], 1, 1)


def _kernel_step(**fields: int) -> Ints:
    """A `step` of kernels.c. Fields that are not given: no tensor, no residual, one channel in a slice, otherwise 0."""
    given = {"residual": -1, "in_tensor": -1, "out_tensor": -1, "slice": 1, "group": 1, **fields}
    return np.array([given.get(name, 0) for name in FIELDS], dtype=np.int64)


@dataclass(frozen=True)
class BufferLayout:
    """Memory layout of a buffer: [channel][row][column][example in the block], with a border of zeros."""

    channels: int
    height: int
    width: int
    block: int
    """Examples in a block: the last dimension, which is contiguous."""
    border: tuple[int, int]
    """Rows above and below the image, columns to its left and right."""
    pitch: int
    """Floats between rows."""
    plane: int
    """Floats between channels."""

    @classmethod
    def for_image(
        cls,
        shape: ImageShape,
        block: int,
        simd_width: int,
        border: tuple[int, int] = (0, 0),
        pitch: int = 0,
        *,
        dense: bool = True,
    ) -> "BufferLayout":
        """The layout of an image with at least `pitch` floats between rows.

        dense: if each channel is one number (one pixel, one example), store no padding between channels.
        """
        channels, height, width = shape
        pitch = max(pitch, (width + 2 * border[1]) * block)
        if dense and height == width == block == 1 and border == (0, 0):
            return cls(channels, 1, 1, 1, border, 1, 1)
        origin = border[0] * pitch + border[1] * block
        # Kernels store whole SIMD vectors: the floats after the end of the image must belong to the same channel.
        end = origin + -(-((height - 1) * pitch + width * block) // simd_width) * simd_width
        plane = max((height + 2 * border[0]) * pitch, end)
        if plane >= 256 and block % LINE == 0:
            # An odd number of cache lines: with a power of two, all channels of a pixel would map to one cache set.
            plane = (-(-plane // LINE) | 1) * LINE
        return cls(channels, height, width, block, border, pitch, plane)

    def with_pitch(self, pitch: int, simd_width: int) -> "BufferLayout":
        """The layout with at least `pitch` floats between rows."""
        if pitch <= self.pitch:
            return self
        shape = (self.channels, self.height, self.width)
        return BufferLayout.for_image(shape, self.block, simd_width, self.border, pitch, dense=False)

    @property
    def origin(self) -> int:
        """Offset of the first pixel."""
        return self.border[0] * self.pitch + self.border[1] * self.block

    @property
    def size(self) -> int:
        """Floats of all channels."""
        return self.channels * self.plane


@dataclass(eq=False)
class Buffer:
    """A part of the arena."""

    offset: int
    layout: BufferLayout
    live: int = 0
    """Number of values in it that will still be read."""
    reusable: bool = True
    """Whether later values may use its memory. False if kernels read zeros in places that other values overwrite."""


@dataclass(frozen=True, eq=False)
class ArenaView:
    """A strided image in a buffer."""

    buffer: Buffer
    offset: int
    """Position of the first pixel, in floats from the start of the arena."""
    shape: ImageShape
    strides: tuple[int, int, int]
    """Floats between channels, rows, columns."""
    block: int
    flat: bool = False
    """Whether readers treat the image as one vector."""

    @classmethod
    def whole(cls, buffer: Buffer) -> "ArenaView":
        """The view of the whole image in a buffer, without its border."""
        layout = buffer.layout
        shape, strides = (layout.channels, layout.height, layout.width), (layout.plane, layout.pitch, layout.block)
        return cls(buffer, buffer.offset + layout.origin, shape, strides, layout.block)

    @property
    def border(self) -> tuple[int, int]:
        """Rows and columns of zeros around the view: none if it is not the whole image of its buffer."""
        whole = ArenaView.whole(self.buffer)
        is_whole = (self.offset, self.shape[1:], self.strides) == (whole.offset, whole.shape[1:], whole.strides)
        return self.buffer.layout.border if is_whole else (0, 0)

    @property
    def contiguous(self) -> bool:
        """Whether the pixels of a row are contiguous."""
        return self.strides[2] == self.block or self.shape[2] == 1

    def channels(self, first: int, count: int) -> "ArenaView":
        """`count` channels, from the channel `first` on."""
        return replace(self, offset=self.offset + first * self.strides[0], shape=(count, *self.shape[1:]))

    def subsampled(self, axis: int, step: int) -> "ArenaView":
        """Every `step`-th row (axis 1) or column (axis 2)."""
        shape, strides = list(self.shape), list(self.strides)
        shape[axis], strides[axis] = -(-shape[axis] // step), strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def offsets(self) -> Ints:
        """Offset of each number relative to the first, channel by channel."""
        axes = [np.arange(size) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        return (axes[0][:, None, None] + axes[1][:, None] + axes[2]).reshape(-1)


@dataclass(eq=False)
class Arena:
    """Allocates buffers. Memory is reused only for buffers of the same layout, so that borders stay zero."""

    simd_width: int
    size: int = 0
    free: dict[BufferLayout, list[Buffer]] = field(default_factory=dict[BufferLayout, list[Buffer]])
    buffers: list[Buffer] = field(default_factory=list[Buffer])
    """All buffers, one behind the other."""

    def allocate(self, layout: BufferLayout, *, reusable: bool = True) -> Buffer:
        """Return a buffer of this layout: a released one if possible."""
        released = self.free.get(layout, [])
        if reusable and released:
            return released.pop()
        # Buffers start on cache lines and end with unused vectors, because kernels may read beyond the end.
        buffer = Buffer(self.size, layout, reusable=reusable)
        self.buffers.append(buffer)
        self.size += -(-(layout.size + 2 * self.simd_width) // LINE) * LINE
        return buffer

    def release(self, buffer: Buffer) -> None:
        """Report that one value in the buffer will not be read again; a buffer without values is released."""
        buffer.live -= 1
        if buffer.live == 0 and buffer.reusable:
            self.free.setdefault(buffer.layout, []).append(buffer)


class RegionBuilder:
    """The kernel steps of one region while they are emitted, and the views of its values.

    Args:
        region: The region.
        block: Examples that are stored interleaved and processed at once.
        simd_width: Floats in a SIMD register.
        borders: (rows, columns) of an image -> rows and columns of zeros around it.
        emit_pending: Called with the name of a value before its view is used, to emit the step that computes it.
    """

    def __init__(
        self,
        region: FusedRegion,
        block: int,
        simd_width: int,
        borders: Mapping[tuple[int, int], tuple[int, int]],
        emit_pending: Callable[[str], None],
    ) -> None:
        self.region, self.block, self.simd_width, self.borders = region, block, simd_width, borders
        self.emit_pending = emit_pending
        self.arena = Arena(simd_width)
        self.steps: list[Ints] = []
        self.names: list[str] = []
        """For each kernel step, the node under which a profile counts its time."""
        self.pinned: list[Any] = []
        """Arrays whose addresses the kernel steps contain; they must not be freed."""
        self._pinned: dict[tuple[str, bytes], NDArray[Any]] = {}
        """The same by dtype and content."""
        self.views: dict[str, ArenaView] = {}
        self.unread = dict.fromkeys(region.extents, 0)
        """Value name -> number of reads that have not been emitted yet."""
        reads = [name for node in region.nodes for name in activations(node)]
        for name in [*reads, *dict.fromkeys(region.outputs)]:
            self.unread[name] += 1

    def view(self, name: str) -> ArenaView:
        """The view of a value. Emits the steps that compute the value, or copy it into the arena, if necessary."""
        self.emit_pending(name)
        if name not in self.views:
            self._copy_input(name)
        return self.views[name]

    def image(self, name: str) -> ArenaView:
        """The view of a value as channels, rows and columns; a vector is an image of one pixel."""
        view = self.view(name)
        if view.flat and view.shape[1:] != (1, 1):
            view = self.copied(name, view, self.layout((int(np.prod(view.shape)), 1, 1)))
        return view

    def layout(self, shape: ImageShape, *, dense: bool = True) -> BufferLayout:
        """The layout of an image, with the border that its readers need."""
        border = self.borders.get(shape[1:], (0, 0))
        return BufferLayout.for_image(shape, self.block, self.simd_width, border, dense=dense)

    def bind(self, name: str, view: ArenaView) -> ArenaView:
        """Register the view of the value `name`; its buffer is kept until the last read of the value."""
        view.buffer.live += 1
        self.views[name] = view
        return view

    def mark_read(self, *names: str) -> None:
        """Count one read of each value, and release the buffers of values that are not read again."""
        for name in names:
            self.unread[name] -= 1
            if not self.unread[name] and name in self.views:
                self.arena.release(self.views[name].buffer)

    def allocate(self, shape: ImageShape, *, reusable: bool = True) -> ArenaView:
        """A view of a new buffer for an image."""
        return ArenaView.whole(self.arena.allocate(self.layout(shape), reusable=reusable))

    def emit(self, name: str, **fields: int) -> None:
        """Append a kernel step. A profile counts its time under the node `name`."""
        self.steps.append(_kernel_step(**fields))
        self.names.append(name)

    def pin(self, array: NDArray[Any]) -> int:
        """Keep the array as long as the kernel steps, and return its address."""
        array = np.ascontiguousarray(array)
        # Equal tables are one: a recurrent layer has the same weights at each of its steps.
        key = array.dtype.str, hashlib.blake2b(array.tobytes()).digest()
        if key not in self._pinned:
            self._pinned[key] = array
            self.pinned.append(array)
        return self._pinned[key].ctypes.data

    def _copy_input(self, name: str) -> None:
        """Emit a copy of the input `name` into the arena. In tensors, examples are the first dimension."""
        number = self.region.inputs.index(name)
        shape = extent_shape(self.region.extents[name])
        view = self.bind(name, self.allocate(shape))
        strides, example = _tensor_strides(shape)
        fields = {"in_tensor": number, "in_example": example, "out": view.offset}
        self.emit_copy(name, shape, [*strides, example], [*view.strides, 1], fields)

    def copy_output(self, name: str, number: int) -> None:
        """Emit a copy of the value `name` to the output tensor with this number."""
        view = self.view(name)
        strides, example = _tensor_strides(view.shape)
        fields = {"out_tensor": number, "out_example": example, "in": view.offset}
        self.emit_copy(name, view.shape, [*view.strides, 1], [*strides, example], fields)
        self.mark_read(name)

    def copied(self, name: str, view: ArenaView, layout: BufferLayout) -> ArenaView:
        """Emit a copy of a view to another layout, and return its view."""
        # A new buffer: the copy does not write the border, which must be zero.
        target = ArenaView.whole(self.arena.allocate(layout, reusable=False))
        strides = target.strides
        if view.flat:
            # The image becomes a vector: its channels, rows and columns are channels of the target.
            channel = strides[0]
            strides = (channel * view.shape[1] * view.shape[2], channel * view.shape[2], channel)
        self.emit_copy(name, view.shape, [*view.strides, 1], [*strides, 1], {"in": view.offset, "out": target.offset})
        return target

    def emit_copy(
        self, name: str, shape: ImageShape, source: list[int], target: list[int], fields: dict[str, int]
    ) -> None:
        """Emit a copy of an image. source, target: strides of channels, rows, columns and examples."""
        sizes, source, target = [1, *shape, self.block], [0, *source], [0, *target]
        if shape[1:] == (1, 1):
            # One pixel: treat channels as columns, because the kernel transposes columns and examples.
            sizes, source, target = ([1, 1, 1, x[1], x[4]] for x in (sizes, source, target))
        split = max(range(4), key=lambda axis: (min(sizes[axis], 4), -axis))
        loops = {f"size{axis}": size for axis, size in enumerate(sizes)}
        loops |= {f"in_stride{axis}": stride for axis, stride in enumerate(source)}
        loops |= {f"out_stride{axis}": stride for axis, stride in enumerate(target)}
        self.emit(name, op=COPY, split=split, **loops, **fields)


def _tensor_strides(shape: ImageShape) -> tuple[tuple[int, int, int], int]:
    """(strides of channels, rows and columns; stride of examples) in a contiguous tensor (example, ...)."""
    channels, height, width = shape
    return (height * width, width, 1), channels * height * width
