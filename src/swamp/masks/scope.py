"""Scope: which parameters may be pruned."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from swamp.errors import SwampError, shortened

_PRUNABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Scope:
    """The prunable parameters of a model: by default the weights of all linear, convolutional and attention layers.

    Never in the default scope: biases, normalisation layers, embeddings, weights tied to an embedding, and the new
    head and the pooler of a pretrained language model (everything outside its `base_model_prefix`), which are small
    and untrained, so that pruning would empty them first. A weight shared by several modules counts once.

    Args:
        include: Patterns (`*`, `?`) of parameter names that replace the default choice. A tied weight matches by any
            of its names.
        exclude: Patterns of parameter names to leave dense, e.g. `head.*`.
        prune_output_layer: Whether the output layer may be pruned: the head of a pretrained model; for other models the
            last linear or convolutional weight that they register. None: it may, except the head of a pretrained model.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(Scope(exclude=("2.*",)).prunable(model))
        ['0.weight']
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prune_output_layer: bool | None = None

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The prunable parameters.

        Args:
            model: Any module; lazy layers must be initialised.

        Returns:
            Name to parameter, in the order of `model.named_parameters()`.

        Raises:
            SwampError: If a pattern matches no parameter, or nothing is prunable.
        """
        parameters = dict(model.named_parameters())
        names = _all_names(model)
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
                "linear and convolutional layers are; select others with include patterns such as '*.weight'."
            )
        lazy = [name for name, parameter in chosen_parameters.items() if isinstance(parameter, UninitializedParameter)]
        if lazy:
            raise SwampError(f"{lazy[0]!r} has no shape yet. Run the model on one batch before pruning it.")
        return chosen_parameters

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
        return {name for name, value in parameters.items() if _any_matches(names[id(value)], self.include)}

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
    """Names of the weights of linear, convolutional and attention layers that are not tied to an embedding."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    chosen: set[int] = set()
    for module in model.modules():
        if isinstance(module, _PRUNABLE):
            chosen.add(id(module.weight))
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            chosen.add(id(module.weight))  # the linear layer of GPT-2 in transformers
        elif isinstance(module, nn.MultiheadAttention):
            weights = (getattr(module, name) for name in _ATTENTION_WEIGHTS)
            chosen.update(id(weight) for weight in weights if weight is not None)
    return {name for name, parameter in parameters.items() if id(parameter) in chosen - embedded}


def _all_names(model: nn.Module) -> dict[int, list[str]]:
    # A pattern may match a tied weight by the name of any module that shares it.
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _any_matches(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
