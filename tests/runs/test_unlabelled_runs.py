"""Recipes of tasks without labels: killed, they continue with the same bits."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from swamp.datasets import fashion
from swamp.datasets.problem import LabelOptions
from swamp.datasets.unlabelled import reduction
from swamp.recipes import recipe_named
from swamp.runs.config import RunConfig
from swamp.runs.execute import start
from swamp.runs.run_progress import Reporter
from swamp.training.options import Training
from swamp.training.rng import Seed

from .conftest import Event, assert_same_outcome, go, go_on, in_child

MODELS = {
    "digits-autoencoder": "autoencoder-8-2",
    "digits-clustering": "autoencoder-8-3",
    "fashion-autoencoder": "conv-autoencoder-2-2",
    "fashion-semi-supervised": "mlp-bn-8",
    "fashion-simclr": "mlp-bn-8",
}
CASES = [*((recipe, "") for recipe in MODELS), ("fashion-semi-supervised", "mean-teacher")]


def shortest(recipe: str, objective: str) -> RunConfig:
    """The recipe with two cycles of two particles, of few steps each, and a snapshot after each step."""
    config = recipe_named(recipe)()
    labels = LabelOptions(20, objective) if config.data.labels.labelled else LabelOptions()
    return replace(
        config,
        model=MODELS[recipe],
        data=replace(config.data, examples=48, labels=labels),
        plan=replace(
            config.plan, sparsity=0.3, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1, barrier_points=0
        ),
        training=replace(config.training, epochs=3, batch_size=24, swa_fraction=0.7),
        snapshot_seconds=1e-9,
        backend="sequential",
        threads=1,
    )


@pytest.fixture
def small_data(monkeypatch):
    """Random images in place of Fashion-MNIST, and one epoch of pretraining for clusters."""
    drawn = Seed(0).generator()
    images = torch.randint(0, 256, (100, 1, 28, 28), dtype=torch.uint8, generator=drawn)
    labels = torch.arange(100) % 10
    monkeypatch.setattr(fashion, "load_idx", lambda source, folder: (images, labels, images[:40], labels[:40]))
    monkeypatch.setattr(reduction, "_PRETRAINING", Training(epochs=1, batch_size=24, lr=1e-3, optimizer="adamw"))


class KilledAt(Reporter):
    """Ends the process as kill -9 does, at the given step of all."""

    def __init__(self, step: int) -> None:
        self.left = step

    def training(self, at):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "objective"), CASES)
def test_a_killed_run_of_each_recipe_continues_with_the_same_bits(recipe, objective, tmp_path, small_data):
    config = shortest(recipe, objective)
    go(config, tmp_path / "whole")
    pid = in_child(lambda: start(config, tmp_path / "killed", KilledAt(9), Event()))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    go_on(tmp_path / "killed")
    assert_same_outcome(tmp_path / "whole", tmp_path / "killed")
