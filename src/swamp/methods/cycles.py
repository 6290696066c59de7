"""The one loop: find a mask, train particles on it, average, evaluate; rewind and go on."""

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from swamp.errors import Diverged, SwampError
from swamp.methods.combine import Trained, chosen
from swamp.methods.cycle import Cost, Cycle
from swamp.methods.dynamic import Changing, StartOver
from swamp.methods.judge import judge
from swamp.methods.masks import Masks
from swamp.methods.measure import Measure
from swamp.methods.mending import Mending
from swamp.methods.plan import Plan
from swamp.methods.pools import pooled
from swamp.methods.store import NoStore, Store
from swamp.methods.trainer import trainer
from swamp.particles import Backend, Ticket
from swamp.sparsity import Mask, check_structure, emptied, head_densities
from swamp.training import (
    Operations,
    Seed,
    Task,
    Training,
    arrange,
    norm_change,
    require_finite_given,
    require_finite_start,
    retraining,
)


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
        loop = _Loop(model, task, plan, training, backend, kept.member(0))
        return pooled(loop.run(), plan, loop.measure, kept)
    return _Loop(model, task, plan, training, backend, kept).run()


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
    loop = _Loop(model, task, plan, training, trainer(model, task, plan, training, backend, kept), kept)
    require_finite_given(
        {n: ticket.weights[n] for n, _ in model.named_parameters() if n in ticket.weights}, "the ticket's weights"
    )
    for index, mask in masks.items():
        mask.overlap(loop.dense)  # refuses masks of different models
        if not 0 <= index < len(loop.schedule):
            raise SwampError(f"the plan has cycles 0 to {len(loop.schedule) - 1}, and a mask was given for {index}.")
    return (loop.on(index, mask, ticket) for index, mask in masks.items())


@dataclass(frozen=True, eq=False)
class _Setting:
    """Where the particles of a cycle start, on which mask, and how they train."""

    start: Ticket
    mask: Mask
    training: Training
    first: int = 0
    """The step their learning rates start at."""
    notes: tuple[str, ...] = ()
    before: Cost = field(default_factory=Cost)
    """What was spent on the cycles that this one is made of."""
    scoring: float = 0.0
    """Operations of finding the mask."""


class _Loop:
    def __init__(
        self, model: nn.Module, task: Task, plan: Plan, training: Training, backend: Backend, store: Store
    ) -> None:
        self.method, self.schedule = plan.setting, plan.schedule()
        self.dense = Mask.ones(model, plan.scope)
        last = self.schedule.kept(len(self.schedule) - 1, self.dense.prunable)
        if last < max(1, plan.floor * len(self.dense)):
            raise SwampError(
                f"sparsity {1 - self.schedule.densities[-1]:g} would keep {last} of {self.dense.prunable} weights, "
                f"with a floor of {plan.floor} in each of {len(self.dense)} layers. Ask for less."
            )
        check_structure(plan.structure, self.dense, last, plan.floor)
        self.model, self.plan = copy.deepcopy(model), plan
        self.mending, self.store = Mending(plan, backend, store), store
        arrange(self.model, narrow=False)
        self.task = task.to(next(model.parameters()).device)
        require_finite_start(self.model, self.task)
        self.measure = Measure(model, self.task, plan.evaluation_examples, training.precision, store.check_stop)
        self.operations = Operations.of(model, self.task)
        self.initial = Ticket(model.state_dict(), 0)
        self.seed = Seed(plan.seed)
        self.masks = Masks(self.model, self.task, plan, training.batch_size, self.operations)
        self.ticket_training = training.plain()
        self.training = self.method.training(training, plan.most_particles)
        self.per_epoch = task.train.steps(training.batch_size)
        self.batch = min(training.batch_size, len(task.train))
        self.ticket_steps = round(plan.ticket_epochs * self.per_epoch)
        self.first = self.ticket_steps if training.after_rewind == "advance" else 0
        # Particles whose masks change part there; what else stands alone has no ticket.
        part = self.method.masks == "dynamic" and max(self.schedule.particles) > 1
        latest = training.epochs * self.per_epoch - (part or training.after_rewind == "advance")
        if self.ticket_steps > latest and (part or not self.method.alone):
            raise SwampError(
                f"the ticket is taken after {plan.ticket_epochs:g} epochs, the training has {training.epochs}. "
                "Take it earlier or train longer."
            )
        if plan.retrain_epochs > training.epochs and plan.retraining == "lrw":
            raise SwampError(
                f"lrw trains the last {plan.retrain_epochs} epochs of {training.epochs} again; ask for fewer."
            )
        if self.method.masks == "dynamic":
            plan.dynamic.steps(self.training, self.per_epoch)
        if self.method.start == "carry":
            retraining(self.training, plan.retraining, plan.retrain_epochs or training.epochs, 1.0)

    def run(self) -> Iterator[Cycle]:
        ticket = self.initial if self.method.alone else self.ticket()
        source: Cycle | None = None
        for index in range(len(self.schedule)):
            cycle = self.store.cycle(index) or self.one_cycle(index, self.setting(index, ticket, source))
            yield cycle
            if source is None or self.method.masks == "iterative":
                source = cycle

    def on(self, index: int, mask: Mask, ticket: Ticket) -> Cycle:
        """Cycle `index`, on a mask that is given."""
        stored = self.store.cycle(index)
        if stored is not None and stored.mask != mask:
            raise SwampError(
                f"the stored cycle {index} was trained on another mask than is given now. Delete what is stored, or "
                "keep the new one elsewhere."
            )
        return stored or self.one_cycle(index, _Setting(ticket, mask, self.training, self.first))

    def ticket(self) -> Ticket:
        stored = self.store.ticket()
        if stored is not None:
            return stored
        ticket = self.initial
        if self.ticket_steps:
            seeds = [(0, self.seed.at("ticket"))]
            try:
                (trained,) = self.mending.train(
                    None, 1, ticket, self.dense, self.ticket_training, seeds, last=self.ticket_steps
                )
            except Diverged as error:
                raise Diverged(f"the ticket, {error}", error.steps) from error
            ticket = Ticket(trained.weights, self.ticket_steps)
        self.store.keep_ticket(ticket)
        return ticket

    def setting(self, index: int, ticket: Ticket, source: Cycle | None) -> _Setting:
        """How cycle `index` begins; `source` is the cycle whose weights decide, if there is one."""
        kept = self.schedule.kept(index, self.dense.prunable)
        seed = self.seed.at("score", index)
        if self.method.alone:
            training = self.repeated(self.schedule.densities[index])
            if self.method.masks == "dynamic" and self.method.grow == "nothing":
                return _Setting(ticket, self.dense, training)
            mask, notes, scoring = self.masks.smaller(self.dense, ticket.weights, kept, seed)
            return _Setting(ticket, mask, training, notes=notes, scoring=scoring)
        if source is None:
            return _Setting(ticket, self.dense, self.training, self.first)
        mask, notes, scoring = self.masks.smaller(source.mask, source.weights, kept, seed)
        if self.method.start == "ticket":
            return _Setting(ticket, mask, self.training, self.first, notes, source.total, scoring)
        training, first = self.retrained(source, mask)
        return _Setting(Ticket(source.weights, 0), mask, training, first, notes, source.total, scoring)

    def repeated(self, density: float) -> Training:
        """The training of a mask that stands alone; a cyclic one has as many schedules as an iterative run cycles."""
        if not self.method.cyclic:
            return self.training
        times = self.plan.trainings_to(density)
        repeats = times * (self.plan.most_particles if self.method.longer else 1)
        return replace(self.training, epochs=self.training.epochs * times, repeats=repeats)

    def retrained(self, source: Cycle, mask: Mask) -> tuple[Training, int]:
        """How the weights of `source` train on on the smaller `mask`, and the step that this starts at."""
        whole, removed = (
            sum(float(source.weights[name][chosen].double().square().sum()) for name, chosen in part.items()) ** 0.5
            for part in (source.mask, {name: ~alive for name, alive in mask.items()})
        )
        change = norm_change(whole, removed, 1 - mask.kept / source.mask.kept)
        training, epoch = retraining(
            self.training, self.plan.retraining, self.plan.retrain_epochs or self.training.epochs, change
        )
        return training, epoch * self.per_epoch

    def one_cycle(self, index: int, setting: _Setting) -> Cycle:
        began = time.perf_counter()
        changing = self.method.masks == "dynamic"
        trained = self.changing(index, setting) if changing else self.particles(index, setting)
        particles, masks = trained.particles, trained.masks
        mask, weights, averaged = chosen(trained, self.plan, self.measure)
        broken = (*(self.mending.of(None) if index == 0 and not self.method.alone else ()), *self.mending.of(index))
        notes = [*setting.notes, *filter(None, [emptied(setting.mask, mask) if changing else None])]
        points = self.plan.barrier_points if self.method.combine == "mean" else 0
        judged = judge(self.model, self.measure, particles, masks, weights, averaged, mask, points)
        warning = judged.barrier and judged.barrier.warning(index, mask.sparsity, self.plan.barrier_threshold)
        if warning:
            warnings.warn(warning, stacklevel=2)
            notes.append(warning)
        self.model.load_state_dict(dict(judged.model.state))
        steps, operations = trained.steps, trained.operations + setting.scoring
        if index == 0 and not self.method.alone:
            ticket_steps = self.ticket_steps + sum(one.steps for one in self.mending.of(None))
            steps += ticket_steps
            dense = self.operations.training_step(self.dense, self.ticket_training)
            operations += ticket_steps * self.batch * dense
        cost = Cost(steps, steps * self.batch, operations, time.perf_counter() - began + trained.earlier)
        cycle = Cycle(
            index,
            mask,
            judged.model.state,
            mask.density_of_all(self.model),
            judged.model.measured,
            judged.particles,
            judged.barrier,
            judged.stale,
            cost,
            setting.before + cost,
            tuple(notes),
            head_densities(self.model, mask),
            broken,
        )
        self.store.keep_cycle(cycle)
        return cycle

    def particles(self, index: int, setting: _Setting) -> Trained:
        """Those kept by an interrupted run and the missing ones, trained now."""
        start, mask = setting.start, setting.mask
        count = self.schedule.particles[index]
        found = {i: particle for i in range(count) if (particle := self.store.particle(index, i)) is not None}
        for particle in found.values():
            if (particle.ticket, particle.mask) != (start.id, mask.digest):
                raise SwampError(
                    f"the stored particle {particle.index} of cycle {index} was trained from another ticket or mask "
                    "than this run has. Its files were mixed with another run's: delete that cycle's folder, resume."
                )
        seeds = [(i, self.seed.at("cycle", index, "particle", i)) for i in range(count) if i not in found]
        try:
            trained = self.mending.train(index, count, start, mask, setting.training, seeds, first=setting.first)
        except Diverged as error:
            raise Diverged(f"cycle {index}, {error} What was finished before is kept.", error.steps) from error
        earlier = sum(particle.seconds for particle in found.values())
        found.update((particle.index, particle) for particle in trained)
        particles = [found[i] for i in sorted(found)]
        a_step = self.batch * self.operations.training_step(mask, setting.training)
        # What was trained in vain was paid for all the same.
        steps = sum(one.steps for one in (*particles, *self.mending.of(index)))
        return Trained(particles, (mask,) * len(particles), steps, steps * a_step, earlier)

    def changing(self, index: int, setting: _Setting) -> Trained:
        """Particles whose masks change while they train."""
        kept, count = self.schedule.kept(index, self.dense.prunable), self.schedule.particles[index]
        parts = self.model, self.task, self.plan, setting.training, self.operations, self.mending
        try:
            while True:
                try:
                    return Changing(*parts).run(index, setting.start, setting.mask, kept, count)
                except StartOver:
                    continue
        except Diverged as error:
            raise Diverged(f"cycle {index}, {error} What was finished before is kept.", error.steps) from error
