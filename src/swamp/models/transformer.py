"""Small transformers over tokens: an encoder that classifies (as BERT) and a decoder that goes on writing (as GPT)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DROPOUT = 0.1


class Attention(nn.Module):
    """Attention of `num_heads` heads, each with rows of its own in query, key and value (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, alive: Tensor | None) -> Tensor:
        """(batch, length, width) -> the same; alive (batch, 1, 1, length) bool: what is no padding."""
        query, key, value = (
            layer(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = _DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, alive, dropout, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers with GELU, each after a LayerNorm and added to what came in (as GPT-2 has it)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, states: Tensor, alive: Tensor | None) -> Tensor:
        """(batch, length, width) -> the same."""
        states = states + self.dropout(self.attention(self.norm1(states), alive))
        return states + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(states)))))


class Trunk(nn.Module):
    """Token and position embeddings, then the blocks: what is pruned of a transformer are the blocks' weights."""

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
                nn.init.normal_(module.weight, std=0.02)  # as GPT-2 and BERT are drawn
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, length) token ids -> (batch, length, width)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.dropout(self.tokens(input_ids) + self.positions(places))
        alive = None if attention_mask is None else attention_mask.bool()[:, None, None]
        for block in self.blocks:
            states = block(states, alive)
        return self.norm(states)


class Encoder(nn.Module):
    """BERT-like: looks both ways; the mean over tokens goes to a linear head (batch, classes)."""

    base_model_prefix = "encoder"
    """Where the network without its head is, by the name that Hugging Face gives it."""

    def __init__(self, vocabulary: int, length: int, classes: int, layers: int, width: int) -> None:
        super().__init__()
        self.encoder = Trunk(vocabulary, length, layers, width, causal=False)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length) token ids, and 1 where there is one -> (batch, classes)."""
        alive = attention_mask.unsqueeze(-1)
        states = self.encoder(input_ids, attention_mask) * alive
        return self.head(states.sum(1) / alive.sum(1))


class Decoder(nn.Module):
    """GPT-like: each token sees those before it; the output layer's weight is the token embedding's, tied."""

    base_model_prefix = "decoder"
    """Where the network without its head is, by the name that Hugging Face gives it."""

    def __init__(self, vocabulary: int, length: int, layers: int, width: int) -> None:
        super().__init__()
        self.decoder = Trunk(vocabulary, length, layers, width, causal=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.decoder.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) token ids -> (batch, length, vocabulary) logits of the next one."""
        return self.head(self.decoder(input_ids))
