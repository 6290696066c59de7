"""Models and optimizers that other libraries wrap: accelerate, Lightning Fabric, DDP, torch.compile, Lookahead."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

from swamp.errors import MaskError

_INNER_MODULES = ("module", "_orig_mod", "_forward_module", "_original_module")


def unwrapped_model(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """The module inside DDP, torch.compile or Fabric wrappers that has parameters of these names; else `model`."""
    wanted, inner = set(names), model
    while not wanted <= {name for name, _ in inner.named_parameters()}:
        found = [child for name, child in inner.named_children() if name in _INNER_MODULES]
        if not found:
            return model
        inner = found[0]
    return inner


def optimizer_chain(optimizer: Any) -> list[Any]:
    """The optimizer and all optimizers that it wraps, outermost first.

    An optimizer is recognised by its `step` method and its `param_groups`: wrappers of accelerate, Fabric, Lookahead
    and others keep the wrapped one, or several, as an attribute.

    Raises:
        MaskError: For an object that is not an optimizer.
    """
    if not _is_optimizer(optimizer):
        raise MaskError(
            f"swamp.hold needs the optimizer of the model's parameters, an object with `step` and `param_groups`; got "
            f"{type(optimizer).__name__}."
        )
    chain: list[Any] = []
    waiting: list[Any] = [optimizer]
    while waiting:
        found = waiting.pop(0)
        if any(found is one for one in chain):
            continue
        chain.append(found)
        for value in [*getattr(found, "__dict__", {}).values()]:
            several = cast("list[Any]", [*value]) if isinstance(value, list | tuple) else [value]
            waiting += [one for one in several if _is_optimizer(one)]
    return chain


def has_step_hooks(optimizer: Any) -> bool:
    """Whether torch's step hooks run: not in wrappers that skip the constructor of torch.optim.Optimizer."""
    # torch wraps the class's `step` when its constructor runs, and marks it.
    return (
        isinstance(optimizer, torch.optim.Optimizer)
        and "_optimizer_step_post_hooks" in vars(optimizer)
        and bool(getattr(type(optimizer).step, "hooked", False))
    )


def around_step(
    optimizer: Any, after: Callable[[], None], closure: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> Callable[[], None]:
    """Call `after` after each step of the optimizer, and replace the closure of each step; returns the removal."""
    return (_by_hooks if has_step_hooks(optimizer) else _by_attribute)(optimizer, after, closure)


def _with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[..., Any], first: int) -> Any:
    if "closure" in kwargs and callable(kwargs["closure"]):
        return args, {**kwargs, "closure": change(kwargs["closure"])}
    if len(args) > first and callable(args[first]):
        return (*args[:first], change(args[first]), *args[first + 1 :]), kwargs
    return args, kwargs


def _by_hooks(optimizer: Any, after: Callable[[], None], closure: Callable[..., Any]) -> Callable[[], None]:
    def before_step(stepped: Any, args: Any, kwargs: Any) -> Any:
        del stepped
        return _with_closure(args, kwargs, closure, 1)  # the first argument is the optimizer

    def after_step(stepped: Any, args: Any, kwargs: Any) -> None:
        del stepped, args, kwargs
        after()

    handles = [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(after_step)]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _by_attribute(optimizer: Any, after: Callable[[], None], closure: Callable[..., Any]) -> Callable[[], None]:
    inner, held = optimizer.step, [True]
    own = "step" in vars(optimizer)

    def step(*args: Any, **kwargs: Any) -> Any:
        if not held:
            return inner(*args, **kwargs)
        args, kwargs = _with_closure(args, kwargs, closure, 0)
        result = inner(*args, **kwargs)
        after()
        return result

    optimizer.step = step

    def remove() -> None:
        held.clear()
        # A learning-rate scheduler created meanwhile may have wrapped `step`; then it stays, without effect.
        if optimizer.__dict__.get("step") is step:
            if own:
                optimizer.step = inner
            else:
                del optimizer.step

    return remove


def _is_optimizer(value: Any) -> bool:
    try:
        return callable(getattr(value, "step", None)) and isinstance(value.param_groups, list)
    except Exception:  # properties of foreign objects may raise anything
        return False
