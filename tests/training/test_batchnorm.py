import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.training import TensorData, with_reestimated_batchnorm
from swamp.training.batchnorm import batchnorm_layers, frozen_statistics, reset_statistics
from swamp.training.data import DatasetData, mixed_batches, sampled
from swamp.training.sources import as_data

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(11, 3, generator=GENERATOR, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 4
DATA = TensorData(INPUTS, torch.zeros(11))
MIXED = torch.cat([inputs for inputs, _ in mixed_batches(DATA, 11)])
"""All inputs in the order in which statistics are estimated."""


class Net(nn.Module):
    """Dropout before the normalisation: the statistics show whether it was off."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm, self.head = nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(x)))


def by_hand(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    means = torch.stack([batch.sum(0) / len(batch) for batch in batches])
    variances = torch.stack([((batch - batch.mean(0)) ** 2).sum(0) / (len(batch) - 1) for batch in batches])
    return means.sum(0) / len(batches), variances.sum(0) / len(batches)


def assert_statistics(norm: nn.BatchNorm1d, batches: list[Tensor]) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = by_hand(batches)
    assert torch.allclose(norm.running_mean, mean, rtol=1e-13, atol=0)
    assert torch.allclose(norm.running_var, variance, rtol=1e-13, atol=0)
    assert norm.num_batches_tracked == len(batches)


def test_statistics_are_the_equal_weight_mean_over_whole_batches():
    stale = Net().train()
    stale(100 + INPUTS)
    fresh: Any = with_reestimated_batchnorm(stale, DATA, batch_size=4)
    # 11 examples: two batches of four, and three examples left out.
    assert_statistics(fresh.norm, [MIXED[:4], MIXED[4:8]])


def test_the_number_of_examples_is_limited():
    fresh: Any = with_reestimated_batchnorm(Net(), DATA, batch_size=2, examples=6)
    assert_statistics(fresh.norm, [MIXED[0:2], MIXED[2:4], MIXED[4:6]])
    assert sorted(MIXED[:6, 0].tolist()) == sorted(sampled(DATA, 6).inputs[:, 0].tolist())


@pytest.mark.parametrize("stored", ["tensors", "a dataset"])
def test_data_sorted_by_class_give_the_statistics_of_shuffled_data(stored: str):
    # Class means at 0, 10 and 20: within a class the variance is 1, over all of them it is 68.
    labels = torch.arange(600) // 200
    inputs = 10 * labels[:, None] + torch.randn(600, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = torch.utils.data.TensorDataset(inputs, labels)
    data = TensorData(inputs, labels) if stored == "tensors" else DatasetData(pairs)
    fresh: Any = with_reestimated_batchnorm(Net(), data, batch_size=50)
    assert torch.allclose(fresh.norm.running_var, inputs.var(0), rtol=0.05)


@pytest.mark.parametrize("sizes", [(4, 2, 4), (5, 4, 2), (2, 5, 4), (4, 4, 3)])
def test_batches_of_different_sizes_count_by_their_examples_without_an_incomplete_last_one(sizes: tuple[int, ...]):
    parts = INPUTS[: sum(sizes)].split(sizes)
    fresh: Any = with_reestimated_batchnorm(Net(), as_data([(part, torch.zeros(len(part))) for part in parts]))
    kept = [part for number, part in enumerate(parts) if number < 2 or len(part) >= sizes[0]]
    assert torch.allclose(fresh.norm.running_mean, torch.cat(kept).mean(0), rtol=1e-13, atol=0)
    variance = sum(len(part) * part.var(0) for part in kept) / sum(map(len, kept))
    assert torch.allclose(fresh.norm.running_var, variance, rtol=1e-13, atol=0)


def test_a_layer_that_is_called_twice_has_the_mean_of_its_calls():
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x) + self.norm(2 * x))

    parts = INPUTS[:9].split([5, 4])
    batches = [(part, torch.zeros(len(part))) for part in (*parts, parts[0])]
    fresh: Any = with_reestimated_batchnorm(Twice(), as_data(batches))
    assert torch.allclose(fresh.norm.running_mean, 1.5 * torch.cat([*parts, parts[0]]).mean(0), rtol=1e-13, atol=0)


def test_data_is_not_augmented():
    noisy = TensorData(INPUTS, torch.zeros(11), augment=lambda x, generator: x * 0)
    fresh: Any = with_reestimated_batchnorm(Net(), noisy, batch_size=11)
    assert_statistics(fresh.norm, [INPUTS])


def test_dict_batches_and_a_custom_forward_work():
    data = TensorData({"x": INPUTS}, torch.zeros(11))
    for forward in ({}, {"forward": lambda model, inputs: model(inputs["x"])}):
        fresh: Any = with_reestimated_batchnorm(Net(), data, batch_size=5, **forward)
        assert_statistics(fresh.norm, [MIXED[:5], MIXED[5:10]])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_unchanged_and_the_copy_has_its_modes_and_momentum(training: bool, same, generators):
    model = Net().train(training)
    model.drop.train(not training)
    before, state = generators(), copy.deepcopy(model.state_dict())
    fresh: Any = with_reestimated_batchnorm(model, DATA, batch_size=4)
    assert same(model.state_dict(), state)
    assert generators() == before
    assert (fresh.training, fresh.norm.training, fresh.drop.training) == (training, training, not training)
    assert fresh.norm.momentum == model.norm.momentum == 0.3
    assert torch.equal(fresh.head.weight, model.head.weight)


def test_a_model_without_running_statistics_is_returned_unchanged():
    for model in (nn.Linear(3, 2), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)):
        assert with_reestimated_batchnorm(model, DATA) is model
        assert batchnorm_layers(model) == []


def test_reset_statistics_are_those_of_a_new_layer(same):
    model: Any = with_reestimated_batchnorm(Net(), DATA)
    reset_statistics(model)
    assert same(dict(model.norm.named_buffers()), dict(nn.BatchNorm1d(3).double().named_buffers()))


def test_frozen_statistics_do_not_change_and_batches_are_normalised_as_before():
    model = Net().train()
    buffers = [model.norm.running_mean, model.norm.running_var, model.norm.num_batches_tracked]
    values = [buffer.clone() for buffer in buffers]
    usual = copy.deepcopy(model.norm)(INPUTS)
    with frozen_statistics(model):
        assert torch.equal(model.norm(INPUTS), usual)
    after = [model.norm.running_mean, model.norm.running_var, model.norm.num_batches_tracked]
    assert all(a is b for a, b in zip(buffers, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, after, strict=True))
    assert model.norm.track_running_stats


def test_a_layer_in_eval_mode_normalises_by_its_statistics_while_frozen():
    model: Any = with_reestimated_batchnorm(Net(), DATA).train()
    model.norm.eval()
    usual = model.norm(INPUTS)
    with frozen_statistics(model):
        assert torch.equal(model.norm(INPUTS), usual)


class Frozen(Net):
    """Keeps its normalisation in eval mode while it trains."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self


def without_momentum() -> nn.Module:
    model = Net()
    model.norm.momentum = 0.0
    return model


@pytest.mark.parametrize("build", [Frozen, without_momentum])
def test_statistics_that_training_does_not_change_are_left_as_they_are(build, same):
    model = build().eval()
    model.norm.running_mean.fill_(0.25)
    before = copy.deepcopy(model.state_dict())
    assert with_reestimated_batchnorm(model, DATA, batch_size=4) is model
    reset_statistics(model)
    assert same(model.state_dict(), before)
    assert not any(module.training for module in model.modules())


def test_only_the_frozen_layer_of_two_keeps_its_statistics():
    class Half(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm1d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(x))

    fresh: Any = with_reestimated_batchnorm(Half(), DATA, batch_size=11)
    assert torch.equal(fresh.norm.running_mean, torch.zeros(3))
    scale = (1 + fresh.norm.eps) ** -0.5
    assert torch.allclose(fresh.second.running_mean, INPUTS.mean(0) * scale, rtol=1e-12)


def test_instance_normalisation_with_running_statistics_is_re_estimated():
    norm = nn.InstanceNorm1d(3, track_running_stats=True, momentum=0.3).double()
    images = torch.randn(10, 3, 7, generator=GENERATOR, dtype=torch.float64) * 2 + 1
    norm.train()(images + 100)
    fresh: Any = with_reestimated_batchnorm(norm, TensorData(images, torch.zeros(10)), batch_size=4)
    first = torch.cat([inputs for inputs, _ in mixed_batches(TensorData(images, torch.zeros(10)), 4)])[:8]
    means, variances = first.mean(-1).mean(0), first.var(-1).mean(0)
    assert torch.allclose(fresh.running_mean, means, rtol=1e-13)
    assert torch.allclose(fresh.running_var, variances, rtol=1e-13)
    assert fresh.momentum == norm.momentum == 0.3
    assert not fresh._forward_pre_hooks
    usual = copy.deepcopy(norm)(images)
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(norm):
        assert torch.equal(norm(images), usual)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    plain = nn.InstanceNorm1d(3)
    assert with_reestimated_batchnorm(plain, DATA) is plain
