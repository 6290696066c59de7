"""Pruner: from weights to the next, smaller mask."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from swamp.algorithms.plan import Plan
from swamp.batches import Batch, batch_to
from swamp.errors import warn
from swamp.masks import Mask
from swamp.masks.floor import Slices
from swamp.masks.pruning import empty_layer_warning, pruned_mask
from swamp.scores import ScoringContext, score_named
from swamp.scores.context import some_batches
from swamp.scores.grasp import PER_CLASS
from swamp.training import Seed, Task
from swamp.training.average import State
from swamp.training.data import BatchList
from swamp.training.flops import FlopCounter
from swamp.training.module_extra_state import load_state
from swamp.training.rng import isolated

_PASSES = {"magnitude": 0, "random": 0, "snip": 1, "taylor": 1, "fisher": 1, "grasp": 3, "synflow": 1}
"""Gradients that a score takes of every example; GraSP's Hessian-vector product counts as two. Scores of the user count
as one gradient of each example that they read."""


class Pruned(NamedTuple):
    """The result of one pruning."""

    mask: Mask
    notes: tuple[str, ...]
    """Warnings for the record, such as a layer that lost all its weights."""
    flops: float
    """Floating-point operations of scoring."""


class Pruner:
    """Scores weights, in as many rounds as the method has, and prunes to an exact count.

    Args:
        model: Scratch model; it is loaded with the weights to be scored.
        task: Data, loss and forward pass, for scores that need gradients.
        plan: Score, allocation and structure.
        batch_size: Examples in a batch of training.
        flops: Counts the cost of scoring.
        slices: Slices that need an active weight.
    """

    def __init__(
        self, model: nn.Module, task: Task, plan: Plan, batch_size: int, flops: FlopCounter, slices: Slices
    ) -> None:
        self.slices = slices
        self.model, self.task, self.plan, self.flops = model, task, plan, flops
        self.batch_size = batch_size
        self.score = score_named(plan.score_name)
        self.read = 0
        """Training examples that the last scoring read, at most `plan.score_examples` in a pass."""

    def prune(self, mask: Mask, weights: State, nnz: int, seed: Seed) -> Pruned:
        """Shrink `mask` to `nnz` weights by their scores at `weights`; what the record notes is a warning too."""
        pruned = self.pruned(mask, weights, nnz, seed)
        for note in pruned.notes:
            warn(note)
        return pruned

    def pruned(self, mask: Mask, weights: State, nnz: int, seed: Seed) -> Pruned:
        """`prune` without a warning."""
        plan, rounds = self.plan, self.plan.spec.rounds
        load_state(self.model, weights)
        smaller, flops, note = mask, 0.0, None
        for number in range(1, rounds + 1):
            self.read = 0
            scores = self.score(self.model, smaller, self._context(seed))
            flops += self.scoring_flops(smaller, seed)
            smaller, note = pruned_mask(
                smaller,
                scores,
                round(mask.nnz * (nnz / mask.nnz) ** (number / rounds)),
                allocation=plan.allocation_name,
                structure=plan.structure,
                min_per_layer=plan.min_per_layer,
                slices=self.slices,
            )
        # In the last of several rounds a layer may have been empty for long.
        note = empty_layer_warning(mask, smaller) or note
        return Pruned(smaller, (note,) if note else (), flops)

    def _context(self, seed: Seed) -> ScoringContext:
        device = next(self.model.parameters()).device

        def batches() -> Iterator[Batch]:
            before, seen = self.read, 0
            for batch in self.task.train.shuffled(self.batch_size, seed, 0):
                seen += len(batch[1])
                self.read = before + min(seen, self.plan.score_examples)
                yield batch_to(batch, device)

        return ScoringContext(
            seed.generator(),
            batches=batches,
            forward=self.task.forward,
            loss=self.task.loss,
            examples=self.plan.score_examples,
        )

    def scoring_flops(self, mask: Mask, seed: Seed) -> float:
        """FLOPs of computing the scores once. A gradient costs three forward passes, as in training.

        seed: of the order of the batches. Scores that are none of swamp's were computed before.
        """
        gradients = (
            _PASSES[self.plan.score_name] * self._examples(seed) if self.plan.score_name in _PASSES else self.read
        )
        return 3 * gradients * self.flops.forward(mask)

    def _examples(self, seed: Seed) -> int:
        """Training examples that the score takes gradients of."""
        train, most = self.task.train, self.plan.score_examples
        match self.plan.score_name:
            case "magnitude" | "random":
                return 0
            case "synflow":
                return 1
            case "grasp":
                return PER_CLASS * self._outputs()
            case name if isinstance(train, BatchList):
                return sum(len(targets) for _, targets in some_batches(self._context(seed), name))
            case _:
                batch = min(self.batch_size, len(train))
                # Whole batches; a first batch that is too large is cut.
                return batch * min(most // batch, train.steps(self.batch_size)) or most

    def _outputs(self) -> int:
        """Outputs of the network, which GraSP takes for classes."""
        device = next(self.model.parameters()).device
        with torch.no_grad(), isolated(Seed(0).at("classes"), device):
            # A whole batch: BatchNorm without running statistics refuses a single example.
            inputs, _ = batch_to(next(iter(self.task.train.in_order(self.batch_size))), device)
            return self.task.forward(self.model.eval(), inputs).shape[-1]
