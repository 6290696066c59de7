"""Images in two augmented views, beside a few labelled ones: the batches of semi- and self-supervised learning."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swamp.batches import Batch
from swamp.training.augment import Augment
from swamp.training.data import Data, TensorData
from swamp.training.rng import Seed, permutation


@dataclass(frozen=True)
class Composed:
    """Augmentations, one after the other."""

    parts: tuple[Augment, ...]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The augmented images."""
        for part in self.parts:
            images = part(images, generator)
        return images


@dataclass(frozen=True)
class ViewData(Data):
    """Images without labels, each in two views; with `labelled`, as many labelled examples in each batch.

    Batches are ((first view, second view), empty targets), or ((first view, second view, labelled inputs), labels). The
    labelled examples are shuffled by a stream of their own and repeated as often as needed. In order, the views are
    drawn by one fixed seed and labelled examples are not augmented.

    Args:
        images: (n, C, H, W) uint8.
        views: Augmentations of the two views.
        normalise: Stored images -> inputs of the model.
        labelled: Labelled examples; its own augmentation is used.
    """

    images: Tensor
    views: tuple[Augment, Augment]
    normalise: Callable[[Any], Any] | None = None
    labelled: TensorData | None = None

    def __len__(self) -> int:
        return len(self.images)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `first` batches."""
        order = permutation(seed, epoch, len(self)).to(self.images.device)
        places = self._labelled_places(min(batch_size, len(self)) * self.steps(batch_size), seed, epoch)
        noise = torch.Generator(self.images.device)
        base = seed.at("augment", epoch).number()
        for step in range(first, self.steps(batch_size)):
            chosen = slice(step * batch_size, (step + 1) * batch_size)
            yield self._batch(self.images[order[chosen]], places[chosen], noise.manual_seed(base + step), augment=True)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in fixed order and fixed views."""
        count = len(self) if self.labelled is None else len(self.labelled)
        places = torch.arange(len(self), device=self.images.device) % count
        noise = torch.Generator(self.images.device)
        base = Seed(0).at("views").number()
        for start in range(0, len(self), batch_size):
            chosen = slice(start, start + batch_size)
            yield self._batch(self.images[chosen], places[chosen], noise.manual_seed(base + start), augment=False)

    def subset(self, index: Tensor) -> "ViewData":
        """The images at `index` (int64), beside the same labelled examples."""
        return replace(self, images=self.images[index.to(self.images.device)])

    def to(self, device: torch.device) -> "ViewData":
        """The same data on `device`."""
        labelled = None if self.labelled is None else self.labelled.to(device)
        return replace(self, images=self.images.to(device), labelled=labelled)

    def _labelled_places(self, count: int, seed: Seed, epoch: int) -> Tensor:
        """Places of the labelled examples of an epoch: permutations of all of them, one after the other."""
        if self.labelled is None:
            return torch.empty(count, dtype=torch.int64)
        size = len(self.labelled)
        rounds = [permutation(seed.at("labelled", number), epoch, size) for number in range(-(-count // size))]
        return torch.cat(rounds)[:count].to(self.images.device)

    def _batch(self, images: Tensor, places: Tensor, noise: torch.Generator, *, augment: bool) -> Batch:
        first, second = (self._normalised(view(images, noise)) for view in self.views)
        if self.labelled is None:
            return (first, second), images.new_empty(len(images), 0)
        inputs, labels = self.labelled.gather(places)
        if augment and self.labelled.augment is not None:
            inputs = self.labelled.augment(inputs, noise)
        return (first, second, self.labelled.normalised(inputs)), labels

    def _normalised(self, images: Tensor) -> Tensor:
        return images if self.normalise is None else self.normalise(images)
