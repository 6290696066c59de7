"""What of `Training` a foreign trainer takes: all else is refused, as else it would be ignored in silence."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields

from torch import nn

from swamp.errors import SwampError
from swamp.masks import Mask, Scope, is_sharded
from swamp.training import Training

_TAKEN = {
    *("epochs", "batch_size", "lr", "schedule", "warmup", "schedule_repeats", "lr_after_rewind"),
    *("swa_fraction", "swa_lr", "swa_cycles"),
    *("swa", "ema", "reset_batchnorm", "sharpness"),
}


def mask_to_hold(mask: Mask | None, model: nn.Module, scope: Scope | None, sharding: str) -> Mask:
    """`mask`, or that of the zeros of `model`. Raises SwampError for a dense model and for spread parameters.

    sharding: what spreads parameters over processes, as far as the trainer tells; empty: nothing.
    """
    if sharding or any(is_sharded(parameter) for parameter in model.parameters()):
        raise SwampError(
            f"HoldMask does not know parameters that {sharding or 'a device mesh'} spreads over processes. Train "
            "without sharding (DDP works), or shard with swamp's own --shard."
        )
    found = mask or Mask.from_zeros(model, scope)
    if mask is None and not found.sparsity:
        raise SwampError(f"{type(model).__name__} has no zeros to keep. Prune it first, or give HoldMask a mask.")
    return found


def refuse_untaken(training: Training, elsewhere: Mapping[str, str]) -> None:
    """Raise SwampError for each field of `training` that was set and has no effect with this trainer.

    elsewhere: field -> where the trainer has it.
    """
    plain = Training()
    if training.sam:
        raise SwampError("a trainer of your own takes no sharpness-aware steps: choose a method without SAM.")
    for name in (field.name for field in fields(Training) if field.name not in _TAKEN):
        if getattr(training, name) != getattr(plain, name):
            raise SwampError(
                f"Training({name}={getattr(training, name)!r}) has no effect on this trainer. Set "
                f"{elsewhere.get(name, 'its counterpart')} there instead, and leave {name} out."
            )


def refuse_other_counts(batch: int, steps: int, training: Training, per_epoch: int) -> None:
    """Raise SwampError where the trainer's batches are not those that the task counts.

    batch, steps: the examples of one optimizer step, and the optimizer steps of an epoch, as the trainer has them.
    """
    if batch != training.batch_size:
        raise SwampError(
            f"the trainer takes {batch} examples a step, Training(batch_size={training.batch_size}): give both the "
            "same (of a trainer: the batch size times processes times gradient accumulation)."
        )
    if steps != per_epoch:
        raise SwampError(
            f"the trainer takes {steps} steps an epoch, the task has {per_epoch}: give both the same training data, "
            "and have the trainer drop an incomplete last batch, as every step should weigh the same."
        )


@contextmanager
def environment(name: str, value: str) -> Generator[None]:
    """An environment variable inside the block; then it is as it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
