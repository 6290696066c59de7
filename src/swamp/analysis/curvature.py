"""Curvature of the loss at the models of a run: trace, largest eigenvalues and spectral density of the Hessian."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, first_middle_last
from swamp.analysis.hessian import Hessian
from swamp.analysis.hessian_trace import Trace, hutchinson, random_signs
from swamp.analysis.run_data import RunData
from swamp.analysis.spectrum import Eigenvalue, SpectralDensity, lanczos, spectral_density, top_eigenvalues
from swamp.masks import Mask
from swamp.training import Seed, Task
from swamp.training.average import State

_TOP, _PRECISION = 5, 1e-4
"""Largest eigenvalues that are computed, and their largest residual as a fraction of each: it bounds the error."""
_MIN_PROBES, _TOLERANCE = 4, 0.1
"""Least probes of the traces, and the relative standard error at which no more are added."""


@dataclass(frozen=True)
class Curvature:
    """Traces and spectrum of the Hessian of the loss at given weights."""

    trace: Trace
    top: tuple[Eigenvalue, ...]
    """The largest eigenvalues that have converged, five at most, in descending order."""
    density: SpectralDensity

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in the record of the analysis."""
        return {**self.trace.to_json(), "top": [asdict(one) for one in self.top], "density": asdict(self.density)}


def curvature_at(
    model: nn.Module,
    task: Task,
    weights: State,
    mask: Mask | None = None,
    *,
    examples: int = 500,
    seed: int = 0,
    max_probes: int = 16,
    lanczos_steps: int = 100,
) -> Curvature:
    """Trace, five largest eigenvalues and spectral density of the Hessian of the mean training loss.

    Takes at most 2 * max_probes + lanczos_steps Hessian-vector products; each costs two to three
    training passes. See `Hessian` for the mode of the network. `model` is not changed. Lanczos ends when the five
    largest eigenvalues have converged; where `lanczos_steps` are too few, only those that have converged are returned.

    Args:
        model: the network.
        task: gives the loss and the training data.
        weights: where the Hessian is taken.
        mask: marks the active weights for `Trace.active` (default: all).
        examples: number of training examples.
        seed: seed of the probes and of the starting vector.
        max_probes: maximum number of probes of the trace.
        lanczos_steps: maximum number of steps of Lanczos.

    Raises:
        SwampError: the mask or weights do not fit the model.
    """
    hessian = Hessian(model, task, weights, mask, examples=examples)
    trace = hutchinson(hessian, tolerance=_TOLERANCE, min_probes=_MIN_PROBES, max_probes=max_probes, seed=seed)
    start = random_signs(hessian.size, Seed(seed).at("curvature", "start", 0)).to(hessian.device)
    top = partial(top_eigenvalues, count=_TOP, tolerance=_PRECISION)
    found = lanczos(hessian, start[None], lanczos_steps, lambda runs: len(top(runs)) == _TOP)
    return Curvature(trace, top(found), spectral_density(found))


def curvature_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """How sharp is the loss at the mean of each cycle, and at particles of some: trace, top eigenvalues, density.

    All models get the same probes. A task takes at most 132 Hessian-vector products.
    """
    for cycle in range(run.cycles):
        key = f"curvature/cycle-{cycle:02d}"
        yield AnalysisTask(f"{key}/mean", partial(_of_mean, run, settings, cycle))
        if cycle in first_middle_last(run.cycles):
            for number in run.particle_numbers(cycle)[: settings.curvature_particles]:
                if run.directory.particle(cycle, number).exists():
                    yield AnalysisTask(f"{key}/particle-{number}", partial(_of_particle, run, settings, cycle, number))


def _of_mean(run: RunData, settings: AnalysisSettings, index: int) -> Mapping[str, Any]:
    cycle = run.cycle(index)
    return _record(run, settings, index, "mean", cycle.weights, cycle.mask)


def _of_particle(run: RunData, settings: AnalysisSettings, index: int, number: int) -> Mapping[str, Any]:
    particle = run.particle(index, number)
    mask = run.cycle(index).mask
    if mask.digest != particle.mask:
        # Members of an ensemble, and particles trained with dynamic masks, have other masks, which are not on disk.
        mask = Mask({name: particle.weights[name] != 0 for name in mask})
    return _record(run, settings, index, f"particle-{number}", particle.weights, mask)


def _record(
    run: RunData, settings: AnalysisSettings, index: int, of: str, weights: State, mask: Mask
) -> Mapping[str, Any]:
    examples = min(settings.examples, settings.curvature_examples)
    found = curvature_at(run.model, run.task, weights, mask, examples=examples, seed=settings.seed)
    return {"cycle": index, "sparsity": mask.sparsity, "of": of, **found.to_json()}
