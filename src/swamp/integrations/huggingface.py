"""Hugging Face's Trainer: a callback that keeps a sparse model's zeros, and a backend of the user's own Trainer."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from swamp.backends import CustomTrainer, TrainJob
from swamp.errors import MaskError, SwampError
from swamp.integrations.settings import mask_to_hold, refuse_other_counts, refuse_untaken
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

        trainer = Trainer(model, args, train_dataset=..., callbacks=[HoldMask()])

    mask: default `Mask.from_zeros(model, scope)` when training begins: what is zero then stays zero. Zeros are
    asserted at every evaluation, save and end. Raises MaskError where another optimizer than the one held takes the
    steps, SwampError for a dense model without a mask, and for parameters that FSDP or DeepSpeed spread.
    """

    def __init__(self, mask: Mask | None = None, scope: Scope | None = None) -> None:
        self.mask, self.scope = mask, scope
        self.held, self.holding, self.steps = ExitStack(), mask, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the model with the optimizer that the Trainer has by now."""
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
        """The step must have been taken by the optimizer that is held, or not at all."""
        if self.steps < state.global_step:
            if not getattr(kwargs["optimizer"], "step_was_skipped", False):
                raise MaskError(
                    "the Trainer's steps are no longer taken by the optimizer it had when training began: something "
                    "replaced trainer.optimizer, and pruned weights would come back to life. Replace it before train()."
                )
            self.steps = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Assert the density that is being measured."""
        self._require_zeros(kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Assert the density of what was saved."""
        self._require_zeros(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go, and assert the density once more (also of a best model loaded at the end)."""
        self.held.close()

    def _require_zeros(self, model: nn.Module) -> None:
        if self.holding is not None:
            self.holding.require_zeros(dict(model.named_parameters()))


class _Steps(TrainerCallback):
    """Counts, averages and stops as the plan says."""

    def __init__(self, work: TrainJob) -> None:
        self.work = work

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.work.stepped()
        if self.work.step >= self.work.last:
            control.should_training_stop = True


def backend(model: nn.Module, task: Task, make: Callable[[TrainJob], Any], *, rates: bool = True) -> CustomTrainer:
    """A backend that trains each particle with a Trainer of the user's own.

    make: `work -> Trainer` for `work.model`; `work.name` tells particles' folders apart. Seed and steps are set by
    this backend, so is the learning rate by swamp's schedule and constant tail, unless `rates` is False: then the
    Trainer's own schedule runs over the whole training, tail included. Raises SwampError where the Trainer's batches
    are not the task's, and for settings of `Training` that it does not take.
    """

    def train(work: TrainJob) -> float:
        refuse_untaken(work.training, _ELSEWHERE)
        trainer = make(work)
        args = trainer.args
        if trainer.model is not work.model:
            raise SwampError("make(work) must give a Trainer of work.model.")
        if args.data_seed is not None:
            raise SwampError("leave data_seed out of TrainingArguments: each particle has a batch order of its own.")
        args.seed, args.max_steps = work.number, work.total - work.first
        transformers.set_seed(work.number)
        batches = len(trainer.get_train_dataloader())
        steps = -(-batches // args.gradient_accumulation_steps)
        refuse_other_counts(trainer.get_total_train_batch_size(args), steps, work.training, work.per_epoch)
        trainer.add_callback(HoldMask(work.mask))
        trainer.add_callback(_Steps(work))
        _schedule(trainer, work, rates)
        return float(trainer.train().training_loss)

    return CustomTrainer(model, task, train)


def _schedule(trainer: Any, work: TrainJob, rates: bool) -> None:
    given, lr = trainer.args.learning_rate, work.training.lr
    if not rates:
        if work.first:
            raise SwampError("a Trainer's own schedule cannot start in the middle: lr_after_rewind must be 'restart'.")
        return
    if given != lr:
        raise SwampError(
            f"Training(lr={lr:g}) and TrainingArguments(learning_rate={given:g}) differ: give both the same, or "
            "backend(..., rates=False) for the Trainer's own rate and schedule."
        )
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda step: work.rate(work.first + step) / lr)
