"""One call that prunes any module."""

import pytest
import torch
from torch import nn

import swamp
from swamp.files import load_tensors

TRAINING = swamp.Training(epochs=2, batch_size=16, swa_fraction=0.5)


class Odd(nn.Module):
    """A module of nobody's making: a tied weight, a bare parameter, a buffer, and an output object with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.again = self.first
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("offset", torch.zeros(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.relu(self.again(torch.relu(self.first(x))) * self.scale + self.offset)
        return type("Output", (), {"logits": self.head(hidden)})()


def test_any_module_is_pruned_and_the_file_loads_into_a_plain_one(task, tmp_path):
    torch.manual_seed(0)
    result = swamp.prune(
        Odd(), task, sparsity=0.5, particles=2, training=TRAINING, barrier_threshold=1, exclude=("head.*",)
    )
    assert result.sparsity == pytest.approx(0.5)
    assert result.mask.prunable == 36
    assert len(result.cycles) == 5
    result.save(tmp_path / "sparse.safetensors")
    plain = Odd()
    plain.load_state_dict(load_tensors(tmp_path / "sparse.safetensors")[0])
    assert swamp.Mask.from_zeros(plain, swamp.Scope(exclude=("head.*",))).nnz <= 18


def test_a_model_that_lost_its_zeros_is_not_saved(mlp, task, tmp_path):
    result = swamp.prune(mlp, task, sparsity=0.5, particles=(2, 1), training=TRAINING, barrier_threshold=1)
    with torch.no_grad():
        result.model[0].weight.add_(1)
    with pytest.raises(swamp.MaskError, match=r"pruned weights of '0.weight' are not zero"):
        result.save(tmp_path / "sparse.safetensors")
    assert not (tmp_path / "sparse.safetensors").exists()
