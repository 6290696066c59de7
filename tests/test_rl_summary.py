"""The interquartile mean and its bootstrap of benchmarks/rl.py agree with their definitions."""

import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SUMMARY = runpy.run_path(str(ROOT / "benchmarks" / "rl.py"))
mean, interval = SUMMARY["interquartile_mean"], SUMMARY["bootstrap_interval"]


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_runs():
    assert mean({"a": [8.0, 1, 100, 3], "b": [2.0, -50, 5, 4]}) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert mean({"a": [1.0, 2, 6]}) == 3  # a quarter of three runs is none


def test_seeds_are_drawn_within_each_environment():
    # Drawn from all runs alike, the number of ones would vary.
    assert interval({"a": [0.0] * 4, "b": [1.0] * 4}, draws=200) == (0.5, 0.5)


@pytest.mark.slow
def test_the_interval_is_the_percentiles_of_the_mean_of_drawn_seeds():
    scores, random = [1.0, 2.0, 4.0, 8.0], np.random.default_rng(1)
    means = [np.sort(random.choice(scores, 4))[1:3].mean() for _ in range(20_000)]
    expected = tuple(np.quantile(means, [0.025, 0.975]))
    assert interval({"a": scores}, draws=4_000) == pytest.approx(expected, abs=0.51)


@pytest.mark.slow
def test_the_table_has_a_column_for_each_sparsity():
    found = {"imp": {0.0: {"a": [1.0, 1.0]}, 50.0: {"a": [0.5, 0.5]}}, "random": {50.0: {"a": [0.25, 0.25]}}}
    head, _, imp, random = SUMMARY["table"](found).splitlines()
    assert head == "| method | dense | 50 % | runs |"
    assert imp == "| imp | 1.00 (1.00 to 1.00) | 0.50 (0.50 to 0.50) | 2 |"
    assert random == "| random | - | 0.25 (0.25 to 0.25) | 2 |"
