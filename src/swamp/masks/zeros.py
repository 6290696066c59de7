"""Which zeros of a model are pruned weights, and which come from its initialisation."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from swamp.errors import SwampError, shortened, warn
from swamp.masks.parametrized import parametrized_tensors, require_plain_weights
from swamp.masks.scope import Scope


def masks_from_zeros(model: nn.Module, scope: Scope | None) -> dict[str, Tensor]:
    """Parameter name -> where it is not a pruned zero. See `Mask.from_zeros`."""
    require_plain_weights(model)
    chosen, nothing = _scope_of(model, scope)
    # Zeros of the other tensors behind a parametrised weight, such as an orthogonal one, are not zeros of the weight.
    computing = {
        id(value)
        for one in parametrized_tensors(model)
        for name, value in one.parametrizations.named_parameters()
        if one.original is None or name != one.original.name
    }
    padding = {id(m.weight): m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    found: dict[str, Tensor] = {}
    initial: list[str] = []
    for name, weight in model.named_parameters():
        if name not in chosen and (scope is not None or id(weight) in computing):
            continue
        if isinstance(weight, UninitializedParameter):
            raise SwampError(f"{name!r} has no shape yet. Run the model on one batch before reading its zeros.")
        active = weight.detach() != 0
        row = padding.get(id(weight))
        if row is not None:
            active[row] = True
        if _initial(weight.detach(), active) and weight.requires_grad:
            if weight.dim() > 1:
                initial.append(name)
            active = torch.ones_like(active)
        if name in chosen or not bool(active.all()):
            found[name] = active
    if nothing is not None and not found:
        raise nothing
    if initial:
        warn(
            f"{shortened(initial)} consist of zeros and require a gradient: they count as initialised to zero, not as "
            "pruned, and are left free to train. If they are pruned, pass their mask (swamp.Mask.load)."
        )
    return found


def _scope_of(model: nn.Module, scope: Scope | None) -> tuple[set[str], SwampError | None]:
    """The parameters that the mask covers in any case; the error if the default scope has none."""
    try:
        return {*(scope or Scope()).prunable(model)}, None
    except SwampError as error:
        # A lazy layer has no zeros yet, and the error says what to do.
        if scope is not None or any(isinstance(value, UninitializedParameter) for value in model.parameters()):
            raise
        return set(), error


def _initial(weight: Tensor, active: Tensor) -> bool:
    """Whether the zeros come from initialisation: all zeros, or a vector of zeros and of one other value."""
    values = weight[active]
    if not len(values):
        return bool(weight.numel())
    return weight.dim() < 2 and bool((values == values[0]).all())
