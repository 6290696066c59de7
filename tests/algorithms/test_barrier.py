"""The barrier, by hand on numbers and by design on networks."""

import math
import sys

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms.evaluate import barrier
from swamp.training import Training
from swamp.training.average import interpolate


def test_barriers_of_a_known_error_are_exact():
    # Error 4 w^2 (1 - w^2) on the line from -1 to 1: zero at both ends and in the middle, 0.75 at +-0.5.
    found = barrier([0.0, 0.0], 0.75, [0.75, 0.0, 0.75])
    assert found.pair == pytest.approx(0.75)
    assert found.mean == pytest.approx(0.75)


def test_a_barrier_counts_from_the_mean_of_the_ends_and_an_end_may_be_the_worst():
    found = barrier([0.0, 1.0], 0.5, [k / 10 for k in range(1, 10)])
    assert found.pair == pytest.approx(0.5)
    assert found.mean == pytest.approx(0.0)


def test_only_the_first_two_particles_are_ends_and_all_count_for_the_mean():
    found = barrier([0.1, 0.3, 0.8], 0.5, [0.2])
    assert found.pair == pytest.approx(0.1)
    assert found.mean == pytest.approx(0.1)


def test_only_a_barrier_above_the_threshold_warns_and_the_number_is_said():
    assert swamp.algorithms.Barrier(0.01, 0.02).warning(3, 0.5, 0.02) is None
    assert "2.5 points" in (swamp.algorithms.Barrier(0.025, -0.01).warning(0, 0.0, 0.02) or "")
    text = swamp.algorithms.Barrier(0.01, 0.034).warning(3, 0.5, 0.02)
    assert "cycle 3" in text
    assert "3.4 points" in text
    assert "ticket_epochs" in text


@pytest.mark.parametrize(
    ("ends", "average", "inner"), [([0.1, 0.1], 0.1, [0.2, math.nan]), ([0.1, 0.1], math.nan, [0.2])]
)
def test_an_error_that_is_not_a_number_makes_the_barrier_unknown_and_warns(ends, average, inner):
    found = barrier(ends, average, inner)
    assert found.above(0.02)
    assert "is unknown: the error of a particle" in (found.warning(0, 0.5, 0.02) or "")


def test_an_unstable_ticket_is_warned_of_and_recorded(mlp, task):
    # No ticket training, large steps: the particles end in different basins.
    training = Training(epochs=6, batch_size=16, lr=0.5, swa_fraction=0.5)
    plan = swamp.Plan(sparsity=0.0, particles=(2,), ticket_epochs=0, barrier_threshold=0.0, seed=3)
    with pytest.warns(UserWarning, match=r"cycle 0 .* barrier between particles is"):
        (cycle,) = swamp.cycles(mlp, task, plan, training)
    assert cycle.barrier.above(0.0)
    assert "ticket is not stable" in cycle.warnings[0]


def test_the_barrier_can_be_switched_off_and_one_particle_has_none(mlp, task):
    training = Training(epochs=2, batch_size=16, swa_fraction=0.5)
    (off,) = swamp.cycles(mlp, task, swamp.Plan(sparsity=0.0, particles=(2,), barrier_points=0), training)
    (one,) = swamp.cycles(mlp, task, swamp.Plan(sparsity=0.0, particles=(1,)), training)
    assert off.barrier is None
    assert one.barrier is None


def test_points_between_batch_normalised_particles_get_statistics_of_their_own(task):
    # With either particle's statistics the middle is at chance; with its own it is as good as the ends.
    torch.manual_seed(0)
    loaded = []

    class Recording(nn.BatchNorm1d):
        def reset_running_stats(self):
            loaded.append("reset")
            super().reset_running_stats()

    model = nn.Sequential(nn.Linear(6, 8), Recording(8), nn.ReLU(), nn.Linear(8, 3))
    loaded.clear()
    plan = swamp.Plan(sparsity=0.0, particles=(2,), barrier_points=5, barrier_threshold=1.0)
    list(swamp.cycles(model, task, plan, Training(epochs=2, batch_size=16, swa_fraction=0, swa=False)))
    # Last iterates are recorded with their own: 2 ends + 5 inner points + the mean.
    assert loaded.count("reset") == 8
    loaded.clear()
    list(swamp.cycles(model, task, plan, Training(epochs=4, batch_size=16, swa_fraction=0.5)))
    # Running means need theirs for the record already: these are the ends.
    assert loaded.count("reset") == 8


def test_the_points_between_two_particles_are_evenly_spaced(task, mlp, monkeypatch):
    shares = []

    def recorded(a, b, share):
        shares.append(share)
        return interpolate(a, b, share)

    monkeypatch.setattr(sys.modules["swamp.algorithms.evaluate"], "interpolate", recorded)
    plan = swamp.Plan(sparsity=0.0, particles=(3,), barrier_points=4, barrier_threshold=1.0)
    list(swamp.cycles(mlp, task, plan, Training(epochs=2, batch_size=16, swa_fraction=0, swa=False)))
    assert sorted(shares) == pytest.approx([0.2, 0.4, 0.6, 0.8])
