"""What trains the particles of a run: chosen by name, or by timing."""

from collections.abc import Callable

from torch import nn

from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Auto, Backend, Choice, backend_named
from swamp.errors import SwampError
from swamp.training import Task, Training, build_optimizer


def backend_of(
    name: str,
    model: nn.Module,
    task: Task,
    plan: Plan,
    *,
    chosen: Choice | None = None,
    tell: Callable[[Choice], None] | None = None,
) -> Backend:
    """The backend of this name. chosen, tell: what auto keeps to, and who hears what it chooses; see Auto."""
    way = backend_named(name)
    return Auto(model, task, cycles=len(plan.schedule()), chosen=chosen, tell=tell) if way is Auto else way(model, task)


def trainer(
    model: nn.Module, task: Task, plan: Plan, training: Training, backend: Backend | str | None, *kept: Store
) -> Backend:
    """What trains the particles: `backend`, or the one of this name, or (None) the one that `auto` chooses.

    kept: the stores of all runs whose particles it trains. Raises SwampError for a method that no single loop can do,
    for missing data, and for an unknown optimizer.
    """
    method = plan.setting
    if method.ensemble:
        raise SwampError(f"{plan.method} trains whole runs side by side: use swamp.algorithms.ensemble.")
    if method.needs_validation and task.validation is None:
        raise SwampError(f"{plan.method} chooses on validation data, and the task has none: hold some examples out.")
    if backend is not None and not isinstance(backend, str):
        if not hasattr(backend, "train"):
            raise SwampError(f"backend must be a name or an object with the method train, got {backend!r}.")
        return backend
    build_optimizer(model.parameters(), training)  # an optimizer that cannot be is refused now, not in a while
    chosen = next((choice for store in kept if (choice := store.choice()) is not None), None)

    def tell(choice: Choice) -> None:
        for store in kept:
            store.keep_choice(choice)

    return backend_of(backend or "auto", model, task, plan, chosen=chosen, tell=tell)
