"""Convolutions are stored in the order in which they run fastest, and what comes out is in the usual one."""

import torch
from torch import nn

from swamp.training import Seed, Task, TensorData, Training, arrange, fit
from swamp.training.layout import arranged_for


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def test_images_go_channels_last_on_cpu_and_anything_else_stays():
    model = network()
    assert arrange(model, narrow=False) == torch.channels_last
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 4, 4)
    assert arranged_for(model, images).is_contiguous(memory_format=torch.channels_last)
    plain = nn.Linear(3, 2)
    assert arrange(plain, narrow=False) == torch.contiguous_format
    assert arranged_for(plain, images) is images
    named = {"x": images}
    assert arranged_for(model, named) is named


def test_trained_weights_come_out_in_the_usual_order():
    data = TensorData(torch.randn(8, 3, 4, 4), torch.tensor([0, 1] * 4))
    weights = fit(network(), Task(data, data), Training(epochs=1, batch_size=4, tail=0), Seed(0)).weights
    assert all(weight.is_contiguous() for weight in weights.values())
