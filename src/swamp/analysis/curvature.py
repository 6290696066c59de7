"""How sharply the loss bends at the models of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from swamp.analysis.analysis import Settings, Unit, spread
from swamp.analysis.hessian import Hessian
from swamp.analysis.hutchinson import Trace, hutchinson, signs
from swamp.analysis.lanczos import Density, Eigenvalue, density, lanczos, top
from swamp.analysis.subject import Subject
from swamp.masks import Mask
from swamp.training import Seed, State, Task


@dataclass(frozen=True)
class Curvature:
    """Traces and spectrum of the Hessian of the loss at one point of weight space."""

    trace: Trace
    top: tuple[Eigenvalue, ...]
    density: Density

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the record of the analysis has them."""
        return {**self.trace.to_json(), "top": [asdict(one) for one in self.top], "density": asdict(self.density)}


def curvature_at(
    model: nn.Module,
    task: Task,
    weights: State,
    mask: Mask | None = None,
    *,
    examples: int = 500,
    seed: int = 0,
    tolerance: float = 0.1,
    least: int = 4,
    most: int = 16,
    runs: int = 1,
    steps: int = 12,
) -> Curvature:
    """Trace (whole, of the survivors, of each layer), five largest eigenvalues and density of the Hessian at `weights`.

    Of the mean loss on the first `examples` training examples: see `Hessian` for the mode that the network is in,
    `hutchinson` for the traces and for tolerance, least and most. Eigenvalues and density are of the whole Hessian,
    from `runs` Lanczos runs of `steps`. Takes 2 * most + runs * steps products at most, of two to three training
    passes each. `model` is left as it was. Raises SwampError for a mask or weights that do not fit.
    """
    hessian = Hessian(model, task, weights, mask, examples=examples)
    trace = hutchinson(hessian, tolerance=tolerance, least=least, most=most, seed=seed)
    starts = [signs(hessian.size, Seed(seed).at("curvature", "start", run)) for run in range(runs)]
    found = lanczos(hessian, torch.stack(starts).to(hessian.device), steps)
    return Curvature(trace, top(found), density(found))


def curvature(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """How sharp is the loss at the mean of each cycle, and at particles of some: trace, top eigenvalues, density.

    The same probes for all, so that they compare. A unit is at most 44 products of the Hessian with a vector.
    """
    for cycle in range(subject.cycles):
        yield Unit(f"curvature/cycle-{cycle:02d}/mean", partial(_of_mean, subject, settings, cycle))
        for number in subject.numbers(cycle)[: settings.corners] if cycle in spread(subject.cycles) else ():
            path = subject.directory.particle(cycle, number)
            if path.exists():
                work = partial(_of_particle, subject, settings, cycle, number)
                yield Unit(f"curvature/cycle-{cycle:02d}/particle-{number}", work)


def _of_mean(subject: Subject, settings: Settings, index: int) -> Mapping[str, Any]:
    cycle = subject.cycle(index)
    return _record(subject, settings, index, "mean", cycle.weights, cycle.mask)


def _of_particle(subject: Subject, settings: Settings, index: int, number: int) -> Mapping[str, Any]:
    particle = subject.particle(index, number)
    mask = subject.cycle(index).mask
    if mask.digest != particle.mask:
        # Members of an ensemble and particles whose masks moved have their own, which is not on disk.
        mask = Mask({name: particle.weights[name] != 0 for name in mask})
    return _record(subject, settings, index, f"particle-{number}", particle.weights, mask)


def _record(subject: Subject, settings: Settings, index: int, of: str, weights: State, mask: Mask) -> Mapping[str, Any]:
    examples = min(settings.examples, settings.curvature_examples)
    found = curvature_at(subject.model, subject.task, weights, mask, examples=examples, seed=settings.seed)
    return {"cycle": index, "sparsity": mask.sparsity, "of": of, **found.to_json()}
