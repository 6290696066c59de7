"""Training: how one model is trained, the learning rate of every step, and which weights are averaged."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from swamp.errors import SwampError
from swamp.fields import check_fields, html_table, short_repr

RateShape = Literal["cosine", "linear", "step", "constant"]
AfterRewind = Literal["restart", "advance"]
Precision = Literal["float32", "bfloat16"]
Sharpness = Literal["sam", "asam", "s2-sam"]


@dataclass(frozen=True)
class Training:
    """How one particle is trained. Everything is per cycle; optimizer state always starts fresh."""

    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step."""
    grad_accum_steps: int = 1
    """Parts in which the examples of a step are computed, one after the other: the same step in less memory."""
    optimizer: str = "sgd"
    """sgd, adamw, or the name of any class in torch.optim."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """L2 penalty of sgd, decoupled decay of adamw; on all parameters."""
    schedule: RateShape = "cosine"
    """Shape of the decay after the warm-up; `step` divides by 10 after 1/2 and 3/4 of it, not below the tail's rate."""
    warmup: float = 0.0
    """Epochs of linear warm-up from 0."""
    schedule_repeats: int = 1
    """The schedule before the tail, warm-up included, is run through so many times (Gadhikar et al. 2024)."""
    lr_after_rewind: AfterRewind = "restart"
    """Whether a rewound model starts its schedule anew, or goes on from the ticket's step (and so trains less)."""
    swa_fraction: float = 0.25
    """Share of the epochs at the end that run at the rate `swa_lr` (0: none, the schedule decays to 0)."""
    swa_lr: float = 0.5
    """Learning rate of the tail, as a share of `lr`."""
    swa_cycles: int = 0
    """The tail is so many cosine decays from `swa_lr` towards 0, each ending in a sample (Yin 2022); 0: constant."""
    swa: bool = True
    """Average the weights at the end of every epoch or cycle of the tail (stochastic weight averaging), where the
    method does."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights over all steps, taken where `swa` is not (0: off)."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation (0: off)."""
    sharpness: Sharpness = "sam"
    """Its kind: sam, asam (scaled by the weights), s2-sam (along the gradient of the step before, at no extra cost)."""
    clip: float = 0.0
    """Largest norm of the gradient over surviving weights (0: no clipping)."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    precision: Precision = "float32"
    """bfloat16 runs forward passes of training under autocast; weights stay float32, and on CPU short attention."""
    reset_batchnorm: bool = False
    """Reset running statistics at every rewind instead of rewinding them too."""

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = [
            (self.epochs < 1, "epochs", "1 or more"),
            (self.batch_size < 1, "batch_size", "1 or more"),
            (not 1 <= self.grad_accum_steps <= self.batch_size, "grad_accum_steps", "from 1 to batch_size"),
            (self.lr <= 0, "lr", "above 0"),
            (not 0 <= self.momentum < 1, "momentum", "in [0, 1)"),
            (self.nesterov and not self.momentum, "momentum", "above 0 for Nesterov's form of it"),
            (self.weight_decay < 0, "weight_decay", "0 or more"),
            (not 0 <= self.warmup <= self.epochs, "warmup", "between 0 and epochs"),
            (self.schedule_repeats < 1, "schedule_repeats", "1 or more"),
            (not 0 <= self.swa_fraction <= 1, "swa_fraction", "in [0, 1]"),
            (not 0 < self.swa_lr <= 1, "swa_lr", "in (0, 1]: a share of lr"),
            (self.swa_cycles < 0, "swa_cycles", "0 or more"),
            (not 0 <= self.ema < 1, "ema", "in [0, 1)"),
            (self.sam < 0, "sam", "0 or more"),
            (self.clip < 0, "clip", "0 or more"),
            (not 0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")

        # All tail is no schedule, and no tail has no cycles: methods without one leave the options as they are.
        self._must_divide("schedule_repeats", self.epochs - self.swa_epochs, f"before the tail of {self.swa_epochs}")
        self._must_divide("swa_cycles", self.swa_epochs, "of the tail")

    def _must_divide(self, name: str, epochs: int, what: str) -> None:
        count = getattr(self, name)
        if count > 1 and epochs and epochs % count:
            fitting = ", ".join(str(number) for number in range(1, epochs + 1) if epochs % number == 0)
            raise SwampError(f"{name} must divide the {epochs} epochs {what}, got {count}. These fit: {fitting}.")

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    @property
    def swa_epochs(self) -> int:
        """Whole epochs of the tail: at least one where a tail is asked for."""
        return max(1, round(self.swa_fraction * self.epochs)) if self.swa_fraction else 0

    def plain(self) -> "Training":
        """The same without what belongs to the cycles: every method's ticket is trained like this."""
        return replace(self, schedule_repeats=1, swa_fraction=0.0, swa=False, ema=0.0, sam=0.0)

    @property
    def uses_previous_gradient(self) -> bool:
        """Whether a step needs the gradient of the one before."""
        return bool(self.sam) and self.sharpness == "s2-sam"

    @property
    def passes(self) -> int:
        """Forward and backward passes of one step."""
        return 2 if self.sam and not self.uses_previous_gradient else 1

    @property
    def decay(self) -> float:
        """Decay of the average that is taken; 0 where its samples have equal weights, or there is none."""
        return 0.0 if self.swa else self.ema

    def samples_at(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the weights after `step` steps are a sample of the average."""
        if not self.swa:
            return bool(self.ema)
        into_tail = step - (self.epochs - self.swa_epochs) * steps_per_epoch
        between = self.swa_epochs // self.swa_cycles if self.swa_cycles else 1
        return into_tail > 0 and into_tail % (between * steps_per_epoch) == 0

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of step `step` (from 0) of a training of `epochs * steps_per_epoch` steps."""
        decay_end = (self.epochs - self.swa_epochs) * steps_per_epoch
        low = self.lr * self.swa_lr if self.swa_epochs else 0.0
        if step >= decay_end:
            cycle = self.swa_epochs * steps_per_epoch // self.swa_cycles if self.swa_cycles else 0
            return _cosine(low, 0.0, (step - decay_end) % cycle / cycle) if cycle else low
        length = decay_end // self.schedule_repeats
        step %= length
        warm = min(round(self.warmup * steps_per_epoch), length)
        if step < warm:
            return self.lr * (step + 1) / warm
        share = (step - warm) / (length - warm)
        match self.schedule:
            case "cosine":
                return _cosine(self.lr, low, share)
            case "linear":
                return low + (self.lr - low) * (1 - share)
            case "step":
                return max(low, self.lr * 0.1 ** ((share >= 0.5) + (share >= 0.75)))
            case "constant":
                return self.lr


def _cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))
