"""Learning rate schedules for retraining after pruning (Zimmer et al. 2023, "How I Learned to Stop Worrying")."""

from dataclasses import replace
from typing import Literal

from swamp.training.options import Training

Retraining = Literal["slr", "lrw", "ft", "clr", "llr", "allr"]
"""slr: the whole schedule, scaled to the number of epochs. lrw: the last epochs of the schedule. ft: its rate at the
start of its last epoch, constant. clr: 10 % warm-up, then one cosine. llr: linear from the peak to 0. allr: as llr,
with a peak that depends on the change of the norm and the number of epochs."""
WITHOUT_TAIL: tuple[Retraining, ...] = ("ft", "clr", "llr", "allr")
"""Schedules that have no part at a constant rate, over which SWA could average."""


def retraining(training: Training, how: Retraining, epochs: int, change: float) -> tuple[Training, int]:
    """Training options for retraining a pruned network for `epochs` epochs.

    Args:
        training: Options of the dense training.
        how: Schedule.
        epochs: Epochs of retraining.
        change: See `norm_change`; allr multiplies the peak by max(change, epochs / training.epochs), at most 1.

    Returns:
        The options, and the epoch at which this training starts (above 0 for lrw only).
    """
    short = replace(training, epochs=epochs, warmup=0.0, swa_fraction=0.0, schedule_repeats=1)
    match how:
        case "slr":
            return replace(training, epochs=epochs, warmup=training.warmup * epochs / training.epochs), 0
        case "lrw":
            return training, training.epochs - epochs
        case "ft":
            return replace(short, schedule="constant", lr=training.rate(training.epochs - 1, 1)), 0
        case "clr":
            return replace(short, schedule="cosine", warmup=0.1 * epochs), 0
        case "llr":
            return replace(short, schedule="linear"), 0
        case "allr":
            lower = min(1.0, max(change, epochs / training.epochs))
            return replace(short, schedule="linear", lr=training.lr * lower), 0


def norm_change(before: float, removed: float, share: float) -> float:
    """|W - W'| / (|W| sqrt(s)): norm of the removed weights relative to the norm before, s = fraction removed."""
    return removed / (before * share**0.5) if before and share else 0.0
