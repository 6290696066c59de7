import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp.datasets import build_network
from swamp.errors import SwampError
from swamp.training.rng import Seed, isolated

MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def resnet_by_hand(n: int) -> int:
    """Option A: first 3x3, then per stage of width w the first block from v, all with BatchNorm (2w), and 64 -> 10."""
    total = 3 * 16 * 9 + 2 * 16
    for v, w in ((16, 16), (16, 32), (32, 64)):
        total += v * w * 9 + (2 * n - 1) * w * w * 9 + 2 * n * 2 * w
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("lenet-300-100", MNIST, 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
        ("lenet-300-100", MNIST, 266_610),
        ("mlp-300-100", MNIST, 266_610),
        ("mlp-7", (40,), 40 * 7 + 7 + 7 * 10 + 10),
        ("lenet-5", MNIST, 431_080),
        ("resnet-20", CIFAR, 269_722),
        ("resnet-20", CIFAR, resnet_by_hand(3)),
        ("resnet-32", CIFAR, 464_154),
        ("resnet-32", CIFAR, resnet_by_hand(5)),
        ("resnet-56", CIFAR, 853_018),
        ("resnet-56", CIFAR, resnet_by_hand(9)),
        ("wrn-16-4", CIFAR, 2_748_890),
        ("wrn-28-10", CIFAR, 36_479_194),
        ("vgg-16", CIFAR, 14_728_266),
        ("vgg-19", CIFAR, 20_040_522),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, shape: tuple[int, ...], published: int):
    with torch.device("meta"):
        assert parameters(build_network(name, shape, 10)) == published


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (2, 17, 9), (3, 1, 5), (3, 32, 32)])
@pytest.mark.parametrize("name", ["mlp-16", "resnet-8", "wrn-10-1", "wrn-10-2", "vgg-11"])
def test_images_of_any_size_and_channels_give_one_output_a_class(name: str, shape: tuple[int, ...]):
    network = build_network(name, shape, 7)
    outputs = network(torch.randn(3, *shape))
    outputs.sum().backward()
    assert outputs.shape == (3, 7)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("length", [1, 2, 40, 41])
def test_conv1d_takes_signals_of_any_length(length: int):
    assert build_network("conv1d", (length,), 10)(torch.randn(4, length)).shape == (4, 10)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 21), (1, 28, 28), (3, 33, 40)])
def test_lenet5_takes_images_from_16_x_16(shape: tuple[int, ...]):
    assert build_network("lenet-5", shape, 10)(torch.randn(2, *shape)).shape == (2, 10)


def test_the_names_of_vggs_parameters_do_not_depend_on_the_size_of_the_images():
    small, large = (build_network("vgg-11", (1, side, side), 10).state_dict() for side in (8, 64))
    assert list(small) == list(large)


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
def test_each_vgg_has_its_convolutions(depth: int, convolutions: int):
    with torch.device("meta"):
        network = build_network(f"vgg-{depth}", CIFAR, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions


def test_a_residual_block_that_adds_nothing_passes_its_input_subsampled_and_padded():
    network = build_network("resnet-8", CIFAR, 10).eval()
    block = network.get_submodule("stage2.0")
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    images = torch.rand(2, 16, 5, 5)
    wanted = F.pad(images[:, :, ::2, ::2], [0, 0, 0, 0, 8, 8])
    assert torch.equal(block(images), wanted)


def test_a_wide_block_equals_its_formula():
    block = build_network("wrn-10-2", CIFAR, 10).get_submodule("stage1.0").eval()
    conv1, conv2, shortcut = (block.get_parameter(f"{name}.weight") for name in ("conv1", "conv2", "shortcut"))
    images = torch.randn(2, 16, 5, 5)
    # Fresh BatchNorm in eval mode divides by sqrt(1 + 1e-5).
    active = F.relu(images / (1 + 1e-5) ** 0.5)
    inner = F.relu(F.conv2d(active, conv1, padding=1) / (1 + 1e-5) ** 0.5)
    wanted = F.conv2d(active, shortcut) + F.conv2d(inner, conv2, padding=1)
    torch.testing.assert_close(block(images), wanted)


def test_convolutions_are_drawn_from_kaimings_normal_over_the_fan_out():
    with isolated(Seed(0)):
        network = build_network("wrn-10-4", CIFAR, 10)
    weight = network.get_parameter("stage3.0.conv1.weight")  # from 128 to 256 channels
    assert abs(float(weight.detach().std()) / (2 / (256 * 9)) ** 0.5 - 1) < 0.01


def test_equal_seeds_give_equal_networks():
    weights: list[torch.Tensor] = []
    for number in (1, 1, 2):
        with isolated(Seed(number)):
            weights.append(nn.utils.parameters_to_vector(build_network("conv1d", (40,), 10).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet20", "unknown model 'resnet20'. Did you mean resnet-20"),
        ("vgg16", "Did you mean vgg-16"),
        ("lenet", "Did you mean lenet-5"),
        ("mlp", "mlp-W1-W2"),
        ("transformer-xl", r"Choose one of: .*conv1d, .*lenet-300-100, lenet-5, .*mlp-100-100"),
        ("mlp-10-", "unknown model"),
        ("mlp-\u0661", "unknown model"),
        ("conv1d\n", "unknown model"),
        ("", "unknown model ''"),
        ("mlp-0", "each width must be from 1 to 65536"),
        ("mlp-99999999999", "each width"),
        ("resnet-18", r"depth 18 is not possible; it must be 6n \+ 2: 8, 14, 20, 26, 32, .* nearest is 20"),
        ("resnet-2", "nearest is 8"),
        ("resnet-9999998", "nearest is 1298"),
        ("wrn-28-0", "factor is 0"),
        ("wrn-26-4", r"it must be 6n \+ 4: 10, 16, 22, 28, 34, .* nearest is 28|nearest is 22"),
        ("vgg-12", "choose vgg-11, vgg-13, vgg-16 or vgg-19"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_what_can(name: str, reason: str):
    with pytest.raises(SwampError, match=reason):
        build_network(name, CIFAR, 10)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("conv1d", (1, 28, 28), "takes signals"),
        ("resnet-20", (40,), "takes images"),
        ("vgg-11", (3, 32), "takes images"),
        ("lenet-5", (1, 8, 8), "at least 16 x 16 pixels, got 8 x 8"),
        ("mlp-10", (), "positive sizes"),
        ("mlp-10", (0, 4), "positive sizes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], reason: str):
    with pytest.raises(SwampError, match=reason):
        build_network(name, shape, 10)
