"""Distillation while pruning: the dense network is the teacher of every particle."""

import copy
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swamp
from swamp.datasets import build_problem
from swamp.datasets.problem import DataOptions

TEMPERATURE, WEIGHT = 2.0, 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def trained(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int = 300) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        rows = torch.randint(len(targets), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def distilled(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], teacher: nn.Module) -> swamp.Task:
    """The task of a student: half the usual loss, half the distance to the teacher's softened probabilities."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        outputs = model(inputs)
        with torch.no_grad():
            soft = F.log_softmax(teacher(inputs) / TEMPERATURE, -1)
        student = F.log_softmax(outputs / TEMPERATURE, -1)
        # Times the squared temperature, so that the gradients keep their size (Hinton et al. 2015).
        distance = F.kl_div(student, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return (1 - WEIGHT) * F.cross_entropy(outputs, targets) + WEIGHT * distance

    def evaluate(model: nn.Module) -> dict[str, float]:
        outputs = model(test[0])
        agree = (outputs.argmax(-1) == teacher(test[0]).argmax(-1)).float().mean()
        right = (outputs.argmax(-1) == test[1]).float().mean()
        return {"accuracy": float(right), "agreement": float(agree)}

    return swamp.Task.custom(train, loss, evaluate)


def main(out: str | None = None) -> None:
    problem = build_problem("digits", "mlp-100", DataOptions(validation=0, augment=False), swamp.Seed(0))
    train, test = (next(data.in_order(len(data))) for data in (problem.task.train, problem.task.test))
    teacher = trained(copy.deepcopy(network()), *train)
    task = distilled(train, test, teacher)
    training = swamp.Training(epochs=4, batch_size=128, lr=0.1, swa_fraction=0.5)
    sparse = swamp.prune(
        network(), task, sparsity=0.9, particles=2, training=training, prune_fraction=0.5, out=out, progress=False
    )
    for cycle in sparse.cycles:
        print(f"sparsity {cycle.sparsity:.3f}", *(f"{name} {value:.3f}" for name, value in cycle.metrics.test.items()))
    kept = all((p[~sparse.mask[n]] == 0).all() for n, p in sparse.model.named_parameters() if n in sparse.mask)
    print("zeros kept:", bool(kept))


if __name__ == "__main__":
    main(*sys.argv[1:])
