"""From weights to the next, smaller mask."""

from collections.abc import Iterator

import torch
from torch import nn

from swamp.algorithms.plan import Plan
from swamp.masks import Mask, empty_layer_warning, prune_mask
from swamp.scores import ScoringContext, score_named
from swamp.scores.grasp import PER_CLASS
from swamp.training import Operations, Seed, State, Task, batch_to, isolated
from swamp.training.data import Batch

_PASSES = {"snip": 1, "taylor": 1, "fisher": 1, "grasp": 3, "synflow": 1}
"""Gradients that a score takes of every example; GraSP's Hessian-vector product counts as two."""


class Masks:
    """Ranks weights by the plan's score, in the method's rounds, and prunes to an exact count."""

    def __init__(self, model: nn.Module, task: Task, plan: Plan, batch_size: int, operations: Operations) -> None:
        """model: is loaded with the weights to be ranked."""
        self.model, self.task, self.plan, self.operations = model, task, plan, operations
        self.batch_size = batch_size
        self.score = score_named(plan.ranking)

    def smaller(self, mask: Mask, weights: State, kept: int, seed: Seed) -> tuple[Mask, tuple[str, ...], float]:
        """`mask` shrunk to `kept` weights, what to tell of it, and the operations it took."""
        plan = self.plan
        self.model.load_state_dict(dict(weights))
        rounds = plan.setting.rounds
        smaller, operations = mask, 0.0
        for number in range(1, rounds + 1):
            scores = self.score(self.model, smaller, self._context(seed))
            operations += self._cost(smaller)
            smaller = prune_mask(
                smaller,
                scores,
                round(mask.nnz * (kept / mask.nnz) ** (number / rounds)),
                allocation=plan.allotment,
                structure=plan.structure,
                min_per_layer=plan.min_per_layer,
            )
        note = empty_layer_warning(mask, smaller)
        return smaller, (note,) if note else (), operations

    def _context(self, seed: Seed) -> ScoringContext:
        device = next(self.model.parameters()).device

        def batches() -> Iterator[Batch]:
            return (batch_to(batch, device) for batch in self.task.train.shuffled(self.batch_size, seed, 0))

        return ScoringContext(
            seed.generator(),
            batches=batches,
            forward=self.task.forward,
            loss=self.task.loss,
            examples=self.plan.score_examples,
        )

    def _cost(self, mask: Mask) -> float:
        """Three forward passes' worth for each gradient, as in training."""
        return 3 * _PASSES.get(self.plan.ranking, 0) * self._examples() * self.operations.forward(mask)

    def _examples(self) -> int:
        """Training examples that the score takes gradients of."""
        train, most = self.task.train, self.plan.score_examples
        match self.plan.ranking:
            case "synflow":
                return 1
            case "grasp":
                return PER_CLASS * self._classes()
            case _:
                batch = min(self.batch_size, len(train))
                # Whole batches; a first one that is too large is cut.
                return batch * min(most // batch, train.steps(self.batch_size)) or most

    def _classes(self) -> int:
        """Outputs of the network, of which GraSP takes each for a class."""
        device = next(self.model.parameters()).device
        with torch.no_grad(), isolated(Seed(0).at("classes"), device):
            inputs, _ = batch_to(next(iter(self.task.train.in_order(1))), device)
            return self.task.forward(self.model.eval(), inputs).shape[-1]
