"""Convolutions are stored in the order in which they run fastest, and what comes out is in the usual one."""

import copy
from dataclasses import replace

import torch
from torch import nn

from swamp.training import Seed, Task, TensorData, Training
from swamp.training.loop import fit
from swamp.training.memory_format import to_fastest_memory_format, to_memory_format_of


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def test_images_go_channels_last_on_cpu_and_anything_else_stays():
    model = network()
    assert to_fastest_memory_format(model, bfloat16=False) == torch.channels_last
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 4, 4)
    assert to_memory_format_of(model, images).is_contiguous(memory_format=torch.channels_last)
    plain = nn.Linear(3, 2)
    assert to_fastest_memory_format(plain, bfloat16=False) == torch.contiguous_format
    assert to_memory_format_of(plain, images) is images
    named = {"x": images}
    assert to_memory_format_of(model, named) is named


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
