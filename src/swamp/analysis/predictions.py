"""Predictions of particles, mean and ensemble: disagreement, calibration, and accuracy on corrupted inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, Record, first_middle_last
from swamp.analysis.run_data import RunData, some_examples
from swamp.analysis.weight_space import to_list
from swamp.batches import Batch
from swamp.model_copy import copied_model
from swamp.runs.read import read_weights
from swamp.training import Seed, Task, predict
from swamp.training.average import State
from swamp.training.batchnorm import reestimate_batchnorm
from swamp.training.data import BatchList, Data
from swamp.training.metrics import accuracy, ece, mean_probability, nll
from swamp.training.module_extra_state import load_state

CORRUPTIONS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.25, 0.5, 1.0, 2.0),
    "blur": (3, 5, 7),
    "contrast": (0.25, 0.5, 0.75),
}
"""Kind -> severities: Gaussian noise in standard deviations of the inputs; width of a box blur in pixels or samples;
fraction of the contrast that is removed."""
_BATCH = 1000


def prediction_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """Do particles err on different examples, and is their mean as accurate and robust as their ensemble?"""
    inputs = EvaluationInputs(run.task.held_out, settings)
    for index in range(run.cycles):
        yield AnalysisTask(f"predictions/cycle-{index:02d}", partial(predictions_of_cycle, run, index, inputs))


class EvaluationInputs:
    """A fixed random subset of `data`, plain and corrupted; created once and held in memory for all models."""

    def __init__(self, data: Data, settings: AnalysisSettings) -> None:
        self.examples, self.seed = settings.examples, Seed(settings.seed)
        self._data = data

    @cached_property
    def plain(self) -> BatchList:
        """Examples as inputs of the network."""
        return BatchList(some_examples(self._data, self.examples, _BATCH))

    @cached_property
    def corrupted(self) -> dict[str, dict[float, BatchList]]:
        """Kind -> severity -> examples."""
        return {
            kind: {severity: corrupt(self.plain, kind, severity, self.seed) for severity in severities}
            for kind, severities in CORRUPTIONS.items()
        }


def predictions_of_cycle(run: RunData, index: int, inputs: EvaluationInputs) -> Record:
    """The prediction measurements of one cycle, as a record.

    If particles are not on disk, the values that need them are None or empty.

    For an ensemble, the particles are the members; a mean of their weights is not evaluated.
    """
    record: Record = {"cycle": index, "sparsity": run.cycle(index).sparsity, "data": run.held_out_split}
    mean, particles = models_of_cycle(run, index, inputs.examples)
    reason = _not_a_classification(run.task, mean or particles[0], inputs.plain)
    if reason:
        return {**record, "skipped": reason}
    expensive = index in first_middle_last(run.cycles)
    return {
        **record,
        **compare_predictions(mean, particles, run.task, inputs.plain),
        "corruptions": robustness(mean, particles, run.task, inputs) if expensive else None,
    }


def models_of_cycle(run: RunData, index: int, examples: int) -> tuple[nn.Module | None, list[nn.Module]]:
    """The mean (None for an ensemble) and the particles of a cycle, ready to predict.

    Averaged weights get batch normalisation statistics from about `examples` training examples. Weights that are not
    an average keep the statistics of their training.
    """
    task = run.task

    def ready(weights: State, averaged: bool) -> nn.Module:
        model = copied_model(run.model)
        load_state(model, weights)
        if averaged:
            reestimate_batchnorm(model, task.train, forward=task.forward, examples=examples)
        return model

    if run.config.plan.spec.ensemble:
        members = range(len(run.cycle(index).particles))
        return None, [ready(read_weights(run.directory.member(k), index), False) for k in members]
    particles = run.particles(index)
    weights = run.cycle(index).weights
    # The best particle, or a greedy soup of one, is averaged only if that particle is.
    equal = [particle for particle in particles if _equal_parameters(run.model, particle.weights, weights)]
    averaged = equal[0].averaged > 1 if equal else bool(particles)
    return ready(weights, averaged), [ready(particle.weights, particle.averaged > 1) for particle in particles]


def compare_predictions(mean: nn.Module | None, particles: Sequence[nn.Module], task: Task, data: Data) -> Record:
    """Accuracy, likelihood and calibration of each model, and how often their predictions differ."""
    models = particles if mean is None else [mean, *particles]
    predicted = [predict(model, task, data) for model in models]
    targets = predicted[0][1]
    of_mean = None if mean is None else predicted[0][0]
    outputs = [logits for logits, _ in predicted[0 if mean is None else 1 :]]
    ensemble = mean_probability(outputs) if outputs else None
    agreement = None
    if of_mean is not None and ensemble is not None:
        agreement = float((of_mean.argmax(-1) == ensemble.argmax(-1)).double().mean())
    return {
        "disagreement": to_list(disagreement(outputs)) if outputs else [],
        "mean": None if of_mean is None else classification_metrics(of_mean, targets),
        "particles": [classification_metrics(logits, targets) for logits in outputs],
        "ensemble": None if ensemble is None else classification_metrics(ensemble, targets),
        "agreement_of_mean_with_ensemble": agreement,
    }


def classification_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood (nats) and expected calibration error of outputs (example, class)."""
    return {"accuracy": accuracy(outputs, targets), "nll": nll(outputs, targets), "ece": ece(outputs, targets)}


def disagreement(outputs: Sequence[Tensor]) -> Tensor:
    """Fraction of the examples for which two models predict different classes (model, model)."""
    predicted = torch.stack([logits.argmax(-1).reshape(-1) for logits in outputs])
    return (predicted[:, None] != predicted[None, :]).double().mean(-1).cpu()


def robustness(mean: nn.Module | None, particles: Sequence[nn.Module], task: Task, inputs: EvaluationInputs) -> Record:
    """Accuracy on corrupted inputs of the mean, the average particle and the ensemble, by kind and severity.

    "skipped" gives the reason if the inputs cannot be corrupted.
    """
    reason = corruption_unsupported_reason(next(iter(inputs.plain.in_order(_BATCH)))[0])
    if reason:
        return {"skipped": reason}
    return {
        kind: [
            {"severity": severity, **_accuracies(compare_predictions(mean, particles, task, data))}
            for severity, data in severities.items()
        ]
        for kind, severities in inputs.corrupted.items()
    }


def corruption_unsupported_reason(inputs: Any) -> str | None:
    """Why a batch of inputs cannot be corrupted; None if it can."""
    if not isinstance(inputs, Tensor):
        return f"the inputs are a {type(inputs).__name__}, not a tensor of images or signals."
    if not inputs.is_floating_point():
        return f"the inputs are {inputs.dtype}; noise needs floating point."
    if not 2 <= inputs.dim() <= 4:
        return f"an example of shape {tuple(inputs.shape[1:])} is not a signal (1-d) or an image (2-d, 3-d)."
    return None


def corrupt(data: BatchList, kind: str, severity: float, seed: Seed) -> BatchList:
    """The examples with corrupted inputs. Noise of different severities differs only in scale."""
    batches = list(data.in_order(1))
    if kind == "noise":
        scale = severity * standard_deviation([inputs for inputs, _ in batches])
        generators = (seed.at("noise", number).generator() for number in range(len(batches)))
        return BatchList([(add_noise(x, scale, g), y) for (x, y), g in zip(batches, generators, strict=True)])
    change = _DETERMINISTIC[kind]
    changed: list[Batch] = [(change(inputs, severity), targets) for inputs, targets in batches]
    return BatchList(changed)


def add_noise(inputs: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Inputs plus white noise with standard deviation `scale`, drawn on the CPU: equal on every device."""
    noise = torch.randn(inputs.shape, generator=generator, dtype=torch.float32)
    return inputs + scale * noise.to(inputs)


def box_blur(inputs: Tensor, width: float) -> Tensor:
    """Mean over `width` (odd) neighbours along the last axis, for images the last two; edges are repeated."""
    reach = int(width) // 2
    for axis in (-1,) if inputs.dim() == 2 else (-1, -2):
        positions = torch.arange(inputs.shape[axis], device=inputs.device)
        shifted = [(positions + step).clamp(0, len(positions) - 1) for step in range(-reach, reach + 1)]
        inputs = torch.stack([inputs.index_select(axis, index) for index in shifted]).mean(0)
    return inputs


def reduce_contrast(inputs: Tensor, fraction: float) -> Tensor:
    """Each example moved by `fraction` of the way to its mean."""
    mean = inputs.mean(tuple(range(1, inputs.dim())), keepdim=True)
    return torch.lerp(inputs, mean.expand_as(inputs), fraction)


def standard_deviation(parts: list[Tensor]) -> float:
    """Standard deviation of all numbers in all parts, about their common mean."""
    count = sum(part.numel() for part in parts)
    mean = sum(float(part.double().sum()) for part in parts) / count
    return (sum(float((part.double() - mean).square().sum()) for part in parts) / count) ** 0.5


_DETERMINISTIC: Mapping[str, Callable[[Tensor, float], Tensor]] = {"blur": box_blur, "contrast": reduce_contrast}


def _equal_parameters(model: nn.Module, a: State, b: State) -> bool:
    return all(torch.equal(a[name], b[name]) for name, _ in model.named_parameters())


def _accuracies(found: Mapping[str, Any]) -> Record:
    particles = [one["accuracy"] for one in found["particles"]]
    return {
        "mean": found["mean"] and found["mean"]["accuracy"],
        "particle": sum(particles) / len(particles) if particles else None,
        "ensemble": found["ensemble"] and found["ensemble"]["accuracy"],
    }


def _not_a_classification(task: Task, model: nn.Module, data: BatchList) -> str | None:
    """Why predictions cannot be compared as classes; None if they can."""
    outputs, targets = predict(model, task, BatchList(list(islice(data.in_order(_BATCH), 1))))
    if outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point():
        return None
    return (
        f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} ({targets.dtype}) are "
        "not a classification of examples: outputs (example, class) and integer targets (example,) are needed."
    )
