"""What is measured of the models of a cycle: several at once, each on a scratch model of its own."""

import copy
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor, nn

from swamp.algorithms.cycle import Measured, Metrics
from swamp.backends import cores
from swamp.masks import Mask
from swamp.training import BatchList, State, Task, TensorData, TokenData, arrange, copied, evaluate, predict, refreshed
from swamp.training.options import Precision

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Judged:
    """What weights are worth, and the state they were measured in."""

    measured: Measured
    error: float
    """In [0, 1], on the data that choices are made on; NaN where nobody asked."""
    state: State
    """With fresh normalisation statistics where these were asked for."""


class Measure:
    """Loads weights into scratch models and measures them, on at most `examples` training examples.

    precision: of training, whose forward passes fresh normalisation statistics are made by; what is measured with them
    is so in float32.
    check_stop: called before each model is measured; may raise Interrupted, as measuring many may take minutes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        examples: int,
        precision: Precision = "float32",
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.task, self.examples, self.check_stop = task, examples, check_stop
        self.narrow = precision == "bfloat16"
        self.scratch: SimpleQueue[nn.Module] = SimpleQueue()
        self.workers = _workers(model, task)
        for _ in range(self.workers):
            one = copy.deepcopy(model)
            arrange(one, narrow=False)
            self.scratch.put(one)

    def each(self, work: Callable[[nn.Module, T], R], items: Iterable[T]) -> list[R]:
        """`work(scratch model, item)` for every item, as many at once as there are cores to spare."""

        def one(item: T) -> R:
            self.check_stop()
            model = self.scratch.get()
            try:
                return work(model, item)
            finally:
                self.scratch.put(model)

        if self.workers == 1:
            return [one(item) for item in items]
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            return list(pool.map(one, items))

    def loaded(
        self, model: nn.Module, weights: State, mask: Mask | None, *, refresh: bool, examples: int | None = None
    ) -> nn.Module:
        """`model` with these weights; the mask's zeros are checked before anything is measured.

        refresh: normalisation statistics are made anew, on all training examples or about so many.
        """
        if mask is not None:
            mask.require_zeros(weights)
        model.load_state_dict(dict(weights))
        if not refresh:
            return model
        batches = None if examples is None else math.ceil(examples / 256)
        device = next(model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.narrow):
            return refreshed(model, self.task.train, forward=self.task.forward, batch_size=256, batches=batches)

    def judged(self, model: nn.Module, weights: State, mask: Mask, *, refresh: bool, with_error: bool) -> "Judged":
        """Measure weights on each split; with the error too where a task has one and it is asked for."""
        model = self.loaded(model, weights, mask, refresh=refresh)
        task = self.task
        train = predict(model, task, task.train, examples=self.examples)
        validation = None if task.validation is None else predict(model, task, task.validation)
        held_out = tuple(part[: self.examples] for part in validation or train)
        return Judged(
            Measured(
                self._metrics(*train),
                None if validation is None else self._metrics(*validation),
                self._metrics(*predict(model, task, task.test)),
            ),
            task.error_of(*held_out) if with_error else math.nan,
            {name: value.contiguous() for name, value in copied(model.state_dict()).items()},
        )

    def stale(self, model: nn.Module, weights: State, mask: Mask) -> Metrics:
        """Test metrics with the running statistics that `weights` came with."""
        return evaluate(self.loaded(model, weights, mask, refresh=False), self.task, self.task.test)

    def _metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        return {name: metric(outputs, targets) for name, metric in self.task.metrics.items()}

    def error(self, model: nn.Module) -> float:
        """Error in [0, 1] on the data that choices are made on."""
        outputs, targets = predict(model, self.task, self.task.held_out, examples=self.examples)
        return self.task.error_of(outputs, targets)


def _workers(model: nn.Module, task: Task) -> int:
    """How many models to measure at once: cores that torch's own threads leave free."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    held = [data for data in (task.train, task.test, task.validation) if data is not None]
    # Anything but tensors in memory may hold state of its own, or draw from the global generators.
    if not on_cpu or not all(isinstance(data, TensorData | TokenData | BatchList) for data in held):
        return 1
    return max(1, cores() // torch.get_num_threads())
