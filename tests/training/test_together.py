"""The batches of several trainings at once are those of each alone, also where each run has examples of its own."""

from dataclasses import replace

import pytest
import torch

from swamp.errors import SwampError
from swamp.training import BatchList, BySeed, Data, Seed, TensorData, a_seed, gathered, kinds, shuffled_together

CPU = torch.device("cpu")
ROOTS = (5, 3)


def noisy(inputs, generator):
    return inputs + torch.rand(inputs.shape, generator=generator)


def tensors(root: int) -> TensorData:
    return TensorData(torch.arange(22.0).view(11, 2) + 100 * root, torch.arange(11) + 100 * root)


DATA: dict[str, dict[int, Data]] = {
    "tensors": {root: tensors(root) for root in ROOTS},
    "augmented": {root: replace(tensors(root), augment=noisy, normalise=torch.neg) for root in ROOTS},
    "fields": {root: TensorData({"x": tensors(root).inputs}, tensors(root).targets) for root in ROOTS},
    "batches": {root: BatchList([*tensors(root).in_order(4)][:2]) for root in ROOTS},
}


def fields_of(inputs):
    return inputs["x"] if isinstance(inputs, dict) else gathered(inputs)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("first", [0, 1])
def test_each_seed_has_the_batches_of_its_own_run(name, first):
    parts = DATA[name]
    seeds = [Seed(root).at("cycle", 1, "particle", n) for n in range(2) for root in (3, 5)]
    together = [*shuffled_together(BySeed.of(parts), 4, seeds, 2, first, CPU)]
    alone = [[*parts[seed.root].shuffled(4, seed, 2, first)] for seed in seeds]
    assert len(together) == len(alone[0]) == 2 - first
    for step, (inputs, targets) in enumerate(together):
        for row, batches in enumerate(alone):
            assert torch.equal(fields_of(inputs)[row], fields_of(batches[step][0]))
            assert torch.equal(targets[row], batches[step][1])


@pytest.mark.parametrize("name", DATA)
def test_one_seed_has_the_batches_of_its_own_run_and_no_other_seed_has_any(name):
    parts = DATA[name]
    data = BySeed.of(parts)
    assert (len(data), data.steps(4)) == (len(parts[5]), parts[5].steps(4))
    for root in ROOTS:
        found, expected = (next(iter(one.shuffled(4, Seed(root), 0))) for one in (data, parts[root]))
        assert torch.equal(fields_of(found[0]), fields_of(expected[0]))
    with pytest.raises(KeyError):
        data.shuffled(4, Seed(4), 0)
    assert a_seed(data) == Seed(5)
    assert [type(part) for part in kinds(data)] == [type(part) for part in parts.values()]
    assert torch.equal(next(iter(data.in_order(4)))[1], next(iter(parts[5].in_order(4)))[1])


def test_tensors_are_held_once():
    data = BySeed.of(DATA["tensors"])
    assert data.joined is not None
    memory = data.joined.targets.untyped_storage().data_ptr()
    assert {part.targets.untyped_storage().data_ptr() for part in kinds(data)} == {memory}
    assert data.to(CPU) is data


def test_runs_with_other_numbers_of_examples_are_refused():
    with pytest.raises(SwampError, match=r"as many training examples each, got \{0: 11, 1: 5\}"):
        BySeed.of({0: tensors(0), 1: tensors(0).subset(torch.arange(5))})
