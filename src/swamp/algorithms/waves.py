"""Train the particles of a cycle in waves, until the next wave is not worth its cost (particles="auto").

Near the mean of the particles the loss is quadratic, so that the mean of n independent particles has a loss of
L(n) = L(1) - 2 (L(1) - L(2)) (1 - 1/n): single particles and pairs tell what the next wave gains, before it is trained
(docs/explanation/adaptive.md). A wave that raises the loss of the mean lies beyond a barrier, and is left out of it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from swamp.algorithms.cycle import Decision, Wave
from swamp.algorithms.evaluator import Evaluator
from swamp.backends import Particle
from swamp.training import predict
from swamp.training.average import mean
from swamp.training.data import sampled

MOST_PAIRS = 28
"""Pairs whose means are evaluated: all of eight particles."""
_GROUPS = 32
"""Groups of held-out examples, from whose losses the standard errors are estimated."""
_BN_EXAMPLES = 2048
"""Training examples for the BatchNorm statistics of each mean."""


@dataclass(frozen=True)
class Waves:
    """How many particles a cycle trains: `first`, a pair at least, then waves of `size` while each gains enough."""

    first: int
    most: int
    size: int
    least_gain: float
    """Fall of the loss for each particle, as a fraction of it, for which a wave is trained."""

    def train(
        self, train: Callable[[int], list[Particle]], evaluator: Evaluator
    ) -> tuple[list[Particle], tuple[Wave, ...], list[int]]:
        """The particles to average, what was decided after each wave, and the particles asked for by each wave.

        train: trains the particles with a smaller number than its argument, where that was not done; returns all of
        them, without those that diverged and are left out.
        """
        losses = _Losses(evaluator)
        decisions: list[Wave] = []
        asked, kept = [self.first], list[Particle]()
        while True:
            particles = train(asked[-1])
            following = min(self.most, asked[-1] + self.size)
            decided: Decision = "more" if following > asked[-1] else "all"
            # A single particle says nothing: the others diverged and were left out.
            if len(particles) > 1:
                decisions.append(self._decide(losses, kept, particles, asked[-1], following))
                decided = decisions[-1].decision
            kept = particles[: decisions[-1].kept] if decisions else particles
            if decided != "more":
                return kept, tuple(decisions), asked
            asked.append(following)

    def _decide(
        self, losses: "_Losses", before: Sequence[Particle], particles: Sequence[Particle], asked: int, following: int
    ) -> Wave:
        """What to do after the particles `before` became `particles`. asked, following: so many with the next wave."""
        more = following - asked
        count = len(particles)
        pairs = list(combinations(range(count), 2))[:MOST_PAIRS]
        losses.measure(particles, [*((i,) for i in range(count)), *pairs, tuple(range(count))])
        single = losses.of((i,) for i in range(count))
        pair, average = losses.of(pairs), losses.of([tuple(range(count))])
        # The mean without this wave; after the first wave, single particles.
        earlier = losses.of([tuple(range(len(before)))]) if before else single
        rise, deviation = _difference(average, earlier)
        if not rise <= deviation:  # also where a loss is not a number
            decided: Decision = "dropped"
        else:
            deviation = _difference(pair, single)[1]
            decided = "more" if more else "all"
        gained = 2 * float(single.mean() - pair.mean())
        value = float(average.mean())
        step = gained * (1 / count - 1 / (count + more)) if more else 0.0
        gain = step / (max(1, more) * abs(value)) if value else 0.0
        if decided == "more" and gain < self.least_gain:
            decided = "enough"
        kept = count if decided != "dropped" else max(1, len(before))
        numbers = float(single.mean()), float(pair.mean()), value, deviation, value - step, gain
        return Wave(asked, kept, *numbers, decided)


class _Losses:
    """Losses of means of particles on groups of the held-out examples; each is computed once."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._known: dict[tuple[int, ...], Tensor] = {}

    def measure(self, particles: Sequence[Particle], subsets: Sequence[tuple[int, ...]]) -> None:
        """Evaluate the means of these subsets of the particles, where that was not done."""
        evaluator = self.evaluator

        def losses(model: nn.Module, subset: tuple[int, ...]) -> Tensor:
            members = [particles[i] for i in subset]
            weights = mean(one.weights for one in members) if len(members) > 1 else members[0].weights
            averaged = len(members) > 1 or members[0].averaged > 1
            examples = min(evaluator.examples, _BN_EXAMPLES)
            loaded = evaluator.load(model, weights, None, refresh_bn=averaged, examples=examples)
            return _by_group(loaded, evaluator)

        missing = [subset for subset in dict.fromkeys(subsets) if subset not in self._known]
        self._known.update(zip(missing, evaluator.map(losses, missing), strict=True))

    def of(self, subsets: Iterable[tuple[int, ...]]) -> Tensor:
        """Mean losses of these subsets, by group of examples."""
        return torch.stack([self._known[subset] for subset in subsets]).mean(0)


def _by_group(model: nn.Module, evaluator: Evaluator) -> Tensor:
    task = evaluator.task
    if task.own is not None:
        return torch.tensor([task.error_on_held_out(model)], dtype=torch.float64)
    outputs, targets = predict(model, task, sampled(task.held_out, evaluator.examples))
    parts = zip(outputs.tensor_split(min(_GROUPS, len(outputs))), targets.tensor_split(_GROUPS), strict=False)
    return torch.tensor([float(task.loss(*part)) for part in parts], dtype=torch.float64)


def _difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The mean of one - other, and its standard error over the groups (0 for a single group)."""
    difference = one - other
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()), error
