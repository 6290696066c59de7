from typing import Any

import pytest
import torch
from torch import nn

from swamp.sparsity import Mask, hold
from swamp.training import Seed, Training, copied, fit
from swamp.training.sam import second_gradient

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
            assert all(int((model.state_dict()[n] != 0).sum()) == mask.kept_by_layer[n] for n in mask)
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


def test_running_statistics_move_once_a_step_and_stay_the_same_tensors(small_task, small_net):
    model = small_net(rich=True)
    buffers = dict(model.named_buffers())
    seen: list[dict[str, torch.Tensor]] = []
    training = Training(epochs=1, batch_size=6, lr=1e-300, momentum=0, weight_decay=0, tail=0, swa=False)
    for sam in (0.0, 0.1):
        run: Any = model if sam else small_net(rich=True)
        fit(run, small_task, Training(**{**vars(training), "sam": sam}), Seed(0))
        seen.append(dict(run.named_buffers()))
    assert int(seen[1]["1.num_batches_tracked"]) == 3
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in buffers)
    assert all(buffers[name] is seen[1][name] for name in buffers)


def test_training_equals_sam_written_out(small_task, small_net):
    training = Training(epochs=2, batch_size=6, lr=0.2, weight_decay=0, momentum=0, sam=0.2, tail=0, swa=False)
    model, other = small_net(), small_net()
    fit(model, small_task, training, Seed(5))
    step = 0
    for epoch in range(2):
        for inputs, targets in small_task.train.shuffled(6, Seed(5), epoch):
            parameters = list(other.parameters())
            first = torch.autograd.grad(nn.functional.cross_entropy(other(inputs), targets), parameters)
            length = torch.sqrt(sum((g**2).sum() for g in first))
            moved = {n: p + 0.2 * g / length for (n, p), g in zip(other.named_parameters(), first, strict=True)}
            outputs = torch.func.functional_call(other, moved, inputs)
            second = torch.autograd.grad(nn.functional.cross_entropy(outputs, targets), list(moved.values()))
            with torch.no_grad():
                for parameter, gradient in zip(parameters, second, strict=True):
                    parameter -= training.rate(step, 3) * gradient
            step += 1
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
