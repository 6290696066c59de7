"""`Mask.from_zeros` reads the zeros of all parameters, and leaves those of an initialisation free."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from swamp.errors import SwampError
from swamp.masks import Mask, Scope, hold


def thinned(parameter: nn.Parameter, seed: int = 0) -> None:
    with torch.no_grad():
        parameter *= torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(10, 4)
        self.words = nn.Embedding(6, 4, padding_idx=0)
        self.rnn = nn.LSTM(4, 8)
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.head = nn.Linear(8, 2)


def test_weights_outside_the_default_scope_keep_their_zeros() -> None:
    model = Recommender()
    pruned = [model.table.weight, model.rnn.weight_hh_l0, model.mixing, model.head.bias]
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, 0.0]))
        model.rnn.bias_ih_l0[:3] = 0
    for parameter in pruned[:3]:
        thinned(parameter)
    mask = Mask.from_zeros(model)
    assert list(mask) == [
        "mixing",
        "table.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.bias_ih_l0",
        "head.weight",
    ], "a vector with one nonzero value and a padding row are initial values"
    parameters = dict(model.named_parameters())
    assert all(torch.equal(active, parameters[name] != 0) for name, active in mask.items())


def test_what_include_pruned_is_what_from_zeros_holds() -> None:
    model = nn.LSTM(4, 8)
    scope = Scope(include=("*",))
    for seed, parameter in enumerate(scope.prunable(model).values()):
        thinned(parameter, seed)
    pruned = Mask.from_zeros(model, scope)
    assert Mask.from_zeros(model) == pruned
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with hold(model, Mask.from_zeros(model), optimizer):
        model(torch.randn(5, 3, 4))[0].square().mean().backward()
        optimizer.step()
    assert Mask.from_zeros(model) == pruned


def test_a_factor_that_starts_at_zero_trains_and_is_named() -> None:
    down, up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
    model = nn.Sequential(nn.Linear(8, 8), down, up)
    nn.init.zeros_(up.weight)
    thinned(model[0].weight)
    with pytest.warns(UserWarning, match=r"^2\.weight consist of zeros and require a gradient") as caught:
        mask = Mask.from_zeros(model)
    assert caught[0].filename == __file__
    assert mask["2.weight"].all()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hold(model, mask, optimizer):
        F.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 8)).backward()
        optimizer.step()
    assert up.weight.any()
    up.weight.requires_grad_(False)
    nn.init.zeros_(up.weight)
    assert not Mask.from_zeros(model)["2.weight"].any(), "frozen: nothing can train it"


def test_a_new_network_has_no_pruned_weights() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.LSTM(4, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    nn.init.zeros_(model[2].bias)
    with torch.no_grad():
        model[1].bias_ih_l0.zero_()[4:8] = 1  # the forget gate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = Mask.from_zeros(model)
    assert mask == Mask.ones(model)


def test_a_model_without_prunable_layers_is_read_if_it_has_zeros() -> None:
    model = nn.ParameterDict({"own": nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))})
    assert Mask.from_zeros(model).nnz == 3
    with pytest.raises(SwampError, match="nothing to prune"):
        Mask.from_zeros(nn.LayerNorm(3))


def test_a_scope_limits_what_is_read() -> None:
    model = Recommender()
    thinned(model.table.weight)
    assert "table.weight" not in Mask.from_zeros(model, Scope())


def test_an_orthogonal_layer_trains_although_its_original_starts_with_zeros() -> None:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), parametrizations.weight_norm(nn.Linear(4, 4)))
    thinned(model[1].parametrizations.weight.original1)
    assert (model[0].parametrizations.weight.original == 0).any()
    mask = Mask.from_zeros(model)
    assert list(mask) == ["1.parametrizations.weight.original1"]
    assert torch.equal(mask["1.parametrizations.weight.original1"], model[1].weight != 0)


def test_a_lazy_layer_is_refused_with_what_to_do() -> None:
    with pytest.raises(SwampError, match="has no shape yet"):
        Mask.from_zeros(nn.Sequential(nn.LazyLinear(3)))


def test_a_parameter_without_a_shape_has_no_zeros_to_read():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d())
    with pytest.raises(SwampError, match=r"'1.weight' has no shape yet. Run the model on one batch"):
        Mask.from_zeros(model)
