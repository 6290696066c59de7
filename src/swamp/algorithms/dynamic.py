"""Particles whose masks change while they train: SET, RigL, gradual pruning, AC/DC, SAFE, and SWAMP with them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from swamp.algorithms.cycle_spec import CycleSpec
from swamp.algorithms.divergence import reduced_lr, restart_seed
from swamp.algorithms.particles import Trained
from swamp.algorithms.safe import dual_update
from swamp.algorithms.setup import Setup
from swamp.algorithms.store import Phase
from swamp.backends import CustomTrainer, Particle, Progress, TrainRequest
from swamp.backends.base import ForwardingProgress
from swamp.errors import Diverged, Interrupted, SwampError, warn
from swamp.masks import Mask
from swamp.training import RunningMean, Seed
from swamp.training.average import State, copied, mean
from swamp.training.batchnorm import reset_statistics
from swamp.training.mask_updates import dense_gradients, density_at, drop_and_grow, masked_state
from swamp.training.module_extra_state import load_state
from swamp.training.snapshot import Snapshot, masked_snapshot


def train_dynamic(setup: Setup, index: int, spec: CycleSpec) -> Trained:
    """The particles of cycle `index`, whose masks change while they train, starting from the mask of `spec`.

    Raises SwampError for a custom trainer, which cannot continue from the snapshot of the previous part.
    """
    if isinstance(setup.backend, CustomTrainer):
        raise SwampError(
            f"the mask of {setup.plan.method} changes between two steps of a training, and a custom trainer trains a "
            "particle as a whole. Choose a method with a fixed mask in each cycle, or train with the library's loop."
        )
    while True:
        try:
            return _DynamicTraining(setup, index, spec).run()
        except _RestartCycle:
            continue


class _RestartCycle(Exception):  # noqa: N818
    """A particle diverged. The whole cycle is trained again, because that particle has influenced the shared masks."""


class _DynamicTraining:
    """One cycle: trainings on a fixed mask, by any backend, between one change of the mask and the next.

    A particle passes from one training to the next as a snapshot, in which dropped weights, and the optimizer state
    of dropped and grown weights, are zero.
    """

    def __init__(self, setup: Setup, index: int, spec: CycleSpec) -> None:
        self.setup, self.index, self.spec = setup, index, spec
        self.plan, self.method, self.store = setup.plan, setup.plan.spec, setup.store
        self.nnz = setup.schedule.nnz(index, setup.dense.prunable)
        self.per_epoch, self.total = setup.per_epoch, spec.training.epochs * setup.per_epoch
        restarts = setup.divergence.cycle_restarts(index)
        count = setup.schedule.particles[index]
        self.members = setup.divergence.remaining(index, count)
        """Indices of the particles that are not dropped."""
        self.training = reduced_lr(spec.training, restarts)
        self.notes: list[str] = []
        # Particles have the seeds that they have with other methods.
        self.seed = restart_seed(setup.seed.at("cycle", index), restarts)
        split = round(self.plan.ticket_epochs * self.per_epoch)
        if self.plan.branch:
            split = self.total - self.plan.steps_apart(index, setup.options.epochs, self.total)
        self.split = split if len(self.members) > 1 else 0
        """Steps of the trunk that all particles share before they separate."""
        self.reached: dict[int, int] = {}
        """Index -> last step of each particle that is trained."""
        dynamic = self.plan.dynamic
        self.end = dynamic.end(self.training, self.per_epoch)
        self.changes = self.method.mask_changes(dynamic, self.training, self.per_epoch)
        # With a cyclic learning rate in the tail: a sample after each of its cycles, another mask before the next one.
        self.sampled = self.method.cyclic_final_lr and self.training.swa
        ends = range(self.per_epoch, self.total + 1, self.per_epoch) if self.sampled else ()
        self.sample_steps = tuple(step for step in ends if self.training.samples_at(step, self.per_epoch))
        named = setup.model.named_parameters()
        self.trainable = [name for name, parameter in named if parameter.requires_grad]
        """Names of the parameters that grow weights; frozen layers keep their mask."""

    def run(self) -> Trained:
        """Train all particles. Raises _RestartCycle if one diverges and the plan allows a restart."""
        index, count = self.index, len(self.members)
        phase = self.store.phase(index) or self._first_phase()
        earlier_seconds = phase.seconds
        # Also after the last change of the mask: a killed run resumes at the start of its part.
        parts = range(self.plan.dynamic.update_interval, self.total, self.plan.dynamic.update_interval)
        stops = [*parts, *self.changes, *self.sample_steps, self.split, self.total]
        while True:
            began = time.perf_counter()
            if len(phase.snapshots) == 1 < count and phase.step >= self.split:
                phase = replace(phase, snapshots=phase.snapshots * count)
            stop = min(step for step in stops if step > phase.step)
            try:
                particles, snapshots = self._train_part(phase, count if phase.step >= self.split else 1, stop)
            except Interrupted:
                self.store.keep_phase(index, phase, due=True)
                raise
            phase = self._next_phase(phase, stop, snapshots, began)
            if stop == self.total:
                break
            self.store.keep_phase(index, phase)
        masks = phase.masks * count if len(phase.masks) == 1 else phase.masks
        # A particle knows the seconds of its last part only.
        particles = [replace(particle, seconds=phase.seconds / count) for particle in particles]
        if self.method.penalty:
            pruned = [self._pruned_particle(particle) for particle in particles]
            phase = replace(phase, flops=phase.flops + self._change_flops(phase.masks, 1, self.total))
            particles, masks = [particle for particle, _ in pruned], tuple(mask for _, mask in pruned)
        for particle in particles:
            self.store.progress(index, count).on_finished(particle)
        # Diverged trainings were paid for too, and with each the whole cycle.
        diverged = self.setup.divergence.of(index)
        lost = sum(one.steps + one.others for one in diverged)
        samples = self._running_mean(phase).mean() if self.sampled else None
        steps = self.split + count * (self.total - self.split) + lost
        step_flops = self.setup.flops.training_step(self.spec.mask, self.training)
        flops = phase.flops + lost * self.setup.batch * step_flops
        return Trained(
            particles,
            masks,
            steps,
            flops,
            earlier_seconds,
            samples,
            tuple(self.notes),
            projected=bool(self.method.penalty),
            # The trunk is not `trunk`: a particle counts its steps from the beginning.
            sequential_steps=self.total + sum(one.steps for one in diverged),
        )

    def _first_phase(self) -> Phase:
        """Before the first step. With a penalty, the initial weights are projected."""
        phase = Phase(0, (self.spec.mask,), (), {}, 0, 0.0, 0.0)
        if not self.method.penalty:
            return phase
        model = self.setup.model
        load_state(model, self.spec.start.weights)
        if self.training.reset_batchnorm:
            reset_statistics(model)
        start = {name: value.contiguous() for name, value in copied(model.state_dict()).items()}
        return self._projected(replace(phase, snapshots=(Snapshot(0, start, {}, {}, 0, (), 0.0, 0),)))

    def _train_part(self, phase: Phase, count: int, stop: int) -> tuple[list[Particle], tuple[Snapshot, ...]]:
        """Train `count` particles to step `stop` on masks that do not change."""
        # Before they separate, the first particle is the trunk of all.
        indices = self.members[:count]
        seeds = [(i, self._seed(i, count)) for i in indices]
        shared = len(phase.masks) == 1
        groups = [(phase.masks[0], seeds)] if shared else [(phase.masks[i], [seeds[i]]) for i in range(count)]
        snapshots = dict(zip(indices, phase.snapshots, strict=False))
        inner = self.store.progress(self.index, count, keep=False)
        self.reached = dict.fromkeys(indices, phase.step)
        progress = _PartProgress(inner, snapshots, stop, self.total, self.reached, self._on_diverged)
        training = replace(self.training, swa=False, ema=0.0, lawa=0) if self.sampled else self.training
        particles: list[Particle] = []
        for mask, members in groups:
            request = TrainRequest(self.spec.start, mask, training, members, last=stop, progress=progress)
            particles += self.setup.backend.train(request)
        return particles, tuple(progress.taken[i] for i in indices)

    def _on_diverged(self, index: int, error: Diverged) -> None:
        """Raise _RestartCycle if the plan allows it, else `error`."""
        count = len(self.members) if error.steps > self.split else 1
        others = sum(step - self.split for member, step in self.reached.items() if member != index)
        self.setup.divergence.record(self.index, index, count, self.training.lr, 0, error, others)
        raise _RestartCycle

    def _next_phase(self, phase: Phase, step: int, snapshots: tuple[Snapshot, ...], began: float) -> Phase:
        """Add up the cost, take a sample where one is due, and change the masks where a change is due."""
        own = [phase.masks[i % len(phase.masks)] for i in range(len(snapshots))]
        examples = (step - phase.step) * self.setup.batch
        flops = phase.flops + sum(examples * self.setup.flops.training_step(mask, self.training) for mask in own)
        average = self._running_mean(phase)
        if self.sampled and step in self.sample_steps:
            for snapshot in snapshots:
                average.add(snapshot.weights)
        masks = phase.masks
        starts_lr_cycle = self.sampled and step in self.sample_steps and step < self.total
        if (step in self.changes and not self.method.penalty) or starts_lr_cycle:
            if self.method.own_masks and len(snapshots) > len(masks):
                masks = masks * len(snapshots)
            before, masks = masks, self._changed_masks(masks, snapshots, step)
            flops += self._change_flops(before, len(snapshots), step)
            snapshots = tuple(
                masked_snapshot(one, masks[i % len(masks)], self.trainable, self.setup.evaluator.ties)
                for i, one in enumerate(snapshots)
            )
            if self.method.grow == "all" and not self._compresses(step):
                # Momentum from before the compressed phase is stale for the weights that return (Peste et al. 2021).
                snapshots = tuple(replace(one, optimizer={}) for one in snapshots)
        seconds = phase.seconds + time.perf_counter() - began
        found = Phase(step, masks, snapshots, average.partial(), average.count, flops, seconds, phase.dual)
        return self._projected(found) if self.method.penalty and step in self.changes else found

    def _projected(self, phase: Phase) -> Phase:
        """The phase with new dual variables and anchors of its particle (SAFE)."""
        setup, (snapshot,) = self.setup, phase.snapshots
        seed, ties = self.seed.at("score", phase.step), setup.evaluator.ties
        found = dual_update(snapshot, phase.dual, setup.pruner, self.spec.mask, self.nnz, seed, self.trainable, ties)
        flops = phase.flops + self._change_flops(phase.masks, 1, phase.step)
        return replace(phase, snapshots=(found.snapshot,), dual=found.dual, flops=flops)

    def _pruned_particle(self, particle: Particle) -> tuple[Particle, Mask]:
        """A densely trained particle, pruned."""
        mask = self._pruned(self.spec.mask, particle.weights, self.nnz, self.total)
        weights = masked_state(particle.weights, mask, self.setup.evaluator.ties)
        return replace(particle, weights=weights, mask=mask.digest), mask

    def _changed_masks(self, masks: tuple[Mask, ...], snapshots: Sequence[Snapshot], step: int) -> tuple[Mask, ...]:
        """The masks after the change that follows `step`."""
        if len(masks) == 1:
            return (self._changed(masks[0], snapshots, self.members[: len(snapshots)], step),)
        return tuple(
            self._changed(mask, [snapshot], [index], step)
            for index, mask, snapshot in zip(self.members, masks, snapshots, strict=True)
        )

    def _changed(self, mask: Mask, snapshots: Sequence[Snapshot], indices: Sequence[int], step: int) -> Mask:
        """One mask after the change, decided by the mean of the particles that share it."""
        plan, weights = self.plan, mean(snapshot.weights for snapshot in snapshots)
        if self.method.grow == "nothing":
            prunable = self.spec.mask.prunable
            density = density_at(step, self.end, self.nnz / prunable)
            last = step == self.changes[-1]
            return self._pruned(mask, weights, self.nnz if last else round(density * prunable), step)
        if self.method.grow == "all":
            return self._pruned(mask, weights, self.nnz, step) if self._compresses(step) else self.setup.dense
        if self.method.grow == "random":
            generator = self.seed.at("grow", step, *(indices if len(snapshots) == 1 else ())).generator()
            growth = {
                n: torch.rand(active.shape, generator=generator) for n, active in mask.items() if n in self.trainable
            }
        else:
            gradients = self._dense_gradients(snapshots, indices, step)
            growth = {name: gradient.abs() for name, gradient in gradients.items()}
        fraction = plan.dynamic.fraction_at(step, self.end) if step <= self.end else plan.dynamic.drop_fraction
        return drop_and_grow(mask, weights, growth, fraction, plan.structure)

    def _compresses(self, step: int) -> bool:
        """Whether a compressed phase of AC/DC begins after `step`; otherwise all weights return."""
        return self.changes.index(step) % 2 == 0

    def _pruned(self, mask: Mask, weights: State, nnz: int, step: int) -> Mask:
        """The mask pruned to `nnz` weights by their scores; notes are warned of and recorded once."""
        pruned = self.setup.pruner.pruned(mask, weights, nnz, self.seed.at("score", step))
        # Of AC/DC the last mask alone remains.
        for note in pruned.notes if self.method.grow != "all" or step == self.changes[-1] else ():
            if note not in self.notes:
                warn(note)
                self.notes.append(note)
        return pruned.mask

    def _dense_gradients(self, snapshots: Sequence[Snapshot], indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Mean over the particles of the dense gradient on the batch that each takes next."""
        found: list[State] = []
        for i, snapshot in zip(indices, snapshots, strict=True):
            load_state(self.setup.model, snapshot.weights)
            seed = self._seed(i, len(self.members) if step > self.split else len(snapshots))
            gradients = dense_gradients(self.setup.model, self.setup.task, self.training, seed, step)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
                self._on_diverged(i, Diverged(f"particle {i}: the dense gradients diverged at step {step}.", step))
            found.append(gradients)
        return mean(found)

    def _seed(self, index: int, count: int) -> Seed:
        """Seed of the batch order of a particle, or of the trunk before the particles separate."""
        return self.seed.at("trunk") if count == 1 < len(self.members) else self.seed.at("particle", index)

    def _change_flops(self, masks: tuple[Mask, ...], count: int, step: int) -> float:
        """FLOPs of the update of `masks` after `step`, which is done: of the scores, or as counted in RigL.

        RigL: a sparse forward pass, sparse gradients of the activations and dense gradients of the weights.
        """
        if self.method.grow == "nothing" or (self.method.grow == "all" and masks[0] == self.setup.dense):
            return sum(self.setup.pruner.scoring_flops(mask, self.seed.at("score", step)) for mask in masks)
        if self.method.grow in ("random", "all"):
            return 0.0
        own, flops = [masks[i % len(masks)] for i in range(count)], self.setup.flops
        return self.setup.batch * sum(2 * flops.forward(mask) + flops.forward(None) for mask in own)

    def _running_mean(self, phase: Phase) -> RunningMean:
        like = phase.snapshots[0].weights if phase.snapshots else None
        return RunningMean(phase.mean, phase.averaged, like)


class _PartProgress(ForwardingProgress):
    """Progress of one part of a training: gives each particle its snapshot, and takes the one at step `stop`."""

    def __init__(
        self,
        inner: Progress,
        snapshots: Mapping[int, Snapshot],
        stop: int,
        total: int,
        reached: dict[int, int],
        diverged: Callable[[int, Diverged], None],
    ) -> None:
        super().__init__(inner)
        self.snapshots, self.reached, self.diverged = snapshots, reached, diverged
        self.stop, self.total = stop, total
        self.taken: dict[int, Snapshot] = {}

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on to `inner`, as a step of the whole training."""
        self.reached[index] = step
        if step == self.stop:
            self.taken[index] = snapshot()
        self.inner.on_step(index, step, self.total, snapshot)

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Apply the plan's policy."""
        self.diverged(index, error)

    def load_snapshot(self, index: int) -> Snapshot | None:
        """The end of the previous part."""
        return self.snapshots.get(index)

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Do nothing: all particles of a part are kept together, as a phase."""

    def on_finished(self, particle: Particle) -> None:
        """Do nothing: the training goes on in the next part."""
