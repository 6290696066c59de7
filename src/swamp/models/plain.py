"""Multilayer perceptrons and LeNets."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from swamp.models.layers import GlobalAverage, Shape, image_shape


def mlp(shape: Shape, classes: int, widths: Sequence[int], *, batchnorm: bool = False) -> nn.Sequential:
    """Linear layers of these widths with (BatchNorm and) ReLU between; takes inputs of any shape, flattened.

    LeNet-300-100 (LeCun et al. 1998) is this with widths 300 and 100: 266,610 parameters on 1 x 28 x 28.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    sizes = [math.prod(shape), *widths]
    for number, (before, after) in enumerate(itertools.pairwise(sizes), 1):
        # BatchNorm shifts by itself: a bias before it would do nothing.
        layers[f"hidden{number}"] = nn.Linear(before, after, bias=not batchnorm)
        if batchnorm:
            layers[f"norm{number}"] = nn.BatchNorm1d(after)
        layers[f"relu{number}"] = nn.ReLU()
    layers["output"] = nn.Linear(sizes[-1], classes)
    return nn.Sequential(layers)


def lenet5(shape: Shape, classes: int) -> nn.Sequential:
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


def conv1d(shape: Shape, classes: int) -> nn.Sequential:
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
