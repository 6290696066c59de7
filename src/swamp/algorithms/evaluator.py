"""Evaluator: metrics and errors of weights, on scratch models."""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from swamp.algorithms.cycle import Metrics, SplitMetrics
from swamp.backends.threads import cores
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training import Task, TensorData, TokenData, with_reestimated_batchnorm
from swamp.training.average import State, copied
from swamp.training.data import BatchList
from swamp.training.dropout import draws_random
from swamp.training.memory_format import to_fastest_memory_format
from swamp.training.module_extra_state import load_state
from swamp.training.options import Precision
from swamp.training.rng import Seed, isolated
from swamp.training.snapshot import tied_names

_T = TypeVar("_T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of one model, and the state they were measured in."""

    metrics: SplitMetrics
    error: float
    """Error on the held-out data, in units of the task's `error_scale`; NaN if it was not requested."""
    state: State
    """The evaluated state dict; its BatchNorm statistics are re-estimated if that was requested."""


class Evaluator:
    """Loads weights into scratch models and evaluates them, several at once where cores are free.

    Args:
        model: Architecture; it is copied.
        task: Data and metrics.
        examples: Largest number of training examples to evaluate on.
        precision: Of the forward passes that re-estimate BatchNorm statistics; metrics are measured in float32.
        check_stop: Called before each model is evaluated; may raise Interrupted, as many models may take minutes.
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
        self.bfloat16 = precision == "bfloat16"
        self.scratch: SimpleQueue[nn.Module] = SimpleQueue()
        self.ties = tied_names(model)
        self.workers = _workers(model, task)
        # Converted once: the format is tried by forward passes, and copies have it.
        fastest = copied_model(model)
        to_fastest_memory_format(fastest, task.train, task.forward, bfloat16=False)
        for number in range(self.workers):
            self.scratch.put(copied_model(fastest) if number else fastest)

    def map(self, work: Callable[[nn.Module, _T], R], items: Iterable[_T]) -> list[R]:
        """`work(scratch model, item)` for every item, as many at once as there are free cores."""

        def one(item: _T) -> R:
            self.check_stop()
            model = self.scratch.get()
            try:
                return work(model, item)
            finally:
                self.scratch.put(model)

        if self.workers == 1:
            return [one(item) for item in items]
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(threads,))
        # The threads seed and restore the global generators at the same time, and draw nothing from them.
        with isolated(Seed(0).at("evaluation")), pool:
            return list(pool.map(one, items))

    def load(
        self, model: nn.Module, weights: State, mask: Mask | None, *, refresh_bn: bool, examples: int | None = None
    ) -> nn.Module:
        """`model` with these weights; raises MaskError if they are not zero off `mask`.

        refresh_bn: re-estimate BatchNorm statistics on all training examples, or on about `examples`.
        """
        if mask is not None:
            mask.require_zeros(weights)
        load_state(model, weights)
        if mask is not None and self.ties:
            # A tied weight has the value of its last name.
            mask.require_zeros(dict(model.named_parameters()))
        if not refresh_bn:
            return model
        device = next(model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            return with_reestimated_batchnorm(model, self.task.train, forward=self.task.forward, examples=examples)

    def evaluate(
        self, model: nn.Module, weights: State, mask: Mask, *, refresh_bn: bool, with_error: bool
    ) -> Evaluation:
        """Metrics of these weights on each split."""
        model = self.load(model, weights, mask, refresh_bn=refresh_bn)
        task = self.task
        train = task.evaluate(model, "train", self.examples)
        validation = task.evaluate(model, "validation", self.examples) if task.has_validation else None
        test = task.evaluate(model, "test") if task.has_test else None
        # Without validation, choices use the training data; a task of two functions has no error on these.
        held_out = validation or (test if task.own is not None and test is not None else train)
        measured = test.metrics if test is not None else dict.fromkeys(held_out.metrics, math.nan)
        return Evaluation(
            SplitMetrics(train.metrics, None if validation is None else validation.metrics, measured),
            held_out.error if with_error else math.nan,
            {name: value.contiguous() for name, value in copied(model.state_dict()).items()},
        )

    def metrics_before_bn_update(self, model: nn.Module, weights: State, mask: Mask) -> Metrics:
        """Test metrics with the BatchNorm statistics that `weights` came with."""
        return self.task.evaluate(self.load(model, weights, mask, refresh_bn=False), "test").metrics

    def error(self, model: nn.Module) -> float:
        """Error on the held-out data, in units of the task's `error_scale`."""
        return self.task.error_on_held_out(model, self.examples)


def _workers(model: nn.Module, task: Task) -> int:
    """How many models to evaluate at once: the cores that torch's own threads leave free."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    # Other data and evaluations may keep state, or draw from the global generators.
    concurrent = task.own is None and all(
        isinstance(data, TensorData | TokenData | BatchList) for data in task.splits.values()
    )
    workers = max(1, cores() // torch.get_num_threads())
    if not on_cpu or not concurrent or workers == 1:
        return 1
    # The global generators are seeded for each evaluation, which only one at a time may use.
    return 1 if draws_random(model, task, 8, training=False) else workers
