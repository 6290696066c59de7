import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks import Mask, prune_mask
from swamp.masks.patterns import STRUCTURES, Unstructured, structure_named, top_k
from swamp.masks.pruning import empty_layer_warning


def full(**sizes: int) -> Mask:
    return Mask({name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()})


def active(mask: Mask) -> dict[str, list[int]]:
    return {name: tensor.int().tolist() for name, tensor in mask.items()}


def test_the_exact_count_is_kept_where_a_threshold_would_take_one_more() -> None:
    scores = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])}
    # Keeping `> sorted[2]` would leave two of the three that were asked for.
    assert active(prune_mask(full(w=5), scores, 3)) == {"w": [0, 0, 1, 1, 1]}


def test_of_equal_scores_the_earlier_weight_in_the_order_of_the_mask_stays() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 0.0, 1.0])}
    assert active(prune_mask(full(a=3, b=3), scores, 4)) == {"a": [1, 1, 1], "b": [1, 0, 0]}
    # The order of the mask counts, not that of the scores.
    assert active(prune_mask(full(b=3, a=3), scores, 3)) == {"b": [1, 0, 1], "a": [0, 1, 0]}


def test_a_constant_score_still_gives_the_exact_count() -> None:
    mask = full(w=1000)
    for kept in (999, 500, 1):
        mask = prune_mask(mask, {"w": torch.zeros(1000)}, kept)
        assert mask.nnz == kept
        assert bool(mask["w"][:kept].all())


def test_negative_scores_of_active_weights_are_above_the_pruned() -> None:
    mask = Mask({"w": torch.tensor([True, False, True, False])})
    scores = {"w": torch.tensor([-3.0, 5.0, -1e30, float("nan")])}
    assert active(prune_mask(mask, scores, 1)) == {"w": [1, 0, 0, 0]}
    assert prune_mask(mask, scores, 2) == mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_scores_of_any_number_type_rank(dtype: torch.dtype) -> None:
    scores = {"w": torch.tensor([[4, 1], [3, 2]], dtype=dtype)}
    assert active(prune_mask(Mask({"w": torch.ones(2, 2, dtype=torch.bool)}), scores, 2)) == {"w": [[1, 0], [1, 0]]}


def test_shrinking_does_not_touch_the_mask_or_the_scores_it_is_given() -> None:
    mask, scores = full(w=4), {"w": torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)}
    prune_mask(mask, scores, 1)
    assert mask.nnz == 4
    assert scores["w"].tolist() == [1, 2, 3, 4]


layers = st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=8), min_size=1, max_size=4)


@given(layers, st.integers(0, 2), st.lists(st.floats(0, 1), min_size=1, max_size=3))
@settings(max_examples=150)
def test_masks_are_nested_and_equal_a_plain_sort_at_every_step(
    values: list[list[int]], floor: int, steps: list[float]
) -> None:
    scores = {f"layer{index}": torch.tensor(row, dtype=torch.float32) for index, row in enumerate(values)}
    mask = full(**{name: len(score) for name, score in scores.items()})
    for step in sorted(steps, reverse=True):
        kept = max(round(step * mask.nnz), sum(min(floor, count) for count in mask.nnz_by_layer.values()))
        smaller = quiet(mask, scores, kept, "global", floor)
        assert smaller.nnz == kept
        assert smaller.issubset(mask)
        assert smaller == by_plain_sort(mask, scores, kept, floor)
        mask = smaller


def by_plain_sort(mask: Mask, scores: dict[str, Tensor], kept: int, floor: int) -> Mask:
    """Python's stable sort over all active weights, each layer's best `floor` first."""
    chosen: set[tuple[str, int]] = set()
    for name, tensor in mask.items():
        places = sorted(tensor.nonzero().flatten().tolist(), key=lambda at: -scores[name][at].item())
        chosen |= {(name, at) for at in places[:floor]}
    others = [(name, at) for name in mask for at in mask[name].nonzero().flatten().tolist() if (name, at) not in chosen]
    others.sort(key=lambda place: -scores[place[0]][place[1]].item())
    chosen |= set(others[: kept - len(chosen)])
    return Mask(
        {name: torch.tensor([(name, at) in chosen for at in range(len(tensor))]) for name, tensor in mask.items()}
    )


@given(layers, st.sampled_from(["global", "uniform", "erk"]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2))
@settings(max_examples=150)
def test_every_allocation_keeps_exact_nested_counts_above_the_floor(
    values: list[list[int]], allocation: str, first: float, second: float, floor: int
) -> None:
    scores = {f"layer{index}": torch.tensor(row, dtype=torch.float32) for index, row in enumerate(values)}
    mask = full(**{name: len(score) for name, score in scores.items()})
    for share in (first, second):
        least = sum(min(floor, count) for count in mask.nnz_by_layer.values())
        kept = max(round(share * mask.nnz), least)
        smaller = quiet(mask, scores, kept, allocation, floor)
        assert smaller.nnz == kept
        assert smaller.issubset(mask)
        assert all(count >= min(floor, mask.nnz_by_layer[name]) for name, count in smaller.nnz_by_layer.items())
        mask = smaller


def quiet(mask: Mask, scores: dict[str, Tensor], kept: int, allocation: str, floor: int) -> Mask:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prune_mask(mask, scores, kept, allocation=allocation, min_per_layer=floor)


def test_a_layer_pruned_away_whole_is_named_in_a_warning() -> None:
    scores = {"body": torch.tensor([3.0, 4.0]), "head": torch.tensor([1.0, 2.0])}
    with pytest.warns(UserWarning, match="no weight of head is left at sparsity 0.5000") as caught:
        smaller = prune_mask(full(body=2, head=2), scores, 2, min_per_layer=0)
    assert caught[0].filename == __file__, "the warning points at the caller"
    assert smaller.empty_layers == ["head"]
    # Warned once: the layer is as empty in the next cycle.
    assert active(prune_mask(smaller, scores, 1, min_per_layer=0)) == {"body": [0, 1], "head": [0, 0]}
    assert empty_layer_warning(smaller, smaller) is None


def test_a_floor_keeps_the_best_of_a_layer_that_would_be_pruned_away() -> None:
    scores = {"body": torch.tensor([3.0, 4.0]), "head": torch.tensor([1.0, 2.0])}
    assert active(prune_mask(full(body=2, head=2), scores, 2, min_per_layer=1)) == {"body": [0, 1], "head": [0, 1]}


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused_by_name(allocation: str, wrong: float) -> None:
    scores = {"a": torch.ones(2), "b": torch.tensor([1.0, wrong])}
    with pytest.raises(SwampError, match="score of 'b' is NaN or infinite"):
        prune_mask(full(a=2, b=2), scores, 2, allocation=allocation)


def test_a_missing_score_is_refused_by_name() -> None:
    with pytest.raises(SwampError, match="no score for 'b'"):
        prune_mask(full(a=2, b=2), {"a": torch.ones(2)}, 2)


def test_a_score_of_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(SwampError, match=r"'a' has shape \(2, 1\), the mask \(2,\)"):
        prune_mask(full(a=2), {"a": torch.ones(2, 1)}, 1)


def test_growing_is_refused() -> None:
    mask = prune_mask(full(w=4), {"w": torch.arange(4.0)}, 2)
    with pytest.raises(SwampError, match="3 weights cannot be kept: 2 are active"):
        prune_mask(mask, {"w": torch.arange(4.0)}, 3)


def test_a_structure_picks_exactly_the_count_among_the_active() -> None:
    score, active = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([False, True, True, True])
    assert top_k(score, active, 2).tolist() == [False, True, True, False]
    assert top_k(score, active, 0).tolist() == [False] * 4


def test_a_pattern_is_found_by_its_name_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sieve(Unstructured):
        """A pattern that somebody adds."""

    monkeypatch.setitem(STRUCTURES, "sieve", Sieve)
    assert isinstance(structure_named("sieve"), Sieve)


def test_an_unknown_structure_or_allocation_comes_with_suggestions() -> None:
    with pytest.raises(SwampError, match=r"unknown structure 'unstructred'\. Did you mean unstructured"):
        structure_named("unstructred")
    with pytest.raises(SwampError, match=r"unknown structure 'n:m'\."):
        structure_named("n:m")
    with pytest.raises(SwampError, match="unknown structure"):
        prune_mask(full(w=2), {"w": torch.ones(2)}, 1, structure="2-4")
    with pytest.raises(SwampError, match="unknown allocation"):
        prune_mask(full(w=2), {"w": torch.ones(2)}, 1, allocation="layerwise")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "scores must be a mapping, got None"),
        ({"w": [1.0, 2.0]}, "the score of 'w' is a list; expected a tensor of real numbers"),
        ({"w": torch.ones(2, dtype=torch.bool)}, "the score of 'w' is torch.bool; expected"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "the score of 'w' is torch.complex64; expected"),
    ],
)
def test_scores_of_another_kind_are_refused(scores, message: str) -> None:
    with pytest.raises(SwampError, match=message):
        prune_mask(Mask({"w": torch.ones(2, dtype=torch.bool)}), scores, 1)


def test_a_count_that_is_no_whole_number_and_a_mask_of_nothing_are_refused() -> None:
    with pytest.raises(SwampError, match=r"nnz must be a whole number, got 1.5"):
        prune_mask(Mask({"w": torch.ones(2, dtype=torch.bool)}), {"w": torch.ones(2)}, 1.5)  # pyright: ignore[reportArgumentType]
    for structure in ("unstructured", "channel", "2:4"):
        with pytest.raises(SwampError, match="the mask names no tensor"):
            prune_mask(Mask({}), {}, 0, structure=structure)
