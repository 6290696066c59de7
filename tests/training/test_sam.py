import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.masks import Mask, hold
from swamp.training import Seed, Training
from swamp.training.average import copied
from swamp.training.loop import fit
from swamp.training.sam import perturbed, second_gradient
from swamp.training.snapshot import Snapshot

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def backward(model: nn.Module) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()


def test_gradient_is_that_of_the_perturbed_weights_and_weights_come_back_bit_for_bit(small_net, same):
    model, other = small_net(), small_net()
    backward(model)
    before = copied(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    length = sum(float((g**2).sum()) for g in gradients) ** 0.5
    with second_gradient(model, 0.3):
        distance = sum(float(((p - before[n]) ** 2).sum()) for n, p in model.state_dict().items()) ** 0.5
        backward(model)
    with torch.no_grad():
        for parameter, gradient in zip(other.parameters(), gradients, strict=True):
            parameter += 0.3 * gradient / length
    backward(other)
    assert distance == pytest.approx(0.3, rel=1e-10)
    assert same(model.state_dict(), before)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_perturbation_stays_on_the_support_of_the_mask(small_net):
    model = small_net()
    mask = Mask({"0.weight": torch.arange(32).view(8, 4) % 3 == 0, "2.weight": torch.arange(24).view(3, 8) % 2 == 0})
    with hold(model, mask, torch.optim.SGD(model.parameters(), 0.1)):
        backward(model)
        with second_gradient(model, 0.5):
            mask.require_zeros(dict(model.named_parameters()))
            assert all(int((model.state_dict()[n] != 0).sum()) == mask.nnz_by_layer[n] for n in mask)
            backward(model)


def test_weights_come_back_after_an_error(small_net, same):
    model = small_net(rich=True)
    backward(model)
    before = copied(model.state_dict())
    with pytest.raises(ZeroDivisionError), second_gradient(model, 0.5):
        raise ZeroDivisionError
    assert same(model.state_dict(), before)


def test_weights_without_a_gradient_stay(small_net):
    model: Any = small_net()
    model[0].requires_grad_(False)
    backward(model)
    before = model[0].weight.clone()
    with second_gradient(model, 0.5):
        assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("sharpness", ["sam", "asam", "s2-sam"])
def test_running_statistics_move_once_a_step_and_stay_the_same_tensors(sharpness: Any, small_task, small_net):
    model = small_net(rich=True)
    buffers = dict(model.named_buffers())
    training = Training(epochs=1, batch_size=6, lr=1e-300, momentum=0, weight_decay=0, swa_fraction=0, swa=False)
    plain = small_net(rich=True)
    fit(plain, small_task, training, Seed(0))
    fit(model, small_task, replace(training, sam=0.1, sharpness=sharpness), Seed(0))
    assert int(model[1].num_batches_tracked) == 3
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    # The one pass of s2-sam is at the perturbed weights, but for its first step.
    moved_alike = torch.equal(model[1].running_mean, plain[1].running_mean)
    assert moved_alike == (sharpness != "s2-sam")


def test_adaptive_perturbation_in_numbers_worked_out_by_hand():
    def numbers(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    model = nn.Linear(2, 1).double()
    model.load_state_dict({"weight": numbers(2.99, -0.49)[None], "bias": numbers(7)})
    gradient = {"weight": numbers(1, 8)[None], "bias": numbers(12)}
    # T is 3, 0.5 and, for what is no weight, 1: T g is (3, 4, 12), of norm 13, and T^2 g is (9, 2, 12).
    with perturbed(model, gradient, 1.3, "asam"):
        assert torch.allclose(model.weight, numbers(2.99 + 0.9, -0.49 + 0.2)[None], rtol=0, atol=1e-12)
        assert torch.allclose(model.bias, numbers(7 + 1.2), rtol=0, atol=1e-12)
    assert torch.equal(model.weight, numbers(2.99, -0.49)[None])


def loss_gradient(model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    moved = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, moved, inputs), targets)
    return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))


def length(tensors: dict[str, Tensor]) -> Tensor:
    return torch.sqrt(sum((tensor**2).sum() for tensor in tensors.values()))


def next_gradient(
    sharpness: str, model: nn.Module, batch: tuple[Tensor, Tensor], alive: dict[str, Tensor], before: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The masked gradient of one step, with radius 0.2, as the papers write it."""
    weights = dict(model.named_parameters())

    def masked(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: g * alive[name] if name in alive else g for name, g in found.items()}

    if sharpness == "s2-sam":
        moved = {n: w + 0.2 * before[n] / length(before) for n, w in weights.items()} if before else weights
        return masked(loss_gradient(model, moved, *batch))
    first = masked(loss_gradient(model, weights, *batch))
    one = {n: torch.ones_like(w) for n, w in weights.items()}
    scale = {n: w.abs() + 0.01 if n.endswith("weight") else one[n] for n, w in weights.items()}
    scale = scale if sharpness == "asam" else one
    norm = length({n: scale[n] * g for n, g in first.items()})
    return masked(
        loss_gradient(model, {n: w + 0.2 * scale[n] ** 2 * first[n] / norm for n, w in weights.items()}, *batch)
    )


@pytest.mark.parametrize("sharpness", ["sam", "asam", "s2-sam"])
def test_training_on_a_mask_equals_the_method_written_out(sharpness: Any, small_task, small_net):
    training = Training(epochs=2, batch_size=6, lr=0.2, weight_decay=0, momentum=0, sam=0.2, swa_fraction=0, swa=False)
    model, other = small_net(), small_net()
    mask = Mask({"0.weight": torch.arange(32).view(8, 4) % 3 != 0, "2.weight": torch.arange(24).view(3, 8) % 2 == 0})
    fit(model, small_task, replace(training, sharpness=sharpness), Seed(5), mask=mask)
    mask.apply_(other)
    gradient: dict[str, Tensor] = {}
    batches = [batch for epoch in range(2) for batch in small_task.train.shuffled(6, Seed(5), epoch)]
    for step, batch in enumerate(batches):
        gradient = next_gradient(sharpness, other, batch, dict(mask), gradient)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter -= training.rate(step, 3) * gradient[name]
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sharpness", "passes"), [("sam", 2), ("asam", 2), ("s2-sam", 1)])
def test_no_pass_leaves_the_support_and_a_single_step_takes_one(sharpness: Any, passes: int, small_task, small_net):
    model, mask, seen = small_net(), Mask({"0.weight": torch.arange(32).view(8, 4) % 3 == 0}), []

    def forward(network: nn.Module, inputs: Tensor) -> Tensor:
        mask.require_zeros(dict(network.named_parameters()))
        seen.append(network[0].weight.detach().clone())
        return network(inputs)

    training = Training(epochs=1, batch_size=6, lr=0.2, sam=0.2, sharpness=sharpness, swa_fraction=0, swa=False)
    fit(model, replace(small_task, forward=forward), training, Seed(0), mask=mask)
    assert len(seen) == 3 * passes
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(seen))


def test_a_resumed_step_needs_the_gradient_of_the_one_before(small_task, small_net, same):
    training = Training(epochs=2, batch_size=6, lr=0.2, sam=0.2, sharpness="s2-sam", swa_fraction=0, swa=False)
    kept: list[Snapshot] = []
    whole = fit(small_net(), small_task, training, Seed(0), on_step=lambda step, total, taken: kept.append(taken()))
    assert kept[3].gradient.keys() == whole.weights.keys()
    forgotten = fit(small_net(), small_task, training, Seed(0), resume=replace(kept[3], gradient={}))
    assert not same(forgotten.weights, whole.weights)
    plain = replace(training, sharpness="sam")
    fit(small_net(), small_task, plain, Seed(0), on_step=lambda step, total, taken: kept.append(taken()))
    assert not kept[-1].gradient
