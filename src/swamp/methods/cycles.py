"""The one loop: train particles from the ticket, average, evaluate, prune the average, rewind."""

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import nn

from swamp.errors import Diverged, SwampError
from swamp.methods.cycle import Cycle, ParticleRecord
from swamp.methods.measure import Measure
from swamp.methods.method import Method, method_named
from swamp.methods.plan import Plan
from swamp.methods.stability import Barrier, Point, barrier
from swamp.methods.store import NoStore, Store
from swamp.particles import Auto, Backend, Particle, Ticket, mean_of
from swamp.scores import score_named
from swamp.sparsity import Mask, emptied, shrink
from swamp.training import (
    Seed,
    State,
    Task,
    Training,
    arrange,
    build_optimizer,
    copied,
    evaluate,
    norm_layers,
)


def cycles(
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield one finished Cycle after the other, dense first. `model` gives the initial weights and is left alone.

    backend: what trains the particles (default: chosen by timing the ways there are on the task itself).
    store: where finished steps are kept; what it holds already is not computed again.
    Raises SwampError before any training where the plan cannot be, Diverged where a training blows up.
    """
    method = method_named(plan.method)
    if method.ensemble:
        raise SwampError(f"{plan.method} trains whole runs side by side: use swamp.methods.ensemble.")
    if method.combine == "best" and task.validation is None:
        raise SwampError(f"{plan.method} chooses on validation data, and the task has none: hold some examples out.")
    if backend is None:
        build_optimizer(model.parameters(), training)  # an optimizer that cannot be is refused now, not in a while
    kept = store or NoStore()
    backend = backend or automatic(model, task, plan, kept)
    return _Loop(model, task, plan, training, method, backend, kept).run()


def automatic(model: nn.Module, task: Task, plan: Plan, store: Store) -> Auto:
    """The backend that chooses, and keeps to what an earlier session of the same run chose."""
    return Auto(model, task, cycles=len(plan.schedule()), chosen=store.choice(), tell=store.keep_choice)


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Plan,
        training: Training,
        method: Method,
        backend: Backend,
        store: Store,
    ) -> None:
        self.dense = Mask.ones(model, plan.scope)
        self.schedule = plan.schedule()
        last = self.schedule.kept(len(self.schedule) - 1, self.dense.prunable)
        if last < max(1, plan.floor * len(self.dense)):
            raise SwampError(
                f"sparsity {1 - self.schedule.densities[-1]:g} would keep {last} of {self.dense.prunable} weights, "
                f"with a floor of {plan.floor} in each of {len(self.dense)} layers. Ask for less."
            )
        self.model, self.plan, self.method = copy.deepcopy(model), plan, method
        self.backend, self.store = backend, store
        arrange(self.model, narrow=False)
        self.task = task.to(next(model.parameters()).device)
        self.measure = Measure(model, self.task, plan.evaluation_examples)
        self.initial = Ticket(model.state_dict(), 0)
        self.seed = Seed(plan.seed)
        # Every method starts from the same ticket: the tail, averaging and SAM belong to the cycles.
        self.ticket_training = replace(training, tail=0.0, swa=False, sam=0.0)
        self.training = method.training(training, plan.most_particles)
        self.per_epoch = task.train.steps(training.batch_size)
        self.ticket_steps = round(plan.ticket_epochs * self.per_epoch)
        self.first = self.ticket_steps if training.after_rewind == "advance" else 0
        if self.ticket_steps > training.epochs * self.per_epoch - (training.after_rewind == "advance"):
            raise SwampError(
                f"the ticket is taken after {plan.ticket_epochs:g} epochs, the training has {training.epochs}. "
                "Take it earlier or train longer."
            )

    def run(self) -> Iterator[Cycle]:
        ticket = self.ticket()
        start, mask, notes = ticket, self.dense, tuple[str, ...]()
        for index in range(len(self.schedule)):
            cycle = self.store.cycle(index) or self.one_cycle(index, start, mask, notes)
            yield cycle
            if index + 1 < len(self.schedule):
                mask, notes = self.pruned(cycle, index + 1)
                start = Ticket(cycle.weights, 0) if self.method.start == "carry" else ticket

    def ticket(self) -> Ticket:
        stored = self.store.ticket()
        if stored is not None:
            return stored
        ticket = self.initial
        if self.ticket_steps:
            seeds, progress = [(0, self.seed.at("ticket"))], self.store.progress(None, 1)
            try:
                (trained,) = self.backend.train(
                    ticket, self.dense, self.ticket_training, seeds, last=self.ticket_steps, progress=progress
                )
            except Diverged as error:
                raise Diverged(f"the ticket, {error}") from error
            ticket = Ticket(trained.weights, self.ticket_steps)
        self.store.keep_ticket(ticket)
        return ticket

    def one_cycle(self, index: int, start: Ticket, mask: Mask, notes: tuple[str, ...]) -> Cycle:
        began = time.perf_counter()
        particles, earlier = self.particles(index, start, mask)
        average, averaged = self.combined(particles)
        records = tuple(self.measure.each(partial(self.recorded, mask), particles))
        height = self.barrier(particles, average, mask)
        warning = height.warning(index, mask.sparsity, self.plan.barrier_threshold) if height else None
        if warning:
            warnings.warn(warning, stacklevel=2)
        stale = self.stale(average) if averaged else None
        model = self.measure.loaded(self.model, average, mask, refresh=averaged)
        steps = sum(p.steps for p in particles) + (self.ticket_steps if index == 0 else 0)
        cycle = Cycle(
            index,
            mask,
            {name: value.contiguous() for name, value in copied(model.state_dict()).items()},
            mask.density_of_all(model),
            self.measure.measured(model),
            records,
            height,
            stale,
            steps,
            steps * min(self.training.batch_size, len(self.task.train)),
            time.perf_counter() - began + earlier,
            (*notes, warning) if warning else notes,
        )
        self.store.keep_cycle(cycle)
        return cycle

    def particles(self, index: int, start: Ticket, mask: Mask) -> tuple[list[Particle], float]:
        """Those kept by an interrupted run and the missing ones, trained now; and the seconds the former took."""
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
            trained = self.backend.train(
                start, mask, self.training, seeds, first=self.first, progress=self.store.progress(index, count)
            )
        except Diverged as error:
            raise Diverged(f"cycle {index}, {error} What was finished before is kept.") from error
        earlier = sum(particle.seconds for particle in found.values())
        found.update((particle.index, particle) for particle in trained)
        return [found[i] for i in range(count)], earlier

    def combined(self, particles: list[Particle]) -> tuple[State, bool]:
        """The weights that stand for the cycle, and whether they are an average (which needs fresh statistics)."""
        if self.method.combine == "best":

            def error(model: nn.Module, particle: Particle) -> float:
                return measure.error(measure.loaded(model, particle.weights, None, refresh=particle.averaged > 1))

            measure = self.measure
            errors = measure.each(error, particles)
            chosen = particles[errors.index(min(errors))]
            return chosen.weights, chosen.averaged > 1
        return mean_of(particles), len(particles) > 1 or particles[0].averaged > 1

    def recorded(self, mask: Mask, model: nn.Module, particle: Particle) -> ParticleRecord:
        model = self.measure.loaded(model, particle.weights, mask, refresh=particle.averaged > 1)
        return ParticleRecord(self.measure.measured(model), particle.steps, particle.seconds, particle.losses[-1])

    def stale(self, average: State) -> dict[str, float] | None:
        if not norm_layers(self.model):
            return None
        return evaluate(self.measure.loaded(self.model, average, None, refresh=False), self.task, self.task.test)

    def barrier(self, particles: list[Particle], average: State, mask: Mask) -> Barrier | None:
        if len(particles) < 2 or not self.plan.barrier_points or self.method.combine != "mean":
            return None
        measure = self.measure

        def error(model: nn.Module, point: Point) -> float:
            # A dozen points: statistics from all of a large training set would cost like another particle.
            return measure.error(measure.loaded(model, point(), mask, refresh=True, examples=measure.examples))

        weights = [particle.weights for particle in particles]
        return barrier(weights, average, partial(measure.each, error), self.plan.barrier_points)

    def pruned(self, cycle: Cycle, index: int) -> tuple[Mask, tuple[str, ...]]:
        """The next cycle's mask, ranked on this cycle's weights, and what to tell about it."""
        self.model.load_state_dict(dict(cycle.weights))
        source = self.seed.at("score", index)
        batches = self.task.train.shuffled(self.training.batch_size, source, 0)
        scores = score_named(self.plan.score)(self.model, cycle.mask, batches, source.generator())
        smaller = shrink(
            cycle.mask,
            scores,
            self.schedule.kept(index, self.dense.prunable),
            allocation=self.plan.allocation,
            structure=self.plan.structure,
            floor=self.plan.floor,
        )
        note = emptied(cycle.mask, smaller)
        return smaller, (note,) if note else ()
