"""Baselines of docs/explanation/reach.md for tasks without labels: PCA, UMAP and k-means on the data of seed 0, 1, ...

    python benchmarks/unlabelled.py digits --seeds 2

UMAP is measured where umap-learn can be imported: pip install --target FOLDER umap-learn, and FOLDER on PYTHONPATH.
The data, measures and splits are those of the tasks digits-reduction, fashion-reduction and digits-clusters.
"""

import argparse
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from swamp.datasets import build_problem
from swamp.datasets.problem import DataOptions
from swamp.datasets.unlabelled.probes import cluster_metrics, linear_probe, trustworthiness
from swamp.datasets.unlabelled.reduction import PROBE_EXAMPLES, applied
from swamp.training.data import sampled
from swamp.training.rng import Seed

EXAMPLES = {"digits": ("digits", 0), "fashion": ("fashion-mnist", 10_000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=EXAMPLES)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    task, examples = EXAMPLES[given.data]
    for seed in range(given.seeds):
        data: Any = build_problem(task, "", DataOptions(examples=examples, augment=False), Seed(seed)).task
        parts = data.train, data.test, sampled(data.train, PROBE_EXAMPLES), sampled(data.test, 1000)
        inputs = [applied(lambda x: x, part, torch.device("cpu")).flatten(1).double() for part in parts]
        train, test = inputs[:2]
        scale = float((test - train.mean(0)).square().sum())
        for size in (2, 16):
            pca = PCA(size, random_state=0).fit(train.numpy())
            error = float((torch.as_tensor(pca.inverse_transform(pca.transform(test))) - test).square().sum()) / scale
            codes = [torch.as_tensor(pca.transform(part)) for part in inputs]
            report(f"seed {seed}  PCA {size}", {"unexplained_variance": error, **measured(inputs, codes, parts)})
            if (umap := umap_of(size)) is not None:
                umap.fit(train.numpy())
                codes = [torch.as_tensor(umap.transform(part.numpy())) for part in inputs]
                report(f"seed {seed}  UMAP {size}", measured(inputs, codes, parts))
        reduced = PCA(16, random_state=0).fit(train.numpy())
        for name, (fitted, shown) in {
            "pixels": (train, test),
            "PCA 16": map(torch.as_tensor, map(reduced.transform, (train, test))),
        }.items():
            kmeans: Any = KMeans
            found = kmeans(10, n_init=10, random_state=seed).fit(fitted.numpy()).predict(shown.numpy())
            report(
                f"seed {seed}  k-means on {name}", cluster_metrics(torch.as_tensor(found).long(), data.test.targets, 10)
            )


def measured(inputs: list[Tensor], codes: list[Tensor], parts: Any) -> dict[str, float]:
    probe = linear_probe((codes[2], parts[2].targets), (codes[1], parts[1].targets), 10)
    near = trustworthiness(inputs[3], codes[3]), trustworthiness(codes[3], inputs[3])
    return {"trustworthiness": near[0], "continuity": near[1], "linear_probe": probe}


def umap_of(size: int) -> Any:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return UMAP(n_components=size, random_state=0)


def report(name: str, found: dict[str, float]) -> None:
    print(f"{name:24}", *(f"{key} {value:.4f}" for key, value in found.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
