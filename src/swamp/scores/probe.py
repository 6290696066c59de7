"""What the criteria share that differentiate a network: a copy to do it on, examples, gradients."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.scores.score import Evidence


@contextmanager
def pruned_copy(
    model: nn.Module, mask: Mask, generator: torch.Generator, *, batch_statistics: bool = False
) -> Generator[nn.Module]:
    """A copy of `model` with its pruned weights zero, in eval mode, whose scored weights alone take gradients.

    batch_statistics: BatchNorm normalises by its batch, as in training. Whatever draws from torch's global generator
    inside the block (dropout that ignores the mode, a user's loader) does so from a seed of `generator`'s.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(generator.initial_seed())
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(generator.initial_seed())
        copied = copy.deepcopy(model).eval()
        mask.apply_(copied)
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(name in mask)
        for layer in copied.modules():
            if batch_statistics and isinstance(layer, _BatchNorm):
                layer.train()
        # The kernel of attention that has second derivatives and can be vectorised over examples without a warning.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield copied


def scored_weights(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """The weights that the mask names, in its order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in mask}


def all_batches(evidence: Evidence, score: str) -> Iterator[tuple[Any, Tensor]]:
    """One pass over the training data. Raises SwampError where there is none."""
    if evidence.batches is None:
        raise SwampError(
            f"the score {score!r} looks at training data, and none was given. Pass Evidence(batches=...), or take a "
            "score that needs none: magnitude or random."
        )
    empty = True
    for inputs, targets in evidence.batches():
        empty = False
        yield inputs, targets
    if empty:
        raise SwampError(f"the score {score!r} looks at training data, and there were 0 batches in it.")


def some_batches(evidence: Evidence, score: str) -> Iterator[tuple[Any, Tensor]]:
    """Whole batches as long as they have at most `evidence.examples` together; a first one that is larger is cut."""
    seen = 0
    for inputs, targets in all_batches(evidence, score):
        room = evidence.examples - seen
        if len(targets) <= room:
            yield inputs, targets
        elif not seen:
            yield rows(inputs, slice(room)), targets[:room]
        seen += len(targets)
        if seen >= evidence.examples:
            return


def rows(inputs: Any, index: slice | Tensor | None) -> Any:
    """Some examples of a batch of inputs, a tensor or a mapping of tensors, which becomes a plain dict.

    None: one example as a batch of one.
    """
    if isinstance(inputs, Mapping):
        return {name: value[index] for name, value in cast("Mapping[str, Tensor]", inputs).items()}
    return inputs[index]


def check_loss(loss: Tensor, score: str) -> None:
    """Raise SwampError for a loss (or several) that is NaN or infinite."""
    if not bool(torch.isfinite(loss.detach()).all()):
        raise SwampError(
            f"the loss is NaN or infinite on the examples that {score!r} looks at, so it ranks nothing. Check the "
            "inputs and the network's initial scale, or take a score that needs no loss: magnitude."
        )


def gradient(value: Tensor, weights: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Derivative of a scalar by each weight; zeros where it does not reach one. Nothing is written to `.grad`."""
    if not value.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    return list(torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True))
