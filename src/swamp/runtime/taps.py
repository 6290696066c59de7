"""Taps: which inputs each output channel sums, with what weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from swamp.runtime.layout import MAX, SUM, Ints, Place
from swamp.runtime.program import Step
from swamp.runtime.segments import Kind, pair

_CACHE = 48 * 1024
"""Bytes of a processor's first cache; with 40 and 64 kB VGG-11 is as fast."""
_FIRST, _SECOND = 40 * 1024, 128 * 1024
"""Bytes of inputs that a part of a linear layer reads: in slices, where short sums cost little, and one by one."""
_LEAST = 16
"""Weights of one part in one output channel, on average; half as many in slices."""


@dataclass(eq=False)
class Taps:
    """For each output channel the places of its inputs, relative to the output's own place, and their weights.

    A tap reads input channel `channel` at row y * stride + dy, column x * stride + dx for the output at (y, x).
    """

    op: int
    rows: Ints
    """(channels + 1,): where the taps of each output channel begin."""
    channel: Ints
    dy: Ints
    dx: Ints
    values: NDArray[Any]
    bias: NDArray[Any]
    stride: tuple[int, int] = (1, 1)
    given: Ints | None = None
    """Offsets of the taps where they are known already: those of a vector."""
    source: str = ""
    """Name of the value that is read."""
    elementwise: bool = False

    @classmethod
    def each(cls, scale: NDArray[Any], bias: NDArray[Any], source: str) -> "Taps":
        """Each channel times its scale, plus its bias."""
        count = len(scale)
        nothing = np.zeros(count, np.int64)
        rows = np.arange(count + 1)
        return cls(SUM, rows, np.arange(count), nothing, nothing, scale, bias, source=source, elementwise=True)

    @property
    def phases(self) -> list[tuple[int, int]]:
        """Remainders of (row, column) by the stride that are read."""
        return sorted(
            {(int(y), int(x)) for y, x in zip(self.dy % self.stride[0], self.dx % self.stride[1], strict=True)}
        ) or [(0, 0)]

    def border(self, image: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns beyond an image of that size that outputs of size `own` read."""
        if not len(self.dy):
            return 0, 0
        over = (
            max(0, -int(shift.min()), int(shift.max()) + step * (out - 1) + 1 - size)
            for shift, step, size, out in zip((self.dy, self.dx), self.stride, image, own, strict=True)
        )
        return next(over), next(over)

    def phased(self, image: tuple[int, int, int], own: tuple[int, int]) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shape and border of the image of all phases."""
        height, width = (-(-size // step) for size, step in zip(image[1:], self.stride, strict=True))
        shifted = Taps(
            self.op,
            self.rows,
            self.channel,
            self.dy // self.stride[0],
            self.dx // self.stride[1],
            self.values,
            self.bias,
        )
        return (image[0] * len(self.phases), height, width), shifted.border((height, width), own)

    def parts(self, shape: tuple[int, int, int], length: int, examples: int, lanes: int, *, sliced: bool) -> Ints:
        """Which part of the sums each tap is in, from 0 on: the inputs that one part reads for a tile stay in a cache.

        shape: of the input. length: floats of a run of outputs. sliced: whether channels are summed in slices.
        """
        count = len(self.values)
        if self.op != SUM or self.elementwise or not count:
            return np.zeros(count, np.int64)
        tile = min(8, -(-length // lanes))
        if self.given is None:
            place, places, cache = self.channel, shape[0], _CACHE
            down, across = int(np.ptp(self.dy)) + 1, tile * self.stride[1] + int(np.ptp(self.dx)) * examples // lanes
            size = places * down * across * lanes * 4
        else:
            place, places, cache = self.given, int(self.given.max()) + 1, _FIRST if sliced else _SECOND
            size = int(np.prod(shape)) * tile * lanes * 4
        # Each part reads and writes the sums once more.
        least = _LEAST // 2 if sliced else _LEAST
        parts = max(1, min(-(-size // cache), count // (least * (len(self.rows) - 1))))
        return place * parts // places

    def table(self, place: Place, *, phased: bool) -> tuple[Ints, Ints, NDArray[Any]]:
        """Rows, offsets in floats from the input's first pixel, and weights, for an input that lies there."""
        if self.given is not None:
            return self.rows, self.given, self.values
        if not phased:
            offsets = self.channel * place.strides[0] + self.dy * place.strides[1] + self.dx * place.strides[2]
            return self.rows, offsets, self.values
        index = {phase: number for number, phase in enumerate(self.phases)}
        phase = np.array(
            [index[int(y), int(x)] for y, x in zip(self.dy % self.stride[0], self.dx % self.stride[1], strict=True)],
            np.int64,
        )
        channel = self.channel + phase * place.shape[0]
        y, x = self.dy // self.stride[0], self.dx // self.stride[1]
        return self.rows, channel * place.strides[0] + y * place.strides[1] + x * place.strides[2], self.values


def dense_taps(weight: Tensor, bias: Tensor | None, offsets: Ints) -> Taps:
    """Of a linear layer, for inputs at these offsets."""
    values = weight.detach().numpy()
    out, feature = values.nonzero()
    rows = np.searchsorted(out, np.arange(len(values) + 1))
    shift = np.zeros(len(values)) if bias is None else bias.detach().numpy()
    nothing = np.zeros(0, np.int64)
    return Taps(SUM, rows, nothing, nothing, nothing, values[out, feature], shift, given=offsets[feature])


def convolution(step: Step, tensors: Mapping[str, Tensor], image: Kind, own: Kind) -> Taps:
    """Of a convolution; taps that read nothing but padding are left out."""
    one = step.op == "conv1d"
    names = ("bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, step.args[2:], strict=False)) | dict(step.kwargs)
    bias, stride, padding, dilation, groups = (
        given.get(name, usual) for name, usual in zip(names, (None, 1, 0, 1, 1), strict=True)
    )
    values = tensors[step.args[1].name].detach().numpy()
    values = values[:, :, None] if one else values
    (sy, sx), (py, px), (ly, lx) = (pair(value) for value in (stride, padding, dilation))
    if one:
        sy, py, ly = 1, 0, 1
    out, channel, ky, kx = values.nonzero()
    weights = values[out, channel, ky, kx]
    channel = channel + out // (len(values) // groups) * values.shape[1]
    dy, dx = ky * ly - py, kx * lx - px
    inside = _inside(dy, sy, image[1], own[1]) & _inside(dx, sx, image[2], own[2])
    out, channel, dy, dx, weights = (array[inside] for array in (out, channel, dy, dx, weights))
    shift = np.zeros(len(values)) if bias is None else tensors[bias.name].detach().numpy()
    rows = np.searchsorted(out, np.arange(len(values) + 1))
    return Taps(SUM, rows, channel, dy, dx, weights, shift, (sy, sx))


def _inside(shift: Ints, stride: int, size: int, own: int) -> Any:
    """Whether any output of `own` reads the image at this shift."""
    return (shift < size) & (shift + stride * (own - 1) >= 0)


def pooling(step: Step, image: Kind, own: Kind) -> Taps:
    """Of max_pool2d and avg_pool2d."""
    kernel = pair(step.args[1])
    stride = pair(step.args[2]) if len(step.args) > 2 and step.args[2] not in ([], None) else kernel
    padding = pair(step.args[3]) if len(step.args) > 3 else (0, 0)
    dilation = pair(step.args[4]) if step.op == "max_pool2d" and len(step.args) > 4 else (1, 1)
    ys, xs = (np.arange(size) * step - pad for size, step, pad in zip(kernel, dilation, padding, strict=True))
    count = len(ys) * len(xs)
    channels = np.arange(image[0])
    values = np.full(image[0] * count, 1 / count)
    dy, dx = np.tile(np.repeat(ys, len(xs)), image[0]), np.tile(xs, len(ys) * image[0])
    op = MAX if step.op == "max_pool2d" else SUM
    rows = np.arange(image[0] + 1) * count
    return Taps(op, rows, np.repeat(channels, count), dy, dx, values, np.zeros(image[0]), stride)
