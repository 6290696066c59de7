"""What every criterion promises, whatever it looks at."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError
from swamp.masks import Mask, Scope, prune_mask
from swamp.scores import SCORES, ScoringContext

from .networks import LOOKING, Fields, batches_of, context, examples, network


class Everything(nn.Module):
    """All that a careless score would move: statistics, modes, gradients, flags, and noise that ignores the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.last, self.unused = nn.Linear(8, 3), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.norm(self.first(inputs))))
        return self.last(F.dropout(hidden, 0.1, training=True))


def everything() -> Everything:
    model = Everything()
    model.norm.eval()
    model.first.bias.requires_grad_(False)
    model.last.weight.requires_grad_(False)
    model.first.weight.grad = torch.full_like(model.first.weight, 3.0)
    return model


def restless() -> Iterator[Any]:
    """Batches whose source draws from the global generator."""
    inputs, targets = examples(32, 6)
    for part in torch.randperm(32).split(16):
        yield inputs[part].float(), targets[part]


@pytest.mark.parametrize("name", SCORES)
def test_a_score_leaves_the_model_and_the_global_generator_as_they_were(name: str) -> None:
    model = everything()
    mask = Mask.ones(model, Scope(exclude=("unused.*",)))
    half = Mask({key: torch.arange(value.numel()).view_as(value) % 2 == 0 for key, value in mask.items()})
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grads = {key: value.grad for key, value in model.named_parameters()}
    flags = [value.requires_grad for value in model.parameters()]
    before = grads["first.weight"]
    assert before is not None
    generator = torch.get_rng_state()

    scores = SCORES[name](model, half, ScoringContext(torch.Generator().manual_seed(0), restless))

    assert {key: value.shape for key, value in scores.items()} == {key: value.shape for key, value in mask.items()}
    assert not any(score.requires_grad for score in scores.values())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(value.grad is grads[key] for key, value in model.named_parameters())
    assert torch.equal(before, torch.full_like(before, 3.0))
    assert [value.requires_grad for value in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", SCORES)
def test_the_same_seed_gives_the_same_scores_inside_no_grad_too(name: str) -> None:
    model = everything()
    mask = Mask.ones(model, Scope(exclude=("unused.*",)))

    def scored() -> dict[str, Tensor]:
        return SCORES[name](model, mask, ScoringContext(torch.Generator().manual_seed(0), restless))

    first = scored()
    torch.rand(1)
    with torch.no_grad():
        again = scored()
    assert all(torch.equal(score, again[key]) for key, score in first.items())


@pytest.mark.parametrize("name", [*LOOKING, "synflow"])
def test_a_weight_that_the_outputs_do_not_depend_on_scores_zero(name: str) -> None:
    model = everything()
    scores = SCORES[name](model, Mask.ones(model), ScoringContext(torch.Generator().manual_seed(0), restless))
    assert not scores["unused.weight"].any()
    assert scores["last.weight"].any()


@pytest.mark.parametrize("name", [*LOOKING, "synflow"])
def test_dropout_is_off(name: str) -> None:
    def scored(p: float) -> dict[str, Tensor]:
        plain = network("mlp-8", 6).train()
        return SCORES[name](nn.Sequential(plain, nn.Dropout(p)).train(), mask, context(examples(30, 6)))

    mask = Mask.ones(nn.Sequential(network("mlp-8", 6)))
    dropped = scored(0.5)
    assert all(torch.equal(score, dropped[key]) for key, score in scored(0.0).items())


@pytest.mark.parametrize("name", LOOKING)
def test_pruned_weights_do_not_count_even_where_the_model_still_has_them(name: str) -> None:
    model = network("mlp-bn-8-8", 6)
    mask = Mask({key: torch.arange(value.numel()).view_as(value) % 3 > 0 for key, value in Mask.ones(model).items()})
    unmasked = SCORES[name](model, mask, context(examples(30, 6)))
    mask.apply_(model)
    masked = SCORES[name](model, mask, context(examples(30, 6)))
    assert all(torch.equal(score, masked[key]) for key, score in unmasked.items())


@pytest.mark.parametrize("name", LOOKING)
def test_inputs_may_be_a_mapping(name: str) -> None:
    model = network("mlp-8", 6)
    mask = Mask.ones(model)
    batches = batches_of(*examples(30, 6), 8)
    named = [(Fields(x=inputs, more=targets), targets) for inputs, targets in batches]
    expected = SCORES[name](model, mask, context(*batches))
    found = SCORES[name](model, mask, context(*named, forward=lambda model, inputs: model(inputs["x"])))
    assert all(torch.equal(score, found[key]) for key, score in expected.items())


@pytest.mark.parametrize("name", ["snip", "taylor", "fisher"])
@pytest.mark.parametrize(("limit", "used"), [(1, 1), (9, 9), (10, 10), (25, 20), (30, 30), (1000, 30)])
def test_a_score_takes_whole_batches_up_to_its_limit_and_cuts_a_first_one_that_is_larger(
    name: str, limit: int, used: int
) -> None:
    model = network("mlp-8", 6)
    inputs, targets = examples(30, 6)
    few = SCORES[name](model, Mask.ones(model), context(*batches_of(inputs, targets, 10), examples=limit))
    same = SCORES[name](model, Mask.ones(model), context(*batches_of(inputs[:used], targets[:used], 10)))
    assert all(torch.equal(score, same[key]) for key, score in few.items())


@pytest.mark.parametrize("name", [*LOOKING, "synflow"])
def test_a_score_that_looks_at_data_says_so_where_there_is_none(name: str) -> None:
    model = network("mlp-8", 6)
    with pytest.raises(
        SwampError, match=rf"'{name}' needs training data, and none was given.*ScoringContext\(batches="
    ):
        SCORES[name](model, Mask.ones(model), ScoringContext(torch.Generator()))
    with pytest.raises(SwampError, match=rf"'{name}' needs training data, and the data has 0 batches"):
        SCORES[name](model, Mask.ones(model), context())


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    model = network("mlp-8", 6)
    inputs, targets = examples(30, 6)
    inputs[3, 2] = bad
    with pytest.raises(SwampError, match=rf"the loss is NaN or infinite on the examples for the score '{name}'"):
        SCORES[name](model, Mask.ones(model), context((inputs, targets)))


def test_a_score_needs_at_least_one_example() -> None:
    with pytest.raises(SwampError, match="needs at least 1 example, got examples=0"):
        ScoringContext(torch.Generator(), examples=0)


@pytest.mark.parametrize("name", SCORES)
def test_rounds_of_a_criterion_reach_a_density_without_asking_for_anything_else(name: str) -> None:
    # The published SynFlow: the network is scored anew in each of many rounds.
    model = network("mlp-20-20", 6)
    mask, data = Mask.ones(model), context(examples(30, 6))
    for round_ in range(1, 11):
        kept = round(mask.prunable * 0.1 ** (round_ / 10))
        smaller = prune_mask(mask, SCORES[name](model, mask, data), kept, min_per_layer=2)
        assert smaller.nnz == kept
        assert smaller.issubset(mask)
        mask = smaller


class Attending(nn.Module):
    """Attention over three steps of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs.view(-1, 3, 2)
        return self.last(self.attention(steps, steps, steps, need_weights=False)[0].flatten(1))


@pytest.mark.parametrize("name", LOOKING)
def test_attention_is_scored(name: str) -> None:
    # The fast kernels of attention have no second derivatives, which grasp takes.
    model = Attending()
    inputs, targets = examples(30, 6)
    scores = SCORES[name](model, Mask.ones(model), context((inputs.float(), targets)))
    assert list(scores) == ["attention.in_proj_weight", "attention.out_proj.weight", "last.weight"]
    assert all(score.any() and bool(torch.isfinite(score).all()) for score in scores.values())
