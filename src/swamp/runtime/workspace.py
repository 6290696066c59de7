"""The workspace that a segment's kernels share: where each value lies, who still reads it, and copies between."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swamp.runtime.layout import COPY, Arena, Ints, Layout, Place, record
from swamp.runtime.segments import Segment, values


class Workspace:
    """Kernel steps of one segment as they are emitted, and the places that its values have meanwhile.

    borders: size of an image -> rows and columns around it. late: called with the name of a value before its place is
    looked up, so that what was put off is emitted first.
    """

    def __init__(
        self,
        segment: Segment,
        width: int,
        lanes: int,
        borders: Mapping[tuple[int, int], tuple[int, int]],
        late: Callable[[str], None],
    ) -> None:
        self.segment, self.width, self.lanes, self.borders, self.late = segment, width, lanes, borders, late
        self.arena = Arena(lanes)
        self.records: list[Ints] = []
        self.names: list[str] = []
        """Of the value that each kernel step serves."""
        self.kept: list[Any] = []
        """Arrays that the steps point into."""
        self.places: dict[str, Place] = {}
        self.left = dict.fromkeys(segment.kinds, 0)
        """Readers of each value that were not served yet."""
        for name in [*(name for step in segment.steps for name in values(step)), *dict.fromkeys(segment.outputs)]:
            self.left[name] += 1

    def place(self, name: str) -> Place:
        """Where a value lies: what was put off runs now, what comes from outside is fetched."""
        self.late(name)
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
        """How an image of this shape lies."""
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

    def take(self, shape: tuple[int, int, int], *, shared: bool = True) -> Place:
        """A new place for an image of this shape."""
        return Place.whole(self.arena.take(self.layout(shape), shared=shared))

    def emit(self, name: str, **fields: int) -> None:
        """One more kernel step, whose time is counted for `name`."""
        self.records.append(record(**fields))
        self.names.append(name)

    def keep(self, array: NDArray[Any]) -> int:
        """The address of an array, which stays as long as the steps do."""
        array = np.ascontiguousarray(array)
        self.kept.append(array)
        return array.ctypes.data

    def fetch(self, name: str) -> None:
        """From an input tensor, examples first, into the arena."""
        number = self.segment.inputs.index(name)
        kind = self.segment.kinds[name]
        channels, height, width = shape = kind if len(kind) == 3 else (kind[0], 1, 1)
        place = self.bind(name, self.take(shape))
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


def _strides(target: Place, place: Place) -> tuple[int, int, int]:
    """Strides of the target for an image that becomes a vector there, if it does."""
    if not place.flat:
        return target.strides
    one = target.strides[0]
    return (one * place.shape[1] * place.shape[2], one * place.shape[2], one)
