"""What the networks share."""

from torch import Tensor, nn

from swamp.errors import SwampError

Shape = tuple[int, ...]


class GlobalAverage(nn.Module):
    """(N, C, ...) -> (N, C): the mean over all positions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean over all positions."""
        return inputs.flatten(2).mean(2)


def image_shape(name: str, shape: Shape, smallest: int = 1) -> tuple[int, int, int]:
    """(channels, height, width). Raises SwampError for other inputs and for images below `smallest` pixels a side."""
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
    """The network with convolutions drawn from Kaiming's normal (fan out, ReLU) and their biases zero.

    He et al. 2015, arXiv:1502.01852, as torchvision's networks have it; linear layers keep torch's own default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
