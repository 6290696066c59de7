"""Rewrites of programs that inference allows; see compact.py for one more."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swamp.runtime.program import LAYERS, Program, Ref, Step, mapped


def _rewritten(program: Program, change: Callable[[Step], Step | Ref]) -> Program:
    """Every step changed, or left out in favour of another value."""
    renamed: dict[str, Ref] = {}

    def follow(ref: Ref) -> Ref:
        return renamed.get(ref.name, ref)

    steps: list[Step] = []
    for step in program.steps:
        changed = change(replace(step, args=mapped(step.args, follow), kwargs=mapped(step.kwargs, follow)))
        if isinstance(changed, Ref):
            renamed[step.name] = changed
        else:
            steps.append(changed)
    return replace(program, steps=tuple(steps), output=mapped(program.output, follow))


_END = 2**62


def without_identities(program: Program) -> Program:
    """Without steps that do nothing in eval mode, such as dropout."""

    def change(step: Step) -> Step | Ref:
        same = step.op in ("dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh_copy")
        if step.op == "slice":
            usual: list[Any] = [0, 0, _END, 1]
            _, start, end, stride = [*step.args[1:], *usual[len(step.args) - 1 :]]
            same = start in (0, None) and (end is None or (isinstance(end, int) and end > _END)) and stride == 1
        return step.args[0] if same else step

    return _rewritten(program, change)


def folded(program: Program) -> Program:
    """The program for inference: BatchNorm is part of the layer before it where nothing else reads that layer.

    Equal to rounding; what nothing reads any more is left out.
    """
    return _averaged(_normed(program)).pruned_of_dead()


def _normed(program: Program) -> Program:
    tensors = dict(program.tensors)
    done: dict[str, Step] = {}

    def change(step: Step) -> Step | Ref:
        if step.op == "batch_norm" and isinstance(step.args[0], Ref):
            layer = done.get(step.args[0].name)
            if layer is not None and program.uses[layer.name] == 1 and not step.args[5]:
                done[layer.name] = _with_norm(layer, step, tensors)
                return Ref(layer.name)
        if step.op in LAYERS and program.uses[step.args[1].name] == 1:
            done[step.name] = step
        return step

    rewritten = _rewritten(program, change)
    steps = tuple(done.get(step.name, step) for step in rewritten.steps)
    return replace(rewritten, steps=steps, tensors=tensors)


def _weight(layer: Step) -> str:
    args: Sequence[Any] = layer.args
    return args[1].name


def _with_norm(layer: Step, norm: Step, tensors: dict[str, Tensor]) -> Step:
    gain, shift, mean, var = (None if ref is None else tensors[ref.name].double() for ref in norm.args[1:5])
    assert mean is not None
    assert var is not None
    scale = (var + norm.args[7]).rsqrt() * (1 if gain is None else gain)
    weight = tensors[_weight(layer)]
    given = layer.args[2] if len(layer.args) > 2 else None
    before = torch.zeros_like(mean) if given is None else tensors[given.name].double()
    bias = (before - mean) * scale + (0 if shift is None else shift)
    name = _weight(layer)
    own = f"{name}.folded_bias"
    tensors[name] = (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    tensors[own] = bias.to(weight.dtype)
    return replace(layer, args=(*layer.args[:2], Ref(own), *layer.args[3:]))


def _averaged(program: Program) -> Program:
    """`x.flatten(2).mean(2)` is the mean over rows and columns: one step that the runtime knows."""
    found = program.step_of

    def change(step: Step) -> Step | Ref:
        if step.op != "mean" or len(step.args) != 2 or step.kwargs or not isinstance(step.args[0], Ref):
            return step
        flat = found.get(step.args[0].name)
        if flat is None or flat.op != "flatten" or list(step.args[1]) not in ([2], [-1]):
            return step
        shape = program.shape_of(flat.args[0].name)
        if shape is None or tuple(flat.args[1:]) not in ((2,), (2, -1), (2, len(shape) - 1)) or len(shape) < 3:
            return step
        return replace(step, args=(flat.args[0], list(range(2, len(shape)))))

    return _rewritten(program, change)
