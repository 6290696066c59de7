"""Tasks of every kind with torch alone: recurrent, generative, physics, ranking, detection and others."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swamp
from entry import Entry, integers, random

SERIES = random(24, 12, 3)


class Forecaster(nn.Module):
    """The next value of a series, from a recurrent or convolutional network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body: nn.Module
        if kind == "TCN":
            self.body = nn.Sequential(
                nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 16, 3), nn.ReLU(),
                nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(16, 16, 3, dilation=2), nn.ReLU(),
            )  # fmt: skip
        else:
            self.body = getattr(nn, kind)(3, 16, batch_first=True)
        self.convolutional, self.head = kind == "TCN", nn.Linear(16, 1)

    def forward(self, series: Tensor) -> Tensor:
        hidden = self.body(series.mT).mT if self.convolutional else self.body(series)[0]
        return self.head(hidden[:, -1])


def forecasting() -> swamp.Task:
    data = SERIES, SERIES.sum((1, 2))[:, None]
    return swamp.Task.of(train=data, test=data, loss=F.mse_loss)


class DLRM(nn.Module):
    """Embeddings of categories and a network of numbers, joined by their products (Naumov et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.bottom, self.top = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8 + 6, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        parts = torch.stack([self.bottom(dense), *(bag(sparse[:, i : i + 1]) for i, bag in enumerate(self.bags))], 1)
        places = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([parts[:, 0], (parts @ parts.mT)[:, places[0], places[1]]], 1))


def clicks() -> swamp.Task:
    data = random(24, 4), integers(20, 24, 3), integers(2, 24, 1).float()
    return swamp.Task.of(train=data, test=data, loss=F.binary_cross_entropy_with_logits)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(10, 8), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, scale = self.encode(x).chunk(2, 1)
        # Noise in training only: evaluation then is the same for equal weights.
        noise = F.dropout(torch.ones_like(mean), 0.5, self.training) - 1
        return self.decode(mean + noise * scale.exp()), mean, scale


def autoencoding() -> swamp.Task:
    x = random(24, 10)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found, mean, scale = model(batch)
        return F.mse_loss(found, batch) + 0.1 * (mean.square() + scale.exp().square() - 2 * scale - 1).mean()

    return swamp.Task.custom(x, loss, lambda model: {"loss": loss(model, x)})


class GAN(nn.Module):
    """Generator and discriminator as one module; only the generator is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))


class Reversed(torch.autograd.Function):
    """The gradient with its sign changed: one loss trains the two networks against each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def adversarial() -> swamp.Task:
    real, noise = random(24, 2) + 2, random(24, 4, seed=1)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        fake = model.generator(batch["noise"])
        scores = model.discriminator(torch.cat([batch["real"], Reversed.apply(fake)]))
        labels = torch.cat([torch.ones(len(fake), 1), torch.zeros(len(fake), 1)])
        return F.binary_cross_entropy_with_logits(scores, labels)

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        return {"distance": (model.generator(noise).mean(0) - real.mean(0)).norm()}

    return swamp.Task.custom({"real": real, "noise": noise}, loss, evaluate)


def physics() -> swamp.Task:
    """u' = -u with u(0) = 1, by the residual at random points."""
    points = random(32, 1).sigmoid()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        t = batch.clone().requires_grad_()
        u = model(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (slope + u).square().mean() + (model(torch.zeros(1, 1)) - 1).square().mean()

    return swamp.Task.custom(points, loss, lambda model: {"residual": loss(model, points)})


def siamese() -> swamp.Task:
    triplets = {"anchor": random(24, 8), "near": random(24, 8, seed=1), "far": random(24, 8, seed=2)}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.triplet_margin_loss(*(model(batch[part]) for part in ("anchor", "near", "far")))

    return swamp.Task.custom(triplets, loss, lambda model: {"loss": loss(model, triplets)})


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "size": self.size(hidden)}


def multi_task() -> swamp.Task:
    data = {"x": random(24, 8), "kind": integers(3, 24), "size": random(24, 1)}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found = model(batch["x"])
        return F.cross_entropy(found["kind"], batch["kind"]) + F.mse_loss(found["size"], batch["size"])

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        found = model(data["x"])
        right = (found["kind"].argmax(1) == data["kind"]).float().mean()
        return {"accuracy": right, "mse": F.mse_loss(found["size"], data["size"])}

    return swamp.Task.custom(data, loss, evaluate)


def multi_label() -> swamp.Task:
    data = random(24, 8), integers(2, 24, 5).float()
    return swamp.Task.of(train=data, test=data, loss=F.binary_cross_entropy_with_logits)


def survival() -> swamp.Task:
    """Cox's partial likelihood within a batch: a loss that is no mean over examples."""
    data = {"x": random(24, 8), "time": random(24).exp(), "event": integers(2, 24).float()}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        order = batch["time"].argsort(descending=True)
        risk = model(batch["x"]).squeeze(1)[order]
        return -((risk - risk.logcumsumexp(0)) * batch["event"][order]).mean()

    return swamp.Task.custom(data, loss, lambda model: {"loss": loss(model, data)})


def ranking() -> swamp.Task:
    """Lists of documents, each with its own number of documents: batches that cannot be split or stacked."""
    lists = [(random(n, 8, seed=n), random(n, seed=n + 9)) for n in (4, 7, 5, 6)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        documents, relevance = batch
        return -(relevance.softmax(0) * model(documents).squeeze(1).log_softmax(0)).sum()

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        return {"loss": torch.stack([loss(model, one) for one in lists]).mean()}

    return swamp.Task.custom(lists, loss, evaluate)


class Detector(nn.Module):
    """Computes its losses itself in train mode, and boxes in eval mode, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        hidden = self.body(torch.stack(pictures)).relu()
        boxes, scores = self.boxes(hidden).mean((2, 3)), self.scores(hidden).mean((2, 3))
        if targets is None:
            return [{"boxes": box, "scores": score} for box, score in zip(boxes, scores, strict=True)]
        wanted = torch.stack([target["boxes"][0] for target in targets])
        labels = torch.stack([target["labels"][0] for target in targets])
        return {"box": F.smooth_l1_loss(boxes, wanted), "class": F.cross_entropy(scores, labels)}


def detection() -> swamp.Task:
    pictures = list(random(8, 3, 16, 16))
    targets = [{"boxes": random(n % 2 + 1, 4, seed=n), "labels": integers(2, n % 2 + 1, seed=n)} for n in range(8)]
    batches = [(pictures[i : i + 4], targets[i : i + 4]) for i in (0, 4)]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack(list(model(*batch).values())).sum()

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        return {"distance": torch.stack([(found["boxes"] - target["boxes"][0]).abs().mean() for found, target in
                                         zip(model(pictures), targets, strict=True)]).mean()}  # fmt: skip

    return swamp.Task.custom(batches, loss, evaluate)


def distillation() -> swamp.Task:
    """A dense teacher's outputs as targets, through the loss."""
    x, y = random(24, 8), integers(3, 24)
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).requires_grad_(False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch
        soft = F.kl_div(
            model(inputs).log_softmax(1), teacher(inputs).log_softmax(1), reduction="batchmean", log_target=True
        )
        return soft + F.cross_entropy(model(inputs), labels)

    return swamp.Task.custom((x, y), loss, lambda model: {"accuracy": (model(x).argmax(1) == y).float().mean()})


class Fourier(nn.Module):
    """A Fourier layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.out = nn.Linear(1, 16), nn.Linear(16, 1)
        self.spectrum = nn.Parameter(torch.randn(9, dtype=torch.complex64) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.fft.irfft(torch.fft.rfft(self.lift(x).relu()) * self.spectrum, n=16))


def operator() -> swamp.Task:
    data = random(24, 1), random(24, 1).sin()
    return swamp.Task.of(train=data, test=data, loss=F.mse_loss)


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


_RECURRENT = "Task.of(loss=F.mse_loss)"
ENTRIES = (
    Entry("LSTM forecaster", "torch", lambda: Forecaster("LSTM"), forecasting, how=_RECURRENT),
    Entry("GRU forecaster", "torch", lambda: Forecaster("GRU"), forecasting, how=_RECURRENT),
    Entry("TCN forecaster", "torch", lambda: Forecaster("TCN"), forecasting, how=_RECURRENT),
    Entry("DLRM", "torch", DLRM, clicks, how="Task.of((numbers, categories, clicks), loss=bce)"),
    Entry("VAE", "torch", VAE, autoencoding, how="Task.custom, no targets"),
    Entry("GAN", "torch", GAN, adversarial, {"include": ("generator.*",)}, "Task.custom, include=('generator.*',)"),
    Entry("PINN", "torch", lambda: mlp(1, 1), physics, how="Task.custom, a loss that differentiates"),
    Entry("siamese network", "torch", lambda: mlp(8, 4), siamese, how="Task.custom, dicts of three inputs"),
    Entry("multi-task", "torch", TwoHeads, multi_task, how="Task.custom, dict outputs, two losses"),
    Entry("multi-label", "torch", lambda: mlp(8, 5), multi_label, how="Task.of(loss=bce)"),
    Entry("survival (Cox)", "torch", lambda: mlp(8, 1), survival, how="Task.custom, a loss of the whole batch"),
    Entry("ranking (ListNet)", "torch", lambda: mlp(8, 1), ranking, how="Task.custom, lists of unequal length"),
    Entry("detector", "torch", Detector, detection, how="Task.custom, the loss inside the model"),
    Entry("distillation", "torch", lambda: mlp(8, 3), distillation, how="Task.custom, a teacher in the loss"),
    Entry("Fourier operator", "torch", Fourier, operator, how="Task.of(loss=F.mse_loss), complex weights"),
)
