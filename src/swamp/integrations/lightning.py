"""Lightning: a callback that keeps a sparse model's zeros, and a backend with the user's own Trainer."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from swamp.backends import CustomTrainer, TrainJob
from swamp.errors import MaskError, SwampError
from swamp.integrations.settings import environment_variable, mask_to_hold, require_batch_counts, require_supported
from swamp.masks import Mask, Scope, hold
from swamp.training import Task
from swamp.training.rng import isolated

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

    Works with single-device strategies and DDP. The mask has the parameter names of the LightningModule.

    Args:
        mask: By default `Mask.from_zeros(model, scope)` when training begins: weights that are zero then stay zero.
        scope: The prunable parameters for the default mask.

    Raises:
        MaskError: If another optimizer takes steps, or a pruned weight is not zero at a checkpoint or the end of
            training.
        SwampError: For a dense model without a mask, several optimizers, and strategies that shard parameters.

    Examples:
        ```python
        trainer = lightning.Trainer(callbacks=[HoldMask()])
        ```
    """

    def __init__(self, mask: Mask | None = None, scope: Scope | None = None) -> None:
        self.mask, self.scope = mask, scope
        self.held = ExitStack()
        self.holding: Mask | None = None
        """The mask, once it is applied."""
        self.optimizer: torch.optim.Optimizer | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hold the module with its optimizer, whose restored state is masked too."""
        strategy = type(trainer.strategy).__name__
        sharding = strategy if any(name in strategy for name in _SHARDED) else ""
        self.holding = mask_to_hold(self.mask, pl_module, self.scope, sharding)
        if len(trainer.optimizers) != 1:
            raise SwampError(f"HoldMask supports one optimizer, this module has {len(trainer.optimizers)}.")
        (self.optimizer,) = trainer.optimizers
        self.held.enter_context(
            hold(pl_module, self.holding, cast(torch.optim.Optimizer, self.optimizer), only_backward=True)
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Require that the held optimizer takes the step."""
        if optimizer is not self.optimizer:
            raise MaskError(
                "this optimizer is not the one that the module had when training began: something replaced it, so that "
                "pruned weights would become nonzero. Return it from configure_optimizers."
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Require zeros in the checkpoint."""
        if self.holding is not None:
            self.holding.require_zeros(dict(pl_module.named_parameters()))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks; requires zeros."""
        self.held.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks after a failed training."""
        self.held.pop_all().__exit__(type(exception), exception, exception.__traceback__)


def _has_generator(loader: Any) -> bool:
    """Whether the order of this DataLoader comes from a generator of its own."""
    batches = getattr(loader, "batch_sampler", None)
    parts = loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)
    return any(getattr(part, "generator", None) is not None for part in parts)


class _Steps(Callback):
    """Counts and averages steps, stops as planned, and optionally sets the learning rate."""

    def __init__(self, job: TrainJob, rates: bool) -> None:
        self.job, self.rates, self.own = job, rates, [0.0]
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        job, accumulated = self.job, trainer.accumulate_grad_batches
        if any(map(_has_generator, tree_leaves(trainer.train_dataloader))):
            raise SwampError("omit the generator of the DataLoader: each particle has its own batch order.")
        size = getattr(trainer.train_dataloader, "batch_size", None)
        batch = size * accumulated * trainer.world_size if size else job.training.batch_size
        require_batch_counts(batch, -(-int(trainer.num_training_batches) // accumulated), job.training, job.per_epoch)
        self.own = [group["lr"] for group in trainer.optimizers[0].param_groups]
        if self.rates and (trainer.lr_scheduler_configs or max(self.own) != job.training.lr):
            given = f"{max(self.own):g} and {len(trainer.lr_scheduler_configs)} schedulers"
            raise SwampError(
                f"swamp sets the learning rate, Training(lr={job.training.lr:g}): configure_optimizers must return an "
                f"optimizer with that rate and no scheduler, got {given}; or use backend(..., rates=False)."
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.rates:
            for group, own in zip(trainer.optimizers[0].param_groups, self.own, strict=True):
                group["lr"] = own * self.job.rate() / self.job.training.lr

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = cast(Any, outputs)["loss"] if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise SwampError("training_step must return the loss, or a dict with the key 'loss'.")
        # Lightning divides the loss of automatic optimization by the number of accumulated batches.
        parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        self.losses.append(loss.detach() * parts)
        if trainer.global_step > self.job.step - self.job.first:
            self.job.stepped()
        if self.job.step >= self.job.last:
            trainer.should_stop = True


def backend(
    module: nn.Module,
    task: Task,
    make: Callable[[TrainJob], Any],
    data: Callable[[TrainJob], Any] | None = None,
    *,
    rates: bool = True,
) -> CustomTrainer:
    """A backend that trains each particle with the user's own Trainer.

    Args:
        module: A LightningModule; each particle is a copy.
        task: Evaluates the particles; its training data must give the same number of steps per epoch.
        make: `job -> lightning.Trainer`. `job.name` is unique per particle, for its loggers and folder. The backend
            sets the number of steps.
        data: `job -> ` loaders for `Trainer.fit`, shuffled by the global generator, which is seeded per particle;
            default: the module's own loaders. It is seeded again before `fit`, so that `make` may call
            `seed_everything`.
        rates: Whether swamp sets the learning rate (its schedule and constant SWA phase). False: the module's own
            schedule runs over the whole training.

    Returns:
        A backend for `swamp.prune(..., backend=...)`.

    Raises:
        SwampError: During training, if the Trainer's batches differ from the task's, and for settings of `Training`
            that have no effect on it.

    Examples:
        See `examples/lightning_trainer.py`.
    """

    def train(job: TrainJob) -> float:
        require_supported(job.training, _ELSEWHERE)
        if job.first and not rates:
            raise SwampError("a module's own schedule cannot start in the middle: lr_after_rewind must be 'restart'.")
        trainer, steps = make(job), _Steps(job, rates)
        source = data(job) if data else None
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, job.total - job.first
        trainer.callbacks += [HoldMask(job.mask), steps]
        # The seed of Lightning's DistributedSampler; by default 0, one order for all particles.
        own_order = environment_variable("PL_GLOBAL_SEED", str(job.number))
        # Seeded again: `make` may have called seed_everything, which would give all particles one batch order.
        with own_order, isolated(job.seed, next(job.model.parameters()).device):
            trainer.fit(job.model, source)
        return float(torch.stack(steps.losses).double().mean()) if steps.losses else 0.0

    return CustomTrainer(module, task, train)
