"""The Hessian of a network's loss, as what it makes of a vector: it is never written down."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swamp.analysis.examples import first_examples
from swamp.errors import SwampError, shortened
from swamp.masks import Mask
from swamp.training import Seed, State, Task, arrange, batch_to, isolated, refresh
from swamp.training.layout import arranged_for

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix A as (count, n) -> (count, n), float64: each row v becomes A v."""

_REFRESH_BATCH = 256


class Hessian:
    """v -> H v for H the second derivative of the mean training loss over the first `examples`, at `weights`.

    Vectors are flat, (count, size): the parameters of `layers` one after the other. Examples come in order and without
    augmentation; dropout is off; batch normalisation uses running statistics made anew at `weights` on about as many
    examples, and these count as constants. By double backward: the graph of the gradient is made once for all vectors
    of a call, and each costs one more pass through it. The network computes in its own type; products are summed over
    examples in float64. The same vectors give the same products, and neither `model` nor the global generators move.

    Memory: the examples, and for `batch_size` of them the activations about four times.
    Raises SwampError for a mask or weights that do not fit, and for names that are no parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        weights: State,
        mask: Mask | None = None,
        *,
        only: Iterable[str] | None = None,
        examples: int = 500,
        batch_size: int = 500,
    ) -> None:
        """mask: says which weights survive, see `alive`; the Hessian is of all of them, pruned ones included.

        only: names of the parameters that H is about, e.g. `mask` for the prunable ones; None: all that are trained.
        """
        self.task = task
        self.device = next(model.parameters()).device
        self._noise = Seed(0).at("curvature", "noise")
        with isolated(self._noise, self.device):
            self.model = _at(model, task, weights, mask, examples)
            self.batches = [batch_to(b, self.device) for b in first_examples(task.train, examples, batch_size)]
        self.examples = sum(len(targets) for _, targets in self.batches)
        parameters = _chosen(self.model, only)
        self.layers = {name: parameter.numel() for name, parameter in parameters.items()}
        self.size = sum(self.layers.values())
        self.alive = torch.cat([_alive(mask, *item).flatten() for item in parameters.items()]).to(self.device)
        """(size,) bool: the survivors. What the mask does not name, such as a bias, is never pruned: it is one."""
        self._tensors = list(parameters.values())
        # On CPU one pass a vector is the faster way; so is it where a pass fills a GPU by itself.
        wide = any(parameter.dim() > 2 for parameter in self._tensors)
        self.batched = self.device.type == "cuda" and not wide

    @torch.enable_grad()
    def __call__(self, vectors: Tensor) -> Tensor:
        """H v for each row v of `vectors` (count, size), as float64 (count, size)."""
        parts = [
            part.reshape(-1, *tensor.shape).to(tensor)
            for part, tensor in zip(self.by_layer(vectors), self._tensors, strict=True)
        ]
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        # The kernel of attention that has second derivatives.
        with isolated(self._noise, self.device), sdpa_kernel(SDPBackend.MATH):
            for inputs, targets in self.batches:
                loss = self.task.loss(self.task.forward(self.model, arranged_for(self.model, inputs)), targets)
                for row, product in zip(total, self._products(loss, parts), strict=True):
                    row.add_(product, alpha=len(targets) / self.examples)
        return total

    def by_layer(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Each layer's part of flat vectors (count, size)."""
        return torch.split(vectors, list(self.layers.values()), 1)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]

    def _products(self, loss: Tensor, parts: list[Tensor]) -> Iterable[Tensor]:
        """One batch's H v, flat, for each of the vectors."""
        slopes = torch.autograd.grad(loss, self._tensors, create_graph=True, materialize_grads=True)
        # What the loss is linear in has a constant slope, without a graph.
        curved = [index for index, slope in enumerate(slopes) if slope.requires_grad]
        if not curved:
            return torch.zeros(len(parts[0]), self.size, device=self.device)
        chosen = [slopes[index] for index in curved]
        if self.batched:
            try:
                return self._backward(chosen, [parts[index] for index in curved], together=True)
            except (RuntimeError, ValueError, TypeError):
                # A network whose gradient cannot be vectorised: from now on one vector after the other.
                self.batched = False
        return (
            self._backward(chosen, [parts[index][row] for index in curved], together=False)
            for row in range(len(parts[0]))
        )

    def _backward(self, slopes: Sequence[Tensor], vectors: Sequence[Tensor], *, together: bool) -> Tensor:
        # Its stub leaves out that an unused tensor has none.
        found = cast(
            "Sequence[Tensor | None]",
            torch.autograd.grad(
                slopes, self._tensors, vectors, retain_graph=True, allow_unused=True, is_grads_batched=together
            ),
        )
        leading = vectors[0].shape[:1] if together else ()
        whole = [
            torch.zeros(*leading, tensor.numel(), device=self.device) if part is None else part.reshape(*leading, -1)
            for part, tensor in zip(found, self._tensors, strict=True)
        ]
        return torch.cat(whole, -1)


def restricted(product: Product, kept: Tensor) -> Product:
    """v -> m * A (m * v), for `kept` m (n,) bool: the block of A where m is true, and zero elsewhere."""
    return lambda vectors: product(vectors * kept) * kept


def _alive(mask: Mask | None, name: str, parameter: Tensor) -> Tensor:
    if mask is not None and name in mask:
        return mask[name]
    return torch.ones(parameter.shape, dtype=torch.bool)


def _at(model: nn.Module, task: Task, weights: State, mask: Mask | None, examples: int) -> nn.Module:
    if mask is not None:
        mask.check(model)
        mask.require_zeros(weights)
    scratch = copy.deepcopy(model)
    scratch.load_state_dict(dict(weights))
    arrange(scratch, narrow=False)
    batches = math.ceil(examples / _REFRESH_BATCH)
    refresh(scratch, task.train, forward=task.forward, batch_size=_REFRESH_BATCH, batches=batches)
    return scratch.eval()


def _chosen(model: nn.Module, only: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    if only is None:
        return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    names = set(only)
    if not names or names - set(parameters):
        raise SwampError(
            f"only={shortened(sorted(names))} must name parameters of {type(model).__name__}: "
            f"{shortened(list(parameters))}."
        )
    chosen = {name: parameter for name, parameter in parameters.items() if name in names}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen
