"""Multilayer perceptrons, LeNets, ResNets and VGGs."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError

InputShape = tuple[int, ...]


class GlobalAverage(nn.Module):
    """(N, C, ...) -> (N, C): the mean over all positions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean over all positions."""
        return inputs.flatten(2).mean(2)


def image_shape(name: str, shape: InputShape, smallest: int = 1) -> tuple[int, int, int]:
    """(channels, height, width). Raises SwampError for other inputs and for images smaller than `smallest` pixels."""
    if len(shape) != 3:
        raise SwampError(f"{name} takes images (channels, height, width), got inputs of shape {shape}; try an mlp.")
    channels, height, width = shape
    if min(height, width) < smallest:
        raise SwampError(
            f"{name} needs images of at least {smallest} x {smallest} pixels, got {height} x {width}; "
            "try resnet-20 or vgg-11, which take any size."
        )
    return channels, height, width


def initialised(network: nn.Sequential) -> nn.Sequential:
    """Initialise convolutions with Kaiming's normal (fan out, ReLU), their biases with zero; returns the network.

    He et al. 2015, arXiv:1502.01852, as in torchvision; linear layers keep torch's default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def mlp(shape: InputShape, classes: int, widths: Sequence[int], *, batchnorm: bool = False) -> nn.Sequential:
    """Linear layers with (BatchNorm and) ReLU between; inputs of any shape are flattened.

    LeNet-300-100 (LeCun et al. 1998) is this with widths 300 and 100: 266,610 parameters on 1 x 28 x 28.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    sizes = [math.prod(shape), *widths]
    for number, (before, after) in enumerate(itertools.pairwise(sizes), 1):
        # BatchNorm has its own bias: one before it has no effect.
        layers[f"hidden{number}"] = nn.Linear(before, after, bias=not batchnorm)
        if batchnorm:
            layers[f"norm{number}"] = nn.BatchNorm1d(after)
        layers[f"relu{number}"] = nn.ReLU()
    layers["output"] = nn.Linear(sizes[-1], classes)
    return nn.Sequential(layers)


def lenet5(shape: InputShape, classes: int) -> nn.Sequential:
    """Caffe's LeNet-5: 5 x 5 convolutions of 20 and 50 channels, max pooling, 500 hidden units.

    431,080 parameters on 1 x 28 x 28; images of at least 16 x 16.
    """
    channels, height, width = image_shape("lenet-5", shape, smallest=16)

    def left(side: int) -> int:
        return ((side - 4) // 2 - 4) // 2

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(50 * left(height) * left(width), 500),
            relu=nn.ReLU(),
            output=nn.Linear(500, classes),
        )
    )


def conv1d(shape: InputShape, classes: int) -> nn.Sequential:
    """Four convolutions over a signal with BatchNorm and ReLU, then the mean over time; any length from 1 on."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(unflatten=nn.Unflatten(1, (1, shape[0])))
    before = 1
    for number, (after, kernel, stride) in enumerate([(32, 5, 1), (64, 5, 2), (64, 3, 2), (128, 3, 2)], 1):
        layers[f"conv{number}"] = nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm1d(after)
        layers[f"relu{number}"] = nn.ReLU()
        before = after
    layers["average"] = GlobalAverage()
    layers["output"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """conv, norm, relu, conv, norm, plus the input, relu.

    Where the size changes the input is subsampled and padded with zero channels (He's option A), which has no
    parameters.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.extra = after - before

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride), rounded up."""
        outputs = F.relu(self.norm1(self.conv1(inputs)))
        outputs = self.norm2(self.conv2(outputs))
        if self.extra or self.stride > 1:
            first = self.extra // 2
            inputs = F.pad(inputs[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, first, self.extra - first])
        return F.relu(outputs + inputs)


class WideBlock(nn.Module):
    """norm, relu, conv, norm, relu, conv, plus the input, or its 1 x 1 convolution where the channels change."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = before != after or stride > 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride), rounded up."""
        active = F.relu(self.norm1(inputs))
        kept = inputs if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(active))))


def resnet(shape: InputShape, classes: int, depth: int, width: int = 16) -> nn.Sequential:
    """ResNet-D for CIFAR, D = 6n + 2: three stages of n blocks with 16, 32 and 64 channels; images of any size.

    width: channels of the first stage, if not 16; the others have twice and four times as many.

    269,722 parameters for D = 20, 464,154 for 32 and 853,018 for 56 on 3 x 32 x 32 with 10 classes.
    """
    channels, _, _ = image_shape("resnet", shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    layers.update(_stages(ResidualBlock, (depth - 2) // 6, width, (width, 2 * width, 4 * width)))
    layers.update(average=GlobalAverage(), output=nn.Linear(4 * width, classes))
    return initialised(nn.Sequential(layers))


def wide_resnet(shape: InputShape, classes: int, depth: int, factor: int) -> nn.Sequential:
    """WRN-D-K, D = 6n + 4: three stages of n pre-activation blocks, K times as wide; images of any size.

    2,748,890 parameters for WRN-16-4 and 36,479,194 for WRN-28-10 on 3 x 32 x 32 with 10 classes. No dropout.
    """
    channels, _, _ = image_shape("wrn", shape)
    widths = (16 * factor, 32 * factor, 64 * factor)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False))
    layers.update(_stages(WideBlock, (depth - 4) // 6, 16, widths))
    layers.update(norm=nn.BatchNorm2d(widths[-1]), relu=nn.ReLU())
    layers.update(average=GlobalAverage(), output=nn.Linear(widths[-1], classes))
    return initialised(nn.Sequential(layers))


def _stages(
    block: type[ResidualBlock] | type[WideBlock], blocks: int, before: int, widths: tuple[int, int, int]
) -> dict[str, nn.Module]:
    stages: dict[str, nn.Module] = {}
    for number, width in enumerate(widths, 1):
        first = block(before, width, stride=1 if number == 1 else 2)
        stages[f"stage{number}"] = nn.Sequential(first, *(block(width, width, stride=1) for _ in range(blocks - 1)))
        before = width
    return stages


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each of the five stages."""
_WIDER = (1, 2, 4, 8, 8)
"""Channels of the stages, as multiples of those of the first."""


def vgg(shape: InputShape, classes: int, depth: int, width: int = 64) -> nn.Sequential:
    """VGG-D: five stages of 3 x 3 convolutions with BatchNorm, the mean over positions, one linear layer.

    A stage ends in 2 x 2 max pooling unless a side is already one pixel, so that images of any size work; the names
    of the parameters do not depend on it. Convolutions keep their biases, as in the original: 14,728,266 parameters
    for D = 16 on 3 x 32 x 32 with 10 classes (14,724,042 without the biases).

    width: channels of the first stage, if not 64; the others have 2, 4, 8 and 8 times as many.
    """
    before, rows, columns = image_shape("vgg", shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (count, wider) in enumerate(zip(DEPTHS[depth], _WIDER, strict=True), 1):
        after = wider * width
        stage: OrderedDict[str, nn.Module] = OrderedDict()
        for conv in range(1, count + 1):
            stage[f"conv{conv}"] = nn.Conv2d(before, after, 3, padding=1)
            stage[f"norm{conv}"] = nn.BatchNorm2d(after)
            stage[f"relu{conv}"] = nn.ReLU()
            before = after
        if min(rows, columns) > 1:
            stage["pool"] = nn.MaxPool2d(2)
            rows, columns = rows // 2, columns // 2
        layers[f"stage{number}"] = nn.Sequential(stage)
    layers.update(average=GlobalAverage(), output=nn.Linear(before, classes))
    return initialised(nn.Sequential(layers))
