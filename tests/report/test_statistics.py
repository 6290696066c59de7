import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp.report.statistics import ReportMetric, interval, paired


def test_the_interval_of_1_2_3_is_worked_out_by_hand() -> None:
    # s = 1, t(0.975, 2) = 4.302653 from a printed table, half = 4.302653 / sqrt(3).
    mean, half = interval([1, 2, 3])
    assert mean == 2
    assert half == pytest.approx(2.484138, abs=1e-6)


def test_the_interval_of_five_values_uses_four_degrees_of_freedom() -> None:
    # s^2 = 10 / 4, t(0.975, 4) = 2.776445.
    assert interval([1, 2, 3, 4, 5])[1] == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-6)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert interval([0.5])[0] == 0.5
    assert math.isnan(interval([0.5])[1])
    assert all(map(math.isnan, interval([])))


def test_a_diverged_seed_is_not_dropped_from_the_mean() -> None:
    assert all(map(math.isnan, interval([0.5, math.nan, 0.6])))


def test_the_paired_difference_is_over_common_seeds_only() -> None:
    # Differences 1, 2, 3 for seeds 0, 1, 2; seeds 7 and 8 have no partner.
    result = paired({0: 11, 1: 22, 2: 33, 7: 500}, {2: 30, 1: 20, 0: 10, 8: -500})
    assert (result.mean, result.n, result.better) == (2, 3, 3)
    assert result.half == pytest.approx(2.484138, abs=1e-6)
    assert not result.excludes_zero


def test_better_counts_positive_differences_and_not_ties() -> None:
    assert paired({0: 1, 1: 2, 2: 3}, {0: 1, 1: 1, 2: 9}).better == 1


def test_a_constant_gain_excludes_zero_although_the_seeds_scatter_far_more() -> None:
    result = paired({0: 1.5, 1: 20.5, 2: 300.75}, {0: 1, 1: 20, 2: 300})
    assert result.excludes_zero
    assert interval([1.5, 20.5, 300.75])[1] > 100


def test_one_common_seed_never_excludes_zero() -> None:
    assert not paired({0: 9}, {0: 1}).excludes_zero


@given(st.dictionaries(st.integers(0, 9), st.floats(-1, 1)), st.dictionaries(st.integers(0, 9), st.floats(-1, 1)))
def test_swapping_the_sides_only_changes_the_sign(a: dict[int, float], b: dict[int, float]) -> None:
    one, two = paired(a, b), paired(b, a)
    assert one.n == two.n == len(a.keys() & b.keys())
    if one.n:
        assert one.mean == pytest.approx(-two.mean)
    if one.n > 1:
        assert one.half == pytest.approx(two.half)


@pytest.mark.parametrize(
    "name", ["nll", "val_loss", "NMSE", "rmse", "sMAPE", "word WER", "ece", "fid", "bits_per_byte"]
)
def test_errors_losses_and_distances_are_better_lower(name: str) -> None:
    assert ReportMetric(name).lower


@pytest.mark.parametrize("name", ["accuracy", "f1", "return", "answer_accuracy", "cancer recall", "fidelity"])
def test_an_abbreviation_inside_another_word_says_nothing(name: str) -> None:
    assert not ReportMetric(name).lower
