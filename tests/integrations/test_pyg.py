"""Networks and loaders of PyTorch Geometric, with the real library."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swamp
from swamp.backends import CustomTrainer, TrainJob
from swamp.masks import Mask, Scope, hold

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

geometric = pytest.importorskip("torch_geometric")
data = pytest.importorskip("torch_geometric.data")
loaders = pytest.importorskip("torch_geometric.loader")
layers = pytest.importorskip("torch_geometric.nn")


def graphs(count: int, seed: int) -> list[Any]:
    """Rings of 6 nodes; the class is the sign of the mean of the first feature."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.arange(6)
    edges = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
    features = [torch.randn(6, 4, generator=generator) for _ in range(count)]
    return [data.Data(x=x, edge_index=edges, y=(x[:, 0].mean() > 0).long().reshape(1)) for x in features]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers.GCNConv(4, 16), layers.SAGEConv(16, 16)
        self.attention, self.head = layers.GATConv(16, 8, heads=2), layers.Linear(16, 2)

    def forward(self, batch: Any) -> Tensor:
        hidden = self.first(batch.x, batch.edge_index).relu()
        hidden = self.second(hidden, batch.edge_index).relu()
        hidden = self.attention(hidden, batch.edge_index).relu()
        return self.head(layers.global_mean_pool(hidden, batch.batch))


def network() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier()


def test_all_matrices_of_a_graph_network_are_prunable() -> None:
    model = network()
    matrices = [name for name, value in model.named_parameters() if value.dim() == 2]
    assert list(Scope().prunable(model)) == matrices
    assert len(matrices) == 5
    assert Scope().warning(model) is None


def test_hold_keeps_the_zeros_over_the_loader_of_graphs() -> None:
    model = network()
    mask = Mask({name: torch.rand(t.shape) < 0.3 for name, t in Mask.ones(model).items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with hold(model, mask, optimizer):
        for batch in loaders.DataLoader(graphs(32, 0), batch_size=8, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()
    mask.require_zeros(dict(model.named_parameters()))
    assert Mask.from_zeros(model, Scope()) == mask


def test_a_loop_over_the_loader_trains_particles() -> None:
    model, train_graphs = network(), graphs(48, 0)

    def train(job: TrainJob) -> float:
        optimizer, losses = torch.optim.Adam(job.model.parameters(), lr=0.01), []
        with hold(job.model, job.mask, optimizer):
            while job.step < job.last:
                for batch in loaders.DataLoader(train_graphs, batch_size=8, shuffle=True):
                    if job.step == job.last:
                        break
                    optimizer.zero_grad()
                    loss = F.cross_entropy(job.model(batch), batch.y)
                    loss.backward()
                    optimizer.step()
                    job.stepped()
                    losses.append(loss.item())
        return sum(losses) / len(losses)

    backend = CustomTrainer(model, None, train, steps_per_epoch=6)
    ticket = swamp.Ticket(model.state_dict(), 0)
    mask = Mask({name: torch.rand(t.shape) < 0.3 for name, t in Mask.ones(model).items()})
    seeds = [(index, swamp.Seed(0).at("particle", index)) for index in (0, 1)]
    training = swamp.Training(epochs=4, batch_size=8)
    found = backend.train(swamp.backends.TrainRequest(ticket, mask, training, seeds))
    assert [particle.steps for particle in found] == [24, 24]
    assert not torch.equal(found[0].weights["head.weight"], found[1].weights["head.weight"])
    for particle in found:
        mask.require_zeros(particle.weights)
