"""Training options: optimizer, learning rate schedule, weight averaging, regularisation."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from swamp.arguments import named_fields
from swamp.errors import SwampError
from swamp.fields import check_at_least, check_fields, html_table, short_repr

RateShape = Literal["cosine", "linear", "step", "constant"]
AfterRewind = Literal["restart", "advance"]
Precision = Literal["float32", "bfloat16"]
Sharpness = Literal["sam", "asam", "s2-sam"]


@named_fields
@dataclass(frozen=True)
class Training:
    """Options for training one particle in one cycle; the optimizer state always starts at zero.

    The last epochs, with constant learning rate, are called the tail; SWA takes its samples there.

    Raises:
        SwampError: A value is out of range; the message names the field.

    Examples:
        >>> training = Training(epochs=10, lr=0.1, swa_fraction=0.2)
        >>> [round(training.rate(step, steps_per_epoch=1), 3) for step in range(10)]
        [0.1, 0.098, 0.093, 0.085, 0.075, 0.065, 0.057, 0.052, 0.05, 0.05]
    """

    epochs: int = 20
    """Passes over the training data per cycle."""
    batch_size: int = 128
    """Examples per optimizer step."""
    grad_accum_steps: int = 1
    """Micro-batches per optimizer step, computed sequentially: the same gradient with less memory."""
    optimizer: str = "sgd"
    """sgd, adamw, the name of a class in torch.optim, or package.module:Class (also file.py:function)."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd (0: none)."""
    nesterov: bool = False
    """Use Nesterov momentum (sgd only)."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters (0: none): an L2 penalty in sgd, decoupled in adamw."""
    schedule: RateShape = "cosine"
    """Learning rate decay after the warm-up; `step` divides by 10 at 1/2 and 3/4, down to the rate of the tail."""
    warmup: float = 0.0
    """Epochs of linear warm-up from learning rate 0 (0: none)."""
    schedule_repeats: int = 1
    """Number of repeats of the schedule before the tail, including warm-up (Gadhikar et al. 2024)."""
    lr_after_rewind: AfterRewind = "restart"
    """After a rewind, `restart` the schedule, or `advance` to the step of the ticket (fewer steps per cycle)."""
    swa_fraction: float = 0.25
    """Fraction of the epochs in the tail, the last epochs with constant learning rate (0: no tail, decay to 0)."""
    swa_lr: float = 0.5
    """Learning rate of the tail, as a fraction of `lr`."""
    swa_cycles: int = 0
    """Number of cosine decays in the tail, with one averaged sample at the end of each (Yin 2022); 0: constant rate."""
    swa: bool = True
    """Stochastic weight averaging: average the weights after every epoch or decay of the tail, if the method does. A
    tail of one epoch is sampled in its middle too: one sample would be no average."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, used if `swa` is off (0: no average)."""
    lawa: int = 0
    """Latest weight averaging, used if `swa` is off: average the weights after each of this many last epochs, with the
    learning rates of the schedule (0: no average). A single epoch is sampled in its middle too."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, as a norm of weights (0: off)."""
    sharpness: Sharpness = "sam"
    """Variant of SAM: sam, asam (scaled by the weights), s2-sam (uses the previous gradient, at no extra cost)."""
    penalty: float = 0.0
    """Weight lambda of the penalty lambda / 2 |w - z + u|^2 (safe; 0: the default of the method). It rises from 0 to
    lambda over the training as lambda / 2 (1 - cos(pi t / T))."""
    clip: float = 0.0
    """Largest norm of the masked gradient; larger gradients are scaled down (0: no clipping)."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy loss, in [0, 1) (0: none)."""
    precision: Precision = "float32"
    """bfloat16: autocast in forward passes of training; weights stay in float32."""
    reset_batchnorm: bool = False
    """Reset the batch-normalisation statistics at every rewind, instead of rewinding them."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "epochs", "batch_size", "schedule_repeats")
        check_at_least(self, 0, "weight_decay", "swa_cycles", "lawa", "sam", "penalty", "clip")
        wrong = [
            (not 1 <= self.grad_accum_steps <= self.batch_size, "grad_accum_steps", "from 1 to batch_size"),
            (self.lr <= 0, "lr", "above 0"),
            (not 0 <= self.momentum < 1, "momentum", "in [0, 1)"),
            (self.nesterov and not self.momentum, "momentum", "above 0 with nesterov"),
            (not 0 <= self.warmup <= self.epochs, "warmup", "between 0 and epochs"),
            (not 0 <= self.swa_fraction <= 1, "swa_fraction", "in [0, 1]"),
            (not 0 < self.swa_lr <= 1, "swa_lr", "in (0, 1], a fraction of lr"),
            (not 0 <= self.ema < 1, "ema", "in [0, 1)"),
            (self.lawa > 0 and self.ema > 0, "lawa", "0 with ema (each is an average)"),
            (not 0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")

        # Not checked without epochs before the tail, or without a tail: some methods replace swa_fraction only.
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
        """Epochs of the tail: rounded, at least 1 unless `swa_fraction` is 0."""
        return max(1, round(self.swa_fraction * self.epochs)) if self.swa_fraction else 0

    def plain(self) -> "Training":
        """These options without repeats, tail, averaging and SAM: used to train the ticket of every method."""
        return replace(self, schedule_repeats=1, swa_fraction=0.0, swa=False, ema=0.0, lawa=0, sam=0.0)

    @property
    def uses_previous_gradient(self) -> bool:
        """Whether a step needs the gradient of the previous step (s2-sam)."""
        return bool(self.sam) and self.sharpness == "s2-sam"

    @property
    def passes(self) -> int:
        """Forward and backward passes per step: 2 with SAM and ASAM, else 1."""
        return 2 if self.sam and not self.uses_previous_gradient else 1

    @property
    def decay(self) -> float:
        """Decay of the moving average in use; 0 for a uniform mean, or without averaging."""
        return 0.0 if self.swa else self.ema

    @property
    def averaged_epochs(self) -> int:
        """Number of last epochs that a uniform mean samples: those of the tail with SWA, else `lawa`."""
        return self.swa_epochs if self.swa else min(self.lawa, self.epochs)

    def samples_at(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the weights after `step` steps are added to the average."""
        if not self.swa and not self.lawa:
            return bool(self.ema)
        steps_averaged = step - (self.epochs - self.averaged_epochs) * steps_per_epoch
        if steps_averaged <= 0:
            return False
        halfway = self._sampled_halfway and steps_averaged == steps_per_epoch // 2
        return halfway or steps_averaged % self._steps_between_samples(steps_per_epoch) == 0

    @property
    def _sampled_halfway(self) -> bool:
        # One sample is no average: a single epoch is sampled in its middle too.
        return self.averaged_epochs == 1 and not (self.swa and self.swa_cycles)

    def _steps_between_samples(self, steps_per_epoch: int) -> int:
        cycles = self.swa_cycles if self.swa else 0
        return (self.averaged_epochs // cycles if cycles else 1) * steps_per_epoch

    def require_average(self, steps_per_epoch: int) -> None:
        """Raise SwampError if SWA or LAWA would average fewer than two samples."""
        # Not step by step: a training may have more steps than can be counted.
        last = self.averaged_epochs * steps_per_epoch
        samples = last // self._steps_between_samples(steps_per_epoch) if last else 0
        samples += self._sampled_halfway and steps_per_epoch > 1
        if samples >= 2:
            return
        found = f"the last {self.averaged_epochs} of {self.epochs} epochs have {last} steps"
        if self.swa:
            raise SwampError(
                f"SWA would average {samples} sample: {found} and swa_cycles={self.swa_cycles}. An average needs two "
                "samples or more: set epochs or swa_fraction higher (two epochs at the end are enough), batch_size "
                f"lower{', swa_cycles to 0 or to 2 or more,' if self.swa_cycles else ''} or swa=False; or take "
                'method="imp", which averages nothing.'
            )
        if self.lawa:
            raise SwampError(
                f"LAWA would average {samples} sample: {found}. An average needs two samples or more: set epochs or "
                "lawa to 2 or more, or choose a method without an average."
            )

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

    def penalty_at(self, step: int, steps_per_epoch: int) -> float:
        """Weight of the penalty in step `step` (from 0); see `penalty`."""
        return _cosine(0.0, self.penalty, step / (self.epochs * steps_per_epoch))


def _cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))
