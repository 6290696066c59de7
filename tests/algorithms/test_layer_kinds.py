"""Networks of every kind of layer are pruned to the sparsity asked for, or refused before training."""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import swamp
from swamp import SwampError

pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect")
TRAINING = swamp.Training(epochs=2, batch_size=16, lr=0.05)
GENERATOR = torch.Generator().manual_seed(0)
SERIES = torch.randn(64, 5, 4, generator=GENERATOR)
ROWS = torch.randn(64, 8, generator=GENERATOR)


class Forecaster(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(12, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(inputs)[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 12), nn.Linear(12, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        state = inputs.new_zeros(len(inputs), 12)
        for step in inputs.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def prune(model: nn.Module, inputs: torch.Tensor, **options: Any) -> swamp.SparseModel:
    labels = (inputs.flatten(1).sum(1) > 0).long()
    task = swamp.Task.of(train=(inputs[:48], labels[:48]), test=(inputs[48:], labels[48:]))
    given = {"sparsity": 0.9, "particles": 2, "cycles": 2, "training": TRAINING, "barrier_points": 0, **options}
    return swamp.prune(model, task, **given)


@pytest.fixture(autouse=True)
def seeded() -> Generator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


RECURRENT = {
    "lstm": lambda: Forecaster(nn.LSTM(4, 12, batch_first=True)),
    "rnn": lambda: Forecaster(nn.RNN(4, 12, batch_first=True)),
    "cells": Cells,
}


@pytest.mark.parametrize("backend", ["sequential", "threads"])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_network_loses_the_share_of_its_weights_that_was_asked_for(name: str, backend: str) -> None:
    sparse = prune(RECURRENT[name](), SERIES, backend=backend, min_per_layer=2)
    matrices = [p for name, p in sparse.model.named_parameters() if "weight" in name]
    zeros = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
    assert zeros == pytest.approx(sparse.sparsity, abs=0.01)
    assert sparse.sparsity == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_a_spectrally_normalised_network_has_zeros_in_its_weights(backend: str) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 32)), nn.ReLU(), nn.Linear(32, 2))
    sparse = prune(model, ROWS, backend=backend, min_per_layer=2)
    weights = [sparse.model[0].weight, sparse.model[2].weight]
    assert sum(int((w != 0).sum()) for w in weights) == sparse.mask.nnz == round(0.1 * (8 * 32 + 64))


@pytest.mark.slow
def test_averaged_weights_keep_a_spectral_norm_of_one() -> None:
    layers = [parametrizations.spectral_norm(nn.Linear(8, 32)), parametrizations.spectral_norm(nn.Linear(32, 16))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(16, 2))
    training = swamp.Training(epochs=8, batch_size=8, lr=0.2)
    sparse = prune(model, ROWS, particles=3, min_per_layer=2, training=training, backend="sequential")
    for at in (0, 2):
        assert float(torch.linalg.matrix_norm(sparse.model.eval()[at].weight.detach(), 2)) == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        again = torch.nn.functional.cross_entropy(sparse.model(ROWS[48:]), (ROWS[48:].sum(1) > 0).long())
    assert float(again) == pytest.approx(sparse.cycles[-1].metrics.test["nll"], abs=1e-5)


@pytest.mark.parametrize("method", ["swamp", "snip", "lrr"])
def test_a_weight_normalised_network_stays_finite_when_most_rows_would_be_empty(method: str) -> None:
    layers = [parametrizations.weight_norm(nn.Linear(8, 16)), parametrizations.weight_norm(nn.Linear(16, 16))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(16, 2))
    sparse = prune(model, ROWS, method=method, min_per_layer=2)
    for at in (0, 2):
        weight = sparse.model[at].weight
        assert bool(weight.isfinite().all())
        assert bool((weight != 0).any(1).all())
    assert sparse.mask.nnz == round(0.1 * sparse.mask.prunable)


def test_too_few_weights_for_the_rows_of_weight_norm_are_refused_before_training() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 64)), nn.ReLU(), nn.Linear(64, 2))
    with pytest.raises(SwampError, match=r"would keep 32 of 640 weights, .* 65 together"):
        prune(model, ROWS, sparsity=0.95)
    with pytest.raises(SwampError, match=r"is parametrised, and a slice .*masks that change, as rigl"):
        prune(model, ROWS, sparsity=0.5, method="rigl", cycles=0)
    with pytest.raises(SwampError, match=r"whole channels cannot keep one in each"):
        prune(model, ROWS, sparsity=0.5, structure="channel")


def test_a_network_of_which_most_stays_dense_says_so_before_training() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.EmbeddingBag(50, 8), nn.Linear(8, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(inputs))

    tokens = torch.randint(0, 50, (64, 6), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"3.8 % of the 418 parameters are prunable.*words.weight \(400, embedding\)"):
        prune(Words(), tokens, sparsity=0.5)
    assert prune(Words(), tokens, sparsity=0.5, include=("*weight",), min_per_layer=1).mask.prunable == 416


def test_an_orthogonal_layer_is_left_dense_with_a_warning() -> None:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 32), nn.Linear(32, 2))
    with pytest.warns(UserWarning, match=r"Left dense: 0\.parametrizations\.weight\.original .*its zeros would not"):
        assert list(prune(model, ROWS, sparsity=0.5).mask) == ["2.weight", "3.weight"]


def test_no_layer_is_emptied_unless_requested() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.normal_(model[2].weight, std=1e-5)
    still = swamp.Training(epochs=1, batch_size=16, lr=1e-6)
    options = {"sparsity": 0.9, "cycles": 1, "training": still, "ticket_epochs": 0, "backend": "sequential"}
    with pytest.warns(UserWarning, match=r"2\.weight would lose all weights by the scores alone"):
        sparse = prune(model, ROWS, **options)
    assert sparse.mask.nnz_by_layer["2.weight"] == 8
    assert bool(sparse.mask["2.weight"].any(1).all())
    assert "2.weight would lose" in sparse.cycles[-1].warnings[0]
    assert sparse.mask.nnz == round(0.1 * sparse.mask.prunable)
    with pytest.warns(UserWarning, match=r"no weight of 2\.weight is left"):
        assert prune(model, ROWS, **options, min_per_layer=0).mask.empty_layers == ["2.weight"]
