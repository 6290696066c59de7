import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.masks.allocation import ALLOCATIONS, allocation_named, apportion


def dense(**shapes: tuple[int, ...]) -> tuple[dict[str, Tensor], Mask]:
    mask = Mask({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
    return {name: torch.rand(tensor.shape) for name, tensor in mask.items()}, mask


def scale_for(shares: dict[str, float], caps: dict[str, int], total: int, floor: int) -> dict[str, float]:
    """Real-valued counts: each share times one number, within its bounds; the number found by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        scale = (low + high) / 2
        exact = {name: min(max(share * scale, min(floor, caps[name])), caps[name]) for name, share in shares.items()}
        low, high = (scale, high) if sum(exact.values()) < total else (low, scale)
    return exact


problems = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(1, 400).map(float), min_size=count, max_size=count),
        st.lists(st.integers(0, 300), min_size=count, max_size=count),
        st.integers(0, 5),
        st.floats(0, 1),
    )
)


@pytest.mark.slow
@given(problems)
@settings(max_examples=300)
def test_apportioned_counts_are_exact_bounded_and_nearest_to_proportional(
    problem: tuple[list[float], list[int], int, float],
) -> None:
    values, sizes, floor, where = problem
    shares = {f"layer{index}": value for index, value in enumerate(values)}
    caps = {f"layer{index}": size for index, size in enumerate(sizes)}
    least, most = sum(min(floor, cap) for cap in caps.values()), sum(caps.values())
    total = least + round(where * (most - least))
    counts = apportion(shares, caps, total, floor)
    assert list(counts) == list(shares)
    assert sum(counts.values()) == total
    assert all(min(floor, caps[name]) <= count <= caps[name] for name, count in counts.items())
    exact = scale_for(shares, caps, total, floor)
    assert all(abs(counts[name] - exact[name]) < 1 + 1e-6 for name in counts)


@given(
    st.lists(st.integers(1, 50).map(float), min_size=3, max_size=3),
    st.lists(st.integers(0, 6), min_size=3, max_size=3),
    st.integers(0, 2),
    st.floats(0, 1),
)
@settings(max_examples=100)
def test_no_other_whole_numbers_are_nearer_than_the_apportioned(
    values: list[float], sizes: list[int], floor: int, where: float
) -> None:
    shares, caps = dict(zip("abc", values, strict=True)), dict(zip("abc", sizes, strict=True))
    least, most = sum(min(floor, cap) for cap in sizes), sum(sizes)
    total = least + round(where * (most - least))
    exact = scale_for(shares, caps, total, floor)

    def distance(counts: tuple[int, ...]) -> float:
        return sum(abs(count - exact[name]) for name, count in zip("abc", counts, strict=True))

    choices = itertools.product(*(range(min(floor, cap), cap + 1) for cap in sizes))
    best = min(distance(counts) for counts in choices if sum(counts) == total)
    assert distance(tuple(apportion(shares, caps, total, floor).values())) <= best + 1e-6


def test_equal_remainders_go_to_the_earlier_names() -> None:
    # 5 over three equal shares: 1.67 each.
    assert apportion(dict.fromkeys("xyz", 1.0), dict.fromkeys("xyz", 9), 5) == {"x": 2, "y": 2, "z": 1}


def test_what_a_full_layer_cannot_take_goes_to_the_others_in_proportion() -> None:
    # 12 in proportion 4 : 1 : 1 is 8, 2, 2; the first takes 4 at most, so 8 are shared by the others.
    assert apportion({"a": 4.0, "b": 1.0, "c": 1.0}, {"a": 4, "b": 9, "c": 9}, 12) == {"a": 4, "b": 4, "c": 4}


def test_a_floor_is_paid_for_by_the_others_in_proportion() -> None:
    # 10 in proportion 8 : 1 : 1 is 8, 1, 1; with at least 2 in each, 6 are left for the first.
    assert apportion({"a": 8.0, "b": 1.0, "c": 1.0}, {"a": 9, "b": 9, "c": 1}, 10, 2) == {"a": 7, "b": 2, "c": 1}


def test_layers_without_weights_take_nothing() -> None:
    assert apportion({"a": 3.0, "none": 0.0}, {"a": 3, "none": 0}, 3) == {"a": 3, "none": 0}
    # 0.1 * 30 is above 3 by rounding, so that the layer without weights is left alone with nothing to share.
    assert apportion({"a": 0.1, "none": 0.0}, {"a": 30, "none": 0}, 30) == {"a": 30, "none": 0}
    assert apportion({"none": 0.0}, {"none": 0}, 0) == {"none": 0}


def test_erk_of_lenet_300_100_worked_out_by_hand() -> None:
    scores, mask = dense(a=(300, 784), b=(100, 300), c=(10, 100))
    # Sums of dimensions 1084, 400, 110; 26,620 of 266,200 weights. eps = 26620 / 1594 = 16.7 would give c 1837 of its
    # 1000; solved again for the others, eps = 25620 / 1484 = 17.264: a 18714.34, b 6905.66.
    assert ALLOCATIONS["erk"](scores, mask, 26_620, 0) == {"a": 18_714, "b": 6_906, "c": 1_000}


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5),
    st.floats(0, 1),
)
@settings(max_examples=150)
def test_erk_density_is_eps_times_sum_over_product_of_dimensions(shapes: list[tuple[int, ...]], density: float) -> None:
    scores, mask = dense(**{f"layer{index}": shape for index, shape in enumerate(shapes)})
    total = round(density * mask.prunable)
    counts = ALLOCATIONS["erk"](scores, mask, total, 0)
    assert sum(counts.values()) == total
    sizes = {name: tensor.numel() for name, tensor in mask.items()}
    low, high = 0.0, 1e9
    for _ in range(200):
        eps = (low + high) / 2
        densities = {name: min(1.0, eps * sum(mask[name].shape) / sizes[name]) for name in mask}
        kept = sum(densities[name] * sizes[name] for name in mask)
        low, high = (eps, high) if kept < total else (low, eps)
    assert all(abs(counts[name] - densities[name] * sizes[name]) < 1 + 1e-6 for name in mask)


def test_uniform_gives_every_layer_the_same_density() -> None:
    scores, mask = dense(a=(10, 10), b=(5, 4), c=(2, 5))
    assert ALLOCATIONS["uniform"](scores, mask, 39, 0) == {"a": 30, "b": 6, "c": 3}


def test_uniform_never_revives_what_an_earlier_mask_took() -> None:
    mask = Mask({"a": torch.tensor([True] + 9 * [False]), "b": torch.ones(10, dtype=torch.bool)})
    assert ALLOCATIONS["uniform"]({name: torch.ones(10) for name in mask}, mask, 8, 0) == {"a": 1, "b": 7}


def test_global_counts_follow_one_ranking() -> None:
    scores = {"a": torch.tensor([9.0, 1.0, 8.0]), "b": torch.tensor([2.0, 7.0, 3.0])}
    mask = Mask({name: torch.ones(3, dtype=torch.bool) for name in scores})
    assert ALLOCATIONS["global"](scores, mask, 3, 0) == {"a": 2, "b": 1}
    assert ALLOCATIONS["global"](scores, mask, 0, 0) == {"a": 0, "b": 0}
    assert ALLOCATIONS["global"](scores, mask, 6, 0) == {"a": 3, "b": 3}


def test_a_global_floor_displaces_the_weakest_of_the_others() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 7.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    mask = Mask({name: torch.ones(3, dtype=torch.bool) for name in scores})
    assert ALLOCATIONS["global"](scores, mask, 3, 1) == {"a": 2, "b": 1}
    assert ALLOCATIONS["global"](scores, mask, 2, 1) == {"a": 1, "b": 1}


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@pytest.mark.parametrize(("kept", "floor"), [(13, 0), (-1, 0), (3, 2), (2, -1)])
def test_counts_that_cannot_be_had_are_refused(name: str, kept: int, floor: int) -> None:
    scores, mask = dense(a=(2, 3), b=(6,))
    with pytest.raises(SwampError, match=r"cannot be kept: 12 are active|minimum of weights per layer must be"):
        allocation_named(name)(scores, mask, kept, floor)


def test_an_unknown_allocation_comes_with_suggestions() -> None:
    with pytest.raises(SwampError, match=r"unknown allocation 'globl'\. Did you mean global"):
        allocation_named("globl")
