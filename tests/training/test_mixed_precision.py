"""Forward passes in bfloat16: the dtype of each operation."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from swamp.training import Seed, Task, Training
from swamp.training.loop import fit
from swamp.training.mixed_precision import Autocast


class Seen(TorchDispatchMode):
    """The dtypes in which attention and products were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.attention: list[torch.dtype] = []
        self.products: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "scaled_dot_product" in name and "backward" not in name:
            self.attention.append(args[0].dtype)
        if "aten.addmm" in name:
            self.products.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)[:, 0]


class Own(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.body(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask)[:, 0, 0]


@pytest.mark.parametrize("model", [Layer, Own])
@pytest.mark.parametrize(("tokens", "wanted"), [(8, torch.float32), (300, torch.bfloat16)])
def test_attention_over_few_tokens_is_computed_in_float32(model, tokens, wanted):
    network, inputs = model(), torch.randn(3, tokens, 16)
    autocast = Autocast(torch.device("cpu"))
    for _ in range(2):
        with Seen() as seen, autocast():
            outputs = network(inputs)
        assert seen.attention == [wanted]
        assert set(seen.products) == {torch.bfloat16}
    assert outputs.dtype in (torch.bfloat16, torch.float32)
    assert torch.allclose(outputs.float(), network(inputs), atol=0.1)


def test_networks_without_attention_skip_the_mode_after_the_first_pass():
    autocast = Autocast(torch.device("cpu"))
    for intercepted in (True, False):
        with autocast():
            F.linear(torch.randn(2, 4), torch.randn(3, 4))
            assert (torch.overrides._get_current_function_mode() is not None) == intercepted


def test_a_training_in_bfloat16_uses_it():
    data = (torch.randn(8, 5, 16), torch.randint(0, 16, (8,)))
    task = Task.of(data, data)
    with Seen() as seen:
        run = partial(fit, Layer(), task, seed=Seed(0))
        run(training=Training(epochs=2, batch_size=4, precision="bfloat16"))
    assert seen.attention == [torch.float32] * 4
    assert set(seen.products) == {torch.bfloat16}
