"""FLOPs of a network per example, against numbers computed by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.masks import Mask
from swamp.models.networks import resnet
from swamp.training import Task, Training
from swamp.training.flops import FlopCounter, examples_per_step
from swamp.training.sources import as_data


def of(model: nn.Module, *shape: int, examples: int = 3) -> FlopCounter:
    data = torch.zeros(examples, *shape), torch.zeros(examples, dtype=torch.long)
    return FlopCounter.of(model, Task.of(data, data))


def first_active(model: nn.Module, name: str, count: int) -> Mask:
    """Only the first `count` weights of one layer are active; the mask does not name the other layers."""
    weight = dict(model.named_parameters())[name]
    return Mask({name: (torch.arange(weight.numel()) < count).view(weight.shape)})


def test_a_linear_weight_costs_a_multiplication_and_an_addition():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    flops = of(model, 4)
    assert flops.forward(None) == 2 * (4 * 8 + 8 * 3)
    assert flops.forward(first_active(model, "0.weight", 5)) == 2 * (5 + 24)
    assert flops.by_layer(Mask.ones(model)) == {"0.weight": 64, "3.weight": 48}


def test_a_linear_layer_along_a_sequence_costs_each_position():
    assert of(nn.Linear(4, 8), 7, 4).forward(None) == 7 * 64


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(2, 4, 3), (2, 10), 4 * 2 * 3 * 8),
        (nn.Conv2d(2, 4, 3), (2, 6, 6), 4 * 2 * 9 * 16),
        (nn.Conv2d(2, 4, 3, padding=1), (2, 6, 6), 4 * 2 * 9 * 36),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 6, 6), 4 * 2 * 9 * 9),
        (nn.Conv2d(2, 4, 3, dilation=2), (2, 6, 6), 4 * 2 * 9 * 4),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 6, 5), 8 * 2 * 9 * 12),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6), 4 * 9 * 16),
        (nn.Conv3d(1, 2, 2), (1, 3, 4, 5), 2 * 8 * 2 * 3 * 4),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), (2, 5, 5), 2 * 4 * 9 * 25),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 7), 4 * 3 * 3 * 7),
    ],
)
def test_a_convolution_costs_its_weights_at_every_position(layer: nn.Module, shape: tuple[int, ...], expected: int):
    assert of(layer, *shape).forward(None) == 2 * expected


class Tied(nn.Module):
    """One matrix in two layers, one of which is used twice, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.two(self.two(self.one(inputs)))


def test_a_tied_weight_costs_each_of_its_uses():
    model = Tied()
    assert of(model, 4).by_layer(None) == {"one.weight": 2 * 3 * 16}
    assert of(model, 4).forward(first_active(model, "one.weight", 5)) == 2 * 3 * 5


class Padded(nn.Module):
    """A transformer whose fast path in eval mode would skip the padding and its inner layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, inputs: Tensor) -> Tensor:
        padding = torch.arange(inputs.shape[1]).expand(inputs.shape[:2]) > 2
        return self.encoder(inputs, src_key_padding_mask=padding)


def test_a_transformer_costs_its_projections_and_its_attention_products():
    layer = {"self_attn.in_proj_weight": 24 * 8, "self_attn.out_proj.weight": 64}
    layer |= {"linear1.weight": 128, "linear2.weight": 128}
    expected = {f"encoder.layers.{number}.{n}": 2 * 5 * size for number in range(2) for n, size in layer.items()}
    flops = of(Padded(), 5, 8)
    assert flops.by_layer(None) == expected
    # Queries times keys, and attention times values, in two layers: 5 * 5 positions, 8 numbers each.
    assert flops.forward(None) - sum(expected.values()) == 2 * 2 * 2 * 25 * 8
    assert flops.forward(Mask({"encoder.layers.0.linear1.weight": torch.zeros(16, 8, dtype=torch.bool)})) == (
        flops.forward(None) - 2 * 5 * 128
    )
    assert torch.backends.mha.get_fastpath_enabled()


class Crossing(nn.Module):
    """3 learned queries look at a sequence."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, 3, 4))
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.attention(self.queries, key=inputs, value=inputs)[0]


def test_queries_and_keys_of_a_cross_attention_cost_their_own_positions():
    together = of(Crossing(), 7, 4).by_layer(None)
    assert together == {
        "attention.in_proj_weight": 2 * (3 * 16 + 7 * 16 + 7 * 16),
        "attention.out_proj.weight": 2 * 3 * 16,
    }
    model = Crossing()
    of_values = torch.zeros(12, 4, dtype=torch.bool)
    of_values[8:] = True
    assert (
        of(model, 7, 4).by_layer(Mask({"attention.in_proj_weight": of_values}))["attention.in_proj_weight"] == 2 * 112
    )
    apart = of(Crossing(kdim=6, vdim=6), 7, 6).by_layer(None)
    assert apart == {
        "attention.q_proj_weight": 2 * 3 * 16,
        "attention.k_proj_weight": 2 * 7 * 24,
        "attention.v_proj_weight": 2 * 7 * 24,
        "attention.out_proj.weight": 2 * 3 * 16,
    }


def test_resnet_20_costs_the_sum_of_its_stages():
    # Stage s: 16 * 2^s channels at 32 / 2^s pixels a side; the first of its 6 convolutions comes from half as wide.
    multiplications = 3 * 16 * 9 * 32**2 + 64 * 10
    for stage in range(3):
        wide, pixels = 16 * 2**stage, (32 // 2**stage) ** 2
        first = wide if stage == 0 else wide // 2
        multiplications += (5 * wide * wide + first * wide) * 9 * pixels
    assert multiplications == 40_551_040
    model = resnet((3, 32, 32), 10, 20)
    flops = of(model, 3, 32, 32, examples=1)
    assert flops.forward(None) == flops.forward(Mask.ones(model)) == 2 * multiplications


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 3), ({"sam": 0.1}, 6), ({"sam": 0.1, "sharpness": "asam"}, 6), ({"sam": 0.1, "sharpness": "s2-sam"}, 3)],
)
def test_training_costs_three_forward_passes_and_a_second_gradient_as_much_again(options: dict[str, Any], passes: int):
    model = nn.Linear(4, 8)
    step = of(model, 4).training_step(first_active(model, "weight", 10), Training(**options))
    assert step == passes * 20


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.LSTM(4, 8, batch_first=True), (5, 4), {"weight_ih_l0": 5 * 32 * 4, "weight_hh_l0": 5 * 32 * 8}),
        (nn.GRU(4, 8, batch_first=True), (5, 4), {"weight_ih_l0": 5 * 24 * 4, "weight_hh_l0": 5 * 24 * 8}),
        (nn.RNN(4, 8, batch_first=True), (5, 4), {"weight_ih_l0": 5 * 8 * 4, "weight_hh_l0": 5 * 8 * 8}),
    ],
    ids=["LSTM", "GRU", "RNN"],
)
def test_a_recurrent_weight_costs_each_position(layer: nn.Module, shape: tuple[int, ...], expected: dict[str, int]):
    data = torch.zeros(3, *shape), torch.zeros(3, dtype=torch.long)
    flops = FlopCounter.of(layer, Task.of(data, data, forward=lambda model, x: model(x)[0]))
    assert flops.by_layer(None) == {name: 2 * size for name, size in expected.items()}
    assert flops.activations == 0


class Functional(nn.Module):
    """Products by functional calls, of parameters without a layer around them."""

    def __init__(self, call: Any, *shape: int) -> None:
        super().__init__()
        self.weight, self.call = nn.Parameter(torch.ones(shape)), call

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(inputs, self.weight)


@pytest.mark.parametrize(
    ("call", "shape", "times"),
    [
        (lambda x, w: x @ w, (4, 8), 7),
        (lambda x, w: torch.einsum("bti,oi->bto", x, w), (8, 4), 7),
        (lambda x, w: torch.einsum("bti,tio->bto", x, w), (7, 4, 8), 1),
        (lambda x, w: torch.bmm(x, w.expand(len(x), 4, 8)), (1, 4, 8), 7),
        (lambda x, w: torch.baddbmm(torch.zeros(1, 1, 8), x, w), (1, 4, 8), 7),
        (lambda x, w: torch.addmm(torch.zeros(8), x[0], w), (4, 8), 7),
        (lambda x, w: (x[0] @ w), (4,), 7),
        (lambda x, w: F.linear(x, torch.cat([w, w])), (8, 4), 14),
        (lambda x, w: F.linear(x, (w * 2).to(torch.bfloat16).float()), (8, 4), 7),
        (lambda x, w: F.linear(x, w.tanh().contiguous().t()), (4, 8), 7),
        (lambda x, w: F.bilinear(x, x, w), (3, 4, 4), 7),
        (lambda x, w: F.embedding(torch.zeros(1, 3, dtype=torch.long), w), (5, 4), 0),
        (lambda x, w: x * w, (4,), 0),
    ],
    ids=["matmul", "einsum", "batched einsum", "bmm", "baddbmm", "addmm", "mv", "cat", "cast", "computed", "bilinear",
         "embedding", "elementwise"],
)  # fmt: skip
def test_a_functional_product_costs_the_weights_that_reach_it(call: Any, shape: tuple[int, ...], times: int):
    model = Functional(call, *shape)
    size = model.weight.numel()
    flops = of(model, 7, 4, examples=1)
    assert flops.forward(None) == 2 * times * size
    assert flops.forward(first_active(model, "weight", 3)) == 2 * times * 3


def test_part_of_a_weight_costs_its_own_uses():
    model = Functional(lambda x, w: (x @ w[:, :2].contiguous()).sum() + (x[:, :3] @ w[:, 2:]).sum(), 4, 6)
    flops = of(model, 7, 4, examples=1)
    assert flops.forward(None) == 2 * (7 * 4 * 2 + 3 * 4 * 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 1] = mask[0, 5] = True
    assert flops.forward(Mask({"weight": mask})) == 2 * (7 + 3)


def test_a_parametrised_layer_costs_its_original_weight():
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
    assert of(model, 7, 4).by_layer(None) == {"parametrizations.weight.original1": 2 * 7 * 32}


def test_ready_made_batches_count_their_own_examples():
    sizes = (6, 2, 4, 8, 1)
    batches = [(torch.zeros(size, 4), torch.zeros(size, dtype=torch.long)) for size in sizes]
    task = Task.of(batches, batches)
    assert FlopCounter.of(nn.Linear(4, 8), task).forward(None) == 64
    assert examples_per_step(task.train, 128) * len(sizes) == sum(sizes)
    data = as_data((torch.zeros(10, 4), torch.zeros(10)))
    assert (examples_per_step(data, 4), examples_per_step(data, 128)) == (4, 10)


def test_a_batch_list_is_counted_per_example():
    batches = [(torch.zeros(6, 4), torch.zeros(6, dtype=torch.long))] * 2
    assert FlopCounter.of(nn.Linear(4, 8), Task.of(batches, batches)).forward(None) == 64


def test_a_network_that_fails_on_a_single_example_counts_each_weight_once():
    class Squeezing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise ValueError("two examples or more")

    with pytest.warns(UserWarning, match=r"count every weight once.*two examples or more"):
        assert of(Squeezing(4, 8), 4).forward(None) == 64


def test_a_network_without_such_layers_costs_nothing():
    assert of(nn.Sequential(nn.BatchNorm1d(4), nn.PReLU()), 4).forward(None) == 0


def test_model_and_generators_stay_as_they_were(small_task, small_net, same, generators):
    model = small_net(rich=True).train()
    before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, generators()
    FlopCounter.of(model, small_task)
    assert same(model.state_dict(), before)
    assert generators() == numbers
    assert all(module.training and not module._forward_hooks for module in model.modules())
