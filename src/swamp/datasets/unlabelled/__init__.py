"""Tasks that use no labels, or few: dimension reduction, clustering, semi-supervised and self-supervised learning."""

from swamp.datasets.bundled import digits
from swamp.datasets.fashion import fashion_mnist
from swamp.datasets.problem import DataOptions, Problem
from swamp.datasets.unlabelled.reduction import clustering, reconstruction
from swamp.training.rng import Seed

__all__ = ["digits_clusters", "digits_reduction", "fashion_reduction"]


def digits_reduction(options: DataOptions, seed: Seed) -> Problem:
    """Dimension reduction of the digits by an autoencoder: 1,438 training and 359 test images."""
    return reconstruction(digits(options, seed), "digits-reduction")


def fashion_reduction(options: DataOptions, seed: Seed) -> Problem:
    """Dimension reduction of Fashion-MNIST by an autoencoder: 60,000 training and 10,000 test images."""
    return reconstruction(fashion_mnist(options, seed), "fashion-reduction")


def digits_clusters(options: DataOptions, seed: Seed) -> Problem:
    """Deep embedded clustering of the digits, 10 clusters: 1,438 training and 359 test images."""
    return clustering(digits(options, seed), "digits-clusters", seed)
