"""Pace: steps of a whole run, its rate, and the time that is left."""

import math
from collections.abc import Sequence

_HALF_LIFE = 15.0
"""Seconds of training after which a measurement counts half: the rate follows a machine whose load changes."""
_FIRST_STEPS = 10
"""Steps to measure before a rate is given."""


class Pace:
    """Estimates the time left of a run: remaining steps at the measured rate, and the work between trainings.

    Only what this session measured counts: finished cycles that are read from disk take no time. Before the first
    evaluation is measured, its estimated cost in training steps is used.

    Args:
        cycles: Training steps of each cycle, over all its particles; empty: unknown.
        ticket: Steps of the ticket's training.
        evaluation: Estimated cost of the evaluation of one cycle, in training steps.
    """

    def __init__(self, cycles: Sequence[int] = (), ticket: int = 0, evaluation: float = 0.0) -> None:
        self.cycles, self.ticket, self.evaluation = tuple(cycles), ticket, evaluation
        self.finished_cycles = 0
        self._reached: dict[bool, dict[int, tuple[int, int]]] = {True: {}, False: {}}
        """Step that each particle has reached, and its last one: of the ticket (True), and of the present cycle."""
        self._trunk = 0
        """Steps that all particles of the present cycle share."""
        self._rates = {True: _Rate(), False: _Rate()}
        self._of_ticket: bool = True
        self._training = self._once = self._worked = False
        self._at: float | None = None
        """Time of the last report; None before the first."""
        self._between, self._measured = 0.0, list[float]()

    def step(self, cycle: int | None, index: int, step: int, last: int, now: float, trunk: int = 0) -> None:
        """Particle `index` of a cycle (None: the ticket) has taken `step` of `last` steps at time `now`.

        trunk: Of these, steps that all particles share; the first particle stands for their training.
        """
        ticket = cycle is None
        reached, rate = self._reached[ticket], self._rates[ticket]
        before, _ = reached.get(index, (step - 1, last))
        if self._training and ticket == self._of_ticket and self._at is not None:
            # Not every step of a particle of another rank is reported. A training that diverged starts again.
            rate.add(step - before if step > before else 1, now - self._at)
        else:
            # The step itself is no work between trainings.
            self._advance(now - rate.seconds_a_step if rate.known else now)
        self._training, self._of_ticket, self._at = True, ticket, now
        self._worked = True
        reached[index], self._trunk = (step, last), trunk

    def stage(self, now: float, *, once: bool = False) -> None:
        """Other work begins. once: it is not repeated in every cycle."""
        self._advance(now)
        self._training, self._once, self._worked = False, once, True

    def finished(self, now: float) -> None:
        """A cycle is finished, in this session or an earlier one."""
        self._advance(now)
        if self._worked and self._between:  # else it was read from disk
            self._measured.append(self._between)
        self.finished_cycles += 1
        self._training = self._once = self._worked = False
        self._between = 0.0
        self._reached[False] = {}

    def restart(self) -> None:
        """Other particles of the same cycle are trained."""
        self._reached[False] = {}

    def _advance(self, now: float) -> None:
        """Add the time since the last report to the work between trainings, if it was that."""
        if self._at is not None and not self._training and not self._once:
            self._between += max(0.0, now - self._at)
        self._at = now

    @property
    def active(self) -> list[int]:
        """Particles in training, or the last one."""
        reached = self._reached[self._of_ticket]
        return sorted(index for index, (step, last) in reached.items() if step < last) or [*reached][-1:]

    @property
    def stage_steps(self) -> int:
        """Steps of the particles of the present cycle, or of the ticket."""
        return self._steps(self._of_ticket)

    @property
    def trainings(self) -> float:
        """Trainings of the present cycle, or of the ticket, that are done, with the fractions of unfinished ones."""
        reached = self._reached[self._of_ticket]
        shared = 0 if self._of_ticket else self._trunk
        own = sum(max(0, step - shared) / (last - shared) for step, last in reached.values())
        return min(reached) + own if reached else 0.0

    def share(self, count: int) -> float:
        """Fraction of the trainings of the present cycle's `count` particles that is done, their trunk included."""
        reached = self._reached[False]
        if not self._trunk or not reached:
            return self.trainings / count
        _, last = next(iter(reached.values()))
        return self._steps(False) / (self._trunk + count * (last - self._trunk))

    def _steps(self, ticket: bool) -> int:
        # No step is reported of particles that finished before a resume: lower indices count as done.
        reached = self._reached[ticket]
        if not reached:
            return 0
        first, shared = min(reached), 0 if ticket else self._trunk
        # The steps of a trunk count once.
        trunk = min(max(step for step, _ in reached.values()), shared)
        own = sum(max(0, step - shared) for step, _ in reached.values())
        return trunk + first * (reached[first][1] - shared) + own

    @property
    def total(self) -> int:
        """Steps of the whole run; 0: unknown."""
        return sum(self.cycles) + self.ticket if self.cycles else 0

    @property
    def done(self) -> int:
        """Steps of the whole run so far."""
        of_ticket = self._steps(True)
        if self.finished_cycles or (self._reached[False] and not of_ticket):
            of_ticket = self.ticket
        return of_ticket + sum(self.cycles[: self.finished_cycles]) + self._steps(False)

    @property
    def rate(self) -> float:
        """Steps per second of the present training, over its particles; 0: not known yet."""
        of_stage = self._rates[self._of_ticket]
        return 1 / of_stage.seconds_a_step if of_stage.known else 0.0

    def seconds_left(self, now: float) -> float:
        """Estimated seconds from `now` until the run is finished; NaN: not known yet."""
        of_cycles, of_ticket = self._rates[False], self._rates[True]
        known = of_cycles if of_cycles.known else of_ticket
        if not self.total or not known.known:
            return math.nan
        each = known.seconds_a_step
        between = sum(self._measured) / len(self._measured) if self._measured else self.evaluation * each
        steps = max(0, self.total - self.done) * each
        others = (len(self.cycles) - self.finished_cycles) * between
        since = 0.0 if self._at is None else now - self._at
        if self._training:
            return max(0.0, steps - min(since, each)) + others
        spent = self._between + (0.0 if self._once else since)
        return steps + max(0.0, others - min(spent, between))

    def left(self, now: float) -> str:
        """The estimate as text, e.g. 'about 2 min 10 s left'; empty if it is not known yet."""
        seconds = self.seconds_left(now)
        return "" if math.isnan(seconds) else f"about {duration(seconds)} left"


class _Rate:
    """Seconds of a step; older measurements count less."""

    def __init__(self) -> None:
        self.counted, self.steps, self.seconds = 0, 0.0, 0.0

    def add(self, steps: int, seconds: float) -> None:
        kept = 0.5 ** (seconds / _HALF_LIFE)
        self.counted += steps
        self.steps, self.seconds = self.steps * kept + steps, self.seconds * kept + seconds

    @property
    def known(self) -> bool:
        return self.counted >= _FIRST_STEPS and self.seconds > 0

    @property
    def seconds_a_step(self) -> float:
        return self.seconds / self.steps


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. '2 h 05 min', '1 min 10 s' or '8 s'."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
