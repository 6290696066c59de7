"""Loss and error of a network at many points of weight space, each with its own normalisation statistics."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import (
    functional_call,
    vmap,  # pyright: ignore[reportUnknownVariableType]
)

from swamp.analysis.first_layer import MODEL_PREFIX, FirstLayer
from swamp.analysis.weight_space import LinearCombination
from swamp.backends.vmapped_step import Network
from swamp.batches import batch_to, first_of
from swamp.model_copy import copied_model
from swamp.training import Task, predict
from swamp.training.average import State
from swamp.training.batchnorm import batchnorm_layers, reestimate_batchnorm, spectral_norms, statistics_batches
from swamp.training.data import Data, sampled
from swamp.training.memory_format import to_fastest_memory_format
from swamp.training.module_extra_state import as_tensors, load_state
from swamp.training.rng import Seed, isolated

Point = State | LinearCombination
"""Weights, or a linear combination of networks that is computed when it is evaluated."""

_MAX_BYTES = {"cpu": 2**23}
"""Total size of the weights evaluated at once: about the size of a CPU's caches; 2**28 on other devices."""
_MAX_POINTS = 32
"""Points evaluated at once."""
_BATCH = 256
"""Examples per call on CPU: activations of all points fit in the caches."""
_SMALL = 2**17
"""Bytes of weights of a network with batch normalisation up to which a stack is faster on CPU."""
_REFRESH_BATCH = 256
"""The batch size of `reestimate_batchnorm`: stacked points get the statistics of single ones."""


@dataclass(frozen=True)
class PointMetrics:
    """Loss and error of the network at a point; NaN or infinite where the network gives such values."""

    loss: float
    """Mean loss over the examples."""
    error: float
    """Error in [0, 1]."""


class PointEvaluator:
    """Evaluates loss and error of a network at points of weight space, several points at once.

    Batch normalisation statistics are re-estimated at every point, from about `examples` training examples. On GPU, and
    for small networks on CPU, points are evaluated as one stack with `vmap`; networks that cannot be stacked, and
    convolutions on CPU (slower as a stack), are evaluated one by one. In a stack of linear combinations of the same
    networks, the first layer is computed only for these networks (`FirstLayer`).

    Args:
        model: the network; its own weights do not matter and are not changed.
        task: gives the loss, the error, and the training data for normalisation statistics.
        data: where loss and error are measured (default: the held-out data of the task, never the test data).
        examples: maximum number of examples, a fixed random subset of `data`.

    Examples:
        >>> import torch
        >>> from swamp.training import Task, TensorData
        >>> data = TensorData(torch.eye(2), torch.tensor([0, 1]))
        >>> evaluator = PointEvaluator(torch.nn.Linear(2, 2, bias=False), Task(data, data))
        >>> [metrics] = evaluator([{"weight": torch.eye(2)}])
        >>> metrics.error
        0.0
    """

    def __init__(self, model: nn.Module, task: Task, data: Data | None = None, *, examples: int = 10_000) -> None:
        self.model, self.task, self.examples = copied_model(model), task, examples
        self.data = sampled(task.held_out if data is None else data, examples)
        self.device = next(model.parameters()).device
        spectral = bool(spectral_norms(model))
        self.normed = spectral or bool(batchnorm_layers(model))
        convolutional = any(parameter.dim() > 2 for parameter in model.parameters())
        size = sum(value.numel() * value.element_size() for value in as_tensors(model.state_dict()).values())
        most = _MAX_BYTES.get(self.device.type, 2**28)
        # On CPU, convolutions and large networks with batch normalisation are slower as a stack.
        slow = self.device.type == "cpu" and (convolutional or (self.normed and size > _SMALL))
        slow = slow or task.own is not None or spectral
        self.at_once = 1 if slow else max(1, min(_MAX_POINTS, most // max(1, size)))
        self.first: FirstLayer | None = None
        if self.at_once > 1:
            self.network = Network(copied_model(model), task).eval()
            self.first = self._first_layer()
            if self.first:
                size -= self.first.size
                self.at_once = max(1, min(_MAX_POINTS, most // max(1, size)))
        else:
            to_fastest_memory_format(self.model, task.train, task.forward, bfloat16=False)

    def __call__(self, points: Iterable[Point]) -> list[PointMetrics]:
        """Loss and error at each of `points`, in order."""
        found: list[PointMetrics] = []
        pending = iter(points)
        while part := [*islice(pending, self.at_once)]:
            found += self._stacked(part) if len(part) > 1 and self.at_once > 1 else map(self._single, part)
        return found

    def _first_layer(self) -> FirstLayer | None:
        try:
            inputs, _ = batch_to(next(iter(self.data.in_order(1))), self.device)
            with isolated(Seed(0).at("evaluation"), self.device):
                return FirstLayer.of(self.network, inputs)
        except (RuntimeError, ValueError, TypeError):
            return None

    def _single(self, point: Point) -> PointMetrics:
        load_state(self.model, _weights(point))
        if self.normed:
            reestimate_batchnorm(self.model, self.task.train, forward=self.task.forward, examples=self.examples)
        if self.task.own is not None:
            loss = self.task.evaluate(self.model, "train", self.examples).metrics["loss"]
            return PointMetrics(loss, self.task.error_on_held_out(self.model))
        return self._metrics(*predict(self.model, self.task, self.data, examples=self.examples))

    def _stacked(self, points: Sequence[Point]) -> list[PointMetrics]:
        try:
            outputs, targets = self._outputs(_Stack.of(self.network, self.first, points, self.device))
        except (RuntimeError, ValueError, TypeError):
            # vmap does not support this forward pass: evaluate one by one from now on.
            self.at_once = 1
            to_fastest_memory_format(self.model, self.task.train, self.task.forward, bfloat16=False)
            return [self._single(point) for point in points]
        return [self._metrics(own, targets) for own in outputs]

    @torch.no_grad()
    def _outputs(self, stack: "_Stack") -> tuple[Tensor, Tensor]:
        """Outputs (point, example, ...) and targets (example, ...)."""
        if self.normed:
            self._refresh(stack)
        outputs: list[Tensor] = []
        targets: list[Tensor] = []
        batch_size = min(_BATCH if self.device.type == "cpu" else 1024, self.examples)
        for number, batch in enumerate(first_of(self.data.in_order(batch_size), self.examples)):
            inputs, target = batch_to(batch, self.device)
            outputs.append(stack.run(("held out", number), inputs)[0])
            targets.append(target)
        return torch.cat(outputs, 1)[:, : self.examples], torch.cat(targets)[: self.examples]

    def _refresh(self, stack: "_Stack") -> None:
        """Re-estimate the running statistics of each point, as `reestimate_batchnorm` does."""
        layers = batchnorm_layers(stack.network)
        momenta = [layer.momentum for layer in layers]
        before = stack.buffers
        own = {id(buffer) for layer in layers for buffer in (layer.running_mean, layer.running_var)}
        tracked = [name for name, buffer in stack.network.named_buffers() if id(buffer) in own]
        total = {name: torch.zeros_like(before[name]) for name in tracked}
        seen, first = 0.0, 0
        try:
            for layer in layers:
                # The statistics of each batch replace the previous ones; the mean is computed here.
                layer.train()
                layer.momentum = 1.0
            for number, batch in enumerate(statistics_batches(self.task.train, _REFRESH_BATCH, self.examples)):
                inputs, targets = batch_to(batch, self.device)
                first = first or len(targets)
                weight = len(targets) / first
                # The forward pass writes into buffers: each batch starts from a copy.
                stack.buffers = {name: value.clone() for name, value in before.items()}
                after = stack.run(("training", number), inputs)[1]
                seen += weight
                for name, value in total.items():
                    value += weight * after[name]
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.eval()
                layer.momentum = momentum
        stack.buffers = before | {name: value / seen for name, value in total.items()}

    def _metrics(self, outputs: Tensor, targets: Tensor) -> PointMetrics:
        return PointMetrics(float(self.task.loss(outputs, targets)), self.task.error_of(outputs, targets))


@dataclass
class _Stack:
    """Points as one network; its parameters and buffers have a leading axis (point, ...)."""

    network: nn.Module
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    first: FirstLayer | None
    """If given, `network` is the rest of the network, without its first layer."""
    points: Sequence[Point]

    @classmethod
    def of(cls, network: Network, first: FirstLayer | None, points: Sequence[Point], device: torch.device) -> "_Stack":
        if first and not first.serves(points):
            first = None
        without = {name.removeprefix(MODEL_PREFIX) for name in first.names} if first else ()
        states = [point.weights(without) if isinstance(point, LinearCombination) else point for point in points]
        whole = network if first is None else first.rest

        def stacked(names: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            # Non-persistent buffers are not in a state: every point gets the model's.
            return {
                n: torch.stack([s.get(n.removeprefix(MODEL_PREFIX), v).to(device) for s in states]) for n, v in names
            }

        return cls(whole, stacked(whole.named_parameters()), stacked(whole.named_buffers()), first, points)

    def run(self, batch: Hashable, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (point, example, ...) on `inputs` and the final buffers; `batch` is the cache key of `inputs`."""
        buffers = self.buffers
        if self.first:
            given = self.first.outputs(cast("Sequence[LinearCombination]", self.points), batch, inputs)
            buffers = {**buffers, self.first.outputs_at: given}
        forward = vmap(self._forward, in_dims=(0, 0, None), randomness="error")
        return forward(self.weights, buffers, inputs)

    def _forward(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Any) -> tuple[Tensor, Any]:
        return functional_call(self.network, (weights, buffers), (inputs,))


def _weights(point: Point) -> State:
    return point.weights() if isinstance(point, LinearCombination) else point
