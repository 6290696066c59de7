import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from swamp.masks import Mask, hold

# Whatever this torch has; LBFGS needs a closure and SparseAdam sparse gradients, so they have tests of their own.
PLAIN = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind not in (Optimizer, LBFGS, SparseAdam)
}
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "AdamW": {"amsgrad": True},
}


def assert_held(weight: Tensor, active: Tensor, optimizer: Optimizer) -> None:
    state = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    held = [weight, weight.grad, *(value for value in state if value.shape == weight.shape)]
    for tensor in held:
        assert tensor is not None
        pruned = tensor.detach()[~active]
        assert not pruned.any(), "NaN counts as well"
        assert not pruned.signbit().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_pruned_weights_gradients_and_state_stay_zero_with(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 6, generator=generator).to(dtype)
    targets = torch.randn(16, 4, generator=generator).to(dtype)
    # Without biases, so that all parameters are matrices, as Muon wants; one row is pruned whole.
    model = nn.Sequential(nn.Linear(6, 5, bias=False, dtype=dtype), nn.Linear(5, 4, bias=False, dtype=dtype))
    active = [torch.rand(model[at].weight.shape, generator=generator) < 0.4 for at in (0, 1)]
    active[0][2] = False
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    optimizer = PLAIN[name](model.parameters(), **{"lr": 0.1, **OPTIONS.get(name, {})})

    def train() -> None:
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(2):
        train()  # dense, so that there is state to carry over the pruning
    with hold(model, Mask({"0.weight": active[0], "1.weight": active[1]}), optimizer):
        before = model[0].weight.detach().clone()
        for _ in range(3):
            train()
            for at in (0, 1):
                assert_held(model[at].weight, active[at], optimizer)
    assert torch.isfinite(model[0].weight).all()
    assert (model[0].weight != before).any(), "nothing was trained"


def test_all_optimizers_of_torch_are_tried() -> None:
    assert {
        "SGD",
        "Adam",
        "AdamW",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "ASGD",
    } <= set(PLAIN)


def test_an_optimizer_with_a_closure_is_held() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    nn.init.normal_(model.weight, generator=generator)
    mask = Mask({"weight": torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)})
    optimizer = LBFGS(model.parameters(), max_iter=4)
    inputs, targets = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss.item()

    with hold(model, mask, optimizer):
        before = closure()
        optimizer.step(closure)
        assert closure() < before
    assert not model.weight[~mask["weight"]].any()


def test_sparse_gradients_are_held() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    mask = Mask({"weight": torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.5})
    optimizer = SparseAdam(list(model.parameters()), lr=0.1)
    places = torch.tensor([0, 1, 1, 4])
    model(places).sum().backward()
    optimizer.step()
    with hold(model, mask, optimizer):
        before = model.weight.detach().clone()
        for _ in range(2):
            optimizer.zero_grad()
            model(places).sum().backward()
            gradient = model.weight.grad
            assert gradient is not None
            assert gradient.is_sparse
            assert not gradient.to_dense()[~mask["weight"]].any()
            optimizer.step()
            assert not optimizer.state[model.weight]["exp_avg"][~mask["weight"]].any()
    assert not model.weight[~mask["weight"]].any()
    assert (model.weight != before).any()
