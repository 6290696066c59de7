"""Measures of codes, features and clusters against inputs and labels. None of them is used in training."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def trustworthiness(inputs: Tensor, codes: Tensor, neighbours: int = 10) -> float:
    """How far the nearest neighbours among `codes` are neighbours among `inputs` too, in [0, 1].

    As sklearn.manifold.trustworthiness (Venna and Kaski 2001). With the arguments exchanged it is the continuity: how
    far neighbours among the inputs stay neighbours.

    Args:
        inputs: Points (n, ...), compared by Euclidean distance.
        codes: Points (n, ...).
        neighbours: Number k of neighbours, below n / 2.
    """
    count = len(inputs)
    near = _ordered(codes)[:, :neighbours]
    ranks = _ordered(inputs).argsort(1)  # of each point, from 0
    beyond = (ranks.gather(1, near) + 1 - neighbours).clamp(min=0).sum()
    return 1 - float(beyond) * 2 / (count * neighbours * (2 * count - 3 * neighbours - 1))


def _ordered(points: Tensor) -> Tensor:
    """The other points, nearest first, of each point: (n, n), each point itself last."""
    flat = points.flatten(1).double()
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(math.inf).argsort(dim=1, stable=True)


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    """Accuracy in [0, 1] of a logistic regression on (features, labels), fitted to `train` and measured on `test`.

    The features are standardised; L2 penalty 1e-3 on the weights; 100 iterations of L-BFGS from zero.
    """
    inputs, labels = train[0].double(), train[1]
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    inputs = (inputs - mean) / std
    weight = torch.zeros(inputs.shape[1], classes, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight + bias, labels) + 1e-3 * weight.square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    with torch.no_grad():
        found = ((test[0].double() - mean) / std) @ weight + bias
    return _share(found.argmax(1) == test[1])


def knn_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, neighbours: int = 10) -> float:
    """Accuracy in [0, 1] of the majority among the nearest neighbours in `train`, by cosine similarity."""
    similar = F.normalize(test[0].double(), dim=1) @ F.normalize(train[0].double(), dim=1).T
    near = train[1][similar.topk(min(neighbours, len(train[1])), dim=1).indices]
    return _share(F.one_hot(near, classes).sum(1).argmax(1) == test[1])


def cluster_metrics(clusters: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Agreement of clusters (n,) with labels (n,), both int64 below `classes`.

    Returns:
        `accuracy` under the best matching of clusters and classes (Hungarian algorithm), `nmi` (normalised by the mean
        entropy) and `ari` (adjusted Rand index), as in scikit-learn.
    """
    # Imported here, as it takes time that other tasks do not need.
    from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    table = torch.bincount(clusters * classes + labels, minlength=classes**2).view(classes, classes).double()
    count = table.sum()
    rows, columns = linear_sum_assignment(-table.cpu().numpy())  # pyright: ignore[reportUnknownVariableType]
    matched = float(table[torch.as_tensor(rows), torch.as_tensor(columns)].sum() / count)
    joint, of_cluster, of_label = table / count, table.sum(1) / count, table.sum(0) / count
    entropy = _entropy(of_cluster) + _entropy(of_label)
    mutual = entropy - _entropy(joint.flatten())
    pairs, in_cluster, in_label = (float((part * (part - 1) / 2).sum()) for part in (table, table.sum(1), table.sum(0)))
    expected = in_cluster * in_label / float(count * (count - 1) / 2)
    largest = (in_cluster + in_label) / 2
    return {
        "accuracy": matched,
        "nmi": max(0.0, 2 * mutual / entropy) if entropy else 1.0,
        "ari": (pairs - expected) / (largest - expected) if largest != expected else 1.0,
    }


def _entropy(shares: Tensor) -> float:
    return -float((shares * shares.clamp(min=1e-300).log()).sum())


def _share(right: Tensor) -> float:
    return float(right.double().mean())
