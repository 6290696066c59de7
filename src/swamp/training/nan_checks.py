"""Checks for NaN and infinity: in initial weights and data, and during training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swamp.batches import Batch, batch_to, tensors_of
from swamp.errors import Diverged, SwampError, shortened
from swamp.masks.dtensor import full_tensor
from swamp.training.average import State, is_inexact
from swamp.training.data import BatchList, Data, TensorData
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task, in_mode
from swamp.training.tokens import TokenData

_BATCH = 256
_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


def require_finite(loss: float, step: int, training: Training, per_epoch: int, weight: Tensor) -> None:
    """Raise Diverged if the mean loss of the epoch that ends at `step` is not finite. weight: gives the dtype."""
    if not math.isfinite(loss):
        raise Diverged(
            f"the training loss became {loss} in epoch {(step - 1) // per_epoch + 1} (before step {step}, learning "
            f"rate {training.rate(step - 1, per_epoch):.4g}). Lower the learning rate, or clip the gradient."
            f"{_precision_advice(training, weight)}",
            step,
        )


def require_finite_weights(weights: State, step: int, training: Training, *, beside: State | None = None) -> None:
    """Raise Diverged, naming the first tensor that is not finite. beside: earlier state; its infinities are allowed."""
    wrong = [name for name, weight in weights.items() if not is_finite(weight)]
    if beside is not None:
        # A buffer may contain infinities from the start, such as an attention mask.
        wrong = [name for name in wrong if is_finite(beside[name]) or bool(weights[name].isnan().any())]
    if wrong:
        raise Diverged(
            f"the weights of {wrong[0]!r} are not finite after step {step}. Lower the learning rate."
            f"{_precision_advice(training, weights[wrong[0]])}",
            step,
        )


def require_finite_memory(memory: Mapping[str, Tensor], names: Sequence[str], step: int) -> None:
    """Raise Diverged if the optimizer state of a weight is not finite.

    An infinite second moment makes every later step of its weight zero, without an error.

    Args:
        memory: Optimizer state, such as `0/exp_avg_sq` for parameter 0.
        names: Names of the parameters, in the order of the optimizer.
        step: Steps taken, for the message.
    """
    for key, tensor in memory.items():
        owner, _, kept = key.partition("/")
        if owner.isdigit() and tensor.dim() and not is_finite(tensor):
            raise Diverged(
                f"the optimizer's {kept} of {names[int(owner)]!r} is not finite after step {step}: a gradient was too "
                "large for it. Lower the learning rate, or clip the gradient.",
                step,
            )


def require_finite_start(model: nn.Module, task: Task) -> None:
    """Raise SwampError if initial weights or data in memory are NaN or infinite.

    Examples are accepted if the loss of their batch is finite: some losses use NaN for missing targets, and attention
    masks contain infinities. A DatasetData is not checked.
    """
    require_finite_given(dict(model.named_parameters()), "the model's initial weights")
    for split, data in task.splits.items():
        for what, batch in _suspects(data):
            _try(model, task, batch, f"the {_SPLITS[split]} data: {what}")


def require_finite_given(weights: State, what: str) -> None:
    """Raise SwampError, naming the tensors of `weights` that are NaN or infinite. what: description for the message."""
    wrong = [name for name, weight in weights.items() if not is_finite(weight)]
    if wrong:
        first = weights[wrong[0]]
        count = int((~torch.isfinite(full_tensor(first))).sum())
        raise SwampError(
            f"{what} are NaN or infinite in {shortened(wrong)} ({count} of {first.numel()} numbers in {wrong[0]!r}). "
            "Initialise or load the weights again."
        )


def _suspects(data: Data) -> Iterator[tuple[str, Batch]]:
    """Tensors in memory that are not finite: description, and the batch that contains them."""
    if isinstance(data, TensorData):
        for name, tensor in {**_named(data.inputs), "targets": data.targets}.items():
            bad = _rows(tensor)
            if bad:
                start = bad[0] - bad[0] % _BATCH
                index = torch.arange(start, min(start + _BATCH, len(data)), device=data.targets.device)
                drawn, targets = data.gather(index)
                yield _description(name, bad), (data.normalised(drawn), targets)
        # A division by zero in the normalisation affects every batch.
        yield from _of_batches(data, 1)
    elif isinstance(data, BatchList) or (isinstance(data, TokenData) and is_inexact(data.targets)):
        yield from _of_batches(data, len(data))


def _of_batches(data: Data, most: int) -> Iterator[tuple[str, Batch]]:
    for number, (inputs, targets) in zip(range(most), data.in_order(_BATCH), strict=False):
        for name, tensor in {**_named(inputs), "targets": targets}.items():
            bad = _rows(tensor)
            if bad:
                yield f"batch {number} as the model sees it, {_description(name, bad)}", (inputs, targets)


def _named(inputs: Any) -> dict[str, Tensor]:
    return {place or "inputs": tensor for place, tensor in tensors_of(inputs).items()}


def _rows(tensor: Tensor) -> list[int]:
    """Indices of the examples of a tensor that are not finite."""
    if not is_inexact(tensor) or is_finite(tensor):
        return []
    rows = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
    return [int(row) for row in rows.nonzero().flatten()]


def _description(name: str, bad: Sequence[int]) -> str:
    return f"{name} of example {bad[0]}" + (f" and of {len(bad) - 1} more" if len(bad) > 1 else "")


def _try(model: nn.Module, task: Task, batch: Batch, what: str) -> None:
    device = next(model.parameters()).device
    with torch.no_grad(), isolated(Seed(0).at("finite"), device), in_mode(model, training=False):
        inputs, targets = batch_to(batch, device)
        loss = task.loss(task.forward(model, to_memory_format_of(model, inputs)), targets)
    if not bool(torch.isfinite(loss).all()):
        raise SwampError(f"NaN or infinity in {what}. The loss of its batch is {float(loss)}. Correct or remove it.")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; integers have none."""
    return not is_inexact(tensor) or bool(torch.isfinite(full_tensor(tensor)).all())


def _precision_advice(training: Training, weight: Tensor) -> str:
    """Advice for a message, if low precision may be the cause."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        most = f"{torch.finfo(weight.dtype).max:.3g}"
        kind = str(weight.dtype).removeprefix("torch.")
        return f" The weights are {kind}, whose largest value is {most}: keep them in float32."
    if training.precision == "bfloat16":
        return ' It was trained in bfloat16, with 8 bits of precision: try precision="float32".'
    return ""
