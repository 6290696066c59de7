"""A GAN with a loop of its own: the generator is pruned, and the discriminator travels with it as extra state.

python examples/gan_own_loop.py FOLDER  (takes seconds; nothing is downloaded)
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import swamp
from swamp.backends import CustomTrainer, TrainJob

NOISE, STEPS, BATCH = 4, 60, 64


def real(count: int, seed: int) -> torch.Tensor:
    """Points on a ring."""
    angles = 6.283 * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return torch.stack([angles.cos(), angles.sin()], 1)


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, NOISE, generator=torch.Generator().manual_seed(seed))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def distance(samples: torch.Tensor, targets: torch.Tensor) -> float:
    """Energy distance between generated and real points; 0 for equal distributions."""
    between = torch.cdist(samples, targets).mean()
    return float((2 * between - torch.cdist(samples, samples).mean() - torch.cdist(targets, targets).mean()).clamp(0))


def train_particle(job: TrainJob) -> float:
    """Train the generator `job.model` on its mask; `job.state` holds the discriminator before and after."""
    critic = discriminator()
    critic.load_state_dict(job.state["discriminator"])
    generator = torch.optim.Adam(job.model.parameters(), lr=job.rate(), betas=(0.5, 0.9))
    opponent = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    total = 0.0
    with swamp.hold(job.model, job.mask, generator):
        for _ in range(job.steps):
            generator.param_groups[0]["lr"] = job.rate()
            points, samples = real(BATCH, int(torch.randint(2**31, ()))), job.model(torch.randn(BATCH, NOISE))
            opponent.zero_grad()
            (F.softplus(-critic(points)) + F.softplus(critic(samples.detach()))).mean().backward()
            opponent.step()
            generator.zero_grad()
            loss = F.softplus(-critic(samples)).mean()
            loss.backward()
            generator.step()
            job.stepped()
            total += loss.item()
    job.state["discriminator"] = critic.state_dict()
    return total / job.steps


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(NOISE, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    count = STEPS * BATCH
    # The data of the task give the number of steps, and evaluate the generator; the loop draws its own batches.
    task = swamp.Task.of(
        train=(noise(count, 1), real(count, 2)),
        test=(noise(500, 3), real(500, 4)),
        loss=F.mse_loss,
        metrics={"energy distance": distance},
        error=lambda samples, targets: min(1.0, distance(samples, targets)),
    )
    backend = CustomTrainer(model, task, train_particle, state={"discriminator": discriminator().state_dict()})
    training = swamp.Training(epochs=4, batch_size=BATCH, lr=1e-3)
    plan = swamp.Plan(sparsity=0.75, particles=(2,), cycles=3, evaluation_examples=500)
    for cycle in swamp.cycles(model, task, plan, training, backend=backend):
        print(f"sparsity {cycle.sparsity:.4f}, 1 - energy distance {1 - cycle.metrics.test['energy distance']:.3f}")
    cycle.mask.save(folder / "mask.safetensors")
    model.load_state_dict(dict(cycle.weights))
    print(f"{cycle.mask}, zeros kept: {swamp.Mask.from_zeros(model, swamp.Scope()) == cycle.mask}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("."))
