"""With the real timm, in an environment where it installs: see docs/howto/integrations.md."""

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

from swamp import Seed, SwampError, Training
from swamp.datasets import task_named
from swamp.datasets.problem import DataOptions, Normalise, Problem
from swamp.integrations.timm import network, preprocessed
from swamp.training import Task, TensorData
from swamp.training.rng import isolated

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)
try:
    importlib.import_module("timm")
except RuntimeError:
    # A torchvision built for a GPU beside the CPU build of torch: classifiers need none of its operators, it only has
    # to be imported.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
timm: Any = importlib.import_module("timm")


@pytest.fixture
def images() -> Problem:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, 28, 28), generator=generator, dtype=torch.uint8)
    data = TensorData(pixels, torch.arange(24) % 3, normalise=Normalise((0.3,), (0.2,)))
    return Problem(Task(data, data), (1, 28, 28), 3)


def test_images_come_as_the_models_own_transform_makes_them(images):
    made = preprocessed(images, "timm:test_vit.r160_in1k")
    config = timm.data.resolve_model_data_config(network("timm:test_vit.r160_in1k", 3))
    batch, targets = next(iter(made.task.train.in_order(4)))
    assert made.shape == config["input_size"] == tuple(batch.shape[1:])
    assert torch.equal(targets, torch.arange(4) % 3)
    grey = torch.nn.functional.interpolate(
        images.task.train.inputs[:4].float() / 255, (160, 160), mode=config["interpolation"], antialias=True
    )
    for channel in range(3):
        expected = (grey[:, 0] - config["mean"][channel]) / config["std"][channel]
        assert torch.allclose(batch[:, channel], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_a_model_of_timm_is_pruned(name, images):
    import swamp

    with isolated(Seed(1)):
        model = network(name, 3)
    made = preprocessed(images, name)
    options = {"sparsity": 0.5, "cycles": 1, "particles": 1, "ticket_epochs": 0, "barrier_points": 0}
    training = Training(epochs=1, batch_size=12, lr=0.01, swa_fraction=1.0)
    sparse = swamp.prune(model, made.task, training=training, backend="sequential", **options)
    assert sparse.sparsity == pytest.approx(0.5, abs=0.01)


def test_names_and_tasks_that_do_not_fit_are_refused(images):
    with pytest.raises(SwampError, match=r"unknown model of timm 'test_resnt'\. Did you mean"):
        network("timm:test_resnt", 3)
    with pytest.raises(SwampError, match="takes images"):
        preprocessed(task_named("mnist1d")(DataOptions(), Seed(0)), "timm:test_resnet")


def test_a_run_names_a_model_of_timm(tmp_path):
    from swamp.cli import main

    given = "--task digits --model timm:test_resnet --method imp --sparsity 0.5 --cycles 1 --epochs 1 --ticket-epochs 0"
    main(["run", *given.split(), "--examples", "64", "--batch-size", "32", "--out", str(tmp_path / "x")])
    assert (tmp_path / "x" / "model.safetensors").exists()
