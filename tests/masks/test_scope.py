import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from swamp.errors import SwampError
from swamp.masks import Mask, Scope


class Language(nn.Module):
    """A small transformer with an output tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=2)
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.down.weight = self.up.weight
        self.output.weight = self.embedding.weight


ATTENTION = [
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
]


def test_by_default_linear_and_attention_weights_are_pruned_and_tied_ones_count_once() -> None:
    assert list(Scope().prunable(Language())) == [*ATTENTION, "up.weight"]


def test_a_tied_weight_is_one_weight_in_the_mask() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert Mask.ones(model).prunable == 9


@pytest.mark.parametrize("tied_to", [nn.Embedding(4, 3), nn.EmbeddingBag(4, 3)])
@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_weight_tied_to_an_embedding_stays_out_whichever_comes_first(
    tied_to: nn.Embedding | nn.EmbeddingBag, embedding_first: bool
) -> None:
    head = nn.Linear(3, 4)
    head.weight = tied_to.weight
    body = nn.Linear(3, 3)
    model = nn.Sequential(tied_to, body, head) if embedding_first else nn.Sequential(head, body, tied_to)
    assert list(Scope().prunable(model)) == ["1.weight"]


def test_every_kind_of_convolution_is_pruned_and_no_normalisation_is() -> None:
    model = nn.ModuleList(
        [
            nn.Conv1d(2, 2, 3),
            nn.Conv2d(2, 2, 3),
            nn.Conv3d(2, 2, 3),
            nn.ConvTranspose1d(2, 2, 3),
            nn.ConvTranspose2d(2, 2, 3),
            nn.ConvTranspose3d(2, 2, 3),
            nn.BatchNorm2d(2),
            nn.GroupNorm(1, 2),
            nn.LayerNorm(2),
            nn.Embedding(2, 2),
            nn.PReLU(),
        ]
    )
    assert list(Scope().prunable(model)) == [f"{index}.weight" for index in range(6)]


def test_a_user_s_own_layer_is_known_by_what_it_inherits() -> None:
    class Mine(nn.Linear):
        pass

    assert list(Scope().prunable(nn.Sequential(Mine(2, 2)))) == ["0.weight"]


def test_exclude_leaves_layers_dense() -> None:
    scope = Scope(exclude=("attention.*", "cross.?_proj_weight"))
    assert list(scope.prunable(Language())) == ["cross.out_proj.weight", "up.weight"]


def test_include_replaces_the_default_choice_and_exclude_still_holds() -> None:
    scope = Scope(include=("*norm.weight", "embedding.*", "up.*"), exclude=("up.bias",))
    assert list(scope.prunable(Language())) == ["embedding.weight", "norm.weight", "up.weight"]


def test_patterns_know_a_tied_weight_by_all_its_names() -> None:
    # The parameter goes by the name `up.weight`; who excludes `down` means it all the same.
    assert "up.weight" not in Scope(exclude=("down.*",)).prunable(Language())
    assert list(Scope(include=("down.weight",)).prunable(Language())) == ["up.weight"]


def test_patterns_heed_capitals() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_module("Head", nn.Linear(2, 2))
    assert list(Scope(exclude=("Head.*",)).prunable(model)) == ["0.weight"]
    with pytest.raises(SwampError, match=r"no parameter matches the pattern 'head.\*'; the names are 0.weight, 0.bias"):
        Scope(exclude=("head.*",)).prunable(model)


def test_a_pattern_that_matches_nothing_is_refused_as_a_typing_error() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    for scope in (Scope(include=("*.wieght",)), Scope(exclude=("0.*", "9.*"))):
        with pytest.raises(SwampError, match=r"no parameter matches .* and 2 more"):
            scope.prunable(model)


@pytest.mark.parametrize(
    ("model", "scope"),
    [
        (nn.Sequential(nn.LayerNorm(3)), Scope()),
        (nn.ReLU(), Scope()),
        (nn.Sequential(nn.Linear(3, 3)), Scope(exclude=("*",))),
        (nn.Sequential(nn.Linear(3, 3)), Scope(include=("0.*",), exclude=("*.weight", "*.bias"))),
    ],
)
def test_a_model_with_nothing_to_prune_is_refused_with_its_scope(model: nn.Module, scope: Scope) -> None:
    with pytest.raises(SwampError, match=rf"{type(model).__name__} has nothing to prune.*include=.*exclude="):
        Mask.ones(model, scope)


def test_a_weight_without_a_shape_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(SwampError, match=r"'0.weight' has no shape yet. Run the model on one batch"):
        Mask.ones(model)
    model(torch.ones(1, 2))
    assert Mask.ones(model).prunable == 6


def test_the_weights_handed_out_are_the_model_s_own() -> None:
    model = nn.Linear(2, 2)
    assert Scope().prunable(model)["weight"] is model.weight


def test_a_reparametrised_weight_is_pruned_only_when_named() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert list(Scope().prunable(model)) == ["1.weight"]
    assert list(Scope(include=("*.original1",)).prunable(model)) == ["0.parametrizations.weight.original1"]
