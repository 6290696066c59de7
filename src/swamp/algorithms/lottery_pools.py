"""Lottery Pools: each model of an iterative run, interpolated with its neighbours if that helps on validation data."""

from collections.abc import Iterator, Sequence

from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.evaluator import Evaluation, Evaluator
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.masks import Mask
from swamp.masks.heads import head_densities
from swamp.training.average import State, interpolate
from swamp.training.mask_updates import prune_to_budget
from swamp.training.metrics import comparable

REACH = 2
"""Neighbours on either side that are tried, nearest first."""
COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Coefficients of a neighbour in the interpolation."""


def pooled(run: Iterator[Cycle], plan: Plan, evaluator: Evaluator, store: Store) -> Iterator[Cycle]:
    """Yield the cycles of `run` after pooling (Yin et al. 2023). Test data are read for the pooled model only.

    Each neighbour is interpolated with the coefficient that lowers the validation error most, after pruning by
    magnitude to the model's own number of weights in each tensor and re-estimating BatchNorm statistics. A neighbour
    that does not lower the error is left out.
    """
    window: list[Cycle] = []
    for newest in run:
        window = [*window, newest][-(2 * REACH + 1) :]
        index = newest.index - REACH
        if index >= 0:
            yield _kept(window, index, plan, evaluator, store)
    for cycle in window[-REACH:]:
        yield _kept(window, cycle.index, plan, evaluator, store)


def _kept(window: Sequence[Cycle], index: int, plan: Plan, evaluator: Evaluator, store: Store) -> Cycle:
    cycle = store.cycle(index)
    if cycle is None:
        store.progress(index, 1).on_stage(f"pooling cycle {index}")
        cycle = _pooled(window, index, plan, evaluator)
        store.keep_cycle(cycle)
    return cycle


def _pooled(window: Sequence[Cycle], index: int, plan: Plan, evaluator: Evaluator) -> Cycle:
    target = next(cycle for cycle in window if cycle.index == index)
    others = [cycle for cycle in window if 0 < abs(cycle.index - index) <= REACH]
    others.sort(key=lambda cycle: (abs(cycle.index - index), cycle.index))

    def error(model: nn.Module, found: tuple[Mask, State]) -> float:
        mask, weights = found
        loaded = evaluator.load(model, weights, mask, refresh_bn=True, examples=evaluator.examples)
        return comparable(evaluator.error(loaded))

    best: tuple[Mask, State] = target.mask, target.weights
    (lowest,) = evaluator.map(error, [best])
    used = [target]
    for other in others:
        tried = [
            prune_to_budget(
                interpolate(best[1], other.weights, coefficient), target.mask, plan.structure, evaluator.ties
            )
            for coefficient in COEFFICIENTS
        ]
        errors = evaluator.map(error, tried)
        if min(errors) < lowest:
            lowest = min(errors)
            best, used = tried[errors.index(lowest)], [*used, other]
    return _record(target, best, used, evaluator)


def _record(target: Cycle, best: tuple[Mask, State], used: Sequence[Cycle], evaluator: Evaluator) -> Cycle:
    mask, weights = best

    def evaluation(model: nn.Module, state: State) -> tuple[Evaluation, dict[str, list[float]]]:
        found = evaluator.evaluate(model, state, mask, refresh_bn=len(used) > 1, with_error=False)
        return found, head_densities(model, mask)

    ((found, heads),) = evaluator.map(evaluation, [weights])
    # The total cost of the sparsest model used includes that of all denser ones.
    total = max((cycle.total for cycle in used), key=lambda cost: cost.steps)
    return Cycle(
        target.index,
        mask,
        found.state,
        target.density_of_all,
        found.metrics,
        target.particles,
        None,
        None,
        target.cost,
        total,
        target.warnings,
        divergences=target.divergences,
        heads=heads,
    )
