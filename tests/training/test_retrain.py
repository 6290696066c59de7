"""Learning rates of retraining, against rates computed by hand."""

import math
from dataclasses import replace

import pytest

from swamp.training import Training
from swamp.training.retrain import norm_change, retraining

TRAINING = Training(epochs=10, lr=0.4, swa_fraction=0, schedule="linear", warmup=2)


def rates(how: str, epochs: int, change: float = 0.0) -> list[float]:
    training, first = retraining(TRAINING, how, epochs, change)
    return [training.rate(step, 1) for step in range(first, training.epochs)]


def test_slr_scales_the_whole_schedule_warm_up_included():
    # Two of ten epochs of warm-up become one of five; then from 0.4 down over four.
    assert rates("slr", 5) == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1])
    assert rates("slr", 10) == [TRAINING.rate(step, 1) for step in range(10)]


def test_lrw_repeats_the_last_epochs():
    assert rates("lrw", 3) == pytest.approx([0.15, 0.1, 0.05])


def test_ft_stays_at_the_last_rate():
    assert rates("ft", 3) == pytest.approx([0.05] * 3)


def test_llr_falls_linearly_from_the_peak():
    assert rates("llr", 4) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_clr_is_one_cosine_after_a_tenth_of_warm_up():
    training, first = retraining(TRAINING, "clr", 10, 0.0)
    assert first == 0
    assert [training.rate(step, 1) for step in (0, 1)] == pytest.approx([0.4, 0.4])
    assert training.rate(5, 2) == pytest.approx(0.2 * (1 + math.cos(math.pi * 3 / 18)))


@pytest.mark.parametrize(("epochs", "change", "peak"), [(4, 0.1, 0.16), (4, 0.7, 0.28), (4, 3.0, 0.4)])
def test_allr_has_a_lower_peak_for_a_small_change_and_few_epochs(epochs, change, peak):
    assert rates("allr", epochs, change) == pytest.approx([peak, peak * 0.75, peak * 0.5, peak * 0.25])


def test_ft_clr_llr_and_allr_have_no_tail():
    tailed = Training(epochs=10, swa_fraction=0.5)
    assert retraining(tailed, "slr", 10, 0.0)[0].swa_fraction == 0.5
    assert all(retraining(tailed, how, 5, 0.0)[0].swa_fraction == 0 for how in ("ft", "clr", "llr", "allr"))


def test_the_change_of_the_norm_is_relative_to_what_a_random_pruning_would_remove():
    # |W| = 5, removed 3; a random quarter of the weights would have half of the norm.
    assert norm_change(5, 3, 0.25) == pytest.approx(1.2)
    assert norm_change(0, 0, 0.25) == norm_change(5, 0, 0) == 0


def test_ft_clr_llr_and_allr_have_no_repeats():
    repeating = replace(TRAINING, schedule_repeats=2, warmup=0)
    assert retraining(repeating, "slr", 4, 0.0)[0].schedule_repeats == 2
    for how in ("ft", "clr", "llr", "allr"):
        assert retraining(repeating, how, 5, 0.0)[0].schedule_repeats == 1
