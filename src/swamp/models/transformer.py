"""Small transformers over tokens: an encoder for classification (as BERT) and a language model (as GPT)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Tokens:
    """Properties of the tokens that a network needs."""

    vocabulary: int
    """Number of different tokens."""
    padding: int
    """The padding token."""
    next: bool = False
    """Whether the task is to predict the next token."""
    tokenizer: str = "bytes"
    """Name of the tokenizer."""


_DROPOUT = 0.1


class Attention(nn.Module):
    """Multi-head attention; each head has its own rows in query, key and value (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, valid: Tensor | None) -> Tensor:
        """(batch, length, width) -> the same; valid (batch, 1, 1, length) bool: False for padding."""
        query, key, value = (
            layer(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = _DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, valid, dropout, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers with GELU, each after a LayerNorm, with residual connections (as GPT-2)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, states: Tensor, valid: Tensor | None) -> Tensor:
        """(batch, length, width) -> the same."""
        states = states + self.dropout(self.attention(self.norm1(states), valid))
        return states + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(states)))))


class TransformerBlocks(nn.Module):
    """Token and position embeddings, then the blocks. The weights of the blocks are prunable."""

    def __init__(self, vocabulary: int, length: int, layers: int, width: int, *, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(_DROPOUT)
        heads = max(1, width // 32)
        self.blocks = nn.ModuleList(Block(width, heads, causal=causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)  # as GPT-2 and BERT
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, length) token ids -> (batch, length, width)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.dropout(self.tokens(input_ids) + self.positions(places))
        valid = None if attention_mask is None else attention_mask.bool()[:, None, None]
        for block in self.blocks:
            states = block(states, valid)
        return self.norm(states)


class Encoder(nn.Module):
    """BERT-like: bidirectional attention, then a linear head on the mean over tokens."""

    base_model_prefix = "encoder"
    """Attribute of the network without its head, as in Hugging Face."""

    def __init__(self, vocabulary: int, length: int, classes: int, layers: int, width: int) -> None:
        super().__init__()
        self.encoder = TransformerBlocks(vocabulary, length, layers, width, causal=False)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length) token ids, and a mask with 0 for padding -> (batch, classes)."""
        valid = attention_mask.unsqueeze(-1)
        states = self.encoder(input_ids, attention_mask) * valid
        return self.head(states.sum(1) / valid.sum(1))


class Decoder(nn.Module):
    """GPT-like: causal attention; the output layer is tied to the token embedding."""

    base_model_prefix = "decoder"
    """Attribute of the network without its head, as in Hugging Face."""

    def __init__(self, vocabulary: int, length: int, layers: int, width: int) -> None:
        super().__init__()
        self.decoder = TransformerBlocks(vocabulary, length, layers, width, causal=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.decoder.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) token ids -> (batch, length, vocabulary) logits of the next token."""
        return self.head(self.decoder(input_ids))
