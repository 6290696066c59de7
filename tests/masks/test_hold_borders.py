"""Entering and leaving `hold`: the model stays the user's, and what went wrong inside is noticed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from swamp.errors import MaskError
from swamp.masks import Mask, hold

from .held import FIRST_PRUNED, ONES, Sum, bits, slots, step


def test_the_model_keeps_its_modules_its_keys_and_its_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    keys, identities = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    layout, slots_before = repr(model), set(vars(model[0]))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

    def unchanged() -> bool:
        return (
            list(model.state_dict()) == keys
            and [id(parameter) for parameter in model.parameters()] == identities
            and repr(model) == layout
            and set(vars(model[0])) == slots_before
        )

    with hold(model, Mask.ones(model), optimizer):
        model(torch.ones(2, 1, 3, 3)).sum().backward()
        optimizer.step()
        assert unchanged()
        assert list(optimizer.state_dict()["state"][0]) == ["momentum_buffer"]
    assert unchanged()


def test_a_copy_made_inside_the_block_is_a_plain_dense_model() -> None:
    model = Sum(1.0, 1.0)
    with hold(model, FIRST_PRUNED, SGD(model.parameters(), lr=0.1)):
        twin = copy.deepcopy(model)
    step(twin, SGD(twin.parameters(), lr=0.1))
    assert twin.weight.tolist() == pytest.approx([-0.1, 0.9])
    assert model.weight.tolist() == [0, 1]


def assert_released(model: Sum, optimizer: Optimizer) -> None:
    step(model, optimizer)
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [1, 1]
    assert model.weight[0] != 0
    assert not getattr(model.weight, "_post_accumulate_grad_hooks", None)
    assert not optimizer._optimizer_step_post_hooks


def test_after_the_block_the_model_trains_dense_again() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with hold(model, FIRST_PRUNED, optimizer):
        step(model, optimizer)
    assert_released(model, optimizer)


def test_an_exception_passes_through_and_leaves_no_hook() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)

    def interrupted() -> None:
        with hold(model, FIRST_PRUNED, optimizer):
            model.weight.data.fill_(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_released(model, optimizer)


def test_what_is_no_optimizer_leaves_no_hook() -> None:
    model = Sum(1.0, 1.0)
    wrong: Any = object()
    with pytest.raises(MaskError, match=r"needs the optimizer .* got object"), hold(model, FIRST_PRUNED, wrong):
        pass
    assert_released(model, SGD(model.parameters(), lr=0.1))


def test_another_mask_may_be_held_afterwards() -> None:
    model = Sum(1.0, 1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    three = torch.ones(3, dtype=torch.float64)
    for mask in (Mask({"weight": bits(1, 1, 0)}), Mask({"weight": bits(1, 0, 0)})):
        with hold(model, mask, optimizer):
            step(model, optimizer, three)
        assert (model.weight != 0).tolist() == mask["weight"].tolist()


def test_an_optimizer_replaced_inside_the_block_is_noticed() -> None:
    model = Sum(1.0, 1.0)
    first = SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, first)
    second = SGD(model.parameters(), lr=0.1, momentum=0.9)
    second.load_state_dict({**second.state_dict(), "state": {0: {"momentum_buffer": ONES.clone()}}})
    held = hold(model, FIRST_PRUNED, first)
    held.__enter__()
    step(model, second)
    with pytest.raises(MaskError, match=r"an optimizer that was not passed to swamp\.hold"):
        held.__exit__(None, None, None)


def test_dense_state_loaded_inside_the_block_revives_nothing() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with hold(model, FIRST_PRUNED, optimizer):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: {"momentum_buffer": ONES.clone()}}})
        step(model, optimizer)
        assert slots(optimizer, model.weight)["momentum_buffer"].tolist() == pytest.approx([0, 1.9])
    assert model.weight.tolist() == pytest.approx([0, 0.81])


def test_a_parameter_replaced_inside_the_block_is_noticed() -> None:
    model = Sum(1.0, 1.0)
    with pytest.raises(MaskError, match="1 pruned weights"), hold(model, FIRST_PRUNED, SGD(model.parameters(), lr=0.1)):
        model.load_state_dict({"weight": ONES.clone()}, assign=True)
    with pytest.raises(MaskError, match="does not have"), hold(model, FIRST_PRUNED, SGD(model.parameters(), lr=0.1)):
        del model.weight


def test_a_mask_of_another_model_is_refused_before_anything_changes() -> None:
    model = Sum(1.0, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(MaskError, match="does not have"), hold(model, Mask({"head": bits(0, 1)}), optimizer):
        pytest.fail("the block was entered")
    assert model.weight.tolist() == [1, 1]
    assert_released(model, optimizer)
