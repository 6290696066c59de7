"""No lowered step can touch memory outside of its buffers, and a step that could is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp.runtime.arena import COPY, FIELDS, GATHER, MAX, MEAN, SUM, RegionBuilder
from swamp.runtime.bounds import BoundsError, check_bounds
from swamp.runtime.lowering import _Lowering
from swamp.runtime.regions import FusedRegion, partition
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import trace

from .networks import built, numbers

FAR = 10**7
_SUMS = ("in", "out", "channels", "slice", "row_starts", "offsets")
_RUNS = ("runs", "length", "in_run", "out_run", "in_step", "out_step", "parts", "out_channel")
_COPY = [f"{name}{axis}" for name in ("size", "in_stride", "out_stride") for axis in range(1, 4)]
KINDS = {
    SUM: [*_SUMS, *_RUNS, "residual", "residual_channel", "residual_run", "values", "bias", "order", "chain", "op"],
    MAX: [*_SUMS, *_RUNS, "op", "chain"],
    GATHER: [*_SUMS, "out_channel", "residual", "residual_channel", "values", "bias", "order", "op", "chain"],
    MEAN: ["in", "out", "channels", "in_channel", "out_channel", "runs", "in_run", "length", "block", "op", "chain"],
    COPY: [
        *_COPY,
        "in",
        "out",
        "size4",
        "in_stride4",
        "out_stride4",
        "split",
        "in_tensor",
        "in_example",
        "op",
        "chain",
    ],
}


class EveryOp(nn.Module):
    """A convolution, maxima, a residual image, a mean, and a residual vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.linear, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 3, 2, 1)
        x = torch.relu(x + self.second(x)).mean((2, 3))
        return self.last(torch.relu(x + self.linear(x)))


def _builders() -> list[RegionBuilder]:
    long = nn.Sequential(nn.Linear(3000, 40), nn.GELU())
    found: list[RegionBuilder] = []
    for model, shape in ((built(EveryOp), (3, 9, 8)), (built(lambda: long, 0.3), (3000,))):
        (region,) = partition(program := fold_batchnorm(trace(model, numbers(2, *shape))))
        assert isinstance(region, FusedRegion)
        for block, simd_width in ((1, 4), (1, 16), (3, 8), (16, 16)):
            lowering = _Lowering(program, region, block, simd_width)
            lowering.lowered()
            found.append(lowering.builder)
    return found


BUILDERS: list[RegionBuilder] = []


@pytest.fixture
def builders() -> list[RegionBuilder]:
    BUILDERS[:] = BUILDERS or _builders()
    return BUILDERS


def _refused(builder: RegionBuilder, number: int, field: str, value: int) -> bool:
    """Whether a changed field is found; the message names the step and its node."""
    row, before = builder.steps[number], builder.steps[number][FIELDS.index(field)]
    row[FIELDS.index(field)] = value
    try:
        check_bounds(builder)
    except BoundsError as error:
        # A broken step of a chain can be found where the next one does not fit to it.
        named = f"kernel step {number} " in str(error) and builder.names[number] in str(error)
        return named or "chain" in str(error)
    finally:
        row[FIELDS.index(field)] = before
    return False


def _steps(builders: list[RegionBuilder], op: int) -> list[tuple[RegionBuilder, int]]:
    return [(one, number) for one in builders for number, row in enumerate(one.steps) if row[0] == op]


@pytest.mark.parametrize(("op", "field"), [(op, field) for op, fields in KINDS.items() for field in fields])
@pytest.mark.parametrize("change", [-FAR, FAR])
def test_a_broken_field_of_a_step_is_refused(op, field, change, builders):
    steps = _steps(builders, op)
    refused = [
        _refused(builder, number, field, int(builder.steps[number][FIELDS.index(field)]) + change)
        for builder, number in steps
    ]
    # Some steps do not use the field: a stride of a loop of length one, a residual that is absent.
    assert any(refused)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("side", ["in", "out"])
def test_a_tensor_is_read_and_written_to_its_last_float_and_no_further(side, change, builders):
    steps = [
        (builder, number)
        for builder, number in _steps(builders, COPY)
        if builder.steps[number][FIELDS.index(f"{side}_tensor")] >= 0
    ]
    assert steps
    assert all(
        _refused(builder, number, side, int(builder.steps[number][FIELDS.index(side)]) + change)
        for builder, number in steps
    )


@pytest.mark.parametrize(
    ("table", "value"),
    [("offsets", FAR), ("offsets", -FAR), ("row_starts", FAR), ("row_starts", -1), ("order", FAR), ("order", 0)],
)
@pytest.mark.parametrize("op", [SUM, MAX, GATHER])
def test_a_broken_entry_of_a_table_is_refused(op, table, value, builders):
    if table == "order" and op == MAX:
        pytest.skip("has no such table")
    broken = 0
    for builder, number in _steps(builders, op):
        step = dict(zip(FIELDS, map(int, builder.steps[number]), strict=True))
        found = [one for one in builder.pinned if step[table] and one.ctypes.data == step[table] and one.size > 1]
        for array in found:
            flat = array.reshape(-1)
            before, flat[1] = int(flat[1]), value
            try:
                if before != value:
                    broken += 1
                    with pytest.raises(BoundsError, match=rf"step {number} "):
                        check_bounds(builder)
            finally:
                flat[1] = before
    assert broken


def test_buffers_follow_each_other_without_overlap(builders):
    for builder in builders:
        ends = [buffer.offset + buffer.layout.size for buffer in builder.arena.buffers]
        starts = [buffer.offset for buffer in builder.arena.buffers]
        assert np.all(np.array(ends) <= [*starts[1:], builder.arena.size])
