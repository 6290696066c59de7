"""Autoencoders that reduce dimensions, and clusters of their codes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.problem import Problem
from swamp.datasets.unlabelled.probes import cluster_metrics, linear_probe, trustworthiness
from swamp.errors import SwampError, need
from swamp.training.data import Data, TensorData, sampled
from swamp.training.loop import fit
from swamp.training.options import Training
from swamp.training.rng import Seed
from swamp.training.task import Task

PROBE_EXAMPLES = 2000
"""Training examples whose labels a probe is fitted to, after training."""
_NEIGHBOUR_EXAMPLES = 1000
"""Test examples for trustworthiness and continuity, whose time grows with the square."""
_PRETRAINING = Training(epochs=60, batch_size=64, lr=1e-3, optimizer="adamw", weight_decay=0.0)


def without_labels(data: TensorData) -> TensorData:
    """The same inputs with empty targets."""
    return replace(data, targets=data.targets.new_empty(len(data), 0))


@torch.no_grad()
def applied(function: Callable[[Tensor], Tensor], data: Data, device: torch.device) -> Tensor:
    """`function` of all inputs of `data`, in order, without gradients; on `device`."""
    return torch.cat([function(inputs.to(device)) for inputs, _ in data.in_order(1024)])


def images_of(problem: Problem, task: str) -> tuple[TensorData, TensorData, TensorData | None]:
    """Training, test and validation data in memory. Raises SwampError for other data."""
    parts = problem.task.train, problem.task.test, problem.task.validation
    if not all(isinstance(part, TensorData) for part in parts if part is not None):
        raise SwampError(f"{task} needs data in memory.")
    return cast("tuple[TensorData, TensorData, TensorData | None]", parts)


def reconstruction(problem: Problem, name: str) -> Problem:
    """The inputs of a classification problem as a problem of dimension reduction, for networks with `encode`.

    Training and choices read no label; labels serve the linear probe on test data alone.
    """
    train, test, validation = images_of(problem, name)
    variance = _Variance.of(train)
    evaluate = _ReductionMetrics(
        variance, test, cast(TensorData, sampled(train.plain(), PROBE_EXAMPLES)), problem.classes
    )
    validate = None if validation is None else _ReductionMetrics(variance, without_labels(validation))
    task = Task.custom(without_labels(train), reconstruction_loss, evaluate, validate=validate)
    return replace(problem, task=task, adapt=partial(_encoder, name))


def reconstruction_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of the reconstructed inputs."""
    inputs, _ = batch
    return F.mse_loss(model(inputs), inputs)


def _encoder(name: str, network: nn.Module) -> nn.Module:
    if not callable(getattr(network, "encode", None)):
        raise SwampError(
            f"{name} needs a network with encode(inputs), got {type(network).__name__}; try autoencoder-128-16, or "
            "conv-autoencoder-16-16."
        )
    return network


@dataclass(frozen=True)
class _Variance:
    """The squared error of inputs, as a fraction of their squared distance to the mean training example."""

    mean: Tensor

    @classmethod
    def of(cls, train: TensorData) -> "_Variance":
        return cls(applied(lambda inputs: inputs, train.plain(), train.targets.device).double().mean(0))

    def unexplained(self, model: nn.Module, data: TensorData) -> float:
        """1 for the mean training example as the reconstruction; no more than 1, so that it serves as the error."""
        device = next(model.parameters()).device
        inputs = applied(lambda inputs: inputs, data, device)
        wrong = (applied(model, data, device) - inputs).double().square().sum()
        return min(1.0, float(wrong / (inputs - self.mean.to(device)).square().sum()))


@dataclass(frozen=True)
class _ReductionMetrics:
    variance: _Variance
    data: TensorData
    probed: TensorData | None = None
    """Training examples with labels, for the linear probe; without them the error alone is measured."""
    classes: int = 0

    def __call__(self, model: Any) -> Mapping[str, float]:
        error = {"unexplained_variance": self.variance.unexplained(model, self.data)}
        if self.probed is None:
            return error
        device = next(model.parameters()).device
        codes = applied(model.encode, self.data, device)
        fitted = applied(model.encode, self.probed, device), self.probed.targets.to(device)
        some = sampled(self.data, _NEIGHBOUR_EXAMPLES)
        inputs = applied(lambda inputs: inputs, some, device)
        few = applied(model.encode, some, device)
        return error | {
            "trustworthiness": trustworthiness(inputs, few),
            "continuity": trustworthiness(few, inputs),
            "linear_probe": linear_probe(fitted, (codes, self.data.targets.to(device)), self.classes),
        }


def clustering(problem: Problem, name: str, seed: Seed) -> Problem:
    """Deep embedded clustering (Xie et al. 2016) of the inputs of a classification problem, by networks with `encode`.

    Cluster centres are a parameter of the network. It is trained as an autoencoder for 60 epochs first, and the centres
    start at k-means of its codes. The loss keeps the reconstruction (Guo et al. 2017), and the target distribution is
    computed from each batch. Labels serve the metrics on test data alone.
    """
    train, test, validation = images_of(problem, name)
    plain, classes = without_labels(train), problem.classes
    if len(train) < classes:
        raise SwampError(f"{name} has {len(train)} training examples for {classes} clusters; take as many or more.")

    def adapt(network: nn.Module) -> nn.Module:
        return with_centres(_encoder(name, network), plain, classes, seed.at("clusters"))

    evaluate = _ClusterMetrics(test, classes)
    validate = None if validation is None else _ClusterMetrics(without_labels(validation))
    task = Task.custom(plain, clustering_loss, evaluate, validate=validate, error="loss", error_scale=1.0)
    return replace(problem, task=task, adapt=adapt)


def with_centres(network: nn.Module, train: TensorData, clusters: int, seed: Seed) -> nn.Module:
    """Train `network` in place as an autoencoder, and add `centres` (clusters, dimensions): k-means of its codes."""
    kmeans: Any = need("sklearn.cluster", "swamp[digits]").KMeans
    pretraining = Task.custom(train, reconstruction_loss, lambda model: {"loss": 0.0})
    fit(network, pretraining, _PRETRAINING, seed)
    network.eval()
    codes = applied(cast(Any, network).encode, train.plain(), next(network.parameters()).device)
    found = kmeans(clusters, n_init=10, random_state=seed.number() % 2**32).fit(codes.cpu().numpy())
    network.train()
    network.register_parameter("centres", nn.Parameter(torch.as_tensor(found.cluster_centers_).to(codes)))
    return network


def soft_clusters(codes: Tensor, centres: Tensor) -> Tensor:
    """Shares (batch, clusters) by Student's t kernel of one degree of freedom around each centre."""
    near = 1 / (1 + (codes[:, None] - centres).square().sum(2))
    return near / near.sum(1, keepdim=True)


def clustering_loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error of the reconstruction + 0.1 KL(target | shares); target: the squared shares, normalised."""
    inputs, _ = batch
    codes = model.encode(inputs)
    shares = soft_clusters(codes, model.centres)
    sharp = shares.detach().square() / shares.detach().sum(0)
    target = sharp / sharp.sum(1, keepdim=True)
    return F.mse_loss(model.decoder(codes), inputs) + 0.1 * F.kl_div(shares.log(), target, reduction="batchmean")


@dataclass(frozen=True)
class _ClusterMetrics:
    data: TensorData
    classes: int = 0
    """0: the data have no labels, and the loss alone is measured."""

    def __call__(self, model: Any) -> Mapping[str, float]:
        device = next(model.parameters()).device
        with torch.no_grad():
            parts = [
                (float(clustering_loss(model, (inputs.to(device), targets))), len(targets))
                for inputs, targets in self.data.in_order(256)
            ]
        loss = {"loss": sum(value * count for value, count in parts) / len(self.data)}
        if not self.classes:
            return loss
        clusters = applied(
            lambda inputs: soft_clusters(model.encode(inputs), model.centres).argmax(1), self.data, device
        )
        return loss | cluster_metrics(clusters, self.data.targets.to(device), self.classes)
