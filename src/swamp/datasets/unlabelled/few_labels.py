"""Classification with few labels: FixMatch, mean teacher and the Pi-model, and their labelled part alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from torch.nn import functional as F

from swamp.datasets.problem import DataOptions, Problem
from swamp.datasets.unlabelled.reduction import images_of
from swamp.datasets.unlabelled.views import Composed, ViewData
from swamp.errors import SwampError, unknown
from swamp.training.augment import Augment, contrast_cutout
from swamp.training.batchnorm import frozen_statistics
from swamp.training.data import TensorData
from swamp.training.rng import Seed
from swamp.training.task import Task, call_model

_DECAY = 0.99
"""Decay of the teacher per step."""
_PREFIX = "teacher_"

Consistency = Callable[[Tensor, Tensor], Tensor]
"""Logits (batch, classes) of both views -> scalar loss. Those of the first view are the target."""


def fixmatch(first: Tensor, second: Tensor) -> Tensor:
    """Cross-entropy on the strong view with the class of the weak one, where its probability is at least 0.95.

    Sohn et al. 2020; as many unlabelled as labelled examples in a batch (there seven times as many).
    """
    confidence, classes = first.detach().softmax(1).max(1)
    return (F.cross_entropy(second, classes, reduction="none") * (confidence >= 0.95)).mean()


def squared_difference(first: Tensor, second: Tensor) -> Tensor:
    """10 times the mean squared difference of the probabilities (Laine and Aila 2017), without a ramp."""
    return 10 * F.mse_loss(second.softmax(1), first.softmax(1))


def _nothing(first: Tensor, second: Tensor) -> Tensor:
    del first
    return second.new_zeros(())


OBJECTIVES: dict[str, Consistency] = {
    "fixmatch": fixmatch,
    "mean-teacher": squared_difference,
    "pi-model": squared_difference,
    "supervised": _nothing,
}
"""Name -> loss of the two views of an image without a label, the default first."""


def semi_supervised(problem: Problem, options: DataOptions, seed: Seed, name: str) -> Problem:
    """A classification problem, of which `options.labels.labelled` training examples keep their labels.

    These are drawn at random, and the fraction `validation` of them is held out. The labels of the others are in no
    data of the result.

    Args:
        problem: Of images in memory, its training data without validation.
        options: Labels, objective, validation.
        seed: Draws the labelled examples.
        name: Of the task, for messages.

    Raises:
        SwampError: Too many or too few labels, or no such objective.
    """
    train, test, _ = images_of(problem, name)
    given = options.labels
    objective = given.objective or next(iter(OBJECTIVES))
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    count = given.labelled or len(train)
    if count > len(train):
        raise SwampError(
            f"{count} labelled examples were requested, but the training data have {len(train)}; request fewer, or "
            "more examples."
        )
    held_out = max(1, round(count * options.validation)) if options.validation else 0
    if count - held_out < problem.classes:
        raise SwampError(
            f"{count} labelled examples leave {count - held_out} for training after {held_out} are held out for "
            f"validation, fewer than the {problem.classes} classes; request more, or lower validation "
            f"({options.validation})."
        )
    order = torch.randperm(len(train), generator=seed.at("labelled").generator())
    validation = train.plain().subset(order[:held_out]) if held_out else None
    labelled = train.subset(order[held_out:count])
    weak = train.augment or Composed(())
    strong = Composed((weak, contrast_cutout())) if objective == "fixmatch" else weak
    task = Task(
        _views(train, order[held_out:], (weak, strong), labelled),
        test,
        validation,
        loss=SemiSupervisedLoss(OBJECTIVES[objective]),
        forward=logits_with_teacher if objective == "mean-teacher" else logits_of_views,
    )
    return replace(problem, task=task, adapt=with_teacher if objective == "mean-teacher" else None)


def _views(train: TensorData, index: Tensor, views: tuple[Augment, Augment], labelled: TensorData) -> ViewData:
    return ViewData(cast(Tensor, train.inputs)[index], views, train.normalise, labelled)


class SemiSupervisedLoss:
    """Cross-entropy of the labelled examples, plus the consistency of both views of the others."""

    def __init__(self, consistency: Consistency) -> None:
        self.consistency = consistency

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Outputs (batch, 3, classes) of `logits_of_views`, or (batch, classes), and labels (batch,) -> scalar."""
        if outputs.dim() == 2:
            return F.cross_entropy(outputs, labels)
        labelled, first, second = outputs.unbind(1)
        return F.cross_entropy(labelled, labels) + self.consistency(first, second)


def logits_of_views(model: nn.Module, inputs: Any) -> Tensor:
    """Logits (batch, 3, classes) in train mode: of the labelled examples, the first and the second view.

    In eval mode, and for inputs of one tensor: logits (batch, classes) of the (labelled) examples.
    """
    if isinstance(inputs, Tensor):
        return call_model(model, inputs)
    first, second, labelled = inputs
    outputs = torch.stack(call_model(model, torch.cat([labelled, first, second])).chunk(3), 1)
    return outputs if model.training else outputs[:, 0]


def logits_with_teacher(model: nn.Module, inputs: Any) -> Tensor:
    """As `logits_of_views`, with the logits of the teacher on the first view; in train mode, the teacher is updated."""
    if isinstance(inputs, Tensor) or not model.training:
        return logits_of_views(model, inputs)
    first, second, labelled = inputs
    with torch.no_grad():
        teacher = _updated_teacher(model)
        with frozen_statistics(model):
            target: Tensor = cast(Any, functional_call)(model, teacher, (first,))
    outputs = call_model(model, torch.cat([labelled, second])).chunk(2)
    return torch.stack([outputs[0], target, outputs[1]], 1)


def with_teacher(model: nn.Module) -> nn.Module:
    """Add to `model`, for each parameter, a buffer with its moving average: the mean teacher (Tarvainen et al. 2017).

    The buffers are in the state dict: the teacher is saved, rewound and resumed with the model.
    """
    for _, parameter, buffer in [*_averaged(model)]:
        model.register_buffer(buffer, parameter.detach().clone())
    return model


def _updated_teacher(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> teacher, after an update towards the present weights; zero where the weight is pruned."""
    teacher: dict[str, Tensor] = {}
    for name, parameter, buffer in _averaged(model):
        average = model.get_buffer(buffer)
        # An average of earlier weights would be small, not zero, for many steps after a pruning.
        average.copy_(average.lerp(parameter, 1 - _DECAY) * (parameter != 0))
        teacher[name] = average
    return teacher


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Each parameter with its name, and the name of the buffer with its average."""
    taken: set[str] = set()
    for name, parameter in model.named_parameters():
        buffer = _PREFIX + name.replace(".", "_")
        while buffer in taken:  # as of the parameters a.b and a_b
            buffer += "_"
        taken.add(buffer)
        yield name, parameter, buffer
