"""A dry run on two examples before the first training step, so that no training is lost to a metric or a shape."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.batches import Batch, batch_to, can_split, rows_of, tensors_of
from swamp.errors import SwampError, shortened, type_and_message
from swamp.model_copy import copied_model
from swamp.training.data import BatchList, Data, sampled
from swamp.training.loop import smoothed
from swamp.training.memory_format import to_memory_format_of
from swamp.training.metrics import CLASSIFICATION, accuracy, default_metrics, ignored_target
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.streams import StreamData, close_streams
from swamp.training.sum_loss import sum_loss
from swamp.training.task import Task, in_mode, joined

_SEED = Seed(0).at("dry run")
_CUSTOM = "Task.custom(train, loss, evaluate) takes batches, models and metrics of any form"


def dry_run(model: nn.Module, task: Task, training: Training, *, prunable: set[str], joint: bool = False) -> bool:
    """Compute every function of `task` on two examples of each split, on a copy of `model`.

    Args:
        model: The model; it is not changed.
        task: Its forward pass, loss, metrics, error and combination of outputs are called.
        training: Gives the parts of a batch for gradient accumulation.
        prunable: Names of the prunable weights.
        joint: Whether outputs of several models will be combined.

    Returns:
        Whether the task has an error in [0, 1], or in units of a named scale: without one, barriers are not measured.

    Raises:
        SwampError: A function failed, or returned something unexpected. The message names it, and the shapes.
    """
    model = copied_model(model)
    device = next(model.parameters()).device
    with isolated(_SEED, device):
        _check_state_dict(model, prunable)
        errors = [_check_own(model, task)] if task.own is not None else _check_splits(model, task, joint)
        _check_training(model, task, training, prunable)
    named = task.error is not None or (task.own is not None and task.own.error is not None)
    inside = all(math.isnan(error) or 0 <= error <= 1 for error in errors)
    if task.error_scale is None and named and not inside:
        raise SwampError(
            f"the error of the untrained model is {errors[0]:.4g}, and an error lies in [0, 1]. Name the error that "
            "counts as 1, such as the variance of the targets for squared errors: error_scale=..."
        )
    return inside or task.error_scale is not None


def _check_state_dict(model: nn.Module, prunable: set[str]) -> None:
    state = model.state_dict()
    with _failing("the model's state_dict() does not fit its own load_state_dict()", "Correct these two methods."):
        model.load_state_dict(state)
    changed = {name for name, parameter in model.named_parameters() if parameter.requires_grad} | prunable
    if missing := sorted(changed - state.keys()):
        raise SwampError(
            f"the model's state_dict() has no {shortened(missing)}, so that what is trained would be lost. It must "
            "have the names of named_parameters(): correct it, or its hooks."
        )


def _check_splits(model: nn.Module, task: Task, joint: bool) -> list[float]:
    """Outputs, loss and metrics of each split. Returns the errors."""
    errors: list[float] = []
    for split, data in task.splits.items():
        inputs, targets = _two(data, model)
        where = f"{_few(data)} of the {split} data"
        advice = f"Check the model and forward=...; {_CUSTOM}."
        failed = f"the model failed on {where} ({_shapes(inputs)})"
        with in_mode(model, training=False), torch.no_grad(), _failing(failed, advice):
            outputs = task.forward(model, to_memory_format_of(model, inputs))
        _check_outputs(outputs, targets, where)
        if isinstance(data, BatchList):
            joined([batch[1][:0] for batch in data.batches], "targets")
        _check_targets(task, data, outputs, targets, where)
        shapes = f"outputs {_shape(outputs)} and targets {_shape(targets)} of {where}"
        for name, metric in task.metrics.items():
            if metric is accuracy and outputs.shape[-1:] == (1,):
                raise SwampError(
                    "the default metrics need one output per class, and the model has one output. Use loss="
                    "F.binary_cross_entropy_with_logits for one logit, F.mse_loss for a regression, or metrics={...}."
                )
            advice = "Give metrics={name: function(outputs, targets)} that fit the task."
            _number(partial(metric, outputs, targets), f"the metric {name!r}", shapes, advice)
        if task.error is not None or "accuracy" in task.metrics:
            errors.append(_number(partial(task.error_of, outputs, targets), "the error", shapes, "Give error=..."))
        elif not errors:
            raise SwampError(
                f"the task has the metrics {', '.join(task.metrics) or 'none'}, and no error, which barriers and the "
                "choice of particles need. Give error=function(outputs, targets) in [0, 1], or a metric 'accuracy'."
            )
        if joint:
            advice = "Give combine=function(list of outputs) -> outputs."
            combined = _called(partial(task.combine, [outputs, outputs]), "combine", shapes, advice)
            _check_outputs(combined, targets, where)
    return errors


def _check_outputs(outputs: Any, targets: Tensor, where: str) -> None:
    if not isinstance(outputs, Tensor):
        found = _shapes(outputs) or type(outputs).__name__
        raise SwampError(
            f"the model returned a {type(outputs).__name__} for {where} ({found}), and a tensor was expected. Give "
            f"the task a function that selects one, such as forward=lambda model, inputs: model(inputs)[0]; {_CUSTOM}."
        )
    if outputs.shape[:1] != targets.shape[:1]:
        raise SwampError(
            f"the model returned {_shape(outputs)} for {where}, whose targets have the shape {_shape(targets)}: the "
            f"first dimension must be the examples. {_CUSTOM}."
        )


def _check_targets(task: Task, data: Data, outputs: Tensor, targets: Tensor, where: str) -> None:
    """Whether all class numbers in memory are below the outputs: torch would fail where it meets another."""
    known = default_metrics(task.loss)
    metrics = (task.metrics if known is None else known.metrics).keys()
    if metrics != CLASSIFICATION.keys() or outputs.dim() < 2 or outputs.shape[1] < 2 or targets.shape == outputs.shape:
        return
    if targets.dtype not in (torch.int64, torch.uint8):
        raise SwampError(
            f"class numbers are int64, and the targets of {where} are {_shape(targets)}. Give targets.long(), "
            "probabilities in the shape of the outputs, or another loss."
        )
    parts = [batch[1] for batch in data.batches] if isinstance(data, BatchList) else [getattr(data, "targets", targets)]
    active = torch.cat([part[part != ignored_target(task.loss)] for part in parts])
    low, high = (int(active.min()), int(active.max())) if len(active) else (0, 0)
    if low < 0 or high >= outputs.shape[1]:
        raise SwampError(
            f"the model has {outputs.shape[1]} outputs, for the classes 0 to {outputs.shape[1] - 1}, and the class "
            f"numbers of {where.partition(' of ')[2]} are from {low} to {high}."
        )


def _check_own(model: nn.Module, task: Task) -> float:
    """The user's evaluation of the untrained model. Returns its error."""
    with _failing("evaluate(model) or validate(model) failed on the untrained model", "Correct it."):
        test = task.evaluate(model, "test").error if task.has_test else math.nan
        return task.evaluate(model, "validation").error if task.has_validation else test


def _check_training(model: nn.Module, task: Task, training: Training, prunable: set[str]) -> None:
    """Loss and gradient of a batch in train mode."""
    loss_function = smoothed(task.loss, training.label_smoothing)
    model.train()

    def loss_of(batch: Batch, what: str) -> Tensor:
        inputs, targets = batch_to(batch, next(model.parameters()).device)
        failed = f"the loss failed on {what}: inputs ({_shapes(inputs)}), targets {_shape(targets)}"
        with _failing(failed, f"Check loss=... and the model in train mode; {_CUSTOM}."):
            loss: Any = loss_function(task.forward(model, to_memory_format_of(model, inputs)), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = _shape(loss) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise SwampError(f"the loss must be one number, a scalar tensor, and it is {found} for {what}.")
        return loss

    size = min(2, training.batch_size)
    batch = _training_batch(task.train, size)
    loss = loss_of(batch, f"{_few(task.train) if size == 2 else 'an example'} of the training data")
    if not loss.requires_grad:
        raise SwampError(
            "the loss does not depend on any weight that requires a gradient: it was detached, computed under "
            "torch.no_grad(), or all weights are frozen."
        )
    with _failing(f"the gradient of the loss failed on {_few(task.train)} of the training data", "Correct it."):
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
    reached = [name for name, p in model.named_parameters() if name in prunable and p.is_leaf and p.grad is not None]
    if prunable and not reached and any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise SwampError(
            "no prunable weight gets a gradient: copies of a scripted or traced module (torch.jit) cannot be trained. "
            "Give the module that it was made from."
        )
    if prunable and not reached:
        raise SwampError(
            f"the loss depends on none of the prunable weights {shortened(sorted(prunable))}. Name those that it "
            "trains: include=(...)."
        )
    if isinstance(task.train, BatchList):
        smallest = min(task.train.batches, key=lambda batch: len(batch[1]))
        loss_of(smallest, f"the smallest training batch, of {len(smallest[1])}")
    if training.grad_accum_steps > 1:
        _check_parts(model, task, training, loss_of)


def _check_parts(model: nn.Module, task: Task, training: Training, loss_of: Callable[[Batch, str], Tensor]) -> None:
    """Whether parts of a batch can be computed in turn, and their losses make up the loss of the batch."""
    inputs, targets = batch_to(_training_batch(task.train, training.batch_size), next(model.parameters()).device)
    count = min(training.grad_accum_steps, len(targets))
    sizes = [len(part) for part in torch.arange(len(targets)).tensor_split(count)]
    smallest = slice(0, min(sizes))
    loss_of((rows_of(inputs, smallest), targets[smallest]), f"a part of {min(sizes)} for grad_accum_steps={count}")
    if sum_loss(task.loss) is not None or count < 2:
        return
    model.eval()
    whole, again = (float(loss_of((inputs, targets), "a training batch").detach()) for _ in range(2))
    if not math.isclose(whole, again, rel_tol=1e-6):
        return  # a model that draws random numbers in eval mode too: its losses cannot be compared
    first = slice(0, sizes[0])
    rest = slice(sizes[0], len(targets))
    shares = [
        float(loss_of((rows_of(inputs, part), targets[part]), "a part of a batch").detach()) * (part.stop - part.start)
        for part in (first, rest)
    ]
    if not math.isclose(sum(shares) / len(targets), whole, rel_tol=1e-3, abs_tol=1e-6):
        raise SwampError(
            f"grad_accum_steps={training.grad_accum_steps} needs a loss that is the mean over the examples: the loss "
            f"of a batch is {whole:.6g}, and the mean of the losses of its parts {sum(shares) / len(targets):.6g}. "
            "Use F.cross_entropy or F.nll_loss with their own options, or grad_accum_steps=1."
        )


def _training_batch(data: Data, size: int) -> Batch:
    """An augmented batch of training data, of about `size` examples."""
    if isinstance(data, BatchList):
        return max(data.batches, key=lambda batch: len(batch[1]))
    found = _cut(next(iter(sampled(data, size).shuffled(size, _SEED, 0))), size, data)
    close_streams(data, size, [_SEED])
    return found


def _two(data: Data, model: nn.Module) -> Batch:
    return batch_to(_cut(next(iter(sampled(data, 2).in_order(2))), 2, data), next(model.parameters()).device)


def _cut(batch: Batch, size: int, data: Data) -> Batch:
    inputs, targets = batch
    cut = can_split(inputs) and not _has_own_batches(data)
    return (rows_of(inputs, slice(size)), targets[:size]) if cut else batch


def _has_own_batches(data: Data) -> bool:
    """Whether the batches are the user's: rows of a graph's adjacency matrix cannot be left out."""
    return isinstance(data, BatchList) or (isinstance(data, StreamData) and data.collate is None)


def _few(data: Data) -> str:
    return "a batch" if _has_own_batches(data) else "two examples"


def _number(call: Callable[[], Any], what: str, shapes: str, advice: str) -> float:
    value = _called(call, what, shapes, advice)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SwampError(f"{what} must be one number; it is {value!r:.80} for {shapes}. {advice}") from error


def _called(call: Callable[[], Any], what: str, shapes: str, advice: str) -> Any:
    with _failing(f"{what} failed on {shapes}", advice):
        return call()


@contextmanager
def _failing(what: str, advice: str) -> Generator[None]:
    try:
        yield
    except SwampError:
        raise
    except Exception as error:
        raise SwampError(f"{what}: {type_and_message(error)}. {advice}") from error


def _shapes(inputs: Any) -> str:
    parts = [f"{place} {_shape(tensor)}".strip() for place, tensor in tensors_of(inputs).items()]
    return ", ".join(parts) or type(cast(object, inputs)).__name__


def _shape(tensor: Any) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {tuple(tensor.shape)}"
