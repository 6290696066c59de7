"""Stacked batches of several trainings equal the batches of each single training."""

from dataclasses import replace

import pytest
import torch

from swamp.training import Seed, TensorData
from swamp.training.data import BatchList, Data
from swamp.training.stacked import gather_rows, stacked_batches

CPU = torch.device("cpu")
TENSORS = TensorData(torch.arange(22.0).view(11, 2), torch.arange(11))


def noisy(inputs, generator):
    return inputs + torch.rand(inputs.shape, generator=generator)


DATA: dict[str, Data] = {
    "tensors": TENSORS,
    "augmented": replace(TENSORS, augment=noisy, normalise=torch.neg),
    "fields": TensorData({"x": TENSORS.inputs}, TENSORS.targets),
    "batches": BatchList([*TENSORS.in_order(4)][:2]),
}


def fields_of(inputs):
    return inputs["x"] if isinstance(inputs, dict) else gather_rows(inputs)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("first", [0, 1])
def test_each_seed_has_the_batches_of_its_single_training(name, first):
    data = DATA[name]
    seeds = [Seed(root).at("cycle", 1, "particle", n) for n in range(2) for root in (3, 5)]
    stacked = [*stacked_batches(data, 4, seeds, 2, first, CPU)]
    alone = [[*data.shuffled(4, seed, 2, first)] for seed in seeds]
    assert len(stacked) == len(alone[0]) == 2 - first
    for step, (inputs, targets) in enumerate(stacked):
        for row, batches in enumerate(alone):
            assert torch.equal(fields_of(inputs)[row], fields_of(batches[step][0]))
            assert torch.equal(targets[row], batches[step][1])
