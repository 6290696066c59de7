"""Schedules run through several times, and tails of several decays, in rates worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

from swamp.errors import SwampError
from swamp.training import Seed, Training
from swamp.training.average import copied, mean
from swamp.training.loop import fit

HALF = math.sqrt(0.5)


def plain(**options: Any) -> Training:
    return Training(**{"lr": 1.0, "swa_fraction": 0.0, "swa": False, "epochs": 4, **options})


def rates(training: Training, steps_per_epoch: int) -> list[float]:
    return [training.rate(step, steps_per_epoch) for step in range(training.epochs * steps_per_epoch)]


def test_a_repeated_schedule_runs_through_warm_up_and_decay_each_time():
    once = [0.5, 1, 1, 0.75, 0.5, 0.25]
    training = plain(schedule_repeats=2, epochs=6, warmup=1, schedule="linear")
    assert rates(training, 2) == pytest.approx(2 * once)
    assert rates(replace(training, schedule_repeats=1, epochs=3), 2) == pytest.approx(once)


def test_each_repeat_ends_at_the_rate_of_the_tail_which_comes_once():
    training = plain(schedule_repeats=2, epochs=5, swa_fraction=0.2, swa_lr=0.2, schedule="linear")
    assert rates(training, 2) == pytest.approx([1, 0.8, 0.6, 0.4] * 2 + [0.2] * 2)


def test_the_warm_up_of_a_repeat_is_no_longer_than_the_repeat():
    assert rates(plain(schedule_repeats=2, warmup=4.0), 1) == [0.5, 1, 0.5, 1]


def test_a_cyclic_tail_decays_by_a_cosine_towards_zero_in_each_cycle():
    training = plain(epochs=6, swa_fraction=4 / 6, swa_lr=0.5, swa_cycles=2, schedule="constant")
    cycle = [0.5, 0.25 * (1 + HALF), 0.25, 0.25 * (1 - HALF)]
    assert rates(training, 2) == pytest.approx([1] * 4 + 2 * cycle, abs=1e-15)
    assert rates(replace(training, swa_cycles=1), 2)[8] == pytest.approx(0.25)


@pytest.mark.parametrize(("cycles", "expected"), [(0, [9, 12, 15, 18]), (4, [9, 12, 15, 18]), (2, [12, 18]), (1, [18])])
def test_a_sample_is_taken_where_an_epoch_or_a_cycle_of_the_tail_ends(cycles: int, expected: list[int]):
    training = plain(epochs=6, swa_fraction=4 / 6, swa_cycles=cycles, swa=True)
    assert [step for step in range(1, 19) if training.samples_at(step, 3)] == expected
    assert not any(replace(training, swa=False).samples_at(step, 3) for step in range(19))
    assert not any(replace(training, swa_fraction=0.0).samples_at(step, 3) for step in range(19))


def test_what_comes_out_is_the_mean_over_the_ends_of_the_cycles(small_task, small_net, same):
    training = plain(epochs=6, batch_size=6, lr=0.1, swa_fraction=4 / 6, swa_cycles=2, swa=True)
    model, states = small_net(rich=True), []
    trained = fit(model, small_task, training, Seed(0), on_step=lambda *_: states.append(copied(model.state_dict())))
    assert trained.averaged == 2
    assert same(trained.weights, mean([states[11], states[17]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule_repeats": 0}, "schedule_repeats must be 1 or more, got 0."),
        ({"swa_cycles": -1}, "swa_cycles must be 0 or more, got -1."),
        (
            {"epochs": 20, "swa_fraction": 0.25, "schedule_repeats": 4},
            "schedule_repeats must divide the 15 epochs before the tail of 5, got 4. These fit: 1, 3, 5, 15.",
        ),
        (
            {"epochs": 12, "swa_fraction": 0.5, "swa_cycles": 7},
            "swa_cycles must divide the 6 epochs of the tail, got 7. These fit: 1, 2, 3, 6.",
        ),
    ],
)
def test_cycles_that_are_no_whole_epochs_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(SwampError) as error:
        plain(**options)
    assert str(error.value) == message


def test_a_method_without_a_tail_ignores_swa_cycles():
    training = plain(epochs=12, swa_fraction=0.5, swa_cycles=3, schedule_repeats=2)
    assert rates(replace(training, swa_fraction=0.0), 1) == rates(plain(epochs=12, schedule_repeats=2), 1)


def test_the_ticket_is_trained_without_what_belongs_to_the_cycles():
    training = plain(
        epochs=12, swa_fraction=0.25, schedule_repeats=9, swa=True, lawa=2, sam=0.1, swa_cycles=3, warmup=1
    )
    assert rates(training.plain(), 3) == rates(plain(epochs=12, warmup=1), 3)
    assert (training.plain().sam, training.plain().swa, training.plain().lawa) == (0, False, 0)
    assert replace(training, lawa=0, ema=0.9).plain().ema == 0


@pytest.mark.parametrize(
    ("options", "per_epoch", "expected"),
    [
        ({"epochs": 4}, 6, [21, 24]),
        ({"epochs": 4}, 7, [24, 28]),
        ({"epochs": 1, "swa_fraction": 1.0}, 2, [1, 2]),
        ({"epochs": 8}, 6, [42, 48]),
        ({"epochs": 4, "swa_fraction": 0.75}, 2, [4, 6, 8]),
    ],
)
def test_an_average_has_two_samples_or_more(options, per_epoch, expected):
    training = Training(**options)
    steps = range(1, training.epochs * per_epoch + 1)
    assert [step for step in steps if training.samples_at(step, per_epoch)] == expected
    training.require_average(per_epoch)


@pytest.mark.parametrize(
    ("options", "per_epoch", "expected"),
    [
        ({"lawa": 3}, 6, [12, 18, 24]),
        ({"lawa": 9}, 6, [6, 12, 18, 24]),
        ({"lawa": 1}, 6, [21, 24]),
        ({"lawa": 3, "swa": True}, 6, [21, 24]),
        ({"lawa": 3, "swa_cycles": 1}, 6, [12, 18, 24]),
    ],
)
def test_latest_weights_are_sampled_at_the_ends_of_the_last_epochs_at_the_rates_without_them(
    options, per_epoch, expected
):
    training = Training(**{"epochs": 4, "swa": False, **options})
    assert [step for step in range(1, 25) if training.samples_at(step, per_epoch)] == expected
    training.require_average(per_epoch)
    assert rates(training, per_epoch) == rates(replace(training, lawa=0), per_epoch)


def test_latest_weights_of_one_sample_are_refused_before_training():
    with pytest.raises(SwampError, match=r"LAWA would average 1 sample: the last 1 of 4 epochs have 1 steps"):
        Training(epochs=4, swa=False, lawa=1).require_average(1)


@pytest.mark.parametrize(("options", "per_epoch"), [({"epochs": 4}, 1), ({"epochs": 8, "swa_cycles": 1}, 5)])
def test_an_average_of_one_sample_is_refused_before_training(options, per_epoch):
    training = Training(**options)
    with pytest.raises(SwampError, match=r"SWA would average 1 sample.*two samples or more") as found:
        training.require_average(per_epoch)
    assert "batch_size lower" in str(found.value)
    assert ("swa_cycles to 0" in str(found.value)) == ("swa_cycles" in options)
    replace(training, swa=False).require_average(per_epoch)


@pytest.mark.parametrize("per_epoch", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"swa_fraction": 0.2},
        {"swa_fraction": 0.5},
        {"swa_fraction": 1.0, "swa_cycles": 5},
        {"swa_fraction": 0.8, "swa_cycles": 1},
        {"swa": False, "lawa": 1},
        {"swa": False, "lawa": 3},
        {"swa": False},
    ],
)
def test_too_few_samples_are_counted_as_they_are_taken(options, per_epoch):
    training = Training(epochs=5, **options)
    samples = sum(training.samples_at(step, per_epoch) for step in range(1, 5 * per_epoch + 1))
    if samples >= 2 or not (training.swa or training.lawa):
        training.require_average(per_epoch)
    else:
        with pytest.raises(SwampError, match=f"would average {samples} sample:"):
            training.require_average(per_epoch)


def test_a_training_of_any_length_is_checked_at_once():
    Training(epochs=2**31 - 1, swa_fraction=0.5).require_average(2**20)
