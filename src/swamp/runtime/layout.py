"""Where activations lie in the arena of the sparse runtime, and what a kernel step is told of it."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FIELDS = (
    *("op", "act", "in", "out", "residual", "in_tensor", "in_example", "out_tensor", "out_example"),
    *("channels", "out_channel", "residual_channel", "runs", "in_run", "out_run", "residual_run", "length"),
    *("in_step", "out_step", "parts", "chain", "slice", "group"),
    *("gaps", "row", "pitch", "in_channel", "pixels", "width", "rows", "offsets", "values", "bias", "order"),
    *(f"{name}{axis}" for name in ("size", "in_stride", "out_stride") for axis in range(5)),
    "split",
)
"""Of `step` in kernels.c, in its order."""
SUM, MAX, GATHER, MEAN, COPY = range(5)
NONE, RELU, GELU = range(3)
LINE = 16
"""Floats of a cache line."""


def record(**values: int) -> NDArray[np.int64]:
    """One step for the kernels; what is not named is 0, no tensor or residual, and channels are on their own."""
    given = {"residual": -1, "in_tensor": -1, "out_tensor": -1, "slice": 1, "group": 1, **values}
    return np.array([given.get(name, 0) for name in FIELDS], dtype=np.int64)


@dataclass(frozen=True)
class Layout:
    """[channel][row][column][width] with a border of zeros around the image; `plane` floats lie between channels."""

    channels: int
    height: int
    width: int
    """Columns of the image."""
    examples: int
    """Examples side by side: the last, contiguous dimension."""
    border: tuple[int, int]
    """Rows above and below, columns left and right."""
    pitch: int
    """Floats between rows."""
    plane: int

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        examples: int,
        lanes: int,
        border: tuple[int, int] = (0, 0),
        pitch: int = 0,
        *,
        dense: bool = True,
    ) -> "Layout":
        """The layout of (channels, height, width). `dense`: single numbers of one example lie side by side."""
        channels, height, width = shape
        pitch = max(pitch, (width + 2 * border[1]) * examples)
        if dense and height == width == examples == 1 and border == (0, 0):
            return cls(channels, 1, 1, 1, border, 1, 1)
        origin = border[0] * pitch + border[1] * examples
        # Kernels store whole vectors: what is beyond the image must be this channel's own.
        end = origin + -(-((height - 1) * pitch + width * examples) // lanes) * lanes
        plane = max((height + 2 * border[0]) * pitch, end)
        if plane >= 256 and examples % LINE == 0:
            # An odd number of cache lines: with a power of two the channels of one pixel push each other out.
            plane = (-(-plane // LINE) | 1) * LINE
        return cls(channels, height, width, examples, border, pitch, plane)

    @property
    def origin(self) -> int:
        """Where the first pixel lies."""
        return self.border[0] * self.pitch + self.border[1] * self.examples

    @property
    def size(self) -> int:
        """Floats of all channels."""
        return self.channels * self.plane


@dataclass(eq=False)
class Buffer:
    """A piece of the arena."""

    offset: int
    layout: Layout
    holds: int = 0
    """Values that lie in it and will still be read."""
    shared: bool = True
    """Whether another value may have it later: not where zeros beyond the border are relied on."""


@dataclass(frozen=True, eq=False)
class Place:
    """An image in a buffer, which may be only every so many rows and columns of it."""

    buffer: Buffer
    offset: int
    """Of its first pixel, in the arena."""
    shape: tuple[int, int, int]
    """Channels, rows, columns."""
    strides: tuple[int, int, int]
    """Floats between channels, rows, columns."""
    examples: int
    flat: bool = False
    """Whether it is read as one vector of all its numbers."""

    @classmethod
    def whole(cls, buffer: Buffer) -> "Place":
        """All of a buffer."""
        own = buffer.layout
        shape, strides = (own.channels, own.height, own.width), (own.plane, own.pitch, own.examples)
        return cls(buffer, buffer.offset + own.origin, shape, strides, own.examples)

    @property
    def contiguous(self) -> bool:
        """Whether pixels of a row lie side by side."""
        return self.strides[2] == self.examples or self.shape[2] == 1

    def subsampled(self, axis: int, step: int) -> "Place":
        """Every `step`-th row (axis 1) or column (axis 2)."""
        shape, strides = list(self.shape), list(self.strides)
        shape[axis], strides[axis] = -(-shape[axis] // step), strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def offsets(self) -> NDArray[np.int64]:
        """Of all its numbers, channel by channel, relative to the first."""
        axes = [np.arange(size) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        return (axes[0][:, None, None] + axes[1][:, None] + axes[2]).reshape(-1)


@dataclass(eq=False)
class Arena:
    """Hands out buffers; those of equal layout follow each other in the same place, so that borders stay zero."""

    lanes: int
    size: int = 0
    free: dict[Layout, list[Buffer]] = field(default_factory=dict[Layout, list[Buffer]])

    def take(self, layout: Layout, *, shared: bool = True) -> Buffer:
        """A buffer of that layout."""
        waiting = self.free.get(layout, [])
        if shared and waiting:
            return waiting.pop()
        # On cache lines, and a vector more, since kernels may read beyond the end.
        buffer = Buffer(self.size, layout, shared=shared)
        self.size += -(-(layout.size + 2 * self.lanes) // LINE) * LINE
        return buffer

    def release(self, buffer: Buffer) -> None:
        """One value less lies in it."""
        buffer.holds -= 1
        if buffer.holds == 0 and buffer.shared:
            self.free.setdefault(buffer.layout, []).append(buffer)


def runs(
    shape: tuple[int, int], examples: int, lanes: int, pitches: list[int], columns: list[int]
) -> dict[str, Any] | None:
    """How an image is cut into contiguous runs: one over the borders between rows, or one a row; None: neither goes.

    pitches, columns: floats between rows and columns of input, output and (if any) residual.
    """
    height, width = shape
    if width > 1 and any(column != examples for column in columns):
        return None
    one = (height - 1) * pitches[1] + width * examples
    ways: list[tuple[int, dict[str, Any]]] = []
    if height == 1 or len(set(pitches)) == 1:
        gaps = height - 1 if pitches[1] > width * examples else 0
        ways.append((_cost(1, one, lanes), {"count": 1, "length": one, "gaps": gaps}))
    if width * examples % lanes == 0:
        ways.append((_cost(height, width * examples, lanes), {"count": height, "length": width * examples, "gaps": 0}))
    return min(ways, key=lambda way: way[0])[1] if ways else None


def _cost(count: int, length: int, lanes: int) -> int:
    """Loads for one weight: its vectors, and the weight itself and its offset for each tile of eight."""
    vectors = -(-length // lanes)
    return count * (vectors + 2 * -(-vectors // 8))


def with_pitch(layout: Layout, pitch: int, lanes: int) -> Layout:
    """The layout with at least so many floats between its rows."""
    if pitch <= layout.pitch:
        return layout
    shape = (layout.channels, layout.height, layout.width)
    return Layout.of(shape, layout.examples, lanes, layout.border, pitch, dense=False)
