"""Movie-review sentences with human sentiment ratings (Hutto and Gilbert 2014, the ground truth of VADER; MIT)."""

import lzma
from functools import cache
from importlib.resources import files

import torch

from swamp.datasets.problem import DataOptions, Problem
from swamp.datasets.text.corpus import Texts, classification, language, regression
from swamp.errors import SwampError
from swamp.training.rng import Seed

_TEST_SHARE = 0.2


def movie_reviews(options: DataOptions, seed: Seed) -> Problem:
    """Sentiment of movie-review sentences: 5,679 for training and 1,400 for test, without the near-neutral third."""
    train, test = (_rated(texts, options.text.neutral) for texts in _split())
    return classification(train, test, 2, options, seed)


def movie_reviews_rating(options: DataOptions, seed: Seed) -> Problem:
    """Mean human rating, -4 to 4, of movie-review sentences: 8,484 for training and 2,121 for test."""
    return regression(*_split(), options, seed)


def movie_reviews_text(options: DataOptions, seed: Seed) -> Problem:
    """Go on writing film reviews, a token at a time: about a megabyte for training, a quarter for test."""
    return language(*_split(), options, seed)


@cache
def sentences() -> Texts:
    """All 10,605 sentences in their published order, with their ratings."""
    packed = files("swamp.datasets.text") / "data" / "movie-reviews.tsv.xz"
    rows = [line.split("\t") for line in lzma.decompress(packed.read_bytes()).decode().split("\r\n") if line]
    return Texts([row[2] for row in rows], torch.tensor([float(row[1]) for row in rows]))


def _split() -> tuple[Texts, Texts]:
    texts = sentences()
    # The test set is the same for every run, so its draw must not depend on the run's seed.
    order = torch.randperm(len(texts), generator=Seed(0).at("movie-reviews", "test").generator())
    tests = int(_TEST_SHARE * len(texts))
    return texts.at(order[tests:]), texts.at(order[:tests])


def _rated(texts: Texts, neutral: float) -> Texts:
    """The sentences with a clearly positive (1) or negative (0) rating."""
    strength = sentences().targets.abs().sort().values
    # Over all sentences, so that training and test use the same threshold; a rating of 0 is neither class.
    border = max(float(strength[int(neutral * len(strength))]), 1e-6)
    kept = (texts.targets.abs() >= border).nonzero().flatten()
    if not len(kept):
        raise SwampError(f"neutral is {neutral}, which leaves no review; lower it, e.g. to 0.33.")
    chosen = texts.at(kept)
    return Texts(chosen.first, (chosen.targets > 0).long())
