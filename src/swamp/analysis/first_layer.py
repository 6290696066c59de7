"""A short cut through the first layer: along a line its outputs blend as its weights do.

The first layer sees the inputs alone. Its outputs are linear in its weights, so that at a point sum_n share_n w_n they
are sum_n share_n y_n with y_n the outputs at network n, which are computed once for all points. In a network on images
that begins with a matrix this layer is most of the work: 88 % for LeNet-300-100.
"""

import copy
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swamp.analysis.blend import Blend
from swamp.backends.step import Network
from swamp.training import State

PREFIX = "model."
"""Of the model's own names within a `Network`."""

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class FirstLayer:
    """A network without its first layer, and what that layer would give it."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.layer = network.get_submodule(name)
        self.names = {f"{name}.{own}" for own, _ in self.layer.named_parameters()}
        """Parameters that the rest does without."""
        self.size = sum(parameter.nbytes for parameter in self.layer.parameters())
        """Bytes of these."""
        self.rest = copy.deepcopy(network)
        """The network with that layer's outputs as a buffer."""
        self.rest.set_submodule(name, _Given())
        self.outputs_at = f"{name}.outputs"
        """The name of that buffer."""
        self._of: Sequence[State] | None = None
        self._known: dict[Hashable, Tensor] = {}

    @classmethod
    @torch.no_grad()
    def of(cls, network: Network, inputs: Any) -> "FirstLayer | None":
        """None where no layer is surely the first: one matrix or convolution, called once, on what no weight touched.

        inputs: a batch to try with.
        """
        seen = _first_call(network, {}, inputs)
        # Other weights everywhere: if the layer sees the same, no weight had a part in it.
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
            # Someone else looks at its weights.
            return None
        return found if torch.equal(rest, network(inputs)[0]) else None

    def serves(self, points: Sequence[object]) -> TypeGuard[Sequence[Blend]]:
        """Whether it is of use for these points: blends of the same networks, known ones or fewer than the points."""
        blends = [point for point in points if isinstance(point, Blend)]
        states = blends[0].states if blends else ()
        alike = len(blends) == len(points) and all(blend.states is states for blend in blends)
        if not alike or (states is not self._of and len(points) <= len(states)):
            return False
        # What is not finite in one network would spread to points in which it has no share.
        return states is self._of or all(self._finite(state) for state in states)

    @torch.no_grad()
    def outputs(self, points: Sequence[Blend], batch: Hashable, inputs: Any) -> Tensor:
        """Outputs of the layer (point, example, ...) on `inputs` at points that it serves.

        batch: what `inputs` are called; the outputs of the networks on them are kept for further points.
        """
        states = points[0].states
        if self._of is not states:
            self._of, self._known = states, {}
        if batch not in self._known:
            self._known[batch] = self._of_networks(states, inputs)
        known = self._known[batch]
        shares = torch.tensor([list(point.shares) for point in points], dtype=known.dtype, device=known.device)
        return torch.einsum("pn,n...->p...", shares, known)

    def _of_networks(self, states: Sequence[State], inputs: Any) -> Tensor:
        seen = _first_call(self.network, {}, inputs)
        assert seen is not None
        own = dict(self.layer.named_parameters())
        layers = [{name: self._part(state, name).to(value) for name, value in own.items()} for state in states]
        return torch.stack([functional_call(self.layer, layer, (seen[1],)) for layer in layers])

    def _part(self, state: State, name: str) -> Tensor:
        return state[f"{self.name}.{name}".removeprefix(PREFIX)]

    def _finite(self, state: State) -> bool:
        return all(bool(self._part(state, name).isfinite().all()) for name, _ in self.layer.named_parameters())


class _Given(nn.Module):
    """Gives what it was given."""

    outputs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("outputs", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs


def _first_call(network: nn.Module, weights: dict[str, Tensor], inputs: Any) -> tuple[nn.Module, Tensor] | None:
    """The module with weights of its own that is called first, and its input; None if it is of no known kind."""
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
