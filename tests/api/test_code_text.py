"""The text of a function is equal for equal code and settings, in any process, and differs otherwise."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp.api.code_text import function_text, module_text

PROGRAM = """
import sys
sys.path.insert(0, ".")
from tests.api import test_code_text as made
print(*[made.function_text(one) for one in made.made()], sep="\\n")
"""


def plain(outputs, targets):
    """Some text."""
    return F.mse_loss(outputs, targets) if type(targets).__name__ in {"Tensor", "Parameter", "Buffer"} else 1


def other_text(outputs, targets):
    """Another text."""
    return F.mse_loss(outputs, targets) if type(targets).__name__ in {"Tensor", "Parameter", "Buffer"} else 1


def holding(value):
    return lambda outputs, targets: value and F.mse_loss(outputs, targets)


def called(function, *defaults):
    return lambda outputs, targets, kept=defaults: function(outputs, targets)


class Focal(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets) * self.gamma


@dataclass
class Scaled:
    scale: float

    def __call__(self, outputs, targets):
        return self.scale * outputs.sum()


class Negated(Scaled):
    def __call__(self, outputs, targets):
        return -self.scale * outputs.sum()


def made():
    """Functions and objects, each other than the rest."""
    return [
        plain,
        F.mse_loss,
        F.cross_entropy,
        torch.relu,
        holding(1.0),
        holding(2.0),
        holding(torch.ones(3)),
        holding(torch.zeros(3)),
        holding(torch.ones(20_000)),
        holding(object()),
        called(F.l1_loss),
        called(plain),
        called(plain, 1),
        called(holding(1)),
        called(holding(2)),
        functools.partial(plain, targets=1),
        functools.partial(plain, targets=2),
        Focal(),
        Focal(3.0),
        Scaled(1.0),
        Scaled(2.0),
        Negated(1.0),
        Scaled(1.0).__call__,
        Scaled(2.0).__call__,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(weight=torch.arange(3.0)),
    ]


def test_equal_functions_have_equal_texts_and_others_do_not():
    texts = [function_text(one) for one in made()]
    assert texts == [function_text(one) for one in made()]
    assert len(set(texts)) == len(texts)


@pytest.mark.slow
def test_the_texts_are_those_of_another_process():
    env = os.environ | {"PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=True)
    assert ran.stdout.splitlines() == [function_text(one) for one in made()]


def test_docstrings_do_not_count():
    texts = [function_text(one).split() for one in (plain, other_text)]
    other_text.__qualname__ = "plain"
    assert function_text(other_text) == function_text(plain) != texts[1]


def test_a_function_that_calls_itself():
    def again(n):
        return again(n - 1) if n else 0

    assert function_text(again) == function_text(again)


class Net(nn.Module):
    def __init__(self, activation, mode: str = "a") -> None:
        super().__init__()
        self.activation, self.mode = activation, mode
        self.calls = object()

    def extra_repr(self) -> str:
        return f"activation={self.activation}"  # has an address


def test_the_text_of_a_module_has_its_settings_without_addresses_and_modes():
    assert module_text(Net(plain)) == module_text(Net(plain).eval())
    assert "0x" not in module_text(Net(plain))
    assert module_text(Net(plain)) != module_text(Net(F.relu))
    assert module_text(Net(plain)) != module_text(Net(plain, "b"))
    one, two = (nn.TransformerEncoderLayer(4, 1, activation=how) for how in ("relu", "gelu"))
    assert module_text(one) != module_text(two)
    assert module_text(nn.Dropout(0.5)).startswith("Dropout(p=0.5, inplace=False) ")
