"""What is measured of the models of a cycle: several at once, each on a scratch model of its own."""

import copy
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from swamp.methods.cycle import Measured
from swamp.particles import cores
from swamp.sparsity import Mask
from swamp.training import BatchList, State, Task, TensorData, arrange, evaluate, predict, refreshed

T = TypeVar("T")
R = TypeVar("R")


class Measure:
    """Loads weights into scratch models and measures them, on at most `examples` training examples."""

    def __init__(self, model: nn.Module, task: Task, examples: int) -> None:
        self.task, self.examples = task, examples
        self.scratch: SimpleQueue[nn.Module] = SimpleQueue()
        self.workers = _workers(model, task)
        for _ in range(self.workers):
            one = copy.deepcopy(model)
            arrange(one, narrow=False)
            self.scratch.put(one)

    def each(self, work: Callable[[nn.Module, T], R], items: Iterable[T]) -> list[R]:
        """`work(scratch model, item)` for every item, as many at once as there are cores to spare."""

        def one(item: T) -> R:
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
        return refreshed(model, self.task.train, forward=self.task.forward, batch_size=256, batches=batches)

    def measured(self, model: nn.Module) -> Measured:
        """Every metric of the task on each split."""
        task = self.task
        held_out = None if task.validation is None else evaluate(model, task, task.validation)
        train = evaluate(model, task, task.train, examples=self.examples)
        return Measured(train, held_out, evaluate(model, task, task.test))

    def error(self, model: nn.Module) -> float:
        """Error in [0, 1] on the data that choices are made on."""
        outputs, targets = predict(model, self.task, self.task.held_out, examples=self.examples)
        return self.task.error_of(outputs, targets)


def _workers(model: nn.Module, task: Task) -> int:
    """How many models to measure at once: cores that torch's own threads leave free."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    held = [data for data in (task.train, task.test, task.validation) if data is not None]
    # Anything but tensors in memory may hold state of its own, or draw from the global generators.
    if not on_cpu or not all(isinstance(data, TensorData | BatchList) for data in held):
        return 1
    return max(1, cores() // torch.get_num_threads())
