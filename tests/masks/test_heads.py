"""Density of attention heads, against masks whose heads can be counted by eye."""

import pytest
import torch
from torch import nn

from swamp.masks import Mask
from swamp.masks.heads import head_densities
from swamp.models.transformer import Attention


class Wrapped(nn.Module):
    """An attention module that is no root, so that it has a name."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention


def test_heads_are_rows_of_query_key_and_value():
    model = Wrapped(Attention(4, 2, causal=False))
    active = {name: torch.ones(4, 4, dtype=torch.bool) for name in ("query", "key", "value", "output")}
    active["query"][0] = False  # 4 of the 24 weights of the first head
    active["value"][2:] = False  # 8 of those of the second
    active["output"][:] = False  # no head's own
    mask = Mask({f"attention.{name}.weight": tensor for name, tensor in active.items()})
    (densities,) = head_densities(model, mask).values()
    assert densities == pytest.approx([20 / 24, 16 / 24])


def test_heads_of_torch_attention_lie_one_above_the_other():
    model = Wrapped(nn.MultiheadAttention(4, 2))
    active = torch.ones(12, 4, dtype=torch.bool)
    active[4:6] = False  # the first head's keys
    assert head_densities(model, Mask({"attention.in_proj_weight": active})) == {
        "attention": pytest.approx([16 / 24, 1.0])
    }


class Fused(nn.Module):
    """Query, key and value of width 4 in one layer, as in nanoGPT and GPT-2."""

    num_heads = 2

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.c_attn = nn.Module()
        self.c_attn.weight = nn.Parameter(weight)


@pytest.mark.parametrize("layout", ["Linear", "Conv1D of GPT-2", "Conv1d"])
def test_the_outputs_of_a_fused_layer_are_its_rows_or_those_of_gpt_2_its_columns(layout):
    active = torch.ones(12, 4, dtype=torch.bool)
    active[:2] = False  # the first head's queries
    shaped = {"Linear": active, "Conv1D of GPT-2": active.t(), "Conv1d": active[..., None]}[layout]
    found = head_densities(Fused(shaped.float()), Mask({"c_attn.weight": shaped}))
    assert found == {"": pytest.approx([16 / 24, 1.0])}


@pytest.mark.parametrize("shape", [(8, 4), (12,), (4, 8, 3)])
def test_a_fused_layer_of_other_sizes_is_left_out(shape):
    active = torch.ones(shape, dtype=torch.bool)
    assert head_densities(Fused(active.float()), Mask({"c_attn.weight": active})) == {}


def test_what_has_no_heads_is_left_out():
    model = nn.Sequential(nn.Linear(4, 4))
    assert head_densities(model, Mask.ones(model)) == {}
    assert head_densities(Wrapped(nn.MultiheadAttention(4, 2)), Mask({})) == {}
