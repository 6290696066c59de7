"""Hessian-vector products of the training loss; the matrix is never formed."""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swamp.analysis.run_data import some_examples
from swamp.batches import batch_to
from swamp.errors import SwampError, shortened
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training import Seed, Task
from swamp.training.average import State
from swamp.training.batchnorm import reestimate_batchnorm
from swamp.training.memory_format import to_fastest_memory_format, to_memory_format_of
from swamp.training.module_extra_state import load_state
from swamp.training.rng import isolated

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix A as a function (count, n) -> (count, n) in float64: each row v becomes A v."""


class Hessian:
    """v -> H v, with H the second derivative of the mean training loss at `weights`.

    Vectors are flat, (count, size): the parameters of `layers`, concatenated. Examples are not augmented; dropout is
    off; batch normalisation uses running statistics that are re-estimated at `weights` on about as many examples, and
    are constants for the derivative. Products use double backward: the graph of the gradient is built once per call,
    and each vector costs one more backward pass. The network computes in its own data type; products are summed over
    examples in float64. Neither `model` nor a global random generator is changed.

    Memory: the examples, and about four times the activations of `batch_size` examples.

    Args:
        model: the network.
        task: gives the loss and the training data.
        weights: where the derivative is taken.
        mask: marks the active weights, see `active`. The Hessian includes the pruned weights.
        only: names of the parameters of H, e.g. `mask` for the prunable ones (default: all trainable parameters).
        examples: maximum number of training examples, a fixed random subset.
        batch_size: examples per forward and backward pass.

    Raises:
        SwampError: the mask or weights do not fit the model, or a name in `only` is not a parameter.

    Examples:
        >>> import torch
        >>> from swamp.training import Task, TensorData
        >>> data = TensorData(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        >>> task = Task(data, data, loss=torch.nn.functional.mse_loss)
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> hessian = Hessian(model, task, model.state_dict())  # of w^2 (1 + 9) / 2
        >>> hessian(torch.ones(1, 1)).item()
        10.0
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
        self.task = task
        self.device = next(model.parameters()).device
        self._noise = Seed(0).at("curvature", "noise")
        with isolated(self._noise, self.device):
            self.model = _model_at(model, task, weights, mask, examples)
            self.batches = [batch_to(b, self.device) for b in some_examples(task.train, examples, batch_size)]
        self.examples = sum(len(targets) for _, targets in self.batches)
        parameters = _selected(self.model, only)
        self.layers = {name: parameter.numel() for name, parameter in parameters.items()}
        self.size = sum(self.layers.values())
        self.active = torch.cat([_active(mask, *item).flatten() for item in parameters.items()]).to(self.device)
        """(size,) bool: weights that are not pruned. Parameters without a mask, such as biases, are active."""
        self._tensors = list(parameters.values())
        # One pass per vector is faster on CPU, and for convolutions, where one pass fills the GPU.
        convolutional = any(parameter.dim() > 2 for parameter in self._tensors)
        self.batched = self.device.type == "cuda" and not convolutional

    @torch.enable_grad()
    def __call__(self, vectors: Tensor) -> Tensor:
        """H v for each row v of `vectors` (count, size), as float64 (count, size)."""
        parts = [
            part.reshape(-1, *tensor.shape).to(tensor)
            for part, tensor in zip(self.by_layer(vectors), self._tensors, strict=True)
        ]
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        # The other attention kernels have no second derivative.
        with isolated(self._noise, self.device), sdpa_kernel(SDPBackend.MATH):
            for inputs, targets in self.batches:
                loss = self.task.loss(self.task.forward(self.model, to_memory_format_of(self.model, inputs)), targets)
                for row, product in zip(total, self._products(loss, parts), strict=True):
                    row.add_(product, alpha=len(targets) / self.examples)
        return total

    def by_layer(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Split flat vectors (count, size) into the parts of each layer."""
        return torch.split(vectors, list(self.layers.values()), 1)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]

    def _products(self, loss: Tensor, parts: list[Tensor]) -> Iterable[Tensor]:
        """H v of one batch for each vector, flat."""
        gradients = torch.autograd.grad(loss, self._tensors, create_graph=True, materialize_grads=True)
        # A parameter that the loss is linear in has a constant gradient, without a graph.
        curved = [index for index, gradient in enumerate(gradients) if gradient.requires_grad]
        if not curved:
            return torch.zeros(len(parts[0]), self.size, device=self.device)
        chosen = [gradients[index] for index in curved]
        if self.batched:
            try:
                return self._backward(chosen, [parts[index] for index in curved], batched=True)
            except (RuntimeError, ValueError, TypeError):
                # vmap does not support this network: one vector at a time from now on.
                self.batched = False
        return (
            self._backward(chosen, [parts[index][row] for index in curved], batched=False)
            for row in range(len(parts[0]))
        )

    def _backward(self, gradients: Sequence[Tensor], vectors: Sequence[Tensor], *, batched: bool) -> Tensor:
        # The stub omits that the gradient of an unused tensor is None.
        found = cast(
            "Sequence[Tensor | None]",
            torch.autograd.grad(
                gradients, self._tensors, vectors, retain_graph=True, allow_unused=True, is_grads_batched=batched
            ),
        )
        leading = vectors[0].shape[:1] if batched else ()
        whole = [
            torch.zeros(*leading, tensor.numel(), device=self.device) if part is None else part.reshape(*leading, -1)
            for part, tensor in zip(found, self._tensors, strict=True)
        ]
        return torch.cat(whole, -1)


def restricted(product: Product, mask: Tensor) -> Product:
    """v -> m * A (m * v): the block of A where `mask` m (n,) is true, and zero elsewhere."""
    return lambda vectors: product(vectors * mask) * mask


def _active(mask: Mask | None, name: str, parameter: Tensor) -> Tensor:
    if mask is not None and name in mask:
        return mask[name]
    return torch.ones(parameter.shape, dtype=torch.bool)


def _model_at(model: nn.Module, task: Task, weights: State, mask: Mask | None, examples: int) -> nn.Module:
    if mask is not None:
        mask.check(model)
        mask.require_zeros(weights)
    scratch = copied_model(model)
    load_state(scratch, weights)
    to_fastest_memory_format(scratch, task.train, task.forward, bfloat16=False)
    reestimate_batchnorm(scratch, task.train, forward=task.forward, examples=examples)
    return scratch.eval()


def _selected(model: nn.Module, only: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    names = {name for name, parameter in parameters.items() if parameter.requires_grad} if only is None else set(only)
    imaginary = [name for name, parameter in parameters.items() if name in names and parameter.is_complex()]
    if imaginary:
        raise SwampError(
            f"the Hessian is defined for real parameters, and {shortened(imaginary)} are complex. Give the names of "
            "real ones as `only`."
        )
    if only is None:
        return {name: parameter for name, parameter in parameters.items() if name in names}
    if not names or names - set(parameters):
        raise SwampError(
            f"only={shortened(sorted(names))} must contain parameter names of {type(model).__name__}: "
            f"{shortened(list(parameters))}."
        )
    chosen = {name: parameter for name, parameter in parameters.items() if name in names}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen
