"""PEFT: LoRA adapters on a sparse base model, and merges that keep its zeros bit-exactly.

The base of a PEFT model is frozen, so that its zeros stay while adapters train. A plain merge adds the dense product of
the two factors, and the zeros are lost. Train inside `masked_adapters`, where the product acts on active weights only,
and merge with `merge`: the merged sparse model computes what was trained.
"""

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError, warn
from swamp.masks import Mask

_MASKED: "WeakSet[nn.Module]" = WeakSet()
"""Models whose adapters were trained inside `masked_adapters`."""


def adapter_mask(model: nn.Module, mask: Mask | None = None) -> Mask:
    """The mask of the base weights, with the parameter names of the PEFT model.

    Args:
        model: A PEFT model, as `peft.get_peft_model` returns it.
        mask: Mask with the names of the base model, as pruning returned it (default: its zeros, see `Mask.from_zeros`).

    Returns:
        The mask for `swamp.hold(model, mask, optimizer)`, needed where base weights train too (`modules_to_save`).

    Raises:
        SwampError: For a model that is not of PEFT, a dense base, and a mask of another model.

    Examples:
        ```python
        model = peft.get_peft_model(sparse.model, peft.LoraConfig(target_modules=["query", "value"]))
        adapter_mask(model, sparse.mask)
        ```
    """
    base, names = _base(model)
    places = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(base.named_parameters())
    return Mask({places[id(parameters[names[name]])]: active for name, active in _base_mask(model, mask).items()})


@contextmanager
def masked_adapters(model: nn.Module, mask: Mask | None = None) -> Generator[None]:
    """Inside the block LoRA adapters change active weights only: W + mask * (B A), with any training loop.

    The output of each adapted layer is corrected by the product's part on pruned weights, at the cost of one dense
    matrix product more per layer and step.

    Args:
        model: A PEFT model with LoRA adapters on linear layers.
        mask: See `adapter_mask`.

    Raises:
        SwampError: For other adapters on a pruned layer: variants as DoRA, convolutions, embeddings, other tuners.
            Inside the block: for adapters that are added or merged there, and for batches of several adapters.

    Examples:
        ```python
        with masked_adapters(model, sparse.mask):
            trainer.train()
        merged = merge(model, sparse.mask)
        ```
    """
    handles: list[Any] = []
    masks = adapter_mask(model, mask)
    try:
        for name, layer in _adapted(model):
            active = masks.get(f"{name}.base_layer.weight")
            if active is not None:
                _require_plain_lora(name, layer)
                handles += _corrected(layer, active)
        _MASKED.add(model)
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def merge(model: nn.Module, mask: Mask | None = None) -> nn.Module:
    """Merge the adapters into the base model; pruned weights stay exactly zero.

    Warns if the adapters were not trained inside `masked_adapters` of this process: then the merge cuts a part of what
    they learned.

    Args:
        model: A PEFT model; as with `merge_and_unload`, it is used up.
        mask: See `adapter_mask`.

    Returns:
        The base model without adapters, with its own parameter names.

    Raises:
        SwampError: See `adapter_mask`.

    Examples:
        ```python
        merged = merge(model, sparse.mask)
        sparse.mask.require_zeros(merged.state_dict())
        ```
    """
    plain, trained = _base_mask(model, mask), model in _MASKED
    merged: nn.Module = cast(Any, model).merge_and_unload()
    plain.check(merged)
    weights = dict(merged.named_parameters())
    cut = sum(float(weights[name][~active].double().square().sum()) for name, active in plain.items()) ** 0.5
    if cut and not trained:
        warn(
            f"the adapters change pruned weights by {cut:.3g} (norm), which this merge cuts. Train them inside "
            "swamp.integrations.peft.masked_adapters, so that the merged model computes what was trained."
        )
    plain.apply_(merged)
    return merged


def _base_mask(model: nn.Module, mask: Mask | None) -> Mask:
    """The mask with the names of the base model without adapters."""
    base, names = _base(model)
    if mask is None:
        with warnings.catch_warnings():
            # The second factors start at zero; they are no base weights.
            warnings.simplefilter("ignore")
            found = Mask.from_zeros(base)
        own = {plain: found[name] for plain, name in names.items() if name in found and "lora_" not in name}
        mask = Mask({name: active for name, active in own.items() if not active.all()})
        if not mask:
            raise SwampError(f"the base of this {type(model).__name__} has no zeros to keep. Prune it first.")
    wrong = [name for name in mask if name not in names]
    if wrong:
        raise SwampError(f"the mask names {wrong[0]!r}, which the base model does not have. Use the mask of this base.")
    return mask


def _base(model: Any) -> tuple[nn.Module, dict[str, str]]:
    """The base model with adapters in it, and own name -> name there of each of its parameters."""
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        raise SwampError(f"{type(model).__name__} is not a PEFT model: wrap the sparse model by peft.get_peft_model.")
    base: nn.Module = model.get_base_model()
    # A module to save is trained as a copy of the original one, which stays beside it.
    named = [name for name, _ in base.named_parameters() if ".original_module." not in name]
    return base, {re.sub(r"\.(base_layer|modules_to_save\.[^.]+)\.", ".", name): name for name in named}


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    modules: dict[str, Any] = dict(model.named_modules())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return [
        (name, module) for name, module in modules.items() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]


def _require_plain_lora(name: str, layer: Any) -> None:
    factors: Any = getattr(layer, "lora_A", {})
    linear = len(factors) > 0 and all(isinstance(factor, nn.Linear) for factor in factors.values())
    if not linear or getattr(layer, "lora_variant", {}) or layer.base_layer.weight.dim() != 2:
        raise SwampError(
            f"the adapter of {name!r} ({type(layer).__name__}) is not a plain LoRA of a linear layer, so it cannot "
            "be masked. Leave this layer out of target_modules, or out of the mask."
        )


def _corrected(layer: Any, active: Tensor) -> list[Any]:
    inputs: dict[str, Tensor] = {}
    pruned, hooked = ~active, dict(layer.lora_A.items())

    def remember(adapter: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[adapter] = args[0]  # after dropout

        return hook

    def require_correctable(options: dict[str, Any]) -> None:
        if options.get("adapter_names") is not None:
            raise SwampError(
                "adapter_names mixes several adapters in a batch, which masked_adapters cannot correct. Call the model "
                "for each adapter by itself, after set_adapter(name)."
            )
        if layer.merged:
            raise SwampError(
                "the adapters were merged inside masked_adapters, so that they change pruned weights too. Leave the "
                "block first, and merge by swamp.integrations.peft.merge(model, mask)."
            )
        added = [n for n in layer.active_adapters if n in layer.lora_A and layer.lora_A[n] is not hooked.get(n)]
        if added:
            raise SwampError(
                f"the adapter {added[0]!r} was added inside masked_adapters, which would not mask it. Add it before "
                "the block."
            )

    def correct(module: nn.Module, args: Any, options: dict[str, Any], output: Tensor) -> Tensor:
        require_correctable(options)
        for adapter, given in inputs.items():
            change: Tensor = layer.get_delta_weight(adapter)
            change = change * pruned.to(change.device)
            change = change.t() if layer.fan_in_fan_out else change
            output = output - F.linear(given, change.to(given.dtype)).to(output.dtype)
        inputs.clear()
        return output

    own = [factor.register_forward_pre_hook(remember(adapter)) for adapter, factor in hooked.items()]
    return [*own, layer.register_forward_hook(correct, with_kwargs=True)]
