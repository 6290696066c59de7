"""NaN and infinity in initial weights and data are refused before training, by name."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import swamp
from swamp.training import RunningMean, Task, TensorData, TokenData, Training
from swamp.training.loop import fit
from swamp.training.mask_updates import drop_and_grow, prune_to_budget
from swamp.training.nan_checks import require_finite_start


def spoilt(tensor: torch.Tensor, row: int, value: float = math.nan) -> torch.Tensor:
    found = tensor.clone()
    found[row].view(-1)[0] = value
    return found


def with_train(task: Task, **changes) -> Task:
    return replace(task, train=replace(task.train, **changes))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_example_that_is_not_finite_is_named(split, value, mlp, task):
    data = getattr(task, split)
    wrong = replace(task, **{split: replace(data, inputs=spoilt(data.inputs, 17, value))})
    name = "training" if split == "train" else split
    with pytest.raises(swamp.SwampError, match=rf"NaN or infinity in the {name} data: inputs of example 17\. The loss"):
        require_finite_start(mlp, wrong)


def test_the_message_counts_the_examples_and_targets_are_checked(mlp, task):
    inputs = task.train.inputs
    for row in (90, 5, 33):
        inputs = spoilt(inputs, row)
    with pytest.raises(swamp.SwampError, match="inputs of example 5 and of 2 more"):
        require_finite_start(mlp, with_train(task, inputs=inputs))
    numbers = with_train(task, targets=spoilt(torch.randn(96, 3), 2, math.inf))
    with pytest.raises(swamp.SwampError, match="targets of example 2"):
        require_finite_start(mlp, replace(numbers, loss=F.mse_loss, test=numbers.train, validation=None))


def test_batches_tokens_and_a_normalisation_that_divides_by_zero_are_checked(mlp, task):
    x, y = task.train.inputs, task.train.targets
    batches = [(x[:32], y[:32]), (spoilt(x[32:64], 3), y[32:64])]
    with pytest.raises(swamp.SwampError, match="batch 1 as the model sees it, inputs of example 3"):
        require_finite_start(mlp, Task.of(batches, batches))
    with pytest.raises(swamp.SwampError, match="training data: batch 0 as the model sees it, inputs of example 0 and"):
        require_finite_start(mlp, with_train(task, normalise=lambda inputs: inputs / torch.zeros(6)))
    model = nn.Sequential(nn.Embedding(5, 1), nn.Flatten(0))
    lengths = torch.ones(8, dtype=torch.long)
    tokens = TokenData({"x": torch.arange(8) % 5}, lengths, spoilt(torch.randn(8), 2))
    numbers = Task(tokens, tokens, loss=F.mse_loss, forward=lambda model, inputs: model(inputs["x"]))
    with pytest.raises(swamp.SwampError, match="targets of example"):
        require_finite_start(model, numbers)


def test_values_that_the_loss_or_model_can_handle_are_accepted(mlp, task):
    """NaN for missing targets, infinity in attention masks."""
    targets = torch.randn(96, 3)
    targets[5, 1] = math.nan

    def present(outputs, targets):
        known = ~targets.isnan()
        return F.mse_loss(outputs[known], targets[known])

    data = TensorData(task.train.inputs, targets)
    require_finite_start(mlp, Task(data, data, loss=present))
    with pytest.raises(swamp.SwampError, match="targets of example 5"):
        require_finite_start(mlp, Task(data, data, loss=F.mse_loss))

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x, mask):
            return self.out(x * mask.softmax(-1))

    masks = torch.zeros(96, 6)
    masks[:, 3:] = -math.inf
    masked = TensorData({"x": task.train.inputs, "mask": masks}, task.train.targets)
    require_finite_start(Attending(), Task(masked, masked))


def test_the_global_generator_and_the_model_are_unchanged(mlp, task):
    before, state = torch.get_rng_state(), copy.deepcopy(mlp.state_dict())
    mlp.train()
    with pytest.raises(swamp.SwampError, match="example 1"):
        require_finite_start(mlp, with_train(task, inputs=spoilt(task.train.inputs, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert mlp.training
    assert all(torch.equal(state[name], value) for name, value in mlp.state_dict().items())


class NeverCalled:
    def train(self, *_, **__):
        raise AssertionError("training started")


def test_weights_that_are_not_finite_are_refused_before_training(mlp, task):
    with torch.no_grad():
        mlp[2].weight[0, 1] = math.inf
    with pytest.raises(swamp.SwampError, match=r"initial weights are NaN or infinite in 2\.weight \(1 of 48 numbers"):
        swamp.cycles(mlp, task, swamp.Plan(), Training(epochs=2, swa_fraction=0.5), backend=NeverCalled())


def test_data_that_is_not_finite_is_refused_before_training(mlp, task):
    wrong = with_train(task, inputs=spoilt(task.train.inputs, 4))
    with pytest.raises(swamp.SwampError, match="inputs of example 4"):
        swamp.cycles(mlp, wrong, swamp.Plan(), Training(epochs=2, swa_fraction=0.5), backend=NeverCalled())


def test_a_ticket_from_the_user_that_is_not_finite_is_refused(mlp, task):
    weights = {name: value.clone() for name, value in mlp.state_dict().items()}
    weights["0.weight"][0, 0] = math.nan
    ticket, mask = swamp.Ticket(weights, 0), swamp.Mask.ones(mlp)
    with pytest.raises(swamp.SwampError, match=r"ticket's weights are NaN or infinite in 0\.weight"):
        swamp.algorithms.train_on({0: mask}, ticket, mlp, task, swamp.Plan(), Training(epochs=4, swa_fraction=0.5))


def test_masks_are_never_computed_from_nan():
    mask = swamp.Mask({"w": torch.tensor([[True, True, False, False]])})
    weights, growth = {"w": torch.tensor([[2.0, 1.0, 0, 0]])}, {"w": torch.tensor([[0.0, 0, 3.0, 1.0]])}
    for bad in (
        ({"w": torch.tensor([[math.nan, 1.0, 0, 0]])}, growth),
        (weights, {"w": torch.tensor([[0, 0, math.nan, 1]])}),
    ):
        with pytest.raises(swamp.SwampError, match="'w' are NaN"):
            drop_and_grow(mask, *bad, 0.5)
    with pytest.raises(swamp.SwampError, match="'w' are NaN"):
        prune_to_budget({"w": torch.tensor([[1.0, math.nan, 2.0, 0]])}, mask)


def test_infinite_growth_does_not_replace_a_remaining_weight():
    """A tie with a remaining weight must not be decided by position."""
    mask = swamp.Mask({"w": torch.tensor([[False, False, True, True]])})
    weights, growth = {"w": torch.tensor([[0, 0, 2.0, 1.0]])}, {"w": torch.tensor([[math.inf, math.inf, 0, 0]])}
    assert drop_and_grow(mask, weights, growth, 0.5)["w"].tolist() == [[True, False, True, False]]


def test_a_mean_keeps_an_infinity_that_all_share_and_hides_no_other():
    same, other = torch.tensor([1.0, -math.inf]), torch.tensor([1.0, 2.0])
    for states in ([same, same, same], [same, other], [other, same]):
        mean = RunningMean()
        for state in states:
            mean.add({"w": state})
        found = RunningMean(mean.partial(), mean.count, like={"w": same}).mean()["w"]
        assert not bool(found.isfinite().all())
        assert torch.equal(found, same) or states[0] is not states[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_message_gives_advice_for_the_precision_in_use(precision, mlp, task):
    training = Training(epochs=1, batch_size=16, lr=1e30, precision=precision, swa_fraction=0)
    with pytest.raises(swamp.Diverged) as error:
        fit(mlp, task, training, swamp.training.Seed(0))
    assert ('precision="float32"' in str(error.value)) == (precision == "bfloat16")
    assert error.value.steps == 6
