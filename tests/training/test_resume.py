import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.average import copied
from swamp.training.data import DatasetData
from swamp.training.loop import Fit, fit
from swamp.training.snapshot import Snapshot, load_optimizer, optimizer_tensors

SEED = Seed(4).at("cycle", 2, "particle", 1)
TRAINING = Training(epochs=4, batch_size=6, lr=0.05, warmup=0.5, swa_fraction=0.5)


class Remembering(torch.optim.Optimizer):
    """Keeps what it knows as Python numbers, in the state and in the group, as some published optimizers do."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1, "size": 1.0, "taken": 0, "begun": False, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        group["size"] *= 1.1
        group["taken"] += 1
        group["begun"] = True
        for parameter in group["params"]:
            state = self.state[parameter]
            state["trust"] = state.get("trust", 0.3) / 1.7 + 0.1
            state["count"] = state.get("count", 0) + 1
            state["nothing"] = None
            assert isinstance(state["trust"], float)
            assert isinstance(state["count"], int)
            assert group["begun"] is True
            parameter.sub_(parameter.grad, alpha=group["lr"] * group["size"] * state["trust"] / group["taken"])


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Examples with a random transform of every kind."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(4, dtype=torch.float64) + np.random.rand() + random.random()
        return self.data.inputs[index] + noise, self.data.targets[index]


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({}, None),
    "sgd without averaging": ({"swa": False}, None),
    "adamw": ({"optimizer": "adamw", "lr": 0.01}, None),
    "moving average": ({"swa": False, "ema": 0.4}, None),
    "latest weights": ({"swa": False, "lawa": 3}, None),
    "sam": ({"sam": 0.1, "clip": 1.0}, None),
    "asam": ({"sam": 0.5, "sharpness": "asam"}, None),
    "s2-sam": ({"sam": 0.1, "sharpness": "s2-sam", "clip": 1.0}, None),
    "NAdam": ({"optimizer": "NAdam", "lr": 0.01}, None),
    "RMSprop": ({"optimizer": "RMSprop", "lr": 0.01}, None),
    "numbers": ({}, Remembering),
}


def mask_of(model: nn.Module) -> Mask:
    return Mask({name: torch.arange(p.numel()).view(p.shape) % 3 != 0 for name, p in Mask.ones(model).items()})


def assert_resumes_everywhere(task: Task, training: Training, build: Any, optimizer: Any, same: Any) -> None:
    snapshots: list[Snapshot] = []
    mask = mask_of(build())

    def trained(model: nn.Module, **others: Any) -> Fit:
        return fit(model, task, training, SEED, mask=mask, optimizer=optimizer, **others)

    first = build()
    whole = trained(first, on_step=lambda step, total, snapshot: snapshots.append(snapshot()))
    assert [s.step for s in snapshots] == list(range(1, 13))
    for snapshot in snapshots:
        kept = copied({**snapshot.weights, **{f"mean/{k}": v for k, v in snapshot.mean.items()}})
        torch.rand(3)
        model = build(seed=99)
        resumed = trained(model, resume=snapshot)
        assert same(resumed.weights, whole.weights)
        assert same(model.state_dict(), first.state_dict())
        assert resumed.losses == whole.losses
        samples = 2 if training.swa else 12 if training.ema else training.lawa
        assert (resumed.averaged, resumed.steps) == (whole.averaged, whole.steps) == (samples, 12)
        assert same(kept, {**snapshot.weights, **{f"mean/{k}": v for k, v in snapshot.mean.items()}})


@pytest.mark.parametrize("name", CASES)
def test_a_training_resumed_at_any_step_equals_one_never_interrupted(name: str, small_task, small_net, same):
    options, optimizer = CASES[name]

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

    task = replace(small_task, train=replace(small_task.train, augment=augment))
    training = replace(TRAINING, **options)
    assert_resumes_everywhere(task, training, lambda seed=0: small_net(rich=True, seed=seed), optimizer, same)


def test_random_transforms_of_a_dataset_resume_too(small_task, small_net, same):
    task = replace(small_task, train=DatasetData(Noisy(small_task.train)))
    assert_resumes_everywhere(task, TRAINING, lambda seed=0: small_net(rich=True, seed=seed), None, same)


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_augmentation_that_draws_from_the_global_generators_resumes_too(in_memory, small_task, small_net, same):
    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, dtype=inputs.dtype) + np.random.rand()

    examples = small_task.train
    data = examples if in_memory else DatasetData(TensorDataset(examples.inputs, examples.targets))
    task, before = replace(small_task, train=replace(data, augment=augment)), torch.get_rng_state()
    next(task.train.shuffled(6, SEED, 0))
    assert torch.equal(before, torch.get_rng_state())
    assert_resumes_everywhere(task, TRAINING, lambda seed=0: small_net(rich=True, seed=seed), None, same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_weights_resume_with_their_own_types(dtype: torch.dtype, small_task, small_net, same):
    data = replace(small_task.train, inputs=small_task.train.inputs.to(dtype))
    task = replace(small_task, train=data)
    assert_resumes_everywhere(task, TRAINING, lambda seed=0: small_net(seed=seed).to(dtype), None, same)


class Wide(torch.optim.Optimizer):
    """Keeps float32 momentum of bfloat16 weights."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            sums = self.state[parameter].setdefault("sums", torch.zeros_like(parameter, dtype=torch.float32))
            sums.mul_(0.9).add_(parameter.grad)
            parameter.sub_(sums.to(parameter.dtype), alpha=self.param_groups[0]["lr"])


def test_state_wider_than_the_weights_comes_back_bit_for_bit(small_task, small_net, same):
    task = replace(small_task, train=replace(small_task.train, inputs=small_task.train.inputs.bfloat16()))
    assert_resumes_everywhere(task, TRAINING, lambda seed=0: small_net(seed=seed).bfloat16(), Wide, same)


def test_a_resume_of_a_finished_training_takes_no_step(small_task, small_net, same):
    last: list[Snapshot] = []
    whole = fit(small_net(), small_task, TRAINING, SEED, on_step=lambda step, total, snapshot: last.append(snapshot()))
    again = fit(small_net(), small_task, TRAINING, SEED, resume=last[-1], on_step=lambda *_: pytest.fail("a step"))
    assert same(whole.weights, again.weights)
    assert whole.losses == again.losses


def test_the_state_of_several_groups_and_numbers_is_flat_tensors():
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]

    def build() -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:]}], 0.1, 0.9)

    optimizer = build()
    for parameter in parameters[1:]:
        parameter.grad = torch.full((2,), 4.0)
    optimizer.step()
    flat = optimizer_tensors(optimizer)
    assert flat["1/momentum_buffer"].tolist() == [4, 4]
    assert "0/momentum_buffer" not in flat
    assert (float(flat["group0/lr#"]), float(flat["group1/lr#"]), float(flat["group1/momentum#"])) == (0.5, 0.1, 0.9)
    other = build()
    other.param_groups[0]["lr"] = 7
    load_optimizer(other, flat)
    assert other.param_groups[0]["lr"] == 0.5
    assert other.state[parameters[2]]["momentum_buffer"].tolist() == [4, 4]
    flat["2/momentum_buffer"].zero_()
    assert other.state[parameters[2]]["momentum_buffer"].tolist() == [4, 4]


def test_a_state_that_no_file_can_hold_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["kind"] = "sharp"
    with pytest.raises(SwampError, match="optimizer state '0/kind' is a str"):
        optimizer_tensors(optimizer)
