"""SWAMP as a plain PyTorch script like open_lth: a Dataset, a DataLoader, models trained in turn.

The baseline of `make bench`: it does the same work as `swamp.cycles`, step for step.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Images(Dataset[tuple[Tensor, int]]):
    """Images, each cropped and flipped at random by itself, as torchvision's transforms do."""

    def __init__(self, images: Tensor, targets: Tensor, augment: bool) -> None:
        self.images, self.targets, self.augment = images, targets, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        if self.augment:
            padded = F.pad(image, [2, 2, 2, 2])
            top, left = (int(torch.randint(0, 5, ())) for _ in range(2))
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
        return image, int(self.targets[index])


def swamp_by_hand(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    particles: int,
    cycles: int,
    epochs: int,
    workers: int,
) -> float:
    """Ticket, cycles of particles with SWA over the last quarter, mean, BatchNorm, evaluation, pruning by 0.4."""
    loader = DataLoader(Images(*train, augment=True), 128, shuffle=True, drop_last=True, num_workers=workers)
    plain = DataLoader(Images(*train, augment=False), 256, num_workers=workers)
    held_out = DataLoader(Images(*test, augment=False), 256, num_workers=workers)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    trained(model, loader, masks, 1, swa=False)
    ticket = copy.deepcopy(model.state_dict())
    accuracy = 0.0
    for _ in range(cycles):
        finished: list[nn.Module] = []
        for _ in range(particles):
            particle = copy.deepcopy(model)
            particle.load_state_dict(ticket)
            finished.append(trained(particle, loader, masks, epochs, swa=True))
        for particle in finished:
            evaluated(particle, plain, held_out)
        mean = copy.deepcopy(finished[0])
        with torch.no_grad():
            for target, *sources in zip(mean.parameters(), *(p.parameters() for p in finished), strict=True):
                target.copy_(torch.stack(sources).mean(0))
        accuracy = evaluated(mean, plain, held_out)
        scores = torch.cat([p.abs()[masks[n] > 0] for n, p in mean.named_parameters() if n in masks])
        threshold = scores.sort().values[int(0.4 * len(scores))]
        masks = {n: ((p.abs() >= threshold) * masks[n]).float() for n, p in mean.named_parameters() if n in masks}
    return accuracy


def trained(model: nn.Module, loader: DataLoader, masks: dict[str, Tensor], epochs: int, *, swa: bool) -> nn.Module:
    """Train the model; return it, or the average over its tail."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    held = [(p, masks[n]) for n, p in model.named_parameters() if n in masks]
    model.train()
    for epoch in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight, mask in held:
                    weight.mul_(mask)
            loss.item()  # as scripts do to print the loss
        if epoch >= 0.75 * epochs:
            averaged.update_parameters(model)
    return averaged.module if swa else model


@torch.no_grad()
def evaluated(model: nn.Module, train: DataLoader, test: DataLoader) -> float:
    """Test accuracy, with BatchNorm statistics re-estimated on `train`."""
    torch.optim.swa_utils.update_bn(train, model)
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in test) / len(test.dataset)
