"""Autoencoders: networks that reproduce their inputs from a code of few numbers."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.models.networks import InputShape, image_shape


class Autoencoder(nn.Module):
    """inputs -> `encoder` -> code (batch, dimensions) -> `decoder` -> inputs of the same shape."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, inputs: Tensor) -> Tensor:
        """The codes of a batch of inputs, (batch, dimensions)."""
        return self.encoder(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """The reconstructed inputs."""
        return self.decoder(self.encoder(inputs))


def mlp_autoencoder(shape: InputShape, widths: Sequence[int]) -> Autoencoder:
    """Linear layers of these widths with ReLU between, and their mirror image; the last width is that of the code."""
    sizes = [math.prod(shape), *widths]
    decoder = [*_linear(sizes[::-1]), nn.Unflatten(1, shape)]
    return Autoencoder(nn.Sequential(nn.Flatten(), *_linear(sizes)), nn.Sequential(*decoder))


def conv_autoencoder(shape: InputShape, channels: int, code: int) -> Autoencoder:
    """Two convolutions of stride 2 with `channels` and 2 `channels`, a linear layer to the code, and the mirror image.

    Raises SwampError for images whose sides are no multiples of 4.
    """
    colours, height, width = image_shape("conv-autoencoder", shape, smallest=4)
    if height % 4 or width % 4:
        raise SwampError(
            f"conv-autoencoder needs images with sides that are multiples of 4, got {height} x {width}; "
            f"try autoencoder-256-{code}."
        )
    inner = 2 * channels, height // 4, width // 4
    encoder = nn.Sequential(
        nn.Conv2d(colours, channels, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, 2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(math.prod(inner), code),
    )
    decoder = nn.Sequential(
        nn.Linear(code, math.prod(inner)),
        nn.ReLU(),
        nn.Unflatten(1, inner),
        nn.ConvTranspose2d(2 * channels, channels, 4, 2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, colours, 4, 2, padding=1),
    )
    return Autoencoder(encoder, decoder)


def _linear(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]
