"""Every layer kind and shape that the kernels know, against torch."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from swamp.runtime import trace
from swamp.runtime.layout import FIELDS
from swamp.runtime.lower import lower
from swamp.runtime.program import Step
from swamp.runtime.segments import segments
from swamp.runtime.sparse import Choice, Plan

from .networks import built, numbers, run, same

WIDTHS = (1, 3, 4, 16, 32)
widths = st.sampled_from(WIDTHS)
batches = st.sampled_from([1, 2, 5, 16, 33])
densities = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@given(st.integers(1, 40), st.integers(1, 40), batches, widths, densities, st.booleans(), st.booleans())
@settings(max_examples=15)
def test_a_linear_layer(inputs, outputs, batch, width, sparsity, bias, relu):
    after = nn.ReLU() if relu else nn.GELU()
    same(built(lambda: nn.Sequential(nn.Linear(inputs, outputs, bias), after), sparsity), numbers(batch, inputs), width)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=40)
def test_a_convolution(data):
    def few(low, high):
        return data.draw(st.integers(low, high))

    groups, kernel = few(1, 2), (few(1, 4), few(1, 4))
    stride, padding, dilation = (few(1, 3), few(1, 3)), (few(0, 3), few(0, 3)), (few(1, 2), few(1, 2))
    size = (few(1, 9), few(1, 9))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(s + 2 * p >= r for s, p, r in zip(size, padding, reach, strict=True)))
    channels, more = few(1, 3) * groups, few(1, 5) * groups
    bias, batch, width, sparsity = data.draw(st.booleans()), data.draw(batches), data.draw(widths), data.draw(densities)
    model = built(
        lambda: nn.Sequential(
            nn.Conv2d(channels, more, kernel, stride, padding, dilation, groups, bias),
            nn.BatchNorm2d(more),
            nn.ReLU(),
            nn.Conv2d(more, 2, 1),
        ),
        sparsity,
    )
    same(model, numbers(batch, channels, *size), width)


@pytest.mark.slow
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(4, 9), batches, widths)
@settings(max_examples=15)
def test_pooling_after_a_convolution(kernel, stride, padding, size, batch, width):
    assume(2 * padding <= kernel)
    for pool in (nn.MaxPool2d(kernel, stride, padding), nn.AvgPool2d(kernel, stride, padding)):
        model = built(lambda pool=pool: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool), 0.5)
        same(model, numbers(batch, 2, size, size + 1), width)


@pytest.mark.slow
@given(st.integers(1, 2), st.integers(0, 2), st.integers(5, 20), batches, widths)
@settings(max_examples=15)
def test_a_signal(stride, padding, length, batch, width):
    model = built(lambda: nn.Sequential(nn.Conv1d(2, 5, 3, stride, padding), nn.ReLU(), nn.Conv1d(5, 3, 2)), 0.5)
    same(model, numbers(batch, 2, length), width)


class Residual(nn.Module):
    """Both orders of a sum, an identity, a projection, a shortcut without parameters, a norm before its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3, 2, padding=1)
        self.norm, self.side = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 1, 2)
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(x))
        x = torch.relu(x + self.one(x))
        y = self.two(x) + self.side(x)
        short = nn.functional.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, 1, 2])
        y = torch.relu(torch.relu(y) + short) + y
        return self.last(y.flatten(2).mean(2))


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 17])
def test_residual_connections(width, size):
    same(built(Residual), numbers(5, 3, size, size), width)


class Wide(nn.Module):
    """Sums of so many inputs that they are made in parts, with a residual before or after, and a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 20, 3, 2, padding=1)
        self.side = nn.Conv2d(64, 20, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x + self.one(x))
        return torch.relu(self.two(x) + self.side(x))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("batch", "size"), [(33, 12), (2, 13)])
def test_sums_in_parts(width, batch, size):
    model = built(Wide, 0.3)
    program = trace(model, numbers(2, 64, size, size))
    (part,) = segments(program)
    chains = lower(program, part, width, 16).steps[:, FIELDS.index("chain")]
    assert chains.max() > 0
    same(model, numbers(batch, 64, size, size), width)


@pytest.mark.parametrize("width", [1, 16, 32, 48])
def test_sums_of_a_long_vector_in_parts(width):
    model = nn.Sequential(built(lambda: nn.Linear(3000, 40), 0.3), nn.ReLU(), nn.Linear(40, 3))
    program = trace(model, numbers(2, 3000))
    (part,) = segments(program)
    chains = lower(program, part, width, 16).steps[:, FIELDS.index("chain")]
    # One example gathers what it needs, whatever it is next to.
    assert (chains.max() > 0) == (width > 1)
    same(model, numbers(50, 3000), width)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_parts_of_a_sum_share_channels_out_alike(width):
    """Threads do not wait for each other between parts: a channel that changed its thread might lose one."""
    program = trace(built(lambda: nn.Linear(3000, 203), 0.9), numbers(2, 3000))
    (part,) = segments(program)
    lowered = lower(program, part, width, 16)
    kept = {array.ctypes.data: array for array in lowered.kept}
    steps = [dict(zip(FIELDS, map(int, row), strict=True)) for row in lowered.steps if row[FIELDS.index("slice")] > 1]
    assert len(steps) > 1
    orders = [kept[step["order"]].reshape(-1) for step in steps]
    assert not all((order == orders[0]).all() for order in orders)
    for step, order in zip(steps, orders, strict=True):
        for at in range(0, len(order), step["slice"] * step["group"]):
            groups = [set(one[at : at + step["slice"] * step["group"]]) for one in (order, orders[0])]
            assert groups[0] == groups[1]
    same(built(lambda: nn.Linear(3000, 203), 0.9), numbers(70, 3000), width)


class Sliced(nn.Module):
    """Rows, columns or both of an image left out, then read with a border."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x))[:, :, :: self.rows, :: self.columns])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [(2, 1), (1, 2), (2, 2)])
def test_an_image_of_every_other_row_or_column(width, steps):
    same(built(lambda: Sliced(*steps)), numbers(5, 2, 9, 8), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_flattened_images_and_adaptive_means(width):
    def make() -> nn.Module:
        head = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(head, nn.Linear(4 * 9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))

    same(built(make), numbers(6, 2, 6, 6), width)
    mean = built(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU()))
    same(mean, numbers(6, 2, 6, 5), width)


@pytest.mark.parametrize("width", [1, 16])
def test_a_transformer_layer_runs_its_linear_parts_on_the_kernels_and_the_rest_in_torch(width):
    layer = built(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0))
    inputs = numbers(3, 5, 16)
    with torch.no_grad():
        want = layer(inputs)
    program = trace(layer, inputs)
    parts = segments(program)
    inside = [step.op for part in parts if not isinstance(part, Step) for step in part.steps]
    assert inside.count("linear") == 4
    assert {"layer_norm", "scaled_dot_product_attention"} <= {part.op for part in parts if isinstance(part, Step)}
    assert (run(program, inputs, width) - want).abs().max() < 1e-4


def test_layers_that_are_left_to_torch_are_run_by_torch():
    model = built(Residual)
    program = trace(model, numbers(4, 3, 8, 8))
    layers = [step.name for step in program.steps if step.op == "conv2d"]
    with torch.no_grad():
        want = model(numbers(4, 3, 8, 8))
    for dense in (layers[:1], layers[1:], layers):
        found = run(program, numbers(4, 3, 8, 8), 4, frozenset(dense))
        assert (found - want).abs().max() < 1e-4


@pytest.mark.slow
def test_threads_share_channels_or_blocks_and_give_the_same():
    model = built(Residual)
    threads = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            for width, batch in ((16, 2), (1, 9), (4, 9)):
                same(model, numbers(batch, 3, 9, 9), width)
    finally:
        torch.set_num_threads(threads)


def test_a_not_a_number_is_passed_on():
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), 0)
    inputs = numbers(20, 3)
    inputs[3, 1] = float("nan")
    for width in (1, 16):
        found = run(trace(model, inputs), inputs, width)
        assert found.isnan().any(1).tolist() == [index == 3 for index in range(20)]


def test_an_arena_is_as_large_as_a_block_needs_and_no_larger_for_more_examples():
    model = built(lambda: nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)))
    plan = Plan(trace(model, numbers(2, 30)), Choice(16))
    plan([numbers(2, 30)])
    before = plan.segments[0].arena.nbytes
    plan([numbers(200, 30)])
    assert plan.segments[0].arena.nbytes == before
