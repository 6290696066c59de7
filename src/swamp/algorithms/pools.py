"""Lottery Pools: each model of an iterative run, interpolated with its neighbours where validation data say so."""

from collections.abc import Iterator, Sequence

from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.measure import Judged, Measure
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.masks import Mask
from swamp.training import State, interpolate, within_budget

REACH = 2
"""Neighbours on either side that are tried, the nearest first."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of a neighbour in the interpolation; 0 is left as it was."""


def pooled(run: Iterator[Cycle], plan: Plan, measure: Measure, store: Store) -> Iterator[Cycle]:
    """Yield the cycles of `run` after pooling (Yin et al. 2023); test data are read of what comes out only.

    A neighbour is taken with the share that lowers the validation error most, pruned by magnitude to as many weights a
    tensor as the model has, with fresh normalisation statistics. One that does not lower it is left out.
    """
    window: list[Cycle] = []
    for newest in run:
        window = [*window, newest][-(2 * REACH + 1) :]
        index = newest.index - REACH
        if index >= 0:
            yield _kept(window, index, plan, measure, store)
    for cycle in window[-REACH:]:
        yield _kept(window, cycle.index, plan, measure, store)


def _kept(window: Sequence[Cycle], index: int, plan: Plan, measure: Measure, store: Store) -> Cycle:
    cycle = store.cycle(index)
    if cycle is None:
        cycle = _pooled(window, index, plan, measure)
        store.keep_cycle(cycle)
    return cycle


def _pooled(window: Sequence[Cycle], index: int, plan: Plan, measure: Measure) -> Cycle:
    target = next(cycle for cycle in window if cycle.index == index)
    others = [cycle for cycle in window if 0 < abs(cycle.index - index) <= REACH]
    others.sort(key=lambda cycle: (abs(cycle.index - index), cycle.index))

    def error(model: nn.Module, found: tuple[Mask, State]) -> float:
        mask, weights = found
        return measure.error(measure.loaded(model, weights, mask, refresh=True, examples=measure.examples))

    best: tuple[Mask, State] = target.mask, target.weights
    (lowest,) = measure.each(error, [best])
    used = [target]
    for other in others:
        tried = [
            within_budget(interpolate(best[1], other.weights, share), target.mask, plan.structure) for share in SHARES
        ]
        errors = measure.each(error, tried)
        if min(errors) < lowest:
            lowest = min(errors)
            best, used = tried[errors.index(lowest)], [*used, other]
    return _record(target, best, used, measure)


def _record(target: Cycle, best: tuple[Mask, State], used: Sequence[Cycle], measure: Measure) -> Cycle:
    mask, weights = best

    def judged(model: nn.Module, state: State) -> Judged:
        return measure.judged(model, state, mask, refresh=len(used) > 1, with_error=False)

    (found,) = measure.each(judged, [weights])
    # The cost of the sparsest model that was used holds those of all denser ones.
    total = max((cycle.total for cycle in used), key=lambda cost: cost.steps)
    return Cycle(
        target.index,
        mask,
        found.state,
        target.density_of_all,
        found.measured,
        target.particles,
        None,
        None,
        target.cost,
        total,
        target.warnings,
        broken=target.broken,
    )
