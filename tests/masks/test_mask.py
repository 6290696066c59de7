import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from swamp.errors import MaskError, SwampError
from swamp.masks import Mask, Scope


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


@pytest.fixture
def mask() -> Mask:
    """5 of 8 weights; the model has 8 weights and 3 biases."""
    return Mask({"0.weight": bits(1, 0, 1, 1, 0, 1).reshape(2, 3), "2.weight": bits(0, 1).reshape(1, 2)})


def test_counts_worked_out_by_hand(model: nn.Module, mask: Mask) -> None:
    assert (mask.nnz, mask.prunable) == (5, 8)
    assert mask.nnz_by_layer == {"0.weight": 4, "2.weight": 1}
    assert mask.density == 5 / 8
    assert mask.sparsity == 3 / 8
    assert mask.density_of_all(model) == 8 / 11
    assert repr(mask) == "Mask(5 of 8 weights, sparsity 0.3750, 2 layers)"


def test_its_representations_stay_short_for_many_layers() -> None:
    mask = Mask({f"layer<{i}>": bits(1, 0) for i in range(500)})
    assert repr(mask) == "Mask(500 of 1,000 weights, sparsity 0.5000, 500 layers)"
    page = mask._repr_html_()
    assert "layer&lt;0&gt;" in page
    assert "and 488 more" in page
    assert len(page) < 2000


def test_a_tied_weight_counts_once_in_the_density_of_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    # 4 weights and 4 biases; 1 weight pruned.
    mask = Mask({"0.weight": bits(1, 1, 1, 0).reshape(2, 2)})
    assert mask.density_of_all(model) == 7 / 8


def test_the_dense_mask_covers_the_default_scope(model: nn.Module) -> None:
    dense = Mask.ones(model)
    assert list(dense) == ["0.weight", "2.weight"]
    assert dense.sparsity == 0
    assert len(dense) == 2
    assert dense.density_of_all(model) == 1


def test_a_mask_of_nothing_prunes_nothing() -> None:
    empty = Mask({})
    assert (empty.nnz, empty.density, empty.sparsity) == (0, 1.0, 0.0)
    assert empty.issubset(empty)
    assert repr(empty)


def test_from_zeros_reads_the_support_of_a_sparse_model(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, -0.0], [-2.0, 1e-38, float("nan")]]))
        model[2].weight.copy_(torch.tensor([[0.0, 3.0]]))
    expected = {"0.weight": bits(1, 0, 0, 1, 1, 1).reshape(2, 3), "2.weight": bits(0, 1).reshape(1, 2)}
    assert Mask.from_zeros(model) == Mask(expected)
    assert list(Mask.from_zeros(model, Scope(exclude=("0.*",)))) == ["2.weight"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_is_made_of_bool_tensors_only(dtype: torch.dtype) -> None:
    with pytest.raises(MaskError, match=f"'w' is {dtype}"):
        Mask({"ok": bits(1), "w": torch.ones(2, dtype=dtype)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mask: Mask({"w": [[True]]}), "a mask consists of bool tensors; 'w' is a list"),
        (lambda mask: Mask(None), "tensors must be a mapping, got None"),
        (lambda mask: mask.overlap("x"), r"other must be a swamp.Mask, got 'x'"),
        (lambda mask: mask.issubset(None), r"other must be a swamp.Mask, got None"),
        (lambda mask: mask.check(None), r"model must be a torch.nn.Module, got None"),
        (lambda mask: mask.save(None), "path must be a path, or text, got None"),
        (lambda mask: mask.require_zeros({}), "the mask names '0.weight', which is not among the weights"),
    ],
)
def test_what_is_no_mask_model_or_path_is_named(call, message: str, mask: Mask) -> None:
    with pytest.raises(SwampError, match=message):
        call(mask)


def test_a_model_without_parameters_has_no_pruned_ones(mask: Mask) -> None:
    assert mask.density_of_all(nn.ReLU()) == 1


def test_a_mask_does_not_change_with_the_tensors_it_was_made_of() -> None:
    source = bits(1, 0)
    mask = Mask({"w": source})
    source.fill_(True)
    assert mask.nnz == 1


def test_equal_masks_are_equal_and_hash_alike(mask: Mask) -> None:
    same = Mask({name: tensor.clone() for name, tensor in mask.items()})
    assert same == mask
    assert hash(same) == hash(mask)
    assert copy.deepcopy(mask) == mask
    assert mask.to("cpu") == mask
    assert mask != Mask({**mask, "2.weight": bits(1, 1).reshape(1, 2)})
    assert mask != Mask({**mask, "2.weight": bits(0, 1)}), "the same bits in another shape"
    assert mask != {name: tensor.clone() for name, tensor in mask.items()}


def test_overlap_worked_out_by_hand() -> None:
    one, other = Mask({"a": bits(1, 1, 0), "b": bits(1, 0)}), Mask({"a": bits(0, 1, 1), "b": bits(1, 0)})
    # Alive in both: a1, b0. Alive in either: a0, a1, a2, b0.
    assert one.overlap(other) == other.overlap(one) == 2 / 4
    assert one.overlap(one) == 1
    nothing = Mask({"a": bits(0, 0, 0), "b": bits(0, 0)})
    assert one.overlap(nothing) == 0
    assert nothing.overlap(nothing) == 1


def test_a_subset_has_no_weight_of_its_own() -> None:
    large, small, aside = Mask({"a": bits(1, 1, 0)}), Mask({"a": bits(0, 1, 0)}), Mask({"a": bits(0, 0, 1)})
    assert small.issubset(large)
    assert large.issubset(large)
    assert not large.issubset(small)
    assert not aside.issubset(large)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=50)
def test_overlap_and_subset_are_those_of_sets(pairs: list[tuple[bool, bool]]) -> None:
    first = {place for place, (active, _) in enumerate(pairs) if active}
    second = {place for place, (_, active) in enumerate(pairs) if active}
    one, other = Mask({"w": bits(*(a for a, _ in pairs))}), Mask({"w": bits(*(b for _, b in pairs))})
    assert one.issubset(other) == (first <= second)
    assert math.isclose(one.overlap(other), len(first & second) / len(first | second) if first | second else 1.0)


@pytest.mark.parametrize("other", [{"b": bits(1, 0)}, {"a": bits(1, 0, 1)}, {"a": bits(1, 0), "b": bits(1)}])
def test_masks_of_different_models_are_not_compared(other: dict[str, Tensor]) -> None:
    mask = Mask({"a": bits(1, 0)})
    with pytest.raises(MaskError, match="different models"):
        mask.overlap(Mask(other))
    with pytest.raises(MaskError, match="different models"):
        mask.issubset(Mask(other))


def test_applying_zeroes_the_pruned_weights_and_leaves_the_others_bit_for_bit(model: nn.Module, mask: Mask) -> None:
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [4.0, float("nan"), 6.0]]))
    biases = model[0].bias.clone()
    mask.apply_(model)
    zeroed = torch.tensor([[1.0, 0.0, 3.0], [4.0, 0.0, 6.0]])
    assert torch.equal(model[0].weight.view(torch.int32), zeroed.view(torch.int32))
    assert torch.equal(model[0].bias, biases)
    mask.require_zeros(dict(model.named_parameters()))


def test_a_mask_that_names_an_unknown_parameter_changes_nothing(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    wrong = Mask({"0.weight": torch.zeros(2, 3, dtype=torch.bool), "head.weight": bits(1)})
    with pytest.raises(MaskError, match=r"'head.weight', which Sequential does not have.*0\.weight"):
        wrong.apply_(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_mask_of_another_shape_is_refused_with_both_shapes(model: nn.Module) -> None:
    with pytest.raises(MaskError, match=r"'0.weight' has shape \(3, 2\), the parameter \(2, 3\)"):
        Mask({"0.weight": torch.ones(3, 2, dtype=torch.bool)}).check(model)


def test_a_long_list_of_parameters_is_cut_in_the_message() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(MaskError, match="and 14 more"):
        Mask({"x": bits(1)}).check(model)


def test_a_pruned_weight_that_is_not_zero_is_counted_and_named(mask: Mask) -> None:
    weights = {"0.weight": torch.ones(2, 3), "2.weight": torch.tensor([[0.0, 1.0]])}
    with pytest.raises(MaskError, match=r"2 pruned weights of '0\.weight' are not zero"):
        mask.require_zeros(weights)


def test_a_pruned_nan_is_not_a_zero() -> None:
    with pytest.raises(MaskError, match="1 pruned weights"):
        Mask({"w": bits(0, 1)}).require_zeros({"w": torch.tensor([float("nan"), 1.0])})


def test_a_active_weight_that_is_not_finite_is_no_fault_of_the_mask() -> None:
    # inf * 0 is NaN: a product would accuse the mask of what a diverged training did.
    Mask({"w": bits(0, 1, 1)}).require_zeros({"w": torch.tensor([-0.0, float("inf"), float("nan")])})


def test_empty_layers_are_named() -> None:
    assert Mask({"a": bits(0, 0), "b": bits(0, 1), "c": bits(0)}).empty_layers == ["a", "c"]
