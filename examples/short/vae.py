import torch
from sklearn.datasets import load_digits

import swamp

x = torch.tensor(load_digits().data).float() / 16
model = torch.nn.ModuleDict({"encode": torch.nn.Linear(64, 16), "decode": torch.nn.Linear(8, 64)})


def loss(model, batch, noise=1.0):  # fmt: skip
    mean, log_scale = model["encode"](batch).chunk(2, 1)
    found = model["decode"](mean + noise * torch.randn_like(mean) * log_scale.exp())
    divergence = (mean.square() + log_scale.exp().square() - 1).mean() / 2 - log_scale.mean()
    return (found - batch).square().mean() + 0.01 * divergence


task = swamp.Task.custom(x, loss, lambda model: {"loss": loss(model, x, noise=0.0)})  # fmt: skip
print(swamp.prune(model, task, sparsity=0.8, particles=2, cycles=2, training=swamp.Training(epochs=6, lr=0.05)))
