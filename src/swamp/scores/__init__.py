"""How weights are ranked: one page a criterion, the largest score stays."""

from swamp.errors import unknown
from swamp.scores.magnitude import magnitude
from swamp.scores.random import random
from swamp.scores.score import Score

SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random}


def score_named(name: str) -> Score:
    """Look a score up by name. Raises SwampError with suggestions."""
    if name not in SCORES:
        raise unknown("score", name, SCORES)
    return SCORES[name]


__all__ = ["SCORES", "Score", "magnitude", "random", "score_named"]
