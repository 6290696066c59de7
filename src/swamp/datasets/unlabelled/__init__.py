"""Tasks that use no labels, or few: dimension reduction, clustering, semi-supervised and self-supervised learning."""

from dataclasses import replace

from swamp.datasets.bundled import digits
from swamp.datasets.cifar import cifar_10
from swamp.datasets.fashion import fashion_mnist
from swamp.datasets.problem import DataOptions, Problem
from swamp.datasets.unlabelled.contrastive import self_supervised
from swamp.datasets.unlabelled.few_labels import semi_supervised
from swamp.datasets.unlabelled.reduction import clustering, reconstruction
from swamp.training.rng import Seed


def digits_reduction(options: DataOptions, seed: Seed) -> Problem:
    """Dimension reduction of the digits by an autoencoder: 1,438 training and 359 test images."""
    return reconstruction(digits(options, seed), "digits-reduction")


def fashion_reduction(options: DataOptions, seed: Seed) -> Problem:
    """Dimension reduction of Fashion-MNIST by an autoencoder: 60,000 training and 10,000 test images."""
    return reconstruction(fashion_mnist(options, seed), "fashion-reduction")


def digits_clusters(options: DataOptions, seed: Seed) -> Problem:
    """Deep embedded clustering of the digits, 10 clusters: 1,438 training and 359 test images."""
    return clustering(digits(options, seed), "digits-clusters", seed)


def digits_few_labels(options: DataOptions, seed: Seed) -> Problem:
    """The digits, of which --labelled training images have a label: 1,438 training and 359 test images."""
    return semi_supervised(digits(_all(options), seed), options, seed, "digits-few-labels")


def fashion_few_labels(options: DataOptions, seed: Seed) -> Problem:
    """Fashion-MNIST, of which --labelled training images have a label: 60,000 training and 10,000 test images."""
    return semi_supervised(fashion_mnist(_all(options), seed), options, seed, "fashion-few-labels")


def cifar_10_few_labels(options: DataOptions, seed: Seed) -> Problem:
    """CIFAR-10, of which --labelled training images have a label: 50,000 training and 10,000 test images."""
    return semi_supervised(cifar_10(_all(options), seed), options, seed, "cifar-10-few-labels")


def fashion_views(options: DataOptions, seed: Seed) -> Problem:
    """Self-supervised features of Fashion-MNIST from two views: 60,000 training and 10,000 test images."""
    return self_supervised(fashion_mnist(options, seed), "fashion-views")


def _all(options: DataOptions) -> DataOptions:
    # Validation examples are drawn among the labelled ones.
    return replace(options, validation=0.0)
