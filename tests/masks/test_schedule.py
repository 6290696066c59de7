import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp.errors import SwampError
from swamp.masks import Schedule, densities_by_fraction, densities_to
from swamp.masks.schedule import check_prune_fraction, particles_for


@pytest.mark.parametrize(("prunings", "percent"), [(10, 89.3), (13, 94.5), (17, 97.7), (21, 99.1)])
def test_a_fifth_a_cycle_gives_the_published_sparsities(prunings: int, percent: float) -> None:
    densities = densities_by_fraction([0.2], prunings)
    assert len(densities) == prunings + 1
    assert round(100 * (1 - densities[-1]), 1) == percent


@given(st.floats(0, 0.9999), st.none() | st.integers(1, 40), st.lists(st.floats(0.05, 0.9), min_size=1, max_size=4))
@settings(max_examples=200)
def test_densities_fall_from_one_to_exactly_the_target(
    sparsity: float, cycles: int | None, prune_fraction: list[float]
) -> None:
    densities = densities_to(sparsity, cycles=cycles, prune_fraction=prune_fraction)
    assert densities[0] == 1
    assert densities[-1] == 1 - sparsity
    if sparsity > 1e-12:
        Schedule(densities, (1,) * len(densities))
        removed = [1 - after / before for before, after in pairwise(densities)]
        if cycles is not None:
            assert len(removed) == cycles
            assert max(removed) - min(removed) < 1e-9
        else:
            rates = [prune_fraction[min(step, len(prune_fraction) - 1)] for step in range(len(removed))]
            assert all(share <= rate + 1e-8 for share, rate in zip(removed, rates, strict=True))


@given(st.floats(0.001, 0.9999), st.floats(0.05, 0.9))
@settings(max_examples=100)
def test_no_fewer_equal_prunings_would_do(sparsity: float, prune_fraction: float) -> None:
    prunings = len(densities_to(sparsity, prune_fraction=[prune_fraction])) - 1
    assert (1 - prune_fraction) ** prunings <= (1 - sparsity) * (1 + 1e-7)
    assert prunings == 1 or (1 - prune_fraction) ** (prunings - 1) > 1 - sparsity


def test_rounding_does_not_ask_for_one_cycle_more() -> None:
    for rate in (0.1, 0.2, 0.25, 0.3, 0.5):
        for prunings in range(1, 30):
            sparsity = 1 - (1 - rate) ** prunings
            assert len(densities_to(sparsity, prune_fraction=[rate])) == prunings + 1
            assert len(densities_to(sparsity, prune_fraction=[rate, rate])) == prunings + 1


def test_the_rate_may_differ_cycle_by_cycle_and_the_last_pruning_hits_the_target() -> None:
    assert densities_by_fraction([0.5, 0.2], 3) == pytest.approx([1, 0.5, 0.4, 0.32])
    assert densities_to(0.65, prune_fraction=[0.5, 0.2]) == pytest.approx([1, 0.5, 0.4, 0.35])
    assert densities_to(0.3, prune_fraction=[0.5, 0.2]) == (1, 0.7)


def test_no_sparsity_is_one_dense_cycle() -> None:
    assert densities_to(0.0) == densities_to(0.0, cycles=5) == densities_by_fraction([0.2], 0) == (1.0,)


@pytest.mark.parametrize("prune_fraction", [[0.2], [0.5, 0.2]])
def test_the_slightest_sparsity_still_starts_dense(prune_fraction: list[float]) -> None:
    assert densities_to(1e-12, prune_fraction=prune_fraction) == (1.0, 1 - 1e-12)


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, 95, math.nan, math.inf])
def test_a_sparsity_outside_its_range_is_refused_with_an_example(sparsity: float) -> None:
    with pytest.raises(SwampError, match=r"sparsity must lie in \[0, 1\).*0\.95 means that 95 %"):
        densities_to(sparsity)


# 1 - 1e-17 rounds to 1: densities would never fall.
@pytest.mark.parametrize("prune_fraction", [[], [0.0], [1.0], [0.2, -0.1], [math.nan], [1e-17], [0.5, 1e-17]])
def test_a_rate_that_cannot_prune_is_refused(prune_fraction: list[float]) -> None:
    for call in (
        lambda: check_prune_fraction(prune_fraction),
        lambda: densities_to(0.9, prune_fraction=prune_fraction),
        lambda: densities_by_fraction(prune_fraction, 2),
    ):
        with pytest.raises(SwampError, match=r"prune_fraction, the fraction of the remaining weights"):
            call()


def test_a_number_of_cycles_that_cannot_be_is_refused() -> None:
    with pytest.raises(SwampError, match="cycles must be 1 or more, got 0"):
        densities_to(0.9, cycles=0)
    with pytest.raises(SwampError, match="cycles must be 0 or more, got -1"):
        densities_by_fraction([0.2], -1)


def test_particles_are_given_cycle_by_cycle_and_the_last_count_repeats() -> None:
    assert particles_for((1, 0.8, 0.64, 0.5), [1, 1, 4]) == (1, 1, 4, 4)
    assert particles_for((1, 0.8), [4, 3, 2]) == (4, 3)


def test_cycles_denser_than_asked_train_one_particle() -> None:
    assert particles_for((1, 0.8, 0.64, 0.5), [4], single_particle_above=0.64) == (1, 1, 4, 4)
    assert particles_for((1, 0.8), [4]) == (4, 4)


@pytest.mark.parametrize("particles", [[], [0], [4, 0], [-1]])
def test_zero_particles_are_refused(particles: list[int]) -> None:
    with pytest.raises(SwampError, match="particles must be 1 or more"):
        particles_for((1.0, 0.5), particles)


@pytest.mark.parametrize(
    ("densities", "particles", "message"),
    [
        ((), (), "one density and one particle count per cycle"),
        ((1.0, 0.5), (1,), "one density and one particle count per cycle"),
        ((1.0, 1.0), (1, 1), "must fall"),
        ((0.5, 0.8), (1, 1), "must fall"),
        ((1.1,), (1,), "must fall from at most 1"),
        ((1.0, 0.0), (1, 1), "stay above 0"),
        ((1.0, math.nan), (1, 1), "must fall"),
        ((1.0, 0.5), (4, 0), "at least one particle"),
    ],
)
def test_a_schedule_that_cannot_be_run_is_refused(
    densities: tuple[float, ...], particles: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SwampError, match=message):
        Schedule(densities, particles)


def test_counts_are_the_nearest_whole_numbers() -> None:
    schedule = Schedule(densities_to(0.9, cycles=2), (1, 1, 1))
    # 1000, 1000 * sqrt(0.1) = 316.23, and 1000 * (1 - 0.9), which is 99.99999999999997 in floating point.
    assert [schedule.nnz(cycle, 1000) for cycle in range(len(schedule))] == [1000, 316, 100]


@given(st.integers(1, 10**9), st.floats(0, 0.999))
@settings(max_examples=100)
def test_the_last_cycle_keeps_exactly_the_requested_density(prunable: int, sparsity: float) -> None:
    densities = densities_to(sparsity)
    kept = Schedule(densities, (1,) * len(densities)).nnz(len(densities) - 1, prunable)
    assert abs(kept - (1 - sparsity) * prunable) <= 0.5
