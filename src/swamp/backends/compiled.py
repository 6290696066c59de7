"""A function of tensors compiled by torch's inductor, without the guards that `torch.compile` checks in every call."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Compiled:
    """A function of nested tensors that changes some of them in place, compiled once for each set of shapes.

    For a small network the guards of `torch.compile` take a tenth of a step. Here only shapes can change, and they are
    checked when arguments are bound. Uses private modules of torch: `make compat` tests the supported versions.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.known: dict[Any, Callable[..., Any]] = {}

    def bound(self, *fixed: Any) -> Callable[..., None]:
        """The function with its first arguments fixed; the other arguments keep the shapes of the first call.

        The first call compiles, and raises the errors of tracing and of the compiler.
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
    """The tensors in nested values, like torch's `tree_leaves` but four times as fast."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else value)


def _inductor(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
    # Imported here, because the import takes seconds.
    import torch._inductor
    from torch._dynamo import config
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if config.disable:  # what TORCH_COMPILE_DISABLE=1 sets
        return function
    # Traced without computing; tensors that are not arguments, such as the weights of a loss, become constants.
    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    # Static shapes compile a network of convolutions in half the time; the shape environment keeps inductor's cache of
    # earlier processes in use.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with tracing(TracingContext(mode)):
        compiled: Any = torch._inductor.compile(graph, [mode.from_tensor(one, static_shapes=True) for one in inputs])
    return compiled
