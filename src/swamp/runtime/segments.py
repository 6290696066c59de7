"""Which steps the sparse runtime takes, and how they are grouped between those that torch runs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from swamp.runtime.program import LAYERS, Program, Ref, Shape, Step, refs

Kind = tuple[int, ...]
"""Of a value: (channels, rows, columns) of an image, or (features,) of vectors along the last dimension."""

CONVOLUTIONS = ("conv1d", "conv2d")


@dataclass(frozen=True, eq=False)
class Segment:
    """Steps that the kernels run in one call."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kinds: dict[str, Kind]


def segments(program: Program, dense: Iterable[str] = ()) -> list[Segment | Step]:
    """The program cut into segments and steps that torch runs, in an order that can be run.

    dense: names of layers to leave to torch. Whatever can run goes first, so that segments grow long.
    """
    refused = set(dense)
    ready = {given.name for given in program.inputs} | set(program.tensors)
    left = list(program.steps)
    found: list[list[Step] | Step] = []
    while left:
        before = len(left)
        left, outside = _taken(left, ready, partial(_outside, program, refused))
        found += outside
        kinds: dict[str, Kind] = {}
        left, inside = _taken(left, ready, partial(_inside, program, refused, kinds))
        if any(step.op in LAYERS for step in inside):
            found.append(inside)
        else:
            found += inside
        if len(left) == before:
            # A step that fits nowhere as it is: torch runs it.
            refused.add(next(step.name for step in left if set(refs((step.args, step.kwargs))) <= ready))
    return [_segment(program, group) if isinstance(group, list) else group for group in found]


def _outside(program: Program, refused: set[str], step: Step) -> bool:
    return step.name in refused or _kind(program, step, {}) is None


def _inside(program: Program, refused: set[str], kinds: dict[str, Kind], step: Step) -> bool:
    return step.name not in refused and _enter(program, step, kinds)


def _taken(steps: list[Step], ready: set[str], fits: Callable[[Step], bool]) -> tuple[list[Step], list[Step]]:
    """Those that remain, and those whose arguments are ready and that fit, taking what they make ready into account."""
    left: list[Step] = []
    taken: list[Step] = []
    for step in steps:
        if set(refs((step.args, step.kwargs))) <= ready and fits(step):
            taken.append(step)
            ready.add(step.name)
        else:
            left.append(step)
    return left, taken


def _segment(program: Program, steps: list[Step]) -> Segment:
    own = {step.name for step in steps}
    kinds: dict[str, Kind] = {}
    for step in steps:
        _enter(program, step, kinds)
    inputs = [name for step in steps for name in values(step) if name not in own]
    later = [name for step in program.steps if step.name not in own for name in refs((step.args, step.kwargs))]
    outside = {*later, *refs(program.output)}
    outputs = [step.name for step in steps if step.name in outside]
    return Segment(tuple(steps), tuple(dict.fromkeys(inputs)), tuple(outputs), kinds)


def values(step: Step) -> list[str]:
    """The activations that a step reads; weights and biases are none."""
    return [ref.name for ref in step.args[: 2 if step.op == "add" else 1] if isinstance(ref, Ref)]


def _enter(program: Program, step: Step, kinds: dict[str, Kind]) -> bool:
    """Whether the step fits to what is known of the segment's values; then its own are known too."""
    found = _kind(program, step, kinds)
    if found is None:
        return False
    of_inputs, own = found
    if any(kinds.get(name, of_inputs) != of_inputs for name in values(step)):
        return False
    # All vectors of a segment have the same leading dimensions, so that one number of examples serves all.
    leads = {lead for name, kind in kinds.items() if (lead := _lead(program, name, kind)) is not None}
    new = {_lead(program, name, of_inputs) for name in values(step)} | {_lead(program, step.name, own)}
    if len(leads | new) > 1:
        return False
    kinds.update({**dict.fromkeys(values(step), of_inputs), step.name: own})
    return True


def _lead(program: Program, name: str, kind: Kind) -> Shape | None:
    shape = program.shape_of(name)
    return None if shape is None else shape[:1] if len(kind) == 3 else shape[:-1]


def _image(shape: Shape | None) -> Kind | None:
    if shape is None or len(shape) not in (3, 4) or any(size is None for size in shape[1:]):
        return None
    return (shape[1], 1, shape[2]) if len(shape) == 3 else tuple(shape[1:])  # pyright: ignore


def _kind(program: Program, step: Step, kinds: dict[str, Kind]) -> tuple[Kind, Kind] | None:
    """Kinds of the activations a step reads and of what it gives; None if the kernels cannot do it."""
    check = _CHECKS.get(step.op)
    shape = program.shape_of(step.args[0].name) if step.args and isinstance(step.args[0], Ref) else None
    if check is None or shape is None or step.shape is None or not _floats(program, step):
        return None
    if step.op in ("relu", "gelu", "add", "batch_norm"):
        # Elementwise: as its inputs are; a tensor that nothing is known of yet is an image if it looks like one.
        known = [kinds[name] for name in values(step) if name in kinds]
        kind = known[0] if known else _image(shape) if len(shape) == 4 else _features(shape)
        return (kind, kind) if kind is not None and check(program, step, kind) else None
    return check(program, step, shape)


def _floats(program: Program, step: Step) -> bool:
    """Whether what can be known of its types is float32."""
    types = {given.name: given.dtype for given in program.inputs}
    types |= {name: tensor.dtype for name, tensor in program.tensors.items()}
    return all(types.get(name, torch.float32) == torch.float32 for name in refs((step.args, step.kwargs)))


def _features(shape: Shape) -> Kind | None:
    return (shape[-1],) if len(shape) >= 2 and shape[-1] is not None else None


def _linear(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _features(shape), _features(step.shape or ())
    known = isinstance(step.args[1], Ref) and step.args[1].name in program.tensors
    return (kind, own) if kind and own and known else None


def _convolution(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _image(shape), _image(step.shape)
    known = isinstance(step.args[1], Ref) and step.args[1].name in program.tensors
    plain = all(not isinstance(argument, str) for argument in step.args)
    return (kind, own) if kind and own and known and plain and len(shape) == len(step.shape or ()) else None


def _pool(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _image(shape), _image(step.shape)
    if not kind or not own or len(shape) != 4:
        return None
    arguments = step.args[3:]
    if step.op == "max_pool2d":
        # Borders are zero: no maximum is below them after a ReLU.
        before = program.step_of.get(step.args[0].name)
        padded = len(arguments) > 0 and any(pair(arguments[0]))
        plain = (not padded or (before is not None and before.op == "relu")) and not any(arguments[2:3])
    else:
        padded = len(arguments) > 0 and any(pair(arguments[0]))
        plain = (
            not any(arguments[1:2]) and not (padded and arguments[2:3] == (False,)) and arguments[3:4] in ((), (None,))
        )
    return (kind, own) if plain and not step.kwargs else None


def _adaptive(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _image(shape), _image(step.shape)
    return (kind, own) if kind and own and own[1:] == (1, 1) and len(shape) == 4 else None


def _mean(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind = _image(shape)
    given = cast("list[int]", step.args[1]) if isinstance(step.args[1], list) else []
    axes = sorted(axis % len(shape) for axis in given)
    if not kind or axes != list(range(2, len(shape))) or step.kwargs:
        return None
    return kind, (kind[0], 1, 1) if step.args[2:3] == (True,) else (kind[0],)


def _flatten(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind = _image(shape)
    whole = tuple(step.args[1:]) in ((1,), (1, -1), (1, len(shape) - 1))
    return (kind, (math.prod(kind),)) if kind and whole else None


def _slice(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _image(shape), _image(step.shape)
    usual: list[Any] = [0, None, None, 1]
    axis, start, _, stride = [*step.args[1:], *usual[len(step.args) - 1 :]]
    if not kind or not own or len(shape) != 4 or axis not in (2, 3) or start not in (0, None):
        return None
    return (kind, own) if isinstance(stride, int) and own[axis - 1] == -(-kind[axis - 1] // stride) else None


def _pad(program: Program, step: Step, shape: Shape) -> tuple[Kind, Kind] | None:
    kind, own = _image(shape), _image(step.shape)
    amounts = list(step.args[1])
    zero = step.args[2:] in ((), ("constant",), ("constant", None), ("constant", 0.0), ("constant", 0))
    channels = len(amounts) == 6 and not any(amounts[:4]) and min(amounts[4:]) >= 0
    return (kind, own) if kind and own and len(shape) == 4 and zero and channels and not step.kwargs else None


def _plain(program: Program, step: Step, kind: Kind) -> bool:
    return not step.kwargs or (step.op == "gelu" and dict(step.kwargs) == {"approximate": "none"})


def _add(program: Program, step: Step, kind: Kind) -> bool:
    shapes = [program.shape_of(ref.name) if isinstance(ref, Ref) else None for ref in step.args]
    return len(shapes) == 2 and shapes[0] == shapes[1] and not step.kwargs and step.args[0] != step.args[1]


def _norm(program: Program, step: Step, kind: Kind) -> bool:
    tensors = [ref is None or ref.name in program.tensors for ref in step.args[1:5]]
    axis = len(program.shape_of(step.args[0].name) or ()) == 2 or len(kind) == 3
    return all(tensors) and not step.args[5] and step.args[3] is not None and axis


_CHECKS: dict[str, Any] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "flatten": _flatten,
    "slice": _slice,
    "pad": _pad,
    "relu": _plain,
    "gelu": _plain,
    "add": _add,
    "batch_norm": _norm,
}


def pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of an argument that may be one number for both, or one of a signal, which is one row."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])
