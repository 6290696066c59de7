"""A function of tensors compiled by torch's inductor, without what `torch.compile` looks at in every call."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Compiled:
    """`function` of nested tensors, which changes some of them in place: compiled once for each set of shapes.

    Trying whether what was compiled still holds, for every argument of every call, takes `torch.compile` a tenth of a
    small network's step. Here nothing but shapes can change, and those that do are seen when arguments are bound.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.known: dict[Any, Callable[..., Any]] = {}

    def bound(self, *fixed: Any) -> Callable[..., None]:
        """The function with its first arguments fixed; the others keep the shapes that they have in the first call.

        That call raises whatever tracing or a compiler may.
        """
        mine = tree_leaves(fixed)
        run: Callable[..., Any] | None = None

        def call(*rest: Any) -> None:
            nonlocal run
            if run is None:
                run = self._compiled((*fixed, *rest))
            run(*mine, *_leaves(rest))

        return call

    def _compiled(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        leaves, spec = tree_flatten(arguments)
        key = str(spec), *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves)
        if key not in self.known:

            def flat(*given: Tensor) -> tuple[Tensor, ...]:
                self.function(*tree_unflatten(list(given), spec))
                return ()

            self.known[key] = _inductor(flat, leaves)
        return self.known[key]


def _leaves(values: Iterable[Any]) -> Iterator[Tensor]:
    """What torch's `tree_leaves` gives, in a quarter of the time."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else value)


def _inductor(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
    # Here, as they take seconds to import.
    import torch._inductor
    from torch._dynamo import config
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if config.disable:  # what TORCH_COMPILE_DISABLE=1 sets
        return function
    # Traced without computing; tensors that are no arguments, such as the weights of a loss, are constants.
    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    # Where sizes may change inductor looks for what it compiled in earlier processes; here none does, which compiles a
    # network of convolutions in half of the time.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with tracing(TracingContext(mode)):
        compiled: Any = torch._inductor.compile(graph, [mode.from_tensor(one, static_shapes=True) for one in inputs])
    return compiled
