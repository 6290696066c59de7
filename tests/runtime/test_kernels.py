"""The kernels compute every supported layer and shape as torch does."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from swamp.runtime import kernels
from swamp.runtime.arena import FIELDS
from swamp.runtime.checks import difference
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.kernels import KernelConfig, KernelExecutor, kernel_library
from swamp.runtime.lowering import lower
from swamp.runtime.program import Node
from swamp.runtime.regions import partition
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import trace

from .networks import assert_same, built, chained, images, numbers, run, traced

BLOCKS = (1, 3, 4, 16, 32)
blocks = st.sampled_from(BLOCKS)
batches = st.sampled_from([1, 2, 5, 16, 33])
densities = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@given(st.integers(1, 40), st.integers(1, 40), batches, blocks, densities, st.booleans(), st.booleans())
@settings(max_examples=6)
def test_a_linear_layer(inputs, outputs, batch, block, sparsity, bias, relu):
    after = nn.ReLU() if relu else nn.GELU()
    assert_same(
        built(lambda: nn.Sequential(nn.Linear(inputs, outputs, bias), after), sparsity), numbers(batch, inputs), block
    )


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(*(layer for layer in images() if not isinstance(layer, nn.Dropout))), (1, 8, 8)),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, (1, 3), (2, 1), 1, (1, 2), 2), nn.AvgPool2d(2, 1, 1)), (4, 8, 4)),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1), nn.GELU("tanh"), nn.Linear(4, 2, bias=False)), (4, 8)),
    ],
)
def test_a_program_that_is_written_down_is_the_traced_one(make, shape):
    model, x = built(make), numbers(3, *shape)
    written, program = chained(model, shape), trace(model, numbers(2, *shape))
    assert [node.target for node in written.nodes] == [node.target for node in program.nodes]
    assert torch.equal(DenseNetwork(written)(x), DenseNetwork(program)(x))


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
    bias, batch, block, sparsity = data.draw(st.booleans()), data.draw(batches), data.draw(blocks), data.draw(densities)
    model = built(
        lambda: nn.Sequential(
            nn.Conv2d(channels, more, kernel, stride, padding, dilation, groups, bias),
            nn.BatchNorm2d(more),
            nn.ReLU(),
            nn.Conv2d(more, 2, 1),
        ),
        sparsity,
    )
    assert_same(model, numbers(batch, channels, *size), block)


@pytest.mark.slow
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(4, 9), batches, blocks)
@settings(max_examples=15)
def test_pooling_after_a_convolution(kernel, stride, padding, size, batch, block):
    assume(2 * padding <= kernel)
    for pool in (nn.MaxPool2d(kernel, stride, padding), nn.AvgPool2d(kernel, stride, padding)):
        model = built(lambda pool=pool: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool), 0.5)
        assert_same(model, numbers(batch, 2, size, size + 1), block)


@pytest.mark.slow
@given(st.integers(1, 2), st.integers(0, 2), st.integers(5, 20), batches, blocks)
@settings(max_examples=15)
def test_a_signal(stride, padding, length, batch, block):
    model = built(lambda: nn.Sequential(nn.Conv1d(2, 5, 3, stride, padding), nn.ReLU(), nn.Conv1d(5, 3, 2)), 0.5)
    assert_same(model, numbers(batch, 2, length), block)


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
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 17])
def test_residual_connections(block, size):
    assert_same(built(Residual), numbers(5, 3, size, size), block)


class Wide(nn.Module):
    """Sums over many inputs, which are computed in parts, with a residual before or after, and a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 20, 3, 2, padding=1)
        self.side = nn.Conv2d(64, 20, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x + self.one(x))
        return torch.relu(self.two(x) + self.side(x))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("batch", "size"), [(33, 12), (2, 13)])
def test_sums_in_parts(block, batch, size):
    model = built(Wide, 0.3)
    program = traced(model, numbers(2, 64, size, size))
    (part,) = partition(program)
    chains = lower(program, part, block, 16).steps[:, FIELDS.index("chain")]
    assert chains.max() > 0
    assert_same(model, numbers(batch, 64, size, size), block)


@pytest.mark.parametrize("block", [1, 16, 32, 48])
def test_sums_of_a_long_vector_in_parts(block):
    model = nn.Sequential(built(lambda: nn.Linear(3000, 40), 0.3), nn.ReLU(), nn.Linear(40, 3))
    program = traced(model, numbers(2, 3000))
    (part,) = partition(program)
    chains = lower(program, part, block, 16).steps[:, FIELDS.index("chain")]
    # A single example is computed by the gather kernel, which has no parts.
    assert (chains.max() > 0) == (block > 1)
    assert_same(model, numbers(50, 3000), block)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_all_parts_of_a_sum_give_a_channel_to_the_same_thread(block):
    """There is no barrier between parts: a channel that moved to another thread could lose a part."""
    program = traced(built(lambda: nn.Linear(3000, 203), 0.9), numbers(2, 3000))
    (part,) = partition(program)
    lowered = lower(program, part, block, 16)
    kept = {array.ctypes.data: array for array in lowered.pinned}
    steps = [dict(zip(FIELDS, map(int, row), strict=True)) for row in lowered.steps if row[FIELDS.index("slice")] > 1]
    assert len(steps) > 1
    orders = [kept[step["order"]].reshape(-1) for step in steps]
    assert not all((order == orders[0]).all() for order in orders)
    for step, order in zip(steps, orders, strict=True):
        for at in range(0, len(order), step["slice"] * step["group"]):
            groups = [set(one[at : at + step["slice"] * step["group"]]) for one in (order, orders[0])]
            assert groups[0] == groups[1]
    assert_same(built(lambda: nn.Linear(3000, 203), 0.9), numbers(70, 3000), block)


class Sliced(nn.Module):
    """Images without some rows or columns, of the input and of a layer, read with borders, added, pooled, averaged."""

    def __init__(self, rows: int, columns: int, stride: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.first, self.norm = nn.Conv2d(2, 3, (5, 3), padding=(3, 1)), nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, (3, 5), stride, (2, 4), (1, 2))
        self.third, self.head = nn.Conv2d(4, 3, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x[:, :, :: self.rows, :: self.columns])
        part = x[:, :, :: self.rows, :: self.columns]
        y = self.third(self.second(torch.relu(part))[:, :, ::2])
        pooled = nn.functional.max_pool2d(torch.relu(x), 3, 1, 1)[:, :, :: self.rows, :: self.columns]
        summed = nn.functional.avg_pool2d(self.norm(part) + pooled, 3, 1, 1)
        return self.head(torch.cat([y.mean((2, 3)), summed[:, :, ::2, ::2].mean((2, 3))], 1))


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("steps", [(2, 1, 1), (1, 2, 2), (2, 2, 1), (3, 2, 2)])
def test_an_image_of_some_rows_or_columns(block, steps):
    assert_same(built(lambda: Sliced(*steps), 0.2), numbers(5, 2, 17, 14), block)


@pytest.mark.parametrize("block", BLOCKS)
def test_flattened_images_and_adaptive_means(block):
    def make() -> nn.Module:
        head = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(head, nn.Linear(4 * 9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))

    assert_same(built(make), numbers(6, 2, 6, 6), block)
    mean = built(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU()))
    assert_same(mean, numbers(6, 2, 6, 5), block)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_layer_runs_in_the_kernels_except_its_attention(block, norm_first):
    layer = built(
        lambda: nn.TransformerEncoderLayer(
            16, 2, 37, batch_first=True, activation="gelu", dropout=0, norm_first=norm_first
        )
    )
    program = traced(layer, numbers(3, 5, 16))
    inside = [node.op for part in partition(program) if not isinstance(part, Node) for node in part.nodes]
    # With the norm first, a transpose separates it from the projections of the attention.
    assert sorted(inside) == ["add", "add", "gelu", *["layer_norm"] * (2 - norm_first), *["linear"] * 4]
    assert_same(layer, numbers(3, 5, 16), block)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_of_numbers_far_from_zero(block, affine):
    """The variance is summed in a second pass: the mean of squares minus the squared mean would cancel."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(7, 37), nn.LayerNorm(37, 1e-5, affine), nn.Linear(37, 3))

    model = built(make, 0.5)
    with torch.no_grad():
        model[0].bias += 1000
        for parameter in model[1].parameters():
            parameter.copy_(torch.linspace(-1, 2, 37))
        expected = model.double()(numbers(21, 7).double()).float()
        outputs = run(traced(model.float(), numbers(2, 7)), numbers(21, 7), block)
    # Inputs near 1000 are rounded to 6e-5.
    assert (outputs - expected).abs().max() < 1e-3


class RootMeanSquare(nn.Module):
    """RMSNorm as the code of language models writes it, or as torch does."""

    def __init__(self, size: int, written: str) -> None:
        super().__init__()
        self.weight, self.written = nn.Parameter(torch.linspace(-1, 2, size)), written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.written:
            case "torch":
                return nn.functional.rms_norm(x, [x.shape[-1]], self.weight)
            case "no weight":
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            case "product":
                return self.weight * (torch.rsqrt((x * x).mean(2, True) + 1e-6) * x)
            case "other square":
                return x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 1e-6)
            case _:
                return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("written", ["torch", "language model", "product", "no weight", "other square"])
def test_rms_norm(block, written):
    model = built(lambda: nn.Sequential(nn.Linear(7, 37), RootMeanSquare(37, written), nn.Linear(37, 3)), 0.5)
    x = numbers(3, 5, 7)
    parts = partition(fold_batchnorm(traced(model, x)))
    operators = [[node.op for node in part.nodes] for part in parts if not isinstance(part, Node)]
    assert (operators == [["linear", "rms_norm", "linear"]]) == (written != "other square")
    assert_same(model, x, block)


ACTIVATIONS = (
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.3), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh")),
    *(nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.Hardsigmoid()),
)


class Activated(nn.Module):
    """One network in which each activation function follows a linear layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in ACTIVATIONS)
        for layer in self.layers:
            nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(act(layer(x)) for layer, act in zip(self.layers, ACTIVATIONS, strict=True))


@pytest.mark.parametrize("block", [1, 4, 16])
def test_activations(block):
    inputs = torch.cat([torch.linspace(-120, 120, 241), torch.linspace(-6, 6, 1001)])[:, None]
    program = traced(Activated().eval(), inputs)
    (part,) = partition(program)
    assert not isinstance(part, Node)
    outputs = run(program, inputs, block)
    assert len(outputs) == len(ACTIVATIONS)
    for act, output in zip(ACTIVATIONS, outputs, strict=True):
        expected = act(inputs.double()).float()
        torch.testing.assert_close(output, expected, rtol=2e-6, atol=1e-6, msg=lambda text, act=act: f"{act}: {text}")


class Gated(nn.Module):
    """Products of values and with numbers, on features and on images."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 20), nn.Linear(6, 20), nn.Linear(20, 6)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) * torch.sigmoid(x) / 2 + 3
        z = nn.functional.silu(self.gate(y)) * self.up(y) * 0.3
        return self.down(z) + y


@pytest.mark.parametrize("block", BLOCKS)
def test_products(block):
    program = traced(built(Gated, 0.3), numbers(5, 2, 7, 6))
    assert not [part for part in partition(program) if isinstance(part, Node)]
    assert_same(built(Gated, 0.3), numbers(5, 2, 7, 6), block)


class Excited(nn.Module):
    """Channels of images that are multiplied by, and shifted by, numbers computed from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, 2, padding=1)
        self.one, self.two, self.three = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 8, 1), nn.Conv2d(5, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = torch.relu(self.one(x.mean((2, 3), keepdim=True)))
        return self.last(torch.sigmoid(self.two(y)) * torch.relu(x) + self.three(y)) + x.mean((2, 3), True)[:, :4]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [(7, 6), (1, 4)])
def test_products_and_sums_with_a_number_for_each_channel(block, size):
    program = traced(built(Excited, 0.3), numbers(5, 3, *size))
    assert not [part for part in partition(program) if isinstance(part, Node)]
    assert_same(built(Excited, 0.3), numbers(18, 3, *size), block)


def test_excluded_layers_run_in_torch():
    model = built(Residual)
    program = traced(model, numbers(4, 3, 8, 8))
    layers = [node.name for node in program.nodes if node.op == "conv2d"]
    with torch.no_grad():
        expected = model(numbers(4, 3, 8, 8))
    for dense in (layers[:1], layers[1:], layers):
        outputs = run(program, numbers(4, 3, 8, 8), 4, frozenset(dense))
        assert (outputs - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_threads_share_channels_or_blocks_and_compute_the_same():
    model = built(Residual)
    threads = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            for block, batch in ((16, 2), (1, 9), (4, 9)):
                assert_same(model, numbers(batch, 3, 9, 9), block)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_stay_in_their_example(block, value):
    def make() -> nn.Module:
        head = nn.Sequential(nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1))
        return nn.Sequential(*head, nn.AvgPool2d(2), nn.Flatten(), nn.GELU(), nn.Linear(4, 3))

    model, inputs = built(make, 0.3), numbers(20, 1, 7, 7)
    program = traced(model, inputs)
    expected = run(program, inputs, block)
    inputs[3] = value
    outputs = run(program, inputs, block)
    others = torch.arange(20) != 3
    assert torch.equal(outputs[others], expected[others])
    assert not outputs[3].isfinite().all()


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
def test_activations_of_numbers_that_are_not_finite(block, act):
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data = torch.eye(4)
    model = nn.Sequential(layer, act()).eval()
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), -1e30])
    outputs = run(traced(model, numbers(2, 4)), special.repeat(20, 1), block)
    expected = torch.tensor([float("nan"), float("inf"), 0, 0])
    assert outputs.equal(outputs[:1].expand(20, 4)) or outputs[:, 0].isnan().all()
    assert torch.allclose(outputs, expected.expand(20, 4), equal_nan=True)


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("act", [nn.Tanh, nn.ELU, nn.GELU, nn.SiLU])
def test_activations_of_small_numbers_keep_their_digits(block, act):
    model = built(lambda: nn.Sequential(nn.Linear(4, 8, bias=False), act()), 0.5)
    program = traced(model, numbers(2, 4))
    for scale in (1e-20, 1e-5, 0.1):
        inputs = numbers(5, 4) * scale
        with torch.no_grad():
            found = KernelExecutor(program, KernelConfig(block))([inputs])
            assert difference(found, model(inputs)) < 1e-5


def test_more_examples_than_a_block_need_no_larger_arena():
    model = built(lambda: nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)))
    executor = KernelExecutor(traced(model, numbers(2, 30)), KernelConfig(16))
    executor([numbers(2, 30)])
    before = executor.regions[0].arena.nbytes
    executor([numbers(200, 30)])
    assert executor.regions[0].arena.nbytes == before


def test_python_and_c_agree_on_the_fields_of_a_kernel_step():
    assert kernel_library().swamp_fields() == len(FIELDS)


def test_kernels_are_compiled_once_for_a_machine_and_again_for_another(tmp_path, monkeypatch):
    data, compiled = Path(kernel_library()._name).read_bytes(), []
    monkeypatch.setenv("SWAMP_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_compile", lambda compiler, flags: (compiled.append(flags), data)[1])

    def load_library() -> int:
        kernel_library.cache_clear()
        assert kernel_library().swamp_simd_width() in (4, 8, 16)
        return len(compiled)

    try:
        for processor, total in ((b"this", 1), (b"this", 1), (b"another", 2)):
            monkeypatch.setattr(kernels, "_processor", lambda processor=processor: processor)
            assert load_library() == total
        # A damaged file is compiled again. (unlink first: the old file may still be mapped.)
        for path in tmp_path.rglob("*.so"):
            path.unlink()
            path.write_bytes(b"broken")
        assert load_library() == 3
    finally:
        kernel_library.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a compiler")
def test_kernels_compile_without_warnings(tmp_path):
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command = ["cc", str(kernels.SOURCE), "-o", str(tmp_path / "kernels.so"), *flags, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
