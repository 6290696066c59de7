"""The public call that trains what a pruned network has learnt on another task."""

from pathlib import Path
from typing import Any, Unpack, cast

from torch import nn

from swamp.algorithms import Plan, SparseModel
from swamp.algorithms.plan import Keep, Transfer
from swamp.algorithms.sparse_model import PlanOptions
from swamp.algorithms.unused import refuse_unused
from swamp.api.pruning import given_options, job_cycles
from swamp.api.python_run import Job
from swamp.arguments import checked
from swamp.backends import Backend
from swamp.errors import SwampError, warn
from swamp.model_copy import copied_model
from swamp.references import PYTHON_PREFIX
from swamp.runs.read import same_density
from swamp.runs.transfer import TransferSource, finished_records, transferred_from
from swamp.tracking.tracker import Track
from swamp.training import Task, Training
from swamp.training.module_extra_state import as_tensors, load_state


@checked
def transfer(
    source: SparseModel | Path | str,
    model: nn.Module,
    task: Task,
    *,
    keep: Keep = "weights",
    sparsity: float | None = None,
    particles: int = 1,
    method: str = "imp",
    training: Training | None = None,
    backend: Backend | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
    track: Track = (),
    **options: Unpack[PlanOptions],
) -> SparseModel:
    """Train the weights, the mask or the sparsity of a pruned network on another task, by one cycle of `method`.

    Args:
        source: Directory of a finished run, or a sparse model.
        model: Network for `task`, with its initial weights. The inputs of its first layer and the outputs of its last
            one may have other shapes than in the source: these tensors keep their initial weights, and get a random
            mask of the source's density.
        task: Data, loss and metrics.
        keep: "weights": the pruned weights and their mask are fine-tuned (Iofinova et al. 2022). "mask": the mask is
            trained from the source's ticket (Morcos et al. 2019). "sparsity": a random mask with as many weights in
            each layer is trained from the weights of `model`.
        sparsity: Which cycle of the run (default: the last one).
        particles: Number of particles N.
        method: A method that rewinds to a ticket, such as "imp" or "swamp".
        training: See `prune`.
        backend: See `prune`.
        out: See `prune`.
        progress: See `prune`.
        track: See `prune`.
        **options: See `prune`.

    Returns:
        The trained sparse copy; its record has one cycle, with the cost of this training alone.

    Raises:
        SwampError: See `prune`; also for a source that is no finished run, has no cycle of this sparsity, no ticket for
            keep="mask", or layers that do not fit, which are named.
        Diverged: See `prune`.
        KeyboardInterrupt: See `prune`.

    Examples:
        ```python
        sparse = swamp.transfer("runs/imp", model, task, keep="mask", sparsity=0.9, out="runs/imp-to-other")
        ```
    """
    if isinstance(source, SparseModel):
        if sparsity is not None and not same_density(source.mask.density, 1 - sparsity):
            raise SwampError(
                f"the sparse model has sparsity {source.sparsity:.4g}, not {sparsity:g}. Leave sparsity out, or give "
                "the directory of a run with such a cycle."
            )
        of_model = as_tensors(source.model.state_dict())
        found, name = TransferSource("the sparse model", source.mask, of_model, None, {}), f"{PYTHON_PREFIX}SparseModel"
    else:
        reached = finished_records(source)[-1]["sparsity"] if sparsity is None else sparsity
        found, name = TransferSource.of_run(source, reached), str(source)
    kept, how = Transfer(name, keep), training or Training()
    plan = Plan(method, found.mask.sparsity, (particles,), transfer=kept, **cast(Any, options))
    if notes := refuse_unused(plan, how, given_options(options, how, particles=particles > 1)):
        warn(" ".join(notes))
    taken = transferred_from(found, plan, model)
    started = copied_model(model)
    load_state(started, taken.ticket.weights)
    job = Job(started, task, plan, how, backend, taken.mask)
    return SparseModel.of(model, list(job_cycles(job, None, out, progress=progress, track=track)))
