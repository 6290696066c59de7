"""Pace: steps of a whole run, its rate, and the time that is left."""

import math

from swamp.algorithms.cycle import Cycle


class Pace:
    """Counts the steps of a run, in this session and in earlier ones.

    Args:
        total: Steps of the whole run; 0: unknown.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.session = 0
        """Steps seen in this session."""
        self._before = 0
        self._open = 0
        self._stage: tuple[int | None, int] = (None, 0)
        self._reached: dict[int, int] = {}
        self._last = 0
        self._began: float | None = None
        self._skipped = 0
        self.seconds = 0.0
        """Seconds since the first step of this session."""

    def step(self, cycle: int | None, index: int, count: int, step: int, last: int, now: float) -> None:
        """Particle `index` of `count` of a cycle (None: the ticket) has taken `step` of `last` steps at time `now`."""
        if (cycle, count) != self._stage:
            self._open += self.stage_steps
            self._stage, self._reached = (cycle, count), {}
        # Not every step of a particle of another rank is reported.
        self.session += step - self._reached.get(index, step - 1)
        self._reached[index], self._last = step, last
        if self._began is None:
            self._began, self._skipped = now, self.session
        self.seconds = now - self._began

    def finished(self, cycle: Cycle) -> None:
        """A cycle is finished, in this session or an earlier one."""
        self._before += cycle.cost.steps
        self._open, self._stage, self._reached = 0, (None, 0), {}

    @property
    def stage_steps(self) -> int:
        """Steps of the particles of the present cycle, or of the ticket."""
        # No step is reported of particles that finished before a resume: lower indices count as done.
        return min(self._reached) * self._last + sum(self._reached.values()) if self._reached else 0

    @property
    def done(self) -> int:
        """Steps of the whole run so far."""
        return self._before + self._open + self.stage_steps

    @property
    def rate(self) -> float:
        """Steps per second of this session, evaluation and pruning included; 0: not known yet."""
        return (self.session - self._skipped) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the run is finished; NaN: not known yet."""
        return max(0, self.total - self.done) / self.rate if self.total and self.rate else math.nan

    @property
    def left(self) -> str:
        """The estimate as text, e.g. 'about 2 min 10 s left'; empty if it is not known yet."""
        seconds = self.seconds_left
        return "" if math.isnan(seconds) else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. '2 h 05 min', '1 min 10 s' or '8 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
