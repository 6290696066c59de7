"""One run of the loop: where the particles of a cycle start, on which mask, how they train, and what they make."""

import copy
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from swamp.algorithms.combine import Trained, chosen
from swamp.algorithms.cycle import Cost, Cycle
from swamp.algorithms.dynamic import Changing, StartOver
from swamp.algorithms.judge import judge
from swamp.algorithms.masks import Masks
from swamp.algorithms.measure import Measure
from swamp.algorithms.mending import Mending, Wanted, train_wanted
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Backend, Particle, Ticket
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask, empty_layer_warning, head_densities, structure_named
from swamp.training import (
    Operations,
    Seed,
    Task,
    Training,
    arrange,
    norm_change,
    require_finite_start,
    retraining,
)


@dataclass(frozen=True, eq=False)
class Setting:
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


class Loop:
    """What one run does in its cycles. Raises SwampError where the plan, the weights or the data cannot be."""

    def __init__(
        self, model: nn.Module, task: Task, plan: Plan, training: Training, backend: Backend, store: Store
    ) -> None:
        self.method, self.schedule = plan.setting, plan.schedule()
        self.dense = Mask.ones(model, plan.scope)
        last = self.schedule.nnz(len(self.schedule) - 1, self.dense.prunable)
        if last < max(1, plan.min_per_layer * len(self.dense)):
            raise SwampError(
                f"sparsity {1 - self.schedule.densities[-1]:g} would keep {last} of {self.dense.prunable} weights, "
                f"with at least {plan.min_per_layer} in each of {len(self.dense)} layers. Ask for less."
            )
        structure_named(plan.structure).check(self.dense, last, plan.min_per_layer)
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
        self.first = self.ticket_steps if training.lr_after_rewind == "advance" else 0
        # Particles whose masks change part there; what else stands alone has no ticket.
        part = self.method.masks == "dynamic" and max(self.schedule.particles) > 1
        latest = training.epochs * self.per_epoch - (part or training.lr_after_rewind == "advance")
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

    def ticket(self) -> Ticket:
        """Where all particles start: stored, or trained now."""
        if self.method.alone:
            return self.initial
        stored = self.store.ticket()
        if stored is not None:
            return stored
        ticket = self.initial
        if self.ticket_steps:
            seeds = [(0, self.seed.at("ticket"))]
            wanted = Wanted(
                self.mending, None, 1, ticket, self.dense, self.ticket_training, seeds, last=self.ticket_steps
            )
            try:
                ((trained,),) = train_wanted([wanted])
            except Diverged as error:
                raise Diverged(f"the ticket, {error}", error.steps) from error
            ticket = Ticket(trained.weights, self.ticket_steps)
        self.store.keep_ticket(ticket)
        return ticket

    def setting(self, index: int, ticket: Ticket, source: Cycle | None) -> Setting:
        """How cycle `index` begins; `source` is the cycle whose weights decide, if there is one."""
        kept = self.schedule.nnz(index, self.dense.prunable)
        seed = self.seed.at("score", index)
        if self.method.alone:
            training = self.repeated(self.schedule.densities[index])
            if self.method.masks == "dynamic" and self.method.grow == "nothing":
                return Setting(ticket, self.dense, training)
            mask, notes, scoring = self.masks.smaller(self.dense, ticket.weights, kept, seed)
            return Setting(ticket, mask, training, notes=notes, scoring=scoring)
        if source is None:
            return Setting(ticket, self.dense, self.training, self.first)
        mask, notes, scoring = self.masks.smaller(source.mask, source.weights, kept, seed)
        if self.method.start == "ticket":
            return Setting(ticket, mask, self.training, self.first, notes, source.total, scoring)
        training, first = self.retrained(source, mask)
        return Setting(Ticket(source.weights, 0), mask, training, first, notes, source.total, scoring)

    def repeated(self, density: float) -> Training:
        """The training of a mask that stands alone; a cyclic one has as many schedules as an iterative run cycles."""
        if not self.method.cyclic:
            return self.training
        times = self.plan.trainings_to(density)
        repeats = times * (self.plan.most_particles if self.method.longer else 1)
        return replace(self.training, epochs=self.training.epochs * times, schedule_repeats=repeats)

    def retrained(self, source: Cycle, mask: Mask) -> tuple[Training, int]:
        """How the weights of `source` train on on the smaller `mask`, and the step that this starts at."""
        whole, removed = (
            sum(float(source.weights[name][chosen].double().square().sum()) for name, chosen in part.items()) ** 0.5
            for part in (source.mask, {name: ~alive for name, alive in mask.items()})
        )
        change = norm_change(whole, removed, 1 - mask.nnz / source.mask.nnz)
        training, epoch = retraining(
            self.training, self.plan.retraining, self.plan.retrain_epochs or self.training.epochs, change
        )
        return training, epoch * self.per_epoch

    def one_cycle(self, index: int, setting: Setting, trained: Trained) -> Cycle:
        """The cycle that these particles make."""
        began = time.perf_counter()
        particles, masks = trained.particles, trained.masks
        mask, weights, averaged = chosen(trained, self.plan, self.measure)
        broken = (*(self.mending.of(None) if index == 0 and not self.method.alone else ()), *self.mending.of(index))
        lost = empty_layer_warning(setting.mask, mask) if self.method.masks == "dynamic" else None
        notes = [*setting.notes, *filter(None, [lost])]
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
        cost = Cost(steps, steps * self.batch, operations, time.perf_counter() - began + trained.seconds)
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

    def found(self, index: int, setting: Setting) -> dict[int, Particle]:
        """The particles of a cycle that an interrupted run kept."""
        start, mask = setting.start, setting.mask
        count = self.schedule.particles[index]
        found = {i: particle for i in range(count) if (particle := self.store.particle(index, i)) is not None}
        for particle in found.values():
            if (particle.ticket, particle.mask) != (start.id, mask.digest):
                raise SwampError(
                    f"the stored particle {particle.index} of cycle {index} was trained from another ticket or mask "
                    "than this run has. Its files were mixed with another run's: delete that cycle's folder, resume."
                )
        return found

    def wanted(self, index: int, setting: Setting, found: Collection[int]) -> Wanted:
        """The particles of a cycle that are still to be trained; `found` are the others."""
        count = self.schedule.particles[index]
        seeds = [(i, self.seed.at("cycle", index, "particle", i)) for i in range(count) if i not in found]
        return Wanted(
            self.mending, index, count, setting.start, setting.mask, setting.training, seeds, first=setting.first
        )

    def trained(self, index: int, setting: Setting, found: Mapping[int, Particle], new: Iterable[Particle]) -> Trained:
        """The particles of a cycle, and what they cost; the seconds are those of the ones that were found."""
        particles = sorted([*found.values(), *new], key=lambda particle: particle.index)
        seconds = sum(particle.seconds for particle in found.values())
        a_step = self.batch * self.operations.training_step(setting.mask, setting.training)
        # What was trained in vain was paid for all the same.
        steps = sum(one.steps for one in (*particles, *self.mending.of(index)))
        return Trained(particles, (setting.mask,) * len(particles), steps, steps * a_step, seconds)

    def changing(self, index: int, setting: Setting) -> Trained:
        """Particles whose masks change while they train."""
        kept, count = self.schedule.nnz(index, self.dense.prunable), self.schedule.particles[index]
        parts = self.model, self.task, self.plan, setting.training, self.operations, self.mending
        while True:
            try:
                return Changing(*parts).run(index, setting.start, setting.mask, kept, count)
            except StartOver:
                continue
