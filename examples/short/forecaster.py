import torch
from torch import nn

import swamp

wave = torch.arange(3000).mul(0.1).sin() + 0.1 * torch.randn(3000)
x, y = wave.unfold(0, 20, 3)[:-1, :, None], wave[20::3][:993, None]
model = nn.LSTM(1, 32, batch_first=True)
model.head = nn.Linear(32, 1)
task = swamp.Task.of((x[:800], y[:800]), (x[800:], y[800:]), loss=nn.functional.mse_loss,
                     forward=lambda model, x: model.head(model(x)[0][:, -1]))  # fmt: skip
training = swamp.Training(epochs=6, batch_size=32, lr=0.01, optimizer="adamw")
print(swamp.prune(model, task, sparsity=0.9, particles=2, cycles=3, training=training))
