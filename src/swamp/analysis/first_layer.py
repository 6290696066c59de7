"""Computes the outputs of the first layer once per network for all linear combinations of the networks.

The outputs of a linear first layer are linear in its weights: at sum_n c_n w_n they are sum_n c_n y_n, with y_n the
outputs at network n. The y_n are computed once for all points. In a fully connected network on images, the first layer
is most of the work: 88 % for LeNet-300-100.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swamp.analysis.weight_space import LinearCombination
from swamp.backends.vmapped_step import Network
from swamp.model_copy import copied_model
from swamp.training.average import State

MODEL_PREFIX = "model."
"""Prefix of the model's parameter names in a `Network`."""

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class FirstLayer:
    """A network split into its first layer, whose outputs are linear in the weights, and all other layers."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.layer = network.get_submodule(name)
        self.names = {f"{name}.{own}" for own, _ in self.layer.named_parameters()}
        """Names of the parameters of the first layer."""
        self.size = sum(parameter.nbytes for parameter in self.layer.parameters())
        """Size of these parameters in bytes."""
        self.rest = copied_model(network)
        """The network with a buffer in place of the layer's outputs."""
        self.rest.set_submodule(name, _Precomputed())
        self.outputs_at = f"{name}.outputs"
        """Name of that buffer."""
        self._of: Sequence[State] | None = None
        self._known: dict[Hashable, Tensor] = {}

    @classmethod
    @torch.no_grad()
    def of(cls, network: Network, inputs: Any) -> "FirstLayer | None":
        """Find the first layer; None if there is no linear layer or convolution that is called once, on the raw inputs.

        inputs: a batch to test with.
        """
        seen = _first_call(network, {}, inputs)
        # With all weights changed, the layer must get the same inputs: they do not depend on weights.
        other = {name: value * 0.5 + 0.125 for name, value in network.named_parameters()}
        again = _first_call(network, other, inputs)
        if seen is None or again is None or not torch.equal(seen[1], again[1]):
            return None
        modules = cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
        names = {module: name for name, module in modules}
        found = cls(network, names[seen[0]])
        given: Tensor = found.layer(seen[1])
        try:
            rest, _ = functional_call(found.rest, {found.outputs_at: given}, (inputs,))
        except AttributeError:
            # Another part of the network uses the weights of the layer.
            return None
        return found if torch.equal(rest, network(inputs)[0]) else None

    def serves(self, points: Sequence[object]) -> TypeGuard[Sequence[LinearCombination]]:
        """Whether all points are combinations of the same networks, already evaluated or fewer than the points."""
        combinations = [point for point in points if isinstance(point, LinearCombination)]
        states = combinations[0].states if combinations else ()
        alike = len(combinations) == len(points) and all(one.states is states for one in combinations)
        if not alike or (states is not self._of and len(points) <= len(states)):
            return False
        # NaN in one network would spread to points where its coefficient is 0.
        return states is self._of or all(self._finite(state) for state in states)

    @torch.no_grad()
    def outputs(self, points: Sequence[LinearCombination], batch: Hashable, inputs: Any) -> Tensor:
        """Outputs of the layer (point, example, ...) on `inputs`, at points for which `serves` is true.

        batch: key of `inputs`, under which the outputs of the networks are cached for further points.
        """
        states = points[0].states
        if self._of is not states:
            self._of, self._known = states, {}
        if batch not in self._known:
            self._known[batch] = self._of_networks(states, inputs)
        known = self._known[batch]
        coefficients = torch.tensor(
            [list(point.coefficients) for point in points], dtype=known.dtype, device=known.device
        )
        return torch.einsum("pn,n...->p...", coefficients, known)

    def _of_networks(self, states: Sequence[State], inputs: Any) -> Tensor:
        seen = _first_call(self.network, {}, inputs)
        assert seen is not None
        own = dict(self.layer.named_parameters())
        layers = [{name: self._part(state, name).to(value) for name, value in own.items()} for state in states]
        return torch.stack([functional_call(self.layer, layer, (seen[1],)) for layer in layers])

    def _part(self, state: State, name: str) -> Tensor:
        return state[f"{self.name}.{name}".removeprefix(MODEL_PREFIX)]

    def _finite(self, state: State) -> bool:
        return all(bool(self._part(state, name).isfinite().all()) for name, _ in self.layer.named_parameters())


class _Precomputed(nn.Module):
    """Returns outputs that were computed before."""

    outputs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("outputs", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs


def _first_call(network: nn.Module, weights: dict[str, Tensor], inputs: Any) -> tuple[nn.Module, Tensor] | None:
    """The first module called that has parameters itself, and its input; None if it is not a linear layer."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.append((module, arguments))

    own = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    if any(_hooked(module) for module in own):
        return None
    handles = [module.register_forward_pre_hook(note) for module in own]
    try:
        functional_call(network, weights, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    if not calls or type(calls[0][0]) not in _LINEAR or sum(module is calls[0][0] for module, _ in calls) > 1:
        return None
    module, arguments = calls[0]
    fits = len(arguments) == 1 and isinstance(arguments[0], Tensor)
    return (module, cast(Tensor, arguments[0])) if fits else None


def _hooked(module: nn.Module) -> bool:
    return any(len(getattr(module, hooks)) > 0 for hooks in ("_forward_hooks", "_forward_pre_hooks"))
