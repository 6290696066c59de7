"""Checks of `Training` for external trainers: settings that they would ignore raise an error."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import nn

from swamp.errors import SwampError
from swamp.fields import changed_fields
from swamp.masks import Mask, Scope
from swamp.masks.dtensor import is_sharded
from swamp.training import Training

_SUPPORTED = {
    *("epochs", "batch_size", "lr", "schedule", "warmup", "schedule_repeats", "lr_after_rewind"),
    *("swa_fraction", "swa_lr", "swa_cycles"),
    *("swa", "ema", "lawa", "reset_batchnorm", "sharpness"),
}


def mask_to_hold(mask: Mask | None, model: nn.Module, scope: Scope | None, sharding: str) -> Mask:
    """`mask`, or by default the mask of the zeros of `model`. Raises SwampError for dense or sharded models.

    sharding: name of the trainer's sharding strategy; empty: none.
    """
    if sharding or any(is_sharded(parameter) for parameter in model.parameters()):
        raise SwampError(
            f"HoldMask does not support parameters sharded by {sharding or 'a device mesh'}. Train without sharding "
            "(DDP works), or shard with swamp's own --shard."
        )
    found = mask or Mask.from_zeros(model, scope)
    # A trained bias may have single zeros by accident.
    if mask is None and all(bool(active.all()) for active in found.values() if active.dim() > 1):
        raise SwampError(f"{type(model).__name__} has no zeros to keep. Prune it first, or pass a mask to HoldMask.")
    return found


def require_supported(training: Training, elsewhere: Mapping[str, str]) -> None:
    """Raise SwampError for a field of `training` that is set and has no effect on this trainer.

    elsewhere: field -> the trainer's own setting for it.
    """
    if training.sam:
        raise SwampError("an external trainer takes no sharpness-aware steps: choose a method without SAM.")
    for name in changed_fields(training):
        if name not in _SUPPORTED:
            raise SwampError(
                f"Training({name}={getattr(training, name)!r}) has no effect on this trainer. Set "
                f"{elsewhere.get(name, 'its counterpart')} there instead, and omit {name}."
            )


def require_batch_counts(batch: int, steps: int, training: Training, per_epoch: int) -> None:
    """Raise SwampError if the trainer's batch size or steps per epoch differ from the task's.

    batch: examples per optimizer step of the trainer. steps: its optimizer steps per epoch.
    """
    if batch != training.batch_size:
        raise SwampError(
            f"the trainer uses {batch} examples per step, Training(batch_size={training.batch_size}): both must be "
            "equal (for the trainer: batch size times processes times gradient accumulation)."
        )
    if steps != per_epoch:
        raise SwampError(
            f"the trainer takes {steps} steps per epoch, the task {per_epoch}: use the same training data for both, "
            "and drop an incomplete last batch in the trainer, so that all steps have equal weight."
        )


@contextmanager
def environment_variable(name: str, value: str) -> Generator[None]:
    """Set an environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
