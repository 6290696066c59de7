"""The one loop: find a mask, train particles on it, average, evaluate; rewind and go on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.loop import Loop, Setting
from swamp.algorithms.mending import train_wanted
from swamp.algorithms.plan import Plan
from swamp.algorithms.pools import pooled
from swamp.algorithms.store import NoStore, Store
from swamp.algorithms.trainer import trainer
from swamp.backends import Backend, Ticket
from swamp.errors import Diverged, SwampError, shortened
from swamp.masks import Mask
from swamp.training import BySeed, Task, Training, require_finite_given


def cycles(
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield one finished Cycle after the other, densest first. `model` gives the initial weights and is left alone.

    backend: what trains the particles, or its name (default: chosen by timing those there are on the task itself).
    store: where finished steps are kept; what it holds already is not computed again.
    Raises SwampError before any training where the plan cannot be, or weights or data are not finite; Diverged where a
    training blows up and `plan.broken` has no way to go on.
    """
    method, kept = plan.setting, store or NoStore()
    backend = trainer(model, task, plan, training, backend, kept)
    if method.pools:
        loop = Loop(model, task, plan, training, backend, kept.member(0))
        return pooled(_run(loop), plan, loop.measure, kept)
    return _run(Loop(model, task, plan, training, backend, kept))


def cycles_in_step(
    models: Sequence[nn.Module],
    task: Task | Sequence[Task],
    plans: Sequence[Plan],
    training: Training,
    *,
    backend: Backend | str | None = None,
    stores: Sequence[Store] | None = None,
) -> Iterator[tuple[Cycle, ...]]:
    """Yield cycle after cycle of several runs, whose particles are trained at once: S runs of N as one stack of S x N.

    They differ in seed and initial weights. Each is what `cycles` yields of it, up to rounding where the backend's
    arithmetic differs. Tickets are trained one by one.

    task: that of all, with the same examples held out, or one for each: these may differ in which of as many examples
    they hold out, and in nothing else; the backend then goes by its name.
    stores: that of each run. Raises SwampError as `cycles` does, and where the runs differ in more.
    """
    kept = [NoStore()] * len(plans) if stores is None else stores
    tasks = [task] * len(plans) if isinstance(task, Task) else task
    counts = len(models), len(tasks), len(plans), len(kept)
    if not models or len({*counts}) != 1:
        raise SwampError(f"as many models, tasks, plans and stores are needed as there are runs, got {counts}.")
    for plan in plans:
        if replace(plan, seed=plans[0].seed) != plans[0]:
            raise SwampError("runs that are trained at once may differ in their seeds only, and these plans differ.")
    if plans[0].setting.pools:
        raise SwampError(f"runs of {plans[0].method} cannot be trained at once. Take one after the other.")
    _require_alike(models)
    of_all, tasks = _joined(tasks, plans, backend, next(models[0].parameters()).device)
    backend = trainer(models[0], of_all, plans[0], training, backend, *kept)
    runs = zip(models, tasks, plans, kept, strict=True)
    return _in_step([Loop(model, own, plan, training, backend, store) for model, own, plan, store in runs])


def train_on(
    masks: Mapping[int, Mask],
    ticket: Ticket,
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield cycles whose masks are handed in (of another run, say) instead of found; all else is as in `cycles`.

    masks: cycle -> mask. Particles start at `ticket`; the cycle names their number and their batch orders, so that it
    takes the cycle's own mask to get what `cycles` yields there. Costs are those of the trainings alone.
    Raises SwampError where the method does not rewind to a ticket, and for a mask or cycle that cannot be.
    """
    if not plan.setting.rewinds:
        raise SwampError(
            f"{plan.method} does not train cycle after cycle from one ticket, so that it cannot train masks of others. "
            "Take imp, swamp, or another method that rewinds."
        )
    kept = store or NoStore()
    loop = Loop(model, task, plan, training, trainer(model, task, plan, training, backend, kept), kept)
    require_finite_given(
        {n: ticket.weights[n] for n, _ in model.named_parameters() if n in ticket.weights}, "the ticket's weights"
    )
    for index, mask in masks.items():
        mask.overlap(loop.dense)  # refuses masks of different models
        if not 0 <= index < len(loop.schedule):
            raise SwampError(f"the plan has cycles 0 to {len(loop.schedule) - 1}, and a mask was given for {index}.")
    return (_on(loop, index, mask, ticket) for index, mask in masks.items())


def _joined(
    tasks: Sequence[Task], plans: Sequence[Plan], backend: Backend | str | None, device: torch.device
) -> tuple[Task, Sequence[Task]]:
    """The task that a backend trains the particles of all runs on, and that of each run, which shares its memory."""
    if all(task is tasks[0] for task in tasks):
        return tasks[0], tasks
    if backend is not None and not isinstance(backend, str):
        raise SwampError("runs with data of their own take the name of a backend: one that is made has data already.")
    seeds = [plan.seed for plan in plans]
    if len({*seeds}) < len(seeds):
        raise SwampError(f"runs with data of their own need seeds of their own, got {seeds}.")
    data = BySeed.of({seed: task.train.to(device) for seed, task in zip(seeds, tasks, strict=True)})
    return replace(tasks[0], train=data), [
        replace(task, train=data.parts[seed]) for seed, task in zip(seeds, tasks, strict=True)
    ]


def _require_alike(models: Sequence[nn.Module]) -> None:
    first, *others = ({name: tuple(value.shape) for name, value in model.state_dict().items()} for model in models)
    for other in others:
        wrong = [n for n in {**first, **other} if first.get(n) != other.get(n)]
        if wrong:
            told = shortened([f"{name} ({first.get(name)} and {other.get(name)})" for name in wrong])
            raise SwampError(f"runs that are trained at once need networks of one shape, and these differ in {told}.")


def _run(loop: Loop) -> Iterator[Cycle]:
    return (cycle for (cycle,) in _in_step([loop]))


def _in_step(loops: Sequence[Loop]) -> Iterator[tuple[Cycle, ...]]:
    """The loop itself, of one run or of several that go through their cycles together."""
    tickets = [loop.ticket() for loop in loops]
    sources: list[Cycle | None] = [None] * len(loops)
    for index in range(len(loops[0].schedule)):
        stored = [loop.store.cycle(index) for loop in loops]
        missing = [
            (loop, loop.setting(index, ticket, source))
            for loop, ticket, source, cycle in zip(loops, tickets, sources, stored, strict=True)
            if cycle is None
        ]
        new = iter(_new(index, missing) if missing else [])
        found = tuple(cycle or next(new) for cycle in stored)
        yield found
        if index == 0 or loops[0].method.masks == "iterative":
            sources = [*found]


def _new(index: int, missing: Sequence[tuple[Loop, Setting]]) -> list[Cycle]:
    """A cycle of each of these runs, whose particles are trained at once."""
    began = time.perf_counter()
    try:
        if missing[0][0].method.masks == "dynamic":
            trained = [loop.changing(index, setting) for loop, setting in missing]
        else:
            found = [loop.found(index, setting) for loop, setting in missing]
            wanted = [loop.wanted(index, setting, kept) for (loop, setting), kept in zip(missing, found, strict=True)]
            particles = train_wanted(wanted)
            trained = [
                loop.trained(index, setting, kept, new)
                for (loop, setting), kept, new in zip(missing, found, particles, strict=True)
            ]
    except Diverged as error:
        raise Diverged(f"cycle {index}, {error} What was finished before is kept.", error.steps) from error
    share = (time.perf_counter() - began) / len(missing)
    return [
        loop.one_cycle(index, setting, replace(one, seconds=one.seconds + share))
        for (loop, setting), one in zip(missing, trained, strict=True)
    ]


def _on(loop: Loop, index: int, mask: Mask, ticket: Ticket) -> Cycle:
    """Cycle `index`, on a mask that is given."""
    stored = loop.store.cycle(index)
    if stored is not None and stored.mask != mask:
        raise SwampError(
            f"the stored cycle {index} was trained on another mask than is given now. Delete what is stored, or "
            "keep the new one elsewhere."
        )
    setting = Setting(ticket, mask, loop.training, loop.first)
    return stored or _new(index, [(loop, setting)])[0]
