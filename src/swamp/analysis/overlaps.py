"""Do runs of other methods, or of other seeds, find the same masks?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from swamp.analysis.cross import Side
from swamp.analysis.masks import overlap, same_signs
from swamp.masks import Mask
from swamp.training import State

Record = dict[str, Any]


def overlaps(runs: Mapping[tuple[str, int], Side], rows: Sequence[float]) -> Iterator[Record]:
    """What every two runs have in common at each of the densities `rows` that both have.

    runs: (label, seed) -> run. Raises MaskError where their networks differ.
    """
    for ((a, seed), one), ((b, other_seed), other) in combinations(runs.items(), 2):
        for record in overlap_of_runs(one, other, rows):
            yield {"a": a, "b": b, "seeds": [seed, other_seed], **record}


def overlap_of_runs(a: Side, b: Side, rows: Sequence[float]) -> list[Record]:
    """`overlap` of two runs at each of the densities `rows` that both have, whole and layer by layer.

    "signs": share of the weights that live in both whose sign is the same in both; NaN where there is none.
    """
    found: list[Record] = []
    for row, density in enumerate(rows):
        one, other = a.at(density), b.at(density)
        if one and other:
            cycles = one["cycle"], other["cycle"]
            mine, theirs = a.mask(cycles[0]), b.mask(cycles[1])
            weights = a.weights(cycles[0]), b.weights(cycles[1])
            whole = _shared(mine, theirs, *weights)
            layers = {
                name: _shared(Mask({name: alive}), Mask({name: theirs[name]}), *weights) for name, alive in mine.items()
            }
            found.append({"row": row, "sparsity": 1 - density, "cycles": list(cycles), **whole, "layers": layers})
    return found


def _shared(a: Mask, b: Mask, of_a: State, of_b: State) -> Record:
    found = overlap(a, b)
    both = Mask({name: alive & b[name] for name, alive in a.items()})
    del found["layers"]
    return {**found, "signs": same_signs(both, of_a, of_b)}
