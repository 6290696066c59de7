"""Dimension reduction and clustering: measures, labels that nobody reads, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import manifold, metrics
from torch import nn

from swamp.datasets import build_problem, network_for
from swamp.datasets.problem import DataOptions
from swamp.datasets.unlabelled import reduction
from swamp.datasets.unlabelled.probes import cluster_metrics, knn_probe, linear_probe, trustworthiness
from swamp.errors import SwampError
from swamp.models import build_network
from swamp.training.data import TensorData
from swamp.training.options import Training
from swamp.training.rng import Seed

FEW = DataOptions(examples=60, augment=False)


@pytest.fixture
def short(monkeypatch):
    """One epoch of pretraining in place of sixty."""
    monkeypatch.setattr(reduction, "_PRETRAINING", Training(epochs=1, batch_size=30, lr=1e-3, optimizer="adamw"))


def test_trustworthiness_and_continuity_are_those_of_scikit_learn():
    points = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    codes = points[:, :2].float()
    for one, other in ((points, codes), (codes, points)):
        expected = manifold.trustworthiness(one.numpy(), other.numpy(), n_neighbors=7)
        assert trustworthiness(one, other, 7) == pytest.approx(expected, abs=1e-12)
    assert trustworthiness(points, points, 7) == 1


def test_clusters_are_measured_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    clusters[:120] = (labels[:120] + 2) % 5
    found = cluster_metrics(torch.as_tensor(clusters), torch.as_tensor(labels), 5)
    assert found["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(labels, clusters))
    assert found["accuracy"] >= 0.6
    renamed = cluster_metrics(torch.as_tensor((labels + 3) % 5), torch.as_tensor(labels), 5)
    assert renamed == pytest.approx({"accuracy": 1, "nmi": 1, "ari": 1})


def test_one_cluster_for_all_says_nothing_of_the_labels():
    found = cluster_metrics(torch.zeros(6, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 1, 2]), 3)
    assert found == pytest.approx({"accuracy": 0.5, "nmi": 0, "ari": 0})


def test_probes_find_what_is_linear_and_what_is_near():
    labels = torch.arange(3).repeat(20)
    features = torch.nn.functional.one_hot(labels).float() + torch.randn(60, 3, generator=Seed(0).generator()) / 20
    halves = (features[:30], labels[:30]), (features[30:], labels[30:])
    assert linear_probe(*halves, 3) == knn_probe(*halves, 3, neighbours=3) == 1
    assert linear_probe(halves[0], (features[30:], (labels[30:] + 1) % 3), 3) == 0
    constant = torch.zeros(30, 2)
    assert 0 <= linear_probe((constant, labels[:30]), (constant, labels[30:]), 3) <= 0.5


class Code(nn.Module):
    """Reconstructs `inputs * factor` with some code."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def encode(self, inputs):
        return inputs.flatten(1)[:, 20:22]

    def forward(self, inputs):
        return inputs * self.factor


def test_the_error_of_a_reconstruction_is_zero_where_it_is_exact_and_at_most_one():
    task = build_problem("digits-reduction", "autoencoder-2", FEW, Seed(0)).task
    exact = task.evaluate(Code(1.0), "test")
    assert exact.error == exact.metrics["unexplained_variance"] == 0
    assert task.evaluate(Code(9.0), "validation").error == 1
    assert list(exact.metrics) == ["unexplained_variance", "trustworthiness", "continuity", "linear_probe"]
    assert list(task.evaluate(Code(1.0), "validation").metrics) == ["unexplained_variance"]


@pytest.mark.parametrize("name", ["digits-reduction", "digits-clusters"])
def test_training_and_choices_have_no_labels(name, short):
    problem = build_problem(name, "autoencoder-4", FEW, Seed(0))
    assert problem.task.own is not None
    for data in (problem.task.train.data, problem.task.own.validate.data):  # type: ignore[union-attr]
        assert isinstance(data, TensorData)
        assert data.targets.shape[1:] == (0,)


def test_centres_are_parameters_near_the_codes_and_equal_in_every_call(short):
    problem = build_problem("digits-clusters", "autoencoder-8-4", FEW, Seed(0))
    made: list[nn.Module] = []
    for _ in range(2):
        torch.manual_seed(0)
        assert problem.adapt is not None
        made.append(problem.adapt(network_for(problem, "autoencoder-8-4")))
    first, again = made
    assert dict(first.named_parameters())["centres"].shape == (10, 4)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), again.parameters(), strict=True))
    assert set(problem.task.evaluate(first, "test").metrics) == {"loss", "accuracy", "nmi", "ari"}


def test_fewer_examples_than_clusters_are_refused():
    with pytest.raises(SwampError, match="has 9 training examples for 10 clusters"):
        build_problem("digits-clusters", "autoencoder-16-4", DataOptions(examples=9), Seed(0))


def test_the_target_of_clustering_sharpens_the_shares():
    centres = torch.tensor([[0.0], [2.0]])
    shares = reduction.soft_clusters(torch.tensor([[0.0], [1.0]]), centres)
    assert shares[0] == pytest.approx(torch.tensor([5 / 6, 1 / 6]))
    assert shares[1] == pytest.approx(torch.tensor([0.5, 0.5]))
    model = build_network("autoencoder-1", (1,), 1)
    model.register_parameter("centres", nn.Parameter(centres))
    inputs = torch.tensor([[0.0], [1.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses: list[float] = []
    for _ in range(5):
        loss = reduction.clustering_loss(model, (inputs, inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert dict(model.named_parameters())["centres"].grad is not None


@pytest.mark.parametrize("name", ["digits-reduction", "digits-clusters"])
def test_a_network_without_codes_is_refused_with_one_that_has_them(name):
    problem = build_problem(name, "mlp-8", FEW, Seed(0))
    assert problem.adapt is not None
    with pytest.raises(SwampError, match=rf"{name} needs a network with encode\(inputs\), got Sequential; try autoenc"):
        problem.adapt(network_for(problem, "mlp-8"))


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [("autoencoder-12-3", (1, 5, 7), 3), ("autoencoder-3", (40,), 3), ("conv-autoencoder-4-2", (3, 8, 12), 2)],
)
def test_autoencoders_have_codes_and_return_the_shape_of_their_inputs(name, shape, code):
    network = build_network(name, shape, 10)
    inputs = torch.randn(3, *shape)
    assert network(inputs).shape == inputs.shape
    assert network.encode(inputs).shape == (3, code)  # type: ignore[operator]


def test_sizes_that_an_autoencoder_cannot_have_are_refused():
    with pytest.raises(SwampError, match="multiples of 4, got 6 x 8; try autoencoder-256-2"):
        build_network("conv-autoencoder-4-2", (1, 6, 8), 10)
    with pytest.raises(SwampError, match="each width must be from 1"):
        build_network("autoencoder-8-0", (1, 8, 8), 10)
    with pytest.raises(SwampError, match="the code has 0 numbers"):
        build_network("conv-autoencoder-4-0", (1, 8, 8), 10)
    with pytest.raises(SwampError, match="conv-autoencoder takes images"):
        build_network("conv-autoencoder-4-2", (40,), 10)


def test_augmentation_can_be_left_out_and_is_the_data_sets_own():
    for augment in (True, False):
        task = build_problem("digits-reduction", "autoencoder-2", replace(FEW, augment=augment), Seed(0)).task
        assert (task.train.data.augment is not None) == augment  # type: ignore[union-attr]
