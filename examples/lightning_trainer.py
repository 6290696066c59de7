"""Prune a LightningModule with your own Trainer, loggers and checkpoints, then fine-tune the sparse model.

python examples/lightning_trainer.py [FOLDER]  (takes seconds; nothing is downloaded; needs
pip install 'swamp[lightning]')
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import swamp
from swamp.backends import TrainJob
from swamp.integrations.lightning import HoldMask, backend

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# Lightning recommends worker processes even for data in memory.
warnings.filterwarnings("ignore", ".*does not have many workers")
warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Short noisy signals; the target is the number of waves in a signal, minus 1."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (count,), generator=generator)
    phase = 6.28 * torch.rand(count, 1, generator=generator)
    waves = torch.sin(phase + 6.28 * (targets[:, None] + 1) * torch.linspace(0, 1, 24))
    return (waves + 0.8 * torch.randn(count, 24, generator=generator))[:, None], targets


class Counter(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 5), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 5), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 4),
        )  # fmt: skip

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        return self.net(signals)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # No scheduler: swamp sets the learning rate (its schedule with a constant tail).
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*data(512, seed=1)), batch_size=32, shuffle=True, drop_last=True)


def trainer(folder: Path, name: str, **others) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name=name),
        log_every_n_steps=8,
        enable_progress_bar=False,
        enable_model_summary=False,
        **others,
    )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    module = Counter()
    task = swamp.Task.of(train=data(512, seed=1), validation=data(200, seed=3), test=data(500, seed=2))

    def make(job: TrainJob) -> lightning.Trainer:
        return trainer(folder, job.name, enable_checkpointing=False)

    # A Trainer from `make` trains each particle of each cycle, with its own log.
    trained = backend(module, task, make, lambda job: loader())
    training = swamp.Training(epochs=4, batch_size=32, lr=0.05)
    sparse = swamp.prune(module, task, sparsity=0.75, particles=2, cycles=2, training=training, backend=trained)
    for cycle in sparse.cycles:
        print(f"sparsity {cycle.sparsity:.3f}: accuracy {cycle.metrics.test['accuracy']:.3f}")
    print("logs:", *sorted(path.name for path in folder.iterdir()))

    # Fine-tune with checkpoints; every checkpoint is sparse.
    keep = ModelCheckpoint(folder / "checkpoints")
    trainer(folder, "fine-tuning", max_epochs=2, callbacks=[HoldMask(), keep]).fit(sparse.model, loader())
    saved = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    sparse.mask.require_zeros(saved)
    print(f"zeros kept: {swamp.Mask.from_zeros(sparse.model, swamp.Scope()) == sparse.mask}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
