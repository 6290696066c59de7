"""Particles whose masks change while they train: SET, RigL, gradual pruning, and SWAMP on top of them."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from swamp.algorithms.combine import Trained
from swamp.algorithms.mending import Mending, again, gentler
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Phase
from swamp.backends import Group, Particle, Progress, Ticket, train_groups
from swamp.errors import Diverged, Interrupted
from swamp.masks import Mask, prune_mask
from swamp.training import (
    Operations,
    RunningMean,
    Seed,
    Snapshot,
    State,
    Task,
    Training,
    arrange,
    dense_gradients,
    density_at,
    masked,
    mean,
    regrown,
)


class StartOver(Exception):  # noqa: N818
    """A particle broke, and the cycle is to be trained anew: its weights had a share in the masks of all."""


class Changing:
    """One cycle of a method whose masks change: fixed-mask trainings, by any backend, between one change and the next.

    What a particle carries over a change is its snapshot, in which dropped weights, and all that is kept of them, are
    set to zero; grown ones start there.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Plan,
        training: Training,
        operations: Operations,
        mending: Mending,
    ) -> None:
        self.model, self.task, self.plan, self.mending = copy.deepcopy(model), task, plan, mending
        self.backend, self.store = mending.backend, mending.store
        arrange(self.model, narrow=training.precision == "bfloat16")
        self.method, self.training, self.operations = plan.setting, training, operations
        self.batch = min(training.batch_size, len(task.train))
        self.per_epoch = task.train.steps(training.batch_size)
        self.total = training.epochs * self.per_epoch
        self.end = plan.dynamic.end(training, self.per_epoch)
        self.changes = plan.dynamic.steps(training, self.per_epoch)
        # A tail of several cycles changes the mask before each of them but the first, and takes a sample after each.
        self.sampled = self.method.cyclic_tail and training.swa
        ends = range(self.per_epoch, self.total + 1, self.per_epoch) if self.sampled else ()
        self.tail_ends = tuple(step for step in ends if training.samples_at(step, self.per_epoch))

    def run(self, index: int, start: Ticket, mask: Mask, kept: int, count: int) -> Trained:
        """Train `count` particles of cycle `index` from `mask`, to `kept` weights where masks prune_mask.

        Raises StartOver where one breaks and the plan has a way to go on: called again, it is gone.
        """
        times = self.mending.times(index)
        self.members, self.training = self.mending.whole(index, count), gentler(self.training, times)
        self.index, count = index, len(self.members)
        # Particles have the seeds that those of other methods have.
        self.seed = again(Seed(self.plan.seed).at("cycle", index), times)
        phase = self.store.phase(index) or Phase(0, (mask,), (), {}, 0, 0.0, 0.0)
        earlier = phase.seconds
        self.count, self.split = count, round(self.plan.ticket_epochs * self.per_epoch) if count > 1 else 0
        # Also where no mask changes any more: what is kept between two parts is what a killed run goes on from.
        parts = range(self.plan.dynamic.update_interval, self.total, self.plan.dynamic.update_interval)
        stops = [*parts, *self.tail_ends, self.split, self.total]
        training = replace(self.training, swa=False, ema=0.0) if self.sampled else self.training
        while True:
            began = time.perf_counter()
            if len(phase.snapshots) == 1 < count and phase.step >= self.split:
                phase = replace(phase, snapshots=phase.snapshots * count)
            several = count if phase.step >= self.split else 1
            until = min(stop for stop in stops if stop > phase.step)
            try:
                particles, snapshots = self.advance(index, start, training, phase, several, until)
            except Interrupted:
                self.store.keep_phase(index, phase, due=True)
                raise
            phase = self.after(phase, mask, until, kept, snapshots, began)
            if until == self.total:
                break
            self.store.keep_phase(index, phase)
        # They were trained a part at a time; the last part knows of all steps but of its own seconds only.
        seconds = phase.seconds / count
        particles = [replace(particle, seconds=seconds) for particle in particles]
        for particle in particles:
            self.store.progress(index, count).finished(particle)
        # What was trained in vain was paid for all the same.
        lost = sum(broke.steps for broke in self.mending.of(index))
        masks = phase.masks * count if len(phase.masks) == 1 else phase.masks
        samples = self._mean(phase).mean() if self.sampled else None
        steps = self.split + count * (self.total - self.split) + lost
        operations = phase.operations + lost * self.batch * self.operations.training_step(mask, self.training)
        return Trained(particles, masks, steps, operations, earlier, samples)

    def advance(
        self, index: int, start: Ticket, training: Training, phase: Phase, count: int, until: int
    ) -> tuple[list[Particle], tuple[Snapshot, ...]]:
        """Train to step `until` on masks that stay."""
        # While they are still one, the first stands for all.
        numbers = self.members[:count]
        seeds = [(i, self._seed(i, count)) for i in numbers]
        shared = len(phase.masks) == 1
        apart = [(phase.masks[0], seeds)] if shared else [(phase.masks[i], [seeds[i]]) for i in range(count)]
        kept = dict(zip(numbers, phase.snapshots, strict=False))
        relay = _Relay(self.store.progress(index, count, keep=False), kept, until, self.total, self.broke)
        groups = [Group(start, mask, members, relay) for mask, members in apart]
        trained = train_groups(self.backend, groups, training, first=0, last=until)
        return [particle for group in trained for particle in group], tuple(relay.taken[i] for i in numbers)

    def broke(self, number: int, error: Diverged) -> None:
        """Raise StartOver where the cycle is to be trained anew, else `error`."""
        count = len(self.members) if error.steps > self.split else 1
        self.mending.broke(self.index, number, count, self.training.lr, 0, error)
        raise StartOver

    def after(
        self,
        phase: Phase,
        first: Mask,
        step: int,
        kept: int,
        snapshots: tuple[Snapshot, ...],
        began: float,
    ) -> Phase:
        """Account for what was trained, take a sample where one is due, and change the masks where they do."""
        own = [phase.masks[i % len(phase.masks)] for i in range(len(snapshots))]
        steps = (step - phase.step) * self.batch
        operations = phase.operations + sum(steps * self.operations.training_step(mask, self.training) for mask in own)
        averaged = self._mean(phase)
        if self.sampled and step in self.tail_ends:
            for snapshot in snapshots:
                averaged.add(snapshot.weights)
        masks = phase.masks
        in_tail = self.sampled and step in self.tail_ends and step < self.total
        if step in self.changes or in_tail:
            if self.method.own_masks and len(snapshots) > len(masks):
                masks = masks * len(snapshots)
            operations += self._cost_of_change(masks, len(snapshots))
            masks = self.changed(masks, first, snapshots, step, kept)
            names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            snapshots = tuple(masked(s, masks[i % len(masks)], names) for i, s in enumerate(snapshots))
        seconds = phase.seconds + time.perf_counter() - began
        return Phase(step, masks, snapshots, averaged.partial(), averaged.count, operations, seconds)

    def changed(
        self, masks: tuple[Mask, ...], first: Mask, snapshots: Sequence[Snapshot], step: int, kept: int
    ) -> tuple[Mask, ...]:
        """The masks after the change that follows `step`."""
        if len(masks) == 1:
            return (self._one_changed(masks[0], first, snapshots, self.members[: len(snapshots)], step, kept),)
        return tuple(
            self._one_changed(mask, first, [snapshot], [number], step, kept)
            for number, mask, snapshot in zip(self.members, masks, snapshots, strict=True)
        )

    def _one_changed(
        self, mask: Mask, first: Mask, snapshots: Sequence[Snapshot], indices: Sequence[int], step: int, kept: int
    ) -> Mask:
        weights = mean(snapshot.weights for snapshot in snapshots)
        if self.method.grow == "nothing":
            density = density_at(step, self.end, kept / first.prunable)
            last = step == self.changes[-1]
            scores = {name: weights[name].abs() for name in mask}
            plan = self.plan
            return prune_mask(
                mask,
                scores,
                kept if last else round(density * first.prunable),
                allocation=plan.allotment,
                structure=plan.structure,
                min_per_layer=plan.min_per_layer,
            )
        if self.method.grow == "random":
            generator = self.seed.at("grow", step, *(indices if len(snapshots) == 1 else ())).generator()
            growth = {name: torch.rand(alive.shape, generator=generator) for name, alive in mask.items()}
        else:
            growth = {name: value.abs() for name, value in self._gradients(snapshots, indices, step).items()}
        share = self.plan.dynamic.fraction_at(step, self.end) if step <= self.end else self.plan.dynamic.drop_fraction
        return regrown(mask, weights, growth, share, self.plan.structure)

    def _gradients(self, snapshots: Sequence[Snapshot], indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Mean over the particles of the dense gradient on the batch that each takes next."""
        found: list[State] = []
        for i, snapshot in zip(indices, snapshots, strict=True):
            self.model.load_state_dict(dict(snapshot.weights))
            seed = self._seed(i, self.count if step > self.split else len(snapshots))
            gradients = dense_gradients(self.model, self.task, self.training, seed, step)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
                self.broke(i, Diverged(f"particle {i}: the gradients that grow weights broke at step {step}.", step))
            found.append(gradients)
        return mean(found)

    def _seed(self, index: int, several: int) -> Seed:
        """Of the order of batches: particles part from a common trunk."""
        return self.seed.at("trunk") if several == 1 < self.count else self.seed.at("particle", index)

    def _cost_of_change(self, masks: tuple[Mask, ...], count: int) -> float:
        """As RigL counts: a sparse forward pass, sparse gradients of activations, dense gradients of weights."""
        if self.method.grow != "gradient":
            return 0.0
        own = [masks[i % len(masks)] for i in range(count)]
        return self.batch * sum(2 * self.operations.forward(mask) + self.operations.forward(None) for mask in own)

    def _mean(self, phase: Phase) -> RunningMean:
        like = phase.snapshots[0].weights if phase.snapshots else None
        return RunningMean(phase.mean, phase.averaged, like)


class _Relay:
    """Progress of one part of a training: hands each particle its snapshot, and takes the one at the end."""

    def __init__(
        self,
        progress: Progress,
        snapshots: Mapping[int, Snapshot],
        until: int,
        total: int,
        broke: Callable[[int, Diverged], None],
    ) -> None:
        self.progress, self.snapshots, self.tell = progress, snapshots, broke
        self.until, self.total = until, total
        self.taken: dict[int, Snapshot] = {}

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on, as part of the whole training."""
        del total
        if step == self.until:
            self.taken[index] = snapshot()
        self.progress.stepped(index, step, self.total, snapshot)

    def broke(self, index: int, error: Diverged) -> None:
        """Pass it on."""
        self.tell(index, error)

    def unfinished(self, index: int) -> Snapshot | None:
        """Where the part before ended."""
        return self.snapshots.get(index)

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing: the parts of a training are kept together, as a phase."""

    def finished(self, particle: Particle) -> None:
        """Nothing yet: the training goes on."""
