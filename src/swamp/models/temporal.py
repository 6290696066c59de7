"""Networks for time series: an LSTM, and a temporal convolutional network."""

from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError
from swamp.models.networks import InputShape

_KERNEL = 3


def channels_of(name: str, shape: InputShape) -> int:
    """Channels of inputs (length,) or (channels, length). Raises SwampError for other inputs."""
    if len(shape) > 2:
        raise SwampError(f"{name} takes series (length,) or (channels, length), not inputs of shape {shape}.")
    return shape[0] if len(shape) == 2 else 1


class SeriesLSTM(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) of one layer or more, and a linear layer on the mean over time."""

    def __init__(self, channels: int, classes: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, width, layers, batch_first=True)
        self.output = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, length) or (batch, channels, length) -> (batch, classes)."""
        steps = inputs.unsqueeze(-1) if inputs.dim() == 2 else inputs.transpose(1, 2)
        return self.output(self.lstm(steps)[0].mean(1))


class CausalBlock(nn.Module):
    """Two causal convolutions of one dilation, each with BatchNorm and ReLU, plus the input."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        self.padding = (_KERNEL - 1) * dilation
        self.conv1 = nn.Conv1d(before, after, _KERNEL, dilation=dilation, bias=False)
        self.norm1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, _KERNEL, dilation=dilation, bias=False)
        self.norm2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Conv1d(before, after, 1, bias=False) if before != after else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, before, length) -> (batch, after, length)."""
        outputs = F.relu(self.norm1(self.conv1(F.pad(inputs, (self.padding, 0)))))
        outputs = F.relu(self.norm2(self.conv2(F.pad(outputs, (self.padding, 0)))))
        return outputs + (inputs if self.shortcut is None else self.shortcut(inputs))


class SeriesTCN(nn.Module):
    """A temporal convolutional network (Bai et al. 2018): causal blocks of dilation 1, 2, 4 ...

    BatchNorm stands in place of weight normalisation and dropout, and a linear layer on the mean over time in place of
    the last step.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        widths = [channels, *[width] * blocks]
        self.blocks = nn.Sequential(*(CausalBlock(widths[i], width, 2**i) for i in range(blocks)))
        self.output = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, length) or (batch, channels, length) -> (batch, classes)."""
        return self.output(self.blocks(inputs.unsqueeze(1) if inputs.dim() == 2 else inputs).mean(2))
