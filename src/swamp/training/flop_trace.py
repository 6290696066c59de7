"""Which parameters the multiplications of a forward pass use, and how often: seen operation by operation."""

# torch.ops has no types.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownLambdaType=false

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_BIASED = (_aten.addmm, _aten.baddbmm, _aten.addmv, _aten.addbmm)
"""Their first argument is added, not multiplied."""
_MOVING = tuple(
    getattr(_aten, name)
    for name in (
        "cat",
        "stack",
        "repeat",
        "index_select",
        "index",
        "gather",
        "flip",
        "roll",
        "slice_scatter",
        "select_scatter",
    )
)
"""Operations that copy elements to other places, and compute nothing."""


def _formulas() -> dict[Any, Any]:
    """FLOPs of operations that torch's own counter leaves out: (args, result) -> number."""
    own: dict[Any, Any] = {
        _aten.mv: lambda args, out: 2 * args[0].numel(),
        _aten.addmv: lambda args, out: 2 * args[1].numel(),
        _aten.dot: lambda args, out: 2 * args[0].numel(),
        _aten.addbmm: lambda args, out: 2 * args[1].numel() * args[2].shape[-1],
        _aten._trilinear: lambda args, out: 2 * _trilinear(args),
    }
    if hasattr(_aten, "_grouped_mm"):
        own[_aten._grouped_mm] = lambda args, out: 2 * out.numel() * args[0].shape[-1]
    return {op: formula for op, formula in own.items() if op not in flop_registry}


def _trilinear(args: Sequence[Any]) -> int:
    """Products of three factors: the number of elements of the three tensors, expanded to one shape."""
    shapes: list[list[int]] = []
    for tensor, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(tensor.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return prod(torch.broadcast_shapes(*shapes))


@dataclass
class _Origin:
    """The parameters whose elements a storage holds."""

    names: tuple[str, ...]
    index: Tensor | None
    """For each element of the storage the number of its parameter element, -1 for none; None: the storage of one
    parameter alone."""


class FlopTrace(TorchDispatchMode):
    """Inside the block: the FLOPs of all matrix products, convolutions and attention products, as FlopCounterMode.

    A product is attributed to the parameter that reaches it as a factor: itself, a view of it, or a tensor that is
    computed from parameters alone (a cast, a concatenation, a parametrisation). Each element of a factor takes part in
    equally many multiplications.

    Args:
        model: Its parameters may reach a product; its buffers are constants.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.total = 0.0
        """FLOPs of all products."""
        self.uses: dict[str, Tensor] = {}
        """Parameter -> multiplications of each element (shape of the parameter, or a scalar), float64."""
        self._parameters = dict(model.named_parameters())
        self._first: dict[str, int] = {}
        self._origins: dict[int, _Origin] = {}
        self._constants: set[int] = set()
        self._kept: list[Any] = []
        self._own = _formulas()
        shared: dict[int, list[str]] = {}
        count = 0
        for name, parameter in self._parameters.items():
            self._first[name] = count
            count += parameter.numel()
            shared.setdefault(_storage(parameter), []).append(name)
        for place, names in shared.items():
            self._origins[place] = _Origin((names[0],), None) if len(names) == 1 else self._joint(names)
        self._constants = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        counted = packet in flop_registry or packet in self._own
        if not counted and func is not torch.ops.prim.device.default:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        if counted:
            self._count(packet, args, kwargs, out)
        self._follow(packet, args, kwargs, out, counted)
        return out

    def _count(self, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        own = self._own.get(packet)
        flops = own(args, out) if own else flop_registry[packet](*args, **kwargs, out_val=out)
        self.total += flops
        factors = args[1:] if packet in _BIASED else args[:2] if "conv" in str(packet) else args
        candidates = [one for one in factors if isinstance(one, Tensor) and one.numel() and self._origin(one)]
        if candidates:
            factor = max(candidates, key=Tensor.numel)
            each: Any = flops / 2 / factor.numel()
            offsets = args[2] if "_grouped_mm" in str(packet) and len(args) > 2 else None
            if isinstance(offsets, Tensor) and factor is args[1]:
                # Each group of rows is multiplied by its own matrix.
                rows = torch.diff(offsets.long(), prepend=offsets.new_zeros(1).long())
                each = rows.double().view(-1, 1, 1).expand(factor.shape)
            self._use(factor, each)

    def _use(self, factor: Tensor, each: Any) -> None:
        origin = self._origins[_storage(factor)]
        name = origin.names[0]
        if origin.index is None and factor.numel() == self._parameters[name].numel() and not isinstance(each, Tensor):
            self.uses[name] = self.uses.get(name, torch.zeros((), dtype=torch.float64)) + each
            return
        numbers = self._numbers(factor).reshape(-1)
        weights = torch.as_tensor(each, dtype=torch.float64).expand(factor.shape).reshape(-1)
        for name in origin.names:
            parameter = self._parameters[name]
            own = numbers - self._first[name]
            mine = (own >= 0) & (own < parameter.numel())
            if not bool(mine.any()):
                continue
            counts = torch.zeros(parameter.numel(), dtype=torch.float64)
            counts.index_add_(0, own[mine].cpu(), weights[mine.cpu()].cpu())
            self.uses[name] = self.uses.get(name, torch.zeros((), dtype=torch.float64)) + counts.view(parameter.shape)

    def _follow(self, packet: Any, args: Any, kwargs: Any, out: Any, counted: bool) -> None:
        """Note which results are constants, and which hold elements of parameters."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
        if not all(_storage(one) in self._constants or not one.numel() for one in given):
            for result in results:
                self._constants.discard(_storage(result))
            return
        for result in results:
            place = _storage(result)
            if place not in self._constants:
                self._constants.add(place)
                # Kept, so that no other tensor gets its memory.
                self._kept.append(result)
            reached = [one for one in given if self._origin(one)]
            if reached and not counted and place not in self._origins and result.numel():
                self._derive(packet, args, kwargs, result, reached)

    def _derive(self, packet: Any, args: Any, kwargs: Any, result: Tensor, reached: list[Tensor]) -> None:
        numbers: Tensor | None = None
        if packet in _MOVING:
            moved = packet(*tree_map(self._numbers_or_none, args), **kwargs)
            numbers = moved if isinstance(moved, Tensor) and moved.shape == result.shape else None
        else:
            same = [one for one in reached if one.shape == result.shape]
            numbers = self._numbers(same[0]) if same else None
        if numbers is not None:
            size = result.untyped_storage().nbytes() // result.element_size()
            index = torch.full((size,), -1, dtype=torch.int64, device=result.device)
            index.as_strided(result.size(), result.stride(), result.storage_offset()).copy_(numbers)
            names = dict.fromkeys(name for one in reached for name in self._origins[_storage(one)].names)
            self._origins[_storage(result)] = _Origin(tuple(names), index)

    def _numbers_or_none(self, value: Any) -> Any:
        """Numbers in place of a floating-point tensor; an index stays as it is."""
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        return self._numbers(value) if self._origin(value) else torch.full(value.shape, -1, device=value.device)

    def _numbers(self, tensor: Tensor) -> Tensor:
        """For each element of a tensor the number of the parameter element that it holds."""
        origin = self._origins[_storage(tensor)]
        if origin.index is None:
            origin.index = self._joint(origin.names).index
            assert origin.index is not None
        return origin.index.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _joint(self, names: Sequence[str]) -> _Origin:
        first = self._parameters[names[0]]
        size = first.untyped_storage().nbytes() // first.element_size()
        index = torch.full((size,), -1, dtype=torch.int64, device=first.device)
        for name in names:
            own = self._parameters[name]
            numbers = torch.arange(own.numel(), device=own.device).view(own.shape) + self._first[name]
            index.as_strided(own.size(), own.stride(), own.storage_offset()).copy_(numbers)
        return _Origin(tuple(names), index)

    def _origin(self, tensor: Tensor) -> _Origin | None:
        return self._origins.get(_storage(tensor)) if tensor.layout is torch.strided else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


@contextmanager
def decomposed() -> Generator[None]:
    """Inside the block attention, recurrent layers and transformers run as products that a counter sees."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # torch's own context manager uses its old name of a setting.
            warnings.filterwarnings("ignore", ".*TF32", UserWarning)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))  # pyright: ignore
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # pyright: ignore
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def trace_flops(model: nn.Module, run: Any) -> tuple[float, Mapping[str, Tensor]]:
    """FLOPs of `run()`, and the multiplications of each element of each parameter of `model` in it."""
    with torch.no_grad(), decomposed(), FlopTrace(model) as counter:
        run()
    return counter.total, counter.uses
