"""Image models of timm by name, `timm:NAME`, with their own preprocessing."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.problem import Normalise, Problem
from swamp.errors import SwampError, unknown

TIMM_PREFIX = "timm:"


@dataclass(frozen=True)
class Preprocess:
    """(n, 1 or 3, H, W) stored pixels -> (n, 3, size, size) float32, the input of the model."""

    size: tuple[int, int]
    mode: str
    normalise: Normalise

    def __call__(self, images: Tensor) -> Tensor:
        """Repeat grey images to 3 channels, resize, and normalise with the model's own mean and standard deviation."""
        pixels = images.float().expand(-1, 3, -1, -1)
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode=self.mode, antialias=True)
        return self.normalise(pixels)


def network(name: str, classes: int) -> nn.Module:
    """Build a timm model with random initial weights, drawn from torch's global generator. Nothing is downloaded.

    Args:
        name: `timm:NAME`.
        classes: Number of outputs of the head.

    Returns:
        The model.

    Raises:
        SwampError: For a name that timm does not have, with suggestions.

    Examples:
        ```python
        network("timm:resnet18", 10)
        ```
    """
    timm, own = _timm(), _own_name(name)
    return timm.create_model(own, pretrained=False, num_classes=classes)


def preprocessed(problem: Problem, name: str) -> Problem:
    """Preprocess the images of a problem for a timm model.

    Args:
        problem: A problem with images as stored pixels.
        name: `timm:NAME`.

    Returns:
        The problem with resized and normalised inputs.

    Raises:
        SwampError: For data without images.

    Examples:
        ```python
        preprocessed(problem, "timm:resnet18")
        ```
    """
    timm = _timm()
    config: dict[str, Any] = timm.data.resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg(_own_name(name)).to_dict()
    )
    mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bilinear"
    size = tuple(config["input_size"][1:])

    def converted(data: Any) -> Any:
        given = getattr(data, "normalise", None)
        stored = is_dataclass(data) and "normalise" in {field.name for field in fields(data)}
        if len(problem.shape) != 3 or not stored or not isinstance(given, Normalise):
            raise SwampError(
                f"{name} takes images, but the data of this task is not stored as pixels. Choose another model or task."
            )
        normalise = Normalise(tuple(config["mean"]), tuple(config["std"]), given.largest)
        return replace(cast(Any, data), normalise=Preprocess(cast(tuple[int, int], size), mode, normalise))

    task = problem.task
    validation = None if task.validation is None else converted(task.validation)
    fitted = replace(task, train=converted(task.train), test=converted(task.test), validation=validation)
    return replace(problem, task=fitted, shape=(3, *size))


def _own_name(name: str) -> str:
    own, timm = name.removeprefix(TIMM_PREFIX), _timm()
    if not timm.is_model(own):
        listed: Callable[[], list[str]] = timm.list_models
        raise unknown("model of timm", own, listed())
    return own


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        # torchvision raises RuntimeError if it was built for another torch.
        raise SwampError(
            f"timm cannot be imported ({error}). Install it: pip install 'swamp[timm]', with a torchvision that was "
            "built for this torch."
        ) from error
