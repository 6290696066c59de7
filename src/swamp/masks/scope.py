"""Which parameters may be pruned."""

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
    """The prunable parameters of a model: by default the weights of every linear and convolutional layer.

    Biases, normalisation layers and embeddings are never in the default scope; a weight shared by several
    modules counts once, and one shared with an embedding stays out. Nor is the new head of a pretrained language
    model, which is small and has learned nothing yet: what is outside its `base_model_prefix`, and its pooler, whose
    small weights would go first of all and cut the network in two.
    """

    include: tuple[str, ...] = ()
    """Patterns (`*`, `?`) of parameter names that replace the default choice. A tied weight has several names."""
    exclude: tuple[str, ...] = ()
    """Patterns of parameter names to leave dense, e.g. `head.*`."""
    output: bool | None = None
    """Whether the output layer may be pruned: the head of a pretrained model, of others the last linear or
    convolutional weight they register. None: that of others may."""

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name to parameter, in the model's own order. Raises SwampError when nothing is left to prune."""
        parameters = dict(model.named_parameters())
        names = _all_names(model)
        self._check_patterns([name for aliases in names.values() for name in aliases])
        chosen = self.include_or_default(model, parameters) - self._outputs(model, parameters)
        kept = {
            name: parameter
            for name, parameter in parameters.items()
            if name in chosen and not _any_matches(names[id(parameter)], self.exclude)
        }
        if not kept:
            dense = "" if self._outputs_may(model) else ", the output layer stays dense"
            raise SwampError(
                f"{type(model).__name__} has nothing to prune: none of its {len(parameters)} parameters is in "
                f"scope (include={list(self.include)}, exclude={list(self.exclude)}{dense}). By default the weights of "
                "linear and convolutional layers are; name others with include patterns such as '*.weight'."
            )
        lazy = [name for name, parameter in kept.items() if isinstance(parameter, UninitializedParameter)]
        if lazy:
            raise SwampError(f"{lazy[0]!r} has no shape yet. Run the model on one batch, then prune it.")
        return kept

    def _check_patterns(self, names: list[str]) -> None:
        for pattern in (*self.include, *self.exclude):
            if not _any_matches(names, (pattern,)):
                raise SwampError(
                    f"no parameter matches the pattern {pattern!r}; the names are {shortened(names) or 'none'}."
                )

    def include_or_default(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
        """Names chosen before exclusion."""
        if not self.include:
            return _default(model, parameters)
        names = _all_names(model)
        return {name for name, value in parameters.items() if _any_matches(names[id(value)], self.include)}

    def _outputs(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
        if self._outputs_may(model):
            return set()
        body = _body(model)
        if body:
            return {name for name in parameters if not name.startswith(body) or name.startswith(f"{body}pooler.")}
        default = _default(model, parameters)
        return set([name for name in parameters if name in default][-1:])

    def _outputs_may(self, model: nn.Module) -> bool:
        # Who names parameters to include means those.
        return self.output if self.output is not None else bool(self.include) or not _body(model)


def _body(model: Any) -> str:
    """Where the names of a language model's weights begin but for those of its head, as transformers has it; or ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if isinstance(prefix, str) and prefix and hasattr(model, prefix) else ""


def _default(model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Names of the weights of linear, convolutional and attention layers that are no embedding's."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    wanted: set[int] = set()
    for module in model.modules():
        if isinstance(module, _PRUNABLE):
            wanted.add(id(module.weight))
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            wanted.add(id(module.weight))  # the linear layer of GPT-2 in transformers
        elif isinstance(module, nn.MultiheadAttention):
            weights = (getattr(module, name) for name in _ATTENTION_WEIGHTS)
            wanted.update(id(weight) for weight in weights if weight is not None)
    return {name for name, parameter in parameters.items() if id(parameter) in wanted - embedded}


def _all_names(model: nn.Module) -> dict[int, list[str]]:
    # A tied weight may be named by a pattern after any of the modules that share it.
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _any_matches(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
