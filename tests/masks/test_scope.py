import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

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


def test_a_name_with_the_characters_of_patterns_matches_itself():
    model = nn.Sequential()
    model.add_module("a[0]", nn.Linear(3, 3))
    model.add_module("b", nn.Linear(3, 3))
    assert list(Scope(exclude=("a[0].weight",)).prunable(model)) == ["b.weight"]


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


class Experts(nn.Module):
    """As MixtralExperts and GptOssExperts of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 6, 3))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 6))
        self.down_proj = nn.Parameter(torch.randn(4, 3, 3))


class Router(nn.Module):
    """A linear layer that inherits from nothing, as a router of transformers or a layer of PyG."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.bias = nn.Parameter(torch.zeros(4))


class TableNorm(nn.Module):
    """A normalisation of its own with a weight of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class RotaryEmbedding(nn.Module):
    """A lookup that is no nn.Embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class Directions(nn.Module):
    """A weight normalisation written out: one norm for each row beside the directions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_g, self.weight_v = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.randn(4, 3))


def test_the_norms_beside_a_weight_stay_dense() -> None:
    assert list(Scope().prunable(nn.Sequential(Directions()))) == ["0.weight_v"]


def test_an_excluded_lazy_layer_is_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    assert Scope(exclude=("1.*",)).warning(model) is None


class Scale(nn.Module):
    """As the GRN of ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, 3))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.LSTM(2, 3, 1, bidirectional=True), 4),
        (nn.LSTM(2, 3, 2, proj_size=2), 6),
        (nn.GRU(2, 3), 2),
        (nn.RNN(2, 3), 2),
        (nn.LSTMCell(2, 3), 2),
        (nn.GRUCell(2, 3), 2),
        (nn.Bilinear(2, 3, 4), 1),
        (Router(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_recurrent_layers_cells_and_linear_layers_of_their_own_are_pruned_without_their_biases(
    layer: nn.Module, expected: int
) -> None:
    found = list(Scope().prunable(nn.Sequential(layer)))
    assert len(found) == expected
    assert all("weight" in name for name in found)
    assert found == [f"0.{name}" for name, _ in layer.named_parameters() if "weight" in name]


def test_fused_experts_are_pruned_and_their_biases_are_not() -> None:
    assert list(Scope().prunable(nn.Sequential(Experts()))) == ["0.gate_up_proj", "0.down_proj"]


def test_normalisation_embeddings_and_scales_with_a_weight_of_two_dimensions_stay_dense() -> None:
    layers = (nn.LayerNorm((3, 3)), nn.RMSNorm((3, 3)), TableNorm(), RotaryEmbedding(), Scale(), nn.EmbeddingBag(4, 3))
    model = nn.Sequential(nn.Linear(3, 3), *layers)
    assert list(Scope().prunable(model)) == ["0.weight"]
    assert "6.weight" in Scope(include=("0.*", "6.weight")).prunable(model)


@pytest.mark.parametrize(
    ("config", "model", "experts"),
    [
        ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
        ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", {"num_experts": 4, "moe_intermediate_size": 8}),
        ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 8}),
    ],
)
@pytest.mark.slow
def test_mixtures_of_experts_of_transformers_are_pruned_whole(config: str, model: str, experts: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 32}
    network = getattr(transformers, model)(getattr(transformers, config)(**sizes, **experts))
    prunable = Scope().prunable(network)
    matrices = {name for name, value in network.named_parameters() if value.dim() > 1 and "bias" not in name}
    assert matrices - set(prunable) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert Scope().warning(network) is None


def test_the_share_and_what_is_left_out_are_stated_largest_first() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body = nn.Embedding(40, 3), nn.Linear(3, 3)
            self.mixing = nn.Parameter(torch.randn(3, 4))
            self.token = nn.Parameter(torch.randn(1, 5, 3))

    share = Scope().share(Own())
    assert (share.prunable, share.total) == (9, 120 + 12 + 12 + 15)
    assert share.left_out == {"table.weight": "embedding", "mixing": "not a known layer"}
    warning = Scope().warning(Own())
    assert warning is not None
    assert warning.startswith("5.7 % of the 159 parameters are prunable")
    assert "Left dense: table.weight (120, embedding), mixing (12, not a known layer)." in warning
    # Named or excluded by the user: no surprise.
    assert Scope(include=("body.weight",)).warning(Own()) is None
    excluded = Scope(exclude=("table.*",)).warning(Own())
    assert excluded is not None
    assert "Left dense: mixing (12, not a known layer)." in excluded
    assert Scope(exclude=("table.*", "mixing")).warning(Own()) is None
    assert Scope().warning(Language()) is None


def test_a_weight_norm_or_spectral_norm_is_pruned_through_its_original() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(2, 2)),
        parametrizations.spectral_norm(nn.Conv1d(2, 2, 3)),
        parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0"),
        parametrizations.spectral_norm(nn.Embedding(3, 2)),
    )
    assert list(Scope().prunable(model)) == [
        "0.parametrizations.weight.original1",
        "1.parametrizations.weight.original",
        "2.weight_ih_l0",
        "2.parametrizations.weight_hh_l0.original1",
    ]


class Low(nn.Module):
    """A low-rank change, as LoRA; it starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.zeros(1, 4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.down @ self.up


def with_parametrization(layer: nn.Module, parametrization: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


@pytest.mark.parametrize(
    "dense", [parametrizations.orthogonal(nn.Linear(4, 4)), with_parametrization(nn.Linear(4, 4), Low())]
)
def test_a_parametrised_weight_without_exact_zeros_stays_dense_with_a_note_or_is_refused(
    dense: nn.Module,
) -> None:
    model = nn.Sequential(dense, nn.Linear(4, 8))
    assert list(Scope().prunable(model)) == ["1.weight"]
    warning = Scope().warning(model)
    assert warning is not None
    assert "0.parametrizations.weight.original (16, parametrised by" in warning
    assert "its zeros would not be zeros of the weight" in warning
    with pytest.raises(SwampError, match=r"cannot be pruned: it is parametrised by .* exclude=\('0\.param"):
        Scope(include=("*",)).prunable(model)
    with pytest.raises(SwampError, match=r"nothing to prune.*original is parametrised by"):
        Scope().prunable(nn.Sequential(dense))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (nn.utils.weight_norm, "parametrizations.weight_norm"),
        (nn.utils.spectral_norm, "parametrizations.spectral_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove"),
    ],
)
def test_weights_that_a_hook_computes_are_refused_with_advice(change: Any, advice: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    change(model[1])
    for read in (Mask.ones, Mask.from_zeros):
        with pytest.raises(SwampError, match=rf"'1' has a weight that .*{advice}"):
            read(model)


def test_probing_a_parametrisation_changes_neither_the_model_nor_the_global_generator() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Scope().prunable(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
