"""Extra state of modules (`get_extra_state`) that is not a tensor."""

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.backends import Particle, Sequential, Ticket, TrainRequest, Vmapped
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import RunningMean, Seed, Training
from swamp.training.average import copied, interpolate, mean
from swamp.training.module_extra_state import as_tensors, load_state

SEEDS = [(index, Seed(0).at("particle", index)) for index in range(2)]
TWO_EPOCHS = Training(epochs=2, batch_size=6, swa=False, swa_fraction=0.0)


class Keeping(nn.Module):
    """Keeps any object as extra state; `counts` counts its training batches there."""

    def __init__(self, kept: Any, *, counts: bool = False) -> None:
        super().__init__()
        self.layer, self.kept, self.counts = nn.Linear(4, 3).double(), kept, counts

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state

    def forward(self, inputs: Tensor) -> Tensor:
        if self.counts and self.training:
            self.kept = {"batches": self.kept["batches"] + 1}
        return self.layer(inputs)


def through(model: Keeping) -> Any:
    """The extra state after a copy of the state dict was loaded."""
    other = Keeping(None)
    load_state(other, copied(model.state_dict()))
    return other.kept


@pytest.mark.parametrize(
    "kept",
    [None, 3, 0.1, float("inf"), "text", True, [1, [2]], (1, (2, "a")), {"a": {1: 2.5}}, {(1, 2): None}, b"\0\xff"],
    ids=repr,
)
def test_plain_values_come_back_with_their_types(kept: Any):
    found = through(Keeping(kept))
    assert found == kept
    assert repr(found) == repr(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.complex64, torch.bool])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)])
def test_tensors_inside_come_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = (torch.randn(shape) * 5).to(dtype)
    found = through(Keeping(OrderedDict(history=[tensor])))
    assert isinstance(found, OrderedDict)
    assert found["history"][0].dtype == dtype
    assert torch.equal(found["history"][0], tensor)


def test_a_tensor_as_extra_state_stays_a_tensor():
    assert torch.equal(through(Keeping(torch.arange(3, dtype=torch.uint8))), torch.arange(3, dtype=torch.uint8))


def test_state_that_json_cannot_keep_is_refused_by_name():
    class Odd:
        pass

    with pytest.raises(SwampError, match="'_extra_state' contains a Odd, which a run directory cannot store"):
        Ticket(Keeping({"a": [Odd()]}).state_dict(), 0)


def test_averages_take_the_first_particles_state_and_running_means_the_latest():
    states = [Keeping({"batches": count}).state_dict() for count in (1, 20, 300)]
    other = Keeping(None)
    load_state(other, mean(states))
    assert other.kept == {"batches": 1}
    running = RunningMean()
    for state in states:
        running.add(state)
    load_state(other, running.mean())
    assert other.kept == {"batches": 300}
    load_state(other, interpolate(*map(as_tensors, states[:2]), 0.7))
    assert other.kept == {"batches": 1}


def test_a_trained_particle_and_its_file_have_the_state_of_its_end(small_task, tmp_path):
    model = Keeping({"batches": 0}, counts=True)
    for kept in (Sequential, Vmapped):
        with pytest.warns(UserWarning, match="extra state") if kept is Vmapped else nullcontext():
            ticket = Ticket(model.state_dict(), 0)
            particles = kept(model, small_task).train(TrainRequest(ticket, Mask.ones(model), TWO_EPOCHS, SEEDS))
        particles[1].save(tmp_path / "one.safetensors")
        other = Keeping(None)
        load_state(other, Particle.load(tmp_path / "one.safetensors").weights)
        assert other.kept == {"batches": 6}
        assert model.kept == {"batches": 0}


def test_state_that_training_does_not_change_is_trained_as_a_stack(small_task, recwarn):
    model = Keeping({"classes": ["a", "b"]})
    backend = Vmapped(model, small_task, compiled=False)
    particles = backend.train(TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), TWO_EPOCHS, SEEDS))
    assert not recwarn.list
    other = Keeping(None)
    load_state(other, particles[0].weights)
    assert other.kept == {"classes": ["a", "b"]}


def test_a_model_that_counts_its_steps_is_not_trained_as_a_stack(small_task):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.steps = nn.Linear(4, 3).double(), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.steps += self.training
            return self.layer(inputs) * (1 + self.steps)

    reason = Vmapped(Counting(), small_task, compiled=False).step(TWO_EPOCHS)
    assert reason == "training changes extra state or attributes of its modules, of which a stack has one set for all."
