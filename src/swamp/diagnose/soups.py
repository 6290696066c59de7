"""Soups of particles: which convex combination of them is best, chosen on one half of the examples."""

from collections.abc import Callable, Sequence

from swamp.diagnose.examples import first_examples
from swamp.diagnose.points import Value
from swamp.diagnose.simplex import Shares, centre, corner, samples
from swamp.training import BatchList, Data, Seed
from swamp.training.data import Batch, rows_of

Evaluate = Callable[[Sequence[Shares]], Sequence[Value]]
"""Points of the hull -> what the networks there are worth, all at once."""

_ROUNDS, _CANDIDATES, _NARROWER = 7, 16, 0.6
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


def learned(evaluate: Evaluate, count: int, seed: Seed) -> Shares:
    """The shares of least loss that a random search finds; never worse, where it looked, than the mean or a network.

    It starts from the mean and the networks themselves, then draws around the best so far: in the whole hull first,
    each time in one 0.6 as large. Losses that are not finite lose.
    """
    tried = [centre(count), *(corner(n, count) for n in range(count))]
    best, least, reach = centre(count), float("inf"), 1.0
    for number in range(_ROUNDS + 1):
        for shares, value in zip(tried, evaluate(tried), strict=True):
            if value.loss < least:
                best, least = shares, value.loss
        drawn = samples(_CANDIDATES, count, seed.at("round", number), 0.5)
        tried = [_towards(best, other, reach) for other in drawn]
        reach *= _NARROWER
    return best


def _towards(start: Shares, end: Shares, reach: float) -> Shares:
    return tuple((1 - reach) * a + reach * b for a, b in zip(start, end, strict=True))
