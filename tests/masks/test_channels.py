"""Whole output channels are kept or pruned together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from swamp.datasets import build_network
from swamp.errors import SwampError
from swamp.masks import Mask, Scope, prune_mask
from swamp.masks.patterns import structure_named

from .test_groups import dense, random_scores


def channels(mask: Mask) -> dict[str, list[int]]:
    """which channels are active; none may be there in part."""
    found: dict[str, list[int]] = {}
    for name, tensor in mask.items():
        kept = [int(row.count_nonzero()) for row in tensor]
        assert set(kept) <= {0, tensor[0].numel()}, f"{name} has part of a channel"
        found[name] = [at for at, count in enumerate(kept) if count]
    return found


def walked(mask: Mask, scores: dict[str, Tensor], kept: int, allocation: str, floor: int) -> dict[str, list[int]]:
    """The same by lists and Python's own stable sort: promised channels first, then down one ranking until full."""
    active, chosen, room = channels(mask), {name: list[int]() for name in mask}, kept
    ranked: list[tuple[float, str, int]] = []
    for name, tensor in mask.items():
        width = tensor[0].numel()
        means = [math.fsum(row.flatten().tolist()) / width for row in scores[name]]
        order = sorted(active[name], key=lambda at, means=means: -means[at])
        promised = min(len(order), max(1, -(-min(floor, len(order) * width) // width)))
        chosen[name] = order[:promised]
        room -= promised * width
        share = {"uniform": tensor.numel(), "erk": sum(tensor.shape)}.get(allocation)
        keys = {at: (place + 1) * width / share if share else -means[at] for place, at in enumerate(order)}
        ranked += [(keys[at], name, at) for at in active[name] if at not in order[:promised]]
    for _, name, at in sorted(ranked, key=lambda entry: entry[0]):
        room -= mask[name][0].numel()
        if room < 0:
            break
        chosen[name].append(at)
    return {name: sorted(found) for name, found in chosen.items()}


def test_one_ranking_over_mean_scores_worked_out_by_hand() -> None:
    # Means: a has 5, 1, 3; b has 4, 2. Widths 2 and 4.
    scores = {
        "a": torch.tensor([[5.0, 5], [0, 2], [2, 4]]),
        "b": torch.tensor([[4.0, 4, 4, 4], [0, 0, 0, 8]]),
    }
    mask = dense(a=(3, 2), b=(2, 4))
    # 5 (2 weights), 4 (4), 3 (2) are 8 weights; the next channel has 4.
    for kept in (8, 9, 10, 11):
        assert channels(prune_mask(mask, scores, kept, structure="channel")) == {"a": [0, 2], "b": [0]}
    assert channels(prune_mask(mask, scores, 12, structure="channel")) == {"a": [0, 2], "b": [0, 1]}
    # Not even the narrow channel that would fit goes before the wide one that does not: 6 + 4 of 7, 2 would fit.
    swapped = {"a": scores["a"].flip(0) * 0 + torch.tensor([[9.0], [1], [2]]), "b": scores["b"] + 2}
    assert channels(prune_mask(mask, swapped, 9, structure="channel")) == {"a": [0], "b": [0]}


def test_of_equal_means_the_earlier_tensor_and_then_the_earlier_channel_stays() -> None:
    mask = dense(a=(3, 2), b=(3, 2))
    scores = {name: torch.ones(3, 2) for name in mask}
    assert channels(prune_mask(mask, scores, 8, structure="channel")) == {"a": [0, 1, 2], "b": [0]}


shapes = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (2,), (1, 3)])), min_size=1, max_size=4
)
ALLOCATIONS = ["global", "uniform", "erk"]


@pytest.mark.slow
@given(
    shapes,
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(ALLOCATIONS)), min_size=1, max_size=4),
    st.integers(0, 7),
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 1000]),
)
@settings(max_examples=200)
def test_channels_are_whole_nested_floored_and_equal_a_plain_walk(
    layers: list[tuple[int, int, tuple[int, ...]]],
    steps: list[tuple[float, str]],
    floor: int,
    seed: int,
    levels: int,
) -> None:
    mask = dense(**{f"layer{i}": (out, width, *kernel) for i, (out, width, kernel) in enumerate(layers)})
    # Whole numbers: their means are exact however they are summed.
    scores = {name: score * 12 for name, score in random_scores(mask, seed, levels).items()}
    widths = {name: tensor[0].numel() for name, tensor in mask.items()}
    wanted = {name: min(floor, tensor.numel()) for name, tensor in mask.items()}
    least = sum(max(1, -(-wanted[name] // width)) * width for name, width in widths.items())
    before = mask
    # An allocation that follows another meets layers that are emptier than it would have made them.
    for step, allocation in sorted(steps, reverse=True):
        kept = max(least, round(step * mask.prunable))
        smaller = prune_mask(before, scores, kept, structure="channel", allocation=allocation, min_per_layer=floor)
        expected = channels(before) if kept >= before.nnz else walked(before, scores, kept, allocation, floor)
        assert channels(smaller) == expected
        assert smaller.nnz <= kept
        assert smaller.issubset(before)
        assert all(count >= max(1, wanted[name]) for name, count in smaller.nnz_by_layer.items())
        before = smaller


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("network", ["mlp-64-32", "resnet-20"])
def test_real_networks_equal_an_independent_computation(network: str, allocation: str) -> None:
    model = build_network(network, (3, 32, 32) if "resnet" in network else (1, 8, 8), 10)
    mask = Mask.ones(model, Scope(prune_output_layer=False))
    scores = {name: parameter.detach().double().abs() for name, parameter in model.named_parameters() if name in mask}
    kept = round(0.3 * mask.prunable)
    smaller = prune_mask(mask, scores, kept, structure="channel", allocation=allocation)
    assert channels(smaller) == walked(mask, scores, kept, allocation, 0)
    widest = max(tensor[0].numel() for tensor in mask.values())
    assert kept - widest < smaller.nnz <= kept


def test_uniform_keeps_the_same_share_of_channels_in_every_tensor() -> None:
    mask = dense(a=(10, 3), b=(20, 7), c=(30, 1))
    smaller = prune_mask(mask, random_scores(mask, 0), mask.prunable // 2, structure="channel", allocation="uniform")
    assert {name: len(found) for name, found in channels(smaller).items()} == {"a": 5, "b": 10, "c": 15}


def test_the_pruned_do_not_come_back_where_another_allocation_would_have_kept_them() -> None:
    mask = Mask({"a": torch.tensor([[True], [False], [False], [False]]), "b": torch.ones(4, 1, dtype=torch.bool)})
    scores = {"a": torch.tensor([[1.0], [9.0], [9.0], [9.0]]), "b": torch.tensor([[1.0], [2.0], [3.0], [4.0]])}
    for allocation in ALLOCATIONS:
        smaller = prune_mask(mask, scores, 4, structure="channel", allocation=allocation)
        assert channels(smaller) == {"a": [0], "b": [1, 2, 3]}


def test_a_count_between_channels_or_above_the_active_count_changes_nothing() -> None:
    mask = dense(a=(4, 3))
    scores = random_scores(mask, 0)
    half = prune_mask(mask, scores, 7, structure="channel")
    assert half.nnz == 6
    for kept in (6, 7, 8, 9, 12):
        assert prune_mask(half, scores, kept, structure="channel") == half


def test_every_tensor_keeps_a_channel_and_a_floor_counts_whole_ones() -> None:
    mask = dense(strong=(4, 2), weak=(4, 3))
    scores = {"strong": torch.full((4, 2), 9.0), "weak": torch.arange(12.0).reshape(4, 3) / 100}
    assert channels(prune_mask(mask, scores, 11, structure="channel")) == {"strong": [0, 1, 2, 3], "weak": [3]}
    # 4 weights are two channels of 3, and two of 2.
    assert channels(prune_mask(mask, scores, 11, structure="channel", min_per_layer=4)) == {
        "strong": [0, 1],
        "weak": [2, 3],
    }


def test_fewer_weights_than_one_channel_each_are_refused_before_training() -> None:
    mask = dense(a=(4, 2), b=(4, 3))
    structure_named("channel").check(mask, 5)
    for attempt in (
        lambda: structure_named("channel").check(mask, 4),
        lambda: prune_mask(mask, random_scores(mask, 0), 4, structure="channel"),
    ):
        with pytest.raises(SwampError, match=r"4 of 20 weights cannot be kept in whole channels.*require 5"):
            attempt()
    with pytest.raises(SwampError, match="at least 4 weights per layer, require 10"):
        structure_named("channel").check(mask, 9, min_per_layer=4)


def test_a_mask_with_half_a_channel_is_refused_by_name() -> None:
    mask = Mask({"a": torch.ones(2, 2, dtype=torch.bool), "b": torch.tensor([[True, True], [False, True]])})
    with pytest.raises(SwampError, match="channel 1 of 'b' is partly pruned"):
        prune_mask(mask, random_scores(mask, 0), 4, structure="channel")


def test_weights_of_one_dimension_and_none_are_channels_of_one() -> None:
    mask = dense(vector=(3,), scalar=())
    scores = {"vector": torch.tensor([1.0, 3.0, 2.0]), "scalar": torch.tensor(0.0)}
    smaller = prune_mask(mask, scores, 3, structure="channel")
    assert {name: tensor.tolist() for name, tensor in smaller.items()} == {
        "vector": [False, True, True],
        "scalar": True,
    }


def test_the_output_layer_is_the_last_one_registered_and_stays_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1), nn.Linear(4, 3))
    assert list(Scope(prune_output_layer=False).prunable(model)) == ["0.weight", "1.weight"]
    # It is the model's last, not the last of those that were chosen.
    assert list(Scope(prune_output_layer=False, exclude=("2.*",)).prunable(model)) == ["0.weight", "1.weight"]
    assert list(Scope(prune_output_layer=False, include=("0.weight",)).prunable(model)) == ["0.weight"]
    assert list(Scope(prune_output_layer=False, include=("*.weight",)).prunable(model)) == ["0.weight", "1.weight"]
    assert list(Scope(prune_output_layer=False, include=("*.bias",)).prunable(nn.Sequential(nn.LayerNorm(2)))) == [
        "0.bias"
    ]
    with pytest.raises(SwampError, match="the output layer stays dense"):
        Scope(prune_output_layer=False).prunable(nn.Linear(2, 2))
