from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.backends import Sequential, Ticket, TrainRequest
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training

TRAINING = Training(epochs=2, batch_size=6, lr=0.05, swa_fraction=0.5)
SEEDS = [(index, Seed(0).at("particle", index)) for index in range(3)]


class Counting(nn.Module):
    """Remembers, outside its state dict, how often it ran; and lets the outputs depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)
        self.register_buffer("runs", torch.zeros(()), persistent=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.runs: Any = self.runs + 1
        return self.linear(x.flatten(1)) * (1 + self.runs)


def test_what_a_model_remembers_outside_its_state_stays_with_its_particle(image_task, same):
    model = Counting()
    ticket, backend = Ticket(model.state_dict(), 0), Sequential(model, image_task)
    forward = backend.train(TrainRequest(ticket, Mask.ones(model), TRAINING, SEEDS))
    backward = backend.train(TrainRequest(ticket, Mask.ones(model), TRAINING, SEEDS[::-1]))
    assert all(same(a.weights, b.weights) for a, b in zip(forward, backward[::-1], strict=True))
    assert float(model.runs) == 0
    model.runs += 5
    later = backend.train(TrainRequest(ticket, Mask.ones(model), TRAINING, SEEDS))
    assert all(same(a.weights, b.weights) for a, b in zip(forward, later, strict=True))


@pytest.mark.parametrize("fresh", [False, True])
def test_running_statistics_start_at_the_tickets_or_are_reset(fresh: bool, image_task):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    state = model.state_dict()
    state["1.num_batches_tracked"] += 100
    training = replace(TRAINING, swa=False, reset_batchnorm=fresh)
    (particle,) = Sequential(model, image_task).train(
        TrainRequest(Ticket(state, 0), Mask.ones(model), training, SEEDS[:1])
    )
    assert int(particle.weights["1.num_batches_tracked"]) == (6 if fresh else 106)


def test_tied_weights_are_trained_on_one_mask(image_task):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
            self.again.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.again(torch.tanh(self.first(x.flatten(1))))))

    model = Tied().double()
    mask = Mask({"first.weight": torch.eye(16).bool()})
    (particle,) = Sequential(model, image_task).train(
        TrainRequest(Ticket(model.state_dict(), 0), mask, TRAINING, SEEDS[:1])
    )
    for name in ("first.weight", "again.weight"):
        assert particle.weights[name][~mask["first.weight"]].count_nonzero() == 0
        assert particle.weights[name].count_nonzero() == 16


def test_training_a_particle_takes_time_and_says_so(image_task, mlp):
    (particle,) = Sequential(mlp, image_task).train(
        TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS[:1])
    )
    assert particle.seconds > 0


def test_data_is_taken_to_the_device_of_the_model():
    data = TensorData(torch.zeros(4, 2), torch.zeros(4))
    backend = Sequential(nn.Linear(2, 2, device="meta"), Task(data, data))
    train: Any = backend.task.train
    assert train.inputs.device.type == "meta"
