"""Plan: what a pruning run does, apart from how each particle is trained."""

from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from swamp.algorithms.method import Method
from swamp.algorithms.registry import method_named
from swamp.arguments import named_fields
from swamp.errors import SwampError, unknown
from swamp.fields import check_at_least, check_fields, html_table, short_repr
from swamp.masks import NMPattern, Schedule, Scope, densities_by_fraction, densities_to
from swamp.masks.patterns import structure_named
from swamp.masks.schedule import MAX_CYCLES, Count, particles_for
from swamp.references import PYTHON_PREFIX
from swamp.scores import score_named
from swamp.training import Training
from swamp.training.mask_updates import Dynamic
from swamp.training.retrain import Retraining

OnDivergence = Literal["stop", "restart", "drop"]
_LAST_GAIN = 0.05
"""Of the least gain, what a particle of the last cycle must gain: those of the others only improve masks."""
Keep = Literal["weights", "mask", "sparsity"]


@dataclass(frozen=True)
class Transfer:
    """What a run takes over from a finished run on other data, in place of a ticket and masks of its own."""

    source: str = ""
    """Directory of a finished run to transfer from: see swamp transfer (empty: no transfer)."""
    keep: Keep = "weights"
    """What a transfer keeps of its source: the pruned weights and the mask; the mask, trained from the source's ticket;
    or the number of weights in each layer, as a random mask of new weights."""

    def __post_init__(self) -> None:
        check_fields(self)


@named_fields
@dataclass(frozen=True)
class Plan:
    """What is pruned, how much, and in how many cycles; `Training` says how each particle is trained."""

    method: str = "swamp"
    """Name of the method; `swamp list methods` shows all."""
    sparsity: float = 0.95
    """Fraction of the prunable weights that are removed after the last cycle (an n:m structure sets it: 1 - n/m)."""
    particles: tuple[Count, ...] = (4,)
    """Particles N per cycle; several numbers give one value per cycle, the last one repeats. auto: particles are
    trained in waves while the next wave is predicted to lower the loss on validation data enough."""
    max_particles: int = 8
    """Largest number of particles of a cycle with particles auto."""
    wave: int = 1
    """Particles that are trained at the same time with particles auto; the first wave has at least two."""
    least_gain: float = 0.01
    """With particles auto: another particle is trained if it is predicted to lower the validation loss by at least this
    fraction of it; in the last cycle, by a twentieth of this fraction."""
    branch: float = 0.0
    """Fraction of each training in which the particles are separate; the part before it, the trunk, is trained once for
    all of them (0: the method's fraction, mostly 1, which means no trunk)."""
    cycles: int = 0
    """Number of pruning steps after the dense cycle (0: derived from the prune fraction; 1 for methods that need no
    earlier cycle)."""
    prune_fraction: tuple[float, ...] = (0.2,)
    """Fraction of the remaining weights to prune per cycle; several numbers give one value per cycle."""
    densities: tuple[float, ...] = ()
    """Densities of the cycles, e.g. 1 0.5 0.1 (replaces sparsity, cycles and prune fraction)."""
    ticket_epochs: float = 1.0
    """Epochs of dense training before the ticket is saved; too few make it unstable: see each cycle's barrier."""
    seed: int = 0
    """Seed of all randomness: initial weights, split, batch orders, augmentation, dropout."""
    score: str = ""
    """Score by which weights are ranked (default: the method's, mostly magnitude). See `swamp list scores`."""
    score_examples: int = 1000
    """Largest number of training examples for scores that use data."""
    allocation: str = ""
    """Division of the remaining weights among layers: global, uniform or erk (default: the method's, mostly global)."""
    structure: str = "unstructured"
    """Pattern of the pruned weights: unstructured; n:m such as 2:4, 1:4 or 4:8 (n of every m inputs remain); or channel
    (whole output channels). See `swamp list structures`."""
    min_per_layer: int | None = None
    """Smallest number of weights that remain in each layer (0: layers may become empty; default: a layer that would
    lose all its weights keeps the best one of each output channel)."""
    include: tuple[str, ...] = ()
    """Patterns of parameter names to prune, instead of the weights of all layers; with their biases where a pattern
    matches these: 'hidden*.weight' leaves them out."""
    exclude: tuple[str, ...] = ()
    """Patterns of parameter names to leave dense."""
    prune_output_layer: Literal["auto", "yes", "no"] = "auto"
    """Whether the output layer is pruned; auto leaves only the new head of a pretrained language model dense."""
    retrain: str = ""
    """Learning rates after pruning without a rewind: slr, lrw, ft, clr, llr or allr (default: the method's)."""
    retrain_epochs: int = 0
    """Epochs of methods that continue from pruned weights (0: as many as the dense network)."""
    last_epochs: int = 0
    """Epochs of the last cycle, which gives the final model (0: as many as the others)."""
    dynamic: Dynamic = field(default_factory=Dynamic)
    transfer: Transfer = field(default_factory=Transfer)
    on_divergence: OnDivergence = "restart"
    """If the loss or weights of a particle are not finite: stop ends the run; restart trains the particle again from
    the ticket with half the learning rate, up to three times; drop leaves it out of the mean. Each case is recorded."""
    barrier_points: int = 9
    """Points between two particles at which the error barrier is measured in each cycle (0: not measured)."""
    barrier_threshold: float = 0.02
    """Error barrier above which a warning is shown; 0.02 is 2 points (Frankle et al. 2020)."""
    evaluation_examples: int = 10_000
    """Largest number of examples for training metrics and barriers."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.score.startswith(PYTHON_PREFIX):  # as config.json has it: reading a run needs no score
            score_named(self.score_name)
        if self.retrain and self.retrain not in get_args(Retraining):
            raise unknown("retrain", self.retrain, get_args(Retraining))
        if (self.retrain or self.retrain_epochs) and self.spec.start != "pruned":
            raise SwampError(
                f"{self.method} rewinds its weights: retrain and retrain_epochs apply to methods that continue from "
                "pruned weights, such as lrr, sms and one-shot. Leave these options out, or take such a method."
            )
        structure_named(self.structure).check_allocation(self.allocation_name)
        wrong = [
            (not 0 <= self.branch <= 1, "branch", "a fraction of the training in (0, 1], or 0 for the method's"),
            (not 0 <= self.cycles <= MAX_CYCLES, "cycles", f"0 or more, and {MAX_CYCLES} at most"),
            (not 0 <= self.ticket_epochs <= 1e9, "ticket_epochs", "0 or more, and a billion at most"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")
        check_at_least(self, 0, "seed", "min_per_layer", "retrain_epochs", "last_epochs")
        check_at_least(self, 0, "barrier_points", "barrier_threshold", "least_gain")
        check_at_least(self, 1, "score_examples", "evaluation_examples", "wave")
        check_at_least(self, 2, "max_particles")
        if "auto" in self.particles:
            self._check_auto()
        self.schedule()

    def _check_auto(self) -> None:
        method = self.spec
        wrong = [
            (method.ensemble, "trains runs of their own, which are not averaged"),
            (method.equal_cost, "trains for as long as a given number of particles costs"),
            (not method.multi_particle, "trains one particle per cycle"),
            (method.masks == "dynamic", "trains all particles of a cycle from one change of their mask to the next"),
            (method.combine != "mean", "does not average all its particles"),
        ]
        for bad, why in wrong:
            if bad:
                raise SwampError(
                    f'particles="auto" trains as many particles as are worth averaging, but {self.method} {why}. Give '
                    "it a number, or take swamp, swamp-no-swa or sms."
                )

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    @property
    def spec(self) -> Method:
        """The method that `method` names."""
        return method_named(self.method)

    @property
    def branch_fraction(self) -> float:
        """Fraction of each training that the particles train apart; 1: they share no trunk."""
        return self.branch or self.spec.branch

    @property
    def score_name(self) -> str:
        """Name of the score that ranks weights."""
        return self.score or self.spec.score

    @property
    def allocation_name(self) -> str:
        """Name of the allocation; an n:m pattern keeps the same fraction in all layers."""
        by_method = "uniform" if isinstance(structure_named(self.structure), NMPattern) else self.spec.allocation
        return self.allocation or by_method

    @property
    def retraining(self) -> Retraining:
        """Learning rates of methods that continue from pruned weights."""
        return cast(Retraining, self.retrain) if self.retrain else self.spec.retrain

    @property
    def scope(self) -> Scope:
        """The parameters that may be pruned. Whole channels of the output layer are classes, so that it stays dense."""
        may = {"auto": None, "yes": True, "no": False}[self.prune_output_layer]
        return Scope(self.include, self.exclude, prune_output_layer=may if self.structure != "channel" else False)

    @property
    def most_particles(self) -> int:
        """The largest number of particles in any cycle: N."""
        return max(self._at_most)

    @property
    def _at_most(self) -> tuple[int, ...]:
        return tuple(self.max_particles if count == "auto" else count for count in self.particles)

    def adaptive(self, cycle: int) -> bool:
        """Whether the number of particles of a cycle is chosen while they train; the schedule has the largest one."""
        asked = self.particles[min(cycle, len(self.particles) - 1)]
        return asked == "auto" and self.schedule().particles[cycle] > 1

    def schedule(self) -> Schedule:
        """Densities and particle counts, cycle by cycle. Raises SwampError for what cannot be."""
        densities = self._densities()
        counts = particles_for(densities, self._at_most, single_particle_above=self.spec.single_particle_above)
        return Schedule(densities, counts if self.spec.multi_particle else (1,) * len(densities))

    def ticket_steps(self, per_epoch: int) -> int:
        """Steps of the training of the ticket; a transfer starts from its source. per_epoch: steps of an epoch."""
        return 0 if self.transfer.source else round(self.ticket_epochs * per_epoch)

    def first_wave(self, cycle: int) -> int:
        """Particles of a cycle that are trained first: all of them, unless their number is chosen from a few."""
        most = self.schedule().particles[cycle]
        return min(most, max(2, self.wave)) if self.adaptive(cycle) else most

    def least_gain_of(self, cycle: int) -> float:
        """Fall of the loss, as a fraction of it, for which another particle of a cycle is trained."""
        last = cycle == len(self.schedule()) - 1
        return self.least_gain * (_LAST_GAIN if last else 1)

    def training(self, options: Training, cycle: int) -> Training:
        """How the particles of a cycle are trained: `options` with the settings and the epochs of the method."""
        repeats = self._schedules(cycle) if self.spec.cyclic else 0
        epochs = self._scaled(cycle, self._schedule_epochs(cycle, options.epochs))
        return self.spec.training(options, epochs=epochs, schedule_repeats=repeats)

    def particle_epochs(self, cycle: int, epochs: int) -> int:
        """Epochs of a particle of this cycle. epochs: those of `Training`; retraining after pruning may have others."""
        return self._scaled(cycle, self._epochs_of_one(cycle, epochs))

    def first_step(self, cycle: int, ticket_steps: int, options: Training) -> int:
        """Step of the schedule at which particles that start from the ticket begin.

        Where the schedule advances to the ticket's step and is longer than that of `options`, so is that step.
        """
        if options.lr_after_rewind == "restart":
            return 0
        epochs = self._schedule_epochs(cycle, options.epochs)
        return round(ticket_steps * self._scaled(cycle, epochs) / epochs)

    def apart(self, cycle: int, epochs: int) -> float:
        """Fraction of a training that the particles of a cycle train apart, after their trunk; 1: there is no trunk.

        epochs: those of `Training`. For a method of equal cost the fraction makes up for the rounding of epochs.
        """
        count = self.schedule().particles[cycle]
        if count == 1 or self.branch_fraction == 1:
            return 1.0
        if not self.spec.equal_cost:
            return self.branch_fraction
        epochs = self._epochs_of_one(cycle, epochs)
        return (count * epochs / self._scaled(cycle, epochs) - 1) / (count - 1)

    def steps_apart(self, cycle: int, epochs: int, steps: int) -> int:
        """Of a training of `steps` steps, those that the particles of a cycle take apart: one at least."""
        return max(1, round(self.apart(cycle, epochs) * steps))

    def cycle_epochs(self, cycle: int, epochs: int) -> float:
        """Epochs of all particles of a cycle together, and of their trunk. epochs: those of `Training`."""
        apart = self.apart(cycle, epochs)
        return self.particle_epochs(cycle, epochs) * (1 - apart + self.schedule().particles[cycle] * apart)

    def _epochs_of_one(self, cycle: int, epochs: int) -> int:
        """Epochs of one particle of a method that trains no longer than its options say."""
        own = cycle and not self._has_own_epochs(cycle)
        return self.retrain_epochs if own and self.retrain_epochs else self._schedule_epochs(cycle, epochs)

    def _schedule_epochs(self, cycle: int, epochs: int) -> int:
        """Epochs of the schedule of learning rates of a method that trains no longer than its options say."""
        return self.last_epochs if self._has_own_epochs(cycle) else epochs

    def _has_own_epochs(self, cycle: int) -> bool:
        return self.last_epochs > 0 and not self.spec.independent and cycle == len(self._densities()) - 1

    def _scaled(self, cycle: int, epochs: int) -> int:
        """The epochs by which a particle trains at the cost that the method has: more for methods of equal cost.

        A cyclic method trains at the cost of an iterative run: its number of cycles, or the number of particles in all
        of its cycles, times the epochs.
        """
        if self.spec.cyclic:
            return epochs * self._schedules(cycle)
        if not self.spec.equal_cost:
            return epochs
        count = particles_for(self._densities(), self._at_most)[cycle]
        apart = self.branch_fraction if self.spec.multi_particle else 0.0
        longer = round(epochs * count / (1 - apart + count * apart))
        # Particles that share a trunk need a rest of the cost for themselves.
        return max(epochs, min(longer, epochs * count - 1) if apart else longer)

    def _schedules(self, cycle: int) -> int:
        """Schedules that a cyclic method trains by."""
        densities = self._densities()
        path = densities[: cycle + 1] if densities[0] == 1 else self._path_to(densities[cycle])
        return sum(particles_for(path, self._at_most)) if self.spec.equal_cost else len(path)

    def _path_to(self, density: float) -> tuple[float, ...]:
        """Densities of an iterative run to this one: from the dense cycle on, by the pattern or the prune fraction."""
        structure = structure_named(self.structure)
        if isinstance(structure, NMPattern):
            return tuple(one for one in structure.densities(()) if one >= density)
        return densities_to(1 - density, prune_fraction=self.prune_fraction)

    def _densities(self) -> tuple[float, ...]:
        if self.transfer.source:
            return densities_to(self.sparsity, cycles=1)[-1:]
        if self.densities and self.densities[0] != 1 and not self.spec.independent:
            raise SwampError(
                f"densities start at 1, the dense cycle 0 that {self.method} needs, got {list(self.densities)}."
            )
        # Who needs no other sparsity on the way goes there at once; for the whole curve one names the densities.
        alone, at_once = self.spec.independent and not self.cycles, self.spec.masks != "iterative"
        cycles = self.cycles or int(at_once)
        structure = structure_named(self.structure)
        if isinstance(structure, NMPattern):
            # Sparsity and prune_fraction always have a value: a recipe's must not stand in the way of a pattern.
            found = structure.densities(self.densities, cycles)
            return found[-1:] if alone and not self.densities else found
        if self.densities:
            return self.densities
        if at_once and not self.cycles:
            return densities_to(self.sparsity, cycles=1)[-1 if alone else 0 :]
        if self.cycles and len(self.prune_fraction) > 1:
            reached = densities_by_fraction(self.prune_fraction, self.cycles)
            if abs(reached[-1] - (1 - self.sparsity)) > 1e-6:
                raise SwampError(
                    f"cycles={self.cycles} and prune_fraction={list(self.prune_fraction)} end at sparsity "
                    f"{1 - reached[-1]:.4f}, not at sparsity={self.sparsity:g}. Give two of the three."
                )
            return reached
        return densities_to(self.sparsity, cycles=self.cycles or None, prune_fraction=self.prune_fraction)
