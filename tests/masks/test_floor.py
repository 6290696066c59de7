"""Layers are never emptied unless asked for, and slices of parametrised weights keep a weight each."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from swamp.errors import SwampError
from swamp.masks import Mask, prune_mask
from swamp.masks.floor import best_of_slices, least_weights
from swamp.masks.parametrized import slices_of


def dense(scores: dict[str, Tensor]) -> Mask:
    return Mask({name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()})


def test_a_layer_that_would_be_emptied_keeps_the_best_weight_of_each_output_channel() -> None:
    scores = {"body": torch.full((4, 4), 9.0), "head": torch.tensor([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]])}
    with pytest.warns(UserWarning, match=r"head would lose all weights by the scores alone.*min_per_layer") as caught:
        mask = prune_mask(dense(scores), scores, 10)
    assert caught[0].filename == __file__, "the warning points at the caller"
    assert mask["head"].int().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert mask.nnz == 10
    with pytest.warns(UserWarning, match="head"):
        smaller = prune_mask(mask, scores, 4)
    assert torch.equal(smaller["head"], mask["head"]), "it stays as it is in the next cycle"


def test_where_channels_are_too_many_one_weight_stays() -> None:
    scores = {"body": torch.full((2, 4), 9.0), "head": torch.arange(40.0).reshape(40, 1) / 100}
    with pytest.warns(UserWarning, match="head"):
        mask = prune_mask(dense(scores), scores, 6)
    assert mask.nnz_by_layer == {"body": 5, "head": 1}
    assert mask["head"][39]
    with pytest.raises(SwampError, match=r"1 weights cannot be kept: one in each of 2 layers.* are 2"):
        prune_mask(mask, scores, 1)


def test_nothing_changes_where_no_layer_would_be_emptied() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, 8, generator=generator) for name in "abc"}
    for allocation in ("global", "uniform", "erk"):
        mask = prune_mask(dense(scores), scores, 20, allocation=allocation)
        assert mask == prune_mask(dense(scores), scores, 20, allocation=allocation, min_per_layer=0)


layers = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 1e-3, 1.0])), min_size=1, max_size=5
)


@given(layers, st.sampled_from(["global", "uniform", "erk"]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_counts_are_exact_masks_nested_and_no_layer_is_empty(
    sizes: list[tuple[int, int, float]], allocation: str, first: float, second: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.rand(rows, columns, generator=generator) * s for i, (rows, columns, s) in enumerate(sizes)}
    slices = {"0": (1,)}
    mask = dense(scores)
    for share in (first, second):
        nnz = max(round(share * mask.nnz), least_weights(mask, None, slices))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smaller = prune_mask(mask, scores, nnz, allocation=allocation, slices=slices)
        assert smaller.nnz == nnz
        assert smaller.issubset(mask)
        assert not smaller.empty_layers
        assert bool(smaller["0"].any(1).all()), "each slice keeps a weight"
        mask = smaller


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_of_each_slice_is_the_first_active_maximum(shape: list[int], seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 3, shape, generator=generator).float()
    active = torch.rand(shape, generator=generator) < 0.6
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1).map(sorted))
    found = best_of_slices(score, active, dims)
    expected = torch.zeros(shape, dtype=torch.bool)
    best: dict[tuple[int, ...], tuple[int, ...]] = {}
    for position in sorted((tuple(p.tolist()) for p in active.nonzero()), key=lambda p: [p[d] for d in dims]):
        key = tuple(p for d, p in enumerate(position) if d not in dims)
        if key not in best or score[position] > score[best[key]]:
            best[key] = position
    for position in best.values():
        expected[position] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "slices"),
    [
        (parametrizations.weight_norm(nn.Linear(3, 4)), {"parametrizations.weight.original1": (1,)}),
        (parametrizations.weight_norm(nn.Conv1d(3, 4, 5), dim=2), {"parametrizations.weight.original1": (0, 1)}),
        (parametrizations.weight_norm(nn.Conv1d(3, 4, 5), dim=None), {"parametrizations.weight.original1": (0, 1, 2)}),
        (parametrizations.spectral_norm(nn.Linear(3, 4)), {"parametrizations.weight.original": (0, 1)}),
        (nn.Linear(3, 4), {}),
    ],
)
def test_weights_of_every_normalised_slice_stay_finite_at_the_smallest_count(
    layer: nn.Module, slices: dict[str, tuple[int, ...]]
) -> None:
    assert slices_of(layer) == slices
    mask = Mask.ones(layer)
    weights = dict(layer.named_parameters())
    scores = {name: weights[name].detach().abs() for name in mask}
    least = least_weights(mask, None, slices)
    mask = prune_mask(mask, scores, least, slices=slices)
    mask.apply_(layer.eval())
    weight = layer.weight
    assert bool(weight.isfinite().all())
    assert int(weight.count_nonzero()) == least == mask.nnz
