"""Optimizers by name."""

import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from swamp.errors import SwampError, unknown
from swamp.masks.dtensor import is_sharded
from swamp.references import is_reference, resolve
from swamp.training.options import Training

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Parameters -> optimizer. The schedule sets its learning rate before every step: that of its fastest parameter group;
other groups keep the ratios to it with which the optimizer was built."""


def build_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> Optimizer:
    """The optimizer named by `training.optimizer`, or built by the class or function to which it refers.

    Raises SwampError for an unknown name, with the nearest one, and if the optimizer cannot be built.
    """
    kept = list(parameters)
    # Fused kernels: 1.2 times the throughput for small networks. On a CPU they are wrong for 16-bit weights
    # (torch issue 191763).
    exact = (torch.float32, torch.float64)
    fused = all(
        (p.device.type == "cuda" and p.is_floating_point()) or (p.device.type == "cpu" and p.dtype in exact)
        for p in kept
    )
    way: dict[str, Any] = {"foreach": True} if any(map(is_sharded, kept)) else {"fused": fused}
    if training.optimizer == "sgd":
        sgd = torch.optim.SGD(
            kept,
            lr=training.lr,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
            **way,
        )
        if fused and training.momentum:
            sgd.register_step_pre_hook(_begin_momentum)
        return sgd
    if training.optimizer == "adamw":
        return torch.optim.AdamW(kept, lr=training.lr, weight_decay=training.weight_decay, **way)
    if is_reference(training.optimizer):
        return _referenced(kept, training)
    if training.optimizer == "Muon":
        return _muon(kept, training)
    others = torch_optimizers()
    if training.optimizer not in others:
        raise unknown("optimizer", training.optimizer, ["sgd", "adamw", *others])
    try:
        return others[training.optimizer](kept, lr=training.lr, weight_decay=training.weight_decay)
    except (TypeError, ValueError) as error:
        raise SwampError(
            f"torch.optim.{training.optimizer} cannot be built from lr and weight_decay ({error}). "
            'Name a function that builds it from parameters and lr: optimizer="package.module:function".'
        ) from error


def use_dense_gradients(model: nn.Module) -> None:
    """Let the embeddings of `model` have dense gradients: masks, clipping and most optimizers take no sparse ones."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False


def _begin_momentum(sgd: Optimizer, args: Any, kwargs: Any) -> None:
    """Momentum zero for weights that get their first gradient after the others, where the fused step would fail."""
    del args, kwargs
    if not sgd.state:
        return
    for group in sgd.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and sgd.state[weight].get("momentum_buffer") is None:
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def torch_optimizers() -> dict[str, Any]:
    """Name -> class of all optimizers in torch.optim that need no closure."""
    found = {name: getattr(torch.optim, name) for name in dir(torch.optim)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    }


class _Joined(Optimizer):
    """Two optimizers of different parameters as one; they share its state and its groups."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        # The groups stay the dicts of the parts, so that a learning rate that is set here is theirs.
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            raise SwampError("this optimizer takes no closure.")
        for part in self.parts:
            part.step()


def _muon(parameters: list[nn.Parameter], training: Training) -> Optimizer:
    """Muon for matrices, AdamW for all other parameters; one learning rate suits both (update RMS as AdamW's)."""
    if not hasattr(torch.optim, "Muon"):
        raise SwampError(f"torch {torch.__version__} has no Muon: upgrade to 2.9 or later, or take adamw.")
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    parts: list[Optimizer] = []
    if matrices:
        lr, decay = training.lr, training.weight_decay
        parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        parts.append(torch.optim.AdamW(others, lr=training.lr, weight_decay=training.weight_decay))
    return parts[0] if len(parts) == 1 else _Joined(parts)


def _referenced(parameters: list[nn.Parameter], training: Training) -> Optimizer:
    reference, what = training.optimizer, "optimizer"
    build = resolve(reference, what)
    try:
        accepted = inspect.signature(build).parameters
        options = {"lr": training.lr, "weight_decay": training.weight_decay}
        anything = any(one.kind is one.VAR_KEYWORD for one in accepted.values())
        made = build(parameters, **{name: value for name, value in options.items() if anything or name in accepted})
    except Exception as error:  # code of the user may raise anything
        raise SwampError(
            f"{what} {reference} cannot be built from parameters, lr={training.lr:g} and "
            f"weight_decay={training.weight_decay:g} ({type(error).__name__}: {error}). Name a function that builds it "
            "from them: def function(parameters, lr): ..."
        ) from error
    if not isinstance(made, Optimizer):
        raise SwampError(
            f"{what} {reference} gave a {type(made).__name__}, expected a torch.optim.Optimizer. Name its class, or a "
            "function (parameters, lr) that returns one."
        )
    return made


def rate_ratios(optimizer: Optimizer) -> list[float]:
    """Learning rate of each parameter group of a new optimizer, as a fraction of the largest one."""
    rates = [float(group.get("lr", 1.0)) for group in optimizer.param_groups]
    largest = max(rates)
    return [rate / largest if largest else 1.0 for rate in rates]


def set_rate(optimizer: Optimizer, rate: float, ratios: Sequence[float]) -> None:
    """Set the learning rate of the fastest parameter group; `ratios` are those of `rate_ratios`."""
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group["lr"] = rate * ratio


def has_modes(optimizer: Optimizer) -> bool:
    """Whether the optimizer switches the weights between training and evaluation, as schedule-free optimizers do."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Generator[None]:
    """Inside the block the parameters have the values for evaluation; then those of training, bit for bit."""
    if not has_modes(optimizer):
        yield
        return
    switched: Any = optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    switched.eval()
    try:
        yield
    finally:
        switched.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
