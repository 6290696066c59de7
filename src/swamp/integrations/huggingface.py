"""Hugging Face's Trainer: a callback that keeps a sparse model's zeros, and a backend with the user's own Trainer."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from swamp.backends import CustomTrainer, TrainJob
from swamp.errors import MaskError, SwampError
from swamp.integrations.settings import mask_to_hold, require_batch_counts, require_supported
from swamp.masks import Mask, Scope, hold
from swamp.training import Task

try:
    import transformers
    from transformers.trainer_callback import TrainerCallback
except ImportError as error:
    raise ImportError(f"this adapter needs transformers ({error}): pip install 'swamp[huggingface]'") from error

_ELSEWHERE = {
    "optimizer": "optim",
    "momentum": "optim_args",
    "nesterov": "optim_args",
    "weight_decay": "weight_decay",
    "clip": "max_grad_norm",
    "label_smoothing": "label_smoothing_factor",
    "precision": "bf16",
}
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")


class HoldMask(TrainerCallback):
    """Keeps pruned weights, their gradients and optimizer state at zero while a Trainer trains.

    Args:
        mask: By default `Mask.from_zeros(model, scope)` when training begins: weights that are zero then stay zero.
        scope: The prunable parameters for the default mask.

    Raises:
        MaskError: If another optimizer takes steps, or a pruned weight is not zero at an evaluation, save or end of
            training.
        SwampError: For a dense model without a mask, and for parameters sharded by FSDP or DeepSpeed.

    Examples:
        ```python
        trainer = Trainer(model, args, train_dataset=..., callbacks=[HoldMask()])
        ```
    """

    def __init__(self, mask: Mask | None = None, scope: Scope | None = None) -> None:
        self.mask, self.scope = mask, scope
        self.held, self.steps = ExitStack(), 0
        self.holding: Mask | None = None
        """The mask, once it is applied."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the model with the Trainer's optimizer."""
        # An earlier training may have ended by an exception, before on_train_end.
        with suppress(MaskError):
            self.held.close()
        model, stepping = kwargs["model"], kwargs["optimizer"]
        kind = str(getattr(getattr(stepping, "accelerator_state", None), "distributed_type", "NO"))
        self.holding = mask_to_hold(self.mask, model, self.scope, next((n for n in _SHARDED if n in kind), ""))
        while hasattr(stepping, "optimizer"):
            stepping = stepping.optimizer  # accelerate's wrapper has no hooks of its own
        self.steps, self.held = state.global_step, ExitStack()
        self.held.enter_context(hold(model, self.holding, stepping, only_backward=True))
        handle: Any = stepping.register_step_post_hook(self._stepped)
        self.held.callback(handle.remove)

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Require that the held optimizer took the step, or that it was skipped."""
        if self.steps < state.global_step:
            if not getattr(kwargs["optimizer"], "step_was_skipped", False):
                raise MaskError(
                    "the Trainer's optimizer is not the one it had when training began: something replaced "
                    "trainer.optimizer, so that pruned weights would become nonzero. Replace it before train()."
                )
            self.steps = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Require zeros in the evaluated model."""
        self._require_zeros(kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Require zeros in the saved model."""
        self._require_zeros(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks; requires zeros (also in a best model loaded at the end)."""
        self.held.close()

    def _require_zeros(self, model: nn.Module) -> None:
        if self.holding is not None:
            self.holding.require_zeros(dict(model.named_parameters()))


class _Steps(TrainerCallback):
    """Counts and averages steps, and stops as planned."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.stepped()
        if self.job.step >= self.job.last:
            control.should_training_stop = True


def backend(model: nn.Module, task: Task, make: Callable[[TrainJob], Any], *, rates: bool = True) -> CustomTrainer:
    """A backend that trains each particle with the user's own Trainer.

    Args:
        model: A transformers model; each particle is a copy.
        task: Evaluates the particles; its training data must give the same number of steps per epoch.
        make: `job -> Trainer` for `job.model`. `job.name` is unique per particle, for its output folder. The backend
            sets seed and number of steps.
        rates: Whether swamp sets the learning rate (its schedule and constant SWA phase). False: the Trainer's own
            schedule runs over the whole training, SWA phase included.

    Returns:
        A backend for `swamp.prune(..., backend=...)`.

    Raises:
        SwampError: During training, if the Trainer's batches differ from the task's, and for settings of `Training`
            that have no effect on it.

    Examples:
        See `examples/huggingface_trainer.py`.
    """

    def train(job: TrainJob) -> float:
        require_supported(job.training, _ELSEWHERE)
        trainer = make(job)
        args = trainer.args
        if trainer.model is not job.model:
            raise SwampError("make(job) must return a Trainer of job.model.")
        if args.data_seed is not None:
            raise SwampError("omit data_seed in TrainingArguments: each particle has its own batch order.")
        args.seed, args.max_steps = job.number, job.total - job.first
        transformers.set_seed(job.number)
        batches = len(trainer.get_train_dataloader())
        steps = -(-batches // args.gradient_accumulation_steps)
        require_batch_counts(trainer.get_total_train_batch_size(args), steps, job.training, job.per_epoch)
        trainer.add_callback(HoldMask(job.mask))
        trainer.add_callback(_Steps(job))
        _schedule(trainer, job, rates)
        return float(trainer.train().training_loss)

    return CustomTrainer(model, task, train)


def _schedule(trainer: Any, job: TrainJob, rates: bool) -> None:
    given, lr = trainer.args.learning_rate, job.training.lr
    if not rates:
        if job.first:
            raise SwampError("a Trainer's own schedule cannot start in the middle: lr_after_rewind must be 'restart'.")
        return
    if given != lr:
        raise SwampError(
            f"Training(lr={lr:g}) and TrainingArguments(learning_rate={given:g}) differ: set both to the same, or "
            "use backend(..., rates=False) for the Trainer's own rate and schedule."
        )
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda step: job.rate(job.first + step) / lr)
