"""Nested batches: tensors inside tuples, lists, dicts, dataclasses and objects of other libraries."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map

from swamp.errors import SwampError

Batch = tuple[Any, Any]
"""(inputs, targets). Inputs are a tensor, or tensors in tuples, lists, dicts and dataclasses, nested."""


_ANY_FORM = "Task.custom(train, loss, evaluate) takes batches of any form."


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` applied to each tensor in it; its other parts are unchanged.

    Args:
        function: Tensor -> tensor.
        value: A tensor, or tensors in tuples, lists, dicts (other mappings become dicts) and dataclasses, nested. Own
            classes of these kinds are made anew by their constructors.
    """
    return _map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def _map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function` applied to each part that is no container."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {key: _map_leaves(function, part) for key, part in cast("Mapping[Any, Any]", leaf).items()}
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            parts = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf) if field.init}
            return dataclasses.replace(leaf, **{name: _map_leaves(function, part) for name, part in parts.items()})
        if isinstance(leaf, list | tuple):
            # torch opens no class derived from list or tuple, and older versions none derived from a named tuple.
            changed = [_map_leaves(function, part) for part in cast("Sequence[Any]", leaf)]
            return type(leaf)(*changed) if hasattr(leaf, "_fields") else type(leaf)(changed)  # pyright: ignore
        return function(leaf)

    return function(value) if isinstance(value, Tensor) else tree_map(one, value)


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Place -> tensor, for each tensor in a nested value; the place of a lone tensor is ""."""
    found: dict[str, Tensor] = {}
    for path, leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            found[path] = leaf
    return found


def others_of(value: Any) -> dict[str, Any]:
    """Place -> part, for each part of a nested value that is neither a tensor nor a container."""
    return {path: leaf for path, leaf in _leaves(value) if not isinstance(leaf, Tensor)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    pairs = cast("Sequence[tuple[Any, Any]]", tree_flatten_with_path(value)[0])
    for keys, leaf in pairs:
        place = ".".join([*filter(None, [path]), *(str(getattr(k, "key", getattr(k, "idx", k))) for k in keys)])
        if isinstance(leaf, Mapping):
            for key, part in cast("Mapping[Any, Any]", leaf).items():
                yield from _leaves(part, f"{place}.{key}" if place else str(key))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            # Only those that `_map_leaves` changes: the class computes the others.
            for field in (field for field in dataclasses.fields(leaf) if field.init):
                name = f"{place}.{field.name}" if place else field.name
                yield from _leaves(getattr(leaf, field.name), name)
        elif isinstance(leaf, list | tuple):
            for number, part in enumerate(cast("Sequence[Any]", leaf)):
                yield from _leaves(part, f"{place}.{number}" if place else str(number))
        else:
            yield place, leaf


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors, and other parts that have a method `to`, on `device`."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        # Graphs of torch_geometric are no containers that torch knows.
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf

    inputs, targets = batch
    return _map_leaves(moved, inputs), moved(targets)


def first_of(batches: Iterable[Batch], examples: int | None) -> Iterator[Batch]:
    """The first of `batches`, to the one that makes up `examples` examples (None: all of them)."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch[1])
        if examples is not None and seen >= examples:
            return


def rows_of(inputs: Any, rows: slice | int | Tensor) -> Any:
    """The examples `rows` of a batch of inputs, or one example.

    Raises:
        SwampError: The inputs have parts that are no tensors with one row an example.
    """
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if not can_split(inputs):
        parts = [f"{place} {tuple(part.shape)}" for place, part in tensors_of(inputs).items()]
        raise SwampError(
            "this batch cannot be split into examples: that needs tensors of the same length only, got "
            f"{', '.join([*parts, *others_of(inputs)]) or type(inputs).__name__}."
        )
    return map_tensors(lambda tensor: tensor[rows], inputs)


def can_split(inputs: Any) -> bool:
    """Whether the inputs are tensors with one row an example, and nothing else."""
    tensors = tensors_of(inputs).values()
    return (
        bool(tensors)
        and not others_of(inputs)
        and len({t.shape[:1] for t in tensors}) == 1
        and all(t.dim() > 0 for t in tensors)
    )


def stack_inputs(parts: Sequence[Any]) -> Any:
    """The inputs of several batches, stacked to (batch, ...). Raises RuntimeError if they differ in shape."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(list(parts))
    if others_of(first):
        raise RuntimeError(f"batches with parts that are no tensors cannot be stacked: {', '.join(others_of(first))}.")
    columns = [iter(tensors_of(part).values()) for part in parts]
    return map_tensors(lambda _: torch.stack([next(column) for column in columns]), first)


def as_batch(batch: Any) -> Batch:
    """(inputs, targets) of a batch.

    Args:
        batch: A pair (inputs, targets); a longer tuple or list, its last part being the targets; or a mapping with
            `labels`, `label` or `targets`.

    Raises:
        SwampError: For anything else, and for targets that are not a tensor.
    """
    if isinstance(batch, Mapping):
        fields = dict(cast("Mapping[str, Any]", batch))
        for key in ("labels", "label", "targets"):
            if key in fields:
                return {name: value for name, value in fields.items() if name != key}, _targets(fields[key])
        raise SwampError(
            f"a dict batch needs 'labels', 'label' or 'targets'; this one has {sorted(fields)}. {_ANY_FORM}"
        )
    parts: Any = batch
    if isinstance(batch, tuple | list) and len(parts) >= 2:
        return (parts[0] if len(parts) == 2 else tuple(parts[:-1])), _targets(parts[-1])
    raise SwampError(
        f"a batch must be (inputs, targets) or a dict with labels, got {_described(parts)}. All examples at once are "
        f"given as a tuple of tensors, (inputs, targets). {_ANY_FORM}"
    )


def _targets(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise SwampError(f"the targets of a batch must be one tensor, got {_described(targets)}. {_ANY_FORM}")
    if not targets.dim():
        raise SwampError(
            "the targets of a batch must be a tensor (examples, ...), got a single number. Single examples in a list "
            f"are given as DataLoader(examples). {_ANY_FORM}"
        )
    return targets


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(cast(Sequence[Any], value))}" if isinstance(value, tuple | list) else f"a {kind}"


def opaque(batch: Any) -> Batch:
    """(batch, empty targets): a batch whose loss is computed from all of it. The targets (examples, 0) count it."""
    return batch, torch.empty(examples_in(batch), 0)


def examples_in(batch: Any) -> int:
    """Number of examples: `num_graphs` of the batch, or the length of its first tensor; 1 where there is neither."""
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    lengths = [len(tensor) for tensor in tensors_of(batch).values() if tensor.dim()]
    return max(1, lengths[0]) if lengths else 1
