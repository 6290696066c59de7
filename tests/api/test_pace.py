"""The time left of a whole run, on clocks whose every second is known."""

import math
from itertools import pairwise

import pytest

from swamp.api.pace import Pace, duration


class Clock:
    """A run with 0.1 s a step of the ticket, 0.2 s a step of a particle and 5 s an evaluation."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.now = pace, 1000.0

    def train(self, cycle: int | None, steps: range, *, last: int, seconds: float, count: int = 1) -> None:
        for step in steps:
            self.now += seconds
            for index in range(count):
                self.pace.step(cycle, index, step, last, self.now)

    def evaluate(self, seconds: float = 5.0) -> None:
        self.pace.stage(self.now)
        self.now += seconds
        self.pace.finished(self.now)

    @property
    def left(self) -> float:
        return self.pace.seconds_left(self.now)


def test_the_time_left_covers_all_later_cycles_and_their_evaluations():
    clock = Clock(Pace(cycles=(100, 100, 100, 100)))
    for cycle in (0, 1):
        clock.train(cycle, range(1, 101), last=100, seconds=0.2)
        clock.evaluate()
    clock.train(2, range(1, 51), last=100, seconds=0.2)
    # 50 steps of this cycle and 100 of the next at 0.2 s, and two evaluations of 5 s.
    assert clock.left == pytest.approx(150 * 0.2 + 2 * 5)
    assert clock.pace.rate == pytest.approx(5)
    assert (clock.pace.done, clock.pace.total) == (250, 400)


def test_it_falls_second_by_second_during_an_evaluation():
    clock = Clock(Pace(cycles=(100, 100)))
    clock.train(0, range(1, 101), last=100, seconds=0.2)
    clock.evaluate()
    clock.train(1, range(1, 101), last=100, seconds=0.2)
    clock.pace.stage(clock.now)
    seconds = [clock.pace.seconds_left(clock.now + waited) for waited in (0, 2, 5, 9)]
    assert seconds == pytest.approx([5, 3, 0, 0])


def test_until_an_evaluation_is_measured_its_estimated_steps_count():
    clock = Clock(Pace(cycles=(100, 100), evaluation=30))
    clock.train(0, range(1, 51), last=100, seconds=0.2)
    assert clock.left == pytest.approx((150 + 2 * 30) * 0.2)


def test_the_estimate_is_right_within_a_tenth_through_the_whole_run_and_hardly_rises():
    pace = Pace(cycles=(200,) * 5, ticket=40, evaluation=25)
    clock, found = Clock(pace), list[tuple[float, float]]()
    clock.train(None, range(1, 41), last=40, seconds=0.2)
    for cycle in range(5):
        for begin in range(1, 101, 10):
            clock.train(cycle, range(begin, begin + 10), last=100, seconds=0.3, count=2)
            found.append((clock.now, clock.left))
        clock.evaluate()
    for now, left in found[2:]:
        assert left == pytest.approx(clock.now - now, rel=0.1)
    assert all(later < earlier + 2 for (_, earlier), (_, later) in pairwise(found[2:]))


def test_cycles_of_an_earlier_session_count_as_done_and_not_in_the_rate():
    clock = Clock(Pace(cycles=(400, 400, 200), ticket=50))
    for _ in range(2):
        clock.now += 0.01  # read from disk
        clock.pace.finished(clock.now)
    clock.train(2, range(101, 151), last=200, seconds=0.2)
    assert clock.pace.done == 50 + 800 + 150
    assert clock.pace.rate == pytest.approx(5)
    assert clock.left == pytest.approx(50 * 0.2)


def test_particles_that_an_earlier_session_finished_count_as_done():
    pace = Pace(cycles=(300,), ticket=20)
    pace.step(0, 2, 41, 100, now=1.0)
    assert pace.done == 20 + 200 + 41


def test_timing_and_compiling_count_neither_as_training_nor_as_evaluation():
    clock = Clock(Pace(cycles=(100, 100)))
    clock.pace.stage(clock.now, once=True)
    clock.now += 60
    clock.train(0, range(1, 101), last=100, seconds=0.2)
    clock.evaluate()
    assert clock.left == pytest.approx(100 * 0.2 + 5)


def test_the_ticket_does_not_bias_the_rate_of_the_particles():
    clock = Clock(Pace(cycles=(100,), ticket=100))
    clock.train(None, range(1, 101), last=100, seconds=2.0)
    clock.train(0, range(1, 51), last=100, seconds=0.2)
    assert clock.left == pytest.approx(50 * 0.2)


def test_the_rate_follows_a_machine_that_becomes_slower():
    clock = Clock(Pace(cycles=(10_000,)))
    clock.train(0, range(1, 1001), last=10_000, seconds=0.1)
    clock.train(0, range(1001, 1101), last=10_000, seconds=1.0)
    assert clock.pace.rate == pytest.approx(1.0, rel=0.15)


def test_a_training_that_starts_again_is_done_again():
    clock = Clock(Pace(cycles=(100,)))
    clock.train(0, range(1, 81), last=100, seconds=0.2)
    clock.train(0, range(1, 21), last=100, seconds=0.2)
    assert clock.pace.done == 20
    assert clock.left == pytest.approx(80 * 0.2)


def test_nothing_is_estimated_from_the_first_steps_or_without_a_plan():
    clock = Clock(Pace(cycles=(100,)))
    clock.train(0, range(1, 6), last=100, seconds=0.2)
    assert math.isnan(clock.left)
    assert clock.pace.left(clock.now) == ""
    assert math.isnan(Clock(Pace()).left)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (70, "1 min 10 s"), (3600 * 2 + 330, "2 h 05 min")]
)
def test_durations_are_written_with_their_units(seconds, text):
    assert duration(seconds) == text


def test_trainings_of_different_lengths_are_counted_by_their_fractions():
    pace = Pace((150,))
    pace.step(0, 0, 50, 50, 1.0)
    pace.step(0, 1, 25, 100, 2.0)
    assert pace.trainings == pytest.approx(1.25)
    assert (pace.stage_steps, pace.active) == (75, [1])
