"""One entry of the zoo: a network that others wrote, or a task of another kind, with the code a user would write."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import swamp

if not hasattr(torch.ops.torchvision, "qnms"):
    # The index has torchvision for GPU builds of torch. Beside the CPU build its import misses two operators, which no
    # network here calls.
    for _operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@dataclass(frozen=True)
class Entry:
    """A network and its task.

    Args:
        name: Name in the table.
        kind: Library or kind of task.
        model: Makes the network with random weights.
        task: Makes the task.
        options: Further arguments of `swamp.prune`.
        how: What the user had to write, for the table.
    """

    name: str
    kind: str
    model: Callable[[], nn.Module]
    task: Callable[[], swamp.Task]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    how: str = "Task.of"


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Integers from 0 to `high` - 1 of this shape."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def images(side: int = 32, classes: int = 4, examples: int = 16) -> swamp.Task:
    """Random images (examples, 3, side, side) with random classes: a task of the right form, not a benchmark."""
    inputs = random(examples, 3, side, side)
    data = inputs, integers(classes, examples)
    return swamp.Task.of(train=data, test=data)


def write_table(page: Path, mark: str, summary: str, table: str) -> None:
    """Replace what stands between the two marks of a page."""
    before, _, after = page.read_text().split(mark)
    page.write_text(f"{before}{mark}\n{summary}\n\n{table}\n{mark}{after}")


def own_loss(train: Any, **options: Any) -> swamp.Task:
    """A task of a model that computes its loss itself from `labels`, as those of Hugging Face do."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(**batch).loss

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        return {"loss": model(**train).loss}

    return swamp.Task.custom(train, loss, evaluate, **options)
