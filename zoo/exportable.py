"""Networks that `make export-zoo` exports: random weights, configurations that take milliseconds for an example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import entry  # noqa: F401  (the operators of torchvision that timm asks for)
from entry import integers, random
from swamp.models import build_network
from swamp.models.transformer import Tokens

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class Exportable:
    """A network, and how it is called.

    Args:
        name: Name in the table.
        kind: The library that has the network.
        make: Makes the network with random weights.
        inputs: Makes the inputs of a number of examples: positional arguments, or keyword arguments.
        dynamic: As for `swamp.export`: the dimensions that vary. None: dimension 0 of every input.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic: dict[str, dict[int, str]] | None = None


# Networks of torch alone


class Recurrent(nn.Module):
    """Classifies a series by the last state of a two-layer recurrent network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = getattr(nn, kind)(32, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.body(series)[0][:, -1])


class BagClassifier(nn.Module):
    """Classifies a text by the mean of its words' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(2000, 128, mode="mean")
        self.hidden, self.head = nn.Linear(128, 512), nn.Linear(512, 10)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.words(words)), inplace=True))


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Segments an image (Ronneberger et al. 2015): two levels, transposed convolutions upwards."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = DoubleConv(3, 16), DoubleConv(16, 32), DoubleConv(32, 64)
        self.lift2, self.up2 = nn.ConvTranspose2d(64, 32, 2, 2), DoubleConv(64, 32)
        self.lift1, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), DoubleConv(32, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(F.max_pool2d(first, 2))
        low = self.bottom(F.max_pool2d(second, 2))
        middle = self.up2(torch.cat([self.lift2(low), second], 1))
        return self.head(self.up1(torch.cat([self.lift1(middle), first], 1)))


def _own(name: str, *shape: int, tokens: Tokens | None = None) -> Callable[[], nn.Module]:
    return lambda: build_network(name, shape, 10, tokens)


def _words(batch: int) -> Inputs:
    return (integers(200, batch, 32),)


def _masked_words(batch: int) -> Inputs:
    return integers(200, batch, 32), _padding(batch)


def _padding(batch: int) -> Tensor:
    """Masks of sequences of different lengths."""
    return (torch.arange(32) < 16 + 5 * (torch.arange(batch)[:, None] % 4)).long()


def _series(batch: int) -> Inputs:
    return (random(batch, 24, 32),)


def _image(side: int, channels: int = 3) -> Callable[[int], Inputs]:
    return lambda batch: (random(batch, channels, side, side),)


PLAIN = (
    Exportable("MLP 784-1024-1024-10", "swamp", _own("mlp-1024-1024", 784), lambda batch: (random(batch, 784),)),
    Exportable("ResNet-20", "swamp", _own("resnet-20", 3, 32, 32), _image(32)),
    Exportable("VGG-11", "swamp", _own("vgg-11", 3, 32, 32), _image(32)),
    Exportable("Encoder", "swamp", _own("encoder-2-128", 32, tokens=Tokens(200, 0)), _masked_words),
    Exportable("Decoder", "swamp", _own("decoder-2-128", 32, tokens=Tokens(200, 0, next=True)), _words),
    Exportable("LSTM", "torch", lambda: Recurrent("LSTM"), _series),
    Exportable("GRU", "torch", lambda: Recurrent("GRU"), _series),
    Exportable("EmbeddingBag classifier", "torch", BagClassifier, _words),
    Exportable("U-Net", "torch", UNet, _image(32)),
)


# Networks of transformers, called as their documentation calls them

_WORDS = {"vocab_size": 200, "pad_token_id": 0}
_SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
_CAUSAL = {**_SMALL, **_WORDS, "num_key_value_heads": 2, "use_cache": False}
_T5 = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4, "use_cache": False, **_WORDS}


def _hub(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


def _text(batch: int) -> Inputs:
    return {"input_ids": integers(199, batch, 32) + 1, "attention_mask": _padding(batch)}


def _two_texts(batch: int) -> Inputs:
    return {**_text(batch), "decoder_input_ids": integers(199, batch, 8, seed=1) + 1}


_HUB: tuple[tuple[str, Callable[[], nn.Module], Callable[[int], Inputs]], ...] = (
    ("BERT", _hub("BertForSequenceClassification", "BertConfig", **_SMALL, **_WORDS), _text),
    ("DistilBERT", _hub("DistilBertForSequenceClassification", "DistilBertConfig", dim=128, n_layers=2, n_heads=4,
                        hidden_dim=512, **_WORDS), _text),
    ("RoBERTa", _hub("RobertaForSequenceClassification", "RobertaConfig", **_SMALL, **_WORDS), _text),
    ("ALBERT", _hub("AlbertForSequenceClassification", "AlbertConfig", embedding_size=64, **_SMALL, **_WORDS), _text),
    ("ELECTRA", _hub("ElectraForSequenceClassification", "ElectraConfig", embedding_size=64, **_SMALL, **_WORDS),
     _text),
    ("DeBERTa", _hub("DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True,
                     pos_att_type=["c2p", "p2c"], **_SMALL, **_WORDS), _text),
    ("GPT-2", _hub("GPT2LMHeadModel", "GPT2Config", n_embd=128, n_layer=2, n_head=4, use_cache=False, **_WORDS), _text),
    ("Llama", _hub("LlamaForCausalLM", "LlamaConfig", **_CAUSAL), _text),
    ("Qwen2", _hub("Qwen2ForCausalLM", "Qwen2Config", **_CAUSAL), _text),
    ("T5", _hub("T5ForConditionalGeneration", "T5Config", decoder_start_token_id=0, **_T5), _two_texts),
    ("T5 encoder", _hub("T5EncoderModel", "T5Config", **_T5), _text),
    ("Whisper encoder", lambda: _whisper(), lambda batch: (random(batch, 16, 64),)),
    ("CLIP text", _hub("CLIPTextModelWithProjection", "CLIPTextConfig", projection_dim=64, bos_token_id=1,
                       eos_token_id=199, max_position_embeddings=32, **_SMALL, **_WORDS), _text),
    ("ViT", _hub("ViTForImageClassification", "ViTConfig", image_size=48, patch_size=8, num_labels=10, **_SMALL),
     lambda batch: {"pixel_values": random(batch, 3, 48, 48)}),
)  # fmt: skip


def _whisper() -> nn.Module:
    make = _hub("WhisperModel", "WhisperConfig", d_model=128, encoder_layers=2, decoder_layers=1,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=512, num_mel_bins=16,
                max_source_positions=32, decoder_start_token_id=1, **_WORDS)  # fmt: skip
    return make().get_submodule("encoder")


HUB = tuple(Exportable(name, "transformers", make, inputs) for name, make, inputs in _HUB)


# Networks of timm, torch_geometric and diffusers


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


_TIMM: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet18", 64, {}),
    ("mobilenetv3_small_100", 64, {}),
    ("efficientnet_lite0", 64, {}),
    ("convnext_atto", 64, {}),
    ("regnetx_002", 64, {}),
    ("densenet121", 64, {"block_config": (3, 6, 6, 3)}),
    ("deit_tiny_patch16_224", 64, {"img_size": 64, "depth": 4}),
    ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4, "embed_dim": 48, "depths": (2, 2, 2)}),
    ("mobilevit_xxs", 64, {}),
    ("levit_128s", 64, {"img_size": 64}),
)


def _graph_network(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torch_geometric.nn import models

        return getattr(models, name)(32, 128, 2, 10)

    return make


def _graph(batch: int) -> Inputs:
    """A random graph of 30 nodes an example."""
    return random(30 * batch, 32), integers(30 * batch, 2, 110 * batch)


_GRAPH = {"x": {0: "nodes"}, "edge_index": {1: "edges"}}


def _denoiser() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=16,
    )  # fmt: skip


VISION = tuple(Exportable(name, "timm", _timm(name, **options), _image(side)) for name, side, options in _TIMM)
OTHERS = (
    *(
        Exportable(name, "torch_geometric", _graph_network(name), _graph, _GRAPH)
        for name in ("GCN", "GraphSAGE", "GAT")
    ),
    Exportable(
        "UNet2DModel",
        "diffusers",
        _denoiser,
        lambda batch: (random(batch, 3, 16, 16), integers(1000, batch)),
    ),
)
NETWORKS = (*PLAIN, *HUB, *VISION, *OTHERS)
