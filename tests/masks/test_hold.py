from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from swamp.errors import MaskError
from swamp.masks import Mask, hold, hold_gradients
from swamp.masks.enforce import preserves_zeros

from .held import FIRST_PRUNED, ONES, Sum, bits, slots, step


def test_masking_before_the_forward_pass_leaves_a_dense_model_and_hold_does_not() -> None:
    def trained_dense() -> tuple[Sum, SGD]:
        model = Sum(1.0, 1.0)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        step(model, optimizer)  # momentum 1, weights 0.9
        return model, optimizer

    naive, optimizer = trained_dense()
    FIRST_PRUNED.apply_(naive)
    step(naive, optimizer)
    # Momentum 0.9 + 1 = 1.9: the pruned weight is back at -0.19.
    assert naive.weight.tolist() == pytest.approx([-0.19, 0.71])
    with pytest.raises(MaskError, match="1 pruned weights of 'weight'"):
        FIRST_PRUNED.require_zeros(dict(naive.named_parameters()))

    held, optimizer = trained_dense()
    with hold(held, FIRST_PRUNED, optimizer):
        step(held, optimizer)
    assert held.weight.tolist() == [0.0, pytest.approx(0.71)]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "decay": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
    "fused adamw": lambda p: AdamW(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


class Scattered(nn.Module):
    """An independent sparse layer: only the active weights exist."""

    def __init__(self, weight: Tensor, active: Tensor) -> None:
        super().__init__()
        self.active = active
        self.values = nn.Parameter(weight[active].clone())

    def forward(self, inputs: Tensor) -> Tensor:
        weight = torch.zeros(self.active.shape, dtype=self.values.dtype).masked_scatter(self.active, self.values)
        return inputs @ weight.t()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_on_the_support_equals_training_a_model_without_the_pruned_weights(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    active = torch.rand(4, 5, generator=generator) < 0.4
    model = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    nn.init.normal_(model.weight, generator=generator)
    reference = Scattered(model.weight.detach(), active)
    optimizer = OPTIMIZERS[name](model.parameters())
    expected = OPTIMIZERS[name](reference.parameters())
    with hold(model, Mask({"weight": active}), optimizer):
        for _ in range(6):
            for network, stepper in ((model, optimizer), (reference, expected)):
                stepper.zero_grad()
                (network(inputs) - targets).square().mean().backward()
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                stepper.step()
    torch.testing.assert_close(model.weight.detach()[active], reference.values.detach(), rtol=1e-9, atol=1e-12)
    assert not model.weight[~active].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_carried_over_a_pruning_event_is_zero_off_the_mask_and_kept_on_it(name: str) -> None:
    model = Sum(1.0, 2.0, 3.0)
    optimizer = OPTIMIZERS[name](model.parameters())
    inputs = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    step(model, optimizer, inputs)
    before = {key: value.clone() for key, value in slots(optimizer, model.weight).items()}
    with hold(model, Mask({"weight": bits(1, 0, 1)}), optimizer):
        carried = slots(optimizer, model.weight)
        assert all(value[1] == 0 for value in carried.values())
        assert all(torch.equal(value[[0, 2]], before[key][[0, 2]]) for key, value in carried.items())
        for _ in range(3):
            step(model, optimizer, inputs)
            assert model.weight[1] == 0
            assert all(value[1] == 0 for value in slots(optimizer, model.weight).values())


def test_clipping_sees_the_norm_of_the_active_gradient() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs = torch.tensor([4.0, 3.0], dtype=torch.float64)
    model(inputs).backward()
    assert nn.utils.clip_grad_norm_(model.parameters(), 1e9) == 5
    with hold(model, FIRST_PRUNED, optimizer):
        optimizer.zero_grad()
        model(inputs).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 1e9) == 3


def test_gradients_that_accumulate_are_masked_each_time() -> None:
    model = Sum(1.0, 1.0)
    with hold(model, FIRST_PRUNED, SGD(model.parameters(), lr=0.1)):
        for _ in range(3):
            model(ONES).backward()
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [0.0, 3.0]


def test_a_gradient_from_before_the_block_is_masked_too() -> None:
    model = Sum(1.0, 1.0)
    model(ONES).backward()
    with hold(model, FIRST_PRUNED, SGD(model.parameters(), lr=0.1)):
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [0.0, 1.0]


def test_zeros_have_no_sign_and_no_nan() -> None:
    # Adam without epsilon divides 0 by 0 where the gradient is 0; a product with 0 would leave NaN there for ever, and
    # would leave -0, which is not the zero that the mask wrote, where an update was negative.
    model = Sum(-1.0, -1.0, 1.0)
    optimizer = Adam(model.parameters(), lr=0.1, eps=0.0)
    with hold(model, Mask({"weight": bits(0, 0, 1)}), optimizer):
        for _ in range(2):
            step(model, optimizer, torch.tensor([-1.0, float("inf"), 1.0], dtype=torch.float64))
            held = [model.weight, model.weight.grad, *slots(optimizer, model.weight).values()]
            assert len(held) == 4
            for tensor in held:
                assert isinstance(tensor, Tensor)
                assert not tensor.detach()[:2].view(torch.int64).any()
    assert torch.isfinite(model.weight).all()


def test_a_weight_that_diverges_is_no_fault_of_the_mask() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with hold(model, FIRST_PRUNED, optimizer):
        step(model, optimizer, torch.tensor([1.0, float("inf")], dtype=torch.float64))
    assert model.weight.tolist() == [0, -float("inf")]


def test_parameters_that_the_mask_does_not_name_train_as_ever() -> None:
    model = nn.Linear(2, 2, dtype=torch.float64)
    before = model.bias.tolist()
    optimizer = SGD(model.parameters(), lr=0.1)
    with hold(model, Mask({"weight": torch.zeros(2, 2, dtype=torch.bool)}), optimizer):
        model(ONES).sum().backward()
        optimizer.step()
    assert model.bias.tolist() == pytest.approx([value - 0.1 for value in before])


def test_a_tied_weight_is_held_for_all_that_share_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    mask = Mask({"0.weight": torch.eye(2, dtype=torch.bool)})
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with hold(model, mask, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
    assert not model[1].weight[~mask["0.weight"]].any()


def test_a_frozen_weight_is_pruned_and_stays_so() -> None:
    model = nn.Linear(2, 1)
    model.weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with hold(model, Mask({"weight": torch.tensor([[False, True]])}), optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert model.weight[0, 0] == 0


def test_state_of_a_wider_type_than_the_weight_is_held() -> None:
    class Wide(SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for weight in group["params"]:
                    slot = self.state[weight]
                    slot.setdefault("master", torch.ones(weight.shape, dtype=torch.float32))
                    slot.setdefault("codes", torch.full(weight.shape, 7, dtype=torch.uint8))
                    slot["history"] = [1]
                    weight.data.copy_(slot["master"])

    model = nn.Linear(2, 1, dtype=torch.bfloat16)
    optimizer = Wide(model.parameters(), lr=0.1)
    with hold(model, Mask({"weight": torch.tensor([[False, True]])}), optimizer):
        optimizer.step()
    assert model.weight.tolist() == [[0, 1]]
    assert optimizer.state[model.weight]["master"].tolist() == [[0, 1]]
    # In a quantised state the code 0 stands for some number, seldom for zero.
    assert optimizer.state[model.weight]["codes"].tolist() == [[7, 7]]


def test_a_channels_last_convolution_is_held() -> None:
    model = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    active = torch.rand(4, 3, 3, 3) < 0.5
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with hold(model, Mask({"weight": active}), optimizer):
        before = model.weight.detach().clone()
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        changed = model.weight.detach() != before
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(changed, active)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_held(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 1, bias=False, dtype=dtype)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with hold(model, Mask({"weight": torch.tensor([[False, True]])}), optimizer):
        model(torch.ones(1, 2, dtype=dtype)).abs().sum().backward()
        optimizer.step()
    assert model.weight[0, 0] == 0
    assert model.weight[0, 1] != 0
    assert optimizer.state[model.weight]["momentum_buffer"][0, 0] == 0


def test_an_optimizer_that_computes_0_by_0_changes_zeros():
    weight = [nn.Parameter(torch.ones(2))]
    assert preserves_zeros(torch.optim.SGD(weight, lr=0.1))
    assert preserves_zeros(torch.optim.AdamW(weight, lr=0.1))
    assert not preserves_zeros(torch.optim.Adam(weight, lr=0.1, eps=0.0))
    assert not preserves_zeros(torch.optim.Rprop(weight, lr=0.1))


@pytest.mark.parametrize(
    "build", [lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), lambda p: AdamW(p, lr=0.1)]
)
def test_where_only_the_backward_pass_writes_gradients_nothing_is_left_to_do_after_the_step(build: Any) -> None:
    weights = []
    for only_backward in (False, True):
        model = Sum(1.0, 1.0)
        optimizer = build(model.parameters())
        with hold(model, FIRST_PRUNED, optimizer, only_backward=only_backward):
            assert bool(optimizer._optimizer_step_post_hooks) is not only_backward
            for _ in range(3):
                step(model, optimizer)
        weights.append(model.weight.tolist())
    assert weights[0] == weights[1]
    assert weights[0][0] == 0.0


def test_an_optimizer_that_changes_zeros_is_masked_after_each_step() -> None:
    model = Sum(1.0, 1.0)
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.1)
    with hold(model, FIRST_PRUNED, optimizer, only_backward=True):
        assert optimizer._optimizer_step_post_hooks
        step(model, optimizer)


def test_a_mask_of_nothing_holds_nothing() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with hold(model, Mask({}), optimizer, only_backward=True), hold_gradients(model, Mask({}), optimizer) as masked:
        step(model, optimizer)
        masked()
    assert not bool((model.weight == 0).any())


@pytest.mark.parametrize("faster", [False, True])
def test_a_weight_that_is_unfrozen_inside_the_block_is_held(faster) -> None:
    model = Sum(1.0, 1.0)
    model.weight.requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=0.1)
    with (
        hold_gradients(model, FIRST_PRUNED, optimizer)
        if faster
        else hold(model, FIRST_PRUNED, optimizer, only_backward=True)
    ) as mask_gradients:
        assert not model.weight.requires_grad
        for frozen in (True, False, True, False):
            model.weight.requires_grad_(not frozen)
            if not frozen:
                model.weight.sum().backward()
                if mask_gradients is not None:
                    mask_gradients()
                assert model.weight.grad is not None
                assert model.weight.grad.tolist() == [0.0, 1.0]
            optimizer.step()
            optimizer.zero_grad()
    assert model.weight[0] == 0
    assert model.weight[1] < 1
