import pytest
import torch
from torch import nn

from swamp.errors import SwampError
from swamp.masks import Mask, prune_mask
from swamp.scores import ScoringContext, score_named
from swamp.scores.magnitude import magnitude
from swamp.scores.random import random


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def seeded(seed: int = 0) -> ScoringContext:
    return ScoringContext(torch.Generator().manual_seed(seed))


def test_magnitude_is_the_absolute_value_of_each_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [-0.0, 3.0, -4.0]]))
    score = magnitude(model, Mask.ones(model), seeded())
    assert list(score) == ["0.weight", "1.weight"]
    assert score["1.weight"].tolist() == [[1.0, 2.0, 0.5], [0.0, 3.0, 4.0]]
    assert not score["1.weight"].requires_grad


def test_magnitude_keeps_the_largest_weights_of_the_whole_model(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.01], [0.02, 3.0, -4.0]]))
    mask = Mask.ones(model)
    smaller = prune_mask(mask, magnitude(model, mask, seeded()), 6)
    # Four large ones of the second layer, then the first two of the tied 0.1 in the first.
    assert smaller["1.weight"].int().tolist() == [[1, 1, 0], [0, 1, 1]]
    assert smaller["0.weight"].int().flatten().tolist() == [1, 1] + 10 * [0]


def test_random_keeps_the_exact_count(model: nn.Module) -> None:
    mask = Mask.ones(model)
    for kept in (17, 9, 2):
        mask = prune_mask(mask, random(model, mask, seeded(kept)), kept, min_per_layer=1)
        assert mask.nnz == kept


def test_the_same_generator_gives_the_same_random_mask_and_another_another(model: nn.Module) -> None:
    mask = Mask.ones(model)
    first, again, other = (
        prune_mask(mask, random(model, mask, seeded(seed)), 9, min_per_layer=1) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_random_does_not_look_at_the_weights(model: nn.Module) -> None:
    mask = Mask.ones(model)
    before = random(model, mask, seeded())
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(random(model, mask, seeded())["0.weight"], before["0.weight"])


def test_random_keeps_every_weight_equally_often() -> None:
    mask = Mask({"w": torch.ones(4, dtype=torch.bool)})
    source = seeded()
    kept = sum(prune_mask(mask, random(nn.Identity(), mask, source), 1)["w"].int() for _ in range(2000))
    # 500 each, with a standard deviation of 19.
    assert all(abs(count - 500) < 100 for count in kept.tolist())


def test_an_unknown_score_comes_with_suggestions() -> None:
    with pytest.raises(SwampError, match=r"unknown score 'magnitud'\. Did you mean magnitude"):
        score_named("magnitud")
