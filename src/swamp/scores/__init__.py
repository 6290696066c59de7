"""Pruning criteria, one per file: the weights with the largest scores stay."""

from swamp.errors import unknown
from swamp.references import PYTHON_PREFIX
from swamp.scores.context import Score, ScoringContext
from swamp.scores.fisher import fisher
from swamp.scores.grasp import grasp
from swamp.scores.magnitude import magnitude
from swamp.scores.random import random
from swamp.scores.snip import snip
from swamp.scores.synflow import synflow
from swamp.scores.taylor import taylor

SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "taylor": taylor,
    "fisher": fisher,
}

_OF_SWAMP = frozenset(SCORES)

SCORES_OF_OUTPUTS = ("grasp", "synflow")
"""Scores that need the outputs of the network, not only its loss."""


def score_named(name: str) -> Score:
    """Look up a score by name, or by its name in config.json. Raises SwampError with suggestions."""
    name = name.removeprefix(PYTHON_PREFIX)
    if name not in SCORES:
        raise unknown("score", name, SCORES)
    return SCORES[name]


def recorded_score(name: str) -> str:
    """The name of a score in config.json: a score of your own is a Python object, which a reader need not have."""
    return name if name in _OF_SWAMP else f"{PYTHON_PREFIX}{name}"


__all__ = ["SCORES", "Score", "ScoringContext"]
