import math
from typing import Any

import pytest

from swamp.errors import SwampError
from swamp.training import Training


def plain(**options: Any) -> Training:
    return Training(**{"lr": 1.0, "swa_fraction": 0.0, "swa": False, "epochs": 4, **options})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5))]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("step", [1, 1, 0.1, 0.01]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_rates_of_each_schedule(schedule: Any, expected: list[float]):
    training = plain(schedule=schedule)
    assert [training.rate(step, 2) for step in range(0, 8, 2)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("cosine", [1, 0.625, 0.25]), ("linear", [1, 0.625, 0.25]), ("step", [1, 0.25]), ("constant", [1, 1])],
)
def test_decay_ends_at_the_constant_rate_of_the_tail(schedule: Any, middle: list[float]):
    training = plain(schedule=schedule, swa_fraction=0.5, swa_lr=0.25)
    assert training.swa_epochs == 2
    # Two epochs of 4 steps decay, then two of the tail: the decay is half done at step 4.
    assert training.rate(0, 4) == middle[0]
    assert training.rate(4, 4) == pytest.approx(middle[1])
    assert [training.rate(step, 4) for step in range(8, 16)] == [0.25] * 8


def test_warm_up_rises_by_equal_steps_to_the_peak():
    training = plain(warmup=1.5, schedule="linear")
    rates = [training.rate(step, 2) for step in range(8)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[4:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_warm_up_ends_where_the_tail_begins():
    training = plain(warmup=4.0, swa_fraction=0.5, swa_lr=0.5)
    assert [training.rate(step, 1) for step in range(4)] == [0.5, 1.0, 0.5, 0.5]


def test_a_tail_of_all_epochs_has_a_constant_rate():
    assert {plain(swa_fraction=1.0, swa_lr=0.5).rate(step, 3) for step in range(12)} == {0.5}


@pytest.mark.parametrize(("tail", "epochs", "expected"), [(0.25, 20, 5), (0.25, 1, 1), (0, 9, 0), (1, 7, 7)])
def test_tail_is_whole_epochs_and_at_least_one(tail: float, epochs: int, expected: int):
    assert plain(swa_fraction=tail, epochs=epochs).swa_epochs == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0, "nesterov": True}, "momentum must be above 0"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"warmup": 5.0}, "warmup must be between 0 and epochs"),
        ({"swa_fraction": 1.5}, "swa_fraction"),
        ({"swa_lr": 0.0}, "swa_lr"),
        ({"ema": 1.0}, "ema must be in [0, 1), got 1.0"),
        ({"lawa": -1}, "lawa must be 0 or more"),
        ({"lawa": 2, "ema": 0.9}, "lawa must be 0 with ema (each is an average), got 2"),
        ({"sam": -0.1}, "sam"),
        ({"penalty": -1.0}, "penalty"),
        ({"clip": -1.0}, "clip"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean cosine?"),
        ({"sharpness": "ssam"}, "unknown sharpness 'ssam'"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"lr_after_rewind": "rewind"}, "unknown lr_after_rewind"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any], message: str):
    with pytest.raises(SwampError) as error:
        plain(**options)
    assert message in str(error.value)
