"""The scoring context (data, loss, random numbers), and what the criteria that differentiate a network share."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from swamp.batches import rows_of
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.model_copy import copied_model


def _call(model: nn.Module, inputs: Any) -> Tensor:
    return model(inputs)


@dataclass(frozen=True)
class ScoringContext:
    """Data, loss and random numbers for a score.

    Args:
        generator: The score's own random numbers.
        batches: Returns an iterable over batches of (inputs, targets) on the model's device, a fresh pass at each
            call; None: there is no data.
        forward: (model, inputs) -> outputs.
        loss: (outputs, targets) -> scalar, the mean over the batch.
        examples: Maximum number of training examples to use.

    Raises:
        SwampError: For fewer than one example.

    Examples:
        >>> inputs, targets = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> context = ScoringContext(torch.Generator(), batches=lambda: [(inputs, targets)])
        >>> context.examples
        1000
    """

    generator: torch.Generator
    batches: Callable[[], Iterable[tuple[Any, Tensor]]] | None = None
    forward: Callable[[nn.Module, Any], Tensor] = _call
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy
    examples: int = 1000

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise SwampError(f"a score needs at least 1 example, got examples={self.examples}.")


Score = Callable[[nn.Module, Mask, ScoringContext], dict[str, Tensor]]
"""(model, mask, context) -> name of each tensor of the mask to scores of its shape; the largest are kept.

The pruned network is scored: pruned weights count as zero. The model and torch's global generators are not changed.
"""


@contextmanager
def pruned_copy(
    model: nn.Module, mask: Mask, generator: torch.Generator, *, batch_statistics: bool = False
) -> Generator[nn.Module]:
    """A copy of `model` in eval mode with its pruned weights zero; only the weights of the mask require gradients.

    batch_statistics: BatchNorm normalises by its batch, as in training. Inside the block torch's global generators are
    seeded from `generator`, for dropout that ignores the mode and for loaders of the user.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(generator.initial_seed())
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(generator.initial_seed())
        copied = copied_model(model).eval()
        mask.apply_(copied)
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(name in mask)
        if batch_statistics:
            for layer in _normalised_by_batch(copied):
                layer.train()
        # The attention kernel that has second derivatives and can be vectorised over examples without a warning.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield copied


def _normalised_by_batch(model: nn.Module) -> list[_BatchNorm | _InstanceNorm]:
    """The normalisation layers in train mode; a model may keep some in eval mode. The model is in eval mode after."""
    model.train()
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm | _InstanceNorm) and layer.training]
    model.eval()
    return found


def refuse_batch_statistics(model: nn.Module, score: str) -> None:
    """Raise SwampError for BatchNorm layers that normalise by the batch in eval mode: `score` has single examples."""
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    for name, layer in modules.items():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise SwampError(
                f"the score {score} evaluates one example at a time, and {name!r} ({type(layer).__name__}) normalises "
                "by the batch, as it has no running statistics (track_running_stats=False). Choose another score, e.g. "
                "snip or magnitude."
            )


def scored_weights(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """The weights that the mask names, in its order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in mask}


def effect(gradients: Tensor, weight: Tensor) -> Tensor:
    """First-order change of the loss for a relative change of each weight: g * w, and Re(conj(g) w) if complex."""
    return (gradients.conj() * weight).real if weight.is_complex() else gradients * weight


def square(gradients: Tensor, weight: Tensor) -> Tensor:
    """g^2 in float64, a summand of `squared_effect`; of a complex weight the squared `effect` itself."""
    return (effect(gradients, weight.detach()) if weight.is_complex() else gradients).double().square()


def squared_effect(squares: Tensor, weight: Tensor) -> Tensor:
    """(g w)^2 from a mean of `square`."""
    return squares if weight.is_complex() else squares * weight.detach().double().square()


def wide_zeros(weight: Tensor) -> Tensor:
    """Zeros of the weight's shape in float64, or complex128 for a complex weight."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float64))


def all_batches(context: ScoringContext, score: str) -> Iterator[tuple[Any, Tensor]]:
    """One pass over the training data. Raises SwampError if there is none."""
    if context.batches is None:
        raise SwampError(
            f"the score {score!r} needs training data, and none was given. Pass ScoringContext(batches=...), or choose "
            "a score without data: magnitude or random."
        )
    empty = True
    for inputs, targets in context.batches():
        empty = False
        yield inputs, targets
    if empty:
        raise SwampError(f"the score {score!r} needs training data, and the data has 0 batches.")


def some_batches(context: ScoringContext, score: str) -> Iterator[tuple[Any, Tensor]]:
    """Whole batches of at most `context.examples` examples in total; a larger first batch is cut."""
    seen = 0
    for inputs, targets in all_batches(context, score):
        room = context.examples - seen
        if len(targets) <= room:
            yield inputs, targets
        elif not seen:
            yield rows_of(inputs, slice(room)), targets[:room]
        seen += len(targets)
        if seen >= context.examples:
            return


def batch_gradients(
    model: nn.Module, weights: Sequence[Tensor], context: ScoringContext, score: str
) -> Iterator[tuple[int, list[Tensor]]]:
    """For each of `some_batches`: its number of examples, and the gradient of its mean loss by each weight."""
    for inputs, targets in some_batches(context, score):
        loss = context.loss(context.forward(model, inputs), targets)
        check_loss(loss, score)
        yield len(targets), gradient(loss, weights)


def check_loss(loss: Tensor, score: str) -> None:
    """Raise SwampError if a number in `loss` is NaN or infinite."""
    if not bool(torch.isfinite(loss.detach()).all()):
        raise SwampError(
            f"the loss is NaN or infinite on the examples for the score {score!r}, so weights cannot be ranked. Check "
            "the inputs and the network's initial scale, or choose a score without a loss: magnitude."
        )


def gradient(value: Tensor, weights: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Derivative of a scalar by each weight; zeros for weights it does not depend on. `.grad` is not changed."""
    if not value.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    return list(torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True))
