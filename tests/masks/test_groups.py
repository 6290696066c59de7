"""N:M: of every m consecutive inputs n are active."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from swamp.datasets import build_network
from swamp.errors import SwampError
from swamp.masks import Mask, NMPattern, Schedule, Scope, prune_mask
from swamp.masks.patterns import structure_named

PATTERNS = [(2, 4), (1, 4), (4, 8)]


def dense(**shapes: tuple[int, ...]) -> Mask:
    return Mask({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})


def random_scores(mask: Mask, seed: int, levels: int = 0) -> dict[str, Tensor]:
    """Scores of every weight; with few levels most are tied."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in mask.items()}
    return {name: (score * levels).floor() for name, score in scores.items()} if levels else scores


def best_of_groups(score: Tensor, m: int, kept: int) -> np.ndarray:
    """A weight is active if fewer than `kept` of its group are larger, or equal and earlier. Nothing is sorted."""
    values, active = score.numpy(), np.zeros(score.shape, dtype=bool)
    for first in range(0, values.shape[1], m):
        group = values[:, first : first + m]
        for at in range(m):
            mine = group[:, at : at + 1]
            ahead = (group > mine).sum(1) + (group[:, :at] == mine).sum(1)
            active[:, first + at] = ahead < kept
    return active


def survivors(mask: Mask, m: int) -> dict[str, np.ndarray]:
    return {
        name: np.stack(
            [tensor[:, first : first + m].sum(1).flatten().numpy() for first in range(0, tensor.shape[1], m)]
        )
        for name, tensor in mask.items()
    }


def test_two_of_four_inputs_worked_out_by_hand() -> None:
    scores = {"w": torch.tensor([[4.0, 1, 3, 2, 0, 0, 0, 0], [1, 1, 2, 1, -1, -2, -3, -4]])}
    smaller = prune_mask(dense(w=(2, 8)), scores, 8, structure="2:4")
    # Ties go to the earlier index, and negative scores rank too.
    assert smaller["w"].int().tolist() == [[1, 0, 1, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]]


def test_a_group_of_a_convolution_is_input_channels_at_one_output_channel_and_position() -> None:
    score = torch.zeros(1, 4, 1, 2)
    score[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    score[0, :, 0, 1] = torch.tensor([40.0, 30.0, 20.0, 10.0])
    smaller = prune_mask(dense(w=(1, 4, 1, 2)), {"w": score}, 4, structure="2:4")["w"]
    assert smaller[0, :, 0, 0].int().tolist() == [0, 0, 1, 1]
    assert smaller[0, :, 0, 1].int().tolist() == [1, 1, 0, 0]


networks = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (2,), (1, 3)])), min_size=1)


@pytest.mark.slow
@given(networks, st.sampled_from(PATTERNS), st.integers(0, 2**31), st.sampled_from([0, 1, 3]))
@settings(max_examples=60)
def test_every_step_keeps_the_best_of_each_group_exactly_and_masks_are_nested(
    layers: list[tuple[int, int, tuple[int, ...]]], pattern: tuple[int, int], seed: int, levels: int
) -> None:
    n, m = pattern
    mask = dense(**{f"layer{i}": (out, groups * m, *kernel) for i, (out, groups, kernel) in enumerate(layers)})
    scores = random_scores(mask, seed, levels)
    before = mask
    for k in range(m - 1, n - 1, -1):
        smaller = prune_mask(before, scores, k * mask.prunable // m, structure=f"{n}:{m}")
        assert smaller.issubset(before)
        assert smaller.nnz == k * mask.prunable // m
        assert all((counts == k).all() for counts in survivors(smaller, m).values())
        assert all((smaller[name].numpy() == best_of_groups(scores[name], m, k)).all() for name in mask)
        before = smaller


@given(st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.sampled_from([0, 2]))
@settings(max_examples=60)
def test_any_number_is_kept_exactly_and_groups_differ_by_one_at_most(
    seed: int, steps: list[float], levels: int
) -> None:
    mask = dense(a=(3, 8), b=(2, 4, 2))
    before = mask
    for step in sorted(steps, reverse=True):
        kept = round(step * mask.prunable)
        smaller = pruned_quietly(before, random_scores(mask, seed, levels), kept)
        assert smaller.nnz == kept
        assert smaller.issubset(before)
        counts = np.concatenate([found.flatten() for found in survivors(smaller, 4).values()])
        assert counts.max() - counts.min() <= 1
        before = smaller


def pruned_quietly(mask: Mask, scores: dict[str, Tensor], kept: int) -> Mask:
    return NMPattern(2, 4).prune(mask, scores, kept, "global", 0)


def test_between_two_steps_the_groups_with_the_strongest_next_weight_keep_one_more() -> None:
    scores = {"a": torch.tensor([[9.0, 8, 7, 1]]), "b": torch.tensor([[9.0, 8, 1, 7]]), "c": torch.ones(1, 4)}
    smaller = prune_mask(dense(a=(1, 4), b=(1, 4), c=(1, 4)), scores, 7, structure="2:4")
    # Two of each group and one more: of the equal third weights (7 and 7) the earlier tensor's.
    assert {name: tensor.int().tolist() for name, tensor in smaller.items()} == {
        "a": [[1, 1, 1, 0]],
        "b": [[1, 1, 0, 0]],
        "c": [[1, 1, 0, 0]],
    }


def test_groups_that_have_fewer_already_stay_as_they_are() -> None:
    mask = Mask({"w": torch.tensor([[False, False, False, True], [True, True, True, True]])})
    smaller = prune_mask(mask, {"w": torch.arange(8.0).reshape(2, 4)}, 3, structure="2:4")
    assert smaller["w"].int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]


def test_what_a_pruned_weight_scores_does_not_matter() -> None:
    mask = Mask({"w": torch.tensor([[False, True, True, True, True, True, True, True]])})
    for pruned in (float("inf"), float("nan"), -float("inf"), 9.0):
        scores = {"w": torch.tensor([[pruned, 1.0, -1e30, 2.0, 6.0, 5.0, 4.0, 3.0]])}
        assert prune_mask(mask, scores, 4, structure="2:4")["w"].int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("network", "exclude"), [("mlp-64-32", ()), ("resnet-20", ("conv.weight",))])
def test_real_networks_equal_an_independent_computation(network: str, exclude: tuple[str, ...], n: int, m: int) -> None:
    model = build_network(network, (3, 32, 32) if "resnet" in network else (1, 8, 8), 10)
    mask = Mask.ones(model, Scope(exclude=exclude))
    scores = {name: parameter.detach().abs() for name, parameter in model.named_parameters() if name in mask}
    smaller = prune_mask(mask, scores, mask.prunable * n // m, structure=f"{n}:{m}")
    assert smaller.density == n / m
    assert all((smaller[name].numpy() == best_of_groups(scores[name], m, n)).all() for name in mask)


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "channel"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_layout_of_a_weight_in_memory_changes_nothing(structure: str, tied: bool) -> None:
    plain = nn.Conv2d(8, 6, 3)
    last = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    score = torch.zeros_like(plain.weight) if tied else plain.weight.detach().abs()
    a = prune_mask(Mask.ones(plain), {"weight": score}, 230, structure=structure)
    b = prune_mask(Mask.ones(last), {"weight": score.to(memory_format=torch.channels_last)}, 230, structure=structure)
    assert a == b


@pytest.mark.parametrize(
    ("shape", "said"), [((3, 6), r"\(3, 6\)"), ((8, 1, 3, 3), r"\(8, 1, 3, 3\)"), ((4,), r"\(4,\)")]
)
def test_a_layer_that_groups_do_not_divide_is_named_with_what_to_do(shape: tuple[int, ...], said: str) -> None:
    mask = dense(fits=(3, 4), wrong=shape)
    for attempt in (
        lambda: structure_named("2:4").check(mask, mask.prunable // 2),
        lambda: prune_mask(mask, random_scores(mask, 0), 6, structure="2:4"),
    ):
        with pytest.raises(SwampError, match=rf"'wrong' has the shape {said}.*exclude=\('wrong',\)"):
            attempt()


def test_a_floor_that_the_pattern_cannot_meet_is_refused_by_name() -> None:
    mask = dense(wide=(8, 8), small=(1, 4))
    structure_named("2:4").check(mask, 34, min_per_layer=2)
    assert prune_mask(mask, random_scores(mask, 0), 34, structure="2:4", min_per_layer=2).nnz == 34
    for attempt in (
        lambda: structure_named("2:4").check(mask, 34, min_per_layer=3),
        lambda: prune_mask(mask, random_scores(mask, 0), 34, structure="2:4", min_per_layer=3),
    ):
        with pytest.raises(
            SwampError, match="minimum of 3 per layer requires 3 weights of 'small', and structure 2:4 leaves 2"
        ):
            attempt()


def test_more_weights_than_are_active_are_refused() -> None:
    mask = prune_mask(dense(w=(1, 4)), {"w": torch.arange(4.0).reshape(1, 4)}, 2, structure="2:4")
    with pytest.raises(SwampError, match="3 weights cannot be kept: 2 are active"):
        prune_mask(mask, {"w": torch.ones(1, 4)}, 3, structure="2:4")


def test_an_allocation_that_wants_layers_unlike_is_refused() -> None:
    mask = dense(w=(1, 4))
    for allocation in ("global", "uniform"):
        assert prune_mask(mask, random_scores(mask, 0), 2, structure="2:4", allocation=allocation).nnz == 2
    with pytest.raises(SwampError, match="2:4 gives every layer the same density, so allocation 'erk'"):
        prune_mask(mask, random_scores(mask, 0), 2, structure="2:4", allocation="erk")


@pytest.mark.parametrize("name", ["4:4", "0:4", "4:2", "0:0"])
def test_numbers_that_make_no_pattern_are_refused(name: str) -> None:
    with pytest.raises(SwampError, match=f"structure {name} is not a valid n:m pattern"):
        structure_named(name)


@pytest.mark.parametrize("name", ["n:m", "2:", "2:4:8", "-1:4"])
def test_what_is_nearly_a_pattern_is_unknown(name: str) -> None:
    with pytest.raises(SwampError, match="unknown structure"):
        structure_named(name)


def test_densities_go_down_one_weight_of_each_group_at_a_time() -> None:
    assert NMPattern(2, 4).densities(()) == (1, 0.75, 0.5)
    assert NMPattern(1, 4).densities(()) == (1, 0.75, 0.5, 0.25)
    assert NMPattern(4, 8).densities((), cycles=1) == (1, 0.5)
    assert NMPattern(4, 8).densities((), cycles=2) == (1, 0.75, 0.5)
    assert NMPattern(1, 3).densities((1, 0.3333)) == (1, 1 / 3)


@given(st.integers(2, 40), st.data())
def test_any_number_of_prunings_ends_at_the_pattern_with_whole_counts(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    cycles = data.draw(st.integers(0, m - n))
    densities = NMPattern(n, m).densities((), cycles)
    assert len(densities) == 1 + (cycles or m - n)
    schedule = Schedule(densities, (1,) * len(densities))
    assert schedule.nnz(len(densities) - 1, 10**6 * m) == 10**6 * n
    assert all(schedule.nnz(cycle, 10**6 * m) % 10**6 == 0 for cycle in range(len(densities)))


def test_densities_between_the_steps_and_too_many_prunings_are_refused() -> None:
    with pytest.raises(SwampError, match=r"multiples of 1/4 \(1, 0.75, 0.5, 0.25\), got 0.6"):
        NMPattern(2, 4).densities((1, 0.6, 0.5))
    with pytest.raises(SwampError, match=r"got 0\.1"):
        NMPattern(2, 4).densities((1, 0.1))
    with pytest.raises(SwampError, match="2:4 allows at most 2 prunings"):
        NMPattern(2, 4).densities((), cycles=3)
