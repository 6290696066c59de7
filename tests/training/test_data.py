import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from swamp.batches import as_batch, batch_to, map_tensors, tensors_of
from swamp.errors import SwampError
from swamp.training import Seed, TensorData
from swamp.training.data import BatchList, DatasetData
from swamp.training.sources import as_data, as_opaque_data
from swamp.training.stacked import stacked_batches

INPUTS = torch.arange(20.0).view(10, 2)
TARGETS = torch.arange(10)
PAIRS = TensorDataset(INPUTS, TARGETS)
BATCHES = [(INPUTS[i : i + 3], TARGETS[i : i + 3]) for i in (0, 3, 6)]


class Fields(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": INPUTS[index], "labels": TARGETS[index]}


class Noisy(Dataset[tuple[Tensor, int]]):
    """A random transform that draws from every global generator."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(2, dtype=torch.float64) + np.random.rand() + random.random(), index


def inputs_of(batch: Any) -> Tensor:
    return batch[0]["x"] if isinstance(batch[0], dict) else batch[0]


SOURCES = {
    "tensors": lambda: (INPUTS, TARGETS),
    "fields": lambda: ({"x": INPUTS}, TARGETS),
    "loader": lambda: DataLoader(PAIRS, batch_size=7, shuffle=True),
    "loader with workers": lambda: DataLoader(PAIRS, num_workers=1),
    "dataset": lambda: PAIRS,
    "dataset of fields": lambda: Fields(),
    "batches": lambda: BATCHES,
    "iterator": lambda: iter(BATCHES),
    "batches of fields": lambda: [{"x": x, "label": y} for x, y in BATCHES],
    "data": lambda: TensorData(INPUTS, TARGETS),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_each_example_once_in_a_repeatable_order(name: str, generators):
    data = as_data(SOURCES[name]())
    before = generators()
    count = 9 if "batches" in name or name == "iterator" else 10
    assert len(data) == count
    assert data.steps(3) == 3
    for epoch in range(2):
        batches = list(data.shuffled(3, Seed(1), epoch))
        targets = torch.cat([batch[1] for batch in batches])
        assert len(batches) == 3
        assert len(set(targets.tolist())) == 9
        assert torch.equal(torch.cat([inputs_of(batch) for batch in batches]), INPUTS[targets])
        again = torch.cat([batch[1] for batch in data.shuffled(3, Seed(1), epoch)])
        assert torch.equal(targets, again)
        rest = torch.cat([batch[1] for batch in data.shuffled(3, Seed(1), epoch, first=1)])
        assert torch.equal(targets[3:], rest)
    for _ in range(2):
        assert torch.cat([batch[1] for batch in data.in_order(3)]).tolist() == list(range(count))
    assert len(data.to(torch.device("cpu"))) == count
    assert generators() == before


@pytest.mark.parametrize("name", ["tensors", "dataset", "batches"])
def test_order_differs_between_particles_and_epochs(name: str):
    data = as_data(SOURCES[name]())
    orders = {
        tuple(torch.cat([y for _, y in data.shuffled(1, Seed(0).at("particle", particle), epoch)]).tolist())
        for particle in range(3)
        for epoch in range(3)
    }
    assert len(orders) > (3 if name == "batches" else 8)


def test_data_in_memory_and_a_dataset_give_the_same_batches():
    def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.rand(inputs.shape, generator=generator)

    for changes in ({}, {"augment": noisy, "normalise": lambda x: x / 2}):
        in_memory, fetched = TensorData(INPUTS, TARGETS, **changes), DatasetData(PAIRS, **changes)
        for first in (0, 1):
            epochs = [data.shuffled(4, Seed(2), 3, first) for data in (in_memory, fetched)]
            for (x, y), (a, b) in zip(*epochs, strict=True):
                assert torch.equal(x, a)
                assert torch.equal(y, b)
        evaluated = [torch.cat([x for x, _ in data.in_order(4)]) for data in (in_memory, fetched)]
        assert torch.equal(*evaluated)


@pytest.mark.parametrize("source", [(INPUTS, TARGETS), PAIRS])
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(source: Any):
    data = as_data(source)
    assert [len(y) for _, y in data.shuffled(4, Seed(0), 0)] == [4, 4]
    assert [len(y) for _, y in data.shuffled(64, Seed(0), 0)] == [10]
    assert [len(y) for _, y in data.in_order(4)] == [4, 4, 2]


def test_augmentation_is_seeded_by_step_comes_before_normalising_and_only_in_training():
    data = TensorData(
        INPUTS.to(torch.uint8),
        TARGETS,
        augment=lambda x, generator: x + torch.randint(0, 100, x.shape, generator=generator).to(x.dtype),
        normalise=lambda x: x.double() / 2,
    )
    epoch = [x for x, _ in data.shuffled(5, Seed(0), 0)]
    late = next(data.shuffled(5, Seed(0), 0, first=1))
    assert torch.equal(epoch[1], late[0])
    zeros = TensorData(INPUTS * 0, TARGETS, data.augment)
    draws = [x for number in range(2) for x, _ in zeros.shuffled(5, Seed(0), number)]
    assert all(not torch.equal(draws[i], draws[j]) for i in range(4) for j in range(i))
    assert torch.equal(next(data.in_order(10))[0], INPUTS.double() / 2)
    assert torch.equal(
        torch.cat([x for x, _ in data.plain().shuffled(10, Seed(0), 0)]).sum(), INPUTS.double().sum() / 2
    )


def test_a_subset_holds_the_chosen_examples():
    part = TensorData({"x": INPUTS}, TARGETS, augment=lambda x, generator: x).subset(torch.tensor([7, 2]))
    assert part.targets.tolist() == [7, 2]
    assert torch.equal(part.inputs["x"], INPUTS[[7, 2]])
    assert part.augment is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_random_transforms_are_seeded_by_batch_whatever_the_workers(workers: int, generators):
    before = generators()
    data = DatasetData(Noisy(), workers=workers)
    reference = torch.cat([x for x, _ in DatasetData(Noisy()).shuffled(3, Seed(0), 2)])
    torch.rand(1)
    assert torch.equal(torch.cat([x for x, _ in data.shuffled(3, Seed(0), 2)]), reference)
    assert torch.equal(torch.cat([x for x, _ in data.shuffled(3, Seed(0), 2, first=2)]), reference[6:])
    assert len({float(v) for v in reference.flatten()}) == reference.numel()
    assert not torch.equal(next(data.shuffled(3, Seed(0), 3))[0], reference[:3])
    assert torch.equal(next(data.in_order(3))[0], next(data.in_order(3))[0])
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    assert generators() == before


def test_a_dataset_with_getitems_is_read_in_batches():
    class Whole(Fields):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            raise AssertionError

        def __getitems__(self, index: list[int]) -> list[dict[str, Tensor]]:
            return [{"x": INPUTS[i], "labels": TARGETS[i]} for i in index]

    assert torch.equal(next(as_data(Whole()).in_order(10))[0]["x"], INPUTS)


class Doubled(TensorDataset):
    """A subclass with transforms of its own."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, targets = super().__getitem__(index)
        return 2 * inputs, targets


@pytest.mark.parametrize("source", [Doubled(INPUTS, TARGETS), DataLoader(Doubled(INPUTS, TARGETS), batch_size=7)])
def test_a_subclass_of_tensordataset_keeps_its_own_examples(source: Any):
    assert torch.equal(next(as_data(source).in_order(10))[0], 2 * INPUTS)
    assert torch.equal(next(as_opaque_data(source).in_order(10))[0][0], 2 * INPUTS)


def test_a_subclass_of_tensordata_keeps_its_own_batches():
    class Constant(TensorData):
        def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Any]:
            return iter([(torch.full((10, 2), 5.0), TARGETS)])

    inputs, _ = next(stacked_batches(Constant(INPUTS, TARGETS), 10, [Seed(0)], 0, 0, torch.device("cpu")))
    assert inputs.unique().tolist() == [5.0]


class FirstHalf(RandomSampler):
    """A subclass that chooses examples."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


class DoublingLoader(DataLoader[Any]):
    """A subclass that changes its batches."""

    def __iter__(self) -> Any:
        return ((2 * inputs, targets) for inputs, targets in super().__iter__())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(BATCHES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "cannot take batches from a int"),
        ("cifar10", "cannot take batches from a str"),
        (INPUTS, "cannot take batches from a Tensor"),
        (INPUTS.numpy(), "cannot take batches from a ndarray"),
        ({"x": INPUTS, "labels": TARGETS}, "cannot take batches from a dict"),
        ((INPUTS.numpy(), TARGETS), "arrays of NumPy: convert them"),
        (({}, TARGETS), "inputs must be a tensor"),
        ((INPUTS.numpy(), TARGETS.numpy()), "arrays of NumPy: convert them"),
        ([INPUTS, TARGETS], "a batch must be"),
        ([(INPUTS[0], TARGETS[0])], "must be a tensor (examples, ...), got a single number"),
        ([*BATCHES[:2], (INPUTS[:0], TARGETS[:0])], "batch 2 of 3 has no examples"),
        ([{"x": INPUTS}], "needs 'labels', 'label' or 'targets'; this one has"),
        ((INPUTS[:3], TARGETS), "the inputs have 3 examples, the targets 10"),
        ((INPUTS[:0], TARGETS[:0]), "0 examples"),
        ([], "0 batches"),
        (Subset(PAIRS, []), "0 examples"),
        (DataLoader(PAIRS, sampler=SubsetRandomSampler([0, 1])), "SubsetRandomSampler"),
        (DataLoader(PAIRS, sampler=RandomSampler(PAIRS, replacement=True)), "chooses its examples itself"),
        (DataLoader(PAIRS, sampler=RandomSampler(PAIRS, num_samples=3)), "chooses its examples itself"),
        (DataLoader(PAIRS, sampler=FirstHalf(PAIRS)), "chooses its examples itself (sampler FirstHalf"),
        (DoublingLoader(PAIRS), "DoublingLoader makes its batches in its own __iter__"),
        (DataLoader(PAIRS, batch_sampler=[[0, 1], [2]]), "batch sampler list"),
        (DataLoader(PAIRS, batch_size=None), "chooses its examples itself"),
        (DataLoader(Stream()), "has no length: give steps_per_epoch"),
    ],
)
def test_unsupported_sources_are_refused_before_training(source: Any, message: str):
    with pytest.raises(SwampError) as error:
        as_data(source)
    assert message in str(error.value)


def test_a_stream_with_a_length_is_evaluated_to_its_end():
    class Sized(Stream):
        def __iter__(self) -> Iterator[Any]:
            return zip(INPUTS, TARGETS, strict=True)

        def __len__(self) -> int:
            return len(TARGETS)

    data = as_data(Sized())
    assert [targets.tolist() for _, targets in data.in_order(4)] == [part.tolist() for part in TARGETS.split(4)]
    assert data.steps(4) == len([*data.shuffled(4, Seed(0), 0)]) == 2


def test_an_iterable_is_read_as_batches_into_memory():
    found = as_data(iter(BATCHES))
    assert isinstance(found, BatchList)
    assert len(found) == 9


def test_a_batch_is_a_tuple_with_the_targets_last_or_a_mapping_with_labels():
    for key in ("labels", "label", "targets"):
        assert as_batch({"x": 1, key: TARGETS}) == ({"x": 1}, TARGETS)
    assert as_batch([1, TARGETS]) == (1, TARGETS)
    assert as_batch((1, 2, TARGETS)) == ((1, 2), TARGETS)
    for other in ((TARGETS,), {"x": TARGETS}, (1, 2), TARGETS):
        with pytest.raises(SwampError, match=r"Task.custom\(train, loss, evaluate\) takes batches of any form"):
            as_batch(other)


def test_a_batch_moves_with_all_its_tensors():
    device = torch.device("meta")
    fields, targets = batch_to(({"x": INPUTS}, TARGETS), device)
    plain, _ = batch_to((INPUTS, TARGETS), device)
    assert {fields["x"].device.type, targets.device.type, plain.device.type} == {"meta"}


class Columns(list[Tensor]):
    """A class derived from list, which torch does not open."""


@dataclass
class Counted:
    """The constructor computes a tensor between those that it takes."""

    x: Tensor
    total: Tensor = field(init=False)
    y: Tensor

    def __post_init__(self) -> None:
        self.total = self.x.sum()


def test_the_tensors_of_own_classes_are_found_and_changed_in_the_same_order():
    batch = {"columns": Columns([INPUTS, INPUTS + 1]), "counted": Counted(INPUTS + 2, TARGETS)}
    found = tensors_of(batch)
    assert list(found) == ["columns.0", "columns.1", "counted.x", "counted.y"]
    changed: list[Tensor] = []
    again = map_tensors(lambda tensor: changed.append(tensor) or -tensor, batch)
    assert all(a is b for a, b in zip(found.values(), changed, strict=True))
    assert isinstance(again["columns"], Columns)
    assert torch.equal(again["columns"][1], -INPUTS - 1)
    assert torch.equal(again["counted"].total, -batch["counted"].total)


class Damaged(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        raise SwampError("cat.png is not a whole image.")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_process_is_raised_without_a_traceback_around_it(workers: int) -> None:
    with pytest.raises(SwampError) as raised:
        list(DatasetData(Damaged(), workers=workers).in_order(2))
    assert str(raised.value) == "cat.png is not a whole image."
