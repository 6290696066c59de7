"""Your own PyTorch loop: prune with SWAMP through it, then fine-tune the sparse model and keep its zeros.

python examples/plain_pytorch.py  (takes seconds; nothing is downloaded)
"""

import torch
from torch import nn
from torch.nn import functional as F

import swamp
from swamp.backends import CustomTrainer, TrainJob


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of five overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 5, (count,), generator=generator)
    return centres[targets] + torch.randn(count, 10, generator=generator), targets


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def accuracy(model: nn.Module) -> float:
    inputs, targets = data(1000, seed=2)
    return float((model(inputs).argmax(-1) == targets).float().mean())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, after_step=lambda: None) -> float:
    """Any training loop; this one draws its batches from the global generator."""
    inputs, targets = data(1024, seed=1)
    total = 0.0
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        total += loss.item()
        after_step()
    return total / steps


def fine_tune(model: nn.Module) -> None:
    """Keep the zeros: a mask from the zeros of the model, and `hold` around the loop."""
    mask = swamp.Mask.from_zeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with swamp.hold(model, mask, optimizer):
        train(model, optimizer, steps=50)
    print(f"fine-tuned: {mask}, accuracy {accuracy(model):.3f}, zeros kept: {swamp.Mask.from_zeros(model) == mask}")


def train_particle(job: TrainJob) -> float:
    """Train `job.model` in place for `job.steps` steps, and call `job.stepped()` after each of them."""
    optimizer = torch.optim.SGD(job.model.parameters(), lr=job.rate(), momentum=0.9)

    def after_step() -> None:
        job.stepped()
        optimizer.param_groups[0]["lr"] = job.rate()

    with swamp.hold(job.model, job.mask, optimizer):
        return train(job.model, optimizer, job.steps, after_step)


def main() -> None:
    torch.manual_seed(0)
    task = swamp.Task.of(train=data(1024, seed=1), validation=data(500, seed=3), test=data(1000, seed=2))
    training = swamp.Training(epochs=4, batch_size=64, lr=0.1)
    model = build()
    sparse = swamp.prune(
        model,
        task,
        sparsity=0.8,
        particles=3,
        cycles=3,
        training=training,
        backend=CustomTrainer(model, task, train_particle),
    )
    for cycle in sparse.cycles:
        print(f"sparsity {cycle.sparsity:.3f}: accuracy {cycle.metrics.test['accuracy']:.3f}")
    fine_tune(sparse.model)


if __name__ == "__main__":
    main()
