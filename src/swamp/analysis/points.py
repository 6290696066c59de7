"""Loss and error of a network at many points of weight space, with normalisation statistics made for each."""

import copy
import math
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

from swamp.analysis.blend import Blend
from swamp.analysis.first_layer import PREFIX, FirstLayer
from swamp.backends.step import Network
from swamp.training import Data, State, Task, arrange, batch_to, norm_layers, predict, refresh

Point = State | Blend
"""Weights, or the sum of a few networks' that makes them when it is its turn."""

_MOST_BYTES = {"cpu": 2**23}
"""Of the weights of the points that are evaluated at once: about what a processor's caches hold; 2**28 elsewhere."""
_MOST = 32
"""Points that are evaluated at once."""
_BATCH = 256
"""Examples: so many activations of so many points still lie in a processor's caches."""
_SMALL = 2**17
"""Bytes of weights."""
_REFRESH_BATCH = 256


@dataclass(frozen=True)
class Value:
    """What the network is worth at a point. Not finite where it is not: that is shown, not hidden."""

    loss: float
    """Mean over the examples."""
    error: float
    """In [0, 1]."""


class Points:
    """Evaluates a network at points of weight space, as many at once as is fast.

    data: where loss and error are taken, its first `examples`; statistics of batch normalisation come from about as
    many training examples, made anew at every point, as everywhere in this library. Small networks on CPU, and all on
    GPU, are evaluated as one stack; where that cannot be (or, for convolutions on CPU, does not pay) one by one. In a
    stack of blends of the same networks, the first layer is computed for these alone (`FirstLayer`).
    """

    def __init__(self, model: nn.Module, task: Task, data: Data | None = None, *, examples: int = 10_000) -> None:
        self.model, self.task, self.examples = copy.deepcopy(model), task, examples
        self.data = task.held_out if data is None else data
        self.device = next(model.parameters()).device
        self.normed = bool(norm_layers(model))
        wide = any(parameter.dim() > 2 for parameter in model.parameters())
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        most = _MOST_BYTES.get(self.device.type, 2**28)
        # On CPU, convolutions and all but small normalised networks are slower as a stack.
        slow = self.device.type == "cpu" and (wide or (self.normed and size > _SMALL))
        self.together = 1 if slow else max(1, min(_MOST, most // max(1, size)))
        self.first: FirstLayer | None = None
        if self.together > 1:
            self.network = Network(copy.deepcopy(model), task).eval()
            self.first = self._first_layer()
            if self.first:
                size -= self.first.size
                self.together = max(1, min(_MOST, most // max(1, size)))
        else:
            arrange(self.model, narrow=False)

    def __call__(self, points: Iterable[Point]) -> list[Value]:
        """The values at `points`, in their order."""
        values: list[Value] = []
        waiting = iter(points)
        while part := [*islice(waiting, self.together)]:
            values += self._stacked(part) if len(part) > 1 and self.together > 1 else map(self._alone, part)
        return values

    def _first_layer(self) -> FirstLayer | None:
        try:
            inputs, _ = batch_to(next(iter(self.data.in_order(1))), self.device)
            return FirstLayer.of(self.network, inputs)
        except (RuntimeError, ValueError, TypeError):
            return None

    def _alone(self, point: Point) -> Value:
        self.model.load_state_dict(dict(_weights(point)))
        if self.normed:
            batches = math.ceil(self.examples / _REFRESH_BATCH)
            forward = self.task.forward
            refresh(self.model, self.task.train, forward=forward, batch_size=_REFRESH_BATCH, batches=batches)
        outputs, targets = predict(self.model, self.task, self.data, examples=self.examples)
        return self._value(outputs, targets)

    def _stacked(self, points: Sequence[Point]) -> list[Value]:
        try:
            outputs, targets = self._outputs(_Stack.of(self.network, self.first, points, self.device))
        except (RuntimeError, ValueError, TypeError):
            # A forward pass that cannot be stacked: from now on one by one.
            self.together = 1
            arrange(self.model, narrow=False)
            return [self._alone(point) for point in points]
        return [self._value(own, targets) for own in outputs]

    @torch.no_grad()
    def _outputs(self, stack: "_Stack") -> tuple[Tensor, Tensor]:
        """Outputs (point, example, ...) and targets."""
        if self.normed:
            self._refresh(stack)
        outputs: list[Tensor] = []
        targets: list[Tensor] = []
        seen = 0
        for batch in self.data.in_order(min(_BATCH if self.device.type == "cpu" else 1024, self.examples)):
            inputs, target = batch_to(batch, self.device)
            outputs.append(stack.run(("held out", seen), inputs)[0])
            targets.append(target)
            seen += len(target)
            if seen >= self.examples:
                break
        return torch.cat(outputs, 1)[:, : self.examples], torch.cat(targets)[: self.examples]

    def _refresh(self, stack: "_Stack") -> None:
        """Running statistics of each point: the equal-weight mean over batches, as `refreshed` makes them."""
        layers = norm_layers(stack.network)
        momenta = [layer.momentum for layer in layers]
        before = stack.buffers
        total = {n: torch.zeros_like(b) for n, b in before.items() if n.endswith(("running_mean", "running_var"))}
        count, first = 0, 0
        try:
            for layer in layers:
                # A batch's own statistics replace what was there, and are averaged here.
                layer.train()
                layer.momentum = 1.0
            batches = math.ceil(self.examples / _REFRESH_BATCH)
            for number, batch in enumerate(islice(self.task.train.in_order(_REFRESH_BATCH), batches)):
                inputs, targets = batch_to(batch, self.device)
                first = first or len(targets)
                if len(targets) < first:
                    continue
                # What is written into is not what the next batch begins with.
                stack.buffers = {name: value.clone() for name, value in before.items()}
                after = stack.run(("training", number), inputs)[1]
                count += 1
                for name, value in total.items():
                    value += after[name]
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.eval()
                layer.momentum = momentum
        stack.buffers = before | {name: value / count for name, value in total.items()}

    def _value(self, outputs: Tensor, targets: Tensor) -> Value:
        return Value(float(self.task.loss(outputs, targets)), self.task.error_of(outputs, targets))


@dataclass
class _Stack:
    """Points as one network whose parameters and buffers have a leading axis (point, ...)."""

    network: nn.Module
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    first: FirstLayer | None
    """Where the network is what follows its first layer."""
    points: Sequence[Point]

    @classmethod
    def of(cls, network: Network, first: FirstLayer | None, points: Sequence[Point], device: torch.device) -> "_Stack":
        if first and not first.serves(points):
            first = None
        without = {name.removeprefix(PREFIX) for name in first.names} if first else ()
        states = [point.weights(without) if isinstance(point, Blend) else point for point in points]
        whole = network if first is None else first.rest

        def stacked(names: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            # Buffers that a state dict leaves out are the model's own, for every point.
            return {n: torch.stack([s.get(n.removeprefix(PREFIX), v).to(device) for s in states]) for n, v in names}

        return cls(whole, stacked(whole.named_parameters()), stacked(whole.named_buffers()), first, points)

    def run(self, batch: Hashable, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (point, example, ...) on `inputs`, and the buffers afterwards; batch: what the inputs are called."""
        buffers = self.buffers
        if self.first:
            given = self.first.outputs(cast("Sequence[Blend]", self.points), batch, inputs)
            buffers = {**buffers, self.first.outputs_at: given}
        forward = vmap(self._forward, in_dims=(0, 0, None), randomness="error")
        return forward(self.weights, buffers, inputs)

    def _forward(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Any) -> tuple[Tensor, Any]:
        return functional_call(self.network, (weights, buffers), (inputs,))


def _weights(point: Point) -> State:
    return point.weights() if isinstance(point, Blend) else point
