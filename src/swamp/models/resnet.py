"""Residual networks for small images: He et al. 2016 (arXiv:1512.03385) and Zagoruyko 2016 (arXiv:1605.07146)."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from swamp.models.layers import GlobalAverage, Shape, image_shape, initialised


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


def resnet(shape: Shape, classes: int, depth: int) -> nn.Sequential:
    """ResNet-D for CIFAR, D = 6n + 2: three stages of n blocks with 16, 32 and 64 channels; images of any size.

    269,722 parameters for D = 20, 464,154 for 32 and 853,018 for 56 on 3 x 32 x 32 with 10 classes.
    """
    channels, _, _ = image_shape("resnet", shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False), norm=nn.BatchNorm2d(16), relu=nn.ReLU()
    )
    layers.update(_stages(ResidualBlock, (depth - 2) // 6, (16, 32, 64)))
    layers.update(average=GlobalAverage(), output=nn.Linear(64, classes))
    return initialised(nn.Sequential(layers))


def wide_resnet(shape: Shape, classes: int, depth: int, factor: int) -> nn.Sequential:
    """WRN-D-K, D = 6n + 4: three stages of n pre-activation blocks, K times as wide; images of any size.

    2,748,890 parameters for WRN-16-4 and 36,479,194 for WRN-28-10 on 3 x 32 x 32 with 10 classes. No dropout.
    """
    channels, _, _ = image_shape("wrn", shape)
    widths = (16 * factor, 32 * factor, 64 * factor)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False))
    layers.update(_stages(WideBlock, (depth - 4) // 6, widths))
    layers.update(norm=nn.BatchNorm2d(widths[-1]), relu=nn.ReLU())
    layers.update(average=GlobalAverage(), output=nn.Linear(widths[-1], classes))
    return initialised(nn.Sequential(layers))


def _stages(
    block: type[ResidualBlock] | type[WideBlock], blocks: int, widths: tuple[int, int, int]
) -> dict[str, nn.Module]:
    stages: dict[str, nn.Module] = {}
    before = 16
    for number, width in enumerate(widths, 1):
        first = block(before, width, stride=1 if number == 1 else 2)
        stages[f"stage{number}"] = nn.Sequential(first, *(block(width, width, stride=1) for _ in range(blocks - 1)))
        before = width
    return stages
