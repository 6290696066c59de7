"""Gradients accumulated over parts of a batch are those of the whole batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp.backends import Sequential, Ticket, TrainRequest, Vmapped
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.dry_run import dry_run
from swamp.training.loop import fit

SEED = Seed(0)


def setting(parts: int) -> tuple[nn.Module, Task, Training]:
    generator = SEED.generator()
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    task = Task.of((inputs, torch.arange(40) % 3), (inputs, torch.arange(40) % 3))
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return (
        model,
        task,
        Training(
            epochs=3, batch_size=10, lr=0.1, grad_accum_steps=parts, clip=0.5, swa_fraction=0.5, optimizer="adamw"
        ),
    )


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_a_step_in_parts_is_the_step_of_the_whole_batch_dropout_and_mask_included(parts: int):
    trained = []
    for count in (1, parts):
        model, task, training = setting(count)
        mask = Mask({"0.weight": torch.rand(16, 6, generator=SEED.generator()) < 0.5})
        mask.apply_(model)
        trained.append(fit(model, task, training, SEED, mask=mask))
        mask.require_zeros(trained[-1].weights)
    whole, in_parts = trained
    assert whole.losses == pytest.approx(in_parts.losses, abs=1e-12)
    for name, value in whole.weights.items():
        torch.testing.assert_close(in_parts.weights[name], value, rtol=0, atol=1e-12)


def test_parts_are_one_to_the_batch_size():
    with pytest.raises(SwampError, match="grad_accum_steps must be from 1 to batch_size, got 11"):
        Training(batch_size=10, grad_accum_steps=11)


def test_a_stack_declines_and_trains_one_after_the_other():
    model, task, training = setting(2)
    ticket, mask, seeds = Ticket(model.state_dict(), 0), Mask.ones(model), [(0, SEED), (1, SEED.at("other"))]
    with pytest.warns(UserWarning, match="gradients are accumulated"):
        found = Vmapped(model, task).train(TrainRequest(ticket, mask, training, seeds))
    for one, other in zip(
        found, Sequential(model, task).train(TrainRequest(ticket, mask, training, seeds)), strict=True
    ):
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.embed(tokens))).transpose(1, 2)


WEIGHTS = torch.tensor([10.0, 1, 1, 0.1], dtype=torch.float64)
LOSSES = {
    "cross_entropy": F.cross_entropy,
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "class weights and smoothing": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    "partial": partial(F.cross_entropy, ignore_index=2),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("parts", [2, 16])
def test_accumulated_steps_with_ignored_targets_and_class_weights_are_those_of_the_whole_batch(loss: str, parts: int):
    generator = SEED.generator()
    tokens, targets = torch.randint(9, (16, 7), generator=generator), torch.randint(4, (16, 7), generator=generator)
    targets[torch.arange(7) >= torch.randint(1, 8, (16, 1), generator=generator)] = -100 if loss != "partial" else 2
    targets[:2] = -100 if loss != "partial" else 2  # two parts without any target
    task = Task.of((tokens, targets), (tokens, targets), loss=LOSSES[loss])
    weights = []
    for count in (1, parts):
        torch.manual_seed(0)
        how = Training(epochs=2, batch_size=16, lr=0.1, grad_accum_steps=count, swa_fraction=0.0)
        weights.append(fit(Tagger().double(), task, how, SEED).weights)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-14)


class Focal(nn.CrossEntropyLoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(input, target, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).mean()


def test_a_subclass_of_a_loss_of_torch_keeps_its_own_formula():
    losses = []
    for count in (1, 4):
        model, task, training = setting(count)
        losses += fit(model, replace(task, loss=Focal()), replace(training, epochs=1), SEED).losses
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


class Noisy(nn.Module):
    """Draws random numbers other than dropout, as variational autoencoders do; records them."""

    def __init__(self, *, in_eval_mode: bool = False) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3).double()
        self.in_eval_mode = in_eval_mode
        self.drawn: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not (self.training or self.in_eval_mode):
            return self.out(inputs)
        self.drawn.append(torch.randn_like(inputs))
        return self.out(inputs + self.drawn[-1])


def test_the_parts_of_a_batch_draw_different_random_numbers():
    def drawn(parts: int) -> list[torch.Tensor]:
        _, task, training = setting(parts)
        model = Noisy()
        fit(model, task, replace(training, epochs=1), SEED)
        return model.drawn

    noise = torch.cat(drawn(2))
    assert len(noise.unique(dim=0)) == len(noise) == 40
    assert torch.equal(torch.cat(drawn(2)), noise)


def test_ranks_draw_different_random_numbers_and_go_on_with_equal_ones():
    class Rank:
        def __init__(self, rows: slice) -> None:
            self.share = rows

        def shard_parameters(self, model: nn.Module) -> bool:
            return False

        def rows(self, examples: int) -> slice:
            return self.share

        def synchronised_batchnorm(self) -> AbstractContextManager[None]:
            return nullcontext()

        def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
            pass

    def run(rows: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
        after: list[torch.Tensor] = []

        class Watched(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                after.append(torch.rand(3))  # an optimizer that adds noise adds the same in every rank

        _, task, training = setting(1)
        model = Noisy()
        fit(model, task, replace(training, epochs=1), SEED, optimizer=partial(Watched, lr=0.1), shard=Rank(rows))
        return torch.cat(model.drawn), after

    (first, after), (second, after_second) = run(slice(0, 5)), run(slice(5, 10))
    assert not torch.isin(first, second).any()
    assert all(torch.equal(*pair) for pair in zip(after, after_second, strict=True))


def test_a_model_that_draws_in_eval_mode_too_can_be_accumulated():
    inputs = torch.randn(40, 6, generator=SEED.generator(), dtype=torch.float64)
    task = Task.of((inputs, inputs[:, :3]), (inputs, inputs[:, :3]), loss=F.mse_loss)
    training = Training(epochs=1, batch_size=10, grad_accum_steps=5)
    dry_run(Noisy(in_eval_mode=True), task, training, prunable={"out.weight"})
