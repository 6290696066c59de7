"""Scope: which parameters may be pruned."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from swamp.arguments import named_fields
from swamp.errors import SwampError, shortened
from swamp.fields import check_fields
from swamp.masks.parametrized import parametrized_tensors, require_plain_weights

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EXPECTED = re.compile("embed|token|pos|bias|norm|scale|bank|prompt|query|queries", re.IGNORECASE)
"""Names of parameters that are no weights of a layer, so that no message is due if they stay dense."""
_SHOWN = 4


class Share(NamedTuple):
    """How much of a model a scope covers."""

    prunable: int
    """Prunable weights."""
    excluded: int
    """Parameters left dense by an `exclude` pattern."""
    total: int
    """All parameters."""
    left_out: Mapping[str, str]
    """Matrices that stay dense, largest first: name -> reason. Those that a pattern excludes are not in it."""

    @property
    def fraction(self) -> float:
        """Prunable over all parameters."""
        return self.prunable / max(1, self.total)


@named_fields
@dataclass(frozen=True)
class Scope:
    """The prunable parameters of a model: by default the weights of all layers that multiply by a matrix.

    In the default scope are linear layers (also GPT-2's `Conv1D` and other libraries' own), convolutions, attention,
    recurrent layers and cells, and the fused experts of mixture-of-experts layers: every parameter with two dimensions
    or more and the word `weight` in its name, or in a module of experts. The original tensor of a parametrised weight
    is pruned if its zeros are zeros of the weight (weight_norm and spectral_norm, not orthogonal).

    Never in the default scope: biases, normalisation layers, embeddings, weights tied to an embedding, and the new
    head and the pooler of a pretrained language model (everything outside its `base_model_prefix`), which are small
    and untrained, so that pruning would empty them first. A weight shared by several modules counts once.

    Args:
        include: Patterns (`*`, `?`) of parameter names that replace the default choice. A tied weight matches by any
            of its names.
        exclude: Patterns of parameter names to leave dense, e.g. `head.*`.
        prune_output_layer: Whether the output layer may be pruned: the head of a pretrained model; for other models the
            last weight in the default scope that they register. None: it may, except the head of a pretrained model.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(Scope(exclude=("2.*",)).prunable(model))
        ['0.weight']
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prune_output_layer: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The prunable parameters.

        Args:
            model: Any module; lazy layers must be initialised.

        Returns:
            Name to parameter, in the order of `model.named_parameters()`.

        Raises:
            SwampError: If a pattern matches no parameter, nothing is prunable, a pattern includes a parametrised tensor
                that cannot be pruned, or a layer computes its weight by an old form of `torch.nn.utils` (weight_norm,
                spectral_norm, prune).
        """
        require_plain_weights(model)
        parameters, names = dict(model.named_parameters()), _all_names(model)
        self._check_patterns([name for aliases in names.values() for name in aliases])
        chosen = self._included(model, parameters) - self._outputs(model, parameters)
        chosen_parameters = {
            name: parameter
            for name, parameter in parameters.items()
            if name in chosen and not _any_matches(names[id(parameter)], self.exclude)
        }
        if not chosen_parameters:
            dense = "" if self._output_prunable(model) else ", the output layer stays dense"
            raise SwampError(
                f"{type(model).__name__} has nothing to prune: none of its {len(parameters)} parameters is in "
                f"scope (include={list(self.include)}, exclude={list(self.exclude)}{dense}). By default the weights of "
                "linear, convolutional, attention and recurrent layers are; select others with include patterns such "
                f"as '*.weight'.{_reasons(self._left_out(model, parameters, names, chosen))}"
            )
        lazy = [name for name, parameter in chosen_parameters.items() if isinstance(parameter, UninitializedParameter)]
        if lazy:
            raise SwampError(f"{lazy[0]!r} has no shape yet. Run the model on one batch before pruning it.")
        return chosen_parameters

    def share(self, model: nn.Module) -> Share:
        """How much of a model is prunable, and what is left out. Raises as `prunable`."""
        names = _all_names(model)
        parameters = {
            n: value for n, value in model.named_parameters() if not isinstance(value, UninitializedParameter)
        }
        chosen = self.prunable(model)
        excluded = sum(
            value.numel()
            for name, value in parameters.items()
            if name not in chosen and _any_matches(names[id(value)], self.exclude)
        )
        total = sum(value.numel() for value in parameters.values())
        left_out = self._left_out(model, parameters, names, {*chosen})
        return Share(sum(value.numel() for value in chosen.values()), excluded, total, left_out)

    def warning(self, model: nn.Module) -> str | None:
        """The warning if less than half of a model is prunable, or a layer is left out; None with `include` patterns.

        Raises as `prunable`.
        """
        if self.include:
            return None
        share, parameters = self.share(model), dict(model.named_parameters())
        sizes = {name: parameters[name].numel() for name in share.left_out}
        unusual = [
            name
            for name, reason in share.left_out.items()
            if reason.startswith("parametrised")
            or (reason == "not a known layer" and not _EXPECTED.search(name) and sizes[name] >= 0.01 * share.total)
        ]
        half = share.prunable + share.excluded >= share.total / 2
        if half and not unusual:
            return None
        shown = unusual if half else list(share.left_out)
        what = ", ".join(f"{name} ({sizes[name]:,}, {share.left_out[name]})" for name in shown[:_SHOWN])
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return (
            f"{100 * share.fraction:.1f} % of the {share.total:,} parameters are prunable, and sparsity counts only "
            f"these. Left dense: {what or 'vectors only'}{more}. To prune other parameters, name all that are to be "
            "pruned with include patterns, such as '*weight*'; to keep one dense without this warning, exclude it."
        )

    def _left_out(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], names: dict[int, list[str]], chosen: set[str]
    ) -> dict[str, str]:
        embedded = _embedded(model)
        fixed = {one.prefix: one for one in parametrized_tensors(model) if one.original is None}
        default = _default(model, parameters)
        found: dict[str, str] = {}
        for name, value in parameters.items():
            # Vectors of attention, tokens and positions are stored as (1, n, channels).
            if name in chosen or value.dim() < 2 or (value.dim() > 2 and value.shape[0] == 1):
                continue
            if _any_matches(names[id(value)], self.exclude):
                continue
            parametrised = next((one for prefix, one in fixed.items() if name.startswith(prefix)), None)
            if parametrised is not None:
                found[name] = f"parametrised by {parametrised.kinds}: its zeros would not be zeros of the weight"
            elif ".parametrizations." in f".{name}":
                continue  # norms, beside the tensor that is pruned
            elif id(value) in embedded:
                found[name] = "embedding"
            elif name in default:
                found[name] = "output layer" if not self.include else "not included"
            else:
                found[name] = "not a known layer"
        return {name: found[name] for name in sorted(found, key=lambda name: -parameters[name].numel())}

    def _check_patterns(self, names: list[str]) -> None:
        for pattern in (*self.include, *self.exclude):
            if not _any_matches(names, (pattern,)):
                raise SwampError(
                    f"no parameter matches the pattern {pattern!r}; the names are {shortened(names) or 'none'}."
                )

    def _included(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
        if not self.include:
            return _default(model, parameters)
        names = _all_names(model)
        found = {name for name, value in parameters.items() if _any_matches(names[id(value)], self.include)}
        for one in parametrized_tensors(model):
            wrong = [name for name in found if name.startswith(one.prefix) and one.original is None]
            wrong = [name for name in wrong if not _any_matches(names[id(parameters[name])], self.exclude)]
            if wrong:
                raise SwampError(
                    f"{wrong[0]!r} cannot be pruned: it is parametrised by {one.kinds}, and its zeros would not be "
                    f"zeros of the weight. Leave it dense: exclude=({one.prefix + '*'!r},)."
                )
        return found

    def _outputs(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
        if self._output_prunable(model):
            return set()
        body = _body(model)
        if body:
            return {name for name in parameters if not name.startswith(body) or name.startswith(f"{body}pooler.")}
        default = _default(model, parameters)
        return set([name for name in parameters if name in default][-1:])

    def _output_prunable(self, model: nn.Module) -> bool:
        # Parameters selected by name are meant to be pruned, the head included.
        return (
            self.prune_output_layer if self.prune_output_layer is not None else bool(self.include) or not _body(model)
        )


def _body(model: Any) -> str:
    """Name prefix of a transformers model's body, all except its head; or ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if isinstance(prefix, str) and prefix and hasattr(model, prefix) else ""


def _default(model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Names of the weights of layers that multiply by a matrix, and that are not tied to an embedding."""
    chosen = {
        id(value)
        for module in model.modules()
        for name, value in module.named_parameters(recurse=False)
        if _is_weight(module, name, value)
    }
    for one in parametrized_tensors(model):
        if one.original is not None and _is_weight(one.module, one.tensor, one.shape):
            chosen.add(id(getattr(one.parametrizations, one.original.name)))
    return {name for name, parameter in parameters.items() if id(parameter) in chosen - _embedded(model)}


def _is_weight(module: nn.Module, name: str, value: Any) -> bool:
    """Whether the module multiplies its inputs by the parameter `name`: one matrix, or several stacked ones."""
    if isinstance(module, _LAYERS):
        return name == "weight"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return name.startswith("weight_")
    kind, words = type(module).__name__, name.split("_")
    if isinstance(module, (*_EMBEDDINGS, *_NORMS)) or re.search("norm|embed", kind, re.IGNORECASE):
        return False
    if isinstance(value, UninitializedParameter):
        return "weight" in words
    matrix = _is_matrix(name, value.shape if isinstance(value, Tensor) else value)
    named = "weight" in words or (bool(re.search("expert", kind, re.IGNORECASE)) and "bias" not in words)
    return (
        matrix
        and named
        and not (isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex())
    )


def _is_matrix(name: str, shape: torch.Size) -> bool:
    # A tensor as (1, 1, 1, channels) is a scale, and one as (channels, 1) of another name a norm.
    return sum(size > 1 for size in shape) >= 2 or (name == "weight" and len(shape) == 2)


def _embedded(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, _EMBEDDINGS)}


def _reasons(left_out: Mapping[str, str]) -> str:
    reasons = [f"{name} is {reason}" for name, reason in left_out.items() if reason.startswith("parametrised")]
    return f" {'; '.join(reasons[:_SHOWN])}." if reasons else ""


def _all_names(model: nn.Module) -> dict[int, list[str]]:
    # A pattern may match a tied weight by the name of any module that shares it.
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _any_matches(names: list[str], patterns: tuple[str, ...]) -> bool:
    # A name is a pattern of itself, also with characters of patterns, such as 'a[0].weight'.
    return any(name == pattern or fnmatchcase(name, pattern) for name in names for pattern in patterns)
