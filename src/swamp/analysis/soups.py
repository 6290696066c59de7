"""Soups of particles: which convex combination of them is best, chosen on one half of the examples."""

import math
from collections.abc import Callable, Sequence
from operator import itemgetter

from swamp.analysis.examples import first_examples
from swamp.analysis.points import Value
from swamp.analysis.simplex import Shares, centre, corner
from swamp.training import BatchList, Data
from swamp.training.data import Batch, rows_of

Evaluate = Callable[[Sequence[Shares]], Sequence[Value]]
"""Points of the hull -> what the networks there are worth, all at once."""

_ROUNDS, _REACH, _SHORTER, _SHORTER_AFTER_GAIN = 7, 0.4, 0.5, 0.8
_BATCH = 512


def halves(data: Data, examples: int) -> tuple[BatchList, BatchList]:
    """The first `examples`, every other one in either half; held in memory, as the model takes them."""
    parts: tuple[list[Batch], list[Batch]] = [], []
    for inputs, targets in first_examples(data, examples, _BATCH):
        for first, part in enumerate(parts):
            rows = slice(first, None, 2)
            if first < len(targets):
                part.append((rows_of(inputs, rows), targets[rows]))
    return BatchList(parts[0]), BatchList(parts[1])


def greedy(evaluate: Evaluate, count: int) -> tuple[int, ...]:
    """The networks a greedy soup takes, best first: each that does not raise the error (Wortsman et al. 2022)."""
    alone = evaluate([corner(n, count) for n in range(count)])
    order = sorted(range(count), key=lambda n: alone[n].error)
    taken, lowest = [order[0]], alone[order[0]].error
    for candidate in order[1:]:
        (found,) = evaluate([centre(count, [*taken, candidate])])
        if found.error <= lowest:
            taken, lowest = [*taken, candidate], found.error
    return tuple(taken)


def learned(evaluate: Evaluate, count: int) -> Shares:
    """The shares of least loss that a pattern search finds; never worse, where it looked, than the mean or a network.

    It starts from the best of the mean and the networks. A round tries to give each network more, and each less, and
    takes the best if that is better; its step becomes shorter each time, half as long where nothing was better. Losses
    that are not finite lose. Evaluates 1 + 15 * count points.
    """
    start = [centre(count), *(corner(n, count) for n in range(count))]
    best, least = _least(evaluate, start)
    reach = _REACH
    for _ in range(_ROUNDS):
        found, loss = _least(evaluate, [_moved(best, n, by) for n in range(count) for by in (reach, -2 * reach)])
        better = loss < least
        if better:
            best, least = found, loss
        reach *= _SHORTER_AFTER_GAIN if better else _SHORTER
    return best


def _least(evaluate: Evaluate, places: Sequence[Shares]) -> tuple[Shares, float]:
    losses = [value.loss if math.isfinite(value.loss) else math.inf for value in evaluate(places)]
    return min(zip(places, losses, strict=True), key=itemgetter(1))


def _moved(shares: Shares, network: int, by: float) -> Shares:
    """`by` of the way to one network alone; below 0: so much of its share given to the others, as they have theirs."""
    if by > 0:
        return tuple((1 - by) * share + by * (n == network) for n, share in enumerate(shares))
    kept = tuple(share * (1 + by * (n == network)) for n, share in enumerate(shares))
    return tuple(share / sum(kept) for share in kept)
