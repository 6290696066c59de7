"""What particles, their mean and their ensemble predict: where they differ, how sure they are, how much they stand."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from swamp.analysis.analysis import Settings, Unit, spread
from swamp.analysis.corrupt import CORRUPTIONS, corrupted, why_not
from swamp.analysis.examples import first_examples
from swamp.analysis.geometry import listed
from swamp.analysis.subject import Subject
from swamp.runs import read_weights
from swamp.training import BatchList, Data, Seed, State, Task, predict, refresh
from swamp.training.task import accuracy, ece, nll

Record = dict[str, Any]
_REFRESH_BATCH, _BATCH = 256, 1000


def predictions(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """Do the particles err on different examples, and is their mean as good, sure and robust as their ensemble?"""
    asked = Examples(subject.task.held_out, settings)
    for index in range(subject.cycles):
        yield Unit(f"predictions/cycle-{index:02d}", partial(predictions_of_cycle, subject, index, asked))


class Examples:
    """What all models are asked: the first examples of `data`, plain and corrupted, made once and held in memory."""

    def __init__(self, data: Data, settings: Settings) -> None:
        self.many, self.seed = settings.examples, Seed(settings.seed)
        self._data = data

    @cached_property
    def plain(self) -> BatchList:
        """As the network takes them."""
        return BatchList(first_examples(self._data, self.many, _BATCH))

    @cached_property
    def corrupted(self) -> dict[str, dict[float, BatchList]]:
        """Kind -> strength -> examples."""
        return {
            kind: {strength: corrupted(self.plain, kind, strength, self.seed) for strength in strengths}
            for kind, strengths in CORRUPTIONS.items()
        }


def predictions_of_cycle(subject: Subject, index: int, asked: Examples) -> Record:
    """The record of one cycle. Particles that were not kept are left out, and what needs them is null or empty.

    The particles of an ensemble's run are its members, whose weights have no mean worth the name.
    """
    task = subject.task
    record: Record = {
        "cycle": index,
        "sparsity": subject.cycle(index).sparsity,
        "data": "training" if task.validation is None else "validation",
    }
    mean, particles = models(subject, index, asked.many)
    reason = _no_classes(task, mean or particles[0], asked.plain)
    if reason:
        return {**record, "left_out": reason}
    return {
        **record,
        **compared(mean, particles, task, asked.plain),
        "corruptions": robustness(mean, particles, task, asked) if index in spread(subject.cycles) else None,
    }


def models(subject: Subject, index: int, examples: int) -> tuple[nn.Module | None, list[nn.Module]]:
    """The mean (None of an ensemble) and the particles of a cycle, ready to predict.

    Averages all get their normalisation statistics alike, from about as many training `examples`; weights that were
    not averaged keep those they were trained with.
    """
    task, method = subject.task, subject.config.plan.setting

    def ready(weights: State, averaged: bool) -> nn.Module:
        model = copy.deepcopy(subject.model)
        model.load_state_dict(dict(weights))
        if averaged:
            batches = math.ceil(examples / _REFRESH_BATCH)
            refresh(model, task.train, forward=task.forward, batch_size=_REFRESH_BATCH, batches=batches)
        return model

    if method.ensemble:
        members = range(len(subject.cycle(index).particles))
        return None, [ready(read_weights(subject.directory.member(k), index), False) for k in members]
    particles = subject.particles(index)
    weights = subject.cycle(index).weights
    # A greedy soup, or the best particle, may be one of them: it is then no more of an average than that one is.
    same = [particle for particle in particles if _same_weights(subject.model, particle.weights, weights)]
    averaged = same[0].averaged > 1 if same else bool(particles)
    return ready(weights, averaged), [ready(particle.weights, particle.averaged > 1) for particle in particles]


def compared(mean: nn.Module | None, particles: Sequence[nn.Module], task: Task, data: Data) -> Record:
    """Accuracy, likelihood and calibration of each, and how often their predictions differ."""
    found = [predict(model, task, data) for model in ([] if mean is None else [mean]) + list(particles)]
    targets = found[0][1]
    own = None if mean is None else found[0][0]
    outputs = [logits for logits, _ in found[0 if mean is None else 1 :]]
    together = ensemble_outputs(outputs) if outputs else None
    agreement = None
    if own is not None and together is not None:
        agreement = float((own.argmax(-1) == together.argmax(-1)).double().mean())
    return {
        "disagreement": listed(disagreement(outputs)) if outputs else [],
        "mean": None if own is None else scores(own, targets),
        "particles": [scores(logits, targets) for logits in outputs],
        "ensemble": None if together is None else scores(together, targets),
        "agreement_of_mean_with_ensemble": agreement,
    }


def scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood (nats) and expected calibration error of outputs (example, class)."""
    return {"accuracy": accuracy(outputs, targets), "nll": nll(outputs, targets), "ece": ece(outputs, targets)}


def ensemble_outputs(outputs: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the probabilities."""
    return torch.stack([logits.double().softmax(-1) for logits in outputs]).mean(0).log()


def disagreement(outputs: Sequence[Tensor]) -> Tensor:
    """Share of the examples for which each two predict different classes (model, model)."""
    predicted = torch.stack([logits.argmax(-1).reshape(-1) for logits in outputs])
    return (predicted[:, None] != predicted[None, :]).double().mean(-1).cpu()


def robustness(mean: nn.Module | None, particles: Sequence[nn.Module], task: Task, asked: Examples) -> Record:
    """Accuracy on corrupted inputs, for each kind and strength: of the mean, the average particle and the ensemble.

    "left_out" says why, where inputs cannot be corrupted.
    """
    reason = why_not(next(iter(asked.plain.in_order(_BATCH)))[0])
    if reason:
        return {"left_out": reason}
    return {
        kind: [
            {"strength": strength, **_accuracies(compared(mean, particles, task, data))}
            for strength, data in strengths.items()
        ]
        for kind, strengths in asked.corrupted.items()
    }


def _same_weights(model: nn.Module, a: State, b: State) -> bool:
    return all(torch.equal(a[name], b[name]) for name, _ in model.named_parameters())


def _accuracies(found: Mapping[str, Any]) -> Record:
    alone = [one["accuracy"] for one in found["particles"]]
    return {
        "mean": found["mean"] and found["mean"]["accuracy"],
        "particle": sum(alone) / len(alone) if alone else None,
        "ensemble": found["ensemble"] and found["ensemble"]["accuracy"],
    }


def _no_classes(task: Task, model: nn.Module, data: BatchList) -> str | None:
    """Why predictions cannot be compared as classes; None where they can."""
    outputs, targets = predict(model, task, BatchList(list(islice(data.in_order(_BATCH), 1))))
    if outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point():
        return None
    return (
        f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} ({targets.dtype}) are no "
        "classification of examples: (example, class) and integers (example,) are."
    )
