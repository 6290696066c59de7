"""Lightning: a callback that keeps a sparse model's zeros, and a backend of the user's own Trainer."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from swamp.backends import CustomTrainer, TrainJob
from swamp.errors import MaskError, SwampError
from swamp.integrations.settings import environment, mask_to_hold, refuse_other_counts, refuse_untaken
from swamp.masks import Mask, Scope, hold
from swamp.training import Task

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(f"this adapter needs lightning ({error}): pip install 'swamp[lightning]'") from error

_ELSEWHERE = {
    **dict.fromkeys(("optimizer", "momentum", "nesterov", "weight_decay"), "configure_optimizers"),
    "clip": "gradient_clip_val",
    "label_smoothing": "the loss of training_step",
    "precision": "precision",
}
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class HoldMask(Callback):
    """Keeps pruned weights, their gradients and optimizer state at zero while a Trainer fits a LightningModule.

        trainer = lightning.Trainer(callbacks=[HoldMask()])

    mask: of the LightningModule's own parameter names; default `Mask.from_zeros(module, scope)` when training begins.
    Works under the strategies of one device and DDP. Zeros are asserted in every checkpoint and at the end. Raises
    MaskError where another optimizer than the one held takes a step, SwampError for a dense model without a mask,
    several optimizers, and strategies that spread parameters over processes.
    """

    def __init__(self, mask: Mask | None = None, scope: Scope | None = None) -> None:
        self.mask, self.scope = mask, scope
        self.held, self.holding = ExitStack(), mask
        self.optimizer: torch.optim.Optimizer | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hold the module with the optimizer that it has by now, a restored state included."""
        strategy = type(trainer.strategy).__name__
        sharding = strategy if any(name in strategy for name in _SHARDED) else ""
        self.holding = mask_to_hold(self.mask, pl_module, self.scope, sharding)
        if len(trainer.optimizers) != 1:
            raise SwampError(f"HoldMask holds the weights of one optimizer, this module has {len(trainer.optimizers)}.")
        (self.optimizer,) = trainer.optimizers
        self.held.enter_context(
            hold(pl_module, self.holding, cast(torch.optim.Optimizer, self.optimizer), only_backward=True)
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """The step must be that of the optimizer which is held."""
        if optimizer is not self.optimizer:
            raise MaskError(
                "this optimizer is not the one that the module had when training began: something replaced it, and "
                "pruned weights would come back to life. Return it from configure_optimizers."
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Assert the density of what is saved."""
        if self.holding is not None:
            self.holding.require_zeros(dict(pl_module.named_parameters()))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let go, and assert the density once more."""
        self.held.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of a training that failed."""
        self.held.pop_all().__exit__(type(exception), exception, exception.__traceback__)


class _Steps(Callback):
    """Counts, averages and stops as the plan says, and sets the learning rate where asked."""

    def __init__(self, work: TrainJob, rates: bool) -> None:
        self.work, self.rates, self.own = work, rates, [0.0]
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        work, together = self.work, trainer.accumulate_grad_batches
        size = getattr(trainer.train_dataloader, "batch_size", None)
        batch = size * together * trainer.world_size if size else work.training.batch_size
        refuse_other_counts(batch, -(-int(trainer.num_training_batches) // together), work.training, work.per_epoch)
        self.own = [group["lr"] for group in trainer.optimizers[0].param_groups]
        if self.rates and (trainer.lr_scheduler_configs or max(self.own) != work.training.lr):
            given = f"{max(self.own):g} and {len(trainer.lr_scheduler_configs)} schedulers"
            raise SwampError(
                f"swamp sets the learning rate, Training(lr={work.training.lr:g}): configure_optimizers must return an "
                f"optimizer with that rate and no scheduler, got {given}; or backend(..., rates=False) for its own."
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.rates:
            for group, own in zip(trainer.optimizers[0].param_groups, self.own, strict=True):
                group["lr"] = own * self.work.rate() / self.work.training.lr

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = cast(Any, outputs)["loss"] if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise SwampError("training_step must return its loss, or a dict that has it as 'loss'.")
        self.losses.append(loss.detach())
        if trainer.global_step > self.work.step - self.work.first:
            self.work.stepped()
        if self.work.step >= self.work.last:
            trainer.should_stop = True


def backend(
    module: nn.Module,
    task: Task,
    make: Callable[[TrainJob], Any],
    data: Callable[[TrainJob], Any] | None = None,
    *,
    rates: bool = True,
) -> CustomTrainer:
    """A backend that trains each particle, a copy of a LightningModule, with a Trainer of the user's own.

    make: `work -> lightning.Trainer`; `work.name` tells particles' loggers and folders apart. data: `work -> ` what
    `Trainer.fit` takes (default: the module's own loaders), shuffled by the global generator, which is seeded for
    each particle. The number of steps is set by this backend, so is the learning rate by swamp's schedule and
    constant tail, unless `rates` is False: then the module's own schedule runs over the whole training.
    """

    def train(work: TrainJob) -> float:
        refuse_untaken(work.training, _ELSEWHERE)
        if work.first and not rates:
            raise SwampError("a module's own schedule cannot start in the middle: lr_after_rewind must be 'restart'.")
        trainer, steps = make(work), _Steps(work, rates)
        source = data(work) if data else None
        if isinstance(source, DataLoader) and getattr(cast(Any, source).sampler, "generator", None) is not None:
            raise SwampError("leave the generator out of the DataLoader: each particle has a batch order of its own.")
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, work.total - work.first
        trainer.callbacks += [HoldMask(work.mask), steps]
        # Lightning's DistributedSampler takes its seed from here, and 0 without: one order for all particles.
        with environment("PL_GLOBAL_SEED", str(work.number)):
            trainer.fit(work.model, source)
        return float(torch.stack(steps.losses).double().mean()) if steps.losses else 0.0

    return CustomTrainer(module, task, train)
