"""Instability: the barrier between two copies as a function of the step they part at."""

from collections.abc import Sequence

from swamp.analysis import Trial
from swamp.report.picture import Axis, Curve, Panel, Picture

_EARLIEST = 0.5
"""Where step 0 stands on a logarithmic axis."""


def against_steps(trials: Sequence[Trial], per_epoch: int, threshold: float) -> Picture:
    """The trials of a search by step, those that confirm it as marks of their own, and the threshold."""
    found = sorted(trials, key=lambda trial: trial.steps)

    def curve(name: str, repeats: bool) -> Curve:
        chosen = [trial for trial in found if bool(trial.repeat) is repeats]
        x = tuple(float(trial.steps) or _EARLIEST for trial in chosen)
        y = tuple(100 * trial.barrier if trial.barrier == trial.barrier else None for trial in chosen)
        notes = tuple(f"{trial.steps} ({trial.steps / per_epoch:.3g} epochs)" for trial in chosen)
        return Curve(name, x, y, int(repeats), "marks" if repeats else "line", notes=notes)

    ends = tuple(float(trial.steps) or _EARLIEST for trial in (found[0], found[-1]))
    line = Curve("threshold", ends, (100 * threshold,) * 2, None, "dotted")
    marks = [line, curve("two copies", False), curve("again, other batch orders", True)]
    steps = Axis("step of the ticket (0 at the left)", log=True)
    panel = Panel("", steps, Axis("error barrier (points)"), tuple(mark for mark in marks if mark.x))
    return Picture(
        "From which step on copies end in one basin",
        "Two networks trained from the same ticket with other batch orders: where the barrier between them stays below "
        "the threshold, particles may be averaged.",
        (panel,),
    )
