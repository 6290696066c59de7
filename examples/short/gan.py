import torch

import swamp

mlp = lambda a, b, c: torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.ReLU(), torch.nn.Linear(b, c))  # noqa: E731
model, noise = mlp(4, 32, 2), torch.randn(512, 4)


def train(job):
    critic = mlp(2, 32, 1)
    ours, theirs = (torch.optim.Adam(network.parameters(), 0.005) for network in (job.model, critic))
    with swamp.hold(job.model, job.mask, ours):
        for step in range(2 * job.steps):
            gap = critic(job.model(torch.randn(64, 4))).mean() - critic(torch.randn(64, 2) + 2).mean()
            ours.zero_grad(), theirs.zero_grad(), ((-1) ** step * gap + gap.square()).backward()
            theirs.step() if step % 2 == 0 else (ours.step(), job.stepped())
    return float(gap.detach())


task = swamp.Task.custom(noise, lambda m, x: m(x).sum(), lambda m: {"distance": (m(noise) - 2).mean().abs()})
print(swamp.prune(model, task, sparsity=0.8, cycles=2, backend=swamp.backends.CustomTrainer(model, task, train)))
