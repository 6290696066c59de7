"""The networks of the export benchmarks, with random weights, and inputs for them."""

import itertools
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets import build_network


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network and two inputs. Weights and inputs are drawn from torch's global generator.

    Args:
        name: "linear-4096"; "resnet-18-P", images of 3 x P x P; "minilm", 128 tokens; or a name of
            `swamp.datasets.build_network`, images of 1 x 28 x 28.
    """
    if name == "linear-4096":
        return nn.Sequential(nn.Linear(4096, 4096)), torch.randn(2, 4096)
    if found := re.fullmatch(r"resnet-18-(\d+)", name):
        return ResNet18(), torch.randn(2, 3, int(found[1]), int(found[1]))
    if name == "minilm":
        return MiniLM(), torch.randint(30522, (2, 128))
    return build_network(name, (1, 28, 28), 10), torch.randn(2, 1, 28, 28)


class MiniLM(nn.Module):
    """MiniLM-L6 (6 layers, 384 features, 12 heads; Wang et al. 2020, arXiv:2002.10957) without its pooler."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, tokens) -> (N, tokens, 384)."""
        return self.bert(input_ids=tokens).last_hidden_state


class ResNet18(nn.Module):
    """ResNet-18 for ImageNet (He et al. 2016, arXiv:1512.03385), as in torchvision and timm: 11,689,512 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
        self.blocks = nn.Sequential(*(BasicBlock(before, after) for before, after in itertools.pairwise(widths)))
        self.output = nn.Linear(512, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        features = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 3, stride=2, padding=1)
        return self.output(F.adaptive_avg_pool2d(self.blocks(features), 1).flatten(1))


class BasicBlock(nn.Module):
    """conv, norm, relu, conv, norm, plus the input or its 1 x 1 convolution, relu."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if stride == 1 else projection

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride), rounded up."""
        outputs = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(outputs)) + self.shortcut(inputs))
