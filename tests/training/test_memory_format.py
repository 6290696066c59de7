"""Convolutions are stored in the order in which they run fastest, and what comes out is in the usual one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.loop import fit
from swamp.training.memory_format import to_fastest_memory_format, to_memory_format_of
from swamp.training.task import call_model


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def test_images_go_channels_last_on_cpu_and_anything_else_stays():
    model = network()
    data = TensorData(torch.randn(4, 3, 4, 4), torch.arange(4) % 2)
    assert to_fastest_memory_format(model, data, call_model, bfloat16=False) == torch.channels_last
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 4, 4)
    assert to_memory_format_of(model, images).is_contiguous(memory_format=torch.channels_last)
    plain = nn.Linear(3, 2)
    assert to_fastest_memory_format(plain, data, call_model, bfloat16=False) == torch.contiguous_format
    assert to_memory_format_of(plain, images) is images
    named = {"x": images}
    assert to_memory_format_of(model, named) is named


class Viewed(nn.Sequential):
    """Flattens its images by `view`, which takes contiguous ones only; in training only, where `late`."""

    def __init__(self, late: bool = False) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Linear(16, 2))
        self.late = late

    def forward(self, x):
        x = self[1](self[0](x))
        return self[2](x.reshape(-1, 16) if self.late and not self.training else x.view(-1, 16))


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_views_its_images_runs_and_stays_contiguous(late):
    model, data = Viewed(late), TensorData(torch.randn(40, 3, 4, 4), torch.arange(40) % 2)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    assert to_fastest_memory_format(model, data, call_model, bfloat16=False) == torch.contiguous_format
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_contiguous() for p in model.parameters())
    task = Task(data, data, data)
    pruned = swamp.prune(
        before,
        task,
        sparsity=0.5,
        cycles=1,
        particles=2,
        training=Training(epochs=2, batch_size=20),
        barrier_threshold=1,
    )
    pruned.mask.require_zeros(pruned.model.state_dict())
    landscape = PointEvaluator(model, task, examples=8)
    assert landscape([model.state_dict()])[0].loss > 0


def test_trained_weights_come_out_in_the_usual_order():
    data = TensorData(torch.randn(8, 3, 4, 4), torch.tensor([0, 1] * 4))
    weights = fit(network(), Task(data, data), Training(epochs=1, batch_size=4, swa_fraction=0), Seed(0)).weights
    assert all(weight.is_contiguous() for weight in weights.values())


def test_a_training_resumes_from_a_snapshot_in_the_usual_memory_format():
    # Fused kernels walk weights and momentum side by side: momentum in another order would be another weight's.
    generator = torch.Generator().manual_seed(0)
    data = TensorData(torch.randn(8, 3, 4, 4, generator=generator), torch.tensor([0, 1] * 4))
    model, task, kept = network(), Task(data, data), []
    training = Training(epochs=3, batch_size=4, swa_fraction=0, swa=False)
    begun = copy.deepcopy(model)
    whole = fit(copy.deepcopy(model), task, training, Seed(0)).weights
    fit(begun, task, training, Seed(0), last=3, on_step=lambda step, total, snapshot: kept.append(snapshot()))
    parts = {"weights": kept[-1].weights, "optimizer": kept[-1].optimizer}
    stored = replace(kept[-1], **{k: {n: t.contiguous() for n, t in part.items()} for k, part in parts.items()})
    found = fit(copy.deepcopy(model), task, training, Seed(0), resume=stored).weights
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())
