"""`hold` with models and optimizers that other libraries wrap."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, Optimizer

from swamp.errors import MaskError
from swamp.masks import Mask, hold

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def half(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(3)
    return Mask({name: torch.rand(t.shape, generator=generator) > 0.5 for name, t in Mask.ones(model).items()})


class Lookahead:
    """Slow weights that are mixed in after every second step (Zhang et al. 2019); it skips Optimizer.__init__."""

    def __init__(self, inner: Optimizer) -> None:
        self.base_optimizer, self.state, self.steps = inner, {}, 0
        for group in inner.param_groups:
            for weight in group["params"]:
                self.state[weight] = {"slow": weight.detach().clone()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base_optimizer.param_groups

    def zero_grad(self) -> None:
        self.base_optimizer.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss, self.steps = self.base_optimizer.step(closure), self.steps + 1
        if self.steps % 2 == 0:
            for weight, entry in self.state.items():
                weight.copy_(entry["slow"].lerp_(weight, 0.5))
        return loss


class InheritingLookahead(Lookahead, Optimizer):
    """As timm's: an Optimizer whose constructor never ran, with the attributes for hooks, which nothing calls."""

    def __init__(self, inner: Optimizer) -> None:
        Lookahead.__init__(self, inner)
        self._optimizer_step_pre_hooks: dict[int, Any] = {}
        self._optimizer_step_post_hooks: dict[int, Any] = {}


class ScheduleFree(Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): weights y in training, the average x for evaluation."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "beta": 0.9, "k": 0, "train": True})

    @torch.no_grad()
    def switch(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train"] != train:
                for weight in group["params"]:
                    amount = 1 - group["beta"] if train else 1 - 1 / group["beta"]
                    weight.lerp_(self.state[weight]["z"], amount)
                group["train"] = train

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            c = 1 / group["k"]
            for weight in group["params"]:
                state = self.state[weight]
                state.setdefault("z", weight.clone())
                weight.lerp_(state["z"], c)
                weight.add_(weight.grad, alpha=group["lr"] * (group["beta"] * (1 - c) - 1))
                state["z"].sub_(weight.grad, alpha=group["lr"])


class Several:
    """Two optimizers behind one interface."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.optimizers = [first, second]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for one in self.optimizers for group in one.param_groups]

    def zero_grad(self) -> None:
        for one in self.optimizers:
            one.zero_grad()

    def step(self) -> None:
        for one in self.optimizers:
            one.step()


class OwnSgd:
    """An optimizer that has nothing of torch's."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params)}]

    def zero_grad(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight -= 0.1 * (weight.grad + 1)  # changes pruned weights too


def accelerated(model: nn.Module) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(Adam(model.parameters(), lr=0.1))


def by_fabric(model: nn.Module) -> Any:
    fabric = pytest.importorskip("lightning.fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).setup_optimizers(Adam(model.parameters(), lr=0.1))


WRAPPED = {
    "lookahead": lambda model: Lookahead(SGD(model.parameters(), lr=0.1, momentum=0.9)),
    "inheriting lookahead": lambda model: InheritingLookahead(Adam(model.parameters(), lr=0.1)),
    "schedule-free": lambda model: ScheduleFree(model.parameters()),
    "several": lambda model: Several(SGD(model[0].parameters(), lr=0.1), Adam(model[2].parameters(), lr=0.1)),
    "own": lambda model: OwnSgd(model.parameters()),
    "accelerate": accelerated,
    "fabric": by_fabric,
    "lookahead in accelerate's attribute": lambda model: Wrapping(Lookahead(SGD(model.parameters(), lr=0.1))),
}


class Wrapping(Lookahead):
    """Passes each step on."""

    def __init__(self, inner: Any) -> None:
        self.optimizer, self.state = inner, {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def zeros(model: nn.Module, mask: Mask) -> bool:
    weights = dict(model.named_parameters())
    return all(not weights[name][~active].any() for name, active in mask.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("only_backward", [False, True])
def test_a_wrapped_optimizer_keeps_the_zeros_after_every_step(name: str, only_backward: bool) -> None:
    model = network()
    optimizer, mask = WRAPPED[name](model), half(model)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()

    for _ in range(3):
        step()  # dense, so that there is state to carry over the pruning
    with hold(model, mask, optimizer, only_backward=only_backward):
        before = model[0].weight.detach().clone()
        for _ in range(5):
            step()
            assert zeros(model, mask)
    assert (model[0].weight != before).any()
    step()
    step()
    assert not zeros(model, mask), "after the block the model trains dense again"


def test_the_averaged_weights_of_a_schedule_free_optimizer_keep_the_zeros() -> None:
    model = network()
    optimizer, mask = ScheduleFree(model.parameters()), half(model)
    with hold(model, mask, optimizer):
        for train in (True, True, False, True, False):
            optimizer.switch(train)
            assert zeros(model, mask)
            if train:
                optimizer.zero_grad()
                F.cross_entropy(model(X), Y).backward()
                optimizer.step()
    assert zeros(model, mask)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("penalty", [False, True])
def test_a_closure_sees_zeros_and_returns_masked_gradients_also_with_dense_history(
    search: str | None, penalty: bool
) -> None:
    model = network()
    mask = half(model)
    optimizer = LBFGS(model.parameters(), max_iter=6, line_search_fn=search)
    seen: list[bool] = []

    def closure() -> Tensor:
        seen.append(zeros(model, mask))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        if penalty:  # a gradient that no backward pass wrote
            for weight in model.parameters():
                weight.grad += 0.01
        return loss

    optimizer.step(closure)
    seen.clear()
    with hold(model, mask, optimizer):
        optimizer.step(closure)
        directions = [d for entry in optimizer.state.values() for d in entry["old_dirs"]]
        optimizer.step(closure=closure)
    assert len(seen) > 4
    assert all(seen)
    support = torch.cat([mask.get(n, torch.ones_like(p).bool()).reshape(-1) for n, p in model.named_parameters()])
    assert directions
    assert not any(direction[~support].any() for direction in directions)


def test_a_scheduler_made_inside_the_block_still_counts_the_steps() -> None:
    model = network()
    inner = SGD(model.parameters(), lr=0.1)
    optimizer = InheritingLookahead(inner)
    with hold(model, half(model), optimizer):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.5)
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.05
    assert "step" not in vars(optimizer)


def test_a_copy_of_a_wrapper_made_after_the_block_is_free() -> None:
    model = network()
    optimizer = Wrapping(SGD(model.parameters(), lr=0.1))
    with hold(model, half(model), optimizer):
        pass
    assert "step" not in vars(copy.copy(optimizer))


class Wrapped(nn.Module):
    """As DDP names the module in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)


def test_the_mask_of_the_plain_model_holds_the_wrapped_one() -> None:
    model = network()
    mask = half(model)
    compiled = nn.Module()
    compiled.register_module("_orig_mod", model)  # as torch.compile names it
    for wrapped in (Wrapped(model), Wrapped(Wrapped(model)), Wrapped(compiled)):
        with hold(wrapped, mask, SGD(wrapped.parameters(), lr=0.1)):
            assert zeros(model, mask)
    other = Wrapped(nn.Linear(2, 2))
    with pytest.raises(MaskError, match="does not have"), hold(other, mask, SGD(other.parameters(), lr=0.1)):
        pass


def test_a_model_set_up_by_fabric_is_held() -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model = network()
    mask = half(model)
    wrapped, optimizer = fabric.setup(model, Adam(model.parameters(), lr=0.1))
    with hold(wrapped, mask, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(wrapped(X), Y))
            fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
            optimizer.step()
            assert zeros(model, mask)


@pytest.mark.filterwarnings("ignore")
def test_a_model_prepared_by_accelerate_is_held_with_accumulation() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = network()
    mask = half(plain)
    model, optimizer = accelerator.prepare(plain, Adam(plain.parameters(), lr=0.1))
    before = plain[0].bias.detach().clone()
    with hold(model, mask, optimizer):
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(X), Y))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            assert zeros(plain, mask)
    assert (plain[0].bias != before).any()
