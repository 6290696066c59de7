"""Learning rates of a network that was pruned and trains on (Zimmer et al. 2023, "How I learned to stop worrying")."""

from dataclasses import replace
from typing import Literal

from swamp.training.options import Training

Retraining = Literal["slr", "lrw", "ft", "clr", "llr", "allr"]
"""slr: the whole schedule again, scaled to the epochs there are. lrw: its last epochs again. ft: its last rate only.
clr: one cosine after a tenth of warm-up. llr: linearly from the peak to 0. allr: the same from a peak as much lower as
the pruning was mild or the epochs are few."""


def retraining(training: Training, how: Retraining, epochs: int, change: float) -> tuple[Training, int]:
    """How a pruned network trains on for `epochs`, and the epoch of that training it starts at (above 0 for lrw).

    change: see `norm_change`; allr multiplies the peak by max(change, epochs / training.epochs), at most 1.
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
    """|W - W'| / (|W| sqrt(s)): the norm of the `removed` weights over that `before`, s the share that was removed."""
    return removed / (before * share**0.5) if before and share else 0.0
