"""Batches of token sequences: similar lengths, padded to the longest, in an order that depends on the seed only."""

import pytest
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.training import Seed, TokenData

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def sequences(lengths: list[int] = LENGTHS) -> TokenData:
    """Example k has the tokens 100 k + 1, 100 k + 2, ... and the target k."""
    tokens = torch.cat([100 * k + 1 + torch.arange(n) for k, n in enumerate(lengths)])
    return TokenData({"input_ids": tokens}, torch.tensor(lengths), torch.arange(len(lengths)))


def assert_whole(inputs: dict[str, Tensor], targets: Tensor, lengths: list[int] = LENGTHS) -> None:
    for ids, alive, k in zip(inputs["input_ids"], inputs["attention_mask"], targets.tolist(), strict=True):
        assert alive.tolist() == [1] * lengths[k] + [0] * (len(ids) - lengths[k])
        assert ids[alive.bool()].tolist() == [100 * k + 1 + i for i in range(lengths[k])]
        assert not ids[~alive.bool()].any()


def test_a_batch_is_padded_to_its_own_longest() -> None:
    inputs, targets = sequences().gather(torch.tensor([0, 2, 6]))
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 0], [201, 202, 203, 204], [601, 602, 0, 0]]
    assert_whole(inputs, targets)


def test_an_epoch_has_every_example_once_and_depends_on_seed_and_epoch_alone() -> None:
    data = sequences()
    batches = list(data.shuffled(3, Seed(1), 0))
    assert sorted(k for _, targets in batches for k in targets.tolist()) == list(range(12))
    for inputs, targets in batches:
        assert_whole(inputs, targets)
    order = [targets.tolist() for _, targets in batches]
    assert [targets.tolist() for _, targets in data.shuffled(3, Seed(1), 0)] == order
    assert [targets.tolist() for _, targets in data.shuffled(3, Seed(1), 0, first=2)] == order[2:]
    assert [targets.tolist() for _, targets in data.shuffled(3, Seed(1), 1)] != order
    assert [targets.tolist() for _, targets in data.shuffled(3, Seed(2), 0)] != order


def test_batches_hold_examples_of_similar_length_in_no_order_of_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (2000,), generator=generator)
    data = TokenData({"input_ids": torch.ones(int(lengths.sum()))}, lengths, torch.zeros(2000))
    longest = [inputs["input_ids"].shape[1] for inputs, _ in data.shuffled(20, Seed(0), 0)]
    # 20 random ones would be padded to 95 on average, where the mean length is 50.
    assert sum(longest) / len(longest) < 55
    assert longest != sorted(longest)


def test_evaluation_gives_all_examples_once_in_the_same_order_for_every_batch_size() -> None:
    lengths = [1 + k % 37 for k in range(300)]
    data = sequences(lengths)
    orders = [torch.cat([targets for _, targets in data.in_order(size)]).tolist() for size in (1, 48, 1024)]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(300))
    inputs, _ = next(data.in_order(1))
    assert 15 <= inputs["input_ids"].shape[1] <= 22  # of median length


def test_a_subset_keeps_its_tokens() -> None:
    part = sequences().subset(torch.tensor([5, 1, 11]))
    assert len(part) == 3
    inputs, targets = part.gather(torch.tensor([0, 1, 2]))
    assert_whole(inputs, targets)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([2, 0], "example 1 has no token"), ([2], "do not match"), ([2, 2], "add up to 4")],
)
def test_inconsistent_sequences_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(SwampError, match=message):
        TokenData({"input_ids": torch.arange(2)}, torch.tensor(lengths), torch.zeros(2))
