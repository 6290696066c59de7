import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import swamp

x, y = map(torch.tensor, load_digits(return_X_y=True))
train = DataLoader(TensorDataset(x[:1400].float(), y[:1400]), batch_size=64, shuffle=True)
test = DataLoader(TensorDataset(x[1400:].float(), y[1400:]), batch_size=64)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
task = swamp.Task.of(train=train, test=test)
training = swamp.Training(epochs=6, batch_size=64, lr=0.01)
print(swamp.prune(model, task, sparsity=0.9, particles=2, cycles=3, training=training))
