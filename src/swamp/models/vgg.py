"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with BatchNorm, in the form used on CIFAR."""

from collections import OrderedDict

from torch import nn

from swamp.models.layers import GlobalAverage, Shape, image_shape, initialised

DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each of the five stages."""
_WIDTHS = (64, 128, 256, 512, 512)


def vgg(shape: Shape, classes: int, depth: int) -> nn.Sequential:
    """VGG-D: five stages of 3 x 3 convolutions with BatchNorm, the mean over positions, one linear layer.

    A stage ends in 2 x 2 max pooling unless a side is already one pixel, so that images of any size work; the names
    of the parameters do not depend on it. Convolutions keep their biases, as in the original: 14,728,266 parameters
    for D = 16 on 3 x 32 x 32 with 10 classes (14,724,042 without the biases).
    """
    before, height, width = image_shape("vgg", shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (count, after) in enumerate(zip(DEPTHS[depth], _WIDTHS, strict=True), 1):
        stage: OrderedDict[str, nn.Module] = OrderedDict()
        for conv in range(1, count + 1):
            stage[f"conv{conv}"] = nn.Conv2d(before, after, 3, padding=1)
            stage[f"norm{conv}"] = nn.BatchNorm2d(after)
            stage[f"relu{conv}"] = nn.ReLU()
            before = after
        if min(height, width) > 1:
            stage["pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        layers[f"stage{number}"] = nn.Sequential(stage)
    layers.update(average=GlobalAverage(), output=nn.Linear(before, classes))
    return initialised(nn.Sequential(layers))
