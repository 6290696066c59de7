"""Choose the backend of a run: by name, or by timing."""

from collections.abc import Callable

from torch import nn

from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Autotune, Backend, backend_named
from swamp.backends.autotune import CHOSEN, Choice
from swamp.errors import SwampError
from swamp.training import Task, Training
from swamp.training.optimizers import build_optimizer


def backend_of(
    name: str,
    model: nn.Module,
    task: Task,
    plan: Plan,
    *,
    choice: Choice | None = None,
    on_choice: Callable[[Choice], None] | None = None,
) -> Backend:
    """The backend of this name. choice, on_choice: an earlier choice of `auto`, and what is told of a new one."""
    backend = backend_named(name)
    if name.startswith(CHOSEN):
        choice = choice or Choice.named(name)
    elif backend is not Autotune:
        return backend(model, task)
    return Autotune(model, task, cycles=len(plan.schedule()), choice=choice, on_choice=on_choice)


def choose_backend(
    model: nn.Module, task: Task, plan: Plan, training: Training, backend: Backend | str | None, store: Store
) -> Backend:
    """The given backend, the backend of this name, or (None) the fastest by timing.

    Raises:
        SwampError: The method cannot be run by one loop, validation data are missing, or the optimizer is unknown.
    """
    method = plan.spec
    if method.ensemble:
        raise SwampError(f"{plan.method} trains several runs: use swamp.algorithms.ensemble.")
    if (method.needs_validation or "auto" in plan.particles) and not task.has_validation:
        chooses = plan.method if method.needs_validation else 'particles="auto"'
        raise SwampError(
            f"{chooses} chooses on validation data, and the task has none: hold some examples out, or give "
            "Task.custom(..., validate=...)."
        )
    if backend is not None and not isinstance(backend, str):
        if not hasattr(backend, "train"):
            raise SwampError(f"backend must be a name or an object with the method train, got {backend!r}.")
        return backend
    plan.scope.prunable(model)  # a model without parameters is refused before its optimizer is
    build_optimizer(model.parameters(), training)  # an impossible optimizer is refused before any training
    return backend_of(backend or "auto", model, task, plan, choice=store.choice(), on_choice=store.keep_choice)
